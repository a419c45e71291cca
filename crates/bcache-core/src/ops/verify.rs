//! Reading back what a plan wrote.

use std::collections::BTreeMap;

use super::plan::{Plan, Step, WriteKind};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};

/// Bytes read back at once.
const READ_BYTES: usize = 1 << 20;

/// Why a plan that was carried out is not what the device holds.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// What was written could not be read.
    #[error("step {} of {steps} cannot be read back", step + 1)]
    Read {
        /// Index of the step that wrote it.
        step: usize,
        /// Number of steps in the plan.
        steps: usize,
        /// What failed.
        #[source]
        source: DeviceError,
    },
    /// What was read is not what was written.
    #[error("step {} of {steps}: byte {offset} is not what was written", step + 1)]
    Differs {
        /// Index of the step that wrote it.
        step: usize,
        /// Number of steps in the plan.
        steps: usize,
        /// What the write was for.
        kind: WriteKind,
        /// The first byte of the step that differs, from the start of the device.
        offset: u64,
    },
}

/// Reads back what `count` steps wrote that are made when their turn comes. None of them may be over
/// another.
pub(super) fn verify_each(
    steps: impl Iterator<Item = Step>,
    count: usize,
    device: &(impl ReadDevice + ?Sized),
) -> Result<(), VerifyError> {
    for (index, step) in steps.enumerate() {
        verify(&Plan { steps: vec![step] }, device).map_err(|error| match error {
            VerifyError::Read { source, .. } => {
                VerifyError::Read { step: index, steps: count, source }
            }
            VerifyError::Differs { kind, offset, .. } => {
                VerifyError::Differs { step: index, steps: count, kind, offset }
            }
        })?;
    }
    Ok(())
}

/// Reads back what `plan` wrote to `device`, in the order of the last step, and compares.
///
/// What counts is the final content: of a byte that several steps wrote, the last; a byte that was
/// discarded after it was written is not compared, for it reads as anything.
pub fn verify(plan: &Plan, device: &(impl ReadDevice + ?Sized)) -> Result<(), VerifyError> {
    let steps = plan.steps.len();
    let mut later = Ranges::default();
    for (step, action) in plan.steps.iter().enumerate().rev() {
        match action {
            Step::Flush => {}
            Step::Discard { offset, len } => later.insert(*offset, offset.saturating_add(*len)),
            Step::Write { kind, offset, data } => {
                let end = offset.saturating_add(data.len() as u64);
                for (from, to) in later.gaps(*offset, end) {
                    let part = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
                    let expected = data.get(part(from)..part(to)).unwrap_or_default();
                    let differs = first_difference(device, from, expected)
                        .map_err(|source| VerifyError::Read { step, steps, source })?;
                    if let Some(offset) = differs {
                        return Err(VerifyError::Differs { step, steps, kind: *kind, offset });
                    }
                }
                later.insert(*offset, end);
            }
            Step::Zero { kind, offset, len } => {
                let end = offset.saturating_add(*len);
                let zeroes = vec![0; READ_BYTES];
                for (mut from, to) in later.gaps(*offset, end) {
                    while from < to {
                        let chunk =
                            usize::try_from(to - from).unwrap_or(READ_BYTES).min(READ_BYTES);
                        let expected = zeroes.get(..chunk).unwrap_or_default();
                        let differs = first_difference(device, from, expected)
                            .map_err(|source| VerifyError::Read { step, steps, source })?;
                        if let Some(offset) = differs {
                            return Err(VerifyError::Differs { step, steps, kind: *kind, offset });
                        }
                        from = from.saturating_add(chunk as u64);
                    }
                }
                later.insert(*offset, end);
            }
        }
    }
    Ok(())
}

/// The first byte from `offset` on that is not as `expected`.
fn first_difference(
    device: &(impl ReadDevice + ?Sized),
    offset: u64,
    expected: &[u8],
) -> Result<Option<u64>, DeviceError> {
    let mut buf = AlignedBuf::zeroed(expected.len().min(READ_BYTES));
    let mut at = offset;
    for chunk in expected.chunks(READ_BYTES) {
        let (read, _) = buf.split_at_mut(chunk.len().min(READ_BYTES));
        device.read_at(at, read)?;
        if let Some(place) = read.iter().zip(chunk).position(|(read, wrote)| read != wrote) {
            return Ok(Some(at + place as u64));
        }
        at += chunk.len() as u64;
    }
    Ok(None)
}

/// A set of bytes, as disjoint ranges: start to end (excluded).
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        // Swallows what overlaps or touches, from the right.
        while let Some((&other_start, &other_end)) = self.0.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            start = start.min(other_start);
            end = end.max(other_end);
            self.0.remove(&other_start);
        }
        self.0.insert(start, end);
    }

    /// The parts of a range that are not in the set.
    pub(super) fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut from = start;
        let before = self.0.range(..start).next_back();
        for (&covered_from, &covered_to) in before.into_iter().chain(self.0.range(start..end)) {
            if covered_from > from {
                gaps.push((from, covered_from.min(end)));
            }
            from = from.max(covered_to);
        }
        if from < end {
            gaps.push((from, end));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::BlockDevice;
    use crate::device::testkit::{
        DiscardReads, Fault, FaultDevice, Lasting, MemoryDevice, Trigger,
    };
    use crate::ops::plan::apply;

    const BLOCKS: u64 = 32;

    fn write(block: u64, blocks: usize, fill: u8) -> Step {
        let mut data = AlignedBuf::zeroed(blocks * 512);
        data.fill(fill);
        Step::Write { kind: WriteKind::Wipe, offset: block * 512, data }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = || (0..BLOCKS, 0..10u64).prop_map(|(at, len)| (at, len.min(BLOCKS - at)));
        let step = prop_oneof![
            4 => (range(), 0u8..).prop_map(|((block, blocks), fill)| {
                write(block, usize::try_from(blocks).unwrap(), fill)
            }),
            1 => range().prop_map(|(block, blocks)| Step::Zero {
                kind: WriteKind::Wipe,
                offset: block * 512,
                len: blocks * 512
            }),
            1 => range().prop_map(|(block, blocks)| Step::Discard {
                offset: block * 512,
                len: blocks * 512
            }),
            1 => Just(Step::Flush),
        ];
        proptest::collection::vec(step, 0..16)
    }

    proptest! {
        /// What was applied verifies, whatever discards read as; and a byte that is wrong is found
        /// exactly where the last step over it is a write.
        #[test]
        fn verifies_exactly_the_final_content(steps in steps(), flip in 0..BLOCKS * 512) {
            let plan = Plan { steps };
            for reads in [DiscardReads::Zeroes, DiscardReads::OldData, DiscardReads::Garbage] {
                let device = MemoryDevice::new(BLOCKS * 512).with_discard_reads(reads);
                apply(&plan, &device, &mut |_| {}).unwrap();
                verify(&plan, &device).unwrap();

                let last = plan.steps.iter().enumerate().rev().find_map(|(step, action)| {
                    let (offset, len, is_write) = match action {
                        Step::Write { offset, data, .. } => (*offset, data.len() as u64, true),
                        Step::Zero { offset, len, .. } => (*offset, *len, true),
                        Step::Discard { offset, len } => (*offset, *len, false),
                        Step::Flush => return None,
                    };
                    (offset..offset + len).contains(&flip).then_some((step, is_write))
                });
                let start = flip / 512 * 512;
                let mut block = [0; 512];
                device.read_at(start, &mut block).unwrap();
                block[usize::try_from(flip - start).unwrap()] ^= 0x40;
                device.write_at(start, &block).unwrap();
                match (verify(&plan, &device), last) {
                    (Ok(()), None | Some((_, false))) => {}
                    (Err(VerifyError::Differs { step, offset, .. }), Some((last_step, true))) => {
                        prop_assert_eq!((step, offset), (last_step, flip));
                    }
                    (result, last) => prop_assert!(false, "{result:?} for {last:?}"),
                }
            }
        }
    }

    #[test]
    fn large_writes_are_compared_to_their_last_byte() {
        let len = (3 << 20) + 2560;
        let zero = Step::Zero { kind: WriteKind::Wipe, offset: 512, len };
        for step in [write(1, usize::try_from(len).unwrap() / 512, 7), zero] {
            let device = MemoryDevice::new(8 << 20);
            let plan = Plan { steps: vec![step] };
            apply(&plan, &device, &mut |_| {}).unwrap();
            verify(&plan, &device).unwrap();
            device.write_at(len, &[0x11; 512]).unwrap();
            let result = verify(&plan, &device);
            assert!(
                matches!(result, Err(VerifyError::Differs { step: 0, offset, .. }) if offset == len),
                "{result:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_verified() {
        let bad = Trigger::Overlaps { operation: None, offset: 1024, len: 1 };
        let memory = MemoryDevice::new(1 << 20);
        let plan = Plan { steps: vec![write(0, 1, 1), write(2, 1, 2), Step::Flush] };
        apply(&plan, &memory, &mut |_| {}).unwrap();
        let device = FaultDevice::new(memory).with(Fault::new(bad).lasting(Lasting::Always));
        let error = verify(&plan, &device).unwrap_err();
        assert!(matches!(error, VerifyError::Read { step: 1, steps: 3, .. }), "{error:?}");
        assert_eq!(error.to_string(), "step 2 of 3 cannot be read back");
    }
}
