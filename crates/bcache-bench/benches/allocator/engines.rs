//! The allocator and the reference engine with buckets in use.

use std::sync::Arc;

use bcache_core::allocator::{Allocator, Config, Mark};
use bcache_core::units::{BucketIndex, Gen, Geometry, Prio, Sectors};
use clap::ValueEnum;
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;

use bcache_core::allocator::testkit::{self, Reference};

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

/// What cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The allocator's reserves would take all buckets.
    #[error("--nbuckets {nbuckets}: the allocator needs at least 513")]
    TooFewBuckets {
        /// Buckets asked for.
        nbuckets: u64,
    },
    /// No device is that large.
    #[error("--nbuckets {nbuckets}: no device has so many")]
    TooManyBuckets {
        /// Buckets asked for.
        nbuckets: u64,
    },
    /// A thread would have no stream.
    #[error(
        "--streams {streams} is too few for --threads {threads}: each thread has streams of its own"
    )]
    TooFewStreams {
        /// Streams asked for.
        streams: usize,
        /// Threads asked for.
        threads: usize,
    },
    /// What is compared with the allocator does not fit into memory.
    #[error("no memory for {what} of {nbuckets} buckets ({bytes} bytes)")]
    NoMemory {
        /// What does not fit.
        what: &'static str,
        /// Buckets asked for.
        nbuckets: u64,
        /// Bytes it takes.
        bytes: u64,
    },
}

/// A device of `nbuckets` buckets of 512 KiB.
pub fn geometry(nbuckets: u64) -> Result<Geometry, MemoryError> {
    if nbuckets < 513 {
        return Err(MemoryError::TooFewBuckets { nbuckets });
    }
    Geometry::new(nbuckets, 1, Sectors(BUCKET_SECTORS), Sectors(8))
        .ok_or(MemoryError::TooManyBuckets { nbuckets })
}

/// An empty vector with room for one `T` for each of `nbuckets`. What is too large for the machine is an
/// error here, and not the end of the program.
pub fn reserve<T>(what: &'static str, nbuckets: u64) -> Result<Vec<T>, MemoryError> {
    let bytes = nbuckets.saturating_mul(size_of::<T>() as u64);
    let no_memory = || MemoryError::NoMemory { what, nbuckets, bytes };
    let mut vec = Vec::new();
    let len = usize::try_from(nbuckets).map_err(|_| no_memory())?;
    vec.try_reserve_exact(len).map_err(|_| no_memory())?;
    Ok(vec)
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
pub fn used_allocator(config: Config, seed: u64) -> anyhow::Result<Arc<Allocator>> {
    let allocator = Allocator::new(config)?;
    let table = allocator.core().table();
    let mut random = Pcg64::seed_from_u64(seed);
    for index in 1..config.geometry.nbuckets() {
        let (prio, mark, sectors) = contents(&mut random);
        let bucket = BucketIndex(index);
        table.set_prio(bucket, prio)?;
        table.mark_key(bucket, Gen(0), mark, sectors)?;
    }
    allocator.gc_finish(&[])?;
    Ok(allocator)
}

/// A reference engine with the same buckets.
pub fn used_reference(config: &Config, seed: u64) -> Result<Reference, MemoryError> {
    // It takes its memory without asking whether there is any.
    drop(reserve::<testkit::Bucket>("the reference engine", config.geometry.nbuckets())?);
    let mut reference = Reference::new(&config.geometry, config.policy, seed, config.reclaim_in_gc);
    let mut random = Pcg64::seed_from_u64(seed);
    for bucket in &mut reference.buckets[1..] {
        let (prio, mark, sectors) = contents(&mut random);
        (bucket.prio, bucket.mark, bucket.sectors_used) = (prio.0, mark, sectors);
    }
    reference.gc_finish(&[]);
    Ok(reference)
}

/// What an engine is called in reports: [`Engine::Both`] names none.
pub const fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Fast => "allocator",
        Engine::Reference => "reference",
        Engine::Both => "both",
    }
}

pub mod tests {
    use super::{MemoryError, geometry, reserve};

    pub fn what_cannot_be_is_an_error_that_says_why() {
        assert_eq!(geometry(512), Err(MemoryError::TooFewBuckets { nbuckets: 512 }));
        let nbuckets = u64::MAX;
        assert_eq!(geometry(nbuckets), Err(MemoryError::TooManyBuckets { nbuckets }));
        let error = reserve::<u32>("an array", nbuckets).unwrap_err();
        assert!(matches!(error, MemoryError::NoMemory { .. }), "{error}");
        assert!(reserve::<u32>("an array", 513).unwrap().capacity() >= 513);
    }
}
