//! Several caches as one: up to eight, with buckets allocated on as many of them as are wanted.
//!
//! The order in which caches are asked is the one that the kernel's source names and never had:
//! the one with the most free buckets first, of equals the one whose oldest data is oldest.

use crate::units::{BucketIndex, Gen, Sectors};

use super::Mark;
use super::rescale::SetCounters;
use super::reserves::Reserve;
use super::sectors::BucketSource;
use super::shared::{AllocError, Shared};
use super::state::{Config, State, StateError};
use super::sync::Arc;
use super::table::TableError;

/// Caches that a set can have (FORMAT.md §1.4 row 20).
pub const CACHES_MAX: usize = 8;

/// A bucket of a set: what a pointer to it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetPointer {
    /// Number of the cache in its set (`PTR_DEV`).
    pub device: u16,
    /// The bucket.
    pub bucket: BucketIndex,
    /// Its gen when it was allocated (`PTR_GEN`).
    pub bucket_gen: Gen,
}

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
    /// A cache's state cannot be made.
    #[error("cache {device}")]
    State {
        /// The cache.
        device: usize,
        /// Why.
        source: StateError,
    },
}

/// The caches of a set and what they count together.
pub struct CacheSet {
    caches: Vec<Arc<Shared>>,
    counters: Arc<SetCounters>,
}

impl CacheSet {
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
            State::in_set(*config, Arc::clone(&counters), device)
                .map(Shared::new)
                .map_err(|source| SetError::State { device, source })
        });
        Ok(Self { caches: caches.collect::<Result<_, _>>()?, counters })
    }

    /// Its caches.
    pub fn caches(&self) -> &[Arc<Shared>] {
        &self.caches
    }

    /// What they count together.
    pub fn counters(&self) -> &SetCounters {
        &self.counters
    }

    /// One of its caches.
    pub fn cache(&self, device: u16) -> Result<&Arc<Shared>, AllocError> {
        self.caches.get(usize::from(device)).ok_or(AllocError::NoSuchCache { device })
    }

    /// The caches in the order in which they are asked.
    fn by_alloc(&self, reserve: Reserve) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.caches.len()).collect();
        if order.len() > 1 {
            order.sort_by_cached_key(|&device| {
                let free = self.caches.get(device).map_or(0, |cache| {
                    let state = cache.state();
                    let none = state.reserve_used(Reserve::None);
                    let more = match reserve {
                        Reserve::None => 0,
                        reserve => state.reserve_used(reserve),
                    };
                    // Without discards None is filled from here by whoever finds it empty: a cache
                    // that nobody asks stays at that.
                    let ready = if state.config().discard { 0 } else { state.ready_len() };
                    none + more + ready
                });
                (std::cmp::Reverse(free), self.counters.min_prio_of(device))
            });
        }
        order
    }

    fn alloc_on(
        &self,
        device: usize,
        reserve: Reserve,
        wait: bool,
    ) -> Result<SetPointer, AllocError> {
        let number = u16::try_from(device).unwrap_or(u16::MAX);
        let cache = self.cache(number)?;
        let bucket = cache.bucket_alloc(reserve, wait)?;
        let bucket_gen = cache.state().table().bucket_gen(bucket)?;
        Ok(SetPointer { device: number, bucket, bucket_gen })
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
        let mut pointers = Vec::with_capacity(count);
        for device in self.by_alloc(reserve).into_iter().take(count) {
            match self.alloc_on(device, reserve, wait) {
                Ok(pointer) => pointers.push(pointer),
                Err(error) => {
                    self.release_set(&pointers)?;
                    return Err(error);
                }
            }
        }
        Ok(pointers)
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
        self.caches.iter().for_each(|cache| cache.state().gc_start());
    }

    /// Ends a GC on all caches; `marks` as for [`State::gc_finish`], with the cache of each.
    pub fn gc_finish(&self, marks: &[(u16, BucketIndex, Mark)]) -> Result<(), TableError> {
        let (mut need_gc, mut avail_nbuckets) = (0, 0);
        for (device, cache) in self.caches.iter().enumerate() {
            let of_cache: Vec<_> = marks
                .iter()
                .filter(|(of, _, _)| usize::from(*of) == device)
                .map(|&(_, bucket, mark)| (bucket, mark))
                .collect();
            let summary = cache.state().gc_finish_part(&of_cache)?;
            need_gc = need_gc.max(summary.need_gc);
            avail_nbuckets += summary.avail_nbuckets;
        }
        self.counters.gc_finished(need_gc, avail_nbuckets);
        self.caches.iter().for_each(|cache| cache.gc_finished());
        Ok(())
    }
}

/// A set of one cache, as the sector allocator wants it.
pub struct OneCache(Arc<Shared>);

impl OneCache {
    /// The cache.
    pub fn new(cache: Arc<Shared>) -> Self {
        Self(cache)
    }
}

impl BucketSource for OneCache {
    fn bucket_alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError> {
        let bucket = self.0.bucket_alloc(reserve, wait)?;
        let bucket_gen = self.0.state().table().bucket_gen(bucket)?;
        Ok(SetPointer { device: 0, bucket, bucket_gen })
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        Ok(self.0.state().table().pin(pointer.bucket)?)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        Ok(self.0.state().table().unpin(pointer.bucket)?)
    }

    fn is_stale(&self, pointer: &SetPointer) -> bool {
        self.0.state().is_stale(pointer)
    }

    fn bucket_size(&self) -> Sectors {
        self.0.state().bucket_size()
    }

    fn block_size(&self) -> Sectors {
        self.0.state().block_size()
    }
}

impl BucketSource for CacheSet {
    fn bucket_alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError> {
        let first = self.by_alloc(reserve).first().copied().unwrap_or_default();
        self.alloc_on(first, reserve, wait)
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        Ok(self.cache(pointer.device)?.state().table().pin(pointer.bucket)?)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        Ok(self.cache(pointer.device)?.state().table().unpin(pointer.bucket)?)
    }

    fn is_stale(&self, pointer: &SetPointer) -> bool {
        self.cache(pointer.device)
            .ok()
            .and_then(|cache| cache.state().table().bucket_gen(pointer.bucket).ok())
            .is_none_or(|bucket_gen| bucket_gen != pointer.bucket_gen)
    }

    fn bucket_size(&self) -> Sectors {
        self.caches.first().map_or(Sectors(0), |c| c.state().config().geometry.bucket_size())
    }

    fn block_size(&self) -> Sectors {
        self.caches.first().map_or(Sectors(0), |c| c.state().config().geometry.block_size())
    }
}
