//! A set of buckets: one bit for each bucket of the device.

use std::collections::TryReserveError;

use crate::units::BucketIndex;

/// Buckets by number, four megabytes for 33.5 million of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketBits {
    words: Vec<u64>,
    nbuckets: u64,
    len: u64,
}

impl BucketBits {
    /// No bucket, with room for the numbers below `nbuckets`.
    pub fn new(nbuckets: u64) -> Result<Self, TryReserveError> {
        let count = usize::try_from(nbuckets.div_ceil(64)).unwrap_or(usize::MAX);
        let mut words = Vec::new();
        words.try_reserve_exact(count)?;
        words.resize(count, 0);
        Ok(Self { words, nbuckets, len: 0 })
    }

    fn place(bucket: BucketIndex) -> (usize, u64) {
        (usize::try_from(bucket.0 / 64).unwrap_or(usize::MAX), 1 << (bucket.0 % 64))
    }

    /// Adds a bucket; one past the end is left out.
    pub fn insert(&mut self, bucket: BucketIndex) {
        let (index, bit) = Self::place(bucket);
        if let Some(word) = self.words.get_mut(index).filter(|_| bucket.0 < self.nbuckets) {
            self.len += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Whether a bucket is in it.
    pub fn contains(&self, bucket: BucketIndex) -> bool {
        let (index, bit) = Self::place(bucket);
        self.words.get(index).is_some_and(|word| word & bit != 0)
    }

    /// Number of buckets in it.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buckets, ascending.
    pub fn iter(&self) -> impl Iterator<Item = BucketIndex> + '_ {
        (0u64..).step_by(64).zip(&self.words).flat_map(|(first, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                Some(BucketIndex(first + u64::from(bit)))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        #[test]
        fn it_is_a_set(numbers in proptest::collection::vec(0u64..700, 0..60)) {
            let mut bits = BucketBits::new(500).unwrap();
            for &number in &numbers {
                bits.insert(BucketIndex(number));
            }
            let expected: BTreeSet<u64> =
                numbers.iter().copied().filter(|&number| number < 500).collect();
            let found: Vec<u64> = bits.iter().map(|bucket| bucket.0).collect();
            proptest::prop_assert!(found.iter().eq(&expected));
            proptest::prop_assert_eq!(bits.len(), expected.len() as u64);
            proptest::prop_assert_eq!(bits.is_empty(), expected.is_empty());
            for number in 0..700 {
                let contains = bits.contains(BucketIndex(number));
                proptest::prop_assert_eq!(contains, expected.contains(&number));
            }
        }
    }
}
