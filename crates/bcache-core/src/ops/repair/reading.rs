//! Reading the set, and what is wrong with it.

use crate::cache_set::{
    BucketProblem, CacheDevice, CacheSet, Problem, Progress, ReadError, ReadOptions, Visitor,
};
use crate::device::ReadDevice;
use crate::layout::verdict::{Verdict, Warning};
use crate::ops::invalidate::blocks;
use crate::ops::planned::PlannedDevice;
use crate::ops::repair::bits::{self, FoundFlip};
use crate::ops::repair::{Fix, Left, RepairError, left};
use crate::units::Sectors;

/// Problems that are kept, at most.
const PROBLEMS_MAX: usize = 4096;

/// Of these, problems of which each key can have one.
const PROBLEMS_WITH_KEYS_MAX: usize = 1024;

/// What a reading found.
pub(super) struct Reading {
    pub(super) problems: Vec<Problem>,
    /// Bits whose flipping explains problems.
    pub(super) flips: Vec<FoundFlip>,
    pub(super) dirty_sectors: Option<Sectors>,
    pub(super) uuids: Vec<uuid::Uuid>,
    /// What single changes and new metadata have no answer to.
    pub(super) stays: Vec<Problem>,
    /// Clean data of flash-only volumes.
    pub(super) flash_clean: Vec<(u32, Sectors)>,
    /// Why there is no set.
    pub(super) no_set: Option<ReadError>,
}

impl Reading {
    pub(super) fn left(self, verdict: &Verdict) -> Vec<Left> {
        let no_set = self.no_set.filter(|_| self.problems.is_empty());
        let refused = verdict.refusal.map(Left::Superblock);
        let problems = self.problems.into_iter().chain(self.stays).map(Left::of);
        let hazards = verdict.warnings.iter().copied().filter(Warning::is_hazard).map(Left::Hazard);
        let flash_clean =
            self.flash_clean.into_iter().map(|(slot, clean)| Left::FlashClean { slot, clean });
        let no_set = no_set.map(Left::NoSet);
        refused
            .into_iter()
            .chain(hazards)
            .chain(no_set)
            .chain(problems)
            .chain(flash_clean)
            .collect()
    }
}

/// Reads the set once, as it is with `fixes`.
pub(super) fn read(
    cache: &dyn ReadDevice,
    fixes: &[Fix],
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Reading, RepairError> {
    let path = || cache.info().path.clone();
    let device = PlannedDevice::new(cache, fixes.iter().map(|fix| &fix.step));
    let opened = CacheDevice::open(&device)
        .map_err(|source| RepairError::NoCache { path: path(), source })?;
    let mut watch = Seen::new(progress);
    let set = match CacheSet::read(opened.clone(), options, &mut watch) {
        Ok(set) => Ok(set),
        Err(error @ (ReadError::Unsynced | ReadError::NoJournal)) => Err(error),
        Err(source) => return Err(RepairError::NotRead { path: path(), source }),
    };
    let (set, no_set) = match set {
        Ok(set) => (Some(set), None),
        Err(error) => (None, Some(error)),
    };
    let in_the_way = |problem: &Problem| {
        blocks(problem)
            || match problem {
                // With nothing newer for its sectors: data that the kernel does not show any more.
                Problem::Bucket(BucketProblem::StaleDirty { superseded, .. }) => !superseded,
                Problem::Bucket(problem) => is_ownerless(problem),
                _ => false,
            }
    };
    let (problems, others): (Vec<Problem>, Vec<Problem>) =
        watch.problems.into_iter().partition(in_the_way);
    let (stays, others): (Vec<Problem>, Vec<Problem>) = others.into_iter().partition(left::stays);
    // Torn entries stand in nobody's way.
    let torn = others.iter().filter(|it| matches!(it, Problem::Journal(_)));
    let flips = problems.iter().chain(torn);
    let flips = flips.filter_map(|it| bits::explain(&opened, set.as_ref(), it)).collect();
    let uuids = set
        .iter()
        .flat_map(|set| set.uuids.used().map(|(_, entry)| entry.uuid).collect::<Vec<_>>())
        .collect();
    let flash_clean = set.iter().flat_map(CacheSet::flash_clean).collect();
    let dirty_sectors = set.map(|set| set.dirty_sectors());
    Ok(Reading { problems, flips, dirty_sectors, uuids, stays, flash_clean, no_set })
}

/// Whether a volume with dirty data is gone from the uuid table: a kernel leaves its slot in use.
pub(super) fn is_ownerless(problem: &BucketProblem) -> bool {
    matches!(problem, BucketProblem::NoVolume { key, .. } if key.dirty())
}

/// Keeps problems.
pub(super) struct Seen<'p> {
    pub(super) progress: &'p mut dyn FnMut(Progress),
    pub(super) problems: Vec<Problem>,
    /// Problems with keys: there can be one for each.
    with_keys: usize,
}

impl<'p> Seen<'p> {
    pub(super) fn new(progress: &'p mut dyn FnMut(Progress)) -> Self {
        Self { progress, problems: Vec::new(), with_keys: 0 }
    }
}

impl Visitor for Seen<'_> {
    fn wants_keys(&self) -> bool {
        false
    }

    fn progress(&mut self, progress: Progress) {
        (self.progress)(progress);
    }

    fn problem(&mut self, problem: Problem) {
        let is_one_of_many = match &problem {
            Problem::Bucket(BucketProblem::StaleDirty { .. }) => true,
            Problem::Bucket(problem) => is_ownerless(problem),
            _ => false,
        };
        self.with_keys += usize::from(is_one_of_many);
        let is_kept = !is_one_of_many || self.with_keys <= PROBLEMS_WITH_KEYS_MAX;
        if is_kept && self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}
