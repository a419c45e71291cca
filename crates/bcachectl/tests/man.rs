//! The committed man pages are those that the parser yields, and mandoc finds nothing in them.

use std::path::PathBuf;
use std::process::Command;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../man"))
}

#[test]
fn committed_pages_are_current() {
    for (name, page) in bcachectl::man::pages().unwrap() {
        let committed = std::fs::read(folder().join(&name)).unwrap_or_default();
        assert!(
            committed == page,
            "man/{name} is not what the parser yields; `make man` writes it anew"
        );
    }
}

#[test]
fn mandoc_finds_nothing() {
    let pages: Vec<_> =
        bcachectl::man::pages().unwrap().into_iter().map(|(name, _)| folder().join(name)).collect();
    match Command::new("mandoc").args(["-T", "lint"]).args(&pages).output() {
        Ok(lint) => {
            assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
            assert!(lint.stdout.is_empty(), "{}", String::from_utf8_lossy(&lint.stdout));
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "mandoc is needed: {error}");
            eprintln!("SKIPPED: mandoc is not installed ({error})");
        }
    }
}

#[test]
fn every_option_is_on_its_page() {
    let pages = bcachectl::man::pages().unwrap();
    for (name, page) in pages {
        let text = String::from_utf8(page).unwrap().replace("\\-", "-");
        let command = bcachectl::cli::command();
        let Some(sub) = name.strip_prefix("bcachectl-").and_then(|it| it.strip_suffix(".8")) else {
            continue;
        };
        for argument in command.find_subcommand(sub).unwrap().get_arguments() {
            if let Some(long) = argument.get_long().filter(|_| !argument.is_hide_set()) {
                assert!(text.contains(&format!("--{long}")), "{name} lacks --{long}");
            }
        }
    }
}
