//! The allocator as the model drives it.
//!
//! The model is the same for bcache-core's allocator and for the plain transcription that tests hold
//! it against, so that both can be given the same requests and compared step by step.

use std::sync::Arc;

use crate::allocator::{
    AllocError, Allocator as CacheAllocator, AllocatorCore, BtreeReserve, BucketSource,
    Config as AllocatorConfig, Mark, NewAllocatorError, Policy, PushStep, Reserve, ReuseReason,
    SectorAllocator, SectorRequest, SetPointer, TableError,
};
use crate::units::{BucketIndex, Gen, Geometry};

/// From here on the distance of a gen from `last_gc` is near its limit.
const GENS_HIGH: u8 = 64;

/// Space for a write; its bucket carries a pin for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bucket.
    pub bucket: BucketIndex,
    /// Its gen.
    pub bucket_gen: Gen,
    /// First sector in the bucket.
    pub offset: u32,
    /// Sectors given: at least 1.
    pub sectors: u32,
}

/// What a pass of the allocator thread found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassFound {
    /// Buckets invalidated.
    pub invalidated: u64,
    /// Of those, the ones that held data.
    pub held_data: u64,
    /// Greatest distance of a new gen from its `last_gc`.
    pub gc_gen_max: u8,
}

/// What became of the oldest bucket of `free_inc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refill {
    /// It is in a reserve.
    Pushed,
    /// The reserves are full.
    Full,
    /// `free_inc` is empty.
    Empty,
}

/// One cache's allocator: buckets, reserves, open buckets. Nothing here waits, or runs by itself.
pub trait Engine {
    /// Space for a write; `None` when no bucket is ready.
    fn alloc_sectors(
        &mut self,
        inode: u16,
        sector: u64,
        sectors: u32,
        write_point: u32,
    ) -> Result<Option<Space>, AllocError>;

    /// A bucket for metadata, without a pin; `None` when there is none.
    fn alloc_metadata(&mut self) -> Result<Option<BucketIndex>, AllocError>;

    /// Frees a bucket of metadata.
    fn free(&mut self, bucket: BucketIndex) -> Result<(), AllocError>;

    /// Drops the pin that came with space, once the index leads there.
    fn unpin(&mut self, bucket: BucketIndex) -> Result<(), AllocError>;

    /// Marks the bucket of dirty data. The caller holds its pin.
    fn mark_dirty(&mut self, bucket: BucketIndex) -> Result<(), AllocError>;

    /// A cache hit in a bucket.
    fn hit(&mut self, bucket: BucketIndex) -> Result<(), AllocError>;

    /// The gen of a bucket.
    fn bucket_gen(&self, bucket: BucketIndex) -> Option<Gen>;

    /// Counts I/O; true when prios aged.
    fn rescale(&mut self, sectors: u32) -> bool;

    /// Buckets that are not available, in percent.
    fn in_use_percent(&self) -> u8;

    /// Buckets that are not available.
    fn in_use_buckets(&self) -> u64;

    /// Begins a GC.
    fn gc_start(&mut self);

    /// Marks a bucket for a key.
    fn mark_key(
        &mut self,
        bucket: BucketIndex,
        ptr_gen: Gen,
        mark: Mark,
        sectors: u16,
    ) -> Result<(), AllocError>;

    /// Ends a GC; `metadata` are the buckets of journal, uuids and btree.
    fn gc_finish(&mut self, metadata: &[BucketIndex]) -> Result<(), AllocError>;

    /// Fills the reserves of metadata with unused buckets, as registration does.
    fn initial_fill(&mut self);

    /// Buckets that `free_inc` holds at most.
    fn free_inc_capacity(&self) -> u64;

    /// Moves the oldest of `free_inc` to a reserve.
    fn hand_out(&mut self) -> Refill;

    /// Whether a pass is useless before a GC.
    fn needs_gc(&self) -> bool;

    /// One pass of the policy.
    fn invalidate(&mut self) -> PassFound;

    /// Takes the buckets of a chain of prio sets. False when there are too few for one: then what is in
    /// `free_inc` may be handed out all the same.
    fn prio_write_begin(&mut self) -> Result<bool, AllocError>;

    /// The chain is durable: what is in `free_inc` may be handed out.
    fn prio_write_end(&mut self) -> Result<(), AllocError>;

    /// What is in `free_inc` may be handed out without a chain.
    fn make_ready_unsynced(&mut self) -> Result<(), AllocError>;

    /// Buckets of a chain of prio sets.
    fn prio_buckets(&self) -> u64;

    /// The greatest distance of a gen from its `last_gc`, and how many are at 64 and more.
    fn gc_gens(&self) -> (u8, u64);
}

/// Buckets from the reserves alone, as in the kernel: nobody fetches what is ready.
struct OnlyReserves(Arc<CacheAllocator>);

impl BucketSource for OnlyReserves {
    fn alloc(&self, reserve: Reserve, _: bool) -> Result<SetPointer, AllocError> {
        let core = self.0.core();
        let bucket = core.bucket_alloc(reserve)?.ok_or(AllocError::WouldBlock { reserve })?;
        Ok(SetPointer { device: 0, bucket, bucket_gen: core.table().bucket_gen(bucket)? })
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        self.0.pin(pointer)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        self.0.unpin(pointer)
    }
}

/// bcache-core's allocator.
pub struct Allocator {
    cache: Arc<CacheAllocator>,
    sectors: SectorAllocator<OnlyReserves>,
    bucket_sectors: u64,
}

impl Allocator {
    /// An allocator for an empty cache.
    ///
    /// # Errors
    /// When there is no memory for its table, or the device has too few buckets.
    pub fn new(geometry: Geometry, policy: Policy, seed: u64) -> Result<Self, AllocError> {
        // The journal's size is not known yet when the queues of a fresh cache are made.
        Self::with_btree_reserve(geometry, policy, seed, BtreeReserve::JournalBuckets(None))
    }

    /// The same with a Btree reserve of another size, in which kernels differ.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_btree_reserve(
        geometry: Geometry,
        policy: Policy,
        seed: u64,
        btree_reserve: BtreeReserve,
    ) -> Result<Self, AllocError> {
        let mut config = AllocatorConfig::new(geometry);
        config.policy = policy;
        config.seed = Some(seed);
        config.btree_reserve = btree_reserve;
        config.reclaim_in_gc = true;
        config.kernel_heap = true;
        let cache = CacheAllocator::new(config).map_err(|error| match error {
            NewAllocatorError::Table(error) => AllocError::Table(error),
            NewAllocatorError::TooFewBuckets { nbuckets } => {
                AllocError::Table(TableError::TooManyBuckets { nbuckets })
            }
        })?;
        Ok(Self {
            sectors: SectorAllocator::new(OnlyReserves(Arc::clone(&cache)), &geometry, 1),
            cache,
            bucket_sectors: geometry.bucket_size().0,
        })
    }

    /// The allocator itself, to look at.
    pub fn core(&self) -> &AllocatorCore {
        self.cache.core()
    }
}

impl Engine for Allocator {
    fn alloc_sectors(
        &mut self,
        inode: u16,
        sector: u64,
        sectors: u32,
        write_point: u32,
    ) -> Result<Option<Space>, AllocError> {
        let request = SectorRequest {
            inode: u32::from(inode),
            offset: sector,
            sectors,
            write_point,
            moving_gc: false,
            wait: false,
        };
        match self.sectors.alloc_sectors(0, &request) {
            Ok(found) => {
                let bucket = found.pointer.bucket;
                let first = bucket.0.saturating_mul(self.bucket_sectors);
                Ok(Some(Space {
                    bucket,
                    bucket_gen: found.pointer.bucket_gen,
                    offset: u32::try_from(found.sector.0.saturating_sub(first)).unwrap_or(0),
                    sectors: found.sectors,
                }))
            }
            Err(AllocError::WouldBlock { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn alloc_metadata(&mut self) -> Result<Option<BucketIndex>, AllocError> {
        let Some(bucket) = self.cache.core().bucket_alloc(Reserve::Btree)? else { return Ok(None) };
        self.cache.core().table().unpin(bucket)?;
        Ok(Some(bucket))
    }

    fn free(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.cache.core().bucket_free(bucket)?)
    }

    fn unpin(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.cache.core().table().unpin(bucket)?)
    }

    fn mark_dirty(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.cache.core().table().set_mark(bucket, Mark::Dirty)?)
    }

    fn hit(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.cache.core().table().hit(bucket)?)
    }

    fn bucket_gen(&self, bucket: BucketIndex) -> Option<Gen> {
        self.cache.core().table().bucket_gen(bucket).ok()
    }

    fn rescale(&mut self, sectors: u32) -> bool {
        self.cache.account_io(sectors)
    }

    fn in_use_percent(&self) -> u8 {
        self.cache.core().set().in_use_percent()
    }

    fn in_use_buckets(&self) -> u64 {
        let set = self.cache.core().set();
        set.nbuckets().saturating_sub(set.avail_nbuckets())
    }

    fn gc_start(&mut self) {
        self.cache.gc_start();
    }

    fn mark_key(
        &mut self,
        bucket: BucketIndex,
        ptr_gen: Gen,
        mark: Mark,
        sectors: u16,
    ) -> Result<(), AllocError> {
        self.cache.core().table().mark_key(bucket, ptr_gen, mark, sectors)?;
        Ok(())
    }

    fn gc_finish(&mut self, metadata: &[BucketIndex]) -> Result<(), AllocError> {
        let marks: Vec<_> = metadata.iter().map(|bucket| (*bucket, Mark::Metadata)).collect();
        Ok(self.cache.gc_finish(&marks)?)
    }

    fn initial_fill(&mut self) {
        if let Ok(refiller) = self.cache.refiller() {
            refiller.initial_fill();
        }
    }

    fn free_inc_capacity(&self) -> u64 {
        self.cache.core().sizes().free_inc as u64
    }

    fn hand_out(&mut self) -> Refill {
        match self.cache.refiller().map(|refiller| refiller.push_ready()) {
            Ok(PushStep::Pushed(..)) => Refill::Pushed,
            Ok(PushStep::Full) => Refill::Full,
            Ok(PushStep::NothingReady) | Err(_) => Refill::Empty,
        }
    }

    fn needs_gc(&self) -> bool {
        self.cache.core().may_invalidate().is_err()
    }

    fn invalidate(&mut self) -> PassFound {
        // That a pass cannot run was asked before; nobody else refills.
        let pass = self.cache.refiller().ok().and_then(|refiller| refiller.invalidate().ok());
        pass.map_or_else(PassFound::default, |pass| PassFound {
            invalidated: pass.invalidated as u64,
            held_data: pass.held_data as u64,
            gc_gen_max: pass.gc_gen_max,
        })
    }

    fn prio_write_begin(&mut self) -> Result<bool, AllocError> {
        let refiller = self.cache.refiller()?;
        if refiller.prio_write_begin().is_err() {
            // The kernel goes on, and asks for a GC.
            refiller.make_ready(ReuseReason::NotSynced);
            return Ok(false);
        }
        while let Ok(Some(_)) = refiller.prio_write_next() {}
        Ok(true)
    }

    fn prio_write_end(&mut self) -> Result<(), AllocError> {
        let refiller = self.cache.refiller()?;
        refiller.prio_write_commit()?;
        refiller.make_ready(ReuseReason::GenDurable);
        Ok(())
    }

    fn make_ready_unsynced(&mut self) -> Result<(), AllocError> {
        self.cache.refiller()?.make_ready(ReuseReason::NotSynced);
        Ok(())
    }

    fn prio_buckets(&self) -> u64 {
        self.cache.core().sizes().prio as u64
    }

    fn gc_gens(&self) -> (u8, u64) {
        self.cache.core().table().gc_gens(GENS_HIGH)
    }
}
