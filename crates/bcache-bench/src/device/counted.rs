//! A device that counts what goes to it: for write amplification, and to tell our own I/O from that of
//! others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bcache_core::device::{BlockDevice, DeviceError, DeviceInfo, ReadDevice};
use bcache_core::units::SECTOR_BYTES;
use crossbeam_utils::CachePadded;

use crate::watch::DeviceIo;

/// A device as the writers of a run see it.
pub type CountedDevice = Arc<Counted<Arc<dyn BlockDevice>>>;

/// Counts the bytes that are read and written successfully.
#[derive(Debug)]
pub struct Counted<D> {
    device: D,
    read_bytes: CachePadded<AtomicU64>,
    written_bytes: CachePadded<AtomicU64>,
}

impl<D> Counted<D> {
    /// Counts from 0.
    pub fn new(device: D) -> Self {
        Self { device, read_bytes: CachePadded::default(), written_bytes: CachePadded::default() }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Bytes written so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// What went to and from the device so far.
    pub fn io(&self) -> DeviceIo {
        DeviceIo {
            read_sectors: self.read_bytes.load(Ordering::Relaxed).div_ceil(SECTOR_BYTES),
            written_sectors: self.written_bytes().div_ceil(SECTOR_BYTES),
        }
    }
}

impl<D: ReadDevice> ReadDevice for Counted<D> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read_at(offset, buf)?;
        self.read_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl<D: BlockDevice> BlockDevice for Counted<D> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.device.write_at(offset, data)?;
        self.written_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.device.discard(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_core::device::testkit::MemoryDevice;

    #[test]
    fn what_succeeds_is_counted() {
        let device = Counted::new(MemoryDevice::new(1 << 20));
        device.write_at(0, &[1; 4096]).unwrap();
        device.write_at(8192, &[1; 512]).unwrap();
        device.read_at(0, &mut [0; 1024]).unwrap();
        device.flush().unwrap();
        device.discard(0, 4096).unwrap();
        assert!(device.write_at(1 << 20, &[1; 512]).is_err());
        assert!(device.read_at(1 << 20, &mut [0; 512]).is_err());
        assert_eq!(device.io(), DeviceIo { read_sectors: 2, written_sectors: 9 });
        assert_eq!(device.written_bytes(), 4608);
    }
}
