//! What the buckets were, while the set is read again and compared: three bytes each.
//!
//! Beside the table of the set that is read, the table of the plan would be 8 bytes a bucket more.

use std::collections::TryReserveError;

use crate::cache_set::{Bucket, CacheSet, Marked};
use crate::ops::invalidate::bits::BucketBits;
use crate::ops::invalidate::refusal::Cause;
use crate::units::{BucketIndex, Gen, Prio};

/// What of the table the proof compares and the lists tell.
#[derive(Debug)]
pub(super) struct Before {
    gens: Vec<Gen>,
    marked: Vec<Marked>,
    /// Of the targets alone, in their order.
    prios: Vec<Prio>,
    /// Of the refused buckets, in their order.
    causes: Vec<Cause>,
}

impl Before {
    pub(super) fn new(
        set: &CacheSet<'_>,
        targets: &BucketBits,
        refused: &BucketBits,
    ) -> Result<Self, TryReserveError> {
        let table = set.table.as_slice();
        let prio = |number| set.table.get(number).map(Bucket::prio).unwrap_or_default();
        Ok(Self {
            gens: collected(table.len(), table.iter().map(Bucket::bucket_gen))?,
            marked: collected(table.len(), table.iter().map(|bucket| bucket.marked()))?,
            prios: collected(count(targets), targets.iter().map(prio))?,
            causes: collected(count(refused), refused.iter().map(|it| Cause::of(set, it)))?,
        })
    }

    /// All buckets, from number 0 on.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (Gen, Marked)> + '_ {
        self.gens.iter().copied().zip(self.marked.iter().copied())
    }

    /// Prio, gen and sectors in use of a target, `rank` others being before it.
    pub(super) fn target(&self, rank: usize, number: BucketIndex) -> (Prio, Gen, u16) {
        let index = usize::try_from(number.0).unwrap_or(usize::MAX);
        let bucket_gen = self.gens.get(index).copied().unwrap_or_default();
        let sectors = self.marked.get(index).map_or(0, |it| it.sectors_used());
        (self.prios.get(rank).copied().unwrap_or_default(), bucket_gen, sectors)
    }

    /// Why a bucket is refused, `rank` others being before it.
    pub(super) fn cause(&self, rank: usize) -> Cause {
        self.causes.get(rank).copied().unwrap_or(Cause::BeforeFirst)
    }
}

fn count(bits: &BucketBits) -> usize {
    usize::try_from(bits.len()).unwrap_or(usize::MAX)
}

/// `len` elements in a vector that has room for no more.
fn collected<T>(len: usize, elements: impl Iterator<Item = T>) -> Result<Vec<T>, TryReserveError> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(len)?;
    vector.extend(elements);
    Ok(vector)
}
