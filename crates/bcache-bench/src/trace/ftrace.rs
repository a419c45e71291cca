//! The text of perf script and trace-cmd report:
//! `comm-123 [001] 12.345678: block_bio_queue: 8,16 R 1234 + 8 [comm]`.
//!
//! `block_bio_queue` is a request as it enters the device. A trace that has only `block_rq_issue` is
//! read by those, which have bytes in front of the sector.

use super::Request;
use super::blkparse::rwbs;
use super::by_line::LineFormat;
use super::number::{seconds_ns, unsigned, unsigned32};
use super::skipped::SkipReason;

/// The events that are requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    BioQueue,
    RqIssue,
}

impl Event {
    const fn name(self) -> &'static str {
        match self {
            Self::BioQueue => "block_bio_queue:",
            Self::RqIssue => "block_rq_issue:",
        }
    }
}

pub(super) struct Ftrace(pub(super) Event);

/// Which event a trace that begins so is to be read by.
pub(super) fn event(beginning: &str) -> Option<Event> {
    [Event::BioQueue, Event::RqIssue]
        .into_iter()
        .find(|event| beginning.lines().any(|line| parse(line, *event).is_some()))
}

fn parse(line: &str, event: Event) -> Option<(&str, Request)> {
    let (left, right) = line.split_once(event.name())?;
    // perf puts the subsystem before it: "block:block_bio_queue:".
    let left = left.trim_end().trim_end_matches("block:").trim_end();
    let (before, time) = left.rsplit_once(char::is_whitespace)?;
    let time_ns = seconds_ns(time.strip_suffix(':')?)?;
    // "comm-123 [001]" or "comm 123 [001]", and what trace-cmd says of flags in between.
    let task = before.split('[').next().unwrap_or(before).trim_end();
    let task = task.split(" (").next().unwrap_or(task).trim_end();
    let process = task
        .rsplit(['-', ' '])
        .next()
        .and_then(|pid| unsigned32(pid.split('/').next_back().unwrap_or(pid)));
    let mut words = right.split_ascii_whitespace();
    let device = words.next()?;
    device.split_once(',')?;
    let kind = words.next()?;
    let mut word = words.next()?;
    if event == Event::RqIssue {
        unsigned(word)?;
        // The command of a passthrough request, in brackets, is empty for others.
        word = words.find(|word| word.ends_with(')')).and_then(|_| words.next())?;
    }
    let sector = unsigned(word)?;
    if words.next() != Some("+") {
        return None;
    }
    let sectors = unsigned32(words.next()?)?;
    // A flush moves nothing, and has no sectors either.
    let (op, flags) = rwbs(kind).or((sectors == 0).then_some(Default::default()))?;
    Some((device, Request { time_ns, sector, process, sectors, device: 0, op, flags }))
}

impl LineFormat for Ftrace {
    fn parse<'a>(&mut self, line: &'a str) -> Result<(&'a str, Request), SkipReason> {
        parse(line, self.0).ok_or_else(|| {
            if line.contains("block_") {
                SkipReason::OtherStage
            } else if line.starts_with('#') || line.starts_with("cpus=") {
                SkipReason::Heading
            } else {
                SkipReason::NotUnderstood
            }
        })
    }
}
