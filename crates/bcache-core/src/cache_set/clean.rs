//! Whether clean data is what a backing device holds.
//!
//! What the cache holds clean, its backing device has too: to the byte, for the kernel writes to both or
//! invalidates. So clean data that differs shows another device, or an old copy of one of the two.

use std::ops::ControlFlow;

use crate::cache_set::CacheSet;
use crate::device::{AlignedBuf, ReadDevice};
use crate::units::{SECTOR_BYTES, Sectors};

/// Places that are compared.
const PLACES: u64 = 64;

/// Sectors in which clean data is looked for at each.
const LOOKED_AT: u64 = 1 << 14;

/// Sectors compared at each.
const COMPARED: u64 = 16;

/// Clean data that a backing device does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sector {start} is not what the cache holds clean of it")]
pub struct Differing {
    /// The first sector that differs, on the backing device.
    pub start: u64,
    /// Sectors from there to the last that differs, of those compared.
    pub sectors: u64,
    /// The same place on the cache device.
    pub cache_sector: u64,
}

/// Compares some clean data of the volume in `slot`, spread over all of it, with its backing device; the
/// first that differs. What cannot be read says nothing.
pub(crate) fn differing(
    set: &CacheSet<'_>,
    slot: u32,
    device: &dyn ReadDevice,
) -> Option<Differing> {
    let usage = set.volumes.get(&slot)?;
    let end = usage.end.min(device.info().size().0);
    let step = end.div_ceil(PLACES).max(COMPARED);
    let mut view = set.view();
    let mut at = 0;
    while at < end {
        let mut clean = None;
        let looked_at = at.saturating_add(step.min(LOOKED_AT)).min(end);
        let _ = view.lookup(slot, at, looked_at, &mut |extent| {
            clean = extent.cached.filter(|_| !extent.dirty).map(|cached| (extent, cached));
            if clean.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Some((extent, cached)) = clean {
            let sectors = extent.end.saturating_sub(extent.start).min(COMPARED);
            let different =
                first_and_last(set.cache.device(), cached.0, device, extent.start, sectors);
            if let Some((first, last)) = different {
                return Some(Differing {
                    start: extent.start.saturating_add(first),
                    sectors: last.saturating_sub(first).saturating_add(1),
                    cache_sector: cached.0.saturating_add(first),
                });
            }
        }
        at = at.saturating_add(step);
    }
    None
}

/// Of so many sectors, the first and the last that differ.
fn first_and_last(
    cache: &dyn ReadDevice,
    on_cache: u64,
    backing: &dyn ReadDevice,
    on_backing: u64,
    count: u64,
) -> Option<(u64, u64)> {
    let ours = read(cache, on_cache, count)?;
    let theirs = read(backing, on_backing, count)?;
    let pairs = sectors(&ours).zip(sectors(&theirs));
    let mut differing =
        (0..).zip(pairs).filter(|(_, (ours, theirs))| ours != theirs).map(|(at, _)| at);
    let first = differing.next()?;
    Some((first, differing.last().unwrap_or(first)))
}

/// So many sectors of a device; `None` where they cannot be read.
pub(crate) fn read(device: &dyn ReadDevice, sector: u64, count: u64) -> Option<AlignedBuf> {
    let mut data = AlignedBuf::zeroed(usize::try_from(Sectors(count).bytes()).ok()?);
    device.read_at(Sectors(sector).bytes(), &mut data).ok()?;
    Some(data)
}

/// The sectors of `data`.
pub(crate) fn sectors(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.chunks_exact(usize::try_from(SECTOR_BYTES).unwrap_or(512))
}
