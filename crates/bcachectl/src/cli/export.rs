//! Options of `bcachectl export`.

use std::path::PathBuf;

use bcache_cli::size::parse_sectors;
use bcache_core::units::Sectors;
use clap::Args;

/// Which volume of which cache.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// The cache device, or an image file of it
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,

    /// The volume's backing device [default: the one of the machine with the volume's UUID]
    #[arg(value_name = "BACKING")]
    pub backing: Option<PathBuf>,

    /// Which volume: a slot, a UUID or a label [default: that of BACKING, or the only one]
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<String>,

    /// Take BACKING for the volume's backing device if a damaged uuid table does not say so
    #[arg(long, requires_all = ["backing", "volume"])]
    pub trust_backing: bool,
}

/// Options of `bcachectl export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The volume
    #[command(flatten)]
    pub volume: VolumeArgs,

    /// Output: a new sparse file, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Only the dirty data, which no backing device has; the map file says where it belongs
    #[arg(long)]
    pub dirty_only: bool,

    /// Also export data that is only likely right because of damage
    #[arg(long)]
    pub likely: bool,

    /// Map file in ddrescue's format, written if anything was left out [default: FILE.map]
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,

    /// With --dirty-only: first sector of the data on a backing device that is not present, or whose superblock has it wrong
    #[arg(long, value_name = "SECTORS", value_parser = parse_sectors, requires = "dirty_only")]
    pub data_offset: Option<Sectors>,

    /// Overwrite existing files
    #[arg(long)]
    pub force: bool,

    /// Print JSON about what was exported
    #[arg(long)]
    pub json: bool,
}
