//! What formatting destroys.

use std::fmt;

use uuid::Uuid;

use super::at_stake::AtStake;
use super::facts::DeviceFacts;
use crate::device::{Signature, SuperblockArea};
use crate::layout::damage::restored;
use crate::layout::superblock::{Kind, Label};

/// One thing that a device holds and that formatting it destroys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// A bcache device.
    Bcache {
        /// Cache or backing; none where its version is unknown.
        kind: Option<Kind>,
        /// Its UUID.
        uuid: Uuid,
        /// Its label.
        label: Label,
        /// Whether its magic was wiped, and all else is there.
        magic_wiped: bool,
        /// What exists nowhere else.
        at_stake: AtStake,
    },
    /// A cache set whose superblock is gone.
    Set {
        /// What exists nowhere else.
        at_stake: AtStake,
    },
    /// Anything else that has a name.
    Signature(Signature),
    /// Data that has none, from this byte on.
    Unknown {
        /// Where it begins.
        at: u64,
    },
}

impl Destroyed {
    /// All that is on the device of `facts`.
    pub(super) fn of(facts: &DeviceFacts) -> Vec<Self> {
        let area = facts.area();
        let mut all = Vec::new();
        if let SuperblockArea::Bcache(found) | SuperblockArea::MagicWiped(found) = &area {
            let restored = restored(found);
            let sb = restored.as_ref().map_or(found, |(_, sb)| sb);
            all.push(Self::Bcache {
                kind: sb.kind(),
                uuid: sb.uuid(),
                label: sb.label(),
                magic_wiped: area.is_magic_wiped(),
                at_stake: facts.at_stake.clone(),
            });
        }
        let is_set = all.is_empty() && !facts.at_stake.is_nothing();
        // Who made something else of the device since has given up the set.
        if is_set && facts.found.is_empty() {
            all.push(Self::Set { at_stake: facts.at_stake.clone() });
        }
        let others = facts.found.iter().filter(|found| !found.is_bcache());
        all.extend(others.cloned().map(Self::Signature));
        all.extend(facts.unknown_at.map(|at| Self::Unknown { at }));
        all
    }

    /// The overrides without which it may not be destroyed.
    pub(super) fn needs(&self) -> Vec<Override> {
        match self {
            Self::Bcache { at_stake, .. } if at_stake.is_nothing() => vec![Override::WipeBcache],
            Self::Bcache { .. } | Self::Set { .. } => {
                vec![Override::WipeBcache, Override::LoseDirtyData]
            }
            // A partition with bcache in it is lost as a bcache device of its own would be.
            Self::Signature(found) if found.holds_bcache() => {
                vec![Override::WipeBcache, Override::Force]
            }
            Self::Signature(_) | Self::Unknown { .. } => vec![Override::Force],
        }
    }
}

impl fmt::Display for Destroyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bcache { kind, uuid, label, magic_wiped, at_stake } => {
                match kind {
                    Some(kind) => write!(f, "a bcache {kind} device (UUID {uuid}")?,
                    None => write!(f, "a bcache device (UUID {uuid}")?,
                }
                if !label.is_empty() {
                    write!(f, ", label \"{label}\"")?;
                }
                f.write_str(if *magic_wiped { ", its magic wiped)" } else { ")" })?;
                tell_stakes(f, at_stake)
            }
            Self::Set { at_stake } => {
                f.write_str("a bcache cache set whose superblock is gone")?;
                tell_stakes(f, at_stake)
            }
            Self::Signature(found) => write!(f, "{found}"),
            Self::Unknown { at } => write!(f, "unknown data (from byte {at} on)"),
        }
    }
}

fn tell_stakes(f: &mut fmt::Formatter<'_>, at_stake: &AtStake) -> fmt::Result {
    match at_stake {
        AtStake::Nothing => Ok(()),
        AtStake::Volumes { .. } => write!(f, " with {at_stake}"),
        AtStake::Unknown { .. } | AtStake::Owner { .. } => write!(f, "; {at_stake}"),
    }
}

/// A permission to destroy something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Override {
    /// To overwrite bcache superblocks.
    WipeBcache,
    /// To overwrite anything else.
    Force,
    /// To lose data that exists on a cache only, or may.
    LoseDirtyData,
}

/// Whose data that exists nowhere else may be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoseDirtyData {
    /// Nobody's.
    #[default]
    Refused,
    /// That of the set with this UUID.
    OfSet(Uuid),
    /// Anybody's.
    Allowed,
}

impl LoseDirtyData {
    /// Whether what is at stake may be lost.
    pub fn allows(self, at_stake: &AtStake) -> bool {
        match self {
            Self::Allowed => true,
            Self::OfSet(uuid) => at_stake.is_nothing() || at_stake.set_uuid() == Some(uuid),
            Self::Refused => at_stake.is_nothing(),
        }
    }
}
