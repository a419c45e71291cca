//! A change: what is mended, where, and how sure it is.

use std::collections::BTreeSet;

use crate::ops::backing_gone::Recognised;
use crate::ops::plan::Step;
use crate::units::BucketIndex;

/// What is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The magic of a superblock was wiped, and its checksum proves that nothing else was.
    SuperblockMagic,
    /// A superblock is gone, and the rest of the set tells what it was.
    SuperblockGone,
    /// A set is behind the superblock of a new one, and the rest of it tells what its own was.
    SuperblockCoversSet,
    /// One bit was flipped, which the checksum names.
    FlippedBit,
    /// One field of a superblock was changed, which the checksum names.
    SuperblockField,
    /// The checksum of a superblock is wrong, and all that it says is true of the device.
    SuperblockChecksum,
    /// The superblock says that the cache is new, and a set is on it.
    SuperblockSync,
    /// The superblock has a replacement policy that the kernel does not know, and does not survive.
    SuperblockPolicy,
    /// A journal entry says that replay begins after it.
    LastSeq,
    /// Journal entries are missing, or damage hides newer ones from the kernel.
    Journal,
    /// Prio sets are lost.
    PrioSets,
    /// The uuid table is lost or damaged.
    UuidTable,
    /// A btree node is lost or damaged, the root among them, or contradicts others.
    BtreeNode,
    /// Keys contradict their buckets, or their volume.
    Keys,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::SuperblockMagic,
        Self::SuperblockGone,
        Self::SuperblockCoversSet,
        Self::FlippedBit,
        Self::SuperblockField,
        Self::SuperblockChecksum,
        Self::SuperblockSync,
        Self::SuperblockPolicy,
        Self::LastSeq,
        Self::Journal,
        Self::PrioSets,
        Self::UuidTable,
        Self::BtreeNode,
        Self::Keys,
    ];

    /// Its name, which does not change.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SuperblockMagic => "superblock-magic",
            Self::SuperblockGone => "superblock-gone",
            Self::SuperblockCoversSet => "superblock-covers-set",
            Self::FlippedBit => "flipped-bit",
            Self::SuperblockField => "superblock-field",
            Self::SuperblockChecksum => "superblock-checksum",
            Self::SuperblockSync => "superblock-sync",
            Self::SuperblockPolicy => "superblock-policy",
            Self::LastSeq => "last-seq",
            Self::Journal => "journal",
            Self::PrioSets => "prio-sets",
            Self::UuidTable => "uuid-table",
            Self::BtreeNode => "btree-node",
            Self::Keys => "keys",
        }
    }
}

/// How sure it is that a change restores what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// It is proven, by a checksum or by what the journal still has.
    Certain,
    /// Everything speaks for it, and nothing proves it; or the set is still damaged afterwards, and
    /// the kernel could register it.
    Likely,
    /// Data that the cache alone had may be lost or old.
    Guess,
}

impl Class {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
            Self::Guess => "guess",
        }
    }
}

/// Where a change is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// A journal entry.
    JournalEntry {
        /// Its bucket.
        bucket: BucketIndex,
        /// Its number.
        seq: u64,
    },
    /// A prio set.
    PrioSet {
        /// Its place in the chain.
        index: u64,
        /// Its bucket.
        bucket: BucketIndex,
    },
    /// A btree node.
    BtreeNode {
        /// Its bucket.
        bucket: BucketIndex,
        /// Its level.
        level: u16,
    },
    /// What stands before the superblock, of which bcache has nothing.
    Head,
    /// Data of a backing device.
    Data {
        /// First sector, from the start of the device.
        start: u64,
        /// How many.
        sectors: u64,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::JournalEntry { bucket, seq } => {
                write!(f, "journal entry {seq} in bucket {bucket}")
            }
            Self::PrioSet { index, bucket } => write!(f, "prio set {index} in bucket {bucket}"),
            Self::BtreeNode { bucket, level } => {
                write!(f, "btree node in bucket {bucket} (level {level})")
            }
            Self::Head => f.write_str("sectors 0 to 7"),
            Self::Data { start, sectors } => {
                write!(f, "sectors {start} to {}", start.saturating_add(*sectors).saturating_sub(1))
            }
        }
    }
}

/// One change.
#[derive(Clone, Debug)]
pub struct Fix {
    /// What is mended.
    pub code: Code,
    /// How sure it is.
    pub class: Class,
    /// The backing device, counted in the order given; `None` for the cache.
    pub backing: Option<usize>,
    /// Where.
    pub place: Place,
    /// The first byte that changes, from the start of the device.
    pub byte: u64,
    /// Of a backing device whose superblock is made again: what it is, and how that is known.
    pub recognised: Option<Recognised>,
    /// Of a backing device: what was made on it since its superblock was overwritten.
    pub holds: Option<String>,
    pub(super) step: Step,
}

impl Fix {
    /// A change of which nothing has to be known but where it is made.
    pub(super) const fn new(code: Code, class: Class, place: Place, byte: u64, step: Step) -> Self {
        Self { code, class, backing: None, place, byte, recognised: None, holds: None, step }
    }

    /// Whether it is made where likely changes of these codes are accepted.
    pub fn is_accepted(&self, accepted: &BTreeSet<Code>) -> bool {
        self.class == Class::Certain || accepted.contains(&self.code)
    }
}
