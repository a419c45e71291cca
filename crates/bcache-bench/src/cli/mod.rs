//! The command line: one definition yields the parser, the help, the man page and the completions.

pub mod compare;
pub mod device;
pub mod export;
pub mod plot;
pub mod record;
pub mod replay;
pub mod size;

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use compare::CompareArgs;
pub use device::DeviceArgs;
pub use plot::PlotArgs;
pub use record::RecordArgs;
pub use replay::ReplayArgs;
pub use size::SizeArgs;

/// Drive bcache's allocator, and measure it
#[derive(Debug, Parser)]
#[command(
    name = "bcache-bench",
    version = bcache_cli::program::VERSION,
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
    /// Make a cache set on devices and drive the allocator against them
    Device(Box<DeviceArgs>),
    /// Replay a block trace through modelled caches: which bucket size, which policy, how large an SSD
    Replay(Box<ReplayArgs>),
    /// Say what a cache of a size costs before it is made
    Size(SizeArgs),
    /// Record the requests of a device, to be replayed
    Record(RecordArgs),
    /// Say what changed between two reports, noise considered
    Compare(CompareArgs),
    /// Draw the latencies of reports into one picture
    Plot(PlotArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages
    #[command(hide = true)]
    Man {
        /// The folder to write them to
        folder: PathBuf,
    },
}

/// The whole command line, as clap sees it.
pub fn command() -> clap::Command {
    Cli::command()
}
