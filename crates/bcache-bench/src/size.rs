//! What a cache of a size costs before it is made: memory, metadata, prio writes, limits.

use bcache_core::allocator::{BtreeReserve, Sizes};
use bcache_core::model::BUCKETS_MIN;
use bcache_core::units::{GC_SECTORS_USED_MAX, Geometry, Sectors};
use serde::Serialize;

/// Bytes of the kernel's `struct bucket`.
const KERNEL_BUCKET_BYTES: u64 = 12;
/// Bytes of a number in the kernel's queues, and of a pointer in its heap.
const WORD_BYTES: u64 = 8;
/// Bytes of a key of one pointer.
const KEY_BYTES: u64 = 24;
/// The largest pages that Linux has on machines that run bcache.
const PAGE_MAX_BYTES: u64 = 64 << 10;

/// A bucket size, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SizeRow {
    /// Size of a bucket.
    pub bucket_bytes: u64,
    /// Buckets of the cache.
    pub nbuckets: u64,
    /// Why no kernel takes it, or what to know.
    pub limits: Vec<Limit>,
    /// The costs, unless it is refused.
    pub costs: Option<Costs>,
}

/// What a cache costs. Btree figures are for extents of one size throughout a full cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// Memory that the kernel takes for its table of buckets, queues and the buffer of prios.
    pub memory_bytes: u64,
    /// Memory of all btree nodes, of which the kernel keeps as many as there is room for.
    pub btree_memory_bytes: u64,
    /// Superblock, journal, two chains of prio sets, uuids.
    pub fixed_metadata_bytes: u64,
    /// Journal, a part of the former.
    pub journal_bytes: u64,
    /// Buckets of btree nodes, in bytes.
    pub btree_bytes: u64,
    /// Buckets of one chain of prio sets.
    pub prio_buckets: u64,
    /// Buckets that become free with each chain.
    pub free_inc: u64,
    /// Bytes of prios written for each byte of data, once the cache is full.
    pub prio_overhead: Option<f64>,
    /// Bytes read at registration: journal, prios, and the whole btree.
    pub registration_bytes: u64,
}

/// A limit that a bucket size meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Limit {
    /// Fewer than 513 buckets: refused.
    TooFewBuckets,
    /// More buckets than the kernel takes: refused.
    TooManyBuckets,
    /// Not a shape that a cache can have.
    Shape,
    /// GC counts a bucket's sectors in 13 bits: from 4 MiB on, LRU cannot tell full from less full.
    SectorsUsed,
    /// A kernel with pages of 64 KiB refuses it.
    LargePages,
}

/// The costs of a cache with buckets of a size, full of extents of `extent_bytes`.
pub fn row(cache_bytes: u64, bucket_bytes: u64, block_bytes: u64, extent_bytes: u64) -> SizeRow {
    let nbuckets = cache_bytes.checked_div(bucket_bytes).unwrap_or(0);
    let mut limits = Vec::new();
    let refused = |limit| SizeRow { bucket_bytes, nbuckets, limits: vec![limit], costs: None };
    if nbuckets < BUCKETS_MIN {
        return refused(Limit::TooFewBuckets);
    }
    if u32::try_from(nbuckets).is_err() {
        return refused(Limit::TooManyBuckets);
    }
    let bucket = Sectors(bucket_bytes / 512);
    let first = 23 / bucket.0.max(1) + 1;
    let geometry = Geometry::new(nbuckets, first, bucket, Sectors(block_bytes / 512));
    let Some(geometry) = geometry else { return refused(Limit::Shape) };
    let journal = u64::from(geometry.njournal_buckets_default());
    let reserve = BtreeReserve::JournalBuckets(Some(geometry.njournal_buckets_default()));
    let Some(sizes) = Sizes::new(&geometry, reserve) else {
        return refused(Limit::TooFewBuckets);
    };
    if bucket.0 > u64::from(GC_SECTORS_USED_MAX) {
        limits.push(Limit::SectorsUsed);
    }
    if bucket_bytes < PAGE_MAX_BYTES {
        limits.push(Limit::LargePages);
    }
    let chain = geometry.prio_buckets();
    let queues = [sizes.btree, sizes.prio, sizes.moving_gc, sizes.none, sizes.free_inc, sizes.heap];
    let queues: u64 = queues.iter().map(|size| *size as u64 * WORD_BYTES).sum();
    let memory_bytes = nbuckets * KERNEL_BUCKET_BYTES
        + queues
        + 2 * chain * WORD_BYTES
        + geometry.meta_bucket_bytes();
    let node_bytes = geometry.btree_node_size().bytes();
    let keys_per_node = (node_bytes / KEY_BYTES * 2 / 3).max(1);
    let nodes = (cache_bytes / extent_bytes.max(1)).div_ceil(keys_per_node).max(1);
    let fixed = first + journal + 2 * chain + 1;
    let free_inc = sizes.free_inc as u64;
    let overhead = free_inc.checked_sub(chain).filter(|left| *left > 0);
    let costs = Costs {
        memory_bytes,
        btree_memory_bytes: nodes * node_bytes,
        fixed_metadata_bytes: fixed * bucket_bytes,
        journal_bytes: journal * bucket_bytes,
        btree_bytes: nodes * bucket_bytes,
        prio_buckets: chain,
        free_inc,
        prio_overhead: overhead.and_then(|left| crate::num::ratio(chain, left)),
        registration_bytes: (journal + chain) * bucket_bytes + nodes * node_bytes,
    };
    SizeRow { bucket_bytes, nbuckets, limits, costs: Some(costs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn prio_overhead_of_small_caches() {
        let overhead = |cache_mib: u64, bucket: u64| {
            row(cache_mib * MIB, bucket, 4096, 65536).costs.unwrap().prio_overhead.unwrap()
        };
        // 1,024, 2,048, 4,096 and 8,192 buckets: one of 3, 6, 14, 30.
        for (cache, of) in [(512, 3.0), (1024, 6.0), (2048, 14.0), (4096, 30.0)] {
            let is = overhead(cache, 512 << 10);
            assert!((is - 1.0 / of).abs() < 1e-9, "{cache}: {is}");
        }
        assert!(overhead(512, 64 << 10) < 0.04);
    }

    #[test]
    fn limits_are_said() {
        let limits = |cache, bucket| row(cache, bucket, 4096, 65536).limits;
        assert_eq!(limits(512 * MIB, MIB), [Limit::TooFewBuckets]);
        assert_eq!(limits(1 << 44, 4096), [Limit::TooManyBuckets]);
        assert_eq!(limits(8192 * MIB, 4 * MIB), [Limit::SectorsUsed]);
        assert_eq!(limits(8192 * MIB, 32 << 10), [Limit::LargePages]);
        assert_eq!(limits(8192 * MIB, 512 << 10), []);
    }

    #[test]
    fn a_terabyte_in_the_usual_buckets() {
        let row = row(1 << 40, 512 << 10, 4096, 65536);
        let costs = row.costs.unwrap();
        assert_eq!(row.nbuckets, 1 << 21);
        assert_eq!((costs.prio_buckets, costs.free_inc), (13, 8191));
        assert_eq!(costs.journal_bytes, 128 * MIB);
        // 12 bytes a bucket, and queues.
        assert!((24 * MIB..26 * MIB).contains(&costs.memory_bytes), "{}", costs.memory_bytes);
    }
}
