//! Why an amount of dirty data is not certain.

use std::collections::BTreeSet;

use crate::cache_set::journal::JournalProblem;
use crate::cache_set::uuids::UuidProblem;
use crate::cache_set::{KeySource, SetRefusal};
use crate::cache_set::{KeyState, LoadedNode, NodePlace, Problem, Progress, Visitor};
use crate::layout::bkey::Bkey;
use crate::units::BucketIndex;

/// A reason why what was found may not be all, or may not be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doubt {
    /// The superblock has a bad checksum: none of its fields can be trusted.
    Superblock,
    /// The device is shorter than its superblock says.
    CutOff,
    /// The journal may hold a newer state than the one that was read.
    Journal,
    /// An entry that replay needs is missing.
    JournalGap,
    /// The newest journal entry is not whole: a write cut short, or damage.
    TornEntry,
    /// Gens are lost: which keys are valid is not known for certain.
    Gens,
    /// There is no readable uuid table: volumes have no names and no owners.
    UuidTable,
    /// A slot of the uuid table holds what no kernel writes.
    UuidSlot,
    /// Btree nodes are damaged or unreadable: keys are missing.
    Btree,
    /// Keys contradict each other or their buckets.
    Keys,
    /// The superblock is that of a new cache, and an old journal of the same set lies on the device.
    OldJournal,
    /// The superblock is of another set, and an older one is still there whose data may exist nowhere else.
    OlderSet,
    /// There is no journal from which a set could be read.
    NoJournal,
    /// The superblock's sizes make no cache device.
    Geometry,
    /// It carries no superblock that tells what it is.
    NoSuperblock,
    /// What the cache holds clean is not what its backing device holds.
    OtherData,
    /// A backing device was registered after this cache was last there: it may be an old copy.
    RegisteredSince,
    /// The state that the backing device's superblock names says so little.
    State,
}

impl Doubt {
    /// Whether keys may be missing or wrong because of it.
    pub(super) const fn hides_keys(self) -> bool {
        !matches!(self, Self::UuidTable | Self::UuidSlot | Self::CutOff)
    }

    /// Whether the uuid table is that of the newest state all the same, so that the volumes in it are
    /// all there are.
    pub(super) const fn leaves_volumes_known(self) -> bool {
        matches!(
            self,
            Self::Superblock
                | Self::JournalGap
                | Self::TornEntry
                | Self::Gens
                | Self::Btree
                | Self::Keys
        )
    }

    fn of(problem: &Problem) -> Option<Self> {
        match problem {
            Problem::Journal(JournalProblem::Torn { .. }) => Some(Self::TornEntry),
            Problem::Journal(JournalProblem::Gap { .. }) => Some(Self::JournalGap),
            Problem::Journal(_) => Some(Self::Journal),
            Problem::Prios(_) => Some(Self::Gens),
            Problem::Btree(_) => Some(Self::Btree),
            Problem::Bucket(_) => Some(Self::Keys),
            Problem::Uuids(problem) => match problem {
                UuidProblem::BadPointer { .. }
                | UuidProblem::Unreadable { .. }
                | UuidProblem::NotATable { .. } => Some(Self::UuidTable),
                UuidProblem::ImplausibleSlot { .. } => Some(Self::UuidSlot),
                UuidProblem::EmptyFlashVolume { .. } | UuidProblem::Repeated { .. } => None,
            },
        }
        .filter(|doubt| !doubt.hides_keys() || problem.hides_keys())
    }
}

/// Passes everything on, and remembers what it casts doubt on.
pub(super) struct Watch<'v> {
    inner: &'v mut dyn Visitor,
    root: Option<BucketIndex>,
    pub(super) doubts: BTreeSet<Doubt>,
    pub(super) refusal: Option<SetRefusal>,
}

impl<'v> Watch<'v> {
    pub(super) fn new(inner: &'v mut dyn Visitor) -> Self {
        Self { inner, root: None, doubts: BTreeSet::new(), refusal: None }
    }
}

impl Visitor for Watch<'_> {
    fn progress(&mut self, progress: Progress) {
        self.inner.progress(progress);
    }

    fn problem(&mut self, problem: Problem) {
        self.doubts.extend(Doubt::of(&problem));
        // The kernel says of a root that cannot be read what it says of no other node. The root is
        // the first node that is met, unless it cannot be read at all.
        let root = self.root.or(match &problem {
            Problem::Btree(crate::cache_set::BtreeProblem::Unreadable { place, .. }) => {
                Some(place.bucket)
            }
            _ => None,
        });
        let refusal = SetRefusal::of(&problem, root);
        self.refusal = self.refusal.into_iter().chain(refusal).min();
        self.inner.problem(problem);
    }

    fn wants_keys(&self) -> bool {
        self.inner.wants_keys()
    }

    fn node(&mut self, place: NodePlace, node: &LoadedNode) {
        self.root.get_or_insert(place.bucket);
        self.inner.node(place, node);
    }

    fn key(&mut self, origin: KeySource, key: &Bkey, state: KeyState) {
        self.inner.key(origin, key, state);
    }
}
