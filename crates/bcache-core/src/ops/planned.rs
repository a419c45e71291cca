//! A device as it will read once a plan is carried out: for looking at the result before the first
//! byte is written.

use crate::device::{DeviceError, DeviceInfo, ReadDevice, overlap};
use crate::ops::plan::Step;

/// A device with the writes of a plan laid over what it holds. What a plan discards reads as before.
pub struct PlannedDevice<'a> {
    device: &'a dyn ReadDevice,
    steps: Vec<&'a Step>,
}

impl<'a> PlannedDevice<'a> {
    /// `device` once `steps` are carried out, in their order.
    pub fn new(device: &'a dyn ReadDevice, steps: impl Iterator<Item = &'a Step>) -> Self {
        Self { device, steps: steps.collect() }
    }
}

impl ReadDevice for PlannedDevice<'_> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read_at(offset, buf)?;
        for step in &self.steps {
            let (at, len) = match step {
                Step::Write { offset, data, .. } => (*offset, data.len() as u64),
                Step::Zero { offset, len, .. } => (*offset, *len),
                Step::Discard { .. } | Step::Flush => continue,
            };
            let Some((place, part)) = overlap((offset, buf.len()), (at, len)) else { continue };
            let Some(place) = buf.get_mut(place) else { continue };
            match step {
                Step::Write { data, .. } => {
                    if let Some(part) = data.get(part) {
                        place.copy_from_slice(part);
                    }
                }
                _ => place.fill(0),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::testkit::MemoryDevice;
    use crate::device::{AlignedBuf, BlockDevice};
    use crate::ops::plan::{Plan, WriteKind, apply};

    const BLOCKS: u64 = 16;

    fn step() -> impl Strategy<Value = Step> {
        let range =
            (0..BLOCKS, 0..6u64).prop_map(|(at, len)| (at * 512, len.min(BLOCKS - at) * 512));
        (range, 0u8..4).prop_map(|((offset, len), fill)| {
            if fill == 0 {
                return Step::Zero { kind: WriteKind::Wipe, offset, len };
            }
            let mut data = AlignedBuf::zeroed(usize::try_from(len).unwrap());
            data.fill(fill);
            Step::Write { kind: WriteKind::Wipe, offset, data }
        })
    }

    proptest! {
        /// Any read gives what it gives after the plan.
        #[test]
        fn it_reads_as_the_device_will(
            steps in proptest::collection::vec(step(), 0..6),
            from in 0..BLOCKS * 512,
            len in 0..4000u64,
        ) {
            let device = MemoryDevice::new(BLOCKS * 512);
            device.write_at(1024, &[9; 2048]).unwrap();
            let plan = Plan { steps };
            let len = usize::try_from(len.min(BLOCKS * 512 - from)).unwrap();
            let (mut planned, mut done) = (vec![0; len], vec![0; len]);
            PlannedDevice::new(&device, plan.steps.iter()).read_at(from, &mut planned).unwrap();
            apply(&plan, &device, &mut |_| {}).unwrap();
            device.read_at(from, &mut done).unwrap();
            prop_assert_eq!(planned, done);
        }
    }
}
