//! The harness, the baselines and the report on a real image file.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::AtomicBool;

use bcache_bench::device::baseline::{Area, FixedAddresses, Places, Terms, sequential_write};
use bcache_bench::device::counted::Counted;
use bcache_bench::device::plan::Length;
use bcache_bench::device::turns::take_turns;
use bcache_bench::environment::Environment;
use bcache_bench::progress::Live;
use bcache_bench::record::Measure;
use bcache_bench::record::pace::Pace;
use bcache_bench::report::{Report, Settings};
use bcache_bench::warnings::{self, Warning};
use bcache_bench::watch::Watch;
use bcache_bench::workload::{ReadShare, Workload};
use bcache_core::allocator::Policy;
use bcache_core::device::sysfs::Root;
use bcache_core::device::{ReadDevice, create_image};
use bcache_core::units::Sectors;

#[test]
fn baselines_run_on_an_image_and_end_in_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let device = Counted::new(create_image(dir.path().join("cache.img"), 64 << 20).unwrap());
    let area = Area { start: Sectors(2048), size: Sectors(120 << 10) };
    let (bucket, policy) = (Sectors(1024), Policy::Lru);
    let places = Places { area, bucket, policy };
    let stop = AtomicBool::new(false);
    let live = Live::new(2);
    let workload = Workload {
        working_set: Sectors(1 << 18),
        access: "zipf=80,sequential=20".parse().unwrap(),
        block_sizes: "4k=70,64k=30".parse().unwrap(),
        read_share: ReadShare::from_percent(20.0).unwrap(),
        streams: NonZeroU32::new(4).unwrap(),
        writers: NonZeroU32::new(2).unwrap(),
        seed: 1,
    };
    let bytes = NonZeroU64::new(32 << 20).unwrap();
    let length = Length::Bytes(bytes);
    let terms = Terms { pace: Pace::Closed, length, stop: &stop, live: &live };

    let environment = Environment::gather(&Root::system(), &[device.info()]);
    let mut report = Report::new("device", Settings::default(), environment);
    report.warnings = warnings::of_environment(&report.environment, 2);
    let watch = Watch::start(Root::system(), Vec::new());
    let mut fixed = FixedAddresses::new(&device, &places, &workload, &terms).unwrap();
    take_turns(&mut [&mut fixed], length, &stop).unwrap();
    let fixed = fixed.finish();
    let sequential = sequential_write(&device, area, Sectors(1024), bytes, &stop, &live).unwrap();
    report.warnings.extend(warnings::of_observed(&watch.finish(), &BTreeMap::new()));
    for run in [&fixed, &sequential] {
        report.warnings.extend(warnings::of_run(run, &report.environment));
    }

    // Each writer's last operation may go past its share.
    let written = fixed.counters.written_bytes;
    let both = written + fixed.counters.read_bytes;
    assert!((32 << 20..(32 << 20) + 2 * (64 << 10)).contains(&both), "{both}");
    assert_eq!(sequential.counters.written_bytes, 32 << 20);
    assert_eq!(sequential.measured(Measure::DataWrite).unwrap().histogram.len(), 64);
    assert_eq!(device.written_bytes(), written + (32 << 20));
    assert_eq!(device.io().read_sectors * 512, fixed.counters.read_bytes);
    assert!(fixed.figures().written_bytes_per_second.is_some_and(|rate| rate > 0.0));

    let image = |it: &Warning| matches!(it, Warning::ImageFile { .. });
    assert_eq!(report.warnings.iter().filter(|it| image(it)).count(), 1);
    let few = |it: &Warning| matches!(it, Warning::TooFewSamples { .. });
    assert!(report.warnings.iter().any(few));
    report.runs = vec![fixed, sequential];
    let json = serde_json::to_string(&report).unwrap();
    let back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
}
