//! One finding: what, how bad, where, and what should have been there instead.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::cache_set::btree::FaultKind;
use crate::cache_set::journal::JournalProblem;
use crate::cache_set::prios::PrioProblem;
use crate::cache_set::uuids::UuidProblem;
use crate::cache_set::{BtreeProblem, BucketProblem, Problem, SetRefusal};
use crate::inspect::Copied;
use crate::layout::bset::NodeError;
use crate::layout::superblock::Kind;
use crate::layout::verdict::{Refusal, Warning};
use crate::ops::check::backing::BackingProblem;
use crate::ops::check::code::{Code, Severity};
use crate::ops::check::place::Place;
use crate::units::Sectors;

/// What was found.
#[derive(Debug, thiserror::Error)]
pub enum Detail {
    /// The kernel refuses the superblock.
    #[error("{0}")]
    Refusal(Refusal),
    /// The superblock's sizes make no cache device, and the kernel takes it all the same.
    #[error("{0}")]
    Geometry(String),
    /// The device is shorter than its superblock says.
    #[error("cut off after {present} of {needed}; what the rest holds cannot be told")]
    CutOff {
        /// What there is.
        present: Sectors,
        /// Where the last bucket ends.
        needed: Sectors,
        /// Whether the kernel looks at this and refuses the superblock.
        refusal: Option<Refusal>,
    },
    /// `CACHE_SYNC` is not set, and there is a set.
    #[error("not marked as in use (sync), and the journal of a cache set is there")]
    Unsynced,
    /// The magic alone is missing.
    #[error("the magic is overwritten, the checksum fits the magic of bcache")]
    MagicWiped,
    /// The superblock is gone, and the rest tells what it was.
    #[error("no superblock, and the cache set that it was of")]
    SuperblockGone,
    /// The superblock is of another set, and an older one is behind it.
    #[error("the superblock of another set, and behind it an older one, whose journal is at sector {}", at.0)]
    CoversSet {
        /// Sector of the journal entry.
        at: Sectors,
    },
    /// Another device carries the same superblock.
    #[error("{} and {} have the same UUID: one is a copy of the other", .0.path.display(), .0.other.display())]
    Copied(Copied),
    /// The kernel accepts what it will choke on.
    #[error("{0}")]
    Warning(Warning),
    /// The reader found something.
    #[error(transparent)]
    Set(#[from] Problem),
    /// A backing device does not go with the set.
    #[error(transparent)]
    Backing(#[from] BackingProblem),
    /// Buckets that cannot be invalidated.
    #[error("{buckets} buckets have gens {span_max} past the oldest pointer")]
    GenLimit {
        /// How many.
        buckets: u64,
        /// The largest distance.
        span_max: u8,
    },
    /// Dirty data of a volume whose slot is marked as detached.
    #[error("the slot is marked as detached, and {dirty} of its data are dirty")]
    DetachedDirty {
        /// Slot of the volume.
        slot: u32,
        /// How much.
        dirty: Sectors,
    },
    /// Clean extents of a flash-only volume.
    #[error("flash-only volume in slot {slot} has {clean} of clean data")]
    FlashClean {
        /// Slot of the volume.
        slot: u32,
        /// How much.
        clean: Sectors,
    },
}

/// One finding.
#[derive(Debug)]
pub struct Finding {
    /// What was found.
    pub detail: Detail,
}

impl Finding {
    /// Its code.
    pub fn code(&self) -> Code {
        match &self.detail {
            Detail::Refusal(_) => Code::SuperblockRefused,
            Detail::Warning(Warning::UnknownFlags { .. }) => Code::SuperblockUnknownFlags,
            Detail::CutOff { .. } => Code::SuperblockCutOff,
            Detail::Unsynced => Code::SuperblockUnsynced,
            Detail::MagicWiped => Code::SuperblockMagic,
            Detail::SuperblockGone => Code::SuperblockGone,
            Detail::CoversSet { .. } => Code::SuperblockCoversSet,
            Detail::Copied(Copied { kind: Kind::Cache, .. }) => Code::SuperblockCopied,
            Detail::Copied(_) => Code::BackingCopied,
            Detail::Geometry(_) | Detail::Warning(_) => Code::SuperblockHazard,
            Detail::Set(problem) => problem_code(problem),
            Detail::Backing(problem) => problem.code(),
            Detail::GenLimit { .. } => Code::BucketGenLimit,
            Detail::DetachedDirty { .. } => Code::UuidDetachedDirty,
            Detail::FlashClean { .. } => Code::VolumeFlashClean,
        }
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        let usual = self.code().severity();
        if let Detail::CutOff { refusal: Some(_), .. } = &self.detail {
            return Severity::KernelRefuses;
        }
        let Detail::Set(problem) = &self.detail else { return usual };
        // Which node is the root decides on the kernel's words only.
        if SetRefusal::of(problem, None).is_some() {
            return Severity::KernelRefuses;
        }
        match problem {
            Problem::Bucket(BucketProblem::StaleDirty { superseded: true, .. }) => Severity::Untidy,
            Problem::Bucket(BucketProblem::NoVolume { key, .. }) if !key.dirty() => {
                Severity::Untidy
            }
            // Of a code whose other findings the kernel does refuse.
            _ => usual.min(Severity::DataAtRisk),
        }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        match &self.detail {
            Detail::Copied(copied) if copied.kind == Kind::Backing => {
                Place::Backing { path: copied.path.clone() }
            }
            Detail::Refusal(_)
            | Detail::CutOff { .. }
            | Detail::Unsynced
            | Detail::MagicWiped
            | Detail::SuperblockGone
            | Detail::CoversSet { .. }
            | Detail::Geometry(_)
            | Detail::Copied(_)
            | Detail::Warning(_) => Place::Superblock,
            Detail::Set(problem) => problem_place(problem),
            Detail::Backing(problem) => problem.place(),
            Detail::GenLimit { .. } => Place::Buckets,
            Detail::DetachedDirty { slot, .. } | Detail::FlashClean { slot, .. } => {
                Place::UuidSlot { slot: *slot }
            }
        }
    }

    /// What should have been there.
    pub fn expected(&self) -> String {
        match &self.detail {
            Detail::Refusal(_)
            | Detail::MagicWiped
            | Detail::SuperblockGone
            | Detail::Geometry(_)
            | Detail::Warning(_) => "a superblock that the kernel works with".to_owned(),
            Detail::CutOff { needed, .. } => format!("a device of {needed}"),
            Detail::CoversSet { .. } => "the superblock of the set that is there".to_owned(),
            Detail::Copied(_) => "one device with this UUID".to_owned(),
            Detail::Unsynced => "a cache that is marked as in use".to_owned(),
            Detail::Set(problem) => problem_expected(problem),
            Detail::Backing(problem) => problem.expected(),
            Detail::GenLimit { .. } => "gens at most 95 past the oldest pointer".to_owned(),
            Detail::DetachedDirty { .. } => "no dirty data of a detached device".to_owned(),
            Detail::FlashClean { .. } => "all data of a flash-only volume is dirty".to_owned(),
        }
    }

    /// What is there.
    pub fn found(&self) -> String {
        let mut text = self.detail.to_string();
        let mut source = std::error::Error::source(&self.detail);
        while let Some(error) = source {
            let more = error.to_string();
            if !text.ends_with(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            source = error.source();
        }
        text
    }

    /// What a person can do.
    pub fn advice(&self) -> &'static str {
        self.code().advice()
    }
}

impl<T: Into<Detail>> From<T> for Finding {
    fn from(detail: T) -> Self {
        Self { detail: detail.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code(), self.severity(), self.found())
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Finding", 7)?;
        fields.serialize_field("code", self.code().name())?;
        fields.serialize_field("number", &self.code().number())?;
        fields.serialize_field("severity", &self.severity())?;
        fields.serialize_field("place", &self.place().to_string())?;
        fields.serialize_field("expected", &self.expected())?;
        fields.serialize_field("found", &self.found())?;
        fields.serialize_field("advice", self.advice())?;
        fields.end()
    }
}

/// The code of what the reader found.
pub(in crate::ops) fn problem_code(problem: &Problem) -> Code {
    match problem {
        Problem::Journal(problem) => match problem {
            JournalProblem::Unreadable { .. } => Code::JournalUnreadable,
            JournalProblem::Torn { .. } => Code::JournalTorn,
            JournalProblem::Hidden { .. } => Code::JournalHidden,
            JournalProblem::NewestLost { .. } => Code::JournalNewestLost,
            JournalProblem::Gap { .. } => Code::JournalGap,
            JournalProblem::SearchMisses { .. } => Code::JournalSearch,
            JournalProblem::Changed { .. } => Code::JournalChanged,
            JournalProblem::KeysTruncated { .. } => Code::JournalKeys,
            JournalProblem::LastSeqAfterSeq { .. } => Code::JournalLastSeq,
            JournalProblem::Empty => Code::JournalEmpty,
        },
        Problem::Prios(problem) => match problem {
            PrioProblem::Unreadable { .. } => Code::PrioUnreadable,
            PrioProblem::Invalid { .. } => Code::PrioDamaged,
            PrioProblem::OutOfRange { .. } => Code::PrioOutOfRange,
            PrioProblem::InJournal { .. } => Code::PrioInJournal,
            PrioProblem::Repeated { .. } => Code::PrioRepeated,
            PrioProblem::MixedSeq { .. } => Code::PrioMixed,
        },
        Problem::Uuids(problem) => match problem {
            UuidProblem::BadPointer { .. } => Code::UuidPointer,
            UuidProblem::Unreadable { .. } => Code::UuidUnreadable,
            UuidProblem::NotATable { .. } => Code::UuidNotATable,
            UuidProblem::ImplausibleSlot { .. } => Code::UuidSlot,
            UuidProblem::EmptyFlashVolume { .. } => Code::UuidEmptyFlash,
            UuidProblem::Repeated { .. } => Code::UuidRepeated,
        },
        Problem::Btree(problem) => match problem {
            BtreeProblem::BadRoot { .. } => Code::BtreeRoot,
            BtreeProblem::Unreadable { .. } => Code::BtreeUnreadable,
            BtreeProblem::BadNode { error, .. } if error.error == NodeError::ShortKey => {
                Code::BtreePastNode
            }
            BtreeProblem::BadNode { .. } => Code::BtreeNode,
            BtreeProblem::Fault { fault, .. } => match fault.kind() {
                FaultKind::BadExtent => Code::BtreeBadExtent,
                FaultKind::BadBtreePtr => Code::BtreeBadPointer,
                FaultKind::OutOfOrder | FaultKind::Truncated => Code::BtreeOrder,
                FaultKind::PastNode => Code::BtreePastNode,
            },
            BtreeProblem::LostKeys { .. } => Code::BtreeLostKeys,
            BtreeProblem::Revisited { .. } => Code::BtreeRevisited,
            BtreeProblem::BeforeNode { .. } => Code::BtreeBeforeNode,
            BtreeProblem::ChildrenEndShort { .. } | BtreeProblem::NoChildren { .. } => {
                Code::BtreeUncovered
            }
        },
        Problem::Bucket(problem) => match problem {
            BucketProblem::StaleDirty { .. } => Code::KeyStaleDirty,
            BucketProblem::TooStale { .. } => Code::KeyTooStale,
            BucketProblem::NewerThanPrio { .. } => Code::KeyNewer,
            BucketProblem::Inconsistent { .. } => Code::KeyInconsistent,
            BucketProblem::SharedMetadata { .. } => Code::BucketShared,
            BucketProblem::Overused { .. } => Code::BucketOverused,
            BucketProblem::NoVolume { .. } => Code::KeyNoVolume,
            BucketProblem::BadJournalKey { .. } => Code::JournalBadKey,
        },
    }
}

fn problem_place(problem: &Problem) -> Place {
    match problem {
        Problem::Journal(problem) => match problem {
            JournalProblem::Unreadable { bucket, offset, .. } => {
                Place::JournalBucket { bucket: *bucket, offset: *offset }
            }
            JournalProblem::Torn { place, .. }
            | JournalProblem::Hidden { place, .. }
            | JournalProblem::NewestLost { place, .. }
            | JournalProblem::KeysTruncated { place, .. }
            | JournalProblem::LastSeqAfterSeq { place, .. } => (*place).into(),
            JournalProblem::Changed { seq } => Place::JournalEntry { seq: *seq },
            JournalProblem::Gap { .. }
            | JournalProblem::SearchMisses { .. }
            | JournalProblem::Empty => Place::Journal,
        },
        Problem::Prios(problem) => match problem {
            PrioProblem::OutOfRange { index, bucket } => {
                Place::PrioSet { index: *index, bucket: *bucket }
            }
            PrioProblem::Unreadable { index, bucket, .. }
            | PrioProblem::Invalid { index, bucket, .. }
            | PrioProblem::InJournal { index, bucket }
            | PrioProblem::Repeated { index, bucket }
            | PrioProblem::MixedSeq { index, bucket, .. } => {
                Place::PrioSet { index: *index, bucket: bucket.0 }
            }
        },
        Problem::Uuids(problem) => match problem {
            UuidProblem::BadPointer { .. }
            | UuidProblem::Unreadable { .. }
            | UuidProblem::NotATable { .. } => Place::Uuids,
            UuidProblem::ImplausibleSlot { slot } | UuidProblem::EmptyFlashVolume { slot } => {
                Place::UuidSlot { slot: *slot }
            }
            UuidProblem::Repeated { second, .. } => Place::UuidSlot { slot: *second },
        },
        Problem::Btree(problem) => match problem {
            BtreeProblem::BadRoot { .. } => Place::Root,
            BtreeProblem::Unreadable { place, .. }
            | BtreeProblem::BadNode { place, .. }
            | BtreeProblem::Fault { place, .. }
            | BtreeProblem::LostKeys { place, .. }
            | BtreeProblem::Revisited { place }
            | BtreeProblem::BeforeNode { place, .. }
            | BtreeProblem::ChildrenEndShort { place, .. }
            | BtreeProblem::NoChildren { place } => Place::Node(*place),
        },
        Problem::Bucket(problem) => match problem {
            BucketProblem::StaleDirty { origin, key, .. }
            | BucketProblem::TooStale { origin, key, .. }
            | BucketProblem::NewerThanPrio { origin, key, .. }
            | BucketProblem::Inconsistent { origin, key, .. }
            | BucketProblem::NoVolume { origin, key }
            | BucketProblem::BadJournalKey { origin, key } => {
                Place::Key { origin: *origin, key: *key }
            }
            BucketProblem::SharedMetadata { bucket, .. }
            | BucketProblem::Overused { bucket, .. } => Place::Bucket(*bucket),
        },
    }
}

fn problem_expected(problem: &Problem) -> String {
    match problem {
        Problem::Journal(problem) => match problem {
            JournalProblem::Gap { start, end, .. } => format!("all entries from {start} to {end}"),
            JournalProblem::SearchMisses { newest, .. } => format!("entry {newest} as the newest"),
            JournalProblem::Changed { .. } => "a journal that nobody writes".to_owned(),
            JournalProblem::LastSeqAfterSeq { seq, .. } => format!("last_seq of at most {seq}"),
            JournalProblem::NewestLost { gap, .. } => format!("a whole entry {}", gap.first),
            JournalProblem::Unreadable { .. } => "a readable journal bucket".to_owned(),
            JournalProblem::Torn { .. } | JournalProblem::Hidden { .. } | JournalProblem::Empty => {
                "a whole entry".to_owned()
            }
            JournalProblem::KeysTruncated { .. } => "whole keys".to_owned(),
        },
        Problem::Prios(problem) => match problem {
            PrioProblem::MixedSeq { expected, .. } => format!("seq {expected}"),
            PrioProblem::Unreadable { .. } | PrioProblem::Invalid { .. } => {
                "a prio set of this cache set".to_owned()
            }
            PrioProblem::OutOfRange { .. }
            | PrioProblem::InJournal { .. }
            | PrioProblem::Repeated { .. } => "a bucket of its own".to_owned(),
        },
        Problem::Uuids(problem) => match problem {
            UuidProblem::Repeated { .. } => "a uuid of its own".to_owned(),
            UuidProblem::BadPointer { .. }
            | UuidProblem::Unreadable { .. }
            | UuidProblem::NotATable { .. } => "a readable uuid table".to_owned(),
            UuidProblem::ImplausibleSlot { .. } => "a volume, or an empty slot".to_owned(),
            UuidProblem::EmptyFlashVolume { .. } => "a volume of at least one bucket".to_owned(),
        },
        Problem::Btree(problem) => match problem {
            BtreeProblem::BadRoot { .. } => "a pointer to a btree node".to_owned(),
            BtreeProblem::Unreadable { .. } | BtreeProblem::BadNode { .. } => {
                "a sound node".to_owned()
            }
            BtreeProblem::Fault { fault, .. } => match fault.kind() {
                FaultKind::BadExtent => "an extent within one bucket".to_owned(),
                FaultKind::BadBtreePtr => "a pointer to a btree node".to_owned(),
                FaultKind::OutOfOrder => "keys in order".to_owned(),
                FaultKind::Truncated => "whole keys".to_owned(),
                FaultKind::PastNode => "keys up to the node's own".to_owned(),
            },
            BtreeProblem::LostKeys { .. } => "all keys that were inserted".to_owned(),
            BtreeProblem::Revisited { .. } => "one key for each node".to_owned(),
            BtreeProblem::BeforeNode { expected, .. } => format!("keys from {expected} on"),
            BtreeProblem::ChildrenEndShort { place, .. } => format!("a child up to {}", place.end),
            BtreeProblem::NoChildren { .. } => "a child".to_owned(),
        },
        Problem::Bucket(problem) => match problem {
            BucketProblem::StaleDirty { .. } => "the gen of the bucket".to_owned(),
            BucketProblem::TooStale { .. } => "at most 96 gens behind".to_owned(),
            BucketProblem::NewerThanPrio { from, .. } => format!("gen {from}"),
            BucketProblem::Inconsistent { .. } | BucketProblem::SharedMetadata { .. } => {
                "a bucket for one thing".to_owned()
            }
            BucketProblem::Overused { size, .. } => format!("at most {size} sectors"),
            BucketProblem::NoVolume { .. } => "a volume of the uuid table".to_owned(),
            BucketProblem::BadJournalKey { .. } => "an extent within one bucket".to_owned(),
        },
    }
}
