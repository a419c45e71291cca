//! Why nothing can be invalidated, and what became of a device where writing failed.

use std::collections::TryReserveError;
use std::path::PathBuf;

use crate::allocator::TableError;
use crate::cache_set::btree::NodeReadError;
use crate::cache_set::journal::{Gap, NextBucketRefusal};
use crate::cache_set::{OpenError, Problem, ReadError};
use crate::device::DeviceError;
use crate::inspect::FindVolumeError;
use crate::layout::bset::NodeErrorAt;
use crate::layout::verdict::Refusal;
use crate::ops::plan::ApplyError;
use crate::ops::undo::SaveError;
use crate::ops::verify::VerifyError;
use crate::units::BucketIndex;

/// Why there is no plan. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum InvalidateError {
    /// The device holds no cache set that could be read.
    #[error("{}: nothing to invalidate", path.display())]
    NoCache {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// The kernel would refuse the superblock.
    #[error("{}: the kernel would refuse the device: {refusal}", path.display())]
    KernelRefuses {
        /// The device.
        path: PathBuf,
        /// In the kernel's words.
        refusal: Refusal,
    },
    /// Something is wrong with the cache set; writing could make it worse.
    #[error(
        "{}: the cache set is damaged; a check tells what is wrong and what to do (findings: {count}); \
         the first of them",
        path.display()
    )]
    Damaged {
        /// The device.
        path: PathBuf,
        /// The first finding.
        #[source]
        first: Box<Problem>,
        /// How many findings there are.
        count: u64,
    },
    /// Entries of the replay range are missing. Where the set discards, kernels before 6.19 pass over
    /// that at the start of the range, and leave it so themselves (docs/on-disk-format.md §2.4);
    /// later ones refuse the set, and whoever invalidates keeps to what all of them see (§8.2).
    #[error(
        "{}: journal entries {}-{} are missing at the start of the replay range, as kernels before \
         6.19 leave it where the set discards; later ones refuse the set. Register the cache with a \
         kernel before 6.19, write to a volume, stop it, and repeat",
        path.display(), gap.first, gap.last
    )]
    JournalGap {
        /// The device.
        path: PathBuf,
        /// What is missing.
        gap: Gap,
    },
    /// The name stands for no volume, or for several.
    #[error(transparent)]
    Volume(#[from] FindVolumeError),
    /// Too few unused buckets for the new prio chain.
    #[error(
        "too few unused buckets that are not to be invalidated: a new prio chain needs {needed}, \
         the cache has {found}; leave unused buckets out of the list, or register the cache with \
         the kernel and stop it again: its allocator frees some"
    )]
    TooFewUnused {
        /// Buckets of a chain.
        needed: u64,
        /// What there is.
        found: u64,
    },
    /// No room for a journal entry.
    #[error(
        "the journal has no room for an entry (no block is left in the newest entry's bucket, and \
         {next}); register the cache with the kernel and stop it again: that replays the journal"
    )]
    JournalFull {
        /// Why it cannot go to the next journal bucket.
        next: NextBucketRefusal,
    },
    /// The new entry would make others reachable again that the kernel does not see now.
    #[error(
        "{}: sound journal entries stand behind a damaged one; with entry {planned} in its place \
         the kernel would go on to them, and take entry {found} for the newest, of a state that is \
         gone. See what a check finds; then register the cache with the kernel, write to \
         a volume, stop it, and repeat: its own entries go to other places",
        path.display()
    )]
    JournalHidesEntries {
        /// The device.
        path: PathBuf,
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
    /// A btree node that could be read before.
    #[error(transparent)]
    Node(#[from] NodeReadError),
    /// A btree node that was sound before: something else writes to the device.
    #[error("the btree node in bucket {bucket} changed while it was read: {error}")]
    NodeChanged {
        /// The node's bucket.
        bucket: BucketIndex,
        /// What is wrong now.
        error: NodeErrorAt,
    },
    /// Not enough memory to choose among the buckets.
    #[error("no memory to choose among the buckets")]
    NoMemory(#[from] TryReserveError),
    /// The allocator's table, which the policies work on, does not take the device.
    #[error("the replacement policy cannot be applied")]
    Policy(#[from] TableError),
}

/// What a device holds after a run that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Not a byte was written.
    Unchanged,
    /// What it held: only buckets without meaning were written.
    Old,
    /// Wholly what it held or wholly what was planned: the journal entry that makes the difference
    /// was given to the device, which failed before it was known to be durable.
    OldOrNew,
    /// What was planned, as far as the device is to be believed: everything was written and flushed,
    /// and could not be read again.
    New,
    /// What was read back is not what was written.
    Undefined,
}

/// Why a plan was not carried out, or not proven; [`RunError::state`] says what the device holds.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The device could not be claimed.
    #[error(transparent)]
    Claim(DeviceError),
    /// The device changed between plan and claim.
    #[error("{}: the device changed since it was read; repeat the command", path.display())]
    Changed {
        /// The device.
        path: PathBuf,
    },
    /// What would be overwritten could not be saved.
    #[error("what would be overwritten could not be saved")]
    Undo(#[source] SaveError),
    /// Writing the new prio sets, or their flush, failed.
    #[error("the new prio chain could not be written")]
    Sets(#[source] ApplyError),
    /// The new prio sets do not read back.
    #[error("the new prio chain does not read back")]
    VerifySets(#[source] VerifyError),
    /// The journal entry, or its flush, failed.
    #[error("the journal entry could not be written")]
    Commit(#[source] ApplyError),
    /// The journal entry does not read back.
    #[error("the journal entry does not read back")]
    VerifyCommit(#[source] VerifyError),
    /// The cache set could not be read again.
    #[error("the result could not be read back")]
    Reread(#[source] InvalidateError),
    /// The cache set, read again, is not what it should be.
    #[error("the result is not what was planned")]
    Proof(#[source] ProofError),
}

impl RunError {
    /// What the device holds.
    pub fn state(&self) -> DeviceState {
        match self {
            Self::Claim(_) | Self::Changed { .. } | Self::Undo(_) => DeviceState::Unchanged,
            Self::Sets(error) if !error.may_have_written => DeviceState::Unchanged,
            Self::Sets(_) | Self::VerifySets(_) => DeviceState::Old,
            Self::Commit(error) if !error.may_have_written => DeviceState::Old,
            Self::Commit(_) => DeviceState::OldOrNew,
            Self::VerifyCommit(VerifyError::Read { .. }) => DeviceState::New,
            Self::Reread(error) if is_unreadable(error) => DeviceState::New,
            Self::VerifyCommit(VerifyError::Differs { .. }) | Self::Reread(_) | Self::Proof(_) => {
                DeviceState::Undefined
            }
        }
    }
}

/// Whether the cache set could not be read, rather than that something is wrong with it.
fn is_unreadable(error: &InvalidateError) -> bool {
    match error {
        InvalidateError::Damaged { first, .. } => first.is_unreadable(),
        InvalidateError::NoCache { source, .. } => {
            matches!(source, ReadError::OutOfMemory { .. } | ReadError::Open(OpenError::Device(_)))
        }
        InvalidateError::NoMemory(_) => true,
        _ => false,
    }
}

/// How the cache set, read again, departs from the plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Another entry is the newest.
    #[error("journal entry {found} is the newest, expected {expected}")]
    Newest {
        /// What was written.
        expected: u64,
        /// What is found.
        found: u64,
    },
    /// The newest entry names another root, uuid table or replay range.
    #[error("journal entry {seq} does not carry on the root, uuid table or replay range")]
    Header {
        /// The entry.
        seq: u64,
    },
    /// Another chain is the current one.
    #[error("the prio chain found is not the one written")]
    Chain,
    /// A bucket has another gen than planned.
    #[error("bucket {bucket} has gen {found}, expected {expected}")]
    BucketGen {
        /// The bucket.
        bucket: BucketIndex,
        /// As planned.
        expected: u8,
        /// As found.
        found: u8,
    },
    /// A bucket that was invalidated still has valid pointers, or another one lost or won some.
    #[error("bucket {bucket} is {found}, expected {expected}")]
    Mark {
        /// The bucket.
        bucket: BucketIndex,
        /// As planned.
        expected: crate::cache_set::GcMark,
        /// As found.
        found: crate::cache_set::GcMark,
    },
    /// A bucket has another number of sectors in use.
    #[error("bucket {bucket} has {found} sectors in use, expected {expected}")]
    SectorsUsed {
        /// The bucket.
        bucket: BucketIndex,
        /// As planned.
        expected: u16,
        /// As found.
        found: u16,
    },
    /// A volume lost data that was not to be invalidated, or kept some that was.
    #[error(
        "volume {slot} has {found_cached} sectors cached, {found_dirty} of them dirty; expected \
         {expected_cached} and {expected_dirty}"
    )]
    Volume {
        /// Its slot.
        slot: u32,
        /// Cached sectors as planned.
        expected_cached: u64,
        /// Dirty sectors as planned.
        expected_dirty: u64,
        /// Cached sectors as found.
        found_cached: u64,
        /// Dirty sectors as found.
        found_dirty: u64,
    },
}
