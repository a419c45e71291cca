//! The man page of bcache-bench.

mod replay;
mod text;

use std::path::Path;

use anyhow::Result;
use bcache_cli::man::{self, Files, Page};

use crate::cli;

const PAGES: [Page; 7] = [
    Page::of_program(
        &["COMMAND [OPTIONS]", "--help", "--version"],
        text::MAIN_BEFORE,
        text::MAIN_AFTER,
    ),
    Page::of(
        "device",
        &["[OPTIONS] DEV...", "[OPTIONS] --image FILE --size SIZE"],
        text::DEVICE_BEFORE,
        text::DEVICE_AFTER,
    ),
    Page::of("replay", &["[OPTIONS] TRACE..."], replay::REPLAY_BEFORE, replay::REPLAY_AFTER),
    Page::of("size", &["[OPTIONS] DEV|SIZE"], replay::SIZE_BEFORE, replay::SIZE_AFTER),
    Page::of(
        "record",
        &["[OPTIONS] --output FILE DEV"],
        replay::RECORD_BEFORE,
        replay::RECORD_AFTER,
    ),
    Page::of("compare", &["[OPTIONS] A.json B.json"], text::COMPARE_BEFORE, text::COMPARE_AFTER),
    Page::of(
        "plot",
        &["[OPTIONS] --output FILE.svg REPORT.json..."],
        text::PLOT_BEFORE,
        text::PLOT_AFTER,
    ),
];

/// Writes all pages to `folder`.
pub fn write(folder: &Path) -> Result<()> {
    man::write(folder, pages()?)
}

/// All pages, by file name.
pub fn pages() -> Result<Files> {
    man::files(&cli::command(), PAGES)
}
