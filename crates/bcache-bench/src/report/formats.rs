//! A report of a run in each of the formats that it can be written as.

use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::export::{Export, ExportFormat, NotWritten, hgrm_name};
use super::{Measured, Percentile, Report, Run, plot, table};

/// Writes `value` as JSON, and a newline.
pub(crate) fn json(value: &impl Serialize, out: &mut dyn Write) -> Result<(), NotWritten> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// Writes `lines` as CSV, after their names.
pub(crate) fn csv<L: Serialize>(
    lines: impl IntoIterator<Item = L>,
    out: &mut dyn Write,
) -> Result<(), NotWritten> {
    let mut csv = csv::Writer::from_writer(out);
    for line in lines {
        csv.serialize(line).map_err(io::Error::from)?;
    }
    Ok(csv.flush()?)
}

/// A measure of a run as a line of CSV.
#[derive(Serialize)]
struct Line<'r> {
    run: &'r str,
    measure: &'static str,
    count: u64,
    min_ns: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    p9999_ns: u64,
    max_ns: u64,
}

impl<'r> Line<'r> {
    fn new(run: &'r Run, measured: &Measured) -> Self {
        let [p50_ns, p90_ns, p99_ns, p999_ns, p9999_ns] =
            Percentile::ALL.map(|it| measured.percentile_ns(it));
        Self {
            run: &run.name,
            measure: measured.measure.key(),
            count: measured.histogram.len(),
            min_ns: measured.histogram.min(),
            p50_ns,
            p90_ns,
            p99_ns,
            p999_ns,
            p9999_ns,
            max_ns: measured.histogram.max(),
        }
    }
}

fn lines(run: &Run) -> impl Iterator<Item = Line<'_>> {
    run.measures.iter().map(|it| Line::new(run, it))
}

impl Export for Report {
    const FORMATS: &'static [ExportFormat] = &[
        ExportFormat::Json,
        ExportFormat::Csv,
        ExportFormat::Markdown,
        ExportFormat::Hgrm,
        ExportFormat::Svg,
    ];

    fn write(&self, format: ExportFormat, out: &mut dyn Write) -> Result<(), NotWritten> {
        match format {
            ExportFormat::Json => json(self, out),
            ExportFormat::Csv => csv(self.runs.iter().flat_map(lines), out),
            ExportFormat::Markdown => Ok(out.write_all(table::markdown(self).as_bytes())?),
            ExportFormat::Svg => {
                let reports = std::slice::from_ref(self);
                let curves = plot::curves(reports, &[], &[]);
                let picture = plot::svg(&plot::title(&self.command, &[]), &curves)?;
                Ok(out.write_all(picture.as_bytes())?)
            }
            // Each has a file of its own.
            ExportFormat::Hgrm => Ok(()),
        }
    }

    fn distributions(&self) -> Vec<(String, &Histogram<u64>)> {
        self.runs
            .iter()
            .flat_map(|run| run.measures.iter().map(move |it| (run, it)))
            .map(|(run, it)| (hgrm_name(&run.name, it.measure.key()), &it.histogram))
            .collect()
    }
}
