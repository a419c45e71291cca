//! Devices for tests.
//!
//! - [`MemoryDevice`]: contents in memory, sparse, shared between clones.
//! - [`TraceDevice`]: keeps an ordered log of what was asked of the device below it.
//! - [`FaultDevice`]: fails as a script says.
//! - [`SimDevice`]: a disk with a write cache that loses power.
//!
//! All are deterministic: what is random takes a seed.

mod memory;

pub use memory::{DiscardReads, MemoryDevice};
