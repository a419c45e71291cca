//! The allocator thread, garbage collection and what metadata takes: the cache's side of the model.

use crate::allocator::{AllocError, Mark};
use crate::units::{BucketIndex, GC_SECTORS_USED_MAX, Geometry};

use super::engine::{Engine, Refill, Space};
use super::index::{Extent, ExtentIndex};
use super::stats::Stats;

/// Bytes of a key of one pointer.
const KEY_BYTES: u64 = 24;

/// GCs are due after each such part of the cache has been written.
const GC_SHARE: i64 = 16;

/// Without progress in so many GCs one after the other, the thread is stuck until something changes.
const GCS_IN_VAIN: u32 = 2;

/// One cache with its index.
pub(super) struct Cache<E> {
    pub(super) engine: E,
    pub(super) index: ExtentIndex,
    pub(super) stats: Stats,
    geometry: Geometry,
    /// Journal and uuids.
    fixed_metadata: Vec<BucketIndex>,
    btree_nodes: Vec<BucketIndex>,
    keys_per_node: u64,
    sectors_to_gc: i64,
    /// The time of the request being made.
    now_ns: u64,
    /// How long a chain takes.
    chain_ns: u64,
    /// When the chain being written is durable.
    chain_done_ns: Option<u64>,
    /// `CACHE_SYNC`: passes end with a chain. Not so during the first registration.
    synced: bool,
    /// Live sectors of each bucket during a GC, twice, and one more where some are dirty.
    live: Vec<u32>,
}

impl<E: Engine> Cache<E> {
    /// A cache as the kernel has it after the first registration, with one backing device attached.
    ///
    /// The thread fills the reserves without a chain until the root is there (`run_cache_set`).
    pub(super) fn new(engine: E, geometry: Geometry, chain_ns: u64) -> Result<Self, AllocError> {
        let first = geometry.first_bucket().0;
        let journal = u64::from(geometry.njournal_buckets_default());
        let mut cache = Self {
            engine,
            index: ExtentIndex::default(),
            stats: Stats::default(),
            geometry,
            fixed_metadata: (first..first + journal).map(BucketIndex).collect(),
            btree_nodes: Vec::new(),
            keys_per_node: (geometry.btree_node_size().bytes() / KEY_BYTES * 2 / 3).max(1),
            sectors_to_gc: 0,
            now_ns: 0,
            chain_ns,
            chain_done_ns: None,
            synced: false,
            live: Vec::new(),
        };
        cache.set_sectors_to_gc();
        cache.engine.gc_finish(&cache.fixed_metadata)?;
        cache.engine.initial_fill();
        if cache.begin_chain()? {
            cache.end_chain()?;
        }
        cache.run_thread()?;
        // Its bucket is unused once the attachment has written the uuids again.
        cache.engine.alloc_metadata()?;
        cache.run_thread()?;
        cache.grow_btree()?;
        cache.synced = true;
        let uuids = cache.engine.alloc_metadata()?;
        cache.fixed_metadata.extend(uuids);
        cache.run_thread()?;
        cache.wait_for_chain()?;
        Ok(cache)
    }

    pub(super) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn set_sectors_to_gc(&mut self) {
        self.sectors_to_gc = i64::try_from(self.geometry.size().0).unwrap_or(i64::MAX) / GC_SHARE;
    }

    /// Counts sectors about to be put into the cache; collects when that is due.
    pub(super) fn before_insertion(&mut self, sectors: u32) -> Result<(), AllocError> {
        self.sectors_to_gc -= i64::from(sectors);
        if self.sectors_to_gc < 0 {
            self.collect()?;
        }
        Ok(())
    }

    /// Space for a write. A bucket that was taken for it wakes the thread, which moves on what is in
    /// `free_inc`; a pass and its chain take longer than a request can wait for.
    pub(super) fn alloc_sectors(
        &mut self,
        inode: u16,
        sector: u64,
        sectors: u32,
        write_point: u32,
    ) -> Result<Option<Space>, AllocError> {
        let space = self.engine.alloc_sectors(inode, sector, sectors, write_point)?;
        if space.is_none_or(|space| space.offset == 0) {
            self.stats.buckets_allocated += u64::from(space.is_some());
            self.run_thread()?;
        }
        Ok(space)
    }

    /// The time has come to `now_ns`: a chain may be durable by now.
    pub(super) fn advance(&mut self, now_ns: u64) -> Result<(), AllocError> {
        while let Some(done_ns) = self.chain_done_ns.filter(|done_ns| *done_ns <= now_ns) {
            self.now_ns = self.now_ns.max(done_ns);
            self.end_chain()?;
            self.run_thread()?;
        }
        self.now_ns = self.now_ns.max(now_ns);
        Ok(())
    }

    /// Somebody sleeps until the thread has made buckets ready.
    pub(super) fn wait_for_chain(&mut self) -> Result<(), AllocError> {
        self.advance(self.chain_done_ns.unwrap_or(self.now_ns))
    }

    /// The allocator thread until it has to wait: for somebody to take a bucket, or for a chain.
    pub(super) fn run_thread(&mut self) -> Result<(), AllocError> {
        while self.chain_done_ns.is_none() {
            match self.engine.hand_out() {
                Refill::Pushed => continue,
                Refill::Full => return Ok(()),
                Refill::Empty => {}
            }
            if !self.fill_free_inc()? {
                return Ok(());
            }
            if !self.synced {
                self.engine.make_ready_unsynced()?;
            } else if self.begin_chain()? {
                if self.chain_ns == 0 {
                    self.end_chain()?;
                } else {
                    self.chain_done_ns = Some(self.now_ns.saturating_add(self.chain_ns));
                }
            }
        }
        Ok(())
    }

    /// Passes until `free_inc` is full, and GCs where they find too little; whether there is something
    /// in it.
    fn fill_free_inc(&mut self) -> Result<bool, AllocError> {
        let (mut filled, mut in_vain) = (0, 0);
        while filled < self.engine.free_inc_capacity() {
            if self.engine.needs_gc() {
                in_vain += 1;
                if in_vain > GCS_IN_VAIN {
                    break;
                }
                self.stats.gcs_for_allocator += 1;
                self.collect()?;
            }
            let pass = self.engine.invalidate();
            if pass.invalidated > 0 {
                in_vain = 0;
            }
            filled += pass.invalidated;
            self.stats.invalidations += pass.invalidated;
            self.stats.invalidations_of_data += pass.held_data;
            self.stats.gc_gen_max = self.stats.gc_gen_max.max(pass.gc_gen_max);
        }
        Ok(filled > 0)
    }

    /// Takes the buckets of a chain of prio sets; false where there are too few for one.
    fn begin_chain(&mut self) -> Result<bool, AllocError> {
        let begun = self.engine.prio_write_begin()?;
        if begun {
            self.stats.prio_writes += 1;
            self.stats.prio_sectors += self.engine.prio_buckets() * self.geometry.bucket_size().0;
        }
        Ok(begun)
    }

    /// The chain is durable.
    fn end_chain(&mut self) -> Result<(), AllocError> {
        self.chain_done_ns = None;
        self.engine.prio_write_end()
    }

    /// Garbage collection: drops stale extents, and marks the buckets of the others.
    pub(super) fn collect(&mut self) -> Result<(), AllocError> {
        self.set_sectors_to_gc();
        let Self { engine, index, live, .. } = self;
        engine.gc_start();
        let buckets = usize::try_from(self.geometry.nbuckets()).unwrap_or(usize::MAX);
        live.resize(buckets, 0);
        let mut live_sectors = 0;
        let mut result = Ok(());
        index.retain(|extent| {
            if is_stale(engine, extent) {
                // It lowers last_gc all the same.
                let marked = engine.mark_key(extent.bucket(), extent.bucket_gen(), Mark::None, 0);
                if marked.is_err() && result.is_ok() {
                    result = marked;
                }
                return false;
            }
            let at = usize::try_from(extent.bucket().0).unwrap_or(usize::MAX);
            if let Some(live) = live.get_mut(at) {
                *live = (*live + 2 * u32::from(extent.sectors())) | u32::from(extent.dirty());
            }
            live_sectors += u64::from(extent.sectors());
            true
        });
        result?;
        for (bucket, live) in (0..).map(BucketIndex).zip(live.iter_mut()) {
            let found = std::mem::take(live);
            let Some(bucket_gen) = (found != 0).then(|| engine.bucket_gen(bucket)).flatten() else {
                continue;
            };
            let mark = if found & 1 == 0 { Mark::Reclaimable } else { Mark::Dirty };
            let sectors = u16::try_from(found / 2).unwrap_or(u16::MAX).min(GC_SECTORS_USED_MAX);
            engine.mark_key(bucket, bucket_gen, mark, sectors)?;
        }
        self.stats.gcs += 1;
        self.stats.gc_live_sectors += live_sectors;
        self.stats.gc_cache_sectors += self.geometry.size().0;
        self.shrink_btree()?;
        let metadata: Vec<_> =
            self.fixed_metadata.iter().chain(&self.btree_nodes).copied().collect();
        self.engine.gc_finish(&metadata)
    }

    fn nodes_wanted(&self) -> usize {
        let leaves = self.index.len().div_ceil(self.keys_per_node).max(1);
        let inner = if leaves == 1 { 0 } else { leaves.div_ceil(self.keys_per_node) };
        usize::try_from(leaves + inner).unwrap_or(usize::MAX)
    }

    /// The btree takes as many buckets as the extents need.
    pub(super) fn grow_btree(&mut self) -> Result<(), AllocError> {
        self.stats.extents_max = self.stats.extents_max.max(self.index.len());
        while self.btree_nodes.len() < self.nodes_wanted() {
            let mut node = self.engine.alloc_metadata()?;
            if node.is_none() {
                self.wait_for_chain()?;
                node = self.engine.alloc_metadata()?;
            }
            let Some(node) = node else { break };
            self.btree_nodes.push(node);
            self.run_thread()?;
        }
        self.stats.btree_nodes = self.btree_nodes.len() as u64;
        Ok(())
    }

    /// GC coalesces sparse nodes.
    fn shrink_btree(&mut self) -> Result<(), AllocError> {
        let wanted = self.nodes_wanted();
        let keep = wanted + wanted / 2;
        while self.btree_nodes.len() > keep.max(1) {
            let Some(node) = self.btree_nodes.pop() else { break };
            self.engine.free(node)?;
        }
        Ok(())
    }
}

/// Whether the bucket of an extent has been used again.
pub(super) fn is_stale<E: Engine>(engine: &E, extent: &Extent) -> bool {
    engine.bucket_gen(extent.bucket()) != Some(extent.bucket_gen())
}
