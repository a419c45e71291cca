//! A device that fails as a script says.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc;

use crate::device::{BlockDevice, DeviceError, DeviceInfo, Operation, ReadDevice};

/// When a fault strikes. Operations are counted from 0 since the device was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// At the operation with this number, whatever it is.
    NthOp(u64),
    /// At the `n`th operation of a kind.
    Nth {
        /// The kind.
        operation: Operation,
        /// How many of them come before.
        n: u64,
    },
    /// At the `n`th write, flush or discard, counted together: every way of stopping half-way.
    NthChange(u64),
    /// At any access of a kind, or of all kinds, that touches a range of bytes.
    Overlaps {
        /// The kind; `None` is all.
        operation: Option<Operation>,
        /// Start of the range in bytes.
        offset: u64,
        /// Length of the range in bytes.
        len: u64,
    },
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lasting {
    /// It strikes once; the next try succeeds.
    #[default]
    Once,
    /// It strikes each time its trigger is met; a number counts as met from then on, for the
    /// operations that it counts.
    Always,
    /// After it has struck, every operation fails: the device is gone.
    DeviceGone,
}

/// One fault of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When.
    pub trigger: Trigger,
    /// With which error of the system.
    pub errno: i32,
    /// For a write: how many bytes of it reach the device first, in whole logical blocks.
    pub torn_bytes: u64,
    /// How long.
    pub lasting: Lasting,
}

impl Fault {
    /// Fails once with `EIO`, with nothing written.
    pub fn new(trigger: Trigger) -> Self {
        Self { trigger, errno: libc::EIO, torn_bytes: 0, lasting: Lasting::Once }
    }

    /// With another error.
    #[must_use]
    pub fn errno(self, errno: i32) -> Self {
        Self { errno, ..self }
    }

    /// With this much of a write done before it fails.
    #[must_use]
    pub fn torn_after(self, torn_bytes: u64) -> Self {
        Self { torn_bytes, ..self }
    }

    /// For another time.
    #[must_use]
    pub fn lasting(self, lasting: Lasting) -> Self {
        Self { lasting, ..self }
    }
}

/// A device that fails as its script says, and passes on the rest. Clones share the script.
#[derive(Clone, Debug)]
pub struct FaultDevice<D> {
    inner: D,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<(Fault, u64)>,
    ops: u64,
    changes: u64,
    of_kind: [u64; 4],
    gone: Option<i32>,
}

/// An operation as the script sees it.
struct Asked {
    operation: Operation,
    offset: u64,
    len: u64,
}

/// What the script says to an operation that is to fail.
struct Failure {
    errno: i32,
    torn_bytes: u64,
}

impl<D> FaultDevice<D> {
    /// A device without faults yet.
    pub fn new(inner: D) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// Adds a fault to the script.
    #[must_use]
    pub fn with(self, fault: Fault) -> Self {
        self.add(fault);
        self
    }

    /// Adds a fault to the script of a device in use.
    pub fn add(&self, fault: Fault) {
        self.lock().faults.push((fault, 0));
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// How many operations have been asked for.
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// How many writes, flushes and discards have been asked for.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// How many operations have failed because of each fault, in the order of the script. A test
    /// whose fault never struck has tested nothing.
    pub fn struck(&self) -> Vec<u64> {
        self.lock().faults.iter().map(|(_, struck)| *struck).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts an operation and says whether it fails.
    fn ask(&mut self, asked: &Asked) -> Option<Failure> {
        let op = self.ops;
        self.ops += 1;
        let change = self.changes;
        let is_change = asked.operation != Operation::Read;
        self.changes += u64::from(is_change);
        let kind = match asked.operation {
            Operation::Read => 0,
            Operation::Write => 1,
            Operation::Flush => 2,
            Operation::Discard => 3,
        };
        let mut of_kind = 0;
        if let Some(count) = self.of_kind.get_mut(kind) {
            of_kind = *count;
            *count += 1;
        }
        if let Some(errno) = self.gone {
            return Some(Failure { errno, torn_bytes: 0 });
        }
        for (fault, struck) in &mut self.faults {
            let reached = |count: u64, n: u64| match fault.lasting {
                Lasting::Always => count >= n,
                Lasting::Once | Lasting::DeviceGone => count == n,
            };
            let met = match fault.trigger {
                Trigger::NthOp(n) => reached(op, n),
                Trigger::NthChange(n) => is_change && reached(change, n),
                Trigger::Nth { operation, n } => {
                    operation == asked.operation && reached(of_kind, n)
                }
                Trigger::Overlaps { operation, offset, len } => {
                    operation.is_none_or(|operation| operation == asked.operation)
                        && asked.operation != Operation::Flush
                        && asked.offset < offset.saturating_add(len)
                        && offset < asked.offset.saturating_add(asked.len)
                }
            };
            if !met || (fault.lasting == Lasting::Once && *struck > 0) {
                continue;
            }
            *struck += 1;
            if fault.lasting == Lasting::DeviceGone {
                self.gone = Some(fault.errno);
            }
            return Some(Failure { errno: fault.errno, torn_bytes: fault.torn_bytes });
        }
        None
    }
}

impl<D: ReadDevice> FaultDevice<D> {
    fn ask(&self, operation: Operation, offset: u64, len: u64) -> Result<(), (u64, DeviceError)> {
        match self.lock().ask(&Asked { operation, offset, len }) {
            None => Ok(()),
            Some(Failure { errno, torn_bytes }) => Err((
                torn_bytes,
                DeviceError::Io {
                    path: self.inner.info().path.clone(),
                    operation,
                    offset,
                    len,
                    source: io::Error::from_raw_os_error(errno),
                },
            )),
        }
    }
}

impl<D: ReadDevice> ReadDevice for FaultDevice<D> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.ask(Operation::Read, offset, buf.len() as u64).map_err(|(_, error)| error)?;
        self.inner.read_at(offset, buf)
    }
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let Err((torn_bytes, error)) = self.ask(Operation::Write, offset, data.len() as u64) else {
            return self.inner.write_at(offset, data);
        };
        let block = u64::from(self.inner.info().logical_block_bytes.max(1));
        let torn = usize::try_from(torn_bytes - torn_bytes % block).unwrap_or(usize::MAX);
        let head = data.get(..torn.min(data.len())).unwrap_or(data);
        if !head.is_empty() {
            self.inner.write_at(offset, head)?;
        }
        Err(error)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.ask(Operation::Flush, 0, 0).map_err(|(_, error)| error)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.ask(Operation::Discard, offset, len).map_err(|(_, error)| error)?;
        self.inner.discard(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testkit::MemoryDevice;

    fn errno(result: Result<(), DeviceError>) -> Option<i32> {
        match result {
            Ok(()) => None,
            Err(DeviceError::Io { source, .. }) => source.raw_os_error(),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_counted_fault_strikes_once() {
        let trigger = Trigger::Nth { operation: Operation::Write, n: 1 };
        let device = FaultDevice::new(MemoryDevice::new(1 << 20))
            .with(Fault::new(trigger).errno(libc::ENOSPC));
        device.read_at(0, &mut [0; 8]).unwrap();
        device.write_at(0, &[1; 512]).unwrap();
        assert_eq!(errno(device.write_at(512, &[1; 512])), Some(libc::ENOSPC));
        device.write_at(512, &[1; 512]).unwrap();
        assert_eq!((device.ops(), device.changes(), device.struck()), (4, 3, vec![1]));
    }

    #[test]
    fn an_always_fault_stays_for_its_kind_and_a_gone_device_for_all() {
        let trigger = Trigger::Nth { operation: Operation::Flush, n: 0 };
        let device = FaultDevice::new(MemoryDevice::new(1 << 20))
            .with(Fault::new(trigger).lasting(Lasting::Always));
        assert_eq!(errno(device.flush()), Some(libc::EIO));
        assert_eq!(errno(device.flush()), Some(libc::EIO));
        device.write_at(0, &[1; 512]).unwrap();
        device.add(
            Fault::new(Trigger::NthChange(3)).errno(libc::ENODEV).lasting(Lasting::DeviceGone),
        );
        device.read_at(0, &mut [0; 8]).unwrap();
        assert_eq!(errno(device.discard(0, 512)), Some(libc::ENODEV));
        assert_eq!(errno(device.read_at(0, &mut [0; 8])), Some(libc::ENODEV));
        assert_eq!(errno(device.flush()), Some(libc::ENODEV));
        assert_eq!(device.struck(), [2, 1]);
    }

    #[test]
    fn a_bad_range_fails_whatever_touches_it() {
        let bad = Trigger::Overlaps { operation: None, offset: 4096, len: 512 };
        let device = FaultDevice::new(MemoryDevice::new(1 << 20))
            .with(Fault::new(bad).lasting(Lasting::Always));
        device.write_at(0, &[1; 4096]).unwrap();
        device.read_at(4608, &mut [0; 8]).unwrap();
        assert_eq!(errno(device.read_at(4000, &mut [0; 97])), Some(libc::EIO));
        assert_eq!(errno(device.write_at(4096, &[1; 512])), Some(libc::EIO));
        assert_eq!(errno(device.discard(0, 1 << 20)), Some(libc::EIO));
        device.flush().unwrap();
    }

    #[test]
    fn a_torn_write_leaves_whole_blocks() {
        let trigger = Trigger::Nth { operation: Operation::Write, n: 0 };
        let memory = MemoryDevice::new(1 << 20);
        let device =
            FaultDevice::new(memory.clone()).with(Fault::new(trigger).torn_after(512 * 3 + 100));
        assert_eq!(errno(device.write_at(512, &[1; 4096])), Some(libc::EIO));
        let expected = MemoryDevice::new(1 << 20);
        expected.write_at(512, &[1; 512 * 3]).unwrap();
        assert_eq!(memory.first_difference(&expected), None);
    }
}
