//! Waiting and waking: one cache's allocator as many threads use it.
//!
//! Allocations wait here when their reserves are empty, and the allocator thread waits here when
//! there is nothing for it to do. Two rules keep a wake-up from being lost:
//!
//! - What an allocation waits for (a bucket in a reserve, the end of the thread) changes only under
//!   the lock of the reserves, which it holds from looking until it sleeps.
//! - The thread announces that it is about to sleep *before* it looks at what it waits for; whoever
//!   changes that looks for the announcement *after* the change. Only room in a reserve may come
//!   about without: whoever needs a bucket kicks the thread before it sleeps.
//!
//! An allocation takes the lock of the reserves and one stripe of the table, and when the reserves are
//! empty that of `free_inc` too. All are held by anyone for a batch of 64 pushes at most. It never waits
//! for a sweep or for I/O, unless there is no free bucket left; a discard counts as I/O.

use std::time::{Duration, Instant};

use crate::units::BucketIndex;

use super::planted::{self, Bug};
use super::replacement::lru::bucket_prio;
use super::reserves::{Reserve, Reserves};
use super::state::State;
use super::sync::{
    Arc, AtomicBool, AtomicU8, AtomicU32, Condvar, Mutex, MutexGuard, Ordering, lock, thread, wait,
};
use super::table::TableError;

/// Why there is no bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// There is none, and the caller did not want to wait.
    #[error("no free bucket in the {reserve:?} reserve")]
    WouldBlock {
        /// The reserve that was asked, besides None.
        reserve: Reserve,
    },
    /// There is none, and no thread that could free one.
    #[error("no free bucket in the {reserve:?} reserve, and the allocator thread is stopped")]
    Stopped {
        /// The reserve that was asked, besides None.
        reserve: Reserve,
    },
    /// More was waited for than the reserve ever holds.
    #[error("{wanted} buckets were waited for in the {reserve:?} reserve, which holds {capacity}")]
    NeverThatMany {
        /// The reserve.
        reserve: Reserve,
        /// Buckets waited for.
        wanted: usize,
        /// Buckets that it can hold.
        capacity: usize,
    },
    /// The device failed: nothing is handed out any more.
    #[error("the cache device has failed; nothing is allocated on it")]
    Failed,
    /// More caches were asked for than the set has, or none.
    #[error("buckets on {wanted} caches were asked for; the set has {caches}")]
    NotThatManyCaches {
        /// Buckets asked for, each on its own cache.
        wanted: usize,
        /// Caches of the set.
        caches: usize,
    },
    /// No such cache in the set.
    #[error("the set has no cache {device}")]
    NoSuchCache {
        /// Number of the cache in its set.
        device: u16,
    },
    /// The table refused the bucket.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The thread is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop;

/// Whether anyone refills the reserves.
const STOPPED: u8 = 0;
const RUNNING: u8 = 1;
const FAILED: u8 = 2;

#[derive(Debug, Default)]
struct Control {
    kicked: bool,
    stop: bool,
    /// The thread waits for `kick`: otherwise there is nobody to notify.
    asleep: bool,
}

/// How long whoever is about to sleep looks whether it still has to: about as long as going to sleep
/// and being woken takes.
const SPIN_FOR: Duration = Duration::from_micros(50);

/// Looks at `done` for a while; whether it was true in the end.
fn spin_until(mut done: impl FnMut() -> bool) -> bool {
    // The model checker would only have more schedules to try.
    if cfg!(feature = "model") {
        return done();
    }
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN_FOR {
            return false;
        }
        // Whoever is to do it may be waiting for this very processor.
        thread::yield_now();
    }
}

/// One cache's allocator, shared by those who allocate and the thread that refills.
pub struct Shared {
    state: State,
    /// With the lock of the reserves: a bucket was pushed, or the thread ended.
    pushed: Condvar,
    /// How many wait for that. Changes under the lock of the reserves.
    waiting: AtomicU32,
    /// STOPPED, RUNNING or FAILED. Changes under the lock of the reserves.
    refiller: AtomicU8,
    control: Mutex<Control>,
    kick: Condvar,
    /// The thread is asleep or about to be.
    parked: AtomicBool,
    /// The thread was woken and has not run since. Changes under the lock of `control`.
    called: AtomicBool,
    /// Goes up with whatever may end a wait for a bucket: a hint for those who spin before they sleep.
    supplied: AtomicU32,
    /// Rescalings that are due and that the thread is to do: while it is in I/O there may be several.
    rescales_due: AtomicU32,
}

impl Shared {
    /// Shares `state`. Until a thread is started, only what is in the reserves can be allocated.
    pub fn new(state: State) -> Arc<Self> {
        Arc::new(Self {
            state,
            pushed: Condvar::new(),
            waiting: AtomicU32::new(0),
            refiller: AtomicU8::new(STOPPED),
            control: Mutex::new(Control::default()),
            kick: Condvar::new(),
            parked: AtomicBool::new(false),
            called: AtomicBool::new(false),
            supplied: AtomicU32::new(0),
            rescales_due: AtomicU32::new(0),
        })
    }

    /// What is shared: hits, pins, marks and counters are used directly.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Allocates a bucket from None, or else from `reserve`; with `wait`, sleeps until one of them
    /// has one (FORMAT.md §9.7). It carries one pin, which is the caller's.
    pub fn bucket_alloc(&self, reserve: Reserve, wait: bool) -> Result<BucketIndex, AllocError> {
        let mut may_spin = true;
        loop {
            let supplied = self.supplied.load(Ordering::SeqCst);
            let mut reserves = lock(&self.state.reserves);
            if self.has_failed() {
                return Err(AllocError::Failed);
            }
            if let Some(bucket) = reserves.pop(reserve) {
                let low = self.is_low(&reserves, reserve);
                drop(reserves);
                if low {
                    self.kick();
                }
                return Ok(self.state.take(bucket, reserve)?);
            }
            drop(reserves);
            if self.fetch_ready() > 0 {
                continue;
            }
            self.kick();
            if !wait {
                // The lock was given up for a moment: something may have been pushed meanwhile.
                if lock(&self.state.reserves).has(reserve) {
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
            reserves = lock(&self.state.reserves);
            if !reserves.has(reserve) {
                drop(self.sleep(reserves, reserve)?);
            }
        }
    }

    /// Moves what is ready in `free_inc` to the reserves, for somebody who has found them empty: the
    /// thread may take milliseconds to wake up, longer than half a reserve lasts. How many were moved.
    ///
    /// Where buckets are discarded on their way, only the thread can do it.
    fn fetch_ready(&self) -> usize {
        if self.state.config().discard {
            return 0;
        }
        let fetched = self.state.hand_out_batch(usize::MAX, &mut |_| {});
        if self.called.load(Ordering::SeqCst) {
            // A batch later it still has not run: it may be waiting for this very processor, and for a
            // tick of the scheduler, which is longer than a small cache's reserves last.
            thread::yield_now();
        }
        if fetched.count > 0 {
            self.wake_waiters();
            if fetched.low {
                self.kick();
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
            || (self.state.config().discard || self.state.is_dry()) && half(Reserve::None);
        match reserve {
            Reserve::Btree | Reserve::Prio => true,
            Reserve::MovingGc => half(reserve) || of_none(),
            Reserve::None => of_none(),
        }
    }

    /// Waits until `reserve` holds `count` buckets: what a btree split checks before it takes locks
    /// (`btree_check_reserve`). A split that needs more than the reserve can hold would wait for ever
    /// in the kernel (FORMAT.md §10.13); here that is an error.
    pub fn wait_for_reserve(&self, reserve: Reserve, count: usize) -> Result<(), AllocError> {
        let mut reserves = lock(&self.state.reserves);
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
            reserves = lock(&self.state.reserves);
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
        match self.refiller.load(Ordering::SeqCst) {
            FAILED => return Err(AllocError::Failed),
            STOPPED => return Err(AllocError::Stopped { reserve }),
            _ => {}
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Before the lock is given up for sleeping: the thread cannot push in between, but it may
        // already be awake and find the kick later, which costs one look.
        self.kick();
        let reserves = wait(&self.pushed, reserves);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Ok(reserves)
    }

    /// Frees an allocated bucket and drops the pin that came with it.
    pub fn release(&self, bucket: BucketIndex) -> Result<(), TableError> {
        self.state.bucket_free(bucket)?;
        self.state.table().unpin(bucket)
    }

    /// Marks for the end of a GC, and wakes the thread that may have waited for it.
    pub fn gc_finished(&self) {
        self.kick();
    }

    /// Keeps prios from being written until [`unblock_prios`](Self::unblock_prios): a btree node was
    /// freed whose parent still points to it on disk.
    pub fn block_prios(&self) {
        self.state.set().block_prios();
    }

    /// Ends one [`block_prios`](Self::block_prios).
    pub fn unblock_prios(&self) {
        if self.state.set().unblock_prios() {
            self.kick();
        }
    }

    /// Rescales this cache's prios: the thread does, if one runs, so that the caller's I/O does not
    /// wait for the sweep.
    pub(crate) fn rescale(&self) {
        // Counted before looking: a thread that ends meanwhile does what is due after it says so.
        self.rescales_due.fetch_add(1, Ordering::SeqCst);
        if self.has_thread() {
            self.kick();
        } else {
            self.rescale_as_due();
        }
    }

    /// Does the rescalings that are due, all in one sweep. What was hit between two of them ages by
    /// both.
    fn rescale_as_due(&self) {
        let due = self.rescales_due.swap(0, Ordering::SeqCst);
        self.state.rescale_now(due);
    }

    /// Counts I/O of a set with this one cache, rescaling its prios when due; true when it was.
    pub fn account_io(&self, sectors: u32) -> bool {
        let due = self.state.set().account(sectors);
        if due {
            self.rescale();
        }
        due
    }

    /// Wakes the thread if it sleeps.
    pub(crate) fn kick(&self) {
        // Of many who find it asleep one is enough.
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            let mut control = lock(&self.control);
            control.kicked = true;
            let asleep = control.asleep;
            // Under the lock, or it could be set after the thread has come to clear it.
            self.called.store(asleep, Ordering::SeqCst);
            drop(control);
            if asleep {
                self.kick.notify_all();
            }
        }
    }

    /// For the thread: does what it was asked to do on the way, and says whether it is to stop.
    pub(crate) fn errands(&self) -> Result<(), Stop> {
        self.rescale_as_due();
        if lock(&self.control).stop { Err(Stop) } else { Ok(()) }
    }

    /// For the thread: sleeps until `ready`, which it may look at more often than it changes.
    pub(crate) fn park_until(&self, mut ready: impl FnMut() -> bool) -> Result<(), Stop> {
        loop {
            if !planted::is(Bug::LateAnnouncement) {
                self.parked.store(true, Ordering::SeqCst);
            }
            self.rescale_as_due();
            if ready() {
                self.parked.store(false, Ordering::SeqCst);
                return Ok(());
            }
            if planted::is(Bug::LateAnnouncement) {
                self.parked.store(true, Ordering::SeqCst);
            }
            // Under load the next kick is near.
            spin_until(|| !self.parked.load(Ordering::SeqCst));
            let mut control = lock(&self.control);
            while !control.kicked && !control.stop {
                control.asleep = true;
                control = wait(&self.kick, control);
            }
            control.asleep = false;
            self.called.store(false, Ordering::SeqCst);
            control.kicked = false;
            if control.stop {
                self.parked.store(false, Ordering::SeqCst);
                return Err(Stop);
            }
        }
    }

    /// For the thread: pushes a batch of ready buckets to the reserves and wakes who waits for them.
    pub(crate) fn hand_out(&self, max: usize, pushed: &mut dyn FnMut(BucketIndex)) -> HandedOut {
        let mut result = HandedOut::More;
        let handed_over = self.state.hand_out_batch(max, &mut |out| match out {
            super::state::HandOut::Pushed(ready, _) => pushed(ready.bucket),
            super::state::HandOut::Full => result = HandedOut::Full,
            super::state::HandOut::NothingReady => result = HandedOut::Nothing,
        });
        if handed_over.count > 0 {
            self.wake_waiters();
        }
        result
    }

    /// Whether the thread is to push what is ready: with `all`, whatever there is room for.
    ///
    /// Otherwise, as long as callers fetch what is ready themselves, only for what they would have it
    /// woken for: with each bucket that they take there is room for another, and thread and callers
    /// would fight for the locks.
    pub(crate) fn is_wanted(&self, all: bool) -> bool {
        let reserves = lock(&self.state.reserves);
        if all || self.state.config().discard || self.waiting.load(Ordering::SeqCst) != 0 {
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

    /// A thread begins to refill. A failure of the one before is forgotten. False if one already
    /// does: two would make the same `free_inc` ready for different chains.
    #[must_use]
    pub(crate) fn thread_started(&self) -> bool {
        let _reserves = lock(&self.state.reserves);
        if self.has_thread() {
            return false;
        }
        *lock(&self.control) = Control::default();
        self.refiller.store(RUNNING, Ordering::SeqCst);
        true
    }

    /// The thread has ended: those who wait are told.
    pub(crate) fn thread_ended(&self, failed: bool) {
        let reserves = lock(&self.state.reserves);
        self.refiller.store(if failed { FAILED } else { STOPPED }, Ordering::SeqCst);
        drop(reserves);
        self.supplied.fetch_add(1, Ordering::SeqCst);
        self.pushed.notify_all();
        self.rescale_as_due();
    }

    /// Asks the thread to stop where it can.
    pub(crate) fn request_stop(&self) {
        let mut control = lock(&self.control);
        control.stop = true;
        drop(control);
        self.kick.notify_all();
    }

    /// Whether a thread refills the reserves.
    pub fn has_thread(&self) -> bool {
        self.refiller.load(Ordering::SeqCst) == RUNNING
    }

    /// Whether the device has failed.
    pub fn has_failed(&self) -> bool {
        self.refiller.load(Ordering::SeqCst) == FAILED
    }

    /// `bucket_prio` of a bucket as LRU would see it now: for inspection.
    pub fn bucket_prio(&self, bucket: BucketIndex) -> Result<u64, TableError> {
        let is = self.state.table().bucket(bucket)?;
        Ok(bucket_prio(is.prio, is.sectors_used, self.state.set().min_prio()))
    }
}

/// How far a batch got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandedOut {
    /// There may be more.
    More,
    /// The reserves are full.
    Full,
    /// No bucket may be handed out.
    Nothing,
}
