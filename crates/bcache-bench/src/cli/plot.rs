//! Options of `bcache-bench plot`.

use std::path::PathBuf;

use clap::Args;

use crate::record::Measure;

/// Options of `bcache-bench plot`.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Reports
    #[arg(value_name = "REPORT.json", required = true)]
    pub reports: Vec<PathBuf>,

    /// The picture (SVG) to write
    #[arg(short, long, value_name = "FILE.svg")]
    pub output: PathBuf,

    /// What to draw [default: everything]
    #[arg(short, long, value_name = "MEASURE", value_enum, value_delimiter = ',')]
    pub measure: Vec<Measure>,

    /// Title of the picture
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
}
