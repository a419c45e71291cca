//! What one journal bucket holds: its entries, and why there are no more.

use crate::layout::jset::JsetError;
use crate::units::BucketIndex;

/// Where a journal entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JournalPlace {
    /// Position of the bucket in the journal, from 0.
    pub index: usize,
    /// The bucket.
    pub bucket: BucketIndex,
    /// Bytes from the start of the bucket.
    pub offset: u64,
}

/// What is known of every entry on the device, also of those that the kernel drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Sequence number.
    pub seq: u64,
    /// Oldest entry that replay needed when this one was written.
    pub last_seq: u64,
    /// Length in bytes, header included.
    pub bytes: u64,
    /// Where it stands.
    pub place: JournalPlace,
}

/// Why the reading of a journal bucket ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Entries up to its end.
    Full,
    /// No entry at this byte.
    NoEntry {
        /// Bytes from the start of the bucket.
        offset: u64,
        /// Why not.
        error: JsetError,
        /// The sequence number that it has, or would have if its magic were right.
        seq_hint: Option<u64>,
        /// Whether it may have held dirty keys: it has some, or its keys are not whole.
        may_be_dirty: bool,
    },
    /// The device refused to read from this byte on.
    Unreadable {
        /// Bytes from the start of the bucket.
        offset: u64,
    },
}

/// What looks like an entry and is none: a torn write, or damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEntry {
    /// Sequence number that it has, or would have if its magic were right.
    pub seq: u64,
    /// Whether it has the magic of the set's entries.
    pub has_magic: bool,
    /// Where it stands.
    pub place: JournalPlace,
}

/// One journal bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalBucket {
    /// Its number on the device.
    pub bucket: BucketIndex,
    /// The entries in it, in the order of their places.
    pub entries: Vec<EntryHeader>,
    /// Why there are no more.
    pub stop: Stop,
    /// Sound entries behind [`Stop::NoEntry`], where the kernel does not look: as a rule what is
    /// left of an older cycle.
    pub behind: Vec<EntryHeader>,
    /// What looks like entries, from [`Stop::NoEntry`] on, and is none.
    pub bad: Vec<BadEntry>,
}

impl JournalBucket {
    /// All sound entries, also those where the kernel does not look.
    pub(super) fn sound(&self) -> impl Iterator<Item = &EntryHeader> {
        self.entries.iter().chain(&self.behind)
    }
}
