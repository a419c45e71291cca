//! What a cache device holds, read-only: the kernel's own view at registration.
//!
//! [`CacheSet::read`] follows the kernel's registration (docs/on-disk-format.md §7). The journal is
//! found and ordered, and the prio chain gives prios and gens. The btree is walked from the root, newer
//! sets hiding older ones, and the journal's keys are marked like its own. Out of that come effective
//! gens, GC marks and usage. Nothing is kept of the keys themselves: a [`Visitor`] sees them once, in
//! order.
//!
//! Damage does not end the reading where something sound is left: it is told as a [`Problem`].
//!
//! Memory: 8 bytes a bucket (268 MB for 33.5 million), the journal's replay range (at most the size
//! of the journal, and about 100 bytes for each of its keys), the interior nodes on the path of the
//! walk and [`WalkOptions::read_ahead_bytes`] of nodes at each level, which take about three times
//! their size on the device.

pub mod btree;
pub(crate) mod clean;
mod device;
mod extents;
pub mod gone;
pub mod journal;
mod journal_bucket;
mod journal_search;
mod lost_keys;
pub mod overlay;
pub(crate) mod past;
pub(crate) mod pointers;
pub mod prios;
pub mod problem;
mod reader;
pub mod refusal;
pub mod reused;
mod suspect;
pub mod table;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod usage;
pub mod uuids;
pub mod view;
pub mod volume;

pub use btree::{LoadedNode, WalkOptions};
pub(crate) use device::expect_superblock;
pub use device::{CacheDevice, OpenError, TRUNCATED_NBUCKETS_MAX, read_superblock};
pub use extents::{Found, Missing, MissingError};
pub use journal::Journal;
pub use overlay::Overlay;
pub use prios::PrioChain;
pub use problem::{BtreeProblem, BucketProblem, KeySource, MetadataRole, NodePlace, Problem};
pub use refusal::SetRefusal;
pub use suspect::Suspect;
pub use table::{Bucket, BucketTable, GcMark};
pub(crate) use table::{Marked, WARM_KEYS};
pub use uuids::UuidTable;
pub use view::{Doubt, View};
pub use volume::{Below, VolumeReader};

use std::collections::{BTreeMap, TryReserveError};
use std::ops::ControlFlow;

use serde::Serialize;

use crate::layout::bkey::{Bkey, Pos};
use crate::layout::uuid_entry::UuidEntry;
use crate::units::{BucketIndex, Geometry, Sectors};

/// Why nothing can be read of a cache set.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The device is none of a cache set.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// `CACHE_SYNC` is not set: the kernel would start afresh, and what the device holds is void.
    #[error("not synced: the kernel would initialise the cache set at registration")]
    Unsynced,
    /// The journal has no entries: the kernel says "no journal entries found".
    #[error("no journal entries found")]
    NoJournal,
    /// There is not enough memory for the table of buckets.
    #[error("no memory for a table of {nbuckets} buckets")]
    OutOfMemory {
        /// The number of buckets.
        nbuckets: u64,
        /// The allocator's answer.
        source: TryReserveError,
    },
}

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// How to walk the btree.
    pub walk: WalkOptions,
    /// Read what is there even where `CACHE_SYNC` is not set. The kernel would not: it initialises
    /// such a set. For inspection of a superblock that cannot be trusted.
    pub ignore_sync: bool,
    /// Which journal entry is the newest.
    pub newest: NewestEntry,
    /// Take gens from the pointers where the prio set that has them is damaged, not from what is left
    /// of it.
    pub distrust_prios: bool,
}

/// Which journal entry to take for the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewestEntry {
    /// The one that the kernel's search ends at.
    #[default]
    AsKernel,
    /// The newest sound one, also where a damaged entry hides it from the kernel.
    Greatest,
}

/// Where a reading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the journal, of so many.
    Journal {
        /// Read so far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Bytes of the prio chain, of so many.
    Prios {
        /// Read so far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Btree nodes, and how many are known to be there.
    Btree {
        /// Nodes read.
        done: u64,
        /// Nodes that were pointed to so far.
        known: u64,
    },
    /// Buckets that are searched for what no pointer leads to any more, of so many.
    Search {
        /// Looked at so far.
        done: u64,
        /// In all.
        total: u64,
    },
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It is what the kernel uses.
    Valid,
    /// It says that nothing is cached here.
    Hole,
    /// It points to a device that no set has: the placeholder of a cache miss.
    Unavailable,
    /// Its bucket was reused since.
    Stale {
        /// How far the bucket's gen is ahead.
        by: u8,
    },
    /// It only carries the gen of a freed node.
    FreedNode,
}

impl KeyState {
    /// The word for it in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Hole => "hole",
            Self::Unavailable => "unavailable",
            Self::Stale { .. } => "stale",
            Self::FreedNode => "freed",
        }
    }
}

/// Sees what a reading comes across; every method does nothing unless it is overridden.
///
/// The btree's nodes come in the order of their keys, each before its children; the journal's keys
/// come after the whole btree, newest entry first, as the kernel marks them.
pub trait Visitor {
    /// The reading goes on.
    fn progress(&mut self, _progress: Progress) {}

    /// Something is wrong.
    fn problem(&mut self, _problem: Problem) {}

    /// Whether [`Visitor::key`] is of use: one that says no spares the reading whole keys.
    fn wants_keys(&self) -> bool {
        true
    }

    /// A btree node, before its keys.
    fn node(&mut self, _place: NodePlace, _node: &LoadedNode) {}

    /// A structurally valid key. Staleness is judged by the gens known up to here, as the kernel's
    /// marking does.
    fn key(&mut self, _origin: KeySource, _key: &Bkey, _state: KeyState) {}
}

/// Sees nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoVisitor;

impl Visitor for NoVisitor {
    fn wants_keys(&self) -> bool {
        false
    }
}

/// Figures of the btree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BtreeSummary {
    /// Level of the root (`tree_depth`).
    pub depth: u16,
    /// Nodes read (`btree_nodes`).
    pub nodes: u64,
    /// Nodes that could not be read, or that the kernel would drop.
    pub bad_nodes: u64,
    /// Extents in leaves, overlaps resolved and neighbours joined.
    pub extents: u64,
    /// Extents that are usable.
    pub usable_extents: u64,
    /// Usable keys of all levels.
    pub usable_keys: u64,
    /// Bytes of the usable keys of all levels.
    pub usable_key_bytes: u64,
    /// Sectors that the usable keys of all levels name.
    pub usable_sectors: u64,
    /// Bytes of the usable keys in the root.
    pub root_key_bytes: u64,
    /// Bytes of a node (`btree_bytes`).
    pub node_bytes: u64,
}

impl BtreeSummary {
    /// `root_usage_percent`.
    pub const fn root_usage_percent(&self) -> u64 {
        match self.root_key_bytes.saturating_mul(100).checked_div(self.node_bytes) {
            Some(percent) => percent,
            None => 0,
        }
    }

    /// `btree_used_percent`, as the kernel's GC counts it.
    pub const fn used_percent(&self) -> u64 {
        let nodes = if self.nodes == 0 { 1 } else { self.nodes };
        let bytes = self.node_bytes.saturating_mul(nodes);
        match self.usable_key_bytes.saturating_mul(100).checked_div(bytes) {
            Some(percent) => percent,
            None => 0,
        }
    }
}

/// What the cache holds of one volume, journal replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VolumeUsage {
    /// Sectors that are cached, dirty ones included.
    pub cached_sectors: Sectors,
    /// Sectors that the backing device lacks.
    pub dirty_sectors: Sectors,
    /// Of these, sectors that only the journal's keys name. Where gens are lost they are in doubt:
    /// the journal keeps keys of data that was written back since, in buckets that were reused.
    pub dirty_journal_sectors: Sectors,
    /// Extents that are cached.
    pub extents: u64,
    /// Where the first of them begins: a sector of the backing device.
    #[serde(skip)]
    pub start: Option<u64>,
    /// Where the last of them ends: a sector of the backing device.
    pub end: u64,
}

impl VolumeUsage {
    /// Where the cached data begins, if that is before `data_offset`. The kernel caches no sectors before the
    /// data: the offset is not the one that the volume had.
    pub fn start_before(&self, data_offset: Sectors) -> Option<u64> {
        self.start.filter(|start| *start < data_offset.0)
    }

    /// Counts a stretch of extents among those that are there.
    fn reach(&mut self, start: u64, end: u64) {
        self.start = Some(self.start.map_or(start, |first| first.min(start)));
        self.end = self.end.max(end);
    }
}

/// A cache set as read.
#[derive(Clone, Debug)]
pub struct CacheSet<'d> {
    /// The device.
    pub cache: CacheDevice<'d>,
    /// The journal.
    pub journal: Journal,
    /// The prio chain.
    pub prios: PrioChain,
    /// The volumes.
    pub uuids: UuidTable,
    /// All buckets, as the kernel has them once all keys are marked.
    pub table: BucketTable,
    /// The btree.
    pub btree: BtreeSummary,
    /// The root's key.
    pub root: Bkey,
    /// What replay lays over the btree.
    pub overlay: Overlay,
    /// By slot of the uuid table, for every volume that has usable keys.
    pub volumes: BTreeMap<u32, VolumeUsage>,
    /// Stretches of the btree in doubt, in no order.
    pub suspects: Vec<Suspect>,
    /// By slot: sectors of dirty keys whose buckets were reused, with nothing newer in their place. Not of
    /// buckets whose gens are lost: of these, the newest pointer is all that tells.
    pub stale_dirty: BTreeMap<u32, Sectors>,
}

impl<'d> CacheSet<'d> {
    /// Reads all there is to know.
    pub fn read(
        cache: CacheDevice<'d>,
        options: &ReadOptions,
        visitor: &mut dyn Visitor,
    ) -> Result<Self, ReadError> {
        reader::read(cache, options, visitor)
    }

    /// The geometry.
    pub const fn geometry(&self) -> &Geometry {
        self.cache.geometry()
    }

    /// What `bucket` is for, where it holds metadata.
    pub fn metadata_role(&self, bucket: BucketIndex) -> Option<MetadataRole> {
        if self.cache.superblock().journal_buckets().any(|journal| journal == bucket.0) {
            return Some(MetadataRole::Journal);
        }
        if self.prios.buckets.contains(&bucket) {
            return Some(MetadataRole::Prios);
        }
        if self.uuids.bucket == Some(bucket) {
            return Some(MetadataRole::Uuids);
        }
        let metadata = self.table.get(bucket).is_some_and(|b| b.mark() == GcMark::Metadata);
        (metadata || self.table.is_node(bucket)).then_some(MetadataRole::Btree)
    }

    /// By slot: data of flash-only volumes that counts as clean, so that the kernel may drop it.
    pub(crate) fn flash_clean(&self) -> impl Iterator<Item = (u32, Sectors)> {
        self.volumes.iter().filter_map(|(&slot, usage)| {
            let flash_only = self.uuids.get(slot).is_some_and(UuidEntry::flash_only);
            let clean = Sectors(usage.cached_sectors.0.saturating_sub(usage.dirty_sectors.0));
            (flash_only && clean.0 > 0).then_some((slot, clean))
        })
    }

    /// Whether a valid extent points into a bucket that holds metadata: its data is not there.
    pub(crate) fn is_displaced(&self, key: &Bkey) -> bool {
        key.ptrs().iter().map(|ptr| ptr.bucket(self.geometry())).any(|bucket| {
            let mark = self.table.get(bucket).map(Bucket::mark);
            mark == Some(GcMark::Metadata) || self.table.is_node(bucket)
        })
    }

    /// Whether keys in doubt may be among those after `from` and up to `to`.
    pub(crate) fn is_suspect(&self, from: Pos, to: Pos) -> bool {
        self.suspects.iter().any(|suspect| suspect.from < to && from < suspect.to)
    }

    /// What becomes of a structurally valid key of the btree (at `level`) or the journal (level 0),
    /// judged by the gens of the whole set.
    pub fn key_state(&self, key: &Bkey, level: u16) -> KeyState {
        if level > 0 && key.is_zero_key() {
            return KeyState::FreedNode;
        }
        if key.ptrs_count() == 0 {
            return KeyState::Hole;
        }
        if key.ptrs().iter().any(|ptr| !ptr.available()) {
            return KeyState::Unavailable;
        }
        let staleness = |ptr: &crate::layout::bkey::Ptr| {
            self.table.staleness(ptr.bucket(self.geometry()), ptr.ptr_gen())
        };
        match key.ptrs().iter().map(staleness).max() {
            Some(by) if by > 0 => KeyState::Stale { by },
            _ => KeyState::Valid,
        }
    }

    /// The figures of `priority_stats`.
    pub fn priority_stats(&self) -> usage::PriorityStats {
        usage::priority_stats(&self.table, self.geometry())
    }

    /// Buckets that the allocator may use, once replay has dropped the journal's pins.
    pub fn available(&self) -> u64 {
        usage::available(&self.table, self.geometry(), false)
    }

    /// `cache_available_percent`.
    pub fn available_percent(&self) -> u64 {
        usage::available_percent(self.available(), self.geometry())
    }

    /// Sectors of all volumes that no backing device has.
    pub fn dirty_sectors(&self) -> Sectors {
        self.volumes.values().fold(Sectors(0), |sum, volume| sum + volume.dirty_sectors)
    }

    /// Tells all extents in the order of their volumes and sectors, as they are once replay is over,
    /// until `found` breaks: what newer keys hide is cut off, no two overlap. Stale keys and holes
    /// are told, too.
    ///
    /// Beside one node for each level, it takes the memory that `options` allow for reading ahead.
    pub fn for_each_extent(
        &self,
        options: &WalkOptions,
        found: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) {
        extents::for_each(self, options, found);
    }

    /// Finds single places in the btree and the journal.
    pub fn view(&self) -> View<'_, 'd> {
        View::new(self)
    }
}
