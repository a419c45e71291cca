//! An entry for a journal in which the kernel finds none.
//!
//! Where sound ones stand behind damage, it goes on from the newest of them. Else it names the newest prio
//! chain that a search finds, and neither a root nor a uuid table. The kernel refuses a set with such an
//! entry as it refuses one without any. What is missing is then made again like any other.

use std::collections::BTreeMap;

use crate::cache_set::past;
use crate::cache_set::{CacheDevice, Journal, Progress};
use crate::device::{AlignedBuf, ReadDevice};
use crate::layout::bkey::Bkey;
use crate::layout::jset::{JsetParams, encode};
use crate::layout::prio_set::PrioSet;
use crate::ops::plan::{Step, WriteKind};
use crate::ops::repair::scan::scan;
use crate::ops::repair::{Class, Code, Fix, Place};
use crate::units::BucketIndex;

/// The entry for the set on `device`, at the start of its journal.
pub(super) fn entry(device: &dyn ReadDevice, progress: &mut dyn FnMut(Progress)) -> Option<Fix> {
    let cache = CacheDevice::open(device).ok()?;
    let sb = cache.superblock();
    if !sb.sync() {
        return None;
    }
    let journal = Journal::read(&cache, &mut |_| {}, &mut |_| {});
    let bucket = *cache.journal_buckets().first()?;
    let behind = journal.buckets.iter().flat_map(|bucket| &bucket.behind).max_by_key(|it| it.seq);
    let seq = behind.map_or(0, |entry| entry.seq).checked_add(1)?;
    let params = if let Some(header) = behind {
        // The kernel went on from no other, for it finds none.
        JsetParams { seq, ..JsetParams::of(&past::load_from(&cache, header)?, &[]) }
    } else {
        let mut prio_bucket = [0; 8];
        *prio_bucket.get_mut(usize::from(sb.nr_this_dev()))? =
            newest_chain(&cache, progress).map_or(0, |it| it.0);
        JsetParams {
            seq,
            last_seq: seq,
            uuid_bucket: Bkey::default(),
            btree_root: Bkey::default(),
            btree_level: 0,
            prio_bucket,
            keys: &[],
        }
    };
    let jset = encode(&params, cache.magic())?;
    let block_bytes = usize::try_from(cache.geometry().block_bytes()).ok()?.max(1);
    let len = jset.as_bytes().len().next_multiple_of(block_bytes);
    let offset = cache.geometry().bucket_to_sector(bucket).bytes();
    let class = if behind.is_some() { Class::Likely } else { Class::Guess };
    let kind = WriteKind::JournalEntry { seq };
    let step = Step::Write { kind, offset, data: AlignedBuf::padded(jset.as_bytes(), len) };
    Some(Fix::new(Code::Journal, class, Place::JournalEntry { bucket, seq }, offset, step))
}

/// The head of the newest prio chain of which every set is sound.
fn newest_chain(
    cache: &CacheDevice<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Option<BucketIndex> {
    let geometry = cache.geometry();
    let len = usize::try_from(geometry.meta_bucket_bytes()).ok()?;
    let set_in = |bucket: BucketIndex, start: &[u8]| {
        PrioSet::salvage(start, cache.magic()).0?;
        let mut image = AlignedBuf::zeroed(len);
        cache.read_bucket(bucket, 0, &mut image).ok()?;
        let set = PrioSet::parse(&image, cache.magic()).ok()?;
        Some((set.seq(), BucketIndex(set.next_bucket())))
    };
    // By number of the write: sets, and those that follow them.
    let mut writes: BTreeMap<u64, BTreeMap<BucketIndex, BucketIndex>> = BTreeMap::new();
    for (bucket, (seq, next)) in scan(cache, progress, &|_| true, &set_in) {
        writes.entry(seq).or_default().insert(bucket, next);
    }
    let needed = geometry.prio_buckets();
    writes.values().rev().find_map(|sets| {
        let follows = |bucket: &&BucketIndex| !sets.values().any(|next| next == *bucket);
        sets.keys().filter(follows).copied().find(|head| {
            let mut at = Some(*head);
            (0..needed).all(|_| {
                let next = at.and_then(|bucket| sets.get(&bucket).copied());
                at = next;
                next.is_some()
            })
        })
    })
}
