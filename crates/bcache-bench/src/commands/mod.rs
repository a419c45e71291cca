//! The commands.

pub mod compare;
pub mod device;
pub mod plot;
pub mod record;
pub mod replay;
pub mod size;

use std::process::ExitCode;

use bcache_cli::program::Program;

use crate::cli::{self, Cli, Command};
use crate::device::run::OnDevices;
use crate::man;

/// The command.
const PROGRAM: Program =
    Program { name: "bcache-bench", command: cli::command, advise: |_| Vec::new() };

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    PROGRAM.main(|cli: &Cli, _| match &cli.command {
        Command::Device(args) => device::run(args, &mut OnDevices::default()),
        Command::Replay(args) => replay::run(args),
        Command::Size(args) => size::run(args),
        Command::Record(args) => record::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Completions { shell } => PROGRAM.completions(*shell),
        Command::Man { folder } => man::write(folder).map(|()| ExitCode::SUCCESS),
    })
}
