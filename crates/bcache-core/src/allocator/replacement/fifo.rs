//! FIFO: the buckets in device order, from where the last pass stopped.

use crate::units::BucketIndex;

use super::super::table::BucketTable;
use super::Found;

/// `fifo_last_bucket`: the next bucket to look at. In memory only; 0 at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FifoCursor(pub u64);

impl FifoCursor {
    /// The bucket at the cursor, which moves on, wrapping at the ends of `table`.
    pub fn next(&mut self, table: &BucketTable) -> BucketIndex {
        let first = table.first_bucket().0;
        if self.0 < first || self.0 >= table.nbuckets() {
            self.0 = first;
        }
        let bucket = BucketIndex(self.0);
        self.0 = self.0.saturating_add(1);
        bucket
    }

    /// Proposes buckets to `take` until it has taken `count`, or `nbuckets` were looked at.
    pub fn select(
        &mut self,
        table: &BucketTable,
        count: usize,
        take: &mut dyn FnMut(BucketIndex) -> bool,
    ) -> Found {
        super::random::propose(count, table.nbuckets(), || self.next(table), take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_goes_round_from_the_first_bucket_to_the_last() {
        let table = BucketTable::new(13, 10).unwrap();
        let mut cursor = FifoCursor::default();
        let buckets: Vec<u64> = (0..7).map(|_| cursor.next(&table).0).collect();
        assert_eq!(buckets, [10, 11, 12, 10, 11, 12, 10]);
        for (at, bucket) in [(9, 10), (10, 10), (12, 12), (13, 10), (u64::MAX, 10)] {
            assert_eq!(FifoCursor(at).next(&table), BucketIndex(bucket), "{at}");
        }
    }

    #[test]
    fn it_gives_up_after_as_many_as_there_are() {
        let table = BucketTable::new(1000, 10).unwrap();
        let mut looked = 0;
        let found = FifoCursor(0).select(&table, 1, &mut |_| {
            looked += 1;
            false
        });
        assert_eq!((found, looked), (Found::GaveUp, 1000));
    }
}
