//! A set with three volumes and data, of which the truth is known sector by sector.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};

use bcache_core::cache_set::testkit::{self, BuiltSet, SetBuilder, backing_volume};
use bcache_core::cache_set::volume::Stretch;
use bcache_core::cache_set::{
    Below, CacheDevice, CacheSet, LoadedNode, NewestEntry, NoVisitor, ReadOptions, VolumeReader,
};
use bcache_core::device::testkit::{MemoryDevice, sector_of};
use bcache_core::device::{AlignedBuf, BlockDevice, ReadDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::bset;
use bcache_core::layout::jset::{self, JsetParams};
use bcache_core::layout::prio_set::{BucketDisk, PrioSet, encode_into};
use bcache_core::layout::superblock::{BackingState, CacheMode, SB_OFFSET_BYTES};
use bcache_core::layout::uuid_entry::{self, UuidEntry};
use bcache_core::units::{BucketIndex, Gen, Sectors};

/// Sectors of a volume.
pub(crate) const SIZE: u64 = 2600;
const EXTENT: u64 = 8;
const EXTENTS: u64 = 150;
const DATA_OFFSET: u64 = 16;
const BUCKET: u64 = 16;
const NBUCKETS: u64 = 3000;

/// Entries that are replayed.
pub(crate) const REPLAYED: RangeInclusive<u64> = 44..=47;

/// A volume of a backing device in slots 0 and 2, and a flash-only one in slot 1. A btree of three levels,
/// two prio sets, entries 40 to 47. The journal does not reach back to the first entry.
pub(crate) struct Sample {
    pub(crate) cache: MemoryDevice,
    pub(crate) backing: [MemoryDevice; 2],
    pub(crate) built: BuiltSet,
    builder: SetBuilder,
    tree: Vec<Bkey>,
}

/// Sectors of keys, and of the cache.
fn placed(key: &Bkey) -> impl Iterator<Item = (u64, Option<u64>)> + use<> {
    let first = key.ptrs().first().map(|ptr| ptr.offset().0);
    let start = key.start();
    (start..key.offset()).map(move |at| (at, first.map(|first| first + at - start)))
}

/// A sector of a volume: what it holds, and whether that is certain.
pub(crate) type Content = Option<([u8; 512], bool)>;

impl Sample {
    pub(crate) fn new() -> Self {
        let mut flash = backing_volume(2);
        flash.flags = 1;
        flash.sectors = Sectors(SIZE);
        let mut builder = SetBuilder {
            nbuckets: NBUCKETS,
            bucket_size: Sectors(BUCKET),
            sets_per_node: 2,
            block_size: 1,
            fill_percent: 5,
            first_seq: 40,
            last_seq: *REPLAYED.start(),
            entries_per_bucket: 3,
            njournal: 8,
            volumes: vec![backing_volume(1), flash, backing_volume(3)],
            ..SetBuilder::default()
        };
        let first_data = builder.data_buckets(0).start;
        let key = |builder: &SetBuilder, inode, end, size, n: u64, within: u64| {
            // Spread over the device, so that they are in all prio sets.
            let bucket = first_data + 1 + n * 9;
            let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
            let ptr = Ptr::new(ptr_gen, Sectors(bucket * BUCKET + within), 0);
            Bkey::new(inode, end, size).with_ptrs(&[ptr])
        };
        let tree: Vec<Bkey> = (0..EXTENTS * 3)
            .map(|n| {
                let inode = u32::try_from(n / EXTENTS).unwrap();
                let end = 100 + (n % EXTENTS) * 2 * EXTENT;
                let dirty = inode == 1 || n % 3 == 0;
                key(&builder, inode, end, 8, n / 2, n % 2 * EXTENT).with_dirty(dirty)
            })
            .collect();
        // The first four are in the btree, too.
        let late = tree.iter().skip(7).step_by(40).copied().collect::<Vec<_>>();
        builder.journal = (0..8u64)
            .map(|entry| {
                if entry < 4 {
                    let n = usize::try_from(entry).unwrap();
                    return late.iter().skip(n).step_by(4).copied().collect();
                }
                // Over the middle of some extents and the hole behind them; and a hole.
                let end = 104 + entry * 120;
                let written = key(&builder, 0, end, 12, 240 + entry, 0).with_dirty(true);
                let flash = key(&builder, 1, end, 4, 240 + entry, 12).with_dirty(true);
                let other = key(&builder, 2, end + 40, 12, 260 + entry, 0).with_dirty(true);
                vec![written, flash, other, Bkey::new(0, end + 48, 3)]
            })
            .collect();
        let cache = MemoryDevice::new(NBUCKETS * BUCKET * 512);
        let built = builder.write(&cache, tree.iter().copied()).unwrap();
        assert_eq!((built.root.0, built.prio_buckets.len()), (2, 2));
        let backing = [1u64, 3].map(|number| {
            let device = MemoryDevice::new((SIZE + DATA_OFFSET) * 512);
            for sector in 0..SIZE + DATA_OFFSET {
                device.write_at(sector * 512, &sector_of(2 + number, sector)).unwrap();
            }
            let volume = backing_volume(u128::from(number));
            let mode = CacheMode::Writeback;
            let sb =
                built.backing_superblock(&volume, Sectors(DATA_OFFSET), mode, BackingState::Dirty);
            device.write_at(SB_OFFSET_BYTES, &AlignedBuf::copy_of(sb.as_bytes())).unwrap();
            device
        });
        let sample = Self { cache, backing, built, builder, tree };
        for key in sample.tree.iter().chain(sample.builder.journal.iter().flatten()) {
            for (at, sector) in placed(key).filter_map(|(at, it)| Some((at, it?))) {
                sample.cache.write_at(sector * 512, &sector_of(1, sector)).unwrap();
                if !key.dirty() {
                    let below = sample.device(key.inode()).unwrap();
                    below.write_at(at * 512, &sector_of(1, sector)).unwrap();
                }
            }
        }
        sample
    }

    /// Leaves a table behind, as each write of the table does, in a bucket that nothing points to.
    pub(crate) fn with_older_table(self, change: impl FnOnce(&mut Vec<UuidEntry>)) -> Self {
        let mut slots = self.builder.volumes.clone();
        change(&mut slots);
        let mut table = AlignedBuf::zeroed(usize::try_from(BUCKET * 512).unwrap());
        for (slot, entry) in table.chunks_exact_mut(128).zip(&slots) {
            slot.copy_from_slice(&uuid_entry::encode(entry));
        }
        self.cache.write_at((NBUCKETS / 2) * BUCKET * 512, &table).unwrap();
        self
    }

    pub(crate) fn device(&self, inode: u32) -> Option<&MemoryDevice> {
        self.backing.get(match inode {
            0 => 0,
            2 => 1,
            _ => return None,
        })
    }

    pub(crate) fn named(&self) -> [&dyn ReadDevice; 2] {
        [&self.backing[0], &self.backing[1]]
    }

    pub(crate) fn writers(&self) -> [&dyn BlockDevice; 2] {
        [&self.backing[0], &self.backing[1]]
    }

    pub(crate) fn snapshot(&self) -> Self {
        Self {
            cache: self.cache.snapshot(),
            backing: [self.backing[0].snapshot(), self.backing[1].snapshot()],
            built: self.built.clone(),
            builder: self.builder.clone(),
            tree: self.tree.clone(),
        }
    }

    /// What the volume holds, apart from what entries of `lost` tell.
    pub(crate) fn truth(&self, inode: u32, lost: &[u64]) -> Vec<[u8; 512]> {
        let data_offset = if inode == 1 { 0 } else { DATA_OFFSET };
        let mut map: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        let entries = (self.builder.first_seq..).zip(&self.builder.journal);
        let replayed = entries
            .filter(|(seq, _)| REPLAYED.contains(seq) && !lost.contains(seq))
            .flat_map(|(_, keys)| keys);
        for key in self.tree.iter().chain(replayed).filter(|key| key.inode() == inode) {
            map.extend(placed(key));
        }
        (0..SIZE)
            .map(|sector| {
                if let Some(Some(sector)) = map.get(&(sector + data_offset)) {
                    return sector_of(1, *sector);
                }
                let mut bytes = [0; 512];
                if let Some(device) = self.device(inode) {
                    device.read_at((sector + data_offset) * 512, &mut bytes).unwrap();
                }
                bytes
            })
            .collect()
    }

    /// Sectors of a volume that these entries tell of.
    pub(crate) fn told_by(&self, inode: u32, seqs: &[u64]) -> Vec<u64> {
        let data_offset = if inode == 1 { 0 } else { DATA_OFFSET };
        let entries = (self.builder.first_seq..).zip(&self.builder.journal);
        let keys = entries.filter(|(seq, _)| seqs.contains(seq)).flat_map(|(_, keys)| keys);
        let keys = keys.filter(|key| key.inode() == inode);
        keys.flat_map(|key| key.start() - data_offset..key.offset() - data_offset).collect()
    }

    /// Each sector of the volume as it can be read now; `None` where it cannot.
    pub(crate) fn read(&self, inode: u32, newest: NewestEntry) -> Option<Vec<Content>> {
        let options = ReadOptions { newest, ..ReadOptions::default() };
        let cache = CacheDevice::open(&self.cache).ok()?;
        let set = CacheSet::read(cache, &options, &mut NoVisitor).ok()?;
        let below = match self.device(inode) {
            Some(device) => Below::Backing(device, Sectors(DATA_OFFSET)),
            None => Below::Nothing,
        };
        let mut reader = VolumeReader::new(&set, inode, below);
        let mut stretches: Vec<Stretch> = Vec::new();
        let _ = reader.stretches(0, SIZE, &mut |stretch| {
            stretches.push(stretch);
            ControlFlow::Continue(())
        });
        let mut all = vec![None; usize::try_from(SIZE).unwrap()];
        for stretch in stretches {
            for sector in stretch.start..stretch.end {
                let mut bytes = [0; 512];
                let skip = sector - stretch.start;
                let read = match stretch.source {
                    bcache_core::cache_set::volume::Source::Cache { sector, .. } => {
                        self.cache.read_at((sector.0 + skip) * 512, &mut bytes).is_ok()
                    }
                    bcache_core::cache_set::volume::Source::Backing { sector } => {
                        let device = self.device(inode).unwrap();
                        device.read_at((sector.0 + skip) * 512, &mut bytes).is_ok()
                    }
                    bcache_core::cache_set::volume::Source::Hole => true,
                    bcache_core::cache_set::volume::Source::Unknown(_) => false,
                };
                if read {
                    all[usize::try_from(sector).unwrap()] = Some((bytes, stretch.is_certain()));
                }
            }
        }
        Some(all)
    }

    pub(crate) fn byte_of(&self, bucket: BucketIndex) -> u64 {
        self.built.geometry.bucket_to_sector(bucket).bytes()
    }

    /// Overwrites a stretch with noise.
    pub(crate) fn noise(&self, byte: u64, len: usize) {
        let noise: Vec<u8> = (0..len)
            .map(|n| u8::try_from((n as u64 * 37 + byte / 512) * 11 % 251).unwrap() | 1)
            .collect();
        let (start, end) = (byte / 512 * 512, (byte + len as u64).next_multiple_of(512));
        let mut whole = vec![0; usize::try_from(end - start).unwrap()];
        self.cache.read_at(start, &mut whole).unwrap();
        let at = usize::try_from(byte - start).unwrap();
        whole[at..at + len].copy_from_slice(&noise);
        self.cache.write_at(start, &whole).unwrap();
    }

    /// The node with other keys, all in its first set, with a right checksum.
    pub(crate) fn rewrite(&self, node: &LoadedNode, change: impl FnOnce(&mut Vec<Bkey>)) {
        let mut keys: Vec<Bkey> = node.keys.iter().collect();
        change(&mut keys);
        let ptr = node.key.ptrs()[0];
        let mut bytes = bset::encode(self.built.magic, ptr, 99, &keys);
        bytes.resize(usize::try_from(node.key.size().bytes()).unwrap(), 0);
        self.cache.write_at(ptr.offset().bytes(), &bytes).unwrap();
    }

    /// A replayed entry with other keys and another header, with a right checksum.
    pub(crate) fn rewrite_entry(
        &self,
        seq: u64,
        change: impl FnOnce(&mut JsetParams<'_>),
        keys: impl FnOnce(&mut Vec<Bkey>),
    ) {
        // Damage of another kind may hide it.
        let Ok(cache) = CacheDevice::open(&self.cache) else { return };
        let read = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor);
        let Ok(set) = read else { return };
        let entry = set.journal.entries.iter().find(|entry| entry.jset.seq() == seq);
        let Some(entry) = entry else { return };
        let mut all: Vec<Bkey> = entry.jset.keys().collect();
        keys(&mut all);
        let mut params = JsetParams { seq, ..JsetParams::of(&entry.jset, &all) };
        change(&mut params);
        let mut bytes = jset::encode(&params, self.built.magic).unwrap().as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let at = self.byte_of(entry.place.bucket) + entry.place.offset;
        self.cache.write_at(at, &bytes).unwrap();
    }

    /// The superblock with other flags.
    pub(crate) fn set_flags(&self, change: impl FnOnce(u64) -> u64) {
        let mut sb = self.built.superblock.clone();
        let flags = change(sb.flags());
        sb.edit(|edit| _ = edit.flags(flags));
        self.cache.write_at(SB_OFFSET_BYTES, &AlignedBuf::copy_of(sb.as_bytes())).unwrap();
    }

    /// The gen of a bucket in its prio set.
    pub(crate) fn raise_gen(&self, bucket: u64, by: u8) {
        let per_set = self.built.geometry.prios_per_bucket();
        let set = self.built.prio_buckets[usize::try_from(bucket / per_set).unwrap()];
        let mut image = vec![0; usize::try_from(BUCKET * 512).unwrap()];
        self.cache.read_at(self.byte_of(set), &mut image).unwrap();
        // Damage of another kind came first.
        let Ok(prios) = PrioSet::parse(&image, self.built.magic) else { return };
        let (seq, next) = (prios.seq(), prios.next_bucket());
        let mut entries: Vec<BucketDisk> = prios.entries().collect();
        let entry = &mut entries[usize::try_from(bucket % per_set).unwrap()];
        entry.bucket_gen = Gen(entry.bucket_gen.0.wrapping_add(by));
        encode_into(&mut image, self.built.magic, seq, next, entries.into_iter());
        self.cache.write_at(self.byte_of(set), &image).unwrap();
    }

    /// Zeroes a part of a sector.
    pub(crate) fn zero_part(&self, byte: u64, len: usize) {
        let mut sector = [0; 512];
        self.cache.read_at(byte / 512 * 512, &mut sector).unwrap();
        let at = usize::try_from(byte % 512).unwrap();
        sector[at..at + len].fill(0);
        self.cache.write_at(byte / 512 * 512, &sector).unwrap();
    }

    pub(crate) fn zero(&self, byte: u64, len: usize) {
        self.cache.write_at(byte, &vec![0; len]).unwrap();
    }

    pub(crate) fn flip(device: &MemoryDevice, byte: u64) {
        let mut sector = [0; 512];
        device.read_at(byte / 512 * 512, &mut sector).unwrap();
        sector[usize::try_from(byte % 512).unwrap()] ^= 4;
        device.write_at(byte / 512 * 512, &sector).unwrap();
    }

    /// All nodes of a level, in order, of the sound set.
    pub(crate) fn nodes(&self, level: u16) -> Vec<LoadedNode> {
        let nodes = testkit::nodes(&self.cache, level).unwrap();
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// The byte at which a journal entry starts, in the sound set.
    pub(crate) fn entry_byte(&self, seq: u64) -> u64 {
        let cache = CacheDevice::open(&self.cache).unwrap();
        let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
        let place = set.journal.headers().find(|header| header.seq == seq).unwrap().place;
        self.byte_of(place.bucket) + place.offset
    }
}
