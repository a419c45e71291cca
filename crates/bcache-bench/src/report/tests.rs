use super::*;
use crate::warnings::Warning;
use serde_json::json;

fn save(value: &Value) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    std::fs::write(&path, value.to_string()).unwrap();
    (dir, path)
}

fn sample() -> Report {
    let mut report = sample::report(1000, 1.0);
    report.warnings.push(Warning::DebugBuild);
    report.ratios.push(Ratio {
        name: "data bandwidth".to_owned(),
        value: 95.0,
        baseline: 100.0,
        unit: "bytes/s".to_owned(),
        turns: None,
    });
    report
}

#[test]
fn reports_survive_the_file() {
    let report = sample();
    let json = serde_json::to_value(&report).unwrap();
    let (_dir, path) = save(&json);
    let loaded = Report::load(&path).unwrap();
    assert_eq!(serde_json::to_value(&loaded).unwrap(), json);
    assert_eq!(loaded.runs[0].measures[0].histogram, report.runs[0].measures[0].histogram);
    assert_eq!(loaded.warnings, report.warnings);
    assert_eq!(loaded.environment, report.environment);
    assert_eq!(loaded.ratios[0].ratio(), Some(0.95));
}

#[test]
fn a_report_without_slices_is_one_of_an_older_program() {
    let mut json = serde_json::to_value(sample()).unwrap();
    assert_eq!(json["runs"][0]["slices"].as_array().unwrap().len(), 20);
    json["runs"][0].as_object_mut().unwrap().remove("slices");
    let (_dir, path) = save(&json);
    assert!(Report::load(&path).unwrap().runs[0].slices.is_empty());
}

#[test]
fn the_json_has_the_figures_that_scripts_want() {
    let json = serde_json::to_value(sample()).unwrap();
    let run = &json["runs"][0];
    assert_eq!(run["elapsed_ns"], json!(10_000_000_000u64));
    assert_eq!(run["figures"]["operations_per_second"], json!(100.0));
    assert_eq!(run["figures"]["written_bytes_per_second"], json!(409_600.0));
    let hits: f64 = run["figures"]["hit_ratio"].as_f64().unwrap();
    assert!((hits - 250.0 / 333.0).abs() < 1e-9);
    let amplification: f64 = run["figures"]["write_amplification"].as_f64().unwrap();
    assert!((amplification - 4300.0 / 4096.0).abs() < 1e-9);
    let measure = &run["measures"][0];
    assert_eq!(measure["measure"], "bucket_allocation");
    for key in [
        "count",
        "min_ns",
        "mean_ns",
        "p50_ns",
        "p90_ns",
        "p99_ns",
        "p99.9_ns",
        "p99.99_ns",
        "max_ns",
    ] {
        assert!(measure[key].as_f64().is_some_and(|value| value > 0.0), "{key}");
    }
}

#[test]
fn what_is_no_report_is_refused() {
    let good = serde_json::to_value(sample()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        let (_dir, path) = save(&json);
        Report::load(&path).unwrap_err()
    };
    assert!(matches!(with(&|json| json["format"] = json!(2)), LoadError::Format { found: 2, .. }));
    let changes: [&dyn Fn(&mut Value); 6] = [
        &|json| *json = json!([]),
        &|json| *json = json!({}),
        &|json| json["runs"] = json!(1),
        &|json| json["runs"][0]["measures"][0]["histogram"] = json!("AAAA"),
        &|json| json["runs"][0]["measures"][0]["count"] = json!(999),
        &|json| json["runs"][0]["measures"][0]["measure"] = json!("speed"),
    ];
    for change in changes {
        assert!(matches!(with(change), LoadError::NotAReport { .. }));
    }
    let absent = Report::load(Path::new("/nowhere/report.json")).unwrap_err();
    assert!(matches!(absent, LoadError::Read { .. }));
}

#[test]
fn settings_that_differ_are_named() {
    let of = |value: Value| Settings::of(&value).unwrap();
    let a = of(json!({ "seed": 1, "rate": null, "writers": 2 }));
    let b = of(json!({ "seed": 2, "writers": 2, "policy": "lru" }));
    assert_eq!(a.differences(&b), ["policy", "seed"]);
    assert_eq!(a.differences(&a), [""; 0]);
    assert_eq!(
        (b.text("policy"), a.text("rate"), a.text("seed")),
        ("lru".into(), "-".into(), "1".into())
    );
    assert!(Settings::of(&1).is_err());
}

#[test]
fn a_run_without_counts_has_no_figures() {
    let mut run = sample::run("empty", 0, 1.0);
    run.counters = Counters::default();
    assert_eq!(run.figures(), Figures::default());
}
