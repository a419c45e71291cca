//! What a device does without an allocator: the measure of what the allocator costs.
//!
//! - [`fixed_addresses`]: the operations of a workload, with the same threads, sizes and pace, each to
//!   an address that is known beforehand. A stream writes on and on through its own part of the
//!   device, as it would through the buckets that an allocator gives it, so that a device which likes
//!   consecutive writes likes both alike. Ends with a flush.
//! - [`sequential_write`]: so many bytes from one thread, one after the other.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bcache_core::device::{AlignedBuf, BlockDevice, DeviceError};
use bcache_core::units::Sectors;
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

use super::plan::Length;
use crate::progress::Live;
use crate::record::Measure;
use crate::record::harness::{Context, Load, Until, Worker, drive};
use crate::record::pace::Pace;
use crate::report::{Counters, Run};
use crate::workload::{Generator, OperationKind, Workload, WorkloadError};

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
    /// The area has no room for one operation of each stream.
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

/// Runs `workload` without an allocator, within `area` of `device`, which is overwritten.
pub fn fixed_addresses(
    device: &dyn BlockDevice,
    area: Area,
    workload: &Workload,
    terms: &Terms<'_>,
) -> Result<Run, BaselineError> {
    workload.check()?;
    let (streams, block_max) = (workload.streams_total(), workload.block_max());
    let granule = workload.granule().0;
    let part = area.size.0 / streams / granule * granule;
    if part < block_max.0 {
        return Err(BaselineError::AreaTooSmall { area: area.size, streams, block_max });
    }
    let totals = Totals::default();
    let load = Load {
        threads: workload.writers.get(),
        pace: terms.pace,
        until: terms.length.until(),
        measures: &[Measure::Operation, Measure::DataWrite, Measure::DataRead],
        stop: terms.stop,
    };
    let mut driven = drive(&load, |writer| -> Result<_, BaselineError> {
        let first = u64::from(writer) * u64::from(workload.streams.get());
        let starts = (0..u64::from(workload.streams.get()))
            .map(|stream| area.start.0 + (first + stream) * part);
        Ok(FixedWriter {
            device,
            generator: workload.generator(writer)?,
            buffer: noise(buffer_len(block_max)?, u64::from(writer)),
            streams: starts.map(|start| Stream { start, end: start + part, next: start }).collect(),
            first_stream: first,
            left: terms.length.share_of(writer, workload.writers),
            written_bytes: 0,
            read_bytes: 0,
            hits: 0,
            totals: &totals,
            live: terms.live,
            writer,
        })
    })?;
    driven.elapsed += flush_time(device)?;
    let mut run = Run::of_driven(FIXED_ADDRESSES, &driven);
    let written_bytes = totals.written_bytes.load(Ordering::Relaxed);
    run.counters = Counters {
        written_bytes,
        device_written_bytes: written_bytes,
        read_bytes: totals.read_bytes.load(Ordering::Relaxed),
        hits: totals.hits.load(Ordering::Relaxed),
        ..Counters::default()
    };
    Ok(run)
}

/// Flushes `device`; how long that took. It counts as time of a run: data that is still in a cache has
/// not been written.
pub fn flush_time(device: &dyn BlockDevice) -> Result<Duration, DeviceError> {
    let began = Instant::now();
    device.flush()?;
    Ok(began.elapsed())
}

#[derive(Debug, Default)]
struct Totals {
    written_bytes: AtomicU64,
    read_bytes: AtomicU64,
    hits: AtomicU64,
}

/// A stream's part of the area, in sectors.
#[derive(Clone, Copy, Debug)]
struct Stream {
    start: u64,
    end: u64,
    next: u64,
}

impl Stream {
    /// Where the next write of `size` goes.
    fn advance(&mut self, size: Sectors) -> u64 {
        if self.end - self.next < size.0 {
            self.next = self.start;
        }
        let at = self.next;
        self.next += size.0;
        at
    }
}

struct FixedWriter<'a> {
    device: &'a dyn BlockDevice,
    generator: Generator,
    buffer: AlignedBuf,
    streams: Vec<Stream>,
    first_stream: u64,
    /// Bytes that operations still have to have, where the run has an amount.
    left: Option<u64>,
    written_bytes: u64,
    read_bytes: u64,
    hits: u64,
    totals: &'a Totals,
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
        let index = u64::from(operation.stream).saturating_sub(self.first_stream);
        let stream = usize::try_from(index).ok().and_then(|index| self.streams.get_mut(index));
        let (Some(stream), Some(buffer)) = (stream, self.buffer.get_mut(..len)) else {
            // The generator keeps to its streams and sizes.
            return Err(BaselineError::TooLarge { size: operation.size });
        };
        match operation.kind {
            OperationKind::Write => {
                let offset = Sectors(stream.advance(operation.size)).bytes();
                let wrote =
                    context.time(Measure::DataWrite, || self.device.write_at(offset, buffer));
                wrote?;
                self.written_bytes += bytes;
                if let Some(live) = live {
                    live.wrote(bytes);
                }
            }
            OperationKind::Read => {
                // Anywhere in the stream's part; what is read is of no interest.
                let places = (stream.end - stream.start) / operation.size.0.max(1);
                let place = operation.offset.0 / operation.size.0.max(1) % places.max(1);
                let offset = Sectors(stream.start + place * operation.size.0).bytes();
                let read = context.time(Measure::DataRead, || self.device.read_at(offset, buffer));
                read?;
                self.read_bytes += bytes;
                self.hits += 1;
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

    fn finish(&mut self) {
        self.totals.written_bytes.fetch_add(self.written_bytes, Ordering::Relaxed);
        self.totals.read_bytes.fetch_add(self.read_bytes, Ordering::Relaxed);
        self.totals.hits.fetch_add(self.hits, Ordering::Relaxed);
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
    let totals = Totals::default();
    let driven = drive(&load, |_| {
        Ok(SequentialWriter {
            device,
            stream: Stream {
                start: area.start.0,
                end: area.start.0 + area.size.0,
                next: area.start.0,
            },
            chunk,
            buffer: noise(buffer_len(chunk)?, 0),
            left: bytes.get(),
            totals: &totals,
            live,
        })
    })?;
    let mut run = Run::of_driven(SEQUENTIAL_WRITE, &driven);
    let written_bytes = totals.written_bytes.load(Ordering::Relaxed);
    run.counters =
        Counters { written_bytes, device_written_bytes: written_bytes, ..Counters::default() };
    Ok(run)
}

struct SequentialWriter<'a> {
    device: &'a dyn BlockDevice,
    stream: Stream,
    chunk: Sectors,
    buffer: AlignedBuf,
    left: u64,
    totals: &'a Totals,
    live: &'a Live,
}

impl Worker for SequentialWriter<'_> {
    type Error = BaselineError;

    fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, BaselineError> {
        if self.left == 0 {
            return Ok(false);
        }
        let offset = Sectors(self.stream.advance(self.chunk)).bytes();
        let wrote = context.time(Measure::DataWrite, || self.device.write_at(offset, &self.buffer));
        wrote?;
        let bytes = self.chunk.bytes();
        self.totals.written_bytes.fetch_add(bytes, Ordering::Relaxed);
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
