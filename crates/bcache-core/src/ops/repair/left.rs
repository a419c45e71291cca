//! What a repair leaves as it is.

use std::path::PathBuf;

use crate::cache_set::uuids::UuidProblem;
use crate::cache_set::{BucketProblem, Problem, ReadError, ReadOptions};
use crate::device::ReadDevice;
use crate::layout::superblock::BackingState;
use crate::layout::verdict::{Refusal, Warning};
use crate::ops::backing_gone::NotRebuilt;
use crate::ops::check::{
    self, BackingProblem, CheckOptions, Code, Detail, Finding, Severity, problem_code,
};
use crate::ops::planned::PlannedDevice;
use crate::ops::repair::Fix;
use crate::units::Sectors;

/// What repair leaves as it is.
#[derive(Debug, thiserror::Error)]
pub enum Left {
    /// Damage that new metadata does without.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Damage that new metadata would have, too.
    #[error("{0}")]
    Stays(Problem),
    /// Data of a flash-only volume counts as clean, and is nowhere else.
    #[error("flash-only volume in slot {slot} has {clean} of clean data")]
    FlashClean {
        /// Its slot.
        slot: u32,
        /// How much.
        clean: Sectors,
    },
    /// The kernel would not accept the superblock.
    #[error("the kernel refuses the superblock: {0}")]
    Superblock(Refusal),
    /// The kernel accepts the superblock and comes to grief over it.
    #[error("{0}")]
    Hazard(Warning),
    /// The set cannot be read at all.
    #[error(transparent)]
    NoSet(ReadError),
    /// The device is shorter than its superblock says. Of the rest nothing is known.
    #[error("cut off after {present} of {needed}; what the rest holds cannot be told")]
    CutOff {
        /// What there is.
        present: Sectors,
        /// Where the last bucket ends.
        needed: Sectors,
    },
    /// The kernel would not accept the superblock of a backing device.
    #[error("{}: the kernel refuses the superblock: {refusal}", path.display())]
    Backing {
        /// The device.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// The same, where no cache was named that could tell more.
    #[error("{}: the kernel refuses the superblock: {refusal}", path.display())]
    Alone {
        /// The device.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// The superblock of a backing device is gone, and cannot be made again.
    #[error("{}: its superblock is gone; {why}", path.display())]
    Gone {
        /// The device.
        path: PathBuf,
        /// Why not.
        why: NotRebuilt,
    },
    /// A backing device of the set, which lacks nothing, is not in the uuid table.
    #[error("{}: the uuid table does not have it", path.display())]
    NotInTable {
        /// The device.
        path: PathBuf,
    },
    /// A backing device does not go with the set.
    #[error("{}", .0.found())]
    Beside(Box<Finding>),
}

impl Left {
    /// The superblock does not say that there is a set.
    pub(super) const NO_SET: Self = Self::NoSet(ReadError::Unsynced);

    pub(super) fn of(problem: Problem) -> Self {
        if stays(&problem) { Self::Stays(problem) } else { Self::Problem(problem) }
    }

    pub(super) fn of_backing(device: &dyn ReadDevice, refusal: Refusal) -> Self {
        Self::Backing { path: device.info().path.clone(), refusal }
    }

    /// Whether new metadata mends it, if there can be any.
    pub const fn is_of_metadata(&self) -> bool {
        matches!(self, Self::Problem(_) | Self::FlashClean { .. } | Self::NotInTable { .. })
    }

    /// Whether it is found by reading the cache alone: new metadata, or the changes to it, must not bring
    /// more of it.
    pub(super) const fn is_counted(&self) -> bool {
        matches!(
            self,
            Self::Problem(_) | Self::FlashClean { .. } | Self::Superblock(_) | Self::NoSet(_)
        )
    }

    /// Whether a person may know which volume a device is.
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Gone { why: NotRebuilt::Several { .. }, .. })
    }

    /// The code of the finding that the check makes of it.
    pub fn finding(&self) -> Code {
        match self {
            Self::Problem(problem) | Self::Stays(problem) => problem_code(problem),
            Self::FlashClean { .. } => Code::VolumeFlashClean,
            Self::Superblock(_) => Code::SuperblockRefused,
            Self::Hazard(_) => Code::SuperblockHazard,
            Self::NoSet(ReadError::Unsynced) => Code::SuperblockUnsynced,
            Self::NoSet(_) => Code::JournalEmpty,
            Self::CutOff { .. } => Code::SuperblockCutOff,
            Self::Backing { .. } | Self::Alone { .. } => Code::BackingRefused,
            Self::Gone { .. } => Code::BackingUnreadable,
            Self::NotInTable { .. } => Code::BackingNotInTable,
            Self::Beside(finding) => finding.code(),
        }
    }

    /// What a person can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Alone { refusal: Refusal::BadChecksum, .. } => {
                "Name the cache of the device, too: it may tell what the superblock was."
            }
            Self::Alone { refusal: Refusal::BadMagic | Refusal::BadOffset, .. } => {
                "If it is a backing device, name its cache, too: that may tell what the superblock was. If \
                 it is the cache, it cannot be mended."
            }
            Self::Backing { .. } | Self::Alone { .. } => "Look at all of its superblock.",
            Self::Gone { why, .. } => why.advice(),
            _ => self.finding().advice(),
        }
    }
}

/// Whether neither a single change nor new metadata has an answer to a problem, which does not stand in the
/// way of either.
pub(super) const fn stays(problem: &Problem) -> bool {
    matches!(
        problem,
        Problem::Uuids(UuidProblem::Repeated { .. })
            | Problem::Bucket(BucketProblem::Overused { .. })
    )
}

/// What is wrong with backing devices beside the set, each as it is with `fixes`. No change to the metadata
/// of the cache alone mends any of it.
pub(super) fn beside(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    fixes: &[Fix],
    options: &ReadOptions,
) -> Vec<Left> {
    let planned = |device, index: Option<usize>| {
        let of_device = fixes.iter().filter(move |fix| fix.backing == index);
        PlannedDevice::new(device, of_device.map(|fix| &fix.step))
    };
    let cache = planned(cache, None);
    let backing: Vec<PlannedDevice<'_>> =
        backing.iter().enumerate().map(|(index, device)| planned(*device, Some(index))).collect();
    let backing = backing.iter().map(|device| device as &dyn ReadDevice).collect();
    let options = CheckOptions { read: *options, backing, ..CheckOptions::default() };
    let Ok(report) = check::check(&cache, &options, &mut |_| {}) else { return Vec::new() };
    // What is clean is told as [`Left::NotInTable`].
    let is_lacking = |finding: &Finding| {
        let Detail::Backing(BackingProblem::NotInTable { state, .. }) = &finding.detail else {
            return false;
        };
        *state == BackingState::Clean
    };
    let is_told = |finding: &Finding| {
        let code = finding.code();
        code.is_backing()
            && code != Code::BackingRefused
            && !is_lacking(finding)
            && finding.severity() > Severity::NotChecked
    };
    let findings = report.findings.into_iter().filter(is_told);
    findings.map(|finding| Left::Beside(Box::new(finding))).collect()
}
