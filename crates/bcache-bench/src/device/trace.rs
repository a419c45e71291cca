//! `--trace`: what the allocator does, one line for each event.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use bcache_core::allocator::{Reserve, TraceEvent, Tracer};

use crate::record::Clock;

/// Writes events to a file.
#[derive(Debug)]
pub struct TraceFile {
    path: PathBuf,
    clock: Clock,
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    file: BufWriter<File>,
    /// The first error; nothing is written after it.
    error: Option<io::Error>,
}

const fn name(reserve: Reserve) -> &'static str {
    match reserve {
        Reserve::Btree => "btree",
        Reserve::Prio => "prio",
        Reserve::MovingGc => "movinggc",
        Reserve::None => "none",
    }
}

/// One event as a line without its time.
fn line(device: u16, event: TraceEvent) -> String {
    match event {
        TraceEvent::Allocated { reserve, bucket } => {
            format!("alloc cache={device} bucket={bucket} reserve={}", name(reserve))
        }
        TraceEvent::AllocFailed { reserve, free, free_inc, prio_blocked } => format!(
            "alloc_fail cache={device} reserve={} free={free} free_inc={free_inc} \
             blocked={prio_blocked}",
            name(reserve)
        ),
        TraceEvent::Invalidated { bucket, sectors_used } => {
            format!("invalidate cache={device} bucket={bucket} sectors={sectors_used}")
        }
    }
}

impl TraceFile {
    /// Writes to `file`, which is at `path`.
    pub fn new(path: PathBuf, file: File) -> Self {
        let lines = Lines { file: BufWriter::new(file), error: None };
        Self { path, clock: Clock::start(), lines: Mutex::new(lines) }
    }

    /// Writes what is left; the first error that there was.
    pub fn finish(&self) -> Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match lines.error.take() {
            Some(error) => Err(error),
            None => lines.file.flush(),
        };
        result.with_context(|| format!("writing {} failed", self.path.display()))
    }
}

impl Tracer for TraceFile {
    fn trace(&self, device: u16, event: TraceEvent) {
        let line = line(device, event);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.error.is_none() {
            // With the lock, so that times rise from line to line.
            let now_ns = self.clock.now_ns();
            let (seconds, ns) = (now_ns / 1_000_000_000, now_ns % 1_000_000_000);
            lines.error = writeln!(lines.file, "{seconds}.{ns:09} {line}").err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_core::units::BucketIndex;

    #[test]
    fn each_event_is_a_line_with_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let trace = TraceFile::new(path.clone(), File::create(&path).unwrap());
        let (reserve, bucket) = (Reserve::MovingGc, BucketIndex(77));
        trace.trace(0, TraceEvent::Allocated { reserve, bucket });
        trace.trace(1, TraceEvent::AllocFailed { reserve, free: 3, free_inc: 4, prio_blocked: 5 });
        trace.trace(2, TraceEvent::Invalidated { bucket, sectors_used: 9 });
        trace.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let (times, events): (Vec<_>, Vec<_>) =
            text.lines().map(|line| line.split_once(' ').unwrap()).unzip();
        assert_eq!(
            events,
            [
                "alloc cache=0 bucket=77 reserve=movinggc",
                "alloc_fail cache=1 reserve=movinggc free=3 free_inc=4 blocked=5",
                "invalidate cache=2 bucket=77 sectors=9",
            ]
        );
        let times: Vec<f64> = times.iter().map(|time| time.parse().unwrap()).collect();
        assert!(times.is_sorted() && times[2] < 60.0, "{times:?}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told() {
        let full = PathBuf::from("/dev/full");
        let file = File::options().write(true).open(&full).unwrap();
        let full = TraceFile::new(full, file);
        full.trace(0, TraceEvent::Invalidated { bucket: BucketIndex(1), sectors_used: 1 });
        let error = full.finish().unwrap_err();
        assert!(error.to_string().contains("/dev/full"), "{error}");
    }
}
