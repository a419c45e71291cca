//! What makes new metadata current: a new prio chain, and the journal entry that names it.
//!
//! Invalidating buckets and rebuilding the btree both end like this. The new state is written to
//! buckets that nothing points to; until the entry is durable, the device holds the old state.

use crate::cache_set::journal::{Journal, JournalEntry, JournalPlace, JournalProblem};
use crate::cache_set::{Bucket, CacheDevice, CacheSet, GcMark, OpenError};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::layout::jset::Jset;
use crate::layout::prio_set::{BucketDisk, encode_into};
use crate::ops::plan::{Step, WriteKind};
use crate::ops::planned::PlannedDevice;
use crate::units::BucketIndex;

/// Buckets that nothing valid points to, ascending: no key, no node of the btree, no metadata.
pub(super) fn unused_buckets<'s>(
    set: &'s CacheSet<'_>,
) -> impl Iterator<Item = (BucketIndex, &'s Bucket)> {
    (0u64..).map(BucketIndex).zip(set.table.as_slice()).filter(|(number, bucket)| {
        bucket.mark() == GcMark::Unused
            && set.geometry().contains(*number)
            && !bucket.pinned()
            && !set.table.is_node(*number)
    })
}

/// The writes of a prio chain in the buckets `chain`, head first, and the flush after them. Each set is
/// made when its turn comes.
///
/// `entry` gives prio and gen of each bucket. The last set is written first, as the kernel does;
/// nothing depends on that.
pub(super) fn prio_chain<'a>(
    set: &'a CacheSet<'_>,
    chain: &'a [BucketIndex],
    prio_seq: u64,
    entry: impl Fn(BucketIndex, &Bucket) -> BucketDisk + 'a,
) -> impl Iterator<Item = Step> + 'a {
    let geometry = set.geometry();
    let image_bytes = usize::try_from(geometry.meta_bucket_bytes()).unwrap_or(0);
    let per_set = usize::try_from(geometry.prios_per_bucket()).unwrap_or(usize::MAX);
    let parts = chain.iter().zip(set.table.as_slice().chunks(per_set)).enumerate();
    let writes = parts.rev().map(move |(index, (&bucket, buckets))| {
        // The last set's is no terminator: kernels leave the head of the chain before in it.
        let old_head = set.prios.buckets.first().copied().unwrap_or_default();
        let next = chain.get(index + 1).copied().unwrap_or(old_head);
        let index = index as u64;
        let first = index.saturating_mul(geometry.prios_per_bucket());
        let entries =
            (first..).map(BucketIndex).zip(buckets).map(|(number, bucket)| entry(number, bucket));
        let mut data = AlignedBuf::zeroed(image_bytes);
        encode_into(&mut data, set.cache.magic(), prio_seq, next.0, entries);
        let offset = geometry.bucket_to_sector(bucket).bytes();
        Step::Write { kind: WriteKind::PrioSet { index, bucket }, offset, data }
    });
    writes.chain(std::iter::once(Step::Flush))
}

/// The write of a journal entry, in whole blocks.
pub(super) fn entry_write(set: &CacheSet<'_>, entry: &Jset, place: &JournalPlace) -> Step {
    let geometry = set.geometry();
    let block_bytes = usize::try_from(geometry.block_bytes()).unwrap_or(1).max(1);
    let len = entry.as_bytes().len().next_multiple_of(block_bytes);
    let data = AlignedBuf::padded(entry.as_bytes(), len);
    let offset = geometry.bucket_to_sector(place.bucket).bytes().saturating_add(place.offset);
    Step::Write { kind: WriteKind::JournalEntry { seq: entry.seq() }, offset, data }
}

/// How the kernel's search of the journal would end once the planned writes are done.
pub(super) enum Rehearsal {
    /// With the new entry as the newest, and the entries before it that are to stay.
    AsPlanned,
    /// Otherwise: with this entry as the newest; 0 for none.
    Otherwise {
        /// Its sequence number.
        found: u64,
    },
    /// The journal cannot be read.
    Unreadable(JournalProblem),
    /// The superblock cannot be read.
    NoCache(OpenError),
}

/// Looks at the journal as it will be once `steps` are carried out, before the first byte is written.
///
/// The kernel's walk of a journal bucket ends at the first thing that is no entry, and what is sound
/// behind it is not seen (docs/on-disk-format.md §2.3). A new entry that takes the place of a damaged
/// one lets the walk go on into what stands behind: entries that were newer than the damaged one, and
/// name roots and prio chains in buckets that have been taken for unused since. So the same search
/// that found the journal runs over the device with the planned writes laid in, and must find the
/// entries of `kept` and the new one as the newest. It costs one reading of the journal.
pub(super) fn rehearse<'s>(
    set: &CacheSet<'s>,
    steps: impl Iterator<Item = &'s Step>,
    entry: &Jset,
    place: &JournalPlace,
    kept: &[JournalEntry],
) -> Rehearsal {
    let device = PlannedDevice::new(set.cache.device(), steps);
    let cache = match CacheDevice::open(&device) {
        Ok(cache) => cache,
        Err(error) => return Rehearsal::NoCache(error),
    };
    let mut unreadable = None;
    let after = Journal::read(&cache, &mut |_| {}, &mut |problem| {
        if matches!(problem, JournalProblem::Unreadable { .. }) {
            unreadable.get_or_insert(problem);
        }
    });
    if let Some(problem) = unreadable {
        return Rehearsal::Unreadable(problem);
    }
    let as_planned = after.entries.split_last().is_some_and(|(newest, before)| {
        newest.jset.as_bytes() == entry.as_bytes()
            && newest.place == *place
            && before.len() == kept.len()
            && before.iter().zip(kept).all(|(now, then)| same(now, then))
    });
    if as_planned {
        Rehearsal::AsPlanned
    } else {
        Rehearsal::Otherwise { found: after.newest().map_or(0, |entry| entry.jset.seq()) }
    }
}

fn same(one: &JournalEntry, other: &JournalEntry) -> bool {
    one.place == other.place && one.jset.as_bytes() == other.jset.as_bytes()
}

/// Whether `device` still is what `set` was read from: a kernel that registered it in between has
/// written the superblock, another tool the journal.
pub(super) fn is_unchanged(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
) -> Result<bool, DeviceError> {
    let cache = match CacheDevice::open(device) {
        Ok(cache) => cache,
        Err(OpenError::Device(error)) => return Err(error),
        Err(_) => return Ok(false),
    };
    let journal = Journal::read(&cache, &mut |_| {}, &mut |_| {});
    let newest = |journal: &Journal| journal.newest().map(|entry| entry.jset.as_bytes().to_vec());
    let same_size = device.info().size_bytes == set.cache.device().info().size_bytes;
    Ok(same_size
        && cache.superblock().as_bytes() == set.cache.superblock().as_bytes()
        && newest(&journal) == newest(&set.journal)
        // What was looked at beforehand is all of the journal.
        && journal.buckets == set.journal.buckets)
}
