//! `probe-bcache`: which devices are bcache devices, for udev rules and mdev scripts.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use bcache_core::device::open_read;
use bcache_core::device::probe::probe;
use bcache_core::ops::make::read_superblock;

use super::getopt::{Word, Words};
use super::{Call, definition};

pub(super) fn run(call: &Call) -> ExitCode {
    let mut udev = false;
    let mut devices = Vec::new();
    for word in Words::new(&call.program, &definition("probe-bcache"), false, &call.arguments) {
        match word {
            Word::Option(_, Some(format)) if format != "udev" => {
                super::print(&format!("Invalid output format {}\n", format.to_string_lossy()));
                return 1.into();
            }
            Word::Option(..) => udev = true,
            Word::Operand(device) => devices.push(device),
            // Said, and passed over.
            Word::Wrong(message) => eprintln!("{message}"),
        }
    }
    let mut output = String::new();
    for device in devices.iter().map(Path::new) {
        let Some(uuid) = uuid(device) else { continue };
        // Writing to a string does not fail.
        let _ = if udev {
            writeln!(output, "ID_FS_UUID={uuid}\nID_FS_UUID_ENC={uuid}\nID_FS_TYPE=bcache")
        } else {
            writeln!(output, "{}: UUID=\"{uuid}\" TYPE=\"bcache\"", device.display())
        };
    }
    super::print(&output);
    ExitCode::SUCCESS
}

/// The UUID of the bcache device at `path`; `None` where it is none, where something else is on it
/// as well, and where it cannot be read.
fn uuid(path: &Path) -> Option<uuid::Uuid> {
    let device = open_read(path).ok()?;
    let superblock = read_superblock(&device).ok()??;
    let alone = probe(path).ok()?.iter().all(bcache_core::device::Signature::is_bcache);
    (superblock.magic_ok() && alone).then(|| superblock.uuid())
}
