//! Journal entries that say that replay begins after them.
//!
//! The kernel refuses such a set. Where replay really begins, the entry before tells: its own replay began
//! no later. To replay more than is needed does no harm, for keys that are in the btree already are laid over
//! it again in the same order.

use crate::cache_set::journal::{EntryHeader, JournalPlace, JournalProblem};
use crate::cache_set::past;
use crate::cache_set::{CacheDevice, Journal, Problem};
use crate::device::{AlignedBuf, ReadDevice};
use crate::layout::bkey::Bkey;
use crate::layout::jset::{JsetParams, encode};
use crate::ops::plan::{Step, WriteKind};
use crate::ops::repair::{Class, Code, Fix, Place};

/// What is to be changed of the entries that `problems` tell of.
pub(super) fn fixes(device: &dyn ReadDevice, problems: &[Problem]) -> Vec<Fix> {
    let wrong = problems.iter().filter_map(|problem| match problem {
        Problem::Journal(JournalProblem::LastSeqAfterSeq { seq, place, .. }) => {
            Some((*seq, *place))
        }
        _ => None,
    });
    let wrong: Vec<(u64, JournalPlace)> = wrong.collect();
    if wrong.is_empty() {
        return Vec::new();
    }
    let Ok(cache) = CacheDevice::open(device) else { return Vec::new() };
    let journal = Journal::read(&cache, &mut |_| {}, &mut |_| {});
    let headers: Vec<&EntryHeader> = journal.headers().collect();
    wrong.iter().filter_map(|(seq, place)| fix(&cache, &headers, *seq, *place)).collect()
}

fn fix(
    cache: &CacheDevice<'_>,
    headers: &[&EntryHeader],
    seq: u64,
    place: JournalPlace,
) -> Option<Fix> {
    let header = headers.iter().find(|header| header.place == place)?;
    let before = headers.iter().filter(|it| it.seq < seq && it.last_seq <= it.seq);
    let last_seq = before.max_by_key(|it| it.seq)?.last_seq;
    let old = past::load_from(cache, header)?;
    let keys: Vec<Bkey> = old.keys().collect();
    let new = encode(&JsetParams { seq, last_seq, ..JsetParams::of(&old, &keys) }, cache.magic())?;
    // The header alone differs, and lies within a block.
    let mut data = AlignedBuf::zeroed(usize::try_from(cache.geometry().block_bytes()).ok()?);
    cache.read_bucket(place.bucket, place.offset, &mut data).ok()?;
    let len = data.len().min(new.as_bytes().len());
    let is_same = old.as_bytes().get(len..) == new.as_bytes().get(len..);
    data.get_mut(..len)?.copy_from_slice(new.as_bytes().get(..len)?);
    let offset =
        cache.geometry().bucket_to_sector(place.bucket).bytes().checked_add(place.offset)?;
    let step = Step::Write { kind: WriteKind::JournalEntry { seq }, offset, data };
    let place = Place::JournalEntry { bucket: place.bucket, seq };
    is_same.then_some(Fix::new(Code::LastSeq, Class::Likely, place, offset, step))
}
