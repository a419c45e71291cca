//! The open buckets that one writer owns, found by what they continue and by who wrote to them.

use crate::units::Sectors;

use super::super::clock::timestamp;
use super::super::pointer::{CACHES_MAX, SetPointer};
use super::links::{Item, Links};

/// `MAX_OPEN_BUCKETS`.
pub(super) const OPEN_BUCKETS: u8 = 128;

/// A bucket open for writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// Volume and end of the last write into it: what continues it.
    pub(super) inode: u32,
    pub(super) offset: u64,
    /// Who wrote to it last.
    pub(super) write_point: u32,
    /// Whether `inode` is a flash-only volume.
    pub(super) flash_only: bool,
    /// Space left; at 0 there may be no bucket at all.
    pub(super) sectors_free: u64,
    /// The bucket.
    pub(super) pointer: SetPointer,
    /// First free sector, on the cache device.
    pub(super) sector: Sectors,
    /// When it was used last.
    pub(super) stamp: u64,
}

/// What a search compares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) inode: u32,
    pub(super) offset: u64,
    pub(super) write_point: u32,
    pub(super) flash_only: bool,
}

/// The open buckets of one writer.
#[derive(Debug)]
pub(super) struct Shard {
    open: [Open; OPEN_BUCKETS as usize],
    /// List 0: the open buckets, least recently used first. List 1: places that hold none.
    used: Links,
    /// Lists by hash of what continues a bucket, most recently used last.
    by_end: Links,
    /// Lists by hash of the write point, most recently used last.
    by_write_point: Links,
    owned: u8,
    /// When a bucket was used last: a number that rises with each use.
    clock: u64,
    /// Other shards' uses are to be compared with: the number is the time.
    is_one_of_several: bool,
    /// Sectors given out, for each cache.
    pub(super) sectors_written: [u64; CACHES_MAX],
}

const USED: u8 = 0;
const VACANT: u8 = 1;

fn hash(value: u64) -> u8 {
    let [.., top] = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    top >> 1
}

fn end_hash(inode: u32, offset: u64) -> u8 {
    hash(offset ^ (u64::from(inode) << 40))
}

fn write_point_hash(write_point: u32) -> u8 {
    hash(u64::from(write_point))
}

impl Shard {
    /// A shard that owns all 128 buckets, unused, or none.
    pub(super) fn new(owns_all: bool, is_one_of_several: bool) -> Self {
        let unused = Open {
            inode: 0,
            offset: 0,
            write_point: 0,
            flash_only: false,
            sectors_free: 0,
            pointer: SetPointer {
                device: 0,
                bucket: crate::units::BucketIndex(0),
                bucket_gen: crate::units::Gen(0),
            },
            sector: Sectors(0),
            stamp: 0,
        };
        let mut shard = Self {
            open: [unused; OPEN_BUCKETS as usize],
            used: Links::new(),
            by_end: Links::new(),
            by_write_point: Links::new(),
            owned: 0,
            clock: 0,
            is_one_of_several,
            sectors_written: [0; CACHES_MAX],
        };
        for item in 0..OPEN_BUCKETS {
            shard.used.push_back(VACANT, item);
        }
        if owns_all {
            for _ in 0..OPEN_BUCKETS {
                shard.adopt(unused);
            }
        }
        shard
    }

    /// Whether no other shard owns a bucket.
    pub(super) fn owns_all(&self) -> bool {
        self.owned == OPEN_BUCKETS
    }

    #[allow(clippy::indexing_slicing)] // 7 bits index 128 places
    pub(super) fn open(&self, item: Item) -> &Open {
        &self.open[usize::from(item & 0x7f)]
    }

    #[allow(clippy::indexing_slicing)] // 7 bits index 128 places
    pub(super) fn open_mut(&mut self, item: Item) -> &mut Open {
        &mut self.open[usize::from(item & 0x7f)]
    }

    /// Takes over an open bucket as the most recently used one; `None` when there is no place, which
    /// cannot be: there are as many places as open buckets in all shards together.
    pub(super) fn adopt(&mut self, open: Open) -> Option<Item> {
        let item = self.used.first(VACANT)?;
        self.used.move_back(USED, item);
        self.by_end.push_back(end_hash(open.inode, open.offset), item);
        self.by_write_point.push_back(write_point_hash(open.write_point), item);
        *self.open_mut(item) = open;
        self.owned += 1;
        Some(item)
    }

    /// Gives an open bucket away.
    pub(super) fn give(&mut self, item: Item) -> Open {
        self.used.move_back(VACANT, item);
        self.by_end.remove(item);
        self.by_write_point.remove(item);
        self.owned -= 1;
        let open = *self.open(item);
        // Whoever looks at all places is not to find it twice.
        self.open_mut(item).sectors_free = 0;
        open
    }

    /// The most recently used bucket that the search continues.
    pub(super) fn continued(&self, search: &Search) -> Option<Item> {
        let last = self.by_end.last(end_hash(search.inode, search.offset));
        std::iter::successors(last, |&item| self.by_end.before(item)).find(|&item| {
            let open = self.open(item);
            open.inode == search.inode && open.offset == search.offset
        })
    }

    /// The least recently used bucket of the same write point, of the same kind of volume.
    pub(super) fn of_write_point(&self, search: &Search) -> Option<Item> {
        let first = self.by_write_point.first(write_point_hash(search.write_point));
        std::iter::successors(first, |&item| self.by_write_point.after(item)).find(|&item| {
            let open = self.open(item);
            open.write_point == search.write_point && open.flash_only == search.flash_only
        })
    }

    /// The least recently used bucket of all.
    pub(super) fn least_recent(&self) -> Option<Item> {
        self.used.first(USED)
    }

    /// Notes a use: what continues it now, who used it, and when.
    pub(super) fn touch(&mut self, item: Item, search: &Search, end: u64) {
        // Reading the time takes as long as a fifth of the allocation.
        self.clock = if self.is_one_of_several { timestamp() } else { self.clock + 1 };
        let stamp = self.clock;
        let open = self.open_mut(item);
        let same_writer = open.write_point == search.write_point;
        open.inode = search.inode;
        open.offset = end;
        open.write_point = search.write_point;
        open.flash_only = search.flash_only;
        open.stamp = stamp;
        self.used.move_back(USED, item);
        self.by_end.remove(item);
        self.by_end.push_back(end_hash(search.inode, end), item);
        let list = write_point_hash(search.write_point);
        if same_writer {
            self.by_write_point.move_back(list, item);
        } else {
            self.by_write_point.remove(item);
            self.by_write_point.push_back(list, item);
        }
    }

    /// Closes the open buckets whose pointers `closes` names: their pointers.
    pub(super) fn close_if(&mut self, closes: &impl Fn(&SetPointer) -> bool) -> Vec<SetPointer> {
        let open = self.open.iter_mut().filter(|open| open.sectors_free > 0);
        let closed = open.filter(|open| closes(&open.pointer)).map(|open| {
            open.sectors_free = 0;
            open.pointer
        });
        closed.collect()
    }

    /// A volume became flash-only or ceased to be.
    pub(super) fn set_flash_only(&mut self, inode: u32, flash_only: bool) {
        for open in self.open.iter_mut().filter(|open| open.inode == inode) {
            open.flash_only = flash_only;
        }
    }
}
