//! The kernel's search for the newest journal entry (`bch_journal_read`, docs/on-disk-format.md
//! §2.3).
//!
//! The kernel does not read the whole journal. It probes buckets in the order of the golden ratio
//! until one holds entries, bisects from there to the bucket where the newest entries end, and
//! walks back over the buckets before. This module runs that search over buckets that were all
//! read already, so that what it misses can be told.

use std::collections::VecDeque;

use crate::cache_set::journal_bucket::{EntryHeader, JournalBucket};

/// Multiplier of the golden-ratio probing.
const GOLDEN_RATIO_32: u32 = 2_654_435_769;

/// What the kernel ends up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The entries it keeps, by ascending sequence number.
    pub(crate) list: Vec<EntryHeader>,
    /// The journal bucket it goes on from (`cur_idx`).
    pub(crate) current: usize,
}

struct Search<'j> {
    buckets: &'j [JournalBucket],
    read: Vec<bool>,
    /// Greatest sequence number kept from each bucket (`ja->seq`).
    bucket_seq: Vec<u64>,
    list: VecDeque<EntryHeader>,
}

impl Search<'_> {
    fn is_read(&self, index: usize) -> bool {
        self.read.get(index).copied().unwrap_or(true)
    }

    /// Reads bucket `index`; whether it gave any entry.
    fn read_bucket(&mut self, index: usize) -> bool {
        if let Some(read) = self.read.get_mut(index) {
            *read = true;
        }
        let mut any = false;
        for entry in self.buckets.get(index).map(|bucket| &bucket.entries[..]).unwrap_or_default() {
            if self.insert(*entry) {
                any = true;
                if let Some(seq) = self.bucket_seq.get_mut(index) {
                    *seq = entry.seq.max(*seq);
                }
            }
        }
        any
    }

    /// Keeps `entry` in its place unless it is known or no longer needed.
    fn insert(&mut self, entry: EntryHeader) -> bool {
        while self.list.front().is_some_and(|head| head.seq < entry.last_seq) {
            self.list.pop_front();
        }
        for (position, kept) in self.list.iter().enumerate().rev() {
            if entry.seq == kept.seq || entry.seq < kept.last_seq {
                return false;
            }
            if entry.seq > kept.seq {
                self.list.insert(position + 1, entry);
                return true;
            }
        }
        self.list.push_front(entry);
        true
    }

    fn newest_seq(&self) -> u64 {
        self.list.back().map_or(0, |entry| entry.seq)
    }

    /// A bucket that holds entries, by golden-ratio probing and then in turn.
    fn probe(&mut self) -> Option<usize> {
        let count = self.buckets.len();
        for i in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            let index = usize::try_from(i.wrapping_mul(GOLDEN_RATIO_32)).unwrap_or(0) % count;
            if self.is_read(index) {
                break;
            }
            if self.read_bucket(index) {
                return Some(index);
            }
        }
        (0..count).find(|&index| !self.is_read(index) && self.read_bucket(index))
    }

    /// The last bucket of the newest entries' run, starting at one that holds entries.
    fn bisect(&mut self, from: usize) -> usize {
        let count = self.buckets.len();
        let mut left = from;
        let mut right = (from + 1..count).find(|&index| self.is_read(index)).unwrap_or(count);
        let mut middle = left;
        while left + 1 < right {
            let newest = self.newest_seq();
            middle = usize::midpoint(left, right);
            self.read_bucket(middle);
            if newest == self.newest_seq() {
                right = middle;
            } else {
                left = middle;
            }
        }
        middle
    }

    /// Reads backwards from `from` until a bucket gives nothing.
    fn walk_back(&mut self, from: usize) {
        let count = self.buckets.len();
        let mut index = from;
        loop {
            index = index.checked_sub(1).unwrap_or(count - 1);
            if index == from {
                return;
            }
            if !self.is_read(index) && !self.read_bucket(index) {
                return;
            }
        }
    }
}

/// Runs the search over all `buckets` of a journal.
pub(crate) fn search(buckets: &[JournalBucket]) -> Found {
    let mut search = Search {
        buckets,
        read: vec![false; buckets.len()],
        bucket_seq: vec![0; buckets.len()],
        list: VecDeque::new(),
    };
    if let Some(from) = search.probe() {
        let middle = search.bisect(from);
        search.walk_back(middle);
    }
    let mut current = (0, 0);
    for (index, &seq) in search.bucket_seq.iter().enumerate() {
        if seq > current.1 {
            current = (index, seq);
        }
    }
    Found { list: search.list.into(), current: current.0 }
}

/// What the search would have found had it not left a bucket at a damaged entry: all sound entries
/// that the newest of them needs. `None` where none that is newer than the newest of `kernel`, or that
/// this one needs, is hidden.
///
/// Nor is there an answer where the set went on from the older state: its new entries have the same
/// numbers as the hidden ones, and the two must not be mixed. Then the kernel's newest entry stands
/// *behind* the hidden ones in the journal's order. Without that, all buckets from the kernel's newest
/// to the hidden one hold entries, of rising numbers.
pub(crate) fn with_hidden(buckets: &[JournalBucket], kernel: &Found) -> Option<Found> {
    let newest = kernel.list.last()?;
    let all = || buckets.iter().flat_map(|bucket| bucket.entries.iter().chain(&bucket.behind));
    let hidden = all().max_by_key(|entry| entry.seq).filter(|entry| entry.seq >= newest.seq)?;
    let count = buckets.len();
    let mut before = newest.seq;
    let mut index = newest.place.index;
    while index != hidden.place.index {
        index = (index + 1) % count;
        let bucket = buckets.get(index)?;
        let greatest = bucket.entries.iter().chain(&bucket.behind).map(|entry| entry.seq).max()?;
        if greatest <= before {
            return None;
        }
        before = greatest;
    }
    let needed = hidden.last_seq..=hidden.seq;
    let mut list: Vec<EntryHeader> =
        all().filter(|entry| needed.contains(&entry.seq)).copied().collect();
    list.sort_by_key(|entry| entry.seq);
    if list.windows(2).any(|pair| matches!(pair, [a, b] if a.seq == b.seq)) {
        return None;
    }
    let seen = kernel.list.iter().filter(|entry| needed.contains(&entry.seq)).count();
    if hidden.seq == newest.seq && list.len() <= seen {
        return None;
    }
    Some(Found { list, current: hidden.place.index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache_set::journal_bucket::{JournalPlace, Stop};
    use crate::units::BucketIndex;
    use proptest::prelude::*;

    /// A journal as a kernel leaves it: `count` buckets, filled in turn from index 1 on (or 0),
    /// `per_bucket` entries in each, the newest `pinned` of them needed.
    fn journal(
        count: usize,
        start: usize,
        total: u64,
        per_bucket: u64,
        pinned: u64,
    ) -> Vec<JournalBucket> {
        let mut buckets: Vec<JournalBucket> = (0..count)
            .map(|index| JournalBucket {
                bucket: BucketIndex(index as u64 + 1),
                entries: Vec::new(),
                stop: Stop::Full,
                behind: Vec::new(),
                bad: Vec::new(),
            })
            .collect();
        for seq in 1..=total {
            let nth = (seq - 1) / per_bucket;
            let index = (start + usize::try_from(nth).unwrap()) % count;
            let slot = (seq - 1) % per_bucket;
            let place =
                JournalPlace { index, bucket: BucketIndex(index as u64 + 1), offset: slot * 512 };
            let last_seq = seq.saturating_sub(pinned - 1).max(1);
            let entry = EntryHeader { seq, last_seq, bytes: 240, place };
            let entries = &mut buckets[index].entries;
            // Entries of the cycle before stay behind the new ones until they are overwritten.
            match entries.get_mut(usize::try_from(slot).unwrap()) {
                Some(old) => *old = entry,
                None => entries.push(entry),
            }
        }
        buckets
    }

    proptest! {
        /// What kernels rely on: over journals that they write, the search finds all of the replay
        /// range.
        #[test]
        fn finds_the_replay_range_of_any_healthy_journal(
            count in 2usize..64,
            start in 0usize..2,
            total in 1u64..2000,
            per_bucket in 1u64..9,
            pinned_percent in 0u64..100,
        ) {
            // The kernel always leaves a bucket free between the newest and the oldest needed.
            let room = ((count as u64 - 1) * per_bucket).saturating_sub(per_bucket).max(1);
            let pinned = (room * pinned_percent / 100).max(1);
            let buckets = journal(count, start, total, per_bucket, pinned);
            let found = search(&buckets);
            let last_seq = total.saturating_sub(pinned - 1).max(1);
            let seqs: Vec<u64> = found.list.iter().map(|entry| entry.seq).collect();
            prop_assert_eq!(seqs, (last_seq..=total).collect::<Vec<_>>());
            let newest = (start + usize::try_from((total - 1) / per_bucket).unwrap()) % count;
            prop_assert_eq!(found.current, newest);
        }
    }

    #[test]
    fn an_empty_journal_gives_nothing() {
        let found = search(&journal(8, 1, 0, 1, 1));
        assert!(found.list.is_empty());
        assert!(search(&[]).list.is_empty());
    }

    /// Moves what follows the first `sound` entries of a bucket, one of them damaged, behind the
    /// damage.
    fn damage(bucket: &mut JournalBucket, sound: usize) {
        let mut behind = bucket.entries.split_off(sound);
        behind.remove(0);
        bucket.behind = behind;
    }

    #[test]
    fn entries_behind_a_damaged_one_are_found() {
        // 4 in a bucket: entries 21 to 24 in index 6 of 8, the newest is 24.
        let mut buckets = journal(8, 1, 24, 4, 6);
        let kernel = search(&buckets);
        assert_eq!(with_hidden(&buckets, &kernel), None, "nothing is hidden");
        damage(&mut buckets[6], 1);
        let kernel = search(&buckets);
        assert_eq!(kernel.list.last().unwrap().seq, 21);
        let found = with_hidden(&buckets, &kernel).unwrap();
        assert_eq!(found.current, 6);
        let seqs: Vec<u64> = found.list.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, [19, 20, 21, 23, 24]);
    }

    /// The first block of the bucket ahead of the newest sends the kernel far back.
    #[test]
    fn a_misled_search_is_set_right() {
        let mut buckets = journal(16, 1, 60, 4, 6);
        damage(&mut buckets[15], 0);
        let kernel = search(&buckets);
        assert!(kernel.list.last().unwrap().seq < 60);
        let found = with_hidden(&buckets, &kernel).unwrap();
        assert_eq!(found.list.last().unwrap().seq, 60);
    }

    /// The kernel went back to entry 21 and on to another 22 in the next bucket.
    #[test]
    fn a_state_that_was_left_behind_does_not_come_back() {
        for older_cycle in [false, true] {
            let total = if older_cycle { 24 + 32 } else { 24 };
            let mut buckets = journal(8, 1, total, 4, 6);
            damage(&mut buckets[6], 1);
            let place = JournalPlace { index: 7, bucket: BucketIndex(8), offset: 0 };
            let entry = EntryHeader { seq: total - 2, last_seq: total - 5, bytes: 240, place };
            buckets[7].entries = vec![entry];
            let kernel = search(&buckets);
            assert_eq!(kernel.list.last().unwrap().place.index, 7);
            assert_eq!(with_hidden(&buckets, &kernel), None);
        }
    }
}
