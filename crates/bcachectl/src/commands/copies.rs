//! Copies of the devices that a command uses, in the rest of the machine: told of those that were named,
//! and a reason to refuse where the command would have to pick one.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use bcache_core::device::{DeviceInfo, DeviceKind, ReadDevice};
use bcache_core::inspect::{Device, copies_of_device};
use bcache_core::layout::superblock::Superblock;

use crate::scan;

/// The copies of a device among the machine's. Of an image file none is looked for.
pub(super) fn in_machine(info: &DeviceInfo, superblock: &Superblock) -> Vec<PathBuf> {
    if info.kind != DeviceKind::Block {
        return Vec::new();
    }
    let seen = scan::seen();
    let others = seen.iter().map(|it| (it.path.as_path(), &it.superblock));
    copies_of_device(&info.path, superblock, others).into_iter().map(|it| it.other).collect()
}

/// Says on standard error that a device that was named has copies, and that it is `done` (read, written)
/// all the same.
pub(super) fn warn(device: &dyn ReadDevice, done: &str) -> Result<()> {
    let info = device.info();
    let superblock = Device::read_superblock(device).ok().and_then(|it| it.superblock);
    let copies = superblock.map(|superblock| in_machine(info, &superblock)).unwrap_or_default();
    if !copies.is_empty() {
        let (path, copies) = (info.path.display(), listed(&copies));
        writeln!(
            io::stderr(),
            "bcachectl: warning: {path} has the same UUID as {copies}: one is a copy of the other. \
             {path} is {done}, as it was named"
        )?;
    }
    Ok(())
}

/// Paths as a person reads them.
pub(super) fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}
