//! Where something was found.

use std::fmt;
use std::path::PathBuf;

use crate::cache_set::journal::JournalPlace;
use crate::cache_set::{KeySource, NodePlace};
use crate::layout::bkey::Bkey;
use crate::units::BucketIndex;

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// The journal as a whole.
    Journal,
    /// A place in a journal bucket.
    JournalBucket {
        /// The bucket.
        bucket: BucketIndex,
        /// Bytes from its start.
        offset: u64,
    },
    /// An entry of the journal.
    JournalEntry {
        /// Its sequence number.
        seq: u64,
    },
    /// A prio set.
    PrioSet {
        /// Position in the chain.
        index: u64,
        /// The bucket, as the chain names it.
        bucket: u64,
    },
    /// The uuid table.
    Uuids,
    /// One slot of the uuid table.
    UuidSlot {
        /// The slot.
        slot: u32,
    },
    /// The journal's pointer to the root.
    Root,
    /// A btree node.
    Node(NodePlace),
    /// A key.
    Key {
        /// Where it stands.
        origin: KeySource,
        /// The key.
        key: Bkey,
    },
    /// A bucket.
    Bucket(BucketIndex),
    /// All buckets.
    Buckets,
    /// A device of which nobody knows what it is.
    Device {
        /// Its path.
        path: PathBuf,
    },
    /// A backing device.
    Backing {
        /// Its path.
        path: PathBuf,
    },
    /// A stretch of a volume.
    Volume {
        /// Its slot.
        slot: u32,
        /// First sector, as keys count.
        start: u64,
        /// Sectors.
        sectors: u64,
    },
}

impl From<JournalPlace> for Place {
    fn from(place: JournalPlace) -> Self {
        Self::JournalBucket { bucket: place.bucket, offset: place.offset }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::Journal => f.write_str("journal"),
            Self::JournalBucket { bucket, offset } => {
                write!(f, "journal bucket {bucket}, byte {offset}")
            }
            Self::JournalEntry { seq } => write!(f, "journal entry {seq}"),
            Self::PrioSet { index, bucket } => write!(f, "prio set {index}, bucket {bucket}"),
            Self::Uuids => f.write_str("uuid table"),
            Self::UuidSlot { slot } => write!(f, "uuid slot {slot}"),
            Self::Root => f.write_str("btree root pointer"),
            Self::Node(place) => place.fmt(f),
            Self::Key { origin, key } => write!(f, "key {key:?} in {origin}"),
            Self::Bucket(bucket) => write!(f, "bucket {bucket}"),
            Self::Buckets => f.write_str("buckets"),
            Self::Device { path } => write!(f, "device {}", path.display()),
            Self::Backing { path } => write!(f, "backing device {}", path.display()),
            Self::Volume { slot, start, sectors } => {
                write!(f, "volume in slot {slot}, sectors {start}+{sectors}")
            }
        }
    }
}
