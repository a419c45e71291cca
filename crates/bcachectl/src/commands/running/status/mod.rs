//! `bcachectl status`: how running sets and devices are, and what must not stay as it is.

mod findings;
mod prometheus;
mod report;
mod text;
mod unfinished;
mod why;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_cli::out::Out;
use bcache_core::device::sysfs::Root;
use bcache_core::running::control::read_on_device;
use bcache_core::running::{OnDevice, Severity, View, recorded, within};
use uuid::Uuid;

use super::records::Records;
use super::session::{Target, read_view, target};
use crate::cli::running::StatusArgs;
use crate::exit::Failure;

pub(super) use findings::report as in_words;
pub(super) use report::{CleanIn, StatusReport};

/// Runs `bcachectl status`.
pub(in crate::commands) fn status(args: &StatusArgs) -> Result<ExitCode> {
    let recorded = args.recorded.as_deref().map(Recorded::read).transpose()?;
    let is_recorded = recorded.is_some();
    let root = recorded.as_ref().map_or_else(Root::system, |it| it.root.clone());
    if let Some(path) = &args.record {
        return record(&root, path, args.timeout);
    }
    let view = read_view(&root, args.timeout)?;
    if args.prometheus {
        let mut out = Out::stdout();
        out.write_all(prometheus::metrics(&view).as_bytes())?;
        out.finish()?;
        return Ok(ExitCode::SUCCESS);
    }
    let only = match &args.target {
        Some(name) => Some(chosen(&root, &view, name)?),
        None => None,
    };
    let rates = match args.interval {
        Some(interval) if !is_recorded => Some(measure(&root, &view, interval, args.timeout)?),
        _ => None,
    };
    let (view, rates) = match rates {
        Some((after, rates)) => (after, rates),
        None => (view, BTreeMap::new()),
    };
    let on_device: &dyn Fn(&str) -> Option<OnDevice> = if is_recorded {
        &|_| None
    } else {
        &|name| read_on_device(&Path::new("/dev").join(name.replace('!', "/")))
    };
    let mut report = StatusReport::new(&view, &rates, on_device, args.why, only.as_ref());
    if !is_recorded {
        let unfinished = unfinished::findings(&Records::system(), &view, only.as_ref());
        report.findings.extend(unfinished);
        report.findings.sort_by_key(|it| std::cmp::Reverse(it.severity));
    }
    let mut out = Out::stdout();
    if args.json {
        out.json(&report)?;
    } else {
        text::render(&mut out, &report, view.available)?;
    }
    out.finish()?;
    let danger = report.findings.iter().any(|it| it.severity == Severity::Danger);
    Ok(if danger { Failure::Danger.into() } else { ExitCode::SUCCESS })
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
    root: &Root,
    before: &View,
    interval: Duration,
    limit: Duration,
) -> Result<(View, BTreeMap<String, Rates>)> {
    if interval.is_zero() {
        bail!("an interval of 0 measures nothing");
    }
    let begun = Instant::now();
    sleep(interval);
    let after = read_view(root, limit)?;
    let rates = rates_between(before, &after, begun.elapsed());
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

fn record(root: &Root, path: &Path, limit: Duration) -> Result<ExitCode> {
    let at = root.clone();
    let text = within(limit, || {}, move || recorded::record(&at))?;
    let text = text.context("cannot read /sys")?;
    if path == Path::new("-") {
        let mut out = Out::stdout();
        out.write_all(text.as_bytes())?;
        out.finish()?;
    } else {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A recorded tree, laid out in a folder of its own.
pub(super) struct Recorded {
    /// Where it stands for the machine.
    pub(super) root: Root,
    _folder: TemporaryFolder,
}

impl Recorded {
    /// Lays out what is recorded in the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or is no recorded tree.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let folder = TemporaryFolder::new()?;
        let root = recorded::unpack(&text, &folder.0)
            .with_context(|| format!("{} is no recorded tree", path.display()))?;
        Ok(Self { root, _folder: folder })
    }
}

/// A folder that is removed again.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn new() -> Result<Self> {
        // Of thousands of small files, in memory where there is such a place.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("bcachectl-{}", Uuid::new_v4()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What is left in the folder for temporary files is no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}
