//! The machine's devices, read by a helper process so that a dead one holds up nothing.

use std::io;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Result;
use bcache_core::device::scan::{self, Helper, QUIET_DEFAULT, Scan, Scanned};
use bcache_core::device::sysfs::Root;
use bcache_core::device::{ReadDevice as _, SuperblockArea, open_read};
use bcache_core::inspect::{BackingDevice, Seen};
use bcache_core::layout::verdict::kernel_verdict;

/// The hidden subcommand that [`serve`] is.
const SUBCOMMAND: &str = "read-superblocks";

/// The superblocks of every block device of the machine, read once: a device that does not answer is
/// waited for once.
///
/// # Errors
///
/// When the kernel does not list its devices.
pub fn machine() -> io::Result<&'static Scan> {
    static MACHINE: OnceLock<Scan> = OnceLock::new();
    if let Some(scan) = MACHINE.get() {
        return Ok(scan);
    }
    let scan = scan::scan(&Root::system(), Some(&Helper::this_program(SUBCOMMAND)), QUIET_DEFAULT)?;
    Ok(MACHINE.get_or_init(|| scan))
}

/// The machine's backing devices; what cannot be read is not at hand.
pub fn backing_devices() -> Vec<BackingDevice> {
    let found = machine().map_or(&[][..], |scan| &scan.devices);
    found
        .iter()
        .filter_map(|found| match &found.area {
            SuperblockArea::Bcache(superblock) => Some(BackingDevice {
                path: found.device.path.clone(),
                size: found.device.size,
                superblock: superblock.clone(),
                registers: open_read(&found.device.path).is_ok_and(|device| {
                    kernel_verdict(superblock, &device.info().target()).accepts()
                }),
                is_mendable: false,
            }),
            _ => None,
        })
        .collect()
}

/// The machine's devices that carry superblocks of bcache; what cannot be read is not at hand.
pub fn seen() -> Vec<Seen> {
    let found = machine().map_or(&[][..], |scan| &scan.devices);
    let seen = |found: &Scanned| {
        let superblock = found.area.superblock()?.clone();
        Some(Seen { path: found.device.path.clone(), superblock })
    };
    found.iter().filter_map(seen).collect()
}

/// What the helper process does.
pub(crate) fn serve() -> Result<ExitCode> {
    scan::serve(io::stdin().lock(), io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}
