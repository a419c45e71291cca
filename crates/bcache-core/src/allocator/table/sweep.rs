//! Sweeps that change hot words: rescaling and the two ends of a GC.

use std::num::NonZeroU16;

use super::super::mark::Mark;
use super::super::sync::{AtomicU32, Ordering};
use super::super::vector;
use super::super::words::{Cold, Hot};
use super::{BucketTable, CHUNK};

impl BucketTable {
    /// Calls `visit` for the words of each chunk in turn, under the chunk's stripe lock.
    fn for_each_chunk_locked(&self, mut visit: impl FnMut(&[AtomicU32], &[AtomicU32])) {
        let chunks = self.hot.chunks(CHUNK).zip(self.cold.chunks(CHUNK));
        for (at, (hot, cold)) in (0..).step_by(CHUNK).zip(chunks) {
            let _stripe = self.stripe(at);
            visit(hot, cold);
        }
    }

    /// Ages every bucket that has a prio to lose and no pin, by as much as `times` rescalings do; the
    /// least prio that the last of them leaves (on-disk-format.md §9.5).
    ///
    /// 65535 when it would age no bucket.
    pub(crate) fn rescale(&self, times: NonZeroU16) -> u16 {
        let mut min_prio = u16::MAX;
        self.for_each_chunk_locked(|hot, cold| {
            min_prio = min_prio.min(vector::rescale(hot, cold, times));
        });
        min_prio
    }

    /// The greatest distance of a gen from its `last_gc`, and how many are at `high` or more. Takes no
    /// lock: where others allocate meanwhile it is a hint.
    pub(crate) fn gc_gens(&self, high: u8) -> (u8, u64) {
        self.cold.iter().fold((0, 0), |(max, many), word| {
            let gc_gen = Cold(word.load(Ordering::Relaxed)).gc_gen();
            (max.max(gc_gen), many + u64::from(gc_gen >= high))
        })
    }

    /// Begins a GC (on-disk-format.md §6.4): every `last_gc` becomes the gen, unpinned buckets lose mark and
    /// sectors. With `reclaim`, buckets that could be invalidated until now still can be.
    pub(crate) fn gc_start(&self, reclaim: bool) {
        // First, so that a pin that is dropped meanwhile does not make a bucket reclaimable again that
        // the sweep has been at.
        let valid = self.gc_mark_valid.swap(false, Ordering::SeqCst);
        self.for_each_chunk_locked(|hot, cold| {
            for (hot, cold) in hot.iter().zip(cold) {
                let word = Hot(hot.load(Ordering::Relaxed));
                let change = |cold: Cold| {
                    let cold = cold.with_last_gc(cold.bucket_gen());
                    let can = reclaim
                        && matches!(word.mark(), Mark::None | Mark::Reclaimable)
                        && !cold.unreclaimable(valid);
                    if can { cold.with_reclaimable_in_gc(true) } else { cold }
                };
                let now = Self::update_cold(cold, |cold| Some(change(cold)))
                    .map_or_else(|unchanged| unchanged, change);
                let word = if now.pins() == 0 {
                    word.with_mark(Mark::None).with_sectors_used(0)
                } else {
                    word
                };
                hot.store(word.with_unreclaimable(now.unreclaimable(false)).0, Ordering::Relaxed);
            }
        });
    }

    /// Ends a GC (on-disk-format.md §6.3): marks are valid; the greatest `bucket_gc_gen` and the number of
    /// buckets that could be invalidated but for their gen.
    pub(crate) fn gc_finish(&self) -> GcSummary {
        self.gc_mark_valid.store(true, Ordering::SeqCst);
        let mut summary = GcSummary { need_gc: 0, avail_nbuckets: 0 };
        self.for_each_chunk_locked(|hot, cold| {
            for (hot, cold) in hot.iter().zip(cold) {
                let word = Hot(hot.load(Ordering::Relaxed));
                let is = Self::update_cold(cold, |cold| {
                    cold.reclaimable_in_gc().then(|| cold.with_reclaimable_in_gc(false))
                })
                .map_or_else(|is| is, |old| old.with_reclaimable_in_gc(false));
                hot.store(word.with_unreclaimable(is.unreclaimable(true)).0, Ordering::Relaxed);
                summary.need_gc = summary.need_gc.max(is.gc_gen());
                if is.pins() == 0 && matches!(word.mark(), Mark::None | Mark::Reclaimable) {
                    summary.avail_nbuckets += 1;
                }
            }
        });
        summary
    }
}

/// What the end of a GC finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GcSummary {
    pub(crate) need_gc: u8,
    pub(crate) avail_nbuckets: u64,
}
