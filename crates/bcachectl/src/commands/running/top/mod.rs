//! `bcachectl top`: running sets and devices, looked at again and again.
//!
//! The kernel is asked by a helper process, one question at a time: while it holds bcache's lock, the
//! screen says so and keys work. priority_stats and the like, which make the kernel work hard, are
//! never read.

mod batch;
mod figures;
mod screen;
#[cfg(test)]
mod tests;
mod words;

use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_cli::out::{Out, Style};
use bcache_core::device::sysfs::Root;
use bcache_core::running::{Asker, Files, Question, SLOW, Snapshot};
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::figures::{Figures, Sample};
use self::screen::Screen;
use super::status::{complain, recorded_root};
use crate::ask::{asker, silence};
use crate::cli::running::TopArgs;
use crate::interrupt;

/// How often keys and a late answer are looked for.
const POLL: Duration = Duration::from_millis(100);

/// Runs `bcachectl top`.
pub(in crate::commands) fn top(args: &TopArgs) -> Result<ExitCode> {
    if args.interval.is_zero() {
        bail!("an interval of 0 measures nothing");
    }
    let root = args.recorded.as_deref().map_or_else(|| Ok(Root::system()), recorded_root)?;
    let stop = interrupt::install().context("cannot catch signals")?;
    let question = Question { files: Files::OfView, ..Question::default() };
    let mut asker = asker(root, question);
    if args.batch || args.once {
        // A recorded tree does not change: there is nothing to wait for.
        let wait = args.recorded.is_none();
        return in_batch(args, &mut asker, wait, &stop);
    }
    if !io::stdout().is_terminal() {
        bail!("standard output is no terminal; --batch prints lines");
    }
    let mut terminal = ratatui::try_init().context("cannot take the terminal")?;
    let mut screen = Screen::new(args.sort, args.interval, Style::of_stdout().colour);
    let ended = watch(args, &mut asker, &mut screen, &stop, &mut |screen| {
        terminal.draw(|frame| screen.draw(frame)).map(|_| ())
    });
    ratatui::restore();
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// What is said where there is nothing to show.
fn nothing(available: bool) -> &'static str {
    if available {
        "the kernel runs no bcache set or device"
    } else {
        "the kernel's bcache is not loaded"
    }
}

/// The answer, waited for at most `limit`.
fn answer(asker: &mut Asker, limit: Duration) -> Option<io::Result<Sample>> {
    let answer = asker.answer(limit)?;
    Some(answer.and_then(sample))
}

fn sample(snapshot: Snapshot) -> io::Result<Sample> {
    Ok(Sample { view: snapshot.view()?, at: Instant::now(), silent: snapshot.silent })
}

/// What has been outstanding for a second or longer, in words, and for how many seconds.
fn blocked(asker: &Asker) -> Option<(u64, String)> {
    let since = asker.since()?.elapsed();
    let words = silence(&asker.silent(), since).filter(|_| since >= SLOW)?;
    Some((since.as_secs(), words))
}

/// Looks and draws until a key or a signal ends it, or after the looks that were asked for.
fn watch(
    args: &TopArgs,
    asker: &mut Asker,
    screen: &mut Screen,
    stop: &AtomicBool,
    draw: &mut dyn FnMut(&Screen) -> io::Result<()>,
) -> Result<()> {
    let mut next = Instant::now();
    let mut looks = 0;
    let mut shown = None;
    draw(screen)?;
    while !stop.load(Ordering::Relaxed) {
        if asker.since().is_none() && !screen.is_paused() && Instant::now() >= next {
            asker.ask();
            next = Instant::now() + args.interval;
        }
        let mut changed = step(asker, screen, &mut shown, &mut looks);
        // Without a question, nothing but a key or the next look comes.
        let pause = match (asker.since(), screen.is_paused()) {
            (Some(_), _) => POLL,
            (None, true) => SLOW,
            (None, false) => next.saturating_duration_since(Instant::now()).min(SLOW),
        };
        if event::poll(pause)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    if !screen.on_key(key) {
                        return Ok(());
                    }
                    changed = true;
                }
                Event::Resize(..) => changed = true,
                _ => {}
            }
        }
        if changed {
            draw(screen)?;
        }
        if args.count > 0 && looks >= args.count {
            return Ok(());
        }
    }
    Ok(())
}

/// Takes an answer, if there is one, and says whether there is something new to draw.
fn step(asker: &mut Asker, screen: &mut Screen, shown: &mut Option<u64>, looks: &mut u64) -> bool {
    let answer = answer(asker, Duration::ZERO);
    let is_new = answer.is_some();
    match answer {
        Some(Ok(sample)) => {
            screen.take(sample);
            *looks += 1;
        }
        Some(Err(error)) => screen.fail(format!("cannot read /sys: {error}")),
        None => {}
    }
    let blocked = blocked(asker);
    let seconds = blocked.as_ref().map(|(seconds, _)| *seconds);
    screen.blocked(blocked.map(|(_, words)| words));
    let told = std::mem::replace(shown, seconds) != seconds;
    is_new || told
}

/// Prints each look. Rates take two, so that the first one is not printed. What does not answer for a
/// second is named, and left out.
fn in_batch(args: &TopArgs, asker: &mut Asker, wait: bool, stop: &AtomicBool) -> Result<ExitCode> {
    let count = if args.once { 1 } else { args.count };
    let mut last: Option<Sample> = None;
    let mut looks = 0;
    let mut out = Out::stdout();
    let mut status = ExitCode::SUCCESS;
    while !stop.load(Ordering::Relaxed) {
        let snapshot = asker.within(SLOW).context("cannot read /sys")?;
        if !snapshot.silent.is_empty() {
            status = complain(&snapshot);
        }
        let sample = sample(snapshot).context("cannot read /sys")?;
        if last.is_some() || !wait {
            let mut figures = Figures::new(last.as_ref(), &sample);
            figures.sort(args.sort);
            batch::write(&mut out, &figures)?;
            out.flush()?;
            looks += 1;
        }
        last = Some(sample);
        if count > 0 && looks >= count {
            break;
        }
        sleep(args.interval, stop);
    }
    Ok(status)
}

/// Sleeps, at most until somebody wants the end.
fn sleep(interval: Duration, stop: &AtomicBool) {
    let begun = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let left = interval.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(POLL));
    }
}
