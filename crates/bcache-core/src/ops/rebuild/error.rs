//! Why metadata cannot be built anew, and what became of a device where writing it failed.

use std::collections::TryReserveError;

use crate::cache_set::journal::{JournalProblem, NextBucketRefusal};
use crate::cache_set::{MissingError, OpenError};
use crate::device::DeviceError;
use crate::layout::bkey::{Bkey, Pos};
use crate::ops::plan::ApplyError;
use crate::ops::verify::VerifyError;
use crate::units::BucketIndex;

/// Why the extents that are to be kept cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ExtentsError {
    /// Keys are missing.
    #[error("keys up to {to} are missing: the btree node in bucket {bucket}")]
    Missing {
        /// Up to where.
        to: Pos,
        /// The node's bucket.
        bucket: BucketIndex,
        /// What is wrong with it.
        #[source]
        error: MissingError,
    },
    /// Keys that overlap.
    #[error("key {key:?} starts before the one ahead of it ends, at {end}")]
    OutOfOrder {
        /// The key.
        key: Bkey,
        /// Where the one ahead of it ends.
        end: Pos,
    },
    /// A second reading gave other extents than the first.
    #[error("the extents changed while they were read: something else writes to the device")]
    Changed,
}

/// Why there is no plan. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The extents cannot be told.
    #[error(transparent)]
    Extents(#[from] ExtentsError),
    /// There are too few buckets that nothing points to.
    #[error("too few unused buckets: the new metadata needs {needed}, the cache has {found}")]
    TooFewUnused {
        /// Buckets for btree, uuid table and prio chain.
        needed: u64,
        /// What there is.
        found: u64,
        /// Buckets with clean data only, which could be invalidated.
        clean: u64,
    },
    /// No room for a journal entry.
    #[error("the journal has no room for an entry: {next}")]
    JournalFull {
        /// Why it cannot go to the next journal bucket.
        next: NextBucketRefusal,
    },
    /// The kernel would not take the new entry for the newest.
    #[error("with entry {planned} written, the kernel would take entry {found} for the newest")]
    JournalHidesEntries {
        /// The entry that was to be written.
        planned: u64,
        /// The one that would be the newest; 0 for none.
        found: u64,
    },
    /// The journal's sequence numbers have come to their end, or the number of the device in its set
    /// is none.
    #[error("no journal entry can follow entry {seq}")]
    NoSuccessor {
        /// The newest entry.
        seq: u64,
    },
    /// More volumes than a uuid table has slots.
    #[error("the uuid table has {slots} slots, {wanted} are wanted")]
    TooManyVolumes {
        /// Slots of the table.
        slots: u64,
        /// Volumes wanted.
        wanted: u64,
    },
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(JournalProblem),
    /// The superblock cannot be read.
    #[error(transparent)]
    NoCache(OpenError),
    /// Not enough memory to choose buckets.
    #[error("no memory to choose buckets")]
    NoMemory(#[from] TryReserveError),
}

/// What a device holds after a run that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitState {
    /// The old state: at most buckets that it calls unused were written.
    Old,
    /// The old state or the new one, each whole: the journal entry was given to the device, which
    /// failed before the entry was known to be durable.
    OldOrNew,
    /// The new state. What failed came after it.
    New,
    /// What was read back is not what was written.
    Undefined,
}

/// Why new metadata was not written; [`CommitError::state`] says what the device holds.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The device is not what the plan was made from.
    #[error("the device changed since it was read")]
    Changed,
    /// The device could not be read again before the first write.
    #[error("the device cannot be read")]
    Device(#[source] DeviceError),
    /// The extents could not be read a second time, while nodes were written.
    #[error(transparent)]
    Extents(ExtentsError),
    /// A write of new nodes or prio sets, or a flush of them, failed.
    #[error("the new btree and prio chain could not be written")]
    Write(#[source] ApplyError),
    /// New nodes or prio sets do not read back.
    #[error("the new btree and prio chain do not read back")]
    Verify(#[source] VerifyError),
    /// The journal entry, or its flush, failed.
    #[error("the journal entry could not be written")]
    Commit(#[source] ApplyError),
    /// The journal entry does not read back.
    #[error("the journal entry does not read back")]
    VerifyCommit(#[source] VerifyError),
    /// What is left of damaged journal entries could not be wiped.
    #[error("what is left of torn journal entries could not be wiped")]
    Tidy(#[source] ApplyError),
}

impl CommitError {
    /// What the device holds.
    pub const fn state(&self) -> CommitState {
        match self {
            Self::Changed
            | Self::Device(_)
            | Self::Extents(_)
            | Self::Write(_)
            | Self::Verify(_) => CommitState::Old,
            Self::Commit(error) if !error.may_have_written => CommitState::Old,
            Self::Commit(_) => CommitState::OldOrNew,
            Self::VerifyCommit(VerifyError::Read { .. }) | Self::Tidy(_) => CommitState::New,
            Self::VerifyCommit(VerifyError::Differs { .. }) => CommitState::Undefined,
        }
    }
}
