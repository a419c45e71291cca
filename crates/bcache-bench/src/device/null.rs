//! A device that takes everything and keeps nothing: for runs without I/O.

use bcache_core::device::{BlockDevice, DeviceError, DeviceInfo, ReadDevice};

/// Nothing, in the shape of a device.
#[derive(Clone, Debug)]
pub struct NullDevice {
    info: DeviceInfo,
}

impl NullDevice {
    /// In the shape of the device that `info` describes.
    pub fn new(info: DeviceInfo) -> Self {
        Self { info }
    }
}

impl ReadDevice for NullDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        buf.fill(0);
        Ok(())
    }
}

impl BlockDevice for NullDevice {
    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<(), DeviceError> {
        Ok(())
    }
}
