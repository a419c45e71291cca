//! The keys that journal replay would insert, as they lie over the btree.
//!
//! The btree on the device lags behind: what the kernel shows after registration is the btree with
//! the replay range's keys inserted in their order, each hiding what it covers of older ones, also
//! where it points nowhere (docs/on-disk-format.md §2.4).

use std::collections::BTreeMap;

use crate::layout::bkey::Bkey;

/// The extents that replay leaves visible, in order and without overlaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    extents: Vec<Bkey>,
    /// The entry that each extent comes from.
    seqs: Vec<u64>,
}

impl Overlay {
    /// From keys in the order of their insertion, each with its entry's sequence number. Keys that
    /// cannot be extents are left out.
    pub fn new(keys: impl Iterator<Item = (u64, Bkey)>) -> Self {
        // By inode and end, so that the first entry past a start is the first that can overlap.
        let mut map = Map::new();
        for (seq, key) in keys.filter(|(_, key)| key.size().0 > 0 && key.size().0 <= key.offset()) {
            insert(&mut map, seq, key);
        }
        let (extents, seqs) = map.into_values().unzip();
        Self { extents, seqs }
    }

    /// The extents.
    pub fn extents(&self) -> &[Bkey] {
        &self.extents
    }

    /// The same, each with the sequence number of its entry.
    pub(crate) fn extents_with_seq(&self) -> impl Iterator<Item = (u64, &Bkey)> {
        self.seqs.iter().copied().zip(&self.extents)
    }

    /// One extent in order, with the sequence number of its entry; `None` past the last.
    pub(crate) fn get(&self, index: usize) -> Option<(u64, &Bkey)> {
        self.seqs.get(index).copied().zip(self.extents.get(index))
    }

    /// Whether replay inserts nothing.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Index of the first extent that ends after `start` of `inode`.
    fn first_after(&self, inode: u32, start: u64) -> usize {
        self.extents.partition_point(|key| (key.inode(), key.offset()) <= (inode, start))
    }

    /// The extents that overlap `[start, end)` of `inode`, uncut.
    pub(crate) fn overlapping(
        &self,
        inode: u32,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = &Bkey> {
        self.overlapping_with_seq(inode, start, end).map(|(_, key)| key)
    }

    /// The same, each with the sequence number of its entry.
    pub(crate) fn overlapping_with_seq(
        &self,
        inode: u32,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = (u64, &Bkey)> {
        let first = self.first_after(inode, start);
        let seqs = self.seqs.get(first..).unwrap_or_default().iter().copied();
        seqs.zip(self.extents.get(first..).unwrap_or_default())
            .take_while(move |(_, key)| key.inode() == inode && key.start() < end)
    }

    /// Where the first extent begins that ends after `start` of `inode`; past every sector when there
    /// is none. What lies between the two is as the btree has it.
    pub(crate) fn clear_up_to(&self, inode: u32, start: u64) -> u64 {
        let next = self.extents.get(self.first_after(inode, start));
        next.filter(|key| key.inode() == inode).map_or(u64::MAX, Bkey::start)
    }

    /// What is left visible of `key`, an extent of the btree: told piece by piece.
    pub fn visible(&self, key: &Bkey, piece: &mut impl FnMut(&Bkey)) {
        let mut rest = *key;
        for above in self.overlapping(key.inode(), key.start(), key.offset()) {
            if rest.start() < above.start() {
                let mut front = rest;
                front.cut_back(above.start());
                piece(&front);
            }
            rest.cut_front(above.offset());
            if rest.size().0 == 0 {
                return;
            }
        }
        piece(&rest);
    }
}

/// Extents and their entries' sequence numbers by inode and end.
type Map = BTreeMap<(u32, u64), (Bkey, u64)>;

fn insert(map: &mut Map, seq: u64, key: Bkey) {
    let inode = key.inode();
    let overlapped: Vec<(Bkey, u64)> = map
        .range((inode, key.start().saturating_add(1))..)
        .map(|(_, old)| *old)
        .take_while(|(old, _)| old.inode() == inode && old.start() < key.offset())
        .collect();
    for (old, old_seq) in overlapped {
        map.remove(&(inode, old.offset()));
        if old.start() < key.start() {
            let mut front = old;
            front.cut_back(key.start());
            map.insert((inode, front.offset()), (front, old_seq));
        }
        if old.offset() > key.offset() {
            let mut tail = old;
            tail.cut_front(key.offset());
            map.insert((inode, tail.offset()), (tail, old_seq));
        }
    }
    map.insert((inode, key.offset()), (key, seq));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::bkey::Ptr;
    use crate::units::{Gen, Sectors};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn keys() -> impl Strategy<Value = Vec<Bkey>> {
        let one = (0u32..3, 0u64..60, 1u16..20, any::<bool>());
        prop::collection::vec(one, 0..20).prop_map(|keys| {
            (0u64..)
                .zip(keys)
                .map(|(serial, (inode, start, size, hole))| {
                    let key = Bkey::new(inode, start + u64::from(size), size);
                    let ptr = Ptr::new(Gen(0), Sectors(serial * 4096), 0);
                    if hole { key } else { key.with_ptrs(&[ptr]) }
                })
                .collect()
        })
    }

    type Sectorwise = BTreeMap<(u32, u64), Option<u64>>;

    fn add(map: &mut Sectorwise, key: &Bkey) {
        for i in 0..key.size().0 {
            let place = key.ptrs().first().map(|ptr| ptr.offset().0 + i);
            map.insert((key.inode(), key.start() + i), place);
        }
    }

    proptest! {
        #[test]
        fn later_keys_win_and_the_rest_of_the_btree_stays(replay in keys(), below in keys()) {
            let overlay = Overlay::new((0..).zip(replay.iter().copied()));
            let mut expected = Sectorwise::new();
            for key in &replay {
                add(&mut expected, key);
            }
            let mut found = Sectorwise::new();
            for key in overlay.extents() {
                add(&mut found, key);
            }
            prop_assert_eq!(&found, &expected);
            // Each extent is a part of the key whose number it bears.
            for extent in overlay.extents() {
                let (inode, start, end) = (extent.inode(), extent.start(), extent.offset());
                let (seq, _) = overlay.overlapping_with_seq(inode, start, end).next().unwrap();
                let key = &replay[usize::try_from(seq).unwrap()];
                prop_assert_eq!(key.inode(), inode);
                prop_assert!(key.start() <= start && end <= key.offset());
            }
            let sectors: u64 = overlay.extents().iter().map(|key| key.size().0).sum();
            prop_assert_eq!(sectors, expected.len() as u64, "extents overlap");
            for key in below {
                let mut visible = Sectorwise::new();
                overlay.visible(&key, &mut |piece| add(&mut visible, piece));
                let mut wanted = Sectorwise::new();
                add(&mut wanted, &key);
                wanted.retain(|sector, _| !expected.contains_key(sector));
                prop_assert_eq!(visible, wanted);
            }
        }
    }

    #[test]
    fn impossible_keys_are_left_out() {
        let overlay = Overlay::new([(1, Bkey::new(0, 4, 8)), (2, Bkey::new(0, 4, 0))].into_iter());
        assert!(overlay.is_empty());
    }
}
