//! The sector allocator: space for writes, from up to 128 buckets that are open at once
//! (on-disk-format.md §9.8).
//!
//! Streams are kept apart: a write goes to the bucket whose last write it continues, else to one that
//! its write point used last, else to the least recently used; flash-only volumes, whose data cannot
//! be reclaimed, do not share with others unless there is no other way.
//!
//! The kernel has one list under one lock and walks it from end to end. Here hash lists find the
//! same bucket that the walk would, and open buckets belong to *writers*, each with its own lock:
//!
//! - A writer looks among its own buckets first, and finds there nearly always what it wrote last.
//! - When it does not, it locks all writers together, looks among all buckets, and takes over the
//!   one it chose.
//!
//! With one writer that owns all buckets, every choice is exactly the kernel's. Several writers see
//! each other's buckets when neither the position nor the write point of a request is known to their
//! own: a stream should stay with one writer, and a write point should belong to one. What they
//! never do is give out a sector twice, or exceed 128 open buckets in all.

mod links;
mod shard;
mod source;

use crate::units::{Geometry, Sectors};

use super::error::AllocError;
use super::pointer::SetPointer;
use super::reserves::Reserve;
use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock};
use super::table::TableError;

use links::Item;
use shard::{Search, Shard};

pub use source::BucketSource;

/// What to allocate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRequest {
    /// Volume: the slot of its uuid (`KEY_INODE`).
    pub inode: u32,
    /// First sector of the write, on the volume.
    pub offset: u64,
    /// Sectors wanted; fewer may be given.
    pub sectors: u32,
    /// Who writes: requests with the same write point go together.
    pub write_point: u32,
    /// A write of moving GC, which has its own reserve (`write_prio`).
    pub moving_gc: bool,
    /// Wait for a free bucket.
    pub wait: bool,
}

/// Space for a write. Its bucket carries a pin for it, to be dropped once a key points there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Bucket and gen.
    pub pointer: SetPointer,
    /// First sector, on the cache device (`PTR_OFFSET`).
    pub sector: Sectors,
    /// Sectors given: at least 1 when at least 1 was asked for.
    pub sectors: u32,
}

/// Alone on its cache lines: writers do not slow each other down.
#[repr(align(128))]
struct Writer(Mutex<Shard>);

/// The open buckets of a cache set.
pub struct SectorAllocator<S: BucketSource> {
    source: S,
    bucket_size: u64,
    block_size: u64,
    writers: Vec<Writer>,
    /// Buckets that were allocated and, when they had come, not needed any more.
    spare: Mutex<Vec<SetPointer>>,
    /// One bit for each volume.
    flash_only: Vec<AtomicU64>,
}

impl<S: BucketSource> SectorAllocator<S> {
    /// An allocator for `writers` writers (at least one) on caches of this geometry.
    ///
    /// All open buckets belong to writer 0 at first.
    pub fn new(source: S, geometry: &Geometry, writers: usize) -> Self {
        let words = usize::try_from(geometry.nr_uuids().div_ceil(64)).unwrap_or(0);
        Self {
            bucket_size: geometry.bucket_size().0,
            block_size: geometry.block_size().0,
            source,
            writers: (0..writers.max(1))
                .map(|number| Writer(Mutex::new(Shard::new(number == 0, writers > 1))))
                .collect(),
            spare: Mutex::new(Vec::new()),
            flash_only: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Where buckets come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    fn flash_word(&self, inode: u32) -> Option<(&AtomicU64, u64)> {
        let word = usize::try_from(inode / 64).ok().and_then(|word| self.flash_only.get(word))?;
        Some((word, 1 << (inode % 64)))
    }

    /// Whether a volume has no backing device.
    pub fn is_flash_only(&self, inode: u32) -> bool {
        self.flash_word(inode).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Says whether a volume has no backing device.
    pub fn set_flash_only(&self, inode: u32, flash_only: bool) {
        let mut writers = self.lock_all();
        if let Some((word, bit)) = self.flash_word(inode) {
            if flash_only {
                word.fetch_or(bit, Ordering::Relaxed);
            } else {
                word.fetch_and(!bit, Ordering::Relaxed);
            }
            for shard in &mut writers {
                shard.set_flash_only(inode, flash_only);
            }
        }
    }

    /// Sectors given out on one cache so far.
    pub fn sectors_written(&self, device: u16) -> u64 {
        let device = usize::from(device);
        self.lock_all().iter().filter_map(|shard| shard.sectors_written.get(device)).sum()
    }

    /// Allocates space for a write, fewer sectors than wanted if the bucket is full before
    /// (`bch_alloc_sectors`). Fails only when no bucket can be had.
    ///
    /// `writer` is taken modulo the number of writers.
    pub fn alloc_sectors(
        &self,
        writer: usize,
        request: &SectorRequest,
    ) -> Result<Allocated, AllocError> {
        let alloc = |reserve, wait| self.source.alloc(reserve, wait);
        self.alloc_sectors_with(writer, request, alloc)
    }

    /// The same; where a bucket is needed, it comes from `alloc`: to time it, for one. `alloc` is
    /// called without a lock held and gives what [`BucketSource::alloc`] gives.
    pub fn alloc_sectors_with(
        &self,
        writer: usize,
        request: &SectorRequest,
        mut alloc: impl FnMut(Reserve, bool) -> Result<SetPointer, AllocError>,
    ) -> Result<Allocated, AllocError> {
        let search = Search {
            inode: request.inode,
            offset: request.offset,
            write_point: request.write_point,
            flash_only: self.is_flash_only(request.inode),
        };
        let reserve = if request.moving_gc { Reserve::MovingGc } else { Reserve::None };
        let mut fresh = None;
        let result = loop {
            match self.try_alloc(writer, &search, request.sectors, &mut fresh) {
                Ok(Some(allocated)) => break Ok(allocated),
                Ok(None) if fresh.is_some() => {}
                // A bucket may have to be waited for: not with the lock.
                Ok(None) => {
                    let spare = lock(&self.spare).pop();
                    fresh = Some(spare.map_or_else(|| alloc(reserve, request.wait), Ok)?);
                }
                Err(error) => break Err(error),
            }
        };
        // Another found space meanwhile. The kernel loses the bucket until the next GC.
        // (A lock that all share, taken for nothing, would cost a quarter of one thread's rate.)
        if let Some(fresh) = fresh {
            lock(&self.spare).push(fresh);
        }
        result
    }

    /// Takes space from the open bucket that the request is to go to; into one that is full goes
    /// `fresh` before. `None`: `fresh` is needed and there is none, or what was chosen cannot be used.
    fn try_alloc(
        &self,
        writer: usize,
        search: &Search,
        sectors: u32,
        fresh: &mut Option<SetPointer>,
    ) -> Result<Option<Allocated>, AllocError> {
        let usable = |shard: &Shard, item, fresh: &Option<SetPointer>| {
            shard.open(item).sectors_free > 0 || fresh.is_some()
        };
        let writer = writer % self.writers.len().max(1);
        if let Some(Writer(own)) = self.writers.get(writer) {
            let mut shard = lock(own);
            let mut found = shard.continued(search).or_else(|| shard.of_write_point(search));
            if shard.owns_all() {
                found = found.or_else(|| shard.least_recent());
            }
            if let Some(item) = found {
                if !usable(&shard, item, fresh) {
                    return Ok(None);
                }
                return self.take(&mut shard, item, search, sectors, fresh);
            }
        }
        let mut shards = self.lock_all();
        let found = Self::find_among_all(&shards, search);
        let Some((at, item)) = found else {
            // There are always 128 open buckets, so one is least recently used.
            return Err(AllocError::WouldBlock { reserve: Reserve::None });
        };
        // It changes its owner only if it is used at once: what was moved and not used would count as
        // used last where it has come to.
        if !shards.get(at).is_some_and(|shard| usable(shard, item, fresh)) {
            return Ok(None);
        }
        let item = if at == writer {
            Some(item)
        } else {
            let open = shards.get_mut(at).map(|shard| shard.give(item));
            open.and_then(|open| shards.get_mut(writer)?.adopt(open))
        };
        match (item, shards.get_mut(writer)) {
            (Some(item), Some(shard)) => self.take(shard, item, search, sectors, fresh),
            _ => Err(AllocError::WouldBlock { reserve: Reserve::None }),
        }
    }

    fn take(
        &self,
        shard: &mut Shard,
        item: Item,
        search: &Search,
        wanted: u32,
        fresh: &mut Option<SetPointer>,
    ) -> Result<Option<Allocated>, AllocError> {
        let open = shard.open_mut(item);
        if open.sectors_free == 0 {
            let Some(pointer) = fresh.take() else { return Ok(None) };
            open.pointer = pointer;
            open.sector = Sectors(pointer.bucket.0.saturating_mul(self.bucket_size));
            open.sectors_free = self.bucket_size;
        }
        let given = u64::from(wanted).min(open.sectors_free);
        let sectors = u32::try_from(given).unwrap_or(wanted);
        let allocated = Allocated { pointer: open.pointer, sector: open.sector, sectors };
        let mut left = open.sectors_free - given;
        if left < self.block_size {
            left = 0;
        }
        match self.source.pin(&open.pointer) {
            Ok(()) if left > 0 => {}
            Ok(()) => self.source.unpin(&open.pointer)?,
            // As many keys under way as can be counted: the bucket is closed, its pin passes on.
            Err(AllocError::Table(TableError::PinOverflow { .. })) => left = 0,
            // Another cache may do: this bucket is closed.
            Err(AllocError::Failed) => {
                open.sectors_free = 0;
                self.source.unpin(&open.pointer)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        open.sectors_free = left;
        open.sector += Sectors(given);
        if let Some(written) = shard.sectors_written.get_mut(usize::from(allocated.pointer.device))
        {
            *written = written.wrapping_add(given);
        }
        shard.touch(item, search, search.offset.wrapping_add(given));
        Ok(Some(allocated))
    }

    /// Closes all open buckets: their pins are dropped, and what was left of them is not used. How many
    /// were open.
    ///
    /// Dropping the sector allocator does the same.
    pub fn close(&self) -> Result<usize, AllocError> {
        self.close_if(|_| true)
    }

    /// Closes the open buckets of one cache, as before it leaves its set. How many were open.
    pub fn close_cache(&self, device: u16) -> Result<usize, AllocError> {
        self.close_if(|pointer| pointer.device == device)
    }

    fn close_if(&self, closes: impl Fn(&SetPointer) -> bool) -> Result<usize, AllocError> {
        let mut spare = lock(&self.spare);
        let (mut closed, rest): (Vec<_>, _) = spare.drain(..).partition(&closes);
        *spare = rest;
        drop(spare);
        for shard in &mut self.lock_all() {
            closed.extend(shard.close_if(&closes));
        }
        let results: Vec<_> = closed.iter().map(|pointer| self.source.unpin(pointer)).collect();
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(closed.len())
    }

    /// Locks all writers, in order.
    fn lock_all(&self) -> Vec<MutexGuard<'_, Shard>> {
        self.writers.iter().map(|Writer(shard)| lock(shard)).collect()
    }

    /// Looks among all open buckets: whose it is, and which.
    fn find_among_all(shards: &[MutexGuard<'_, Shard>], search: &Search) -> Option<(usize, Item)> {
        let each = |find: &dyn Fn(&Shard) -> Option<Item>| -> Vec<(u64, usize, Item)> {
            let found = shards.iter().enumerate().filter_map(|(at, shard)| {
                find(shard).map(|item| (shard.open(item).stamp, at, item))
            });
            found.collect()
        };
        let (_, at, item) = each(&|shard| shard.continued(search))
            .into_iter()
            .max()
            .or_else(|| each(&|shard| shard.of_write_point(search)).into_iter().min())
            .or_else(|| each(&|shard| shard.least_recent()).into_iter().min())?;
        Some((at, item))
    }
}

impl<S: BucketSource> Drop for SectorAllocator<S> {
    fn drop(&mut self) {
        // A pin that cannot be dropped now is nobody's concern any more.
        let _ = self.close();
    }
}
