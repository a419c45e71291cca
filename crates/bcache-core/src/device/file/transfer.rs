//! Transfers that are cut short or interrupted, and holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// Reads until `needed` bytes at the head of `buf` are filled.
///
/// `buf` may reach past the end of the file, as it must where the last block of an image is not
/// whole. A short transfer goes on from the last multiple of `align`.
pub(super) fn read_full(
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
pub(super) fn write_full(file: &File, offset: u64, data: &[u8], align: usize) -> io::Result<()> {
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

pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
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
