//! A repair that is decided: its changes, what they leave, and which of them are made.

use std::collections::BTreeSet;

use crate::ops::plan::{Plan, Step};
use crate::ops::repair::{Anew, Claim, Class, Code, Fix, Left, NotAnew, Place, Reason};
use crate::units::Sectors;

/// A repair that is decided and not carried out.
#[derive(Debug)]
pub struct RepairPlan {
    /// The changes, in the order in which they were found.
    pub fixes: Vec<Fix>,
    /// What is still wrong with the set once all of them are made: what keeps the kernel or these tools
    /// from the set, or hides dirty data.
    pub left: Vec<Left>,
    /// New metadata, where that mends what single changes do not; then `left` is what is left without it.
    pub anew: Option<Anew>,
    /// Why there is none, where it is needed.
    pub not_anew: Option<NotAnew>,
    /// What a person says of the volumes.
    pub claims: Vec<Claim>,
    /// Dirty sectors that can be found now; `None` where the set cannot be read.
    pub dirty_sectors_before: Option<Sectors>,
    /// Dirty sectors that can be found once all changes are made; `None` where it cannot be read.
    pub dirty_sectors_after: Option<Sectors>,
}

impl RepairPlan {
    /// A plan for which no set was read.
    pub(super) fn without_set(fixes: Vec<Fix>, left: Vec<Left>, claims: Vec<Claim>) -> Self {
        Self {
            fixes,
            left,
            anew: None,
            not_anew: None,
            claims,
            dirty_sectors_before: None,
            dirty_sectors_after: None,
        }
    }

    /// Whether one of the changes is made where those of these codes are accepted. A first journal entry is
    /// of use with the new metadata alone.
    pub fn is_made(&self, fix: &Fix, accepted: &BTreeSet<Code>) -> bool {
        fix.is_accepted(accepted) && (fix.code != Code::Journal || self.is_anew_accepted(accepted))
    }

    /// The changes that are made when those of `accepted` are.
    pub fn accepted<'p>(&'p self, accepted: &'p BTreeSet<Code>) -> impl Iterator<Item = &'p Fix> {
        self.fixes.iter().filter(|fix| self.is_made(fix, accepted))
    }

    /// Whether the new metadata is made where changes of these codes are accepted. It is made from the
    /// cache as it is with all changes to it.
    pub fn is_anew_accepted(&self, accepted: &BTreeSet<Code>) -> bool {
        let is_accepted =
            |reason: &Reason| reason.class() == Class::Certain || accepted.contains(&reason.code());
        let mut of_cache = self.fixes.iter().filter(|fix| fix.backing.is_none());
        self.anew.as_ref().is_some_and(|anew| anew.reasons.iter().all(is_accepted))
            && of_cache.all(|fix| fix.is_accepted(accepted))
    }

    /// What is still wrong once changes of these codes are made, among them the new metadata.
    pub fn left_with(&self, accepted: &BTreeSet<Code>) -> impl Iterator<Item = &Left> {
        let made_anew = self.is_anew_accepted(accepted);
        self.left.iter().filter(move |left| !made_anew || !left.is_of_metadata())
    }

    /// Whether everything is mended where changes of these codes are accepted.
    pub fn is_whole(&self, accepted: &BTreeSet<Code>) -> bool {
        let fixed = self.fixes.iter().all(|fix| self.is_made(fix, accepted));
        fixed && self.left_with(accepted).next().is_none()
    }

    /// Whether nothing is written where changes of these codes are accepted.
    pub fn is_nothing(&self, accepted: &BTreeSet<Code>) -> bool {
        self.accepted(accepted).next().is_none() && !self.is_anew_accepted(accepted)
    }

    /// The single changes of one device, the superblock last; `None` is the cache.
    pub fn steps(&self, accepted: &BTreeSet<Code>, backing: Option<usize>) -> Plan {
        let mut plan = self.part(accepted, backing, false);
        plan.steps.extend(self.part(accepted, backing, true).steps);
        plan
    }

    /// The superblock of one device, or its other changes, and a flush.
    pub(super) fn part(
        &self,
        accepted: &BTreeSet<Code>,
        backing: Option<usize>,
        superblock: bool,
    ) -> Plan {
        let these = self
            .accepted(accepted)
            .filter(|fix| fix.backing == backing)
            .filter(|fix| (fix.place == Place::Superblock) == superblock);
        let mut steps: Vec<Step> = these.map(|fix| fix.step.clone()).collect();
        if !steps.is_empty() {
            steps.push(Step::Flush);
        }
        Plan { steps }
    }
}
