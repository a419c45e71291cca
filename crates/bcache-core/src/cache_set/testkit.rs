//! Makes cache sets for tests and benchmarks, of any size and content.
//!
//! What it writes is what a kernel could have left: journal, prio chain, uuid table and a btree of
//! the keys given. The btree's nodes are taken from the end of the device downwards, so that data
//! may be put anywhere below [`SetBuilder::data_buckets`].

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;

use uuid::Uuid;

use crate::cache_set::{
    CacheDevice, CacheSet, Found, KeyState, LoadedNode, NodePlace, ReadError, ReadOptions, Visitor,
    WalkOptions,
};
use crate::device::{AlignedBuf, BlockDevice, DeviceError, ReadDevice};
use crate::layout::SetMagic;
use crate::layout::bkey::{Bkey, Pos, Ptr};
use crate::layout::bset::{self, BSET_HEADER_BYTES};
use crate::layout::jset::{self, JsetParams};
use crate::layout::prio_set::{self, BucketDisk};
use crate::layout::superblock::{
    BackingParams, BackingState, CacheMode, CacheParams, Label, Replacement, SB_OFFSET_BYTES,
    Superblock, VERSION_CDEV_WITH_UUID,
};
use crate::layout::uuid_entry::{self, UuidEntry};
use crate::units::{BucketIndex, Gen, Geometry, Prio, Sectors};

/// Number of the first prio write: any.
const PRIO_SEQ: u64 = 7;

/// What to make.
#[derive(Clone, Debug)]
pub struct SetBuilder {
    /// Buckets on the device.
    pub nbuckets: u64,
    /// Size of a bucket; a power of two.
    pub bucket_size: Sectors,
    /// Size of a block in sectors.
    pub block_size: u16,
    /// Journal buckets.
    pub njournal: u16,
    /// The uuid table, from slot 0 on.
    pub volumes: Vec<UuidEntry>,
    /// Keys of the journal's entries, oldest first; at least one entry.
    pub journal: Vec<Vec<Bkey>>,
    /// Sequence number of the first entry.
    pub first_seq: u64,
    /// Oldest entry that replay needs.
    pub last_seq: u64,
    /// Entries in a journal bucket, at most; the first goes to the second bucket, as with kernels.
    pub entries_per_bucket: usize,
    /// Sets of each node: keys are dealt out to them in turn.
    pub sets_per_node: usize,
    /// Percentage of a node that is filled.
    pub fill_percent: usize,
    /// The same of the nodes above the leaves, where it is another.
    pub inner_fill_percent: Option<usize>,
    /// Prio and gen of each bucket. Pointers have to be of these gens.
    pub bucket_disk: fn(u64) -> BucketDisk,
}

impl Default for SetBuilder {
    fn default() -> Self {
        Self {
            nbuckets: 1024,
            bucket_size: Sectors(64),
            block_size: 8,
            njournal: 8,
            volumes: vec![backing_volume(1)],
            journal: vec![Vec::new()],
            first_seq: 1,
            last_seq: 1,
            entries_per_bucket: usize::MAX,
            sets_per_node: 1,
            fill_percent: 75,
            inner_fill_percent: None,
            bucket_disk: |bucket| BucketDisk {
                prio: Prio(Prio::INITIAL.0 - u16::try_from(bucket % 1000).unwrap_or(0)),
                bucket_gen: Gen(1),
            },
        }
    }
}

/// An attached backing device's entry in the uuid table.
pub fn backing_volume(number: u128) -> UuidEntry {
    UuidEntry {
        uuid: Uuid::from_u128(number << 64 | number),
        first_reg: 1_700_000_001,
        last_reg: 1_700_000_002,
        ..UuidEntry::unused()
    }
}

/// What a set has cached: by volume and sector, whether it is dirty, and a hash of its data.
pub type Contents = BTreeMap<(u32, u64), (bool, u64)>;

/// What `set` has cached, once its journal is replayed.
pub fn contents(set: &CacheSet<'_>) -> Result<Contents, DeviceError> {
    let (mut contents, mut failed) = (Contents::new(), None);
    set.for_each_extent(&WalkOptions::default(), &mut |found| {
        let Found::Extent { key, state: KeyState::Valid, .. } = found else {
            return ControlFlow::Continue(());
        };
        let Some(ptr) = key.ptrs().first() else { return ControlFlow::Continue(()) };
        let mut data = AlignedBuf::zeroed(size(key.size().bytes()));
        if let Err(error) = set.cache.device().read_at(ptr.offset().bytes(), &mut data) {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        for (place, sector) in (key.start()..).zip(data.chunks(512)) {
            let mut hasher = DefaultHasher::new();
            sector.hash(&mut hasher);
            contents.insert((key.inode(), place), (key.dirty(), hasher.finish()));
        }
        ControlFlow::Continue(())
    });
    failed.map_or(Ok(contents), Err)
}

/// What is wrong with a set whose contents were `before` and are `after`, where only clean data may
/// have gone: the first sector that was dirty and is gone, or that is another.
pub fn lost_or_changed(before: &Contents, after: &Contents) -> Option<String> {
    let lost = before.iter().find(|(place, (dirty, _))| *dirty && !after.contains_key(place));
    if let Some(lost) = lost {
        return Some(format!("dirty data is lost: {lost:?}"));
    }
    let other = after.iter().find(|&(place, now)| before.get(place) != Some(now));
    other.map(|(place, now)| format!("{place:?} was {:?} and is {now:?}", before.get(place)))
}

/// Where things were put.
#[derive(Clone, Debug)]
pub struct BuiltSet {
    /// The superblock.
    pub superblock: Superblock,
    /// The geometry.
    pub geometry: Geometry,
    /// The set's magics.
    pub magic: SetMagic,
    /// The uuid table.
    pub uuid_bucket: BucketIndex,
    /// The prio chain.
    pub prio_buckets: Vec<BucketIndex>,
    /// The nodes: level, key that points there, keys of the sets.
    pub root: (u16, Bkey),
    /// How many nodes.
    pub nodes: u64,
}

impl BuiltSet {
    /// The superblock of a backing device that is attached as `volume`.
    pub fn backing_superblock(
        &self,
        volume: &UuidEntry,
        data_offset: Sectors,
        cache_mode: CacheMode,
        state: BackingState,
    ) -> Superblock {
        let mut superblock = Superblock::new_backing(&BackingParams {
            uuid: volume.uuid,
            set_uuid: self.superblock.set_uuid(),
            label: Label::default(),
            data_offset,
            block_size: u16::try_from(self.superblock.block_size().0).unwrap_or(u16::MAX),
            cache_mode,
        });
        superblock.edit(|edit| _ = edit.state(state));
        superblock
    }
}

/// The nodes of a level of the set on `device`, each with where it begins.
pub fn nodes(device: &dyn ReadDevice, level: u16) -> Result<Vec<(Pos, LoadedNode)>, ReadError> {
    struct Nodes(u16, Pos, Vec<(Pos, LoadedNode)>);
    impl Visitor for Nodes {
        fn node(&mut self, place: NodePlace, node: &LoadedNode) {
            if place.level == self.0 {
                self.2.push((self.1, node.clone()));
                self.1 = place.end;
            }
        }
    }
    let mut nodes = Nodes(level, Pos::ZERO, Vec::new());
    CacheSet::read(CacheDevice::open(device)?, &ReadOptions::default(), &mut nodes)?;
    Ok(nodes.2)
}

impl SetBuilder {
    /// The geometry; `None` for sizes that make none.
    pub fn geometry(&self) -> Option<Geometry> {
        self.superblock().geometry()
    }

    /// The superblock.
    pub fn superblock(&self) -> Superblock {
        let mut sb = Superblock::new_cache(&CacheParams {
            uuid: Uuid::from_u128(0x00c0_ffee),
            set_uuid: Uuid::from_u128(0x5e7_5e7_5e7_5e7),
            label: Label::default(),
            nbuckets: self.nbuckets,
            bucket_size: self.bucket_size,
            block_size: self.block_size,
            replacement: Replacement::Lru,
            discard: false,
        });
        let version = sb.version().max(VERSION_CDEV_WITH_UUID);
        sb.edit(|sb| {
            sb.version(version).sync(true).journal_buckets(self.njournal).seq(3);
        });
        sb
    }

    /// The buckets that data may be in, given the number of btree nodes there will be.
    pub fn data_buckets(&self, nodes: u64) -> std::ops::Range<u64> {
        let prios = self.geometry().map_or(0, |geometry| geometry.prio_buckets());
        let first = u64::from(self.superblock().first_bucket()) + u64::from(self.njournal);
        first + 1 + prios..self.nbuckets.saturating_sub(nodes)
    }

    /// Writes the set with `keys`, in order and without overlaps, as its btree.
    ///
    /// # Panics
    ///
    /// When the sizes make no device, or the journal's entries do not fit.
    #[expect(clippy::expect_used, reason = "a test that asks for the impossible is to fail")]
    pub fn write(
        &self,
        device: &dyn BlockDevice,
        keys: impl Iterator<Item = Bkey>,
    ) -> Result<BuiltSet, DeviceError> {
        let superblock = self.superblock();
        let geometry = superblock.geometry().expect("sizes that make a device");
        let magic = superblock.set_magic();
        let first = geometry.first_bucket().0 + u64::from(self.njournal);
        let uuid_bucket = BucketIndex(first);
        let prio_buckets: Vec<_> =
            (first + 1..=first + geometry.prio_buckets()).map(BucketIndex).collect();

        let mut loader = Loader {
            builder: self,
            device,
            geometry,
            magic,
            next: geometry.nbuckets(),
            nodes: 0,
            levels: vec![Vec::new()],
        };
        for key in keys {
            loader.add(0, key)?;
        }
        let root = loader.finish()?;
        let nodes = loader.nodes;

        self.write_prios(device, &geometry, magic, &prio_buckets)?;
        let mut table = AlignedBuf::zeroed(size(geometry.meta_bucket_bytes()));
        for (slot, entry) in table.chunks_exact_mut(128).zip(&self.volumes) {
            slot.copy_from_slice(&uuid_entry::encode(entry));
        }
        device.write_at(geometry.bucket_to_sector(uuid_bucket).bytes(), &table)?;
        let head = prio_buckets.first().map_or(0, |bucket| bucket.0);
        let meta_sectors = geometry.meta_bucket_bytes() / 512;
        let uuid_key = Bkey::new(0, 0, u16::try_from(meta_sectors).unwrap_or(u16::MAX))
            .with_ptrs(&[self.ptr(&geometry, uuid_bucket)]);
        self.write_journal(device, &geometry, magic, &root, uuid_key, head)?;
        device.write_at(SB_OFFSET_BYTES, &AlignedBuf::copy_of(superblock.as_bytes()))?;
        device.flush()?;
        Ok(BuiltSet { superblock, geometry, magic, uuid_bucket, prio_buckets, root, nodes })
    }

    fn ptr(&self, geometry: &Geometry, bucket: BucketIndex) -> Ptr {
        let bucket_gen = (self.bucket_disk)(bucket.0).bucket_gen;
        Ptr::new(bucket_gen, geometry.bucket_to_sector(bucket), 0)
    }

    fn write_prios(
        &self,
        device: &dyn BlockDevice,
        geometry: &Geometry,
        magic: SetMagic,
        buckets: &[BucketIndex],
    ) -> Result<(), DeviceError> {
        let per_set = geometry.prios_per_bucket();
        let mut image = AlignedBuf::zeroed(size(geometry.meta_bucket_bytes()));
        for (index, bucket) in (0u64..).zip(buckets) {
            let range = index * per_set..((index + 1) * per_set).min(geometry.nbuckets());
            let next = buckets.get(size(index) + 1).map_or(0, |bucket| bucket.0);
            let entries = range.map(self.bucket_disk);
            prio_set::encode_into(&mut image, magic, PRIO_SEQ, next, entries);
            device.write_at(geometry.bucket_to_sector(*bucket).bytes(), &image)?;
        }
        Ok(())
    }

    #[expect(clippy::expect_used, reason = "a test that asks for the impossible is to fail")]
    fn write_journal(
        &self,
        device: &dyn BlockDevice,
        geometry: &Geometry,
        magic: SetMagic,
        (btree_level, btree_root): &(u16, Bkey),
        uuid_bucket: Bkey,
        head: u64,
    ) -> Result<(), DeviceError> {
        let (mut index, mut in_bucket, mut offset) = (1 % u64::from(self.njournal), 0, 0);
        for (seq, keys) in (self.first_seq..).zip(&self.journal) {
            let entry = jset::encode(
                &JsetParams {
                    seq,
                    last_seq: self.last_seq.min(seq),
                    uuid_bucket,
                    btree_root: *btree_root,
                    btree_level: *btree_level,
                    prio_bucket: [head, 0, 0, 0, 0, 0, 0, 0],
                    keys,
                },
                magic,
            )
            .expect("an entry that fits");
            let len = entry.as_bytes().len().next_multiple_of(size(geometry.block_bytes()));
            let full = offset + len as u64 > geometry.bucket_bytes();
            if full || in_bucket >= self.entries_per_bucket {
                (index, in_bucket, offset) = ((index + 1) % u64::from(self.njournal), 0, 0);
            }
            let bucket = BucketIndex(geometry.first_bucket().0 + index);
            let bytes = AlignedBuf::padded(entry.as_bytes(), len);
            device.write_at(geometry.bucket_to_sector(bucket).bytes() + offset, &bytes)?;
            offset += len as u64;
            in_bucket += 1;
        }
        Ok(())
    }
}

/// Fills nodes level by level.
struct Loader<'b> {
    builder: &'b SetBuilder,
    device: &'b dyn BlockDevice,
    geometry: Geometry,
    magic: SetMagic,
    /// The bucket after the next node's.
    next: u64,
    nodes: u64,
    /// Keys of the node that is being filled, at each level.
    levels: Vec<Vec<Bkey>>,
}

impl Loader<'_> {
    fn capacity(&self, level: usize) -> usize {
        let node = size(self.geometry.btree_node_size().bytes());
        let sets = self.builder.sets_per_node.max(1);
        let overhead = sets * (BSET_HEADER_BYTES + size(self.geometry.block_bytes()));
        let inner = self.builder.inner_fill_percent.filter(|_| level > 0);
        let percent = inner.unwrap_or(self.builder.fill_percent);
        (node.saturating_sub(overhead) * percent / 100 / 24).max(2)
    }

    fn add(&mut self, level: usize, key: Bkey) -> Result<(), DeviceError> {
        let capacity = self.capacity(level);
        if self.levels.len() <= level {
            self.levels.push(Vec::new());
        }
        if self.levels.get(level).is_some_and(|keys| keys.len() >= capacity) {
            let keys = self.levels.get_mut(level).map(std::mem::take).unwrap_or_default();
            let end = keys.last().map_or(Pos::MAX, Bkey::pos);
            let parent = self.write_node(&keys, end)?;
            self.add(level + 1, parent)?;
        }
        if let Some(keys) = self.levels.get_mut(level) {
            keys.push(key);
        }
        Ok(())
    }

    /// Writes the last node of each level; the last is the root.
    fn finish(&mut self) -> Result<(u16, Bkey), DeviceError> {
        let mut level = 0;
        loop {
            let keys = self.levels.get_mut(level).map(std::mem::take).unwrap_or_default();
            let key = self.write_node(&keys, Pos::MAX)?;
            if level + 1 >= self.levels.len() {
                return Ok((u16::try_from(level).unwrap_or(u16::MAX), key));
            }
            self.add(level + 1, key)?;
            level += 1;
        }
    }

    fn write_node(&mut self, keys: &[Bkey], end: Pos) -> Result<Bkey, DeviceError> {
        self.next -= 1;
        self.nodes += 1;
        let bucket = BucketIndex(self.next);
        let node_size = self.geometry.btree_node_size();
        let ptr = self.builder.ptr(&self.geometry, bucket);
        let mut node = AlignedBuf::zeroed(size(node_size.bytes()));
        let block = size(self.geometry.block_bytes());
        let sets = self.builder.sets_per_node.clamp(1, keys.len().max(1));
        let mut offset = 0;
        for set in 0..sets {
            let keys: Vec<Bkey> = keys.iter().skip(set).step_by(sets).copied().collect();
            let bytes = bset::encode(self.magic, ptr, bucket.0 + 1, &keys);
            if let Some(place) = node.get_mut(offset..offset + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
            offset += bytes.len().next_multiple_of(block);
        }
        // Only what is in use is written: what follows must not look like a set of this node.
        let used = (offset + block).min(node.len());
        let written = node.get(..used).unwrap_or_default();
        self.device.write_at(self.geometry.bucket_to_sector(bucket).bytes(), written)?;
        let size = u16::try_from(node_size.0).unwrap_or(u16::MAX);
        Ok(Bkey::new(end.inode, end.offset, size).with_ptrs(&[ptr]))
    }
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
