//! Options of the benches in memory: `invalidate`, `bucket` and `sector`.

use std::num::NonZeroU64;

use clap::{Args, value_parser};

use crate::memory::Engine;

/// Options of all benches in memory.
#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// What to run: the allocator, a plain transcription of the kernel's semantics, or both
    #[arg(long, value_enum, default_value_t)]
    pub engine: Engine,

    /// Seed of the buckets' contents
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `bcache-bench invalidate`.
#[derive(Debug, Args)]
pub struct InvalidateArgs {
    /// Buckets of the cache; several numbers give several rows
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1048576",
          value_parser = value_parser!(u64).range(513..))]
    pub nbuckets: Vec<u64>,

    /// Passes, of which the median is reported
    #[arg(long, default_value_t = 21, value_parser = value_parser!(u32).range(1..))]
    pub passes: u32,

    /// What and how
    #[command(flatten)]
    pub memory: MemoryArgs,
}

/// Options of `bcache-bench bucket`.
#[derive(Debug, Args)]
pub struct BucketArgs {
    /// Buckets of the cache; several numbers give several rows
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1048576",
          value_parser = value_parser!(u64).range(513..))]
    pub nbuckets: Vec<u64>,

    /// Callers of the closed loop
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=1024))]
    pub threads: u32,

    /// Rates of the open loop, in allocations a second
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "20000,100000")]
    pub rate: Vec<NonZeroU64>,

    /// Passes that each loop goes through at least
    #[arg(long, default_value_t = 20)]
    pub passes: u64,

    /// Longest time for each loop, in seconds, however few passes it has made
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub limit: u64,

    /// What and how
    #[command(flatten)]
    pub memory: MemoryArgs,
}

/// Options of `bcache-bench sector`.
#[derive(Debug, Args)]
pub struct SectorArgs {
    /// Buckets of the cache
    #[arg(long, value_name = "N", default_value_t = 65536,
          value_parser = value_parser!(u64).range(1024..))]
    pub nbuckets: u64,

    /// Most threads; every number from 1 on is measured
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(1..=64))]
    pub threads: u32,

    /// Streams of all threads together; several numbers give several rows
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "128",
          value_parser = value_parser!(u32).range(1..=4000))]
    pub streams: Vec<u32>,

    /// Length of each measurement, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = value_parser!(u64).range(1..))]
    pub time: u64,

    /// What and how
    #[command(flatten)]
    pub memory: MemoryArgs,
}
