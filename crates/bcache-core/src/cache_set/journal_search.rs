//! The kernel's search for the newest journal entry (`bch_journal_read`, FORMAT.md §2.3).
//!
//! The kernel does not read the whole journal. It probes buckets in the order of the golden ratio
//! until one holds entries, bisects from there to the bucket where the newest entries end, and
//! walks back over the buckets before. This module runs that search over buckets that were all
//! read already, so that what it misses can be told.

use std::collections::VecDeque;

use crate::cache_set::journal::{EntryHeader, JournalBucket};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache_set::journal::{JournalPlace, Stop};
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
}
