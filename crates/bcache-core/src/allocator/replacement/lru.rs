//! LRU: the buckets with the least `bucket_prio`, in ascending order (FORMAT.md §9.3, §9.4).
//!
//! The kernel sifts every bucket through a heap of `8 * free` pointers. Here one sweep over the hot
//! words compares each bucket's key with a threshold, eight at a time, and only those that pass,
//! about twice as many as wanted, are looked at again:
//!
//! 1. A sample of the table guesses a threshold that somewhat more than the wanted number pass.
//! 2. The sweep collects what passes. When it has collected several times what is wanted, it keeps
//!    the best and lowers the threshold to the worst of those; from then on ties do not pass, as
//!    with the kernel's heap.
//! 3. If the guess was too low, it sweeps again with a higher one, at most twice.
//! 4. The best are selected in linear time, and only they are sorted.
//!
//! Keys are 32 bits there. `bucket_prio` itself is 64 bits around an inner 32-bit wrap, which shows
//! when `min_prio` is over 32768 (65535 after a rescaling that aged nothing) or when a bucket's prio
//! is far below `min_prio` (it was pinned while the others aged). Such buckets rank after all
//! others, so they only matter when there are too few others; then, and with such a `min_prio`, an
//! exact sweep decides.

use crate::units::{BucketIndex, Prio};

use super::super::sync::{AtomicU32, Ordering};
use super::super::table::BucketTable;
use super::super::vector::{self, GROUP};
use super::super::words::Hot;

/// `bucket_prio`: what LRU sorts by, small first.
///
/// The prio's share has the bucket with the least prio count an eighth of what a new one counts.
pub const fn bucket_prio(prio: Prio, sectors_used: u16, min_prio: u16) -> u64 {
    let (prio, min_prio) = (prio.0 as u32, min_prio as u32);
    let least = (Prio::INITIAL.0 as u32).wrapping_sub(min_prio) / 8;
    prio.wrapping_sub(min_prio).wrapping_add(least) as u64 * sectors_used as u64
}

/// A bucket that LRU chose, with its `bucket_prio` when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Victim {
    /// What it was chosen by.
    pub bucket_prio: u64,
    /// Its index in the table.
    index: u32,
}

impl Victim {
    /// The bucket.
    pub fn bucket(&self) -> BucketIndex {
        BucketIndex(u64::from(self.index))
    }
}

/// Memory that passes reuse.
#[derive(Debug, Default)]
pub struct Scratch {
    keyed: Vec<u64>,
    victims: Vec<Victim>,
}

/// Groups swept before what they yielded is looked at.
const BLOCK_GROUPS: usize = 32;

/// Largest key that nothing wrapped in: `(65534 + 4096) * 8191`, below 2^30.
const KEY_MAX: u32 = (1 << 30) - 1;

/// The `count` buckets that may be invalidated with the least `bucket_prio`, ascending, or all of
/// them when there are fewer.
pub fn select<'a>(
    table: &BucketTable,
    min_prio: u16,
    count: usize,
    scratch: &'a mut Scratch,
) -> &'a [Victim] {
    scratch.victims.clear();
    let words = table.hot();
    let first = u32::try_from(table.first_bucket().0).unwrap_or(u32::MAX);
    if count == 0 {
        return &scratch.victims;
    }
    if min_prio <= Prio::INITIAL.0 {
        let min = u32::from(min_prio);
        let base = min.wrapping_sub((u32::from(Prio::INITIAL.0) - min) / 8);
        let mut sweep = Sweep { words, base, count, keyed: &mut scratch.keyed };
        if sweep.run() {
            scratch.victims.extend(scratch.keyed.iter().map(|&keyed| Victim {
                bucket_prio: keyed >> 32,
                index: index_of(keyed).saturating_add(first),
            }));
            return &scratch.victims;
        }
    }
    select_exact(words, first, min_prio, count, &mut scratch.victims);
    &scratch.victims
}

/// The low half of a key and index packed as one number.
fn index_of(keyed: u64) -> u32 {
    let [a, b, c, d, ..] = keyed.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

struct Sweep<'a> {
    words: &'a [AtomicU32],
    base: u32,
    count: usize,
    keyed: &'a mut Vec<u64>,
}

impl Sweep<'_> {
    /// Leaves the victims in `keyed`, ascending; false when fewer than `count` have keys that fit.
    fn run(&mut self) -> bool {
        let mut threshold = self.guess();
        loop {
            let at_most = threshold.unwrap_or(KEY_MAX);
            self.sweep(at_most);
            if self.keyed.len() >= self.count {
                self.keep_best();
                self.keyed.sort_unstable();
                return true;
            }
            if at_most >= KEY_MAX {
                return false;
            }
            // The sample misled: take all that is at hand, the sweep itself finds the threshold.
            threshold = None;
        }
    }

    /// A threshold that somewhat more than `count` buckets should pass, from about one in 256 of
    /// them; `None` when the sample cannot tell.
    ///
    /// It takes whole cache lines, at distances that share no factor with how caches are filled, so
    /// that a table whose prios repeat or rise with the bucket is sampled fairly.
    fn guess(&mut self) -> Option<u32> {
        const LINE: usize = 16;
        let lines = (self.words.len() / LINE / 64).min(4096);
        if lines < 64 {
            return None;
        }
        let stride = self.words.len() / lines;
        let mut keys: Vec<u32> = Vec::with_capacity(lines * 4);
        let mut jitter = 0x9e37_79b9usize;
        for line in 0..lines {
            jitter = jitter.wrapping_mul(0x915f_77f5).wrapping_add(0x3c6e_f35f);
            let start = line * stride + (jitter >> 8) % stride;
            let window = self.words.get(start..).unwrap_or_default();
            keys.extend(window.iter().take(4).filter_map(|word| self.key(word)));
        }
        let sampled = lines * 4;
        // Expected rank in the sample, and four standard deviations more.
        let rank = self.count.checked_mul(sampled)? / self.words.len();
        let rank = rank + rank.isqrt() * 4 + 8;
        if rank >= keys.len() {
            return None;
        }
        let (_, key, _) = keys.select_nth_unstable(rank);
        Some(*key)
    }

    fn key(&self, word: &AtomicU32) -> Option<u32> {
        let word = word.load(Ordering::Relaxed);
        let key = vector::key(word, self.base);
        (!Hot(word).excluded() && key <= KEY_MAX).then_some(key)
    }

    /// Collects the buckets whose key is at most `threshold`, or the best of them.
    fn sweep(&mut self, mut threshold: u32) {
        let room = self.count.saturating_mul(4).max(1024);
        self.keyed.clear();
        let mut masks = [0u64; BLOCK_GROUPS];
        for (block, words) in self.words.chunks(GROUP * BLOCK_GROUPS).enumerate() {
            let groups = words.len() / GROUP;
            vector::victims(
                words,
                self.base,
                threshold,
                masks.get_mut(..groups).unwrap_or_default(),
            );
            let start = block * GROUP * BLOCK_GROUPS;
            for (group, &mask) in masks.iter().take(groups).enumerate() {
                let mut mask = mask;
                while mask != 0 {
                    let bit = mask.trailing_zeros() as usize;
                    mask &= mask - 1;
                    self.collect(start + group * GROUP + bit, threshold);
                }
            }
            for index in groups * GROUP..words.len() {
                self.collect(start + index, threshold);
            }
            if self.keyed.len() >= room {
                let Some(worst) = self.keep_best() else { return };
                // At the bottom nothing can be better than what there is.
                let Some(below) = worst.checked_sub(1) else { return };
                threshold = threshold.min(below);
            }
        }
    }

    fn collect(&mut self, index: usize, threshold: u32) {
        if let (Some(word), Ok(low)) = (self.words.get(index), u32::try_from(index)) {
            if let Some(key) = self.key(word).filter(|&key| key <= threshold) {
                self.keyed.push((u64::from(key) << 32) | u64::from(low));
            }
        }
    }

    /// Drops all but the `count` least; the greatest key among those.
    fn keep_best(&mut self) -> Option<u32> {
        let last = self.count - 1;
        if self.keyed.len() > self.count {
            self.keyed.select_nth_unstable(last);
            self.keyed.truncate(self.count);
        }
        self.keyed.get(last).and_then(|&keyed| u32::try_from(keyed >> 32).ok())
    }
}

/// The same with 64-bit keys and every wrap as it is, one bucket after the other.
fn select_exact(
    words: &[AtomicU32],
    first: u32,
    min_prio: u16,
    count: usize,
    victims: &mut Vec<Victim>,
) {
    let room = count.saturating_mul(2).max(1024);
    let mut threshold = u64::MAX;
    victims.clear();
    for (index, word) in (first..).zip(words) {
        let word = Hot(word.load(Ordering::Relaxed));
        if word.excluded() {
            continue;
        }
        let bucket_prio = bucket_prio(word.prio(), word.sectors_used(), min_prio);
        if bucket_prio > threshold {
            continue;
        }
        victims.push(Victim { bucket_prio, index });
        if victims.len() >= room && victims.len() > count {
            let (_, worst, _) = victims.select_nth_unstable(count - 1);
            let Some(below) = worst.bucket_prio.checked_sub(1) else {
                victims.truncate(count);
                break;
            };
            threshold = below;
            victims.truncate(count);
        }
    }
    victims.sort_unstable();
    victims.truncate(count);
}
