//! Whether a backing device and its cache go together as they are.

use crate::cache_set::CacheSet;
use crate::cache_set::clean::{Differing, differing};
use crate::device::ReadDevice;
use crate::layout::superblock::Superblock;
use crate::layout::uuid_entry::RegisteredSince;

/// What shows that a backing device and its cache are not of one time, or not of one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Apart {
    /// What the cache has clean and the backing device does not hold; of some data only.
    pub differing: Option<Differing>,
    /// That the backing device was registered after the cache was last there.
    pub since: Option<RegisteredSince>,
}

impl Apart {
    /// Of the volume in `slot` and its backing device `device`, whose superblock is `sb`. One that is not
    /// attached to the set, or was run without it, says so by itself.
    pub fn of(set: &CacheSet<'_>, slot: u32, device: &dyn ReadDevice, sb: &Superblock) -> Self {
        let by_times = Self::by_times(set, slot, sb);
        let is_told = Self::is_told(set, sb);
        Self { differing: is_told.then(|| differing(set, slot, device)).flatten(), ..by_times }
    }

    /// The same by what the superblock and the uuid table say alone: data of devices in use changes.
    pub(super) fn by_times(set: &CacheSet<'_>, slot: u32, sb: &Superblock) -> Self {
        let entry = set.uuids.get(slot).filter(|_| Self::is_told(set, sb));
        Self { differing: None, since: entry.and_then(|entry| entry.registered_since(sb)) }
    }

    fn is_told(set: &CacheSet<'_>, sb: &Superblock) -> bool {
        sb.state().runs_on() && sb.set_uuid() == set.cache.superblock().set_uuid()
    }
}
