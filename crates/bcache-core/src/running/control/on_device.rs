//! What superblocks say, beside what the kernel tells.

use std::path::Path;

use uuid::Uuid;

use crate::device::file::open_read;
use crate::device::sysfs::node_of;
use crate::device::{AlignedBuf, DeviceError, DeviceInfo, ReadDevice};
use crate::layout::superblock::{Kind, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use crate::running::findings::OnDevice;
use crate::running::view::Backing;

/// The superblock on the device at `path`, and what the device is.
pub(super) fn superblock_of(path: &Path) -> Result<(Option<Superblock>, DeviceInfo), DeviceError> {
    let device = open_read(path)?;
    let info = device.info().clone();
    if info.size_bytes < SB_OFFSET_BYTES + SB_BYTES as u64 {
        return Ok((None, info));
    }
    let mut bytes = AlignedBuf::zeroed(SB_BYTES);
    device.read_at(SB_OFFSET_BYTES, &mut bytes)?;
    Ok((Superblock::from_bytes(&bytes), info))
}

/// What the superblock on a backing device says; `None` where it cannot be read or is none.
pub fn read_on_device(path: &Path) -> Option<OnDevice> {
    let superblock = superblock_of(path).ok()?.0?;
    let sound = superblock.kind() == Some(Kind::Backing) && superblock.csum_ok();
    sound.then(|| OnDevice { set: superblock.set_uuid(), state: superblock.state() })
}

/// The set that the superblock of a registered device names, where it can be read.
pub(super) fn named_set(backing: &Backing) -> Option<Uuid> {
    read_on_device(&node_of(&backing.name)).map(|it| it.set).filter(|set| !set.is_nil())
}
