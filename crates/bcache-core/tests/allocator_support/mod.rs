//! A device for the allocator thread that remembers what is durable, and judges each bucket that is
//! handed out by what a reader would find after a crash at that moment.

#![allow(dead_code)] // not every test uses all of it

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bcache_core::allocator::{Allocator, AllocatorIo, BucketTable, Lifecycle, Mark, PrioSetPlan};
use bcache_core::units::{BucketIndex, Gen};

/// A prio set as it was written.
struct PrioSet {
    first_entry: u64,
    gens: Vec<Gen>,
    next: BucketIndex,
    durable: bool,
}

/// What a device would hold: all that was written, and what of it is durable.
#[derive(Default)]
pub(crate) struct Disk {
    sets: HashMap<BucketIndex, PrioSet>,
    /// Heads that journal entries name, oldest first, and whether they are durable.
    heads: Vec<(BucketIndex, bool)>,
    /// Sets of a chain.
    chain_len: u64,
    /// An entry was written while a set that it names was not durable: had the entry survived a
    /// crash and the set not, the cache would be lost.
    entry_before_sets: bool,
    /// A freed btree node to which its parent on the disk still points.
    pub(crate) freed_node: Option<BucketIndex>,
    /// The bucket of such a node was written to: after a crash the parent would lead to garbage.
    pub(crate) freed_node_overwritten: bool,
    /// The gen with which the parent points to it. An entry led to a newer one: after a crash the
    /// parent's pointer would be stale.
    pub(crate) freed_node_gen: Gen,
    pub(crate) freed_node_stale: bool,
}

impl Disk {
    /// Panics unless after a crash at this moment, whatever survives of what is not durable, a reader
    /// finds that `bucket` has at least the gen `bucket_gen`.
    pub(crate) fn assert_safe(&self, bucket: BucketIndex, bucket_gen: Gen) {
        assert!(!self.entry_before_sets, "a journal entry was written before its prio sets");
        let newest_durable = self.heads.iter().rposition(|&(_, durable)| durable);
        let newest_durable = newest_durable.unwrap_or_else(|| {
            panic!("{bucket} was handed out before any prios were durable");
        });
        for &(head, _) in &self.heads[newest_durable..] {
            let mut at = head;
            let mut found = None;
            for _ in 0..self.chain_len {
                let set = self.sets.get(&at).expect("a chain leads to sets");
                assert!(set.durable, "a prio set in {at} of a current chain was overwritten");
                let place = bucket.0.checked_sub(set.first_entry);
                let place = place.and_then(|place| usize::try_from(place).ok());
                found = found.or(place.and_then(|place| set.gens.get(place)).copied());
                at = set.next;
            }
            let found = found.expect("the chain covers all buckets");
            assert_eq!(bucket_gen.gen_after(found), 0, "{bucket} was handed out with an old gen");
        }
    }

    /// Whether any chain was made current.
    pub(crate) fn has_prios(&self) -> bool {
        !self.heads.is_empty()
    }
}

/// No space left.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device has failed")]
pub(crate) struct DeviceFailed;

/// Writes to a [`Disk`].
pub(crate) struct DiskIo {
    pub(crate) shared: Arc<Allocator>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    /// Writes and flushes until one fails, and all after it.
    pub(crate) writes_left: u32,
    /// Runs a GC, in a thread of its own.
    pub(crate) gc: Box<dyn Fn(Arc<Allocator>) + Send>,
}

impl DiskIo {
    fn write(&mut self) -> Result<(), DeviceFailed> {
        self.writes_left = self.writes_left.checked_sub(1).ok_or(DeviceFailed)?;
        Ok(())
    }

    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllocatorIo for DiskIo {
    type Error = DeviceFailed;

    fn discard(&mut self, _: BucketIndex) -> Result<(), DeviceFailed> {
        Ok(())
    }

    fn write_prio_set(
        &mut self,
        set: &PrioSetPlan,
        table: &BucketTable,
    ) -> Result<(), DeviceFailed> {
        let entries = self.shared.core().config().geometry.prios_per_bucket();
        let gens = table.prios_and_gens(set.first_entry).map(|(_, bucket_gen)| bucket_gen);
        let gens = gens.take(usize::try_from(entries).expect("small")).collect();
        let written =
            PrioSet { first_entry: set.first_entry, gens, next: set.next_bucket, durable: false };
        // A failing write may have been carried out all the same.
        let mut disk = self.disk();
        disk.chain_len = disk.chain_len.max(set.index + 1);
        disk.freed_node_overwritten |= disk.freed_node == Some(set.bucket);
        disk.sets.insert(set.bucket, written);
        drop(disk);
        self.write()
    }

    fn write_journal_entry(&mut self, prio_head: BucketIndex) -> Result<(), DeviceFailed> {
        let mut disk = self.disk();
        disk.heads.push((prio_head, false));
        let mut at = prio_head;
        for _ in 0..disk.chain_len {
            let set = &disk.sets[&at];
            let (durable, next) = (set.durable, set.next);
            if let Some(node) = disk.freed_node {
                let place = usize::try_from(node.0.wrapping_sub(set.first_entry)).ok();
                let found = place.and_then(|place| set.gens.get(place));
                let stale = found.is_some_and(|found| found.gen_after(disk.freed_node_gen) != 0);
                disk.freed_node_stale |= stale;
            }
            disk.entry_before_sets |= !durable;
            at = next;
        }
        drop(disk);
        self.write()
    }

    fn flush(&mut self) -> Result<(), DeviceFailed> {
        self.write()?;
        let mut disk = self.disk();
        disk.sets.values_mut().for_each(|set| set.durable = true);
        disk.heads.iter_mut().for_each(|(_, durable)| *durable = true);
        Ok(())
    }

    fn wake_gc(&mut self) {
        (self.gc)(Arc::clone(&self.shared));
    }
}

/// A GC that finds keys to everything that had a mark before.
pub(crate) fn collect_keeping(shared: &Allocator) {
    let state = shared.core();
    let table = state.table();
    let buckets = || (table.first_bucket().0..table.nbuckets()).map(BucketIndex);
    let had: Vec<_> = buckets()
        .map(|bucket| (bucket, table.bucket(bucket).expect("in range")))
        .filter(|(_, had)| had.pins == 0 && had.mark != Mark::None)
        .collect();
    // What a pass has taken is still pointed to by keys, which are stale now.
    let waits = |bucket| state.lifecycle(bucket) == Ok(Lifecycle::Invalidated);
    let taken: Vec<_> = state.free_inc_contents().into_iter().filter(|&it| waits(it)).collect();
    shared.gc_start();
    for bucket in taken {
        let had = table.bucket(bucket).expect("in range");
        if had.mark != Mark::None {
            let stale = Gen(had.bucket_gen.0.wrapping_sub(1));
            table.mark_key(bucket, stale, Mark::Reclaimable, 8).expect("a mark that there is");
        }
    }
    for (bucket, had) in had {
        // One that was freed or reused meanwhile has another gen, or no key.
        if table.bucket(bucket).expect("in range").mark == Mark::None {
            let marked = table.mark_key(bucket, had.bucket_gen, had.mark, had.sectors_used);
            marked.expect("the mark is the one it had");
        }
    }
    shared.gc_finish(&[]).expect("no bucket was named");
}

/// A GC that finds whatever nobody holds unreferenced.
pub(crate) fn collect(shared: &Allocator) {
    shared.gc_start();
    shared.gc_finish(&[]).expect("no bucket was named");
}
