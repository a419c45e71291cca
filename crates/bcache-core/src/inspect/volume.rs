//! The volumes of a set: who they are, whose they are, and what is cached of each.

use uuid::Uuid;

use crate::cache_set::{CacheSet, UuidTable, VolumeUsage};
use crate::inspect::backing::{BackingDevice, BackingDevices, Standing};
use crate::layout::superblock::{BackingState, Label};

/// Where the data of a volume belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nowhere else: a flash-only volume has no backing device.
    FlashOnly,
    /// To a backing device that was detached. In due form, nothing is dirty then; what is, the kernel gave up.
    Detached,
    /// To nobody whom the kernel would find: another slot before this one has the same UUID.
    Repeated {
        /// That slot.
        first: u32,
    },
    /// To a backing device that is not at hand.
    Missing,
    /// To a device of which nothing is known: the uuid table has no such slot.
    Unknown,
    /// To this device.
    Present {
        /// The device.
        device: BackingDevice,
        /// How it stands towards the set.
        standing: Standing,
    },
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Slot in the uuid table: the inode of its keys.
    pub slot: u32,
    /// UUID of its backing device, or of itself; `None` where the table has no such slot.
    pub uuid: Option<Uuid>,
    /// Label, as people know it.
    pub label: String,
    /// What is cached of it.
    pub usage: VolumeUsage,
    /// Where its data belongs.
    pub owner: Owner,
}

impl Volume {
    /// Whether the cache holds the only copy of everything.
    pub const fn is_flash_only(&self) -> bool {
        matches!(self.owner, Owner::FlashOnly)
    }

    /// Whether the cache holds dirty data of it that the kernel never writes back.
    pub(super) const fn is_ownerless(&self) -> bool {
        matches!(self.owner, Owner::Unknown | Owner::Detached | Owner::Repeated { .. })
            && self.usage.dirty_sectors.0 > 0
    }

    /// The backing device, where it is at hand.
    pub const fn backing(&self) -> Option<&BackingDevice> {
        match &self.owner {
            Owner::Present { device, .. } => Some(device),
            _ => None,
        }
    }

    /// The state in the superblock of its backing device.
    pub fn backing_state(&self) -> Option<BackingState> {
        self.backing().map(|device| device.superblock.state())
    }

    /// Whether its backing device is at hand and says that it lacks nothing.
    ///
    /// The kernel writes "dirty" to the backing device as it writes the first dirty data to the
    /// cache, and "clean" once the last is written back.
    pub(super) fn owner_is_complete(&self) -> bool {
        matches!(&self.owner, Owner::Present { standing: Standing::Attached, .. })
            && self.backing_state() == Some(BackingState::Clean)
    }
}

/// The volumes of a set, by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volumes(pub Vec<Volume>);

impl Volumes {
    /// All volumes of the table, and slots that have keys without being there.
    pub fn new(set: &CacheSet<'_>, backing: &mut BackingDevices) -> Self {
        let set_uuid = set.cache.superblock().set_uuid();
        let volume = |slot: u32| {
            let entry = set.uuids.get(slot).filter(|entry| !entry.is_empty());
            let owner = match entry {
                None => Owner::Unknown,
                Some(entry) if entry.is_detached() => Owner::Detached,
                Some(entry) if entry.flash_only() => Owner::FlashOnly,
                Some(entry) if !set.uuids.is_reached(slot) => {
                    let first = set.uuids.find(entry.uuid).map_or(slot, |(first, _)| first);
                    Owner::Repeated { first }
                }
                Some(entry) => {
                    backing.find(entry.uuid).map_or(Owner::Missing, |device| Owner::Present {
                        standing: Standing::of(&device.superblock, set_uuid, true),
                        device: device.clone(),
                    })
                }
            };
            Volume {
                slot,
                uuid: entry.map(|entry| entry.uuid),
                label: entry.map(|entry| label_text(&entry.label)).unwrap_or_default(),
                usage: set.volumes.get(&slot).copied().unwrap_or_default(),
                owner,
            }
        };
        Self(slots(set).into_iter().map(volume).collect())
    }

    /// The volume in `slot`.
    pub fn get(&self, slot: u32) -> Option<&Volume> {
        self.0.iter().find(|volume| volume.slot == slot)
    }
}

/// Slots in use and slots that have keys, ascending.
fn slots(set: &CacheSet<'_>) -> Vec<u32> {
    let mut slots: Vec<u32> = set.uuids.used().map(|(slot, _)| slot).collect();
    slots.extend(set.volumes.keys());
    slots.sort_unstable();
    slots.dedup();
    slots
}

/// Why a name stands for no volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindVolumeError {
    /// Nothing has that name.
    #[error("no volume {name:?}")]
    None {
        /// The name.
        name: String,
        /// The slots that there are, each with its label.
        known: Vec<(u32, String)>,
    },
    /// Several have it.
    #[error("{name:?} is the name of several volumes, {}", several(volumes))]
    Ambiguous {
        /// The name.
        name: String,
        /// Slot and UUID of each.
        volumes: Vec<(u32, Uuid)>,
    },
}

fn several(volumes: &[(u32, Uuid)]) -> String {
    let one = |(slot, uuid): &(u32, Uuid)| format!("slot {slot} (UUID {uuid})");
    volumes.iter().map(one).collect::<Vec<_>>().join(" and ")
}

/// The slot of the volume that `name` stands for: a UUID, a label or the number of a slot.
///
/// A number that is one volume's slot and another's label is ambiguous.
pub fn find_slot(set: &CacheSet<'_>, name: &str) -> Result<u32, FindVolumeError> {
    let known = slots(set);
    let uuids: &UuidTable = &set.uuids;
    // Sysfs shows the newline that `echo` put behind a label, and people copy it.
    let as_label = name.trim_end_matches("\\n");
    let attached = || uuids.used().filter(|(_, entry)| !entry.is_detached());
    let mut found: Vec<u32> = match Uuid::try_parse(name) {
        Ok(uuid) => attached().filter(|(_, it)| it.uuid == uuid).map(|(slot, _)| slot).collect(),
        Err(_) => attached()
            .filter(|(_, it)| !as_label.is_empty() && label_text(&it.label) == as_label)
            .map(|(slot, _)| slot)
            .collect(),
    };
    // A slot counts also where its device was detached: its data may still be there.
    let number = name.parse().ok();
    found.extend(number.filter(|slot| known.contains(slot) && !found.contains(slot)));
    found.sort_unstable();
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(FindVolumeError::None {
            name: name.to_owned(),
            known: known
                .into_iter()
                .map(|slot| {
                    (slot, uuids.get(slot).map(|it| label_text(&it.label)).unwrap_or_default())
                })
                .collect(),
        }),
        several => Err(FindVolumeError::Ambiguous {
            name: name.to_owned(),
            volumes: several
                .iter()
                .map(|&slot| (slot, uuids.get(slot).map(|it| it.uuid).unwrap_or_default()))
                .collect(),
        }),
    }
}

/// A label as people know it: sysfs keeps the newline that `echo` put behind it.
pub(crate) fn label_text(label: &Label) -> String {
    label.to_string().trim_end_matches("\\n").to_owned()
}
