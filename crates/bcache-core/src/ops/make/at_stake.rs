//! What exists nowhere else and would be lost when a bcache device is overwritten.

use std::fmt;

use uuid::Uuid;

use crate::cache_set::{CacheDevice, CacheSet, Problem, ReadError, ReadOptions, Visitor};
use crate::device::{ReadDevice, SuperblockArea};
use crate::layout::superblock::{BackingState, Kind, Label, Superblock};
use crate::layout::uuid_entry::UuidEntry;
use crate::units::Sectors;

/// What would be lost with a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AtStake {
    /// Nothing that is not elsewhere, too.
    #[default]
    Nothing,
    /// It cannot be told: the device, or a part of it, is damaged or cannot be read.
    Unknown {
        /// The set that it belongs to.
        set_uuid: Uuid,
    },
    /// Dirty data of volumes, and flash-only volumes.
    Volumes {
        /// The set.
        set_uuid: Uuid,
        /// Whether there may be more, because a part of the set cannot be read.
        at_least: bool,
        /// Of which volumes, by slot.
        volumes: Vec<VolumeAtStake>,
    },
    /// What the device's cache holds of it and it lacks itself: overwriting its superblock leaves
    /// that data without an owner.
    Owner {
        /// The set that it belongs to.
        set_uuid: Uuid,
    },
}

/// What would be lost of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeAtStake {
    /// Its slot in the uuid table.
    pub slot: u32,
    /// Its UUID; none for keys of a slot that is empty.
    pub uuid: Option<Uuid>,
    /// Its label.
    pub label: Label,
    /// Whether all of it is on the cache alone.
    pub flash_only: bool,
    /// Its dirty data.
    pub dirty: Sectors,
}

impl AtStake {
    /// Whether overwriting the device loses nothing.
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }

    /// The set that a person names to show that its data may be lost.
    pub fn set_uuid(&self) -> Option<Uuid> {
        match self {
            Self::Nothing => None,
            Self::Unknown { set_uuid }
            | Self::Volumes { set_uuid, .. }
            | Self::Owner { set_uuid } => Some(*set_uuid),
        }
    }

    /// Of a device with this superblock. What cannot be read is unknown, never nothing.
    pub fn of_device(device: &dyn ReadDevice, area: &SuperblockArea) -> Self {
        let Some(superblock) = area.superblock() else { return Self::Nothing };
        let unknown = Self::Unknown { set_uuid: superblock.set_uuid() };
        if !superblock.csum_ok() {
            return unknown;
        }
        match superblock.kind() {
            Some(Kind::Backing) => of_backing(superblock),
            Some(Kind::Cache) if !superblock.sync() => Self::Nothing,
            // Without its magic the set cannot be opened.
            Some(Kind::Cache) if !area.is_magic_wiped() => of_cache(device).unwrap_or(unknown),
            Some(Kind::Cache) | None => unknown,
        }
    }
}

fn of_backing(superblock: &Superblock) -> AtStake {
    match superblock.state() {
        BackingState::None | BackingState::Clean => AtStake::Nothing,
        BackingState::Dirty | BackingState::Stale => {
            AtStake::Owner { set_uuid: superblock.set_uuid() }
        }
    }
}

/// Remembers whether keys may be missing.
#[derive(Default)]
struct Doubts {
    hides_keys: bool,
}

impl Visitor for Doubts {
    fn wants_keys(&self) -> bool {
        false
    }

    fn problem(&mut self, problem: Problem) {
        self.hides_keys |= problem.hides_keys();
    }
}

/// `None` where the set cannot be read.
fn of_cache(device: &dyn ReadDevice) -> Option<AtStake> {
    let cache = CacheDevice::open(device).ok()?;
    let set_uuid = cache.superblock().set_uuid();
    let mut doubts = Doubts::default();
    let set = match CacheSet::read(cache, &ReadOptions::default(), &mut doubts) {
        Ok(set) => set,
        Err(ReadError::Unsynced) => return Some(AtStake::Nothing),
        Err(_) => return None,
    };
    let mut slots: Vec<u32> = set.uuids.used().map(|(slot, _)| slot).collect();
    slots.extend(set.volumes.keys());
    slots.sort_unstable();
    slots.dedup();
    let volumes: Vec<VolumeAtStake> = slots
        .into_iter()
        .map(|slot| {
            let entry = set.uuids.get(slot).filter(|entry| !entry.is_empty());
            VolumeAtStake {
                slot,
                uuid: entry.map(|entry| entry.uuid),
                label: entry.map(|entry| entry.label).unwrap_or_default(),
                flash_only: entry.is_some_and(UuidEntry::flash_only),
                dirty: set.volumes.get(&slot).map_or(Sectors(0), |usage| usage.dirty_sectors),
            }
        })
        .filter(|volume| volume.flash_only || volume.dirty > Sectors(0))
        .collect();
    Some(match (volumes.is_empty(), doubts.hides_keys) {
        (true, false) => AtStake::Nothing,
        (true, true) => AtStake::Unknown { set_uuid },
        (false, at_least) => AtStake::Volumes { set_uuid, at_least, volumes },
    })
}

impl fmt::Display for AtStake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no data that exists nowhere else"),
            Self::Unknown { .. } => {
                f.write_str("it cannot be told whether it has data that exists nowhere else")
            }
            Self::Owner { .. } => {
                f.write_str("its cache may have dirty data of it, which could not be written back")
            }
            Self::Volumes { at_least, volumes, .. } => {
                for (index, volume) in volumes.iter().enumerate() {
                    if index > 0 {
                        f.write_str("; ")?;
                    }
                    if *at_least {
                        f.write_str("at least ")?;
                    }
                    write!(f, "{volume}")?;
                }
                f.write_str(": this data exists nowhere else")
            }
        }
    }
}

impl fmt::Display for VolumeAtStake {
    /// `10.9 MiB of dirty data of volume 0 ("home", UUID ...)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.flash_only {
            write!(f, "{} of the flash-only volume {}", self.dirty, self.slot)?;
        } else {
            write!(f, "{} of dirty data of volume {}", self.dirty, self.slot)?;
        }
        match (self.label.is_empty(), self.uuid) {
            (true, None) => f.write_str(" (not in the uuid table)"),
            (true, Some(uuid)) => write!(f, " (UUID {uuid})"),
            (false, None) => write!(f, " (\"{}\")", self.label),
            (false, Some(uuid)) => write!(f, " (\"{}\", UUID {uuid})", self.label),
        }
    }
}
