//! `--export` of every command that reports something: each file holds what it is named after, and an
//! input is never written over.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt as _;
use serde_json::Value;

const TRACE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/traces/dev-server.iolog.zst");

fn bench(arguments: &[&str]) -> Output {
    Command::cargo_bin("bcache-bench").unwrap().args(arguments).output().unwrap()
}

/// Runs a command with `--export` to each of `formats`, and looks at what is there then.
fn exports(arguments: &[&str], formats: &[&str], dir: &Path) {
    let path = |format: &str| dir.join(format!("out.{format}"));
    let mut line: Vec<String> = arguments.iter().map(|it| (*it).to_owned()).collect();
    for format in formats {
        line.extend(["--export".to_owned(), format!("{format}={}", path(format).display())]);
    }
    let output = bench(&line.iter().map(String::as_str).collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    assert!(!output.stdout.is_empty(), "{arguments:?} printed nothing");
    let read = |format: &str| fs::read_to_string(path(format)).unwrap();
    for format in formats {
        match *format {
            "json" => assert!(serde_json::from_str::<Value>(&read(format)).unwrap().is_object()),
            "csv" => {
                let text = read(format);
                let fields: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
                assert!(fields.len() > 1 && fields.iter().all(|it| *it == fields[0]), "{text}");
            }
            "markdown" => {
                let text = read(format);
                assert!(text.contains("\n| --") || text.contains("|---|"), "{text}");
            }
            "svg" => assert!(read(format).trim_end().ends_with("</svg>")),
            _ => assert!(fs::read_dir(path(format)).unwrap().count() > 0),
        }
    }
}

#[test]
fn every_report_in_every_format_that_there_is_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let run = ["device", "--size", "96M", "--bucket", "64k", "--amount", "5M", "--no-baseline"];
    let image = path("cache.img");
    let device = [&run[..], &["--image", &image]].concat();
    exports(&device, &["json", "csv", "markdown", "svg", "hgrm"], dir.path());
    let (a, b) = (path("a.json"), path("b.json"));
    for copy in [&a, &b] {
        fs::copy(path("out.json"), copy).unwrap();
    }
    exports(&["compare", &a, &b], &["json", "csv", "markdown"], dir.path());
    exports(&["size", "10G", "--bucket", "512k,1M"], &["json", "csv", "markdown"], dir.path());
    let replay = ["replay", TRACE, "--cache-size", "1G", "--bucket", "512k", "--policy", "lru"];
    exports(&replay, &["json", "csv", "markdown", "svg"], dir.path());

    // A reader that has seen enough does not keep the file from being written.
    let piped = path("piped.md");
    let program = assert_cmd::cargo::cargo_bin("bcache-bench");
    let line = format!("{} compare {a} {b} --export markdown={piped} | true", program.display());
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    assert!(fs::read_to_string(&piped).unwrap().starts_with("| figure |"));

    // What there is not is a usage error, and an input is no place for a report.
    let svg = format!("svg={}", path("size.svg"));
    let output = bench(&["size", "10G", "--export", &svg]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("cannot be written as svg, only as json, csv, markdown"), "{error}");
    let before = fs::read(&a).unwrap();
    let output = bench(&["compare", &a, &b, "--export", &format!("csv={a}")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(&a).unwrap(), before);
    assert_eq!(bench(&["size", "10G", "--export", "png=x"]).status.code(), Some(2));
}
