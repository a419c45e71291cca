//! The prio chain: prio and gen of every bucket (docs/on-disk-format.md §3.3).
//!
//! The kernel follows the chain for exactly as many sets as the buckets need and refuses the cache
//! set at the first one that is damaged. This reader also checks what the kernel does not: that the
//! numbers of the buckets are in range and distinct, and that all sets are of one write.

use std::collections::HashSet;

use crate::cache_set::CacheDevice;
use crate::cache_set::table::BucketTable;
use crate::device::{AlignedBuf, DeviceError};
use crate::layout::bkey::Bkey;
use crate::layout::prio_set::{PrioSet, PrioSetError};
use crate::units::{BucketIndex, Geometry};

/// What is wrong with a prio chain.
#[derive(Debug, thiserror::Error)]
pub enum PrioProblem {
    /// A set could not be read from the device.
    #[error("prio set {index} in bucket {bucket} cannot be read")]
    Unreadable {
        /// Position in the chain.
        index: u64,
        /// The bucket.
        bucket: BucketIndex,
        /// The device's error.
        source: DeviceError,
    },
    /// A bucket holds no prio set of this cache set, or a damaged one.
    #[error("prio set {index} in bucket {bucket}: {error}")]
    Invalid {
        /// Position in the chain.
        index: u64,
        /// The bucket.
        bucket: BucketIndex,
        /// What is wrong with it.
        error: PrioSetError,
    },
    /// The chain names a bucket that cannot hold a prio set.
    #[error("prio set {index} is said to be in bucket {bucket}, which the device does not have")]
    OutOfRange {
        /// Position in the chain.
        index: u64,
        /// The number.
        bucket: u64,
    },
    /// The chain names a bucket of the journal.
    #[error("prio set {index} is said to be in bucket {bucket}, which is the journal's")]
    InJournal {
        /// Position in the chain.
        index: u64,
        /// The bucket.
        bucket: BucketIndex,
    },
    /// The chain comes back to a bucket it had.
    #[error("prio set {index} is said to be in bucket {bucket}, as another one is")]
    Repeated {
        /// Position in the chain.
        index: u64,
        /// The bucket.
        bucket: BucketIndex,
    },
    /// The sets are not of one write.
    #[error("prio set {index} in bucket {bucket} has seq {found}, the first set {expected}")]
    MixedSeq {
        /// Position in the chain.
        index: u64,
        /// The bucket.
        bucket: BucketIndex,
        /// Its seq.
        found: u64,
        /// The first set's.
        expected: u64,
    },
}

/// A prio chain as found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrioChain {
    /// The buckets of the sets, first to last; fewer than the device needs where the chain breaks.
    pub buckets: Vec<BucketIndex>,
    /// Number of the write.
    pub seq: u64,
    /// Whether every set was there and sound.
    pub complete: bool,
    /// Whether each set was sound, first to last; a set past the end was not found.
    pub sound: Vec<bool>,
}

impl PrioChain {
    /// Whether a sound set tells the gen of `bucket`.
    pub fn knows(&self, bucket: BucketIndex, geometry: &Geometry) -> bool {
        let index = bucket.0.checked_div(geometry.prios_per_bucket()).unwrap_or(u64::MAX);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.complete || self.sound.get(index).copied().unwrap_or(false)
    }

    /// Whether sound sets tell the gens of all buckets that `key` points to.
    pub(crate) fn knows_all(&self, key: &Bkey, geometry: &Geometry) -> bool {
        key.ptrs().iter().all(|ptr| self.knows(ptr.bucket(geometry), geometry))
    }

    /// Follows the chain from `head` and fills `table` with what it says.
    pub fn read(
        cache: &CacheDevice<'_>,
        head: u64,
        table: &mut BucketTable,
        progress: &mut dyn FnMut(u64),
        problem: &mut dyn FnMut(PrioProblem),
    ) -> Self {
        let geometry = cache.geometry();
        let journal: HashSet<BucketIndex> = cache.journal_buckets().into_iter().collect();
        let mut seen = HashSet::new();
        let mut image =
            AlignedBuf::zeroed(usize::try_from(geometry.meta_bucket_bytes()).unwrap_or(0));
        let mut chain = Self { complete: true, ..Self::default() };
        let mut next = head;
        for index in 0..geometry.prio_buckets() {
            let bucket = BucketIndex(next);
            if !geometry.contains(bucket) {
                problem(PrioProblem::OutOfRange { index, bucket: next });
                chain.complete = false;
                break;
            }
            if journal.contains(&bucket) {
                problem(PrioProblem::InJournal { index, bucket });
                chain.complete = false;
            }
            if !seen.insert(bucket) {
                problem(PrioProblem::Repeated { index, bucket });
                chain.complete = false;
                break;
            }
            if let Err(source) = cache.read_bucket(bucket, 0, &mut image) {
                problem(PrioProblem::Unreadable { index, bucket, source });
                chain.complete = false;
                break;
            }
            let (set, error) = PrioSet::salvage(&image, cache.magic());
            if let Some(error) = error {
                problem(PrioProblem::Invalid { index, bucket, error });
                chain.complete = false;
            }
            // A set with a wrong checksum still tells most of its gens; one without the magic
            // is something else.
            let Some(set) = set else { break };
            if index == 0 {
                chain.seq = set.seq();
            } else if set.seq() != chain.seq && error.is_none() {
                let (found, expected) = (set.seq(), chain.seq);
                problem(PrioProblem::MixedSeq { index, bucket, found, expected });
            }
            table.load(index.saturating_mul(geometry.prios_per_bucket()), set.entries());
            chain.buckets.push(bucket);
            chain.sound.push(error.is_none() && set.seq() == chain.seq);
            next = set.next_bucket();
            progress(image.len() as u64);
        }
        chain
    }
}
