//! What bcc's biosnoop prints: `TIME(s) COMM PID DISK T SECTOR BYTES [QUE(ms)] LAT(ms)`.
//!
//! A name may hold blanks, so fields are counted from the right. Lines are printed at completion: the
//! request was made its latency earlier.

use super::blkparse::rwbs;
use super::by_line::LineFormat;
use super::number::{decimal_ns, seconds_ns, unsigned, unsigned32};
use super::skipped::SkipReason;
use super::{Request, sectors_of};

#[derive(Default)]
pub(super) struct Biosnoop {
    /// With a column of time in the queue.
    queue: bool,
}

pub(super) fn is_heading(line: &str) -> bool {
    line.starts_with("TIME") && line.contains("COMM") && line.contains("LAT")
}

fn parse(line: &str, queue: bool) -> Option<(&str, Request)> {
    let mut right = line.split_ascii_whitespace().rev();
    let latency_ns = decimal_ns(right.next()?, 6)?;
    let queued_ns = if queue { decimal_ns(right.next()?, 6)? } else { 0 };
    let (bytes, sector) = (unsigned(right.next()?)?, unsigned(right.next()?)?);
    let (op, flags) = rwbs(right.next()?)?;
    let device = right.next()?;
    let process = unsigned32(right.next()?)?;
    let done_ns = seconds_ns(line.split_ascii_whitespace().next()?)?;
    let (_, sectors) = sectors_of(0, bytes);
    let request = Request {
        time_ns: done_ns.saturating_sub(latency_ns.saturating_add(queued_ns)),
        sector,
        process: Some(process),
        sectors,
        device: 0,
        op,
        flags,
    };
    Some((device, request))
}

impl LineFormat for Biosnoop {
    fn parse<'a>(&mut self, line: &'a str) -> Result<(&'a str, Request), SkipReason> {
        if is_heading(line) {
            self.queue = line.contains("QUE");
            return Err(SkipReason::Heading);
        }
        parse(line, self.queue).ok_or(SkipReason::NotUnderstood)
    }
}
