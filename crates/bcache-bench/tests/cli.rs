//! `compare`, `plot` and what surrounds them, as a user meets them.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use bcache_bench::environment::Environment;
use bcache_bench::record::{Measure, Recorder};
use bcache_bench::report::{Report, Run, Settings, measured};
use bcache_bench::warnings::Warning;
use bcache_core::device::sysfs::Root;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

fn bench(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("bcache-bench").unwrap().args(arguments).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A report whose bucket allocations take `low` to `high` ns.
fn report(seed: u64, samples: u64, low: u64, high: u64) -> Report {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut recorder = Recorder::new(&Measure::ALL);
    for _ in 0..samples {
        recorder.record(Measure::BucketAllocation, random.random_range(low..high));
        recorder.record(Measure::DataWrite, random.random_range(50_000..90_000));
    }
    let settings = Settings::of(&json!({ "writers": 2, "seed": 1 })).unwrap();
    let environment = Environment::gather(&Root::system(), &[]);
    let mut report = Report::new("device", settings, environment);
    report.runs.push(Run {
        name: "allocator".to_owned(),
        elapsed: std::time::Duration::from_secs(10),
        operations: samples,
        pace: bcache_bench::record::pace::PaceCounts::default(),
        counters: bcache_bench::report::Counters::default(),
        slices: vec![10.0; 20],
        measures: measured(&recorder.finish()),
    });
    report
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn save(&self, name: &str, report: &Report) -> String {
        let path = self.path(name);
        std::fs::write(&path, serde_json::to_vec(report).unwrap()).unwrap();
        path
    }
}

#[test]
fn the_same_twice_is_no_change() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 100_000, 500, 1500));
    let b = files.save("b.json", &report(2, 100_000, 500, 1500));
    let (code, out, err) = bench(&["compare", &a, &b]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("No change beyond the noise."), "{out}");
    assert!(!out.contains("worse") && !out.contains("better"), "{out}");
    assert!(out.contains("bucket allocation") && out.contains("p99.99"), "{out}");
    assert!(!out.contains('\u{1b}'), "colours without a terminal: {out}");
}

#[test]
fn what_got_slower_is_told_by_the_exit_status() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 20_000, 500, 1500));
    let b = files.save("b.json", &report(2, 20_000, 1000, 3000));
    let (code, out, _) = bench(&["compare", &a, &b]);
    assert_eq!(code, 4, "{out}");
    assert!(out.contains("Worse: 4, better: 0."), "{out}");
    assert!(out.contains("too few samples to say"), "{out}");
    assert!(out.contains("x 2.0"), "{out}");
    let (code, out, _) = bench(&["compare", &b, &a]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("Worse: 0, better: 4."), "{out}");
    let (code, out, _) = bench(&["compare", "--threshold", "150%", &a, &b]);
    assert_eq!(code, 0, "{out}");
}

#[test]
fn the_comparison_is_json_on_request() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 20_000, 500, 1500));
    let b = files.save("b.json", &report(2, 20_000, 1000, 3000));
    let (code, out, _) = bench(&["compare", "--json", &a, &b]);
    assert_eq!(code, 4);
    let json: Value = serde_json::from_str(&out).unwrap();
    let first = &json["latencies"][0];
    assert_eq!(first["measure"], "bucket_allocation");
    assert_eq!(first["percentile"], "p50");
    assert_eq!(first["verdict"], "worse");
    assert!(first["a"]["low_ns"].as_u64().unwrap() <= first["a"]["value_ns"].as_u64().unwrap());
    assert_eq!(json["latencies"][4]["verdict"], "too_few_samples");
}

#[test]
fn different_settings_are_refused_and_named() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 1000, 500, 1500));
    let mut other = report(1, 1000, 500, 1500);
    other.settings = Settings::of(&json!({ "writers": 4, "seed": 1, "rate": 20_000 })).unwrap();
    let b = files.save("b.json", &other);
    let (code, out, err) = bench(&["compare", &a, &b]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("rate (- and 20000), writers (2 and 4)"), "{err}");
    assert!(err.contains("--force"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    let (code, out, _) = bench(&["compare", "--force", &a, &b]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("different settings"), "{out}");
}

#[test]
fn warnings_and_circumstances_are_carried_along() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 1000, 500, 1500));
    let mut other = report(1, 1000, 500, 1500);
    other.environment.kernel = Some("6.1.0-other".to_owned());
    other.warnings.push(Warning::Steal { share: 0.07 });
    other.runs[0].measures.pop();
    let b = files.save("b.json", &other);
    let (code, out, _) = bench(&["compare", &a, &b]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("different circumstances") && out.contains("6.1.0-other"), "{out}");
    assert!(out.contains("only in A: allocator, data write"), "{out}");
    assert!(out.contains("warning of B: the hypervisor took 7.0 %"), "{out}");
}

#[test]
fn reports_without_a_common_run_cannot_be_compared() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 1000, 500, 1500));
    let mut other = report(1, 1000, 500, 1500);
    other.runs[0].name = "reference".to_owned();
    let b = files.save("b.json", &other);
    let (code, _, err) = bench(&["compare", &a, &b]);
    assert_eq!(code, 1);
    assert!(err.contains("have no run in common"), "{err}");
}

/// What is no report, by what the message says.
fn bad_files(files: &Files) -> Vec<(String, &'static str)> {
    let good = serde_json::to_value(report(1, 100, 500, 1500)).unwrap();
    let save = |name: &str, bytes: &[u8]| {
        std::fs::write(files.path(name), bytes).unwrap();
        files.path(name)
    };
    let change = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        save(name, json.to_string().as_bytes())
    };
    let text = good.to_string();
    let not_whole = "is not a whole report";
    vec![
        (files.path("absent.json"), "cannot read"),
        (files.0.path().to_str().unwrap().to_owned(), "cannot read"),
        (save("empty.json", b""), not_whole),
        (save("binary.json", &[0xff; 64]), not_whole),
        (save("cut.json", &text.as_bytes()[..text.len() / 2]), not_whole),
        (save("other.json", b"{\"devices\":[]}"), not_whole),
        (change("newer.json", &|json| json["format"] = json!(99)), "has format 99"),
        (
            change("damaged.json", &|json| {
                json["runs"][0]["measures"][0]["histogram"] = json!("HISTFAAAAA==");
            }),
            "the histogram of bucket allocation",
        ),
        (
            change("lying.json", &|json| json["runs"][0]["measures"][1]["count"] = json!(7)),
            "it holds 100 samples instead of 7",
        ),
    ]
}

#[test]
fn bad_reports_are_refused_with_the_reason() {
    let files = Files::new();
    let good = files.save("good.json", &report(1, 100, 500, 1500));
    let picture = files.path("picture.svg");
    for (bad, part) in bad_files(&files) {
        for arguments in
            [["compare", &good, &bad], ["compare", &bad, &good], ["plot", &bad, "-opicture.svg"]]
        {
            let (code, out, err) = bench(&arguments);
            assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}");
            assert!(err.contains(part) && err.contains(&bad), "{arguments:?}: {err}");
            assert_eq!(err.lines().count(), 1, "{err}");
        }
        let (code, _, _) = bench(&["plot", &good, &bad, "-o", &picture]);
        assert_eq!(code, 1);
        assert!(!Path::new(&picture).exists());
    }
    assert!(!Path::new("picture.svg").exists());
}

#[test]
fn curves_of_several_reports_are_in_one_picture() {
    let files = Files::new();
    let a = files.save("before.json", &report(1, 20_000, 500, 1500));
    let b = files.save("after.json", &report(2, 20_000, 1000, 3000));
    let picture = PathBuf::from(files.path("picture.svg"));
    let output = picture.to_str().unwrap();
    let (code, out, err) = bench(&["plot", &a, &b, "-o", output]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    let svg = std::fs::read_to_string(&picture).unwrap();
    for text in ["before, bucket allocation", "after, data write", "99.99 %", "<svg"] {
        assert!(svg.contains(text), "{text}");
    }
    let measure = ["plot", &a, &b, "-m", "bucket-allocation", "--title", "A & B", "-o", output];
    let (code, _, err) = bench(&measure);
    assert_eq!((code, err.as_str()), (0, ""));
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(svg.contains("A &amp; B") && !svg.contains("data write"));
}

#[test]
fn what_cannot_be_drawn_or_written_is_told() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 100, 500, 1500));
    let picture = files.path("picture.svg");
    let (code, _, err) = bench(&["plot", &a, "-m", "discard", "-o", &picture]);
    assert_eq!(code, 1);
    assert!(err.contains("nothing to plot") && err.contains(&picture), "{err}");
    assert!(!Path::new(&picture).exists());
    let (code, _, err) = bench(&["plot", &a, "-o", "/no/such/folder/picture.svg"]);
    assert_eq!(code, 1);
    assert!(err.contains("cannot write to /no/such/folder/picture.svg"), "{err}");
    let (code, _, err) = bench(&["plot", &a, "-o", "/dev/full"]);
    assert_eq!(code, 1);
    assert!(err.contains("writing /dev/full failed"), "{err}");
}

#[test]
fn a_picture_never_replaces_a_report() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 100, 500, 1500));
    let b = files.save("b.json", &report(2, 100, 500, 1500));
    let before = std::fs::read(&b).unwrap();
    let (symlink, link) = (files.path("symlink.svg"), files.path("link.svg"));
    std::os::unix::fs::symlink(&b, &symlink).unwrap();
    std::fs::hard_link(&b, &link).unwrap();
    for output in [&b, &symlink, &link] {
        let (code, out, err) = bench(&["plot", &a, &b, "-o", output]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(output) && err.contains("is a report that is read"), "{err}");
        assert!(err.contains(&b) && err.lines().count() == 1, "{err}");
        assert!(std::fs::read(&b).unwrap() == before, "{output}");
    }
}

#[test]
fn nonsense_on_the_command_line_is_status_2() {
    for arguments in [
        &[][..],
        &["compare"],
        &["compare", "a.json"],
        &["compare", "a.json", "b.json", "c.json"],
        &["compare", "--threshold", "-1", "a.json", "b.json"],
        &["compare", "--threshold", "NaN", "a.json", "b.json"],
        &["plot", "-o", "a.svg"],
        &["plot", "a.json"],
        &["plot", "a.json", "-o", "a.svg", "-m", "speed"],
        &["completions", "cmd"],
        &["nonsense"],
    ] {
        let (code, out, err) = bench(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(!err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let files = Files::new();
    let a = files.save("a.json", &report(1, 1000, 500, 1500));
    let bench = assert_cmd::cargo::cargo_bin("bcache-bench");
    let line =
        format!("{} compare --json {a} {a} | true; echo \"${{PIPESTATUS[0]}}\"", bench.display());
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
}

#[test]
fn completions_and_version() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = bench(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(out.contains("bcache-bench") && out.contains("compare"), "{shell}");
    }
    let (code, out, _) = bench(&["--version"]);
    assert_eq!((code, out.trim()), (0, concat!("bcache-bench ", env!("CARGO_PKG_VERSION"))));
}
