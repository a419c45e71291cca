//! The commands.

pub mod compare;
pub mod device;
pub mod memory;
pub mod plot;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::is_broken_pipe;
use bcache_cli::out::Out;
use clap::Parser;

use crate::cli::{self, Cli, Command};
use crate::device::run::OnDevices;
use crate::exit::{ExitError, Failure};
use crate::man;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match &Cli::parse().command {
        Command::Device(args) => device::run(args, &mut OnDevices::default()),
        Command::Invalidate(args) => memory::invalidate(args),
        Command::Bucket(args) => memory::bucket(args),
        Command::Sector(args) => memory::sector(args),
        Command::Compare(args) => compare::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Completions { shell } => completions(*shell),
        Command::Man { folder } => man::write(folder).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done where standard error is closed, too.
            let _ = writeln!(io::stderr(), "bcache-bench: {error:#}");
            error.downcast_ref::<ExitError>().map_or(Failure::Refused, |error| error.failure).into()
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "bcache-bench", &mut script);
    let mut out = Out::stdout();
    out.write_all(&script)?;
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}
