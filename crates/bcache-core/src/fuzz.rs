//! What the fuzz targets run (feature `testkit`): each function takes any bytes and must come back.
//!
//! The targets under `fuzz/` feed them what a fuzzer makes up; an ordinary test feeds them seeded
//! random bytes, so that they are also run where there is no fuzzer. What a checksum would shut out
//! is sealed with a right one, half of the time: the code behind it is what is to be reached. A
//! failed assertion is a finding, like a panic.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a harness for tests: a panic is a finding, and what cannot be set up is to fail loudly"
)]

use crate::cache_set::btree::node::{parse, parse_generally};
use crate::cache_set::testkit::{BuiltSet, SetBuilder, backing_volume};
use crate::cache_set::{CacheDevice, ReadOptions, UuidTable, WalkOptions};
use crate::checksum::{crc64, crc64_seeded};
use crate::device::packed::{ChunkRole, PackedHeader, PackedKind, PackedReader, PackedWriter};
use crate::device::testkit::MemoryDevice;
use crate::device::{BlockDevice, ReadDevice};
use crate::layout::bkey::{Bkey, KeyIter, Ptr};
use crate::layout::bset::{BSET_HEADER_BYTES, BSET_VERSION};
use crate::layout::jset::{JSET_BYTES_MAX, Jset, claimed_bytes};
use crate::layout::prio_set::PrioSet;
use crate::layout::superblock::{SB_OFFSET_BYTES, Superblock};
use crate::layout::uuid_entry::{self, UuidEntry};
use crate::ops::check::{CheckOptions, check};
use crate::units::{Gen, Sectors};

/// Name and function of a target.
pub type Target = (&'static str, fn(&[u8]));

/// The targets; the names are those of the files in `fuzz/fuzz_targets`.
pub const TARGETS: [Target; 8] = [
    ("superblock", superblock),
    ("bkey", bkey),
    ("bset", bset),
    ("jset", jset),
    ("prio_set", prio_set),
    ("uuid_table", uuid_table),
    ("check", check_device),
    ("image", image),
];

/// Bytes of a block of the devices here.
const BLOCK: usize = 512;

/// Hands out the input bit by bit; zeroes once it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u64) -> u64 {
        let value = u64::from(self.byte()) << 16 | u64::from(self.byte()) << 8;
        (value | u64::from(self.byte())) % limit.max(1)
    }

    /// The words of a key that follows the place `at`, mostly; `at` moves on.
    fn key(&mut self, at: &mut u64, out: &mut Vec<u8>) {
        let kind = self.byte();
        if kind >= 248 {
            let (words, rest) = self.0.split_at(self.0.len().min(32));
            out.extend_from_slice(words);
            self.0 = rest;
            return;
        }
        let size = u64::from(self.byte() % 32);
        *at += u64::from(self.byte() % 16) * u64::from(kind % 2) + size;
        let sector = 16 * (20 + self.below(640)) + u64::from(self.byte() % 16);
        let ptr = Ptr::new(Gen(self.byte() % 4), Sectors(sector), 0);
        let key = Bkey::new(0, *at, u16::try_from(size).unwrap_or(0)).with_dirty(kind % 3 == 0);
        let ptrs = [ptr, ptr];
        let count = match kind % 64 {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        key.with_ptrs(ptrs.get(..count).unwrap_or_default()).write(out);
    }
}

fn builder() -> SetBuilder {
    SetBuilder {
        nbuckets: 700,
        bucket_size: Sectors(16),
        block_size: 1,
        sets_per_node: 2,
        fill_percent: 10,
        volumes: vec![backing_volume(1)],
        journal: vec![Vec::new(); 3],
        last_seq: 2,
        ..SetBuilder::default()
    }
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// A superblock of any bytes, and the kernel's verdict on it.
pub fn superblock(data: &[u8]) {
    let device = MemoryDevice::new(1 << 20);
    let mut bytes = builder().superblock().as_bytes().to_vec();
    let mut input = Input(data);
    if input.byte() % 2 == 0 {
        bytes.iter_mut().zip(input.0).for_each(|(to, from)| *to = *from);
    } else {
        while !input.0.is_empty() {
            let at = usize::try_from(input.below(bytes.len() as u64)).unwrap_or(0);
            let mask = input.byte();
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
        }
    }
    let mut sb = Superblock::from_bytes(&bytes).unwrap();
    if data.len() % 2 == 0 {
        sb.edit(|_| {});
    }
    device.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
    let _ = format!("{sb:?}");
    let _ = sb.geometry();
    let _ = CacheDevice::open(&device).map(|cache| cache.verdict().clone());
    let _ = check(&device, &CheckOptions::default(), &mut |_| {});
}

/// Packed keys: the walk ends, and what it gave is what it read.
pub fn bkey(data: &[u8]) {
    let mut keys = KeyIter::new(data);
    let mut out = Vec::new();
    for key in keys.by_ref() {
        key.write(&mut out);
        let mut cut = key;
        cut.cut_front(key.start().wrapping_add(3));
        cut.cut_back(key.offset().wrapping_sub(2));
        assert!(cut.size() <= key.size(), "{key:?} grew to {cut:?}");
        let _ = format!("{key:?}");
    }
    assert_eq!(data.get(..out.len()), Some(&out[..]));
    assert!(keys.truncated() || out.len() == data.len());
}

/// A node's sets, sealed or not: the quick and the general way to its keys agree.
pub fn bset(data: &[u8]) {
    let device = MemoryDevice::new(700 * 16 * 512);
    let superblock = builder().superblock();
    device.write_at(SB_OFFSET_BYTES, superblock.as_bytes()).unwrap();
    let cache = CacheDevice::open(&device).unwrap();
    let ptr = Ptr::new(Gen(1), Sectors(16 * 600), 0);
    let node_key = Bkey::new(0, 4000, 16).with_ptrs(&[ptr]);
    let mut input = Input(data);
    let mode = input.byte();
    let mut node = vec![0; 16 * BLOCK];
    if mode % 8 == 0 {
        node.iter_mut().zip(input.0).for_each(|(to, from)| *to = *from);
    } else {
        let mut offset = 0;
        for _ in 0..=mode % 4 {
            let mut keys = Vec::new();
            let mut at = 0;
            for _ in 0..input.byte() % 48 {
                input.key(&mut at, &mut keys);
            }
            keys.truncate(keys.len() / 8 * 8);
            let Some(place) = node.get_mut(offset..offset + BSET_HEADER_BYTES + keys.len()) else {
                break;
            };
            seal_set(place, &keys, cache.magic().bset(), ptr);
            offset = (offset + place.len()).next_multiple_of(BLOCK);
        }
        if input.byte() % 8 == 0 {
            let at = usize::try_from(input.below(node.len() as u64)).unwrap_or(0);
            let mask = input.byte();
            node.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
        }
    }
    let level = u16::from(mode % 16 == 15);
    let quick = parse(&cache, &node_key, level, &node);
    let general = parse_generally(&cache, &node_key, level, &node);
    assert!(quick.keys.iter().eq(general.keys.iter()), "{quick:?}\n{general:?}");
    assert_eq!(quick.sets, general.sets);
    assert_eq!(quick.error, general.error);
    assert_eq!(quick.faults, general.faults);
    assert_eq!(quick.keys.iter().count(), quick.keys.len());
    assert_eq!(quick.keys.last(), quick.keys.iter().last());
    if level == 0 {
        assert!(quick.keys.iter().all(|key| key.is_valid_extent(cache.geometry())));
    }
}

fn seal_set(place: &mut [u8], keys: &[u8], magic: u64, ptr: Ptr) {
    if let Some(at) = place.get_mut(BSET_HEADER_BYTES..) {
        at.copy_from_slice(keys);
    }
    put(place, 8, magic);
    put(place, 16, 5);
    put(place, 24, u64::from(BSET_VERSION) | (keys.len() as u64 / 8) << 32);
    let csum = crc64_seeded(ptr.0, place.get(8..).unwrap_or_default());
    put(place, 0, csum);
}

/// A journal entry: its keys and what is derived from it.
pub fn jset(data: &[u8]) {
    let magic = builder().superblock().set_magic();
    let mut bytes = data.to_vec();
    if data.len() % 2 == 0 {
        put(&mut bytes, 8, magic.jset());
        if let Ok(len) = claimed_bytes(&bytes, magic, JSET_BYTES_MAX) {
            let csum = crc64(bytes.get(8..len).unwrap_or_default());
            put(&mut bytes, 0, csum);
        }
    }
    let Ok(entry) = Jset::parse(&bytes, magic, JSET_BYTES_MAX) else { return };
    assert_eq!(bytes.get(..entry.as_bytes().len()), Some(entry.as_bytes()));
    let words: usize = entry.keys().map(|key| key.words()).sum();
    assert!(words <= entry.key_words(), "{words} words of {}", entry.key_words());
    for device in [0, 1, 7, 8, u16::MAX] {
        let head = entry.prio_bucket(device);
        if let Some(next) = entry.successor(device, head ^ 1) {
            let again = Jset::parse(next.as_bytes(), magic, JSET_BYTES_MAX);
            assert!(again.is_ok_and(|again| again.seq() == next.seq()));
        }
    }
}

/// A prio set.
pub fn prio_set(data: &[u8]) {
    let magic = builder().superblock().set_magic();
    let mut bytes = data.to_vec();
    if data.len() % 2 == 0 {
        put(&mut bytes, 8, magic.pset());
        let csum = crc64(bytes.get(8..).unwrap_or_default());
        put(&mut bytes, 0, csum);
    }
    if let Ok(set) = PrioSet::parse(&bytes, magic) {
        assert!(set.entries().count() * 3 <= bytes.len());
        let _ = (set.seq(), set.version(), set.next_bucket());
    }
    let _ = PrioSet::salvage(&bytes, magic);
}

/// A uuid table of either layout, from bytes and through a pointer.
pub fn uuid_table(data: &[u8]) {
    let mut input = Input(data);
    let version = u32::from(input.byte() % 3);
    for entry in uuid_entry::parse_table(input.0, version) {
        let _ =
            (entry.is_empty(), entry.is_detached(), entry.flash_only(), entry.label.to_string());
        if version > 0 {
            let again = uuid_entry::parse_table(&uuid_entry::encode(&entry), version);
            // What is written has nothing where kernels write nothing.
            assert_eq!(again.first(), Some(&UuidEntry { padding_is_zero: true, ..entry }));
        }
    }
    let device = MemoryDevice::new(700 * 16 * 512);
    device.write_at(SB_OFFSET_BYTES, builder().superblock().as_bytes()).unwrap();
    let mut bucket = vec![0; 16 * BLOCK];
    bucket.iter_mut().zip(input.0).for_each(|(to, from)| *to = *from);
    device.write_at(16 * 512 * 30, &bucket).unwrap();
    let cache = CacheDevice::open(&device).unwrap();
    if let Some(key) = Bkey::read(input.0) {
        let _ = UuidTable::read(&cache, &key, version, &mut |_| {});
    }
    let key = Bkey::new(0, 0, 16).with_ptrs(&[Ptr::new(Gen(1), Sectors(16 * 30), 0)]);
    let table = UuidTable::read(&cache, &key, version, &mut |_| {});
    assert!(table.used().count() <= bucket.len() / 64);
}

/// The reader and the check on a small cache set: with any keys and any damage.
pub fn check_device(data: &[u8]) {
    let mut input = Input(data);
    let builder = builder();
    let device = MemoryDevice::new(700 * 16 * 512);
    let first = builder.data_buckets(0).start;
    let (mut at, mut bucket) = (0, first);
    let keys: Vec<Bkey> = (0..input.byte())
        .map(|_| {
            let shape = input.byte();
            let size = 1 + u64::from(shape % 16);
            at += size + u64::from(shape / 16);
            bucket += 1;
            let bucket_gen = (builder.bucket_disk)(bucket).bucket_gen;
            let ptr = Ptr::new(bucket_gen, Sectors(bucket * 16), 0);
            Bkey::new(0, at, u16::try_from(size).unwrap_or(0))
                .with_ptrs(&[ptr])
                .with_dirty(shape % 3 == 0)
        })
        .collect();
    let built = builder.write(&device, keys.into_iter()).unwrap();
    let damages = input.byte() % 8;
    for _ in 0..damages {
        damage(&device, &built, &builder, &mut input);
    }
    let walk = WalkOptions { threads: 1, ..WalkOptions::default() };
    let options = CheckOptions {
        read: ReadOptions { walk, ..ReadOptions::default() },
        ..CheckOptions::default()
    };
    match check(&device, &options, &mut |_| {}) {
        Ok(report) if damages == 0 => assert!(report.is_clean(), "{report:?}"),
        Err(error) if damages == 0 => panic!("{error}"),
        Ok(report) => {
            let _ = report.findings.iter().map(|finding| format!("{finding:?}")).count();
        }
        Err(_) => {}
    }
}

/// Changes some bytes of one structure; three times of four its checksum is made right again.
fn damage(device: &MemoryDevice, built: &BuiltSet, builder: &SetBuilder, input: &mut Input<'_>) {
    let what = input.byte();
    let node = built.geometry.nbuckets() - 1 - input.below(built.nodes);
    let journal = built.geometry.first_bucket().0 + 1;
    let bucket = match what % 5 {
        0 | 1 => node,
        2 => journal,
        3 => built.prio_buckets.first().map_or(node, |bucket| bucket.0),
        _ => built.uuid_bucket.0,
    };
    let mut bytes = vec![0; 16 * BLOCK];
    device.read_at(bucket * 16 * 512, &mut bytes).unwrap();
    for _ in 0..=input.byte() % 4 {
        // The headers and first keys are where most is to be found.
        let range = if what & 128 == 0 { 320 } else { bytes.len() as u64 };
        let at = usize::try_from(input.below(range)).unwrap_or(0);
        let mask = input.byte();
        bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
    }
    if what & 0x60 != 0 {
        match what % 5 {
            0 | 1 => {
                let bucket_gen = (builder.bucket_disk)(node).bucket_gen;
                let ptr = Ptr::new(bucket_gen, Sectors(node * 16), 0);
                let words = bytes.get(28..32).and_then(|words| words.try_into().ok());
                let words = u32::from_le_bytes(words.unwrap_or_default());
                let end = usize::try_from(words).unwrap_or(0).saturating_mul(8).saturating_add(32);
                let csum = bytes.get(8..end).map(|covered| crc64_seeded(ptr.0, covered));
                put(&mut bytes, 0, csum.unwrap_or_default());
            }
            2 => {
                if let Ok(len) = claimed_bytes(&bytes, built.magic, JSET_BYTES_MAX) {
                    let csum = bytes.get(8..len).map(crc64);
                    put(&mut bytes, 0, csum.unwrap_or_default());
                }
            }
            3 => {
                let csum = crc64(bytes.get(8..).unwrap_or_default());
                put(&mut bytes, 0, csum);
            }
            _ => {}
        }
    }
    device.write_at(bucket * 16 * 512, &bytes).unwrap();
}

/// A packed image: of any bytes, or a sound one with some damage.
pub fn image(data: &[u8]) {
    let mut input = Input(data);
    let options = input.byte();
    let (mut bytes, damages) = if options & 1 == 0 {
        (input.0.to_vec(), 1)
    } else {
        let bytes = packed_image(&mut input);
        (bytes, usize::from(options / 16))
    };
    for _ in 0..damages {
        let at = usize::try_from(input.below(bytes.len() as u64)).unwrap_or(0);
        let mask = input.byte();
        bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
    }
    if options & 6 != 0 {
        seal_image(&mut bytes);
    }
    let raw = MemoryDevice::from_bytes(&bytes);
    let reader = match PackedReader::open(raw) {
        Ok(reader) => reader,
        Err(error) if damages == 0 => panic!("{error}"),
        Err(_) => return,
    };
    let size = reader.info().size_bytes;
    for (index, chunk) in reader.chunks().iter().enumerate() {
        assert!(chunk.offset.checked_add(u64::from(chunk.len)).is_some_and(|end| end <= size));
        match reader.contents(index) {
            Ok(contents) => assert_eq!(contents.len() as u64, u64::from(chunk.len)),
            Err(error) if damages == 0 => panic!("{error}"),
            Err(_) => {}
        }
        let mut part = vec![0; usize::try_from(chunk.len.min(1024)).unwrap_or(0)];
        let read = reader.read_at(chunk.offset, &mut part);
        // As a device, only an image of metadata holds anything.
        let holds = reader.header().kind == PackedKind::Metadata;
        assert!(read.is_ok() == holds || damages > 0, "{read:?}");
    }
}

/// An image of some chunks, in order.
fn packed_image(input: &mut Input<'_>) -> Vec<u8> {
    let options = input.byte();
    let undo = options & 1 != 0;
    let header = PackedHeader {
        kind: if undo { PackedKind::Undo } else { PackedKind::Metadata },
        anonymized: options & 2 != 0,
        logical_block_bytes: 512 << (options / 4 % 4),
        device_bytes: 1 << 20,
    };
    let mut writer = PackedWriter::new(Vec::new(), &header).unwrap();
    let mut offset = 0;
    for _ in 0..input.byte() % 8 {
        offset += input.below(16) * 512;
        let len = 1 + usize::from(input.byte() % 4);
        let fill = input.byte();
        let role = match (undo, fill % 2) {
            (false, _) => ChunkRole::Contents,
            (true, 0) => ChunkRole::Before,
            (true, _) => ChunkRole::After,
        };
        writer.add(offset, &vec![fill; len * BLOCK], role, u32::from(fill)).unwrap();
        offset += (len * BLOCK) as u64;
    }
    writer.finish().unwrap()
}

/// Makes the checksums of an image's header, index and trailer right (docs/metadata-image.md).
fn seal_image(bytes: &mut [u8]) {
    let head = bytes.get(..120).map(crc64);
    put(bytes, 120, head.unwrap_or_default());
    let Some(trailer) = bytes.len().checked_sub(64) else { return };
    let index_at = bytes.get(trailer + 16..trailer + 24).and_then(|at| at.try_into().ok());
    let index_at = usize::try_from(u64::from_le_bytes(index_at.unwrap_or_default())).unwrap_or(0);
    let index = bytes.get(index_at..trailer).map(crc64);
    put(bytes, trailer + 32, index.unwrap_or_default());
    let crc = bytes.get(trailer..trailer + 56).map(crc64);
    put(bytes, trailer + 56, crc.unwrap_or_default());
}
