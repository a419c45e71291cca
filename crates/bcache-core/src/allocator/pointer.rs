//! A bucket of a set of caches, as a key points to it.

use crate::units::{BucketIndex, Gen};

/// A bucket of a set: what a pointer to it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetPointer {
    /// Number of the cache in its set (`PTR_DEV`).
    pub device: u16,
    /// The bucket.
    pub bucket: BucketIndex,
    /// Its gen when it was allocated (`PTR_GEN`).
    pub bucket_gen: Gen,
}

/// Caches that a set can have (on-disk-format.md §1.4 row 20).
pub(crate) const CACHES_MAX: usize = 8;
