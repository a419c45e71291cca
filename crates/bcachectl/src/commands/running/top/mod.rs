//! `bcachectl top`: running sets and devices, looked at again and again.
//!
//! The kernel is asked in a thread of its own, one question at a time: while it holds bcache's lock,
//! the screen says so and keys work. priority_stats and the like, which make the kernel work hard, are
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
use bcache_core::running::{Late, View};
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::figures::{Figures, Sample};
use self::screen::Screen;
use super::status::Recorded;
use crate::cli::running::TopArgs;
use crate::interrupt;

/// How long the kernel may take before it is said.
const SLOW: Duration = Duration::from_secs(1);

/// How often keys and a late answer are looked for.
const POLL: Duration = Duration::from_millis(100);

/// Runs `bcachectl top`.
pub(in crate::commands) fn top(args: &TopArgs) -> Result<ExitCode> {
    if args.interval.is_zero() {
        bail!("an interval of 0 measures nothing");
    }
    let recorded = args.recorded.as_deref().map(Recorded::read).transpose()?;
    let root = recorded.as_ref().map_or_else(Root::system, |it| it.root.clone());
    let stop = interrupt::install().context("cannot catch signals")?;
    let mut asker = Asker::new(root);
    if args.batch || args.once {
        // A recorded tree does not change: there is nothing to wait for.
        let wait = recorded.is_none();
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

/// Asks the kernel, one question at a time.
struct Asker {
    root: Root,
    late: Late<io::Result<View>>,
    asked: Option<Instant>,
}

impl Asker {
    fn new(root: Root) -> Self {
        Self { root, late: Late::default(), asked: None }
    }

    /// Asks, unless an answer is outstanding.
    fn ask(&mut self) {
        if self.asked.is_none() {
            self.asked = Some(Instant::now());
            let root = self.root.clone();
            self.late.start(move || View::read(&root));
        }
    }

    /// The answer, waited for at most `limit`.
    fn answer(&mut self, limit: Duration) -> Option<io::Result<Sample>> {
        let answer = self.late.wait(limit)?;
        self.asked = None;
        Some(answer.map(|view| Sample { view, at: Instant::now() }))
    }

    /// For how long an answer has been outstanding, from a second on.
    fn blocked(&self) -> Option<Duration> {
        self.asked.map(|it| it.elapsed()).filter(|it| *it >= SLOW)
    }
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
        if asker.asked.is_none() && !screen.is_paused() && Instant::now() >= next {
            asker.ask();
            next = Instant::now() + args.interval;
        }
        let mut changed = step(asker, screen, &mut shown, &mut looks);
        // Without a question, nothing but a key or the next look comes.
        let pause = match (asker.asked, screen.is_paused()) {
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
    let answer = asker.answer(Duration::ZERO);
    let is_new = answer.is_some();
    match answer {
        Some(Ok(sample)) => {
            screen.take(sample);
            *looks += 1;
        }
        Some(Err(error)) => screen.fail(format!("cannot read /sys: {error}")),
        None => {}
    }
    let blocked = asker.blocked();
    screen.blocked(blocked);
    let seconds = blocked.map(|it| it.as_secs());
    let told = std::mem::replace(shown, seconds) != seconds;
    is_new || told
}

/// Prints each look. Rates take two, so that the first one is not printed.
fn in_batch(args: &TopArgs, asker: &mut Asker, wait: bool, stop: &AtomicBool) -> Result<ExitCode> {
    let count = if args.once { 1 } else { args.count };
    let mut last: Option<Sample> = None;
    let mut looks = 0;
    let mut out = Out::stdout();
    while !stop.load(Ordering::Relaxed) {
        asker.ask();
        let mut told = false;
        let sample = loop {
            if let Some(answer) = asker.answer(POLL) {
                break answer.context("cannot read /sys")?;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(ExitCode::SUCCESS);
            }
            if let (Some(since), false) = (asker.blocked(), told) {
                told = true;
                // Where standard error is closed, nobody is told.
                let _ = writeln!(io::stderr(), "bcachectl: {}", words::blocked(since));
            }
        };
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
    Ok(ExitCode::SUCCESS)
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
