//! Ctrl-C: the first one ends a run early, with its report; the second one ends the program.
//!
//! The signals are blocked in every thread and waited for in one, so that no code runs in a signal
//! handler and no system call of a writer is interrupted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal, raise};

/// The signals that end a run.
const SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

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

fn watch(signals: SigSet, stop: &AtomicBool) {
    while let Ok(signal) = signals.wait() {
        if stop.swap(true, Ordering::Relaxed) {
            // As if it had never been caught, so that a shell sees what ended the program.
            let mut this = SigSet::empty();
            this.add(signal);
            let _ = this.thread_unblock();
            let _ = raise(signal);
        } else {
            // Nothing is left to be done where standard error is closed.
            let _ = writeln!(io::stderr(), "\nbcache-bench: ending the run; once more to abort");
        }
    }
}
