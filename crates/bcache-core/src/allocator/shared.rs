//! Waiting and waking: one cache's allocator as many threads use it.
//!
//! Allocations wait here when their reserves are empty. What an allocation waits for (a bucket in a
//! reserve, the end of the thread) changes only under the lock of the reserves, which it holds from
//! looking until it sleeps. How the thread waits is in [`Waker`]; only room in a reserve may come about
//! without waking it: whoever needs a bucket wakes the thread before it sleeps.
//!
//! An allocation takes the lock of the reserves and one stripe of the table, and when the reserves are
//! empty that of `free_inc` too. All are held by anyone for a batch of 64 pushes at most. It never waits
//! for a sweep or for I/O, unless there is no free bucket left; a discard counts as I/O.

use crate::units::BucketIndex;

use super::core::{AllocatorCore, Config, NewAllocatorError, PushStep, Refiller};
use super::error::AllocError;
use super::mark::Mark;
use super::planted::{self, Bug};
use super::pointer::SetPointer;
use super::rescale::SetCounters;
use super::reserves::{Reserve, Reserves};
use super::sync::{
    Arc, AtomicU8, AtomicU32, AtomicU64, Condvar, MutexGuard, Ordering, lock, thread, wait,
};
use super::table::TableError;
use super::waker::{Stop, ThreadNumber, Waker, spin_until};

/// Whether anyone refills the reserves.
const STOPPED: u8 = 0;
const RUNNING: u8 = 1;
const FAILED: u8 = 2;

/// One cache's allocator, shared by those who allocate and the thread that refills.
pub struct Allocator {
    core: AllocatorCore,
    /// With the lock of the reserves: a bucket was pushed, or the thread ended.
    pushed: Condvar,
    /// How many wait for that. Changes under the lock of the reserves.
    waiting: AtomicU32,
    /// STOPPED, RUNNING or FAILED. Changes under the lock of the reserves.
    refilling: AtomicU8,
    /// Threads that were started. Changes under the lock of the reserves.
    threads: AtomicU64,
    waker: Arc<Waker>,
    /// Goes up with whatever may end a wait for a bucket: a hint for those who spin before they sleep.
    supplied: AtomicU32,
    /// Rescalings that are due and that the thread is to do: while it is in I/O there may be several.
    rescales_due: AtomicU32,
}

impl Allocator {
    /// The allocator of a set with this one cache. Until a thread is started, only what is in the
    /// reserves can be allocated.
    pub fn new(config: Config) -> Result<Arc<Self>, NewAllocatorError> {
        AllocatorCore::new(config).map(Self::of_core)
    }

    /// The same with queues of any size: a model checker's caches are smaller than any kernel's.
    #[cfg(feature = "model")]
    pub fn of_model(
        config: Config,
        sizes: super::reserves::Sizes,
    ) -> Result<Arc<Self>, NewAllocatorError> {
        let geometry = config.geometry;
        let set = SetCounters::new(geometry.nbuckets(), geometry.bucket_size().0, 1);
        AllocatorCore::with_sizes(config, Arc::new(set), 0, sizes).map(Self::of_core)
    }

    /// The allocator of one cache of a set.
    pub(crate) fn in_set(
        config: Config,
        set: Arc<SetCounters>,
        device: usize,
    ) -> Result<Arc<Self>, NewAllocatorError> {
        AllocatorCore::in_set(config, set, device).map(Self::of_core)
    }

    fn of_core(core: AllocatorCore) -> Arc<Self> {
        let waker = core.set().waker(core.device()).map(Arc::clone).unwrap_or_default();
        Arc::new(Self {
            core,
            pushed: Condvar::new(),
            waiting: AtomicU32::new(0),
            refilling: AtomicU8::new(STOPPED),
            threads: AtomicU64::new(0),
            waker,
            supplied: AtomicU32::new(0),
            rescales_due: AtomicU32::new(0),
        })
    }

    /// What is shared: hits, pins, marks and counters are used directly.
    pub fn core(&self) -> &AllocatorCore {
        &self.core
    }

    /// The right to refill the reserves without a thread: fails while one runs, or while another has
    /// it. No thread can be started while it is held.
    pub fn refiller(&self) -> Result<Refiller<'_>, AllocError> {
        self.core.refiller().ok_or(AllocError::RefillerTaken)
    }

    /// Allocates a bucket from None, or else from `reserve`; with `wait`, sleeps until one of them
    /// has one (on-disk-format.md §9.7). It carries one pin, which is the caller's.
    pub fn bucket_alloc(&self, reserve: Reserve, wait: bool) -> Result<BucketIndex, AllocError> {
        let result = self.alloc(reserve, wait);
        if result.is_err() {
            self.core.trace_failed(reserve);
        }
        result
    }

    fn alloc(&self, reserve: Reserve, wait: bool) -> Result<BucketIndex, AllocError> {
        let mut may_spin = true;
        loop {
            let supplied = self.supplied.load(Ordering::SeqCst);
            let mut reserves = lock(&self.core.reserves);
            if self.has_failed() {
                return Err(AllocError::Failed);
            }
            if let Some(bucket) = reserves.pop(reserve) {
                let low = self.is_low(&reserves, reserve);
                drop(reserves);
                if low {
                    self.wake_thread();
                }
                return Ok(self.core.take(bucket, reserve)?);
            }
            drop(reserves);
            if self.fetch_ready() > 0 {
                continue;
            }
            self.wake_thread();
            if !wait {
                // The lock was given up for a moment: something may have been pushed meanwhile.
                if lock(&self.core.reserves).has(reserve) {
                    continue;
                }
                return Err(AllocError::WouldBlock { reserve });
            }
            // A pass over a small cache takes less time than sleeping and being woken.
            if std::mem::take(&mut may_spin)
                && spin_until(|| self.supplied.load(Ordering::SeqCst) != supplied)
            {
                continue;
            }
            reserves = lock(&self.core.reserves);
            if !reserves.has(reserve) {
                drop(self.sleep(reserves, reserve)?);
            }
        }
    }

    /// The same; what a key to the bucket needs.
    pub(crate) fn alloc_pointer(
        &self,
        reserve: Reserve,
        wait: bool,
    ) -> Result<SetPointer, AllocError> {
        let bucket = self.bucket_alloc(reserve, wait)?;
        Ok(self.core.pointer_to(bucket)?)
    }

    /// Moves what is ready in `free_inc` to the reserves, for somebody who has found them empty: the
    /// thread may take milliseconds to wake up, longer than half a reserve lasts. How many were moved.
    ///
    /// Where buckets are discarded on their way, only the thread can do it.
    fn fetch_ready(&self) -> usize {
        if self.core.config().discard {
            return 0;
        }
        let fetched = self.core.push_batch(usize::MAX);
        if self.waker.is_called() {
            // A batch later it still has not run: it may be waiting for this very processor, and for a
            // tick of the scheduler, which is longer than a small cache's reserves last.
            thread::yield_now();
        }
        if fetched.count > 0 {
            self.wake_waiters();
            if fetched.low {
                self.wake_thread();
            }
        }
        fetched.count
    }

    /// Whether the thread should look after a pop for `reserve`.
    ///
    /// The metadata reserves are refilled at once, `MovingGc` from half empty on: waking a sleeping
    /// thread for each bucket would cost more than the bucket. None is refilled by whoever finds it
    /// empty, and by the thread, from half empty on, where buckets are discarded on their way or
    /// there is nothing more to be found.
    fn is_low(&self, reserves: &Reserves, reserve: Reserve) -> bool {
        let half = |reserve| {
            let fifo = reserves.fifo(reserve);
            fifo.used() <= fifo.capacity() / 2
        };
        let of_none =
            || (self.core.config().discard || self.core.nothing_is_ready()) && half(Reserve::None);
        match reserve {
            Reserve::Btree | Reserve::Prio => true,
            Reserve::MovingGc => half(reserve) || of_none(),
            Reserve::None => of_none(),
        }
    }

    /// Waits until `reserve` holds `count` buckets: what a btree split checks before it takes locks
    /// (`btree_check_reserve`). A split that needs more than the reserve can hold would wait for ever
    /// in the kernel (on-disk-format.md §10.13); here that is an error.
    pub fn wait_for_reserve(&self, reserve: Reserve, count: usize) -> Result<(), AllocError> {
        let mut reserves = lock(&self.core.reserves);
        let capacity = reserves.fifo(reserve).capacity();
        if count > capacity {
            return Err(AllocError::NeverThatMany { reserve, wanted: count, capacity });
        }
        loop {
            if self.has_failed() {
                return Err(AllocError::Failed);
            }
            if reserves.fifo(reserve).used() >= count {
                return Ok(());
            }
            drop(reserves);
            let fetched = self.fetch_ready();
            reserves = lock(&self.core.reserves);
            if fetched == 0 && reserves.fifo(reserve).used() < count {
                reserves = self.sleep(reserves, reserve)?;
            }
        }
    }

    /// Sleeps until something was pushed, or fails when nobody would push.
    fn sleep<'a>(
        &self,
        reserves: MutexGuard<'a, Reserves>,
        reserve: Reserve,
    ) -> Result<MutexGuard<'a, Reserves>, AllocError> {
        match self.refilling.load(Ordering::SeqCst) {
            FAILED => return Err(AllocError::Failed),
            STOPPED => return Err(AllocError::Stopped { reserve }),
            _ => {}
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Before the lock is given up for sleeping: the thread cannot push in between, but it may
        // already be awake and find the wake-up later, which costs one look.
        self.wake_thread();
        let reserves = wait(&self.pushed, reserves);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Ok(reserves)
    }

    /// Frees an allocated bucket and drops the pin that came with it.
    pub fn release(&self, bucket: BucketIndex) -> Result<(), TableError> {
        self.core.bucket_free(bucket)?;
        self.core.table().unpin(bucket)
    }

    /// Begins a GC on this cache (on-disk-format.md §6.4).
    pub fn gc_start(&self) {
        self.core.gc_start();
    }

    /// Ends a GC of a set with this one cache (on-disk-format.md §6.3), and wakes the thread that may
    /// have waited for it. `marks` are those that no key gives: uuid and journal buckets Metadata,
    /// buckets of keys under writeback Dirty.
    ///
    /// Where a mark cannot be set, the GC has not ended.
    pub fn gc_finish(&self, marks: &[(BucketIndex, Mark)]) -> Result<(), TableError> {
        let summary = self.core.gc_finish(marks.iter().copied())?;
        self.core.set().gc_finished(summary.need_gc, summary.avail_nbuckets);
        self.wake_thread();
        Ok(())
    }

    /// Rescales this cache's prios: the thread does, if one runs, so that the caller's I/O does not
    /// wait for the sweep.
    pub(crate) fn rescale(&self) {
        // Counted before looking: a thread that ends meanwhile does what is due after it says so.
        self.rescales_due.fetch_add(1, Ordering::SeqCst);
        if self.has_thread() {
            self.wake_thread();
        } else {
            self.rescale_as_due();
        }
    }

    /// Does the rescalings that are due, all in one sweep. What was hit between two of them ages by
    /// both.
    fn rescale_as_due(&self) {
        let due = self.rescales_due.swap(0, Ordering::SeqCst);
        self.core.rescale_now(due);
    }

    /// Counts I/O of a set with this one cache, rescaling its prios when due; true when it was.
    pub fn account_io(&self, sectors: u32) -> bool {
        let due = self.core.set().account(sectors);
        if due {
            self.rescale();
        }
        due
    }

    /// Wakes the thread if it sleeps.
    pub(crate) fn wake_thread(&self) {
        self.waker.wake();
    }

    /// For the thread: does what others have left to it, and says whether it is to stop.
    pub(crate) fn deferred_work(&self, number: ThreadNumber) -> Result<(), Stop> {
        self.rescale_as_due();
        self.waker.check_stop(number)
    }

    /// For the thread: sleeps until `ready`, which it may look at more often than it changes.
    pub(crate) fn park_until(
        &self,
        number: ThreadNumber,
        ready: impl FnMut() -> bool,
    ) -> Result<(), Stop> {
        self.waker.park_until(number, || self.rescale_as_due(), ready)
    }

    /// For the thread: pushes up to `max` ready buckets to the reserves and wakes who waits for them.
    /// Why it did not push more; `None`: there may be more.
    pub(crate) fn push_ready(&self, max: usize) -> Option<PushStep> {
        let batch = self.core.push_batch(max);
        if batch.count > 0 {
            self.wake_waiters();
        }
        batch.end
    }

    /// Whether the thread is to push what is ready: with `all`, whatever there is room for.
    ///
    /// Otherwise, as long as callers fetch what is ready themselves, only for what they would have it
    /// woken for: with each bucket that they take there is room for another, and thread and callers
    /// would fight for the locks.
    pub(crate) fn is_wanted(&self, all: bool) -> bool {
        let reserves = lock(&self.core.reserves);
        if all || self.core.config().discard || self.waiting.load(Ordering::SeqCst) != 0 {
            return !reserves.is_full();
        }
        let has_room = |reserve| !reserves.fifo(reserve).is_full();
        Reserve::ALL.iter().any(|&of| has_room(of) && self.is_low(&reserves, of))
    }

    /// Wakes those who wait for a bucket. Whoever counts itself in after this looked had the lock
    /// of the reserves after the push, and so has seen it.
    pub(crate) fn wake_waiters(&self) {
        self.supplied.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) != 0 && !planted::is(Bug::NoWakeUp) {
            self.pushed.notify_all();
        }
    }

    /// A thread begins to refill: its number. A failure of the one before is forgotten. `None` if
    /// another has the right to refill: two would make the same `free_inc` ready for different chains.
    #[must_use]
    pub(crate) fn thread_started(&self) -> Option<ThreadNumber> {
        let _reserves = lock(&self.core.reserves);
        if !self.core.take_refiller() {
            return None;
        }
        self.refilling.store(RUNNING, Ordering::SeqCst);
        Some(ThreadNumber(self.threads.fetch_add(1, Ordering::SeqCst) + 1))
    }

    /// The thread has ended: those who wait are told.
    pub(crate) fn thread_ended(&self, failed: bool) {
        let reserves = lock(&self.core.reserves);
        self.refilling.store(if failed { FAILED } else { STOPPED }, Ordering::SeqCst);
        self.core.release_refiller();
        drop(reserves);
        self.supplied.fetch_add(1, Ordering::SeqCst);
        self.pushed.notify_all();
        self.rescale_as_due();
    }

    /// Asks a thread to stop where it can.
    pub(crate) fn request_stop(&self, number: ThreadNumber) {
        self.waker.request_stop(number);
    }

    /// Whether this thread refills the reserves.
    pub(crate) fn is_running(&self, number: ThreadNumber) -> bool {
        self.has_thread() && self.threads.load(Ordering::SeqCst) == number.0
    }

    /// Whether a thread refills the reserves.
    pub fn has_thread(&self) -> bool {
        self.refilling.load(Ordering::SeqCst) == RUNNING
    }

    /// Whether the device has failed: nothing is allocated until a thread is started again.
    pub fn has_failed(&self) -> bool {
        self.refilling.load(Ordering::SeqCst) == FAILED
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;
    use crate::allocator::ReuseReason;
    use crate::allocator::reserves::Sizes;
    use crate::units::{Geometry, Sectors};

    /// When a pop wakes the thread: for `MovingGc` and None by how many of their four places are taken.
    #[test]
    fn a_pop_wakes_the_thread_where_a_reserve_runs_low() {
        let low = |discard: bool, is_ready: bool| {
            let geometry = Geometry::new(4096, 1, Sectors(16), Sectors(8)).unwrap();
            let mut config = Config::new(geometry);
            config.discard = discard;
            let allocator = Allocator::new(config).unwrap();
            allocator.gc_finish(&[]).unwrap();
            let refiller = allocator.refiller().unwrap();
            refiller.invalidate().unwrap();
            if is_ready {
                refiller.make_ready(ReuseReason::NotSynced);
            }
            drop(refiller);
            assert_eq!(allocator.core.nothing_is_ready(), !is_ready);
            let sizes = Sizes { btree: 1, prio: 1, moving_gc: 4, none: 4, free_inc: 4, heap: 8 };
            move |reserve: Reserve, moving_gc: u64, none: u64| {
                let mut reserves = Reserves::new(&sizes);
                for (reserve, used) in [
                    (Reserve::Btree, 1),
                    (Reserve::Prio, 1),
                    (Reserve::MovingGc, moving_gc),
                    (Reserve::None, none),
                ] {
                    (0..used).for_each(|n| _ = reserves.fifo_mut(reserve).push(BucketIndex(n)));
                }
                allocator.is_low(&reserves, reserve)
            }
        };
        for (discard, is_ready) in [(false, true), (false, false), (true, true), (true, false)] {
            let low = low(discard, is_ready);
            // Who finds None empty takes what is ready.
            let is_by_none = discard || !is_ready;
            for moving_gc in 0..=4 {
                for none in 0..=4 {
                    let of_none = is_by_none && none <= 2;
                    let expected = [
                        (Reserve::Btree, true),
                        (Reserve::Prio, true),
                        (Reserve::MovingGc, moving_gc <= 2 || of_none),
                        (Reserve::None, of_none),
                    ];
                    for (reserve, expected) in expected {
                        let found = low(reserve, moving_gc, none);
                        let state = (discard, is_ready, moving_gc, none);
                        assert_eq!(found, expected, "{reserve:?} {state:?}");
                    }
                }
            }
        }
    }
}
