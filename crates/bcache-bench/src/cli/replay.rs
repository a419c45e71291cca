//! Options of `bcache-bench replay`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bcache_cli::policy::PolicyName;
use bcache_cli::size::parse_bytes;
use bcache_core::model::Mode;
use clap::{Args, ValueEnum};

use super::export::ExportArgs;
use crate::replay::plan::{CacheSize, Wanted};
use crate::replay::report::Settings;
use crate::trace::{Columns, Format};

/// Options of `bcache-bench replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The trace; - is standard input. Several are the files of blktrace's CPUs, or fio iologs of
    /// several devices
    #[arg(value_name = "TRACE", required = true)]
    pub traces: Vec<PathBuf>,

    /// Format of the trace [default: by its content]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Trace")]
    pub format: Option<Format>,

    /// What the columns of a CSV are, as in time-us,device,op,offset-bytes,size-bytes
    #[arg(long, value_name = "COLUMNS", help_heading = "Trace", conflicts_with = "format")]
    pub columns: Option<Columns>,

    /// Replay only a part of the addresses, as in 0.25 or 25%, through caches as much smaller
    #[arg(long, value_name = "PART", value_parser = parse_sample, default_value = "1",
          help_heading = "Trace")]
    pub sample: f64,

    /// Ignore the times: each request comes when the previous one is done
    #[arg(long, help_heading = "Trace")]
    pub ignore_times: bool,

    /// As if one task had made all requests
    #[arg(long, help_heading = "Trace")]
    pub one_task: bool,

    /// If the trace does not tell, nobody waits for writes [default: all count as direct I/O]
    #[arg(long, help_heading = "Trace")]
    pub async_writes: bool,

    /// Sizes of the cache, in bytes or percent of the footprint [default: from 1 % of it to all]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_cache_size,
          help_heading = "Caches")]
    pub cache_size: Vec<CacheSize>,

    /// Sizes of buckets [default: 128k,512k,2M]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_bucket,
          help_heading = "Caches")]
    pub bucket: Vec<u64>,

    /// Replacement policies [default: lru,fifo]
    #[arg(
        long,
        value_name = "POLICIES",
        value_delimiter = ',',
        value_enum,
        help_heading = "Caches"
    )]
    pub policy: Vec<PolicyName>,

    /// Cache modes [default: writethrough]
    #[arg(long, value_name = "MODES", value_delimiter = ',', value_enum, help_heading = "Caches")]
    pub mode: Vec<ModeName>,

    /// Sequential cutoffs; 0 is off [default: 4M,0]
    #[arg(long, visible_alias = "cutoff", value_name = "SIZES", value_delimiter = ',',
          value_parser = parse_cutoff, help_heading = "Caches")]
    pub sequential_cutoff: Vec<u64>,

    /// Size of a block: what is not aligned to it bypasses the cache
    #[arg(long, value_name = "SIZE", value_parser = parse_block, default_value = "512",
          help_heading = "Caches")]
    pub block: u64,

    /// Seeds that the policy random is tried with
    #[arg(long, value_name = "N", default_value = "5",
          value_parser = clap::value_parser!(u64).range(1..=1000), help_heading = "Caches")]
    pub seeds: u64,

    /// Endurance of the SSD, the total bytes written that its maker allows, as in 600T: shows years
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Output")]
    pub tbw: Option<u64>,

    /// Print JSON
    #[arg(long, help_heading = "Output", group = "output")]
    pub json: bool,

    /// Print CSV, a line a run
    #[arg(long, help_heading = "Output", group = "output")]
    pub csv: bool,

    /// Print Markdown
    #[arg(long, help_heading = "Output", group = "output")]
    pub markdown: bool,

    /// Where the report is written to as well
    #[command(flatten)]
    pub export: ExportArgs,

    /// Draw the miss-ratio curve into a file: --export svg=FILE
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub svg: Option<PathBuf>,

    /// Also make the requests on a device: everything on it is lost
    #[arg(long, value_name = "DEV", help_heading = "Device")]
    pub device: Option<PathBuf>,

    /// Do not ask whether the data on the device may be lost
    #[arg(short, long, requires = "device", help_heading = "Device")]
    pub yes: bool,

    /// Threads [default: as many as there are CPUs]
    #[arg(short, long, value_name = "N", help_heading = "Output")]
    pub jobs: Option<NonZeroUsize>,
}

/// Names of modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// Writes go to both devices
    Writethrough,
    /// Writes stay in the cache for a while
    Writeback,
    /// Writes go past the cache
    Writearound,
    /// Everything goes past the cache
    None,
}

impl ReplayArgs {
    /// What the report says of how it was made.
    pub fn settings(&self) -> Settings {
        Settings {
            block_bytes: self.block,
            sample: self.sample,
            tbw_bytes: self.tbw,
            ignore_times: self.ignore_times,
            one_task: self.one_task,
            async_writes: self.async_writes,
        }
    }

    /// Which caches to try.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            cache_sizes: self.cache_size.clone(),
            buckets: self.bucket.clone(),
            policies: self.policy.iter().map(|policy| (*policy).into()).collect(),
            modes: self
                .mode
                .iter()
                .map(|mode| match mode {
                    ModeName::Writethrough => Mode::Writethrough,
                    ModeName::Writeback => Mode::Writeback,
                    ModeName::Writearound => Mode::Writearound,
                    ModeName::None => Mode::None,
                })
                .collect(),
            // A part of the addresses is no stream any more.
            cutoffs: if self.sample < 1.0 { vec![0] } else { self.sequential_cutoff.clone() },
        }
    }
}

fn parse_sample(text: &str) -> Result<f64, String> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    number
        .parse::<f64>()
        .ok()
        .map(|part| part / unit)
        .filter(|part| *part > 0.0 && *part <= 1.0)
        .ok_or_else(|| {
            format!("\"{text}\" is not a share; write a number above 0 and up to 1, or 25%")
        })
}

fn parse_cache_size(text: &str) -> Result<CacheSize, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.parse().ok().filter(|it| *it > 0.0 && *it <= 100_000.0);
        return percent
            .map(CacheSize::Percent)
            .ok_or_else(|| format!("\"{text}\" is not a percentage"));
    }
    parse_bytes(text).map(CacheSize::Bytes).map_err(|error| error.to_string())
}

/// Sizes of a power of two from `least` to `most`.
fn power_of_two(text: &str, least: u64, most: u64, name: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    if bytes.is_power_of_two() && (least..=most).contains(&bytes) {
        return Ok(bytes);
    }
    let format = bcache_core::units::format_bytes;
    Err(format!("a {name} is a power of two from {} to {}", format(least), format(most)))
}

pub(super) fn parse_bucket(text: &str) -> Result<u64, String> {
    power_of_two(text, 4 << 10, 1 << 30, "bucket")
}

pub(super) fn parse_block(text: &str) -> Result<u64, String> {
    power_of_two(text, 512, 4 << 10, "block")
}

fn parse_cutoff(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_bytes(text).map_err(|error| error.to_string()) }
}
