//! The allocator as the model drives it.
//!
//! The model is the same for bcache-core's allocator and for the plain transcription that tests hold
//! it against, so that both can be given the same requests and compared step by step.

use std::sync::Arc;

use crate::allocator::state::HandOut;
use crate::allocator::table::TableError;
use crate::allocator::{
    AllocError, BtreeReserve, Config as AllocatorConfig, Mark, Policy, Reserve, Safe,
    SectorAllocator, SectorRequest, State,
};
use crate::units::{BucketIndex, Gen, Geometry};

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

    /// Writes a chain of prio sets; false when there were too few buckets for one.
    fn prio_write(&mut self) -> Result<bool, AllocError>;

    /// Buckets of a chain of prio sets.
    fn prio_buckets(&self) -> u64;

    /// The greatest distance of a gen from its `last_gc`, and how many are at 64 and more.
    fn gc_gens(&self) -> (u8, u64);
}

/// bcache-core's allocator.
pub struct Allocator {
    state: Arc<State>,
    sectors: SectorAllocator<Arc<State>>,
    bucket_sectors: u64,
}

impl Allocator {
    /// An allocator for an empty cache.
    ///
    /// # Errors
    /// When there is no memory for its table, or the device has too few buckets.
    pub fn new(geometry: Geometry, policy: Policy, seed: u64) -> Result<Self, AllocError> {
        let journal = BtreeReserve::JournalBuckets(Some(geometry.njournal_buckets_default()));
        let mut config = AllocatorConfig::new(geometry);
        config.policy = policy;
        config.seed = seed;
        config.btree_reserve = journal;
        config.reclaim_in_gc = true;
        let state = State::new(config).map_err(|error| match error {
            crate::allocator::state::StateError::Table(error) => AllocError::Table(error),
            crate::allocator::state::StateError::TooFewBuckets { nbuckets } => {
                AllocError::Table(TableError::TooManyBuckets { nbuckets })
            }
        })?;
        let state = Arc::new(state);
        Ok(Self {
            sectors: SectorAllocator::new(Arc::clone(&state), 1, geometry.nr_uuids()),
            state,
            bucket_sectors: geometry.bucket_size().0,
        })
    }

    /// The allocator itself, to look at.
    pub fn state(&self) -> &State {
        &self.state
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
        let Some(bucket) = self.state.bucket_alloc(Reserve::Btree)? else { return Ok(None) };
        self.state.table().unpin(bucket)?;
        Ok(Some(bucket))
    }

    fn free(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.state.bucket_free(bucket)?)
    }

    fn unpin(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.state.table().unpin(bucket)?)
    }

    fn mark_dirty(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.state.table().set_mark(bucket, Mark::Dirty)?)
    }

    fn hit(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        Ok(self.state.table().hit(bucket)?)
    }

    fn bucket_gen(&self, bucket: BucketIndex) -> Option<Gen> {
        self.state.table().bucket_gen(bucket).ok()
    }

    fn rescale(&mut self, sectors: u32) -> bool {
        self.state.rescale_priorities(sectors)
    }

    fn in_use_percent(&self) -> u8 {
        self.state.set().in_use_percent()
    }

    fn in_use_buckets(&self) -> u64 {
        let set = self.state.set();
        set.nbuckets().saturating_sub(set.avail_nbuckets())
    }

    fn gc_start(&mut self) {
        self.state.gc_start();
    }

    fn mark_key(
        &mut self,
        bucket: BucketIndex,
        ptr_gen: Gen,
        mark: Mark,
        sectors: u16,
    ) -> Result<(), AllocError> {
        self.state.table().mark_key(bucket, ptr_gen, mark, sectors)?;
        Ok(())
    }

    fn gc_finish(&mut self, metadata: &[BucketIndex]) -> Result<(), AllocError> {
        let marks: Vec<_> = metadata.iter().map(|bucket| (*bucket, Mark::Metadata)).collect();
        Ok(self.state.gc_finish(&marks)?)
    }

    fn initial_fill(&mut self) {
        self.state.initial_fill();
    }

    fn free_inc_capacity(&self) -> u64 {
        self.state.sizes().free_inc as u64
    }

    fn hand_out(&mut self) -> Refill {
        match self.state.hand_out() {
            HandOut::Pushed(..) => Refill::Pushed,
            HandOut::Full => Refill::Full,
            HandOut::NothingReady => Refill::Empty,
        }
    }

    fn needs_gc(&self) -> bool {
        self.state.may_invalidate().is_err()
    }

    fn invalidate(&mut self) -> PassFound {
        // That a pass cannot run was asked before.
        self.state.invalidate_buckets().map_or_else(
            |_| PassFound::default(),
            |pass| PassFound {
                invalidated: pass.invalidated as u64,
                held_data: pass.held_data as u64,
                gc_gen_max: pass.gc_gen_max,
            },
        )
    }

    fn prio_write(&mut self) -> Result<bool, AllocError> {
        let state = &self.state;
        let whole = state.prio_write_begin().is_ok();
        if whole {
            while let Ok(Some(_)) = state.prio_write_next() {}
            state.prio_write_commit()?;
        }
        // Where no chain could be written, the kernel goes on all the same, and asks for a GC.
        state.free_inc_safe(if whole { Safe::GenDurable } else { Safe::NotSynced });
        Ok(whole)
    }

    fn prio_buckets(&self) -> u64 {
        self.state.sizes().prio as u64
    }

    fn gc_gens(&self) -> (u8, u64) {
        let table = self.state.table();
        let buckets = (table.first_bucket().0..table.nbuckets()).map(BucketIndex);
        let distances = buckets
            .filter_map(|bucket| table.bucket(bucket).ok())
            .map(|bucket| bucket.bucket_gen.distance_from(bucket.last_gc));
        distances.fold((0, 0), |(max, many), it| (max.max(it), many + u64::from(it >= 64)))
    }
}
