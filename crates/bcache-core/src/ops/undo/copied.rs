//! Comparing the data that was copied from a cache to a backing device.

use std::ops::ControlFlow;

use super::UndoError;
use super::file::Copied;
use super::run::Undone;
use crate::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use crate::device::{AlignedBuf, ReadDevice};
use crate::units::{SECTOR_BYTES, Sectors};

/// Sectors compared at once.
const PIECE_SECTORS: u64 = 2048;

/// Whether the backing device holds what the cache, as it was, holds for it: the dirty data, and where
/// the volume left the cache all of it.
pub(super) fn compare(
    cache: &Undone<'_>,
    backing: &dyn ReadDevice,
    copied: &Copied,
) -> Result<(), UndoError> {
    let set = CacheSet::read(CacheDevice::open(cache)?, &ReadOptions::default(), &mut NoVisitor)?;
    let mut failed = None;
    set.view().lookup(copied.slot, 0, i64::MAX.unsigned_abs(), &mut |extent| {
        let Some(cached) = extent.cached.filter(|_| extent.dirty || copied.clean) else {
            return ControlFlow::Continue(());
        };
        match same(cache, cached, backing, extent.start, extent.end) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn same(
    cache: &Undone<'_>,
    cached: Sectors,
    backing: &dyn ReadDevice,
    start: u64,
    end: u64,
) -> Result<(), UndoError> {
    let mut at = start;
    while at < end {
        let len = PIECE_SECTORS.min(end - at);
        let bytes = usize::try_from(Sectors(len).bytes()).unwrap_or(0);
        let (mut ours, mut theirs) = (AlignedBuf::zeroed(bytes), AlignedBuf::zeroed(bytes));
        cache.read_at(Sectors(cached.0.saturating_add(at - start)).bytes(), &mut ours)?;
        backing.read_at(Sectors(at).bytes(), &mut theirs)?;
        if let Some(byte) = ours.iter().zip(theirs.iter()).position(|(ours, theirs)| ours != theirs)
        {
            let path = backing.info().path.clone();
            return Err(UndoError::DataChanged { path, sector: at + byte as u64 / SECTOR_BYTES });
        }
        at += len;
    }
    Ok(())
}
