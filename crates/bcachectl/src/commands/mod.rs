//! The commands.

pub mod check;
pub mod export;
pub mod invalidate;
pub mod make;
pub mod show;
pub mod source;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::is_broken_pipe;
use bcache_cli::out::Out;
use clap::{CommandFactory, FromArgMatches};

use crate::cli::{Cli, Command};
use crate::exit::{CheckStatus, ExitError, Failure};
use crate::{man, scan};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let submatches = matches.subcommand().map(|(_, submatches)| submatches);
    let result = match (&cli.command, submatches) {
        (Command::Make(args), Some(submatches)) => make::run(args, submatches),
        (Command::Show(args), _) => show::run(args),
        (Command::Check(args), _) => check::run(args),
        (Command::Invalidate(args), _) => invalidate::run(args),
        (Command::Export(args), _) => export::run(args),
        (Command::Completions { shell }, _) => completions(*shell),
        (Command::ReadSuperblocks, _) => scan::serve(),
        (Command::Man { folder }, _) => man::write(folder).map(|()| ExitCode::SUCCESS),
        (Command::Make(_), None) => Ok(Failure::Usage.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done where standard error is closed, too.
            let _ = writeln!(io::stderr(), "bcachectl: {error:#}");
            error.downcast_ref::<ExitError>().map_or(Failure::Refused, |error| error.failure).into()
        }
    }
}

/// Prints what clap has to say: help, or what is wrong with the command line. A check has statuses
/// of its own.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to be done where the stream is closed.
    let _ = error.print();
    let is_check = std::env::args_os().nth(1).is_some_and(|command| command == "check");
    match (error.use_stderr(), is_check) {
        (false, _) => ExitCode::SUCCESS,
        (true, true) => CheckStatus::Usage.into(),
        (true, false) => Failure::Usage.into(),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bcachectl", &mut script);
    let mut out = Out::stdout();
    out.write_all(&script)?;
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}
