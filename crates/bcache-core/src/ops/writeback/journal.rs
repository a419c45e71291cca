//! Making dirty keys clean through the journal alone, where no bucket is left for new metadata.
//!
//! Entries that follow the newest say the same keys again without their dirty flag, and replay puts
//! them into the btree as it does a kernel's own. Nothing but journal blocks that hold no needed entry
//! is written, and every entry makes more of the data clean that is on the backing device already:
//! each prefix of them is a sound state. Until its first GC the kernel keeps the buckets' dirty marks.

use std::ops::ControlFlow;

use crate::cache_set::CacheSet;
use crate::cache_set::journal::{JournalEntry, JournalPlace};
use crate::layout::bkey::Bkey;
use crate::layout::jset::{JSET_BYTES_MAX, JSET_HEADER_BYTES, JSET_VERSION, JsetParams, encode};
use crate::ops::commit::{self, Rehearsal};
use crate::ops::plan::{Plan, Step};
use crate::ops::rebuild::{Extents, RebuildError};

/// Bytes of a key with one pointer.
const KEY_BYTES: usize = 24;

/// New journal entries.
#[derive(Clone, Debug)]
pub struct JournalPlan {
    /// Their writes, each with a flush.
    pub plan: Plan,
    /// Sequence number of the first.
    pub first_seq: u64,
    /// Sequence number of the last.
    pub last_seq: u64,
    /// Keys in them.
    pub keys: u64,
}

/// Plans entries with the keys of `source`; refused where the journal has no room for all of them.
pub(super) fn plan(set: &CacheSet<'_>, source: &dyn Extents) -> Result<JournalPlan, RebuildError> {
    let newest_entry = set.journal.newest().ok_or(RebuildError::NoSuccessor { seq: 0 })?;
    let newest = &newest_entry.jset;
    let none = || RebuildError::NoSuccessor { seq: newest.seq() };
    if newest.version() < JSET_VERSION {
        return Err(none());
    }
    let geometry = set.geometry();
    let places = set.journal.append_places(&set.cache).ok_or_else(none)?;
    let full = |next| RebuildError::JournalFull { next };
    let mut place = match (places.after_newest, places.next_bucket) {
        (Some((place, _)), _) | (None, Ok(place)) => place,
        (None, Err(next)) => return Err(full(next)),
    };
    // Journal buckets that may be opened: the next of the oldest needed one stays free for the
    // kernel's own entries.
    let mut rest_buckets = places.distance.saturating_sub(2);
    let room = |place: &JournalPlace| {
        let rest = geometry.bucket_bytes().saturating_sub(place.offset);
        let bytes = usize::try_from(rest).unwrap_or(usize::MAX).min(JSET_BYTES_MAX);
        bytes.saturating_sub(JSET_HEADER_BYTES) / KEY_BYTES
    };
    let mut keys: Vec<Bkey> = Vec::new();
    source.for_each(&mut |key| {
        keys.push(*key);
        ControlFlow::Continue(())
    })?;
    let mut rest = keys.as_slice();
    let (mut steps, mut seq) = (Vec::new(), newest.seq());
    let mut entries: Vec<JournalEntry> = set.journal.entries.clone();
    while !rest.is_empty() {
        if room(&place) == 0 {
            let next = places.next_bucket;
            rest_buckets = rest_buckets.checked_sub(1).ok_or_else(|| {
                let free = places.distance.saturating_sub(1);
                full(
                    next.err()
                        .unwrap_or(crate::cache_set::journal::NextBucketRefusal::TooClose { free }),
                )
            })?;
            let index = (place.index + 1) % set.journal.buckets.len().max(1);
            let bucket = set.journal.buckets.get(index).map(|it| it.bucket).ok_or_else(none)?;
            place = JournalPlace { index, bucket, offset: 0 };
        }
        let (these, after) = rest.split_at(room(&place).min(rest.len()));
        rest = after;
        seq = seq.checked_add(1).ok_or_else(none)?;
        let params = JsetParams { seq, ..JsetParams::of(newest, these) };
        let jset = encode(&params, set.cache.magic()).ok_or_else(none)?;
        let bytes = jset.as_bytes().len() as u64;
        steps.extend([commit::entry_write(set, &jset, &place), Step::Flush]);
        entries.push(JournalEntry { place, jset });
        place.offset += bytes.next_multiple_of(geometry.block_bytes().max(1));
    }
    if let Some((last, before)) = entries.split_last().filter(|_| !keys.is_empty()) {
        match commit::rehearse(set, steps.iter(), &last.jset, &last.place, before) {
            Rehearsal::AsPlanned => {}
            Rehearsal::Otherwise { found } => {
                return Err(RebuildError::JournalHidesEntries { planned: seq, found });
            }
            Rehearsal::Unreadable(problem) => return Err(RebuildError::Journal(problem)),
            Rehearsal::NoCache(error) => return Err(RebuildError::NoCache(error)),
        }
    }
    Ok(JournalPlan {
        plan: Plan { steps },
        first_seq: newest.seq() + 1,
        last_seq: seq,
        keys: keys.len() as u64,
    })
}
