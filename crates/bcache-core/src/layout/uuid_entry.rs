//! The table of volumes (docs/on-disk-format.md §4): one bucket, no checksum, no magic.
//!
//! The number of an entry is the inode of the volume's keys.

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::superblock::{Label, SB_LABEL_BYTES, Superblock};
use crate::units::{Sectors, date};

/// The uuid of a slot whose device was detached.
pub const DETACHED_UUID: Uuid = Uuid::from_bytes([
    0xa0, 0x3e, 0xf8, 0xed, 0x3e, 0xe1, 0xb8, 0x78, 0xc8, 0x50, 0xfc, 0x5e, 0xcb, 0x16, 0xcd, 0x99,
]);

const FLAG_FLASH_ONLY: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    uuid: [u8; 16],
    label: [u8; SB_LABEL_BYTES],
    first_reg: U32,
    last_reg: U32,
    invalidated: U32,
    flags: U32,
    sectors: U64,
    pad: [u8; 56],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawV0 {
    uuid: [u8; 16],
    label: [u8; SB_LABEL_BYTES],
    first_reg: U32,
    last_reg: U32,
    invalidated: U32,
    pad: U32,
}

const _: () = {
    assert!(size_of::<Raw>() == 128);
    assert!(std::mem::offset_of!(Raw, flags) == 60);
    assert!(std::mem::offset_of!(Raw, sectors) == 64);
    assert!(size_of::<RawV0>() == 64);
};

/// When the first kernel with bcache came out, 3.10, in seconds since 1970: no clock that is right says less.
const FIRST_RELEASE: u32 = 1_372_550_400;

/// One volume: a backing device that is or was attached, or a flash-only volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UuidEntry {
    /// Of the backing device; zero for an empty slot, [`DETACHED_UUID`] for a detached one.
    pub uuid: Uuid,
    /// Label of the backing device.
    pub label: Label,
    /// First registration, in seconds since 1970.
    pub first_reg: u32,
    /// Last registration.
    pub last_reg: u32,
    /// When it was detached.
    pub invalidated: u32,
    /// All flags.
    pub flags: u32,
    /// Size of a flash-only volume.
    pub sectors: Sectors,
    /// Whether the bytes that no kernel writes are zero.
    pub padding_is_zero: bool,
}

/// That a backing device was registered after its cache was last there: that was away, or is an old copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("registered on {}, after the cache was last there, on {}", date(*registered), date(*seen))]
pub struct RegisteredSince {
    /// When the cache was last there, in seconds since 1970.
    pub seen: u32,
    /// When the backing device was registered.
    pub registered: u32,
}

impl UuidEntry {
    /// A slot that was never used.
    pub fn unused() -> Self {
        Self {
            uuid: Uuid::nil(),
            label: Label::default(),
            first_reg: 0,
            last_reg: 0,
            invalidated: 0,
            flags: 0,
            sectors: Sectors(0),
            padding_is_zero: true,
        }
    }

    /// A flash-only volume, registered at `seconds` since 1970.
    pub(crate) fn new_flash_only(uuid: Uuid, size: Sectors, seconds: u32) -> Self {
        Self {
            uuid,
            first_reg: seconds,
            last_reg: seconds,
            flags: FLAG_FLASH_ONLY,
            sectors: size,
            ..Self::unused()
        }
    }

    /// Whether a kernel may have written this slot. The table has no checksum: what tells it from
    /// other data are the fields that can only have few values (docs/on-disk-format.md §4). A label
    /// tells nothing, for kernels leave garbage behind its end, nor does a time: a machine that starts
    /// without the time registers its devices in 1970.
    pub(crate) fn is_plausible(&self) -> bool {
        self.is_empty()
            || self.padding_is_zero
                && self.flags & !FLAG_FLASH_ONLY == 0
                && (self.flash_only() || self.sectors.0 == 0)
    }

    /// Whether the slot was never used.
    pub fn is_empty(&self) -> bool {
        self.uuid.is_nil()
    }

    /// Whether its device was detached.
    pub fn is_detached(&self) -> bool {
        self.uuid == DETACHED_UUID
    }

    /// When the kernel read `backing`, if that is this volume's superblock, where that is later than the slot tells.
    ///
    /// The kernel writes the time to the slot each time that it attaches the device. The superblock, when it
    /// is next written, gets the time at which it was read: before that. So a cache that was there each time
    /// has the later of the two (docs/on-disk-format.md §4). Where the machine did not have the time then,
    /// nothing is told.
    pub(crate) fn registered_since(&self, backing: &Superblock) -> Option<RegisteredSince> {
        let (seen, registered) = (self.last_reg, backing.last_mount());
        let had_time = seen >= FIRST_RELEASE && seen >= self.first_reg;
        let is_its = self.uuid == backing.uuid() && !self.flash_only();
        (is_its && had_time && registered > seen).then_some(RegisteredSince { seen, registered })
    }

    /// Whether the cache holds the only copy (`UUID_FLASH_ONLY`).
    pub const fn flash_only(&self) -> bool {
        self.flags & FLAG_FLASH_ONLY != 0
    }
}

impl From<&Raw> for UuidEntry {
    fn from(raw: &Raw) -> Self {
        Self {
            uuid: Uuid::from_bytes(raw.uuid),
            label: Label::from_bytes(raw.label),
            first_reg: raw.first_reg.get(),
            last_reg: raw.last_reg.get(),
            invalidated: raw.invalidated.get(),
            flags: raw.flags.get(),
            sectors: Sectors(raw.sectors.get()),
            padding_is_zero: raw.pad.iter().all(|byte| *byte == 0),
        }
    }
}

impl From<&RawV0> for UuidEntry {
    fn from(raw: &RawV0) -> Self {
        Self {
            uuid: Uuid::from_bytes(raw.uuid),
            label: Label::from_bytes(raw.label),
            first_reg: raw.first_reg.get(),
            last_reg: raw.last_reg.get(),
            invalidated: raw.invalidated.get(),
            flags: 0,
            sectors: Sectors(0),
            padding_is_zero: raw.pad.get() == 0,
        }
    }
}

/// Reads the table; what does not make a whole entry at the end is left out.
///
/// `jset_version` is that of the journal entry that names the bucket: below 1, entries are the
/// older, shorter ones, and the table is then taken as the kernel converts it in place.
pub fn parse_table(bytes: &[u8], jset_version: u32) -> Vec<UuidEntry> {
    if jset_version < 1 {
        bytes
            .chunks_exact(size_of::<RawV0>())
            .take(bytes.len() / size_of::<Raw>())
            .filter_map(|chunk| RawV0::ref_from_bytes(chunk).ok())
            .map(UuidEntry::from)
            .collect()
    } else {
        bytes
            .chunks_exact(size_of::<Raw>())
            .filter_map(|chunk| Raw::ref_from_bytes(chunk).ok())
            .map(UuidEntry::from)
            .collect()
    }
}

/// The bytes of `entry`, as a kernel writes them.
pub fn encode(entry: &UuidEntry) -> [u8; 128] {
    let raw = Raw {
        uuid: entry.uuid.into_bytes(),
        label: *entry.label.raw(),
        first_reg: entry.first_reg.into(),
        last_reg: entry.last_reg.into(),
        invalidated: entry.invalidated.into(),
        flags: entry.flags.into(),
        sectors: entry.sectors.0.into(),
        pad: [0; 56],
    };
    zerocopy::transmute!(raw)
}
