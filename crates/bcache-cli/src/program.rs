//! How a command begins and ends: its command line, its errors, its completions.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgMatches, Command, FromArgMatches};
use clap_complete::Shell;

use crate::exit::{ExitError, REFUSED, USAGE, told};
use crate::out::{Out, of_stdout};
use crate::{completions, is_broken_pipe, usage};

/// Version with the git revision that it was built from, for a release build inside a git tree.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("BCACHE_REVISION_SUFFIX"));

/// One of the commands that this package installs.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Makes its parser.
    pub command: fn() -> Command,
    /// What its user is to do about an error, in lines; often nothing.
    pub advise: fn(&anyhow::Error) -> Vec<String>,
}

impl Program {
    /// Runs what the command line of this process asks for: `C` as clap fills it in.
    pub fn main<C: FromArgMatches>(
        &self,
        run: impl FnOnce(&C, &ArgMatches) -> Result<ExitCode>,
    ) -> ExitCode {
        let parsed = (self.command)()
            .try_get_matches()
            .and_then(|matches| Ok((C::from_arg_matches(&matches)?, matches)));
        match parsed {
            Ok((cli, matches)) => self.finish(run(&cli, &matches)),
            // Help was asked for, or the line makes no sense.
            Err(error) => self.explain(&error),
        }
    }

    /// Prints help or what is wrong with the command line.
    fn explain(&self, error: &clap::Error) -> ExitCode {
        use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as NothingGiven;
        if !error.use_stderr() {
            // Standard output is flushed here: at the end of the process nobody sees it fail.
            let printed = error.print().and_then(|()| io::stdout().flush());
            return match printed {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    self.say(&of_stdout(error));
                    REFUSED.into()
                }
                _ => ExitCode::SUCCESS,
            };
        }
        if error.kind() == NothingGiven {
            // Nothing is left to be done where standard error is closed.
            let _ = error.print();
            return USAGE.into();
        }
        self.say(&usage::message(error));
        let command = std::env::args().nth(1).filter(|word| {
            (self.command)().get_subcommands().any(|command| command.get_name() == word)
        });
        let invocation =
            command.map_or_else(|| self.name.into(), |it| format!("{} {it}", self.name));
        let _ = writeln!(io::stderr(), "Try '{invocation} --help'.");
        USAGE.into()
    }

    /// The status of what was run; an error is told on standard error. A reader of the output that
    /// goes away is told nothing, and is an error only to a command that gives it a status.
    fn finish(&self, result: Result<ExitCode>) -> ExitCode {
        match result {
            Ok(code) => code,
            Err(error) if is_broken_pipe(&error) => {
                let exit = error.downcast_ref::<ExitError>();
                exit.map_or(ExitCode::SUCCESS, |exit| exit.status.into())
            }
            Err(error) => {
                self.say(&told(&error));
                for line in (self.advise)(&error) {
                    let _ = writeln!(io::stderr(), "{line}");
                }
                ExitError::status_of(&error)
            }
        }
    }

    /// Prints completions for a shell.
    pub fn completions(&self, shell: Shell) -> Result<ExitCode> {
        let mut out = Out::stdout();
        out.write_all(&completions::script(&(self.command)(), self.name, shell))?;
        out.finish()?;
        Ok(ExitCode::SUCCESS)
    }

    fn say(&self, message: &dyn std::fmt::Display) {
        // Nothing is left to be done where standard error is closed, too.
        let _ = writeln!(io::stderr(), "{}: {message}", self.name);
    }
}
