//! Which buckets go first: the three policies of on-disk-format.md §9.4.
//!
//! They name victims and change nothing in the table. [`lru`] looks at all buckets at once;
//! [`fifo`] and [`random`] propose one bucket after another, and the caller says of each whether it
//! was taken, because a bucket that was is not proposed in vain again. Invalidating re-checks each
//! victim, so a policy may work on a table that others are changing.

pub mod fifo;
pub(crate) mod kernel_heap;
pub mod lru;
pub mod random;

use std::collections::HashSet;

use serde::Serialize;

use crate::layout::superblock::Replacement;
use crate::units::BucketIndex;

use super::table::BucketTable;

pub use fifo::FifoCursor;
pub use random::RandomSource;

/// `CACHE_REPLACEMENT` of the superblock (on-disk-format.md §1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Least recently used first, small amounts of live data before large.
    #[default]
    Lru,
    /// In the order of the device, round and round.
    Fifo,
    /// Any.
    Random,
}

impl From<Replacement> for Policy {
    fn from(replacement: Replacement) -> Self {
        match replacement {
            Replacement::Lru => Self::Lru,
            Replacement::Fifo => Self::Fifo,
            Replacement::Random => Self::Random,
        }
    }
}

impl Policy {
    /// The name that sysfs and options use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => Replacement::Lru.name(),
            Self::Fifo => Replacement::Fifo.name(),
            Self::Random => Replacement::Random.name(),
        }
    }
}

/// Whether a policy found as many victims as were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All that were asked for.
    Enough,
    /// It gave up: without a GC, asking again would not help.
    GaveUp,
    /// All that were asked for, but it gave up in the same step, as the kernel's FIFO and RANDOM do
    /// when the last bucket that they look at fills the list: GC is woken all the same.
    EnoughButGaveUp,
}

/// Where FIFO and RANDOM stand between passes.
#[derive(Clone, Debug)]
pub struct PolicyState {
    /// FIFO's place.
    pub cursor: FifoCursor,
    /// RANDOM's numbers.
    pub random: RandomSource,
}

impl PolicyState {
    /// FIFO at the beginning, RANDOM from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { cursor: FifoCursor::default(), random: RandomSource::new(seed) }
    }
}

/// The buckets that `policy` would invalidate first, at most `count`, in its order.
///
/// `min_prio` is the least prio of the set as of the last rescaling; 0 before the first.
pub fn victims(
    table: &BucketTable,
    policy: Policy,
    state: &mut PolicyState,
    min_prio: u16,
    count: usize,
) -> Vec<BucketIndex> {
    let mut taken = Vec::new();
    let mut seen = HashSet::new();
    let mut take = |bucket| {
        let takes = table.can_invalidate(bucket).unwrap_or(false) && seen.insert(bucket);
        if takes {
            taken.push(bucket);
        }
        takes
    };
    match policy {
        Policy::Lru => {
            let mut scratch = lru::Scratch::default();
            let found = lru::select(table, min_prio, count, &mut scratch);
            return found.into_iter().map(|victim| victim.bucket()).collect();
        }
        Policy::Fifo => drop(state.cursor.select(table, count, &mut take)),
        Policy::Random => drop(state.random.select(table, count, &mut take)),
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_the_names_of_sysfs() {
        for (replacement, name) in [
            (Replacement::Lru, "lru"),
            (Replacement::Fifo, "fifo"),
            (Replacement::Random, "random"),
        ] {
            assert_eq!(Policy::from(replacement).name(), name);
        }
    }
}
