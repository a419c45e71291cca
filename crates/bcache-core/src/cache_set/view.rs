//! Looking up what is cached where, and reading volumes through the cache.
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

use crate::cache_set::btree::LoadedNode;
use crate::cache_set::btree::node::{NodeReadError, node_ptr, read_node};
use crate::cache_set::{CacheSet, KeySource};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::layout::bkey::{Bkey, Pos};
use crate::units::{BucketIndex, SECTOR_BYTES, Sectors};

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
        error: crate::layout::bset::NodeErrorAt,
    },
    /// The root's level is more than any btree has.
    #[error("a btree of depth {level}")]
    TooDeep {
        /// The root's level.
        level: u16,
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
            if let Some(error) = node.error {
                let bucket = node.bucket(&self.set.cache);
                return Err(LookupError::BadNode { bucket, error });
            }
            if self.nodes.len() >= NODES_KEPT {
                self.nodes.pop_front();
            }
            Rc::new(node)
        };
        self.nodes.push_back(Rc::clone(&node));
        Ok(node)
    }

    /// The leaf with the keys that end after `pos`; `None` past the end of the btree.
    fn leaf(&mut self, pos: Pos) -> Result<Option<Rc<LoadedNode>>, LookupError> {
        let geometry = *self.set.geometry();
        let mut key = self.set.root;
        if !key.is_valid_btree_ptr(&geometry) {
            return Err(LookupError::BadRoot { key });
        }
        let mut level = self.set.btree.depth;
        if level > DEPTH_MAX {
            return Err(LookupError::TooDeep { level });
        }
        loop {
            let node = self.node(&key, level)?;
            let Some(below) = level.checked_sub(1) else { return Ok(Some(node)) };
            let from = node.keys.partition_point(|key| key.pos() <= pos);
            let child = node
                .keys
                .iter_from(from)
                .find(|key| !key.is_zero_key() && self.set.table.is_usable(key, &geometry));
            let Some(child) = child else { return Ok(None) };
            key = child;
            level = below;
        }
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
        self.lookup_all(inode, start, end, found).map(drop)
    }

    fn lookup_all(
        &mut self,
        inode: u32,
        start: u64,
        end: u64,
        found: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LookupError> {
        let mut at = start;
        let overlay = &self.set.overlay;
        for (seq, above) in overlay.overlapping_with_seq(inode, start, end) {
            let from = above.start().max(at);
            if at < from && self.lookup_btree(inode, at, from, found)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let to = above.offset().min(end);
            let extent = self.extent(inode, from, to, Some((above, KeySource::Journal { seq })));
            if found(extent).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = to;
        }
        if at < end {
            return self.lookup_btree(inode, at, end, found);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The same of the btree alone, without what replay lays over it.
    pub(super) fn lookup_btree(
        &mut self,
        inode: u32,
        start: u64,
        end: u64,
        found: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LookupError> {
        let mut at = start;
        let mut tell = |extent| found(extent).is_break();
        while at < end {
            let Some(leaf) = self.leaf(Pos { inode, offset: at })? else { break };
            let node = node_ptr(&leaf.key).bucket(self.set.geometry());
            let origin = KeySource::Btree { level: 0, node };
            let from = leaf.keys.partition_point(|key| key.pos() <= Pos { inode, offset: at });
            for key in leaf.keys.iter_from(from) {
                if key.inode() != inode || key.start() >= end {
                    break;
                }
                if at < key.start() {
                    if tell(self.extent(inode, at, key.start(), None)) {
                        return Ok(ControlFlow::Break(()));
                    }
                    at = key.start();
                }
                let to = key.offset().min(end);
                if tell(self.extent(inode, at, to, Some((&key, origin)))) {
                    return Ok(ControlFlow::Break(()));
                }
                at = to;
            }
            let bound = leaf.key.pos();
            if bound.inode != inode || bound.offset >= end {
                break;
            }
            // The next leaf begins where this one's range ends, and must lead on.
            if at < bound.offset {
                if tell(self.extent(inode, at, bound.offset, None)) {
                    return Ok(ControlFlow::Break(()));
                }
                at = bound.offset;
            } else if at > bound.offset {
                break;
            }
        }
        if at < end && tell(self.extent(inode, at, end, None)) {
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
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

/// Why a volume cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum VolumeReadError {
    /// The btree does not tell where the data is.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The range does not consist of whole sectors.
    #[error("{len} bytes at byte {offset} are not whole sectors")]
    Misaligned {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Reads a volume as `/dev/bcacheN` would: the cache where it has the data, else the backing device.
pub struct VolumeReader<'s, 'd> {
    view: View<'s, 'd>,
    inode: u32,
    backing: Option<(&'s dyn ReadDevice, Sectors)>,
}

impl<'s, 'd> VolumeReader<'s, 'd> {
    /// The volume in slot `inode` of `set`. `backing` is its backing device and the sector at which
    /// the data starts there; a flash-only volume has none and reads as zeroes where nothing is.
    ///
    /// Offsets are those of `/dev/bcacheN`: 0 is the first byte of data.
    pub fn new(
        set: &'s CacheSet<'d>,
        inode: u32,
        backing: Option<(&'s dyn ReadDevice, Sectors)>,
    ) -> Self {
        Self { view: set.view(), inode, backing }
    }

    /// Fills `buf`, whole sectors, from the byte `offset` of the volume.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), VolumeReadError> {
        let len = buf.len() as u64;
        if offset % SECTOR_BYTES != 0 || len % SECTOR_BYTES != 0 {
            return Err(VolumeReadError::Misaligned { offset, len });
        }
        let data_offset = self.backing.map_or(0, |(_, data_offset)| data_offset.0);
        let start = (offset / SECTOR_BYTES).saturating_add(data_offset);
        let end = start.saturating_add(len / SECTOR_BYTES);
        let mut extents = Vec::new();
        self.view.lookup(self.inode, start, end, &mut |extent| {
            extents.push(extent);
            ControlFlow::Continue(())
        })?;
        let mut rest = buf;
        for extent in extents {
            let bytes = Sectors(extent.end.saturating_sub(extent.start)).bytes();
            let len = usize::try_from(bytes).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            rest = after;
            match (extent.cached, self.backing) {
                (Some(sector), _) => {
                    self.view.set().cache.device().read_at(sector.bytes(), part)?;
                }
                (None, Some((device, _))) => {
                    device.read_at(Sectors(extent.start).bytes(), part)?;
                }
                (None, None) => part.fill(0),
            }
        }
        Ok(())
    }
}
