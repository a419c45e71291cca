//! Devices looked at together.

use std::path::PathBuf;

use uuid::Uuid;

use crate::inspect::advice::{self, Advice};
use crate::inspect::backing::{BackingDevices, Standing};
use crate::inspect::device::Device;
use crate::inspect::stakes::Stakes;
use crate::inspect::volume::Volumes;
use crate::layout::superblock::{BackingState, Kind};
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
}

/// Devices that were looked at together.
#[derive(Debug)]
pub struct Group<'d> {
    /// The devices, in the order in which they were given.
    pub members: Vec<Member<'d>>,
}

impl<'d> Group<'d> {
    /// Puts `devices` together; each with whether somebody holds it.
    ///
    /// Owners of volumes that are not among them are looked for in `backing`.
    pub fn new(devices: Vec<(Device<'d>, bool)>, backing: &mut BackingDevices) -> Self {
        for (device, _) in &devices {
            if let Some(sb) = &device.superblock {
                backing.add(device.handle.info(), sb);
            }
        }
        let mut members: Vec<Member<'d>> = devices
            .into_iter()
            .map(|(device, in_use)| {
                let volumes =
                    device.set().map(|it| Volumes::new(&it.set, backing)).unwrap_or_default();
                let stakes = match device.kind() {
                    Some(Kind::Backing) => Stakes::of_backing(&device),
                    Some(Kind::Cache) => Stakes::of_cache(&device, &volumes),
                    None => Stakes::unknown(device.doubts.iter().copied().collect()),
                };
                Member {
                    device,
                    in_use,
                    volumes,
                    relation: None,
                    stakes,
                    claimed: false,
                    advice: Vec::new(),
                }
            })
            .collect();
        let relations: Vec<Option<Relation>> =
            members.iter().map(|member| relation(member, &members)).collect();
        let of_volumes: Vec<Option<Stakes>> = relations
            .iter()
            .map(|relation| {
                let relation = relation.as_ref()?;
                let cache = members.iter().find(|it| *it.path() == relation.cache)?;
                Some(Stakes::of_volume(&cache.stakes, relation.slot?))
            })
            .collect();
        for ((member, relation), stakes) in members.iter_mut().zip(relations).zip(of_volumes) {
            member.relation = relation;
            // A superblock that cannot be trusted does not tell whose device this is.
            if let Some(stakes) = stakes {
                member.stakes = stakes;
            }
        }
        let claimed: Vec<PathBuf> = members.iter().filter_map(claim).collect();
        for member in &mut members {
            member.claimed = claimed.contains(member.path());
        }
        for index in 0..members.len() {
            let advice = members.get(index).map(|member| advice::advise(member, &members));
            if let (Some(member), Some(advice)) = (members.get_mut(index), advice) {
                member.advice = advice;
            }
        }
        Self { members }
    }
}

/// The cache whose set `member` names and lacks data of, though the set has no slot for it.
fn claim(member: &Member<'_>) -> Option<PathBuf> {
    let relation = member.relation.as_ref().filter(|it| it.standing == Standing::Unknown)?;
    let state = member.device.superblock.as_ref()?.state();
    matches!(state, BackingState::Dirty | BackingState::Stale).then(|| relation.cache.clone())
}

/// How `member`, if it is a backing device, goes with a cache among `members`: the one whose uuid
/// table has it, else the one whose set it names.
fn relation(member: &Member<'_>, members: &[Member<'_>]) -> Option<Relation> {
    let sb = member.device.superblock.as_ref()?;
    if member.device.kind() != Some(Kind::Backing) || !sb.csum_ok() {
        return None;
    }
    let caches = members.iter().filter_map(|cache| {
        let cache_sb = cache.device.superblock.as_ref()?;
        if cache.device.kind() != Some(Kind::Cache) {
            return None;
        }
        let slot = cache
            .device
            .set()
            .and_then(|it| it.set.uuids.find(sb.uuid()))
            .filter(|(_, entry)| !entry.flash_only())
            .map(|(slot, _)| slot);
        let set_uuid = cache_sb.set_uuid();
        Some(Relation {
            cache: cache.path().clone(),
            set_uuid,
            slot,
            standing: Standing::of(sb, set_uuid, slot.is_some()),
            block_too_small: (cache_sb.block_size() > sb.block_size())
                .then(|| cache_sb.block_size()),
        })
    });
    caches.min_by_key(|relation| match relation.standing {
        Standing::Attached => 0,
        Standing::Released => 1,
        Standing::Moved { .. } => 2,
        Standing::Unknown => 3,
        Standing::Unrelated => 4,
    })
}
