//! Percentile distributions as text: the `.hgrm` files that HdrHistogram's plotters read.
//!
//! The layout is that of HdrHistogram's `outputPercentileDistribution` with five ticks for each
//! halving of the distance to 100 %. Values are in microseconds.

use std::io::{self, Write};

use hdrhistogram::Histogram;

use crate::num::float;

/// Lines for each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

const NS_PER_UNIT: f64 = 1000.0;

/// Writes `histogram`, whose values are ns.
pub fn write(out: &mut impl Write, histogram: &Histogram<u64>) -> io::Result<()> {
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let value = float(step.value_iterated_to()) / NS_PER_UNIT;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:12.3} {quantile:2.12} {total:10}")?;
        if quantile < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        histogram.mean() / NS_PER_UNIT,
        histogram.stdev() / NS_PER_UNIT
    )?;
    writeln!(
        out,
        "#[Max     = {:12.3}, Total count    = {:12}]",
        float(histogram.max()) / NS_PER_UNIT,
        histogram.len()
    )?;
    // Slots of one bucket, from which the plotters tell the resolution.
    let sub_buckets = 2 * 10u64.pow(histogram.sigfig().into());
    writeln!(
        out,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        histogram.buckets(),
        sub_buckets.next_power_of_two()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::latency_histogram;

    fn text(histogram: &Histogram<u64>) -> String {
        let mut out = Vec::new();
        write(&mut out, histogram).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_lines_are_those_that_plotters_read() {
        let mut histogram = latency_histogram();
        for value in 1..=1000 {
            histogram.record(value * 1000).unwrap();
        }
        let text = text(&histogram);
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        assert_eq!(lines.next(), Some(""));
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|field| field.parse().unwrap()).collect())
            .collect();
        assert!(rows.len() > 30);
        for pair in rows.windows(2) {
            assert!(
                pair[0][0] <= pair[1][0] && pair[0][1] < pair[1][1] && pair[0][2] <= pair[1][2]
            );
        }
        let (last, others) = rows.split_last().unwrap();
        assert!(others.iter().all(|row| row.len() == 4));
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 1000.0));
        let median = rows.iter().find(|row| row[1] >= 0.5).unwrap();
        assert!((median[0] - 500.0).abs() < 1.0 && (median[3] - 2.0).abs() < 1e-9, "{median:?}");
        assert!(text.ends_with("SubBuckets     =         2048]\n"), "{text}");
        assert!(text.contains("Total count    =         1000]"));
    }

    #[test]
    fn no_samples_are_a_table_without_values() {
        let text = text(&latency_histogram());
        assert!(text.contains("Total count    =            0]"), "{text}");
    }
}
