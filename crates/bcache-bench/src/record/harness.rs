//! Threads that carry out operations at a pace and record what they took.
//!
//! The same harness runs the allocator, the reference engine, the baselines and the empty operation,
//! so that their figures differ by what they do and by nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use super::pace::{Pace, PaceCounts, Pacer, Tick};
use super::slices::Slices;
use super::{Clock, Measure, Recorder, Recording};

/// How long before the first tick of an open loop the threads are let go, in ns.
const LEAD_NS: u64 = 1_000_000;

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After so much time.
    Elapsed(Duration),
    /// After so many operations, all threads together.
    Operations(u64),
}

/// What threads are to do.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Number of threads.
    pub threads: u32,
    /// How operations follow each other.
    pub pace: Pace,
    /// When it is over.
    pub until: Until,
    /// What is recorded.
    pub measures: &'a [Measure],
    /// Set by whoever wants the run to end early.
    pub stop: &'a AtomicBool,
}

/// What a thread does again and again.
pub trait Worker {
    /// Why it cannot go on.
    type Error: Send;

    /// Carries out one operation and records what is to be recorded of it. `Ok(false)` says that there
    /// was nothing left to do, and ends this thread's part of the run.
    fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, Self::Error>;

    /// Called in the thread once no more operations come, for counts that are kept per thread.
    fn finish(&mut self) {}
}

/// What an operation is given.
#[derive(Debug)]
pub struct Context<'a> {
    /// The clock.
    pub clock: Clock,
    /// The turn of this operation.
    pub tick: Tick,
    /// Where to record.
    pub recorder: &'a mut Recorder,
}

impl Context<'_> {
    /// Records the time since the operation was meant to begin.
    pub fn record_whole(&mut self, measure: Measure) {
        let latency_ns = self.tick.latency_ns(&self.clock);
        self.recorder.record(measure, latency_ns);
    }

    /// Does `work` and records how long it alone took.
    pub fn time<T>(&mut self, measure: Measure, work: impl FnOnce() -> T) -> T {
        self.recorder.time(&self.clock, measure, work)
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Driven {
    /// All threads' latencies.
    pub recording: Recording,
    /// Operations carried out.
    pub operations: u64,
    /// From the first operation to the end of the last.
    pub elapsed: Duration,
    /// How the pace was kept.
    pub pace: PaceCounts,
    /// Operations a second in slices of equal length.
    pub slices: Vec<f64>,
}

/// Runs `load`. `worker` makes each thread's worker, in that thread, before any operation.
///
/// The first error ends all threads and is returned; what was recorded is then lost.
pub fn drive<W: Worker>(
    load: &Load<'_>,
    worker: impl Fn(u32) -> Result<W, W::Error> + Sync,
) -> Result<Driven, W::Error> {
    let threads = load.threads.max(1);
    let clock = Clock::start();
    let gate = Gate {
        barrier: Barrier::new(usize::try_from(threads).unwrap_or(usize::MAX)),
        begin_ns: std::sync::OnceLock::new(),
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    let parts: Vec<Option<Part>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (gate, worker) = (&gate, &worker);
                scope.spawn(move || gate.run_thread(load, clock, thread, || worker(thread)))
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    if let Some(error) = gate.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut driven = Driven::default();
    let mut slices = Slices::default();
    let (mut first_ns, mut last_ns) = (u64::MAX, 0);
    for part in parts.into_iter().flatten() {
        driven.recording.add(part.recorder);
        driven.operations += part.operations;
        driven.pace.add(&part.pace);
        slices.merge(part.slices);
        first_ns = first_ns.min(part.began_ns);
        last_ns = last_ns.max(part.ended_ns);
    }
    driven.elapsed = Duration::from_nanos(last_ns.saturating_sub(first_ns));
    driven.slices = slices.rates(driven.elapsed);
    Ok(driven)
}

/// What the threads of a run share.
struct Gate<E> {
    barrier: Barrier,
    begin_ns: std::sync::OnceLock<u64>,
    failed: AtomicBool,
    error: Mutex<Option<E>>,
}

/// What one thread did.
struct Part {
    recorder: Recorder,
    operations: u64,
    pace: PaceCounts,
    slices: Slices,
    began_ns: u64,
    ended_ns: u64,
}

impl<E: Send> Gate<E> {
    fn run_thread<W: Worker<Error = E>>(
        &self,
        load: &Load<'_>,
        clock: Clock,
        thread: u32,
        make: impl FnOnce() -> Result<W, E>,
    ) -> Option<Part> {
        let mut recorder = Recorder::new(load.measures);
        let made = make().map_err(|error| self.fail(error));
        // Reached by every thread, failed or not: the others wait here.
        self.barrier.wait();
        let lead_ns = if load.pace == Pace::Closed { 0 } else { LEAD_NS };
        let begin_ns = *self.begin_ns.get_or_init(|| clock.now_ns() + lead_ns);
        let mut worker = made.ok()?;
        let threads = u64::from(load.threads.max(1));
        let thread = u64::from(thread);
        let (end_ns, most) = match load.until {
            Until::Elapsed(time) => {
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                (begin_ns.saturating_add(time_ns), u64::MAX)
            }
            Until::Operations(all) => (u64::MAX, all / threads + u64::from(thread < all % threads)),
        };
        let mut pacer = Pacer::new(clock, load.pace, begin_ns, thread, threads);
        let stopped = || load.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed);
        let mut slices = Slices::default();
        let mut operations = 0;
        while operations < most {
            // In an open loop operations that are due before the end are carried out however late it
            // is by then, or the slowest would not be counted.
            let Some(tick) = pacer.tick(end_ns, stopped) else { break };
            let mut context = Context { clock, tick, recorder: &mut recorder };
            match worker.operate(&mut context) {
                Ok(true) => {
                    operations += 1;
                    // A closed loop's turn begins when it is meant to: no need to read the clock again.
                    let at_ns = match load.pace {
                        Pace::Closed => tick.intended_ns,
                        Pace::Open { .. } => clock.now_ns(),
                    };
                    slices.add(at_ns.saturating_sub(begin_ns), 1);
                }
                Ok(false) => break,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
        }
        let ended_ns = clock.now_ns();
        worker.finish();
        let pace = pacer.counts();
        Some(Part { recorder, operations, pace, slices, began_ns: begin_ns, ended_ns })
    }

    /// Keeps the first error and stops all threads.
    fn fail(&self, error: E) {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        drop(first);
        self.failed.store(true, Ordering::Relaxed);
    }
}

/// An operation that does nothing, recorded as [`Measure::Empty`]: the floor under every other
/// figure of the same harness.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyWorker;

impl Worker for EmptyWorker {
    type Error = std::convert::Infallible;

    fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, Self::Error> {
        context.record_whole(Measure::Empty);
        Ok(true)
    }
}

/// Runs the empty operation at the pace of `load`.
pub fn drive_empty(load: &Load<'_>) -> Driven {
    let load = Load { measures: &[Measure::Empty], ..*load };
    drive(&load, |_| Ok(EmptyWorker)).unwrap_or_else(|never| match never {})
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;
    use std::sync::atomic::AtomicU64;

    static GO: AtomicBool = AtomicBool::new(false);

    fn load(threads: u32, until: Until) -> Load<'static> {
        Load { threads, pace: Pace::Closed, until, measures: &Measure::ALL, stop: &GO }
    }

    #[test]
    fn an_amount_is_met_exactly() {
        for (threads, operations) in [(1, 0), (1, 1000), (3, 1000), (4, 3)] {
            let driven = drive_empty(&load(threads, Until::Operations(operations)));
            assert_eq!(driven.operations, operations);
            assert_eq!(driven.recording.count(Measure::Empty), operations);
        }
    }

    #[test]
    fn an_open_loop_carries_out_every_tick_of_its_time() {
        let pace = Pace::Open { per_second: NonZeroU64::new(20_000).unwrap() };
        let until = Until::Elapsed(Duration::from_millis(100));
        let driven = drive_empty(&Load { pace, ..load(2, until) });
        assert_eq!(driven.operations, 2000);
        assert!(driven.elapsed >= Duration::from_millis(99), "{driven:?}");
    }

    #[test]
    fn a_stop_ends_it() {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                stop.store(true, Ordering::Relaxed);
            });
            let until = Until::Elapsed(Duration::from_secs(600));
            let driven = drive_empty(&Load { stop: &stop, ..load(2, until) });
            assert!(driven.operations > 0);
        });
    }

    struct Failing<'a> {
        thread: u32,
        finished: &'a AtomicU64,
    }

    impl Worker for Failing<'_> {
        type Error = String;

        fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, String> {
            if self.thread == 1 && context.tick.index == 10 {
                return Err("thread 1 at its limit".to_owned());
            }
            Ok(true)
        }

        fn finish(&mut self) {
            self.finished.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_error_ends_every_thread_and_is_returned() {
        let finished = AtomicU64::new(0);
        let load = load(3, Until::Elapsed(Duration::from_secs(600)));
        let result = drive(&load, |thread| Ok(Failing { thread, finished: &finished }));
        assert_eq!(result.unwrap_err(), "thread 1 at its limit");
        assert_eq!(finished.into_inner(), 3);
    }

    #[test]
    fn a_worker_that_cannot_be_made_is_an_error() {
        let finished = AtomicU64::new(0);
        let load = load(3, Until::Elapsed(Duration::from_secs(600)));
        let result = drive(&load, |thread| match thread {
            2 => Err("no memory".to_owned()),
            _ => Ok(Failing { thread: 0, finished: &finished }),
        });
        assert_eq!(result.unwrap_err(), "no memory");
    }

    struct Once;

    impl Worker for Once {
        type Error = ();

        fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, ()> {
            let more = context.tick.index < 5;
            if more {
                context.time(Measure::Discard, || ());
            }
            Ok(more)
        }
    }

    #[test]
    fn a_worker_may_end_its_part() {
        let driven = drive(&load(2, Until::Operations(1000)), |_| Ok(Once)).unwrap();
        assert_eq!(driven.operations, 10);
        assert_eq!(driven.recording.count(Measure::Discard), 10);
    }
}
