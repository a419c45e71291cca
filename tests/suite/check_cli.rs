//! `bcachectl check` as a user and as a script see it. What it finds is tested with the check
//! itself; here: what it says first, its statuses, its JSON, and that it only reads.

use bcache_tests::fixture::Fixture;
use bcache_tests::image::write_at;
use bcache_tests::{Scratch, tool};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::process::Output;

fn check<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    tool::bcachectl().unwrap().arg("check").args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn devices(fixture: &Fixture) -> impl Iterator<Item = &OsStr> {
    [&fixture.cache].into_iter().chain(&fixture.backing).map(|path| path.as_os_str())
}

/// Bytes of a bucket, and the first bucket with a use.
fn bucket_for(fixture: &Fixture, role: &str) -> u64 {
    let shown = tool::bcachectl()
        .unwrap()
        .args(["show", "--json", "--prios"])
        .arg(&fixture.cache)
        .output()
        .unwrap();
    let device = json(&shown)["devices"][0].clone();
    let bytes = tool::number(&device, "/superblock/bucket_size_sectors").unwrap() * 512;
    let rows = device["prios"].as_array().unwrap().clone();
    let row = rows.iter().find(|row| row["use"] == role).unwrap();
    tool::number(row, "/bucket").unwrap() * bytes
}

#[test]
fn images_of_stock_kernels_are_clean() {
    for name in Fixture::names().unwrap() {
        let fixture = Fixture::unpack(&name).unwrap();
        let before: Vec<Vec<u8>> = devices(&fixture).map(|path| fs::read(path).unwrap()).collect();
        let verify = [OsStr::new("--verify-clean")];
        let output = check(devices(&fixture).chain(verify));
        assert_eq!(code(&output), 0, "{name}: {}{}", text(&output), errors(&output));
        let words = text(&output);
        let first = words.lines().next().unwrap();
        assert!(first.contains("the kernel would register it; no data is at risk"), "{first}");
        assert!(words.contains("Nothing was found"), "{name}: {words}");
        let report = json(&check(devices(&fixture).chain([OsStr::new("--json")])));
        assert_eq!(report["registration"], "accepted", "{name}");
        assert_eq!(report["registers"], true, "{name}");
        assert_eq!(report["data_at_risk"], false, "{name}");
        assert_eq!(report["incomplete"], false, "{name}");
        assert_eq!(report["findings"].as_array().unwrap().len(), 0, "{name}");
        assert_eq!(report["counts"].as_object().unwrap().len(), 0, "{name}");
        assert_eq!(report["exit_status"], 0, "{name}");
        let dirty = report["dirty"].as_array().unwrap();
        assert_eq!(dirty.is_empty(), name.starts_with("clean"), "{name}: {dirty:?}");
        for volume in dirty {
            assert!(volume["slot"].is_u64() && volume["dirty_sectors"].as_u64().unwrap() > 0);
            assert!(volume["uuid"].is_string() && volume["flash_only"].is_boolean());
        }
        let after: Vec<Vec<u8>> = devices(&fixture).map(|path| fs::read(path).unwrap()).collect();
        assert!(before == after, "{name}: a device was written");
    }
}

#[test]
fn damage_is_told_first_and_in_full() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    write_at(&fixture.cache, bucket_for(&fixture, "prios") + 100, &[0xff; 8]).unwrap();
    let output = check([&fixture.cache]);
    assert_eq!(code(&output), 4, "{}", text(&output));
    let words = text(&output);
    let first = words.lines().next().unwrap();
    assert!(first.contains("the kernel would NOT register it"), "{first}");
    assert!(first.contains("data is AT RISK"), "{first}");
    assert!(words.contains("302 prio-damaged"), "{words}");
    let report = json(&check([OsStr::new("--json"), fixture.cache.as_os_str()]));
    assert_eq!(report["registers"], false);
    assert_eq!(report["exit_status"], 4);
    assert!(report["registration"]["refused"]["reason"].is_string(), "{report}");
    let finding = &report["findings"][0];
    assert_eq!(finding["code"], "prio-damaged", "{finding}");
    assert_eq!(finding["number"], 302);
    for key in ["severity", "place", "expected", "found", "advice"] {
        assert!(finding[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {finding}");
    }
    assert_eq!(report["counts"]["prio-damaged"], 1, "{}", report["counts"]);
}

#[test]
fn a_backing_device_that_does_not_belong_is_found() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let other = Fixture::unpack("dirty-61").unwrap();
    let output = check([&fixture.cache, &other.backing[0]]);
    assert_eq!(code(&output), 4, "{}", text(&output));
    assert!(text(&output).contains("backing-other-set"), "{}", text(&output));
}

#[test]
fn verify_clean_compares_the_data() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    // Somewhere in the backing device's data that the cache has, too.
    let keys = tool::bcachectl()
        .unwrap()
        .args(["show", "--keys", "--btree", "--format", "json"])
        .arg(&fixture.cache)
        .output()
        .unwrap();
    let device = json(&keys)["devices"][0].clone();
    let keys = device["keys"].as_array().unwrap().clone();
    let key = keys
        .iter()
        .find(|key| key["level"] == 0 && key["state"] == "valid" && key["dirty"] == false)
        .unwrap();
    let sector = tool::number(key, "/start").unwrap();
    write_at(&fixture.backing[0], sector * 512, b"not what was cached").unwrap();
    // Without the option nobody looks.
    assert_eq!(code(&check(devices(&fixture))), 0);
    let output = check(devices(&fixture).chain([OsStr::new("--verify-clean")]));
    assert_eq!(code(&output), 4, "{}", text(&output));
    assert!(text(&output).contains("clean-mismatch"), "{}", text(&output));
}

#[test]
fn statuses_are_those_of_fsck() {
    // What cannot be checked.
    let scratch = Scratch::new().unwrap();
    let blank = scratch.sparse("blank", 1 << 20).unwrap();
    let fixture = Fixture::unpack("clean-612").unwrap();
    for path in [&blank, &scratch.path("missing"), &fixture.backing[0]] {
        let output = check([path]);
        assert_eq!(code(&output), 8, "{}: {}", path.display(), errors(&output));
        assert_eq!(errors(&output).lines().count(), 1, "{}", errors(&output));
    }
    // What makes no sense.
    for arguments in [vec![], vec!["--no-such-option", "x"], vec!["--verify-clean", "x"]] {
        let output = check(&arguments);
        assert_eq!(code(&output), 16, "{arguments:?}: {}", errors(&output));
    }
    assert_eq!(code(&check(["--help"])), 0);
    // Elsewhere the status is clap's.
    let output = tool::run(["show", "--no-such-option"]).unwrap();
    assert_eq!(code(&output), 2);
}
