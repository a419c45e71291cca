//! Reports for tests.

use std::path::PathBuf;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_distr::LogNormal;
use rand_pcg::Pcg64;
use serde_json::json;

use super::{Counters, Report, Run, Settings, measured};
use crate::environment::{Backing, DeviceEnvironment, Environment};
use crate::num::{float, whole};
use crate::record::clock::ClockQuality;
use crate::record::pace::PaceCounts;
use crate::record::{Measure, Recorder};

/// A machine that nothing can be said against.
pub(crate) fn environment() -> Environment {
    Environment {
        cpu_model: Some("A CPU".to_owned()),
        cpus: 4,
        kernel: Some("6.12.1".to_owned()),
        clocksource: Some("tsc".to_owned()),
        governors: vec!["performance".to_owned()],
        clock: ClockQuality { read_ns: 24, resolution_ns: 20 },
        debug_build: false,
        devices: vec![DeviceEnvironment {
            path: PathBuf::from("/dev/sda"),
            name: Some("sda".to_owned()),
            disk: Some("sda".to_owned()),
            size_bytes: 8 << 30,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            model: Some("AN SSD".to_owned()),
            rotational: Some(false),
            write_cache: Some("write back".to_owned()),
            scheduler: Some("none".to_owned()),
            discard: true,
            backing: Backing::Device,
        }],
    }
}

/// A run with `samples` bucket allocations and data writes, `slowdown` times as slow as others.
pub(crate) fn run(name: &str, samples: u64, slowdown: f64) -> Run {
    let mut random = Pcg64::seed_from_u64(samples ^ slowdown.to_bits());
    let mut recorder = Recorder::new(&[Measure::BucketAllocation, Measure::DataWrite]);
    let draw = |random: &mut Pcg64, mean: f64, spread: f64| {
        whole(random.sample(LogNormal::new(mean.ln(), spread).unwrap()) * slowdown)
    };
    for _ in 0..samples {
        recorder.record(Measure::BucketAllocation, draw(&mut random, 900.0, 0.5));
        recorder.record(Measure::DataWrite, draw(&mut random, 80_000.0, 0.9));
    }
    Run {
        name: name.to_owned(),
        elapsed: Duration::from_secs(10),
        operations: samples,
        pace: PaceCounts::default(),
        counters: Counters {
            written_bytes: samples * 4096,
            device_written_bytes: samples * 4300,
            hits: samples / 4,
            misses: samples / 12,
            passes: 12,
            gcs: 3,
            ..Counters::default()
        },
        // Up and down by one in a hundred.
        slices: (0..20).map(|it| float(samples) * (0.0995 + 0.001 * f64::from(it % 2))).collect(),
        measures: measured(&recorder.finish()),
    }
}

/// A report of one such run.
pub(crate) fn report(samples: u64, slowdown: f64) -> Report {
    let settings = json!({ "writers": 2, "seed": 1, "working_set": "uniform", "rate": null });
    let settings = Settings::of(&settings).unwrap();
    let mut report = Report::new("device", settings, environment());
    report.runs.push(run("allocator", samples, slowdown));
    report
}
