//! What the allocator thread does, call by call, and what its hooks tell.
#![cfg(not(feature = "model"))]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bcache_core::allocator::{
    AllocError, Allocator, AllocatorIo, AllocatorThread, BucketTable, Config, Found, Lifecycle,
    Mark, PrioSetPlan, PrioWriteError, Reserve, ReuseReason, ThreadError, TraceEvent, Tracer,
};
use bcache_core::units::{BucketIndex, Gen, Geometry, Prio, Sectors};

fn config(nbuckets: u64) -> Config {
    Config::new(Geometry::new(nbuckets, 3, Sectors(8), Sectors(8)).unwrap())
}

fn allocator(config: Config) -> Arc<Allocator> {
    let allocator = Allocator::new(config).unwrap();
    allocator.gc_finish(&[]).unwrap();
    allocator.refiller().unwrap().initial_fill();
    allocator
}

/// A call of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Discard(BucketIndex),
    Set(BucketIndex),
    Entry(BucketIndex),
    Flush,
    WakeGc,
}

#[derive(Debug, thiserror::Error)]
#[error("the device has failed")]
struct DeviceFailed;

/// Has a script told of each call.
struct Script<F>(F);

impl<F: FnMut(Call) -> Result<(), DeviceFailed> + Send> AllocatorIo for Script<F> {
    type Error = DeviceFailed;

    fn discard(&mut self, bucket: BucketIndex) -> Result<(), DeviceFailed> {
        (self.0)(Call::Discard(bucket))
    }

    fn write_prio_set(&mut self, set: &PrioSetPlan, _: &BucketTable) -> Result<(), DeviceFailed> {
        (self.0)(Call::Set(set.bucket))
    }

    fn write_journal_entry(&mut self, prio_head: BucketIndex) -> Result<(), DeviceFailed> {
        (self.0)(Call::Entry(prio_head))
    }

    fn flush(&mut self) -> Result<(), DeviceFailed> {
        (self.0)(Call::Flush)
    }

    fn wake_gc(&mut self) {
        (self.0)(Call::WakeGc).expect("a GC is not refused");
    }
}

/// Allocates, without waiting longer than 20 s: what is never woken fails and does not hang.
fn alloc(allocator: &Allocator, reserve: Reserve) -> Result<BucketIndex, AllocError> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match allocator.bucket_alloc(reserve, false) {
            Err(AllocError::WouldBlock { .. }) if Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

fn use_buckets(allocator: &Allocator, count: usize) {
    for _ in 0..count {
        let bucket = alloc(allocator, Reserve::None).unwrap();
        allocator.release(bucket).unwrap();
    }
}

#[test]
fn a_chain_is_durable_before_the_entry_that_names_it_and_that_before_anything_is_ready() {
    let shared = allocator(config(3000));
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let (of_script, core) = (Arc::clone(&calls), Arc::clone(&shared));
    let script = Script(move |call| {
        assert!(core.core().next_ready().is_none(), "before {call:?}");
        of_script.lock().unwrap().push(call);
        Ok(())
    });
    let thread = AllocatorThread::start(&shared, script).unwrap();
    // The reserves have some at first; those that come after are of the first chain.
    alloc(&shared, Reserve::None).unwrap();
    assert!(thread.stop().is_ok());
    let calls = calls.lock().unwrap();
    let [Call::Set(last), Call::Set(middle), Call::Set(head), Call::Flush, entry, Call::Flush, ..] =
        calls[..]
    else {
        panic!("{calls:?}")
    };
    assert_eq!(entry, Call::Entry(head));
    assert_eq!(shared.core().prio_chains().current(), [head, middle, last]);
    let reason = shared.core().next_ready().map(|ready| ready.reason);
    assert!(matches!(reason, None | Some(ReuseReason::GenDurable)), "{reason:?}");
}

/// Callers may take the last free buckets once a chain is begun.
#[test]
fn a_chain_that_finds_no_bucket_says_how_many_it_needs() {
    let shared = allocator(config(3000));
    let refiller = shared.refiller().unwrap();
    refiller.prio_write_begin().unwrap();
    let mut taken = Vec::new();
    while let Some(bucket) = shared.core().bucket_alloc(Reserve::Prio).unwrap() {
        taken.push(bucket);
    }
    let next = refiller.prio_write_next();
    let expected = Err(PrioWriteError::TooFewBuckets { needed: 3, available: 0 });
    assert_eq!(next, expected);
    shared.core().bucket_free(taken[0]).unwrap();
    refiller.prio_write_abort(false).unwrap();
    shared.core().check().unwrap();
}

#[test]
fn what_is_ready_says_why() {
    for (sync, reason) in [(true, ReuseReason::GenDurable), (false, ReuseReason::NotSynced)] {
        // Large enough for some to stay in free_inc.
        let shared = allocator(Config { sync, ..config(60_000) });
        let thread = AllocatorThread::start(&shared, Script(|_| Ok(()))).unwrap();
        alloc(&shared, Reserve::None).unwrap();
        assert!(thread.stop().is_ok());
        let ready = shared.core().next_ready().expect("more than the reserves hold");
        assert_eq!(ready.reason, reason);
        assert_eq!(shared.core().lifecycle(ready.bucket), Ok(Lifecycle::Ready));
    }
}

/// Later it would take the data of whoever has the bucket by then.
#[test]
fn a_bucket_is_discarded_before_anybody_can_have_it() {
    let shared = allocator(Config { discard: true, ..config(3000) });
    let discarded = Arc::new(AtomicU64::new(0));
    let (of_script, core) = (Arc::clone(&discarded), Arc::clone(&shared));
    let script = Script(move |call| {
        if let Call::Discard(bucket) = call {
            assert_eq!(core.core().lifecycle(bucket), Ok(Lifecycle::Ready));
            assert_eq!(core.core().next_ready().map(|ready| ready.bucket), Some(bucket));
            of_script.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let thread = AllocatorThread::start(&shared, script).unwrap();
    use_buckets(&shared, 50);
    assert!(thread.stop().is_ok());
    assert!(discarded.load(Ordering::SeqCst) >= 50);
}

/// Only a GC can find buckets, and only the pass that gave up knows.
#[test]
fn a_pass_that_gives_up_wakes_gc() {
    // Nothing is written, so that nothing else wakes it.
    let shared = Allocator::new(Config { sync: false, ..config(3000) }).unwrap();
    let buckets = || (3..3000).map(BucketIndex);
    let dirty: Vec<_> = buckets().map(|bucket| (bucket, Mark::Dirty)).collect();
    shared.gc_finish(&dirty).unwrap();
    let gc = Arc::clone(&shared);
    let script = Script(move |call| {
        if call == Call::WakeGc {
            let shared = Arc::clone(&gc);
            thread::spawn(move || {
                shared.gc_start();
                shared.gc_finish(&[]).unwrap();
            });
        }
        Ok(())
    });
    let thread = AllocatorThread::start(&shared, script).unwrap();
    use_buckets(&shared, 1);
    assert!(thread.stop().is_ok());
}

/// A btree node that is freed while a chain is written: its parent goes first.
#[test]
fn the_entry_waits_while_prios_are_blocked() {
    let shared = allocator(config(3000));
    let parent_written = Arc::new(AtomicBool::new(false));
    let (of_script, core) = (Arc::clone(&parent_written), Arc::clone(&shared));
    let mut blocked = false;
    let script = Script(move |call| {
        match call {
            Call::Set(_) if !std::mem::replace(&mut blocked, true) => {
                core.core().set().block_prios();
                let (core, parent_written) = (Arc::clone(&core), Arc::clone(&of_script));
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(50));
                    parent_written.store(true, Ordering::SeqCst);
                    core.core().set().unblock_prios();
                });
            }
            Call::Entry(_) => assert!(of_script.load(Ordering::SeqCst)),
            _ => {}
        }
        Ok(())
    });
    let thread = AllocatorThread::start(&shared, script).unwrap();
    use_buckets(&shared, 1);
    assert!(thread.stop().is_ok());
    assert!(parent_written.load(Ordering::SeqCst));
}

#[test]
fn a_rescaling_that_was_left_to_the_thread_is_done_when_it_ends() {
    let shared = allocator(config(3000));
    let bucket = BucketIndex(2000);
    shared.core().table().set_prio(bucket, Prio(1000)).unwrap();
    let core = Arc::clone(&shared);
    let script = Script(move |call| match call {
        Call::Set(_) => {
            // The first I/O makes one due.
            assert!(core.account_io(1));
            Err(DeviceFailed)
        }
        _ => Ok(()),
    });
    let thread = AllocatorThread::start(&shared, script).unwrap();
    assert_eq!(alloc(&shared, Reserve::None), Err(AllocError::Failed));
    let (_, error) = thread.stop().err().unwrap();
    assert!(matches!(error, ThreadError::Io(DeviceFailed)));
    assert_eq!(shared.core().table().bucket(bucket).unwrap().prio, Prio(999));
}

/// A device that is there or not; its GCs find everything unreferenced.
fn device(
    shared: &Arc<Allocator>,
    fails: bool,
) -> Script<impl FnMut(Call) -> Result<(), DeviceFailed> + use<>> {
    let shared = Arc::clone(shared);
    Script(move |call| {
        if call == Call::WakeGc {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.gc_start();
                shared.gc_finish(&[]).unwrap();
            });
            return Ok(());
        }
        if fails { Err(DeviceFailed) } else { Ok(()) }
    })
}

/// The natural way to put a new thread in the place of one that has failed.
#[test]
fn dropping_the_handle_of_a_thread_that_failed_does_not_stop_the_next() {
    let shared = allocator(config(3000));
    let mut slot = AllocatorThread::start(&shared, device(&shared, true)).unwrap();
    assert_eq!(alloc(&shared, Reserve::None), Err(AllocError::Failed));
    assert!(slot.has_ended());
    let second = AllocatorThread::start(&shared, device(&shared, false)).unwrap();
    assert!(slot.has_ended() && !second.has_ended());
    slot = second;
    use_buckets(&shared, 100);
    assert!(shared.has_thread() && !slot.has_ended());
    assert!(slot.stop().is_ok());
}

/// Nothing that only the thread may do can be done beside it.
#[test]
fn one_refills_at_a_time() {
    let shared = allocator(config(3000));
    let refiller = shared.refiller().unwrap();
    assert!(matches!(shared.refiller(), Err(AllocError::RefillerTaken)));
    let refused = AllocatorThread::start(&shared, device(&shared, false));
    assert!(matches!(refused, Err(ThreadError::AlreadyRunning)));
    drop(refiller);
    let thread = AllocatorThread::start(&shared, device(&shared, false)).unwrap();
    assert!(matches!(shared.refiller(), Err(AllocError::RefillerTaken)));
    assert!(thread.stop().is_ok());
    assert!(shared.refiller().is_ok());
}

/// A pin of what a pass has taken would be lost, and with it the bucket, when it is allocated.
#[test]
fn buckets_that_are_free_cannot_be_pinned() {
    let shared = allocator(config(3000));
    let core = shared.core();
    let refiller = shared.refiller().unwrap();
    refiller.invalidate().unwrap();
    let free: Vec<_> =
        core.free_inc_contents().into_iter().chain(core.reserve_contents(Reserve::Prio)).collect();
    assert!(free.len() > 3);
    for bucket in free {
        assert!(core.table().pin(bucket).is_err());
        let bucket_gen = core.table().bucket_gen(bucket).unwrap();
        assert_eq!(core.table().pin_through(bucket, bucket_gen), Ok(false));
    }
    drop(refiller);
    // The thread takes its buckets for prio sets from there.
    let thread = AllocatorThread::start(&shared, device(&shared, false)).unwrap();
    use_buckets(&shared, 100);
    assert!(thread.stop().is_ok());
    core.check().unwrap();
}

#[derive(Default)]
struct Events(Mutex<Vec<(u16, TraceEvent)>>);

impl Tracer for Events {
    fn trace(&self, device: u16, event: TraceEvent) {
        self.0.lock().unwrap().push((device, event));
    }
}

#[test]
fn hooks_tell_of_allocations_failures_and_invalidations_of_data() {
    let shared = Allocator::new(config(3000)).unwrap();
    let core = shared.core();
    let data = BucketIndex(1000);
    core.table().mark_key(data, Gen(0), Mark::Reclaimable, 5).unwrap();
    shared.gc_finish(&[]).unwrap();
    let events = Arc::new(Events::default());
    assert!(core.set_tracer(Box::new(Arc::clone(&events))));
    assert!(!core.set_tracer(Box::new(Arc::clone(&events))));
    let refiller = shared.refiller().unwrap();
    let taken = || std::mem::take(&mut *events.0.lock().unwrap());

    // Empty buckets are nothing that is invalidated, as in the kernel.
    let pass = refiller.invalidate().unwrap();
    assert_eq!((pass.held_data, pass.found), (0, Found::Enough));
    assert_eq!(taken(), []);
    let reserve = Reserve::None;
    assert!(shared.bucket_alloc(reserve, false).is_err());
    let free_inc = core.free_inc_contents().len();
    let failed = TraceEvent::AllocFailed { reserve, free: 0, free_inc, prio_blocked: 0 };
    assert_eq!(taken(), [(0, failed)]);

    refiller.make_ready(ReuseReason::NotSynced);
    let bucket = shared.bucket_alloc(Reserve::Btree, false).unwrap();
    assert_eq!(taken(), [(0, TraceEvent::Allocated { reserve: Reserve::Btree, bucket })]);

    // The one with data goes when nothing else may.
    let others = (3..3000).map(BucketIndex).filter(|&other| other != data);
    let marks: Vec<_> = others.map(|other| (other, Mark::Dirty)).collect();
    shared.gc_finish(&marks).unwrap();
    let pass = refiller.invalidate().unwrap();
    assert_eq!((pass.invalidated, pass.held_data, pass.found), (1, 1, Found::GaveUp));
    let invalidated = TraceEvent::Invalidated { bucket: data, sectors_used: 5 };
    assert_eq!(taken(), [(0, invalidated)]);
}

/// Hits another of the victims when the first is invalidated.
struct HitsNext(Mutex<Option<Arc<Allocator>>>);

impl Tracer for HitsNext {
    fn trace(&self, _: u16, event: TraceEvent) {
        let TraceEvent::Invalidated { bucket, .. } = event else { return };
        if let Some(shared) = self.0.lock().unwrap().take() {
            shared.core().table().hit(BucketIndex(bucket.0 + 1)).unwrap();
        }
    }
}

#[test]
fn a_victim_that_is_hit_after_it_was_chosen_stays() {
    let shared = Allocator::new(config(3000)).unwrap();
    let (core, refiller) = (shared.core(), shared.refiller().unwrap());
    for bucket in (3..3000).map(BucketIndex) {
        let prio = if (100..150).contains(&bucket.0) { Prio(10) } else { Prio(20_000) };
        refiller.load(bucket, prio, Gen(1)).unwrap();
        core.table().mark_key(bucket, Gen(1), Mark::Reclaimable, 8).unwrap();
    }
    shared.gc_finish(&[]).unwrap();
    let tracer = HitsNext(Mutex::new(Some(Arc::clone(&shared))));
    assert!(core.set_tracer(Box::new(tracer)));
    let pass = refiller.invalidate().unwrap();
    let taken = core.free_inc_contents();
    assert_eq!((pass.invalidated, pass.found), (core.sizes().free_inc, Found::Enough));
    // The first in the order of the table was invalidated first.
    let first = taken.iter().min().unwrap();
    let hit = BucketIndex(first.0 + 1);
    assert!(!taken.contains(&hit), "{hit} was hit: {taken:?}");
    assert_eq!(core.table().bucket(hit).unwrap().bucket_gen, Gen(1));
    assert!(taken.iter().all(|bucket| (100..150).contains(&bucket.0)), "{taken:?}");
}

#[test]
fn passes_over_a_cache_without_a_seed_differ() {
    let victims = |seed| {
        let policy = bcache_core::allocator::Policy::Random;
        let shared = allocator(Config { policy, seed, ..config(60_000) });
        shared.refiller().unwrap().invalidate().unwrap();
        shared.core().free_inc_contents()
    };
    assert_eq!(victims(Some(3)), victims(Some(3)));
    assert_ne!(victims(None), victims(None));
}

/// Many times, because it takes a pin that is dropped at the right moment; the model checker looks at
/// each.
#[test]
fn pins_that_are_dropped_while_a_gc_begins_leave_the_table_consistent() {
    let shared = Allocator::new(Config { reclaim_in_gc: true, ..config(100_000) }).unwrap();
    shared.gc_finish(&[]).unwrap();
    for _ in 0..100 {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let table = shared.core().table();
                while !stop.load(Ordering::Relaxed) {
                    for bucket in (3..40).map(BucketIndex) {
                        table.pin(bucket).unwrap();
                        table.unpin(bucket).unwrap();
                    }
                }
            });
            thread::yield_now();
            shared.gc_start();
            stop.store(true, Ordering::Relaxed);
        });
        shared.core().check().unwrap();
        shared.gc_finish(&[]).unwrap();
    }
}

#[test]
fn who_waits_for_a_reserve_takes_what_is_ready_and_is_told_when_nobody_refills() {
    let reserve = Reserve::Btree;
    let shared = Allocator::new(config(3000)).unwrap();
    shared.gc_finish(&[]).unwrap();
    let stopped = Err(AllocError::Stopped { reserve });
    assert_eq!(shared.wait_for_reserve(reserve, 1), stopped);
    shared.refiller().unwrap().invalidate().unwrap();
    assert_eq!(shared.wait_for_reserve(reserve, 1), stopped);
    shared.refiller().unwrap().make_ready(ReuseReason::NotSynced);
    assert_eq!(shared.wait_for_reserve(reserve, 2), Ok(()));
    let used = shared.core().reserve_used(reserve);
    assert!(used >= 2, "{used}");
    assert_eq!(shared.wait_for_reserve(reserve, used), Ok(()));
    assert_eq!(shared.wait_for_reserve(reserve, used + 1), stopped);
}
