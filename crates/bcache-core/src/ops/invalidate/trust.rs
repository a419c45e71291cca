//! Whether a cache set is sound enough to be written: read as the kernel would, with nothing wrong
//! that would make the kernel, or us, see something else than what is there.

use crate::cache_set::{
    BucketProblem, CacheDevice, CacheSet, OpenError, Problem, Progress, ReadOptions, Visitor,
};
use crate::device::ReadDevice;
use crate::ops::invalidate::InvalidateError;

/// A cache set that the kernel would register, and whose buckets' states are known for certain.
#[derive(Debug)]
pub struct TrustedSet<'d>(pub(super) CacheSet<'d>);

impl<'d> TrustedSet<'d> {
    /// Reads the cache set on `device`; refuses what the kernel would refuse.
    ///
    /// `progress` is told where the reading is.
    pub fn read(
        device: &'d dyn ReadDevice,
        options: &ReadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, InvalidateError> {
        let path = device.info().path.clone();
        let no_cache = |source: OpenError| InvalidateError::NoCache {
            path: path.clone(),
            source: source.into(),
        };
        let cache = CacheDevice::open(device).map_err(no_cache)?;
        if let Some(refusal) = cache.verdict().refusal {
            return Err(InvalidateError::KernelRefuses { path, refusal });
        }
        // The kernel accepts a partition that is too short.
        cache.is_whole().map_err(no_cache)?;
        let mut watch = Watch { progress, first: None, count: 0 };
        let set = CacheSet::read(cache, options, &mut watch);
        // What was wrong with the journal says more than that there is none.
        if let Some(first) = watch.first {
            return Err(InvalidateError::Damaged {
                path,
                first: Box::new(first),
                count: watch.count,
            });
        }
        let set = set.map_err(|source| InvalidateError::NoCache { path: path.clone(), source })?;
        // A gap that is no problem to the reader, for some kernels pass over it.
        match set.journal.gaps.first() {
            Some(&gap) => Err(InvalidateError::JournalGap { path, gap }),
            None => Ok(Self(set)),
        }
    }

    /// The cache set.
    pub const fn set(&self) -> &CacheSet<'d> {
        &self.0
    }
}

/// Keeps the first problem that stands in the way.
struct Watch<'p> {
    progress: &'p mut dyn FnMut(Progress),
    first: Option<Problem>,
    count: u64,
}

impl Visitor for Watch<'_> {
    fn wants_keys(&self) -> bool {
        false
    }

    fn progress(&mut self, progress: Progress) {
        (self.progress)(progress);
    }

    fn problem(&mut self, problem: Problem) {
        if blocks(&problem) {
            self.count += 1;
            self.first.get_or_insert(problem);
        }
    }
}

/// Whether a problem stands in the way of writing.
///
/// What does not is what kernels leave behind themselves, or what leaves gens and marks certain:
/// torn journal entries (a power cut; the kernel passes over them, and so did we), pointers newer
/// than the prio set (the effective gen counts), stale dirty keys (that data was lost before),
/// leftovers of volumes that are gone, and untidy sums.
fn blocks(problem: &Problem) -> bool {
    use crate::cache_set::journal::JournalProblem;
    use crate::cache_set::uuids::UuidProblem;
    match problem {
        Problem::Journal(problem) => !matches!(problem, JournalProblem::Torn { .. }),
        Problem::Prios(_) | Problem::Btree(_) => true,
        Problem::Uuids(problem) => !matches!(problem, UuidProblem::Repeated { .. }),
        Problem::Bucket(problem) => match problem {
            BucketProblem::StaleDirty { .. }
            | BucketProblem::NewerThanPrio { .. }
            | BucketProblem::Overused { .. }
            | BucketProblem::NoVolume { .. } => false,
            BucketProblem::TooStale { .. }
            | BucketProblem::Inconsistent { .. }
            | BucketProblem::SharedMetadata { .. }
            | BucketProblem::BadJournalKey { .. } => true,
        },
    }
}

/// Whether a problem is that something could not be read, rather than that it is wrong.
pub(super) fn is_unreadable(problem: &Problem) -> bool {
    use crate::cache_set::BtreeProblem;
    use crate::cache_set::journal::JournalProblem;
    use crate::cache_set::prios::PrioProblem;
    use crate::cache_set::uuids::UuidProblem;
    matches!(
        problem,
        Problem::Journal(JournalProblem::Unreadable { .. })
            | Problem::Prios(PrioProblem::Unreadable { .. })
            | Problem::Uuids(UuidProblem::Unreadable { .. })
            | Problem::Btree(BtreeProblem::Unreadable { .. })
    )
}
