//! What `bcachectl` and `bcache-bench` share: sizes, output, tables, words and man pages.

pub mod confirm;
pub mod man;
pub mod out;
pub mod progress;
pub mod rows;
pub mod size;
pub mod table;
pub mod text;

use std::io;

/// Whether `error` is a reader that went away: `bcachectl show | head` ends quietly.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
