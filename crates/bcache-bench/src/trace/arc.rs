//! ARC's `.lis`: a line is `page pages flags number`, in pages of 512 bytes. Reads, without times.

use super::number::{unsigned, unsigned32};
use super::records::Lines;
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Reader, Request, TraceError, checked};

/// Requests come a millisecond apart, for want of times.
const APART_NS: u64 = 1_000_000;

pub(super) struct Arc {
    lines: Lines,
    count: u64,
}

/// `page pages flags number`; the flags are 0 nearly always.
fn parse(line: &str) -> Option<(u64, u32)> {
    let mut fields = line.split_ascii_whitespace();
    let (page, pages) = (unsigned(fields.next()?)?, unsigned32(fields.next()?)?);
    unsigned(fields.next()?)?;
    unsigned(fields.next()?)?;
    fields.next().is_none().then_some((page, pages))
}

pub(super) fn looks_like(line: &str) -> bool {
    parse(line).is_some()
}

impl Arc {
    pub(super) fn new(input: Input) -> Self {
        Self { lines: Lines::new(input), count: 0 }
    }
}

impl Reader for Arc {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        while let Some((line, skipped)) = self.lines.next()? {
            let Some((sector, sectors)) = parse(line) else {
                skipped.add(SkipReason::NotUnderstood);
                continue;
            };
            let time_ns = self.count.saturating_mul(APART_NS);
            let request = Request { time_ns, sector, sectors, ..Request::default() };
            if let Some(request) = checked(request, skipped) {
                self.count += 1;
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    fn skipped(&self) -> &Skipped {
        &self.lines.skipped
    }

    fn devices(&self) -> Vec<String> {
        vec!["arc".to_owned()]
    }

    fn has_times(&self) -> bool {
        false
    }
}
