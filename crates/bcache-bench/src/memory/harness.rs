//! Runs an operation at a given rate and records how long each took, counted from when it was due.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// For latencies up to a minute, to three digits.
pub fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// The figures of a histogram that reports show, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Operations.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %.
    pub p99_9_ns: u64,
    /// 99.99 %.
    pub p99_99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Latency {
    /// What a histogram says.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            p99_9_ns: histogram.value_at_quantile(0.999),
            p99_99_ns: histogram.value_at_quantile(0.9999),
            max_ns: histogram.max(),
        }
    }
}

/// A schedule of evenly spaced operations.
pub struct OpenLoop {
    start: Instant,
    interval: Duration,
    next: u32,
}

impl OpenLoop {
    /// `rate` operations a second from now on.
    pub fn new(rate: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self { start: Instant::now(), interval, next: 0 }
    }

    /// Waits until the next operation is due, runs it, and records the time from when it was due
    /// until it was done: one that starts late because others took long counts its wait too.
    pub fn run<T>(&mut self, histogram: &mut Histogram<u64>, operation: impl FnOnce() -> T) -> T {
        let due = self.start + self.interval * self.next;
        self.next = self.next.wrapping_add(1);
        if self.next == 0 {
            self.start = due + self.interval;
        }
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        let result = operation();
        let took = Instant::now().saturating_duration_since(due);
        histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        result
    }
}
