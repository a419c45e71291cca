//! Runs an operation at a given rate and records how long each took, counted from when it was due.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

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
        let due = self.wait();
        self.next = self.next.wrapping_add(1);
        if self.next == 0 {
            self.start = due + self.interval;
        }
        let result = operation();
        let took = Instant::now().saturating_duration_since(due);
        histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        result
    }

    /// Waits until the next operation would be due: the last one, too, has its share of the time.
    pub fn finish(self) {
        self.wait();
    }

    /// Waits until the next operation is due; when that is.
    fn wait(&self) -> Instant {
        let due = self.start + self.interval * self.next;
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        due
    }
}
