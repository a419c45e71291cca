//! Repair with new metadata, on sets made for it. Whatever the damage, what could be read for certain before
//! is there and the same afterwards, also when the power fails in between.

mod repair_support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bcache_core::cache_set::testkit::SetBuilder;
use bcache_core::cache_set::volume::{Source, Stretch};
use bcache_core::cache_set::{
    Below, CacheDevice, CacheSet, Found, KeyState, LoadedNode, NewestEntry, NoVisitor, NodePlace,
    Overlay, ReadOptions, Visitor, VolumeReader, WalkOptions,
};
use bcache_core::device::testkit::{MemoryDevice, SimDevice};
use bcache_core::device::{AlignedBuf, BlockDevice, ReadDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::bset;
use bcache_core::layout::jset::{JsetParams, encode};
use bcache_core::ops::repair::{Class, Code, RepairPlan, plan, run};
use bcache_core::units::{BucketIndex, Gen, Sectors};
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

/// What a kernel does to one leaf: writes, which go to the journal first, and what does not: fills, data that
/// was written back, and data that the garbage collector moved. Each write of data has a number of its own,
/// which is its sector on the cache; `content` tells what is there.
struct Kernel {
    rng: u64,
    /// All keys, in the order of their insertion.
    inserted: Vec<Bkey>,
    /// Keys by entry, the first is entry 1.
    journal: Vec<Vec<Bkey>>,
    /// The `last_seq` of each entry.
    last_seqs: Vec<u64>,
    /// Sets of the leaf, and the keys that the next one gets.
    sets: Vec<Vec<Bkey>>,
    pending: Vec<Bkey>,
    /// The first entry with a key that is in no set.
    pinned: Option<u64>,
    /// What sectors of the cache and of the backing device hold.
    content: BTreeMap<u64, u64>,
    below: BTreeMap<u64, u64>,
    next: u64,
}

const OF_LEAF: u64 = 96;

impl Kernel {
    fn random(&mut self, below: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 20) % below
    }

    /// A key of new data; where its bucket is reused in the end, its gen is an old one.
    fn place(&mut self, start: u64, size: u64, dirty: bool, reused: bool) -> Bkey {
        let sector = self.next;
        self.next += 64;
        let ptr = Ptr::new(Gen(u8::from(!reused)), Sectors(sector), 0);
        let size = u16::try_from(size).unwrap();
        Bkey::new(0, start + u64::from(size), size).with_ptrs(&[ptr]).with_dirty(dirty)
    }

    fn visible(&self) -> Vec<Bkey> {
        Overlay::new(self.inserted.iter().map(|key| (0, *key))).extents().to_vec()
    }

    fn insert(&mut self, key: Bkey, journalled: bool) {
        self.inserted.push(key);
        self.pending.push(key);
        if journalled {
            let seq = self.journal.len() as u64;
            self.journal.last_mut().unwrap().push(key);
            self.pinned.get_or_insert(seq);
        }
    }

    fn sectors(key: &Bkey) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (start, sector) = (key.start(), key.ptrs()[0].offset().0);
        (0..key.size().0).map(move |at| (start + at, sector + at))
    }

    /// Writes back one dirty extent, or moves one.
    fn tidy(&mut self, of: &Bkey) {
        if self.random(2) == 0 {
            for (at, sector) in Self::sectors(of) {
                self.below.insert(at, self.content[&sector]);
            }
            self.insert(of.with_dirty(false), false);
        } else {
            let moved = self.place(of.start(), of.size().0, true, false);
            for ((_, from), (_, to)) in Self::sectors(of).zip(Self::sectors(&moved)) {
                self.content.insert(to, self.content[&from]);
            }
            self.insert(moved, false);
        }
    }

    fn step(&mut self) {
        let (start, size) = (8 + self.random(OF_LEAF) / 4 * 4, 4 * (1 + self.random(4)));
        match self.random(8) {
            kind @ 0..4 => {
                let reused = self.random(24) == 0;
                let key = self.place(start, size, kind > 0, reused && kind > 0);
                for (at, sector) in Self::sectors(&key) {
                    self.content.insert(sector, sector);
                    if !key.dirty() {
                        self.below.insert(at, sector);
                    }
                }
                self.insert(key, true);
            }
            4 => {
                self.next += 64;
                self.below.extend((start..start + size).map(|at| (at, self.next + at)));
                self.insert(Bkey::new(0, start + size, u16::try_from(size).unwrap()), true);
            }
            5 => {
                let shown = self.visible();
                let shown = |at| {
                    shown
                        .iter()
                        .any(|it| !it.ptrs().is_empty() && it.start() <= at && at < it.offset())
                };
                if !(start..start + size).any(shown) {
                    let key = self.place(start, size, false, false);
                    for (at, sector) in Self::sectors(&key) {
                        let below = self.below.get(&at).copied().unwrap_or_default();
                        self.content.insert(sector, below);
                    }
                    self.insert(key, false);
                }
            }
            _ => {
                let dirty: Vec<Bkey> = self.visible().into_iter().filter(Bkey::dirty).collect();
                if !dirty.is_empty() {
                    let index = usize::try_from(self.random(dirty.len() as u64)).unwrap();
                    self.tidy(&dirty[index]);
                }
            }
        }
        if self.random(4) == 0 {
            self.next_entry();
        }
        if self.random(6) == 0 {
            self.write_node();
        }
    }

    fn next_entry(&mut self) {
        let seq = self.journal.len() as u64;
        // As it is when the entry is closed.
        self.last_seqs.push(self.pinned.unwrap_or(seq));
        self.journal.push(Vec::new());
    }

    fn write_node(&mut self) {
        let keys = Overlay::new(self.pending.drain(..).map(|key| (0, key))).extents().to_vec();
        if !keys.is_empty() {
            self.sets.push(keys);
        }
        self.pinned = None;
    }

    /// What the volume holds where these are its extents.
    fn volume(&self, extents: &[Bkey]) -> BTreeMap<u64, u64> {
        let mut volume = self.below.clone();
        for key in extents.iter().filter(|key| key.dirty()) {
            assert_eq!(key.ptrs()[0].ptr_gen(), Gen(1));
            volume.extend(Self::sectors(key).map(|(at, sector)| (at, self.content[&sector])));
        }
        volume
    }
}

/// A leaf that a kernel wrote step by step, damaged in two places: of what was lost at the second, perhaps
/// without a trace, the journal has what is newer than the sets between the two. Where the repair is called
/// certain, the volume holds what it held.
#[test]
fn two_damages_in_a_leaf_are_never_certain_and_wrong() {
    let (mut certain, mut told) = (0, 0);
    for seed in 1..=240u64 {
        let mut kernel = Kernel {
            rng: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            inserted: Vec::new(),
            journal: vec![Vec::new()],
            last_seqs: Vec::new(),
            sets: Vec::new(),
            pending: Vec::new(),
            pinned: None,
            content: BTreeMap::new(),
            below: BTreeMap::new(),
            next: 64 * 100,
        };
        for _ in 0..60 {
            kernel.step();
        }
        kernel.write_node();
        kernel.next_entry();
        // Only what is clean, or was moved, has left a bucket that is reused.
        for key in kernel.visible() {
            if key.dirty() && key.ptrs()[0].ptr_gen() == Gen(0) {
                kernel.tidy(&key);
            }
        }
        kernel.write_node();
        // Entries to replay.
        for _ in 0..kernel.random(3) {
            let start = 8 + kernel.random(OF_LEAF);
            let key = kernel.place(start, 4, true, false);
            kernel.content.extend(Kernel::sectors(&key).map(|(_, sector)| (sector, sector)));
            kernel.insert(key, true);
            kernel.next_entry();
        }
        kernel.next_entry();
        let (count, last_seq) = (kernel.last_seqs.len(), *kernel.last_seqs.last().unwrap());
        let builder = SetBuilder {
            block_size: 1,
            njournal: 64,
            entries_per_bucket: 1,
            last_seq,
            journal: vec![Vec::new(); count],
            ..SetBuilder::default()
        };
        let device = MemoryDevice::new(1024 * 64 * 512);
        let built = builder.write(&device, kernel.sets[0].iter().copied()).unwrap();
        let padded = |bytes: &[u8]| AlignedBuf::padded(bytes, bytes.len().next_multiple_of(512));
        let journal: Vec<u64> = built.superblock.journal_buckets().collect();
        let opened = CacheDevice::open(&device).unwrap();
        let newest = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
        let newest = newest.journal.newest().unwrap().jset.clone();
        for (index, (keys, last_seq)) in kernel.journal.iter().zip(&kernel.last_seqs).enumerate() {
            let seq = index as u64 + 1;
            let params = JsetParams { seq, last_seq: *last_seq, ..JsetParams::of(&newest, keys) };
            let entry = encode(&params, built.magic).unwrap();
            let bucket = BucketIndex(journal[(index + 1) % journal.len()]);
            let at = built.geometry.bucket_to_sector(bucket).bytes();
            device.write_at(at, &padded(entry.as_bytes())).unwrap();
        }
        let ptr = built.root.1.ptrs()[0];
        let mut blocks = Vec::new();
        for keys in &kernel.sets {
            let set = padded(&bset::encode(built.magic, ptr, 99, keys));
            device.write_at(ptr.offset().bytes() + 512 * blocks.len() as u64, &set).unwrap();
            blocks.extend(set.chunks(512).map(<[u8]>::to_vec));
        }
        let extents = |device: &MemoryDevice| {
            let opened = CacheDevice::open(device).unwrap();
            let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
            let mut found = Vec::new();
            set.for_each_extent(&WalkOptions::default(), &mut |it| {
                match it {
                    Found::Extent { key, state: KeyState::Valid, .. } => found.push(*key),
                    Found::Extent { key, .. } => assert!(!key.dirty()),
                    other => panic!("{other:?}"),
                }
                ControlFlow::Continue(())
            });
            found
        };
        let truth = kernel.volume(&extents(&device));
        let first = kernel.sets[0].len() * 24 / 512 + 1;
        for _ in 0..2 {
            let block = first as u64 + kernel.random((blocks.len() - first).max(1) as u64);
            let len = 512 * (1 + kernel.random(3));
            device
                .write_at(
                    ptr.offset().bytes() + 512 * block,
                    &vec![0; usize::try_from(len).unwrap()],
                )
                .unwrap();
        }
        let plan = planned(&device);
        let Some(anew) = &plan.anew else { continue };
        told += 1;
        if anew.class() == Class::Certain {
            certain += 1;
            run(&plan, &BTreeSet::new(), &device, &[], &ReadOptions::default(), 1).unwrap();
            assert!(kernel.volume(&extents(&device)) == truth, "seed {seed}");
        }
    }
    assert!(certain > 50, "{certain} of {told} are certain");
}
