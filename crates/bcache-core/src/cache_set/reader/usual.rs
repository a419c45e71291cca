//! Marking a leaf's keys, quickly where there is nothing to say of them.
//!
//! Nearly every key of a sound set is an extent with one pointer, of the very gen that its bucket
//! has, and no key of the journal hides any of it. Such keys are marked and counted as they lie in
//! the node; all others, and all keys when a visitor wants to see them, take the general way.

use crate::cache_set::btree::{NodeKeys, ShortKey};
use crate::cache_set::problem::KeySource;
use crate::cache_set::reader::Marker;
use crate::cache_set::table::WARM_KEYS;
use crate::layout::uuid_entry::UuidEntry;
use crate::units::Sectors;

/// Bytes of a key with one pointer.
const USUAL_KEY_BYTES: u64 = 24;

impl Marker<'_, '_> {
    /// Marks and counts the keys of a leaf.
    pub(super) fn leaf_keys(&mut self, origin: KeySource, keys: &NodeKeys) {
        let geometry = *self.cache.geometry();
        let Some(keys) = keys.short().filter(|_| !self.visitor.wants_keys()) else {
            keys.iter().for_each(|key| self.leaf_key(origin, &key));
            return;
        };
        for some in keys.chunks(WARM_KEYS) {
            self.table.warm(some.iter().filter_map(|key| key.ptr()), &geometry);
            let mut rest = some;
            while !rest.is_empty() {
                rest = self.usual_keys(rest);
                if let Some((key, after)) = rest.split_first() {
                    self.leaf_key(origin, &key.bkey());
                    rest = after;
                }
            }
        }
    }

    /// Marks and counts keys of one volume up to the first that is not as usual; what is left.
    fn usual_keys<'k>(&mut self, keys: &'k [ShortKey]) -> &'k [ShortKey] {
        let Some(first) = keys.first().map(|key| key.bkey()) else { return keys };
        let inode = first.inode();
        if self.uuids.get(inode).is_none_or(UuidEntry::is_empty) {
            return keys;
        }
        let clear = self.overlay.clear_up_to(inode, first.start());
        let geometry = *self.cache.geometry();
        let (mut count, mut sectors, mut dirty_sectors, mut end) = (0usize, 0, 0, 0);
        for key in keys {
            let Some(ptr) = key.ptr() else { break };
            let key = key.bkey();
            let (size, dirty) = (key.size().0, key.dirty());
            let usual = key.inode() == inode
                && key.offset() <= clear
                && self.table.mark_usual(ptr, size, dirty, &geometry);
            if !usual {
                break;
            }
            count += 1;
            sectors += size;
            dirty_sectors += if dirty { size } else { 0 };
            end = key.offset();
        }
        let (usual, rest) = keys.split_at(count);
        if usual.is_empty() {
            return rest;
        }
        let count = usual.len() as u64;
        self.btree.extents += count;
        self.btree.usable_extents += count;
        self.btree.usable_keys += count;
        self.btree.usable_key_bytes += count * USUAL_KEY_BYTES;
        self.btree.usable_sectors = self.btree.usable_sectors.saturating_add(sectors);
        if self.volume.0 != inode {
            self.next_volume(inode);
        }
        let volume = &mut self.volume.1;
        volume.cached_sectors += Sectors(sectors);
        volume.dirty_sectors += Sectors(dirty_sectors);
        volume.extents += count;
        volume.reach(first.start(), end);
        rest
    }
}
