//! The journal's past: entries that replay no longer needs, and that nothing has overwritten yet.
//!
//! Every write of data is in the journal before it is in the btree, so that the past is a second copy of
//! what was inserted lately. Not in it are fills after cache misses, extents that writeback made clean,
//! and extents that the garbage collector moved.

use std::collections::BTreeMap;

use crate::cache_set::journal::{EntryHeader, JournalBucket};
use crate::cache_set::{CacheDevice, CacheSet, Journal};
use crate::device::AlignedBuf;
use crate::layout::bkey::Bkey;
use crate::layout::jset::Jset;

/// The newest entry and those before it, without a gap, the newest first.
fn history<'j>(
    cache: &'j CacheDevice<'_>,
    journal: &'j Journal,
) -> impl Iterator<Item = Jset> + 'j {
    let mut headers: BTreeMap<u64, Vec<EntryHeader>> = BTreeMap::new();
    for entry in journal.buckets.iter().flat_map(JournalBucket::sound) {
        headers.entry(entry.seq).or_default().push(*entry);
    }
    let newest = journal.newest().map_or(0, |entry| entry.jset.seq());
    (0..=newest).rev().map_while(move |seq| match headers.get(&seq).map(Vec::as_slice) {
        Some([header]) => load_from(cache, header),
        // A number that is there twice is of two histories, and nobody knows which is this one's.
        _ => None,
    })
}

/// Keys of the newest entries, in the order of their insertion, each with its entry's number: of whole
/// entries, `count` or somewhat more.
pub(super) fn latest_keys(
    cache: &CacheDevice<'_>,
    journal: &Journal,
    count: usize,
) -> Vec<(u64, Bkey)> {
    let mut entries: Vec<Vec<(u64, Bkey)>> = Vec::new();
    let mut found = 0usize;
    let mut history = history(cache, journal).peekable();
    while let Some(entry) = history.next() {
        let keys: Vec<_> = entry.keys().map(|key| (entry.seq(), key)).collect();
        found = found.saturating_add(keys.len());
        // Metadata made by these tools: what entries before it tell is in the new btree, or left out of it.
        let is_made_anew = keys.is_empty()
            && entry.last_seq() == entry.seq()
            && history.peek().is_some_and(|older| older.btree_root() != entry.btree_root());
        entries.push(keys);
        if found >= count || is_made_anew {
            break;
        }
    }
    entries.into_iter().rev().flatten().collect()
}

/// The newest entry and those before it, without a gap, oldest first.
pub(crate) struct Past {
    entries: Vec<Jset>,
}

impl Past {
    pub(crate) fn read(set: &CacheSet<'_>) -> Self {
        let mut entries: Vec<Jset> = history(&set.cache, &set.journal).collect();
        entries.reverse();
        Self { entries }
    }

    /// Whether it holds every entry since the cache was made.
    pub(crate) fn is_complete(&self) -> bool {
        self.entries.first().is_some_and(|entry| entry.seq() == 1)
    }

    /// The entry with this number.
    fn get(&self, seq: u64) -> Option<&Jset> {
        let first = self.entries.first()?.seq();
        self.entries.get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    /// Keys of the entries from `first` on, in the order of their insertion.
    pub(crate) fn keys_from(&self, first: u64) -> impl Iterator<Item = (u64, Bkey)> + '_ {
        let from = self.entries.partition_point(|entry| entry.seq() < first);
        let entries = self.entries.get(from..).unwrap_or_default();
        entries.iter().flat_map(|entry| entry.keys().map(|key| (entry.seq(), key)))
    }

    /// The first entry from which on replaying the past brings back all that was inserted after the keys
    /// for which `is_before` holds; `None` where it does not reach back that far.
    ///
    /// Let m be the newest entry that has such a key. What was inserted later was pinned by its entry until
    /// the node's next set was written. Entry m - 1 was closed, with its `last_seq`, before m took its
    /// first key. So nothing later is in an entry older than that `last_seq`.
    pub(crate) fn first_after(&self, is_before: impl Fn(&Bkey) -> bool) -> Option<u64> {
        let newest =
            self.entries.iter().rev().find(|entry| entry.keys().any(|key| is_before(&key)));
        match newest {
            None => self.is_complete().then_some(1),
            Some(entry) if entry.seq() == 1 => Some(1),
            Some(entry) => {
                let first = self.get(entry.seq().checked_sub(1)?)?.last_seq();
                self.get(first).is_some().then_some(first)
            }
        }
    }
}

/// All entries that can be read, also those that replay does not need, the newest first.
pub(crate) fn all_entries<'s>(set: &'s CacheSet<'_>) -> impl Iterator<Item = Jset> + 's {
    let mut headers: Vec<&EntryHeader> =
        set.journal.buckets.iter().flat_map(JournalBucket::sound).collect();
    headers.sort_by_key(|header| std::cmp::Reverse(header.seq));
    headers.into_iter().filter_map(|header| load(set, header))
}

fn load(set: &CacheSet<'_>, header: &EntryHeader) -> Option<Jset> {
    load_from(&set.cache, header)
}

/// The entry at its place.
pub(crate) fn load_from(cache: &CacheDevice<'_>, header: &EntryHeader) -> Option<Jset> {
    let len = usize::try_from(header.bytes).ok()?;
    let mut bytes = AlignedBuf::zeroed(len);
    cache.read_bucket(header.place.bucket, header.place.offset, &mut bytes).ok()?;
    let jset = Jset::parse(&bytes, cache.magic(), len).ok()?;
    (jset.seq() == header.seq).then_some(jset)
}
