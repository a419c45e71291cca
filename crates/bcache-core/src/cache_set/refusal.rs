//! What the kernel says when a cache set cannot be brought up (docs/on-disk-format.md §7).
//!
//! The superblock's verdict ends where `CACHE_SYNC` sends registration on to the journal, the
//! prios, the root, the uuids and the btree. A reading finds the same troubles; here each gets the
//! step of `run_cache_set` at which the kernel gives up, in its words. The severity "kernel refuses"
//! of the check's findings is derived from this, so that `show` and `check` cannot disagree.

use crate::cache_set::btree::FaultKind;
use crate::cache_set::journal::JournalProblem;
use crate::cache_set::prios::PrioProblem;
use crate::cache_set::problem::{BtreeProblem, BucketProblem, Problem};
use crate::cache_set::uuids::UuidProblem;
use crate::units::BucketIndex;

/// Why the kernel does not bring up a cache set whose superblock it accepts, in the order of its
/// steps; displays as its own message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum SetRefusal {
    /// The journal has no entries.
    #[error("no journal entries found")]
    NoJournal,
    /// A prio set could not be read, or is none.
    #[error("IO error reading priorities")]
    Prios,
    /// The journal's root cannot be one.
    #[error("bad btree root")]
    BadRoot,
    /// The root could not be read, or is damaged.
    #[error("error reading btree root")]
    RootUnreadable,
    /// The journal's pointer to the uuid table cannot be one.
    #[error("bad uuid pointer")]
    BadUuidPointer,
    /// The uuid table could not be read: the set is shut down as an I/O error.
    #[error("IO error on accessing uuids")]
    UuidsUnreadable,
    /// A node below the root could not be read, or is damaged.
    #[error("error in recovery")]
    Recovery,
    /// A key that cannot be: the set is brought up and its caching disabled.
    #[error("spotted extent, disabling caching")]
    SpottedExtent,
    /// A pointer that cannot be: the set is brought up and its caching disabled.
    #[error("spotted btree ptr, disabling caching")]
    SpottedBtreePtr,
    /// Data and btree in one bucket: the set is brought up and its caching disabled.
    #[error("inconsistent ptrs, disabling caching")]
    InconsistentPtrs,
    /// A pointer whose bucket's gen is over 96 ahead: caching is disabled when it is touched.
    #[error("key too stale, disabling caching")]
    TooStale,
    /// Entries that replay needs are missing.
    #[error("bcache: replay journal failed")]
    Replay,
    /// Replay would insert a key that cannot be: without a size, the kernel stops with a BUG; past a
    /// bucket, caching is disabled once the key is met.
    #[error("journal replay would insert a key that cannot be an extent")]
    ReplayedKey,
}

impl SetRefusal {
    /// What the kernel makes of `problem`; `None` where it goes on.
    ///
    /// `root` is the bucket of the btree's root.
    pub fn of(problem: &Problem, root: Option<BucketIndex>) -> Option<Self> {
        match problem {
            Problem::Journal(JournalProblem::Empty) => Some(Self::NoJournal),
            // Replay starts at `last_seq`, and finds the entry itself instead.
            Problem::Journal(
                JournalProblem::Gap { .. } | JournalProblem::LastSeqAfterSeq { .. },
            ) => Some(Self::Replay),
            Problem::Prios(problem) => match problem {
                PrioProblem::Unreadable { .. }
                | PrioProblem::Invalid { .. }
                | PrioProblem::OutOfRange { .. } => Some(Self::Prios),
                _ => None,
            },
            Problem::Uuids(UuidProblem::BadPointer { .. }) => Some(Self::BadUuidPointer),
            Problem::Uuids(UuidProblem::Unreadable { .. }) => Some(Self::UuidsUnreadable),
            Problem::Btree(problem) => Self::of_btree(problem, root),
            Problem::Bucket(BucketProblem::Inconsistent { .. }) => Some(Self::InconsistentPtrs),
            Problem::Bucket(BucketProblem::TooStale { .. }) => Some(Self::TooStale),
            Problem::Bucket(BucketProblem::BadJournalKey { .. }) => Some(Self::ReplayedKey),
            Problem::Journal(_) | Problem::Uuids(_) | Problem::Bucket(_) => None,
        }
    }

    fn of_btree(problem: &BtreeProblem, root: Option<BucketIndex>) -> Option<Self> {
        let at =
            |bucket| Some(if Some(bucket) == root { Self::RootUnreadable } else { Self::Recovery });
        match problem {
            BtreeProblem::BadRoot { .. } => Some(Self::BadRoot),
            BtreeProblem::Unreadable { place, .. } | BtreeProblem::BadNode { place, .. } => {
                at(place.bucket)
            }
            BtreeProblem::Fault { fault, .. } => match fault.kind() {
                FaultKind::BadExtent => Some(Self::SpottedExtent),
                FaultKind::BadBtreePtr => Some(Self::SpottedBtreePtr),
                FaultKind::OutOfOrder | FaultKind::Truncated | FaultKind::PastNode => None,
            },
            BtreeProblem::LostKeys { .. }
            | BtreeProblem::Revisited { .. }
            | BtreeProblem::BeforeNode { .. }
            | BtreeProblem::ChildrenEndShort { .. }
            | BtreeProblem::NoChildren { .. } => None,
        }
    }
}
