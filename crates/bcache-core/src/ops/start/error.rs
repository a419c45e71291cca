//! Why a set cannot be brought into use, and why prios and gens could not be written.

use crate::allocator::{AllocError, SetError, TableError, WriteError};
use crate::cache_set::journal::{Gap, JournalProblem, NextBucketRefusal};
use crate::cache_set::{OpenError, Problem, ReadError};
use crate::device::DeviceError;
use crate::layout::verdict::Refusal;

/// Why a set cannot be brought into use.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The superblock describes no device, or one that has been in use.
    #[error("cache {device} is not freshly formatted")]
    NotFresh {
        /// Number of the cache in the set.
        device: usize,
    },
    /// The allocator cannot be made.
    #[error(transparent)]
    Set(#[from] SetError),
    /// There is no bucket for a structure.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The bucket table is inconsistent.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A prio set or the journal entry could not be written.
    #[error("cache {device}: the first priorities and gens")]
    Prios {
        /// Number of the cache in the set.
        device: usize,
        /// Why.
        source: WriteError<CacheIoError>,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A cache that is to have been in use cannot go on.
    #[error("cache {device} cannot go on from what it holds")]
    InUse {
        /// Number of the cache in the set.
        device: usize,
        /// Why.
        source: InUseError,
    },
}

/// Why a cache cannot go on from what it holds. Nothing has been written.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    /// There is no cache set that could be read.
    #[error(transparent)]
    NoCache(#[from] ReadError),
    /// The kernel would refuse the superblock.
    #[error("the kernel would refuse it: {refusal}")]
    KernelRefuses {
        /// Why.
        refusal: Refusal,
    },
    /// The superblock names a replacement policy that no kernel has.
    #[error("the superblock names an unknown replacement policy")]
    UnknownPolicy,
    /// Something is wrong with the set, so that it is not certain which buckets are in use.
    #[error("the cache set is damaged: {first} ({count} problems)")]
    Damaged {
        /// The first problem.
        first: Box<Problem>,
        /// How many there are.
        count: u64,
    },
    /// Journal entries that replay needs are missing.
    #[error("journal entries {} to {} are missing", gap.first, gap.last)]
    JournalGap {
        /// Which.
        gap: Gap,
    },
    /// The newest journal entry is of an older layout, or of the last number that there is.
    #[error("journal entry {seq} can have no successor")]
    NoSuccessor {
        /// Its sequence number.
        seq: u64,
    },
    /// The journal has no room for an entry, or for the keys of the replay range time and again.
    #[error(
        "the journal has too little room beside the {keys} keys that replay needs{}",
        next.map(|next| format!(": {next}")).unwrap_or_default()
    )]
    JournalFull {
        /// Keys of the replay range.
        keys: usize,
        /// Why no entry can go to the next bucket, where that is the reason.
        next: Option<NextBucketRefusal>,
    },
    /// The kernel's search of the journal would not end at the next entry.
    #[error("after entry {planned}, the kernel would find entry {found} as the newest")]
    JournalHidesEntries {
        /// The entry that is to be written.
        planned: u64,
        /// What it would find; 0 for none.
        found: u64,
    },
    /// The journal could not be read a second time.
    #[error(transparent)]
    Journal(#[from] JournalProblem),
    /// Too few buckets hold nothing.
    #[error(
        "too few buckets that nothing points to: a chain of prio sets needs {needed}, the cache has \
         {found}"
    )]
    TooFewUnused {
        /// Buckets of a chain.
        needed: usize,
        /// Buckets there are.
        found: usize,
    },
    /// The superblock could not be read a second time.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Why prios and gens could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CacheIoError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The journal's sequence numbers have come to their end.
    #[error("the journal cannot number another entry")]
    JournalSeq,
    /// The journal has no room for another entry.
    #[error("the journal is full of entries that replay needs")]
    JournalFull,
    /// There is no thread to write prio sets any more, or none could be started.
    #[error("the thread that writes prio sets is gone")]
    WriterEnded,
}
