//! Comparing a plan with the trace of what reached a device (feature `testkit`).

use super::plan::{Plan, Step, ZERO_CHUNK_BYTES};
use crate::checksum::crc64;
use crate::device::Operation;
use crate::device::testkit::{TraceEvent, TraceOp};

/// How a trace departs from a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceMismatch {
    /// The device was asked for something else.
    #[error("step {step}: expected {expected:?}, the device was asked for {found:?}")]
    Differs {
        /// Index of the step.
        step: usize,
        /// What the step is, as a trace has it.
        expected: TraceOp,
        /// What came instead; `None` where the trace ends.
        found: Option<TraceOp>,
    },
    /// The device failed a write or a flush, so that the plan was not carried out.
    #[error("step {step}: the device failed {op:?}")]
    Failed {
        /// Index of the step.
        step: usize,
        /// What failed.
        op: TraceOp,
    },
    /// The trace goes on after the plan.
    #[error("after the plan, the device was asked for {op:?}")]
    Extra {
        /// The first thing asked for.
        op: TraceOp,
    },
}

/// The writes that a step of zeroes is carried out as.
fn zero_writes(offset: u64, len: u64) -> impl Iterator<Item = TraceOp> {
    let zeroes = vec![0; usize::try_from(ZERO_CHUNK_BYTES).unwrap_or(0)];
    (0..len.div_ceil(ZERO_CHUNK_BYTES)).map(move |index| {
        let start = index * ZERO_CHUNK_BYTES;
        let chunk = (len - start).min(ZERO_CHUNK_BYTES);
        let bytes = usize::try_from(chunk).ok().and_then(|chunk| zeroes.get(..chunk));
        let hash = crc64(bytes.unwrap_or_default());
        TraceOp::Write { offset: offset.saturating_add(start), len: chunk, hash }
    })
}

impl Plan {
    /// Checks that what `trace` logs is this plan, carried out whole: the same writes with the same
    /// bytes, flushes and discards, in the same order, and nothing else. Reads do not count.
    ///
    /// A discard may come in several adjoining pieces, and may end early where the device refused.
    pub fn compare_with_trace(&self, trace: &[TraceEvent]) -> Result<(), TraceMismatch> {
        let mut events =
            trace.iter().filter(|event| event.op.operation() != Operation::Read).peekable();
        for (step, action) in self.steps.iter().enumerate() {
            let expected = match action {
                Step::Write { offset, data, .. } => {
                    TraceOp::Write { offset: *offset, len: data.len() as u64, hash: crc64(data) }
                }
                Step::Zero { offset, len, .. } => {
                    for expected in zero_writes(*offset, *len) {
                        match events.next() {
                            Some(event) if event.op == expected && event.succeeded => {}
                            Some(event) if event.op == expected => {
                                return Err(TraceMismatch::Failed { step, op: event.op });
                            }
                            found => {
                                let found = found.map(|event| event.op);
                                return Err(TraceMismatch::Differs { step, expected, found });
                            }
                        }
                    }
                    continue;
                }
                Step::Flush => TraceOp::Flush,
                Step::Discard { offset, len } => {
                    let mut at = *offset;
                    let end = offset.saturating_add(*len);
                    while at < end {
                        let rest = TraceOp::Discard { offset: at, len: end - at };
                        let found = events.next();
                        match found.map(|event| event.op) {
                            Some(TraceOp::Discard { offset, len })
                                if offset == at && len > 0 && len <= end - at =>
                            {
                                at = offset + len;
                            }
                            found => {
                                return Err(TraceMismatch::Differs { step, expected: rest, found });
                            }
                        }
                        if found.is_some_and(|event| !event.succeeded) {
                            break;
                        }
                    }
                    continue;
                }
            };
            match events.next() {
                Some(event) if event.op == expected => {
                    if !event.succeeded {
                        return Err(TraceMismatch::Failed { step, op: event.op });
                    }
                }
                found => {
                    let found = found.map(|event| event.op);
                    return Err(TraceMismatch::Differs { step, expected, found });
                }
            }
        }
        match events.next() {
            Some(event) => Err(TraceMismatch::Extra { op: event.op }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testkit::{Fault, FaultDevice, MemoryDevice, TraceDevice, Trigger};
    use crate::device::{AlignedBuf, BlockDevice, ReadDevice};
    use crate::ops::plan::{WriteKind, apply};

    fn write(offset: u64, fill: u8) -> Step {
        let data = AlignedBuf::copy_of(&[fill; 512]);
        Step::Write { kind: WriteKind::Superblock, offset, data }
    }

    fn plan() -> Plan {
        let discard = Step::Discard { offset: 0, len: 5 << 30 };
        let zero = Step::Zero { kind: WriteKind::Wipe, offset: 8192, len: (1 << 20) + 5120 };
        Plan { steps: vec![write(4096, 1), Step::Flush, discard, zero, write(0, 2), Step::Flush] }
    }

    fn traced() -> TraceDevice<FaultDevice<MemoryDevice>> {
        TraceDevice::new(FaultDevice::new(MemoryDevice::new(8 << 30)))
    }

    #[test]
    fn a_plan_matches_its_own_trace_and_no_other() {
        let device = traced();
        apply(&plan(), &device, &mut |_| {}).unwrap();
        device.read_at(0, &mut [0; 10]).unwrap();
        let events = device.events();
        plan().compare_with_trace(&events).unwrap();

        // Any one event left out, doubled or swapped with the next is noticed.
        let changes = device.changes();
        for at in 0..changes.len() {
            let mut left_out = changes.clone();
            left_out.remove(at);
            plan().compare_with_trace(&left_out).unwrap_err();
            let mut doubled = changes.clone();
            doubled.insert(at, changes[at]);
            plan().compare_with_trace(&doubled).unwrap_err();
            if at + 1 < changes.len() {
                let mut swapped = changes.clone();
                swapped.swap(at, at + 1);
                plan().compare_with_trace(&swapped).unwrap_err();
            }
        }
        for step in 0..plan().steps.len() {
            let mut other = plan();
            other.steps[step] = write(4096, 9);
            other.compare_with_trace(&events).unwrap_err();
        }
        device.flush().unwrap();
        assert_eq!(
            plan().compare_with_trace(&device.events()),
            Err(TraceMismatch::Extra { op: TraceOp::Flush })
        );
    }

    #[test]
    fn a_refused_discard_matches_and_a_failed_write_does_not() {
        let device = traced();
        device.inner().add(Fault::new(Trigger::Nth { operation: Operation::Discard, n: 2 }));
        apply(&plan(), &device, &mut |_| {}).unwrap();
        plan().compare_with_trace(&device.events()).unwrap();

        for (n, failed_step) in [(0, 0), (2, 3)] {
            let device = traced();
            device.inner().add(Fault::new(Trigger::Nth { operation: Operation::Write, n }));
            apply(&plan(), &device, &mut |_| {}).unwrap_err();
            assert!(matches!(
                plan().compare_with_trace(&device.events()),
                Err(TraceMismatch::Failed { step, .. }) if step == failed_step
            ));
        }
    }
}
