//! Benches of the allocator's parts in memory, without I/O, beside the reference engine.

pub mod bucket;
pub mod invalidate;
pub mod latency;
pub mod sector;

use std::time::{Duration, Instant};

use bcache_core::allocator::{Config, Mark, State};
use bcache_core::units::{BucketIndex, Gen, Geometry, Prio, Sectors};
use clap::ValueEnum;
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;

use crate::reference::Reference;

/// Which engine a bench runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The allocator.
    Fast,
    /// The reference engine.
    Reference,
    /// Both, in one run.
    #[default]
    Both,
}

impl Engine {
    /// Whether the allocator is run.
    pub fn fast(self) -> bool {
        self != Self::Reference
    }

    /// Whether the reference engine is run.
    pub fn reference(self) -> bool {
        self != Self::Fast
    }
}

/// Sectors of a bucket in these benches.
pub const BUCKET_SECTORS: u64 = 1024;

/// A device of `nbuckets` buckets of 512 KiB.
pub fn geometry(nbuckets: u64) -> anyhow::Result<Geometry> {
    Geometry::new(nbuckets, 1, Sectors(BUCKET_SECTORS), Sectors(8))
        .filter(|geometry| geometry.nbuckets() >= 513)
        .ok_or_else(|| anyhow::anyhow!("--nbuckets {nbuckets}: the allocator needs at least 513"))
}

/// How a bucket of a used cache looks: nine of ten hold clean data of some age, the rest is dirty or
/// metadata.
fn contents(random: &mut Pcg64) -> (Prio, Mark, u16) {
    let bits = random.next_u64();
    let [prio, more_prio, sectors, more_sectors, kind, ..] = bits.to_le_bytes();
    let prio = u16::from_le_bytes([prio, more_prio]) / 2;
    let sectors = u16::from_le_bytes([sectors, more_sectors]) % 1024 + 1;
    match kind {
        0..230 => (Prio(prio + 1), Mark::Reclaimable, sectors),
        230..250 => (Prio(prio + 1), Mark::Dirty, sectors),
        _ => (Prio::BTREE, Mark::Metadata, 1024),
    }
}

/// An allocator whose buckets hold data, GC finished, nothing in its queues.
pub fn used_state(config: Config, seed: u64) -> anyhow::Result<State> {
    let state = State::new(config)?;
    let mut random = Pcg64::seed_from_u64(seed);
    for index in 1..config.geometry.nbuckets() {
        let (prio, mark, sectors) = contents(&mut random);
        let bucket = BucketIndex(index);
        state.table().set_prio(bucket, prio)?;
        state.table().mark_key(bucket, Gen(0), mark, sectors)?;
    }
    state.gc_finish(&[])?;
    Ok(state)
}

/// A reference engine with the same buckets.
pub fn used_reference(config: &Config, seed: u64) -> Reference {
    let mut reference =
        Reference::new(&config.geometry, config.policy, config.seed, config.reclaim_in_gc);
    let mut random = Pcg64::seed_from_u64(seed);
    for bucket in &mut reference.buckets[1..] {
        let (prio, mark, sectors) = contents(&mut random);
        (bucket.prio, bucket.mark, bucket.sectors_used) = (prio.0, mark, sectors);
    }
    reference.gc_finish(&[]);
    reference
}

/// Runs `work` and says how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

/// The middle one of several times.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
