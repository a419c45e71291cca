//! The text that blkparse prints (blkparse(1), "DEFAULT OUTPUT"):
//! `maj,min cpu seq seconds.ns pid action rwbs sector + sectors [process]`.
//!
//! A request is one Q. A remap before it, and all that follows it, is the same request.

use super::number::{seconds_ns, unsigned, unsigned32};
use super::records::{Devices, Lines};
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Flags, Op, Reader, Request, TraceError, checked};

pub(super) struct Blkparse {
    lines: Lines,
    devices: Devices,
}

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

enum Line<'a> {
    Queued { device: &'a str, request: Request },
    Skip(SkipReason),
}

fn parse(line: &str) -> Option<Line<'_>> {
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
            return Some(Line::Skip(SkipReason::OtherStage));
        }
        "P" | "U" | "UT" | "T" | "m" => return Some(Line::Skip(SkipReason::Notice)),
        _ => return None,
    }
    let kind = words.next()?;
    let Some(sector) = words.next() else { return Some(Line::Skip(SkipReason::NoData)) };
    let Some(sector) = unsigned(sector) else {
        return sector.starts_with('[').then_some(Line::Skip(SkipReason::NoData));
    };
    if words.next() != Some("+") {
        return None;
    }
    let sectors = unsigned32(words.next()?)?;
    let Some((op, flags)) = rwbs(kind) else {
        return Some(Line::Skip(if sectors == 0 {
            SkipReason::NoData
        } else {
            SkipReason::OtherCommand
        }));
    };
    let process = Some(process);
    let request = Request { time_ns, sector, process, sectors, op, flags, device: 0 };
    Some(Line::Queued { device, request })
}

pub(super) fn looks_like(line: &str) -> bool {
    parse(line).is_some()
}

impl Blkparse {
    pub(super) fn new(input: Input) -> Self {
        Self { lines: Lines::new(input), devices: Devices::default() }
    }
}

impl Reader for Blkparse {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        while let Some((line, skipped)) = self.lines.next()? {
            match parse(line) {
                None => skipped.add(SkipReason::NotUnderstood),
                Some(Line::Skip(reason)) => skipped.add(reason),
                Some(Line::Queued { device, request }) => {
                    let device = self.devices.number(device)?;
                    if let Some(request) = checked(Request { device, ..request }, skipped) {
                        return Ok(Some(request));
                    }
                }
            }
        }
        Ok(None)
    }

    fn skipped(&self) -> &Skipped {
        &self.lines.skipped
    }

    fn devices(&self) -> Vec<String> {
        self.devices.names()
    }
}
