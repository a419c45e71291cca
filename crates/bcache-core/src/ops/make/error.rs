//! Why a plan is refused, and what it decided on the way.

use std::path::PathBuf;

use uuid::Uuid;

use super::destroyed::{Destroyed, Override};
use crate::layout::superblock::{Kind, SB_BYTES, SB_OFFSET_BYTES};
use crate::layout::verdict::{NBUCKETS_MIN, Refusal, Warning};
use crate::ops::make::BUCKET_SIZE_MAX;
use crate::units::{PAGE_BYTES, Sectors, format_bytes};

/// Why nothing is written.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// No device was named.
    #[error("no device was named")]
    NoDevices,
    /// The same device twice.
    #[error("{} and {} are the same device", first.display(), second.display())]
    SameDevice {
        /// As it was first named.
        first: PathBuf,
        /// As it was named again.
        second: PathBuf,
    },
    /// A disk and one of its partitions.
    #[error("{} is a partition of {}: one of them can be formatted", partition.display(), disk.display())]
    PartitionOfDisk {
        /// The partition.
        partition: PathBuf,
        /// The disk it is on.
        disk: PathBuf,
    },
    /// The set's UUID is all zeroes, which to the kernel is no set.
    #[error("a UUID of zeroes names no set")]
    NilSetUuid,
    /// Several caches that would have to share a set.
    #[error(
        "{count} cache devices cannot share one set: kernels since 5.10 register one cache device \
         per set"
    )]
    SeveralCaches {
        /// Number of cache devices.
        count: usize,
    },
    /// The bucket size is not a power of two.
    #[error("a bucket size of {} is not a power of two", format_bytes(*bytes))]
    BucketNotPowerOfTwo {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The bucket size is too small.
    #[error("a bucket size of {} is too small; the kernel wants at least {}", format_bytes(*bytes), format_bytes(PAGE_BYTES))]
    BucketTooSmall {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The bucket size is too large.
    #[error("a bucket size of {} is too large; at most {BUCKET_SIZE_MAX}", format_bytes(*bytes))]
    BucketTooLarge {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The block size is not a power of two.
    #[error("a block size of {} is not a power of two", format_bytes(*bytes))]
    BlockNotPowerOfTwo {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The block size is out of the kernel's range.
    #[error("a block size of {} is not between 512 B and {}", format_bytes(*bytes), format_bytes(PAGE_BYTES))]
    BlockOutOfRange {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The block is smaller than a device's own.
    #[error(
        "a block size of {} is smaller than the logical block of {} ({})",
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
    /// The bucket, and so each btree node, is a single block.
    #[error(
        "a bucket of {block_size} is a single block, and kernels crash over btree nodes of one block"
    )]
    OneBlockBuckets {
        /// The block size, which is the bucket size too.
        block_size: Sectors,
        /// A block of which such a bucket holds two, where the devices have as small ones.
        smaller_block: Option<Sectors>,
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
    /// The data offset is inside the superblock.
    #[error("a data offset of {} sectors is too small; at least 16", offset.0)]
    DataOffsetTooSmall {
        /// What was asked for.
        offset: Sectors,
    },
    /// The data offset leaves no data.
    #[error(
        "{} has {} sectors: behind the {} before its data no block of {} fits",
        path.display(), size.0, offset.0, block_size.0
    )]
    DataOffsetPastEnd {
        /// What was asked for, or the default.
        offset: Sectors,
        /// Whether it was asked for.
        asked: bool,
        /// The device.
        path: PathBuf,
        /// Its size.
        size: Sectors,
        /// The block size.
        block_size: Sectors,
    },
    /// The data offset splits the device's blocks.
    #[error(
        "a data offset of {} sectors is no multiple of the logical block of {} ({})",
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
    /// The data offset splits the blocks of the cache that is made in the same command.
    #[error(
        "a data offset of {} sectors is no multiple of the block size ({block_size}): the kernel \
         would cache nothing",
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
        "{} holds {nbuckets} buckets of {bucket_size}; the kernel wants at least {NBUCKETS_MIN}",
        path.display()
    )]
    TooFewBuckets {
        /// The device.
        path: PathBuf,
        /// Buckets that fit.
        nbuckets: u64,
        /// Size of a bucket: what was asked for, or the smallest that the block allows.
        bucket_size: Sectors,
        /// Whether it was asked for.
        asked: bool,
        /// What would do, if anything.
        fits: Option<Fit>,
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
    /// It is a device that bcache runs, on which the kernel registers no bcache device.
    #[error(
        "{} is a bcache device itself; the kernel cannot register bcache on bcache", path.display()
    )]
    BcacheOnBcache {
        /// The device.
        path: PathBuf,
    },
    /// The blocks of the backing devices are smaller than those of their set.
    #[error(
        "a block size of {block_size} is smaller than that of the set ({set}), to which the kernel \
         would not attach the device"
    )]
    BlockSmallerThanSet {
        /// The block size of the devices.
        block_size: Sectors,
        /// That of the set.
        set: Sectors,
    },
    /// Something is on the device.
    #[error("{} ({size}) holds {}", path.display(), list(what))]
    WouldDestroy {
        /// The device.
        path: PathBuf,
        /// Its size.
        size: Sectors,
        /// What is on it.
        what: Vec<Destroyed>,
        /// What is missing for it to be allowed.
        missing: Vec<Override>,
        /// The set whose data would be lost.
        set_uuid: Option<Uuid>,
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

/// Sizes with which a device holds enough buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The largest bucket that does.
    pub bucket_size: Sectors,
    /// The largest block for it, where it must be smaller than that of the plan.
    pub smaller_block: Option<Sectors>,
}

fn list(what: &[Destroyed]) -> String {
    what.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A setting that concerns one kind of device only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The bucket size.
    BucketSize,
    /// Whether to discard.
    Discard,
    /// The replacement policy.
    Replacement,
    /// The data offset.
    DataOffset,
    /// The cache mode.
    Writeback,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::BucketSize, Self::Discard, Self::Replacement, Self::DataOffset, Self::Writeback];

    /// The kind of device that it is for.
    pub const fn kind(self) -> Kind {
        match self {
            Self::BucketSize | Self::Discard | Self::Replacement => Kind::Cache,
            Self::DataOffset | Self::Writeback => Kind::Backing,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BucketSize => "the bucket size",
            Self::Discard => "discarding",
            Self::Replacement => "the replacement policy",
            Self::DataOffset => "the data offset",
            Self::Writeback => "the cache mode",
        }
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
    /// With the default block size there are not enough buckets of two blocks.
    SmallerBlock {
        /// The default.
        default: Sectors,
        /// What is used.
        used: Sectors,
    },
    /// The bucket is too large for version 0, so that the superblock has version 5.
    LargeBucketFeature,
    /// The device is no whole number of buckets.
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
    /// A setting concerns devices of a kind that is not among those to be made.
    SettingUnused {
        /// The setting.
        setting: Setting,
    },
    /// Where the data of a backing device starts, where that was asked for.
    DataOffset {
        /// The offset.
        offset: Sectors,
    },
    /// The set of a backing device was not found, and may have larger blocks.
    SetNotSeen {
        /// The block size of the device.
        block_size: Sectors,
    },
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SmallerBucket { default, used } => write!(
                f,
                "buckets of {used} instead of {default}: the kernel wants at least \
                 {NBUCKETS_MIN} of them"
            ),
            Self::SmallerBlock { default, used } => {
                write!(f, "blocks of {used} instead of {default}: a bucket must hold at least two")
            }
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
            Self::NoDiscard => f.write_str("the device takes no discards: it is not discarded"),
            Self::SettingUnused { setting } => write!(
                f,
                "{} is for {} devices, and none is made: it has no effect",
                setting.name(),
                setting.kind()
            ),
            Self::DataOffset { offset } => {
                write!(f, "the data starts at sector {} (byte {})", offset.0, offset.bytes())
            }
            Self::SetNotSeen { block_size } => write!(
                f,
                "the set was not found here: if its blocks are larger than {block_size}, the kernel \
                 will not attach the device"
            ),
        }
    }
}
