//! Taking back what an operation wrote.
//!
//! [`UndoLog`] saves to a file what the steps of an operation overwrite, and what they write instead,
//! and makes it durable before the first of them. [`UndoFile`] puts it back, step by step from the last
//! to the first, with a flush where the operation had one. So the devices go back through the very
//! states that the operation is safe in: a power cut leaves one of them, and undoing once more completes
//! it. A step that was never made, or is undone already, is left alone.
//!
//! Before its first write [`UndoFile::check`] compares:
//!
//! - every sector that a step wrote, with what was there before and what the steps wrote. An operation
//!   that was cut short can be undone; a device that was written to since cannot.
//! - what nobody writes without a trace (see [`Watch`]), with what was there when it was saved. Of a
//!   cache that is its superblock, which the kernel writes each time it starts the set, and its journal,
//!   which says all that changed.
//! - where data was copied from the cache to a backing device, both. What is written to a backing device
//!   that runs alone leaves no trace in its superblock, and the cache that comes back would hide it.
//!
//! What an operation discards cannot be had back. Copied data stays: the cache that comes back answers
//! for those sectors.
//!
//! The file is described in docs/metadata-image.md. A later part of the operation saves into a new
//! file, which then takes the place of the old one: there is a whole one at any time.

mod copied;
mod error;
mod file;
mod log;
mod run;
mod watch;

pub use error::{SaveError, UndoError};
pub use file::{SavedDevice, UndoFile};
pub use log::{Saving, StepSink, StepSource, UndoLog, steps_of};
pub use run::UndoCheck;
pub use watch::Watch;
