//! Devices for tests.
//!
//! - [`MemoryDevice`]: contents in memory, sparse, shared between clones.
//! - [`TraceDevice`]: keeps an ordered log of what was asked of the device below it.
//! - [`FaultDevice`]: fails as a script says.
//! - [`SimDevice`]: a disk with a write cache that loses power.
//! - [`partition_table`]: what makes a disk one with a partition.
//!
//! All are deterministic: what is random takes a seed.

mod fault;
mod memory;
mod partition;
mod raid;
mod sim;
mod trace;

pub use fault::{Fault, FaultDevice, Lasting, Trigger};
pub use memory::{DiscardReads, MemoryDevice};
pub use partition::partition_table;
pub use raid::raid_member;
pub use sim::{CrashUnit, SimDevice, Unflushed};
pub use trace::{TraceDevice, TraceEvent, TraceOp};

/// Contents of a sector that no other sector and no other device has.
pub fn sector_of(device: u64, sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (index, word) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&(device << 60 | sector << 8 | index).to_le_bytes());
    }
    bytes
}
