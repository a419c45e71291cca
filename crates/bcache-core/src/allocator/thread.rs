//! The allocator thread: keeps the reserves filled (on-disk-format.md §9.6).
//!
//! ```text
//! A  push what is ready in free_inc to the reserves, discarding on the way; wait until more is wanted
//! B  wait for valid marks and for anything to invalidate; one pass fills free_inc
//! C  wait while prios must not be written
//! D  write a chain of prio sets, flush, wait as in C, write the journal entry that names it, flush
//!    now, and not before, is what is in free_inc ready
//! ```
//!
//! A crash between any two of these leaves the old chain current, whose gens are those that the
//! buckets of `free_inc` had before: their old contents are still whole, because nobody has had them.
//!
//! It differs from the kernel's where that one would lose data or hang (on-disk-format.md §10.4, §10.5):
//! when there are too few buckets for a chain, nothing is handed out; instead GC is woken, and
//! buckets that it finds unreferenced fill the reserve. The first I/O error ends the thread, and with
//! it every waiting and later allocation.

use super::chain::{WriteError, write_entry, write_sets};
use super::core::{AllocatorCore, PushStep, Refiller};
use super::io::{AllocatorIo, Event, WaitsFor};
use super::lifecycle::ReuseReason;
use super::planted::{self, Bug};
use super::replacement::Found;
use super::shared::Allocator;
use super::sync::Arc;
use super::sync::thread::{Builder, JoinHandle};
use super::table::TableError;
use super::waker::{Stop, ThreadNumber};

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
    /// Another thread, or a [`Refiller`], refills the reserves.
    #[error("the reserves of the cache are being refilled by another")]
    AlreadyRunning,
    /// It could not be started.
    #[error("the allocator thread could not be started")]
    Spawn(#[source] std::io::Error),
}

/// A running allocator thread.
pub struct AllocatorThread<Io: AllocatorIo> {
    allocator: Arc<Allocator>,
    number: ThreadNumber,
    join: Option<Join<Io>>,
}

type Join<Io> = JoinHandle<(Io, Result<(), ThreadError<<Io as AllocatorIo>::Error>>)>;

impl<Io: AllocatorIo + 'static> AllocatorThread<Io> {
    /// Starts a thread that refills `allocator`'s reserves through `io`.
    ///
    /// A cache has at most one: another is refused. It may be started again after it ended: what is
    /// in `free_inc` then is handed out only if it was ready before. What a failed journal entry left in
    /// doubt is settled before the next chain of prio sets.
    pub fn start(allocator: &Arc<Allocator>, io: Io) -> Result<Self, ThreadError<Io::Error>> {
        let number = allocator.thread_started().ok_or(ThreadError::AlreadyRunning)?;
        let of_thread = Arc::clone(allocator);
        let join = Builder::new()
            .name("bcache_allocator".into())
            .spawn(move || {
                let mut io = io;
                let result = run(&of_thread, number, &mut io);
                (io, result)
            })
            .map_err(|error| {
                allocator.thread_ended(true);
                ThreadError::Spawn(error)
            })?;
        Ok(Self { allocator: Arc::clone(allocator), number, join: Some(join) })
    }

    /// Stops it and gives back what it wrote through, with the error if it had ended by itself.
    ///
    /// It finishes a write that it is in, and nothing else: buckets in `free_inc` stay there.
    pub fn stop(mut self) -> Result<Io, (Option<Io>, ThreadError<Io::Error>)> {
        self.allocator.request_stop(self.number);
        match self.join.take().map(JoinHandle::join) {
            Some(Ok((io, Ok(())))) => Ok(io),
            Some(Ok((io, Err(error)))) => Err((Some(io), error)),
            Some(Err(_)) | None => Err((None, ThreadError::Panicked)),
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        !self.allocator.is_running(self.number)
    }
}

impl<Io: AllocatorIo> Drop for AllocatorThread<Io> {
    fn drop(&mut self) {
        self.allocator.request_stop(self.number);
        if let Some(join) = self.join.take() {
            // What it ended with is of interest to nobody any more.
            drop(join.join());
        }
    }
}

/// Tells the waiting that the thread has ended, also when it panics.
struct EndGuard<'a> {
    allocator: &'a Allocator,
    failed: bool,
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.allocator.thread_ended(self.failed);
    }
}

/// The thread's life, from start to stop: `Ok` when it was asked to stop.
fn run<Io: AllocatorIo>(
    allocator: &Allocator,
    number: ThreadNumber,
    io: &mut Io,
) -> Result<(), ThreadError<Io::Error>> {
    let mut guard = EndGuard { allocator, failed: true };
    let refiller = allocator.core().refiller_of_thread();
    let all = Loop { allocator, number, refiller, io, early_fell_short: false };
    match all.run() {
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
    allocator: &'a Allocator,
    number: ThreadNumber,
    refiller: Refiller<'a>,
    io: &'a mut Io,
    /// The last pass that was early found too little. Another has to wait until buckets are really
    /// needed, or a cache that is full would have GC after GC for nothing.
    early_fell_short: bool,
}

impl<'a, Io: AllocatorIo> Loop<'a, Io> {
    fn run(mut self) -> End<Io::Error> {
        loop {
            if let Err(end) = self.push_ready().and_then(|needed| self.refill(needed)) {
                return end;
            }
        }
    }

    fn core(&self) -> &'a AllocatorCore {
        self.allocator.core()
    }

    /// A: moves what is ready to the reserves, until more is needed.
    fn push_ready(&mut self) -> Result<Needed, End<Io::Error>> {
        let discard = self.core().config().discard;
        let mut discarded = None;
        loop {
            self.allocator.deferred_work(self.number)?;
            let batch = if discard {
                let Some(ready) = self.core().next_ready() else { return Ok(Needed::Now) };
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
            match self.allocator.push_ready(batch) {
                None | Some(PushStep::Pushed(..)) => {}
                Some(PushStep::NothingReady) => return Ok(Needed::Now),
                Some(PushStep::Full) if self.may_refill_early() => return Ok(Needed::Soon),
                Some(PushStep::Full) => {
                    self.io.observe(Event::Waits(WaitsFor::Room));
                    self.allocator
                        .park_until(self.number, || self.is_wanted() || self.may_refill_early())?;
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
        let core = self.core();
        let all = core.is_small() || self.early_fell_short && core.free_inc_is_low();
        self.allocator.is_wanted(all)
    }

    /// Whether to refill so that what is ready lasts until it is full again. With discards what is ready
    /// goes to the reserves by the thread only: first all of it.
    fn may_refill_early(&self) -> bool {
        let core = self.core();
        !core.config().discard
            && !self.early_fell_short
            && core.may_invalidate().is_ok()
            && core.free_inc_is_low()
    }

    /// Sleeps until `ready`, and pushes meanwhile what may be. Not with discards, of which nothing
    /// may be then.
    fn park_and_push(&self, mut ready: impl FnMut() -> bool) -> Result<(), Stop> {
        let discard = self.core().config().discard;
        self.allocator.park_until(self.number, || {
            let is_ready = ready();
            if !is_ready && !discard {
                while self.allocator.push_ready(usize::MAX).is_none() {}
            }
            is_ready
        })
    }

    /// B, C, D: fills `free_inc` and makes it ready.
    ///
    /// For what is needed only soon there is one pass, and it takes what it finds.
    fn refill(&mut self, needed: Needed) -> Result<(), End<Io::Error>> {
        let core = self.core();
        loop {
            self.wait_for_gc()?;
            self.io.observe(Event::PassBegins);
            // A GC that began just now is waited for in the next round.
            let Ok(pass) = self.refiller.invalidate() else { continue };
            self.io.observe(Event::PassEnded(&pass));
            if planted::is(Bug::EarlyHandOut) {
                self.refiller.make_ready(ReuseReason::GenDurable);
                return Ok(());
            }
            if pass.found != Found::Enough {
                self.io.wake_gc();
            }
            self.wait_for_btree()?;
            self.early_fell_short = needed == Needed::Soon && pass.found != Found::Enough;
            if !core.config().sync {
                self.refiller.make_ready(ReuseReason::NotSynced);
                return Ok(());
            }
            if needed == Needed::Soon && pass.invalidated == 0 {
                return Ok(());
            }
            // What was ready before may be fetched meanwhile: it need not be full any more.
            let enough = pass.found == Found::Enough || needed == Needed::Soon;
            if enough || core.free_inc_is_full() {
                break;
            }
        }
        if needed == Needed::Soon && planted::is(Bug::EarlyHandOutOfMore) {
            self.refiller.make_ready(ReuseReason::GenDurable);
        }
        self.write_prios()?;
        self.refiller.make_ready(ReuseReason::GenDurable);
        Ok(())
    }

    fn wait_for_gc(&mut self) -> Result<(), End<Io::Error>> {
        self.allocator.deferred_work(self.number)?;
        let core = self.core();
        if let Err(reason) = core.may_invalidate() {
            self.io.observe(Event::Waits(WaitsFor::Gc(reason)));
            self.park_and_push(|| core.may_invalidate().is_ok())?;
        }
        Ok(())
    }

    fn wait_for_btree(&mut self) -> Result<(), End<Io::Error>> {
        let set = self.core().set();
        if set.prio_blocked() != 0 {
            self.io.observe(Event::Waits(WaitsFor::Btree));
            self.park_and_push(|| set.prio_blocked() == 0)?;
        }
        Ok(())
    }

    /// D: writes a chain and makes it current, however long GC takes to find buckets for it.
    fn write_prios(&mut self) -> Result<(), End<Io::Error>> {
        loop {
            self.io.observe(Event::PrioWriteBegins);
            let mut written = write_sets(&self.refiller, self.io);
            let journal_tried = written.is_ok();
            if journal_tried {
                // The sets may have gens of btree nodes that were freed while they were written.
                if let Err(stop) = self.wait_for_btree() {
                    self.refiller.prio_write_abort(false)?;
                    return Err(stop);
                }
                written = write_entry(&self.refiller, self.io);
            }
            match written {
                Ok(()) => {
                    self.refiller.prio_write_commit()?;
                    self.io.observe(Event::PrioWriteEnded);
                    return Ok(());
                }
                Err(WriteError::TooFewBuckets) => {
                    let core = self.core();
                    self.refiller.prio_write_abort(journal_tried)?;
                    core.set_invalidate_needs_gc();
                    self.io.observe(Event::PrioWriteDeferred);
                    self.io.wake_gc();
                    self.wait_for_gc()?;
                    // Where buckets may be invalidated while a GC runs, that was not the wait for its
                    // end. To wake one after the other, each while the last one runs, would never
                    // find one ended.
                    self.park_and_push(|| core.table().gc_mark_valid())?;
                    // Nothing of free_inc may go. What GC found unreferenced may, once no btree node
                    // on the device points to it any more.
                    self.wait_for_btree()?;
                    self.refiller.fill_unreferenced();
                    self.allocator.wake_waiters();
                }
                Err(WriteError::Io(error)) => {
                    self.refiller.prio_write_abort(journal_tried)?;
                    return Err(End::Failed(ThreadError::Io(error)));
                }
                Err(WriteError::Table(error)) => return Err(End::Failed(error.into())),
                Err(WriteError::RefillerTaken) => {
                    return Err(End::Failed(ThreadError::AlreadyRunning));
                }
            }
        }
    }
}
