//! The command line: one definition yields the parser, the help, the man pages and the completions.

pub mod check;
pub mod export;
pub mod image;
pub mod invalidate;
pub mod list;
pub mod lists;
pub mod make;
pub mod repair;
pub mod running;
pub mod serve;
pub mod show;
pub mod undo;
pub mod writeback;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use check::{CheckArgs, LISTED_PER_CODE};
pub use export::ExportArgs;
pub use image::ImageArgs;
pub use invalidate::InvalidateArgs;
pub use list::{ListArgs, ListColumn};
pub use make::MakeArgs;
pub use repair::RepairArgs;
pub use serve::ServeArgs;
pub use show::ShowArgs;
pub use undo::UndoArgs;
pub use writeback::WritebackArgs;

/// Options for whoever is no person at a terminal.
#[derive(Clone, Copy, Debug, Args)]
pub struct ScriptArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Do not ask; needed if standard input is not a terminal
    #[arg(short, long)]
    pub yes: bool,
}

/// Options that the commands have which write to a set that does not run.
#[derive(Clone, Debug, Args)]
pub struct WriteArgs {
    /// Save what is overwritten to this new file first, for bcachectl undo
    #[arg(long, value_name = "FILE")]
    pub undo: Option<PathBuf>,

    /// Show what would be written, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// What scripts give
    #[command(flatten)]
    pub script: ScriptArgs,
}

/// Make, inspect and control bcache devices
#[derive(Debug, Parser)]
#[command(
    name = "bcachectl",
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
    /// Format cache and backing devices
    Make(MakeArgs),
    /// Show what bcache devices hold
    Show(ShowArgs),
    /// List the bcache devices of the machine
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Check a cache device for errors
    Check(CheckArgs),
    /// Force buckets out of a cache that is not running
    Invalidate(InvalidateArgs),
    /// Copy a volume, read through its cache, into a file or a stream
    Export(ExportArgs),
    /// Serve a volume, read through its cache, to NBD clients
    Serve(ServeArgs),
    /// Write dirty data back to the backing devices
    Writeback(WritebackArgs),
    /// Mend a damaged cache set where that can be done
    Repair(RepairArgs),
    /// Put back what a command overwrote
    Undo(UndoArgs),
    /// Save the metadata of a cache device to a small file, or restore it
    Image(ImageArgs),
    /// Register devices with the kernel
    Register(running::RegisterArgs),
    /// Attach a backing device to a cache set
    Attach(running::AttachArgs),
    /// Detach a backing device from its cache set
    Detach(running::DetachArgs),
    /// Write dirty data back until a device is clean
    Flush(running::FlushArgs),
    /// Stop a backing device or a cache set
    Stop(running::StopArgs),
    /// Write everything back and unregister a cache set
    Unregister(running::UnregisterArgs),
    /// Start a backing device without its cache
    Run(running::RunArgs),
    /// Label a backing device or a flash-only volume
    Label(running::LabelArgs),
    /// Make and remove flash-only volumes
    Volume(running::VolumeArgs),
    /// Make the new size of a grown backing device available
    Resize(running::ResizeArgs),
    /// Move the backing devices of a set to another cache device
    ReplaceCache(running::ReplaceCacheArgs),
    /// Change settings of a running device or set
    Set(running::SetArgs),
    /// Show the settings of a running device or set
    Get(running::GetArgs),
    /// Save settings to a file, and apply them again
    Settings(running::SettingsArgs),
    /// Show the state of running sets and devices
    Status(running::StatusArgs),
    /// Watch running sets and devices
    Top(running::TopArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
        /// One of the old names instead of bcachectl
        #[arg(long = "for", value_name = "NAME")]
        old_name: Option<String>,
    },
    /// Read superblocks for the command that started this one, as `device::scan` asks
    #[command(hide = true)]
    ReadSuperblocks,
    /// Read what the kernel runs for the command that started this one, as `running::ask` asks
    #[command(hide = true)]
    ReadRunning(ReadRunningArgs),
    /// Write the man pages
    #[command(hide = true)]
    Man {
        /// The folder to write them to
        folder: PathBuf,
    },
}

/// Options of the hidden `bcachectl read-running`.
#[derive(Debug, Args)]
pub struct ReadRunningArgs {
    /// The folder that sys is in
    pub root: PathBuf,

    /// Read the superblocks of backing devices, too
    #[arg(long)]
    pub superblocks: bool,

    /// Read only what a view has
    #[arg(long)]
    pub of_view: bool,

    /// Read priority_stats, too
    #[arg(long)]
    pub priorities: bool,
}

/// The whole command line, as clap sees it.
pub fn command() -> clap::Command {
    Cli::command()
}
