//! Why a repair is not planned.

use std::path::PathBuf;

use crate::cache_set::{OpenError, ReadError};
use crate::device::DeviceError;
use crate::inspect::InspectError;
use crate::ops::repair::ClaimError;

/// Why there is no plan. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A device could not be read.
    #[error("the device cannot be read")]
    Device(#[from] DeviceError),
    /// There is no cache superblock, nor what is left of one.
    #[error("{}: no cache set that could be repaired", path.display())]
    NoCache {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// A device cannot be inspected.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// A superblock is gone or overwritten, and nothing tells the whole UUID of its set.
    #[error(
        "{}: the superblock of its set has to be made again, and only the backing devices of that set have the \
         whole of its UUID: name one of them",
        path.display()
    )]
    SetUuid {
        /// The cache.
        path: PathBuf,
    },
    /// There is not enough memory to read the set.
    #[error("{}: the cache set cannot be read", path.display())]
    NotRead {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// A claim is refused.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}
