//! Options of the commands that control and watch what the kernel runs.

use std::path::PathBuf;
use std::time::Duration;

use bcache_cli::size::parse_bytes;
use clap::{Args, Subcommand, ValueEnum};

/// Options of all commands that change something.
#[derive(Clone, Copy, Debug, Args)]
pub struct ControlArgs {
    /// Check everything and say what would be written, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Maximum time to wait: 90, 90s, 5m or 1h; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<Duration>,
}

/// Options of `bcachectl register`.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// Cache and backing devices
    #[arg(value_name = "DEV", required = true)]
    pub devices: Vec<PathBuf>,

    /// Register a cache even if a backing device was started without it and the kernel drops its
    /// dirty data on that cache
    #[arg(long)]
    pub lose_dirty_data: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The backing device, or the bcache device it runs as
    #[arg(value_name = "DEV")]
    pub device: String,

    /// The set, by its UUID or its cache device
    #[arg(value_name = "SET")]
    pub set: String,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The backing device, or the bcache device it runs as
    #[arg(value_name = "DEV")]
    pub device: String,

    /// Wait until everything is written back and the device is detached
    #[arg(long)]
    pub wait: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl flush`.
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// A backing device or the bcache device it runs as; or a set, for all of its devices
    #[arg(value_name = "DEV|SET")]
    pub target: String,

    /// Wait until it is clean; flush always does, because it has settings to restore
    #[arg(long)]
    pub wait: bool,

    /// Switch from writeback to writethrough meanwhile, so that new writes do not keep it dirty
    #[arg(long)]
    pub writethrough: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// A backing device or the bcache device it runs as; or a set, with all of its devices
    #[arg(value_name = "DEV|SET")]
    pub target: String,

    /// Stop it even if it is in use: it disappears at the last close, and this cannot be cancelled
    #[arg(long)]
    pub lazy: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl unregister`.
#[derive(Debug, Args)]
pub struct UnregisterArgs {
    /// The set, by its UUID or its cache device
    #[arg(value_name = "SET")]
    pub set: String,

    /// Wipe the superblock of the cache device when all is written back
    #[arg(long)]
    pub wipe: bool,

    /// Do not ask before wiping; needed where standard input is no terminal
    #[arg(short, long)]
    pub yes: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The backing device
    #[arg(value_name = "DEV")]
    pub device: String,

    /// Start it even if its cache may hold the only copy of data
    #[arg(long)]
    pub lose_dirty_data: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl label`.
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// A backing device, or the bcache device that it or a volume runs as
    #[arg(value_name = "DEV")]
    pub device: String,

    /// The label, of at most 31 bytes; an empty one removes the label
    #[arg(value_name = "LABEL")]
    pub label: String,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl volume`.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// What to do
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a flash-only volume
    Create {
        /// The set, by its UUID or its cache device
        #[arg(value_name = "SET")]
        set: String,

        /// Its size, such as 20G
        #[arg(value_name = "SIZE", value_parser = parse_bytes)]
        size: u64,

        /// Its label, of at most 31 bytes
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,

        /// What all of these commands have
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Remove a flash-only volume and its data
    Remove {
        /// The bcache device that it runs as
        #[arg(value_name = "DEV")]
        device: String,

        /// Do not ask; needed where standard input is no terminal
        #[arg(short, long)]
        yes: bool,

        /// What all of these commands have
        #[command(flatten)]
        control: ControlArgs,
    },
}

/// Options of `bcachectl resize`.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The backing device, or the bcache device it runs as
    #[arg(value_name = "DEV")]
    pub device: String,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl replace-cache`.
#[derive(Debug, Args)]
pub struct ReplaceCacheArgs {
    /// The set whose cache is replaced, by its UUID or its cache device
    #[arg(value_name = "OLD")]
    pub old: String,

    /// The new cache device: an empty one, which is formatted; or an existing cache device
    #[arg(value_name = "NEW")]
    pub new: PathBuf,

    /// Bucket size of the new cache, such as 512k; by default as `bcachectl make` chooses it
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub bucket: Option<u64>,

    /// Switch from writeback to writethrough while a device is written back, so that new writes do
    /// not keep it dirty
    #[arg(long)]
    pub writethrough: bool,

    /// Wipe the superblock of the old cache device at the end
    #[arg(long)]
    pub wipe: bool,

    /// Do not ask; needed for --wipe where standard input is no terminal
    #[arg(short, long)]
    pub yes: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// A backing device or the bcache device it runs as; or a set, by its UUID or cache device
    #[arg(value_name = "DEV|SET")]
    pub target: String,

    /// Settings and their values, such as sequential_cutoff=4M
    #[arg(value_name = "NAME=VALUE", required = true)]
    pub assignments: Vec<String>,

    /// Allow values that lose data or stop the machine
    #[arg(long)]
    pub dangerous: bool,

    /// What all of these commands have
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `bcachectl get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// A backing device or the bcache device it runs as; or a set, by its UUID or cache device
    #[arg(value_name = "DEV|SET")]
    pub target: String,

    /// Settings; by default all
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Wait at most so long for the kernel's answer
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "60s")]
    pub timeout: Duration,
}

/// Where settings are kept.
pub const SETTINGS_FILE: &str = "/etc/bcachectl.toml";

/// Options of `bcachectl settings`.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// What to do
    #[command(subcommand)]
    pub command: SettingsCommand,
}

/// What can be done with a file of settings.
#[derive(Debug, Subcommand)]
pub enum SettingsCommand {
    /// Save the settings that are lost at a stop to a file
    Save {
        /// The file; - for standard output
        #[arg(value_name = "FILE", default_value = SETTINGS_FILE)]
        file: PathBuf,

        /// Wait at most so long for the kernel's answer
        #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "60s")]
        timeout: Duration,
    },
    /// Apply the settings in a file to the registered devices and sets
    Apply {
        /// The file
        #[arg(value_name = "FILE", default_value = SETTINGS_FILE)]
        file: PathBuf,

        /// Only for this device and its set
        #[arg(long, value_name = "DEV|SET")]
        device: Option<String>,

        /// What all of these commands have
        #[command(flatten)]
        control: ControlArgs,
    },
}

/// Options of `bcachectl status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// A backing device, a bcache device, a cache device or a set; by default everything
    #[arg(value_name = "DEV|SET")]
    pub target: Option<String>,

    /// Show which of the kernel's tests make I/O bypass the cache
    #[arg(long)]
    pub why: bool,

    /// Measure for TIME and show rates: 10, 10s or 1m
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["prometheus", "record", "recorded"])]
    pub interval: Option<Duration>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Print metrics as Prometheus reads them
    #[arg(long, conflicts_with_all = ["json", "why", "target"])]
    pub prometheus: bool,

    /// Record what the kernel says in a file, for a bug report; - for standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "why", "prometheus", "target", "recorded"])]
    pub record: Option<PathBuf>,

    /// Read a file that --record wrote, or a folder with a copy of /sys in it, instead of the
    /// kernel
    #[arg(long, value_name = "FILE")]
    pub recorded: Option<PathBuf>,

    /// Maximum time to wait for an answer; the rest is then shown
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "1s")]
    pub timeout: Duration,
}

/// Options of `bcachectl top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Time between samples: 2, 2s or 1m
    #[arg(short = 'd', long, value_name = "TIME", value_parser = parse_time, default_value = "1s")]
    pub interval: Duration,

    /// Print lines instead of taking the terminal
    #[arg(short, long)]
    pub batch: bool,

    /// Exit after N samples; 0 for no limit
    #[arg(short = 'n', long, value_name = "N", default_value_t = 0)]
    pub count: u64,

    /// The same as --batch --count 1
    #[arg(long, conflicts_with = "count")]
    pub once: bool,

    /// What to sort devices by
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t)]
    pub sort: TopSort,

    /// Read a file that `bcachectl status --record` wrote, or a folder with a copy of /sys in it,
    /// instead of the kernel
    #[arg(long, value_name = "FILE")]
    pub recorded: Option<PathBuf>,
}

/// What `bcachectl top` sorts devices by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopSort {
    /// By name
    #[default]
    Name,
    /// Most bytes read first
    Read,
    /// Most bytes written first
    Write,
    /// Fewest hits first
    Hits,
    /// Most dirty data first
    Dirty,
}

/// Why a time is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time; write a whole number of seconds, or one with s, m or h")]
pub struct TimeError(String);

/// A time such as `90`, `90s`, `5m`, `1h`.
pub fn parse_time(text: &str) -> Result<Duration, TimeError> {
    let parse = || {
        let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
        let unit = match text.get(digits.len()..)? {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        let plain = !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit());
        let seconds = plain.then(|| digits.parse::<u64>().ok()).flatten()?.checked_mul(unit)?;
        Some(Duration::from_secs(seconds))
    };
    parse().ok_or_else(|| TimeError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("0", 0)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "s", "5d", "-5", "1.5m", "5 m", "99999999999999999999"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
