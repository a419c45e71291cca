//! The garbage collector of a run: a thread that marks what the index points to.
//!
//! It runs when the allocator thread asks for it, and after a sixteenth of the cache was written, as
//! the kernel's does (`sectors_to_gc`).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bcache_core::allocator::AllocError;
use bcache_core::ops::start::RunningSet;

use super::index::KeyIndex;

/// GCs after each such part of the cache.
const CACHE_SHARE: u64 = 16;

#[derive(Debug, Default)]
struct Wishes {
    collect: bool,
    end: bool,
}

/// What wakes the collector.
#[derive(Debug)]
pub struct Collector {
    wishes: Mutex<Wishes>,
    changed: Condvar,
    /// Sectors that may be written before the next GC.
    left: AtomicI64,
    interval: i64,
}

impl Collector {
    /// A collector for caches of so many sectors together.
    pub fn new(cache_sectors: u64) -> Self {
        let interval = i64::try_from(cache_sectors / CACHE_SHARE).unwrap_or(i64::MAX).max(1);
        Self {
            wishes: Mutex::default(),
            changed: Condvar::new(),
            left: AtomicI64::new(interval),
            interval,
        }
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a GC.
    pub fn wake(&self) {
        self.wishes().collect = true;
        self.changed.notify_one();
    }

    /// Counts what was written.
    pub fn wrote(&self, sectors: i64) {
        if self.left.fetch_sub(sectors, Ordering::Relaxed) < sectors {
            self.left.store(self.interval, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Ends [`run`](Self::run), once a GC that it is in has ended.
    pub fn end(&self) {
        self.wishes().end = true;
        self.changed.notify_one();
    }

    /// Collects whenever asked, until the end; how often it did.
    pub fn run(&self, set: &RunningSet, index: &KeyIndex) -> Result<u64, AllocError> {
        let allocator = set.allocator();
        let mut gcs = 0;
        let mut result = Ok(());
        loop {
            let mut wishes = self
                .changed
                .wait_while(self.wishes(), |wishes| !wishes.collect && !wishes.end)
                .unwrap_or_else(PoisonError::into_inner);
            if wishes.end {
                // What is still wished for is for the next run.
                wishes.end = false;
                return result.map(|()| gcs);
            }
            wishes.collect = false;
            drop(wishes);
            allocator.gc_start();
            let marked = index.mark(allocator);
            // Also after an error: nobody is to wait for this for ever.
            let finished = allocator.gc_finish(&set.metadata_marks()).map_err(AllocError::from);
            result = result.and(marked).and(finished);
            gcs += 1;
        }
    }
}
