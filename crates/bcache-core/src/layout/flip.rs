//! Which bit was flipped, where only one was; which field was changed, where only one was.
//!
//! CRC-64 is linear: flipping a bit changes the checksum by a pattern that depends on the bit's distance
//! from the end alone. So the difference between the checksum stored and the one of the contents names the
//! bit, if it was one. For damage of any other kind, the chance that it names a bit all the same is the
//! number of bits over 2^64.
//!
//! Of a change to 32 bits in a row the difference is that change, shifted by its distance from the end.
//! So the difference is shifted back step by step, until 32 bits are left of it. For damage of any other
//! kind, the chance that they are is the number of places over 2^32.

/// The polynomial, without its leading term (docs/on-disk-format.md §0).
const POLYNOMIAL: u64 = 0x42F0_E1EB_A9EA_3693;

/// A single bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flip {
    /// The byte it is in, from the start of what was looked at.
    pub(crate) byte: usize,
    /// The bit in it.
    pub(crate) mask: u8,
}

/// The flipped bit of a structure that starts with its checksum, over `bytes`, which are all that it
/// covers and the checksum before them; `stored` and `computed` are the two checksums.
pub(crate) fn flipped_bit(bytes: usize, stored: u64, computed: u64) -> Option<Flip> {
    const CSUM_BYTES: usize = 8;
    let difference = stored ^ computed;
    if difference.is_power_of_two() {
        // It is in the checksum itself.
        let bit = usize::try_from(difference.trailing_zeros()).ok()?;
        return Some(Flip { byte: bit / 8, mask: 1 << (bit % 8) });
    }
    let mut pattern = POLYNOMIAL;
    for byte in (CSUM_BYTES..bytes).rev() {
        for bit in 0..8u8 {
            if pattern == difference {
                return Some(Flip { byte, mask: 1 << bit });
            }
            let carry = pattern >> 63 != 0;
            pattern <<= 1;
            if carry {
                pattern ^= POLYNOMIAL;
            }
        }
    }
    None
}

/// A change within four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The first of them, from the start of what was looked at.
    pub(crate) byte: usize,
    /// The bits that are not what they were.
    pub(crate) masks: [u8; 4],
}

/// The change within four bytes, behind the checksum and at an even distance from the end, that makes
/// the difference between the two checksums; the arguments are those of [`flipped_bit`].
pub(crate) fn changed_field(bytes: usize, stored: u64, computed: u64) -> Option<Change> {
    const FIELD_BYTES: usize = 4;
    // The bit at distance 0 has the pattern x^64.
    let mut left = shifted_back(stored ^ computed, 64);
    for byte in (8..=bytes.checked_sub(FIELD_BYTES)?).rev().step_by(2) {
        if let Ok(change) = u32::try_from(left) {
            return Some(Change { byte, masks: change.to_be_bytes() });
        }
        left = shifted_back(left, 16);
    }
    None
}

/// A remainder divided by x, `times` times.
fn shifted_back(mut remainder: u64, times: u32) -> u64 {
    for _ in 0..times {
        // Only a multiple of x can be halved: the polynomial, with its leading term, makes it one.
        remainder = match remainder & 1 {
            0 => remainder >> 1,
            _ => (remainder ^ POLYNOMIAL) >> 1 | 1 << 63,
        };
    }
    remainder
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::crc64_seeded;

    proptest! {
        /// Any single bit is found, and what is not a single bit is not taken for one.
        #[test]
        fn one_bit_is_named_and_two_are_none(
            seed: u64, mut bytes in prop::collection::vec(any::<u8>(), 9..600), place: u32, other: u32,
        ) {
            let csum = crc64_seeded(seed, &bytes[8..]);
            bytes[..8].copy_from_slice(&csum.to_le_bytes());
            let bits = u32::try_from(bytes.len() * 8).unwrap();
            let flip = |bytes: &mut Vec<u8>, bit: u32| {
                bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
            };
            let find = |bytes: &[u8]| {
                let stored = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                flipped_bit(bytes.len(), stored, crc64_seeded(seed, &bytes[8..]))
            };
            let (place, other) = (place % bits, other % bits);
            flip(&mut bytes, place);
            let expected =
                Flip { byte: usize::try_from(place / 8).unwrap(), mask: 1 << (place % 8) };
            prop_assert_eq!(find(&bytes), Some(expected));
            prop_assume!(place != other);
            flip(&mut bytes, other);
            prop_assert_eq!(find(&bytes), None);
        }

        /// A change within four bytes is found; what is changed in two places is not taken for one.
        #[test]
        fn one_field_is_named_and_two_are_none(
            mut bytes in prop::collection::vec(any::<u8>(), 5..300), place: usize, change: [u8; 4],
            other: usize,
        ) {
            prop_assume!(change != [0; 4]);
            // An even number of bytes, as superblocks have.
            bytes.truncate(bytes.len() & !1);
            bytes.splice(0..0, [0; 8]);
            let computed = crc64_seeded(!0, &bytes[8..]);
            let at = |place: usize| 8 + place % ((bytes.len() - 8) / 2 - 1) * 2;
            let (place, other) = (at(place), at(other));
            let change_at = |bytes: &mut Vec<u8>, place: usize| {
                for (byte, mask) in bytes[place..].iter_mut().zip(change) {
                    *byte ^= mask;
                }
            };
            let find = |bytes: &[u8]| {
                changed_field(bytes.len(), computed, crc64_seeded(!0, &bytes[8..]))
            };
            let sound = bytes.clone();
            change_at(&mut bytes, place);
            let found = find(&bytes).unwrap();
            let mut mended = bytes.clone();
            for (byte, mask) in mended[found.byte..].iter_mut().zip(found.masks) {
                *byte ^= mask;
            }
            prop_assert_eq!(mended, sound);
            prop_assume!(place.abs_diff(other) >= 4);
            change_at(&mut bytes, other);
            prop_assert_eq!(find(&bytes), None);
        }
    }
}
