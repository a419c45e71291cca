//! Prio writing: two chains of prio sets that alternate (on-disk-format.md §3.4).
//!
//! A write never goes to the chain that is current. New buckets take the new chain; the journal
//! entry that names its head makes it current; only then are the old chain's buckets freed. A crash
//! at any point finds one whole chain: the old one up to the moment the entry is durable, the new one
//! after.
//!
//! When a write fails midway, what it allocated is freed again, unless the journal entry had been
//! tried: that one may have become durable or not, so that both chains are kept until a later entry
//! has succeeded. That may be one that names the new chain again, whose sets are whole and flushed. It
//! needs no bucket, which matters on a full cache: there the old chain's are the only ones to come.
//! The gens that it makes current are those of its writing: at least those of the old chain, so that
//! all that was handed out since is as safe. What was invalidated since is not in it, and nothing of
//! `free_inc` becomes ready by it.

use crate::units::BucketIndex;

use super::table::TableError;

/// The chains of one cache.
#[derive(Clone, Debug, Default)]
pub struct PrioChains {
    /// The chain that the newest durable journal entry names: `prio_last_buckets`.
    pub(crate) current: Vec<BucketIndex>,
    /// Chains that it may name, because writing the entry failed: the oldest first, of each the head
    /// first.
    pub(crate) in_doubt: Vec<Vec<BucketIndex>>,
    /// The chain being written, last set first.
    pub(crate) writing: Vec<BucketIndex>,
    /// Sequence number of the last write.
    pub(crate) seq: u64,
}

impl PrioChains {
    /// Every bucket of any chain: METADATA at the end of a GC.
    pub fn buckets(&self) -> impl Iterator<Item = BucketIndex> + '_ {
        let in_doubt = self.in_doubt.iter().flatten();
        self.current.iter().chain(in_doubt).chain(&self.writing).copied()
    }

    /// The newest chain that may be current instead, head first.
    pub fn in_doubt(&self) -> Option<&[BucketIndex]> {
        self.in_doubt.last().map(Vec::as_slice)
    }

    /// Makes a chain current, head first; those that nothing leads to any more.
    pub(crate) fn replace(&mut self, chain: Vec<BucketIndex>) -> Vec<BucketIndex> {
        let mut freed = std::mem::replace(&mut self.current, chain);
        freed.extend(self.in_doubt.drain(..).flatten());
        freed
    }

    /// The chain that is current, head first.
    pub fn current(&self) -> &[BucketIndex] {
        &self.current
    }

    /// The sequence number of the last write.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

/// One prio set to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrioSetPlan {
    /// Its place in the chain.
    pub index: u64,
    /// Where it goes.
    pub bucket: BucketIndex,
    /// What its `next_bucket` says: the next set, or for the last one the head of the chain before
    /// (0 if there was none), as the kernel writes it.
    pub next_bucket: BucketIndex,
    /// Sequence number, the same for all sets of a chain.
    pub seq: u64,
    /// The bucket that its first entry describes.
    pub first_entry: u64,
}

/// Why prios cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrioWriteError {
    /// The reserves hold too few buckets for a chain. Handing out what is in `free_inc` to get some
    /// would use buckets whose gens are not durable.
    #[error("a chain of prio sets needs {needed} buckets and {available} are free")]
    TooFewBuckets {
        /// Buckets of a chain.
        needed: usize,
        /// Buckets in the Prio and None reserves.
        available: usize,
    },
    /// The table refused a bucket.
    #[error(transparent)]
    Table(#[from] TableError),
}
