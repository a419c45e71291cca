//! Why there is no bucket.

use super::reserves::Reserve;
use super::table::TableError;

/// Why there is no bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// There is none, and the caller did not want to wait.
    #[error("no free bucket in the {reserve:?} reserve")]
    WouldBlock {
        /// The reserve that was asked, besides None.
        reserve: Reserve,
    },
    /// There is none, and no thread that could free one.
    #[error("no free bucket in the {reserve:?} reserve, and the allocator thread is stopped")]
    Stopped {
        /// The reserve that was asked, besides None.
        reserve: Reserve,
    },
    /// More was waited for than the reserve ever holds.
    #[error("{wanted} buckets were waited for in the {reserve:?} reserve, which holds {capacity}")]
    NeverThatMany {
        /// The reserve.
        reserve: Reserve,
        /// Buckets waited for.
        wanted: usize,
        /// Buckets that it can hold.
        capacity: usize,
    },
    /// The device failed: nothing is handed out any more.
    #[error("the cache device has failed; nothing is allocated on it")]
    Failed,
    /// Some caches of the set have failed, and too few are left for so many buckets.
    #[error("buckets on {wanted} caches were asked for; {healthy} caches have not failed")]
    TooFewHealthyCaches {
        /// Buckets asked for, each on its own cache.
        wanted: usize,
        /// Caches that have not failed.
        healthy: usize,
    },
    /// More caches were asked for than the set has, or none.
    #[error("buckets on {wanted} caches were asked for; the set has {caches}")]
    NotThatManyCaches {
        /// Buckets asked for, each on its own cache.
        wanted: usize,
        /// Caches of the set.
        caches: usize,
    },
    /// No such cache in the set.
    #[error("the set has no cache {device}")]
    NoSuchCache {
        /// Number of the cache in its set.
        device: u16,
    },
    /// The allocator thread runs, or somebody else refills the reserves.
    #[error("the reserves of the cache are being refilled by another")]
    RefillerTaken,
    /// The table refused the bucket.
    #[error(transparent)]
    Table(#[from] TableError),
}
