//! A cache and a backing device that meet again, after one has gone on without the other.

use std::path::Path;

use uuid::Uuid;

use super::Refusal;
use super::on_device::named_set;
use crate::cache_set::{NoVisitor, ReadOptions};
use crate::device::open_read;
use crate::device::sysfs::node_of;
use crate::inspect::{Answer, BackingDevices, Device, Group};
use crate::layout::superblock::{BackingState, Superblock};
use crate::running::findings::DeviceState;
use crate::running::view::View;
use crate::units::Sectors;

/// Refuses the return of the cache of `set`, the device at `cache`, to backing devices that went on
/// without it. Where one was started without it, that is only refused for data that the kernel would
/// drop, or where that cannot be told; `lose_dirty_data` allows it.
///
/// Reads all metadata of the cache where a backing device was started without it.
///
/// # Errors
/// When reads would return old contents, or dirty data would be dropped.
pub fn returns_to(
    view: &View,
    cache: &Path,
    set: Uuid,
    lose_dirty_data: bool,
) -> Result<(), Refusal> {
    for backing in &view.backing {
        let state = DeviceState::of(backing);
        if !matches!(state, DeviceState::CacheLost | DeviceState::Forced) {
            continue;
        }
        // A superblock that cannot be read may name this set.
        if named_set(backing).is_some_and(|named| named != set) {
            continue;
        }
        let device = backing.name.clone();
        if state == DeviceState::CacheLost {
            let bcache = backing.bcache.clone().unwrap_or_else(|| device.clone());
            return Err(Refusal::CacheIsStale { backing: device, bcache });
        }
        if lose_dirty_data {
            continue;
        }
        match dirty_on(cache, &node_of(&device)) {
            (Answer::None, _) => {}
            (_, dirty) => return Err(Refusal::DropsDirtyData { backing: device, dirty }),
        }
    }
    Ok(())
}

/// Refuses a backing device that was started without its cache, where that cache is registered: the
/// kernel attaches the two at once, and drops the dirty data. With `certain` only where the cache is
/// seen to hold some; it changes while it is read.
///
/// # Errors
/// When dirty data would be dropped.
pub fn joins(
    view: &View,
    backing: &Path,
    superblock: &Superblock,
    name: &str,
    certain: bool,
) -> Result<(), Refusal> {
    let Some(set) = view.set(superblock.set_uuid()) else { return Ok(()) };
    if superblock.state() != BackingState::Stale {
        return Ok(());
    }
    let found = set.cache.as_ref().map(|cache| dirty_on(&node_of(&cache.name), backing));
    match found {
        Some((Answer::Present, dirty)) => {
            Err(Refusal::DropsDirtyData { backing: name.to_owned(), dirty })
        }
        _ if certain => Ok(()),
        _ => Err(Refusal::DropsDirtyData { backing: name.to_owned(), dirty: None }),
    }
}

/// Whether the cache at `cache` holds data of the device at `backing` that is nowhere else, and how
/// much that is at least.
fn dirty_on(cache: &Path, backing: &Path) -> (Answer, Option<Sectors>) {
    const UNKNOWN: (Answer, Option<Sectors>) = (Answer::Unknown, None);
    let (Ok(cache), Ok(backing)) = (open_read(cache), open_read(backing)) else { return UNKNOWN };
    let cache = Device::read(&cache, &ReadOptions::default(), &mut NoVisitor);
    let (Ok(cache), Ok(backing)) = (cache, Device::read_superblock(&backing)) else {
        return UNKNOWN;
    };
    let group = Group::new(vec![(backing, false), (cache, false)], &mut BackingDevices::default());
    let stakes = group.members.first().map(|it| &it.stakes);
    let least = stakes.map(|it| Sectors(it.at_least_sectors)).filter(|it| it.0 > 0);
    stakes.map_or(UNKNOWN, |it| (it.answer, least))
}
