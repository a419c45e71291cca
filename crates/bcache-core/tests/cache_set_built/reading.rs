//! What a reading gives, whoever reads and however much of the set there is.

use std::ops::ControlFlow;

use bcache_core::cache_set::btree::{ReadNode, WalkHandler, walk};
use bcache_core::cache_set::testkit::{SetBuilder, backing_volume};
use bcache_core::cache_set::{
    CacheDevice, CacheSet, KeySource, KeyState, NoVisitor, OpenError, Problem, ReadError,
    ReadOptions, TRUNCATED_NBUCKETS_MAX, Visitor, WalkOptions,
};
use bcache_core::device::ReadDevice;
use bcache_core::device::testkit::{MemoryDevice, TraceDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::prio_set::BucketDisk;
use bcache_core::ops::check::{Code, Registration};
use bcache_core::units::{Gen, Prio, Sectors};
use proptest::prelude::*;

use crate::damages::DAMAGES;
use crate::sample::{DATA_BUCKETS, EXTENT, Sample, report};

#[test]
fn every_key_is_seen_once_and_in_order() {
    #[derive(Default)]
    struct Keys(Vec<Bkey>, usize);
    impl Visitor for Keys {
        fn key(&mut self, origin: KeySource, key: &Bkey, state: KeyState) {
            assert_eq!(state, KeyState::Valid, "{key:?}");
            match origin {
                KeySource::Btree { level: 0, .. } => self.0.push(*key),
                KeySource::Journal { .. } => self.1 += 1,
                _ => {}
            }
        }
    }
    let sample = Sample::new();
    let mut keys = Keys::default();
    let cache = CacheDevice::open(&sample.device).unwrap();
    let set = CacheSet::read(cache, &ReadOptions::default(), &mut keys).unwrap();
    assert_eq!(keys.0.len() as u64, DATA_BUCKETS * 2);
    assert!(keys.0.windows(2).all(|w| w[0].pos() < w[1].pos()));
    // Entry 40 is before last_seq.
    assert_eq!(keys.1, 3);
    let volume = set.volumes[&0];
    assert_eq!(volume.cached_sectors, Sectors((DATA_BUCKETS + 3) * EXTENT));
    assert_eq!(volume.dirty_sectors, Sectors(DATA_BUCKETS / 5 * EXTENT));
}

/// What is there of an image is read, and what is not is told.
#[test]
fn a_device_that_is_cut_short_is_read_as_far_as_it_goes() {
    let sample = Sample::new();
    let first_node = sample.built.geometry.nbuckets() - sample.built.nodes;
    let cut = |sectors: u64| {
        sample.device.clone().with_info(|info| {
            info.size_bytes = sectors * 512;
            info.disk_size = Sectors(sectors);
        })
    };
    // Without the btree.
    let report = report(&cut(first_node * 16));
    let codes: Vec<_> = report.counts.keys().collect();
    assert_eq!(codes, [&Code::SuperblockCutOff]);
    assert!(report.unread && report.incomplete && !report.data_at_risk);
    assert!(matches!(report.registration, Registration::Refused { code, .. }
        if code == Code::SuperblockCutOff));
    let device = cut(first_node * 16);
    let set = CacheSet::read(
        CacheDevice::open(&device).unwrap(),
        &ReadOptions::default(),
        &mut NoVisitor,
    );
    assert_eq!(set.unwrap().journal.replay_range(), Some((41, 43)));
    // Without all but the superblock.
    let report = self::report(&cut(16));
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Code::SuperblockCutOff]);
    assert!(report.unread && report.incomplete);
}

/// A superblock's word alone must not make us take any memory.
#[test]
fn a_small_device_is_not_believed_to_have_any_number_of_buckets() {
    let sample = Sample::new();
    for (nbuckets, opens) in
        [(TRUNCATED_NBUCKETS_MAX, true), (TRUNCATED_NBUCKETS_MAX + 1, false), (1 << 40, false)]
    {
        let sb = SetBuilder { nbuckets, ..sample.builder.clone() }.superblock();
        sample.edit_superblock(|old| *old = sb);
        let opened = CacheDevice::open(&sample.device);
        assert_eq!(opened.is_ok(), opens, "{nbuckets} buckets");
        if let Err(error) = opened {
            assert!(matches!(error, OpenError::TooSmall { .. }), "{error}");
            let report = sample.check();
            assert!(report.unread && report.incomplete, "it could not be opened");
        }
    }
}

/// Breaks after so many nodes.
struct FirstNodes(u64);

impl WalkHandler for FirstNodes {
    fn node(&mut self, _key: &Bkey, _level: u16, _node: ReadNode<'_>) -> ControlFlow<()> {
        self.0 -= 1;
        if self.0 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn follow(&mut self, _key: &Bkey, _child_level: u16) -> bool {
        true
    }
}

#[test]
fn who_has_enough_ends_the_reading() {
    let sample = Sample::new();
    let device = TraceDevice::new(sample.device.clone());
    let cache = CacheDevice::open(&device).unwrap();
    let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
    let options = WalkOptions { threads: 2, read_ahead_bytes: 1 };
    let reads = |nodes: u64| {
        device.clear();
        walk(&set.cache, &set.root, set.btree.depth, &options, &mut FirstNodes(nodes));
        device.events().len() as u64
    };
    assert_eq!(reads(u64::MAX), sample.built.nodes);
    assert_eq!(reads(1), 1, "the root is enough");
    let levels = u64::from(set.btree.depth) + 1;
    // Each level has at most four nodes under way.
    assert!(reads(levels) <= 4 * levels, "{}", reads(levels));
    assert!(4 * levels < sample.built.nodes / 2, "the sample is too small to tell");

    let lookup = |enough: usize| {
        device.clear();
        let mut found = 0;
        set.view()
            .lookup(0, 0, 1 << 30, &mut |_| {
                found += 1;
                if found == enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        (found, device.events().len() as u64)
    };
    assert_eq!(lookup(1), (1, levels));
    assert!(lookup(usize::MAX).1 > 2 * levels);
}

#[test]
fn a_sound_sample_reads_the_same_with_any_number_of_threads() {
    let sample = Sample::new();
    let read = |threads| {
        let mut options = ReadOptions::default();
        options.walk.threads = threads;
        let cache = CacheDevice::open(&sample.device).unwrap();
        CacheSet::read(cache, &options, &mut NoVisitor).unwrap()
    };
    let (one, many) = (read(1), read(8));
    assert_eq!(one.table, many.table);
    assert_eq!(one.volumes, many.volumes);
}

/// Remembers all problems, and wants keys or not.
struct Problems {
    wants_keys: bool,
    problems: Vec<String>,
}

impl Visitor for Problems {
    fn wants_keys(&self) -> bool {
        self.wants_keys
    }

    fn problem(&mut self, problem: Problem) {
        self.problems.push(format!("{problem:?}"));
    }
}

/// What a reading of `device` gives to a visitor that wants keys or does not; the second marks usual
/// keys the quick way.
fn read_for(device: &dyn ReadDevice, wants_keys: bool) -> (Vec<String>, Option<String>) {
    let mut visitor = Problems { wants_keys, problems: Vec::new() };
    let set = CacheDevice::open(device)
        .map_err(ReadError::from)
        .and_then(|cache| CacheSet::read(cache, &ReadOptions::default(), &mut visitor));
    let set = set.ok().map(|set| format!("{:?} {:?} {:?}", set.table, set.volumes, set.btree));
    (visitor.problems, set)
}

#[test]
fn usual_and_damaged_sets_read_the_same_whether_or_not_keys_are_wanted() {
    let sample = Sample::new();
    let before = sample.device.snapshot();
    assert_eq!(read_for(&sample.device, false), read_for(&sample.device, true));
    for (name, damage, ..) in DAMAGES {
        damage(&sample);
        assert_eq!(read_for(&sample.device, false), read_for(&sample.device, true), "{name}");
        sample.device.restore(&before);
    }
}

proptest! {
    #[test]
    fn the_quick_way_marks_as_the_general_one(
        keys in prop::collection::vec(
            (0u64..4, 1u64..9, 0u64..40, -3i8..4, prop::sample::select(vec![0u8, 0, 0, 0, 1, 2, 3]),
             any::<bool>()),
            0..300,
        ),
        replayed in prop::collection::vec((0u32..3, 8u64..1500, 0u64..40, any::<bool>()), 0..12),
        volumes in 1u128..4,
    ) {
        let mut builder = SetBuilder {
            nbuckets: 400,
            bucket_size: Sectors(16),
            block_size: 1,
            sets_per_node: 2,
            fill_percent: 20,
            volumes: (1..=volumes).map(backing_volume).collect(),
            bucket_disk: |bucket| BucketDisk {
                // Some prios are those of the btree, as freed nodes leave them.
                prio: Prio(if bucket % 7 == 0 { Prio::BTREE.0 } else { 100 }),
                bucket_gen: Gen(1),
            },
            ..SetBuilder::default()
        };
        let first = builder.data_buckets(0).start;
        let ptr = |bucket: u64, age: i8, dev| {
            let ptr_gen = Gen(1u8.wrapping_add_signed(age));
            Ptr::new(ptr_gen, Sectors((first + bucket) * 16), dev)
        };
        builder.journal = vec![
            replayed
                .iter()
                .map(|&(inode, end, bucket, dirty)| {
                    Bkey::new(inode, end, 8).with_ptrs(&[ptr(bucket, 0, 0)]).with_dirty(dirty)
                })
                .collect(),
        ];
        let per_volume = keys.len().div_ceil(3).max(1);
        let mut at = 0;
        let keys: Vec<Bkey> = keys
            .into_iter()
            .enumerate()
            .map(|(n, (gap, size, bucket, age, kind, dirty))| {
                if n % per_volume == 0 {
                    at = 0;
                }
                at += gap + size;
                let inode = u32::try_from(n / per_volume).unwrap();
                let key = Bkey::new(inode, at, u16::try_from(size).unwrap()).with_dirty(dirty);
                match kind {
                    0 => key.with_ptrs(&[ptr(bucket, 0, 0)]),
                    1 => key.with_ptrs(&[ptr(bucket, age, 0)]),
                    2 => key.with_ptrs(&[ptr(bucket, age, 4095)]),
                    _ => key.with_dirty(false),
                }
            })
            .collect();
        let device = MemoryDevice::new(400 * 16 * 512);
        builder.write(&device, keys.into_iter()).unwrap();
        prop_assert_eq!(read_for(&device, false), read_for(&device, true));
    }
}
