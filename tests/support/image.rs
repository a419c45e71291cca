//! Image files and loop devices that vanish with the test.

use crate::need::find_program;
use anyhow::{Context as _, bail, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A folder for a test's files, removed with the value.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// An empty folder in the place for temporary files (`TMPDIR`).
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("bcache-test-")
            .tempdir()
            .context("a folder for temporary files")?;
        Ok(Self { folder })
    }

    /// The path of a file in the folder, which need not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image of `size` bytes that reads as zeroes and takes no space until it is written.
    pub fn sparse(&self, name: &str, size: u64) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        file.set_len(size).with_context(|| format!("set the size of {}", path.display()))?;
        Ok(path)
    }

    /// A copy of an image in the folder, its zeroes as holes.
    pub fn copy(&self, name: &str, from: &Path) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        // It skips the holes of the source, which can be most of it.
        let status = Command::new("cp").arg("--sparse=always").args([from, &path]).status();
        ensure!(
            status.context("run cp")?.success(),
            "cannot copy {} to {}",
            from.display(),
            path.display()
        );
        Ok(path)
    }
}

/// Writes at `offset` bytes into an image file.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    };
    write()
        .with_context(|| format!("write {} bytes at {offset} of {}", bytes.len(), path.display()))
}

/// Bytes that are looked at as one.
const BLOCK_BYTES: usize = 64 << 10;

/// Copies a stream into an empty file; blocks of zeroes become holes.
pub(crate) fn write_sparse(mut source: impl Read, file: &mut File) -> io::Result<()> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut length = 0_u64;
    loop {
        block.clear();
        let got = source.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
        if got == 0 {
            return file.set_len(length);
        }
        if !is_zeroed(&block) {
            file.seek(SeekFrom::Start(length))?;
            file.write_all(&block)?;
        }
        length += got as u64;
    }
}

/// Compared with zeroes, and not looked through byte by byte: that is one call of `memcmp`, in a build for
/// tests too.
fn is_zeroed(block: &[u8]) -> bool {
    static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    ZEROES.get(..block.len()) == Some(block)
}

/// All bytes of an image, to be compared with what they are later. Zeroes are not kept, and holes not read.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    size: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Contents {
    /// What the file holds now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        Self::read(path).with_context(|| format!("read {}", path.display()))
    }

    /// Whether nothing but zeroes is there.
    pub fn is_zero(&self) -> bool {
        self.blocks.is_empty()
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut blocks = BTreeMap::new();
        let mut next = 0;
        while next < size {
            let data = match lseek(&file, next.try_into()?, Whence::SeekData) {
                Ok(offset) => u64::try_from(offset)?,
                // Nothing but a hole is left.
                Err(Errno::ENXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let offset = data - data % BLOCK_BYTES as u64;
            let mut block = vec![0; usize::try_from(size - offset)?.min(BLOCK_BYTES)];
            file.read_exact_at(&mut block, offset)?;
            next = offset + block.len() as u64;
            if !is_zeroed(&block) {
                blocks.insert(offset, block);
            }
        }
        Ok(Self { size, blocks })
    }
}

/// Not the bytes: they are more than anybody reads.
impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} blocks of them not zero", self.size, self.blocks.len())
    }
}

/// A loop device over an image file, detached with the value.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a free loop device to `image`, with logical sectors of `sector_size` bytes (512 to
    /// 4096).
    ///
    /// # Errors
    /// When `losetup` fails: no root, or no free loop device.
    pub fn attach(image: &Path, sector_size: u32) -> anyhow::Result<Self> {
        let output = losetup()?
            .args(["--find", "--show", "--sector-size", &sector_size.to_string()])
            .arg(image)
            .output()
            .context("run losetup")?;
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || path.is_empty() {
            bail!(
                "losetup of {}: {}",
                image.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(Self { path: PathBuf::from(path) })
    }

    /// The device's path, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = losetup().and_then(|mut command| {
            Ok(command.arg("--detach").arg(&self.path).status().context("run losetup")?.success())
        });
        if !matches!(detached, Ok(true)) {
            eprintln!("{} could not be detached: {detached:?}", self.path.display());
        }
    }
}

fn losetup() -> anyhow::Result<Command> {
    Ok(Command::new(find_program("losetup").context("losetup is missing (package mount)")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_differ_in_a_byte_wherever_it_is() -> anyhow::Result<()> {
        const SIZE: u64 = 3 * BLOCK_BYTES as u64 + 100;
        let scratch = Scratch::new()?;
        let (one, other) = (scratch.sparse("one", SIZE)?, scratch.sparse("other", SIZE)?);
        assert!(Contents::of(&one)?.is_zero());
        // Zeroes that were written are what a hole is.
        write_at(&one, 0, &vec![0; usize::try_from(SIZE)?])?;
        assert_eq!(Contents::of(&one)?, Contents::of(&other)?);
        for at in [0, BLOCK_BYTES as u64 - 1, 2 * BLOCK_BYTES as u64 + 7, SIZE - 1] {
            write_at(&one, at, &[1])?;
            assert_ne!(Contents::of(&one)?, Contents::of(&other)?, "{at}");
            write_at(&other, at, &[1])?;
            assert_eq!(Contents::of(&one)?, Contents::of(&other)?, "{at}");
        }
        File::options().write(true).open(&other)?.set_len(SIZE + 1)?;
        assert_ne!(Contents::of(&one)?, Contents::of(&other)?);
        Ok(())
    }
}
