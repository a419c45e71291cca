//! Formatting when the power goes or a device fails, at every operation.
//!
//! Whatever a crash leaves, the kernel must not take the device for something that it is not: it
//! is what it was, it is refused, or it is all that it was to become.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use bcache_core::device::testkit::{
    CrashUnit, DiscardReads, Fault, FaultDevice, Lasting, MemoryDevice, SimDevice, TraceDevice,
    Trigger, partition_table,
};
use bcache_core::device::{BlockDevice, DeviceInfo, Operation, ReadDevice};
use bcache_core::device::{Signature, SignatureKind};
use bcache_core::layout::superblock::{
    CacheMode, CacheParams, Kind, Label, Replacement, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::layout::verdict::{Target, Warning, kernel_verdict};
use bcache_core::ops::make::{
    AtStake, DeviceFacts, DevicePlan, MakeError, Note, Options, Outcome, RunError, Setting,
    facts_of, facts_of_new_image, open_for_real, plan, read_superblock, run, try_claims,
};
use bcache_core::units::Sectors;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// Small buckets that blocks of any size make: two of the largest.
const BUCKET_BYTES: u64 = 8192;

/// Of a device with room for enough of them.
const DEVICE_BYTES: u64 = 5 * MIB;

/// What is on a device before it is formatted.
#[derive(Clone, Copy, Debug)]
enum Before {
    Zeroes,
    Garbage,
    /// A cache device that is in use: its data must be there as long as its superblock is.
    Cache,
    Backing,
    /// Signatures outside of the first 8 KiB.
    Signatures,
}

/// A case: what is there, what it is to become, and how.
#[derive(Clone, Debug)]
struct Case {
    before: Before,
    kind: Kind,
    options: Options,
    block: u32,
    discard_reads: DiscardReads,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let set_uuid = Some(Uuid::from_u128(7));
    for before in
        [Before::Zeroes, Before::Garbage, Before::Cache, Before::Backing, Before::Signatures]
    {
        for (kind, discard, set_uuid) in [
            (Kind::Cache, false, None),
            (Kind::Cache, true, None),
            (Kind::Cache, false, set_uuid),
            (Kind::Cache, true, set_uuid),
            (Kind::Backing, false, None),
        ] {
            for discard_reads in
                [DiscardReads::Zeroes, DiscardReads::OldData, DiscardReads::Garbage]
            {
                if !discard && discard_reads != DiscardReads::Zeroes {
                    continue;
                }
                let options = Options {
                    set_uuid,
                    discard,
                    bucket_bytes: Some(BUCKET_BYTES),
                    cache_mode: CacheMode::Writeback,
                    wipe_bcache: true,
                    force: true,
                    ..Options::default()
                };
                let block = if cases.len() % 2 == 0 { 512 } else { 4096 };
                cases.push(Case { before, kind, options, block, discard_reads });
            }
        }
    }
    cases
}

/// Uuids in a row from `first`.
fn uuids(first: u128) -> impl FnMut() -> Uuid {
    let mut next = first;
    move || {
        next += 1;
        Uuid::from_u128(next)
    }
}

impl Case {
    fn device(&self) -> MemoryDevice {
        let device = MemoryDevice::new(DEVICE_BYTES)
            .with_block(self.block)
            .with_discard_reads(self.discard_reads);
        match self.before {
            Before::Zeroes => {}
            Before::Garbage | Before::Signatures => fill(&device),
            Before::Cache | Before::Backing => {
                fill(&device);
                let kind = match self.before {
                    Before::Cache => Kind::Cache,
                    _ => Kind::Backing,
                };
                let options = Options { bucket_bytes: Some(BUCKET_BYTES), ..Options::default() };
                let facts = facts(kind, &device, Vec::new());
                let plans = plan(&options, vec![facts], &mut uuids(100)).unwrap();
                let mut sb = plans[0].superblock.clone();
                if kind == Kind::Cache {
                    sb.edit(|edit| {
                        edit.version(3).journal_buckets(5).sync(true).seq(9);
                    });
                }
                device.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
                assert!(verdict_accepts(&device));
            }
        }
        device
    }

    fn found(&self) -> Vec<Signature> {
        let at = |offset: u64| Signature {
            kind: SignatureKind::Raid,
            type_name: "linux_raid_member".to_owned(),
            label: None,
            uuid: None,
            magic_offset: Some(offset),
            copy_offsets: Vec::new(),
            bad_checksum: false,
            magic_wiped: false,
            partitions: Vec::new(),
        };
        match self.before {
            Before::Signatures => vec![at(1024), at(65536 + 8), at(DEVICE_BYTES - 65536)],
            _ => Vec::new(),
        }
    }

    fn plan(&self, device: &MemoryDevice) -> DevicePlan {
        let facts = facts(self.kind, device, self.found());
        plan(&self.options, vec![facts], &mut uuids(1000)).unwrap().remove(0)
    }
}

fn fill(device: &MemoryDevice) {
    let bytes: Vec<u8> = (0..device.info().size_bytes).map(|at| (at % 251) as u8 | 1).collect();
    device.write_at(0, &bytes).unwrap();
}

fn facts(kind: Kind, device: &dyn ReadDevice, found: Vec<Signature>) -> DeviceFacts {
    let mut facts = DeviceFacts::of_device(kind, device, found, None).unwrap();
    // What these devices are filled with may go.
    facts.unknown_at = None;
    facts.at_stake = AtStake::Nothing;
    facts
}

fn superblock(device: &dyn ReadDevice) -> Superblock {
    read_superblock(device).unwrap().unwrap()
}

fn verdict_accepts(device: &dyn ReadDevice) -> bool {
    let info = device.info();
    let target = Target {
        device_size: info.size(),
        disk_size: info.disk_size,
        logical_block_bytes: info.logical_block_bytes,
        is_bcache_volume: false,
    };
    kernel_verdict(&superblock(device), &target).accepts()
}

fn carry_out(plan: &DevicePlan, device: &(impl BlockDevice + Clone + 'static)) -> Outcome {
    run(std::slice::from_ref(plan), &mut |_| Ok(Box::new(device.clone())), &mut |_, _| {})
}

fn bytes(device: &dyn ReadDevice, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    device.read_at(offset, &mut bytes).unwrap();
    bytes
}

/// What is found after the power went at any operation, with any of the writes that
/// were not flushed: the old device, none, or the new one, and formatting it again succeeds.
#[test]
fn a_crash_leaves_the_old_none_or_the_new() {
    let mut images = 0;
    for case in cases() {
        let device = case.device();
        let plan = case.plan(&device);
        let old = superblock(&device);
        let old_was_accepted = verdict_accepts(&device);
        let undisturbed = SimDevice::new(&device);
        let outcome = carry_out(&plan, &undisturbed);
        assert!(outcome.failed.is_none(), "{case:?}: {:?}", outcome.failed);
        let (mut seen_new, mut seen_none) = (0, 0);
        for cut in 0..=undisturbed.changes() {
            let sim = SimDevice::new(&device).with_power_cut_at(cut);
            let outcome = carry_out(&plan, &sim);
            assert_eq!(outcome.failed.is_some(), cut < undisturbed.changes(), "{case:?} at {cut}");
            let found: Vec<MemoryDevice> = match sim.crash_images(CrashUnit::Block, 9) {
                Some(all) => all.collect(),
                None => (0..60).map(|seed| sim.crash(seed)).collect(),
            };
            for image in found {
                images += 1;
                let now = superblock(&image);
                if !verdict_accepts(&image) {
                    seen_none += 1;
                } else if now == plan.superblock {
                    seen_new += 1;
                    new_is_whole(&case, &plan, &image, cut);
                } else {
                    assert!(old_was_accepted && now == old, "{case:?} at {cut}: a third one");
                    old_is_whole(&device, &image, &format!("{case:?} at {cut}"));
                }
            }
            // Formatting it again, with what is known of it then.
            let image = sim.crash(cut);
            let again = case.plan(&image);
            let outcome = carry_out(&again, &image);
            assert!(outcome.failed.is_none(), "{case:?} at {cut}: {:?}", outcome.failed);
            assert!(superblock(&image) == again.superblock);
        }
        assert!(seen_new > 0 && seen_none > 0, "{case:?}");
    }
    assert!(images > 5000, "{images}");
}

/// The new superblock is there only with everything that it relies on.
fn new_is_whole(case: &Case, plan: &DevicePlan, image: &MemoryDevice, cut: u64) {
    let at = format!("{case:?} at {cut}");
    assert!(bytes(image, 0, SB_OFFSET_BYTES).iter().all(|byte| *byte == 0), "{at}");
    for found in case.found() {
        let offset = found.magic_offset.unwrap();
        if !(SB_OFFSET_BYTES..SB_OFFSET_BYTES + 4096).contains(&offset) {
            assert!(bytes(image, offset, 4).iter().all(|byte| *byte == 0), "{at}: a signature");
        }
    }
    if case.options.set_uuid.is_some() && case.kind == Kind::Cache {
        let geometry = plan.superblock.geometry().unwrap();
        let start = geometry.bucket_to_sector(geometry.first_bucket()).bytes();
        let len = u64::from(geometry.njournal_buckets_default()) * geometry.bucket_bytes();
        let journal = bytes(image, start, len);
        assert!(journal.iter().all(|byte| *byte == 0), "{at}: an old journal comes back");
    }
}

/// The old superblock is there only with the old data, but for the first 4 KiB, which bcache does
/// not use.
fn old_is_whole(before: &MemoryDevice, image: &MemoryDevice, at: &str) {
    let rest = before.info().size_bytes - SB_OFFSET_BYTES;
    let same = bytes(before, SB_OFFSET_BYTES, rest) == bytes(image, SB_OFFSET_BYTES, rest);
    assert!(same, "{at}: the old superblock without its data");
}

/// The writes of a run are those of its plan, in its order.
#[test]
fn a_run_does_what_its_plan_says() {
    for case in cases() {
        let device = case.device();
        let plan = case.plan(&device);
        let trace = TraceDevice::new(device);
        let traced = trace.clone();
        let outcome = carry_out(&plan, &traced);
        assert!(outcome.failed.is_none(), "{case:?}: {:?}", outcome.failed);
        plan.plan.compare_with_trace(&trace.events()).unwrap();
        assert!(superblock(&trace) == plan.superblock);
    }
}

/// Three devices of which the second fails at one of its operations: the first is formatted, the
/// second is named, the third is as it was.
#[test]
fn a_failing_device_stops_the_run() {
    let options = Options { force: true, wipe_bcache: true, ..Options::default() };
    let blank = || {
        let device = MemoryDevice::new(MIB);
        fill(&device);
        device
    };
    let names = ["first", "second", "third"].map(PathBuf::from);
    let facts = names.iter().map(|name| {
        let device = blank().with_info(|info| info.path.clone_from(name));
        facts(Kind::Backing, &device, Vec::new())
    });
    let plans = plan(&options, facts.collect(), &mut uuids(1)).unwrap();
    let run_with = |fault: Option<Fault>| {
        let devices = [blank(), blank(), blank()];
        let second = FaultDevice::new(devices[1].clone());
        if let Some(fault) = fault {
            second.add(fault);
        }
        let counter = second.clone();
        let outcome = run(
            &plans,
            &mut |plan| {
                let index = names.iter().position(|name| *name == plan.facts.info.path).unwrap();
                Ok(if index == 1 {
                    Box::new(second.clone())
                } else {
                    Box::new(devices[index].clone())
                })
            },
            &mut |_, _| {},
        );
        (devices, counter, outcome)
    };
    let (_, counter, outcome) = run_with(None);
    assert!(outcome.failed.is_none() && outcome.formatted == names, "{:?}", outcome.failed);
    let ops = counter.ops();
    let untouched = blank().content_hash();
    let (mut at_read_back, mut torn) = (0, 0);
    for op in 0..ops {
        for fault in [
            Fault::new(Trigger::NthOp(op)),
            Fault::new(Trigger::NthOp(op)).torn_after(512),
            Fault::new(Trigger::NthOp(op)).lasting(Lasting::DeviceGone),
        ] {
            let (devices, counter, outcome) = run_with(Some(fault));
            assert_eq!(counter.struck(), [1], "the fault at {op} did not strike");
            let (path, error) = outcome.failed.unwrap();
            assert_eq!(path, names[1], "at {op}");
            assert_eq!(devices[2].content_hash(), untouched, "at {op}: the third was written");
            let changed = devices[1].content_hash() != untouched;
            assert!(error.may_have_written() || !changed, "at {op}: {error} though it changed");
            torn += u32::from(changed);
            if matches!(error, RunError::Device(_)) {
                // It could not be claimed: nothing at all is written.
                assert!(outcome.formatted.is_empty() && outcome.untouched == names, "at {op}");
                assert_eq!(devices[0].content_hash(), untouched, "at {op}");
            } else {
                assert_eq!(outcome.formatted, names[..1], "at {op}");
                assert_eq!(outcome.untouched, names[2..], "at {op}");
                assert!(verdict_accepts(&devices[0]) && superblock(&devices[0]).csum_ok());
                at_read_back += u32::from(matches!(error, RunError::Verify { .. }));
                // What is named as failed may be whole only where reading it back failed.
                let whole = superblock(&devices[1]) == plans[1].superblock;
                assert!(!whole || !matches!(error, RunError::Apply { .. }) || op + 1 < ops);
            }
        }
    }
    assert!(at_read_back > 0 && torn > 0);
}

/// A device that says that it wrote and did not is found out, as is one whose flush fails.
#[test]
fn what_was_not_written_is_found_out() {
    #[derive(Clone)]
    struct Forgets(MemoryDevice);
    impl ReadDevice for Forgets {
        fn info(&self) -> &DeviceInfo {
            self.0.info()
        }
        fn read_at(
            &self,
            offset: u64,
            buf: &mut [u8],
        ) -> Result<(), bcache_core::device::DeviceError> {
            self.0.read_at(offset, buf)
        }
    }
    impl BlockDevice for Forgets {
        fn write_at(&self, _: u64, _: &[u8]) -> Result<(), bcache_core::device::DeviceError> {
            Ok(())
        }
        fn flush(&self) -> Result<(), bcache_core::device::DeviceError> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<(), bcache_core::device::DeviceError> {
            Ok(())
        }
    }
    let device = MemoryDevice::new(DEVICE_BYTES);
    fill(&device);
    let facts = facts(Kind::Cache, &device, Vec::new());
    let options = Options { bucket_bytes: Some(BUCKET_BYTES), ..Options::default() };
    let plan = plan(&options, vec![facts], &mut uuids(1)).unwrap().remove(0);
    let outcome = carry_out(&plan, &Forgets(device.clone()));
    let (_, error) = outcome.failed.unwrap();
    assert!(matches!(error, RunError::Verify { .. }) && error.may_have_written(), "{error}");

    let flush = Trigger::Nth { operation: Operation::Flush, n: 0 };
    let outcome = carry_out(&plan, &FaultDevice::new(device).with(Fault::new(flush)));
    assert!(matches!(outcome.failed, Some((_, RunError::Apply { .. }))));
}

/// A device that changed between the look and the claim is left alone, and so are all others.
#[test]
fn a_device_that_changed_is_left_alone() {
    for change in [
        (|device: MemoryDevice| {
            device.write_at(SB_OFFSET_BYTES, &[1; 512]).unwrap();
            device
        }) as fn(MemoryDevice) -> MemoryDevice,
        |device| device.with_info(|info| info.size_bytes -= 4096),
    ] {
        let (first, second) = (MemoryDevice::new(MIB), MemoryDevice::new(MIB));
        let before = [first.content_hash(), second.content_hash()];
        let named = |device: &MemoryDevice, name: &str| {
            let device = device.clone().with_info(|info| info.path = name.into());
            facts(Kind::Backing, &device, Vec::new())
        };
        let facts = vec![named(&first, "first"), named(&second, "second")];
        let plans = plan(&Options::default(), facts, &mut uuids(1)).unwrap();
        let second = change(second);
        let after_change = second.content_hash();
        let outcome = run(
            &plans,
            &mut |plan| {
                let is_first = plan.facts.info.path.as_os_str() == "first";
                Ok(Box::new(if is_first { first.clone() } else { second.clone() }))
            },
            &mut |_, _| {},
        );
        let (path, error) = outcome.failed.unwrap();
        assert!(matches!(error, RunError::Changed { .. }) && !error.may_have_written());
        assert_eq!(path, PathBuf::from("second"));
        assert_eq!((first.content_hash(), second.content_hash()), (before[0], after_change));
    }
}

/// Of images blocks are our own choice: they get smaller where buckets of two would be too few.
#[test]
fn blocks_get_smaller_where_nothing_else_fits() {
    let image = |bytes| {
        MemoryDevice::new(bytes)
            .with_info(|info| info.kind = bcache_core::device::DeviceKind::Image)
    };
    for (mib, bucket_bytes, block, used) in
        [(3, None, 4, 8), (3, Some(4096), 4, 8), (5, None, 8, 16), (40, Some(4096), 4, 8)]
    {
        let options = Options { bucket_bytes, ..Options::default() };
        let facts = facts(Kind::Cache, &image(mib * MIB), Vec::new());
        let planned = plan(&options, vec![facts], &mut uuids(1)).unwrap().remove(0);
        let sb = &planned.superblock;
        assert_eq!((sb.block_size(), sb.bucket_size()), (Sectors(block), Sectors(used)));
        let note = Note::SmallerBlock { default: Sectors(8), used: Sectors(block) };
        assert_eq!(planned.notes.contains(&note), block != 8, "{:?}", planned.notes);
    }
    // Buckets are nothing to a backing device.
    let options = Options { bucket_bytes: Some(4096), ..Options::default() };
    let backing = facts(Kind::Backing, &image(3 * MIB), Vec::new());
    let planned = plan(&options, vec![backing], &mut uuids(1)).unwrap().remove(0);
    assert_eq!(planned.superblock.block_size(), Sectors(8));
    assert_eq!(planned.notes, [Note::SettingUnused { setting: Setting::BucketSize }]);
}

/// What depends on the device alone.
#[test]
fn devices_that_bcache_cannot_use_are_refused() {
    let planned = |change: fn(&mut DeviceInfo)| {
        let device = MemoryDevice::new(40 * MIB).with_info(change);
        plan(&Options::default(), vec![facts(Kind::Backing, &device, Vec::new())], &mut uuids(1))
    };
    let refused = planned(|info| info.zoned = true).unwrap_err();
    assert!(matches!(refused, MakeError::Zoned { .. }), "{refused}");
    let refused = planned(|info| info.logical_block_bytes = 8192).unwrap_err();
    assert!(
        matches!(refused, MakeError::LogicalBlockLargerThanPage { logical: 8192, .. }),
        "{refused}"
    );
    let refused = planned(|info| info.read_only = true).unwrap_err();
    assert!(matches!(refused, MakeError::ReadOnly { .. }), "{refused}");
}

#[test]
fn what_has_no_effect_or_is_slow_is_noted() {
    let device = MemoryDevice::new(40 * MIB).with_info(|info| {
        info.discard = false;
        info.physical_block_bytes = 4096;
    });
    let options = Options { discard: true, data_offset: Some(Sectors(17)), ..Options::default() };
    let both = [Kind::Cache, Kind::Backing].map(|kind| {
        let path = kind.to_string();
        facts(kind, &device.clone().with_info(|info| info.path = path.into()), Vec::new())
    });
    let plans = plan(&options, both.to_vec(), &mut uuids(1)).unwrap();
    assert!(plans[0].notes.contains(&Note::NoDiscard), "{:?}", plans[0].notes);
    let splits = Note::DataOffsetSplitsPhysicalBlock { physical_bytes: 4096 };
    let offset = Note::DataOffset { offset: Sectors(17) };
    assert_eq!(plans[1].notes, [offset, splits]);
    // Options for devices that are not made.
    let alone = |kind, options: &Options| {
        let facts = facts(kind, &device, Vec::new());
        plan(options, vec![facts], &mut uuids(1)).unwrap().remove(0).notes
    };
    let unused = |notes: Vec<Note>| {
        let option = |note| match note {
            Note::SettingUnused { setting } => Some(setting),
            _ => None,
        };
        notes.into_iter().filter_map(option).collect::<Vec<_>>()
    };
    let all = Options {
        cache_mode: CacheMode::Writeback,
        replacement: Replacement::Fifo,
        bucket_bytes: Some(65536),
        ..options
    };
    assert_eq!(unused(alone(Kind::Cache, &all)), [Setting::DataOffset, Setting::Writeback]);
    assert_eq!(
        unused(alone(Kind::Backing, &all)),
        [Setting::BucketSize, Setting::Discard, Setting::Replacement]
    );
    assert_eq!(unused(alone(Kind::Backing, &Options::default())), []);
}

/// What somebody puts on a device while the plan is being read is not destroyed with it.
#[test]
fn a_signature_that_appears_after_the_look_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    File::create(&path).unwrap().set_len(DEVICE_BYTES).unwrap();
    let new_image = folder.path().join("new");
    let facts = vec![
        facts_of_new_image(Kind::Backing, &new_image, DEVICE_BYTES),
        facts_of(Kind::Backing, &path, None).unwrap(),
    ];
    let plans = plan(&Options::default(), facts, &mut uuids(1)).unwrap();
    try_claims(&plans).unwrap();
    // A partition table: outside of the superblock, in the first 4 KiB.
    let table = partition_table(Sectors(8), Sectors(2048));
    File::options().write(true).open(&path).unwrap().write_all_at(&table, 0).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(try_claims(&plans), Err(RunError::Changed { .. })));
    let outcome = run(&plans, &mut open_for_real, &mut |_, _| {});
    let (failed, error) = outcome.failed.unwrap();
    assert!(matches!(error, RunError::Changed { .. }) && !error.may_have_written(), "{error}");
    assert!(failed == path && std::fs::read(&path).unwrap() == before);
    // The image that the run made before it saw is gone.
    assert!(outcome.removed == [new_image.clone()] && !new_image.exists());
}

#[test]
fn a_set_of_zeroes_is_refused() {
    for kind in [Kind::Cache, Kind::Backing] {
        let options = Options { set_uuid: Some(Uuid::nil()), ..Options::default() };
        let facts = facts(kind, &MemoryDevice::new(40 * MIB), Vec::new());
        let refused = plan(&options, vec![facts], &mut uuids(1)).unwrap_err();
        assert!(matches!(refused, MakeError::NilSetUuid), "{refused}");
    }
}

/// A data offset within a block of the cache is refused, for the kernel would cache nothing.
#[test]
fn data_offset_must_not_split_blocks() {
    let device = MemoryDevice::new(40 * MIB);
    let named = |kind, name: &str| {
        let device = device.clone().with_info(|info| info.path = name.into());
        facts(kind, &device, Vec::new())
    };
    let options = Options {
        data_offset: Some(Sectors(17)),
        block_bytes: Some(1024),
        bucket_bytes: Some(BUCKET_BYTES),
        ..Options::default()
    };
    let both = vec![named(Kind::Cache, "cache"), named(Kind::Backing, "backing")];
    assert!(plan(&options, both.clone(), &mut uuids(1)).is_err());
    let block_of_a_sector = Options { block_bytes: Some(512), ..options.clone() };
    assert!(plan(&block_of_a_sector, both, &mut uuids(1)).is_ok());
    // Alone it is a warning: the cache that it meets may have smaller blocks.
    let alone = plan(&options, vec![named(Kind::Backing, "backing")], &mut uuids(1)).unwrap();
    assert_eq!(alone[0].warnings.len(), 1, "{:?}", alone[0].warnings);
}

/// The kernel has no room for bcache on a device that it runs itself.
#[test]
fn bcache_on_bcache_is_refused() {
    for kind in [Kind::Backing, Kind::Cache] {
        let device = MemoryDevice::new(40 * MIB);
        let mut facts = facts(kind, &device, Vec::new());
        facts.info.is_bcache_volume = true;
        let options = Options { force: true, wipe_bcache: true, ..Options::default() };
        let refused = plan(&options, vec![facts], &mut uuids(1)).unwrap_err();
        assert!(matches!(refused, MakeError::BcacheOnBcache { .. }), "{refused}");
    }
}

/// The kernel attaches no backing device with smaller blocks than its set's.
#[test]
fn blocks_are_not_smaller_than_those_of_the_set() {
    let device = MemoryDevice::new(40 * MIB);
    let planned = |block, set: Option<u64>, set_uuid: Option<u128>| {
        let options = Options {
            block_bytes: Some(block),
            set_uuid: set_uuid.map(Uuid::from_u128),
            set_block_size: set.map(Sectors),
            ..Options::default()
        };
        plan(&options, vec![facts(Kind::Backing, &device, Vec::new())], &mut uuids(1))
            .map(|mut plans| plans.remove(0).notes)
    };
    for (block, set) in [(512, 8), (512, 2), (2048, 8)] {
        let refused = planned(block, Some(set), Some(7)).unwrap_err();
        assert!(matches!(refused, MakeError::BlockSmallerThanSet { .. }), "{refused}");
    }
    for (block, set) in [(4096, 8), (4096, 1), (512, 1), (2048, 4)] {
        assert_eq!(planned(block, Some(set), Some(7)).unwrap(), []);
    }
    let note = Note::SetNotSeen { block_size: Sectors(1) };
    assert_eq!(planned(512, None, Some(7)).unwrap(), [note]);
    assert_eq!(planned(4096, None, Some(7)).unwrap(), []);
    assert_eq!(planned(512, None, None).unwrap(), []);
}

/// A btree node of one block crashes the kernel: such a superblock is warned of, and neither asked
/// for nor by itself does one come about.
#[test]
fn buckets_hold_two_blocks() {
    let device = |block| MemoryDevice::new(3 * MIB).with_block(block);
    let planned = |block, bucket_bytes, block_bytes| {
        let options = Options { bucket_bytes, block_bytes, ..Options::default() };
        plan(&options, vec![facts(Kind::Cache, &device(block), Vec::new())], &mut uuids(1))
    };
    let refused = planned(512, Some(4096), Some(4096)).unwrap_err();
    assert!(
        matches!(
            refused,
            MakeError::OneBlockBuckets { block_size: Sectors(8), smaller_block: Some(Sectors(4)) }
        ),
        "{refused}"
    );
    // Of a device with larger blocks no smaller ones can be asked.
    let refused = planned(4096, Some(4096), None).unwrap_err();
    assert!(matches!(refused, MakeError::OneBlockBuckets { smaller_block: None, .. }));
    let two = planned(512, Some(4096), Some(2048)).unwrap();
    assert_eq!(two[0].superblock.bucket_size(), Sectors(8));
    // Three MiB have room for buckets of 4 KiB, and not for enough larger ones.
    assert_eq!(planned(512, None, None).unwrap()[0].superblock.bucket_size(), Sectors(8));
    let refused = planned(4096, None, None).unwrap_err();
    assert!(matches!(refused, MakeError::TooFewBuckets { fits: None, .. }), "{refused}");
    // With blocks that were asked for it is not the device that is too small.
    let refused = planned(512, None, Some(4096)).unwrap_err();
    let MakeError::TooFewBuckets { asked: false, fits: Some(fit), .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(fit.smaller_block, Some(Sectors(4)));

    for (bucket_size, block_size, fatal) in [(8, 8, true), (8, 4, false), (16, 8, false)] {
        let superblock = Superblock::new_cache(&CacheParams {
            uuid: Uuid::from_u128(1),
            set_uuid: Uuid::from_u128(2),
            label: Label::default(),
            nbuckets: 600,
            bucket_size: Sectors(bucket_size),
            block_size,
            replacement: Replacement::Lru,
            discard: false,
        });
        let size = Sectors(600 * bucket_size);
        let target = Target {
            device_size: size,
            disk_size: size,
            logical_block_bytes: 512,
            is_bcache_volume: false,
        };
        let verdict = kernel_verdict(&superblock, &target);
        assert!(verdict.accepts());
        let warning = Warning::OneBlockBtreeNodes { node: Sectors(bucket_size) };
        assert_eq!(verdict.warnings.contains(&warning), fatal, "{:?}", verdict.warnings);
        assert_eq!(verdict.warnings.iter().any(Warning::is_fatal), fatal);
    }
}
