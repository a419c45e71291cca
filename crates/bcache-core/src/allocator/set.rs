//! Several caches as one: up to eight, with buckets allocated on as many of them as are wanted.
//!
//! The order in which caches are asked is the one that the kernel's source names and never had:
//! the one with the most free buckets first, of equals the one whose oldest data is oldest.
//!
//! When a cache fails, the others go on: it is asked for nothing any more, and
//! [`failed_caches`](SetAllocator::failed_caches) names it. Only when fewer caches are left than a
//! request wants buckets does the request fail.

use super::core::{Config, NewAllocatorError};
use super::error::AllocError;
use super::mark::Mark;
use super::pointer::{CACHES_MAX, SetPointer};
use super::rescale::SetCounters;
use super::reserves::Reserve;
use super::sectors::BucketSource;
use super::shared::Allocator;
use super::sync::Arc;
use super::table::TableError;
use super::trace::Tracer;

use crate::units::BucketIndex;

/// Why a set cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// No cache, or more than eight.
    #[error("a set has 1 to {CACHES_MAX} caches, not {caches}")]
    WrongNumberOfCaches {
        /// How many were given.
        caches: usize,
    },
    /// Bucket or block size differ between caches.
    #[error("cache {device} differs from cache 0 in its bucket or block size")]
    Mismatch {
        /// The one that differs.
        device: usize,
    },
    /// A cache's allocator cannot be made.
    #[error("cache {device}")]
    Cache {
        /// The cache.
        device: usize,
        /// Why.
        source: NewAllocatorError,
    },
}

/// The caches of a set and what they count together.
pub struct SetAllocator {
    caches: Vec<Arc<Allocator>>,
    counters: Arc<SetCounters>,
}

impl SetAllocator {
    /// A set of caches, numbered in the order given.
    pub fn new(configs: &[Config]) -> Result<Self, SetError> {
        let caches = configs.len();
        let first = match configs.first() {
            Some(first) if caches <= CACHES_MAX => first.geometry,
            _ => return Err(SetError::WrongNumberOfCaches { caches }),
        };
        let nbuckets = configs.iter().map(|config| config.geometry.nbuckets()).sum();
        let counters = Arc::new(SetCounters::new(nbuckets, first.bucket_size().0, caches));
        let caches = configs.iter().enumerate().map(|(device, config)| {
            let geometry = config.geometry;
            if geometry.bucket_size() != first.bucket_size()
                || geometry.block_size() != first.block_size()
            {
                return Err(SetError::Mismatch { device });
            }
            Allocator::in_set(*config, Arc::clone(&counters), device)
                .map_err(|source| SetError::Cache { device, source })
        });
        Ok(Self { caches: caches.collect::<Result<_, _>>()?, counters })
    }

    /// Its caches.
    pub fn caches(&self) -> &[Arc<Allocator>] {
        &self.caches
    }

    /// What they count together.
    pub fn counters(&self) -> &SetCounters {
        &self.counters
    }

    /// One of its caches.
    pub fn cache(&self, device: u16) -> Result<&Arc<Allocator>, AllocError> {
        self.caches.get(usize::from(device)).ok_or(AllocError::NoSuchCache { device })
    }

    /// The caches whose device has failed, until their thread is started again.
    pub fn failed_caches(&self) -> Vec<u16> {
        (0u16..).zip(&self.caches).filter(|(_, cache)| cache.has_failed()).map(|(n, _)| n).collect()
    }

    /// Has `tracer` told of allocations and invalidations on all caches; false if somebody listens to
    /// one of them already.
    pub fn set_tracer(&self, tracer: &Arc<dyn Tracer>) -> bool {
        let mut all = true;
        for cache in &self.caches {
            all &= cache.core().set_tracer(Box::new(Arc::clone(tracer)));
        }
        all
    }

    /// The caches that have not failed, in the order in which they are asked.
    fn by_alloc(&self, reserve: Reserve) -> Vec<usize> {
        let healthy = |cache: &Arc<Allocator>| !cache.has_failed();
        let caches = self.caches.iter().enumerate().filter(|(_, cache)| healthy(cache));
        let mut order: Vec<_> = caches.map(|(device, _)| device).collect();
        if order.len() > 1 {
            order.sort_by_cached_key(|&device| {
                let free = self.caches.get(device).map_or(0, |cache| {
                    let core = cache.core();
                    let none = core.reserve_used(Reserve::None);
                    let more = match reserve {
                        Reserve::None => 0,
                        reserve => core.reserve_used(reserve),
                    };
                    // Without discards None is filled from here by whoever finds it empty: a cache
                    // that nobody asks stays at that.
                    let ready = if core.config().discard { 0 } else { core.ready_len() };
                    none + more + ready
                });
                (std::cmp::Reverse(free), self.counters.min_prio_of(device))
            });
        }
        order
    }

    /// Calls `alloc` with `count` caches that have not failed, in the order in which they are asked;
    /// again without those that fail meanwhile.
    fn on_healthy<T>(
        &self,
        reserve: Reserve,
        count: usize,
        mut alloc: impl FnMut(&[usize]) -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        // Each round but the last is one in which a cache failed.
        for _ in 0..=self.caches.len() {
            let order = self.by_alloc(reserve);
            let Some(chosen) = order.get(..count) else {
                let healthy = order.len();
                let none = healthy == 0;
                let too_few = AllocError::TooFewHealthyCaches { wanted: count, healthy };
                return Err(if none { AllocError::Failed } else { too_few });
            };
            match alloc(chosen) {
                Err(AllocError::Failed) => {}
                result => return result,
            }
        }
        Err(AllocError::Failed)
    }

    fn alloc_on(
        &self,
        device: usize,
        reserve: Reserve,
        wait: bool,
    ) -> Result<SetPointer, AllocError> {
        let number = u16::try_from(device).unwrap_or(u16::MAX);
        self.cache(number)?.alloc_pointer(reserve, wait)
    }

    /// Allocates one bucket on the cache that has the most free ones.
    pub fn bucket_alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError> {
        self.on_healthy(reserve, 1, |chosen| {
            let device = chosen.first().copied().unwrap_or_default();
            self.alloc_on(device, reserve, wait)
        })
    }

    /// Allocates one bucket on each of `count` caches (`bch_bucket_alloc_set`): all, or none.
    pub fn bucket_alloc_set(
        &self,
        reserve: Reserve,
        count: usize,
        wait: bool,
    ) -> Result<Vec<SetPointer>, AllocError> {
        let caches = self.caches.len();
        if count == 0 || count > caches {
            return Err(AllocError::NotThatManyCaches { wanted: count, caches });
        }
        self.on_healthy(reserve, count, |chosen| {
            let mut pointers = Vec::with_capacity(count);
            for &device in chosen {
                match self.alloc_on(device, reserve, wait) {
                    Ok(pointer) => pointers.push(pointer),
                    Err(error) => {
                        self.release_set(&pointers)?;
                        return Err(error);
                    }
                }
            }
            Ok(pointers)
        })
    }

    /// Whether the bucket has been invalidated since the pointer was made.
    pub fn is_stale(&self, pointer: &SetPointer) -> bool {
        self.cache(pointer.device)
            .ok()
            .and_then(|cache| cache.core().table().bucket_gen(pointer.bucket).ok())
            .is_none_or(|bucket_gen| bucket_gen != pointer.bucket_gen)
    }

    /// Frees buckets and drops the pins that came with them.
    pub fn release_set(&self, pointers: &[SetPointer]) -> Result<(), AllocError> {
        for pointer in pointers {
            self.cache(pointer.device)?.release(pointer.bucket)?;
        }
        Ok(())
    }

    /// Counts I/O; rescales every cache when due. True when it was.
    pub fn account_io(&self, sectors: u32) -> bool {
        let due = self.counters.account(sectors);
        if due {
            self.caches.iter().for_each(|cache| cache.rescale());
        }
        due
    }

    /// Begins a GC on all caches.
    pub fn gc_start(&self) {
        self.caches.iter().for_each(|cache| cache.core().gc_start());
    }

    /// Ends a GC on all caches, and wakes the threads that may have waited for it; `marks` as for
    /// [`Allocator::gc_finish`], with the cache of each.
    ///
    /// Where a mark cannot be set, the GC has not ended on that cache and those after it.
    pub fn gc_finish(&self, marks: &[(u16, BucketIndex, Mark)]) -> Result<(), TableError> {
        let (mut need_gc, mut avail_nbuckets) = (0, 0);
        for (device, cache) in (0u16..).zip(&self.caches) {
            let of_cache = marks.iter().filter(|(of, _, _)| *of == device);
            let summary =
                cache.core().gc_finish(of_cache.map(|&(_, bucket, mark)| (bucket, mark)))?;
            need_gc = need_gc.max(summary.need_gc);
            avail_nbuckets += summary.avail_nbuckets;
        }
        self.counters.gc_finished(need_gc, avail_nbuckets);
        self.caches.iter().for_each(|cache| cache.wake_thread());
        Ok(())
    }
}

impl BucketSource for SetAllocator {
    fn alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError> {
        self.bucket_alloc(reserve, wait)
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        self.cache(pointer.device)?.pin(pointer)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        self.cache(pointer.device)?.unpin(pointer)
    }
}
