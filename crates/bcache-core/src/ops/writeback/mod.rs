//! Writing dirty data back to the backing devices, of a cache set that the kernel does not run.
//!
//! Order of the writes, and what a power cut leaves:
//!
//! 1. dirty extents are copied to the backing devices, each of which is then flushed and, on request,
//!    compared. The cache still says that they are dirty and answers for them: a backing device differs
//!    from before only where nobody reads it. Writing them once more changes nothing.
//! 2. new metadata, in which the extents are clean, is made current (see [`rebuild`]). The old state or
//!    the new one. A backing device that still says it is dirty is set clean by the kernel.
//! 3. the backing superblocks are set clean, each in one write of which only the first sector changes.
//!    Not before: a device that says it is clean is never written back to by the kernel.
//!
//! Detaching goes on from there: metadata without the volumes and their slots in the uuid table is made
//! current, and then the backing superblocks say that they belong to no set. In between a backing
//! device is clean and unknown to the cache, which the kernel and these tools both take for what it is.
//!
//! Where too few buckets are unused for new metadata, clean ones are invalidated first, as a commit of
//! its own; where there are no clean ones either, the journal alone makes the extents clean.
//!
//! So each step can be repeated, and the command run again completes it from any cut.

mod backing;
mod copy;
mod error;
mod journal;
mod mendable;
mod run;

pub use error::{BackingRefusal, CopyError, WritebackError, WritebackRunError, WritebackState};
pub use journal::JournalPlan;
pub use run::{WritebackDone, WritebackProgress, run, run_with_undo};

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use uuid::Uuid;

use crate::cache_set::{BucketProblem, CacheSet, Found, KeyState, Problem, Progress, ReadOptions};
use crate::device::ReadDevice;
use crate::inspect::{Apart, find_slot};
use crate::layout::bkey::Bkey;
use crate::layout::superblock::{BackingState, Label, Superblock};
use crate::layout::uuid_entry::{DETACHED_UUID, UuidEntry};
use crate::ops::invalidate::{self, Unsound};
use crate::ops::plan::Step;
use crate::ops::rebuild::{
    self, Extents, ExtentsError, KeptExtents, PrepareError, RebuildError, RebuildPlan,
};
use crate::units::Sectors;
use backing::Dirty;

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Uuids, labels or slots of the volumes; all whose backing device is given where there is none.
    pub volumes: Vec<String>,
    /// Whether the volumes are detached from the set afterwards.
    pub detach: bool,
    /// Whether backing devices are written that were detached from the cache, or were run without it
    /// (states none and inconsistent). Where the cache holds dirty data, it replaces what was written
    /// to them since. Such devices can only be detached: what the cache holds clean of them is old.
    pub ran_alone: bool,
    /// Whether all that was copied is read back and compared.
    pub verify: bool,
    /// The time, in seconds since 1970: when volumes were detached.
    pub seconds: u32,
    /// What the sequence numbers of new nodes follow from: another number each time.
    pub seed: u64,
    /// How to read the cache set.
    pub read: ReadOptions,
}

/// A volume that is written back.
#[derive(Clone, Debug)]
pub struct VolumePlan {
    /// Its slot; `None` where the cache no longer knows it, and only its superblock is left to do.
    pub slot: Option<u32>,
    /// Its backing device, counted in the order in which they were given.
    pub backing: usize,
    /// Uuid of the backing device.
    pub uuid: Uuid,
    /// Its label.
    pub label: Label,
    /// What the backing device says of itself.
    pub state: BackingState,
    /// Sectors to be copied.
    pub dirty_sectors: Sectors,
    /// Extents that they lie in.
    pub dirty_extents: u64,
    was_registered_since: bool,
    superblock: Superblock,
}

impl VolumePlan {
    /// Whether what is written replaces what may be newer: the device was detached from the cache with
    /// this data in it, or was run without the cache, or was registered after the cache was last there.
    pub fn may_be_newer(&self) -> bool {
        let ran_alone = matches!(self.state, BackingState::None | BackingState::Stale);
        self.dirty_sectors.0 > 0 && (ran_alone || self.was_registered_since)
    }
}

/// A volume whose dirty data stays in the cache.
#[derive(Clone, Debug)]
pub struct KeptVolume {
    /// Its slot.
    pub slot: u32,
    /// Uuid of its backing device or of the volume; nil where the uuid table does not tell.
    pub uuid: Uuid,
    /// Whether it has no backing device.
    pub flash_only: bool,
    /// Dirty sectors.
    pub dirty_sectors: Sectors,
}

/// How the cache is made clean.
#[derive(Debug)]
pub enum Method {
    /// It is clean already.
    Nothing,
    /// New metadata.
    Rebuild(Box<RebuildPlan>),
    /// So many buckets with clean data are invalidated first, the coldest; then it is planned again.
    InvalidateFirst {
        /// How many.
        buckets: u64,
    },
    /// Entries in the journal: no bucket can be had.
    Journal(JournalPlan),
}

/// A writeback that is decided and not carried out.
#[derive(Debug)]
pub struct WritebackPlan<'d> {
    set: CacheSet<'d>,
    /// The volumes that are written back, by backing device.
    pub volumes: Vec<VolumePlan>,
    /// Volumes with dirty data that are not.
    pub kept: Vec<KeptVolume>,
    /// How the cache is made clean.
    pub method: Method,
    /// Whether volumes are detached once they are clean.
    pub detach: bool,
}

impl<'d> WritebackPlan<'d> {
    /// The cache set as it was read.
    pub const fn set(&self) -> &CacheSet<'d> {
        &self.set
    }

    /// Sectors that are copied.
    pub fn dirty_sectors(&self) -> Sectors {
        self.volumes.iter().fold(Sectors(0), |sum, volume| sum + volume.dirty_sectors)
    }

    /// Whether there is nothing to write at all.
    pub fn is_empty(&self) -> bool {
        matches!(self.method, Method::Nothing)
            && self.volumes.iter().all(|volume| match volume.state {
                BackingState::None => true,
                BackingState::Clean => !self.detach,
                BackingState::Dirty | BackingState::Stale => false,
            })
    }

    /// Tells the writes to the cache that make it clean, in their order: what the run does between the
    /// copies and the backing superblocks. Where room is made first, they are not known yet.
    pub fn cache_steps(
        &self,
        options: &Options,
        sink: &mut dyn FnMut(Step),
    ) -> Result<(), ExtentsError> {
        match &self.method {
            Method::Nothing | Method::InvalidateFirst { .. } => {}
            Method::Rebuild(rebuild) => {
                let source = self.source(options);
                rebuild
                    .prepare(&self.set, &source, &mut |step| {
                        sink(step);
                        Ok::<(), std::convert::Infallible>(())
                    })
                    .map_err(|error| match error {
                        PrepareError::Extents(error) => error,
                        PrepareError::Sink(never) => match never {},
                    })?;
                rebuild.commit(&self.set).steps.into_iter().for_each(&mut *sink);
                rebuild.tidy(&self.set).steps.into_iter().for_each(sink);
            }
            Method::Journal(journal) => journal.plan.steps.iter().cloned().for_each(sink),
        }
        Ok(())
    }

    fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.volumes.iter().filter_map(|volume| volume.slot)
    }

    /// The extents of the new btree.
    fn source<'s>(&'s self, options: &Options) -> KeptExtents<'s, 'd> {
        source(&self.set, options, self.slots(), self.is_detaching())
    }

    /// Whether this is the second step of detaching: all is clean.
    fn is_detaching(&self) -> bool {
        self.detach && is_clean(&self.volumes)
    }
}

/// A device that was run alone stays inconsistent until it is detached. Called clean, it would be
/// attached again, and the old clean data of the cache would be read in place of its own.
fn is_clean(volumes: &[VolumePlan]) -> bool {
    volumes.iter().all(|it| it.dirty_sectors.0 == 0 && it.state != BackingState::Dirty)
}

/// Plans the writeback from `cache` to `backing`, or refuses it.
pub fn plan<'d>(
    cache: &'d dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<WritebackPlan<'d>, WritebackError> {
    let mut may_be_mended = false;
    let set = read_set(cache, &options.read, progress, &mut may_be_mended)?;
    if may_be_mended {
        mendable::refuse(cache, backing, &options.read, progress)?;
    }
    plan_for(set, backing, options)
}

/// The same for a set that was read.
fn plan_for<'d>(
    set: CacheSet<'d>,
    backing: &[&dyn ReadDevice],
    options: &Options,
) -> Result<WritebackPlan<'d>, WritebackError> {
    let dirty = dirty_of(&set, options)?;
    let wanted = wanted_slots(&set, &options.volumes)?;
    let mut volumes: Vec<VolumePlan> = Vec::new();
    let mut seen: BTreeMap<Uuid, usize> = BTreeMap::new();
    for (index, device) in backing.iter().enumerate() {
        let refused = |reason| WritebackError::Backing { path: device.info().path.clone(), reason };
        let sb = backing::superblock(*device).map_err(refused)?;
        if let Some(first) = seen.insert(sb.uuid(), index) {
            let first = backing.get(first).map(|it| it.info().path.clone()).unwrap_or_default();
            return Err(refused(BackingRefusal::Repeated { first }));
        }
        let ran_alone = options.ran_alone && options.detach;
        let slot = backing::slot_of(&set, &sb, ran_alone).map_err(refused)?;
        if slot.is_none() && !options.detach {
            let unknown = BackingRefusal::Unknown { uuid: sb.uuid() };
            return Err(refused(BackingRefusal::of_state(sb.state()).unwrap_or(unknown)));
        }
        let is_wanted = slot.is_none_or(|slot| wanted.as_ref().is_none_or(|it| it.contains(&slot)));
        if !is_wanted {
            continue;
        }
        let its = slot.and_then(|slot| dirty.get(&slot)).copied().unwrap_or_default();
        backing::fits(*device, &sb, &its).map_err(refused)?;
        let apart = slot.map(|slot| Apart::of(&set, slot, *device, &sb)).unwrap_or_default();
        backing::are_of_one_time(&apart, ran_alone).map_err(refused)?;
        volumes.push(VolumePlan {
            slot,
            backing: index,
            uuid: sb.uuid(),
            label: sb.label(),
            state: sb.state(),
            dirty_sectors: Sectors(its.sectors),
            dirty_extents: its.extents,
            was_registered_since: apart.since.is_some(),
            superblock: sb,
        });
    }
    for &slot in wanted.iter().flatten() {
        if !volumes.iter().any(|volume| volume.slot == Some(slot)) {
            let uuid = set.uuids.get(slot).map(|entry| entry.uuid).unwrap_or_default();
            return Err(WritebackError::NotGiven { slot, uuid });
        }
    }
    let kept = dirty
        .iter()
        .filter(|(slot, _)| !volumes.iter().any(|volume| volume.slot == Some(**slot)))
        .map(|(&slot, dirty)| {
            let entry = set.uuids.get(slot);
            KeptVolume {
                slot,
                uuid: entry.map(|entry| entry.uuid).unwrap_or_default(),
                flash_only: entry.is_some_and(UuidEntry::flash_only),
                dirty_sectors: Sectors(dirty.sectors),
            }
        })
        .collect();
    let method = method(&set, &volumes, options)?;
    Ok(WritebackPlan { set, volumes, kept, method, detach: options.detach })
}

fn method(
    set: &CacheSet<'_>,
    volumes: &[VolumePlan],
    options: &Options,
) -> Result<Method, WritebackError> {
    let slots = || volumes.iter().filter_map(|volume| volume.slot);
    let detaching = options.detach && is_clean(volumes) && slots().next().is_some();
    let has_dirty = volumes.iter().any(|volume| volume.dirty_sectors.0 > 0);
    if !has_dirty && !detaching {
        return Ok(Method::Nothing);
    }
    let uuids = detaching.then(|| {
        let mut table = set.uuids.slots.clone();
        for slot in slots() {
            if let Some(entry) = usize::try_from(slot).ok().and_then(|slot| table.get_mut(slot)) {
                entry.uuid = DETACHED_UUID;
                entry.invalidated = options.seconds;
                entry.flags = 0;
            }
        }
        table
    });
    let source = source(set, options, slots(), detaching);
    let too_few = match rebuild::plan(set, &source, uuids, options.seed) {
        Ok(plan) => return Ok(Method::Rebuild(Box::new(plan))),
        Err(error @ RebuildError::TooFewUnused { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    let RebuildError::TooFewUnused { needed, found, clean } = too_few else {
        return Err(too_few.into());
    };
    let prio_sets = set.geometry().prio_buckets();
    // The invalidation takes a chain's buckets, and gives back those of the old chain.
    if found >= prio_sets && found.saturating_add(clean) >= needed {
        let buckets = (needed - found).saturating_add(prio_sets).min(clean);
        return Ok(Method::InvalidateFirst { buckets });
    }
    if detaching {
        return Err(RebuildError::TooFewUnused { needed, found, clean }.into());
    }
    let source = OnlyMadeClean { source, slots: slots().collect(), set, options };
    Ok(Method::Journal(journal::plan(set, &source)?))
}

fn source<'s, 'd>(
    set: &'s CacheSet<'d>,
    options: &Options,
    slots: impl Iterator<Item = u32>,
    detaching: bool,
) -> KeptExtents<'s, 'd> {
    let kept = KeptExtents::new(set, options.read.walk);
    if detaching { kept.without(slots) } else { kept.made_clean(slots) }
}

/// Of the extents of a new btree only those that differ from the old one's: they were dirty.
struct OnlyMadeClean<'s, 'd> {
    source: KeptExtents<'s, 'd>,
    slots: BTreeSet<u32>,
    set: &'s CacheSet<'d>,
    options: &'s Options,
}

impl Extents for OnlyMadeClean<'_, '_> {
    fn for_each(
        &self,
        found: &mut dyn FnMut(&Bkey) -> ControlFlow<()>,
    ) -> Result<(), ExtentsError> {
        // Both give the same extents in the same order.
        let was_dirty = KeptExtents::new(self.set, self.options.read.walk);
        let mut dirty = Vec::new();
        was_dirty.for_each(&mut |key| {
            if key.dirty() && self.slots.contains(&key.inode()) {
                dirty.push(key.pos());
            }
            ControlFlow::Continue(())
        })?;
        let mut dirty = dirty.into_iter().peekable();
        self.source.for_each(&mut |key| {
            if dirty.next_if_eq(&key.pos()).is_some() {
                found(key)
            } else {
                ControlFlow::Continue(())
            }
        })
    }
}

/// Dirty data of each slot.
fn dirty_of(set: &CacheSet<'_>, options: &Options) -> Result<BTreeMap<u32, Dirty>, WritebackError> {
    let mut dirty: BTreeMap<u32, Dirty> = BTreeMap::new();
    let mut failed = None;
    set.for_each_extent(&options.read.walk, &mut |found| match found {
        Found::Extent { key, state: KeyState::Valid, .. } => {
            if key.dirty() {
                dirty.entry(key.inode()).or_default().add(key.start(), key.offset());
            }
            ControlFlow::Continue(())
        }
        Found::Extent { .. } => ControlFlow::Continue(()),
        Found::Missing(it) => {
            failed = Some(ExtentsError::Missing { to: it.to, bucket: it.bucket, error: it.error });
            ControlFlow::Break(())
        }
        Found::OutOfOrder { key, end } => {
            failed = Some(ExtentsError::OutOfOrder { key: *key, end });
            ControlFlow::Break(())
        }
    });
    failed.map_or(Ok(dirty), |error| Err(error.into()))
}

/// The slots of the volumes that were named; `None` where none was.
fn wanted_slots(
    set: &CacheSet<'_>,
    names: &[String],
) -> Result<Option<BTreeSet<u32>>, WritebackError> {
    if names.is_empty() {
        return Ok(None);
    }
    let mut wanted = BTreeSet::new();
    for name in names {
        let slot = find_slot(set, name)?;
        if set.uuids.get(slot).is_some_and(UuidEntry::flash_only) {
            return Err(WritebackError::FlashOnly { slot });
        }
        wanted.insert(slot);
    }
    Ok(Some(wanted))
}

/// Reads a cache set in which nothing is wrong that stands in the way. `may_be_mended` becomes true where
/// something is that a repair may have an answer to.
fn read_set<'d>(
    device: &'d dyn ReadDevice,
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
    may_be_mended: &mut bool,
) -> Result<CacheSet<'d>, WritebackError> {
    let may_be_mended = Cell::from_mut(may_be_mended);
    // A dirty key that is stale, with nothing newer for its sectors: the cache holds data that the
    // kernel no longer shows, or its gens are wrong.
    let lost = |problem: &Problem| {
        may_be_mended.set(may_be_mended.get() || mendable::may_be(problem));
        matches!(problem, Problem::Bucket(BucketProblem::StaleDirty { superseded: false, .. }))
    };
    let path = || device.info().path.clone();
    invalidate::read_sound(device, options, progress, &lost).map_err(|unsound| match unsound {
        Unsound::NoCache(source) => WritebackError::NoCache { path: path(), source },
        Unsound::KernelRefuses(refusal) => WritebackError::KernelRefuses { path: path(), refusal },
        Unsound::Damaged { first, count } => WritebackError::Damaged { path: path(), first, count },
        Unsound::JournalGap(gap) => WritebackError::JournalGap { path: path(), gap },
    })
}
