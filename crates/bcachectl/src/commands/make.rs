//! `bcachectl make`: gather facts, plan, show, confirm, write, verify.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use bcache_cli::out::Out;
use bcache_cli::{confirm, is_broken_pipe, table};
use bcache_core::device::{DeviceError, DeviceKind};
use bcache_core::layout::superblock::{Kind, Superblock};
use bcache_core::ops::make::{
    self, DevicePlan, GatherError, Leftover, LoseDirtyData, Options, Outcome, gather,
    open_for_real, try_claims,
};
use bcache_core::ops::plan::Step;
use bcache_core::ops::undo::UndoLog;
use bcache_core::units::{Sectors, format_bytes};
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use super::undo;
use crate::cli::MakeArgs;
use crate::exit::{ExitError, Failure};
use crate::render::device::{self, DeviceReport, KernelReport};
use crate::render::make_words;
use crate::scan;

/// Bars appear for plans of at least this many bytes to discard or write.
const PROGRESS_BYTES: u64 = 64 << 20;

/// The JSON output.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    devices: Vec<MadeDevice>,
}

#[derive(Serialize)]
struct MadeDevice {
    #[serde(flatten)]
    device: DeviceReport,
    /// What became of the device.
    state: State,
    /// Whether the superblock is on the device now.
    formatted: bool,
    /// Whether the image file is new.
    created: bool,
    destroys: Vec<String>,
    notes: Vec<String>,
    steps: Vec<StepReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What became of a device.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// The superblock is on it, and was read back.
    Formatted,
    /// Neither what it was nor formatted.
    Undefined,
    /// What it was. An image that was new is gone again.
    Untouched,
}

#[derive(Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum StepReport {
    Write { what: String, offset_bytes: u64, bytes: u64 },
    Discard { offset_bytes: u64, bytes: u64 },
    Flush,
}

impl From<&Step> for StepReport {
    fn from(step: &Step) -> Self {
        match step {
            Step::Write { kind, offset, data } => Self::Write {
                what: kind.to_string(),
                offset_bytes: *offset,
                bytes: data.len() as u64,
            },
            Step::Zero { kind, offset, len } => {
                Self::Write { what: kind.to_string(), offset_bytes: *offset, bytes: *len }
            }
            Step::Discard { offset, len } => Self::Discard { offset_bytes: *offset, bytes: *len },
            Step::Flush => Self::Flush,
        }
    }
}

/// Runs `bcachectl make`.
pub fn run(args: &MakeArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let usage = |error: anyhow::Error| ExitError::wrap(Failure::Usage, error);
    let devices = args.devices(matches).map_err(|error| usage(error.into()))?;
    let facts = gather(&devices, args.size, Some(scan::backing_devices)).map_err(|error| {
        let is_usage = matches!(error, GatherError::Devices(_));
        let error = make_words::gathering(error);
        if is_usage { usage(error) } else { error }
    })?;
    // Data that exists nowhere else is given up by an option, or by a person who is asked.
    let may_ask = io::stdin().is_terminal() && !args.yes;
    let mut options = args.options();
    let is_given = options.lose_dirty_data != LoseDirtyData::Refused;
    if may_ask && !is_given {
        options.lose_dirty_data = LoseDirtyData::Allowed;
    }
    options.set_block_size = set_block_size(&options, &devices);
    let plans = make::plan(&options, facts, &mut Uuid::new_v4).map_err(|error| {
        let words = anyhow!(make_words::refusal(&error));
        if make_words::is_usage(&error) { usage(words) } else { words }
    })?;

    let mut out = Out::stdout();
    if args.dry_run {
        try_claims(&plans)?;
        render(&mut out, args, &plans, &Outcome::default())?;
        out.finish()?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !confirm::destroys(&plans, !is_given)? {
        bail!("nothing was written");
    }
    let undo = undo::log(args.undo.as_deref(), "make")?;
    let outcome = write(&plans, undo.as_ref());
    undo::tell(undo.as_ref());
    // What became of the devices is said even where nobody reads standard output any more.
    let rendered = render(&mut out, args, &plans, &outcome).and_then(|()| out.finish());
    for leftover in &outcome.leftovers {
        let _ = writeln!(io::stderr(), "bcachectl: warning: {}", leftover_text(leftover));
    }
    if outcome.failed.is_some() {
        return Err(failure(outcome));
    }
    match rendered {
        // A reader that had enough is no failure.
        Err(error) if !is_broken_pipe(&error) => {
            let done = format!(
                "formatted: {}; but the report could not be written",
                list(&outcome.formatted)
            );
            Err(ExitError::wrap(Failure::Partial, error.context(done)))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The block size of the set that backing devices are made for: of its cache in this machine, where
/// that is made neither now nor yet.
fn set_block_size(options: &Options, devices: &[(Kind, PathBuf)]) -> Option<Sectors> {
    let set_uuid = options.set_uuid?;
    if devices.iter().any(|(kind, _)| *kind == Kind::Cache) {
        return None;
    }
    let scan = scan::machine().ok()?;
    scan.devices
        .iter()
        .filter_map(|device| device.area.superblock())
        .find(|sb| sb.kind() == Some(Kind::Cache) && sb.csum_ok() && sb.set_uuid() == set_uuid)
        .map(Superblock::block_size)
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn write(plans: &[DevicePlan], undo: Option<&UndoLog>) -> Outcome {
    let mut bars: HashMap<PathBuf, ProgressBar> = HashMap::new();
    let outcome = make::run_with_undo(plans, undo, &mut open_for_real, &mut |plan, bytes| {
        let total = plan.plan.write_bytes() + plan.plan.discard_sectors().bytes();
        if total < PROGRESS_BYTES {
            return;
        }
        let path = &plan.facts.info.path;
        bars.entry(path.clone()).or_insert_with(|| bar(path, total)).inc(bytes);
    });
    for bar in bars.values() {
        bar.finish_and_clear();
    }
    outcome
}

fn bar(path: &Path, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_prefix(path.display().to_string())
}

fn leftover_text(leftover: &Leftover) -> String {
    match leftover {
        Leftover::Partitions { path, error } => partitions_left(path, error),
        Leftover::Signatures { path, found } => {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            format!("{} still carries {} besides bcache", path.display(), found.join(", "))
        }
        Leftover::Unprobed { path, error } => {
            format!("{} cannot be probed again: {}", path.display(), in_full(error))
        }
    }
}

/// That the kernel still offers partitions of a disk whose table is gone, and what to do.
pub(super) fn partitions_left(disk: &Path, error: &DeviceError) -> String {
    let disk = disk.display();
    format!("{}; have it forget them with partx --delete {disk}", in_full(error))
}

/// The error of a run that failed: why, and what became of each device.
fn failure(outcome: Outcome) -> anyhow::Error {
    let Outcome { formatted, failed, untouched, removed, .. } = outcome;
    let Some((path, error)) = failed else { return anyhow!("nothing failed") };
    let wrote = error.may_have_written();
    let mut state = Vec::new();
    if !formatted.is_empty() {
        state.push(format!("formatted: {}", list(&formatted)));
    }
    if wrote && !removed.contains(&path) {
        state.push(format!(
            "in an undefined state, neither what it was nor formatted: {}",
            path.display()
        ));
    }
    let rest = untouched.into_iter().filter(|it| *it != path && !removed.contains(it));
    let untouched: Vec<_> = rest.collect();
    let error = anyhow::Error::from(error);
    if !wrote && formatted.is_empty() {
        return error.context("no device was written");
    }
    if !untouched.is_empty() {
        state.push(format!("not written: {}", list(&untouched)));
    }
    if !removed.is_empty() {
        state.push(format!("new and removed again: {}", list(&removed)));
    }
    ExitError::wrap(Failure::Partial, error.context(format!("stopped ({})", state.join("; "))))
}

fn render(out: &mut Out, args: &MakeArgs, plans: &[DevicePlan], outcome: &Outcome) -> Result<()> {
    let devices: Vec<MadeDevice> = plans.iter().map(|plan| made(plan, outcome)).collect();
    if args.json {
        return out.json(&Report { dry_run: args.dry_run, devices });
    }
    for made in &devices {
        let path = made.device.path.display();
        match (&made.error, made.state) {
            // The superblock that was to be written would pass for one that is there.
            (Some(error), State::Undefined) => {
                writeln!(out, "{path}: in an undefined state, not formatted: {error}")?;
            }
            (Some(error), _) => writeln!(out, "{path}: not formatted: {error}")?,
            (None, State::Formatted) => device::render(out, &made.device)?,
            (None, _) if args.dry_run => {
                writeln!(out, "would be formatted:")?;
                device::render(out, &made.device)?;
            }
            (None, _) => writeln!(out, "{path}: not formatted")?,
        }
        for note in &made.notes {
            writeln!(out, "note: {note}")?;
        }
        if args.dry_run {
            for what in &made.destroys {
                writeln!(out, "would destroy: {what}")?;
            }
            let mut steps = table::table(out.style(), &["step", "what", "offset", "length"]);
            for step in &made.steps {
                let (name, what, offset, bytes) = match step {
                    StepReport::Write { what, offset_bytes, bytes } => {
                        ("write", what.as_str(), *offset_bytes, *bytes)
                    }
                    StepReport::Discard { offset_bytes, bytes } => {
                        ("discard", "", *offset_bytes, *bytes)
                    }
                    StepReport::Flush => {
                        steps.add_row(["flush"]);
                        continue;
                    }
                };
                steps.add_row([name, what, &offset.to_string(), &format_bytes(bytes)]);
            }
            writeln!(out, "{steps}")?;
        }
        writeln!(out)?;
    }
    summary(out, plans, outcome)
}

/// What was made, and what to do next.
fn summary(out: &mut Out, plans: &[DevicePlan], outcome: &Outcome) -> Result<()> {
    let made = || plans.iter().filter(|plan| outcome.formatted.contains(&plan.facts.info.path));
    if made().next().is_none() {
        return Ok(());
    }
    let counts: Vec<String> = [Kind::Cache, Kind::Backing]
        .into_iter()
        .map(|kind| (kind, made().filter(|plan| plan.facts.kind == kind).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| make_words::count(kind, count))
        .collect();
    writeln!(out, "{} formatted", counts.join(" and "))?;
    let devices = made().filter(|plan| plan.facts.info.kind == DeviceKind::Block);
    let paths: Vec<String> =
        devices.map(|plan| device::shell_quoted(&plan.facts.info.path)).collect();
    if !paths.is_empty() {
        writeln!(out, "next, unless udev has registered them already:")?;
        writeln!(out, "  bcachectl register {}", paths.join(" "))?;
    }
    Ok(())
}

fn made(plan: &DevicePlan, outcome: &Outcome) -> MadeDevice {
    let path = &plan.facts.info.path;
    let failed = outcome.failed.as_ref().filter(|(failed, _)| failed == path);
    let mut device = DeviceReport::of_superblock(&plan.facts.info, Some(&plan.superblock));
    device.kernel = KernelReport {
        accepts: true,
        error: None,
        warnings: plan.warnings.iter().map(ToString::to_string).collect(),
    };
    let formatted = outcome.formatted.contains(path);
    let wrote = failed.is_some_and(|(_, error)| error.may_have_written());
    let state = match (formatted, wrote && !outcome.removed.contains(path)) {
        (true, _) => State::Formatted,
        (false, true) => State::Undefined,
        (false, false) => State::Untouched,
    };
    MadeDevice {
        device,
        state,
        formatted,
        created: plan.facts.create,
        destroys: plan.destroys.iter().map(ToString::to_string).collect(),
        notes: plan.notes.iter().map(make_words::note).collect(),
        steps: plan.plan.steps.iter().map(StepReport::from).collect(),
        error: failed.map(|(_, error)| in_full(error)),
    }
}

/// An error with its causes.
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
