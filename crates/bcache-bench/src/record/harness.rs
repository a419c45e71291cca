//! Threads that carry out operations at a pace and record what they took.
//!
//! The same harness runs the allocator, the reference engine, the baselines and the empty operation,
//! so that their figures differ by what they do and by nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, OnceLock, PoisonError};
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

/// Runs `load` to its end; `worker` makes each thread's worker before any operation.
///
/// The first error ends all threads and is returned; what was recorded is then lost.
pub fn drive<W: Worker + Send>(
    load: &Load<'_>,
    worker: impl Fn(u32) -> Result<W, W::Error>,
) -> Result<(Driven, Vec<W>), W::Error> {
    let mut crew = Crew::new(load, worker)?;
    let time = match load.until {
        Until::Elapsed(time) => time,
        Until::Operations(_) => Duration::MAX,
    };
    crew.turn(time, true)?;
    Ok(crew.finish())
}

/// Threads that carry out a load in turns. Between two turns none of them is in an operation, and the
/// clock that paces them stands still.
pub struct Crew<'a, W> {
    load: Load<'a>,
    clock: Clock,
    members: Vec<Member<W>>,
    /// How long all turns were meant to be; those that ended early, how long they were.
    ran_ns: u64,
    elapsed: Duration,
}

/// What one thread does and did, from turn to turn.
struct Member<W> {
    worker: W,
    recorder: Recorder,
    pacer: Pacer,
    slices: Slices,
    operations: u64,
    /// Operations that it may carry out in all.
    most: u64,
    /// It has nothing left to do.
    done: bool,
}

impl<'a, W: Worker + Send> Crew<'a, W> {
    /// A crew for `load`, but how long it runs is told turn by turn. `worker` makes each thread's worker.
    pub fn new(
        load: &Load<'a>,
        worker: impl Fn(u32) -> Result<W, W::Error>,
    ) -> Result<Self, W::Error> {
        Self::with_clock(Clock::start(), load, worker)
    }

    fn with_clock(
        clock: Clock,
        load: &Load<'a>,
        worker: impl Fn(u32) -> Result<W, W::Error>,
    ) -> Result<Self, W::Error> {
        let threads = u64::from(load.threads.max(1));
        let member = |thread: u32| {
            let of_thread = u64::from(thread);
            let most = match load.until {
                Until::Elapsed(_) => u64::MAX,
                Until::Operations(all) => all / threads + u64::from(of_thread < all % threads),
            };
            Ok(Member {
                worker: worker(thread)?,
                recorder: Recorder::new(load.measures),
                pacer: Pacer::new(clock, load.pace, of_thread, threads),
                slices: Slices::default(),
                operations: 0,
                most,
                done: false,
            })
        };
        let members = (0..load.threads.max(1)).map(member).collect::<Result<_, _>>()?;
        Ok(Self { load: *load, clock, members, ran_ns: 0, elapsed: Duration::ZERO })
    }

    /// The workers.
    pub fn workers(&self) -> impl Iterator<Item = &W> {
        self.members.iter().map(|member| &member.worker)
    }

    /// Whether no thread has anything left to do.
    pub fn is_over(&self) -> bool {
        self.members.iter().all(|member| member.done)
    }

    /// Whether every thread has something left to do.
    pub fn is_complete(&self) -> bool {
        !self.members.iter().any(|member| member.done)
    }

    /// Lets the threads run for `time`; how long the last of them did. In an open loop operations that are
    /// due by then and not begun are left to the next turn; at the end of the `last` one they are
    /// carried out however late it is, or the slowest would not be counted.
    pub fn turn(&mut self, time: Duration, last: bool) -> Result<Duration, W::Error> {
        let gate = Gate {
            barrier: Barrier::new(self.members.len()),
            begin_ns: OnceLock::new(),
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        };
        let (load, clock, ran_ns) = (&self.load, self.clock, self.ran_ns);
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let ended_ns = std::thread::scope(|scope| {
            let run = |member| {
                let gate = &gate;
                scope.spawn(move || gate.run_member(load, clock, ran_ns, time_ns, last, member))
            };
            let threads: Vec<_> = self.members.iter_mut().map(run).collect();
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            ended.max().unwrap_or(0)
        });
        if let Some(error) = gate.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let elapsed_ns = ended_ns.saturating_sub(gate.begin_ns.into_inner().unwrap_or(ended_ns));
        self.ran_ns += if last { elapsed_ns } else { elapsed_ns.min(time_ns) };
        let elapsed = Duration::from_nanos(elapsed_ns);
        self.elapsed += elapsed;
        Ok(elapsed)
    }

    /// What came of all turns, and the workers.
    pub fn finish(self) -> (Driven, Vec<W>) {
        let mut driven = Driven { elapsed: self.elapsed, ..Driven::default() };
        let mut slices = Slices::default();
        let mut workers = Vec::new();
        for member in self.members {
            driven.recording.add(member.recorder);
            driven.operations += member.operations;
            driven.pace.add(&member.pacer.counts());
            slices.merge(member.slices);
            workers.push(member.worker);
        }
        driven.slices = slices.rates(Duration::from_nanos(self.ran_ns));
        (driven, workers)
    }
}

/// What the threads of a turn share.
struct Gate<E> {
    barrier: Barrier,
    begin_ns: OnceLock<u64>,
    failed: AtomicBool,
    error: Mutex<Option<E>>,
}

impl<E: Send> Gate<E> {
    /// Runs a thread's part of a turn after `ran_ns` of turns; when it ended, in ns of the clock.
    fn run_member<W: Worker<Error = E>>(
        &self,
        load: &Load<'_>,
        clock: Clock,
        ran_ns: u64,
        time_ns: u64,
        last: bool,
        member: &mut Member<W>,
    ) -> u64 {
        self.barrier.wait();
        let lead_ns = if load.pace == Pace::Closed { 0 } else { LEAD_NS };
        let begin_ns = *self.begin_ns.get_or_init(|| clock.now_ns() + lead_ns);
        // The clock has gone since the crew was made, for longer than all turns were.
        member.pacer.begin(begin_ns.saturating_sub(ran_ns));
        let end_ns = begin_ns.saturating_add(time_ns);
        let stopped = || load.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed);
        while !member.done {
            if member.operations == member.most {
                member.done = true;
                break;
            }
            let Some(tick) = member.pacer.tick(end_ns, last, stopped) else { break };
            let mut context = Context { clock, tick, recorder: &mut member.recorder };
            match member.worker.operate(&mut context) {
                Ok(true) => {
                    member.operations += 1;
                    // A closed loop's turn begins when it is meant to: no need to read the clock again.
                    let at_ns = match load.pace {
                        Pace::Closed => tick.intended_ns,
                        Pace::Open { .. } => clock.now_ns(),
                    };
                    member.slices.add(ran_ns + at_ns.saturating_sub(begin_ns), 1);
                }
                Ok(false) => member.done = true,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
        }
        clock.now_ns()
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
    drive(&load, |_| Ok(EmptyWorker)).unwrap_or_else(|never| match never {}).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

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
        let load = Load { stop: &stop, ..load(2, Until::Elapsed(Duration::from_secs(600))) };
        let (driven, _) = drive(&load, |_| Ok(Stopping { stop: &stop })).unwrap();
        // One thread may not have had its first turn yet.
        assert!(driven.operations > 10, "{driven:?}");
    }

    struct Stopping<'a> {
        stop: &'a AtomicBool,
    }

    impl Worker for Stopping<'_> {
        type Error = ();

        fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, ()> {
            if context.tick.index == 10 {
                self.stop.store(true, Ordering::Relaxed);
            }
            Ok(true)
        }
    }

    #[derive(Debug)]
    struct Failing {
        thread: u32,
    }

    impl Worker for Failing {
        type Error = String;

        fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, String> {
            if self.thread == 1 && context.tick.index == 10 {
                return Err("thread 1 at its limit".to_owned());
            }
            Ok(true)
        }
    }

    #[test]
    fn an_error_ends_every_thread_and_is_returned() {
        let load = load(3, Until::Elapsed(Duration::from_secs(600)));
        let result = drive(&load, |thread| Ok(Failing { thread }));
        assert_eq!(result.unwrap_err(), "thread 1 at its limit");
    }

    #[test]
    fn a_worker_that_cannot_be_made_is_an_error() {
        let load = load(3, Until::Elapsed(Duration::from_secs(600)));
        let result = drive(&load, |thread| match thread {
            2 => Err("no memory".to_owned()),
            _ => Ok(Failing { thread: 0 }),
        });
        assert_eq!(result.unwrap_err(), "no memory");
    }

    /// Takes its time, and notes when each operation was meant to begin.
    #[derive(Default)]
    struct Slow {
        intended_ns: Vec<u64>,
    }

    impl Worker for Slow {
        type Error = ();

        fn operate(&mut self, context: &mut Context<'_>) -> Result<bool, ()> {
            self.intended_ns.push(context.tick.intended_ns);
            context.clock.sleep(Duration::from_millis(3));
            context.record_whole(Measure::Discard);
            Ok(true)
        }
    }

    const TURN: Duration = Duration::from_millis(20);
    const PAUSE: Duration = Duration::from_millis(400);

    #[test]
    fn between_turns_the_clock_stands_still() {
        let pace = Pace::Open { per_second: NonZeroU64::new(100).unwrap() };
        let load = Load { pace, ..load(1, Until::Elapsed(5 * TURN)) };
        let clock = Clock::by_hand(0);
        let mut crew = Crew::with_clock(clock, &load, |_| Ok(Slow::default())).unwrap();
        for turn in 0..5 {
            crew.turn(TURN, turn == 4).unwrap();
            clock.sleep(PAUSE);
        }
        let (driven, workers) = crew.finish();
        assert_eq!(driven.operations, 10);
        assert!((5 * TURN..6 * TURN).contains(&driven.elapsed), "{driven:?}");
        // Each pause lies between two operations, and is in no latency.
        let pause_ns = u64::try_from(PAUSE.as_nanos()).unwrap();
        let gaps = workers[0].intended_ns.windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!(gaps.filter(|gap| *gap > pause_ns).count(), 4);
        assert!(driven.recording.get(Measure::Discard).unwrap().max() < 4_000_000);
    }

    #[test]
    fn what_a_turn_has_no_time_for_is_left_to_the_next_and_the_last_makes_up_for_it() {
        let pace = Pace::Open { per_second: NonZeroU64::new(1000).unwrap() };
        let load = Load { pace, ..load(1, Until::Elapsed(2 * TURN)) };
        let clock = Clock::by_hand(0);
        let mut crew = Crew::with_clock(clock, &load, |_| Ok(Slow::default())).unwrap();
        crew.turn(TURN, false).unwrap();
        // The seventh begins at 18 ms.
        assert!(crew.workers().all(|slow| slow.intended_ns.len() == 7));
        let last = crew.turn(TURN, true).unwrap();
        // What is late by then begins as soon as the threads are let go.
        let begun_early = last + Duration::from_nanos(LEAD_NS);
        assert!((33 * 3..34 * 3).contains(&begun_early.as_millis()), "{last:?}");
        let (driven, _) = crew.finish();
        assert_eq!(driven.operations, 40);
        // The last one was late by what the others took: due at 39 ms, it ended at 119 or so.
        let max_ns = driven.recording.get(Measure::Discard).unwrap().max();
        assert!((75_000_000..90_000_000).contains(&max_ns), "{max_ns}");
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
        let (driven, _) = drive(&load(2, Until::Operations(1000)), |_| Ok(Once)).unwrap();
        assert_eq!(driven.operations, 10);
        assert_eq!(driven.recording.count(Measure::Discard), 10);
    }
}
