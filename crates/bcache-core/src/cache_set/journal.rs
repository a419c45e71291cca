//! The journal: which entries there are, which the kernel finds, and what it would replay
//! (docs/on-disk-format.md §2.3 to §2.7).
//!
//! Every journal bucket is read, and then the kernel's own search, which reads only some of them,
//! is run over what was found. What the kernel would take is what [`Journal`] says; where a full
//! reading finds a newer entry than the kernel's search does, that is a [`JournalProblem`]. So are
//! newer entries behind one that is damaged, at which the kernel leaves a bucket.
//!
//! Memory: a few words for each entry on the device, and the bytes of the entries that the kernel
//! keeps (`last_seq` to the newest), at most the size of the journal.

use std::collections::HashSet;

use crate::cache_set::journal_search::{self, Found};
use crate::cache_set::{CacheDevice, NewestEntry};
use crate::device::{AlignedBuf, DeviceError};
use crate::layout::bkey::{Bkey, KeyIter};
use crate::layout::jset::{
    JSET_BYTES_MAX, JSET_HEADER_BYTES, Jset, JsetError, salvage_keys, seq_hint,
};
use crate::units::{BucketIndex, Geometry, Sectors};

pub use crate::cache_set::journal_bucket::{
    BadEntry, EntryHeader, JournalBucket, JournalPlace, Stop,
};

/// Bytes of a journal bucket that are read at once: whole entries fit.
const CHUNK_BYTES: usize = 1 << 20;

/// Buckets that must stay between the bucket of a foreign entry and the oldest bucket that replay
/// needs, or the kernel may find no journal space for its own (docs/on-disk-format.md §8.4 step 4).
const FREE_BUCKETS_MIN: u64 = 2;

/// How far past the newest entry the number of a damaged one is believed.
const AHEAD_MAX: u64 = 256;

/// An entry that the kernel keeps.
#[derive(Clone, Debug)]
pub struct JournalEntry {
    /// Where it stands.
    pub place: JournalPlace,
    /// Its contents.
    pub jset: Jset,
}

/// Sequence numbers that are not there although replay needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First missing.
    pub first: u64,
    /// Last missing.
    pub last: u64,
}

/// What is wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalProblem {
    /// A journal bucket could not be read.
    #[error("journal bucket {bucket} cannot be read from byte {offset} on")]
    Unreadable {
        /// The bucket.
        bucket: BucketIndex,
        /// Bytes from its start.
        offset: u64,
        /// The device's error.
        source: DeviceError,
    },
    /// Something that has the magic of an entry and is none: a torn write, or damage.
    #[error("journal bucket {} at byte {}: {error}", place.bucket, place.offset)]
    Torn {
        /// Where.
        place: JournalPlace,
        /// Why it is none.
        error: JsetError,
        /// Whether its sequence number follows the newest entry's: a write cut short by a power
        /// failure looks like that, and no more was ever promised.
        follows_newest: bool,
        /// Whether it may have held dirty keys. If it was not torn but damaged later, they are lost.
        may_be_dirty: bool,
    },
    /// Entries newer than the newest that the kernel finds stand behind one that is damaged.
    #[error(
        "journal bucket {} at byte {}: {error}; {count} sound entries up to {last} behind it are \
         newer than {newest}, the last that the kernel finds",
        place.bucket, place.offset
    )]
    Hidden {
        /// Where the damaged entry is.
        place: JournalPlace,
        /// Why it is none.
        error: JsetError,
        /// The newest entry that the kernel finds.
        newest: u64,
        /// How many entries it does not find in this bucket.
        count: usize,
        /// The newest of them.
        last: u64,
    },
    /// Entries newer than the newest were whole once: behind what is left of them, another was begun.
    #[error(
        "journal bucket {} at byte {}: what is left of entry {seq}; entry {} was complete before it, and \
         is damaged or gone",
        place.bucket, place.offset, gap.first
    )]
    NewestLost {
        /// Where what shows it is.
        place: JournalPlace,
        /// The sequence number that it has.
        seq: u64,
        /// The entries that are lost.
        gap: Gap,
    },
    /// An entry that replay needs is missing.
    #[error("journal entries {}-{} missing! (replaying {start}-{end})", gap.first, gap.last)]
    Gap {
        /// What is missing.
        gap: Gap,
        /// First entry of the replay range.
        start: u64,
        /// Last entry of the replay range.
        end: u64,
    },
    /// The kernel's search of the journal ends at an older entry than there is.
    #[error("the kernel finds entry {found} as the newest, the journal holds {newest}")]
    SearchMisses {
        /// What it finds.
        found: u64,
        /// What there is.
        newest: u64,
    },
    /// An entry that was there at the first reading is gone at the second.
    #[error("journal entry {seq} changed while it was read: the device is in use")]
    Changed {
        /// Its sequence number.
        seq: u64,
    },
    /// A key in an entry reaches past its end.
    #[error("journal entry {seq}: the last key reaches past the end of the entry")]
    KeysTruncated {
        /// Its sequence number.
        seq: u64,
        /// Where the entry stands.
        place: JournalPlace,
    },
    /// `last_seq` lies after the entry itself.
    #[error("journal entry {seq} needs entries from {last_seq} on")]
    LastSeqAfterSeq {
        /// Its sequence number.
        seq: u64,
        /// What it claims.
        last_seq: u64,
        /// Where the entry stands.
        place: JournalPlace,
    },
    /// There are no entries at all: the kernel says "no journal entries found".
    #[error("no journal entries found")]
    Empty,
}

/// Where a new entry can go so that the kernel finds it (docs/on-disk-format.md §2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendPlaces {
    /// Behind the newest entry in its bucket, and the bytes left there.
    pub after_newest: Option<(JournalPlace, u64)>,
    /// At the start of the next journal bucket.
    pub next_bucket: Result<JournalPlace, NextBucketRefusal>,
    /// Journal buckets from the newest entry's to the oldest that replay needs, going forward:
    /// the number of journal buckets where only the newest entry's is needed.
    pub distance: u64,
}

/// Why the next journal bucket is not for a new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NextBucketRefusal {
    /// It holds entries that replay needs.
    #[error("journal bucket {bucket} holds entries that replay needs")]
    Needed {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// Too few buckets would be left for the kernel's own entries during replay.
    #[error("only {free} journal buckets would be left for replay")]
    TooClose {
        /// Buckets left.
        free: u64,
    },
}

/// The journal of a cache device.
#[derive(Clone, Debug)]
pub struct Journal {
    /// All buckets, in the journal's order.
    pub buckets: Vec<JournalBucket>,
    /// The entries that the kernel keeps, by ascending sequence number; the last is the newest.
    pub entries: Vec<JournalEntry>,
    /// Position in [`Self::buckets`] of the bucket that the kernel goes on from (`cur_idx`).
    pub current: usize,
    /// Missing entries of the replay range. One at its start is no [`JournalProblem`] where the set
    /// discards.
    pub gaps: Vec<Gap>,
}

impl Journal {
    /// Reads the whole journal.
    ///
    /// Problems go to `problem` and do not stop it; a journal without entries is returned as such.
    /// `progress` is told of bytes read.
    pub fn read(
        cache: &CacheDevice<'_>,
        progress: &mut dyn FnMut(u64),
        problem: &mut dyn FnMut(JournalProblem),
    ) -> Self {
        Self::read_newest(cache, NewestEntry::AsKernel, progress, problem)
    }

    /// The same, with a choice of which entry counts as the newest.
    pub(crate) fn read_newest(
        cache: &CacheDevice<'_>,
        newest: NewestEntry,
        progress: &mut dyn FnMut(u64),
        problem: &mut dyn FnMut(JournalProblem),
    ) -> Self {
        let mut scratch = AlignedBuf::zeroed(
            usize::try_from(cache.geometry().bucket_bytes())
                .unwrap_or(CHUNK_BYTES)
                .clamp(JSET_BYTES_MAX, CHUNK_BYTES),
        );
        let buckets: Vec<_> = cache
            .journal_buckets()
            .into_iter()
            .enumerate()
            .map(|(index, bucket)| {
                let read = read_bucket(cache, index, bucket, &mut scratch, problem);
                progress(cache.geometry().bucket_bytes());
                read
            })
            .collect();
        let mut found = journal_search::search(&buckets);
        if newest == NewestEntry::Greatest {
            found = journal_search::with_hidden(&buckets, &found).unwrap_or(found);
        }
        let Found { list, current } = found;
        let mut entries = Vec::with_capacity(list.len());
        for header in list {
            match load(cache, &header) {
                Ok(Some(jset)) => entries.push(JournalEntry { place: header.place, jset }),
                Ok(None) => problem(JournalProblem::Changed { seq: header.seq }),
                Err(source) => problem(JournalProblem::Unreadable {
                    bucket: header.place.bucket,
                    offset: header.place.offset,
                    source,
                }),
            }
        }
        let gaps = gaps(&entries);
        let journal = Self { buckets, entries, current, gaps };
        journal.report(cache.superblock().discard(), problem);
        journal
    }

    fn report(&self, discard: bool, problem: &mut dyn FnMut(JournalProblem)) {
        let newest_seq = self.newest().map(|entry| entry.jset.seq());
        let seqs: HashSet<u64> = self.headers().map(|header| header.seq).collect();
        for (index, bucket) in self.buckets.iter().enumerate() {
            let Stop::NoEntry { offset, error, seq_hint, may_be_dirty } = bucket.stop else {
                continue;
            };
            let place = JournalPlace { index, bucket: bucket.bucket, offset };
            // The kernel writes one entry after the other, and goes on in the next bucket after a
            // registration: a write that was cut short has nothing newer behind it. What is left of
            // older cycles has smaller numbers.
            if let Some(newest) = newest_seq {
                let hidden = || bucket.behind.iter().map(|it| it.seq).filter(|&seq| seq > newest);
                if let Some(last) = hidden().max() {
                    let count = hidden().count();
                    problem(JournalProblem::Hidden { place, error, newest, count, last });
                    continue;
                }
            }
            if self.would_matter(bucket, &error, seq_hint, &seqs) {
                let next = newest_seq.and_then(|newest| newest.checked_add(1));
                let follows_newest = next.is_some() && next == seq_hint;
                problem(JournalProblem::Torn { place, error, follows_newest, may_be_dirty });
            }
        }
        let Some(newest) = self.newest() else {
            problem(JournalProblem::Empty);
            return;
        };
        if let Some((bad, gap)) = self.newest_lost() {
            problem(JournalProblem::NewestLost { place: bad.place, seq: bad.seq, gap });
        }
        let greatest = self.headers().map(|header| header.seq).max().unwrap_or(0);
        if greatest > newest.jset.seq() {
            problem(JournalProblem::SearchMisses { found: newest.jset.seq(), newest: greatest });
        }
        let (start, end) = (newest.jset.last_seq(), newest.jset.seq());
        for &gap in &self.gaps {
            // A set that discards also discards journal buckets that nothing needs any more, before
            // an entry says so: what is gone there is in the btree. Kernels before 6.19 go on from
            // such a gap (docs/on-disk-format.md §2.4), and write it themselves.
            if discard && gap.first == start {
                continue;
            }
            problem(JournalProblem::Gap { gap, start, end });
        }
        for JournalEntry { place, jset } in &self.entries {
            let (place, seq) = (*place, jset.seq());
            if jset.last_seq() > seq {
                let last_seq = jset.last_seq();
                problem(JournalProblem::LastSeqAfterSeq { seq, last_seq, place });
            }
            let mut keys = jset.keys();
            keys.by_ref().for_each(drop);
            if keys.truncated() {
                problem(JournalProblem::KeysTruncated { seq, place });
            }
        }
    }

    /// Whether what ends `bucket` could have been an entry that is missed now: not one of an older
    /// cycle, nor one that was written again elsewhere.
    fn would_matter(
        &self,
        bucket: &JournalBucket,
        error: &JsetError,
        seq_hint: Option<u64>,
        seqs: &HashSet<u64>,
    ) -> bool {
        let Some(newest) = self.newest() else {
            return !matches!(error, JsetError::BadMagic { .. } | JsetError::TooShort { .. });
        };
        let (seq, last_seq) = (newest.jset.seq(), newest.jset.last_seq());
        let expected = bucket.entries.last().and_then(|last| last.seq.checked_add(1));
        let missed = |candidate: u64| candidate >= last_seq && !seqs.contains(&candidate);
        match error {
            JsetError::TooShort { .. } => false,
            // Nearly always the end of what was written, or the middle of an older entry.
            JsetError::BadMagic { .. } => seq_hint.is_some_and(|hint| {
                missed(hint)
                    && (Some(hint) == expected
                        || expected.is_none() && hint <= seq.saturating_add(1))
            }),
            JsetError::TooLong { .. } | JsetError::BadChecksum { .. } => {
                seq_hint.is_some_and(missed) || expected.is_some_and(missed)
            }
        }
    }

    /// Every entry on the device, bucket by bucket.
    pub fn headers(&self) -> impl Iterator<Item = &EntryHeader> {
        self.buckets.iter().flat_map(|bucket| &bucket.entries)
    }

    /// The newest entry, whose root, uuid table and prio chain are the set's.
    pub fn newest(&self) -> Option<&JournalEntry> {
        self.entries.last()
    }

    /// First and last sequence number that the kernel would replay.
    pub fn replay_range(&self) -> Option<(u64, u64)> {
        self.newest().map(|newest| (newest.jset.last_seq(), newest.jset.seq()))
    }

    /// Every entry on the device, and those where the kernel does not look.
    pub(crate) fn all_headers(&self) -> impl Iterator<Item = &EntryHeader> {
        self.buckets.iter().flat_map(|bucket| bucket.entries.iter().chain(&bucket.behind))
    }

    /// The greatest sequence number that any entry has, or may have had: that of a damaged one counts
    /// where it can be true.
    pub(crate) fn greatest_seq(&self) -> u64 {
        let sound = self.all_headers().map(|header| header.seq).max().unwrap_or(0);
        let bad = self.buckets.iter().flat_map(|bucket| &bucket.bad).map(|bad| bad.seq);
        bad.filter(|&seq| seq <= sound.saturating_add(AHEAD_MAX)).max().unwrap_or(0).max(sound)
    }

    /// Entries newer than the newest that were whole once, and the bad entry that shows it.
    ///
    /// The kernel writes one entry at a time, each with a flush. So of entries that are bad at the end of
    /// the journal only the last can have been cut short. Besides, a write is not cut within a
    /// sector: next to the right magic stands the right number, or the entry was damaged later. With a sound
    /// entry behind it, its number is wrong, whatever it says.
    pub(crate) fn newest_lost(&self) -> Option<(&BadEntry, Gap)> {
        let first = self.all_headers().map(|header| header.seq).max()?.checked_add(1)?;
        let is_near = |seq: u64| seq - first < AHEAD_MAX;
        let newest = self.newest()?.jset.seq();
        let is_last = |bucket: &JournalBucket, bad: &BadEntry| {
            let mut behind = bucket.behind.iter();
            !behind.any(|it| it.seq >= newest && it.place.offset > bad.place.offset)
        };
        let bad = self
            .buckets
            .iter()
            .flat_map(|bucket| bucket.bad.iter().filter(move |bad| is_last(bucket, bad)));
        let bad = bad.filter(|bad| bad.seq > first && (bad.has_magic || is_near(bad.seq)));
        let bad = bad.max_by_key(|bad| (is_near(bad.seq), bad.seq))?;
        let last = if is_near(bad.seq) { bad.seq } else { first };
        Some((bad, Gap { first, last }))
    }

    /// Keys that replay inserts, oldest entry first, each with its entry's sequence number.
    pub fn replay_keys(&self) -> impl Iterator<Item = (u64, Bkey)> + '_ {
        self.entries.iter().flat_map(|entry| {
            let keys: KeyIter<'_> = entry.jset.keys();
            keys.map(move |key| (entry.jset.seq(), key))
        })
    }

    /// Where the next entry can go; `None` for a journal without entries.
    pub fn append_places(&self, cache: &CacheDevice<'_>) -> Option<AppendPlaces> {
        let newest = self.newest()?;
        let geometry = cache.geometry();
        let end = (newest.jset.as_bytes().len() as u64)
            .checked_next_multiple_of(geometry.block_bytes())
            .and_then(|bytes| bytes.checked_add(newest.place.offset))?;
        let left = geometry.bucket_bytes().saturating_sub(end);
        let after_newest = (left >= geometry.block_bytes())
            .then_some((JournalPlace { offset: end, ..newest.place }, left));
        let last_seq = newest.jset.last_seq();
        let count = self.buckets.len();
        let needed = |step: usize| {
            let index = (self.current + step) % count;
            self.buckets
                .get(index)
                .is_some_and(|bucket| bucket.entries.iter().any(|entry| entry.seq >= last_seq))
        };
        let distance = (1..count).find(|&step| needed(step)).unwrap_or(count) as u64;
        let index = (self.current + 1) % count.max(1);
        let bucket = self.buckets.get(index)?.bucket;
        let next_bucket = if distance <= 1 {
            Err(NextBucketRefusal::Needed { bucket })
        } else if distance - 1 < FREE_BUCKETS_MIN {
            Err(NextBucketRefusal::TooClose { free: distance - 1 })
        } else {
            Ok(JournalPlace { index, bucket, offset: 0 })
        };
        Some(AppendPlaces { after_newest, next_bucket, distance })
    }

    /// Size of the whole journal.
    pub fn size(&self, cache: &CacheDevice<'_>) -> Sectors {
        Sectors(cache.geometry().bucket_size().0.saturating_mul(self.buckets.len() as u64))
    }
}

/// Walks the entries of one bucket with the kernel's stop rules (`journal_read_bucket`), and then
/// looks block by block for sound entries behind the first that is none.
fn read_bucket(
    cache: &CacheDevice<'_>,
    index: usize,
    bucket: BucketIndex,
    scratch: &mut AlignedBuf,
    problem: &mut dyn FnMut(JournalProblem),
) -> JournalBucket {
    let bucket_bytes = cache.geometry().bucket_bytes();
    let block_bytes = cache.geometry().block_bytes().max(1);
    let (mut entries, mut behind, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    let mut first_bad = None;
    // What of the bucket is in `scratch`.
    let (mut start, mut held) = (0u64, 0usize);
    let mut offset = 0u64;
    let stop = loop {
        if offset >= bucket_bytes {
            break first_bad.unwrap_or(Stop::Full);
        }
        let rest = usize::try_from(bucket_bytes - offset).unwrap_or(usize::MAX);
        let within = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let wanted = rest.min(JSET_BYTES_MAX);
        if held.saturating_sub(within) < wanted {
            let len = rest.min(scratch.len());
            let Some(buf) = scratch.get_mut(..len) else { break Stop::Full };
            if let Err(source) = cache.read_bucket(bucket, offset, buf) {
                problem(JournalProblem::Unreadable { bucket, offset, source });
                break first_bad.unwrap_or(Stop::Unreadable { offset });
            }
            (start, held) = (offset, len);
        }
        let within = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let bytes = scratch.get(within..held).unwrap_or_default();
        let place = JournalPlace { index, bucket, offset };
        match Jset::parse(bytes, cache.magic(), rest) {
            Ok(jset) => {
                let length = jset.as_bytes().len() as u64;
                let (seq, last_seq) = (jset.seq(), jset.last_seq());
                let found = if first_bad.is_none() { &mut entries } else { &mut behind };
                found.push(EntryHeader { seq, last_seq, bytes: length, place });
                offset = offset.saturating_add(length.next_multiple_of(block_bytes).max(1));
            }
            Err(error) => {
                let seq_hint = hint(bytes, rest, &error);
                let has_magic = !matches!(error, JsetError::BadMagic { .. });
                bad.extend(seq_hint.map(|seq| BadEntry { seq, has_magic, place }));
                first_bad.get_or_insert_with(|| Stop::NoEntry {
                    offset,
                    error,
                    seq_hint,
                    may_be_dirty: may_be_dirty(bytes, rest, cache.geometry()),
                });
                offset = offset.saturating_add(block_bytes);
            }
        }
    };
    JournalBucket { bucket, entries, stop, behind, bad }
}

/// Whether what is left of an entry may have held dirty keys: only whole and clean ones speak
/// against it.
fn may_be_dirty(bytes: &[u8], rest: usize, geometry: &Geometry) -> bool {
    let Some(mut keys) = salvage_keys(bytes, rest) else { return true };
    let clean = keys.by_ref().all(|key| key.is_valid_extent(geometry) && !key.dirty());
    !clean || keys.truncated()
}

fn hint(bytes: &[u8], rest: usize, error: &JsetError) -> Option<u64> {
    match *error {
        JsetError::TooShort { .. } => None,
        JsetError::BadMagic { .. } => seq_hint(bytes, rest),
        JsetError::TooLong { seq, .. } | JsetError::BadChecksum { seq, .. } => Some(seq),
    }
}

/// Reads one entry again; `None` when it is another one now.
fn load(cache: &CacheDevice<'_>, header: &EntryHeader) -> Result<Option<Jset>, DeviceError> {
    let length = usize::try_from(header.bytes).unwrap_or(JSET_HEADER_BYTES).min(JSET_BYTES_MAX);
    let mut bytes = AlignedBuf::zeroed(length);
    cache.read_bucket(header.place.bucket, header.place.offset, &mut bytes)?;
    Ok(Jset::parse(&bytes, cache.magic(), length).ok().filter(|jset| jset.seq() == header.seq))
}

fn gaps(entries: &[JournalEntry]) -> Vec<Gap> {
    let Some(newest) = entries.last() else { return Vec::new() };
    let mut gaps = Vec::new();
    let mut expected = newest.jset.last_seq();
    for seq in entries.iter().map(|entry| entry.jset.seq()) {
        if seq > expected {
            gaps.push(Gap { first: expected, last: seq - 1 });
        }
        expected = seq.saturating_add(1);
    }
    gaps
}
