//! Figures of a run while it lasts, on a terminal.
//!
//! Each writer counts in a cache line of its own, with plain stores: a counter that writers share
//! would cost more than an allocation does. A thread adds them up a few times a second.
//!
//! A run has phases, the allocator and what it is compared with. Each has its name and its goal, and
//! counts from where it began: what one did is not shown as another's.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bcache_core::units::format_bytes;
use crossbeam_utils::CachePadded;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::num::{float, format_count, ratio, whole};
use crate::record::harness::Until;

/// How often the line is drawn.
const PERIOD: Duration = Duration::from_millis(200);
/// Over how long rates are averaged.
const WINDOW: Duration = Duration::from_secs(1);

/// What one thread counts. Only that thread adds to it.
#[derive(Debug, Default)]
pub struct LiveCounts {
    operations: AtomicU64,
    bytes: AtomicU64,
    written_bytes: AtomicU64,
    read_bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    blocked: AtomicU64,
    passes: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    // One thread writes, so that nothing can come between the load and the store.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl LiveCounts {
    /// One more operation, of so many bytes, whatever became of them.
    pub fn operated(&self, bytes: u64) {
        add(&self.operations, 1);
        add(&self.bytes, bytes);
    }

    /// So many bytes were written as data.
    pub fn wrote(&self, bytes: u64) {
        add(&self.written_bytes, bytes);
    }

    /// One more read: so many bytes from the cache, or a miss.
    pub fn read(&self, bytes: u64, hit: bool) {
        add(if hit { &self.hits } else { &self.misses }, 1);
        if hit {
            add(&self.read_bytes, bytes);
        }
    }

    /// One more allocation that had to wait.
    pub fn blocked(&self) {
        add(&self.blocked, 1);
    }

    /// One more pass of the allocator thread.
    pub fn passed(&self) {
        add(&self.passes, 1);
    }
}

/// What all threads count.
#[derive(Debug)]
pub struct Live {
    threads: Vec<CachePadded<LiveCounts>>,
    phase: Mutex<Phase>,
}

/// A part of a run.
#[derive(Clone, Copy, Debug)]
struct Phase {
    name: &'static str,
    goal: Goal,
    began: Instant,
    /// What had been counted by then.
    before: LiveSums,
}

/// Sums at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveSums {
    /// Operations.
    pub operations: u64,
    /// Their bytes, whatever became of them.
    pub bytes: u64,
    /// Bytes written as data.
    pub written_bytes: u64,
    /// Bytes read from the cache.
    pub read_bytes: u64,
    /// Reads that found their data.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Allocations that had to wait.
    pub blocked: u64,
    /// Passes of the allocator thread.
    pub passes: u64,
}

impl LiveSums {
    fn minus(&self, other: &Self) -> Self {
        Self {
            operations: self.operations.saturating_sub(other.operations),
            bytes: self.bytes.saturating_sub(other.bytes),
            written_bytes: self.written_bytes.saturating_sub(other.written_bytes),
            read_bytes: self.read_bytes.saturating_sub(other.read_bytes),
            hits: self.hits.saturating_sub(other.hits),
            misses: self.misses.saturating_sub(other.misses),
            blocked: self.blocked.saturating_sub(other.blocked),
            passes: self.passes.saturating_sub(other.passes),
        }
    }
}

impl Live {
    /// Counters for so many writers, and one set for the allocator thread.
    pub fn new(writers: u32) -> Arc<Self> {
        let threads = (0..=writers).map(|_| CachePadded::default()).collect();
        let phase = Phase {
            name: "preparing",
            goal: Goal::Unknown,
            began: Instant::now(),
            before: LiveSums::default(),
        };
        Arc::new(Self { threads, phase: Mutex::new(phase) })
    }

    /// Begins a phase: from here on its name, its counts and its way to `goal` are shown.
    pub fn begin(&self, name: &'static str, goal: Goal) {
        let before = self.sums();
        *self.phase() = Phase { name, goal, began: Instant::now(), before };
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of a writer, from 0. `None` where there are fewer writers.
    pub fn writer(&self, writer: u32) -> Option<&LiveCounts> {
        let index = usize::try_from(writer).ok()?.checked_add(1)?;
        self.threads.get(index).map(|counts| &**counts)
    }

    /// The counters of the allocator thread.
    pub fn allocator(&self) -> Option<&LiveCounts> {
        self.threads.first().map(|counts| &**counts)
    }

    /// All added up; threads go on counting meanwhile.
    pub fn sums(&self) -> LiveSums {
        let sum = |counter: fn(&LiveCounts) -> &AtomicU64| {
            self.threads.iter().map(|counts| counter(counts).load(Ordering::Relaxed)).sum()
        };
        LiveSums {
            operations: sum(|it| &it.operations),
            bytes: sum(|it| &it.bytes),
            written_bytes: sum(|it| &it.written_bytes),
            read_bytes: sum(|it| &it.read_bytes),
            hits: sum(|it| &it.hits),
            misses: sum(|it| &it.misses),
            blocked: sum(|it| &it.blocked),
            passes: sum(|it| &it.passes),
        }
    }
}

/// How far a phase has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Until so much time has passed.
    Elapsed(Duration),
    /// Until so many operations were carried out.
    Operations(u64),
    /// Until the operations had so many bytes.
    Bytes(u64),
    /// Until the allocator thread made so many passes.
    Passes(u64),
    /// Nobody knows.
    Unknown,
}

impl From<Until> for Goal {
    fn from(until: Until) -> Self {
        match until {
            Until::Elapsed(time) => Self::Elapsed(time),
            Until::Operations(count) => Self::Operations(count),
        }
    }
}

impl Goal {
    /// That of two that have the same.
    #[must_use]
    pub fn twice(self) -> Self {
        match self {
            Self::Elapsed(time) => Self::Elapsed(time.saturating_mul(2)),
            Self::Operations(count) => Self::Operations(count.saturating_mul(2)),
            Self::Bytes(bytes) => Self::Bytes(bytes.saturating_mul(2)),
            Self::Passes(count) => Self::Passes(count.saturating_mul(2)),
            Self::Unknown => Self::Unknown,
        }
    }

    /// Thousandths of the way.
    fn done(self, elapsed: Duration, sums: &LiveSums) -> u64 {
        let share = match self {
            Self::Elapsed(time) => elapsed.as_secs_f64() / time.as_secs_f64().max(1e-9),
            Self::Operations(all) => ratio(sums.operations, all).unwrap_or(1.0),
            Self::Bytes(all) => ratio(sums.bytes, all).unwrap_or(1.0),
            Self::Passes(all) => ratio(sums.passes, all).unwrap_or(1.0),
            Self::Unknown => 0.0,
        };
        whole(share * 1000.0).min(1000)
    }
}

/// The line on the terminal. Dropping it takes it away.
#[derive(Debug)]
pub struct Progress {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows `live` on standard error until the result is dropped; nothing where that is no terminal.
    pub fn start(live: &Arc<Live>) -> io::Result<Self> {
        if !io::stderr().is_terminal() {
            return Ok(Self { stop: None, thread: None });
        }
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr())
            .with_style(
                ProgressStyle::with_template("{prefix} {wide_bar} {percent}% {elapsed}  {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
        Self::on(bar, live)
    }

    fn on(bar: ProgressBar, live: &Arc<Live>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let live = Arc::clone(live);
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let mut shown: Option<(Instant, Window)> = None;
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let phase = *live.phase();
                let sums = live.sums().minus(&phase.before);
                let window = match &mut shown {
                    Some((began, window)) if *began == phase.began => window,
                    _ => {
                        bar.set_prefix(phase.name);
                        bar.reset_elapsed();
                        let window = Window::new(phase.began, LiveSums::default());
                        &mut shown.insert((phase.began, window)).1
                    }
                };
                bar.set_position(phase.goal.done(phase.began.elapsed(), &sums));
                bar.set_message(window.message(Instant::now(), sums));
            }
            bar.finish_and_clear();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; the run is worth more than its progress.
            let _ = thread.join();
        }
    }
}

/// Sums of a moment ago, to tell rates from.
struct Window {
    began: Instant,
    then: LiveSums,
    operations_per_second: u64,
    bytes_per_second: u64,
}

impl Window {
    fn new(began: Instant, then: LiveSums) -> Self {
        Self { began, then, operations_per_second: 0, bytes_per_second: 0 }
    }

    fn message(&mut self, now: Instant, sums: LiveSums) -> String {
        let elapsed = now.saturating_duration_since(self.began);
        if elapsed >= WINDOW || self.operations_per_second == 0 {
            let rate = |now: u64, then: u64| {
                whole(float(now.saturating_sub(then)) / elapsed.as_secs_f64().max(1e-3))
            };
            let bytes = |it: &LiveSums| it.written_bytes + it.read_bytes;
            self.operations_per_second = rate(sums.operations, self.then.operations);
            self.bytes_per_second = rate(bytes(&sums), bytes(&self.then));
            if elapsed >= WINDOW {
                (self.began, self.then) = (now, sums);
            }
        }
        // Writing to a string cannot fail.
        let mut message = format!(
            "{} op/s  {}/s",
            format_count(self.operations_per_second),
            format_bytes(self.bytes_per_second)
        );
        if let Some(share) = ratio(sums.hits, sums.hits + sums.misses) {
            let _ = write!(message, "  hits {:.0} %", share * 100.0);
        }
        if sums.passes > 0 {
            let _ = write!(message, "  passes {}", format_count(sums.passes));
        }
        if sums.blocked > 0 {
            let _ = write!(message, "  waited {}", format_count(sums.blocked));
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_are_added_up() {
        let live = Live::new(2);
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let counts = live.writer(writer).unwrap();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        counts.operated(4096);
                        counts.wrote(4096);
                        counts.read(512, true);
                        counts.read(512, false);
                    }
                    counts.blocked();
                });
            }
            live.allocator().unwrap().passed();
        });
        assert!(live.writer(2).is_none());
        let sums = live.sums();
        assert_eq!(
            sums,
            LiveSums {
                operations: 2000,
                bytes: 2000 * 4096,
                written_bytes: 2000 * 4096,
                read_bytes: 2000 * 512,
                hits: 2000,
                misses: 2000,
                blocked: 2,
                passes: 1
            }
        );
    }

    #[test]
    fn the_way_is_told_in_thousandths() {
        let sums = LiveSums { operations: 250, bytes: 5, passes: 3, ..LiveSums::default() };
        let second = Duration::from_secs(1);
        assert_eq!(Goal::Elapsed(4 * second).done(second, &sums), 250);
        assert_eq!(Goal::Operations(1000).done(second, &sums), 250);
        assert_eq!(Goal::Bytes(4).done(second, &sums), 1000);
        assert_eq!(Goal::Bytes(0).done(second, &sums), 1000);
        assert_eq!(Goal::Passes(4).done(second, &sums), 750);
        assert_eq!(Goal::Unknown.done(second, &sums), 0);
    }

    #[test]
    fn rates_are_those_of_the_last_second() {
        let begin = Instant::now();
        let mut window = Window::new(begin, LiveSums::default());
        let sums = |operations| LiveSums {
            operations,
            written_bytes: operations << 20,
            hits: 3,
            misses: 1,
            ..LiveSums::default()
        };
        let first = window.message(begin + WINDOW, sums(1000));
        assert_eq!(first, "1,000 op/s  1000 MiB/s  hits 75 %");
        let second = window.message(begin + 2 * WINDOW, sums(1100));
        assert!(second.starts_with("100 op/s  100 MiB/s"), "{second}");
    }

    fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn each_phase_counts_from_its_beginning() {
        let live = Live::new(1);
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::hidden());
        let _progress = Progress::on(bar.clone(), &live).unwrap();
        let counts = live.writer(0).unwrap();
        live.begin("fixed addresses", Goal::Bytes(4));
        counts.operated(4);
        counts.read(4, true);
        let all_hits = || bar.message().contains("hits 100 %");
        wait_for("the first phase is over", || bar.position() == 1000 && all_hits());
        assert_eq!(bar.prefix(), "fixed addresses");
        live.begin("allocator", Goal::Bytes(8));
        wait_for("the next one begins", || bar.position() == 0);
        assert_eq!(bar.prefix(), "allocator");
        counts.operated(2);
        counts.read(2, false);
        wait_for("and goes on", || bar.position() == 250 && bar.message().contains("hits 0 %"));
    }

    #[test]
    fn the_line_goes_when_the_run_ends() {
        let live = Live::new(1);
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::hidden());
        let progress = Progress::on(bar.clone(), &live).unwrap();
        live.begin("allocator", Goal::Operations(2));
        live.writer(0).unwrap().operated(1);
        wait_for("the line is drawn", || bar.position() == 500 && bar.message().contains("op/s"));
        drop(progress);
        assert!(bar.is_finished());
    }
}
