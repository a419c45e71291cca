//! `bcache-bench replay`.

use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_cli::confirm::{is_yes, prompt};
use bcache_cli::out::Out;
use bcache_cli::progress::Progress;

use bcache_core::device::{FileDevice, open_write};

use crate::cli::ReplayArgs;
use crate::exit::{ExitError, Failure};
use crate::interrupt;
use crate::num::{float, whole};
use crate::replay::cells::Cell;
use crate::replay::device::DeviceFigures;
use crate::replay::plan;
use crate::replay::report::ReplayReport;
use crate::replay::run::{Live, RunOptions, run as run_cells};
use crate::replay::{device, render};
use crate::report::export::{ExportFormat, ExportTo};
use crate::trace::{LoadOptions, Source, Trace, TraceError, load_until, open};

/// How often progress is looked at.
const PERIOD: Duration = Duration::from_millis(100);

/// Runs `bcache-bench replay`.
pub fn run(args: &ReplayArgs) -> Result<ExitCode> {
    // Before anything takes time.
    let mut files = args.export.clone();
    let svg =
        args.svg.iter().map(|path| ExportTo { format: ExportFormat::Svg, path: path.clone() });
    files.export.extend(svg);
    let exports = files.open::<ReplayReport>(&args.traces)?;
    let stop = interrupt::install().context("cannot catch signals")?;
    let trace = read(args, &stop)?;
    // Ctrl-C while the trace was read ended the trace, not the replay.
    stop.store(false, Ordering::Relaxed);
    let cells = plan::cells(&args.wanted(), footprint(&trace, args.sample));
    let device = args.device.as_deref().map(|path| claim(path, &trace, args.yes)).transpose()?;
    let (results, interrupted) = replay(&trace, &cells, args, &stop)?;
    let mut report = ReplayReport::new(&trace, results, &args.settings(), interrupted);
    if let (Some(device), false) = (&device, interrupted) {
        report.device = Some(on_device(&trace, device, args, &stop)?);
    }
    let printed = print(args, &report);
    // Whoever reads no further has seen enough, and wants the files all the same.
    if !interrupted || !report.cells.is_empty() {
        exports.write(&report)?;
    }
    printed?;
    Ok(if interrupted { Failure::Interrupted.into() } else { ExitCode::SUCCESS })
}

fn print(args: &ReplayArgs, report: &ReplayReport) -> Result<()> {
    let mut out = Out::stdout();
    if args.json {
        out.json(report)?;
    } else if args.csv {
        render::csv(report, &mut out)?;
    } else if args.markdown {
        render::markdown(report, &mut out)?;
    } else {
        render::text(report, &mut out)?;
    }
    out.finish()
}

fn read(args: &ReplayArgs, stop: &AtomicBool) -> Result<Trace> {
    let source =
        Source { paths: args.traces.clone(), format: args.format, columns: args.columns.clone() };
    let name = || args.traces.first().map_or_else(String::new, |path| path.display().to_string());
    let requests = open(&source).map_err(|error| match error {
        TraceError::Io { .. } => error.into(), // names the file itself
        error => anyhow::Error::from(error).context(name()),
    })?;
    let options = LoadOptions {
        sample: args.sample,
        ignore_times: args.ignore_times,
        one_task: args.one_task,
        async_writes: args.async_writes,
    };
    load_until(requests, &options, stop).with_context(name)
}

/// The footprint of the whole trace, of which a part was kept.
fn footprint(trace: &Trace, sample: f64) -> u64 {
    whole(float(trace.summary.footprint_bytes) / sample)
}

/// Opens a device for requests, after asking where some of them write.
fn claim(path: &Path, trace: &Trace, yes: bool) -> Result<FileDevice> {
    let device = open_write(path)?;
    device::check_fits(trace, &device)?;
    let summary = &trace.summary;
    if yes || summary.writes.requests + summary.discards.requests == 0 {
        return Ok(device);
    }
    if !io::stdin().is_terminal() {
        bail!("everything on {} would be lost; --yes goes on without asking", path.display());
    }
    let question = format!("Everything on {} will be lost. Go on? [y/N] ", path.display());
    if !is_yes(&prompt(&question)?) {
        bail!("nothing was done");
    }
    Ok(device)
}

fn on_device(
    trace: &Trace,
    device: &FileDevice,
    args: &ReplayArgs,
    stop: &AtomicBool,
) -> Result<DeviceFigures> {
    let timed = trace.summary.has_times && !args.ignore_times;
    device::replay(trace, device, timed, stop)
        .map_err(|error| ExitError::wrap(Failure::Partial, error))
}

fn replay(
    trace: &Trace,
    cells: &[Cell],
    args: &ReplayArgs,
    stop: &Arc<AtomicBool>,
) -> Result<(Vec<crate::replay::cells::CellResult>, bool)> {
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok());
    let options = RunOptions {
        block_bytes: args.block,
        sample: args.sample,
        tbw_bytes: args.tbw,
        seeds: args.seeds,
        jobs: jobs.map_or(1, NonZeroUsize::get),
    };
    let live = Live::default();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut progress = Progress::new("replay");
            while !ended.load(Ordering::Relaxed) {
                if stop.load(Ordering::Relaxed) {
                    live.stop.store(true, Ordering::Relaxed);
                }
                let done = live.done.load(Ordering::Relaxed);
                progress.set("requests", done, live.total.load(Ordering::Relaxed));
                std::thread::sleep(PERIOD);
            }
            progress.finish();
        });
        let results = run_cells(trace, cells, &options, &live);
        ended.store(true, Ordering::Relaxed);
        results
    })
}
