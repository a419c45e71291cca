//! Latency by percentile as an SVG: several curves on one pair of logarithmic axes.
//!
//! The horizontal axis is the distance to 100 % on a logarithmic scale (0, 90, 99, 99.9, ...), which
//! gives the tail the room that it deserves; a curve ends where its samples do.

use std::collections::BTreeSet;

use hdrhistogram::Histogram;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Measured, Report};
use crate::num::{float, format_ns, whole};
use crate::record::Measure;

/// Size of the picture in pixels, without the legend.
const WIDTH: u32 = 1080;
const HEIGHT: u32 = 600;
/// Height of a line of the legend in pixels.
const LEGEND_LINE: u32 = 22;
/// Margin around everything in pixels.
const MARGIN: i32 = 20;
/// Height of the title in pixels.
const TITLE: i32 = 46;

/// Nines of the horizontal axis: 99.9 % at least, 99.999 % at most.
const NINES: std::ops::RangeInclusive<i32> = 3..=5;

/// Points for each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 16;

/// Colours that stay apart for eyes that confuse red and green (Okabe and Ito's set, the yellow
/// darkened, which is too bright for a thin line), and four more for pictures of more measures than
/// that.
const COLOURS: [RGBColor; 12] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
    RGBColor(148, 130, 20),
    RGBColor(106, 61, 154),
    RGBColor(128, 128, 128),
    RGBColor(128, 70, 20),
    RGBColor(150, 20, 50),
];

/// How lines of the same colour are told apart: length of a dash and of a gap in pixels.
/// Two reports have up to eight runs.
const DASHES: [Option<(i32, i32)>; 8] = [
    None,
    Some((8, 5)),
    Some((2, 4)),
    Some((14, 4)),
    Some((4, 9)),
    Some((22, 8)),
    Some((2, 9)),
    Some((14, 14)),
];

const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(222, 222, 222);
const FAINTER: RGBColor = RGBColor(240, 240, 240);

/// A curve of the picture.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    /// What the legend calls it.
    pub label: String,
    /// What is drawn: latencies in ns, not empty.
    pub histogram: &'a Histogram<u64>,
    /// Curves with the same colour belong together.
    pub colour: usize,
    /// Tells those apart.
    pub dash: usize,
}

/// What cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// No curve has samples.
    #[error("there is nothing to plot: no samples of what was asked for")]
    NoCurves,
    /// The picture could not be made.
    #[error("cannot draw: {reason}")]
    Draw {
        /// Why.
        reason: String,
    },
}

/// The curves of several reports: those of `measures`, or all.
///
/// With one measure, each report and run has its colour; with several, each measure has its colour,
/// and dashes tell reports and runs apart. `names` are what the legend calls the reports.
pub fn curves<'a>(reports: &'a [Report], names: &[String], measures: &[Measure]) -> Vec<Curve<'a>> {
    let chosen = |it: &&Measured| measures.is_empty() || measures.contains(&it.measure);
    let found: Vec<(usize, &str, &Measured)> = reports
        .iter()
        .enumerate()
        .flat_map(|(report, it)| it.runs.iter().map(move |run| (report, run)))
        .flat_map(|(report, run)| {
            run.measures.iter().filter(chosen).map(move |it| (report, run.name.as_str(), it))
        })
        .filter(|(_, _, measured)| !measured.histogram.is_empty())
        .collect();
    let kinds: Vec<Measure> =
        found.iter().map(|it| it.2.measure).collect::<BTreeSet<_>>().into_iter().collect();
    let sources: Vec<(usize, &str)> = {
        let mut sources = Vec::new();
        for (report, run, _) in &found {
            if !sources.contains(&(*report, *run)) {
                sources.push((*report, *run));
            }
        }
        sources
    };
    let runs: BTreeSet<&str> = sources.iter().map(|(_, run)| *run).collect();
    found
        .into_iter()
        .map(|(report, run, measured)| {
            let kind = kinds.iter().position(|it| *it == measured.measure).unwrap_or(0);
            let source = sources.iter().position(|it| *it == (report, run)).unwrap_or(0);
            let mut label = Vec::new();
            if reports.len() > 1 {
                label.extend(names.get(report).cloned());
            }
            if runs.len() > 1 {
                label.push(run.to_owned());
            }
            if kinds.len() > 1 || label.is_empty() {
                label.push(measured.measure.to_string());
            }
            // Where there are more sources than colours, a dash tells those of the same colour apart.
            let (colour, dash) = if kinds.len() > 1 {
                (kind, source)
            } else {
                (source % COLOURS.len(), source / COLOURS.len())
            };
            Curve { label: label.join(", "), histogram: &measured.histogram, colour, dash }
        })
        .collect()
}

/// What the picture is of, where that is one measure.
pub fn title(command: &str, measures: &[Measure]) -> String {
    match measures {
        [measure] => format!("{measure}: latency by percentile"),
        _ => format!("bcache-bench {command}: latency by percentile"),
    }
}

/// Where a quantile lies on the horizontal axis: nines before it.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// The curve's points: nines, and the logarithm of the latency in ns. The longest latency stands
/// where a percentile with one sample beyond it would.
fn points(histogram: &Histogram<u64>, nines_max: f64) -> Vec<(f64, f64)> {
    let last = float(histogram.len().max(1)).log10();
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut push = |x: f64, ns: u64| {
        let y = float(ns.max(1)).log10();
        if points.last().is_none_or(|(before, _)| *before < x) {
            points.push((x, y));
        }
    };
    push(0.0, histogram.min());
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        // From the quantile of the value, not the one iterated to: a step of the curve is where the
        // samples have one.
        let x = if step.quantile() < 1.0 { nines(step.quantile()) } else { last };
        if x >= last {
            break;
        }
        push(x.min(nines_max), step.value_iterated_to());
    }
    if last <= nines_max {
        push(last, histogram.max());
    } else {
        push(nines_max, histogram.value_at_quantile(1.0 - 10f64.powf(-nines_max)));
    }
    points
}

/// The powers of ten (as logarithms) that enclose all points.
fn vertical_range(curves: &[Vec<(f64, f64)>]) -> (i32, i32) {
    let all = || curves.iter().flatten().map(|(_, y)| *y);
    let decade = |y: f64| (-1..=15).rev().find(|it| f64::from(*it) <= y).unwrap_or(0);
    let low = decade(all().fold(f64::INFINITY, f64::min)).max(0);
    let highest = all().fold(0.0, f64::max);
    let high = decade(highest) + i32::from(f64::from(decade(highest)) < highest);
    (low, high.max(low + 1))
}

fn percentile_label(nines: f64) -> String {
    // The key points are whole numbers of nines.
    match nines {
        n if n < 0.5 => "0 %".to_owned(),
        n if n < 1.5 => "90 %".to_owned(),
        n if n < 2.5 => "99 %".to_owned(),
        n if n < 3.5 => "99.9 %".to_owned(),
        n if n < 4.5 => "99.99 %".to_owned(),
        _ => "99.999 %".to_owned(),
    }
}

/// The picture as SVG.
pub fn svg(title: &str, curves: &[Curve<'_>]) -> Result<String, PlotError> {
    if curves.is_empty() {
        return Err(PlotError::NoCurves);
    }
    let mut picture = String::new();
    draw(&mut picture, title, curves)
        .map_err(|error| PlotError::Draw { reason: error.to_string() })?;
    Ok(picture)
}

fn draw(
    picture: &mut String,
    title: &str,
    curves: &[Curve<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let most = curves.iter().map(|curve| curve.histogram.len()).max().unwrap_or(1).max(1);
    let nines_max = (*NINES.start()..*NINES.end())
        .find(|nines| 10f64.powi(*nines) >= float(most))
        .unwrap_or(*NINES.end());
    let lines: Vec<Vec<(f64, f64)>> =
        curves.iter().map(|curve| points(curve.histogram, nines_max.into())).collect();
    let (low, high) = vertical_range(&lines);

    let legend = LEGEND_LINE * (u32::try_from(curves.len()).unwrap_or(1) + 2);
    let root = SVGBackend::with_string(picture, (WIDTH, HEIGHT + legend)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(TITLE);
    let title_style = ("sans-serif", 20).into_font().style(FontStyle::Bold).color(&INK);
    head.draw(&Text::new(title.to_owned(), (MARGIN, 18), title_style))?;
    let (plot, foot) = rest.split_vertically(i32::try_from(HEIGHT)? - TITLE);

    let mut chart = ChartBuilder::on(&plot)
        .margin_right(MARGIN + 16)
        .margin_left(MARGIN)
        .x_label_area_size(52)
        .y_label_area_size(76)
        .build_cartesian_2d(
            Axis::new(0, nines_max, minor_nines(nines_max)),
            Axis::new(low, high, minor_decades(low, high)),
        )?;
    let labels = ("sans-serif", 15).into_font().color(&INK);
    chart
        .configure_mesh()
        .x_labels(usize::try_from(nines_max)? + 1)
        .y_labels(usize::try_from(high - low)? + 1)
        .x_label_formatter(&|nines| percentile_label(*nines))
        .y_label_formatter(&|decade| {
            format_ns(10f64.powf(*decade)).replace(".00", "").replace(".0", "")
        })
        .x_desc("percentile")
        .y_desc("latency")
        .label_style(labels.clone())
        .axis_desc_style(labels.clone())
        .axis_style(INK)
        .bold_line_style(FAINT)
        .light_line_style(FAINTER)
        .draw()?;
    for (curve, line) in curves.iter().zip(&lines) {
        let style = style_of(curve);
        match dash_of(curve) {
            None => {
                chart.draw_series(LineSeries::new(line.iter().copied(), style))?;
            }
            Some((dash, gap)) => {
                let line = line.iter().copied();
                chart.draw_series(DashedLineSeries::new(line, dash, gap, style))?;
            }
        }
        // A dot where the samples end, so that a curve that ends early is seen to.
        if let Some(end) = line.last() {
            let dot = Circle::new(*end, 3, style.filled());
            chart.draw_series(std::iter::once(dot))?;
        }
    }
    draw_legend(&foot, curves, &labels)?;
    root.present()?;
    Ok(())
}

/// Below the plot, where it hides no curve: a sample of each line, its label, its main figures.
fn draw_legend(
    foot: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    curves: &[Curve<'_>],
    labels: &TextStyle<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    let right = labels.pos(Pos::new(HPos::Right, VPos::Center));
    let left = labels.pos(Pos::new(HPos::Left, VPos::Center));
    let first = MARGIN + 76;
    let columns = [("count", 640), ("p50", 740), ("p99", 840), ("p99.99", 940), ("max", 1040)];
    for (name, x) in columns {
        foot.draw(&Text::new(name, (x, 14), right.color(&INK.mix(0.6))))?;
    }
    for (index, curve) in curves.iter().enumerate() {
        let y = i32::try_from(LEGEND_LINE)? * (i32::try_from(index)? + 1) + 14;
        let ends = [(first, y), (first + 36, y)];
        match dash_of(curve) {
            None => foot.draw(&PathElement::new(ends, style_of(curve)))?,
            Some((dash, gap)) => {
                foot.draw(&DashedPathElement::new(ends, dash, gap, style_of(curve)))?;
            }
        }
        foot.draw(&Text::new(curve.label.clone(), (first + 46, y), left.clone()))?;
        let histogram = curve.histogram;
        let at = |quantile| format_ns(float(histogram.value_at_quantile(quantile)));
        let figures = [
            crate::num::format_count(histogram.len()),
            at(0.5),
            at(0.99),
            at(0.9999),
            format_ns(float(histogram.max())),
        ];
        for ((_, x), figure) in columns.into_iter().zip(figures) {
            foot.draw(&Text::new(figure, (x, y), right.clone()))?;
        }
    }
    Ok(())
}

fn style_of(curve: &Curve<'_>) -> ShapeStyle {
    let colour = COLOURS.get(curve.colour % COLOURS.len()).copied().unwrap_or(BLACK);
    colour.stroke_width(2)
}

fn dash_of(curve: &Curve<'_>) -> Option<(i32, i32)> {
    DASHES.get(curve.dash % DASHES.len()).copied().flatten()
}

/// An axis with lines and labels where we want them.
struct Axis {
    range: std::ops::Range<f64>,
    /// Where labels stand.
    bold: Vec<f64>,
    /// Where lines without labels stand.
    light: Vec<f64>,
}

impl Axis {
    /// Labels at the whole numbers of the range.
    fn new(low: i32, high: i32, light: Vec<f64>) -> Self {
        Self {
            range: f64::from(low)..f64::from(high),
            bold: (low..=high).map(f64::from).collect(),
            light,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        let pixels = (f64::from(to - from) * share).round();
        // Whole and within the picture, which is far smaller than an i32.
        let steps = i32::try_from(whole(pixels.abs())).unwrap_or(i32::MAX);
        if pixels < 0.0 { from.saturating_sub(steps) } else { from.saturating_add(steps) }
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { self.light.clone() } else { self.bold.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

/// Light lines between whole numbers of nines: 20, 30, ... 80 % of the way.
fn minor_nines(to: i32) -> Vec<f64> {
    (0..to)
        .flat_map(|n| (2..10).map(move |tenth| f64::from(n) + nines(f64::from(tenth) / 10.0)))
        .filter(|x| *x < f64::from(to))
        .collect()
}

/// Light lines between powers of ten.
fn minor_decades(low: i32, high: i32) -> Vec<f64> {
    (low..high)
        .flat_map(|decade| (2..10).map(move |n| f64::from(decade) + f64::from(n).log10()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::latency_histogram;
    use crate::report::sample;

    #[test]
    fn points_follow_the_samples_to_their_end() {
        let mut histogram = latency_histogram();
        for value in 1..=1000 {
            histogram.record(value * 1000).unwrap();
        }
        let points = points(&histogram, 5.0);
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        let (end, longest) = *points.last().unwrap();
        assert!((end - 3.0).abs() < 1e-9 && (longest - 6.0).abs() < 1e-3, "{end} {longest}");
        let median = points.iter().find(|(x, _)| *x >= nines(0.5)).unwrap();
        assert!((median.1 - 500_000f64.log10()).abs() < 0.02, "{median:?}");
    }

    #[test]
    fn a_curve_of_more_samples_than_the_axis_has_room_for_ends_at_it() {
        let mut histogram = latency_histogram();
        histogram.record_n(1000, 10_000_000).unwrap();
        histogram.record_n(5_000, 1_000).unwrap();
        histogram.record(1_000_000_000).unwrap();
        let points = points(&histogram, 5.0);
        let (end, y) = *points.last().unwrap();
        assert!((end - 5.0).abs() < 1e-9 && (y - 5_000f64.log10()).abs() < 0.01, "{end} {y}");
    }

    #[test]
    fn one_sample_is_a_curve() {
        let mut histogram = latency_histogram();
        histogram.record(1234).unwrap();
        let curve = Curve { label: "one".to_owned(), histogram: &histogram, colour: 0, dash: 1 };
        assert!(svg("title", &[curve]).unwrap().contains("<svg"));
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        let reports = [sample::report(10, 1.0)];
        let curves = curves(&reports, &["a".to_owned()], &[Measure::Discard]);
        assert!(matches!(svg("title", &curves), Err(PlotError::NoCurves)));
    }

    #[test]
    fn curves_are_told_apart() {
        let reports = [sample::report(100, 1.0), sample::report(100, 2.0)];
        let names = ["a.json".to_owned(), "b.json".to_owned()];
        let all = curves(&reports, &names, &[]);
        let labels: Vec<_> = all.iter().map(|it| (it.label.as_str(), it.colour, it.dash)).collect();
        assert_eq!(
            labels,
            [
                ("a.json, bucket allocation", 0, 0),
                ("a.json, data write", 1, 0),
                ("b.json, bucket allocation", 0, 1),
                ("b.json, data write", 1, 1)
            ]
        );
        let one = curves(&reports, &names, &[Measure::DataWrite]);
        let labels: Vec<_> = one.iter().map(|it| (it.label.as_str(), it.colour, it.dash)).collect();
        assert_eq!(labels, [("a.json", 0, 0), ("b.json", 1, 0)]);
        let alone = curves(&reports[..1], &names[..1], &[Measure::DataWrite]);
        assert_eq!(alone[0].label, "data write");
    }

    #[test]
    fn no_two_curves_look_the_same() {
        let distinct = |curves: &[Curve<'_>]| {
            let styles: BTreeSet<_> = curves
                .iter()
                .map(|curve| {
                    let RGBAColor(r, g, b, _) = style_of(curve).color;
                    (r, g, b, dash_of(curve))
                })
                .collect();
            styles.len() == curves.len()
        };
        let mut recorder = crate::record::Recorder::new(&Measure::ALL);
        for measure in Measure::ALL {
            recorder.record(measure, 1000);
        }
        let measures = crate::report::measured(&recorder.finish());
        let mut report = sample::report(10, 1.0);
        report.runs = ["allocator", "fixed addresses", "prio writes alone", "sequential write"]
            .map(|name| {
                let mut run = sample::run(name, 10, 1.0);
                // All that a device run measures.
                run.measures = measures[..10].to_vec();
                run
            })
            .to_vec();
        let reports = vec![report; 2];
        assert!(distinct(&curves(&reports, &[], &[])));
        let reports = vec![reports[0].clone(); 5];
        assert!(distinct(&curves(&reports, &[], &[Measure::DataWrite])));
    }

    #[test]
    fn the_picture_has_what_it_must() {
        let mut reports = [sample::report(10_000, 1.0), sample::report(10_000, 3.0)];
        for report in &mut reports {
            report.runs.push(sample::run("reference <engine>", 5_000, 9.0));
        }
        let names = ["a.json".to_owned(), "b.json".to_owned()];
        let picture = svg("A title", &curves(&reports, &names, &[])).unwrap();
        for text in ["A title", "99.9 %", "99.99 %", "b.json, allocator, data write", "percentile"]
        {
            assert!(picture.contains(text), "{text}");
        }
        assert!(!picture.contains("99.999 %"), "more of the axis than there are samples");
        assert!(picture.contains("reference &lt;engine&gt;"), "text is escaped");
        if let Some(path) = std::env::var_os("PLOT_SAMPLE") {
            std::fs::write(path, picture).unwrap();
        }
    }
}
