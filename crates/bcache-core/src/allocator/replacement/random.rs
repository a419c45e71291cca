//! RANDOM: any bucket, from a seeded generator.

use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

use crate::units::BucketIndex;

use super::super::table::BucketTable;
use super::Found;

/// Where RANDOM gets its numbers: PCG-64, so that a seed repeats a run.
#[derive(Clone, Debug)]
pub struct RandomSource(Pcg64);

impl RandomSource {
    /// A source whose numbers follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Pcg64::seed_from_u64(seed))
    }

    /// The next bucket to look at: a 64-bit number modulo the number of buckets, as the kernel's.
    pub fn next(&mut self, table: &BucketTable) -> BucketIndex {
        let first = table.first_bucket().0;
        let buckets = table.nbuckets().saturating_sub(first).max(1);
        BucketIndex(first + self.0.next_u64() % buckets)
    }

    /// Proposes buckets to `take` until it has taken `count`, or `nbuckets / 2` were looked at.
    pub fn select(
        &mut self,
        table: &BucketTable,
        count: usize,
        take: &mut dyn FnMut(BucketIndex) -> bool,
    ) -> Found {
        propose(count, table.nbuckets() / 2, || self.next(table), take)
    }
}

/// Proposes what `next` yields until `count` were taken or `limit` were looked at.
pub(super) fn propose(
    count: usize,
    limit: u64,
    mut next: impl FnMut() -> BucketIndex,
    take: &mut dyn FnMut(BucketIndex) -> bool,
) -> Found {
    let mut taken = 0;
    let mut checked = 0;
    while taken < count {
        taken += usize::from(take(next()));
        checked += 1;
        // Also when this very bucket was the last one wanted: the kernel tests the limit first.
        if checked >= limit {
            return if taken < count { Found::GaveUp } else { Found::EnoughButGaveUp };
        }
    }
    Found::Enough
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proposes 0, 1, 2 and so on; how it ended, and what was taken.
    fn proposed(count: usize, limit: u64, takes: &[u64]) -> (Found, Vec<u64>) {
        let (mut next, mut taken) = (0, Vec::new());
        let propose_next = || {
            next += 1;
            BucketIndex(next - 1)
        };
        let found = propose(count, limit, propose_next, &mut |bucket| {
            let takes = takes.contains(&bucket.0);
            taken.extend(takes.then_some(bucket.0));
            takes
        });
        (found, taken)
    }

    #[test]
    fn the_limit_counts_what_was_looked_at() {
        assert_eq!(proposed(2, 10, &[1, 3, 4]), (Found::Enough, vec![1, 3]));
        assert_eq!(proposed(2, 4, &[1, 3, 4]), (Found::EnoughButGaveUp, vec![1, 3]));
        assert_eq!(proposed(2, 3, &[1, 3, 4]), (Found::GaveUp, vec![1]));
        assert_eq!(proposed(0, 3, &[1]), (Found::Enough, vec![]));
    }

    #[test]
    fn it_gives_up_after_half_as_many_as_there_are() {
        let table = BucketTable::new(1000, 10).unwrap();
        let mut looked = 0;
        let found = RandomSource::new(7).select(&table, 1, &mut |_| {
            looked += 1;
            false
        });
        assert_eq!((found, looked), (Found::GaveUp, 500));
    }

    #[test]
    fn a_seed_repeats_a_run() {
        let table = BucketTable::new(1000, 10).unwrap();
        let numbers = |seed| {
            let mut source = RandomSource::new(seed);
            (0..20).map(|_| source.next(&table).0).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        assert!(numbers(7).iter().all(|bucket| (10..1000).contains(bucket)));
    }
}
