//! Traces as CSV: one reader, with the columns of a known layout or those that the user names.

use super::columns::{Column, Columns};
use super::detect::Format;
use super::number::{decimal_ns, unsigned, unsigned32};
use super::records::{Devices, Lines};
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Op, Reader, Request, TraceError, checked, sectors_of};

/// Requests of a trace without times come so far apart.
const APART_NS: u64 = 1_000_000;

pub(super) struct Csv {
    lines: Lines,
    columns: Columns,
    devices: Devices,
    count: u64,
    has_times: bool,
}

struct Parsed {
    device: String,
    request: Request,
}

fn op(text: &str) -> Option<Op> {
    Some(match text.to_ascii_lowercase().as_str() {
        "read" | "r" | "0" | "rs" => Op::Read,
        "write" | "w" | "1" | "ws" => Op::Write,
        "discard" | "trim" | "unmap" | "d" => Op::Discard,
        _ => return None,
    })
}

fn time_ns(text: &str, unit_ns: u64) -> Option<u64> {
    match unit_ns {
        // 100 ns since 1601 need 128 bits on their way.
        100 => unsigned(text)?.checked_mul(100),
        _ => decimal_ns(text, unit_ns.ilog10()),
    }
}

/// What a line says by these columns; `None` when it does not fit them.
fn parse(line: &str, columns: &Columns) -> Option<Parsed> {
    let mut fields = line.split(',').map(str::trim);
    let mut request = Request::default();
    let (mut offset, mut size) = (None, None);
    let mut device = String::new();
    for column in columns.iter() {
        let Some(field) = fields.next() else {
            // A last column that nothing depends on may be absent.
            if column == Column::Ignored {
                continue;
            }
            return None;
        };
        match column {
            Column::Time { unit_ns } => request.time_ns = time_ns(field, unit_ns)?,
            Column::OffsetBytes => offset = Some(unsigned(field)?),
            Column::OffsetSectors => offset = Some(unsigned(field)?.checked_mul(512)?),
            Column::SizeBytes => size = Some(unsigned(field)?),
            Column::SizeSectors => size = Some(unsigned(field)?.checked_mul(512)?),
            Column::Op => request.op = op(field)?,
            Column::Device => {
                if !device.is_empty() {
                    device.push('.');
                }
                device.push_str(field);
            }
            Column::Process => request.process = Some(unsigned32(field)?),
            Column::Ignored => {}
        }
    }
    (request.sector, request.sectors) = sectors_of(offset?, size?);
    Some(Parsed { device, request })
}

/// Whether a line fits a layout: it has exactly so many columns, or more where SPC allows that, and its
/// direction is a number or a word as there.
pub(super) fn fits(line: &str, columns: &Columns, format: Format) -> bool {
    let op_is_number = format == Format::Tencent;
    let fields = || line.split(',').map(str::trim);
    let op = columns.iter().zip(fields()).find(|(column, _)| *column == Column::Op);
    let (has, wants) = (fields().count(), columns.iter().count());
    (has == wants || (has > wants && format == Format::Spc))
        && parse(line, columns).is_some()
        && op.is_some_and(|(_, field)| unsigned(field).is_some() == op_is_number)
}

impl Csv {
    pub(super) fn new(input: Input, columns: Columns) -> Self {
        let has_times = columns.iter().any(|column| matches!(column, Column::Time { .. }));
        Self { lines: Lines::new(input), columns, devices: Devices::default(), count: 0, has_times }
    }
}

impl Reader for Csv {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        while let Some((line, skipped)) = self.lines.next()? {
            let Some(Parsed { device, mut request }) = parse(line, &self.columns) else {
                // No digit after a comma: titles.
                let titles = line.starts_with('#')
                    || (self.count == 0
                        && line.split(',').all(|field| field.parse::<f64>().is_err()));
                skipped.add(if titles { SkipReason::Heading } else { SkipReason::NotUnderstood });
                continue;
            };
            if !self.has_times {
                request.time_ns = self.count.saturating_mul(APART_NS);
            }
            request.device = self.devices.number(&device)?;
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
        self.devices.names()
    }

    fn has_times(&self) -> bool {
        self.has_times
    }
}
