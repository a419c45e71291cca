//! `bucket`: how long allocating a bucket takes while the thread invalidates.
//!
//! Open loop: one caller allocates at a fixed rate, for a quarter of a second at a time; in between, for
//! as long and at the same rate, the harness runs an operation that does nothing. What machine and
//! scheduler do to one they do to the other, so that the difference is the allocator's: in the long
//! run. A processor that is taken away for two milliseconds once in ten seconds is more than the
//! 99.99th percentile leaves out, and hits one of the two. So a loop is made of rounds, each with a
//! percentile of its own, and the medians of those are compared.
//!
//! Closed loop: callers allocate as fast as they can.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bcache_core::allocator::{
    Allocator, AllocatorIo, AllocatorThread, BucketTable, Config, Event, Mark, PrioSetPlan,
    Reserve, ReuseReason,
};
use bcache_core::units::BucketIndex;
use hdrhistogram::Histogram;

use crate::engines::{Engine, engine_name, geometry, used_allocator, used_reference};
use crate::harness::OpenLoop;
use bcache_bench::num::format_count;
use bcache_bench::record::pace::PaceCounts;
use bcache_bench::record::slices::Slices;
use bcache_bench::record::{Measure, latency_histogram};
use bcache_bench::report::{Counters, Measured, Percentile, Run};
use bcache_bench::warnings::Warning;
use bcache_core::allocator::testkit::Locked;

/// A device that is not there: writes are done at once, and a GC finds all buckets half full.
struct NoDevice {
    shared: Arc<Allocator>,
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
        // Without an end the run ends at its limit.
        drop(collect(&self.shared));
    }

    fn observe(&mut self, event: Event<'_, Infallible>) {
        if let Event::PassEnded(_) = event {
            self.passes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn collect(allocator: &Allocator) -> anyhow::Result<()> {
    allocator.gc_start();
    let table = allocator.core().table();
    for bucket in (1..table.nbuckets()).map(BucketIndex) {
        let is = table.bucket(bucket)?;
        if is.mark == Mark::None {
            table.mark_key(bucket, is.bucket_gen, Mark::Reclaimable, 512)?;
        }
    }
    allocator.gc_finish(&[])?;
    Ok(())
}

/// An engine with its thread running.
trait Target: Send + Sync {
    /// Allocates a bucket for data and, unmeasured, has it written: it can be invalidated again.
    fn alloc(&self) -> anyhow::Result<u64>;
    fn done(&self, bucket: u64) -> anyhow::Result<()>;
    fn passes(&self) -> u64;
}

struct Fast {
    shared: Arc<Allocator>,
    passes: Arc<AtomicU64>,
    _thread: AllocatorThread<NoDevice>,
}

impl Fast {
    fn start(config: Config, seed: u64) -> anyhow::Result<Self> {
        let shared = used_allocator(config, seed)?;
        fill_prio_reserve(&shared)?;
        let passes = Arc::new(AtomicU64::new(0));
        let io = NoDevice { shared: Arc::clone(&shared), passes: Arc::clone(&passes) };
        let thread = AllocatorThread::start(&shared, io)?;
        Ok(Self { shared, passes, _thread: thread })
    }
}

/// A device in use has no unmarked bucket; one pass that counts as durable stands for its past.
fn fill_prio_reserve(allocator: &Allocator) -> anyhow::Result<()> {
    let refiller = allocator.refiller()?;
    refiller.initial_fill();
    if refiller.invalidate().is_ok() {
        refiller.make_ready(ReuseReason::GenDurable);
    }
    Ok(())
}

impl Target for Fast {
    fn alloc(&self) -> anyhow::Result<u64> {
        Ok(self.shared.bucket_alloc(Reserve::None, true)?.0)
    }

    fn done(&self, bucket: u64) -> anyhow::Result<()> {
        Ok(self.shared.core().table().unpin(BucketIndex(bucket))?)
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
        let locked = Locked::new(used_reference(config, seed)?);
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

/// Rounds of an open loop that no time limit ends.
const ROUNDS: u64 = 5;

/// Allocations that a round makes at least, for its 99.99th percentile to mean something.
const SAMPLES_MIN: u64 = 100_000;

/// 99.99th percentiles of the rounds of an open loop, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Tails {
    allocations: Vec<u64>,
    empties: Vec<u64>,
}

impl Tails {
    /// Of how many rounds: the time limit may have ended the loop before the last one.
    pub fn rounds(&self) -> usize {
        self.allocations.len()
    }

    /// The median of the allocations'.
    pub fn allocation_ns(&self) -> u64 {
        median(&self.allocations)
    }

    /// The median of those of the operation that does nothing.
    pub fn empty_ns(&self) -> u64 {
        median(&self.empties)
    }
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    let upper = values.get(values.len() / 2).copied().unwrap_or(0);
    // Of an even number, half-way between the two in the middle.
    let lower = values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(upper);
    lower.midpoint(upper)
}

/// An open loop at one rate.
#[derive(Clone, Debug)]
pub struct OpenLoopFound {
    /// Allocations a second.
    pub rate: u32,
    /// Allocations, and the operations between them that do nothing.
    pub run: Run,
    /// What its rounds found.
    pub tails: Tails,
}

/// One engine.
#[derive(Clone, Debug)]
pub struct EngineFound {
    /// Which.
    pub engine: Engine,
    /// The closed loop: its rate.
    pub closed_loop: Run,
    /// The open loop at each rate.
    pub open_loop: Vec<OpenLoopFound>,
}

impl EngineFound {
    /// All loops.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        std::iter::once(&self.closed_loop).chain(self.open_loop.iter().map(|it| &it.run))
    }
}

/// What the bench found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Buckets.
    pub nbuckets: u64,
    /// The engines.
    pub engines: Vec<EngineFound>,
    /// Loops that the time limit ended.
    pub warnings: Vec<Warning>,
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
    pub rates: Vec<u32>,
    /// Passes that each loop has to go through at least.
    pub passes: u64,
    /// Longest time for each loop, whatever the passes.
    pub limit: Duration,
    /// Seed of the buckets' contents.
    pub seed: u64,
}

fn run_name(engine: Engine, options: &Options, how: &str) -> String {
    format!("{}, {} buckets, {how}", engine_name(engine), format_count(options.nbuckets))
}

fn closed_loop(target: &dyn Target, name: String, options: &Options) -> anyhow::Result<Run> {
    let stop = AtomicBool::new(false);
    let before = target.passes();
    let start = Instant::now();
    let (operations, slices) = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..options.threads.max(1))
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<(u64, Slices)> {
                    let mut count = 0u64;
                    let mut slices = Slices::default();
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..64 {
                            target.done(target.alloc()?)?;
                            count += 1;
                        }
                        let enough = target.passes() - before >= options.passes;
                        // At least a second, for what is fast to be measured at all.
                        let took = start.elapsed();
                        slices.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), 64);
                        if took > options.limit || enough && took > Duration::from_secs(1) {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    Ok((count, slices))
                })
            })
            .collect();
        let (mut operations, mut all) = (0, Slices::default());
        for caller in callers {
            let joined = caller.join().unwrap_or_else(|_| anyhow::bail!("a caller panicked"));
            let (count, slices) = joined?;
            operations += count;
            all.merge(slices);
        }
        anyhow::Ok((operations, all))
    })?;
    let elapsed = start.elapsed();
    Ok(Run {
        name,
        elapsed,
        operations,
        pace: PaceCounts::default(),
        counters: Counters {
            passes: target.passes() - before,
            buckets_allocated: operations,
            ..Counters::default()
        },
        slices: slices.rates(elapsed),
        measures: Vec::new(),
    })
}

/// The rate is given, so that the run has none of its own.
fn open_loop(
    target: &dyn Target,
    name: String,
    rate: u32,
    options: &Options,
) -> anyhow::Result<OpenLoopFound> {
    let (mut allocs, mut empties) = (latency_histogram(), latency_histogram());
    let mut tails = Tails::default();
    let mut passes = 0;
    let start = Instant::now();
    let slice = (rate / 4).max(1);
    let in_time = || start.elapsed() <= options.limit;
    for round in 1..=ROUNDS {
        let (mut round_allocs, mut round_empties) = (latency_histogram(), latency_histogram());
        let passes_due = (options.passes * round).div_ceil(ROUNDS);
        // One slice at least, for there to be a figure.
        while round_allocs.is_empty()
            || (passes < passes_due || round_allocs.len() < SAMPLES_MIN) && in_time()
        {
            let before = target.passes();
            let mut schedule = OpenLoop::new(rate);
            for _ in 0..slice {
                let bucket = schedule.run(&mut round_allocs, || target.alloc())?;
                target.done(bucket)?;
            }
            schedule.finish();
            passes += target.passes() - before;
            // A schedule of its own: it does not inherit what an allocation delayed.
            let mut schedule = OpenLoop::new(rate);
            for _ in 0..slice {
                schedule.run(&mut round_empties, || black_box(()));
            }
            schedule.finish();
        }
        let tail =
            |histogram: &Histogram<u64>| histogram.value_at_quantile(Percentile::P9999.quantile());
        // One that --limit has cut short says less than those before it.
        if tails.allocations.is_empty() || round_allocs.len() >= SAMPLES_MIN {
            tails.allocations.push(tail(&round_allocs));
            tails.empties.push(tail(&round_empties));
        }
        allocs.add(&round_allocs)?;
        empties.add(&round_empties)?;
        if !in_time() {
            break;
        }
    }
    let run = Run {
        name,
        elapsed: Duration::ZERO,
        operations: allocs.len(),
        pace: PaceCounts::default(),
        counters: Counters { passes, buckets_allocated: allocs.len(), ..Counters::default() },
        slices: Vec::new(),
        measures: vec![
            Measured { measure: Measure::BucketAllocation, histogram: allocs },
            Measured { measure: Measure::Empty, histogram: empties },
        ],
    };
    Ok(OpenLoopFound { rate, run, tails })
}

fn run_engine(engine: Engine, options: &Options) -> anyhow::Result<EngineFound> {
    let config = Config::new(geometry(options.nbuckets)?);
    let target: Box<dyn Target> = match engine {
        Engine::Reference => Box::new(Reference::start(&config, options.seed)?),
        Engine::Fast | Engine::Both => Box::new(Fast::start(config, options.seed)?),
    };
    let closed_loop = closed_loop(&*target, run_name(engine, options, "closed loop"), options)?;
    let open_loop = options
        .rates
        .iter()
        .map(|&rate| {
            let name =
                run_name(engine, options, &format!("{} a second", format_count(rate.into())));
            open_loop(&*target, name, rate, options)
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(EngineFound { engine, closed_loop, open_loop })
}

/// Runs the bench.
pub fn run(options: &Options) -> anyhow::Result<Found> {
    let mut engines = Vec::new();
    if options.engine.fast() {
        engines.push(run_engine(Engine::Fast, options)?);
    }
    if options.engine.reference() {
        engines.push(run_engine(Engine::Reference, options)?);
    }
    let runs = engines.iter().flat_map(EngineFound::runs);
    let short = runs.filter(|run| run.counters.passes < options.passes);
    let limited = short.map(|run| Warning::LimitReached {
        run: run.name.clone(),
        passes: run.counters.passes,
        wanted: options.passes,
    });
    let warnings = limited.collect();
    Ok(Found { nbuckets: options.nbuckets, engines, warnings })
}

pub mod tests {
    use super::{
        Config, Duration, Engine, Fast, Instant, Measure, Options, geometry, median, open_loop,
    };

    pub fn a_median_of_two_is_between_them() {
        assert_eq!([&[][..], &[7], &[9, 1], &[5, 1, 9]].map(median), [0, 7, 5, 5]);
    }

    pub fn a_low_rate_is_kept_until_the_time_limit() {
        let options = Options {
            nbuckets: 600,
            threads: 1,
            engine: Engine::Fast,
            rates: Vec::new(),
            passes: 1_000_000,
            limit: Duration::from_millis(100),
            seed: 1,
        };
        let config = Config::new(geometry(options.nbuckets).unwrap());
        let target = Fast::start(config, options.seed).unwrap();
        // One operation each quarter of a second: one of each kind, and the time is over.
        let start = Instant::now();
        let found = open_loop(&target, "4 a second".to_owned(), 4, &options).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(500));
        for measure in [Measure::BucketAllocation, Measure::Empty] {
            assert_eq!(found.run.measured(measure).unwrap().histogram.len(), 1, "{measure}");
        }
    }
}
