//! `bcache-bench invalidate`: one LRU pass, and one rescaling, against the sum of an array.
//!
//! The yardstick is the time that it takes to add up a `u32` array with as many entries as there are
//! buckets: what memory allows at best.

use std::hint::black_box;
use std::time::Duration;

use bcache_core::allocator::replacement::lru;
use bcache_core::allocator::state::HandOut;
use bcache_core::allocator::{BucketTable, Config, Mark, Reserve, Safe, State};
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;

use super::{Engine, geometry, median, timed, used_reference, used_state};
use crate::reference::Reference;

/// What the bench found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Buckets.
    pub nbuckets: u64,
    /// Victims of one pass.
    pub victims: usize,
    /// Passes, of which the median is given.
    pub passes: usize,
    /// Bytes of the bucket table for each bucket.
    pub bytes_per_bucket: usize,
    /// Adding up an array.
    pub sum_ns: u64,
    /// Naming the victims of one pass: sweep, selection, sorting.
    pub select_ns: Option<u64>,
    /// One pass of the allocator: the same, and invalidating them.
    pub pass_ns: Option<u64>,
    /// One rescaling.
    pub rescale_ns: Option<u64>,
    /// One pass of the reference engine.
    pub reference_pass_ns: Option<u64>,
    /// One rescaling of the reference engine.
    pub reference_rescale_ns: Option<u64>,
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Empties `free_inc`: its buckets are allocated, filled, and become the hottest.
fn use_up(state: &State) -> anyhow::Result<()> {
    state.free_inc_safe(Safe::NotSynced);
    loop {
        let pushed = matches!(state.hand_out(), HandOut::Pushed(..));
        let mut allocated = 0;
        for reserve in Reserve::ALL {
            while let Some(bucket) = state.bucket_alloc(reserve)? {
                state.table().unpin(bucket)?;
                state.table().set_mark(bucket, Mark::Reclaimable)?;
                state.table().hit(bucket)?;
                allocated += 1;
            }
        }
        if !pushed && allocated == 0 {
            return Ok(());
        }
    }
}

fn use_up_reference(reference: &mut Reference) {
    loop {
        let pushed = reference.push_one().is_some();
        let mut allocated = 0;
        for reserve in Reserve::ALL {
            while let Some(b) = reference.bucket_alloc(reserve) {
                let bucket = &mut reference.buckets[b];
                bucket.pin -= 1;
                bucket.prio = 32768;
                bucket.mark = Mark::Reclaimable;
                allocated += 1;
            }
        }
        if !pushed && allocated == 0 {
            return;
        }
    }
}

/// Runs the bench.
pub fn run(nbuckets: u64, passes: usize, engine: Engine, seed: u64) -> anyhow::Result<Report> {
    let config = Config::new(geometry(nbuckets)?);
    let len = usize::try_from(nbuckets)?;
    let mut random = Pcg64::seed_from_u64(seed);
    let array: Vec<u32> = (0..len).map(|_| random.next_u32()).collect();
    let mut fast = engine.fast().then(|| used_state(config, seed)).transpose()?;
    let mut reference = engine.reference().then(|| used_reference(&config, seed));
    let mut scratch = lru::Scratch::default();
    let mut times: [Vec<Duration>; 6] = Default::default();
    let mut victims = 0;
    // Everything in turn, so that all see the same state of the machine.
    for _ in 0..passes.max(1) {
        let [sums, selects, fast_passes, fast_rescales, passes, rescales] = &mut times;
        let sum = || black_box(&array).iter().fold(0u32, |sum, &word| sum.wrapping_add(word));
        sums.push(timed(|| black_box(sum())).0);
        if let Some(state) = &mut fast {
            let (min_prio, room) = (state.set().min_prio(), state.sizes().free_inc);
            let mut select = || lru::select(state.table(), min_prio, room, &mut scratch).len();
            selects.push(timed(|| black_box(select())).0);
            sums.push(timed(|| black_box(sum())).0);
            let (time, pass) = timed(|| state.invalidate_buckets());
            victims = pass?.invalidated;
            fast_passes.push(time);
            use_up(state)?;
            sums.push(timed(|| black_box(sum())).0);
            let due = u32::try_from(state.set().until_rescale().max(0) + 1)?;
            let (time, done) = timed(|| state.rescale_priorities(due));
            anyhow::ensure!(done, "no rescaling was due");
            fast_rescales.push(time);
        }
        if let Some(reference) = &mut reference {
            passes.push(timed(|| reference.invalidate_buckets()).0);
            victims = reference.free_inc.items.len();
            use_up_reference(reference);
            let due = u32::try_from(reference.rescale.max(0) + 1)?;
            rescales.push(timed(|| reference.rescale_priorities(due)).0);
        }
    }
    let [sum, select, pass, rescale, reference_pass, reference_rescale] =
        times.map(|mut times| (!times.is_empty()).then(|| ns(median(&mut times))));
    Ok(Report {
        nbuckets,
        victims,
        passes,
        bytes_per_bucket: BucketTable::BYTES_PER_BUCKET,
        sum_ns: sum.unwrap_or(0),
        select_ns: select,
        pass_ns: pass,
        rescale_ns: rescale,
        reference_pass_ns: reference_pass,
        reference_rescale_ns: reference_rescale,
    })
}
