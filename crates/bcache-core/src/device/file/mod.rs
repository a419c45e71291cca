//! Block devices and image files on the machine.
//!
//! [`open_read`] gives a handle that cannot write; [`open_write`] claims the device or image for
//! this process. I/O bypasses the page cache (`O_DIRECT`) wherever it can. The kernel writes a
//! device in use around the page cache of its node, which then serves stale bytes. And a
//! read-back after writing must come from the device.
//!
//! Callers need not care for the alignment of direct transfers. Reads from a block device that are
//! not aligned go through an aligned buffer. Accesses to an image that are not aligned go through a
//! second, buffered descriptor of the same file; the kernel keeps the two coherent.

mod claim;
mod handle;
mod info;
mod partitions;
mod transfer;

#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::unistd::{AccessFlags, access};

pub(super) use claim::drop_page_cache;
use handle::{Access, Direct, Handle};
pub use partitions::forget_partitions;

use super::packed::{PackedError, PackedReader, is_packed};
use super::{BlockDevice, DeviceError, DeviceInfo, DeviceKind, Operation, ReadDevice, holders};

/// A device or image that can only be read.
#[derive(Debug)]
pub struct FileReader {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Plain(Handle),
    /// A metadata image, which reads as the device that it is of.
    Packed(Box<PackedReader<FileReader>>),
}

/// A device or image claimed for writing.
///
/// The claim lasts as long as the value. On a block device it is `O_EXCL`, which keeps mounts and
/// bcache itself out. On an image it is an exclusive open-file-description lock, which keeps out
/// other writers of this kind and QEMU.
#[derive(Debug)]
pub struct FileDevice {
    handle: Handle,
    /// Set by the first flush that fails. The kernel reports a lost write to one `fdatasync` and
    /// forgets it, so that a second one would succeed without the data.
    flush_failed: AtomicBool,
}

/// Opens a block device or an image for reading, whether or not it is in use.
///
/// A metadata image reads as the device that it is of, as far as it goes.
pub fn open_read(path: impl AsRef<Path>) -> Result<FileReader, DeviceError> {
    let path = path.as_ref();
    let plain = open_plain(path)?;
    if plain.info().kind != DeviceKind::Image || !is_packed(&plain) {
        return Ok(plain);
    }
    let packed = PackedReader::open(plain).map_err(|error| match error {
        PackedError::Device(error) => error,
        other => DeviceError::Open {
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidData, other),
        },
    })?;
    Ok(FileReader { source: Source::Packed(Box::new(packed)) })
}

impl FileReader {
    /// Whether it is a metadata image, in which there is no data of volumes.
    pub const fn is_metadata_image(&self) -> bool {
        matches!(self.source, Source::Packed(_))
    }
}

/// Opens a packed image for its parts.
pub fn open_packed(path: impl AsRef<Path>) -> Result<PackedReader<FileReader>, PackedError> {
    PackedReader::open(open_plain(path.as_ref())?)
}

fn open_plain(path: &Path) -> Result<FileReader, DeviceError> {
    let handle = Handle::open(path, Access::Read, Direct::WherePossible)?;
    Ok(FileReader { source: Source::Plain(handle) })
}

/// Opens a block device or an image for writing, and claims it.
///
/// What is mounted, used as swap, held by another device, registered with bcache, or read by a loop
/// device is [`DeviceError::Busy`]; an image also when another process has locked it.
///
/// A metadata image cannot be written.
pub fn open_write(path: impl AsRef<Path>) -> Result<FileDevice, DeviceError> {
    let path = path.as_ref();
    // Looked at before the claim, which a device cannot have twice.
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) && is_packed(&open_plain(path)?)
    {
        let source = io::Error::new(
            io::ErrorKind::ReadOnlyFilesystem,
            "a metadata image is read-only; restore it first",
        );
        return Err(DeviceError::Open { path: path.to_owned(), source });
    }
    let handle = Handle::open(path, Access::Write, Direct::WherePossible)?;
    Ok(FileDevice { handle, flush_failed: AtomicBool::new(false) })
}

/// Makes a sparse image of `size_bytes` and opens it for writing. The file must not exist.
pub fn create_image(path: impl AsRef<Path>, size_bytes: u64) -> Result<FileDevice, DeviceError> {
    let path = path.as_ref();
    let failed = |source| DeviceError::Create { path: path.to_owned(), size_bytes, source };
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed)?;
    let opened = file.set_len(size_bytes).map_err(failed).and_then(|()| open_write(path));
    if opened.is_err() {
        // The error at hand says more than a failure to clean up would.
        let _ = fs::remove_file(path);
    }
    opened
}

/// Whether an image could be made at `path`, as far as that can be told without making it.
pub(crate) fn check_new_image(path: impl AsRef<Path>, size_bytes: u64) -> Result<(), DeviceError> {
    let path = path.as_ref();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    access(folder.unwrap_or(Path::new(".")), AccessFlags::W_OK | AccessFlags::X_OK).map_err(
        |errno| DeviceError::Create { path: path.to_owned(), size_bytes, source: errno.into() },
    )
}

impl ReadDevice for FileReader {
    fn info(&self) -> &DeviceInfo {
        match &self.source {
            Source::Plain(handle) => &handle.info,
            Source::Packed(image) => image.info(),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        match &self.source {
            Source::Plain(handle) => handle.read_at(offset, buf),
            Source::Packed(image) => image.read_at(offset, buf),
        }
    }
}

impl ReadDevice for FileDevice {
    fn info(&self) -> &DeviceInfo {
        &self.handle.info
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.handle.read_at(offset, buf)
    }
}

impl BlockDevice for FileDevice {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.handle.write_at(offset, data)
    }

    /// Once a flush has failed, every later one fails too: what was lost cannot be told.
    fn flush(&self) -> Result<(), DeviceError> {
        let result = if self.flush_failed.load(Ordering::Acquire) {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            self.handle.file.sync_data()
        };
        result.map_err(|source| {
            self.flush_failed.store(true, Ordering::Release);
            self.handle.failed(Operation::Flush, 0, 0)(source)
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.handle.discard(offset, len)
    }
}

/// Opens a device or image for reading that nobody holds: of what changes while it is read, half
/// would be old and half new.
pub fn open_unused(path: impl AsRef<Path>) -> Result<FileReader, DeviceError> {
    let path = path.as_ref();
    let device = open_read(path)?;
    let holders = holders::holders_of(path);
    if holders.is_empty() {
        Ok(device)
    } else {
        Err(DeviceError::Busy { path: path.to_owned(), holders })
    }
}
