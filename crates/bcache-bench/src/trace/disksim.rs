//! DiskSim's and MQSim's ASCII: `time device sector sectors type`, 0 write, 1 read, time in ns.

use super::number::{decimal_ns, unsigned, unsigned32};
use super::records::{Devices, Lines};
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Op, Reader, Request, TraceError, checked};

pub(super) struct DiskSim {
    lines: Lines,
    devices: Devices,
}

fn parse(line: &str) -> Option<(&str, Request)> {
    let mut words = line.split_ascii_whitespace();
    let time_ns = decimal_ns(words.next()?, 0)?;
    let device = words.next()?;
    unsigned(device)?;
    let (sector, sectors) = (unsigned(words.next()?)?, unsigned32(words.next()?)?);
    let op = match words.next()? {
        "0" => Op::Write,
        "1" => Op::Read,
        _ => return None,
    };
    let request = Request { time_ns, sector, sectors, op, ..Request::default() };
    words.next().is_none().then_some((device, request))
}

pub(super) fn looks_like(line: &str) -> bool {
    parse(line).is_some()
}

impl DiskSim {
    pub(super) fn new(input: Input) -> Self {
        Self { lines: Lines::new(input), devices: Devices::default() }
    }
}

impl Reader for DiskSim {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        while let Some((line, skipped)) = self.lines.next()? {
            let Some((device, request)) = parse(line) else {
                skipped.add(SkipReason::NotUnderstood);
                continue;
            };
            let device = self.devices.number(device)?;
            if let Some(request) = checked(Request { device, ..request }, skipped) {
                return Ok(Some(request));
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
