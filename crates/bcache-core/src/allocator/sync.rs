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
