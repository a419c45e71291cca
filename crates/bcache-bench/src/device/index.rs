//! Where the data of the volume is: what the btree is to a running cache, in memory.
//!
//! One word for each granule of the working set, which holds a pointer as bcache's keys have it, or 0.
//! Writers, readers and the collector use it at the same time, without a lock: a pointer is one word,
//! and one that has become stale is known by its gen.

use std::sync::atomic::{AtomicU64, Ordering};

use bcache_core::allocator::{AllocError, Mark, SetAllocator, SetPointer};
use bcache_core::layout::bkey::Ptr;
use bcache_core::units::{Geometry, Sectors};

/// Not enough memory for an index.
#[derive(Debug, thiserror::Error)]
#[error(
    "no memory for the index of a working set of {working_set}: {slots} pointers of 8 bytes (larger \
     --block-sizes or a smaller --working-set need fewer)"
)]
pub struct NoMemory {
    working_set: Sectors,
    slots: u64,
}

/// A run of sectors in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it is.
    pub pointer: SetPointer,
    /// First sector on that cache.
    pub sector: Sectors,
    /// How many sectors.
    pub sectors: Sectors,
}

/// The index.
#[derive(Debug)]
pub struct KeyIndex {
    slots: Vec<AtomicU64>,
    granule: Sectors,
    geometry: Geometry,
}

impl KeyIndex {
    /// An empty index for `working_set`, in which everything is written in multiples of `granule`.
    pub fn new(
        working_set: Sectors,
        granule: Sectors,
        geometry: Geometry,
    ) -> Result<Self, NoMemory> {
        let (mut slots, len) = Self::reserve(working_set, granule)?;
        slots.resize_with(len, AtomicU64::default);
        Ok(Self { slots, granule, geometry })
    }

    /// Whether there is memory for one.
    pub fn check(working_set: Sectors, granule: Sectors) -> Result<(), NoMemory> {
        Self::reserve(working_set, granule).map(drop)
    }

    /// Memory for the slots, and how many there are to be.
    fn reserve(
        working_set: Sectors,
        granule: Sectors,
    ) -> Result<(Vec<AtomicU64>, usize), NoMemory> {
        let count = working_set.0.div_ceil(granule.0.max(1));
        let no_memory = || NoMemory { working_set, slots: count };
        let len = usize::try_from(count).map_err(|_| no_memory())?;
        let mut slots = Vec::new();
        slots.try_reserve_exact(len).map_err(|_| no_memory())?;
        Ok((slots, len))
    }

    fn slots(&self, offset: Sectors, size: Sectors) -> &[AtomicU64] {
        let granule = self.granule.0.max(1);
        let first = usize::try_from(offset.0 / granule).unwrap_or(usize::MAX);
        let count = usize::try_from(size.0.div_ceil(granule)).unwrap_or(usize::MAX);
        let rest = self.slots.get(first..).unwrap_or_default();
        rest.get(..count).unwrap_or(rest)
    }

    /// Says that `extent` holds what is at `offset` of the volume.
    pub fn insert(&self, offset: Sectors, extent: &Extent) {
        let Extent { pointer, sector, sectors } = *extent;
        let first = Ptr::new(pointer.bucket_gen, sector, pointer.device);
        let slots = self.slots(offset, sectors);
        for (slot, advance) in slots.iter().zip((0u64..).map(|at| at * self.granule.0)) {
            slot.store(first.advanced(advance).0, Ordering::Release);
        }
    }

    /// Where `size` sectors at `offset` are, in pieces; `None` unless all of them are in the cache.
    pub fn lookup(
        &self,
        set: &SetAllocator,
        offset: Sectors,
        size: Sectors,
    ) -> Option<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        for slot in self.slots(offset, size) {
            let ptr = Ptr(slot.load(Ordering::Acquire));
            if ptr.0 == 0 {
                return None;
            }
            let pointer = self.pointer(ptr);
            if set.is_stale(&pointer) {
                return None;
            }
            match extents.last_mut() {
                Some(last)
                    if last.pointer == pointer && last.sector + last.sectors == ptr.offset() =>
                {
                    last.sectors += self.granule;
                }
                _ => {
                    let (sector, sectors) = (ptr.offset(), self.granule);
                    extents.push(Extent { pointer, sector, sectors });
                }
            }
        }
        Some(extents)
    }

    fn pointer(&self, ptr: Ptr) -> SetPointer {
        SetPointer {
            device: ptr.dev(),
            bucket: ptr.bucket(&self.geometry),
            bucket_gen: ptr.ptr_gen(),
        }
    }

    /// Marks the bucket of every key, and drops the keys that have become stale, as GC does.
    pub fn mark(&self, set: &SetAllocator) -> Result<(), AllocError> {
        let mut pending: Option<(SetPointer, u64)> = None;
        let flush = |of: Option<(SetPointer, u64)>| -> Result<(), AllocError> {
            let Some((pointer, sectors)) = of else { return Ok(()) };
            let sectors = u16::try_from(sectors).unwrap_or(u16::MAX);
            let table = set.cache(pointer.device)?.core().table();
            table.mark_key(pointer.bucket, pointer.bucket_gen, Mark::Reclaimable, sectors)?;
            Ok(())
        };
        for slot in &self.slots {
            let word = slot.load(Ordering::Acquire);
            if word == 0 {
                continue;
            }
            let pointer = self.pointer(Ptr(word));
            if set.is_stale(&pointer) {
                // Unless it was written again meanwhile.
                let _ = slot.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
                continue;
            }
            match &mut pending {
                Some((last, sectors)) if *last == pointer => *sectors += self.granule.0,
                _ => flush(pending.replace((pointer, self.granule.0)))?,
            }
        }
        flush(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_core::allocator::{Config, PushStep, Reserve, ReuseReason};
    use bcache_core::units::BucketIndex;

    #[test]
    fn what_is_inserted_is_found_until_its_bucket_goes() {
        let geometry = Geometry::new(1024, 1, Sectors(64), Sectors(8)).unwrap();
        let set = SetAllocator::new(&[Config::new(geometry)]).unwrap();
        set.gc_finish(&[]).unwrap();
        let cache = &set.caches()[0];
        cache.refiller().unwrap().initial_fill();
        let index = KeyIndex::new(Sectors(1 << 12), Sectors(8), geometry).unwrap();
        let two = set.bucket_alloc_set(Reserve::Btree, 1, false).unwrap();
        let one = set.bucket_alloc_set(Reserve::Btree, 1, false).unwrap();
        let extent = |pointer: SetPointer, at: u64, sectors: u64| Extent {
            pointer,
            sector: geometry.bucket_to_sector(pointer.bucket) + Sectors(at),
            sectors: Sectors(sectors),
        };
        index.insert(Sectors(80), &extent(one[0], 8, 24));
        index.insert(Sectors(104), &extent(two[0], 0, 8));
        let found = index.lookup(&set, Sectors(88), Sectors(24)).unwrap();
        assert_eq!(found, [extent(one[0], 16, 16), extent(two[0], 0, 8)]);
        assert_eq!(index.lookup(&set, Sectors(72), Sectors(16)), None);

        // A GC finds the sectors of each, and forgets what is stale.
        for pointer in [one[0], two[0]] {
            cache.core().table().unpin(pointer.bucket).unwrap();
        }
        set.gc_start();
        index.mark(&set).unwrap();
        set.gc_finish(&[]).unwrap();
        let used = |bucket: BucketIndex| cache.core().table().bucket(bucket).unwrap().sectors_used;
        assert_eq!([used(one[0].bucket), used(two[0].bucket)], [24, 8]);
        let state = cache.core();
        state.bucket_free(one[0].bucket).unwrap();
        let refiller = cache.refiller().unwrap();
        refiller.invalidate().unwrap();
        while !set.is_stale(&one[0]) {
            refiller.make_ready(ReuseReason::NotSynced);
            while let PushStep::Pushed(..) = refiller.push_ready() {}
            while state.bucket_alloc(Reserve::None).unwrap().is_some() {}
            refiller.invalidate().unwrap();
        }
        assert_eq!(index.lookup(&set, Sectors(80), Sectors(8)), None);
        index.mark(&set).unwrap();
        assert_eq!(index.slots(Sectors(80), Sectors(8))[0].load(Ordering::Relaxed), 0);
    }
}
