//! The sector allocator: space for writes, from up to 128 buckets that are open at once
//! (FORMAT.md §9.8).
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

use crate::units::{BucketIndex, Gen, Sectors};

use super::reserves::Reserve;
use super::set::SetPointer;
use super::shared::AllocError;
use super::state::State;
use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock};
use super::table::TableError;

use links::Item;
use shard::{Search, Shard};

/// Where the sector allocator gets buckets.
pub trait BucketSource: Send + Sync {
    /// Allocates a bucket, with one pin.
    fn bucket_alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError>;

    /// Takes a pin on a bucket.
    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError>;

    /// Drops a pin on a bucket.
    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError>;

    /// Whether the bucket has been invalidated since, which a pin forbids: for debug builds.
    fn is_stale(&self, pointer: &SetPointer) -> bool;

    /// Size of a bucket.
    fn bucket_size(&self) -> Sectors;

    /// Size of a block: a bucket with less than this left is closed.
    fn block_size(&self) -> Sectors;
}

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
pub struct SectorAllocator<S> {
    source: S,
    bucket_size: u64,
    block_size: u64,
    writers: Vec<Writer>,
    /// One bit for each volume.
    flash_only: Vec<AtomicU64>,
}

impl<S: BucketSource> SectorAllocator<S> {
    /// An allocator for `writers` writers (at least one), and volumes in slots below `nr_uuids`.
    ///
    /// All open buckets belong to writer 0 at first.
    pub fn new(source: S, writers: usize, nr_uuids: u64) -> Self {
        let words = usize::try_from(nr_uuids.div_ceil(64)).unwrap_or(0);
        Self {
            bucket_size: source.bucket_size().0,
            block_size: source.block_size().0,
            source,
            writers: (0..writers.max(1)).map(|i| Writer(Mutex::new(Shard::new(i == 0)))).collect(),
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
        let search = Search {
            inode: request.inode,
            offset: request.offset,
            write_point: request.write_point,
            flash_only: self.is_flash_only(request.inode),
        };
        let mut fresh = None;
        loop {
            let (mut shard, item) = self.pick(writer, &search)?;
            if shard.open(item).sectors_free == 0 {
                let Some(pointer) = fresh.take() else {
                    // A bucket may have to be waited for: not with the lock.
                    drop(shard);
                    let reserve = if request.moving_gc { Reserve::MovingGc } else { Reserve::None };
                    fresh = Some(self.source.bucket_alloc(reserve, request.wait)?);
                    continue;
                };
                self.adopt(&mut shard, item, pointer);
            }
            let allocated = self.take(&mut shard, item, &search, request.sectors);
            drop(shard);
            if let Some(unused) = fresh {
                // Another found space meanwhile. The bucket is lost until the next GC, as the
                // kernel's is.
                self.source.unpin(&unused)?;
            }
            return allocated;
        }
    }

    fn adopt(&self, shard: &mut Shard, item: Item, pointer: SetPointer) {
        let open = shard.open_mut(item);
        open.pointer = pointer;
        open.sector = Sectors(pointer.bucket.0.saturating_mul(self.bucket_size));
        open.sectors_free = self.bucket_size;
    }

    fn take(
        &self,
        shard: &mut Shard,
        item: Item,
        search: &Search,
        wanted: u32,
    ) -> Result<Allocated, AllocError> {
        let open = shard.open_mut(item);
        let given = u64::from(wanted).min(open.sectors_free);
        let sectors = u32::try_from(given).unwrap_or(wanted);
        let allocated = Allocated { pointer: open.pointer, sector: open.sector, sectors };
        debug_assert!(!self.source.is_stale(&open.pointer), "an open bucket was invalidated");
        let mut left = open.sectors_free - given;
        if left < self.block_size {
            left = 0;
        }
        if left > 0 {
            match self.source.pin(&open.pointer) {
                Ok(()) => {}
                // As many keys under way as can be counted: the bucket is closed, its pin passes on.
                Err(AllocError::Table(TableError::PinOverflow { .. })) => left = 0,
                Err(error) => return Err(error),
            }
        }
        open.sectors_free = left;
        open.sector += Sectors(given);
        if let Some(written) = shard.sectors_written.get_mut(usize::from(allocated.pointer.device))
        {
            *written = written.wrapping_add(given);
        }
        shard.touch(item, search, search.offset.wrapping_add(given));
        Ok(allocated)
    }

    /// The open bucket for a request, owned by `writer`, whose lock is held.
    fn pick(
        &self,
        writer: usize,
        search: &Search,
    ) -> Result<(MutexGuard<'_, Shard>, Item), AllocError> {
        let writer = writer % self.writers.len().max(1);
        if let Some(Writer(own)) = self.writers.get(writer) {
            let shard = lock(own);
            let mut found = shard.continued(search).or_else(|| shard.of_write_point(search));
            if shard.owns_all() {
                found = found.or_else(|| shard.least_recent());
            }
            if let Some(item) = found {
                return Ok((shard, item));
            }
        }
        self.pick_among_all(writer, search)
            // There are always 128 open buckets, so one is least recently used.
            .ok_or(AllocError::WouldBlock { reserve: Reserve::None })
    }

    /// Locks all writers, in order, and brings their clocks level: from here on each is later than
    /// all that any of them did.
    fn lock_all(&self) -> Vec<MutexGuard<'_, Shard>> {
        let mut shards: Vec<_> = self.writers.iter().map(|Writer(shard)| lock(shard)).collect();
        let now = shards.iter().map(|shard| shard.clock).max().unwrap_or(0);
        for shard in &mut shards {
            shard.clock = now;
        }
        shards
    }

    /// Looks among all open buckets and moves the one found to `writer`.
    fn pick_among_all(
        &self,
        writer: usize,
        search: &Search,
    ) -> Option<(MutexGuard<'_, Shard>, Item)> {
        let mut shards = self.lock_all();
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
        if at == writer {
            return Some((shards.swap_remove(at), item));
        }
        let open = shards.get_mut(at)?.give(item);
        let item = shards.get_mut(writer)?.adopt(open)?;
        Some((shards.swap_remove(writer), item))
    }
}

/// One cache without a thread: never waits.
impl BucketSource for State {
    fn bucket_alloc(&self, reserve: Reserve, _wait: bool) -> Result<SetPointer, AllocError> {
        let bucket =
            Self::bucket_alloc(self, reserve)?.ok_or(AllocError::WouldBlock { reserve })?;
        Ok(SetPointer { device: 0, bucket, bucket_gen: self.table().bucket_gen(bucket)? })
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        Ok(self.table().pin(pointer.bucket)?)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        Ok(self.table().unpin(pointer.bucket)?)
    }

    fn is_stale(&self, pointer: &SetPointer) -> bool {
        gen_of(self, pointer.bucket) != Some(pointer.bucket_gen)
    }

    fn bucket_size(&self) -> Sectors {
        self.config().geometry.bucket_size()
    }

    fn block_size(&self) -> Sectors {
        self.config().geometry.block_size()
    }
}

fn gen_of(state: &State, bucket: BucketIndex) -> Option<Gen> {
    state.table().bucket_gen(bucket).ok()
}

impl<S: BucketSource + ?Sized> BucketSource for std::sync::Arc<S> {
    fn bucket_alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError> {
        (**self).bucket_alloc(reserve, wait)
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        (**self).pin(pointer)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        (**self).unpin(pointer)
    }

    fn is_stale(&self, pointer: &SetPointer) -> bool {
        (**self).is_stale(pointer)
    }

    fn bucket_size(&self) -> Sectors {
        (**self).bucket_size()
    }

    fn block_size(&self) -> Sectors {
        (**self).block_size()
    }
}
