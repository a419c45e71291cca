//! Going on with caches that have been in use: what a kernel, or a run before, has left.
//!
//! The cache set is read as the kernel would read it, journal and all, and refused where anything makes
//! it uncertain which buckets are in use. Out of the reading come prio and gen of every bucket, and
//! what the keys say of each ([`Kept`]). Metadata, dirty data, and whatever a key of the replay range
//! points to stay pinned: only buckets of clean data go, and those that hold nothing.
//!
//! Nothing is written to the btree. The keys that replay would insert are kept in memory, and stand anew
//! in every group of entries that is written (see `journal`): a kernel that registers what is left
//! replays the same keys.

use std::sync::{Arc, Mutex};

use crate::allocator::{Config, Kept, Mark, Reserve, SetAllocator};
use crate::cache_set::journal::{JournalEntry, JournalPlace};
use crate::cache_set::{BucketTable, CacheSet, GcMark, Progress, ReadOptions};
use crate::device::BlockDevice;
use crate::layout::superblock::Superblock;
use crate::ops::commit::{self, Rehearsal};
use crate::ops::invalidate::{Unsound, read_sound};
use crate::ops::plan::Step;
use crate::units::{BucketIndex, Gen};

use super::error::{InUseError, StartError};
use super::journal::{JournalWriter, NewEntry};
use super::{RunningCache, RunningSet, config_of};

impl RunningSet {
    /// Goes on with caches that have been in use, each a set of its own on its device, with one
    /// allocator over all of them. The devices are claimed for writing.
    ///
    /// `change` may alter how each cache allocates, its geometry and that its gens are made durable
    /// aside. `progress` is told where the reading of which cache is.
    ///
    /// Nothing is written here, and no thread refills the reserves yet: see [`io`](Self::io). Memory:
    /// besides the allocator's, 16 bytes for each bucket that a key points to, and while a cache is read
    /// what [`CacheSet`] needs.
    pub fn open(
        devices: Vec<Arc<dyn BlockDevice>>,
        change: impl Fn(&mut Config),
        options: &ReadOptions,
        progress: &mut dyn FnMut(usize, Progress),
    ) -> Result<Self, StartError> {
        let (mut configs, mut found) = (Vec::new(), Vec::new());
        for (device, block_device) in devices.iter().enumerate() {
            let refused = |source| StartError::InUse { device, source };
            let mut told = |at| progress(device, at);
            let sound = read_sound(block_device, options, &mut told, &|_| false);
            let set = sound.map_err(|unsound| refused(unsound.into()))?;
            let mut config = config_of(set.cache.superblock())
                .ok_or_else(|| refused(InUseError::UnknownPolicy))?;
            change(&mut config);
            config.geometry = *set.geometry();
            config.sync = true;
            config.seed = config.seed.map(|seed| seed.wrapping_add(device as u64));
            configs.push(config);
            found.push(InUse::of(set).map_err(refused)?);
        }
        let allocator = SetAllocator::new(&configs)?;
        let mut caches = Vec::new();
        for ((device, block_device), found) in devices.into_iter().enumerate().zip(found) {
            caches.push(Arc::new(found.load(&allocator, device, block_device)?));
        }
        // As after the first GC of a registration: what is not marked is free.
        allocator.gc_finish(&[])?;
        for (device, cache) in allocator.caches().iter().enumerate() {
            cache.refiller()?.initial_fill();
            let (needed, found) =
                (cache.core().sizes().prio, cache.core().reserve_used(Reserve::Prio));
            if found < needed {
                let source = InUseError::TooFewUnused { needed, found };
                return Err(StartError::InUse { device, source });
            }
        }
        Ok(Self { allocator: Arc::new(allocator), caches, metadata: Vec::new() })
    }
}

impl From<Unsound> for InUseError {
    fn from(unsound: Unsound) -> Self {
        match unsound {
            Unsound::NoCache(source) => Self::NoCache(source),
            Unsound::KernelRefuses(refusal) => Self::KernelRefuses { refusal },
            Unsound::Damaged { first, count } => Self::Damaged { first, count },
            Unsound::JournalGap(gap) => Self::JournalGap { gap },
        }
    }
}

/// What was found on one cache, apart from its device.
struct InUse {
    superblock: Superblock,
    journal: JournalWriter,
    table: BucketTable,
    kept: Vec<Kept>,
    chain: Vec<BucketIndex>,
    prio_seq: u64,
}

impl InUse {
    fn of(set: CacheSet<'_>) -> Result<Self, InUseError> {
        let (journal, kept) = (journal_after(&set)?, kept(&set));
        let CacheSet { cache, prios, table, .. } = set;
        Ok(Self {
            superblock: cache.superblock().clone(),
            journal,
            table,
            kept,
            chain: prios.buckets,
            prio_seq: prios.seq,
        })
    }

    fn load(
        self,
        allocator: &SetAllocator,
        device: usize,
        block_device: Arc<dyn BlockDevice>,
    ) -> Result<RunningCache, StartError> {
        let number = u16::try_from(device).unwrap_or(u16::MAX);
        let cache = allocator.cache(number)?;
        let geometry = cache.core().config().geometry;
        let refiller = cache.refiller()?;
        let first = usize::try_from(geometry.first_bucket().0).unwrap_or(usize::MAX);
        let buckets = (0u64..).map(BucketIndex).zip(self.table.as_slice()).skip(first);
        let buckets = buckets.map(|(number, it)| (number, it.prio(), it.bucket_gen()));
        refiller.take_over(buckets, self.kept)?;
        refiller.set_prio_chain(&self.chain, self.prio_seq);
        Ok(RunningCache {
            device: block_device,
            geometry,
            magic: self.superblock.set_magic(),
            superblock: self.superblock,
            journal: Mutex::new(self.journal),
        })
    }
}

/// What the set's keys, its journal and its uuid table say of the buckets. The prio chain is not among
/// it: it moves.
fn kept(set: &CacheSet<'_>) -> Vec<Kept> {
    let buckets = (0u64..).map(BucketIndex).zip(set.table.as_slice());
    let buckets = buckets.filter(|(number, _)| set.geometry().contains(*number));
    let mut chain = set.prios.buckets.clone();
    chain.sort_unstable();
    let mut metadata: Vec<BucketIndex> = set.cache.journal_buckets();
    metadata.extend(set.uuids.bucket);
    metadata.sort_unstable();
    let kept = buckets.map(|(number, bucket)| {
        let is_metadata = metadata.binary_search(&number).is_ok() || set.table.is_node(number);
        let mark = match bucket.mark() {
            _ if chain.binary_search(&number).is_ok() => Mark::None,
            _ if is_metadata => Mark::Metadata,
            GcMark::Unused => Mark::None,
            GcMark::Reclaimable => Mark::Reclaimable,
            GcMark::Dirty => Mark::Dirty,
            GcMark::Metadata => Mark::Metadata,
        };
        // Markers of freed btree nodes carry a gen as pointers do.
        let span = bucket.gen_span().max(set.table.freed_node_span(number));
        Kept {
            bucket: number,
            bucket_gen: bucket.bucket_gen(),
            oldest_gen: Gen(bucket.bucket_gen().0.wrapping_sub(span)),
            mark,
            sectors_used: bucket.sectors_used(),
            pinned: matches!(mark, Mark::Dirty | Mark::Metadata) || bucket.pinned(),
        }
    });
    kept.filter(Kept::says_something).collect()
}

/// The journal that goes on from the set's, with the keys of its replay range.
fn journal_after(set: &CacheSet<'_>) -> Result<JournalWriter, InUseError> {
    let seq = set.journal.newest().map_or(0, |entry| entry.jset.seq());
    let none = || InUseError::NoSuccessor { seq };
    let places = set.journal.append_places(&set.cache).ok_or_else(none)?;
    let keys = set.overlay.extents();
    let (geometry, magic) = (set.geometry(), set.cache.magic());
    let device = set.cache.superblock().nr_this_dev();
    let journal = JournalWriter::after(&set.journal, &places, geometry, magic, device, keys);
    let mut journal = journal.ok_or_else(none)?;
    let full = |next| InUseError::JournalFull { keys: keys.len(), next };
    if !journal.has_room_for_ever() {
        return Err(full(None));
    }
    // What does not depend on where the next chain will be.
    let head = set.prios.buckets.first().copied().unwrap_or_default();
    let group = journal.next_group(head).map_err(|_| full(places.next_bucket.err()))?;
    rehearse(set, &group)?;
    Ok(journal)
}

/// Refuses a group of entries that the kernel would not see as it is meant, before anything is written:
/// see [`commit::rehearse`].
fn rehearse(set: &CacheSet<'_>, group: &[NewEntry]) -> Result<(), InUseError> {
    let at = |new: &NewEntry| {
        let index = usize::try_from(new.place.0).unwrap_or(usize::MAX);
        let bucket = set.journal.buckets.get(index).map_or(BucketIndex(0), |it| it.bucket);
        let place = JournalPlace { index, bucket, offset: new.place.1 };
        JournalEntry { place, jset: new.entry.clone() }
    };
    let entries: Vec<_> = group.iter().map(at).collect();
    let Some((newest, before)) = entries.split_last() else { return Ok(()) };
    let steps: Vec<Step> =
        entries.iter().map(|entry| commit::entry_write(set, &entry.jset, &entry.place)).collect();
    match commit::rehearse(set, steps.iter(), &newest.jset, &newest.place, before) {
        Rehearsal::AsPlanned => Ok(()),
        Rehearsal::Otherwise { found } => {
            Err(InUseError::JournalHidesEntries { planned: newest.jset.seq(), found })
        }
        Rehearsal::Unreadable(problem) => Err(InUseError::Journal(problem)),
        Rehearsal::NoCache(error) => Err(InUseError::Open(error)),
    }
}
