//! Reading a whole cache set, in the order of the kernel's registration.

mod usual;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::cache_set::btree::node::node_ptr;
use crate::cache_set::btree::{LoadedNode, ReadNode, WalkHandler, walk};
use crate::cache_set::lost_keys;
use crate::cache_set::problem::{
    BtreeProblem, BucketProblem, KeySource, MetadataRole, NodePlace, Problem,
};
use crate::cache_set::suspect::Suspects;
use crate::cache_set::table::MarkNote;
use crate::cache_set::{
    BtreeSummary, BucketTable, CacheDevice, CacheSet, GcMark, Journal, KeyState, NewestEntry,
    Overlay, PrioChain, Progress, ReadError, ReadOptions, UuidTable, Visitor, VolumeUsage,
};
use crate::layout::bkey::{Bkey, Pos};
use crate::layout::uuid_entry::UuidEntry;
use crate::units::{BUCKET_GC_GEN_MAX, BucketIndex, GC_SECTORS_USED_MAX, Sectors};

pub(super) fn read<'d>(
    cache: CacheDevice<'d>,
    options: &ReadOptions,
    visitor: &mut dyn Visitor,
) -> Result<CacheSet<'d>, ReadError> {
    if !cache.superblock().sync() && !options.ignore_sync {
        return Err(ReadError::Unsynced);
    }
    let geometry = *cache.geometry();
    let journal = read_journal(&cache, options.newest, visitor);
    let newest = journal.newest().ok_or(ReadError::NoJournal)?.jset.clone();
    let mut table = BucketTable::new(geometry.nbuckets())
        .map_err(|source| ReadError::OutOfMemory { nbuckets: geometry.nbuckets(), source })?;
    let head = newest.prio_bucket(cache.superblock().nr_this_dev());
    let prios = read_prios(&cache, head, &mut table, visitor);
    if options.distrust_prios {
        let per_set = geometry.prios_per_bucket();
        for (index, _) in (0u64..).zip(&prios.sound).filter(|(_, sound)| !**sound) {
            table.forget(index.saturating_mul(per_set), per_set);
        }
    }
    let uuids = UuidTable::read(&cache, newest.uuid_bucket(), newest.version(), &mut |p| {
        visitor.problem(p.into());
    });
    let overlay =
        Overlay::new(journal.replay_keys().filter(|(_, key)| key.is_valid_extent(&geometry)));
    let root = *newest.btree_root();
    let mut marker = Marker {
        cache: &cache,
        table: &mut table,
        prios: &prios,
        uuids: &uuids,
        overlay: &overlay,
        visitor,
        btree: BtreeSummary {
            depth: newest.btree_level(),
            node_bytes: geometry.btree_node_size().bytes(),
            ..BtreeSummary::default()
        },
        volumes: BTreeMap::new(),
        volume: (0, VolumeUsage::default()),
        last: BTreeMap::new(),
        known_nodes: 1,
        notes: Vec::new(),
        suspects: Suspects::new(newest.btree_level()),
        stale_dirty: BTreeMap::new(),
    };
    if root.is_valid_btree_ptr(&geometry) {
        marker.table.visit_node(node_ptr(&root).bucket(&geometry));
        walk(&cache, &root, newest.btree_level(), &options.walk, &mut marker);
    } else {
        marker.visitor.problem(BtreeProblem::BadRoot { key: root }.into());
    }
    marker.check_overused();
    marker.mark_journal(&journal);
    marker.count_overlay();
    marker.next_volume(u32::MAX);
    marker.finish();
    let (btree, volumes) = (marker.btree, marker.volumes);
    let (suspects, stale_dirty) = (marker.suspects.into_found(), marker.stale_dirty);
    let mut set = CacheSet {
        cache,
        journal,
        prios,
        uuids,
        table,
        btree,
        root,
        overlay,
        volumes,
        suspects,
        stale_dirty,
    };
    set.suspects.extend(lost_keys::find(&set, visitor));
    for (slot, sectors) in check_stale_dirty_journal_keys(&set, visitor) {
        *set.stale_dirty.entry(slot).or_default() += sectors;
    }
    Ok(set)
}

/// Tells of dirty keys that replay would bring back although their buckets were reused.
///
/// That is as it should be where the key went to the btree long ago, and its data was written back
/// or overwritten there: an entry stays in the replay range as long as one before it is needed. The
/// btree then has something clean of its own for those sectors, or a hole. Where it has nothing, the
/// key never got there. Nor did it where a dirty key is: a later dirty write would be in the journal
/// as well. The data was nowhere else then.
///
/// Keys that newer ones of the journal hide are not looked at: their data was overwritten.
///
/// What is lost comes back by slot.
fn check_stale_dirty_journal_keys(
    set: &CacheSet<'_>,
    visitor: &mut dyn Visitor,
) -> BTreeMap<u32, Sectors> {
    let mut lost: BTreeMap<u32, Sectors> = BTreeMap::new();
    let mut view = set.view();
    for (seq, key) in set.overlay.extents_with_seq() {
        let KeyState::Stale { by } = set.key_state(key, 0) else { continue };
        if !key.dirty() {
            continue;
        }
        // Pieces of the key: where each ends, and whether it was superseded.
        let mut pieces: Vec<(u64, bool)> = Vec::new();
        let looked_up = view.lookup_btree(key.inode(), key.start(), key.offset(), &mut |below| {
            let superseded = below.key.is_some_and(|below| !below.dirty());
            match pieces.last_mut().filter(|last| last.1 == superseded) {
                Some(last) => last.0 = below.end,
                None => pieces.push((below.end, superseded)),
            }
            ControlFlow::Continue(())
        });
        if looked_up.is_err() {
            // Nothing speaks for it.
            pieces.push((key.offset(), false));
        }
        let mut rest = *key;
        for (end, superseded) in pieces {
            let mut piece = rest;
            piece.cut_back(end);
            rest.cut_front(end);
            if !superseded && set.prios.knows_all(&piece, set.geometry()) {
                *lost.entry(piece.inode()).or_default() += piece.size();
            }
            let origin = KeySource::Journal { seq };
            let problem = BucketProblem::StaleDirty { origin, key: piece, by, superseded };
            visitor.problem(problem.into());
        }
    }
    lost
}

fn read_journal(
    cache: &CacheDevice<'_>,
    newest: NewestEntry,
    visitor: &mut dyn Visitor,
) -> Journal {
    let total =
        cache.geometry().bucket_bytes() * u64::try_from(cache.journal_buckets().len()).unwrap_or(0);
    let mut problems = Vec::new();
    let mut done = 0u64;
    let journal = Journal::read_newest(
        cache,
        newest,
        &mut |bytes| {
            done = done.saturating_add(bytes);
            visitor.progress(Progress::Journal { done, total });
        },
        &mut |problem| problems.push(problem),
    );
    for problem in problems {
        visitor.problem(problem.into());
    }
    journal
}

fn read_prios(
    cache: &CacheDevice<'_>,
    head: u64,
    table: &mut BucketTable,
    visitor: &mut dyn Visitor,
) -> PrioChain {
    let geometry = cache.geometry();
    let total = geometry.prio_buckets().saturating_mul(geometry.meta_bucket_bytes());
    let mut problems = Vec::new();
    let mut done = 0u64;
    let prios = PrioChain::read(
        cache,
        head,
        table,
        &mut |bytes| {
            done = done.saturating_add(bytes);
            visitor.progress(Progress::Prios { done, total });
        },
        &mut |problem| problems.push(problem),
    );
    for problem in problems {
        visitor.problem(problem.into());
    }
    prios
}

/// Marks keys as the walk comes by them.
struct Marker<'a, 'd> {
    cache: &'a CacheDevice<'d>,
    table: &'a mut BucketTable,
    prios: &'a PrioChain,
    uuids: &'a UuidTable,
    overlay: &'a Overlay,
    visitor: &'a mut dyn Visitor,
    btree: BtreeSummary,
    volumes: BTreeMap<u32, VolumeUsage>,
    /// The volume that is being counted; the others are in `volumes`.
    volume: (u32, VolumeUsage),
    /// Where the last key of each level ended.
    last: BTreeMap<u16, Pos>,
    known_nodes: u64,
    notes: Vec<MarkNote>,
    suspects: Suspects,
    stale_dirty: BTreeMap<u32, Sectors>,
}

impl Marker<'_, '_> {
    fn problem(&mut self, problem: impl Into<Problem>) {
        self.visitor.problem(problem.into());
    }

    fn state(&self, key: &Bkey, level: u32) -> KeyState {
        let geometry = self.cache.geometry();
        if level > 0 && key.is_zero_key() {
            return KeyState::FreedNode;
        }
        if key.ptrs_count() == 0 {
            return KeyState::Hole;
        }
        let mut stalest = 0;
        for ptr in key.ptrs() {
            if !ptr.available() {
                return KeyState::Unavailable;
            }
            stalest = self.table.staleness(ptr.bucket(geometry), ptr.ptr_gen()).max(stalest);
        }
        if stalest > 0 { KeyState::Stale { by: stalest } } else { KeyState::Valid }
    }

    /// Marks one structurally valid key at `level` (0 for an extent) and tells what is wrong.
    fn mark(&mut self, origin: KeySource, key: &Bkey, level: u32) {
        let geometry = *self.cache.geometry();
        let mut notes = std::mem::take(&mut self.notes);
        self.table.mark_key(key, level, &geometry, &mut |note| notes.push(note));
        for note in notes.drain(..) {
            self.note(origin, key, level, note);
        }
        self.notes = notes;
    }

    fn note(&mut self, origin: KeySource, key: &Bkey, level: u32, note: MarkNote) {
        let key = *key;
        match note {
            MarkNote::Stale { by, .. } => {
                if by > BUCKET_GC_GEN_MAX {
                    if let (KeySource::Btree { level, .. }, true) = (origin, level > 0) {
                        // Whatever the key led to is not followed.
                        self.suspects.node(level);
                    }
                    self.problem(BucketProblem::TooStale { origin, key, by });
                }
                // The journal's are looked at once the whole btree is known.
                let in_btree = matches!(origin, KeySource::Btree { .. });
                if level == 0 && key.dirty() && in_btree {
                    self.stale_dirty(origin, &key, by);
                }
            }
            MarkNote::Newer { bucket, from, to } => {
                // Btree nodes are allocated from buckets whose gens may not be written yet.
                if level == 0 {
                    self.problem(BucketProblem::NewerThanPrio { origin, key, bucket, from, to });
                }
            }
            MarkNote::Inconsistent { bucket, mark } => {
                self.problem(BucketProblem::Inconsistent { origin, key, bucket, mark });
            }
        }
    }

    /// A stale dirty key of the btree is harmless where replay lays something newer over it. Where
    /// that is the same key again, the journal's tells.
    fn stale_dirty(&mut self, origin: KeySource, key: &Bkey, by: u8) {
        let mut pieces = Vec::new();
        self.overlay.visible(key, &mut |piece| pieces.push(*piece));
        for key in pieces {
            if self.prios.knows_all(&key, self.cache.geometry()) {
                *self.stale_dirty.entry(key.inode()).or_default() += key.size();
            }
            self.problem(BucketProblem::StaleDirty { origin, key, by, superseded: false });
        }
    }

    /// Puts the current volume away and goes on with another.
    fn next_volume(&mut self, inode: u32) {
        let next = self.volumes.remove(&inode).unwrap_or_default();
        let (before, usage) = std::mem::replace(&mut self.volume, (inode, next));
        if usage.extents > 0 {
            self.volumes.insert(before, usage);
        }
    }

    fn count_volume(&mut self, key: &Bkey) {
        // Keys come in order: the volume changes seldom.
        if self.volume.0 != key.inode() {
            self.next_volume(key.inode());
        }
        let volume = &mut self.volume.1;
        volume.cached_sectors += key.size();
        if key.dirty() {
            volume.dirty_sectors += key.size();
        }
        volume.extents += 1;
        volume.reach(key.start(), key.offset());
    }

    fn check_volume(&mut self, origin: KeySource, key: &Bkey) {
        if self.uuids.is_table && self.uuids.get(key.inode()).is_none_or(UuidEntry::is_empty) {
            self.problem(BucketProblem::NoVolume { origin, key: *key });
        }
    }

    fn leaf_key(&mut self, origin: KeySource, key: &Bkey) {
        let state = self.state(key, 0);
        self.visitor.key(origin, key, state);
        self.btree.extents += 1;
        if state == KeyState::Valid {
            self.btree.usable_extents += 1;
            self.check_volume(origin, key);
            if self.overlay.is_empty() {
                self.count_volume(key);
            } else {
                let overlay = self.overlay;
                overlay.visible(key, &mut |piece| self.count_volume(piece));
            }
        }
        self.count_usable(key, state);
        self.mark(origin, key, 0);
    }

    fn count_usable(&mut self, key: &Bkey, state: KeyState) {
        if state == KeyState::Valid {
            self.btree.usable_keys += 1;
            self.btree.usable_key_bytes += key.words() as u64 * 8;
            self.btree.usable_sectors = self.btree.usable_sectors.saturating_add(key.size().0);
        }
    }

    fn interior_keys(&mut self, origin: KeySource, node: &LoadedNode, place: NodePlace) {
        let mut last_usable = None;
        for key in node.keys.iter() {
            let state = self.state(&key, 1);
            self.visitor.key(origin, &key, state);
            self.mark(origin, &key, u32::from(node.level));
            // Marking may have made it newer, never stale.
            if state == KeyState::Valid {
                last_usable = Some(key.pos());
            }
            self.count_usable(&key, state);
        }
        if node.error.is_some() {
            return;
        }
        match last_usable {
            None => {
                self.suspects.node(place.level);
                self.problem(BtreeProblem::NoChildren { place });
            }
            Some(found) if found < place.end => {
                self.suspects.node(place.level);
                self.problem(BtreeProblem::ChildrenEndShort { place, found });
            }
            Some(_) => {}
        }
    }

    /// Tells where a node starts before the node ahead of it at its level ends.
    fn check_start(&mut self, node: &LoadedNode, place: NodePlace) {
        let first = node.keys.iter().find(|key| node.level == 0 || !key.is_zero_key());
        let found = first.map(|key| if node.level == 0 { key.start_pos() } else { key.pos() });
        if let (Some(found), Some(&expected)) = (found, self.last.get(&node.level)) {
            if found < expected {
                self.suspects.above_both(node.level);
                self.problem(BtreeProblem::BeforeNode { place, found, expected });
            }
        }
        self.last.insert(node.level, place.end);
    }

    /// After the btree and before the journal, whose keys are in the btree too.
    fn check_overused(&mut self) {
        let size = self.cache.geometry().bucket_size().0;
        if size >= u64::from(GC_SECTORS_USED_MAX) {
            return;
        }
        let overused: Vec<_> = (0u64..)
            .zip(self.table.as_slice())
            .filter(|(_, bucket)| {
                matches!(bucket.mark(), GcMark::Reclaimable | GcMark::Dirty)
                    && u64::from(bucket.sectors_used()) > size
            })
            .map(|(number, bucket)| (BucketIndex(number), u64::from(bucket.sectors_used())))
            .collect();
        for (bucket, used) in overused {
            self.problem(BucketProblem::Overused { bucket, size, used });
        }
    }

    /// Pins and marks the buckets of the replay range's keys, uncut (`bch_journal_mark`).
    fn mark_journal(&mut self, journal: &Journal) {
        let geometry = *self.cache.geometry();
        for entry in journal.entries.iter().rev() {
            let origin = KeySource::Journal { seq: entry.jset.seq() };
            for key in entry.jset.keys() {
                if !key.is_valid_extent(&geometry) {
                    self.problem(BucketProblem::BadJournalKey { origin, key });
                    continue;
                }
                let state = self.state(&key, 0);
                self.visitor.key(origin, &key, state);
                if state == KeyState::Valid {
                    self.check_volume(origin, &key);
                }
                self.table.pin_key(&key, &geometry);
                self.mark(origin, &key, 0);
            }
        }
    }

    fn count_overlay(&mut self) {
        let overlay = self.overlay;
        for key in overlay.extents() {
            if self.table.is_usable(key, self.cache.geometry()) {
                self.count_volume(key);
                if key.dirty() {
                    self.volume.1.dirty_journal_sectors += key.size();
                }
            }
        }
    }

    /// Marks what no key points to (`bch_btree_gc_finish`).
    fn finish(&mut self) {
        let roles = self
            .uuids
            .bucket
            .into_iter()
            .map(|bucket| (bucket, MetadataRole::Uuids))
            .chain(self.cache.journal_buckets().into_iter().map(|b| (b, MetadataRole::Journal)))
            .chain(self.prios.buckets.iter().map(|&b| (b, MetadataRole::Prios)))
            .collect::<Vec<_>>();
        for (bucket, role) in roles {
            let mark = self.table.get(bucket).map(crate::cache_set::Bucket::mark);
            if let Some(mark) = mark.filter(|&mark| mark != GcMark::Unused) {
                self.problem(BucketProblem::SharedMetadata { bucket, role, mark });
            }
            self.table.mark_metadata(bucket);
        }
    }
}

impl WalkHandler for Marker<'_, '_> {
    fn node(&mut self, key: &Bkey, level: u16, node: ReadNode<'_>) -> ControlFlow<()> {
        let ptr = node_ptr(key);
        let bucket = ptr.bucket(self.cache.geometry());
        let place = NodePlace { level, bucket, sector: ptr.offset(), end: key.pos() };
        self.suspects.enter(level, key.pos(), bucket);
        self.btree.nodes += 1;
        self.visitor.progress(Progress::Btree { done: self.btree.nodes, known: self.known_nodes });
        let node = match node {
            Ok(node) => node,
            Err(source) => {
                self.btree.bad_nodes += 1;
                self.problem(BtreeProblem::Unreadable { place, source });
                return ControlFlow::Continue(());
            }
        };
        self.visitor.node(place, node);
        self.suspects.judge(node);
        if let Some(error) = node.error {
            self.btree.bad_nodes += 1;
            self.problem(BtreeProblem::BadNode { place, error });
        }
        for &fault in &node.faults {
            self.problem(BtreeProblem::Fault { place, fault });
        }
        self.check_start(node, place);
        let is_root = self.btree.nodes == 1;
        let before = self.btree.usable_key_bytes;
        let origin = KeySource::Btree { level, node: bucket };
        if level == 0 {
            self.leaf_keys(origin, &node.keys);
        } else {
            self.interior_keys(origin, node, place);
        }
        if is_root {
            self.btree.root_key_bytes = self.btree.usable_key_bytes - before;
        }
        // The kernel marks each node's own key once more when it gets to the node.
        let origin = if is_root { KeySource::Root } else { origin };
        self.mark(origin, key, u32::from(level) + 1);
        ControlFlow::Continue(())
    }

    fn follow(&mut self, key: &Bkey, child_level: u16) -> bool {
        if self.state(key, 1) != KeyState::Valid {
            return false;
        }
        let ptr = node_ptr(key);
        let bucket = ptr.bucket(self.cache.geometry());
        if self.table.visit_node(bucket) {
            let sector: Sectors = ptr.offset();
            let place = NodePlace { level: child_level, bucket, sector, end: key.pos() };
            self.suspects.above(child_level);
            self.problem(BtreeProblem::Revisited { place });
            return false;
        }
        self.known_nodes += 1;
        true
    }
}
