//! Several caches as one: who is asked, what they count together, and what happens when one fails.
#![cfg(not(feature = "model"))]

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bcache_core::allocator::{
    AllocError, Allocator, AllocatorThread, BucketSource, Config, Mark, PushStep, Reserve,
    ReuseReason, SectorAllocator, SectorRequest, SetAllocator, SetPointer, TraceEvent, Tracer,
};
use bcache_core::units::{BucketIndex, Gen, Geometry, Prio, Sectors};

mod allocator_support;

use allocator_support::{Disk, DiskIo, collect};

fn config() -> Config {
    Config::new(Geometry::new(3000, 3, Sectors(8), Sectors(8)).unwrap())
}

fn set(caches: usize) -> SetAllocator {
    let set = SetAllocator::new(&vec![config(); caches]).unwrap();
    set.gc_finish(&[]).unwrap();
    for cache in set.caches() {
        cache.refiller().unwrap().initial_fill();
    }
    set
}

/// The same, with reserves that are filled.
fn filled(caches: usize) -> SetAllocator {
    let set = set(caches);
    set.caches().iter().for_each(|cache| fill_reserves(cache));
    set
}

/// Fills the reserves of a cache.
fn fill_reserves(cache: &Allocator) {
    let refiller = cache.refiller().unwrap();
    refiller.invalidate().unwrap();
    refiller.make_ready(ReuseReason::NotSynced);
    while matches!(refiller.push_ready(), PushStep::Pushed(..)) {}
}

fn start(set: &SetAllocator, cache: usize, writes_left: u32) -> AllocatorThread<DiskIo> {
    let shared = Arc::clone(&set.caches()[cache]);
    let gc = Box::new(|shared: Arc<Allocator>| {
        thread::spawn(move || collect(&shared));
    });
    let disk: Arc<Mutex<Disk>> = Arc::default();
    AllocatorThread::start(&set.caches()[cache], DiskIo { shared, disk, writes_left, gc }).unwrap()
}

/// Waits at most 20 s.
fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A set of two whose cache 0 fails at its first write. Its reserves were full, and stay so.
fn set_with_failed_cache() -> (SetAllocator, [AllocatorThread<DiskIo>; 2]) {
    let set = set(2);
    set.caches().iter().for_each(|cache| fill_reserves(cache));
    let threads = [start(&set, 0, 0), start(&set, 1, u32::MAX)];
    while let Ok(bucket) = set.caches()[0].bucket_alloc(Reserve::None, true) {
        set.caches()[0].release(bucket).unwrap();
    }
    (set, threads)
}

#[test]
fn the_others_go_on_when_a_cache_fails_and_the_set_says_so() {
    let (set, [failed, healthy]) = set_with_failed_cache();
    assert_eq!(set.failed_caches(), [0]);
    assert!(failed.has_ended() && !healthy.has_ended());
    for _ in 0..200 {
        let got = set.bucket_alloc_set(Reserve::None, 1, true).unwrap();
        assert_eq!(got[0].device, 1);
        set.release_set(&got).unwrap();
    }
    let wants_two = set.bucket_alloc_set(Reserve::Btree, 2, true);
    assert_eq!(wants_two, Err(AllocError::TooFewHealthyCaches { wanted: 2, healthy: 1 }));
    // The device is there again.
    let (io, _) = failed.stop().err().unwrap();
    let io = DiskIo { writes_left: u32::MAX, ..io.unwrap() };
    let again = AllocatorThread::start(&set.caches()[0], io).unwrap();
    assert!(set.failed_caches().is_empty());
    let two = set.bucket_alloc_set(Reserve::None, 2, true).unwrap();
    set.release_set(&two).unwrap();
    assert!(again.stop().is_ok() && healthy.stop().is_ok());
}

#[test]
fn a_set_whose_caches_have_all_failed_fails() {
    let set = set(2);
    let threads = [start(&set, 0, 0), start(&set, 1, 0)];
    while set.failed_caches().len() < 2 {
        if let Ok(pointer) = set.bucket_alloc(Reserve::None, true) {
            set.release_set(&[pointer]).unwrap();
        }
    }
    assert_eq!(set.bucket_alloc(Reserve::None, true), Err(AllocError::Failed));
    assert_eq!(set.bucket_alloc_set(Reserve::None, 2, false), Err(AllocError::Failed));
    drop(threads);
}

/// Open buckets of the cache that failed are closed.
#[test]
fn sectors_come_from_the_caches_that_are_left() {
    let set = Arc::new(set(2));
    set.caches().iter().for_each(|cache| fill_reserves(cache));
    let geometry = Geometry::new(3000, 3, Sectors(64), Sectors(8)).unwrap();
    let sectors = SectorAllocator::new(Arc::clone(&set), &geometry, 1);
    let piece = |write_point, offset| {
        let request = SectorRequest {
            inode: 0,
            offset,
            sectors: 8,
            write_point,
            moving_gc: false,
            wait: false,
        };
        sectors.alloc_sectors(0, &request).map(|piece| {
            set.unpin(&piece.pointer).unwrap();
            piece.pointer.device
        })
    };
    // The caches take turns.
    let of: Vec<_> = (0..4).map(|n| piece(n, u64::from(n) * 1000).unwrap()).collect();
    assert_eq!(of.iter().filter(|&&device| device == 0).count(), 2, "{of:?}");
    let thread = start(&set, 0, 0);
    assert!(wait_until(|| {
        // So that it has something to write.
        let _ = set.caches()[0].bucket_alloc(Reserve::None, false);
        set.caches()[0].has_failed()
    }));
    for n in 0..4u32 {
        assert_eq!(piece(n, u64::from(n) * 1000 + 8), Ok(1));
    }
    drop(thread);
}

/// The kernel's prio_blocked is the set's: the threads of all caches may wait for it.
#[test]
fn unblocking_prios_wakes_the_threads_of_all_caches() {
    let set = set(3);
    set.counters().block_prios();
    let threads = [0, 1, 2].map(|cache| start(&set, cache, u32::MAX));
    // All have made their pass and wait for the btree.
    for cache in set.caches() {
        assert!(wait_until(|| !cache.core().free_inc_contents().is_empty()));
    }
    // Long enough for them to sleep; if they do not yet, there is nothing to wake.
    thread::sleep(Duration::from_millis(20));
    set.counters().unblock_prios();
    for (number, cache) in set.caches().iter().enumerate() {
        let wrote = wait_until(|| !cache.core().prio_chains().current().is_empty());
        assert!(wrote, "cache {number} was not woken");
    }
    drop(threads);
}

#[test]
fn a_gc_is_of_all_caches_and_its_figures_are_too() {
    let set = set(3);
    let valid = || {
        set.caches().iter().map(|cache| cache.core().table().gc_mark_valid()).collect::<Vec<_>>()
    };
    set.gc_start();
    assert_eq!(valid(), [false; 3]);
    // Only cache 0 has a key that lags behind its bucket's gen.
    let table = set.caches()[0].core().table();
    assert_eq!(table.mark_key(BucketIndex(2000), Gen(251), Mark::Reclaimable, 8), Ok(5));
    let dirty: Vec<_> = [(0, 10), (1, 20), (2, 15)]
        .into_iter()
        .flat_map(|(device, count)| {
            (0..count).map(move |n| (device, BucketIndex(1000 + n), Mark::Dirty))
        })
        .collect();
    set.gc_finish(&dirty).unwrap();
    assert_eq!(valid(), [true; 3]);
    assert_eq!(set.counters().need_gc(), 5);
    assert_eq!(set.counters().nbuckets(), 3 * 3000);
    let in_reserves: u64 = set
        .caches()
        .iter()
        .flat_map(|cache| Reserve::ALL.map(|reserve| cache.core().reserve_used(reserve) as u64))
        .sum();
    assert_eq!(set.counters().avail_nbuckets(), 3 * (3000 - 3) - 45 - in_reserves);
}

#[test]
fn lru_goes_by_the_least_prio_of_the_whole_set() {
    let set = SetAllocator::new(&[config(); 2]).unwrap();
    let (many_sectors, few_sectors) = (BucketIndex(100), BucketIndex(200));
    let table = set.caches()[0].core().table();
    for bucket in (3..3000).map(BucketIndex) {
        table.mark_key(bucket, Gen(0), Mark::Metadata, 8).unwrap();
        table.set_prio(bucket, Prio(25_000)).unwrap();
        set.caches()[1].core().table().set_prio(bucket, Prio(100)).unwrap();
    }
    set.gc_start();
    for (bucket, prio, sectors) in [(many_sectors, 20_001, 20), (few_sectors, 30_001, 4)] {
        table.mark_key(bucket, Gen(0), Mark::Reclaimable, sectors).unwrap();
        table.set_prio(bucket, Prio(prio)).unwrap();
    }
    let others = (3..3000).map(BucketIndex).filter(|&b| b != many_sectors && b != few_sectors);
    let marks: Vec<_> = others.map(|bucket| (0, bucket, Mark::Metadata)).collect();
    set.gc_finish(&marks).unwrap();
    assert!(set.account_io(1));
    assert_eq!(set.counters().min_prio(), 99);
    // By the least prio of its own cache, 20,000, the first one would be older.
    let refiller = set.caches()[0].refiller().unwrap();
    refiller.invalidate().unwrap();
    assert_eq!(refiller.core().free_inc_contents(), [few_sectors, many_sectors]);
}

#[test]
fn a_pointer_is_stale_once_its_bucket_has_another_gen() {
    let set = filled(2);
    let pointer = set.bucket_alloc(Reserve::None, false).unwrap();
    assert!(!set.is_stale(&pointer));
    assert!(set.is_stale(&SetPointer { bucket_gen: Gen(pointer.bucket_gen.0 + 1), ..pointer }));
    assert!(set.is_stale(&SetPointer { device: 2, ..pointer }));
    assert!(set.is_stale(&SetPointer { bucket: BucketIndex(3000), ..pointer }));
}

/// Counts what each cache tells.
#[derive(Default)]
struct Told(Mutex<[usize; 2]>);

impl Tracer for Told {
    fn trace(&self, device: u16, _event: TraceEvent) {
        self.0.lock().unwrap()[usize::from(device)] += 1;
    }
}

#[test]
fn a_tracer_listens_to_all_caches_and_is_told_when_one_has_another_already() {
    let of_all = Arc::new(Told::default());
    let listen = |set: &SetAllocator| {
        let tracer: Arc<dyn Tracer> = Arc::<Told>::clone(&of_all);
        set.set_tracer(&tracer)
    };
    let one = filled(2);
    assert!(listen(&one));
    one.bucket_alloc_set(Reserve::None, 2, false).unwrap();
    assert_eq!(*of_all.0.lock().unwrap(), [1, 1]);
    assert!(!listen(&one));
    let other = set(2);
    assert!(other.caches()[0].core().set_tracer(Box::new(Told::default())));
    assert!(!listen(&other));
}
