//! How a modelled cache set is set up: the kernel's defaults unless told otherwise.

use serde::Serialize;

use crate::allocator::{AllocError, Policy};
use crate::units::{Geometry, Sectors};

/// The kernel refuses a cache with fewer buckets.
pub const BUCKETS_MIN: u64 = 513;

/// A pass over a small cache, a bucket to an SSD, and a journal entry with its flush. Kernels under QEMU
/// took 1.5 to 3 ms.
pub(crate) const CHAIN_NS_DEFAULT: u64 = 2_500_000;

/// `cache_mode` of the backing devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Writes go to both.
    #[default]
    Writethrough,
    /// Writes go to the cache and are written back later.
    Writeback,
    /// Writes go past the cache.
    Writearound,
    /// Everything goes past the cache.
    None,
}

impl Mode {
    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writethrough => "writethrough",
            Self::Writeback => "writeback",
            Self::Writearound => "writearound",
            Self::None => "none",
        }
    }
}

/// Which kernel's decisions are modelled, where they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadaheadPolicy {
    /// Readahead is cached as everything else (`readahead_cache_policy=all`).
    #[default]
    All,
    /// Readahead is cached only if it is metadata (`meta-only`).
    MetaOnly,
}

/// A cache set to model: one cache, any number of backing devices.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Size of the cache device.
    pub cache_size: Sectors,
    /// Size of a bucket.
    pub bucket_size: Sectors,
    /// Size of a block: what is not aligned to it bypasses the cache.
    pub block_size: Sectors,
    /// Replacement policy.
    pub policy: Policy,
    /// Cache mode of all backing devices.
    pub mode: Mode,
    /// `sequential_cutoff` in bytes; 0 switches it off.
    pub sequential_cutoff_bytes: u64,
    /// `readahead_cache_policy`.
    pub readahead: ReadaheadPolicy,
    /// `writeback_running`.
    pub writeback_running: bool,
    /// `writeback_percent`.
    pub writeback_percent: u8,
    /// `writeback_delay` in seconds.
    pub writeback_delay_seconds: u32,
    /// How long the allocator thread takes to write a chain of prio sets, in ns. A write or a miss for which
    /// no bucket is ready meanwhile goes past the cache, as the kernel does not wait there. With 0 the
    /// thread is never late.
    pub chain_ns: u64,
    /// Where the numbers of RANDOM start.
    pub seed: u64,
}

impl Config {
    /// A cache of this size and bucket size with the kernel's defaults.
    pub const fn new(cache_size: Sectors, bucket_size: Sectors) -> Self {
        Self {
            cache_size,
            bucket_size,
            block_size: Sectors(1),
            policy: Policy::Lru,
            mode: Mode::Writethrough,
            sequential_cutoff_bytes: 4 << 20,
            readahead: ReadaheadPolicy::All,
            writeback_running: true,
            writeback_percent: 10,
            writeback_delay_seconds: 30,
            chain_ns: CHAIN_NS_DEFAULT,
            seed: 0,
        }
    }

    /// The shape that `make` gives such a device.
    ///
    /// # Errors
    /// [`ConfigError`] when the kernel would not take it.
    pub fn geometry(&self) -> Result<Geometry, ConfigError> {
        let bucket = self.bucket_size;
        let nbuckets = self.cache_size.0.checked_div(bucket.0).unwrap_or(0);
        if nbuckets < BUCKETS_MIN {
            return Err(ConfigError::TooFewBuckets { nbuckets });
        }
        let first_bucket = 23 / bucket.0.max(1) + 1;
        Geometry::new(nbuckets, first_bucket, bucket, self.block_size)
            .ok_or(ConfigError::Shape { bucket_size: bucket, block_size: self.block_size })
    }
}

/// Why a cache set cannot be modelled.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The kernel refuses a cache of fewer than 513 buckets.
    #[error("{nbuckets} buckets are too few: the kernel refuses a cache of fewer than 513")]
    TooFewBuckets {
        /// Buckets of the device.
        nbuckets: u64,
    },
    /// Not a shape that a cache can have.
    #[error("a cache cannot have buckets of {bucket_size} and blocks of {block_size}")]
    Shape {
        /// Size of a bucket.
        bucket_size: Sectors,
        /// Size of a block.
        block_size: Sectors,
    },
    /// The allocator cannot be made.
    #[error("cannot set up the allocator")]
    Allocator(#[source] AllocError),
}
