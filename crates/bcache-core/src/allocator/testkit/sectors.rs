//! The sector allocator of the reference engine: one list of 128 open buckets, walked from the most
//! recently used (on-disk-format.md §9.8).

use std::collections::HashSet;

use crate::allocator::Reserve;

use super::Reference;

/// One bucket open for writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OpenBucket {
    inode: u32,
    offset: u64,
    bucket: usize,
    bucket_gen: u8,
    sector: u64,
    last_write_point: u32,
    sectors_free: u64,
}

/// Space that a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bucket.
    pub bucket: usize,
    /// Its gen.
    pub bucket_gen: u8,
    /// First sector on the cache device.
    pub sector: u64,
    /// Sectors given.
    pub sectors: u64,
}

/// The head of the list, which is no open bucket.
const HEAD: usize = OPEN_BUCKETS;
const OPEN_BUCKETS: usize = 128;

/// The open buckets and their list, least recently used first.
#[derive(Clone, Debug)]
pub struct OpenBuckets {
    open: [OpenBucket; OPEN_BUCKETS],
    prev: [usize; OPEN_BUCKETS + 1],
    next: [usize; OPEN_BUCKETS + 1],
    /// Volumes without a backing device.
    pub flash_only: HashSet<u32>,
    /// Sectors given out in all.
    pub sectors_written: u64,
}

impl OpenBuckets {
    /// Whether `bucket` is open for writing.
    pub fn has(&self, bucket: usize) -> bool {
        self.open.iter().any(|open| open.sectors_free != 0 && open.bucket == bucket)
    }
}

impl Default for OpenBuckets {
    fn default() -> Self {
        Self {
            open: [OpenBucket::default(); OPEN_BUCKETS],
            prev: std::array::from_fn(|i| if i == 0 { HEAD } else { i - 1 }),
            next: std::array::from_fn(|i| if i == HEAD { 0 } else { i + 1 }),
            flash_only: HashSet::new(),
            sectors_written: 0,
        }
    }
}

impl OpenBuckets {
    fn is_flash_only(&self, inode: u32) -> bool {
        !self.flash_only.is_empty() && self.flash_only.contains(&inode)
    }

    fn pick(&self, inode: u32, offset: u64, write_point: u32) -> usize {
        let flash_only = self.is_flash_only(inode);
        let mut of_task = None;
        let mut i = self.prev[HEAD];
        while i != HEAD {
            let open = &self.open[i];
            if self.is_flash_only(open.inode) == flash_only {
                if (open.inode, open.offset) == (inode, offset) {
                    return i;
                }
                if open.last_write_point == write_point {
                    of_task = Some(i);
                }
            }
            i = self.prev[i];
        }
        of_task.unwrap_or(self.next[HEAD])
    }

    fn move_to_tail(&mut self, i: usize) {
        (self.next[self.prev[i]], self.prev[self.next[i]]) = (self.next[i], self.prev[i]);
        let last = self.prev[HEAD];
        (self.prev[i], self.next[i]) = (last, HEAD);
        (self.next[last], self.prev[HEAD]) = (i, i);
    }

    /// Allocates up to `sectors` for a write to `offset` of `inode`.
    #[allow(clippy::too_many_arguments)] // what the kernel's function takes
    pub fn alloc_sectors(
        &mut self,
        engine: &mut Reference,
        inode: u32,
        offset: u64,
        sectors: u64,
        write_point: u32,
        write_prio: bool,
        block_size: u64,
    ) -> Option<Piece> {
        let i = self.pick(inode, offset, write_point);
        if self.open[i].sectors_free == 0 {
            let reserve = if write_prio { Reserve::MovingGc } else { Reserve::None };
            let bucket = engine.bucket_alloc(reserve)?;
            let open = &mut self.open[i];
            open.sectors_free = engine.bucket_size;
            open.bucket = bucket;
            open.bucket_gen = engine.buckets[bucket].bucket_gen;
            open.sector = bucket as u64 * engine.bucket_size;
        }
        self.move_to_tail(i);
        let open = &mut self.open[i];
        let sectors = sectors.min(open.sectors_free);
        let piece = Piece {
            bucket: open.bucket,
            bucket_gen: open.bucket_gen,
            sector: open.sector,
            sectors,
        };
        open.inode = inode;
        open.offset = offset + sectors;
        open.last_write_point = write_point;
        open.sectors_free -= sectors;
        open.sector += sectors;
        self.sectors_written += sectors;
        if open.sectors_free < block_size {
            open.sectors_free = 0;
        }
        if open.sectors_free > 0 {
            engine.buckets[open.bucket].pin += 1;
        }
        Some(piece)
    }
}
