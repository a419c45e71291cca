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

use std::num::NonZeroU16;

use crate::units::{BucketIndex, Gen, Geometry};

use super::Mark;
use super::lifecycle::{FreeInc, Lifecycle, Ready, Safe};
use super::prios::PrioChain;
use super::replacement::lru::{self, Scratch, Victim, bucket_prio};
use super::replacement::{Found, Policy, PolicyState};
use super::rescale::SetCounters;
use super::reserves::{BtreeReserve, Reserve, Reserves, Sizes};
use super::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, lock};
use super::table::{BucketTable, GcSummary, TableError};
use super::words::{Cold, Hot};

/// How one cache allocates.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Shape of the device.
    pub geometry: Geometry,
    /// Replacement policy.
    pub policy: Policy,
    /// Where RANDOM's numbers start.
    pub seed: u64,
    /// Size of the Btree reserve.
    pub btree_reserve: BtreeReserve,
    /// `CACHE_SYNC`: what is on the device outlives a crash, so gens must be durable before a bucket
    /// is used again.
    pub sync: bool,
    /// `CACHE_DISCARD`: discard buckets on their way to the reserves.
    pub discard: bool,
    /// Buckets that could be invalidated when a GC began may be while it runs (kernels since 6.10),
    /// instead of waiting for its end (2018 and 6.1).
    pub reclaim_in_gc: bool,
    /// Verify on each allocation that the bucket is in no list and no prio chain, in builds with
    /// debug assertions (`expensive_debug_checks`).
    pub expensive_debug_checks: bool,
}

impl Config {
    /// LRU on a synced device without discards, as the 2018 kernel waits for GC.
    pub const fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            policy: Policy::Lru,
            seed: 0,
            btree_reserve: BtreeReserve::Clamped,
            sync: true,
            discard: false,
            reclaim_in_gc: false,
            expensive_debug_checks: false,
        }
    }
}

/// Why a [`State`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The kernel wants 513 buckets at least, and so do the sizes of the queues.
    #[error("{nbuckets} buckets are too few: the allocator needs at least 513")]
    TooFewBuckets {
        /// Buckets of the device.
        nbuckets: u64,
    },
    /// The table cannot be made.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Why no pass can run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotInvalidate {
    /// The last pass found too little; only a GC can change that.
    #[error("no bucket can be invalidated before the next garbage collection")]
    NeedsGc,
    /// Marks are not valid: a GC runs, or none has finished yet.
    #[error("garbage collection has not finished")]
    GcRunning,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Buckets invalidated.
    pub invalidated: usize,
    /// Of those, the ones that held data.
    pub held_data: usize,
    /// Greatest distance of a new gen from its `last_gc`.
    pub gc_gen_max: u8,
    /// Whether it found enough. If it gave up, `invalidate_needs_gc` is set and GC is to be woken.
    pub found: Found,
}

/// What became of one bucket of `free_inc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOut {
    /// It is in a reserve.
    Pushed(Ready, Reserve),
    /// The reserves are full; it stays.
    Full,
    /// No bucket may be handed out.
    NothingReady,
}

/// What whoever refills the reserves works on.
#[derive(Debug)]
pub(crate) struct Refill {
    pub(crate) chain: PrioChain,
    policy: PolicyState,
    scratch: Scratch,
    /// What a pass has invalidated and not put into `free_inc` yet.
    victims: Vec<BucketIndex>,
}

/// One cache's allocator.
pub struct State {
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
    dry: AtomicBool,
    refill: Mutex<Refill>,
    invalidate_needs_gc: AtomicBool,
}

/// Buckets that are moved under one lock.
const BATCH: usize = 64;

/// What leaving `free_inc` came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HandedOver {
    /// How many buckets left it.
    pub(crate) count: usize,
    /// It is to be filled.
    pub(crate) low: bool,
}

/// Buckets of `free_inc` that are to last while it is filled: 1.6 ms at 100,000 a second.
const LEAD: usize = 160;

/// Buckets that are worth a pass and a prio write.
const WORTH_A_PASS: usize = 96;

/// Whether the last GC has found no pointer to a bucket's gen or an older one: a pointer that is older
/// than the gen lowers `last_gc`, also a stale one (FORMAT.md §6.2 step 1).
fn is_unreferenced(cold: Cold) -> bool {
    cold.gc_gen() == 0
}

/// Sweeps of one LRU pass. More than one only when other threads changed what the first named.
const SWEEPS_MAX: usize = 3;

impl State {
    /// The allocator of a set with this one cache.
    pub fn new(config: Config) -> Result<Self, StateError> {
        let geometry = config.geometry;
        let set = SetCounters::new(geometry.nbuckets(), geometry.bucket_size().0, 1);
        Self::in_set(config, Arc::new(set), 0)
    }

    /// The allocator of one cache of a set.
    pub(crate) fn in_set(
        config: Config,
        set: Arc<SetCounters>,
        device: usize,
    ) -> Result<Self, StateError> {
        let nbuckets = config.geometry.nbuckets();
        let sizes = Sizes::new(&config.geometry, config.btree_reserve)
            .ok_or(StateError::TooFewBuckets { nbuckets })?;
        Self::with_sizes(config, set, device, sizes)
    }

    /// The same with queues of any size: a model checker's caches are smaller than any kernel's.
    #[cfg(feature = "model")]
    pub fn of_model(config: Config, sizes: Sizes) -> Result<Self, StateError> {
        let geometry = config.geometry;
        let set = SetCounters::new(geometry.nbuckets(), geometry.bucket_size().0, 1);
        Self::with_sizes(config, Arc::new(set), 0, sizes)
    }

    fn with_sizes(
        config: Config,
        set: Arc<SetCounters>,
        device: usize,
        sizes: Sizes,
    ) -> Result<Self, StateError> {
        let geometry = config.geometry;
        // GC_SECTORS_USED keeps 13 bits of it, as the kernel's field does (FORMAT.md §10.7).
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
            dry: AtomicBool::new(true),
            refill: Mutex::new(Refill {
                chain: PrioChain::default(),
                policy: PolicyState::new(config.seed),
                scratch: Scratch::default(),
                victims: Vec::new(),
            }),
            invalidate_needs_gc: AtomicBool::new(false),
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

    /// Whether passes are useless before the next GC.
    pub fn invalidate_needs_gc(&self) -> bool {
        self.invalidate_needs_gc.load(Ordering::SeqCst)
    }

    pub(crate) fn refill(&self) -> MutexGuard<'_, Refill> {
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

    /// FIFO's place.
    pub fn fifo_cursor(&self) -> u64 {
        self.refill().policy.cursor.0
    }

    /// Fills Prio and Btree with unmarked buckets, ascending, as the first GC at registration does
    /// (FORMAT.md §6.6). Returns how many.
    ///
    /// All gens are those of the device then, so that a pointer that is stale now is stale after a
    /// crash too. Of a cache in use that is not so: see [`fill_unreferenced`](Self::fill_unreferenced).
    pub fn initial_fill(&self) -> usize {
        self.fill(|_| true)
    }

    /// Fills Prio and Btree while the cache is in use, with buckets that are
    /// [`Safe::Unreferenced`]. Returns how many; none while a GC runs or prios are blocked.
    ///
    /// Those that a pass has taken already go from `free_inc` to Prio: on a full cache, the buckets of a
    /// chain that failed are the first that a pass takes, and the only ones for the next chain.
    pub fn fill_unreferenced(&self) -> usize {
        self.fill(is_unreferenced) + self.fill_from_free_inc()
    }

    fn fill_from_free_inc(&self) -> usize {
        // No GC can begin or end before the lock is given up.
        let _refill = self.refill();
        if !self.table.gc_mark_valid() || self.set.prio_blocked() != 0 {
            return 0;
        }
        let mut chosen: Vec<_> = lock(&self.free_inc).waiting().collect();
        chosen.retain(|&bucket| {
            self.table.hint(bucket).is_some_and(|(_, cold)| is_unreferenced(cold))
        });
        chosen.truncate(lock(&self.reserves).fifo(Reserve::Prio).room());
        if chosen.is_empty() {
            return 0;
        }
        let taken = lock(&self.free_inc).take_waiting(&chosen);
        let mut filled = 0;
        for &bucket in &taken {
            // What was handed out meanwhile may have taken the room.
            if lock(&self.reserves).fifo_mut(Reserve::Prio).push(bucket) {
                filled += 1;
            } else {
                let pushed = lock(&self.free_inc).push(bucket);
                debug_assert!(pushed, "only passes push besides, under the lock of refill");
            }
        }
        filled
    }

    fn fill(&self, unreferenced: impl Fn(Cold) -> bool) -> usize {
        let refill = self.refill();
        // While a GC runs, a bucket without a mark may be one that it has not come to yet. None can
        // begin before the lock is given up.
        if !self.table.gc_mark_valid() {
            return 0;
        }
        // Whoever frees a btree node blocks prios before, so that whoever finds it without a mark, with
        // the stripe lock held, finds that too.
        let may_go = |hot: Hot, cold: Cold| {
            hot.mark() == Mark::None && self.set.prio_blocked() == 0 && unreferenced(cold)
        };
        let looks_right = |(hot, cold): (Hot, Cold)| !hot.excluded() && may_go(hot, cold);
        let mut filled = 0;
        for index in self.table.first_bucket().0..self.table.nbuckets() {
            let bucket = BucketIndex(index);
            // Before a lock is taken that allocations need: few buckets qualify.
            if !self.table.hint(bucket).is_some_and(looks_right) {
                continue;
            }
            // Held until the bucket is in: buckets that are handed out meanwhile need room too.
            let mut reserves = lock(&self.reserves);
            if reserves.fifo(Reserve::Prio).is_full() && reserves.fifo(Reserve::Btree).is_full() {
                break;
            }
            if let Some(invalidated) = self.table.try_invalidate(bucket, may_go) {
                self.set.raise_need_gc(invalidated.gc_gen);
                let pushed = reserves.fifo_mut(Reserve::Prio).push(bucket)
                    || reserves.fifo_mut(Reserve::Btree).push(bucket);
                debug_assert!(pushed, "there was room a moment ago");
                filled += usize::from(pushed);
            }
        }
        drop(refill);
        filled
    }

    /// Whether a pass can run now.
    pub fn may_invalidate(&self) -> Result<(), CannotInvalidate> {
        if self.invalidate_needs_gc() {
            return Err(CannotInvalidate::NeedsGc);
        }
        if !self.table.gc_mark_valid() && !self.config.reclaim_in_gc {
            return Err(CannotInvalidate::GcRunning);
        }
        Ok(())
    }

    /// One pass: fills `free_inc` by the policy (FORMAT.md §9.4).
    pub fn invalidate_buckets(&self) -> Result<Pass, CannotInvalidate> {
        self.may_invalidate()?;
        let mut refill = self.refill();
        let Refill { policy, scratch, victims, .. } = &mut *refill;
        let mut pass = Pass { invalidated: 0, held_data: 0, gc_gen_max: 0, found: Found::Enough };
        // Only passes push, so that the room can but grow meanwhile.
        let wanted = self.free_inc_room();
        victims.clear();
        pass.found = if self.config.policy == Policy::Lru {
            self.invalidate_lru(wanted, victims, scratch, &mut pass)
        } else {
            let mut take = |bucket| {
                let taken = self.invalidate_one(bucket, None, &mut pass);
                if taken {
                    victims.push(bucket);
                }
                taken
            };
            if self.config.policy == Policy::Fifo {
                policy.cursor.select(&self.table, wanted, &mut take)
            } else {
                policy.random.select(&self.table, wanted, &mut take)
            }
        };
        for batch in victims.chunks(BATCH) {
            let mut free_inc = lock(&self.free_inc);
            for &bucket in batch {
                let pushed = free_inc.push(bucket);
                debug_assert!(pushed, "a pass takes no more than there is room for");
            }
        }
        self.set.raise_need_gc(pass.gc_gen_max);
        if pass.found != Found::Enough {
            self.invalidate_needs_gc.store(true, Ordering::SeqCst);
        }
        Ok(pass)
    }

    fn invalidate_lru(
        &self,
        wanted: usize,
        victims: &mut Vec<BucketIndex>,
        scratch: &mut Scratch,
        pass: &mut Pass,
    ) -> Found {
        let min_prio = self.set.min_prio();
        for _ in 0..SWEEPS_MAX {
            let taken_before = victims.len();
            let missing = wanted.saturating_sub(taken_before);
            if missing == 0 {
                return Found::Enough;
            }
            let selected = lru::select_and_take(
                &self.table,
                min_prio,
                missing,
                scratch,
                // What callers have fetched during the sweep is made up for by the same chain.
                || self.free_inc_room().saturating_sub(taken_before),
                |victim| self.invalidate_one(victim.bucket(), Some((&victim, min_prio)), pass),
                |victim| victims.push(victim.bucket()),
            );
            if selected.taken >= missing {
                return Found::Enough;
            }
            if selected.refused == 0 {
                return Found::GaveUp;
            }
        }
        if victims.len() >= wanted { Found::Enough } else { Found::GaveUp }
    }

    /// Invalidates one bucket; false when it may not go, or when it is hotter by now than the LRU
    /// sweep saw it.
    fn invalidate_one(
        &self,
        bucket: BucketIndex,
        limit: Option<(&Victim, u16)>,
        pass: &mut Pass,
    ) -> bool {
        let still = |hot: Hot, _: Cold| {
            limit.is_none_or(|(victim, min_prio)| {
                bucket_prio(hot.prio(), hot.sectors_used(), min_prio) <= victim.bucket_prio
            })
        };
        let Some(invalidated) = self.table.try_invalidate(bucket, still) else { return false };
        pass.gc_gen_max = pass.gc_gen_max.max(invalidated.gc_gen);
        pass.invalidated += 1;
        pass.held_data += usize::from(invalidated.held_data);
        true
    }

    /// Everything in `free_inc` may be handed out from now on: its gens are durable, or the set is
    /// not synced.
    pub fn free_inc_safe(&self, safe: Safe) {
        let mut free_inc = lock(&self.free_inc);
        free_inc.all_safe(safe);
        self.dry.store(free_inc.ready().is_none(), Ordering::SeqCst);
    }

    /// The next bucket that [`hand_out`](Self::hand_out) would push.
    pub fn next_ready(&self) -> Option<Ready> {
        lock(&self.free_inc).ready()
    }

    /// Whether `free_inc` is to be filled before it is empty, so that what is ready lasts meanwhile.
    pub(crate) fn free_inc_is_low(&self) -> bool {
        self.is_low(&lock(&self.free_inc))
    }

    /// At a quarter, in a large cache at three eighths: there a pass and its chain take longer than as
    /// fast a caller as can be needs to empty a reserve (with a quarter, a closed loop on 1,048,576
    /// buckets has 5 % less), and a chain is little beside the buckets that it makes ready. In a small
    /// one at [`LEAD`] if that leaves as much room as is worth the writes. A chain of prio sets takes
    /// free buckets itself: to fill what is missing only because of the last chain would never end.
    fn is_low(&self, free_inc: &FreeInc) -> bool {
        let (capacity, used) = (free_inc.fifo().capacity(), free_inc.fifo().used());
        let share = if capacity > 4 * LEAD { capacity * 3 / 8 } else { capacity / 4 };
        let lead = share.max(capacity.saturating_sub(WORTH_A_PASS).min(LEAD));
        used <= lead && capacity - used > 2 * self.sizes.prio
    }

    /// Whether all queues together hold little more than goes during a pass and its chain. The reserves are
    /// then to be full when one begins: with `free_inc` of 15 and data written as fast as can be, a quarter
    /// fewer allocations wait than where callers fetch for themselves. (A model's cache is to do without.)
    pub(crate) fn is_small(&self) -> bool {
        !cfg!(feature = "model") && self.sizes.free_inc < LEAD
    }

    /// Whether nothing in `free_inc` may be handed out.
    pub(crate) fn is_dry(&self) -> bool {
        self.dry.load(Ordering::SeqCst)
    }

    /// Buckets of `free_inc` that may be handed out.
    pub(crate) fn ready_len(&self) -> usize {
        lock(&self.free_inc).ready_len()
    }

    fn free_inc_room(&self) -> usize {
        lock(&self.free_inc).fifo().room()
    }

    /// Whether no pass is of use before something leaves `free_inc`.
    pub(crate) fn free_inc_is_full(&self) -> bool {
        self.free_inc_room() == 0
    }

    /// Moves the oldest bucket of `free_inc` to a reserve, if it is ready and there is room.
    pub fn hand_out(&self) -> HandOut {
        let mut last = HandOut::NothingReady;
        self.hand_out_batch(1, &mut |out| last = out);
        last
    }

    /// The same for up to `max` buckets under one lock, telling `each` of every one, and of the
    /// reason for stopping if it stops before.
    pub(crate) fn hand_out_batch(&self, max: usize, each: &mut dyn FnMut(HandOut)) -> HandedOver {
        let mut free_inc = lock(&self.free_inc);
        let mut reserves = lock(&self.reserves);
        let mut count = 0;
        while count < max.min(BATCH) {
            let Some(ready) = free_inc.ready() else {
                each(HandOut::NothingReady);
                break;
            };
            let Some(reserve) = reserves.push(ready.bucket) else {
                each(HandOut::Full);
                break;
            };
            free_inc.pop_ready();
            each(HandOut::Pushed(ready, reserve));
            count += 1;
        }
        self.dry.store(free_inc.ready().is_none(), Ordering::SeqCst);
        HandedOver { count, low: self.is_low(&free_inc) }
    }

    /// Allocates a bucket without waiting (FORMAT.md §9.7): `None` when neither None nor `reserve`
    /// has one. The bucket carries one pin, which is the caller's.
    pub fn bucket_alloc(&self, reserve: Reserve) -> Result<Option<BucketIndex>, TableError> {
        let popped = lock(&self.reserves).pop(reserve);
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
        Ok(bucket)
    }

    /// Raises the gen of an allocated bucket (`bch_inc_gen`), so that every pointer into it is stale;
    /// the new gen. The caller owns the bucket: it holds a pin, or the bucket is its btree node.
    ///
    /// What the kernel does to a btree node before it is freed (`make_btree_freeing_key`). On the
    /// device the node's parent still carries the old gen: prios are to be blocked before this
    /// ([`block_prios`](super::Shared::block_prios)) and until the parent is written.
    pub fn inc_gen(&self, bucket: BucketIndex) -> Result<Gen, TableError> {
        let (bucket_gen, gc_gen) = self.table.inc_gen(bucket)?;
        self.set.raise_need_gc(gc_gen);
        Ok(bucket_gen)
    }

    /// Frees an allocated bucket: mark and sectors are forgotten (FORMAT.md §9.7). The pin stays.
    pub fn bucket_free(&self, bucket: BucketIndex) -> Result<(), TableError> {
        self.table.free(bucket)?;
        self.set.bucket_freed();
        Ok(())
    }

    /// Counts I/O; rescales when due. True when it did.
    pub fn rescale_priorities(&self, sectors: u32) -> bool {
        let due = self.set.account(sectors);
        if due {
            self.rescale_now(1);
        }
        due
    }

    /// Ages all prios of this cache by `times` rescalings, in one sweep.
    pub(crate) fn rescale_now(&self, times: u32) {
        // As many as 65535 and more leave every prio that they age at 0.
        let times = u16::try_from(times).unwrap_or(u16::MAX);
        let Some(times) = NonZeroU16::new(times) else { return };
        let _refill = self.refill();
        self.set.set_min_prio(self.device, self.table.rescale(times));
    }

    /// Begins a GC on this cache (FORMAT.md §6.4).
    pub fn gc_start(&self) {
        let _refill = self.refill();
        self.table.gc_start(self.config.reclaim_in_gc);
    }

    /// Ends a GC of a set with this one cache (FORMAT.md §6.3). `marks` are those that no key
    /// gives: uuid and journal buckets Metadata, buckets of keys under writeback Dirty.
    pub fn gc_finish(&self, marks: &[(BucketIndex, Mark)]) -> Result<(), TableError> {
        let summary = self.gc_finish_part(marks)?;
        self.set.gc_finished(summary.need_gc, summary.avail_nbuckets);
        Ok(())
    }

    /// The part of the end of a GC that concerns this cache.
    pub(crate) fn gc_finish_part(
        &self,
        marks: &[(BucketIndex, Mark)],
    ) -> Result<GcSummary, TableError> {
        let refill = self.refill();
        for &(bucket, mark) in marks {
            self.table.set_mark(bucket, mark)?;
        }
        for bucket in refill.chain.buckets() {
            self.table.set_mark(bucket, Mark::Metadata)?;
        }
        let summary = self.table.gc_finish();
        self.invalidate_needs_gc.store(false, Ordering::SeqCst);
        Ok(summary)
    }

    /// Notes that nothing can be invalidated, or no prios written, before a GC.
    pub(crate) fn set_invalidate_needs_gc(&self) {
        self.invalidate_needs_gc.store(true, Ordering::SeqCst);
    }

    fn list_of(&self, bucket: BucketIndex) -> Option<Lifecycle> {
        if let Some(place) = lock(&self.free_inc).find(bucket) {
            return Some(place);
        }
        // The chain is looked at only when nobody works on it, so that the check cannot make an
        // allocation wait for a sweep.
        if let Ok(refill) = self.refill.try_lock() {
            if refill.chain.buckets().any(|other| other == bucket) {
                return Some(Lifecycle::Allocated);
            }
        }
        let reserves = lock(&self.reserves);
        Reserve::ALL
            .into_iter()
            .find(|&reserve| reserves.fifo(reserve).iter().any(|other| other == bucket))
            .map(Lifecycle::Reserved)
    }

    /// Where `bucket` stands. Walks the lists: for tests and messages.
    pub fn lifecycle(&self, bucket: BucketIndex) -> Result<Lifecycle, TableError> {
        let pins = self.table.bucket(bucket)?.pins;
        Ok(self.list_of(bucket).unwrap_or(if pins == 0 {
            Lifecycle::InUse
        } else {
            Lifecycle::Allocated
        }))
    }

    /// Verifies everything that must hold between two steps; the first thing that does not. Only
    /// with nothing else running.
    pub fn check(&self) -> Result<(), Inconsistency> {
        let refill = self.refill();
        let mut listed = self.free_inc_contents();
        let reserves = lock(&self.reserves);
        for reserve in Reserve::ALL {
            listed.extend(reserves.fifo(reserve).iter());
        }
        for &bucket in &listed {
            let pins = self.table.bucket(bucket).map_or(0, |bucket| bucket.pins);
            if pins != 1 {
                return Err(Inconsistency::FreeBucketPins { bucket, pins });
            }
            if refill.chain.buckets().any(|other| other == bucket) {
                return Err(Inconsistency::FreeBucketInPrioChain { bucket });
            }
        }
        listed.sort_unstable();
        for pair in listed.windows(2) {
            if let [one, other] = pair {
                if one == other {
                    return Err(Inconsistency::ListedTwice { bucket: *one });
                }
            }
        }
        if !self.table.barred_bits_follow() {
            return Err(Inconsistency::BarredBit);
        }
        Ok(())
    }
}

/// Something that must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistency {
    /// A bucket in a list does not carry exactly the list's pin.
    #[error("free bucket {bucket} has {pins} pins instead of 1")]
    FreeBucketPins {
        /// The bucket.
        bucket: BucketIndex,
        /// Its pins.
        pins: u16,
    },
    /// A bucket is free and holds a prio set at once.
    #[error("bucket {bucket} is free and holds a prio set")]
    FreeBucketInPrioChain {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// A bucket is in two lists, or twice in one.
    #[error("bucket {bucket} is listed as free twice")]
    ListedTwice {
        /// The bucket.
        bucket: BucketIndex,
    },
    /// A barred bit does not say what gens and pins say.
    #[error("a bucket's barred bit does not follow its gen and pins")]
    BarredBit,
}
