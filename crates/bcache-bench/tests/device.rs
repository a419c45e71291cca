//! `bcache-bench device` on image files, as a user meets it.

use std::path::Path;

use assert_cmd::Command;
use bcache_bench::record::Measure;
use bcache_bench::report::Report;
use bcache_core::device::open_read;
use bcache_core::ops::check::{CheckOptions, check};
use bcache_core::ops::make::read_superblock;

fn device(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("bcache-bench").unwrap();
    let output = command.arg("device").args(arguments).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn clean(image: &Path) -> bool {
    let device = open_read(image).unwrap();
    check(&device, &CheckOptions::default(), &mut |_| {}).unwrap().is_clean()
}

#[test]
fn a_run_leaves_a_clean_set_a_report_and_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, json, svg) = (path("cache.img"), path("report.json"), path("latency.svg"));
    let (status, out, err) = device(&[
        "--image",
        &image,
        "--size",
        "96M",
        "--bucket",
        "64k",
        "--amount",
        "200M",
        "--writers",
        "2",
        "--block-sizes",
        "4k=50,32k=50",
        "--read-share",
        "25",
        "--keep",
        "--export-json",
        &json,
        "--export-svg",
        &svg,
    ]);
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("data bandwidth, allocator to fixed addresses"), "{out}");
    let report = Report::load(Path::new(&json)).unwrap();
    let run = report.run("allocator").unwrap();
    let counters = &run.counters;
    // Each writer's last operation may go past its share.
    assert!((200 << 20..201 << 20).contains(&counters.written_bytes), "{counters:?}");
    // Data and metadata; each pass wrote a chain.
    assert!(counters.device_written_bytes > counters.written_bytes, "{counters:?}");
    assert!(counters.passes > 10 && counters.gcs > 5, "{counters:?}");
    assert!(counters.prio_writes > 10 && counters.journal_writes >= counters.prio_writes);
    assert!(counters.hits > 0 && counters.misses > 0, "{counters:?}");
    // Everything written went to an allocated bucket.
    let allocated = counters.buckets_allocated * (64 << 10);
    assert!(allocated >= counters.written_bytes - 256 * (64 << 10), "{counters:?}");
    for measure in [
        Measure::SectorAllocation,
        Measure::BucketAllocation,
        Measure::DataWrite,
        Measure::DataRead,
        Measure::InvalidationPass,
        Measure::PrioWrite,
        Measure::JournalWrite,
    ] {
        assert!(run.measured(measure).is_some(), "{measure}");
    }
    assert_eq!(report.ratios.len(), 2);
    assert!(report.ratios.iter().all(|it| it.ratio().is_some_and(|ratio| ratio > 0.0)));
    assert!(std::fs::read_to_string(&svg).unwrap().contains("<svg"));
    assert!(clean(Path::new(&image)));
}

#[test]
fn what_is_not_kept_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let name = image.to_str().unwrap();
    let common = ["--bucket", "64k", "--amount", "30M", "--no-baseline", "--json"];
    let made = [&["--image", name, "--size", "64M"], common.as_slice()].concat();
    let (status, _, err) = device(&made);
    assert_eq!(status, 0, "{err}");
    assert!(!image.exists());
    // A file that was there stays, without a superblock.
    std::fs::write(&image, vec![0; 64 << 20]).unwrap();
    let (status, _, err) = device(&[&[name], common.as_slice()].concat());
    assert_eq!(status, 0, "{err}");
    let device = open_read(&image).unwrap();
    assert!(read_superblock(&device).unwrap().is_none_or(|sb| !sb.magic_ok()));
}

#[test]
fn what_a_device_holds_is_refused_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let name = image.to_str().unwrap();
    let kept = ["--image", name, "--size", "64M", "--bucket", "64k", "--amount", "10M", "--keep"];
    assert_eq!(device(&kept).0, 0);
    let before = std::fs::read(&image).unwrap();
    let (status, _, err) = device(&[name, "--amount", "10M"]);
    assert_eq!(status, 1);
    assert!(err.contains("--wipe-bcache"), "{err}");
    let (status, _, err) = device(&kept);
    assert_eq!(status, 1);
    assert!(err.contains("exists"), "{err}");
    // Without I/O nothing is destroyed, and nobody has to be asked.
    let dry = ["--io", "none", "--amount", "100M", "--reserves", "none=9,btree=1", "--json"];
    let (status, out, err) = device(&[&[name], dry.as_slice()].concat());
    assert_eq!(status, 0, "{err}");
    let report: Report = serde_json::from_str(&out).unwrap();
    assert!(report.run("allocator").unwrap().counters.passes > 0);
    assert_eq!(std::fs::read(&image).unwrap(), before);
    // Operations that the device could not carry out, before anything is written.
    let (status, _, err) =
        device(&[name, "--wipe-bcache", "--block-sizes", "4M", "--working-set", "1M"]);
    assert_eq!(status, 1);
    assert!(err.contains("working set"), "{err}");
    assert_eq!(std::fs::read(&image).unwrap(), before);
}

#[test]
fn several_devices_share_one_allocator() {
    let dir = tempfile::tempdir().unwrap();
    let images: Vec<String> = ["a", "b"]
        .map(|name| dir.path().join(name).to_str().unwrap().to_owned())
        .into_iter()
        .inspect(|path| std::fs::write(path, vec![0; 64 << 20]).unwrap())
        .collect();
    let (status, out, err) =
        device(&[&images[0], &images[1], "--bucket", "64k", "--amount", "150M", "--json"]);
    assert_eq!(status, 0, "{err}");
    let report: Report = serde_json::from_str(&out).unwrap();
    let counters = report.run("allocator").unwrap().counters;
    assert!(counters.passes > 4, "{counters:?}");
    assert!(counters.written_bytes >= 150 << 20);
}
