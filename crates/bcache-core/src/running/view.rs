//! The kernel's view of every set, cache, backing device and volume, at one moment.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::attributes::Attributes;
use super::rounded::Rounded;
use super::stats::{DiskStats, Stats};
use crate::device::sysfs::{BackingState, BlockDir, Role, Root, node_of};
use crate::units::Sectors;

/// The directory of statistics since registration.
pub(super) const STATS: &str = "stats_total";

/// All files of sets, caches, backing devices and volumes that [`View::read`] reads. The view is the
/// same where nothing but these was read.
pub(super) const OF_VIEW: &[&str] = &[
    // Of a set.
    "block_size",
    "bucket_size",
    "cache_available_percent",
    "tree_depth",
    "root_usage_percent",
    "btree_cache_size",
    "average_key_size",
    "congested",
    "synchronous",
    "errors",
    "cutoff_writeback",
    "cutoff_writeback_sync",
    "io_disable",
    "btree_nodes",
    "active_journal_entries",
    "cache_read_races",
    "btree_gc_last_sec",
    // Of a cache.
    "nbuckets",
    "cache_replacement_policy",
    "io_errors",
    "written",
    "metadata_written",
    // Of a volume.
    "label",
    "size",
    // Of a backing device.
    "running",
    "state",
    "cache_mode",
    "backing_dev_uuid",
    "dirty_data",
    "writeback_rate_debug",
    "writeback_rate",
    "writeback_running",
    "writeback_percent",
    "writeback_delay",
    "sequential_cutoff",
    "readahead_cache_policy",
    "stop_when_cache_set_failed",
    "io_error_limit",
    // Statistics.
    "cache_hits",
    "cache_misses",
    "cache_bypass_hits",
    "cache_bypass_misses",
    "cache_miss_collisions",
    "bypassed",
];

/// What the kernel's bcache runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether the module is there: `/sys/fs/bcache/register` exists.
    pub available: bool,
    /// Registered sets, by UUID.
    pub sets: Vec<Set>,
    /// Registered backing devices, by name.
    pub backing: Vec<Backing>,
    /// bcache devices that were stopped while something has them open: they end at the last close.
    pub closing: Vec<Closing>,
}

/// A registered cache set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its directory.
    pub attributes: Attributes,
    /// Its cache device; none only while it comes or goes.
    pub cache: Option<Cache>,
    /// Its attached backing devices, by slot of the uuid table.
    pub attached: Vec<Attached>,
    /// Its flash-only volumes.
    pub volumes: Vec<Volume>,
    /// Bytes of a block.
    pub block_size: Option<Rounded>,
    /// Bytes of a bucket.
    pub bucket_size: Option<Rounded>,
    /// Share of the buckets that are free or hold clean data, in per cent.
    pub available_percent: Option<u64>,
    /// Levels of the btree above its leaves.
    pub tree_depth: Option<u64>,
    /// How full the root of the btree is, in per cent.
    pub root_usage_percent: Option<u64>,
    /// Bytes of memory that the btree cache takes.
    pub btree_cache_size: Option<Rounded>,
    /// Mean bytes of an extent, from the last garbage collection.
    pub average_key_size: Option<Rounded>,
    /// I/Os longer than this many bytes go past the congested cache; zero while it is not congested.
    pub congested: Option<Rounded>,
    /// Whether what is on the cache survives a registration; never false on purpose.
    pub synchronous: Option<bool>,
    /// Whether the kernel panics at a fatal error of the set.
    pub panics: Option<bool>,
    /// Share of the cache that writeback may leave dirty before writes go past it, in per cent.
    pub cutoff_writeback: Option<u64>,
    /// The same for synchronous writes.
    pub cutoff_writeback_sync: Option<u64>,
    /// Whether all I/O to the set fails.
    pub io_disabled: Option<bool>,
    /// Btree nodes, from the last garbage collection.
    pub btree_nodes: Option<u64>,
    /// Journal entries whose keys are not yet all in the btree.
    pub active_journal_entries: Option<u64>,
    /// Reads that raced with the reuse of their bucket.
    pub cache_read_races: Option<u64>,
    /// Seconds since the last garbage collection; `None` before the first.
    pub gc_age_seconds: Option<u64>,
    /// Statistics since registration, of all backing devices.
    pub stats: Option<Stats>,
}

/// A registered cache device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The kernel's name, such as `nvme0n1`.
    pub name: String,
    /// Its directory.
    pub attributes: Attributes,
    /// Buckets on it.
    pub nbuckets: Option<u64>,
    /// Replacement policy in force.
    pub replacement: Option<String>,
    /// Errors of the device, decaying.
    pub io_errors: Option<u64>,
    /// Bytes written to it: data, btree and all metadata.
    pub written: Option<Rounded>,
    /// Bytes of btree and metadata written to it.
    pub metadata_written: Option<Rounded>,
    /// The block layer's counts.
    pub disk: Option<DiskStats>,
}

/// A backing device in its slot of the set's uuid table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// The slot: `N` of `bdevN`, which is not the number of `bcacheN`.
    pub slot: u32,
    /// The backing device's name.
    pub device: String,
}

/// A flash-only volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The slot: `N` of `volumeN`.
    pub slot: u32,
    /// The device it runs as, such as `bcache1`.
    pub bcache: String,
    /// Its directory.
    pub attributes: Attributes,
    /// Its label.
    pub label: Option<String>,
    /// Its size in bytes.
    pub size: Option<Rounded>,
    /// Its size as a block device.
    pub sectors: Option<Sectors>,
    /// The block layer's counts.
    pub disk: Option<DiskStats>,
}

/// A registered backing device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The kernel's name, such as `sdb1`.
    pub name: String,
    /// Its directory.
    pub attributes: Attributes,
    /// The device it runs as, such as `bcache0`; none while it waits.
    pub bcache: Option<String>,
    /// The set it is attached to.
    pub set: Option<Uuid>,
    /// Whether it takes I/O.
    pub running: Option<bool>,
    /// The state of its superblock.
    pub superblock_state: Option<BackingState>,
    /// The cache mode.
    pub cache_mode: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// Its UUID.
    pub uuid: Option<Uuid>,
    /// Bytes of dirty data; zero without a cache, whatever is on that.
    pub dirty: Option<Rounded>,
    /// Bytes of dirty data that writeback steers for.
    pub dirty_target: Option<Rounded>,
    /// Writeback's rate in bytes a second; about a tebibyte when idle, which is no limit.
    pub writeback_rate: Option<Rounded>,
    /// Whether writeback runs.
    pub writeback_running: Option<bool>,
    /// Share of the cache that may stay dirty, in per cent; 0 lets writeback run at full speed.
    pub writeback_percent: Option<u64>,
    /// Seconds between passes of writeback.
    pub writeback_delay_seconds: Option<u64>,
    /// Streams longer than this many bytes go past the cache; zero for none.
    pub sequential_cutoff: Option<Rounded>,
    /// Whether reads ahead are cached (`all`) or only metadata (`meta-only`).
    pub readahead_policy: Option<String>,
    /// What becomes of it when the set fails: `auto` or `always`.
    pub stop_when_set_fails: Option<String>,
    /// Errors of the device.
    pub io_errors: Option<u64>,
    /// Errors after which it is stopped.
    pub io_error_limit: Option<u64>,
    /// Whether all I/O fails.
    pub io_disabled: Option<bool>,
    /// Statistics since it was registered.
    pub stats: Option<Stats>,
    /// The block layer's counts of the backing device.
    pub disk: Option<DiskStats>,
    /// Those of the device it runs as.
    pub bcache_disk: Option<DiskStats>,
    /// Size of the device it runs as.
    pub bcache_sectors: Option<Sectors>,
}

/// A bcache device that was stopped and is still open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Closing {
    /// The device, such as `bcache0`.
    pub bcache: String,
    /// The devices that it holds until then.
    pub holds: Vec<String>,
}

/// The kernel's name of the device whose `bcache` directory is at `dir`.
fn owner(dir: &Path) -> Option<String> {
    Some(dir.parent()?.file_name()?.to_str()?.to_owned())
}

/// The number behind `prefix` in a name such as `bdev3`.
fn slot(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.parse().ok()
}

fn disk_stats(root: &Root, name: &str) -> Option<DiskStats> {
    DiskStats::parse(&BlockDir::by_name(root, name)?.attribute("stat")?)
}

impl View {
    /// Reads everything below `root`. Blocks while the kernel registers a cache: see
    /// [`Asker`](super::Asker).
    ///
    /// # Errors
    /// When sysfs cannot be read at all.
    pub fn read(root: &Root) -> io::Result<Self> {
        let top = Attributes::at(root, root.sys("fs/bcache"));
        let sets = top
            .names()
            .iter()
            .filter_map(|name| Some(Set::read(root, Uuid::try_parse(name).ok()?, &top.path(name))))
            .collect();
        let mut backing = Vec::new();
        let mut stopped = BTreeMap::new();
        for device in BlockDir::all(root)? {
            let at = Attributes::at(root, root.sys("class/block").join(device.name()));
            match device.role() {
                // While a device comes or goes, some of its files are not there.
                Some(Role::Backing { .. }) if at.below("bcache").has("state") => {
                    backing.push(Backing::read(root, &device, &at));
                }
                // The link may be there still, and lead nowhere.
                None if is_bcache(device.name())
                    && device.attribute("dev").is_some()
                    && at.target("bcache").is_none() =>
                {
                    stopped.insert(device.name().to_owned(), at.below("slaves").names());
                }
                _ => {}
            }
        }
        let closing =
            stopped.into_iter().map(|(bcache, holds)| Closing { bcache, holds }).collect();
        Ok(Self { available: top.has("register"), sets, backing, closing })
    }

    /// The set with this UUID.
    pub fn set(&self, uuid: Uuid) -> Option<&Set> {
        self.sets.iter().find(|set| set.uuid == uuid)
    }

    /// The set of which `device` is the cache.
    pub fn set_of_cache(&self, device: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.cache.as_ref().is_some_and(|cache| cache.name == device))
    }

    /// The backing device with this kernel name, or that runs as it.
    pub fn backing_device(&self, name: &str) -> Option<&Backing> {
        self.backing.iter().find(|it| it.name == name || it.bcache.as_deref() == Some(name))
    }

    /// The flash-only volume that runs as `bcache`, and its set.
    pub fn volume(&self, bcache: &str) -> Option<(&Set, &Volume)> {
        self.sets
            .iter()
            .find_map(|set| Some((set, set.volumes.iter().find(|volume| volume.bcache == bcache)?)))
    }

    /// The backing devices of a set.
    pub fn backing_of(&self, set: Uuid) -> impl Iterator<Item = &Backing> {
        self.backing.iter().filter(move |backing| backing.set == Some(set))
    }
}

/// Whether `name` is that of a bcache device, `bcacheN`; not of a partition of one.
fn is_bcache(name: &str) -> bool {
    slot(name, "bcache").is_some()
}

impl Set {
    /// Reads the set at `dir`.
    fn read(root: &Root, uuid: Uuid, dir: &Path) -> Self {
        let at = Attributes::at(root, dir);
        let (mut cache, mut attached, mut volumes) = (None, Vec::new(), Vec::new());
        for name in at.names() {
            let target = || {
                let target = at.target(&name)?;
                Some((owner(&target)?, target))
            };
            if slot(&name, "cache").is_some() {
                cache = target().map(|(owner, dir)| Cache::read(root, owner, dir));
            } else if let Some(slot) = slot(&name, "bdev") {
                attached.extend(target().map(|(device, _)| Attached { slot, device }));
            } else if let Some(slot) = slot(&name, "volume") {
                volumes.extend(target().map(|(owner, dir)| Volume::read(root, slot, owner, dir)));
            }
        }
        attached.sort_by_key(|it| it.slot);
        volumes.sort_by_key(|it| it.slot);
        let internal = at.below("internal");
        Self {
            uuid,
            cache,
            attached,
            volumes,
            block_size: at.rounded("block_size"),
            bucket_size: at.rounded("bucket_size"),
            available_percent: at.number("cache_available_percent"),
            tree_depth: at.number("tree_depth"),
            root_usage_percent: at.number("root_usage_percent"),
            btree_cache_size: at.rounded("btree_cache_size"),
            average_key_size: at.rounded("average_key_size"),
            congested: at.rounded("congested"),
            synchronous: at.flag("synchronous"),
            panics: at.choice("errors").map(|word| word == "panic"),
            cutoff_writeback: internal.number("cutoff_writeback"),
            cutoff_writeback_sync: internal.number("cutoff_writeback_sync"),
            io_disabled: internal.flag("io_disable"),
            btree_nodes: internal.number("btree_nodes"),
            active_journal_entries: internal.number("active_journal_entries"),
            cache_read_races: internal.number("cache_read_races"),
            gc_age_seconds: internal.number("btree_gc_last_sec"),
            stats: Stats::read(&at, STATS),
            attributes: at,
        }
    }

    /// Bytes of the cache's buckets.
    pub fn cache_bytes(&self) -> Option<u64> {
        let buckets = self.cache.as_ref()?.nbuckets?;
        buckets.checked_mul(self.bucket_size?.at_least())
    }
}

impl Cache {
    fn read(root: &Root, name: String, dir: PathBuf) -> Self {
        let at = Attributes::at(root, dir);
        Self {
            nbuckets: at.number("nbuckets"),
            replacement: at.choice("cache_replacement_policy"),
            io_errors: at.number("io_errors"),
            written: at.rounded("written"),
            metadata_written: at.rounded("metadata_written"),
            disk: disk_stats(root, &name),
            attributes: at,
            name,
        }
    }
}

impl Volume {
    fn read(root: &Root, slot: u32, bcache: String, dir: PathBuf) -> Self {
        let at = Attributes::at(root, dir);
        Self {
            slot,
            label: at.text("label").map(|it| it.trim_end().to_owned()).filter(|it| !it.is_empty()),
            size: at.rounded("size"),
            sectors: BlockDir::by_name(root, &bcache).and_then(|device| device.size()),
            disk: disk_stats(root, &bcache),
            attributes: at,
            bcache,
        }
    }
}

impl Backing {
    /// Whether the cache holds dirty data of it although its state is clean. The kernel writes that back
    /// only once something more is written to the device, or as it is detached (docs/running.md §7).
    pub fn taken_for_clean(&self) -> bool {
        self.set.is_some()
            && self.superblock_state == Some(BackingState::Clean)
            && self.dirty.is_some_and(|dirty| !dirty.is_zero())
    }

    fn read(root: &Root, device: &BlockDir, at: &Attributes) -> Self {
        let name = device.name().to_owned();
        let at = Attributes::at(root, at.target("bcache").unwrap_or_else(|| at.path("bcache")));
        let bcache = at.link_name("dev");
        let bcache_disk = bcache.as_deref().and_then(|bcache| disk_stats(root, bcache));
        let bcache_sectors =
            bcache.as_deref().and_then(|it| BlockDir::by_name(root, it)).and_then(|it| it.size());
        Self {
            set: at.link_name("cache").and_then(|name| Uuid::try_parse(&name).ok()),
            running: at.flag("running"),
            superblock_state: at.text("state").map(|text| BackingState::from_sysfs(&text)),
            cache_mode: at.choice("cache_mode"),
            label: at.text("label").filter(|label| !label.is_empty()),
            uuid: at.text("backing_dev_uuid").and_then(|text| Uuid::try_parse(text.trim()).ok()),
            dirty: at.rounded("dirty_data"),
            dirty_target: at.line("writeback_rate_debug", "target").and_then(|it| it.parse().ok()),
            writeback_rate: at.rounded("writeback_rate"),
            writeback_running: at.flag("writeback_running"),
            writeback_percent: at.number("writeback_percent"),
            writeback_delay_seconds: at.number("writeback_delay"),
            sequential_cutoff: at.rounded("sequential_cutoff"),
            readahead_policy: at.choice("readahead_cache_policy"),
            stop_when_set_fails: at.choice("stop_when_cache_set_failed"),
            io_errors: at.number("io_errors"),
            io_error_limit: at.number("io_error_limit"),
            io_disabled: at.flag("io_disable"),
            stats: Stats::read(&at, STATS),
            disk: disk_stats(root, &name),
            bcache,
            bcache_disk,
            bcache_sectors,
            attributes: at,
            name,
        }
    }

    /// The node of the device it runs as, or its own while it waits.
    pub fn node(&self) -> PathBuf {
        node_of(self.bcache.as_deref().unwrap_or(&self.name))
    }
}
