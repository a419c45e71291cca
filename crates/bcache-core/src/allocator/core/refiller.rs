//! The right to refill the reserves of one cache.

use crate::units::{BucketIndex, Gen, Prio};

use super::super::sync::Ordering;
use super::super::table::TableError;
use super::AllocatorCore;

/// The right to do what the allocator thread does: invalidate buckets, write prios, and say that a
/// bucket may be overwritten.
///
/// There is one at a time. A running allocator thread holds it, so that none of these operations can
/// be called beside the thread. It is given back when it is dropped.
pub struct Refiller<'a> {
    pub(super) core: &'a AllocatorCore,
    /// Whether the right is given back here; the thread's is when its end is told.
    releases: bool,
}

impl AllocatorCore {
    /// The right to refill, or `None` while another has it.
    pub(crate) fn refiller(&self) -> Option<Refiller<'_>> {
        // Not `then_some`: one that is made and dropped gives back the right of another.
        self.take_refiller().then(|| Refiller { core: self, releases: true })
    }

    /// Takes the right for a thread; false while another has it.
    #[must_use]
    pub(crate) fn take_refiller(&self) -> bool {
        !self.refiller_taken.swap(true, Ordering::SeqCst)
    }

    /// What the thread that has the right works with.
    pub(crate) fn refiller_of_thread(&self) -> Refiller<'_> {
        Refiller { core: self, releases: false }
    }

    /// Gives back the thread's right.
    pub(crate) fn release_refiller(&self) {
        self.refiller_taken.store(false, Ordering::SeqCst);
    }
}

impl Drop for Refiller<'_> {
    fn drop(&mut self) {
        if self.releases {
            self.core.release_refiller();
        }
    }
}

impl Refiller<'_> {
    /// The allocator whose reserves are refilled.
    pub fn core(&self) -> &AllocatorCore {
        self.core
    }

    /// Sets what a `prio_set` says of a bucket, before the cache is used: `last_gc` becomes its gen
    /// too (on-disk-format.md §3.3).
    pub fn load(&self, bucket: BucketIndex, prio: Prio, bucket_gen: Gen) -> Result<(), TableError> {
        self.core.table.load_shared(bucket, prio, bucket_gen)
    }
}
