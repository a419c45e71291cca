//! Buckets that nothing points to, for the Prio and Btree reserves.

use crate::units::BucketIndex;

use super::super::mark::Mark;
use super::super::reserves::Reserve;
use super::super::sync::lock;
use super::super::words::{Cold, Hot};
use super::Refiller;

/// Whether the last GC has found no pointer to a bucket's gen or an older one: a pointer that is older
/// than the gen lowers `last_gc`, also a stale one (on-disk-format.md §6.2 step 1).
fn is_unreferenced(cold: Cold) -> bool {
    cold.gc_gen() == 0
}

impl Refiller<'_> {
    /// Fills Prio and Btree with unmarked buckets, ascending, as the first GC at registration does
    /// (on-disk-format.md §6.6). Returns how many.
    ///
    /// All gens are those of the device then, so that a pointer that is stale now is stale after a
    /// crash too. Of a cache in use that is not so: see [`fill_unreferenced`](Self::fill_unreferenced).
    pub fn initial_fill(&self) -> usize {
        self.fill(|_| true)
    }

    /// Fills Prio and Btree while the cache is in use, with buckets that are
    /// [`ReuseReason::Unreferenced`](super::super::lifecycle::ReuseReason). Returns how many; none while a GC runs or prios are blocked.
    ///
    /// Those that a pass has taken already go from `free_inc` to Prio: on a full cache, the buckets of a
    /// chain that failed are the first that a pass takes, and the only ones for the next chain.
    pub fn fill_unreferenced(&self) -> usize {
        self.fill(is_unreferenced) + self.fill_from_free_inc()
    }

    fn fill_from_free_inc(&self) -> usize {
        // No GC can begin or end before the lock is given up.
        let _refill = self.core.refill();
        if !self.core.table.gc_mark_valid() || self.core.set.prio_blocked() != 0 {
            return 0;
        }
        let mut chosen: Vec<_> = lock(&self.core.free_inc).waiting().collect();
        chosen.retain(|&bucket| {
            self.core.table.hint(bucket).is_some_and(|(_, cold)| is_unreferenced(cold))
        });
        chosen.truncate(lock(&self.core.reserves).fifo(Reserve::Prio).room());
        if chosen.is_empty() {
            return 0;
        }
        let taken = lock(&self.core.free_inc).take_waiting(&chosen);
        let mut filled = 0;
        for &bucket in &taken {
            // What was handed out meanwhile may have taken the room.
            if lock(&self.core.reserves).fifo_mut(Reserve::Prio).push(bucket) {
                filled += 1;
            } else {
                let pushed = lock(&self.core.free_inc).push(bucket);
                debug_assert!(pushed, "only passes push besides, under the lock of refill");
            }
        }
        filled
    }

    fn fill(&self, unreferenced: impl Fn(Cold) -> bool) -> usize {
        let refill = self.core.refill();
        // While a GC runs, a bucket without a mark may be one that it has not come to yet. None can
        // begin before the lock is given up.
        if !self.core.table.gc_mark_valid() {
            return 0;
        }
        // Whoever frees a btree node blocks prios before, so that whoever finds it without a mark, with
        // the stripe lock held, finds that too.
        let may_go = |hot: Hot, cold: Cold| {
            hot.mark() == Mark::None && self.core.set.prio_blocked() == 0 && unreferenced(cold)
        };
        let looks_right = |(hot, cold): (Hot, Cold)| !hot.excluded() && may_go(hot, cold);
        let mut filled = 0;
        for index in self.core.table.first_bucket().0..self.core.table.nbuckets() {
            let bucket = BucketIndex(index);
            // Before a lock is taken that allocations need: few buckets qualify.
            if !self.core.table.hint(bucket).is_some_and(looks_right) {
                continue;
            }
            // Held until the bucket is in: buckets that are handed out meanwhile need room too.
            let mut reserves = lock(&self.core.reserves);
            if reserves.fifo(Reserve::Prio).is_full() && reserves.fifo(Reserve::Btree).is_full() {
                break;
            }
            if let Some(invalidated) = self.core.table.try_invalidate(bucket, may_go) {
                self.core.set.raise_need_gc(invalidated.gc_gen);
                let pushed = reserves.fifo_mut(Reserve::Prio).push(bucket)
                    || reserves.fifo_mut(Reserve::Btree).push(bucket);
                debug_assert!(pushed, "there was room a moment ago");
                filled += usize::from(pushed);
            }
        }
        drop(refill);
        filled
    }
}
