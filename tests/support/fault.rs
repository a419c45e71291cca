//! Devices and images that fail under a real program.
//!
//! Three ways, none of which needs a kernel module beyond `loop`:
//!
//! - [`FullLoop`]: a loop device of which chosen ranges refuse writes with `ENOSPC`, as a thin
//!   device does that has run out of space. Its backing file is on a tmpfs of its own, allocated
//!   except in those ranges, and the rest of the tmpfs is full. Needs root.
//! - [`ShortLoop`]: a loop device whose reads from some offset on fail with `EIO`, as those of a
//!   broken disk do. Its backing file was cut after it was attached. Needs root.
//! - [`with_writes_refused_from`]: a program whose writes to any file fail with `EFBIG` from some
//!   offset on (`RLIMIT_FSIZE`); a write across the limit is cut there, so that it is torn. For
//!   images, without privileges.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// Unit in which tmpfs allocates, and so of the ranges that fail.
pub const FAULT_UNIT_BYTES: u64 = 4096;

/// A loop device that is taken away when dropped.
#[derive(Debug)]
struct Attached(PathBuf);

impl Attached {
    fn new(image: &Path, options: &[&str]) -> io::Result<Self> {
        let output =
            run(Command::new("losetup").args(["--find", "--show"]).args(options).arg(image))?;
        Ok(Self(PathBuf::from(output.trim())))
    }

    fn name(&self) -> io::Result<&OsStr> {
        self.0.file_name().ok_or_else(|| io::Error::other("losetup named no device"))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        report(run(Command::new("losetup").arg("--detach").arg(&self.0)));
    }
}

/// A tmpfs that is unmounted when dropped.
#[derive(Debug)]
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new(size_bytes: u64) -> io::Result<Self> {
        let dir = TempDir::new()?;
        let options = format!("size={size_bytes},nr_inodes=16,mode=700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()))?;
        Ok(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // The kernel closes the file of a loop device a little after the device is detached.
        let mut tries = 100;
        let result = loop {
            let result = run(Command::new("umount").arg(self.0.path()));
            tries -= 1;
            if result.is_ok() || tries == 0 {
                break result;
            }
            thread::sleep(Duration::from_millis(20));
        };
        report(result);
    }
}

/// The kernel's limit on the size of a loop device's requests, lifted when dropped: the device
/// keeps it for its next user.
#[derive(Debug)]
struct SmallRequests(PathBuf);

impl SmallRequests {
    fn new(device: &Attached) -> io::Result<Self> {
        let queue = Path::new("/sys/class/block").join(device.name()?).join("queue");
        let limit = queue.join("max_sectors_kb");
        fs::write(&limit, (FAULT_UNIT_BYTES / 1024).to_string())?;
        Ok(Self(limit))
    }
}

impl Drop for SmallRequests {
    fn drop(&mut self) {
        // To the kernel 0 is its own default.
        report(fs::write(&self.0, "0").map(|()| String::new()));
    }
}

/// A loop device of which some ranges cannot be written.
///
/// It takes memory for all that can. Reads of the bad ranges give zeroes. It is for programs that do
/// not discard: a discard gives back space, which the bad ranges can then take. (The discard limit
/// of the queue is no help: a loop device on which it was once 0 never discards again.) Requests are cut to one unit,
/// for the loop driver reports a write that its file system cut short as done; of a write that
/// runs into a bad range, the units before it are written.
#[derive(Debug)]
pub struct FullLoop {
    // In the order in which they must be dropped.
    _requests: SmallRequests,
    device: Attached,
    _backing: Tmpfs,
}

impl FullLoop {
    /// A device of `size_bytes` that refuses writes to the ranges `bad`, in bytes. All of them
    /// must be multiples of [`FAULT_UNIT_BYTES`].
    pub fn new(size_bytes: u64, bad: &[Range<u64>]) -> io::Result<Self> {
        let whole = |bytes: u64| bytes % FAULT_UNIT_BYTES == 0;
        let in_range = |range: &Range<u64>| range.start <= range.end && range.end <= size_bytes;
        if !whole(size_bytes)
            || !bad.iter().all(|bad| whole(bad.start) && whole(bad.end) && in_range(bad))
        {
            return Err(io::Error::other("sizes and ranges must be whole units in the device"));
        }
        let backing = Tmpfs::new(size_bytes + 64 * FAULT_UNIT_BYTES)?;
        let image_path = backing.0.path().join("image");
        let image = File::create_new(&image_path)?;
        image.set_len(size_bytes)?;
        for good in complement(size_bytes, bad) {
            let length = (good.end - good.start).to_string();
            let offset = good.start.to_string();
            run(Command::new("fallocate")
                .args(["--offset", &offset, "--length", &length])
                .arg(&image_path))?;
        }
        fill_up(&backing.0.path().join("filler"))?;
        let device = Attached::new(&image_path, &[])?;
        let requests = SmallRequests::new(&device)?;
        Ok(Self { _requests: requests, device, _backing: backing })
    }

    /// Its node in `/dev`.
    pub fn path(&self) -> &Path {
        &self.device.0
    }
}

/// A loop device that cannot be read from some offset on. Writes there succeed, and what was
/// written then reads back up to its end.
#[derive(Debug)]
pub struct ShortLoop {
    device: Attached,
}

impl ShortLoop {
    /// A device of the size of `image` that fails reads at and after `bad_from`, in bytes, a
    /// multiple of [`FAULT_UNIT_BYTES`]. The image is cut there for good: give it a copy.
    pub fn new(image: &Path, bad_from: u64) -> io::Result<Self> {
        // Only direct transfers see the end of the file; buffered ones fill up with zeroes.
        let device = Attached::new(image, &["--direct-io=on"])?;
        OpenOptions::new().write(true).open(image)?.set_len(bad_from)?;
        Ok(Self { device })
    }

    /// Its node in `/dev`.
    pub fn path(&self) -> &Path {
        &self.device.0
    }
}

/// A command that runs `program` with its writes to files refused from `offset` on. Arguments can
/// be added as to any command. Pipes are not affected.
pub fn with_writes_refused_from(program: impl AsRef<OsStr>, offset: u64) -> Command {
    let mut command = Command::new("sh");
    // The signal must be ignored, or it ends the program before it sees the error.
    command
        .args(["-c", r#"trap "" XFSZ; exec prlimit --fsize="$0" -- "$@""#, &offset.to_string()])
        .arg(program);
    command
}

/// What of a device of `size_bytes` is not in `bad`.
fn complement(size_bytes: u64, bad: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut bad = bad.to_vec();
    bad.sort_by_key(|range| range.start);
    let mut good = Vec::new();
    let mut from = 0;
    for range in bad {
        if from < range.start {
            good.push(from..range.start);
        }
        from = from.max(range.end);
    }
    if from < size_bytes {
        good.push(from..size_bytes);
    }
    good
}

/// Writes until the file system is full.
fn fill_up(path: &Path) -> io::Result<()> {
    let mut filler = File::create_new(path)?;
    let unit = [0; 4096];
    loop {
        match filler.write(&unit) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Runs a command and gives its output, or an error that says what it said.
fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{command:?}: {}: {}", output.status, said.trim())))
}

/// For clean-up in a drop, where an error can only be shown.
fn report(result: io::Result<String>) {
    if let Err(error) = result {
        eprintln!("clean-up failed: {error}");
    }
}
