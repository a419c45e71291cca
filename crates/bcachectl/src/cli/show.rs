//! Options of `bcachectl show`.

use std::path::PathBuf;

use clap::Args;

/// Options of `bcachectl show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Block devices or image files [default: all bcache devices of the machine]
    #[arg(value_name = "DEV")]
    pub devices: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
