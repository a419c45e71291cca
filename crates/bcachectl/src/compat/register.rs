//! `bcache-register`: has the kernel register a device, as udev's rules do for each that appears.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use bcache_core::device::sysfs::{BlockDir, Root};
use nix::errno::Errno;

use super::{Call, reason};

/// Where the kernel takes devices.
const REGISTER: &str = "/sys/fs/bcache/register";

pub(super) fn run(call: &Call) -> ExitCode {
    let [device] = call.arguments.as_slice() else {
        eprintln!("bcache-register takes exactly one argument");
        return 1.into();
    };
    let device = Path::new(device);
    let mut file = match OpenOptions::new().write(true).open(REGISTER) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("Error opening {REGISTER}: {}", reason(&error));
            eprintln!("The bcache kernel module must be loaded");
            return 1.into();
        }
    };
    // Asking the kernel again would only put an error into its log.
    if registered(device) {
        return ExitCode::SUCCESS;
    }
    match write(&mut file, device) {
        Ok(()) => ExitCode::SUCCESS,
        // Somebody else was faster.
        Err(_) if registered(device) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error registering {} with bcache: {}", device.display(), reason(&error));
            1.into()
        }
    }
}

fn write(file: &mut std::fs::File, device: &Path) -> io::Result<()> {
    // Kernel 6.12 registers read-only devices, and writes to them.
    let sysfs = BlockDir::of_path(&Root::system(), device);
    if sysfs.and_then(|device| device.attribute("ro")).is_some_and(|ro| ro == "1") {
        return Err(Errno::EROFS.into());
    }
    let mut line = device.as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    // The kernel takes one path a write.
    let written = file.write(&line)?;
    if written == line.len() { Ok(()) } else { Err(Errno::EINVAL.into()) }
}

/// Whether bcache has this device already.
fn registered(device: &Path) -> bool {
    BlockDir::of_path(&Root::system(), device).is_some_and(|device| device.bcache().is_some())
}
