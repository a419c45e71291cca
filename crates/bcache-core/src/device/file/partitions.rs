//! The partitions that the kernel still has of a disk which was overwritten.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::libc;

use crate::device::sysfs::{BlockDir, Root};
use crate::device::{DeviceError, ioctl};

/// How often, and how long apart, a partition table is read anew whose partitions are open.
const REREAD_TRIES: u32 = 10;
const REREAD_PAUSE: Duration = Duration::from_millis(50);

/// Has the kernel read the partition table of the disk at `path` anew, after it was overwritten.
/// The claim on the disk must have been dropped.
///
/// `false` where the kernel lists no partitions of it, so that there is nothing to forget.
pub fn forget_partitions(path: impl AsRef<Path>) -> Result<bool, DeviceError> {
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
