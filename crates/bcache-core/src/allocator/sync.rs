//! The primitives that the allocator's concurrent code is built on: std's, or a model checker's.
//!
//! Nothing else in the allocator names `std::sync` for what threads share, so that with the feature
//! `model` every interleaving of its locks, atomics and wake-ups is the checker's to choose.

#[cfg(feature = "model")]
pub(crate) use shuttle::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(feature = "model"))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
};

#[cfg(feature = "model")]
pub(crate) use shuttle::thread;
#[cfg(not(feature = "model"))]
pub(crate) use std::thread;

use std::sync::PoisonError;

/// Takes a lock, also after a thread panicked with it: the allocator's critical sections leave
/// their data consistent at every step that can panic, and an error is latched elsewhere.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `condvar`, giving up `guard` meanwhile.
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// A lock for a few instructions: taking it is one atomic operation, giving it up a plain store.
///
/// It guards no data of its own. A holder that is preempted makes others yield, not burn their time.
#[cfg(not(feature = "model"))]
#[derive(Debug, Default)]
pub(crate) struct BriefLock(AtomicBool);

#[cfg(not(feature = "model"))]
impl BriefLock {
    /// Takes the lock until the guard is dropped.
    pub(crate) fn lock(&self) -> BriefGuard<'_> {
        let mut tries = 0u32;
        while self
            .0
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            tries += 1;
            if tries % 64 == 0 {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        BriefGuard(&self.0)
    }
}

/// Holds a [`BriefLock`].
#[cfg(not(feature = "model"))]
pub(crate) struct BriefGuard<'a>(&'a AtomicBool);

#[cfg(not(feature = "model"))]
impl Drop for BriefGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What stands for it under the model checker, which explores no spinning.
#[cfg(feature = "model")]
#[derive(Debug, Default)]
pub(crate) struct BriefLock(Mutex<()>);

/// Holds a [`BriefLock`].
#[cfg(feature = "model")]
pub(crate) type BriefGuard<'a> = MutexGuard<'a, ()>;

#[cfg(feature = "model")]
impl BriefLock {
    /// Takes the lock until the guard is dropped.
    pub(crate) fn lock(&self) -> BriefGuard<'_> {
        lock(&self.0)
    }
}
