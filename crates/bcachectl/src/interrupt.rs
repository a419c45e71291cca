//! Ctrl-C while a command waits: the first one ends the waiting, so that what was changed for the
//! time is put back; the second one ends the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bcache_cli::interrupt::{self, Signals};
use nix::sys::signal::Signal;

/// The signals that end the waiting.
const SIGNALS: Signals = Signals {
    signals: &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP],
    same: Duration::ZERO,
    notice: None,
};

/// Catches the signals from now on; see [`interrupt::install`].
///
/// # Errors
/// When the signals cannot be blocked, or there is no thread for them.
pub(crate) fn install() -> io::Result<Arc<AtomicBool>> {
    interrupt::install(SIGNALS)
}
