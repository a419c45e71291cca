//! Block devices and image files on the machine.
//!
//! [`open_read`] gives a handle that cannot write; [`open_write`] claims the device or image for
//! this process. I/O bypasses the page cache (`O_DIRECT`) wherever it can: a device in use is
//! written by the kernel around the page cache of its node, which then serves stale bytes, and a
//! read-back after writing must come from the device.
//!
//! What a direct transfer needs in alignment is met here, so that callers need not care: reads from
//! a block device that do not fit go through an aligned buffer, and accesses to an image that do
//! not fit go through a second, buffered descriptor of the same file (the kernel keeps the two
//! coherent).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
use nix::libc;
use nix::unistd::{AccessFlags, access};

use super::holders::{self, Holder};
use super::packed::{PackedError, PackedReader, is_packed};
use super::sysfs::{BlockDir, DeviceNumber, Root};
use super::{
    AlignedBuf, BlockDevice, DeviceError, DeviceInfo, DeviceKind, Operation, ReadDevice,
    check_aligned, check_range, ioctl,
};
use crate::units::{SECTOR_BYTES, Sectors};

/// Alignment for direct access to an image. The file system below may sit on a disk with blocks of
/// 4 KiB although the image counts in sectors.
const IMAGE_DIRECT_ALIGN: usize = 4096;

/// Size of the buffer through which transfers go that cannot be made in place.
const BOUNCE_BYTES: usize = 1 << 20;

/// How often, and how long apart, a partition table is read anew whose partitions are open.
const REREAD_TRIES: u32 = 10;
const REREAD_PAUSE: Duration = Duration::from_millis(50);

/// Physical block assumed of an image at most: file systems name far larger preferred sizes.
const IMAGE_PHYSICAL_BLOCK_MAX: u64 = 4096;

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
/// The claim lasts as long as the value: `O_EXCL` on a block device, which keeps mounts and bcache
/// itself out, and an exclusive open-file-description lock on an image, which keeps out other
/// writers of this kind and QEMU.
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direct {
    WherePossible,
    #[cfg(test)]
    Never,
}

/// What reading and writing handles share.
#[derive(Debug)]
struct Handle {
    info: DeviceInfo,
    /// The descriptor for direct access, or for everything where that was refused.
    file: File,
    /// Alignment of offset, length and memory that `file` wants: 1 when it is buffered.
    align: usize,
    /// A buffered descriptor of an image whose `file` is direct.
    buffered: Option<File>,
}

impl Handle {
    fn open(path: &Path, access: Access, direct: Direct) -> Result<Self, DeviceError> {
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
                let info = image_info(path, &metadata, access);
                let buffered = is_direct.then(|| open(0)).transpose().map_err(failed)?;
                if let Some(buffered) = &buffered {
                    same_file(&metadata, &buffered.metadata().map_err(failed)?, path)?;
                }
                let align = if is_direct { IMAGE_DIRECT_ALIGN } else { 1 };
                Ok(Self { info, file, align, buffered })
            }
        }
    }

    fn failed(
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

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
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

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
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

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
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

/// Reads until `needed` bytes at the head of `buf` are filled.
///
/// `buf` may reach past the end of the file, as it must where the last block of an image is not
/// whole. A short transfer goes on from the last multiple of `align`.
fn read_full(
    file: &File,
    offset: u64,
    buf: &mut [u8],
    needed: usize,
    align: usize,
) -> io::Result<()> {
    let mut done = 0;
    while done < needed {
        let Some(rest) = buf.get_mut(done..) else { break };
        let got = match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if done + got >= needed {
            return Ok(());
        }
        let progress = got - got % align;
        if progress == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        done += progress;
    }
    Ok(())
}

/// Writes all of `data`. A short transfer goes on from the last multiple of `align`.
fn write_full(file: &File, offset: u64, data: &[u8], align: usize) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        let put = match file.write_at(rest, offset.saturating_add(done as u64)) {
            Ok(put) => put,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let progress = put - put % align;
        if progress == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += progress;
    }
    Ok(())
}

fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let len = i64::try_from(len).map_err(io::Error::other)?;
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file, mode, offset, len) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
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

fn kind_of(metadata: &fs::Metadata, path: &Path) -> Result<DeviceKind, DeviceError> {
    let file_type = metadata.file_type();
    if file_type.is_block_device() {
        Ok(DeviceKind::Block)
    } else if file_type.is_file() {
        Ok(DeviceKind::Image)
    } else {
        Err(DeviceError::NotADevice { path: path.to_owned() })
    }
}

fn same_file(one: &fs::Metadata, other: &fs::Metadata, path: &Path) -> Result<(), DeviceError> {
    if one.dev() == other.dev() && one.ino() == other.ino() {
        return Ok(());
    }
    // Replaced between the two opens: the lock would be on one file and the writes in another.
    let source = io::Error::from_raw_os_error(libc::ESTALE);
    Err(DeviceError::Open { path: path.to_owned(), source })
}

fn open_error(path: &Path, source: io::Error) -> DeviceError {
    let path = path.to_owned();
    if source.raw_os_error() == Some(libc::EBUSY) {
        let holders = holders::holders_of(&path);
        return DeviceError::Busy { path, holders };
    }
    DeviceError::Open { path, source }
}

/// Locks an image for writing, as a whole. QEMU locks single bytes of an image with locks of the
/// same kind, so that neither can open what the other has.
fn lock(file: &File, path: &Path) -> Result<(), DeviceError> {
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
/// In the page cache of a device in use lies what its holder has yet to write (the metadata of
/// ext4, for one), and to drop pages is to have them written first; looking must not write.
/// `BLKFLSBUF` would even sync the mounted file system. What is stale there stays stale: bcache's
/// own superblock is read past the page cache, and what else such a device carries is told for
/// information only.
pub(super) fn drop_page_cache(path: &Path, file: &File) {
    if holders::holders_of(path).is_empty() {
        // Best effort.
        let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// Has the kernel read the partition table of the disk at `path` anew, after it was overwritten.
/// The claim on the disk must have been dropped.
///
/// `false` where the kernel lists no partitions of it, so that there is nothing to forget.
pub(crate) fn forget_partitions(path: impl AsRef<Path>) -> Result<bool, DeviceError> {
    let path = path.as_ref();
    let has_partitions = || {
        BlockDir::of_path(&Root::system(), path).is_some_and(|disk| !disk.partitions().is_empty())
    };
    if !has_partitions() {
        return Ok(false);
    }
    let mut tries = 0;
    loop {
        let reread = File::open(path).and_then(|disk| ioctl::reread_partitions(&disk));
        tries += 1;
        match reread {
            Ok(()) => return Ok(true),
            // udev looks at a device that was just written, and has its partitions open meanwhile;
            // it may also have done by then what is asked for here.
            Err(_) if !has_partitions() => return Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < REREAD_TRIES => {
                thread::sleep(REREAD_PAUSE);
            }
            Err(source) => return Err(DeviceError::Partitions { path: path.to_owned(), source }),
        }
    }
}

fn block_info(
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

fn image_info(path: &Path, metadata: &fs::Metadata, opened_for: Access) -> DeviceInfo {
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
        read_only: opened_for == Access::Read && access(path, AccessFlags::W_OK).is_err(),
        is_bcache_volume: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn dir() -> TempDir {
        TempDir::new().unwrap()
    }

    fn image(dir: &TempDir, bytes: &[u8]) -> PathBuf {
        let path = dir.path().join("image");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from((i * 7 + i / 512) % 251).unwrap()).collect()
    }

    fn open(path: &Path, access: Access, direct: Direct) -> Handle {
        Handle::open(path, access, direct).unwrap()
    }

    /// Reads at the end of an image whose size is no multiple of anything, with and without
    /// direct access, and through the path that block devices take.
    #[test]
    fn every_byte_of_an_odd_image_can_be_read() {
        let dir = dir();
        for size in [0usize, 1, 511, 513, 4095, 4097, 10_000, (1 << 20) + 4097] {
            let bytes = pattern(size);
            let path = image(&dir, &bytes);
            let mut handles = vec![
                open(&path, Access::Read, Direct::WherePossible),
                open(&path, Access::Read, Direct::Never),
            ];
            let mut bounced = open(&path, Access::Read, Direct::WherePossible);
            bounced.buffered = None;
            handles.push(bounced);
            for handle in &handles {
                assert_eq!(handle.info.size_bytes, size as u64);
                for start in [0, 1, 512, 4096, size.saturating_sub(1), size.saturating_sub(700)] {
                    let start = start.min(size);
                    let mut buf = vec![0; size - start];
                    handle.read_at(start as u64, &mut buf).unwrap();
                    assert_eq!(
                        buf,
                        bytes.get(start..).unwrap_or_default(),
                        "size {size} from {start}"
                    );
                }
                let past = handle.read_at(size as u64, &mut [0]);
                assert!(matches!(past, Err(DeviceError::OutOfRange { .. })));
            }
        }
    }

    #[test]
    fn an_image_that_shrinks_is_an_error_and_not_old_bytes() {
        let dir = dir();
        let path = image(&dir, &pattern(16384));
        let reader = open_read(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(6000).unwrap();
        for (offset, len) in [(8192u64, 4096usize), (4096, 4096), (5999, 3)] {
            let mut buf = AlignedBuf::zeroed(len);
            match reader.read_at(offset, &mut buf) {
                Err(DeviceError::Io { operation: Operation::Read, offset: at, source, .. }) => {
                    assert_eq!((at, source.kind()), (offset, io::ErrorKind::UnexpectedEof));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write { block: usize, blocks: usize, fill: u8, skew: usize },
        Discard { block: usize, blocks: usize },
        Read { offset: usize, len: usize },
        Flush,
    }

    const BLOCKS: usize = 96;

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let range = || (0..BLOCKS, 0..40usize).prop_map(|(at, len)| (at, len.min(BLOCKS - at)));
        let op = prop_oneof![
            (range(), 1u8.., prop_oneof![Just(0), Just(512), 1..9usize])
                .prop_map(|((block, blocks), fill, skew)| Op::Write { block, blocks, fill, skew }),
            range().prop_map(|(block, blocks)| Op::Discard { block, blocks }),
            (0..BLOCKS * 512, 0..30_000usize)
                .prop_map(|(offset, len)| Op::Read { offset, len: len.min(BLOCKS * 512 - offset) }),
            Just(Op::Flush),
        ];
        proptest::collection::vec(op, 1..24)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Aligned and unaligned accesses mixed, from memory of any alignment: direct and buffered
        /// descriptors see each other's writes.
        #[test]
        fn an_image_behaves_as_a_vector_of_bytes(ops in ops(), never_direct: bool) {
            let dir = dir();
            let path = dir.path().join("image");
            let device = create_image(&path, BLOCKS as u64 * 512).unwrap();
            let mut model = vec![0u8; BLOCKS * 512];
            for op in ops {
                match op {
                    Op::Write { block, blocks, fill, skew } => {
                        let mut memory = AlignedBuf::zeroed(blocks * 512 + skew);
                        memory.fill(fill);
                        device.write_at(block as u64 * 512, &memory[skew..]).unwrap();
                        model[block * 512..][..blocks * 512].fill(fill);
                    }
                    Op::Discard { block, blocks } => {
                        device.discard(block as u64 * 512, blocks as u64 * 512).unwrap();
                        model[block * 512..][..blocks * 512].fill(0);
                    }
                    Op::Read { offset, len } => {
                        let mut buf = AlignedBuf::zeroed(len);
                        device.read_at(offset as u64, &mut buf).unwrap();
                        prop_assert_eq!(&*buf, &model[offset..][..len]);
                    }
                    Op::Flush => device.flush().unwrap(),
                }
            }
            drop(device);
            prop_assert_eq!(&fs::read(&path).unwrap(), &model);
            let direct = if never_direct { Direct::Never } else { Direct::WherePossible };
            let mut all = vec![0; model.len()];
            open(&path, Access::Read, direct).read_at(0, &mut all).unwrap();
            prop_assert_eq!(all, model);
        }
    }

    #[test]
    fn writes_must_be_whole_blocks_in_range() {
        let dir = dir();
        let path = image(&dir, &[5; 4096 + 100]);
        let device = open_write(&path).unwrap();
        assert!(matches!(device.write_at(100, &[0; 512]), Err(DeviceError::Misaligned { .. })));
        assert!(matches!(device.write_at(0, &[0; 100]), Err(DeviceError::Misaligned { .. })));
        assert!(matches!(device.discard(4096, 512), Err(DeviceError::OutOfRange { .. })));
        assert!(matches!(device.write_at(4096, &[0; 512]), Err(DeviceError::OutOfRange { .. })));
        assert_eq!(fs::read(&path).unwrap(), [5; 4196]);
    }

    #[test]
    fn one_writer_at_a_time_and_readers_any_time() {
        let dir = dir();
        let path = image(&dir, &[0; 8192]);
        let writer = open_write(&path).unwrap();
        match open_write(&path) {
            Err(error @ DeviceError::Busy { .. }) => {
                let text = error.to_string();
                assert!(text.ends_with("is in use; locked by another process"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        open_read(&path).unwrap();
        drop(writer);
        open_write(&path).unwrap();
    }

    #[test]
    fn a_new_image_is_sparse_and_never_replaces_a_file() {
        let dir = dir();
        let path = dir.path().join("new");
        let device = create_image(&path, 8 << 30).unwrap();
        assert_eq!(device.info().size(), Sectors(16 << 20));
        assert!(fs::metadata(&path).unwrap().blocks() < 100);
        drop(device);
        assert!(matches!(
            create_image(&path, 4096),
            Err(DeviceError::Create { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists
        ));
        assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 30);
        let impossible = dir.path().join("impossible");
        assert!(matches!(create_image(&impossible, u64::MAX), Err(DeviceError::Create { .. })));
        assert!(!impossible.exists());
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let dir = dir();
        assert!(matches!(open_read(dir.path()), Err(DeviceError::NotADevice { .. })));
        assert!(matches!(open_write("/dev/null"), Err(DeviceError::NotADevice { .. })));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(open_read(&fifo), Err(DeviceError::NotADevice { .. })));
        assert!(matches!(
            open_read(dir.path().join("nothing")),
            Err(DeviceError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound
        ));
    }
}
