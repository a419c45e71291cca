//! What lies where bcache's superblock goes.

use super::bcachefs::Bcachefs;
use super::signature::{Signature, SignatureKind, text_of};
use super::{AlignedBuf, DeviceError, ReadDevice};
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};

/// What the 4 KiB at byte 4096 of a device are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuperblockArea {
    /// The device ends before them.
    TooShort,
    /// Zeroes.
    Blank,
    /// A bcache superblock by its magic. Its checksum and the rest may be wrong.
    Bcache(Superblock),
    /// A bcache superblock without its magic, as `wipefs` leaves it: with the magic put back, as it
    /// is here, the checksum is right.
    MagicWiped(Superblock),
    /// A bcachefs superblock, old or new.
    Bcachefs(Bcachefs),
    /// Something that is neither. What it is, if anything, is for [`probe`](super::probe) to say.
    Unknown,
}

impl SuperblockArea {
    /// Reads it.
    pub fn read(device: &(impl ReadDevice + ?Sized)) -> Result<Self, DeviceError> {
        if device.info().size_bytes < SB_OFFSET_BYTES + SB_BYTES as u64 {
            return Ok(Self::TooShort);
        }
        let mut bytes = AlignedBuf::zeroed(SB_BYTES);
        device.read_at(SB_OFFSET_BYTES, &mut bytes)?;
        Ok(Self::from_bytes(&bytes))
    }

    /// From what stands where a superblock goes; `None` is [`TooShort`](Self::TooShort).
    pub(crate) fn of(found: Option<&Superblock>) -> Self {
        Self::from_bytes(found.map(Superblock::as_bytes).unwrap_or_default())
    }

    /// From the [`SB_BYTES`] bytes at [`SB_OFFSET_BYTES`]; fewer are [`TooShort`](Self::TooShort).
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let Some(mut superblock) = Superblock::from_bytes(bytes) else { return Self::TooShort };
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Blank;
        }
        let has_magic = superblock.magic_ok();
        if has_magic && superblock.csum_ok() {
            return Self::Bcache(superblock);
        }
        if let Some(bcachefs) = Bcachefs::from_bytes(bytes) {
            return Self::Bcachefs(bcachefs);
        }
        if has_magic {
            return Self::Bcache(superblock);
        }
        superblock.restore_magic();
        if superblock.csum_ok() { Self::MagicWiped(superblock) } else { Self::Unknown }
    }

    /// The bcache superblock, its magic in place or put back.
    pub fn superblock(&self) -> Option<&Superblock> {
        match self {
            Self::Bcache(superblock) | Self::MagicWiped(superblock) => Some(superblock),
            Self::TooShort | Self::Blank | Self::Bcachefs(_) | Self::Unknown => None,
        }
    }

    /// Whether it is a bcache superblock without its magic.
    pub(crate) fn is_magic_wiped(&self) -> bool {
        matches!(self, Self::MagicWiped(_))
    }

    /// As a signature, if it is one.
    pub(super) fn signature(&self) -> Option<Signature> {
        let superblock = match self {
            Self::Bcachefs(bcachefs) => return Some(bcachefs.signature()),
            _ => self.superblock()?,
        };
        Some(Signature {
            kind: SignatureKind::Bcache,
            type_name: "bcache".to_owned(),
            label: text_of(&superblock.label()),
            uuid: Some(superblock.uuid().to_string()),
            magic_offset: Some(SB_OFFSET_BYTES + 24),
            copy_offsets: Vec::new(),
            bad_checksum: !superblock.csum_ok(),
            magic_wiped: self.is_magic_wiped(),
            partitions: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::device::bcachefs::BCACHEFS_MAGIC;
    use crate::layout::superblock::{
        BCACHE_MAGIC, BackingParams, CacheMode, CacheParams, Label, Replacement,
    };
    use crate::units::Sectors;

    fn backing(label: &str) -> Superblock {
        Superblock::new_backing(&BackingParams {
            uuid: Uuid::from_u128(1),
            set_uuid: Uuid::from_u128(2),
            label: Label::new(label).unwrap(),
            data_offset: Sectors(16),
            block_size: 8,
            cache_mode: CacheMode::Writeback,
        })
    }

    /// A cache that the kernel has used; `bucket_size` over 65535 sectors makes it version 5.
    fn cache(bucket_size: u64) -> Superblock {
        let mut superblock = Superblock::new_cache(&CacheParams {
            uuid: Uuid::from_u128(3),
            set_uuid: Uuid::from_u128(4),
            label: Label::default(),
            nbuckets: 1000,
            bucket_size: Sectors(bucket_size),
            block_size: 8,
            replacement: Replacement::Lru,
            discard: false,
        });
        superblock.edit(|edit| {
            edit.sync(true).seq(77).journal_buckets(7);
        });
        superblock
    }

    /// A bcachefs superblock as one of its first versions (with bcache's magic) or a later one
    /// writes it.
    fn bcachefs(magic: &[u8; 16], repeats: bool) -> Vec<u8> {
        let mut bytes = vec![0; SB_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &[0x77; 4]);
        put(16, &9u16.to_le_bytes());
        put(24, magic);
        put(40, &[0x11; 16]);
        put(56, &[0x22; 16]);
        put(72, b"a file system");
        put(104, &8u64.to_le_bytes());
        put(120, &8u16.to_le_bytes());
        if repeats {
            put(240, magic);
            put(240 + 18, &[3]);
            for (index, sector) in [8u64, 136, 8064].iter().enumerate() {
                put(240 + 24 + 8 * index, &sector.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn short_blank_and_unknown_areas_are_told_apart() {
        assert_eq!(SuperblockArea::from_bytes(&[]), SuperblockArea::TooShort);
        assert_eq!(SuperblockArea::from_bytes(&[0; SB_BYTES - 1]), SuperblockArea::TooShort);
        assert_eq!(SuperblockArea::from_bytes(&[0; SB_BYTES]), SuperblockArea::Blank);
        let mut bytes = [0; SB_BYTES];
        bytes[SB_BYTES - 1] = 1;
        assert_eq!(SuperblockArea::from_bytes(&bytes), SuperblockArea::Unknown);
    }

    #[test]
    fn a_superblock_is_known_by_its_magic() {
        let superblock = cache(1024);
        let area = SuperblockArea::from_bytes(superblock.as_bytes());
        assert_eq!(area, SuperblockArea::Bcache(superblock.clone()));
        // Damage elsewhere leaves it one.
        let mut bytes = superblock.as_bytes().to_vec();
        bytes[112] ^= 1;
        let area = SuperblockArea::from_bytes(&bytes);
        assert!(matches!(&area, SuperblockArea::Bcache(damaged) if !damaged.csum_ok()));
        assert!(area.signature().unwrap().bad_checksum);
    }

    /// `wipefs` takes the magic to zeroes; other programs to what they write there.
    #[test]
    fn a_superblock_without_its_magic_is_known_by_its_checksum() {
        for superblock in [cache(1024), cache(1 << 17), backing("home")] {
            for wiped in [[0; 16], [0xff; 16], *b"0123456789abcdef", BCACHEFS_MAGIC] {
                let mut bytes = superblock.as_bytes().to_vec();
                bytes[24..40].copy_from_slice(&wiped);
                let area = SuperblockArea::from_bytes(&bytes);
                if wiped == BCACHEFS_MAGIC {
                    // Somebody who has made a file system there does not keep the rest.
                    assert!(matches!(area, SuperblockArea::Bcachefs(_)));
                    continue;
                }
                assert_eq!(area, SuperblockArea::MagicWiped(superblock.clone()));
                assert_eq!(area.superblock(), Some(&superblock));
                assert!(area.signature().unwrap().magic_wiped);
                // One more bit, and it could be anything.
                bytes[40] ^= 1;
                assert_eq!(SuperblockArea::from_bytes(&bytes), SuperblockArea::Unknown);
            }
        }
    }

    #[test]
    fn bcachefs_is_known_by_either_magic() {
        for (magic, repeats) in [
            (BCACHEFS_MAGIC, true),
            (BCACHEFS_MAGIC, false),
            (BCACHE_MAGIC, true),
            (BCACHE_MAGIC, false),
        ] {
            let area = SuperblockArea::from_bytes(&bcachefs(&magic, repeats));
            let SuperblockArea::Bcachefs(found) = &area else { panic!("{area:?}") };
            assert_eq!(found.uuid, Uuid::from_bytes([0x22; 16]));
            assert_eq!(found.label.to_string(), "a file system");
            assert_eq!(found.has_bcache_magic, magic == BCACHE_MAGIC);
            let copies: &[u64] = if repeats { &[136 * 512, 8064 * 512] } else { &[] };
            assert_eq!(found.copies, copies);
            assert_eq!(area.superblock(), None);
            let signature = area.signature().unwrap();
            assert_eq!(signature.kind, SignatureKind::Filesystem);
            assert_eq!(signature.magic_offset, Some(4096 + 24));
        }
    }

    proptest::proptest! {
        /// Nothing on a device makes it panic, and what it takes for bcache's has the checksum or
        /// the magic.
        #[test]
        fn any_bytes_are_survived(
            noise in proptest::collection::vec((0..SB_BYTES, 0u8..), 0..64),
            base in 0..4,
        ) {
            let mut bytes = match base {
                0 => vec![0; SB_BYTES],
                1 => cache(1024).as_bytes().to_vec(),
                2 => bcachefs(&BCACHE_MAGIC, true),
                _ => bcachefs(&BCACHEFS_MAGIC, true),
            };
            for (at, byte) in noise {
                bytes[at] = byte;
            }
            let area = SuperblockArea::from_bytes(&bytes);
            let is_bcache = area.superblock().is_some();
            let has_magic = bytes[24..40] == BCACHE_MAGIC;
            if is_bcache && !has_magic {
                assert!(area.superblock().unwrap().csum_ok());
            }
            let _ = area.signature();
        }
    }
}
