//! The allocator thread over a device that fails, and the allocator under real threads.
#![cfg(not(feature = "model"))]

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bcache_core::allocator::{
    AllocError, Allocator, AllocatorThread, Config, Lifecycle, Mark, Policy, PushStep, Reserve,
    ReuseReason, SectorAllocator, SectorRequest, SetAllocator, ThreadError, write_prios,
};
use bcache_core::units::{BucketIndex, Gen, Geometry, Prio, Sectors};

mod allocator_support;

use allocator_support::{DeviceFailed, Disk, DiskIo, collect, collect_keeping};

/// Three prio sets a chain.
fn config(nbuckets: u64) -> Config {
    let geometry = Geometry::new(nbuckets, 3, Sectors(8), Sectors(8)).unwrap();
    let mut config = Config::new(geometry);
    config.expensive_debug_checks = true;
    config
}

fn collect_in_thread(shared: Arc<Allocator>) {
    thread::spawn(move || collect(&shared));
}

struct Setup {
    shared: Arc<Allocator>,
    disk: Arc<Mutex<Disk>>,
}

impl Setup {
    fn new(config: Config) -> Self {
        let shared = Allocator::new(config).unwrap();
        shared.gc_finish(&[]).unwrap();
        shared.refiller().unwrap().initial_fill();
        Self { shared, disk: Arc::default() }
    }

    fn io(&self, writes_left: u32) -> DiskIo {
        let (shared, disk) = (Arc::clone(&self.shared), Arc::clone(&self.disk));
        DiskIo { shared, disk, writes_left, gc: Box::new(collect_in_thread) }
    }

    /// Allocates until there is an error, checking that each bucket is safe to overwrite.
    fn allocate(&self, most: usize) -> (usize, Option<AllocError>) {
        for count in 0..most {
            match self.shared.bucket_alloc(Reserve::None, true) {
                Ok(bucket) => {
                    let table = self.shared.core().table();
                    let bucket_gen = table.bucket_gen(bucket).unwrap();
                    self.disk.lock().unwrap().assert_safe(bucket, bucket_gen);
                    self.shared.release(bucket).unwrap();
                }
                Err(error) => return (count, Some(error)),
            }
        }
        (most, None)
    }
}

#[test]
fn every_bucket_handed_out_is_durable_whenever_the_device_fails() {
    let mut handed_out = 0;
    for writes in 0..40 {
        let setup = Setup::new(config(3000));
        assert_eq!(setup.shared.core().sizes().prio, 3);
        let allocator = AllocatorThread::start(&setup.shared, setup.io(writes)).unwrap();
        let (count, error) = setup.allocate(usize::MAX);
        assert_eq!(error, Some(AllocError::Failed), "after {writes} writes");
        handed_out += count;
        // Nothing comes out of it any more, not even what is in reserves.
        assert_eq!(setup.shared.bucket_alloc(Reserve::Btree, false), Err(AllocError::Failed));
        assert!(setup.shared.has_failed());
        let (io, error) = allocator.stop().err().unwrap();
        assert!(matches!(error, ThreadError::Io(DeviceFailed)));
        setup.shared.core().check().unwrap();
        // The device recovers: what was in doubt is not used before prios are written again.
        let io = DiskIo { writes_left: u32::MAX, ..io.unwrap() };
        let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
        assert_eq!(setup.allocate(100), (100, None), "after {writes} writes");
        assert!(allocator.stop().is_ok());
        setup.shared.core().check().unwrap();
    }
    assert!(handed_out > 100, "the run handed out only {handed_out} buckets");
}

#[test]
fn stopping_fails_those_who_wait_and_keeps_what_was_not_durable() {
    for round in 0..20 {
        let setup = Setup::new(config(3000));
        let allocator = AllocatorThread::start(&setup.shared, setup.io(u32::MAX)).unwrap();
        let shared = Arc::clone(&setup.shared);
        let waiter = thread::spawn(move || {
            let mut error = None;
            while error.is_none() {
                error = shared.bucket_alloc(Reserve::MovingGc, true).err();
            }
            error
        });
        thread::sleep(Duration::from_micros(round * 50));
        let io = allocator.stop().ok().unwrap();
        let error = waiter.join().unwrap();
        assert!(matches!(error, Some(AllocError::Stopped { .. })), "{error:?}");
        let state = setup.shared.core();
        state.check().unwrap();
        for bucket in state.free_inc_contents() {
            let place = state.lifecycle(bucket).unwrap();
            if place == Lifecycle::Ready {
                let bucket_gen = state.table().bucket_gen(bucket).unwrap();
                setup.disk.lock().unwrap().assert_safe(bucket, bucket_gen);
            } else {
                assert_eq!(place, Lifecycle::Invalidated);
            }
        }
        collect(&setup.shared);
        let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
        assert_eq!(setup.allocate(50), (50, None));
        assert!(allocator.stop().is_ok());
    }
}

/// Without an unreferenced bucket there is none for prio sets. Nothing may be handed out then; as soon
/// as GC finds some, everything moves.
#[test]
fn a_full_cache_waits_for_gc_instead_of_using_buckets_too_early() {
    let shared = full(config(3000), &[]);
    assert_eq!(shared.refiller().unwrap().initial_fill(), 0);
    let setup = Setup { shared, disk: Arc::default() };
    // The first GCs find every bucket referenced, as before: those that a pass took by keys that are
    // stale now.
    let io = DiskIo {
        gc: Box::new(|shared| {
            thread::spawn(move || {
                shared.gc_start();
                for bucket in (3..3000).map(BucketIndex) {
                    shared.core().table().mark_key(bucket, Gen(7), Mark::Reclaimable, 8).unwrap();
                }
                thread::sleep(Duration::from_millis(1));
                shared.gc_finish(&[]).unwrap();
            });
        }),
        ..setup.io(u32::MAX)
    };
    let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
    thread::sleep(Duration::from_millis(50));
    let nothing = setup.shared.bucket_alloc(Reserve::None, false);
    assert!(matches!(nothing, Err(AllocError::WouldBlock { .. })), "{nothing:?}");
    assert!(!setup.disk.lock().unwrap().has_prios());
    let io = allocator.stop().ok().unwrap();
    let io = DiskIo { gc: Box::new(collect_in_thread), ..io };
    let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
    collect(&setup.shared);
    assert_eq!(setup.allocate(100), (100, None));
    assert!(allocator.stop().is_ok());
    setup.shared.core().check().unwrap();
}

/// Every bucket holds data but `unmarked`, which nothing points to.
fn full(config: Config, unmarked: &[u64]) -> Arc<Allocator> {
    let shared = Allocator::new(config).unwrap();
    let (table, refiller) = (shared.core().table(), shared.refiller().unwrap());
    let first = config.geometry.first_bucket().0;
    for bucket in (first..config.geometry.nbuckets()).filter(|bucket| !unmarked.contains(bucket)) {
        let bucket = BucketIndex(bucket);
        refiller.load(bucket, Prio(1000), Gen(7)).unwrap();
        table.mark_key(bucket, Gen(7), Mark::Reclaimable, 8).unwrap();
    }
    drop(refiller);
    shared.gc_finish(&[]).unwrap();
    shared
}

fn collect_keeping_in_thread(shared: Arc<Allocator>) {
    thread::spawn(move || {
        collect_keeping(&shared);
        // Whoever needs one after the other without end is not to take the whole processor.
        thread::sleep(Duration::from_millis(1));
    });
}

/// Waits until `free_inc` is full: what is freed after that can only go to the reserves.
fn wait_for_pass(shared: &Allocator) {
    while shared.core().free_inc_contents().len() < shared.core().sizes().free_inc {
        thread::yield_now();
    }
}

/// A full cache whose only buckets for a chain are btree nodes that were freed, and whose parents
/// are not written yet.
#[test]
fn freed_nodes_are_not_used_before_their_parents_are_written() {
    let setup = Setup { shared: full(config(3000), &[]), disk: Arc::default() };
    let table = setup.shared.core().table();
    let nodes = [100, 101, 102].map(BucketIndex);
    for node in nodes {
        table.pin(node).unwrap();
        table.set_mark(node, Mark::Metadata).unwrap();
    }
    let io = DiskIo { gc: Box::new(collect_keeping_in_thread), ..setup.io(u32::MAX) };
    let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
    wait_for_pass(&setup.shared);
    setup.shared.core().set().block_prios();
    nodes.into_iter().try_for_each(|node| setup.shared.release(node)).unwrap();
    thread::sleep(Duration::from_millis(50));
    collect_keeping(&setup.shared);
    thread::sleep(Duration::from_millis(20));
    for node in nodes {
        assert_eq!(setup.shared.core().lifecycle(node).unwrap(), Lifecycle::InUse);
    }
    assert!(!setup.disk.lock().unwrap().has_prios());
    setup.shared.core().set().unblock_prios();
    assert_eq!(setup.allocate(1), (1, None));
    assert!(allocator.stop().is_ok());
    setup.shared.core().check().unwrap();
}

/// While a GC runs, what it has not come to yet has no mark, and may hold anything.
#[test]
fn the_reserves_are_not_filled_while_a_gc_runs() {
    let mut config = config(3000);
    config.reclaim_in_gc = true;
    let shared = full(config, &[]);
    let refiller = shared.refiller().unwrap();
    shared.gc_start();
    assert_eq!((refiller.initial_fill(), refiller.fill_unreferenced()), (0, 0));
    shared.gc_finish(&[]).unwrap();
    assert!(refiller.fill_unreferenced() > 0);
}

/// What is put into a bucket while a GC runs was not there when it began.
#[test]
fn a_bucket_is_invalidated_once_while_a_gc_runs() {
    let mut config = config(3000);
    config.reclaim_in_gc = true;
    let shared = full(config, &[]);
    let (state, refiller) = (shared.core(), shared.refiller().unwrap());
    shared.gc_start();
    refiller.invalidate().unwrap();
    refiller.make_ready(ReuseReason::NotSynced);
    while state.reserve_used(Reserve::Btree) == 0 {
        refiller.push_ready();
    }
    let bucket = state.bucket_alloc(Reserve::Btree).unwrap().unwrap();
    state.bucket_free(bucket).unwrap();
    state.table().unpin(bucket).unwrap();
    assert_eq!(state.table().can_invalidate(bucket), Ok(false));
    assert_eq!(state.table().can_invalidate(BucketIndex(2000)), Ok(true));
    shared.gc_finish(&[]).unwrap();
    assert_eq!(state.table().can_invalidate(bucket), Ok(true));
    state.check().unwrap();
}

/// The buckets of a chain that failed are the first that a pass takes, and on a full cache the only ones
/// for the next chain: a GC after the pass gives them back.
#[test]
fn what_a_pass_took_serves_a_chain_once_gc_finds_it_unreferenced() {
    let (unmarked, stale) = (BucketIndex(200), BucketIndex(300));
    let shared = full(config(600), &[unmarked.0]);
    let (state, refiller) = (shared.core(), shared.refiller().unwrap());
    state.table().set_prio(stale, Prio(1)).unwrap();
    refiller.invalidate().unwrap();
    let taken = state.free_inc_contents();
    assert!(taken.contains(&unmarked) && taken.contains(&stale), "{taken:?}");
    // A crash brings back its gen from before the pass, and nobody has looked for pointers since.
    assert_eq!(refiller.fill_unreferenced(), 0);
    collect_keeping(&shared);
    state.set().block_prios();
    assert_eq!(refiller.fill_unreferenced(), 0);
    state.set().unblock_prios();
    // The keys are stale now, but a crash would make them valid again.
    shared.gc_start();
    for bucket in (3..600).map(BucketIndex).filter(|&bucket| bucket != unmarked) {
        state.table().mark_key(bucket, Gen(7), Mark::Reclaimable, 8).unwrap();
    }
    shared.gc_finish(&[]).unwrap();
    assert_eq!(refiller.fill_unreferenced(), 1);
    assert_eq!(state.reserve_contents(Reserve::Prio), [unmarked]);
    assert_eq!(state.free_inc_contents().len(), taken.len() - 1);
    state.check().unwrap();
}

/// A pointer that is stale now is none after a crash that brings the old gen back.
#[test]
fn a_bucket_with_stale_pointers_is_not_unreferenced() {
    let (stale, risen, unmarked) = (BucketIndex(10), BucketIndex(11), BucketIndex(12));
    let shared = full(config(3000), &[stale.0, risen.0, unmarked.0]);
    let (state, refiller) = (shared.core(), shared.refiller().unwrap());
    assert_eq!(state.table().mark_key(stale, Gen(255), Mark::Reclaimable, 8), Ok(1));
    state.table().pin(risen).unwrap();
    state.inc_gen(risen).unwrap();
    state.table().unpin(risen).unwrap();
    assert_eq!(refiller.fill_unreferenced(), 1);
    assert_eq!(state.reserve_contents(Reserve::Prio), [unmarked]);
    // At registration the gens are those of the device.
    assert_eq!(refiller.initial_fill(), 2);
}

/// What falls due while the thread is in I/O is one rescaling each, and all are done.
#[test]
fn rescalings_that_fall_due_while_the_thread_is_busy_all_count() {
    let setup = Setup::new(config(3000));
    let bucket = BucketIndex(2000);
    setup.shared.core().table().set_prio(bucket, Prio(1000)).unwrap();
    // As many as this sector count makes due, one each.
    let interval = u32::try_from(3000 * 8 / 1024 + 1).unwrap();
    // The device is busy until it gets its lock back.
    let device = Arc::clone(&setup.disk);
    let busy = device.lock().unwrap();
    let allocator = AllocatorThread::start(&setup.shared, setup.io(u32::MAX)).unwrap();
    // By then the thread waits for the device.
    while setup.shared.core().prio_chains().seq() == 0 {
        thread::yield_now();
    }
    let due = (0..7).filter(|_| setup.shared.account_io(interval)).count();
    assert_eq!(due, 7);
    drop(busy);
    while setup.shared.core().table().bucket(bucket).unwrap().prio == Prio(1000) {
        thread::yield_now();
    }
    assert!(allocator.stop().is_ok());
    assert_eq!(setup.shared.core().table().bucket(bucket).unwrap().prio, Prio(1000 - 7));
    // The others had 0.
    assert_eq!(setup.shared.core().set().min_prio(), 1000 - 7);
}

#[test]
fn a_cache_has_one_thread_at_a_time() {
    let setup = Setup::new(config(3000));
    let allocator = AllocatorThread::start(&setup.shared, setup.io(u32::MAX)).unwrap();
    let second = AllocatorThread::start(&setup.shared, setup.io(u32::MAX));
    assert!(matches!(second, Err(ThreadError::AlreadyRunning)));
    assert!(setup.shared.has_thread());
    assert_eq!(setup.allocate(50), (50, None));
    let io = allocator.stop().ok().unwrap();
    let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
    assert_eq!(setup.allocate(50), (50, None));
    assert!(allocator.stop().is_ok());
}

#[test]
fn who_waits_for_a_reserve_gets_it_or_an_error() {
    let setup = Setup::new(config(3000));
    let allocator = AllocatorThread::start(&setup.shared, setup.io(40)).unwrap();
    let capacity = setup.shared.core().sizes().btree;
    let reserve = Reserve::Btree;
    assert_eq!(setup.shared.wait_for_reserve(reserve, capacity), Ok(()));
    assert_eq!(
        setup.shared.wait_for_reserve(reserve, capacity + 1),
        Err(AllocError::NeverThatMany { reserve, wanted: capacity + 1, capacity })
    );
    assert_eq!(setup.allocate(usize::MAX).1, Some(AllocError::Failed));
    assert_eq!(setup.shared.core().reserve_used(reserve), capacity);
    assert_eq!(setup.shared.wait_for_reserve(reserve, capacity), Err(AllocError::Failed));
    drop(allocator);
}

#[test]
fn a_hit_through_a_stale_pointer_changes_nothing() {
    let setup = Setup::new(config(3000));
    let state = setup.shared.core();
    let bucket = state.bucket_alloc(Reserve::Prio).unwrap().unwrap();
    let table = state.table();
    let bucket_gen = table.bucket_gen(bucket).unwrap();
    let old = Gen(bucket_gen.0.wrapping_sub(1));
    assert_eq!(table.hit_through(bucket, old), Ok(false));
    assert_eq!(table.bucket(bucket).unwrap().prio, Prio::BTREE);
    assert_eq!(table.hit_through(bucket, bucket_gen), Ok(true));
    assert_eq!(table.bucket(bucket).unwrap().prio, Prio::INITIAL);
}

/// A bucket, or why there is none; `WouldBlock` if there is none for long.
fn next_bucket(shared: &Allocator) -> Result<BucketIndex, AllocError> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match shared.bucket_alloc(Reserve::None, false) {
            Err(AllocError::WouldBlock { .. }) if Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// The journal entry fails on a full cache, where the only buckets for the next chain are those of the
/// chain before: which of the two is current is found out first.
#[test]
fn a_full_cache_goes_on_after_a_failed_journal_entry() {
    for failing in [4, 5] {
        let shared = full(config(3000), &[3, 4, 5]);
        let setup = Setup { shared, disk: Arc::default() };
        let (state, refiller) = (setup.shared.core(), setup.shared.refiller().unwrap());
        assert_eq!(refiller.initial_fill(), 3);
        let keeping = |io: DiskIo| DiskIo { gc: Box::new(collect_keeping_in_thread), ..io };
        let mut io = keeping(setup.io(u32::MAX));
        assert!(write_prios(&refiller, &mut io).is_ok());
        let old = state.prio_chains().current().to_vec();
        // Three more, for one chain; then all is full.
        let next = [6, 7, 8].map(BucketIndex);
        for bucket in next {
            state.bucket_free(bucket).unwrap();
        }
        assert_eq!(refiller.fill_unreferenced(), 3);
        drop(refiller);

        // Three sets and a flush; then the entry or its flush fails.
        let allocator = AllocatorThread::start(&setup.shared, keeping(setup.io(failing))).unwrap();
        assert_eq!(setup.allocate(usize::MAX), (0, Some(AllocError::Failed)));
        assert!(allocator.stop().is_err());
        assert_eq!(state.prio_chains().current(), old);
        assert_eq!(state.prio_chains().in_doubt(), Some(&next.map(|b| BucketIndex(14 - b.0))[..]));
        assert_eq!(state.reserve_used(Reserve::Prio) + state.reserve_used(Reserve::None), 0);

        // It fails once more: nothing is lost, and nothing handed out.
        let allocator = AllocatorThread::start(&setup.shared, keeping(setup.io(failing - 4)));
        assert_eq!(next_bucket(&setup.shared), Err(AllocError::Failed));
        assert!(allocator.unwrap().stop().is_err());
        assert_eq!(state.prio_chains().current(), old);

        let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
        let bucket = next_bucket(&setup.shared).unwrap();
        // The chain that was in doubt became current without making anything ready: that did the next.
        let bucket_gen = state.table().bucket_gen(bucket).unwrap();
        setup.disk.lock().unwrap().assert_safe(bucket, bucket_gen);
        setup.shared.release(bucket).unwrap();
        assert_eq!(state.prio_chains().in_doubt(), None);
        assert!(allocator.stop().is_ok());
        state.check().unwrap();
    }
}

#[test]
fn an_unsynced_set_writes_nothing() {
    let mut config = config(3000);
    config.sync = false;
    let setup = Setup::new(config);
    let allocator = AllocatorThread::start(&setup.shared, setup.io(0)).unwrap();
    for _ in 0..100 {
        let bucket = setup.shared.bucket_alloc(Reserve::None, true).unwrap();
        setup.shared.release(bucket).unwrap();
    }
    assert!(allocator.stop().is_ok());
    assert!(!setup.disk.lock().unwrap().has_prios());
}

/// A chain takes free buckets itself. Whoever fills what the last chain took never ends, and one bucket
/// of data after the other goes.
#[test]
fn an_idle_cache_writes_nothing() {
    for nbuckets in [513, 600, 1024, 1025, 2048, 3000, 8192, 16384, 32768, 65536] {
        let shared = full(config(nbuckets), &(100..400).collect::<Vec<_>>());
        shared.refiller().unwrap().initial_fill();
        let setup = Setup { shared, disk: Arc::default() };
        let io = DiskIo { gc: Box::new(collect_keeping_in_thread), ..setup.io(u32::MAX) };
        let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
        assert_eq!(setup.allocate(10), (10, None), "{nbuckets} buckets");
        let chains = || setup.shared.core().prio_chains().seq();
        let start = Instant::now();
        loop {
            let before = chains();
            thread::sleep(Duration::from_millis(50));
            if chains() == before && before > 0 {
                break;
            }
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "{nbuckets} buckets: {before} chains");
        }
        assert!(allocator.stop().is_ok());
    }
}

/// What is ready is to last until `free_inc` is full again: the thread does not wait until it is empty.
#[test]
fn free_inc_is_refilled_before_it_is_empty() {
    let geometry = Geometry::new(65_536, 3, Sectors(64), Sectors(8)).unwrap();
    let setup = Setup::new(Config::new(geometry));
    let core = setup.shared.core();
    let sizes = core.sizes();
    let chains = || core.prio_chains().seq();
    let wait_until = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            let left = core.free_inc_contents().len();
            assert!(start.elapsed() < Duration::from_secs(30), "{what}: {left} left");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let allocator = AllocatorThread::start(&setup.shared, setup.io(u32::MAX)).unwrap();
    // But for what a chain of prio sets takes.
    let enough = sizes.free_inc - 2 * sizes.prio;
    let is_full = || core.free_inc_contents().len() >= enough && core.next_ready().is_some();
    wait_until("filled", &is_full);
    let before = chains();
    // A quarter is left at least, in which nothing has to wait.
    for _ in 0..sizes.none + sizes.free_inc * 7 / 16 {
        setup.shared.bucket_alloc(Reserve::None, true).unwrap();
    }
    wait_until("filled again", &|| chains() > before);
    assert!(allocator.stop().is_ok());
}

#[test]
fn a_thread_that_is_dropped_has_ended() {
    let setup = Setup::new(config(3000));
    drop(AllocatorThread::start(&setup.shared, setup.io(u32::MAX)).unwrap());
    assert!(!setup.shared.has_thread() && setup.shared.refiller().is_ok());
}

/// Everything at once on every policy: afterwards the table and the lists are consistent.
#[test]
fn allocations_hits_gcs_and_rescalings_at_once() {
    for policy in [Policy::Lru, Policy::Fifo, Policy::Random] {
        let mut config = config(5000);
        config.policy = policy;
        config.reclaim_in_gc = policy == Policy::Lru;
        let setup = Setup::new(config);
        let allocator = AllocatorThread::start(&setup.shared, setup.io(u32::MAX)).unwrap();
        let end = Instant::now() + Duration::from_millis(300);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while Instant::now() < end {
                        assert_eq!(setup.allocate(10), (10, None));
                    }
                });
            }
            scope.spawn(|| {
                let table = setup.shared.core().table();
                let mut b = 3;
                while Instant::now() < end {
                    b = if b < 4999 { b + 1 } else { 3 };
                    table.hit(BucketIndex(b)).unwrap();
                    if b % 64 == 0 {
                        setup.shared.account_io(1000);
                    }
                    if b == 3 {
                        collect(&setup.shared);
                    }
                }
            });
        });
        assert!(allocator.stop().is_ok());
        setup.shared.core().check().unwrap();
    }
}

#[test]
fn writers_never_get_the_same_sector() {
    let geometry = Geometry::new(3000, 1, Sectors(64), Sectors(8)).unwrap();
    let setup = Setup::new(Config::new(geometry));
    let allocator = AllocatorThread::start(&setup.shared, setup.io(u32::MAX)).unwrap();
    let sectors = SectorAllocator::new(Arc::clone(&setup.shared), &geometry, 4);
    let given: Vec<_> = thread::scope(|scope| {
        let writers: Vec<_> = (0..4u32)
            .map(|writer| {
                let (sectors, shared) = (&sectors, &setup.shared);
                scope.spawn(move || {
                    let mut given = Vec::new();
                    let mut offset = 0;
                    for i in 0..4000u32 {
                        let request = SectorRequest {
                            inode: i % 5,
                            offset,
                            sectors: 8 + i % 9,
                            // Sometimes another's: then its open buckets are taken over.
                            write_point: if i % 7 == 0 { 99 } else { writer },
                            moving_gc: i % 50 == 0,
                            wait: true,
                        };
                        let writer = usize::try_from(writer).unwrap();
                        let piece = sectors.alloc_sectors(writer, &request).unwrap();
                        offset += u64::from(piece.sectors);
                        given.push((piece.pointer, piece.sector.0, piece.sectors));
                        // Held for a while, so that a bucket given twice shows.
                        if given.len() > 256 {
                            let (pointer, ..) = given[given.len() - 256];
                            let bucket = pointer.bucket;
                            shared.core().table().unpin(bucket).unwrap();
                        }
                    }
                    given
                })
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    // A bucket is given again only with another gen.
    let mut pieces: Vec<_> = given
        .iter()
        .map(|(pointer, sector, sectors)| {
            (pointer.bucket, pointer.bucket_gen.0, *sector, u64::from(*sectors))
        })
        .collect();
    pieces.sort_unstable();
    for pair in pieces.windows(2) {
        let (one, next) = (pair[0], pair[1]);
        if (one.0, one.1) == (next.0, next.1) {
            assert!(one.2 + one.3 <= next.2, "{one:?} and {next:?} overlap");
        }
        assert!(one.2 + one.3 <= (one.0.0 + 1) * 64, "{one:?} leaves its bucket");
    }
    let total: u64 = pieces.iter().map(|piece| piece.3).sum();
    assert_eq!(sectors.sectors_written(0), total);
    assert!(allocator.stop().is_ok());
}

/// What is ready in `free_inc` counts as free: otherwise the cache that fetched last would be asked until
/// nothing of its own is left.
#[test]
fn a_set_whose_reserves_are_fetched_uses_all_its_caches() {
    let set = SetAllocator::new(&[config(32768); 2]).unwrap();
    set.gc_finish(&[]).unwrap();
    for cache in set.caches() {
        let refiller = cache.refiller().unwrap();
        refiller.initial_fill();
        refiller.invalidate().unwrap();
        refiller.make_ready(ReuseReason::NotSynced);
    }
    let mut of_each = [0u32; 2];
    for _ in 0..100 {
        let got = set.bucket_alloc_set(Reserve::None, 1, false).unwrap();
        of_each[usize::from(got[0].device)] += 1;
    }
    assert_eq!(of_each, [50, 50]);
}

fn filled_set(used: [usize; 3]) -> SetAllocator {
    let set = SetAllocator::new(&[config(3000), config(3000), config(3000)]).unwrap();
    set.gc_finish(&[]).unwrap();
    for (cache, used) in set.caches().iter().zip(used) {
        let (state, refiller) = (cache.core(), cache.refiller().unwrap());
        refiller.initial_fill();
        refiller.invalidate().unwrap();
        refiller.make_ready(ReuseReason::NotSynced);
        // Nothing stays ready in free_inc, from where it would be fetched, and three in None.
        while state.next_ready().is_some() || state.reserve_used(Reserve::None) > 3 {
            if !matches!(refiller.push_ready(), PushStep::Pushed(..)) {
                let bucket = state.bucket_alloc(Reserve::None).unwrap().unwrap();
                cache.release(bucket).unwrap();
            }
        }
        for _ in 0..used {
            state.bucket_alloc(Reserve::None).unwrap().unwrap();
        }
    }
    set
}

#[test]
fn a_set_takes_the_emptiest_caches_and_gives_all_back_on_failure() {
    let set = filled_set([2, 0, 1]);
    let none = |device: usize| set.caches()[device].core().reserve_used(Reserve::None);
    let avail = set.counters().avail_nbuckets();
    let two = set.bucket_alloc_set(Reserve::None, 2, false).unwrap();
    assert_eq!(two.iter().map(|pointer| pointer.device).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(set.counters().avail_nbuckets(), avail - 2);
    set.release_set(&two).unwrap();
    assert_eq!(set.counters().avail_nbuckets(), avail);
    // Two each on 1, one each on 0 and 2: then 0 and 2 run dry.
    assert_eq!([none(0), none(1), none(2)], [1, 2, 1]);
    set.bucket_alloc_set(Reserve::None, 3, false).unwrap();
    assert_eq!([none(0), none(1), none(2)], [0, 1, 0]);
    let avail = set.counters().avail_nbuckets();
    let moving = |device: usize| set.caches()[device].core().reserve_used(Reserve::MovingGc);
    let failed = set.bucket_alloc_set(Reserve::None, 2, false);
    assert!(matches!(failed, Err(AllocError::WouldBlock { .. })), "{failed:?}");
    // The bucket of cache 1 is free again: nobody holds a pin or a mark.
    assert_eq!(set.counters().avail_nbuckets(), avail);
    let of_one = set.caches()[1].core();
    let pinned = (3..3000)
        .map(BucketIndex)
        .filter(|&b| of_one.lifecycle(b).unwrap() == Lifecycle::Allocated)
        .count();
    assert_eq!(pinned, 1, "only the bucket that the set of three holds on cache 1");
    assert!(moving(0) > 0, "another reserve is not touched");
    assert!(set.bucket_alloc_set(Reserve::None, 4, false).is_err());
    assert!(set.bucket_alloc_set(Reserve::None, 0, false).is_err());
}

#[test]
fn of_equally_empty_caches_the_one_with_the_oldest_data_is_first() {
    let set = filled_set([0, 0, 0]);
    for (device, prio) in [(0, 300), (1, 100), (2, 200)] {
        let cache = &set.caches()[device];
        for bucket in (3..3000).map(BucketIndex) {
            cache.core().table().set_prio(bucket, Prio(prio)).unwrap();
        }
    }
    assert!(set.account_io(1));
    assert_eq!(set.counters().min_prio(), 99);
    let two = set.bucket_alloc_set(Reserve::None, 2, false).unwrap();
    assert_eq!(two.iter().map(|pointer| pointer.device).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn sets_that_cannot_be_are_refused() {
    assert!(SetAllocator::new(&[]).is_err());
    assert!(SetAllocator::new(&[config(3000); 9]).is_err());
    let mut other = config(3000);
    other.geometry = Geometry::new(3000, 3, Sectors(16), Sectors(8)).unwrap();
    assert!(SetAllocator::new(&[config(3000), other]).is_err());
}
