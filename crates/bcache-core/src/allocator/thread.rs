//! The allocator thread: keeps the reserves filled (FORMAT.md §9.6).
//!
//! ```text
//! A  hand out what is ready in free_inc, discarding on the way; wait until more, or a refill, is wanted
//! B  wait for valid marks and for anything to invalidate; one pass fills free_inc
//! C  wait while prios must not be written
//! D  write a chain of prio sets, flush, wait as in C, write the journal entry that names it, flush
//!    now, and not before, is what is in free_inc ready
//! ```
//!
//! A crash between any two of these leaves the old chain current, whose gens are those that the
//! buckets of `free_inc` had before: their old contents are still whole, because nobody has had them.
//!
//! It differs from the kernel's where that one would lose data or hang (FORMAT.md §10.4, §10.5):
//! when there are too few buckets for a chain, nothing is handed out; instead GC is woken, and
//! buckets that it finds unreferenced fill the reserve. The first I/O error ends the thread, and with
//! it every waiting and later allocation.

use crate::units::BucketIndex;

use super::lifecycle::Safe;
use super::planted::{self, Bug};
use super::prios::{PrioSetPlan, PrioWriteError};
use super::replacement::Found;
use super::shared::{HandedOut, Shared, Stop};
use super::state::{CannotInvalidate, Pass, State};
use super::sync::Arc;
use super::sync::thread::{Builder, JoinHandle};
use super::table::{BucketTable, TableError};

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

    /// Asks for a GC, which may run in any thread and at any time from now on. Its end must be told
    /// with [`Shared::gc_finished`].
    ///
    /// It tells the table of every pointer that a crash could bring back, stale ones too
    /// ([`mark_key`](BucketTable::mark_key)): of those that it finds, and of those that a replay of the
    /// journal would find. A bucket of which it has heard nothing may be written over.
    fn wake_gc(&mut self);

    /// Told of each step, in the thread: for counting and timing. [`Event::HandedOut`] comes with the
    /// locks held that allocations need: the allocator must not be called from there, nor waited.
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
    /// These became available to allocations.
    HandedOut(BucketIndex),
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

/// Why the thread ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError<E: std::error::Error + 'static> {
    /// The device failed.
    #[error("writing priorities and gens failed")]
    Io(#[source] E),
    /// The table is not consistent.
    #[error("the bucket table is inconsistent")]
    Table(#[from] TableError),
    /// It panicked.
    #[error("the allocator thread panicked")]
    Panicked,
    /// There is one already.
    #[error("the cache has an allocator thread already")]
    AlreadyRunning,
    /// It could not be started.
    #[error("the allocator thread could not be started")]
    Spawn(#[source] std::io::Error),
}

/// A running allocator thread.
pub struct AllocatorThread<Io: AllocatorIo> {
    shared: Arc<Shared>,
    join: Option<Join<Io>>,
}

type Join<Io> = JoinHandle<(Io, Result<(), ThreadError<<Io as AllocatorIo>::Error>>)>;

impl<Io: AllocatorIo + 'static> AllocatorThread<Io> {
    /// Starts a thread that refills `shared`'s reserves through `io`.
    ///
    /// A cache has at most one: another is refused. It may be started again after it ended: what is
    /// in `free_inc` then is handed out only if it was ready before. What a failed journal entry left in
    /// doubt is settled before the next chain of prio sets: see [`prios`](super::prios).
    pub fn start(shared: &Arc<Shared>, io: Io) -> Result<Self, ThreadError<Io::Error>> {
        if !shared.thread_started() {
            return Err(ThreadError::AlreadyRunning);
        }
        let of_thread = Arc::clone(shared);
        let join = Builder::new()
            .name("bcache_allocator".into())
            .spawn(move || {
                let mut io = io;
                let result = run(&of_thread, &mut io);
                (io, result)
            })
            .map_err(|error| {
                shared.thread_ended(true);
                ThreadError::Spawn(error)
            })?;
        Ok(Self { shared: Arc::clone(shared), join: Some(join) })
    }

    /// Stops it and gives back what it wrote through, with the error if it had ended by itself.
    ///
    /// It finishes a write that it is in, and nothing else: buckets in `free_inc` stay there.
    pub fn stop(mut self) -> Result<Io, (Option<Io>, ThreadError<Io::Error>)> {
        self.shared.request_stop();
        match self.join.take().map(JoinHandle::join) {
            Some(Ok((io, Ok(())))) => Ok(io),
            Some(Ok((io, Err(error)))) => Err((Some(io), error)),
            Some(Err(_)) | None => Err((None, ThreadError::Panicked)),
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        !self.shared.has_thread()
    }
}

impl<Io: AllocatorIo> Drop for AllocatorThread<Io> {
    fn drop(&mut self) {
        self.shared.request_stop();
        if let Some(join) = self.join.take() {
            // What it ended with is of interest to nobody any more.
            drop(join.join());
        }
    }
}

/// Tells the waiting that the thread has ended, also when it panics.
struct EndGuard<'a> {
    shared: &'a Shared,
    failed: bool,
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.shared.thread_ended(self.failed);
    }
}

/// The thread's life, from start to stop: `Ok` when it was asked to stop.
pub(crate) fn run<Io: AllocatorIo>(
    shared: &Shared,
    io: &mut Io,
) -> Result<(), ThreadError<Io::Error>> {
    let mut guard = EndGuard { shared, failed: true };
    match (Loop { shared, io, early_fell_short: false }).run() {
        End::Stopped => {
            guard.failed = false;
            Ok(())
        }
        End::Failed(error) => Err(error),
    }
}

enum End<E: std::error::Error + 'static> {
    Stopped,
    Failed(ThreadError<E>),
}

impl<E: std::error::Error + 'static> From<Stop> for End<E> {
    fn from(Stop: Stop) -> Self {
        Self::Stopped
    }
}

impl<E: std::error::Error + 'static> From<TableError> for End<E> {
    fn from(error: TableError) -> Self {
        Self::Failed(error.into())
    }
}

/// When buckets are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    /// None is ready.
    Now,
    /// Nobody is in want of a push, and `free_inc` is low.
    Soon,
}

struct Loop<'a, Io> {
    shared: &'a Shared,
    io: &'a mut Io,
    /// The last pass that was early found too little. Another has to wait until buckets are really
    /// needed, or a cache that is full would have GC after GC for nothing.
    early_fell_short: bool,
}

impl<Io: AllocatorIo> Loop<'_, Io> {
    fn run(mut self) -> End<Io::Error> {
        loop {
            if let Err(end) = self.hand_out().and_then(|needed| self.refill(needed)) {
                return end;
            }
        }
    }

    /// A: moves what is ready to the reserves, until more is needed.
    fn hand_out(&mut self) -> Result<Needed, End<Io::Error>> {
        let discard = self.shared.state().config().discard;
        let mut discarded = None;
        loop {
            self.shared.errands()?;
            let batch = if discard {
                let Some(ready) = self.shared.state().next_ready() else { return Ok(Needed::Now) };
                // Once, even if it then waits for room.
                if discarded != Some(ready.bucket) {
                    if let Err(error) = self.io.discard(ready.bucket) {
                        self.io.observe(Event::DiscardFailed(ready.bucket, &error));
                    }
                    discarded = Some(ready.bucket);
                }
                1
            } else {
                usize::MAX
            };
            let io = &mut *self.io;
            let mut observe = |bucket| io.observe(Event::HandedOut(bucket));
            match self.shared.hand_out(batch, &mut observe) {
                HandedOut::More => {}
                HandedOut::Nothing => return Ok(Needed::Now),
                HandedOut::Full if self.may_refill_early() => return Ok(Needed::Soon),
                HandedOut::Full => {
                    self.io.observe(Event::Waits(WaitsFor::Room));
                    self.shared.park_until(|| self.is_wanted() || self.may_refill_early())?;
                    // What is ready stays in `free_inc` for those who fetch while it is filled.
                    if self.may_refill_early() && !self.is_wanted() {
                        return Ok(Needed::Soon);
                    }
                }
            }
        }
    }

    /// Whether to push what is ready: all that there is room for, too, in a small cache, and where the rest
    /// of `free_inc` is not to last for an early refill.
    fn is_wanted(&self) -> bool {
        let state = self.shared.state();
        let all = state.is_small() || self.early_fell_short && state.free_inc_is_low();
        self.shared.is_wanted(all)
    }

    /// Whether to refill so that what is ready lasts until it is full again. With discards what is ready
    /// goes to the reserves by the thread only: first all of it.
    fn may_refill_early(&self) -> bool {
        let state = self.shared.state();
        !state.config().discard
            && !self.early_fell_short
            && state.may_invalidate().is_ok()
            && state.free_inc_is_low()
    }

    /// Sleeps until `ready`, and hands out meanwhile what may be. Not with discards, of which nothing
    /// may be then.
    fn park_handing_out(&mut self, mut ready: impl FnMut() -> bool) -> Result<(), Stop> {
        let shared = self.shared;
        let discard = shared.state().config().discard;
        let io = &mut *self.io;
        let mut observe = |bucket| io.observe(Event::HandedOut(bucket));
        shared.park_until(|| {
            let is_ready = ready();
            if !is_ready && !discard {
                while shared.hand_out(usize::MAX, &mut observe) == HandedOut::More {}
            }
            is_ready
        })
    }

    /// B, C, D: fills `free_inc` and makes it ready.
    ///
    /// For what is needed only soon there is one pass, and it takes what it finds.
    fn refill(&mut self, needed: Needed) -> Result<(), End<Io::Error>> {
        let state = self.shared.state();
        loop {
            self.wait_for_gc()?;
            self.io.observe(Event::PassBegins);
            // A GC that began just now is waited for in the next round.
            let Ok(pass) = state.invalidate_buckets() else { continue };
            self.io.observe(Event::PassEnded(&pass));
            if planted::is(Bug::EarlyHandOut) {
                state.free_inc_safe(Safe::GenDurable);
                return Ok(());
            }
            if pass.found != Found::Enough {
                self.io.wake_gc();
            }
            self.wait_for_btree()?;
            self.early_fell_short = needed == Needed::Soon && pass.found != Found::Enough;
            if !state.config().sync {
                state.free_inc_safe(Safe::NotSynced);
                return Ok(());
            }
            if needed == Needed::Soon && pass.invalidated == 0 {
                return Ok(());
            }
            // What was ready before may be fetched meanwhile: it need not be full any more.
            let enough = pass.found == Found::Enough || needed == Needed::Soon;
            if enough || state.free_inc_is_full() {
                break;
            }
        }
        if needed == Needed::Soon && planted::is(Bug::EarlyHandOutOfMore) {
            state.free_inc_safe(Safe::GenDurable);
        }
        self.write_prios()?;
        state.free_inc_safe(Safe::GenDurable);
        Ok(())
    }

    fn wait_for_gc(&mut self) -> Result<(), End<Io::Error>> {
        self.shared.errands()?;
        let state = self.shared.state();
        if let Err(reason) = state.may_invalidate() {
            self.io.observe(Event::Waits(WaitsFor::Gc(reason)));
            self.park_handing_out(|| state.may_invalidate().is_ok())?;
        }
        Ok(())
    }

    fn wait_for_btree(&mut self) -> Result<(), End<Io::Error>> {
        let set = self.shared.state().set();
        if set.prio_blocked() != 0 {
            self.io.observe(Event::Waits(WaitsFor::Btree));
            self.park_handing_out(|| set.prio_blocked() == 0)?;
        }
        Ok(())
    }

    /// D: writes a chain and makes it current, however long GC takes to find buckets for it.
    fn write_prios(&mut self) -> Result<(), End<Io::Error>> {
        loop {
            self.io.observe(Event::PrioWriteBegins);
            let mut written = write_sets(self.shared.state(), self.io);
            let journal_tried = written.is_ok();
            if journal_tried {
                // The sets may have gens of btree nodes that were freed while they were written.
                if let Err(stop) = self.wait_for_btree() {
                    self.shared.state().prio_write_abort(false)?;
                    return Err(stop);
                }
                written = write_entry(self.shared.state(), self.io);
            }
            match written {
                Ok(()) => {
                    self.shared.state().prio_write_commit()?;
                    self.io.observe(Event::PrioWriteEnded);
                    return Ok(());
                }
                Err(WriteError::TooFewBuckets) => {
                    let state = self.shared.state();
                    state.prio_write_abort(journal_tried)?;
                    state.set_invalidate_needs_gc();
                    self.io.observe(Event::PrioWriteDeferred);
                    self.io.wake_gc();
                    self.wait_for_gc()?;
                    // Where buckets may be invalidated while a GC runs, that was not the wait for its
                    // end. To wake one after the other, each while the last one runs, would never
                    // find one ended.
                    self.park_handing_out(|| state.table().gc_mark_valid())?;
                    // Nothing of free_inc may go. What GC found unreferenced may, once no btree node
                    // on the device points to it any more.
                    self.wait_for_btree()?;
                    state.fill_unreferenced();
                    self.shared.wake_waiters();
                }
                Err(WriteError::Io(error)) => {
                    self.shared.state().prio_write_abort(journal_tried)?;
                    return Err(End::Failed(ThreadError::Io(error)));
                }
                Err(WriteError::Table(error)) => return Err(End::Failed(error.into())),
            }
        }
    }
}

/// Writes a chain of prio sets at once and makes it current, outside the thread: to bring a cache into
/// use, and to have its newest prios on the device when it is put down. No thread may run, and prios
/// not be blocked.
///
/// Nothing of `free_inc` becomes ready by it.
pub fn write_prios<Io: AllocatorIo>(
    state: &State,
    io: &mut Io,
) -> Result<(), WriteError<Io::Error>> {
    let mut written = write_sets(state, io);
    let journal_tried = written.is_ok();
    if journal_tried {
        written = write_entry(state, io);
    }
    match written {
        Ok(()) => Ok(state.prio_write_commit()?),
        Err(error) => {
            state.prio_write_abort(journal_tried)?;
            Err(error)
        }
    }
}

/// Names the chain again whose journal entry failed, if there is one, so that it is current for
/// certain and the buckets of the older ones are free: on a full cache there may be no others for the
/// next chain. Its sets were flushed before the entry was tried the first time.
fn settle_doubt<Io: AllocatorIo>(state: &State, io: &mut Io) -> Result<(), WriteError<Io::Error>> {
    let head = state.prio_chain().in_doubt().and_then(|chain| chain.first().copied());
    let Some(head) = head else { return Ok(()) };
    io.write_journal_entry(head).map_err(WriteError::Io)?;
    io.flush().map_err(WriteError::Io)?;
    Ok(state.prio_doubt_settled()?)
}

/// Writes the sets of a new chain, and makes them durable.
fn write_sets<Io: AllocatorIo>(state: &State, io: &mut Io) -> Result<(), WriteError<Io::Error>> {
    settle_doubt(state, io)?;
    state.prio_write_begin()?;
    // All buckets before the first write: where one is missing, the others are free again at once, and
    // nothing may then be on its way to them.
    let mut sets = Vec::new();
    while let Some(set) = state.prio_write_next()? {
        sets.push(set);
    }
    for set in &sets {
        io.write_prio_set(set, state.table()).map_err(WriteError::Io)?;
    }
    if !planted::is(Bug::SkippedFlush) {
        io.flush().map_err(WriteError::Io)?;
    }
    Ok(())
}

/// Writes the journal entry that makes them current.
fn write_entry<Io: AllocatorIo>(state: &State, io: &mut Io) -> Result<(), WriteError<Io::Error>> {
    if let Some(head) = state.prio_write_head() {
        io.write_journal_entry(head).map_err(WriteError::Io)?;
        io.flush().map_err(WriteError::Io)?;
    }
    Ok(())
}

/// Why a chain of prio sets was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E: std::error::Error + 'static> {
    /// The reserves hold too few buckets for it.
    #[error("too few free buckets for the prio sets")]
    TooFewBuckets,
    /// The table is not consistent.
    #[error("the bucket table is inconsistent")]
    Table(#[from] TableError),
    /// The device failed.
    #[error("writing priorities and gens failed")]
    Io(#[source] E),
}

impl<E: std::error::Error + 'static> From<PrioWriteError> for WriteError<E> {
    fn from(error: PrioWriteError) -> Self {
        match error {
            PrioWriteError::TooFewBuckets { .. } => Self::TooFewBuckets,
            PrioWriteError::Table(error) => Self::Table(error),
        }
    }
}
