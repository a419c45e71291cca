//! Image files and loop devices that vanish with the test.

use crate::need::find_program;
use anyhow::{Context as _, bail, ensure};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek as _, SeekFrom, Write as _};
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

/// Copies a stream into a new file; blocks of zeroes become holes.
pub(crate) fn write_sparse(mut source: impl Read, path: &Path) -> anyhow::Result<()> {
    let mut write = || {
        let mut file = File::create(path)?;
        let mut length = 0_u64;
        loop {
            let mut block = Vec::with_capacity(64 << 10);
            let got = source.by_ref().take(64 << 10).read_to_end(&mut block)?;
            if got == 0 {
                return file.set_len(length);
            }
            if block.iter().any(|byte| *byte != 0) {
                file.seek(SeekFrom::Start(length))?;
                file.write_all(&block)?;
            }
            length += got as u64;
        }
    };
    write().with_context(|| format!("write {}", path.display()))
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
