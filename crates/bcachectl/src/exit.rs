//! Exit statuses by meaning. They are documented in the man pages, whose text is in [`crate::man`].

use std::process::ExitCode;

pub use bcache_cli::exit::ExitError;

/// How a command ended when it did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Refused, or failed before anything was written.
    Refused,
    /// Usage error (clap's own status, too).
    Usage,
    /// Failed after writing had begun: at least one device has changed.
    Partial,
    /// Written and flushed, but it could not be read again to prove it.
    Unproven,
    /// What was read back is not what was written: the device is in no state that can be told.
    Undefined,
    /// Done and proven, but the report of it could not be written.
    Unreported,
    /// `export`: something was left out, or is not certain; the map says what.
    LeftOut,
    /// The kernel was told, and was not done in time.
    NotDone,
    /// `status`: a device is in a state that loses data.
    Danger,
    /// The user wanted no more waiting.
    Interrupted,
    /// `repair`: damage is left.
    DamageLeft,
    /// `show --dirty`: there is dirty data.
    DirtyData,
    /// `show --dirty`: there is none, and wiping the cache would do harm all the same.
    UnsafeToWipe,
}

/// What is said of [`Failure::Undefined`], where a cache was written.
pub const NOT_KEPT: &str = "a device did not keep what was written to it: run `bcachectl check`, and do \
                            not register the cache";

impl Failure {
    /// The status. Numbers above 3 have a meaning for one command each.
    pub const fn status(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Partial => 3,
            Self::Unproven
            | Self::LeftOut
            | Self::DamageLeft
            | Self::DirtyData
            | Self::NotDone
            | Self::Danger => 4,
            Self::Undefined | Self::UnsafeToWipe => 5,
            Self::Unreported => 6,
            Self::Interrupted => 130,
        }
    }
}

impl From<Failure> for u8 {
    fn from(failure: Failure) -> Self {
        failure.status()
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure.status())
    }
}

/// How a check ended: the statuses of fsck(8), which add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckStatus {
    /// Something was found, and left as it is.
    ErrorsLeft = 4,
    /// The device, or a part of it, could not be checked.
    Failed = 8,
}

impl From<CheckStatus> for u8 {
    fn from(status: CheckStatus) -> Self {
        status as Self
    }
}
