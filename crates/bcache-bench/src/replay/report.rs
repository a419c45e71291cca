//! What a replay found, as it is written to JSON.

use std::io::Write;

use serde::Serialize;

use super::answer::{self, Answer};
use super::cells::CellResult;
use super::device::DeviceFigures;
use super::warning::{self, Warning};
use super::{picture, render};
use crate::report::export::{Export, ExportFormat, NotWritten};
use crate::report::formats;
use crate::trace::{Format, Skipped, Summary, Trace};

/// Version of the JSON.
const FORMAT: u32 = 1;

/// How a trace was replayed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settings {
    /// Block size of the caches.
    pub block_bytes: u64,
    /// Part of the addresses that was replayed.
    pub sample: f64,
    /// What the SSD's maker lets be written to it.
    pub tbw_bytes: Option<u64>,
    /// Requests came as fast as possible.
    pub ignore_times: bool,
    /// One task made them.
    pub one_task: bool,
    /// Nobody waited for writes where the trace does not tell.
    pub async_writes: bool,
}

/// A replay's report.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayReport {
    /// Version of this layout.
    pub format: u32,
    /// Version of the program.
    pub version: &'static str,
    /// Format of the trace.
    pub trace_format: Format,
    /// What is in the trace.
    pub trace: Summary,
    /// What of it is no request.
    pub skipped: Skipped,
    /// How it was replayed.
    #[serde(flatten)]
    pub settings: Settings,
    /// Whether it was ended early: cells that were not finished are missing.
    pub interrupted: bool,
    /// Which cache to make.
    pub answer: Answer,
    /// All caches that were tried.
    pub cells: Vec<CellResult>,
    /// What a device did with the same requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceFigures>,
    /// What to know about these figures.
    pub warnings: Vec<Warning>,
}

impl Export for ReplayReport {
    const FORMATS: &'static [ExportFormat] =
        &[ExportFormat::Json, ExportFormat::Csv, ExportFormat::Markdown, ExportFormat::Svg];

    fn write(&self, format: ExportFormat, out: &mut dyn Write) -> Result<(), NotWritten> {
        match format {
            ExportFormat::Csv => Ok(render::csv(self, out)?),
            ExportFormat::Markdown => Ok(render::markdown(self, out)?),
            ExportFormat::Svg => Ok(out.write_all(picture::svg(self)?.as_bytes())?),
            ExportFormat::Json | ExportFormat::Hgrm => formats::json(self, out),
        }
    }
}

impl ReplayReport {
    /// The report of these cells.
    pub fn new(
        trace: &Trace,
        cells: Vec<CellResult>,
        settings: &Settings,
        interrupted: bool,
    ) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            trace_format: trace.format,
            trace: trace.summary.clone(),
            skipped: trace.skipped.clone(),
            settings: *settings,
            interrupted,
            answer: answer::answer(&cells, interrupted, trace.summary.footprint_bytes),
            warnings: warning::warnings(trace, &cells, settings),
            cells,
            device: None,
        }
    }
}
