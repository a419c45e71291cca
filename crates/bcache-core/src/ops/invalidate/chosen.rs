//! The buckets that an invalidation is about, while it is planned and when it has run.

use std::collections::TryReserveError;

use crate::cache_set::{BucketTable, CacheSet};
use crate::ops::invalidate::before::Before;
use crate::ops::invalidate::bits::BucketBits;
use crate::ops::invalidate::refusal::{Cause, Reason};
use crate::ops::invalidate::select::Selected;
use crate::ops::invalidate::survey::{Survey, volume_name};
use crate::ops::invalidate::{Advice, GaveUp, Target, Writes};
use crate::units::{BucketIndex, Sectors};

/// The buckets that are invalidated and those that are refused, and what is written.
#[derive(Debug)]
pub struct Chosen<'d> {
    /// As it was read; its table of buckets is empty where there is a `before`.
    set: CacheSet<'d>,
    /// What was in the table, once the set was read again.
    pub(super) before: Option<Before>,
    pub(super) targets: BucketBits,
    refused: BucketBits,
    out_of_range: Vec<(BucketIndex, Reason)>,
    stopped: bool,
    /// Dirty sectors that stay where a volume's clean data was asked for.
    pub dirty_kept: Sectors,
    /// Where the policy found fewer buckets than it was to take.
    pub gave_up: Option<GaveUp>,
    /// What is cached of which volume, and what of it goes.
    pub survey: Survey,
    /// What is written; `None` where there is nothing to invalidate, or a named bucket is refused.
    pub writes: Option<Writes>,
}

impl<'d> Chosen<'d> {
    pub(super) fn new(
        set: CacheSet<'d>,
        selected: Selected,
        stopped: bool,
        survey: Survey,
        writes: Option<Writes>,
    ) -> Self {
        let Selected { targets, refused, out_of_range, dirty_kept, gave_up } = selected;
        Self {
            set,
            before: None,
            targets,
            refused,
            out_of_range,
            stopped,
            dirty_kept,
            gave_up,
            survey,
            writes,
        }
    }

    /// The set, which is whole as long as it is in a plan.
    pub(super) const fn set(&self) -> &CacheSet<'d> {
        &self.set
    }

    /// Gives back most of the memory before the set is read again: of its table of buckets stays what the
    /// proof and the lists need.
    pub(super) fn shrink(&mut self) -> Result<Before, TryReserveError> {
        let before = Before::new(&self.set, &self.targets, &self.refused)?;
        self.set.table = BucketTable::default();
        Ok(before)
    }

    /// How to call the volume in `slot`: its label, or else its uuid.
    pub fn volume_name(&self, slot: u32) -> String {
        volume_name(&self.set, slot)
    }

    /// Whether nothing is to be written because a bucket that was named is refused.
    pub const fn stopped(&self) -> bool {
        self.stopped
    }

    /// Number of buckets that may be invalidated.
    pub const fn target_count(&self) -> u64 {
        self.targets.len()
    }

    /// Whether a bucket is among those that may be invalidated.
    pub(super) fn is_target(&self, bucket: BucketIndex) -> bool {
        self.targets.contains(bucket)
    }

    /// The buckets that may be invalidated, ascending, as they were.
    pub fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        self.targets.iter().enumerate().map(|(rank, number)| {
            let of_table = || {
                let bucket = self.set.table.get(number).copied().unwrap_or_default();
                (bucket.prio(), bucket.bucket_gen(), bucket.sectors_used())
            };
            let of_before = self.before.as_ref().map(|before| before.target(rank, number));
            let (prio, bucket_gen, sectors_used) = of_before.unwrap_or_else(of_table);
            let sectors = self.survey.sectors_of(number);
            Target {
                bucket: number,
                prio,
                gen_before: bucket_gen,
                gen_after: bucket_gen.next(),
                sectors: Sectors(sectors.unwrap_or(u64::from(sectors_used))),
            }
        })
    }

    /// Number of buckets that are refused; a range past the end of the device counts as one.
    pub fn refused_count(&self) -> u64 {
        self.refused.len() + self.out_of_range.len() as u64
    }

    /// The buckets that are refused, ascending, and why.
    pub fn refused(&self) -> impl Iterator<Item = (BucketIndex, Reason)> + '_ {
        let first_bucket = self.set.geometry().first_bucket();
        let reasons = self.refused.iter().enumerate().map(move |(rank, number)| {
            let of_before = self.before.as_ref().map(|before| before.cause(rank));
            let cause = of_before.unwrap_or_else(|| Cause::of(&self.set, number));
            let shares = || self.survey.shares_of(&self.set, number);
            (number, cause.reason(first_bucket, shares))
        });
        reasons.chain(self.out_of_range.iter().cloned())
    }

    /// What can be done about the refused buckets: once for each kind of reason, in the order in
    /// which they come.
    pub fn advice(&self) -> Vec<Advice> {
        let mut advice: Vec<Advice> = Vec::new();
        for (_, reason) in self.refused() {
            let (kind, instead) = (reason.kind(), reason.instead());
            match advice.iter_mut().find(|known| known.kind == kind) {
                Some(known) => known.buckets += 1,
                None => advice.push(Advice { kind, buckets: 1, instead }),
            }
        }
        advice
    }
}
