//! A report for people: tables, bars, figures and warnings.

use std::io::{self, Write};

use bcache_cli::out::Style;
use bcache_cli::table::{Cell, Color, Table, bare, number, state, table};
use bcache_core::units::format_bytes;

use super::{Figures, InTurns, Measured, Percentile, Ratio, Report, Run};
use crate::environment::{Backing, DeviceEnvironment, Environment};
use crate::num::{float, format_count, format_ns, whole};
use crate::record::Measure;
use crate::warnings::Warning;

/// Columns that the table of latencies takes without its bars.
const WIDTH_WITHOUT_BARS: u16 = 90;
/// Shortest and longest bar, in characters.
const BAR_MIN: u16 = 12;
const BAR_MAX: u16 = 48;
/// Length of a bar where the output is no terminal.
const BAR_PLAIN: u16 = 32;

/// What a bar is drawn with, up to which percentile.
const SHADES: [(char, Option<Percentile>); 5] = [
    ('█', Some(Percentile::P50)),
    ('▓', Some(Percentile::P90)),
    ('▒', Some(Percentile::P99)),
    ('░', Some(Percentile::P9999)),
    ('·', None),
];

/// Writes `report`.
pub fn render(out: &mut impl Write, style: Style, report: &Report) -> io::Result<()> {
    render_summary(out, style, report)?;
    render_latencies(out, style, &report.runs)?;
    render_figures(out, style, &report.runs)?;
    render_ratios(out, style, &report.ratios)?;
    render_environment(out, style, &report.environment)?;
    render_warnings(out, style, &warning_lines(&report.warnings))
}

/// What ran, how fast it was, and how long an allocation took. That is the first run of a report; the
/// others are there to be compared with it.
fn render_summary(out: &mut impl Write, style: Style, report: &Report) -> io::Result<()> {
    let Some(run) = report.runs.first() else { return Ok(()) };
    let mut rows = bare(style);
    let devices: Vec<String> =
        report.environment.devices.iter().map(|it| it.path.display().to_string()).collect();
    let on = if devices.is_empty() { String::new() } else { format!(" on {}", devices.join(", ")) };
    let early = if report.interrupted { " (ended early)" } else { "" };
    rows.add_row([
        Cell::new("ran"),
        Cell::prose(format!(
            "{}{on}: {} operations in {}{early}",
            run.name,
            format_count(run.operations),
            format_ns(run.elapsed.as_secs_f64() * 1e9)
        )),
    ]);
    let figures = run.figures();
    let mut throughput = Vec::new();
    if let Some(rate) = figures.operations_per_second {
        throughput.push(format!("{} operations/s", format_count(whole(rate))));
    }
    for (rate, what) in
        [(figures.written_bytes_per_second, "written"), (figures.read_bytes_per_second, "read")]
    {
        if let Some(rate) = rate {
            throughput.push(format!("{}/s {what}", format_bytes(whole(rate))));
        }
    }
    if !throughput.is_empty() {
        rows.add_row([Cell::new("throughput"), Cell::prose(throughput.join(", "))]);
    }
    let allocation = [Measure::BucketAllocation, Measure::SectorAllocation]
        .into_iter()
        .find_map(|measure| run.measures.iter().find(|it| it.measure == measure));
    if let Some(it) = allocation {
        let of =
            |percentile| format!("{percentile} {}", format_ns(float(it.percentile_ns(percentile))));
        let percentiles = [Percentile::P50, Percentile::P99, Percentile::P9999].map(of);
        let max = format_ns(float(it.histogram.max()));
        rows.add_row([
            Cell::new(it.measure.to_string()),
            Cell::prose(format!("{}, max {max}", percentiles.join(", "))),
        ]);
    }
    writeln!(out, "{rows}")
}

/// Warnings as a person reads them: one of a kind is one line. What rests on too few samples is one list.
pub fn warning_lines(warnings: &[Warning]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut few: Vec<(Percentile, Vec<String>)> = Vec::new();
    for warning in warnings {
        match warning {
            Warning::TooFewSamples { run, measure, percentile, samples, .. } => {
                let one = format!("{run}: {measure} ({})", format_count(*samples));
                match few.iter_mut().find(|(known, _)| known == percentile) {
                    Some((_, measures)) => measures.push(one),
                    None => few.push((*percentile, vec![one])),
                }
            }
            other => lines.push(other.to_string()),
        }
    }
    few.sort_by_key(|(percentile, _)| Percentile::ALL.iter().position(|it| it == percentile));
    for (percentile, measures) in few {
        lines.push(format!("too few samples from {percentile} on: {}", measures.join(", ")));
    }
    lines
}

fn render_environment(out: &mut impl Write, style: Style, on: &Environment) -> io::Result<()> {
    let mut rows = bare(style);
    let unknown = || "unknown".to_owned();
    rows.add_row([
        Cell::new("machine"),
        Cell::prose(format!(
            "{}, {} {}, Linux {}",
            on.cpu_model.clone().unwrap_or_else(|| "unknown CPU".to_owned()),
            on.cpus,
            if on.cpus == 1 { "CPU" } else { "CPUs" },
            on.kernel.clone().unwrap_or_else(unknown)
        )),
    ]);
    rows.add_row([
        Cell::new("clock"),
        Cell::prose(format!(
            "{}, {} a reading",
            on.clocksource.clone().unwrap_or_else(unknown),
            format_ns(float(on.clock.read_ns))
        )),
    ]);
    for device in &on.devices {
        rows.add_row([Cell::new("device"), Cell::prose(describe_device(device))]);
    }
    writeln!(out, "\n{rows}")
}

fn describe_device(device: &DeviceEnvironment) -> String {
    let mut words = vec![device.path.display().to_string(), format_bytes(device.size_bytes)];
    words.extend(device.model.clone());
    match &device.backing {
        Backing::Device => {}
        Backing::Loop { file, direct } => words.push(format!(
            "loop device {} {}",
            if *direct == Some(true) { "directly on" } else { "over the page cache of" },
            file.display()
        )),
        Backing::Image { in_memory: false } => words.push("image file".to_owned()),
        Backing::Image { in_memory: true } => words.push("image file in memory".to_owned()),
        Backing::Memory => words.push("memory".to_owned()),
    }
    if device.rotational == Some(true) && device.backing == Backing::Device {
        words.push("rotating".to_owned());
    }
    words.extend(device.write_cache.clone());
    words.join(", ")
}

/// The range of times over which all bars of a report are drawn: whole powers of ten, in ns.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    width: u16,
}

impl Axis {
    fn over<'a>(measured: impl Iterator<Item = &'a Measured> + Clone, width: u16) -> Self {
        let of = |ns: u64| float(ns.max(1)).log10();
        let low = measured.clone().map(|it| it.histogram.min()).min().map_or(0.0, of).floor();
        let high = measured.map(|it| it.histogram.max()).max().map_or(1.0, of).ceil();
        Self { low, high: high.max(low + 1.0), width }
    }

    /// Characters from the axis's beginning to `ns`.
    fn position(&self, ns: u64) -> usize {
        let share = (float(ns.max(1)).log10() - self.low) / (self.high - self.low);
        let cells = whole((share * f64::from(self.width)).round().max(1.0));
        usize::try_from(cells).unwrap_or(usize::MAX).min(self.width.into())
    }

    fn bar(&self, measured: &Measured) -> String {
        let mut bar = String::new();
        let mut drawn = 0;
        for (shade, up_to) in SHADES {
            let ns = up_to.map_or(measured.histogram.max(), |it| measured.percentile_ns(it));
            let end = self.position(ns);
            bar.extend(std::iter::repeat_n(shade, end.saturating_sub(drawn)));
            drawn = drawn.max(end);
        }
        bar
    }

    fn legend(&self) -> String {
        let shades: Vec<String> = SHADES
            .iter()
            .map(|(shade, up_to)| match up_to {
                Some(percentile) => format!("{shade} {percentile}"),
                None => format!("{shade} max"),
            })
            .collect();
        format!(
            "bars: {}; logarithmic from {} to {}",
            shades.join("  "),
            format_ns(10f64.powf(self.low)),
            format_ns(10f64.powf(self.high))
        )
    }
}

fn bar_width(style: Style) -> u16 {
    style.width.map_or(BAR_PLAIN, |width| {
        let width = u16::try_from(width).unwrap_or(u16::MAX);
        width.saturating_sub(WIDTH_WITHOUT_BARS).clamp(BAR_MIN, BAR_MAX)
    })
}

fn render_latencies(out: &mut impl Write, style: Style, runs: &[Run]) -> io::Result<()> {
    let all = runs.iter().flat_map(|run| &run.measures);
    if all.clone().next().is_none() {
        return Ok(());
    }
    let axis = Axis::over(all, bar_width(style));
    let rows = latencies(style, runs, Some(&axis));
    writeln!(out, "\n{rows}")?;
    writeln!(out, "{}", axis.legend())
}

/// Percentiles of each run and measure, with bars where there is an axis.
fn latencies(style: Style, runs: &[Run], axis: Option<&Axis>) -> Table {
    const TITLES: [&str; 9] =
        ["latency", "count", "p50", "p90", "p99", "p99.9", "p99.99", "max", ""];
    let titles = if axis.is_some() { &TITLES[..] } else { &TITLES[..8] };
    let mut rows = table(style, titles);
    for run in runs {
        for measured in &run.measures {
            // One run needs no name in each row.
            let name = if runs.len() == 1 {
                measured.measure.to_string()
            } else {
                format!("{}: {}", run.name, measured.measure)
            };
            let mut row = vec![Cell::new(name), number(format_count(measured.histogram.len()))];
            row.extend(
                Percentile::ALL.map(|it| number(format_ns(float(measured.percentile_ns(it))))),
            );
            row.push(number(format_ns(float(measured.histogram.max()))));
            row.extend(axis.map(|axis| Cell::new(axis.bar(measured))));
            rows.add_row(row);
        }
    }
    rows
}

fn render_figures(out: &mut impl Write, style: Style, runs: &[Run]) -> io::Result<()> {
    for rows in [figures(style, runs), counts(style, runs)].iter().filter(|it| !it.is_empty()) {
        writeln!(out, "\n{rows}")?;
    }
    Ok(())
}

/// What each run did in all.
fn figures(style: Style, runs: &[Run]) -> Table {
    let mut rows = table(
        style,
        &["run", "time", "operations", "a second", "written", "read", "hits", "write ampl."],
    );
    let dash = || "-".to_owned();
    let rate = |bytes: Option<f64>| {
        bytes.map_or_else(dash, |bytes| format!("{}/s", format_bytes(whole(bytes))))
    };
    for run in runs {
        let Figures {
            operations_per_second,
            written_bytes_per_second,
            read_bytes_per_second,
            hit_ratio,
            write_amplification,
        } = run.figures();
        rows.add_row([
            Cell::new(&run.name),
            number(format_ns(run.elapsed.as_secs_f64() * 1e9)),
            number(format_count(run.operations)),
            number(operations_per_second.map_or_else(dash, |it| format_count(whole(it)))),
            number(rate(written_bytes_per_second)),
            number(rate(read_bytes_per_second)),
            number(hit_ratio.map_or_else(dash, |it| format!("{:.1} %", it * 100.0))),
            number(write_amplification.map_or_else(dash, |it| format!("{it:.3}"))),
        ]);
    }
    rows
}

/// What the allocators of the runs did.
fn counts(style: Style, runs: &[Run]) -> Table {
    let mut counts = table(style, &["run", "counted", ""]);
    for run in runs {
        let counters = &run.counters;
        for (name, count) in [
            ("passes of the allocator", counters.passes),
            ("buckets invalidated", counters.buckets_invalidated),
            ("buckets allocated", counters.buckets_allocated),
            ("allocations that waited", counters.blocked),
            ("garbage collections", counters.gcs),
            ("prio chains written", counters.prio_writes),
            ("journal entries written", counters.journal_writes),
            ("buckets discarded", counters.discards),
            ("discards that failed", counters.discards_failed),
            ("rescalings of priorities", counters.rescales),
        ] {
            if count > 0 {
                let run = Cell::new(&run.name);
                counts.add_row([run, Cell::new(name), number(format_count(count))]);
            }
        }
    }
    counts
}

fn render_ratios(out: &mut impl Write, style: Style, ratios: &[Ratio]) -> io::Result<()> {
    let rows = compared(style, ratios);
    if rows.is_empty() { Ok(()) } else { writeln!(out, "\n{rows}") }
}

/// What was measured beside something else.
fn compared(style: Style, ratios: &[Ratio]) -> Table {
    let figure = |ratio: &Ratio, value: f64| match ratio.unit.as_str() {
        "ns" => format_ns(value),
        "bytes/s" => format!("{}/s", format_bytes(whole(value))),
        unit => format!("{} {unit}", format_count(whole(value))),
    };
    let interval = |turns: InTurns| match (turns.ratio_low, turns.ratio_high) {
        (Some(low), Some(high)) => format!("{low:.3} to {high:.3} of {} pairs", turns.pairs),
        _ => format!("too few pairs for an interval ({})", turns.pairs),
    };
    let titles = ["compared in this run", "figure", "with", "ratio", "95 % interval"];
    let in_turns = ratios.iter().any(|ratio| ratio.turns.is_some());
    let mut rows = table(style, if in_turns { &titles[..] } else { &titles[..4] });
    for ratio in ratios {
        let mut row = vec![
            Cell::new(&ratio.name),
            number(figure(ratio, ratio.value)),
            number(figure(ratio, ratio.baseline)),
            number(ratio.ratio().map_or_else(|| "-".to_owned(), |it| format!("{it:.3}"))),
        ];
        if in_turns {
            row.push(Cell::new(ratio.turns.map_or_else(|| "-".to_owned(), interval)));
        }
        rows.add_row(row);
    }
    rows
}

/// The tables of `report` in Markdown, and what it warns of.
pub fn markdown(report: &Report) -> String {
    let style = Style::PLAIN;
    let runs = &report.runs;
    let tables = [
        latencies(style, runs, None),
        figures(style, runs),
        counts(style, runs),
        compared(style, &report.ratios),
    ];
    let mut parts: Vec<String> =
        tables.iter().filter(|it| !it.is_empty()).map(Table::markdown).collect();
    let warnings = warning_lines(&report.warnings);
    if !warnings.is_empty() {
        let lines: Vec<String> = warnings.iter().map(|it| format!("- warning: {it}")).collect();
        parts.push(lines.join("\n") + "\n");
    }
    parts.join("\n")
}

/// Writes `warnings`, after an empty line.
pub fn render_warnings(
    out: &mut impl Write,
    style: Style,
    warnings: &[impl std::fmt::Display],
) -> io::Result<()> {
    if warnings.is_empty() {
        return Ok(());
    }
    let mut rows = bare(style);
    for warning in warnings {
        rows.add_row([state(style, "warning", Color::Yellow), Cell::prose(warning)]);
    }
    writeln!(out, "\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    const PLAIN: Style = Style::PLAIN;

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        render(&mut out, PLAIN, report).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn everything_of_the_report_is_there() {
        let mut report = sample::report(1_000, 1.0);
        report.runs.push(sample::run("fixed addresses", 1_000, 2.0));
        report.warnings.push(Warning::DebugBuild);
        report.interrupted = true;
        report.ratios.push(Ratio {
            name: "data bandwidth".to_owned(),
            value: 950e6,
            baseline: 1e9,
            unit: "bytes/s".to_owned(),
            turns: Some(InTurns { pairs: 80, ratio_low: Some(0.943), ratio_high: Some(0.957) }),
        });
        let text = text(&report);
        for part in [
            "A CPU, 4 CPUs, Linux 6.12.1",
            "/dev/sda, 8 GiB, AN SSD, write back",
            "(ended early)",
            "allocator: bucket allocation",
            "fixed addresses: data write",
            "garbage collections",
            "75.1 %",
            "1.050",
            "data bandwidth",
            "0.950",
            "0.943 to 0.957 of 80 pairs",
            "warning",
            "debug build",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    }

    #[test]
    fn longer_times_have_longer_bars() {
        let fast = sample::run("a", 1_000, 1.0);
        let slow = sample::run("a", 1_000, 20.0);
        let axis = Axis::over(fast.measures.iter().chain(&slow.measures), 40);
        for (fast, slow) in fast.measures.iter().zip(&slow.measures) {
            let (fast, slow) = (axis.bar(fast), axis.bar(slow));
            assert!(fast.chars().count() < slow.chars().count(), "{fast}\n{slow}");
            assert!(slow.starts_with('█') && slow.chars().count() <= 40);
        }
    }

    #[test]
    fn an_axis_has_a_length_even_for_one_value() {
        let mut recorder = crate::record::Recorder::new(&[Measure::Empty]);
        recorder.record(Measure::Empty, 1000);
        let measured = crate::report::measured(&recorder.finish());
        let axis = Axis::over(measured.iter(), 10);
        assert!(axis.high > axis.low);
        assert_eq!(axis.bar(&measured[0]).chars().count(), 1);
    }
}
