//! All extents of a cache set in order, as the kernel has them once replay is over.
//!
//! The leaves come in the order of their keys, and the journal's keys are laid over them as the walk
//! goes: nothing is kept but the nodes on the way. A key of the journal hides what it covers of the
//! btree, whatever its own state; so stale keys and holes take part in that before anybody leaves
//! them out (docs/on-disk-format.md §2.4, §5.6).

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::cache_set::btree::node::{NodeReadError, node_ptr};
use crate::cache_set::btree::{ReadNode, WalkHandler, WalkOptions, walk};
use crate::cache_set::problem::KeySource;
use crate::cache_set::{CacheSet, KeyState};
use crate::layout::bkey::{Bkey, Pos};
use crate::layout::bset::NodeErrorAt;
use crate::units::BucketIndex;

/// What comes next.
#[derive(Debug)]
pub enum Found<'a> {
    /// An extent, cut to what newer keys leave of it. It overlaps none of the others.
    Extent {
        /// The key.
        key: &'a Bkey,
        /// What becomes of it, judged by the gens of the whole set.
        state: KeyState,
        /// Where it stands.
        origin: KeySource,
    },
    /// Keys are missing here: a node is damaged or could not be read. What is sound of it follows.
    Missing(Missing),
    /// A key of the btree that starts before the one ahead of it ends: the btree is damaged. It is
    /// left out.
    OutOfOrder {
        /// The key.
        key: &'a Bkey,
        /// Where the key ahead of it ended.
        end: Pos,
    },
}

/// A stretch of the btree of which keys are missing.
#[derive(Debug)]
pub struct Missing {
    /// Keys that end after this position are missing.
    pub from: Pos,
    /// Up to this position: the node's own key.
    pub to: Pos,
    /// Level of the node.
    pub level: u16,
    /// Bucket of the node.
    pub bucket: BucketIndex,
    /// What is wrong with it.
    pub error: MissingError,
}

/// Why keys of a node are missing.
#[derive(Debug, thiserror::Error)]
pub enum MissingError {
    /// The node could not be read.
    #[error(transparent)]
    Unreadable(#[from] NodeReadError),
    /// The kernel drops the node. Keys of its sound sets are told.
    #[error(transparent)]
    Damaged(#[from] NodeErrorAt),
    /// The pointer to it leads back to a node that was there before.
    #[error("reached a second time")]
    Revisited,
}

/// Tells all extents of `set` in the order of their volumes and sectors, until `found` breaks.
///
/// Beside one node for each level, it takes the memory that `options` allow for reading ahead.
pub(super) fn for_each(
    set: &CacheSet<'_>,
    options: &WalkOptions,
    found: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
) {
    let mut stream = Stream {
        set,
        found,
        end: None,
        above: 0,
        bound: None,
        missing_to: Pos::ZERO,
        visited: HashSet::new(),
        done: false,
    };
    if set.root.is_valid_btree_ptr(set.geometry()) {
        stream.visited.insert(node_ptr(&set.root).bucket(set.geometry()));
        walk(&set.cache, &set.root, set.btree.depth, options, &mut stream);
    }
    stream.finish();
}

struct Stream<'s, 'd, 'f> {
    set: &'s CacheSet<'d>,
    found: &'f mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    /// Where the last extent of the btree ended.
    end: Option<Pos>,
    /// Index of the next extent of the overlay that was not told.
    above: usize,
    /// The own key of the last node whose range is done.
    bound: Option<Pos>,
    /// Where the stretches of missing nodes that were told end.
    missing_to: Pos,
    visited: HashSet<BucketIndex>,
    done: bool,
}

impl Stream<'_, '_, '_> {
    fn tell(&mut self, found: Found<'_>) {
        if !self.done {
            self.done = (self.found)(found).is_break();
        }
    }

    fn extent(&mut self, key: &Bkey, origin: KeySource) {
        let state = self.set.key_state(key, 0);
        self.tell(Found::Extent { key, state, origin });
    }

    fn next_above(&self) -> Option<(u64, Bkey)> {
        self.set.overlay.get(self.above).map(|(seq, key)| (seq, *key))
    }

    fn tell_above(&mut self, seq: u64, key: &Bkey) {
        self.above += 1;
        self.extent(key, KeySource::Journal { seq });
    }

    /// Tells the extents of the overlay that end at or before `start`.
    fn above_up_to(&mut self, start: Pos) {
        while let Some((seq, key)) = self.next_above().filter(|(_, key)| key.pos() <= start) {
            if self.done {
                return;
            }
            self.tell_above(seq, &key);
        }
    }

    /// One key of a leaf, with what lies over it.
    fn leaf_key(&mut self, key: &Bkey, origin: KeySource) {
        if key.size().0 == 0 {
            return;
        }
        if let Some(end) = self.end.filter(|&end| key.start_pos() < end) {
            self.tell(Found::OutOfOrder { key, end });
            return;
        }
        self.end = Some(key.pos());
        self.above_up_to(key.start_pos());
        let mut rest = *key;
        while let Some((seq, above)) = self.next_above() {
            if self.done || above.inode() != rest.inode() || above.start() >= rest.offset() {
                break;
            }
            if rest.start() < above.start() {
                let mut front = rest;
                front.cut_back(above.start());
                self.extent(&front, origin);
            }
            let ends_within = above.offset() <= rest.offset();
            rest.cut_front(above.offset());
            if ends_within {
                self.tell_above(seq, &above);
            }
            if rest.size().0 == 0 {
                return;
            }
        }
        self.extent(&rest, origin);
    }

    fn finish(&mut self) {
        while let Some((seq, key)) = self.next_above().filter(|_| !self.done) {
            self.tell_above(seq, &key);
        }
    }

    fn missing(&mut self, key: &Bkey, level: u16, error: MissingError) {
        let (mut from, to) = (self.bound.unwrap_or(Pos::ZERO), key.pos());
        // Behind a damaged node of which no child told where it ends. A node below one is within it.
        if self.missing_to < to {
            from = from.max(self.missing_to);
            self.missing_to = to;
        }
        let bucket = node_ptr(key).bucket(self.set.geometry());
        self.tell(Found::Missing(Missing { from, to, level, bucket, error }));
    }
}

impl WalkHandler for Stream<'_, '_, '_> {
    fn node(&mut self, key: &Bkey, level: u16, node: ReadNode<'_>) -> ControlFlow<()> {
        match node {
            Err(error) => {
                self.missing(key, level, error.into());
                self.bound = Some(key.pos());
            }
            Ok(node) => {
                if let Some(error) = node.error {
                    self.missing(key, level, error.into());
                }
                if level == 0 {
                    let origin =
                        KeySource::Btree { level, node: node_ptr(key).bucket(self.set.geometry()) };
                    for key in node.keys.iter() {
                        if self.done {
                            break;
                        }
                        self.leaf_key(&key, origin);
                    }
                    self.bound = Some(key.pos());
                }
            }
        }
        if self.done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn follow(&mut self, key: &Bkey, child_level: u16) -> bool {
        if key.is_zero_key() || !self.set.table.is_usable(key, self.set.geometry()) {
            return false;
        }
        let first_time = self.visited.insert(node_ptr(key).bucket(self.set.geometry()));
        if !first_time {
            self.missing(key, child_level, MissingError::Revisited);
        }
        first_time
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::cache_set::testkit::SetBuilder;
    use crate::cache_set::{CacheDevice, NoVisitor, ReadOptions};
    use crate::device::testkit::MemoryDevice;
    use crate::device::{BlockDevice, ReadDevice};
    use crate::layout::bkey::Ptr;
    use crate::units::{Gen, Sectors};

    /// Extents in order without overlaps: gap, length, hole, stale, dirty.
    fn btree() -> impl Strategy<Value = Vec<(u64, u16, bool, bool)>> {
        prop::collection::vec(
            (0u64..40, 1u16..30, any::<bool>(), prop::bool::weighted(0.2)),
            0..120,
        )
    }

    fn journal() -> impl Strategy<Value = Vec<(u32, u64, u16, bool, bool, bool)>> {
        let one = (
            0u32..3,
            0u64..2000,
            1u16..60,
            any::<bool>(),
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.2),
        );
        prop::collection::vec(one, 0..40)
    }

    fn key(inode: u32, start: u64, size: u16, dirty: bool, stale: bool, serial: u64) -> Bkey {
        let bucket_gen = if stale { Gen(0) } else { Gen(1) };
        let sector = 64 * (20 + serial % 900) + serial % 4;
        Bkey::new(inode, start + u64::from(size), size)
            .with_ptrs(&[Ptr::new(bucket_gen, Sectors(sector), 0)])
            .with_dirty(dirty)
    }

    type Sectorwise = BTreeMap<(u32, u64), (Option<Ptr>, bool)>;

    fn put(map: &mut Sectorwise, key: &Bkey) {
        for i in 0..key.size().0 {
            let ptr = key.ptrs().first().map(|ptr| ptr.advanced(i));
            map.insert((key.inode(), key.start() + i), (ptr, key.dirty()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Sector by sector what the btree and then the journal put there, in order.
        #[test]
        fn the_stream_is_btree_and_journal_in_order(
            below in [btree(), btree()], above in journal(), per_entry in 1usize..9,
        ) {
            let mut expected = Sectorwise::new();
            let (mut keys, mut serial) = (Vec::new(), 0);
            for (inode, extents) in (0u32..).zip(&below) {
                let mut at = 0;
                for &(gap, size, dirty, stale) in extents {
                    at += gap;
                    keys.push(key(inode, at, size, dirty, stale, serial));
                    at += u64::from(size);
                    serial += 1;
                }
            }
            let replayed: Vec<Bkey> = above
                .iter()
                .map(|&(inode, start, size, dirty, stale, hole)| {
                    serial += 1;
                    let whole = key(inode, start, size, dirty, stale, serial);
                    if hole { Bkey::new(inode, whole.offset(), size) } else { whole }
                })
                .collect();
            keys.iter().chain(&replayed).for_each(|key| put(&mut expected, key));
            let builder = SetBuilder {
                nbuckets: 1024,
                journal: std::iter::once(Vec::new())
                    .chain(replayed.chunks(per_entry).map(<[Bkey]>::to_vec))
                    .collect(),
                ..SetBuilder::default()
            };
            let device = MemoryDevice::new(builder.nbuckets * builder.bucket_size.bytes());
            builder.write(&device, keys.iter().copied()).unwrap();
            let cache = CacheDevice::open(&device).unwrap();
            let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
            let (mut found, mut last) = (Sectorwise::new(), Pos::ZERO);
            set.for_each_extent(&WalkOptions::default(), &mut |it| {
                let Found::Extent { key, state, .. } = it else { panic!("{it:?}") };
                assert!(last <= key.start_pos() && key.start_pos() < key.pos(), "{key:?}");
                last = key.pos();
                let stale = key.ptrs().first().is_some_and(|ptr| ptr.ptr_gen() == Gen(0));
                let hole = key.ptrs_count() == 0;
                assert_eq!(state == KeyState::Valid, !stale && !hole);
                put(&mut found, key);
                ControlFlow::Continue(())
            });
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn damage_is_told_where_it_is_and_breaking_ends_it() {
        let builder =
            SetBuilder { bucket_size: Sectors(16), fill_percent: 60, ..SetBuilder::default() };
        let keys = || (0..3000).map(|i| key(0, i * 16, 8, false, false, 0));
        let device = MemoryDevice::new(builder.nbuckets * builder.bucket_size.bytes());
        builder.write(&device, keys()).unwrap();
        let read = |device: &MemoryDevice| {
            let cache = CacheDevice::open(device).unwrap();
            let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
            let (mut extents, mut missing) = (0, Vec::new());
            set.for_each_extent(&WalkOptions::default(), &mut |it| {
                match it {
                    Found::Extent { .. } => extents += 1,
                    Found::Missing(it) => missing.push((it.from, it.to, it.level)),
                    Found::OutOfOrder { .. } => panic!("{it:?}"),
                }
                ControlFlow::Continue(())
            });
            (extents, missing)
        };
        assert_eq!(read(&device), (3000, Vec::new()));
        // The first leaf is the last bucket's.
        let leaf = (builder.nbuckets - 1) * builder.bucket_size.bytes();
        let mut block = [0; 512];
        device.read_at(leaf + 512, &mut block).unwrap();
        block[100] ^= 1;
        device.write_at(leaf + 512, &block).unwrap();
        let (extents, missing) = read(&device);
        let [(from, to, 0)] = missing[..] else { panic!("{missing:?}") };
        assert_eq!(from, Pos::ZERO);
        assert_eq!(u64::from(to.inode), 0);
        assert_eq!(extents, 3000 - (to.offset + 8) / 16);

        let cache = CacheDevice::open(&device).unwrap();
        let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
        let mut told = 0;
        set.for_each_extent(&WalkOptions::default(), &mut |_| {
            told += 1;
            if told == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(told, 5);
    }
}
