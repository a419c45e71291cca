//! How the allocator thread of one cache sleeps, is woken, and is told to stop.
//!
//! The thread announces that it is about to sleep *before* it looks at what it waits for; whoever
//! changes that looks for the announcement *after* the change.

use std::time::{Duration, Instant};

use super::planted::{self, Bug};
use super::sync::{AtomicBool, Condvar, Mutex, Ordering, lock, thread, wait};

/// The thread is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop;

/// Numbers the threads of a cache, so that a stop that was meant for one does not reach the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadNumber(pub(crate) u64);

#[derive(Debug, Default)]
struct Control {
    woken: bool,
    /// This thread and all before it are to stop.
    stop_through: u64,
    /// The thread waits on `wake`: otherwise there is nobody to notify.
    asleep: bool,
}

/// How long whoever is about to sleep looks whether it still has to: about as long as going to sleep
/// and being woken takes.
const SPIN_FOR: Duration = Duration::from_micros(50);

/// Looks at `done` for a while; whether it was true in the end.
pub(crate) fn spin_until(mut done: impl FnMut() -> bool) -> bool {
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

/// Wakes the allocator thread of one cache.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    control: Mutex<Control>,
    wake: Condvar,
    /// The thread is asleep or about to be.
    parked: AtomicBool,
    /// The thread was woken and has not run since. Changes under the lock of `control`.
    called: AtomicBool,
}

impl Waker {
    /// Wakes the thread if it sleeps.
    pub(crate) fn wake(&self) {
        // Of many who find it asleep one is enough.
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            let mut control = lock(&self.control);
            control.woken = true;
            let asleep = control.asleep;
            // Under the lock, or it could be set after the thread has come to clear it.
            self.called.store(asleep, Ordering::SeqCst);
            drop(control);
            if asleep {
                self.wake.notify_all();
            }
        }
    }

    /// Whether the thread was woken and has not run since.
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::SeqCst)
    }

    /// For the thread: whether it is to stop.
    pub(crate) fn check_stop(&self, number: ThreadNumber) -> Result<(), Stop> {
        if lock(&self.control).stop_through >= number.0 { Err(Stop) } else { Ok(()) }
    }

    /// For the thread: sleeps until `ready`, which it may look at more often than it changes.
    /// `before` is done each time before it looks.
    pub(crate) fn park_until(
        &self,
        number: ThreadNumber,
        mut before: impl FnMut(),
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), Stop> {
        loop {
            if !planted::is(Bug::LateAnnouncement) {
                self.parked.store(true, Ordering::SeqCst);
            }
            before();
            if ready() {
                self.parked.store(false, Ordering::SeqCst);
                return Ok(());
            }
            if planted::is(Bug::LateAnnouncement) {
                self.parked.store(true, Ordering::SeqCst);
            }
            // Under load the next wake-up is near.
            spin_until(|| !self.parked.load(Ordering::SeqCst));
            let mut control = lock(&self.control);
            while !control.woken && control.stop_through < number.0 {
                control.asleep = true;
                control = wait(&self.wake, control);
            }
            control.asleep = false;
            self.called.store(false, Ordering::SeqCst);
            control.woken = false;
            if control.stop_through >= number.0 {
                self.parked.store(false, Ordering::SeqCst);
                return Err(Stop);
            }
        }
    }

    /// Asks a thread, and those before it, to stop where they can.
    pub(crate) fn request_stop(&self, number: ThreadNumber) {
        let mut control = lock(&self.control);
        control.stop_through = control.stop_through.max(number.0);
        drop(control);
        self.wake.notify_all();
    }
}
