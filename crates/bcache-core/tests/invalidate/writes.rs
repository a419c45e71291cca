//! What is written, whatever the device does; and that it is proven.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bcache_core::cache_set::testkit::SetBuilder;
use bcache_core::cache_set::{CacheDevice, CacheSet, GcMark, MetadataRole, NoVisitor};
use bcache_core::device::testkit::{
    CrashUnit, Fault, FaultDevice, Lasting, MemoryDevice, SimDevice, TraceDevice, Trigger,
};
use bcache_core::device::{AlignedBuf, BlockDevice, DeviceError, DeviceInfo, ReadDevice};
use bcache_core::layout::SetMagic;
use bcache_core::layout::bkey::Bkey;
use bcache_core::layout::prio_set::{BucketDisk, PrioSet, encode_into};
use bcache_core::ops::invalidate::{
    Amount, DeviceState, InvalidateError, ProofError, RunError, Selection, run,
};
use bcache_core::ops::plan::Plan;
use bcache_core::units::{BucketIndex, Gen, Geometry, Prio};

use crate::sample::{
    CLEAN, DIRTY, MIXED, REPLAY_CLEAN, Sample, assert_clean, builder, invalidate, options, plan_on,
    read_options, state_of,
};

#[test]
fn the_plan_is_what_is_written() {
    for selection in [Selection::AllClean, Selection::Coldest(Amount::Count(3))] {
        let sample = Sample::new();
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        let device = TraceDevice::new(&sample.device);
        let whole = Plan { steps: plan.steps().collect() };
        run(plan, &read_options(), || Ok(&device), &mut |_| {}).result.unwrap();
        whole.compare_with_trace(&device.events()).unwrap();
        assert_eq!(device.changes().len(), 3 + 1 + 1 + 1, "sets, flush, entry, flush");
    }
}

/// Power cut at every write and flush, with every subset of what was not flushed. What is left is the
/// old state or the new one, sound, and the same command completes it.
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
        run(plan, &read_options(), || Ok(&done), &mut |_| {}).result.unwrap();
        let new = state_of(&done.durable());
        assert_ne!(old, new);
        let changes = done.changes();
        assert_eq!(changes, 6);
        let (mut found_old, mut found_new, mut images) = (0, 0, 0u32);
        for cut in 0..=changes {
            let device = SimDevice::new(&sample.device).with_power_cut_at(cut);
            let plan = plan_on(&sample.device, &wanted).unwrap();
            let result = run(plan, &read_options(), || Ok(&device), &mut |_| {}).result;
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
        Ok::<_, InvalidateError>(run(plan, &read_options(), || Ok(device), &mut |_| {}).result)
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
        let error = run(plan, &read_options(), || Ok(&device), &mut |_| {}).result.unwrap_err();
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

/// A device that changes the entries of prio sets, and gives back what was to be written when it is asked
/// for the first time.
struct LyingDevice<'d> {
    inner: &'d MemoryDevice,
    geometry: Geometry,
    magic: SetMagic,
    change: &'d (dyn Fn(u64, &mut BucketDisk) + Sync),
    written: Mutex<BTreeMap<u64, AlignedBuf>>,
}

impl ReadDevice for LyingDevice<'_> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        match self.written.lock().unwrap().remove(&offset) {
            Some(data) => buf.copy_from_slice(&data),
            None => self.inner.read_at(offset, buf)?,
        }
        Ok(())
    }
}

impl BlockDevice for LyingDevice<'_> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut image = AlignedBuf::copy_of(data);
        if let Ok(set) = PrioSet::parse(&image, self.magic) {
            let per_set = self.geometry.prios_per_bucket();
            // The last set is written first.
            let written = self.written.lock().unwrap().len() as u64;
            let index = self.geometry.prio_buckets() - 1 - written;
            let entries = (index * per_set..).zip(set.entries()).map(|(number, mut entry)| {
                (self.change)(number, &mut entry);
                entry
            });
            let (seq, next) = (set.seq(), set.next_bucket());
            let entries: Vec<BucketDisk> = entries.collect();
            encode_into(&mut image, self.magic, seq, next, entries.into_iter());
            self.written.lock().unwrap().insert(offset, AlignedBuf::copy_of(data));
        }
        self.inner.write_at(offset, &image)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.discard(offset, len)
    }
}

/// What is proven is what can be read: a wrong gen is found, whatever was read back before.
#[test]
fn a_wrong_gen_is_not_proven() {
    let expected_errors = |change: &(dyn Fn(u64, &mut BucketDisk) + Sync)| {
        let sample = Sample::new();
        let plan = plan_on(&sample.device, &options(Selection::AllClean)).unwrap();
        let device = LyingDevice {
            inner: &sample.device,
            geometry: sample.built.geometry,
            magic: sample.built.magic,
            change,
            written: Mutex::default(),
        };
        let error = run(plan, &read_options(), || Ok(&device), &mut |_| {}).result.unwrap_err();
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
    let error = run(plan, &read_options(), || Ok(&other), &mut |_| {}).result.unwrap_err();
    assert!(matches!(error, RunError::Changed { .. }), "{error:?}");
    assert_eq!((error.state(), other.content_hash()), (DeviceState::Unchanged, hash));
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
