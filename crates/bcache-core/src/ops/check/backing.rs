//! Whether backing devices go with a cache set, and whether clean data is what they hold.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::cache_set::CacheSet;
use crate::cache_set::view::{Extent, LookupError};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::layout::superblock::{BackingState, Kind, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use crate::layout::verdict::{Refusal, Target, kernel_verdict};
use crate::ops::check::code::Code;
use crate::ops::check::finding::Place;
use crate::units::{SECTOR_BYTES, Sectors};

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
    /// It has none, or is a cache device.
    #[error("{}: no backing device", path.display())]
    NotBacking {
        /// The device.
        path: PathBuf,
    },
    /// The kernel refuses it.
    #[error("{}: {refusal}", path.display())]
    Refused {
        /// The device.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// It belongs to another set.
    #[error("{} is of set {found}", path.display())]
    OtherSet {
        /// The device.
        path: PathBuf,
        /// The set in its superblock.
        found: uuid::Uuid,
        /// This set.
        expected: uuid::Uuid,
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
    /// It was run without the cache.
    #[error("{} has state stale", path.display())]
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
            | Self::CannotCompare { .. }
            | Self::CannotFind { .. } => Code::BackingUnreadable,
            Self::Refused { .. } => Code::BackingRefused,
            Self::OtherSet { .. } => Code::BackingOtherSet,
            Self::NotInTable { .. } => Code::BackingNotInTable,
            Self::DirtyButState { .. } => Code::BackingStateClean,
            Self::Stale { .. } => Code::BackingStateStale,
            Self::TooSmall { .. } => Code::BackingTooSmall,
            Self::CleanDiffers { .. } => Code::CleanMismatch,
        }
    }

    pub(super) fn place(&self) -> Place {
        match self {
            Self::Unreadable { path, .. }
            | Self::NotBacking { path }
            | Self::CannotFind { path, .. }
            | Self::Refused { path, .. }
            | Self::OtherSet { path, .. }
            | Self::NotInTable { path, .. }
            | Self::DirtyButState { path, .. }
            | Self::Stale { path }
            | Self::TooSmall { path, .. } => Place::Backing { path: path.clone() },
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
            Self::Unreadable { .. } | Self::NotBacking { .. } | Self::Refused { .. } => {
                "a backing device that the kernel takes".to_owned()
            }
            Self::OtherSet { expected, .. } => format!("set {expected}"),
            Self::NotInTable { .. } => "a slot in the uuid table".to_owned(),
            Self::DirtyButState { .. } => "state dirty".to_owned(),
            Self::Stale { .. } => "state clean or dirty".to_owned(),
            Self::TooSmall { end, .. } => format!("at least {end} sectors"),
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

/// Checks one backing device against `set`; with `verify_clean`, all clean data too.
pub(super) fn check(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    verify_clean: bool,
    listener: &mut dyn Listener,
) {
    let info = device.info();
    let path = || info.path.clone();
    let mut bytes = AlignedBuf::zeroed(SB_BYTES);
    if let Err(source) = device.read_at(SB_OFFSET_BYTES, &mut bytes) {
        listener.problem(BackingProblem::Unreadable { path: path(), source });
        return;
    }
    let Some(sb) = Superblock::from_bytes(&bytes)
        .filter(|sb| sb.magic_ok() && sb.kind() == Some(Kind::Backing))
    else {
        listener.problem(BackingProblem::NotBacking { path: path() });
        return;
    };
    let target = Target {
        device_size: info.size(),
        disk_size: info.disk_size,
        logical_block_bytes: info.logical_block_bytes,
    };
    if let Some(refusal) = kernel_verdict(&sb, &target).refusal {
        listener.problem(BackingProblem::Refused { path: path(), refusal });
    }
    let state = sb.state();
    let expected = set.cache.superblock().set_uuid();
    if sb.set_uuid() != expected {
        listener.problem(BackingProblem::OtherSet { path: path(), found: sb.set_uuid(), expected });
        return;
    }
    let Some((slot, _)) = set.uuids.find(sb.uuid()) else {
        // Made for this set and not registered yet, or detached: nothing is cached of it.
        if matches!(state, BackingState::Clean | BackingState::Dirty) {
            listener.problem(BackingProblem::NotInTable { path: path(), uuid: sb.uuid(), state });
        }
        return;
    };
    let usage = set.volumes.get(&slot).copied().unwrap_or_default();
    if state == BackingState::Stale {
        listener.problem(BackingProblem::Stale { path: path() });
    } else if state != BackingState::Dirty && usage.dirty_sectors.0 > 0 {
        let dirty = usage.dirty_sectors;
        listener.problem(BackingProblem::DirtyButState { path: path(), state, dirty });
    }
    let size = info.size().0;
    if usage.end > size {
        listener.problem(BackingProblem::TooSmall { path: path(), size, end: usage.end });
    }
    if verify_clean {
        compare(set, device, slot, usage.end.min(size), listener);
    }
}

/// Sectors looked up at once, so that memory stays bounded whatever the volume holds.
const LOOKUP_SECTORS: u64 = 1 << 20;

fn compare(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    slot: u32,
    end: u64,
    listener: &mut dyn Listener,
) {
    let mut view = set.view();
    let mut buffers = (AlignedBuf::zeroed(COMPARE_BYTES), AlignedBuf::zeroed(COMPARE_BYTES));
    let mut at = 0;
    while at < end {
        let to = at.saturating_add(LOOKUP_SECTORS).min(end);
        let mut extents = Vec::new();
        let looked_up = view.lookup(slot, at, to, &mut |extent| {
            if extent.cached.is_some() && !extent.dirty {
                extents.push(extent);
            }
            ControlFlow::Continue(())
        });
        if let Err(source) = looked_up {
            listener
                .problem(BackingProblem::CannotFind { path: device.info().path.clone(), source });
        }
        for extent in &extents {
            compare_extent(set, device, extent, &mut buffers, listener);
        }
        at = to;
        listener.compared(at, end);
    }
}

fn compare_extent(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    extent: &Extent,
    (ours, theirs): &mut (AlignedBuf, AlignedBuf),
    listener: &mut dyn Listener,
) {
    let path = || device.info().path.clone();
    let slot = extent.inode;
    let Some(cached) = extent.cached else { return };
    let step = (COMPARE_BYTES as u64) / SECTOR_BYTES;
    let mut done = 0;
    let length = extent.end.saturating_sub(extent.start);
    while done < length {
        let sectors = step.min(length - done);
        let len = usize::try_from(Sectors(sectors).bytes()).unwrap_or(COMPARE_BYTES);
        let (start, cache_sector) = (extent.start + done, cached.0 + done);
        let (Some(a), Some(b)) = (ours.get_mut(..len), theirs.get_mut(..len)) else { return };
        let read = set
            .cache
            .device()
            .read_at(Sectors(cache_sector).bytes(), a)
            .and_then(|()| device.read_at(Sectors(start).bytes(), b));
        match read {
            Err(source) => {
                listener.problem(BackingProblem::CannotCompare {
                    path: path(),
                    slot,
                    start,
                    source,
                });
            }
            Ok(()) if a != b => {
                let sector = usize::try_from(SECTOR_BYTES).unwrap_or(512);
                let differs = |(x, y): (&[u8], &[u8])| x != y;
                let first = a.chunks(sector).zip(b.chunks(sector)).position(differs).unwrap_or(0);
                let last = a.chunks(sector).zip(b.chunks(sector)).rposition(differs).unwrap_or(0);
                listener.problem(BackingProblem::CleanDiffers {
                    path: path(),
                    slot,
                    start: start + first as u64,
                    sectors: (last - first) as u64 + 1,
                    cache_sector: cache_sector + first as u64,
                });
            }
            Ok(()) => {}
        }
        done += sectors;
    }
}
