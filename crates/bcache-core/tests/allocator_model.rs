//! The allocator's concurrent code under a model checker: `cargo test -p bcache-core --features
//! model --test allocator_model`.
//!
//! Every lock, atomic and wake-up is a point where the checker may let another thread run. Random
//! schedules and schedules with few, well-placed preemptions (PCT) are tried; a thread that sleeps for
//! ever shows as a deadlock. The same scenarios must fail when a bug is planted.

use std::process::Command;
use std::sync::{Arc, Mutex};

use bcache_core::allocator::{
    AllocError, Allocator, AllocatorThread, Bug, Config, Mark, Reserve, SectorAllocator,
    SectorRequest, Sizes, TableError, ThreadError, plant,
};
use bcache_core::units::{BucketIndex, Gen, Geometry, Sectors};
use shuttle::thread;

mod allocator_support;

use allocator_support::{DeviceFailed, Disk, DiskIo, collect, collect_keeping};

const NBUCKETS: u64 = 14;

/// GCs that were begun.
type Gcs = Arc<Mutex<Vec<thread::JoinHandle<()>>>>;

struct Setup {
    shared: Arc<Allocator>,
    disk: Arc<Mutex<Disk>>,
    gcs: Gcs,
}

const SIZES: Sizes = Sizes { btree: 1, prio: 1, moving_gc: 1, none: 1, free_inc: 4, heap: 8 };

fn config() -> Config {
    Config::new(Geometry::new(NBUCKETS, 1, Sectors(16), Sectors(8)).unwrap())
}

impl Setup {
    fn new() -> Self {
        let shared = Allocator::of_model(config(), SIZES).unwrap();
        shared.gc_finish(&[]).unwrap();
        shared.refiller().unwrap().initial_fill();
        Self::of(shared)
    }

    fn of(shared: Arc<Allocator>) -> Self {
        Self { shared, disk: Arc::default(), gcs: Gcs::default() }
    }

    /// Once whatever was begun has ended: everything is as it must be.
    fn check(&self) {
        let gcs = std::mem::take(&mut *self.gcs.lock().unwrap());
        for gc in gcs {
            gc.join().unwrap();
        }
        self.shared.core().check().unwrap();
    }

    fn io(&self, writes_left: u32) -> DiskIo {
        let (shared, disk) = (Arc::clone(&self.shared), Arc::clone(&self.disk));
        let gcs = Arc::clone(&self.gcs);
        let gc = move |shared: Arc<Allocator>| {
            let gc = thread::spawn(move || collect(&shared));
            gcs.lock().unwrap().push(gc);
        };
        DiskIo { shared, disk, writes_left, gc: Box::new(gc) }
    }

    fn start(&self, writes_left: u32) -> AllocatorThread<DiskIo> {
        AllocatorThread::start(&self.shared, self.io(writes_left)).unwrap()
    }
}

/// Allocates `count` data buckets, checks that each is safe to overwrite, and gives it back.
fn allocate(shared: &Allocator, disk: &Mutex<Disk>, count: u32) {
    for _ in 0..count {
        let bucket = shared.bucket_alloc(Reserve::None, true).unwrap();
        let is = shared.core().table().bucket(bucket).unwrap();
        assert_eq!((is.pins, is.mark), (1, Mark::Reclaimable));
        disk.lock().unwrap().assert_safe(bucket, is.bucket_gen);
        shared.release(bucket).unwrap();
    }
}

/// Two threads allocate more than the reserves hold while the thread refills.
fn allocations_wait_and_are_safe() {
    let setup = Setup::new();
    let allocator = setup.start(u32::MAX);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (shared, disk) = (Arc::clone(&setup.shared), Arc::clone(&setup.disk));
            thread::spawn(move || allocate(&shared, &disk, 3))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(allocator.stop().is_ok());
    setup.check();
}

/// One thread allocates: nobody else's wake-up can make up for one that was lost.
fn a_lone_allocation_is_woken() {
    let setup = Setup::new();
    let allocator = setup.start(u32::MAX);
    allocate(&setup.shared, &setup.disk, 5);
    assert!(allocator.stop().is_ok());
}

/// Btree splits wait until their reserve is filled, and take from it; then the thread is stopped under one
/// that waits.
fn splits_wait_for_their_reserve() {
    let setup = Setup::new();
    let allocator = setup.start(u32::MAX);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let shared = Arc::clone(&setup.shared);
            thread::spawn(move || {
                for _ in 0..2 {
                    shared.wait_for_reserve(Reserve::Btree, 1).unwrap();
                    let bucket = shared.bucket_alloc(Reserve::Btree, true).unwrap();
                    shared.release(bucket).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let shared = Arc::clone(&setup.shared);
    let waiter = thread::spawn(move || shared.wait_for_reserve(Reserve::Btree, 1));
    assert!(allocator.stop().is_ok());
    let stopped = AllocError::Stopped { reserve: Reserve::Btree };
    assert!([Ok(()), Err(stopped)].contains(&waiter.join().unwrap()));
    setup.check();
}

/// A split takes nothing of what it fetches for its reserve, so that the thread may find all reserves full and
/// nothing to push: who waits for another reserve gets its bucket all the same.
fn who_fetches_wakes_who_waits() {
    let setup = Setup::new();
    for reserve in Reserve::ALL {
        while setup.shared.bucket_alloc(reserve, false).is_ok() {}
    }
    let allocator = setup.start(u32::MAX);
    let shared = Arc::clone(&setup.shared);
    let waiter = thread::spawn(move || shared.bucket_alloc(Reserve::None, true).unwrap());
    setup.shared.wait_for_reserve(Reserve::Btree, 1).unwrap();
    waiter.join().unwrap();
    assert!(allocator.stop().is_ok());
}

/// The device fails at some write: every waiting allocation ends with an error.
fn a_failing_device_fails_those_who_wait() {
    let setup = Setup::new();
    let writes = shuttle::rand::Rng::gen_range(&mut shuttle::rand::thread_rng(), 0..6);
    let allocator = setup.start(writes);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (shared, disk) = (Arc::clone(&setup.shared), Arc::clone(&setup.disk));
            thread::spawn(move || {
                loop {
                    match shared.bucket_alloc(Reserve::None, true) {
                        Ok(bucket) => {
                            let bucket_gen = shared.core().table().bucket_gen(bucket).unwrap();
                            disk.lock().unwrap().assert_safe(bucket, bucket_gen);
                            shared.release(bucket).unwrap();
                        }
                        Err(error) => return error,
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), AllocError::Failed);
    }
    let error = allocator.stop().err().map(|(_, error)| error);
    assert!(matches!(error, Some(ThreadError::Io(DeviceFailed))));
    assert_eq!(setup.shared.bucket_alloc(Reserve::None, false), Err(AllocError::Failed));
    setup.check();
}

/// The thread is stopped under those who wait, and started again.
fn stopping_wakes_and_restarting_resumes() {
    let setup = Setup::new();
    let allocator = setup.start(u32::MAX);
    let shared = Arc::clone(&setup.shared);
    let waiter = thread::spawn(move || {
        for _ in 0..4 {
            match shared.bucket_alloc(Reserve::MovingGc, true) {
                Ok(bucket) => shared.release(bucket).unwrap(),
                Err(error) => {
                    assert!(matches!(error, AllocError::Stopped { .. }));
                    return;
                }
            }
        }
    });
    // Whatever it is in the middle of.
    let io = allocator.stop().map_err(|(_, error)| error).unwrap();
    waiter.join().unwrap();
    setup.check();
    let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
    allocate(&setup.shared, &setup.disk, 1);
    assert!(allocator.stop().is_ok());
}

/// Prios are blocked and unblocked while the thread wants to write them.
fn blocked_prios_delay_and_do_not_lose_the_thread() {
    let setup = Setup::new();
    setup.shared.core().set().block_prios();
    let allocator = setup.start(u32::MAX);
    let shared = Arc::clone(&setup.shared);
    let unblocker = thread::spawn(move || shared.core().set().unblock_prios());
    allocate(&setup.shared, &setup.disk, 2);
    unblocker.join().unwrap();
    assert!(allocator.stop().is_ok());
}

/// Takes about as long as writing a chain.
fn write_parent() {
    (0..40).for_each(|_| thread::yield_now());
}

/// Too few buckets for a chain, while a btree node is freed whose parent is not written yet: that one
/// goes only once it is.
fn a_freed_node_is_not_used_before_its_parent_is_written() {
    let shared = Allocator::of_model(config(), SIZES).unwrap();
    let table = shared.core().table();
    let node = BucketIndex(4);
    for bucket in (1..NBUCKETS).map(BucketIndex) {
        let mark = if bucket == node { Mark::Metadata } else { Mark::Reclaimable };
        table.mark_key(bucket, Gen(0), mark, 8).unwrap();
    }
    shared.gc_finish(&[]).unwrap();
    table.pin(node).unwrap();
    let setup = Setup::of(Arc::clone(&shared));
    // When the first GC has ended, and so after the pass, the node is freed. No other GC begins
    // before its parent is written, or some schedules would have them run for ever.
    let (freed, disk) = (Arc::new(shuttle::sync::Mutex::new(false)), Arc::clone(&setup.disk));
    let gcs = Arc::clone(&setup.gcs);
    let gc = move |shared: Arc<Allocator>| {
        let (freed, disk) = (Arc::clone(&freed), Arc::clone(&disk));
        let gc = thread::spawn(move || {
            let mut freed = freed.lock().unwrap();
            collect_keeping(&shared);
            if !std::mem::replace(&mut *freed, true) {
                disk.lock().unwrap().freed_node = Some(node);
                shared.core().set().block_prios();
                shared.release(node).unwrap();
                write_parent();
                disk.lock().unwrap().freed_node = None;
                shared.core().set().unblock_prios();
            }
        });
        gcs.lock().unwrap().push(gc);
    };
    let io = DiskIo { gc: Box::new(gc), ..setup.io(u32::MAX) };
    let allocator = AllocatorThread::start(&setup.shared, io).unwrap();
    allocate(&setup.shared, &setup.disk, 1);
    assert!(allocator.stop().is_ok());
    assert!(!setup.disk.lock().unwrap().freed_node_overwritten);
    setup.check();
}

/// A btree node is freed while a chain is written: no entry makes its new gen current before the parent
/// is written.
fn a_gen_that_rises_while_a_chain_is_written_waits_for_the_parent() {
    let setup = Setup::new();
    let node = setup.shared.bucket_alloc(Reserve::Btree, false).unwrap();
    let allocator = setup.start(u32::MAX);
    let (shared, disk) = (Arc::clone(&setup.shared), Arc::clone(&setup.disk));
    let freeing = thread::spawn(move || {
        let before = shared.core().table().bucket_gen(node).unwrap();
        shared.core().set().block_prios();
        {
            let mut disk = disk.lock().unwrap();
            (disk.freed_node, disk.freed_node_gen) = (Some(node), before);
        }
        shared.core().inc_gen(node).unwrap();
        shared.release(node).unwrap();
        write_parent();
        disk.lock().unwrap().freed_node = None;
        shared.core().set().unblock_prios();
    });
    allocate(&setup.shared, &setup.disk, 2);
    freeing.join().unwrap();
    assert!(allocator.stop().is_ok());
    assert!(!setup.disk.lock().unwrap().freed_node_stale);
    setup.check();
}

/// Passes, pins, hits, marks and rescalings at once: a pinned bucket keeps its gen.
fn a_pin_keeps_a_bucket() {
    let setup = Setup::new();
    let state = Arc::clone(&setup.shared);
    let reader = thread::spawn(move || {
        let table = state.core().table();
        // The first of these are the pass's victims: all rank alike, and 1 and 2 are in reserves.
        for bucket in (3..6).map(BucketIndex) {
            match table.pin(bucket) {
                Ok(()) => {}
                // The pass was first.
                Err(TableError::IsFree { .. }) => continue,
                Err(error) => panic!("{error}"),
            }
            let before = table.bucket_gen(bucket).unwrap();
            table.hit(bucket).unwrap();
            table.set_mark(bucket, Mark::Reclaimable).unwrap();
            assert_eq!(table.bucket_gen(bucket).unwrap(), before, "pinned and invalidated");
            assert_eq!(table.bucket(bucket).unwrap().mark, Mark::Reclaimable);
            table.unpin(bucket).unwrap();
        }
    });
    let state = Arc::clone(&setup.shared);
    let aging = thread::spawn(move || {
        state.account_io(1);
    });
    setup.shared.refiller().unwrap().invalidate().unwrap();
    reader.join().unwrap();
    aging.join().unwrap();
    setup.check();
}

/// A pin is dropped while a GC begins, or ends: what may be invalidated is what the words say.
fn a_pin_is_dropped_while_a_gc_begins() {
    let setup = Setup::new();
    let shared = Arc::clone(&setup.shared);
    let reader = thread::spawn(move || {
        for bucket in [5, 6].map(BucketIndex) {
            shared.core().table().pin(bucket).unwrap();
            shared.core().table().unpin(bucket).unwrap();
        }
    });
    setup.shared.gc_start();
    setup.shared.gc_finish(&[]).unwrap();
    setup.shared.gc_start();
    reader.join().unwrap();
    setup.shared.core().check().unwrap();
    setup.shared.gc_finish(&[]).unwrap();
    setup.check();
}

/// Two writers of the sector allocator: no sector is given twice, no pin is lost.
fn sectors_are_given_once() {
    let setup = Setup::new();
    let allocator = setup.start(u32::MAX);
    let source = Arc::clone(&setup.shared);
    let sectors = Arc::new(SectorAllocator::new(source, &config().geometry, 2));
    let threads: Vec<_> = (0..2u32)
        .map(|writer| {
            let sectors = Arc::clone(&sectors);
            thread::spawn(move || {
                let mut given = Vec::new();
                for offset in [0, 8, 100] {
                    let request = SectorRequest {
                        inode: 0,
                        offset,
                        sectors: 8,
                        write_point: writer,
                        moving_gc: false,
                        wait: true,
                    };
                    let writer = usize::try_from(writer).unwrap();
                    given.push(sectors.alloc_sectors(writer, &request).unwrap());
                }
                given
            })
        })
        .collect();
    let given: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let mut pieces: Vec<_> = given.iter().map(|piece| (piece.sector.0, piece.sectors)).collect();
    pieces.sort_unstable();
    for pair in pieces.windows(2) {
        assert!(pair[0].0 + u64::from(pair[0].1) <= pair[1].0, "{pieces:?}");
    }
    for piece in &given {
        setup.shared.core().table().unpin(piece.pointer.bucket).unwrap();
    }
    assert!(allocator.stop().is_ok());
}

type Scenario = fn();

const SCENARIOS: [(&str, Scenario); 12] = [
    ("a lone allocation is woken", a_lone_allocation_is_woken),
    ("allocations wait and are safe", allocations_wait_and_are_safe),
    ("splits wait for their reserve", splits_wait_for_their_reserve),
    ("who fetches wakes who waits", who_fetches_wakes_who_waits),
    ("a failing device fails those who wait", a_failing_device_fails_those_who_wait),
    ("stopping wakes and restarting resumes", stopping_wakes_and_restarting_resumes),
    ("blocked prios delay the thread", blocked_prios_delay_and_do_not_lose_the_thread),
    ("a freed node waits for its parent", a_freed_node_is_not_used_before_its_parent_is_written),
    ("a gen waits for the parent", a_gen_that_rises_while_a_chain_is_written_waits_for_the_parent),
    ("a pin keeps a bucket", a_pin_keeps_a_bucket),
    ("a pin is dropped while a GC begins", a_pin_is_dropped_while_a_gc_begins),
    ("sectors are given once", sectors_are_given_once),
];

fn schedules() -> usize {
    std::env::var("MODEL_SCHEDULES").map_or(5000, |value| value.parse().expect("a number"))
}

#[test]
fn every_schedule_tried_is_sound() {
    for (name, scenario) in SCENARIOS {
        println!("{name}");
        run(scenario);
    }
}

const BUGS: [Bug; 6] = [
    Bug::EarlyHandOut,
    Bug::EarlyHandOutOfMore,
    Bug::LateAnnouncement,
    Bug::NoWakeUp,
    Bug::SkippedFlush,
    Bug::UncheckedVictim,
];

fn run(scenario: Scenario) {
    shuttle::check_random(scenario, schedules());
    shuttle::check_pct(scenario, schedules(), 3);
}

/// What `planted_bugs_are_found` runs in a process of its own, because a failed run leaves the
/// checker in no state to go on: the scenario and the bug that `MODEL_SCENARIO` and `MODEL_BUG` number.
#[test]
#[ignore = "run by planted_bugs_are_found"]
fn one_scenario_with_a_bug() {
    let number = |name| std::env::var(name).ok()?.parse::<usize>().ok();
    let scenario = number("MODEL_SCENARIO").and_then(|at| SCENARIOS.get(at)).expect("a scenario");
    let bug = number("MODEL_BUG").and_then(|at| BUGS.get(at)).expect("a bug");
    plant(Some(*bug));
    run(scenario.1);
}

#[test]
fn planted_bugs_are_found() {
    for (at, bug) in BUGS.iter().enumerate() {
        let finds = |scenario: usize, schedules: &str| {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "one_scenario_with_a_bug", "--ignored", "--nocapture"])
                .env("MODEL_BUG", at.to_string())
                .env("MODEL_SCENARIO", scenario.to_string())
                .env("MODEL_SCHEDULES", schedules)
                .env("RUST_BACKTRACE", "0")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("running 1 test"), "{text}");
            !output.status.success()
        };
        let found_in = |schedules: &str| -> Vec<_> {
            let scenarios = SCENARIOS.iter().enumerate();
            let found = scenarios.filter(|(scenario, _)| finds(*scenario, schedules));
            found.map(|(_, (name, _))| *name).collect()
        };
        // Some show in few schedules only.
        let mut found = found_in("1000");
        if found.is_empty() {
            found = found_in("5000");
        }
        println!("{bug:?} is found by: {}", found.join("; "));
        assert!(!found.is_empty(), "no scenario finds {bug:?}");
    }
}
