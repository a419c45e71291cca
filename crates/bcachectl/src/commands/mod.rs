//! The commands.

pub mod check;
mod copies;
pub mod export;
mod holding;
pub mod image;
pub mod invalidate;
pub mod list;
pub mod make;
pub mod repair;
pub mod running;
pub mod serve;
pub mod show;
pub mod source;
pub mod undo;
pub mod writeback;

use std::process::ExitCode;

use bcache_cli::program::Program;

use crate::cli::{self, Cli, Command};
use crate::compat;
use crate::exit::Failure;
use crate::{ask, man, scan, stakes};

/// The command.
const PROGRAM: Program =
    Program { name: "bcachectl", command: cli::command, advise: stakes::about_error };

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    PROGRAM.main(|cli: &Cli, matches| {
        let submatches = matches.subcommand().map(|(_, submatches)| submatches);
        match (&cli.command, submatches) {
            (Command::Make(args), Some(submatches)) => make::run(args, submatches),
            (Command::Show(args), _) => show::run(args),
            (Command::List(args), _) => list::run(args),
            (Command::Check(args), _) => check::run(args),
            (Command::Invalidate(args), _) => invalidate::run(args),
            (Command::Export(args), _) => export::run(args),
            (Command::Serve(args), _) => serve::run(args),
            (Command::Writeback(args), _) => writeback::run(args),
            (Command::Undo(args), _) => undo::run(args),
            (Command::Image(args), _) => image::run(args),
            (Command::Register(args), _) => running::register(args),
            (Command::Attach(args), _) => running::attach(args),
            (Command::Detach(args), _) => running::detach(args),
            (Command::Flush(args), _) => running::flush(args),
            (Command::Stop(args), _) => running::stop(args),
            (Command::Unregister(args), _) => running::unregister(args),
            (Command::Run(args), _) => running::run(args),
            (Command::Label(args), _) => running::label(args),
            (Command::Volume(args), _) => running::volume(args),
            (Command::Resize(args), _) => running::resize(args),
            (Command::ReplaceCache(args), _) => running::replace_cache(args),
            (Command::Set(args), _) => running::set(args),
            (Command::Get(args), _) => running::get(args),
            (Command::Settings(args), _) => running::settings(args),
            (Command::Status(args), _) => running::status(args),
            (Command::Top(args), _) => running::top(args),
            (Command::ReadSuperblocks, _) => scan::serve(),
            (Command::ReadRunning(args), _) => ask::serve(args),
            (Command::Completions { shell, old_name: None }, _) => PROGRAM.completions(*shell),
            (Command::Completions { shell, old_name: Some(name) }, _) => {
                compat::completions(name, *shell)
            }
            (Command::Repair(args), _) => repair::run(args),
            (Command::Man { folder }, _) => man::write(folder).map(|()| ExitCode::SUCCESS),
            (Command::Make(_), None) => Ok(Failure::Usage.into()),
        }
    })
}
