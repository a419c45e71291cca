//! A new generation of a cache set's metadata, built beside the old one.
//!
//! From extents in order, a btree is filled from left to right in buckets that nothing points to;
//! then a prio chain, where asked for a uuid table, and one journal entry that names them all and
//! has nothing to replay. What is kept of the old state is the data and the gens.
//!
//! Order of the writes, and what a power cut leaves:
//!
//! 1. btree nodes and the uuid table, a flush. The old state: only buckets that it calls unused have
//!    changed.
//! 2. the sets of a new prio chain, a flush. The old state still. A prio set that is durable means
//!    that all nodes are: a search for nodes in a set without a journal can tell by the gens which
//!    of them were never made current.
//! 3. all of it is read back. If the device did not keep it, everything ends here.
//! 4. the journal entry, a flush. It is 240 bytes, within one sector, and has a checksum: the old
//!    state or the new one, whole. It stands where nothing is that the old state needs.
//! 5. zeroes over what is left of torn journal entries, of which the kernel would complain at each
//!    registration, a flush. The new state.
//!
//! The new btree has no stale pointers, and the buckets of the old one get the next gen, as when the
//! kernel frees a node.
//!
//! Memory: 8 bytes a bucket for the set, two bits a bucket for what is chosen, one node for each
//! level, and one prio set. Nodes are made again from the extents each time they are needed.

mod error;
mod nodes;
mod run;
mod source;

pub use error::{CommitError, CommitState, ExtentsError, RebuildError};
pub use nodes::Contents;
pub use run::run;
pub(in crate::ops) use run::write;
pub use source::{Extents, KeptExtents};

use crate::cache_set::journal::{JournalPlace, NextBucketRefusal, Stop};
use crate::cache_set::{Bucket, CacheSet, GcMark};
use crate::checksum::crc64_seeded;
use crate::device::AlignedBuf;
use crate::layout::bkey::{Bkey, Pos, Ptr};
use crate::layout::bset;
use crate::layout::jset::{JSET_VERSION, Jset, JsetError, JsetParams, encode};
use crate::layout::prio_set::BucketDisk;
use crate::layout::uuid_entry::{self, UuidEntry};
use crate::ops::commit::{self, Rehearsal};
use crate::ops::invalidate::BucketBits;
use crate::ops::plan::{Plan, Step, WriteKind};
use crate::units::{BucketIndex, Prio, UUID_ENTRY_BYTES};
use nodes::{Loader, NodeSink};

/// Upper half of the sequence numbers of nodes that are made here, mixed with the set's magic: a
/// search for nodes tells by it which were made by these tools.
const SIGNATURE: u64 = 0x6263_7262;

/// A rebuild that is decided and not carried out.
#[derive(Debug)]
pub struct RebuildPlan {
    /// What the new btree holds.
    pub contents: Contents,
    /// Buckets of the new nodes, in the order of their writes; the last is the root's.
    pub nodes: Vec<BucketIndex>,
    /// Bucket of the new uuid table, where there is one.
    pub uuid_bucket: Option<BucketIndex>,
    /// Buckets of the new prio chain, head first.
    pub chain: Vec<BucketIndex>,
    /// Number of the chain's write.
    pub prio_seq: u64,
    /// The journal entry.
    pub entry: Jset,
    /// Where it goes.
    pub place: JournalPlace,
    uuids: Option<Vec<UuidEntry>>,
    new_nodes: BucketBits,
    root: Bkey,
    seed: u64,
    /// Torn entries that are wiped afterwards.
    torn: Vec<JournalPlace>,
}

/// How many buckets a rebuild takes, by what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Btree nodes.
    pub nodes: u64,
    /// Uuid table: 0 or 1.
    pub uuid_tables: u64,
    /// Prio sets.
    pub prio_sets: u64,
}

impl Needs {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.nodes.saturating_add(self.uuid_tables).saturating_add(self.prio_sets)
    }
}

/// Plans new metadata for `set` with the extents of `source`.
///
/// `uuids` replaces the uuid table. `seed` makes the sequence numbers of the nodes; it should be
/// another one each time, for a number must not be the one of what stood in the bucket before.
pub fn plan(
    set: &CacheSet<'_>,
    source: &dyn Extents,
    uuids: Option<Vec<UuidEntry>>,
    seed: u64,
) -> Result<RebuildPlan, RebuildError> {
    let geometry = *set.geometry();
    let newest = &set.journal.newest().ok_or(RebuildError::NoSuccessor { seq: 0 })?.jset;
    // Entries of an older version have a uuid table of an older layout.
    let uuids =
        uuids.or_else(|| (newest.version() < JSET_VERSION).then(|| set.uuids.slots.clone()));
    let wanted = uuids.as_ref().map_or(0, |uuids| uuids.len() as u64);
    if wanted > geometry.nr_uuids() {
        return Err(RebuildError::TooManyVolumes { slots: geometry.nr_uuids(), wanted });
    }

    let (needs, contents) = survey(set, source, uuids.is_some())?;
    let level = contents.level;
    let mut free = choose(set, &needs)?.into_iter();
    let chain: Vec<BucketIndex> = free.by_ref().take(size(needs.prio_sets)).collect();
    let uuid_bucket = if uuids.is_some() { free.next() } else { None };
    let nodes: Vec<BucketIndex> = free.collect();
    let mut new_nodes = BucketBits::new(geometry.nbuckets())?;
    nodes.iter().chain(&uuid_bucket).chain(&chain).for_each(|&bucket| new_nodes.insert(bucket));

    let root_bucket = nodes.last().copied().unwrap_or_default();
    let root = node_key(set, root_bucket, Pos::MAX);
    let greatest = set.journal.greatest_seq();
    let seq = greatest.checked_add(1).ok_or(RebuildError::NoSuccessor { seq: greatest })?;
    let nr_this_dev = usize::from(set.cache.superblock().nr_this_dev());
    let mut params = JsetParams::of(newest, &[]);
    let head = params.prio_bucket.get_mut(nr_this_dev);
    *head.ok_or(RebuildError::NoSuccessor { seq: greatest })? =
        chain.first().copied().unwrap_or_default().0;
    let uuid_key = uuid_bucket.map_or(*newest.uuid_bucket(), |bucket| {
        let sectors = u16::try_from(geometry.meta_bucket_bytes() / 512).unwrap_or(u16::MAX);
        Bkey::new(0, 0, sectors).with_ptrs(&[new_ptr(set, bucket)])
    });
    let params = JsetParams {
        seq,
        // Nothing is to be replayed: what the journal held is in the new btree.
        last_seq: seq,
        uuid_bucket: uuid_key,
        btree_root: root,
        btree_level: level,
        ..params
    };
    let entry =
        encode(&params, set.cache.magic()).ok_or(RebuildError::NoSuccessor { seq: greatest })?;
    let places = entry_places(set)?;
    let mut plan = RebuildPlan {
        contents,
        nodes,
        uuid_bucket,
        chain,
        prio_seq: set.prios.seq.wrapping_add(1),
        entry,
        place: JournalPlace { index: 0, bucket: BucketIndex(0), offset: 0 },
        uuids,
        new_nodes,
        root,
        seed,
        torn: Vec::new(),
    };
    let mut refused = None;
    for place in places {
        plan.place = place;
        plan.torn = torn_entries(set, &place, seq);
        match plan.rehearse(set) {
            Ok(()) => return Ok(plan),
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    Err(refused.unwrap_or(RebuildError::NoSuccessor { seq: greatest }))
}

/// How many buckets a rebuild of `set` with the extents of `source` takes, and what it would hold.
pub fn survey(
    set: &CacheSet<'_>,
    source: &dyn Extents,
    new_uuids: bool,
) -> Result<(Needs, Contents), ExtentsError> {
    let mut count = Count(0);
    let mut loader = Loader::new(*set.geometry(), &mut count);
    source.for_each(&mut |key| match loader.extent(key) {
        Ok(()) => std::ops::ControlFlow::Continue(()),
        Err(never) => match never {},
    })?;
    let Ok((_, contents)) = loader.finish();
    let prio_sets = set.geometry().prio_buckets();
    Ok((Needs { nodes: count.0, uuid_tables: u64::from(new_uuids), prio_sets }, contents))
}

impl RebuildPlan {
    /// Whether the kernel would find the new entry in its place, before and after what is torn is wiped.
    fn rehearse(&self, set: &CacheSet<'_>) -> Result<(), RebuildError> {
        let (commit, tidy) = (self.commit(set), self.tidy(set));
        for steps in [commit.steps.clone(), [commit.steps, tidy.steps].concat()] {
            match commit::rehearse(set, steps.iter(), &self.entry, &self.place, &[]) {
                Rehearsal::AsPlanned => {}
                Rehearsal::Otherwise { found } => {
                    let planned = self.entry.seq();
                    return Err(RebuildError::JournalHidesEntries { planned, found });
                }
                Rehearsal::Unreadable(problem) => return Err(RebuildError::Journal(problem)),
                Rehearsal::NoCache(error) => return Err(RebuildError::NoCache(error)),
            }
        }
        Ok(())
    }

    /// Tells `sink` the steps before the journal entry, one by one: nodes and uuid table, a flush,
    /// prio sets, a flush.
    pub fn prepare<E>(
        &self,
        set: &CacheSet<'_>,
        source: &dyn Extents,
        sink: &mut dyn FnMut(Step) -> Result<(), E>,
    ) -> Result<(), PrepareError<E>> {
        let mut writer = Writer { plan: self, set, next: 0, sink: &mut *sink };
        let mut loader = Loader::new(*set.geometry(), &mut writer);
        let mut failed = None;
        source.for_each(&mut |key| match loader.extent(key) {
            Ok(()) => std::ops::ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                std::ops::ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let (root, contents) = loader.finish()?;
        if (root, contents) != (self.root, self.contents) {
            return Err(ExtentsError::Changed.into());
        }
        if let Some(step) = self.uuid_table(set) {
            sink(step).map_err(PrepareError::Sink)?;
        }
        sink(Step::Flush).map_err(PrepareError::Sink)?;
        let entry = |number, bucket: &Bucket| self.bucket_disk(set, number, *bucket);
        commit::prio_chain(set, &self.chain, self.prio_seq, entry)
            .try_for_each(sink)
            .map_err(PrepareError::Sink)
    }

    /// The journal entry that makes it current, and the flush after it.
    pub fn commit(&self, set: &CacheSet<'_>) -> Plan {
        Plan { steps: vec![commit::entry_write(set, &self.entry, &self.place), Step::Flush] }
    }

    /// Zeroes over the first block of torn journal entries; nothing where there are none.
    pub fn tidy(&self, set: &CacheSet<'_>) -> Plan {
        let geometry = set.geometry();
        let mut steps: Vec<Step> = self
            .torn
            .iter()
            .map(|place| Step::Zero {
                kind: WriteKind::Wipe,
                offset: geometry
                    .bucket_to_sector(place.bucket)
                    .bytes()
                    .saturating_add(place.offset),
                len: geometry.block_bytes(),
            })
            .collect();
        if !steps.is_empty() {
            steps.push(Step::Flush);
        }
        Plan { steps }
    }

    /// Bytes that are written, about.
    pub fn write_bytes(&self, set: &CacheSet<'_>) -> u64 {
        let geometry = set.geometry();
        let node = geometry.btree_node_size().bytes();
        let meta = geometry.meta_bucket_bytes();
        let metas = self.chain.len() as u64 + u64::from(self.uuid_bucket.is_some());
        (self.nodes.len() as u64).saturating_mul(node).saturating_add(metas.saturating_mul(meta))
    }

    fn uuid_table(&self, set: &CacheSet<'_>) -> Option<Step> {
        let (bucket, uuids) = (self.uuid_bucket?, self.uuids.as_ref()?);
        let geometry = set.geometry();
        let mut data = AlignedBuf::zeroed(size(geometry.meta_bucket_bytes()));
        for (slot, entry) in data.chunks_exact_mut(size(UUID_ENTRY_BYTES)).zip(uuids) {
            slot.copy_from_slice(&uuid_entry::encode(entry));
        }
        let offset = geometry.bucket_to_sector(bucket).bytes();
        Some(Step::Write { kind: WriteKind::UuidTable, offset, data })
    }

    fn bucket_disk(&self, set: &CacheSet<'_>, number: BucketIndex, bucket: Bucket) -> BucketDisk {
        if self.new_nodes.contains(number) {
            return BucketDisk { prio: Prio::BTREE, bucket_gen: bucket.bucket_gen().next() };
        }
        let bucket_gen = bucket.bucket_gen();
        if set.table.is_node(number) {
            return BucketDisk { prio: Prio::INITIAL, bucket_gen: bucket_gen.next() };
        }
        let prio = match bucket.prio() {
            Prio::BTREE | Prio(0) => Prio::INITIAL,
            prio => prio,
        };
        BucketDisk { prio, bucket_gen }
    }

    fn node_seq(&self, set: &CacheSet<'_>, index: usize) -> u64 {
        let upper = signature(set);
        let lower = crc64_seeded(self.seed, &(index as u64).to_le_bytes()) | 1;
        upper << 32 | lower & u64::from(u32::MAX)
    }
}

/// What the upper half of the sequence number of nodes is that were made by a rebuild of this set.
fn signature(set: &CacheSet<'_>) -> u64 {
    let mixed = crc64_seeded(SIGNATURE, &set.cache.magic().0.to_le_bytes());
    (mixed >> 32) | 1
}

/// Whether the node with this sequence number was made by a rebuild of this set.
pub(in crate::ops) fn is_made_here(set: &CacheSet<'_>, seq: u64) -> bool {
    seq >> 32 == signature(set)
}

/// Why steps could not be told.
#[derive(Debug)]
pub enum PrepareError<E> {
    /// The extents could not be told again.
    Extents(ExtentsError),
    /// A step was not taken.
    Sink(E),
}

impl<E> From<ExtentsError> for PrepareError<E> {
    fn from(error: ExtentsError) -> Self {
        Self::Extents(error)
    }
}

/// Counts nodes.
struct Count(u64);

impl NodeSink for Count {
    type Error = std::convert::Infallible;

    fn node(&mut self, _: u16, _: &[Bkey], end: Pos) -> Result<Bkey, Self::Error> {
        self.0 += 1;
        Ok(Bkey::new(end.inode, end.offset, 1).with_ptrs(&[Ptr(0)]))
    }
}

/// Makes nodes into writes.
struct Writer<'p, 'd, 's, E> {
    plan: &'p RebuildPlan,
    set: &'p CacheSet<'d>,
    next: usize,
    sink: &'s mut dyn FnMut(Step) -> Result<(), E>,
}

impl<E> NodeSink for Writer<'_, '_, '_, E> {
    type Error = PrepareError<E>;

    fn node(&mut self, _level: u16, keys: &[Bkey], end: Pos) -> Result<Bkey, Self::Error> {
        let bucket = self.plan.nodes.get(self.next).copied().ok_or(ExtentsError::Changed)?;
        let seq = self.plan.node_seq(self.set, self.next);
        self.next += 1;
        let geometry = self.set.geometry();
        let ptr = new_ptr(self.set, bucket);
        let bytes = bset::encode(self.set.cache.magic(), ptr, seq, keys);
        let block_bytes = size(geometry.block_bytes()).max(1);
        let data = AlignedBuf::padded(&bytes, bytes.len().next_multiple_of(block_bytes));
        let offset = geometry.bucket_to_sector(bucket).bytes();
        (self.sink)(Step::Write { kind: WriteKind::BtreeNode, offset, data })
            .map_err(PrepareError::Sink)?;
        Ok(node_key(self.set, bucket, end))
    }
}

/// A pointer to a bucket that is taken for new metadata.
fn new_ptr(set: &CacheSet<'_>, bucket: BucketIndex) -> Ptr {
    let bucket_gen = set.table.get(bucket).map(Bucket::bucket_gen).unwrap_or_default();
    let dev = set.cache.superblock().nr_this_dev();
    Ptr::new(bucket_gen.next(), set.geometry().bucket_to_sector(bucket), dev)
}

fn node_key(set: &CacheSet<'_>, bucket: BucketIndex, end: Pos) -> Bkey {
    let sectors = u16::try_from(set.geometry().btree_node_size().0).unwrap_or(u16::MAX);
    Bkey::new(end.inode, end.offset, sectors).with_ptrs(&[new_ptr(set, bucket)])
}

/// Buckets for the new metadata: those that no pointer at all leads to come first, for what a stale
/// pointer leads to may be of use to somebody who salvages.
fn choose(set: &CacheSet<'_>, needs: &Needs) -> Result<Vec<BucketIndex>, RebuildError> {
    let wanted = size(needs.total());
    let unused = |untouched: bool| {
        commit::unused_buckets(set)
            .filter(move |(_, bucket)| (bucket.gen_span() == 0) == untouched)
            .filter(|(_, bucket)| !bucket.gen_unknown())
            .map(|(number, _)| number)
    };
    let chosen: Vec<BucketIndex> = unused(true).chain(unused(false)).take(wanted).collect();
    let found = chosen.len() as u64;
    if found < needs.total() {
        let clean = set
            .table
            .as_slice()
            .iter()
            .filter(|bucket| bucket.mark() == GcMark::Reclaimable && bucket.can_invalidate())
            .count() as u64;
        return Err(RebuildError::TooFewUnused { needed: needs.total(), found, clean });
    }
    Ok(chosen)
}

/// Places of damaged entries that are tried for the new one.
const DAMAGED_PLACES_MAX: usize = 8;

/// Where the entry can go, the usual place first: behind the newest, or at the start of the next bucket
/// if nothing there is needed. The kernel needs no room for replay, since there is nothing to replay.
///
/// Where damage keeps the kernel from both, the places of damaged entries are left: whoever looks for an
/// entry there finds the new one.
fn entry_places(set: &CacheSet<'_>) -> Result<Vec<JournalPlace>, RebuildError> {
    let places = set
        .journal
        .append_places(&set.cache)
        .ok_or(RebuildError::NoSuccessor { seq: set.journal.greatest_seq() })?;
    let next = match places.next_bucket {
        Ok(place) => Ok(place),
        Err(NextBucketRefusal::TooClose { .. }) => {
            let index = (set.journal.current + 1) % set.journal.buckets.len().max(1);
            let bucket = set.journal.buckets.get(index).map(|it| it.bucket).unwrap_or_default();
            Ok(JournalPlace { index, bucket, offset: 0 })
        }
        Err(next) => Err(RebuildError::JournalFull { next }),
    };
    let damaged = (0..).zip(&set.journal.buckets).filter_map(|(index, bucket)| match bucket.stop {
        Stop::NoEntry { offset, .. } if !bucket.behind.is_empty() => {
            Some(JournalPlace { index, bucket: bucket.bucket, offset })
        }
        _ => None,
    });
    let mut all: Vec<JournalPlace> =
        places.after_newest.map(|(place, _)| place).into_iter().collect();
    match next {
        Ok(place) => all.push(place),
        Err(error) if all.is_empty() => return Err(error),
        Err(_) => {}
    }
    let damaged: Vec<JournalPlace> =
        damaged.filter(|place| !all.contains(place)).take(DAMAGED_PLACES_MAX).collect();
    all.extend(damaged);
    Ok(all)
}

/// Damaged entries that the kernel would complain of, or that would seem newer than the new entry, but for
/// the one whose place is taken.
fn torn_entries(set: &CacheSet<'_>, taken: &JournalPlace, seq: u64) -> Vec<JournalPlace> {
    let mut places: Vec<JournalPlace> = (0..)
        .zip(&set.journal.buckets)
        .filter_map(|(index, bucket)| match bucket.stop {
            Stop::NoEntry {
                offset,
                error: JsetError::BadChecksum { .. } | JsetError::TooLong { .. },
                ..
            } => Some(JournalPlace { index, bucket: bucket.bucket, offset }),
            _ => None,
        })
        .collect();
    for bad in set.journal.buckets.iter().flat_map(|bucket| &bucket.bad) {
        if bad.has_magic && bad.seq > seq && !places.contains(&bad.place) {
            places.push(bad.place);
        }
    }
    places.retain(|place| place != taken);
    places
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
