//! The backing devices: whose they are, and whether the cache's data may be written to them.

use crate::cache_set::{CacheSet, expect_superblock};
use crate::device::ReadDevice;
use crate::inspect::Apart;
use crate::layout::superblock::{BackingState, Kind, Superblock};
use crate::layout::verdict::kernel_verdict;
use crate::ops::writeback::BackingRefusal;
use crate::units::SECTOR_BYTES;

/// The dirty extents of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dirty {
    pub(super) sectors: u64,
    pub(super) extents: u64,
    /// Where the first begins and the last ends, in sectors of the backing device.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Greatest power of two, in sectors, that divides all their ends; 0 without extents.
    pub(super) granularity: u64,
}

impl Dirty {
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if self.extents == 0 {
            self.start = start;
        }
        self.sectors += end - start;
        self.extents += 1;
        self.end = end;
        let bits = start | end;
        let lowest = bits & bits.wrapping_neg();
        self.granularity =
            if self.granularity == 0 { lowest } else { self.granularity.min(lowest) };
    }
}

/// A backing device's superblock, if the kernel would take it.
pub(super) fn superblock(device: &dyn ReadDevice) -> Result<Superblock, BackingRefusal> {
    let sb = expect_superblock(device)?;
    if let Some(refusal) = kernel_verdict(&sb, &device.info().target()).refusal {
        return Err(BackingRefusal::KernelRefuses(refusal));
    }
    if sb.kind() != Some(Kind::Backing) {
        return Err(BackingRefusal::CacheDevice);
    }
    Ok(sb)
}

/// The slot of the device in the cache's uuid table, if the cache's data is its data.
///
/// `None` is a device that the cache does not know and that needs nothing of it: detached, as detaching
/// leaves it, or clean (inconsistent if it was run alone), as it is between the two writes of
/// detaching.
///
/// With `ran_alone`, a device that was detached or run without the cache is its owner all the same.
pub(super) fn slot_of(
    set: &CacheSet<'_>,
    sb: &Superblock,
    ran_alone: bool,
) -> Result<Option<u32>, BackingRefusal> {
    let known = set.uuids.find(sb.uuid());
    if sb.state() == BackingState::None && sb.set_uuid().is_nil() && known.is_none() {
        return Ok(None);
    }
    let is_of_set =
        sb.state() == BackingState::None || sb.set_uuid() == set.cache.superblock().set_uuid();
    if ran_alone && is_of_set && BackingRefusal::of_state(sb.state()).is_some() {
        match known {
            Some((slot, _)) => return Ok(Some(slot)),
            None if sb.state() == BackingState::Stale => return Ok(None),
            None => {}
        }
    }
    if let Some(refusal) = BackingRefusal::of_state(sb.state()) {
        return Err(refusal);
    }
    let (found, expected) = (sb.set_uuid(), set.cache.superblock().set_uuid());
    if found != expected {
        return Err(BackingRefusal::OtherSet { found, expected });
    }
    match set.uuids.find(sb.uuid()) {
        Some((slot, _)) => Ok(Some(slot)),
        None if sb.state() == BackingState::Clean => Ok(None),
        None => Err(BackingRefusal::Unknown { uuid: sb.uuid() }),
    }
}

/// Whether the cache and the device, if it was not run without that, are of one time.
pub(super) fn are_of_one_time(apart: &Apart, ran_alone: bool) -> Result<(), BackingRefusal> {
    match (apart.differing, apart.since) {
        (Some(differing), _) => Err(BackingRefusal::OtherData(differing)),
        (None, Some(since)) if !ran_alone => Err(BackingRefusal::RegisteredSince(since)),
        _ => Ok(()),
    }
}

/// Whether the volume's dirty data has its place on the device.
pub(super) fn fits(
    device: &dyn ReadDevice,
    sb: &Superblock,
    dirty: &Dirty,
) -> Result<(), BackingRefusal> {
    let info = device.info();
    if info.read_only {
        return Err(BackingRefusal::ReadOnly);
    }
    if dirty.extents == 0 {
        return Ok(());
    }
    if dirty.end > info.size().0 {
        return Err(BackingRefusal::TooSmall { end: dirty.end, size: info.size().0 });
    }
    let data_offset = sb.data_offset().0;
    if dirty.start < data_offset {
        return Err(BackingRefusal::BeforeData { start: dirty.start, data_offset });
    }
    let block_bytes = info.logical_block_bytes;
    if dirty.granularity.saturating_mul(SECTOR_BYTES) < u64::from(block_bytes) {
        return Err(BackingRefusal::Misaligned { sector: dirty.start, block_bytes });
    }
    Ok(())
}
