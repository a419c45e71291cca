//! Whose a volume is, where nothing on the devices tells and a person knows.
//!
//! With a wrong claim, the kernel would write one volume's data to the device of another. So a claim is
//! refused where the devices contradict it, and what is made by it is a guess.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::cache_set::{CacheSet, expect_superblock};
use crate::device::{DeviceError, ReadDevice};
use crate::layout::uuid_entry::UuidEntry;
use crate::ops::keyed::Keyed;
use crate::ops::repair::owner::Owner;
use crate::ops::repair::slots::Table;
use crate::ops::repair::superblock;
use crate::ops::repair::witness::Witness;
use crate::units::Sectors;

/// What a person says of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is that of a backing device, which is one of those that are named.
    Owner {
        /// Its slot in the uuid table.
        slot: u32,
        /// The UUID in the superblock of the device.
        uuid: Uuid,
    },
    /// It is that of a backing device that was named, whose superblock may be gone.
    Device {
        /// Its slot in the uuid table.
        slot: u32,
        /// The device, counted in the order given.
        backing: usize,
        /// Where its data starts, if its superblock is gone and that is not at sector 16.
        data_offset: Option<Sectors>,
    },
    /// It is flash-only.
    FlashOnly {
        /// Its slot in the uuid table.
        slot: u32,
        /// Its size.
        size: Sectors,
        /// A new UUID for it: nothing but the table had the old one.
        uuid: Uuid,
    },
}

/// Why a claim is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The table has no such slot.
    #[error("there is no volume {slot}: the uuid table has {slots} slots")]
    NoSuchSlot {
        /// The slot.
        slot: u32,
        /// Slots of the table.
        slots: u64,
    },
    /// No device with this UUID was named that is attached to the set.
    #[error(
        "volume {slot} cannot be that of {uuid}: no backing device that was named has this UUID and is \
         attached to this set"
    )]
    NotOfSet {
        /// The slot.
        slot: u32,
        /// The device.
        uuid: Uuid,
    },
    /// Neither the device nor the uuid table has its UUID.
    #[error(
        "volume {slot} cannot be made that of a device whose superblock is gone: its UUID is lost with the \
         uuid table"
    )]
    NoUuid {
        /// The slot.
        slot: u32,
    },
    /// The volume is another device's.
    #[error("volume {slot} is that of {uuid}, which is known by {witness}")]
    Known {
        /// The slot.
        slot: u32,
        /// The device.
        uuid: Uuid,
        /// What says so.
        witness: Witness,
    },
    /// The device has another volume.
    #[error("volume {slot} cannot be that of {uuid}, which has volume {other}")]
    Elsewhere {
        /// The slot.
        slot: u32,
        /// The device.
        uuid: Uuid,
        /// The volume of the device.
        other: u32,
    },
    /// The device does not have all places that the volume has data for.
    #[error(
        "volume {slot} cannot be that of {uuid}: it has data in sectors {start} to {end}, and the device \
         does not have them all"
    )]
    DoesNotFit {
        /// The slot.
        slot: u32,
        /// The device.
        uuid: Uuid,
        /// First sector.
        start: u64,
        /// End of the last one.
        end: u64,
    },
    /// Clean data of the volume is not on the device.
    #[error(
        "volume {slot} cannot be that of {uuid}: the device has other data where the cache has clean data"
    )]
    OtherData {
        /// The slot.
        slot: u32,
        /// The device.
        uuid: Uuid,
    },
    /// A flash-only volume cannot be as small.
    #[error("volume {slot} has data up to sector {end}, and is said to have {} sectors", size.0)]
    TooSmall {
        /// The slot.
        slot: u32,
        /// End of its data.
        end: u64,
        /// The size that was named.
        size: Sectors,
    },
}

impl Claim {
    const fn slot(&self) -> u32 {
        match self {
            Self::Owner { slot, .. } | Self::Device { slot, .. } | Self::FlashOnly { slot, .. } => {
                *slot
            }
        }
    }
}

/// Claims of devices that still have their superblocks, or whose superblocks tell what they were, by UUID.
pub(super) fn with_uuids(
    claims: Vec<Claim>,
    backing: &[&dyn ReadDevice],
) -> Result<Vec<Claim>, DeviceError> {
    let resolve = |claim| {
        let Claim::Device { slot, backing: index, .. } = claim else { return Ok(claim) };
        let Some(device) = backing.get(index) else { return Ok(claim) };
        let found = expect_superblock(*device)?;
        let sb = superblock::mended(&found).map_or(found, |(_, mended)| mended);
        Ok(if sb.magic_ok() { Claim::Owner { slot, uuid: sb.uuid() } } else { claim })
    };
    claims.into_iter().map(resolve).collect()
}

/// Fills slots that nothing else tells of.
pub(super) fn put(
    set: &CacheSet<'_>,
    owners: &[Owner<'_>],
    keyed: &BTreeMap<u32, Keyed>,
    claims: &[Claim],
    table: &mut Table,
) -> Result<(), ClaimError> {
    for claim in claims {
        let slot = claim.slot();
        if u64::from(slot) >= set.geometry().nr_uuids() {
            return Err(ClaimError::NoSuchSlot { slot, slots: set.geometry().nr_uuids() });
        }
        let keys = keyed.get(&slot).cloned().unwrap_or_default();
        let known = table.known(slot);
        let entry = match *claim {
            Claim::Owner { uuid, .. } => {
                let owner = owners.iter().find(|owner| owner.uuid() == uuid);
                let owner = owner.ok_or(ClaimError::NotOfSet { slot, uuid })?;
                match known {
                    Some((entry, _)) if entry.uuid == uuid => continue,
                    Some((entry, witness)) => {
                        return Err(ClaimError::Known { slot, uuid: entry.uuid, witness });
                    }
                    None => {}
                }
                if let Some(other) = table.slot_of(uuid) {
                    return Err(ClaimError::Elsewhere { slot, uuid, other });
                }
                if keyed.contains_key(&slot) && !owner.fits(&keys) {
                    let (start, end) = keys.span();
                    return Err(ClaimError::DoesNotFit { slot, uuid, start, end });
                }
                if owner.agrees(set, &keys) == Some(false) {
                    return Err(ClaimError::OtherData { slot, uuid });
                }
                owner.entry()
            }
            Claim::Device { .. } => return Err(ClaimError::NoUuid { slot }),
            Claim::FlashOnly { size, uuid, .. } => {
                match known {
                    Some((entry, _)) if entry.flash_only() && entry.sectors == size => continue,
                    Some((entry, witness)) => {
                        return Err(ClaimError::Known { slot, uuid: entry.uuid, witness });
                    }
                    None => {}
                }
                let (_, end) = keys.span();
                if end > size.0 || size.0 == 0 {
                    return Err(ClaimError::TooSmall { slot, end, size });
                }
                UuidEntry::new_flash_only(uuid, size, set.cache.superblock().last_mount())
            }
        };
        table.put(slot, entry, Witness::Named);
    }
    Ok(())
}

/// Refuses claims that a sound table contradicts.
pub(super) fn check(set: &CacheSet<'_>, claims: &[Claim]) -> Result<(), ClaimError> {
    for claim in claims {
        let slot = claim.slot();
        let Some(entry) = set.uuids.get(slot) else {
            return Err(ClaimError::NoSuchSlot { slot, slots: set.geometry().nr_uuids() });
        };
        let agrees = match claim {
            Claim::Owner { uuid, .. } => entry.uuid == *uuid,
            // Judged when its superblock is made again.
            Claim::Device { .. } => true,
            Claim::FlashOnly { size, .. } => entry.flash_only() && entry.sectors == *size,
        };
        if !agrees {
            return Err(ClaimError::Known { slot, uuid: entry.uuid, witness: Witness::Slot });
        }
    }
    Ok(())
}
