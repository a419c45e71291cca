//! Where journal entries go (docs/on-disk-format.md §2.6).
//!
//! What is written for a chain of prio sets is a *group* of entries that needs none before it: the
//! keys that replay would insert stand in it anew, and its last entry's `last_seq` is the number of
//! its first. So the journal's buckets are used round and round, and of the entries only those of the
//! newest group have to be kept. Without keys to replay a group is a single entry.
//!
//! All entries of a group but the last say what the group before says, and need what it needs: until
//! the last one is durable, they do not matter. Then the keys are in the group twice, which comes to
//! the same: they do not overlap, and replay inserts the later ones over the earlier.

use crate::cache_set::journal::{AppendPlaces, Journal};
use crate::layout::SetMagic;
use crate::layout::bkey::Bkey;
use crate::layout::jset::{self, JSET_BYTES_MAX, JSET_HEADER_BYTES, Jset, JsetParams};
use crate::units::{BucketIndex, Geometry};

use super::error::CacheIoError;

/// Journal buckets that are opened only as long as so many are left before the oldest one needed: the
/// kernel must find room for its own entries (docs/on-disk-format.md §8.4 step 4).
const DISTANCE_MIN: u64 = 3;

/// The journal of a running cache.
#[derive(Clone, Debug)]
pub(super) struct JournalWriter {
    geometry: Geometry,
    magic: SetMagic,
    /// The journal's buckets, in its order.
    buckets: Vec<BucketIndex>,
    /// Number of the cache in its set.
    device: u16,
    /// What the newest durable entry says; without keys.
    newest: JsetParams<'static>,
    /// Keys of each entry of a group.
    keys: Vec<Vec<Bkey>>,
    at: Position,
    /// What is so once the group that was written last is durable.
    unconfirmed: Option<(JsetParams<'static>, Position)>,
}

/// Where the next entry goes.
#[derive(Clone, Copy, Debug)]
struct Position {
    /// Bucket of the journal.
    index: u64,
    /// Byte in it.
    offset: u64,
    /// Buckets from this one forward to the oldest that is needed, all of them if that is this one.
    distance: u64,
}

/// An entry to write.
#[derive(Clone, Debug)]
pub(super) struct NewEntry {
    /// Bucket of the journal, and byte in it.
    pub(super) place: (u64, u64),
    /// Byte on the device.
    pub(super) offset: u64,
    pub(super) entry: Jset,
}

impl JournalWriter {
    /// An empty journal, of a cache that is its set's first. The first entry goes to the second
    /// bucket, as the kernel's does.
    pub(super) fn new(
        geometry: &Geometry,
        magic: SetMagic,
        njournal: u16,
        uuid_bucket: Bkey,
        btree_root: Bkey,
    ) -> Self {
        let first = geometry.first_bucket().0;
        let count = u64::from(njournal).max(1);
        Self {
            geometry: *geometry,
            magic,
            buckets: (first..first.saturating_add(count)).map(BucketIndex).collect(),
            device: 0,
            newest: JsetParams {
                seq: 0,
                last_seq: 0,
                uuid_bucket,
                btree_root,
                btree_level: 0,
                prio_bucket: [0; jset::JSET_PRIO_BUCKETS],
                keys: &[],
            },
            keys: vec![Vec::new()],
            at: Position { index: 1 % count, offset: 0, distance: count },
            unconfirmed: None,
        }
    }

    /// The journal that was found, of whose replay range these keys are left, in order and without
    /// overlaps. `None` where its last entry can have no successor.
    pub(super) fn after(
        journal: &Journal,
        places: &AppendPlaces,
        geometry: &Geometry,
        magic: SetMagic,
        device: u16,
        keys: &[Bkey],
    ) -> Option<Self> {
        let newest = &journal.newest()?.jset;
        if newest.version() < jset::JSET_VERSION {
            return None;
        }
        // A bucket that is full to its end where the entry cannot go behind the newest.
        let offset = match places.after_newest {
            Some((place, _)) if place.index == journal.current => place.offset,
            _ => geometry.bucket_bytes(),
        };
        let index = u64::try_from(journal.current).ok()?;
        Some(Self {
            geometry: *geometry,
            magic,
            buckets: journal.buckets.iter().map(|bucket| bucket.bucket).collect(),
            device,
            newest: JsetParams::of(newest, &[]),
            keys: in_entries(keys, geometry),
            at: Position { index, offset, distance: places.distance },
            unconfirmed: None,
        })
    }

    /// Whether one group after the other finds room.
    pub(super) fn has_room_for_ever(&self) -> bool {
        let bytes = |keys: &Vec<Bkey>| entry_bytes(keys.iter().map(Bkey::words).sum());
        let block = self.geometry.block_bytes().max(1);
        let longest = self.keys.iter().map(bytes).max().unwrap_or(0).next_multiple_of(block);
        let per_bucket = self.geometry.bucket_bytes().checked_div(longest).unwrap_or(0);
        // Those that a group opens, twice: the newest one is kept while the next is written. Each may
        // begin in a bucket that is open already.
        let opened = |per_bucket: u64| (self.keys.len() as u64).div_ceil(per_bucket);
        let needed = |opened: u64| opened.saturating_mul(2).saturating_add(DISTANCE_MIN - 1);
        per_bucket > 0 && self.buckets.len() as u64 >= needed(opened(per_bucket))
    }

    /// The entries of the next group, each with where it goes. Each has to be durable before the next
    /// is written.
    ///
    /// Until [`confirm`](Self::confirm), the group after it goes to the same places, with the same
    /// numbers: behind an entry that is torn, no reader would find it.
    pub(super) fn next_group(
        &mut self,
        prio_head: BucketIndex,
    ) -> Result<Vec<NewEntry>, CacheIoError> {
        let first_seq = self.newest.seq.checked_add(1).ok_or(CacheIoError::JournalSeq)?;
        let count = self.buckets.len() as u64;
        let block = self.geometry.block_bytes().max(1);
        let mut at = self.at;
        let mut newest = self.newest.clone();
        let mut group: Vec<NewEntry> = Vec::with_capacity(self.keys.len());
        for (n, keys) in self.keys.iter().enumerate() {
            newest.seq = newest.seq.checked_add(1).ok_or(CacheIoError::JournalSeq)?;
            if n + 1 == self.keys.len() {
                newest.last_seq = first_seq;
                let head = newest.prio_bucket.get_mut(usize::from(self.device));
                *head.ok_or(CacheIoError::JournalSeq)? = prio_head.0;
            }
            let params = JsetParams { keys, ..newest.clone() };
            let entry = jset::encode(&params, self.magic).ok_or(CacheIoError::JournalSeq)?;
            let len = (entry.as_bytes().len() as u64).next_multiple_of(block);
            if at.offset.saturating_add(len) > self.geometry.bucket_bytes() {
                if at.distance < DISTANCE_MIN {
                    return Err(CacheIoError::JournalFull);
                }
                let index = (at.index + 1) % count;
                at = Position { index, offset: 0, distance: at.distance - 1 };
            }
            let bucket = usize::try_from(at.index).ok().and_then(|index| self.buckets.get(index));
            let bucket = *bucket.ok_or(CacheIoError::JournalFull)?;
            let start = self.geometry.bucket_to_sector(bucket).bytes();
            let (place, offset) = ((at.index, at.offset), start.saturating_add(at.offset));
            group.push(NewEntry { place, offset, entry });
            at.offset += len;
        }
        let first_index = group.first().map_or(at.index, |first| first.place.0);
        at.distance = count - (at.index + count - first_index) % count;
        self.unconfirmed = Some((newest, at));
        Ok(group)
    }

    /// The last group is durable.
    pub(super) fn confirm(&mut self) {
        if let Some((newest, at)) = self.unconfirmed.take() {
            (self.newest, self.at) = (newest, at);
        }
    }
}

fn entry_bytes(key_words: usize) -> u64 {
    (JSET_HEADER_BYTES as u64).saturating_add((key_words as u64).saturating_mul(8))
}

/// Deals keys out to entries, at least one, each as long as an entry and a journal bucket may be.
fn in_entries(keys: &[Bkey], geometry: &Geometry) -> Vec<Vec<Bkey>> {
    let longest = geometry.bucket_bytes().min(JSET_BYTES_MAX as u64);
    let (mut entries, mut words) = (vec![Vec::new()], 0);
    for key in keys {
        if entry_bytes(words + key.words()) > longest {
            entries.push(Vec::new());
            words = 0;
        }
        words += key.words();
        if let Some(entry) = entries.last_mut() {
            entry.push(*key);
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::bkey::Ptr;
    use crate::units::{Gen, Sectors};

    fn writer(njournal: u16) -> JournalWriter {
        let geometry = Geometry::new(1024, 2, Sectors(16), Sectors(8)).unwrap();
        let key = Bkey::new(0, 0, 8);
        JournalWriter::new(&geometry, SetMagic(1), njournal, key, key)
    }

    fn group(journal: &mut JournalWriter, confirmed: bool) -> Vec<(u64, u64, u64, u64)> {
        let group = journal.next_group(BucketIndex(9)).unwrap();
        assert_eq!(group.last().unwrap().entry.prio_bucket(0), 9);
        if confirmed {
            journal.confirm();
        }
        let of = |new: &NewEntry| {
            let entry = &new.entry;
            (new.offset / 4096, entry.seq(), entry.last_seq(), entry.keys().count() as u64)
        };
        group.iter().map(of).collect()
    }

    #[test]
    fn entries_fill_bucket_after_bucket_and_what_failed_is_written_over() {
        let mut journal = writer(4);
        // Buckets of two blocks from block 4 on; the first entry is in the second one.
        assert_eq!(group(&mut journal, true), [(6, 1, 1, 0)]);
        assert_eq!(group(&mut journal, false), [(7, 2, 2, 0)]);
        assert_eq!(group(&mut journal, true), [(7, 2, 2, 0)]);
        let places: Vec<_> = (0..5).flat_map(|_| group(&mut journal, true)).collect();
        let expected = [(8, 3), (9, 4), (10, 5), (11, 6), (4, 7)];
        assert_eq!(places, expected.map(|(block, seq)| (block, seq, seq, 0)));
    }

    /// Three entries with keys: the first two need what the group before needs, the last only the
    /// group. Three groups of three blocks in six buckets of two: none overwrites the one before.
    #[test]
    fn a_group_carries_its_keys_and_needs_nothing_before_it() {
        let ptr = Ptr::new(Gen(1), Sectors(400), 0);
        let keys: Vec<_> = (1..=800).map(|n| Bkey::new(0, n * 8, 8).with_ptrs(&[ptr])).collect();
        let mut journal = writer(6);
        journal.keys = in_entries(&keys, &journal.geometry);
        let counts: Vec<_> = journal.keys.iter().map(Vec::len).collect();
        // 8192 bytes have room for (8192 - 240) / 24 keys.
        assert_eq!(counts, [331, 331, 138]);
        assert_eq!(journal.keys.concat(), keys);
        // Each of the first two fills a bucket, and each group opens three: six are too few.
        assert!(!journal.has_room_for_ever());
        assert_eq!(group(&mut journal, true), [(6, 1, 0, 331), (8, 2, 0, 331), (10, 3, 1, 138)],);
        assert!(matches!(journal.next_group(BucketIndex(9)), Err(CacheIoError::JournalFull)));

        let mut journal = writer(8);
        journal.keys = in_entries(&keys, &journal.geometry);
        assert!(journal.has_room_for_ever());
        let mut last: Option<Vec<u64>> = None;
        for n in 0..40 {
            let group = group(&mut journal, n % 3 != 0);
            let buckets: Vec<_> = group.iter().map(|entry| entry.0 / 2).collect();
            let free = |last: &Vec<u64>| last.iter().all(|bucket| !buckets.contains(bucket));
            // The last entry's block may be followed by more.
            assert!(last.as_ref().is_none_or(free), "{last:?} {buckets:?}");
            assert_eq!(group[2].2, group[0].1);
            if n % 3 != 0 {
                last = Some(buckets);
            }
        }
    }

    #[test]
    fn no_entry_is_longer_than_the_kernel_reads() {
        let key = Bkey::new(0, 800, 8).with_ptrs(&[Ptr::new(Gen(1), Sectors(400), 0)]);
        let counts = |bucket_size, count| -> Vec<usize> {
            let geometry = Geometry::new(1024, 2, Sectors(bucket_size), Sectors(8)).unwrap();
            in_entries(&vec![key; count], &geometry).iter().map(Vec::len).collect()
        };
        // 32768 bytes have room for (32768 - 240) / 24 keys, however large the bucket is.
        assert_eq!(counts(1024, 1400), [1355, 45]);
        assert_eq!(counts(64, 1400), [1355, 45]);
        assert_eq!(counts(32, 700), [672, 28]);
        assert_eq!(counts(1024, 0), [0]);
    }
}
