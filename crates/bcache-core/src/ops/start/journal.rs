//! Where journal entries go (docs/on-disk-format.md §2.6).
//!
//! No entry has keys, so none has to be kept once the next one is durable: `last_seq` is always the
//! entry's own number, and the journal's buckets are used round and round.

use crate::layout::SetMagic;
use crate::layout::bkey::Bkey;
use crate::layout::jset::{self, JSET_PRIO_BUCKETS, Jset, JsetParams};
use crate::units::{BucketIndex, Geometry};

/// The journal of a running cache.
#[derive(Clone, Debug)]
pub(super) struct JournalWriter {
    geometry: Geometry,
    buckets: u64,
    /// Number of the last entry that was tried.
    seq: u64,
    /// Where the next entry goes: bucket of the journal, byte in it.
    index: u64,
    offset: u64,
    /// Bytes of an entry that was written and is not known to be durable.
    unconfirmed: Option<u64>,
}

impl JournalWriter {
    /// An empty journal. The first entry goes to the second bucket, as the kernel's does.
    pub(super) fn new(geometry: &Geometry, njournal: u16) -> Self {
        let buckets = u64::from(njournal).max(1);
        Self {
            geometry: *geometry,
            buckets,
            seq: 0,
            index: 1 % buckets,
            offset: 0,
            unconfirmed: None,
        }
    }

    /// The next entry, and where it goes in bytes; `None` when the sequence numbers end.
    ///
    /// Until [`confirm`](Self::confirm), the one after it goes to the same place: behind an entry
    /// that is torn, no reader would find it.
    pub(super) fn next(
        &mut self,
        uuid_bucket: Bkey,
        btree_root: Bkey,
        prio_head: BucketIndex,
        magic: SetMagic,
    ) -> Option<(u64, Jset)> {
        let mut prio_bucket = [0; JSET_PRIO_BUCKETS];
        *prio_bucket.first_mut()? = prio_head.0;
        let seq = self.seq.checked_add(1)?;
        let params = JsetParams {
            seq,
            last_seq: seq,
            uuid_bucket,
            btree_root,
            btree_level: 0,
            prio_bucket,
            keys: &[],
        };
        let entry = jset::encode(&params, magic)?;
        let len =
            (entry.as_bytes().len() as u64).next_multiple_of(self.geometry.block_bytes().max(1));
        if self.offset.saturating_add(len) > self.geometry.bucket_bytes() {
            self.index = (self.index + 1) % self.buckets;
            self.offset = 0;
        }
        self.seq = seq;
        self.unconfirmed = Some(len);
        let bucket = BucketIndex(self.geometry.first_bucket().0 + self.index);
        Some((self.geometry.bucket_to_sector(bucket).bytes().saturating_add(self.offset), entry))
    }

    /// The last entry is durable.
    pub(super) fn confirm(&mut self) {
        if let Some(len) = self.unconfirmed.take() {
            self.offset = self.offset.saturating_add(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sectors;

    #[test]
    fn entries_fill_bucket_after_bucket_and_what_failed_is_written_over() {
        let geometry = Geometry::new(1024, 2, Sectors(16), Sectors(8)).unwrap();
        let mut journal = JournalWriter::new(&geometry, 3);
        let mut next = |confirmed: bool| {
            let key = Bkey::new(0, 0, 8);
            let (offset, entry) = journal.next(key, key, BucketIndex(9), SetMagic(1)).unwrap();
            assert_eq!(entry.prio_bucket(0), 9);
            assert_eq!(entry.seq(), entry.last_seq());
            if confirmed {
                journal.confirm();
            }
            (offset / 4096, entry.seq())
        };
        // Buckets of two blocks from block 4 on; the first entry is in the second one.
        assert_eq!(next(true), (6, 1));
        assert_eq!(next(false), (7, 2));
        assert_eq!(next(true), (7, 3));
        assert_eq!([next(true), next(true), next(true)], [(8, 4), (9, 5), (4, 6)]);
    }
}
