//! fio's iolog, versions 2 and 3 (fio(1), "trace file format"). Version 3 puts a time before each
//! line, in microseconds from the start.

use super::number::unsigned;
use super::records::{Devices, Lines};
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Op, Reader, Request, TraceError, checked, sectors_of};

/// Requests of version 2, which has no times but those of its `wait`.
const APART_NS: u64 = 1_000;

pub(super) struct Iolog {
    lines: Lines,
    version: u8,
    devices: Devices,
    now_ns: u64,
}

/// The version that a first line names.
pub(super) fn version(line: &str) -> Option<u8> {
    let mut words = line.split_ascii_whitespace();
    let named = words.next() == Some("fio") && words.next() == Some("version");
    let version = words.next().filter(|_| named)?.parse().ok()?;
    (words.next() == Some("iolog") && matches!(version, 2 | 3)).then_some(version)
}

/// The version that a first line names, if it is none that can be read.
pub(super) fn unknown_version(line: &str) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let named = words.next() == Some("fio") && words.next() == Some("version");
    let number = words.next().filter(|_| named)?.parse().ok()?;
    (words.next() == Some("iolog") && version(line).is_none()).then_some(number)
}

impl Iolog {
    pub(super) fn new(input: Input, version: u8) -> Self {
        Self { lines: Lines::new(input), version, devices: Devices::default(), now_ns: 0 }
    }
}

/// What a line says.
enum Line<'a> {
    Io { file: &'a str, op: Op, offset: u64, bytes: u64, time_us: Option<u64> },
    Wait { us: u64 },
    Skip(SkipReason),
}

fn parse(line: &str, version: u8) -> Line<'_> {
    let parsed = || -> Option<Line<'_>> {
        if self::version(line).is_some() {
            return Some(Line::Skip(SkipReason::Heading));
        }
        let mut words = line.split_ascii_whitespace();
        let time_us = if version == 3 { Some(unsigned(words.next()?)?) } else { None };
        let (file, action) = (words.next()?, words.next()?);
        let op = match action {
            "read" => Op::Read,
            "write" => Op::Write,
            "trim" => Op::Discard,
            "wait" if version == 2 => return Some(Line::Wait { us: unsigned(words.next()?)? }),
            "add" | "open" | "close" => return Some(Line::Skip(SkipReason::Notice)),
            "sync" | "datasync" => return Some(Line::Skip(SkipReason::NoData)),
            _ => return None,
        };
        let (offset, bytes) = (unsigned(words.next()?)?, unsigned(words.next()?)?);
        Some(Line::Io { file, op, offset, bytes, time_us })
    };
    parsed().unwrap_or(Line::Skip(SkipReason::NotUnderstood))
}

impl Reader for Iolog {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        while let Some((line, skipped)) = self.lines.next()? {
            match parse(line, self.version) {
                Line::Skip(reason) => skipped.add(reason),
                Line::Wait { us } => {
                    self.now_ns = self.now_ns.saturating_add(us.saturating_mul(1000));
                    skipped.add(SkipReason::Notice);
                }
                Line::Io { file, op, offset, bytes, time_us } => {
                    let time_ns = time_us.map_or(self.now_ns, |us| us.saturating_mul(1000));
                    self.now_ns = self.now_ns.saturating_add(APART_NS);
                    let (sector, sectors) = sectors_of(offset, bytes);
                    let device = self.devices.number(file)?;
                    let request =
                        Request { time_ns, sector, sectors, op, device, ..Request::default() };
                    if let Some(request) = checked(request, skipped) {
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

    fn has_times(&self) -> bool {
        self.version == 3
    }
}
