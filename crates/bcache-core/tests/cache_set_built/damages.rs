//! What is done to the sample, and what the check has to say of it.

use bcache_core::cache_set::testkit::backing_volume;
use bcache_core::checksum::crc64;
use bcache_core::device::testkit::{Fault, FaultDevice, Lasting, MemoryDevice, Trigger};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::superblock::SB_OFFSET_BYTES;
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::ops::check::Code;
use bcache_core::units::{BucketIndex, Gen, Sectors};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::sample::Sample;

pub(crate) type Damage = (&'static str, fn(&Sample), Code, &'static [Code]);

/// Each damage: its name, what it does, the finding that must report it, and findings that come
/// along by nature.
pub(crate) const DAMAGES: &[Damage] = &[
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
        "two newest entries",
        |s| {
            for byte in [s.entry_byte(42), s.entry_byte(43)] {
                s.flip(byte + 100, 3);
                s.flip(byte + 120, 0x50);
            }
        },
        Code::JournalNewestLost,
        &[Code::JournalTorn],
    ),
    (
        "newest entry with the number of another",
        |s| s.flip(s.entry_byte(43) + 17, 1),
        Code::JournalNewestLost,
        &[Code::JournalTorn],
    ),
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
        "keys of a leaf lost without a trace",
        |s| s.write_entry(40, &[s.new_dirty_key()], |_| {}),
        Code::BtreeLostKeys,
        &[],
    ),
    (
        "older keys of a leaf back",
        |s| {
            let hole = s.dirty_key().0.with_ptrs(&[]).with_dirty(false);
            s.write_entry(40, &[hole], |_| {});
        },
        Code::BtreeLostKeys,
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
        "slot with a flag that no kernel has",
        |s| s.edit_uuid(5, |e| *e = UuidEntry { flags: 2, ..backing_volume(9) }),
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

pub(crate) const UNREADABLE: [Code; 4] =
    [Code::JournalUnreadable, Code::PrioUnreadable, Code::UuidUnreadable, Code::BtreeUnreadable];

/// A place for each of [`UNREADABLE`].
pub(crate) fn unreadable_places(sample: &Sample) -> [u64; 4] {
    [
        sample.entry_byte(40),
        sample.byte_of(sample.built.prio_buckets[1]),
        sample.byte_of(sample.built.uuid_bucket),
        sample.leaf().sector().bytes(),
    ]
}

pub(crate) fn unreadable_at(sample: &Sample, byte: u64) -> FaultDevice<MemoryDevice> {
    FaultDevice::new(sample.device.snapshot()).with(
        Fault::new(Trigger::Overlaps { operation: None, offset: byte, len: 512 })
            .lasting(Lasting::Always),
    )
}
