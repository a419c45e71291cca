//! The clock that everything is measured with.
//!
//! `CLOCK_MONOTONIC` through the vDSO: with the clocksource `tsc` a reading costs a few tens of ns
//! and no system call. With another clocksource it is a system call and far coarser, which
//! [`ClockQuality`] shows and a warning of the report says.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A clock that counts ns from its start. Copies count from the same start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    #[cfg(test)]
    by_hand: Option<&'static by_hand::Hand>,
}

impl Clock {
    /// A clock that is at 0 now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            #[cfg(test)]
            by_hand: None,
        }
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        #[cfg(test)]
        if let Some(hand) = self.by_hand {
            return hand.read();
        }
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The same as an [`Instant`].
    pub fn instant(&self, at_ns: u64) -> Instant {
        self.start + Duration::from_nanos(at_ns)
    }

    /// Puts the thread to sleep for at least `time`.
    pub fn sleep(&self, time: Duration) {
        #[cfg(test)]
        if let Some(hand) = self.by_hand {
            return hand.sleep(time);
        }
        std::thread::sleep(time);
    }
}

/// A clock that only its readings and sleeps move: what a test says of time holds on a machine of any
/// speed, however busy.
#[cfg(test)]
mod by_hand {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Clock, Duration};

    #[derive(Debug)]
    pub(super) struct Hand {
        now_ns: AtomicU64,
        oversleeps_ns: u64,
    }

    impl Hand {
        pub(super) fn read(&self) -> u64 {
            self.now_ns.fetch_add(Clock::READING_NS, Ordering::Relaxed)
        }

        pub(super) fn sleep(&self, time: Duration) {
            let time_ns = u64::try_from(time.as_nanos()).unwrap();
            self.now_ns.fetch_add(time_ns + self.oversleeps_ns, Ordering::Relaxed);
        }
    }

    impl Clock {
        /// What a reading of a clock by hand takes.
        pub(crate) const READING_NS: u64 = 10;

        /// A clock on which a sleep ends `oversleeps_ns` late.
        pub(crate) fn by_hand(oversleeps_ns: u64) -> Self {
            let hand = Box::leak(Box::new(Hand { now_ns: AtomicU64::new(0), oversleeps_ns }));
            Self { by_hand: Some(hand), ..Self::start() }
        }
    }
}

/// How good the clock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockQuality {
    /// What one reading costs, in ns (median).
    pub read_ns: u64,
    /// Smallest step seen between two readings that differ, in ns.
    pub resolution_ns: u64,
}

/// Readings that [`ClockQuality::measure`] takes.
const READINGS: usize = 20_000;

impl ClockQuality {
    /// Reads the clock for about a millisecond.
    pub fn measure() -> Self {
        let clock = Clock::start();
        let readings: Vec<u64> = (0..READINGS).map(|_| clock.now_ns()).collect();
        Self::of_readings(&readings)
    }

    /// From consecutive readings in ns.
    pub fn of_readings(readings: &[u64]) -> Self {
        let steps = || {
            readings.windows(2).filter_map(|pair| match pair {
                [earlier, later] => later.checked_sub(*earlier),
                _ => None,
            })
        };
        // A coarse clock stands still in most readings, so that its median step is 0: the mean is
        // what a reading costs there.
        let mut sorted: Vec<u64> = steps().collect();
        sorted.sort_unstable();
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
        let mean = match (readings.first(), readings.last(), sorted.len() as u64) {
            (Some(first), Some(last), count) if count > 0 => last.saturating_sub(*first) / count,
            _ => 0,
        };
        Self {
            read_ns: if median == 0 { mean } else { median },
            resolution_ns: steps().filter(|step| *step > 0).min().unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fine_clock() {
        let readings: Vec<u64> = (0..1000).map(|i| i * 25 + i % 2).collect();
        assert_eq!(
            ClockQuality::of_readings(&readings),
            ClockQuality { read_ns: 26, resolution_ns: 24 }
        );
    }

    #[test]
    fn a_coarse_clock_stands_still() {
        let readings: Vec<u64> = (0..1001).map(|i| i / 100 * 4_000_000).collect();
        let quality = ClockQuality::of_readings(&readings);
        assert_eq!(quality, ClockQuality { read_ns: 40_000, resolution_ns: 4_000_000 });
    }

    #[test]
    fn a_clock_that_never_moves_has_no_resolution() {
        assert_eq!(ClockQuality::of_readings(&[5; 10]).resolution_ns, u64::MAX);
        assert_eq!(ClockQuality::of_readings(&[]).resolution_ns, u64::MAX);
    }

    #[test]
    fn the_real_clock_moves() {
        let quality = ClockQuality::measure();
        assert!(quality.read_ns > 0 && quality.resolution_ns < u64::MAX, "{quality:?}");
    }
}
