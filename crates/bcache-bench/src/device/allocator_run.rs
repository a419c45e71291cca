//! The run itself: a cache set in use, its threads, and the writers.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bcache_core::allocator::{
    AllocatorThread, Reserve, SectorAllocator, ThreadError, Tracer, WriteError,
};
use bcache_core::device::BlockDevice;
use bcache_core::layout::superblock::Superblock;
use bcache_core::ops::start::{CacheIo, CacheIoError, Member, RunningSet};
use bcache_core::units::{BucketIndex, Geometry, SECTOR_BYTES, Sectors};
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

use super::RunContext;
use super::baseline::{Area, SEQUENTIAL_WRITE, sequential_write};
use super::collector::Collector;
use super::counted::CountedDevice;
use super::index::KeyIndex;
use super::plan::{DevicePlan, IoMode};
use super::timed::TimedIo;
use super::trace::TraceFile;
use super::turns::{Pair, Side, Turn, take_turns};
use super::writer::{Cache, CacheWriter};
use crate::progress::Goal;
use crate::record::Measure;
use crate::record::harness::{Crew, Driven, Load};
use crate::report::{Counters, Run};
use crate::workload::Workload;

/// Name of the run with the allocator.
pub const ALLOCATOR: &str = "allocator";
/// Name of the prio writes without anything beside them.
pub const PRIO_WRITES: &str = "prio writes alone";

/// How many prio writes are made alone.
const PRIO_WRITES_ALONE: u64 = 100;
/// How long that may take.
const PRIO_WRITES_TIME_MAX: Duration = Duration::from_secs(10);

/// What came of a run.
pub struct AllocatorRun {
    /// The writers and the allocator threads.
    pub run: Run,
    /// Their turns beside those without an allocator.
    pub pairs: Vec<Pair>,
    /// Prio writes while nothing else is written.
    pub prio_writes: Option<Run>,
    /// Plain writes of the same bytes, to one place, flushed as often.
    pub sequential: Option<Run>,
}

/// Makes a cache set of the formatted `devices` and runs `plan` on it, in turns with `fixed`.
pub fn allocator_run(
    plan: &DevicePlan,
    workload: &Workload,
    devices: &[CountedDevice],
    superblocks: Vec<Superblock>,
    context: &RunContext,
    fixed: Option<&mut dyn Side>,
) -> Result<AllocatorRun> {
    let mut random = Pcg64::seed_from_u64(plan.seed);
    let members = devices
        .iter()
        .zip(superblocks)
        .map(|(device, superblock)| Member { device: as_block_device(device), superblock });
    let set = RunningSet::start(
        members.collect(),
        |config| {
            config.seed = Some(plan.seed);
            // As kernels since 6.10: what could be invalidated before a GC can be during it.
            config.reclaim_in_gc = true;
        },
        &mut || random.next_u64(),
    )?;
    if let Some(trace) = &context.trace {
        let tracer: Arc<dyn Tracer> = Arc::<TraceFile>::clone(trace);
        set.allocator().set_tracer(&tracer);
    }
    let running = Running::new(plan, workload, devices, set, context)?;
    let result = running.run(fixed);
    if result.is_ok() && plan.io != IoMode::None {
        running.write_last_prios()?;
    }
    result
}

/// The time of so many chains that take as long as the median does: the few that something else on the
/// machine delays say nothing of how fast a chain is written.
fn times(median: Duration, chains: u64) -> Duration {
    Duration::from_secs_f64(median.as_secs_f64() * crate::num::float(chains))
}

fn as_block_device(device: &CountedDevice) -> Arc<dyn BlockDevice> {
    let device: CountedDevice = Arc::clone(device);
    device
}

struct Running<'a> {
    plan: &'a DevicePlan,
    workload: &'a Workload,
    devices: &'a [CountedDevice],
    context: &'a RunContext,
    set: RunningSet,
    geometry: Geometry,
    index: KeyIndex,
    collector: Arc<Collector>,
}

type Io = TimedIo<CacheIo>;

/// Adds what the allocator threads recorded and counted.
fn add_ios(ios: Vec<Io>, driven: &mut Driven, counters: &mut Counters) {
    for io in ios {
        let (recorder, counted) = io.finish();
        driven.recording.add(recorder);
        counters.add(&counted);
    }
}

/// The writers, the allocator threads and the collector, turn by turn.
struct AllocatorSide<'r> {
    running: &'r Running<'r>,
    crew: Crew<'r, CacheWriter<'r>>,
    /// What the threads write through, between the turns.
    ios: Vec<Io>,
    /// Time from the last writer's end to that of all I/O, over all turns.
    settled: Duration,
    gcs: u64,
    device_written_bytes: u64,
}

impl AllocatorSide<'_> {
    fn written_bytes(&self) -> u64 {
        self.crew.workers().map(|writer| writer.counters().written_bytes).sum()
    }

    fn finish(self) -> Run {
        let (mut driven, writers) = self.crew.finish();
        driven.elapsed += self.settled;
        let mut counters = Counters { gcs: self.gcs, ..Counters::default() };
        for writer in &writers {
            counters.add(writer.counters());
        }
        add_ios(self.ios, &mut driven, &mut counters);
        if self.running.plan.io != IoMode::None {
            counters.device_written_bytes = self.device_written_bytes;
        }
        Run { counters, ..Run::of_driven(ALLOCATOR, &driven) }
    }
}

impl Side for AllocatorSide<'_> {
    fn turn(&mut self, time: Duration, last: bool) -> Result<Turn> {
        let running = self.running;
        let (on_device, written) = (running.device_written_bytes(), self.written_bytes());
        let threads = running.start_threads(std::mem::take(&mut self.ios))?;
        let (ran, settled, gcs) = std::thread::scope(|scope| {
            let gc = scope.spawn(|| running.collector.run(&running.set, &running.index));
            let ran = self.crew.turn(time, last);
            let ended = Instant::now();
            // A chain that is being written is completed.
            let ios = Running::stop_threads(threads);
            let flushed = match running.plan.io {
                IoMode::Data => running.devices.iter().try_for_each(BlockDevice::flush),
                IoMode::Metadata | IoMode::None => Ok(()),
            };
            let settled = ended.elapsed();
            // It needs no device.
            running.collector.end();
            let gcs = gc.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // Why a thread ended is the cause of what the writers say.
            self.ios = ios?;
            let ran = ran?;
            flushed?;
            Ok::<_, anyhow::Error>((ran, settled, gcs.context("the garbage collection failed")?))
        })?;
        self.settled += settled;
        self.gcs += gcs;
        self.device_written_bytes += running.device_written_bytes() - on_device;
        Ok(Turn {
            written_bytes: self.written_bytes() - written,
            elapsed: ran + settled,
            whole: ran >= time && self.crew.is_complete(),
        })
    }

    fn is_over(&self) -> bool {
        self.crew.is_over()
    }
}

impl<'a> Running<'a> {
    fn new(
        plan: &'a DevicePlan,
        workload: &'a Workload,
        devices: &'a [CountedDevice],
        set: RunningSet,
        context: &'a RunContext,
    ) -> Result<Self> {
        let geometry = *set.caches().first().context("a set without caches")?.geometry();
        let granule = workload.granule_in(geometry.bucket_size());
        let index = KeyIndex::new(workload.working_set, granule, geometry)?;
        let sectors = |cache: &Geometry| cache.nbuckets().saturating_mul(cache.bucket_size().0);
        let all = set.caches().iter().map(|cache| sectors(cache.geometry())).sum();
        let collector = Arc::new(Collector::new(all));
        Ok(Self { plan, workload, devices, context, set, geometry, index, collector })
    }

    /// The writers, in turns with `fixed`, and what is compared besides.
    fn run(&self, fixed: Option<&mut dyn Side>) -> Result<AllocatorRun> {
        let writers = self.plan.writers;
        let source = Arc::clone(self.set.allocator());
        let own = usize::try_from(writers.get()).unwrap_or(1);
        let sectors = SectorAllocator::new(source, &self.geometry, own);
        let devices: Vec<_> = self.devices.iter().map(as_block_device).collect();
        let cache = Cache {
            set: &self.set,
            devices: &devices,
            sectors: &sectors,
            index: &self.index,
            collector: &self.collector,
            plan: self.plan,
            live: &self.context.live,
        };
        let load = Load {
            threads: writers.get(),
            pace: self.plan.pace,
            until: self.plan.length.until(),
            measures: &[
                Measure::Operation,
                Measure::BucketAllocation,
                Measure::SectorAllocation,
                Measure::Blocked,
                Measure::DataWrite,
                Measure::DataRead,
            ],
            stop: &self.context.stop,
        };
        let crew = Crew::new(&load, |writer| {
            let generator = self.workload.generator(writer)?;
            let left = self.plan.length.share_of(writer, writers);
            CacheWriter::new(&cache, writer, generator, self.workload.block_max(), left)
        })?;
        let ios = self.ios()?;
        let mut allocator = AllocatorSide {
            running: self,
            crew,
            ios,
            settled: Duration::ZERO,
            gcs: 0,
            device_written_bytes: 0,
        };
        let (length, stop) = (self.plan.length, &*self.context.stop);
        let pairs = match fixed {
            Some(fixed) => take_turns(&mut [&mut allocator, fixed], length, stop)?,
            None => take_turns(&mut [&mut allocator], length, stop)?,
        };
        let run = allocator.finish();
        let (mut prio_writes, mut sequential) = (None, None);
        // Whoever ends the run early wants its report, and nothing more.
        let comparable = self.plan.io != IoMode::None && self.devices.len() == 1;
        if self.plan.baseline && comparable && !self.stopped() {
            let alone = self.prio_writes_alone()?;
            sequential = self.sequential_writes(alone.operations)?;
            prio_writes = Some(alone);
        }
        Ok(AllocatorRun { run, pairs, prio_writes, sequential })
    }

    fn stopped(&self) -> bool {
        self.context.stop.load(Ordering::Relaxed)
    }

    fn device_written_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.written_bytes()).sum()
    }

    fn ios(&self) -> Result<Vec<Io>> {
        let io = |device| {
            let collector = Arc::clone(&self.collector);
            let io = self.set.io(device, Arc::new(move || collector.wake()));
            let io = io.context("a cache without a device")?;
            Ok(TimedIo::new(io, Arc::clone(&self.context.live)))
        };
        (0..self.devices.len()).map(io).collect()
    }

    fn start_threads(&self, ios: Vec<Io>) -> Result<Vec<AllocatorThread<Io>>> {
        let caches = self.set.allocator().caches().iter().zip(ios);
        caches.map(|(shared, io)| Ok(AllocatorThread::start(shared, io)?)).collect()
    }

    fn stop_threads(threads: Vec<AllocatorThread<Io>>) -> Result<Vec<Io>> {
        let mut ios = Vec::new();
        let mut failed: Option<ThreadError<CacheIoError>> = None;
        for thread in threads {
            match thread.stop() {
                Ok(io) => ios.push(io),
                Err((_, error)) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error).context("an allocator thread ended"),
            None => Ok(ios),
        }
    }

    /// Lets the threads write prios while nobody writes data.
    fn prio_writes_alone(&self) -> Result<Run> {
        let began = Instant::now();
        let threads = self.start_threads(self.ios()?)?;
        // Its passes count: one for each chain.
        let passes = || self.context.live.sums().passes;
        let enough = passes() + PRIO_WRITES_ALONE;
        self.context.live.begin(PRIO_WRITES, Goal::Passes(PRIO_WRITES_ALONE));
        let allocator = self.set.allocator();
        let mut result = Ok(());
        let over = || self.stopped() || began.elapsed() >= PRIO_WRITES_TIME_MAX;
        while result.is_ok() && passes() < enough && !over() {
            result = allocator
                .bucket_alloc_set(Reserve::None, 1, true)
                .and_then(|pointers| allocator.release_set(&pointers));
        }
        let ios = Self::stop_threads(threads)?;
        result?;
        let (mut driven, mut counters) = (Driven::default(), Counters::default());
        add_ios(ios, &mut driven, &mut counters);
        let chains = counters.prio_writes;
        driven.operations = chains;
        let median_ns =
            driven.recording.get(Measure::PrioWrite).map_or(0, |it| it.value_at_quantile(0.5));
        driven.elapsed = times(Duration::from_nanos(median_ns), chains);
        let mut run = Run::of_driven(PRIO_WRITES, &driven);
        run.counters = counters;
        run.counters.written_bytes = self.chain_sectors().bytes().saturating_mul(chains);
        Ok(run)
    }

    /// A chain of prio sets of the first cache.
    fn chain_sectors(&self) -> Sectors {
        let bytes = self.geometry.meta_bucket_bytes().saturating_mul(self.geometry.prio_buckets());
        Sectors(bytes / SECTOR_BYTES)
    }

    /// The longest part of the first cache without metadata. What it holds has no keys on the device,
    /// and once the writers have ended nobody reads it any more.
    fn scratch_area(&self) -> Result<Area> {
        let chain = self.set.allocator().cache(0)?.core().prio_chains();
        let marks = self.set.metadata_marks().into_iter();
        let of_first = marks.filter(|(device, ..)| *device == 0).map(|(_, bucket, _)| bucket);
        let end = BucketIndex(self.geometry.nbuckets());
        let mut metadata: Vec<u64> =
            of_first.chain(chain.buckets()).chain([end]).map(|bucket| bucket.0).collect();
        metadata.sort_unstable();
        let longest = metadata
            .windows(2)
            .filter_map(|pair| <&[u64; 2]>::try_from(pair).ok())
            .max_by_key(|[before, after]| after - before);
        let [before, after] = *longest.context("a cache without data buckets")?;
        let buckets = after.saturating_sub(before + 1);
        Ok(Area {
            start: self.geometry.bucket_to_sector(BucketIndex(before + 1)),
            size: Sectors(buckets.saturating_mul(self.geometry.bucket_size().0)),
        })
    }

    /// Writes as many bytes as `chains` chains have, as large pieces at a time, flushed after each
    /// chain. Each goes on where the one before ended, because chains go to ever new places too: what
    /// is written over and over stays in the caches of a device.
    fn sequential_writes(&self, chains: u64) -> Result<Option<Run>> {
        let device = self.devices.first().context("a set without devices")?;
        let area = self.scratch_area()?;
        let chain = self.chain_sectors();
        let size = Sectors(self.geometry.meta_bucket_bytes() / SECTOR_BYTES);
        let bytes = NonZeroU64::new(chain.bytes()).context("a chain of nothing")?;
        let all = Goal::Bytes(chain.bytes().saturating_mul(chains));
        self.context.live.begin(SEQUENTIAL_WRITE, all);
        let places = (area.size.0 / chain.0).max(1);
        let once = |n| {
            let start = area.start + Sectors(n % places * chain.0);
            let area = Area { start, size: chain.min(area.size) };
            sequential_write(device, area, size, bytes, &self.context.stop, &self.context.live)
        };
        let mut runs = (0..chains).map(once).collect::<Result<Vec<_>, _>>()?;
        // Whoever is stopped has written less than a chain, in hardly any time.
        runs.retain(|run| run.counters.written_bytes >= bytes.get());
        let written = runs.len() as u64;
        let mut took: Vec<Duration> = runs.iter().map(|run| run.elapsed).collect();
        took.sort_unstable();
        let median = took.get(took.len() / 2).copied().unwrap_or_default();
        Ok(runs
            .into_iter()
            .reduce(Run::merged)
            // Of a chain each, in a hundredth of a second: none that a run's noise could be told from.
            .map(|run| Run { elapsed: times(median, written), slices: Vec::new(), ..run }))
    }

    /// The prios as the run left them. Without a bucket for them, those on the device are a little
    /// older and as good.
    fn write_last_prios(&self) -> Result<()> {
        for device in 0..self.devices.len() {
            match self.set.write_prios(device) {
                Ok(()) | Err(WriteError::TooFewBuckets) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
