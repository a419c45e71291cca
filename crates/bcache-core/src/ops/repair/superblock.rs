//! Superblocks: a magic that was wiped, a bit that was flipped, a field that was changed, a checksum that
//! is wrong.

use crate::layout::superblock::{BCACHE_MAGIC, SB_JOURNAL_BUCKETS, Superblock};
use crate::ops::repair::Code;
use crate::ops::repair::flip::{changed_field, flipped_bit};

/// Bytes of the magic, from the start of the superblock.
const MAGIC: std::ops::Range<usize> = 24..40;

/// Bytes of the number of journal buckets, on which the length depends that the checksum covers.
const KEYS: std::ops::Range<usize> = 206..208;

/// Byte at which the journal's bucket numbers start.
const KEYS_START: usize = 208;

/// A superblock as it was, where that can be told; `None` for one that is sound, or cannot be told.
///
/// Of [`Code::SuperblockChecksum`] the contents are as they are, and somebody has to vouch for them.
pub(super) fn mended(found: &Superblock) -> Option<(Code, Superblock)> {
    if found.magic_ok() && found.csum_ok() {
        return None;
    }
    if !found.magic_ok() {
        let with_magic = with_magic(found)?;
        // The checksum covers the magic: where it is right again, nothing else was changed.
        if with_magic.csum_ok() {
            return Some((Code::SuperblockMagic, with_magic));
        }
        if let Some(flipped) = without_flip(&with_magic) {
            return Some((Code::SuperblockMagic, flipped));
        }
    }
    if let Some(flipped) = without_flip(found) {
        return Some((Code::FlippedBit, flipped));
    }
    if !found.magic_ok() {
        return None;
    }
    if let Some(restored) = with_field(found) {
        return Some((Code::SuperblockField, restored));
    }
    let mut resealed = found.clone();
    resealed.update_checksum();
    resealed.csum_ok().then_some((Code::SuperblockChecksum, resealed))
}

fn with_magic(found: &Superblock) -> Option<Superblock> {
    let mut bytes = found.as_bytes().to_vec();
    bytes.get_mut(MAGIC)?.copy_from_slice(&BCACHE_MAGIC);
    Superblock::from_bytes(&bytes)
}

fn without_flip(found: &Superblock) -> Option<Superblock> {
    let covered = KEYS_START + 8 * usize::from(found.njournal_buckets());
    let named = found
        .csum_expected()
        .and_then(|expected| flipped_bit(covered, found.csum(), expected))
        .map(|flip| (flip.byte, flip.mask));
    // Where the length itself was changed, the checksum of another length was computed.
    let of_length = KEYS.flat_map(|byte| (0..8).map(move |bit| (byte, 1 << bit)));
    named.into_iter().chain(of_length).find_map(|(byte, mask)| {
        let mut bytes = found.as_bytes().to_vec();
        *bytes.get_mut(byte)? ^= mask;
        Superblock::from_bytes(&bytes).filter(|sb| sb.magic_ok() && sb.csum_ok())
    })
}

fn with_field(found: &Superblock) -> Option<Superblock> {
    let covered = KEYS_START + 8 * usize::from(found.njournal_buckets());
    let named = found
        .csum_expected()
        .and_then(|expected| changed_field(covered, found.csum(), expected))
        .map(|change| {
            let mut bytes = found.as_bytes().to_vec();
            bytes.iter_mut().skip(change.byte).zip(change.masks).for_each(|(byte, it)| *byte ^= it);
            bytes
        });
    let of_length = (0..=SB_JOURNAL_BUCKETS).map(|count| {
        let mut bytes = found.as_bytes().to_vec();
        bytes.splice(KEYS, count.to_le_bytes());
        bytes
    });
    named
        .into_iter()
        .chain(of_length)
        .find_map(|bytes| Superblock::from_bytes(&bytes).filter(|sb| sb.magic_ok() && sb.csum_ok()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache_set::testkit::SetBuilder;
    use crate::layout::superblock::SB_BYTES;

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
