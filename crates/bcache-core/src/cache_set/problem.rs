//! What a reader can find wrong with a cache set, beside the structures' own errors.

use crate::cache_set::btree::{NodeFault, NodeReadError};
use crate::cache_set::journal::JournalProblem;
use crate::cache_set::prios::PrioProblem;
use crate::cache_set::table::GcMark;
use crate::cache_set::uuids::UuidProblem;
use crate::layout::bkey::{Bkey, Pos};
use crate::layout::bset::NodeErrorAt;
use crate::units::{BucketIndex, Gen, Sectors};

/// Anything that a reader found wrong; see each part.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// In the journal.
    #[error(transparent)]
    Journal(#[from] JournalProblem),
    /// In the prio chain.
    #[error(transparent)]
    Prios(#[from] PrioProblem),
    /// In the uuid table.
    #[error(transparent)]
    Uuids(#[from] UuidProblem),
    /// In the btree.
    #[error(transparent)]
    Btree(#[from] BtreeProblem),
    /// Between keys and buckets.
    #[error(transparent)]
    Bucket(#[from] BucketProblem),
}

impl Problem {
    /// Whether something could not be read, rather than that it is wrong.
    pub(crate) const fn is_unreadable(&self) -> bool {
        matches!(
            self,
            Self::Journal(JournalProblem::Unreadable { .. })
                | Self::Prios(PrioProblem::Unreadable { .. })
                | Self::Uuids(UuidProblem::Unreadable { .. })
                | Self::Btree(BtreeProblem::Unreadable { .. })
        )
    }

    /// Whether keys, or the gens that say which keys are valid, may be missing from what was read,
    /// so that figures are a lower bound.
    pub const fn hides_keys(&self) -> bool {
        match self {
            // What a power failure leaves of a write that was never acknowledged. Whether it was
            // that, or a whole entry that was damaged later, cannot be told.
            Self::Journal(JournalProblem::Torn { follows_newest, may_be_dirty, .. }) => {
                !*follows_newest || *may_be_dirty
            }
            Self::Journal(_) | Self::Prios(_) | Self::Btree(_) => true,
            // Names only: which sectors are dirty the keys say.
            Self::Uuids(_) => false,
            Self::Bucket(problem) => match problem {
                BucketProblem::StaleDirty { superseded, .. } => !*superseded,
                BucketProblem::TooStale { .. }
                | BucketProblem::Inconsistent { .. }
                | BucketProblem::BadJournalKey { .. } => true,
                BucketProblem::NewerThanPrio { .. }
                | BucketProblem::SharedMetadata { .. }
                | BucketProblem::Overused { .. }
                | BucketProblem::NoVolume { .. } => false,
            },
        }
    }
}

/// Which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A key of the btree.
    Btree {
        /// Level of the node.
        level: u16,
        /// Bucket of the node.
        node: BucketIndex,
    },
    /// A key of the journal's replay range.
    Journal {
        /// Sequence number of the entry.
        seq: u64,
    },
    /// The journal's pointer to the root.
    Root,
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Btree { level, node } => write!(f, "btree node in bucket {node}, level {level}"),
            Self::Journal { seq } => write!(f, "journal entry {seq}"),
            Self::Root => f.write_str("root pointer"),
        }
    }
}

/// Which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePlace {
    /// Its level; 0 for a leaf.
    pub level: u16,
    /// Its bucket.
    pub bucket: BucketIndex,
    /// Its first sector on the device.
    pub sector: Sectors,
    /// Its own key: the last position that it covers.
    pub end: Pos,
}

impl std::fmt::Display for NodePlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "btree node in bucket {} (level {}, up to {})", self.bucket, self.level, self.end)
    }
}

/// What is wrong with the btree.
#[derive(Debug, thiserror::Error)]
pub enum BtreeProblem {
    /// The journal's root cannot be one: the kernel says "bad btree root".
    #[error("bad btree root: {key:?}")]
    BadRoot {
        /// The key.
        key: Bkey,
    },
    /// A node could not be read from the device.
    #[error("{place}: cannot be read")]
    Unreadable {
        /// The node.
        place: NodePlace,
        /// The device's error.
        source: NodeReadError,
    },
    /// The kernel drops the node, and the set with it.
    #[error("{place}: {error}")]
    BadNode {
        /// The node.
        place: NodePlace,
        /// What is wrong, in the kernel's words.
        error: NodeErrorAt,
    },
    /// Something else is wrong in the node.
    #[error("{place}: {fault}")]
    Fault {
        /// The node.
        place: NodePlace,
        /// What.
        fault: NodeFault,
    },
    /// A leaf has lost keys, for there are older ones or none in their place.
    #[error(
        "{place}: lacks keys that were in it, among them {key:?}, which journal entry {seq} has"
    )]
    LostKeys {
        /// The node.
        place: NodePlace,
        /// The first such key.
        key: Bkey,
        /// The entry.
        seq: u64,
    },
    /// Two keys lead to one node.
    #[error("{place}: reached a second time")]
    Revisited {
        /// The node.
        place: NodePlace,
    },
    /// A node holds keys that belong to the one before it.
    #[error("{place}: starts at {found}, the node before it ends at {expected}")]
    BeforeNode {
        /// The node.
        place: NodePlace,
        /// Where its first key starts.
        found: Pos,
        /// Where it may start.
        expected: Pos,
    },
    /// The children of an interior node do not reach its end.
    #[error("{place}: its last child ends at {found}")]
    ChildrenEndShort {
        /// The node.
        place: NodePlace,
        /// Where the last child ends.
        found: Pos,
    },
    /// An interior node without any usable child.
    #[error("{place}: no usable child")]
    NoChildren {
        /// The node.
        place: NodePlace,
    },
}

/// What a metadata bucket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MetadataRole {
    /// One of the journal's.
    Journal,
    /// A prio set of the current chain.
    Prios,
    /// The uuid table.
    Uuids,
    /// A btree node.
    Btree,
}

impl std::fmt::Display for MetadataRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Journal => "journal",
            Self::Prios => "prios",
            Self::Uuids => "uuids",
            Self::Btree => "btree",
        })
    }
}

/// What is wrong between keys and the buckets they point to.
#[derive(Debug, thiserror::Error)]
pub enum BucketProblem {
    /// A key says that it holds the only copy, and its bucket was reused.
    #[error("{origin}: dirty key {key:?} is stale by {by}")]
    StaleDirty {
        /// Where the key stands.
        origin: KeySource,
        /// The key, without what newer keys hide of it.
        key: Bkey,
        /// How far the bucket's gen is ahead.
        by: u8,
        /// Of a key of the journal: whether the btree has something clean for its sectors, so that
        /// the key went there and its data was written back or overwritten since.
        superseded: bool,
    },
    /// A pointer so old that the kernel gives up on the set when it meets it ("key too stale").
    #[error("{origin}: key {key:?} is stale by {by}, over 96")]
    TooStale {
        /// Where the key stands.
        origin: KeySource,
        /// The key.
        key: Bkey,
        /// How far the bucket's gen is ahead.
        by: u8,
    },
    /// An extent points to a bucket with a gen that the prio set does not know yet.
    #[error("{origin}: key {key:?} is newer than gen {from} of bucket {bucket} in the prio set")]
    NewerThanPrio {
        /// Where the key stands.
        origin: KeySource,
        /// The key.
        key: Bkey,
        /// The bucket.
        bucket: BucketIndex,
        /// Gen before.
        from: Gen,
        /// Gen of the pointer.
        to: Gen,
    },
    /// Data and btree in one bucket: the kernel's "inconsistent ptrs".
    #[error("{origin}: key {key:?} points into bucket {bucket}, which is marked {mark}")]
    Inconsistent {
        /// Where the key stands.
        origin: KeySource,
        /// The key.
        key: Bkey,
        /// The bucket.
        bucket: BucketIndex,
        /// What it was marked as before.
        mark: GcMark,
    },
    /// A bucket of journal, prios or uuids that keys point to, or that has two roles.
    #[error("bucket {bucket} is for {role} and marked {mark}")]
    SharedMetadata {
        /// The bucket.
        bucket: BucketIndex,
        /// What it is for.
        role: MetadataRole,
        /// What keys, or another role, made of it.
        mark: GcMark,
    },
    /// The extents in a bucket are longer than it.
    #[error("bucket {bucket} has {size} sectors, its extents {used}")]
    Overused {
        /// The bucket.
        bucket: BucketIndex,
        /// Its sectors.
        size: u64,
        /// Sectors of the valid extents that point into it.
        used: u64,
    },
    /// A usable extent of a volume that the uuid table does not have.
    #[error("{origin}: key {key:?} is of volume {}, which the uuid table does not have", key.inode())]
    NoVolume {
        /// Where the key stands.
        origin: KeySource,
        /// The key.
        key: Bkey,
    },
    /// A journal key that cannot be an extent.
    #[error("{origin}: bad extent {key:?}")]
    BadJournalKey {
        /// Where the key stands.
        origin: KeySource,
        /// The key.
        key: Bkey,
    },
}
