//! Copying a volume's dirty extents to where they belong on its backing device.
//!
//! One thread goes through the extents in the order of the backing device's sectors and joins those
//! that touch there into pieces of up to a mebibyte; a few workers read each piece from the cache and
//! write it at once, so that the device has several requests to sort. Every volume has its own
//! threads: several backing devices are written at the same time.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use crate::cache_set::CacheSet;
use crate::device::{AlignedBuf, BlockDevice, DeviceError};
use crate::ops::writeback::CopyError;
use crate::units::{SECTOR_BYTES, Sectors};

/// Sectors that are written at once, at most.
const PIECE_SECTORS: u64 = 2048;

/// Workers for each volume.
const WORKERS: usize = 4;

/// What is done with each piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Written to the backing device.
    Copy,
    /// Compared with the backing device.
    Compare,
}

/// Dirty sectors that lie side by side on the backing device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Piece {
    /// First sector on the backing device.
    sector: u64,
    sectors: u64,
    /// Where they are on the cache: first sector and number, in order.
    parts: Vec<(Sectors, u64)>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.sector.saturating_add(self.sectors)
    }

    fn add(&mut self, cached: Sectors, sectors: u64) {
        match self.parts.last_mut() {
            Some((start, count)) if start.0.saturating_add(*count) == cached.0 => *count += sectors,
            _ => self.parts.push((cached, sectors)),
        }
        self.sectors += sectors;
    }
}

/// Carries out `task` for all dirty extents of the volume in `slot`; `expected` is how much there is.
///
/// `progress` is told of bytes; `stop` ends it early, and is set when something fails.
pub(super) fn volume(
    set: &CacheSet<'_>,
    slot: u32,
    expected: Sectors,
    backing: &dyn BlockDevice,
    task: Task,
    stop: &AtomicBool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), CopyError> {
    let (send, receive) = mpsc::sync_channel::<Piece>(2 * WORKERS);
    let receive = Mutex::new(receive);
    let failed: Mutex<Option<CopyError>> = Mutex::new(None);
    let fail = |error: CopyError| {
        stop.store(true, Ordering::Relaxed);
        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    };
    let cache = set.cache.device();
    let work = || {
        let mut buf = AlignedBuf::zeroed(bytes(PIECE_SECTORS));
        let mut other =
            AlignedBuf::zeroed(if task == Task::Compare { bytes(PIECE_SECTORS) } else { 0 });
        loop {
            let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(piece) = next else { return };
            if stop.load(Ordering::Relaxed) {
                continue;
            }
            let (data, _) = buf.split_at_mut(bytes(piece.sectors).min(bytes(PIECE_SECTORS)));
            let done = read_cache(cache, &piece, data).and_then(|()| match task {
                Task::Copy => backing
                    .write_at(Sectors(piece.sector).bytes(), data)
                    .map_err(CopyError::Backing),
                Task::Compare => {
                    let (there, _) = other.split_at_mut(data.len());
                    compare(backing, &piece, data, there)
                }
            });
            match done {
                Ok(()) => progress(Sectors(piece.sectors).bytes()),
                Err(error) => fail(error),
            }
        }
    };
    let found = std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
        let found = pieces(set, slot, stop, &mut |piece| {
            // Workers go on receiving until the channel is closed.
            let _ = send.send(piece);
        });
        drop(send);
        found
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let found = found?;
    if found != expected && !stop.load(Ordering::Relaxed) {
        return Err(CopyError::Changed { found, expected });
    }
    Ok(())
}

/// Tells the volume's dirty sectors piece by piece; how many there are.
fn pieces(
    set: &CacheSet<'_>,
    slot: u32,
    stop: &AtomicBool,
    found: &mut dyn FnMut(Piece),
) -> Result<Sectors, CopyError> {
    let mut piece = Piece::default();
    let mut total = 0u64;
    set.view().lookup(slot, 0, i64::MAX.unsigned_abs(), &mut |extent| {
        if stop.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        let Some(cached) = extent.cached.filter(|_| extent.dirty) else {
            return ControlFlow::Continue(());
        };
        total = total.saturating_add(extent.end.saturating_sub(extent.start));
        let mut at = extent.start;
        while at < extent.end {
            if piece.end() != at || piece.sectors >= PIECE_SECTORS {
                let full = std::mem::replace(&mut piece, Piece { sector: at, ..Piece::default() });
                if full.sectors > 0 {
                    found(full);
                }
            }
            let sectors = (extent.end - at).min(PIECE_SECTORS - piece.sectors);
            piece.add(Sectors(cached.0.saturating_add(at - extent.start)), sectors);
            at += sectors;
        }
        ControlFlow::Continue(())
    })?;
    if piece.sectors > 0 {
        found(piece);
    }
    Ok(Sectors(total))
}

fn read_cache(
    cache: &dyn crate::device::ReadDevice,
    piece: &Piece,
    mut rest: &mut [u8],
) -> Result<(), CopyError> {
    let mut sector = piece.sector;
    for &(start, sectors) in &piece.parts {
        let len = bytes(sectors).min(rest.len());
        let (part, after) = rest.split_at_mut(len);
        let failed =
            |source: DeviceError| CopyError::Cache { sector, len: Sectors(sectors), source };
        cache.read_at(start.bytes(), part).map_err(failed)?;
        sector = sector.saturating_add(sectors);
        rest = after;
    }
    Ok(())
}

fn compare(
    backing: &dyn BlockDevice,
    piece: &Piece,
    data: &[u8],
    there: &mut [u8],
) -> Result<(), CopyError> {
    backing.read_at(Sectors(piece.sector).bytes(), there).map_err(CopyError::Backing)?;
    let differs = data.iter().zip(there.iter()).position(|(wrote, read)| wrote != read);
    match differs {
        None => Ok(()),
        Some(byte) => Err(CopyError::Differs {
            path: backing.info().path.clone(),
            sector: piece.sector + byte as u64 / SECTOR_BYTES,
        }),
    }
}

fn bytes(sectors: u64) -> usize {
    usize::try_from(Sectors(sectors).bytes()).unwrap_or(usize::MAX)
}
