//! The text that blkparse prints (blkparse(1), "DEFAULT OUTPUT"):
//! `maj,min cpu seq seconds.ns pid action rwbs sector + sectors [process]`.
//!
//! A request is one Q. A remap before it, and all that follows it, is the same request.

use super::by_line::LineFormat;
use super::number::{seconds_ns, unsigned, unsigned32};
use super::skipped::SkipReason;
use super::{Flags, Op, Request};

pub(super) struct Blkparse;

/// Direction and flags of an rwbs field; `None` where it moves no data.
pub(super) fn rwbs(text: &str) -> Option<(Op, Flags)> {
    let mut op = None;
    let mut flags = Flags::NONE;
    for letter in text.chars() {
        match letter {
            'R' => op = op.or(Some(Op::Read)),
            'W' => op = op.or(Some(Op::Write)),
            'D' => op = op.or(Some(Op::Discard)),
            // A flush before the direction, forced unit access after it: somebody waits for either.
            'F' | 'S' => flags = flags.with(Flags::SYNC),
            'A' => flags = flags.with(Flags::READAHEAD),
            'M' => flags = flags.with(Flags::META),
            _ => {}
        }
    }
    op.map(|op| (op, flags))
}

/// `None` when it is no line of blkparse.
fn parse(line: &str) -> Option<Result<(&str, Request), SkipReason>> {
    let mut words = line.split_ascii_whitespace();
    let device = words.next()?;
    let (major, minor) = device.split_once(',')?;
    unsigned(major)?;
    unsigned(minor)?;
    unsigned(words.next()?)?;
    unsigned(words.next()?)?;
    let time_ns = seconds_ns(words.next()?)?;
    let process = unsigned32(words.next()?)?;
    match words.next()? {
        "Q" => {}
        "A" | "M" | "F" | "G" | "I" | "D" | "C" | "X" | "B" | "R" | "S" => {
            return Some(Err(SkipReason::OtherStage));
        }
        "P" | "U" | "UT" | "T" | "m" => return Some(Err(SkipReason::Notice)),
        _ => return None,
    }
    let kind = words.next()?;
    let Some(sector) = words.next() else { return Some(Err(SkipReason::NoData)) };
    let Some(sector) = unsigned(sector) else {
        return sector.starts_with('[').then_some(Err(SkipReason::NoData));
    };
    if words.next() != Some("+") {
        return None;
    }
    let sectors = unsigned32(words.next()?)?;
    let Some((op, flags)) = rwbs(kind) else {
        return Some(Err(if sectors == 0 { SkipReason::NoData } else { SkipReason::OtherCommand }));
    };
    let process = Some(process);
    let request = Request { time_ns, sector, process, sectors, op, flags, device: 0 };
    Some(Ok((device, request)))
}

pub(super) fn looks_like(line: &str) -> bool {
    parse(line).is_some()
}

impl LineFormat for Blkparse {
    fn parse<'a>(&mut self, line: &'a str) -> Result<(&'a str, Request), SkipReason> {
        parse(line).unwrap_or(Err(SkipReason::NotUnderstood))
    }
}
