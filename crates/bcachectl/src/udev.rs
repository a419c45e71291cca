//! Waiting for udev.

use std::path::Path;
use std::process::{Command, Stdio};

/// Returns when udev is through with what has happened so far: it registers devices that were made,
/// and whoever made them wants to find them registered, or to register them without being too late.
pub(crate) fn settle() {
    if !Path::new("/run/udev/control").exists() {
        return;
    }
    // Where it cannot be waited for, what was made is no worse.
    let _ = Command::new("udevadm")
        .args(["settle", "--timeout=60"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}
