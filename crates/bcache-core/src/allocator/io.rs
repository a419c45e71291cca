//! What the allocator thread does with a device, and what it tells of its steps.

use crate::units::BucketIndex;

use super::core::{CannotInvalidate, Pass};
use super::prios::PrioSetPlan;
use super::table::BucketTable;

/// What the thread does with a device.
///
/// A call returns when it is done, [`write_prio_set`](Self::write_prio_set) aside; a write is durable after
/// the next `flush`.
pub trait AllocatorIo: Send {
    /// What can go wrong.
    type Error: std::error::Error + Send + 'static;

    /// Tells the device that a bucket holds nothing. A failure is reported to
    /// [`observe`](Self::observe) and otherwise ignored, as the kernel does: discards are advice.
    fn discard(&mut self, bucket: BucketIndex) -> Result<(), Self::Error>;

    /// Writes one `prio_set`: prios and gens of `table` from `set.first_entry` on.
    ///
    /// It may still be on its way when this returns, until the next `flush`. An error may be that of
    /// an earlier set; then none is on its way any more.
    fn write_prio_set(&mut self, set: &PrioSetPlan, table: &BucketTable)
    -> Result<(), Self::Error>;

    /// Writes a journal entry whose `prio_bucket` is `prio_head`.
    fn write_journal_entry(&mut self, prio_head: BucketIndex) -> Result<(), Self::Error>;

    /// Makes everything written so far durable.
    fn flush(&mut self) -> Result<(), Self::Error>;

    /// Asks for a GC, which may run in any thread and at any time from now on: from
    /// [`Allocator::gc_start`](super::Allocator::gc_start) to
    /// [`Allocator::gc_finish`](super::Allocator::gc_finish), or those of the set.
    ///
    /// It tells the table of every pointer that a crash could bring back, stale ones too
    /// ([`mark_key`](BucketTable::mark_key)): of those that it finds, and of those that a replay of the
    /// journal would find. A bucket of which it has heard nothing may be written over.
    fn wake_gc(&mut self);

    /// Told of each step, in the thread: for counting and timing.
    fn observe(&mut self, event: Event<'_, Self::Error>) {
        let _ = event;
    }
}

/// A step of the thread.
#[derive(Debug)]
pub enum Event<'a, E> {
    /// A pass begins.
    PassBegins,
    /// A pass has ended.
    PassEnded(&'a Pass),
    /// A chain of prio sets is about to be written.
    PrioWriteBegins,
    /// A chain is durable and current.
    PrioWriteEnded,
    /// There are too few buckets for a chain; GC was woken.
    PrioWriteDeferred,
    /// A discard failed.
    DiscardFailed(BucketIndex, &'a E),
    /// The thread waits for this.
    Waits(WaitsFor),
}

/// What the thread can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Room in the reserves.
    Room,
    /// The end of a GC.
    Gc(CannotInvalidate),
    /// Freed btree nodes whose parents are not written yet.
    Btree,
}
