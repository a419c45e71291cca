//! Damage that does not keep the kernel from a set, and that a repair undoes for certain.
//!
//! A newest journal entry that is not whole is passed over, by the kernel and here. Where it was not torn
//! but damaged later, newer data may be in the cache for the same sectors. A volume whose slot is lost is
//! passed over, too, and the new metadata may overwrite the older table that tells whose it is.

use std::collections::BTreeSet;

use crate::cache_set::journal::JournalProblem;
use crate::cache_set::{BucketProblem, Problem, Progress, ReadOptions};
use crate::device::ReadDevice;
use crate::ops::repair;
use crate::ops::writeback::WritebackError;

/// Whether a repair may have an answer to `problem`, which does not stand in the way.
pub(super) fn may_be(problem: &Problem) -> bool {
    match problem {
        Problem::Journal(JournalProblem::Torn { .. }) => true,
        Problem::Bucket(BucketProblem::NoVolume { key, .. }) => key.dirty(),
        _ => false,
    }
}

/// Refuses a set that a repair would change without asking more than once.
pub(super) fn refuse(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), WritebackError> {
    // Where there is no plan, what is wrong with the devices is told later.
    let Ok(plan) = repair::plan(cache, backing, options, progress) else { return Ok(()) };
    let certain = BTreeSet::new();
    let fix = plan.accepted(&certain).find(|fix| fix.backing.is_none());
    let anew = plan.anew.as_ref().filter(|_| plan.is_anew_accepted(&certain));
    let what = fix
        .map(|fix| fix.place.to_string())
        .or_else(|| anew.and_then(|anew| anew.reasons.first()).map(ToString::to_string));
    match what {
        None => Ok(()),
        Some(what) => Err(WritebackError::Mendable { path: cache.info().path.clone(), what }),
    }
}
