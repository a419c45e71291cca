//! Carrying a rebuild out.

use crate::cache_set::CacheSet;
use crate::device::BlockDevice;
use crate::ops::commit::is_unchanged;
use crate::ops::plan::{ApplyError, Plan, Step, apply};
use crate::ops::rebuild::{CommitError, Extents, PrepareError, RebuildPlan};
use crate::ops::verify::{VerifyError, verify};

/// Writes what `plan` says to `device`, the one that `set` was read from, claimed by this process.
///
/// `progress` is told of bytes written and read back. [`CommitError::state`] says what an error
/// leaves.
pub fn run(
    plan: &RebuildPlan,
    set: &CacheSet<'_>,
    source: &dyn Extents,
    device: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64),
) -> Result<(), CommitError> {
    if !is_unchanged(set, &device).map_err(CommitError::Device)? {
        return Err(CommitError::Changed);
    }
    write(plan, set, source, device, progress)
}

/// The same of a device that this process has claimed since `set` was read.
pub(in crate::ops) fn write(
    plan: &RebuildPlan,
    set: &CacheSet<'_>,
    source: &dyn Extents,
    device: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64),
) -> Result<(), CommitError> {
    let mut written = 0;
    let mut write = |step: Step| -> Result<(), ApplyError> {
        let steps = Plan { steps: vec![step] };
        let result = apply(&steps, device, progress);
        written += 1;
        // Only buckets that nothing points to were written before: what counts is this step.
        result.map_err(|error| ApplyError { step: written - 1, steps: written, ..error })
    };
    plan.prepare(set, source, &mut write).map_err(|error| match error {
        PrepareError::Extents(error) => CommitError::Extents(error),
        PrepareError::Sink(error) => CommitError::Write(error),
    })?;
    let mut read_back = |step: Step| -> Result<(), VerifyError> {
        let steps = Plan { steps: vec![step] };
        verify(&steps, device)?;
        progress(steps.progress_bytes());
        Ok(())
    };
    plan.prepare(set, source, &mut read_back).map_err(|error| match error {
        PrepareError::Extents(error) => CommitError::Extents(error),
        PrepareError::Sink(error) => CommitError::Verify(error),
    })?;
    let commit = plan.commit(set);
    apply(&commit, device, progress).map_err(CommitError::Commit)?;
    verify(&commit, device).map_err(CommitError::VerifyCommit)?;
    apply(&plan.tidy(set), device, progress).map_err(CommitError::Tidy)
}
