//! Writing a metadata image to a device.
//!
//! The old superblock is zeroed first, the new one written last, with a flush between each of the
//! three steps. A power cut leaves a device without a superblock, or a whole one; writing it again
//! completes it.

use crate::device::packed::{PackedError, PackedKind, PackedReader};
use crate::device::{AlignedBuf, BlockDevice, DeviceError, ReadDevice};
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};
use crate::ops::plan::{Step, WriteKind};
use crate::ops::undo::{SaveError, Saving, StepSink, UndoLog, Watch};

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
    /// What would be overwritten could not be saved. Nothing was written.
    #[error(transparent)]
    Undo(#[from] SaveError),
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
    restore_with_undo(image, None, device, progress)
}

/// The same, where what is overwritten is saved to `undo` first.
pub fn restore_with_undo<D: ReadDevice>(
    image: &PackedReader<D>,
    undo: Option<&UndoLog>,
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
    if let Some(undo) = undo {
        let told = |sink: StepSink<'_>| steps(image, superblock, &mut |step| sink(&step));
        undo.save(&[Saving { device: &device, watch: Watch::Ends, steps: &told }])?;
    }
    let total = bytes.saturating_mul(2);
    let mut done = 0u64;
    steps(image, superblock, &mut |step| -> Result<(), RestoreError> {
        match &step {
            Step::Write { offset, data, .. } => {
                device.write_at(*offset, data)?;
                done = done.saturating_add(data.len() as u64);
                progress(done, total);
            }
            Step::Zero { offset, len, .. } => {
                device
                    .write_at(*offset, &AlignedBuf::zeroed(usize::try_from(*len).unwrap_or(0)))?;
            }
            Step::Flush => device.flush()?,
            Step::Discard { .. } => {}
        }
        Ok(())
    })?;
    for (index, chunk) in image.chunks().iter().enumerate() {
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

/// Tells what is written, in order.
fn steps<D: ReadDevice, E: From<PackedError>>(
    image: &PackedReader<D>,
    superblock: usize,
    sink: &mut dyn FnMut(Step) -> Result<(), E>,
) -> Result<(), E> {
    let len = SB_BYTES as u64;
    sink(Step::Zero { kind: WriteKind::Wipe, offset: SB_OFFSET_BYTES, len })?;
    sink(Step::Flush)?;
    for last in [false, true] {
        for (index, chunk) in image.chunks().iter().enumerate() {
            if (index == superblock) == last {
                let data = AlignedBuf::copy_of(&image.contents(index)?);
                sink(Step::Write { kind: WriteKind::Image, offset: chunk.offset, data })?;
            }
        }
        sink(Step::Flush)?;
    }
    Ok(())
}
