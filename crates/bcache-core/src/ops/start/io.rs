//! What the allocator thread of a running cache writes, on its device.

use std::sync::{Arc, MutexGuard, PoisonError};

use crate::allocator::{AllocatorIo, BucketTable, PrioSetPlan};
use crate::device::AlignedBuf;
use crate::layout::prio_set::{BucketDisk, encode_into};
use crate::units::BucketIndex;

use super::RunningCache;
use super::behind::WriteBehind;
use super::error::CacheIoError;
use super::journal::{JournalWriter, NewEntry};

/// An [`AllocatorIo`] over the device of a [`RunningCache`].
pub struct CacheIo {
    cache: Arc<RunningCache>,
    wake_gc: Arc<dyn Fn() + Send + Sync>,
    sets: Sets,
    /// A journal entry was written, and the next flush makes it durable.
    entry_written: bool,
}

/// How prio sets are written.
enum Sets {
    /// Chains of one: encoded here, then written.
    Single(AlignedBuf),
    /// One behind the other.
    Behind(WriteBehind),
    /// There was no thread to be had.
    None,
}

impl Sets {
    fn new(cache: &RunningCache) -> Self {
        let len = usize::try_from(cache.geometry.meta_bucket_bytes()).unwrap_or(0);
        if cache.geometry.prio_buckets() <= 1 {
            return Self::Single(AlignedBuf::zeroed(len));
        }
        WriteBehind::start(Arc::clone(&cache.device), len).map_or(Self::None, Self::Behind)
    }

    fn finish(&mut self) -> Result<(), CacheIoError> {
        match self {
            Self::Behind(behind) => behind.finish(),
            Self::Single(_) | Self::None => Ok(()),
        }
    }
}

impl CacheIo {
    pub(super) fn new(cache: Arc<RunningCache>, wake_gc: Arc<dyn Fn() + Send + Sync>) -> Self {
        let sets = Sets::new(&cache);
        Self { cache, wake_gc, sets, entry_written: false }
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<RunningCache> {
        &self.cache
    }

    fn journal(&self) -> MutexGuard<'_, JournalWriter> {
        self.cache.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllocatorIo for CacheIo {
    type Error = CacheIoError;

    fn discard(&mut self, bucket: BucketIndex) -> Result<(), CacheIoError> {
        let geometry = &self.cache.geometry;
        let offset = geometry.bucket_to_sector(bucket).bytes();
        Ok(self.cache.device.discard(offset, geometry.bucket_bytes())?)
    }

    fn write_prio_set(
        &mut self,
        set: &PrioSetPlan,
        table: &BucketTable,
    ) -> Result<(), CacheIoError> {
        // Prios change meanwhile, and any is as good. A gen that rises meanwhile does so in a bucket that
        // is in use, and is not handed out before a later chain has it.
        let entries = table
            .prios_and_gens(set.first_entry)
            .map(|(prio, bucket_gen)| BucketDisk { prio, bucket_gen });
        let cache = &self.cache;
        let encode = |image: &mut AlignedBuf| {
            encode_into(image, cache.magic, set.seq, set.next_bucket.0, entries);
        };
        let offset = cache.geometry.bucket_to_sector(set.bucket).bytes();
        match &mut self.sets {
            Sets::Single(image) => {
                encode(image);
                Ok(cache.device.write_at(offset, image)?)
            }
            Sets::Behind(behind) => behind.write(offset, encode),
            Sets::None => Err(CacheIoError::WriterEnded),
        }
    }

    fn write_journal_entry(&mut self, prio_head: BucketIndex) -> Result<(), CacheIoError> {
        let cache = &self.cache;
        let block_bytes = usize::try_from(cache.geometry.block_bytes()).unwrap_or(1).max(1);
        let group = self.journal().next_group(prio_head)?;
        for (n, NewEntry { offset, entry, .. }) in group.into_iter().enumerate() {
            // Each says that those before it are there.
            if n > 0 {
                cache.device.flush()?;
            }
            let len = entry.as_bytes().len().next_multiple_of(block_bytes);
            cache.device.write_at(offset, &AlignedBuf::padded(entry.as_bytes(), len))?;
        }
        self.entry_written = true;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CacheIoError> {
        // Forgotten also when the flush fails: a later one does not tell whether the entry got there.
        let entry_written = std::mem::take(&mut self.entry_written);
        self.sets.finish()?;
        self.cache.device.flush()?;
        if entry_written {
            self.journal().confirm();
        }
        Ok(())
    }

    fn wake_gc(&mut self) {
        (self.wake_gc)();
    }
}
