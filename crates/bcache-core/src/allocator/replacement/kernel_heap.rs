//! LRU as the kernel selects: every bucket through a heap of `8 * free` (on-disk-format.md §9.3, §9.4).
//!
//! [`lru`](super::lru) finds victims with the same `bucket_prio` in the same order, and faster. Of victims
//! that rank alike, the kernel's heap decides which goes first. Only a heap that moves them in the same
//! way finds the same ones.

use super::super::sync::Ordering;
use super::super::table::BucketTable;
use super::super::words::Hot;
use super::lru::{Victim, bucket_prio};

/// Whether the first belongs below the second.
type Below = fn(&Victim, &Victim) -> bool;

/// The greatest on top.
const MAX: Below = |left, right| left.bucket_prio < right.bucket_prio;
/// The least on top.
const MIN: Below = |left, right| left.bucket_prio > right.bucket_prio;

/// The victims of a pass in the kernel's order, at most `count`; `room` is what its heap holds.
pub(crate) fn select(
    table: &BucketTable,
    min_prio: u16,
    count: usize,
    room: usize,
    heap: &mut Vec<Victim>,
) -> Vec<Victim> {
    let first = u32::try_from(table.first_bucket().0).unwrap_or(u32::MAX);
    heap.clear();
    for (index, word) in (first..).zip(table.hot_by_bucket()) {
        let word = Hot(word.load(Ordering::Relaxed));
        if word.excluded() {
            continue;
        }
        let rank = bucket_prio(word.prio(), word.sectors_used(), min_prio);
        let victim = Victim::new(rank, index);
        if heap.len() < room {
            add(heap, victim, MAX);
        } else if let Some(top) = heap.first_mut().filter(|top| MAX(&victim, top)) {
            *top = victim;
            sift(heap, 0, MAX);
        }
    }
    for at in (0..heap.len() / 2).rev() {
        sift(heap, at, MIN);
    }
    let mut victims = Vec::with_capacity(count.min(heap.len()));
    while victims.len() < count && !heap.is_empty() {
        victims.push(heap.swap_remove(0));
        sift(heap, 0, MIN);
    }
    victims
}

/// Moves the item at `at` down until both its children belong below it; equal ones change places.
fn sift(heap: &mut [Victim], mut at: usize, below: Below) {
    loop {
        let left = 2 * at + 1;
        let (Some(it), Some(left_one)) = (heap.get(at), heap.get(left)) else { return };
        let (child, one) = match heap.get(left + 1) {
            Some(right_one) if below(left_one, right_one) => (left + 1, right_one),
            _ => (left, left_one),
        };
        if below(one, it) {
            return;
        }
        heap.swap(at, child);
        at = child;
    }
}

fn add(heap: &mut Vec<Victim>, victim: Victim, below: Below) {
    heap.push(victim);
    let mut at = heap.len() - 1;
    while at > 0 {
        let parent = (at - 1) / 2;
        if heap.get(parent).is_none_or(|parent| below(&victim, parent)) {
            break;
        }
        heap.swap(at, parent);
        at = parent;
    }
    sift(heap, at, below);
}
