//! Options of what runs in memory: `invalidate`, `bucket` and `sector`.

use clap::{Args, Parser, Subcommand};

use crate::engines::Engine;

/// Time the parts of the allocator in memory, beside the reference engine
#[derive(Debug, Parser)]
#[command(name = "make bench", disable_help_subcommand = true)]
pub struct Cli {
    /// Given by cargo bench; without it, the benches test themselves
    #[arg(long, hide = true, global = true)]
    pub bench: bool,

    /// What to time
    #[command(subcommand)]
    pub command: Command,
}

/// The benches.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Time an LRU pass and a rescaling, against the sum of an array
    Invalidate(InvalidateArgs),
    /// Time bucket allocation while the allocator thread invalidates
    Bucket(BucketArgs),
    /// Time sector allocation
    Sector(SectorArgs),
    /// All three, as they are without options
    All,
}

/// As many as the allocator can number.
const NBUCKETS_MAX: u64 = 0xffff_ffff;

/// Options that they share.
#[derive(Debug, Args)]
pub struct Common {
    /// Engines to run: the allocator, a plain transcription of its semantics, or both
    #[arg(long, value_enum, default_value_t)]
    pub engine: Engine,

    /// Seed of the buckets' contents
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Print the report as JSON, with whole histograms: compare and plot read it
    #[arg(long)]
    pub json: bool,
}

/// The caches of a bench that runs on one after the other.
#[derive(Debug, Args)]
pub struct Caches {
    /// Buckets of the cache; several sizes may be given
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1048576",
        value_parser = clap::value_parser!(u64).range(513..=NBUCKETS_MAX)
    )]
    pub nbuckets: Vec<u64>,

    /// Threads at once: in `invalidate` each has a cache of its own, in `bucket` they share one
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub threads: u32,
}

/// Options of `invalidate`.
#[derive(Debug, Args)]
pub struct InvalidateArgs {
    /// The caches.
    #[command(flatten)]
    pub caches: Caches,

    /// Passes of each thread, of which the median is reported
    #[arg(
        long,
        value_name = "N",
        default_value_t = 21,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub passes: u32,

    /// What all share.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `bucket`.
#[derive(Debug, Args)]
pub struct BucketArgs {
    /// The caches.
    #[command(flatten)]
    pub caches: Caches,

    /// Rates of the open loop, in allocations a second
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "20000,100000",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub rate: Vec<u32>,

    /// Passes that each loop goes through
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub passes: u64,

    /// Longest time for each loop, in seconds, however few passes it has made
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub limit: u64,

    /// What all share.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `sector`.
#[derive(Debug, Args)]
pub struct SectorArgs {
    /// Buckets of the cache
    #[arg(
        long,
        value_name = "N",
        default_value_t = 65536,
        value_parser = clap::value_parser!(u64).range(513..=NBUCKETS_MAX)
    )]
    pub nbuckets: u64,

    /// Most threads; every number from 1 on is measured
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=64)
    )]
    pub threads: u32,

    /// Streams of all threads together, one for each at least; several numbers may be given
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "128",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub streams: Vec<u32>,

    /// Length of each measurement, in milliseconds
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub time: u64,

    /// What all share.
    #[command(flatten)]
    pub common: Common,
}
