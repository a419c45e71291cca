//! What exact LRU and FIFO of blocks would do: no policy of bcache is expected to beat LRU by much.
//!
//! Reads and writes both bring a block in; there is no bypass, no bucket, no metadata. LRU is found
//! for all sizes at once from stack distances (Mattson), FIFO for the sizes that are asked for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::trace::{Op, Request};

/// References to blocks, and those that missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Misses {
    /// References of reads and writes.
    pub references: u64,
    /// Of those, misses.
    pub misses: u64,
    /// References of reads.
    pub read_references: u64,
    /// Of those, misses.
    pub read_misses: u64,
}

impl Misses {
    /// Misses of all references.
    pub fn ratio(&self) -> f64 {
        crate::num::ratio(self.misses, self.references).unwrap_or(0.0)
    }
}

/// What a reference is to: whole requests by their first sector, or blocks of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A request is one object, named by its first sector.
    Objects,
    /// Blocks of so many sectors.
    Blocks(u64),
}

/// The objects or blocks of a request, in order.
fn references(request: &Request, unit: Unit) -> impl Iterator<Item = u64> {
    let (first, last) = match unit {
        Unit::Objects => (request.sector, request.sector),
        Unit::Blocks(sectors) => (request.sector / sectors, (request.end() - 1) / sectors),
    };
    // Sectors have 48 bits: the device fits beside them.
    let device = u64::from(request.device) << 48;
    (first..=last).map(move |block| device | block)
}

/// The stack distances of a trace: misses of exact LRU at every size.
#[derive(Clone, Debug, Default)]
pub struct LruCurve {
    /// By distance: how many references, of those how many reads.
    by_distance: Vec<(u64, u64)>,
    total: Misses,
}

/// Counts what lies after a place: a Fenwick tree.
#[derive(Default)]
struct Marks(Vec<u32>);

impl Marks {
    fn with(len: usize) -> Self {
        Self(vec![0; len + 1])
    }

    fn add(&mut self, at: usize, by: i32) {
        let mut place = at + 1;
        while let Some(mark) = self.0.get_mut(place) {
            *mark = mark.wrapping_add_signed(by);
            place += place & place.wrapping_neg();
        }
    }

    /// Sum of the first `count` places.
    fn sum(&self, count: usize) -> u32 {
        let (mut place, mut sum) = (count, 0u32);
        while place > 0 {
            sum += self.0[place];
            place &= place - 1;
        }
        sum
    }
}

impl LruCurve {
    /// The curve of these requests; discards are not looked at.
    pub fn of(requests: &[Request], unit: Unit) -> Self {
        Self::of_until(requests, unit, &AtomicBool::new(false)).unwrap_or_default()
    }

    /// The same; `None` when it was stopped.
    pub fn of_until(requests: &[Request], unit: Unit, stop: &AtomicBool) -> Option<Self> {
        let mut curve = Self::default();
        let mut last_use: FxHashMap<u64, usize> = FxHashMap::default();
        let mut now = 0;
        let mut marks = Marks::with(1 << 16);
        for request in requests.iter().filter(|request| request.op != Op::Discard) {
            let is_read = request.op == Op::Read;
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            for key in references(request, unit) {
                if now + 1 >= marks.0.len() {
                    (marks, now) = compact(&mut last_use);
                }
                let before = last_use.insert(key, now);
                let distance = before.map(|at| {
                    let distance = marks.sum(now) - marks.sum(at + 1);
                    marks.add(at, -1);
                    distance as usize
                });
                marks.add(now, 1);
                now += 1;
                curve.count(distance, is_read);
            }
        }
        Some(curve)
    }

    /// `distance`: other blocks since the last use; `None` for the first.
    fn count(&mut self, distance: Option<usize>, is_read: bool) {
        self.total.references += 1;
        self.total.read_references += u64::from(is_read);
        match distance {
            None => {
                self.total.misses += 1;
                self.total.read_misses += u64::from(is_read);
            }
            Some(distance) => {
                if distance >= self.by_distance.len() {
                    self.by_distance.resize(distance + 1, (0, 0));
                }
                self.by_distance[distance].0 += 1;
                self.by_distance[distance].1 += u64::from(is_read);
            }
        }
    }

    /// What a cache of `blocks` misses.
    pub fn misses(&self, blocks: u64) -> Misses {
        let hit = usize::try_from(blocks).unwrap_or(usize::MAX);
        let beyond = self.by_distance.get(hit..).unwrap_or_default();
        let mut misses = self.total;
        for (all, reads) in beyond {
            misses.misses += all;
            misses.read_misses += reads;
        }
        misses
    }
}

/// Numbers uses from 0 again, in their order, with room for as many more.
fn compact(last_use: &mut FxHashMap<u64, usize>) -> (Marks, usize) {
    let mut uses: Vec<&mut usize> = last_use.values_mut().collect();
    uses.sort_unstable_by_key(|at| **at);
    let count = uses.len();
    let mut marks = Marks::with((2 * count).max(1 << 16));
    for (at, place) in uses.into_iter().enumerate() {
        *place = at;
        marks.add(at, 1);
    }
    (marks, count)
}

/// What FIFO of `blocks` misses.
pub fn fifo(requests: &[Request], unit: Unit, blocks: u64) -> Misses {
    let capacity = usize::try_from(blocks).unwrap_or(usize::MAX);
    let mut queue = VecDeque::new();
    let mut cached = rustc_hash::FxHashSet::default();
    let mut misses = Misses::default();
    for request in requests.iter().filter(|request| request.op != Op::Discard) {
        let is_read = u64::from(request.op == Op::Read);
        for key in references(request, unit) {
            misses.references += 1;
            misses.read_references += is_read;
            if cached.contains(&key) {
                continue;
            }
            misses.misses += 1;
            misses.read_misses += is_read;
            if queue.len() >= capacity {
                if let Some(oldest) = queue.pop_front() {
                    cached.remove(&oldest);
                }
            }
            queue.push_back(key);
            cached.insert(key);
        }
    }
    misses
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// LRU as one would write it down.
    fn plain_lru(requests: &[Request], unit: Unit, blocks: usize) -> Misses {
        let mut stack: Vec<u64> = Vec::new();
        let mut misses = Misses::default();
        for request in requests {
            for key in references(request, unit) {
                let read = u64::from(request.op == Op::Read);
                misses.references += 1;
                misses.read_references += read;
                if let Some(at) = stack.iter().position(|it| *it == key) {
                    stack.remove(at);
                } else {
                    misses.misses += 1;
                    misses.read_misses += read;
                    stack.truncate(blocks.saturating_sub(1));
                }
                stack.insert(0, key);
            }
        }
        misses
    }

    proptest! {
        #[test]
        fn distances_are_lru(places in prop::collection::vec((0..300u64, 1..40u32, any::<bool>()), 1..200)) {
            let requests: Vec<Request> = places
                .into_iter()
                .map(|(sector, sectors, read)| Request {
                    sector,
                    sectors,
                    op: if read { Op::Read } else { Op::Write },
                    ..Request::default()
                })
                .collect();
            for unit in [Unit::Blocks(8), Unit::Objects] {
                let curve = LruCurve::of(&requests, unit);
                for blocks in [1, 2, 5, 17, 30, 1000] {
                    let plain = plain_lru(&requests, unit, blocks);
                    prop_assert_eq!(curve.misses(blocks as u64), plain);
                }
            }
        }
    }

    #[test]
    fn numbering_anew_changes_nothing() {
        let request = |sector| Request { sector, sectors: 1, ..Request::default() };
        // Two passes over more blocks than the tree holds at first.
        let requests: Vec<_> = (0..2).flat_map(|_| (0..100_000).map(request)).collect();
        let curve = LruCurve::of(&requests, Unit::Blocks(1));
        assert_eq!(curve.misses(99_999).misses, 200_000);
        assert_eq!(curve.misses(100_000).misses, 100_000);
        assert_eq!(fifo(&requests, Unit::Blocks(1), 100_000).misses, 100_000);
        assert_eq!(fifo(&requests, Unit::Blocks(1), 99_999).misses, 200_000);
    }
}
