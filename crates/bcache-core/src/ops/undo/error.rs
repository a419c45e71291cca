//! What can go wrong with saving and undoing.

use std::io;
use std::path::PathBuf;

use crate::cache_set::view::LookupError;
use crate::cache_set::{OpenError, ReadError};
use crate::device::DeviceError;
use crate::device::packed::PackedError;

/// Why nothing was saved. The operation does not begin, or ends before the part that was to be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is such a file.
    #[error("{} exists already", path.display())]
    Exists {
        /// The undo file, or the one it is written to first.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("{}: the undo file cannot be written", path.display())]
    Write {
        /// The undo file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is there cannot be read.
    #[error("what would be overwritten cannot be read")]
    Device(#[from] DeviceError),
    /// The operation discards, and what it discards cannot be saved.
    #[error("what is discarded cannot be saved")]
    Discards,
    /// The steps cannot be told before they are made.
    #[error("what would be written cannot be told in advance")]
    Steps(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The image that would be written cannot be read.
    #[error(transparent)]
    Image(#[from] PackedError),
}

/// Why devices were not taken back.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The file is none of undo.
    #[error("{}: no undo file", path.display())]
    NotUndo {
        /// The file.
        path: PathBuf,
    },
    /// A later version made it.
    #[error("{}: an undo file of version {version}, which is not known", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A part of the file is missing or damaged.
    #[error("{}: the undo file is damaged or cut short: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part.
        what: &'static str,
    },
    /// What was saved of a device is damaged, or cannot be read.
    #[error("{}: the undo file cannot be used", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PackedError,
    },
    /// There are more or fewer devices than the file has.
    #[error("the undo file is of {expected} devices, {found} were given")]
    Devices {
        /// In the file.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// A device is not as long as the one that was written.
    #[error("{}: the undo file is of a device of {expected} bytes, this one has {found}", path.display())]
    OtherSize {
        /// The device.
        path: PathBuf,
        /// Bytes of the device that was written.
        expected: u64,
        /// Bytes of this one.
        found: u64,
    },
    /// Something else was written to the device.
    #[error("{}: the device has changed since, at byte {offset} or soon after", path.display())]
    Changed {
        /// The device.
        path: PathBuf,
        /// Where the sector or piece begins that is neither as before nor as after.
        offset: u64,
    },
    /// The cache, taken back, would hide what was written to a backing device since.
    #[error("{}: the data has changed since, at sector {sector} or soon after", path.display())]
    DataChanged {
        /// The backing device.
        path: PathBuf,
        /// A sector of it.
        sector: u64,
    },
    /// The cache as it was could not be read to compare its data.
    #[error("the cache as it was cannot be read")]
    OldCache(#[from] OpenError),
    /// The same.
    #[error("the cache as it was cannot be read")]
    OldSet(#[from] ReadError),
    /// The same.
    #[error("the cache as it was cannot be read")]
    Lookup(#[from] LookupError),
    /// A device could not be read or written.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What was put back reads differently.
    #[error("{}: byte {offset} is not what was put back", path.display())]
    Differs {
        /// The device.
        path: PathBuf,
        /// Start of the piece that differs.
        offset: u64,
    },
}
