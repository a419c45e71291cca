//! A btree from extents in order: nodes are filled from left to right, level by level.
//!
//! Only the node that is being filled is in memory, one for each level.

use crate::cache_set::btree::overlap::try_join;
use crate::checksum::crc64_seeded;
use crate::layout::bkey::{Bkey, Pos};
use crate::layout::bset::BSET_HEADER_BYTES;
use crate::units::Geometry;

/// Takes finished nodes.
pub(super) trait NodeSink {
    /// Why a node is not taken.
    type Error;

    /// Takes the node with `keys` and gives the key that points to it: `end` is its last position.
    fn node(&mut self, level: u16, keys: &[Bkey], end: Pos) -> Result<Bkey, Self::Error>;
}

/// What went into a btree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Extents, neighbours joined.
    pub extents: u64,
    /// Their sectors.
    pub sectors: u64,
    /// Those of them that no backing device has.
    pub dirty_sectors: u64,
    /// Checksum of all keys in order.
    pub checksum: u64,
    /// Level of the root: 0 where it is a leaf.
    pub level: u16,
}

impl Contents {
    fn add(&mut self, key: &Bkey, words: &mut Vec<u8>) {
        self.extents += 1;
        self.sectors = self.sectors.saturating_add(key.size().0);
        if key.dirty() {
            self.dirty_sectors = self.dirty_sectors.saturating_add(key.size().0);
        }
        words.clear();
        key.write(words);
        self.checksum = crc64_seeded(self.checksum, words);
    }
}

struct Level {
    keys: Vec<Bkey>,
    key_bytes: usize,
}

/// Fills nodes.
pub(super) struct Loader<'k, K: NodeSink> {
    geometry: Geometry,
    /// Bytes of keys that go into a node: two thirds of it, so that the first keys that the kernel
    /// inserts split none.
    node_key_bytes: usize,
    levels: Vec<Level>,
    /// The last extent: its neighbour may be joined to it.
    last: Option<Bkey>,
    contents: Contents,
    words: Vec<u8>,
    sink: &'k mut K,
}

impl<'k, K: NodeSink> Loader<'k, K> {
    pub(super) fn new(geometry: Geometry, sink: &'k mut K) -> Self {
        let node_bytes = usize::try_from(geometry.btree_node_size().bytes()).unwrap_or(usize::MAX);
        let node_key_bytes = (node_bytes - BSET_HEADER_BYTES) / 3 * 2;
        let contents = Contents::default();
        let levels = vec![Level { keys: Vec::new(), key_bytes: 0 }];
        Self { geometry, node_key_bytes, levels, last: None, contents, words: Vec::new(), sink }
    }

    /// Adds the next extent.
    pub(super) fn extent(&mut self, key: &Bkey) -> Result<(), K::Error> {
        let mut next = plain(key);
        if let Some(mut last) = self.last.take() {
            if try_join(&mut last, &mut next, &self.geometry) {
                self.last = Some(last);
                return Ok(());
            }
            self.put(0, last)?;
        }
        self.last = Some(next);
        Ok(())
    }

    fn put(&mut self, index: usize, key: Bkey) -> Result<(), K::Error> {
        if index == 0 {
            self.contents.add(&key, &mut self.words);
        }
        let bytes = key.words() * 8;
        if self.levels.len() <= index {
            self.levels.push(Level { keys: Vec::new(), key_bytes: 0 });
        }
        let limit = self.node_key_bytes;
        // Two keys in each interior node at least, or the levels would not end.
        let is_full = self
            .levels
            .get(index)
            .is_some_and(|it| it.keys.len() >= 2 && it.key_bytes + bytes > limit);
        if is_full {
            let end = self.levels.get(index).and_then(|it| it.keys.last()).map(Bkey::pos);
            let parent = self.close(index, end.unwrap_or(Pos::MAX))?;
            self.put(index + 1, parent)?;
        }
        if let Some(level) = self.levels.get_mut(index) {
            level.keys.push(key);
            level.key_bytes += bytes;
        }
        Ok(())
    }

    fn close(&mut self, index: usize, end: Pos) -> Result<Bkey, K::Error> {
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let Some(level) = self.levels.get_mut(index) else {
            return self.sink.node(number, &[], end);
        };
        level.key_bytes = 0;
        let key = self.sink.node(number, &level.keys, end)?;
        level.keys.clear();
        Ok(key)
    }

    /// Closes the last node of each level; the last of all is the root.
    pub(super) fn finish(mut self) -> Result<(Bkey, Contents), K::Error> {
        if let Some(last) = self.last.take() {
            self.put(0, last)?;
        }
        let mut index = 0;
        loop {
            let key = self.close(index, Pos::MAX)?;
            if index + 1 >= self.levels.len() {
                let level = u16::try_from(index).unwrap_or(u16::MAX);
                return Ok((key, Contents { level, ..self.contents }));
            }
            self.put(index + 1, key)?;
            index += 1;
        }
    }
}

/// The same extent without what kernels leave behind in unused fields.
fn plain(key: &Bkey) -> Bkey {
    let size = u16::try_from(key.size().0).unwrap_or(u16::MAX);
    Bkey::new(key.inode(), key.offset(), size).with_ptrs(key.ptrs()).with_dirty(key.dirty())
}
