//! Options of `bcachectl repair`.

use std::path::PathBuf;

use bcache_core::ops::repair::Code;
use clap::Args;

use super::WriteArgs;

/// Options of `bcachectl repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The cache device, or an image file of one
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,

    /// Backing devices of the set: they tell whose a volume is, and their superblocks are repaired
    #[arg(value_name = "BACKING")]
    pub backing: Vec<PathBuf>,

    /// Also make changes of this kind that are likely right, and not certain; can be given several times
    #[arg(long, value_name = "CODE", value_parser = parse_code)]
    pub accept: Vec<Code>,

    /// What the commands have that write
    #[command(flatten)]
    pub write: WriteArgs,
}

fn parse_code(text: &str) -> Result<Code, String> {
    Code::ALL.into_iter().find(|code| code.name() == text).ok_or_else(|| {
        let names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        format!("one of {}", names.join(", "))
    })
}
