//! `sector`: how many pieces of space the sector allocator gives out in a second.
//!
//! Each thread writes to its share of the streams in turn, 4 KiB at a time, each stream on its own
//! volume and write point. Buckets come from a list that never runs out, so that only the sector
//! allocator is measured; pins are taken and dropped as for real.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bcache_core::allocator::{
    AllocError, Allocator, BucketSource, Config, Reserve, SectorAllocator, SectorRequest,
    SetPointer,
};
use bcache_core::units::BucketIndex;

use crate::engines::{Engine, MemoryError, engine_name, geometry, used_allocator, used_reference};
use bcache_bench::record::pace::PaceCounts;
use bcache_bench::record::slices::Slices;
use bcache_bench::report::{Counters, Run};
use bcache_core::allocator::testkit::{Locked, Reference};

/// Sectors of a write.
const WRITE: u32 = 8;

/// Hands out the buckets of a device in turn.
struct InTurn {
    allocator: Arc<Allocator>,
    next: OwnLine,
}

/// Apart from what each allocation reads: the bench itself is not to slow two threads down.
#[repr(align(128))]
struct OwnLine(AtomicU64);

impl BucketSource for InTurn {
    fn alloc(&self, _: Reserve, _: bool) -> Result<SetPointer, AllocError> {
        let table = self.allocator.core().table();
        let buckets = table.nbuckets() - table.first_bucket().0;
        loop {
            let turn = self.next.0.fetch_add(1, Ordering::Relaxed);
            let bucket = BucketIndex(table.first_bucket().0 + turn % buckets);
            if table.bucket(bucket)?.pins == 0 {
                table.pin(bucket)?;
                return Ok(SetPointer { device: 0, bucket, bucket_gen: table.bucket_gen(bucket)? });
            }
        }
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        self.allocator.pin(pointer)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        self.allocator.unpin(pointer)
    }
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Buckets.
    pub nbuckets: u64,
    /// Most threads.
    pub threads: usize,
    /// Streams of all threads together.
    pub streams: usize,
    /// Engines.
    pub engine: Engine,
    /// How long each measurement runs.
    pub time: Duration,
    /// Seed of the buckets' contents.
    pub seed: u64,
}

impl Options {
    /// Refuses fewer streams than threads.
    pub fn check(&self) -> Result<(), MemoryError> {
        let Self { streams, threads, .. } = *self;
        if streams < threads.max(1) {
            return Err(MemoryError::TooFewStreams { streams, threads });
        }
        Ok(())
    }
}

/// One engine with some number of threads.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Which.
    pub engine: Engine,
    /// Threads.
    pub threads: usize,
    /// The best of several rounds.
    pub run: Run,
}

/// Pieces a second.
fn per_second(run: &Run) -> f64 {
    run.figures().operations_per_second.unwrap_or(0.0)
}

/// What the bench found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Streams of all threads together.
    pub streams: usize,
    /// The measurements.
    pub measured: Vec<Measured>,
}

impl Found {
    /// Pieces a second of one of the measurements.
    pub fn per_second(&self, engine: Engine, threads: usize) -> Option<f64> {
        let is = |m: &&Measured| m.engine == engine && m.threads == threads;
        self.measured.iter().find(is).map(|m| per_second(&m.run))
    }
}

/// Where a stream stands, alone on its cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Stream {
    inode: u32,
    write_point: u32,
    offset: u64,
}

/// Runs `write` on the streams of each of `threads` threads in turn.
fn rate<W: Fn(usize, &Stream, &mut Option<u64>) -> anyhow::Result<u64> + Sync>(
    options: &Options,
    engine: Engine,
    threads: usize,
    write: W,
) -> anyhow::Result<Run> {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let start = Instant::now();
    let parts = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|thread| {
                let write = &write;
                scope.spawn(move || -> anyhow::Result<(u64, Slices)> {
                    let mut streams: Vec<Stream> = (0..options.streams)
                        .filter(|stream| stream % threads == thread)
                        .map(|stream| {
                            let number = u32::try_from(stream).unwrap_or(0);
                            Stream { inode: number + 1, write_point: number + 1, offset: 0 }
                        })
                        .collect();
                    let mut held = None;
                    let mut count = 0;
                    let mut slices = Slices::default();
                    loop {
                        let took = start.elapsed();
                        if took >= options.time {
                            break;
                        }
                        let before = count;
                        for _ in 0..(4096 / streams.len()).max(1) {
                            for stream in &mut streams {
                                stream.offset += write(thread, stream, &mut held)?;
                                count += 1;
                            }
                        }
                        slices.add(ns(took), count - before);
                    }
                    Ok((count, slices))
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap_or_else(|_| anyhow::bail!("a writer panicked")))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let elapsed = start.elapsed();
    let (mut operations, mut slices) = (0, Slices::default());
    for (count, part) in parts {
        operations += count;
        slices.merge(part);
    }
    Ok(Run {
        name: format!(
            "{}, {} streams, {threads} {}",
            engine_name(engine),
            options.streams,
            if threads == 1 { "thread" } else { "threads" }
        ),
        elapsed,
        operations,
        pace: PaceCounts::default(),
        counters: Counters::default(),
        slices: slices.rates(elapsed),
        measures: Vec::new(),
    })
}

fn fast(options: &Options, threads: usize) -> anyhow::Result<Run> {
    let geometry = geometry(options.nbuckets)?;
    let allocator = used_allocator(Config::new(geometry), options.seed)?;
    let source = InTurn { allocator, next: OwnLine(AtomicU64::new(0)) };
    let sectors = SectorAllocator::new(source, &geometry, threads);
    rate(options, Engine::Fast, threads, |writer, stream, held| {
        let request = SectorRequest {
            inode: stream.inode,
            offset: stream.offset,
            sectors: WRITE,
            write_point: stream.write_point,
            moving_gc: false,
            wait: true,
        };
        let piece = sectors.alloc_sectors(writer, &request)?;
        if let Some(bucket) = held.replace(piece.pointer.bucket.0) {
            sectors.source().allocator.core().table().unpin(BucketIndex(bucket))?;
        }
        Ok(u64::from(piece.sectors))
    })
}

/// Puts buckets that nobody holds into the None reserve.
fn refill(engine: &mut Reference, next: &AtomicU64) {
    for _ in 0..64 {
        let buckets = engine.buckets.len() - engine.first;
        let turn = next.fetch_add(1, Ordering::Relaxed);
        let b = engine.first + usize::try_from(turn).unwrap_or(0) % buckets;
        if engine.buckets[b].pin == 0 && engine.free[3].push(b) {
            engine.buckets[b].pin = 1;
        }
    }
}

fn reference(options: &Options, threads: usize) -> anyhow::Result<Run> {
    let config = Config::new(geometry(options.nbuckets)?);
    let locked: Arc<Locked> = Locked::new(used_reference(&config, options.seed)?);
    let next = AtomicU64::new(0);
    rate(options, Engine::Reference, threads, |_, stream, held| {
        let request = (stream.inode, stream.offset, u64::from(WRITE), stream.write_point);
        let done = held.take().map(usize::try_from).transpose()?;
        let piece = locked
            .alloc_sectors(request, done, |engine| refill(engine, &next))
            .ok_or_else(|| anyhow::anyhow!("no bucket is free"))?;
        *held = Some(piece.bucket as u64);
        Ok(piece.sectors)
    })
}

/// Runs the bench.
pub fn run(options: &Options) -> anyhow::Result<Found> {
    options.check()?;
    let mut measured: Vec<Measured> = Vec::new();
    // In rounds, so that a disturbance of the machine hits all of them or costs one round.
    for _ in 0..3 {
        let mut note = |engine, threads, run: Run| {
            let same = |m: &&mut Measured| m.engine == engine && m.threads == threads;
            match measured.iter_mut().find(same) {
                Some(best) if per_second(&run) > per_second(&best.run) => best.run = run,
                Some(_) => {}
                None => measured.push(Measured { engine, threads, run }),
            }
        };
        for threads in 1..=options.threads.max(1) {
            if options.engine.fast() {
                note(Engine::Fast, threads, fast(options, threads)?);
            }
            if options.engine.reference() {
                note(Engine::Reference, threads, reference(options, threads)?);
            }
        }
    }
    Ok(Found { streams: options.streams, measured })
}
