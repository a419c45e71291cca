//! What is said of a device that somebody holds.

use bcache_core::device::DeviceError;
use bcache_core::device::holders::Holder;

/// A device in use, and how to stop what uses it; `of_bcache` says that of what bcache runs.
pub(super) fn in_use(
    error: DeviceError,
    of_bcache: fn(&Holder) -> Option<String>,
) -> anyhow::Error {
    let DeviceError::Busy { holders, .. } = &error else { return error.into() };
    match holders.iter().find_map(|holder| how_to_stop(holder, of_bcache)) {
        Some(how) => anyhow::anyhow!("{error}; {how}; nothing was written"),
        None => anyhow::anyhow!("{error}; nothing was written"),
    }
}

fn how_to_stop(holder: &Holder, of_bcache: fn(&Holder) -> Option<String>) -> Option<String> {
    match holder {
        Holder::Loop { name } => Some(format!(
            "use /dev/{name}, or detach it with `losetup --detach /dev/{name}` once it is not in use"
        )),
        Holder::Partition { holders, .. } | Holder::WholeDisk { holders, .. } => {
            holders.iter().find_map(|holder| how_to_stop(holder, of_bcache))
        }
        holder => of_bcache(holder),
    }
}
