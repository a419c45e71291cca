//! `bcache-bench device` on image files, as a user meets it.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use bcache_bench::cli::{self, Cli};
use bcache_bench::device::allocator_run::{AllocatorRun, allocator_run};
use bcache_bench::device::counted::Counted;
use bcache_bench::device::run::OnDevices;
use bcache_bench::device::{DeviceRun, RunContext};
use bcache_bench::progress::Live;
use bcache_bench::record::Measure;
use bcache_bench::report::{InTurns, Report};
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{BlockDevice, DeviceError, DeviceInfo, Operation, ReadDevice, open_read};
use bcache_core::layout::superblock::{
    CacheParams, Label, Replacement, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::ops::check::{CheckOptions, check};
use bcache_core::ops::make::read_superblock;
use bcache_core::units::Sectors;
use clap::Parser;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

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
    let trace = path("trace");
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
        "--trace",
        &trace,
    ]);
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("fixed addresses: data write"), "{out}");
    let report = Report::load(Path::new(&json)).unwrap();
    let run = report.run("allocator").unwrap();
    let counters = &run.counters;
    // Each writer's last operation may go past its share; what missed was written.
    let bytes = counters.written_bytes + counters.read_bytes;
    assert!((200 << 20..201 << 20).contains(&bytes), "{counters:?}");
    let trace = std::fs::read_to_string(&trace).unwrap();
    let lines = |part: &str| trace.lines().filter(|line| line.contains(part)).count() as u64;
    assert!(lines(" alloc cache=0 ") > counters.buckets_allocated, "chains need buckets, too");
    assert!(lines(" reserve=none") >= counters.buckets_allocated);
    assert!(lines(" invalidate cache=0 ") > counters.buckets_invalidated / 4);
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
    // What misses is written with an allocator, and read without one.
    assert_eq!(report.ratios.len(), 1);
    assert!(report.ratios[0].name.starts_with("prio write, to"), "{:?}", report.ratios);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("<svg"));
    assert!(clean(Path::new(&image)));
}

#[test]
fn writes_are_compared_with_the_same_without_an_allocator() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let (status, out, err) = device(&[
        "--image",
        image.to_str().unwrap(),
        "--size",
        "96M",
        "--bucket",
        "64k",
        "--amount",
        "60M",
        "--json",
    ]);
    assert_eq!(status, 0, "{err}");
    let report: Report = serde_json::from_str(&out).unwrap();
    let written = |run: &str| report.run(run).unwrap().counters.written_bytes;
    assert_eq!(written("allocator"), 60 << 20);
    assert_eq!(written("fixed addresses"), 60 << 20);
    assert_eq!(report.ratios.len(), 2);
    // How many turns it takes depends on the machine.
    let in_turns = report.ratios.iter().map(|it| it.turns.is_some());
    assert!(in_turns.eq([true, false]), "{:?}", report.ratios);
    assert!(report.ratios[0].name.starts_with("data bandwidth"), "{:?}", report.ratios);
    assert!(report.ratios.iter().all(|it| it.ratio().is_some_and(|ratio| ratio > 0.0)));
}

#[test]
fn one_run_has_the_ratio_with_its_interval() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let common = ["--image", image.to_str().unwrap(), "--size", "96M", "--bucket", "64k", "--json"];
    let (status, out, err) = device(
        &[&common[..], &["--duration", "5s", "--rate", "200", "--block-sizes", "16k"]].concat(),
    );
    assert_eq!(status, 0, "{err}");
    let report: Report = serde_json::from_str(&out).unwrap();
    // The pace of each is that of one run, turns or not.
    for run in ["allocator", "fixed addresses"] {
        let run = report.run(run).unwrap();
        assert_eq!(run.operations, 1000);
        assert!((20..=40).contains(&run.slices.len()), "{:?}", run.slices);
        assert!(run.elapsed >= Duration::from_secs(5), "{:?}", run.elapsed);
    }
    let ratio = &report.ratios[0];
    let turns = ratio.turns.unwrap();
    let (low, high) = (turns.ratio_low.unwrap(), turns.ratio_high.unwrap());
    assert_eq!(turns.pairs, 20);
    assert!(low <= ratio.ratio().unwrap() && ratio.ratio().unwrap() <= high, "{ratio:?}");
    // What is kept was not written over.
    let kept = ["--amount", "20M", "--keep"];
    let (status, out, err) = device(&[&common[..], &kept].concat());
    assert_eq!(status, 0, "{err}");
    let report: Report = serde_json::from_str(&out).unwrap();
    assert_eq!(report.ratios[0].turns, Some(InTurns::default()));
    assert!(clean(&image));
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
    for _ in 0..2 {
        // The second run finds nothing of the first.
        let (status, _, err) = device(&[&[name], common.as_slice()].concat());
        assert_eq!(status, 0, "{err}");
    }
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
    assert_eq!(std::fs::read(&image).unwrap(), before);
    // The journal of the set before lies just behind the new one's.
    let (status, _, err) = device(&[&[name, "--wipe-bcache", "--yes"], &kept[4..]].concat());
    assert_eq!(status, 0, "{err}");
    assert!(clean(&image));
    let before = std::fs::read(&image).unwrap();
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
    for (options, said) in [
        (
            &["--streams", "2000", "--working-set", "300%"][..],
            "--no-baseline leaves out what does not fit",
        ),
        (&["--working-set", "4000P"], "no memory for the index"),
        (
            &["--block-sizes", "4P", "--working-set", "4000P", "--no-baseline"],
            "no memory for operations of up to 4 PiB",
        ),
    ] {
        let (status, _, err) = device(&[&[name, "--wipe-bcache"], options].concat());
        assert_eq!(status, 1, "{err}");
        assert!(err.contains(said), "{err}");
    }
    assert_eq!(std::fs::read(&image).unwrap(), before);
}

#[test]
fn buckets_of_other_reserves_are_taken_beside_data() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let common = ["--image", image.to_str().unwrap(), "--size", "96M", "--bucket", "64k", "--json"];
    let (status, out, err) =
        device(&[&common[..], &["--amount", "100M", "--reserves", "none=50,btree=50"]].concat());
    assert_eq!(status, 0, "{err}");
    let report: Report = serde_json::from_str(&out).unwrap();
    let run = report.run("allocator").unwrap();
    assert!((10 << 20..90 << 20).contains(&run.counters.written_bytes), "{:?}", run.counters);
    assert!(run.counters.buckets_allocated > 600, "{:?}", run.counters);
    // Nothing without an allocator would be the same.
    assert_eq!(report.ratios.len(), 1, "{:?}", report.ratios);
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
    // What is compared is of one device.
    assert_eq!((report.runs.len(), report.ratios.len()), (1, 0));
}

/// Runs the command, which must end by itself.
fn device_in_time(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("bcache-bench").unwrap();
    command.timeout(Duration::from_secs(60));
    let output = command.arg("device").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn an_amount_ends_a_run_that_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let common = ["--image", image.to_str().unwrap(), "--size", "96M", "--bucket", "64k", "--json"];
    for (arguments, amount) in [
        (&["--read-share", "100", "--amount", "2M"][..], 2 << 20),
        (
            &["--read-share", "100", "--working-set", "8M", "--amount", "40M", "--no-baseline"],
            40 << 20,
        ),
        (&["--io", "none", "--reserves", "btree", "--amount", "5M"], 5 << 20),
    ] {
        let (status, out, err) = device_in_time(&[&common[..], arguments].concat());
        assert_eq!(status, 0, "{arguments:?}: {err}");
        let report: Report = serde_json::from_str(&out).unwrap();
        assert_eq!(report.run("allocator").unwrap().operations, amount >> 16, "{arguments:?}");
    }
}

#[test]
fn what_was_only_allocated_was_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let common = ["--image", image.to_str().unwrap(), "--size", "96M", "--bucket", "64k", "--json"];
    for io in ["metadata", "none"] {
        let arguments = [&common[..], &["--io", io, "--amount", "200M"]].concat();
        let (status, out, err) = device_in_time(&arguments);
        assert_eq!(status, 0, "{err}");
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        let run = &report["runs"][0];
        assert_eq!(run["counters"]["written_bytes"], 0);
        assert!(run["figures"]["written_bytes_per_second"].is_null(), "{run}");
        assert!(run["figures"]["write_amplification"].is_null(), "{run}");
        let written = run["counters"]["device_written_bytes"].as_u64().unwrap();
        assert_eq!(written > 0, io == "metadata");
    }
}

#[test]
fn a_report_that_cannot_be_printed_is_exported() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, json) = (path("cache.img"), path("report.json"));
    let bench = assert_cmd::cargo::cargo_bin("bcache-bench");
    let line = format!(
        "{} device --image {image} --size 96M --bucket 64k --amount 5M --no-baseline --export-json {json}",
        bench.display()
    );
    for (to, status) in [("| true", "0"), ("> /dev/full", "3")] {
        let line = format!("{line} {to}; echo \"${{PIPESTATUS[0]}}\"");
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), status, "{to}: {err}");
        assert_eq!(err.is_empty(), status == "0", "{to}: {err}");
        assert_eq!(Report::load(Path::new(&json)).unwrap().runs.len(), 1, "{to}");
        std::fs::remove_file(&json).unwrap();
    }
}

#[test]
fn a_device_is_put_down_before_its_report_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    std::fs::write(&image, vec![0; 64 << 20]).unwrap();
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    // Far too little for a report: it is printed as far as somebody reads it.
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("bcache-bench"))
        .args(["device", "--bucket", "64k", "--amount", "10M", "--no-baseline", "--json"])
        .arg(&image)
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn()
        .unwrap();
    let mut reader = std::fs::File::from(reader);
    reader.read_exact(&mut [0]).unwrap();
    assert!(!is_formatted(&image));
    drop(reader);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_export_never_replaces_what_the_run_writes_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, other) = (path("cache.img"), path("other"));
    let run = ["--bucket", "64k", "--amount", "5M", "--no-baseline", "--keep"];
    let new = ["--image", &image, "--size", "96M", "--export-svg", &image];
    let (status, _, err) = device(&[&new[..], &run].concat());
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("is what the run writes to"), "{err}");
    assert!(!Path::new(&image).exists());
    std::fs::write(&image, vec![0; 96 << 20]).unwrap();
    std::os::unix::fs::symlink(&image, &other).unwrap();
    let (status, _, err) = device(&[&[image.as_str(), "--export-json", &other], &run[..]].concat());
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("is what the run writes to"), "{err}");
    let exports = ["--export-json", &path("both"), "--export-svg", &path("both")];
    let (status, _, err) = device(&[&[image.as_str()], &exports[..], &run].concat());
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("one report would overwrite the other"), "{err}");
    assert!(!Path::new(&path("both")).exists());
    assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 0));
}

fn is_formatted(image: &Path) -> bool {
    let superblock = open_read(image).map(|device| read_superblock(&device));
    superblock.is_ok_and(|it| it.is_ok_and(|it| it.is_some_and(|it| it.magic_ok())))
}

/// Starts a run that would take long, and sends it a signal once the devices are formatted.
fn interrupted(image: &Path, arguments: &[&str]) -> std::process::Output {
    let child = std::process::Command::new(assert_cmd::cargo::cargo_bin("bcache-bench"))
        .args(["device", "--bucket", "64k", "--duration", "1h", "--json"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_formatted(image) {
        assert!(Instant::now() < deadline, "the run has not begun");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_ends_a_run_with_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let name = image.to_str().unwrap();
    let check = |output: &std::process::Output| {
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{err}");
        let report: Report = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report.interrupted && report.run("allocator").is_some());
    };
    // The file is being filled: there is nothing to draw yet, or next to nothing.
    let picture = dir.path().join("latency.svg");
    let export = ["--export-svg", picture.to_str().unwrap()];
    check(&interrupted(&image, &[&["--image", name, "--size", "96M"], &export[..]].concat()));
    assert!(!image.exists(), "the image is removed");
    std::fs::write(&image, vec![0; 96 << 20]).unwrap();
    check(&interrupted(&image, &[name, "--no-baseline"]));
    assert!(!is_formatted(&image), "the superblock is wiped");
}

#[test]
fn a_signal_before_the_devices_are_formatted_leaves_them() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cache.img");
    let line = ["bcache-bench", "device", "--image", image.to_str().unwrap(), "--size", "96M"];
    let cli::Command::Device(args) = Cli::parse_from(line).command else { panic!("{line:?}") };
    let plan = args.plan().unwrap();
    let mut devices = OnDevices::default();
    devices.prepare(&plan).unwrap();
    let context = RunContext { stop: Arc::new(true.into()), live: Live::new(1), trace: None };
    let error = devices.run(&plan, &context).unwrap_err();
    assert!(error.to_string().contains("nothing was written"), "{error}");
    assert!(!image.exists());
}

#[test]
fn ctrl_c_where_it_asks_means_no() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, json) = (path("cache.img"), path("report.json"));
    let kept = ["--image", &image, "--size", "64M", "--bucket", "64k", "--amount", "5M", "--keep"];
    assert_eq!(device(&kept).0, 0);
    let before = std::fs::read(&image).unwrap();
    let bench = assert_cmd::cargo::cargo_bin("bcache-bench");
    let line = format!(
        "{} device {image} --wipe-bcache --bucket 64k --amount 5M --export-json {json}",
        bench.display()
    );
    // What it writes to /dev/null is a record; its output is a terminal's.
    let child = std::process::Command::new("script")
        .args(["-q", "-e", "-f", "-c", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "script (util-linux) is needed: {error}");
            eprintln!("SKIPPED: script is not installed ({error})");
            return;
        }
    };
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("[y/N]") {
        let mut some = [0; 256];
        let len = stdout.read(&mut some).unwrap();
        assert!(len > 0, "it did not ask: {said}");
        said.push_str(&String::from_utf8_lossy(&some[..len]));
    }
    // The terminal makes a signal of the first byte.
    stdin.write_all(b"\x03").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    // Nobody may be there any more to read it.
    let _ = stdin.write_all(b"yes\n");
    drop(stdin);
    stdout.read_to_string(&mut said).unwrap();
    assert!(!child.wait().unwrap().success(), "{said}");
    assert!(std::fs::read(&image).unwrap() == before, "it wrote: {said}");
    assert!(!Path::new(&json).exists());
}

/// Memory that takes no discards.
#[derive(Debug)]
struct NoDiscard {
    memory: MemoryDevice,
    info: DeviceInfo,
}

impl ReadDevice for NoDiscard {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.memory.read_at(offset, buf)
    }
}

impl BlockDevice for NoDiscard {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.memory.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.memory.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let (path, operation) = (self.info.path.clone(), Operation::Discard);
        let source = std::io::ErrorKind::Unsupported.into();
        Err(DeviceError::Io { path, operation, offset, len, source })
    }
}

/// The superblock of a cache of 64 MiB.
fn small_cache(discard: bool) -> Superblock {
    Superblock::new_cache(&CacheParams {
        uuid: Uuid::from_u128(1),
        set_uuid: Uuid::from_u128(2),
        label: Label::default(),
        nbuckets: 1024,
        bucket_size: Sectors(128),
        block_size: 1,
        replacement: Replacement::Lru,
        discard,
    })
}

fn small_memory(superblock: &Superblock) -> MemoryDevice {
    let memory = MemoryDevice::new(1024 * (64 << 10));
    memory.write_at(SB_OFFSET_BYTES, superblock.as_bytes()).unwrap();
    memory
}

/// Runs the allocator on such a cache.
fn run_in_memory(
    device: Arc<dyn BlockDevice>,
    superblock: Superblock,
    options: &[&str],
    context: &RunContext,
) -> AllocatorRun {
    let line = [&["bcache-bench", "device", "memory"], options].concat();
    let cli::Command::Device(args) = Cli::parse_from(&line).command else { panic!("{line:?}") };
    let plan = args.plan().unwrap();
    let workload = plan.workload(Sectors(1000 * 128));
    let devices = [Arc::new(Counted::new(device))];
    allocator_run(&plan, &workload, &devices, vec![superblock], context, None).unwrap()
}

#[test]
fn discards_that_a_device_does_not_take_are_counted_and_no_error() {
    let superblock = small_cache(true);
    let memory = small_memory(&superblock);
    let info = DeviceInfo { discard: false, ..memory.info().clone() };
    let device = Arc::new(NoDiscard { memory, info });
    let context = RunContext { stop: Arc::default(), live: Live::new(1), trace: None };
    let found = run_in_memory(device, superblock, &["--discard", "--amount", "200M"], &context);
    let counters = found.run.counters;
    assert!(counters.passes > 5 && counters.written_bytes >= 200 << 20, "{counters:?}");
    assert!(counters.discards == 0 && counters.discards_failed > 100, "{counters:?}");
}

/// Memory that takes its time to flush, and stops the run at a flush after the writers have ended.
struct StopsAfter {
    memory: MemoryDevice,
    amount: u64,
    flushes_left: AtomicU64,
    context: RunContext,
}

const FLUSH_TIME: Duration = Duration::from_millis(2);

impl ReadDevice for StopsAfter {
    fn info(&self) -> &DeviceInfo {
        self.memory.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.memory.read_at(offset, buf)
    }
}

impl BlockDevice for StopsAfter {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.memory.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        std::thread::sleep(FLUSH_TIME);
        let ended = self.context.live.sums().written_bytes >= self.amount;
        if ended && self.flushes_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.context.stop.store(true, Ordering::Relaxed);
        }
        self.memory.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.memory.discard(offset, len)
    }
}

#[test]
fn ctrl_c_ends_the_comparisons_and_what_was_cut_short_is_no_figure() {
    let superblock = small_cache(false);
    // A chain is flushed twice, what is written beside it once.
    for (flushes, chains) in [(20, 1..60), (240, 100..104)] {
        let context = RunContext { stop: Arc::default(), live: Live::new(1), trace: None };
        let device = Arc::new(StopsAfter {
            memory: small_memory(&superblock),
            amount: 20 << 20,
            flushes_left: AtomicU64::new(flushes),
            context: RunContext {
                stop: context.stop.clone(),
                live: context.live.clone(),
                trace: None,
            },
        });
        let found = run_in_memory(device, superblock.clone(), &["--amount", "20M"], &context);
        assert!(context.stop.load(Ordering::Relaxed));
        let prio_writes = found.prio_writes.unwrap();
        assert!(chains.contains(&prio_writes.operations), "{}", prio_writes.operations);
        let Some(sequential) = found.sequential else {
            assert!(flushes < 200);
            continue;
        };
        let written = sequential.counters.written_bytes / (64 << 10);
        assert!(flushes > 200 && (1..60).contains(&written), "{written}");
        assert!(sequential.elapsed >= FLUSH_TIME * u32::try_from(written).unwrap());
    }
}
