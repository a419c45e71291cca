//! bcachefs superblocks, which stand where bcache's do.
//!
//! bcachefs grew out of bcache. Its first versions kept bcache's magic, with another layout behind
//! it; later ones have a magic of their own. Older libblkid knows neither, so they are recognised
//! here.
//!
//! ```text
//! 0    csum      16 bytes
//! 16   version, version_min (u16 each)
//! 24   magic     16 bytes
//! 40   uuid      of the file system inside
//! 56   user_uuid the UUID that is shown
//! 72   label     32 bytes
//! 104  offset    8: the sector of this superblock
//! 240  layout    512 bytes: magic, type, size, count; sectors of all copies at 240 + 24
//! ```

use serde::Serialize;
use uuid::Uuid;

use super::signature::{Signature, SignatureKind, text_of};
use crate::layout::superblock::{BCACHE_MAGIC, Label, SB_OFFSET_BYTES, SB_SECTOR};
use crate::units::SECTOR_BYTES;

/// The magic that bcachefs has had since it left bcache's.
pub(super) const BCACHEFS_MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
];

const MAGIC: usize = 24;
const USER_UUID: usize = 56;
const LABEL: usize = 72;
const OFFSET: usize = 104;
const LAYOUT: usize = 240;
const LAYOUT_COUNT: usize = LAYOUT + 18;
const LAYOUT_OFFSETS: usize = LAYOUT + 24;

/// Most copies that the layout has room for.
const COPIES_MAX: u8 = 61;

/// A bcachefs superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bcachefs {
    /// The UUID that users see.
    pub uuid: Uuid,
    /// Its label; empty where it has none.
    pub label: Label,
    /// Whether it is of a version that had bcache's magic.
    pub has_bcache_magic: bool,
    /// Byte offsets of the other copies of the superblock, from the start of the device.
    pub copies: Vec<u64>,
}

impl Bcachefs {
    /// From the bytes where a bcache superblock would be.
    ///
    /// Behind bcache's own magic, it is bcachefs if the magic comes again in the layout, or if the
    /// number of its sector is in bcachefs's place and not in bcache's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let magic = field::<16>(bytes, MAGIC)?;
        let repeats = field::<16>(bytes, LAYOUT)? == magic;
        let is_bcachefs = if magic == BCACHEFS_MAGIC {
            true
        } else if magic == BCACHE_MAGIC {
            let is_bcache = u64::from_le_bytes(field(bytes, 8)?) == SB_SECTOR;
            repeats || (!is_bcache && u64::from_le_bytes(field(bytes, OFFSET)?) == SB_SECTOR)
        } else {
            false
        };
        is_bcachefs.then(|| Self {
            uuid: Uuid::from_bytes(field(bytes, USER_UUID).unwrap_or_default()),
            label: Label::from_bytes(field(bytes, LABEL).unwrap_or_default()),
            has_bcache_magic: magic == BCACHE_MAGIC,
            copies: if repeats { copies(bytes) } else { Vec::new() },
        })
    }

    /// As a signature, with offsets in bytes.
    pub(super) fn signature(&self) -> Signature {
        let magic = |at: u64| at.saturating_add(MAGIC as u64);
        Signature {
            kind: SignatureKind::Filesystem,
            type_name: "bcachefs".to_owned(),
            label: text_of(&self.label),
            uuid: Some(self.uuid.to_string()),
            magic_offset: Some(magic(SB_OFFSET_BYTES)),
            copy_offsets: self.copies.iter().map(|at| magic(*at)).collect(),
            bad_checksum: false,
            magic_wiped: false,
            partitions: Vec::new(),
        }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The copies that the layout lists, without the one that it was read from.
fn copies(bytes: &[u8]) -> Vec<u64> {
    let count = bytes.get(LAYOUT_COUNT).copied().unwrap_or(0).min(COPIES_MAX);
    (0..usize::from(count))
        .filter_map(|index| field(bytes, LAYOUT_OFFSETS + 8 * index))
        .map(u64::from_le_bytes)
        .filter(|sector| *sector != SB_SECTOR)
        .filter_map(|sector| sector.checked_mul(SECTOR_BYTES))
        .collect()
}
