//! The commands.

pub mod memory;

use std::io::{self, Write};
use std::process::ExitCode;

use bcache_cli::is_broken_pipe;
use clap::Parser;

use crate::cli::{Cli, Command};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match &Cli::parse().command {
        Command::Invalidate(args) => memory::invalidate(args),
        Command::Bucket(args) => memory::bucket(args),
        Command::Sector(args) => memory::sector(args),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done where standard error is closed, too.
            let _ = writeln!(io::stderr(), "bcache-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
