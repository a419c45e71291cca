//! Why dirty data is not written back, and what became of the devices where that failed.

use std::path::PathBuf;

use uuid::Uuid;

use crate::cache_set::clean::Differing;
use crate::cache_set::journal::Gap;
use crate::cache_set::view::LookupError;
use crate::cache_set::{Problem, ReadError};
use crate::device::DeviceError;
use crate::inspect::FindVolumeError;
use crate::layout::superblock::BackingState;
use crate::layout::uuid_entry::RegisteredSince;
use crate::layout::verdict::Refusal;
use crate::ops::invalidate::{InvalidateError, RunError};
use crate::ops::plan::ApplyError;
use crate::ops::rebuild::{CommitError, CommitState, ExtentsError, RebuildError};
use crate::ops::undo::SaveError;
use crate::ops::verify::VerifyError;
use crate::units::Sectors;

/// Why there is no plan. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WritebackError {
    /// The device holds no cache set that could be read.
    #[error("{}: no cache set that could be written back", path.display())]
    NoCache {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// The kernel would refuse the superblock of the cache.
    #[error("{}: the kernel would refuse the device: {refusal}", path.display())]
    KernelRefuses {
        /// The device.
        path: PathBuf,
        /// In the kernel's words.
        refusal: Refusal,
    },
    /// Something is wrong with the cache set, so that dirty data may be missed or be wrong.
    #[error("{}: the cache set is damaged ({count} problems); the first of them", path.display())]
    Damaged {
        /// The device.
        path: PathBuf,
        /// The first problem.
        #[source]
        first: Box<Problem>,
        /// How many there are.
        count: u64,
    },
    /// Entries of the replay range are missing, as kernels before 6.19 leave it where the set discards.
    #[error(
        "{}: journal entries {}-{} are missing at the start of the replay range",
        path.display(), gap.first, gap.last
    )]
    JournalGap {
        /// The device.
        path: PathBuf,
        /// What is missing.
        gap: Gap,
    },
    /// Damage that can be mended for certain: without that, older data would be written back.
    #[error(
        "{}: this can be mended for certain, and without it older data would be written back: {what}",
        path.display()
    )]
    Mendable {
        /// The device.
        path: PathBuf,
        /// What is damaged.
        what: String,
    },
    /// A backing device is none, or not one of this set's, or not fit.
    #[error("{}", path.display())]
    Backing {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        reason: BackingRefusal,
    },
    /// The name stands for no volume, or for several.
    #[error(transparent)]
    Volume(#[from] FindVolumeError),
    /// A volume was named whose data is only ever on the cache.
    #[error(
        "volume {slot} is flash-only: it has no backing device, and its data stays in the cache"
    )]
    FlashOnly {
        /// Its slot.
        slot: u32,
    },
    /// A volume was named whose backing device was not.
    #[error("the backing device of volume {slot}, {uuid}, was not given")]
    NotGiven {
        /// Its slot.
        slot: u32,
        /// Uuid of its backing device.
        uuid: Uuid,
    },
    /// The extents cannot be told.
    #[error(transparent)]
    Extents(#[from] ExtentsError),
    /// There is no way to make the new metadata.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// There is room only by invalidating clean buckets, and that is refused.
    #[error("room for the new metadata cannot be made by invalidating clean buckets")]
    Room(#[from] InvalidateError),
}

/// Why a backing device is not written.
#[derive(Debug, thiserror::Error)]
pub enum BackingRefusal {
    /// It could not be read.
    #[error("the superblock cannot be read")]
    Device(#[from] DeviceError),
    /// The kernel would refuse its superblock.
    #[error("the kernel would refuse the superblock: {0}")]
    KernelRefuses(Refusal),
    /// It is a cache device.
    #[error("a cache device, not a backing device")]
    CacheDevice,
    /// It was given before.
    #[error("the same backing device as {}", first.display())]
    Repeated {
        /// The path it was given by before.
        first: PathBuf,
    },
    /// It is attached to no cache: it ran, or was formatted, without this one.
    #[error("not attached to a cache (state \"none\"): what it holds may be newer than the cache")]
    NotAttached,
    /// It ran without its cache while data was dirty.
    #[error(
        "it ran without its cache (state \"inconsistent\"): what it holds may be newer than the cache"
    )]
    RanAlone,
    /// It belongs to another set.
    #[error("attached to the set {found}, the cache is of the set {expected}")]
    OtherSet {
        /// The set in its superblock.
        found: Uuid,
        /// The cache's.
        expected: Uuid,
    },
    /// The cache does not know it.
    #[error("the uuid table of the cache has no slot for the device {uuid}")]
    Unknown {
        /// Its uuid.
        uuid: Uuid,
    },
    /// What the cache holds clean of it is not what it holds.
    #[error("{0}: it is an old copy or another device, or the cache is an old copy")]
    OtherData(Differing),
    /// It was registered after the cache was last there.
    #[error("{0}: what it holds may be newer than the cache, which may be an old copy")]
    RegisteredSince(RegisteredSince),
    /// Dirty data reaches past its end.
    #[error("dirty data up to sector {end}, the device ends at {size}: it is smaller than it was")]
    TooSmall {
        /// Where dirty data ends, in sectors of the device.
        end: u64,
        /// The device's sectors.
        size: u64,
    },
    /// Dirty data before the data offset.
    #[error("dirty data from sector {start} on, the data begins at {data_offset}")]
    BeforeData {
        /// Where dirty data begins, in sectors of the device.
        start: u64,
        /// The device's data offset.
        data_offset: u64,
    },
    /// Dirty data does not consist of whole blocks of the device.
    #[error("dirty data at sector {sector} does not fit logical blocks of {block_bytes} bytes")]
    Misaligned {
        /// Where an extent begins or ends.
        sector: u64,
        /// The device's logical block in bytes.
        block_bytes: u32,
    },
    /// It is shut off from writing.
    #[error("read-only")]
    ReadOnly,
}

impl BackingRefusal {
    /// Whether the device is of this set, but what it holds may be newer than the cache.
    pub const fn may_be_newer(&self) -> bool {
        matches!(self, Self::NotAttached | Self::RanAlone | Self::RegisteredSince(_))
    }

    pub(super) const fn of_state(state: BackingState) -> Option<Self> {
        match state {
            BackingState::None => Some(Self::NotAttached),
            BackingState::Stale => Some(Self::RanAlone),
            BackingState::Clean | BackingState::Dirty => None,
        }
    }
}

/// Why data could not be copied to a backing device, or compared with it.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The cache could not be read.
    #[error(
        "{} of dirty data at sector {sector} of the backing device cannot be read from the cache",
        len
    )]
    Cache {
        /// Where it belongs, in sectors of the backing device.
        sector: u64,
        /// How much.
        len: Sectors,
        /// What failed.
        #[source]
        source: DeviceError,
    },
    /// The backing device could not be written, read back or flushed.
    #[error(transparent)]
    Backing(DeviceError),
    /// Where the data is could not be told a second time.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// What was read back is not what was written.
    #[error("{}: sector {sector} is not what was written", path.display())]
    Differs {
        /// The backing device.
        path: PathBuf,
        /// The first sector that differs.
        sector: u64,
    },
    /// Fewer or other dirty sectors than at first: something else writes to the cache.
    #[error("{found} of dirty data, {expected} were expected: the cache changed meanwhile")]
    Changed {
        /// Found now.
        found: Sectors,
        /// Found first.
        expected: Sectors,
    },
}

/// What the devices hold after a run that failed. The command can be repeated in each case but
/// [`Self::Undefined`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritebackState {
    /// Not a byte was written.
    Unchanged,
    /// The cache is as it was and answers for all dirty data, of which some or all may be on the
    /// backing devices, too. Clean buckets may have been invalidated.
    Old,
    /// All dirty data is on the backing devices; the cache says so, or says what it said.
    OldOrNew,
    /// All dirty data is on the backing devices and the cache is clean. A backing device may still
    /// say that it is dirty, which the kernel puts right by itself.
    New,
    /// A device did not keep what was written to it.
    Undefined,
}

/// Why a plan was not carried out; [`WritebackRunError::state`] says what the devices hold.
#[derive(Debug, thiserror::Error)]
pub enum WritebackRunError {
    /// The cache could not be read again before the first write.
    #[error("the cache cannot be read")]
    Device(#[source] DeviceError),
    /// The cache is not what the plan was made from.
    #[error("{}: the device changed since it was read", path.display())]
    Changed {
        /// The cache.
        path: PathBuf,
    },
    /// Buckets were invalidated, and there still is too little room.
    #[error(
        "there are too few buckets for the new metadata, also after clean ones were invalidated"
    )]
    NoRoom,
    /// Room could not be made.
    #[error("clean buckets could not be invalidated to make room")]
    Room(#[source] RunError),
    /// After room was made, the set was not as expected.
    #[error("after room was made, the cache cannot be planned for")]
    Again(#[source] Box<WritebackError>),
    /// What would be overwritten could not be saved.
    #[error("what would be overwritten could not be saved")]
    Undo {
        /// What the devices hold.
        state: WritebackState,
        /// Why.
        #[source]
        source: SaveError,
    },
    /// Copying, or comparing, failed.
    #[error("volume {slot} could not be copied to its backing device")]
    Copy {
        /// Its slot.
        slot: u32,
        /// What failed.
        #[source]
        source: CopyError,
    },
    /// The cache's new metadata could not be made current.
    #[error("the cache could not be made clean")]
    Commit(#[source] CommitError),
    /// An entry of the journal could not be written.
    #[error("the journal entries could not be written")]
    Journal(#[source] ApplyError),
    /// The entries do not read back.
    #[error("the journal entries do not read back")]
    VerifyJournal(#[source] VerifyError),
    /// The cache, read again, is not what was planned.
    #[error("the cache, read again, is not what was planned: {0}")]
    Proof(String),
    /// The cache could not be read again.
    #[error("the cache could not be read again")]
    Reread(#[source] Box<WritebackError>),
    /// A backing device's superblock could not be written.
    #[error("the superblock of {} could not be written", path.display())]
    Superblock {
        /// The device.
        path: PathBuf,
        /// What failed.
        #[source]
        source: ApplyError,
    },
    /// A backing device's superblock does not read back.
    #[error("the superblock of {} does not read back", path.display())]
    VerifySuperblock {
        /// The device.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: VerifyError,
    },
}

impl WritebackRunError {
    /// What the devices hold.
    pub fn state(&self) -> WritebackState {
        use crate::ops::invalidate::DeviceState;
        match self {
            Self::Device(_) | Self::Changed { .. } => WritebackState::Unchanged,
            Self::Undo { state, .. } => *state,
            Self::Room(error) => match error.state() {
                DeviceState::Unchanged => WritebackState::Unchanged,
                DeviceState::Old | DeviceState::OldOrNew | DeviceState::New => WritebackState::Old,
                DeviceState::Undefined => WritebackState::Undefined,
            },
            Self::Commit(error) => match error.state() {
                CommitState::Old => WritebackState::Old,
                CommitState::OldOrNew => WritebackState::OldOrNew,
                CommitState::New => WritebackState::New,
                CommitState::Undefined => WritebackState::Undefined,
            },
            Self::Journal(_) => WritebackState::OldOrNew,
            Self::Copy { source: CopyError::Differs { .. }, .. }
            | Self::VerifySuperblock { source: VerifyError::Differs { .. }, .. }
            | Self::VerifyJournal(VerifyError::Differs { .. })
            | Self::Proof(_) => WritebackState::Undefined,
            Self::NoRoom | Self::Again(_) | Self::Copy { .. } => WritebackState::Old,
            Self::Reread(_)
            | Self::Superblock { .. }
            | Self::VerifySuperblock { source: VerifyError::Read { .. }, .. }
            | Self::VerifyJournal(VerifyError::Read { .. }) => WritebackState::New,
        }
    }
}
