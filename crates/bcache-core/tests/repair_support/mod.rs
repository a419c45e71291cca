//! The set that the tests of repair damage.

use bcache_core::cache_set::testkit::SetBuilder;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::units::Sectors;

pub(crate) const BUCKET: u64 = 8;
pub(crate) const NBUCKETS: u64 = 3000;

/// Three prio sets, and entries 10 to 17 of which 11 to 17 are replayed; `entry` gives the keys of the
/// `n`th of those, whose first data bucket is `first`.
pub(crate) fn builder(entry: impl Fn(&SetBuilder, u64, u64) -> Vec<Bkey>) -> SetBuilder {
    let mut builder = SetBuilder {
        nbuckets: NBUCKETS,
        bucket_size: Sectors(BUCKET),
        block_size: 1,
        njournal: 8,
        sets_per_node: 2,
        entries_per_bucket: 3,
        first_seq: 10,
        last_seq: 11,
        ..SetBuilder::default()
    };
    let first = builder.data_buckets(0).start;
    let entries = (0..7).map(|n| entry(&builder, n, first));
    builder.journal = std::iter::once(Vec::new()).chain(entries).collect();
    builder
}

/// A key of four sectors of volume 0, dirty for every third bucket.
pub(crate) fn key(builder: &SetBuilder, start: u64, bucket: u64) -> Bkey {
    let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
    Bkey::new(0, start + 4, 4)
        .with_ptrs(&[Ptr::new(ptr_gen, Sectors(bucket * BUCKET), 0)])
        .with_dirty(bucket % 3 == 0)
}

/// The keys of the btree.
pub(crate) fn btree_keys(builder: &SetBuilder) -> Vec<Bkey> {
    let first = builder.data_buckets(0).start;
    (0..900).map(|n| key(builder, n * 10, first + n)).collect()
}
