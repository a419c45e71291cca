//! What is done once devices are formatted and let go.

use std::path::PathBuf;

use super::DevicePlan;
use crate::device::probe::{ProbeError, probe};
use crate::device::{DeviceError, DeviceKind, Signature, SignatureKind, forget_partitions};

/// Something that is left over on a formatted device, or may be.
#[derive(Debug)]
pub enum Leftover {
    /// The kernel still offers the partitions of a table that is gone. What is written to one of
    /// them lands in the bcache device.
    Partitions {
        /// The disk.
        path: PathBuf,
        /// Why the kernel does not forget them.
        error: DeviceError,
    },
    /// Signatures that survived. A device with two of them confuses the next tool.
    Signatures {
        /// The device.
        path: PathBuf,
        /// What is found beside bcache.
        found: Vec<Signature>,
    },
    /// It could not be looked at again.
    Unprobed {
        /// The device.
        path: PathBuf,
        /// Why.
        error: ProbeError,
    },
}

/// Has the kernel forget partitions that are gone, and looks for what survived on the devices of
/// `plans` that were `formatted`. Their claims must have been dropped.
pub(super) fn finish(plans: &[DevicePlan], formatted: &[PathBuf]) -> Vec<Leftover> {
    let mut left = Vec::new();
    for plan in plans {
        let facts = &plan.facts;
        let path = &facts.info.path;
        if !formatted.contains(path) || facts.info.kind == DeviceKind::Memory {
            continue;
        }
        let had_table = facts.found.iter().any(|it| it.kind == SignatureKind::PartitionTable);
        if facts.info.kind == DeviceKind::Block && had_table {
            if let Err(error) = forget_partitions(path) {
                left.push(Leftover::Partitions { path: path.clone(), error });
            }
        }
        match probe(path) {
            Ok(mut found) => {
                found.retain(|it| !it.is_bcache());
                if !found.is_empty() {
                    left.push(Leftover::Signatures { path: path.clone(), found });
                }
            }
            Err(error) => left.push(Leftover::Unprobed { path: path.clone(), error }),
        }
    }
    left
}
