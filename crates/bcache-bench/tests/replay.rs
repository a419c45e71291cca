//! `bcache-bench replay` and `size` as a user runs them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use serde_json::Value;

const TRACE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/traces/dev-server.iolog.zst");

fn bench(arguments: &[&str]) -> Output {
    Command::cargo_bin("bcache-bench").unwrap().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_answer_comes_first_and_follows_from_the_table() {
    let arguments = ["replay", TRACE, "--cache-size", "256M,8G", "--bucket", "256k,1M"];
    let text = stdout(&bench(&arguments));
    assert!(text.starts_with("Make a cache of "), "{text}");
    assert!(text.contains("46,313 reads"), "{text}");
    let json = stdout(&bench(&[&arguments[..], &["--json"]].concat()));
    let report: Value = serde_json::from_str(&json).unwrap();
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * 2 * 2 * 2);
    // 256 buckets of 1 MiB are too few.
    let refused = cells.iter().filter(|cell| cell["refused"] == true).count();
    assert_eq!(refused, 4);
    let hit = |cell: &Value| cell["hit_ratio"]["mean"].as_f64().unwrap_or(0.0);
    let best = cells.iter().map(hit).fold(0.0, f64::max);
    let advice = &report["answer"];
    let advised = cells
        .iter()
        .find(|cell| {
            ["cache_bytes", "bucket_bytes", "policy", "mode", "sequential_cutoff_bytes"]
                .iter()
                .all(|field| cell[field] == advice["cell"][field])
        })
        .expect("the cell that is advised is in the table");
    assert!(hit(advised) >= best - 0.0151, "{advice}");
    for cell in cells.iter().filter(|cell| cell["refused"] == false) {
        let run = &cell["runs"][0];
        let count = |name: &str| run[name].as_u64().unwrap();
        let reads = count("cache_hits")
            + count("cache_misses")
            + count("cache_bypass_hits")
            + count("cache_bypass_misses");
        assert_eq!(reads, 46_313);
        let hits = count("cache_hits") + count("cache_bypass_hits");
        let of = bcache_bench::num::ratio(hits, reads).unwrap();
        assert!((hit(cell) - of).abs() < 1e-12);
    }
}

/// The codes of the warnings.
fn warnings(arguments: &[&str]) -> Vec<String> {
    let json = stdout(&bench(&[arguments, &["--json"]].concat()));
    let report: Value = serde_json::from_str(&json).unwrap();
    let list = report["warnings"].as_array().unwrap();
    list.iter().map(|it| it["code"].as_str().unwrap().to_owned()).collect()
}

/// Each trace has the warnings that apply to it, and no others. Without times nothing is lost to sysfs, and
/// nothing is written back where no mode does.
#[test]
fn warnings_are_those_that_apply() {
    let caches = ["--cache-size", "128M,2G", "--policy", "lru"];
    let of = |trace: &str| warnings(&[&["replay", trace][..], &caches].concat());
    let [pids, cutoff, prios] = ["no_processes", "cutoff_bypasses", "prio_writes"];
    assert_eq!(of(TRACE), [pids, cutoff, prios, "sysfs_bypassed", "unplaced"]);
    let large = ["replay", TRACE, "--cache-size", "64G", "--bucket", "512k", "--cutoff", "0"];
    assert_eq!(warnings(&large), [pids, "sysfs_bypassed"], "discards bypass");
    let Some(folder) = std::env::var_os("BCACHE_TEST_TRACES") else {
        return println!("skipped the others: BCACHE_TEST_TRACES names no folder");
    };
    let other = |name: &str| {
        let path = std::path::Path::new(&folder).join(name);
        of(path.to_str().unwrap())
    };
    assert_eq!(
        other("cloudphysics.vscsi.zst"),
        [pids, "unaligned4k", cutoff, prios, "sysfs_bypassed", "unplaced"]
    );
    assert_eq!(other("arc-p12.lis.zst"), [pids, "no_times", "unaligned4k", prios, "unplaced"]);
    assert_eq!(other("hadoop-node.blktrace.zst"), [cutoff, prios, "sysfs_bypassed", "unplaced"]);
}

#[test]
fn pictures_csv_markdown_and_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("curve.svg");
    let bytes = zstd::decode_all(std::fs::File::open(TRACE).unwrap()).unwrap();
    let plain = folder.path().join("trace");
    std::fs::write(&plain, &bytes).unwrap();
    let small =
        ["--cache-size", "128M,1G", "--bucket", "128k", "--policy", "fifo", "--cutoff", "0"];
    let mut command = Command::cargo_bin("bcache-bench").unwrap();
    command.args(["replay", "-", "--csv", "--svg"]).arg(&svg).args(small);
    command.stdin(std::fs::File::open(&plain).unwrap());
    let csv = stdout(&command.output().unwrap());
    let mut lines = csv.lines();
    let columns = lines.next().unwrap().split(',').count();
    let rows: Vec<_> = lines.collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.split(',').count() == columns), "{csv}");
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("exact LRU"));
    let path = plain.to_str().unwrap();
    let markdown = stdout(&bench(&[&["replay", path, "--markdown"][..], &small].concat()));
    assert_eq!(markdown.lines().filter(|line| line.starts_with('|')).count(), 4);
}

#[test]
fn a_device_gets_the_same_requests_only_if_its_data_may_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    std::fs::write(&trace, "0 0 16 8 0\n1000 0 16 8 1\n2000 0 2047 1 1\n").unwrap();
    let image = folder.path().join("image");
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (trace, disk) = (path(&trace), path(&image));
    let run = |more: &[&str]| {
        let all = [
            "replay",
            &trace,
            "--cache-size",
            "64M",
            "--bucket",
            "64k",
            "--jobs",
            "1",
            "--device",
            &disk,
        ];
        bench(&[&all[..], more].concat())
    };
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    assert_eq!(run(&[]).status.code(), Some(1), "not without --yes");
    assert_eq!(std::fs::read(&image).unwrap(), vec![7; 1 << 20]);
    let report: Value = serde_json::from_str(&stdout(&run(&["--yes", "--json"]))).unwrap();
    assert_eq!(report["device"]["reads"]["count"], 2);
    assert_eq!(report["device"]["writes"]["count"], 1);
    let written = std::fs::read(&image).unwrap();
    assert!(written[16 * 512..24 * 512].iter().any(|byte| *byte != 7));
    assert!(written[..16 * 512].iter().chain(&written[24 * 512..]).all(|byte| *byte == 7));
    std::fs::write(&image, vec![7; 1 << 19]).unwrap();
    assert_eq!(run(&["--yes"]).status.code(), Some(1), "too small");
}

#[test]
fn bad_input_is_refused_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let nonsense = folder.path().join("nonsense");
    std::fs::write(&nonsense, "this is no trace\n").unwrap();
    let path = nonsense.to_str().unwrap();
    for (arguments, code, says) in [
        (&["replay", path][..], 1, "not a trace in a known format"),
        (
            &["replay", "/nonexistent/trace"],
            1,
            "bcache-bench: cannot read /nonexistent/trace: No such",
        ),
        (&["replay", TRACE, "--bucket", "100k"], 2, "power of two"),
        (&["replay", TRACE, "--sample", "2"], 2, "is not a share"),
        (&["replay", TRACE, "--columns", "sector"], 2, "is no column"),
        (&["replay", TRACE, path], 1, "read together"),
        (&["size", "/nonexistent"], 1, "neither a device nor a size"),
        (&["record", "/nonexistent", "-o", "/nonexistent/file"], 1, "cannot make"),
    ] {
        let output = bench(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_helps_nobody_is_said_so() {
    // Reads once, in order.
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("once");
    let line = |at: u64| format!("{} 0 {} 256 1\n", at * 1000, at * 256);
    let lines: Vec<String> = (0..5000).map(line).collect();
    std::fs::write(&trace, lines.concat()).unwrap();
    let text = stdout(&bench(&["replay", trace.to_str().unwrap()]));
    assert!(text.starts_with("A cache does not help here"), "{text}");
}

#[test]
fn size_says_what_is_refused_and_what_it_costs() {
    let text = stdout(&bench(&["size", "512M", "--bucket", "512k,1M"]));
    assert!(text.contains("+33.3 %"), "{text}");
    assert!(text.contains("fewer than 513 buckets"), "{text}");
    let json = stdout(&bench(&["size", "1T", "--bucket", "512k", "--json"]));
    let sizes: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(sizes["buckets"][0]["nbuckets"], 1 << 21);
}

/// Ctrl-C while a recording is piped in ends the recording: what came until then is replayed.
#[test]
fn an_interrupt_ends_a_trace_that_is_being_read() {
    let mut command = Command::cargo_bin("bcache-bench").unwrap();
    command.args(["replay", "-", "--json", "--cache-size", "64M", "--bucket", "64k"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let line = |at: u64| format!("{} 0 {} 8 1\n", at * 1000, at % 1000 * 8);
    let lines: Vec<String> = (0..20_000).map(line).collect();
    stdin.write_all(lines.concat().as_bytes()).unwrap();
    // The signal is blocked once the program catches it.
    let status = format!("/proc/{}/status", child.id());
    let catches = || {
        let status = std::fs::read_to_string(&status).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(blocked.trim(), 16).unwrap() >> 1 & 1 == 1
    };
    while !catches() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    // Before the end of the trace, or the signal would end the replay.
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("ending the run")));
    drop(stdin);
    let report: Value = serde_json::from_str(&stdout(&child.wait_with_output().unwrap())).unwrap();
    assert!(report["trace"]["reads"]["requests"].as_u64().unwrap() > 0);
    assert_eq!(report["interrupted"], false);
    assert!(report["cells"][0]["runs"][0]["cache_hits"].as_u64().is_some());
}

#[test]
fn a_sample_stands_for_the_whole() {
    let whole =
        ["replay", TRACE, "--cache-size", "1G", "--bucket", "64k", "--cutoff", "0", "--json"];
    let report = |more: &[&str]| -> Value {
        serde_json::from_str(&stdout(&bench(&[&whole[..], more].concat()))).unwrap()
    };
    let (all, half) = (report(&[]), report(&["--sample", "50%"]));
    let cell = |report: &Value| report["cells"][0].clone();
    assert_eq!(cell(&half)["cache_bytes"], 1 << 30, "sizes are of the whole");
    let hit = |report: &Value| cell(report)["hit_ratio"]["mean"].as_f64().unwrap();
    assert!((hit(&all) - hit(&half)).abs() < 0.1, "{} {}", hit(&all), hit(&half));
    let ssd = |report: &Value| cell(report)["ssd_bytes"].as_f64().unwrap();
    assert!((ssd(&half) / ssd(&all) - 1.0).abs() < 0.2, "{} {}", ssd(&all), ssd(&half));
    let tiny = report(&["--sample", "1%"]);
    assert_eq!(cell(&tiny)["sample_too_small"], true);
    assert_eq!(cell(&tiny)["refused"], false);
}

/// Which writes somebody waits for decides how much stays dirty: above 40 % in use only those do.
#[test]
fn writes_are_synchronous_unless_it_is_said_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("writes");
    let line = |at: u64| format!("{} 0 {} 128 0\n", at * 1000, at * 200);
    let lines: Vec<String> = (0..4000).map(line).collect();
    std::fs::write(&trace, lines.concat()).unwrap();
    let arguments = ["--cache-size", "256M", "--bucket", "64k", "--mode", "writeback", "--json"];
    let dirty = |more: &[&str]| {
        let all = [&["replay", trace.to_str().unwrap(), "--ignore-times"], &arguments[..], more];
        let report: Value = serde_json::from_str(&stdout(&bench(&all.concat()))).unwrap();
        let stats = &report["cells"][0]["runs"][0];
        bcache_bench::num::float(stats["dirty_sectors_max"].as_u64().unwrap())
            / f64::from(256 << 11)
    };
    let (sync, not) = (dirty(&[]), dirty(&["--async-writes"]));
    assert!((0.6..0.72).contains(&sync), "{sync}");
    assert!((0.3..0.42).contains(&not), "{not}");
}
