//! `bcache-bench device`: everything around the run itself.
//!
//! Files are opened and signals caught before the run; progress is shown while it lasts; the report
//! is printed and exported when it is over, early or not.

use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::out::Out;

use crate::cli::DeviceArgs;
use crate::device::{DevicePlan, DeviceRun, RunContext};
use crate::exit::{ExitError, Failure};
use crate::interrupt;
use crate::progress::{Live, Progress};
use crate::report::export::Exports;
use crate::report::{Report, table};

/// Runs `bcache-bench device` with `runner` doing the work.
pub fn run(args: &DeviceArgs, runner: &mut impl DeviceRun) -> Result<ExitCode> {
    let plan = args.plan().map_err(|error| ExitError::wrap(Failure::Usage, error))?;
    // Before anything starts a thread.
    let stop = interrupt::install()?;
    let context = RunContext { stop, live: Live::new(plan.writers.get()) };
    let mut out = Out::stdout();
    carry_out(&plan, &context, runner, |report| {
        if args.json {
            out.json(report)?;
        } else {
            let style = out.style();
            table::render(&mut out, style, report)?;
        }
        out.finish()
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The run, from opening the exports to writing them. `print` gets the report first, so that it is
/// seen even if an export fails.
fn carry_out(
    plan: &DevicePlan,
    context: &RunContext,
    runner: &mut impl DeviceRun,
    print: impl FnOnce(&Report) -> Result<()>,
) -> Result<()> {
    let exports = Exports::open(&plan.exports)?;
    runner.prepare(plan)?;
    let progress = Progress::start("device", &context.live, plan.goal())?;
    let result = runner.run(plan, context);
    drop(progress);
    let report = result?;
    print(&report)?;
    // The devices have been written by now.
    exports.write(&report).map_err(|error| ExitError::wrap(Failure::Partial, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use clap::Parser;
    use std::sync::Arc;
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
        runs: u32,
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
    }

    fn context() -> RunContext {
        RunContext { stop: Arc::new(AtomicBool::new(false)), live: Live::new(1) }
    }

    #[test]
    fn the_report_is_printed_and_exported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let plan = plan(&format!("/dev/null --export-json {}", path.display()));
        let mut runner = Scripted { report: Some(sample::report(100, 1.0)), runs: 0 };
        let mut printed = 0;
        carry_out(&plan, &context(), &mut runner, |report| {
            printed = report.runs.len();
            Ok(())
        })
        .unwrap();
        assert_eq!((printed, runner.runs), (1, 1));
        assert_eq!(Report::load(&path).unwrap().runs.len(), 1);
    }

    #[test]
    fn nothing_runs_when_an_export_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&format!("/dev/null --export-svg {}", dir.path().display()));
        let mut runner = Scripted { report: Some(sample::report(100, 1.0)), runs: 0 };
        let error = carry_out(&plan, &context(), &mut runner, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("cannot write to"), "{error}");
        assert_eq!(runner.runs, 0);
    }

    #[test]
    fn a_run_that_fails_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let plan = plan(&format!("/dev/null --export-json {}", path.display()));
        let mut runner = Scripted { report: None, runs: 0 };
        let error = carry_out(&plan, &context(), &mut runner, |_| panic!("no report")).unwrap_err();
        assert_eq!(error.to_string(), "the device is gone");
        assert!(!path.exists());
    }
}
