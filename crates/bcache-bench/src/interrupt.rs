//! Ctrl-C: the first one ends a run early, with its report; the second one ends the program. A repeat
//! within a moment of the first counts as the same.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bcache_cli::interrupt::{self, Signals};
use nix::sys::signal::Signal;

/// The signals that end a run.
const SIGNALS: Signals = Signals {
    signals: &[Signal::SIGINT, Signal::SIGTERM],
    same: Duration::from_millis(500),
    notice: Some("bcache-bench: ending the run; once more to abort"),
};

/// Catches the signals from now on; see [`interrupt::install`].
pub fn install() -> io::Result<Arc<AtomicBool>> {
    interrupt::install(SIGNALS)
}
