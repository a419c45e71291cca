//! `bcache-bench device`: everything around the run itself.
//!
//! Whoever has to be asked is asked first; then files are opened and signals caught; progress is shown
//! while the run lasts; the report is printed and exported when it is over, early or not.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use bcache_cli::is_broken_pipe;
use bcache_cli::out::Out;

use crate::cli::DeviceArgs;
use crate::device::trace::TraceFile;
use crate::device::{DevicePlan, DeviceRun, RunContext};
use crate::exit::{ExitError, Failure};
use crate::interrupt;
use crate::progress::{Live, Progress};
use crate::report::export::{ExportError, Exports};
use crate::report::plot::PlotError;
use crate::report::{Report, table};

/// Runs `bcache-bench device` with `runner` doing the work.
pub fn run(args: &DeviceArgs, runner: &mut impl DeviceRun) -> Result<ExitCode> {
    let plan = args.plan().map_err(|error| ExitError::wrap(Failure::Usage, error))?;
    // Before the signals are caught: Ctrl-C where it is asked whether to go on means no.
    runner.prepare(&plan)?;
    let mut exports = open_exports(&plan)?;
    let trace = exports.take_trace()?.map(|(path, file)| Arc::new(TraceFile::new(path, file)));
    // Before anything starts a thread.
    let stop = interrupt::install()?;
    let context = RunContext { stop, live: Live::new(plan.writers.get()), trace };
    let mut out = Out::stdout();
    let mut interrupted = false;
    carry_out(&plan, &context, runner, exports, |report| {
        interrupted = report.interrupted;
        if args.json {
            out.json(report)?;
        } else {
            let style = out.style();
            table::render(&mut out, style, report)?;
        }
        out.finish()
    })?;
    Ok(if interrupted { Failure::Interrupted.into() } else { ExitCode::SUCCESS })
}

/// Opens the files that the report goes to, which must not be what the run writes to.
fn open_exports(plan: &DevicePlan) -> Result<Exports> {
    let exports = Exports::open::<Report>(&plan.exports)?;
    exports.check_apart_from(plan.target.paths())?;
    Ok(exports)
}

/// The run, and what becomes of its report. `print` gets that first, so that it is seen even if an export
/// fails; and where it cannot be printed, it is exported all the same.
fn carry_out(
    plan: &DevicePlan,
    context: &RunContext,
    runner: &mut impl DeviceRun,
    exports: Exports,
    print: impl FnOnce(&Report) -> Result<()>,
) -> Result<()> {
    let progress = Progress::start(&context.live)?;
    let result = runner.run(plan, context);
    drop(progress);
    // First: whoever reads the report may take its time.
    let left = runner.put_down();
    let traced = context.trace.as_ref().map_or(Ok(()), |trace| trace.finish());
    let shown = result.and_then(|report| show(&report, exports, print));
    // The devices have been written by now.
    let shown = shown.and(traced.map_err(|error| ExitError::wrap(Failure::Partial, error)));
    match (shown, left) {
        // Why the run failed is most likely why this did.
        (Err(error), Err(left)) if !is_broken_pipe(&error) => {
            Err(error.context(format!("{left:#}; the run itself failed before")))
        }
        (shown, left) => left.and(shown),
    }
}

/// Prints and exports a report.
fn show(
    report: &Report,
    exports: Exports,
    print: impl FnOnce(&Report) -> Result<()>,
) -> Result<()> {
    let printed = print(report);
    match exports.write(report) {
        // Ended before anything was measured, which was asked for: a picture is all that is missing.
        Err(error @ ExportError::Plot { source: PlotError::NoCurves, .. })
            if report.interrupted =>
        {
            // Nothing is left to be done where standard error is closed.
            let _ = writeln!(
                io::stderr(),
                "bcache-bench: {error}: the run was ended before anything was measured"
            );
        }
        // The devices have been written by now.
        exported => exported.map_err(|error| ExitError::wrap(Failure::Partial, error))?,
    }
    printed.map_err(|error| {
        // Whoever reads no further has seen enough.
        if is_broken_pipe(&error) { error } else { ExitError::wrap(Failure::Partial, error) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use clap::Parser;
    use std::sync::atomic::AtomicBool;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        device: DeviceArgs,
    }

    fn plan(line: &str) -> DevicePlan {
        let words = ["device"].into_iter().chain(line.split_whitespace());
        Alone::parse_from(words).device.plan().unwrap()
    }

    /// Fails where it has no report.
    struct Scripted {
        report: Option<Report>,
        put_down: Option<anyhow::Error>,
        runs: u32,
    }

    impl Scripted {
        fn new(report: Option<Report>) -> Self {
            Self { report, put_down: None, runs: 0 }
        }
    }

    impl DeviceRun for Scripted {
        fn prepare(&mut self, _: &DevicePlan) -> Result<()> {
            Ok(())
        }

        fn run(&mut self, _: &DevicePlan, context: &RunContext) -> Result<Report> {
            self.runs += 1;
            context.live.writer(0).unwrap().wrote(1);
            self.report.take().ok_or_else(|| anyhow::anyhow!("the device is gone"))
        }

        fn put_down(&mut self) -> Result<()> {
            self.put_down.take().map_or(Ok(()), Err)
        }
    }

    fn context() -> RunContext {
        RunContext { stop: Arc::new(AtomicBool::new(false)), live: Live::new(1), trace: None }
    }

    #[test]
    fn the_report_is_printed_and_exported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let plan = plan(&format!("/dev/null --export-json {}", path.display()));
        let mut runner = Scripted::new(Some(sample::report(100, 1.0)));
        let mut printed = 0;
        let exports = open_exports(&plan).unwrap();
        carry_out(&plan, &context(), &mut runner, exports, |report| {
            printed = report.runs.len();
            Ok(())
        })
        .unwrap();
        assert_eq!((printed, runner.runs), (1, 1));
        assert_eq!(Report::load(&path).unwrap().runs.len(), 1);
    }

    #[test]
    fn a_report_that_cannot_be_printed_is_exported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let plan = plan(&format!("/dev/null --export-json {}", path.display()));
        for (kind, partial) in
            [(io::ErrorKind::StorageFull, true), (io::ErrorKind::BrokenPipe, false)]
        {
            let mut runner = Scripted::new(Some(sample::report(100, 1.0)));
            let exports = open_exports(&plan).unwrap();
            let error = carry_out(&plan, &context(), &mut runner, exports, |_| {
                Err(io::Error::from(kind).into())
            })
            .unwrap_err();
            let status = error.downcast_ref::<ExitError>().map(|error| error.status);
            assert_eq!(status, partial.then_some(Failure::Partial.into()));
            assert_eq!(is_broken_pipe(&error), !partial);
            assert_eq!(Report::load(&path).unwrap().runs.len(), 1);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_run_that_was_ended_before_it_measured_anything_has_no_picture() {
        let dir = tempfile::tempdir().unwrap();
        let (json, svg) = (dir.path().join("report.json"), dir.path().join("latency.svg"));
        let line =
            format!("/dev/null --export-json {} --export-svg {}", json.display(), svg.display());
        let plan = plan(&line);
        for interrupted in [true, false] {
            let mut report = sample::report(0, 1.0);
            report.interrupted = interrupted;
            let mut runner = Scripted::new(Some(report));
            let exports = open_exports(&plan).unwrap();
            let result = carry_out(&plan, &context(), &mut runner, exports, |_| Ok(()));
            let result = result.map_err(|error| error.downcast::<ExitError>().unwrap().status);
            assert_eq!(result, if interrupted { Ok(()) } else { Err(Failure::Partial.into()) });
            assert_eq!(Report::load(&json).unwrap().interrupted, interrupted);
            assert!(!svg.exists());
        }
    }

    #[test]
    fn an_export_that_cannot_be_written_is_told_first() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&format!("/dev/null --export-svg {}", dir.path().display()));
        let error = open_exports(&plan).unwrap_err();
        assert!(error.to_string().contains("cannot write to"), "{error}");
    }

    #[test]
    fn a_run_that_fails_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let plan = plan(&format!("/dev/null --export-json {}", path.display()));
        let mut runner = Scripted::new(None);
        let exports = open_exports(&plan).unwrap();
        let error = carry_out(&plan, &context(), &mut runner, exports, |_| panic!("no report"))
            .unwrap_err();
        assert_eq!(error.to_string(), "the device is gone");
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_put_down_hides_neither_the_report_nor_why_a_run_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let plan = plan(&format!("/dev/null --export-json {}", path.display()));
        for report in [Some(sample::report(100, 1.0)), None] {
            let failed = report.is_none();
            let left = ExitError::wrap(Failure::Partial, anyhow::anyhow!("it is still there"));
            let mut runner = Scripted { put_down: Some(left), ..Scripted::new(report) };
            let exports = open_exports(&plan).unwrap();
            let error = carry_out(&plan, &context(), &mut runner, exports, |_| Ok(())).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains("it is still there"), "{text}");
            assert_eq!(text.contains("the device is gone"), failed, "{text}");
            assert_eq!(error.downcast_ref::<ExitError>().is_some(), !failed);
            assert_eq!(path.exists(), !failed);
            let _ = std::fs::remove_file(&path);
        }
    }
}
