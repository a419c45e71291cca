//! `bcachectl writeback`: claim, read, plan, show, confirm, copy, make clean.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use bcache_cli::out::Out;
use bcache_cli::{confirm, is_broken_pipe};
use bcache_core::cache_set::Progress;
use bcache_core::device::holders::Holder;
use bcache_core::device::{BlockDevice, DeviceError, FileDevice, FileReader, ReadDevice, file};
use bcache_core::ops::rebuild::RebuildError;
use bcache_core::ops::writeback::{
    self, BackingRefusal, Options, WritebackDone, WritebackError, WritebackPlan, WritebackProgress,
    WritebackRunError, WritebackState,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{copies, holding, undo};
use crate::cli::WritebackArgs;
use crate::exit::{ExitError, Failure, NOT_KEPT};
use crate::render::writeback as render;

/// Runs `bcachectl writeback`.
pub fn run(args: &WritebackArgs) -> Result<ExitCode> {
    let options = Options {
        volumes: args.volume.clone(),
        detach: args.detach,
        ran_alone: args.ran_alone,
        verify: args.verify,
        seconds: seconds_now(),
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
        ..Options::default()
    };
    if args.write.dry_run {
        return dry_run(args, &options);
    }
    // Held from here on, so that nothing changes between plan and run.
    let cache = claim(&args.cache)?;
    let backing: Vec<FileDevice> =
        args.backing.iter().map(|path| claim(path)).collect::<Result<_>>()?;
    // Before the reading, which takes minutes on a large cache.
    if !args.write.script.yes && !io::stdin().is_terminal() {
        bail!(
            "no terminal to ask on: give --yes to write back, or --dry-run to see what would be \
             written; nothing was written"
        );
    }
    let undo = undo::log(args.write.undo.as_deref(), "writeback")?;
    let readers: Vec<&dyn ReadDevice> = backing.iter().map(|it| it as &dyn ReadDevice).collect();
    warn_of_copies(&cache, &readers, "written")?;
    let bar = Bar::new(0);
    let plan = writeback::plan(&cache, &readers, &options, &mut |at| bar.reading(at));
    bar.clear();
    let plan = plan.map_err(refused)?;
    if plan.is_empty() {
        show(args, &plan, &options, render::Outcome::Nothing)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.write.script.yes && !confirm(args, &plan)? {
        bail!("nothing was written");
    }
    let writers: Vec<&dyn BlockDevice> = backing.iter().map(|it| it as &dyn BlockDevice).collect();
    let passes = if args.verify { 2 } else { 1 };
    let bar = Bar::new(plan.dirty_sectors().bytes().saturating_mul(passes));
    let tell = |at| bar.writing(at);
    let log = undo.as_ref();
    let done = writeback::run_with_undo(&plan, &options, log, &cache, &writers, &tell);
    bar.clear();
    undo::tell(undo.as_ref());
    match done {
        Ok(done) => report(args, &plan, &options, done),
        Err(error) => {
            if args.write.script.json {
                // What failed before says more than that this could not be told.
                let _ = show(args, &plan, &options, render::Outcome::Failed(error.state()));
            }
            Err(failed(error))
        }
    }
}

fn seconds_now() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(now).unwrap_or(u32::MAX)
}

fn dry_run(args: &WritebackArgs, options: &Options) -> Result<ExitCode> {
    let open = |path: &PathBuf| file::open_unused(path).map_err(in_use);
    let cache = open(&args.cache)?;
    let backing: Vec<FileReader> = args.backing.iter().map(open).collect::<Result<_>>()?;
    let readers: Vec<&dyn ReadDevice> = backing.iter().map(|it| it as &dyn ReadDevice).collect();
    warn_of_copies(&cache, &readers, "read")?;
    let bar = Bar::new(0);
    let plan = writeback::plan(&cache, &readers, options, &mut |at| bar.reading(at));
    bar.clear();
    let plan = plan.map_err(refused)?;
    let nothing = plan.is_empty();
    let outcome = if nothing { render::Outcome::Nothing } else { render::Outcome::DryRun };
    show(args, &plan, options, outcome)?;
    Ok(ExitCode::SUCCESS)
}

/// All devices were named: that there are copies of them is told, and keeps nothing from being done.
fn warn_of_copies(cache: &dyn ReadDevice, backing: &[&dyn ReadDevice], done: &str) -> Result<()> {
    copies::warn(cache, done)?;
    backing.iter().try_for_each(|device| copies::warn(*device, done))
}

pub(super) fn claim(path: &Path) -> Result<FileDevice> {
    file::open_write(path).map_err(|error| match error {
        error @ DeviceError::Busy { .. } => in_use(error),
        error => anyhow::Error::from(error).context("nothing was written"),
    })
}

fn show(
    args: &WritebackArgs,
    plan: &WritebackPlan<'_>,
    options: &Options,
    outcome: render::Outcome,
) -> Result<()> {
    let mut out = Out::stdout();
    if args.write.script.json {
        render::json(&mut out, &args.backing, plan, options, outcome)?;
    } else {
        render::text(&mut out, args, plan, outcome)?;
    }
    out.finish()
}

fn report(
    args: &WritebackArgs,
    plan: &WritebackPlan<'_>,
    options: &Options,
    done: WritebackDone,
) -> Result<ExitCode> {
    match show(args, plan, options, render::Outcome::Done(done)) {
        Err(error) if !is_broken_pipe(&error) => {
            let what = "all is written back, which was proven; the report could not be written";
            Err(ExitError::wrap(Failure::Unreported, error.context(what)))
        }
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

/// Asks on the terminal.
fn confirm(args: &WritebackArgs, plan: &WritebackPlan<'_>) -> Result<bool> {
    let mut stderr = io::stderr();
    render::text(&mut stderr, args, plan, render::Outcome::DryRun)?;
    Ok(confirm::go_on()?)
}

/// A device in use, and how to stop what uses it.
pub(super) fn in_use(error: DeviceError) -> anyhow::Error {
    holding::in_use(error, |holder| match holder {
        Holder::BcacheCache { .. } | Holder::BcacheBacking { .. } => Some(
            "the kernel runs it and can write back by itself: see Documentation/admin-guide/\
             bcache.rst; to stop it, unmount its bcache devices, and write 1 to \
             /sys/block/bcacheN/bcache/stop of each and to /sys/fs/bcache/UUID/stop"
                .to_owned(),
        ),
        _ => None,
    })
}

/// A refusal, and what to do instead.
fn refused(error: WritebackError) -> anyhow::Error {
    let instead = match &error {
        WritebackError::NoCache { .. }
        | WritebackError::KernelRefuses { .. }
        | WritebackError::Damaged { .. }
        | WritebackError::JournalGap { .. } => Some(
            "`bcachectl check` tells what is wrong, `bcachectl repair --dry-run` what can be mended",
        ),
        WritebackError::Mendable { .. } => Some("run `bcachectl repair` first"),
        WritebackError::Backing { reason, .. } => match reason {
            BackingRefusal::NotAttached
            | BackingRefusal::RanAlone
            | BackingRefusal::RegisteredSince(_) => Some(
                "copy both devices before anything else; `bcachectl export --dirty-only` saves the dirty \
                 data to a file, and --detach --ran-alone writes it back all the same, over what may be \
                 newer",
            ),
            BackingRefusal::TooSmall { .. } => {
                Some("grow the device or partition back to its old size")
            }
            BackingRefusal::Repeated { .. } => Some("name each device once"),
            BackingRefusal::Misaligned { .. } => Some(
                "write back to a disk, or a loop device, with logical blocks of the size that it had",
            ),
            BackingRefusal::Unknown { .. } => {
                Some("`bcachectl show --uuids` lists the volumes of the cache")
            }
            _ => None,
        },
        WritebackError::Volume(_) => {
            Some("`bcachectl show --uuids` lists the volumes; a UUID names exactly one")
        }
        WritebackError::NotGiven { .. } => Some("name it, too"),
        WritebackError::Rebuild(
            RebuildError::JournalFull { .. } | RebuildError::TooFewUnused { .. },
        ) => Some(
            "register the cache with the kernel and stop it again: that replays the journal and frees \
             buckets",
        ),
        _ => None,
    };
    let error = anyhow::Error::from(error);
    match instead {
        Some(instead) => anyhow::anyhow!("{error:#}; {instead}; nothing was written"),
        None => anyhow::anyhow!("{error:#}; nothing was written"),
    }
}

fn failed(error: WritebackRunError) -> anyhow::Error {
    let (failure, what) = match error.state() {
        WritebackState::Unchanged => (Failure::Refused, "nothing was written"),
        WritebackState::Old => (
            Failure::Partial,
            "the cache still has all dirty data; part of it may be on the backing devices, too, where \
             it does no harm. Run the command again to complete it",
        ),
        WritebackState::OldOrNew => (
            Failure::Partial,
            "all dirty data is on the backing devices; the cache may say so or not, and is sound either \
             way. Run the command again to complete it",
        ),
        WritebackState::New => (
            Failure::Unproven,
            "all dirty data is on the backing devices and the cache is clean; what is left is harmless. \
             Run the command again to complete it",
        ),
        WritebackState::Undefined => (Failure::Undefined, NOT_KEPT),
    };
    ExitError::wrap(failure, anyhow::Error::from(error).context(what))
}

/// How long something may take in silence.
const SILENCE: Duration = Duration::from_secs(1);

/// Progress on a terminal, for what takes longer than a second. Several threads tell it.
struct Bar {
    begun: Instant,
    copy_bytes: u64,
    shown: Mutex<Option<(&'static str, ProgressBar)>>,
}

impl Bar {
    fn new(copy_bytes: u64) -> Self {
        Self { begun: Instant::now(), copy_bytes, shown: Mutex::new(None) }
    }

    fn show(&self, what: &'static str, template: &str, update: impl FnOnce(&ProgressBar)) {
        if self.begun.elapsed() < SILENCE {
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_none_or(|(now, _)| *now != what) {
            if let Some((_, bar)) = shown.take() {
                bar.finish_and_clear();
            }
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            *shown = Some((what, ProgressBar::new(0).with_style(style).with_prefix(what)));
        }
        if let Some((_, bar)) = shown.as_ref() {
            update(bar);
        }
    }

    fn reading(&self, progress: Progress) {
        let (what, done, total) = match progress {
            Progress::Journal { done, total } => ("reading journal", done, total),
            Progress::Prios { done, total } => ("reading prios", done, total),
            Progress::Btree { done, known } => ("reading btree", done, known),
            Progress::Search { done, total } => ("searching buckets", done, total),
        };
        self.show(what, "{prefix} {wide_bar} {human_pos}/{human_len} {eta}", |bar| {
            bar.set_length(total);
            bar.set_position(done);
        });
    }

    fn writing(&self, progress: WritebackProgress) {
        const BYTES: &str = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        match progress {
            WritebackProgress::Reading(at) => self.reading(at),
            WritebackProgress::Copied(bytes) | WritebackProgress::Compared(bytes) => {
                self.show("writing back", BYTES, |bar| {
                    bar.set_length(self.copy_bytes);
                    bar.inc(bytes);
                });
            }
            WritebackProgress::Metadata(bytes) => {
                self.show("metadata", "{prefix} {spinner} {bytes} {bytes_per_sec}", |bar| {
                    bar.inc(bytes);
                });
            }
        }
    }

    fn clear(&self) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, bar)) = shown {
            bar.finish_and_clear();
        }
    }
}
