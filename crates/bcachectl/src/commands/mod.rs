//! The commands.

pub mod invalidate;
pub mod make;
pub mod show;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::is_broken_pipe;
use bcache_cli::out::Out;
use clap::{CommandFactory, FromArgMatches};

use crate::cli::{Cli, Command};
use crate::exit::{ExitError, Failure};
use crate::man;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let submatches = matches.subcommand().map(|(_, submatches)| submatches);
    let result = match (&cli.command, submatches) {
        (Command::Make(args), Some(submatches)) => make::run(args, submatches),
        (Command::Show(args), _) => show::run(args),
        (Command::Invalidate(args), _) => invalidate::run(args),
        (Command::Completions { shell }, _) => completions(*shell),
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

fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bcachectl", &mut script);
    let mut out = Out::stdout();
    out.write_all(&script)?;
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}
