//! What is inside a backing device, with the command that reaches it without bcache; and what udev
//! and the machine's other devices mean for it.

use std::path::{Path, PathBuf};

use bcache_core::device::probe::{UdevView, udev_view};
use bcache_core::device::same_uuid::{Relation, is_same_path, same_uuid};
use bcache_core::device::sysfs::Root;
use bcache_core::device::{Content, ReadDevice, Signature, SignatureKind, volume_content};
use bcache_core::units::Sectors;
use uuid::Uuid;

use crate::render::device::{DataReport, DeviceReport, shell_quoted};
use crate::scan;

/// Notes what the data of a backing device is. Where it cannot be told, the general commands stay.
pub(super) fn note_contents(report: &mut DeviceReport, handle: &dyn ReadDevice) {
    let Some(data) = &mut report.data else { return };
    let data_offset = Sectors(data.offset_bytes / 512);
    match volume_content(handle, data_offset) {
        Ok(Content::Blank) => data.contents = Some("nothing that could be found".to_owned()),
        Ok(Content::Unknown) => data.contents = Some("data of an unknown format".to_owned()),
        Ok(Content::Known(found)) => {
            let said: Vec<String> = found.iter().map(ToString::to_string).collect();
            data.contents = Some(said.join("; "));
            if let Some(first) = found.first() {
                data.commands = commands(first, data, &report.path);
            }
        }
        Err(_) => {}
    }
}

/// The commands that reach what was found; `/dev/loopN` is the name that the first prints.
fn commands(found: &Signature, data: &DataReport, path: &Path) -> Vec<String> {
    let then = match found.kind {
        SignatureKind::Filesystem => return vec![data.mount.clone()],
        SignatureKind::PartitionTable => {
            let (offset, path) = (data.offset_bytes, shell_quoted(path));
            return vec![
                format!("losetup --find --show --read-only --partscan --offset {offset} {path}"),
                "lsblk --fs /dev/loopN".to_owned(),
            ];
        }
        SignatureKind::Crypto => "cryptsetup open --readonly /dev/loopN NAME",
        SignatureKind::Lvm => "vgchange --activate y",
        SignatureKind::Raid => "mdadm --examine /dev/loopN",
        SignatureKind::Bcache => "bcachectl show /dev/loopN",
        SignatureKind::Swap | SignatureKind::Other => "blkid --probe /dev/loopN",
    };
    vec![data.losetup.clone(), then.to_owned()]
}

/// Warns where udev does not take the device for bcache, so that nothing registers it.
pub(super) fn warn_of_udev(report: &mut DeviceReport) {
    if report.superblock.is_none() {
        return;
    }
    let warning = match udev_view(&report.path) {
        Ok(UdevView::Other { type_name }) => format!(
            "udev takes this device for {type_name}, not for bcache: it is not registered at boot"
        ),
        Ok(UdevView::Ambiguous) => {
            "udev finds several signatures and takes this device for none of \
                                    them: it is not registered at boot"
                .to_owned()
        }
        // A superblock that libblkid rejects is one that the kernel rejects, too.
        Ok(UdevView::Bcache | UdevView::Nothing) | Err(_) => return,
    };
    report.kernel.warnings.push(warning);
}

/// Warns where devices of the machine carry the UUID of one of `reports`.
pub(super) fn warn_of_same_uuid(reports: &mut [DeviceReport]) {
    let named: Vec<(PathBuf, Uuid)> = reports.iter().filter_map(identity).collect();
    if named.is_empty() {
        return;
    }
    let mut all = named.clone();
    for found in scan::seen() {
        if !named.iter().any(|(named, _)| is_same_path(named, &found.path)) {
            all.push((found.path, found.superblock.uuid()));
        }
    }
    for group in same_uuid(&Root::system(), &all) {
        for report in reports.iter_mut() {
            if !group.devices.contains(&report.path) {
                continue;
            }
            let others: Vec<String> = group
                .devices
                .iter()
                .filter(|path| **path != report.path)
                .map(|path| path.display().to_string())
                .collect();
            let others = others.join(", ");
            report.kernel.warnings.extend(match group.relation {
                Relation::Layers => None,
                Relation::Paths => Some(format!(
                    "the same disk is {others}, too: use one multipath device over all of its paths"
                )),
                Relation::Copies => Some(format!(
                    "the same UUID is on {others}: one is a copy of the other. The kernel attaches \
                     only the first that it meets: take the copy away before anything is registered"
                )),
            });
        }
    }
}

fn identity(report: &DeviceReport) -> Option<(PathBuf, Uuid)> {
    let uuid = report.superblock.as_ref().filter(|sb| sb.checksum == "ok")?.uuid.parse().ok()?;
    Some((report.path.clone(), uuid))
}
