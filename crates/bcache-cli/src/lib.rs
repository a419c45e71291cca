//! What `bcachectl` and `bcache-bench` share: how they begin and end, what their
//! options are made of, output, tables, words and man pages.

pub mod completions;
pub mod confirm;
pub mod exit;
pub mod interrupt;
pub mod lists;
pub mod man;
pub mod out;
pub mod policy;
pub mod program;
pub mod progress;
pub mod rows;
pub mod size;
pub mod table;
pub mod text;
pub mod usage;

use std::io;

/// Whether `error`, with or without a status, is a reader that went away: `bcachectl show | head` ends
/// quietly.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<exit::ExitError>()
        .map_or(error, |exit| &exit.error)
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
