//! Whether a cache set is sound enough to be written: read as the kernel would, with nothing wrong
//! that would make the kernel, or us, see something else than what is there.

use crate::cache_set::journal::Gap;
use crate::cache_set::{
    BucketProblem, CacheDevice, CacheSet, OpenError, Problem, Progress, ReadError, ReadOptions,
    Visitor,
};
use crate::device::ReadDevice;
use crate::layout::verdict::Refusal;
use crate::ops::invalidate::InvalidateError;

/// A cache set that the kernel would register, and whose buckets' states are known for certain.
#[derive(Debug)]
pub struct TrustedSet<'d>(pub(super) CacheSet<'d>);

/// Why a cache set is not sound enough to be written.
#[derive(Debug)]
pub(in crate::ops) enum Unsound {
    /// There is none that could be read.
    NoCache(ReadError),
    /// The kernel would refuse the superblock.
    KernelRefuses(Refusal),
    /// Something is wrong with it.
    Damaged {
        /// The first problem.
        first: Box<Problem>,
        /// How many there are.
        count: u64,
    },
    /// A gap that is no problem to the reader, for some kernels pass over it.
    JournalGap(Gap),
}

/// Reads the cache set on `device`; refuses what the kernel would refuse, what makes the state of
/// buckets uncertain, and what `also_blocks`.
pub(in crate::ops) fn read_sound<'d>(
    device: &'d dyn ReadDevice,
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
    also_blocks: &dyn Fn(&Problem) -> bool,
) -> Result<CacheSet<'d>, Unsound> {
    let no_cache = |source: OpenError| Unsound::NoCache(source.into());
    let cache = CacheDevice::open(device).map_err(no_cache)?;
    if let Some(refusal) = cache.verdict().refusal {
        return Err(Unsound::KernelRefuses(refusal));
    }
    // The kernel accepts a partition that is too short.
    cache.is_whole().map_err(no_cache)?;
    let mut watch = Watch { progress, also_blocks, first: None, count: 0 };
    let set = CacheSet::read(cache, options, &mut watch);
    // What was wrong with the journal says more than that there is none.
    if let Some(first) = watch.first {
        return Err(Unsound::Damaged { first: Box::new(first), count: watch.count });
    }
    let set = set.map_err(Unsound::NoCache)?;
    match set.journal.gaps.first() {
        Some(&gap) => Err(Unsound::JournalGap(gap)),
        None => Ok(set),
    }
}

impl<'d> TrustedSet<'d> {
    /// Reads the cache set on `device`; refuses what the kernel would refuse.
    ///
    /// `progress` is told where the reading is.
    pub fn read(
        device: &'d dyn ReadDevice,
        options: &ReadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, InvalidateError> {
        let path = || device.info().path.clone();
        let set = read_sound(device, options, progress, &|_| false);
        set.map(Self).map_err(|unsound| match unsound {
            Unsound::NoCache(source) => InvalidateError::NoCache { path: path(), source },
            Unsound::KernelRefuses(refusal) => {
                InvalidateError::KernelRefuses { path: path(), refusal }
            }
            Unsound::Damaged { first, count } => {
                InvalidateError::Damaged { path: path(), first, count }
            }
            Unsound::JournalGap(gap) => InvalidateError::JournalGap { path: path(), gap },
        })
    }

    /// The cache set.
    pub const fn set(&self) -> &CacheSet<'d> {
        &self.0
    }
}

/// Keeps the first problem that stands in the way.
struct Watch<'p> {
    progress: &'p mut dyn FnMut(Progress),
    also_blocks: &'p dyn Fn(&Problem) -> bool,
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
        if blocks(&problem) || (self.also_blocks)(&problem) {
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
pub(in crate::ops) fn blocks(problem: &Problem) -> bool {
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
