//! The miss-ratio curve as SVG: misses over the size of the cache, a line for each policy, bucket size,
//! mode and cutoff, exact LRU of blocks dashed.

use std::collections::BTreeMap;

use bcache_core::units::format_bytes;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::answer::Answer;
use super::render::cutoff_name;
use super::report::ReplayReport;
use crate::num::{float, ratio, whole};
use crate::report::plot::PlotError;

const WIDTH: u32 = 1080;
const HEIGHT: u32 = 600;
const LEGEND_LINE: u32 = 22;
const MARGIN: i32 = 20;
const TITLE: i32 = 46;
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(222, 222, 222);
/// Okabe and Ito's colours, as the pictures of latencies have them.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(148, 130, 20),
    RGBColor(106, 61, 154),
];

/// A line: size as the logarithm to 2, misses of all reads.
type Line = Vec<(f64, f64)>;

fn lines(report: &ReplayReport) -> Vec<(String, Line)> {
    let mut lines: BTreeMap<(u64, u64, &str, &str), Line> = BTreeMap::new();
    for result in report.cells.iter().filter(|it| it.hit_ratio.is_some()) {
        let cell = result.cell;
        let key =
            (cell.sequential_cutoff_bytes, cell.bucket_bytes, cell.policy.name(), cell.mode.name());
        let point = (float(cell.cache_bytes).log2(), 1.0 - result.hit());
        lines.entry(key).or_default().push(point);
    }
    lines
        .into_iter()
        .map(|((cutoff, bucket, policy, mode), line)| {
            let cutoff = cutoff_name(cutoff);
            (format!("{policy}, buckets {}, {mode}, cutoff {cutoff}", format_bytes(bucket)), line)
        })
        .collect()
}

fn ideal(report: &ReplayReport) -> Line {
    let mut line: Line = report
        .cells
        .iter()
        .filter_map(|result| {
            let it = result.lru_blocks;
            let misses = ratio(it.read_misses, it.read_references)?;
            Some((float(result.cell.cache_bytes).log2(), misses))
        })
        .collect();
    line.dedup();
    line
}

/// The picture.
///
/// # Errors
/// When nothing was run, or drawing fails.
pub fn svg(report: &ReplayReport) -> Result<String, PlotError> {
    let lines = lines(report);
    if lines.is_empty() {
        return Err(PlotError::Draw { reason: "no cell has a hit ratio".to_owned() });
    }
    let mut picture = String::new();
    draw(&mut picture, report, &lines)
        .map_err(|error| PlotError::Draw { reason: error.to_string() })?;
    Ok(picture)
}

fn draw(
    picture: &mut String,
    report: &ReplayReport,
    lines: &[(String, Line)],
) -> Result<(), Box<dyn std::error::Error>> {
    let legend = LEGEND_LINE * (u32::try_from(lines.len())? + 2);
    let root = SVGBackend::with_string(picture, (WIDTH, HEIGHT + legend)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(TITLE);
    let title = ("sans-serif", 20).into_font().style(FontStyle::Bold).color(&INK);
    head.draw(&Text::new("Reads that miss, by size of the cache", (MARGIN, 18), title))?;
    let (plot, foot) = rest.split_vertically(i32::try_from(HEIGHT)? - TITLE);
    let labels = ("sans-serif", 15).into_font().color(&INK);
    let ideal = ideal(report);
    let all = || lines.iter().flat_map(|(_, line)| line).chain(&ideal);
    let low = all().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
    let high = all().map(|(x, _)| *x).fold(low + 1.0, f64::max);
    let mut chart = ChartBuilder::on(&plot)
        .margin_right(MARGIN + 16)
        .margin_left(MARGIN)
        .x_label_area_size(52)
        .y_label_area_size(76)
        .build_cartesian_2d(low..high, 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_labels(10)
        .x_label_formatter(&|x| format_bytes(whole(x.exp2() / 1_048_576.0) << 20))
        .y_label_formatter(&|y| format!("{:.0} %", y * 100.0))
        .x_desc("size of the cache")
        .y_desc("reads that miss")
        .label_style(labels.clone())
        .axis_desc_style(labels.clone())
        .axis_style(INK)
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .draw()?;
    for ((_, line), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?;
        let dots = line.iter().map(|point| Circle::new(*point, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart.draw_series(DashedLineSeries::new(ideal, 8, 5, INK.stroke_width(2)))?;
    if let Answer::Make(advice) = &report.answer {
        let knee = (float(advice.cell.cache_bytes).log2(), 1.0 - advice.hit_ratio);
        chart.draw_series(std::iter::once(Circle::new(knee, 9, INK.stroke_width(2))))?;
    }
    draw_legend(&foot, lines, &labels)?;
    root.present()?;
    Ok(())
}

fn draw_legend(
    foot: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: &[(String, Line)],
    labels: &TextStyle<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    let first = MARGIN + 76;
    let names = lines.iter().map(|(name, _)| name.as_str());
    let more = "exact LRU of 4 KiB blocks of reads (dashed); the circle is what is advised";
    for (index, name) in names.chain([more]).enumerate() {
        let y = i32::try_from(LEGEND_LINE)? * i32::try_from(index)? + 12;
        let colour = if index < lines.len() { COLOURS[index % COLOURS.len()] } else { INK };
        let ends = [(first, y), (first + 36, y)];
        foot.draw(&PathElement::new(ends, colour.stroke_width(2)))?;
        foot.draw(&Text::new(name.to_owned(), (first + 46, y - 8), labels.clone()))?;
    }
    Ok(())
}
