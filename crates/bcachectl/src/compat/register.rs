//! `bcache-register`: has the kernel register a device, as udev's rules do for each that appears.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use bcache_core::device::open_read;
use bcache_core::device::sysfs::{BlockDir, Root};
use bcache_core::layout::superblock::Kind;
use bcache_core::ops::make::read_superblock;
use bcache_core::running::View;
use bcache_core::running::control::{Refusal, joins, returns_to};
use nix::errno::Errno;

use super::{Call, reason};

/// Where the kernel takes devices.
const REGISTER: &str = "/sys/fs/bcache/register";

pub(super) fn run(call: &Call) -> ExitCode {
    let [device] = call.arguments.as_slice() else {
        eprintln!("bcache-register takes exactly one argument");
        return 1.into();
    };
    register(Path::new(device))
}

/// Registers the device at a path.
pub(super) fn register(device: &Path) -> ExitCode {
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
    if let Err(refusal) = returns(device) {
        let device = device.display();
        eprintln!(
            "Error registering {device} with bcache: {refusal}; `bcachectl register {device}` says \
             what can be done"
        );
        return 1.into();
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

/// Refuses a cache and a backing device that meet again after one went on without the other: the
/// kernel would attach them, reads would return old contents, or dirty data would be dropped.
fn returns(device: &Path) -> Result<(), Refusal> {
    let superblock = open_read(device).ok().and_then(|it| read_superblock(&it).ok().flatten());
    let Some(superblock) = superblock else { return Ok(()) };
    // A view that cannot be read keeps nobody from booting.
    let Ok(view) = View::read(&Root::system()) else { return Ok(()) };
    match superblock.kind() {
        Some(Kind::Cache) => returns_to(&view, device, superblock.set_uuid(), false),
        // Without it a machine may not boot: that wants to be certain.
        Some(Kind::Backing) => {
            let name = device.display().to_string();
            joins(&view, device, &superblock, &name, true)
        }
        None => Ok(()),
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
    BlockDir::of_path(&Root::system(), device).is_some_and(|device| device.role().is_some())
}
