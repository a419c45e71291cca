//! `bcache-bench compare`: what changed, and what is only noise.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use bcache_cli::out::{Out, Style};
use bcache_cli::table::{Cell, Color, Table, number, state, table};
use serde::Serialize;

use crate::cli::CompareArgs;
use crate::compare::{Comparison, Difference, Verdict, format_ratio};
use crate::exit::Failure;
use crate::num::{float, format_count, format_ns, whole};
use crate::report::export::{Export, ExportFormat, NotWritten};
use crate::report::{Report, formats, table::warning_lines};

/// Runs `bcache-bench compare`.
pub fn run(args: &CompareArgs) -> Result<ExitCode> {
    let exports = args.export.open::<Comparison>(&[args.a.clone(), args.b.clone()])?;
    let (a, b) = (Report::load(&args.a)?, Report::load(&args.b)?);
    let comparison = Comparison::new(&a, &b, args.threshold / 100.0);
    if !args.force && !comparison.settings.is_empty() {
        let list: Vec<String> = comparison
            .settings
            .iter()
            .map(|it| format!("{} ({} and {})", it.name, it.a, it.b))
            .collect();
        bail!(
            "{} and {} were run with different settings: {}; --force compares them nevertheless",
            args.a.display(),
            args.b.display(),
            list.join(", ")
        );
    }
    if comparison.is_empty() {
        bail!("{} and {} have no run in common", args.a.display(), args.b.display());
    }
    let mut out = Out::stdout();
    let style = out.style();
    let printed = if args.json {
        out.json(&comparison)
    } else {
        render(&mut out, style, &comparison, [&a, &b])
    };
    let printed = printed.and_then(|()| out.finish());
    // Whoever reads no further has seen enough, and wants the files all the same.
    exports.write(&comparison)?;
    printed?;
    let (worse, _) = comparison.changes();
    Ok(if worse > 0 { Failure::Worse.into() } else { ExitCode::SUCCESS })
}

fn verdict(style: Style, verdict: Verdict) -> Cell {
    match verdict {
        Verdict::NoChange => Cell::new("no change beyond the noise"),
        Verdict::Better => state(style, "better", Color::Green),
        Verdict::Worse => state(style, "worse", Color::Red),
        Verdict::TooFewSamples => state(style, "too few samples to say", Color::Yellow),
    }
}

/// The range that chance explains; a dash where nobody knows.
fn chance(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (None, _) => "-".to_owned(),
        (Some(low), None) => format!("{} or more", format_ratio(low)),
        (Some(low), Some(high)) => format!("{} to {}", format_ratio(low), format_ratio(high)),
    }
}

/// Each figure that both reports have, and what is to be thought of the difference.
fn figures(style: Style, comparison: &Comparison) -> Table {
    let mut rows = table(style, &["figure", "A", "B", "change", "by chance", "verdict"]);
    for it in &comparison.latencies {
        rows.add_row([
            Cell::new(format!("{}: {} {}", it.run, it.measure, it.percentile)),
            number(format_ns(float(it.a.value_ns))),
            number(format_ns(float(it.b.value_ns))),
            number(format_ratio(it.ratio)),
            number(chance(Some(it.ratio_low), Some(it.ratio_high))),
            verdict(style, it.verdict),
        ]);
    }
    for it in &comparison.rates {
        rows.add_row([
            Cell::new(format!("{}: {}", it.run, it.name)),
            number(format_count(whole(it.a))),
            number(format_count(whole(it.b))),
            number(format_ratio(it.ratio)),
            number(chance(it.ratio_low, it.ratio_high)),
            verdict(style, it.verdict),
        ]);
    }
    rows
}

/// A figure of both reports as a line of CSV.
#[derive(Serialize)]
struct Line<'c> {
    run: &'c str,
    figure: String,
    a: f64,
    b: f64,
    ratio: f64,
    ratio_low: Option<f64>,
    ratio_high: Option<f64>,
    verdict: Verdict,
}

impl Export for Comparison {
    const FORMATS: &'static [ExportFormat] =
        &[ExportFormat::Json, ExportFormat::Csv, ExportFormat::Markdown];

    fn write(&self, format: ExportFormat, out: &mut dyn Write) -> Result<(), NotWritten> {
        match format {
            ExportFormat::Csv => {
                let latencies = self.latencies.iter().map(|it| Line {
                    run: &it.run,
                    figure: format!("{} {} ns", it.measure, it.percentile),
                    a: float(it.a.value_ns),
                    b: float(it.b.value_ns),
                    ratio: it.ratio,
                    ratio_low: Some(it.ratio_low),
                    ratio_high: Some(it.ratio_high),
                    verdict: it.verdict,
                });
                let rates = self.rates.iter().map(|it| Line {
                    run: &it.run,
                    figure: it.name.to_owned(),
                    a: it.a,
                    b: it.b,
                    ratio: it.ratio,
                    ratio_low: it.ratio_low,
                    ratio_high: it.ratio_high,
                    verdict: it.verdict,
                });
                formats::csv(latencies.chain(rates), out)
            }
            ExportFormat::Markdown => {
                Ok(out.write_all(figures(Style::PLAIN, self).markdown().as_bytes())?)
            }
            _ => formats::json(self, out),
        }
    }
}

fn render(
    out: &mut impl Write,
    style: Style,
    comparison: &Comparison,
    reports: [&Report; 2],
) -> Result<()> {
    let said = match comparison.changes() {
        (0, 0) => "No change beyond the noise".to_owned(),
        (worse, better) => format!("Worse: {worse}, better: {better}"),
    };
    writeln!(out, "{said}.\n")?;
    for (what, differences) in
        [("settings", &comparison.settings), ("circumstances", &comparison.environment)]
    {
        if !differences.is_empty() {
            let mut rows = table(style, &[&format!("different {what}"), "A", "B"]);
            for Difference { name, a, b } in differences {
                rows.add_row([name, a, b]);
            }
            writeln!(out, "{rows}\n")?;
        }
    }
    let rows = figures(style, comparison);
    writeln!(out, "{rows}")?;
    for it in &comparison.unmatched {
        let only_in = it.only_in.to_ascii_uppercase();
        writeln!(out, "only in {only_in}: {}, {}", it.run, it.measure)?;
    }
    for (name, report) in ["A", "B"].into_iter().zip(reports) {
        for warning in warning_lines(&report.warnings) {
            writeln!(out, "warning of {name}: {warning}")?;
        }
    }
    let percent = comparison.threshold * 100.0;
    writeln!(
        out,
        "\nChanged is what moved by more than {percent} % and by more than chance explains, which is\n\
         the range shown (99 % for each report). Two runs of the same thing may differ by more: repeat\n\
         a run before a change is believed."
    )?;
    Ok(())
}
