//! The man page of bcache-bench.

mod replay;
mod text;

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
            name: "bcache-bench",
            command: cli::command(),
            synopsis: &["COMMAND [OPTIONS]", "--help", "--version"],
            invocation: "bcache-bench",
            before: text::MAIN_BEFORE,
            after: text::MAIN_AFTER,
        },
        Page {
            name: "bcache-bench-device",
            command: subcommand("device")?,
            synopsis: &["[OPTIONS] DEV...", "[OPTIONS] --image FILE --size SIZE"],
            invocation: "bcache-bench device",
            before: text::DEVICE_BEFORE,
            after: text::DEVICE_AFTER,
        },
        Page {
            name: "bcache-bench-replay",
            command: subcommand("replay")?,
            synopsis: &["[OPTIONS] TRACE..."],
            invocation: "bcache-bench replay",
            before: replay::REPLAY_BEFORE,
            after: replay::REPLAY_AFTER,
        },
        Page {
            name: "bcache-bench-size",
            command: subcommand("size")?,
            synopsis: &["[OPTIONS] DEV|SIZE"],
            invocation: "bcache-bench size",
            before: replay::SIZE_BEFORE,
            after: replay::SIZE_AFTER,
        },
        Page {
            name: "bcache-bench-record",
            command: subcommand("record")?,
            synopsis: &["[OPTIONS] --output FILE DEV"],
            invocation: "bcache-bench record",
            before: replay::RECORD_BEFORE,
            after: replay::RECORD_AFTER,
        },
        Page {
            name: "bcache-bench-compare",
            command: subcommand("compare")?,
            synopsis: &["[OPTIONS] A.json B.json"],
            invocation: "bcache-bench compare",
            before: text::COMPARE_BEFORE,
            after: text::COMPARE_AFTER,
        },
        Page {
            name: "bcache-bench-plot",
            command: subcommand("plot")?,
            synopsis: &["[OPTIONS] --output FILE.svg REPORT.json..."],
            invocation: "bcache-bench plot",
            before: text::PLOT_BEFORE,
            after: text::PLOT_AFTER,
        },
    ];
    pages.iter().map(|page| Ok((page.file_name(), page.render()?))).collect()
}
