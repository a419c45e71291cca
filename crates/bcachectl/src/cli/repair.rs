//! Options of `bcachectl repair`.

use std::path::PathBuf;

use bcache_cli::size::parse_sectors;
use bcache_core::ops::repair::Code;
use bcache_core::units::Sectors;
use clap::Args;

use super::WriteArgs;

/// Options of `bcachectl repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The cache device, and backing devices of its set, which tell whose a volume is and whose superblocks
    /// are repaired, too; or backing devices alone. In any order, also image files
    #[arg(value_name = "DEVICE", required = true)]
    pub devices: Vec<PathBuf>,

    /// Also make changes of this kind that are likely right, and not certain; can be given several times
    #[arg(long, value_name = "CODE", value_parser = parse_code)]
    pub accept: Vec<Code>,

    /// Where nothing tells whose a volume is: it is that of this backing device, named as above or by its
    /// UUID; can be given several times
    #[arg(long, value_name = "SLOT=BACKING", value_parser = parse_owner)]
    pub owner: Vec<(u32, String)>,

    /// The sector at which the data of a backing device starts whose superblock is gone, if it is not 16
    #[arg(long, value_name = "SECTORS", value_parser = parse_sectors, requires = "owner")]
    pub data_offset: Option<Sectors>,

    /// Where nothing tells whose a volume is: it is flash-only and of this size; can be given several times
    #[arg(long, value_name = "SLOT=SIZE", value_parser = parse_flash_only)]
    pub flash_only: Vec<(u32, Sectors)>,

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

/// The slot of a volume and what is said of it.
fn parse_claim(text: &str) -> Result<(u32, &str), String> {
    let claim = text.split_once('=').and_then(|(slot, what)| Some((slot.parse().ok()?, what)));
    claim
        .filter(|(_, what)| !what.is_empty())
        .ok_or_else(|| format!("\"{text}\" does not begin with the slot of a volume and ="))
}

fn parse_owner(text: &str) -> Result<(u32, String), String> {
    parse_claim(text).map(|(slot, backing)| (slot, backing.to_owned()))
}

fn parse_flash_only(text: &str) -> Result<(u32, Sectors), String> {
    let (slot, size) = parse_claim(text)?;
    Ok((slot, parse_sectors(size).map_err(|error| error.to_string())?))
}
