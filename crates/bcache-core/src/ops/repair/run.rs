//! Carrying a repair out.

use std::collections::BTreeSet;

use super::{Code, NotAnew, RepairError, RepairPlan, anew, owners, read, verdict};
use crate::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions, expect_superblock};
use crate::device::{BlockDevice, ReadDevice};
use crate::ops::plan::{ApplyError, Plan, apply};
use crate::ops::planned::PlannedDevice;
use crate::ops::rebuild::{self, CommitError, Contents, ExtentsError, KeptExtents};
use crate::ops::undo::{self, SaveError, Saving, StepSink, UndoLog, Watch};
use crate::ops::verify::{VerifyError, verify};

/// Why a plan was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RepairRunError {
    /// A write or flush failed. The changes before it are made, and each stands by itself.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// What was written does not read back.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The set, read again, is not as planned.
    #[error("the cache set still has {found} problems, {expected} were expected")]
    Proof {
        /// Problems now.
        found: usize,
        /// Problems that were to be left.
        expected: usize,
    },
    /// The set could not be read again.
    #[error("the cache set could not be read again")]
    Reread(#[source] RepairError),
    /// The new metadata is not what was planned: the device changed, or fails.
    #[error("the cache set reads differently than when the repair was planned")]
    Changed,
    /// What would be overwritten could not be saved.
    #[error("what would be overwritten could not be saved")]
    Undo(#[source] SaveError),
    /// The new btree could not be read again.
    #[error("the new btree could not be read again")]
    Extents(#[source] ExtentsError),
    /// The new metadata could not be planned again.
    #[error("new metadata could not be planned again")]
    Again(#[source] NotAnew),
    /// The new metadata could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The new btree, read again, holds something else.
    #[error("the new btree holds {found:?}, expected {expected:?}")]
    Contents {
        /// What it holds.
        found: Contents,
        /// What it was to hold.
        expected: Contents,
    },
}

/// Carries out the certain changes of `plan` and those of `accepted`, on the devices that it was made from,
/// claimed by this process. The same can be planned and run again, whatever failed.
pub fn run(
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
    cache: &dyn BlockDevice,
    backing: &[&dyn BlockDevice],
    options: &ReadOptions,
    seed: u64,
) -> Result<(), RepairRunError> {
    run_with_undo(plan, accepted, None, cache, backing, options, seed)
}

/// The same, where what is overwritten is saved to `undo` first.
pub fn run_with_undo(
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
    undo: Option<&UndoLog>,
    cache: &dyn BlockDevice,
    backing: &[&dyn BlockDevice],
    options: &ReadOptions,
    seed: u64,
) -> Result<(), RepairRunError> {
    if plan.is_nothing(accepted) {
        return Ok(());
    }
    let (single, superblock) = (plan.part(accepted, None, false), plan.part(accepted, None, true));
    let mended = PlannedDevice::new(&cache, single.steps.iter().chain(&superblock.steps));
    let ready = match &plan.anew {
        Some(anew) if plan.is_anew_accepted(accepted) => {
            // Planned once more, for this process alone has the device since.
            let sb =
                expect_superblock(&mended).map_err(|error| RepairRunError::Reread(error.into()))?;
            let named: Vec<&dyn ReadDevice> =
                backing.iter().map(|device| device as &dyn ReadDevice).collect();
            let owners = owners(&named, sb.set_uuid())
                .map_err(|error| RepairRunError::Reread(error.into()))?;
            let ready = anew::decide(&mended, &owners, &plan.claims, options, seed, &mut |_| {})
                .map_err(RepairRunError::Again)?;
            if ready.anew != *anew {
                return Err(RepairRunError::Changed);
            }
            Some(ready)
        }
        _ => None,
    };
    let of_backing: Vec<Plan> =
        (0..backing.len()).map(|index| plan.steps(accepted, Some(index))).collect();
    if let Some(undo) = undo {
        let of_cache = |sink: StepSink<'_>| {
            single.steps.iter().try_for_each(&mut *sink)?;
            if let Some(ready) = &ready {
                ready.steps(&mut |step| sink(&step))?;
            }
            superblock.steps.iter().try_for_each(sink)
        };
        let watch = Watch::of_device(&mended);
        let of_cache = Saving { device: &cache, watch, steps: &of_cache };
        save(undo, Some(of_cache), backing, &of_backing)?;
    }
    write(&single, cache)?;
    let contents = match &ready {
        Some(ready) => {
            rebuild::write(&ready.plan, &ready.set, &ready.source(), cache, &mut |_| {})?;
            Some(ready.plan.contents)
        }
        None => None,
    };
    write(&superblock, cache)?;
    for (steps, device) in of_backing.iter().zip(backing) {
        write(steps, *device)?;
    }
    if plan.accepted(accepted).count() < plan.fixes.len() {
        return Ok(());
    }
    if let Some(expected) = contents {
        prove(&cache, &expected, options)?;
    }
    let after = read(&cache, &[], options, &mut |_| {}).map_err(RepairRunError::Reread)?;
    let sb = expect_superblock(&cache).map_err(|error| RepairRunError::Reread(error.into()))?;
    let expected = plan.left_with(accepted).filter(|left| left.is_counted()).count();
    let found = after.left(&verdict(&cache, &sb)).iter().filter(|left| left.is_counted()).count();
    if found == expected { Ok(()) } else { Err(RepairRunError::Proof { found, expected }) }
}

/// Carries out a plan of backing devices alone, as [`run_with_undo`] does.
pub fn run_backing(
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
    undo: Option<&UndoLog>,
    backing: &[&dyn BlockDevice],
) -> Result<(), RepairRunError> {
    let of_backing: Vec<Plan> =
        (0..backing.len()).map(|index| plan.steps(accepted, Some(index))).collect();
    if let Some(undo) = undo {
        save(undo, None, backing, &of_backing)?;
    }
    of_backing.iter().zip(backing).try_for_each(|(steps, device)| write(steps, *device))
}

/// Writes what a plan says, and reads it back.
fn write(steps: &Plan, device: &dyn BlockDevice) -> Result<(), RepairRunError> {
    apply(steps, device, &mut |_| {})?;
    Ok(verify(steps, device)?)
}

/// Saves what the steps of all devices overwrite.
fn save(
    undo: &UndoLog,
    cache: Option<Saving<'_>>,
    backing: &[&dyn BlockDevice],
    of_backing: &[Plan],
) -> Result<(), RepairRunError> {
    let sources: Vec<_> =
        of_backing.iter().map(|plan| undo::steps_of(|| Box::new(plan.steps.iter()))).collect();
    let mut parts: Vec<Saving<'_>> = cache.into_iter().collect();
    for ((device, plan), steps) in backing.iter().zip(of_backing).zip(&sources) {
        if !plan.steps.is_empty() {
            parts.push(Saving { device, watch: Watch::Superblock, steps });
        }
    }
    undo.save(&parts).map_err(RepairRunError::Undo)
}

/// Reads the new btree.
fn prove(
    cache: &dyn ReadDevice,
    expected: &Contents,
    options: &ReadOptions,
) -> Result<(), RepairRunError> {
    let path = || cache.info().path.clone();
    let opened = CacheDevice::open(cache)
        .map_err(|source| RepairRunError::Reread(RepairError::NoCache { path: path(), source }))?;
    let set = CacheSet::read(opened, options, &mut NoVisitor)
        .map_err(|source| RepairRunError::Reread(RepairError::NotRead { path: path(), source }))?;
    let all = KeptExtents::new(&set, options.walk);
    let (_, found) = rebuild::survey(&set, &all, false).map_err(RepairRunError::Extents)?;
    if found == *expected {
        Ok(())
    } else {
        Err(RepairRunError::Contents { found, expected: *expected })
    }
}
