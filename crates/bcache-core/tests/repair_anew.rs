//! Repair with new metadata, on sets made for it. Whatever the damage, what could be read for certain before
//! is there and the same afterwards, also when the power fails in between.

mod repair_support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bcache_core::cache_set::volume::{Source, Stretch};
use bcache_core::cache_set::{
    Below, CacheDevice, CacheSet, LoadedNode, NewestEntry, NoVisitor, NodePlace, ReadOptions,
    Visitor, VolumeReader,
};
use bcache_core::device::testkit::{MemoryDevice, SimDevice};
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::ops::repair::{Class, Code, RepairPlan, plan, run};
use bcache_core::units::Sectors;
use proptest::prelude::*;
use repair_support::{BUCKET, NBUCKETS, btree_keys, builder, key};

const WINDOWS: [(u64, u64); 2] = [(0, 9_100), (1_000_000, 1_001_000)];

/// A btree of two levels or more, three prio sets, and entries that replace some of its keys.
fn make() -> MemoryDevice {
    let builder = builder(|of, n, first| {
        vec![key(of, 1_000_000 + n * 100, first + 1000 + n), key(of, n * 110, first + 1100 + n)]
    });
    let device = MemoryDevice::new(NBUCKETS * BUCKET * 512);
    builder.write(&device, btree_keys(&builder).into_iter()).unwrap();
    device
}

/// Stretches of the device with metadata but for the superblock: start and length in bytes.
fn places(device: &MemoryDevice) -> Vec<(u64, u64)> {
    struct Nodes(Vec<(u64, u64)>);
    impl Visitor for Nodes {
        fn node(&mut self, place: NodePlace, node: &LoadedNode) {
            let start = place.sector.bytes();
            self.0.extend(node.sets.iter().map(|set| (start + set.offset as u64, 512)));
        }
    }
    let mut nodes = Nodes(Vec::new());
    let opened = CacheDevice::open(device).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut nodes).unwrap();
    let mut places = nodes.0;
    let byte = |bucket| set.geometry().bucket_to_sector(bucket).bytes();
    places.extend(
        set.journal.entries.iter().map(|it| (byte(it.place.bucket) + it.place.offset, 512)),
    );
    places.extend(set.prios.buckets.iter().map(|&bucket| (byte(bucket), 4096)));
    places
}

fn spoil(device: &MemoryDevice, (start, len): (u64, u64), seed: u64) {
    let mut noise = vec![0u8; usize::try_from(len).unwrap()];
    for (index, byte) in (0u64..).zip(&mut noise) {
        *byte = (seed.wrapping_mul(index + 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
    device.write_at(start, &noise).unwrap();
}

/// What each sector of the volume is read from, where that is certain.
fn certain(device: &dyn ReadDevice, newest: NewestEntry) -> BTreeMap<u64, Source> {
    let backing = MemoryDevice::new(2_000_000 * 512);
    let opened = CacheDevice::open(device).unwrap();
    let options = ReadOptions { newest, ..ReadOptions::default() };
    let Ok(set) = CacheSet::read(opened, &options, &mut NoVisitor) else { return BTreeMap::new() };
    let mut reader = VolumeReader::new(&set, 0, Below::Backing(&backing, Sectors(0)));
    let mut map = BTreeMap::new();
    for (from, to) in WINDOWS {
        let _ = reader.stretches(from, to, &mut |stretch: Stretch| {
            if stretch.is_certain() {
                for sector in stretch.start..stretch.end {
                    let skip = sector - stretch.start;
                    let source = match stretch.source {
                        Source::Cache { sector: at, dirty } => {
                            Source::Cache { sector: Sectors(at.0 + skip), dirty }
                        }
                        Source::Backing { .. } => Source::Backing { sector: Sectors(sector) },
                        other => other,
                    };
                    map.insert(sector, source);
                }
            }
            ControlFlow::Continue(())
        });
    }
    map
}

/// Nothing of `before` is lost or changed in `after`: clean data may be read from the backing device.
fn check_kept(before: &BTreeMap<u64, Source>, after: &BTreeMap<u64, Source>) {
    for (sector, was) in before {
        let now = after.get(sector).unwrap_or_else(|| panic!("sector {sector} is not certain now"));
        let clean = matches!(was, Source::Cache { dirty: false, .. });
        let same = now == was || clean && matches!(now, Source::Backing { .. });
        assert!(same, "sector {sector} was {was:?}, and is {now:?}");
    }
}

fn planned(device: &dyn ReadDevice) -> RepairPlan {
    plan(device, &[], &ReadOptions::default(), &mut |_| {}).unwrap()
}

fn all() -> BTreeSet<Code> {
    Code::ALL.into()
}

#[test]
fn a_sound_set_needs_nothing() {
    let device = make();
    let plan = planned(&device);
    assert!(plan.anew.is_none() && plan.not_anew.is_none() && plan.left.is_empty());
    assert_eq!(certain(&device, NewestEntry::AsKernel).len(), 10_100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_could_be_read_is_never_lost(
        chosen in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..4),
    ) {
        let device = make();
        let places = places(&device);
        for (place, seed) in chosen {
            spoil(&device, *place.get(&places), seed);
        }
        let before = certain(&device, NewestEntry::Greatest);
        let damaged = device.snapshot();
        let plan = planned(&device);
        run(&plan, &BTreeSet::new(), &device, &[], &ReadOptions::default(), 1).unwrap();
        if plan.anew.as_ref().is_some_and(|anew| anew.class() > Class::Certain) {
            prop_assert_eq!(device.first_difference(&damaged), None, "written unasked");
        }
        let plan = planned(&device);
        run(&plan, &all(), &device, &[], &ReadOptions::default(), 2).unwrap();
        if plan.not_anew.is_some() {
            prop_assert_eq!(device.first_difference(&damaged), None, "{:?}", plan.not_anew);
        } else {
            check_kept(&before, &certain(&device, NewestEntry::AsKernel));
            let again = planned(&device);
            prop_assert!(again.left.is_empty() && again.fixes.is_empty(), "{:?}", again.left);
        }
    }
}

#[test]
fn after_a_power_cut_it_is_repaired_as_well() {
    let device = make();
    let places = places(&device);
    let entry = places.len() - 3 - 2;
    for place in [places[3], places[entry], places[places.len() - 2]] {
        spoil(&device, place, 5);
    }
    let before = certain(&device, NewestEntry::Greatest);
    let options = ReadOptions::default();
    assert!(planned(&device).anew.is_some());
    for cut in 0.. {
        let sim = SimDevice::new(&device).with_power_cut_at(cut);
        let plan = plan(&sim, &[], &options, &mut |_| {}).unwrap();
        let result = run(&plan, &all(), &sim, &[], &options, cut);
        if result.is_ok() {
            assert!(cut > 10, "{cut}");
            return;
        }
        for seed in 0..3 {
            let crashed = sim.crash(seed);
            let plan = planned(&crashed);
            run(&plan, &all(), &crashed, &[], &options, 99).unwrap();
            check_kept(&before, &certain(&crashed, NewestEntry::AsKernel));
        }
    }
}
