//! `invalidate`: one LRU pass, and one rescaling, against the sum of an array.
//!
//! The yardstick is the time that it takes to add up a `u32` array with as many entries as there are
//! buckets: what memory allows at best. Several threads, each with a cache of its own, do the same step at
//! the same time, as the caches of a set would at worst.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use bcache_core::allocator::replacement::lru;
use bcache_core::allocator::{
    Allocator, BucketTable, Config, Mark, PushStep, Reserve, ReuseReason,
};
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

use crate::engines::{Engine, geometry, reserve, used_allocator, used_reference};
use bcache_bench::num::format_count;
use bcache_bench::record::harness::Driven;
use bcache_bench::record::{Clock, Measure, Recorder, Recording};
use bcache_bench::report::{Percentile, Run};
use bcache_core::allocator::testkit::Reference;

/// What the bench found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Buckets.
    pub nbuckets: u64,
    /// Bytes of the bucket table for each bucket.
    pub bytes_per_bucket: usize,
    /// Adding up an array: [`Measure::ArraySum`].
    pub sum: Run,
    /// The allocator: selecting victims, a whole pass, a rescaling.
    pub allocator: Option<Run>,
    /// The reference engine: a whole pass, a rescaling.
    pub reference: Option<Run>,
}

/// The median of a measure of `run` in ns.
pub fn median_ns(run: Option<&Run>, measure: Measure) -> Option<u64> {
    run?.measured(measure).map(|it| it.percentile_ns(Percentile::P50))
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Buckets.
    pub nbuckets: u64,
    /// Threads, each with a cache of its own.
    pub threads: u32,
    /// Passes of each thread.
    pub passes: u32,
    /// Engines.
    pub engine: Engine,
    /// Seed of the buckets' contents.
    pub seed: u64,
}

/// What one thread, or all of them, measured.
struct Times {
    sum: Recorder,
    allocator: Recorder,
    reference: Recorder,
}

/// Threads that take each step together, so that each has the same beside it. The first error ends all.
struct Together {
    barrier: Barrier,
    failed: AtomicBool,
}

impl Together {
    /// Waits for the others; false when one has failed.
    fn step(&self) -> bool {
        self.barrier.wait();
        let all_well = !self.failed.load(Ordering::Relaxed);
        // Nobody goes on, and fails, before all have looked: they would leave at different steps.
        self.barrier.wait();
        all_well
    }

    /// Ends the others at their next step.
    fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.step();
    }
}

/// Empties `free_inc`: its buckets are allocated, filled, and become the hottest.
fn use_up(allocator: &Allocator) -> anyhow::Result<()> {
    let (state, refiller) = (allocator.core(), allocator.refiller()?);
    refiller.make_ready(ReuseReason::NotSynced);
    loop {
        let pushed = matches!(refiller.push_ready(), PushStep::Pushed(..));
        let mut allocated = 0;
        for reserve in Reserve::ALL {
            while let Some(bucket) = state.bucket_alloc(reserve)? {
                state.table().unpin(bucket)?;
                state.table().set_mark(bucket, Mark::Reclaimable)?;
                state.table().hit(bucket)?;
                allocated += 1;
            }
        }
        if !pushed && allocated == 0 {
            return Ok(());
        }
    }
}

fn use_up_reference(reference: &mut Reference) {
    loop {
        let pushed = reference.push_one().is_some();
        let mut allocated = 0;
        for reserve in Reserve::ALL {
            while let Some(b) = reference.bucket_alloc(reserve) {
                let bucket = &mut reference.buckets[b];
                bucket.pin -= 1;
                bucket.prio = 32768;
                bucket.mark = Mark::Reclaimable;
                allocated += 1;
            }
        }
        if !pushed && allocated == 0 {
            return;
        }
    }
}

/// Times one thread's cache; `None` when another thread has failed.
fn one(options: &Options, seed: u64, together: &Together) -> anyhow::Result<Option<Times>> {
    let Options { nbuckets, passes, engine, .. } = *options;
    let config = Config::new(geometry(nbuckets)?);
    // The table first: it says best what is too much.
    let mut fast = engine.fast().then(|| used_allocator(config, seed)).transpose()?;
    let mut reference = engine.reference().then(|| used_reference(&config, seed)).transpose()?;
    let mut array: Vec<u32> = reserve("an array", nbuckets)?;
    let mut random = Pcg64::seed_from_u64(seed);
    array.extend((0..nbuckets).map(|_| random.next_u32()));
    let mut scratch = lru::Scratch::default();
    let clock = Clock::start();
    let measures = [Measure::Selection, Measure::InvalidationPass, Measure::Rescaling];
    let mut times = Times {
        sum: Recorder::new(&[Measure::ArraySum]),
        allocator: Recorder::new(&measures),
        reference: Recorder::new(&measures),
    };
    let sum = |times: &mut Times| {
        times.sum.time(&clock, Measure::ArraySum, || {
            black_box(black_box(&array).iter().fold(0u32, |sum, &word| sum.wrapping_add(word)))
        });
    };
    // Everything in turn, so that all see the same state of the machine.
    for _ in 0..passes.max(1) {
        if !together.step() {
            return Ok(None);
        }
        sum(&mut times);
        if let Some(allocator) = &mut fast {
            let state = allocator.core();
            let (min_prio, room) = (state.set().min_prio(), state.sizes().free_inc);
            times.allocator.time(&clock, Measure::Selection, || {
                black_box(lru::select(state.table(), min_prio, room, &mut scratch).len())
            });
            sum(&mut times);
            let refiller = allocator.refiller()?;
            let invalidate = || refiller.invalidate();
            times.allocator.time(&clock, Measure::InvalidationPass, invalidate)?;
            drop(refiller);
            use_up(allocator)?;
            sum(&mut times);
            let due = u32::try_from(state.set().until_rescale().max(0) + 1)?;
            let rescale = || allocator.account_io(due);
            let done = times.allocator.time(&clock, Measure::Rescaling, rescale);
            anyhow::ensure!(done, "no rescaling was due");
        }
        if !together.step() {
            return Ok(None);
        }
        if let Some(reference) = &mut reference {
            let invalidate = || reference.invalidate_buckets();
            times.reference.time(&clock, Measure::InvalidationPass, invalidate);
            use_up_reference(reference);
            let due = u32::try_from(reference.rescale.max(0) + 1)?;
            let rescale = || reference.rescale_priorities(due);
            times.reference.time(&clock, Measure::Rescaling, rescale);
        }
    }
    // Whoever has failed meanwhile waits here for the others.
    Ok(together.step().then_some(times))
}

/// Runs the bench.
pub fn run(options: &Options) -> anyhow::Result<Found> {
    let threads = options.threads.max(1);
    let together = Together {
        barrier: Barrier::new(usize::try_from(threads)?),
        failed: AtomicBool::new(false),
    };
    let results: Vec<anyhow::Result<Option<Times>>> = std::thread::scope(|scope| {
        let work = |thread: u32| {
            let together = &together;
            move || {
                let seed = options.seed.wrapping_add(thread.into());
                one(options, seed, together).inspect_err(|_| together.fail())
            }
        };
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(work(thread))).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let (mut sum, mut allocator, mut reference) =
        (Recording::default(), Recording::default(), Recording::default());
    for times in results.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten() {
        sum.add(times.sum);
        allocator.add(times.allocator);
        reference.add(times.reference);
    }
    let nbuckets = options.nbuckets;
    let of = |name: &str, recording, measure| timed_run(name, nbuckets, recording, measure);
    let pass = Measure::InvalidationPass;
    Ok(Found {
        nbuckets,
        bytes_per_bucket: BucketTable::BYTES_PER_BUCKET,
        sum: of("sum of an array", sum, Measure::ArraySum),
        allocator: options.engine.fast().then(|| of("allocator", allocator, pass)),
        reference: options.engine.reference().then(|| of("reference", reference, pass)),
    })
}

/// Parts of it were timed, and not the whole: it has no rate.
fn timed_run(name: &str, nbuckets: u64, recording: Recording, measure: Measure) -> Run {
    let name = format!("{name}, {} buckets", format_count(nbuckets));
    let operations = recording.count(measure);
    Run::of_driven(&name, &Driven { recording, operations, ..Driven::default() })
}

pub mod tests {
    use super::{AtomicBool, Barrier, Together};

    pub fn one_that_fails_ends_all_at_the_same_step() {
        for fails_at in 0..50 {
            let together = Together { barrier: Barrier::new(3), failed: AtomicBool::new(false) };
            let steps: Vec<u32> = std::thread::scope(|scope| {
                let work = |thread: u32| {
                    let together = &together;
                    move || {
                        for step in 0..100 {
                            if thread == 1 && step == fails_at {
                                together.fail();
                                return step;
                            }
                            if !together.step() {
                                return step;
                            }
                        }
                        unreachable!("a thread failed")
                    }
                };
                let handles: Vec<_> = (0..3).map(|thread| scope.spawn(work(thread))).collect();
                handles.into_iter().map(|handle| handle.join().unwrap()).collect()
            });
            assert_eq!(steps, [fails_at; 3]);
        }
    }
}
