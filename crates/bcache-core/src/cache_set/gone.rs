//! A cache set whose superblock is gone: the first KiB of a device were overwritten, and the rest is there.
//!
//! All that the kernel needs of a superblock stands in the rest as well, but for the second half of the
//! set's UUID, which only backing devices have:
//!
//! - The magic of a journal entry has the first half of that UUID, and its checksum vouches for both.
//! - From one entry to the next, the journal rounds up to whole blocks.
//! - The journal is where the kernel puts it in any new set, from the first bucket on.
//! - The newest entry names the first prio set by the number of its bucket: with buckets of another size,
//!   nothing is found there. Each prio set has a checksum, and there are as many of them as the buckets need.
//!
//! So a superblock made of these is tried. It is taken if the prio chain is whole by it, and if nothing says
//! that the device was larger or smaller. The number of buckets is what the device has room for, and the
//! length of the journal follows from it. Of a device that was cut off, keys point past the end, or entries
//! are behind what would be the journal; of one that grew, data is where the journal would be.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::cache_set::uuids::UuidProblem;
use crate::cache_set::{
    BtreeProblem, BucketProblem, CacheDevice, CacheSet, Problem, ReadOptions, Visitor,
};
use crate::device::{AlignedBuf, ReadDevice};
use crate::layout::SetMagic;
use crate::layout::jset::{JSET_BYTES_MAX, Jset, claims_entry, set_of_entry};
use crate::layout::superblock::{
    CacheParams, Label, Replacement, SB_JOURNAL_BUCKETS, Superblock, VERSION_CDEV_WITH_UUID,
};
use crate::units::{BucketIndex, SECTOR_BYTES, Sectors, njournal_buckets_default};

/// Logarithms of the bucket sizes that are tried, in sectors: 4 KiB to 32 MiB.
const BUCKET_BITS: std::ops::RangeInclusive<u32> = 3..=16;

/// Buckets before the journal of a new cache, at most: with the smallest buckets, the superblock takes three.
const FIRST_BUCKET_MAX: u64 = 3;

/// Bytes of a place that tell whether a journal entry may be there.
const FIRST_BYTES: usize = 4096;

/// Bytes of a journal bucket in which entries are looked for that tell the size of a block.
const SCANNED_BYTES: u64 = 1 << 20;

/// What is left of a cache set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The set: the one that is whole, or the first that was found.
    pub set: SetMagic,
    /// Sector of one of its journal entries.
    pub at: Sectors,
    /// What the superblock was, as far as the rest tells: the second half of the set's UUID is zero, and
    /// label, device UUID, replacement policy and discards are those of a new cache. `None` where the rest
    /// does not tell.
    pub superblock: Option<Superblock>,
}

/// In how many journal buckets entries are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// In all that there may be, some 2,000 places: a kernel that discards leaves nothing in those that it does
    /// not need.
    Everywhere,
    /// In the first two, some 30 places: of a disk that hardly has a set, seconds count.
    AtTheFirst,
}

impl Remains {
    /// What is left of a set on `device`, on which there is no superblock. What cannot be read counts as
    /// not there: the rest may tell all the same.
    pub fn read(device: &dyn ReadDevice, look: Look) -> Option<Self> {
        let sizes = BUCKET_BITS.map(|bits| Sectors(1 << bits));
        let found = Self::entries(device, look);
        let &(_, first) = found.first()?;
        // A device that was formatted again has entries of both sets.
        let sets: BTreeSet<u64> = found.iter().map(|(_, magic)| magic.0).collect();
        let mut whole = Vec::new();
        for magic in sets.into_iter().map(SetMagic) {
            for bucket in sizes.clone() {
                let is_start =
                    |(at, of): &&(Sectors, SetMagic)| *of == magic && at.0 % bucket.0 == 0;
                let starts: Vec<_> = found.iter().filter(is_start).map(|(at, _)| *at).collect();
                if let Some(block) = block_size(device, &starts, bucket, magic) {
                    whole.extend(tried(device, bucket, block, magic));
                }
            }
        }
        let superblock = if whole.len() == 1 { whole.pop() } else { None };
        let set = superblock.as_ref().map_or(first, Superblock::set_magic);
        let (at, _) = found.iter().find(|(_, magic)| *magic == set)?;
        Some(Self { set, at: *at, superblock })
    }

    /// Sector of a journal entry of one of the sets `wanted` on `device`, whatever superblock it has, and
    /// which set that is.
    pub fn of_one(device: &dyn ReadDevice, wanted: &[Uuid]) -> Option<(Sectors, Uuid)> {
        if wanted.is_empty() {
            return None;
        }
        Self::entries(device, Look::Everywhere).into_iter().find_map(|(at, magic)| {
            let set = wanted.iter().find(|set| SetMagic::from_set_uuid(set) == magic)?;
            Some((at, *set))
        })
    }

    /// Journal entries at the start of what would be a journal bucket.
    fn entries(device: &dyn ReadDevice, look: Look) -> Vec<(Sectors, SetMagic)> {
        let size = device.info().size();
        let places: BTreeSet<Sectors> = BUCKET_BITS
            .flat_map(|bits| {
                let bucket_size = Sectors(1 << bits);
                let journal = match look {
                    Look::Everywhere => njournal_buckets_default(size.0 / bucket_size.0),
                    Look::AtTheFirst => 2,
                };
                (1..FIRST_BUCKET_MAX + u64::from(journal))
                    .map(move |bucket| Sectors(bucket_size.0 * bucket))
            })
            .filter(|at| at.0.saturating_add(JSET_BYTES_MAX as u64 / SECTOR_BYTES) <= size.0)
            .collect();
        // Most places are told by their first block.
        let mut bytes = AlignedBuf::zeroed(JSET_BYTES_MAX);
        let mut found = Vec::new();
        for at in places {
            let is_read = |bytes: &mut [u8]| device.read_at(at.bytes(), bytes).is_ok();
            let may_be = bytes
                .get_mut(..FIRST_BYTES)
                .is_some_and(|first| is_read(first) && claims_entry(first));
            if may_be && is_read(&mut bytes) {
                found.extend(set_of_entry(&bytes, bytes.len()).map(|magic| (at, magic)));
            }
        }
        found
    }
}

/// The size of a block by which each entry follows the one before it; `None` where that is not one.
fn block_size(
    device: &dyn ReadDevice,
    starts: &[Sectors],
    bucket: Sectors,
    magic: SetMagic,
) -> Option<u16> {
    let length = usize::try_from(bucket.bytes().min(SCANNED_BYTES)).unwrap_or(0);
    let sector = usize::try_from(SECTOR_BYTES).unwrap_or(512);
    let mut fitting: Vec<u16> = (0..8).map(|bits| 1 << bits).collect();
    fitting.retain(|block| u64::from(*block) <= bucket.0);
    let mut bytes = AlignedBuf::zeroed(length);
    for start in starts {
        // The true size always fits.
        if fitting.len() == 1 {
            break;
        }
        if device.read_at(start.bytes(), &mut bytes).is_err() {
            continue;
        }
        let entry = |at: usize| Jset::parse(bytes.get(at..)?, magic, length - at).ok();
        let mut at = 0;
        while let Some(this) = entry(at) {
            let end = at + this.as_bytes().len();
            let follows = |next: &usize| entry(*next).is_some_and(|it| it.seq() == this.seq() + 1);
            let Some(next) = (end.next_multiple_of(sector)..length).step_by(sector).find(follows)
            else {
                break;
            };
            fitting.retain(|block| end.next_multiple_of(usize::from(*block) * sector) == next);
            at = next;
        }
    }
    match fitting[..] {
        [only] => Some(only),
        _ => None,
    }
}

/// The superblock of a set with buckets and blocks of these sizes, if that is what the rest says.
fn tried(
    device: &dyn ReadDevice,
    bucket_size: Sectors,
    block_size: u16,
    magic: SetMagic,
) -> Option<Superblock> {
    let mut superblock = Superblock::new_cache(&CacheParams {
        uuid: Uuid::nil(),
        set_uuid: magic.half_of_set_uuid(),
        label: Label::default(),
        nbuckets: device.info().size().0 / bucket_size.0,
        bucket_size,
        block_size,
        replacement: Replacement::Lru,
        discard: false,
    });
    let journal = superblock.geometry()?.njournal_buckets_default();
    let version = superblock.version().max(VERSION_CDEV_WITH_UUID);
    superblock.edit(|edit| _ = edit.version(version).sync(true).journal_buckets(journal));
    let cache = CacheDevice::with_superblock(device, superblock.clone()).ok()?;
    cache.is_whole().ok()?;
    if continues(&cache) {
        return None;
    }
    let mut fit = Fit { fits: true };
    let set = CacheSet::read(cache, &ReadOptions::default(), &mut fit).ok()?;
    (set.prios.complete && fit.fits).then_some(superblock)
}

/// Whether entries of the set are behind what would be its journal.
fn continues(cache: &CacheDevice<'_>) -> bool {
    let geometry = cache.geometry();
    let mut bytes = AlignedBuf::zeroed(
        JSET_BYTES_MAX.min(usize::try_from(geometry.bucket_bytes()).unwrap_or(JSET_BYTES_MAX)),
    );
    let first = geometry.first_bucket().0;
    let behind = first.saturating_add(geometry.njournal_buckets_default().into());
    let mut others = (behind..first.saturating_add(SB_JOURNAL_BUCKETS.into()))
        .map(BucketIndex)
        .take_while(|bucket| geometry.contains(*bucket));
    others.any(|bucket| {
        cache.read_bucket(bucket, 0, &mut bytes).is_ok()
            && Jset::parse(&bytes, cache.magic(), bytes.len()).is_ok()
    })
}

/// Whether all that the set names is on the device, and nothing where its journal would be.
struct Fit {
    fits: bool,
}

impl Visitor for Fit {
    fn problem(&mut self, problem: Problem) {
        let fits = !matches!(
            problem,
            Problem::Btree(BtreeProblem::Fault { .. } | BtreeProblem::BadRoot { .. })
                | Problem::Bucket(
                    BucketProblem::SharedMetadata { .. }
                        | BucketProblem::Inconsistent { .. }
                        | BucketProblem::BadJournalKey { .. }
                )
                | Problem::Uuids(UuidProblem::BadPointer { .. })
        );
        self.fits &= fits;
    }

    fn wants_keys(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache_set::testkit::SetBuilder;
    use crate::device::BlockDevice;
    use crate::device::testkit::MemoryDevice;
    use crate::layout::bkey::Bkey;
    use crate::layout::superblock::SB_OFFSET_BYTES;

    fn zeroed(builder: &SetBuilder) -> MemoryDevice {
        let device = MemoryDevice::new(builder.nbuckets * builder.bucket_size.bytes());
        builder.write(&device, std::iter::empty::<Bkey>()).unwrap();
        device.write_at(SB_OFFSET_BYTES, &[0; 4096]).unwrap();
        device
    }

    /// Whatever its sizes, it is found as it was, but for what stood in the superblock alone.
    #[test]
    fn the_sizes_are_found() {
        for (nbuckets, bucket, block) in [(700, 64, 8), (700, 64, 1), (600, 1024, 8), (4096, 16, 2)]
        {
            let builder = SetBuilder {
                nbuckets,
                bucket_size: Sectors(bucket),
                block_size: block,
                njournal: u16::try_from((nbuckets >> 7).clamp(2, 256)).unwrap(),
                journal: vec![Vec::new(); 3],
                ..SetBuilder::default()
            };
            let was = builder.superblock();
            let found =
                Remains::read(&zeroed(&builder), Look::Everywhere).unwrap().superblock.unwrap();
            assert_eq!(found.geometry(), was.geometry(), "{nbuckets} {bucket} {block}");
            assert_eq!(found.set_magic(), was.set_magic());
            assert!(found.journal_buckets().eq(was.journal_buckets()));
            assert!(found.csum_ok() && found.sync());
        }
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        let device = MemoryDevice::new(64 << 20);
        assert_eq!(Remains::read(&device, Look::Everywhere), None);
        assert_eq!(Remains::read(&MemoryDevice::new(4096), Look::Everywhere), None);
    }

    /// One entry does not tell the size of a block, and nothing is guessed.
    #[test]
    fn a_journal_of_one_entry_says_that_there_was_a_set() {
        let builder = SetBuilder { nbuckets: 700, ..SetBuilder::default() };
        let remains = Remains::read(&zeroed(&builder), Look::Everywhere).unwrap();
        assert_eq!(remains.superblock, None);
        assert_eq!(remains.at.0 % builder.bucket_size.0, 0);
    }
}
