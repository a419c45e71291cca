//! Carrying an invalidation out, and proving that it has come to pass.

use crate::cache_set::{CacheSet, GcMark, Progress, ReadOptions};
use crate::device::{BlockDevice, DeviceError};
use crate::ops::commit::is_unchanged;
use crate::ops::invalidate::before::Before;
use crate::ops::invalidate::{
    Chosen, InvalidatePlan, ProofError, RunError, Survey, TrustedSet, Writes,
};
use crate::ops::plan::{apply, apply_each};
use crate::ops::undo::{Saving, StepSink, UndoLog, Watch};
use crate::ops::verify::{verify, verify_each};
use crate::units::{BucketIndex, Gen};

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunProgress {
    /// So many bytes more are written.
    Written(u64),
    /// The result is being read again.
    Proving(Progress),
}

/// What became of a plan, and what it was about.
#[derive(Debug)]
#[must_use]
pub struct Finished<'d> {
    /// The buckets, as they were before.
    pub chosen: Chosen<'d>,
    /// Whether they are invalidated, which was proven.
    pub result: Result<(), RunError>,
}

/// Writes what `plan` says to the device that `open` claims, and proves the result.
///
/// `open` gives the device that the plan was made from, for writing and for this process alone. A
/// plan without writes does nothing. [`RunError::state`] says what an error leaves.
pub fn run<'d, D: BlockDevice>(
    plan: InvalidatePlan<'d>,
    options: &ReadOptions,
    open: impl FnOnce() -> Result<D, DeviceError>,
    progress: &mut dyn FnMut(RunProgress),
) -> Finished<'d> {
    run_with_undo(plan, options, None, open, progress)
}

/// The same, where what is overwritten is saved to `undo` first.
pub fn run_with_undo<'d, D: BlockDevice>(
    plan: InvalidatePlan<'d>,
    options: &ReadOptions,
    undo: Option<&UndoLog>,
    open: impl FnOnce() -> Result<D, DeviceError>,
    progress: &mut dyn FnMut(RunProgress),
) -> Finished<'d> {
    let Some(writes) = plan.chosen.writes.clone() else {
        return Finished { chosen: plan.chosen, result: Ok(()) };
    };
    let written = write(&plan, &writes, undo, open, progress);
    // Whose data is where is for the plan alone, and takes memory.
    let InvalidatePlan { mut chosen, owners } = plan;
    drop(owners);
    let result = written.and_then(|device| prove(&mut chosen, &writes, &device, options, progress));
    Finished { chosen, result }
}

/// Writes, and reads back what was written; the device.
fn write<D: BlockDevice>(
    plan: &InvalidatePlan<'_>,
    writes: &Writes,
    undo: Option<&UndoLog>,
    open: impl FnOnce() -> Result<D, DeviceError>,
    progress: &mut dyn FnMut(RunProgress),
) -> Result<D, RunError> {
    let (set, chosen) = (plan.set(), &plan.chosen);
    let device = open().map_err(RunError::Claim)?;
    if !is_unchanged(set, &device).map_err(RunError::Claim)? {
        return Err(RunError::Changed { path: device.info().path.clone() });
    }
    if let Some(undo) = undo {
        let steps = |sink: StepSink<'_>| plan.steps().try_for_each(|step| sink(&step));
        let watch = Watch::of_cache(&set.cache);
        undo.save(&[Saving { device: &device, watch, steps: &steps }]).map_err(RunError::Undo)?;
    }
    let mut written = |bytes| progress(RunProgress::Written(bytes));
    let sets = || writes.sets(set, &chosen.targets);
    let count = writes.sets_count();
    apply_each(sets(), count, &device, &mut written).map_err(RunError::Sets)?;
    verify_each(sets(), count, &device).map_err(RunError::VerifySets)?;
    apply(&writes.commit, &device, &mut written).map_err(RunError::Commit)?;
    verify(&writes.commit, &device).map_err(RunError::VerifyCommit)?;
    Ok(device)
}

/// Reads the cache set again.
fn prove(
    chosen: &mut Chosen<'_>,
    writes: &Writes,
    device: &impl BlockDevice,
    options: &ReadOptions,
    progress: &mut dyn FnMut(RunProgress),
) -> Result<(), RunError> {
    let before = chosen.shrink().map_err(|error| RunError::Reread(error.into()))?;
    let mut proving = |at| progress(RunProgress::Proving(at));
    let after = TrustedSet::read(device, options, &mut proving).map_err(RunError::Reread);
    let proof = after
        .and_then(|after| compare(chosen, writes, &before, after.set()).map_err(RunError::Proof));
    chosen.before = Some(before);
    proof
}

/// Compares the cache set as it is now with what it was and what was planned.
fn compare(
    chosen: &Chosen<'_>,
    writes: &Writes,
    before: &Before,
    after: &CacheSet<'_>,
) -> Result<(), ProofError> {
    let set = chosen.set();
    let (old, new) = match (set.journal.newest(), after.journal.newest()) {
        (Some(old), Some(new)) => (&old.jset, &new.jset),
        (_, new) => {
            let found = new.map_or(0, |entry| entry.jset.seq());
            return Err(ProofError::Newest { expected: writes.journal_seq, found });
        }
    };
    if new.seq() != writes.journal_seq {
        return Err(ProofError::Newest { expected: writes.journal_seq, found: new.seq() });
    }
    let carried_on = old.last_seq() == new.last_seq()
        && old.uuid_bucket() == new.uuid_bucket()
        && old.btree_root() == new.btree_root()
        && old.btree_level() == new.btree_level()
        && old.version() == new.version();
    if !carried_on {
        return Err(ProofError::Header { seq: new.seq() });
    }
    if after.prios.buckets != writes.chain || after.prios.seq != writes.prio_seq {
        return Err(ProofError::Chain);
    }
    compare_buckets(chosen, writes, before, after)?;
    compare_volumes(&chosen.survey, after)
}

fn compare_buckets(
    chosen: &Chosen<'_>,
    writes: &Writes,
    before: &Before,
    after: &CacheSet<'_>,
) -> Result<(), ProofError> {
    // In the order of the buckets, so that they can be passed along with them.
    let sorted = |chain: &[BucketIndex]| {
        let mut chain = chain.to_vec();
        chain.sort_unstable();
        chain.into_iter().peekable()
    };
    let old_chain = &chosen.set().prios.buckets;
    let (mut old_chain, mut new_chain) = (sorted(old_chain), sorted(&writes.chain));
    let all = (0u64..).map(BucketIndex).zip(before.buckets()).zip(after.table.as_slice());
    for ((number, (old_gen, old)), new) in all {
        let is_target = chosen.is_target(number);
        let expected = if is_target { old_gen.next() } else { old_gen };
        if new.bucket_gen() != expected {
            let (Gen(expected), Gen(found)) = (expected, new.bucket_gen());
            return Err(ProofError::BucketGen { bucket: number, expected, found });
        }
        let in_old_chain = old_chain.next_if_eq(&number).is_some();
        let in_new_chain = new_chain.next_if_eq(&number).is_some();
        let expected = match old.mark() {
            _ if is_target => GcMark::Unused,
            GcMark::Unused if in_new_chain => GcMark::Metadata,
            GcMark::Metadata if in_old_chain => GcMark::Unused,
            mark => mark,
        };
        // What a newer pointer made stale after it was counted is stale from the start now that the
        // newer gen is in the prio set.
        let may_be_less = old.outgrown() && !is_target;
        if new.mark() != expected && !(may_be_less && new.mark() < expected) {
            return Err(ProofError::Mark { bucket: number, expected, found: new.mark() });
        }
        let sectors = if is_target { 0 } else { old.sectors_used() };
        if new.sectors_used() != sectors && !(may_be_less && new.sectors_used() < sectors) {
            return Err(ProofError::SectorsUsed {
                bucket: number,
                expected: sectors,
                found: new.sectors_used(),
            });
        }
    }
    Ok(())
}

fn compare_volumes(survey: &Survey, after: &CacheSet<'_>) -> Result<(), ProofError> {
    for (&slot, old) in &survey.cached {
        let taken = survey.taken.get(&slot).copied().unwrap_or_default();
        let found = after.volumes.get(&slot).copied().unwrap_or_default();
        let cached = old.cached_sectors - taken.cached_sectors;
        if found.cached_sectors != cached || found.dirty_sectors != old.dirty_sectors {
            return Err(ProofError::Volume {
                slot,
                expected_cached: cached.0,
                expected_dirty: old.dirty_sectors.0,
                found_cached: found.cached_sectors.0,
                found_dirty: found.dirty_sectors.0,
            });
        }
    }
    let unknown = after.volumes.iter().find(|(slot, _)| !survey.cached.contains_key(slot));
    match unknown {
        None => Ok(()),
        Some((&slot, found)) => Err(ProofError::Volume {
            slot,
            expected_cached: 0,
            expected_dirty: 0,
            found_cached: found.cached_sectors.0,
            found_dirty: found.dirty_sectors.0,
        }),
    }
}
