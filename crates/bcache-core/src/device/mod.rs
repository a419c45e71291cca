//! Block devices and image files.
//!
//! Two traits keep inspection from writing by type: [`ReadDevice`] is all that reading code can
//! ask for; [`BlockDevice`] adds writing. Both are synchronous and object-safe. Offsets and lengths
//! are in bytes. Decorators for tests are in [`testkit`] (feature `testkit`).

mod bcachefs;
pub mod blktrace;
pub mod buffer;
mod content;
pub mod file;
pub mod holders;
mod huge_pages;
mod ioctl;
pub mod packed;
pub mod probe;
mod root;
pub mod same_uuid;
pub mod scan;
mod signature;
mod superblock_area;
pub mod sysfs;
#[cfg(feature = "testkit")]
pub mod testkit;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::layout::verdict::Target;
use crate::units::Sectors;

pub use bcachefs::Bcachefs;
pub use buffer::AlignedBuf;
pub(crate) use buffer::overlap;
pub(crate) use content::first_nonzero;
pub use content::{Content, ContentError, partition_with_bcache, volume_content};
pub use file::forget_partitions;
pub use file::{FileDevice, FileReader, create_image, open_read, open_unused, open_write};
pub(crate) use huge_pages::advise_huge_pages;
pub(crate) use root::Entry;
pub use root::Tree;
pub use signature::{Partition, Signature, SignatureKind};
pub use superblock_area::SuperblockArea;

/// What stands behind a device handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A regular file holding an image of a device.
    Image,
    /// Memory, in tests.
    Memory,
}

/// The facts about a device that do not change while it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The path it was opened by.
    pub path: PathBuf,
    /// Device or image.
    pub kind: DeviceKind,
    /// Size in bytes; for an image this need not be a whole number of sectors.
    pub size_bytes: u64,
    /// Smallest unit the device reads and writes, in bytes (512 for an image).
    pub logical_block_bytes: u32,
    /// Smallest unit it writes without a read-modify-write, in bytes.
    pub physical_block_bytes: u32,
    /// Size in sectors of the whole disk that holds the device: differs from its own for a
    /// partition. The kernel's "device too small" looks at the disk (docs/on-disk-format.md §1.4
    /// row 18).
    pub disk_size: Sectors,
    /// Whether it takes discards: BLKDISCARD on a device, hole punching in an image.
    pub discard: bool,
    /// Whether it is a zoned device, which bcache cannot be put on by these tools.
    pub zoned: bool,
    /// Whether the device itself refuses writes.
    pub read_only: bool,
    /// Whether it is a device that bcache itself runs (`bcacheN`).
    pub is_bcache_volume: bool,
}

impl DeviceInfo {
    /// Whole sectors on the device.
    pub fn size(&self) -> Sectors {
        Sectors::from_bytes_floor(self.size_bytes)
    }

    /// What the kernel looks at when it judges a superblock of this device.
    pub fn target(&self) -> Target {
        Target {
            device_size: self.size(),
            disk_size: self.disk_size.max(self.size()),
            logical_block_bytes: self.logical_block_bytes,
            is_bcache_volume: self.is_bcache_volume,
        }
    }
}

/// A device that can be read.
pub trait ReadDevice: Send + Sync {
    /// What is known about the device.
    fn info(&self) -> &DeviceInfo;

    /// Fills `buf` from the byte `offset`.
    ///
    /// Any offset, length and memory alignment works; a buffer from [`AlignedBuf`] at an offset and
    /// of a length that are multiples of the logical block avoids a copy. Reading past the end is
    /// [`DeviceError::OutOfRange`], never a short read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError>;
}

/// A device that can be written.
///
/// A write is durable only after a [`flush`](Self::flush) that began after it returned.
pub trait BlockDevice: ReadDevice {
    /// Writes `data` at the byte `offset`. Both must be multiples of the logical block.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Makes every write that has returned durable.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Tells the device that the range holds nothing of worth. What it reads as afterwards is
    /// undefined.
    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError>;
}

impl<D: ReadDevice + ?Sized> ReadDevice for &D {
    fn info(&self) -> &DeviceInfo {
        (**self).info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        (**self).read_at(offset, buf)
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for &D {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        (**self).write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        (**self).flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        (**self).discard(offset, len)
    }
}

impl<D: ReadDevice + ?Sized> ReadDevice for Arc<D> {
    fn info(&self) -> &DeviceInfo {
        (**self).info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        (**self).read_at(offset, buf)
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        (**self).write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        (**self).flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        (**self).discard(offset, len)
    }
}

/// What went wrong with a device, and where.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An image could not be made.
    #[error("cannot create the image {} of {size_bytes} bytes", path.display())]
    Create {
        /// The image.
        path: PathBuf,
        /// The size asked for in bytes.
        size_bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// An image could not be locked, though nothing else has it locked.
    #[error("cannot lock {} for writing", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is in use, so it must not be written.
    #[error("{} is in use{}", path.display(), holders::describe(.holders))]
    Busy {
        /// The device.
        path: PathBuf,
        /// Who holds it, where that can be told.
        holders: Vec<holders::Holder>,
    },
    /// The path is neither a block device nor a regular file.
    #[error("{} is neither a block device nor a regular file", path.display())]
    NotADevice {
        /// The path.
        path: PathBuf,
    },
    /// Its size or limits could not be told.
    #[error("cannot tell the {what} of {}", path.display())]
    Geometry {
        /// The device.
        path: PathBuf,
        /// Which figure.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// An access goes past the end of the device.
    #[error(
        "{}: {len} bytes at byte {offset} are past the end of the device ({size_bytes} bytes)",
        path.display()
    )]
    OutOfRange {
        /// The device.
        path: PathBuf,
        /// Start of the access in bytes.
        offset: u64,
        /// Length of the access in bytes.
        len: u64,
        /// Size of the device in bytes.
        size_bytes: u64,
    },
    /// A metadata image does not hold this part of the device.
    #[error("{}: {len} bytes at byte {offset} are not in the image", path.display())]
    Absent {
        /// The image.
        path: PathBuf,
        /// Start of the part in bytes.
        offset: u64,
        /// Length of the part in bytes.
        len: u64,
    },
    /// A write or discard is not aligned to the device's logical block.
    #[error(
        "{}: {len} bytes at byte {offset} do not fit logical blocks of {logical_block_bytes} bytes",
        path.display()
    )]
    Misaligned {
        /// The device.
        path: PathBuf,
        /// Start of the access in bytes.
        offset: u64,
        /// Length of the access in bytes.
        len: u64,
        /// The device's logical block in bytes.
        logical_block_bytes: u32,
    },
    /// The kernel still lists the partitions of a table that is gone.
    #[error("the kernel still lists the partitions that were on {}", path.display())]
    Partitions {
        /// The disk.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A read, write, flush or discard failed.
    #[error("{}: {operation} of {len} bytes at byte {offset} failed", path.display())]
    Io {
        /// The device.
        path: PathBuf,
        /// What was attempted.
        operation: Operation,
        /// Start of the access in bytes (0 for a flush).
        offset: u64,
        /// Length of the access in bytes (0 for a flush).
        len: u64,
        /// The system's reason.
        source: io::Error,
    },
}

/// The four things one can ask of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `read_at`
    Read,
    /// `write_at`
    Write,
    /// `flush`
    Flush,
    /// `discard`
    Discard,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        })
    }
}

impl DeviceError {
    /// The device that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Open { path, .. }
            | Self::Create { path, .. }
            | Self::Lock { path, .. }
            | Self::Busy { path, .. }
            | Self::NotADevice { path }
            | Self::Geometry { path, .. }
            | Self::OutOfRange { path, .. }
            | Self::Absent { path, .. }
            | Self::Misaligned { path, .. }
            | Self::Partitions { path, .. }
            | Self::Io { path, .. } => path,
        }
    }
}

impl DeviceError {
    /// Whether the system refused for want of a right.
    pub fn is_permission_denied(&self) -> bool {
        match self {
            Self::Open { source, .. }
            | Self::Create { source, .. }
            | Self::Lock { source, .. }
            | Self::Geometry { source, .. }
            | Self::Partitions { source, .. }
            | Self::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Busy { .. }
            | Self::NotADevice { .. }
            | Self::OutOfRange { .. }
            | Self::Absent { .. }
            | Self::Misaligned { .. } => false,
        }
    }
}

/// Refuses an access that leaves the device.
pub(crate) fn check_range(info: &DeviceInfo, offset: u64, len: u64) -> Result<(), DeviceError> {
    match offset.checked_add(len) {
        Some(end) if end <= info.size_bytes => Ok(()),
        _ => Err(DeviceError::OutOfRange {
            path: info.path.clone(),
            offset,
            len,
            size_bytes: info.size_bytes,
        }),
    }
}

/// Refuses a write or discard that is not in whole logical blocks.
pub(crate) fn check_aligned(info: &DeviceInfo, offset: u64, len: u64) -> Result<(), DeviceError> {
    let block = u64::from(info.logical_block_bytes.max(1));
    if offset % block == 0 && len % block == 0 {
        return Ok(());
    }
    Err(DeviceError::Misaligned {
        path: info.path.clone(),
        offset,
        len,
        logical_block_bytes: info.logical_block_bytes,
    })
}
