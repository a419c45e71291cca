//! Where the data of the backing devices is in the cache: what the btree is to a running set.
//!
//! Extents are kept by *chunks* of a device, 1024 sectors each, in the order of their first sector. A
//! chunk is found by a hash, an extent in it by bisection, so that a request costs the same whatever
//! the size of the cache, and memory goes by the extents that are cached, not by the address space.
//!
//! Extents whose bucket has been used again stay until they are overwritten or a GC drops them, as
//! the keys of the btree do. Whoever looks up compares gens.

use rustc_hash::FxHashMap;

use crate::units::{BucketIndex, Gen};

/// Sectors of a chunk.
const CHUNK_SECTORS: u64 = 1024;
const CHUNK_SHIFT: u32 = 10;
/// Bits of a chunk's number: the sectors of a key are 48 bits.
const CHUNK_BITS: u32 = 48;

/// Where sectors of a volume are in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The bucket. The allocator numbers no more than 2^32.
    bucket: u32,
    /// First sector in the bucket.
    offset: u32,
    /// First sector in the chunk.
    start: u16,
    /// Sectors.
    sectors: u16,
    bucket_gen: Gen,
    dirty: bool,
}

impl Extent {
    const fn end(&self) -> u16 {
        self.start + self.sectors
    }

    /// The bucket that it is in.
    pub fn bucket(&self) -> BucketIndex {
        BucketIndex(u64::from(self.bucket))
    }

    /// The gen that the bucket had when it was written.
    pub const fn bucket_gen(&self) -> Gen {
        self.bucket_gen
    }

    /// First sector in the bucket.
    pub const fn offset(&self) -> u32 {
        self.offset
    }

    /// Sectors.
    pub const fn sectors(&self) -> u16 {
        self.sectors
    }

    /// Whether the data is in the cache only.
    pub const fn dirty(&self) -> bool {
        self.dirty
    }

    /// The part of it from `from` to `to`, in sectors of its chunk.
    const fn cut(self, from: u16, to: u16) -> Self {
        let skipped = from - self.start;
        Self { offset: self.offset + skipped as u32, start: from, sectors: to - from, ..self }
    }

    /// Whether `next` goes on where this ends, on the volume and in the bucket.
    fn goes_on_in(&self, next: &Self) -> bool {
        self.end() == next.start
            && self.bucket == next.bucket
            && self.bucket_gen == next.bucket_gen
            && self.dirty == next.dirty
            && self.offset + u32::from(self.sectors) == next.offset
    }
}

/// What was put where, for [`ExtentIndex::insert`].
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// The bucket.
    pub bucket: BucketIndex,
    /// Its gen.
    pub bucket_gen: Gen,
    /// First sector in the bucket.
    pub offset: u32,
    /// The data is not on the backing device.
    pub dirty: bool,
}

/// The extents of a cache set.
#[derive(Clone, Debug, Default)]
pub struct ExtentIndex {
    chunks: FxHashMap<u64, Vec<Extent>>,
    extents: u64,
}

fn chunk_id(inode: u16, chunk: u64) -> u64 {
    (u64::from(inode) << CHUNK_BITS) | (chunk & ((1 << CHUNK_BITS) - 1))
}

/// The chunks of a range: id, and first and end sector in the chunk.
fn pieces(inode: u16, sector: u64, sectors: u64) -> impl Iterator<Item = (u64, u16, u16)> {
    let end = sector.saturating_add(sectors);
    let last = if sectors == 0 { sector >> CHUNK_SHIFT } else { (end - 1) >> CHUNK_SHIFT };
    ((sector >> CHUNK_SHIFT)..=last).map(move |chunk| {
        let first = chunk << CHUNK_SHIFT;
        let within = |at: u64| u16::try_from(at.clamp(first, first + CHUNK_SECTORS) - first);
        (chunk_id(inode, chunk), within(sector).unwrap_or(0), within(end).unwrap_or(0))
    })
}

impl ExtentIndex {
    /// Extents in it, stale ones too.
    pub const fn len(&self) -> u64 {
        self.extents
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.extents == 0
    }

    /// Tells `each` of every piece of a range, in order: how many sectors, and the extent that holds
    /// them, cut to the range, unless it is a gap. What `is_stale` says of an extent makes it a gap.
    pub fn lookup(
        &self,
        inode: u16,
        sector: u64,
        sectors: u32,
        is_stale: impl Fn(&Extent) -> bool,
        mut each: impl FnMut(u64, Option<Extent>),
    ) {
        for (id, from, to) in pieces(inode, sector, u64::from(sectors)) {
            let extents = self.chunks.get(&id).map_or(&[][..], Vec::as_slice);
            let first = extents.partition_point(|extent| extent.end() <= from);
            let mut at = from;
            for extent in extents.iter().skip(first).take_while(|extent| extent.start < to) {
                if is_stale(extent) {
                    continue;
                }
                if extent.start > at {
                    each(u64::from(extent.start - at), None);
                    at = extent.start;
                }
                let end = extent.end().min(to);
                each(u64::from(end - at), Some(extent.cut(at, end)));
                at = end;
            }
            if at < to {
                each(u64::from(to - at), None);
            }
        }
    }

    /// Says where `sectors` at `sector` are now; the dirty sectors that this replaces.
    pub fn insert(&mut self, inode: u16, sector: u64, sectors: u32, placed: &Placed) -> u64 {
        let mut replaced = 0;
        let mut offset = placed.offset;
        for (id, from, to) in pieces(inode, sector, u64::from(sectors)) {
            let new = Extent {
                bucket: u32::try_from(placed.bucket.0).unwrap_or(u32::MAX),
                offset,
                start: from,
                sectors: to - from,
                bucket_gen: placed.bucket_gen,
                dirty: placed.dirty,
            };
            offset += u32::from(to - from);
            let extents = self.chunks.entry(id).or_default();
            let before = extents.len() as u64;
            replaced += replace(extents, from, to, Some(new));
            self.extents = (self.extents + extents.len() as u64).saturating_sub(before);
        }
        replaced
    }

    /// Forgets a range; the dirty sectors that were in it.
    pub fn remove(&mut self, inode: u16, sector: u64, sectors: u32) -> u64 {
        let mut dropped = 0;
        for (id, from, to) in pieces(inode, sector, u64::from(sectors)) {
            let Some(extents) = self.chunks.get_mut(&id) else { continue };
            let before = extents.len() as u64;
            dropped += replace(extents, from, to, None);
            self.extents = (self.extents + extents.len() as u64).saturating_sub(before);
            if extents.is_empty() {
                self.chunks.remove(&id);
            }
        }
        dropped
    }

    /// Shows every extent to `keep` and drops those that it does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(&Extent) -> bool) {
        let mut left = 0;
        self.chunks.retain(|_, extents| {
            extents.retain(&mut keep);
            left += extents.len() as u64;
            if extents.capacity() > 4 * extents.len() {
                extents.shrink_to_fit();
            }
            !extents.is_empty()
        });
        self.extents = left;
    }

    /// Makes the dirty extents of a chunk clean, `limit` sectors or what an extent holds more; the
    /// sectors that became clean, and whether dirty ones are left in the chunk.
    pub(super) fn clean_chunk(&mut self, id: u64, limit: u64) -> (u64, bool) {
        let mut cleaned = 0;
        let Some(extents) = self.chunks.get_mut(&id) else { return (0, false) };
        for extent in extents.iter_mut().filter(|extent| extent.dirty) {
            if cleaned >= limit {
                return (cleaned, true);
            }
            extent.dirty = false;
            cleaned += u64::from(extent.sectors);
        }
        (cleaned, false)
    }

    /// The ids of the chunks that a range touches, in the order of the index.
    pub(super) fn chunk_ids(inode: u16, sector: u64, sectors: u32) -> impl Iterator<Item = u64> {
        pieces(inode, sector, u64::from(sectors)).map(|(id, _, _)| id)
    }
}

/// Puts `new` in place of what is between `from` and `to`; the dirty sectors that were there.
fn replace(extents: &mut Vec<Extent>, from: u16, to: u16, new: Option<Extent>) -> u64 {
    let first = extents.partition_point(|extent| extent.end() <= from);
    let mut dirty = 0;
    let (mut left, mut right) = (None, None);
    let mut last = first;
    for extent in extents.iter().skip(first).take_while(|extent| extent.start < to) {
        last += 1;
        if extent.start < from {
            left = Some(extent.cut(extent.start, from));
        }
        if extent.end() > to {
            right = Some(extent.cut(to, extent.end()));
        }
        if extent.dirty {
            dirty += u64::from(extent.end().min(to) - extent.start.max(from));
        }
    }
    if let Some(new) = new {
        // Adjacent keys that are adjacent in the bucket become one, as in a bset.
        let before = first.checked_sub(1).and_then(|at| extents.get_mut(at));
        if let (0, None, Some(before)) = (last - first, left, before) {
            if before.goes_on_in(&new) {
                before.sectors += new.sectors;
                return dirty;
            }
        }
        if first == last {
            extents.insert(first, new);
            return dirty;
        }
    }
    let with = [left, new, right];
    extents.splice(first..last, with.into_iter().flatten());
    dirty
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACE: u64 = 3 * CHUNK_SECTORS;

    #[derive(Clone, Debug)]
    enum Step {
        Insert { sector: u64, sectors: u32, bucket: u64, offset: u32, dirty: bool },
        Remove { sector: u64, sectors: u32 },
        Retain { bucket: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = || (0..SPACE, 1..1500u32);
        let step = prop_oneof![
            4 => (range(), 0..6u64, 0..4u32, any::<bool>()).prop_map(
                |((sector, sectors), bucket, at, dirty)| {
                    Step::Insert { sector, sectors, bucket, offset: at * 64, dirty }
                }
            ),
            2 => range().prop_map(|(sector, sectors)| Step::Remove { sector, sectors }),
            1 => (0..6u64).prop_map(|bucket| Step::Retain { bucket }),
        ];
        prop::collection::vec(step, 1..40)
    }

    /// What one sector is: bucket, sector in it, dirty.
    type Cell = Option<(u64, u32, bool)>;

    fn contents(index: &ExtentIndex, inode: u16) -> Vec<Cell> {
        let mut cells = Vec::new();
        index.lookup(
            inode,
            0,
            u32::try_from(2 * SPACE).unwrap(),
            |_| false,
            |sectors, extent| {
                for at in 0..u32::try_from(sectors).unwrap() {
                    cells.push(extent.map(|it| (it.bucket().0, it.offset() + at, it.dirty())));
                }
            },
        );
        cells
    }

    proptest! {
        #[test]
        fn it_is_an_array_of_sectors(steps in steps()) {
            let mut index = ExtentIndex::default();
            let mut plain: Vec<Cell> = vec![None; usize::try_from(2 * SPACE).unwrap()];
            for step in steps {
                let range = |sector: u64, sectors: u32| {
                    let from = usize::try_from(sector).unwrap();
                    from..from + usize::try_from(sectors).unwrap()
                };
                let dirty = |cells: &[Cell]| {
                    cells.iter().filter(|cell| cell.is_some_and(|(.., dirty)| dirty)).count() as u64
                };
                match step {
                    Step::Insert { sector, sectors, bucket, offset, dirty: is_dirty } => {
                        let cells = &mut plain[range(sector, sectors)];
                        let placed = Placed {
                            bucket: BucketIndex(bucket), bucket_gen: Gen(0), offset, dirty: is_dirty,
                        };
                        prop_assert_eq!(index.insert(1, sector, sectors, &placed), dirty(cells));
                        for (cell, at) in cells.iter_mut().zip(offset..) {
                            *cell = Some((bucket, at, is_dirty));
                        }
                    }
                    Step::Remove { sector, sectors } => {
                        let cells = &mut plain[range(sector, sectors)];
                        prop_assert_eq!(index.remove(1, sector, sectors), dirty(cells));
                        cells.fill(None);
                    }
                    Step::Retain { bucket } => {
                        index.retain(|extent| extent.bucket().0 != bucket);
                        for cell in &mut plain {
                            if cell.is_some_and(|(of, ..)| of == bucket) {
                                *cell = None;
                            }
                        }
                    }
                }
                prop_assert_eq!(&contents(&index, 1), &plain);
                prop_assert!(contents(&index, 0).iter().all(Option::is_none));
                let extents: usize = index.chunks.values().map(Vec::len).sum();
                prop_assert_eq!(index.len(), extents as u64);
            }
        }
    }

    #[test]
    fn a_stream_is_one_extent_a_chunk() {
        let mut index = ExtentIndex::default();
        for at in 0..256u32 {
            let placed =
                Placed { bucket: BucketIndex(9), bucket_gen: Gen(1), offset: at * 8, dirty: false };
            index.insert(0, u64::from(at) * 8, 8, &placed);
        }
        assert_eq!(index.len(), 2);
        let mut gaps = 0;
        index.lookup(
            0,
            100,
            300,
            |_| true,
            |sectors, extent| {
                assert_eq!(extent, None, "stale");
                gaps += sectors;
            },
        );
        assert_eq!(gaps, 300);
    }
}
