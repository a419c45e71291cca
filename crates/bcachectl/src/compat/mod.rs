//! The commands of bcache-tools under their old names, all of them this one program: what it does
//! depends on the name it is called by.
//!
//! Options, texts and exit statuses are those of bcache-tools 1.0.8, which Debian ships, and for
//! `bcache` those of 1.1. Programs parse them, so they stay as they are, tabs included. What differs,
//! and why, is in bcache-tools-compat(7); nothing outside this folder uses it.

mod bcache;
mod cached;
mod definition;
mod getopt;
mod make_bcache;
mod man;
mod probe;
mod register;
mod status;
mod super_show;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bcache_cli::out::Out;
use clap::Command;
use clap_complete::Shell;

pub use definition::commands;
pub use man::pages;

/// How long the kernel's answer is waited for where it is wanted whole.
const LIMIT: Duration = Duration::from_secs(60);

/// How a command was called.
struct Call {
    /// The name it was called by, path included: it stands before messages about options.
    program: String,
    /// The arguments.
    arguments: Vec<OsString>,
}

/// Runs the command whose old name this process was started under; `None` where it is no such name.
pub fn main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let program = arguments.next()?;
    let run = command(Path::new(&program).file_name()?)?;
    let program = program.to_string_lossy().into_owned();
    Some(run(&Call { program, arguments: arguments.collect() }))
}

fn command(name: &OsStr) -> Option<fn(&Call) -> ExitCode> {
    Some(match name.to_str()? {
        "make-bcache" => make_bcache::run,
        "bcache" => bcache::run,
        "bcache-super-show" => super_show::run,
        "probe-bcache" => probe::run,
        "bcache-register" => register::run,
        "bcache-status" => status::run,
        "bcache-export-cached" => cached::run,
        _ => return None,
    })
}

/// The definition of one command.
fn definition(name: &str) -> Command {
    commands().into_iter().find(|command| command.get_name() == name).unwrap_or_default()
}

/// Prints the completions of one command for a shell.
pub fn completions(name: &str, shell: Shell) -> Result<ExitCode> {
    let command = commands()
        .into_iter()
        .find(|command| command.get_name() == name)
        .with_context(|| format!("no command {name}"))?;
    let mut out = Out::stdout();
    out.write_all(&bcache_cli::completions::script(&command, name, shell))?;
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Prints to standard output; that nobody reads it any more is no failure.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// The system's word for an error, without the number that Rust adds.
fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| nix::errno::Errno::from_raw(number).desc().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defined_name_runs() {
        for definition in commands() {
            assert!(command(OsStr::new(definition.get_name())).is_some(), "{definition:?}");
        }
        assert!(command(OsStr::new("bcachectl")).is_none());
    }
}
