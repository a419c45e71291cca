//! `bcache-bench invalidate`, `bucket` and `sector`: the parts of the allocator in memory.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bcache_cli::out::{Out, Style};
use bcache_cli::table::table;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::cli::{BucketArgs, InvalidateArgs, SectorArgs};
use crate::memory::{Engine, bucket, invalidate, sector};
use crate::num::{float, format_ns};

/// A table with words on the left and numbers beside them.
fn numbers(style: Style, header: &[&str]) -> Table {
    let mut table = table(style, header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn show(mut out: Out, json: bool, report: &impl Serialize, tables: &[Table]) -> Result<ExitCode> {
    if json {
        out.json(report)?;
    } else {
        for (index, table) in tables.iter().enumerate() {
            let gap = if index > 0 { "\n" } else { "" };
            writeln!(out, "{gap}{}", table.trim_fmt())?;
        }
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn time(ns: u64) -> String {
    format_ns(float(ns))
}

fn ratio(of: u64, to: u64) -> String {
    crate::num::ratio(of, to).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"))
}

/// Runs `bcache-bench invalidate`.
pub fn invalidate(args: &InvalidateArgs) -> Result<ExitCode> {
    let passes = usize::try_from(args.passes)?;
    let out = Out::stdout();
    let style = out.style();
    let reports = args
        .nbuckets
        .iter()
        .map(|&nbuckets| invalidate::run(nbuckets, passes, args.common.engine, args.common.seed))
        .collect::<Result<Vec<_>>>()?;
    let mut times = numbers(style, &["buckets", "what", "time", "to the sum", "reference / it"]);
    for report in &reports {
        let mut row = |what: &str, ns: Option<u64>, reference: Option<u64>| {
            if let Some(ns) = ns {
                times.add_row([
                    report.nbuckets.to_string(),
                    what.into(),
                    time(ns),
                    ratio(ns, report.sum_ns),
                    reference.map_or_else(|| "-".into(), |reference| ratio(reference, ns)),
                ]);
            }
        };
        row("sum of a u32 array", Some(report.sum_ns), None);
        row("LRU pass: sweep, select, sort", report.select_ns, None);
        row("  the same and invalidate", report.pass_ns, report.reference_pass_ns);
        row("rescale", report.rescale_ns, report.reference_rescale_ns);
        row("LRU pass, reference", report.reference_pass_ns, None);
        row("rescale, reference", report.reference_rescale_ns, None);
    }
    let mut memory = numbers(style, &["bucket table", "bytes a bucket"]);
    if let Some(report) = reports.first() {
        memory.add_row(["all arrays".to_string(), report.bytes_per_bucket.to_string()]);
    }
    show(out, args.common.json, &reports, &[times, memory])
}

/// Runs `bcache-bench bucket`.
pub fn bucket(args: &BucketArgs) -> Result<ExitCode> {
    let out = Out::stdout();
    let style = out.style();
    let reports = args
        .nbuckets
        .iter()
        .map(|&nbuckets| {
            bucket::run(&bucket::Options {
                nbuckets,
                threads: usize::try_from(args.threads)?,
                engine: args.common.engine,
                rates: args.rate.clone(),
                passes: args.passes,
                limit: Duration::from_secs(args.limit),
                seed: args.common.seed,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut open = numbers(
        style,
        &[
            "open loop",
            "buckets",
            "rate",
            "passes",
            "p50",
            "p99",
            "p99.9",
            "p99.99",
            "max",
            "p99.99 to empty",
        ],
    );
    let mut closed =
        numbers(style, &["closed loop", "buckets", "passes", "a second", "to reference"]);
    for report in &reports {
        let reference = report.engines.iter().find(|engine| engine.engine == Engine::Reference);
        for engine in &report.engines {
            let name = name(engine.engine);
            closed.add_row([
                name.into(),
                report.nbuckets.to_string(),
                engine.closed_loop_passes.to_string(),
                format!("{:.0}", engine.closed_loop_per_second),
                reference.map_or_else(
                    || "-".into(),
                    |r| format!("{:.1}", engine.closed_loop_per_second / r.closed_loop_per_second),
                ),
            ]);
            for rated in &engine.open_loop {
                for (what, latency) in [(name, &rated.alloc), ("  empty operation", &rated.empty)] {
                    open.add_row([
                        what.into(),
                        report.nbuckets.to_string(),
                        rated.rate.to_string(),
                        rated.passes.to_string(),
                        time(latency.p50_ns),
                        time(latency.p99_ns),
                        time(latency.p99_9_ns),
                        time(latency.p99_99_ns),
                        time(latency.max_ns),
                        ratio(latency.p99_99_ns, rated.empty.p99_99_ns),
                    ]);
                }
            }
        }
    }
    show(out, args.common.json, &reports, &[closed, open])
}

fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::Fast => "allocator",
        Engine::Reference => "reference",
        Engine::Both => "both",
    }
}

/// Runs `bcache-bench sector`.
pub fn sector(args: &SectorArgs) -> Result<ExitCode> {
    let out = Out::stdout();
    let style = out.style();
    let reports = args
        .streams
        .iter()
        .map(|&streams| {
            sector::run(&sector::Options {
                nbuckets: args.nbuckets,
                threads: usize::try_from(args.threads)?,
                streams: usize::try_from(streams)?,
                engine: args.common.engine,
                time: Duration::from_millis(args.time),
                seed: args.common.seed,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut rates = numbers(
        style,
        &["engine", "streams", "threads", "a second", "to one thread", "to reference"],
    );
    for report in &reports {
        for measured in &report.measured {
            let to = |other: Option<f64>| {
                other.map_or_else(
                    || "-".into(),
                    |other| format!("{:.2}", measured.per_second / other),
                )
            };
            rates.add_row([
                name(measured.engine).to_string(),
                report.streams.to_string(),
                measured.threads.to_string(),
                format!("{:.0}", measured.per_second),
                to(report.per_second(measured.engine, 1)),
                to(report.per_second(Engine::Reference, measured.threads)),
            ]);
        }
    }
    show(out, args.common.json, &reports, &[rates])
}
