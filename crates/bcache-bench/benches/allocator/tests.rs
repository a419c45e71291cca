//! The benches as they are met: small, and for no figures.

use std::path::Path;
use std::process::{Command, ExitCode};

use bcache_bench::record::Measure;
use bcache_bench::report::Report;
use bcache_bench::warnings::Warning;

fn run_program(program: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// This program, as cargo bench runs it: with its own argument behind all others.
fn bench(arguments: &[&str]) -> (i32, String, String) {
    run_program(&std::env::current_exe().unwrap(), &[arguments, &["--bench"]].concat())
}

/// The command that reads reports.
fn reader(arguments: &[&str]) -> (i32, String, String) {
    run_program(Path::new(env!("CARGO_BIN_EXE_bcache-bench")), arguments)
}

/// Runs all tests; those that are not named by an argument are left out, where there is one.
pub fn run() -> ExitCode {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if std::env::args().any(|argument| argument == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = false;
    for (name, test) in TESTS {
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed |= !passed;
    }
    ExitCode::from(u8::from(failed))
}

const TESTS: [(&str, fn()); 9] = [
    ("passes_of_several_threads_are_in_one_report", passes_of_several_threads_are_in_one_report),
    ("what_the_limit_ended_is_told", what_the_limit_ended_is_told),
    ("a_rate_of_a_moment_is_warned_about", a_rate_of_a_moment_is_warned_about),
    ("each_thread_has_a_stream", each_thread_has_a_stream),
    ("too_many_buckets_are_an_error", too_many_buckets_are_an_error),
    ("a_median_of_two_is_between_them", crate::bucket::tests::a_median_of_two_is_between_them),
    (
        "a_low_rate_is_kept_until_the_time_limit",
        crate::bucket::tests::a_low_rate_is_kept_until_the_time_limit,
    ),
    (
        "what_cannot_be_is_an_error_that_says_why",
        crate::engines::tests::what_cannot_be_is_an_error_that_says_why,
    ),
    (
        "one_that_fails_ends_all_at_the_same_step",
        crate::invalidate::tests::one_that_fails_ends_all_at_the_same_step,
    ),
];

/// Runs a bench with `--json`, and what reads reports on what it printed.
fn report(arguments: &[&str], plots: bool) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (json, picture) = (path("report.json"), path("picture.svg"));
    let (status, out, err) = bench(&[arguments, &["--json"]].concat());
    assert_eq!((status, err.as_str()), (0, ""), "{arguments:?}");
    std::fs::write(&json, out).unwrap();
    let (status, out, err) = reader(&["compare", &json, &json]);
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    let (status, _, err) = reader(&["plot", &json, "-o", &picture]);
    assert_eq!(status, i32::from(!plots), "{err}");
    Report::load(json.as_ref()).unwrap()
}

fn warned(report: &Report, wanted: impl Fn(&Warning) -> bool) -> bool {
    report.warnings.iter().any(wanted)
}

fn passes_of_several_threads_are_in_one_report() {
    let run = ["invalidate", "--nbuckets", "2048,4096", "--threads", "2", "--passes", "3"];
    let report = report(&run, true);
    assert_eq!(report.command, "invalidate");
    for buckets in ["2,048", "4,096"] {
        for (engine, selections) in [("allocator", 6), ("reference", 0)] {
            let run = report.run(&format!("{engine}, {buckets} buckets")).unwrap();
            let count = |measure| run.measured(measure).map_or(0, |it| it.histogram.len());
            assert_eq!(count(Measure::InvalidationPass), 6, "{engine}");
            assert_eq!(count(Measure::Rescaling), 6, "{engine}");
            assert_eq!(count(Measure::Selection), selections, "{engine}");
        }
    }
    assert_eq!(report.ratios.len(), 8);
    // The table has medians only, but of six passes they are none.
    let few = |it: &Warning| matches!(it, Warning::TooFewSamples { samples: 6, .. });
    assert!(warned(&report, few), "{:?}", report.warnings);
    let (status, out, _) = bench(&run);
    assert_eq!(status, 0);
    assert!(out.contains("warning") && out.contains("6 samples of invalidation pass"), "{out}");
}

fn what_the_limit_ended_is_told() {
    let limited = ["--passes", "1000000", "--limit", "0", "--rate", "1000", "--engine", "fast"];
    let report = report(&[&["bucket", "--nbuckets", "2048"], &limited[..]].concat(), true);
    let closed = report.run("allocator, 2,048 buckets, closed loop").unwrap();
    assert!(closed.operations > 0 && closed.figures().operations_per_second.is_some());
    let open = report.run("allocator, 2,048 buckets, 1,000 a second").unwrap();
    for measure in [Measure::BucketAllocation, Measure::Empty] {
        assert_eq!(open.measured(measure).unwrap().histogram.len(), 250);
    }
    assert!(report.ratios[0].name.contains(", one round: "), "{:?}", report.ratios);
    let limited = |it: &Warning| matches!(it, Warning::LimitReached { wanted: 1_000_000, .. });
    assert_eq!(report.warnings.iter().filter(|it| limited(it)).count(), 2);
    let few = |it: &Warning| matches!(it, Warning::TooFewSamples { samples: 250, .. });
    assert!(warned(&report, few) && warned(&report, |it| matches!(it, Warning::ShortRun { .. })));
}

fn a_rate_of_a_moment_is_warned_about() {
    let run = ["sector", "--streams", "8", "--threads", "2", "--time", "20"];
    // Rates have no latencies to draw.
    let report = report(&run, false);
    for name in ["allocator, 8 streams, 1 thread", "reference, 8 streams, 2 threads"] {
        assert!(report.run(name).unwrap().figures().operations_per_second.is_some(), "{name}");
    }
    assert!(warned(&report, |it| matches!(it, Warning::ShortRun { .. })));
    let (status, _, err) = bench(&["sector", "--time", "0"]);
    assert_eq!(status, 2);
    assert!(err.contains("--time"), "{err}");
}

fn each_thread_has_a_stream() {
    let run = ["sector", "--nbuckets", "2048", "--time", "20", "--engine", "fast"];
    for (arguments, part) in [
        (&["--streams", "1", "--threads", "4"][..], "--streams 1 is too few for --threads 4"),
        (&["--streams", "8,3", "--threads", "4"], "--streams 3 is too few for --threads 4"),
        (&["--streams", "1"], "--streams 1 is too few for --threads 2"),
    ] {
        let (status, out, err) = bench(&[&run[..], arguments].concat());
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(part) && err.lines().count() == 1, "{arguments:?}: {err}");
    }
    let report = report(&[&run[..], &["--streams", "2", "--threads", "2"]].concat(), false);
    assert!(report.run("allocator, 2 streams, 2 threads").is_some());
}

fn too_many_buckets_are_an_error() {
    for nbuckets in ["512", "8589934592", "18446744073709551615"] {
        for command in ["invalidate", "bucket", "sector"] {
            let (status, out, err) = bench(&[command, "--nbuckets", nbuckets, "--engine", "fast"]);
            assert_eq!((status, out.as_str()), (2, ""), "{command} {nbuckets}");
            assert!(err.contains("is not in 513..=4294967295"), "{err}");
        }
    }
    // More than the memory that there is.
    let bench = std::env::current_exe().unwrap();
    for engine in ["fast", "reference"] {
        let line = format!(
            "ulimit -v 2000000; exec {} --bench invalidate --nbuckets 1000000000 --threads 2 --engine {engine}",
            bench.display()
        );
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{engine}: {err}");
        assert!(err.contains("no memory for") && err.contains("1000000000 buckets"), "{err}");
    }
}
