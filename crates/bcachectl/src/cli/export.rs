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

    /// Take BACKING for the volume's backing device where a damaged uuid table does not say so
    #[arg(long, requires_all = ["backing", "volume"])]
    pub trust_backing: bool,
}

/// Options of `bcachectl export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The volume
    #[command(flatten)]
    pub volume: VolumeArgs,

    /// Where to: a new file, made sparse, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Only the dirty data, which no backing device has; the map file says where it belongs
    #[arg(long)]
    pub dirty_only: bool,

    /// Take what is likely right, too, where damage keeps it from being certain
    #[arg(long)]
    pub likely: bool,

    /// The map of what there is, in ddrescue's format, written where anything was left out
    /// [default: FILE.map]
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,

    /// With --dirty-only: first sector of the data on a backing device that is not present
    #[arg(long, value_name = "SECTORS", value_parser = parse_sectors, requires = "dirty_only")]
    pub data_offset: Option<Sectors>,

    /// Replace files that are there already
    #[arg(long)]
    pub force: bool,

    /// Print JSON about what was exported
    #[arg(long)]
    pub json: bool,
}
