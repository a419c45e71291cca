//! What `make install` puts where, and completions for the shells.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use common::{bcachectl, stderr};

/// The Makefile's own recipe, with programs that are built already: Cargo is left out, and
/// `bcachectl` stands in for `bcache-bench`, which has the same subcommand for completions.
#[test]
fn make_install_honours_prefix_and_destdir() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let tree = tempfile::tempdir().unwrap();
    let release = tree.path().join("target/release");
    fs::create_dir_all(&release).unwrap();
    for name in ["bcachectl", "bcache-bench"] {
        let program = assert_cmd::cargo::cargo_bin("bcachectl");
        std::os::unix::fs::symlink(program, release.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(top.join("man"), tree.path().join("man")).unwrap();
    let root = tree.path().join("root");
    let output = Command::new("make")
        .arg("--file")
        .arg(top.join("Makefile"))
        .args(["install", "CARGO=true", "PREFIX=/opt/bcache"])
        .arg(format!("DESTDIR={}", root.display()))
        .current_dir(tree.path())
        // Of a make that runs the tests.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    // Nothing is outside of both.
    let entries = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    assert_eq!(entries(&root), ["opt"]);
    let prefix = root.join("opt/bcache");
    for name in ["bcachectl", "bcache-bench"] {
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
    let pages = entries(&prefix.join("share/man/man8"));
    assert_eq!(pages.len(), entries(&top.join("man")).len(), "{pages:?}");
    assert!(pages.iter().any(|page| page == "bcachectl-make.8"), "{pages:?}");
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
