//! The allocator: which bucket of a cache device is used next, and for what.
//!
//! The semantics are those of the kernel's alloc.c (FORMAT.md §6 and §9); its costs are not. The
//! parts, each using only those above it:
//!
//! - [`table`]: the buckets, eight bytes each, and the transitions of a single one.
//! - [`replacement`]: which buckets go first: LRU, FIFO, RANDOM.
//! - [`reserves`]: the queues of free buckets, and [`lifecycle`], why a bucket may enter one.
//! - [`rescale`]: what a set of caches counts together; when prios age.
//! - [`state`]: one cache: everything above put together, without I/O, clock or waiting.
//! - [`prios`]: the two alternating chains of prio sets.
//! - [`shared`]: waiting and waking: the reserves as a set of threads sees them.
//! - [`thread`]: the loop that keeps the reserves filled, over an [`AllocatorIo`].
//! - [`set`]: several caches as one.
//! - [`sectors`]: the sector allocator: open buckets for many streams of writes.
//!
//! docs/allocator.md tells how they work together and what may happen at once.

pub mod lifecycle;
pub mod planted;
pub mod prios;
pub mod replacement;
pub mod rescale;
pub mod reserves;
pub mod sectors;
pub mod set;
pub mod shared;
pub mod state;
pub(crate) mod sync;
pub mod table;
pub mod thread;
mod vector;
mod words;

use serde::Serialize;

pub use lifecycle::{Lifecycle, Safe};
pub use replacement::{Found, Policy};
pub use rescale::SetCounters;
pub use reserves::{BtreeReserve, Reserve, Sizes};
pub use sectors::{Allocated, SectorAllocator, SectorRequest};
pub use set::{CacheSet, SetPointer};
pub use shared::{AllocError, Shared};
pub use state::{Config, State};
pub use table::{Bucket, BucketTable, TableError};
pub use thread::{AllocatorIo, AllocatorThread};

/// `GC_MARK`: what the last GC, or the allocation since, says a bucket holds (FORMAT.md §6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Nothing that a valid pointer points to.
    #[default]
    None,
    /// Clean data: also on the backing device.
    Reclaimable,
    /// Dirty data: nowhere else.
    Dirty,
    /// Btree nodes, prio sets, uuids, journal.
    Metadata,
}
