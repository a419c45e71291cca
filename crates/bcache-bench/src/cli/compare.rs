//! Options of `bcache-bench compare`.

use std::path::PathBuf;

use clap::Args;

use super::export::ExportArgs;

/// Options of `bcache-bench compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The report to compare with
    #[arg(value_name = "A.json")]
    pub a: PathBuf,

    /// The report that is compared
    #[arg(value_name = "B.json")]
    pub b: PathBuf,

    /// By how many percent a figure has to move to be called changed
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = parse_percent)]
    pub threshold: f64,

    /// Compare although the settings differ
    #[arg(short, long)]
    pub force: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Where the report is written to as well
    #[command(flatten)]
    pub export: ExportArgs,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    text.strip_suffix('%')
        .unwrap_or(text)
        .parse()
        .ok()
        .filter(|percent| (0.0..=1000.0).contains(percent))
        .ok_or_else(|| format!("\"{text}\" is not a percentage from 0 to 1000"))
}
