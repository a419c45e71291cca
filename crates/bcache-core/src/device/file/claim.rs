//! What an opened file is, and that nobody else has it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, PosixFadviseAdvice, fcntl, posix_fadvise};
use nix::libc;

use crate::device::holders::{self, Holder};
use crate::device::{DeviceError, DeviceKind};

pub(super) fn kind_of(metadata: &fs::Metadata, path: &Path) -> Result<DeviceKind, DeviceError> {
    let file_type = metadata.file_type();
    if file_type.is_block_device() {
        Ok(DeviceKind::Block)
    } else if file_type.is_file() {
        Ok(DeviceKind::Image)
    } else {
        Err(DeviceError::NotADevice { path: path.to_owned() })
    }
}

pub(super) fn same_file(
    one: &fs::Metadata,
    other: &fs::Metadata,
    path: &Path,
) -> Result<(), DeviceError> {
    if one.dev() == other.dev() && one.ino() == other.ino() {
        return Ok(());
    }
    // Replaced between the two opens: the lock would be on one file and the writes in another.
    let source = io::Error::from_raw_os_error(libc::ESTALE);
    Err(DeviceError::Open { path: path.to_owned(), source })
}

pub(super) fn open_error(path: &Path, source: io::Error) -> DeviceError {
    let path = path.to_owned();
    if source.raw_os_error() == Some(libc::EBUSY) {
        let holders = holders::holders_of(&path);
        return DeviceError::Busy { path, holders };
    }
    DeviceError::Open { path, source }
}

/// Locks an image for writing, as a whole. QEMU locks single bytes of an image with locks of the
/// same kind, so that neither can open what the other has.
pub(super) fn lock(file: &File, path: &Path) -> Result<(), DeviceError> {
    let whole = libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap_or(1),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let mut holders = holders::holders_of(path);
            if holders.is_empty() {
                holders.push(Holder::LockedImage);
            }
            Err(DeviceError::Busy { path: path.to_owned(), holders })
        }
        Err(errno) => Err(DeviceError::Lock { path: path.to_owned(), source: errno.into() }),
    }
}

/// Makes buffered reads of a device come from the device, where nobody holds it.
///
/// The page cache of a device in use has what its holder has yet to write, such as ext4's metadata.
/// To drop pages is to have them written first, and looking must not write. `BLKFLSBUF` would even
/// sync the mounted file system. What is stale there stays stale: bcache's
/// own superblock is read past the page cache, and what else such a device carries is told for
/// information only.
pub(in crate::device) fn drop_page_cache(path: &Path, file: &File) {
    if holders::holders_of(path).is_empty() {
        // Best effort.
        let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}
