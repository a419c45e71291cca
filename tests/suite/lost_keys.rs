//! Leaves of kernel-written sets that lose their last sets: nothing in the leaf shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bcache_core::cache_set::problem::BtreeProblem;
use bcache_core::cache_set::{
    CacheDevice, CacheSet, LoadedNode, NodePlace, Problem, ReadOptions, Visitor,
};
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{BlockDevice as _, ReadDevice as _};
use bcache_core::ops::repair::{self, Class};
use bcache_tests::fixture::Fixture;

/// By volume and sector: where the cache has it, and whether that is the only copy.
type Cached = BTreeMap<(u32, u64), (u64, bool)>;

fn dirty(cached: &Cached) -> Cached {
    cached.iter().filter(|(_, (_, dirty))| *dirty).map(|(sector, it)| (*sector, *it)).collect()
}

/// The leaves, and which of them have lost keys.
#[derive(Default)]
struct Seen {
    leaves: Vec<(NodePlace, LoadedNode)>,
    lost: Vec<NodePlace>,
    others: Vec<String>,
}

impl Visitor for Seen {
    fn node(&mut self, place: NodePlace, node: &LoadedNode) {
        if place.level == 0 {
            self.leaves.push((place, node.clone()));
        }
    }

    fn problem(&mut self, problem: Problem) {
        match problem {
            Problem::Btree(BtreeProblem::LostKeys { place, .. }) => self.lost.push(place),
            other => self.others.push(other.to_string()),
        }
    }
}

fn read(device: &MemoryDevice) -> (Seen, Cached) {
    let mut seen = Seen::default();
    let opened = CacheDevice::open(device).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut seen).unwrap();
    let mut cached = Cached::new();
    let slots: Vec<(u32, u64)> =
        set.volumes.iter().map(|(slot, usage)| (*slot, usage.end)).collect();
    for (slot, end) in slots {
        let found = set.view().lookup(slot, 0, end, &mut |extent| {
            if let Some(first) = extent.cached {
                let sectors = (extent.start..extent.end).zip(first.0..);
                cached.extend(sectors.map(|(sector, at)| ((slot, sector), (at, extent.dirty))));
            }
            ControlFlow::Continue(())
        });
        found.unwrap();
    }
    (seen, cached)
}

/// Each leaf loses its last set, its last two, ...: the cache has nothing else then, or the leaf is named,
/// and what a repair calls certain is what was there.
#[test]
fn what_leaves_lose_is_found_and_comes_back() {
    let (mut cuts, mut found, mut certain) = (0, 0, 0);
    for name in Fixture::names().unwrap() {
        let fixture = Fixture::unpack(&name).unwrap();
        let mut file = std::fs::File::open(&fixture.cache).unwrap();
        let device = MemoryDevice::from_reader(&mut file).unwrap();
        let (sound, truth) = read(&device);
        assert!(sound.lost.is_empty() && sound.others.is_empty(), "{name}: {:?}", sound.others);
        for (place, leaf) in &sound.leaves {
            let start = place.sector.bytes();
            let mut whole = vec![0; usize::try_from(leaf.key.size().bytes()).unwrap()];
            device.read_at(start, &mut whole).unwrap();
            for (number, set) in leaf.sets.iter().enumerate().skip(1) {
                let told = format!("{name}: {place}, from set {number} of {}", leaf.sets.len());
                cuts += 1;
                device
                    .write_at(start + set.offset as u64, &vec![0; whole.len() - set.offset])
                    .unwrap();
                let (damaged, now) = read(&device);
                assert!(damaged.others.is_empty(), "{told}: {:?}", damaged.others);
                if damaged.lost.is_empty() {
                    assert_eq!(dirty(&now), dirty(&truth), "{told}");
                    assert!(now.iter().all(|(sector, it)| truth.get(sector) == Some(it)), "{told}");
                } else {
                    assert_eq!(damaged.lost, [*place], "{told}");
                    found += 1;
                }
                if !damaged.lost.is_empty() && number % 8 == leaf.sets.len() % 8 {
                    let copy = device.snapshot();
                    let options = ReadOptions::default();
                    let plan = repair::plan(&copy, &[], &options, &mut |_| {}).unwrap();
                    let reasons = &plan.anew.as_ref().expect("new metadata").reasons;
                    if reasons.iter().all(|reason| reason.class() == Class::Certain) {
                        certain += 1;
                        repair::run(&plan, &BTreeSet::new(), &copy, &[], &options, 3).unwrap();
                        let (after, now) = read(&copy);
                        assert!(after.lost.is_empty() && after.others.is_empty(), "{told}");
                        assert_eq!(dirty(&now), dirty(&truth), "{told}");
                        assert!(
                            now.iter().all(|(sector, it)| truth.get(sector) == Some(it)),
                            "{told}"
                        );
                    }
                }
                device.write_at(start, &whole).unwrap();
            }
        }
    }
    println!("{cuts} cuts, {found} found, {certain} mended for certain");
    assert!(found > cuts / 2 && certain > 0, "{found} of {cuts}, {certain}");
}
