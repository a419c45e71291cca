//! A uuid table that is lost, where a person says whose the volumes are.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bcache_core::cache_set::{
    CacheDevice, CacheSet, Found, KeyState, NewestEntry, NoVisitor, ReadOptions, WalkOptions,
};
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::ops::repair::{
    Anew, Claim, ClaimError, Class, Code, RepairError, Witness, plan_with_claims, run,
};
use bcache_core::units::Sectors;

use super::sample::Sample;
use super::{uuids, witnesses};

/// A set whose clean data of the backing devices' volumes is zeroes, as the devices have it, and says nothing.
pub(super) fn silent() -> Sample {
    let sample = Sample::new();
    let mut zeroed = Vec::new();
    let opened = CacheDevice::open(&sample.cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    set.for_each_extent(&WalkOptions::default(), &mut |found| {
        if let Found::Extent { key, state: KeyState::Valid, .. } = found {
            let is_clean = !key.dirty() && key.inode() != 1;
            if let Some(ptr) = key.ptrs().first().filter(|_| is_clean) {
                zeroed.push((key.inode(), key.start(), ptr.offset(), key.size()));
            }
        }
        ControlFlow::Continue(())
    });
    drop(set);
    assert!(!zeroed.is_empty());
    for (inode, start, offset, size) in zeroed {
        let zeroes = vec![0; usize::try_from(size.bytes()).unwrap()];
        sample.cache.write_at(offset.bytes(), &zeroes).unwrap();
        sample.device(inode).unwrap().write_at(Sectors(start).bytes(), &zeroes).unwrap();
    }
    sample
}

/// Where the table is gone and nothing tells whose a volume is, a person says it. It is a guess, and refused
/// where the devices tell otherwise.
#[test]
fn what_nothing_tells_a_person_may_say() {
    let expected = uuids(&Sample::new());
    let owner = |slot, of: usize| Claim::Owner { slot, uuid: expected[of] };
    let new = uuid::Uuid::from_u128(7);
    let flash = |slot, size| Claim::FlashOnly { slot, size: Sectors(size), uuid: new };
    let size = {
        let sample = Sample::new();
        let opened = CacheDevice::open(&sample.cache).unwrap();
        let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
        set.uuids.slots[1].sectors.0
    };
    let options = ReadOptions::default();
    let accepted = BTreeSet::from([Code::UuidTable]);
    let hit = |sample: &Sample| sample.noise(sample.byte_of(sample.built.uuid_bucket), 8192);
    let plan_of = |sample: &Sample, claims: &[Claim]| {
        plan_with_claims(&sample.cache, &sample.named(), claims.to_vec(), &options, &mut |_| {})
    };

    for (sample, claims, known) in [
        (Sample::new(), vec![flash(1, size)], [Witness::Data, Witness::Named, Witness::Data]),
        (silent(), vec![flash(1, size), owner(0, 0), owner(2, 2)], [Witness::Named; 3]),
        // One volume and one device are left then.
        (
            silent(),
            vec![flash(1, size), owner(2, 2)],
            [Witness::OnlyOne, Witness::Named, Witness::Named],
        ),
    ] {
        let sound = sample.snapshot();
        hit(&sample);
        let damaged = sample.cache.snapshot();
        let plan = plan_of(&sample, &claims).unwrap();
        assert_eq!(witnesses(&plan), [(0, known[0]), (1, known[1]), (2, known[2])]);
        assert_eq!(plan.anew.as_ref().map(Anew::class), Some(Class::Guess));
        run(&plan, &BTreeSet::new(), &sample.cache, &sample.writers(), &options, 3).unwrap();
        assert_eq!(sample.cache.first_difference(&damaged), None, "it was not accepted");
        run(&plan, &accepted, &sample.cache, &sample.writers(), &options, 3).unwrap();
        assert_eq!(uuids(&sample), [expected[0], new, expected[2]]);
        for inode in 0..3 {
            let [before, after] =
                [&sound, &sample].map(|it| it.read(inode, NewestEntry::AsKernel).unwrap());
            assert!(before == after, "volume {inode} is another");
        }
        // What was said is in the table now.
        assert!(plan_of(&sample, &claims).unwrap().anew.is_none());
    }

    let refused = |sample: &Sample, claims: &[Claim]| {
        hit(sample);
        match plan_of(sample, claims) {
            Err(RepairError::Claim(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let (witness, slots) = (Witness::Data, 8192 / 128);
    assert_eq!(
        refused(&Sample::new(), &[owner(0, 2)]),
        ClaimError::Known { slot: 0, uuid: expected[0], witness }
    );
    assert_eq!(
        refused(&Sample::new(), &[owner(1, 0)]),
        ClaimError::Elsewhere { slot: 1, uuid: expected[0], other: 0 }
    );
    assert_eq!(
        refused(&silent(), &[owner(0, 0), owner(2, 0)]),
        ClaimError::Elsewhere { slot: 2, uuid: expected[0], other: 0 }
    );
    assert_eq!(
        refused(&silent(), &[owner(0, 1)]),
        ClaimError::NotOfSet { slot: 0, uuid: expected[1] }
    );
    assert_eq!(
        refused(&silent(), &[owner(slots, 0)]),
        ClaimError::NoSuchSlot { slot: slots, slots: slots.into() }
    );
    assert!(matches!(refused(&silent(), &[flash(1, 1)]), ClaimError::TooSmall { slot: 1, .. }));
    assert!(matches!(
        refused(&Sample::new(), &[flash(0, size)]),
        ClaimError::Known { slot: 0, .. }
    ));
    // The device has been written to without its cache.
    let sample = Sample::new();
    let len = usize::try_from(sample.backing[1].info().size_bytes / 2).unwrap();
    sample.backing[1].write_at(len as u64, &vec![0x77; len]).unwrap();
    sample.backing[1].write_at(8192, &vec![0x77; len - 8192]).unwrap();
    assert_eq!(
        refused(&sample, &[owner(2, 2)]),
        ClaimError::OtherData { slot: 2, uuid: expected[2] }
    );
    // A table that is sound is right; something else is damaged.
    let sample = Sample::new();
    sample.zero(sample.byte_of(sample.built.prio_buckets[0]), 4096);
    assert!(matches!(
        plan_of(&sample, &[owner(0, 2)]),
        Err(RepairError::Claim(ClaimError::Known { slot: 0, witness: Witness::Slot, .. }))
    ));
    assert!(plan_of(&sample, &[owner(0, 0)]).unwrap().anew.is_some());
}
