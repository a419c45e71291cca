//! Exporting volumes of sound and damaged sets: every sector that can be known is there and right,
//! and every other one is said to be missing.

use std::collections::BTreeMap;
use std::io;
use std::ops::{ControlFlow, Range};

use bcache_core::cache_set::testkit::{self, BuiltSet, SetBuilder, backing_volume};
use bcache_core::cache_set::{
    Below, CacheDevice, CacheSet, LoadedNode, NewestEntry, NoVisitor, ReadOptions, VolumeReader,
};
use bcache_core::device::testkit::{Fault, FaultDevice, Lasting, MemoryDevice, Trigger, sector_of};
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::layout::bkey::{Bkey, Pos, Ptr};
use bcache_core::layout::prio_set::{BucketDisk, PrioSet, encode_into};
use bcache_core::ops::export::{ExportOptions, ExportReport, Sink, Status, export};
use bcache_core::units::{BucketIndex, Gen, Sectors};
use proptest::prelude::*;

const EXTENT: u64 = 8;
const EXTENTS: u64 = 200;
const DATA_OFFSET: u64 = 16;
const SIZE: u64 = 5200;

/// A cache with a backing device's volume in slot 0 and a flash-only one in slot 1, a btree of three
/// levels, several prio sets, and journal entries 40 to 43 of which 41 to 43 are replayed.
struct Sample {
    cache: MemoryDevice,
    backing: MemoryDevice,
    built: BuiltSet,
    builder: SetBuilder,
    tree: Vec<Bkey>,
}

impl Sample {
    fn new(entries_per_bucket: usize) -> Self {
        let mut flash = backing_volume(2);
        flash.flags = 1;
        flash.sectors = Sectors(SIZE);
        let mut builder = SetBuilder {
            nbuckets: 3000,
            bucket_size: Sectors(16),
            sets_per_node: 2,
            block_size: 1,
            fill_percent: 5,
            first_seq: 40,
            last_seq: 41,
            entries_per_bucket,
            njournal: 16,
            volumes: vec![backing_volume(1), flash],
            ..SetBuilder::default()
        };
        let first_data = builder.data_buckets(0).start;
        // Spread over the device, so that they are in all prio sets.
        let bucket = |n: u64| first_data + n * 6;
        let key = |builder: &SetBuilder, inode, end, size, n: u64, within: u64| {
            let bucket = bucket(n);
            let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
            let ptr = Ptr::new(ptr_gen, Sectors(bucket * 16 + within), 0);
            Bkey::new(inode, end, size).with_ptrs(&[ptr])
        };
        let tree: Vec<Bkey> = (0..EXTENTS * 2)
            .map(|n| {
                let inode = u32::from(n >= EXTENTS);
                let end = 100 + (n % EXTENTS) * 3 * EXTENT;
                let dirty = inode == 1 || n % 3 == 0;
                key(&builder, inode, end, 8, n / 2, n % 2 * EXTENT).with_dirty(dirty)
            })
            .collect();
        builder.journal = (0..4u64)
            .map(|entry| {
                if entry == 0 {
                    // It is not replayed: its keys are in the btree.
                    return [0, EXTENTS].map(|n| tree[usize::try_from(n).unwrap()]).to_vec();
                }
                // Over the middle of some extents and the hole behind them; and a hole.
                let end = 104 + entry * 120;
                let written = key(&builder, 0, end, 12, 250 + entry, 0).with_dirty(true);
                let flash = key(&builder, 1, end, 4, 250 + entry, 12).with_dirty(true);
                vec![written, flash, Bkey::new(0, end + 48, 3)]
            })
            .collect();
        let cache = MemoryDevice::new(3000 * 16 * 512);
        let built = builder.write(&cache, tree.iter().copied()).unwrap();
        assert!(built.root.0 >= 2 && built.prio_buckets.len() > 1);
        let backing = MemoryDevice::new((SIZE + DATA_OFFSET) * 512);
        for sector in 0..SIZE + DATA_OFFSET {
            backing.write_at(sector * 512, &sector_of(2, sector)).unwrap();
        }
        let sample = Self { cache, backing, built, builder, tree };
        for key in sample.tree.iter().chain(sample.builder.journal.iter().flatten()) {
            for (at, sector) in placed(key) {
                sample.cache.write_at(sector * 512, &sector_of(1, sector)).unwrap();
                if !key.dirty() {
                    sample.backing.write_at(at * 512, &sector_of(1, sector)).unwrap();
                }
            }
        }
        sample
    }

    /// Sectors of keys that the replayed entries up to `last` tell of, and where they are.
    fn overlay(&self, inode: u32, entries: Range<usize>) -> BTreeMap<u64, Option<u64>> {
        let mut map = BTreeMap::new();
        for key in self.builder.journal[entries].iter().flatten() {
            if key.inode() != inode {
                continue;
            }
            for sector in key.start()..key.offset() {
                map.insert(sector, None);
            }
            map.extend(placed(key).map(|(at, sector)| (at, Some(sector))));
        }
        map
    }

    /// What the volume holds once the entries in `replayed` (indices) are replayed.
    fn truth(&self, inode: u32, replayed: Range<usize>) -> Vec<[u8; 512]> {
        let data_offset = if inode == 0 { DATA_OFFSET } else { 0 };
        let mut map: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        for key in self.tree.iter().filter(|key| key.inode() == inode) {
            map.extend(placed(key).map(|(at, sector)| (at, Some(sector))));
        }
        map.extend(self.overlay(inode, replayed));
        let below = |at: u64| {
            let mut bytes = [0; 512];
            if inode == 0 {
                self.backing.read_at(at * 512, &mut bytes).unwrap();
            }
            bytes
        };
        (0..SIZE)
            .map(|sector| match map.get(&(sector + data_offset)) {
                Some(Some(sector)) => sector_of(1, *sector),
                _ => below(sector + data_offset),
            })
            .collect()
    }

    fn byte_of(&self, bucket: BucketIndex) -> u64 {
        self.built.geometry.bucket_to_sector(bucket).bytes()
    }

    fn noise(&self, byte: u64, len: usize) {
        let noise: Vec<u8> = (0..len).map(|n| u8::try_from(n * 37 % 251).unwrap() | 1).collect();
        self.cache.write_at(byte, &noise).unwrap();
    }

    fn flip(&self, byte: u64) {
        let mut sector = [0; 512];
        self.cache.read_at(byte / 512 * 512, &mut sector).unwrap();
        sector[usize::try_from(byte % 512).unwrap()] ^= 4;
        self.cache.write_at(byte / 512 * 512, &sector).unwrap();
    }

    /// All nodes of a level with where they begin.
    fn nodes(&self, level: u16) -> Vec<(Pos, LoadedNode)> {
        testkit::nodes(&self.cache, level).unwrap()
    }

    /// Sectors of keys that `from` to `end` covers of a volume, without what the journal tells of.
    fn covered(&self, inode: u32, from: Pos, end: Pos) -> impl Fn(u64) -> bool + use<> {
        let overlay = self.overlay(inode, 1..4);
        let start = if from.inode < inode { 0 } else { from.offset };
        let end = if end.inode > inode { u64::MAX } else { end.offset };
        move |at| (start..end).contains(&at) && !overlay.contains_key(&at)
    }

    fn entry_byte(&self, seq: u64) -> u64 {
        let cache = CacheDevice::open(&self.cache).unwrap();
        let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
        let place = set.journal.headers().find(|header| header.seq == seq).unwrap().place;
        self.byte_of(place.bucket) + place.offset
    }
}

/// Sectors of keys and of the cache, one by one.
fn placed(key: &Bkey) -> impl Iterator<Item = (u64, u64)> + use<> {
    let first = key.ptrs().first().map(|ptr| ptr.offset().0);
    let start = key.start();
    (start..key.offset()).filter_map(move |at| Some((at, first? + at - start)))
}

/// Keeps everything.
struct Kept {
    data: Vec<Option<[u8; 512]>>,
    status: Vec<Option<Status>>,
    skipped: Vec<bool>,
}

impl Sink for Kept {
    fn data(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let first = usize::try_from(offset / 512).unwrap();
        for (index, sector) in data.chunks_exact(512).enumerate() {
            assert!(self.data[first + index].is_none() && !self.skipped[first + index]);
            self.data[first + index] = Some(sector.try_into().unwrap());
        }
        Ok(())
    }

    fn skip(&mut self, offset: u64, len: u64) -> io::Result<()> {
        for sector in offset / 512..(offset + len) / 512 {
            let sector = usize::try_from(sector).unwrap();
            assert!(self.data[sector].is_none() && !self.skipped[sector]);
            self.skipped[sector] = true;
        }
        Ok(())
    }

    fn status(&mut self, start: u64, end: u64, status: Status) -> io::Result<()> {
        for sector in start..end {
            let before = self.status[usize::try_from(sector).unwrap()].replace(status);
            assert_eq!(before, None, "sector {sector} told twice");
        }
        Ok(())
    }

    fn progress(&mut self, _done: Sectors) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

struct Exported {
    kept: Kept,
    report: ExportReport,
}

impl Exported {
    fn status(&self, sector: u64) -> Status {
        self.kept.status[usize::try_from(sector).unwrap()].unwrap()
    }

    /// The sector, where it was taken.
    fn taken(&self, sector: usize) -> Option<[u8; 512]> {
        (self.kept.status[sector] == Some(Status::Taken))
            .then(|| self.kept.data[sector].unwrap_or([0; 512]))
    }
}

fn export_of(
    cache: &dyn ReadDevice,
    inode: u32,
    below: Below<'_>,
    options: ExportOptions,
) -> Option<Exported> {
    let read = ReadOptions { newest: NewestEntry::Greatest, ..ReadOptions::default() };
    let set = CacheSet::read(CacheDevice::open(cache).ok()?, &read, &mut NoVisitor).ok()?;
    let size = usize::try_from(SIZE).unwrap();
    let mut kept =
        Kept { data: vec![None; size], status: vec![None; size], skipped: vec![false; size] };
    let mut reader = VolumeReader::new(&set, inode, below);
    let report = export(&mut reader, Sectors(SIZE), &options, &mut kept).unwrap();
    for sector in 0..size {
        assert!(kept.status[sector].is_some(), "sector {sector} not told of");
        assert!(kept.data[sector].is_some() != kept.skipped[sector], "sector {sector}");
    }
    let counted = report.dirty_sectors
        + report.clean_sectors
        + report.backing_sectors
        + report.hole_sectors
        + report.not_asked_sectors
        + report.likely_left_sectors
        + report.lost_sectors;
    assert_eq!(counted, SIZE, "{report:?}");
    Some(Exported { kept, report })
}

fn below(sample: &Sample, inode: u32) -> Below<'_> {
    if inode == 0 { Below::Backing(&sample.backing, Sectors(DATA_OFFSET)) } else { Below::Nothing }
}

/// Exports both volumes with and without what is likely, and holds them against the truth and the
/// status that each sector of keys must have. `wrong` are sectors of keys where likely data is wrong.
fn expect(
    sample: &Sample,
    cache: &dyn ReadDevice,
    status: &dyn Fn(u32, u64) -> Status,
    wrong: &dyn Fn(u32, u64) -> bool,
) {
    for inode in [0, 1] {
        let truth = sample.truth(inode, 1..4);
        let data_offset = if inode == 0 { DATA_OFFSET } else { 0 };
        for likely in [false, true] {
            let options = ExportOptions { likely, dirty_only: false };
            let exported = export_of(cache, inode, below(sample, inode), options).unwrap();
            for sector in 0..SIZE {
                let at = sector + data_offset;
                let mut expected = status(inode, at);
                if likely && expected == Status::Doubtful {
                    expected = Status::Taken;
                }
                let found = exported.status(sector);
                assert_eq!(found, expected, "volume {inode}, key sector {at}, likely {likely}");
                let index = usize::try_from(sector).unwrap();
                if let Some(data) = exported.taken(index) {
                    let right = data == truth[index];
                    assert_eq!(right, !(likely && wrong(inode, at)), "volume {inode}, sector {at}");
                }
            }
        }
    }
}

#[test]
fn a_sound_set_is_exported_whole() {
    let sample = Sample::new(1);
    expect(&sample, &sample.cache, &|_, _| Status::Taken, &|_, _| false);
    let exported =
        export_of(&sample.cache, 0, below(&sample, 0), ExportOptions::default()).unwrap();
    assert!(exported.report.is_complete());
    assert!(exported.report.clean_sectors > 0 && exported.report.backing_sectors > 0);
    // The control: the backing device alone is another volume.
    let alone = sample.truth(0, 1..4);
    let differs = (0..SIZE).any(|sector| {
        let mut bytes = [0; 512];
        sample.backing.read_at((sector + DATA_OFFSET) * 512, &mut bytes).unwrap();
        bytes != alone[usize::try_from(sector).unwrap()]
    });
    assert!(differs);
}

#[test]
fn a_lost_node_takes_what_it_covers_and_no_more() {
    for level in 0..=2 {
        let count = Sample::new(1).nodes(level).len();
        for index in [0, count / 2, count - 1] {
            let sample = Sample::new(1);
            let nodes = sample.nodes(level);
            let (from, node) = &nodes[index];
            let end = node.key.pos();
            sample.noise(node.sector().bytes(), 512);
            let covered = [0, 1].map(|inode| {
                let covered = sample.covered(inode, *from, end);
                let there = from.inode <= inode && inode <= end.inode;
                move |at: u64| there && covered(at)
            });
            let status = |inode: u32, at: u64| {
                let lost = covered[usize::try_from(inode).unwrap()](at);
                if lost { Status::Lost } else { Status::Taken }
            };
            expect(&sample, &sample.cache, &status, &|_, _| false);
        }
    }
}

#[test]
fn dirty_extents_of_a_damaged_leafs_sound_sets_are_likely() {
    let sample = Sample::new(1);
    let nodes = sample.nodes(0);
    let (from, node) =
        nodes.iter().find(|(from, node)| from.inode == 0 && node.sets.len() == 2).unwrap();
    let end = node.key.pos();
    assert_eq!(end.inode, 0);
    // A byte of the second set's keys.
    sample.flip(node.sector().bytes() + node.sets[1].offset as u64 + 40);
    let covered = sample.covered(0, *from, end);
    // The builder deals the keys out to the sets in turn.
    let survivors: Vec<Bkey> = node.keys.iter().step_by(2).filter(Bkey::dirty).collect();
    assert!(!survivors.is_empty());
    let status = |inode: u32, at: u64| {
        let survived = survivors.iter().any(|key| (key.start()..key.offset()).contains(&at));
        match (inode == 0 && covered(at), survived) {
            (false, _) => Status::Taken,
            (true, true) => Status::Doubtful,
            (true, false) => Status::Lost,
        }
    };
    expect(&sample, &sample.cache, &status, &|_, _| false);
}

#[test]
fn a_lost_prio_set_leaves_clean_data_certain_and_dirty_data_likely() {
    let count = Sample::new(1).built.prio_buckets.len();
    for index in 0..count {
        for whole in [true, false] {
            let sample = Sample::new(1);
            let byte = sample.byte_of(sample.built.prio_buckets[index]);
            if whole {
                sample.noise(byte, 512);
            } else {
                sample.flip(byte + 100);
            }
            let geometry = sample.built.geometry;
            let per_set = geometry.prios_per_bucket();
            // The chain breaks where a set is no set any more.
            let lost = |bucket: BucketIndex| {
                let set = usize::try_from(bucket.0 / per_set).unwrap();
                if whole { set >= index } else { set == index }
            };
            let mut doubtful = [0, 1].map(|_| Vec::<(u64, u64)>::new());
            for key in sample.tree.iter().filter(|key| key.dirty()) {
                if lost(key.ptrs()[0].bucket(&geometry)) {
                    doubtful[usize::try_from(key.inode()).unwrap()]
                        .push((key.start(), key.offset()));
                }
            }
            let overlays = [0, 1].map(|inode| sample.overlay(inode, 1..4));
            for level in 0..2 {
                for (from, node) in Sample::new(1).nodes(level) {
                    if !lost(node.key.ptrs()[0].bucket(&geometry)) {
                        continue;
                    }
                    let end = node.key.pos();
                    for inode in from.inode..=end.inode.min(1) {
                        let start = if from.inode == inode { from.offset } else { 0 };
                        let end = if end.inode == inode { end.offset } else { u64::MAX };
                        doubtful[usize::try_from(inode).unwrap()].push((start, end));
                    }
                }
            }
            // Of the journal: dirty keys into such buckets.
            let journal: Vec<Bkey> =
                sample.builder.journal[1..].iter().flatten().copied().collect();
            let status = |inode: u32, at: u64| {
                let number = usize::try_from(inode).unwrap();
                let doubt = if overlays[number].contains_key(&at) {
                    journal
                        .iter()
                        .rev()
                        .find(|key| {
                            key.inode() == inode && (key.start()..key.offset()).contains(&at)
                        })
                        .is_some_and(|key| key.dirty() && lost(key.ptrs()[0].bucket(&geometry)))
                } else {
                    doubtful[number].iter().any(|&(start, end)| (start..end).contains(&at))
                };
                if doubt { Status::Doubtful } else { Status::Taken }
            };
            expect(&sample, &sample.cache, &status, &|_, _| false);
        }
    }
}

#[test]
fn a_gap_in_the_journal_leaves_only_newer_entries_certain() {
    // The kernel loses the entries behind it, too.
    let sample = Sample::new(usize::MAX);
    sample.noise(sample.entry_byte(42), 512);
    let newer = [0, 1].map(|inode| sample.overlay(inode, 3..4));
    let lost = [0, 1].map(|inode| sample.overlay(inode, 2..3));
    let status = |inode: u32, at: u64| {
        let newer = newer[usize::try_from(inode).unwrap()].contains_key(&at);
        if newer { Status::Taken } else { Status::Doubtful }
    };
    let truths = [0, 1].map(|inode| sample.truth(inode, 1..4));
    // The lost entry's keys lie over other data.
    let wrong = |inode: u32, at: u64| {
        let number = usize::try_from(inode).unwrap();
        let sector = usize::try_from(at - if inode == 0 { DATA_OFFSET } else { 0 }).unwrap();
        lost[number].contains_key(&at)
            && !newer[number].contains_key(&at)
            && truths[number][sector] != without(&sample, inode, at)
    };
    expect(&sample, &sample.cache, &status, &wrong);
}

/// Where nothing is left of a journal bucket between the newest entries and the older ones, the two
/// may be of different states.
#[test]
fn entries_behind_a_bucket_that_holds_none_leave_nothing_certain() {
    let sample = Sample::new(1);
    sample.noise(sample.entry_byte(42), 512);
    for inode in [0, 1] {
        let options = ExportOptions::default();
        let exported = export_of(&sample.cache, inode, below(&sample, inode), options).unwrap();
        assert_eq!(exported.report.likely_left_sectors, SIZE);
    }
}

/// The sector of keys `at` with the entries 41 and 43 alone.
fn without(sample: &Sample, inode: u32, at: u64) -> [u8; 512] {
    let sector = usize::try_from(at - if inode == 0 { DATA_OFFSET } else { 0 }).unwrap();
    if sample.overlay(inode, 3..4).contains_key(&at) {
        return sample.truth(inode, 3..4)[sector];
    }
    sample.truth(inode, 1..2)[sector]
}

#[test]
fn a_torn_newest_entry_was_never_acknowledged() {
    let sample = Sample::new(usize::MAX);
    sample.flip(sample.entry_byte(43) + 250);
    for inode in [0, 1] {
        let truth = sample.truth(inode, 1..3);
        let exported =
            export_of(&sample.cache, inode, below(&sample, inode), ExportOptions::default());
        let exported = exported.unwrap();
        for (sector, truth) in truth.iter().enumerate() {
            assert_eq!(exported.taken(sector).as_ref(), Some(truth), "volume {inode}: {sector}");
        }
    }
}

#[test]
fn a_stale_dirty_extent_is_in_doubt() {
    let sample = Sample::new(1);
    let key = *sample.tree.iter().find(|key| key.dirty() && key.start() > 1000).unwrap();
    let geometry = sample.built.geometry;
    let bucket = key.ptrs()[0].bucket(&geometry);
    // Raise its gen in the prio set, as if the bucket had been reused.
    let per_set = geometry.prios_per_bucket();
    let place = sample.built.prio_buckets[usize::try_from(bucket.0 / per_set).unwrap()];
    let mut bytes = vec![0; usize::try_from(geometry.meta_bucket_bytes()).unwrap()];
    sample.cache.read_at(sample.byte_of(place), &mut bytes).unwrap();
    let old = PrioSet::parse(&bytes, sample.built.magic).unwrap();
    let (seq, next) = (old.seq(), old.next_bucket());
    let mut entries: Vec<BucketDisk> = old.entries().collect();
    let entry = &mut entries[usize::try_from(bucket.0 % per_set).unwrap()];
    entry.bucket_gen = Gen(entry.bucket_gen.0 + 1);
    encode_into(&mut bytes, sample.built.magic, seq, next, entries.into_iter());
    sample.cache.write_at(sample.byte_of(place), &bytes).unwrap();
    let stale: Vec<Bkey> = sample
        .tree
        .iter()
        .filter(|key| key.dirty() && key.ptrs()[0].bucket(&geometry) == bucket)
        .copied()
        .collect();
    let covers = |inode: u32, at: u64| {
        stale.iter().any(|key| key.inode() == inode && (key.start()..key.offset()).contains(&at))
    };
    let status =
        |inode: u32, at: u64| if covers(inode, at) { Status::Doubtful } else { Status::Taken };
    // Clean extents in that bucket are stale too, and the backing device has them.
    expect(&sample, &sample.cache, &status, &covers);
}

fn failing(device: &MemoryDevice, sector: u64) -> FaultDevice<MemoryDevice> {
    let trigger = Trigger::Overlaps { operation: None, offset: sector * 512, len: 512 };
    FaultDevice::new(device.snapshot()).with(Fault::new(trigger).lasting(Lasting::Always))
}

#[test]
fn clean_data_that_cannot_be_read_is_taken_from_the_backing_device() {
    let sample = Sample::new(1);
    let overlay = sample.overlay(0, 1..4);
    let find = |dirty: bool| {
        let wanted = |key: &&Bkey| {
            key.inode() == 0
                && key.dirty() == dirty
                && (key.start()..key.offset()).all(|at| !overlay.contains_key(&at))
        };
        *sample.tree.iter().find(wanted).unwrap()
    };
    let clean = find(false);
    let cache = failing(&sample.cache, clean.ptrs()[0].offset().0 + 3);
    expect(&sample, &cache, &|_, _| Status::Taken, &|_, _| false);
    // Of dirty data just the sector that fails is lost.
    let dirty = find(true);
    let cache = failing(&sample.cache, dirty.ptrs()[0].offset().0 + 3);
    let lost = dirty.start() + 3;
    let status = |inode: u32, at: u64| {
        if inode == 0 && at == lost { Status::Lost } else { Status::Taken }
    };
    expect(&sample, &cache, &status, &|_, _| false);
}

#[test]
fn a_failing_backing_device_loses_what_only_it_has() {
    let sample = Sample::new(1);
    let cached = sample.tree[1].start() + 2;
    for (sector, lost) in [(cached, 0), (SIZE - 1, 1)] {
        let backing = failing(&sample.backing, sector);
        let below = Below::Backing(&backing, Sectors(DATA_OFFSET));
        let exported = export_of(&sample.cache, 0, below, ExportOptions::default()).unwrap();
        assert_eq!(exported.report.lost_sectors, lost);
        if lost > 0 {
            assert_eq!(exported.status(sector - DATA_OFFSET), Status::Lost);
        }
    }
}

#[test]
fn dirty_data_over_the_backing_device_is_the_volume() {
    let sample = Sample::new(1);
    let options = ExportOptions { dirty_only: true, likely: false };
    let truth = sample.truth(0, 1..4);
    for below in [below(&sample, 0), Below::Missing(Sectors(DATA_OFFSET))] {
        let exported = export_of(&sample.cache, 0, below, options).unwrap();
        assert!(exported.report.is_complete(), "{:?}", exported.report);
        assert!(exported.report.dirty_sectors > 0 && exported.report.clean_sectors == 0);
        for (sector, truth) in truth.iter().enumerate() {
            let mut bytes = [0; 512];
            sample.backing.read_at((sector as u64 + DATA_OFFSET) * 512, &mut bytes).unwrap();
            assert_eq!(exported.taken(sector).unwrap_or(bytes), *truth, "sector {sector}");
        }
    }
}

#[test]
fn without_the_backing_device_what_it_has_is_lost() {
    let sample = Sample::new(1);
    let missing = Below::Missing(Sectors(DATA_OFFSET));
    let exported = export_of(&sample.cache, 0, missing, ExportOptions::default()).unwrap();
    let whole = export_of(&sample.cache, 0, below(&sample, 0), ExportOptions::default()).unwrap();
    assert_eq!(exported.report.lost_sectors, whole.report.backing_sectors);
    assert_eq!(exported.report.dirty_sectors, whole.report.dirty_sectors);
    assert_eq!(exported.report.clean_sectors, whole.report.clean_sectors);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is damaged, no sector that is said to be certain is wrong.
    #[test]
    fn what_is_certain_is_right(
        damages in proptest::collection::vec((0..6usize, any::<prop::sample::Index>(), 0..488u64), 1..4),
        per_bucket in prop_oneof![Just(1), Just(2), Just(usize::MAX)],
    ) {
        let sample = Sample::new(per_bucket);
        let nodes: Vec<LoadedNode> =
            (0..=2).flat_map(|level| sample.nodes(level)).map(|(_, node)| node).collect();
        let entries: Vec<u64> = (40..=43).map(|seq| sample.entry_byte(seq)).collect();
        let mut newest_hit = false;
        for (kind, index, within) in damages {
            match kind {
                0 | 1 => sample.flip(index.get(&nodes).sector().bytes() + 24 + within),
                2 => sample.noise(index.get(&nodes).sector().bytes(), 512),
                3 => {
                    let bucket = *index.get(&sample.built.prio_buckets);
                    sample.flip(sample.byte_of(bucket) + within);
                }
                4 => sample.noise(sample.byte_of(*index.get(&sample.built.prio_buckets)), 1024),
                _ => {
                    let entry = index.index(entries.len());
                    sample.flip(entries[entry] + within);
                    newest_hit |= entry == 3;
                }
            }
        }
        for inode in [0, 1] {
            let truth = sample.truth(inode, 1..4);
            let before = sample.truth(inode, 1..3);
            let options = ExportOptions::default();
            let Some(exported) = export_of(&sample.cache, inode, below(&sample, inode), options)
            else { continue };
            for sector in 0..truth.len() {
                let Some(data) = exported.taken(sector) else { continue };
                // An entry that is bad at the end was never acknowledged.
                let right = data == truth[sector] || newest_hit && data == before[sector];
                prop_assert!(right, "volume {}, sector {}", inode, sector);
            }
        }
    }
}
