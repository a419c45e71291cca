//! What follows from the end of a device that is too short.

use std::error::Error;

use crate::cache_set::Problem;
use crate::cache_set::journal::JournalProblem;
use crate::device::DeviceError;
use crate::inspect::device::Device;
use crate::units::Sectors;

/// Knows a device that ends before its buckets do: that nothing can be read behind its end is no news.
#[derive(Clone, Copy, Debug, Default)]
pub struct CutOff {
    needed: Option<Sectors>,
    /// A journal bucket lies behind the end.
    journal: bool,
}

impl CutOff {
    /// That of a device of which the superblock was read.
    pub fn of(device: &Device<'_>) -> Self {
        Self { needed: device.ends_before_its_buckets(), journal: false }
    }

    /// Where the last bucket ends, if the device is shorter than that.
    pub const fn needed(&self) -> Option<Sectors> {
        self.needed
    }

    /// Whether a problem is only that the device ends. Problems come in the order in which they are found.
    pub fn explains(&mut self, problem: &Problem) -> bool {
        if self.needed.is_none() {
            return false;
        }
        if matches!(problem, Problem::Journal(JournalProblem::Empty)) {
            return self.journal;
        }
        let mut cause = problem.source();
        while let Some(error) = cause {
            if matches!(error.downcast_ref(), Some(DeviceError::OutOfRange { .. })) {
                self.journal |= matches!(problem, Problem::Journal(_));
                return true;
            }
            cause = error.source();
        }
        false
    }
}
