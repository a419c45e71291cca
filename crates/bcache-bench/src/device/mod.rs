//! The main job: driving the allocator against devices.
//!
//! - [`plan`]: what is to be done, with everything checked that can be without a device.
//! - [`baseline`]: the same writes without an allocator, and a plain sequential write.
//! - [`counted`]: a device that counts what goes to it.
//! - [`DeviceRun`]: what carries a plan out.

pub mod baseline;
pub mod counted;
pub mod plan;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::progress::Live;
use crate::report::Report;

pub use plan::DevicePlan;

/// What a run is given besides its plan.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// Set at Ctrl-C: the run ends, and reports what it has.
    pub stop: Arc<AtomicBool>,
    /// Counters of the writers, shown on the terminal.
    pub live: Arc<Live>,
}

/// Carries out a plan.
pub trait DeviceRun {
    /// Makes a cache set, runs the writers, and reports. Nothing is printed.
    ///
    /// An error that came after a device was written to carries [`crate::exit::Failure::Partial`].
    fn run(&mut self, plan: &DevicePlan, context: &RunContext) -> anyhow::Result<Report>;
}
