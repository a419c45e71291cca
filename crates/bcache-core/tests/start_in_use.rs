//! Going on with cache sets that are in use: whatever happens, what the set held of its volumes is
//! there as it was, or is no longer said to be cached.
#![cfg(not(feature = "model"))]

mod start_support;

use std::sync::Arc;

use bcache_core::allocator::{Config, Mark, Policy};
use bcache_core::cache_set::testkit::{
    Contents, SetBuilder, backing_volume, contents, lost_or_changed,
};
use bcache_core::cache_set::{
    Bucket, CacheDevice, CacheSet, GcMark, NoVisitor, ReadError, ReadOptions,
};
use bcache_core::device::testkit::{Fault, FaultDevice, MemoryDevice, SimDevice, Trigger};
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::superblock::Replacement;
use bcache_core::ops::check::{CheckOptions, Code, Registration, check};
use bcache_core::ops::start::{InUseError, RunningSet, StartError};
use bcache_core::units::{BucketIndex, Gen, Geometry, Sectors};
use start_support::{BUCKET_SIZE, Devices, Ran, Shape, allocate};

/// Two prio sets a chain.
const NBUCKETS: u64 = 1500;
const BUCKET: u64 = BUCKET_SIZE.0;

/// Nothing of what is allocated is kept, so that the same buckets are used over and over.
const CHURN: Shape = Shape {
    nbuckets: NBUCKETS,
    replacement: Replacement::Lru,
    discard: false,
    reclaim_in_gc: false,
    caches: 1,
    keys: 0,
    allocations: 100,
};

/// What is allocated stays as long as nothing takes it.
const KEPT: Shape = Shape { keys: usize::MAX, reclaim_in_gc: true, ..CHURN };

/// How a set is filled.
#[derive(Clone, Copy, Debug)]
struct Filled {
    /// Data buckets with clean data.
    clean: u64,
    /// Data buckets with dirty data.
    dirty: u64,
    /// Keys of the replay range.
    replay: u64,
}

const HALF: Filled = Filled { clean: 300, dirty: 100, replay: 60 };

/// Hardly more than a chain of prio sets is unused.
const FULL: Filled = Filled { clean: 1270, dirty: 150, replay: 12 };

/// So many keys to replay that no entry holds them all.
const LONG: Filled = Filled { replay: 400, ..HALF };

/// Gens that a stale pointer of the btree is behind its bucket.
const STALE_BY: u8 = 90;

impl Filled {
    fn builder(self) -> SetBuilder {
        let mut builder = SetBuilder {
            nbuckets: NBUCKETS,
            bucket_size: BUCKET_SIZE,
            block_size: 1,
            njournal: 16,
            sets_per_node: 2,
            entries_per_bucket: 2,
            first_seq: 40,
            last_seq: 41,
            volumes: vec![backing_volume(1), backing_volume(2)],
            ..SetBuilder::default()
        };
        let first = builder.data_buckets(0).start;
        let key = |end, bucket| key(&builder, 0, end, bucket, 0, 8);
        let mut keys = Vec::new();
        for n in 0..self.replay {
            keys.push(match n % 4 {
                // Over half of what the btree has, dirty or clean, and a hole.
                0 => key(n * 16 + 14, first + n % self.dirty).with_dirty(true),
                1 => key(n * 16 + 14, first + self.dirty + n % self.clean),
                2 => Bkey::new(0, n * 16 + 14, 8),
                // What the btree does not have, behind everything else.
                _ => key(100_000 + n * 16, first + n % self.dirty).with_dirty(n % 8 == 3),
            });
        }
        let entries = keys.chunks(keys.len().div_ceil(6).min(150)).map(<[Bkey]>::to_vec);
        builder.journal = std::iter::once(Vec::new()).chain(entries).collect();
        builder
    }

    /// The set, with data in every sector that a key points to.
    fn device(self) -> MemoryDevice {
        let builder = self.builder();
        let first = builder.data_buckets(0).start;
        let device = MemoryDevice::new(NBUCKETS * BUCKET_SIZE.bytes());
        for sector in first * BUCKET..NBUCKETS * BUCKET {
            device.write_at(sector * 512, &[data(sector); 512]).unwrap();
        }
        let count = self.dirty + self.clean;
        let of_first = (0..count)
            .map(|n| key(&builder, 0, n * 16 + 8, first + n, 0, 4).with_dirty(n < self.dirty));
        // Of the second volume, sectors of the same buckets, and pointers that are stale.
        let of_second = (0..count / 2).map(|n| {
            let stale = n % 5 == 4;
            let mut key = key(&builder, 1, n * 16 + 4, first + n * 2, 4, 4);
            if stale {
                let old = Gen((builder.bucket_disk)(0).bucket_gen.0.wrapping_sub(STALE_BY));
                key = Bkey::new(1, n * 16 + 4, 4).with_ptrs(&[Ptr::new(
                    old,
                    Sectors((first + n * 2) * BUCKET),
                    0,
                )]);
            }
            key
        });
        builder.write(&device, of_first.chain(of_second)).unwrap();
        let report = check(&device, &CheckOptions::default(), &mut |_| {}).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        device
    }
}

fn key(builder: &SetBuilder, inode: u32, end: u64, bucket: u64, within: u64, size: u16) -> Bkey {
    let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
    let ptr = Ptr::new(ptr_gen, Sectors(bucket * BUCKET + within), 0);
    Bkey::new(inode, end, size).with_ptrs(&[ptr])
}

/// What is in a sector of the device.
fn data(sector: u64) -> u8 {
    u8::try_from(sector % 199).unwrap() + 1
}

fn read(device: &MemoryDevice) -> CacheSet<'_> {
    let cache = CacheDevice::open(device).unwrap();
    CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap()
}

fn contents_of(device: &MemoryDevice) -> Contents {
    contents(&read(device)).unwrap()
}

fn configure(shape: Shape) -> impl Fn(&mut Config) {
    move |config| {
        config.policy = Policy::from(shape.replacement);
        config.reclaim_in_gc = shape.reclaim_in_gc;
        config.discard = shape.discard;
    }
}

fn open(devices: &Devices, shape: Shape) -> Result<RunningSet, StartError> {
    RunningSet::open(devices.clone(), configure(shape), &ReadOptions::default(), &mut |_, _| {})
}

fn run(devices: &Devices, shape: Shape) -> Ran {
    assert_eq!(devices[0].info().size_bytes, shape.nbuckets * BUCKET_SIZE.bytes());
    run_and(devices, shape, 0)
}

/// Goes on with the set and allocates as `shape` says, or until an error, after which the thread is
/// started once more, for `again` allocations.
fn run_and(devices: &Devices, shape: Shape, again: usize) -> Ran {
    let mut ran = Ran::default();
    let set = Arc::new(open(devices, shape).unwrap());
    let keys = Arc::default();
    allocate(&set, devices, shape, &keys, &mut ran);
    if ran.thread_failed && again > 0 {
        ran.thread_failed = false;
        allocate(&set, devices, Shape { allocations: again, ..shape }, &keys, &mut ran);
    }
    if !ran.thread_failed {
        let _ = set.write_prios(0);
    }
    ran
}

/// What is wrong with `image` after `ran`, if `before` was in the set when the run began.
fn violation(before: &Contents, image: &MemoryDevice, ran: &Ran) -> Option<String> {
    let report = check(image, &CheckOptions::default(), &mut |_| {}).unwrap();
    // An entry of several blocks may be torn.
    let harmless = |code: Code| matches!(code, Code::JournalTorn | Code::BucketGenLimit);
    let sound = report.findings.iter().all(|finding| harmless(finding.code()));
    if report.registration != Registration::Accepted || !sound {
        return Some(format!("check: {:?}", report.findings));
    }
    let set = read(image);
    for pointer in &ran.handed_out {
        let found = set.table.get(pointer.bucket).unwrap();
        if pointer.bucket_gen.gen_after(found.bucket_gen()) != 0 && found.mark() != GcMark::Unused {
            return Some(format!("bucket {} was used before its gen was there", pointer.bucket));
        }
    }
    lost_or_changed(before, &contents_of(image))
}

/// Cuts the power at every `step`th of the last `last` changes, several ways each.
fn cut_everywhere(filled: Filled, shape: Shape, last: u64, step: usize) {
    let devices = |sim: &SimDevice| vec![Arc::new(sim.clone()) as Arc<dyn BlockDevice>];
    let device = filled.device();
    let before = contents_of(&device);
    let whole = SimDevice::new(&device);
    let ran = run(&devices(&whole), shape);
    assert!(!ran.start_failed && !ran.thread_failed && !ran.alloc_failed, "{filled:?}: {ran:?}");
    assert_eq!(ran.handed_out.len(), shape.allocations);
    assert_eq!(violation(&before, &whole.current(), &ran), None);
    let changes = whole.changes();
    let mut images = 0;
    for cut in (changes.saturating_sub(last)..changes).step_by(step) {
        let sim = SimDevice::new(&device).with_power_cut_at(cut);
        let ran = run(&devices(&sim), shape);
        for seed in 0..3 {
            images += 1;
            let found = violation(&before, &sim.crash(cut * 31 + seed), &ran);
            assert_eq!(found, None, "{filled:?}: cut at {cut} of {changes}, seed {seed}");
        }
    }
    assert!(images > 100, "{images}");
}

#[test]
fn no_power_cut_touches_what_the_set_held() {
    for shape in [CHURN, KEPT] {
        cut_everywhere(HALF, shape, u64::MAX, 1);
    }
}

#[test]
fn nor_where_nearly_every_bucket_holds_something() {
    for replacement in [Replacement::Lru, Replacement::Fifo, Replacement::Random] {
        cut_everywhere(FULL, Shape { replacement, ..KEPT }, u64::MAX, 3);
    }
}

#[test]
fn nor_where_the_keys_to_replay_take_several_entries() {
    cut_everywhere(LONG, CHURN, u64::MAX, 1);
}

/// What failed is written again where a reader finds it, and what the set held is as it was.
#[test]
fn a_thread_that_is_started_again_after_an_error_is_as_safe() {
    for (filled, step) in [(HALF, 1), (FULL, 3), (LONG, 1)] {
        let device = filled.device();
        let before = contents_of(&device);
        let healthy = Arc::new(FaultDevice::new(device.snapshot()));
        assert!(!run(&vec![healthy.clone()], CHURN).thread_failed);
        let (mut restarts, mut in_doubt) = (0, 0);
        for n in (0..healthy.changes()).step_by(step) {
            for torn_bytes in [0, 512, 2048] {
                let fault = Fault::new(Trigger::NthChange(n)).torn_after(torn_bytes);
                let faulty = Arc::new(FaultDevice::new(device.snapshot()).with(fault));
                let ran = run_and(&vec![faulty.clone()], CHURN, 20);
                assert!(!ran.thread_failed, "failure {n}: {ran:?}");
                restarts += usize::from(ran.alloc_failed);
                in_doubt += usize::from(ran.in_doubt);
                let found = violation(&before, faulty.inner(), &ran);
                assert_eq!(found, None, "{filled:?}: failure {n}, torn {torn_bytes}");
            }
        }
        assert!(restarts > 10 && in_doubt > 2, "{restarts} restarts, {in_doubt} in doubt");
    }
}

/// So many allocations that each bucket goes round, the journal too, and no stale pointer comes back.
#[test]
fn no_pointer_is_valid_again_however_often_a_bucket_is_used() {
    let device = FULL.device();
    let before = contents_of(&device);
    let devices: Devices = vec![Arc::new(device.clone())];
    let first_seq = read(&device).journal.newest().unwrap().jset.seq();
    for shape in [CHURN, KEPT] {
        let ran = run(&devices, Shape { allocations: 30_000, ..shape });
        assert!(!ran.thread_failed && !ran.alloc_failed);
        assert_eq!(violation(&before, &device, &ran), None);
    }
    let set = read(&device);
    let spans = set.table.as_slice().iter().map(Bucket::gen_span);
    assert_eq!(spans.max(), Some(96));
    assert!(set.journal.newest().unwrap().jset.seq() > first_seq + 1000);
    // Dirty data is all there, and nothing else need be.
    assert_eq!(set.dirty_sectors().0, before.values().filter(|(dirty, _)| *dirty).count() as u64);
}

#[test]
fn opening_writes_nothing_and_knows_what_is_in_use() {
    let device = HALF.device();
    let untouched = device.content_hash();
    let devices: Devices = vec![Arc::new(device.clone())];
    let change = |config: &mut Config| {
        config.sync = false;
        config.geometry = Geometry::new(5000, 1, Sectors(16), Sectors(8)).unwrap();
        config.seed = Some(7);
    };
    let set = RunningSet::open(devices, change, &ReadOptions::default(), &mut |_, _| {}).unwrap();
    let read = read(&device);
    let core = set.allocator().caches()[0].core();
    assert!(core.config().sync && core.config().geometry == *read.geometry());
    assert_eq!(core.prio_chains().current(), read.prios.buckets);
    assert_eq!(core.prio_chains().seq(), read.prios.seq);
    assert!(set.metadata_marks().is_empty());
    // A GC that comes by no keys forgets nothing of it.
    for round in 0..2 {
        for (bucket, found) in (0u64..).map(BucketIndex).zip(read.table.as_slice()) {
            let Ok(now) = core.table().bucket(bucket) else { continue };
            let role = read.metadata_role(bucket);
            let mark = match found.mark() {
                _ if role.is_some() => Mark::Metadata,
                GcMark::Unused => Mark::None,
                GcMark::Reclaimable => Mark::Reclaimable,
                GcMark::Dirty => Mark::Dirty,
                GcMark::Metadata => Mark::Metadata,
            };
            assert_eq!(now.mark, mark, "bucket {bucket}, {round}");
            let keeps = role.is_some() || found.mark() == GcMark::Dirty || found.pinned();
            let keeps = keeps && !read.prios.buckets.contains(&bucket);
            assert_eq!(now.pins > 0 && !now.is_free, keeps, "bucket {bucket}, {found:?}");
            if !now.is_free {
                assert_eq!(now.bucket_gen, found.bucket_gen(), "bucket {bucket}");
                assert_eq!(now.last_gc, found.last_gc(), "bucket {bucket}");
                assert_eq!(now.sectors_used, found.sectors_used(), "bucket {bucket}, {round}");
                assert_eq!(now.prio, found.prio(), "bucket {bucket}");
            }
        }
        core.check().unwrap();
        set.allocator().gc_start();
        set.allocator().gc_finish(&[]).unwrap();
    }
    drop(set);
    assert_eq!(device.content_hash(), untouched);
}

/// Why the set on `device` is refused; it must be left as it was.
fn refusal(device: &MemoryDevice) -> InUseError {
    let before = device.content_hash();
    let devices: Devices = vec![Arc::new(device.clone())];
    let error = match open(&devices, CHURN) {
        Ok(_) => panic!("it was opened"),
        Err(StartError::InUse { device: 0, source }) => source,
        Err(error) => panic!("{error:?}"),
    };
    assert_eq!(device.content_hash(), before);
    error
}

#[test]
fn what_leaves_it_uncertain_which_buckets_are_in_use_is_refused() {
    let device = HALF.device();
    let set = read(&device);
    let start = |bucket: BucketIndex| set.geometry().bucket_to_sector(bucket).bytes();
    let damaged = |byte: u64| {
        let damaged = device.snapshot();
        let mut block = [0; 512];
        damaged.read_at(byte / 512 * 512, &mut block).unwrap();
        block[usize::try_from(byte % 512).unwrap()] ^= 1;
        damaged.write_at(byte / 512 * 512, &block).unwrap();
        damaged
    };
    let node = set.root.ptrs()[0].offset().bytes() + 40;
    for byte in [node, start(set.prios.buckets[1]) + 100] {
        let error = refusal(&damaged(byte));
        assert!(matches!(error, InUseError::Damaged { .. }), "{byte}: {error:?}");
    }
    // An entry in the middle of the replay range.
    let entry = &set.journal.entries[2].place;
    let error = refusal(&damaged(start(entry.bucket) + entry.offset + 300));
    assert!(matches!(error, InUseError::Damaged { .. }), "{error:?}");
    let error = refusal(&damaged(4096 + 300));
    assert!(matches!(error, InUseError::KernelRefuses { .. }), "{error:?}");

    let fresh = device.snapshot();
    let mut superblock = set.cache.superblock().clone();
    superblock.edit(|edit| {
        edit.sync(false);
    });
    fresh.write_at(4096, superblock.as_bytes()).unwrap();
    let error = refusal(&fresh);
    assert!(matches!(error, InUseError::NoCache(ReadError::Unsynced)), "{error:?}");

    // Nothing is unused but fewer buckets than a chain of prio sets has.
    let mut filled = FULL;
    while open(&vec![Arc::new(filled.device())], CHURN).is_ok() {
        filled.clean += 1;
    }
    let error = refusal(&filled.device());
    assert!(matches!(error, InUseError::TooFewUnused { needed: 2, found: 1 }), "{error:?}");
    // Keys that take more than half of the journal.
    let error = refusal(&Filled { replay: 1400, ..HALF }.device());
    assert!(matches!(error, InUseError::JournalFull { keys: 1000.., next: None }), "{error:?}");
}

#[test]
fn two_caches_go_on_side_by_side() {
    let images = [HALF.device(), FULL.device()];
    let before = images.each_ref().map(contents_of);
    let devices: Devices = images.iter().map(|it| Arc::new(it.clone()) as Arc<_>).collect();
    let seeded = |config: &mut Config| config.seed = Some(7);
    let options = ReadOptions::default();
    let set = RunningSet::open(devices.clone(), seeded, &options, &mut |_, _| {}).unwrap();
    let seeds = set.allocator().caches().iter().map(|cache| cache.core().config().seed);
    assert!(seeds.eq([Some(7), Some(8)]), "they would take the same buckets in step");
    let ran = run(&devices, Shape { caches: 2, ..KEPT });
    assert_eq!(ran.handed_out.len(), 2 * KEPT.allocations);
    for (device, (before, image)) in before.iter().zip(&images).enumerate() {
        let of_cache = ran.handed_out.iter().filter(|it| usize::from(it.device) == device);
        let ran = Ran { handed_out: of_cache.copied().collect(), ..Ran::default() };
        assert_eq!(violation(before, image, &ran), None, "cache {device}");
    }
}

/// The comparison sees a bucket that is overwritten, dirty or clean.
#[test]
fn the_harness_finds_an_overwritten_bucket() {
    let device = HALF.device();
    let before = contents_of(&device);
    assert_eq!(violation(&before, &device, &Ran::default()), None);
    let first = HALF.builder().data_buckets(0).start;
    for bucket in [first + HALF.dirty - 1, first + HALF.dirty + HALF.clean - 1] {
        let image = device.snapshot();
        image.write_at(bucket * BUCKET_SIZE.bytes(), &[0xda; 512]).unwrap();
        assert!(violation(&before, &image, &Ran::default()).is_some(), "{bucket}");
    }
}
