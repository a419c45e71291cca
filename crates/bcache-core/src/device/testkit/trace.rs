//! A device that keeps a log of what was asked of it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::checksum::crc64;
use crate::device::{BlockDevice, DeviceError, DeviceInfo, Operation, ReadDevice};

/// One operation, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceOp {
    /// A read.
    Read {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A write.
    Write {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// [`crc64`] of what was to be written.
        hash: u64,
    },
    /// A flush.
    Flush,
    /// A discard.
    Discard {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl TraceOp {
    /// Which of the four operations it is.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Read { .. } => Operation::Read,
            Self::Write { .. } => Operation::Write,
            Self::Flush => Operation::Flush,
            Self::Discard { .. } => Operation::Discard,
        }
    }
}

/// One entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// What was asked for.
    pub op: TraceOp,
    /// Whether the device did it.
    pub succeeded: bool,
}

/// A device that logs every operation, in the order in which they began, and passes it on.
///
/// Clones share the log. To compare it with what was planned, see `Plan::compare_with_trace`.
#[derive(Clone, Debug)]
pub struct TraceDevice<D> {
    inner: D,
    log: Arc<Mutex<Vec<TraceEvent>>>,
}

impl<D> TraceDevice<D> {
    /// Logs what goes to `inner`.
    pub fn new(inner: D) -> Self {
        Self { inner, log: Arc::default() }
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The log so far.
    pub fn events(&self) -> Vec<TraceEvent> {
        self.lock().clone()
    }

    /// The log so far without reads: all that could change the device.
    pub fn changes(&self) -> Vec<TraceEvent> {
        let log = self.lock();
        log.iter().filter(|event| event.op.operation() != Operation::Read).copied().collect()
    }

    /// Empties the log.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<TraceEvent>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logged(
        &self,
        op: TraceOp,
        carry_out: impl FnOnce(&D) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        // The place in the log is taken first, so that what overlaps in time is in order of issue.
        let place = {
            let mut log = self.lock();
            log.push(TraceEvent { op, succeeded: false });
            log.len() - 1
        };
        let result = carry_out(&self.inner);
        if result.is_ok() {
            if let Some(event) = self.lock().get_mut(place) {
                event.succeeded = true;
            }
        }
        result
    }
}

impl<D: ReadDevice> ReadDevice for TraceDevice<D> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let op = TraceOp::Read { offset, len: buf.len() as u64 };
        self.logged(op, |inner| inner.read_at(offset, buf))
    }
}

impl<D: BlockDevice> BlockDevice for TraceDevice<D> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let op = TraceOp::Write { offset, len: data.len() as u64, hash: crc64(data) };
        self.logged(op, |inner| inner.write_at(offset, data))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.logged(TraceOp::Flush, BlockDevice::flush)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.logged(TraceOp::Discard { offset, len }, |inner| inner.discard(offset, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testkit::{Fault, FaultDevice, MemoryDevice, Trigger};

    #[test]
    fn logs_every_operation_in_order_with_its_outcome() {
        let faulty = FaultDevice::new(MemoryDevice::new(1 << 20))
            .with(Fault::new(Trigger::Nth { operation: Operation::Flush, n: 1 }));
        let device = TraceDevice::new(faulty);
        device.write_at(512, &[1; 1024]).unwrap();
        device.flush().unwrap();
        device.read_at(3, &mut [0; 5]).unwrap();
        device.discard(4096, 8192).unwrap();
        device.flush().unwrap_err();
        let write = TraceOp::Write { offset: 512, len: 1024, hash: crc64(&[1; 1024]) };
        let expected = [
            (write, true),
            (TraceOp::Flush, true),
            (TraceOp::Read { offset: 3, len: 5 }, true),
            (TraceOp::Discard { offset: 4096, len: 8192 }, true),
            (TraceOp::Flush, false),
        ]
        .map(|(op, succeeded)| TraceEvent { op, succeeded });
        assert_eq!(device.events(), expected);
        assert_eq!(device.changes().len(), 4);
        device.clear();
        assert!(device.events().is_empty());
    }
}
