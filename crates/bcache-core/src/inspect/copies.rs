//! Copies of the devices that are looked at: among these, and in the rest of the machine.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::device::DeviceKind;
use crate::device::same_uuid::{copies_of, is_same_path};
use crate::device::sysfs::Root;
use crate::inspect::backing::{SearchSeen, Seen};
use crate::inspect::device::Device;
use crate::inspect::volume::Volumes;
use crate::layout::superblock::{BackingState, Kind, Superblock};

/// A device of which another one is a copy: which of them is the copy cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What they carry.
    pub uuid: Uuid,
    /// What they are.
    pub kind: Kind,
    /// The set that they name.
    pub set_uuid: Uuid,
    /// The device.
    pub path: PathBuf,
    /// The other one.
    pub other: PathBuf,
}

impl Copied {
    /// Whether both tell of the same two devices, by whatever names and in whatever order.
    fn is_same_pair(&self, it: &Self) -> bool {
        let is = |first: &Path, second: &Path| {
            is_same_path(&self.path, first) && is_same_path(&self.other, second)
        };
        is(&it.path, &it.other) || is(&it.other, &it.path)
    }
}

/// A device that is looked at.
struct Used<'d> {
    path: &'d Path,
    superblock: &'d Superblock,
    /// Whether there may be copies of it among the machine's devices: an image file is not registered.
    is_block: bool,
}

/// The copies among `devices` and the owners of their `volumes`, and those of them that `search` finds in the
/// rest of the machine. Of a backing device whose cache is not among them, the caches are looked at too.
pub(super) fn of_group(
    devices: &[(&Device<'_>, &Volumes)],
    search: Option<SearchSeen>,
) -> Vec<Copied> {
    let mut used: Vec<Used<'_>> = Vec::new();
    for (device, _) in devices {
        // A superblock that is not its own says nothing of a device.
        let superblock = device.superblock.as_ref().filter(|_| device.older_set.is_none());
        let info = device.handle.info();
        let is_block = info.kind == DeviceKind::Block;
        used.extend(superblock.map(|superblock| Used { path: &info.path, superblock, is_block }));
    }
    let volumes = devices.iter().flat_map(|(_, volumes)| &volumes.0);
    for owner in volumes.filter_map(|volume| volume.backing()) {
        if used.iter().all(|it| it.path != owner.path) {
            let (path, superblock) = (owner.path.as_path(), &owner.superblock);
            used.push(Used { path, superblock, is_block: true });
        }
    }
    let wants_machine = used.iter().any(|it| it.is_block);
    let machine = search.filter(|_| wants_machine).map(|search| search()).unwrap_or_default();
    add_caches(&mut used, &machine);
    let mut copies: Vec<Copied> = Vec::new();
    for (index, device) in used.iter().enumerate() {
        let among = used.iter().skip(index + 1).map(|it| (it.path, it.superblock));
        let in_machine = machine.iter().map(|it| (it.path.as_path(), &it.superblock));
        let others = among.chain(in_machine.filter(|_| device.is_block));
        for found in of_device(device.path, device.superblock, others) {
            if !copies.iter().any(|told| told.is_same_pair(&found)) {
                copies.push(found);
            }
        }
    }
    copies
}

/// Adds the caches of `machine` that backing devices among `used` are attached to, where none of their set is.
fn add_caches<'d>(used: &mut Vec<Used<'d>>, machine: &'d [Seen]) {
    let is_cache =
        |sb: &Superblock, set: Uuid| sb.kind() == Some(Kind::Cache) && sb.set_uuid() == set;
    let sets: Vec<Uuid> = used
        .iter()
        .filter(|it| it.is_block && it.superblock.kind() == Some(Kind::Backing))
        .filter(|it| it.superblock.csum_ok() && it.superblock.state() != BackingState::None)
        .map(|it| it.superblock.set_uuid())
        .filter(|set| !used.iter().any(|it| is_cache(it.superblock, *set)))
        .collect();
    for seen in machine {
        if sets.iter().any(|set| is_cache(&seen.superblock, *set)) {
            let (path, superblock) = (seen.path.as_path(), &seen.superblock);
            used.push(Used { path, superblock, is_block: true });
        }
    }
}

/// Those of `others` (path and superblock) that are copies of the device at `path`.
pub fn of_device<'o>(
    path: &Path,
    superblock: &Superblock,
    others: impl IntoIterator<Item = (&'o Path, &'o Superblock)>,
) -> Vec<Copied> {
    let (uuid, kind) = (superblock.uuid(), superblock.kind());
    let Some(kind) = kind.filter(|_| superblock.csum_ok() && !uuid.is_nil()) else {
        return Vec::new();
    };
    // Without its magic, neither udev nor the kernel takes it.
    let has_it = |sb: &Superblock| {
        sb.magic_ok() && sb.csum_ok() && sb.uuid() == uuid && sb.kind() == Some(kind)
    };
    let others = others.into_iter().filter(|(_, sb)| has_it(sb)).map(|(path, _)| path);
    let copied = |other| {
        let set_uuid = superblock.set_uuid();
        Copied { uuid, kind, set_uuid, path: path.to_owned(), other }
    };
    copies_of(&Root::system(), path, others).into_iter().map(copied).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::superblock::{BackingParams, CacheMode, Label};
    use crate::units::Sectors;

    fn backing(uuid: u128) -> Superblock {
        Superblock::new_backing(&BackingParams {
            uuid: Uuid::from_u128(uuid),
            set_uuid: Uuid::from_u128(5),
            label: Label::default(),
            data_offset: Sectors(16),
            block_size: 8,
            cache_mode: CacheMode::Writeback,
        })
    }

    #[test]
    fn a_copy_has_the_uuid_and_is_another_device() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let (own, copy, other) = (path("own"), path("copy"), path("other"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        let (sb, of_other) = (backing(1), backing(2));
        let others = [(&own, &sb), (&link, &sb), (&other, &of_other), (&copy, &sb)];
        let others = others.map(|(path, sb)| (path.as_path(), sb));
        let found = of_device(&own, &sb, others);
        let expected = Copied {
            uuid: sb.uuid(),
            kind: Kind::Backing,
            set_uuid: sb.set_uuid(),
            path: own.clone(),
            other: copy.clone(),
        };
        assert_eq!(found, [expected]);
    }
}
