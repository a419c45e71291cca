//! A superblock that is gone, or that another stands in place of, made again from the rest of the set and a
//! backing device.

use uuid::Uuid;

use crate::cache_set::gone::{Look, Remains};
use crate::cache_set::{NoVisitor, ReadOptions, expect_superblock};
use crate::device::{DeviceError, ReadDevice};
use crate::inspect::{BackingDevices, Device, Identity, OlderSet, older_set};
use crate::layout::superblock::Superblock;
use crate::ops::repair::{RepairError, superblock};

/// The superblock of the set on `cache`, if it is gone and can be made again. The second half of the
/// set's UUID is what the superblocks of `backing` have; a set of flash-only volumes needs none.
pub(super) fn superblock(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    options: &ReadOptions,
) -> Result<Option<Superblock>, RepairError> {
    let mut device = Device::read_superblock(cache)?;
    if device.identity != Identity::SuperblockGone {
        return Ok(None);
    }
    device.read_set(options, &mut NoVisitor)?;
    made_again(device, &mut named(backing)?)
}

/// The older set on `cache`, whose superblock is that of a new one, and its superblock if that can be made again.
pub(super) fn covered(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
) -> Result<Option<(OlderSet, Option<Superblock>)>, RepairError> {
    let mut device = Device::read_superblock(cache)?;
    device.read_set(&ReadOptions::default(), &mut NoVisitor)?;
    let mut named = named(backing)?;
    let Some(older) = older_set(&device, &named.lacking(), &mut named) else { return Ok(None) };
    let remains = Remains::read(cache, Look::Everywhere).filter(|it| it.set == older.set);
    let superblock = match remains.and_then(|it| it.superblock) {
        Some(superblock) => made_again(Device::read_remains(cache, superblock)?, &mut named)?,
        None => None,
    };
    Ok(Some((older, superblock)))
}

/// The backing devices that were named, as their superblocks are once they are mended.
pub(super) fn named(backing: &[&dyn ReadDevice]) -> Result<BackingDevices, DeviceError> {
    let mut named = BackingDevices::default();
    for device in backing {
        let found = expect_superblock(*device)?;
        let sb = superblock::mended(&found).map_or(found, |(_, mended)| mended);
        named.add(device.info(), &sb, false);
    }
    Ok(named)
}

/// The superblock of a set that was read without its own, with the whole of its UUID.
fn made_again(
    mut device: Device<'_>,
    named: &mut BackingDevices,
) -> Result<Option<Superblock>, RepairError> {
    device.complete_set_uuid(named);
    let Some(mut sb) = device.superblock.clone() else { return Ok(None) };
    let (first, second) = sb.set_uuid().as_u64_pair();
    if second == 0 && !device.has_flash_only_alone() {
        return Err(RepairError::SetUuid { path: device.handle.info().path.clone() });
    }
    // The device had a UUID of its own, of which nothing is left; nothing but udev's links goes by it.
    sb.edit(|edit| _ = edit.uuid(Uuid::from_u64_pair(!first, second)));
    Ok(Some(sb))
}
