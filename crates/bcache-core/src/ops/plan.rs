//! Plans: everything that will be written, decided before the first byte is.
//!
//! A plan is an ordered list of steps on one device. `--dry-run` renders it, [`apply`] carries it
//! out, tests compare it with the trace of a run, and the crash tests cut it at every write. Between
//! two flushes the device may make writes durable in any order; every operation that plans says in
//! its own module why each prefix, and each subset between flushes, is safe.

use std::borrow::Borrow;

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
    /// A part of an image of the device.
    Image,
    /// Data that the cache has, too.
    Data,
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
            Self::Image => f.write_str("part of the image"),
            Self::Data => f.write_str("data"),
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

    /// Bytes that [`apply`] reports as progress by the time it has succeeded: writes and discards.
    pub fn progress_bytes(&self) -> u64 {
        self.steps.iter().fold(0, |sum, step| {
            sum.saturating_add(match step {
                Step::Write { data, .. } => data.len() as u64,
                Step::Zero { len, .. } | Step::Discard { len, .. } => *len,
                Step::Flush => 0,
            })
        })
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
    /// Whether the device may have changed: a write or discard had been given to it. `false` is
    /// certain, also where the failing write itself was refused before it reached the device.
    pub may_have_written: bool,
    /// What failed.
    #[source]
    pub source: DeviceError,
}

/// Largest discard issued at once, so that progress can be told and a signal is answered.
const DISCARD_CHUNK_BYTES: u64 = 1 << 30;

/// Zeroes written at once.
pub(super) const ZERO_CHUNK_BYTES: u64 = 1 << 20;

/// Carries out `plan`, telling `progress` of the bytes done after each piece of work.
///
/// Discards are advice: a device that refuses them is left as it is. Any other failure stops the
/// plan at that step, and the steps after it are not begun.
pub fn apply(
    plan: &Plan,
    device: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ApplyError> {
    apply_each(plan.steps.iter(), plan.steps.len(), device, progress)
}

/// The same with `count` steps that are made when their turn comes.
pub(super) fn apply_each(
    steps: impl Iterator<Item = impl Borrow<Step>>,
    count: usize,
    device: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ApplyError> {
    let mut may_have_written = false;
    for (step, action) in steps.enumerate() {
        let result = match action.borrow() {
            Step::Write { offset, data, .. } => {
                let result = device.write_at(*offset, data);
                may_have_written |= was_issued(&result);
                result.inspect(|()| progress(data.len() as u64))
            }
            Step::Zero { offset, len, .. } => {
                let result = write_zeroes(device, *offset, *len, &mut |bytes| {
                    may_have_written = true;
                    progress(bytes);
                });
                may_have_written |= was_issued(&result);
                result
            }
            Step::Flush => device.flush(),
            Step::Discard { offset, len } => {
                may_have_written |= *len > 0;
                discard_in_chunks(device, *offset, *len, progress);
                Ok(())
            }
        };
        if let Err(source) = result {
            return Err(ApplyError { step, steps: count, may_have_written, source });
        }
    }
    Ok(())
}

/// Whether a write got as far as the device: any error but one of I/O was found before.
fn was_issued(result: &Result<(), DeviceError>) -> bool {
    matches!(result, Ok(()) | Err(DeviceError::Io { .. }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Operation;
    use crate::device::testkit::{
        Fault, FaultDevice, Lasting, MemoryDevice, TraceDevice, TraceOp, Trigger,
    };

    const GIB: u64 = 1 << 30;

    fn write(kind: WriteKind, offset: u64, len: usize) -> Step {
        let mut data = AlignedBuf::zeroed(len);
        data.fill(0xab);
        Step::Write { kind, offset, data }
    }

    /// Wipe, discard, superblock, as making a cache does it.
    fn plan() -> Plan {
        Plan {
            steps: vec![
                Step::Flush,
                write(WriteKind::Wipe, 0, 4096),
                Step::Flush,
                Step::Discard { offset: 8192, len: 2 * GIB + 4096 },
                Step::Zero { kind: WriteKind::Wipe, offset: 1 << 20, len: (1 << 20) + 512 },
                write(WriteKind::Superblock, 4096, 4096),
                Step::Flush,
            ],
        }
    }

    fn device() -> FaultDevice<MemoryDevice> {
        FaultDevice::new(MemoryDevice::new(4 * GIB))
    }

    #[test]
    fn a_plan_is_carried_out_in_order_with_progress() {
        let device = TraceDevice::new(device());
        let mut pieces = Vec::new();
        apply(&plan(), &device, &mut |bytes| pieces.push(bytes)).unwrap();
        assert_eq!(pieces, [4096, GIB, GIB, 4096, 1 << 20, 512, 4096]);
        assert_eq!(pieces.iter().sum::<u64>(), plan().progress_bytes());
        assert_eq!(plan().write_bytes(), 8192 + (1 << 20) + 512);
        assert_eq!(plan().discard_sectors(), Sectors((2 * GIB + 4096) / 512));
        let kinds: Vec<String> =
            device.events().iter().map(|event| event.op.operation().to_string()).collect();
        assert_eq!(
            kinds.join(" "),
            "flush write flush discard discard discard write write write flush"
        );
        assert_eq!(device.events()[5].op, TraceOp::Discard { offset: 8192 + 2 * GIB, len: 4096 });
    }

    /// Each step that can fail, failed: the error names it, nothing after it reaches the device,
    /// and it says whether the device may have changed.
    #[test]
    fn a_failure_tells_the_step_and_whether_anything_may_be_written() {
        // The change that fails, the step it is in, and whether something may be written then.
        for (change, step, may_have_written) in [
            (0, 0, false),
            (1, 1, true),
            (2, 2, true),
            (6, 4, true),
            (7, 4, true),
            (8, 5, true),
            (9, 6, true),
        ] {
            for torn_bytes in [0, 512] {
                let fault = Fault::new(Trigger::NthChange(change)).torn_after(torn_bytes);
                let device = device().with(fault);
                let mut done = 0;
                let error = apply(&plan(), &device, &mut |bytes| done += bytes).unwrap_err();
                assert_eq!((error.step, error.steps), (step, 7));
                assert_eq!(error.may_have_written, may_have_written, "step {step}");
                assert!(matches!(error.source, DeviceError::Io { .. }));
                assert_eq!(error.to_string(), format!("step {} of 7 failed", step + 1));
                assert_eq!(device.changes(), change + 1, "went on after step {step}");
                let before = Plan { steps: plan().steps.into_iter().take(step).collect() };
                let of_step = if change == 7 { 1 << 20 } else { 0 };
                assert_eq!(done, before.progress_bytes() + of_step);
                if !may_have_written {
                    let untouched = MemoryDevice::new(4 * GIB);
                    assert_eq!(device.inner().first_difference(&untouched), None);
                }
            }
        }
    }

    #[test]
    fn a_write_that_is_refused_has_not_written() {
        for (offset, expect_misaligned) in [(100, true), (4 * GIB, false)] {
            let zero = Step::Zero { kind: WriteKind::Wipe, offset, len: 512 };
            for step in [write(WriteKind::Superblock, offset, 512), zero] {
                let plan = Plan { steps: vec![step] };
                let error = apply(&plan, &device(), &mut |_| {}).unwrap_err();
                assert!(!error.may_have_written);
                let misaligned = matches!(error.source, DeviceError::Misaligned { .. });
                assert_eq!(misaligned, expect_misaligned);
            }
        }
        // Its second piece is past the end, the first was written.
        let zero = Step::Zero { kind: WriteKind::Wipe, offset: 4 * GIB - (1 << 20), len: 2 << 20 };
        let error = apply(&Plan { steps: vec![zero] }, &device(), &mut |_| {}).unwrap_err();
        assert!(error.may_have_written);
    }

    #[test]
    fn a_refused_discard_stops_no_plan_and_is_not_tried_again() {
        let fault = Fault::new(Trigger::Nth { operation: Operation::Discard, n: 1 })
            .lasting(Lasting::Always)
            .errno(nix::libc::EOPNOTSUPP);
        let device = TraceDevice::new(device().with(fault));
        let mut done = 0;
        apply(&plan(), &device, &mut |bytes| done += bytes).unwrap();
        assert_eq!(done, plan().progress_bytes());
        let discards: Vec<bool> = device
            .events()
            .iter()
            .filter(|event| event.op.operation() == Operation::Discard)
            .map(|event| event.succeeded)
            .collect();
        assert_eq!(discards, [true, false]);
    }
}
