//! Says which git revision a release is built from. Other builds go without: they would be built
//! anew at every commit.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BCACHE_REVISION");
    let is_release = std::env::var_os("PROFILE").is_some_and(|profile| profile == "release");
    // A package's build, which has no git, may say it.
    let given = std::env::var("BCACHE_REVISION").ok();
    let revision = given.or_else(|| if is_release { from_git() } else { None });
    let suffix = revision.map(|revision| format!(" ({revision})")).unwrap_or_default();
    println!("cargo::rustc-env=BCACHE_REVISION_SUFFIX={suffix}");
}

/// The revision of the source tree, marked where there are changes beside it.
fn from_git() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    // Sources unpacked inside another project's tree have none of their own.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.parent()?;
    if std::path::Path::new(&git(&["rev-parse", "--show-toplevel"])?) != root.canonicalize().ok()? {
        return None;
    }
    // What changes with every commit, be it a worktree's.
    for file in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
}
