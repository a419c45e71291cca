//! How one cache allocates.

use crate::units::Geometry;

use super::super::replacement::Policy;
use super::super::reserves::BtreeReserve;
use super::super::table::TableError;

/// How one cache allocates.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Shape of the device.
    pub geometry: Geometry,
    /// Replacement policy.
    pub policy: Policy,
    /// Where RANDOM's numbers start, to repeat a run. `None`: anywhere, as in the kernel.
    pub seed: Option<u64>,
    /// Size of the Btree reserve.
    pub btree_reserve: BtreeReserve,
    /// `CACHE_SYNC`: what is on the device outlives a crash, so gens must be durable before a bucket
    /// is used again.
    pub sync: bool,
    /// `CACHE_DISCARD`: discard buckets on their way to the reserves.
    pub discard: bool,
    /// Buckets that could be invalidated when a GC began may be while it runs (kernels since 6.10),
    /// instead of waiting for its end (2018 and 6.1).
    pub reclaim_in_gc: bool,
    /// LRU selects with the kernel's heap, so that of buckets that rank alike the same ones go. Slower, and
    /// not for a cache that others change meanwhile.
    pub kernel_heap: bool,
    /// Verify on each allocation that the bucket is in no list and no prio chain, in builds with
    /// debug assertions (`expensive_debug_checks`).
    pub expensive_debug_checks: bool,
}

impl Config {
    /// LRU on a synced device without discards, as the 2018 kernel waits for GC.
    pub const fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            policy: Policy::Lru,
            seed: None,
            btree_reserve: BtreeReserve::Clamped,
            sync: true,
            discard: false,
            reclaim_in_gc: false,
            kernel_heap: false,
            expensive_debug_checks: false,
        }
    }
}

/// Why an allocator cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NewAllocatorError {
    /// The kernel wants 513 buckets at least, and so do the sizes of the queues.
    #[error("{nbuckets} buckets are too few: the allocator needs at least 513")]
    TooFewBuckets {
        /// Buckets of the device.
        nbuckets: u64,
    },
    /// The table cannot be made.
    #[error(transparent)]
    Table(#[from] TableError),
}
