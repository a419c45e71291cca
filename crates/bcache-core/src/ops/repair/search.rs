//! Btree nodes that no pointer leads to any more, found by what they are.
//!
//! A node's level and where it begins and ends are not on the device. Its set's UUID is, in the magic, and
//! its bucket and gen are, in the checksum. A node whose gen is behind its bucket's is an outdated copy. One
//! that these tools made, with a gen that its bucket never had, was never made current.

use std::collections::{HashMap, HashSet};

use crate::cache_set::pointers::Pointers;
use crate::cache_set::{Bucket, CacheSet, Progress};
use crate::checksum::crc64_seeded;
use crate::device::AlignedBuf;
use crate::layout::bkey::{Bkey, Pos, Ptr};
use crate::layout::bset::{BSET_HEADER_BYTES, BSET_VERSION, Bset, salvage_node};
use crate::ops::rebuild;
use crate::ops::repair::scan::scan;
use crate::units::{BucketIndex, Gen, Geometry, Sectors};

/// Percentage of a node's first set that another holds, where that one is its past: a node is begun with
/// what is sound of the one that it replaces.
const PAST_PERCENT: usize = 90;

/// The sound sets of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeSets {
    /// Whether the first set is sound.
    pub(super) begins: bool,
    /// Whether anything else is not.
    pub(super) damaged: bool,
    /// Keys of the first set.
    pub(super) first: usize,
    /// Keys of the sets before the damage, the first set's first.
    pub(super) before: Vec<Bkey>,
    /// Keys of those behind it.
    pub(super) after: Vec<Bkey>,
    /// Keys of a set that is whole, and that no kernel writes like this: any of them may be wrong.
    pub(super) doubtful: Vec<Bkey>,
}

impl NodeSets {
    /// Reads the node that `ptr` leads to.
    pub(super) fn read(set: &CacheSet<'_>, bucket: BucketIndex, ptr: Ptr) -> Option<Self> {
        Self::read_until(set, bucket, ptr, &|_| false)
    }

    /// The same of a leaf. A set with keys that no kernel writes like this is damage, too.
    pub(super) fn read_leaf(set: &CacheSet<'_>, bucket: BucketIndex, ptr: Ptr) -> Option<Self> {
        let geometry = *set.geometry();
        Self::read_until(set, bucket, ptr, &|set| is_faulty(set, &geometry))
    }

    fn read_until(
        set: &CacheSet<'_>,
        bucket: BucketIndex,
        ptr: Ptr,
        is_faulty: &dyn Fn(&Bset<'_>) -> bool,
    ) -> Option<Self> {
        let geometry = set.geometry();
        let len = usize::try_from(geometry.btree_node_size().bytes()).ok()?;
        let block_bytes = usize::try_from(geometry.block_bytes()).unwrap_or(512).max(1);
        let mut bytes = AlignedBuf::zeroed(len);
        set.cache.read_bucket(bucket, 0, &mut bytes).ok()?;
        let (sound, error) = salvage_node(&bytes, set.cache.magic(), ptr, block_bytes);
        let keys = |sets: &[Bset<'_>]| sets.iter().flat_map(Bset::keys).collect::<Vec<_>>();
        let begins = !sound.sets.is_empty();
        let faulty = sound.sets.iter().position(is_faulty);
        let (before, rest) = sound.sets.split_at(faulty.unwrap_or(sound.sets.len()));
        let (doubtful, after) = rest.split_at(rest.len().min(1));
        let mut node = Self {
            begins: !before.is_empty(),
            damaged: error.is_some() || faulty.is_some(),
            first: before.first().map_or(0, |set| set.keys().count()),
            before: keys(before),
            after: keys(after),
            doubtful: keys(doubtful),
        };
        let Some(error) = error else { return Some(node) };
        let mut at = error.offset.saturating_add(block_bytes);
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
        Some(node)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Bkey> {
        self.before.iter().chain(&self.after)
    }
}

/// Whether a set of a leaf has keys that cannot be extents, that are not in order, or that are cut off.
fn is_faulty(set: &Bset<'_>, geometry: &Geometry) -> bool {
    let mut keys = set.keys();
    let mut end = Pos::ZERO;
    let faulty = keys.by_ref().filter(|key| key.size().0 > 0).any(|key| {
        let follows = end <= key.start_pos();
        end = key.pos();
        !follows || !key.is_valid_extent(geometry)
    });
    faulty || keys.truncated()
}

/// A leaf that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundLeaf {
    pub(super) bucket: BucketIndex,
    pub(super) ptr: Ptr,
    /// Where its first key starts and its last one ends.
    pub(super) from: Pos,
    pub(super) to: Pos,
    /// Whether its gen is its bucket's.
    pub(super) is_live: bool,
    pub(super) is_damaged: bool,
}

/// What a search found.
#[derive(Debug, Default)]
pub(super) struct FoundNodes {
    /// Leaves with keys, by where they begin.
    pub(super) leaves: Vec<FoundLeaf>,
    /// Buckets of nodes that are not leaves, and are not outdated.
    pub(super) interior: Vec<BucketIndex>,
}

/// Looks at the start of each bucket. Gens of buckets become as new as what sound nodes tell of them.
pub(super) fn search(set: &mut CacheSet<'_>, progress: &mut dyn FnMut(Progress)) -> FoundNodes {
    let all =
        scan(&set.cache, progress, &|_| true, &|bucket, start| pointer_to(set, bucket, start));
    let buckets: HashSet<BucketIndex> = all.iter().map(|(bucket, _)| *bucket).collect();
    let geometry = *set.geometry();
    let mut found = FoundNodes::default();
    let mut gens: HashMap<BucketIndex, Gen> = HashMap::new();
    for (bucket, ptr) in all {
        let Some(node) = NodeSets::read(set, bucket, ptr) else { continue };
        let is_live = is_live(set, bucket, ptr.ptr_gen());
        if is_live {
            let pointers = node.keys().flat_map(Bkey::ptrs).chain([&ptr]);
            for ptr in pointers.filter(|ptr| ptr.available()) {
                let known = gens.entry(ptr.bucket(&geometry)).or_insert(ptr.ptr_gen());
                if ptr.ptr_gen().gen_after(*known) != 0 {
                    *known = ptr.ptr_gen();
                }
            }
        }
        if is_interior(&node, &geometry, &buckets) {
            if is_live {
                found.interior.push(bucket);
            }
            continue;
        }
        let keys = || node.keys().filter(|key| key.is_valid_extent(&geometry));
        let (Some(from), Some(to)) =
            (keys().map(Bkey::start_pos).min(), keys().map(Bkey::pos).max())
        else {
            continue;
        };
        found.leaves.push(FoundLeaf { bucket, ptr, from, to, is_live, is_damaged: node.damaged });
    }
    for (bucket, newest) in gens {
        set.table.raise_gen(bucket, newest);
    }
    // What was freed since is told by a newer pointer into its bucket.
    for leaf in &mut found.leaves {
        leaf.is_live = leaf.is_live && is_live(set, leaf.bucket, leaf.ptr.ptr_gen());
    }
    found.leaves.sort_by_key(|leaf| (leaf.from, leaf.to));
    found
}

fn is_live(set: &CacheSet<'_>, bucket: BucketIndex, ptr_gen: Gen) -> bool {
    set.table.staleness(bucket, ptr_gen) == 0
}

/// The pointer that leads to the node in a bucket which begins with `start`, if there is one whose first set
/// is sound.
fn pointer_to(set: &CacheSet<'_>, bucket: BucketIndex, start: &[u8]) -> Option<Ptr> {
    let geometry = set.geometry();
    let word = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(*start.get(at..)?.first_chunk::<8>()?))
    };
    let (csum, magic, seq) = (word(0)?, word(8)?, word(16)?);
    let (version, words) = (word(24)? & u64::from(u32::MAX), word(24)? >> 32);
    if magic != set.cache.magic().bset() || seq == 0 || version != u64::from(BSET_VERSION) {
        return None;
    }
    let len = words.checked_mul(8)?.checked_add(BSET_HEADER_BYTES as u64)?;
    if len > geometry.btree_node_size().bytes() {
        return None;
    }
    let len = usize::try_from(len).ok()?;
    let mut bytes = AlignedBuf::zeroed(len.next_multiple_of(start.len()));
    set.cache.read_bucket(bucket, 0, &mut bytes).ok()?;
    let ptr_gen = gen_of(set, bucket, bytes.get(8..len)?, csum)?;
    let known = set.table.get(bucket).filter(|it| !it.gen_unknown()).map(Bucket::bucket_gen);
    let is_ours = rebuild::is_made_here(set, seq);
    // Nodes are written before the gens that make them current.
    if is_ours && known.is_some_and(|known| ptr_gen.gen_after(known) != 0) {
        return None;
    }
    Some(node_pointer(set, bucket, ptr_gen))
}

/// The gen with which the checksum is right; the bucket's own is tried first.
fn gen_of(set: &CacheSet<'_>, bucket: BucketIndex, covered: &[u8], csum: u64) -> Option<Gen> {
    let is_right =
        |ptr_gen: Gen| crc64_seeded(node_pointer(set, bucket, ptr_gen).0, covered) == csum;
    let own = set.table.get(bucket).map(Bucket::bucket_gen).unwrap_or_default();
    if is_right(own) {
        return Some(own);
    }
    // The checksum is linear: what a bit of the gen changes does not depend on the contents.
    let zero = node_pointer(set, bucket, Gen(0)).0;
    let base = crc64_seeded(zero, covered);
    let of_bit: Vec<u64> =
        (0..8).map(|bit| crc64_seeded(zero ^ (1 << bit), covered) ^ base).collect();
    let difference = base ^ csum;
    (0..=u8::MAX).map(Gen).find(|ptr_gen| {
        let bits = (0u32..).zip(&of_bit).filter(|(bit, _)| ptr_gen.0 >> bit & 1 == 1);
        bits.fold(0, |sum, (_, change)| sum ^ change) == difference
    })
}

/// The pointer to the node that a bucket is, of this gen.
pub(super) fn node_pointer(set: &CacheSet<'_>, bucket: BucketIndex, ptr_gen: Gen) -> Ptr {
    let sector = set.geometry().bucket_to_sector(bucket);
    Ptr::new(ptr_gen, Sectors(sector.0), set.cache.superblock().nr_this_dev())
}

/// Whether a node cannot be a leaf: all its keys are as pointers to nodes are, and one is what no extent
/// is, or leads to a node.
fn is_interior(node: &NodeSets, geometry: &Geometry, nodes: &HashSet<BucketIndex>) -> bool {
    let node_size = geometry.btree_node_size();
    let could_lead = |key: &Bkey| {
        let aligned = |ptr: &Ptr| geometry.bucket_to_sector(ptr.bucket(geometry)) == ptr.offset();
        !key.dirty() && key.ptrs_count() > 0 && key.ptrs().iter().all(aligned)
    };
    let leads = |key: &Bkey| {
        key.pos() >= Pos::MAX
            || key.is_zero_key()
            || key.ptrs().iter().any(|ptr| nodes.contains(&ptr.bucket(geometry)))
    };
    let mut keys = node.keys().peekable();
    keys.peek().is_some()
        && node.keys().all(|key| could_lead(key) && (key.is_zero_key() || key.size() == node_size))
        && node.keys().any(leads)
}

/// The sets of leaves, those ahead that are the past of others.
pub(super) fn in_order(nodes: &[(FoundLeaf, NodeSets)]) -> Vec<&NodeSets> {
    // The more of the others a leaf is the past of, the older it is.
    let mut order: Vec<(usize, &NodeSets)> = Vec::new();
    for (leaf, sets) in nodes {
        let pointers = Pointers::new(sets.keys());
        let overlapping = nodes.iter().filter(|(other, _)| {
            other.bucket != leaf.bucket && leaf.from < other.to && other.from < leaf.to
        });
        order.push((overlapping.filter(|(_, other)| is_past(&pointers, other)).count(), sets));
    }
    order.sort_by_key(|(older, _)| std::cmp::Reverse(*older));
    order.into_iter().map(|(_, sets)| sets).collect()
}

/// Whether the leaf with these pointers is the past of another.
fn is_past(pointers: &Pointers, of: &NodeSets) -> bool {
    let first = of.before.get(..of.first).unwrap_or_default();
    let held = first.iter().filter(|key| pointers.has(key)).count();
    !first.is_empty() && held.saturating_mul(100) >= first.len().saturating_mul(PAST_PERCENT)
}
