//! Recording latencies: per thread while a run lasts, merged at its end.
//!
//! - [`Recorder`]: one thread's histograms. Recording takes no lock, no allocation and no page fault.
//! - [`clock`]: the clock, and what reading it costs.
//! - [`pace`]: when an operation is meant to begin; open and closed loops.
//! - [`slices`]: how steady a rate was.
//! - [`harness`]: threads that carry out operations at a pace.

pub mod clock;
pub mod harness;
pub mod pace;
pub mod slices;

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub use clock::Clock;

/// Shortest time that is told from 0, in ns.
pub const LATENCY_NS_MIN: u64 = 1;
/// Longest time that is recorded as it is, in ns: an hour. Longer ones are recorded as this.
pub const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Significant decimal digits that a recorded time keeps.
pub const LATENCY_DIGITS: u8 = 3;

/// What is measured.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// One whole operation of a writer, from when it was meant to begin.
    Operation,
    /// Allocating a bucket.
    BucketAllocation,
    /// Allocating sectors for a write.
    SectorAllocation,
    /// How long an allocation that had to wait for the allocator thread waited.
    Blocked,
    /// One pass that picks and invalidates buckets.
    InvalidationPass,
    /// Writing one chain of prio sets, without the journal entry.
    PrioWrite,
    /// Writing one journal entry, flushes included.
    JournalWrite,
    /// Discarding one bucket.
    Discard,
    /// Writing data to where it was allocated.
    DataWrite,
    /// Reading data that is in the cache.
    DataRead,
    /// Nothing at all: what the harness and its clock cost.
    Empty,
    /// Adding up an array with a word for each bucket: what memory allows at best.
    ArraySum,
    /// Naming the buckets that a pass would invalidate.
    Selection,
    /// One rescaling of all priorities.
    Rescaling,
}

impl Measure {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 14] = [
        Self::Operation,
        Self::BucketAllocation,
        Self::SectorAllocation,
        Self::Blocked,
        Self::InvalidationPass,
        Self::PrioWrite,
        Self::JournalWrite,
        Self::Discard,
        Self::DataWrite,
        Self::DataRead,
        Self::Empty,
        Self::ArraySum,
        Self::Selection,
        Self::Rescaling,
    ];

    /// What reports call it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::BucketAllocation => "bucket allocation",
            Self::SectorAllocation => "sector allocation",
            Self::Blocked => "time blocked",
            Self::InvalidationPass => "invalidation pass",
            Self::PrioWrite => "prio write",
            Self::JournalWrite => "journal write",
            Self::Discard => "discard",
            Self::DataWrite => "data write",
            Self::DataRead => "data read",
            Self::Empty => "empty operation",
            Self::ArraySum => "sum of an array",
            Self::Selection => "selection of victims",
            Self::Rescaling => "rescaling",
        }
    }

    /// Its name in JSON and in the names of files.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::BucketAllocation => "bucket_allocation",
            Self::SectorAllocation => "sector_allocation",
            Self::Blocked => "blocked",
            Self::InvalidationPass => "invalidation_pass",
            Self::PrioWrite => "prio_write",
            Self::JournalWrite => "journal_write",
            Self::Discard => "discard",
            Self::DataWrite => "data_write",
            Self::DataRead => "data_read",
            Self::Empty => "empty",
            Self::ArraySum => "array_sum",
            Self::Selection => "selection",
            Self::Rescaling => "rescaling",
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.title())
    }
}

/// A histogram of latencies in ns, empty.
pub fn latency_histogram() -> Histogram<u64> {
    // The bounds are constants that a histogram can have; the fallback has a wider range.
    Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, LATENCY_DIGITS)
        .unwrap_or_else(|_| unreachable!("the bounds of a latency histogram are constants"))
}

/// One thread's histograms.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// By [`Measure`]'s position; `None` for what this thread does not measure.
    histograms: [Option<Histogram<u64>>; Measure::ALL.len()],
}

impl Recorder {
    /// A recorder for `measures`; what else is recorded is dropped.
    ///
    /// All memory (about 270 KiB a measure) is taken and touched here, so that no page fault falls
    /// into the run.
    pub fn new(measures: &[Measure]) -> Self {
        let mut histograms = [const { None }; Measure::ALL.len()];
        for (measure, slot) in Measure::ALL.iter().zip(&mut histograms) {
            if measures.contains(measure) {
                let mut histogram = latency_histogram();
                histogram.reset(); // writes to every page
                *slot = Some(histogram);
            }
        }
        Self { histograms }
    }

    /// Records a latency in ns.
    pub fn record(&mut self, measure: Measure, latency_ns: u64) {
        if let Some(Some(histogram)) = self.histograms.get_mut(measure as usize) {
            histogram.saturating_record(latency_ns);
        }
    }

    /// Does `work` and records how long it took.
    pub fn time<T>(&mut self, clock: &Clock, measure: Measure, work: impl FnOnce() -> T) -> T {
        let start_ns = clock.now_ns();
        let result = work();
        self.record(measure, clock.now_ns().saturating_sub(start_ns));
        result
    }

    /// What was recorded; measures without a sample are left out.
    pub fn finish(self) -> Recording {
        let mut recording = Recording::default();
        recording.add(self);
        recording
    }
}

/// What one or several threads recorded.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    histograms: BTreeMap<Measure, Histogram<u64>>,
}

impl Recording {
    /// Adds what one thread recorded.
    pub fn add(&mut self, recorder: Recorder) {
        for (measure, histogram) in Measure::ALL.into_iter().zip(recorder.histograms) {
            if let Some(histogram) = histogram {
                self.add_histogram(measure, histogram);
            }
        }
    }

    /// Adds what another recording holds.
    pub fn merge(&mut self, other: Self) {
        for (measure, histogram) in other.histograms {
            self.add_histogram(measure, histogram);
        }
    }

    fn add_histogram(&mut self, measure: Measure, histogram: Histogram<u64>) {
        if histogram.is_empty() {
            return;
        }
        match self.histograms.get_mut(&measure) {
            // All have the same bounds, so that nothing can be out of range.
            Some(sum) => sum.add(&histogram).unwrap_or_else(|error| {
                unreachable!("histograms of the same bounds can be added: {error}")
            }),
            None => {
                self.histograms.insert(measure, histogram);
            }
        }
    }

    /// The histogram of `measure`, where it has samples.
    pub fn get(&self, measure: Measure) -> Option<&Histogram<u64>> {
        self.histograms.get(&measure)
    }

    /// All histograms, in the order of [`Measure::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Measure, &Histogram<u64>)> {
        self.histograms.iter().map(|(measure, histogram)| (*measure, histogram))
    }

    /// Samples of `measure`.
    pub fn count(&self, measure: Measure) -> u64 {
        self.get(measure).map_or(0, Histogram::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_names_and_titles_are_those_of_the_enum() {
        for (index, measure) in Measure::ALL.into_iter().enumerate() {
            assert_eq!(measure as usize, index);
            let json = serde_json::to_string(&measure).unwrap();
            assert_eq!(json, format!("\"{}\"", measure.key()));
        }
    }

    #[test]
    fn threads_are_merged_and_empty_measures_left_out() {
        let measures = [Measure::DataWrite, Measure::Discard, Measure::Empty];
        let mut sum = Recording::default();
        for thread in 1..=4u64 {
            let mut recorder = Recorder::new(&measures);
            for sample in 0..100 {
                recorder.record(Measure::DataWrite, thread * 1000 + sample);
            }
            recorder.record(Measure::Discard, thread);
            recorder.record(Measure::PrioWrite, 1); // not among the measures
            sum.add(recorder);
        }
        let found: Vec<_> =
            sum.iter().map(|(measure, histogram)| (measure, histogram.len())).collect();
        assert_eq!(found, [(Measure::Discard, 4), (Measure::DataWrite, 400)]);
        let histogram = sum.get(Measure::DataWrite).unwrap();
        assert_eq!(histogram.min(), 1000);
        assert!(histogram.equivalent(histogram.max(), 4099));
        let mut twice = sum.clone();
        twice.merge(sum);
        assert_eq!(twice.count(Measure::DataWrite), 800);
        assert_eq!(twice.count(Measure::Empty), 0);
    }

    #[test]
    fn times_over_an_hour_are_an_hour() {
        let mut recorder = Recorder::new(&[Measure::Blocked]);
        recorder.record(Measure::Blocked, u64::MAX);
        recorder.record(Measure::Blocked, 0);
        let recording = recorder.finish();
        let histogram = recording.get(Measure::Blocked).unwrap();
        assert_eq!(histogram.len(), 2);
        assert!(histogram.max() >= LATENCY_NS_MAX && histogram.max() < LATENCY_NS_MAX / 100 * 101);
    }

    #[test]
    fn work_is_timed_and_its_result_handed_on() {
        let clock = Clock::start();
        let mut recorder = Recorder::new(&[Measure::Discard]);
        let slept = std::time::Duration::from_millis(3);
        assert_eq!(
            recorder.time(&clock, Measure::Discard, || {
                std::thread::sleep(slept);
                7
            }),
            7
        );
        assert!(recorder.finish().get(Measure::Discard).unwrap().max() >= 3_000_000);
    }
}
