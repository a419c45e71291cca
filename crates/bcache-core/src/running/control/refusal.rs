//! Why something is not done.

use std::path::PathBuf;

use uuid::Uuid;

use crate::device::DeviceError;
use crate::running::findings::DeviceState;
use crate::units::Sectors;

/// Why something is refused before anything is written.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The module is not loaded.
    #[error("the kernel's bcache is not there: /sys/fs/bcache is missing")]
    NoModule,
    /// Not a block device.
    #[error("{} is no block device", path.display())]
    NotABlockDevice {
        /// The path.
        path: PathBuf,
    },
    /// The device could not be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel would refuse the superblock.
    #[error("the kernel would refuse {device}: {reason}")]
    KernelWouldRefuse {
        /// The device.
        device: String,
        /// In the kernel's words.
        reason: String,
    },
    /// It is write-protected. Some kernels refuse it, others write to it all the same.
    #[error("{device} is read-only")]
    ReadOnly {
        /// The device.
        device: String,
    },
    /// It has the UUID of another device that is registered.
    #[error(
        "{device} has the same UUID {uuid} as {other}, which is registered: it is a copy of it, or another path to it"
    )]
    SameUuid {
        /// The device.
        device: String,
        /// The UUID of the device or set.
        uuid: Uuid,
        /// The registered one.
        other: String,
    },
    /// Somebody uses it.
    #[error("{device} is in use: {}", users.join("; "))]
    InUse {
        /// The device.
        device: String,
        /// Who uses it, in words.
        users: Vec<String>,
    },
    /// The set's cache was lost while this backing device went on: reads would return old contents.
    #[error(
        "{backing} went on without this cache after it failed: with the cache back, reads of {bcache} would return its old contents"
    )]
    CacheIsStale {
        /// The backing device.
        backing: String,
        /// The device it runs as.
        bcache: String,
    },
    /// The backing device was started without its cache: its dirty data would be dropped.
    #[error("{backing} was started without its cache: {}", drops(*dirty))]
    DropsDirtyData {
        /// The backing device.
        backing: String,
        /// How much there is at least, where some was found.
        dirty: Option<Sectors>,
    },
    /// The device is not registered.
    #[error("{device} is not registered as a backing device")]
    NotRegistered {
        /// The device.
        device: String,
    },
    /// Its state does not allow it.
    #[error("{device} is {state}{}", set.map(|set| format!(" (set {set})")).unwrap_or_default())]
    WrongState {
        /// The device.
        device: String,
        /// Its state.
        state: DeviceState,
        /// The set that it is attached to, or that its superblock names.
        set: Option<Uuid>,
    },
    /// The kernel attaches it to its own set, and another set could hold its old contents.
    #[error("{device} waits for its set{}", set.map(|set| format!(" {set}")).unwrap_or_default())]
    WaitsForItsSet {
        /// The device.
        device: String,
        /// The set that its superblock names.
        set: Option<Uuid>,
    },
    /// The set's blocks are larger than the device's.
    #[error("the set has blocks of {set_bytes} bytes, {device} was made with {device_bytes}")]
    BlockSize {
        /// The device.
        device: String,
        /// Block size of the set in bytes.
        set_bytes: u64,
        /// Block size of the backing device in bytes.
        device_bytes: u64,
    },
    /// It has dirty data that the kernel does not write back by itself ([`taken_for_clean`](crate::running::Backing::taken_for_clean)).
    #[error(
        "the kernel takes {device} for clean, and does not write back the dirty data of it before something more is written"
    )]
    TakenForClean {
        /// The device.
        device: String,
    },
    /// It starts without dirty data.
    #[error(
        "{device} is dirty: what was written last is only on its cache, and is lost if {device} starts without it"
    )]
    Dirty {
        /// The device.
        device: String,
    },
    /// A label that the kernel does not take.
    #[error("a label of {bytes} bytes is too long: at most {most}")]
    LabelTooLong {
        /// Its length.
        bytes: usize,
        /// The most that fits.
        most: usize,
    },
    /// A label with a newline or a NUL.
    #[error("a label cannot have control characters")]
    LabelCharacters,
    /// A size that makes no volume.
    #[error("{bytes} bytes are too few for a volume: at least a bucket of {bucket_bytes} bytes")]
    VolumeTooSmall {
        /// The size asked for.
        bytes: u64,
        /// Bytes of a bucket.
        bucket_bytes: u64,
    },
    /// More than the cache has.
    #[error("{bytes} bytes are more than the {available_bytes} that the cache has available")]
    VolumeTooLarge {
        /// The size asked for.
        bytes: u64,
        /// What is available.
        available_bytes: u64,
    },
    /// What is needed to judge it could not be read.
    #[error("cannot tell {what} of {device}")]
    CannotTell {
        /// Which figure.
        what: &'static str,
        /// The device or set.
        device: String,
    },
    /// The set has flash-only volumes.
    #[error("the set {set} has flash-only volumes, whose data exists nowhere else: {}", volumes.join(", "))]
    HasVolumes {
        /// The set.
        set: Uuid,
        /// The bcache devices.
        volumes: Vec<String>,
    },
}

fn drops(dirty: Option<Sectors>) -> String {
    match dirty {
        Some(dirty) => {
            format!("the cache holds {dirty} of it that is nowhere else, and the kernel drops that")
        }
        None => "if that holds dirty data of it, the kernel drops it now".to_owned(),
    }
}
