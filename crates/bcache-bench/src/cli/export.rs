//! Options of whatever reports something.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::exit::{ExitError, Failure};
use crate::report::export::{Export, ExportError, ExportPaths, ExportTo, Exports};

/// Where a report is written to, beside standard output.
#[derive(Clone, Debug, Default, Args)]
pub struct ExportArgs {
    /// Write the report to a file: FORMAT is json, csv, markdown, svg (a picture) or hgrm (percentile
    /// distributions, into a folder), as far as there is one of it; can be repeated
    #[arg(long, value_name = "FORMAT=FILE", help_heading = "Report")]
    pub export: Vec<ExportTo>,
}

impl ExportArgs {
    /// Opens the files for what is an `E`. They must not be among those that are `read`.
    pub fn open<E: Export>(&self, read: &[PathBuf]) -> Result<Exports> {
        let paths = ExportPaths { files: self.export.clone(), trace: None };
        let exports = Exports::open::<E>(&paths).map_err(as_usage)?;
        exports.check_not_read(read)?;
        Ok(exports)
    }
}

/// A format that there is not is a matter of the command line.
fn as_usage(error: ExportError) -> anyhow::Error {
    match error {
        ExportError::NoSuchFormat { .. } => ExitError::wrap(Failure::Usage, error),
        error => error.into(),
    }
}
