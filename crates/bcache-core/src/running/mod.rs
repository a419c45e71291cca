//! Sets that the kernel runs: what it says of them, and how to tell it what to do.
//!
//! Everything is read through one [`Root`](crate::device::sysfs::Root), so that a tree recorded from
//! a machine ([`recorded`]) stands in for the machine. What is written is written once, after all
//! that could be checked was checked, and is done only when the kernel's files prove it ([`control`]).
//! The facts about the kernel are in docs/running.md.

mod ask;
mod attributes;
pub mod control;
mod deadline;
mod findings;
mod kmsg;
mod part;
pub mod recorded;
mod rounded;
mod stats;
#[cfg(test)]
mod tests;
mod tunables;
mod view;

pub use ask::{Asker, NAMES_LIMIT, Question, SLOW, Snapshot, serve};
pub use attributes::Attributes;
pub use deadline::Late;
pub use findings::{
    DeviceState, Finding, IN_USE_MAX_PERCENT, OnDevice, OtherDirty, Severity, findings,
};
pub use kmsg::{Mark, reason};
pub use part::Part;
pub use recorded::Files;
pub use rounded::{Rounded, RoundedError};
pub use stats::{DiskStats, Stats, byte_hit_ratio};
pub use tunables::{Scope, TUNABLES, Tunable, Unit, ValueError};
pub use view::{Attached, Backing, Cache, Closing, Set, View, Volume};
