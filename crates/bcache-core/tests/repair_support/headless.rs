//! Backing devices whose superblocks are gone, made again beside their cache.

use std::collections::BTreeSet;

use bcache_core::cache_set::{NewestEntry, ReadOptions};
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_core::ops::plan::{Step, WriteKind};
use bcache_core::ops::repair::{
    Claim, Class, Code, Fix, KnownBy, Left, NotRebuilt, Place, RepairPlan, plan_with_claims, run,
};
use bcache_core::units::Sectors;

use super::claims::silent;
use super::sample::{SIZE, Sample};

/// Overwrites the first sectors of a device, and may leave zeroes before the superblock.
fn overwrite(device: &MemoryDevice, sectors: u64, with: u8) {
    for sector in 0..sectors {
        let mut bytes = [with; 512];
        if with != 0 {
            bytes[7] = u8::try_from(sector % 251).unwrap();
        }
        device.write_at(sector * 512, &bytes).unwrap();
    }
}

fn superblock(device: &MemoryDevice) -> Superblock {
    let mut bytes = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET_BYTES, &mut bytes).unwrap();
    Superblock::from_bytes(&bytes).unwrap()
}

fn plan_of(sample: &Sample, named: &[&dyn ReadDevice], claims: &[Claim]) -> RepairPlan {
    let options = ReadOptions::default();
    plan_with_claims(&sample.cache, named, claims.to_vec(), &options, &mut |_| {}).unwrap()
}

/// Of each device in its order, its volume, what says so and how sure it is.
fn known(plan: &RepairPlan) -> Vec<(usize, u32, KnownBy, Class)> {
    let known = |fix: &Fix| {
        let device = fix.recognised.as_ref()?;
        assert_eq!((fix.code, fix.place), (Code::SuperblockGone, Place::Superblock));
        Some((fix.backing.unwrap(), device.slot, device.known_by, fix.class))
    };
    plan.fixes.iter().filter_map(known).collect()
}

fn why(plan: &RepairPlan) -> Vec<NotRebuilt> {
    let why = |left: &Left| match left {
        Left::Gone { why, .. } => why.clone(),
        left => panic!("{left}"),
    };
    plan.left.iter().map(why).collect()
}

/// Both are known by their data, in any order, and the volumes are what they were.
#[test]
fn data_tells_whose_superblock_is_gone() {
    let options = ReadOptions::default();
    for (sectors, with, swapped) in
        [(16, 0, false), (16, 0x5a, true), (34, 0x5a, false), (34, 0, true)]
    {
        let sample = Sample::new();
        let sound = sample.snapshot();
        sample.backing.iter().for_each(|device| overwrite(device, sectors, with));
        let damaged = sample.snapshot();
        let mut named = sample.named();
        let mut writers = sample.writers();
        if swapped {
            named.reverse();
            writers.reverse();
        }
        let plan = plan_of(&sample, &named, &[]);
        assert!(plan.left.is_empty(), "{:?}", plan.left);
        let slots = if swapped { [2, 0] } else { [0, 2] };
        // Dirty data may be older than what is on the device.
        let expected = [0, 1].map(|at| (at, slots[at], KnownBy::Data, Class::Likely));
        assert_eq!(known(&plan), expected);
        run(&plan, &BTreeSet::new(), &sample.cache, &writers, &options, 1).unwrap();
        let accepted = BTreeSet::from([Code::SuperblockGone]);
        for at in [0, 1] {
            let unchanged = sample.backing[at].first_difference(&damaged.backing[at]);
            assert_eq!(unchanged, None, "it was not accepted");
            // The superblock comes last, after a flush.
            let steps = plan.steps(&accepted, Some(at)).steps;
            let kinds: Vec<Option<WriteKind>> = steps
                .iter()
                .map(|step| match step {
                    Step::Write { kind, .. } | Step::Zero { kind, .. } => Some(*kind),
                    _ => None,
                })
                .collect();
            let head = [Some(WriteKind::Wipe), None];
            let expected = [Some(WriteKind::Superblock), None];
            assert_eq!(kinds, [if with == 0 { &[][..] } else { &head }, &expected].concat());
        }
        run(&plan, &accepted, &sample.cache, &writers, &options, 1).unwrap();
        for (device, before) in sample.backing.iter().zip(&sound.backing) {
            let (now, then) = (superblock(device), superblock(before));
            assert_eq!(now.as_bytes()[16..104], then.as_bytes()[16..104]);
            assert_eq!((now.flags(), now.data_offset()), (then.flags(), then.data_offset()));
            assert_eq!(now.block_size(), then.block_size());
            assert!(now.magic_ok() && now.csum_ok());
        }
        let again = plan_of(&sample, &named, &[]);
        assert!(again.fixes.is_empty() && again.left.is_empty(), "{:?}", again.left);
        for inode in [0, 1, 2] {
            let [before, after] =
                [&sound, &sample].map(|it| it.read(inode, NewestEntry::AsKernel).unwrap());
            let lost = if inode == 1 { 0 } else { usize::try_from(sectors - 16).unwrap() };
            assert!(before[lost..] == after[lost..], "volume {inode} is another");
        }
    }
}

/// Where the data says nothing, what is left over is a guess, and so is what a person says.
#[test]
fn without_data_it_is_a_guess() {
    // Where one has something and the cache has zeroes, it is not that volume's.
    let both = silent();
    both.backing.iter().for_each(|device| overwrite(device, 16, 0));
    assert_eq!(
        known(&plan_of(&both, &both.named(), &[])),
        [(0, 0, KnownBy::OnlyOne, Class::Guess), (1, 2, KnownBy::OnlyOne, Class::Guess)]
    );
    both.backing.iter().for_each(|device| overwrite(device, SIZE + 16, 0));
    let several = NotRebuilt::Several { slots: vec![0, 2] };
    assert_eq!(why(&plan_of(&both, &both.named(), &[])), [several.clone(), several]);
    let claim = |slot, backing| Claim::Device { slot, backing, data_offset: None };
    // With the one said, the other is left over.
    assert_eq!(
        known(&plan_of(&both, &both.named(), &[claim(0, 1)])),
        [(0, 2, KnownBy::OnlyOne, Class::Guess), (1, 0, KnownBy::Named, Class::Guess)]
    );
    // Two devices of one volume, one that is flash-only, and one that there is not.
    for (claims, slot) in [
        ([claim(0, 1), claim(0, 0)], 0),
        ([claim(1, 1), claim(0, 0)], 1),
        ([claim(5, 1), claim(0, 0)], 5),
    ] {
        let why = why(&plan_of(&both, &both.named(), &claims));
        assert_eq!(why, [NotRebuilt::NotMissing { slot }]);
    }
    let one = silent();
    overwrite(&one.backing[1], 16, 0);
    let plan = plan_of(&one, &one.named(), &[]);
    assert_eq!(known(&plan), [(1, 2, KnownBy::OnlyOne, Class::Guess)]);
    // One that is there has its volume.
    let plan = plan_of(&one, &one.named(), &[claim(0, 1)]);
    assert_eq!(why(&plan), [NotRebuilt::NotMissing { slot: 0 }]);
    let plan = plan_of(&one, &one.named(), &[claim(2, 1)]);
    assert_eq!(known(&plan), [(1, 2, KnownBy::Named, Class::Guess)]);

    let at = |sectors| Claim::Device { slot: 2, backing: 1, data_offset: Some(Sectors(sectors)) };
    let plan = plan_of(&one, &one.named(), &[at(64)]);
    let device = plan.fixes[0].recognised.as_ref().unwrap();
    assert_eq!((device.data_offset, device.is_offset_known), (Sectors(64), false));
    let plan = plan_of(&one, &one.named(), &[at(128)]);
    assert_eq!(why(&plan), [NotRebuilt::DataBefore { slot: 2, sector: 92 }]);
    assert!(matches!(why(&plan_of(&one, &one.named(), &[at(8)]))[..], [NotRebuilt::Refused(_)]));
}

/// What clean data speaks against is refused, whoever says it.
#[test]
fn what_the_data_contradicts_is_refused() {
    let sample = Sample::new();
    let claim = |slot, backing| Claim::Device { slot, backing, data_offset: None };
    // The device of another volume; one that is blank; one that is too small.
    let other = sample.backing[0].snapshot();
    overwrite(&other, 16, 0);
    let blank = MemoryDevice::new((SIZE + 4096) * 512);
    let small = MemoryDevice::new(2000 * 512);
    for device in [&other, &blank, &small] {
        let named: [&dyn ReadDevice; 2] = [&sample.backing[0], device];
        for claims in [&[][..], &[claim(2, 1)]] {
            match why(&plan_of(&sample, &named, claims))[..] {
                [NotRebuilt::TooSmall { slot: 2, .. }] if device.info().size().0 == 2000 => {}
                [NotRebuilt::OtherData { slot: 2, sector }] => assert!(sector >= 92),
                ref other => panic!("{other:?}"),
            }
        }
    }
    // One that was made anew: what differs is not all at the start.
    let device = &sample.backing[1];
    overwrite(device, 16, 0x5a);
    device.write_at(1200 * 512, &vec![0x5a; 400 * 512]).unwrap();
    let plan = plan_of(&sample, &sample.named(), &[]);
    assert!(matches!(why(&plan)[..], [NotRebuilt::OtherData { slot: 2, .. }]), "{:?}", plan.left);
    // All that differs is at the start: more was overwritten, and that is a guess.
    let sample = Sample::new();
    overwrite(&sample.backing[1], 800, 0x5a);
    let plan = plan_of(&sample, &sample.named(), &[]);
    assert_eq!(known(&plan), [(1, 2, KnownBy::OnlyOne, Class::Guess)]);
    let to = plan.fixes[0].recognised.as_ref().unwrap().overwritten_to.unwrap();
    assert!((700..=800).contains(&to), "{to}");
    // Nobody knows where a copy of a device came from.
    let sample = Sample::new();
    overwrite(&sample.backing[1], 16, 0);
    let copy = sample.backing[1].snapshot();
    let named: [&dyn ReadDevice; 3] = [&sample.backing[0], &sample.backing[1], &copy];
    let several = NotRebuilt::Several { slots: vec![2] };
    assert_eq!(why(&plan_of(&sample, &named, &[])), [several.clone(), several]);
    // None of the set's is missing.
    let named: [&dyn ReadDevice; 3] = [&sample.named()[0], &Sample::new().backing[1], &blank];
    assert_eq!(why(&plan_of(&sample, &named, &[])), [NotRebuilt::NoVolume]);
}

/// What a damaged cache says is not asked for.
#[test]
fn the_cache_comes_first() {
    let sample = Sample::new();
    sample.noise(sample.byte_of(sample.built.prio_buckets[0]), 4096);
    overwrite(&sample.backing[0], 16, 0);
    let plan = plan_of(&sample, &sample.named(), &[]);
    let gone = |left: &Left| matches!(left, Left::Gone { why: NotRebuilt::CacheFirst, .. });
    assert!(plan.left.iter().any(gone), "{:?}", plan.left);
    assert!(plan.fixes.iter().all(|fix| fix.backing.is_none()), "{:?}", plan.fixes);
}
