//! The set that is damaged.

use bcache_core::cache_set::LoadedNode;
use bcache_core::cache_set::testkit::{self, BuiltSet, SetBuilder, backing_volume};
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::layout::SetMagic;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::jset::{self, Jset, JsetParams};
use bcache_core::layout::prio_set::{BucketDisk, PrioSet, encode_into};
use bcache_core::layout::superblock::{SB_OFFSET_BYTES, Superblock};
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::layout::{bset, uuid_entry};
use bcache_core::ops::check::{CheckOptions, Report, check};
use bcache_core::units::{BucketIndex, Gen, Sectors};

/// Sectors of each extent of the sample.
pub(crate) const EXTENT: u64 = 8;

/// Buckets with data in the sample.
pub(crate) const DATA_BUCKETS: u64 = 200;

/// A device with two volumes, a btree of three levels, several prio sets and a journal to replay.
pub(crate) struct Sample {
    pub(crate) device: MemoryDevice,
    pub(crate) built: BuiltSet,
    pub(crate) builder: SetBuilder,
    pub(crate) first_data: u64,
}

pub(crate) fn data_key(
    builder: &SetBuilder,
    inode: u32,
    end: u64,
    bucket: u64,
    within: u64,
) -> Bkey {
    let sector = bucket * builder.bucket_size.0 + within;
    let ptr = Ptr::new((builder.bucket_disk)(bucket).bucket_gen, Sectors(sector), 0);
    Bkey::new(inode, end, u16::try_from(EXTENT).unwrap()).with_ptrs(&[ptr])
}

impl Sample {
    pub(crate) fn new() -> Self {
        let mut builder = SetBuilder {
            nbuckets: 3000,
            bucket_size: Sectors(16),
            sets_per_node: 2,
            block_size: 1,
            fill_percent: 5,
            first_seq: 40,
            last_seq: 41,
            entries_per_bucket: 1,
            njournal: 16,
            volumes: vec![backing_volume(1), backing_volume(2)],
            ..SetBuilder::default()
        };
        let first_data = builder.data_buckets(0).start;
        let journal_bucket = first_data + DATA_BUCKETS;
        let journal = (0..4u64).map(|entry| {
            vec![data_key(
                &builder,
                0,
                1_000_000 + entry * EXTENT + EXTENT,
                journal_bucket + entry,
                0,
            )]
        });
        builder.journal = journal.collect();
        let device = MemoryDevice::new(3000 * 16 * 512);
        let keys: Vec<Bkey> = (0..DATA_BUCKETS * 2)
            .map(|n| {
                let inode = u32::from(n >= DATA_BUCKETS);
                let end = 100 + (n % DATA_BUCKETS) * 3 * EXTENT;
                let within = n % 2 * EXTENT;
                data_key(&builder, inode, end, first_data + n / 2, within).with_dirty(n % 5 == 0)
            })
            .collect();
        let built = builder.write(&device, keys.into_iter()).unwrap();
        assert!(built.root.0 >= 2, "depth {}", built.root.0);
        assert!(built.prio_buckets.len() > 1);
        Self { device, built, builder, first_data }
    }

    pub(crate) fn check(&self) -> Report {
        report(&self.device)
    }

    pub(crate) fn byte_of(&self, bucket: BucketIndex) -> u64 {
        self.built.geometry.bucket_to_sector(bucket).bytes()
    }

    pub(crate) fn flip(&self, byte: u64, mask: u8) {
        let mut sector = [0; 512];
        let start = byte / 512 * 512;
        self.device.read_at(start, &mut sector).unwrap();
        sector[usize::try_from(byte - start).unwrap()] ^= mask;
        self.device.write_at(start, &sector).unwrap();
    }

    pub(crate) fn write(&self, byte: u64, bytes: &[u8]) {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(512), 0);
        self.device.write_at(byte, &padded).unwrap();
    }

    pub(crate) fn edit_superblock(&self, change: impl FnOnce(&mut Superblock)) {
        let mut sb = self.built.superblock.clone();
        change(&mut sb);
        self.device.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
    }

    /// Byte of the journal entry with `seq`.
    pub(crate) fn entry_byte(&self, seq: u64) -> u64 {
        let index = 1 + seq - self.builder.first_seq;
        self.byte_of(BucketIndex(self.built.geometry.first_bucket().0 + index))
    }

    pub(crate) fn entry(&self, seq: u64) -> Jset {
        let mut bytes = vec![0; 8192];
        self.device.read_at(self.entry_byte(seq), &mut bytes).unwrap();
        Jset::parse(&bytes, self.built.magic, 8192).unwrap()
    }

    /// Writes entry 43 + `after` that many blocks behind the newest, in its bucket.
    pub(crate) fn append(&self, after: u64, keys: &[Bkey]) -> u64 {
        self.append_of(self.built.magic, after, keys)
    }

    /// The same as an entry of the set that has `magic`.
    pub(crate) fn append_of(&self, magic: SetMagic, after: u64, keys: &[Bkey]) -> u64 {
        let old = self.entry(43);
        let params = JsetParams { seq: 43 + after, ..JsetParams::of(&old, keys) };
        let entry = jset::encode(&params, magic).unwrap();
        assert!(entry.as_bytes().len() <= 512, "a block each");
        let byte = self.entry_byte(43) + after * 512;
        self.write(byte, entry.as_bytes());
        byte
    }

    /// A dirty key that is nowhere in the btree, in a bucket that nothing else uses.
    pub(crate) fn new_dirty_key(&self) -> Bkey {
        data_key(&self.builder, 0, 2_000_000, self.unused_bucket(), 0).with_dirty(true)
    }

    /// Writes the newest entry anew, changed, with a right checksum.
    pub(crate) fn edit_newest(&self, change: impl FnOnce(&mut JsetParams<'_>)) {
        let keys: Vec<Bkey> = self.entry(43).keys().collect();
        self.write_newest(&keys, change);
    }

    /// The same with other keys.
    pub(crate) fn write_newest(&self, keys: &[Bkey], change: impl FnOnce(&mut JsetParams<'_>)) {
        self.write_entry(43, keys, change);
    }

    /// The same of any entry.
    pub(crate) fn write_entry(
        &self,
        seq: u64,
        keys: &[Bkey],
        change: impl FnOnce(&mut JsetParams<'_>),
    ) {
        let old = self.entry(seq);
        let mut params = JsetParams { seq, ..JsetParams::of(&old, keys) };
        change(&mut params);
        let entry = jset::encode(&params, self.built.magic).unwrap();
        self.write(self.entry_byte(seq), entry.as_bytes());
    }

    pub(crate) fn edit_prios(
        &self,
        index: usize,
        change: impl FnOnce(&mut u64, &mut u64, &mut Vec<BucketDisk>),
    ) {
        let geometry = &self.built.geometry;
        let byte = self.byte_of(self.built.prio_buckets[index]);
        let mut image = vec![0; usize::try_from(geometry.meta_bucket_bytes()).unwrap()];
        self.device.read_at(byte, &mut image).unwrap();
        let set = PrioSet::parse(&image, self.built.magic).unwrap();
        let (mut seq, mut next) = (set.seq(), set.next_bucket());
        let mut entries: Vec<BucketDisk> = set.entries().collect();
        change(&mut seq, &mut next, &mut entries);
        encode_into(&mut image, self.built.magic, seq, next, entries.into_iter());
        self.write(byte, &image);
    }

    /// Sets the gen of `bucket` in the prio chain.
    pub(crate) fn set_gen(&self, bucket: u64, change: impl FnOnce(u8) -> u8) {
        let per_set = self.built.geometry.prios_per_bucket();
        self.edit_prios(usize::try_from(bucket / per_set).unwrap(), |_, _, entries| {
            let entry = &mut entries[usize::try_from(bucket % per_set).unwrap()];
            entry.bucket_gen = Gen(change(entry.bucket_gen.0));
        });
    }

    pub(crate) fn edit_uuid(&self, slot: u64, change: impl FnOnce(&mut UuidEntry)) {
        let byte = self.byte_of(self.built.uuid_bucket);
        let mut table = vec![0; 4096];
        self.device.read_at(byte, &mut table).unwrap();
        let mut entry =
            uuid_entry::parse_table(&table, 1).swap_remove(usize::try_from(slot).unwrap());
        change(&mut entry);
        let at = usize::try_from(slot).unwrap() * 128;
        table[at..at + 128].copy_from_slice(&uuid_entry::encode(&entry));
        self.write(byte, &table);
    }

    /// The nodes of a level: place and keys.
    pub(crate) fn nodes(&self, level: u16) -> Vec<LoadedNode> {
        let nodes = testkit::nodes(&self.device, level).unwrap();
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// Writes a node anew as a single set of changed keys, with a right checksum.
    pub(crate) fn edit_node(&self, node: &LoadedNode, change: impl FnOnce(&mut Vec<Bkey>)) {
        let mut keys = node.keys.iter().collect();
        change(&mut keys);
        let ptr = node.key.ptrs()[0];
        let bytes = bset::encode(self.built.magic, ptr, 99, &keys);
        let mut image = vec![0; usize::try_from(node.key.size().bytes()).unwrap()];
        image[..bytes.len()].copy_from_slice(&bytes);
        self.write(ptr.offset().bytes(), &image);
    }

    pub(crate) fn leaf(&self) -> LoadedNode {
        self.nodes(0).swap_remove(1)
    }

    pub(crate) fn interior(&self) -> LoadedNode {
        self.nodes(1).swap_remove(0)
    }

    /// A dirty key of the leaf of [`Self::leaf`], and the bucket of its data.
    pub(crate) fn dirty_key(&self) -> (Bkey, u64) {
        let key = self.leaf().keys.iter().find(Bkey::dirty).unwrap();
        (key, key.ptrs()[0].bucket(&self.built.geometry).0)
    }

    /// A bucket that nothing uses.
    pub(crate) fn unused_bucket(&self) -> u64 {
        self.first_data + DATA_BUCKETS + 50
    }
}

pub(crate) fn report(device: &dyn ReadDevice) -> Report {
    check(device, &CheckOptions::default(), &mut |_| {}).unwrap()
}
