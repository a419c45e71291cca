//! `bcachectl check`: whether a cache device is consistent. Never writes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::is_broken_pipe;
use bcache_cli::out::{Out, coloured};
use bcache_cli::progress::Progress;
use bcache_cli::table::{self, Cell, Color};
use bcache_core::cache_set::OpenError;
use bcache_core::device::holders::holders_of;
use bcache_core::device::{FileReader, ReadDevice, open_read};
use bcache_core::inspect::Answer;
use bcache_core::ops::check::{
    CheckError, CheckOptions, CheckProgress, Registration, Report, Severity, check,
};
use serde::Serialize;

use crate::cli::CheckArgs;
use crate::exit::CheckStatus;
use crate::scan;
use crate::stakes::{self, AdviceReport, advice};

/// The output in JSON; the man page documents the keys.
#[derive(Serialize)]
struct Json<'a> {
    path: &'a Path,
    backing: &'a [PathBuf],
    registers: bool,
    in_use: Vec<String>,
    #[serde(flatten)]
    report: &'a Report,
    advice: Vec<AdviceReport>,
    exit_status: u8,
}

/// Runs `bcachectl check`. Whatever keeps it from checking ends it with [`CheckStatus::Failed`].
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    match check_device(args) {
        Err(error) if !is_broken_pipe(&error) => {
            let _ = writeln!(io::stderr(), "bcachectl: {error:#}");
            Ok(CheckStatus::Failed.into())
        }
        result => result,
    }
}

fn check_device(args: &CheckArgs) -> Result<ExitCode> {
    let device = open_read(&args.device)?;
    let backing: Vec<FileReader> = args.backing.iter().map(open_read).collect::<Result<_, _>>()?;
    let in_use: Vec<String> = holders_of(&args.device).iter().map(ToString::to_string).collect();
    if !in_use.is_empty() {
        writeln!(
            io::stderr(),
            "bcachectl: warning: {} is in use ({}): what changes while it is read looks like \
             damage",
            args.device.display(),
            in_use.join("; ")
        )?;
    }
    let options = CheckOptions {
        backing: backing.iter().map(|device| device as &dyn ReadDevice).collect(),
        verify_clean: args.verify_clean,
        findings_per_code: args.findings,
        search_machine: Some(scan::backing_devices),
        ..CheckOptions::default()
    };
    let mut progress = Progress::new(args.device.display().to_string());
    let report = check(&device, &options, &mut |at| match at {
        CheckProgress::Reading(at) => progress.reading(at),
        CheckProgress::Comparing { done, total } => progress.set("clean data", done, total),
    });
    progress.finish();
    let report = report.map_err(|error| unchecked(args, error))?;
    let status = exit_status(&report);
    let mut out = Out::stdout();
    if args.json {
        out.json(&Json {
            path: &args.device,
            backing: &args.backing,
            registers: !matches!(report.registration, Registration::Refused { .. }),
            in_use,
            report: &report,
            advice: advice(&report.advice),
            exit_status: status,
        })?;
    } else {
        render(&mut out, args, &report)?;
    }
    out.finish()?;
    Ok(ExitCode::from(status))
}

/// Why there is no report; of a backing device, how it is judged.
fn unchecked(args: &CheckArgs, error: CheckError) -> anyhow::Error {
    let path = args.device.display();
    match error {
        CheckError::Open(OpenError::BackingDevice) => anyhow::anyhow!(
            "{path}: a backing device, which holds no cache set: name its cache before it, or see \
             what it says of itself with `bcachectl show --dirty {path}`"
        ),
        error => anyhow::Error::from(error).context(path.to_string()),
    }
}

/// As fsck(8) has it: a sum. What is only untidy is no error.
fn exit_status(report: &Report) -> u8 {
    let errors = report.worst > Some(Severity::Untidy);
    let status = |condition: bool, status: CheckStatus| if condition { status as u8 } else { 0 };
    status(errors, CheckStatus::ErrorsLeft) | status(report.unread, CheckStatus::Failed)
}

fn render(out: &mut Out, args: &CheckArgs, report: &Report) -> Result<()> {
    let style = out.style();
    let (kernel, kernel_colour) = match &report.registration {
        Registration::Accepted => ("the kernel would register it".to_owned(), Color::Green),
        Registration::Initialised => (
            "the kernel would register it and start it afresh: it holds no cache set".to_owned(),
            Color::Green,
        ),
        Registration::Refused { code, reason } => {
            (format!("the kernel would NOT register it: {reason} [{}]", code.name()), Color::Red)
        }
    };
    let (data, data_colour) = if report.data_at_risk {
        ("data is AT RISK", Color::Red)
    } else if report.stakes.answer == Answer::Unknown {
        ("whether data is at risk cannot be told", Color::Yellow)
    } else {
        ("no data is at risk", Color::Green)
    };
    writeln!(
        out,
        "{}: {}; {}.",
        args.device.display(),
        coloured(style, kernel_colour, &kernel),
        coloured(style, data_colour, data)
    )?;
    writeln!(out, "{}", stakes::of_cache(&report.stakes))?;
    for line in stakes::of_volumes(&report.stakes, &report.volumes) {
        writeln!(out, "{line}")?;
    }
    for advice in advice(&report.advice) {
        writeln!(out, "{}", advice.sentence())?;
    }
    if report.findings.is_empty() {
        writeln!(out, "No problems found.")?;
        return Ok(());
    }
    writeln!(out)?;
    let header = ["code", "severity", "place", "expected", "found"];
    let mut rows = table::table(style, &header);
    for finding in &report.findings {
        let name = finding.severity().name();
        let severity = match finding.severity() {
            Severity::Untidy | Severity::NotChecked => Cell::new(name),
            Severity::DataAtRisk => table::state(style, name, Color::Yellow),
            Severity::KernelRefuses => table::state(style, name, Color::Red),
        };
        rows.add_row(vec![
            Cell::new(format!("{} {}", finding.code().number(), finding.code().name())),
            severity,
            Cell::new(finding.place()),
            Cell::prose(finding.expected()),
            Cell::prose(finding.found()),
        ]);
    }
    writeln!(out, "{rows}")?;
    for (code, count) in &report.counts {
        let told = report.findings.iter().filter(|finding| finding.code() == *code).count() as u64;
        let more =
            if told < *count { format!(" ({told} of {count} listed)") } else { String::new() };
        writeln!(
            out,
            "{} {}{more}: {} {}",
            code.number(),
            code.name(),
            code.meaning(),
            code.advice()
        )?;
    }
    if report.incomplete {
        writeln!(out, "Parts could not be read or understood: there may be more than was found.")?;
    }
    Ok(())
}
