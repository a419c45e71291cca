//! The writes of an invalidation: a new prio chain, and the journal entry that makes it current.

use crate::cache_set::journal::{AppendPlaces, JournalPlace};
use crate::cache_set::{Bucket, CacheSet};
use crate::layout::jset::Jset;
use crate::layout::prio_set::BucketDisk;
use crate::ops::commit::{entry_write, prio_chain, unused_buckets};
use crate::ops::invalidate::InvalidateError;
use crate::ops::invalidate::bits::BucketBits;
use crate::ops::plan::{Plan, Step};
use crate::units::{BucketIndex, Prio};

/// What is written, in two parts with a flush at the end of each.
#[derive(Clone, Debug)]
pub struct Writes {
    /// The new prio sets, in buckets that hold nothing.
    pub sets: Plan,
    /// The journal entry: what makes them the current ones.
    pub commit: Plan,
    /// The buckets of the new chain, head first.
    pub chain: Vec<BucketIndex>,
    /// Number of the new chain's write.
    pub prio_seq: u64,
    /// Sequence number of the journal entry.
    pub journal_seq: u64,
    /// The journal entry.
    pub entry: Jset,
    /// Where the journal entry goes.
    pub place: JournalPlace,
}

impl Writes {
    /// All steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.sets.steps.iter().chain(&self.commit.steps)
    }
}

/// Unused buckets for a new chain: nothing points to them, they are no targets, and the current
/// chain, being metadata, is not among them (docs/on-disk-format.md §8.4 step 1).
pub(super) fn choose_chain(
    set: &CacheSet<'_>,
    targets: &BucketBits,
) -> Result<Vec<BucketIndex>, InvalidateError> {
    let needed = set.geometry().prio_buckets();
    let chain: Vec<BucketIndex> = unused_buckets(set)
        .map(|(number, _)| number)
        .filter(|number| !targets.contains(*number))
        .take(usize::try_from(needed).unwrap_or(usize::MAX))
        .collect();
    let found = chain.len() as u64;
    if found < needed {
        return Err(InvalidateError::TooFewUnused { needed, found });
    }
    Ok(chain)
}

/// Plans the writes that invalidate `targets`.
pub(super) fn plan(set: &CacheSet<'_>, targets: &BucketBits) -> Result<Writes, InvalidateError> {
    let chain = choose_chain(set, targets)?;
    let geometry = set.geometry();
    let prio_seq = set.prios.seq.wrapping_add(1);

    let newest = &set.journal.newest().ok_or(InvalidateError::NoSuccessor { seq: 0 })?.jset;
    let head = chain.first().copied().unwrap_or_default();
    let entry = newest
        .successor(set.cache.superblock().nr_this_dev(), head.0)
        .ok_or(InvalidateError::NoSuccessor { seq: newest.seq() })?;
    let places = set
        .journal
        .append_places(&set.cache)
        .ok_or(InvalidateError::NoSuccessor { seq: newest.seq() })?;
    let place = choose_place(&places)?;

    let mut reserved = BucketBits::new(geometry.nbuckets())?;
    for &bucket in &chain {
        reserved.insert(bucket);
    }
    let disk = |number, bucket: &Bucket| {
        let (prio, bucket_gen) = (bucket.prio(), bucket.bucket_gen());
        if targets.contains(number) {
            BucketDisk { prio: Prio::INITIAL, bucket_gen: bucket_gen.next() }
        } else if reserved.contains(number) {
            // As the kernel has a bucket of its own chain. Its gen stays: nothing points to it.
            BucketDisk { prio: Prio::BTREE, bucket_gen }
        } else {
            BucketDisk { prio, bucket_gen }
        }
    };
    let mut sets = Plan::default();
    let mut keep = |step| {
        sets.steps.push(step);
        Ok::<(), std::convert::Infallible>(())
    };
    let Ok(()) = prio_chain(set, &chain, prio_seq, &disk, &mut keep);
    let commit = Plan { steps: vec![entry_write(set, &entry, &place), Step::Flush] };
    Ok(Writes { sets, commit, chain, prio_seq, journal_seq: entry.seq(), entry, place })
}

fn choose_place(places: &AppendPlaces) -> Result<JournalPlace, InvalidateError> {
    match (places.after_newest, places.next_bucket) {
        (Some((place, _)), _) | (None, Ok(place)) => Ok(place),
        (None, Err(next)) => Err(InvalidateError::JournalFull { next }),
    }
}
