//! `bcachectl check`: whether a cache device is consistent, and how its backing devices stand. Never
//! writes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bcache_cli::out::{Out, Style, coloured};
use bcache_cli::progress::Progress;
use bcache_cli::table::{self, Cell, Color, Table};
use bcache_core::cache_set::OpenError;
use bcache_core::device::holders::holders_of;
use bcache_core::device::{FileReader, ReadDevice, open_read};
use bcache_core::inspect::{Answer, Device, Seen, copies_of_device, take_cache};
use bcache_core::layout::superblock::{BackingState, Kind, Superblock};
use bcache_core::ops::check::{
    CheckOptions, CheckProgress, Code, FINDINGS_PER_CODE, Registration, Report, Severity, check,
};
use serde::Serialize;

use super::copies;
use crate::cli::{CheckArgs, LISTED_PER_CODE};
use crate::exit::{CheckStatus, ExitError};
use crate::render::and_more;
use crate::scan;
use crate::stakes::{self, AdviceReport, advice};

/// The output in JSON; the man page documents the keys.
#[derive(Serialize)]
struct Json<'a> {
    path: &'a Path,
    backing: &'a [&'a Path],
    registers: bool,
    in_use: Vec<String>,
    #[serde(flatten)]
    report: &'a Report,
    advice: Vec<AdviceReport>,
    exit_status: u8,
}

/// Runs `bcachectl check`. Whatever keeps it from checking ends it with [`CheckStatus::Failed`].
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    check_device(args).map_err(|error| ExitError::wrap(CheckStatus::Failed, error))
}

/// What is checked: a cache and its backing devices, or backing devices alone.
struct Subject {
    device: FileReader,
    backing: Vec<FileReader>,
}

impl Subject {
    /// Opens what was named, in any order. Where no cache was, it is looked for in the machine.
    fn open(args: &CheckArgs) -> Result<Self> {
        let named = iter::once(&args.device).chain(&args.backing);
        let mut backing: Vec<FileReader> = named.map(open_read).collect::<Result<_, _>>()?;
        if let Some(device) = take_cache(&mut backing) {
            return Ok(Self { device, backing });
        }
        let named = backing.iter().find_map(|device| Some((device, superblock_of(device)?)));
        let named = named.map(|(device, sb)| (device, caches_of(&sb)));
        if let Some((device, caches)) = &named {
            if caches.len() > 1 {
                writeln!(
                    io::stderr(),
                    "bcachectl: warning: the cache set of {} is on {}: it is checked without them; name \
                     the one that is meant, or take the other away",
                    device.info().path.display(),
                    copies::listed(caches)
                )?;
            }
        }
        if let Some((device, [path])) = named.as_ref().map(|(device, it)| (device, &it[..])) {
            if let Ok(cache) = open_read(path) {
                writeln!(
                    io::stderr(),
                    "note: the cache of {} is {}: both are checked",
                    device.info().path.display(),
                    path.display()
                )?;
                return Ok(Self { device: cache, backing });
            }
        }
        // What was named with a backing device, and is none of bcache, may have been its cache.
        let is_backing = |device: &FileReader| {
            Device::read_superblock(device).is_ok_and(|it| it.kind() == Some(Kind::Backing))
        };
        let subject = backing.iter().position(is_backing).unwrap_or(0);
        Ok(Self { device: backing.remove(subject), backing })
    }

    fn paths(&self) -> (&Path, Vec<&Path>) {
        (&self.device.info().path, self.backing.iter().map(|it| it.info().path.as_path()).collect())
    }
}

/// The superblock of a backing device, if it can be trusted.
fn superblock_of(device: &FileReader) -> Option<Superblock> {
    let device = Device::read_superblock(device).ok()?;
    device.superblock.filter(|sb| sb.csum_ok() && sb.kind() == Some(Kind::Backing))
}

/// The caches in the machine of the set that a backing device is attached to. Layers over one another and
/// paths to one disk are one.
fn caches_of(backing: &Superblock) -> Vec<PathBuf> {
    if backing.state() == BackingState::None {
        return Vec::new();
    }
    let mut seen = scan::seen();
    seen.retain(|it| {
        it.superblock.kind() == Some(Kind::Cache) && it.superblock.set_uuid() == backing.set_uuid()
    });
    let mut caches: Vec<&Seen> = Vec::new();
    for found in &seen {
        let is_other = |known: &&Seen| {
            let it = [(found.path.as_path(), &found.superblock)];
            known.superblock.uuid() != found.superblock.uuid()
                || !copies_of_device(&known.path, &known.superblock, it).is_empty()
        };
        if caches.iter().all(is_other) {
            caches.push(found);
        }
    }
    caches.into_iter().map(|it| it.path.clone()).collect()
}

fn check_device(args: &CheckArgs) -> Result<ExitCode> {
    let subject = Subject::open(args)?;
    let (path, backing) = subject.paths();
    let in_use: Vec<String> = holders_of(path).iter().map(ToString::to_string).collect();
    if !in_use.is_empty() {
        writeln!(
            io::stderr(),
            "bcachectl: warning: {} is in use ({}): what changes while it is read looks like \
             damage",
            path.display(),
            in_use.join("; ")
        )?;
    }
    let options = CheckOptions {
        backing: subject.backing.iter().map(|device| device as &dyn ReadDevice).collect(),
        verify_clean: args.verify_clean,
        findings_per_code: args.findings.unwrap_or(if args.json {
            FINDINGS_PER_CODE
        } else {
            LISTED_PER_CODE
        }),
        in_use: !in_use.is_empty(),
        search_machine: Some(scan::backing_devices),
        search_copies: Some(scan::seen),
        ..CheckOptions::default()
    };
    let mut progress = Progress::new(path.display().to_string());
    let report = check(&subject.device, &options, &mut |at| match at {
        CheckProgress::Reading(at) => progress.reading(at),
        CheckProgress::Comparing { done, total } => progress.set("clean data", done, total),
    });
    progress.finish();
    let report = report.with_context(|| path.display().to_string())?;
    let status = exit_status(&report);
    Out::answer(|out| {
        if args.json {
            out.json(&Json {
                path,
                backing: &backing,
                registers: !matches!(report.registration, Registration::Refused { .. }),
                in_use,
                report: &report,
                advice: advice(&report.advice),
                exit_status: status,
            })?;
        } else {
            render(out, path, &report)?;
        }
        Ok(())
    })?;
    Ok(ExitCode::from(status))
}

/// As fsck(8) has it: a sum. What is only untidy is no error.
fn exit_status(report: &Report) -> u8 {
    let errors = report.worst > Some(Severity::Untidy);
    let status = |condition: bool, status: CheckStatus| if condition { status as u8 } else { 0 };
    status(errors, CheckStatus::ErrorsLeft) | status(report.unread, CheckStatus::Failed)
}

fn render(out: &mut Out, path: &Path, report: &Report) -> Result<()> {
    let style = out.style();
    for stranger in &report.strangers {
        let path = stranger.path.display();
        match &stranger.why {
            OpenError::NotBcache => writeln!(out, "{path} is no bcache device, or no longer one.")?,
            why => writeln!(out, "{path}: {why}")?,
        }
    }
    let alone = &report.alone;
    let (names, them) = match alone.len() {
        0 => (path.display().to_string(), "it"),
        count => (
            alone.iter().map(|it| it.path.display().to_string()).collect::<Vec<_>>().join(", "),
            if count == 1 { "it" } else { "them" },
        ),
    };
    let waits = alone.iter().any(|it| it.state == Some(BackingState::Dirty));
    let (kernel, kernel_colour) = match &report.registration {
        Registration::Accepted if waits => {
            (format!("the kernel would register {them} and wait for the cache"), Color::Green)
        }
        Registration::Accepted => (format!("the kernel would register {them}"), Color::Green),
        Registration::Initialised
            if report.data_at_risk || report.stakes.answer == Answer::Present =>
        {
            ("the kernel would register it and start it EMPTY".to_owned(), Color::Red)
        }
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
    } else if !alone.is_empty() && report.stakes.answer == Answer::Present {
        ("data is missing that only the cache has", Color::Yellow)
    } else if report.stakes.answer == Answer::Unknown {
        ("whether data is at risk cannot be told", Color::Yellow)
    } else if report.stakes.answer == Answer::Present
        && report.stakes.at_most_sectors != Some(report.stakes.at_least_sectors)
    {
        ("there may be more dirty data than can be read", Color::Yellow)
    } else if report.stakes.answer == Answer::Present {
        // Nothing is at risk as long as the cache is kept: no word that could be read as "wipe it".
        ("no dirty data is known to be missing", Color::Green)
    } else {
        ("no data is at risk", Color::Green)
    };
    writeln!(
        out,
        "{}: {}; {}.",
        names,
        coloured(style, kernel_colour, &kernel),
        coloured(style, data_colour, data)
    )?;
    for device in alone {
        let said = stakes::of_state(device.state);
        if alone.len() > 1 {
            writeln!(out, "{}: {said}", device.path.display())?;
        } else {
            writeln!(out, "{said}")?;
        }
    }
    if alone.is_empty() {
        writeln!(out, "{}", stakes::of_cache(&report.stakes))?;
    }
    for line in stakes::of_volumes(&report.stakes, &report.volumes) {
        writeln!(out, "{line}")?;
    }
    for advice in advice(&report.advice) {
        writeln!(out, "{}", advice.sentence())?;
    }
    if report.counts.is_empty() {
        writeln!(out, "No problems found.")?;
        return Ok(());
    }
    writeln!(out)?;
    let mut listed: BTreeMap<Code, u64> = BTreeMap::new();
    for finding in &report.findings {
        *listed.entry(finding.code()).or_default() += 1;
    }
    if !report.findings.is_empty() {
        writeln!(out, "{}", findings(style, report, &listed))?;
    }
    for (code, count) in &report.counts {
        let told = listed.get(code).copied().unwrap_or_default();
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

/// The findings, and behind the last one of each code how many more of it there are. `listed` has how many
/// of each are in the report.
fn findings(style: Style, report: &Report, listed: &BTreeMap<Code, u64>) -> Table {
    let header = ["code", "severity", "place", "expected", "found"];
    let mut rows = table::table(style, &header).rest_below();
    let mut left = listed.clone();
    for finding in &report.findings {
        let code = finding.code();
        let name = finding.severity().name();
        let severity = match finding.severity() {
            Severity::Untidy | Severity::NotChecked => Cell::new(name),
            Severity::DataAtRisk => table::state(style, name, Color::Yellow),
            Severity::KernelRefuses => table::state(style, name, Color::Red),
        };
        rows.add_row(vec![
            Cell::new(format!("{} {}", code.number(), code.name())),
            severity,
            Cell::new(finding.place()),
            Cell::prose(finding.expected()),
            Cell::prose(finding.found()),
        ]);
        let Some(left) = left.get_mut(&code) else { continue };
        *left -= 1;
        let told = listed.get(&code).copied().unwrap_or_default();
        let count = report.counts.get(&code).copied().unwrap_or_default();
        if *left == 0 && told < count {
            rows.add_note(&and_more(count - told, code));
        }
    }
    rows
}
