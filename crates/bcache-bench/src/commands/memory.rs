//! `bcache-bench invalidate`, `bucket` and `sector`: the allocator's parts in memory.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::table::{number, table};
use comfy_table::{Cell, Table};
use serde::Serialize;

use crate::cli::{BucketArgs, InvalidateArgs, SectorArgs};
use crate::memory::{Engine, bucket, invalidate, sector};
use crate::num::{float, format_count, format_ns, ratio, whole};

/// Prints `reports` as JSON, or as the tables that `render` makes of them.
fn show<R: Serialize>(
    json: bool,
    reports: &[R],
    render: impl FnOnce(&mut dyn FnMut(&[&str]) -> Table) -> Vec<Table>,
) -> Result<ExitCode> {
    let mut out = Out::stdout();
    if json {
        out.json(&reports)?;
    } else {
        let style = out.style();
        for rendered in render(&mut |header| table(style, header)) {
            writeln!(out, "{}\n", rendered.trim_fmt())?;
        }
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::Fast => "allocator",
        Engine::Reference => "reference",
        Engine::Both => "both",
    }
}

fn times(factor: Option<f64>) -> Cell {
    factor.map_or_else(|| number("-"), |factor| number(format!("{factor:.2}")))
}

fn duration(ns: u64) -> Cell {
    number(format_ns(float(ns)))
}

/// Runs `bcache-bench invalidate`.
pub fn invalidate(args: &InvalidateArgs) -> Result<ExitCode> {
    let passes = usize::try_from(args.passes)?;
    let (engine, seed) = (args.memory.engine, args.memory.seed);
    let run = |&nbuckets| invalidate::run(nbuckets, passes, engine, seed);
    let reports = args.nbuckets.iter().map(run).collect::<Result<Vec<_>>>()?;
    show(args.memory.json, &reports, |table| {
        let mut rows = table(&["buckets", "", "time", "to the sum", "reference to it"]);
        for report in &reports {
            let mut row = |what: &str, ns: Option<u64>, reference: Option<u64>| {
                let Some(ns) = ns else { return };
                rows.add_row([
                    number(format_count(report.nbuckets)),
                    Cell::new(what),
                    duration(ns),
                    times(ratio(ns, report.sum_ns)),
                    times(reference.and_then(|reference| ratio(reference, ns))),
                ]);
            };
            row("sum of a u32 array", Some(report.sum_ns), None);
            row("LRU pass: sweep, select, sort", report.select_ns, None);
            row("the same, and invalidate", report.pass_ns, report.reference_pass_ns);
            row("rescale", report.rescale_ns, report.reference_rescale_ns);
            row("reference: LRU pass", report.reference_pass_ns, None);
            row("reference: rescale", report.reference_rescale_ns, None);
        }
        let mut memory = table(&["bytes a bucket"]);
        if let Some(report) = reports.first() {
            memory.add_row([number(report.bytes_per_bucket)]);
        }
        vec![rows, memory]
    })
}

/// Runs `bcache-bench bucket`.
pub fn bucket(args: &BucketArgs) -> Result<ExitCode> {
    let run = |&nbuckets| {
        bucket::run(&bucket::Options {
            nbuckets,
            threads: usize::try_from(args.threads)?,
            engine: args.memory.engine,
            rates: args.rate.clone(),
            passes: args.passes,
            limit: Duration::from_secs(args.limit),
            seed: args.memory.seed,
        })
    };
    let reports = args.nbuckets.iter().map(run).collect::<Result<Vec<_>>>()?;
    show(args.memory.json, &reports, |table| {
        let mut closed =
            table(&["closed loop", "buckets", "passes", "a second", "to the reference"]);
        let mut open = table(&[
            "open loop",
            "buckets",
            "a second",
            "passes",
            "p50",
            "p99",
            "p99.9",
            "p99.99",
            "max",
            "p99.99 to empty",
        ]);
        for report in &reports {
            let reference = report.engines.iter().find(|it| it.engine == Engine::Reference);
            for engine in &report.engines {
                let per_second = engine.closed_loop_per_second;
                closed.add_row([
                    Cell::new(name(engine.engine)),
                    number(format_count(report.nbuckets)),
                    number(engine.closed_loop_passes),
                    number(format_count(whole(per_second))),
                    times(reference.map(|it| per_second / it.closed_loop_per_second)),
                ]);
                for rated in &engine.open_loop {
                    for (what, latency) in
                        [(name(engine.engine), &rated.alloc), ("  empty operation", &rated.empty)]
                    {
                        open.add_row([
                            Cell::new(what),
                            number(format_count(report.nbuckets)),
                            number(format_count(rated.rate)),
                            number(rated.passes),
                            duration(latency.p50_ns),
                            duration(latency.p99_ns),
                            duration(latency.p99_9_ns),
                            duration(latency.p99_99_ns),
                            duration(latency.max_ns),
                            times(ratio(latency.p99_99_ns, rated.empty.p99_99_ns)),
                        ]);
                    }
                }
            }
        }
        vec![closed, open]
    })
}

/// Runs `bcache-bench sector`.
pub fn sector(args: &SectorArgs) -> Result<ExitCode> {
    let run = |&streams| {
        sector::run(&sector::Options {
            nbuckets: args.nbuckets,
            threads: usize::try_from(args.threads)?,
            streams: usize::try_from(streams)?,
            engine: args.memory.engine,
            time: Duration::from_millis(args.time),
            seed: args.memory.seed,
        })
    };
    let reports = args.streams.iter().map(run).collect::<Result<Vec<_>>>()?;
    show(args.memory.json, &reports, |table| {
        let mut rows =
            table(&["", "streams", "threads", "a second", "to one thread", "to the reference"]);
        for report in &reports {
            for it in &report.measured {
                let to = |engine, threads| {
                    times(report.per_second(engine, threads).map(|other| it.per_second / other))
                };
                rows.add_row([
                    Cell::new(name(it.engine)),
                    number(report.streams),
                    number(it.threads),
                    number(format_count(whole(it.per_second))),
                    to(it.engine, 1),
                    to(Engine::Reference, it.threads),
                ]);
            }
        }
        vec![rows]
    })
}
