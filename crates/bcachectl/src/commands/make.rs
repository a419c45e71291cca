//! `bcachectl make`: gather facts, plan, show, confirm, write, verify.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_cli::confirm;
use bcache_cli::out::Out;
use bcache_cli::table;
use bcache_core::device::probe::probe;
use bcache_core::layout::superblock::Kind;
use bcache_core::ops::make::{
    self, DeviceFacts, DevicePlan, Outcome, RunError, check_distinct, facts_of, facts_of_new_image,
    open_for_real,
};
use bcache_core::ops::plan::Step;
use bcache_core::units::format_bytes;
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use crate::cli::MakeArgs;
use crate::exit::{ExitError, Failure};
use crate::render::device::{self, DeviceReport, KernelReport};

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
    let paths: Vec<PathBuf> = devices.iter().map(|(_, path)| path.clone()).collect();
    check_distinct(&paths)?;
    let facts = devices
        .into_iter()
        .map(|(kind, path)| gather(kind, &path, args.size))
        .collect::<Result<Vec<_>>>()?;
    let plans = make::plan(&args.options(), facts, &mut Uuid::new_v4)?;

    let mut out = Out::stdout();
    if args.dry_run {
        render(&mut out, args, &plans, &Outcome::default())?;
        out.finish()?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !confirm::destroys(&plans)? {
        bail!("nothing was written");
    }
    let outcome = write(&plans);
    // What became of the devices is said even where nobody reads standard output any more.
    let rendered = render(&mut out, args, &plans, &outcome).and_then(|()| out.finish());
    leftovers(&outcome.formatted);
    match outcome.failed {
        None => rendered.map(|()| ExitCode::SUCCESS),
        Some((path, error)) => Err(failure(&path, error, &outcome.formatted, &outcome.untouched)),
    }
}

fn gather(kind: Kind, path: &Path, size: Option<u64>) -> Result<DeviceFacts> {
    match (size, path.try_exists()) {
        (Some(size), Ok(false)) => Ok(facts_of_new_image(kind, path, size)),
        (Some(_), Ok(true)) => bail!(
            "{} exists; --size is for image files that do not (leave it out to use the file)",
            path.display()
        ),
        (None, Ok(false)) => {
            bail!("{} does not exist; to make it as an image file, give its --size", path.display())
        }
        (_, Err(error)) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
        (None, Ok(true)) => Ok(facts_of(kind, path)?),
    }
}

fn write(plans: &[DevicePlan]) -> Outcome {
    let mut bars: HashMap<PathBuf, ProgressBar> = HashMap::new();
    let outcome = make::run(plans, &mut open_for_real, &mut |plan, bytes| {
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

/// Tells of signatures that survived; a device with two of them confuses the next tool.
fn leftovers(formatted: &[PathBuf]) {
    for path in formatted {
        let warning = match probe(path) {
            Ok(found) => {
                let others: Vec<_> =
                    found.iter().filter(|it| !it.is_bcache()).map(ToString::to_string).collect();
                if others.is_empty() {
                    continue;
                }
                format!("still carries {} besides bcache", others.join(", "))
            }
            Err(error) => format!("cannot be probed again: {:#}", anyhow::Error::from(error)),
        };
        let _ = writeln!(io::stderr(), "bcachectl: warning: {} {warning}", path.display());
    }
}

fn failure(
    path: &Path,
    error: RunError,
    formatted: &[PathBuf],
    untouched: &[PathBuf],
) -> anyhow::Error {
    let list = |paths: &[PathBuf]| {
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    let wrote = error.may_have_written();
    if !wrote && formatted.is_empty() {
        return anyhow::Error::from(error).context("no device was written");
    }
    let mut state = Vec::new();
    if !formatted.is_empty() {
        state.push(format!("formatted: {}", list(formatted)));
    }
    if wrote {
        state.push(format!(
            "in an undefined state, neither what it was nor formatted: {}",
            path.display()
        ));
    }
    let untouched: Vec<_> = untouched.iter().filter(|it| it.as_path() != path).cloned().collect();
    if !untouched.is_empty() {
        state.push(format!("not written: {}", list(&untouched)));
    }
    let error = anyhow::Error::from(error).context(format!("stopped ({})", state.join("; ")));
    ExitError::wrap(Failure::Partial, error)
}

fn render(out: &mut Out, args: &MakeArgs, plans: &[DevicePlan], outcome: &Outcome) -> Result<()> {
    let devices: Vec<MadeDevice> = plans.iter().map(|plan| made(plan, outcome)).collect();
    if args.json {
        return out.json(&Report { dry_run: args.dry_run, devices });
    }
    for made in &devices {
        let would = if args.dry_run { "would be" } else { "not" };
        if made.formatted {
            device::render(out, &made.device)?;
        } else if args.dry_run || made.error.is_some() {
            writeln!(out, "{would} formatted:")?;
            device::render(out, &made.device)?;
        } else {
            writeln!(out, "{}: not formatted", made.device.path.display())?;
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
    Ok(())
}

fn made(plan: &DevicePlan, outcome: &Outcome) -> MadeDevice {
    let path = &plan.facts.info.path;
    let failed = outcome.failed.as_ref().filter(|(failed, _)| failed == path);
    let mut device = DeviceReport::new(&plan.facts.info, Some(&plan.superblock));
    device.kernel = KernelReport {
        accepts: true,
        error: None,
        warnings: plan.warnings.iter().map(ToString::to_string).collect(),
    };
    MadeDevice {
        device,
        formatted: outcome.formatted.contains(path),
        created: plan.facts.create,
        destroys: plan.destroys.clone(),
        notes: plan.notes.iter().map(ToString::to_string).collect(),
        steps: plan.plan.steps.iter().map(StepReport::from).collect(),
        error: failed.map(|(_, error)| error.to_string()),
    }
}
