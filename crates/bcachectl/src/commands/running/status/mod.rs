//! `bcachectl status`: how running sets and devices are, and what must not stay as it is.

mod findings;
mod prometheus;
mod report;
mod text;
mod unfinished;
mod why;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_cli::out::Out;
use bcache_core::device::sysfs::Root;
use bcache_core::running::{Asker, Question, Severity, Snapshot, View, recorded};
use uuid::Uuid;

use super::records::Records;
use super::session::{Target, target};
use crate::ask::{asker, silence};
use crate::cli::running::StatusArgs;
use crate::exit::Failure;

pub(super) use findings::report as in_words;
pub(super) use report::{CleanIn, StatusReport};

/// Runs `bcachectl status`.
pub(in crate::commands) fn status(args: &StatusArgs) -> Result<ExitCode> {
    let is_recorded = args.recorded.is_some();
    let root = args.recorded.as_deref().map_or_else(|| Ok(Root::system()), recorded_root)?;
    let question = Question { superblocks: root.is_system(), ..Question::default() };
    let mut asker = asker(root.clone(), question);
    let mut snapshot = asker.within(args.timeout).context("cannot read /sys")?;
    if let Some(path) = &args.record {
        return record(&snapshot, path);
    }
    let mut view = snapshot.view().context("cannot read /sys")?;
    if args.prometheus {
        let mut out = Out::stdout();
        out.write_all(prometheus::metrics(&view).as_bytes())?;
        out.finish()?;
        return Ok(complain(&snapshot));
    }
    let only = match &args.target {
        Some(name) => Some(chosen(&root, &view, name)?),
        None => None,
    };
    let mut rates = BTreeMap::new();
    if let Some(interval) = args.interval.filter(|_| !is_recorded) {
        (snapshot, rates) = measure(&mut asker, &view, interval, args.timeout)?;
        view = snapshot.view().context("cannot read /sys")?;
    }
    let mut report = StatusReport::new(&view, &snapshot, &rates, args.why, only.as_ref());
    if !is_recorded {
        let unfinished = unfinished::findings(&Records::system(), &view, only.as_ref());
        report.findings.extend(unfinished);
        report.findings.sort_by_key(|it| std::cmp::Reverse(it.severity));
    }
    Out::answer(|out| {
        if args.json {
            out.json(&report)?;
        } else {
            text::render(out, &report, view.available)?;
        }
        Ok(())
    })?;
    let danger = report.findings.iter().any(|it| it.severity == Severity::Danger);
    let status = complain(&snapshot);
    Ok(if danger { Failure::Danger.into() } else { status })
}

/// Names what did not answer on standard error; the exit status that follows.
pub(super) fn complain(snapshot: &Snapshot) -> ExitCode {
    let Some(silence) = silence(&snapshot.silent, snapshot.waited) else {
        return ExitCode::SUCCESS;
    };
    // Where standard error is closed, nobody is told.
    let _ = writeln!(io::stderr(), "bcachectl: {silence}");
    Failure::Refused.into()
}

/// What the report is about.
#[derive(Debug)]
pub(super) enum Only {
    Set(Uuid),
    Backing(String),
    Volume(String),
}

fn chosen(root: &Root, view: &View, name: &str) -> Result<Only> {
    Ok(match target(root, view, name)? {
        Target::Set(set) => Only::Set(set.uuid),
        Target::Backing(backing) => Only::Backing(backing.name.clone()),
        Target::Volume(_, volume) => Only::Volume(volume.bcache.clone()),
    })
}

/// Rates of a backing device over a time.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct Rates {
    /// Over how long.
    pub(super) seconds: f64,
    /// Bytes a second read from the bcache device.
    pub(super) read_bytes: f64,
    /// Bytes a second written to it.
    pub(super) written_bytes: f64,
    /// Bytes a second read from the backing device.
    pub(super) backing_read_bytes: f64,
    /// Bytes a second written to it, writeback included.
    pub(super) backing_written_bytes: f64,
    /// Share of the bytes read that did not come from the backing device.
    pub(super) byte_hit_ratio: Option<f64>,
}

/// Looks again after `interval`; gives the second look and the rates, by backing device.
fn measure(
    asker: &mut Asker,
    before: &View,
    interval: Duration,
    quiet: Duration,
) -> Result<(Snapshot, BTreeMap<String, Rates>)> {
    if interval.is_zero() {
        bail!("an interval of 0 measures nothing");
    }
    let begun = Instant::now();
    sleep(interval);
    let after = asker.within(quiet).context("cannot read /sys")?;
    let rates = rates_between(before, &after.view().context("cannot read /sys")?, begun.elapsed());
    Ok((after, rates))
}

/// Rates from two looks, by backing device; devices whose counters fell are left out.
pub(super) fn rates_between(
    before: &View,
    after: &View,
    elapsed: Duration,
) -> BTreeMap<String, Rates> {
    let seconds = elapsed.as_secs_f64().max(f64::EPSILON);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = |sectors: u64| sectors as f64 * 512.0 / seconds;
    let of = |now: &bcache_core::running::Backing| {
        let then = before.backing_device(&now.name)?;
        let bcache = now.bcache_disk?.since(&then.bcache_disk?)?;
        let backing = now.disk?.since(&then.disk?)?;
        Some(Rates {
            seconds,
            read_bytes: rate(bcache.read_sectors),
            written_bytes: rate(bcache.written_sectors),
            backing_read_bytes: rate(backing.read_sectors),
            backing_written_bytes: rate(backing.written_sectors),
            byte_hit_ratio: bcache_core::running::byte_hit_ratio(&bcache, &backing),
        })
    };
    after.backing.iter().filter_map(|now| Some((now.name.clone(), of(now)?))).collect()
}

fn record(snapshot: &Snapshot, path: &Path) -> Result<ExitCode> {
    let text = recorded::text(&snapshot.root);
    if path == Path::new("-") {
        let mut out = Out::stdout();
        out.write_all(text.as_bytes())?;
        out.finish()?;
    } else {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(complain(snapshot))
}

/// What stands for the machine: a file that was recorded, or a folder with a copy of /sys in it.
///
/// # Errors
/// When it cannot be read or is no recorded tree.
pub(super) fn recorded_root(path: &Path) -> Result<Root> {
    if path.is_dir() {
        return Ok(Root::at(std::path::absolute(path)?));
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    recorded::parse(&text)
        .with_context(|| format!("{} is not a file that --record wrote", path.display()))
}
