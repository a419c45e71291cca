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
//! are cached. Before the result is read again, that shrinks to 3 (see the module `before`), and the
//! reading takes its own 8: with the buffers of the reader 397 MB for 33.5 million buckets. The policies
//! take 8 for the allocator's table, before that.

mod before;
mod bits;
mod chosen;
mod error;
mod refusal;
mod rehearse;
mod run;
mod select;
mod survey;
mod trust;
mod writes;

pub use bits::BucketBits;
pub use chosen::Chosen;
pub use error::{DeviceState, InvalidateError, ProofError, RunError};
pub use refusal::{DirtyShare, Reason};
pub use run::{Finished, RunProgress, run, run_with_undo};
pub use select::{Amount, Selection};
use survey::Owners;
pub use survey::Survey;
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
    /// Which buckets it is about, and what would be written.
    pub chosen: Chosen<'d>,
    owners: Owners,
}

/// Plans the invalidation of what `options` say, or refuses it.
pub fn plan<'d>(
    set: TrustedSet<'d>,
    options: &Options,
) -> Result<InvalidatePlan<'d>, InvalidateError> {
    let set = set.0;
    let selected = select::select(&set, &options.walk, &options.selection)?;
    let (survey, owners) =
        survey::survey(&set, &options.walk, &selected.targets, &selected.refused)?;
    let stopped =
        selected.any_refused() && options.selection.names_buckets() && !options.skip_refused;
    let writes = if stopped || selected.targets.is_empty() {
        None
    } else {
        Some(writes::plan(&set, &selected.targets)?)
    };
    writes.iter().try_for_each(|writes| rehearse::rehearse(&set, writes))?;
    Ok(InvalidatePlan { chosen: Chosen::new(set, selected, stopped, survey, writes), owners })
}

impl<'d> InvalidatePlan<'d> {
    /// The cache set as it was read.
    pub const fn set(&self) -> &CacheSet<'d> {
        self.chosen.set()
    }

    /// The slots of the volumes that have data in `bucket`; the flag says that there are more.
    pub fn volumes_of(&self, bucket: BucketIndex) -> (Vec<u32>, bool) {
        self.owners.of(bucket)
    }

    /// What is written, step by step; nothing where [`Chosen::writes`] is `None`.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        let Chosen { writes, targets, .. } = &self.chosen;
        writes.iter().flat_map(|writes| {
            writes.sets(self.set(), targets).chain(writes.commit.steps.iter().cloned())
        })
    }

    /// Bytes that [`run`] reports as written by the time it has succeeded.
    pub fn write_bytes(&self) -> u64 {
        let set_bytes = self.set().geometry().meta_bucket_bytes();
        self.chosen.writes.as_ref().map_or(0, |writes| {
            let sets = set_bytes.saturating_mul(writes.chain.len() as u64);
            sets.saturating_add(writes.commit.progress_bytes())
        })
    }
}
