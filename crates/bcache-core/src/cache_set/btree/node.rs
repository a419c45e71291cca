//! One btree node in memory, as the kernel holds it after reading (docs/on-disk-format.md §5.2,
//! §5.6).

use std::collections::BTreeMap;

use crate::cache_set::CacheDevice;
use crate::cache_set::btree::keys::{NodeKeys, merge_usual};
use crate::cache_set::btree::overlap;
use crate::device::{AlignedBuf, DeviceError};
use crate::layout::bkey::{Bkey, Ptr};
use crate::layout::bset::{BSET_HEADER_BYTES, Bset, NodeError, NodeErrorAt, salvage_node};
use crate::units::{BucketIndex, Geometry, Sectors};

/// Most faults of one kind in one node that are told one by one.
const FAULTS_PER_KIND: usize = 16;

/// Bytes of a node's first set from which on the kernel compares its last key with the node's own:
/// two cache lines of its lookup table.
const SHORT_KEY_CHECK_BYTES: usize = 256;

/// One set of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetInfo {
    /// Where it starts in the node, in bytes.
    pub offset: usize,
    /// Its keys.
    pub keys: usize,
    /// Bytes of its keys.
    pub key_bytes: usize,
}

/// What is wrong in a node beside what makes the kernel drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeFault {
    /// A key that cannot be an extent: the kernel's "spotted extent".
    #[error("bad extent {key:?}")]
    BadExtent {
        /// The key.
        key: Bkey,
    },
    /// A key that cannot point to a child: the kernel's "spotted btree ptr".
    #[error("bad btree pointer {key:?}")]
    BadBtreePtr {
        /// The key.
        key: Bkey,
    },
    /// A key that starts before the one ahead of it in its set ends.
    #[error("key {key:?} of the set at byte {set} does not follow {before:?}")]
    OutOfOrder {
        /// Byte of the set in the node.
        set: usize,
        /// The key ahead of it.
        before: Bkey,
        /// The key.
        key: Bkey,
    },
    /// The last key of a set reaches past the set's end.
    #[error("the last key of the set at byte {set} is cut off")]
    Truncated {
        /// Byte of the set in the node.
        set: usize,
    },
    /// A key past the node's own, in a node with so few keys that the kernel does not look.
    #[error("key {key:?} lies past the node's own")]
    PastNode {
        /// The key.
        key: Bkey,
    },
    /// There are more faults of a kind than were told.
    #[error("{count} more in this node: {}", kind.name())]
    More {
        /// Of which kind.
        kind: FaultKind,
        /// How many.
        count: usize,
    },
}

/// The kinds of faults, which differ in what the kernel makes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// See [`NodeFault::BadExtent`].
    BadExtent,
    /// See [`NodeFault::BadBtreePtr`].
    BadBtreePtr,
    /// See [`NodeFault::OutOfOrder`].
    OutOfOrder,
    /// See [`NodeFault::Truncated`].
    Truncated,
    /// See [`NodeFault::PastNode`].
    PastNode,
}

impl FaultKind {
    /// The words for several of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadExtent => "bad extents",
            Self::BadBtreePtr => "bad btree pointers",
            Self::OutOfOrder => "keys out of order",
            Self::Truncated => "sets whose last key is cut off",
            Self::PastNode => "keys past the node's own",
        }
    }
}

impl NodeFault {
    /// Its kind.
    pub const fn kind(&self) -> FaultKind {
        match self {
            Self::BadExtent { .. } => FaultKind::BadExtent,
            Self::BadBtreePtr { .. } => FaultKind::BadBtreePtr,
            Self::OutOfOrder { .. } => FaultKind::OutOfOrder,
            Self::Truncated { .. } => FaultKind::Truncated,
            Self::PastNode { .. } => FaultKind::PastNode,
            Self::More { kind, .. } => *kind,
        }
    }
}

/// Why a node could not be read.
#[derive(Debug, thiserror::Error)]
#[error("btree node in bucket {bucket} cannot be read")]
pub struct NodeReadError {
    /// The bucket.
    pub bucket: BucketIndex,
    /// The device's error.
    pub source: DeviceError,
}

/// A node as read.
#[derive(Clone, Debug)]
pub struct LoadedNode {
    /// The key that points to it.
    pub key: Bkey,
    /// 0 for a leaf.
    pub level: u16,
    /// Its keys in order: without overlaps in a leaf, structurally valid, stale ones included.
    pub keys: NodeKeys,
    /// Its sets, oldest first.
    pub sets: Vec<SetInfo>,
    /// Their seq.
    pub seq: u64,
    /// Bytes in use, to the end of the last set's last block.
    pub written_bytes: usize,
    /// What makes the kernel refuse it; its keys are then those of the sets before.
    pub error: Option<NodeErrorAt>,
    /// What else is wrong.
    pub faults: Vec<NodeFault>,
}

impl LoadedNode {
    /// The bucket it lies in.
    pub fn bucket(&self, cache: &CacheDevice<'_>) -> BucketIndex {
        node_ptr(&self.key).bucket(cache.geometry())
    }

    /// Where it starts on the device.
    pub fn sector(&self) -> Sectors {
        node_ptr(&self.key).offset()
    }

    /// Bytes of its keys.
    pub fn key_bytes(&self) -> usize {
        self.keys.bytes()
    }
}

/// The pointer through which a node is read: the first.
pub fn node_ptr(key: &Bkey) -> Ptr {
    key.ptrs().first().copied().unwrap_or_default()
}

/// Reads the node that `key`, a valid btree pointer, points to.
pub(crate) fn read_node(
    cache: &CacheDevice<'_>,
    key: &Bkey,
    level: u16,
    scratch: &mut AlignedBuf,
) -> Result<LoadedNode, NodeReadError> {
    let ptr = node_ptr(key);
    let bucket = ptr.bucket(cache.geometry());
    let len = usize::try_from(key.size().bytes()).unwrap_or(0);
    if scratch.len() < len {
        *scratch = AlignedBuf::zeroed(len);
    }
    let bytes = scratch.get_mut(..len).unwrap_or_default();
    cache
        .device()
        .read_at(ptr.offset().bytes(), bytes)
        .map_err(|source| NodeReadError { bucket, source })?;
    Ok(parse(cache, key, level, bytes))
}

/// The node in `bytes`.
pub fn parse(cache: &CacheDevice<'_>, key: &Bkey, level: u16, bytes: &[u8]) -> LoadedNode {
    parse_with(cache, key, level, bytes, true)
}

/// The same without the quick way for usual nodes: for tests to compare.
#[cfg(feature = "testkit")]
pub fn parse_generally(
    cache: &CacheDevice<'_>,
    key: &Bkey,
    level: u16,
    bytes: &[u8],
) -> LoadedNode {
    parse_with(cache, key, level, bytes, false)
}

fn parse_with(
    cache: &CacheDevice<'_>,
    key: &Bkey,
    level: u16,
    bytes: &[u8],
    quick: bool,
) -> LoadedNode {
    let geometry = cache.geometry();
    let block_bytes = usize::try_from(geometry.block_bytes()).unwrap_or(usize::MAX);
    let (raw, error) = salvage_node(bytes, cache.magic(), node_ptr(key), block_bytes);
    let mut faults = Faults::default();
    let usual = if quick && level == 0 { merge_usual(&raw.sets, geometry) } else { None };
    let (keys, sets) = if let Some((keys, counts)) = usual {
        let infos = raw.sets.iter().zip(counts).map(|(set, keys)| SetInfo {
            offset: set.offset,
            keys,
            key_bytes: set.key_bytes(),
        });
        (keys, infos.collect())
    } else {
        merge_any(&raw.sets, level, geometry, &mut faults)
    };
    let mut node = LoadedNode {
        key: *key,
        level,
        keys,
        sets,
        seq: raw.seq,
        written_bytes: raw.written_bytes,
        error,
        faults: Vec::new(),
    };
    if let Some(last) = node.keys.last().filter(|last| last.pos() > key.pos()) {
        let kernel_checks = BSET_HEADER_BYTES + node.key_bytes() >= SHORT_KEY_CHECK_BYTES;
        if kernel_checks && node.error.is_none() {
            node.error = Some(NodeErrorAt { error: NodeError::ShortKey, offset: 0 });
        } else {
            faults.add(NodeFault::PastNode { key: last });
        }
    }
    node.faults = faults.into_vec();
    node
}

/// The keys of any node, and what is wrong with them.
fn merge_any(
    raw: &[Bset<'_>],
    level: u16,
    geometry: &Geometry,
    faults: &mut Faults,
) -> (NodeKeys, Vec<SetInfo>) {
    let mut infos = Vec::with_capacity(raw.len());
    let mut sets = Vec::with_capacity(raw.len());
    for set in raw {
        let mut keys = Vec::with_capacity(set.key_bytes() / 24 + 1);
        let mut iter = set.keys();
        keys.extend(iter.by_ref());
        if iter.truncated() {
            faults.add(NodeFault::Truncated { set: set.offset });
        }
        infos.push(SetInfo { offset: set.offset, keys: keys.len(), key_bytes: set.key_bytes() });
        if !check_order(&keys, level, set.offset, faults) {
            keys.sort_by_key(Bkey::pos);
        }
        sets.push(keys);
    }
    let keys = if level == 0 {
        let mut keys = overlap::merge_extent_sets(sets);
        keys.retain(|key| {
            let valid = key.is_valid_extent(geometry);
            if !valid {
                faults.add(NodeFault::BadExtent { key: *key });
            }
            valid
        });
        overlap::join_neighbours(&mut keys, geometry);
        keys
    } else {
        let mut keys = overlap::merge_interior_sets(sets);
        keys.retain(|key| {
            let valid = key.is_valid_btree_ptr(geometry);
            if !valid {
                faults.add(NodeFault::BadBtreePtr { key: *key });
            }
            valid
        });
        keys
    };
    (keys.into(), infos)
}

/// Whether the keys of one set are in order; interior keys may not be equal either, but for the
/// markers of freed children.
fn check_order(keys: &[Bkey], level: u16, set: usize, faults: &mut Faults) -> bool {
    let mut ordered = true;
    let mut before: Option<&Bkey> = None;
    for key in keys {
        if let Some(before) = before {
            let follows = if level == 0 {
                before.pos() <= key.start_pos()
            } else {
                before.pos() <= key.pos()
            };
            if !follows {
                faults.add(NodeFault::OutOfOrder { set, before: *before, key: *key });
                ordered = false;
            }
        }
        // A key without a size was overwritten in place and has no say in the order of starts.
        if level > 0 || key.size().0 > 0 {
            before = Some(key);
        }
    }
    ordered
}

/// Bounded for each kind alone, so that many harmless faults do not hide a grave one.
#[derive(Default)]
struct Faults {
    told: Vec<NodeFault>,
    counts: BTreeMap<FaultKind, usize>,
}

impl Faults {
    fn add(&mut self, fault: NodeFault) {
        let count = self.counts.entry(fault.kind()).or_default();
        *count += 1;
        if *count <= FAULTS_PER_KIND {
            self.told.push(fault);
        }
    }

    fn into_vec(mut self) -> Vec<NodeFault> {
        for (kind, count) in self.counts {
            if count > FAULTS_PER_KIND {
                self.told.push(NodeFault::More { kind, count: count - FAULTS_PER_KIND });
            }
        }
        self.told
    }
}
