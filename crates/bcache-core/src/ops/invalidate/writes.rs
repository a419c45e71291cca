//! The writes of an invalidation: a new prio chain, and the journal entry that makes it current.

use crate::cache_set::CacheSet;
use crate::cache_set::journal::{AppendPlaces, JournalPlace};
use crate::layout::jset::Jset;
use crate::layout::prio_set::BucketDisk;
use crate::ops::commit::{entry_write, prio_chain, unused_buckets};
use crate::ops::invalidate::InvalidateError;
use crate::ops::invalidate::bits::BucketBits;
use crate::ops::plan::{Plan, Step};
use crate::units::{BucketIndex, Prio};

/// What is written: the sets of a new prio chain and a flush, then a journal entry and a flush.
///
/// The sets are made when they are written, and again when they are read back: of a large cache they are
/// a hundred megabytes.
#[derive(Clone, Debug)]
pub struct Writes {
    /// The journal entry: what makes the new sets the current ones.
    pub commit: Plan,
    /// The buckets of the new chain, head first; nothing is in them.
    pub chain: Vec<BucketIndex>,
    /// Number of the new chain's write.
    pub prio_seq: u64,
    /// Sequence number of the journal entry.
    pub journal_seq: u64,
    /// The journal entry.
    pub entry: Jset,
    /// Where the journal entry goes.
    pub place: JournalPlace,
    /// The new chain's buckets once more.
    reserved: BucketBits,
}

impl Writes {
    /// The new prio sets, and their flush.
    pub(super) fn sets<'a>(
        &'a self,
        set: &'a CacheSet<'_>,
        targets: &'a BucketBits,
    ) -> impl Iterator<Item = Step> + 'a {
        prio_chain(set, &self.chain, self.prio_seq, |number, bucket| {
            let (prio, bucket_gen) = (bucket.prio(), bucket.bucket_gen());
            if targets.contains(number) {
                BucketDisk { prio: Prio::INITIAL, bucket_gen: bucket_gen.next() }
            } else if self.reserved.contains(number) {
                // As the kernel has a bucket of its own chain. Its gen stays: nothing points to it.
                BucketDisk { prio: Prio::BTREE, bucket_gen }
            } else {
                BucketDisk { prio, bucket_gen }
            }
        })
    }

    /// How many steps [`Self::sets`] gives.
    pub(super) fn sets_count(&self) -> usize {
        self.chain.len() + 1
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
    let commit = Plan { steps: vec![entry_write(set, &entry, &place), Step::Flush] };
    Ok(Writes { commit, chain, prio_seq, journal_seq: entry.seq(), entry, place, reserved })
}

fn choose_place(places: &AppendPlaces) -> Result<JournalPlace, InvalidateError> {
    match (places.after_newest, places.next_bucket) {
        (Some((place, _)), _) | (None, Ok(place)) => Ok(place),
        (None, Err(next)) => Err(InvalidateError::JournalFull { next }),
    }
}
