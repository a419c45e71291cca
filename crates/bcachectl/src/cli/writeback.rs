//! Options of `bcachectl writeback`.

use std::path::PathBuf;

use clap::Args;

use super::WriteArgs;

/// Options of `bcachectl writeback`.
#[derive(Debug, Args)]
pub struct WritebackArgs {
    /// The cache device, or an image file of one
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,

    /// The backing devices to write to
    #[arg(value_name = "BACKING", required = true)]
    pub backing: Vec<PathBuf>,

    /// Only this volume; can be given several times
    #[arg(long, value_name = "UUID|LABEL|SLOT")]
    pub volume: Vec<String>,

    /// Detach the volumes from the cache set afterwards: the backing devices need no cache then
    #[arg(long)]
    pub detach: bool,

    /// Also write to backing devices that were detached from this cache or run without it (states
    /// none and inconsistent), or registered after it was last there, over what was written to them
    /// since
    #[arg(long, requires = "detach")]
    pub ran_alone: bool,

    /// Read back all that was copied and compare it
    #[arg(long)]
    pub verify: bool,

    /// What the commands have that write
    #[command(flatten)]
    pub write: WriteArgs,
}
