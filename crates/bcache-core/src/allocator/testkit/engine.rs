//! The reference engine behind its one lock, with the waiting and waking of the kernel's thread
//! (on-disk-format.md §9.6, §9.7): whoever allocates waits for whatever the thread does with the lock held,
//! its passes included.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::allocator::{Mark, Reserve};
use crate::units::Gen;

use super::{OpenBuckets, Piece, Reference};

/// What the lock protects.
struct Inner {
    engine: Reference,
    open_buckets: OpenBuckets,
    stop: bool,
    passes: u64,
}

/// The engine, its lock and its two queues of waiters.
pub struct Locked {
    inner: Mutex<Inner>,
    bucket_wait: Condvar,
    thread_wait: Condvar,
}

impl Locked {
    /// Wraps an engine.
    pub fn new(engine: Reference) -> Arc<Self> {
        let inner = Inner { engine, open_buckets: OpenBuckets::default(), stop: false, passes: 0 };
        Arc::new(Self {
            inner: Mutex::new(inner),
            bucket_wait: Condvar::new(),
            thread_wait: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates a bucket, waiting for one if there is none; `None` when the thread has stopped.
    pub fn bucket_alloc(&self, reserve: Reserve) -> Option<usize> {
        let mut inner = self.lock();
        loop {
            if let Some(bucket) = inner.engine.bucket_alloc(reserve) {
                self.thread_wait.notify_one();
                return Some(bucket);
            }
            if inner.stop {
                return None;
            }
            inner = self.bucket_wait.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Drops a pin.
    pub fn unpin(&self, bucket: usize) {
        self.lock().engine.buckets[bucket].pin -= 1;
    }

    /// Allocates sectors, and drops the pin that an earlier piece holds, under one lock. When no
    /// bucket is free, `refill` is to free some.
    pub fn alloc_sectors(
        &self,
        request: (u32, u64, u64, u32),
        done: Option<usize>,
        mut refill: impl FnMut(&mut Reference),
    ) -> Option<Piece> {
        let mut inner = self.lock();
        let Inner { engine, open_buckets, .. } = &mut *inner;
        if let Some(bucket) = done {
            engine.buckets[bucket].pin -= 1;
        }
        let (inode, offset, sectors, write_point) = request;
        let mut alloc = |engine: &mut Reference| {
            open_buckets.alloc_sectors(engine, inode, offset, sectors, write_point, false, 8)
        };
        alloc(engine).or_else(|| {
            refill(engine);
            alloc(engine)
        })
    }

    /// Passes of the thread so far.
    pub fn passes(&self) -> u64 {
        self.lock().passes
    }

    /// Starts the allocator thread.
    pub fn start(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let locked = Arc::clone(self);
        std::thread::Builder::new().name("reference".into()).spawn(move || locked.run())
    }

    /// Stops it and fails those who wait.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.thread_wait.notify_all();
        self.bucket_wait.notify_all();
    }

    fn run(&self) {
        let mut inner = self.lock();
        while !inner.stop {
            if !inner.engine.free_inc.items.is_empty() {
                if inner.engine.push_one().is_some() {
                    self.bucket_wait.notify_all();
                } else {
                    inner = self.thread_wait.wait(inner).unwrap_or_else(PoisonError::into_inner);
                }
                continue;
            }
            if inner.engine.invalidate_needs_gc {
                collect(&mut inner.engine);
            }
            inner.engine.invalidate_buckets();
            inner.passes += 1;
            if inner.engine.free_inc.full() {
                // Written nowhere: only the buckets change hands.
                inner.engine.prio_write();
            }
        }
    }
}

/// A GC that finds every unpinned bucket half full of clean data.
fn collect(engine: &mut Reference) {
    engine.gc_start();
    for b in engine.first..engine.buckets.len() {
        let bucket_gen = Gen(engine.buckets[b].bucket_gen);
        if engine.buckets[b].mark == Mark::None {
            engine.mark_key(b, bucket_gen, Mark::Reclaimable, 512);
        }
    }
    engine.gc_finish(&[]);
}
