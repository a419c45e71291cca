//! The reference engine: the kernel's allocator semantics in the plainest form.
//!
//! One array of bucket structures, a binary heap of bucket numbers, a list of open buckets that is
//! walked from end to end, and one lock around everything: what on-disk-format.md §6 and §9 describe, with
//! nothing made clever. Tests compare the allocator with it step by step, and the benches measure the
//! allocator against it. It shares no code with the allocator beyond names of things.

// It panics where the kernel's BUG_ON stops it, and indexes as the kernel does.
#![allow(clippy::missing_panics_doc, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

mod engine;
mod heap;
mod sectors;
mod set;

use std::collections::VecDeque;

use crate::allocator::{Mark, Policy, Reserve};
use crate::units::{BucketIndex, Gen, Geometry};
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

pub use engine::Locked;
pub use sectors::{OpenBuckets, Piece};
pub use set::ReferenceSet;

const BTREE_PRIO: u16 = 65535;
const INITIAL_PRIO: u16 = 32768;
const GEN_MAX: u8 = 96;

/// A bucket, in as many bytes as the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Pins.
    pub pin: u32,
    /// Priority.
    pub prio: u16,
    /// Generation.
    pub bucket_gen: u8,
    /// Gen as of the last GC.
    pub last_gc: u8,
    /// `GC_SECTORS_USED`.
    pub sectors_used: u16,
    /// `GC_MARK`.
    pub mark: Mark,
    /// Could be invalidated when the running GC began, and has not been since.
    pub reclaimable_in_gc: bool,
    /// `GC_MOVE`.
    pub gc_move: bool,
}

impl Bucket {
    fn gc_gen(&self) -> u8 {
        self.bucket_gen.wrapping_sub(self.last_gc)
    }
}

/// A queue with a limit.
#[derive(Clone, Debug)]
pub struct Fifo {
    /// Oldest first.
    pub items: VecDeque<usize>,
    size: usize,
}

impl Fifo {
    fn new(size: usize) -> Self {
        Self { items: VecDeque::with_capacity(size), size }
    }

    /// Whether it holds as many as it can.
    pub fn full(&self) -> bool {
        self.items.len() >= self.size
    }

    /// Appends a bucket; false when there is no room.
    pub fn push(&mut self, bucket: usize) -> bool {
        let fits = !self.full();
        if fits {
            self.items.push_back(bucket);
        }
        fits
    }
}

/// What the engine is made of: see [`Locked`] for the one with its lock.
#[derive(Clone, Debug)]
pub struct Reference {
    /// All buckets of the device.
    pub buckets: Vec<Bucket>,
    /// First that may be allocated.
    pub first: usize,
    bucket_size: u64,
    policy: Policy,
    reclaim_in_gc: bool,
    /// In the kernel's order: btree, prio, moving GC, none.
    pub free: [Fifo; 4],
    /// Invalidated buckets.
    pub free_inc: Fifo,
    heap: Vec<usize>,
    heap_size: usize,
    /// FIFO's place.
    pub fifo_last_bucket: usize,
    random: Pcg64,
    /// Nothing to invalidate before a GC.
    pub invalidate_needs_gc: bool,
    /// Marks are of a finished GC.
    pub gc_mark_valid: bool,
    /// Greatest gen distance.
    pub need_gc: u8,
    /// Least prio.
    pub min_prio: u16,
    /// I/O left until prios age.
    pub rescale: i64,
    /// Buckets available.
    pub avail_nbuckets: u64,
    /// The two chains: being written or just written, and the one before.
    pub prio_buckets: Vec<usize>,
    /// The chain that is current.
    pub prio_last_buckets: Vec<usize>,
    /// Freed btree nodes whose parents are not written yet.
    pub prio_blocked: u32,
}

fn fifo_size(n: usize) -> usize {
    if n > 4 { n.next_power_of_two() - 1 } else { n }
}

fn place(reserve: Reserve) -> usize {
    match reserve {
        Reserve::Btree => 0,
        Reserve::Prio => 1,
        Reserve::MovingGc => 2,
        Reserve::None => 3,
    }
}

impl Reference {
    /// An engine for a device; panics on one that is too small, as the kernel of 2018 did.
    pub fn new(geometry: &Geometry, policy: Policy, seed: u64, reclaim_in_gc: bool) -> Self {
        let nbuckets = usize::try_from(geometry.nbuckets()).expect("fits memory");
        let free = nbuckets.next_power_of_two() >> 10;
        assert!(free > 0, "too few buckets");
        let prio_buckets = usize::try_from(geometry.prio_buckets()).expect("fits memory");
        let btree = (nbuckets >> 7).clamp(32, 256);
        Self {
            buckets: vec![Bucket::default(); nbuckets],
            first: usize::try_from(geometry.first_bucket().0).expect("fits memory"),
            bucket_size: geometry.bucket_size().0,
            policy,
            reclaim_in_gc,
            free: [
                Fifo::new(fifo_size(btree)),
                Fifo::new(prio_buckets),
                Fifo::new(fifo_size(free)),
                Fifo::new(fifo_size(free)),
            ],
            free_inc: Fifo::new(fifo_size(free * 4)),
            heap: Vec::with_capacity(free * 8),
            heap_size: free * 8,
            fifo_last_bucket: 0,
            random: Pcg64::seed_from_u64(seed),
            invalidate_needs_gc: false,
            gc_mark_valid: false,
            need_gc: 0,
            min_prio: 0,
            rescale: 0,
            avail_nbuckets: 0,
            prio_buckets: vec![0; prio_buckets],
            prio_last_buckets: vec![0; prio_buckets],
            prio_blocked: 0,
        }
    }

    /// Raises a bucket's gen; the new one.
    pub fn inc_gen(&mut self, b: usize) -> u8 {
        self.buckets[b].bucket_gen = self.buckets[b].bucket_gen.wrapping_add(1);
        self.need_gc = self.need_gc.max(self.buckets[b].gc_gen());
        self.buckets[b].bucket_gen
    }

    /// Whether a bucket may be invalidated.
    pub fn can_invalidate(&self, b: usize) -> bool {
        let bucket = &self.buckets[b];
        (self.gc_mark_valid || bucket.reclaimable_in_gc)
            && matches!(bucket.mark, Mark::None | Mark::Reclaimable)
            && bucket.pin == 0
            && bucket.gc_gen() < GEN_MAX
    }

    fn invalidate_without_push(&mut self, b: usize) {
        self.inc_gen(b);
        self.buckets[b].prio = INITIAL_PRIO;
        self.buckets[b].pin += 1;
        self.buckets[b].reclaimable_in_gc = false;
    }

    /// Invalidates one bucket onto `free_inc`.
    pub fn invalidate_one(&mut self, b: usize) {
        self.invalidate_without_push(b);
        assert!(self.free_inc.push(b), "free_inc overflows");
    }

    /// What LRU sorts by.
    pub fn bucket_prio(&self, b: usize) -> u64 {
        let min_prio = u32::from(self.min_prio);
        let eighth = u32::from(INITIAL_PRIO).wrapping_sub(min_prio) / 8;
        let bucket = &self.buckets[b];
        let scaled = u32::from(bucket.prio).wrapping_sub(min_prio).wrapping_add(eighth);
        u64::from(scaled) * u64::from(bucket.sectors_used)
    }

    /// LRU: the victims that the heap yields for the room in `free_inc`, and whether it ran dry
    /// before. Nothing is invalidated yet.
    pub fn lru_victims(&mut self) -> (Vec<usize>, bool) {
        let mut heap = std::mem::take(&mut self.heap);
        heap.clear();
        let larger_on_top = |l: &usize, r: &usize| self.bucket_prio(*l) < self.bucket_prio(*r);
        let smaller_on_top = |l: &usize, r: &usize| self.bucket_prio(*l) > self.bucket_prio(*r);
        for b in self.first..self.buckets.len() {
            if !self.can_invalidate(b) {
                continue;
            }
            if heap.len() < self.heap_size {
                heap::add(&mut heap, b, &larger_on_top);
            } else if larger_on_top(&b, &heap[0]) {
                heap[0] = b;
                heap::sift(&mut heap, 0, &larger_on_top);
            }
        }
        for i in (0..heap.len() / 2).rev() {
            heap::sift(&mut heap, i, &smaller_on_top);
        }
        let room = self.free_inc.size - self.free_inc.items.len();
        let mut victims = Vec::with_capacity(room);
        while victims.len() < room {
            let Some(b) = heap::pop(&mut heap, &smaller_on_top) else { break };
            victims.push(b);
        }
        let dry = victims.len() < room;
        self.heap = heap;
        (victims, dry)
    }

    /// One pass by the policy.
    pub fn invalidate_buckets(&mut self) {
        assert!(!self.invalidate_needs_gc);
        match self.policy {
            Policy::Lru => {
                let (victims, dry) = self.lru_victims();
                for b in victims {
                    self.invalidate_one(b);
                }
                self.invalidate_needs_gc |= dry;
            }
            Policy::Fifo => {
                let mut checked = 0;
                while !self.free_inc.full() {
                    let b = &mut self.fifo_last_bucket;
                    if *b < self.first || *b >= self.buckets.len() {
                        *b = self.first;
                    }
                    let b = *b;
                    self.fifo_last_bucket += 1;
                    if self.can_invalidate(b) {
                        self.invalidate_one(b);
                    }
                    checked += 1;
                    if checked >= self.buckets.len() {
                        self.invalidate_needs_gc = true;
                        return;
                    }
                }
            }
            Policy::Random => {
                let mut checked = 0;
                while !self.free_inc.full() {
                    let range = (self.buckets.len() - self.first) as u64;
                    let offset = usize::try_from(self.random.next_u64() % range).expect("small");
                    let b = self.first + offset;
                    if self.can_invalidate(b) {
                        self.invalidate_one(b);
                    }
                    checked += 1;
                    if checked >= self.buckets.len() / 2 {
                        self.invalidate_needs_gc = true;
                        return;
                    }
                }
            }
        }
    }

    /// Moves the oldest of `free_inc` to a reserve; which, unless all are full.
    pub fn push_one(&mut self) -> Option<(usize, Reserve)> {
        let b = *self.free_inc.items.front()?;
        let order =
            [Reserve::Prio, Reserve::Btree, Reserve::Prio, Reserve::MovingGc, Reserve::None];
        let reserve = order.into_iter().find(|r| self.free[place(*r)].push(b))?;
        self.free_inc.items.pop_front();
        Some((b, reserve))
    }

    /// What the first GC does for the Prio and Btree reserves.
    pub fn initial_fill(&mut self) {
        self.fill(false);
    }

    /// What the allocator does, and the kernel does not, when it has too few buckets for prio sets: the
    /// same, but only with buckets into which not even a stale pointer leads.
    pub fn fill_unreferenced(&mut self) {
        self.fill(true);
    }

    fn fill(&mut self, unreferenced: bool) {
        if !self.gc_mark_valid || self.prio_blocked != 0 {
            return;
        }
        for b in self.first..self.buckets.len() {
            if self.free[1].full() && self.free[0].full() {
                break;
            }
            if unreferenced && self.buckets[b].gc_gen() != 0 {
                continue;
            }
            if self.can_invalidate(b) && self.buckets[b].mark == Mark::None {
                self.invalidate_without_push(b);
                if !self.free[1].push(b) {
                    self.free[0].push(b);
                }
            }
        }
    }

    /// What the allocator does then besides: of the last `waiting` buckets in `free_inc`, whose gens are not
    /// durable, those into which no pointer leads go to Prio.
    pub fn fill_from_free_inc(&mut self, waiting: usize) {
        if !self.gc_mark_valid || self.prio_blocked != 0 {
            return;
        }
        let mut at = self.free_inc.items.len() - waiting;
        while let Some(&b) = self.free_inc.items.get(at) {
            if self.buckets[b].gc_gen() == 0 && self.free[1].push(b) {
                self.free_inc.items.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// The buckets in a reserve.
    pub fn reserve(&self, reserve: Reserve) -> &VecDeque<usize> {
        &self.free[place(reserve)].items
    }

    /// Allocates without waiting.
    pub fn bucket_alloc(&mut self, reserve: Reserve) -> Option<usize> {
        let b = self.free[3]
            .items
            .pop_front()
            .or_else(|| self.free[place(reserve)].items.pop_front())?;
        let bucket = &mut self.buckets[b];
        assert_eq!(bucket.pin, 1, "bucket {b} came from a reserve");
        bucket.gc_move = false;
        bucket.sectors_used = u16::try_from(self.bucket_size & 0x1fff).expect("13 bits");
        if place(reserve) <= 1 {
            bucket.mark = Mark::Metadata;
            bucket.prio = BTREE_PRIO;
        } else {
            bucket.mark = Mark::Reclaimable;
            bucket.prio = INITIAL_PRIO;
        }
        self.avail_nbuckets = self.avail_nbuckets.saturating_sub(1);
        Some(b)
    }

    /// Forgets what a bucket holds.
    pub fn bucket_free(&mut self, b: usize) {
        self.buckets[b].mark = Mark::None;
        self.buckets[b].sectors_used = 0;
        if self.avail_nbuckets < self.buckets.len() as u64 {
            self.avail_nbuckets += 1;
        }
    }

    /// Counts I/O and ages prios when due.
    pub fn rescale_priorities(&mut self, sectors: u32) -> bool {
        self.rescale -= i64::from(sectors);
        if self.rescale >= 0 {
            return false;
        }
        let next = self.buckets.len() as u64 * self.bucket_size / 1024;
        self.rescale += i64::try_from(next).expect("small");
        self.age();
        true
    }

    /// Ages prios.
    pub fn age(&mut self) {
        self.min_prio = u16::MAX;
        for bucket in &mut self.buckets[self.first..] {
            if bucket.prio != 0 && bucket.prio != BTREE_PRIO && bucket.pin == 0 {
                bucket.prio -= 1;
                self.min_prio = self.min_prio.min(bucket.prio);
            }
        }
    }

    /// Begins a GC.
    pub fn gc_start(&mut self) {
        for b in self.first..self.buckets.len() {
            self.buckets[b].last_gc = self.buckets[b].bucket_gen;
            if self.reclaim_in_gc && self.can_invalidate(b) {
                self.buckets[b].reclaimable_in_gc = true;
            }
            if self.buckets[b].pin == 0 {
                self.buckets[b].mark = Mark::None;
                self.buckets[b].sectors_used = 0;
            }
        }
        self.gc_mark_valid = false;
    }

    /// Ends a GC.
    pub fn gc_finish(&mut self, marks: &[(BucketIndex, Mark)]) {
        self.gc_mark_valid = true;
        self.need_gc = 0;
        self.avail_nbuckets = 0;
        for &(bucket, mark) in marks {
            self.buckets[usize::try_from(bucket.0).expect("small")].mark = mark;
        }
        for chain in [&self.prio_buckets, &self.prio_last_buckets] {
            for &b in chain.iter().filter(|&&b| b >= self.first) {
                self.buckets[b].mark = Mark::Metadata;
            }
        }
        for bucket in &mut self.buckets[self.first..] {
            bucket.reclaimable_in_gc = false;
            self.need_gc = self.need_gc.max(bucket.gc_gen());
            if bucket.pin == 0 && matches!(bucket.mark, Mark::None | Mark::Reclaimable) {
                self.avail_nbuckets += 1;
            }
        }
        self.invalidate_needs_gc = false;
    }

    /// Marks for one key; how stale it is, or `None` for an inconsistent one.
    pub fn mark_key(&mut self, b: usize, ptr_gen: Gen, mark: Mark, sectors: u16) -> Option<u8> {
        let bucket = &mut self.buckets[b];
        let after = |a: u8, b: u8| {
            let distance = a.wrapping_sub(b);
            if distance > 128 { 0 } else { distance }
        };
        if after(bucket.last_gc, ptr_gen.0) != 0 {
            bucket.last_gc = ptr_gen.0;
        }
        let stale = after(bucket.bucket_gen, ptr_gen.0);
        if stale != 0 {
            return Some(stale);
        }
        let is_metadata = bucket.mark == Mark::Metadata;
        if bucket.mark != Mark::None && is_metadata != (mark == Mark::Metadata) {
            return None;
        }
        match mark {
            Mark::Metadata | Mark::Dirty => bucket.mark = mark,
            Mark::None | Mark::Reclaimable if bucket.mark == Mark::None => bucket.mark = mark,
            Mark::None | Mark::Reclaimable => {}
        }
        bucket.sectors_used = (u32::from(bucket.sectors_used) + u32::from(sectors))
            .min(8191)
            .try_into()
            .expect("13 bits");
        Some(0)
    }

    /// Writes prios: allocates a chain, makes it current, frees the old one. False when there are too
    /// few buckets.
    pub fn prio_write(&mut self) -> bool {
        let n = self.prio_buckets.len();
        if n > self.free[1].items.len() + self.free[3].items.len() {
            return false;
        }
        for i in (0..n).rev() {
            let b = self.bucket_alloc(Reserve::Prio).expect("counted before");
            self.prio_buckets[i] = b;
            self.buckets[b].pin -= 1;
        }
        for i in 0..n {
            if self.prio_last_buckets[i] != 0 {
                self.bucket_free(self.prio_last_buckets[i]);
            }
            self.prio_last_buckets[i] = self.prio_buckets[i];
        }
        true
    }
}
