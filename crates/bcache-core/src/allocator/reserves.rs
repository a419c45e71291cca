//! The four reserves and `free_inc`: bounded queues with the kernel's sizes (on-disk-format.md §9.1, §9.2).

use std::collections::VecDeque;

use serde::Serialize;

use crate::units::{BucketIndex, Geometry};

/// A queue of free buckets kept back for one kind of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reserve {
    /// Btree nodes and the uuid table.
    Btree,
    /// Prio sets: "prios/gens are actually the most important reserve".
    Prio,
    /// Moving GC.
    MovingGc,
    /// Data; and what every other use tries first.
    None,
}

impl Reserve {
    /// All, in the kernel's order.
    pub const ALL: [Self; 4] = [Self::Btree, Self::Prio, Self::MovingGc, Self::None];

    /// The order in which a new free bucket is offered to the reserves (on-disk-format.md §9.6 A).
    const PUSH_ORDER: [Self; 4] = [Self::Prio, Self::Btree, Self::MovingGc, Self::None];

    /// Whether its buckets hold metadata (`reserve <= RESERVE_PRIO`).
    pub(crate) const fn is_metadata(self) -> bool {
        matches!(self, Self::Btree | Self::Prio)
    }
}

/// How large the Btree reserve is: the one size in which kernels differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BtreeReserve {
    /// `clamp(nbuckets / 128, 32, 256)`, since 6.16: enough for any split (on-disk-format.md §10.13).
    #[default]
    Clamped,
    /// The number of journal buckets, or 8 where it is not known yet, up to 6.15.
    JournalBuckets(Option<u16>),
}

/// Capacities of all queues of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Capacity of the Btree reserve.
    pub btree: usize,
    /// Capacity of the Prio reserve: one chain of prio sets.
    pub prio: usize,
    /// Capacity of the `MovingGc` reserve.
    pub moving_gc: usize,
    /// Capacity of the None reserve.
    pub none: usize,
    /// Capacity of `free_inc`: what one pass invalidates at most.
    pub free_inc: usize,
    /// Victims that the kernel's LRU heap holds.
    pub heap: usize,
}

impl Sizes {
    /// The capacities for a device; `None` for one too small for the kernel, which wants 513 buckets
    /// (on-disk-format.md §1.4 row 24).
    pub fn new(geometry: &Geometry, btree: BtreeReserve) -> Option<Self> {
        let nbuckets = usize::try_from(geometry.nbuckets()).ok()?;
        let free = nbuckets.checked_next_power_of_two()? >> 10;
        if free == 0 {
            return None;
        }
        let btree = match btree {
            BtreeReserve::Clamped => (nbuckets >> 7).clamp(32, 256),
            BtreeReserve::JournalBuckets(Some(0) | None) => 8,
            BtreeReserve::JournalBuckets(Some(buckets)) => usize::from(buckets),
        };
        Some(Self {
            btree: fifo_capacity(btree),
            prio: usize::try_from(geometry.prio_buckets()).ok()?,
            moving_gc: fifo_capacity(free),
            none: fifo_capacity(free),
            free_inc: fifo_capacity(free.checked_mul(4)?),
            heap: free.checked_mul(8)?,
        })
    }
}

/// What `init_fifo` makes of a request: a ring of a power of two, one place of which stays empty,
/// except for the smallest.
fn fifo_capacity(request: usize) -> usize {
    if request <= 4 { request } else { request.next_power_of_two() - 1 }
}

/// A bounded queue of buckets.
#[derive(Debug)]
pub(crate) struct Fifo {
    queue: VecDeque<u32>,
    capacity: usize,
}

impl Fifo {
    /// An empty queue for `capacity` buckets.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { queue: VecDeque::with_capacity(capacity), capacity }
    }

    /// Appends a bucket; false when there is no room.
    pub(crate) fn push(&mut self, bucket: BucketIndex) -> bool {
        match u32::try_from(bucket.0) {
            Ok(index) if self.queue.len() < self.capacity => {
                self.queue.push_back(index);
                true
            }
            _ => false,
        }
    }

    /// Takes the oldest bucket.
    pub(crate) fn pop(&mut self) -> Option<BucketIndex> {
        self.queue.pop_front().map(|index| BucketIndex(u64::from(index)))
    }

    /// Takes out every bucket that is not to stay.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(BucketIndex) -> bool) {
        self.queue.retain(|&index| stays(BucketIndex(u64::from(index))));
    }

    /// The oldest bucket, left where it is.
    pub(crate) fn front(&self) -> Option<BucketIndex> {
        self.queue.front().map(|&index| BucketIndex(u64::from(index)))
    }

    /// Buckets in the queue.
    pub(crate) fn used(&self) -> usize {
        self.queue.len()
    }

    /// Buckets that it can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Places left.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.queue.len())
    }

    /// Whether there is no place left.
    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// The buckets in it, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BucketIndex> + '_ {
        self.queue.iter().map(|&index| BucketIndex(u64::from(index)))
    }
}

/// The four reserves of one cache.
#[derive(Debug)]
pub(crate) struct Reserves {
    btree: Fifo,
    prio: Fifo,
    moving_gc: Fifo,
    none: Fifo,
}

impl Reserves {
    /// Empty reserves of the given sizes.
    pub(crate) fn new(sizes: &Sizes) -> Self {
        Self {
            btree: Fifo::new(sizes.btree),
            prio: Fifo::new(sizes.prio),
            moving_gc: Fifo::new(sizes.moving_gc),
            none: Fifo::new(sizes.none),
        }
    }

    /// One of them.
    pub(crate) fn fifo(&self, reserve: Reserve) -> &Fifo {
        match reserve {
            Reserve::Btree => &self.btree,
            Reserve::Prio => &self.prio,
            Reserve::MovingGc => &self.moving_gc,
            Reserve::None => &self.none,
        }
    }

    /// One of them, to change.
    pub(crate) fn fifo_mut(&mut self, reserve: Reserve) -> &mut Fifo {
        match reserve {
            Reserve::Btree => &mut self.btree,
            Reserve::Prio => &mut self.prio,
            Reserve::MovingGc => &mut self.moving_gc,
            Reserve::None => &mut self.none,
        }
    }

    /// Puts a free bucket where it is needed most (`bch_allocator_push`): Prio first, then Btree,
    /// `MovingGc`, None. `None` when all are full.
    pub(crate) fn push(&mut self, bucket: BucketIndex) -> Option<Reserve> {
        Reserve::PUSH_ORDER.into_iter().find(|&reserve| self.fifo_mut(reserve).push(bucket))
    }

    /// Takes a bucket for `reserve`: what is free for all before what is kept back for it.
    pub(crate) fn pop(&mut self, reserve: Reserve) -> Option<BucketIndex> {
        self.none.pop().or_else(|| self.fifo_mut(reserve).pop())
    }

    /// Whether [`pop`](Self::pop) would find one.
    pub(crate) fn has(&self, reserve: Reserve) -> bool {
        self.none.used() > 0 || self.fifo(reserve).used() > 0
    }

    /// Whether a push would find no room.
    pub(crate) fn is_full(&self) -> bool {
        Reserve::ALL.iter().all(|&reserve| self.fifo(reserve).is_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sectors;

    fn sizes(nbuckets: u64, btree: BtreeReserve) -> Option<Sizes> {
        let geometry = Geometry::new(nbuckets, 1, Sectors(1024), Sectors(8)).unwrap();
        Sizes::new(&geometry, btree)
    }

    /// The table of on-disk-format.md §9.2.
    #[test]
    fn sizes_are_the_kernels() {
        for (nbuckets, free, free_inc, heap, journal, old, new) in [
            (513, 1, 4, 8, 4, 4, 31),
            (1024, 1, 4, 8, 8, 7, 31),
            (2048, 2, 7, 16, 16, 15, 31),
            (4096, 4, 15, 32, 32, 31, 31),
            (8192, 7, 31, 64, 64, 63, 63),
            (32768, 31, 127, 256, 256, 255, 255),
            (131_072, 127, 511, 1024, 256, 255, 255),
            (1_048_576, 1023, 4095, 8192, 256, 255, 255),
        ] {
            let then = sizes(nbuckets, BtreeReserve::JournalBuckets(Some(journal))).unwrap();
            assert_eq!(
                (then.moving_gc, then.none, then.free_inc, then.heap, then.btree),
                (free, free, free_inc, heap, old),
                "{nbuckets}"
            );
            assert_eq!(sizes(nbuckets, BtreeReserve::Clamped).unwrap().btree, new, "{nbuckets}");
        }
        assert_eq!(sizes(1024, BtreeReserve::JournalBuckets(None)).unwrap().btree, 7);
        assert_eq!(sizes(512, BtreeReserve::Clamped), None);
    }

    #[test]
    fn pushes_go_to_prio_btree_movinggc_none_and_pops_try_none_first() {
        let sizes = Sizes { btree: 1, prio: 1, moving_gc: 1, none: 2, free_inc: 4, heap: 8 };
        let mut reserves = Reserves::new(&sizes);
        let order: Vec<_> = (1..=6).map(|b| reserves.push(BucketIndex(b))).collect();
        assert_eq!(
            order,
            [
                Some(Reserve::Prio),
                Some(Reserve::Btree),
                Some(Reserve::MovingGc),
                Some(Reserve::None),
                Some(Reserve::None),
                None
            ]
        );
        assert!(reserves.is_full());
        let has = |reserves: &Reserves| Reserve::ALL.map(|reserve| reserves.has(reserve));
        assert_eq!(has(&reserves), [true; 4]);
        let pops: Vec<_> = (0..4).map(|_| reserves.pop(Reserve::Btree).map(|b| b.0)).collect();
        assert_eq!(pops, [Some(4), Some(5), Some(2), None]);
        let others = |reserve| matches!(reserve, Reserve::Prio | Reserve::MovingGc);
        assert_eq!(has(&reserves), Reserve::ALL.map(others));
        assert_eq!(reserves.pop(Reserve::Prio), Some(BucketIndex(1)));
        assert_eq!(reserves.pop(Reserve::None), None);
        assert_eq!(reserves.pop(Reserve::MovingGc), Some(BucketIndex(3)));
        assert_eq!(has(&reserves), [false; 4]);
        assert!(reserves.fifo_mut(Reserve::None).push(BucketIndex(7)));
        assert_eq!(has(&reserves), [true; 4]);
    }
}
