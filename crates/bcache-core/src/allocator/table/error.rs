//! What can be wrong with a request to the bucket table.

use crate::units::{BucketIndex, Gen};

use super::super::mark::Mark;

/// What can be wrong with a request to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More buckets than the table can number (2^32 - 1).
    #[error("{nbuckets} buckets are more than the allocator can number")]
    TooManyBuckets {
        /// Buckets asked for.
        nbuckets: u64,
    },
    /// The table would not fit the memory that there is.
    #[error("no memory for a table of {nbuckets} buckets")]
    NoMemory {
        /// Buckets asked for.
        nbuckets: u64,
    },
    /// The bucket is outside `first_bucket..nbuckets`.
    #[error("bucket {bucket} is not one of the buckets {first_bucket} to {nbuckets}")]
    NoSuchBucket {
        /// The bucket.
        bucket: BucketIndex,
        /// First bucket that can be allocated.
        first_bucket: u64,
        /// Buckets of the device.
        nbuckets: u64,
    },
    /// The bucket is in `free_inc` or a reserve: what it held is gone.
    #[error("bucket {bucket} is free: there is nothing to pin")]
    IsFree {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// The bucket was invalidated after the pointer to it was made.
    #[error("bucket {bucket} has another gen than the pointer's {ptr_gen:?}")]
    StalePointer {
        /// The bucket.
        bucket: BucketIndex,
        /// The gen of the pointer.
        ptr_gen: Gen,
    },
    /// The bucket carries as many pins as can be counted (16382).
    #[error("bucket {bucket} has too many pins")]
    PinOverflow {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// A pin was to be dropped that nobody holds.
    #[error("bucket {bucket} is not pinned")]
    NotPinned {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// A bucket from a reserve was in use (`BUG_ON(pin != 1)`).
    #[error("bucket {bucket} came from a reserve and is in use, with {pins} pins")]
    NotFree {
        /// The bucket.
        bucket: BucketIndex,
        /// Its pins.
        pins: u16,
    },
    /// A key marks a metadata bucket as data, or the reverse ("inconsistent ptrs").
    #[error("bucket {bucket} is marked {mark:?} but a key would mark it {key_mark:?}")]
    InconsistentMark {
        /// The bucket.
        bucket: BucketIndex,
        /// Its mark.
        mark: Mark,
        /// What the key would make it.
        key_mark: Mark,
    },
}
