//! The nodes of the btree.

use std::cell::RefCell;
use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::rows::{Column, Json, Line, List, Row};
use bcache_cli::table::{self, number};
use bcache_core::cache_set::CacheSet;
use bcache_core::cache_set::btree::node::node_ptr;
use bcache_core::cache_set::btree::{LoadedNode, ReadNode, WalkHandler};
use bcache_core::layout::bkey::Bkey;
use serde::Serialize;

use crate::deep::keys::walk_again;

/// A node in the list.
#[derive(Clone, Debug, Serialize)]
pub struct NodeRow {
    /// 0 for a leaf.
    pub level: u16,
    /// Its bucket.
    pub bucket: u64,
    /// First sector on the cache device.
    pub cache_sector: u64,
    /// Volume of the last position in it.
    pub end_volume: u32,
    /// Sector of the last position in it.
    pub end_sector: u64,
    /// Its keys, overlaps resolved; null where it cannot be read.
    pub keys: Option<u64>,
    /// Its sets.
    pub sets: Option<u64>,
    /// Bytes in use on the device.
    pub written_bytes: Option<u64>,
    /// Bytes of its keys in per cent of its size.
    pub fill_percent: Option<u64>,
    /// What is wrong with it.
    pub error: Option<String>,
}

impl Row for NodeRow {
    const COLUMNS: &'static [Column] = &[
        Column::new("level", 5),
        Column::new("bucket", 10),
        Column::new("sector", 12),
        Column::new("end volume", 10),
        Column::new("end sector", 19),
        Column::new("keys", 7),
        Column::new("sets", 5),
        Column::new("fill", 4),
        Column::new("error", 0),
    ];

    fn cells(&self, line: &mut Line) {
        line.cell(self.level);
        line.cell(self.bucket);
        line.cell(self.cache_sector);
        line.cell(self.end_volume);
        line.cell(self.end_sector);
        line.maybe(self.keys);
        line.maybe(self.sets);
        line.maybe(self.fill_percent.map(|percent| format!("{percent}%")));
        line.maybe(self.error.as_deref());
    }
}

/// The nodes of a set's btree, read again.
pub struct Nodes<'s, 'd> {
    set: &'s CacheSet<'d>,
    limit: Option<u64>,
    levels: RefCell<Vec<LevelReport>>,
}

/// What a level of the btree adds up to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LevelReport {
    /// 0 for the leaves.
    pub level: u16,
    /// Its nodes.
    pub nodes: u64,
    /// Their keys.
    pub keys: u64,
    /// Their sets.
    pub sets: u64,
    /// Bytes of their keys.
    pub key_bytes: u64,
    /// Bytes of the nodes.
    pub node_bytes: u64,
}

impl LevelReport {
    /// How full its nodes are.
    pub const fn fill_percent(&self) -> u64 {
        match self.key_bytes.saturating_mul(100).checked_div(self.node_bytes) {
            Some(percent) => percent,
            None => 0,
        }
    }
}

impl<'s, 'd> Nodes<'s, 'd> {
    /// At most `limit` of them.
    pub fn new(set: &'s CacheSet<'d>, limit: Option<u64>) -> Self {
        Self { set, limit, levels: RefCell::default() }
    }

    /// Sums by level, highest first, of the nodes listed so far.
    pub fn levels(&self) -> Vec<LevelReport> {
        self.levels.borrow().clone()
    }

    fn count(&self, level: u16, node: Option<&LoadedNode>, node_bytes: u64) {
        let mut levels = self.levels.borrow_mut();
        let index = levels.iter().position(|it| it.level == level).unwrap_or_else(|| {
            levels.push(LevelReport { level, ..LevelReport::default() });
            levels.len() - 1
        });
        if let Some(report) = levels.get_mut(index) {
            report.nodes += 1;
            report.node_bytes = report.node_bytes.saturating_add(node_bytes);
            if let Some(node) = node {
                report.keys += node.keys.len() as u64;
                report.sets += node.sets.len() as u64;
                report.key_bytes += node.key_bytes() as u64;
            }
        }
    }
}

struct NodeWalk<'w, 's, 'd> {
    nodes: &'w Nodes<'s, 'd>,
    left: u64,
    row: &'w mut dyn FnMut(&NodeRow) -> ControlFlow<()>,
}

impl WalkHandler for NodeWalk<'_, '_, '_> {
    fn node(&mut self, key: &Bkey, level: u16, node: ReadNode<'_>) -> ControlFlow<()> {
        let size = key.size().bytes();
        let ptr = node_ptr(key);
        let read = node.as_ref().ok().copied();
        self.nodes.count(level, read, size);
        let percent = |bytes: u64| bytes.saturating_mul(100).checked_div(size).unwrap_or(0);
        (self.row)(&NodeRow {
            level,
            bucket: ptr.bucket(self.nodes.set.geometry()).0,
            cache_sector: ptr.offset().0,
            end_volume: key.inode(),
            end_sector: key.offset(),
            keys: read.map(|node| node.keys.len() as u64),
            sets: read.map(|node| node.sets.len() as u64),
            written_bytes: read.map(|node| node.written_bytes as u64),
            fill_percent: read.map(|node| percent(node.key_bytes() as u64)),
            error: match node {
                Ok(node) => node
                    .error
                    .map(|error| error.to_string())
                    .or_else(|| node.faults.first().map(ToString::to_string)),
                Err(error) => Some(format!("{:#}", anyhow::Error::from(error))),
            },
        })?;
        self.left = self.left.saturating_sub(1);
        if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn follow(&mut self, _key: &Bkey, _child_level: u16) -> bool {
        true
    }
}

impl List for Nodes<'_, '_> {
    type Row = NodeRow;

    fn each(&self, row: &mut dyn FnMut(&NodeRow) -> ControlFlow<()>) {
        self.levels.borrow_mut().clear();
        let left = self.limit.unwrap_or(u64::MAX);
        if left > 0 {
            walk_again(self.set, &mut NodeWalk { nodes: self, left, row });
        }
    }
}

/// The btree in JSON.
#[derive(Serialize)]
pub struct BtreeReport<'l, 's, 'd> {
    /// `btree_nodes`.
    pub nodes: u64,
    /// `tree_depth`.
    pub depth: u16,
    /// Extents in its leaves.
    pub keys: u64,
    /// Those that are usable.
    pub usable_keys: u64,
    /// Nodes that are damaged or cannot be read.
    pub bad_nodes: u64,
    /// Bytes of a node.
    pub node_bytes: u64,
    /// `btree_used_percent`.
    pub used_percent: u64,
    /// `root_usage_percent`.
    pub root_used_percent: u64,
    /// Bucket of the root.
    pub root_bucket: Option<u64>,
    /// The nodes.
    pub node_list: Json<'l, Nodes<'s, 'd>>,
}

impl<'l, 's, 'd> BtreeReport<'l, 's, 'd> {
    /// Of a set.
    pub fn new(nodes: &'l Nodes<'s, 'd>) -> Self {
        let set = nodes.set;
        let btree = &set.btree;
        Self {
            nodes: btree.nodes,
            depth: btree.depth,
            keys: btree.extents,
            usable_keys: btree.usable_extents,
            bad_nodes: btree.bad_nodes,
            node_bytes: btree.node_bytes,
            used_percent: btree.used_percent(),
            root_used_percent: btree.root_usage_percent(),
            root_bucket: set.root.ptrs().first().map(|ptr| ptr.bucket(set.geometry()).0),
            node_list: Json(nodes),
        }
    }
}

/// The sums by level.
pub fn render_levels(out: &mut Out, levels: &[LevelReport]) -> Result<()> {
    let mut rows = table::table(out.style(), &["level", "nodes", "keys", "sets", "fill"]);
    for level in levels {
        rows.add_row(vec![
            number(level.level),
            number(level.nodes),
            number(level.keys),
            number(level.sets),
            number(format!("{}%", level.fill_percent())),
        ]);
    }
    writeln!(out, "{rows}")?;
    Ok(())
}
