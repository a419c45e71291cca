//! `bcachectl invalidate`: read, plan, show, confirm, write, prove.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_cli::out::Out;
use bcache_core::cache_set::{Progress, ReadOptions};
use bcache_core::device::holders::{Holder, holders_of};
use bcache_core::device::{DeviceError, file};
use bcache_core::ops::invalidate::{
    self, DeviceState, InvalidatePlan, Options, RunError, RunProgress, TrustedSet,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::InvalidateArgs;
use crate::exit::{ExitError, Failure};
use crate::render::invalidate as render;

/// Refused buckets that the message on standard error tells of; the list has them all.
const REFUSED_TOLD: usize = 5;

/// Runs `bcachectl invalidate`.
pub fn run(args: &InvalidateArgs) -> Result<ExitCode> {
    let selection = args.selection().context("say which buckets to invalidate")?;
    let read = ReadOptions::default();
    let options = Options { selection, skip_refused: args.skip_refused, walk: read.walk };
    let path = &args.device;
    let device = file::open_read(path)?;
    // A plan for a device that is in use would be of what it held a moment ago.
    let holders = holders_of(path);
    if !holders.is_empty() {
        return Err(in_use(DeviceError::Busy { path: path.clone(), holders }));
    }
    let mut bar = Bar::new("reading");
    let set = TrustedSet::read(&device, &read, &mut |progress| bar.reading(progress));
    drop(bar);
    let plan = invalidate::plan(set?, &options)?;

    let mut out = Out::stdout();
    if plan.stopped() || (plan.writes.is_none() && plan.refused_count() > 0) {
        show(&mut out, args, &plan, render::Outcome::Refused)?;
        out.finish()?;
        return Err(refused(&plan));
    }
    if args.dry_run {
        show(&mut out, args, &plan, render::Outcome::DryRun)?;
        out.finish()?;
        return Ok(ExitCode::SUCCESS);
    }
    if plan.writes.is_some() && !args.yes && !confirm(path, &plan)? {
        bail!("nothing was written");
    }
    let mut bar = Bar::new("writing");
    let total: u64 = plan
        .writes
        .iter()
        .map(|writes| writes.sets.progress_bytes() + writes.commit.progress_bytes())
        .sum();
    let done =
        invalidate::run(&plan, &read, || file::open_write(path), &mut |progress| match progress {
            RunProgress::Written(bytes) => bar.writing(bytes, total),
            RunProgress::Proving(progress) => bar.reading(progress),
        });
    drop(bar);
    done.map_err(|error| failure(path, error))?;
    show(&mut out, args, &plan, render::Outcome::Done)?;
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn show(
    out: &mut Out,
    args: &InvalidateArgs,
    plan: &InvalidatePlan<'_>,
    outcome: render::Outcome,
) -> Result<()> {
    if args.json { render::json(out, plan, outcome) } else { render::text(out, plan, outcome) }
}

/// Asks on a terminal; elsewhere the command line is the consent.
fn confirm(path: &Path, plan: &InvalidatePlan<'_>) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(true);
    }
    let mut stderr = io::stderr();
    writeln!(stderr, "{}: {}", path.display(), render::headline(plan, render::Outcome::DryRun))?;
    render::totals(&mut stderr, plan)?;
    write!(stderr, "Go on? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A device in use, and how to stop what uses it.
fn in_use(error: DeviceError) -> anyhow::Error {
    let DeviceError::Busy { holders, .. } = &error else { return error.into() };
    let how = holders.iter().find_map(how_to_stop);
    match how {
        Some(how) => anyhow::anyhow!("{error}; {how}; nothing was written"),
        None => anyhow::anyhow!("{error}; nothing was written"),
    }
}

fn how_to_stop(holder: &Holder) -> Option<String> {
    match holder {
        Holder::BcacheCache { set_uuid: Some(set) } => Some(format!(
            "to stop it, unmount its bcache devices, stop each with `echo 1 \
             >/sys/block/bcacheN/bcache/stop`, and then the set with `echo 1 \
             >/sys/fs/bcache/{set}/stop`"
        )),
        Holder::BcacheCache { set_uuid: None } => {
            Some("to stop it, write 1 to the stop file of its set in /sys/fs/bcache".to_owned())
        }
        Holder::BcacheBacking { .. } => {
            Some("it is a backing device, buckets are on the cache device".to_owned())
        }
        Holder::Loop { name } => Some(format!(
            "use /dev/{name}, or detach it with `losetup --detach /dev/{name}` once it is not in use"
        )),
        Holder::Partition { holders, .. } | Holder::WholeDisk { holders, .. } => {
            holders.iter().find_map(how_to_stop)
        }
        _ => None,
    }
}

fn refused(plan: &InvalidatePlan<'_>) -> anyhow::Error {
    let count = plan.refused_count();
    let told: Vec<String> = plan
        .refused()
        .take(REFUSED_TOLD)
        .map(|(bucket, reason)| format!("bucket {bucket}: {reason}"))
        .collect();
    let more = match count.saturating_sub(told.len() as u64) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    // One advice for each kind of reason, in the order of the buckets.
    let mut advice: BTreeMap<&str, usize> = BTreeMap::new();
    for (order, (_, reason)) in plan.refused().take(REFUSED_TOLD).enumerate() {
        advice.entry(reason.instead()).or_insert(order);
    }
    let mut advice: Vec<(usize, &str)> = advice.into_iter().map(|(text, n)| (n, text)).collect();
    advice.sort_unstable();
    let advice: Vec<&str> = advice.into_iter().map(|(_, text)| text).collect();
    let skip =
        if plan.target_count() > 0 { "; to invalidate the others, add --skip-refused" } else { "" };
    anyhow::anyhow!(
        "nothing was written, {count} refused ({}{more}). What to do: {}{skip}",
        told.join("; "),
        advice.join("; ")
    )
}

fn failure(path: &Path, error: RunError) -> anyhow::Error {
    let state = error.state();
    if let RunError::Claim(error @ DeviceError::Busy { .. }) = error {
        return in_use(error);
    }
    let (failure, what) = match state {
        DeviceState::Unchanged => (Failure::Refused, "nothing was written"),
        DeviceState::Old => (
            Failure::Refused,
            "nothing was invalidated, the cache is as it was (only unused buckets were written)",
        ),
        DeviceState::OldOrNew => (
            Failure::Partial,
            "the cache is wholly as it was or wholly as planned, and sound either way; \
             `bcachectl show --prios` tells which",
        ),
        DeviceState::New => {
            (Failure::Unproven, "everything was written and flushed, but could not be read again")
        }
        DeviceState::Undefined => (
            Failure::Undefined,
            "the device did not keep what was written: run `bcachectl check`, and do not register it",
        ),
    };
    let error = anyhow::Error::from(error).context(format!("{}: {what}", path.display()));
    ExitError::wrap(failure, error)
}

/// A progress bar on a terminal, for what takes longer than a second.
struct Bar {
    what: &'static str,
    begun: Instant,
    shown: Option<ProgressBar>,
}

impl Bar {
    fn new(what: &'static str) -> Self {
        Self { what, begun: Instant::now(), shown: None }
    }

    fn show(&mut self, total: u64, bytes: bool) -> Option<&ProgressBar> {
        if self.shown.is_none() && self.begun.elapsed() > Duration::from_secs(1) {
            let template = if bytes {
                "{prefix} {wide_bar} {bytes}/{total_bytes} {eta}"
            } else {
                "{prefix} {wide_bar} {pos}/{len} nodes"
            };
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.shown = Some(ProgressBar::new(total).with_style(style).with_prefix(self.what));
        }
        self.shown.as_ref()
    }

    fn reading(&mut self, progress: Progress) {
        let (done, total, bytes) = match progress {
            Progress::Journal { done, total } | Progress::Prios { done, total } => {
                (done, total, true)
            }
            Progress::Btree { done, known } => (done, known, false),
        };
        if let Some(bar) = self.show(total, bytes) {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn writing(&mut self, bytes: u64, total: u64) {
        if let Some(bar) = self.show(total, true) {
            bar.inc(bytes);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
