//! Times what the allocator thread does, and bucket allocations inside of sector allocations.

use std::sync::Arc;

use bcache_core::allocator::{
    AllocError, AllocatorIo, BucketTable, Event, PrioSetPlan, Reserve, SetAllocator, SetPointer,
};
use bcache_core::units::BucketIndex;

use crate::progress::Live;
use crate::record::{Clock, Measure, Recorder};
use crate::report::Counters;

/// An [`AllocatorIo`] that times another.
pub struct TimedIo<Io> {
    io: Io,
    clock: Clock,
    recorder: Recorder,
    counters: Counters,
    live: Arc<Live>,
    pass_began_ns: u64,
    /// Since when a chain is being written.
    prios_began_ns: Option<u64>,
    /// Since when a journal entry is being written.
    entry_began_ns: Option<u64>,
}

impl<Io: AllocatorIo> TimedIo<Io> {
    /// Times `io`; passes are shown in `live`, too.
    pub fn new(io: Io, live: Arc<Live>) -> Self {
        let measures = [
            Measure::InvalidationPass,
            Measure::PrioWrite,
            Measure::JournalWrite,
            Measure::Discard,
        ];
        Self {
            io,
            clock: Clock::start(),
            recorder: Recorder::new(&measures),
            counters: Counters::default(),
            live,
            pass_began_ns: 0,
            prios_began_ns: None,
            entry_began_ns: None,
        }
    }

    /// What was recorded and counted.
    pub fn finish(self) -> (Recorder, Counters) {
        (self.recorder, self.counters)
    }

    fn record_since(&mut self, measure: Measure, began_ns: u64) {
        self.recorder.record(measure, self.clock.now_ns().saturating_sub(began_ns));
    }
}

impl<Io: AllocatorIo> AllocatorIo for TimedIo<Io> {
    type Error = Io::Error;

    fn discard(&mut self, bucket: BucketIndex) -> Result<(), Io::Error> {
        let began_ns = self.clock.now_ns();
        let result = self.io.discard(bucket);
        if result.is_ok() {
            self.record_since(Measure::Discard, began_ns);
            self.counters.discards += 1;
        }
        result
    }

    fn write_prio_set(&mut self, set: &PrioSetPlan, table: &BucketTable) -> Result<(), Io::Error> {
        self.prios_began_ns.get_or_insert_with(|| self.clock.now_ns());
        self.io.write_prio_set(set, table)
    }

    fn write_journal_entry(&mut self, prio_head: BucketIndex) -> Result<(), Io::Error> {
        self.entry_began_ns = Some(self.clock.now_ns());
        self.io.write_journal_entry(prio_head)
    }

    fn flush(&mut self) -> Result<(), Io::Error> {
        self.io.flush()?;
        if let Some(began_ns) = self.entry_began_ns.take() {
            self.record_since(Measure::JournalWrite, began_ns);
            self.counters.journal_writes += 1;
        } else if let Some(began_ns) = self.prios_began_ns.take() {
            self.record_since(Measure::PrioWrite, began_ns);
            self.counters.prio_writes += 1;
        }
        Ok(())
    }

    fn wake_gc(&mut self) {
        self.io.wake_gc();
    }

    fn observe(&mut self, event: Event<'_, Io::Error>) {
        match &event {
            Event::PassBegins => self.pass_began_ns = self.clock.now_ns(),
            Event::PassEnded(pass) => {
                self.record_since(Measure::InvalidationPass, self.pass_began_ns);
                self.counters.passes += 1;
                self.counters.buckets_invalidated += pass.invalidated as u64;
                if let Some(live) = self.live.allocator() {
                    live.passed();
                }
            }
            // A chain that was begun and given up is none.
            Event::PrioWriteBegins => self.prios_began_ns = None,
            Event::DiscardFailed(..) => self.counters.discards_failed += 1,
            Event::PrioWriteEnded | Event::PrioWriteDeferred | Event::Waits(_) => {}
        }
        self.io.observe(event);
    }
}

/// What an allocation did about buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketTimes {
    /// How long it took to get one, in ns, if it got one.
    pub bucket_ns: Option<u64>,
    /// How long it waited for the allocator thread, in ns, if it had to.
    pub blocked_ns: Option<u64>,
}

impl BucketTimes {
    /// Allocates a bucket of `set` and notes how long that took.
    pub fn alloc(
        &mut self,
        clock: Clock,
        set: &SetAllocator,
        reserve: Reserve,
        wait: bool,
    ) -> Result<SetPointer, AllocError> {
        let began_ns = clock.now_ns();
        let mut result = set.bucket_alloc(reserve, false);
        if wait && matches!(result, Err(AllocError::WouldBlock { .. })) {
            let blocks_ns = clock.now_ns();
            result = set.bucket_alloc(reserve, true);
            self.blocked_ns = Some(clock.now_ns().saturating_sub(blocks_ns));
        }
        self.bucket_ns = result.is_ok().then(|| clock.now_ns().saturating_sub(began_ns));
        result
    }
}
