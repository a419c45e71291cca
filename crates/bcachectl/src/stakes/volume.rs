//! A volume, as output names it.

use std::path::PathBuf;

use anyhow::Result;
use bcache_core::cache_set::CacheSet;
use bcache_core::inspect::{FindVolumeError, Owner, Volume, find_slot};
use serde::Serialize;
use uuid::Uuid;

/// A volume in the output.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeReport {
    /// Slot in the uuid table: the inode of its keys.
    pub slot: u32,
    /// UUID of its backing device, or of itself; null for keys of a slot that is empty.
    pub uuid: Option<Uuid>,
    /// Label.
    pub label: String,
    /// Whether the cache holds the only copy of everything.
    pub flash_only: bool,
    /// Whether its backing device was detached.
    pub detached: bool,
    /// The slot before it that has its UUID, too, and which the kernel uses.
    #[serde(skip)]
    same_uuid_as: Option<u32>,
    /// Sectors that are cached, dirty ones included.
    pub cached_sectors: u64,
    /// Sectors that the backing device lacks.
    pub dirty_sectors: u64,
    /// Extents that are cached.
    pub extents: u64,
    /// The backing device, where it is present.
    pub backing: Option<PathBuf>,
    /// What its superblock says of its state.
    pub backing_state: Option<&'static str>,
    /// Sectors of the backing device before the data: what keys count and `/dev/bcacheN` does not.
    pub data_offset_sectors: Option<u64>,
}

impl From<&Volume> for VolumeReport {
    fn from(volume: &Volume) -> Self {
        let backing = volume.backing();
        Self {
            slot: volume.slot,
            uuid: volume.uuid,
            label: volume.label.clone(),
            flash_only: volume.is_flash_only(),
            detached: volume.owner == Owner::Detached,
            same_uuid_as: match volume.owner {
                Owner::Repeated { first } => Some(first),
                _ => None,
            },
            cached_sectors: volume.usage.cached_sectors.0,
            dirty_sectors: volume.usage.dirty_sectors.0,
            extents: volume.usage.extents,
            backing: backing.map(|device| device.path.clone()),
            backing_state: backing.map(|device| device.superblock.state().name()),
            data_offset_sectors: backing.map(|device| device.superblock.data_offset().0),
        }
    }
}

impl VolumeReport {
    /// How a person knows it.
    pub fn name(&self) -> String {
        let mut name = format!("volume {}", self.slot);
        if !self.label.is_empty() {
            name = format!("{name} \"{}\"", self.label);
        }
        match (&self.backing, self.flash_only, self.uuid) {
            (_, true, _) => format!("{name} (flash-only: it has no backing device)"),
            (Some(path), ..) => format!("{name} (backing device {})", path.display()),
            (None, _, _) if self.detached => format!("{name} (its backing device was detached)"),
            (None, _, Some(_)) if self.same_uuid_as.is_some() => {
                let first = self.same_uuid_as.unwrap_or_default();
                format!("{name} (its UUID is that of volume {first}, which the kernel uses)")
            }
            (None, _, Some(uuid)) => {
                format!("{name} (backing device with UUID {uuid}, not present here)")
            }
            (None, _, None) => format!("{name} (of no entry in the uuid table)"),
        }
    }
}

/// The slot that `name` stands for; an unknown name is told with those that there are.
pub fn find_volume(set: &CacheSet<'_>, name: &str) -> Result<u32> {
    find_slot(set, name).map_err(|error| match &error {
        FindVolumeError::None { known, .. } => {
            let known: Vec<String> = known
                .iter()
                .map(|(slot, label)| match label.as_str() {
                    "" => format!("volume {slot}"),
                    label => format!("volume {slot} \"{label}\""),
                })
                .collect();
            if known.is_empty() {
                anyhow::anyhow!("{error}: no volume can be found on this cache")
            } else {
                anyhow::anyhow!("{error}; there are: {}", known.join(", "))
            }
        }
        FindVolumeError::Ambiguous { .. } => {
            anyhow::anyhow!("{error}: name the UUID of one of them")
        }
    })
}
