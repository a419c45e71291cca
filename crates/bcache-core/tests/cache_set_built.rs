//! The reader and the check on cache sets that were made for it: sound ones, and each damage that a
//! finding exists for.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use bcache_core::cache_set::btree::{FaultKind, NodeFault, ReadNode, WalkHandler, walk};
use bcache_core::cache_set::testkit::{self, BuiltSet, SetBuilder, backing_volume};
use bcache_core::cache_set::{
    BtreeProblem, CacheDevice, CacheSet, KeySource, KeyState, LoadedNode, NoVisitor, OpenError,
    Problem, ReadError, ReadOptions, SetRefusal, TRUNCATED_NBUCKETS_MAX, Visitor, WalkOptions,
};
use bcache_core::checksum::crc64;
use bcache_core::device::testkit::{
    Fault, FaultDevice, Lasting, MemoryDevice, TraceDevice, Trigger,
};
use bcache_core::device::{BlockDevice, DeviceError, DeviceInfo, ReadDevice};
use bcache_core::inspect::Answer;
use bcache_core::layout::SetMagic;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::jset::{self, Jset, JsetParams};
use bcache_core::layout::prio_set::{BucketDisk, PrioSet, encode_into};
use bcache_core::layout::superblock::{
    BackingParams, BackingState, CacheMode, Label, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::layout::{bset, uuid_entry};
use bcache_core::ops::check::{CheckOptions, Code, Finding, Registration, Report, Severity, check};
use bcache_core::ops::repair;
use bcache_core::units::{BucketIndex, Gen, Prio, Sectors};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Sectors of each extent of the sample.
const EXTENT: u64 = 8;

/// Buckets with data in the sample.
const DATA_BUCKETS: u64 = 200;

/// A device with two volumes, a btree of three levels, several prio sets and a journal to replay.
struct Sample {
    device: MemoryDevice,
    built: BuiltSet,
    builder: SetBuilder,
    first_data: u64,
}

fn data_key(builder: &SetBuilder, inode: u32, end: u64, bucket: u64, within: u64) -> Bkey {
    let sector = bucket * builder.bucket_size.0 + within;
    let ptr = Ptr::new((builder.bucket_disk)(bucket).bucket_gen, Sectors(sector), 0);
    Bkey::new(inode, end, u16::try_from(EXTENT).unwrap()).with_ptrs(&[ptr])
}

impl Sample {
    fn new() -> Self {
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

    fn check(&self) -> Report {
        report(&self.device)
    }

    fn byte_of(&self, bucket: BucketIndex) -> u64 {
        self.built.geometry.bucket_to_sector(bucket).bytes()
    }

    fn flip(&self, byte: u64, mask: u8) {
        let mut sector = [0; 512];
        let start = byte / 512 * 512;
        self.device.read_at(start, &mut sector).unwrap();
        sector[usize::try_from(byte - start).unwrap()] ^= mask;
        self.device.write_at(start, &sector).unwrap();
    }

    fn write(&self, byte: u64, bytes: &[u8]) {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(512), 0);
        self.device.write_at(byte, &padded).unwrap();
    }

    fn edit_superblock(&self, change: impl FnOnce(&mut Superblock)) {
        let mut sb = self.built.superblock.clone();
        change(&mut sb);
        self.device.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
    }

    /// Byte of the journal entry with `seq`.
    fn entry_byte(&self, seq: u64) -> u64 {
        let index = 1 + seq - self.builder.first_seq;
        self.byte_of(BucketIndex(self.built.geometry.first_bucket().0 + index))
    }

    fn entry(&self, seq: u64) -> Jset {
        let mut bytes = vec![0; 8192];
        self.device.read_at(self.entry_byte(seq), &mut bytes).unwrap();
        Jset::parse(&bytes, self.built.magic, 8192).unwrap()
    }

    /// Writes entry 43 + `after` that many blocks behind the newest, in its bucket.
    fn append(&self, after: u64, keys: &[Bkey]) -> u64 {
        self.append_of(self.built.magic, after, keys)
    }

    /// The same as an entry of the set that has `magic`.
    fn append_of(&self, magic: SetMagic, after: u64, keys: &[Bkey]) -> u64 {
        let old = self.entry(43);
        let params = JsetParams { seq: 43 + after, ..JsetParams::of(&old, keys) };
        let entry = jset::encode(&params, magic).unwrap();
        assert!(entry.as_bytes().len() <= 512, "a block each");
        let byte = self.entry_byte(43) + after * 512;
        self.write(byte, entry.as_bytes());
        byte
    }

    /// A dirty key that is nowhere in the btree, in a bucket that nothing else uses.
    fn new_dirty_key(&self) -> Bkey {
        data_key(&self.builder, 0, 2_000_000, self.unused_bucket(), 0).with_dirty(true)
    }

    /// Writes the newest entry anew, changed, with a right checksum.
    fn edit_newest(&self, change: impl FnOnce(&mut JsetParams<'_>)) {
        let keys: Vec<Bkey> = self.entry(43).keys().collect();
        self.write_newest(&keys, change);
    }

    /// The same with other keys.
    fn write_newest(&self, keys: &[Bkey], change: impl FnOnce(&mut JsetParams<'_>)) {
        let old = self.entry(43);
        let mut params = JsetParams { seq: 43, ..JsetParams::of(&old, keys) };
        change(&mut params);
        let entry = jset::encode(&params, self.built.magic).unwrap();
        self.write(self.entry_byte(43), entry.as_bytes());
    }

    fn edit_prios(
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
    fn set_gen(&self, bucket: u64, change: impl FnOnce(u8) -> u8) {
        let per_set = self.built.geometry.prios_per_bucket();
        self.edit_prios(usize::try_from(bucket / per_set).unwrap(), |_, _, entries| {
            let entry = &mut entries[usize::try_from(bucket % per_set).unwrap()];
            entry.bucket_gen = Gen(change(entry.bucket_gen.0));
        });
    }

    fn edit_uuid(&self, slot: u64, change: impl FnOnce(&mut UuidEntry)) {
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
    fn nodes(&self, level: u16) -> Vec<LoadedNode> {
        let nodes = testkit::nodes(&self.device, level).unwrap();
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// Writes a node anew as a single set of changed keys, with a right checksum.
    fn edit_node(&self, node: &LoadedNode, change: impl FnOnce(&mut Vec<Bkey>)) {
        let mut keys = node.keys.iter().collect();
        change(&mut keys);
        let ptr = node.key.ptrs()[0];
        let bytes = bset::encode(self.built.magic, ptr, 99, &keys);
        let mut image = vec![0; usize::try_from(node.key.size().bytes()).unwrap()];
        image[..bytes.len()].copy_from_slice(&bytes);
        self.write(ptr.offset().bytes(), &image);
    }

    fn leaf(&self) -> LoadedNode {
        self.nodes(0).swap_remove(1)
    }

    fn interior(&self) -> LoadedNode {
        self.nodes(1).swap_remove(0)
    }

    /// A dirty key of the leaf of [`Self::leaf`], and the bucket of its data.
    fn dirty_key(&self) -> (Bkey, u64) {
        let key = self.leaf().keys.iter().find(Bkey::dirty).unwrap();
        (key, key.ptrs()[0].bucket(&self.built.geometry).0)
    }

    /// A bucket that nothing uses.
    fn unused_bucket(&self) -> u64 {
        self.first_data + DATA_BUCKETS + 50
    }
}

fn report(device: &dyn ReadDevice) -> Report {
    check(device, &CheckOptions::default(), &mut |_| {}).unwrap()
}

#[test]
fn a_sound_set_has_no_findings() {
    let sample = Sample::new();
    let report = sample.check();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.registration, Registration::Accepted);
    assert_eq!(report.dirty.len(), 2);
}

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

type Damage = (&'static str, fn(&Sample), Code, &'static [Code]);

/// Each damage: its name, what it does, the finding that must report it, and findings that come
/// along by nature.
const DAMAGES: &[Damage] = &[
    ("superblock byte", |s| s.flip(SB_OFFSET_BYTES + 72, 1), Code::SuperblockRefused, &[]),
    (
        "replacement policy 5",
        |s| {
            s.edit_superblock(|sb| {
                let flags = sb.flags();
                sb.edit(|sb| {
                    sb.flags(flags | 5 << 2);
                });
            });
        },
        Code::SuperblockHazard,
        &[],
    ),
    (
        "unknown flag",
        |s| {
            s.edit_superblock(|sb| {
                let flags = sb.flags();
                sb.edit(|sb| {
                    sb.flags(flags | 1 << 40);
                });
            });
        },
        Code::SuperblockUnknownFlags,
        &[],
    ),
    ("newest entry torn", |s| s.flip(s.entry_byte(43) + 250, 1), Code::JournalTorn, &[]),
    ("newest entry without magic", |s| s.flip(s.entry_byte(43) + 8, 1), Code::JournalTorn, &[]),
    (
        "entry with newer ones behind it",
        |s| {
            let byte = s.append(1, &[s.new_dirty_key()]);
            s.append(2, &[]);
            s.append(3, &[]);
            s.flip(byte + 250, 1);
        },
        Code::JournalHidden,
        &[],
    ),
    ("entry missing", |s| s.write(s.entry_byte(41), &[0; 512]), Code::JournalGap, &[]),
    (
        "entry beyond the search",
        |s| {
            let old = s.entry(43);
            let entry = old.successor(0, old.prio_bucket(0)).unwrap();
            let index = s.built.geometry.first_bucket().0 + 12;
            s.write(s.byte_of(BucketIndex(index)), entry.as_bytes());
        },
        Code::JournalSearch,
        &[],
    ),
    ("last_seq after seq", |s| s.edit_newest(|p| p.last_seq = 44), Code::JournalLastSeq, &[]),
    (
        "journal wiped",
        |s| (40..44).for_each(|seq| s.write(s.entry_byte(seq), &[0; 512])),
        Code::JournalEmpty,
        &[],
    ),
    (
        "journal key longer than its entry",
        |s| {
            let mut bytes = s.entry(43).as_bytes().to_vec();
            // KEY_PTRS of the only key: six instead of one.
            bytes[247] |= 0x60;
            let csum = crc64(&bytes[8..]);
            bytes[..8].copy_from_slice(&csum.to_le_bytes());
            s.write(s.entry_byte(43), &bytes);
        },
        Code::JournalKeys,
        &[],
    ),
    (
        "journal key past a bucket",
        |s| {
            let mut bad = s.dirty_key().0;
            bad.extend_by(100);
            s.write_newest(&[bad], |_| {});
        },
        Code::JournalBadKey,
        &[],
    ),
    (
        "prio set byte",
        |s| s.flip(s.byte_of(s.built.prio_buckets[1]) + 8000, 4),
        Code::PrioDamaged,
        &[],
    ),
    (
        "prio head out of range",
        |s| s.edit_newest(|p| p.prio_bucket[0] = 1 << 40),
        Code::PrioOutOfRange,
        &[],
    ),
    (
        "prio head in the journal",
        |s| s.edit_newest(|p| p.prio_bucket[0] = 3),
        Code::PrioInJournal,
        &[Code::PrioDamaged],
    ),
    (
        "prio chain bites its tail",
        |s| {
            let first = s.built.prio_buckets[0].0;
            s.edit_prios(0, |_, next, _| *next = first);
        },
        Code::PrioRepeated,
        &[],
    ),
    ("prio sets of two writes", |s| s.edit_prios(1, |seq, _, _| *seq += 1), Code::PrioMixed, &[]),
    (
        "uuid pointer without a pointer",
        |s| s.edit_newest(|p| p.uuid_bucket = Bkey::new(0, 0, 16)),
        Code::UuidPointer,
        &[],
    ),
    (
        "two slots of one uuid",
        |s| s.edit_uuid(1, |e| e.uuid = backing_volume(1).uuid),
        Code::UuidRepeated,
        &[],
    ),
    (
        "root past the device",
        |s| {
            s.edit_newest(|p| {
                p.btree_root = p.btree_root.with_ptrs(&[Ptr::new(Gen(1), Sectors(1 << 40), 0)]);
            });
        },
        Code::BtreeRoot,
        &[],
    ),
    ("node byte", |s| s.flip(s.leaf().sector().bytes() + 100, 1), Code::BtreeNode, &[]),
    ("interior node byte", |s| s.flip(s.interior().sector().bytes() + 40, 1), Code::BtreeNode, &[]),
    (
        "extent past a bucket",
        |s| s.edit_node(&s.leaf(), |keys| keys[3].extend_by(7)),
        Code::BtreeBadExtent,
        &[],
    ),
    (
        "child past the device",
        |s| {
            s.edit_node(&s.interior(), |keys| {
                keys[0] = keys[0].with_ptrs(&[Ptr::new(Gen(1), Sectors(1 << 40), 0)]);
            });
        },
        Code::BtreeBadPointer,
        &[],
    ),
    ("keys swapped", |s| s.edit_node(&s.leaf(), |keys| keys.swap(1, 2)), Code::BtreeOrder, &[]),
    (
        "key past its node",
        |s| {
            s.edit_node(&s.nodes(0)[0], |keys| {
                let last = keys.last_mut().unwrap();
                last.low += 8;
            });
        },
        Code::BtreePastNode,
        &[],
    ),
    (
        "two keys to one child",
        |s| {
            s.edit_node(&s.interior(), |keys| {
                keys[1] = keys[1].with_ptrs(&[keys[0].ptrs()[0]]);
            });
        },
        Code::BtreeRevisited,
        &[],
    ),
    (
        "leaf begins in the one before",
        |s| {
            let before = s.nodes(0)[0].keys.get(0).unwrap();
            s.edit_node(&s.leaf(), |keys| keys[0].low = before.low);
        },
        Code::BtreeBeforeNode,
        &[],
    ),
    (
        "last child gone",
        |s| {
            s.edit_node(&s.interior(), |keys| {
                keys.pop();
            });
        },
        Code::BtreeUncovered,
        &[],
    ),
    (
        "bucket of dirty data reused",
        |s| s.set_gen(s.dirty_key().1, |g| g + 1),
        Code::KeyStaleDirty,
        &[],
    ),
    (
        "bucket of dirty data that only the journal names reused",
        |s| {
            s.write_newest(&[s.new_dirty_key()], |_| {});
            s.set_gen(s.unused_bucket(), |g| g + 1);
        },
        Code::KeyStaleDirty,
        &[],
    ),
    (
        "pointer 97 behind",
        |s| s.set_gen(s.dirty_key().1, |g| g + 97),
        Code::KeyTooStale,
        &[Code::KeyStaleDirty, Code::BucketGenLimit],
    ),
    ("gen of data bucket set back", |s| s.set_gen(s.dirty_key().1, |g| g - 1), Code::KeyNewer, &[]),
    (
        "extent in a node",
        |s| {
            let node = s.nodes(1)[0].sector().0;
            s.edit_node(&s.leaf(), |keys| {
                keys[0] = keys[0].with_ptrs(&[Ptr::new(Gen(1), Sectors(node), 0)]);
            });
        },
        Code::KeyInconsistent,
        &[],
    ),
    (
        "volume gone from the table",
        |s| s.edit_uuid(1, |e| e.uuid = uuid::Uuid::nil()),
        Code::KeyNoVolume,
        &[],
    ),
    (
        "extent in the uuid table",
        |s| {
            let sector = s.built.geometry.bucket_to_sector(s.built.uuid_bucket);
            s.edit_node(&s.leaf(), |keys| {
                keys[0] = keys[0].with_ptrs(&[Ptr::new(Gen(1), sector, 0)]);
            });
        },
        Code::BucketShared,
        &[],
    ),
    (
        "three extents on one place",
        |s| {
            s.edit_node(&s.leaf(), |keys| {
                let ptr = Ptr::new(Gen(1), Sectors(s.unused_bucket() * 16), 0);
                keys.iter_mut().step_by(2).take(3).for_each(|key| *key = key.with_ptrs(&[ptr]));
            });
        },
        Code::BucketOverused,
        &[],
    ),
    (
        "clean pointer 96 behind",
        |s| {
            let key = s.leaf().keys.iter().find(|key| !key.dirty()).unwrap();
            let bucket = key.ptrs()[0].bucket(&s.built.geometry).0;
            s.set_gen(bucket, |g| g + 96);
        },
        Code::BucketGenLimit,
        &[Code::KeyStaleDirty],
    ),
    (
        "volume made flash-only",
        |s| {
            s.edit_uuid(0, |e| {
                e.flags = 1;
                e.sectors = Sectors(1 << 20);
            });
        },
        Code::VolumeFlashClean,
        &[],
    ),
    (
        "flash-only volume of no sectors",
        |s| s.edit_uuid(5, |e| *e = UuidEntry { flags: 1, ..backing_volume(9) }),
        Code::UuidEmptyFlash,
        &[],
    ),
    (
        "slot registered last before it was registered first",
        |s| s.edit_uuid(5, |e| *e = UuidEntry { first_reg: 9, ..backing_volume(9) }),
        Code::UuidSlot,
        &[],
    ),
    (
        "uuid table of random bytes",
        |s| {
            let mut table = vec![0; 4096];
            StdRng::seed_from_u64(1).fill(table.as_mut_slice());
            s.write(s.byte_of(s.built.uuid_bucket), &table);
        },
        Code::UuidNotATable,
        &[],
    ),
    (
        "sync flag cleared",
        |s| {
            s.edit_superblock(|sb| {
                sb.edit(|sb| {
                    sb.sync(false);
                });
            });
        },
        Code::SuperblockUnsynced,
        &[],
    ),
    ("magic wiped", |s| s.flip(SB_OFFSET_BYTES + 30, 0xff), Code::SuperblockMagic, &[]),
];

#[test]
fn every_damage_is_found_by_its_code_and_nothing_else_is() {
    for (name, damage, code, along) in DAMAGES {
        let sample = Sample::new();
        let before = sample.device.content_hash();
        damage(&sample);
        assert_ne!(sample.device.content_hash(), before, "{name}: the damage did not land");
        let report = sample.check();
        let found: BTreeSet<Code> = report.counts.keys().copied().collect();
        assert!(found.contains(code), "{name}: {:?}", report.findings);
        let stray: Vec<_> =
            found.iter().filter(|&other| other != code && !along.contains(other)).collect();
        assert!(stray.is_empty(), "{name}: {stray:?} beside {code}: {:?}", report.findings);
        let worst = report.findings.iter().map(Finding::severity).max().unwrap();
        assert_eq!(report.worst, Some(worst), "{name}");
        let refused = matches!(report.registration, Registration::Refused { .. });
        assert_eq!(refused, worst == Severity::KernelRefuses, "{name}");
        match worst {
            // Without a journal nobody knows of the dirty data.
            Severity::KernelRefuses => {
                assert_eq!(report.data_at_risk, !report.dirty.is_empty(), "{name}");
                assert!(report.data_at_risk || report.incomplete, "{name}");
            }
            Severity::DataAtRisk => assert!(report.data_at_risk, "{name}"),
            Severity::NotChecked | Severity::Untidy => assert!(!report.data_at_risk, "{name}"),
        }
        for finding in &report.findings {
            assert!(!finding.place().to_string().is_empty() && !finding.expected().is_empty());
        }
    }
}

/// The findings that tests below provoke otherwise than by damage to the sample.
const ELSEWHERE: &[Code] = &[
    Code::SuperblockCutOff,
    Code::JournalUnreadable,
    Code::PrioUnreadable,
    Code::UuidUnreadable,
    Code::BtreeUnreadable,
    Code::JournalChanged,
    Code::BackingUnreadable,
    Code::BackingRefused,
    Code::BackingOtherSet,
    Code::BackingDetached,
    Code::BackingNotInTable,
    Code::BackingStateClean,
    Code::BackingWrittenBack,
    Code::BackingStateStale,
    Code::BackingTooSmall,
    Code::BackingSetGone,
    Code::BackingReleased,
    Code::BackingMoved,
    Code::BackingBlockSize,
    // Tested on images that a kernel wrote.
    Code::CleanMismatch,
    Code::SuperblockGone,
];

#[test]
fn every_code_has_its_damage() {
    let covered: BTreeSet<Code> =
        DAMAGES.iter().map(|(_, _, code, _)| *code).chain(ELSEWHERE.iter().copied()).collect();
    let missing: Vec<_> = Code::ALL.iter().filter(|code| !covered.contains(code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Collects the problems themselves.
#[derive(Default)]
struct All(Vec<Problem>);

impl Visitor for All {
    fn problem(&mut self, problem: Problem) {
        self.0.push(problem);
    }
}

fn problems(device: &dyn ReadDevice) -> Vec<Problem> {
    let mut all = All::default();
    if let Ok(cache) = CacheDevice::open(device) {
        let _ = CacheSet::read(cache, &ReadOptions::default(), &mut all);
    }
    all.0
}

/// `show` and `check` say the same of registration, and of whether keys may be missing.
#[test]
fn what_the_kernel_refuses_is_told_alike_by_its_words_and_by_severity() {
    let agree = |name: &str, device: &dyn ReadDevice| {
        let report = report(device);
        let found = problems(device);
        let in_words = found.iter().any(|problem| SetRefusal::of(problem, None).is_some());
        let of_the_set = |finding: &&Finding| {
            finding.severity() == Severity::KernelRefuses
                && !matches!(finding.code(), Code::SuperblockRefused | Code::SuperblockMagic)
        };
        assert_eq!(in_words, report.findings.iter().any(|it| of_the_set(&it)), "{name}");
        if found.iter().any(Problem::hides_keys) {
            assert!(report.incomplete, "{name}");
        }
    };
    for (name, damage, ..) in DAMAGES {
        let sample = Sample::new();
        damage(&sample);
        agree(name, &sample.device);
    }
    let sample = Sample::new();
    for byte in unreadable_places(&sample) {
        agree("unreadable", &unreadable_at(&sample, byte));
    }
}

#[test]
fn an_entry_with_newer_ones_behind_it_was_not_torn_whichever_byte_is_damaged() {
    let sample = Sample::new();
    let byte = sample.append(1, &[sample.new_dirty_key()]);
    sample.append(2, &[]);
    let sound = sample.check();
    assert!(sound.is_clean(), "{:?}", sound.findings);
    for at in 0..264 {
        sample.flip(byte + at, 0x81);
        let report = sample.check();
        sample.flip(byte + at, 0x81);
        let codes: Vec<_> = report.counts.keys().collect();
        assert_eq!(codes, [&Code::JournalHidden], "byte {at}: {:?}", report.findings);
        assert!(report.data_at_risk && report.incomplete, "byte {at}");
        assert_eq!(report.registration, Registration::Accepted, "the kernel goes on without it");
    }
    // Entries behind it that are older are what a cycle before left.
    sample.write(byte, &[0; 512]);
    sample.write(byte + 512, sample.entry(40).as_bytes());
    assert!(sample.check().is_clean());
}

/// A device that is formatted again has the entries of the set before it just where the new set's next
/// ones would be, and with their numbers.
#[test]
fn what_another_set_left_behind_the_newest_entry_is_not_torn() {
    let sample = Sample::new();
    let other = SetMagic(!sample.built.magic.0);
    let byte = sample.append_of(other, 1, &[sample.new_dirty_key()]);
    let report = sample.check();
    assert!(report.is_clean(), "{:?}", report.findings);
    // Were it not whole, it could be an entry of this set with a damaged magic.
    sample.flip(byte + 32, 1);
    let report = sample.check();
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Code::JournalTorn]);
}

#[test]
fn a_torn_entry_leaves_it_open_whether_its_dirty_keys_are_lost() {
    let clean = |sample: &Sample| sample.new_dirty_key().with_dirty(false);
    // Bytes: of the checksum, of the number of key words, of the first key.
    for (keys, at, open) in [
        (&(|s: &Sample| vec![s.new_dirty_key()]) as &dyn Fn(&Sample) -> Vec<Bkey>, 0, true),
        (&|s| vec![clean(s), s.new_dirty_key()], 3, true),
        (&|s| vec![clean(s)], 28, true),
        (&|s| vec![clean(s)], 0, false),
        (&|_| Vec::new(), 0, false),
    ] {
        let sample = Sample::new();
        let byte = sample.append(1, &keys(&sample));
        sample.flip(byte + at, 0x40);
        let report = sample.check();
        let codes: Vec<_> = report.counts.keys().collect();
        assert_eq!(codes, [&Code::JournalTorn], "{:?}", report.findings);
        assert_eq!(report.worst, Some(Severity::Untidy));
        assert!(!report.data_at_risk);
        assert_eq!(report.incomplete, open, "{:?}", report.findings);
    }
}

#[test]
fn a_stale_dirty_key_of_the_journal_is_harmless_only_where_the_btree_went_on() {
    let severities = |keys: &dyn Fn(&Sample) -> Bkey| -> Vec<Severity> {
        let sample = Sample::new();
        let key = keys(&sample);
        sample.write_newest(&[key], |_| {});
        sample.set_gen(key.ptrs()[0].bucket(&sample.built.geometry).0, |g| g + 1);
        let report = sample.check();
        assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Code::KeyStaleDirty]);
        let worst = report.worst.unwrap();
        assert_eq!(report.data_at_risk, worst == Severity::DataAtRisk);
        // The figures are certain where nothing is lost.
        assert_eq!(report.incomplete, worst == Severity::DataAtRisk);
        report.findings.iter().map(Finding::severity).collect()
    };
    let clean_key = |s: &Sample| s.leaf().keys.iter().find(|key| !key.dirty()).unwrap();
    let elsewhere = |s: &Sample, key: &Bkey| {
        let sector = Sectors(s.unused_bucket() * 16);
        key.with_ptrs(&[Ptr::new(Gen(1), sector, 0)]).with_dirty(true)
    };
    assert_eq!(severities(&Sample::new_dirty_key), [Severity::DataAtRisk]);
    // In the btree too, just as dirty and stale: nothing went on.
    assert_eq!(severities(&|s| s.dirty_key().0), [Severity::DataAtRisk]);
    // An older dirty write is there.
    assert_eq!(severities(&|s| elsewhere(s, &s.dirty_key().0)), [Severity::DataAtRisk]);
    assert_eq!(severities(&|s| elsewhere(s, &clean_key(s))), [Severity::Untidy]);
    // One half of the key lies over a clean key of the btree, the other over none.
    let half = |s: &Sample| {
        let mut key = elsewhere(s, &clean_key(s));
        key.low += EXTENT / 2;
        key
    };
    assert_eq!(severities(&half), [Severity::Untidy, Severity::DataAtRisk]);
}

#[test]
fn a_stale_dirty_key_that_newer_ones_of_the_journal_hide_is_no_finding() {
    let sample = Sample::new();
    let key = sample.new_dirty_key();
    let hole = Bkey::new(key.inode(), key.offset(), u16::try_from(EXTENT).unwrap());
    sample.write_newest(&[key, hole], |_| {});
    sample.set_gen(sample.unused_bucket(), |g| g + 1);
    assert!(sample.check().is_clean(), "{:?}", sample.check().findings);
}

/// Many faults of one kind leave room for one of another.
#[test]
fn faults_of_a_node_are_bounded_by_kind() {
    let kinds = |sample: &Sample| -> Vec<(FaultKind, bool)> {
        let faults = problems(&sample.device).into_iter().filter_map(|problem| match problem {
            Problem::Btree(BtreeProblem::Fault { fault, .. }) => {
                Some((fault.kind(), matches!(fault, NodeFault::More { .. })))
            }
            _ => None,
        });
        faults.collect()
    };
    let extents = |from: u64| (from..from + 40).map(|n| Bkey::new(0, 10 + n * 10, 8));
    let leaf = |sample: &Sample, keys: Vec<Bkey>| {
        let node = sample.nodes(0).remove(0);
        let ptr = node.key.ptrs()[0];
        let bytes = bset::encode(sample.built.magic, ptr, 99, &keys);
        let mut image = vec![0; 8192];
        image[..bytes.len()].copy_from_slice(&bytes);
        sample.write(ptr.offset().bytes(), &image);
    };
    // Bad extents only: not a word of order.
    let sample = Sample::new();
    let bad = Ptr::new(Gen(1), Sectors(1 << 40), 0);
    leaf(&sample, extents(0).map(|key| key.with_ptrs(&[bad])).collect());
    let found = kinds(&sample);
    assert!(found.iter().all(|(kind, _)| *kind == FaultKind::BadExtent), "{found:?}");
    assert!(found.contains(&(FaultKind::BadExtent, true)), "{found:?}");
    assert!(!sample.check().counts.contains_key(&Code::BtreeOrder));
    // Keys in the reverse order, and one bad extent behind them.
    let sample = Sample::new();
    let mut keys: Vec<Bkey> = extents(0).collect();
    keys.reverse();
    keys.push(Bkey::new(0, 900, 8).with_ptrs(&[bad]));
    leaf(&sample, keys);
    let found = kinds(&sample);
    assert!(found.contains(&(FaultKind::OutOfOrder, true)), "{found:?}");
    assert!(found.contains(&(FaultKind::BadExtent, false)), "{found:?}");
    let report = sample.check();
    assert!(matches!(report.registration, Registration::Refused { .. }), "{:?}", report.findings);
}

/// Only what is at stake is at risk.
#[test]
fn a_refused_cache_without_dirty_data_puts_none_at_risk() {
    let builder = SetBuilder { nbuckets: 700, bucket_size: Sectors(16), ..SetBuilder::default() };
    let device = MemoryDevice::new(700 * 16 * 512);
    let bucket = builder.data_buckets(0).start;
    let key = data_key(&builder, 0, 100, bucket, 0);
    let built = builder.write(&device, std::iter::once(key)).unwrap();
    let flip_in = |byte: u64, places: &[usize]| {
        let mut sector = [0; 512];
        device.read_at(byte, &mut sector).unwrap();
        for place in places {
            sector[*place] ^= 1;
        }
        device.write_at(byte, &sector).unwrap();
    };
    let flip = |byte: u64| flip_in(byte, &[100]);
    // Damage in one place hides nothing.
    flip(SB_OFFSET_BYTES);
    let refused = report(&device);
    assert!(matches!(refused.registration, Registration::Refused { .. }));
    assert_eq!((refused.stakes.answer, refused.data_at_risk), (Answer::None, false));
    flip(SB_OFFSET_BYTES);
    // What the superblock says cannot be trusted: it may hide newer journal entries.
    flip_in(SB_OFFSET_BYTES, &[80, 100]);
    let refused = report(&device);
    assert!(matches!(refused.registration, Registration::Refused { .. }));
    assert!(!refused.data_at_risk && refused.incomplete && !refused.unread);
    assert_eq!(refused.stakes.answer, Answer::Unknown);
    // A backing device that lacks nothing settles it.
    let complete = backing(BackingState::Clean, |_| {});
    let options = CheckOptions { backing: vec![&complete], ..CheckOptions::default() };
    let settled = check(&device, &options, &mut |_| {}).unwrap();
    assert_eq!(settled.stakes.answer, Answer::None);
    assert!(!settled.data_at_risk);
    flip_in(SB_OFFSET_BYTES, &[80, 100]);
    // Gens are in doubt: it cannot be told.
    flip(built.geometry.bucket_to_sector(built.prio_buckets[0]).bytes());
    let refused = report(&device);
    assert!(matches!(refused.registration, Registration::Refused { .. }));
    assert!(!refused.data_at_risk && refused.incomplete);
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

/// A journal that moves on while it is read: the second reading of an entry finds zeroes.
struct Moving {
    device: MemoryDevice,
    entry: u64,
    seen: AtomicBool,
}

impl ReadDevice for Moving {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read_at(offset, buf)?;
        if offset == self.entry && self.seen.swap(true, Ordering::Relaxed) {
            buf.fill(0);
        }
        Ok(())
    }
}

#[test]
fn a_journal_that_changes_meanwhile_is_told() {
    let sample = Sample::new();
    let entry = sample.entry_byte(41);
    let device = Moving { device: sample.device.clone(), entry, seen: AtomicBool::new(false) };
    let report = report(&device);
    let codes: Vec<_> = report.counts.keys().copied().collect();
    assert_eq!(codes, [Code::JournalGap, Code::JournalChanged]);
}

const UNREADABLE: [Code; 4] =
    [Code::JournalUnreadable, Code::PrioUnreadable, Code::UuidUnreadable, Code::BtreeUnreadable];

/// A place for each of [`UNREADABLE`].
fn unreadable_places(sample: &Sample) -> [u64; 4] {
    [
        sample.entry_byte(40),
        sample.byte_of(sample.built.prio_buckets[1]),
        sample.byte_of(sample.built.uuid_bucket),
        sample.leaf().sector().bytes(),
    ]
}

fn unreadable_at(sample: &Sample, byte: u64) -> FaultDevice<MemoryDevice> {
    FaultDevice::new(sample.device.snapshot()).with(
        Fault::new(Trigger::Overlaps { operation: None, offset: byte, len: 512 })
            .lasting(Lasting::Always),
    )
}

#[test]
fn unreadable_places_are_told_and_the_rest_is_read() {
    let sample = Sample::new();
    for (byte, code) in unreadable_places(&sample).into_iter().zip(UNREADABLE) {
        let report = report(&unreadable_at(&sample, byte));
        assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&code], "{:?}", report.findings);
        assert!(report.incomplete && report.unread);
    }
}

fn backing(state: BackingState, change: impl FnOnce(&mut BackingParams)) -> MemoryDevice {
    let mut params = BackingParams {
        uuid: backing_volume(1).uuid,
        set_uuid: SetBuilder::default().superblock().set_uuid(),
        label: Label::default(),
        data_offset: Sectors(16),
        block_size: 1,
        cache_mode: CacheMode::Writeback,
    };
    change(&mut params);
    let mut sb = Superblock::new_backing(&params);
    sb.edit(|sb| {
        sb.state(state);
    });
    let device = MemoryDevice::new(600 << 20);
    device.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
    device
}

#[test]
fn backing_devices_must_belong() {
    let sample = Sample::new();
    let codes = |device: &MemoryDevice| -> Vec<Code> {
        let options = CheckOptions { backing: vec![device], ..CheckOptions::default() };
        let report = check(&sample.device, &options, &mut |_| {}).unwrap();
        report.counts.keys().copied().collect()
    };
    let dirty = BackingState::Dirty;
    assert_eq!(codes(&backing(dirty, |_| {})), []);
    // The sample's data is zeroes, and so is the device's: it was written back.
    let written_back = backing(BackingState::Clean, |_| {});
    assert_eq!(codes(&written_back), [Code::BackingWrittenBack]);
    for sector in (2..1_200_000 / EXTENT).map(|extent| extent * EXTENT) {
        written_back.write_at(sector * 512, &[0x55; 512]).unwrap();
    }
    assert_eq!(codes(&written_back), [Code::BackingStateClean]);
    assert_eq!(codes(&backing(BackingState::Stale, |_| {})), [Code::BackingStateStale]);
    let other = uuid::Uuid::from_u128(77);
    let (none, clean) = (BackingState::None, BackingState::Clean);
    assert_eq!(codes(&backing(dirty, |p| p.set_uuid = other)), [Code::BackingMoved]);
    assert_eq!(codes(&backing(none, |p| p.set_uuid = uuid::Uuid::nil())), [Code::BackingReleased]);
    assert_eq!(codes(&backing(clean, |p| p.uuid = other)), [Code::BackingNotInTable]);
    let stranger = |state| backing(state, |p| (p.uuid, p.set_uuid) = (other, other));
    assert_eq!(codes(&stranger(clean)), [Code::BackingOtherSet]);
    // Nothing is said against a device that needs no cache, unless the cache may hold something of it.
    let detached = backing(none, |p| (p.uuid, p.set_uuid) = (other, uuid::Uuid::nil()));
    assert_eq!(codes(&detached), [Code::BackingDetached]);
    let leaf = sample.leaf().sector().bytes() + 100;
    sample.flip(leaf, 1);
    let in_doubt = codes(&detached);
    sample.flip(leaf, 1);
    assert!(in_doubt.contains(&Code::BackingOtherSet), "{in_doubt:?}");
    for state in [dirty, BackingState::Stale] {
        assert_eq!(codes(&backing(state, |p| p.uuid = other)), [Code::BackingSetGone]);
        assert_eq!(codes(&stranger(state)), [Code::BackingSetGone]);
    }
    sample.edit_superblock(|sb| {
        *sb = SetBuilder { block_size: 8, ..sample.builder.clone() }.superblock();
    });
    assert!(codes(&backing(none, |p| p.uuid = other)).contains(&Code::BackingBlockSize));
    sample.edit_superblock(|sb| *sb = sample.builder.superblock());
    assert_eq!(codes(&backing(BackingState::None, |p| p.uuid = other)), []);
    assert_eq!(codes(&MemoryDevice::new(1 << 20)), [Code::BackingUnreadable]);
    let small = backing(dirty, |_| {}).with_info(|info| {
        info.size_bytes = 1 << 20;
        info.disk_size = Sectors(2048);
    });
    assert_eq!(codes(&small), [Code::BackingTooSmall]);
    assert_eq!(codes(&backing(dirty, |p| p.block_size = 0)), [Code::BackingRefused]);
}

/// What is wrong with a backing device says nothing of the cache.
#[test]
fn a_backing_device_is_no_verdict_on_the_cache() {
    // All of its data is clean.
    let builder = SetBuilder { nbuckets: 700, bucket_size: Sectors(16), ..SetBuilder::default() };
    let cache = MemoryDevice::new(700 * 16 * 512);
    let key = data_key(&builder, 0, 100, builder.data_buckets(0).start, 0);
    builder.write(&cache, std::iter::once(key)).unwrap();
    let other = uuid::Uuid::from_u128(77);
    let clean = BackingState::Clean;
    for (device, worst) in [
        (MemoryDevice::new(1 << 20), Severity::NotChecked),
        (backing(clean, |p| p.set_uuid = other), Severity::NotChecked),
        (backing(clean, |p| p.block_size = 0), Severity::KernelRefuses),
    ] {
        let options = CheckOptions { backing: vec![&device], ..CheckOptions::default() };
        let report = check(&cache, &options, &mut |_| {}).unwrap();
        assert_eq!(report.worst, Some(worst), "{:?}", report.findings);
        assert_eq!(report.registration, Registration::Accepted);
        assert!(!report.data_at_risk, "{:?}", report.findings);
    }
}

/// However few are listed, all are counted, and none of another kind gets lost behind them.
#[test]
fn findings_of_backing_devices_are_counted_listed_or_not() {
    let sample = Sample::new();
    let backing = backing(BackingState::Dirty, |_| {});
    let data = vec![0x5a; usize::try_from(DATA_BUCKETS * 16 * 512).unwrap()];
    sample.device.write_at(sample.byte_of(BucketIndex(sample.first_data)), &data).unwrap();
    let clean: Vec<u64> = (0..DATA_BUCKETS).filter(|n| n % 5 != 0).collect();
    let last = 100 + clean[clean.len() - 1] * 3 * EXTENT - EXTENT;
    let unreadable = Trigger::Overlaps { operation: None, offset: last * 512, len: 512 };
    let backing = FaultDevice::new(backing).with(Fault::new(unreadable).lasting(Lasting::Always));
    for listed in [0, 3, 100, usize::MAX] {
        let options = CheckOptions {
            backing: vec![&backing],
            verify_clean: true,
            findings_per_code: listed,
            ..CheckOptions::default()
        };
        let report = check(&sample.device, &options, &mut |_| {}).unwrap();
        let mismatches = clean.len() as u64 - 1;
        let counts: Vec<_> = report.counts.iter().map(|(code, count)| (*code, *count)).collect();
        assert_eq!(counts, [(Code::BackingUnreadable, 1), (Code::CleanMismatch, mismatches)]);
        let mut told = report.findings.iter().filter(|it| it.code() == Code::CleanMismatch);
        assert_eq!(told.by_ref().count(), listed.min(clean.len() - 1));
        assert!(report.unread && report.incomplete);
        assert_eq!(report.worst, Some(Severity::DataAtRisk));
    }
}

/// Every metadata byte of the sample: superblock, journal entries, prio sets, uuid table, nodes.
fn metadata_ranges(sample: &Sample) -> Vec<(&'static str, u64, u64)> {
    let mut ranges = vec![("superblock", SB_OFFSET_BYTES, 2264)];
    ranges.extend((40..44).map(|seq| ("journal", sample.entry_byte(seq), 264)));
    for bucket in &sample.built.prio_buckets {
        ranges.push(("prios", sample.byte_of(*bucket), 8192));
    }
    ranges.push(("uuids", sample.byte_of(sample.built.uuid_bucket), 256));
    for level in 0..=sample.built.root.0 {
        for node in sample.nodes(level) {
            for (index, set) in node.sets.iter().enumerate() {
                let what = if index == 0 { "first set" } else { "later set" };
                let start = node.sector().bytes() + set.offset as u64;
                ranges.push((what, start, 32 + set.key_bytes as u64));
            }
        }
    }
    ranges
}

/// A sample for the whole of a property test, which undoes what it does to it.
fn with_sample<T>(test: impl FnOnce(&Sample, &[(&'static str, u64, u64)]) -> T) -> T {
    thread_local! {
        static SAMPLE: (Sample, Vec<(&'static str, u64, u64)>) = {
            let sample = Sample::new();
            let ranges = metadata_ranges(&sample);
            (sample, ranges)
        };
    }
    SAMPLE.with(|(sample, ranges)| test(sample, ranges))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Flips bits of any metadata byte. Nothing panics or hangs, and what a checksum covers, the
    /// kernel would notice, and so does the check.
    #[test]
    fn any_flipped_byte_is_survived_and_noticed_where_the_kernel_would(
        place in any::<proptest::sample::Index>(), mask in 1u8..,
    ) {
        with_sample(|sample, ranges| {
            let total: u64 = ranges.iter().map(|range| range.2).sum();
            let mut rest = place.index(usize::try_from(total).unwrap()) as u64;
            let range = ranges.iter().find(|range| {
                let here = rest < range.2;
                if !here {
                    rest -= range.2;
                }
                here
            });
            let &(what, start, _) = range.unwrap();
            let byte = start + rest;
            sample.flip(byte, mask);
            let result = check(&sample.device, &CheckOptions::default(), &mut |_| {});
            sample.flip(byte, mask);
            let found = result.map_or(true, |report| !report.is_clean());
            let noticed = match what {
                // Behind the last journal bucket's number nothing is covered by the checksum.
                "superblock" => rest < 208 + 8 * 16,
                // Entry 40 is not needed any more. With a smaller sequence number an entry looks like
                // what a power cut left of an older cycle.
                "journal" => start != sample.entry_byte(40) && !(16..24).contains(&rest),
                "prios" | "first set" => true,
                // A later set of another seq is none of the node's: the node ends before it.
                "later set" => !(16..24).contains(&rest),
                _ => false,
            };
            prop_assert!(found || !noticed, "{what} byte {rest} at {byte}, mask {mask:#x}");
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whole stretches overwritten with noise: no panic, no hang.
    #[test]
    fn noise_is_survived(
        place in any::<proptest::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 1..600),
    ) {
        with_sample(|sample, ranges| {
            let before = sample.device.snapshot();
            let (_, start, len) = ranges[place.index(ranges.len())];
            let mut image = vec![0; usize::try_from(len).unwrap().next_multiple_of(512)];
            sample.device.read_at(start, &mut image).unwrap();
            let at = place.index(image.len());
            for (to, from) in image[at..].iter_mut().zip(noise) {
                *to = from;
            }
            sample.device.write_at(start, &image).unwrap();
            let _ = check(&sample.device, &CheckOptions::default(), &mut |_| {});
            sample.device.restore(&before);
        });
    }
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

/// What a repair answers to a damage.
fn answer(name: &str, device: &dyn BlockDevice, backing: &[&dyn BlockDevice]) -> String {
    let named: Vec<&dyn ReadDevice> = backing.iter().map(|it| *it as &dyn ReadDevice).collect();
    let errors = |device: &dyn BlockDevice| -> BTreeSet<Code> {
        let options = CheckOptions { backing: named.clone(), ..CheckOptions::default() };
        let findings = check(&device, &options, &mut |_| {}).unwrap().findings;
        let errors = findings.iter().filter(|it| it.severity() >= Severity::DataAtRisk);
        errors.map(Finding::code).collect()
    };
    let before = errors(device);
    let options = ReadOptions::default();
    let plan = repair::plan(&device, &named, &options, &mut |_| {}).unwrap();
    let all: BTreeSet<repair::Code> = repair::Code::ALL.into();
    repair::run(&plan, &all, device, backing, &options, 3)
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let told: BTreeSet<Code> = plan.left_with(&all).map(repair::Left::finding).collect();
    let after = errors(device);
    assert!(after.is_subset(&told), "{name}: {after:?}, told: {told:?}");
    assert!(told.iter().all(|code| !code.advice().is_empty()));
    if plan.is_whole(&all) {
        assert!(after.is_empty(), "{name}");
        let fixes = plan.fixes.iter().map(|fix| (fix.code, fix.class));
        let reasons = plan.anew.iter().flat_map(|anew| &anew.reasons);
        let reasons = reasons.map(|reason| (reason.code(), reason.class()));
        let mut made: Vec<String> = fixes
            .chain(reasons)
            .map(|(code, class)| format!("{} {}", class.name(), code.name()))
            .collect();
        made.dedup();
        assert!(before.is_empty() || !made.is_empty(), "{name}");
        made.join(", ")
    } else {
        let told: Vec<&str> = told.iter().map(|code| code.name()).collect();
        format!("told: {}", told.join(", "))
    }
}

/// By number and damage: what a repair makes, and how sure it is; or what it says that it cannot mend.
const ANSWERS: &[&str] = &[
    "101 superblock byte: certain flipped-bit",
    "102 replacement policy 5: certain superblock-policy",
    "103 unknown flag:",
    "202 newest entry torn: certain flipped-bit",
    "202 newest entry without magic: certain flipped-bit",
    "210 entry with newer ones behind it: certain flipped-bit",
    "203 entry missing: likely journal",
    "204 entry beyond the search: told: journal-search",
    "207 last_seq after seq: likely last-seq",
    "208 journal wiped: guess journal, likely uuid-table, likely btree-node",
    "206 journal key longer than its entry: likely journal",
    "209 journal key past a bucket: likely journal",
    "302 prio set byte: certain flipped-bit",
    "303 prio head out of range: likely prio-sets",
    "304 prio head in the journal: likely prio-sets",
    "305 prio chain bites its tail: likely prio-sets",
    "306 prio sets of two writes: likely prio-sets",
    "401 uuid pointer without a pointer: certain uuid-table",
    "403 two slots of one uuid: told: uuid-repeated",
    "501 root past the device: guess journal, likely btree-node",
    "503 node byte: certain flipped-bit",
    "503 interior node byte: certain flipped-bit",
    "504 extent past a bucket: guess btree-node",
    "505 child past the device: likely btree-node",
    "506 keys swapped: guess btree-node",
    "507 key past its node: likely btree-node",
    "508 two keys to one child: likely btree-node",
    "509 leaf begins in the one before: guess btree-node",
    "510 last child gone: likely btree-node",
    "601 bucket of dirty data reused: guess keys",
    "601 bucket of dirty data that only the journal names reused: guess keys",
    "602 pointer 97 behind: guess keys",
    "603 gen of data bucket set back:",
    "604 extent in a node: certain keys",
    "605 volume gone from the table: told: key-no-volume",
    "606 extent in the uuid table: certain keys",
    "607 three extents on one place: told: bucket-overused",
    "608 clean pointer 96 behind: guess keys",
    "609 volume made flash-only: certain keys",
    "406 flash-only volume of no sectors: certain uuid-table",
    "405 slot registered last before it was registered first: certain uuid-table",
    "404 uuid table of random bytes: told: uuid-not-a-table",
    "105 sync flag cleared: guess superblock-sync",
    "106 magic wiped: certain superblock-magic",
    "201: told: journal-unreadable",
    "301: likely prio-sets",
    "402: told: uuid-unreadable",
    "502: guess btree-node",
    "706 run alone: told: backing-state-stale",
    "711 attached to another set: told: backing-moved",
    "104 cut off: told: superblock-cut-off",
];

/// Whatever the check finds that is worse than untidy, a repair mends, or says that it does not.
#[test]
fn repair_has_an_answer_to_every_finding() {
    let mut answers = Vec::new();
    for (name, damage, code, _) in DAMAGES {
        let sample = Sample::new();
        damage(&sample);
        let answer = answer(name, &sample.device, &[]);
        answers.push(format!("{} {name}: {answer}", code.number()).trim_end().to_owned());
    }
    let sample = Sample::new();
    for (byte, code) in unreadable_places(&sample).into_iter().zip(UNREADABLE) {
        let device = unreadable_at(&sample, byte);
        answers.push(format!("{}: {}", code.number(), answer(code.name(), &device, &[])));
    }
    let alone = backing(BackingState::Stale, |_| {});
    let moved = backing(BackingState::Dirty, |it| it.set_uuid = uuid::Uuid::from_u128(77));
    for (name, code, device) in [
        ("run alone", Code::BackingStateStale, alone),
        ("attached to another set", Code::BackingMoved, moved),
    ] {
        let answer = answer(name, &sample.device.snapshot(), &[&device]);
        answers.push(format!("{} {name}: {answer}", code.number()));
    }
    let short = sample.device.clone().with_info(|info| {
        info.size_bytes /= 2;
        info.disk_size = Sectors(info.size_bytes / 512);
    });
    answers.push(format!("104 cut off: {}", answer("cut off", &short, &[])));
    assert_eq!(answers, ANSWERS);
}
