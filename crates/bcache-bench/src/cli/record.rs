//! Options of `bcache-bench record`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::device::plan::parse_duration;

/// Options of `bcache-bench record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The device whose requests are recorded
    #[arg(value_name = "DEV")]
    pub device: PathBuf,

    /// How long, as in 10m; Ctrl-C ends it before
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, default_value = "10m")]
    pub length: Duration,

    /// The trace to write (zstd); it must not exist
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Where debugfs is mounted
    #[arg(long, value_name = "FOLDER", default_value = "/sys/kernel/debug")]
    pub debugfs: PathBuf,
}
