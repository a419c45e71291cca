//! The command line: one definition yields the parser, the help, the man page and the completions.

pub mod memory;

use clap::{Parser, Subcommand};

pub use memory::{BucketArgs, InvalidateArgs, SectorArgs};

/// Drive bcache's allocator, and measure it
#[derive(Debug, Parser)]
#[command(
    name = "bcache-bench",
    version,
    about,
    long_about = None,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Time a replacement pass and a rescaling in memory, against adding up an array
    Invalidate(InvalidateArgs),
    /// Time bucket allocation in memory while the allocator thread invalidates
    Bucket(BucketArgs),
    /// Time sector allocation in memory
    Sector(SectorArgs),
}
