//! What a device or image is like.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::device::sysfs::{BlockDir, DeviceNumber, Root};
use crate::device::{DeviceError, DeviceInfo, DeviceKind, ioctl};
use crate::units::{SECTOR_BYTES, Sectors};

/// Physical block assumed of an image at most: file systems name far larger preferred sizes.
const IMAGE_PHYSICAL_BLOCK_MAX: u64 = 4096;

pub(super) fn block_info(
    path: &Path,
    file: &File,
    metadata: &fs::Metadata,
) -> Result<DeviceInfo, DeviceError> {
    let unknown =
        |what| move |source| DeviceError::Geometry { path: path.to_owned(), what, source };
    let size_bytes = ioctl::size_bytes(file).map_err(unknown("size"))?;
    let logical_block_bytes =
        ioctl::logical_block_bytes(file).map_err(unknown("logical block size"))?;
    if !logical_block_bytes.is_power_of_two() || u64::from(logical_block_bytes) < SECTOR_BYTES {
        return Err(unknown("logical block size")(io::ErrorKind::InvalidData.into()));
    }
    let sysfs = BlockDir::by_number(&Root::system(), DeviceNumber::from_dev_t(metadata.rdev()));
    let sysfs = sysfs.as_ref();
    Ok(DeviceInfo {
        path: path.to_owned(),
        kind: DeviceKind::Block,
        size_bytes,
        logical_block_bytes,
        physical_block_bytes: ioctl::physical_block_bytes(file).unwrap_or(logical_block_bytes),
        disk_size: sysfs
            .and_then(BlockDir::disk)
            .and_then(|disk| disk.size())
            .unwrap_or(Sectors::from_bytes_floor(size_bytes)),
        discard: sysfs
            .and_then(|device| device.queue("discard_max_bytes"))
            .is_some_and(|limit| limit != "0"),
        zoned: sysfs.and_then(|device| device.queue("zoned")).is_some_and(|model| model != "none"),
        read_only: ioctl::is_read_only(file).unwrap_or(false),
        is_bcache_volume: sysfs.is_some_and(BlockDir::is_bcache_volume),
    })
}

pub(super) fn image_info(path: &Path, metadata: &fs::Metadata, read_only: bool) -> DeviceInfo {
    let size_bytes = metadata.len();
    let physical = metadata.blksize().clamp(SECTOR_BYTES, IMAGE_PHYSICAL_BLOCK_MAX);
    DeviceInfo {
        path: PathBuf::from(path),
        kind: DeviceKind::Image,
        size_bytes,
        logical_block_bytes: 512,
        physical_block_bytes: u32::try_from(physical).unwrap_or(512),
        disk_size: Sectors::from_bytes_floor(size_bytes),
        discard: true,
        zoned: false,
        read_only,
        is_bcache_volume: false,
    }
}
