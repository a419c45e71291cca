//! Options of `bcachectl serve`.

use std::path::PathBuf;

use clap::Args;

use super::export::VolumeArgs;

/// Options of `bcachectl serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The volume
    #[command(flatten)]
    pub volume: VolumeArgs,

    /// The Unix socket to make and listen on
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// Also serve data that is only likely right because of damage
    #[arg(long)]
    pub likely: bool,

    /// Exit when the first client disconnects
    #[arg(long)]
    pub once: bool,
}
