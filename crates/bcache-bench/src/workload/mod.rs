//! What the writers do: which addresses they touch, how much at a time, and in which streams.
//!
//! A [`Workload`] describes it; a [`Generator`] is one writer's share of it, an endless sequence that
//! the seed and the writer's number decide alone. Times, threads and devices have no part in it, so
//! that two runs of the same settings do the same.

pub mod access;
pub mod weighted;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use bcache_cli::size::parse_bytes;
use bcache_core::units::{SECTOR_BYTES, Sectors, format_bytes};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Serialize, Serializer};

pub use access::Access;
pub use weighted::{Weighted, WeightedError};

use access::Picker;

/// Sizes of operations, each with its weight.
pub type BlockSizes = Weighted<BlockSize>;

/// Size of an operation: whole sectors, and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockSize(Sectors);

impl BlockSize {
    /// The size in sectors; `None` for none.
    pub fn new(sectors: Sectors) -> Option<Self> {
        (sectors.0 > 0).then_some(Self(sectors))
    }

    /// The size in sectors.
    pub fn sectors(self) -> Sectors {
        self.0
    }
}

impl FromStr for BlockSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
        if bytes % SECTOR_BYTES != 0 {
            return Err(format!("\"{text}\" is no whole number of sectors of 512 bytes"));
        }
        Self::new(Sectors(bytes / SECTOR_BYTES))
            .ok_or_else(|| "an operation of 0 bytes makes no sense".to_owned())
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format_bytes(self.0.bytes()).replace(' ', ""))
    }
}

/// Share of operations that read, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct ReadShare(f64);

impl ReadShare {
    /// `percent` of the operations; `None` where that is not between 0 and 100.
    pub fn from_percent(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent / 100.0))
    }

    /// As a fraction.
    pub fn fraction(self) -> f64 {
        self.0
    }
}

impl FromStr for ReadShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_suffix('%')
            .unwrap_or(text)
            .parse()
            .ok()
            .and_then(Self::from_percent)
            .ok_or_else(|| format!("\"{text}\" is not a share; write a number from 0 to 100"))
    }
}

impl fmt::Display for ReadShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

impl Serialize for ReadShare {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the writers do, all together.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Size of the volume's part that is touched, from its start.
    pub working_set: Sectors,
    /// Where operations go.
    pub access: Access,
    /// How much they read or write.
    pub block_sizes: BlockSizes,
    /// How many of them read.
    pub read_share: ReadShare,
    /// Streams (write points) of each writer.
    pub streams: NonZeroU32,
    /// Number of writers.
    pub writers: NonZeroU32,
    /// What the sequence of operations follows from.
    pub seed: u64,
}

/// Why a workload cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// The working set is smaller than one operation of each stream.
    #[error(
        "a working set of {working_set} is too small: {streams} streams with operations of up to \
         {block_max} need {needed} at least"
    )]
    WorkingSetTooSmall {
        /// What was asked for.
        working_set: Sectors,
        /// Streams of all writers.
        streams: u64,
        /// The largest operation.
        block_max: Sectors,
        /// What would do.
        needed: Sectors,
    },
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Read or write.
    pub kind: OperationKind,
    /// The stream (write point) it belongs to: unique over all writers.
    pub stream: u32,
    /// Where it begins in the volume.
    pub offset: Sectors,
    /// How much.
    pub size: Sectors,
}

/// Read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// A read, which may hit or miss.
    Read,
    /// A write.
    Write,
}

impl Workload {
    /// Streams of all writers.
    pub fn streams_total(&self) -> u64 {
        u64::from(self.streams.get()) * u64::from(self.writers.get())
    }

    /// The largest operation.
    pub fn block_max(&self) -> Sectors {
        self.block_sizes.values().map(|size| size.sectors()).max().unwrap_or_default()
    }

    /// What every offset and every size is a multiple of.
    pub fn granule(&self) -> Sectors {
        let sizes = self.block_sizes.values().map(|size| size.sectors().0);
        Sectors(sizes.reduce(greatest_common_divisor).unwrap_or(1).max(1))
    }

    /// What every piece of an operation is a multiple of, where operations are cut at the ends of buckets
    /// of this size.
    pub fn granule_in(&self, bucket: Sectors) -> Sectors {
        Sectors(greatest_common_divisor(self.granule().0, bucket.0))
    }

    /// Whether the working set has room for every stream.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let (streams, block_max) = (self.streams_total(), self.block_max());
        let needed = Sectors(block_max.0.saturating_mul(streams));
        if self.working_set < needed {
            return Err(WorkloadError::WorkingSetTooSmall {
                working_set: self.working_set,
                streams,
                block_max,
                needed,
            });
        }
        Ok(())
    }

    /// The operations of writer `writer`, counted from 0.
    pub fn generator(&self, writer: u32) -> Result<Generator, WorkloadError> {
        self.check()?;
        Ok(Generator::new(self, writer))
    }
}

/// The largest number that divides both.
pub fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// One writer's operations.
#[derive(Clone, Debug)]
pub struct Generator {
    random: Pcg64,
    block_sizes: BlockSizes,
    read_share: ReadShare,
    picker: Picker,
    streams: NonZeroU32,
    first_stream: u32,
}

impl Generator {
    fn new(workload: &Workload, writer: u32) -> Self {
        // Writers must differ however close their seeds are: the writer selects Pcg's stream, the
        // seed its state.
        let mut seeds = Pcg64::seed_from_u64(workload.seed);
        let random = Pcg64::new(seeds.random(), u128::from(writer));
        Self {
            random,
            block_sizes: workload.block_sizes.clone(),
            read_share: workload.read_share,
            picker: Picker::new(workload, writer),
            streams: workload.streams,
            first_stream: writer.saturating_mul(workload.streams.get()),
        }
    }

    /// The next operation.
    pub fn operation(&mut self) -> Operation {
        let Self { random, block_sizes, picker, .. } = self;
        let size = block_sizes.pick(random).sectors();
        let stream = random.random_range(0..self.streams.get());
        let offset = picker.offset(random, stream, size);
        let reads = random.random_bool(self.read_share.fraction());
        Operation {
            kind: if reads { OperationKind::Read } else { OperationKind::Write },
            stream: self.first_stream + stream,
            offset,
            size,
        }
    }
}

impl Iterator for Generator {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        Some(self.operation())
    }
}

#[cfg(test)]
mod tests;
