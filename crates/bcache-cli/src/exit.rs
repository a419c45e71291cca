//! Exit statuses that both commands have, and errors that carry one.

use std::process::ExitCode;

use bcache_core::device::DeviceError;

/// Refused, or failed before anything was written.
pub const REFUSED: u8 = 1;
/// Usage error.
pub const USAGE: u8 = 2;

/// An error that ends the command with a status of its own.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct ExitError {
    /// The status.
    pub status: u8,
    /// The message.
    pub error: anyhow::Error,
}

impl ExitError {
    /// Wraps `error` so that the command ends with `status`.
    pub fn wrap(status: impl Into<u8>, error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self { status: status.into(), error: error.into() }.into()
    }

    /// The status that `error` ends the command with.
    pub fn status_of(error: &anyhow::Error) -> ExitCode {
        error.downcast_ref::<Self>().map_or(REFUSED, |error| error.status).into()
    }
}

/// What a device answered, where that is the reason.
pub fn device_error(error: &anyhow::Error) -> Option<&DeviceError> {
    let inner = error.downcast_ref::<ExitError>().map_or(error, |exit| &exit.error);
    inner.chain().find_map(|cause| cause.downcast_ref())
}

/// An error with its causes in one line, and that root can, where a device kept its user out.
pub fn told(error: &anyhow::Error) -> String {
    let denied = device_error(error).is_some_and(DeviceError::is_permission_denied);
    let needs_root = denied && !nix::unistd::geteuid().is_root();
    format!("{error:#}{}", if needs_root { ": run this as root" } else { "" })
}
