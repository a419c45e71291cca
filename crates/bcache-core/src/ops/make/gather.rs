//! Looking at devices before they are formatted.

use std::io;
use std::path::{Path, PathBuf};

use super::error::MakeError;
use super::facts::{DeviceFacts, facts_of_new_image};
use super::run::{RunError, check_distinct};
use crate::device::file;
use crate::device::probe::probe;
use crate::inspect::SearchMachine;
use crate::layout::superblock::Kind;

/// Why the facts about the devices cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The devices cannot be formatted together, whatever is on them.
    #[error(transparent)]
    Devices(MakeError),
    /// An image file was to be made, and it is there.
    #[error("{} exists", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no such device or file, and none was to be made.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be told whether there is such a device or file.
    #[error("cannot look at {}", path.display())]
    Look {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A device cannot be opened, read or probed, or is in use.
    #[error(transparent)]
    Device(#[from] RunError),
}

/// Looks at each of `devices` without writing; refuses what is in use, and devices that are one.
///
/// With `new_size_bytes`, all of them are image files to be made of that size. See
/// [`DeviceFacts::of_device`] for `search`.
pub fn gather(
    devices: &[(Kind, PathBuf)],
    new_size_bytes: Option<u64>,
    search: Option<SearchMachine>,
) -> Result<Vec<DeviceFacts>, GatherError> {
    let paths: Vec<PathBuf> = devices.iter().map(|(_, path)| path.clone()).collect();
    if paths.is_empty() {
        return Err(GatherError::Devices(MakeError::NoDevices));
    }
    check_distinct(&paths).map_err(GatherError::Devices)?;
    devices.iter().map(|(kind, path)| gather_one(*kind, path, new_size_bytes, search)).collect()
}

fn gather_one(
    kind: Kind,
    path: &Path,
    new_size_bytes: Option<u64>,
    search: Option<SearchMachine>,
) -> Result<DeviceFacts, GatherError> {
    let path_buf = || path.to_owned();
    match (new_size_bytes, path.try_exists()) {
        (_, Err(source)) => Err(GatherError::Look { path: path_buf(), source }),
        (Some(size_bytes), Ok(false)) => Ok(facts_of_new_image(kind, path, size_bytes)),
        (Some(_), Ok(true)) => Err(GatherError::Exists { path: path_buf() }),
        (None, Ok(false)) => Err(GatherError::Missing { path: path_buf() }),
        (None, Ok(true)) => Ok(facts_of(kind, path, search)?),
    }
}

/// Looks at `path` without writing; refuses what is in use.
pub fn facts_of(
    kind: Kind,
    path: &Path,
    search: Option<SearchMachine>,
) -> Result<DeviceFacts, RunError> {
    let device = file::open_unused(path)?;
    Ok(DeviceFacts::of_device(kind, &device, probe(path)?, search)?)
}
