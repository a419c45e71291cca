//! Operations by slices of a run's time: how steady its rate was.
//!
//! Nobody knows beforehand how long a run will be. Slices begin short, and whenever there is no room
//! for another one, each two become one.

use std::time::Duration;

use crate::num::float;

/// Slices that there is room for: a run has half as many at least, unless it is short.
const SLICES_MAX: usize = 40;
/// Length of the first slices, in ns.
const WIDTH_NS: u64 = 50_000_000;

/// Slices that it takes to tell a rate from its noise. A run has them after a second.
pub const SLICES_NEEDED: usize = SLICES_MAX / 2;

/// One thread's operations, or those of several threads that began together.
#[derive(Clone, Debug)]
pub struct Slices {
    width_ns: u64,
    counts: [u64; SLICES_MAX],
}

impl Default for Slices {
    fn default() -> Self {
        Self { width_ns: WIDTH_NS, counts: [0; SLICES_MAX] }
    }
}

impl Slices {
    /// Counts `operations` at so many ns after the run's beginning.
    pub fn add(&mut self, at_ns: u64, operations: u64) {
        let slice = loop {
            let slice = usize::try_from(at_ns / self.width_ns).unwrap_or(usize::MAX);
            if slice < SLICES_MAX {
                break slice;
            }
            self.fold();
        };
        if let Some(count) = self.counts.get_mut(slice) {
            *count += operations;
        }
    }

    /// Makes one slice of each two.
    fn fold(&mut self) {
        let mut folded = [0; SLICES_MAX];
        for (sum, two) in folded.iter_mut().zip(self.counts.chunks(2)) {
            *sum = two.iter().sum();
        }
        self.counts = folded;
        self.width_ns *= 2;
    }

    /// Adds another thread's.
    pub fn merge(&mut self, mut other: Self) {
        while self.width_ns < other.width_ns {
            self.fold();
        }
        while other.width_ns < self.width_ns {
            other.fold();
        }
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
    }

    /// Operations a second, to a thousandth, in each slice that a run of `elapsed` went through to its
    /// end. A run that was over before its first slice was is one slice.
    pub fn rates(&self, elapsed: Duration) -> Vec<f64> {
        let rate = |count: u64, ns: u64| (float(count) * 1e12 / float(ns)).round() / 1e3;
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let whole = usize::try_from(elapsed_ns / self.width_ns).unwrap_or(usize::MAX);
        if whole > 0 {
            self.counts.iter().take(whole).map(|count| rate(*count, self.width_ns)).collect()
        } else if elapsed_ns > 0 {
            vec![rate(self.counts.iter().sum(), elapsed_ns)]
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `threads` threads that do `per_second` operations each, evenly, for `ms`.
    fn steady(threads: u64, per_second: u64, ms: u64) -> Vec<f64> {
        let mut sum = Slices::default();
        for _ in 0..threads {
            let mut slices = Slices::default();
            for operation in 0..per_second * ms / 1000 {
                slices.add(operation * 1_000_000_000 / per_second, 1);
            }
            sum.merge(slices);
        }
        sum.rates(Duration::from_millis(ms))
    }

    #[test]
    fn a_steady_run_has_the_same_rate_in_each_slice() {
        for (ms, count) in
            [(50, 1), (1_000, 20), (1_999, 39), (2_000, 40), (2_100, 21), (60_000, 37)]
        {
            let rates = steady(2, 1_000, ms);
            assert_eq!(rates, vec![2000.0; count], "{ms} ms");
        }
    }

    #[test]
    fn a_short_run_is_one_slice() {
        assert_eq!(steady(1, 1_000, 40), [1000.0]);
        assert_eq!(Slices::default().rates(Duration::ZERO), [0.0; 0]);
    }

    #[test]
    fn threads_of_different_lengths_are_added() {
        let (mut short, mut long) = (Slices::default(), Slices::default());
        short.add(0, 50);
        long.add(3_999_999_999, 7);
        short.merge(long);
        let rates = short.rates(Duration::from_secs(4));
        assert_eq!((rates.len(), rates[0], rates[39]), (40, 500.0, 70.0));
    }
}
