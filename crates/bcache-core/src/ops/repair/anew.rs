//! New metadata for a set whose own cannot be mended byte by byte.
//!
//! The set is read as far as it goes. Gens of damaged prio sets are taken from the pointers, and the newest
//! sound journal entry counts even where damage hides it from the kernel. Where the root or another
//! interior node is lost, the leaves below it are searched for. What is certain is kept as it is. Where
//! something could not be read that might say otherwise, clean extents are left out, for the backing device
//! has their data, and dirty ones are kept. Then [`rebuild`] makes a new generation beside the old one.
//!
//! Until the journal entry that makes the new state current, nothing is written that the damaged one names.
//! So a repair that was cut short can be planned and run again.

use std::collections::BTreeSet;

use crate::cache_set::journal::{Gap, JournalProblem};
use crate::cache_set::past::Past;
use crate::cache_set::prios::PrioProblem;
use crate::cache_set::uuids::UuidProblem;
use crate::cache_set::{
    BucketProblem, CacheDevice, CacheSet, GcMark, Journal, KeySource, NewestEntry, Problem,
    Progress, ReadError, ReadOptions, WalkOptions,
};
use crate::device::ReadDevice;
use crate::layout::prio_set::BucketDisk;
use crate::layout::uuid_entry::UuidEntry;
use crate::ops::keyed::keyed;
use crate::ops::plan::Step;
use crate::ops::rebuild::{self, PrepareError, RebuildPlan};
use crate::ops::repair::claims::{self, Claim};
use crate::ops::repair::missed;
use crate::ops::repair::owner::Owner;
use crate::ops::repair::reading::{Seen, is_ownerless};
use crate::ops::repair::reason::{Anew, NotAnew, Reason};
use crate::ops::repair::region::{Region, Sources};
use crate::ops::repair::salvaged::{Rule, Salvaged, matters};
use crate::ops::repair::search::search;
use crate::ops::repair::volumes;
use crate::ops::undo::SaveError;
use crate::units::{BucketIndex, Gen, Prio};

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
        Salvaged { set: &self.set, regions: &self.regions, rule: &self.rule, walk: self.walk }
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

/// Decides what new metadata would be for the set on `device`; `owners` are its backing devices, `claims` what
/// a person says of its volumes.
pub(super) fn decide<'d>(
    device: &'d dyn ReadDevice,
    owners: &[Owner<'_>],
    claims: &[Claim],
    options: &ReadOptions,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Ready<'d>, NotAnew> {
    let cache = CacheDevice::open(device)?;
    let kernel = Journal::read(&cache, &mut |_| {}, &mut |_| {});
    let found = kernel.newest().map_or(0, |entry| entry.jset.seq());
    let read =
        ReadOptions { newest: NewestEntry::Greatest, distrust_prios: true, ..options.to_owned() };
    let mut watch = Seen::new(progress);
    let mut set = CacheSet::read(cache, &read, &mut watch)?;
    let gens = !set.prios.complete || set.prios.sound.iter().any(|sound| !sound);
    let has_slot = |owner: &Owner<'_>| set.uuids.find(owner.uuid()).is_some();
    let mut uuids_lost = owners.iter().any(|owner| owner.is_complete() && !has_slot(owner));
    let mut contradictions = false;
    let mut shares_uuids = false;
    let mut damaged_entries: BTreeSet<u64> = BTreeSet::new();
    for problem in watch.problems {
        uuids_lost |= match &problem {
            Problem::Uuids(problem) => !matches!(problem, UuidProblem::Repeated { .. }),
            Problem::Bucket(problem) => is_ownerless(problem),
            _ => false,
        };
        match &problem {
            Problem::Journal(JournalProblem::KeysTruncated { seq, .. })
            | Problem::Bucket(BucketProblem::BadJournalKey {
                origin: KeySource::Journal { seq },
                ..
            }) => _ = damaged_entries.insert(*seq),
            // No place for anything new: nothing that the damaged state names is written, and a place that
            // cannot be read may not keep what is written there.
            Problem::Prios(
                PrioProblem::Unreadable { bucket, .. } | PrioProblem::Invalid { bucket, .. },
            ) if set.table.get(*bucket).is_some_and(|it| it.mark() == GcMark::Unused) => {
                set.table.mark_metadata(*bucket);
            }
            // Only a bucket that was clean is reused: where gens are lost, the newest pointer tells.
            Problem::Bucket(BucketProblem::StaleDirty { superseded, key, .. }) => {
                contradictions |= !superseded && set.prios.knows_all(key, set.geometry());
            }
            Problem::Bucket(BucketProblem::SharedMetadata { bucket, .. }) => {
                contradictions = true;
                shares_uuids |= set.uuids.bucket == Some(*bucket);
            }
            Problem::Bucket(
                BucketProblem::TooStale { .. } | BucketProblem::Inconsistent { .. },
            ) => contradictions = true,
            _ => {}
        }
        if !is_mended(&problem) {
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
    let newest_lost = set.journal.newest_lost().map(|(_, gap)| gap);
    let gaps: Vec<Gap> =
        set.journal.gaps.iter().filter(is_gap).copied().chain(newest_lost).collect();
    let up_to = gaps.iter().map(|gap| gap.last).chain(damaged_entries.last().copied()).max();
    let mut rule = Rule { up_to, gens, ..Rule::default() };
    let walk = options.walk;
    let mut regions = regions(&mut set, walk, gens, watch.progress)?;

    let mut reasons = Vec::new();
    // Of the entries that replay needs, those behind damage in their bucket.
    let hidden = if found == newest && !kernel.gaps.is_empty() {
        set.journal.entries.len().saturating_sub(kernel.entries.len()) as u64
    } else {
        0
    };
    let has_root = set.root.is_valid_btree_ptr(set.geometry());
    if !has_root {
        // Only an entry that repair made names no root.
        reasons.push(Reason::NoJournal);
        if regions.iter().all(|region| region.found_nodes == 0) {
            return Err(ReadError::NoJournal.into());
        }
    } else if found != newest || hidden > 0 || !gaps.is_empty() || !damaged_entries.is_empty() {
        reasons.push(Reason::Journal { found, newest, hidden, gaps, damaged_entries });
    }
    if gens {
        let sound = set.prios.sound.iter().filter(|sound| **sound).count() as u64;
        reasons.push(Reason::PrioSets { sound, needed: set.geometry().prio_buckets() });
    }
    // A table in a bucket that something else has, too, goes to one of its own.
    let mut uuids = shares_uuids.then(|| set.uuids.slots.clone());
    if uuids_lost {
        let kept = regions.iter().flat_map(|region| &region.kept);
        let keyed = keyed(&set, walk, kept);
        let made = volumes::volumes(&set, owners, &keyed, claims, watch.progress)?;
        made.tables.iter().for_each(|bucket| set.table.mark_metadata(*bucket));
        reasons.push(Reason::UuidTable { known: made.known });
        rule.dirty_only = made.dirty_only;
        volumes::put_into(&mut set, made.slots.clone());
        if made.slots.iter().any(UuidEntry::flash_only) {
            // Of these, what counts as clean is nowhere else, either.
            regions = self::regions(&mut set, walk, gens, watch.progress)?;
        }
        uuids = Some(made.slots);
    } else {
        claims::check(&set, claims)?;
    }
    reasons.extend(regions.iter().map(|region| Reason::BtreeNode {
        bucket: has_root.then_some(region.lost.bucket),
        level: region.lost.level,
        class: region.class,
        stale_dirty_sectors: region.stale_dirty,
        found_nodes: region.found_nodes,
    }));
    claim_buckets(&mut set, &regions, gens);
    reasons.extend(set.flash_clean().map(|(slot, clean)| Reason::FlashClean { slot, clean }));
    let source = Salvaged { set: &set, regions: &regions, rule: &rule, walk };
    let volumes = source.shares()?;
    let lost_sectors = volumes.values().map(|share| share.lost_sectors).sum();
    if contradictions {
        reasons.push(Reason::Keys { lost_sectors });
    }
    let plan = rebuild::plan(&set, &source, uuids, seed)?;
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
const fn is_mended(problem: &Problem) -> bool {
    match problem {
        Problem::Journal(problem) => matches!(
            problem,
            JournalProblem::Torn { .. }
                | JournalProblem::NewestLost { .. }
                | JournalProblem::Gap { .. }
                | JournalProblem::KeysTruncated { .. }
        ),
        Problem::Prios(_) | Problem::Uuids(_) | Problem::Btree(_) | Problem::Bucket(_) => true,
    }
}

/// The stretches of which keys are missing, and what is kept of each.
fn regions(
    set: &mut CacheSet<'_>,
    walk: WalkOptions,
    gens_lost: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Region>, NotAnew> {
    let lost = missed::missed(set, walk)?;
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let past = Past::read(set);
    let mut sources = Sources { set: &*set, past, found: None, gens_lost };
    let is_searched = lost.iter().any(|(lost, _)| !sources.is_certain(lost));
    let past = sources.past;
    let found = if is_searched { Some(search(set, progress)) } else { None };
    sources = Sources { set: &*set, past, found, gens_lost };
    let regions: Vec<Region> = lost
        .into_iter()
        .map(|(lost, damaged_below)| {
            sources.region(lost, damaged_below, &|key| matters(sources.set, key))
        })
        .collect();
    // What the search found is needed until the new state is current. What is live is outdated then.
    let found = sources.found.unwrap_or_default();
    let live = found.leaves.iter().filter(|leaf| leaf.is_live).map(|leaf| leaf.bucket);
    for bucket in live.chain(found.interior) {
        set.table.visit_node(bucket);
    }
    for &bucket in regions.iter().flat_map(|region| &region.copies) {
        if set.table.get(bucket).is_some_and(|it| it.mark() == GcMark::Unused) {
            set.table.mark_metadata(bucket);
        }
    }
    Ok(regions)
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
