//! One pass: which buckets of the cache are invalidated next.

use crate::units::BucketIndex;

use super::super::replacement::lru::{self, Scratch, Victim, bucket_prio};
use super::super::replacement::{Found, Policy, kernel_heap};
use super::super::sync::{Ordering, lock};
use super::super::trace::TraceEvent;
use super::super::words::{Cold, Hot};
use super::{AllocatorCore, BATCH, RefillState, Refiller};

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

/// Sweeps of one LRU pass. More than one only when other threads changed what the first named.
const SWEEPS_MAX: usize = 3;

impl Refiller<'_> {
    /// One pass: fills `free_inc` by the policy (on-disk-format.md §9.4).
    pub fn invalidate(&self) -> Result<Pass, CannotInvalidate> {
        self.core.invalidate()
    }
}

impl AllocatorCore {
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

    fn invalidate(&self) -> Result<Pass, CannotInvalidate> {
        self.may_invalidate()?;
        let mut refill = self.refill();
        let RefillState { policy, scratch, victims, .. } = &mut *refill;
        let mut pass = Pass { invalidated: 0, held_data: 0, gc_gen_max: 0, found: Found::Enough };
        // Only passes push, so that the room can but grow meanwhile.
        let wanted = self.free_inc_room();
        victims.clear();
        pass.found = match self.config.policy {
            Policy::Lru if self.config.kernel_heap => {
                self.invalidate_lru_by_heap(wanted, victims, scratch, &mut pass)
            }
            Policy::Lru => self.invalidate_lru(wanted, victims, scratch, &mut pass),
            Policy::Fifo => policy.cursor.select(&self.table, wanted, &mut |bucket| {
                self.take_victim(bucket, victims, &mut pass)
            }),
            Policy::Random => policy.random.select(&self.table, wanted, &mut |bucket| {
                self.take_victim(bucket, victims, &mut pass)
            }),
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

    fn take_victim(
        &self,
        bucket: BucketIndex,
        victims: &mut Vec<BucketIndex>,
        pass: &mut Pass,
    ) -> bool {
        let taken = self.invalidate_one(bucket, None, pass);
        if taken {
            victims.push(bucket);
        }
        taken
    }

    fn invalidate_lru_by_heap(
        &self,
        wanted: usize,
        victims: &mut Vec<BucketIndex>,
        scratch: &mut Scratch,
        pass: &mut Pass,
    ) -> Found {
        let room = self.sizes().heap;
        let min_prio = self.set.min_prio();
        let selected = kernel_heap::select(&self.table, min_prio, wanted, room, &mut scratch.heap);
        victims.extend(
            selected
                .iter()
                .map(Victim::bucket)
                .filter(|bucket| self.invalidate_one(*bucket, None, pass)),
        );
        if victims.len() >= wanted { Found::Enough } else { Found::GaveUp }
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
        if invalidated.sectors_used != 0 {
            pass.held_data += 1;
            let sectors_used = invalidated.sectors_used;
            self.hook.tell(|| TraceEvent::Invalidated { bucket, sectors_used });
        }
        true
    }
}
