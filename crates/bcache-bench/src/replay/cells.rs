//! The cells of a table: each a cache to try, and what came out.

use bcache_core::allocator::Policy;
use bcache_core::model::{BUCKETS_MIN, Config, Mode, Stats};
use bcache_core::units::Sectors;
use serde::Serialize;

use super::ideal::Misses;
use super::run::RunOptions;
use crate::num::{float, ratio, whole};

/// A cache to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Size of the cache.
    pub cache_bytes: u64,
    /// Size of a bucket.
    pub bucket_bytes: u64,
    /// Replacement policy.
    pub policy: Policy,
    /// Cache mode.
    pub mode: Mode,
    /// `sequential_cutoff`; 0 is off.
    pub sequential_cutoff_bytes: u64,
}

impl Cell {
    /// Buckets of such a cache.
    pub const fn nbuckets(&self) -> u64 {
        match self.cache_bytes.checked_div(self.bucket_bytes) {
            Some(nbuckets) => nbuckets,
            None => 0,
        }
    }

    /// Whether the kernel would take it, made as much smaller as the sample is.
    pub fn is_feasible(&self, sample: f64) -> bool {
        float(self.nbuckets()) * sample >= float(BUCKETS_MIN)
    }

    /// The model of it, which is smaller for a sample of the addresses.
    pub fn config(&self, sample: f64, block_bytes: u64, seed: u64) -> Config {
        let bytes =
            if sample < 1.0 { whole(float(self.cache_bytes) * sample) } else { self.cache_bytes };
        Config {
            policy: self.policy,
            mode: self.mode,
            block_size: Sectors(block_bytes / 512),
            sequential_cutoff_bytes: self.sequential_cutoff_bytes,
            seed,
            ..Config::new(Sectors(bytes / 512), Sectors(self.bucket_bytes / 512))
        }
    }
}

/// Mean and range of several seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        let count = values.clone().count();
        (count > 0).then(|| Self {
            mean: values.clone().sum::<f64>() / float(count as u64),
            min: values.clone().fold(f64::INFINITY, f64::min),
            max: values.fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct CellResult {
    /// The cache.
    #[serde(flatten)]
    pub cell: Cell,
    /// Its buckets; a kernel refuses fewer than 513, and then there are no runs.
    pub nbuckets: u64,
    /// Whether a kernel refuses it.
    pub refused: bool,
    /// Whether so small a sample leaves fewer than 513 buckets, which cannot be modelled.
    pub sample_too_small: bool,
    /// Hits of all reads, bypassed ones too: requests of which every sector was cached.
    pub hit_ratio: Option<Spread>,
    /// The kernel's `cache_hit_ratio`: bypassed reads are left out.
    pub kernel_hit_ratio: Option<Spread>,
    /// Sectors of reads that came from the cache, of all sectors of reads.
    pub byte_hit_ratio: Option<Spread>,
    /// Bytes written to the SSD, of each byte that was put into the cache.
    pub write_amplification: Option<Spread>,
    /// Bytes written to the SSD, of each byte that the user wrote.
    pub ssd_bytes_per_written_byte: Option<Spread>,
    /// Bytes written to the SSD in a day at the trace's pace.
    pub ssd_bytes_per_day: Option<Spread>,
    /// Bytes written to the SSD by the first seed, of all addresses.
    pub ssd_bytes: u64,
    /// Years until as much has been written as the SSD's maker lets be.
    pub tbw_years: Option<f64>,
    /// Exact LRU of 4 KiB blocks in as much space.
    pub lru_blocks: Misses,
    /// Of each seed, numerators and denominators of all of the above.
    pub runs: Vec<Stats>,
}

/// Reads of which every sector was cached.
pub const fn hits(stats: &Stats) -> u64 {
    stats.cache_hits + stats.cache_bypass_hits
}

impl CellResult {
    /// From the runs of one cell.
    pub fn new(
        cell: Cell,
        runs: Vec<Stats>,
        lru_blocks: Misses,
        duration_ns: u64,
        options: &RunOptions,
    ) -> Self {
        let ssd_bytes = |it: &Stats| float(it.ssd_write_sectors() * 512) / options.sample;
        let spread = |figure: &dyn Fn(&Stats) -> Option<f64>| {
            Spread::of(runs.iter().filter_map(figure).collect::<Vec<_>>().into_iter())
        };
        let bytes_a_day = |it: &Stats| {
            let days = float(duration_ns) / 86_400e9;
            (days > 0.0).then(|| ssd_bytes(it) / days)
        };
        let a_day = spread(&bytes_a_day);
        let years = |tbw: u64| a_day.map(|it| float(tbw) / it.mean.max(1.0) / 365.25);
        Self {
            cell,
            nbuckets: cell.nbuckets(),
            refused: !cell.is_feasible(1.0),
            sample_too_small: cell.is_feasible(1.0) && !cell.is_feasible(options.sample),
            ssd_bytes: runs.first().map_or(0, |it| whole(ssd_bytes(it))),
            tbw_years: options.tbw_bytes.and_then(years),
            hit_ratio: spread(&|it| ratio(hits(it), it.reads.requests)),
            kernel_hit_ratio: spread(&|it| ratio(it.cache_hits, it.cache_hits + it.cache_misses)),
            byte_hit_ratio: spread(&|it| ratio(it.read_hit_sectors, it.reads.sectors)),
            write_amplification: spread(&|it| ratio(it.ssd_write_sectors(), it.inserted_sectors())),
            ssd_bytes_per_written_byte: spread(&|it| {
                ratio(it.ssd_write_sectors(), it.writes.sectors)
            }),
            ssd_bytes_per_day: a_day,
            lru_blocks,
            runs,
        }
    }

    /// Hits of all reads, 0 where there are none.
    pub fn hit(&self) -> f64 {
        self.hit_ratio.map_or(0.0, |spread| spread.mean)
    }
}
