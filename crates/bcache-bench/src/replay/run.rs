//! Runs cells in parallel over one decoded trace.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use bcache_core::allocator::Policy;
use bcache_core::model::{CacheModel, Stats};

use super::cells::{Cell, CellResult};
use super::ideal::{LruCurve, Unit};
use crate::trace::{Request, Trace};

/// Requests between two looks at the flag that ends a run.
const BATCH: usize = 16 << 10;
/// Exact LRU is of such blocks: 4 KiB.
const BLOCK_SECTORS: u64 = 8;

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Block size of the cache set.
    pub block_bytes: u64,
    /// Part of the addresses that the trace has: caches are made as much smaller.
    pub sample: f64,
    /// What the SSD's maker lets be written to it.
    pub tbw_bytes: Option<u64>,
    /// Seeds that RANDOM is tried with.
    pub seeds: u64,
    /// Threads.
    pub jobs: usize,
}

/// What ran, and how far.
#[derive(Debug, Default)]
pub struct Live {
    /// Ends the run early.
    pub stop: AtomicBool,
    /// Requests replayed in all cells.
    pub done: AtomicU64,
    /// Requests to replay in all cells.
    pub total: AtomicU64,
}

/// One model to run: a place in the list of cells and a seed.
#[derive(Clone, Copy, Debug)]
struct Job {
    place: usize,
    seed: u64,
}

enum Outcome {
    Ran(Job, Box<Stats>),
    Lru(LruCurve),
    Failed(anyhow::Error),
}

/// Runs all cells. Those that were not finished when the run was stopped are not in the result; the
/// second value says that there are some.
///
/// # Errors
/// When there is no memory for a cell, or a model contradicts itself.
pub fn run(
    trace: &Trace,
    cells: &[Cell],
    options: &RunOptions,
    live: &Live,
) -> Result<(Vec<CellResult>, bool)> {
    let mut jobs: Vec<Job> = Vec::new();
    for (place, cell) in
        cells.iter().enumerate().filter(|(_, cell)| cell.is_feasible(options.sample))
    {
        let seeds = if cell.policy == Policy::Random { options.seeds.max(1) } else { 1 };
        jobs.extend((0..seeds).map(|seed| Job { place, seed }));
    }
    let requests = trace.requests.as_slice();
    live.total.store((jobs.len() * requests.len()) as u64, Ordering::Relaxed);
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let put = |outcome| outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    // The curve first: it is one job, and not a short one.
                    if at == 0 {
                        let unit = Unit::Blocks(BLOCK_SECTORS);
                        if let Some(curve) = LruCurve::of_until(requests, unit, &live.stop) {
                            put(Outcome::Lru(curve));
                        }
                        continue;
                    }
                    let Some(job) = jobs.get(at - 1) else { break };
                    let Some(cell) = cells.get(job.place) else { break };
                    match run_cell(requests, cell, job.seed, options, live) {
                        Ok(Some(stats)) => put(Outcome::Ran(*job, Box::new(stats))),
                        Ok(None) => break,
                        Err(error) => {
                            live.stop.store(true, Ordering::Relaxed);
                            put(Outcome::Failed(error));
                            break;
                        }
                    }
                }
            });
        }
    });
    let mut lru = LruCurve::default();
    let mut by_place: BTreeMap<usize, Vec<(u64, Stats)>> = BTreeMap::new();
    for outcome in outcomes.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match outcome {
            Outcome::Lru(curve) => lru = curve,
            Outcome::Ran(job, stats) => {
                by_place.entry(job.place).or_default().push((job.seed, *stats));
            }
            Outcome::Failed(error) => return Err(error),
        }
    }
    let duration_ns = if trace.summary.has_times { trace.summary.duration_ns } else { 0 };
    let mut results = Vec::new();
    let mut interrupted = false;
    for (place, cell) in cells.iter().enumerate() {
        let mut runs = by_place.remove(&place).unwrap_or_default();
        if runs.is_empty() && cell.is_feasible(options.sample) {
            interrupted = true;
            continue;
        }
        runs.sort_unstable_by_key(|(seed, _)| *seed);
        let runs = runs.into_iter().map(|(_, stats)| stats).collect();
        let config = cell.config(options.sample, options.block_bytes, 0);
        let ideal = lru.misses(config.cache_size.0 / BLOCK_SECTORS);
        results.push(CellResult::new(*cell, runs, ideal, duration_ns, options));
    }
    interrupted |= live.done.load(Ordering::Relaxed) < live.total.load(Ordering::Relaxed);
    Ok((results, interrupted))
}

/// `None` when the run was stopped.
fn run_cell(
    requests: &[Request],
    cell: &Cell,
    seed: u64,
    options: &RunOptions,
    live: &Live,
) -> Result<Option<Stats>> {
    let config = cell.config(options.sample, options.block_bytes, seed);
    let mut cache = CacheModel::new(config).context("cannot model a cache")?;
    for batch in requests.chunks(BATCH) {
        if live.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        for request in batch {
            cache.request(request).context("the model failed; please report this")?;
        }
        live.done.fetch_add(batch.len() as u64, Ordering::Relaxed);
    }
    Ok(Some(cache.stats()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::answer::{Answer, answer};
    use crate::replay::plan::{self, Wanted};
    use crate::trace::{LoadOptions, from_reader, load};

    #[test]
    fn what_was_not_finished_is_left_out() {
        let lines: Vec<String> = (0..100).map(|at| format!("{at} 0 {} 8 1\n", at % 10)).collect();
        let requests = from_reader(std::io::Cursor::new(lines.concat()), None, None).unwrap();
        let trace = load(requests, &LoadOptions::default()).unwrap();
        let cells = plan::cells(&Wanted::default(), trace.summary.footprint_bytes);
        let options =
            RunOptions { block_bytes: 512, sample: 1.0, tbw_bytes: None, seeds: 1, jobs: 2 };
        let live = Live::default();
        live.stop.store(true, Ordering::Relaxed);
        let (results, interrupted) = run(&trace, &cells, &options, &live).unwrap();
        assert!(interrupted);
        // Those that are refused need no run.
        assert!(results.iter().all(|it| it.refused));
        assert_eq!(answer(&results, interrupted, 0), Answer::Unfinished);
        let (results, interrupted) = run(&trace, &cells, &options, &Live::default()).unwrap();
        assert_eq!((results.len(), interrupted), (cells.len(), false));
    }
}
