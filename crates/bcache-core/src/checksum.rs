//! The CRC-64 that bcache's structures carry (docs/on-disk-format.md §0).
//!
//! CRC-64/WE: polynomial `0x42F0E1EBA9EA3693`, most significant bit first, all ones in and out.
//! Btree node sets seed it with the pointer through which the node is reached instead of all ones.

use crc_fast::{CrcAlgorithm, Digest};

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc64We;

/// The checksum of `bytes`, seeded with all ones: superblock, jset, prio_set, bset version 0.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(ALGORITHM, bytes)
}

/// The checksum of `bytes`, seeded with `seed`: bset version 1, where `seed` is the node's pointer.
pub fn crc64_seeded(seed: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(ALGORITHM, seed);
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of docs/on-disk-format.md §0, bit by bit.
    fn model(seed: u64, bytes: &[u8]) -> u64 {
        let mut crc = seed;
        for &byte in bytes {
            crc ^= u64::from(byte) << 56;
            for _ in 0..8 {
                let carry = crc >> 63 != 0;
                crc <<= 1;
                if carry {
                    crc ^= 0x42F0_E1EB_A9EA_3693;
                }
            }
        }
        crc ^ u64::MAX
    }

    #[test]
    fn check_values() {
        assert_eq!(crc64(b"123456789"), 0x62EC_59E3_F1A4_F00A);
        assert_eq!(crc64(b""), 0);
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_the_bitwise_rule(seed: u64, bytes in proptest::collection::vec(0u8.., 0..700)) {
            proptest::prop_assert_eq!(crc64(&bytes), model(u64::MAX, &bytes));
            proptest::prop_assert_eq!(crc64_seeded(seed, &bytes), model(seed, &bytes));
        }
    }
}
