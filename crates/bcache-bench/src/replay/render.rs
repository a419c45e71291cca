//! The report in words and tables.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::table::{number, table};
use bcache_core::model::BypassReason;
use bcache_core::units::format_bytes;

use super::cells::{Cell, CellResult};
use super::device::DeviceFigures;
use super::report::ReplayReport;
use super::words::{answer_text, warning_text};
use crate::num::{float, format_count, format_ns, ratio, whole};

/// `12.3 %`.
pub fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

pub(super) fn rounded_bytes(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value < 99.95);
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A cutoff as people set it.
pub fn cutoff_name(bytes: u64) -> String {
    if bytes == 0 { "off".to_owned() } else { format_bytes(bytes) }
}

/// The report as people read it.
pub fn text(report: &ReplayReport, out: &mut Out) -> Result<()> {
    if report.interrupted {
        out.prose("Interrupted: what follows is of the caches that were finished.")?;
    }
    out.prose(&answer_text(&report.answer))?;
    writeln!(out)?;
    out.prose(&trace_text(report))?;
    for (reason, count) in report.skipped.iter() {
        writeln!(out, "  skipped: {} {}", format_count(count), reason.describe())?;
    }
    writeln!(out)?;
    cells_table(report, out)?;
    bars(report, out)?;
    if let Some(device) = &report.device {
        device_table(device, out)?;
    }
    for warning in &report.warnings {
        out.prose(&format!("Note: {}.", warning_text(warning)))?;
    }
    out.prose(
        "Not simulated: congestion, and how long a garbage collection takes. A chain of prio sets is taken \
         to need 2.5 ms; what finds no bucket ready meanwhile goes past the cache. Journal and btree writes \
         are not counted.",
    )?;
    Ok(())
}

fn device_table(device: &DeviceFigures, out: &mut Out) -> Result<()> {
    let pace = if device.timed { "at the trace's times" } else { "as fast as possible" };
    writeln!(out, "The same requests on {}, one at a time, {pace}:\n", device.device)?;
    let style = out.style();
    let mut cells = table(style, &["", "requests", "mean", "p50", "p99", "p99.9", "max"]);
    let kinds =
        [("reads", &device.reads), ("writes", &device.writes), ("discards", &device.discards)];
    for (name, it) in kinds.into_iter().filter(|(_, it)| it.count > 0) {
        let times =
            [it.mean_ns, float(it.p50_ns), float(it.p99_ns), float(it.p99_9_ns), float(it.max_ns)];
        let mut row = vec![number(name), number(format_count(it.count))];
        row.extend(times.map(|ns| number(format_ns(ns))));
        cells.add_row(row);
    }
    writeln!(out, "{cells}\n")?;
    if device.late > 0 {
        let late = format_count(device.late);
        writeln!(out, "{late} requests began more than a millisecond late.\n")?;
    }
    if device.stopped {
        writeln!(out, "Interrupted: these are the requests that were made by then.\n")?;
    }
    Ok(())
}

fn trace_text(report: &ReplayReport) -> String {
    let it = &report.trace;
    let counted = |name: &str, counted: &crate::trace::Counted| {
        format!("{} {name} of {}", format_count(counted.requests), format_bytes(counted.bytes))
    };
    let mut text = format!(
        "Trace: {}, {}, {}; footprint {}",
        counted("reads", &it.reads),
        counted("writes", &it.writes),
        counted("discards", &it.discards),
        format_bytes(it.footprint_bytes),
    );
    if it.has_times {
        let _ = write!(text, "; {} s", format_count(it.duration_ns / 1_000_000_000));
    }
    if it.devices.len() > 1 {
        let _ = write!(text, "; {} devices", it.devices.len());
    }
    if it.processes > 0 {
        let _ = write!(text, "; {} processes", format_count(it.processes));
    }
    text
}

/// Titles of the table.
pub const TITLES: [&str; 12] = [
    "cache",
    "bucket",
    "policy",
    "mode",
    "cutoff",
    "hits",
    "by bytes",
    "kernel's",
    "LRU blocks",
    "bypassed",
    "to SSD",
    "GCs",
];

/// A cell as a row; `None` figures are those of a cache that is refused.
pub fn row(result: &CellResult) -> [String; 12] {
    let Cell { cache_bytes, bucket_bytes, policy, mode, sequential_cutoff_bytes } = result.cell;
    let dash = || "-".to_owned();
    let mean = |spread: Option<super::cells::Spread>| {
        spread.map_or_else(dash, |it| {
            if it.max - it.min > 0.0005 {
                format!("{:.1} ({:.1}-{:.1}) %", it.mean * 1e2, it.min * 1e2, it.max * 1e2)
            } else {
                percent(it.mean)
            }
        })
    };
    let lru = result.lru_blocks;
    let lru = ratio(lru.read_references - lru.read_misses, lru.read_references);
    let first = result.runs.first();
    let bypassed = first.map(|stats| {
        let (reads, writes) = stats.bypassed_sectors();
        let all = stats.reads.sectors + stats.writes.sectors + stats.discards.sectors;
        ratio(reads + writes, all).unwrap_or(0.0)
    });
    [
        format_bytes(cache_bytes),
        format_bytes(bucket_bytes),
        policy.name().to_owned(),
        mode.name().to_owned(),
        cutoff_name(sequential_cutoff_bytes),
        if result.refused {
            "refused".to_owned()
        } else if result.sample_too_small {
            "sample too small".to_owned()
        } else {
            mean(result.hit_ratio)
        },
        mean(result.byte_hit_ratio),
        mean(result.kernel_hit_ratio),
        lru.map_or_else(dash, percent),
        bypassed.map_or_else(dash, percent),
        first.map_or_else(dash, |_| rounded_bytes(float(result.ssd_bytes))),
        first.map_or_else(dash, |stats| format_count(stats.gcs)),
    ]
}

fn cells_table(report: &ReplayReport, out: &mut Out) -> Result<()> {
    let tbw = report.settings.tbw_bytes;
    let style = out.style();
    let mut titles = TITLES.to_vec();
    if tbw.is_some() {
        titles.push("years");
    }
    // A column in which all rows are the same says nothing.
    let rows: Vec<Vec<String>> = report
        .cells
        .iter()
        .map(|it| {
            let mut row = row(it).to_vec();
            if tbw.is_some() {
                row.push(it.tbw_years.map_or("-".to_owned(), |years| format!("{years:.1}")));
            }
            row
        })
        .collect();
    let shown: Vec<usize> = (0..titles.len())
        .filter(|&at| {
            let differs = rows.windows(2).any(|pair| pair[0][at] != pair[1][at]);
            !matches!(titles[at], "mode" | "cutoff" | "policy") || differs
        })
        .collect();
    let mut cells = table(style, &shown.iter().map(|&at| titles[at]).collect::<Vec<_>>());
    for row in &rows {
        cells.add_row(shown.iter().map(|&at| number(&row[at])));
    }
    writeln!(out, "{cells}\n")?;
    Ok(())
}

/// Columns of a bar.
const BAR: u64 = 50;

/// Hits over the size of the cache, in letters: the best cell of each size, and exact LRU.
fn bars(report: &ReplayReport, out: &mut Out) -> Result<()> {
    let mut sizes: Vec<u64> = report.cells.iter().map(|it| it.cell.cache_bytes).collect();
    sizes.dedup();
    let ran = |size: u64| {
        report.cells.iter().filter(move |it| it.cell.cache_bytes == size && !it.runs.is_empty())
    };
    if sizes.len() < 2 {
        return Ok(());
    }
    writeln!(out, "Hits of the best cell by size of the cache (| is exact LRU of blocks):")?;
    for size in sizes {
        let Some(best) = ran(size).max_by(|a, b| a.hit().total_cmp(&b.hit())) else { continue };
        let lru = best.lru_blocks;
        let lru = ratio(lru.read_references - lru.read_misses, lru.read_references).unwrap_or(0.0);
        let place = |ratio: f64| whole((ratio * float(BAR)).round());
        let bar: String = (0..=BAR)
            .map(|at| match at {
                at if at == place(lru) => '|',
                at if at < place(best.hit()) => '#',
                _ => ' ',
            })
            .collect();
        let size = format_bytes(size);
        writeln!(out, "{size:>10} {} {:>7}", bar, percent(best.hit()))?;
    }
    writeln!(out)?;
    Ok(())
}

/// The table as Markdown.
pub fn markdown(report: &ReplayReport, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    writeln!(out, "{}\n", answer_text(&report.answer))?;
    writeln!(out, "| {} |", TITLES.join(" | "))?;
    writeln!(out, "|{}", "---|".repeat(TITLES.len()))?;
    for result in &report.cells {
        writeln!(out, "| {} |", row(result).join(" | "))?;
    }
    for warning in &report.warnings {
        writeln!(out, "\n- {}", warning_text(warning))?;
    }
    Ok(())
}

/// One line a run, all counts and no ratios but by their parts.
pub fn csv(report: &ReplayReport, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    writeln!(
        out,
        "cache_bytes,bucket_bytes,policy,mode,sequential_cutoff_bytes,run,cache_hits,cache_misses,\
         cache_bypass_hits,cache_bypass_misses,partial_hits,read_sectors,read_hit_sectors,\
         write_sectors,{},promoted_sectors,written_sectors,writeback_sectors,dirty_sectors_max,\
         prio_sectors,ssd_write_sectors,backing_read_sectors,invalidations,invalidations_of_data,\
         gcs,gcs_for_allocator,gc_gen_max,rescalings,lru_read_references,lru_read_misses",
        BypassReason::ALL.map(|why| format!("bypassed_{}", why.name().replace(' ', "_"))).join(",")
    )?;
    for result in &report.cells {
        for (run, it) in result.runs.iter().enumerate() {
            let cell = result.cell;
            let numbers = [
                it.cache_hits,
                it.cache_misses,
                it.cache_bypass_hits,
                it.cache_bypass_misses,
                it.partial_hits,
                it.reads.sectors,
                it.read_hit_sectors,
                it.writes.sectors,
            ];
            let bypassed = BypassReason::ALL
                .map(|why| it.bypassed_reads.by(why).sectors + it.bypassed_writes.by(why).sectors);
            let rest = [
                it.promoted_sectors,
                it.written_sectors,
                it.writeback_sectors,
                it.dirty_sectors_max,
                it.prio_sectors,
                it.ssd_write_sectors(),
                it.backing_read_sectors,
                it.invalidations,
                it.invalidations_of_data,
                it.gcs,
                it.gcs_for_allocator,
                u64::from(it.gc_gen_max),
                it.rescalings,
                result.lru_blocks.read_references,
                result.lru_blocks.read_misses,
            ];
            let all: Vec<String> =
                numbers.iter().chain(&bypassed).chain(&rest).map(ToString::to_string).collect();
            writeln!(
                out,
                "{},{},{},{},{},{run},{}",
                cell.cache_bytes,
                cell.bucket_bytes,
                cell.policy.name(),
                cell.mode.name(),
                cell.sequential_cutoff_bytes,
                all.join(",")
            )?;
        }
    }
    Ok(())
}
