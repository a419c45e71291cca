//! What must hold between two steps: for tests and messages.

use crate::units::BucketIndex;

use super::super::lifecycle::Lifecycle;
use super::super::reserves::Reserve;
use super::super::sync::lock;
use super::super::table::TableError;
use super::AllocatorCore;

impl AllocatorCore {
    /// The list that `bucket` is in. A bucket of a prio chain counts as allocated.
    pub(super) fn list_of(&self, bucket: BucketIndex) -> Option<Lifecycle> {
        if let Some(place) = lock(&self.free_inc).find(bucket) {
            return Some(place);
        }
        // The chain is looked at only when nobody works on it, so that the check cannot make an
        // allocation wait for a sweep.
        if let Ok(refill) = self.refill.try_lock() {
            if refill.chains.buckets().any(|other| other == bucket) {
                return Some(Lifecycle::Allocated);
            }
        }
        let reserves = lock(&self.reserves);
        Reserve::ALL
            .into_iter()
            .find(|&reserve| reserves.fifo(reserve).iter().any(|other| other == bucket))
            .map(Lifecycle::Reserved)
    }

    /// Where `bucket` stands. Walks the lists: for tests and messages.
    pub fn lifecycle(&self, bucket: BucketIndex) -> Result<Lifecycle, TableError> {
        let pins = self.table.bucket(bucket)?.pins;
        Ok(self.list_of(bucket).unwrap_or(if pins == 0 {
            Lifecycle::InUse
        } else {
            Lifecycle::Allocated
        }))
    }

    /// Verifies everything that must hold between two steps; the first thing that does not. Only
    /// with nothing else running.
    pub fn check(&self) -> Result<(), Inconsistency> {
        let refill = self.refill();
        let mut listed = self.free_inc_contents();
        let reserves = lock(&self.reserves);
        for reserve in Reserve::ALL {
            listed.extend(reserves.fifo(reserve).iter());
        }
        for &bucket in &listed {
            let pins = self.table.bucket(bucket).map_or(0, |bucket| bucket.pins);
            if pins != 1 {
                return Err(Inconsistency::FreeBucketPins { bucket, pins });
            }
            if refill.chains.buckets().any(|other| other == bucket) {
                return Err(Inconsistency::FreeBucketInPrioChain { bucket });
            }
        }
        listed.sort_unstable();
        for pair in listed.windows(2) {
            if let [one, other] = pair {
                if one == other {
                    return Err(Inconsistency::ListedTwice { bucket: *one });
                }
            }
        }
        if !self.table.unreclaimable_bits_follow() {
            return Err(Inconsistency::UnreclaimableBit);
        }
        Ok(())
    }
}

/// Something that must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistency {
    /// A bucket in a list does not carry exactly the list's pin.
    #[error("free bucket {bucket} has {pins} pins instead of 1")]
    FreeBucketPins {
        /// The bucket.
        bucket: BucketIndex,
        /// Its pins.
        pins: u16,
    },
    /// A bucket is free and holds a prio set at once.
    #[error("bucket {bucket} is free and holds a prio set")]
    FreeBucketInPrioChain {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// A bucket is in two lists, or twice in one.
    #[error("bucket {bucket} is listed as free twice")]
    ListedTwice {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// A bucket's unreclaimable bit does not say what its gen and pins say.
    #[error("a bucket's unreclaimable bit does not follow its gen and pins")]
    UnreclaimableBit,
}
