//! What `make install` puts where, and completions for the shells.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{bcachectl, stderr};
use tempfile::TempDir;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// What is installed below `root` in the folder: the Makefile's own recipe, with programs that are built
/// already. Cargo is left out, and `bcachectl` stands in for `bcache-bench`, which has the same
/// subcommand for completions.
fn installed(prefix: &str) -> TempDir {
    let top = top();
    let tree = tempfile::tempdir().unwrap();
    let release = tree.path().join("target/release");
    fs::create_dir_all(&release).unwrap();
    for name in ["bcachectl", "bcache-bench"] {
        let program = assert_cmd::cargo::cargo_bin("bcachectl");
        std::os::unix::fs::symlink(program, release.join(name)).unwrap();
    }
    for folder in ["man", "packaging"] {
        std::os::unix::fs::symlink(top.join(folder), tree.path().join(folder)).unwrap();
    }
    let root = tree.path().join("root");
    let output = Command::new("make")
        .arg("--file")
        .arg(top.join("Makefile"))
        .args(["install", "CARGO=true", &format!("PREFIX={prefix}")])
        .arg(format!("DESTDIR={}", root.display()))
        .current_dir(tree.path())
        // Of a make that runs the tests.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    tree
}

#[test]
fn make_install_honours_prefix_and_destdir() {
    let (top, tree) = (top(), installed("/opt/bcache"));
    let root = tree.path().join("root");
    // Nothing is outside of both.
    let entries = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    assert_eq!(entries(&root), ["opt"]);
    let prefix = root.join("opt/bcache");
    for name in ["bcachectl", "bcache-bench", "make-bcache", "bcache-super-show", "bcache"] {
        let program = fs::metadata(prefix.join("sbin").join(name)).unwrap();
        assert_eq!(program.permissions().mode() & 0o777, 0o755, "{name}");
        for completions in [
            format!("bash-completion/completions/{name}"),
            format!("zsh/site-functions/_{name}"),
            format!("fish/vendor_completions.d/{name}.fish"),
        ] {
            let script = fs::read(prefix.join("share").join(&completions)).unwrap();
            assert!(!script.is_empty(), "{completions}");
        }
    }
    let pages: usize =
        ["man7", "man8"].iter().map(|it| entries(&prefix.join("share/man").join(it)).len()).sum();
    assert_eq!(pages, entries(&top.join("man")).len());
    for page in [
        "man8/bcachectl-make.8",
        "man8/make-bcache.8",
        "man7/bcache-tools-compat.7",
        "man7/bcachectl-recovery.7",
    ] {
        assert!(prefix.join("share/man").join(page).is_file(), "{page}");
    }
    // The helpers of udev's rules are links that lead to the program, and the rules name them.
    let rules = fs::read_to_string(prefix.join("lib/udev/rules.d/69-bcache.rules")).unwrap();
    for name in ["lib/udev/bcache-register", "lib/udev/bcache-export-cached", "sbin/bcachectl"] {
        assert!(rules.contains(&format!("/opt/bcache/{name} ")), "{rules}");
    }
    assert!(!rules.contains("@prefix@") && !rules.contains("@udevdir@"), "{rules}");
    let unit = prefix.join("lib/systemd/system/bcachectl-settings@.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains("ExecStart=/opt/bcache/sbin/bcachectl settings apply"), "{unit}");
    for name in ["probe-bcache", "bcache-register", "bcache-export-cached"] {
        let helper = prefix.join("lib/udev").join(name);
        assert_eq!(fs::read_link(&helper).unwrap(), Path::new("../../sbin/bcachectl"));
        assert!(helper.is_file(), "{name}");
    }
    for (hook, mode) in [
        ("share/initramfs-tools/hooks/bcache", 0o755),
        ("lib/dracut/modules.d/90bcache/module-setup.sh", 0o755),
        ("lib/initcpio/install/bcache", 0o644),
    ] {
        let path = prefix.join(hook);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{hook}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("@prefix@"), "{hook}: {text}");
        let read = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(read.status.success(), "{}", stderr(&read));
    }
}

/// What mkinitcpio offers to a hook, for the tree `$1` instead of the machine. As there, a file that is
/// missing is an error.
const MKINITCPIO: &str = r#"
root=$1
add_module() { echo "module $1"; }
add_binary() { [[ -x $root$1 ]] || { echo "no program $1" >&2; exit 1; }; echo "file $1"; }
add_file() { [[ -f $root$1 || -f $1 ]] || { echo "no file $1" >&2; exit 1; }; echo "file $1"; }
set -euo pipefail
. "$root/usr/lib/initcpio/install/bcache"
build
help >&2
"#;

/// What mkinitcpio's hook puts into an image is installed, and is all that the rules call there.
#[test]
fn the_hook_of_mkinitcpio_finds_what_it_names() {
    let tree = installed("/usr");
    let root = tree.path().join("root");
    let run = || Command::new("bash").args(["-c", MKINITCPIO, "bash"]).arg(&root).output().unwrap();
    let output = run();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("Needs the hook \"udev\""), "{}", stderr(&output));
    let added = String::from_utf8(output.stdout).unwrap();
    let added: Vec<&str> = added.lines().collect();
    assert!(added.contains(&"module bcache"), "{added:?}");
    let rules = "/usr/lib/udev/rules.d/69-bcache.rules";
    assert!(added.contains(&format!("file {rules}").as_str()), "{added:?}");
    let rules = fs::read_to_string(root.join(&rules[1..])).unwrap();
    // Settings are applied once the root file system is there, which has them.
    let called: Vec<&str> = rules
        .split('"')
        .filter_map(|value| value.split(' ').next().filter(|it| it.starts_with("/usr/")))
        .filter(|program| *program != "/usr/sbin/bcachectl")
        .collect();
    assert_eq!(called.len(), 2, "{called:?}");
    for program in called {
        assert!(added.contains(&format!("file {program}").as_str()), "{program}: {added:?}");
        fs::remove_file(root.join(&program[1..])).unwrap();
        assert!(!run().status.success(), "{program} is missing");
        std::os::unix::fs::symlink("../../sbin/bcachectl", root.join(&program[1..])).unwrap();
    }
}

/// An installed link is the command of its name.
#[test]
fn links_are_the_old_commands() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("bcache-super-show");
    std::os::unix::fs::symlink(assert_cmd::cargo::cargo_bin("bcachectl"), &link).unwrap();
    let output = Command::new(&link).output().unwrap();
    assert_eq!(stderr(&output), "Usage: bcache-super-show [-f] <device>\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn old_names_have_completions() {
    for (shell, line) in [("bash", "complete -F _make_bcache"), ("fish", "complete -c make-bcache")]
    {
        let output =
            bcachectl().args(["completions", shell, "--for", "make-bcache"]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains(line) && script.contains("wipe-bcache"), "{script}");
    }
    let output = bcachectl().args(["completions", "bash", "--for", "mkfs"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn completions_know_the_commands() {
    for (shell, line) in [
        ("bash", "complete -F _bcachectl"),
        ("zsh", "#compdef bcachectl"),
        ("fish", "complete -c bcachectl"),
    ] {
        let output = bcachectl().args(["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{shell}: {}", stderr(&output));
        let script = String::from_utf8(output.stdout).unwrap();
        for words in [line, "make", "show", "check", "invalidate", "wipe-bcache"] {
            assert!(script.contains(words), "{shell}: no {words:?}");
        }
        // A script that its shell cannot read is worse than none.
        if shell == "bash" {
            let mut bash = Command::new("bash");
            let read = bash.args(["-n", "-c", &script]).output().unwrap();
            assert!(read.status.success(), "{}", stderr(&read));
        }
    }
    let output = bcachectl().args(["completions", "cmd.exe"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
