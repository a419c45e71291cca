//! A disk with a write cache that loses power.
//!
//! The model: a write is in the cache when it returns. A flush makes everything in the cache
//! durable. When the power goes, each logical block of each cached write has or has not reached
//! the medium, independently of all others; a block itself is never torn. Where several cached
//! writes touch one block, what is found afterwards is what one of them wrote, or what was there
//! before: a later write is never undone by an earlier one.
//!
//! The kernel's bcache writes its journal with preflush and FUA; here that is a flush, the write,
//! and another flush.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use super::MemoryDevice;
use crate::device::{
    BlockDevice, DeviceError, DeviceInfo, Operation, ReadDevice, check_aligned, check_range,
};

/// A write or discard that no flush has made durable yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unflushed {
    /// [`Operation::Write`] or [`Operation::Discard`].
    pub operation: Operation,
    /// Start in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Number of logical blocks, each of which survives a crash or does not.
    pub blocks: u64,
}

/// What survives a crash as one, in an enumeration of all outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashUnit {
    /// Whole writes.
    Write,
    /// Single logical blocks: writes may be torn.
    Block,
}

/// A disk with a volatile write cache. Clones are handles of the same disk.
#[derive(Clone, Debug)]
pub struct SimDevice {
    info: DeviceInfo,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// What is on the medium.
    durable: MemoryDevice,
    /// What reads see: the medium with the cache over it.
    current: MemoryDevice,
    cache: Vec<Cached>,
    changes: u64,
    cut_at: Option<u64>,
    power_lost: bool,
}

#[derive(Debug)]
struct Cached {
    what: Unflushed,
    /// What a write wrote; a discard has none.
    data: Option<Vec<u8>>,
}

impl SimDevice {
    /// A disk on whose medium is what `contents` holds now.
    pub fn new(contents: &MemoryDevice) -> Self {
        let state = State {
            durable: contents.snapshot(),
            current: contents.snapshot(),
            cache: Vec::new(),
            changes: 0,
            cut_at: None,
            power_lost: false,
        };
        Self { info: contents.info().clone(), state: Arc::new(Mutex::new(state)) }
    }

    /// Cuts the power at the `n`th write, flush or discard, counted together from 0.
    ///
    /// That one and everything after fail with `EIO`. A write that is cut counts as being in the
    /// cache, so that a crash may find any of its blocks; a flush that is cut has flushed nothing.
    #[must_use]
    pub fn with_power_cut_at(self, n: u64) -> Self {
        self.lock().cut_at = Some(n);
        self
    }

    /// Whether the power has been cut.
    pub fn power_lost(&self) -> bool {
        self.lock().power_lost
    }

    /// How many writes, flushes and discards have been asked for: the number of places at which
    /// the power can be cut.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// What is in the cache, in order.
    pub fn unflushed(&self) -> Vec<Unflushed> {
        self.lock().cache.iter().map(|cached| cached.what.clone()).collect()
    }

    /// A copy of the device as readers see it while the power is on.
    pub fn current(&self) -> MemoryDevice {
        self.lock().current.snapshot()
    }

    /// A copy of what a crash finds at least: nothing of the cache.
    pub fn durable(&self) -> MemoryDevice {
        self.lock().durable.snapshot()
    }

    /// What is found after a crash in which a block of a cached write survives when `survives`,
    /// given the index of the write in [`unflushed`](Self::unflushed) and of the block in it,
    /// says so.
    pub fn crash_with(&self, mut survives: impl FnMut(usize, u64) -> bool) -> MemoryDevice {
        let state = self.lock();
        let medium = state.durable.snapshot();
        let block_bytes = u64::from(self.info.logical_block_bytes.max(1));
        for (index, cached) in state.cache.iter().enumerate() {
            for block in 0..cached.what.blocks {
                if survives(index, block) {
                    cached.commit_block(&medium, block, block_bytes);
                }
            }
        }
        medium
    }

    /// What is found after a crash, chosen by `seed`.
    ///
    /// Among the outcomes are: nothing or all of the cache, a prefix of it, writes whole or not at
    /// all, and writes torn at any block.
    pub fn crash(&self, seed: u64) -> MemoryDevice {
        let mut rng = Pcg64::seed_from_u64(seed);
        let writes = self.lock().cache.len();
        match rng.random_range(0..4) {
            0 => {
                // In order up to one write, of which a prefix made it.
                let whole = rng.random_range(0..=writes);
                let share: f64 = rng.random();
                let blocks: Vec<u64> =
                    self.unflushed().iter().map(|unflushed| unflushed.blocks).collect();
                self.crash_with(|index, block| {
                    let count = blocks.get(index).copied().unwrap_or(0);
                    index < whole || (index == whole && is_in_share(block, count, share))
                })
            }
            1 => {
                let kept: Vec<bool> = (0..writes).map(|_| rng.random()).collect();
                self.crash_with(|index, _| kept.get(index).copied().unwrap_or(false))
            }
            2 => {
                // All but one write, or none but one.
                let chosen = rng.random_range(0..=writes);
                let others: bool = rng.random();
                self.crash_with(|index, _| (index == chosen) != others)
            }
            _ => {
                let likelihood: f64 = rng.random();
                self.crash_with(|_, _| rng.random_bool(likelihood))
            }
        }
    }

    /// Every outcome of a crash, where at most `units_max` units (at most 20) are in the cache;
    /// `None` where there are more.
    pub fn crash_images(
        &self,
        unit: CrashUnit,
        units_max: u32,
    ) -> Option<impl Iterator<Item = MemoryDevice> + use<'_>> {
        let unflushed = self.unflushed();
        // Index of the first unit of each write.
        let mut first_unit = Vec::with_capacity(unflushed.len());
        let mut units = 0u64;
        for write in &unflushed {
            first_unit.push(units);
            units = units.saturating_add(match unit {
                CrashUnit::Write => 1,
                CrashUnit::Block => write.blocks,
            });
        }
        if units > u64::from(units_max.min(20)) {
            return None;
        }
        Some((0..1u64 << units).map(move |subset| {
            self.crash_with(|index, block| {
                let first = first_unit.get(index).copied().unwrap_or(0);
                let number = match unit {
                    CrashUnit::Write => first,
                    CrashUnit::Block => first + block,
                };
                subset >> number & 1 == 1
            })
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_power(&self, operation: Operation, offset: u64, len: u64) -> DeviceError {
        DeviceError::Io {
            path: self.info.path.clone(),
            operation,
            offset,
            len,
            source: io::Error::from_raw_os_error(libc::EIO),
        }
    }

    fn change(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        data: Option<&[u8]>,
    ) -> Result<(), DeviceError> {
        check_range(&self.info, offset, len)?;
        check_aligned(&self.info, offset, len)?;
        let mut state = self.lock();
        let had_power = !state.power_lost;
        let has_power = state.count_change();
        if had_power && operation == Operation::Flush {
            if has_power {
                state.durable = state.current.snapshot();
                state.cache.clear();
            }
        } else if had_power {
            let blocks = len / u64::from(self.info.logical_block_bytes.max(1));
            let what = Unflushed { operation, offset, len, blocks };
            match data {
                Some(data) => state.current.write_at(offset, data)?,
                None => state.current.discard(offset, len)?,
            }
            state.cache.push(Cached { what, data: data.map(<[u8]>::to_vec) });
        }
        if has_power { Ok(()) } else { Err(self.no_power(operation, offset, len)) }
    }
}

impl State {
    /// Counts a change and says whether the power lasts through it.
    fn count_change(&mut self) -> bool {
        if self.cut_at == Some(self.changes) {
            self.power_lost = true;
        }
        self.changes += 1;
        !self.power_lost
    }
}

impl Cached {
    fn commit_block(&self, medium: &MemoryDevice, block: u64, block_bytes: u64) {
        let within = block * block_bytes;
        let offset = self.what.offset + within;
        // In range and aligned: it was when it went into the cache.
        let _ = match &self.data {
            Some(data) => {
                let start = usize::try_from(within).unwrap_or(usize::MAX);
                let len = usize::try_from(block_bytes).unwrap_or(0);
                let bytes = data.get(start..).and_then(|rest| rest.get(..len));
                medium.write_at(offset, bytes.unwrap_or_default())
            }
            None => medium.discard(offset, block_bytes),
        };
    }
}

/// Whether `block` is in the first `share` (0 to 1) of `count` blocks.
#[allow(clippy::cast_precision_loss)] // a choice among outcomes, where near is as good as exact
fn is_in_share(block: u64, count: u64, share: f64) -> bool {
    (block as f64) < share * count as f64
}

impl ReadDevice for SimDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let state = self.lock();
        if state.power_lost {
            return Err(self.no_power(Operation::Read, offset, buf.len() as u64));
        }
        state.current.read_at(offset, buf)
    }
}

impl BlockDevice for SimDevice {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.change(Operation::Write, offset, data.len() as u64, Some(data))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.change(Operation::Flush, 0, 0, None)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.change(Operation::Discard, offset, len, None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 512;
    const BLOCKS: usize = 16;

    #[derive(Clone, Debug)]
    enum Op {
        Write { block: usize, blocks: usize, fill: u8 },
        Discard { block: usize, blocks: usize },
        Flush,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let range = || (0..BLOCKS, 1..6usize).prop_map(|(at, len)| (at, len.min(BLOCKS - at)));
        let op = prop_oneof![
            4 => (range(), 1u8..)
                .prop_map(|((block, blocks), fill)| Op::Write { block, blocks, fill }),
            1 => range().prop_map(|(block, blocks)| Op::Discard { block, blocks }),
            1 => Just(Op::Flush),
        ];
        proptest::collection::vec(op, 1..30)
    }

    fn block_of(device: &MemoryDevice, block: usize) -> u8 {
        let mut buf = [0; BLOCK];
        device.read_at((block * BLOCK) as u64, &mut buf).unwrap();
        assert!(buf.iter().all(|&byte| byte == buf[0]), "block {block} is torn");
        buf[0]
    }

    /// Runs `ops`; gives the disk, and for each block the values that a crash may find: what was
    /// last flushed and what was written since.
    fn run(ops: &[Op], device: &SimDevice) -> (Vec<BTreeSet<u8>>, Vec<u8>) {
        let mut current = vec![0u8; BLOCKS];
        let mut possible: Vec<BTreeSet<u8>> = vec![BTreeSet::from([0]); BLOCKS];
        for op in ops {
            let (block, blocks, fill, result) = match *op {
                Op::Write { block, blocks, fill } => {
                    let data = vec![fill; blocks * BLOCK];
                    (block, blocks, fill, device.write_at((block * BLOCK) as u64, &data))
                }
                Op::Discard { block, blocks } => {
                    let (offset, len) = ((block * BLOCK) as u64, (blocks * BLOCK) as u64);
                    (block, blocks, 0, device.discard(offset, len))
                }
                Op::Flush => {
                    if device.flush().is_err() {
                        break;
                    }
                    possible = current.iter().map(|&value| BTreeSet::from([value])).collect();
                    continue;
                }
            };
            for at in block..block + blocks {
                current[at] = fill;
                possible[at].insert(fill);
            }
            if result.is_err() {
                break;
            }
        }
        (possible, current)
    }

    proptest! {
        /// What was flushed survives; of what was not, each block is old or new; all of it is
        /// found when everything survives, nothing when nothing does.
        #[test]
        fn a_crash_finds_flushed_data_and_a_mix_of_the_rest(ops in ops(), seeds: [u64; 8]) {
            let device = SimDevice::new(&MemoryDevice::new((BLOCKS * BLOCK) as u64));
            let (possible, current) = run(&ops, &device);
            for seed in seeds {
                let found = device.crash(seed);
                prop_assert_eq!(device.crash(seed).first_difference(&found), None);
                for (block, possible) in possible.iter().enumerate() {
                    prop_assert!(possible.contains(&block_of(&found, block)));
                }
            }
            let all = device.crash_with(|_, _| true);
            let values: Vec<u8> = (0..BLOCKS).map(|block| block_of(&all, block)).collect();
            prop_assert_eq!(&values, &current);
            prop_assert_eq!(all.first_difference(&device.current()), None);
            prop_assert_eq!(device.crash_with(|_, _| false).first_difference(&device.durable()), None);
            device.flush().unwrap();
            prop_assert_eq!(device.durable().first_difference(&all), None);
        }

        /// The same with the power cut at any operation: what is asked after it changes nothing.
        #[test]
        fn the_power_goes_at_one_operation(ops in ops(), cut in 0..30u64, seed: u64) {
            let device = SimDevice::new(&MemoryDevice::new((BLOCKS * BLOCK) as u64))
                .with_power_cut_at(cut);
            let (possible, _) = run(&ops, &device);
            prop_assert_eq!(device.power_lost(), cut < ops.len() as u64);
            if device.power_lost() {
                let before = device.crash(seed);
                prop_assert!(device.write_at(0, &[0xff; BLOCK]).is_err());
                prop_assert!(device.flush().is_err());
                prop_assert!(device.read_at(0, &mut [0; 1]).is_err());
                prop_assert_eq!(device.crash(seed).first_difference(&before), None);
            }
            let found = device.crash(seed);
            for (block, possible) in possible.iter().enumerate() {
                prop_assert!(possible.contains(&block_of(&found, block)));
            }
        }
    }

    /// The enumeration is complete: by writes every subset of three writes, by blocks every tear.
    #[test]
    fn every_subset_is_enumerated() {
        let device = SimDevice::new(&MemoryDevice::new((BLOCKS * BLOCK) as u64));
        for (block, fill) in [(0, 1), (2, 2), (4, 3)] {
            device.write_at((block * BLOCK) as u64, &[fill; 2 * BLOCK]).unwrap();
        }
        let found = |unit| -> BTreeSet<Vec<u8>> {
            let images = device.crash_images(unit, 8).unwrap();
            images.map(|image| (0..6).map(|block| block_of(&image, block)).collect()).collect()
        };
        let by_write = found(CrashUnit::Write);
        let by_block = found(CrashUnit::Block);
        assert_eq!((by_write.len(), by_block.len()), (8, 64));
        assert!(by_write.is_subset(&by_block));
        assert!(by_write.contains(&vec![1, 1, 0, 0, 3, 3]));
        assert!(by_block.contains(&vec![0, 1, 2, 0, 0, 3]));
        assert!(device.crash_images(CrashUnit::Block, 5).is_none());
    }

    /// Seeds reach all kinds of outcomes: none, all, whole subsets, prefixes, tears.
    #[test]
    fn seeds_reach_every_outcome_of_a_small_cache() {
        let device = SimDevice::new(&MemoryDevice::new((BLOCKS * BLOCK) as u64));
        for block in [0, 2] {
            device.write_at((block * BLOCK) as u64, &[1; 2 * BLOCK]).unwrap();
        }
        let found: BTreeSet<u64> = (0..400).map(|seed| device.crash(seed).content_hash()).collect();
        assert_eq!(found.len(), 16);
    }
}
