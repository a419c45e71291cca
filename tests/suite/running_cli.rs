//! `bcachectl status` and `settings` on trees that were recorded from stock kernels.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bcache_tests::{binary, workspace_root};
use serde_json::Value;
use tempfile::TempDir;

fn recorded(name: &str) -> PathBuf {
    workspace_root().join("tests/fixtures/running").join(name)
}

/// What `status` prints of a recorded tree, and its exit status.
fn status(name: &str, options: &[&str]) -> (String, i32) {
    let mut command = Command::new(binary("bcachectl").unwrap());
    let output =
        command.arg("status").args(options).arg("--recorded").arg(recorded(name)).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (text, output.status.code().unwrap())
}

fn json(name: &str) -> (Value, i32) {
    let (text, code) = status(name, &["--json", "--why"]);
    (serde_json::from_str(&text).unwrap(), code)
}

#[test]
fn dirty_data_is_told_on_every_kernel() {
    // 3.0M and 2.0M in the trees.
    for (kernel, dirty_mib) in [("6.1", 3), ("6.12", 2)] {
        let name = format!("dirty-{kernel}.sysfs");
        let (report, code) = json(&name);
        assert_eq!(code, 0, "{report}");
        let backing = &report["sets"][0]["backing"][0];
        assert_eq!(backing["state"], "attached-dirty");
        assert_eq!(backing["cache_mode"], "writeback");
        assert_eq!(backing["dirty_bytes"]["low"], dirty_mib << 20);
        assert_eq!(backing["clean_in"]["when"], "never");
        assert_eq!(report["findings"][0]["code"], "writeback-stopped");
        let (text, _) = status(&name, &[]);
        assert!(text.contains("bcache0 on vda: attached-dirty, writeback"), "{text}");
        assert!(text.contains("bcachectl set vda writeback_running=1"), "{text}");
    }
}

#[test]
fn what_goes_past_the_cache_is_told() {
    let (text, _) = status("dirty-6.12.sysfs", &["--why"]);
    assert!(text.contains("streams, once they are longer than about 4 MiB"), "{text}");
    let (text, _) = status("cache-lost-6.12.sysfs", &["--why"]);
    assert!(text.contains("everything: it has no cache"), "{text}");
}

#[test]
fn a_lost_cache_is_an_error_with_the_way_out() {
    let (report, code) = json("cache-lost-6.12.sysfs");
    assert_eq!(code, 4, "{report}");
    let finding = &report["findings"][0];
    assert_eq!((&finding["code"], &finding["severity"]), (&"cache-lost".into(), &"danger".into()));
    let (text, code) = status("cache-lost-6.12.sysfs", &[]);
    assert_eq!(code, 4);
    for step in ["do not reboot", "unmount /dev/bcache0", "bcachectl run vda"] {
        assert!(text.contains(step), "no {step:?}: {text}");
    }
    // Asked about another device, there is nothing to say of this one.
    let (_, code) = status("cache-lost-6.12.sysfs", &["vda"]);
    assert_eq!(code, 4);
}

#[test]
fn metrics_are_as_prometheus_reads_them() {
    let (text, _) = status("dirty-6.12.sysfs", &["--prometheus"]);
    let mut typed = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            assert!(typed.insert(name.to_owned()), "{name} is declared twice");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(typed.contains(name), "{line} comes before its type");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        }
    }
    for metric in [
        "node_bcache_dirty_data_bytes{",
        "node_bcache_cache_available_percent{",
        "bcache_backing_state{device=\"vda\",state=\"attached-dirty\"} 1",
    ] {
        assert!(text.contains(metric), "no {metric}: {text}");
    }
}

#[test]
fn top_prints_a_look_where_there_is_no_terminal() {
    let top = |options: &[&str]| {
        let mut command = Command::new(binary("bcachectl").unwrap());
        command.arg("top").args(options).arg("--recorded").arg(recorded("dirty-6.12.sysfs"));
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), output.status.code())
    };
    let (lines, error, code) = top(&["--once"]);
    assert_eq!((error.as_str(), code), ("", Some(0)));
    assert!(
        lines.starts_with("warning: vda has dirty data, and writeback is switched off"),
        "{lines}"
    );
    let row = lines.lines().find(|line| line.starts_with("bcache0 ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    // A tree of one moment has no rates.
    assert_eq!(
        cells,
        ["bcache0", "attached-dirty", "-", "-", "-", "-", "-", "2.0M", "0"],
        "{lines}"
    );
    let (lines, _, code) = top(&["--batch", "--count", "2", "--interval", "1"]);
    assert_eq!(code, Some(0));
    assert_eq!(lines.matches("DEVICE").count(), 2, "{lines}");
    let row = lines.lines().rfind(|line| line.starts_with("bcache0 ")).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some("0"), "{lines}");
    let (lines, error, code) = top(&[]);
    assert_eq!((lines.as_str(), code), ("", Some(1)));
    assert!(error.contains("no terminal; --batch prints lines"), "{error}");
}

/// A recorded tree in a folder, in which reading `file` never ends.
fn tree_that_hangs(file: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(recorded("dirty-6.12.sysfs")).unwrap();
    let root = bcache_core::running::recorded::unpack(&text, folder.path()).unwrap();
    let path = root.sys(file);
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    folder
}

/// The command over a folder; its output, errors and exit status.
fn over(folder: &TempDir, arguments: &[&str]) -> (String, String, Option<i32>) {
    let mut command = Command::new(binary("bcachectl").unwrap());
    let output = command.args(arguments).arg("--recorded").arg(folder.path()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

/// As while the kernel holds bcache's lock.
#[test]
fn what_does_not_answer_is_named_and_the_rest_is_shown() {
    let folder = tree_that_hangs("class/block/vda/bcache/dirty_data");
    let lock = "vda does not answer for 1 s: the kernel holds bcache's lock";
    let (text, error, code) = over(&folder, &["status"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(lock) && error.lines().count() == 1, "{error}");
    assert!(text.contains("99 % available"), "{text}");
    assert!(text.contains("bcache0 on vda: does not answer"), "{text}");
    assert!(!text.contains("do not fit together"), "{text}");
    let (json, _, code) = over(&folder, &["status", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["not_answering"][0]["device"], code), (&"vda".into(), Some(1)));
    let (metrics, error, code) = over(&folder, &["status", "--prometheus"]);
    assert!(metrics.contains("node_bcache_cache_available_percent{"), "{metrics}");
    assert!(!metrics.contains("node_bcache_dirty_data_bytes"), "{metrics}");
    assert!(error.contains(lock) && code == Some(1), "{error}");
    let (lines, error, code) = over(&folder, &["top", "--once"]);
    assert!(error.contains(lock) && code == Some(1), "{error}");
    assert!(lines.lines().any(|line| line.starts_with("bcache0 ")), "{lines}");

    let folder = tree_that_hangs("class/block/vda/bcache/cache/congested");
    let (text, error, code) = over(&folder, &["status"]);
    assert!(error.contains("the set 19df93f1-") && code == Some(1), "{error}");
    assert!(text.contains(": does not answer\n"), "{text}");
    assert!(text.contains("bcache0 on vda: attached-dirty"), "{text}");
}

#[test]
fn an_interrupt_ends_the_wait() {
    use nix::sys::signal::{Signal, kill};
    let folder = tree_that_hangs("class/block/vda/bcache/dirty_data");
    for arguments in [&["status", "--timeout", "1h"][..], &["top", "--batch"]] {
        let mut child = Command::new(binary("bcachectl").unwrap())
            .args(arguments)
            .arg("--recorded")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Its helper is at it, then.
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "{arguments:?}");
        let helpers = helpers_of(child.id());
        assert_eq!(helpers.len(), 1, "{arguments:?}");
        let begun = Instant::now();
        let pid = i32::try_from(child.id()).unwrap();
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT).unwrap();
        child.wait().unwrap();
        // Less than the hour, and than the rest of a look.
        assert!(begun.elapsed() < Duration::from_secs(20), "{arguments:?}");
        let gone = |pid: &u32| !std::path::Path::new(&format!("/proc/{pid}/exe")).exists();
        while !helpers.iter().all(gone) {
            assert!(begun.elapsed() < Duration::from_secs(60), "a helper is left");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The processes that `parent` has started.
fn helpers_of(parent: u32) -> Vec<u32> {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let all = std::fs::read_to_string(children).unwrap();
    all.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The same tree with the sets and devices of `count` machines.
fn many(count: u32) -> String {
    let one = std::fs::read_to_string(recorded("dirty-6.12.sysfs")).unwrap();
    let set = one.split("sys/fs/bcache/").nth(1).unwrap().get(..36).unwrap().to_owned();
    let mut all = String::new();
    for index in 0..count {
        let uuid = format!("{index:08x}{}", set.get(8..).unwrap());
        let tree = one
            .replace(&set, &uuid)
            .replace("59d7e240", &format!("{index:08x}"))
            .replace("vda", &format!("vda{index}"))
            .replace("vdb", &format!("vdb{index}"))
            .replace("bcache0", &format!("bcache{index}"));
        all.push_str(&tree);
    }
    all
}

#[test]
fn a_hundred_sets_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("many");
    std::fs::write(&file, many(100)).unwrap();
    let mut command = Command::new(binary("bcachectl").unwrap());
    let output = command.args(["status", "--json", "--recorded"]).arg(&file).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sets = report["sets"].as_array().unwrap();
    assert_eq!(sets.len(), 100);
    assert!(sets.iter().all(|set| set["backing"].as_array().unwrap().len() == 1), "{report}");
}

#[test]
fn a_file_of_settings_is_checked_before_anything_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings");
    let apply = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(binary("bcachectl").unwrap());
        let output = command.args(["settings", "apply", "--dry-run"]).arg(&file).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // No device of that UUID is registered: passed over.
    let uuid = "11111111-2222-4333-8444-555555555555";
    let fine = format!("version = 1\n[backing.\"{uuid}\"]\nwriteback_percent = 20\n");
    assert_eq!(apply(&fine).0, Some(0));
    for (text, word) in [
        ("version = 2\n", "version 2"),
        ("version = 1\nother = 5\n", "unknown field"),
        ("version = 1\n[set.nonsense]\n", "UUID"),
        ("version = \n", "settings"),
    ] {
        let (code, error) = apply(text);
        assert_eq!(code, Some(1), "{text}: {error}");
        assert!(error.contains(word), "{text}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
}
