//! One cache's allocator, without I/O, clock or waiting: the same calls give the same results.
//!
//! Driven from one thread it does step by step what the kernel does, which tests hold it to against
//! a plain transcription. It may also be driven from many: its methods take `&self`, and
//!
//! - `free_inc` and `reserves` are locked for a push or a pop, never longer than a bounded batch of
//!   them;
//! - `refill` (what fills `free_inc`) is locked by whoever sweeps or refills: the allocator thread,
//!   rescaling, the two ends of a GC. No allocation, hit, pin, mark or release takes it.
//!
//! `refill` is taken before `free_inc`, that before `reserves`, and all before a stripe of the table.
//!
//! What only the allocator thread may do is in [`Refiller`], of which there is one at a time.

mod check;
mod config;
mod fill;
mod gc;
mod kept;
mod pass;
mod prio_write;
mod push;
mod refiller;

use crate::units::{BucketIndex, Gen, Sectors};

use super::lifecycle::{FreeInc, Ready};
use super::pointer::SetPointer;
use super::prios::PrioChains;
use super::replacement::PolicyState;
use super::replacement::lru::Scratch;
use super::rescale::SetCounters;
use super::reserves::{Reserve, Reserves, Sizes};
use super::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, lock};
use super::table::{BucketTable, TableError};
use super::trace::{TraceEvent, TraceHook, Tracer};

pub use check::Inconsistency;
pub use config::{Config, NewAllocatorError};
pub use kept::Kept;
pub use pass::{CannotInvalidate, Pass};
pub use push::PushStep;
pub use refiller::Refiller;

/// What whoever refills the reserves works on.
#[derive(Debug)]
pub(crate) struct RefillState {
    pub(crate) chains: PrioChains,
    /// What keys on the device say.
    kept: Vec<Kept>,
    policy: PolicyState,
    scratch: Scratch,
    /// What a pass has invalidated and not put into `free_inc` yet.
    victims: Vec<BucketIndex>,
}

/// One cache's allocator, without waiting: see [`Allocator`](super::Allocator).
pub struct AllocatorCore {
    config: Config,
    sizes: Sizes,
    bucket_sectors: u16,
    set: Arc<SetCounters>,
    /// Number in its set.
    device: usize,
    table: BucketTable,
    pub(crate) reserves: Mutex<Reserves>,
    free_inc: Mutex<FreeInc>,
    /// Nothing in `free_inc` is ready. Changes under its lock.
    nothing_ready: AtomicBool,
    refill: Mutex<RefillState>,
    /// Somebody has the right to refill.
    refiller_taken: AtomicBool,
    invalidate_needs_gc: AtomicBool,
    hook: TraceHook,
}

/// Buckets that are moved under one lock.
const BATCH: usize = 64;

impl AllocatorCore {
    /// The allocator of a set with this one cache.
    pub(crate) fn new(config: Config) -> Result<Self, NewAllocatorError> {
        let geometry = config.geometry;
        let set = SetCounters::new(geometry.nbuckets(), geometry.bucket_size().0, 1);
        Self::in_set(config, Arc::new(set), 0)
    }

    /// The allocator of one cache of a set.
    pub(crate) fn in_set(
        config: Config,
        set: Arc<SetCounters>,
        device: usize,
    ) -> Result<Self, NewAllocatorError> {
        let nbuckets = config.geometry.nbuckets();
        let sizes = Sizes::new(&config.geometry, config.btree_reserve)
            .ok_or(NewAllocatorError::TooFewBuckets { nbuckets })?;
        Self::with_sizes(config, set, device, sizes)
    }

    /// The same with queues of any size: a model checker's caches are smaller than any kernel's.
    pub(crate) fn with_sizes(
        config: Config,
        set: Arc<SetCounters>,
        device: usize,
        sizes: Sizes,
    ) -> Result<Self, NewAllocatorError> {
        let geometry = config.geometry;
        // GC_SECTORS_USED keeps 13 bits of it, as the kernel's field does (on-disk-format.md §10.7).
        let bucket_sectors = u16::try_from(geometry.bucket_size().0 & 0x1fff).unwrap_or(0);
        Ok(Self {
            config,
            sizes,
            bucket_sectors,
            set,
            device,
            table: BucketTable::new(geometry.nbuckets(), geometry.first_bucket().0)?,
            reserves: Mutex::new(Reserves::new(&sizes)),
            free_inc: Mutex::new(FreeInc::new(sizes.free_inc)),
            nothing_ready: AtomicBool::new(true),
            refill: Mutex::new(RefillState {
                chains: PrioChains::default(),
                kept: Vec::new(),
                policy: PolicyState::new(config.seed.unwrap_or_else(rand::random)),
                scratch: Scratch::default(),
                victims: Vec::new(),
            }),
            refiller_taken: AtomicBool::new(false),
            invalidate_needs_gc: AtomicBool::new(false),
            hook: TraceHook::new(device),
        })
    }

    /// How it was made.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Capacities of its queues.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Its buckets: hits, pins and marks go there directly.
    pub fn table(&self) -> &BucketTable {
        &self.table
    }

    /// The counters of its set.
    pub fn set(&self) -> &SetCounters {
        &self.set
    }

    /// Its number in its set.
    pub(crate) fn device(&self) -> usize {
        self.device
    }

    /// Has `tracer` told of allocations and invalidations from now on; false if somebody listens
    /// already.
    pub fn set_tracer(&self, tracer: Box<dyn Tracer>) -> bool {
        self.hook.set(tracer)
    }

    /// Whether passes are useless before the next GC.
    pub fn invalidate_needs_gc(&self) -> bool {
        self.invalidate_needs_gc.load(Ordering::SeqCst)
    }

    pub(crate) fn refill(&self) -> MutexGuard<'_, RefillState> {
        lock(&self.refill)
    }

    /// Buckets in one reserve: what `btree_check_reserve` asks.
    pub fn reserve_used(&self, reserve: Reserve) -> usize {
        lock(&self.reserves).fifo(reserve).used()
    }

    /// The buckets in one reserve, oldest first.
    pub fn reserve_contents(&self, reserve: Reserve) -> Vec<BucketIndex> {
        lock(&self.reserves).fifo(reserve).iter().collect()
    }

    /// The buckets in `free_inc`, oldest first.
    pub fn free_inc_contents(&self) -> Vec<BucketIndex> {
        lock(&self.free_inc).fifo().iter().collect()
    }

    /// The next bucket that [`push_ready`](Refiller::push_ready) would push.
    pub fn next_ready(&self) -> Option<Ready> {
        lock(&self.free_inc).ready()
    }

    /// FIFO's place.
    pub fn fifo_cursor(&self) -> u64 {
        self.refill().policy.cursor.0
    }

    /// The chains of prio sets, as they are.
    pub fn prio_chains(&self) -> PrioChains {
        self.refill().chains.clone()
    }

    /// Allocates a bucket without waiting (on-disk-format.md §9.7): `None` when neither None nor
    /// `reserve` has one. The bucket carries one pin, which is the caller's.
    pub fn bucket_alloc(&self, reserve: Reserve) -> Result<Option<BucketIndex>, TableError> {
        let popped = lock(&self.reserves).pop(reserve);
        if popped.is_none() {
            self.trace_failed(reserve);
        }
        popped.map(|bucket| self.take(bucket, reserve)).transpose()
    }

    /// Makes a bucket that was popped for `reserve` ready for its owner.
    pub(crate) fn take(
        &self,
        bucket: BucketIndex,
        reserve: Reserve,
    ) -> Result<BucketIndex, TableError> {
        if cfg!(debug_assertions) && self.config.expensive_debug_checks {
            let place = self.list_of(bucket);
            debug_assert_eq!(place, None, "bucket {bucket} was handed out twice");
        }
        self.table.allocate(bucket, self.bucket_sectors, reserve.is_metadata())?;
        self.set.bucket_allocated();
        self.hook.tell(|| TraceEvent::Allocated { reserve, bucket });
        Ok(bucket)
    }

    /// Tells whoever listens that no bucket could be had.
    pub(crate) fn trace_failed(&self, reserve: Reserve) {
        self.hook.tell(|| TraceEvent::AllocFailed {
            reserve,
            free: self.reserve_used(reserve),
            free_inc: lock(&self.free_inc).fifo().used(),
            prio_blocked: self.set.prio_blocked(),
        });
    }

    /// A pointer to a bucket of this cache, as of now.
    pub(crate) fn pointer_to(&self, bucket: BucketIndex) -> Result<SetPointer, TableError> {
        let device = u16::try_from(self.device).unwrap_or(u16::MAX);
        Ok(SetPointer { device, bucket, bucket_gen: self.table.bucket_gen(bucket)? })
    }

    /// Raises the gen of an allocated bucket (`bch_inc_gen`), so that every pointer into it is stale;
    /// the new gen. The caller owns the bucket: it holds a pin, or the bucket is its btree node.
    ///
    /// What the kernel does to a btree node before it is freed (`make_btree_freeing_key`). On the
    /// device the node's parent still carries the old gen: prios are to be blocked before this
    /// ([`block_prios`](SetCounters::block_prios)) and until the parent is written.
    pub fn inc_gen(&self, bucket: BucketIndex) -> Result<Gen, TableError> {
        let (bucket_gen, gc_gen) = self.table.inc_gen(bucket)?;
        self.set.raise_need_gc(gc_gen);
        Ok(bucket_gen)
    }

    /// Frees an allocated bucket: mark and sectors are forgotten (on-disk-format.md §9.7). The pin
    /// stays.
    pub fn bucket_free(&self, bucket: BucketIndex) -> Result<(), TableError> {
        self.table.free(bucket)?;
        self.set.bucket_freed();
        Ok(())
    }

    /// Size of a bucket.
    pub fn bucket_size(&self) -> Sectors {
        self.config.geometry.bucket_size()
    }

    /// Size of a block.
    pub fn block_size(&self) -> Sectors {
        self.config.geometry.block_size()
    }
}
