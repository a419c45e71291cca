//! Plans: everything that will be written, decided before the first byte is.
//!
//! A plan is an ordered list of steps on one device. `--dry-run` renders it, [`apply`] carries it
//! out, tests compare it with the trace of a run, and the crash tests cut it at every write. Between
//! two flushes the device may make writes durable in any order; every operation that plans says in
//! its own module why each prefix, and each subset between flushes, is safe.

use crate::device::{AlignedBuf, BlockDevice, DeviceError};
use crate::units::{BucketIndex, Sectors};

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// The superblock.
    Superblock,
    /// Zeroes over a signature or structure that must not survive.
    Wipe,
    /// One prio_set of a new chain.
    PrioSet {
        /// Its place in the chain.
        index: u64,
        /// The bucket it goes to.
        bucket: BucketIndex,
    },
    /// A journal entry.
    JournalEntry {
        /// Its sequence number.
        seq: u64,
    },
    /// A uuid table.
    UuidTable,
    /// A btree node set.
    BtreeNode,
}

/// One step of a plan.
#[derive(Clone, Debug)]
pub enum Step {
    /// Write `data` at the byte `offset`.
    Write {
        /// What for.
        kind: WriteKind,
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: AlignedBuf,
    },
    /// Discard a range; what fails here is not an error of the plan.
    Discard {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Make everything before durable.
    Flush,
}

/// The writes of one operation on one device, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Bytes that the plan writes.
    pub fn write_bytes(&self) -> u64 {
        self.steps
            .iter()
            .map(|step| match step {
                Step::Write { data, .. } => data.len() as u64,
                Step::Discard { .. } | Step::Flush => 0,
            })
            .sum()
    }

    /// Sectors that the plan discards.
    pub fn discard_sectors(&self) -> Sectors {
        Sectors::from_bytes_floor(
            self.steps
                .iter()
                .map(|step| match step {
                    Step::Discard { len, .. } => *len,
                    Step::Write { .. } | Step::Flush => 0,
                })
                .sum(),
        )
    }
}

/// A plan that stopped.
#[derive(Debug, thiserror::Error)]
#[error("step {} of {steps} failed", step + 1)]
pub struct ApplyError {
    /// Index of the step that failed; the ones before it were carried out.
    pub step: usize,
    /// Number of steps in the plan.
    pub steps: usize,
    /// Whether a write had been issued, so that the device may have changed.
    pub may_have_written: bool,
    /// What failed.
    #[source]
    pub source: DeviceError,
}

/// Largest discard issued at once, so that progress can be told and a signal is answered.
const DISCARD_CHUNK_BYTES: u64 = 1 << 30;

/// Carries out `plan`, telling `progress` of the bytes done after each piece of work.
///
/// Discards are advice: a device that refuses them is left as it is. Any other failure stops the
/// plan at that step.
pub fn apply(
    plan: &Plan,
    device: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ApplyError> {
    let mut may_have_written = false;
    for (step, action) in plan.steps.iter().enumerate() {
        let result = match action {
            Step::Write { offset, data, .. } => {
                may_have_written = true;
                let result = device.write_at(*offset, data);
                progress(data.len() as u64);
                result
            }
            Step::Flush => device.flush(),
            Step::Discard { offset, len } => {
                may_have_written = true;
                discard_in_chunks(device, *offset, *len, progress);
                Ok(())
            }
        };
        if let Err(source) = result {
            return Err(ApplyError { step, steps: plan.steps.len(), may_have_written, source });
        }
    }
    Ok(())
}

fn discard_in_chunks(
    device: &dyn BlockDevice,
    mut offset: u64,
    mut len: u64,
    progress: &mut dyn FnMut(u64),
) {
    while len > 0 {
        let chunk = len.min(DISCARD_CHUNK_BYTES);
        if device.discard(offset, chunk).is_err() {
            progress(len);
            return;
        }
        progress(chunk);
        offset = offset.saturating_add(chunk);
        len -= chunk;
    }
}
