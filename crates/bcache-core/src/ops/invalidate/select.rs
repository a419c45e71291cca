//! What to take: from what was asked for to buckets.

use std::ops::RangeInclusive;

use crate::allocator::replacement::{PolicyState, victims};
use crate::allocator::{self, Mark, Policy, TableError};
use crate::cache_set::btree::WalkOptions;
use crate::cache_set::{Bucket, CacheSet, GcMark};
use crate::inspect::find_slot;
use crate::ops::invalidate::bits::BucketBits;
use crate::ops::invalidate::refusal::{Reason, is_legal};
use crate::ops::invalidate::survey::buckets_of;
use crate::ops::invalidate::{GaveUp, InvalidateError, writes};
use crate::units::{BucketIndex, Sectors};

/// Which buckets to invalidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// These, by number.
    Buckets(Vec<RangeInclusive<u64>>),
    /// Those that cover a range of the cache device.
    Sectors {
        /// First sector.
        start: Sectors,
        /// Number of sectors.
        len: Sectors,
    },
    /// Those with clean data of one volume.
    Volume {
        /// Uuid, label or slot of the volume.
        volume: String,
        /// Only what caches these sectors of it: first and number.
        range: Option<(Sectors, Sectors)>,
    },
    /// Those with clean data and the least prio.
    Coldest(Amount),
    /// All with clean data.
    AllClean,
    /// Those that the allocator would take, right after registration. Unused buckets come first, as
    /// there.
    Policy {
        /// The policy.
        policy: Policy,
        /// How many.
        count: u64,
        /// For RANDOM: what its numbers follow from.
        seed: u64,
    },
}

impl Selection {
    /// Whether it names single buckets: if one of these is refused, nothing is to be written.
    pub const fn names_buckets(&self) -> bool {
        matches!(self, Self::Buckets(_) | Self::Sectors { .. })
    }
}

/// How many of the coldest buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Count(u64),
    /// So many in a hundred of those that hold clean data and may be invalidated, rounded up.
    Percent(u8),
}

/// Buckets chosen and refused.
#[derive(Debug)]
pub(super) struct Selected {
    pub(super) targets: BucketBits,
    pub(super) refused: BucketBits,
    /// Ranges that the device does not have.
    pub(super) out_of_range: Vec<(BucketIndex, Reason)>,
    /// Dirty sectors where a volume's clean data was asked for.
    pub(super) dirty_kept: Sectors,
    pub(super) gave_up: Option<GaveUp>,
}

pub(super) fn select(
    set: &CacheSet<'_>,
    walk: &WalkOptions,
    selection: &Selection,
) -> Result<Selected, InvalidateError> {
    let nbuckets = set.geometry().nbuckets();
    let mut selected = Selected {
        targets: BucketBits::new(nbuckets)?,
        refused: BucketBits::new(nbuckets)?,
        out_of_range: Vec::new(),
        dirty_kept: Sectors(0),
        gave_up: None,
    };
    match selection {
        Selection::Buckets(ranges) => {
            for range in joined(ranges) {
                selected.name(set, *range.start(), *range.end());
            }
        }
        Selection::Sectors { start, len } => {
            let last = Sectors(start.0.saturating_add(len.0.saturating_sub(1)));
            let bucket = |sector| set.geometry().sector_to_bucket(sector).0;
            selected.name(set, bucket(*start), bucket(last));
        }
        Selection::Volume { volume, range } => {
            let slot = find_slot(set, volume)?;
            let range = range
                .map_or((0, u64::MAX), |(start, len)| (start.0, start.0.saturating_add(len.0)));
            let (buckets, dirty) = buckets_of(set, walk, slot, range)?;
            for bucket in buckets.iter() {
                selected.take(set, bucket);
            }
            selected.dirty_kept = dirty;
        }
        Selection::Coldest(amount) => selected.coldest(set, *amount),
        Selection::AllClean => {
            for (number, _) in clean(set) {
                selected.take(set, number);
            }
        }
        Selection::Policy { policy, count, seed } => {
            // The kernel has a chain's buckets in a reserve before it invalidates anything.
            let chain = writes::choose_chain(set, &selected.targets)?;
            let table = allocator_table(set, &chain)?;
            let most = usize::try_from(*count).unwrap_or(usize::MAX);
            let mut state = PolicyState::new(*seed);
            let found = victims(&table, *policy, &mut state, 0, most);
            let (found_count, wanted) = (found.len() as u64, *count);
            if found_count < wanted {
                selected.gave_up = Some(GaveUp { found: found_count, wanted });
            }
            for bucket in found {
                selected.take(set, bucket);
            }
        }
    }
    Ok(selected)
}

impl Selected {
    /// Whether something that was asked for is refused.
    pub(super) fn any_refused(&self) -> bool {
        !self.refused.is_empty() || !self.out_of_range.is_empty()
    }

    fn take(&mut self, set: &CacheSet<'_>, number: BucketIndex) {
        let legal = set.table.get(number).is_some_and(|bucket| is_legal(set, number, *bucket));
        if legal { self.targets.insert(number) } else { self.refused.insert(number) }
    }

    fn name(&mut self, set: &CacheSet<'_>, first: u64, last: u64) {
        let nbuckets = set.geometry().nbuckets();
        for number in first..=last.min(nbuckets.saturating_sub(1)) {
            self.take(set, BucketIndex(number));
        }
        if last >= nbuckets {
            let first = first.max(nbuckets);
            let reason = Reason::OutOfRange { first, last, nbuckets };
            self.out_of_range.push((BucketIndex(first), reason));
        }
    }

    /// The buckets of least prio; among equals, those of least number.
    fn coldest(&mut self, set: &CacheSet<'_>, amount: Amount) {
        let legal = || clean(set).filter(|(number, bucket)| is_legal(set, *number, **bucket));
        let mut by_prio = vec![0u64; usize::from(u16::MAX) + 1];
        for (_, bucket) in legal() {
            if let Some(count) = by_prio.get_mut(usize::from(bucket.prio().0)) {
                *count += 1;
            }
        }
        let mut rest = match amount {
            Amount::Count(count) => count,
            Amount::Percent(percent) => {
                let all: u64 = by_prio.iter().sum();
                all.saturating_mul(u64::from(percent)).div_ceil(100)
            }
        };
        // Of each prio, how many may go.
        for count in &mut by_prio {
            *count = (*count).min(rest);
            rest -= *count;
        }
        for (number, bucket) in legal() {
            if let Some(count) = by_prio.get_mut(usize::from(bucket.prio().0)) {
                if *count > 0 {
                    *count -= 1;
                    self.targets.insert(number);
                }
            }
        }
    }
}

/// The same numbers in ascending ranges that neither overlap nor touch.
fn joined(ranges: &[RangeInclusive<u64>]) -> Vec<RangeInclusive<u64>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| *range.start());
    let mut joined: Vec<RangeInclusive<u64>> = Vec::new();
    for range in sorted {
        match joined.last_mut().filter(|last| *range.start() <= last.end().saturating_add(1)) {
            Some(last) => *last = *last.start()..=*last.end().max(range.end()),
            None => joined.push(range),
        }
    }
    joined
}

/// All buckets with clean data.
fn clean<'s>(set: &'s CacheSet<'_>) -> impl Iterator<Item = (BucketIndex, &'s Bucket)> {
    (0u64..)
        .map(BucketIndex)
        .zip(set.table.as_slice())
        .filter(|(_, bucket)| bucket.mark() == GcMark::Reclaimable)
}

/// The table as the allocator has it once replay is over, the buckets of `reserved` pinned.
fn allocator_table(
    set: &CacheSet<'_>,
    reserved: &[BucketIndex],
) -> Result<allocator::BucketTable, TableError> {
    let geometry = set.geometry();
    let first = geometry.first_bucket();
    let mut table = allocator::BucketTable::new(geometry.nbuckets(), first.0)?;
    for (number, bucket) in (0u64..).map(BucketIndex).zip(set.table.as_slice()) {
        if number < first {
            continue;
        }
        let bucket_gen = bucket.bucket_gen();
        table.load(number, bucket.prio(), bucket_gen)?;
        let mark = match bucket.mark() {
            GcMark::Unused if set.table.is_node(number) => Mark::Metadata,
            GcMark::Unused => Mark::None,
            GcMark::Reclaimable => Mark::Reclaimable,
            GcMark::Dirty => Mark::Dirty,
            GcMark::Metadata => Mark::Metadata,
        };
        if mark != Mark::None {
            table.mark_key(number, bucket_gen, mark, bucket.sectors_used())?;
        }
        if bucket.gen_span() != 0 {
            // A stale pointer: it marks nothing, and its gen becomes `last_gc`.
            table.mark_key(number, bucket.last_gc(), Mark::Reclaimable, 0)?;
        }
    }
    table.gc_finish();
    reserved.iter().try_for_each(|&bucket| table.pin(bucket))?;
    Ok(table)
}
