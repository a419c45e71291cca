//! New metadata for a set whose own cannot be mended byte by byte.
//!
//! The set is read as far as it goes. Gens of damaged prio sets are taken from the pointers, and the newest
//! sound journal entry counts even where damage hides it from the kernel. What is certain is kept as it is. Where something could
//! not be read that might say otherwise, clean extents are left out, for the backing device has their data,
//! and dirty ones are kept. Then [`rebuild`] makes a new generation beside the old one.
//!
//! Until the journal entry that makes the new state current, nothing is written that the damaged one names.
//! So a repair that was cut short can be planned and run again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use uuid::Uuid;

use crate::cache_set::journal::{Gap, JournalProblem};
use crate::cache_set::{
    BtreeProblem, BucketProblem, CacheDevice, CacheSet, Found, GcMark, KeySource, KeyState,
    NewestEntry, NoVisitor, OpenError, Problem, Progress, ReadError, ReadOptions, WalkOptions,
};
use crate::device::ReadDevice;
use crate::layout::bkey::Bkey;
use crate::layout::prio_set::BucketDisk;
use crate::layout::uuid_entry::UuidEntry;
use crate::ops::plan::Step;
use crate::ops::rebuild::{self, Extents, ExtentsError, PrepareError, RebuildError, RebuildPlan};
use crate::ops::repair::past::Past;
use crate::ops::repair::region::{Lost, Region, region};
use crate::ops::repair::{Class, Code, Seen};
use crate::ops::undo::SaveError;
use crate::units::{BucketIndex, Gen, Prio, Sectors};

/// Why new metadata is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Damage in the journal keeps the kernel from its newest entry, or entries are missing.
    Journal {
        /// The entry that the kernel takes for the newest; 0 for none.
        found: u64,
        /// The newest there is.
        newest: u64,
        /// Entries that are missing.
        gaps: Vec<Gap>,
    },
    /// Prio sets are damaged.
    PrioSets {
        /// How many are sound.
        sound: u64,
        /// How many there should be.
        needed: u64,
    },
    /// A btree node is damaged or cannot be read.
    BtreeNode {
        /// Its bucket.
        bucket: BucketIndex,
        /// Its level; 0 for a leaf.
        level: u16,
        /// How sure what is kept of it is.
        class: Class,
        /// Sectors of its dirty keys that point to buckets which were reused since.
        stale_dirty_sectors: u64,
    },
}

impl Reason {
    /// Its code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Journal { .. } => Code::Journal,
            Self::PrioSets { .. } => Code::PrioSets,
            Self::BtreeNode { .. } => Code::BtreeNode,
        }
    }

    /// How sure it is that nothing is lost.
    pub fn class(&self) -> Class {
        match self {
            Self::Journal { gaps, .. } if gaps.is_empty() => Class::Certain,
            Self::Journal { .. } | Self::PrioSets { .. } => Class::Likely,
            Self::BtreeNode { class, .. } => *class,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Journal { found, newest, gaps } => {
                let mut told = false;
                if found != newest {
                    write!(f, "journal entry {newest} is the newest, the kernel finds {found}")?;
                    told = true;
                }
                for gap in gaps {
                    let comma = if told { "; " } else { "" };
                    write!(
                        f,
                        "{comma}keys of journal entries {}-{} are lost",
                        gap.first, gap.last
                    )?;
                    told = true;
                }
                if !told {
                    f.write_str("journal")?;
                }
                Ok(())
            }
            Self::PrioSets { sound, needed } => {
                write!(f, "{} of {needed} prio sets are lost", needed.saturating_sub(*sound))
            }
            Self::BtreeNode { bucket, level, class, stale_dirty_sectors } => {
                write!(f, "btree node in bucket {bucket} (level {level})")?;
                match class {
                    Class::Certain => f.write_str(": the journal has what it lacks")?,
                    Class::Likely => f.write_str(": made again from the journal")?,
                    Class::Guess => f.write_str(": only a part of it is known")?,
                }
                if *stale_dirty_sectors > 0 {
                    write!(f, "; {stale_dirty_sectors} dirty sectors point to reused buckets")?;
                }
                Ok(())
            }
        }
    }
}

/// What becomes of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Its uuid; nil where the uuid table does not tell.
    pub uuid: Uuid,
    /// Dirty sectors that are kept.
    pub dirty_sectors: u64,
    /// Of these, what something lost might say otherwise of.
    pub doubtful_sectors: u64,
    /// Clean sectors that are left out: they are read from the backing device.
    pub left_out_sectors: u64,
    /// Sectors of the volume's keys in whose stretch dirty data may be lost that nothing tells of, and
    /// where they begin and end.
    pub unknown: Option<(u64, u64)>,
}

/// New metadata that is decided, in figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anew {
    /// Why it is made.
    pub reasons: Vec<Reason>,
    /// By slot: volumes with dirty data, or with extents that are left out.
    pub volumes: BTreeMap<u32, Share>,
    /// New btree nodes.
    pub nodes: u64,
    /// New prio sets.
    pub prio_sets: u64,
    /// The new journal entry.
    pub journal_seq: u64,
}

impl Anew {
    /// The least sure of the reasons.
    pub fn class(&self) -> Class {
        self.reasons.iter().map(Reason::class).max().unwrap_or(Class::Certain)
    }

    /// Dirty sectors that are kept.
    pub fn dirty_sectors(&self) -> Sectors {
        Sectors(self.volumes.values().fold(0, |sum, share| sum.saturating_add(share.dirty_sectors)))
    }
}

/// Why no new metadata can be made.
#[derive(Debug, thiserror::Error)]
pub enum NotAnew {
    /// There is no set to start from.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The device holds no cache.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Damage of a kind that new metadata does not mend.
    #[error("{0}")]
    Damage(Box<Problem>),
    /// The kernel went on without the entries that it did not find: two histories are mixed.
    #[error(
        "the kernel has gone on from an older journal entry; what it did not find is of another history"
    )]
    TwoHistories,
    /// The keys that can be read contradict each other.
    #[error(transparent)]
    Extents(#[from] ExtentsError),
    /// It cannot be built.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
}

/// The set as it is to be, and what it was decided from.
pub(super) struct Ready<'d> {
    pub(super) set: CacheSet<'d>,
    pub(super) plan: RebuildPlan,
    pub(super) anew: Anew,
    regions: Vec<Region>,
    rule: Rule,
    walk: WalkOptions,
}

impl<'d> Ready<'d> {
    pub(super) fn source(&self) -> Salvaged<'_, 'd> {
        Salvaged { set: &self.set, regions: &self.regions, rule: self.rule, walk: self.walk }
    }

    /// Tells all steps in their order.
    pub(super) fn steps(
        &self,
        sink: &mut dyn FnMut(Step) -> Result<(), SaveError>,
    ) -> Result<(), SaveError> {
        self.plan.prepare(&self.set, &self.source(), sink).map_err(|error| match error {
            PrepareError::Extents(error) => SaveError::Steps(error.into()),
            PrepareError::Sink(error) => error,
        })?;
        let (commit, tidy) = (self.plan.commit(&self.set), self.plan.tidy(&self.set));
        commit.steps.into_iter().chain(tidy.steps).try_for_each(sink)
    }
}

/// What of the extents that sound nodes and entries tell is in doubt.
#[derive(Clone, Copy)]
struct Rule {
    /// All but what newer entries than this one tell.
    up_to: Option<u64>,
    /// Gens are lost.
    gens: bool,
}

impl Rule {
    fn is_doubtful(&self, set: &CacheSet<'_>, key: &Bkey, origin: Option<KeySource>) -> bool {
        let old = self.up_to.is_some_and(|last| match origin {
            Some(KeySource::Journal { seq }) => seq <= last,
            _ => true,
        });
        let known = |bucket| set.prios.knows(bucket, set.geometry());
        old || (self.gens && !key.ptrs().iter().all(|ptr| known(ptr.bucket(set.geometry()))))
    }
}

/// Whether the cache alone has the data of a key.
fn matters(set: &CacheSet<'_>, key: &Bkey) -> bool {
    key.dirty() || set.uuids.get(key.inode()).is_some_and(UuidEntry::flash_only)
}

/// Decides what new metadata would be for the set on `device`.
pub(super) fn decide<'d>(
    device: &'d dyn ReadDevice,
    options: &ReadOptions,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Ready<'d>, NotAnew> {
    let kernel = CacheSet::read(CacheDevice::open(device)?, options, &mut NoVisitor);
    let found = kernel.ok().and_then(|set| set.journal.newest().map(|entry| entry.jset.seq()));
    let read =
        ReadOptions { newest: NewestEntry::Greatest, distrust_prios: true, ..options.to_owned() };
    let mut watch = Seen { progress, problems: Vec::new() };
    let mut set = CacheSet::read(CacheDevice::open(device)?, &read, &mut watch)?;
    let gens = !set.prios.complete || set.prios.sound.iter().any(|sound| !sound);
    for problem in watch.problems {
        if !is_mended(&problem, gens) {
            return Err(match problem {
                Problem::Journal(
                    JournalProblem::Hidden { .. } | JournalProblem::SearchMisses { .. },
                ) => NotAnew::TwoHistories,
                problem => NotAnew::Damage(Box::new(problem)),
            });
        }
    }
    let newest = set.journal.newest().map_or(0, |entry| entry.jset.seq());
    let last_seq = set.journal.newest().map_or(0, |entry| entry.jset.last_seq());
    let discard = set.cache.superblock().discard();
    let is_gap = |gap: &&Gap| !(discard && gap.first == last_seq);
    let gaps: Vec<Gap> = set.journal.gaps.iter().filter(is_gap).copied().collect();
    let rule = Rule { up_to: gaps.iter().map(|gap| gap.last).max(), gens };
    let regions = regions(&set, options.walk)?;

    let mut reasons = Vec::new();
    let found = found.unwrap_or(0);
    if found != newest || !gaps.is_empty() {
        reasons.push(Reason::Journal { found, newest, gaps });
    }
    if gens {
        let sound = set.prios.sound.iter().filter(|sound| **sound).count() as u64;
        reasons.push(Reason::PrioSets { sound, needed: set.geometry().prio_buckets() });
    }
    reasons.extend(regions.iter().map(|region| Reason::BtreeNode {
        bucket: region.lost.bucket,
        level: region.lost.level,
        class: region.class,
        stale_dirty_sectors: region.stale_dirty,
    }));
    claim_buckets(&mut set, &regions, gens);
    let walk = options.walk;
    let source = Salvaged { set: &set, regions: &regions, rule, walk };
    let volumes = source.shares()?;
    let plan = rebuild::plan(&set, &source, None, seed)?;
    let anew = Anew {
        reasons,
        volumes,
        nodes: plan.nodes.len() as u64,
        prio_sets: plan.chain.len() as u64,
        journal_seq: plan.entry.seq(),
    };
    Ok(Ready { set, plan, anew, regions, rule, walk })
}

/// Whether new metadata does without what is damaged here.
fn is_mended(problem: &Problem, gens_lost: bool) -> bool {
    match problem {
        Problem::Journal(problem) => {
            matches!(problem, JournalProblem::Torn { .. } | JournalProblem::Gap { .. })
        }
        Problem::Prios(_) => true,
        Problem::Btree(problem) => {
            matches!(problem, BtreeProblem::BadNode { .. } | BtreeProblem::Unreadable { .. })
        }
        Problem::Bucket(problem) => match problem {
            BucketProblem::NewerThanPrio { .. }
            | BucketProblem::Overused { .. }
            | BucketProblem::NoVolume { .. }
            | BucketProblem::StaleDirty { superseded: true, .. } => true,
            // Only a bucket that was clean is reused: the newest pointer to it tells its gen.
            BucketProblem::StaleDirty { .. } => gens_lost,
            _ => false,
        },
        Problem::Uuids(_) => false,
    }
}

/// The stretches of which keys are missing, and what is kept of each.
fn regions(set: &CacheSet<'_>, walk: WalkOptions) -> Result<Vec<Region>, NotAnew> {
    let mut lost: Vec<Lost> = Vec::new();
    let mut failed = None;
    set.for_each_extent(&walk, &mut |found| match found {
        Found::Extent { .. } => ControlFlow::Continue(()),
        Found::Missing(missing) => {
            // A node below a damaged one is within its stretch.
            if lost.last().is_none_or(|last| missing.to > last.to) {
                lost.push((&missing).into());
            }
            ControlFlow::Continue(())
        }
        Found::OutOfOrder { key, end } => {
            failed = Some(ExtentsError::OutOfOrder { key: *key, end });
            ControlFlow::Break(())
        }
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let mut streams: Vec<Vec<Bkey>> = vec![Vec::new(); lost.len()];
    set.for_each_extent(&walk, &mut |found| {
        if let Found::Extent { key, origin: KeySource::Btree { .. }, .. } = found {
            for (lost, stream) in lost.iter().zip(&mut streams).filter(|(lost, _)| lost.level > 0) {
                stream.extend(lost.clip(key));
            }
        }
        ControlFlow::Continue(())
    });
    let past = Past::read(set);
    let regions = lost
        .iter()
        .zip(&streams)
        .map(|(lost, stream)| region(set, &past, *lost, stream, &|key| matters(set, key)));
    Ok(regions.collect())
}

/// Marks the buckets of what is kept, so that none of them is taken for new metadata, and makes buckets
/// with lost gens available that nothing points to.
fn claim_buckets(set: &mut CacheSet<'_>, regions: &[Region], gens_lost: bool) {
    let geometry = *set.geometry();
    for key in regions.iter().flat_map(|region| &region.kept) {
        set.table.mark_key(key, 0, &geometry, &mut |_| {});
    }
    if !gens_lost {
        return;
    }
    let uuid_gen = set
        .journal
        .newest()
        .and_then(|entry| entry.jset.uuid_bucket().ptrs().first().map(|ptr| ptr.ptr_gen()));
    for number in 0..geometry.nbuckets() {
        let number = BucketIndex(number);
        let Some(bucket) = set.table.get(number).filter(|bucket| bucket.gen_unknown()) else {
            continue;
        };
        let mark = bucket.mark();
        let is_uuids = set.uuids.bucket == Some(number);
        let bucket_gen = uuid_gen.filter(|_| is_uuids).unwrap_or(Gen(0));
        let disk = BucketDisk { prio: Prio::INITIAL, bucket_gen };
        set.table.load(number.0, std::iter::once(disk));
        if mark == GcMark::Metadata {
            set.table.mark_metadata(number);
        }
    }
}

/// The extents of the new btree.
pub(super) struct Salvaged<'s, 'd> {
    set: &'s CacheSet<'d>,
    regions: &'s [Region],
    rule: Rule,
    walk: WalkOptions,
}

/// An extent, and whether it is kept for certain, in doubt, or left out.
struct Told<'k> {
    key: &'k Bkey,
    doubtful: bool,
    kept: bool,
}

impl Salvaged<'_, '_> {
    /// Tells all extents that are valid, also those that are left out.
    fn tell(&self, found: &mut dyn FnMut(Told<'_>) -> ControlFlow<()>) -> Result<(), ExtentsError> {
        let slots = self.set.uuids.slots.len() as u64;
        let mut regions = self.regions.iter().peekable();
        let mut failed = None;
        let mut done = false;
        self.set.for_each_extent(&self.walk, &mut |it| match it {
            Found::Extent { key, state: KeyState::Valid, origin }
                if u64::from(key.inode()) < slots =>
            {
                for piece in self.outside(key) {
                    while let Some(region) = regions.next_if(|it| it.lost.to <= piece.start_pos()) {
                        if self.tell_region(region, found).is_break() {
                            done = true;
                            return ControlFlow::Break(());
                        }
                    }
                    let doubtful = self.rule.is_doubtful(self.set, &piece, Some(origin));
                    let kept = !doubtful || matters(self.set, &piece);
                    if found(Told { key: &piece, doubtful, kept }).is_break() {
                        done = true;
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            }
            Found::Extent { .. } | Found::Missing(_) => ControlFlow::Continue(()),
            Found::OutOfOrder { key, end } => {
                failed = Some(ExtentsError::OutOfOrder { key: *key, end });
                ControlFlow::Break(())
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        for region in regions {
            if done || self.tell_region(region, found).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn tell_region(
        &self,
        region: &Region,
        found: &mut dyn FnMut(Told<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let slots = self.set.uuids.slots.len() as u64;
        for key in region.kept.iter().filter(|key| u64::from(key.inode()) < slots) {
            let doubtful =
                region.class > Class::Certain || self.rule.is_doubtful(self.set, key, None);
            found(Told { key, doubtful, kept: true })?;
        }
        ControlFlow::Continue(())
    }

    /// The pieces of `key` that lie in no region, in order.
    fn outside(&self, key: &Bkey) -> Vec<Bkey> {
        let mut pieces = Vec::new();
        let mut rest = *key;
        for region in self.regions {
            let Some(inside) = region.lost.clip(&rest) else { continue };
            let mut front = rest;
            if front.start() < inside.start() {
                front.cut_back(inside.start());
                pieces.push(front);
            }
            rest.cut_front(inside.offset());
        }
        if rest.size().0 > 0 {
            pieces.push(rest);
        }
        pieces
    }

    fn shares(&self) -> Result<BTreeMap<u32, Share>, ExtentsError> {
        let mut volumes: BTreeMap<u32, Share> = BTreeMap::new();
        self.tell(&mut |told| {
            let size = told.key.size().0;
            let only_here = matters(self.set, told.key);
            if told.kept && !only_here {
                return ControlFlow::Continue(());
            }
            let share = volumes.entry(told.key.inode()).or_default();
            if told.kept {
                share.dirty_sectors = share.dirty_sectors.saturating_add(size);
                if told.doubtful {
                    share.doubtful_sectors = share.doubtful_sectors.saturating_add(size);
                }
            } else {
                share.left_out_sectors = share.left_out_sectors.saturating_add(size);
            }
            ControlFlow::Continue(())
        })?;
        for lost in self.regions.iter().filter(|it| it.class > Class::Certain).map(|it| it.lost) {
            for (slot, _) in self.set.uuids.used() {
                if !(lost.from.inode..=lost.to.inode).contains(&slot) {
                    continue;
                }
                let from = if slot == lost.from.inode { lost.from.offset } else { 0 };
                let to = if slot == lost.to.inode { lost.to.offset } else { u64::MAX };
                let share = volumes.entry(slot).or_default();
                let (first, last) = share.unknown.unwrap_or((from, to));
                share.unknown = Some((first.min(from), last.max(to)));
            }
        }
        for (slot, share) in &mut volumes {
            share.uuid = self.set.uuids.get(*slot).map(|entry| entry.uuid).unwrap_or_default();
        }
        Ok(volumes)
    }
}

impl Extents for Salvaged<'_, '_> {
    fn for_each(
        &self,
        found: &mut dyn FnMut(&Bkey) -> ControlFlow<()>,
    ) -> Result<(), ExtentsError> {
        self.tell(&mut |told| if told.kept { found(told.key) } else { ControlFlow::Continue(()) })
    }
}
