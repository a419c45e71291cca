//! What is known of a device before it is formatted.

use std::path::Path;

use super::at_stake::AtStake;
use crate::cache_set::read_superblock;
use crate::device::{
    DeviceError, DeviceInfo, DeviceKind, ReadDevice, Signature, SuperblockArea, first_nonzero,
};
use crate::inspect::SearchMachine;
use crate::layout::superblock::{Kind, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use crate::units::Sectors;

/// A device to format, and what is known about it.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// What to make of it.
    pub kind: Kind,
    /// Its size and limits.
    pub info: DeviceInfo,
    /// What is found on it.
    pub found: Vec<Signature>,
    /// The bytes where a superblock would be, if it is long enough to have one.
    pub superblock: Option<Superblock>,
    /// Whether it is an image file that does not exist yet.
    pub create: bool,
    /// Where data begins, in bytes, that would be overwritten and that nobody can name.
    pub unknown_at: Option<u64>,
    /// What exists nowhere else and would be lost.
    pub at_stake: AtStake,
}

impl DeviceFacts {
    /// Of an open device on which `found` was found. Backing devices of a cache that is damaged are
    /// looked for with `search`: those that are complete show that nothing is lost.
    pub fn of_device(
        kind: Kind,
        device: &dyn ReadDevice,
        found: Vec<Signature>,
        search: Option<SearchMachine>,
    ) -> Result<Self, DeviceError> {
        let superblock = read_superblock(device)?;
        let area = SuperblockArea::of(superblock.as_ref());
        Ok(Self {
            kind,
            info: device.info().clone(),
            unknown_at: unknown_at(device, &area, &found)?,
            at_stake: AtStake::of_device(device, search),
            found,
            superblock,
            create: false,
        })
    }

    /// What lies where the superblock goes.
    pub fn area(&self) -> SuperblockArea {
        SuperblockArea::of(self.superblock.as_ref())
    }
}

/// The first byte that formatting overwrites and that belongs to nothing that was found.
fn unknown_at(
    device: &dyn ReadDevice,
    area: &SuperblockArea,
    found: &[Signature],
) -> Result<Option<u64>, DeviceError> {
    // What is beside a signature is taken for its data.
    if found.iter().any(|it| !it.is_bcache()) {
        return Ok(None);
    }
    let end = if area.superblock().is_some() {
        SB_OFFSET_BYTES
    } else {
        SB_OFFSET_BYTES + SB_BYTES as u64
    };
    first_nonzero(device, 0, end.min(device.info().size_bytes))
}

/// The facts about an image file of `size_bytes` that does not exist yet.
pub fn facts_of_new_image(kind: Kind, path: &Path, size_bytes: u64) -> DeviceFacts {
    let info = DeviceInfo {
        path: path.to_owned(),
        kind: DeviceKind::Image,
        size_bytes,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        disk_size: Sectors::from_bytes_floor(size_bytes),
        discard: true,
        zoned: false,
        read_only: false,
        is_bcache_volume: false,
    };
    DeviceFacts {
        kind,
        info,
        found: Vec::new(),
        superblock: None,
        create: true,
        unknown_at: None,
        at_stake: AtStake::Nothing,
    }
}
