//! What a person can do now, from what is at stake. The one table of it.
//!
//! Each piece of advice is given only where following it works: nothing that the kernel would
//! refuse, nothing that loses data.

use std::path::PathBuf;

use crate::device::DeviceKind;
use crate::inspect::advice::{Advice, Danger};
use crate::inspect::backing::Standing;
use crate::inspect::copies::Copied;
use crate::inspect::device::{Contents, Device, Identity, OlderSet};
use crate::inspect::doubt::Doubt;
use crate::inspect::member::Member;
use crate::inspect::stakes::Answer;
use crate::inspect::volume::{Owner, Volume};
use crate::layout::superblock::{BDEV_DATA_START_DEFAULT, BackingState, Kind, Superblock};
use crate::layout::verdict::{Verdict, kernel_verdict};
use crate::units::Sectors;

/// What can be done about `member`, one of `members`, of which there are `copies`.
pub(super) fn advise(
    member: &Member<'_>,
    members: &[Member<'_>],
    copies: &[Copied],
) -> Vec<Advice> {
    let copied = copied(member, copies);
    let mut advice = match member.device.kind() {
        Some(Kind::Cache) => of_cache(member, members, copies),
        Some(Kind::Backing) => of_backing(member, members),
        None if member.device.remains_at.is_some() => {
            vec![Advice::DoNotWipe, Advice::CopyDevice { device: member.path().clone() }]
        }
        None => Vec::new(),
    };
    if let Some(copied) = copied {
        // What must not be done comes first.
        let is_warning =
            |it: &Advice| matches!(it, Advice::DoNotRegister { .. } | Advice::DoNotWipe);
        let at = advice.iter().take_while(|it| is_warning(it)).count();
        let (first, second) = (copied.path.clone(), copied.other.clone());
        advice.insert(at, Advice::TakeCopyAway { first, second });
        // The cache is here, twice.
        advice.retain(|it| copied.kind != Kind::Cache || !matches!(it, Advice::BringCache { .. }));
    }
    advice
}

/// The first of `copies` that concerns `member`: itself, an owner of its volumes, or its cache.
fn copied<'c>(member: &Member<'_>, copies: &'c [Copied]) -> Option<&'c Copied> {
    let superblock = member.device.superblock.as_ref();
    let set_uuid = superblock
        .filter(|sb| sb.kind() == Some(Kind::Backing) && sb.state() != BackingState::None)
        .map(Superblock::set_uuid);
    copies.iter().find(|copied| {
        let is_owner = |it: &Volume| it.uuid == Some(copied.uuid);
        superblock.is_some_and(|sb| sb.uuid() == copied.uuid)
            || member.volumes.0.iter().any(is_owner)
            || copied.kind == Kind::Cache && Some(copied.set_uuid) == set_uuid
    })
}

fn of_cache(member: &Member<'_>, members: &[Member<'_>], copies: &[Copied]) -> Vec<Advice> {
    let has_copies = copied(member, copies).is_some();
    let device = &member.device;
    // What another set's superblock says of the size is not the device's.
    if let Some(needed) = device.cut_off.filter(|_| device.older_set.is_none()) {
        return of_cut_off(member, needed);
    }
    let mendable = mendable(member, members);
    match member.stakes.answer {
        Answer::None => nothing_dirty(member, members, mendable, has_copies),
        Answer::Present => dirty(member, members, mendable, copies),
        Answer::Unknown => unknown(member, members, mendable),
    }
}

/// Backing devices of a cache's set whose superblocks a repair mends: their checksums tell what they were, or
/// the cache knows the device.
fn mendable(member: &Member<'_>, members: &[Member<'_>]) -> Vec<PathBuf> {
    let owners = member.volumes.0.iter().filter_map(Volume::backing);
    let mut paths: Vec<PathBuf> =
        owners.filter(|device| device.is_mendable).map(|device| device.path.clone()).collect();
    let set_uuid = member.device.superblock.as_ref().map(Superblock::set_uuid);
    for other in members.iter().filter(|it| it.device.identity == Identity::Backing) {
        let Some(sb) = other.device.superblock.as_ref().filter(|sb| !sb.csum_ok()) else {
            continue;
        };
        let is_known = Some(sb.set_uuid()) == set_uuid
            && member.volumes.0.iter().any(|volume| volume.uuid == Some(sb.uuid()));
        let mut sealed = sb.clone();
        sealed.update_checksum();
        if is_known && kernel_verdict(&sealed, &other.device.handle.info().target()).accepts() {
            paths.push(other.path().clone());
        }
    }
    paths
}

fn of_cut_off(member: &Member<'_>, needed: Sectors) -> Vec<Advice> {
    let info = member.device.handle.info();
    let is_partition = info.kind == DeviceKind::Block && info.disk_size >= needed;
    let whole = if is_partition {
        Advice::GrowBack { needed }
    } else {
        Advice::GetWholeDevice { present: info.size(), needed }
    };
    let keep = Some(Advice::DoNotWipe).filter(|_| !member.stakes.nothing_to_lose());
    keep.into_iter().chain([whole]).collect()
}

fn nothing_dirty(
    member: &Member<'_>,
    members: &[Member<'_>],
    mendable: Vec<PathBuf>,
    has_copies: bool,
) -> Vec<Advice> {
    let mut advice = Vec::new();
    let cache = member.path();
    let has_set = matches!(member.device.contents, Contents::Set(_));
    let is_lacking = has_set && members.iter().any(|it| is_lacking(it, member));
    if is_lacking && member.device.registers() {
        advice.push(Advice::DoNotRegister { why: Danger::NoSlot });
    }
    if (!mendable.is_empty() || is_lacking) && !member.in_use {
        advice.extend(repair(member, members, mendable));
    }
    if member.device.registers() && !has_copies {
        for volume in &member.volumes.0 {
            if let (Some(device), Some(BackingState::Dirty)) =
                (volume.backing(), volume.backing_state())
            {
                let backing = device.path.clone();
                advice.push(Advice::ClearDirtyState { cache: cache.clone(), backing });
            }
        }
    }
    for volume in member.volumes.0.iter().filter(|volume| volume.is_flash_only()) {
        advice.push(save_flash_only(member, volume, has_copies));
    }
    if member.claimed {
        advice.push(Advice::KeepOldSet);
    } else if member.stakes.nothing_to_lose() {
        advice.push(if member.in_use { Advice::StopFirst } else { Advice::SafeToWipe });
    }
    advice
}

/// A flash-only volume is copied from the running set, or exported where there will be none.
fn save_flash_only(member: &Member<'_>, volume: &Volume, has_copies: bool) -> Advice {
    let entry = member.device.set().and_then(|it| it.set.uuids.get(volume.slot));
    let is_started = entry.is_some_and(|entry| entry.sectors.0 > 0);
    let registers = member.device.registers() && danger(member).is_none() && !has_copies;
    if is_started && registers {
        Advice::CopyFlashOnly { slot: volume.slot }
    } else {
        Advice::Export {
            cache: member.path().clone(),
            backing: None,
            slot: volume.slot,
            dirty_only: false,
            data_offset: None,
            likely: member.device.doubts.contains(&Doubt::Gens),
        }
    }
}

/// Why the cache must not be registered, though the kernel would take it.
fn danger(member: &Member<'_>) -> Option<Danger> {
    let device = &member.device;
    let accepted = device.verdict.as_ref().is_some_and(Verdict::accepts);
    if !accepted {
        return None;
    }
    let unsynced = device.set().is_some_and(|set| set.unsynced);
    let dirty_owner = |wanted: fn(&Standing, BackingState) -> bool| {
        member.volumes.0.iter().any(|volume| match &volume.owner {
            Owner::Present { device, standing } if volume.usage.dirty_sectors.0 > 0 => {
                wanted(standing, device.superblock.state())
            }
            _ => false,
        })
    };
    let hangs = device.superblock.as_ref().is_some_and(|sb| sb.replacement().is_none());
    let dirty_without_entry =
        |it: &Volume| it.owner == Owner::Unknown && it.usage.dirty_sectors.0 > 0;
    if device.doubts.contains(&Doubt::OlderSet) {
        Some(Danger::CoversSet)
    } else if unsynced || device.doubts.contains(&Doubt::OldJournal) {
        Some(Danger::Initialises)
    } else if hangs {
        Some(Danger::Hangs)
    } else if device.doubts.contains(&Doubt::Journal) && device.registers() {
        Some(Danger::OlderState)
    } else if device.doubts.contains(&Doubt::UuidTable)
        || device.doubts.contains(&Doubt::UuidSlot)
        || member.volumes.0.iter().any(dirty_without_entry)
    {
        Some(Danger::NoTable)
    } else if device.doubts.contains(&Doubt::Btree) && device.registers() {
        Some(Danger::LostKeys)
    } else if device.doubts.contains(&Doubt::Keys) {
        Some(Danger::StaleKeys)
    } else if device.doubts.contains(&Doubt::OtherData) {
        Some(Danger::OtherData)
    } else if device.doubts.contains(&Doubt::RegisteredSince) {
        Some(Danger::RegisteredSince)
    } else if dirty_owner(|standing, state| {
        *standing == Standing::Attached && state == BackingState::Stale
    }) {
        Some(Danger::DropsDirty)
    } else if dirty_owner(|standing, _| {
        matches!(standing, Standing::Released | Standing::Moved { .. })
    }) {
        Some(Danger::NotReattached)
    } else if member.volumes.0.iter().any(has_wrong_offset) {
        Some(Danger::DataOffset)
    } else {
        None
    }
}

/// Whether the superblock of a volume's backing device has a data offset that the volume never had.
fn has_wrong_offset(volume: &Volume) -> bool {
    let offset = volume.backing().map(|device| device.superblock.data_offset());
    offset.is_some_and(|offset| volume.usage.start_before(offset).is_some())
}

/// Whether the kernel attaches a volume's backing device and goes on where it stopped.
fn goes_on(volume: &Volume, set_block: Sectors) -> bool {
    match &volume.owner {
        Owner::Present { device, standing: Standing::Attached } => {
            let sb = &device.superblock;
            device.registers
                && sb.state().runs_on()
                && sb.block_size() >= set_block
                && device.size.0 >= volume.usage.end
                && volume.usage.start_before(sb.data_offset()).is_none()
        }
        _ => false,
    }
}

/// Whether a volume's backing device was detached with its data still in the cache, or was run without
/// the cache, or may have been.
fn ran_alone(volume: &Volume, device: &Device<'_>) -> bool {
    match &volume.owner {
        Owner::Present { device: owner, standing } => match standing {
            Standing::Released => true,
            Standing::Attached => {
                let entry = device.set().and_then(|it| it.set.uuids.get(volume.slot));
                owner.superblock.state() == BackingState::Stale
                    || entry.is_some_and(|it| it.registered_since(&owner.superblock).is_some())
            }
            _ => false,
        },
        _ => false,
    }
}

fn dirty(
    member: &Member<'_>,
    members: &[Member<'_>],
    mendable: Vec<PathBuf>,
    copies: &[Copied],
) -> Vec<Advice> {
    let has_copies = copied(member, copies).is_some();
    let cache = member.path().clone();
    let device = &member.device;
    let danger = danger(member);
    let mut advice = Vec::new();
    advice.extend(danger.map(|why| Advice::DoNotRegister { why }));
    advice.push(Advice::DoNotWipe);
    let set_block = device.superblock.as_ref().map(Superblock::block_size).unwrap_or_default();
    let volumes = || member.volumes.0.iter().filter(|it| it.usage.dirty_sectors.0 > 0);
    let path = |volume: &Volume| volume.backing().map(|device| device.path.clone());
    let whole = volumes().filter(|it| goes_on(it, set_block)).filter_map(path).collect::<Vec<_>>();
    let has_only = |known: &[Doubt]| {
        device.identity == Identity::Cache && device.doubts.iter().all(|it| known.contains(it))
    };
    let sound = has_only(&[Doubt::TornEntry]);
    let accepted = device.verdict.as_ref().is_some_and(Verdict::accepts);
    let may_write_back = accepted
        && !has_copies
        && !member.in_use
        && device.superblock.as_ref().is_some_and(Superblock::sync);
    let can_write_back = may_write_back && sound;
    let registers = device.registers() && danger.is_none() && !has_copies;
    if !registers && !has_copies {
        advice.push(Advice::CopyDevice { device: cache.clone() });
    }
    // A newest entry that is not whole was torn by a power cut, or damaged: a repair tells, and after the
    // next registration it is too late.
    let is_first = device.doubts.contains(&Doubt::TornEntry) || !mendable.is_empty();
    if is_first && sound && !member.in_use {
        advice.extend(repair(member, members, mendable.clone()));
    }
    if member.in_use {
        advice.push(Advice::StopFirst);
    } else if !whole.is_empty() {
        if registers {
            let backing = whole.clone();
            advice.push(Advice::RegisterAndDetach { cache: cache.clone(), backing });
        }
        if can_write_back {
            advice.push(Advice::WriteBackOffline { cache: cache.clone(), backing: whole });
        }
    }
    // Where neither the kernel nor a writeback takes the set as it is, a copy is what can be had.
    let takes_none = !registers && !can_write_back && !member.in_use;
    let needs_repair = !sound || volumes().any(|it| it.owner == Owner::Unknown);
    if needs_repair && matches!(device.contents, Contents::Set(_)) && !member.in_use {
        let advised = repair(member, members, mendable);
        advice.extend(advised.filter(|it| !advice.contains(it)));
    }
    for volume in volumes().filter(|it| !goes_on(it, set_block) || !sound || takes_none) {
        match (&volume.owner, volume.uuid) {
            (Owner::FlashOnly, _) => {
                advice.push(save_flash_only(member, volume, has_copies));
            }
            (Owner::Missing, Some(uuid)) => {
                advice.push(Advice::BringBacking { slot: volume.slot, uuid });
            }
            (owner, _) => {
                if let Owner::Present { device, .. } = owner {
                    let backing = device.superblock.block_size();
                    if backing < set_block {
                        advice.push(Advice::BlockSize { set: set_block, backing });
                    }
                }
                // Of a device that ran alone since, the rest may be newer than what is cached.
                let may_be_newer = ran_alone(volume, device);
                let is_other = device.doubts.contains(&Doubt::OtherData);
                let dirty_only = !goes_on(volume, set_block) || is_other || may_be_newer;
                let slot = volume.slot;
                let refused = volume.backing().filter(|device| !device.registers);
                let data_offset = refused
                    .map(|device| device.superblock.data_offset())
                    .filter(|offset| *offset >= BDEV_DATA_START_DEFAULT);
                // Its offset is not the volume's.
                let is_named = refused.is_none() && !has_wrong_offset(volume);
                let data_offset = data_offset.filter(|_| !has_wrong_offset(volume));
                // Of several devices that may be it, one that was not named is none to name.
                let is_one = |path: &PathBuf| {
                    members.iter().any(|it| it.path() == path)
                        || !copies.iter().any(|it| Some(it.uuid) == volume.uuid)
                };
                let backing = path(volume).filter(|_| is_named).filter(is_one);
                let back = backing.clone().filter(|_| {
                    may_be_newer
                        && may_write_back
                        && has_only(&[Doubt::TornEntry, Doubt::RegisteredSince])
                });
                let likely = device.doubts.contains(&Doubt::Gens);
                let back = back.map(|backing| {
                    let cache = cache.clone();
                    Advice::WriteBackRanAlone { cache, backing, slot }
                });
                let cache = cache.clone();
                advice.push(Advice::Export {
                    cache,
                    backing,
                    slot,
                    dirty_only,
                    data_offset,
                    likely,
                });
                advice.extend(back);
            }
        }
    }
    advice
}

fn unknown(member: &Member<'_>, members: &[Member<'_>], mendable: Vec<PathBuf>) -> Vec<Advice> {
    let mut advice = Vec::new();
    advice.extend(danger(member).map(|why| Advice::DoNotRegister { why }));
    if let Some(older) = member.device.older_set {
        advice.extend(uncover(member, older));
        return advice;
    }
    advice.push(Advice::DoNotWipe);
    let only_torn = member.stakes.doubts == [Doubt::TornEntry];
    if !only_torn {
        advice.push(Advice::CopyDevice { device: member.path().clone() });
    }
    if member.volumes.0.iter().any(|volume| volume.owner == Owner::Missing) {
        advice.push(Advice::NameBacking);
    }
    let is_damaged = member.device.identity != Identity::Cache;
    if !only_torn || is_damaged || !mendable.is_empty() {
        let advised = repair(member, members, mendable);
        advice.extend(advised.filter(|it| !advice.contains(it)));
    }
    advice
}

/// How to come to the set behind the superblock of `member`.
fn uncover(member: &Member<'_>, OlderSet { at, .. }: OlderSet) -> [Advice; 3] {
    let device = || member.path().clone();
    [
        Advice::DoNotWipe,
        Advice::CopyDevice { device: device() },
        Advice::UncoverOlderSet { device: device(), at },
    ]
}

/// The repair of a cache, and of backing devices. A superblock that is gone has its set's UUID from one, and
/// volumes without owners find them among all that were named.
fn repair(
    member: &Member<'_>,
    members: &[Member<'_>],
    mut backing: Vec<PathBuf>,
) -> Option<Advice> {
    // Nothing of the set is damaged.
    let mut doubts = member.device.doubts.iter();
    if doubts.all(|it| matches!(it, Doubt::OtherData | Doubt::RegisteredSince))
        && !member.device.doubts.is_empty()
        && backing.is_empty()
    {
        return None;
    }
    let is_gone = member.device.identity == Identity::SuperblockGone;
    let is_unread = !matches!(member.device.contents, Contents::Set(_));
    if is_gone || is_unread || lacks_owners(member, members) {
        let owner = member.volumes.0.iter().find_map(Volume::backing).map(|it| it.path.clone());
        let named = members.iter().filter(|it| is_attached(it, member)).map(|it| it.path().clone());
        for path in named.chain(owner.filter(|_| is_gone)) {
            if !backing.contains(&path) {
                backing.push(path);
            }
        }
    }
    if is_gone && backing.is_empty() && !member.device.has_flash_only_alone() {
        return Some(Advice::NameBacking);
    }
    backing.insert(0, member.path().clone());
    Some(Advice::Repair { devices: backing })
}

/// Whether `backing` is a backing device that says that it is attached to the set on `cache`.
fn is_attached(backing: &Member<'_>, cache: &Member<'_>) -> bool {
    let set_uuid = |it: &Member<'_>| it.device.superblock.as_ref().map(Superblock::set_uuid);
    let state = backing.device.superblock.as_ref().map(Superblock::state);
    backing.device.kind() == Some(Kind::Backing)
        && set_uuid(backing) == set_uuid(cache)
        && state != Some(BackingState::None)
}

/// Whether `backing` is complete and attached to the set on `cache`, whose uuid table does not have it.
fn is_lacking(backing: &Member<'_>, cache: &Member<'_>) -> bool {
    let sb = backing.device.superblock.as_ref();
    is_attached(backing, cache)
        && sb.map(Superblock::state) == Some(BackingState::Clean)
        && !cache.volumes.0.iter().any(|volume| volume.uuid == sb.map(Superblock::uuid))
}

/// Whether the uuid table of `cache` cannot be what it was: a volume is not in it, or a backing device of the
/// set.
fn lacks_owners(cache: &Member<'_>, members: &[Member<'_>]) -> bool {
    [Doubt::UuidTable, Doubt::UuidSlot].iter().any(|it| cache.device.doubts.contains(it))
        || cache.volumes.0.iter().any(|volume| volume.owner == Owner::Unknown)
        || members.iter().any(|it| is_lacking(it, cache))
}

fn of_backing(member: &Member<'_>, members: &[Member<'_>]) -> Vec<Advice> {
    let Some(sb) = member.device.superblock.as_ref().filter(|sb| sb.csum_ok()) else {
        return vec![Advice::DoNotWipe, Advice::CopyDevice { device: member.path().clone() }];
    };
    let mut advice = Vec::new();
    if let Some(older) = member.device.older_set {
        advice.push(Advice::DoNotRegister { why: Danger::CoversSet });
        advice.extend(uncover(member, older));
        return advice;
    }
    let is_damaged = member.device.identity != Identity::Backing && !member.in_use;
    if is_damaged && kernel_verdict(sb, &member.device.handle.info().target()).accepts() {
        advice.push(Advice::Repair { devices: vec![member.path().clone()] });
    }
    let state = sb.state();
    let relation = member.relation.as_ref();
    if let Some(set) = relation.filter(|it| it.standing != Standing::Unrelated) {
        if let Some(set) = set.block_too_small {
            advice.push(Advice::BlockSize { set, backing: sb.block_size() });
        }
    }
    let owner_of_dirty = relation
        .filter(|it| it.slot.is_some())
        .filter(|_| member.stakes.answer != Answer::None)
        .filter(|_| members.len() > 1);
    match (owner_of_dirty, state) {
        (Some(relation), _) if relation.standing != Standing::Attached => {
            advice.push(Advice::DoNotRegister { why: Danger::NotReattached });
        }
        (Some(_), BackingState::Stale) => {
            advice.push(Advice::DoNotRegister { why: Danger::DropsDirty });
            advice.push(Advice::CheckContents);
        }
        (Some(_), _) => {
            let lacks_data = state.lacks_data() || member.stakes.answer == Answer::Present;
            advice.push(Advice::DoNotRunAlone { lacks_data });
        }
        (None, BackingState::Dirty) => {
            // Where the cache is here and nothing is dirty, what to do is said of the cache.
            let cleared = relation.is_some_and(|it| it.standing == Standing::Attached)
                && member.stakes.answer == Answer::None;
            if !cleared {
                advice.push(Advice::DoNotRunAlone { lacks_data: true });
                let set_uuid = sb.set_uuid();
                let is_it =
                    |it: &Member<'_>| it.device.older_set.is_some_and(|older| older.is(&set_uuid));
                if !set_uuid.is_nil() && !members.iter().any(is_it) {
                    advice.push(Advice::BringCache { set_uuid });
                }
            }
        }
        (None, BackingState::Stale) => {
            advice.push(Advice::CheckContents);
            // A cache that is here and holds nothing of it has nothing to give.
            if relation.is_none_or(|it| it.standing != Standing::Attached) {
                advice.push(Advice::BringCache { set_uuid: sb.set_uuid() });
            }
        }
        (None, BackingState::None | BackingState::Clean) => {}
    }
    advice
}
