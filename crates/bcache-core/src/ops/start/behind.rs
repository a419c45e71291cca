//! Writing in a thread of its own, so that the next prio set is encoded while one is on its way.
//!
//! Encoding a set of 175,000 buckets takes as long as a fast SSD takes to write it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::device::{AlignedBuf, BlockDevice, DeviceError};

use super::error::CacheIoError;

/// Images: one that is written and one that is encoded.
const IMAGES: usize = 2;

type Written = (AlignedBuf, Result<(), DeviceError>);

/// A thread that writes images to a device, one after the other, in the order in which they are given.
pub(super) struct WriteBehind {
    /// Where the thread takes them from. `None` only while it is told to end.
    to_write: Option<SyncSender<(u64, AlignedBuf)>>,
    written: Receiver<Written>,
    /// Images that are not on their way.
    idle: Vec<AlignedBuf>,
    thread: Option<JoinHandle<()>>,
}

impl WriteBehind {
    /// A thread for images of `len` bytes.
    pub(super) fn start(device: Arc<dyn BlockDevice>, len: usize) -> std::io::Result<Self> {
        let (to_write, images) = sync_channel::<(u64, AlignedBuf)>(IMAGES);
        let (done, written) = sync_channel(IMAGES);
        let thread = Builder::new().name("bcache_prios".into()).spawn(move || {
            for (offset, image) in images {
                let result = device.write_at(offset, &image);
                if done.send((image, result)).is_err() {
                    break;
                }
            }
        })?;
        let idle = (0..IMAGES).map(|_| AlignedBuf::zeroed(len)).collect();
        Ok(Self { to_write: Some(to_write), written, idle, thread: Some(thread) })
    }

    /// Has `encode` fill an image and sends it to `offset` of the device. It need not be there when this
    /// returns. An error may be that of an earlier image; then none is on its way any more.
    pub(super) fn write(
        &mut self,
        offset: u64,
        encode: impl FnOnce(&mut AlignedBuf),
    ) -> Result<(), CacheIoError> {
        if self.idle.is_empty() {
            let earlier = self.take_written();
            if earlier.is_err() {
                // What is still on its way must not come down on a bucket that was given up.
                let _ = self.finish();
                return earlier;
            }
        }
        let mut image = self.idle.pop().ok_or(CacheIoError::WriterEnded)?;
        encode(&mut image);
        let to_write = self.to_write.as_ref().ok_or(CacheIoError::WriterEnded)?;
        to_write.send((offset, image)).map_err(|_| CacheIoError::WriterEnded)
    }

    /// Waits until everything is written; the first error.
    pub(super) fn finish(&mut self) -> Result<(), CacheIoError> {
        let mut result = Ok(());
        while self.idle.len() < IMAGES {
            match self.take_written() {
                Err(CacheIoError::WriterEnded) => return Err(CacheIoError::WriterEnded),
                written => result = result.and(written),
            }
        }
        result
    }

    fn take_written(&mut self) -> Result<(), CacheIoError> {
        let (image, result) = self.written.recv().map_err(|_| CacheIoError::WriterEnded)?;
        self.idle.push(image);
        Ok(result?)
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        self.to_write = None;
        if let Some(thread) = self.thread.take() {
            // What it wrote last is of interest to nobody any more.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ReadDevice;
    use crate::device::testkit::{Fault, FaultDevice, Lasting, MemoryDevice, Trigger};

    const LEN: usize = 4096;

    #[test]
    fn images_arrive_in_order_and_errors_come_out() {
        let device = MemoryDevice::new(64 << 10);
        let mut behind = WriteBehind::start(Arc::new(device.clone()), LEN).unwrap();
        // The last of those to one place is what stays.
        for n in 0..40u8 {
            behind.write(u64::from(n % 16) * 4096, |image| image.fill(n)).unwrap();
        }
        behind.finish().unwrap();
        let mut image = [0; LEN];
        for place in 0..16u8 {
            device.read_at(u64::from(place) * 4096, &mut image).unwrap();
            let last = if place < 8 { place + 32 } else { place + 16 };
            assert_eq!(image, [last; LEN]);
        }

        let fault = Fault::new(Trigger::NthChange(1)).lasting(Lasting::Once);
        let faulty = Arc::new(FaultDevice::new(device).with(fault));
        let mut behind = WriteBehind::start(faulty.clone(), LEN).unwrap();
        let wrote: Vec<bool> =
            (0..3).map(|n| behind.write(n * 4096, |image| image.fill(7)).is_ok()).collect();
        let finished = behind.finish();
        // The second failed: that is told once, by a later write or at the end.
        assert_eq!(wrote.iter().all(|ok| *ok), finished.is_err());
        behind.finish().unwrap();
    }
}
