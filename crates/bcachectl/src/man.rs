//! The man pages of bcachectl.

mod export;
mod image;
mod list;
mod recovery;
mod repair;
mod running;
mod serve;
mod text;
mod undo;
mod writeback;

use std::path::Path;

use anyhow::Result;
use bcache_cli::man::{self, Files, Page};

use crate::cli;

const PAGES: [Page; 12] = [
    Page::of_program(
        &["COMMAND [OPTIONS]", "--help", "--version"],
        text::MAIN_BEFORE,
        text::MAIN_AFTER,
    ),
    Page::of(
        "make",
        &["[OPTIONS] --cache DEV... [ --bdev DEV... ]", "[OPTIONS] --bdev DEV..."],
        text::MAKE_BEFORE,
        text::MAKE_AFTER,
    ),
    Page::of("show", &["[OPTIONS] [DEV...]"], text::SHOW_BEFORE, text::SHOW_AFTER),
    Page::of("list", &["[OPTIONS]"], list::BEFORE, list::AFTER),
    Page::of("check", &["[OPTIONS] DEV [BACKING...]"], text::CHECK_BEFORE, text::CHECK_AFTER),
    Page::of(
        "invalidate",
        &[
            "[OPTIONS] --bucket LIST DEV",
            "[OPTIONS] --sectors START+LEN DEV",
            "[OPTIONS] --volume VOLUME [ --range START+LEN ] DEV",
            "[OPTIONS] --coldest N|P% DEV",
            "[OPTIONS] --all-clean DEV",
            "[OPTIONS] --policy POLICY --count N [ --seed S ] DEV",
        ],
        text::INVALIDATE_BEFORE,
        text::INVALIDATE_AFTER,
    ),
    Page::of("export", &["[OPTIONS] CACHE [BACKING] -o FILE|-"], export::BEFORE, export::AFTER),
    Page::of("serve", &["[OPTIONS] CACHE [BACKING] --socket PATH"], serve::BEFORE, serve::AFTER),
    Page::of("writeback", &["[OPTIONS] CACHE BACKING..."], writeback::BEFORE, writeback::AFTER),
    Page::of(
        "image",
        &[
            "create [--anonymize] [--force] [--json] CACHE -o FILE|-",
            "restore [--force] [--undo UNDOFILE] [--json] FILE DEV",
        ],
        image::BEFORE,
        image::AFTER,
    ),
    Page::of(
        "repair",
        &["[OPTIONS] CACHE [BACKING...]", "[OPTIONS] BACKING..."],
        repair::BEFORE,
        repair::AFTER,
    ),
    Page::of("undo", &["[OPTIONS] FILE [DEV...]"], undo::BEFORE, undo::AFTER),
];

/// Writes all pages to `folder`.
pub fn write(folder: &Path) -> Result<()> {
    man::write(folder, pages()?)
}

/// All pages, by file name.
pub fn pages() -> Result<Files> {
    let mut files = crate::compat::pages()?;
    files.push(recovery::PAGE.file()?);
    files.extend(man::files(&cli::command(), PAGES.into_iter().chain(running::PAGES))?);
    Ok(files)
}
