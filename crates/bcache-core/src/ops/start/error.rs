//! Why prios and gens could not be written.

use crate::device::DeviceError;

/// Why prios and gens could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CacheIoError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The journal's sequence numbers have come to their end.
    #[error("the journal cannot number another entry")]
    JournalSeq,
    /// There is no thread to write prio sets any more, or none could be started.
    #[error("the thread that writes prio sets is gone")]
    WriterEnded,
}
