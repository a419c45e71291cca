//! One ordered list of keys out of the sets of a node (docs/on-disk-format.md §5.6).
//!
//! Sets are appended and never changed, so that a key in a newer set hides what it covers of keys
//! in older ones, whatever either points to. The kernel resolves this with a heap over the sets;
//! here neighbouring sets are merged two by two, which gives the same extents.

use crate::layout::bkey::Bkey;
use crate::units::Geometry;

/// Largest size of a key: the field has 16 bits.
const KEY_SIZE_MAX: u64 = 0xFFFF;

/// What sets of extents, oldest first, add up to; keys without a size are dropped.
///
/// Each set must be in order, as sets of a sound node are; what comes out of others is ordered but
/// may still overlap.
pub(crate) fn merge_extent_sets(mut sets: Vec<Vec<Bkey>>) -> Vec<Bkey> {
    for set in &mut sets {
        set.retain(|key| key.size().0 != 0);
    }
    while sets.len() > 1 {
        let mut merged = Vec::with_capacity(sets.len().div_ceil(2));
        let mut rest = sets.into_iter();
        while let Some(older) = rest.next() {
            merged.push(match rest.next() {
                Some(newer) => merge_two(older, newer),
                None => older,
            });
        }
        sets = merged;
    }
    sets.pop().unwrap_or_default()
}

/// `older` with what `newer` covers replaced.
fn merge_two(older: Vec<Bkey>, newer: Vec<Bkey>) -> Vec<Bkey> {
    if newer.is_empty() {
        return older;
    }
    if older.last().is_none_or(|last| newer.first().is_none_or(|new| last.pos() <= new.start_pos()))
    {
        let mut joined = older;
        joined.extend(newer);
        return joined;
    }
    let mut out = Vec::with_capacity(older.len() + newer.len());
    let mut newer = newer.into_iter().peekable();
    for mut key in older {
        loop {
            while let Some(before) = newer.next_if(|new| new.pos() <= key.start_pos()) {
                out.push(before);
            }
            let Some(new) = newer.peek().filter(|new| new.start_pos() < key.pos()) else {
                out.push(key);
                break;
            };
            if key.start_pos() < new.start_pos() {
                let mut front = key;
                front.cut_back(new.start());
                out.push(front);
            }
            if new.pos() >= key.pos() {
                break;
            }
            key.cut_front(new.offset());
        }
    }
    out.extend(newer);
    out
}

/// Joins neighbours that continue each other, on the volume and on the cache, as the kernel does
/// whenever it sorts a node (`bch_extent_merge`).
pub(crate) fn join_neighbours(keys: &mut Vec<Bkey>, geometry: &Geometry) {
    keys.dedup_by(|next, last| try_join(last, next, geometry));
}

pub(crate) fn try_join(last: &mut Bkey, next: &mut Bkey, geometry: &Geometry) -> bool {
    let same_kind = last.pos() == next.start_pos()
        && last.dirty() == next.dirty()
        && last.csum() == next.csum()
        && last.ptrs_count() == next.ptrs_count();
    if !same_kind {
        return false;
    }
    let (size, added) = (last.size().0, next.size().0);
    let continued = last
        .ptrs()
        .iter()
        .zip(next.ptrs())
        .all(|(l, n)| l.advanced(size) == *n && l.bucket(geometry) == n.bucket(geometry));
    if !continued {
        return false;
    }
    if size + added > KEY_SIZE_MAX {
        let room = KEY_SIZE_MAX - size;
        last.extend_by(room);
        next.cut_front(last.offset());
        return false;
    }
    last.extend_by(added);
    true
}

/// The keys of an interior node's sets, oldest first, in order; of equal keys the newest comes
/// first. None hides another: which child is the current one, the gens of the pointers tell.
pub(crate) fn merge_interior_sets(sets: Vec<Vec<Bkey>>) -> Vec<Bkey> {
    let mut keys: Vec<Bkey> = sets.into_iter().rev().flatten().collect();
    keys.sort_by_key(Bkey::pos);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::bkey::Ptr;
    use crate::units::{Gen, Sectors};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const VOLUME_SECTORS: u64 = 96;

    /// A set as nodes hold them: ordered, without overlaps.
    fn set(serial: u64) -> impl Strategy<Value = Vec<Bkey>> {
        let spans =
            prop::collection::vec((0u64..12, 0u64..12, any::<bool>(), any::<bool>()), 0..12);
        spans.prop_map(move |spans| {
            let mut keys = Vec::new();
            let mut at = 0;
            for (index, (skip, size, dirty, hole)) in (0u64..).zip(spans) {
                let end = at + skip + size;
                if end > VOLUME_SECTORS {
                    break;
                }
                let ptr = Ptr::new(Gen(0), Sectors((serial * 64 + index) * 4096), 0);
                let key = Bkey::new(1, end, u16::try_from(size).unwrap()).with_dirty(dirty);
                keys.push(if hole { key } else { key.with_ptrs(&[ptr]) });
                at = end;
            }
            keys
        })
    }

    fn sets() -> impl Strategy<Value = Vec<Vec<Bkey>>> {
        (0usize..6).prop_flat_map(|count| (0..count as u64).map(set).collect::<Vec<_>>())
    }

    /// Where each sector of the volume lies and whether it is dirty; `None` for a hole.
    type Sectorwise = BTreeMap<u64, (Option<u64>, bool)>;

    fn sectorwise(keys: &[Bkey]) -> Sectorwise {
        let mut map = Sectorwise::new();
        for key in keys {
            for i in 0..key.size().0 {
                let place = key.ptrs().first().map(|ptr| ptr.offset().0 + i);
                map.insert(key.start() + i, (place, key.dirty()));
            }
        }
        map
    }

    fn model(sets: &[Vec<Bkey>]) -> Sectorwise {
        let mut map = Sectorwise::new();
        for set in sets {
            map.extend(sectorwise(set));
        }
        map
    }

    proptest! {
        #[test]
        fn newer_sets_win_sector_by_sector(sets in sets()) {
            let geometry = Geometry::new(1024, 1, Sectors(1 << 20), Sectors(8)).unwrap();
            let expected = model(&sets);
            let mut merged = merge_extent_sets(sets);
            prop_assert!(merged.windows(2).all(|w| w[0].pos() <= w[1].start_pos()), "{merged:?}");
            prop_assert!(merged.iter().all(|key| key.size().0 > 0));
            prop_assert_eq!(&sectorwise(&merged), &expected);
            let before = merged.len();
            join_neighbours(&mut merged, &geometry);
            prop_assert!(merged.len() <= before);
            prop_assert_eq!(&sectorwise(&merged), &expected);
        }

        #[test]
        fn any_keys_come_out_ordered_or_at_least_come_out(
            sets in prop::collection::vec(
                prop::collection::vec((0u32..3, any::<u64>(), any::<u16>()), 0..8), 0..5),
        ) {
            let sets: Vec<Vec<Bkey>> = sets
                .into_iter()
                .map(|set| set.into_iter().map(|(i, o, s)| Bkey::new(i, o, s)).collect())
                .collect();
            let total: usize = sets.iter().map(Vec::len).sum();
            let merged = merge_extent_sets(sets.clone());
            // Each key of a newer set can split at most one older key in two.
            prop_assert!(merged.len() <= total * 2 * 5);
            prop_assert_eq!(merge_interior_sets(sets).len(), total);
        }
    }

    #[test]
    fn interior_keys_keep_their_equals_newest_first() {
        let key = |offset, place| {
            Bkey::new(1, offset, 8).with_ptrs(&[Ptr::new(Gen(0), Sectors(place), 0)])
        };
        let merged = merge_interior_sets(vec![vec![key(8, 1), key(16, 2)], vec![key(16, 3)]]);
        let places: Vec<u64> = merged.iter().map(|key| key.ptrs()[0].offset().0).collect();
        assert_eq!(places, [1, 3, 2]);
    }

    #[test]
    fn joining_respects_buckets_and_the_size_field() {
        let geometry = Geometry::new(1024, 1, Sectors(1024), Sectors(8)).unwrap();
        let key = |end, size, place| {
            Bkey::new(1, end, size).with_ptrs(&[Ptr::new(Gen(0), Sectors(place), 0)])
        };
        let mut keys = vec![key(8, 8, 2040), key(16, 8, 2048), key(24, 8, 2056)];
        join_neighbours(&mut keys, &geometry);
        assert_eq!(keys, [key(8, 8, 2040), key(24, 16, 2048)]);
        let hole = |end, size| Bkey::new(1, end, size);
        let mut keys = vec![hole(65_000, 65_000), hole(130_000, 65_000)];
        join_neighbours(&mut keys, &geometry);
        assert_eq!(keys, [hole(65_535, 65_535), hole(130_000, 64_465)]);
    }
}
