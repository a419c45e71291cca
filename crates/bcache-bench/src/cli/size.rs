//! Options of `bcache-bench size`.

use bcache_cli::size::parse_bytes;
use clap::Args;

use super::export::ExportArgs;
use super::replay::{parse_block, parse_bucket};

/// Options of `bcache-bench size`.
#[derive(Debug, Args)]
pub struct SizeArgs {
    /// The device that would become a cache, or a size, as in 500G
    #[arg(value_name = "DEV|SIZE")]
    pub size: String,

    /// Sizes of buckets
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_bucket,
          default_value = "64k,128k,256k,512k,1M,2M,4M")]
    pub bucket: Vec<u64>,

    /// Size of a block
    #[arg(long, value_name = "SIZE", value_parser = parse_block, default_value = "4k")]
    pub block: u64,

    /// Size of the extents that the btree is estimated for
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "64k")]
    pub extent: u64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Where the report is written to as well
    #[command(flatten)]
    pub export: ExportArgs,
}
