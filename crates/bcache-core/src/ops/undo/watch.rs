//! Places that tell whether a device was used since.

use serde::{Deserialize, Serialize};

use super::SaveError;
use crate::cache_set::CacheDevice;
use crate::checksum::crc64;
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};
use crate::ops::verify::Ranges;
use crate::units::SECTOR_BYTES;

/// Bytes with one checksum.
const PIECE_BYTES: u64 = 1 << 20;

/// Start of a device where whoever uses it leaves a trace: file systems, volume managers, swap.
const HEAD_BYTES: u64 = 16 << 20;

/// End of a device where some of them do.
const TAIL_BYTES: u64 = 1 << 20;

/// What is compared of a device beside what is written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The superblock: of a backing device, whose data may go on changing.
    Superblock,
    /// The start and the end: of a device that may become anything.
    Ends,
    /// Superblock and journal of a cache; the journal buckets as first byte and length.
    Cache(Vec<(u64, u64)>),
}

impl Watch {
    /// What to compare of this cache.
    pub fn of_cache(cache: &CacheDevice<'_>) -> Self {
        let geometry = *cache.geometry();
        let bytes = |bucket| (geometry.bucket_to_sector(bucket).bytes(), geometry.bucket_bytes());
        Self::Cache(cache.journal_buckets().into_iter().map(bytes).collect())
    }

    /// The same of a device whose superblock may be damaged.
    pub fn of_device(device: &dyn ReadDevice) -> Self {
        CacheDevice::open(device).map_or(Self::Superblock, |cache| Self::of_cache(&cache))
    }

    fn ranges(&self, size: u64) -> Vec<(u64, u64)> {
        let superblock = (0, SB_OFFSET_BYTES + SB_BYTES as u64);
        let wanted = match self {
            Self::Superblock => vec![superblock],
            Self::Ends => vec![(0, HEAD_BYTES), (size.saturating_sub(TAIL_BYTES), TAIL_BYTES)],
            Self::Cache(journal) => std::iter::once(superblock).chain(journal.clone()).collect(),
        };
        let size = size / SECTOR_BYTES * SECTOR_BYTES;
        let mut seen = Ranges::default();
        let mut ranges = Vec::new();
        for (offset, len) in wanted {
            let start = offset / SECTOR_BYTES * SECTOR_BYTES;
            let end = offset.saturating_add(len).min(size);
            ranges.extend(seen.gaps(start, end.max(start)));
            seen.insert(start, end);
        }
        ranges
    }
}

/// A piece of a device and what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Watched {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// CRC-64; absent where the piece could not be read.
    pub(super) crc: Option<u64>,
}

/// What `watch` sees of `device` beside `written`.
pub(super) fn look(
    watch: &Watch,
    device: &dyn ReadDevice,
    written: &Ranges,
) -> Result<Vec<Watched>, SaveError> {
    let mut pieces = Vec::new();
    for (start, end) in watch.ranges(device.info().size_bytes) {
        for (mut from, to) in written.gaps(start, end) {
            while from < to {
                let len = PIECE_BYTES.min(to - from);
                let crc = match sum(device, from, len) {
                    Ok(crc) => Some(crc),
                    Err(DeviceError::Io { .. }) => None,
                    Err(error) => return Err(error.into()),
                };
                pieces.push(Watched { offset: from, len, crc });
                from += len;
            }
        }
    }
    Ok(pieces)
}

/// The first piece that is not as it was.
pub(super) fn first_change(
    pieces: &[Watched],
    device: &dyn ReadDevice,
) -> Result<Option<u64>, DeviceError> {
    for piece in pieces {
        if let Some(crc) = piece.crc {
            if sum(device, piece.offset, piece.len)? != crc {
                return Ok(Some(piece.offset));
            }
        }
    }
    Ok(None)
}

fn sum(device: &dyn ReadDevice, offset: u64, len: u64) -> Result<u64, DeviceError> {
    let mut bytes = AlignedBuf::zeroed(usize::try_from(len).unwrap_or(0));
    device.read_at(offset, &mut bytes)?;
    Ok(crc64(&bytes))
}
