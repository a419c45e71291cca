//! What `bcache-bench device` is to do, typed and checked.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, iter};

use bcache_cli::size::parse_bytes;
use bcache_core::allocator::Reserve;
use bcache_core::layout::superblock::Replacement;
use bcache_core::units::{Sectors, format_bytes};
use clap::ValueEnum;
use serde::{Serialize, Serializer};

use crate::progress::Goal;
use crate::record::harness::Until;
use crate::record::pace::Pace;
use crate::report::Settings;
use crate::report::export::ExportPaths;
use crate::workload::{Access, BlockSizes, ReadShare, Weighted, Workload};

/// Everything that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct DevicePlan {
    /// Where the cache set is made.
    pub target: Target,
    /// What the writers do; the size of the working set is [`Self::working_set`].
    pub access: Access,
    /// Sizes of operations.
    pub block_sizes: BlockSizes,
    /// Share of operations that read.
    pub read_share: ReadShare,
    /// Number of writers.
    pub writers: NonZeroU32,
    /// Streams (write points) of each writer.
    pub streams: NonZeroU32,
    /// Size of the working set.
    pub working_set: WorkingSetSize,
    /// What the sequence of operations follows from.
    pub seed: u64,
    /// How operations follow each other.
    pub pace: Pace,
    /// When the run is over.
    pub length: Length,
    /// How the cache picks the buckets that it reuses.
    pub policy: Replacement,
    /// Size of a bucket in bytes; `None` for what `make` would choose.
    pub bucket_bytes: Option<u64>,
    /// Which reserves allocations draw from.
    pub reserves: Weighted<ReserveName>,
    /// Whether buckets are discarded before they are handed out.
    pub discard: bool,
    /// What is really read and written.
    pub io: IoMode,
    /// Whether the baselines are run, too.
    pub baseline: bool,
    /// Whether the cache set stays on the devices.
    pub keep: bool,
    /// Where the report goes.
    pub exports: ExportPaths,
    /// What may be destroyed, and who is asked.
    pub consent: Consent,
}

/// Where the cache set is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On devices, or image files, that are there.
    Existing(Vec<PathBuf>),
    /// On a new image file.
    NewImage {
        /// Its path.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
    },
}

impl Target {
    /// The devices and files that are written to.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Existing(paths) => paths,
            Self::NewImage { path, .. } => std::slice::from_ref(path),
        }
    }
}

/// What may be destroyed, and who is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// bcache superblocks may be overwritten.
    pub wipe_bcache: bool,
    /// Anything else may be overwritten.
    pub force: bool,
    /// Nobody is asked.
    pub yes: bool,
}

/// Size of the working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkingSetSize {
    /// So much.
    Sectors(Sectors),
    /// So much of the cache's size, in percent: over 100, the cache has to evict.
    PercentOfCache(NonZeroU32),
}

impl Default for WorkingSetSize {
    fn default() -> Self {
        Self::PercentOfCache(NonZeroU32::MIN.saturating_add(149))
    }
}

impl FromStr for WorkingSetSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(percent) => percent.parse().map(Self::PercentOfCache).map_err(|_| {
                format!(
                    "\"{text}\" is no share of the cache; write a whole number and %, as in 150%"
                )
            }),
            None => parse_bytes(text)
                .map(|bytes| Self::Sectors(Sectors::from_bytes_floor(bytes)))
                .map_err(|error| error.to_string()),
        }
    }
}

impl fmt::Display for WorkingSetSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sectors(sectors) => write!(f, "{sectors}"),
            Self::PercentOfCache(percent) => write!(f, "{percent}% of the cache"),
        }
    }
}

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// After so much time.
    Elapsed(Duration),
    /// When the operations had so many bytes, whether they wrote or read: a run that only reads ends, too.
    Bytes(NonZeroU64),
}

impl Length {
    /// When threads end that count no bytes; those that have an amount end by [`Self::share_of`].
    pub fn until(self) -> Until {
        match self {
            Self::Elapsed(time) => Until::Elapsed(time),
            Self::Bytes(_) => Until::Operations(u64::MAX),
        }
    }

    /// The bytes that are `writer`'s share, where there is an amount.
    pub fn share_of(self, writer: u32, writers: NonZeroU32) -> Option<u64> {
        match self {
            Self::Elapsed(_) => None,
            Self::Bytes(bytes) => shares(bytes.get(), writers).nth(usize::try_from(writer).ok()?),
        }
    }

    /// The same, to show how far a run is.
    pub fn goal(self) -> Goal {
        match self {
            Self::Elapsed(time) => Goal::Elapsed(time),
            Self::Bytes(bytes) => Goal::Bytes(bytes.get()),
        }
    }
}

/// A duration such as `30s`, `500ms`, `2m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let ms_per_unit = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(ms_per_unit))
        // A year keeps ns in 64 bits.
        .filter(|ms| (1..=365 * 24 * 3_600_000).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!("\"{text}\" is not a time; write a whole number and ms, s, m or h, as in 30s")
        })
}

/// What is really read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IoMode {
    /// Data and metadata
    #[default]
    Data,
    /// Priorities, gens and the journal, but no data
    Metadata,
    /// Nothing
    None,
}

/// A reserve by the name that it has on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReserveName(pub Reserve);

impl ReserveName {
    /// Those that allocations may be asked to draw from; the prio reserve is the thread's own.
    const NAMES: [(&'static str, Reserve); 3] =
        [("none", Reserve::None), ("btree", Reserve::Btree), ("moving-gc", Reserve::MovingGc)];
}

impl FromStr for ReserveName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::NAMES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, reserve)| Self(*reserve))
            .ok_or_else(|| format!("\"{text}\" is no reserve; it is none, btree or moving-gc"))
    }
}

impl fmt::Display for ReserveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, reserve)| *reserve == self.0);
        f.pad(name.map_or("prio", |(name, _)| name))
    }
}

impl DevicePlan {
    /// What the writers do on a cache of `cache` sectors.
    pub fn workload(&self, cache: Sectors) -> Workload {
        let working_set = match self.working_set {
            WorkingSetSize::Sectors(sectors) => sectors,
            WorkingSetSize::PercentOfCache(percent) => {
                let share = u128::from(cache.0) * u128::from(percent.get()) / 100;
                Sectors(u64::try_from(share).unwrap_or(u64::MAX))
            }
        };
        Workload {
            working_set,
            access: self.access.clone(),
            block_sizes: self.block_sizes.clone(),
            read_share: self.read_share,
            streams: self.streams,
            writers: self.writers,
            seed: self.seed,
        }
    }

    /// How many devices the cache set has.
    pub fn devices(&self) -> usize {
        match &self.target {
            Target::Existing(paths) => paths.len(),
            Target::NewImage { .. } => 1,
        }
    }

    /// What the report says was asked for: all that bears on the figures, and nothing that names a
    /// file, so that reports of different devices can be compared.
    pub fn settings(&self) -> Result<Settings, serde_json::Error> {
        Settings::of(&PlanSettings {
            devices: self.devices(),
            access: &self.access,
            block_sizes: &self.block_sizes,
            read_share: self.read_share,
            writers: self.writers,
            streams: self.streams,
            working_set: Text(self.working_set),
            seed: self.seed,
            rate: match self.pace {
                Pace::Closed => None,
                Pace::Open { per_second } => Some(per_second),
            },
            duration_ms: match self.length {
                Length::Elapsed(time) => u64::try_from(time.as_millis()).ok(),
                Length::Bytes(_) => None,
            },
            amount: match self.length {
                Length::Elapsed(_) => None,
                Length::Bytes(bytes) => Some(format_bytes(bytes.get())),
            },
            policy: self.policy,
            bucket_size: self.bucket_bytes.map(format_bytes),
            reserves: &self.reserves,
            discard: self.discard,
            io: self.io,
        })
    }
}

#[derive(Serialize)]
struct PlanSettings<'a> {
    devices: usize,
    access: &'a Access,
    block_sizes: &'a BlockSizes,
    read_share: ReadShare,
    writers: NonZeroU32,
    streams: NonZeroU32,
    working_set: Text<WorkingSetSize>,
    seed: u64,
    rate: Option<NonZeroU64>,
    duration_ms: Option<u64>,
    amount: Option<String>,
    policy: Replacement,
    bucket_size: Option<String>,
    reserves: &'a Weighted<ReserveName>,
    discard: bool,
    io: IoMode,
}

/// Serialised as it is displayed.
struct Text<T>(T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// `total` in `parts` that differ by one at most, the larger ones first.
pub fn shares(total: u64, parts: NonZeroU32) -> impl Iterator<Item = u64> {
    let count = u64::from(parts.get());
    let mut index = 0;
    iter::from_fn(move || {
        let share = total / count + u64::from(index < total % count);
        index += 1;
        (index <= count).then_some(share)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("30", 30_000), ("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "0", "0s", "-1s", "1.5s", "10x", "1 s", "99999999999h", "9000h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn working_sets() {
        let of = |text: &str| text.parse::<WorkingSetSize>();
        assert_eq!(of("4G"), Ok(WorkingSetSize::Sectors(Sectors(8 << 20))));
        assert_eq!(of("150%"), Ok(WorkingSetSize::default()));
        assert_eq!(of("150%").unwrap().to_string(), "150% of the cache");
        for text in ["", "%", "0%", "-1%", "1.5%", "4x", "0"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reserves_have_names() {
        for name in ["none", "btree", "moving-gc"] {
            assert_eq!(name.parse::<ReserveName>().unwrap().to_string(), name);
        }
        assert!("prio".parse::<ReserveName>().unwrap_err().contains("no reserve"));
    }

    #[test]
    fn shares_add_up() {
        let of = |total, parts| shares(total, NonZeroU32::new(parts).unwrap()).collect::<Vec<_>>();
        assert_eq!(of(10, 3), [4, 3, 3]);
        assert_eq!(of(2, 4), [1, 1, 0, 0]);
        assert_eq!(of(0, 1), [0]);
    }
}
