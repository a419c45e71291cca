//! Keys that leaves of the btree have lost without a trace.
//!
//! A leaf ends where no set of its own follows. Its last sets can be overwritten, or never have been
//! written, and nothing in the leaf shows it: the kernel takes what is left for all there is.
//!
//! The journal shows it. Each write is in the journal before it is in the btree, and entries stay there
//! long after replay has ceased to need them. Of what the last of them tell of a sector, one of these is
//! true in a sound set:
//!
//! - The bucket of the key was reused since: then the data was written back, moved or overwritten.
//! - The key is in the leaf, dirty still or written back. Writeback does not write to the journal.
//! - The leaf has a key to another place, to which the garbage collector moved the data. It does not write
//!   to the journal either.
//! - It was no dirty write, and the leaf has nothing, or what was read from the backing device since.
//!
//! Where a leaf has no key for a dirty write, or a key that the journal has before it, it has lost keys; also
//! where it has a dirty key, and the journal no dirty write.

use std::ops::ControlFlow;

use crate::cache_set::past::latest_keys;
use crate::cache_set::pointers::Pointers;
use crate::cache_set::problem::{BtreeProblem, NodePlace};
use crate::cache_set::view::Extent;
use crate::cache_set::{CacheSet, KeyState, Overlay, Suspect, Visitor};
use crate::layout::bkey::{Bkey, Pos};

/// Keys of the journal that are looked at: a hundred bytes of memory for each.
const KEYS_MAX: usize = 1 << 19;

/// Tells of each leaf that has lost keys.
pub(super) fn find(set: &CacheSet<'_>, visitor: &mut dyn Visitor) -> Vec<Suspect> {
    let first_replayed = set.journal.entries.first().map_or(0, |entry| entry.jset.seq());
    let mut keys = latest_keys(&set.cache, &set.journal, KEYS_MAX);
    keys.retain(|(_, key)| key.is_valid_extent(set.geometry()));
    let told = Overlay::new(keys.iter().copied());
    let mut find = Find { set, keys, pointers: None };
    let mut view = set.view();
    let mut leaves: Vec<(NodePlace, Suspect)> = Vec::new();
    for (seq, key) in told.extents_with_seq().filter(|(seq, _)| *seq < first_replayed) {
        let mut pieces = Vec::new();
        set.overlay.visible(key, &mut |piece| pieces.push(*piece));
        pieces.retain(|piece| find.is_told(piece));
        for piece in &pieces {
            let mut lost = None;
            // Of damaged leaves, more is known to be missing than this.
            let _ = view.lookup_btree(piece.inode(), piece.start(), piece.offset(), &mut |has| {
                if find.is_lost(piece, &has) {
                    lost = Some(has.start);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
            let Some(start) = lost else { continue };
            let pos = Pos { inode: piece.inode(), offset: start };
            let Some(leaf) = view.leaf_at(pos).filter(|leaf| leaves.last() != Some(leaf)) else {
                continue;
            };
            leaves.push(leaf);
            visitor.problem(BtreeProblem::LostKeys { place: leaf.0, key: *piece, seq }.into());
        }
    }
    leaves.into_iter().map(|(_, suspect)| suspect).collect()
}

struct Find<'s, 'd> {
    set: &'s CacheSet<'d>,
    keys: Vec<(u64, Bkey)>,
    /// Where all of them point to; needed seldom.
    pointers: Option<Pointers>,
}

impl Find<'_, '_> {
    /// Whether a key of the journal still tells something of the btree.
    fn is_told(&self, key: &Bkey) -> bool {
        match self.set.key_state(key, 0) {
            KeyState::Hole => true,
            KeyState::Valid => self.set.prios.knows_all(key, self.set.geometry()),
            KeyState::Stale { .. } | KeyState::Unavailable | KeyState::FreedNode => false,
        }
    }

    /// Whether the btree has something else than `told`, the last that the journal tells, and nothing
    /// that could have come after it.
    fn is_lost(&mut self, told: &Bkey, has: &Extent) -> bool {
        let Some(key) = has.key.filter(|key| key.ptrs_count() > 0) else {
            return told.dirty();
        };
        if !self.set.prios.knows_all(&key, self.set.geometry()) {
            return false;
        }
        // The key is cut to what it has here. A repair makes clean keys of flash-only volumes dirty.
        if Pointers::line(told) == Pointers::line(&key) {
            return false;
        }
        if !told.dirty() && (has.dirty || has.cached.is_none()) {
            return has.dirty;
        }
        let keys = &self.keys;
        let all = || Pointers::new(keys.iter().map(|(_, key)| key));
        self.pointers.get_or_insert_with(all).has(&key)
    }
}
