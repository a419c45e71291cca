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

impl std::fmt::Display for WriteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::Wipe => f.write_str("zeroes"),
            Self::PrioSet { index, bucket } => write!(f, "prio set {index} to bucket {bucket}"),
            Self::JournalEntry { seq } => write!(f, "journal entry {seq}"),
            Self::UuidTable => f.write_str("uuid table"),
            Self::BtreeNode => f.write_str("btree node"),
        }
    }
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
    /// Write zeroes over a range.
    Zero {
        /// What for.
        kind: WriteKind,
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
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

impl Step {
    /// Whether the step determines, or makes undefined, what the byte `position` reads as.
    fn covers(&self, position: u64) -> bool {
        let (offset, len) = match self {
            Self::Write { offset, data, .. } => (*offset, data.len() as u64),
            Self::Zero { offset, len, .. } | Self::Discard { offset, len } => (*offset, *len),
            Self::Flush => return false,
        };
        position >= offset && position - offset < len
    }
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
                Step::Zero { len, .. } => *len,
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
                    Step::Write { .. } | Step::Zero { .. } | Step::Flush => 0,
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

/// What was written and is not there.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read back.
    #[error("cannot read back the {kind}")]
    Read {
        /// What was written.
        kind: WriteKind,
        /// Why.
        #[source]
        source: DeviceError,
    },
    /// Something else is there.
    #[error("the {kind} reads back differently, first at byte {offset}")]
    Differs {
        /// What was written.
        kind: WriteKind,
        /// The first byte of the device that differs.
        offset: u64,
    },
}

/// Largest discard issued at once, so that progress can be told and a signal is answered.
const DISCARD_CHUNK_BYTES: u64 = 1 << 30;

/// Zeroes written at once.
const ZERO_CHUNK_BYTES: u64 = 1 << 20;

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
            Step::Zero { offset, len, .. } => {
                may_have_written = true;
                write_zeroes(device, *offset, *len, progress)
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

fn write_zeroes(
    device: &dyn BlockDevice,
    offset: u64,
    len: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), DeviceError> {
    let zeroes = AlignedBuf::zeroed(usize::try_from(len.min(ZERO_CHUNK_BYTES)).unwrap_or(0));
    let mut done = 0;
    while done < len {
        let chunk = (len - done).min(ZERO_CHUNK_BYTES);
        let bytes = usize::try_from(chunk).ok().and_then(|chunk| zeroes.get(..chunk));
        device.write_at(offset.saturating_add(done), bytes.unwrap_or(&zeroes))?;
        progress(chunk);
        done += chunk;
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

/// Bytes read back at once.
const VERIFY_CHUNK_BYTES: u64 = 1 << 20;

/// Reads back what `plan` wrote and compares it.
///
/// What a later step of the plan writes over counts as that step says; discarded ranges are not
/// looked at, for what they read as is undefined.
pub fn verify(plan: &Plan, device: &dyn BlockDevice) -> Result<(), VerifyError> {
    for (index, step) in plan.steps.iter().enumerate() {
        let (kind, offset, len) = match step {
            Step::Write { kind, offset, data } => (*kind, *offset, data.len() as u64),
            Step::Zero { kind, offset, len } => (*kind, *offset, *len),
            Step::Discard { .. } | Step::Flush => continue,
        };
        let later = plan.steps.get(index + 1..).unwrap_or_default();
        let mut done = 0;
        while done < len {
            let start = offset.saturating_add(done);
            let chunk = (len - done).min(VERIFY_CHUNK_BYTES);
            let mut found = AlignedBuf::zeroed(usize::try_from(chunk).unwrap_or(0));
            device
                .read_at(start, &mut found)
                .map_err(|source| VerifyError::Read { kind, source })?;
            for (position, byte) in (start..).zip(found.iter()) {
                let expected = match step {
                    Step::Write { data, .. } => usize::try_from(position - offset)
                        .ok()
                        .and_then(|index| data.get(index))
                        .copied()
                        .unwrap_or(0),
                    _ => 0,
                };
                if *byte != expected && !later.iter().any(|step| step.covers(position)) {
                    return Err(VerifyError::Differs { kind, offset: position });
                }
            }
            done += chunk;
        }
    }
    Ok(())
}
