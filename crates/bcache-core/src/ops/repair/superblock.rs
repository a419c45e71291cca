//! Superblocks: a magic that was wiped, a bit that was flipped, a field that was changed, a checksum that
//! is wrong.

use crate::layout::damage::{Damage, restored};
use crate::layout::superblock::Superblock;
use crate::ops::repair::Code;

/// A superblock as it was, where that can be told; `None` for one that is sound, or cannot be told.
///
/// Of [`Code::SuperblockChecksum`] the contents are as they are, and somebody has to vouch for them.
pub(super) fn mended(found: &Superblock) -> Option<(Code, Superblock)> {
    if let Some((damage, restored)) = restored(found) {
        let code = match damage {
            Damage::Magic => Code::SuperblockMagic,
            Damage::Bit => Code::FlippedBit,
            Damage::Field => Code::SuperblockField,
        };
        return Some((code, restored));
    }
    if found.csum_ok() || !found.magic_ok() {
        return None;
    }
    let mut resealed = found.clone();
    resealed.update_checksum();
    resealed.csum_ok().then_some((Code::SuperblockChecksum, resealed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache_set::testkit::SetBuilder;
    use crate::layout::damage::KEYS;
    use crate::layout::superblock::SB_BYTES;

    /// Bytes of the magic, from the start of the superblock.
    const MAGIC: std::ops::Range<usize> = 24..40;

    proptest! {
        /// Any flipped bit under the checksum is flipped back, and a magic that was wiped returns.
        #[test]
        fn a_bit_or_the_magic_is_restored(bit in 0usize..(208 + 64) * 8, wiped: bool) {
            let sound = SetBuilder::default().superblock();
            prop_assert_eq!(sound.njournal_buckets(), 8);
            let mut bytes = sound.as_bytes().to_vec();
            if wiped {
                bytes[MAGIC].fill(0);
            } else {
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            let found = Superblock::from_bytes(&bytes).unwrap();
            let (code, mended) = mended(&found).unwrap();
            let in_magic = wiped || MAGIC.contains(&(bit / 8));
            let expected = if in_magic { Code::SuperblockMagic } else { Code::FlippedBit };
            prop_assert_eq!(code, expected);
            prop_assert_eq!(mended.as_bytes(), sound.as_bytes());
        }
    }

    proptest! {
        /// Any value of any field that has up to four bytes is put back.
        #[test]
        fn a_field_is_restored(at in 20usize..135, value: [u8; 4], bytes in 1usize..=4) {
            let sound = SetBuilder::default().superblock();
            let at = at * 2;
            let width = if KEYS.contains(&at) { 2 } else { bytes };
            prop_assume!(at + width <= KEYS.start || at >= KEYS.start);
            let mut changed = sound.as_bytes().to_vec();
            changed[at..at + width].copy_from_slice(&value[..width]);
            prop_assume!(changed != sound.as_bytes());
            let found = Superblock::from_bytes(&changed).unwrap();
            let (code, mended) = mended(&found).unwrap();
            prop_assert!(matches!(code, Code::SuperblockField | Code::FlippedBit), "{code:?}");
            prop_assert_eq!(mended.as_bytes(), sound.as_bytes());
        }
    }

    #[test]
    fn what_is_none_is_not_mended() {
        let sound = SetBuilder::default().superblock();
        assert!(mended(&sound).is_none());
        assert!(mended(&Superblock::from_bytes(&[0; SB_BYTES]).unwrap()).is_none());
        // The checksum is gone: the rest may be right.
        let mut bytes = sound.as_bytes().to_vec();
        bytes[..8].fill(0x55);
        let (code, resealed) = mended(&Superblock::from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!((code, resealed.as_bytes()), (Code::SuperblockChecksum, sound.as_bytes()));
        // Neither magic nor anything that vouches for the rest.
        bytes[MAGIC].fill(0);
        assert!(mended(&Superblock::from_bytes(&bytes).unwrap()).is_none());
    }
}
