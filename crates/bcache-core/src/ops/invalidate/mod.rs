//! Invalidating buckets of a cache that the kernel does not run (docs/on-disk-format.md §8).
//!
//! A bucket is invalidated by raising its gen: every pointer to it is stale then, and who reads what
//! was cached there reads the backing device. So only buckets without dirty data may go, and none
//! with metadata. Gens live in the prio sets, whose chain the newest journal entry names.
//!
//! Order of the writes, and what a power cut leaves:
//!
//! 1. the sets of a new chain, with the new gens, into buckets that nothing points to, then a flush.
//!    Until now the journal names the old chain, and the new sets mean nothing: the old state.
//! 2. the sets are read back. If the device did not keep them, everything ends here, in the old
//!    state.
//! 3. one journal entry, a copy of the newest but for its number, its keys (none), and the head of
//!    the new chain; then a flush. The entry is 240 bytes, within one sector, and has a checksum:
//!    torn, it is none, and the entry before it stays the newest, as the kernel itself has it after
//!    a power cut. The old state
//!    or the new one, whole, whichever blocks of it survive.
//!
//! `last_seq` stays: what replay needed before it needs still. Keys of the replay range that point
//! to an invalidated bucket are stale when they are inserted, which is harmless
//! (docs/on-disk-format.md §8.5). Superblock, btree and uuid table are not written.
//!
//! Before any of it the journal is searched as it will be (see the module `rehearse`): the new entry
//! must not bring back others that the kernel does not see now.
//!
//! Afterwards the whole cache set is read again, and every bucket and volume must be as planned.
//!
//! Memory: 9 bytes a bucket for what the device holds and whose it is; 12 where more than seven volumes
//! are cached. While the result is read again, 8 more. With the buffers of the reader that is 580 MB
//! for 33.5 million buckets. The policies take 8 for the allocator's table, before that.

mod bits;
mod error;
mod refusal;
mod rehearse;
mod run;
mod select;
mod survey;
mod trust;
mod writes;

pub use bits::BucketBits;
pub use error::{DeviceState, InvalidateError, ProofError, RunError};
pub use refusal::{DirtyShare, Reason};
pub use run::{RunProgress, run, run_with_undo};
pub use select::{Amount, Selection};
pub use survey::{Survey, volume_name};
pub use trust::TrustedSet;
pub(in crate::ops) use trust::{Unsound, blocks, read_sound};
pub use writes::Writes;

use crate::cache_set::CacheSet;
use crate::cache_set::btree::WalkOptions;
use crate::ops::plan::Step;
use crate::units::{BucketIndex, Gen, Prio, Sectors};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which buckets.
    pub selection: Selection,
    /// Whether the rest goes where named buckets are refused.
    pub skip_refused: bool,
    /// How to walk the btree.
    pub walk: WalkOptions,
}

/// A bucket that is to be invalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub bucket: BucketIndex,
    /// Its prio.
    pub prio: Prio,
    /// Its effective gen.
    pub gen_before: Gen,
    /// The gen it gets.
    pub gen_after: Gen,
    /// Sectors that valid keys use in it.
    pub sectors: Sectors,
}

/// A policy that did not find all the buckets that it was to take: there are no more, or RANDOM has
/// drawn as often as it does in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GaveUp {
    /// How many it found.
    pub found: u64,
    /// How many it was to take.
    pub wanted: u64,
}

/// What can be done about refused buckets of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Advice {
    /// What kind they are of.
    pub kind: &'static str,
    /// How many of them there are; a range past the end of the device counts as one.
    pub buckets: u64,
    /// What can be done instead.
    pub instead: &'static str,
}

/// An invalidation that is decided and not carried out.
#[derive(Debug)]
pub struct InvalidatePlan<'d> {
    set: CacheSet<'d>,
    targets: BucketBits,
    refused: BucketBits,
    out_of_range: Vec<(BucketIndex, Reason)>,
    stopped: bool,
    /// Dirty sectors that stay where a volume's clean data was asked for.
    pub dirty_kept: Sectors,
    /// Where the policy found fewer buckets than it was to take.
    pub gave_up: Option<GaveUp>,
    /// Whose data is where.
    pub survey: Survey,
    /// What is written; `None` where there is nothing to invalidate, or a named bucket is refused.
    pub writes: Option<Writes>,
}

/// Plans the invalidation of what `options` say, or refuses it.
pub fn plan<'d>(
    set: TrustedSet<'d>,
    options: &Options,
) -> Result<InvalidatePlan<'d>, InvalidateError> {
    let set = set.0;
    let selected = select::select(&set, &options.walk, &options.selection)?;
    let select::Selected { targets, refused, out_of_range, dirty_kept, gave_up } = selected;
    let survey = Survey::new(&set, &options.walk, &targets, &refused)?;
    let any_refused = !refused.is_empty() || !out_of_range.is_empty();
    let stopped = any_refused && options.selection.names_buckets() && !options.skip_refused;
    let writes =
        if stopped || targets.is_empty() { None } else { Some(writes::plan(&set, &targets)?) };
    writes.iter().try_for_each(|writes| rehearse::rehearse(&set, writes))?;
    Ok(InvalidatePlan {
        set,
        targets,
        refused,
        out_of_range,
        stopped,
        dirty_kept,
        gave_up,
        survey,
        writes,
    })
}

impl<'d> InvalidatePlan<'d> {
    /// The cache set as it was read.
    pub const fn set(&self) -> &CacheSet<'d> {
        &self.set
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
    pub(crate) fn is_target(&self, bucket: BucketIndex) -> bool {
        self.targets.contains(bucket)
    }

    /// The buckets that may be invalidated, ascending.
    pub fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        self.targets.iter().map(|number| {
            let bucket = self.set.table.get(number).copied().unwrap_or_default();
            let sectors = self.survey.sectors_of(number);
            Target {
                bucket: number,
                prio: bucket.prio(),
                gen_before: bucket.bucket_gen(),
                gen_after: bucket.bucket_gen().next(),
                sectors: Sectors(sectors.unwrap_or(u64::from(bucket.sectors_used()))),
            }
        })
    }

    /// What is written, step by step; nothing where [`Self::writes`] is `None`.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.writes.iter().flat_map(|writes| {
            writes.sets(&self.set, &self.targets).chain(writes.commit.steps.iter().cloned())
        })
    }

    /// Bytes that [`run`] reports as written by the time it has succeeded.
    pub fn write_bytes(&self) -> u64 {
        let set_bytes = self.set.geometry().meta_bucket_bytes();
        self.writes.as_ref().map_or(0, |writes| {
            let sets = set_bytes.saturating_mul(writes.chain.len() as u64);
            sets.saturating_add(writes.commit.progress_bytes())
        })
    }

    /// Number of buckets that are refused; a range past the end of the device counts as one.
    pub fn refused_count(&self) -> u64 {
        self.refused.len() + self.out_of_range.len() as u64
    }

    /// The buckets that are refused, ascending, and why.
    pub fn refused(&self) -> impl Iterator<Item = (BucketIndex, Reason)> + '_ {
        let reasons = self.refused.iter().map(|number| {
            let shares = || self.survey.shares_of(&self.set, number);
            (number, refusal::reason(&self.set, number, shares))
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
