//! The life of a bucket, and why one may be handed out.
//!
//! ```text
//!            invalidate: gen + 1, pinned           prio sets and journal entry durable
//!   InUse ────────────────────────▶ Invalidated ─────────────────────────────────────▶ Ready
//!     ▲                             (in free_inc)                                  (in free_inc)
//!     │ last pin dropped                                                               │ push
//!     │                                                                                ▼
//!   Allocated ◀──────────────────────────────────────────────────────────────────── Reserved
//!   (pinned)        pop: mark and prio for its new use                          (in a reserve)
//! ```
//!
//! Between Invalidated and Ready lies the one rule that keeps data safe: until the `prio_set` with
//! the new gen, and the journal entry that points to the chain, are durable, a crash brings back the
//! old gen, and with it pointers into the bucket that look valid. Nobody may have overwritten it by
//! then. [`ReuseReason`] names the reasons for which a bucket may leave `free_inc`; only a [`Ready`], which
//! carries one, can be pushed to a reserve.

use crate::units::BucketIndex;

use super::reserves::{Fifo, Reserve};

/// Where a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Holds what its mark says, or nothing; nobody holds a pin.
    InUse,
    /// In `free_inc`, its new gen not durable yet: a crash would bring its old contents back.
    Invalidated,
    /// In `free_inc`, free to be overwritten.
    Ready,
    /// In a reserve.
    Reserved(Reserve),
    /// Handed out: pinned by whoever writes to it.
    Allocated,
}

/// Why nothing in a bucket can be wanted again, even after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReuseReason {
    /// Its new gen is durable: in a `prio_set` that the newest durable journal entry leads to.
    GenDurable,
    /// The set is not `CACHE_SYNC`: after a crash everything in it is discarded.
    NotSynced,
    /// GC found no pointer into it, not even a stale one; its gen has not risen since that GC began;
    /// and no freed btree node waits for its parent to be written. So it does not matter which of its
    /// gens a crash brings back.
    ///
    /// This trusts that what a GC has seen is durable when it ends, as the kernel's writes every
    /// dirty leaf before (on-disk-format.md §6.4). At registration, when all gens are those of the device,
    /// that no valid pointer was found is enough.
    Unreferenced,
}

/// A bucket that may be handed out, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The bucket.
    pub bucket: BucketIndex,
    /// The reason.
    pub reason: ReuseReason,
}

/// `free_inc`: invalidated buckets on their way to the reserves, the ready ones in front.
#[derive(Debug)]
pub(crate) struct FreeInc {
    fifo: Fifo,
    /// How many, from the front, may be overwritten, and why.
    ready: usize,
    reason: ReuseReason,
}

impl FreeInc {
    /// An empty queue for `capacity` buckets.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { fifo: Fifo::new(capacity), ready: 0, reason: ReuseReason::GenDurable }
    }

    /// Appends a bucket that was just invalidated; false when there is no room.
    pub(crate) fn push(&mut self, bucket: BucketIndex) -> bool {
        self.fifo.push(bucket)
    }

    /// All buckets in the queue have become ready, for this reason.
    pub(crate) fn all_ready(&mut self, reason: ReuseReason) {
        self.ready = self.fifo.used();
        self.reason = reason;
    }

    /// The oldest bucket, if it may be handed out.
    pub(crate) fn ready(&self) -> Option<Ready> {
        let bucket = self.fifo.front()?;
        (self.ready > 0).then_some(Ready { bucket, reason: self.reason })
    }

    /// Drops the oldest bucket if it is the one that [`ready`](Self::ready) named.
    pub(crate) fn pop_ready(&mut self) -> Option<Ready> {
        let ready = self.ready()?;
        self.fifo.pop();
        self.ready -= 1;
        Some(ready)
    }

    /// Buckets that may be handed out.
    pub(crate) fn ready_len(&self) -> usize {
        self.ready
    }

    /// The buckets that wait for their gens to become durable, oldest first.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = BucketIndex> + '_ {
        self.fifo.iter().skip(self.ready)
    }

    /// Takes out those of `chosen`, in the order of the queue, that wait; and gives them.
    pub(crate) fn take_waiting(&mut self, chosen: &[BucketIndex]) -> Vec<BucketIndex> {
        let (mut taken, mut chosen) = (Vec::new(), chosen.iter().peekable());
        let (mut place, ready) = (0, self.ready);
        self.fifo.retain(|bucket| {
            place += 1;
            let take = place > ready && chosen.next_if(|&&next| next == bucket).is_some();
            if take {
                taken.push(bucket);
            }
            !take
        });
        taken
    }

    /// The queue itself, to look at.
    pub(crate) fn fifo(&self) -> &Fifo {
        &self.fifo
    }

    /// Where `bucket` stands in the queue.
    pub(crate) fn find(&self, bucket: BucketIndex) -> Option<Lifecycle> {
        let place = self.fifo.iter().position(|other| other == bucket)?;
        Some(if place < self.ready { Lifecycle::Ready } else { Lifecycle::Invalidated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_before_it_is_ready() {
        let mut free_inc = FreeInc::new(3);
        assert!(free_inc.push(BucketIndex(7)) && free_inc.push(BucketIndex(8)));
        assert_eq!((free_inc.ready(), free_inc.pop_ready()), (None, None));
        free_inc.all_ready(ReuseReason::GenDurable);
        assert!(free_inc.push(BucketIndex(9)));
        assert!(!free_inc.push(BucketIndex(10)));
        assert_eq!((free_inc.ready_len(), free_inc.waiting().count()), (2, 1));
        assert_eq!(free_inc.take_waiting(&[BucketIndex(8)]), [], "it is ready");
        assert_eq!(free_inc.find(BucketIndex(8)), Some(Lifecycle::Ready));
        assert_eq!(free_inc.find(BucketIndex(9)), Some(Lifecycle::Invalidated));
        assert_eq!(free_inc.pop_ready().map(|ready| ready.bucket.0), Some(7));
        assert_eq!(free_inc.pop_ready().map(|ready| ready.bucket.0), Some(8));
        assert_eq!(free_inc.pop_ready(), None);
        assert_eq!(free_inc.waiting().count(), 1);
        assert!(free_inc.push(BucketIndex(11)));
        assert_eq!(free_inc.take_waiting(&[BucketIndex(9)]), [BucketIndex(9)]);
        assert_eq!(free_inc.waiting().map(|bucket| bucket.0).collect::<Vec<_>>(), [11]);
    }
}
