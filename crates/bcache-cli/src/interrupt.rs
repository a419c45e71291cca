//! Ctrl-C: the first signal is noticed, so that a command ends in good order; the second one ends the
//! program.
//!
//! The signals are blocked in every thread and waited for in one, so that no code runs in a signal
//! handler and no system call of a writer is interrupted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};

/// What is caught, and how.
#[derive(Clone, Copy, Debug)]
pub struct Signals {
    /// The signals.
    pub signals: &'static [Signal],
    /// Within this time of the first signal, further ones are taken for the same: some send a signal
    /// to the process and to its group.
    pub same: Duration,
    /// A line for standard error at the first one.
    pub notice: Option<&'static str>,
}

/// Catches the signals from now on; the flag is set at the first one.
///
/// Has to be called before any other thread is started: threads inherit what is blocked.
///
/// # Errors
/// When the signals cannot be blocked, or there is no thread for them.
pub fn install(caught: Signals) -> io::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    for &signal in caught.signals {
        signals.add(signal);
    }
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let watch = move || watch(signals, caught, &flag);
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(stop)
}

/// What a signal means, by what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    End,
    Repeat,
    Abort,
}

fn meaning(first: Option<Instant>, now: Instant, same: Duration) -> Meaning {
    match first {
        None => Meaning::End,
        Some(first) if now.saturating_duration_since(first) < same => Meaning::Repeat,
        Some(_) => Meaning::Abort,
    }
}

fn watch(signals: SigSet, caught: Signals, stop: &AtomicBool) {
    let mut first = None;
    while let Ok(signal) = signals.wait() {
        let now = Instant::now();
        match meaning(first, now, caught.same) {
            Meaning::End => {
                first = Some(now);
                stop.store(true, Ordering::Relaxed);
                if let Some(notice) = caught.notice {
                    // Nothing is left to be done where standard error is closed.
                    let _ = writeln!(io::stderr(), "\n{notice}");
                }
            }
            Meaning::Repeat => {}
            Meaning::Abort => {
                // As if it had never been caught, so that a shell sees what ended the program.
                let mut this = SigSet::empty();
                this.add(signal);
                let _ = this.thread_unblock();
                let _ = raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_within_a_moment_is_the_same_signal() {
        let (first, same) = (Instant::now(), Duration::from_millis(500));
        assert_eq!(meaning(None, first, same), Meaning::End);
        assert_eq!(meaning(Some(first), first, same), Meaning::Repeat);
        assert_eq!(meaning(Some(first), first + same / 2, same), Meaning::Repeat);
        assert_eq!(meaning(Some(first), first + same, same), Meaning::Abort);
        assert_eq!(meaning(Some(first), first, Duration::ZERO), Meaning::Abort);
    }
}
