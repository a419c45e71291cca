//! Ctrl-C while a command waits: the first one ends the waiting, so that what was changed for the
//! time is put back; the second one ends the program.
//!
//! The signals are blocked in every thread and waited for in one, so that no code runs in a signal
//! handler and no write to the kernel is interrupted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal, raise};

/// The signals that end the waiting.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Catches the signals from now on; the flag is set at the first one.
///
/// Has to be called before any other thread is started: threads inherit what is blocked.
///
/// # Errors
/// When the signals cannot be blocked, or there is no thread for them.
pub(crate) fn install() -> io::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    for signal in SIGNALS {
        signals.add(signal);
    }
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let watch = move || {
        while let Ok(signal) = signals.wait() {
            if flag.swap(true, Ordering::Relaxed) {
                // As if it had never been caught, so that a shell sees what ended the program.
                let mut this = SigSet::empty();
                this.add(signal);
                let _ = this.thread_unblock();
                let _ = raise(signal);
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(stop)
}
