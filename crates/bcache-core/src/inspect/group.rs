//! Devices looked at together.

use std::path::PathBuf;

use uuid::Uuid;

use crate::inspect::advise::advise;
use crate::inspect::apart::Apart;
use crate::inspect::backing::{BackingDevices, Standing};
use crate::inspect::copies::{self, Copied};
use crate::inspect::device::Device;
use crate::inspect::doubt::Doubt;
use crate::inspect::member::{Member, Relation};
use crate::inspect::older::older_set;
use crate::inspect::stakes::{Answer, Stakes};
use crate::inspect::volume::{Volume, Volumes};
use crate::layout::superblock::{BackingState, Kind, Superblock};

/// Devices that were looked at together.
#[derive(Debug)]
pub struct Group<'d> {
    /// The devices, in the order in which they were given.
    pub members: Vec<Member<'d>>,
    /// Copies among them and the owners of their volumes, and of them in the rest of the machine.
    pub copies: Vec<Copied>,
}

impl<'d> Group<'d> {
    /// Puts `devices` together; each with whether somebody holds it.
    ///
    /// Owners of volumes that are not among them are looked for in `backing`.
    pub fn new(mut devices: Vec<(Device<'d>, bool)>, backing: &mut BackingDevices) -> Self {
        for (device, _) in &devices {
            if let Some(sb) = &device.superblock {
                backing.add(device.handle.info(), sb, device.registers());
            }
        }
        for (device, _) in &mut devices {
            device.complete_set_uuid(backing);
        }
        let lacking = backing.lacking();
        for (device, _) in devices.iter_mut().filter(|(_, in_use)| !in_use) {
            device.older_set = older_set(device, &lacking, backing);
            device.doubts.extend(device.older_set.map(|_| Doubt::OlderSet));
        }
        let apart: Vec<Option<(usize, Apart)>> =
            devices.iter().map(|device| apart(device, &devices)).collect();
        for (cache, apart) in apart.iter().flatten() {
            if let Some((cache, _)) = devices.get_mut(*cache) {
                cache.doubts.extend(apart.differing.map(|_| Doubt::OtherData));
                cache.doubts.extend(apart.since.map(|_| Doubt::RegisteredSince));
            }
        }
        // Attached, by their superblocks.
        let attached: Vec<(Uuid, Uuid)> = devices
            .iter()
            .filter_map(|(device, _)| {
                let sb = device.superblock.as_ref().filter(|sb| sb.csum_ok())?;
                let is_attached =
                    device.kind() == Some(Kind::Backing) && sb.state() != BackingState::None;
                is_attached.then(|| (sb.set_uuid(), sb.uuid()))
            })
            .collect();
        let mut members: Vec<Member<'d>> = devices
            .into_iter()
            .map(|(device, in_use)| {
                let volumes =
                    device.set().map(|it| Volumes::new(&it.set, backing)).unwrap_or_default();
                let stakes = match device.kind() {
                    Some(Kind::Backing) => Stakes::of_backing(&device),
                    Some(Kind::Cache) => {
                        let set_uuid = device.superblock.as_ref().map(Superblock::set_uuid);
                        let is_lacking = attached.iter().any(|(set, uuid)| {
                            Some(*set) == set_uuid
                                && !volumes.0.iter().any(|volume| volume.uuid == Some(*uuid))
                        });
                        Stakes::of_cache(&device, &volumes, is_lacking)
                    }
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
        let relations: Vec<Option<Relation>> = members
            .iter()
            .zip(apart)
            .map(|(member, apart)| {
                let mut relation = relation(member, &members)?;
                // Of two caches of the set, the other one may be the copy.
                let is_it = |cache: &usize| {
                    members.get(*cache).is_some_and(|it| *it.path() == relation.cache)
                };
                let apart = apart.filter(|(cache, _)| is_it(cache));
                relation.apart = apart.map(|(_, apart)| apart).unwrap_or_default();
                Some(relation)
            })
            .collect();
        let of_volumes: Vec<Option<Stakes>> = relations
            .iter()
            .map(|relation| {
                let relation = relation.as_ref()?;
                let cache = members.iter().find(|it| *it.path() == relation.cache)?;
                match relation.slot {
                    Some(slot) => Some(Stakes::of_volume(&cache.stakes, slot)),
                    // It may be the owner of what the cache holds of nobody.
                    None => may_own(relation, cache).then(|| {
                        Stakes::unknown(
                            cache.stakes.doubts.iter().copied().chain([Doubt::UuidTable]).collect(),
                        )
                    }),
                }
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
        let looked_at: Vec<_> = members.iter().map(|it| (&it.device, &it.volumes)).collect();
        let copies = copies::of_group(&looked_at, backing.seen);
        for index in 0..members.len() {
            let advice = members.get(index).map(|member| advise(member, &members, &copies));
            if let (Some(member), Some(advice)) = (members.get_mut(index), advice) {
                member.advice = advice;
            }
        }
        Self { members, copies }
    }
}

/// Of a backing device: the cache among `devices` that has a slot for it, and what shows that the two are apart.
fn apart(
    (device, in_use): &(Device<'_>, bool),
    devices: &[(Device<'_>, bool)],
) -> Option<(usize, Apart)> {
    let is_backing = device.kind() == Some(Kind::Backing);
    let sb = device.superblock.as_ref().filter(|sb| is_backing && sb.csum_ok())?;
    devices.iter().enumerate().find_map(|(index, (cache, cache_in_use))| {
        let set = cache.set().map(|it| &it.set)?;
        let (slot, _) = set.uuids.find(sb.uuid())?;
        let apart = if *in_use || *cache_in_use {
            Apart::by_times(set, slot, sb)
        } else {
            Apart::of(set, slot, device.handle, sb)
        };
        (apart != Apart::default()).then_some((index, apart))
    })
}

/// Whether the cache of `relation` holds, or may hold, dirty data whose owner its uuid table does not name.
fn may_own(relation: &Relation, cache: &Member<'_>) -> bool {
    cache.volumes.0.iter().any(Volume::is_ownerless)
        || relation.standing == Standing::Unknown && cache.stakes.answer == Answer::Unknown
}

/// The cache that may have been made over the set that `member` lacks data of: the one whose set it names
/// though that has no slot for it, or where no cache of its set is here, the one it was named with.
fn claim(member: &Member<'_>) -> Option<PathBuf> {
    let relation = member.relation.as_ref()?;
    let is_gone = matches!(relation.standing, Standing::Unknown | Standing::Unrelated);
    let state = member.device.superblock.as_ref()?.state();
    (is_gone && state.lacks_data()).then(|| relation.cache.clone())
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
            apart: Apart::default(),
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
