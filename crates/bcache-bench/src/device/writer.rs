//! What each writer of a run does: allocates, writes, reads, and keeps the index.

use std::sync::Arc;

use bcache_core::allocator::{
    AllocError, BucketSource, Reserve, SectorAllocator, SectorRequest, SetAllocator, SetPointer,
};
use bcache_core::device::{AlignedBuf, BlockDevice, DeviceError};
use bcache_core::ops::start::RunningSet;
use bcache_core::units::Sectors;
use rand::SeedableRng;
use rand_pcg::Pcg64;

use super::collector::Collector;
use super::index::{Extent, KeyIndex};
use super::plan::{DevicePlan, IoMode};
use super::timed::BucketTimes;
use crate::progress::Live;
use crate::record::harness::{Context, Worker};
use crate::record::{Clock, Measure};
use crate::report::Counters;
use crate::workload::{Generator, Operation, OperationKind};

/// The volume that is written: slot 0 of the uuid table.
const VOLUME: u32 = 0;

/// What all writers of a run share.
pub struct Cache<'a> {
    /// The caches.
    pub set: &'a RunningSet,
    /// The same devices, to write data to.
    pub devices: &'a [Arc<dyn BlockDevice>],
    /// Space for data.
    pub sectors: &'a SectorAllocator<Arc<SetAllocator>>,
    /// Where the data is.
    pub index: &'a KeyIndex,
    /// GC.
    pub collector: &'a Collector,
    /// What is wanted.
    pub plan: &'a DevicePlan,
    /// Counters to show.
    pub live: &'a Live,
}

/// Why a writer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// No space.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The workload cannot be.
    #[error(transparent)]
    Workload(#[from] crate::workload::WorkloadError),
    /// An operation is larger than memory can hold.
    #[error("an operation of {0} does not fit into memory")]
    TooLarge(Sectors),
}

/// One writer.
pub struct CacheWriter<'a> {
    cache: &'a Cache<'a>,
    writer: u32,
    generator: Generator,
    random: Pcg64,
    clock: Clock,
    data: AlignedBuf,
    read: AlignedBuf,
    /// Bytes that operations still have to have, where the run has an amount.
    left: Option<u64>,
    counters: Counters,
}

impl<'a> CacheWriter<'a> {
    /// Writer `writer`, which ends after operations of `left` bytes, if any are given.
    pub fn new(
        cache: &'a Cache<'a>,
        writer: u32,
        generator: Generator,
        block_max: Sectors,
        left: Option<u64>,
    ) -> Result<Self, WriterError> {
        let len = bytes_of(block_max)?;
        Ok(Self {
            cache,
            writer,
            generator,
            random: Pcg64::seed_from_u64(cache.plan.seed ^ u64::from(writer) << 32),
            clock: Clock::start(),
            data: super::baseline::noise(len, u64::from(writer)),
            read: AlignedBuf::zeroed(len),
            left,
            counters: Counters::default(),
        })
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Notes what an allocation had to do for a bucket.
    fn note_bucket(&mut self, context: &mut Context<'_>, times: BucketTimes) {
        if let Some(bucket_ns) = times.bucket_ns {
            context.recorder.record(Measure::BucketAllocation, bucket_ns);
            self.counters.buckets_allocated += 1;
        }
        if let Some(blocked_ns) = times.blocked_ns {
            context.recorder.record(Measure::Blocked, blocked_ns);
            self.counters.blocked += 1;
            if let Some(live) = self.cache.live.writer(self.writer) {
                live.blocked();
            }
        }
    }

    /// Takes a bucket from another reserve and gives it back: what a btree split does to the
    /// allocator.
    fn bucket(&mut self, context: &mut Context<'_>, reserve: Reserve) -> Result<(), WriterError> {
        let mut times = BucketTimes::default();
        let pointer = times.alloc(self.clock, self.cache.set.allocator(), reserve, true);
        self.note_bucket(context, times);
        self.cache.set.allocator().release_set(&[pointer?])?;
        Ok(())
    }

    fn write(&mut self, context: &mut Context<'_>, op: &Operation) -> Result<(), WriterError> {
        let cache = self.cache;
        let mut done = Sectors(0);
        while done < op.size {
            let wanted = Sectors(op.size.0 - done.0);
            let request = SectorRequest {
                inode: VOLUME,
                offset: op.offset.0 + done.0,
                sectors: u32::try_from(wanted.0).map_err(|_| WriterError::TooLarge(wanted))?,
                write_point: op.stream,
                moving_gc: false,
                wait: true,
            };
            let own = usize::try_from(self.writer).unwrap_or(0);
            let (clock, set) = (self.clock, cache.set.allocator());
            let mut times = BucketTimes::default();
            let piece = context.time(Measure::SectorAllocation, || {
                let alloc = |reserve, wait| times.alloc(clock, set, reserve, wait);
                cache.sectors.alloc_sectors_with(own, &request, alloc)
            });
            self.note_bucket(context, times);
            let piece = piece?;
            let sectors = Sectors(u64::from(piece.sectors));
            let written = self.write_data(context, piece.pointer.device, piece.sector, sectors);
            if written.is_ok() {
                let (pointer, sector) = (piece.pointer, piece.sector);
                cache.index.insert(op.offset + done, &Extent { pointer, sector, sectors });
            }
            // The bucket is kept by its mark now.
            cache.sectors.source().unpin(&piece.pointer)?;
            written?;
            done += sectors;
        }
        // Space that was only allocated was not written.
        if cache.plan.io == IoMode::Data {
            self.counters.written_bytes += op.size.bytes();
            if let Some(live) = cache.live.writer(self.writer) {
                live.wrote(op.size.bytes());
            }
        }
        cache.collector.wrote(i64::try_from(op.size.0).unwrap_or(i64::MAX));
        self.account(op.size);
        Ok(())
    }

    fn write_data(
        &self,
        context: &mut Context<'_>,
        device: u16,
        sector: Sectors,
        sectors: Sectors,
    ) -> Result<(), WriterError> {
        if self.cache.plan.io != IoMode::Data {
            return Ok(());
        }
        let Some(device) = self.cache.devices.get(usize::from(device)) else {
            return Err(AllocError::NoSuchCache { device }.into());
        };
        let data = bytes_of(sectors).ok().and_then(|len| self.data.get(..len));
        let data = data.ok_or(WriterError::TooLarge(sectors))?;
        Ok(context.time(Measure::DataWrite, || device.write_at(sector.bytes(), data))?)
    }

    /// Reads from the cache; what is not there is put there, as from a backing device.
    fn read(&mut self, context: &mut Context<'_>, op: &Operation) -> Result<(), WriterError> {
        let hit = self.read_cached(context, op)?;
        let bytes = op.size.bytes();
        if let Some(live) = self.cache.live.writer(self.writer) {
            live.read(bytes, hit);
        }
        if hit {
            self.counters.hits += 1;
            self.counters.read_bytes += bytes;
            self.account(op.size);
            Ok(())
        } else {
            self.counters.misses += 1;
            self.write(context, op)
        }
    }

    /// Whether the data was there, and still was when it had been read.
    fn read_cached(
        &mut self,
        context: &mut Context<'_>,
        op: &Operation,
    ) -> Result<bool, WriterError> {
        let cache = self.cache;
        let allocator = cache.set.allocator();
        let Some(extents) = cache.index.lookup(allocator, op.offset, op.size) else {
            return Ok(false);
        };
        // With the lookup, as the kernel does: after the read the bucket may be anybody's.
        for SetPointer { device, bucket, bucket_gen } in extents.iter().map(|e| e.pointer) {
            let table = allocator.cache(device)?.core().table();
            if !table.hit_through(bucket, bucket_gen).map_err(AllocError::from)? {
                return Ok(false);
            }
        }
        let read = &mut self.read;
        context.time(Measure::DataRead, || -> Result<(), WriterError> {
            for extent in &extents {
                let of = cache.devices.get(usize::from(extent.pointer.device));
                let len = bytes_of(extent.sectors)?;
                if let (Some(device), Some(buf)) = (of, read.get_mut(..len)) {
                    device.read_at(extent.sector.bytes(), buf)?;
                }
            }
            Ok(())
        })?;
        Ok(!extents.iter().any(|extent| allocator.is_stale(&extent.pointer)))
    }

    fn account(&mut self, size: Sectors) {
        let sectors = u32::try_from(size.0).unwrap_or(u32::MAX);
        self.counters.rescales += u64::from(self.cache.set.allocator().account_io(sectors));
    }
}

impl Worker for CacheWriter<'_> {
    type Error = WriterError;

    fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, WriterError> {
        if self.left == Some(0) {
            return Ok(false);
        }
        let op = self.generator.operation();
        match self.cache.plan.reserves.pick(&mut self.random).0 {
            Reserve::None => match op.kind {
                OperationKind::Write => self.write(context, &op)?,
                OperationKind::Read => self.read(context, &op)?,
            },
            other => self.bucket(context, other)?,
        }
        context.record_whole(Measure::Operation);
        let bytes = op.size.bytes();
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes);
        }
        if let Some(live) = self.cache.live.writer(self.writer) {
            live.operated(bytes);
        }
        Ok(true)
    }
}

fn bytes_of(size: Sectors) -> Result<usize, WriterError> {
    usize::try_from(size.bytes()).map_err(|_| WriterError::TooLarge(size))
}
