//! LRU: the buckets with the least `bucket_prio`, in ascending order (on-disk-format.md §9.3, §9.4).
//!
//! The kernel sifts every bucket through a heap of `8 * free` pointers. Here one sweep over the hot
//! words compares each bucket's key with a threshold, eight at a time, and only those that pass,
//! about twice as many as wanted, are looked at again:
//!
//! 1. A threshold is guessed that somewhat more than the wanted number pass: that of the pass before,
//!    if enough were left below it, or else by a sample of the table.
//! 2. The sweep collects what passes. When it has collected several times what is wanted, it keeps
//!    the best (twice as many as are wanted: at its end more may be) and lowers the threshold to the
//!    worst of those; from then on ties do not pass, as with the kernel's heap.
//! 3. If the guess was too low, it sweeps again without one.
//! 4. The best are told from the rest in linear time. They are invalidated in the order of the
//!    table, which is the order that memory likes, and only then sorted.
//!
//! Keys are 32 bits there. `bucket_prio` itself is 64 bits around an inner 32-bit wrap, which shows
//! when `min_prio` is over 32768 (65535 after a rescaling that aged nothing) or when a bucket's prio
//! is far below `min_prio` (it was pinned while the others aged). Such buckets rank after all
//! others, so they only matter when there are too few others; then, and with such a `min_prio`, an
//! exact sweep decides.

use crate::units::{BucketIndex, Prio};

use super::super::sync::{AtomicU32, Ordering};
use super::super::table::{BucketTable, index_at};
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
    pub(super) const fn new(bucket_prio: u64, index: u32) -> Self {
        Self { bucket_prio, index }
    }

    /// The bucket.
    pub fn bucket(&self) -> BucketIndex {
        BucketIndex(u64::from(self.index))
    }
}

/// Memory that passes reuse.
#[derive(Debug, Default)]
pub struct Scratch {
    keyed: Pile<u64>,
    exact: Pile<Victim>,
    last: Option<LastPass>,
    /// Of the kernel's way to select.
    pub(crate) heap: Vec<Victim>,
}

/// What the next pass may begin with. A rescaling changes each key by an eighth of its sectors at
/// most, and most not at all.
#[derive(Clone, Copy, Debug)]
struct LastPass {
    /// What its sweep began with.
    threshold: u32,
    /// Buckets below that, those that were taken not counted.
    left: usize,
}

/// What a sweep collected, in the order of the table, and room to work on it.
#[derive(Debug)]
struct Pile<K> {
    collected: Vec<K>,
    taken: Vec<K>,
    spare: Vec<K>,
}

impl<K> Default for Pile<K> {
    fn default() -> Self {
        Self { collected: Vec::new(), taken: Vec::new(), spare: Vec::new() }
    }
}

/// How far a selection got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Buckets that were taken.
    pub taken: usize,
    /// Buckets that were named and refused.
    pub refused: usize,
}

/// Buckets sampled at each place that is sampled: half a cache line.
const SAMPLED_PER_LINE: usize = 8;

/// Groups swept before what they yielded is looked at, at most.
const BLOCK_GROUPS: usize = 32;

/// Buckets that a sweep collects at least before it lowers the threshold.
const ROOM_MIN: usize = 512;

/// Largest key that nothing wrapped in: `(65534 + 4096) * 8191`, below 2^30.
const KEY_MAX: u32 = (1 << 30) - 1;

/// How many victims ahead words are fetched, so that their cache misses overlap.
const READ_AHEAD: usize = 24;

/// The `count` buckets that may be invalidated with the least `bucket_prio`, ascending, or all of
/// them when there are fewer.
pub fn select(
    table: &BucketTable,
    min_prio: u16,
    count: usize,
    scratch: &mut Scratch,
) -> Vec<Victim> {
    let mut victims = Vec::with_capacity(count.min(table.hot().len()));
    let push = |victim| victims.push(victim);
    select_and_take(table, min_prio, count, scratch, || count, |_| true, push);
    victims
}

/// Has `take` try the `count` buckets with the least `bucket_prio`, in the order of the table, and
/// for each that it refuses one of the next best; then gives those taken to `push`, ascending.
///
/// Fewer are taken only when fewer may be invalidated, or when many were refused. More are when, after
/// the sweep, `count_now` is greater than `count` and the sweep has collected more.
pub(crate) fn select_and_take(
    table: &BucketTable,
    min_prio: u16,
    count: usize,
    scratch: &mut Scratch,
    count_now: impl FnOnce() -> usize,
    mut take: impl FnMut(Victim) -> bool,
    mut push: impl FnMut(Victim),
) -> Selected {
    if count == 0 {
        return Selected { taken: 0, refused: 0 };
    }
    let words = table.hot();
    if min_prio <= Prio::INITIAL.0 {
        let min = u32::from(min_prio);
        let base = min.wrapping_sub((u32::from(Prio::INITIAL.0) - min) / 8);
        let enough = count.saturating_add(count / 4);
        let last = scratch.last.take().filter(|last| last.left >= enough);
        let last = last.map(|last| last.threshold);
        let mut sweep =
            Sweep { words, base, count, pile: &mut scratch.keyed, passed: 0, pruned: 0 };
        if let Some(threshold) = sweep.run(last) {
            let (passed, pruned) = (sweep.passed, sweep.pruned);
            // Nothing that was left out is better than the worst that was collected.
            let collected = sweep.pile.collected.len();
            let count = count_now().clamp(count, collected.max(count));
            let victim = |keyed: u64| Victim::new(keyed >> 32, index_of(keyed));
            let pile = &mut scratch.keyed;
            let selected = pile.take_best(table, count, victim, &mut take);
            let left = passed.saturating_sub(selected.taken);
            // One that had to be lowered more than once is far too high.
            let fits = threshold < KEY_MAX && pruned < 2;
            scratch.last = fits.then_some(LastPass { threshold, left });
            sort_by_key(&mut pile.taken, &mut pile.spare);
            pile.taken.iter().for_each(|&keyed| push(victim(keyed)));
            return selected;
        }
    }
    let pile = &mut scratch.exact;
    collect_exact(words, min_prio, count, pile);
    let selected = pile.take_best(table, count, |victim| victim, &mut take);
    pile.taken.sort_unstable();
    pile.taken.iter().for_each(|&victim| push(victim));
    selected
}

impl<K: Copy + Ord> Pile<K> {
    /// The greatest of the `count` least: no two are equal, so exactly `count` are not above it.
    /// `None` when there are not more than `count`.
    fn last_of_best(&mut self, count: usize) -> Option<K> {
        if self.collected.len() <= count {
            return None;
        }
        self.spare.clear();
        self.spare.extend_from_slice(&self.collected);
        let (_, &mut last, _) = self.spare.select_nth_unstable(count.saturating_sub(1));
        Some(last)
    }

    /// Has `take` try the `count` least, and more while it refuses; leaves those taken in `taken`.
    fn take_best(
        &mut self,
        table: &BucketTable,
        count: usize,
        victim: impl Fn(K) -> Victim,
        take: &mut impl FnMut(Victim) -> bool,
    ) -> Selected {
        let last = self.last_of_best(count);
        let is_best = |item: &K| last.is_none_or(|last| *item <= last);
        let mut refused = 0;
        self.spare.clear();
        self.spare.extend(self.collected.iter().copied().filter(is_best));
        self.taken.clear();
        for (at, &item) in self.spare.iter().enumerate() {
            if let Some(&ahead) = self.spare.get(at + READ_AHEAD) {
                table.prefetch(victim(ahead).bucket());
            }
            if take(victim(item)) {
                self.taken.push(item);
            } else {
                refused += 1;
            }
        }
        if refused > 0 {
            self.spare.clear();
            self.spare.extend(self.collected.iter().filter(|item| !is_best(item)));
            self.spare.sort_unstable();
            for &item in &self.spare {
                if self.taken.len() >= count {
                    break;
                }
                if take(victim(item)) {
                    self.taken.push(item);
                } else {
                    refused += 1;
                }
            }
        }
        Selected { taken: self.taken.len(), refused }
    }
}

/// The low half of a key and index packed as one number.
fn index_of(keyed: u64) -> u32 {
    let [a, b, c, d, ..] = keyed.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The high half.
fn key_of(keyed: u64) -> u32 {
    let [.., a, b, c, d] = keyed.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

struct Sweep<'a> {
    words: &'a [AtomicU32],
    base: u32,
    count: usize,
    pile: &'a mut Pile<u64>,
    /// Buckets that passed the threshold, at least: after it has fallen, fewer do.
    passed: usize,
    /// How often the threshold was lowered.
    pruned: u32,
}

impl Sweep<'_> {
    /// Collects at least the `count` best; the threshold that it began with, or `None` when fewer than
    /// that have keys that fit. It tries `last` first.
    fn run(&mut self, last: Option<u32>) -> Option<u32> {
        // When that misled, a guess; when that misled too, all is taken and the sweep itself finds a
        // threshold.
        let last = last.filter(|&threshold| self.sweep(threshold));
        let guessed = last.or_else(|| self.guess().filter(|&threshold| self.sweep(threshold)));
        guessed.or_else(|| self.sweep(KEY_MAX).then_some(KEY_MAX))
    }

    /// A threshold that somewhat more than `count` buckets should pass, from one in 128 of them, and
    /// more in small tables; `None` when the sample cannot tell.
    ///
    /// It takes whole cache lines, at distances that share no factor with how caches are filled, so
    /// that a table whose prios repeat or rise with the bucket is sampled fairly.
    fn guess(&mut self) -> Option<u32> {
        const LINE: usize = 16;
        let lines =
            (self.words.len() / LINE / 64).clamp(256, 4096).min(self.words.len() / LINE / 8);
        if lines < 64 {
            return None;
        }
        let stride = self.words.len() / lines;
        let places = |line: usize| {
            // A hash, to be as likely at any distance from the last place.
            let jitter = line.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            line * stride + jitter % stride
        };
        let mut keys: Vec<u32> = Vec::with_capacity(lines * SAMPLED_PER_LINE);
        for line in 0..lines {
            if let Some(word) = self.words.get(places(line + READ_AHEAD)) {
                vector::prefetch(word);
            }
            let window = self.words.get(places(line)..).unwrap_or_default();
            let window = window.get(..SAMPLED_PER_LINE).unwrap_or(window);
            let words = window.iter().map(|word| word.load(Ordering::Relaxed));
            keys.extend(words.map(|word| fitting_key(word, self.base).unwrap_or(u32::MAX)));
        }
        // Expected rank in the sample, and four standard deviations more.
        let rank = self.count.checked_mul(keys.len())? / self.words.len();
        let rank = rank + rank.isqrt() * 4 + 8;
        if rank >= keys.len() {
            return None;
        }
        let (_, key, _) = keys.select_nth_unstable(rank);
        (*key <= KEY_MAX).then_some(*key)
    }

    /// Collects the buckets whose key is at most `threshold`, or the best of them; whether they are
    /// enough.
    fn sweep(&mut self, mut threshold: u32) -> bool {
        let room = self.count.saturating_mul(4).max(ROOM_MIN);
        // Where all keys are alike, a block is collected whole before the threshold falls.
        let block_groups = (room / GROUP).clamp(1, BLOCK_GROUPS);
        self.pile.collected.clear();
        self.passed = 0;
        self.pruned = 0;
        let mut masks = [0u64; BLOCK_GROUPS];
        let mut candidates = [0u16; GROUP * BLOCK_GROUPS + 1];
        for (block, words) in self.words.chunks(GROUP * block_groups).enumerate() {
            // A table is whole groups.
            let groups = words.len() / GROUP;
            vector::victims(
                words,
                self.base,
                threshold,
                masks.get_mut(..groups).unwrap_or_default(),
            );
            let start = block * GROUP * block_groups;
            let mut found = 0;
            // By their place in the block, which is small.
            let mut note = |place: u16, counts: bool| {
                if let Some(candidate) = candidates.get_mut(found) {
                    *candidate = place;
                }
                found += usize::from(counts);
            };
            let of_groups = masks.iter().zip(words.chunks_exact(GROUP));
            for (group, (&mask, words)) in (0u16..).step_by(GROUP).zip(of_groups) {
                // Most groups have none, one or two: those are noted without a branch, which would
                // be predicted wrongly as often as not.
                let mut mask = mask;
                for _ in 0..2 {
                    note(group + lowest_bit(mask), mask != 0);
                    mask &= mask.wrapping_sub(1);
                }
                if mask & mask.wrapping_sub(1) != 0 {
                    // Four or more. Where most keys are alike and just above the threshold, as after
                    // one long sequential write, the rest of nearly every group would be looked at
                    // one by one: eight times the time of the sweep.
                    mask &= vector::victims_exactly(words, self.base, threshold);
                }
                while mask != 0 {
                    note(group + lowest_bit(mask), true);
                    mask &= mask - 1;
                }
            }
            for &place in candidates.iter().take(found) {
                self.collect(start + usize::from(place), threshold);
            }
            if self.pile.collected.len() >= room {
                // More may be wanted by the end of the sweep.
                let kept = self.count.saturating_mul(2);
                let Some(last) = self.pile.last_of_best(kept) else { continue };
                self.passed = self.passed.max(self.pile.collected.len());
                self.pruned += 1;
                self.pile.collected.retain(|&keyed| keyed <= last);
                // At the bottom nothing can be better than what there is.
                let Some(below) = key_of(last).checked_sub(1) else { return true };
                threshold = threshold.min(below);
            }
        }
        self.passed = self.passed.max(self.pile.collected.len());
        self.pile.collected.len() >= self.count
    }

    fn collect(&mut self, at: usize, threshold: u32) {
        if let (Some(word), Ok(index)) = (self.words.get(at), u32::try_from(index_at(at))) {
            let key = fitting_key(word.load(Ordering::Relaxed), self.base);
            if let Some(key) = key.filter(|&key| key <= threshold) {
                self.pile.collected.push((u64::from(key) << 32) | u64::from(index));
            }
        }
    }
}

/// The place of the lowest bit that is set, or 64.
fn lowest_bit(mask: u64) -> u16 {
    let [low, high, ..] = mask.trailing_zeros().to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The key of a bucket that may be invalidated, if nothing wraps in it.
fn fitting_key(word: u32, base: u32) -> Option<u32> {
    let key = vector::key(word, base);
    (!Hot(word).excluded() && key <= KEY_MAX).then_some(key)
}

/// Sorts by the upper half of each number: eleven bits at a time, the lowest that vary first.
#[allow(clippy::indexing_slicing)] // `digit` is masked to the size of `places`
fn sort_by_key(keyed: &mut Vec<u64>, spare: &mut Vec<u64>) {
    const BITS: u32 = 11;
    const DIGITS: usize = 1 << BITS;
    if keyed.len() < DIGITS {
        keyed.sort_unstable();
        return;
    }
    // Many bits are the same in all: the keys of victims are close together, and those of full
    // buckets are multiples of their size.
    let first = keyed.first().copied().unwrap_or(0);
    let varying = keyed.iter().fold(0, |varying, &keyed| varying | key_of(keyed ^ first));
    spare.resize(keyed.len(), 0);
    let mut sorted_bits = 0;
    while let Some(rest) = varying.checked_shr(sorted_bits).filter(|&rest| rest != 0) {
        let shift = u32::BITS + sorted_bits + rest.trailing_zeros();
        sorted_bits += rest.trailing_zeros() + BITS;
        // Masked to eleven bits, so that no index is out of range.
        let digit = |value: u64| usize::try_from(value >> shift).unwrap_or(0) & (DIGITS - 1);
        let mut places = [0usize; DIGITS];
        for &value in keyed.iter() {
            places[digit(value)] += 1;
        }
        let mut start = 0;
        for place in &mut places {
            start += std::mem::replace(place, start);
        }
        for &value in keyed.iter() {
            let place = &mut places[digit(value)];
            if let Some(slot) = spare.get_mut(*place) {
                *slot = value;
            }
            *place += 1;
        }
        std::mem::swap(keyed, spare);
    }
}

/// Collects with 64-bit keys and every wrap as it is, one bucket after the other.
fn collect_exact(words: &[AtomicU32], min_prio: u16, count: usize, pile: &mut Pile<Victim>) {
    let room = count.saturating_mul(2).max(1024);
    let mut threshold = u64::MAX;
    pile.collected.clear();
    for (at, word) in words.iter().enumerate() {
        let word = Hot(word.load(Ordering::Relaxed));
        if word.excluded() {
            continue;
        }
        let bucket_prio = bucket_prio(word.prio(), word.sectors_used(), min_prio);
        if bucket_prio > threshold {
            continue;
        }
        let Ok(index) = u32::try_from(index_at(at)) else { return };
        pile.collected.push(Victim { bucket_prio, index });
        if pile.collected.len() >= room {
            let Some(last) = pile.last_of_best(count) else { continue };
            pile.collected.retain(|&victim| victim <= last);
            let Some(below) = last.bucket_prio.checked_sub(1) else { return };
            threshold = below;
        }
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;
    use crate::allocator::Mark;
    use crate::units::Gen;
    use proptest::prelude::*;

    /// A bucket: prio, sectors used, mark.
    fn bucket() -> impl Strategy<Value = (u16, u16, Mark)> {
        let prio = prop_oneof![
            4 => 0u16..=32768,
            2 => 30000u16..30010,
            1 => any::<u16>(),
        ];
        let sectors = prop_oneof![1 => Just(0u16), 4 => 1u16..1100, 1 => 0u16..8192];
        let mark = prop_oneof![
            2 => Just(Mark::None),
            6 => Just(Mark::Reclaimable),
            1 => Just(Mark::Dirty),
            1 => Just(Mark::Metadata),
        ];
        (prio, sectors, mark)
    }

    fn table(buckets: &[(u16, u16, Mark)], first: u64) -> BucketTable {
        let table = BucketTable::new(first + buckets.len() as u64, first).unwrap();
        for (index, &(prio, sectors, mark)) in (first..).zip(buckets) {
            let bucket = BucketIndex(index);
            table.mark_key(bucket, Gen(0), mark, sectors).unwrap();
            table.set_prio(bucket, Prio(prio)).unwrap();
        }
        table.gc_finish();
        table
    }

    /// What sorting all buckets that may go would yield.
    fn sorted(table: &BucketTable, min_prio: u16, count: usize) -> Vec<u64> {
        let mut all: Vec<_> = (table.first_bucket().0..table.nbuckets())
            .map(|index| table.bucket(BucketIndex(index)).unwrap())
            .filter(|is| matches!(is.mark, Mark::None | Mark::Reclaimable) && is.pins == 0)
            .map(|is| bucket_prio(is.prio, is.sectors_used, min_prio))
            .collect();
        all.sort_unstable();
        all.truncate(count);
        all
    }

    fn selected(table: &BucketTable, min_prio: u16, count: usize) -> Vec<u64> {
        let victims = select(table, min_prio, count, &mut Scratch::default());
        for victim in &victims {
            let is = table.bucket(victim.bucket()).unwrap();
            assert!(table.can_invalidate(victim.bucket()).unwrap());
            assert_eq!(victim.bucket_prio, bucket_prio(is.prio, is.sectors_used, min_prio));
        }
        let mut buckets: Vec<_> = victims.iter().map(Victim::bucket).collect();
        buckets.sort_unstable();
        buckets.dedup();
        assert_eq!(buckets.len(), victims.len(), "a bucket was named twice");
        victims.iter().map(|victim| victim.bucket_prio).collect()
    }

    /// What is taken when `count` are wanted before the sweep and `count_now` after it.
    fn taken(table: &BucketTable, count: usize, count_now: usize) -> Vec<u64> {
        let mut prios = Vec::new();
        let mut scratch = Scratch::default();
        let push = |victim: Victim| prios.push(victim.bucket_prio);
        select_and_take(table, 0, count, &mut scratch, || count_now, |_| true, push);
        prios
    }

    proptest! {
        #[test]
        fn the_least_are_selected_in_order(
            buckets in proptest::collection::vec(bucket(), 0..2000),
            first in 1u64..70,
            min_prio in prop_oneof![Just(0u16), 0u16..=32768, Just(30000), any::<u16>()],
            count in prop_oneof![Just(0usize), 1usize..20, 0usize..2500],
        ) {
            let table = table(&buckets, first);
            prop_assert_eq!(selected(&table, min_prio, count), sorted(&table, min_prio, count));
        }

        /// What is wanted only by the end of the sweep are the next best.
        #[test]
        fn more_may_be_wanted_by_the_end(
            buckets in proptest::collection::vec(bucket(), 0..2000),
            count in 1usize..300,
            more in 0usize..600,
        ) {
            let table = table(&buckets, 1);
            let prios = taken(&table, count, count + more);
            let best = sorted(&table, 0, count + more);
            prop_assert!((count.min(best.len())..=best.len()).contains(&prios.len()));
            prop_assert_eq!(&prios[..], &best[..prios.len()]);
        }

        /// Whatever bits vary: none, the highest, any.
        #[test]
        fn keys_are_sorted(
            keys in proptest::collection::vec(any::<u32>(), 2000..3000),
            varying in prop_oneof![any::<u32>(), Just(0), Just(1 << 31), Just(u32::MAX)],
            rest in any::<u32>(),
        ) {
            let keyed = (0u64..).zip(&keys).map(|(index, key)| {
                (u64::from(key & varying | rest & !varying) << 32) | index
            });
            let mut keyed: Vec<u64> = keyed.collect();
            let mut expected = keyed.clone();
            expected.sort_unstable();
            sort_by_key(&mut keyed, &mut Vec::new());
            prop_assert_eq!(keyed, expected);
        }
    }

    /// Large enough to be sampled, in orders that mislead a sample or never let the threshold rest.
    #[test]
    fn large_tables_in_any_order() {
        let len = 100_000u32;
        let random = |i: u32| u16::try_from(i.wrapping_mul(2_654_435_761) >> 17).unwrap();
        let orders: [(&str, &dyn Fn(u32) -> u16); 5] = [
            ("random", &random),
            ("ascending", &|i| u16::try_from(i / 4).unwrap()),
            ("descending", &|i| u16::try_from((len - i) / 4).unwrap()),
            ("all equal", &|_| 7),
            ("cold at the end only", &|i| if i + 3000 > len { 1 } else { 30000 }),
        ];
        // With such a `min_prio` an exact sweep decides; with one sector each, ranks follow one another.
        for (min_prio, sectors) in [(0, 9), (40_000, 1)] {
            for (name, prio) in orders {
                let bucket = |i| (prio(i), sectors, Mark::Reclaimable);
                let table = table(&(0..len).map(bucket).collect::<Vec<_>>(), 1);
                for count in [1, 511, 5000, 100_000, 200_000] {
                    let expected = sorted(&table, min_prio, count);
                    assert_eq!(selected(&table, min_prio, count), expected, "{name} {count}");
                }
            }
        }
    }

    /// What comes after the threshold has fallen, and ranks just below it, is among the best.
    #[test]
    fn what_just_passes_a_lowered_threshold_is_taken() {
        let prio = |i: u16| if i >= 2400 { 9 } else { 10 + i % 2 * 10 };
        let buckets: Vec<_> = (0..2700).map(|i| (prio(i), 1, Mark::Reclaimable)).collect();
        let table = table(&buckets, 1);
        for (min_prio, count) in [(0, 512), (0, 1024), (40_000, 1024)] {
            let expected = sorted(&table, min_prio, count);
            assert_eq!(selected(&table, min_prio, count), expected, "{min_prio} {count}");
        }
    }

    /// Also where the sweep kept only the best on its way, as in a table too small for a sample.
    #[test]
    fn twice_as_many_may_be_wanted_by_the_end() {
        let len = 5_000u16;
        for prio in [|i: u16| 5_000 - i, |_| 7] {
            let buckets: Vec<_> = (0..len).map(|i| (prio(i), 9, Mark::Reclaimable)).collect();
            let table = table(&buckets, 1);
            for count_now in [0, 100, 150, 200, 300] {
                let prios = taken(&table, 100, count_now);
                assert!((count_now.clamp(100, 200)..=count_now.max(100)).contains(&prios.len()));
                assert_eq!(prios, sorted(&table, 0, prios.len()));
            }
        }
    }

    /// With keys of 32 bits, and with a `min_prio` that wants an exact sweep.
    #[test]
    fn the_next_best_take_the_place_of_what_is_refused() {
        for min_prio in [0, 40_000] {
            let buckets: Vec<_> = (0..400).map(|i| (400 - i, 9, Mark::Reclaimable)).collect();
            let table = table(&buckets, 1);
            let wanted = |refuses: fn(u64) -> bool| {
                let mut best = Vec::new();
                let mut tried = 0;
                let take = |victim: Victim| {
                    tried += 1;
                    !refuses(victim.bucket().0)
                };
                let push = |victim: Victim| best.push(victim.bucket().0);
                let mut scratch = Scratch::default();
                let selected =
                    select_and_take(&table, min_prio, 10, &mut scratch, || 10, take, push);
                assert_eq!(selected, Selected { taken: best.len(), refused: tried - best.len() });
                (best, selected.refused)
            };
            // The last bucket has the least prio.
            let order = |refuses: fn(u64) -> bool| {
                (1..=400).rev().filter(move |&it| !refuses(it)).take(10).collect::<Vec<u64>>()
            };
            let odd: fn(u64) -> bool = |bucket| bucket % 2 == 1;
            let first: fn(u64) -> bool = |bucket| bucket == 400;
            assert_eq!(wanted(|_| false), (order(|_| false), 0));
            assert_eq!(wanted(first), (order(first), 1));
            assert_eq!(wanted(odd), (order(odd), 9));
            let (best, refused) = wanted(|_| true);
            assert!(best.is_empty() && refused >= 10, "{refused}");
        }
    }

    #[test]
    fn bucket_prio_wraps_as_the_kernels() {
        assert_eq!(bucket_prio(Prio(0), 10, 0), 40960);
        assert_eq!(bucket_prio(Prio::INITIAL, 1, 0), 36864);
        assert_eq!(bucket_prio(Prio(20000), 3, 20000), 3 * (12768 / 8));
        // Below min_prio by more than an eighth of the rest: the inner sum wraps at 32 bits.
        assert_eq!(bucket_prio(Prio(0), 2, 30000), 2 * (u64::from(u32::MAX) + 1 - 30000 + 346));
        assert_eq!(bucket_prio(Prio(0), 0, 30000), 0);
        // After a rescaling that aged nothing.
        let eighth = 32768u32.wrapping_sub(65535) / 8;
        assert_eq!(bucket_prio(Prio(65535), 5, 65535), u64::from(eighth) * 5);
    }
}
