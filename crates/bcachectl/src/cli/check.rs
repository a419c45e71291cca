//! Options of `bcachectl check`.

use std::path::PathBuf;

use clap::Args;

/// Options of `bcachectl check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The cache device, or an image file of it; a backing device is checked with its cache if that
    /// is in the machine, otherwise alone
    #[arg(value_name = "DEV")]
    pub device: PathBuf,

    /// Its backing devices, to be checked against it
    #[arg(value_name = "BACKING")]
    pub backing: Vec<PathBuf>,

    /// Compare the clean data in the cache with the backing devices
    #[arg(long, requires = "backing")]
    pub verify_clean: bool,

    /// List at most N findings of each kind; the others are only counted
    #[arg(long, value_name = "N", default_value_t = bcache_core::ops::check::FINDINGS_PER_CODE)]
    pub findings: usize,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
