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

use anyhow::{Context, Result};
use bcache_cli::man::Page;

use crate::cli;

/// Writes all pages to `folder`.
pub fn write(folder: &Path) -> Result<()> {
    for (name, page) in pages()? {
        let path = folder.join(&name);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// All pages, by file name.
pub fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let subcommand = |name: &str| {
        cli::command().find_subcommand(name).cloned().with_context(|| format!("no command {name}"))
    };
    let pages = [
        Page {
            name: "bcachectl",
            command: cli::command(),
            synopsis: &["COMMAND [OPTIONS]", "--help", "--version"],
            invocation: "bcachectl",
            before: text::MAIN_BEFORE,
            after: text::MAIN_AFTER,
        },
        Page {
            name: "bcachectl-make",
            command: subcommand("make")?,
            synopsis: &["[OPTIONS] --cache DEV... [ --bdev DEV... ]", "[OPTIONS] --bdev DEV..."],
            invocation: "bcachectl make",
            before: text::MAKE_BEFORE,
            after: text::MAKE_AFTER,
        },
        Page {
            name: "bcachectl-show",
            command: subcommand("show")?,
            synopsis: &["[OPTIONS] [DEV...]"],
            invocation: "bcachectl show",
            before: text::SHOW_BEFORE,
            after: text::SHOW_AFTER,
        },
        Page {
            name: "bcachectl-list",
            command: subcommand("list")?,
            synopsis: &["[OPTIONS]"],
            invocation: "bcachectl list",
            before: list::BEFORE,
            after: list::AFTER,
        },
        Page {
            name: "bcachectl-check",
            command: subcommand("check")?,
            synopsis: &["[OPTIONS] DEV [BACKING...]"],
            invocation: "bcachectl check",
            before: text::CHECK_BEFORE,
            after: text::CHECK_AFTER,
        },
        Page {
            name: "bcachectl-invalidate",
            command: subcommand("invalidate")?,
            synopsis: &[
                "[OPTIONS] --bucket LIST DEV",
                "[OPTIONS] --sectors START+LEN DEV",
                "[OPTIONS] --volume VOLUME [ --range START+LEN ] DEV",
                "[OPTIONS] --coldest N|P% DEV",
                "[OPTIONS] --all-clean DEV",
                "[OPTIONS] --policy POLICY --count N [ --seed S ] DEV",
            ],
            invocation: "bcachectl invalidate",
            before: text::INVALIDATE_BEFORE,
            after: text::INVALIDATE_AFTER,
        },
        Page {
            name: "bcachectl-export",
            command: subcommand("export")?,
            synopsis: &["[OPTIONS] CACHE [BACKING] -o FILE|-"],
            invocation: "bcachectl export",
            before: export::BEFORE,
            after: export::AFTER,
        },
        Page {
            name: "bcachectl-serve",
            command: subcommand("serve")?,
            synopsis: &["[OPTIONS] CACHE [BACKING] --socket PATH"],
            invocation: "bcachectl serve",
            before: serve::BEFORE,
            after: serve::AFTER,
        },
        Page {
            name: "bcachectl-writeback",
            command: subcommand("writeback")?,
            synopsis: &["[OPTIONS] CACHE BACKING..."],
            invocation: "bcachectl writeback",
            before: writeback::BEFORE,
            after: writeback::AFTER,
        },
        Page {
            name: "bcachectl-image",
            command: subcommand("image")?,
            synopsis: &[
                "create [--anonymize] [--force] [--json] CACHE -o FILE|-",
                "restore [--force] [--undo UNDOFILE] [--json] FILE DEV",
            ],
            invocation: "bcachectl image",
            before: image::BEFORE,
            after: image::AFTER,
        },
        Page {
            name: "bcachectl-repair",
            command: subcommand("repair")?,
            synopsis: &["[OPTIONS] CACHE [BACKING...]"],
            invocation: "bcachectl repair",
            before: repair::BEFORE,
            after: repair::AFTER,
        },
        Page {
            name: "bcachectl-undo",
            command: subcommand("undo")?,
            synopsis: &["[OPTIONS] FILE [DEV...]"],
            invocation: "bcachectl undo",
            before: undo::BEFORE,
            after: undo::AFTER,
        },
    ];
    let mut files = crate::compat::pages()?;
    files.push((recovery::PAGE.file_name(), recovery::PAGE.render()?));
    for page in pages.into_iter().chain(running::pages(&subcommand)?) {
        files.push((page.file_name(), page.render()?));
    }
    Ok(files)
}
