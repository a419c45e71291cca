//! `bcache-bench size`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bcache_cli::out::{Out, Style};
use bcache_cli::size::parse_bytes;
use bcache_cli::table::{Table, number, table};
use bcache_core::device::{ReadDevice, open_read};
use bcache_core::units::format_bytes;
use serde::Serialize;

use crate::cli::SizeArgs;
use crate::num::{float, format_count};
use crate::replay::render::percent;
use crate::report::export::{Export, ExportFormat, NotWritten};
use crate::report::formats;
use crate::size::{Limit, SizeRow, row};

/// What registration is estimated with: bytes a second.
const READ_BYTES_PER_SECOND: u64 = 500_000_000;

/// Runs `bcache-bench size`.
pub fn run(args: &SizeArgs) -> Result<ExitCode> {
    let exports = args.export.open::<SizeReport>(&[PathBuf::from(&args.size)])?;
    let cache_bytes = size_of(&args.size)?;
    let of_bucket = |bucket: &u64| row(cache_bytes, *bucket, args.block, args.extent);
    let buckets = args.bucket.iter().map(of_bucket).collect();
    let report = SizeReport { cache_bytes, extent_bytes: args.extent, buckets };
    let mut out = Out::stdout();
    let printed = if args.json { out.json(&report) } else { text(&report, &mut out) };
    let printed = printed.and_then(|()| out.finish());
    // Whoever reads no further has seen enough, and wants the files all the same.
    exports.write(&report)?;
    printed?;
    Ok(ExitCode::SUCCESS)
}

/// What a cache costs with buckets of several sizes.
#[derive(Serialize)]
struct SizeReport {
    cache_bytes: u64,
    extent_bytes: u64,
    buckets: Vec<SizeRow>,
}

/// A bucket size as a line of CSV. Costs are empty where it is refused.
#[derive(Serialize)]
struct Line {
    cache_bytes: u64,
    extent_bytes: u64,
    bucket_bytes: u64,
    nbuckets: u64,
    memory_bytes: Option<u64>,
    btree_memory_bytes: Option<u64>,
    fixed_metadata_bytes: Option<u64>,
    journal_bytes: Option<u64>,
    btree_bytes: Option<u64>,
    prio_overhead: Option<f64>,
    registration_bytes: Option<u64>,
    limits: String,
}

impl Export for SizeReport {
    const FORMATS: &'static [ExportFormat] =
        &[ExportFormat::Json, ExportFormat::Csv, ExportFormat::Markdown];

    fn write(&self, format: ExportFormat, out: &mut dyn Write) -> Result<(), NotWritten> {
        match format {
            ExportFormat::Csv => {
                let line = |row: &SizeRow| {
                    let costs = row.costs.as_ref();
                    Line {
                        cache_bytes: self.cache_bytes,
                        extent_bytes: self.extent_bytes,
                        bucket_bytes: row.bucket_bytes,
                        nbuckets: row.nbuckets,
                        memory_bytes: costs.map(|it| it.memory_bytes),
                        btree_memory_bytes: costs.map(|it| it.btree_memory_bytes),
                        fixed_metadata_bytes: costs.map(|it| it.fixed_metadata_bytes),
                        journal_bytes: costs.map(|it| it.journal_bytes),
                        btree_bytes: costs.map(|it| it.btree_bytes),
                        prio_overhead: costs.and_then(|it| it.prio_overhead),
                        registration_bytes: costs.map(|it| it.registration_bytes),
                        limits: limits_text(row),
                    }
                };
                formats::csv(self.buckets.iter().map(line), out)
            }
            ExportFormat::Markdown => {
                Ok(out.write_all(costs(Style::PLAIN, self).markdown().as_bytes())?)
            }
            _ => formats::json(self, out),
        }
    }
}

fn size_of(given: &str) -> Result<u64> {
    if Path::new(given).exists() {
        let device = open_read(given)?;
        return Ok(device.info().size_bytes);
    }
    parse_bytes(given).with_context(|| format!("{given} is neither a device nor a size"))
}

fn limit_text(limit: Limit) -> &'static str {
    match limit {
        Limit::TooFewBuckets => "refused: fewer than 513 buckets",
        Limit::TooManyBuckets => "refused: more buckets than can be numbered",
        Limit::Shape => "refused: not a shape that a cache can have",
        Limit::SectorsUsed => {
            "GC counts up to 8,191 sectors a bucket: LRU takes full ones for less full"
        }
        Limit::LargePages => "refused by kernels with pages of 64 KiB",
    }
}

fn limits_text(row: &SizeRow) -> String {
    row.limits.iter().map(|limit| limit_text(*limit)).collect::<Vec<_>>().join("; ")
}

/// The costs of each bucket size.
fn costs(style: Style, report: &SizeReport) -> Table {
    let titles = [
        "bucket",
        "buckets",
        "memory",
        "btree memory",
        "metadata",
        "journal",
        "btree",
        "prio writes",
        "registration",
        "limits",
    ];
    let mut cells = table(style, &titles);
    for row in &report.buckets {
        let mut fields = vec![format_bytes(row.bucket_bytes), format_count(row.nbuckets)];
        match &row.costs {
            None => fields.extend(std::iter::repeat_n("-".to_owned(), 7)),
            Some(costs) => {
                let seconds = float(costs.registration_bytes) / float(READ_BYTES_PER_SECOND);
                fields.extend([
                    mib(costs.memory_bytes),
                    mib(costs.btree_memory_bytes),
                    mib(costs.fixed_metadata_bytes),
                    mib(costs.journal_bytes),
                    mib(costs.btree_bytes),
                    costs.prio_overhead.map_or("-".to_owned(), |it| format!("+{}", percent(it))),
                    format!("{seconds:.1} s"),
                ]);
            }
        }
        let mut line: Vec<_> = fields.into_iter().map(number).collect();
        line.push(limits_text(row).into());
        cells.add_row(line);
    }
    cells
}

fn text(report: &SizeReport, out: &mut Out) -> Result<()> {
    writeln!(
        out,
        "A cache of {}, full of extents of {}:\n",
        format_bytes(report.cache_bytes),
        format_bytes(report.extent_bytes)
    )?;
    let cells = costs(out.style(), report);
    writeln!(out, "{cells}\n")?;
    writeln!(
        out,
        "memory: what the kernel keeps of buckets and queues; btree memory: all nodes, of which it keeps\n\
         what there is room for; prio writes: bytes of prios for the data written to a full cache;\n\
         registration: reading journal, prios and btree at 500 MB/s."
    )?;
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", float(bytes) / 1_048_576.0)
}
