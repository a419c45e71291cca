//! Repair on sets made for it: bits that were flipped, superblocks, what must not be mended, power cuts.

mod repair_support;

use std::collections::BTreeSet;

use bcache_core::cache_set::testkit::BuiltSet;
use bcache_core::cache_set::{
    CacheDevice, CacheSet, LoadedNode, NoVisitor, NodePlace, ReadOptions, Visitor,
};
use bcache_core::device::testkit::{MemoryDevice, SimDevice};
use bcache_core::device::{AlignedBuf, BlockDevice, ReadDevice};
use bcache_core::layout::jset::{JsetParams, encode};
use bcache_core::layout::superblock::{
    BackingParams, CacheMode, Label, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::ops::repair::{
    Class, Code, Left, Place, RepairPlan, plan, plan_backing, run, run_backing,
};
use proptest::prelude::*;

use repair_support::{BUCKET, NBUCKETS, btree_keys, builder, key};

fn make() -> (MemoryDevice, BuiltSet) {
    let builder = builder(|of, n, first| vec![key(of, 1_000_000 + n * 100, first + 1000 + n)]);
    let device = MemoryDevice::new(NBUCKETS * BUCKET * 512);
    let built = builder.write(&device, btree_keys(&builder).into_iter()).unwrap();
    assert!(built.root.0 >= 1 && built.prio_buckets.len() == 3);
    (device, built)
}

#[derive(Default)]
struct Nodes(Vec<(u64, LoadedNode)>);

impl Visitor for Nodes {
    fn node(&mut self, place: NodePlace, node: &LoadedNode) {
        self.0.push((place.sector.bytes(), node.clone()));
    }
}

/// Stretches of the device whose damage would be found: start and length in bytes.
fn covered(device: &MemoryDevice) -> Vec<(u64, u64)> {
    let mut nodes = Nodes::default();
    let opened = CacheDevice::open(device).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut nodes).unwrap();
    let mut places = vec![(SB_OFFSET_BYTES, 208 + 64)];
    for (start, node) in nodes.0 {
        for set in &node.sets {
            let len = 32 + set.key_bytes as u64;
            let from = start + set.offset as u64;
            if set.offset == 0 {
                places.push((from, len));
            } else {
                // With another seq, a later set is none of the node's, and nobody can tell. Two
                // bits in one set are not named either.
                places.push((from + 24, len - 24));
            }
        }
    }
    for entry in &set.journal.entries {
        let start = set.geometry().bucket_to_sector(entry.place.bucket).bytes();
        places.push((start + entry.place.offset, entry.jset.as_bytes().len() as u64));
    }
    for &bucket in &set.prios.buckets {
        places.push((
            set.geometry().bucket_to_sector(bucket).bytes(),
            set.geometry().meta_bucket_bytes(),
        ));
    }
    places
}

fn flip(device: &MemoryDevice, byte: u64, mask: u8) {
    let mut sector = [0; 512];
    let start = byte / 512 * 512;
    device.read_at(start, &mut sector).unwrap();
    sector[usize::try_from(byte - start).unwrap()] ^= mask;
    device.write_at(start, &sector).unwrap();
}

fn planned(device: &MemoryDevice) -> RepairPlan {
    plan(device, &[], &ReadOptions::default(), &mut |_| {}).unwrap()
}

fn repaired(device: &MemoryDevice, accepted: &BTreeSet<Code>) -> RepairPlan {
    let plan = planned(device);
    run(&plan, accepted, device, &[], &ReadOptions::default(), 7).unwrap();
    plan
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// One bit in each of some structures: every byte is what it was, and certain to be.
    #[test]
    fn flipped_bits_are_flipped_back(
        chosen in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0u8..8), 1..5),
    ) {
        let (device, _) = make();
        let sound = device.snapshot();
        let places = covered(&device);
        let mut damaged = BTreeSet::new();
        for (place, byte, bit) in chosen {
            let index = place.index(places.len());
            let (start, len) = places[index];
            if damaged.insert(index) {
                flip(&device, start + byte % len, 1 << bit);
            }
        }
        let plan = planned(&device);
        prop_assert!(plan.left.is_empty(), "{:?}", plan.left);
        prop_assert!(plan.fixes.iter().all(|fix| fix.class == Class::Certain), "{:?}", plan.fixes);
        repaired(&device, &BTreeSet::new());
        prop_assert_eq!(device.first_difference(&sound), None);
        prop_assert!(planned(&device).fixes.is_empty());
    }

    /// Damage of another kind: nothing that was sound is touched, and nothing is called mended that is not.
    #[test]
    fn other_damage_is_left_as_it_is(
        place: prop::sample::Index, at: u64, junk in prop::collection::vec(any::<u8>(), 2..64),
    ) {
        let (device, _) = make();
        let places = covered(&device);
        let (start, len) = places[1 + place.index(places.len() - 1)];
        let junk = &junk[..junk.len().min(usize::try_from(len).unwrap())];
        let start = start + at % (len - junk.len() as u64 + 1);
        let mut bits = 0;
        for (offset, byte) in (0u64..).zip(junk) {
            bits += byte.count_ones();
            flip(&device, start + offset, *byte);
        }
        prop_assume!(bits > 1);
        let damaged = device.snapshot();
        let plan = planned(&device);
        prop_assert!(plan.fixes.is_empty(), "{:?}", plan.fixes);
        prop_assert_eq!(plan.steps(&Code::ALL.into(), None).steps.len(), 0);
        prop_assert_eq!(device.first_difference(&damaged), None);
    }
}

/// A backing device of 1 MiB, never registered.
fn backing_device(number: u128) -> MemoryDevice {
    let device = MemoryDevice::new(1 << 20);
    let superblock = Superblock::new_backing(&BackingParams {
        uuid: uuid::Uuid::from_u128(number),
        set_uuid: uuid::Uuid::from_u128(7),
        label: Label::new("data").unwrap(),
        data_offset: bcache_core::units::Sectors(16),
        block_size: 1,
        cache_mode: CacheMode::Writeback,
    });
    device.write_at(SB_OFFSET_BYTES, superblock.as_bytes()).unwrap();
    device
}

proptest! {
    /// Of backing devices alone, each is what it was, whatever is wrong with the others.
    #[test]
    fn backing_devices_are_repaired_alone(byte in 0u64..208, bit in 0u8..8, junk in 1u8..) {
        let devices = [backing_device(1), backing_device(2), backing_device(3)];
        let sound: Vec<_> = devices.iter().map(MemoryDevice::snapshot).collect();
        flip(&devices[0], SB_OFFSET_BYTES + byte, 1 << bit);
        for at in [50, 100, 150] {
            flip(&devices[1], SB_OFFSET_BYTES + at, junk);
        }
        let damaged = devices[1].snapshot();
        let named: Vec<&dyn ReadDevice> = devices.iter().map(|it| it as &dyn ReadDevice).collect();
        let plan = plan_backing(&named).unwrap();
        prop_assert!(matches!(plan.left[..], [Left::Alone { .. }]), "{:?}", plan.left);
        let [fix] = &plan.fixes[..] else { panic!("{:?}", plan.fixes) };
        prop_assert_eq!((fix.class, fix.backing), (Class::Certain, Some(0)));
        let writers: Vec<&dyn BlockDevice> =
            devices.iter().map(|it| it as &dyn BlockDevice).collect();
        let all: BTreeSet<Code> = Code::ALL.into();
        run_backing(&plan, &all, None, &writers).unwrap();
        prop_assert_eq!(devices[0].first_difference(&sound[0]), None);
        prop_assert_eq!(devices[1].first_difference(&damaged), None);
        prop_assert_eq!(devices[2].first_difference(&sound[2]), None);
        prop_assert!(!plan.is_whole(&all));
    }
}

#[test]
fn a_wiped_magic_returns_last_and_only_where_the_set_is_sound() {
    let (device, built) = make();
    let sound = device.snapshot();
    let zeroes = [0u8; 16];
    let wipe = |device: &MemoryDevice| {
        let mut sector = [0; 512];
        device.read_at(SB_OFFSET_BYTES, &mut sector).unwrap();
        sector[24..40].copy_from_slice(&zeroes);
        device.write_at(SB_OFFSET_BYTES, &sector).unwrap();
    };
    wipe(&device);
    let prio = built.geometry.bucket_to_sector(built.prio_buckets[1]).bytes() + 500;
    flip(&device, prio, 4);
    let plan = planned(&device);
    let found: Vec<_> = plan.fixes.iter().map(|fix| (fix.code, fix.class)).collect();
    assert_eq!(
        found,
        [(Code::SuperblockMagic, Class::Certain), (Code::FlippedBit, Class::Certain)]
    );
    let steps = plan.steps(&BTreeSet::new(), None).steps;
    assert_eq!(steps.len(), 4, "write, flush, superblock, flush");
    assert!(format!("{:?}", steps[2]).contains("Superblock"));
    repaired(&device, &BTreeSet::new());
    assert_eq!(device.first_difference(&sound), None);

    // More is wrong than can be mended: with its magic, the kernel would take the set.
    wipe(&device);
    flip(&device, prio, 0x33);
    let damaged = device.snapshot();
    let plan = repaired(&device, &BTreeSet::new());
    assert_eq!((plan.left.len(), plan.fixes[0].class), (1, Class::Likely));
    assert_eq!(device.first_difference(&damaged), None);
    repaired(&device, &[Code::SuperblockMagic].into());
    let opened = CacheDevice::open(&device).unwrap();
    assert_eq!(opened.superblock().as_bytes(), built.superblock.as_bytes());
}

#[test]
fn a_lost_checksum_is_vouched_for_by_the_set() {
    let (device, _) = make();
    let sound = device.snapshot();
    for byte in 0..8 {
        flip(&device, SB_OFFSET_BYTES + byte, 0x5a);
    }
    let plan = repaired(&device, &BTreeSet::new());
    assert_eq!(plan.fixes.len(), 1);
    assert_eq!(
        (plan.fixes[0].code, plan.fixes[0].class),
        (Code::SuperblockChecksum, Class::Likely)
    );
    assert!(device.first_difference(&sound).is_some(), "made without being accepted");
    repaired(&device, &[Code::SuperblockChecksum].into());
    assert_eq!(device.first_difference(&sound), None);

    // What it says is not true of the device: half the buckets, another set.
    for (byte, mask) in [(56u64, 0x77u8), (206, 6)] {
        let other = sound.snapshot();
        flip(&other, SB_OFFSET_BYTES + byte, mask);
        flip(&other, SB_OFFSET_BYTES, 0xff);
        let plan = planned(&other);
        assert!(plan.fixes.is_empty(), "{:?}", plan.fixes);
    }
}

/// The kernel leaves a journal bucket at a damaged entry and goes on from the entry before: mending it
/// later would bring back a state that is gone.
#[test]
fn an_entry_is_mended_unless_the_kernel_went_on_without_it() {
    let (device, _) = make();
    let sound = device.snapshot();
    let opened = CacheDevice::open(&sound).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    // Behind the rotten one, in the same bucket, stands the newest.
    let [.., before, rotten, last] = &set.journal.entries[..] else { panic!() };
    assert_eq!(rotten.place.bucket, last.place.bucket);
    let byte = |place: &bcache_core::cache_set::journal::JournalPlace| {
        set.geometry().bucket_to_sector(place.bucket).bytes() + place.offset
    };
    flip(&device, byte(&rotten.place) + 100, 8);
    let damaged = device.snapshot();
    let plan = repaired(&device, &BTreeSet::new());
    assert!(matches!(plan.fixes[..], [ref fix] if matches!(fix.place, Place::JournalEntry { .. })));
    assert_eq!(device.first_difference(&sound), None);

    let opened = CacheDevice::open(&damaged).unwrap();
    let now = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    let newest = &now.journal.newest().unwrap().jset;
    assert_eq!((newest.seq(), newest.seq() + 1), (before.jset.seq(), rotten.jset.seq()));
    let entry = encode(
        &JsetParams { seq: newest.seq() + 1, ..JsetParams::of(newest, &[]) },
        now.cache.magic(),
    )
    .unwrap();
    let index = (rotten.place.index + 1) % now.journal.buckets.len();
    let place = now.geometry().bucket_to_sector(now.journal.buckets[index].bucket).bytes();
    let device = damaged.snapshot();
    device.write_at(place, &AlignedBuf::padded(entry.as_bytes(), 512)).unwrap();
    let went_on = device.snapshot();
    let plan = repaired(&device, &Code::ALL.into());
    assert!(plan.fixes.is_empty(), "{:?}", plan.fixes);
    assert_eq!(device.first_difference(&went_on), None);
}

#[test]
fn power_cuts_leave_some_changes_and_repeating_makes_the_rest() {
    let (device, _) = make();
    let sound = device.snapshot();
    let places = covered(&device);
    for (start, len) in [places[0], places[1], places[places.len() - 1], places[places.len() - 4]] {
        flip(&device, start + len / 2, 2);
    }
    let fixes = planned(&device).fixes.len();
    assert_eq!(fixes, 4);
    let options = ReadOptions::default();
    for cut in 0.. {
        let sim = SimDevice::new(&device).with_power_cut_at(cut);
        let plan = plan(&sim, &[], &options, &mut |_| {}).unwrap();
        let result = run(&plan, &BTreeSet::new(), &sim, &[], &options, 7);
        if result.is_ok() {
            assert!(cut > 5);
            return;
        }
        for seed in 0..4 {
            let crashed = sim.crash(seed);
            repaired(&crashed, &BTreeSet::new());
            assert_eq!(crashed.first_difference(&sound), None, "cut {cut}, seed {seed}");
        }
    }
}

/// Without CACHE_SYNC the kernel would start the set afresh. Whether what is there is the newest state is a
/// guess: a kernel with `synchronous` off writes no journal.
#[test]
fn a_set_that_is_called_new_is_a_guess() {
    let (device, built) = make();
    let sound = device.snapshot();
    let unsynced = |journal: bool| {
        let mut sb = built.superblock.clone();
        sb.edit(|edit| {
            edit.sync(false);
            if !journal {
                edit.journal_buckets(0);
            }
        });
        device.write_at(SB_OFFSET_BYTES, &AlignedBuf::copy_of(sb.as_bytes())).unwrap();
    };
    unsynced(true);
    let plan = planned(&device);
    let fixes: Vec<_> = plan.fixes.iter().map(|fix| (fix.code, fix.class)).collect();
    assert_eq!(fixes, [(Code::SuperblockSync, Class::Guess)]);
    assert!(plan.left.is_empty() && plan.dirty_sectors_before.is_none(), "{:?}", plan.left);
    let damaged = device.snapshot();
    repaired(&device, &BTreeSet::new());
    assert_eq!(device.first_difference(&damaged), None);
    repaired(&device, &[Code::SuperblockSync].into());
    assert_eq!(device.first_difference(&sound), None);
    // Made anew over an old set, of whose journal too little is left to tell what its superblock was.
    unsynced(false);
    let plan = planned(&device);
    assert!(plan.fixes.is_empty());
    assert!(matches!(plan.left[..], [Left::Beside(_)]), "{:?}", plan.left);
    // New, and nothing else.
    let new = MemoryDevice::new(NBUCKETS * BUCKET * 512);
    let mut bytes = AlignedBuf::zeroed(4096);
    device.read_at(SB_OFFSET_BYTES, &mut bytes).unwrap();
    new.write_at(SB_OFFSET_BYTES, &bytes).unwrap();
    let plan = planned(&new);
    assert!(plan.left.is_empty() && plan.fixes.is_empty() && plan.is_whole(&BTreeSet::new()));
}

/// Of what is not there nothing is said, and what is there stays as it is.
#[test]
fn a_device_that_is_cut_off_is_one_problem() {
    let (device, built) = make();
    // Damage in what is left of it, too.
    flip(&device, built.geometry.bucket_to_sector(built.prio_buckets[1]).bytes() + 500, 0x33);
    let short = device.clone().with_info(|info| {
        info.size_bytes = NBUCKETS / 2 * BUCKET * 512;
        info.disk_size = bcache_core::units::Sectors(NBUCKETS / 2 * BUCKET);
    });
    let plan = planned(&short);
    assert!(matches!(plan.left[..], [Left::CutOff { .. }]), "{:?}", plan.left);
    assert!(plan.fixes.is_empty() && plan.anew.is_none() && plan.not_anew.is_none());
    assert_eq!((plan.dirty_sectors_before, plan.dirty_sectors_after), (None, None));
    assert!(plan.is_nothing(&Code::ALL.into()) && !plan.is_whole(&Code::ALL.into()));
}
