//! The answer: which cache to make, as values. [`super::render`] has the words.

use serde::Serialize;

use super::cells::{Cell, CellResult};

/// A cell is as good as another whose hits are within this share of all reads: a point.
const AS_GOOD: f64 = 0.01;
/// Below this share of hits at every size, a cache is no help: 2 %.
const NO_HELP: f64 = 0.02;
/// A cutoff costs so much before it is worth a sentence: 3 points.
const CUTOFF_COSTS: f64 = 0.03;

/// What the answer says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// The trace has no reads, so there is nothing to hit.
    NoReads,
    /// No cell of the table can be made.
    NoCells,
    /// None was finished.
    Unfinished,
    /// Even the best cell has next to no hits.
    NoHelp {
        /// Hits of all reads in the best cell.
        hit_ratio: f64,
        /// What the cells would write to the SSD for it, from the least to the most.
        ssd_bytes: (u64, u64),
        /// Exact LRU of blocks at the largest size: hits of all blocks read.
        lru_hit_ratio: Option<f64>,
    },
    /// Make this one.
    Make(Box<Advice>),
}

/// The cache to make.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// Which.
    pub cell: Cell,
    /// Hits of all reads in it.
    pub hit_ratio: f64,
    /// By bytes.
    pub byte_hit_ratio: f64,
    /// Exact LRU of 4 KiB blocks of the same size: hits of all blocks read.
    pub lru_hit_ratio: Option<f64>,
    /// Best hit ratio at the largest size.
    pub best_hit_ratio: f64,
    /// The next size in the table, and the best hit ratio there.
    pub next: Option<(u64, f64)>,
    /// Whether all that the trace touches fits.
    pub holds_footprint: bool,
    /// What another cutoff does to the same cache, if that is much: hits with the greatest cutoff.
    pub cutoff: Option<CutoffEffect>,
    /// Best hit ratio of each bucket size at that cache size, with the same cutoff and mode.
    pub by_bucket: Vec<(u64, f64)>,
    /// Best hit ratio of each policy at that cache and bucket size, with the same cutoff and mode.
    pub by_policy: Vec<(bcache_core::allocator::Policy, f64)>,
    /// Bytes written to the SSD over the trace.
    pub ssd_bytes: u64,
    /// And in a day.
    pub ssd_bytes_per_day: Option<f64>,
}

/// What the cutoff does to a cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CutoffEffect {
    /// The other cutoff.
    pub other_bytes: u64,
    /// Hits with it.
    pub hit_ratio: f64,
    /// SSD bytes with it.
    pub ssd_bytes: u64,
}

fn best(cells: &[&CellResult]) -> f64 {
    cells.iter().map(|it| it.hit()).fold(0.0, f64::max)
}

fn lru_hits(result: &CellResult) -> Option<f64> {
    let it = result.lru_blocks;
    crate::num::ratio(it.read_references - it.read_misses, it.read_references)
}

/// Draws the answer from a table.
pub fn answer(results: &[CellResult], interrupted: bool, footprint_bytes: u64) -> Answer {
    let ran: Vec<&CellResult> = results.iter().filter(|it| !it.runs.is_empty()).collect();
    let Some(first) = ran.first() else {
        return if interrupted { Answer::Unfinished } else { Answer::NoCells };
    };
    if first.runs.iter().all(|stats| stats.reads.requests == 0) {
        return Answer::NoReads;
    }
    let most = best(&ran);
    if most < NO_HELP {
        let bytes = || ran.iter().map(|it| it.ssd_bytes);
        return Answer::NoHelp {
            hit_ratio: most,
            ssd_bytes: (bytes().min().unwrap_or(0), bytes().max().unwrap_or(0)),
            lru_hit_ratio: ran.last().and_then(|it| lru_hits(it)),
        };
    }
    let mut sizes: Vec<u64> = ran.iter().map(|it| it.cell.cache_bytes).collect();
    sizes.dedup();
    let at = |size: u64| -> Vec<&CellResult> {
        ran.iter().copied().filter(|it| it.cell.cache_bytes == size).collect()
    };
    let size = sizes.iter().copied().find(|size| best(&at(*size)) >= most - AS_GOOD);
    let Some(size) = size else { return Answer::NoCells };
    let here = at(size);
    let enough = most - AS_GOOD;
    // Of those that are as good, the one that wears the SSD least.
    let chosen = here
        .iter()
        .filter(|it| it.hit() >= enough)
        .min_by_key(|it| (it.ssd_bytes, std::cmp::Reverse(it.cell.bucket_bytes)));
    let Some(chosen) = chosen else { return Answer::NoCells };
    let cell = chosen.cell;
    let alike = |it: &&CellResult, but: &dyn Fn(Cell) -> Cell| but(it.cell) == but(cell);
    let with_bucket = |other: Cell| Cell { bucket_bytes: cell.bucket_bytes, ..other };
    let by_bucket: Vec<(u64, f64)> = here
        .iter()
        .filter(|it| alike(it, &with_bucket))
        .map(|it| (it.cell.bucket_bytes, it.hit()))
        .collect();
    let by_policy = here
        .iter()
        .filter(|it| alike(it, &|other| Cell { policy: cell.policy, ..other }))
        .map(|it| (it.cell.policy, it.hit()))
        .collect();
    let cutoff = here
        .iter()
        .filter(|it| {
            it.cell != cell && alike(it, &|other| Cell { sequential_cutoff_bytes: 0, ..other })
        })
        .map(|it| CutoffEffect {
            other_bytes: it.cell.sequential_cutoff_bytes,
            hit_ratio: it.hit(),
            ssd_bytes: it.ssd_bytes,
        })
        .filter(|other| (other.hit_ratio - chosen.hit()).abs() >= CUTOFF_COSTS)
        .max_by(|a, b| {
            let far = |it: &CutoffEffect| (it.hit_ratio - chosen.hit()).abs();
            far(a).total_cmp(&far(b))
        });
    let next = sizes.iter().copied().find(|other| *other > size).map(|it| (it, best(&at(it))));
    Answer::Make(Box::new(Advice {
        cell,
        hit_ratio: chosen.hit(),
        byte_hit_ratio: chosen.byte_hit_ratio.map_or(0.0, |spread| spread.mean),
        lru_hit_ratio: lru_hits(chosen),
        best_hit_ratio: most,
        next,
        holds_footprint: cell.cache_bytes > footprint_bytes,
        cutoff,
        by_bucket,
        by_policy,
        ssd_bytes: chosen.ssd_bytes,
        ssd_bytes_per_day: chosen.ssd_bytes_per_day.map(|spread| spread.mean),
    }))
}
