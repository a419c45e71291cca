//! The journal as the kernel will find it once the plan is carried out, looked at before the first
//! byte is written.
//!
//! The kernel's walk of a journal bucket ends at the first thing that is no entry, and what is sound
//! behind it is not seen (FORMAT.md §2.3). A new entry that takes the place of a damaged one lets the
//! walk go on into what stands behind: entries that were newer than the damaged one, and name roots
//! and prio chains in buckets that have been taken for unused since. So the same search that found
//! the journal runs over the device with the planned writes laid in, and must find the entries that
//! it found before, and the new one as the newest. It costs one reading of the journal.

use crate::cache_set::journal::{Journal, JournalEntry, JournalProblem};
use crate::cache_set::{CacheDevice, CacheSet, Problem};
use crate::ops::invalidate::{InvalidateError, Writes};
use crate::ops::planned::PlannedDevice;

/// Refuses `writes` that the kernel would not see as they are meant.
pub(super) fn rehearse(set: &CacheSet<'_>, writes: &Writes) -> Result<(), InvalidateError> {
    let path = || set.cache.device().info().path.clone();
    let device = PlannedDevice::new(set.cache.device(), writes.steps());
    let cache = CacheDevice::open(&device)
        .map_err(|source| InvalidateError::NoCache { path: path(), source: source.into() })?;
    let mut unreadable = None;
    let after = Journal::read(&cache, &mut |_| {}, &mut |problem| {
        if matches!(problem, JournalProblem::Unreadable { .. }) {
            unreadable.get_or_insert(problem);
        }
    });
    if let Some(problem) = unreadable {
        let first = Box::new(Problem::Journal(problem));
        return Err(InvalidateError::Damaged { path: path(), first, count: 1 });
    }
    let found = after.newest().map_or(0, |entry| entry.jset.seq());
    let is_as_planned = after.entries.split_last().is_some_and(|(newest, kept)| {
        newest.jset.as_bytes() == writes.entry.as_bytes()
            && newest.place == writes.place
            && kept.len() == set.journal.entries.len()
            && kept.iter().zip(&set.journal.entries).all(|(now, before)| same(now, before))
    });
    if is_as_planned {
        return Ok(());
    }
    Err(InvalidateError::JournalHidesEntries { path: path(), planned: writes.journal_seq, found })
}

fn same(one: &JournalEntry, other: &JournalEntry) -> bool {
    one.place == other.place && one.jset.as_bytes() == other.jset.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache_set::testkit::SetBuilder;
    use crate::cache_set::{NoVisitor, ReadOptions};
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
