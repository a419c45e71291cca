//! Options of `bcachectl undo`.

use std::path::PathBuf;

use clap::Args;

use super::ScriptArgs;

/// Options of `bcachectl undo`.
#[derive(Debug, Args)]
pub struct UndoArgs {
    /// The file that --undo wrote
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The devices, in the order that --dry-run shows, if they have other names now
    #[arg(value_name = "DEV")]
    pub devices: Vec<PathBuf>,

    /// Show what would be put back, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// What scripts give
    #[command(flatten)]
    pub script: ScriptArgs,
}
