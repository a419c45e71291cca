//! Writing a metadata image to a device.
//!
//! The old superblock is zeroed first, the new one written last, with a flush between each of the
//! three steps. A power cut leaves a device without a superblock, or a whole one; writing it again
//! completes it.

use crate::device::packed::{PackedError, PackedKind, PackedReader};
use crate::device::{AlignedBuf, BlockDevice, DeviceError, ReadDevice};
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};

/// Why an image was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is not one of metadata.
    #[error("the image holds no metadata of a cache device")]
    OtherKind,
    /// It has no superblock, which no image lacks.
    #[error("the image has no superblock")]
    NoSuperblock,
    /// The device is shorter than the one that the image is of.
    #[error("the image is of a device of {needed} bytes, this one has {size}")]
    TooSmall {
        /// Bytes of the image's device.
        needed: u64,
        /// Bytes there are.
        size: u64,
    },
    /// The image cannot be read. Nothing was written.
    #[error(transparent)]
    Image(#[from] PackedError),
    /// The device failed, and has no superblock now unless it was the last flush.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What was written reads back differently.
    #[error("byte {offset} is not what was written")]
    Differs {
        /// The first such byte of a part.
        offset: u64,
    },
}

impl RestoreError {
    /// Whether the device may have changed.
    pub const fn may_have_written(&self) -> bool {
        matches!(self, Self::Device(_) | Self::Differs { .. })
    }
}

/// Writes the parts of `image` to `device`, and reads them back. All of the image is read before the
/// first write. `progress` is told of bytes done of bytes in all.
pub fn restore<D: ReadDevice>(
    image: &PackedReader<D>,
    device: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), RestoreError> {
    if image.header().kind != PackedKind::Metadata {
        return Err(RestoreError::OtherKind);
    }
    let (needed, size) = (image.header().device_bytes, device.info().size_bytes);
    if size < needed {
        return Err(RestoreError::TooSmall { needed, size });
    }
    let mut superblock = None;
    let mut bytes = 0u64;
    for (index, chunk) in image.chunks().iter().enumerate() {
        let contents = image.contents(index)?;
        bytes = bytes.saturating_add(contents.len() as u64);
        if chunk.offset == SB_OFFSET_BYTES && contents.len() == SB_BYTES {
            superblock = Some(index);
        }
    }
    let superblock = superblock.ok_or(RestoreError::NoSuperblock)?;
    let total = bytes.saturating_mul(2);
    let mut done = 0u64;
    device.write_at(SB_OFFSET_BYTES, &AlignedBuf::zeroed(SB_BYTES))?;
    device.flush()?;
    let all = || image.chunks().iter().enumerate();
    for last in [false, true] {
        for (index, chunk) in all().filter(|(index, _)| (*index == superblock) == last) {
            let contents = image.contents(index)?;
            device.write_at(chunk.offset, &AlignedBuf::copy_of(&contents))?;
            done = done.saturating_add(contents.len() as u64);
            progress(done, total);
        }
        device.flush()?;
    }
    for (index, chunk) in all() {
        let contents = image.contents(index)?;
        let mut found = AlignedBuf::zeroed(contents.len());
        device.read_at(chunk.offset, &mut found)?;
        let mut pairs = found.iter().zip(contents.iter());
        if let Some(at) = pairs.position(|(found, written)| found != written) {
            return Err(RestoreError::Differs { offset: chunk.offset.saturating_add(at as u64) });
        }
        done = done.saturating_add(contents.len() as u64);
        progress(done, total);
    }
    Ok(())
}
