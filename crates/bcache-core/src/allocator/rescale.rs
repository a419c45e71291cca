//! What the caches of a set count together: the gens' distance, available buckets, and the I/O
//! after which all prios age (on-disk-format.md §9.5).

use super::sync::{Arc, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use super::waker::Waker;

/// The counters of a cache set.
///
/// Every one may be read and changed at any time by any thread. `avail_nbuckets` is a statistic, as
/// in the kernel: allocations that run while a GC ends may be missed by it until the next.
#[derive(Debug)]
pub struct SetCounters {
    nbuckets: u64,
    /// Sectors of I/O between two rescalings.
    interval: i64,
    rescale: AtomicI64,
    /// Of each cache.
    min_prio: Vec<AtomicU16>,
    need_gc: AtomicU8,
    avail_nbuckets: AtomicU64,
    prio_blocked: AtomicU32,
    /// Those of the caches' threads: what the set counts, each of them may wait for.
    wakers: Vec<Arc<Waker>>,
}

impl SetCounters {
    /// Counters for `nbuckets` buckets of `bucket_sectors` each, of all `caches` together.
    ///
    /// The first I/O rescales, because the counter starts at 0, as the kernel's.
    pub fn new(nbuckets: u64, bucket_sectors: u64, caches: usize) -> Self {
        let interval = nbuckets.saturating_mul(bucket_sectors) / 1024;
        Self {
            nbuckets,
            interval: i64::try_from(interval).unwrap_or(i64::MAX),
            rescale: AtomicI64::new(0),
            min_prio: (0..caches).map(|_| AtomicU16::new(0)).collect(),
            need_gc: AtomicU8::new(0),
            avail_nbuckets: AtomicU64::new(0),
            prio_blocked: AtomicU32::new(0),
            wakers: (0..caches).map(|_| Arc::default()).collect(),
        }
    }

    /// Counts `sectors` of I/O; true for the one caller who is now to rescale the set.
    pub fn account(&self, sectors: u32) -> bool {
        let left = self.rescale.fetch_sub(i64::from(sectors), Ordering::SeqCst);
        if left >= i64::from(sectors) {
            return false;
        }
        self.rescale
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                (left < 0).then(|| left.saturating_add(self.interval))
            })
            .is_ok()
    }

    /// Sectors of I/O left until the next rescaling.
    pub fn until_rescale(&self) -> i64 {
        self.rescale.load(Ordering::SeqCst)
    }

    /// The least prio that the last rescaling left: 0 before the first, 65535 if it aged nothing.
    pub fn min_prio(&self) -> u16 {
        self.min_prio.iter().map(|prio| prio.load(Ordering::SeqCst)).min().unwrap_or(0)
    }

    /// The same of one cache alone: how old its oldest data is.
    pub(crate) fn min_prio_of(&self, cache: usize) -> u16 {
        self.min_prio.get(cache).map_or(0, |prio| prio.load(Ordering::SeqCst))
    }

    pub(crate) fn set_min_prio(&self, cache: usize, min_prio: u16) {
        if let Some(prio) = self.min_prio.get(cache) {
            prio.store(min_prio, Ordering::SeqCst);
        }
    }

    /// The greatest distance of a gen from its `last_gc`; a GC is overdue above 96.
    pub fn need_gc(&self) -> u8 {
        self.need_gc.load(Ordering::SeqCst)
    }

    pub(crate) fn raise_need_gc(&self, gc_gen: u8) {
        self.need_gc.fetch_max(gc_gen, Ordering::SeqCst);
    }

    pub(crate) fn gc_finished(&self, need_gc: u8, avail_nbuckets: u64) {
        self.need_gc.store(need_gc, Ordering::SeqCst);
        self.avail_nbuckets.store(avail_nbuckets, Ordering::SeqCst);
    }

    /// Buckets of the set.
    pub fn nbuckets(&self) -> u64 {
        self.nbuckets
    }

    /// Buckets that could be allocated as of the last GC, less those allocated since, plus those
    /// freed since.
    pub fn avail_nbuckets(&self) -> u64 {
        self.avail_nbuckets.load(Ordering::SeqCst)
    }

    pub(crate) fn bucket_allocated(&self) {
        let _ = self
            .avail_nbuckets
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |avail| avail.checked_sub(1));
    }

    pub(crate) fn bucket_freed(&self) {
        let _ = self.avail_nbuckets.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |avail| {
            (avail < self.nbuckets).then_some(avail + 1)
        });
    }

    /// `in_use`: percent of the buckets that are not available, as the kernel rounds it. Above 95 it
    /// bypasses the cache.
    pub fn in_use_percent(&self) -> u8 {
        let used = self.nbuckets.saturating_sub(self.avail_nbuckets());
        used.saturating_mul(100)
            .checked_div(self.nbuckets)
            .and_then(|percent| u8::try_from(percent).ok())
            .unwrap_or(100)
    }

    /// Btree nodes that were freed while their parents still point to them on disk. While there are
    /// any, prios must not be written: the freed nodes' new gens would make the parents unreadable.
    pub fn prio_blocked(&self) -> u32 {
        self.prio_blocked.load(Ordering::SeqCst)
    }

    /// Keeps the prios of all caches of the set from being written, until
    /// [`unblock_prios`](Self::unblock_prios): a btree node was freed whose parent still points to it
    /// on disk.
    pub fn block_prios(&self) {
        self.prio_blocked.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends one [`block_prios`](Self::block_prios). The last one wakes the threads of all caches of the
    /// set; true when this was it.
    pub fn unblock_prios(&self) -> bool {
        let last = self
            .prio_blocked
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            == Ok(1);
        if last {
            self.wakers.iter().for_each(|waker| waker.wake());
        }
        last
    }

    /// What wakes the thread of one cache.
    pub(crate) fn waker(&self, cache: usize) -> Option<&Arc<Waker>> {
        self.wakers.get(cache)
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;

    #[test]
    fn io_rescales_at_once_and_then_every_1024th_of_the_cache() {
        let set = SetCounters::new(1024, 1024, 1);
        assert!(set.account(8));
        assert_eq!(set.until_rescale(), 1016);
        assert!(!set.account(1016));
        assert!(set.account(1));
        // One rescaling a request, however large.
        assert!(set.account(5000));
        assert_eq!(set.until_rescale(), 1023 - 5000 + 1024);
        assert!(set.account(0));
    }
    #[test]
    fn as_many_buckets_are_available_as_there_are_at_most() {
        let set = SetCounters::new(10, 8, 1);
        set.gc_finished(7, 9);
        assert_eq!((set.need_gc(), set.avail_nbuckets(), set.in_use_percent()), (7, 9, 10));
        set.bucket_freed();
        set.bucket_freed();
        assert_eq!((set.avail_nbuckets(), set.in_use_percent()), (10, 0));
        (0..12).for_each(|_| set.bucket_allocated());
        assert_eq!((set.avail_nbuckets(), set.in_use_percent()), (0, 100));
        set.raise_need_gc(3);
        assert_eq!(set.need_gc(), 7);
    }

    #[test]
    fn prios_are_blocked_until_as_many_have_unblocked_them() {
        let set = SetCounters::new(10, 8, 1);
        set.block_prios();
        set.block_prios();
        assert!(!set.unblock_prios());
        assert_eq!(set.prio_blocked(), 1);
        assert!(set.unblock_prios());
        assert!(!set.unblock_prios());
        assert_eq!(set.prio_blocked(), 0);
    }
}
