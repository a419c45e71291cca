//! The superblock of cache and backing devices (docs/on-disk-format.md §1).
//!
//! ```text
//! 0     csum      CRC-64 over [8, 208 + 8 * keys)
//! 8     offset    8: the sector of this superblock
//! 16    version   0, 3, 5 cache; 1, 4, 6 backing
//! 24    magic     16 bytes
//! 40    uuid      of this device
//! 56    set_uuid  of the cache set
//! 72    label     32 bytes, not necessarily terminated
//! 104   flags     different bits on cache and backing devices
//! 112   seq       + 1 on each write by the kernel
//! 120   feature_compat, feature_incompat, feature_ro_compat   versions 5 and 6
//! 144   pad
//! 184   nbuckets, or data_offset (sectors) on a backing device
//! 192   block_size (sectors), bucket_size (sectors, or log2 of them)
//! 196   nr_in_set, nr_this_dev
//! 200   last_mount (seconds)
//! 204   first_bucket, keys (number of journal buckets)
//! 208   d[256]    numbers of the journal buckets
//! 2256  obso_bucket_size_hi, outside of the checksum
//! ```
//!
//! One copy only, at byte 4096, written as 4096 bytes. A single sector write updates everything
//! that is checked except the tail of `d`, so a superblock that the kernel writes can tear there;
//! the checksum tells.

mod editor;
mod fields;
mod label;
mod params;

use std::fmt;

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::crc64;
use crate::layout::SetMagic;
use crate::units::{Geometry, Sectors};

pub use editor::Editor;
pub use fields::{BackingState, CacheMode, Kind, Replacement};
pub use label::Label;
pub use params::{BackingParams, CacheParams};

/// Sector at which the superblock stands.
pub const SB_SECTOR: u64 = 8;

/// Byte at which the superblock stands.
pub const SB_OFFSET_BYTES: u64 = 4096;

/// Bytes that are read and written for a superblock.
pub const SB_BYTES: usize = 4096;

/// Most journal buckets that a superblock names (`SB_JOURNAL_BUCKETS`).
pub const SB_JOURNAL_BUCKETS: u16 = 256;

/// Bytes of a label.
pub const SB_LABEL_BYTES: usize = 32;

/// Data offset of backing devices of version 1, in sectors (`BDEV_DATA_START_DEFAULT`).
pub const BDEV_DATA_START_DEFAULT: Sectors = Sectors(16);

/// The magic of every bcache superblock.
pub const BCACHE_MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];

/// Cache device without uuid in its name; the kernel turns it into version 3.
pub const VERSION_CDEV: u64 = 0;
/// Backing device.
pub const VERSION_BDEV: u64 = 1;
/// Cache device with 128-byte uuid entries.
pub const VERSION_CDEV_WITH_UUID: u64 = 3;
/// Backing device with a data offset of its own.
pub const VERSION_BDEV_WITH_OFFSET: u64 = 4;
/// Cache device with feature words.
pub const VERSION_CDEV_WITH_FEATURES: u64 = 5;
/// Backing device with feature words.
pub const VERSION_BDEV_WITH_FEATURES: u64 = 6;

/// Incompatible feature: `bucket_size` continues in `obso_bucket_size_hi` (obsolete).
pub const FEATURE_INCOMPAT_OBSO_LARGE_BUCKET: u64 = 1;
/// Incompatible feature: `bucket_size` is the binary logarithm of the size in sectors.
pub const FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE: u64 = 2;
/// The incompatible features that kernels know.
pub const FEATURE_INCOMPAT_SUPPORTED: u64 = 3;

const FLAG_CACHE_SYNC: u64 = 1;
const FLAG_CACHE_DISCARD: u64 = 2;
const CACHE_REPLACEMENT_SHIFT: u32 = 2;
const CACHE_REPLACEMENT_MASK: u64 = 7;
const CACHE_FLAGS_KNOWN: u64 = 0b1_1111;
const BDEV_CACHE_MODE_MASK: u64 = 0xf;
const BDEV_STATE_SHIFT: u32 = 61;
const BDEV_STATE_MASK: u64 = 3;
const BDEV_FLAGS_KNOWN: u64 = BDEV_CACHE_MODE_MASK | BDEV_STATE_MASK << BDEV_STATE_SHIFT;

const CSUM_START: usize = 8;
const KEYS_START: usize = 208;

/// The structure as it lies on the device (`cache_sb_disk`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    csum: U64,
    offset: U64,
    version: U64,
    magic: [u8; 16],
    uuid: [u8; 16],
    set_uuid: [u8; 16],
    label: [u8; SB_LABEL_BYTES],
    flags: U64,
    seq: U64,
    feature_compat: U64,
    feature_incompat: U64,
    feature_ro_compat: U64,
    pad: [u8; 40],
    nbuckets: U64,
    block_size: U16,
    bucket_size: U16,
    nr_in_set: U16,
    nr_this_dev: U16,
    last_mount: U32,
    first_bucket: U16,
    keys: U16,
    d: [U64; SB_JOURNAL_BUCKETS as usize],
    obso_bucket_size_hi: U16,
    tail: [u8; SB_BYTES - 2258],
}

const _: () = {
    assert!(size_of::<Raw>() == SB_BYTES);
    assert!(std::mem::offset_of!(Raw, uuid) == 40);
    assert!(std::mem::offset_of!(Raw, set_uuid) == 56);
    assert!(std::mem::offset_of!(Raw, label) == 72);
    assert!(std::mem::offset_of!(Raw, flags) == 104);
    assert!(std::mem::offset_of!(Raw, feature_compat) == 120);
    assert!(std::mem::offset_of!(Raw, nbuckets) == 184);
    assert!(std::mem::offset_of!(Raw, block_size) == 192);
    assert!(std::mem::offset_of!(Raw, last_mount) == 200);
    assert!(std::mem::offset_of!(Raw, keys) == 206);
    assert!(std::mem::offset_of!(Raw, d) == KEYS_START);
    assert!(std::mem::offset_of!(Raw, obso_bucket_size_hi) == 2256);
};

/// Largest bucket that versions 0 and 3 can tell: a u16 of sectors, a power of two.
pub const BUCKET_SIZE_MAX_V3: Sectors = Sectors(32768);

/// make-bcache's bucket size on backing devices, where nobody reads it.
const BACKING_BUCKET_SIZE: u16 = 1024;

/// The first bucket that starts behind the superblock (`23 / bucket_size + 1`,
/// docs/on-disk-format.md §1.5).
pub(crate) fn first_bucket_for(bucket_size: Sectors) -> u16 {
    u16::try_from(23 / bucket_size.0.max(1) + 1).unwrap_or(24)
}

/// A superblock, as read or as it will be written: always [`SB_BYTES`] bytes, all of them kept.
#[derive(Clone)]
pub struct Superblock {
    raw: Box<Raw>,
}

impl PartialEq for Superblock {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Superblock {}

impl Superblock {
    /// From the [`SB_BYTES`] bytes at [`SB_OFFSET_BYTES`] of a device; `None` if there are fewer.
    ///
    /// Any content is taken: whether it is a superblock is for [`Self::magic_ok`], the checksum and
    /// the [verdict](crate::layout::verdict) to say.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
        Some(Self { raw: Box::new(raw) })
    }

    /// The bytes as they are.
    pub fn as_bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    fn empty(version: u64, uuid: Uuid, set_uuid: Uuid, label: Label, block_size: u16) -> Self {
        let mut raw = Box::new(Raw::new_zeroed());
        raw.offset = SB_SECTOR.into();
        raw.version = version.into();
        raw.magic = BCACHE_MAGIC;
        raw.uuid = uuid.into_bytes();
        raw.set_uuid = set_uuid.into_bytes();
        raw.label = *label.raw();
        raw.block_size = block_size.into();
        Self { raw }
    }

    /// A new cache device's superblock, unsynced: the kernel initialises the rest at registration.
    ///
    /// Version 0 as make-bcache writes it; 5 with `LOG_LARGE_BUCKET_SIZE` where the bucket is
    /// larger than [`BUCKET_SIZE_MAX_V3`]. Whether the kernel takes it is for the
    /// [verdict](crate::layout::verdict) to say.
    pub fn new_cache(params: &CacheParams) -> Self {
        let large = params.bucket_size > BUCKET_SIZE_MAX_V3;
        let version = if large { VERSION_CDEV_WITH_FEATURES } else { VERSION_CDEV };
        let mut sb =
            Self::empty(version, params.uuid, params.set_uuid, params.label, params.block_size);
        let raw = &mut sb.raw;
        if large {
            raw.feature_incompat = FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE.into();
        }
        let bucket_size = if large {
            u16::try_from(params.bucket_size.0.trailing_zeros()).unwrap_or(u16::MAX)
        } else {
            u16::try_from(params.bucket_size.0).unwrap_or(u16::MAX)
        };
        raw.bucket_size = bucket_size.into();
        raw.nbuckets = params.nbuckets.into();
        raw.nr_in_set = 1.into();
        raw.first_bucket = first_bucket_for(params.bucket_size).into();
        let discard = if params.discard { FLAG_CACHE_DISCARD } else { 0 };
        let replacement = u64::from(params.replacement.to_raw()) << CACHE_REPLACEMENT_SHIFT;
        raw.flags = (discard | replacement).into();
        sb.update_checksum();
        sb
    }

    /// A new backing device's superblock: version 1, or 4 where the data offset is not 16.
    pub fn new_backing(params: &BackingParams) -> Self {
        let has_offset = params.data_offset != BDEV_DATA_START_DEFAULT;
        let version = if has_offset { VERSION_BDEV_WITH_OFFSET } else { VERSION_BDEV };
        let mut sb =
            Self::empty(version, params.uuid, params.set_uuid, params.label, params.block_size);
        if has_offset {
            sb.raw.nbuckets = params.data_offset.0.into();
        }
        sb.raw.bucket_size = BACKING_BUCKET_SIZE.into();
        sb.raw.flags = u64::from(params.cache_mode.to_raw()).into();
        sb.update_checksum();
        sb
    }

    /// Checksum stored.
    pub fn csum(&self) -> u64 {
        self.raw.csum.get()
    }

    /// Checksum of the contents, or `None` where `keys` makes it reach past the bytes that are
    /// read: the kernel would read whatever memory follows.
    pub fn csum_expected(&self) -> Option<u64> {
        let end = KEYS_START + 8 * usize::from(self.raw.keys.get());
        self.as_bytes().get(CSUM_START..end).map(crc64)
    }

    /// Whether the checksum stored is that of the contents.
    pub fn csum_ok(&self) -> bool {
        self.csum_expected() == Some(self.csum())
    }

    /// Stores the checksum of the contents; leaves it where [`Self::csum_expected`] has none.
    pub fn update_checksum(&mut self) {
        if let Some(csum) = self.csum_expected() {
            self.raw.csum = csum.into();
        }
    }

    /// The sector where this superblock says it stands.
    pub fn offset(&self) -> u64 {
        self.raw.offset.get()
    }

    /// Version.
    pub fn version(&self) -> u64 {
        self.raw.version.get()
    }

    /// Whether the magic is bcache's.
    pub fn magic_ok(&self) -> bool {
        self.raw.magic == BCACHE_MAGIC
    }

    /// Puts the magic in place; the checksum stays as it is.
    pub(crate) fn restore_magic(&mut self) {
        self.raw.magic = BCACHE_MAGIC;
    }

    /// Kind of device by version; `None` for a version that no kernel knows.
    pub fn kind(&self) -> Option<Kind> {
        match self.version() {
            VERSION_CDEV | VERSION_CDEV_WITH_UUID | VERSION_CDEV_WITH_FEATURES => Some(Kind::Cache),
            VERSION_BDEV | VERSION_BDEV_WITH_OFFSET | VERSION_BDEV_WITH_FEATURES => {
                Some(Kind::Backing)
            }
            _ => None,
        }
    }

    /// Uuid of the device.
    pub fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.raw.uuid)
    }

    /// Uuid of the set.
    pub fn set_uuid(&self) -> Uuid {
        Uuid::from_bytes(self.raw.set_uuid)
    }

    /// What the set's uuid makes the magics of its other structures.
    pub(crate) fn set_magic(&self) -> SetMagic {
        SetMagic::from_set_uuid(&self.set_uuid())
    }

    /// Label.
    pub fn label(&self) -> Label {
        Label(self.raw.label)
    }

    /// All flags.
    pub fn flags(&self) -> u64 {
        self.raw.flags.get()
    }

    /// The flags that no kernel gives a meaning on this kind of device.
    pub fn flags_unknown(&self) -> u64 {
        match self.kind() {
            Some(Kind::Cache) => self.flags() & !CACHE_FLAGS_KNOWN,
            Some(Kind::Backing) => self.flags() & !BDEV_FLAGS_KNOWN,
            None => self.flags(),
        }
    }

    /// Number of writes by the kernel; never compared by kernels since 5.10.
    pub fn seq(&self) -> u64 {
        self.raw.seq.get()
    }

    /// Compatible features; read by the kernel in version 5 only.
    pub fn feature_compat(&self) -> u64 {
        self.raw.feature_compat.get()
    }

    /// Incompatible features; read by the kernel in version 5 only.
    pub fn feature_incompat(&self) -> u64 {
        self.raw.feature_incompat.get()
    }

    /// Read-only compatible features; read by the kernel in version 5 only.
    pub fn feature_ro_compat(&self) -> u64 {
        self.raw.feature_ro_compat.get()
    }

    /// Buckets of a cache device.
    pub fn nbuckets(&self) -> u64 {
        self.raw.nbuckets.get()
    }

    /// Where the data of a backing device starts: 16 for version 1, which has no field for it.
    pub fn data_offset(&self) -> Sectors {
        match self.version() {
            VERSION_BDEV_WITH_OFFSET | VERSION_BDEV_WITH_FEATURES => Sectors(self.nbuckets()),
            _ => BDEV_DATA_START_DEFAULT,
        }
    }

    /// Size of a block.
    pub fn block_size(&self) -> Sectors {
        Sectors(self.raw.block_size.get().into())
    }

    /// The field `bucket_size` undecoded.
    pub fn bucket_size_raw(&self) -> u16 {
        self.raw.bucket_size.get()
    }

    /// The field `obso_bucket_size_hi`, which the checksum does not cover.
    pub(crate) fn obso_bucket_size_hi(&self) -> u16 {
        self.raw.obso_bucket_size_hi.get()
    }

    /// Size of a bucket as the kernel decodes it (docs/on-disk-format.md §1.3).
    ///
    /// A logarithm over 31 wraps as the kernel's shift does on x86; the kernel only logs that it
    /// overflows.
    pub fn bucket_size(&self) -> Sectors {
        let raw = self.bucket_size_raw();
        let incompat =
            if self.version() >= VERSION_CDEV_WITH_FEATURES { self.feature_incompat() } else { 0 };
        Sectors(if incompat & FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE != 0 {
            u64::from(1u32.wrapping_shl(raw.into()))
        } else if incompat & FEATURE_INCOMPAT_OBSO_LARGE_BUCKET != 0 {
            u64::from(raw) | u64::from(self.obso_bucket_size_hi()) << 16
        } else {
            raw.into()
        })
    }

    /// Devices in the set.
    pub fn nr_in_set(&self) -> u16 {
        self.raw.nr_in_set.get()
    }

    /// Number of this device in the set.
    pub fn nr_this_dev(&self) -> u16 {
        self.raw.nr_this_dev.get()
    }

    /// When the kernel last registered the device, in seconds since 1970.
    pub fn last_mount(&self) -> u32 {
        self.raw.last_mount.get()
    }

    /// First bucket for journal and data.
    pub fn first_bucket(&self) -> u16 {
        self.raw.first_bucket.get()
    }

    /// Number of journal buckets (`keys`).
    pub fn njournal_buckets(&self) -> u16 {
        self.raw.keys.get()
    }

    /// Numbers of the journal buckets; at most 256, however many [`Self::njournal_buckets`] claims.
    pub fn journal_buckets(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.raw.d.iter().take(self.njournal_buckets().into()).map(|bucket| bucket.get())
    }

    /// `CACHE_SYNC`: journal and btree on the device are valid.
    pub fn sync(&self) -> bool {
        self.flags() & FLAG_CACHE_SYNC != 0
    }

    /// `CACHE_DISCARD`.
    pub fn discard(&self) -> bool {
        self.flags() & FLAG_CACHE_DISCARD != 0
    }

    /// `CACHE_REPLACEMENT` undecoded: 0 to 7.
    pub fn replacement_raw(&self) -> u8 {
        let value = self.flags() >> CACHE_REPLACEMENT_SHIFT & CACHE_REPLACEMENT_MASK;
        u8::try_from(value).unwrap_or(u8::MAX)
    }

    /// `CACHE_REPLACEMENT`, or `None` for a value that no kernel knows.
    pub fn replacement(&self) -> Option<Replacement> {
        Replacement::from_raw(self.replacement_raw())
    }

    /// `BDEV_CACHE_MODE` undecoded: 0 to 15.
    pub fn cache_mode_raw(&self) -> u8 {
        u8::try_from(self.flags() & BDEV_CACHE_MODE_MASK).unwrap_or(u8::MAX)
    }

    /// `BDEV_CACHE_MODE`, or `None` for a value that no kernel knows.
    pub fn cache_mode(&self) -> Option<CacheMode> {
        CacheMode::from_raw(self.cache_mode_raw())
    }

    /// `BDEV_STATE`.
    pub fn state(&self) -> BackingState {
        BackingState::from_bits(self.flags() >> BDEV_STATE_SHIFT)
    }

    /// The geometry of a cache device, where its figures make sense.
    pub fn geometry(&self) -> Option<Geometry> {
        if self.kind() != Some(Kind::Cache) {
            return None;
        }
        Geometry::new(
            self.nbuckets(),
            self.first_bucket().into(),
            self.bucket_size(),
            self.block_size(),
        )
    }

    /// Sets single fields and then the checksum.
    pub fn edit(&mut self, change: impl FnOnce(&mut Editor<'_>)) {
        change(&mut Editor { raw: &mut self.raw });
        self.update_checksum();
    }
}

impl fmt::Debug for Superblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Superblock")
            .field("version", &self.version())
            .field("uuid", &self.uuid())
            .field("set_uuid", &self.set_uuid())
            .field("flags", &self.flags())
            .field("nbuckets", &self.nbuckets())
            .field("bucket_size", &self.bucket_size_raw())
            .field("block_size", &self.block_size())
            .field("njournal_buckets", &self.njournal_buckets())
            .finish_non_exhaustive()
    }
}
