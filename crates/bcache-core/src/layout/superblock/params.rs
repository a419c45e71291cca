//! What the superblock of a new device is made from.

use uuid::Uuid;

use super::{CacheMode, Label, Replacement};
use crate::units::Sectors;

/// What a new cache device's superblock is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheParams {
    /// Of this device.
    pub uuid: Uuid,
    /// Of the set; a fresh one, or an old journal comes back (docs/on-disk-format.md §1.5).
    pub set_uuid: Uuid,
    /// Label.
    pub label: Label,
    /// Number of buckets.
    pub nbuckets: u64,
    /// Size of a bucket, a power of two.
    pub bucket_size: Sectors,
    /// Size of a block, a power of two.
    pub block_size: u16,
    /// Replacement policy.
    pub replacement: Replacement,
    /// Whether the kernel discards buckets that it reuses.
    pub discard: bool,
}

/// What a new backing device's superblock is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingParams {
    /// Of this device.
    pub uuid: Uuid,
    /// Of the set to attach to; the kernel ignores it while the state is "none".
    pub set_uuid: Uuid,
    /// Label.
    pub label: Label,
    /// Sector at which the data starts.
    pub data_offset: Sectors,
    /// Size of a block.
    pub block_size: u16,
    /// Cache mode.
    pub cache_mode: CacheMode,
}
