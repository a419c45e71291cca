//! Options of `bcachectl image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Options of `bcachectl image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// What to do
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// The commands of `bcachectl image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Write the metadata of a cache device to a file
    Create(ImageCreateArgs),
    /// Write a metadata image to a sparse file or a device
    Restore(ImageRestoreArgs),
}

/// Options of `bcachectl image create`.
#[derive(Debug, Args)]
pub struct ImageCreateArgs {
    /// The cache device, or an image file of it
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,

    /// Output: a new file, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Replace UUIDs and labels, equal ones by equal ones
    #[arg(long)]
    pub anonymize: bool,

    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,

    /// Print JSON about what is in the image
    #[arg(long)]
    pub json: bool,
}

/// Options of `bcachectl image restore`.
#[derive(Debug, Args)]
pub struct ImageRestoreArgs {
    /// The metadata image
    #[arg(value_name = "FILE")]
    pub image: PathBuf,

    /// Target: a new sparse file, or with --force an existing file or device
    #[arg(value_name = "DEV")]
    pub target: PathBuf,

    /// Overwrite an existing file or device
    #[arg(long)]
    pub force: bool,

    /// Also overwrite a cache whose data exists nowhere else, or may exist nowhere else
    #[arg(long, requires = "force")]
    pub lose_dirty_data: bool,

    /// Save what is overwritten to this new file first, for bcachectl undo
    #[arg(long, value_name = "FILE", requires = "force")]
    pub undo: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
