//! What changed between two reports, and what is only noise.
//!
//! A percentile of a run is an estimate. Its confidence interval follows from the order statistics:
//! of `n` samples, the one at rank `n p` may as well have been any within
//! `n p ± z sqrt(n p (1 - p))`, and the values at those ranks, widened to the histogram's resolution,
//! bound the percentile. A change is called one when the intervals of both runs are apart *and* the
//! percentile moved by more than a threshold: samples of one run have the state of the machine in
//! common, so that two runs of the same thing differ by more than sampling alone explains. For the same
//! reason the interval is wider by as much as the run's rate may be off: whatever shook that, another
//! program or a device that was slow for a while, shook the latencies.
//!
//! A rate has its interval from how it went up and down during the run: the mean of five parts of the
//! run, one after the other, and their spread (Student's t). Parts are long, so that a device which is
//! slow for a while makes the interval wide, as a mean over many short slices would not.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::num::{float, whole};
use crate::record::Measure;
use crate::record::slices::SLICES_NEEDED;
use crate::report::{Figures, Measured, Percentile, Report, Run};

/// Quantile of the normal distribution for intervals that hold with 99 %.
const Z: f64 = 2.576;

/// Parts of a run from whose rates the interval of its rate follows.
const PARTS: usize = 5;
/// Quantile of Student's t for so many parts and intervals that hold with 99 %.
const T: f64 = 4.604;

/// By how much a figure has to move by default to be called changed.
pub const THRESHOLD: f64 = 0.05;

/// Two reports beside each other.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Share by which a figure has to move to be called changed.
    pub threshold: f64,
    /// Settings that differ.
    pub settings: Vec<Difference>,
    /// What else differs and may explain a change: machine, kernel, device, build.
    pub environment: Vec<Difference>,
    /// Runs and measures that only one report has.
    pub unmatched: Vec<Unmatched>,
    /// Latencies that both have.
    pub latencies: Vec<Latency>,
    /// Rates that both have.
    pub rates: Vec<Rate>,
}

/// Something in which two reports differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What.
    pub name: String,
    /// In the first report.
    pub a: String,
    /// In the second.
    pub b: String,
}

/// A measure that only one report has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmatched {
    /// The run.
    pub run: String,
    /// The measure.
    pub measure: Measure,
    /// Which report has it: `a` or `b`.
    pub only_in: char,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing that noise would not explain.
    NoChange,
    /// Better.
    Better,
    /// Worse.
    Worse,
    /// Too few samples in one report or the other to say.
    TooFewSamples,
}

/// An estimate and its confidence interval (99 %), in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// The percentile.
    pub value_ns: u64,
    /// Lower bound.
    pub low_ns: u64,
    /// Upper bound.
    pub high_ns: u64,
}

/// A percentile in both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The run.
    pub run: String,
    /// The measure.
    pub measure: Measure,
    /// The percentile.
    pub percentile: Percentile,
    /// In the first report.
    pub a: Estimate,
    /// In the second.
    pub b: Estimate,
    /// `b / a`.
    pub ratio: f64,
    /// The least that the ratio may be, from the ends of both intervals.
    pub ratio_low: f64,
    /// The most that it may be.
    pub ratio_high: f64,
    /// What became of it.
    pub verdict: Verdict,
}

/// A rate in both reports; more is better.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// The run.
    pub run: String,
    /// Which rate.
    pub name: &'static str,
    /// In the first report.
    pub a: f64,
    /// In the second.
    pub b: f64,
    /// `b / a`.
    pub ratio: f64,
    /// The least that the ratio may be, from the ends of both intervals; `None` where a run is too short
    /// to tell, or was written by a program that did not say how steady it was.
    pub ratio_low: Option<f64>,
    /// The most that it may be; `None` also where that is without bounds.
    pub ratio_high: Option<f64>,
    /// What became of it.
    pub verdict: Verdict,
}

impl Comparison {
    /// Compares `b` with `a`.
    pub fn new(a: &Report, b: &Report, threshold: f64) -> Self {
        let mut comparison = Self {
            threshold,
            settings: settings(a, b),
            environment: environment(a, b),
            unmatched: Vec::new(),
            latencies: Vec::new(),
            rates: Vec::new(),
        };
        for run_a in &a.runs {
            let run_b = b.run(&run_a.name);
            let slack = |run| rate_slack(run).unwrap_or_default();
            let (slack_a, slack_b) = (slack(run_a), run_b.map_or(0.0, slack));
            for measured in &run_a.measures {
                match run_b.and_then(|run| run.measured(measured.measure)) {
                    Some(other) => {
                        comparison.latencies.extend(latencies(
                            &run_a.name,
                            (measured, slack_a),
                            (other, slack_b),
                            threshold,
                        ));
                    }
                    None => comparison.unmatched(run_a, measured, 'a'),
                }
            }
            if let Some(run_b) = run_b {
                comparison.rates.extend(rates(run_a, run_b, threshold));
            }
        }
        for run_b in &b.runs {
            let run_a = a.run(&run_b.name);
            for measured in &run_b.measures {
                if run_a.and_then(|run| run.measured(measured.measure)).is_none() {
                    comparison.unmatched(run_b, measured, 'b');
                }
            }
        }
        comparison
    }

    fn unmatched(&mut self, run: &Run, measured: &Measured, only_in: char) {
        let (run, measure) = (run.name.clone(), measured.measure);
        self.unmatched.push(Unmatched { run, measure, only_in });
    }

    /// Whether both reports have anything in common.
    pub fn is_empty(&self) -> bool {
        self.latencies.is_empty() && self.rates.is_empty()
    }

    /// How many figures have become worse, and how many better.
    pub fn changes(&self) -> (usize, usize) {
        let verdicts = || {
            let latencies = self.latencies.iter().map(|it| it.verdict);
            latencies.chain(self.rates.iter().map(|it| it.verdict))
        };
        let count = |wanted| verdicts().filter(|verdict| *verdict == wanted).count();
        (count(Verdict::Worse), count(Verdict::Better))
    }
}

fn difference(name: &str, a: &impl ToString, b: &impl ToString) -> Option<Difference> {
    let (a, b) = (a.to_string(), b.to_string());
    (a != b).then(|| Difference { name: name.to_owned(), a, b })
}

fn settings(a: &Report, b: &Report) -> Vec<Difference> {
    let command = difference("command", &a.command, &b.command);
    let named = a
        .settings
        .differences(&b.settings)
        .into_iter()
        .filter_map(|name| difference(name, &a.settings.text(name), &b.settings.text(name)));
    command.into_iter().chain(named).collect()
}

fn environment(a: &Report, b: &Report) -> Vec<Difference> {
    let (on_a, on_b) = (&a.environment, &b.environment);
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
    let devices = |report: &Report| {
        let of = |device: &crate::environment::DeviceEnvironment| {
            let model = device.model.clone().unwrap_or_else(|| match &device.backing {
                crate::environment::Backing::Loop { direct: Some(true), .. } => {
                    "direct loop".into()
                }
                crate::environment::Backing::Loop { .. } => "buffered loop".into(),
                crate::environment::Backing::Image { .. } => "image".into(),
                crate::environment::Backing::Memory => "memory".into(),
                crate::environment::Backing::Device => "unknown".into(),
            });
            format!("{model} of {}", bcache_core::units::format_bytes(device.size_bytes))
        };
        report.environment.devices.iter().map(of).collect::<Vec<_>>().join(", ")
    };
    let build = |debug| if debug { "debug" } else { "release" };
    [
        difference("version", &a.version, &b.version),
        difference("build", &build(on_a.debug_build), &build(on_b.debug_build)),
        difference("CPU", &text(&on_a.cpu_model), &text(&on_b.cpu_model)),
        difference("CPUs", &on_a.cpus, &on_b.cpus),
        difference("kernel", &text(&on_a.kernel), &text(&on_b.kernel)),
        difference("clocksource", &text(&on_a.clocksource), &text(&on_b.clocksource)),
        difference("device", &devices(a), &devices(b)),
        difference("ended early", &a.interrupted, &b.interrupted),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A quantile and its confidence interval.
pub fn estimate(histogram: &Histogram<u64>, quantile: f64) -> Estimate {
    let count = float(histogram.len());
    let rank = count * quantile;
    let slack = Z * (count * quantile * (1.0 - quantile)).sqrt();
    let at_rank = |rank: f64| histogram.value_at_quantile((rank / count.max(1.0)).clamp(0.0, 1.0));
    Estimate {
        value_ns: histogram.value_at_quantile(quantile),
        low_ns: histogram.lowest_equivalent(at_rank((rank - slack).floor())),
        high_ns: histogram.highest_equivalent(at_rank((rank + slack).ceil())),
    }
}

impl Estimate {
    /// The same of a run whose rate may be off by this share of itself: twice as fast, half as long.
    fn widened(self, rate_slack: f64) -> Self {
        // Tenfold says enough.
        let slack = rate_slack.clamp(0.0, 0.9);
        Self {
            low_ns: whole(float(self.low_ns) / (1.0 + slack)),
            high_ns: whole(float(self.high_ns) / (1.0 - slack)),
            ..self
        }
    }
}

/// Of runs, each with the share by which its rate may be off.
fn latencies(
    run: &str,
    (a, slack_a): (&Measured, f64),
    (b, slack_b): (&Measured, f64),
    threshold: f64,
) -> impl Iterator<Item = Latency> + use<> {
    let (run, measure) = (run.to_owned(), a.measure);
    let samples = a.histogram.len().min(b.histogram.len());
    let found = Percentile::ALL.map(|percentile| {
        let of = |measured: &Measured, slack| {
            estimate(&measured.histogram, percentile.quantile()).widened(slack)
        };
        let (a, b) = (of(a, slack_a), of(b, slack_b));
        let ratio_of = |b_ns: u64, a_ns: u64| float(b_ns.max(1)) / float(a_ns.max(1));
        let ratio = ratio_of(b.value_ns, a.value_ns);
        let (ratio_low, ratio_high) =
            (ratio_of(b.low_ns, a.high_ns), ratio_of(b.high_ns, a.low_ns));
        let apart = a.high_ns < b.low_ns || b.high_ns < a.low_ns;
        let verdict = if samples < percentile.samples_needed() {
            Verdict::TooFewSamples
        } else if apart {
            judge(ratio, threshold)
        } else {
            Verdict::NoChange
        };
        let run = run.clone();
        Latency { run, measure, percentile, a, b, ratio, ratio_low, ratio_high, verdict }
    });
    found.into_iter()
}

/// For times, of which more is worse. Down counts as up does: to 1/1.05 as to 1.05.
fn judge(ratio: f64, threshold: f64) -> Verdict {
    if ratio > 1.0 + threshold {
        Verdict::Worse
    } else if ratio < 1.0 / (1.0 + threshold) {
        Verdict::Better
    } else {
        Verdict::NoChange
    }
}

/// By which share of itself a run's rate may be off, with 99 %; `None` where there is too little to tell.
pub fn rate_slack(run: &Run) -> Option<f64> {
    let count = run.slices.len();
    if count < SLICES_NEEDED {
        return None;
    }
    let mean = |rates: &[f64]| rates.iter().sum::<f64>() / float(rates.len().max(1) as u64);
    let parts: Vec<f64> = (0..PARTS)
        .filter_map(|part| run.slices.get(count * part / PARTS..count * (part + 1) / PARTS))
        .map(mean)
        .collect();
    let all = mean(&parts);
    let squares: f64 = parts.iter().map(|part| (part - all).powi(2)).sum();
    let parts = float(PARTS as u64);
    let slack = T * (squares / (parts - 1.0) / parts).sqrt();
    (all > 0.0).then_some(slack / all)
}

fn rates(a: &Run, b: &Run, threshold: f64) -> Vec<Rate> {
    let (of_a, of_b) = (a.figures(), b.figures());
    let slack = rate_slack(a).zip(rate_slack(b));
    let rate = |name, get: fn(&Figures) -> Option<f64>| {
        let (a_value, b_value) = (get(&of_a)?, get(&of_b)?);
        let ratio = b_value / a_value;
        let ratio_low = slack.map(|(a, b)| ratio * (1.0 - b).max(0.0) / (1.0 + a));
        let ratio_high = slack
            .map(|(a, b)| ratio * (1.0 + b) / (1.0 - a).max(0.0))
            .filter(|ratio| ratio.is_finite());
        let verdict = match ratio_low {
            None => Verdict::TooFewSamples,
            Some(low) if low > 1.0 || ratio_high.is_some_and(|high| high < 1.0) => {
                judge(1.0 / ratio, threshold)
            }
            Some(_) => Verdict::NoChange,
        };
        let (run, a, b) = (a.name.clone(), a_value, b_value);
        Some(Rate { run, name, a, b, ratio, ratio_low, ratio_high, verdict })
    };
    [
        rate("operations/s", |it| it.operations_per_second),
        rate("written bytes/s", |it| it.written_bytes_per_second),
        rate("read bytes/s", |it| it.read_bytes_per_second),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A ratio as people read changes: `+12.3 %`, `x 4.56`.
pub fn format_ratio(ratio: f64) -> String {
    if (0.5..2.0).contains(&ratio) {
        format!("{:+.1} %", (ratio - 1.0) * 100.0)
    } else if whole(ratio) < 10 {
        format!("x {ratio:.2}")
    } else {
        format!("x {ratio:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::latency_histogram;
    use crate::report::sample;
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64;
    use serde_json::json;

    fn uniform(samples: u64, low: u64, high: u64, seed: u64) -> Measured {
        let mut random = Pcg64::seed_from_u64(seed);
        let mut histogram = latency_histogram();
        for _ in 0..samples {
            histogram.record(random.random_range(low..high)).unwrap();
        }
        Measured { measure: Measure::DataWrite, histogram }
    }

    #[test]
    fn intervals_hold_the_true_percentile() {
        // 99 % of the intervals should; of 500 runs, 11 misses are already past six in a thousand.
        for percentile in [Percentile::P50, Percentile::P90, Percentile::P99] {
            let truth = 10_000.0 + percentile.quantile() * 90_000.0;
            let misses = (0..500)
                .filter(|seed| {
                    let measured = uniform(2_000, 10_000, 100_000, *seed);
                    let found = estimate(&measured.histogram, percentile.quantile());
                    assert!(found.low_ns <= found.value_ns && found.value_ns <= found.high_ns);
                    !(float(found.low_ns)..=float(found.high_ns)).contains(&truth)
                })
                .count();
            assert!(misses <= 15, "{percentile}: {misses}");
        }
    }

    #[test]
    fn intervals_are_no_wider_than_they_must_be() {
        let measured = uniform(100_000, 10_000, 100_000, 1);
        let found = estimate(&measured.histogram, 0.5);
        // z sqrt(n p q) / n of the range, twice: 733 ns, and the histogram's resolution.
        assert!(found.high_ns - found.low_ns < 1_000, "{found:?}");
    }

    #[test]
    fn the_same_again_is_no_change() {
        let mut changes = 0;
        for seed in 0..50 {
            let (a, b) =
                (uniform(100_000, 1000, 9000, seed), uniform(100_000, 1000, 9000, seed + 99));
            let found = latencies("run", (&a, 0.0), (&b, 0.0), 0.0);
            changes += found.filter(|it| it.verdict != Verdict::NoChange).count();
        }
        assert!(changes <= 3, "{changes} of 250");
    }

    #[test]
    fn what_is_slower_is_worse() {
        let a = uniform(100_000, 1000, 9000, 1);
        let b = uniform(100_000, 1200, 10_800, 2);
        for it in latencies("run", (&a, 0.0), (&b, 0.0), 0.05) {
            assert!(it.ratio_low > 1.1 && it.ratio_low < it.ratio, "{it:?}");
            assert!(it.ratio < it.ratio_high && it.ratio_high < 1.3, "{it:?}");
        }
        let verdicts = |a, b, threshold| -> Vec<_> {
            latencies("run", (a, 0.0), (b, 0.0), threshold).map(|it| it.verdict).collect()
        };
        assert_eq!(verdicts(&a, &b, 0.05), [Verdict::Worse; 5]);
        assert_eq!(verdicts(&b, &a, 0.05), [Verdict::Better; 5]);
        assert_eq!(verdicts(&a, &b, 0.25), [Verdict::NoChange; 5]);
    }

    #[test]
    fn what_shook_the_rate_shook_the_latencies() {
        let a = uniform(100_000, 1000, 9000, 1);
        let b = uniform(100_000, 1200, 10_800, 2);
        for (slack, expected) in [(0.05, Verdict::Worse), (0.12, Verdict::NoChange)] {
            for it in latencies("run", (&a, slack), (&b, slack), 0.05) {
                assert_eq!(it.verdict, expected, "{it:?}");
                assert!(it.a.low_ns < it.a.value_ns && it.a.value_ns < it.a.high_ns);
            }
        }
        let mut shaken = sample::report(100_000, 1.0);
        let mut slower = sample::report(100_000, 1.5);
        assert!(Comparison::new(&shaken, &slower, THRESHOLD).changes().0 > 0);
        for report in [&mut shaken, &mut slower] {
            let slices = &mut report.runs[0].slices;
            let half = slices.len() / 2;
            slices[..half].fill(500.0);
        }
        assert_eq!(Comparison::new(&shaken, &slower, THRESHOLD).changes(), (0, 0));
    }

    #[test]
    fn too_few_samples_are_no_verdict() {
        let (a, b) = (uniform(1000, 1000, 9000, 1), uniform(1_000_000, 5000, 45_000, 1));
        let found = latencies("run", (&a, 0.0), (&b, 0.0), 0.05);
        let verdicts: Vec<_> = found.map(|it| it.verdict).collect();
        let (worse, few) = (Verdict::Worse, Verdict::TooFewSamples);
        assert_eq!(verdicts, [worse, worse, worse, few, few]);
    }

    #[test]
    fn rates_are_better_when_there_is_more() {
        let mut a = sample::report(100_000, 1.0);
        let b = a.clone();
        a.runs[0].counters.written_bytes *= 2;
        let found = Comparison::new(&a, &b, THRESHOLD);
        let verdict = |name| found.rates.iter().find(|it| it.name == name).unwrap().verdict;
        assert_eq!(verdict("written bytes/s"), Verdict::Worse);
        assert_eq!(verdict("operations/s"), Verdict::NoChange);
        assert_eq!(found.changes(), (1, 0));
        assert_eq!(Comparison::new(&b, &a, THRESHOLD).changes(), (0, 1));
    }

    #[test]
    fn a_rate_that_goes_up_and_down_is_no_change() {
        let mut a = sample::report(100_000, 1.0);
        let mut b = a.clone();
        b.runs[0].operations = 66_000;
        let verdict = |a: &Report, b: &Report| {
            let found = Comparison::new(a, b, THRESHOLD);
            let rate = found.rates.iter().find(|it| it.name == "operations/s").unwrap().clone();
            (rate.verdict, rate.ratio_low.is_some())
        };
        assert_eq!(verdict(&a, &b), (Verdict::Worse, true));
        // Slow for a while: by chance the other run was slow for longer.
        a.runs[0].slices[..5].fill(2_000.0);
        assert_eq!(verdict(&a, &b), (Verdict::NoChange, true));
        assert_eq!(verdict(&b, &a), (Verdict::NoChange, true));
        // A run of less than a second, and one of an older program.
        for slices in [SLICES_NEEDED - 1, 0] {
            a.runs[0].slices.truncate(slices);
            assert_eq!(verdict(&a, &b), (Verdict::TooFewSamples, false));
            assert_eq!(Comparison::new(&a, &b, THRESHOLD).changes(), (0, 0));
        }
    }

    #[test]
    fn differences_are_told() {
        let a = sample::report(100, 1.0);
        let mut b = a.clone();
        b.settings.0.insert("seed".to_owned(), json!(7));
        b.environment.kernel = Some("6.1".to_owned());
        b.runs.push(sample::run("reference", 100, 1.0));
        b.runs[0].measures.remove(0);
        let found = Comparison::new(&a, &b, THRESHOLD);
        let names = |list: &[Difference]| list.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found.settings), ["seed"]);
        assert_eq!(names(&found.environment), ["kernel"]);
        let unmatched: Vec<_> =
            found.unmatched.iter().map(|it| (it.run.as_str(), it.only_in)).collect();
        assert_eq!(unmatched, [("allocator", 'a'), ("reference", 'b'), ("reference", 'b')]);
        assert!(!found.is_empty());
        b.runs.clear();
        assert!(Comparison::new(&a, &b, THRESHOLD).is_empty());
    }

    #[test]
    fn ratios_read_well() {
        for (ratio, text) in [
            (1.0, "+0.0 %"),
            (1.123, "+12.3 %"),
            (0.9, "-10.0 %"),
            (2.0, "x 2.00"),
            (0.25, "x 0.25"),
            (31.4, "x 31"),
        ] {
            assert_eq!(format_ratio(ratio), text);
        }
    }
}
