//! A cache set in use on devices that lose power or fail: what its thread wrote, read again.
#![cfg(not(feature = "model"))]

mod start_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bcache_core::allocator::{Config, Mark, SetPointer};
use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::testkit::{Fault, FaultDevice, Lasting, MemoryDevice, SimDevice, Trigger};
use bcache_core::device::{BlockDevice, DeviceError, DeviceInfo, ReadDevice};
use bcache_core::layout::superblock::{
    CacheParams, Label, Replacement, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::ops::check::{CheckOptions, Registration, check};
use bcache_core::ops::make::read_superblock;
use bcache_core::ops::start::{Member, RunningSet, StartError};
use start_support::{BUCKET_SIZE, Devices, Ran, Shape, allocate};
use uuid::Uuid;

/// Nothing is kept, so that a GC finds every bucket free. Two prio sets a chain, and enough
/// allocations for several passes.
const CHURN: Shape = Shape {
    nbuckets: 2048,
    replacement: Replacement::Fifo,
    discard: false,
    reclaim_in_gc: false,
    caches: 1,
    keys: 0,
    allocations: 120,
};

/// Half of what a small cache holds is kept.
const KEPT: Shape = Shape {
    nbuckets: 600,
    replacement: Replacement::Lru,
    reclaim_in_gc: true,
    keys: 300,
    allocations: 620,
    ..CHURN
};

/// Everything that was not invalidated is kept: every bucket holds data in the end.
const FULL: Shape = Shape { keys: usize::MAX, allocations: 640, ..KEPT };

fn formatted(shape: Shape) -> (MemoryDevice, Superblock) {
    let superblock = Superblock::new_cache(&CacheParams {
        uuid: Uuid::from_u128(1),
        set_uuid: Uuid::from_u128(2),
        label: Label::default(),
        nbuckets: shape.nbuckets,
        bucket_size: BUCKET_SIZE,
        block_size: 1,
        replacement: shape.replacement,
        discard: shape.discard,
    });
    let device = MemoryDevice::new(shape.nbuckets * BUCKET_SIZE.bytes());
    device.write_at(SB_OFFSET_BYTES, superblock.as_bytes()).unwrap();
    (device, superblock)
}

/// Brings caches into use and allocates as `shape` says, or until an error, writing to each bucket.
fn run(devices: &Devices, superblock: &Superblock, shape: Shape) -> Ran {
    run_and(devices, superblock, shape, 0)
}

/// The same; after a failure the threads are started once more, for `again` allocations.
fn run_and(devices: &Devices, superblock: &Superblock, shape: Shape, again: usize) -> Ran {
    let mut ran = Ran::default();
    let member =
        |device: &Arc<_>| Member { device: Arc::clone(device), superblock: superblock.clone() };
    let members = devices.iter().map(member).collect();
    let configure = |config: &mut Config| config.reclaim_in_gc = shape.reclaim_in_gc;
    let set = match RunningSet::start(members, configure, &mut || 0x5eed) {
        Ok(set) => Arc::new(set),
        Err(StartError::Device(_) | StartError::Prios { .. }) => {
            ran.start_failed = true;
            return ran;
        }
        Err(error) => panic!("{error:?}"),
    };
    let keys = Arc::default();
    allocate(&set, devices, shape, &keys, &mut ran);
    if ran.thread_failed && again > 0 {
        ran.thread_failed = false;
        allocate(&set, devices, Shape { allocations: again, ..shape }, &keys, &mut ran);
    }
    ran
}

/// What is wrong with `image`, that of cache `device` after `ran`: nothing, if the cache was as
/// careful as it has to be.
fn violation(image: &MemoryDevice, device: usize, ran: &Ran, shape: Shape) -> Option<String> {
    let handed_out = || ran.handed_out.iter().filter(|of| usize::from(of.device) == device);
    let superblock = read_superblock(image).unwrap();
    let Some(superblock) = superblock.filter(|sb| sb.csum_ok() && sb.sync()) else {
        let used = handed_out().next().is_some();
        return used.then(|| "buckets were handed out of a cache that is not in use".to_owned());
    };
    assert_eq!(superblock.nbuckets(), shape.nbuckets);
    let report = check(image, &CheckOptions::default(), &mut |_| {}).unwrap();
    if report.registration != Registration::Accepted || !report.is_clean() {
        return Some(format!("check: {:?}", report.findings));
    }
    let cache = CacheDevice::open(image).unwrap();
    let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
    for &SetPointer { bucket, bucket_gen, .. } in handed_out() {
        let found = set.table.get(bucket).unwrap().bucket_gen();
        if bucket_gen.gen_after(found) != 0 {
            return Some(format!("bucket {bucket} was used with {bucket_gen:?}, found {found:?}"));
        }
    }
    None
}

/// Cuts the power at the last `last` changes of a run on the first cache, at every `step`th of them and
/// several ways each; how many images were wrong.
fn cut_everywhere(
    shape: Shape,
    last: u64,
    step: usize,
    wrap: impl Fn(SimDevice) -> Arc<dyn BlockDevice>,
) -> (u64, Vec<String>) {
    let (contents, superblock) = formatted(shape);
    let sims = || -> Vec<_> { (0..shape.caches).map(|_| SimDevice::new(&contents)).collect() };
    let wrapped = |sims: &[SimDevice]| sims.iter().cloned().map(&wrap).collect();
    let whole = sims();
    let ran = run(&wrapped(&whole), &superblock, shape);
    assert!(!ran.start_failed && !ran.thread_failed, "{ran:?}");
    assert_eq!(ran.handed_out.len(), shape.allocations * shape.caches);
    assert!(ran.prio_writes > 5, "{}", ran.prio_writes);
    let changes = whole[0].changes();
    let (mut images, mut wrong) = (0, Vec::new());
    for cut in (changes.saturating_sub(last)..changes).step_by(step) {
        let mut sims = sims();
        sims[0] = sims[0].clone().with_power_cut_at(cut);
        let ran = run(&wrapped(&sims), &superblock, shape);
        // The data of a cached write survives or not; no matter which, nothing depends on it.
        for seed in 0..4 {
            for (device, sim) in sims.iter().enumerate() {
                images += 1;
                let found = violation(&sim.crash(cut * 31 + seed), device, &ran, shape);
                wrong.extend(found.map(|what| format!("cut at {cut}, seed {seed}: {what}")));
            }
        }
    }
    (images, wrong)
}

fn assert_safe(shape: Shape, last: u64, step: usize) {
    let (images, wrong) = cut_everywhere(shape, last, step, |sim| Arc::new(sim));
    assert!(wrong.is_empty(), "{} of {images} images: {}", wrong.len(), wrong[0]);
    assert!(images > 100, "{images}");
}

#[test]
fn no_power_cut_finds_a_bucket_used_before_its_gen_was_durable() {
    for discard in [false, true] {
        assert_safe(Shape { discard, ..CHURN }, u64::MAX, 1);
    }
}

#[test]
fn no_power_cut_finds_one_where_lru_takes_buckets_while_a_gc_keeps_others() {
    assert_safe(KEPT, 150, 4);
}

#[test]
fn no_power_cut_finds_one_on_a_full_cache() {
    assert_safe(FULL, 150, 4);
}

#[test]
fn no_power_cut_of_one_cache_finds_one_on_any_cache_of_a_set() {
    assert_safe(Shape { caches: 2, ..KEPT }, 150, 5);
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
    for (shape, last) in [(CHURN, u64::MAX), (FULL, 150)] {
        let lying = |sim| -> Arc<dyn BlockDevice> { Arc::new(Lying(sim, AtomicBool::new(false))) };
        let (images, wrong) = cut_everywhere(shape, last, 3, lying);
        assert!(!wrong.is_empty(), "none of {images} images shows that a flush was skipped");
    }
}

/// How many changes a run makes on a device that does not fail.
fn changes_of(contents: &MemoryDevice, superblock: &Superblock, shape: Shape) -> u64 {
    let healthy = Arc::new(FaultDevice::new(contents.snapshot()));
    let devices: Devices = vec![healthy.clone()];
    assert!(!run(&devices, superblock, shape).thread_failed);
    healthy.changes()
}

#[test]
fn a_device_that_fails_ends_the_thread_and_all_who_wait() {
    let (contents, superblock) = formatted(CHURN);
    let changes = changes_of(&contents, &superblock, CHURN);
    let (mut threads, mut starts) = (0, 0);
    for n in 0..changes {
        let fault = Fault::new(Trigger::NthChange(n)).lasting(Lasting::Always);
        let faulty = Arc::new(FaultDevice::new(contents.snapshot()).with(fault));
        let devices: Devices = vec![faulty.clone()];
        let ran = run(&devices, &superblock, CHURN);
        starts += u64::from(ran.start_failed);
        threads += u64::from(ran.thread_failed);
        assert!(!ran.alloc_failed || ran.thread_failed, "failure {n}: {ran:?}");
        assert_eq!(violation(faulty.inner(), 0, &ran, CHURN), None, "failure {n}");
    }
    assert!(starts > 3 && threads > 10, "{starts} starts and {threads} threads of {changes}");
}

/// Fails at each of the last `last` changes, starts the thread again, and checks what is found then; in
/// how many runs, and in how many of them it was in doubt which chain is current.
fn fail_and_restart(shape: Shape, last: u64) -> (usize, usize) {
    let (contents, superblock) = formatted(shape);
    let changes = changes_of(&contents, &superblock, shape);
    // So few that the first entries after the failure are the newest at the end.
    let again = 20;
    let (mut restarts, mut in_doubt) = (0, 0);
    for n in changes.saturating_sub(last)..changes {
        for torn_bytes in [0, 512] {
            let fault = Fault::new(Trigger::NthChange(n)).torn_after(torn_bytes);
            let faulty = Arc::new(FaultDevice::new(contents.snapshot()).with(fault));
            let devices: Devices = vec![faulty.clone()];
            let ran = run_and(&devices, &superblock, shape, again);
            assert!(!ran.thread_failed, "failure {n}: {ran:?}");
            restarts += usize::from(ran.alloc_failed && ran.handed_out.len() > again);
            in_doubt += usize::from(ran.in_doubt);
            let found = violation(faulty.inner(), 0, &ran, shape);
            assert_eq!(found, None, "failure {n}, torn {torn_bytes}");
        }
    }
    (restarts, in_doubt)
}

/// What failed is written again where a reader finds it, not behind what may be torn.
#[test]
fn a_thread_that_is_started_again_after_an_error_is_as_safe() {
    let (restarts, in_doubt) = fail_and_restart(CHURN, u64::MAX);
    assert!(restarts > 10 && in_doubt > 5, "{restarts} restarts, {in_doubt} in doubt");
}

/// Both chains hold on to the only buckets for another one, until it is known which is current.
#[test]
fn a_full_cache_goes_on_when_its_thread_is_started_again() {
    let (restarts, in_doubt) = fail_and_restart(FULL, 400);
    assert!(restarts > 10 && in_doubt > 5, "{restarts} restarts, {in_doubt} in doubt");
}

#[test]
fn a_set_in_use_is_not_started_again_and_marks_its_metadata() {
    let (contents, superblock) = formatted(CHURN);
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
    assert_eq!(read.prios.buckets, set.allocator().caches()[0].core().prio_chains().current());
}
