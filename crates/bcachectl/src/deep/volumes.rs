//! The volumes of a set: who they are, where their backing devices are, and what is cached of each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use bcache_core::cache_set::CacheSet;
use bcache_core::device::file;
use bcache_core::device::sysfs::{Root, devices_of_the_machine};
use bcache_core::layout::superblock::{BackingState, Kind, Superblock};
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::ops::make::read_superblock;
use serde::Serialize;
use uuid::Uuid;

/// A backing device that was found.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Its path.
    pub path: PathBuf,
    /// Its superblock.
    pub superblock: Superblock,
}

/// Backing devices by their UUID: those named on the command line, and those of the machine.
#[derive(Debug, Default)]
pub struct BackingDevices {
    named: HashMap<Uuid, Backing>,
    machine: Option<HashMap<Uuid, Backing>>,
}

impl BackingDevices {
    /// Remembers a device that was named, if it is a backing device.
    pub fn add(&mut self, path: &Path, superblock: &Superblock) {
        insert(&mut self.named, path, superblock);
    }

    /// The device with `uuid`. The machine is searched only when it was not named.
    pub fn find(&mut self, uuid: Uuid) -> Option<&Backing> {
        if self.named.contains_key(&uuid) {
            return self.named.get(&uuid);
        }
        self.machine.get_or_insert_with(search_machine).get(&uuid)
    }
}

fn insert(devices: &mut HashMap<Uuid, Backing>, path: &Path, superblock: &Superblock) {
    if superblock.magic_ok() && superblock.kind() == Some(Kind::Backing) {
        devices
            .entry(superblock.uuid())
            .or_insert_with(|| Backing { path: path.to_owned(), superblock: superblock.clone() });
    }
}

/// What can be read of the machine's devices; what cannot is not present.
fn search_machine() -> HashMap<Uuid, Backing> {
    let mut found = HashMap::new();
    for device in devices_of_the_machine(&Root::system()).unwrap_or_default() {
        let superblock = file::open_read(&device.path).and_then(|open| read_superblock(&open));
        if let Ok(Some(superblock)) = superblock {
            insert(&mut found, &device.path, &superblock);
        }
    }
    found
}

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
            (None, _, _) if self.detached => {
                format!("{name} (its backing device was detached)")
            }
            (None, _, Some(uuid)) => {
                format!("{name} (backing device with UUID {uuid}, not present here)")
            }
            (None, _, None) => format!("{name} (of no entry in the uuid table)"),
        }
    }

    /// Whether the backing device's superblock says that it needs the cache.
    pub fn backing_says_dirty(&self) -> bool {
        self.backing_state == Some(BackingState::Dirty.name())
    }
}

/// The volumes of a set, by slot.
#[derive(Clone, Debug)]
pub struct Volumes(pub Vec<VolumeReport>);

impl Volumes {
    /// All volumes in the table, and slots that have keys without being there.
    pub fn new(set: &CacheSet<'_>, backing: &mut BackingDevices) -> Self {
        let mut slots: Vec<u32> = set.uuids.used().map(|(slot, _)| slot).collect();
        slots.extend(set.volumes.keys());
        slots.sort_unstable();
        slots.dedup();
        let report = |slot: u32| {
            let entry = set.uuids.get(slot).filter(|entry| !entry.is_empty());
            let usage = set.volumes.get(&slot).copied().unwrap_or_default();
            let attached = entry.filter(|entry| !entry.is_detached() && !entry.flash_only());
            let found = attached.and_then(|entry| backing.find(entry.uuid));
            VolumeReport {
                slot,
                uuid: entry.map(|entry| entry.uuid),
                label: entry.map(|entry| entry.label.to_string()).unwrap_or_default(),
                flash_only: entry.is_some_and(UuidEntry::flash_only),
                detached: entry.is_some_and(UuidEntry::is_detached),
                cached_sectors: usage.cached_sectors.0,
                dirty_sectors: usage.dirty_sectors.0,
                extents: usage.extents,
                backing: found.map(|found| found.path.clone()),
                backing_state: found.map(|found| found.superblock.state().name()),
                data_offset_sectors: found.map(|found| found.superblock.data_offset().0),
            }
        };
        Self(slots.into_iter().map(report).collect())
    }

    /// The volume that a person means: by slot, UUID or label.
    pub fn find(&self, name: &str) -> Result<&VolumeReport> {
        let by_slot =
            name.parse::<u32>().ok().and_then(|slot| self.0.iter().find(|it| it.slot == slot));
        if let Some(volume) = by_slot {
            return Ok(volume);
        }
        let uuid = Uuid::try_parse(name).ok();
        let mut matching = self.0.iter().filter(|it| {
            !it.label.is_empty() && it.label == name || uuid.is_some() && it.uuid == uuid
        });
        match (matching.next(), matching.next()) {
            (Some(volume), None) => Ok(volume),
            (Some(_), Some(_)) => {
                bail!("several volumes are called \"{name}\"; name the slot or the UUID")
            }
            (None, _) => {
                let known: Vec<String> = self.0.iter().map(VolumeReport::name).collect();
                bail!("no volume \"{name}\"; there are: {}", known.join(", "))
            }
        }
    }
}
