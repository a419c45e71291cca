//! `bcachectl undo`, and the files of --undo that it reads.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_cli::confirm;
use bcache_cli::out::Out;
use bcache_cli::progress::Progress;
use bcache_core::device::{BlockDevice, FileDevice, FileReader, ReadDevice, open_unused};
use bcache_core::ops::undo::{UndoCheck, UndoError, UndoFile, UndoLog};
use bcache_core::units::format_bytes;
use serde::Serialize;

use super::writeback::{claim, in_use};
use crate::cli::UndoArgs;
use crate::exit::{ExitError, Failure};

/// The log for --undo of `command`, where it is given.
pub(super) fn log(path: Option<&Path>, command: &str) -> Result<Option<UndoLog>> {
    path.map(|path| UndoLog::new(path, command).context("nothing was written")).transpose()
}

/// Says on standard error that something can be undone, where something was saved.
pub(super) fn tell(log: Option<&UndoLog>) {
    if let Some(path) = log.map(UndoLog::path).filter(|path| path.exists()) {
        // What became of the command matters more than that this could not be said.
        let _ = writeln!(
            io::stderr(),
            "bcachectl: {} has what was there before; `bcachectl undo` puts it back",
            path.display()
        );
    }
}

/// The output in JSON; the man page documents the keys.
#[derive(Serialize)]
struct Json<'a> {
    state: &'static str,
    command: &'a str,
    devices: Vec<DeviceJson<'a>>,
}

#[derive(Serialize)]
struct DeviceJson<'a> {
    path: &'a Path,
    saved_path: &'a Path,
    size_bytes: u64,
    differing_bytes: u64,
}

/// Runs `bcachectl undo`.
pub fn run(args: &UndoArgs) -> Result<ExitCode> {
    let file = UndoFile::open(&args.file).map_err(refused)?;
    let saved: Vec<PathBuf> = file.devices().iter().map(|device| device.path.clone()).collect();
    let paths = if args.devices.is_empty() { saved } else { args.devices.clone() };
    if args.dry_run {
        let devices: Vec<FileReader> =
            paths.iter().map(|path| open_unused(path).map_err(in_use)).collect::<Result<_>>()?;
        let readers: Vec<&dyn ReadDevice> =
            devices.iter().map(|it| it as &dyn ReadDevice).collect();
        let check = check(&file, &readers)?;
        let state = if check.is_nothing() { State::Nothing } else { State::Planned };
        show(args, &file, &paths, &check, state)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Held from here on, so that nothing changes between check and write.
    let devices: Vec<FileDevice> = paths.iter().map(|path| claim(path)).collect::<Result<_>>()?;
    if !args.script.yes && !io::stdin().is_terminal() {
        bail!(
            "no terminal to ask on: give --yes to undo, or --dry-run to see what would be put back; \
             nothing was written"
        );
    }
    let readers: Vec<&dyn ReadDevice> = devices.iter().map(|it| it as &dyn ReadDevice).collect();
    let check = check(&file, &readers)?;
    if check.is_nothing() {
        show(args, &file, &paths, &check, State::Nothing)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.script.yes {
        text(&mut io::stderr(), &file, &paths, &check, State::Planned)?;
        if !confirm::go_on()? {
            bail!("nothing was written");
        }
    }
    let writers: Vec<&dyn BlockDevice> = devices.iter().map(|it| it as &dyn BlockDevice).collect();
    let mut bar = Progress::new("putting back");
    file.put_back(&writers, &mut |done, total| bar.set("bytes", done, total)).map_err(failed)?;
    bar.finish();
    show(args, &file, &paths, &check, State::Done)?;
    Ok(ExitCode::SUCCESS)
}

fn check(file: &UndoFile, devices: &[&dyn ReadDevice]) -> Result<UndoCheck> {
    let mut bar = Progress::new("comparing");
    file.check(devices, &mut |done, total| bar.set("bytes", done, total)).map_err(refused)
}

fn refused(error: UndoError) -> anyhow::Error {
    anyhow::Error::from(error).context("nothing was written")
}

fn failed(error: UndoError) -> anyhow::Error {
    let (failure, what) = match &error {
        UndoError::Differs { .. } => {
            (Failure::Undefined, "a device did not keep what was written to it")
        }
        _ => (
            Failure::Partial,
            "a part of it is put back; until the rest is, do not register the devices. Run the \
             command again",
        ),
    };
    ExitError::wrap(failure, anyhow::Error::from(error).context(what))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Planned,
    Nothing,
    Done,
}

fn show(
    args: &UndoArgs,
    file: &UndoFile,
    paths: &[PathBuf],
    check: &UndoCheck,
    state: State,
) -> Result<()> {
    let mut out = Out::stdout();
    if args.script.json {
        let devices = paths.iter().zip(file.devices()).zip(&check.differing_bytes);
        out.json(&Json {
            state: match state {
                State::Planned => "planned",
                State::Nothing => "nothing",
                State::Done => "done",
            },
            command: file.command(),
            devices: devices
                .map(|((path, saved), differing)| DeviceJson {
                    path,
                    saved_path: &saved.path,
                    size_bytes: saved.size_bytes,
                    differing_bytes: *differing,
                })
                .collect(),
        })?;
    } else {
        text(&mut out, file, paths, check, state)?;
    }
    out.finish()
}

fn text(
    out: &mut dyn Write,
    file: &UndoFile,
    paths: &[PathBuf],
    check: &UndoCheck,
    state: State,
) -> Result<()> {
    let command = file.command();
    match state {
        State::Planned => writeln!(out, "what bcachectl {command} overwrote would be put back:")?,
        State::Done => writeln!(out, "what bcachectl {command} overwrote is put back:")?,
        State::Nothing => {
            writeln!(out, "nothing to put back: all is as it was before bcachectl {command}")?;
            return Ok(());
        }
    }
    for (path, bytes) in paths.iter().zip(&check.differing_bytes) {
        writeln!(out, "  {}: {}", path.display(), format_bytes(*bytes))?;
    }
    Ok(())
}
