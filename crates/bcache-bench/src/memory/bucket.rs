//! `bcache-bench bucket`: how long allocating a bucket takes while the thread invalidates.
//!
//! Open loop: one caller allocates at a fixed rate, for a quarter of a second at a time; in between, for
//! as long and at the same rate, the harness runs an operation that does nothing. What machine and
//! scheduler do to one they do to the other, so that the difference is the allocator's. Closed loop:
//! callers allocate as fast as they can.

use std::convert::Infallible;
use std::hint::black_box;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bcache_core::allocator::prios::PrioSetPlan;
use bcache_core::allocator::thread::Event;
use bcache_core::allocator::{
    AllocatorIo, AllocatorThread, BucketTable, Config, Mark, Reserve, Shared, State,
};
use bcache_core::units::BucketIndex;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::latency::Latency;
use super::{Engine, geometry, used_reference, used_state};
use crate::num::float;
use crate::record::pace::{Pace, Pacer};
use crate::record::{Clock, latency_histogram};
use crate::reference::Locked;

/// A device that is not there: writes are done at once, and a GC finds all buckets half full.
struct NoDevice {
    shared: Arc<Shared>,
    passes: Arc<AtomicU64>,
}

impl AllocatorIo for NoDevice {
    type Error = Infallible;

    fn discard(&mut self, _: BucketIndex) -> Result<(), Infallible> {
        Ok(())
    }

    fn write_prio_set(&mut self, _: &PrioSetPlan, _: &BucketTable) -> Result<(), Infallible> {
        Ok(())
    }

    fn write_journal_entry(&mut self, _: BucketIndex) -> Result<(), Infallible> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn wake_gc(&mut self) {
        let state = self.shared.state();
        if collect(state).is_ok() {
            self.shared.gc_finished();
        }
    }

    fn observe(&mut self, event: Event<'_, Infallible>) {
        if let Event::PassEnded(_) = event {
            self.passes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn collect(state: &State) -> anyhow::Result<()> {
    state.gc_start();
    for bucket in (1..state.table().nbuckets()).map(BucketIndex) {
        let is = state.table().bucket(bucket)?;
        if is.mark == Mark::None {
            state.table().mark_key(bucket, is.bucket_gen, Mark::Reclaimable, 512)?;
        }
    }
    state.gc_finish(&[])?;
    Ok(())
}

/// An engine with its thread running.
trait Target: Send + Sync {
    /// Allocates a bucket for data.
    fn alloc(&self) -> anyhow::Result<u64>;
    /// The data is written: the bucket can be invalidated again.
    fn done(&self, bucket: u64) -> anyhow::Result<()>;
    fn passes(&self) -> u64;
}

struct Fast {
    shared: Arc<Shared>,
    passes: Arc<AtomicU64>,
    _thread: AllocatorThread<NoDevice>,
}

impl Fast {
    fn start(config: Config, seed: u64) -> anyhow::Result<Self> {
        let state = used_state(config, seed)?;
        state.initial_fill();
        let shared = Shared::new(state);
        fill_prio_reserve(&shared);
        let passes = Arc::new(AtomicU64::new(0));
        let io = NoDevice { shared: Arc::clone(&shared), passes: Arc::clone(&passes) };
        let thread = AllocatorThread::start(&shared, io)?;
        Ok(Self { shared, passes, _thread: thread })
    }
}

/// A device in use has no unmarked bucket; one pass that counts as durable stands for its past.
fn fill_prio_reserve(shared: &Shared) {
    let state = shared.state();
    if state.invalidate_buckets().is_ok() {
        state.free_inc_safe(bcache_core::allocator::Safe::GenDurable);
    }
}

impl Target for Fast {
    fn alloc(&self) -> anyhow::Result<u64> {
        Ok(self.shared.bucket_alloc(Reserve::None, true)?.0)
    }

    fn done(&self, bucket: u64) -> anyhow::Result<()> {
        Ok(self.shared.state().table().unpin(BucketIndex(bucket))?)
    }

    fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }
}

struct Reference {
    locked: Arc<Locked>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Reference {
    fn start(config: &Config, seed: u64) -> anyhow::Result<Self> {
        let locked = Locked::new(used_reference(config, seed));
        let thread = locked.start()?;
        Ok(Self { locked, thread: Some(thread) })
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.locked.stop();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Target for Reference {
    fn alloc(&self) -> anyhow::Result<u64> {
        let bucket = self.locked.bucket_alloc(Reserve::None).context("the engine has stopped")?;
        Ok(bucket as u64)
    }

    fn done(&self, bucket: u64) -> anyhow::Result<()> {
        self.locked.unpin(usize::try_from(bucket)?);
        Ok(())
    }

    fn passes(&self) -> u64 {
        self.locked.passes()
    }
}

/// Allocations that an open loop makes at least.
const SAMPLES_MIN: u64 = 200_000;

/// One engine at one rate.
#[derive(Clone, Debug, Serialize)]
pub struct Rated {
    /// Allocations a second.
    pub rate: u64,
    /// Passes that the thread made meanwhile.
    pub passes: u64,
    /// Allocations.
    pub alloc: Latency,
    /// The operations between them that do nothing.
    pub empty: Latency,
}

/// One engine.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// Which.
    pub engine: Engine,
    /// Allocations a second in the closed loop.
    pub closed_loop_per_second: f64,
    /// Passes in the closed loop.
    pub closed_loop_passes: u64,
    /// At each rate.
    pub open_loop: Vec<Rated>,
}

/// What the bench found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Buckets.
    pub nbuckets: u64,
    /// Callers in the closed loop.
    pub threads: usize,
    /// The engines.
    pub engines: Vec<EngineReport>,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Buckets.
    pub nbuckets: u64,
    /// Callers in the closed loop.
    pub threads: usize,
    /// Engines.
    pub engine: Engine,
    /// Rates of the open loop.
    pub rates: Vec<NonZeroU64>,
    /// Passes that each loop has to go through at least.
    pub passes: u64,
    /// Longest time for each loop, whatever the passes.
    pub limit: Duration,
    /// Seed of the buckets' contents.
    pub seed: u64,
}

fn closed_loop(target: &dyn Target, options: &Options) -> anyhow::Result<(f64, u64)> {
    let stop = AtomicBool::new(false);
    let before = target.passes();
    let start = Instant::now();
    let counts = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..options.threads.max(1))
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<u64> {
                    let mut count = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..64 {
                            target.done(target.alloc()?)?;
                            count += 1;
                        }
                        let enough = target.passes() - before >= options.passes;
                        // At least a second, for what is fast to be measured at all.
                        let took = start.elapsed();
                        if took > options.limit || enough && took > Duration::from_secs(1) {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    Ok(count)
                })
            })
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap_or_else(|_| anyhow::bail!("a caller panicked")))
            .sum::<anyhow::Result<u64>>()
    })?;
    let per_second = float(counts) / start.elapsed().as_secs_f64();
    Ok((per_second, target.passes() - before))
}

/// Runs `operation` so many times at an even rate; each is timed from when it was meant to begin.
fn at_rate(
    per_second: NonZeroU64,
    count: u64,
    histogram: &mut Histogram<u64>,
    mut operation: impl FnMut() -> anyhow::Result<Option<u64>>,
    mut afterwards: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let clock = Clock::start();
    let mut pacer = Pacer::new(clock, Pace::Open { per_second }, clock.now_ns(), 0, 1);
    for _ in 0..count {
        let Some(tick) = pacer.tick(|| false) else { return Ok(()) };
        let result = operation();
        histogram.saturating_record(tick.latency_ns(&clock));
        if let Some(result) = result? {
            afterwards(result)?;
        }
    }
    Ok(())
}

fn open_loop(target: &dyn Target, rate: NonZeroU64, options: &Options) -> anyhow::Result<Rated> {
    let (mut allocs, mut empties) = (latency_histogram(), latency_histogram());
    let mut passes = 0;
    let start = Instant::now();
    let slice = (rate.get() / 4).max(1);
    // Enough of both for the 99.99th percentile to mean something.
    while passes < options.passes || allocs.len() < SAMPLES_MIN {
        let before = target.passes();
        let alloc = || target.alloc().map(Some);
        at_rate(rate, slice, &mut allocs, alloc, |bucket| target.done(bucket))?;
        passes += target.passes() - before;
        // A schedule of its own: it does not inherit what an allocation delayed.
        at_rate(rate, slice, &mut empties, || Ok(black_box(None)), |_| Ok(()))?;
        if start.elapsed() > options.limit {
            break;
        }
    }
    let rate = rate.get();
    Ok(Rated { rate, passes, alloc: Latency::of(&allocs), empty: Latency::of(&empties) })
}

fn run_engine(engine: Engine, options: &Options) -> anyhow::Result<EngineReport> {
    let config = Config::new(geometry(options.nbuckets)?);
    let target: Box<dyn Target> = match engine {
        Engine::Reference => Box::new(Reference::start(&config, options.seed)?),
        Engine::Fast | Engine::Both => Box::new(Fast::start(config, options.seed)?),
    };
    let (closed_loop_per_second, closed_loop_passes) = closed_loop(&*target, options)?;
    let open_loop = options
        .rates
        .iter()
        .map(|&rate| open_loop(&*target, rate, options))
        .collect::<anyhow::Result<_>>()?;
    Ok(EngineReport { engine, closed_loop_per_second, closed_loop_passes, open_loop })
}

/// Runs the bench.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut engines = Vec::new();
    if options.engine.fast() {
        engines.push(run_engine(Engine::Fast, options)?);
    }
    if options.engine.reference() {
        engines.push(run_engine(Engine::Reference, options)?);
    }
    Ok(Report { nbuckets: options.nbuckets, threads: options.threads, engines })
}
