//! A device of a group, and what the others say of it.

use std::path::PathBuf;

use uuid::Uuid;

use crate::inspect::advice::Advice;
use crate::inspect::apart::Apart;
use crate::inspect::backing::Standing;
use crate::inspect::device::Device;
use crate::inspect::stakes::Stakes;
use crate::inspect::volume::Volumes;
use crate::layout::superblock::Kind;
use crate::units::Sectors;

/// A device, and what the others say of it.
#[derive(Debug)]
pub struct Member<'d> {
    /// The device.
    pub device: Device<'d>,
    /// Whether somebody holds it, so that what it holds may change.
    pub in_use: bool,
    /// The volumes of a cache.
    pub volumes: Volumes,
    /// Of a backing device: the cache of the group that it goes with, and how.
    pub relation: Option<Relation>,
    /// What exists only here; of a backing device, what exists only on its cache.
    pub stakes: Stakes,
    /// Of a cache: a backing device names its set and lacks data that the set no longer has. The set
    /// was made anew, and what is left of the old one on the device is all there is.
    pub claimed: bool,
    /// What a person can do, most urgent first.
    pub advice: Vec<Advice>,
}

impl Member<'_> {
    /// Its path.
    pub fn path(&self) -> &PathBuf {
        &self.device.handle.info().path
    }

    /// Whether it is a cache that can be overwritten: all of it is here, and nothing is lost.
    pub fn safe_to_wipe(&self) -> bool {
        self.device.kind() == Some(Kind::Cache)
            && self.device.cut_off.is_none()
            && !self.claimed
            && !self.in_use
            && self.stakes.nothing_to_lose()
    }
}

/// How a backing device goes with a cache of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Path of the cache.
    pub cache: PathBuf,
    /// The cache's set.
    pub set_uuid: Uuid,
    /// Its slot in the uuid table, where it has one.
    pub slot: Option<u32>,
    /// How it stands towards the set.
    pub standing: Standing,
    /// Block size of the set, where that is larger than the backing device's: the kernel does not
    /// attach it.
    pub block_too_small: Option<Sectors>,
    /// What shows that the two do not go together as they are.
    pub apart: Apart,
}
