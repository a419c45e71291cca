//! What keys on the device say of its buckets, in a set that was in use before.

use crate::units::{BucketIndex, Gen, Prio};

use super::super::mark::Mark;
use super::super::table::TableError;
use super::{AllocatorCore, Refiller};

/// What the keys on the device say of a bucket.
///
/// They stay as they are while the allocator runs: whoever uses it has keys elsewhere, and a GC comes
/// by those only. So the end of every GC marks what is said here besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The bucket.
    pub bucket: BucketIndex,
    /// Its gen; once that has risen, the keys are stale.
    pub bucket_gen: Gen,
    /// The oldest gen that a key has. The bucket's is not to go more than 96 past it, or a stale key
    /// would in the end be valid again.
    pub oldest_gen: Gen,
    /// What the keys of its gen make it.
    pub mark: Mark,
    /// Sectors that these use.
    pub sectors_used: u16,
    /// It is not to be invalidated, whatever its mark: it is pinned as long as the allocator is there.
    pub pinned: bool,
}

impl Kept {
    /// Whether there is anything to say of the bucket.
    pub fn says_something(&self) -> bool {
        self.mark != Mark::None || self.oldest_gen != self.bucket_gen || self.pinned
    }
}

impl Refiller<'_> {
    /// Takes over what the device holds, before the cache is used: all buckets' prios, by number, and
    /// gens; and what keys say of some. Until the GC that is to end now, nothing can be allocated.
    pub(crate) fn take_over(
        &self,
        buckets: impl Iterator<Item = (BucketIndex, Prio, Gen)>,
        kept: Vec<Kept>,
    ) -> Result<(), TableError> {
        for (bucket, prio, bucket_gen) in buckets {
            self.load(bucket, prio, bucket_gen)?;
        }
        let table = self.core.table();
        for one in kept.iter().filter(|one| one.pinned) {
            table.pin(one.bucket)?;
            // The beginning of a GC leaves the marks of pinned buckets.
            table.mark_key(one.bucket, one.bucket_gen, one.mark, one.sectors_used)?;
        }
        self.core.refill().kept = kept;
        Ok(())
    }
}

impl AllocatorCore {
    /// Marks what the keys on the device say.
    pub(super) fn mark_kept(&self, kept: &[Kept]) -> Result<(), TableError> {
        for one in kept {
            // Stale: it marks nothing, and lowers `last_gc`.
            if one.oldest_gen != one.bucket_gen {
                self.table.mark_key(one.bucket, one.oldest_gen, Mark::None, 0)?;
            }
            if one.mark != Mark::None && !one.pinned {
                self.table.mark_key(one.bucket, one.bucket_gen, one.mark, one.sectors_used)?;
            }
        }
        Ok(())
    }
}
