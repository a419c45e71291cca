//! From `free_inc` to the reserves: what has become ready for its next owner.

use super::super::lifecycle::{FreeInc, Ready, ReuseReason};
use super::super::reserves::Reserve;
use super::super::sync::{Ordering, lock};
use super::{AllocatorCore, BATCH, Refiller};

/// What became of one bucket of `free_inc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushStep {
    /// It is in a reserve.
    Pushed(Ready, Reserve),
    /// The reserves are full; it stays.
    Full,
    /// No bucket is ready.
    NothingReady,
}

/// What a batch of pushes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PushedBatch {
    /// How many buckets left `free_inc`.
    pub(crate) count: usize,
    /// The last of them.
    pub(crate) last: Option<(Ready, Reserve)>,
    /// Why no more did; `None`: the batch was as large as it may be.
    pub(crate) end: Option<PushStep>,
    /// `free_inc` is to be filled.
    pub(crate) low: bool,
}

/// Buckets of `free_inc` that are to last while it is filled: 1.6 ms at 100,000 a second.
const LEAD: usize = 160;

/// Buckets that are worth a pass and a prio write.
const WORTH_A_PASS: usize = 96;

/// Whether `free_inc`, which holds `used` of `capacity` buckets, is to be filled; a chain has `chain` sets.
///
/// At a quarter. In a large cache at three eighths: there a fast caller empties a reserve before a pass
/// and its chain are done, and a chain is little beside the buckets that it makes ready. With a
/// quarter, a closed loop on 1,048,576 buckets has 5 % less. In a small one at [`LEAD`], if that leaves
/// as much room as is worth the writes. A chain of prio sets takes free buckets itself: to fill what is
/// missing only because of the last chain would never end.
fn is_low(capacity: usize, used: usize, chain: usize) -> bool {
    let share = if capacity > 4 * LEAD { capacity * 3 / 8 } else { capacity / 4 };
    let lead = share.max(capacity.saturating_sub(WORTH_A_PASS).min(LEAD));
    used <= lead && capacity - used > 2 * chain
}

/// Whether a `free_inc` of `capacity` lasts no longer than a pass and its chain.
const fn is_small(capacity: usize) -> bool {
    capacity < LEAD
}

impl Refiller<'_> {
    /// Everything in `free_inc` may be overwritten from now on, for this reason.
    pub fn make_ready(&self, reason: ReuseReason) {
        let mut free_inc = lock(&self.core.free_inc);
        free_inc.all_ready(reason);
        self.core.nothing_ready.store(free_inc.ready().is_none(), Ordering::SeqCst);
    }

    /// Moves the oldest bucket of `free_inc` to a reserve, if it is ready and there is room.
    pub fn push_ready(&self) -> PushStep {
        let batch = self.core.push_batch(1);
        let pushed = batch.last.map(|(ready, reserve)| PushStep::Pushed(ready, reserve));
        pushed.or(batch.end).unwrap_or(PushStep::NothingReady)
    }
}

impl AllocatorCore {
    /// Whether `free_inc` is to be filled before it is empty, so that what is ready lasts meanwhile.
    pub(crate) fn free_inc_is_low(&self) -> bool {
        self.is_low(&lock(&self.free_inc))
    }

    fn is_low(&self, free_inc: &FreeInc) -> bool {
        is_low(free_inc.fifo().capacity(), free_inc.fifo().used(), self.sizes.prio)
    }

    /// Whether all queues together hold little more than goes during a pass and its chain. The reserves are
    /// then to be full when one begins: with `free_inc` of 15 and data written as fast as can be, a quarter
    /// fewer allocations wait than where callers fetch for themselves. (A model's cache is to do without.)
    pub(crate) fn is_small(&self) -> bool {
        !cfg!(feature = "model") && is_small(self.sizes.free_inc)
    }

    /// Whether nothing in `free_inc` may be handed out.
    pub(crate) fn nothing_is_ready(&self) -> bool {
        self.nothing_ready.load(Ordering::SeqCst)
    }

    /// Buckets of `free_inc` that may be handed out.
    pub(crate) fn ready_len(&self) -> usize {
        lock(&self.free_inc).ready_len()
    }

    pub(super) fn free_inc_room(&self) -> usize {
        lock(&self.free_inc).fifo().room()
    }

    /// Whether no pass is of use before something leaves `free_inc`.
    pub(crate) fn free_inc_is_full(&self) -> bool {
        self.free_inc_room() == 0
    }

    /// Moves up to `max` buckets that are ready to the reserves, under one lock.
    pub(crate) fn push_batch(&self, max: usize) -> PushedBatch {
        let mut free_inc = lock(&self.free_inc);
        let mut reserves = lock(&self.reserves);
        let (mut count, mut last, mut end) = (0, None, None);
        while count < max.min(BATCH) {
            let Some(ready) = free_inc.ready() else {
                end = Some(PushStep::NothingReady);
                break;
            };
            let Some(reserve) = reserves.push(ready.bucket) else {
                end = Some(PushStep::Full);
                break;
            };
            free_inc.pop_ready();
            last = Some((ready, reserve));
            count += 1;
        }
        self.nothing_ready.store(free_inc.ready().is_none(), Ordering::SeqCst);
        PushedBatch { count, last, end, low: self.is_low(&free_inc) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Allocator;
    use super::super::Config;
    use super::*;
    use crate::units::{Geometry, Sectors};

    #[test]
    fn free_inc_is_filled_before_it_is_empty() {
        for (capacity, chain, most) in [
            (15, 1, 3),
            // What a chain takes is not worth another.
            (15, 6, 2),
            (200, 50, 99),
            (100, 1, 25),
            (200, 1, 104),
            (300, 1, 160),
            (640, 1, 160),
            (641, 1, 240),
            (2048, 1, 768),
        ] {
            assert!(is_low(capacity, most, chain), "{most} of {capacity}, {chain}");
            assert!(!is_low(capacity, most + 1, chain), "{} of {capacity}, {chain}", most + 1);
        }
        assert!(is_small(LEAD - 1) && !is_small(LEAD) && !is_small(LEAD + 1));
    }

    #[test]
    fn the_thread_is_told_what_is_in_free_inc() {
        let geometry = |nbuckets| Geometry::new(nbuckets, 3, Sectors(8), Sectors(8)).unwrap();
        for (nbuckets, is_small) in [(3000, true), (200_000, false)] {
            let allocator = Allocator::new(Config::new(geometry(nbuckets))).unwrap();
            allocator.gc_finish(&[]).unwrap();
            let (core, refiller) = (allocator.core(), allocator.refiller().unwrap());
            assert_eq!(core.is_small(), is_small);
            let looks =
                || (core.free_inc_is_low(), core.free_inc_is_full(), core.nothing_is_ready());
            assert_eq!(looks(), (true, false, true));
            refiller.invalidate().unwrap();
            assert_eq!(looks(), (false, true, true));
            assert_eq!(core.ready_len(), 0);
            refiller.make_ready(ReuseReason::NotSynced);
            assert_eq!(looks(), (false, true, false));
            assert_eq!(core.ready_len(), core.free_inc_contents().len());
            assert!(matches!(refiller.push_ready(), PushStep::Pushed(..)));
            assert_eq!(looks(), (false, false, false));
        }
    }
}
