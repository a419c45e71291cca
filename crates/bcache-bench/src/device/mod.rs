//! The main job: driving the allocator against devices.
//!
//! - [`plan`]: what is to be done, with everything checked that can be without a device.
//! - [`baseline`]: the same writes without an allocator, and a plain sequential write.
//! - [`counted`], [`null`]: a device that counts what goes to it; one that keeps nothing.
//! - [`index`], [`collector`]: where the data is, and the GC that follows it.
//! - [`writer`], [`timed`]: what the writers do; what of it, and of the allocator thread, is timed.
//! - [`turns`]: how the writers with an allocator and those without take turns.
//! - [`allocator_run`]: all of them together on a cache set in use.
//! - [`run`]: formats devices, runs everything on them, compares. [`DeviceRun`] is what commands see.

pub mod allocator_run;
pub mod baseline;
pub mod collector;
pub mod counted;
pub mod index;
pub mod null;
pub mod plan;
pub mod run;
pub mod timed;
pub mod trace;
pub mod turns;
pub mod writer;

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
    /// Where the allocator's events go.
    pub trace: Option<Arc<trace::TraceFile>>,
}

/// Carries out a plan.
pub trait DeviceRun {
    /// Checks everything that can be before anything is written, and asks whoever has to be asked.
    fn prepare(&mut self, plan: &DevicePlan) -> anyhow::Result<()>;

    /// Makes a cache set, runs the writers, and reports. Nothing is printed.
    ///
    /// An error that came after a device was written to carries [`crate::exit::Failure::Partial`].
    fn run(&mut self, plan: &DevicePlan, context: &RunContext) -> anyhow::Result<Report>;

    /// Leaves what was written to as the plan says: called after the run, however it ended. An error is
    /// no reason to withhold the report.
    fn put_down(&mut self) -> anyhow::Result<()>;
}
