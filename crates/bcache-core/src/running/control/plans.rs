//! What each action checks, writes and proves (docs/running.md §7).

use std::path::Path;

use uuid::Uuid;

use super::claim::claimable;
use super::on_device::{named_set, superblock_of};
use super::returning::{joins, returns_to};
use super::{Note, Plan, Proof, Refusal, Write};
use crate::device::DeviceKind;
use crate::device::holders::holders_of_device;
use crate::device::sysfs::{BackingState as Word, BlockDir, Root, node_of};
use crate::layout::superblock::Kind;
use crate::layout::verdict::kernel_verdict;
use crate::running::attributes::Attributes;
use crate::running::findings::DeviceState;
use crate::running::rounded::Rounded;
use crate::running::view::{Backing, Set, View};
use crate::units::{SECTOR_BYTES, Sectors};

/// Most bytes of a backing device's label. A 32nd would fit the superblock without the newline that
/// sysfs adds, and is left to none.
const LABEL_BYTES_MAX: usize = 31;

/// Who uses a bcache device or one of its partitions, in words; empty where nobody does.
pub(crate) fn users_of(root: &Root, bcache: &str) -> Vec<String> {
    let Some(device) = BlockDir::by_name(root, bcache) else { return Vec::new() };
    let mut users: Vec<String> =
        holders_of_device(root, &device).iter().map(ToString::to_string).collect();
    let node = node_of(bcache);
    if users.is_empty() && node.exists() && !claimable(&node) {
        users.push("another program has it open for itself".to_owned());
    }
    users
}

fn plan(action: &'static str, target: &str, writes: Vec<Write>, proof: Proof) -> Plan {
    Plan { action, target: target.to_owned(), writes, proof, notes: Vec::new() }
}

fn already(action: &'static str, target: &str) -> Plan {
    let notes = vec![Note::AlreadySo];
    Plan { action, target: target.to_owned(), writes: Vec::new(), proof: Proof::Written, notes }
}

fn write(at: &Attributes, name: &str, value: impl Into<String>) -> Write {
    Write { file: at.path(name), value: value.into() }
}

pub(super) fn wrong_state(backing: &Backing) -> Refusal {
    Refusal::WrongState {
        device: backing.name.clone(),
        state: DeviceState::of(backing),
        set: backing.set.or_else(|| named_set(backing)),
    }
}

/// Registers the device at `path`. `lose_dirty_data` allows what drops dirty data of a backing device
/// that was started without its cache.
///
/// # Errors
/// What the kernel would refuse, and what would lose data.
pub fn plan_register(
    root: &Root,
    view: &View,
    path: &Path,
    lose_dirty_data: bool,
) -> Result<Plan, Refusal> {
    if !view.available {
        return Err(Refusal::NoModule);
    }
    let (superblock, info) = superblock_of(path)?;
    let device = BlockDir::of_path(root, path);
    let (DeviceKind::Block, Some(device)) = (info.kind, device) else {
        return Err(Refusal::NotABlockDevice { path: path.to_owned() });
    };
    let name = device.name().to_owned();
    if device.role().is_some() {
        return Ok(already("register", &name));
    }
    if info.read_only {
        return Err(Refusal::ReadOnly { device: name });
    }
    let superblock = superblock.ok_or_else(|| Refusal::KernelWouldRefuse {
        device: name.clone(),
        reason: "Not a bcache superblock (the device is too small)".to_owned(),
    })?;
    if let Some(reason) = kernel_verdict(&superblock, &info.target()).refusal {
        return Err(Refusal::KernelWouldRefuse { device: name, reason: reason.to_string() });
    }
    if superblock.kind() == Some(Kind::Cache) {
        let set = superblock.set_uuid();
        if let Some(registered) = view.set(set) {
            let other = registered.cache.as_ref().map(|it| it.name.clone());
            let other = other.unwrap_or_else(|| set.to_string());
            return Err(Refusal::SameUuid { device: name, uuid: set, other });
        }
        returns_to(view, path, set, lose_dirty_data)?;
    } else {
        let uuid = superblock.uuid();
        if let Some(other) = view.backing.iter().find(|it| it.uuid == Some(uuid)) {
            return Err(Refusal::SameUuid { device: name, uuid, other: other.name.clone() });
        }
        if !lose_dirty_data {
            joins(view, path, &superblock, &name, false)?;
        }
    }
    if !claimable(path) {
        let mut users: Vec<String> =
            holders_of_device(root, &device).iter().map(ToString::to_string).collect();
        if users.is_empty() {
            users.push("another program has it open for itself".to_owned());
        }
        return Err(Refusal::InUse { device: name, users });
    }
    let register = Attributes::at(root, root.sys("fs/bcache"));
    let value = format!("{}\n", node_of(&name).display());
    let writes = vec![write(&register, "register", value)];
    Ok(plan("register", &name, writes, Proof::Registered { device: name.clone() }))
}

/// Attaches a backing device to a set.
///
/// # Errors
/// In every state but "no cache" and "inconsistent", and when the set's blocks are too large.
pub fn plan_attach(backing: &Backing, set: &Set) -> Result<Plan, Refusal> {
    let device = backing.name.clone();
    let mut notes = Vec::new();
    match DeviceState::of(backing) {
        DeviceState::AttachedClean | DeviceState::AttachedDirty
            if backing.set == Some(set.uuid) =>
        {
            return Ok(already("attach", &device));
        }
        DeviceState::Plain => {}
        DeviceState::Forced => notes.push(Note::DropsOldContents),
        // The kernel would take it to a set that may still have old contents of it.
        DeviceState::Waiting => {
            return Err(Refusal::WaitsForItsSet { device, set: named_set(backing) });
        }
        _ => return Err(wrong_state(backing)),
    }
    fits(backing, set.block_size.map(Rounded::at_least))?;
    Ok(Plan { notes, ..attach_to(backing, set.uuid) })
}

/// What attaching `backing` to a set writes and proves.
pub(super) fn attach_to(backing: &Backing, set: Uuid) -> Plan {
    let device = backing.name.clone();
    let writes = vec![write(&backing.attributes, "attach", format!("{set}\n"))];
    let proof = Proof::Attached { device: device.clone(), set };
    plan("attach", &device, writes, proof)
}

/// Whether a set with blocks of `set_bytes` can have `backing`. A size that cannot be read is left to
/// the kernel to judge.
///
/// # Errors
/// When the blocks of the set are larger than those that the backing device was made with.
pub(super) fn fits(backing: &Backing, set_bytes: Option<u64>) -> Result<(), Refusal> {
    let superblock = superblock_of(&node_of(&backing.name)).ok().and_then(|it| it.0);
    let device_bytes = superblock.map(|it| it.block_size().bytes());
    match (set_bytes, device_bytes) {
        (Some(set_bytes), Some(device_bytes)) if set_bytes > device_bytes => {
            Err(Refusal::BlockSize { device: backing.name.clone(), set_bytes, device_bytes })
        }
        _ => Ok(()),
    }
}

/// Detaches a backing device: writes its dirty data back first, at full speed. It cannot be called
/// off. With `wait` it is done when it is detached, else when the kernel has been told.
///
/// # Errors
/// When it is not attached.
pub fn plan_detach(backing: &Backing, wait: bool) -> Result<Plan, Refusal> {
    let device = backing.name.clone();
    match DeviceState::of(backing) {
        // The kernel passes over a second call to detach what it detaches.
        DeviceState::AttachedClean | DeviceState::AttachedDirty | DeviceState::Detaching => {}
        DeviceState::Plain => return Ok(already("detach", &device)),
        _ => return Err(wrong_state(backing)),
    }
    let writes = vec![write(&backing.attributes, "detach", "1\n")];
    let proof = if wait { Proof::Detached { device: device.clone() } } else { Proof::Written };
    let notes = dirty_of(backing)
        .map(|dirty_bytes| Note::WritesBack { device: device.clone(), dirty_bytes })
        .into_iter()
        .collect();
    Ok(Plan { notes, ..plan("detach", &device, writes, proof) })
}

fn dirty_of(backing: &Backing) -> Option<Rounded> {
    backing.dirty.filter(|dirty| !dirty.is_zero())
}

/// Starts a waiting backing device without its cache.
///
/// # Errors
/// When it does not wait; when it is dirty, unless `lose_dirty_data`.
pub fn plan_run(backing: &Backing, lose_dirty_data: bool) -> Result<Plan, Refusal> {
    let device = backing.name.clone();
    if DeviceState::of(backing) != DeviceState::Waiting {
        return Err(wrong_state(backing));
    }
    let mut notes = vec![Note::TurnsInconsistent];
    if backing.superblock_state != Some(Word::Clean) {
        if !lose_dirty_data {
            return Err(Refusal::Dirty { device });
        }
        notes.push(Note::LosesDirtyData);
    }
    let writes = vec![write(&backing.attributes, "running", "1\n")];
    let proof = Proof::Runs { device: device.clone() };
    Ok(Plan { notes, ..plan("run", &device, writes, proof) })
}

/// Stops a backing device that runs without the cache that its superblock names, to be registered and
/// started again: only then does the superblock say that it went on without it.
///
/// # Errors
/// When it is in use; when its superblock says that it is dirty, unless `lose_dirty_data`.
pub fn plan_run_again(
    root: &Root,
    backing: &Backing,
    lose_dirty_data: bool,
) -> Result<Plan, Refusal> {
    if backing.superblock_state != Some(Word::Clean) && !lose_dirty_data {
        return Err(Refusal::Dirty { device: backing.name.clone() });
    }
    let plan = plan_stop(root, backing, false)?;
    Ok(Plan { notes: Vec::new(), ..plan })
}

/// Notes the users of the bcache devices, or refuses because of them.
fn not_in_use(
    root: &Root,
    bcache: &[String],
    lazy: bool,
    notes: &mut Vec<Note>,
) -> Result<bool, Refusal> {
    let mut used = false;
    for name in bcache {
        let users = users_of(root, name);
        if users.is_empty() {
            continue;
        }
        if !lazy {
            return Err(Refusal::InUse { device: name.clone(), users });
        }
        used = true;
        notes.push(Note::EndsAtLastClose { bcache: name.clone(), users });
    }
    Ok(used)
}

/// Stops one backing device. Its dirty data stays on the cache. With `lazy` it may be in use, and
/// then ends at the last close.
///
/// # Errors
/// When it is in use, unless `lazy`.
pub fn plan_stop(root: &Root, backing: &Backing, lazy: bool) -> Result<Plan, Refusal> {
    let device = backing.name.clone();
    let bcache: Vec<String> = backing.bcache.iter().cloned().collect();
    let mut notes = Vec::new();
    let used = not_in_use(root, &bcache, lazy, &mut notes)?;
    notes.extend(
        dirty_of(backing)
            .map(|dirty_bytes| Note::StaysDirty { device: device.clone(), dirty_bytes }),
    );
    if DeviceState::of(backing) == DeviceState::CacheLost {
        notes.push(Note::NamesLostCache { device: device.clone() });
    }
    let writes = vec![write(&backing.attributes, "stop", "1\n")];
    let proof = if used {
        Proof::Closing { dirs: vec![backing.attributes.dir().to_owned()] }
    } else {
        Proof::Free { set: None, devices: vec![device.clone()], bcache }
    };
    Ok(Plan { notes, ..plan("stop", &device, writes, proof) })
}

/// The bcache devices of a set: of its backing devices and volumes.
fn bcache_devices(view: &View, set: &Set) -> Vec<String> {
    let backing = view.backing_of(set.uuid).filter_map(|it| it.bcache.clone());
    backing.chain(set.volumes.iter().map(|it| it.bcache.clone())).collect()
}

/// Stops a set, with its backing devices and volumes. Dirty data stays on the cache.
///
/// # Errors
/// When one of its bcache devices is in use, unless `lazy`.
pub fn plan_stop_set(root: &Root, view: &View, set: &Set, lazy: bool) -> Result<Plan, Refusal> {
    let bcache = bcache_devices(view, set);
    let mut notes = Vec::new();
    let used = not_in_use(root, &bcache, lazy, &mut notes)?;
    for backing in view.backing_of(set.uuid) {
        notes.extend(
            dirty_of(backing)
                .map(|dirty_bytes| Note::StaysDirty { device: backing.name.clone(), dirty_bytes }),
        );
    }
    let writes = vec![write(&set.attributes, "stop", "1\n")];
    let proof = if used {
        let dirs = view.backing_of(set.uuid).map(|it| it.attributes.dir().to_owned()).collect();
        Proof::Closing { dirs }
    } else {
        let backing = view.backing_of(set.uuid).map(|it| it.name.clone());
        let devices = backing.chain(set.cache.iter().map(|it| it.name.clone())).collect();
        Proof::Free { set: Some(set.uuid), devices, bcache }
    };
    Ok(Plan { notes, ..plan("stop", &set.uuid.to_string(), writes, proof) })
}

/// Unregisters a set: writes all dirty data back, detaches its backing devices, which run on, and
/// stops its volumes. With `wipes` the cache is to be wiped afterwards.
///
/// # Errors
/// When a volume is in use; with `wipes` when there are volumes at all.
pub fn plan_unregister(root: &Root, view: &View, set: &Set, wipes: bool) -> Result<Plan, Refusal> {
    let volumes: Vec<String> = set.volumes.iter().map(|it| it.bcache.clone()).collect();
    if wipes && !volumes.is_empty() {
        return Err(Refusal::HasVolumes { set: set.uuid, volumes });
    }
    let mut notes = Vec::new();
    not_in_use(root, &volumes, false, &mut notes)?;
    for backing in view.backing_of(set.uuid) {
        notes.extend(
            dirty_of(backing)
                .map(|dirty_bytes| Note::WritesBack { device: backing.name.clone(), dirty_bytes }),
        );
    }
    if !volumes.is_empty() {
        notes.push(Note::VolumesStop { volumes });
    }
    let writes = vec![write(&set.attributes, "unregister", "1\n")];
    let proof = Proof::Unregistered {
        set: set.uuid,
        cache: set.cache.as_ref().map(|it| it.name.clone()),
        attached: view.backing_of(set.uuid).map(|it| it.name.clone()).collect(),
    };
    Ok(Plan { notes, ..plan("unregister", &set.uuid.to_string(), writes, proof) })
}

/// Labels a backing device, or a flash-only volume: the directory and whether it is a volume's.
///
/// # Errors
/// When the label is too long or has control characters.
pub fn plan_label(
    target: &str,
    at: &Attributes,
    is_volume: bool,
    label: &str,
) -> Result<Plan, Refusal> {
    // A volume's label has no room for less: the kernel keeps 32 bytes and whatever they are.
    if label.len() > LABEL_BYTES_MAX {
        return Err(Refusal::LabelTooLong { bytes: label.len(), most: LABEL_BYTES_MAX });
    }
    if label.chars().any(char::is_control) {
        return Err(Refusal::LabelCharacters);
    }
    if at.text("label").as_deref() == Some(label) {
        return Ok(already("label", target));
    }
    // The kernel keeps the newline in the label of a volume, and needs one in an empty write.
    let value =
        if is_volume && !label.is_empty() { label.to_owned() } else { format!("{label}\n") };
    let writes = vec![write(at, "label", value)];
    let proof = Proof::Reads { file: at.path("label"), text: label.to_owned() };
    Ok(plan("label", target, writes, proof))
}

/// Makes a flash-only volume of `bytes` on a set.
///
/// # Errors
/// When it is smaller than a bucket (the kernel would take a slot for ever for one of zero sectors),
/// or larger than what the cache has available.
pub fn plan_volume_create(set: &Set, bytes: u64, label: Option<&str>) -> Result<Plan, Refusal> {
    let cannot = |what| Refusal::CannotTell { what, device: set.uuid.to_string() };
    let bucket_bytes = set.bucket_size.ok_or(cannot("the bucket size"))?.at_least();
    if bytes < bucket_bytes {
        return Err(Refusal::VolumeTooSmall { bytes, bucket_bytes });
    }
    let all = set.cache_bytes().ok_or(cannot("the size of the cache"))?;
    let percent = set.available_percent.ok_or(cannot("the available buckets"))?;
    let available_bytes = (all / 100).saturating_mul(percent);
    if bytes > available_bytes {
        return Err(Refusal::VolumeTooLarge { bytes, available_bytes });
    }
    if let Some(label) = label {
        plan_label("", &Attributes::at(&Root::system(), ""), true, label)?;
    }
    // Whole sectors: the kernel drops the rest.
    let bytes = bytes / SECTOR_BYTES * SECTOR_BYTES;
    let writes = vec![write(&set.attributes, "flash_vol_create", format!("{bytes}\n"))];
    let mut before = set.attributes.names();
    before.retain(|name| name.starts_with("volume"));
    let proof = Proof::NewVolume {
        set: set.attributes.dir().to_owned(),
        before,
        label: label.filter(|it| !it.is_empty()).map(str::to_owned),
    };
    Ok(plan("volume-create", &set.uuid.to_string(), writes, proof))
}

/// Removes a flash-only volume and its data.
///
/// # Errors
/// When it is in use or not there.
pub fn plan_volume_remove(root: &Root, view: &View, bcache: &str) -> Result<Plan, Refusal> {
    let (_, volume) =
        view.volume(bcache).ok_or_else(|| Refusal::NotRegistered { device: bcache.to_owned() })?;
    let users = users_of(root, bcache);
    if !users.is_empty() {
        return Err(Refusal::InUse { device: bcache.to_owned(), users });
    }
    let bytes = volume.sectors.map_or(0, Sectors::bytes);
    let writes = vec![write(&volume.attributes, "unregister", "1\n")];
    let proof = Proof::Free { set: None, devices: Vec::new(), bcache: vec![bcache.to_owned()] };
    let notes = vec![Note::LosesVolume { bytes }];
    Ok(Plan { notes, ..plan("volume-remove", bcache, writes, proof) })
}
