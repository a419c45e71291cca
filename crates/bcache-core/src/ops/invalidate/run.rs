//! Carrying an invalidation out, and proving that it has come to pass.

use crate::cache_set::{CacheSet, GcMark, Progress, ReadOptions};
use crate::device::{BlockDevice, DeviceError};
use crate::ops::commit::is_unchanged;
use crate::ops::invalidate::{InvalidatePlan, ProofError, RunError, TrustedSet, Writes};
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

/// Writes what `plan` says to the device that `open` claims, and proves the result.
///
/// `open` gives the device that the plan was made from, for writing and for this process alone. A
/// plan without writes does nothing. [`RunError::state`] says what an error leaves.
pub fn run<D: BlockDevice>(
    plan: &InvalidatePlan<'_>,
    options: &ReadOptions,
    open: impl FnOnce() -> Result<D, DeviceError>,
    progress: &mut dyn FnMut(RunProgress),
) -> Result<(), RunError> {
    run_with_undo(plan, options, None, open, progress)
}

/// The same, where what is overwritten is saved to `undo` first.
pub fn run_with_undo<D: BlockDevice>(
    plan: &InvalidatePlan<'_>,
    options: &ReadOptions,
    undo: Option<&UndoLog>,
    open: impl FnOnce() -> Result<D, DeviceError>,
    progress: &mut dyn FnMut(RunProgress),
) -> Result<(), RunError> {
    let Some(writes) = &plan.writes else { return Ok(()) };
    let device = open().map_err(RunError::Claim)?;
    if !is_unchanged(plan.set(), &device).map_err(RunError::Claim)? {
        return Err(RunError::Changed { path: device.info().path.clone() });
    }
    if let Some(undo) = undo {
        let steps = |sink: StepSink<'_>| plan.steps().try_for_each(|step| sink(&step));
        let watch = Watch::of_cache(&plan.set().cache);
        undo.save(&[Saving { device: &device, watch, steps: &steps }]).map_err(RunError::Undo)?;
    }
    let mut written = |bytes| progress(RunProgress::Written(bytes));
    let sets = || writes.sets(&plan.set, &plan.targets);
    let count = writes.sets_count();
    apply_each(sets(), count, &device, &mut written).map_err(RunError::Sets)?;
    verify_each(sets(), count, &device).map_err(RunError::VerifySets)?;
    apply(&writes.commit, &device, &mut written).map_err(RunError::Commit)?;
    verify(&writes.commit, &device).map_err(RunError::VerifyCommit)?;
    let mut proving = |at| progress(RunProgress::Proving(at));
    let result = TrustedSet::read(&device, options, &mut proving).map_err(RunError::Reread)?;
    prove(plan, writes, result.set()).map_err(RunError::Proof)
}

/// Compares the cache set as it is now with what it was and what was planned.
fn prove(
    plan: &InvalidatePlan<'_>,
    writes: &Writes,
    after: &CacheSet<'_>,
) -> Result<(), ProofError> {
    let before = plan.set();
    let (old, new) = match (before.journal.newest(), after.journal.newest()) {
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
    prove_buckets(plan, writes, after)?;
    prove_volumes(plan, after)
}

fn prove_buckets(
    plan: &InvalidatePlan<'_>,
    writes: &Writes,
    after: &CacheSet<'_>,
) -> Result<(), ProofError> {
    let before = plan.set();
    // In the order of the buckets, so that they can be passed along with them.
    let sorted = |chain: &[BucketIndex]| {
        let mut chain = chain.to_vec();
        chain.sort_unstable();
        chain.into_iter().peekable()
    };
    let (mut old_chain, mut new_chain) = (sorted(&before.prios.buckets), sorted(&writes.chain));
    let all = (0u64..).map(BucketIndex).zip(before.table.as_slice()).zip(after.table.as_slice());
    for ((number, old), new) in all {
        let is_target = plan.is_target(number);
        let expected = if is_target { old.bucket_gen().next() } else { old.bucket_gen() };
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

fn prove_volumes(plan: &InvalidatePlan<'_>, after: &CacheSet<'_>) -> Result<(), ProofError> {
    let survey = &plan.survey;
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
