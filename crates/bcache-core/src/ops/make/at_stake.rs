//! What exists nowhere else and would be lost when a bcache device is overwritten.

use std::fmt;

use uuid::Uuid;

use crate::cache_set::{NoVisitor, ReadOptions};
use crate::device::ReadDevice;
use crate::inspect::{
    Answer, BackingDevices, Device, Doubt, Group, InspectError, SearchMachine, Stakes, Volumes,
};
use crate::layout::superblock::{Kind, Superblock};
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
    pub label: String,
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
            Self::Unknown { set_uuid } if set_uuid.is_nil() => None,
            Self::Unknown { set_uuid }
            | Self::Volumes { set_uuid, .. }
            | Self::Owner { set_uuid } => Some(*set_uuid),
        }
    }

    /// What [`inspect`](crate::inspect) says of `device`. What cannot be read is unknown, never
    /// nothing. `search` finds backing devices that are complete.
    pub fn of_device(device: &dyn ReadDevice, search: Option<SearchMachine>) -> Self {
        let unknown = |set_uuid| Self::Unknown { set_uuid };
        let read = match Device::read(device, &ReadOptions::default(), &mut NoVisitor) {
            Ok(read) => read,
            // Whoever plans reads the superblock as well, and says why it cannot.
            Err(InspectError::Device(_)) => return Self::Nothing,
            Err(InspectError::OutOfMemory { .. }) => return unknown(Uuid::nil()),
        };
        let Some(set_uuid) = read.superblock.as_ref().map(Superblock::set_uuid) else {
            return if read.remains_at.is_some() { unknown(Uuid::nil()) } else { Self::Nothing };
        };
        let kind = read.kind();
        let mut backing = search.map_or_else(BackingDevices::default, BackingDevices::with_machine);
        let group = Group::new(vec![(read, false)], &mut backing);
        let Some(member) = group.members.first() else { return unknown(set_uuid) };
        let stakes = &member.stakes;
        match (kind, stakes.answer) {
            (Some(Kind::Backing), Answer::None) => Self::Nothing,
            (Some(Kind::Backing), _)
                if [Doubt::Superblock, Doubt::OlderSet]
                    .iter()
                    .any(|it| stakes.doubts.contains(it)) =>
            {
                unknown(set_uuid)
            }
            (Some(Kind::Backing), _) => Self::Owner { set_uuid },
            (Some(Kind::Cache), _) if stakes.nothing_to_lose() => Self::Nothing,
            (Some(Kind::Cache), Answer::None | Answer::Present) => Self::Volumes {
                set_uuid,
                at_least: stakes.at_most_sectors != Some(stakes.at_least_sectors),
                volumes: volumes(&member.stakes, &member.volumes),
            },
            (Some(Kind::Cache) | None, _) => unknown(set_uuid),
        }
    }
}

fn volumes(stakes: &Stakes, volumes: &Volumes) -> Vec<VolumeAtStake> {
    let listed = stakes.volumes.iter().filter(|it| it.flash_only || it.at_least_sectors > 0);
    listed
        .map(|stake| VolumeAtStake {
            slot: stake.slot,
            uuid: stake.uuid,
            label: volumes.get(stake.slot).map(|it| it.label.clone()).unwrap_or_default(),
            flash_only: stake.flash_only,
            dirty: Sectors(stake.at_least_sectors),
        })
        .collect()
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
