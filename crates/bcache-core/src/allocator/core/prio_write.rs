//! The steps of writing a chain of prio sets: which buckets it takes and gives back.

use crate::units::BucketIndex;

use super::super::prios::{PrioChains, PrioSetPlan, PrioWriteError};
use super::super::reserves::Reserve;
use super::super::sync::lock;
use super::super::table::TableError;
use super::Refiller;

impl Refiller<'_> {
    /// The chain that was found on the device, head first, and its sequence number.
    pub fn set_prio_chain(&self, chain: &[BucketIndex], seq: u64) {
        let mut refill = self.core.refill();
        refill.chains = PrioChains { current: chain.to_vec(), seq, ..PrioChains::default() };
    }

    /// Begins a write; the sequence number of its sets.
    pub fn prio_write_begin(&self) -> Result<u64, PrioWriteError> {
        let mut refill = self.core.refill();
        let reserves = lock(&self.core.reserves);
        let needed = self.core.sizes().prio;
        let available = reserves.fifo(Reserve::Prio).used() + reserves.fifo(Reserve::None).used();
        if available < needed {
            return Err(PrioWriteError::TooFewBuckets { needed, available });
        }
        drop(reserves);
        refill.chains.seq = refill.chains.seq.wrapping_add(1);
        Ok(refill.chains.seq)
    }

    /// The next set to write, the last of the chain first; `None` when all were.
    ///
    /// Its bucket is allocated here, never one of the current chain. None may have taken the last
    /// free buckets since the write began: then the write is to be aborted.
    pub fn prio_write_next(&self) -> Result<Option<PrioSetPlan>, PrioWriteError> {
        let needed = self.core.sizes().prio;
        let (index, next_bucket, seq) = {
            let refill = self.core.refill();
            let Some(index) = needed.checked_sub(refill.chains.writing.len() + 1) else {
                return Ok(None);
            };
            let last = refill.chains.current.first().copied().unwrap_or_default();
            (index, refill.chains.writing.last().copied().unwrap_or(last), refill.chains.seq)
        };
        let bucket = self
            .core
            .bucket_alloc(Reserve::Prio)?
            .ok_or(PrioWriteError::TooFewBuckets { needed: index + 1, available: 0 })?;
        // From here on the chain keeps it: Metadata, so that nothing invalidates it.
        self.core.refill().chains.writing.push(bucket);
        self.core.table().unpin(bucket)?;
        let index = index as u64;
        Ok(Some(PrioSetPlan {
            index,
            bucket,
            next_bucket,
            seq,
            first_entry: index.saturating_mul(self.core.config().geometry.prios_per_bucket()),
        }))
    }

    /// The head of the chain being written: what the journal entry is to name.
    pub fn prio_write_head(&self) -> Option<BucketIndex> {
        self.core.refill().chains.writing.last().copied()
    }

    /// The journal entry is durable: the new chain is current and the old one free.
    pub fn prio_write_commit(&self) -> Result<(), TableError> {
        let freed = {
            let mut refill = self.core.refill();
            let mut head_first = std::mem::take(&mut refill.chains.writing);
            head_first.reverse();
            refill.chains.replace(head_first)
        };
        freed.into_iter().try_for_each(|bucket| self.core.bucket_free(bucket))
    }

    /// A journal entry that names the newest chain in doubt is durable: it is current, and all older
    /// ones are free.
    pub(crate) fn prio_doubt_settled(&self) -> Result<(), TableError> {
        let freed = {
            let mut refill = self.core.refill();
            let Some(chain) = refill.chains.in_doubt.pop() else { return Ok(()) };
            refill.chains.replace(chain)
        };
        freed.into_iter().try_for_each(|bucket| self.core.bucket_free(bucket))
    }

    /// The write failed. `in_doubt`: the journal entry had been tried, so that the new chain may be
    /// the current one on the device.
    pub fn prio_write_abort(&self, in_doubt: bool) -> Result<(), TableError> {
        let freed = {
            let mut refill = self.core.refill();
            let chain = &mut refill.chains;
            let mut writing = std::mem::take(&mut chain.writing);
            if in_doubt {
                writing.reverse();
                chain.in_doubt.push(std::mem::take(&mut writing));
            }
            writing
        };
        freed.into_iter().try_for_each(|bucket| self.core.bucket_free(bucket))
    }
}
