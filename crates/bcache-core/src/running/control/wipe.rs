//! Wiping the superblock of a cache whose set was unregistered.

use crate::cache_set::{
    CacheDevice, CacheSet, OpenError, Problem, ReadError, ReadOptions, Visitor,
};
use crate::device::{AlignedBuf, BlockDevice, DeviceError};
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};
use crate::layout::uuid_entry::UuidEntry;
use crate::units::Sectors;

/// Why a cache is not wiped.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// It cannot be read as a cache set.
    #[error("it cannot be read: {0}")]
    Read(#[from] ReadError),
    /// It is none.
    #[error("it is no cache set: {0}")]
    Open(#[from] OpenError),
    /// There is dirty data.
    #[error("it holds {dirty} of dirty data that exists nowhere else")]
    Dirty {
        /// How much.
        dirty: Sectors,
    },
    /// There is a flash-only volume.
    #[error("it holds {volumes} flash-only volume(s), whose data exists nowhere else")]
    FlashOnly {
        /// How many.
        volumes: usize,
    },
    /// Damage, under which dirty data could be.
    #[error("it is damaged, so that dirty data on it could not be seen")]
    Damaged,
    /// Writing failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

struct Damage(bool);

impl Visitor for Damage {
    fn wants_keys(&self) -> bool {
        false
    }

    fn problem(&mut self, problem: Problem) {
        self.0 |= problem.hides_keys();
    }
}

/// Dirty sectors of volumes that are not detached.
///
/// The kernel detaches when all is written back, but the keys that say so go to the btree and not to
/// the journal. Where a replay begins before they were written, it finds the dirty ones again, in a
/// slot that belongs to nobody any more.
fn still_owned(set: &CacheSet<'_>) -> Sectors {
    let is_detached = |slot: u32| set.uuids.get(slot).is_some_and(UuidEntry::is_detached);
    set.volumes
        .iter()
        .filter(|(slot, _)| !is_detached(**slot))
        .fold(Sectors(0), |sum, (_, volume)| sum + volume.dirty_sectors)
}

fn is_flash_only(entry: &UuidEntry) -> bool {
    entry.flash_only() && !entry.is_detached()
}

/// Zeroes the superblock of the claimed cache device, after all of it was read and nothing was found
/// that exists nowhere else. A power cut leaves the old superblock or none, for it is one block.
///
/// # Errors
/// When something would be lost, or that cannot be told.
pub fn wipe(device: &dyn BlockDevice) -> Result<(), WipeError> {
    let mut damage = Damage(false);
    match CacheSet::read(CacheDevice::open(&device)?, &ReadOptions::default(), &mut damage) {
        Ok(set) => {
            let dirty = still_owned(&set);
            if dirty > Sectors(0) {
                return Err(WipeError::Dirty { dirty });
            }
            let volumes = set.uuids.used().filter(|(_, entry)| is_flash_only(entry)).count();
            if volumes > 0 {
                return Err(WipeError::FlashOnly { volumes });
            }
            if damage.0 {
                return Err(WipeError::Damaged);
            }
        }
        // Nothing on it counts: the kernel would start it afresh.
        Err(ReadError::Unsynced) => {}
        Err(error) => return Err(error.into()),
    }
    device.write_at(SB_OFFSET_BYTES, &AlignedBuf::zeroed(SB_BYTES))?;
    device.flush()?;
    Ok(())
}
