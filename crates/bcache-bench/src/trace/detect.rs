//! Which format a trace has.

use std::sync::Arc;

use clap::ValueEnum;
use serde::Serialize;

use super::arc;
use super::biosnoop::{self, Biosnoop};
use super::blkparse::{self, Blkparse};
use super::blktrace::{self, Blktrace, Order};
use super::by_line::ByLine;
use super::columns::Columns;
use super::csv::{self, Csv};
use super::disksim::{self, DiskSim};
use super::ftrace::{self, Event, Ftrace};
use super::iolog::{self, Iolog};
use super::oracle::{self, Oracle};
use super::skipped::Skipped;
use super::source::{Opened, Source};
use super::vscsi::{self, Vscsi};
use super::{Reader, Request, Requests, TraceError};

/// A format of traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Format {
    /// Text of blkparse
    Blkparse,
    /// Binary of blktrace: one stream, or a file a CPU
    Blktrace,
    /// fio iolog, version 2 or 3
    Iolog,
    /// MSR Cambridge CSV
    Msr,
    /// Tencent CSV
    Tencent,
    /// Alibaba CSV
    Alibaba,
    /// UMass and SPC CSV
    Spc,
    /// CSV with the columns of --columns
    Csv,
    /// Output of biosnoop
    Biosnoop,
    /// Text of perf script or trace-cmd report
    Perf,
    /// VMware vscsi, version 1 or 2
    Vscsi,
    /// libCacheSim's oracleGeneral
    OracleGeneral,
    /// ARC's .lis
    Arc,
    /// DiskSim's and MQSim's ASCII
    DiskSim,
}

impl Format {
    /// Whether it says which writes somebody waits for (`REQ_SYNC`), which are metadata, and so on.
    pub const fn has_flags(self) -> bool {
        matches!(self, Self::Blkparse | Self::Blktrace | Self::Perf)
    }
}

/// Lines of the beginning that a guess may look at: a trace can begin with messages.
const LINES: usize = 50;

fn detect(beginning: &[u8]) -> Option<Format> {
    if blktrace::order(beginning).is_some() {
        return Some(Format::Blktrace);
    }
    let text = match std::str::from_utf8(beginning) {
        Ok(text) => Some(text),
        // The end may be in the middle of a letter.
        Err(error) => std::str::from_utf8(beginning.get(..error.valid_up_to()).unwrap_or_default())
            .ok()
            .filter(|_| error.error_len().is_none()),
    };
    let binary = text.is_none_or(|text| text.contains('\0'));
    if binary {
        if vscsi::version(beginning).is_some() {
            return Some(Format::Vscsi);
        }
        return oracle::looks_like(beginning).then_some(Format::OracleGeneral);
    }
    let text = text.unwrap_or_default();
    let lines = || text.lines().filter(|line| !line.trim().is_empty()).take(LINES);
    if iolog::version(lines().next()?).is_some() {
        return Some(Format::Iolog);
    }
    if lines().any(biosnoop::is_heading) {
        return Some(Format::Biosnoop);
    }
    let layouts: [(Format, fn() -> Columns); 4] = [
        (Format::Msr, Columns::msr),
        (Format::Spc, Columns::spc),
        (Format::Alibaba, Columns::alibaba),
        (Format::Tencent, Columns::tencent),
    ];
    lines()
        .find_map(|line| {
            if blkparse::looks_like(line) {
                return Some(Format::Blkparse);
            }
            if arc::looks_like(line) {
                return Some(Format::Arc);
            }
            if disksim::looks_like(line) {
                return Some(Format::DiskSim);
            }
            layouts
                .iter()
                .find(|(format, columns)| csv::fits(line, &columns(), *format))
                .map(|(format, _)| *format)
        })
        .or_else(|| ftrace::event(text).map(|_| Format::Perf))
}

/// The requests of what was opened.
pub(super) fn requests(opened: Vec<Opened>, source: &Source) -> Result<Requests, TraceError> {
    let cut_off = opened.iter().map(|it| Arc::clone(&it.cut_off)).collect();
    let Some(first) = opened.first() else { return Err(TraceError::Empty) };
    if first.beginning.is_empty() && source.format.is_none() {
        return Err(TraceError::Empty);
    }
    let text = String::from_utf8_lossy(&first.beginning);
    let unknown =
        text.lines().find(|line| !line.trim().is_empty()).and_then(iolog::unknown_version);
    if let (Some(version), None, None) = (unknown, source.format, &source.columns) {
        return Err(TraceError::IologVersion { version });
    }
    let by_columns = source.columns.as_ref().map(|_| Format::Csv);
    let format = source
        .format
        .or(by_columns)
        .or_else(|| detect(&first.beginning))
        .ok_or(TraceError::UnknownFormat)?;
    if format == Format::Blktrace {
        let inputs = opened.into_iter().map(|it| {
            let order = blktrace::order(&it.beginning).unwrap_or(Order::Little);
            (it.input, order)
        });
        let reader = Box::new(Blktrace::new(inputs.collect())?);
        return Ok(Requests { reader, format, cut_off });
    }
    if format != Format::Iolog {
        if let Some(second) = source.paths.get(1) {
            return Err(TraceError::SeveralFiles { path: second.clone() });
        }
    }
    // Every one has to be one of those that go together.
    let alien = opened
        .iter()
        .zip(&source.paths)
        .skip(1)
        .find(|(it, _)| detect(&it.beginning) != Some(Format::Iolog));
    if let Some((_, path)) = alien {
        return Err(TraceError::SeveralFiles { path: path.clone() });
    }
    let mut readers: Vec<Box<dyn Reader>> =
        opened.into_iter().map(|it| reader(it, format, source.columns.as_ref())).collect();
    let reader = match readers.len() {
        1 => readers.remove(0),
        _ => Box::new(Several::new(readers)),
    };
    Ok(Requests { reader, format, cut_off })
}

fn reader(opened: Opened, format: Format, columns: Option<&Columns>) -> Box<dyn Reader> {
    let Opened { beginning, input, .. } = opened;
    let text = String::from_utf8_lossy(&beginning);
    match format {
        Format::Blkparse => Box::new(ByLine::new(input, Blkparse)),
        // Read above, with all its files.
        Format::Blktrace | Format::Iolog => {
            let version = text.lines().next().and_then(iolog::version).unwrap_or(2);
            Box::new(Iolog::new(input, version))
        }
        Format::Msr => Box::new(Csv::new(input, Columns::msr())),
        Format::Tencent => Box::new(Csv::new(input, Columns::tencent())),
        Format::Alibaba => Box::new(Csv::new(input, Columns::alibaba())),
        Format::Spc => Box::new(Csv::new(input, Columns::spc())),
        Format::Csv => Box::new(Csv::new(input, columns.cloned().unwrap_or_else(Columns::msr))),
        Format::Biosnoop => Box::new(ByLine::new(input, Biosnoop::default())),
        Format::Perf => {
            let event = ftrace::event(&text).unwrap_or(Event::BioQueue);
            Box::new(ByLine::new(input, Ftrace(event)))
        }
        Format::Vscsi => {
            let version = vscsi::version(&beginning).unwrap_or(vscsi::Version::V1);
            Box::new(Vscsi::new(input, version))
        }
        Format::OracleGeneral => Box::new(Oracle::new(input)),
        Format::Arc => Box::new(arc::Arc::new(input)),
        Format::DiskSim => Box::new(ByLine::new(input, DiskSim)),
    }
}

/// Traces of several devices, merged by time.
struct Several {
    readers: Vec<(Box<dyn Reader>, Option<Request>, bool)>,
    skipped: Skipped,
    devices: super::records::Devices,
}

impl Several {
    fn new(readers: Vec<Box<dyn Reader>>) -> Self {
        Self {
            readers: readers.into_iter().map(|reader| (reader, None, false)).collect(),
            skipped: Skipped::default(),
            devices: super::records::Devices::default(),
        }
    }
}

impl Reader for Several {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        for (reader, next, ended) in &mut self.readers {
            if next.is_none() && !*ended {
                *next = reader.next_request()?;
                *ended = next.is_none();
            }
        }
        let earliest = self
            .readers
            .iter_mut()
            .enumerate()
            .filter(|(_, (_, next, _))| next.is_some())
            .min_by_key(|(_, (_, next, _))| next.map(|request| request.time_ns));
        let Some((at, (reader, next, _))) = earliest else {
            let mut skipped = Skipped::default();
            self.readers.iter().for_each(|(reader, ..)| skipped.merge(reader.skipped()));
            self.skipped = skipped;
            return Ok(None);
        };
        let Some(request) = next.take() else { return Ok(None) };
        let names = reader.devices();
        let name = names.get(usize::from(request.device)).map_or("", String::as_str);
        // Devices of the same name in two files are two.
        let device = self.devices.number(&format!("{}:{name}", at + 1))?;
        Ok(Some(Request { device, ..request }))
    }

    fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    fn devices(&self) -> Vec<String> {
        self.devices.names()
    }

    fn has_times(&self) -> bool {
        self.readers.iter().all(|(reader, ..)| reader.has_times())
    }
}
