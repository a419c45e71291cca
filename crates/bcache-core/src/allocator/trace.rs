//! Hooks at the places where the kernel has its tracepoints `bcache_alloc`, `bcache_alloc_fail` and
//! `bcache_invalidate`.
//!
//! When nobody listens, a hook costs one load of a word that nobody writes.

use std::sync::OnceLock;

use crate::units::BucketIndex;

use super::reserves::Reserve;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// A bucket was allocated (`bcache_alloc`).
    Allocated {
        /// For which use.
        reserve: Reserve,
        /// The bucket.
        bucket: BucketIndex,
    },
    /// No bucket could be had (`bcache_alloc_fail`).
    AllocFailed {
        /// For which use.
        reserve: Reserve,
        /// Buckets in that reserve.
        free: usize,
        /// Buckets in `free_inc`.
        free_inc: usize,
        /// Freed btree nodes whose parents are not written yet.
        prio_blocked: u32,
    },
    /// A bucket that held data was invalidated (`bcache_invalidate`).
    Invalidated {
        /// The bucket.
        bucket: BucketIndex,
        /// Sectors of data that it held, at most 8191.
        sectors_used: u16,
    },
}

/// Listens to the allocator.
///
/// It is called in the thread that allocates or invalidates. Of an invalidation it is told in the
/// middle of a pass: it may look at buckets, hit and pin them, and must not allocate or run a GC.
pub trait Tracer: Send + Sync {
    /// Something happened on cache `device` of the set.
    fn trace(&self, device: u16, event: TraceEvent);
}

impl<T: Tracer + ?Sized> Tracer for std::sync::Arc<T> {
    fn trace(&self, device: u16, event: TraceEvent) {
        (**self).trace(device, event);
    }
}

/// Who listens to one cache.
#[derive(Default)]
pub(crate) struct TraceHook {
    device: u16,
    tracer: OnceLock<Box<dyn Tracer>>,
}

impl TraceHook {
    pub(crate) fn new(device: usize) -> Self {
        let device = u16::try_from(device).unwrap_or(u16::MAX);
        Self { device, tracer: OnceLock::new() }
    }

    pub(crate) fn set(&self, tracer: Box<dyn Tracer>) -> bool {
        self.tracer.set(tracer).is_ok()
    }

    /// Tells the listener, if there is one.
    pub(crate) fn tell(&self, event: impl FnOnce() -> TraceEvent) {
        if let Some(tracer) = self.tracer.get() {
            tracer.trace(self.device, event());
        }
    }
}
