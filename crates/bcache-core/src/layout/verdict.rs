//! What the stock kernel says of a superblock, without asking it.
//!
//! [`kernel_verdict`] follows the checks of `read_super`, `register_cache` and `register_bdev` in
//! their order (docs/on-disk-format.md §1.4), in the kernel's own words. It is that of Linux 6.1;
//! where later kernels are stricter, or where a kernel accepts what it will choke on, a [`Warning`]
//! says so.
//!
//! With `CACHE_SYNC` set, registration goes on to read the journal, the prios, the btree and the
//! uuids: the verdict then holds for the superblock alone, and says that it does.

use std::fmt;

use crate::layout::superblock::{
    FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE, FEATURE_INCOMPAT_OBSO_LARGE_BUCKET,
    FEATURE_INCOMPAT_SUPPORTED, Kind, SB_JOURNAL_BUCKETS, SB_SECTOR, Superblock,
    VERSION_BDEV_WITH_FEATURES, VERSION_BDEV_WITH_OFFSET, VERSION_CDEV_WITH_FEATURES,
};
use crate::units::{GC_SECTORS_USED_MAX, PAGE_SECTORS, SECTOR_BYTES, Sectors};

/// Fewest buckets of the superblock check (`read_super`); the allocator wants [`NBUCKETS_MIN`].
const NBUCKETS_MIN_READ_SUPER: u64 = 1 << 7;

/// Fewest buckets that the allocator works with: `roundup_pow_of_two(nbuckets) >> 10` must not be 0.
pub const NBUCKETS_MIN: u64 = 513;

/// Most devices in a set (`MAX_CACHES_PER_SET`).
pub const MAX_CACHES_PER_SET: u16 = 8;

/// First data sector that a backing device may name (`BDEV_DATA_START_DEFAULT`).
const DATA_OFFSET_MIN: Sectors = Sectors(16);

/// Sectors before the first bucket.
const SUPER_END_SECTORS: u64 = 16;

/// Largest stripe count of a backing device (`bcache_device_init`: at most `INT_MAX`).
const NR_STRIPES_MAX: u64 = i32::MAX as u64;

/// Stripe size that the kernel uses where the disk names no optimal I/O size, in sectors.
const STRIPE_SECTORS_DEFAULT: u64 = 1 << 31;

/// Nodes smaller than this, with a fanout that needs five levels, stop kernels before 6.16 on first
/// use (docs/on-disk-format.md §10.13).
const SMALL_BTREE_NODE: Sectors = Sectors(16);

/// The device that a superblock is judged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Size of the device or partition.
    pub device_size: Sectors,
    /// Size of the whole disk, which is what the kernel looks at for a cache.
    pub disk_size: Sectors,
    /// Logical block size of the device in bytes.
    pub logical_block_bytes: u32,
    /// Whether it is a device that bcache itself runs (`bcacheN`).
    pub is_bcache_volume: bool,
}

/// Why the kernel refuses a superblock; displays as the kernel's own message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The sector in the superblock is not 8.
    #[error("Not a bcache superblock (bad offset)")]
    BadOffset,
    /// The magic is another.
    #[error("Not a bcache superblock (bad magic)")]
    BadMagic,
    /// The checksum does not match.
    #[error("Bad checksum")]
    BadChecksum,
    /// The device's or the set's uuid is zero.
    #[error("Bad UUID")]
    BadUuid,
    /// Blocks smaller than the device's logical block.
    #[error("Superblock block size smaller than device block size")]
    BlockSmallerThanDevice,
    /// A version that the kernel does not know.
    #[error("Unsupported superblock version")]
    UnsupportedVersion,
    /// A data offset below 16 sectors.
    #[error("Bad data offset")]
    BadDataOffset,
    /// A compatible feature that the kernel does not know.
    #[error("Unsupported compatible feature found")]
    UnsupportedCompat,
    /// A read-only compatible feature that the kernel does not know.
    #[error("Unsupported read-only compatible feature found")]
    UnsupportedRoCompat,
    /// An incompatible feature that the kernel does not know.
    #[error("Unsupported incompatible feature found")]
    UnsupportedIncompat,
    /// More than 256 journal buckets, or more than there are buckets.
    #[error("Too many journal buckets")]
    TooManyJournalBuckets,
    /// A number of buckets that a long does not hold.
    #[error("Too many buckets")]
    TooManyBuckets,
    /// Fewer than 128 buckets.
    #[error("Not enough buckets")]
    NotEnoughBuckets,
    /// Blocks of an odd size.
    #[error("Bad block size (not power of 2)")]
    BlockNotPowerOfTwo,
    /// Blocks larger than a page.
    #[error("Bad block size (larger than page size)")]
    BlockLargerThanPage,
    /// Buckets of an odd size.
    #[error("Bad bucket size (not power of 2)")]
    BucketNotPowerOfTwo,
    /// Buckets smaller than a page.
    #[error("Bad bucket size (smaller than page size)")]
    BucketSmallerThanPage,
    /// The buckets do not fit the disk.
    #[error("Invalid superblock: device too small")]
    DeviceTooSmall,
    /// A number of the device, or of devices, that makes no set.
    #[error("Bad cache device number in set")]
    BadDeviceNumber,
    /// The journal buckets do not follow each other.
    #[error("Journal buckets not sequential")]
    JournalNotSequential,
    /// The first bucket covers the superblock.
    #[error("Invalid superblock: first bucket comes before end of super")]
    FirstBucketBeforeSuperEnd,
    /// Fewer than 513 buckets.
    #[error("ca->sb.nbuckets is too small")]
    NbucketsTooSmall,
    /// So many buckets that the kernel cannot allocate their reserve.
    #[error("ca->free[RESERVE_PRIO] alloc failed")]
    PrioReserveAlloc,
    /// `CACHE_SYNC` without a journal.
    #[error("no journal entries found")]
    NoJournalEntries,
    /// The data of a backing device starts past its end.
    #[error("start sector beyond end of disk?")]
    StartBeyondEnd,
    /// A device that bcache itself runs has no room for the directory of a second registration.
    #[error("error creating kobject: it is a bcache device itself")]
    OnBcache,
}

/// What the kernel accepts and will choke on, or what another kernel refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Warning {
    /// Replacement policy 3 to 7: the allocator thread spins, registration never ends (§10.3).
    ReplacementUnknown {
        /// The value in the superblock.
        value: u8,
    },
    /// The buckets fit the disk and not the partition: the kernel looks at the disk only.
    PartitionTooSmall {
        /// What the buckets cover.
        needed: Sectors,
        /// Size of the partition.
        device: Sectors,
    },
    /// `first_bucket` is the number of buckets: RANDOM divides by zero (§1.4).
    NoDataBuckets,
    /// Journal, prios and btree leave no buckets for data.
    TooFewDataBuckets {
        /// Buckets that metadata wants before any data.
        metadata: u64,
        /// Buckets on the device.
        nbuckets: u64,
    },
    /// Btree nodes so small that kernels before 6.16 hang on first use (§10.13).
    SmallBtreeNodes {
        /// Size of a node.
        node: Sectors,
    },
    /// Btree nodes of one block: a node never has room for a second set of keys, so that the kernel
    /// splits it with too few keys to split, and crashes, even while it reads (§10.14).
    OneBlockBtreeNodes {
        /// Size of a node, which is no more than the block.
        node: Sectors,
    },
    /// Bucket of 4 MiB and more: `GC_SECTORS_USED` does not hold its size, so that fresh buckets
    /// are the first victims of LRU (§10.7).
    BucketOverflowsSectorsUsed,
    /// The layout of metadata buckets over 4 MiB differs with the kernel's page size (§3.1).
    BucketDependsOnPageSize,
    /// The obsolete large bucket feature: attached devices become read-only (§1.3).
    ObsoleteLargeBucket,
    /// Logarithm of the bucket size over 31.
    BucketSizeOverflows {
        /// The logarithm.
        log2: u16,
    },
    /// The set has several devices: no kernel since 5.10 assembles them (§7).
    SeveralDevicesInSet,
    /// Flags that no kernel knows.
    UnknownFlags {
        /// The bits.
        bits: u64,
    },
    /// A backing device whose block size is no power of two or over a page: 6.1 takes it for the
    /// block size of the bcache device and crashes when that is read; 6.12 refuses it and crashes
    /// in cleaning up.
    BackingBlockSize {
        /// The block size.
        block_size: Sectors,
    },
    /// The data of a backing device starts within a block: the kernel passes every request that is
    /// no whole blocks of the disk by the cache (`check_should_bypass`), so all of them.
    DataOffsetSplitsBlocks {
        /// Where the data starts.
        data_offset: Sectors,
        /// The block size.
        block_size: Sectors,
    },
    /// The data of a backing device starts within a logical block of the disk, which fails every
    /// access.
    DataOffsetMisaligned {
        /// Where the data starts.
        data_offset: Sectors,
        /// The disk's logical block in bytes.
        logical_block_bytes: u32,
    },
    /// A backing cache mode that no kernel knows.
    CacheModeUnknown {
        /// The value.
        value: u8,
    },
    /// `CACHE_SYNC` is set: whether the kernel registers the device also depends on its journal,
    /// prios, uuids and btree.
    DependsOnJournal,
    /// The set's uuid was used before on this device: the old journal comes back at the second
    /// registration (§1.5).
    SetUuidReused,
}

impl Warning {
    /// Whether the kernel accepts a cache's superblock and comes to grief over it, whatever its device.
    pub(crate) const fn is_hazard(&self) -> bool {
        matches!(
            self,
            Self::ReplacementUnknown { .. }
                | Self::NoDataBuckets
                | Self::OneBlockBtreeNodes { .. }
                | Self::BucketSizeOverflows { .. }
        )
    }

    /// Whether registration never ends, the kernel writes where it must not or crashes, or no data
    /// can be reached: nothing that should ever be written.
    pub const fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::ReplacementUnknown { .. }
                | Self::PartitionTooSmall { .. }
                | Self::NoDataBuckets
                | Self::TooFewDataBuckets { .. }
                | Self::OneBlockBtreeNodes { .. }
                | Self::BackingBlockSize { .. }
                | Self::DataOffsetMisaligned { .. }
        )
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplacementUnknown { value } => write!(
                f,
                "replacement policy {value} is unknown: the kernel accepts it and its allocator \
                 thread then spins for ever"
            ),
            Self::PartitionTooSmall { needed, device } => write!(
                f,
                "the buckets cover {needed} and the device has {device}: the kernel checks the \
                 whole disk only and would write past the end"
            ),
            Self::NoDataBuckets => f.write_str("no bucket is left behind first_bucket"),
            Self::TooFewDataBuckets { metadata, nbuckets } => write!(
                f,
                "{metadata} of {nbuckets} buckets go to journal, prios and reserves: registration \
                 would wait for a free bucket for ever"
            ),
            Self::SmallBtreeNodes { node } => write!(
                f,
                "btree nodes of {node}: kernels before 6.16 can hang under load until the cache \
                 is registered a second time"
            ),
            Self::OneBlockBtreeNodes { node } => write!(
                f,
                "btree nodes of {node}, a single block: kernels crash when they split one; a bucket \
                 must hold at least two blocks"
            ),
            Self::BucketOverflowsSectorsUsed => f.write_str(
                "buckets of 4 MiB and more overflow the kernel's count of sectors in use: LRU \
                 takes freshly filled buckets first",
            ),
            Self::BucketDependsOnPageSize => f.write_str(
                "buckets over 4 MiB are laid out differently by kernels with other page sizes: \
                 the cache cannot be moved to such a machine",
            ),
            Self::ObsoleteLargeBucket => f.write_str(
                "the obsolete large_bucket feature: attached backing devices become read-only",
            ),
            Self::BucketSizeOverflows { log2 } => write!(f, "bucket size (1 << {log2}) overflows"),
            Self::SeveralDevicesInSet => f.write_str(
                "the set names several cache devices: kernels since 5.10 run each alone",
            ),
            Self::UnknownFlags { bits } => write!(f, "unknown flags {bits:#x}"),
            Self::BackingBlockSize { block_size } => write!(
                f,
                "block size of {} sectors: kernels crash on backing devices with one that is no \
                 power of two or larger than a page",
                block_size.0
            ),
            Self::DataOffsetSplitsBlocks { data_offset, block_size } => write!(
                f,
                "the data starts at sector {}, no multiple of the block of {} sectors: a cache with \
                 that block size caches nothing of it",
                data_offset.0, block_size.0
            ),
            Self::DataOffsetMisaligned { data_offset, logical_block_bytes } => write!(
                f,
                "the data starts at sector {}, within a logical block of the disk \
                 ({logical_block_bytes} bytes): every access to it fails",
                data_offset.0
            ),
            Self::CacheModeUnknown { value } => write!(f, "cache mode {value} is unknown"),
            Self::DependsOnJournal => f.write_str(
                "the cache holds data: whether it registers also depends on its journal, prios, \
                 uuids and btree",
            ),
            Self::SetUuidReused => f.write_str(
                "the set UUID was used on this device before: its old journal would come back at \
                 the second registration",
            ),
        }
    }
}

/// The kernel's answer, and ours beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The first reason to refuse, or `None` where the kernel accepts.
    pub refusal: Option<Refusal>,
    /// What the kernel does not say.
    pub warnings: Vec<Warning>,
}

impl Verdict {
    /// Whether the kernel accepts the superblock.
    pub fn accepts(&self) -> bool {
        self.refusal.is_none()
    }
}

/// What Linux 6.1 says of `sb` on `target`, and what it ought to say.
pub fn kernel_verdict(sb: &Superblock, target: &Target) -> Verdict {
    let refusal = refusal(sb, target);
    let identified = !matches!(
        refusal,
        Some(
            Refusal::BadOffset
                | Refusal::BadMagic
                | Refusal::BadChecksum
                | Refusal::UnsupportedVersion
        )
    );
    let warnings = if identified { warnings(sb, target) } else { Vec::new() };
    Verdict { refusal, warnings }
}

fn refusal(sb: &Superblock, target: &Target) -> Option<Refusal> {
    if sb.offset() != SB_SECTOR {
        return Some(Refusal::BadOffset);
    }
    if !sb.magic_ok() {
        return Some(Refusal::BadMagic);
    }
    if !sb.csum_ok() {
        return Some(Refusal::BadChecksum);
    }
    if sb.uuid().is_nil() {
        return Some(Refusal::BadUuid);
    }
    if sb.block_size().bytes() < u64::from(target.logical_block_bytes) {
        return Some(Refusal::BlockSmallerThanDevice);
    }
    let refusal = match sb.kind() {
        None => Some(Refusal::UnsupportedVersion),
        Some(Kind::Backing) => backing_refusal(sb, target),
        Some(Kind::Cache) => cache_refusal(sb, target),
    };
    // The superblock comes first.
    refusal.or(target.is_bcache_volume.then_some(Refusal::OnBcache))
}

fn backing_refusal(sb: &Superblock, target: &Target) -> Option<Refusal> {
    let has_offset = matches!(sb.version(), VERSION_BDEV_WITH_OFFSET | VERSION_BDEV_WITH_FEATURES);
    if has_offset && sb.data_offset() < DATA_OFFSET_MIN {
        return Some(Refusal::BadDataOffset);
    }
    // bcache_device_init: the subtraction wraps, and the count of stripes tells that it did.
    let sectors = target.device_size.0.wrapping_sub(sb.data_offset().0);
    let stripes = sectors.wrapping_add(STRIPE_SECTORS_DEFAULT - 1) / STRIPE_SECTORS_DEFAULT;
    (stripes == 0 || stripes > NR_STRIPES_MAX).then_some(Refusal::StartBeyondEnd)
}

fn cache_refusal(sb: &Superblock, target: &Target) -> Option<Refusal> {
    if sb.version() == VERSION_CDEV_WITH_FEATURES {
        if sb.feature_compat() != 0 {
            return Some(Refusal::UnsupportedCompat);
        }
        if sb.feature_ro_compat() != 0 {
            return Some(Refusal::UnsupportedRoCompat);
        }
        if sb.feature_incompat() & !FEATURE_INCOMPAT_SUPPORTED != 0 {
            return Some(Refusal::UnsupportedIncompat);
        }
    }
    let (nbuckets, bucket_size) = (sb.nbuckets(), sb.bucket_size().0);
    let (njournal, first_bucket) = (sb.njournal_buckets(), u64::from(sb.first_bucket()));
    if njournal > SB_JOURNAL_BUCKETS {
        return Some(Refusal::TooManyJournalBuckets);
    }
    if i64::try_from(nbuckets).is_err() {
        return Some(Refusal::TooManyBuckets);
    }
    if nbuckets < NBUCKETS_MIN_READ_SUPER {
        return Some(Refusal::NotEnoughBuckets);
    }
    if !sb.block_size().0.is_power_of_two() {
        return Some(Refusal::BlockNotPowerOfTwo);
    }
    if sb.block_size().0 > PAGE_SECTORS {
        return Some(Refusal::BlockLargerThanPage);
    }
    if !bucket_size.is_power_of_two() {
        return Some(Refusal::BucketNotPowerOfTwo);
    }
    if bucket_size < PAGE_SECTORS {
        return Some(Refusal::BucketSmallerThanPage);
    }
    // The kernel's product wraps too.
    if target.disk_size.0 < bucket_size.wrapping_mul(nbuckets) {
        return Some(Refusal::DeviceTooSmall);
    }
    if sb.set_uuid().is_nil() {
        return Some(Refusal::BadUuid);
    }
    let nr_in_set = sb.nr_in_set();
    if nr_in_set == 0 || sb.nr_this_dev() >= nr_in_set || nr_in_set > MAX_CACHES_PER_SET {
        return Some(Refusal::BadDeviceNumber);
    }
    if !sb.journal_buckets().eq((first_bucket..).take(njournal.into())) {
        return Some(Refusal::JournalNotSequential);
    }
    if first_bucket + u64::from(njournal) > nbuckets {
        return Some(Refusal::TooManyJournalBuckets);
    }
    if first_bucket.saturating_mul(bucket_size) < SUPER_END_SECTORS {
        return Some(Refusal::FirstBucketBeforeSuperEnd);
    }
    if nbuckets < NBUCKETS_MIN {
        return Some(Refusal::NbucketsTooSmall);
    }
    if bucket_size.checked_mul(nbuckets).and_then(|s| s.checked_mul(SECTOR_BYTES)).is_none() {
        return Some(Refusal::PrioReserveAlloc);
    }
    (sb.sync() && njournal == 0).then_some(Refusal::NoJournalEntries)
}

fn warnings(sb: &Superblock, target: &Target) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if sb.flags_unknown() != 0 {
        warnings.push(Warning::UnknownFlags { bits: sb.flags_unknown() });
    }
    match sb.kind() {
        Some(Kind::Backing) => {
            let block_size = sb.block_size();
            if !block_size.0.is_power_of_two() || block_size.0 > PAGE_SECTORS {
                warnings.push(Warning::BackingBlockSize { block_size });
            }
            let data_offset = sb.data_offset();
            if block_size.0 != 0 && data_offset.0 % block_size.0 != 0 {
                warnings.push(Warning::DataOffsetSplitsBlocks { data_offset, block_size });
            }
            let logical_block_bytes = target.logical_block_bytes;
            if data_offset.bytes() % u64::from(logical_block_bytes.max(1)) != 0 {
                warnings.push(Warning::DataOffsetMisaligned { data_offset, logical_block_bytes });
            }
            if sb.cache_mode().is_none() {
                warnings.push(Warning::CacheModeUnknown { value: sb.cache_mode_raw() });
            }
        }
        Some(Kind::Cache) => cache_warnings(sb, target, &mut warnings),
        None => {}
    }
    warnings
}

fn cache_warnings(sb: &Superblock, target: &Target, warnings: &mut Vec<Warning>) {
    if sb.replacement().is_none() {
        warnings.push(Warning::ReplacementUnknown { value: sb.replacement_raw() });
    }
    if sb.version() == VERSION_CDEV_WITH_FEATURES {
        let incompat = sb.feature_incompat();
        let logarithm = incompat & FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE != 0;
        if logarithm && sb.bucket_size_raw() > 31 {
            warnings.push(Warning::BucketSizeOverflows { log2: sb.bucket_size_raw() });
        }
        if incompat & FEATURE_INCOMPAT_OBSO_LARGE_BUCKET != 0 {
            warnings.push(Warning::ObsoleteLargeBucket);
        }
    }
    if sb.nr_in_set() > 1 {
        warnings.push(Warning::SeveralDevicesInSet);
    }
    if u64::from(sb.first_bucket()) >= sb.nbuckets() {
        warnings.push(Warning::NoDataBuckets);
    }
    if let Some(geometry) = sb.geometry() {
        let needed = geometry.size();
        if needed > target.device_size && needed <= target.disk_size {
            warnings.push(Warning::PartitionTooSmall { needed, device: target.device_size });
        }
        let journal = match sb.njournal_buckets() {
            0 => geometry.njournal_buckets_default(),
            count => count,
        };
        // The old and the new prio chain, the uuid table (old and new) and the root.
        let metadata =
            geometry.first_bucket().0 + u64::from(journal) + 2 * geometry.prio_buckets() + 3;
        if metadata >= geometry.nbuckets() {
            let nbuckets = geometry.nbuckets();
            warnings.push(Warning::TooFewDataBuckets { metadata, nbuckets });
        }
        if geometry.btree_node_size() < SMALL_BTREE_NODE {
            warnings.push(Warning::SmallBtreeNodes { node: geometry.btree_node_size() });
        }
        if geometry.btree_node_size() <= geometry.block_size() {
            warnings.push(Warning::OneBlockBtreeNodes { node: geometry.btree_node_size() });
        }
        if geometry.bucket_size().0 > u64::from(GC_SECTORS_USED_MAX) {
            warnings.push(Warning::BucketOverflowsSectorsUsed);
        }
        if geometry.bucket_bytes() > geometry.meta_bucket_bytes() {
            warnings.push(Warning::BucketDependsOnPageSize);
        }
    }
    if sb.sync() {
        warnings.push(Warning::DependsOnJournal);
    }
}
