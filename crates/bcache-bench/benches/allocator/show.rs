//! `invalidate`, `bucket` and `sector`: the parts of the allocator in memory.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bcache_cli::out::{Out, Style};
use bcache_cli::table::{Table, table};
use bcache_core::device::sysfs::Root;
use serde_json::{Value, json};

use crate::cli::{BucketArgs, InvalidateArgs, SectorArgs};
use crate::engines::{Engine, engine_name};
use crate::invalidate::median_ns;
use crate::{bucket, invalidate, sector};
use bcache_bench::environment::Environment;
use bcache_bench::exit::{ExitError, Failure};
use bcache_bench::num::{float, format_count, format_ns};
use bcache_bench::record::Measure;
use bcache_bench::report::table::render_warnings;
use bcache_bench::report::{Percentile, Ratio, Report, Run, Settings};
use bcache_bench::warnings::{self, Warning};
use bcache_bench::watch::Watch;

/// A table with words on the left and numbers beside them.
fn numbers(style: Style, header: &[&str]) -> Table {
    table(style, header).right_from(1)
}

/// Measures, with the machine watched; up to `threads` threads want to run all the time.
fn observed<T>(
    command: &str,
    settings: &Value,
    threads: u32,
    measure: impl FnOnce() -> Result<T>,
) -> Result<(Report, T)> {
    let environment = Environment::gather(&Root::system(), &[]);
    let mut report = Report::new(command, Settings::of(settings)?, environment);
    report.warnings = warnings::of_environment(&report.environment, threads);
    let watch = Watch::start(Root::system(), Vec::new());
    let found = measure()?;
    report.warnings.extend(warnings::of_observed(&watch.finish(), &BTreeMap::new()));
    Ok((report, found))
}

/// Adds what was run, and what can be said against it up to `percentile`, the highest that is shown.
fn add_runs<'a>(report: &mut Report, runs: impl Iterator<Item = &'a Run>, percentile: Percentile) {
    for run in runs {
        let of_run = warnings::of_run(run, &report.environment).into_iter();
        report.warnings.extend(of_run.filter(|warning| match warning {
            Warning::TooFewSamples { percentile: lacking, .. } => *lacking <= percentile,
            _ => true,
        }));
        report.runs.push(run.clone());
    }
}

fn add_ratio(
    report: &mut Report,
    name: String,
    unit: &str,
    value: Option<f64>,
    baseline: Option<f64>,
) {
    if let (Some(value), Some(baseline)) = (value, baseline) {
        report.ratios.push(Ratio { name, value, baseline, unit: unit.to_owned(), turns: None });
    }
}

fn show(mut out: Out, json: bool, report: &Report, tables: &[Table]) -> Result<ExitCode> {
    if json {
        out.json(report)?;
    } else {
        for (index, table) in tables.iter().enumerate() {
            let gap = if index > 0 { "\n" } else { "" };
            writeln!(out, "{gap}{table}")?;
        }
        let style = out.style();
        render_warnings(&mut out, style, &report.warnings)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn time(ns: u64) -> String {
    format_ns(float(ns))
}

fn ratio(of: u64, to: u64) -> String {
    bcache_bench::num::ratio(of, to).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"))
}

/// Runs `invalidate`.
pub fn invalidate(args: &InvalidateArgs) -> Result<ExitCode> {
    let (threads, passes, engine, seed) =
        (args.caches.threads, args.passes, args.common.engine, args.common.seed);
    let settings = json!({
        "nbuckets": args.caches.nbuckets,
        "threads": threads,
        "passes": passes,
        "engine": engine,
        "seed": seed,
    });
    let (mut report, found) = observed("invalidate", &settings, threads, || {
        let run = |&nbuckets: &u64| {
            invalidate::run(&invalidate::Options { nbuckets, threads, passes, engine, seed })
        };
        args.caches.nbuckets.iter().map(run).collect::<Result<Vec<_>>>()
    })?;
    let out = Out::stdout();
    let style = out.style();
    let mut times = numbers(style, &["buckets", "what", "time", "to the sum", "reference / it"]);
    for found in &found {
        let sum_ns = median_ns(Some(&found.sum), Measure::ArraySum).unwrap_or(0);
        let allocator = |measure| median_ns(found.allocator.as_ref(), measure);
        let reference = |measure| median_ns(found.reference.as_ref(), measure);
        let mut row = |what: &str, ns: Option<u64>, reference: Option<u64>| {
            if let Some(ns) = ns {
                times.add_row([
                    found.nbuckets.to_string(),
                    what.into(),
                    time(ns),
                    ratio(ns, sum_ns),
                    reference.map_or_else(|| "-".into(), |reference| ratio(reference, ns)),
                ]);
            }
        };
        let (pass, rescaling) = (Measure::InvalidationPass, Measure::Rescaling);
        row("sum of a u32 array", Some(sum_ns), None);
        row("LRU pass: sweep, select, sort", allocator(Measure::Selection), None);
        row("  the same and invalidate", allocator(pass), reference(pass));
        row("rescale", allocator(rescaling), reference(rescaling));
        row("LRU pass, reference", reference(pass), None);
        row("rescale, reference", reference(rescaling), None);
        let runs = [Some(&found.sum), found.allocator.as_ref(), found.reference.as_ref()];
        add_runs(&mut report, runs.into_iter().flatten(), Percentile::P50);
        let buckets = format_count(found.nbuckets);
        for (what, measure) in [("LRU pass", pass), ("rescaling", rescaling)] {
            let own = allocator(measure).map(float);
            let name = |to| format!("{what}, {to}, {buckets} buckets");
            add_ratio(&mut report, name("to the sum"), "ns", own, Some(float(sum_ns)));
            let of_reference = reference(measure).map(float);
            add_ratio(&mut report, name("reference to allocator"), "ns", of_reference, own);
        }
    }
    let mut memory = numbers(style, &["bucket table", "bytes a bucket"]);
    if let Some(found) = found.first() {
        memory.add_row(["all arrays".to_string(), found.bytes_per_bucket.to_string()]);
    }
    show(out, args.common.json, &report, &[times, memory])
}

/// Runs `bucket`.
pub fn bucket(args: &BucketArgs) -> Result<ExitCode> {
    let settings = json!({
        "nbuckets": args.caches.nbuckets,
        "threads": args.caches.threads,
        "rates": args.rate,
        "passes": args.passes,
        "limit_seconds": args.limit,
        "engine": args.common.engine,
        "seed": args.common.seed,
    });
    // The callers and the allocator's thread.
    let (mut report, found) = observed("bucket", &settings, args.caches.threads + 1, || {
        let run = |&nbuckets: &u64| {
            bucket::run(&bucket::Options {
                nbuckets,
                threads: usize::try_from(args.caches.threads)?,
                engine: args.common.engine,
                rates: args.rate.clone(),
                passes: args.passes,
                limit: Duration::from_secs(args.limit),
                seed: args.common.seed,
            })
        };
        args.caches.nbuckets.iter().map(run).collect::<Result<Vec<_>>>()
    })?;
    let out = Out::stdout();
    let style = out.style();
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
            "p99.99, median",
            "to empty",
        ],
    );
    let mut closed =
        numbers(style, &["closed loop", "buckets", "passes", "a second", "to reference"]);
    let per_second = |run: &Run| run.figures().operations_per_second;
    for found in &found {
        let buckets = format_count(found.nbuckets);
        let reference = found.engines.iter().find(|it| it.engine == Engine::Reference);
        let of_reference = reference.and_then(|it| per_second(&it.closed_loop));
        for engine in &found.engines {
            let name = engine_name(engine.engine);
            let own = per_second(&engine.closed_loop);
            closed.add_row([
                name.into(),
                found.nbuckets.to_string(),
                engine.closed_loop.counters.passes.to_string(),
                own.map_or_else(|| "-".into(), |own| format!("{own:.0}")),
                own.zip(of_reference)
                    .map_or_else(|| "-".into(), |(own, other)| format!("{:.1}", own / other)),
            ]);
            if engine.engine == Engine::Fast {
                let name = format!("closed loop, allocator to reference, {buckets} buckets");
                add_ratio(&mut report, name, "allocations/s", own, of_reference);
            }
            for bucket::OpenLoopFound { rate, run, tails } in &engine.open_loop {
                let (own_ns, empty_ns) = (tails.allocation_ns(), tails.empty_ns());
                for (what, measure, tail_ns) in [
                    (name, Measure::BucketAllocation, own_ns),
                    ("  empty operation", Measure::Empty, empty_ns),
                ] {
                    let Some(measured) = run.measured(measure) else { continue };
                    let at = |percentile| time(measured.percentile_ns(percentile));
                    open.add_row([
                        what.into(),
                        found.nbuckets.to_string(),
                        rate.to_string(),
                        run.counters.passes.to_string(),
                        at(Percentile::P50),
                        at(Percentile::P99),
                        at(Percentile::P999),
                        at(Percentile::P9999),
                        time(measured.histogram.max()),
                        time(tail_ns),
                        ratio(tail_ns, empty_ns),
                    ]);
                }
                let of = match tails.rounds() {
                    1 => "one round".to_owned(),
                    rounds => format!("medians of {rounds} rounds"),
                };
                let name = format!("p99.99 to that of an empty operation, {of}: {}", run.name);
                let (own_ns, empty_ns) = (Some(float(own_ns)), Some(float(empty_ns)));
                add_ratio(&mut report, name, "ns", own_ns, empty_ns);
            }
        }
        let runs = found.engines.iter().flat_map(bucket::EngineFound::runs);
        add_runs(&mut report, runs, Percentile::P9999);
        report.warnings.extend(found.warnings.iter().cloned());
    }
    show(out, args.common.json, &report, &[closed, open])
}

/// Runs `sector`.
pub fn sector(args: &SectorArgs) -> Result<ExitCode> {
    let with = |&streams: &u32| -> Result<sector::Options> {
        let options = sector::Options {
            nbuckets: args.nbuckets,
            threads: usize::try_from(args.threads)?,
            streams: usize::try_from(streams)?,
            engine: args.common.engine,
            time: Duration::from_millis(args.time),
            seed: args.common.seed,
        };
        options.check().map_err(|error| ExitError::wrap(Failure::Usage, error))?;
        Ok(options)
    };
    // All of them before the first is run.
    let all = args.streams.iter().map(with).collect::<Result<Vec<_>>>()?;
    let settings = json!({
        "nbuckets": args.nbuckets,
        "threads": args.threads,
        "streams": args.streams,
        "time_ms": args.time,
        "engine": args.common.engine,
        "seed": args.common.seed,
    });
    let (mut report, found) = observed("sector", &settings, args.threads, || {
        all.iter().map(sector::run).collect::<Result<Vec<_>>>()
    })?;
    let out = Out::stdout();
    let style = out.style();
    let mut rates = numbers(
        style,
        &["engine", "streams", "threads", "a second", "to one thread", "to reference"],
    );
    for found in &found {
        for measured in &found.measured {
            let (engine, threads) = (measured.engine, measured.threads);
            let own = found.per_second(engine, threads);
            let to = |other: Option<f64>| match (own, other) {
                (Some(own), Some(other)) => format!("{:.2}", own / other),
                _ => "-".into(),
            };
            let (one, reference) =
                (found.per_second(engine, 1), found.per_second(Engine::Reference, threads));
            rates.add_row([
                engine_name(engine).to_string(),
                found.streams.to_string(),
                threads.to_string(),
                own.map_or_else(|| "-".into(), |own| format!("{own:.0}")),
                to(one),
                to(reference),
            ]);
            if threads > 1 {
                let name = format!("to one thread: {}", measured.run.name);
                add_ratio(&mut report, name, "pieces/s", own, one);
            }
            if engine == Engine::Fast {
                let name = format!("to the reference: {}", measured.run.name);
                add_ratio(&mut report, name, "pieces/s", own, reference);
            }
        }
        add_runs(&mut report, found.measured.iter().map(|it| &it.run), Percentile::P9999);
    }
    show(out, args.common.json, &report, &[rates])
}
