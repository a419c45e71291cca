//! What a run found: typed, serialisable, and complete enough to be loaded again and compared.
//!
//! - [`Report`] and its parts; as JSON it is what `--json` and `--export json=FILE` write.
//! - [`histogram`]: whole histograms inside the JSON.
//! - [`table`]: for people. [`hgrm`] and [`plot`]: percentile files and pictures.
//! - [`export`]: files that are opened before the run.

pub mod export;
pub(crate) mod formats;
pub mod hgrm;
pub mod histogram;
pub mod plot;
pub mod table;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use histogram::{Measured, Percentile, Summary};

use crate::environment::Environment;
use crate::num::float;
use crate::record::harness::Driven;
use crate::record::pace::PaceCounts;
use crate::record::{Measure, Recording};
use crate::warnings::Warning;

/// Version of the JSON. Readers refuse what is newer than they are.
pub const FORMAT: u32 = 1;

/// Everything that one invocation found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// The sub-command.
    pub command: String,
    /// When the run began, in seconds since 1970.
    pub started_unix_seconds: u64,
    /// Whether it was ended early, by Ctrl-C.
    pub interrupted: bool,
    /// What was asked for.
    pub settings: Settings,
    /// What it ran on.
    pub environment: Environment,
    /// What was run: the allocator, and what it is compared with.
    pub runs: Vec<Run>,
    /// How the runs compare.
    #[serde(default)]
    pub ratios: Vec<Ratio>,
    /// What makes figures dubious.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

impl Report {
    /// A report without runs.
    pub fn new(command: &str, settings: Settings, environment: Environment) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: command.to_owned(),
            started_unix_seconds: now.as_secs(),
            interrupted: false,
            settings,
            environment,
            runs: Vec::new(),
            ratios: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Reads a report from a file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let bytes = std::fs::read(path)
            .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let damaged = |source| LoadError::NotAReport { path: path.to_owned(), source };
        // The version first: what a newer program wrote need not have our fields.
        let found = serde_json::from_slice::<FormatOnly>(&bytes).map_err(damaged)?.format;
        if found != FORMAT {
            return Err(LoadError::Format { path: path.to_owned(), found });
        }
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    /// The run of that name.
    pub fn run(&self, name: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.name == name)
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// Why a file is no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not JSON, lacks something, or holds a histogram that cannot be decoded.
    #[error("{} is not a whole report of bcache-bench (--json and --export json=write one)", path.display())]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// Another version of the format.
    #[error(
        "{} has format {found}, and this bcache-bench reads format {FORMAT}; use the one that wrote it",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// What was asked for, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(pub BTreeMap<String, Value>);

impl Settings {
    /// The fields of `settings`, which is a structure.
    pub fn of(settings: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(settings)?)
    }

    /// A setting as people read it; nothing where it is not set.
    pub fn text(&self, name: &str) -> String {
        match self.0.get(name) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// Names of the settings in which two runs differ.
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let mut names: Vec<&str> =
            self.0.keys().chain(other.0.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| {
            let value = |settings: &'a Self| settings.0.get(*name).unwrap_or(&Value::Null);
            value(self) != value(other)
        });
        names
    }
}

/// One thing that was run and measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "RawRun", into = "RawRun")]
pub struct Run {
    /// What ran: `allocator`, `reference`, `fixed addresses`, ...
    pub name: String,
    /// How long.
    pub elapsed: Duration,
    /// Operations of all writers.
    pub operations: u64,
    /// How the pace was kept.
    pub pace: PaceCounts,
    /// What was counted.
    pub counters: Counters,
    /// Operations a second in slices of equal length, one after the other. None where the run has no
    /// rate, or was written by an older program.
    pub slices: Vec<f64>,
    /// What was measured.
    pub measures: Vec<Measured>,
}

/// A run in JSON: with the figures that follow from it.
#[derive(Serialize, Deserialize)]
struct RawRun {
    name: String,
    elapsed_ns: u64,
    operations: u64,
    #[serde(default, skip_deserializing)]
    figures: Figures,
    #[serde(default)]
    pace: PaceCounts,
    #[serde(default)]
    counters: Counters,
    #[serde(default)]
    slices: Vec<f64>,
    measures: Vec<Measured>,
}

impl From<Run> for RawRun {
    fn from(run: Run) -> Self {
        Self {
            figures: run.figures(),
            elapsed_ns: u64::try_from(run.elapsed.as_nanos()).unwrap_or(u64::MAX),
            name: run.name,
            operations: run.operations,
            pace: run.pace,
            counters: run.counters,
            slices: run.slices,
            measures: run.measures,
        }
    }
}

impl From<RawRun> for Run {
    fn from(raw: RawRun) -> Self {
        Self {
            name: raw.name,
            elapsed: Duration::from_nanos(raw.elapsed_ns),
            operations: raw.operations,
            pace: raw.pace,
            counters: raw.counters,
            slices: raw.slices,
            measures: raw.measures,
        }
    }
}

impl Run {
    /// What a driven load recorded; `counters` are for the caller to fill.
    pub fn of_driven(name: &str, driven: &Driven) -> Self {
        Self {
            name: name.to_owned(),
            elapsed: driven.elapsed,
            operations: driven.operations,
            pace: driven.pace,
            counters: Counters::default(),
            slices: driven.slices.clone(),
            measures: measured(&driven.recording),
        }
    }

    /// Both as one run, under this one's name.
    #[must_use]
    pub fn merged(mut self, other: Self) -> Self {
        self.elapsed += other.elapsed;
        self.operations += other.operations;
        self.pace.add(&other.pace);
        self.counters.add(&other.counters);
        self.slices.extend(other.slices);
        for measured in other.measures {
            match self.measures.iter_mut().find(|it| it.measure == measured.measure) {
                // All have the same bounds, so that nothing can be out of range.
                Some(sum) => sum.histogram += &measured.histogram,
                None => self.measures.push(measured),
            }
        }
        self
    }

    /// What was measured of `measure`.
    pub fn measured(&self, measure: Measure) -> Option<&Measured> {
        self.measures.iter().find(|it| it.measure == measure)
    }

    /// The figures that follow from the counts.
    pub fn figures(&self) -> Figures {
        let counters = &self.counters;
        let seconds = self.elapsed.as_secs_f64();
        let per_second = |count: u64| (count > 0 && seconds > 0.0).then(|| float(count) / seconds);
        let lookups = counters.hits + counters.misses;
        Figures {
            operations_per_second: per_second(self.operations),
            written_bytes_per_second: per_second(counters.written_bytes),
            read_bytes_per_second: per_second(counters.read_bytes),
            hit_ratio: crate::num::ratio(counters.hits, lookups),
            write_amplification: (counters.device_written_bytes > 0)
                .then(|| crate::num::ratio(counters.device_written_bytes, counters.written_bytes))
                .flatten(),
        }
    }
}

/// All that was recorded, in the order of [`Measure::ALL`].
pub fn measured(recording: &Recording) -> Vec<Measured> {
    recording
        .iter()
        .map(|(measure, histogram)| Measured { measure, histogram: histogram.clone() })
        .collect()
}

/// What a run counted. What it does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Bytes that writers wrote as data.
    pub written_bytes: u64,
    /// Bytes that writers read as data.
    pub read_bytes: u64,
    /// Bytes that went to the device, data and metadata.
    pub device_written_bytes: u64,
    /// Reads that found their data in the cache.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Buckets allocated.
    pub buckets_allocated: u64,
    /// Buckets invalidated.
    pub buckets_invalidated: u64,
    /// Allocations that had to wait.
    pub blocked: u64,
    /// Passes of the allocator thread.
    pub passes: u64,
    /// Garbage collections.
    pub gcs: u64,
    /// Chains of prio sets written.
    pub prio_writes: u64,
    /// Journal entries written.
    pub journal_writes: u64,
    /// Buckets discarded.
    pub discards: u64,
    /// Discards that failed.
    pub discards_failed: u64,
    /// Times that priorities were rescaled.
    pub rescales: u64,
}

impl Counters {
    /// Adds what another thread or run counted.
    pub fn add(&mut self, other: &Self) {
        let Self {
            written_bytes,
            read_bytes,
            device_written_bytes,
            hits,
            misses,
            buckets_allocated,
            buckets_invalidated,
            blocked,
            passes,
            gcs,
            prio_writes,
            journal_writes,
            discards,
            discards_failed,
            rescales,
        } = self;
        *written_bytes += other.written_bytes;
        *read_bytes += other.read_bytes;
        *device_written_bytes += other.device_written_bytes;
        *hits += other.hits;
        *misses += other.misses;
        *buckets_allocated += other.buckets_allocated;
        *buckets_invalidated += other.buckets_invalidated;
        *blocked += other.blocked;
        *passes += other.passes;
        *gcs += other.gcs;
        *prio_writes += other.prio_writes;
        *journal_writes += other.journal_writes;
        *discards += other.discards;
        *discards_failed += other.discards_failed;
        *rescales += other.rescales;
    }
}

/// Figures that follow from what was counted; `None` where nothing was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Operations a second.
    pub operations_per_second: Option<f64>,
    /// Data written a second.
    pub written_bytes_per_second: Option<f64>,
    /// Data read a second.
    pub read_bytes_per_second: Option<f64>,
    /// Share of reads that found their data.
    pub hit_ratio: Option<f64>,
    /// Bytes that went to the device for each byte of data.
    pub write_amplification: Option<f64>,
}

/// How two figures of one invocation compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// What is compared, such as `data bandwidth, allocator to fixed addresses`.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// What it is compared with.
    pub baseline: f64,
    /// The unit of both, such as `bytes/s`.
    pub unit: String,
    /// How sure their ratio is, where both were measured in turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<InTurns>,
}

/// How sure a ratio is of what took turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InTurns {
    /// Pairs of turns.
    pub pairs: u64,
    /// Lower end of the ratio's 95 % interval; `None` where the pairs are too few to say.
    pub ratio_low: Option<f64>,
    /// Upper end.
    pub ratio_high: Option<f64>,
}

impl Ratio {
    /// `value / baseline`; `None` without a baseline.
    pub fn ratio(&self) -> Option<f64> {
        (self.baseline > 0.0).then(|| self.value / self.baseline)
    }
}

#[cfg(test)]
pub(crate) mod sample;

#[cfg(test)]
mod tests;
