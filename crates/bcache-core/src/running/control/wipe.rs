//! Wiping the superblock of a cache whose set was unregistered.

use crate::cache_set::{NoVisitor, ReadOptions};
use crate::device::{AlignedBuf, BlockDevice, DeviceError};
use crate::inspect::{Answer, BackingDevices, Device, Group, InspectError, Stakes};
use crate::layout::superblock::{Kind, SB_BYTES, SB_OFFSET_BYTES};
use crate::units::Sectors;

/// Why a cache is not wiped.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] InspectError),
    /// It is none.
    #[error("it is no cache device")]
    NotACache,
    /// There is dirty data.
    #[error("it holds at least {dirty} of dirty data that exists nowhere else")]
    Dirty {
        /// How much there is at least.
        dirty: Sectors,
    },
    /// There is a flash-only volume.
    #[error("it holds {volumes} flash-only volume(s), whose data exists nowhere else")]
    FlashOnly {
        /// How many.
        volumes: usize,
    },
    /// Dirty data could be where it cannot be seen.
    #[error("it cannot be told whether it holds data that exists nowhere else")]
    Unknown,
    /// Writing failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Refuses what would be lost, or may be.
fn check(stakes: &Stakes) -> Result<(), WipeError> {
    if stakes.nothing_to_lose() {
        return Ok(());
    }
    let volumes = stakes.volumes.iter().filter(|volume| volume.flash_only).count();
    Err(match stakes.answer {
        _ if volumes > 0 => WipeError::FlashOnly { volumes },
        Answer::Present => WipeError::Dirty { dirty: Sectors(stakes.at_least_sectors) },
        Answer::None | Answer::Unknown => WipeError::Unknown,
    })
}

/// Zeroes the superblock of the claimed cache device, after all of it was read and nothing was found
/// that exists nowhere else. What is dirty in a slot whose backing device was detached counts for
/// nothing: it was written back, and the keys that say so are not in the journal. A power cut leaves
/// the old superblock or none, for it is one block.
///
/// # Errors
/// When something would be lost, or that cannot be told.
pub fn wipe(device: &dyn BlockDevice) -> Result<(), WipeError> {
    let read = Device::read(&device, &ReadOptions::default(), &mut NoVisitor)?;
    if read.kind() != Some(Kind::Cache) {
        return Err(WipeError::NotACache);
    }
    let group = Group::new(vec![(read, false)], &mut BackingDevices::default());
    let member = group.members.first().ok_or(WipeError::NotACache)?;
    check(&member.stakes)?;
    device.write_at(SB_OFFSET_BYTES, &AlignedBuf::zeroed(SB_BYTES))?;
    device.flush()?;
    Ok(())
}
