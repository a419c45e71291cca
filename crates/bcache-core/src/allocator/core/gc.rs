//! The two ends of a GC, and rescaling.

use std::num::NonZeroU16;

use crate::units::BucketIndex;

use super::super::mark::Mark;
use super::super::sync::Ordering;
use super::super::table::{GcSummary, TableError};
use super::AllocatorCore;

impl AllocatorCore {
    /// Ages all prios of this cache by `times` rescalings, in one sweep.
    pub(crate) fn rescale_now(&self, times: u32) {
        // As many as 65535 and more leave every prio that they age at 0.
        let times = u16::try_from(times).unwrap_or(u16::MAX);
        let Some(times) = NonZeroU16::new(times) else { return };
        let _refill = self.refill();
        self.set.set_min_prio(self.device, self.table.rescale(times));
    }

    /// Begins a GC on this cache (on-disk-format.md §6.4).
    pub(crate) fn gc_start(&self) {
        let _refill = self.refill();
        self.table.gc_start(self.config.reclaim_in_gc);
    }

    /// The part of the end of a GC that concerns this cache.
    pub(crate) fn gc_finish(
        &self,
        marks: impl Iterator<Item = (BucketIndex, Mark)>,
    ) -> Result<GcSummary, TableError> {
        let refill = self.refill();
        self.mark_kept(&refill.kept)?;
        for (bucket, mark) in marks {
            self.table.set_mark(bucket, mark)?;
        }
        for bucket in refill.chains.buckets() {
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
}
