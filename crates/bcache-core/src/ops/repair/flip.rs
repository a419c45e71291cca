//! Which bit was flipped, where only one was.
//!
//! CRC-64 is linear: flipping a bit changes the checksum by a pattern that depends on the bit's distance
//! from the end alone. So the difference between the checksum stored and the one of the contents names the
//! bit, if it was one. For damage of any other kind, the chance that it names a bit all the same is the
//! number of bits over 2^64.

/// The polynomial, without its leading term (docs/on-disk-format.md §0).
const POLYNOMIAL: u64 = 0x42F0_E1EB_A9EA_3693;

/// A single bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flip {
    /// The byte it is in, from the start of what was looked at.
    pub(super) byte: usize,
    /// The bit in it.
    pub(super) mask: u8,
}

/// The flipped bit of a structure that starts with its checksum, over `bytes`, which are all that it
/// covers and the checksum before them; `stored` and `computed` are the two checksums.
pub(super) fn flipped_bit(bytes: usize, stored: u64, computed: u64) -> Option<Flip> {
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
    }
}
