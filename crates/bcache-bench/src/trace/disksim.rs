//! DiskSim's and MQSim's ASCII: `time device sector sectors type`, 0 write, 1 read, time in ns.

use super::by_line::LineFormat;
use super::number::{decimal_ns, unsigned, unsigned32};
use super::skipped::SkipReason;
use super::{Op, Request};

pub(super) struct DiskSim;

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

impl LineFormat for DiskSim {
    fn parse<'a>(&mut self, line: &'a str) -> Result<(&'a str, Request), SkipReason> {
        parse(line).ok_or(SkipReason::NotUnderstood)
    }
}
