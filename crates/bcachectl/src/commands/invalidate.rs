//! `bcachectl invalidate`: read, plan, show, confirm, write, prove.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_cli::out::Out;
use bcache_cli::{confirm, is_broken_pipe};
use bcache_core::cache_set::{Progress, ReadOptions};
use bcache_core::device::holders::Holder;
use bcache_core::device::{DeviceError, file};
use bcache_core::ops::invalidate::{
    self, Chosen, DeviceState, Finished, InvalidatePlan, Options, RunError, RunProgress, TrustedSet,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{holding, undo};
use crate::cli::InvalidateArgs;
use crate::exit::{ExitError, Failure, NOT_KEPT};
use crate::render::invalidate as render;

/// Refused buckets that the message on standard error tells of; the list has them all.
const REFUSED_TOLD: usize = 5;

/// Runs `bcachectl invalidate`.
pub fn run(args: &InvalidateArgs) -> Result<ExitCode> {
    let selection = args.selection().context("say which buckets to invalidate")?;
    let read = ReadOptions::default();
    let options = Options { selection, skip_refused: args.skip_refused, walk: read.walk };
    let names_buckets = options.selection.names_buckets();
    let path = &args.device;
    // A plan for a device that is in use would be of what it held a moment ago.
    let device = file::open_unused(path).map_err(in_use)?;
    // Before the reading, which takes minutes on a large cache.
    if !args.write.dry_run && !args.write.script.yes && !io::stdin().is_terminal() {
        bail!(
            "{}: no terminal to ask on: give --yes to invalidate, or --dry-run to see what would be \
             dropped; nothing was written",
            path.display()
        );
    }
    let undo = undo::log(args.write.undo.as_deref().filter(|_| !args.write.dry_run), "invalidate")?;
    let mut bar = Bar::new("reading");
    let set = TrustedSet::read(&device, &read, &mut |progress| bar.reading(progress));
    drop(bar);
    let plan = invalidate::plan(set?, &options)?;

    let chosen = &plan.chosen;
    let nothing_left = names_buckets && chosen.writes.is_none() && chosen.refused_count() > 0;
    if chosen.stopped() || nothing_left {
        // Each bucket is told once: by the list for people, and else by the message.
        return Err(match show(args, chosen, render::Outcome::Refused) {
            Ok(()) if !args.write.script.json => refused(chosen, true),
            Err(error) if !is_broken_pipe(&error) => {
                refused(chosen, false).context(format!("the list could not be written ({error:#})"))
            }
            _ => refused(chosen, false),
        });
    }
    if args.write.dry_run {
        show_dry_run(args, &plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    if chosen.writes.is_some() && !args.write.script.yes && !confirm(path, chosen)? {
        bail!("nothing was written");
    }
    let mut bar = Bar::new("writing");
    let total = plan.write_bytes();
    let mut tell = |progress| match progress {
        RunProgress::Written(bytes) => bar.writing(bytes, total),
        RunProgress::Proving(progress) => bar.reading(progress),
    };
    let open = || file::open_write(path);
    let Finished { chosen, result } =
        invalidate::run_with_undo(plan, &read, undo.as_ref(), open, &mut tell);
    drop(bar);
    undo::tell(undo.as_ref());
    if let Err(error) = result {
        if args.write.script.json {
            // What failed before says more than that this could not be told.
            let _ = show(args, &chosen, render::Outcome::Failed(error.state()));
        }
        return Err(failure(path, error));
    }
    match show(args, &chosen, render::Outcome::Done) {
        Err(error) if chosen.writes.is_some() && !is_broken_pipe(&error) => {
            let what =
                "the buckets are invalidated, which was proven; the report could not be written";
            Err(ExitError::wrap(Failure::Unreported, error.context(what)))
        }
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn show(args: &InvalidateArgs, chosen: &Chosen<'_>, outcome: render::Outcome) -> Result<()> {
    let mut out = Out::stdout();
    if args.write.script.json {
        render::json(&mut out, chosen, outcome)?;
    } else {
        render::text(&mut out, chosen, outcome)?;
    }
    out.finish()
}

fn show_dry_run(args: &InvalidateArgs, plan: &InvalidatePlan<'_>) -> Result<()> {
    let mut out = Out::stdout();
    if args.write.script.json {
        render::json(&mut out, &plan.chosen, render::Outcome::DryRun)?;
    } else {
        render::dry_run(&mut out, plan)?;
    }
    out.finish()
}

/// Asks on the terminal.
fn confirm(path: &Path, chosen: &Chosen<'_>) -> Result<bool> {
    let mut stderr = io::stderr();
    writeln!(stderr, "{}: {}", path.display(), render::headline(chosen, render::Outcome::DryRun))?;
    render::totals(&mut stderr, chosen)?;
    Ok(confirm::go_on()?)
}

/// A device in use, and how to stop what uses it.
fn in_use(error: DeviceError) -> anyhow::Error {
    holding::in_use(error, |holder| match holder {
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
        _ => None,
    })
}

fn refused(chosen: &Chosen<'_>, is_listed: bool) -> anyhow::Error {
    let count = chosen.refused_count();
    let skip = if chosen.target_count() > 0 {
        "; to invalidate the others, add --skip-refused"
    } else {
        ""
    };
    if is_listed {
        return anyhow::anyhow!("nothing was written, {count} refused{skip}");
    }
    let told: Vec<String> = chosen
        .refused()
        .take(REFUSED_TOLD)
        .map(|(bucket, reason)| format!("bucket {bucket}: {reason}"))
        .collect();
    let more = match count.saturating_sub(told.len() as u64) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let advice: Vec<String> =
        chosen.advice().iter().map(|it| format!("{}: {}", it.kind, it.instead)).collect();
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
        DeviceState::Undefined => (Failure::Undefined, NOT_KEPT),
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
            Progress::Btree { done, known: total } | Progress::Search { done, total } => {
                (done, total, false)
            }
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
