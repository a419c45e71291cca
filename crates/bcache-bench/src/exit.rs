//! Exit statuses by meaning. They are documented in the man page, whose text is in [`crate::man`].

use std::process::ExitCode;

pub use bcache_cli::exit::ExitError;

/// How a command ended when it did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// Refused, or failed before anything was written to a device.
    Refused = 1,
    /// Usage error (clap's own status, too).
    Usage = 2,
    /// Failed after a device was written to.
    Partial = 3,
    /// `compare` found something that has become worse.
    Worse = 4,
    /// Interrupted: what was done until then is in the report.
    Interrupted = 130,
}

impl From<Failure> for u8 {
    fn from(failure: Failure) -> Self {
        failure as Self
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure as u8)
    }
}
