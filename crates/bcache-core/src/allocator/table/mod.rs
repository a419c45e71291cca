//! The bucket table: eight bytes a bucket, as two parallel arrays of words.
//!
//! What choosing victims reads is one array of 32-bit words, so that a pass over all buckets runs
//! at the speed of memory; gens and pins are in a second array that only touched buckets cost.
//!
//! Neighbouring buckets are often open for writing at once, by several writers, and each write takes a pin
//! and drops one. So that writers do not fight for a cache line, the words of neighbours are not
//! neighbours: buckets 0 to 127 are the first words of 128 lines, 128 to 255 the second ones, and so on.
//! A sweep goes by position, and only what it finds is turned into buckets. A position that is no bucket's,
//! or that of one before `first_bucket`, is free for ever: no sweep takes or ages it.
//!
//! # Who may change what, and when
//!
//! - A hot word (prio, sectors used, mark, unreclaimable bit) is written only under the *stripe* lock of
//!   its bucket. Anyone may read it at any time; what is read without the lock is a hint.
//! - A cold word (gen, `last_gc`, pins) is only ever changed by compare-and-swap, with or without the
//!   lock. Its gen rises in the same step in which the bucket becomes free: whoever pins a bucket
//!   first keeps it from being invalidated, and a free bucket cannot be pinned. (The owner of a bucket
//!   that a pin or its mark keeps may raise the gen at any time.)
//! - The unreclaimable bit follows the cold word: whoever changes the cold word so that it should flip
//!   takes the stripe lock afterwards and recomputes it. Of several such, the last one to take the
//!   lock sees all their changes.
//!
//! A sweep that changes hot words (rescaling, the ends of a GC) takes one stripe lock at a time, for
//! [`CHUNK`] buckets, some tens of nanoseconds. A sweep that only reads them takes none. So no
//! caller ever waits for a sweep.

mod error;
mod sweep;

use crate::device::advise_huge_pages;
use crate::units::{BucketIndex, Gen, Prio};

use super::mark::Mark;
use super::planted::{self, Bug};
use super::sync::{AtomicBool, AtomicU32, BriefGuard, BriefLock, Ordering};
use super::vector;
use super::words::{Cold, Hot};

pub use error::TableError;
pub(crate) use sweep::GcSummary;

/// Words of a cache line.
#[cfg(not(feature = "model"))]
const LINE: usize = 16;
/// Neighbouring buckets of which each has a cache line of its own: as many as are open at most.
///
/// With 8 streams of small writes, two threads give 1.9 times what one gives; 1.0 where neighbours share a
/// line, and 1.9 with 16 apart, too. But then, of 128 open buckets eight share a line: 1.2 with 128 streams.
#[cfg(not(feature = "model"))]
const APART: usize = 128;
/// Buckets that a sweep changes under one stripe lock.
#[cfg(not(feature = "model"))]
pub(crate) const CHUNK: usize = 256;
/// Stripe locks: a constant, whatever the number of buckets.
#[cfg(not(feature = "model"))]
const STRIPES: usize = 256;

// A model checker's caches have some tens of buckets.
#[cfg(feature = "model")]
const LINE: usize = 2;
#[cfg(feature = "model")]
const APART: usize = 8;
#[cfg(feature = "model")]
pub(crate) const CHUNK: usize = 8;
#[cfg(feature = "model")]
const STRIPES: usize = 2;

/// Words that change places with each other.
const SQUARE: usize = LINE * APART;
const _: () = assert!(SQUARE % CHUNK == 0);

/// Where the words of a bucket are.
const fn position_of(index: usize) -> usize {
    index - index % SQUARE + index % APART * LINE + index % SQUARE / APART
}

/// The index of the bucket whose words are there.
pub(crate) const fn index_at(position: usize) -> usize {
    position - position % SQUARE + position % LINE * APART + position % SQUARE / LINE
}

/// Which stripe lock a position has.
const fn stripe_of(position: usize) -> usize {
    position / CHUNK % STRIPES
}

/// All of one bucket, as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Priority.
    pub prio: Prio,
    /// Generation.
    pub bucket_gen: Gen,
    /// Oldest gen that a pointer to it may have, as of the last GC.
    pub last_gc: Gen,
    /// GC mark.
    pub mark: Mark,
    /// `GC_SECTORS_USED`, at most 8191.
    pub sectors_used: u16,
    /// Pins. A free bucket has one: that of the list it is in.
    pub pins: u16,
    /// It is in `free_inc` or in a reserve.
    pub is_free: bool,
    /// `GC_MOVE`: moving GC is to empty it.
    pub gc_move: bool,
    /// It could be invalidated when the running GC began, and has not been since.
    pub reclaimable_in_gc: bool,
}

/// The result of invalidating one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalidated {
    /// How far its new gen is from `last_gc`.
    pub(crate) gc_gen: u8,
    /// Sectors of data that it held.
    pub(crate) sectors_used: u16,
}

/// Alone on its cache line, so that neighbours do not slow each other down.
#[repr(align(64))]
#[derive(Default)]
struct Stripe(BriefLock);

/// The buckets of one cache device.
pub struct BucketTable {
    first_bucket: usize,
    nbuckets: usize,
    hot: Vec<AtomicU32>,
    cold: Vec<AtomicU32>,
    stripes: Vec<Stripe>,
    gc_mark_valid: AtomicBool,
}

impl BucketTable {
    /// A table of `nbuckets` buckets with gen 0, prio 0 and no mark, as the kernel's for a device
    /// without `CACHE_SYNC`. Marks count as valid only after the first `gc_finish`.
    pub fn new(nbuckets: u64, first_bucket: u64) -> Result<Self, TableError> {
        let too_many = TableError::TooManyBuckets { nbuckets };
        if u32::try_from(nbuckets).is_err() {
            return Err(too_many);
        }
        let no_memory = TableError::NoMemory { nbuckets };
        let nbuckets = usize::try_from(nbuckets).map_err(|_| too_many)?;
        let first_bucket = usize::try_from(first_bucket).map_err(|_| too_many)?;
        let len = nbuckets.checked_next_multiple_of(SQUARE).ok_or(too_many)?;
        let words = |word: &dyn Fn(usize) -> u32| {
            let mut words = Vec::new();
            words.try_reserve_exact(len).map_err(|_| no_memory)?;
            advise_huge_pages(&mut words);
            words.extend((0..len).map(|position| AtomicU32::new(word(position))));
            Ok(words)
        };
        let is_bucket = |position| (first_bucket..nbuckets).contains(&index_at(position));
        Ok(Self {
            first_bucket,
            nbuckets,
            hot: words(&|_| Hot(0).with_unreclaimable(true).0)?,
            cold: words(&|at| if is_bucket(at) { Cold(0) } else { Cold(0).freed() }.0)?,
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            gc_mark_valid: AtomicBool::new(false),
        })
    }

    /// Buckets of the device, those before `first_bucket` included.
    pub fn nbuckets(&self) -> u64 {
        self.nbuckets as u64
    }

    /// First bucket that can be allocated.
    pub fn first_bucket(&self) -> BucketIndex {
        BucketIndex(self.first_bucket as u64)
    }

    /// Bytes that each bucket takes in the table.
    pub const BYTES_PER_BUCKET: usize = 2 * size_of::<u32>();

    /// Whether marks are those of a finished GC (`gc_mark_valid`).
    pub fn gc_mark_valid(&self) -> bool {
        self.gc_mark_valid.load(Ordering::SeqCst)
    }

    /// The position of a bucket and its words.
    fn words(&self, bucket: BucketIndex) -> Result<(usize, &AtomicU32, &AtomicU32), TableError> {
        usize::try_from(bucket.0)
            .ok()
            .filter(|index| (self.first_bucket..self.nbuckets).contains(index))
            .map(position_of)
            .and_then(|at| Some((at, self.hot.get(at)?, self.cold.get(at)?)))
            .ok_or(TableError::NoSuchBucket {
                bucket,
                first_bucket: self.first_bucket as u64,
                nbuckets: self.nbuckets as u64,
            })
    }

    /// The stripe lock of a position. The index is always in range, so the first stripe is never a
    /// stand-in for another.
    fn stripe(&self, position: usize) -> Option<BriefGuard<'_>> {
        self.stripes.get(stripe_of(position)).map(|stripe| stripe.0.lock())
    }

    /// Changes a hot word under its stripe lock; gives back what it was.
    fn update_hot(
        &self,
        bucket: BucketIndex,
        change: impl FnOnce(Hot) -> Hot,
    ) -> Result<Hot, TableError> {
        let (at, hot, _) = self.words(bucket)?;
        let _stripe = self.stripe(at);
        let old = Hot(hot.load(Ordering::Relaxed));
        hot.store(change(old).0, Ordering::Relaxed);
        Ok(old)
    }

    /// Changes a cold word in one step, or leaves it when `change` says so.
    fn update_cold(word: &AtomicU32, change: impl Fn(Cold) -> Option<Cold>) -> Result<Cold, Cold> {
        word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
            change(Cold(old)).map(|new| new.0)
        })
        .map(Cold)
        .map_err(Cold)
    }

    /// Makes the unreclaimable bit follow the cold word. The caller holds the stripe lock.
    fn follow(&self, hot: &AtomicU32, cold: &AtomicU32) {
        let unreclaimable = Cold(cold.load(Ordering::SeqCst)).unreclaimable(self.gc_mark_valid());
        let word = Hot(hot.load(Ordering::Relaxed));
        hot.store(word.with_unreclaimable(unreclaimable).0, Ordering::Relaxed);
    }

    /// All of one bucket, at one moment.
    pub fn bucket(&self, bucket: BucketIndex) -> Result<Bucket, TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        let _stripe = self.stripe(at);
        let hot = Hot(hot.load(Ordering::Relaxed));
        let cold = Cold(cold.load(Ordering::SeqCst));
        Ok(Bucket {
            prio: hot.prio(),
            bucket_gen: cold.bucket_gen(),
            last_gc: cold.last_gc(),
            mark: hot.mark(),
            sectors_used: hot.sectors_used(),
            pins: cold.pins(),
            is_free: cold.is_free(),
            gc_move: cold.gc_move(),
            reclaimable_in_gc: cold.reclaimable_in_gc(),
        })
    }

    /// The gen that a pointer into `bucket` must carry to be valid.
    pub fn bucket_gen(&self, bucket: BucketIndex) -> Result<Gen, TableError> {
        self.words(bucket).map(|(_, _, cold)| Cold(cold.load(Ordering::SeqCst)).bucket_gen())
    }

    /// The words of `bucket`, read without its stripe's lock.
    pub(crate) fn hint(&self, bucket: BucketIndex) -> Option<(Hot, Cold)> {
        let (_, hot, cold) = self.words(bucket).ok()?;
        Some((Hot(hot.load(Ordering::Relaxed)), Cold(cold.load(Ordering::Relaxed))))
    }

    /// Sets what a `prio_set` says of a bucket: `last_gc` becomes its gen too
    /// (on-disk-format.md §3.3).
    pub fn load(
        &mut self,
        bucket: BucketIndex,
        prio: Prio,
        bucket_gen: Gen,
    ) -> Result<(), TableError> {
        self.load_shared(bucket, prio, bucket_gen)
    }

    pub(crate) fn load_shared(
        &self,
        bucket: BucketIndex,
        prio: Prio,
        bucket_gen: Gen,
    ) -> Result<(), TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        let _stripe = self.stripe(at);
        let word = Hot(hot.load(Ordering::Relaxed)).with_prio(prio);
        hot.store(word.0, Ordering::Relaxed);
        let _ = Self::update_cold(cold, |cold| {
            Some(cold.with_gen(bucket_gen).with_last_gc(bucket_gen))
        });
        self.follow(hot, cold);
        Ok(())
    }

    /// A cache hit: the bucket is as hot as a new one (on-disk-format.md §9.5).
    pub fn hit(&self, bucket: BucketIndex) -> Result<(), TableError> {
        self.update_hot(bucket, |hot| hot.with_prio(Prio::INITIAL)).map(drop)
    }

    /// A cache hit through a pointer of gen `ptr_gen`. False, and nothing is changed, if it is stale:
    /// the bucket may hold metadata by now, whose prio is no hit's to change.
    pub fn hit_through(&self, bucket: BucketIndex, ptr_gen: Gen) -> Result<bool, TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        // The gen rises under this lock before the bucket is anybody else's.
        let _stripe = self.stripe(at);
        let valid = Cold(cold.load(Ordering::SeqCst)).bucket_gen() == ptr_gen;
        if valid {
            let word = Hot(hot.load(Ordering::Relaxed)).with_prio(Prio::INITIAL);
            hot.store(word.0, Ordering::Relaxed);
        }
        Ok(valid)
    }

    /// Sets the prio of a bucket, as registration does for btree nodes (on-disk-format.md §6.2).
    pub fn set_prio(&self, bucket: BucketIndex, prio: Prio) -> Result<(), TableError> {
        self.update_hot(bucket, |hot| hot.with_prio(prio)).map(drop)
    }

    /// Sets the mark of a bucket, its sectors used left as they are.
    ///
    /// Outside a GC only whoever holds a pin may do this: a mark set on an unpinned bucket could
    /// come just after it was chosen as a victim.
    pub fn set_mark(&self, bucket: BucketIndex, mark: Mark) -> Result<(), TableError> {
        self.update_hot(bucket, |hot| hot.with_mark(mark)).map(drop)
    }

    /// Sets or clears `GC_MOVE`.
    pub fn set_gc_move(&self, bucket: BucketIndex, gc_move: bool) -> Result<(), TableError> {
        let (_, _, cold) = self.words(bucket)?;
        let _ = Self::update_cold(cold, |cold| Some(cold.with_gc_move(gc_move)));
        Ok(())
    }

    /// Raises the gen of a bucket that the caller owns (`bch_inc_gen`); the new gen, and how far it
    /// is from `last_gc`.
    pub(crate) fn inc_gen(&self, bucket: BucketIndex) -> Result<(Gen, u8), TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        let raised = |cold: Cold| cold.with_gen(cold.bucket_gen().next());
        let now = Self::update_cold(cold, |cold| Some(raised(cold)))
            .map_or_else(|unchanged| unchanged, raised);
        // At the limit it becomes unreclaimable.
        let _stripe = self.stripe(at);
        self.follow(hot, cold);
        Ok((now.bucket_gen(), now.gc_gen()))
    }

    /// Takes a pin: until it is dropped, the bucket is not invalidated and its prio does not age.
    ///
    /// It fails if the bucket was invalidated before. It says nothing of what the bucket holds: who
    /// has a pointer to it takes [`pin_through`](Self::pin_through).
    pub fn pin(&self, bucket: BucketIndex) -> Result<(), TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        let old = Self::update_cold(cold, Cold::pinned).map_err(|is| {
            if is.is_free() {
                TableError::IsFree { bucket }
            } else {
                TableError::PinOverflow { bucket }
            }
        })?;
        self.pinned(at, hot, cold, old);
        Ok(())
    }

    /// Takes a pin through a pointer of gen `ptr_gen`, as whoever reads a cached extent needs it: from
    /// then on what the pointer leads to stays. False, and no pin is taken, if the pointer is stale.
    pub fn pin_through(&self, bucket: BucketIndex, ptr_gen: Gen) -> Result<bool, TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        // The gen rises in the same step in which a bucket becomes free.
        let valid = |cold: Cold| cold.bucket_gen() == ptr_gen && !cold.is_free();
        let pinned = |cold: Cold| if valid(cold) { cold.pinned() } else { None };
        match Self::update_cold(cold, pinned) {
            Ok(old) => {
                self.pinned(at, hot, cold, old);
                Ok(true)
            }
            Err(is) if valid(is) => Err(TableError::PinOverflow { bucket }),
            Err(_) => Ok(false),
        }
    }

    /// A pin was taken on a bucket that was `old` before.
    fn pinned(&self, at: usize, hot: &AtomicU32, cold: &AtomicU32, old: Cold) {
        if old.pins() == 0 {
            let _stripe = self.stripe(at);
            self.follow(hot, cold);
        }
    }

    /// Drops a pin.
    pub fn unpin(&self, bucket: BucketIndex) -> Result<(), TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        let old = Self::update_cold(cold, Cold::unpinned)
            .map_err(|_| TableError::NotPinned { bucket })?;
        if old.pins() == 1 {
            let _stripe = self.stripe(at);
            self.follow(hot, cold);
        }
        Ok(())
    }

    /// Marks a bucket for a key that points to it, as GC does (on-disk-format.md §6.2 steps 1 to 5).
    ///
    /// `key_mark` is what the key makes of an unmarked bucket: Metadata for a btree node, Dirty or
    /// Reclaimable for an extent. Returns how stale the pointer is; a stale one marks nothing.
    pub fn mark_key(
        &self,
        bucket: BucketIndex,
        ptr_gen: Gen,
        key_mark: Mark,
        key_sectors: u16,
    ) -> Result<u8, TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        let _stripe = self.stripe(at);
        let is = Self::update_cold(cold, |cold| {
            (cold.last_gc().gen_after(ptr_gen) != 0).then(|| cold.with_last_gc(ptr_gen))
        })
        .unwrap_or_else(|unchanged| unchanged);
        self.follow(hot, cold);
        let staleness = is.bucket_gen().gen_after(ptr_gen);
        if staleness != 0 {
            return Ok(staleness);
        }
        let word = Hot(hot.load(Ordering::Relaxed));
        let mark = word.mark();
        if mark != Mark::None && (mark == Mark::Metadata) != (key_mark == Mark::Metadata) {
            return Err(TableError::InconsistentMark { bucket, mark, key_mark });
        }
        let mark = if mark == Mark::Dirty { mark } else { key_mark };
        let sectors = word.sectors_used().saturating_add(key_sectors);
        let sectors = sectors.min(crate::units::GC_SECTORS_USED_MAX);
        hot.store(word.with_mark(mark).with_sectors_used(sectors).0, Ordering::Relaxed);
        Ok(0)
    }

    /// Whether `bucket` may be invalidated now (`bch_can_invalidate_bucket`).
    pub fn can_invalidate(&self, bucket: BucketIndex) -> Result<bool, TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        let _stripe = self.stripe(at);
        let valid = self.gc_mark_valid();
        Ok(may_go(Hot(hot.load(Ordering::Relaxed)), Cold(cold.load(Ordering::SeqCst)), valid))
    }

    /// Invalidates `bucket` if that is allowed and `still` holds for its words: gen up, prio Initial,
    /// free, with one pin, which is the list's (on-disk-format.md §9.3).
    ///
    /// This is where a victim that a sweep named from hints is checked against the truth.
    pub(crate) fn try_invalidate(
        &self,
        bucket: BucketIndex,
        still: impl Fn(Hot, Cold) -> bool,
    ) -> Option<Invalidated> {
        let (at, hot, cold) = self.words(bucket).ok()?;
        let _stripe = self.stripe(at);
        let word = Hot(hot.load(Ordering::Relaxed));
        // Whoever starts or ends a GC is kept out by the lock that passes run under.
        let valid = self.gc_mark_valid();
        let old = Self::update_cold(cold, |cold| {
            if !still(word, cold) {
                return None;
            }
            // What is put into it next was not there when a running GC began.
            let invalidated = cold.with_gen(cold.bucket_gen().next()).with_reclaimable_in_gc(false);
            let unchecked = planted::is(Bug::UncheckedVictim);
            (unchecked || may_go(word, cold, valid)).then(|| invalidated.freed())
        })
        .ok()?;
        hot.store(word.with_prio(Prio::INITIAL).with_unreclaimable(true).0, Ordering::Relaxed);
        Some(Invalidated {
            gc_gen: old.gc_gen().wrapping_add(1),
            sectors_used: word.sectors_used(),
        })
    }

    /// Makes a bucket from a reserve what its new owner needs (on-disk-format.md §9.7): the bucket's whole
    /// size in use, marked and with prio for metadata or for data.
    pub(crate) fn allocate(
        &self,
        bucket: BucketIndex,
        bucket_sectors: u16,
        metadata: bool,
    ) -> Result<(), TableError> {
        let (at, hot, cold) = self.words(bucket)?;
        Self::update_cold(cold, |cold| Some(cold.allocated()?.with_gc_move(false)))
            .map_err(|is| TableError::NotFree { bucket, pins: is.pins() })?;
        let (mark, prio) = if metadata {
            (Mark::Metadata, Prio::BTREE)
        } else {
            (Mark::Reclaimable, Prio::INITIAL)
        };
        let word = Hot(0)
            .with_prio(prio)
            .with_mark(mark)
            .with_sectors_used(bucket_sectors)
            .with_unreclaimable(true);
        let _stripe = self.stripe(at);
        hot.store(word.0, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets mark and sectors (`__bch_bucket_free`): the gen stays, so the bucket is used again
    /// only through an invalidation.
    pub(crate) fn free(&self, bucket: BucketIndex) -> Result<(), TableError> {
        self.update_hot(bucket, |hot| hot.with_mark(Mark::None).with_sectors_used(0)).map(drop)
    }

    /// The hot words by position, for a sweep that only reads. Those that are no bucket's are excluded.
    pub(crate) fn hot(&self) -> &[AtomicU32] {
        &self.hot
    }

    /// The hot words of the buckets that can be allocated, in the order of the buckets.
    pub(crate) fn hot_by_bucket(&self) -> impl Iterator<Item = &AtomicU32> {
        (self.first_bucket..self.nbuckets).filter_map(|index| self.hot.get(position_of(index)))
    }

    /// Prio and gen of consecutive buckets from `start`, those before `first_bucket` included, as a
    /// `prio_set` stores them.
    pub fn prios_and_gens(&self, start: u64) -> impl Iterator<Item = (Prio, Gen)> + '_ {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        (start..self.nbuckets).map(position_of).map_while(|at| {
            let (hot, cold) = (self.hot.get(at)?, self.cold.get(at)?);
            let (hot, cold) = (hot.load(Ordering::Relaxed), cold.load(Ordering::SeqCst));
            Some((Hot(hot).prio(), Cold(cold).bucket_gen()))
        })
    }

    /// Fetches the words of `bucket` ahead of their use, so that many misses overlap.
    pub(crate) fn prefetch(&self, bucket: BucketIndex) {
        if let Ok((_, hot, cold)) = self.words(bucket) {
            vector::prefetch(hot);
            vector::prefetch(cold);
        }
    }

    /// Checks that every unreclaimable bit says what its cold word says. Only with nothing else running.
    pub(crate) fn unreclaimable_bits_follow(&self) -> bool {
        let valid = self.gc_mark_valid();
        self.hot.iter().zip(&self.cold).all(|(hot, cold)| {
            let cold = Cold(cold.load(Ordering::SeqCst));
            Hot(hot.load(Ordering::Relaxed)).unreclaimable() == cold.unreclaimable(valid)
        })
    }
}

/// Whether a bucket with these words may be invalidated (on-disk-format.md §6.5).
fn may_go(hot: Hot, cold: Cold, gc_mark_valid: bool) -> bool {
    matches!(hot.mark(), Mark::None | Mark::Reclaimable) && !cold.unreclaimable(gc_mark_valid)
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;

    const BUCKET: BucketIndex = BucketIndex(5);

    fn table() -> BucketTable {
        let table = BucketTable::new(40, 2).unwrap();
        table.gc_finish();
        table
    }

    fn invalidate(table: &BucketTable) -> Option<Invalidated> {
        table.try_invalidate(BUCKET, |_, _| true)
    }

    #[test]
    fn neighbours_have_lines_of_their_own() {
        for start in [0, 100, 5 * SQUARE - 40] {
            let line = |index: usize| position_of(index) / LINE;
            let lines: std::collections::HashSet<_> = (start..start + APART).map(line).collect();
            assert_eq!(lines.len(), APART, "{start}");
        }
        assert!((0..3 * SQUARE).all(|index| index_at(position_of(index)) == index));
        assert!((0..3 * SQUARE).all(|index| position_of(index) / SQUARE == index / SQUARE));
    }

    #[test]
    fn a_chunk_has_one_lock_and_the_next_ones_others() {
        for start in (0..3 * STRIPES).map(|chunk| chunk * CHUNK) {
            assert!((start..start + CHUNK).all(|at| stripe_of(at) == stripe_of(start)));
            let locks: std::collections::HashSet<_> =
                (0..STRIPES).map(|chunk| stripe_of(start + chunk * CHUNK)).collect();
            assert_eq!(locks.len(), STRIPES, "{start}");
        }
        let table = BucketTable::new(100 * CHUNK as u64, 2).unwrap();
        assert!((0..table.hot.len()).all(|at| table.stripe(at).is_some()));
    }

    #[test]
    fn a_bucket_takes_as_many_bytes_as_is_said() {
        let table = table();
        let bytes = size_of_val(table.hot.as_slice()) + size_of_val(table.cold.as_slice());
        assert_eq!(bytes, BucketTable::BYTES_PER_BUCKET * table.hot.len());
    }

    #[test]
    fn the_greatest_distance_of_a_gen_and_how_many_are_as_far() {
        let table = table();
        assert_eq!(table.gc_gens(1), (0, 0));
        for bucket in [5, 5, 5, 6, 7, 7].map(BucketIndex) {
            table.inc_gen(bucket).unwrap();
        }
        assert_eq!([1, 2, 3, 4].map(|high| table.gc_gens(high)), [(3, 3), (3, 2), (3, 1), (3, 0)]);
    }

    #[test]
    fn a_loaded_gen_is_the_last_gc_too() {
        let mut table = table();
        table.inc_gen(BUCKET).unwrap();
        table.load(BUCKET, Prio(77), Gen(200)).unwrap();
        let is = table.bucket(BUCKET).unwrap();
        assert_eq!((is.prio, is.bucket_gen, is.last_gc), (Prio(77), Gen(200), Gen(200)));
        assert_eq!(
            table.hint(BUCKET).map(|(hot, cold)| (hot.prio(), cold.gc_gen())),
            Some((Prio(77), 0))
        );
    }

    #[test]
    fn what_is_no_bucket_is_never_one() {
        let table = BucketTable::new(300, 40).unwrap();
        assert_eq!(table.gc_finish().avail_nbuckets, 260);
        let may_go = |word: &&AtomicU32| !Hot(word.load(Ordering::Relaxed)).excluded();
        assert_eq!(table.hot().iter().filter(may_go).count(), 260);
        assert_eq!(table.hot_by_bucket().filter(may_go).count(), 260);
        assert!(table.unreclaimable_bits_follow());
        let hot = &table.hot[position_of(50)];
        let word = Hot(hot.load(Ordering::Relaxed));
        hot.store(word.with_unreclaimable(!word.unreclaimable()).0, Ordering::Relaxed);
        assert!(!table.unreclaimable_bits_follow());
        hot.store(word.0, Ordering::Relaxed);
        table.gc_start(true);
        assert_eq!(table.hot().iter().filter(may_go).count(), 260);
        let least = table.rescale(std::num::NonZeroU16::MIN);
        assert_eq!(least, u16::MAX, "none has a prio to lose");
        assert_eq!(table.prios_and_gens(290).count(), 10);
        assert_eq!(table.prios_and_gens(400).count(), 0);
    }

    #[test]
    fn a_bucket_is_allocated_once_and_only_if_it_is_free() {
        let table = table();
        assert_eq!(
            table.allocate(BUCKET, 8, false),
            Err(TableError::NotFree { bucket: BUCKET, pins: 0 })
        );
        assert!(invalidate(&table).is_some());
        assert_eq!(table.allocate(BUCKET, 8, true), Ok(()));
        let is = table.bucket(BUCKET).unwrap();
        assert_eq!((is.pins, is.is_free, is.mark), (1, false, Mark::Metadata));
        assert_eq!((is.prio, is.sectors_used), (Prio::BTREE, 8));
        assert_eq!(
            table.allocate(BUCKET, 8, false),
            Err(TableError::NotFree { bucket: BUCKET, pins: 1 })
        );
    }

    #[test]
    fn whoever_is_first_has_the_bucket() {
        let table = table();
        table.pin(BUCKET).unwrap();
        assert_eq!(invalidate(&table), None, "it is pinned");
        table.unpin(BUCKET).unwrap();
        assert!(invalidate(&table).is_some());
        assert_eq!(table.pin(BUCKET), Err(TableError::IsFree { bucket: BUCKET }));
        assert_eq!(table.unpin(BUCKET), Err(TableError::NotPinned { bucket: BUCKET }));
        assert_eq!(invalidate(&table), None, "it is free already");
    }

    #[test]
    fn a_pointer_pins_only_what_it_was_made_for() {
        let table = table();
        let old = table.bucket_gen(BUCKET).unwrap();
        assert_eq!(table.pin_through(BUCKET, old), Ok(true));
        assert_eq!(table.bucket(BUCKET).unwrap().pins, 1);
        assert_eq!(table.can_invalidate(BUCKET), Ok(false));
        table.unpin(BUCKET).unwrap();
        assert_eq!(table.can_invalidate(BUCKET), Ok(true));

        invalidate(&table).unwrap();
        let now = table.bucket_gen(BUCKET).unwrap();
        assert_eq!(now, old.next());
        // Stale, and of a gen that no pointer has yet.
        assert_eq!(table.pin_through(BUCKET, old), Ok(false));
        assert_eq!(table.pin_through(BUCKET, now), Ok(false));
        table.allocate(BUCKET, 8, false).unwrap();
        assert_eq!(table.pin_through(BUCKET, old), Ok(false));
        assert_eq!(table.bucket(BUCKET).unwrap().pins, 1);
        assert_eq!(table.pin_through(BUCKET, now), Ok(true));
        assert_eq!(table.bucket(BUCKET).unwrap().pins, 2);
        while table.pin(BUCKET).is_ok() {}
        assert_eq!(table.pin_through(BUCKET, now), Err(TableError::PinOverflow { bucket: BUCKET }));
        assert_eq!(table.bucket(BUCKET).unwrap().pins, 16382);
    }

    #[test]
    fn an_invalidation_tells_what_the_bucket_held() {
        let table = table();
        table.mark_key(BUCKET, Gen(0), Mark::Reclaimable, 7).unwrap();
        assert_eq!(invalidate(&table), Some(Invalidated { gc_gen: 1, sectors_used: 7 }));
        let other = BucketIndex(6);
        let of_other = table.try_invalidate(other, |_, _| true);
        assert_eq!(of_other, Some(Invalidated { gc_gen: 1, sectors_used: 0 }));
        assert_eq!(table.try_invalidate(BucketIndex(7), |_, _| false), None);
    }
}
