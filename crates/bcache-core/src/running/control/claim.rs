//! Whether somebody holds a device.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Whether nobody holds the device. Opened for reading only: closing a device that was open for
/// writing makes udev look at it again, which would register it.
pub(crate) fn claimable(path: &Path) -> bool {
    let flags = nix::libc::O_EXCL | nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path).is_ok()
}
