//! The run itself: a cache set in use, its threads, and the writers.

use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
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
use super::baseline::{Area, SEQUENTIAL_WRITE, flush_time, sequential_write};
use super::collector::Collector;
use super::counted::CountedDevice;
use super::index::KeyIndex;
use super::plan::{DevicePlan, IoMode};
use super::timed::TimedIo;
use super::trace::TraceFile;
use super::writer::{Cache, CacheWriter, WriterError};
use crate::progress::Goal;
use crate::record::harness::{Driven, Load, drive};
use crate::record::{Measure, Recorder};
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
    /// Prio writes while nothing else is written.
    pub prio_writes: Option<Run>,
    /// Plain writes of the same bytes, to one place, flushed as often.
    pub sequential: Option<Run>,
}

/// Makes a cache set of the formatted `devices` and runs `plan` on it.
pub fn allocator_run(
    plan: &DevicePlan,
    workload: &Workload,
    devices: &[CountedDevice],
    superblocks: Vec<Superblock>,
    context: &RunContext,
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
    let result = running.run();
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

type Allocators = Vec<AllocatorThread<TimedIo<CacheIo>>>;

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

    fn run(&self) -> Result<AllocatorRun> {
        let allocators = self.start_threads()?;
        let (measured, gcs) = std::thread::scope(|scope| {
            let gc = scope.spawn(|| self.collector.run(&self.set, &self.index));
            let measured = self.measure(allocators);
            self.collector.end();
            let gcs = gc.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (measured, gcs)
        });
        let mut measured = measured?;
        measured.run.counters.gcs = gcs.context("the garbage collection failed")?;
        Ok(measured)
    }

    fn measure(&self, allocators: Allocators) -> Result<AllocatorRun> {
        let before = self.device_written_bytes();
        self.context.live.begin(ALLOCATOR, self.plan.length.goal());
        let totals = Mutex::new(Counters::default());
        let driven = self.drive(&totals);
        let written_bytes = self.device_written_bytes() - before;
        // Why a thread ended is the cause of what the writers say.
        let (recorders, counters) = Self::stop_threads(allocators)?;
        let mut driven = driven?;
        if self.plan.io == IoMode::Data {
            for device in self.devices {
                driven.elapsed += flush_time(device)?;
            }
        }
        for recorder in recorders {
            driven.recording.add(recorder);
        }
        let mut run = Run::of_driven(ALLOCATOR, &driven);
        run.counters = *totals.lock().unwrap_or_else(PoisonError::into_inner);
        run.counters.add(&counters);
        if self.plan.io != IoMode::None {
            run.counters.device_written_bytes = written_bytes;
        }
        let (mut prio_writes, mut sequential) = (None, None);
        // Whoever ends the run early wants its report, and nothing more.
        let comparable = self.plan.io != IoMode::None && self.devices.len() == 1;
        if self.plan.baseline && comparable && !self.stopped() {
            let alone = self.prio_writes_alone()?;
            sequential = self.sequential_writes(alone.operations)?;
            prio_writes = Some(alone);
        }
        Ok(AllocatorRun { run, prio_writes, sequential })
    }

    fn stopped(&self) -> bool {
        self.context.stop.load(Ordering::Relaxed)
    }

    fn device_written_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.written_bytes()).sum()
    }

    fn drive(&self, totals: &Mutex<Counters>) -> Result<Driven, WriterError> {
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
            totals,
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
        drive(&load, |writer| {
            let generator = self.workload.generator(writer)?;
            let left = self.plan.length.share_of(writer, writers);
            CacheWriter::new(&cache, writer, generator, self.workload.block_max(), left)
        })
    }

    fn start_threads(&self) -> Result<Allocators> {
        let caches = self.set.allocator().caches().iter().enumerate();
        caches
            .map(|(device, shared)| {
                let collector = Arc::clone(&self.collector);
                let io = self.set.io(device, Arc::new(move || collector.wake()));
                let io = io.context("a cache without a device")?;
                Ok(AllocatorThread::start(
                    shared,
                    TimedIo::new(io, Arc::clone(&self.context.live)),
                )?)
            })
            .collect()
    }

    fn stop_threads(allocators: Allocators) -> Result<(Vec<Recorder>, Counters)> {
        let mut recorders = Vec::new();
        let mut counters = Counters::default();
        let mut failed: Option<ThreadError<CacheIoError>> = None;
        for allocator in allocators {
            match allocator.stop() {
                Ok(io) => {
                    let (recorder, counted) = io.finish();
                    recorders.push(recorder);
                    counters.add(&counted);
                }
                Err((_, error)) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error).context("an allocator thread ended"),
            None => Ok((recorders, counters)),
        }
    }

    /// Lets the threads write prios while nobody writes data.
    fn prio_writes_alone(&self) -> Result<Run> {
        let began = Instant::now();
        let allocators = self.start_threads()?;
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
        let (recorders, counters) = Self::stop_threads(allocators)?;
        result?;
        let mut driven = Driven::default();
        for recorder in recorders {
            driven.recording.add(recorder);
        }
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
