//! What a device does without an allocator: the measure of what the allocator costs.
//!
//! - [`FixedAddresses`]: the same writes, with the same threads, sizes and pace, each to an address
//!   that is known beforehand. The streams share the device as they share it with an allocator: each
//!   fills an extent as large as a bucket, then its next one; a write that goes over the end of an
//!   extent becomes two. Extents are taken as the policy takes buckets: with FIFO in turn; with LRU in
//!   turn until each was written once, and from then on, when buckets go in the order in which they
//!   cooled, from all over the device; with random, always so. A device that likes consecutive writes,
//!   or large ones, likes both runs alike. Ends with a flush.
//! - [`sequential_write`]: so many bytes from one thread, one after the other.

use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bcache_core::allocator::Policy;
use bcache_core::device::{AlignedBuf, BlockDevice, DeviceError};
use bcache_core::units::Sectors;
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

use super::plan::Length;
use super::turns::{Side, Turn};
use crate::progress::Live;
use crate::record::Measure;
use crate::record::harness::{Context, Crew, Load, Until, Worker, drive};
use crate::record::pace::Pace;
use crate::report::{Counters, Run};
use crate::workload::{Generator, OperationKind, Workload, WorkloadError, greatest_common_divisor};

/// Name of the run with fixed addresses.
pub const FIXED_ADDRESSES: &str = "fixed addresses";
/// Name of the plain sequential write.
pub const SEQUENTIAL_WRITE: &str = "sequential write";

/// A part of a device that may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Where it begins.
    pub start: Sectors,
    /// How long it is.
    pub size: Sectors,
}

/// Why a baseline could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The workload cannot be.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The area has no room for an operation, or for a piece of one from each stream.
    #[error(
        "{area} of the device are too few for {streams} streams with operations of {block_max}"
    )]
    AreaTooSmall {
        /// Size of the area.
        area: Sectors,
        /// Streams of all writers.
        streams: u64,
        /// The largest operation.
        block_max: Sectors,
    },
    /// A buffer of this size cannot be had.
    #[error("an operation of {size} does not fit into memory")]
    TooLarge {
        /// The size.
        size: Sectors,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Memory filled with noise, which no device can compress.
pub fn noise(len: usize, seed: u64) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(len);
    Pcg64::seed_from_u64(seed).fill_bytes(&mut buffer);
    buffer
}

fn buffer_len(size: Sectors) -> Result<usize, BaselineError> {
    usize::try_from(size.bytes()).map_err(|_| BaselineError::TooLarge { size })
}

/// How long, how fast, and who may end it.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// How operations follow each other.
    pub pace: Pace,
    /// When it is over.
    pub length: Length,
    /// Ends it early.
    pub stop: &'a AtomicBool,
    /// Counters to show.
    pub live: &'a Live,
}

/// Where a run with fixed addresses writes.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Within this, which is overwritten.
    pub area: Area,
    /// In extents as large as a bucket.
    pub bucket: Sectors,
    /// In the order in which this would take buckets.
    pub policy: Policy,
}

/// A workload without an allocator, turn by turn.
pub struct FixedAddresses<'a> {
    device: &'a dyn BlockDevice,
    crew: Crew<'a, FixedWriter<'a>>,
    /// Time of the flushes.
    flushes: Duration,
}

impl<'a> FixedAddresses<'a> {
    /// `workload` at `places` of `device`.
    pub fn new(
        device: &'a dyn BlockDevice,
        places: &Places,
        workload: &Workload,
        terms: &Terms<'a>,
    ) -> Result<Self, BaselineError> {
        workload.check()?;
        let extents = Extents::new(places, workload)?;
        let block_max = workload.block_max();
        let load = Load {
            threads: workload.writers.get(),
            pace: terms.pace,
            until: terms.length.until(),
            measures: &[Measure::Operation, Measure::DataWrite, Measure::DataRead],
            stop: terms.stop,
        };
        let crew = Crew::new(&load, |writer| -> Result<_, BaselineError> {
            let streams = workload.streams.get();
            Ok(FixedWriter {
                device,
                extents,
                generator: workload.generator(writer)?,
                buffer: noise(buffer_len(block_max)?, u64::from(writer)),
                streams: (0..streams).map(|_| 0).collect(),
                first_stream: u64::from(writer) * u64::from(streams),
                left: terms.length.share_of(writer, workload.writers),
                written_bytes: 0,
                read_bytes: 0,
                live: terms.live,
                writer,
            })
        })?;
        Ok(Self { device, crew, flushes: Duration::ZERO })
    }

    fn written_bytes(&self) -> u64 {
        self.crew.workers().map(|writer| writer.written_bytes).sum()
    }

    /// What came of all turns.
    pub fn finish(self) -> Run {
        let written_bytes = self.written_bytes();
        let (mut driven, writers) = self.crew.finish();
        driven.elapsed += self.flushes;
        let mut run = Run::of_driven(FIXED_ADDRESSES, &driven);
        run.counters = Counters {
            written_bytes,
            device_written_bytes: written_bytes,
            read_bytes: writers.iter().map(|writer| writer.read_bytes).sum(),
            ..Counters::default()
        };
        run
    }
}

impl Side for FixedAddresses<'_> {
    fn turn(&mut self, time: Duration, last: bool) -> anyhow::Result<Turn> {
        let before = self.written_bytes();
        let ran = self.crew.turn(time, last)?;
        let flush = flush_time(self.device)?;
        self.flushes += flush;
        Ok(Turn {
            written_bytes: self.written_bytes() - before,
            elapsed: ran + flush,
            whole: ran >= time && self.crew.is_complete(),
        })
    }

    fn is_over(&self) -> bool {
        self.crew.is_over()
    }
}

/// Whether `workload` has room at `places`.
pub fn check_room(places: &Places, workload: &Workload) -> Result<(), BaselineError> {
    Extents::new(places, workload).map(drop)
}

/// Flushes `device`; how long that took. It counts as time of a run: data that is still in a cache has
/// not been written.
fn flush_time(device: &dyn BlockDevice) -> Result<Duration, DeviceError> {
    let began = Instant::now();
    device.flush()?;
    Ok(began.elapsed())
}

/// How an area is dealt out to streams: to each an extent in turn, round after round. In sectors.
#[derive(Clone, Copy, Debug)]
struct Extents {
    start: u64,
    size: u64,
    /// How many extents: as many for each stream.
    count: u64,
    streams: u64,
    granule: u64,
    /// From this round over the area on, extents that follow each other are apart on the device.
    scattered_from: u64,
    /// How far apart, in extents: shares no factor with their number.
    stride: u64,
}

impl Extents {
    /// Extents as large as a bucket, or smaller ones where there would not be one for each stream.
    fn new(places: &Places, workload: &Workload) -> Result<Self, BaselineError> {
        let Places { area, bucket, policy, .. } = *places;
        let (streams, block_max) = (workload.streams_total(), workload.block_max());
        // An extent ends where a piece of an operation may.
        let granule = workload.granule_in(bucket).0;
        let size = bucket.0.min(area.size.0 / streams / granule * granule);
        let count = area.size.0.checked_div(size * streams).unwrap_or(0) * streams;
        if count * size < block_max.0.max(1) {
            return Err(BaselineError::AreaTooSmall { area: area.size, streams, block_max });
        }
        let scattered_from = match policy {
            Policy::Random => 0,
            Policy::Lru => 1,
            Policy::Fifo => u64::MAX,
        };
        // Near the golden section, whose multiples are never close to each other for long.
        let coprime = |stride: &u64| greatest_common_divisor(*stride, count) == 1;
        let stride = (count / 8 * 5..count).find(coprime).unwrap_or(1);
        Ok(Self { start: area.start.0, size, count, streams, granule, scattered_from, stride })
    }

    /// Where `stream`, which has `written` so many sectors, writes next, and how many of the `wanted`
    /// sectors before its extent ends.
    fn next(&self, stream: u64, written: u64, wanted: u64) -> (u64, u64) {
        let (turn, within) = (written / self.size, written % self.size);
        let number = turn * self.streams + stream;
        let (round, extent) = (number / self.count, number % self.count);
        let extent = if round < self.scattered_from {
            extent
        } else {
            let scattered = u128::from(extent) * u128::from(self.stride) % u128::from(self.count);
            u64::try_from(scattered).unwrap_or(extent)
        };
        (self.start + extent * self.size + within, wanted.min(self.size - within))
    }

    /// Where an operation of `size`, the largest or less, reads what is at `offset` of the volume.
    fn read_from(&self, offset: Sectors, size: Sectors) -> u64 {
        let places = (self.count * self.size).saturating_sub(size.0) / self.granule + 1;
        self.start + offset.0 / self.granule % places * self.granule
    }
}

struct FixedWriter<'a> {
    device: &'a dyn BlockDevice,
    extents: Extents,
    generator: Generator,
    buffer: AlignedBuf,
    /// Sectors that each of its streams has written.
    streams: Vec<u64>,
    first_stream: u64,
    /// Bytes that operations still have to have, where the run has an amount.
    left: Option<u64>,
    written_bytes: u64,
    read_bytes: u64,
    live: &'a Live,
    writer: u32,
}

impl Worker for FixedWriter<'_> {
    type Error = BaselineError;

    fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, BaselineError> {
        if self.left == Some(0) {
            return Ok(false);
        }
        let operation = self.generator.operation();
        let bytes = operation.size.bytes();
        let len = buffer_len(operation.size)?;
        let live = self.live.writer(self.writer);
        let stream = u64::from(operation.stream);
        let index = usize::try_from(stream.saturating_sub(self.first_stream)).ok();
        let written = index.and_then(|index| self.streams.get_mut(index));
        let (Some(written), Some(buffer)) = (written, self.buffer.get_mut(..len)) else {
            // The generator keeps to its streams and sizes.
            return Err(BaselineError::TooLarge { size: operation.size });
        };
        match operation.kind {
            OperationKind::Write => {
                let mut done = 0;
                while done < operation.size.0 {
                    let left = operation.size.0 - done;
                    let (at, sectors) = self.extents.next(stream, *written, left);
                    let offset = Sectors(at).bytes();
                    let data = buffer.get(..buffer_len(Sectors(sectors))?).unwrap_or_default();
                    let wrote =
                        context.time(Measure::DataWrite, || self.device.write_at(offset, data));
                    wrote?;
                    *written += sectors;
                    done += sectors;
                }
                self.written_bytes += bytes;
                if let Some(live) = live {
                    live.wrote(bytes);
                }
            }
            OperationKind::Read => {
                // What is read is of no interest.
                let at = self.extents.read_from(operation.offset, operation.size);
                let offset = Sectors(at).bytes();
                let read = context.time(Measure::DataRead, || self.device.read_at(offset, buffer));
                read?;
                self.read_bytes += bytes;
                if let Some(live) = live {
                    live.read(bytes, true);
                }
            }
        }
        context.record_whole(Measure::Operation);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes);
        }
        if let Some(live) = live {
            live.operated(bytes);
        }
        Ok(true)
    }
}

/// Writes `bytes`, rounded up to whole chunks, to `area` of `device`, `chunk` at a time, round and
/// round where it is smaller, and flushes once at the end, which counts. Shown as `live`'s first writer.
pub fn sequential_write(
    device: &dyn BlockDevice,
    area: Area,
    chunk: Sectors,
    bytes: NonZeroU64,
    stop: &AtomicBool,
    live: &Live,
) -> Result<Run, BaselineError> {
    if chunk.0 == 0 || area.size < chunk {
        let (area, block_max) = (area.size, chunk);
        return Err(BaselineError::AreaTooSmall { area, streams: 1, block_max });
    }
    let load = Load {
        threads: 1,
        pace: Pace::Closed,
        until: Until::Operations(u64::MAX),
        measures: &[Measure::DataWrite],
        stop,
    };
    let (driven, writers) = drive(&load, |_| {
        Ok(SequentialWriter {
            device,
            area,
            chunk,
            chunks: 0,
            buffer: noise(buffer_len(chunk)?, 0),
            left: bytes.get(),
            live,
        })
    })?;
    let mut run = Run::of_driven(SEQUENTIAL_WRITE, &driven);
    let written_bytes = writers.iter().map(|writer| writer.chunks * chunk.bytes()).sum();
    run.counters =
        Counters { written_bytes, device_written_bytes: written_bytes, ..Counters::default() };
    Ok(run)
}

struct SequentialWriter<'a> {
    device: &'a dyn BlockDevice,
    area: Area,
    chunk: Sectors,
    /// How many were written.
    chunks: u64,
    buffer: AlignedBuf,
    left: u64,
    live: &'a Live,
}

impl Worker for SequentialWriter<'_> {
    type Error = BaselineError;

    fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, BaselineError> {
        if self.left == 0 {
            return Ok(false);
        }
        let place = self.chunks % (self.area.size.0 / self.chunk.0).max(1);
        let offset = (self.area.start + Sectors(place * self.chunk.0)).bytes();
        let wrote = context.time(Measure::DataWrite, || self.device.write_at(offset, &self.buffer));
        wrote?;
        self.chunks += 1;
        let bytes = self.chunk.bytes();
        if let Some(live) = self.live.writer(0) {
            live.operated(bytes);
            live.wrote(bytes);
        }
        self.left = self.left.saturating_sub(bytes);
        if self.left == 0 {
            self.device.flush()?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
