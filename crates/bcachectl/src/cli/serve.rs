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

    /// Give out what is likely right, too, where damage keeps it from being certain
    #[arg(long)]
    pub likely: bool,

    /// End once the first client is gone
    #[arg(long)]
    pub once: bool,
}
