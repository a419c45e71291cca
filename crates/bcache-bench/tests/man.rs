//! The committed man pages are those that the parser yields, and mandoc finds nothing in them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bcache_bench::record::slices::Slices;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../man"))
}

#[test]
fn committed_pages_are_current() {
    let pages = bcache_bench::man::pages().unwrap();
    for (name, page) in &pages {
        let committed = std::fs::read(folder().join(name)).unwrap_or_default();
        assert!(
            committed == *page,
            "man/{name} is not what the parser yields; `make man` writes it anew"
        );
    }
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = pages.iter().any(|(page, _)| *page == name);
        assert!(known || !name.starts_with("bcache-bench"), "man/{name} is of no command");
    }
}

#[test]
fn every_command_has_a_page() {
    let pages = bcache_bench::man::pages().unwrap();
    let command = bcache_bench::cli::command();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("bcache-bench-{}.8", sub.get_name());
        // `completions` says all it has to say on the main page.
        let known = pages.iter().any(|(page, _)| *page == name);
        assert!(known || sub.get_name() == "completions", "{name}");
    }
}

#[test]
fn mandoc_finds_nothing() {
    let pages: Vec<_> = bcache_bench::man::pages()
        .unwrap()
        .into_iter()
        .map(|(name, _)| folder().join(name))
        .collect();
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
fn slices_are_as_many_as_the_page_says() {
    let slices = |seconds| {
        let mut slices = Slices::default();
        slices.add(seconds * 1_000_000_000 - 1, 1);
        slices.rates(Duration::from_secs(seconds)).len()
    };
    let (fewest, most) = (slices(1), slices(2));
    assert!((3..1000).all(|seconds| (fewest..=most).contains(&slices(seconds))));
    let pages = bcache_bench::man::pages().unwrap();
    let (_, page) = pages.into_iter().find(|(name, _)| name == "bcache-bench.8").unwrap();
    let words: Vec<_> = std::str::from_utf8(&page).unwrap().split_whitespace().collect();
    let text = words.join(" ");
    assert!(text.contains(&format!("{fewest} to {most} of equal length")), "{text}");
}

#[test]
fn every_option_is_on_its_page() {
    let pages = bcache_bench::man::pages().unwrap();
    let command = bcache_bench::cli::command();
    for (name, page) in pages {
        let text = String::from_utf8(page).unwrap().replace("\\-", "-");
        let sub = name.strip_prefix("bcache-bench-").and_then(|it| it.strip_suffix(".8"));
        let Some(sub) = sub else { continue };
        for argument in command.find_subcommand(sub).unwrap().get_arguments() {
            if let Some(long) = argument.get_long().filter(|_| !argument.is_hide_set()) {
                assert!(text.contains(&format!("--{long}")), "{name} lacks --{long}");
            }
        }
    }
}
