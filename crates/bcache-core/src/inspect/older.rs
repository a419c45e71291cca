//! A set under a superblock that is not its own: a cache with dirty data was formatted anew by mistake, or has
//! the superblock of another device.

use uuid::Uuid;

use crate::cache_set::gone::Remains;
use crate::inspect::backing::BackingDevices;
use crate::inspect::device::{Contents, Device, OlderSet};
use crate::inspect::stakes::Stakes;
use crate::inspect::volume::Volumes;
use crate::layout::SetMagic;
use crate::layout::superblock::{BackingState, Kind, Superblock};

/// The set behind the superblock of `device`, if overwriting it may lose something. `wanted` are sets that
/// backing devices lack data of; owners of what the set holds are looked for in `backing`.
pub(crate) fn older_set(
    device: &Device<'_>,
    wanted: &[Uuid],
    backing: &mut BackingDevices,
) -> Option<OlderSet> {
    let sb = device.superblock.as_ref().filter(|sb| sb.csum_ok())?;
    let own = sb.set_uuid();
    let others = || wanted.iter().copied().filter(|it| *it != own).collect::<Vec<Uuid>>();
    match (device.kind()?, &device.contents) {
        (Kind::Cache, Contents::New) => {
            one_of(device, &others()).or_else(|| with_stakes(device, sb, true, backing))
        }
        (Kind::Cache, Contents::Unreadable(_)) => one_of(device, &others()),
        (Kind::Cache, _) => None,
        // No backing device has the journal of its own set: the superblock was copied over the cache's.
        (Kind::Backing, _) => one_of(device, &[&others()[..], &[own]].concat()).or_else(|| {
            // What a volume holds may look like a journal, but not like a whole set.
            let is_as_made = sb.state() == BackingState::None && sb.last_mount() == 0;
            is_as_made.then(|| with_stakes(device, sb, false, backing)).flatten()
        }),
    }
}

fn one_of(device: &Device<'_>, sets: &[Uuid]) -> Option<OlderSet> {
    let (at, uuid) = Remains::of_one(device.handle, sets)?;
    Some(OlderSet { set: SetMagic::from_set_uuid(&uuid), at })
}

/// Any other set whose data may exist nowhere else. Of one that is not whole this cannot be told: `torn` says
/// whether it counts.
fn with_stakes(
    device: &Device<'_>,
    sb: &Superblock,
    torn: bool,
    backing: &mut BackingDevices,
) -> Option<OlderSet> {
    let remains = Remains::read(device.handle).filter(|it| it.set != sb.set_magic())?;
    let counts = match remains.superblock {
        Some(superblock) => has_stakes(device, superblock, backing),
        None => torn,
    };
    counts.then_some(OlderSet { set: remains.set, at: remains.at })
}

/// Whether the set on `device` by `superblock` has data that exists nowhere else, or may have.
fn has_stakes(device: &Device<'_>, superblock: Superblock, backing: &mut BackingDevices) -> bool {
    let Ok(mut older) = Device::read_remains(device.handle, superblock) else { return true };
    older.complete_set_uuid(backing);
    let volumes = older.set().map(|it| Volumes::new(&it.set, backing)).unwrap_or_default();
    !Stakes::of_cache(&older, &volumes, false).nothing_to_lose()
}
