//! The things that a person can do, or had better not do.

use std::path::PathBuf;

use uuid::Uuid;

use crate::units::Sectors;

/// Why a device must not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Danger {
    /// A set is behind a superblock that is not its own, and would be overwritten.
    CoversSet,
    /// The kernel would initialise the set and lose everything in it.
    Initialises,
    /// The kernel would go back to an older state of the set.
    OlderState,
    /// The kernel would start garbage as flash-only volumes, and would not find the owners.
    NoTable,
    /// The kernel does not notice what is wrong with the btree, and would return older data.
    LostKeys,
    /// Dirty keys are older than the gens of their buckets: the kernel would return older data.
    StaleKeys,
    /// The kernel's allocator knows no such replacement policy, and would never end.
    Hangs,
    /// What the cache holds clean is not what the backing device holds: one is old, or another.
    OtherData,
    /// A backing device was registered after the cache was last there: what is cached may be old.
    RegisteredSince,
    /// A backing device was run without this cache: the kernel drops the dirty data as it attaches.
    DropsDirty,
    /// A backing device was detached when the cache failed: attached again, it gets a new slot and
    /// keeps its older contents.
    NotReattached,
    /// The uuid table does not have a backing device that is attached: the kernel gives it the first free
    /// slot, maybe with what is cached of another.
    NoSlot,
    /// A backing device's superblock has a wrong data offset: the kernel would show all of its data in the
    /// wrong place.
    DataOffset,
}

/// One thing to do, or not to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The cache can be overwritten.
    SafeToWipe,
    /// Somebody holds the device: stop that first.
    StopFirst,
    /// Do not register the device.
    DoNotRegister {
        /// Why not.
        why: Danger,
    },
    /// Do not overwrite the device.
    DoNotWipe,
    /// Do not overwrite the device: what is left of an older set on it may be all there is of data that
    /// a backing device lacks.
    KeepOldSet,
    /// The partition became smaller than the cache in it: make it as large as it was.
    GrowBack {
        /// What it has to have at least.
        needed: Sectors,
    },
    /// Only a part of the device is here: look at all of it.
    GetWholeDevice {
        /// What there is.
        present: Sectors,
        /// What it was.
        needed: Sectors,
    },
    /// Copy the whole device before anything else.
    CopyDevice {
        /// The device.
        device: PathBuf,
    },
    /// Two devices have one UUID: take the copy away before anything is registered or written.
    TakeCopyAway {
        /// One of them.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A set is behind a superblock that is not its own: put zeroes over the superblock of a copy, and check that.
    UncoverOlderSet {
        /// The device.
        device: PathBuf,
        /// Sector of an entry of its journal.
        at: Sectors,
    },
    /// Write the dirty data back: register all and detach.
    RegisterAndDetach {
        /// The cache.
        cache: PathBuf,
        /// The backing devices.
        backing: Vec<PathBuf>,
    },
    /// Write the dirty data back without the kernel.
    WriteBackOffline {
        /// The cache.
        cache: PathBuf,
        /// The backing devices.
        backing: Vec<PathBuf>,
    },
    /// Write the dirty data back to a backing device that was detached or run without the cache, if
    /// nothing was written to it since, and detach it.
    WriteBackRanAlone {
        /// The cache.
        cache: PathBuf,
        /// The backing device.
        backing: PathBuf,
        /// Its slot.
        slot: u32,
    },
    /// Save what is readable of a volume to a file.
    Export {
        /// The cache.
        cache: PathBuf,
        /// The backing device, where it is at hand.
        backing: Option<PathBuf>,
        /// Its slot.
        slot: u32,
        /// Whether only the dirty data is meant, because the rest is newer on the backing device.
        dirty_only: bool,
        /// Where the volume starts on the backing device, if that is known and the device is not named.
        data_offset: Option<Sectors>,
        /// Whether what is likely right is meant too: without the gens of buckets no more is certain.
        likely: bool,
    },
    /// Mend the metadata.
    Repair {
        /// The devices to name.
        devices: Vec<PathBuf>,
    },
    /// Copy a flash-only volume elsewhere while the set runs.
    CopyFlashOnly {
        /// Its slot.
        slot: u32,
    },
    /// Bring the backing device of a volume.
    BringBacking {
        /// The volume's slot.
        slot: u32,
        /// Its UUID.
        uuid: Uuid,
    },
    /// Bring the cache of a backing device.
    BringCache {
        /// The set's UUID.
        set_uuid: Uuid,
    },
    /// A backing device still says that it needs the cache, though nothing is dirty: register both
    /// once, and detach.
    ClearDirtyState {
        /// The cache.
        cache: PathBuf,
        /// The backing device.
        backing: PathBuf,
    },
    /// Do not use the backing device without its cache.
    DoNotRunAlone {
        /// Whether it is known that it lacks data.
        lacks_data: bool,
    },
    /// The backing device is missing data that only its cache had; check what is on it.
    CheckContents,
    /// Blocks of the set are larger than the backing device's: the kernel does not attach it.
    BlockSize {
        /// The set's.
        set: Sectors,
        /// The backing device's.
        backing: Sectors,
    },
    /// Name the backing devices: one that is complete settles what cannot be told from the cache.
    NameBacking,
}

impl Advice {
    /// Its code: stable, for scripts.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::SafeToWipe => "safe-to-wipe",
            Self::StopFirst => "stop-first",
            Self::DoNotRegister { .. } => "do-not-register",
            Self::DoNotWipe | Self::KeepOldSet => "do-not-wipe",
            Self::GrowBack { .. } => "grow-back",
            Self::GetWholeDevice { .. } => "get-whole-device",
            Self::CopyDevice { .. } => "copy-device",
            Self::TakeCopyAway { .. } => "take-copy-away",
            Self::UncoverOlderSet { .. } => "uncover-older-set",
            Self::RegisterAndDetach { .. } => "register-and-detach",
            Self::WriteBackOffline { .. } => "write-back-offline",
            Self::WriteBackRanAlone { .. } => "write-back-ran-alone",
            Self::Export { .. } => "export",
            Self::Repair { .. } => "repair",
            Self::CopyFlashOnly { .. } => "copy-flash-only",
            Self::BringBacking { .. } => "bring-backing",
            Self::BringCache { .. } => "bring-cache",
            Self::ClearDirtyState { .. } => "clear-dirty-state",
            Self::DoNotRunAlone { .. } => "do-not-run-alone",
            Self::CheckContents => "check-contents",
            Self::BlockSize { .. } => "block-size",
            Self::NameBacking => "name-backing",
        }
    }
}
