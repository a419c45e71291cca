//! Saving what plans overwrite and putting it back: random plans, power cuts on the way there and on the
//! way back, changed devices, damaged files.

use std::path::Path;

use bcache_core::device::testkit::{MemoryDevice, SimDevice};
use bcache_core::device::{AlignedBuf, BlockDevice, ReadDevice};
use bcache_core::ops::plan::{Plan, Step, WriteKind, apply};
use bcache_core::ops::undo::{SaveError, Saving, UndoError, UndoFile, UndoLog, Watch, steps_of};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_pcg::Pcg64;

const BLOCKS: u64 = 600;

fn device(name: &str, seed: u64) -> MemoryDevice {
    let mut bytes = vec![0; usize::try_from(BLOCKS * 512).unwrap()];
    Pcg64::seed_from_u64(seed).fill_bytes(&mut bytes);
    MemoryDevice::from_bytes(&bytes).with_info(|info| info.path = name.into())
}

fn named(device: MemoryDevice, name: &str) -> MemoryDevice {
    device.with_info(|info| info.path = name.into())
}

fn save(log: &UndoLog, parts: &[(&MemoryDevice, &Plan)], watch: &Watch) -> Result<(), SaveError> {
    let sources: Vec<_> =
        parts.iter().map(|(_, plan)| steps_of(|| Box::new(plan.steps.iter()))).collect();
    let saving: Vec<Saving<'_>> = parts
        .iter()
        .zip(&sources)
        .map(|((device, _), steps)| Saving { device: *device, watch: watch.clone(), steps })
        .collect();
    log.save(&saving)
}

fn undo(file: &Path, devices: &[&dyn BlockDevice]) -> Result<(), UndoError> {
    let file = UndoFile::open(file)?;
    let readers: Vec<&dyn ReadDevice> = devices.iter().map(|it| it as &dyn ReadDevice).collect();
    file.check(&readers, &mut |_, _| {})?;
    file.put_back(devices, &mut |_, _| {})
}

fn same(one: &MemoryDevice, other: &MemoryDevice) -> bool {
    one.first_difference(other).is_none()
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS, 0..200u64).prop_map(|(at, len)| (at * 512, len.min(BLOCKS - at) * 512));
    (range, 0u8..6).prop_map(|((offset, len), fill)| match fill {
        0 | 1 => Step::Flush,
        2 => Step::Zero { kind: WriteKind::Wipe, offset, len },
        fill => {
            let mut data = AlignedBuf::zeroed(usize::try_from(len).unwrap());
            data.fill(fill);
            Step::Write { kind: WriteKind::Wipe, offset, data }
        }
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    proptest::collection::vec(step(), 1..8).prop_map(|steps| Plan { steps })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Two parts of an operation on one device and one on another, cut anywhere; undone, cut anywhere;
    /// undone once more: everything is as it was.
    #[test]
    fn whatever_was_cut_is_undone(
        first in plan(), second in plan(), other in plan(),
        cut in 0u64..40, cut_back in 0u64..30, seed in 0u64..,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("undo");
        let log = UndoLog::new(&path, "test").unwrap();
        let (a, b) = (device("a", seed), device("b", seed ^ 1));
        let sim_b = SimDevice::new(&b);
        let mut sim = SimDevice::new(&a).with_power_cut_at(cut);
        save(&log, &[(&a, &first), (&b, &other)], &Watch::Superblock).unwrap();
        let done = apply(&first, &sim, &mut |_| {})
            .and_then(|()| apply(&other, &sim_b, &mut |_| {}))
            .is_ok();
        if done {
            // What the first part wrote is durable before the second is saved.
            if sim.flush().is_ok() {
                let now = named(sim.durable(), "a");
                save(&log, &[(&now, &second)], &Watch::Superblock).unwrap();
                sim = SimDevice::new(&now).with_power_cut_at(cut / 2);
                let _ = apply(&second, &sim, &mut |_| {});
            }
        }
        let crashed = named(sim.crash(seed), "a");
        let crashed_b = named(sim_b.crash(seed ^ 2), "b");

        let back = SimDevice::new(&crashed).with_power_cut_at(cut_back);
        let back_b = SimDevice::new(&crashed_b);
        let result = undo(&path, &[&back, &back_b]);
        let (now, now_b) = (named(back.crash(seed ^ 3), "a"), named(back_b.crash(seed ^ 4), "b"));
        if result.is_ok() {
            prop_assert!(same(&now, &a) && same(&now_b, &b));
        }
        undo(&path, &[&now, &now_b]).unwrap();
        prop_assert_eq!(now.first_difference(&a), None);
        prop_assert_eq!(now_b.first_difference(&b), None);
    }

    /// A byte that the plan wrote and that somebody else has changed since is found, and so is one in
    /// the watched start of the device. Nothing is written then.
    #[test]
    fn a_changed_device_is_refused(plan in plan(), at in 0..BLOCKS * 512, seed in 0u64..) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("undo");
        let before = device("a", seed);
        for watch in [Watch::Superblock, Watch::Ends] {
            let log = UndoLog::new(&path, "test").unwrap();
            save(&log, &[(&before, &plan)], &watch).unwrap();
            let now = named(before.snapshot(), "a");
            apply(&plan, &now, &mut |_| {}).unwrap();
            let written = named(now.snapshot(), "a");
            let mut block = [0; 512];
            let start = at / 512 * 512;
            now.read_at(start, &mut block).unwrap();
            // Nothing that a plan writes, and nothing that was there.
            block[usize::try_from(at - start).unwrap()] ^= 0xa5;
            now.write_at(start, &block).unwrap();
            let changed = named(now.snapshot(), "a");
            let covered = plan.steps.iter().any(|step| match step {
                Step::Write { offset, data, .. } => (*offset..*offset + data.len() as u64).contains(&at),
                Step::Zero { offset, len, .. } => (*offset..*offset + *len).contains(&at),
                _ => false,
            });
            let result = undo(&path, &[&now]);
            if covered || watch == Watch::Ends || at < 8192 {
                prop_assert!(matches!(result, Err(UndoError::Changed { .. })), "{result:?}");
                prop_assert!(same(&now, &changed));
            } else {
                result.unwrap();
            }
            undo(&path, &[&written]).unwrap();
            prop_assert!(same(&written, &before));
            std::fs::remove_file(&path).unwrap();
        }
    }
}

fn example() -> (MemoryDevice, Plan) {
    let mut data = AlignedBuf::zeroed(70_000 / 512 * 512);
    data.fill(7);
    let write = |offset, data| Step::Write { kind: WriteKind::Wipe, offset, data };
    let mut small = AlignedBuf::zeroed(4096);
    small.fill(9);
    let steps = vec![
        Step::Zero { kind: WriteKind::Wipe, offset: 0, len: 4096 },
        Step::Flush,
        write(60 << 10, data),
        Step::Flush,
        write(4096, small),
        Step::Flush,
    ];
    (device("a", 5), Plan { steps })
}

/// A file that is cut short or has a flipped bit anywhere undoes nothing, or the very same.
#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("undo");
    let (before, plan) = example();
    save(&UndoLog::new(&path, "test").unwrap(), &[(&before, &plan)], &Watch::Ends).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let after = named(before.snapshot(), "a");
    apply(&plan, &after, &mut |_| {}).unwrap();
    let tried = folder.path().join("tried");
    let undone = |bytes: &[u8]| {
        std::fs::write(&tried, bytes).unwrap();
        let device = named(after.snapshot(), "a");
        match undo(&tried, &[&device]) {
            Ok(()) => {
                assert!(same(&device, &before));
                true
            }
            Err(UndoError::Differs { .. }) => panic!("wrote before it knew"),
            Err(_) => {
                assert!(same(&device, &after));
                false
            }
        }
    };
    for len in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        assert!(!undone(&whole[..len]), "{len} bytes of it were taken");
    }
    let step = whole.len() / 400 + 1;
    let mut taken = 0;
    for at in (0..whole.len()).step_by(step).chain(whole.len() - 700..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        taken += usize::from(undone(&bytes));
    }
    // Bytes that mean nothing: reserved fields of the header.
    assert!(taken < 20, "{taken} damaged files were taken");
    assert!(undone(&whole));
}

#[test]
fn nothing_is_saved_over_a_file_or_for_a_discard() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("undo");
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(UndoLog::new(&path, "test"), Err(SaveError::Exists { .. })));
    assert!(matches!(UndoLog::new(Path::new("/dev/full"), "test"), Err(SaveError::Exists { .. })));
    std::fs::remove_file(&path).unwrap();
    let (device, mut plan) = example();
    let log = UndoLog::new(&path, "test").unwrap();
    plan.steps.push(Step::Discard { offset: 8192, len: 8192 });
    let error = save(&log, &[(&device, &plan)], &Watch::Ends).unwrap_err();
    assert!(matches!(error, SaveError::Discards));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let nowhere = UndoLog::new(&folder.path().join("none/undo"), "test").unwrap();
    plan.steps.pop();
    let error = save(&nowhere, &[(&device, &plan)], &Watch::Ends).unwrap_err();
    assert!(matches!(error, SaveError::Write { .. }));
}

/// A second part that cannot be saved leaves the file of the first as it was.
#[test]
fn a_part_that_cannot_be_saved_leaves_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("undo");
    let (before, plan) = example();
    let log = UndoLog::new(&path, "test").unwrap();
    save(&log, &[(&before, &plan)], &Watch::Ends).unwrap();
    let now = named(before.snapshot(), "a");
    apply(&plan, &now, &mut |_| {}).unwrap();
    let second = Plan { steps: vec![Step::Discard { offset: 0, len: 512 }] };
    save(&log, &[(&now, &second)], &Watch::Ends).unwrap_err();
    undo(&path, &[&now]).unwrap();
    assert!(same(&now, &before));
    let other = device("a", 6);
    assert!(matches!(undo(&path, &[&other]), Err(UndoError::Changed { .. })));
    let longer = MemoryDevice::new(1 << 20);
    assert!(matches!(undo(&path, &[&longer]), Err(UndoError::OtherSize { .. })));
    assert!(matches!(undo(&path, &[&now, &other]), Err(UndoError::Devices { .. })));
}
