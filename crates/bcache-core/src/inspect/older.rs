//! A set under a superblock that is not its own: a cache with dirty data was formatted anew by mistake, or has
//! the superblock of another device.

use uuid::Uuid;

use crate::cache_set::gone::{Look, Remains};
use crate::inspect::backing::BackingDevices;
use crate::inspect::device::{Contents, Device, OlderSet};
use crate::inspect::stakes::Stakes;
use crate::inspect::volume::Volumes;
use crate::layout::SetMagic;
use crate::layout::superblock::{Kind, Superblock};

/// The set behind the superblock of `device`, if overwriting it may lose something. `wanted` are sets that
/// backing devices lack data of; owners of what the set holds are looked for in `backing`.
pub(crate) fn older_set(
    device: &Device<'_>,
    wanted: &[Uuid],
    backing: &mut BackingDevices,
) -> Option<OlderSet> {
    let sb = device.superblock.as_ref().filter(|sb| sb.csum_ok())?;
    let own = sb.set_uuid();
    match (device.kind()?, &device.contents) {
        // What the rest does not tell of a set that is not whole may be anything.
        (Kind::Cache, Contents::New) => one_of(device, wanted)
            .or_else(|| with_stakes(device, Look::Everywhere, &[], backing, |_| true)),
        (Kind::Cache, Contents::Unreadable(_)) => {
            let others: Vec<Uuid> = wanted.iter().copied().filter(|it| *it != own).collect();
            one_of(device, &others)
        }
        (Kind::Cache, _) => None,
        // What a volume holds may look like a journal, but not like a whole set; nor is it of the set that the
        // superblock names.
        (Kind::Backing, _) => with_stakes(device, Look::AtTheFirst, wanted, backing, |older| {
            !own.is_nil() && older.is(&own)
        }),
    }
}

fn one_of(device: &Device<'_>, sets: &[Uuid]) -> Option<OlderSet> {
    let (at, uuid) = Remains::of_one(device.handle, sets)?;
    Some(OlderSet { set: SetMagic::from_set_uuid(&uuid), at })
}

/// A set whose data may exist nowhere else, or that is `wanted`. Of one that is not whole this cannot be told:
/// `torn` says whether it counts.
fn with_stakes(
    device: &Device<'_>,
    look: Look,
    wanted: &[Uuid],
    backing: &mut BackingDevices,
    torn: impl FnOnce(&OlderSet) -> bool,
) -> Option<OlderSet> {
    let remains = Remains::read(device.handle, look)?;
    let older = OlderSet { set: remains.set, at: remains.at };
    let counts = match remains.superblock {
        Some(_) if wanted.iter().any(|it| older.is(it)) => true,
        Some(superblock) => has_stakes(device, superblock, backing),
        None => torn(&older),
    };
    counts.then_some(older)
}

/// Whether the set on `device` by `superblock` has data that exists nowhere else, or may have.
fn has_stakes(device: &Device<'_>, superblock: Superblock, backing: &mut BackingDevices) -> bool {
    let Ok(mut older) = Device::read_remains(device.handle, superblock) else { return true };
    older.complete_set_uuid(backing);
    let volumes = older.set().map(|it| Volumes::new(&it.set, backing)).unwrap_or_default();
    !Stakes::of_cache(&older, &volumes, false).nothing_to_lose()
}
