//! The list of keys, of the btree and of the journal, and of what points into given buckets.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use bcache_cli::rows::{Column, Line, List, Row};
use bcache_core::cache_set::btree::node::node_ptr;
use bcache_core::cache_set::btree::{ReadNode, WalkHandler, WalkOptions, walk};
use bcache_core::cache_set::{CacheSet, KeyState};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::units::BucketIndex;
use serde::Serialize;

use crate::cli::lists::BucketList;

/// A key, or one pointer of a key that has several.
#[derive(Clone, Debug, Serialize)]
pub struct KeyRow {
    /// "btree" or "journal".
    pub source: &'static str,
    /// Level of the node, 0 for a leaf.
    pub level: Option<u16>,
    /// Bucket of the node.
    pub node: Option<u64>,
    /// Sequence number of the journal entry.
    pub seq: Option<u64>,
    /// Slot of the volume.
    pub volume: u32,
    /// First sector; null for a pointer to a node.
    pub start: Option<u64>,
    /// Sector after the last; of a pointer to a node, the last position in it.
    pub end: u64,
    /// Sectors: of data, or of the node.
    pub sectors: u64,
    /// Whether the backing device lacks the data.
    pub dirty: bool,
    /// Bucket that is pointed to; null where there is no pointer.
    pub bucket: Option<u64>,
    /// Sector on the cache device.
    pub cache_sector: Option<u64>,
    /// Gen of the pointer.
    #[serde(rename = "gen")]
    pub ptr_gen: Option<u8>,
    /// "valid", "hole", "unavailable", "stale" or "freed".
    pub state: &'static str,
    /// How far the bucket's gen is ahead.
    pub stale_by: u8,
}

impl Row for KeyRow {
    const COLUMNS: &'static [Column] = &[
        Column::new("source", 7).lost(2),
        Column::new("level", 5).lost(4),
        Column::new("node/seq", 9).lost(5),
        Column::new("volume", 7),
        Column::new("start", 11),
        Column::new("end", 11),
        Column::new("sectors", 7),
        Column::new("bucket", 9),
        Column::new("sector", 12).lost(3),
        Column::new("gen", 3).lost(1),
        Column::new("dirty", 5),
        Column::new("state", 0),
    ];

    fn cells(&self, line: &mut Line) {
        line.cell(self.source);
        line.maybe(self.level);
        line.maybe(self.node.or(self.seq));
        line.cell(self.volume);
        line.maybe(self.start);
        line.cell(self.end);
        line.cell(self.sectors);
        line.maybe(self.bucket);
        line.maybe(self.cache_sector);
        line.maybe(self.ptr_gen);
        line.cell(if self.dirty { "dirty" } else { "-" });
        if self.stale_by > 0 {
            line.cell(format_args!("{} by {}", self.state, self.stale_by));
        } else {
            line.cell(self.state);
        }
    }
}

/// Which keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeySelection<'s> {
    /// Those of the btree.
    pub btree: bool,
    /// Those of the journal's replay range.
    pub journal: bool,
    /// Only those with a pointer into these buckets.
    pub into: Option<&'s BucketList>,
    /// At most so many rows.
    pub limit: Option<u64>,
}

/// The keys of a set. The btree is walked again for them, so that nothing has to be kept.
pub struct Keys<'s, 'd> {
    set: &'s CacheSet<'d>,
    selection: KeySelection<'s>,
    /// Nodes that could not be read this time.
    unreadable: Cell<u64>,
}

impl<'s, 'd> Keys<'s, 'd> {
    /// Those that `selection` wants.
    pub fn new(set: &'s CacheSet<'d>, selection: KeySelection<'s>) -> Self {
        Self { set, selection, unreadable: Cell::new(0) }
    }

    /// Nodes that could not be read while the list was made.
    pub fn unreadable(&self) -> u64 {
        self.unreadable.get()
    }

    /// Gives the rows of one key: one for each pointer, or one where there is none.
    fn give(
        &self,
        origin: Origin,
        key: &Bkey,
        row: &mut dyn FnMut(&KeyRow) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let geometry = self.set.geometry();
        let bucket_of = |ptr: Ptr| ptr.available().then(|| ptr.bucket(geometry));
        let wanted = |ptr: Ptr| {
            self.selection
                .into
                .is_none_or(|list| bucket_of(ptr).is_some_and(|bucket| list.contains(bucket.0)))
        };
        let level = origin.level.unwrap_or(0);
        let state = self.set.key_state(key, level);
        let base = KeyRow {
            source: if origin.seq.is_some() { "journal" } else { "btree" },
            level: origin.level,
            node: origin.node.map(|node| node.0),
            seq: origin.seq,
            volume: key.inode(),
            start: (level == 0).then(|| key.start()),
            end: key.offset(),
            sectors: key.size().0,
            dirty: key.dirty(),
            bucket: None,
            cache_sector: None,
            ptr_gen: None,
            state: state.name(),
            stale_by: match state {
                KeyState::Stale { by } => by,
                _ => 0,
            },
        };
        if key.ptrs_count() == 0 && self.selection.into.is_none() {
            return row(&base);
        }
        for &ptr in key.ptrs().iter().filter(|ptr| wanted(**ptr)) {
            row(&KeyRow {
                bucket: bucket_of(ptr).map(|bucket| bucket.0),
                cache_sector: Some(ptr.offset().0),
                ptr_gen: Some(ptr.ptr_gen().0),
                ..base.clone()
            })?;
        }
        ControlFlow::Continue(())
    }

    fn walk_btree(&self, row: &mut dyn FnMut(&KeyRow) -> ControlFlow<()>) -> ControlFlow<()> {
        let geometry = self.set.geometry();
        if !self.set.root.is_valid_btree_ptr(geometry) {
            return ControlFlow::Continue(());
        }
        let mut handler = KeyWalk { keys: self, row, flow: ControlFlow::Continue(()) };
        walk_again(self.set, &mut handler);
        handler.flow
    }
}

/// Walks the btree of a set that was read before.
pub(super) fn walk_again(set: &CacheSet<'_>, handler: &mut dyn WalkHandler) {
    if set.root.is_valid_btree_ptr(set.geometry()) {
        let visited = RefCell::new(std::collections::HashSet::new());
        let mut once = Once { set, visited, handler };
        walk(&set.cache, &set.root, set.btree.depth, &WalkOptions::default(), &mut once);
    }
}

/// Follows usable pointers, each node once.
struct Once<'h, 's, 'd> {
    set: &'s CacheSet<'d>,
    visited: RefCell<std::collections::HashSet<BucketIndex>>,
    handler: &'h mut dyn WalkHandler,
}

impl WalkHandler for Once<'_, '_, '_> {
    fn node(&mut self, key: &Bkey, level: u16, node: ReadNode<'_>) -> ControlFlow<()> {
        self.handler.node(key, level, node)
    }

    fn follow(&mut self, key: &Bkey, child_level: u16) -> bool {
        self.handler.follow(key, child_level)
            && self.set.key_state(key, child_level.saturating_add(1)) == KeyState::Valid
            && self.visited.borrow_mut().insert(node_ptr(key).bucket(self.set.geometry()))
    }
}

/// Where a key stands.
#[derive(Clone, Copy, Default)]
struct Origin {
    level: Option<u16>,
    node: Option<BucketIndex>,
    seq: Option<u64>,
}

struct KeyWalk<'w, 's, 'd> {
    keys: &'w Keys<'s, 'd>,
    row: &'w mut dyn FnMut(&KeyRow) -> ControlFlow<()>,
    flow: ControlFlow<()>,
}

impl WalkHandler for KeyWalk<'_, '_, '_> {
    fn node(&mut self, key: &Bkey, level: u16, node: ReadNode<'_>) -> ControlFlow<()> {
        let Ok(node) = node else {
            self.keys.unreadable.set(self.keys.unreadable.get().saturating_add(1));
            return ControlFlow::Continue(());
        };
        let bucket = node_ptr(key).bucket(self.keys.set.geometry());
        let origin = Origin { level: Some(level), node: Some(bucket), seq: None };
        self.flow = node.keys.iter().try_for_each(|key| self.keys.give(origin, &key, self.row));
        self.flow
    }

    fn follow(&mut self, _key: &Bkey, _child_level: u16) -> bool {
        true
    }
}

impl List for Keys<'_, '_> {
    type Row = KeyRow;

    fn each(&self, row: &mut dyn FnMut(&KeyRow) -> ControlFlow<()>) {
        let mut left = self.selection.limit.unwrap_or(u64::MAX);
        if left == 0 {
            return;
        }
        let mut limited = |key: &KeyRow| {
            left -= 1;
            row(key)?;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        if self.selection.btree && self.walk_btree(&mut limited).is_break() {
            return;
        }
        if self.selection.journal {
            let _ = self.set.journal.replay_keys().try_for_each(|(seq, key)| {
                self.give(Origin { seq: Some(seq), ..Origin::default() }, &key, &mut limited)
            });
        }
    }
}
