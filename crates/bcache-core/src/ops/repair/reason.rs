//! Why new metadata is made, and what becomes of the volumes.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::cache_set::journal::Gap;
use crate::cache_set::{OpenError, Problem, ReadError};
use crate::ops::rebuild::{ExtentsError, RebuildError};
use crate::ops::repair::claims::ClaimError;
use crate::ops::repair::witness::Witness;
use crate::ops::repair::{Class, Code};
use crate::units::{BucketIndex, Sectors};

/// Why new metadata is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Damage in the journal keeps the kernel from its newest entry, or entries are missing.
    Journal {
        /// The entry that the kernel takes for the newest; 0 for none.
        found: u64,
        /// The newest there is.
        newest: u64,
        /// Older entries that the kernel needs and does not find.
        hidden: u64,
        /// Entries that are missing.
        gaps: Vec<Gap>,
        /// Entries with keys that cannot be right.
        damaged_entries: BTreeSet<u64>,
    },
    /// The journal has no entries.
    NoJournal,
    /// Prio sets are damaged.
    PrioSets {
        /// How many are sound.
        sound: u64,
        /// How many there should be.
        needed: u64,
    },
    /// The uuid table is damaged.
    UuidTable {
        /// By slot: what says whose volume it is.
        known: BTreeMap<u32, Witness>,
    },
    /// Keys point to buckets that hold something else now.
    Keys {
        /// Sectors of those that are dirty: what they point to is not their data.
        lost_sectors: u64,
    },
    /// Data of a flash-only volume counts as clean, so that the kernel may drop it.
    FlashClean {
        /// Its slot.
        slot: u32,
        /// How much.
        clean: Sectors,
    },
    /// A btree node is damaged or cannot be read, or its keys contradict themselves or other nodes.
    BtreeNode {
        /// Its bucket; `None` for a root that the journal does not tell.
        bucket: Option<BucketIndex>,
        /// Its level; 0 for a leaf.
        level: u16,
        /// How sure what is kept of it is.
        class: Class,
        /// Sectors of its dirty keys that point to buckets which were reused since.
        stale_dirty_sectors: u64,
        /// Nodes that a search found, and that tell of it.
        found_nodes: u64,
    },
}

impl Reason {
    /// Its code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Journal { .. } | Self::NoJournal => Code::Journal,
            Self::PrioSets { .. } => Code::PrioSets,
            Self::UuidTable { .. } => Code::UuidTable,
            Self::BtreeNode { .. } => Code::BtreeNode,
            Self::Keys { .. } | Self::FlashClean { .. } => Code::Keys,
        }
    }

    /// Volumes that are known by a person's claim alone.
    pub fn named(&self) -> Vec<u32> {
        let Self::UuidTable { known } = self else { return Vec::new() };
        known.iter().filter(|(_, by)| **by == Witness::Named).map(|(slot, _)| *slot).collect()
    }

    /// How sure it is that nothing is lost.
    pub fn class(&self) -> Class {
        match self {
            // Older ones may be of a past that the kernel has left.
            Self::Journal { gaps, hidden: 0, damaged_entries, .. }
                if gaps.is_empty() && damaged_entries.is_empty() =>
            {
                Class::Certain
            }
            Self::Keys { lost_sectors: 0 } | Self::FlashClean { .. } => Class::Certain,
            Self::Journal { .. } | Self::PrioSets { .. } => Class::Likely,
            // What was written last was there alone, or what is lost.
            Self::NoJournal | Self::Keys { .. } => Class::Guess,
            Self::UuidTable { known } => {
                known.values().map(|it| it.class()).max().unwrap_or(Class::Certain)
            }
            Self::BtreeNode { class, .. } => *class,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Journal { found, newest, hidden, gaps, damaged_entries } => {
                let mut told = Vec::new();
                if found != newest {
                    told.push(format!(
                        "journal entry {newest} is the newest, the kernel finds {found}"
                    ));
                }
                if *hidden > 0 {
                    told.push(format!("damage hides {hidden} journal entries from the kernel"));
                }
                told.extend(gaps.iter().map(|gap| {
                    format!("keys of journal entries {}-{} are lost", gap.first, gap.last)
                }));
                told.extend(
                    damaged_entries
                        .iter()
                        .map(|seq| format!("keys of journal entry {seq} are wrong")),
                );
                f.write_str(&told.join("; "))
            }
            Self::Keys { lost_sectors: 0 } => {
                f.write_str("clean keys point to buckets that hold something else")
            }
            Self::Keys { lost_sectors } => write!(
                f,
                "keys point to buckets that hold something else: {lost_sectors} dirty sectors are lost"
            ),
            Self::FlashClean { slot, clean } => write!(
                f,
                "{clean} of flash-only volume {slot} count as clean, and are made dirty: the kernel would \
                 drop them"
            ),
            Self::NoJournal => {
                f.write_str("the journal has no entries: what was written last may be lost")
            }
            Self::PrioSets { sound, needed } => {
                write!(f, "{} of {needed} prio sets are lost", needed.saturating_sub(*sound))
            }
            Self::UuidTable { known } => {
                f.write_str("uuid table")?;
                for (index, (slot, witness)) in known.iter().enumerate() {
                    let comma = if index == 0 { ": " } else { "; " };
                    write!(f, "{comma}volume {slot} is known by {witness}")?;
                }
                Ok(())
            }
            Self::BtreeNode { bucket, level, class, stale_dirty_sectors, found_nodes } => {
                match bucket {
                    Some(bucket) => write!(f, "btree node in bucket {bucket} (level {level})")?,
                    None => f.write_str("the root of the btree")?,
                }
                match (class, found_nodes) {
                    (Class::Certain, _) => f.write_str(": the journal has what it lacks")?,
                    (Class::Likely, 0) => f.write_str(": made again from the journal")?,
                    (Class::Guess, 0) => f.write_str(": only a part of it is known")?,
                    (Class::Likely, 1) => {
                        f.write_str(": made again from a node that a search found")?;
                    }
                    (Class::Likely, nodes) => {
                        write!(f, ": made again from {nodes} nodes that a search found")?;
                    }
                    (Class::Guess, 1) => {
                        f.write_str(
                            ": only a part of it is known, from a node that a search found",
                        )?;
                    }
                    (Class::Guess, nodes) => write!(
                        f,
                        ": only a part of it is known, from {nodes} nodes that a search found"
                    )?,
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
    /// Whether it has no backing device.
    pub flash_only: bool,
    /// Dirty sectors that are kept.
    pub dirty_sectors: u64,
    /// Dirty sectors that are not kept: their buckets hold something else.
    pub lost_sectors: u64,
    /// Of those that are kept, what something lost might say otherwise of.
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
    /// Nothing tells whose a volume with dirty data is.
    #[error(
        "nothing tells whose volume {slot} is, with {dirty_sectors} sectors of dirty data; name all \
         backing devices of the set"
    )]
    NoOwner {
        /// Its slot.
        slot: u32,
        /// Its dirty sectors.
        dirty_sectors: u64,
    },
    /// A claim is refused.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The keys that can be read contradict each other.
    #[error(transparent)]
    Extents(#[from] ExtentsError),
    /// It cannot be built.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
}
