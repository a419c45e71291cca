//! The machine's devices, read by a helper process so that a dead one holds up nothing.

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use bcache_core::device::SuperblockArea;
use bcache_core::device::scan::{self, Helper, QUIET_DEFAULT, Scan};
use bcache_core::device::sysfs::Root;
use bcache_core::inspect::BackingDevice;

/// The hidden subcommand that [`serve`] is.
const SUBCOMMAND: &str = "read-superblocks";

/// Reads the superblock of every block device of the machine.
///
/// # Errors
///
/// When the kernel does not list its devices.
pub fn machine() -> io::Result<Scan> {
    scan::scan(&Root::system(), Some(&Helper::this_program(SUBCOMMAND)), QUIET_DEFAULT)
}

/// The machine's backing devices; what cannot be read is not at hand.
pub fn backing_devices() -> Vec<BackingDevice> {
    let found = machine().map(|scan| scan.devices).unwrap_or_default();
    found
        .into_iter()
        .filter_map(|found| match found.area {
            SuperblockArea::Bcache(superblock) => {
                Some(BackingDevice { path: found.device.path, size: found.device.size, superblock })
            }
            _ => None,
        })
        .collect()
}

/// What the helper process does.
pub(crate) fn serve() -> Result<ExitCode> {
    scan::serve(io::stdin().lock(), io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}
