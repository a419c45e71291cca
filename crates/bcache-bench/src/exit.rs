//! Exit statuses by meaning. They are documented in the man page, whose text is in [`crate::man`].

use std::process::ExitCode;

/// How a command ended when it did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// Refused, or failed before anything was written to a device.
    Refused = 1,
    /// The command line makes no sense (clap's own status, too).
    Usage = 2,
    /// Failed after a device was written to.
    Partial = 3,
    /// `compare` found something that has become worse.
    Worse = 4,
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure as u8)
    }
}

/// An error that ends the command with a status of its own.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct ExitError {
    /// The status.
    pub failure: Failure,
    /// The message.
    pub error: anyhow::Error,
}

impl ExitError {
    /// Wraps `error` so that the command ends with `failure`.
    pub fn wrap(failure: Failure, error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self { failure, error: error.into() }.into()
    }
}
