//! Options of `bcachectl check`.

use std::path::PathBuf;

use bcache_core::ops::check::FINDINGS_PER_CODE;
use clap::Args;

/// Findings of each kind that are listed for people, unless they say otherwise.
pub const LISTED_PER_CODE: usize = 5;

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

    /// Findings of each kind that are listed, at most
    #[arg(long, value_name = "N", help = format!(
        "List at most N findings of each kind; the others are only counted [default: \
         {LISTED_PER_CODE}, in JSON {FINDINGS_PER_CODE}]"
    ))]
    pub findings: Option<usize>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
