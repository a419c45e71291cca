//! Refuses an entry that the kernel would not see as it is meant, before the first byte is written.

use crate::cache_set::{CacheSet, Problem};
use crate::ops::commit::{self, Rehearsal};
use crate::ops::invalidate::{InvalidateError, Writes};

/// Refuses `writes` after which the kernel's search of the journal finds other entries than those it
/// finds now, and the new one as the newest.
pub(super) fn rehearse(set: &CacheSet<'_>, writes: &Writes) -> Result<(), InvalidateError> {
    let path = || set.cache.device().info().path.clone();
    let kept = &set.journal.entries;
    match commit::rehearse(set, writes.commit.steps.iter(), &writes.entry, &writes.place, kept) {
        Rehearsal::AsPlanned => Ok(()),
        Rehearsal::Otherwise { found } => {
            let planned = writes.journal_seq;
            Err(InvalidateError::JournalHidesEntries { path: path(), planned, found })
        }
        Rehearsal::Unreadable(problem) => {
            let first = Box::new(Problem::Journal(problem));
            Err(InvalidateError::Damaged { path: path(), first, count: 1 })
        }
        Rehearsal::NoCache(source) => {
            Err(InvalidateError::NoCache { path: path(), source: source.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache_set::testkit::SetBuilder;
    use crate::cache_set::{CacheDevice, NoVisitor, ReadOptions};
    use crate::device::testkit::MemoryDevice;
    use crate::device::{BlockDevice, ReadDevice};
    use crate::ops::invalidate::bits::BucketBits;
    use crate::ops::invalidate::writes;
    use crate::units::BucketIndex;

    /// Six entries in one bucket, one of them damaged: what stands behind it counts, whoever reads
    /// the set for us looked for that or not.
    #[test]
    fn an_entry_that_brings_others_back_is_refused() {
        let builder = SetBuilder { journal: vec![Vec::new(); 6], ..SetBuilder::default() };
        for damaged in [None, Some(4), Some(5), Some(6)] {
            let device = MemoryDevice::new(builder.nbuckets * builder.bucket_size.bytes());
            let built = builder.write(&device, std::iter::empty()).unwrap();
            let second = BucketIndex(built.geometry.first_bucket().0 + 1);
            let block = built.geometry.block_bytes();
            if let Some(seq) = damaged {
                let at = built.geometry.bucket_to_sector(second).bytes() + (seq - 1) * block;
                let mut bytes = vec![0; usize::try_from(block).unwrap()];
                device.read_at(at, &mut bytes).unwrap();
                bytes[200] ^= 1;
                device.write_at(at, &bytes).unwrap();
            }
            let cache = CacheDevice::open(&device).unwrap();
            let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
            let mut targets = BucketBits::new(builder.nbuckets).unwrap();
            targets.insert(BucketIndex(builder.data_buckets(1).start));
            let writes = writes::plan(&set, &targets).unwrap();
            assert_eq!(writes.journal_seq, damaged.unwrap_or(7));
            let result = rehearse(&set, &writes);
            match damaged {
                Some(seq) if seq < 6 => assert!(
                    matches!(
                        result,
                        Err(InvalidateError::JournalHidesEntries { planned, found: 6, .. })
                            if planned == seq
                    ),
                    "{result:?}"
                ),
                _ => result.unwrap(),
            }
        }
    }
}
