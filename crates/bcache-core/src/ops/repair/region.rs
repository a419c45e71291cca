//! What can be told of the keys of a btree node that is lost or damaged.

use std::collections::HashMap;

use crate::cache_set::btree::node::node_ptr;
use crate::cache_set::{Bucket, CacheSet, KeyState, Missing, Overlay};
use crate::device::AlignedBuf;
use crate::layout::bkey::{Bkey, Pos, Ptr};
use crate::layout::bset::{Bset, salvage_node};
use crate::ops::repair::Class;
use crate::ops::repair::past::Past;
use crate::units::{BucketIndex, Gen, Sectors};

/// A stretch of the btree of which keys are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) from: Pos,
    pub(super) to: Pos,
    pub(super) level: u16,
    pub(super) bucket: BucketIndex,
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
}

/// Only dirty extents matter: of the others the backing device has the data, and newer data perhaps.
pub(super) type Matters<'m> = &'m dyn Fn(&Bkey) -> bool;

/// What can be told of `lost`. `stream` are the extents that sound nodes below it tell of.
pub(super) fn region(
    set: &CacheSet<'_>,
    past: &Past,
    lost: Lost,
    stream: &[Bkey],
    matters: Matters<'_>,
) -> Region {
    let geometry = *set.geometry();
    let node = if lost.level == 0 { Node::read(set, &lost) } else { Node::default() };
    // Of a node whose first set is sound, only what was inserted since is missing.
    let certain_from = if !node.begins || lost.level > 0 {
        None
    } else {
        let index = Pointers::new(&node.before);
        past.first_after(|key| index.has(key))
    };
    let class = match certain_from {
        Some(_) => Class::Certain,
        None if past.is_complete() => Class::Likely,
        None => Class::Guess,
    };
    let first = certain_from.unwrap_or(0);
    let base = stream.iter().chain(&node.before).map(|key| (0, *key));
    let later = node.after.iter().map(|key| (u64::MAX, *key));
    let replayed = set.overlay.extents_with_seq().map(|(seq, key)| (seq, *key));
    let keys = base.chain(past.keys_from(first)).chain(later).chain(replayed);
    let keys = keys
        .filter(|(_, key)| key.is_valid_extent(&geometry))
        .filter_map(|(seq, key)| Some((seq, lost.clip(&key)?)));
    let (mut kept, mut stale_dirty) = (Vec::new(), 0u64);
    for key in Overlay::new(keys).extents().iter().filter(|key| matters(key)) {
        match set.key_state(key, 0) {
            KeyState::Valid => kept.push(*key),
            KeyState::Stale { .. } => stale_dirty = stale_dirty.saturating_add(key.size().0),
            KeyState::Hole | KeyState::Unavailable | KeyState::FreedNode => {}
        }
    }
    // The garbage collector's moves are not in the journal.
    let class = if stale_dirty > 0 { class.max(Class::Likely) } else { class };
    Region { lost, kept, class, stale_dirty }
}

/// The sound sets of a damaged leaf.
#[derive(Default)]
struct Node {
    /// Whether its first set is sound.
    begins: bool,
    /// Keys of those before the damage.
    before: Vec<Bkey>,
    /// Keys of those behind it.
    after: Vec<Bkey>,
}

impl Node {
    fn read(set: &CacheSet<'_>, lost: &Lost) -> Self {
        let geometry = set.geometry();
        let Ok(len) = usize::try_from(geometry.btree_node_size().bytes()) else {
            return Self::default();
        };
        let block_bytes = usize::try_from(geometry.block_bytes()).unwrap_or(512).max(1);
        let ptr = pointer(set, lost.bucket);
        let mut bytes = AlignedBuf::zeroed(len);
        if set.cache.read_bucket(lost.bucket, 0, &mut bytes).is_err() {
            return Self::default();
        }
        let (sound, error) = salvage_node(&bytes, set.cache.magic(), ptr, block_bytes);
        let keys = |sets: &[Bset<'_>]| sets.iter().flat_map(Bset::keys).collect::<Vec<_>>();
        let begins = !sound.sets.is_empty();
        let mut node = Self { begins, before: keys(&sound.sets), after: Vec::new() };
        let mut at = error.map_or(len, |error| error.offset).saturating_add(block_bytes);
        // The checksum, which is seeded with bucket and gen, tells the node's own sets from others.
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (behind, _) = salvage_node(rest, set.cache.magic(), ptr, block_bytes);
            if behind.sets.is_empty() || (begins && behind.seq != sound.seq) {
                at = at.saturating_add(block_bytes);
            } else {
                node.after.extend(keys(&behind.sets));
                at = at.saturating_add(behind.written_bytes.max(block_bytes));
            }
        }
        node
    }
}

/// The pointer through which the kernel reads the node in `bucket`, which seeds its checksums: a pointer
/// that is followed has its bucket's gen.
pub(super) fn pointer(set: &CacheSet<'_>, bucket: BucketIndex) -> Ptr {
    let root = node_ptr(&set.root);
    if root.bucket(set.geometry()) == bucket {
        return root;
    }
    let bucket_gen = set.table.get(bucket).map(Bucket::bucket_gen).unwrap_or_default();
    let sector = set.geometry().bucket_to_sector(bucket);
    Ptr::new(bucket_gen, Sectors(sector.0), set.cache.superblock().nr_this_dev())
}

/// Where extents point to, apart from how they were cut.
struct Pointers(HashMap<(u32, Gen, u64), Vec<(u64, u64)>>);

impl Pointers {
    fn new(keys: &[Bkey]) -> Self {
        let mut map: HashMap<_, Vec<(u64, u64)>> = HashMap::new();
        for key in keys {
            if let Some(line) = Self::line(key) {
                map.entry(line).or_default().push((key.start(), key.offset()));
            }
        }
        Self(map)
    }

    fn line(key: &Bkey) -> Option<(u32, Gen, u64)> {
        let ptr = key.ptrs().first()?;
        Some((key.inode(), ptr.ptr_gen(), ptr.offset().0.wrapping_sub(key.start())))
    }

    fn has(&self, key: &Bkey) -> bool {
        let ranges = Self::line(key).and_then(|line| self.0.get(&line));
        ranges.is_some_and(|it| it.iter().any(|(start, end)| (*start..*end).contains(&key.start())))
    }
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
