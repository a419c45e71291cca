//! The committed man pages are those that the parser yields, and mandoc finds nothing in them.

use std::os::unix::process::CommandExt as _;
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

/// The options that a page has under OPTIONS.
fn options(page: &str) -> Vec<String> {
    let section = page.split_once(".SH OPTIONS\n").map_or("", |(_, rest)| rest);
    let lines = section.lines().take_while(|line| !line.starts_with(".SH"));
    let terms = lines.filter(|line| line.starts_with(r"\fB\-")).flat_map(|line| line.split(r"\fB"));
    let names = terms.filter_map(|term| Some(term.split_once(r"\fR")?.0.replace(r"\-", "-")));
    names.filter(|name| name.starts_with('-')).collect()
}

/// The old names have the options of bcache-tools, and no others.
#[test]
fn old_names_take_the_options_of_their_pages() {
    let mut taken = 0;
    for (name, page) in bcachectl::man::pages().unwrap() {
        let Some(name) = name.strip_suffix(".8").filter(|it| !it.starts_with("bcachectl")) else {
            continue;
        };
        for option in options(&String::from_utf8(page).unwrap()) {
            let takes_options =
                ["make-bcache", "bcache-super-show", "probe-bcache", "bcache-status"];
            assert!(takes_options.contains(&name), "{name} takes {option}?");
            let mut command = Command::new(env!("CARGO_BIN_EXE_bcachectl"));
            command.arg0(name).arg(&option);
            if name == "bcache-status" {
                // Some of its options write to sysfs.
                command.arg("--help");
            }
            let output = command.output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            let refused = ["invalid option", "unrecognized", "ambiguous"];
            assert!(!refused.iter().any(|word| error.contains(word)), "{name} {option}: {error}");
            taken += 1;
        }
    }
    assert!(taken >= 30, "{taken} options");
}

/// The recovery guide as plain lines.
fn recovery_guide() -> Vec<String> {
    let pages = bcachectl::man::pages().unwrap();
    let (_, page) = pages.into_iter().find(|(name, _)| name == "bcachectl-recovery.7").unwrap();
    let text = String::from_utf8(page).unwrap();
    text.lines().map(|line| line.replace("\\-", "-").replace("\\*(Aq", "'")).collect()
}

/// Every command of the recovery guide is one that the parser takes.
#[test]
fn commands_of_the_recovery_guide_parse() {
    let mut example = false;
    let mut commands = 0;
    for line in recovery_guide() {
        match line.as_str() {
            ".EX" => example = true,
            ".EE" => example = false,
            line if example => {
                let words = line.split_whitespace();
                if let Err(error) = bcachectl::cli::command().try_get_matches_from(words) {
                    panic!("{line}: {error}");
                }
                commands += 1;
            }
            _ => {}
        }
    }
    assert!(commands >= 40, "{commands} commands");
}

/// It has at least twenty symptoms, and every finding that it names exists.
#[test]
fn findings_of_the_recovery_guide_exist() {
    use bcache_core::ops::check::Code;
    let lines = recovery_guide();
    let symptoms = lines.iter().filter(|line| *line == ".TP").count();
    assert!(symptoms >= 20, "{symptoms} symptoms");
    let text = lines.join(" ");
    let mut named = 0;
    for list in text.split("(check: ").skip(1) {
        let (names, _) = list.split_once(')').unwrap();
        for name in names.split(", ") {
            let name = name.trim();
            assert!(Code::ALL.iter().any(|code| code.name() == name), "no finding {name}");
            named += 1;
        }
    }
    assert!(named >= 15, "{named} findings");
}
