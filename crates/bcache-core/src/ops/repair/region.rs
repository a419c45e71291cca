//! What can be told of the keys of a btree node that is lost or damaged.

use std::collections::BTreeMap;

use crate::cache_set::btree::node::node_ptr;
use crate::cache_set::past::Past;
use crate::cache_set::pointers::Pointers;
use crate::cache_set::{Bucket, CacheSet, KeyState, Missing, Overlay, Suspect};
use crate::layout::bkey::{Bkey, Pos, Ptr};
use crate::ops::repair::Class;
use crate::ops::repair::search::{FoundLeaf, FoundNodes, NodeSets, in_order, node_pointer};
use crate::units::BucketIndex;

/// A stretch of the btree of which keys are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) from: Pos,
    pub(super) to: Pos,
    pub(super) level: u16,
    pub(super) bucket: BucketIndex,
}

impl From<Suspect> for Lost {
    fn from(suspect: Suspect) -> Self {
        let Suspect { from, to, level, bucket } = suspect;
        Self { from, to, level, bucket }
    }
}

impl From<&Missing> for Lost {
    fn from(missing: &Missing) -> Self {
        Self { from: missing.from, to: missing.to, level: missing.level, bucket: missing.bucket }
    }
}

impl Lost {
    /// The part of `key` that lies in it.
    pub(super) fn clip(&self, key: &Bkey) -> Option<Bkey> {
        let mut part = *key;
        if key.inode() < self.from.inode || key.inode() > self.to.inode {
            return None;
        }
        if key.inode() == self.from.inode {
            part.cut_front(self.from.offset.max(part.start()).min(part.offset()));
        }
        if key.inode() == self.to.inode && self.to.offset < part.offset() {
            if self.to.offset <= part.start() {
                return None;
            }
            part.cut_back(self.to.offset);
        }
        (part.size().0 > 0).then_some(part)
    }
}

/// What is kept in place of it.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) lost: Lost,
    /// Extents in order, without overlaps, all of them valid.
    pub(super) kept: Vec<Bkey>,
    pub(super) class: Class,
    /// Sectors of dirty keys whose buckets were reused: written back since, or moved.
    pub(super) stale_dirty: u64,
    /// Nodes that a search found, and that tell of it.
    pub(super) found_nodes: u64,
    /// Buckets of those that were outdated before.
    pub(super) copies: Vec<BucketIndex>,
}

/// Only dirty extents matter: of the others the backing device has the data, and newer data perhaps.
pub(super) type Matters<'m> = &'m dyn Fn(&Bkey) -> bool;

/// Keys in the order of their insertion, each with its entry's number.
type Told = Vec<(u64, Bkey)>;

/// Where regions come from.
pub(super) struct Sources<'s, 'd> {
    pub(super) set: &'s CacheSet<'d>,
    pub(super) past: Past,
    /// What a search found, if there was one.
    pub(super) found: Option<FoundNodes>,
    /// Whether gens are lost: an outdated node may look as if it were none.
    pub(super) gens_lost: bool,
}

impl Sources<'_, '_> {
    /// Whether the journal has what `lost` lacks, and everything that was inserted later.
    pub(super) fn is_certain(&self, lost: &Lost) -> bool {
        lost.level == 0 && self.certain_from(&self.sets(lost)).is_some()
    }

    fn sets(&self, lost: &Lost) -> NodeSets {
        let pointer = pointer(self.set, lost.bucket);
        NodeSets::read_leaf(self.set, lost.bucket, pointer).unwrap_or_default()
    }

    /// The first entry to replay, where that brings back everything.
    fn certain_from(&self, node: &NodeSets) -> Option<u64> {
        // Of a node whose first set is sound, only what was inserted since is missing.
        if !node.begins {
            return None;
        }
        let pointers = Pointers::new(node.before.iter());
        self.past.first_after(|key| pointers.has(key))
    }

    /// What can be told of `lost`. `damaged_below` is whether nodes below it are damaged, too.
    pub(super) fn region(&self, lost: Lost, damaged_below: bool, matters: Matters<'_>) -> Region {
        let (told, moved, class, found_nodes, copies) = if lost.level == 0 {
            let (told, moved, class, copies) = self.leaf(&lost);
            (told, moved, class, copies.len() as u64, copies)
        } else {
            let (told, class, found_nodes) = self.interior(&lost, damaged_below, matters);
            (told, Vec::new(), class, found_nodes, Vec::new())
        };
        let replayed = self.set.overlay.extents_with_seq().map(|(seq, key)| (seq, *key));
        let geometry = *self.set.geometry();
        let keys = told
            .into_iter()
            .chain(replayed)
            .filter(|(_, key)| key.is_valid_extent(&geometry))
            .filter_map(|(seq, key)| Some((seq, lost.clip(&key)?)));
        let moved = Overlay::new(moved.into_iter().filter_map(|key| Some((0, lost.clip(&key)?))));
        let is_valid = |key: &Bkey| self.set.key_state(key, 0) == KeyState::Valid;
        let (mut kept, mut stale_dirty) = (Vec::new(), 0u64);
        for key in Overlay::new(keys).extents().iter().filter(|key| matters(key)) {
            match self.set.key_state(key, 0) {
                KeyState::Valid => kept.push(*key),
                KeyState::Stale { .. } => {
                    stale_dirty = stale_dirty.saturating_add(key.size().0);
                    // Where the garbage collector put it, perhaps.
                    let parts = moved.overlapping(key.inode(), key.start(), key.offset());
                    let parts = parts.filter(|it| it.is_valid_extent(&geometry) && is_valid(it));
                    kept.extend(parts.filter(|it| matters(it)).map(|it| {
                        let mut part = *it;
                        part.cut_front(key.start());
                        part.cut_back(key.offset());
                        part
                    }));
                }
                KeyState::Hole | KeyState::Unavailable | KeyState::FreedNode => {}
            }
        }
        // The garbage collector's moves are not in the journal.
        let class = if stale_dirty > 0 { class.max(Class::Likely) } else { class };
        Region { lost, kept, class, stale_dirty, found_nodes, copies }
    }

    /// Its keys, those of them that the journal does not know, how sure that is, and copies of it.
    fn leaf(&self, lost: &Lost) -> (Told, Vec<Bkey>, Class, Vec<BucketIndex>) {
        let node = self.sets(lost);
        let certain_from = self.certain_from(&node);
        let class = match certain_from {
            Some(_) => Class::Certain,
            None if self.past.is_complete() => Class::Likely,
            None => Class::Guess,
        };
        let mut told = Told::new();
        let mut copies = Vec::new();
        if class == Class::Guess {
            // What it was once is better than nothing: data that is still in its bucket.
            let is_copy = |leaf: &&FoundLeaf| !leaf.is_live && leaf.bucket != lost.bucket;
            let nodes = self.read(self.leaves(lost).filter(is_copy));
            told.extend(in_order(&nodes).iter().flat_map(|sets| sets.keys().map(|key| (0, *key))));
            copies = nodes.iter().map(|(leaf, _)| leaf.bucket).collect();
        }
        told.extend(node.before.iter().map(|key| (0, *key)));
        let past: Vec<(u64, Bkey)> = self
            .past
            .keys_from(certain_from.unwrap_or(0))
            .filter(|(_, key)| lost.clip(key).is_some())
            .collect();
        let doubtful = node.doubtful.iter().filter(|_| certain_from.is_none());
        let (moved, told_by_past) = placed(&past, doubtful.chain(&node.after));
        told.extend(moved.iter().map(|key| (0, *key)));
        told.extend(told_by_past);
        (told, moved, class, copies)
    }

    /// Leaves that a search found; where none was, the journal's past.
    fn interior(
        &self,
        lost: &Lost,
        damaged_below: bool,
        matters: Matters<'_>,
    ) -> (Told, Class, u64) {
        let leaves: Vec<FoundLeaf> =
            self.leaves(lost).filter(|leaf| leaf.is_live).copied().collect();
        // A leaf tells of all between its first key and its last one, but for what is in the journal's
        // replay range. Leaves that overlap are of two times.
        let mut spans: Vec<Lost> = Vec::new();
        let mut groups: Vec<Vec<FoundLeaf>> = Vec::new();
        for leaf in &leaves {
            let span = spans.last_mut().filter(|last| leaf.from < last.to);
            if let (Some(span), Some(group)) = (span, groups.last_mut()) {
                span.to = span.to.max(leaf.to);
                group.push(*leaf);
            } else {
                let (from, to, bucket) = (leaf.from, leaf.to, leaf.bucket);
                spans.push(Lost { from, to, level: 0, bucket });
                groups.push(vec![*leaf]);
            }
        }
        let damaged = damaged_below || leaves.iter().any(|leaf| leaf.is_damaged);
        let whole = self.past.is_complete() || !leaves.is_empty();
        let single = groups.iter().all(|group| group.len() == 1);
        let sure = whole && !damaged && single && !self.gens_lost;
        let class = if sure { Class::Likely } else { Class::Guess };
        let mut told: Told = self
            .past
            .keys_from(0)
            .flat_map(|(seq, key)| outside(&key, &spans).into_iter().map(move |key| (seq, key)))
            .collect();
        for group in &groups {
            let nodes = self.read(group.iter());
            let keys = in_order(&nodes).into_iter().flat_map(NodeSets::keys);
            // One group at a time, and of each what is of use.
            let group = Overlay::new(keys.map(|key| (0, *key)));
            told.extend(group.extents().iter().filter(|key| matters(key)).map(|key| (0, *key)));
        }
        (told, class, leaves.len() as u64)
    }

    /// The found leaves with keys in `lost`, by where they begin.
    fn leaves(&self, lost: &Lost) -> impl Iterator<Item = &FoundLeaf> {
        let (from, to) = (lost.from, lost.to);
        let leaves = self.found.iter().flat_map(|found| &found.leaves);
        leaves.filter(move |leaf| leaf.from < to && from < leaf.to)
    }

    fn read<'l>(&self, leaves: impl Iterator<Item = &'l FoundLeaf>) -> Vec<(FoundLeaf, NodeSets)> {
        leaves
            .filter_map(|leaf| Some((*leaf, NodeSets::read(self.set, leaf.bucket, leaf.ptr)?)))
            .collect()
    }
}

/// The journal's past with the keys of sets behind damage: those that it does not know, which come before it,
/// and it with the others among its own.
///
/// What was lost may be newer than the sets behind it: another set behind those, perhaps without a trace. So
/// a key is as old as the write that it points to, whatever became of it since: cut, or written back. What
/// the past does not know was filled or moved. A fill is clean, and hides nothing. What was moved is the data
/// of an older key or, where that is in the past as well, not newer than what the past has there.
fn placed<'k>(past: &[(u64, Bkey)], keys: impl Iterator<Item = &'k Bkey>) -> (Vec<Bkey>, Told) {
    let pointers = Pointers::new(past.iter().map(|(_, key)| key));
    let mut behind: BTreeMap<usize, Vec<Bkey>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for key in keys {
        match pointers.first(key) {
            Some(index) => behind.entry(index).or_default().push(*key),
            None => unknown.push(*key),
        }
    }
    let of_past = past.iter().enumerate().flat_map(|(index, &(seq, key))| {
        let same_write = behind.remove(&index).unwrap_or_default();
        std::iter::once(key).chain(same_write).map(move |key| (seq, key))
    });
    let of_past = of_past.collect();
    (unknown, of_past)
}

/// The pieces of `key` that lie in no stretch of `lost`, which are in order and do not overlap.
pub(super) fn outside(key: &Bkey, lost: &[Lost]) -> Vec<Bkey> {
    let mut pieces = Vec::new();
    let mut rest = *key;
    let first = lost.partition_point(|lost| lost.to <= key.start_pos());
    for lost in lost.get(first..).unwrap_or_default() {
        if lost.from >= key.pos() {
            break;
        }
        let Some(inside) = lost.clip(&rest) else { continue };
        let mut front = rest;
        if front.start() < inside.start() {
            front.cut_back(inside.start());
            pieces.push(front);
        }
        rest.cut_front(inside.offset());
    }
    if rest.size().0 > 0 {
        pieces.push(rest);
    }
    pieces
}

/// The pointer through which the kernel reads the node in `bucket`, which seeds its checksums: a pointer
/// that is followed has its bucket's gen.
pub(super) fn pointer(set: &CacheSet<'_>, bucket: BucketIndex) -> Ptr {
    let root = node_ptr(&set.root);
    if root.bucket(set.geometry()) == bucket {
        return root;
    }
    let bucket_gen = set.table.get(bucket).map(Bucket::bucket_gen).unwrap_or_default();
    node_pointer(set, bucket, bucket_gen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_stretch() {
        let pos = |inode, offset| Pos { inode, offset };
        let lost = Lost { from: pos(1, 100), to: pos(3, 50), level: 0, bucket: BucketIndex(1) };
        let clip = |inode, start: u64, end: u64| {
            let size = u16::try_from(end - start).unwrap();
            lost.clip(&Bkey::new(inode, end, size)).map(|key| (key.start(), key.offset()))
        };
        assert_eq!(clip(0, 0, 10), None);
        assert_eq!(clip(1, 90, 100), None);
        assert_eq!(clip(1, 90, 101), Some((100, 101)));
        assert_eq!(clip(1, 120, 130), Some((120, 130)));
        assert_eq!(clip(2, 0, 10), Some((0, 10)));
        assert_eq!(clip(3, 40, 60), Some((40, 50)));
        assert_eq!(clip(3, 50, 60), None);
        assert_eq!(clip(4, 0, 10), None);
    }
}
