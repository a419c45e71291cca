//! The quantities that bcache counts in, as types that cannot be mixed up.
//!
//! A sector is always 512 bytes. Bucket `b` of a cache device covers the sectors
//! `[b * bucket_size, (b + 1) * bucket_size)` from the start of the device. Arithmetic that a
//! hostile superblock could overflow is checked; nothing here panics on any input.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

/// Bytes in a sector, everywhere in bcache, whatever the device's own sector size.
pub const SECTOR_BYTES: u64 = 512;

/// The page size of the kernels whose formats we read and write, in bytes (docs/on-disk-format.md
/// §3.1).
///
/// The size of metadata buckets and the limit on block sizes follow from it. All figures of this
/// crate are those of a kernel with 4 KiB pages.
pub const PAGE_BYTES: u64 = 4096;

/// Sectors in a page.
pub const PAGE_SECTORS: u64 = PAGE_BYTES / SECTOR_BYTES;

/// Largest number of pages in one metadata bucket image: `MAX_ORDER_NR_PAGES` on x86-64.
const META_BUCKET_PAGES_MAX: u64 = 1024;

/// `BUCKET_GC_GEN_MAX`: a bucket whose gen is this far past its `last_gc` cannot be invalidated.
pub const BUCKET_GC_GEN_MAX: u8 = 96;

/// `GC_SECTORS_USED` is a field of 13 bits; larger counts are capped here (docs/on-disk-format.md
/// §6.1).
pub const GC_SECTORS_USED_MAX: u16 = 8191;

/// Bytes of a prio_set before its entries.
pub const PRIO_SET_HEADER_BYTES: u64 = 40;

/// Bytes of one entry of a prio_set: prio (two bytes) and gen (one).
pub const BUCKET_DISK_BYTES: u64 = 3;

/// Bytes of one entry of the uuid table (version 1).
pub const UUID_ENTRY_BYTES: u64 = 128;

/// A length or a position in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Sectors(pub u64);

impl Sectors {
    /// Whole sectors in `bytes`, rounding down.
    pub const fn from_bytes_floor(bytes: u64) -> Self {
        Self(bytes / SECTOR_BYTES)
    }

    /// The length in bytes, saturating at `u64::MAX`.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR_BYTES)
    }

    /// The sum, or `None` when it does not fit.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl Add for Sectors {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Sectors {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Sectors {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Sectors {
    /// The size in the largest binary unit that keeps it exact, or with one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format_bytes(self.bytes()))
    }
}

/// `bytes` as people write sizes: `512 KiB`, `1.5 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 6] =
        [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (name, shift) in UNITS {
        let unit = 1u64 << shift;
        if bytes >= unit {
            if bytes % unit == 0 {
                return format!("{} {name}", bytes >> shift);
            }
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// The number of a bucket on its cache device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct BucketIndex(pub u64);

impl fmt::Display for BucketIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The generation of a bucket or of a pointer into one.
///
/// It wraps at 256, so gens have no order: compare them with [`Gen::gen_after`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Gen(pub u8);

impl Gen {
    /// How far `self` is ahead of `other`: the kernel's `gen_after`, 0 when it is not ahead.
    ///
    /// Distances over 128 count as "not ahead" (docs/on-disk-format.md §5.5).
    pub const fn gen_after(self, other: Self) -> u8 {
        let distance = self.0.wrapping_sub(other.0);
        if distance > 128 { 0 } else { distance }
    }

    /// The plain distance modulo 256: `bucket_gc_gen` when `other` is `last_gc`.
    pub const fn distance_from(self, other: Self) -> u8 {
        self.0.wrapping_sub(other.0)
    }

    /// The gen after one invalidation.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for Gen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The priority of a bucket: high is hot; metadata has [`Prio::BTREE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Prio(pub u16);

impl Prio {
    /// `BTREE_PRIO`: metadata, never aged.
    pub const BTREE: Self = Self(u16::MAX);
    /// `INITIAL_PRIO`: freshly allocated, invalidated or hit.
    pub const INITIAL: Self = Self(32768);
}

impl fmt::Display for Prio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The shape of one cache device and what the kernel derives from it (docs/on-disk-format.md §2.1,
/// §3.1, §5.1).
///
/// Built from a superblock that the kernel would accept; the constructor refuses shapes whose
/// derived figures would be meaningless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    nbuckets: u64,
    first_bucket: u64,
    bucket_size: Sectors,
    block_size: Sectors,
}

impl Geometry {
    /// A geometry, or `None` unless block and bucket size are powers of two, the bucket holds at
    /// least a page and a block, the device's sectors fit 64 bits of bytes, and
    /// `first_bucket < nbuckets`.
    pub fn new(
        nbuckets: u64,
        first_bucket: u64,
        bucket_size: Sectors,
        block_size: Sectors,
    ) -> Option<Self> {
        let sound = block_size.0.is_power_of_two()
            && bucket_size.0.is_power_of_two()
            && block_size.0 <= PAGE_SECTORS
            && bucket_size.0 >= PAGE_SECTORS
            && bucket_size.0 <= 1 << 31
            && first_bucket < nbuckets
            && nbuckets
                .checked_mul(bucket_size.0)
                .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES))
                .is_some();
        sound.then_some(Self { nbuckets, first_bucket, bucket_size, block_size })
    }

    /// Buckets on the device, the ones before `first_bucket` included.
    pub const fn nbuckets(&self) -> u64 {
        self.nbuckets
    }

    /// First bucket that may hold journal or data.
    pub const fn first_bucket(&self) -> BucketIndex {
        BucketIndex(self.first_bucket)
    }

    /// Size of a bucket.
    pub const fn bucket_size(&self) -> Sectors {
        self.bucket_size
    }

    /// Size of a block: the unit in which jsets and bsets are laid out.
    pub const fn block_size(&self) -> Sectors {
        self.block_size
    }

    /// Bytes of a bucket.
    pub const fn bucket_bytes(&self) -> u64 {
        self.bucket_size.bytes()
    }

    /// Bytes of a block.
    pub const fn block_bytes(&self) -> u64 {
        self.block_size.bytes()
    }

    /// The part of the device that buckets cover.
    pub const fn size(&self) -> Sectors {
        Sectors(self.nbuckets.saturating_mul(self.bucket_size.0))
    }

    /// Whether `bucket` may hold data, btree, prios or uuids.
    pub const fn contains(&self, bucket: BucketIndex) -> bool {
        bucket.0 >= self.first_bucket && bucket.0 < self.nbuckets
    }

    /// First sector of `bucket`.
    pub const fn bucket_to_sector(&self, bucket: BucketIndex) -> Sectors {
        Sectors(bucket.0.saturating_mul(self.bucket_size.0))
    }

    /// The bucket that covers `sector`.
    pub const fn sector_to_bucket(&self, sector: Sectors) -> BucketIndex {
        BucketIndex(sector.0 >> self.bucket_size.0.trailing_zeros())
    }

    /// Bytes of a metadata bucket image (`meta_bucket_bytes`): prio sets and the uuid table.
    ///
    /// The bucket, but at most 4 MiB (`MAX_ORDER_NR_PAGES` pages).
    pub fn meta_bucket_bytes(&self) -> u64 {
        (self.bucket_size.0 / PAGE_SECTORS).min(META_BUCKET_PAGES_MAX) * PAGE_BYTES
    }

    /// Entries in one prio_set (`prios_per_bucket`).
    pub fn prios_per_bucket(&self) -> u64 {
        (self.meta_bucket_bytes() - PRIO_SET_HEADER_BYTES) / BUCKET_DISK_BYTES
    }

    /// Prio sets in one chain (`prio_buckets`).
    pub fn prio_buckets(&self) -> u64 {
        self.nbuckets.div_ceil(self.prios_per_bucket())
    }

    /// Slots of the uuid table.
    pub fn nr_uuids(&self) -> u64 {
        self.meta_bucket_bytes() / UUID_ENTRY_BYTES
    }

    /// Size of a btree node that a kernel would make on this device (`btree_pages`).
    pub fn btree_node_size(&self) -> Sectors {
        let pages = self.meta_bucket_bytes() / PAGE_BYTES;
        let pages = if pages <= 64 { pages } else { (pages / 4).max(64) };
        Sectors(pages * PAGE_SECTORS)
    }

    /// Journal buckets that the kernel makes at first registration: `clamp(nbuckets / 128, 2, 256)`.
    pub fn njournal_buckets_default(&self) -> u16 {
        njournal_buckets_default(self.nbuckets)
    }
}

/// Journal buckets that the kernel makes at first registration of a cache with so many buckets.
pub(crate) fn njournal_buckets_default(nbuckets: u64) -> u16 {
    u16::try_from((nbuckets >> 7).clamp(2, 256)).unwrap_or(256)
}

/// A moment as the kernel writes it, as a date: `2026-11-27 02:17:26 UTC`.
pub fn date(seconds_since_1970: u32) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds_since_1970.into());
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/on-disk-format.md §3.1: bucket sectors, meta bytes, prios a bucket, uuid
    /// slots, node sectors.
    #[test]
    fn geometry_matches_the_kernels_table() {
        for (bucket, meta, prios, uuids, node) in [
            (8, 4096, 1352, 32, 8),
            (16, 8192, 2717, 64, 16),
            (32, 16384, 5448, 128, 32),
            (64, 32768, 10909, 256, 64),
            (128, 65536, 21832, 512, 128),
            (256, 131_072, 43677, 1024, 256),
            (512, 262_144, 87368, 2048, 512),
            (1024, 524_288, 174_749, 4096, 512),
            (2048, 1_048_576, 349_512, 8192, 512),
            (4096, 2_097_152, 699_037, 16384, 1024),
            (8192, 4_194_304, 1_398_088, 32768, 2048),
            (32768, 4_194_304, 1_398_088, 32768, 2048),
        ] {
            let geometry = Geometry::new(1024, 1, Sectors(bucket), Sectors(8)).unwrap();
            assert_eq!(geometry.meta_bucket_bytes(), meta, "bucket {bucket}");
            assert_eq!(geometry.prios_per_bucket(), prios, "bucket {bucket}");
            assert_eq!(geometry.nr_uuids(), uuids, "bucket {bucket}");
            assert_eq!(geometry.btree_node_size(), Sectors(node), "bucket {bucket}");
        }
    }

    #[test]
    fn gen_after_is_zero_past_half_the_circle() {
        assert_eq!(Gen(5).gen_after(Gen(5)), 0);
        assert_eq!(Gen(5).gen_after(Gen(4)), 1);
        assert_eq!(Gen(0).gen_after(Gen(255)), 1);
        assert_eq!(Gen(128).gen_after(Gen(0)), 128);
        assert_eq!(Gen(129).gen_after(Gen(0)), 0);
        assert_eq!(Gen(4).gen_after(Gen(5)), 0);
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(Sectors(1024).to_string(), "512 KiB");
        assert_eq!(format_bytes(1536 << 20), "1.5 GiB");
        assert_eq!(format_bytes(100), "100 B");
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let ok = |nbuckets, first, bucket, block| {
            Geometry::new(nbuckets, first, Sectors(bucket), Sectors(block)).is_some()
        };
        assert!(ok(1024, 1, 1024, 8));
        assert!(!ok(1024, 1024, 1024, 8));
        assert!(!ok(1024, 1, 1000, 8));
        assert!(!ok(1024, 1, 4, 1));
        assert!(!ok(1024, 1, 1024, 16));
        assert!(!ok(1024, 1, 1024, 0));
        assert!(!ok(u64::MAX / 2, 1, 1024, 8));
    }
}
