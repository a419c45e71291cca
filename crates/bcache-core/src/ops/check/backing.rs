//! Whether backing devices go with a cache set, and whether clean data is what they hold.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::cache_set::clean::Differing;
use crate::cache_set::view::{Extent, LookupError};
use crate::cache_set::{CacheSet, OpenError, VolumeUsage};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::inspect::{Contents, Device, Doubt, Member, OlderSet, Standing};
use crate::layout::superblock::{BackingState, Kind, Superblock};
use crate::layout::uuid_entry::RegisteredSince;
use crate::layout::verdict::Refusal;
use crate::ops::check::code::Code;
use crate::ops::check::place::Place;
use crate::units::{SECTOR_BYTES, Sectors, date};

/// Bytes compared at once.
const COMPARE_BYTES: usize = 1 << 20;

/// What is wrong between a backing device and the set.
#[derive(Debug, thiserror::Error)]
pub enum BackingProblem {
    /// Its superblock could not be read.
    #[error("{}: the superblock cannot be read", path.display())]
    Unreadable {
        /// The device.
        path: PathBuf,
        /// Its error.
        source: DeviceError,
    },
    /// It has none.
    #[error("{}: no backing device: {why}", path.display())]
    NotBacking {
        /// The device.
        path: PathBuf,
        /// What it is instead.
        why: OpenError,
    },
    /// It has none, and a repair makes one again.
    #[error("{}: no backing device; its superblock is gone, and it may be that of volume {slot}", path.display())]
    SuperblockGone {
        /// The device.
        path: PathBuf,
        /// The volume.
        slot: u32,
    },
    /// A cache set is behind its superblock.
    #[error(
        "{}: the superblock of a backing device, and behind it a cache set, whose journal is at sector {}", path.display(), at.0
    )]
    IsCache {
        /// The device.
        path: PathBuf,
        /// Sector of the journal entry.
        at: Sectors,
    },
    /// It is a cache device.
    #[error("{} is the cache device of set {set_uuid}: check it by itself", path.display())]
    OtherCache {
        /// The device.
        path: PathBuf,
        /// Its set.
        set_uuid: uuid::Uuid,
    },
    /// It belongs to the set of another cache device that was named.
    #[error("{} belongs to the set of {}: check the two by themselves", path.display(), cache.display())]
    OfOtherCache {
        /// The device.
        path: PathBuf,
        /// The cache.
        cache: PathBuf,
    },
    /// The kernel refuses it.
    #[error("{}: {refusal}", path.display())]
    Refused {
        /// The device.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// It belongs to another set, or to none.
    #[error("{} is {}", path.display(), if found.is_nil() { "attached to no set".to_owned() } else { format!("of set {found}") })]
    OtherSet {
        /// The device.
        path: PathBuf,
        /// The set in its superblock.
        found: uuid::Uuid,
        /// This set.
        expected: uuid::Uuid,
    },
    /// It belongs to no set, and the cache, of which everything was read, holds nothing of it.
    #[error("{} is attached to no set, and needs no cache", path.display())]
    Detached {
        /// The device.
        path: PathBuf,
    },
    /// It belongs to no set, and the cache holds dirty data that may be of it.
    #[error(
        "{} is attached to no set, and the cache holds {dirty} of dirty data of volume {slot}, of which nothing tells \
         whose it is", path.display()
    )]
    MayOwn {
        /// The device.
        path: PathBuf,
        /// The volume.
        slot: u32,
        /// How much.
        dirty: Sectors,
    },
    /// It lacks data that another set holds, or held.
    #[error("{} has state {state} for set {set_uuid}, of which this cache holds nothing", path.display())]
    SetGone {
        /// The device.
        path: PathBuf,
        /// Its state.
        state: BackingState,
        /// The set that it names.
        set_uuid: uuid::Uuid,
    },
    /// It lacks data of a set that is still on the cache device, under the superblock of another.
    #[error("{} has state {state} for set {set_uuid}, whose journal is at sector {} of this cache", path.display(), at.0)]
    SetCovered {
        /// The device.
        path: PathBuf,
        /// Its state.
        state: BackingState,
        /// The set that it names.
        set_uuid: uuid::Uuid,
        /// A sector of the cache.
        at: Sectors,
    },
    /// It is attached to nothing, and the cache holds dirty data of it.
    #[error("{} is not attached, and the cache holds {dirty} of dirty data of it (slot {slot})", path.display())]
    Released {
        /// The device.
        path: PathBuf,
        /// Its slot.
        slot: u32,
        /// How much.
        dirty: Sectors,
    },
    /// It is attached to another set, and the cache holds dirty data of it.
    #[error("{} is attached to set {set_uuid}, and the cache holds {dirty} of dirty data of it", path.display())]
    Moved {
        /// The device.
        path: PathBuf,
        /// The set that it names.
        set_uuid: uuid::Uuid,
        /// How much.
        dirty: Sectors,
    },
    /// The kernel does not attach it.
    #[error("{} has blocks of {backing}, the set of {set}: block size less than set's block size", path.display())]
    BlockSize {
        /// The device.
        path: PathBuf,
        /// Its block size.
        backing: Sectors,
        /// The set's.
        set: Sectors,
    },
    /// It counts as attached, and the uuid table does not have it.
    #[error("{} has state {state} and uuid {uuid}, which the uuid table does not have", path.display())]
    NotInTable {
        /// The device.
        path: PathBuf,
        /// Its uuid.
        uuid: uuid::Uuid,
        /// Its state.
        state: BackingState,
    },
    /// It counts as clean, or as not attached, and the cache holds dirty data of it.
    #[error("{} has state {state} and the cache holds {dirty} of dirty data of it", path.display())]
    DirtyButState {
        /// The device.
        path: PathBuf,
        /// Its state.
        state: BackingState,
        /// How much.
        dirty: Sectors,
    },
    /// It counts as clean, and holds what the cache counts as dirty.
    #[error("{} holds the {dirty} too that the cache counts as dirty data of it", path.display())]
    WrittenBack {
        /// The device.
        path: PathBuf,
        /// How much.
        dirty: Sectors,
    },
    /// It was run without the cache.
    #[error("{} has state inconsistent", path.display())]
    Stale {
        /// The device.
        path: PathBuf,
    },
    /// The cache holds data past its end.
    #[error("{} has {size} sectors, the cache holds data of it up to sector {end}", path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its size in sectors.
        size: u64,
        /// Where the last extent ends.
        end: u64,
    },
    /// The cache holds data of sectors before its data.
    #[error("{}: its data begins at sector {}, the cache holds data of it from sector {start} on", path.display(), data_offset.0)]
    DataOffset {
        /// The device.
        path: PathBuf,
        /// Where its superblock says that its data begins.
        data_offset: Sectors,
        /// Where the first extent begins.
        start: u64,
    },
    /// The cache is older than it.
    #[error("{}: {since}", path.display())]
    Newer {
        /// The device.
        path: PathBuf,
        /// The two times.
        since: RegisteredSince,
    },
    /// Clean data differs.
    #[error("{}: {sectors} sectors from {start} on are not what the cache holds at {cache_sector}", path.display())]
    CleanDiffers {
        /// The device.
        path: PathBuf,
        /// Slot of the volume.
        slot: u32,
        /// First sector of the stretch, on the backing device.
        start: u64,
        /// Sectors from the first to the last that differs.
        sectors: u64,
        /// The same place on the cache device.
        cache_sector: u64,
    },
    /// Clean data could not be compared.
    #[error("{}: clean data cannot be compared", path.display())]
    CannotCompare {
        /// The device.
        path: PathBuf,
        /// Slot of the volume.
        slot: u32,
        /// First sector that could not be read.
        start: u64,
        /// The device's error.
        source: DeviceError,
    },
    /// Where clean data is could not be told.
    #[error("{}: clean data cannot be found", path.display())]
    CannotFind {
        /// The device.
        path: PathBuf,
        /// Why.
        source: LookupError,
    },
}

impl BackingProblem {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Unreadable { .. }
            | Self::NotBacking { .. }
            | Self::SuperblockGone { .. }
            | Self::CannotCompare { .. }
            | Self::CannotFind { .. } => Code::BackingUnreadable,
            Self::IsCache { .. } => Code::BackingIsCache,
            Self::Refused { .. } => Code::BackingRefused,
            Self::OtherCache { .. } | Self::OfOtherCache { .. } | Self::OtherSet { .. } => {
                Code::BackingOtherSet
            }
            Self::Detached { .. } => Code::BackingDetached,
            Self::NotInTable { .. } => Code::BackingNotInTable,
            Self::SetGone { .. } => Code::BackingSetGone,
            Self::SetCovered { .. } => Code::BackingSetCovered,
            Self::Released { .. } | Self::MayOwn { .. } => Code::BackingReleased,
            Self::Moved { .. } => Code::BackingMoved,
            Self::BlockSize { .. } => Code::BackingBlockSize,
            Self::DirtyButState { .. } => Code::BackingStateClean,
            Self::WrittenBack { .. } => Code::BackingWrittenBack,
            Self::Stale { .. } => Code::BackingStateStale,
            Self::TooSmall { .. } => Code::BackingTooSmall,
            Self::DataOffset { .. } => Code::BackingDataOffset,
            Self::Newer { .. } => Code::BackingNewer,
            Self::CleanDiffers { .. } => Code::CleanMismatch,
        }
    }

    pub(super) fn place(&self) -> Place {
        match self {
            // It may as well be the cache.
            Self::Unreadable { path, .. } => Place::Device { path: path.clone() },
            Self::NotBacking { path, .. }
            | Self::IsCache { path, .. }
            | Self::SuperblockGone { path, .. }
            | Self::OtherCache { path, .. }
            | Self::OfOtherCache { path, .. }
            | Self::CannotFind { path, .. }
            | Self::Refused { path, .. }
            | Self::OtherSet { path, .. }
            | Self::Detached { path }
            | Self::NotInTable { path, .. }
            | Self::SetGone { path, .. }
            | Self::SetCovered { path, .. }
            | Self::Released { path, .. }
            | Self::MayOwn { path, .. }
            | Self::Moved { path, .. }
            | Self::BlockSize { path, .. }
            | Self::DirtyButState { path, .. }
            | Self::WrittenBack { path, .. }
            | Self::Stale { path }
            | Self::TooSmall { path, .. }
            | Self::Newer { path, .. }
            | Self::DataOffset { path, .. } => Place::Backing { path: path.clone() },
            Self::CleanDiffers { slot, start, sectors, .. } => {
                Place::Volume { slot: *slot, start: *start, sectors: *sectors }
            }
            Self::CannotCompare { slot, start, .. } => {
                Place::Volume { slot: *slot, start: *start, sectors: 1 }
            }
        }
    }

    pub(super) fn expected(&self) -> String {
        match self {
            Self::Unreadable { .. } => "a superblock that can be read".to_owned(),
            Self::NotBacking { .. }
            | Self::IsCache { .. }
            | Self::SuperblockGone { .. }
            | Self::Refused { .. } => "a backing device that the kernel takes".to_owned(),
            Self::OtherSet { expected, .. } => format!("set {expected}"),
            Self::NotInTable { .. } => "a slot in the uuid table".to_owned(),
            Self::SetCovered { set_uuid, .. } => format!("the superblock of set {set_uuid}"),
            Self::SetGone { .. }
            | Self::Detached { .. }
            | Self::OtherCache { .. }
            | Self::OfOtherCache { .. } => "a backing device of this cache".to_owned(),
            Self::Released { .. } | Self::MayOwn { .. } | Self::Moved { .. } => {
                "a device attached to this set".to_owned()
            }
            Self::BlockSize { set, .. } => format!("blocks of at least {set}"),
            Self::DirtyButState { .. } => "state dirty".to_owned(),
            Self::WrittenBack { .. } => "keys that are clean".to_owned(),
            Self::Stale { .. } => "state clean or dirty".to_owned(),
            Self::TooSmall { end, .. } => format!("at least {end} sectors"),
            Self::DataOffset { start, .. } => format!("a data offset of at most {start}"),
            Self::Newer { since, .. } => format!("a registration until {}", date(since.seen)),
            Self::CleanDiffers { .. } => "the same data".to_owned(),
            Self::CannotCompare { .. } | Self::CannotFind { .. } => "readable data".to_owned(),
        }
    }
}

/// Is told how the check of a backing device goes.
pub(super) trait Listener {
    /// Clean data was compared, up to a sector of the backing device, of so many.
    fn compared(&mut self, done: u64, total: u64);

    /// Something is wrong.
    fn problem(&mut self, problem: BackingProblem);
}

/// Judges one device that was named as a backing device of `cache`; with `verify_clean`, compares all
/// clean data too. Without a set, what the superblock says of itself still counts.
pub(super) fn check(
    member: &Member<'_>,
    cache: &Device<'_>,
    verify_clean: bool,
    listener: &mut dyn Listener,
) {
    let set = cache.set().map(|contents| &contents.set);
    let info = member.device.handle.info();
    let path = || info.path.clone();
    let superblock = member.device.superblock.as_ref();
    let Some(sb) = superblock.filter(|_| member.device.kind() == Some(Kind::Backing)) else {
        listener.problem(not_backing(member));
        return;
    };
    if let Some(OlderSet { at, .. }) = member.device.older_set {
        listener.problem(BackingProblem::IsCache { path: path(), at });
        return;
    }
    let refusal = member.device.verdict.as_ref().and_then(|verdict| verdict.refusal);
    if let Some(refusal) = refusal {
        listener.problem(BackingProblem::Refused { path: path(), refusal });
    }
    let Some(relation) = &member.relation else { return };
    let other = Some(&relation.cache).filter(|path| **path != cache.handle.info().path);
    if let Some(other) = other.filter(|_| relation.set_uuid == sb.set_uuid()) {
        listener.problem(BackingProblem::OfOtherCache { path: path(), cache: other.clone() });
        return;
    }
    let (state, set_uuid) = (sb.state(), sb.set_uuid());
    // A device that is attached to nothing is named here to be attached.
    let is_for_set = set_uuid == relation.set_uuid || state == BackingState::None;
    if let Some(block) = relation.block_too_small.filter(|_| refusal.is_none() && is_for_set) {
        let backing = sb.block_size();
        listener.problem(BackingProblem::BlockSize { path: path(), backing, set: block });
    }
    let older_set = cache.older_set.filter(|older| older.is(&set_uuid) && state.lacks_data());
    if let Some(OlderSet { at, .. }) = older_set {
        listener.problem(BackingProblem::SetCovered { path: path(), state, set_uuid, at });
        return;
    }
    let (Some(set), Some(slot)) = (set, relation.slot) else {
        // Of a set that was not read whole nobody knows whether it has a slot.
        let is_read = set.is_some() && cache.doubts.iter().all(|it| *it == Doubt::TornEntry);
        let has_none = is_read || matches!(cache.contents, Contents::New);
        // What it holds of nobody may be this device's.
        let ownerless = set.and_then(|set| {
            let dirty_unreached = |(slot, usage): &(&u32, &VolumeUsage)| {
                usage.dirty_sectors.0 > 0 && !set.uuids.is_reached(**slot)
            };
            let (&slot, usage) = set.volumes.iter().find(dirty_unreached)?;
            Some((slot, usage.dirty_sectors))
        });
        if ownerless.is_some() && set_uuid == relation.set_uuid && state != BackingState::None {
            listener.problem(BackingProblem::NotInTable { path: path(), uuid: sb.uuid(), state });
            return;
        }
        if set_uuid.is_nil() && state == BackingState::None {
            if let Some((slot, dirty)) = ownerless {
                listener.problem(BackingProblem::MayOwn { path: path(), slot, dirty });
                return;
            }
            // What could not be read may name it.
            if has_none && cache.doubts.is_empty() {
                listener.problem(BackingProblem::Detached { path: path() });
                return;
            }
        }
        without_slot(path(), sb, relation.set_uuid, has_none, listener);
        return;
    };
    let usage = set.volumes.get(&slot).copied().unwrap_or_default();
    let dirty = usage.dirty_sectors;
    match relation.standing {
        Standing::Released if dirty.0 > 0 => {
            listener.problem(BackingProblem::Released { path: path(), slot, dirty });
        }
        Standing::Moved { set_uuid } if dirty.0 > 0 => {
            listener.problem(BackingProblem::Moved { path: path(), set_uuid, dirty });
        }
        Standing::Moved { set_uuid: found } => {
            let expected = relation.set_uuid;
            listener.problem(BackingProblem::OtherSet { path: path(), found, expected });
        }
        // A cache that was read whole and has nothing dirty of it has nothing that would be dropped.
        Standing::Attached
            if state == BackingState::Stale && (dirty.0 > 0 || !cache.doubts.is_empty()) =>
        {
            listener.problem(BackingProblem::Stale { path: path() });
        }
        Standing::Attached if state != BackingState::Dirty && dirty.0 > 0 => {
            let (path, device) = (path(), member.device.handle);
            let is_whole = usage.end <= info.size().0
                && is_written_back(set, device, slot, usage.end, listener);
            listener.problem(if is_whole {
                BackingProblem::WrittenBack { path, dirty }
            } else {
                BackingProblem::DirtyButState { path, state, dirty }
            });
        }
        _ => {}
    }
    let size = info.size().0;
    if usage.end > size {
        listener.problem(BackingProblem::TooSmall { path: path(), size, end: usage.end });
    }
    let data_offset = sb.data_offset();
    if let Some(start) = usage.start_before(data_offset) {
        listener.problem(BackingProblem::DataOffset { path: path(), data_offset, start });
    }
    if relation.standing != Standing::Attached {
        return;
    }
    if let Some(since) = relation.apart.since {
        listener.problem(BackingProblem::Newer { path: path(), since });
    }
    if verify_clean {
        verify_clean_data(set, member.device.handle, slot, usage.end.min(size), listener);
    } else if let Some(Differing { start, sectors, cache_sector }) = relation.apart.differing {
        let path = path();
        listener.problem(BackingProblem::CleanDiffers { path, slot, start, sectors, cache_sector });
    }
}

/// What is said of a device that is no backing device.
fn not_backing(member: &Member<'_>) -> BackingProblem {
    let path = member.path().clone();
    let superblock = member.device.superblock.as_ref();
    if let Some(sb) = superblock.filter(|_| member.device.kind() == Some(Kind::Cache)) {
        return BackingProblem::OtherCache { path, set_uuid: sb.set_uuid() };
    }
    let why = member.device.no_bcache().unwrap_or(OpenError::NotBcache);
    BackingProblem::NotBacking { path, why }
}

/// Judges a backing device whose cache is not here: what its superblock says of itself.
pub(super) fn check_alone(member: &Member<'_>, listener: &mut dyn Listener) {
    let path = || member.device.handle.info().path.clone();
    let superblock = member.device.superblock.as_ref();
    let Some(sb) = superblock.filter(|_| member.device.kind() == Some(Kind::Backing)) else {
        listener.problem(not_backing(member));
        return;
    };
    if let Some(OlderSet { at, .. }) = member.device.older_set {
        listener.problem(BackingProblem::IsCache { path: path(), at });
    } else if let Some(refusal) = member.device.verdict.as_ref().and_then(|verdict| verdict.refusal)
    {
        listener.problem(BackingProblem::Refused { path: path(), refusal });
    } else if sb.state() == BackingState::Stale {
        listener.problem(BackingProblem::Stale { path: path() });
    }
}

/// A device that the set `expected` has no slot for, or of which it cannot be told.
fn without_slot(
    path: PathBuf,
    sb: &Superblock,
    expected: uuid::Uuid,
    has_none: bool,
    listener: &mut dyn Listener,
) {
    let (state, found) = (sb.state(), sb.set_uuid());
    if state.lacks_data() && (found != expected || has_none) {
        listener.problem(BackingProblem::SetGone { path, state, set_uuid: found });
    } else if found != expected {
        listener.problem(BackingProblem::OtherSet { path, found, expected });
    } else if has_none && state == BackingState::Clean {
        // Made for this set and not registered yet, it would have no state.
        listener.problem(BackingProblem::NotInTable { path, uuid: sb.uuid(), state });
    }
}

/// Sectors looked up at once, so that memory stays bounded whatever the volume holds.
const LOOKUP_SECTORS: u64 = 1 << 20;

/// Whether the backing device holds all that the cache counts as dirty data of it.
///
/// Writing back journals no keys. What is replayed after a stop soon after it is dirty again, and the same
/// on both. After a power cut the superblock may say clean although there is dirty data: the kernel does
/// not wait for the state to be written (docs/running.md §7). Nothing but the contents tells the two apart.
fn is_written_back(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    slot: u32,
    end: u64,
    listener: &mut dyn Listener,
) -> bool {
    let mut compared = |done| listener.compared(done, end);
    let mut stop = |_| ControlFlow::Break(());
    compare(set, device, slot, end, &|extent| extent.dirty, &mut compared, &mut stop).is_continue()
}

/// Reports clean data that is not what the backing device holds.
fn verify_clean_data(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    slot: u32,
    end: u64,
    listener: &mut dyn Listener,
) {
    let listener = std::cell::RefCell::new(listener);
    let mut compared = |done| listener.borrow_mut().compared(done, end);
    let mut differs = |problem| {
        listener.borrow_mut().problem(problem);
        ControlFlow::Continue(())
    };
    let _ = compare(set, device, slot, end, &|it| !it.dirty, &mut compared, &mut differs);
}

/// Compares the cached extents of a volume that are `wanted` with what is on its backing device, up to the
/// sector `end`. `compared` is told how far it came; `differs` whatever is wrong, and may break it off.
fn compare(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    slot: u32,
    end: u64,
    wanted: &dyn Fn(&Extent) -> bool,
    compared: &mut dyn FnMut(u64),
    differs: &mut dyn FnMut(BackingProblem) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut view = set.view();
    let mut buffers = (AlignedBuf::zeroed(COMPARE_BYTES), AlignedBuf::zeroed(COMPARE_BYTES));
    let mut at = 0;
    while at < end {
        let to = at.saturating_add(LOOKUP_SECTORS).min(end);
        let mut extents = Vec::new();
        let looked_up = view.lookup(slot, at, to, &mut |extent| {
            if extent.cached.is_some() && wanted(&extent) {
                extents.push(extent);
            }
            ControlFlow::Continue(())
        });
        if let Err(source) = looked_up {
            differs(BackingProblem::CannotFind { path: device.info().path.clone(), source })?;
        }
        for extent in &extents {
            compare_extent(set, device, extent, &mut buffers, differs)?;
        }
        at = to;
        compared(at);
    }
    ControlFlow::Continue(())
}

fn compare_extent(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    extent: &Extent,
    (ours, theirs): &mut (AlignedBuf, AlignedBuf),
    differs: &mut dyn FnMut(BackingProblem) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let path = || device.info().path.clone();
    let slot = extent.inode;
    let Some(cached) = extent.cached else { return ControlFlow::Continue(()) };
    let step = (COMPARE_BYTES as u64) / SECTOR_BYTES;
    let mut done = 0;
    let length = extent.end.saturating_sub(extent.start);
    while done < length {
        let sectors = step.min(length - done);
        let len = usize::try_from(Sectors(sectors).bytes()).unwrap_or(COMPARE_BYTES);
        let (start, cache_sector) = (extent.start + done, cached.0 + done);
        let (Some(a), Some(b)) = (ours.get_mut(..len), theirs.get_mut(..len)) else { break };
        let read = set
            .cache
            .device()
            .read_at(Sectors(cache_sector).bytes(), a)
            .and_then(|()| device.read_at(Sectors(start).bytes(), b));
        match read {
            Err(source) => {
                differs(BackingProblem::CannotCompare { path: path(), slot, start, source })?;
            }
            Ok(()) if a != b => {
                let sector = usize::try_from(SECTOR_BYTES).unwrap_or(512);
                let unequal = |(x, y): (&[u8], &[u8])| x != y;
                let first = a.chunks(sector).zip(b.chunks(sector)).position(unequal).unwrap_or(0);
                let last = a.chunks(sector).zip(b.chunks(sector)).rposition(unequal).unwrap_or(0);
                differs(BackingProblem::CleanDiffers {
                    path: path(),
                    slot,
                    start: start + first as u64,
                    sectors: (last - first) as u64 + 1,
                    cache_sector: cache_sector + first as u64,
                })?;
            }
            Ok(()) => {}
        }
        done += sectors;
    }
    ControlFlow::Continue(())
}
