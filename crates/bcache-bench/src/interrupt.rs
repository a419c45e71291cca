//! Ctrl-C: the first one ends a run early, with its report; the second one ends the program. A repeat
//! within a moment of the first counts as the same: some send a signal to the process and to its group.
//!
//! The signals are blocked in every thread and waited for in one, so that no code runs in a signal
//! handler and no system call of a writer is interrupted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};

/// The signals that end a run.
const SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// Within this time of the first signal, further ones are taken for the same.
const SAME: Duration = Duration::from_millis(500);

/// Catches the signals from now on; the flag is set at the first one.
///
/// Has to be called before any other thread is started: threads inherit what is blocked.
pub fn install() -> io::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    for signal in SIGNALS {
        signals.add(signal);
    }
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || watch(signals, &flag))?;
    Ok(stop)
}

/// What a signal means, by what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    End,
    Repeat,
    Abort,
}

fn meaning(first: Option<Instant>, now: Instant) -> Meaning {
    match first {
        None => Meaning::End,
        Some(first) if now.saturating_duration_since(first) < SAME => Meaning::Repeat,
        Some(_) => Meaning::Abort,
    }
}

fn watch(signals: SigSet, stop: &AtomicBool) {
    let mut first = None;
    while let Ok(signal) = signals.wait() {
        let now = Instant::now();
        match meaning(first, now) {
            Meaning::End => {
                first = Some(now);
                stop.store(true, Ordering::Relaxed);
                // Nothing is left to be done where standard error is closed.
                let _ =
                    writeln!(io::stderr(), "\nbcache-bench: ending the run; once more to abort");
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
        let first = Instant::now();
        assert_eq!(meaning(None, first), Meaning::End);
        assert_eq!(meaning(Some(first), first), Meaning::Repeat);
        assert_eq!(meaning(Some(first), first + SAME / 2), Meaning::Repeat);
        assert_eq!(meaning(Some(first), first + SAME), Meaning::Abort);
    }
}
