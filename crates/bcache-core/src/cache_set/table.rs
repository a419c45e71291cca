//! What is known of each bucket: prio, gens, GC mark, sectors in use (docs/on-disk-format.md §6.1,
//! §6.2).
//!
//! Eight bytes a bucket, so that 33.5 million buckets take 268 MB and marking a key touches one
//! cache line.

use std::collections::{BTreeMap, TryReserveError};

use crate::device::advise_huge_pages;
use crate::layout::bkey::{Bkey, Ptr};
use crate::layout::prio_set::BucketDisk;
use crate::units::{BucketIndex, GC_SECTORS_USED_MAX, Gen, Geometry, Prio};

const MARK_MASK: u16 = 3;
const SECTORS_SHIFT: u32 = 2;

const FLAG_PINNED: u8 = 1;
const FLAG_GEN_UNKNOWN: u8 = 1 << 1;
const FLAG_NODE_VISITED: u8 = 1 << 2;

/// Extents whose buckets are looked up together ([`BucketTable::warm`]) before they are taken one by one.
pub(crate) const WARM_KEYS: usize = 64;

/// What a bucket holds, as the kernel's GC marks it (`GC_MARK`); a greater one keeps more from being
/// done to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GcMark {
    /// Nothing that is still valid.
    #[default]
    Unused,
    /// Clean data: the backing device has it too.
    Reclaimable,
    /// Data that the backing device lacks.
    Dirty,
    /// Btree, journal, prios or uuids.
    Metadata,
}

impl GcMark {
    const fn from_bits(bits: u16) -> Self {
        match bits & MARK_MASK {
            0 => Self::Unused,
            1 => Self::Reclaimable,
            2 => Self::Dirty,
            _ => Self::Metadata,
        }
    }

    const fn to_bits(self) -> u16 {
        match self {
            Self::Unused => 0,
            Self::Reclaimable => 1,
            Self::Dirty => 2,
            Self::Metadata => 3,
        }
    }

    /// The word for it in tables: `unused`, `clean`, `dirty`, `metadata`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Reclaimable => "clean",
            Self::Dirty => "dirty",
            Self::Metadata => "metadata",
        }
    }
}

impl std::fmt::Display for GcMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One bucket, as the kernel would hold it right after registration has marked all keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "`gen` is reserved: bucket_gen is its name here")]
pub struct Bucket {
    prio: Prio,
    marked: Marked,
    bucket_gen: Gen,
    last_gc: Gen,
    flags: u8,
}

const _: () = assert!(size_of::<Bucket>() == 8);

impl Bucket {
    /// Priority: from the prio set, or as marking changed it.
    pub const fn prio(&self) -> Prio {
        self.prio
    }

    /// Effective gen: from the prio set, advanced by newer pointers (docs/on-disk-format.md §8.2
    /// step 3).
    pub const fn bucket_gen(&self) -> Gen {
        self.bucket_gen
    }

    /// Oldest gen of a pointer into it, stale ones included.
    pub const fn last_gc(&self) -> Gen {
        self.last_gc
    }

    /// How far the gen is past `last_gc` (`bucket_gc_gen`); at 96 it cannot be invalidated.
    pub const fn gen_span(&self) -> u8 {
        self.bucket_gen.distance_from(self.last_gc)
    }

    /// GC mark.
    pub const fn mark(&self) -> GcMark {
        self.marked.mark()
    }

    /// Sectors that valid keys use, at most 8191 (`GC_SECTORS_USED`).
    pub const fn sectors_used(&self) -> u16 {
        self.marked.sectors_used()
    }

    /// Whether a key of the journal's replay range points into it: the kernel holds a pin on it
    /// until the key is replayed.
    pub const fn pinned(&self) -> bool {
        self.flags & FLAG_PINNED != 0
    }

    /// Whether the prio set with its gen could not be read, and no pointer told it either.
    pub(crate) const fn gen_unknown(self) -> bool {
        self.flags & FLAG_GEN_UNKNOWN != 0
    }

    /// Whether the allocator could take it (`bch_can_invalidate_bucket`): nothing, or clean data,
    /// no pin, and the gen not too far ahead.
    pub const fn can_invalidate(&self) -> bool {
        matches!(self.mark(), GcMark::Unused | GcMark::Reclaimable)
            && !self.pinned()
            && self.gen_span() < crate::units::BUCKET_GC_GEN_MAX
    }

    /// What marking its keys made of it.
    pub(crate) const fn marked(self) -> Marked {
        self.marked
    }

    const fn set_mark(&mut self, mark: GcMark) {
        self.marked.set_mark(mark);
    }

    fn add_sectors(&mut self, sectors: u64) {
        self.marked.add_sectors(sectors);
    }

    /// Notes that a newer pointer makes those stale that were counted.
    const fn outgrow(&mut self) {
        if !matches!(self.mark(), GcMark::Unused) {
            self.marked.0 |= Marked::OUTGROWN;
        }
    }
}

/// What marking keys made of a bucket, in two bytes: [`Bucket::mark`], [`Bucket::sectors_used`], and
/// whether pointers were outgrown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marked(u16);

impl Marked {
    const OUTGROWN: u16 = 1 << 15;

    pub(crate) const fn mark(self) -> GcMark {
        GcMark::from_bits(self.0)
    }

    pub(crate) const fn sectors_used(self) -> u16 {
        (self.0 & !Self::OUTGROWN) >> SECTORS_SHIFT
    }

    /// Whether pointers marked the bucket that a newer one has made stale since. They count in
    /// [`Self::mark`] and [`Self::sectors_used`], as with the kernel, and no more once the newer gen
    /// is in the prio set.
    pub(crate) const fn outgrown(self) -> bool {
        self.0 & Self::OUTGROWN != 0
    }

    const fn set_mark(&mut self, mark: GcMark) {
        self.0 = self.0 & !MARK_MASK | mark.to_bits();
    }

    fn add_sectors(&mut self, sectors: u64) {
        let sum = u64::from(self.sectors_used()).saturating_add(sectors);
        let sum = u16::try_from(sum).unwrap_or(u16::MAX).min(GC_SECTORS_USED_MAX);
        self.0 = self.0 & (Self::OUTGROWN | MARK_MASK) | sum << SECTORS_SHIFT;
    }
}

const _: () = assert!(GC_SECTORS_USED_MAX << SECTORS_SHIFT < Marked::OUTGROWN);

/// What marking a pointer found; each is told once for each pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkNote {
    /// The pointer is stale: it counts for nothing but `last_gc`.
    Stale {
        /// The bucket.
        bucket: BucketIndex,
        /// How far the bucket's gen is ahead.
        by: u8,
    },
    /// The pointer is newer than the bucket's gen, which it advanced.
    Newer {
        /// The bucket.
        bucket: BucketIndex,
        /// Gen before.
        from: Gen,
        /// Gen after: the pointer's.
        to: Gen,
    },
    /// Data and metadata in one bucket: the kernel's "inconsistent ptrs".
    Inconsistent {
        /// The bucket.
        bucket: BucketIndex,
        /// How it was marked before.
        mark: GcMark,
    },
}

/// All buckets of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketTable {
    buckets: Vec<Bucket>,
    /// Of each bucket with markers of freed nodes, the oldest's gen.
    freed_nodes: BTreeMap<BucketIndex, Gen>,
}

impl BucketTable {
    /// A table for `nbuckets` buckets whose gens are not known yet.
    pub fn new(nbuckets: u64) -> Result<Self, TryReserveError> {
        let count = usize::try_from(nbuckets).unwrap_or(usize::MAX);
        let mut buckets = Vec::new();
        buckets.try_reserve_exact(count)?;
        advise_huge_pages(&mut buckets);
        buckets.resize(count, Bucket { flags: FLAG_GEN_UNKNOWN, ..Bucket::default() });
        Ok(Self { buckets, freed_nodes: BTreeMap::new() })
    }

    /// The buckets, from number 0 on.
    pub fn as_slice(&self) -> &[Bucket] {
        &self.buckets
    }

    /// One bucket; `None` past the end.
    pub fn get(&self, bucket: BucketIndex) -> Option<&Bucket> {
        self.buckets.get(usize::try_from(bucket.0).ok()?)
    }

    fn get_mut(&mut self, bucket: BucketIndex) -> Option<&mut Bucket> {
        self.buckets.get_mut(usize::try_from(bucket.0).ok()?)
    }

    /// Takes prios and gens of the buckets from `first` on out of a prio set.
    pub fn load(&mut self, first: u64, entries: impl Iterator<Item = BucketDisk>) {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let buckets = self.buckets.get_mut(first..).unwrap_or_default();
        for (bucket, disk) in buckets.iter_mut().zip(entries) {
            *bucket = Bucket {
                prio: disk.prio,
                bucket_gen: disk.bucket_gen,
                last_gc: disk.bucket_gen,
                ..Bucket::default()
            };
        }
    }

    /// Forgets what is known of `count` buckets from `first` on.
    pub(super) fn forget(&mut self, first: u64, count: u64) {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let buckets = self.buckets.get_mut(first..).unwrap_or_default();
        for bucket in buckets.iter_mut().take(count) {
            *bucket = Bucket { flags: FLAG_GEN_UNKNOWN, ..Bucket::default() };
        }
    }

    /// Takes a newer gen of a bucket from a pointer to it, without marking what it points to.
    pub(crate) fn raise_gen(&mut self, bucket: BucketIndex, newest: Gen) {
        let Some(bucket) = self.get_mut(bucket) else { return };
        if bucket.gen_unknown() {
            bucket.flags &= !FLAG_GEN_UNKNOWN;
            (bucket.bucket_gen, bucket.last_gc) = (newest, newest);
        } else if newest.gen_after(bucket.bucket_gen) != 0 {
            bucket.outgrow();
            bucket.bucket_gen = newest;
        }
    }

    /// Brings what is known of the buckets behind `ptrs` into the processor's caches.
    ///
    /// Neighbours on a volume lie anywhere on the cache. When each key waits for its bucket's entry
    /// in turn, that wait takes 88 % of the walk's own thread (a profile of 20 million keys over 1.3
    /// million buckets); loads that do not depend on each other run side by side.
    pub(crate) fn warm(&self, ptrs: impl Iterator<Item = Ptr>, geometry: &Geometry) {
        let gens = ptrs.fold(0, |gens, ptr| {
            gens ^ self.get(ptr.bucket(geometry)).map_or(0, |bucket| bucket.bucket_gen.0)
        });
        std::hint::black_box(gens);
    }

    /// How far the gen of the bucket behind `ptr` is ahead of it: 0 for a valid pointer
    /// (`ptr_stale`).
    pub(crate) fn staleness(&self, bucket: BucketIndex, ptr_gen: Gen) -> u8 {
        self.get(bucket).map_or(0, |bucket| {
            if bucket.gen_unknown() { 0 } else { bucket.bucket_gen.gen_after(ptr_gen) }
        })
    }

    /// Whether all pointers of `key` can be used: there are some, all are available, none is stale.
    /// The key must be structurally valid.
    pub(crate) fn is_usable(&self, key: &Bkey, geometry: &Geometry) -> bool {
        key.ptrs_count() > 0
            && key.ptrs().iter().all(|ptr| {
                ptr.available() && self.staleness(ptr.bucket(geometry), ptr.ptr_gen()) == 0
            })
    }

    /// Marks a structurally valid key of the btree or of the journal (`bch_initial_mark_key`,
    /// docs/on-disk-format.md §6.2). `level` is 0 for extents.
    pub fn mark_key(
        &mut self,
        key: &Bkey,
        level: u32,
        geometry: &Geometry,
        note: &mut impl FnMut(MarkNote),
    ) {
        let zero_key = key.is_zero_key();
        let sectors = key.size().0;
        let dirty = key.dirty();
        for ptr in key.ptrs().iter().filter(|ptr| ptr.available()) {
            let number = ptr.bucket(geometry);
            let ptr_gen = ptr.ptr_gen();
            let Some(bucket) = self.get_mut(number) else { continue };
            if bucket.gen_unknown() {
                bucket.flags &= !FLAG_GEN_UNKNOWN;
                bucket.bucket_gen = ptr_gen;
                bucket.last_gc = ptr_gen;
            }
            let stale = bucket.bucket_gen.gen_after(ptr_gen);
            if stale == 0 {
                if bucket.bucket_gen != ptr_gen {
                    bucket.outgrow();
                    note(MarkNote::Newer { bucket: number, from: bucket.bucket_gen, to: ptr_gen });
                    bucket.bucket_gen = ptr_gen;
                }
                if level > 0 && !zero_key {
                    bucket.prio = Prio::BTREE;
                } else if level == 0 && bucket.prio == Prio::BTREE {
                    bucket.prio = Prio::INITIAL;
                }
            }
            if zero_key {
                let oldest = self.freed_nodes.entry(number).or_insert(ptr_gen);
                if oldest.gen_after(ptr_gen) != 0 {
                    *oldest = ptr_gen;
                }
                continue;
            }
            if bucket.last_gc.gen_after(ptr_gen) != 0 {
                bucket.last_gc = ptr_gen;
            }
            if stale != 0 {
                note(MarkNote::Stale { bucket: number, by: stale });
                continue;
            }
            let mark = bucket.mark();
            if mark != GcMark::Unused && (mark == GcMark::Metadata) != (level > 0) {
                note(MarkNote::Inconsistent { bucket: number, mark });
            }
            // The kernel gives up on such a set; we never take a bucket with metadata for data.
            if level > 0 || mark == GcMark::Metadata {
                bucket.set_mark(GcMark::Metadata);
            } else if dirty {
                bucket.set_mark(GcMark::Dirty);
            } else if mark == GcMark::Unused {
                bucket.set_mark(GcMark::Reclaimable);
            }
            bucket.add_sectors(sectors);
        }
    }

    /// How far the gen of `bucket` is past the oldest marker of a freed node in it; 0 without one.
    ///
    /// A marker carries a gen as pointers do, and one that the bucket's gen is 129 past sets it back
    /// (docs/on-disk-format.md §5.4, §5.5). The kernel does not count it in `last_gc`.
    pub(crate) fn freed_node_span(&self, bucket: BucketIndex) -> u8 {
        let oldest = self.freed_nodes.get(&bucket);
        oldest.map_or(0, |oldest| self.staleness(bucket, *oldest))
    }

    /// Marks a valid extent of one pointer where that is all there is to do: whether it was.
    ///
    /// [`Self::mark_key`] of such a key does the same and has nothing to tell.
    #[inline]
    pub(crate) fn mark_usual(
        &mut self,
        ptr: Ptr,
        sectors: u64,
        dirty: bool,
        geometry: &Geometry,
    ) -> bool {
        let ptr_gen = ptr.ptr_gen();
        let Some(bucket) = self.get_mut(ptr.bucket(geometry)) else { return false };
        let mark = bucket.mark();
        let usual = ptr.available()
            && bucket.bucket_gen == ptr_gen
            && bucket.last_gc.gen_after(ptr_gen) == 0
            && !bucket.gen_unknown()
            && bucket.prio != Prio::BTREE
            && mark != GcMark::Metadata;
        if usual {
            bucket.set_mark(if dirty || mark == GcMark::Dirty {
                GcMark::Dirty
            } else {
                GcMark::Reclaimable
            });
            bucket.add_sectors(sectors);
        }
        usual
    }

    /// Pins the buckets that a structurally valid key of the journal points to.
    pub(crate) fn pin_key(&mut self, key: &Bkey, geometry: &Geometry) {
        for ptr in key.ptrs().iter().filter(|ptr| ptr.available()) {
            if let Some(bucket) = self.get_mut(ptr.bucket(geometry)) {
                bucket.flags |= FLAG_PINNED;
            }
        }
    }

    /// Marks a bucket of journal, prios or uuids (`bch_btree_gc_finish`).
    pub(crate) fn mark_metadata(&mut self, bucket: BucketIndex) {
        if let Some(bucket) = self.get_mut(bucket) {
            bucket.set_mark(GcMark::Metadata);
        }
    }

    /// Remembers that the btree walk has been at `bucket`; whether it had been before.
    pub(crate) fn visit_node(&mut self, bucket: BucketIndex) -> bool {
        self.get_mut(bucket).is_some_and(|bucket| {
            let before = bucket.flags & FLAG_NODE_VISITED != 0;
            bucket.flags |= FLAG_NODE_VISITED;
            before
        })
    }

    /// Whether the btree walk has been at `bucket`.
    pub fn is_node(&self, bucket: BucketIndex) -> bool {
        self.get(bucket).is_some_and(|bucket| bucket.flags & FLAG_NODE_VISITED != 0)
    }
}
