//! Prio writing: two chains of prio sets that alternate (FORMAT.md §3.4).
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

use super::reserves::Reserve;
use super::state::State;
use super::sync::lock;
use super::table::TableError;

/// The chains of one cache.
#[derive(Clone, Debug, Default)]
pub struct PrioChain {
    /// The chain that the newest durable journal entry names: `prio_last_buckets`.
    current: Vec<BucketIndex>,
    /// Chains that it may name, because writing the entry failed: the oldest first, of each the head
    /// first.
    in_doubt: Vec<Vec<BucketIndex>>,
    /// The chain being written, last set first.
    writing: Vec<BucketIndex>,
    /// Sequence number of the last write.
    seq: u64,
}

impl PrioChain {
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
    fn replace(&mut self, chain: Vec<BucketIndex>) -> Vec<BucketIndex> {
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

impl State {
    /// The chain that was found on the device, head first, and its sequence number.
    pub fn set_prio_chain(&self, chain: &[BucketIndex], seq: u64) {
        let mut refill = self.refill();
        refill.chain = PrioChain { current: chain.to_vec(), seq, ..PrioChain::default() };
    }

    /// The chains as they are.
    pub fn prio_chain(&self) -> PrioChain {
        self.refill().chain.clone()
    }

    /// Begins a write; the sequence number of its sets.
    pub fn prio_write_begin(&self) -> Result<u64, PrioWriteError> {
        let mut refill = self.refill();
        let reserves = lock(&self.reserves);
        let needed = self.sizes().prio;
        let available = reserves.fifo(Reserve::Prio).used() + reserves.fifo(Reserve::None).used();
        if available < needed {
            return Err(PrioWriteError::TooFewBuckets { needed, available });
        }
        drop(reserves);
        refill.chain.seq = refill.chain.seq.wrapping_add(1);
        Ok(refill.chain.seq)
    }

    /// The next set to write, the last of the chain first; `None` when all were.
    ///
    /// Its bucket is allocated here, never one of the current chain. None may have taken the last
    /// free buckets since the write began: then the write is to be aborted.
    pub fn prio_write_next(&self) -> Result<Option<PrioSetPlan>, PrioWriteError> {
        let needed = self.sizes().prio;
        let (index, next_bucket, seq) = {
            let refill = self.refill();
            let Some(index) = needed.checked_sub(refill.chain.writing.len() + 1) else {
                return Ok(None);
            };
            let last = refill.chain.current.first().copied().unwrap_or_default();
            (index, refill.chain.writing.last().copied().unwrap_or(last), refill.chain.seq)
        };
        let bucket = self
            .bucket_alloc(Reserve::Prio)?
            .ok_or(PrioWriteError::TooFewBuckets { needed: index + 1, available: 0 })?;
        // From here on the chain keeps it: Metadata, so that nothing invalidates it.
        self.refill().chain.writing.push(bucket);
        self.table().unpin(bucket)?;
        let index = index as u64;
        Ok(Some(PrioSetPlan {
            index,
            bucket,
            next_bucket,
            seq,
            first_entry: index.saturating_mul(self.config().geometry.prios_per_bucket()),
        }))
    }

    /// The head of the chain being written: what the journal entry is to name.
    pub fn prio_write_head(&self) -> Option<BucketIndex> {
        self.refill().chain.writing.last().copied()
    }

    /// The journal entry is durable: the new chain is current and the old one free.
    pub fn prio_write_commit(&self) -> Result<(), TableError> {
        let freed = {
            let mut refill = self.refill();
            let mut head_first = std::mem::take(&mut refill.chain.writing);
            head_first.reverse();
            refill.chain.replace(head_first)
        };
        freed.into_iter().try_for_each(|bucket| self.bucket_free(bucket))
    }

    /// A journal entry that names the newest chain in doubt is durable: it is current, and all older
    /// ones are free.
    pub(crate) fn prio_doubt_settled(&self) -> Result<(), TableError> {
        let freed = {
            let mut refill = self.refill();
            let Some(chain) = refill.chain.in_doubt.pop() else { return Ok(()) };
            refill.chain.replace(chain)
        };
        freed.into_iter().try_for_each(|bucket| self.bucket_free(bucket))
    }

    /// The write failed. `in_doubt`: the journal entry had been tried, so that the new chain may be
    /// the current one on the device.
    pub fn prio_write_abort(&self, in_doubt: bool) -> Result<(), TableError> {
        let freed = {
            let mut refill = self.refill();
            let chain = &mut refill.chain;
            let mut writing = std::mem::take(&mut chain.writing);
            if in_doubt {
                writing.reverse();
                chain.in_doubt.push(std::mem::take(&mut writing));
            }
            writing
        };
        freed.into_iter().try_for_each(|bucket| self.bucket_free(bucket))
    }
}
