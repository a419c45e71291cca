//! The table of volumes: backing devices and flash-only volumes (docs/on-disk-format.md §4).

use uuid::Uuid;

use crate::cache_set::CacheDevice;
use crate::device::{AlignedBuf, DeviceError};
use crate::layout::bkey::Bkey;
use crate::layout::uuid_entry::{self, UuidEntry};
use crate::units::BucketIndex;

/// What is wrong with the uuid table.
#[derive(Debug, thiserror::Error)]
pub enum UuidProblem {
    /// The journal's key for it cannot be one: the kernel says "bad uuid pointer".
    #[error("bad uuid pointer: {key:?}")]
    BadPointer {
        /// The key.
        key: Bkey,
    },
    /// It could not be read.
    #[error("the uuid table in bucket {bucket} cannot be read")]
    Unreadable {
        /// The bucket.
        bucket: BucketIndex,
        /// The device's error.
        source: DeviceError,
    },
    /// Its contents are none of a table: most slots in use hold what no kernel writes.
    #[error("bucket {bucket} holds no uuid table: {implausible} of {used} slots cannot be one")]
    NotATable {
        /// The bucket.
        bucket: BucketIndex,
        /// Slots that no kernel wrote.
        implausible: usize,
        /// Slots that are not empty.
        used: usize,
    },
    /// One slot holds what no kernel writes.
    #[error("slot {slot} holds what no kernel writes there")]
    ImplausibleSlot {
        /// The slot.
        slot: u32,
    },
    /// A flash-only volume without sectors: at each registration the kernel starts the flash-only
    /// volumes in the order of their slots, and stops at this one.
    #[error("slot {slot} is a flash-only volume of 0 sectors")]
    EmptyFlashVolume {
        /// The slot.
        slot: u32,
    },
    /// Two slots name the same device.
    #[error("slots {first} and {second} both have uuid {uuid}")]
    Repeated {
        /// The first slot.
        first: u32,
        /// The other.
        second: u32,
        /// Their uuid.
        uuid: Uuid,
    },
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UuidTable {
    /// All slots; the number of a slot is the inode of its volume's keys.
    pub slots: Vec<UuidEntry>,
    /// The bucket it is in; `None` where it could not be read.
    pub bucket: Option<BucketIndex>,
    /// Whether what was read is a table; where it is not, `slots` is empty.
    pub is_table: bool,
}

impl UuidTable {
    /// Reads the table that `key` points to, laid out as entries of version `jset_version` say.
    pub fn read(
        cache: &CacheDevice<'_>,
        key: &Bkey,
        jset_version: u32,
        problem: &mut dyn FnMut(UuidProblem),
    ) -> Self {
        let geometry = cache.geometry();
        let valid = key.is_valid_btree_ptr(geometry);
        let Some(ptr) = key.ptrs().first().filter(|ptr| valid && ptr.available()) else {
            problem(UuidProblem::BadPointer { key: *key });
            return Self::default();
        };
        let bucket = ptr.bucket(geometry);
        let mut bytes =
            AlignedBuf::zeroed(usize::try_from(geometry.meta_bucket_bytes()).unwrap_or(0));
        // The kernel reads KEY_SIZE sectors; the rest of its table stays zero.
        let len = usize::try_from(key.size().bytes()).unwrap_or(usize::MAX).min(bytes.len());
        let Some(part) = bytes.get_mut(..len) else { return Self::default() };
        if let Err(source) = cache.device().read_at(ptr.offset().bytes(), part) {
            problem(UuidProblem::Unreadable { bucket, source });
            return Self::default();
        }
        let slots = uuid_entry::parse_table(&bytes, jset_version);
        let used = slots.iter().filter(|entry| !entry.is_empty()).count();
        let implausible = slots.iter().filter(|entry| !entry.is_plausible()).count();
        if implausible > used / 2 {
            problem(UuidProblem::NotATable { bucket, implausible, used });
            return Self { slots: Vec::new(), bucket: Some(bucket), is_table: false };
        }
        let table = Self { slots, bucket: Some(bucket), is_table: true };
        table.report_slots(problem);
        table.report_repeated(problem);
        table
    }

    fn report_slots(&self, problem: &mut dyn FnMut(UuidProblem)) {
        for (slot, entry) in self.used() {
            if !entry.is_plausible() {
                problem(UuidProblem::ImplausibleSlot { slot });
            } else if entry.flash_only() && entry.sectors.0 == 0 && !entry.is_detached() {
                problem(UuidProblem::EmptyFlashVolume { slot });
            }
        }
    }

    fn report_repeated(&self, problem: &mut dyn FnMut(UuidProblem)) {
        let mut seen = std::collections::HashMap::new();
        for (slot, entry) in self.used() {
            if let Some(first) = seen.insert(entry.uuid, slot).filter(|_| !entry.is_detached()) {
                problem(UuidProblem::Repeated { first, second: slot, uuid: entry.uuid });
            }
        }
    }

    /// The slot of a volume.
    pub fn get(&self, slot: u32) -> Option<&UuidEntry> {
        self.slots.get(usize::try_from(slot).ok()?)
    }

    /// Slots that are or were in use, detached ones included.
    pub fn used(&self) -> impl Iterator<Item = (u32, &UuidEntry)> {
        (0u32..).zip(&self.slots).filter(|(_, entry)| !entry.is_empty())
    }

    /// The slot of the attached device or flash-only volume with `uuid`.
    pub fn find(&self, uuid: Uuid) -> Option<(u32, &UuidEntry)> {
        self.used().find(|(_, entry)| entry.uuid == uuid && !entry.is_detached())
    }

    /// Whether the kernel comes to `slot`, by the UUID of its backing device or as a flash-only volume: it
    /// passes over slots that are empty or marked as detached, and of two with one UUID uses the first.
    pub fn is_reached(&self, slot: u32) -> bool {
        self.get(slot).is_some_and(|entry| {
            !entry.is_empty() && self.find(entry.uuid).is_some_and(|(first, _)| first == slot)
        })
    }
}
