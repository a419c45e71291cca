//! Looking up what is cached where.
//!
//! A [`View`] answers from the btree with the journal's keys laid over it, as the kernel does after
//! registration. It reads the nodes on the way and keeps the last ones.
//!
//! Keys count sectors of the *backing device*, from its first sector on: sector 0 of `/dev/bcacheN`
//! is at the device's data offset in the keys (`cached_dev_submit_bio`). A flash-only volume has no
//! such offset.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::rc::Rc;

use crate::cache_set::btree::node::{NodeReadError, node_ptr, read_node};
use crate::cache_set::btree::{FaultKind, LoadedNode};
use crate::cache_set::{CacheSet, KeySource, NodePlace, Suspect};
use crate::device::AlignedBuf;
use crate::layout::bkey::{Bkey, Pos};
use crate::layout::bset::NodeErrorAt;
use crate::units::{BucketIndex, Sectors};

/// Nodes kept; at the usual 256 KiB each, some 25 MB with their keys.
const NODES_KEPT: usize = 32;

/// Deepest btree that is followed. A node holds two children at least, and no device has 2^40
/// buckets.
const DEPTH_MAX: u16 = 40;

/// Why a place cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The journal's root cannot be one.
    #[error("bad btree root: {key:?}")]
    BadRoot {
        /// The key.
        key: Bkey,
    },
    /// A node on the way could not be read.
    #[error(transparent)]
    Node(#[from] NodeReadError),
    /// A node on the way is damaged.
    #[error("btree node in bucket {bucket}: {error}")]
    BadNode {
        /// Its bucket.
        bucket: BucketIndex,
        /// What is wrong.
        error: NodeErrorAt,
    },
    /// The root's level is more than any btree has.
    #[error("a btree of depth {level}")]
    TooDeep {
        /// The root's level.
        level: u16,
    },
    /// The children of a node on the way do not reach as far as the node does.
    #[error("btree node in bucket {bucket}: no usable child for what is looked up")]
    NoChild {
        /// Its bucket.
        bucket: BucketIndex,
    },
}

/// A stretch of a volume and what the cache has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Slot of the volume.
    pub inode: u32,
    /// First sector, as keys count: of the backing device.
    pub start: u64,
    /// Sector after the last.
    pub end: u64,
    /// The key that rules here, cut to the stretch; `None` where there is none.
    pub key: Option<Bkey>,
    /// Where the data is on the cache device; `None` where the backing device has to be read.
    pub cached: Option<Sectors>,
    /// Whether the backing device lacks the data.
    pub dirty: bool,
    /// Where the key stands.
    pub origin: Option<KeySource>,
}

/// A stretch of a volume, as [`View::survey`] finds it.
#[derive(Debug)]
pub enum Surveyed {
    /// The btree or the journal tells what is cached.
    Known {
        /// What it tells.
        extent: Extent,
        /// Why the nodes on the way may not be the right ones.
        doubt: Option<Doubt>,
    },
    /// A node could not be read that would tell.
    Lost {
        /// First sector, as keys count.
        start: u64,
        /// Sector after the last.
        end: u64,
        /// Why.
        error: LookupError,
        /// A dirty extent that the sound sets of a damaged leaf tell of: later sets may have
        /// replaced it.
        survivor: Option<Extent>,
    },
}

/// Why something that could be read may not be the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doubt {
    /// The gen of a bucket is not known for certain: a reused one, or an outdated node, cannot be
    /// told from a current one.
    Gens,
    /// Keys may be missing from a btree node, or wrong.
    Btree,
    /// Keys may be missing from the journal.
    Journal,
    /// A key says that the cache has the only copy, and its bucket was reused.
    StaleDirty,
    /// A key says that the cache has the only copy, and its bucket holds metadata.
    Displaced,
}

/// A leaf that covers a position.
struct Leaf {
    node: Rc<LoadedNode>,
    /// It covers keys that end after this position.
    from: Pos,
    doubt: Option<Doubt>,
    /// What keeps it from being whole; its keys are those of the sound sets.
    damage: Option<NodeErrorAt>,
}

/// A node that does not tell what lies below it.
struct LostNode {
    /// Its own key: the last position that it covers.
    end: Pos,
    error: LookupError,
}

/// Looks things up in a cache set.
#[derive(Debug)]
pub struct View<'s, 'd> {
    set: &'s CacheSet<'d>,
    /// Most recently used last.
    nodes: VecDeque<Rc<LoadedNode>>,
    scratch: AlignedBuf,
}

impl<'s, 'd> View<'s, 'd> {
    /// A view of `set`.
    pub fn new(set: &'s CacheSet<'d>) -> Self {
        Self { set, nodes: VecDeque::new(), scratch: AlignedBuf::zeroed(0) }
    }

    /// The set.
    pub fn set(&self) -> &'s CacheSet<'d> {
        self.set
    }

    fn node(&mut self, key: &Bkey, level: u16) -> Result<Rc<LoadedNode>, LookupError> {
        let known = self.nodes.iter().position(|node| node.key == *key && node.level == level);
        let node = if let Some(node) = known.and_then(|index| self.nodes.remove(index)) {
            node
        } else {
            let node = read_node(&self.set.cache, key, level, &mut self.scratch)?;
            if self.nodes.len() >= NODES_KEPT {
                self.nodes.pop_front();
            }
            Rc::new(node)
        };
        self.nodes.push_back(Rc::clone(&node));
        if let Some(error) = node.error.filter(|_| level > 0) {
            let bucket = node.bucket(&self.set.cache);
            return Err(LookupError::BadNode { bucket, error });
        }
        Ok(node)
    }

    /// The leaf with the keys that end after `pos`; `None` past the end of the btree.
    fn leaf(&mut self, pos: Pos) -> Result<Option<Leaf>, LostNode> {
        let geometry = *self.set.geometry();
        let mut key = self.set.root;
        if !key.is_valid_btree_ptr(&geometry) {
            return Err(LostNode { end: Pos::MAX, error: LookupError::BadRoot { key } });
        }
        let mut level = self.set.btree.depth;
        if level > DEPTH_MAX {
            return Err(LostNode { end: Pos::MAX, error: LookupError::TooDeep { level } });
        }
        if pos >= key.pos() {
            return Ok(None);
        }
        // The journal names the root: no gen decides whether it is current.
        let mut doubt = None;
        let mut covers_from = Pos::ZERO;
        loop {
            let node =
                self.node(&key, level).map_err(|error| LostNode { end: key.pos(), error })?;
            if node.faults.iter().any(|fault| fault.kind() != FaultKind::PastNode) {
                doubt = Some(Doubt::Btree);
            }
            let Some(below) = level.checked_sub(1) else {
                let damage = node.error;
                if self.set.is_suspect(pos, key.pos()) {
                    doubt = Some(Doubt::Btree);
                }
                return Ok(Some(Leaf { node, from: covers_from, doubt, damage }));
            };
            let from = node.keys.partition_point(|key| key.pos() <= pos);
            let before = from.checked_sub(1).and_then(|before| node.keys.get(before));
            covers_from = before.map_or(covers_from, |before| before.pos());
            let child = node
                .keys
                .iter_from(from)
                .find(|key| !key.is_zero_key() && self.set.table.is_usable(key, &geometry));
            let Some(child) = child else {
                let bucket = node_ptr(&key).bucket(&geometry);
                return Err(LostNode { end: key.pos(), error: LookupError::NoChild { bucket } });
            };
            if !self.set.prios.knows(node_ptr(&child).bucket(&geometry), &geometry) {
                doubt = doubt.or(Some(Doubt::Gens));
            }
            key = child;
            level = below;
        }
    }

    /// The leaf with the keys that end after `pos`, and the stretch that it covers; `None` where it cannot
    /// be read.
    pub(super) fn leaf_at(&mut self, pos: Pos) -> Option<(NodePlace, Suspect)> {
        let Leaf { node, from, .. } = self.leaf(pos).ok()??;
        let (ptr, end) = (node_ptr(&node.key), node.key.pos());
        let bucket = ptr.bucket(self.set.geometry());
        let place = NodePlace { level: 0, bucket, sector: ptr.offset(), end };
        Some((place, Suspect { from, to: end, level: 0, bucket }))
    }

    /// Tells what the cache has for the sectors `[start, end)` of the volume in slot `inode`, in
    /// order and without gaps, until `found` breaks. Sectors are those of keys: of the backing
    /// device.
    pub fn lookup(
        &mut self,
        inode: u32,
        start: u64,
        end: u64,
        found: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), LookupError> {
        first_error(found, |found| self.survey(inode, start, end, found)).map(drop)
    }

    /// The same of a damaged set, too: where a node cannot be read that would tell, this is said of
    /// the sectors that it covers, and the survey goes on behind them.
    pub fn survey(
        &mut self,
        inode: u32,
        start: u64,
        end: u64,
        found: &mut dyn FnMut(Surveyed) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut at = start;
        let overlay = &self.set.overlay;
        for (seq, above) in overlay.overlapping_with_seq(inode, start, end) {
            let from = above.start().max(at);
            if at < from {
                self.survey_btree(inode, at, from, found)?;
            }
            let to = above.offset().min(end);
            let extent = self.extent(inode, from, to, Some((above, KeySource::Journal { seq })));
            found(Surveyed::Known { extent, doubt: None })?;
            at = to;
        }
        if at < end {
            self.survey_btree(inode, at, end, found)?;
        }
        ControlFlow::Continue(())
    }

    /// [`Self::lookup`] of the btree alone, without what replay lays over it.
    pub(super) fn lookup_btree(
        &mut self,
        inode: u32,
        start: u64,
        end: u64,
        found: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LookupError> {
        first_error(found, |found| self.survey_btree(inode, start, end, found))
    }

    /// [`Self::survey`] of the btree alone, without what replay lays over it.
    pub(super) fn survey_btree(
        &mut self,
        inode: u32,
        start: u64,
        end: u64,
        found: &mut dyn FnMut(Surveyed) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut at = start;
        while at < end {
            let Leaf { node: leaf, doubt, damage, .. } = match self.leaf(Pos { inode, offset: at })
            {
                Ok(Some(leaf)) => leaf,
                Ok(None) => break,
                Err(LostNode { end: bound, error }) => {
                    let to = if bound.inode == inode { bound.offset.min(end) } else { end };
                    // A node that does not lead on would be met again and again.
                    let to = if to > at { to } else { end };
                    found(Surveyed::Lost { start: at, end: to, error, survivor: None })?;
                    at = to;
                    continue;
                }
            };
            let node = node_ptr(&leaf.key).bucket(self.set.geometry());
            let mut tell = |extent: Extent| {
                found(match damage {
                    None => Surveyed::Known { extent, doubt },
                    Some(error) => Surveyed::Lost {
                        start: extent.start,
                        end: extent.end,
                        error: LookupError::BadNode { bucket: node, error },
                        survivor: Some(extent).filter(|extent| extent.dirty),
                    },
                })
            };
            let origin = KeySource::Btree { level: 0, node };
            let from = leaf.keys.partition_point(|key| key.pos() <= Pos { inode, offset: at });
            for key in leaf.keys.iter_from(from) {
                if key.inode() != inode || key.start() >= end {
                    break;
                }
                if at < key.start() {
                    tell(self.extent(inode, at, key.start(), None))?;
                    at = key.start();
                }
                let to = key.offset().min(end);
                tell(self.extent(inode, at, to, Some((&key, origin))))?;
                at = to;
            }
            let bound = leaf.key.pos();
            if bound.inode != inode || bound.offset >= end {
                if at < end {
                    tell(self.extent(inode, at, end, None))?;
                }
                return ControlFlow::Continue(());
            }
            // The next leaf begins where this one's range ends. A damaged one may have keys behind that.
            if at < bound.offset {
                tell(self.extent(inode, at, bound.offset, None))?;
                at = bound.offset;
            }
        }
        if at < end {
            let extent = self.extent(inode, at, end, None);
            found(Surveyed::Known { extent, doubt: None })?;
        }
        ControlFlow::Continue(())
    }

    fn extent(&self, inode: u32, start: u64, end: u64, key: Option<(&Bkey, KeySource)>) -> Extent {
        let mut cut = key.map(|(key, _)| *key);
        if let Some(key) = &mut cut {
            key.cut_front(start);
            key.cut_back(end);
        }
        let usable = cut.filter(|key| self.set.table.is_usable(key, self.set.geometry()));
        Extent {
            inode,
            start,
            end,
            key: cut,
            cached: usable.and_then(|key| key.ptrs().first().map(|ptr| ptr.offset())),
            dirty: usable.is_some_and(|key| key.dirty()),
            origin: key.map(|(_, origin)| origin),
        }
    }
}

/// Runs a survey for what wants extents only: the first stretch that is lost ends it.
fn first_error(
    found: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    survey: impl FnOnce(&mut dyn FnMut(Surveyed) -> ControlFlow<()>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, LookupError> {
    let mut failed = None;
    let flow = survey(&mut |surveyed| match surveyed {
        Surveyed::Known { extent, .. } => found(extent),
        Surveyed::Lost { error, .. } => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    failed.map_or(Ok(flow), Err)
}
