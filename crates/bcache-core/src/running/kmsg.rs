//! The kernel's log, for the reason that an errno does not give.
//!
//! bcache answers most refusals with EINVAL and tells the reason in its log, without the path
//! (docs/running.md §4). The log is read from a place that was marked before the write; what others
//! cause in between is in it, too.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// Longest record of `/dev/kmsg` that is read whole.
const RECORD_BYTES: usize = 8192;

/// A place in the kernel's log.
#[derive(Debug)]
pub struct Mark {
    /// `None` where the log may not be read.
    log: Option<File>,
}

impl Mark {
    /// The end of the log as it is now.
    pub fn now() -> Self {
        let open = || {
            let mut log = OpenOptions::new()
                .read(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
                .open("/dev/kmsg")?;
            log.seek(SeekFrom::End(0))?;
            std::io::Result::Ok(log)
        };
        Self { log: open().ok() }
    }

    /// What bcache has logged since the last call, or since the mark was made.
    pub(crate) fn bcache_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(log) = &mut self.log else { return lines };
        let mut record = vec![0; RECORD_BYTES];
        loop {
            match log.read(&mut record) {
                Ok(0) => break,
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(record.get(..bytes).unwrap_or_default());
                    lines.extend(message(&text).map(str::to_owned));
                }
                // Records were overwritten before they were read; the next read goes on behind them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        lines
    }
}

/// The message of a record `PRIORITY,SEQ,TIME,FLAGS;TEXT`, if it is bcache's.
fn message(record: &str) -> Option<&str> {
    let text = record.lines().next()?.split_once(';')?.1;
    text.strip_prefix("bcache: ")
}

/// The reason in lines of bcache's: the words after `error : ` or `error:` of the last line that
/// complains, else the last line that is an error by what it says.
pub fn reason(lines: &[String]) -> Option<String> {
    lines.iter().rev().find_map(|line| {
        if let Some((_, text)) = line.split_once("error :").or_else(|| line.split_once("error:")) {
            return Some(text.trim().to_owned());
        }
        COMPLAINTS
            .iter()
            .find_map(|words| line.find(words).map(|at| line.get(at..)))?
            .map(str::to_owned)
    })
}

/// How lines of the kernel begin that tell why it refused.
const COMPLAINTS: [&str; 11] = [
    "Can't attach",
    "Couldn't attach",
    "Couldn't find uuid",
    "Tried to attach",
    "Not enough",
    "No room for UUID",
    "cache set not found",
    "Error opening",
    "Error creating",
    "too small",
    "failed to",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_others_are_passed_over() {
        assert_eq!(message("6,1,2,-;bcache: f() text\n SUBSYSTEM=x"), Some("f() text"));
        assert_eq!(message("6,1,2,-;virtio_blk: text"), None);
        assert_eq!(message("nonsense"), None);
    }

    #[test]
    fn the_reason_is_the_last_complaint() {
        let lines = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let said = lines(&["register_bcache() error : device already registered"]);
        assert_eq!(reason(&said).as_deref(), Some("device already registered"));
        let said = lines(&[
            "bch_cached_dev_attach() Couldn't find uuid for vda in set",
            "__cached_dev_store() Can't attach: cache set not found",
        ]);
        assert_eq!(reason(&said).as_deref(), Some("Can't attach: cache set not found"));
        assert_eq!(reason(&lines(&["register_bdev() registered backing device vda"])), None);
    }
}
