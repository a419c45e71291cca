//! An open device or image: its descriptors, and what they want of a transfer.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::{libc, unistd};

use super::claim::{drop_page_cache, kind_of, lock, open_error, same_file};
use super::info::{block_info, image_info};
use super::transfer::{punch_hole, read_full, write_full};
use crate::device::sysfs::{BlockDir, DeviceNumber, Root};
use crate::device::{
    AlignedBuf, DeviceError, DeviceInfo, DeviceKind, Operation, check_aligned, check_range,
    holders, ioctl,
};

/// Alignment for direct access to an image. The file system below may sit on a disk with blocks of
/// 4 KiB although the image counts in sectors.
const IMAGE_DIRECT_ALIGN: usize = 4096;

/// Size of the buffer through which transfers go that cannot be made in place.
const BOUNCE_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direct {
    WherePossible,
    #[cfg(test)]
    Never,
}

/// What reading and writing handles share.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) info: DeviceInfo,
    /// The descriptor for direct access, or for everything where that was refused.
    pub(super) file: File,
    /// Alignment of offset, length and memory that `file` wants: 1 when it is buffered.
    pub(super) align: usize,
    /// A buffered descriptor of an image whose `file` is direct.
    pub(super) buffered: Option<File>,
}

impl Handle {
    pub(super) fn open(path: &Path, access: Access, direct: Direct) -> Result<Self, DeviceError> {
        let failed = |source| DeviceError::Open { path: path.to_owned(), source };
        // Looked at before it is opened: opening a fifo would wait for a writer.
        let kind = kind_of(&fs::metadata(path).map_err(failed)?, path)?;
        let mut flags = 0;
        if kind == DeviceKind::Block && access == Access::Write {
            flags |= libc::O_EXCL;
        }
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(access == Access::Write)
                .custom_flags(flags)
                .open(path)
        };
        let direct_file = match direct {
            Direct::WherePossible => match open(flags | libc::O_DIRECT) {
                Ok(file) => Some(file),
                // Some file systems do not know O_DIRECT.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
                Err(error) => return Err(open_error(path, error)),
            },
            #[cfg(test)]
            Direct::Never => None,
        };
        let is_direct = direct_file.is_some();
        let file = match direct_file {
            Some(file) => file,
            None => open(flags).map_err(|error| open_error(path, error))?,
        };

        let metadata = file.metadata().map_err(failed)?;
        if kind_of(&metadata, path)? != kind {
            return Err(DeviceError::NotADevice { path: path.to_owned() });
        }
        if access == Access::Write {
            if kind == DeviceKind::Image {
                lock(&file, path)?;
            }
            // A loop device does not hold what it reads, be it a file or another device.
            let root = Root::system();
            let mut users = holders::loops_reading(&root, &metadata);
            if kind == DeviceKind::Block {
                let number = DeviceNumber::from_dev_t(metadata.rdev());
                let device = BlockDir::by_number(&root, number);
                users.extend(device.iter().flat_map(|it| holders::loops_beside(&root, it)));
            }
            if !users.is_empty() {
                return Err(DeviceError::Busy { path: path.to_owned(), holders: users });
            }
        }
        match kind {
            DeviceKind::Block => {
                match access {
                    // Nothing is mounted behind the claim, so that this writes back only what
                    // somebody wrote to the node itself. Best effort: it is for root only.
                    Access::Write => drop(ioctl::flush_buffers(&file)),
                    Access::Read if !is_direct => drop_page_cache(path, &file),
                    Access::Read => {}
                }
                let info = block_info(path, &file, &metadata)?;
                if access == Access::Write && info.read_only {
                    // The kernel lets root open it so, and fails the writes.
                    return Err(failed(io::Error::from_raw_os_error(libc::EROFS)));
                }
                let align = if is_direct { info.logical_block_bytes as usize } else { 1 };
                Ok(Self { info, file, align, buffered: None })
            }
            DeviceKind::Image | DeviceKind::Memory => {
                let read_only = access == Access::Read
                    && unistd::access(path, unistd::AccessFlags::W_OK).is_err();
                let info = image_info(path, &metadata, read_only);
                let buffered = is_direct.then(|| open(0)).transpose().map_err(failed)?;
                if let Some(buffered) = &buffered {
                    same_file(&metadata, &buffered.metadata().map_err(failed)?, path)?;
                }
                let align = if is_direct { IMAGE_DIRECT_ALIGN } else { 1 };
                Ok(Self { info, file, align, buffered })
            }
        }
    }

    pub(super) fn failed(
        &self,
        operation: Operation,
        offset: u64,
        len: usize,
    ) -> impl FnOnce(io::Error) -> DeviceError + use<'_> {
        move |source| DeviceError::Io {
            path: self.info.path.clone(),
            operation,
            offset,
            len: len as u64,
            source,
        }
    }

    /// Whether `file` takes the transfer as it is.
    fn fits(&self, offset: u64, memory: *const u8, len: usize) -> bool {
        offset % self.align as u64 == 0 && len % self.align == 0 && memory.addr() % self.align == 0
    }

    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let len = buf.len();
        check_range(&self.info, offset, len as u64)?;
        let result = if self.fits(offset, buf.as_ptr(), len) {
            match (read_full(&self.file, offset, buf, len, self.align), &self.buffered) {
                // A file system may want more than we know of.
                (Err(error), Some(buffered)) if error.raw_os_error() == Some(libc::EINVAL) => {
                    read_full(buffered, offset, buf, len, 1)
                }
                (result, _) => result,
            }
        } else if let Some(buffered) = &self.buffered {
            read_full(buffered, offset, buf, len, 1)
        } else {
            self.read_bounced(offset, buf)
        };
        result.map_err(self.failed(Operation::Read, offset, len))
    }

    fn read_bounced(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        let align = self.align as u64;
        let wanted = usize::try_from(offset % align).unwrap_or(0).saturating_add(buf.len());
        let capacity = wanted.next_multiple_of(self.align).min(BOUNCE_BYTES.max(self.align));
        let mut bounce = AlignedBuf::zeroed(capacity);
        while !buf.is_empty() {
            let start = offset - offset % align;
            let skip = usize::try_from(offset - start).map_err(io::Error::other)?;
            let take = buf.len().min(bounce.len().saturating_sub(skip));
            let end = skip + take;
            let span = end.next_multiple_of(self.align).min(bounce.len());
            let (window, _) = bounce.split_at_mut(span);
            read_full(&self.file, start, window, end, self.align)?;
            let (head, tail) = buf.split_at_mut(take);
            let got = window.get(skip..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            head.copy_from_slice(got);
            offset += take as u64;
            buf = tail;
        }
        Ok(())
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let len = data.len();
        check_range(&self.info, offset, len as u64)?;
        check_aligned(&self.info, offset, len as u64)?;
        let result = if self.fits(offset, data.as_ptr(), len) {
            match (write_full(&self.file, offset, data, self.align), &self.buffered) {
                (Err(error), Some(buffered)) if error.raw_os_error() == Some(libc::EINVAL) => {
                    write_full(buffered, offset, data, 1)
                }
                (result, _) => result,
            }
        } else if let Some(buffered) = &self.buffered {
            write_full(buffered, offset, data, 1)
        } else {
            self.write_bounced(offset, data)
        };
        result.map_err(self.failed(Operation::Write, offset, len))
    }

    /// Writes from memory that is not aligned; offset and length are whole logical blocks.
    fn write_bounced(&self, mut offset: u64, data: &[u8]) -> io::Result<()> {
        for chunk in data.chunks(BOUNCE_BYTES.next_multiple_of(self.align)) {
            write_full(&self.file, offset, &AlignedBuf::copy_of(chunk), self.align)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    pub(super) fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        check_range(&self.info, offset, len)?;
        check_aligned(&self.info, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let result = match self.info.kind {
            DeviceKind::Block => ioctl::discard(&self.file, offset, len),
            DeviceKind::Image | DeviceKind::Memory => punch_hole(&self.file, offset, len),
        };
        result.map_err(|source| DeviceError::Io {
            path: self.info.path.clone(),
            operation: Operation::Discard,
            offset,
            len,
            source,
        })
    }
}
