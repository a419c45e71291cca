//! Block traces: one reader a format, all giving the same requests.
//!
//! A trace is a stream: readers keep no more than a record, and tell formats apart by content.
//! What is no request is counted by kind ([`Skipped`]), never dropped in silence.

mod arc;
mod biosnoop;
mod blkparse;
mod blktrace;
mod by_line;
mod columns;
mod csv;
mod detect;
mod disksim;
mod ftrace;
pub mod fuzz;
mod iolog;
mod load;
mod number;
mod oracle;
mod records;
mod skipped;
mod source;
mod vscsi;

#[cfg(test)]
mod tests;

pub use columns::{Column, Columns, ColumnsError};
pub use detect::Format;
pub use load::{Counted, LoadOptions, Summary, Trace, load, load_until};
pub use skipped::{SkipReason, Skipped};
pub use source::{Source, from_reader, open};

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use bcache_core::model::{Flags, Op, Request};

/// A request longer than this is no request: 2 GiB.
const SECTORS_MAX: u64 = 1 << 22;
/// Sectors of a device are numbered in 48 bits.
const SECTOR_MAX: u64 = 1 << 48;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The stream of a trace cannot be read on.
    #[error("cannot read on")]
    Read(#[from] io::Error),
    /// No format is known that begins like this.
    #[error("not a trace in a known format; --format names one")]
    UnknownFormat,
    /// It is empty.
    #[error("the trace is empty")]
    Empty,
    /// All that is in it is something else.
    #[error("no read, write or discard is in the trace ({})", describe(skipped))]
    NoRequests {
        /// What is in it.
        skipped: Skipped,
    },
    /// An iolog of another fio.
    #[error("a fio iolog of version {version}; versions 2 and 3 can be read")]
    IologVersion {
        /// Its version.
        version: u64,
    },
    /// Several files of a format of which one file is a whole trace.
    #[error("{} is a trace of its own; only fio iologs and per-CPU blktrace files are read together", path.display())]
    SeveralFiles {
        /// The file.
        path: PathBuf,
    },
    /// It names more devices than can be numbered.
    #[error("the trace names more than 65,536 devices")]
    TooManyDevices,
    /// More requests than fit the memory that may be used.
    #[error("the trace has more than {max} requests; --sample takes a part of it")]
    TooManyRequests {
        /// How many may be.
        max: usize,
    },
}

/// What was skipped, for an error.
fn describe(skipped: &Skipped) -> String {
    let kinds: Vec<_> =
        skipped.iter().map(|(reason, count)| format!("{count} {}", reason.describe())).collect();
    kinds.join(", ")
}

/// Reads one format.
trait Reader: Send {
    /// The next request; `None` at the end.
    fn next_request(&mut self) -> Result<Option<Request>, TraceError>;

    /// What was skipped so far.
    fn skipped(&self) -> &Skipped;

    /// The names of the devices, by number.
    fn devices(&self) -> Vec<String>;

    /// Whether the format has times of its own.
    fn has_times(&self) -> bool {
        true
    }
}

/// The requests of a trace, in its order.
pub struct Requests {
    reader: Box<dyn Reader>,
    format: Format,
    /// Of each of its files: whether the end of the compressed stream is missing.
    cut_off: Vec<Arc<AtomicBool>>,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Requests {
    /// Its format.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> &Skipped {
        self.reader.skipped()
    }

    /// Files whose compressed stream was found to end too early.
    pub fn cut_off(&self) -> u64 {
        self.cut_off.iter().filter(|cut_off| cut_off.load(Ordering::Relaxed)).count() as u64
    }

    /// The names of the devices seen so far, by their numbers.
    pub fn devices(&self) -> Vec<String> {
        self.reader.devices()
    }

    /// Whether its times are the trace's, not made up.
    pub fn has_times(&self) -> bool {
        self.reader.has_times()
    }
}

impl Iterator for Requests {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.reader.next_request().transpose()
    }
}

/// A request, if its numbers can be those of one.
fn checked(request: Request, skipped: &mut Skipped) -> Option<Request> {
    if request.sectors == 0 {
        skipped.add(SkipReason::NoData);
        return None;
    }
    if u64::from(request.sectors) > SECTORS_MAX || request.end() > SECTOR_MAX {
        skipped.add(SkipReason::OutOfRange);
        return None;
    }
    Some(request)
}

/// Whole sectors that hold `bytes` at `offset` bytes.
fn sectors_of(offset: u64, bytes: u64) -> (u64, u32) {
    let first = offset / 512;
    let end = offset.saturating_add(bytes).div_ceil(512);
    (first, u32::try_from(end.saturating_sub(first)).unwrap_or(u32::MAX))
}
