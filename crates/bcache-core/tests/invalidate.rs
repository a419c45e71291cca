//! Invalidation on cache sets made for it: what may go and what not, writes as planned, power cuts,
//! failing and lying devices.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use bcache_core::allocator::Policy;
use bcache_core::allocator::replacement::lru::bucket_prio;
use bcache_core::cache_set::testkit::{BuiltSet, SetBuilder, backing_volume};
use bcache_core::cache_set::{
    CacheDevice, CacheSet, GcMark, MetadataRole, NoVisitor, ReadOptions, WalkOptions,
};
use bcache_core::device::testkit::{
    CrashUnit, Fault, FaultDevice, Lasting, MemoryDevice, SimDevice, TraceDevice, Trigger,
};
use bcache_core::device::{AlignedBuf, BlockDevice, DeviceError, DeviceInfo, ReadDevice};
use bcache_core::inspect::FindVolumeError;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::jset::JsetParams;
use bcache_core::layout::superblock::Label;
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::layout::{bset, jset};
use bcache_core::ops::check::{CheckOptions, Code, check};
use bcache_core::ops::invalidate::{
    Advice, Amount, DeviceState, GaveUp, InvalidateError, InvalidatePlan, Options, ProofError,
    Reason, RunError, Selection, TrustedSet, plan, run,
};
use bcache_core::ops::plan::Plan;
use bcache_core::units::{BucketIndex, Gen, Prio, Sectors};
use proptest::prelude::*;

const BUCKET: u64 = 8;
const NBUCKETS: u64 = 3000;

/// Buckets with data, by what is in them, from the first data bucket on.
const CLEAN: std::ops::Range<u64> = 0..300;
const MIXED: std::ops::Range<u64> = 300..340;
const DIRTY: std::ops::Range<u64> = 340..400;
/// Clean by the journal's replay range.
const REPLAY_CLEAN: std::ops::Range<u64> = 400..404;
/// Dirty by the journal's replay range.
const REPLAY_DIRTY: std::ops::Range<u64> = 404..408;
/// A pointer that is 96 gens old, and none else.
const AT_LIMIT: u64 = 408;
/// A pointer that is 95 gens old.
const BELOW_LIMIT: u64 = 409;

/// A device with two volumes, a btree of several levels, three prio sets and keys to replay.
struct Sample {
    device: MemoryDevice,
    built: BuiltSet,
    first_data: u64,
}

fn volume(number: u128, label: &str) -> UuidEntry {
    UuidEntry { label: Label::new(label).unwrap(), ..backing_volume(number) }
}

fn builder() -> SetBuilder {
    SetBuilder {
        nbuckets: NBUCKETS,
        bucket_size: Sectors(BUCKET),
        block_size: 1,
        njournal: 16,
        sets_per_node: 2,
        fill_percent: 50,
        first_seq: 40,
        last_seq: 41,
        entries_per_bucket: 2,
        volumes: vec![volume(1, "home"), volume(2, "data\n")],
        ..SetBuilder::default()
    }
}

fn key(builder: &SetBuilder, inode: u32, end: u64, bucket: u64, within: u64, size: u16) -> Bkey {
    let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
    let ptr = Ptr::new(ptr_gen, Sectors(bucket * BUCKET + within), 0);
    Bkey::new(inode, end, size).with_ptrs(&[ptr])
}

impl Sample {
    fn new() -> Self {
        Self::with(builder())
    }

    fn with(mut builder: SetBuilder) -> Self {
        let first_data = builder.data_buckets(0).start;
        let one = |bucket: u64| {
            let place = 1_000_000 + bucket * 100;
            vec![
                key(&builder, 0, place, first_data + bucket, 0, 4)
                    .with_dirty(REPLAY_DIRTY.contains(&bucket)),
            ]
        };
        let mut journal: Vec<Vec<Bkey>> = vec![Vec::new()];
        journal.extend((REPLAY_CLEAN.start..REPLAY_DIRTY.end).map(one));
        builder.journal = journal;
        let mut keys = Vec::new();
        for inode in [0, 1] {
            for bucket in CLEAN.start..DIRTY.end {
                if bucket % 2 == u64::from(inode) || MIXED.contains(&bucket) {
                    let dirty = DIRTY.contains(&bucket) || (MIXED.contains(&bucket) && inode == 1);
                    let within = u64::from(inode) * 4;
                    let end = 100 + bucket * 10;
                    keys.push(
                        key(&builder, inode, end, first_data + bucket, within, 4).with_dirty(dirty),
                    );
                }
            }
            if inode == 0 {
                for (bucket, age) in [(AT_LIMIT, 96u8), (BELOW_LIMIT, 95)] {
                    let old = Gen((builder.bucket_disk)(0).bucket_gen.0.wrapping_sub(age));
                    let sector = (first_data + bucket) * BUCKET;
                    keys.push(Bkey::new(0, 20_000 + bucket * 10, 4).with_ptrs(&[Ptr::new(
                        old,
                        Sectors(sector),
                        0,
                    )]));
                }
            }
        }
        let device = MemoryDevice::new(NBUCKETS * BUCKET * 512);
        let built = builder.write(&device, keys.into_iter()).unwrap();
        assert!(built.root.0 >= 1 && built.prio_buckets.len() == 3);
        let sample = Self { device, built, first_data };
        assert_clean(&sample.device);
        sample
    }

    /// Numbers of buckets, as a list to be named.
    fn buckets(&self, from: impl IntoIterator<Item = u64>) -> Selection {
        Selection::Buckets(from.into_iter().map(|it| self.data(it)..=self.data(it)).collect())
    }

    fn data(&self, bucket: u64) -> u64 {
        self.first_data + bucket
    }

    /// A pointer to the start of a data bucket, so many gens past the one it had when it was made.
    fn ptr(&self, bucket: u64, gens: u8) -> Ptr {
        let bucket = self.data(bucket);
        let Gen(made) = (builder().bucket_disk)(bucket).bucket_gen;
        Ptr::new(Gen(made.wrapping_add(gens)), Sectors(bucket * BUCKET), 0)
    }

    /// Lets the journal go on by an entry with these keys, as a kernel would.
    fn append_entry(&self, keys: &[Bkey]) {
        let cache = CacheDevice::open(&self.device).unwrap();
        let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
        let newest = &set.journal.newest().unwrap().jset;
        let entry = JsetParams { seq: newest.seq() + 1, ..JsetParams::of(newest, keys) };
        let entry = jset::encode(&entry, self.built.magic).unwrap();
        let place = set.journal.append_places(&set.cache).unwrap().after_newest.unwrap().0;
        let at = self.built.geometry.bucket_to_sector(place.bucket).bytes() + place.offset;
        self.device.write_at(at, &AlignedBuf::padded(entry.as_bytes(), 512)).unwrap();
    }

    /// Appends a set with one key to the root node.
    fn add_to_root(&self, key: Bkey) {
        let ptr = self.built.root.1.ptrs()[0];
        let start = ptr.offset().bytes();
        let word = |at: u64| {
            let mut bytes = [0; 8];
            self.device.read_at(at, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        let seq = word(start + 16);
        let mut end = start;
        while word(end + 16) == seq {
            end += (32 + 8 * (word(end + 24) >> 32)).next_multiple_of(512);
        }
        let set = bset::encode(self.built.magic, ptr, seq, &[key]);
        self.device.write_at(end, &AlignedBuf::padded(&set, 512)).unwrap();
    }
}

fn read_options() -> ReadOptions {
    ReadOptions {
        walk: WalkOptions { threads: 1, ..WalkOptions::default() },
        ..ReadOptions::default()
    }
}

fn options(selection: Selection) -> Options {
    Options { selection, skip_refused: false, walk: read_options().walk }
}

fn plan_on<'d>(
    device: &'d dyn ReadDevice,
    options: &Options,
) -> Result<InvalidatePlan<'d>, InvalidateError> {
    plan(TrustedSet::read(device, &read_options(), &mut |_| {})?, options)
}

fn assert_clean(device: &dyn ReadDevice) {
    let report = check(device, &CheckOptions::default(), &mut |_| {}).unwrap();
    // The sample has a bucket at the limit, and torn journal entries are what power cuts leave.
    let expected = [Code::BucketGenLimit, Code::JournalTorn];
    let findings: Vec<_> =
        report.findings.iter().filter(|finding| !expected.contains(&finding.code())).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

/// All that an invalidation may change, and that it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    seq: u64,
    last_seq: u64,
    root: Bkey,
    chain: Vec<BucketIndex>,
    buckets: Vec<(u8, GcMark, u16)>,
    volumes: Vec<(u32, u64, u64)>,
}

fn state_of(device: &dyn ReadDevice) -> State {
    let cache = CacheDevice::open(device).unwrap();
    let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
    let newest = &set.journal.newest().unwrap().jset;
    State {
        seq: newest.seq(),
        last_seq: newest.last_seq(),
        root: set.root,
        chain: set.prios.buckets.clone(),
        buckets: set
            .table
            .as_slice()
            .iter()
            .map(|bucket| (bucket.bucket_gen().0, bucket.mark(), bucket.sectors_used()))
            .collect(),
        volumes: set
            .volumes
            .iter()
            .map(|(&slot, usage)| (slot, usage.cached_sectors.0, usage.dirty_sectors.0))
            .collect(),
    }
}

fn targets(plan: &InvalidatePlan<'_>) -> Vec<u64> {
    plan.targets().map(|target| target.bucket.0).collect()
}

fn invalidate(device: &MemoryDevice, options: &Options) -> Result<Vec<u64>, RunError> {
    let plan = plan_on(device, options).unwrap();
    run(&plan, &read_options(), || Ok(device), &mut |_| {})?;
    Ok(targets(&plan))
}

#[test]
fn clean_data_goes_and_nothing_else() {
    let sample = Sample::new();
    let before = state_of(&sample.device);
    let gone = invalidate(&sample.device, &options(Selection::AllClean)).unwrap();
    let expected: Vec<u64> = CLEAN.chain(REPLAY_CLEAN).map(|bucket| sample.data(bucket)).collect();
    assert_eq!(gone, expected);
    let after = state_of(&sample.device);
    assert_eq!(
        (after.seq, after.last_seq, after.root),
        (before.seq + 1, before.last_seq, before.root)
    );
    for (number, (old, new)) in (0u64..).zip(before.buckets.iter().zip(&after.buckets)) {
        if gone.contains(&number) {
            assert_eq!(*new, (old.0.wrapping_add(1), GcMark::Unused, 0), "bucket {number}");
        } else {
            assert_eq!((new.0, new.2), (old.0, old.2), "bucket {number}");
        }
    }
    assert!(before.chain.iter().all(|bucket| !after.chain.contains(bucket)));
    // Volume 0 keeps what is in mixed buckets and what is dirty.
    let dirty_before: Vec<u64> = before.volumes.iter().map(|volume| volume.2).collect();
    let dirty_after: Vec<u64> = after.volumes.iter().map(|volume| volume.2).collect();
    assert_eq!(dirty_before, dirty_after);
    let mixed = (MIXED.end - MIXED.start) * 4;
    assert_eq!(after.volumes[0].1, after.volumes[0].2 + mixed);
    assert_clean(&sample.device);
    // There is nothing left: no plan to write, and nothing is written.
    let hash = sample.device.content_hash();
    assert!(invalidate(&sample.device, &options(Selection::AllClean)).unwrap().is_empty());
    assert_eq!(sample.device.content_hash(), hash);
}

#[test]
fn what_must_not_go_is_refused_with_its_reason() {
    let sample = Sample::new();
    let nbuckets = NBUCKETS;
    let first = sample.built.geometry.first_bucket();
    let named = |bucket: u64, last: u64| {
        let plan =
            plan_on(&sample.device, &options(Selection::Buckets(vec![bucket..=last]))).unwrap();
        assert!(plan.stopped() && plan.writes.is_none());
        let mut refused: Vec<_> = plan.refused().collect();
        assert!(!refused[0].1.to_string().is_empty() && !refused[0].1.instead().is_empty());
        (refused.len(), refused.remove(0))
    };
    let share = |reason: &Reason| match reason {
        Reason::Dirty { shares } => shares
            .iter()
            .map(|share| (share.slot, share.name.clone(), share.sectors))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let (_, (_, reason)) = named(sample.data(MIXED.start), sample.data(MIXED.start));
    assert_eq!(share(&reason), [(1, "data".to_owned(), 4)]);
    let (_, (_, reason)) = named(sample.data(DIRTY.start), sample.data(DIRTY.start));
    assert_eq!(share(&reason), [(0, "home".to_owned(), 4)]);
    let (_, (_, reason)) = named(sample.data(REPLAY_DIRTY.start), sample.data(REPLAY_DIRTY.start));
    assert_eq!(share(&reason), [(0, "home".to_owned(), 4)]);
    let metadata = |role| Reason::Metadata { role };
    let node = sample.built.root.1.ptrs()[0].bucket(&sample.built.geometry);
    for (bucket, reason) in [
        (first.0, metadata(MetadataRole::Journal)),
        (sample.built.uuid_bucket.0, metadata(MetadataRole::Uuids)),
        (sample.built.prio_buckets[2].0, metadata(MetadataRole::Prios)),
        (node.0, metadata(MetadataRole::Btree)),
        (sample.data(AT_LIMIT), Reason::GenLimit { span: 96 }),
        (0, Reason::BeforeFirst { first_bucket: first }),
        (nbuckets, Reason::OutOfRange { first: nbuckets, last: nbuckets, nbuckets }),
    ] {
        assert_eq!(named(bucket, bucket), (1, (BucketIndex(bucket), reason)));
    }
    let past = Reason::OutOfRange { first: nbuckets, last: u64::MAX, nbuckets };
    assert_eq!(named(nbuckets, u64::MAX), (1, (BucketIndex(nbuckets), past)));

    // One that may go and one that may not: none goes, unless the refused one is to be skipped.
    let mut wanted = options(sample.buckets([CLEAN.start, DIRTY.start, BELOW_LIMIT]));
    let plan = plan_on(&sample.device, &wanted).unwrap();
    assert_eq!((plan.stopped(), plan.target_count(), plan.refused_count()), (true, 2, 1));
    let hash = sample.device.content_hash();
    run(&plan, &read_options(), || Ok(&sample.device), &mut |_| {}).unwrap();
    assert_eq!(sample.device.content_hash(), hash);
    wanted.skip_refused = true;
    let gone = invalidate(&sample.device, &wanted).unwrap();
    assert_eq!(gone, [sample.data(CLEAN.start), sample.data(BELOW_LIMIT)]);
    assert_clean(&sample.device);
    // That was the last time for one of them.
    let again = plan_on(&sample.device, &options(sample.buckets([BELOW_LIMIT]))).unwrap();
    let reasons: Vec<_> = again.refused().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, [Reason::GenLimit { span: 96 }]);
}

#[test]
fn selections_name_what_they_say() {
    let sample = Sample::new();
    let select = |selection: Selection| {
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        assert!(!plan.stopped());
        targets(&plan)
    };
    // Sectors 1 before the end of one bucket to 1 after the start of the third.
    let start = Sectors(sample.data(10) * BUCKET + BUCKET - 1);
    let covered = select(Selection::Sectors { start, len: Sectors(BUCKET + 2) });
    assert_eq!(covered, [sample.data(10), sample.data(11), sample.data(12)]);
    let one = select(Selection::Sectors { start, len: Sectors(1) });
    assert_eq!(one, [sample.data(10)]);

    // Volume 1 has the odd buckets; its label came with a newline from sysfs.
    let odd: Vec<u64> = CLEAN.filter(|it| it % 2 == 1).map(|it| sample.data(it)).collect();
    let uuid = backing_volume(2).uuid.to_string();
    for name in ["data", "1", &uuid] {
        let volume = Selection::Volume { volume: name.to_owned(), range: None };
        assert_eq!(select(volume), odd, "{name}");
    }
    let range = |start, len| Selection::Volume {
        volume: "home".to_owned(),
        range: Some((Sectors(start), Sectors(len))),
    };
    // The key of bucket 20 ends at sector 300.
    assert_eq!(select(range(299, 1)), [sample.data(20)]);
    assert!(select(range(300, 5)).is_empty());
    // What only the journal has yet, and what it hides.
    let replayed = REPLAY_CLEAN.start;
    let place = 1_000_000 + replayed * 100;
    assert_eq!(select(range(place - 4, 1)), [sample.data(replayed)]);
    let plan = plan_on(&sample.device, &options(range(0, 1 << 20))).unwrap();
    let dirty = (DIRTY.end - DIRTY.start) / 2 + REPLAY_DIRTY.end - REPLAY_DIRTY.start;
    assert_eq!(plan.dirty_kept, Sectors(dirty * 4));
    assert_eq!(plan.refused_count(), MIXED.end - MIXED.start);
    for name in ["nobody", "7", ""] {
        let volume = Selection::Volume { volume: name.to_owned(), range: None };
        let error = plan_on(&sample.device, &options(volume)).unwrap_err();
        assert!(
            matches!(error, InvalidateError::Volume(FindVolumeError::None { .. })),
            "{name}: {error:?}"
        );
    }

    let prio = |bucket: u64| (builder().bucket_disk)(bucket).prio;
    let mut by_age: Vec<u64> = CLEAN.chain(REPLAY_CLEAN).map(|it| sample.data(it)).collect();
    by_age.sort_by_key(|&bucket| (prio(bucket), bucket));
    let coldest = |count: usize| {
        let mut buckets = by_age[..count].to_vec();
        buckets.sort_unstable();
        buckets
    };
    assert_eq!(select(Selection::Coldest(Amount::Count(17))), coldest(17));
    assert_eq!(select(Selection::Coldest(Amount::Percent(10))), coldest(31));
    assert_eq!(select(Selection::Coldest(Amount::Percent(100))), coldest(by_age.len()));
    assert_eq!(select(Selection::Coldest(Amount::Count(1 << 40))), coldest(by_age.len()));
    assert!(select(Selection::Coldest(Amount::Count(0))).is_empty());
}

#[test]
fn policies_take_what_the_allocator_would() {
    let sample = Sample::new();
    let cache = CacheDevice::open(&sample.device).unwrap();
    let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
    let choose = |policy, count, seed| {
        let selection = Selection::Policy { policy, count, seed };
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        let chain = plan.writes.as_ref().unwrap().chain.clone();
        (targets(&plan), chain)
    };
    // So many that LRU has to go on from the unused buckets to those with data.
    let count = NBUCKETS - 600;
    let (lru, chain) = choose(Policy::Lru, count, 0);
    let rank = |number: &u64| {
        let bucket = set.table.get(BucketIndex(*number)).unwrap();
        bucket_prio(bucket.prio(), bucket.sectors_used(), 0)
    };
    let legal: Vec<u64> = (set.geometry().first_bucket().0..NBUCKETS)
        .filter(|&number| {
            let bucket = set.table.get(BucketIndex(number)).unwrap();
            matches!(bucket.mark(), GcMark::Unused | GcMark::Reclaimable)
                && bucket.gen_span() < 96
                && !chain.contains(&BucketIndex(number))
        })
        .collect();
    let mut best: Vec<u64> = legal.iter().map(rank).collect();
    best.sort_unstable();
    let mut chosen: Vec<u64> = lru.iter().map(rank).collect();
    chosen.sort_unstable();
    let take = lru.len().min(best.len());
    assert!(take > 0 && lru.iter().all(|bucket| legal.contains(bucket)));
    assert_eq!(chosen, best[..take]);

    let (fifo, chain) = choose(Policy::Fifo, 50, 0);
    let expected: Vec<u64> =
        legal.iter().copied().filter(|&it| !chain.contains(&BucketIndex(it))).take(50).collect();
    assert_eq!(fifo, expected);
    let (random, _) = choose(Policy::Random, 50, 1);
    assert_eq!(random.len(), 50);
    assert_eq!(choose(Policy::Random, 50, 1).0, random);
    assert_ne!(choose(Policy::Random, 50, 2).0, random);
}

#[test]
fn the_plan_is_what_is_written() {
    for selection in [Selection::AllClean, Selection::Coldest(Amount::Count(3))] {
        let sample = Sample::new();
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        let device = TraceDevice::new(&sample.device);
        run(&plan, &read_options(), || Ok(&device), &mut |_| {}).unwrap();
        let writes = plan.writes.as_ref().unwrap();
        let whole = Plan { steps: writes.steps().cloned().collect() };
        whole.compare_with_trace(&device.events()).unwrap();
        assert_eq!(device.changes().len(), 3 + 1 + 1 + 1, "sets, flush, entry, flush");
    }
}

/// Power cut at every write and flush, with every subset of what was not flushed: the old state or
/// the new one, sound, and the same command completes it.
#[test]
fn a_power_cut_leaves_the_old_state_or_the_new() {
    for (block_size, sets_per_node) in [(1, 2), (4, 1)] {
        let sample = Sample::with(SetBuilder {
            block_size,
            sets_per_node,
            entries_per_bucket: 1,
            ..builder()
        });
        let wanted = options(sample.buckets((CLEAN.start..CLEAN.start + 40).chain(REPLAY_CLEAN)));
        let old = state_of(&sample.device);
        let done = SimDevice::new(&sample.device);
        let plan = plan_on(&sample.device, &wanted).unwrap();
        run(&plan, &read_options(), || Ok(&done), &mut |_| {}).unwrap();
        let new = state_of(&done.durable());
        assert_ne!(old, new);
        let changes = done.changes();
        assert_eq!(changes, 6);
        let (mut found_old, mut found_new, mut images) = (0, 0, 0u32);
        for cut in 0..=changes {
            let device = SimDevice::new(&sample.device).with_power_cut_at(cut);
            let result = run(&plan, &read_options(), || Ok(&device), &mut |_| {});
            assert_eq!(result.is_err(), cut < changes, "cut {cut}: {result:?}");
            let mut outcomes: Vec<MemoryDevice> =
                device.crash_images(CrashUnit::Write, 20).unwrap().collect();
            // The entry alone in the cache: also torn at every block, in every way.
            if let Some(torn) = device.crash_images(CrashUnit::Block, 8) {
                outcomes.extend(torn);
            }
            outcomes.extend((0..30).map(|seed| device.crash(seed)));
            for outcome in outcomes {
                images += 1;
                let state = state_of(&outcome);
                assert!(state == old || state == new, "cut {cut}: neither state");
                if cut < 4 {
                    assert!(state == old, "cut {cut}: new before the sets were flushed");
                }
                if result.is_ok() {
                    assert!(state == new, "cut {cut}: old after success");
                }
                found_old += u32::from(state == old);
                found_new += u32::from(state == new);
                assert_clean(&outcome);
                invalidate(&outcome, &wanted).unwrap();
                let again = state_of(&outcome);
                assert_eq!(again.volumes, new.volumes);
                assert_eq!(again.seq, state.seq + 1);
                assert_clean(&outcome);
            }
        }
        assert!(found_old > 0 && found_new > 1, "{found_old} {found_new}");
        assert!(images > 200, "{images}");
    }
}

/// A fault at every read, write and flush, once or for good, a write torn or not at all: what the
/// error says of the device is true.
#[test]
fn an_error_says_what_the_device_holds() {
    let sample = Sample::new();
    let wanted = options(sample.buckets(CLEAN.start..CLEAN.start + 9));
    let old = state_of(&sample.device);
    let count = |device: &FaultDevice<MemoryDevice>| {
        let plan = plan_on(device, &wanted)?;
        Ok::<_, InvalidateError>(run(&plan, &read_options(), || Ok(device), &mut |_| {}))
    };
    let whole = FaultDevice::new(sample.device.snapshot());
    count(&whole).unwrap().unwrap();
    let new = state_of(whole.inner());
    let ops = whole.ops();
    assert!(ops > 60, "{ops}");
    let mut seen = BTreeSet::new();
    for op in 0..ops {
        for (lasting, torn) in [(Lasting::Once, 0), (Lasting::Once, 512), (Lasting::DeviceGone, 0)]
        {
            let fault = Fault::new(Trigger::NthOp(op)).lasting(lasting).torn_after(torn);
            let device = FaultDevice::new(sample.device.snapshot()).with(fault);
            let result = count(&device);
            assert_eq!(device.struck(), [1], "the fault at operation {op} never struck");
            let memory = device.inner();
            let state = state_of(memory);
            let unchanged = memory.first_difference(&sample.device).is_none();
            match result {
                Err(error) => {
                    assert!(unchanged, "operation {op}: {error} and the device changed");
                    assert!(!error.to_string().is_empty());
                    seen.insert("refused");
                }
                Ok(Ok(())) => assert_eq!(state, new, "operation {op}"),
                Ok(Err(error)) => {
                    let claimed = error.state();
                    seen.insert(match claimed {
                        DeviceState::Unchanged => "unchanged",
                        DeviceState::Old => "old",
                        DeviceState::OldOrNew => "old or new",
                        DeviceState::New => "new",
                        DeviceState::Undefined => "undefined",
                    });
                    let is_so = match claimed {
                        DeviceState::Unchanged => unchanged,
                        DeviceState::Old => state == old,
                        DeviceState::OldOrNew => state == old || state == new,
                        DeviceState::New => state == new,
                        DeviceState::Undefined => false,
                    };
                    assert!(is_so, "operation {op}: {error:?} claims {claimed:?}");
                    assert_clean(memory);
                    invalidate(memory, &wanted).unwrap();
                    assert_eq!(state_of(memory).volumes, new.volumes);
                }
            }
        }
    }
    assert_eq!(seen, BTreeSet::from(["refused", "unchanged", "old", "old or new", "new"]));
}

/// A device that says it has written, and has not.
struct ForgetfulDevice<'d> {
    inner: &'d MemoryDevice,
    forgets: u64,
    writes: AtomicU64,
}

impl ReadDevice for ForgetfulDevice<'_> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read_at(offset, buf)
    }
}

impl BlockDevice for ForgetfulDevice<'_> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        if self.writes.fetch_add(1, Ordering::SeqCst) == self.forgets {
            return Ok(());
        }
        self.inner.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.discard(offset, len)
    }
}

#[test]
fn a_device_that_forgets_writes_is_found_out() {
    for forgets in 0..4 {
        let sample = Sample::new();
        let old = state_of(&sample.device);
        let plan = plan_on(&sample.device, &options(Selection::AllClean)).unwrap();
        let device = ForgetfulDevice { inner: &sample.device, forgets, writes: AtomicU64::new(0) };
        let error = run(&plan, &read_options(), || Ok(&device), &mut |_| {}).unwrap_err();
        if forgets < 3 {
            assert!(matches!(error, RunError::VerifySets(_)), "{error:?}");
            assert_eq!(error.state(), DeviceState::Old);
            assert_eq!(device.writes.load(Ordering::SeqCst), 3, "the entry was written");
        } else {
            assert!(matches!(error, RunError::VerifyCommit(_)), "{error:?}");
            assert_eq!(error.state(), DeviceState::Undefined);
        }
        assert_eq!(state_of(&sample.device), old);
    }
}

/// The proof does not believe the plan: a plan with a wrong gen, prio set or entry does not pass.
#[test]
fn a_wrong_plan_is_not_proven() {
    use bcache_core::layout::prio_set::{PrioSet, encode_into};
    use bcache_core::ops::plan::Step;
    let expected_errors = |change: &dyn Fn(u64, &mut bcache_core::layout::prio_set::BucketDisk)| {
        let sample = Sample::new();
        let mut plan = plan_on(&sample.device, &options(Selection::AllClean)).unwrap();
        let per_set = sample.built.geometry.prios_per_bucket();
        let magic = sample.built.magic;
        for step in &mut plan.writes.as_mut().unwrap().sets.steps {
            let Step::Write { kind, data, .. } = step else { continue };
            let bcache_core::ops::plan::WriteKind::PrioSet { index, .. } = *kind else { panic!() };
            let image = AlignedBuf::copy_of(data);
            let set = PrioSet::parse(&image, magic).unwrap();
            let entries = (index * per_set..).zip(set.entries()).map(|(number, mut entry)| {
                change(number, &mut entry);
                entry
            });
            encode_into(data, magic, set.seq(), set.next_bucket(), entries);
        }
        let error = run(&plan, &read_options(), || Ok(&sample.device), &mut |_| {}).unwrap_err();
        assert_eq!(error.state(), DeviceState::Undefined, "{error:?}");
        error
    };
    let first_data = Sample::new().first_data;
    let clean = first_data + CLEAN.start;
    let error = expected_errors(&|number, entry| {
        if number == clean {
            entry.bucket_gen = Gen(entry.bucket_gen.0.wrapping_sub(1));
        }
    });
    assert!(
        matches!(&error, RunError::Proof(ProofError::BucketGen { bucket, .. }) if bucket.0 == clean),
        "{error:?}"
    );
    // A dirty bucket's gen raised: its data would be gone.
    let error = expected_errors(&|number, entry| {
        if number == first_data + DIRTY.start {
            entry.bucket_gen = entry.bucket_gen.next();
        }
    });
    assert!(matches!(&error, RunError::Proof(ProofError::BucketGen { .. })), "{error:?}");
}

#[test]
fn a_device_that_changed_since_is_not_written() {
    let sample = Sample::new();
    let plan = plan_on(&sample.device, &options(Selection::AllClean)).unwrap();
    let other = sample.device.snapshot();
    invalidate(&other, &options(Selection::Coldest(Amount::Count(1)))).unwrap();
    let hash = other.content_hash();
    let error = run(&plan, &read_options(), || Ok(&other), &mut |_| {}).unwrap_err();
    assert!(matches!(error, RunError::Changed { .. }), "{error:?}");
    assert_eq!((error.state(), other.content_hash()), (DeviceState::Unchanged, hash));
}

/// Each run takes a block of the journal; when there is room no more, it says so, and until then
/// replay keeps what it needs.
#[test]
fn the_journal_is_never_overrun() {
    let sample = Sample::with(SetBuilder { njournal: 6, entries_per_bucket: 100, ..builder() });
    let mut runs = 0u32;
    let error = loop {
        let before = state_of(&sample.device);
        let wanted = options(sample.buckets([CLEAN.start + u64::from(runs) % 90]));
        match plan_on(&sample.device, &wanted) {
            Ok(plan) => run(&plan, &read_options(), || Ok(&sample.device), &mut |_| {}).unwrap(),
            Err(error) => break error,
        }
        runs += 1;
        let after = state_of(&sample.device);
        assert_eq!((after.seq, after.last_seq), (before.seq + 1, before.last_seq));
        assert!(runs < 100);
    };
    assert!(matches!(error, InvalidateError::JournalFull { .. }), "{error:?}");
    // Buckets of eight blocks, of which two stay free for the kernel.
    assert!(runs > 8, "{runs}");
    assert_clean(&sample.device);
}

#[test]
fn a_full_cache_has_no_room_for_a_chain() {
    let sample = Sample::new();
    let cache = CacheDevice::open(&sample.device).unwrap();
    let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
    let unused: Vec<u64> = (sample.first_data..NBUCKETS)
        .filter(|&number| {
            let bucket = set.table.get(BucketIndex(number)).unwrap();
            bucket.mark() == GcMark::Unused && bucket.gen_span() < 96
        })
        .collect();
    let all_but = |count: usize| {
        let named = unused[..unused.len() - count].iter().map(|&it| it..=it).collect();
        plan_on(&sample.device, &options(Selection::Buckets(named)))
    };
    // The bucket at the limit is unused too, and may serve.
    let error = all_but(1).unwrap_err();
    assert!(matches!(error, InvalidateError::TooFewUnused { needed: 3, found: 2 }), "{error:?}");
    assert!(all_but(2).unwrap().writes.is_some());
}

#[test]
fn damaged_and_foreign_devices_are_refused() {
    let sample = Sample::new();
    let refused = |change: &dyn Fn(&MemoryDevice)| {
        let device = sample.device.snapshot();
        change(&device);
        let hash = device.content_hash();
        let error = plan_on(&device, &options(Selection::AllClean)).unwrap_err();
        assert_eq!(device.content_hash(), hash);
        error
    };
    let byte = |bucket: BucketIndex| sample.built.geometry.bucket_to_sector(bucket).bytes();
    let node = sample.built.root.1.ptrs()[0].offset().bytes();
    for place in [node, byte(sample.built.prio_buckets[1])] {
        let error = refused(&|device| device.write_at(place, &[0x55; 512]).unwrap());
        assert!(matches!(error, InvalidateError::Damaged { .. }), "{error:?}");
    }
    let error = refused(&|device| device.write_at(4096, &[0; 4096]).unwrap());
    assert!(matches!(error, InvalidateError::NoCache { .. }), "{error:?}");
    let unsynced = |device: &MemoryDevice| {
        let mut sb = sample.built.superblock.clone();
        sb.edit(|sb| {
            sb.sync(false);
        });
        device.write_at(4096, sb.as_bytes()).unwrap();
    };
    let error = refused(&unsynced);
    assert!(matches!(error, InvalidateError::NoCache { .. }), "{error:?}");
    let bad_checksum = |device: &MemoryDevice| {
        let mut bytes = sample.built.superblock.as_bytes().to_vec();
        bytes[100] ^= 1;
        device.write_at(4096, &bytes).unwrap();
    };
    let error = refused(&bad_checksum);
    assert!(matches!(error, InvalidateError::KernelRefuses { .. }), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is named, over several runs: what may go goes, by exactly one gen each time, and
    /// nothing else changes. (The run itself proves marks and volumes.)
    #[test]
    fn any_list_of_buckets(
        runs in prop::collection::vec(prop::collection::vec(0u64..NBUCKETS + 50, 1..60), 1..4)
    ) {
        let sample = Sample::new();
        for buckets in runs {
            let before = state_of(&sample.device);
            let mut wanted = options(Selection::Buckets(buckets.iter().map(|&it| it..=it).collect()));
            wanted.skip_refused = true;
            let gone = invalidate(&sample.device, &wanted).unwrap();
            let after = state_of(&sample.device);
            for (number, (old, new)) in (0u64..).zip(before.buckets.iter().zip(&after.buckets)) {
                let raised = new.0.wrapping_sub(old.0);
                prop_assert_eq!(raised, u8::from(gone.contains(&number)));
                let named = buckets.contains(&number);
                prop_assert!(!gone.contains(&number) || named);
            }
            assert_clean(&sample.device);
        }
    }
}

#[test]
fn prios_of_all_others_stay() {
    let sample = Sample::new();
    let gone = invalidate(&sample.device, &options(Selection::AllClean)).unwrap();
    let cache = CacheDevice::open(&sample.device).unwrap();
    let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
    for (number, bucket) in (0u64..).zip(set.table.as_slice()) {
        let disk = (builder().bucket_disk)(number).prio;
        let role = set.metadata_role(BucketIndex(number));
        let expected = match role {
            _ if gone.contains(&number) => Prio::INITIAL,
            Some(MetadataRole::Prios | MetadataRole::Btree) => Prio::BTREE,
            _ => disk,
        };
        assert_eq!(bucket.prio(), expected, "bucket {number}, {role:?}");
    }
}

/// The walk of a journal bucket ends at a damaged entry. A new one in its place would let it go on to
/// the sound ones behind, whose prio chains and nodes may lie in buckets that were reused since.
#[test]
fn entries_behind_a_damaged_one_stay_out_of_reach() {
    for next_bucket in [false, true] {
        let sample = Sample::with(SetBuilder { entries_per_bucket: 1, ..builder() });
        let mut places = Vec::new();
        for bucket in CLEAN {
            let wanted = options(sample.buckets([bucket]));
            let plan = plan_on(&sample.device, &wanted).unwrap();
            run(&plan, &read_options(), || Ok(&sample.device), &mut |_| {}).unwrap();
            places.push(plan.writes.as_ref().unwrap().place);
            let in_last =
                places.iter().rev().take_while(|it| it.bucket == places[places.len() - 1].bucket);
            let (count, first) = (in_last.clone().count(), in_last.last().unwrap());
            if count == 3 && (first.offset == 0) == next_bucket {
                break;
            }
        }
        let damaged = places[places.len() - 3];
        assert_eq!(damaged.offset == 0, next_bucket);
        let at = sample.built.geometry.bucket_to_sector(damaged.bucket).bytes() + damaged.offset;
        let mut block = [0; 512];
        sample.device.read_at(at, &mut block).unwrap();
        block[200] ^= 1;
        block[201] ^= 1;
        sample.device.write_at(at, &block).unwrap();
        let (before, hash) = (state_of(&sample.device), sample.device.content_hash());
        let wanted = options(sample.buckets([CLEAN.end - 1]));
        let error = plan_on(&sample.device, &wanted)
            .map(|plan| run(&plan, &read_options(), || Ok(&sample.device), &mut |_| {}))
            .unwrap_err();
        // The reader may find the entries first.
        assert!(
            matches!(
                error,
                InvalidateError::JournalHidesEntries { .. } | InvalidateError::Damaged { .. }
            ),
            "{error:?}"
        );
        assert_eq!(sample.device.content_hash(), hash, "a refused run wrote");
        assert_eq!(state_of(&sample.device), before);
    }
}

/// Keys of the btree are counted before a key of the journal raises the bucket's gen. Once that gen
/// is in the prio set, they are stale from the start.
#[test]
fn a_gen_that_the_journal_raises_is_proven() {
    for raised in [CLEAN.start, MIXED.start, DIRTY.start] {
        let sample = Sample::new();
        let key = Bkey::new(0, 2_000_000, 4).with_ptrs(&[sample.ptr(raised, 1)]);
        sample.append_entry(&[key]);
        let before = state_of(&sample.device);
        let gone = invalidate(&sample.device, &options(sample.buckets([CLEAN.end - 1]))).unwrap();
        assert_eq!(gone, [sample.data(CLEAN.end - 1)]);
        let after = state_of(&sample.device);
        let index = usize::try_from(sample.data(raised)).unwrap();
        assert_eq!(after.buckets[index].0, before.buckets[index].0);
        assert_eq!((after.buckets[index].1, after.buckets[index].2), (GcMark::Reclaimable, 4));
        // And that one goes, too.
        invalidate(&sample.device, &options(sample.buckets([raised]))).unwrap();
    }
}

/// A marker of a freed node carries a gen, and one that the bucket is 129 gens past would set it back.
/// The kernel does not count it in the span.
#[test]
fn markers_of_freed_nodes_are_not_overrun() {
    let sample = Sample::with(SetBuilder { njournal: 64, ..builder() });
    let marked = 1000;
    let size = u16::try_from(sample.built.geometry.btree_node_size().0).unwrap();
    sample.add_to_root(Bkey::new(0, 0, size).with_ptrs(&[sample.ptr(marked, 0)]));
    assert_clean(&sample.device);
    let wanted = options(sample.buckets([marked]));
    let mut runs = 0;
    let reason = loop {
        let plan = plan_on(&sample.device, &wanted).unwrap();
        if let Some((_, reason)) = plan.refused().next() {
            break reason;
        }
        run(&plan, &read_options(), || Ok(&sample.device), &mut |_| {}).unwrap();
        runs += 1;
        assert!(runs < 200);
    };
    assert_eq!((runs, reason), (96, Reason::FreedNodeLimit { span: 96 }));
    assert_clean(&sample.device);
}

/// Where the set discards, kernels before 6.19 leave a gap at the start of the replay range and pass
/// over it, and later ones do not: no invalidation either way.
#[test]
fn a_gap_in_the_replay_range_is_refused_where_the_set_discards_too() {
    for discard in [false, true] {
        let sample = Sample::new();
        let mut sb = sample.built.superblock.clone();
        let sb_flags = sb.flags();
        sb.edit(|sb| {
            sb.flags(sb_flags | u64::from(discard) << 1);
        });
        sample.device.write_at(4096, sb.as_bytes()).unwrap();
        assert!(plan_on(&sample.device, &options(Selection::AllClean)).is_ok());
        // The second journal bucket has entries 40 and 41; replay needs the latter.
        let second = sample
            .built
            .geometry
            .bucket_to_sector(BucketIndex(sample.built.geometry.first_bucket().0 + 1));
        sample.device.write_at(second.bytes(), &[0; 4096]).unwrap();
        let error = plan_on(&sample.device, &options(Selection::AllClean)).unwrap_err();
        match error {
            InvalidateError::JournalGap { gap, .. } if discard => {
                assert_eq!((gap.first, gap.last), (41, 41));
            }
            InvalidateError::Damaged { .. } if !discard => {}
            error => panic!("{discard}: {error:?}"),
        }
    }
}

#[test]
fn advice_is_given_for_each_kind_of_refusal() {
    let sample = Sample::new();
    let named = [MIXED.start, DIRTY.start, DIRTY.start + 1, AT_LIMIT].map(|it| sample.data(it));
    let mut ranges: Vec<_> = named.iter().map(|&it| it..=it).collect();
    ranges.extend([0..=0, NBUCKETS + 5..=NBUCKETS + 5, NBUCKETS + 5..=NBUCKETS + 9]);
    let plan = plan_on(&sample.device, &options(Selection::Buckets(ranges))).unwrap();
    let advice = plan.advice();
    let kinds: Vec<_> =
        advice.iter().map(|Advice { kind, buckets, .. }| (*kind, *buckets)).collect();
    assert_eq!(
        kinds,
        [("before the first bucket", 1), ("dirty", 3), ("gen limit", 1), ("out of range", 1)]
    );
    assert!(advice.iter().all(|it| !it.instead.is_empty()));
    let past = Reason::OutOfRange { first: NBUCKETS + 5, last: NBUCKETS + 9, nbuckets: NBUCKETS };
    assert_eq!(plan.refused().last(), Some((BucketIndex(NBUCKETS + 5), past)));
}

#[test]
fn a_policy_says_when_it_gives_up() {
    let sample = Sample::new();
    for (policy, count) in [(Policy::Random, 1500), (Policy::Fifo, 1 << 40), (Policy::Lru, 1 << 40)]
    {
        let selection = Selection::Policy { policy, count, seed: 3 };
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        let found = plan.target_count();
        assert!(found < 3000);
        assert_eq!(plan.gave_up, Some(GaveUp { found, wanted: count }), "{policy:?}");
    }
    let selection = Selection::Policy { policy: Policy::Random, count: 50, seed: 3 };
    let plan = plan_on(&sample.device, &options(selection)).unwrap();
    assert_eq!((plan.target_count(), plan.gave_up), (50, None));
}

#[test]
fn a_label_that_is_a_slot_calls_for_the_uuid() {
    let volumes = vec![volume(1, "home"), volume(2, "0")];
    let sample = Sample::with(SetBuilder { volumes, ..builder() });
    let select = |name: &str| {
        let volume = Selection::Volume { volume: name.to_owned(), range: None };
        plan_on(&sample.device, &options(volume))
    };
    let error = select("0").unwrap_err();
    let uuid = |number| backing_volume(number).uuid;
    let message = error.to_string();
    assert!(message.contains("several volumes"), "{message}");
    for number in [1, 2] {
        assert!(message.contains(&uuid(number).to_string()), "{message}");
        assert!(select(&uuid(number).to_string()).is_ok());
    }
}
