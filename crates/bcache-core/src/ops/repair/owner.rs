//! Backing devices of the set that were named, and what the keys say of a volume: whether the two fit.

use std::path::PathBuf;

use uuid::Uuid;

use crate::cache_set::CacheSet;
use crate::device::{AlignedBuf, ReadDevice};
use crate::layout::superblock::{BackingState, Kind, Superblock};
use crate::layout::uuid_entry::UuidEntry;
use crate::ops::keyed::Keyed;
use crate::ops::repair::{Code, superblock, verdict};
use crate::units::{SECTOR_BYTES, Sectors};

/// Sectors of an extent that are compared.
const SAMPLE_SECTORS: u64 = 8;

/// A backing device that was named, and says that it is attached to this set.
pub(super) struct Owner<'d> {
    device: &'d dyn ReadDevice,
    sb: Superblock,
}

impl<'d> Owner<'d> {
    /// `device`, if it is one: with its superblock as it is once it is mended.
    pub(super) fn of(
        device: &'d dyn ReadDevice,
        set_uuid: Uuid,
        found: &Superblock,
    ) -> Option<Self> {
        let sb = match superblock::mended(found) {
            None => found.clone(),
            // Nobody vouches for what it says.
            Some((Code::SuperblockChecksum, _)) => return None,
            Some((_, mended)) => mended,
        };
        let is_owner = sb.kind() == Some(Kind::Backing)
            && sb.set_uuid() == set_uuid
            && sb.state().runs_on()
            && verdict(device, &sb).accepts();
        is_owner.then_some(Self { device, sb })
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.sb.uuid()
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.device.info().path
    }

    /// Whether it says that it lacks nothing. A kernel would take it as new where the uuid table does not have
    /// it, in a slot that may have keys.
    pub(super) fn is_complete(&self) -> bool {
        self.sb.state() == BackingState::Clean
    }

    /// Whether all keys of a volume have their place on it.
    pub(super) fn fits(&self, keys: &Keyed) -> bool {
        keys.start >= self.sb.data_offset().0 && keys.end <= self.device.info().size().0
    }

    /// Whether the clean data of a volume is what the device holds: `None` where there is none, or only
    /// zeroes.
    pub(super) fn agrees(&self, set: &CacheSet<'_>, keys: &Keyed) -> Option<bool> {
        let mut agrees = None;
        for key in &keys.samples {
            let Some(ptr) = key.ptrs().first() else { continue };
            let len = key.size().0.min(SAMPLE_SECTORS).saturating_mul(SECTOR_BYTES);
            let Ok(len) = usize::try_from(len) else { continue };
            let (mut cached, mut below) = (AlignedBuf::zeroed(len), AlignedBuf::zeroed(len));
            if set.cache.device().read_at(ptr.offset().bytes(), &mut cached).is_err()
                || cached.iter().all(|byte| *byte == 0)
            {
                continue;
            }
            let start = Sectors(key.start()).bytes();
            match self.device.read_at(start, &mut below) {
                Ok(()) if *below == *cached => agrees = Some(true),
                Ok(()) => return Some(false),
                Err(_) if key.offset() > self.device.info().size().0 => return Some(false),
                Err(_) => {}
            }
        }
        agrees
    }

    /// Its slot, as the kernel fills it at the first registration.
    pub(super) fn entry(&self) -> UuidEntry {
        let seconds = self.sb.last_mount();
        UuidEntry {
            uuid: self.sb.uuid(),
            label: self.sb.label(),
            first_reg: seconds,
            last_reg: seconds,
            ..UuidEntry::unused()
        }
    }
}
