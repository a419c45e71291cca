//! A cache set in use on devices that lose power or fail: what its thread wrote, read again.
#![cfg(not(feature = "model"))]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use bcache_core::allocator::thread::ThreadError;
use bcache_core::allocator::{AllocError, AllocatorThread, Mark, Reserve};
use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::testkit::{Fault, FaultDevice, Lasting, MemoryDevice, SimDevice, Trigger};
use bcache_core::device::{BlockDevice, DeviceError, DeviceInfo, ReadDevice};
use bcache_core::layout::superblock::{
    CacheParams, Label, Replacement, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::ops::check::{CheckOptions, Registration, check};
use bcache_core::ops::make::read_superblock;
use bcache_core::ops::start::{Member, RunningSet, StartError};
use bcache_core::units::{BucketIndex, Gen, Sectors};
use uuid::Uuid;

/// Two prio sets a chain.
const NBUCKETS: u64 = 2048;
const BUCKET_SIZE: Sectors = Sectors(8);
/// Buckets that a run allocates: enough for several passes.
const ALLOCATIONS: usize = 120;

fn formatted(discard: bool) -> (MemoryDevice, Superblock) {
    let superblock = Superblock::new_cache(&CacheParams {
        uuid: Uuid::from_u128(1),
        set_uuid: Uuid::from_u128(2),
        label: Label::default(),
        nbuckets: NBUCKETS,
        bucket_size: BUCKET_SIZE,
        block_size: 1,
        replacement: Replacement::Fifo,
        discard,
    });
    let device = MemoryDevice::new(NBUCKETS * BUCKET_SIZE.bytes());
    device.write_at(SB_OFFSET_BYTES, superblock.as_bytes()).unwrap();
    (device, superblock)
}

/// What a run did before it ended.
#[derive(Debug, Default)]
struct Ran {
    /// Buckets that were handed out, with their gens.
    handed_out: Vec<(BucketIndex, Gen)>,
    start_failed: bool,
    thread_failed: bool,
    alloc_failed: bool,
    prio_writes: u64,
}

/// Brings a cache into use and allocates until `ALLOCATIONS` or an error, writing to each bucket.
fn run(device: &Arc<dyn BlockDevice>, superblock: &Superblock) -> Ran {
    run_and(device, superblock, false)
}

/// The same; with `again`, a thread that failed is started once more.
fn run_and(device: &Arc<dyn BlockDevice>, superblock: &Superblock, again: bool) -> Ran {
    let mut ran = Ran::default();
    let member = Member { device: Arc::clone(device), superblock: superblock.clone() };
    let set = match RunningSet::start(vec![member], |_| {}, &mut || 0x5eed) {
        Ok(set) => Arc::new(set),
        Err(StartError::Device(_) | StartError::Prios { .. }) => {
            ran.start_failed = true;
            return ran;
        }
        Err(error) => panic!("{error:?}"),
    };
    allocate(&set, device, ALLOCATIONS, &mut ran);
    if ran.thread_failed && again {
        ran.thread_failed = false;
        // So few that the first entries after the failure are the newest at the end.
        allocate(&set, device, ALLOCATIONS / 6, &mut ran);
    }
    ran
}

/// Starts the thread and allocates until `most` buckets or an error.
fn allocate(set: &Arc<RunningSet>, device: &Arc<dyn BlockDevice>, most: usize, ran: &mut Ran) {
    let (wake, woken) = mpsc::channel();
    let of_collector = Arc::clone(set);
    // Nothing is kept, so that a GC finds every bucket free.
    let collector = std::thread::spawn(move || {
        while woken.recv().is_ok() {
            of_collector.allocator().gc_start();
            of_collector.allocator().gc_finish(&of_collector.metadata_marks()).unwrap();
        }
    });
    let shared = Arc::clone(&set.allocator().caches()[0]);
    let io = set.io(0, Arc::new(move || wake.send(()).unwrap_or(()))).unwrap();
    let allocator = AllocatorThread::start(&shared, io).unwrap();
    for _ in 0..most {
        match shared.bucket_alloc(Reserve::None, true) {
            Ok(bucket) => {
                let bucket_gen = shared.state().table().bucket_gen(bucket).unwrap();
                ran.handed_out.push((bucket, bucket_gen));
                let byte = bucket.0 * BUCKET_SIZE.bytes();
                let wrote = device.write_at(byte, &[0xda; 512]);
                shared.release(bucket).unwrap();
                if wrote.is_err() {
                    break;
                }
            }
            Err(AllocError::Failed) => {
                ran.alloc_failed = true;
                break;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    ran.thread_failed = match allocator.stop() {
        Ok(_) => false,
        Err((_, ThreadError::Io(_))) => {
            // Nobody gets anything any more, and nobody waits.
            assert_eq!(shared.bucket_alloc(Reserve::None, true), Err(AllocError::Failed));
            true
        }
        Err((_, error)) => panic!("{error:?}"),
    };
    collector.join().unwrap();
    shared.state().check().unwrap();
    ran.prio_writes = shared.state().prio_chain().seq();
}

/// What is wrong with `image`, after `ran`: nothing, if the cache was as careful as it has to be.
fn violation(image: &MemoryDevice, ran: &Ran) -> Option<String> {
    let superblock = read_superblock(image).unwrap();
    let Some(superblock) = superblock.filter(|sb| sb.csum_ok() && sb.sync()) else {
        let used = !ran.handed_out.is_empty();
        return used.then(|| "buckets were handed out of a cache that is not in use".to_owned());
    };
    assert_eq!(superblock.nbuckets(), NBUCKETS);
    let report = check(image, &CheckOptions::default(), &mut |_| {}).unwrap();
    if report.registration != Registration::Accepted || !report.is_clean() {
        return Some(format!("check: {:?}", report.findings));
    }
    let cache = CacheDevice::open(image).unwrap();
    let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
    for &(bucket, handed) in &ran.handed_out {
        let found = set.table.get(bucket).unwrap().bucket_gen();
        let behind = handed.gen_after(found);
        if behind != 0 && behind < 128 {
            return Some(format!("bucket {bucket} was used with {handed:?}, found {found:?}"));
        }
    }
    None
}

/// Cuts the power at each change of a run, several ways each; how many images were wrong.
fn cut_everywhere(
    discard: bool,
    step: usize,
    wrap: impl Fn(SimDevice) -> Arc<dyn BlockDevice>,
) -> (u64, Vec<String>) {
    let (contents, superblock) = formatted(discard);
    let whole = SimDevice::new(&contents);
    let ran = run(&wrap(whole.clone()), &superblock);
    assert!(!ran.start_failed && !ran.thread_failed, "{ran:?}");
    assert_eq!(ran.handed_out.len(), ALLOCATIONS);
    assert!(ran.prio_writes > 5, "{}", ran.prio_writes);
    let (mut images, mut wrong) = (0, Vec::new());
    for cut in (0..whole.changes()).step_by(step) {
        let sim = SimDevice::new(&contents).with_power_cut_at(cut);
        let ran = run(&wrap(sim.clone()), &superblock);
        // The data of a cached write survives or not; no matter which, nothing depends on it.
        for seed in 0..4 {
            images += 1;
            let found = violation(&sim.crash(cut * 31 + seed), &ran);
            wrong.extend(found.map(|what| format!("cut at {cut}, seed {seed}: {what}")));
        }
    }
    (images, wrong)
}

#[test]
fn no_power_cut_finds_a_bucket_used_before_its_gen_was_durable() {
    for discard in [false, true] {
        let (images, wrong) = cut_everywhere(discard, 1, |sim| Arc::new(sim));
        assert!(wrong.is_empty(), "{} of {images} images: {}", wrong.len(), wrong[0]);
        assert!(images > 500, "{images}");
    }
}

/// A disk that says that it has flushed and has not: what a cache without flushes would meet.
struct Lying(SimDevice, AtomicBool);

impl ReadDevice for Lying {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.0.read_at(offset, buf)
    }
}

impl BlockDevice for Lying {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.0.write_at(offset, data)
    }
    /// Every second flush is skipped: of a prio write, the one between the sets and the entry.
    fn flush(&self) -> Result<(), DeviceError> {
        if self.1.fetch_xor(true, Ordering::Relaxed) { self.0.flush() } else { Ok(()) }
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.0.discard(offset, len)
    }
}

#[test]
fn the_harness_finds_a_skipped_flush() {
    let (images, wrong) =
        cut_everywhere(false, 3, |sim| Arc::new(Lying(sim, AtomicBool::new(false))));
    assert!(!wrong.is_empty(), "none of {images} images shows that a flush was skipped");
}

#[test]
fn a_device_that_fails_ends_the_thread_and_all_who_wait() {
    let (contents, superblock) = formatted(false);
    let healthy = Arc::new(FaultDevice::new(contents.snapshot()));
    let device: Arc<dyn BlockDevice> = healthy.clone();
    assert!(!run(&device, &superblock).thread_failed);
    let changes = healthy.changes();
    let (mut threads, mut starts) = (0, 0);
    for n in 0..changes {
        let fault = Fault::new(Trigger::NthChange(n)).lasting(Lasting::Always);
        let faulty = Arc::new(FaultDevice::new(contents.snapshot()).with(fault));
        let device: Arc<dyn BlockDevice> = faulty.clone();
        let ran = run(&device, &superblock);
        starts += u64::from(ran.start_failed);
        threads += u64::from(ran.thread_failed);
        assert!(!ran.alloc_failed || ran.thread_failed, "failure {n}: {ran:?}");
        assert_eq!(violation(faulty.inner(), &ran), None, "failure {n}");
    }
    assert!(starts > 3 && threads > 10, "{starts} starts and {threads} threads of {changes}");
}

/// What failed is written again where a reader finds it, not behind what may be torn.
#[test]
fn a_thread_that_is_started_again_after_an_error_is_as_safe() {
    let (contents, superblock) = formatted(false);
    let healthy = Arc::new(FaultDevice::new(contents.snapshot()));
    let device: Arc<dyn BlockDevice> = healthy.clone();
    assert!(!run(&device, &superblock).thread_failed);
    let mut restarts = 0;
    for n in 0..healthy.changes() {
        for torn_bytes in [0, 512] {
            let fault = Fault::new(Trigger::NthChange(n)).torn_after(torn_bytes);
            let faulty = Arc::new(FaultDevice::new(contents.snapshot()).with(fault));
            let device: Arc<dyn BlockDevice> = faulty.clone();
            let ran = run_and(&device, &superblock, true);
            assert!(!ran.thread_failed, "failure {n}: {ran:?}");
            restarts += usize::from(ran.handed_out.len() > ALLOCATIONS / 6);
            assert_eq!(violation(faulty.inner(), &ran), None, "failure {n}, torn {torn_bytes}");
        }
    }
    assert!(restarts > 10, "{restarts} restarts");
}

#[test]
fn a_set_in_use_is_not_started_again_and_marks_its_metadata() {
    let (contents, superblock) = formatted(false);
    let device: Arc<dyn BlockDevice> = Arc::new(contents);
    let member = Member { device: Arc::clone(&device), superblock };
    let set = RunningSet::start(vec![member], |_| {}, &mut || 1).unwrap();
    let now = read_superblock(&device).unwrap().unwrap();
    assert_eq!(&now, set.caches()[0].superblock());
    assert!(now.sync() && now.csum_ok());
    let member = Member { device: Arc::clone(&device), superblock: now };
    let again = RunningSet::start(vec![member], |_| {}, &mut || 1);
    assert!(matches!(again, Err(StartError::NotFresh { device: 0 })));
    // The reader finds the same buckets in use as the next GC will.
    let cache = CacheDevice::open(&device).unwrap();
    let read = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
    for (_, bucket, mark) in set.metadata_marks() {
        assert_eq!(mark, Mark::Metadata);
        assert!(read.metadata_role(bucket).is_some(), "{bucket}");
    }
    assert_eq!(read.prios.buckets, set.allocator().caches()[0].state().prio_chain().current());
}
