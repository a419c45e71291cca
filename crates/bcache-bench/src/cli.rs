//! The command line: what may be asked for, and how answers are shown.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::memory::{Engine, bucket, invalidate, sector};

/// Drives bcache's bucket allocator and reports what it costs.
#[derive(Debug, Parser)]
#[command(name = "bcache-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time an LRU pass and a rescaling in memory, against the sum of an array
    Invalidate(Invalidate),
    /// Time bucket allocation in memory while the allocator thread invalidates
    Bucket(Bucket),
    /// Time sector allocation in memory
    Sector(Sector),
}

#[derive(Debug, Args)]
struct Common {
    /// Engines to run: the allocator, a plain transcription of its semantics, or both
    #[arg(long, value_enum, default_value_t)]
    engine: Engine,
    /// Seed of the buckets' contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Invalidate {
    /// Buckets of the cache; several sizes may be given
    #[arg(long, value_delimiter = ',', default_value = "1048576", value_parser = clap::value_parser!(u64).range(513..))]
    nbuckets: Vec<u64>,
    /// Passes, of which the median is reported
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Bucket {
    /// Buckets of the cache; several sizes may be given
    #[arg(long, value_delimiter = ',', default_value = "1048576", value_parser = clap::value_parser!(u64).range(513..))]
    nbuckets: Vec<u64>,
    /// Callers of the closed loop
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Rates of the open loop, in allocations a second
    #[arg(long, value_delimiter = ',', default_value = "20000,100000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Vec<u32>,
    /// Passes that each loop goes through
    #[arg(long, default_value_t = 20)]
    passes: u64,
    /// Longest time for each loop, in seconds, however few passes it has made
    #[arg(long, default_value_t = 600)]
    limit: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Sector {
    /// Buckets of the cache
    #[arg(long, default_value_t = 65536, value_parser = clap::value_parser!(u64).range(513..))]
    nbuckets: u64,
    /// Most threads; every number from 1 on is measured
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Streams of all threads together; several numbers may be given
    #[arg(long, value_delimiter = ',', default_value = "128", value_parser = clap::value_parser!(u32).range(1..))]
    streams: Vec<u32>,
    /// Length of each measurement, in milliseconds
    #[arg(long, default_value_t = 1000)]
    time: u64,
    #[command(flatten)]
    common: Common,
}

/// Runs what was asked for.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Invalidate(args) => run_invalidate(args),
        Command::Bucket(args) => run_bucket(args),
        Command::Sector(args) => run_sector(args),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn show(json: bool, report: &impl Serialize, tables: &[Table]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        for table in tables {
            writeln!(out, "{table}")?;
        }
    }
    Ok(())
}

/// A time as people read it.
fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{}.{} µs", ns / 1000, ns % 1000 / 100),
        _ => format!("{}.{:02} ms", ns / 1_000_000, ns % 1_000_000 / 10_000),
    }
}

#[allow(clippy::cast_precision_loss)] // ratios for people
fn ratio(of: u64, to: u64) -> String {
    if to == 0 { "-".into() } else { format!("{:.2}", of as f64 / to as f64) }
}

fn run_invalidate(args: &Invalidate) -> anyhow::Result<()> {
    let passes = usize::try_from(args.passes)?;
    let reports = args
        .nbuckets
        .iter()
        .map(|&nbuckets| invalidate::run(nbuckets, passes, args.common.engine, args.common.seed))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut times = table(&["buckets", "what", "time", "to the sum", "reference / it"]);
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
    let mut memory = table(&["bucket table", "bytes a bucket"]);
    if let Some(report) = reports.first() {
        memory.add_row(["all arrays".to_string(), report.bytes_per_bucket.to_string()]);
    }
    show(args.common.json, &reports, &[times, memory])
}

fn run_bucket(args: &Bucket) -> anyhow::Result<()> {
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
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut open = table(&[
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
    ]);
    let mut closed = table(&["closed loop", "buckets", "passes", "a second", "to reference"]);
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
    show(args.common.json, &reports, &[closed, open])
}

fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::Fast => "allocator",
        Engine::Reference => "reference",
        Engine::Both => "both",
    }
}

fn run_sector(args: &Sector) -> anyhow::Result<()> {
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
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut rates =
        table(&["engine", "streams", "threads", "a second", "to one thread", "to reference"]);
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
    show(args.common.json, &reports, &[rates])
}
