//! Backing devices: those at hand, and how each stands towards the caches.

use std::collections::HashMap;
use std::path::PathBuf;

use uuid::Uuid;

use crate::device::DeviceInfo;
use crate::layout::SetMagic;
use crate::layout::superblock::{BackingState, Kind, Superblock};
use crate::layout::verdict::kernel_verdict;
use crate::units::Sectors;

/// A backing device that is at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingDevice {
    /// Its path.
    pub path: PathBuf,
    /// Its size.
    pub size: Sectors,
    /// Its superblock, the magic restored where that alone was missing.
    pub superblock: Superblock,
    /// Whether the kernel takes what stands there.
    pub registers: bool,
    /// Where it does not, whether it would take [`Self::superblock`], which a repair puts there.
    pub is_mendable: bool,
}

/// Lists the backing devices of the machine.
pub type SearchMachine = fn() -> Vec<BackingDevice>;

/// A block device of the machine that carries a superblock of bcache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its path.
    pub path: PathBuf,
    /// What it carries.
    pub superblock: Superblock,
}

/// Lists the devices of the machine that carry superblocks of bcache.
pub type SearchSeen = fn() -> Vec<Seen>;

/// Backing devices by UUID: those that were named, and those of the machine.
#[derive(Debug, Default)]
pub struct BackingDevices {
    named: HashMap<Uuid, BackingDevice>,
    /// How to find more; called once, and only where a device is wanted that was not named.
    search: Option<SearchMachine>,
    machine: HashMap<Uuid, BackingDevice>,
    /// How to find copies of the devices in the rest of the machine.
    pub(super) seen: Option<SearchSeen>,
}

impl BackingDevices {
    /// Those that are added, and those that `search` finds.
    pub fn with_machine(search: SearchMachine) -> Self {
        Self { search: Some(search), ..Self::default() }
    }

    /// The same, where copies of the devices are looked for in what `seen` finds.
    #[must_use]
    pub fn beside_copies(mut self, seen: Option<SearchSeen>) -> Self {
        self.seen = seen;
        self
    }

    /// Adds a device, if it is a backing device whose superblock can be trusted. Of copies with one UUID,
    /// the one that lacks data is the one that counts.
    pub fn add(&mut self, info: &DeviceInfo, superblock: &Superblock, registers: bool) {
        insert(
            &mut self.named,
            BackingDevice {
                path: info.path.clone(),
                size: info.size(),
                superblock: superblock.clone(),
                registers,
                is_mendable: !registers && kernel_verdict(superblock, &info.target()).accepts(),
            },
        );
    }

    /// The device with `uuid`.
    pub fn find(&mut self, uuid: Uuid) -> Option<&BackingDevice> {
        if self.named.contains_key(&uuid) {
            return self.named.get(&uuid);
        }
        self.search();
        self.machine.get(&uuid)
    }

    /// The sets that named devices lack data of.
    pub(crate) fn lacking(&self) -> Vec<Uuid> {
        let superblocks = self.named.values().map(|device| &device.superblock);
        let lacking = superblocks.filter(|sb| sb.state().lacks_data() && !sb.set_uuid().is_nil());
        lacking.map(Superblock::set_uuid).collect()
    }

    fn search(&mut self) {
        if let Some(search) = self.search.take() {
            for device in search() {
                insert(&mut self.machine, device);
            }
        }
    }

    /// The UUID of the set with this magic, as its backing devices have it: the magic is the first half, and
    /// that is random enough to prove it.
    pub(super) fn set_uuid(&mut self, magic: SetMagic) -> Option<Uuid> {
        let of = |devices: &HashMap<Uuid, BackingDevice>| {
            let set_uuids = devices.values().map(|device| device.superblock.set_uuid());
            let mut of_set = set_uuids.filter(|it| SetMagic::from_set_uuid(it) == magic);
            let first = of_set.next()?;
            of_set.all(|it| it == first).then_some(first)
        };
        of(&self.named).or_else(|| {
            self.search();
            of(&self.machine)
        })
    }
}

/// Adds a device whose superblock can be trusted. Of copies with one UUID, the one that lacks data counts.
fn insert(devices: &mut HashMap<Uuid, BackingDevice>, device: BackingDevice) {
    let sb = &device.superblock;
    if !sb.magic_ok() || !sb.csum_ok() || sb.kind() != Some(Kind::Backing) {
        return;
    }
    let known = devices.get(&sb.uuid());
    if known.is_none_or(|known| known.superblock.state() == BackingState::Clean) {
        devices.insert(sb.uuid(), device);
    }
}

/// How a backing device stands towards a cache set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It names the set, and the set has a slot for it.
    Attached,
    /// Its superblock says that it is attached to nothing, and the set still has a slot for it: the
    /// kernel detaches a device so when its cache fails. What the cache holds of it is older than
    /// whatever was written to the device since.
    Released,
    /// The set has a slot for it, and its superblock names another set.
    Moved {
        /// The set that it names.
        set_uuid: Uuid,
    },
    /// It names the set, and the set has no slot for it: the set was made anew, or the device was
    /// never registered with it.
    Unknown,
    /// It has nothing to do with the set: it is attached to nothing, or names another set.
    Unrelated,
}

impl Standing {
    /// Of a device with `superblock` towards the set `set_uuid`, which has a slot for it or has not.
    pub fn of(superblock: &Superblock, set_uuid: Uuid, has_slot: bool) -> Self {
        let (state, names) = (superblock.state(), superblock.set_uuid());
        match (has_slot, state) {
            (true, BackingState::None) => Self::Released,
            (true, _) if names == set_uuid => Self::Attached,
            (true, _) => Self::Moved { set_uuid: names },
            // A device that was made for a set and never registered names it, with state none.
            (false, _) if names == set_uuid => Self::Unknown,
            (false, _) => Self::Unrelated,
        }
    }
}
