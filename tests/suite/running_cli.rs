//! `bcachectl status` and `settings` on trees that were recorded from stock kernels.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bcache_tests::need::unmet;
use bcache_tests::{LoopDevice, Need, binary, tool, workspace_root};
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
    hang(&root.sys(file));
    folder
}

/// Lets reading a file never end.
fn hang(path: &Path) {
    std::fs::remove_file(path).unwrap();
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
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

/// `bcache`, which has no option for a recorded tree: it runs where the tree is mounted on /sys.
fn old_bcache(folder: &TempDir, arguments: &[&str]) -> Command {
    let name = folder.path().join("bcache");
    if !name.exists() {
        std::os::unix::fs::symlink(binary("bcachectl").unwrap(), &name).unwrap();
    }
    let mut command = tool::with_own_mounts("mount --bind \"$0\" /sys; exec \"$@\"");
    command.arg(folder.path().join("sys")).arg(name).args(arguments);
    command
}

/// A tree in which reading `file` of the backing device never ends. Its devices are loop devices, with
/// superblocks of its set.
fn old_bcache_tree(file: &str, change: impl Fn(String) -> String) -> (TempDir, [LoopDevice; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(recorded("dirty-6.12.sysfs")).unwrap();
    let set = &text.split("sys/fs/bcache/").nth(1).unwrap()[..36];
    let loops = [("--bdev", 64 << 20), ("--cache", 300 << 20)].map(|(kind, size)| {
        let image = folder.path().join(kind);
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        tool::make([kind, image.to_str().unwrap(), "--cset-uuid", set]).unwrap();
        LoopDevice::attach(&image, 512).unwrap()
    });
    let mut text = change(text);
    for (device, name) in loops.iter().zip(["vda", "vdb"]) {
        text = text.replace(name, device.path().file_name().unwrap().to_str().unwrap());
    }
    let root = bcache_core::running::recorded::unpack(&text, folder.path()).unwrap();
    std::fs::create_dir_all(root.sys("dev/block")).unwrap();
    for device in &loops {
        let directory = root.sys("class/block").join(device.path().file_name().unwrap());
        let number = std::fs::metadata(device.path()).unwrap().rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let link = root.sys("dev/block").join(format!("{major}:{minor}"));
        std::os::unix::fs::symlink(std::fs::canonicalize(directory).unwrap(), link).unwrap();
    }
    hang(&root.sys("class/block").join(loops[0].path().file_name().unwrap()).join(file));
    (folder, loops)
}

#[test]
fn the_old_name_bcache_says_what_does_not_answer() {
    if unmet(&[Need::Root, Need::LoopDevices]).is_some() {
        return;
    }
    let (folder, [backing, cache]) = old_bcache_tree("bcache/dirty_data", |text| text);
    let run = |arguments: &[&str]| {
        let output = old_bcache(&folder, arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), output.status.code())
    };
    let (backing, cache) = (backing.path().display(), cache.path().display());
    let (table, error, code) = run(&["show"]);
    assert!(table.contains(&format!("{cache}\t0 (cache)\tactive ")), "{table}{error}");
    let row = format!("{backing}\t1 (data)\tunknown         \tbcache0         \t{cache}\n");
    assert!(table.contains(&row), "{table}{error}");
    let lock = format!("{backing}: the kernel does not say how it runs: it holds bcache's lock");
    assert!(error.starts_with(&lock) && code == Some(1), "{error}");
    // It asks for names alone.
    let tree = format!(".\n{cache}\n└─{backing} bcache0\n");
    assert_eq!(run(&["tree"]), (tree, String::new(), Some(0)));
}

#[test]
fn the_old_name_bcache_attaches_once_the_kernel_answers() {
    if unmet(&[Need::Root, Need::LoopDevices]).is_some() {
        return;
    }
    let alone = |text: String| {
        let lines = text.lines().filter(|line| !line.contains("/bcache/cache -> "));
        lines.map(|line| line.replace("state\tdirty", "state\tno cache") + "\n").collect()
    };
    let (folder, [backing, _cache]) = old_bcache_tree("bcache/label", alone);
    let directory = folder.path().join("sys/class/block").join(backing.path().file_name().unwrap());
    let attach = directory.join("bcache/attach");
    std::fs::write(&attach, "").unwrap();
    // As the kernel has it: it can only be written.
    std::fs::set_permissions(&attach, Permissions::from_mode(0o200)).unwrap();
    let set = "11111111-2222-4333-8444-555555555555";
    let mut command = old_bcache(&folder, &["attach", set, backing.path().to_str().unwrap()]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("bcache: waiting for the kernel, which does not answer"), "{line}");
    assert_eq!(std::fs::read_to_string(&attach).unwrap(), "");
    // Whoever opens the other end lets the reader go on.
    std::fs::write(directory.join("bcache/label"), "late\n").unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!((child.wait().unwrap().code(), rest.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read_to_string(&attach).unwrap(), format!("{set}\n"));
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
        let begun = Instant::now();
        let helpers = loop {
            let helpers = helpers_of(child.id());
            if !helpers.is_empty() {
                break helpers;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{arguments:?}: no helper");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(helpers.len(), 1, "{arguments:?}");
        // It is at it, then.
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "{arguments:?}");
        let begun = Instant::now();
        let pid = i32::try_from(child.id()).unwrap();
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT).unwrap();
        child.wait().unwrap();
        // Less than the hour, and than the rest of a look.
        assert!(begun.elapsed() < Duration::from_secs(20), "{arguments:?}");
        let gone = |pid: &u32| !Path::new(&format!("/proc/{pid}/exe")).exists();
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
