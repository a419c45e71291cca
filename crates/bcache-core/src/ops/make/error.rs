//! Why a plan is refused, and what it decided on the way.

use std::path::PathBuf;

use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};
use crate::layout::verdict::{NBUCKETS_MIN, Refusal, Warning};
use crate::ops::make::BUCKET_SIZE_MAX;
use crate::units::{PAGE_BYTES, Sectors, format_bytes};

/// Why nothing is written.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// No device was named.
    #[error("name at least one device: --cache DEV... or --bdev DEV...")]
    NoDevices,
    /// The same device twice.
    #[error("{} and {} are the same device", first.display(), second.display())]
    SameDevice {
        /// As it was first named.
        first: PathBuf,
        /// As it was named again.
        second: PathBuf,
    },
    /// Several caches that would have to share a set.
    #[error(
        "{count} cache devices cannot share one set: kernels since 5.10 register one cache device \
         per set; make them in separate commands, or leave out --bdev and --cset-uuid"
    )]
    SeveralCaches {
        /// Number of cache devices.
        count: usize,
    },
    /// `--bucket` is not a power of two.
    #[error("--bucket: {} is not a power of two", format_bytes(*bytes))]
    BucketNotPowerOfTwo {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// `--bucket` is too small.
    #[error("--bucket: {} is too small; the kernel wants at least {}", format_bytes(*bytes), format_bytes(PAGE_BYTES))]
    BucketTooSmall {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// `--bucket` is too large.
    #[error("--bucket: {} is too large; at most {BUCKET_SIZE_MAX}", format_bytes(*bytes))]
    BucketTooLarge {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// `--block` is not a power of two.
    #[error("--block: {} is not a power of two", format_bytes(*bytes))]
    BlockNotPowerOfTwo {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// `--block` is out of the kernel's range.
    #[error("--block: {} is not between 512 B and {}", format_bytes(*bytes), format_bytes(PAGE_BYTES))]
    BlockOutOfRange {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The block is smaller than a device's own.
    #[error(
        "--block: {} is smaller than the logical block of {} ({})",
        format_bytes(*bytes), path.display(), format_bytes(*logical)
    )]
    BlockSmallerThanDevice {
        /// Block size in bytes.
        bytes: u64,
        /// The device.
        path: PathBuf,
        /// Its logical block in bytes.
        logical: u64,
    },
    /// The block is larger than the bucket.
    #[error("--block: {} is larger than a bucket of {bucket_size}", format_bytes(*bytes))]
    BlockLargerThanBucket {
        /// Block size in bytes.
        bytes: u64,
        /// Size of a bucket.
        bucket_size: Sectors,
    },
    /// The bucket, and so each btree node, is a single block.
    #[error(
        "--bucket: {block_size} is a single block, and kernels crash over btree nodes of one block; \
         give --bucket at least {}, or --block at most {}",
        format_bytes(2 * block_size.bytes()), format_bytes(block_size.bytes() / 2)
    )]
    OneBlockBuckets {
        /// The block size, which is the bucket size too.
        block_size: Sectors,
    },
    /// A device whose logical block is larger than the kernel's page.
    #[error(
        "{}: logical blocks of {} are larger than a page; bcache cannot use the device",
        path.display(), format_bytes(*logical)
    )]
    LogicalBlockLargerThanPage {
        /// The device.
        path: PathBuf,
        /// Its logical block in bytes.
        logical: u64,
    },
    /// `--data-offset` is inside the superblock.
    #[error("--data-offset: {} sectors are too few; at least 16", offset.0)]
    DataOffsetTooSmall {
        /// What was asked for.
        offset: Sectors,
    },
    /// `--data-offset` leaves no data.
    #[error(
        "--data-offset: {} sectors leave no data on {}, which has {} sectors",
        offset.0, path.display(), size.0
    )]
    DataOffsetPastEnd {
        /// What was asked for, or the default.
        offset: Sectors,
        /// The device.
        path: PathBuf,
        /// Its size.
        size: Sectors,
    },
    /// `--data-offset` splits the device's blocks.
    #[error(
        "--data-offset: {} sectors are no multiple of the logical block of {} ({})",
        offset.0, path.display(), format_bytes(*logical)
    )]
    DataOffsetMisaligned {
        /// What was asked for.
        offset: Sectors,
        /// The device.
        path: PathBuf,
        /// Its logical block in bytes.
        logical: u64,
    },
    /// `--data-offset` splits the blocks of the cache that is made in the same command.
    #[error(
        "--data-offset: {} sectors are no multiple of the block size ({block_size}): the kernel \
         would cache nothing; choose a multiple, or a smaller --block",
        offset.0
    )]
    DataOffsetSplitsBlocks {
        /// What was asked for.
        offset: Sectors,
        /// The block size.
        block_size: Sectors,
    },
    /// The device holds no superblock's worth of bytes.
    #[error(
        "{} is too small: {size_bytes} bytes, a superblock alone ends at byte {}",
        path.display(), SB_OFFSET_BYTES + SB_BYTES as u64
    )]
    DeviceTooShort {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// Fewer buckets than the kernel's allocator works with.
    #[error(
        "--bucket: {} holds {nbuckets} buckets of {bucket_size}; the kernel wants at least \
         {NBUCKETS_MIN}{}",
        path.display(), suggestion(*largest)
    )]
    TooFewBuckets {
        /// The device.
        path: PathBuf,
        /// Buckets that fit.
        nbuckets: u64,
        /// Size of a bucket.
        bucket_size: Sectors,
        /// The largest bucket size that would do, if any.
        largest: Option<Sectors>,
    },
    /// The device cannot be written.
    #[error("{} is read-only", path.display())]
    ReadOnly {
        /// The device.
        path: PathBuf,
    },
    /// A zoned device.
    #[error("{} is a zoned device, which these tools do not format", path.display())]
    Zoned {
        /// The device.
        path: PathBuf,
    },
    /// Something is on the device.
    #[error("{} holds {}; to destroy it, add {}", path.display(), what.join(", "), overrides.join(" and "))]
    WouldDestroy {
        /// The device.
        path: PathBuf,
        /// What is on it, each in words.
        what: Vec<String>,
        /// The options that would allow it.
        overrides: Vec<&'static str>,
    },
    /// The kernel would refuse the result for a reason that no option names.
    #[error("{}: the kernel would refuse the result: {refusal}", path.display())]
    KernelRefuses {
        /// The device.
        path: PathBuf,
        /// In the kernel's words.
        refusal: Refusal,
    },
    /// The kernel would accept the result and hang on it.
    #[error("{}: {warning}", path.display())]
    KernelWouldHang {
        /// The device.
        path: PathBuf,
        /// What it would choke on.
        warning: Warning,
    },
}

fn suggestion(largest: Option<Sectors>) -> String {
    match largest {
        Some(size) => format!("; --bucket {}k fits", size.bytes() >> 10),
        None => "; the device is too small for a cache".to_owned(),
    }
}

/// Something that the plan decided and the user should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The default bucket size does not give enough buckets.
    SmallerBucket {
        /// The default.
        default: Sectors,
        /// What is used.
        used: Sectors,
    },
    /// The bucket is too large for version 0.
    LargeBucketFeature,
    /// Version 5 is not known to kernels before 5.9.
    SectorsLeftOver {
        /// Behind the last whole bucket.
        sectors: Sectors,
    },
    /// The old journal of the same set is wiped.
    JournalWiped {
        /// How much.
        size: Sectors,
    },
    /// The data offset is no multiple of the physical block.
    DataOffsetSplitsPhysicalBlock {
        /// The physical block in bytes.
        physical_bytes: u32,
    },
    /// The device takes no discards, the flag has no effect.
    NoDiscard,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SmallerBucket { default, used } => write!(
                f,
                "buckets of {used} instead of {default}: the kernel wants at least \
                 {NBUCKETS_MIN} of them"
            ),
            Self::LargeBucketFeature => f.write_str(
                "buckets over 16 MiB need superblock version 5, which kernels before 5.11 do not \
                 read",
            ),
            Self::SectorsLeftOver { sectors } => {
                write!(f, "{sectors} behind the last whole bucket stay unused")
            }
            Self::JournalWiped { size } => write!(
                f,
                "{size} where the journal will be are zeroed, so that no old journal of the set \
                 comes back"
            ),
            Self::DataOffsetSplitsPhysicalBlock { physical_bytes } => write!(
                f,
                "the data offset is no multiple of the device's physical block \
                 ({physical_bytes} bytes): writes will be slow"
            ),
            Self::NoDiscard => f.write_str("the device takes no discards: --discard has no effect"),
        }
    }
}
