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
