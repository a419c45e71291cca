//! The uuid table while it is made again.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::layout::uuid_entry::{self, UuidEntry};
use crate::ops::repair::witness::Witness;
use crate::units::Sectors;

/// Slots, and what says whose they are.
pub(super) struct Table {
    pub(super) slots: Vec<UuidEntry>,
    pub(super) known: BTreeMap<u32, Witness>,
}

impl Table {
    pub(super) fn get(&self, slot: u32) -> Option<&UuidEntry> {
        self.slots.get(usize::try_from(slot).ok()?)
    }

    /// What is known of a slot, and by what.
    pub(super) fn known(&self, slot: u32) -> Option<(&UuidEntry, Witness)> {
        self.get(slot).zip(self.known.get(&slot).copied())
    }

    /// The slot of a device.
    pub(super) fn slot_of(&self, uuid: Uuid) -> Option<u32> {
        (0u32..).zip(&self.slots).find(|(_, entry)| entry.uuid == uuid).map(|(slot, _)| slot)
    }

    /// Fills a slot that is empty, unless the device has another one.
    pub(super) fn put(&mut self, slot: u32, mut entry: UuidEntry, witness: Witness) {
        if self.known.contains_key(&slot) {
            return;
        }
        if !entry.is_detached() && self.has(entry.uuid) {
            // It was attached once more since, and got another slot.
            entry.uuid = uuid_entry::DETACHED_UUID;
            entry.flags = 0;
            entry.sectors = Sectors(0);
        }
        if let Some(place) = usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot)) {
            *place = entry;
            self.known.insert(slot, witness);
        }
    }

    pub(super) fn has(&self, uuid: Uuid) -> bool {
        self.slots.iter().any(|entry| entry.uuid == uuid)
    }

    pub(super) fn has_owner(&self, slot: u32) -> bool {
        self.get(slot).is_some_and(|entry| !entry.is_empty() && !entry.is_detached())
    }

    /// Whether a slot that is known already is the same in `older`.
    pub(super) fn confirms(&self, older: &[UuidEntry]) -> bool {
        self.known.keys().any(|&slot| {
            let then = usize::try_from(slot).ok().and_then(|slot| older.get(slot));
            self.get(slot).zip(then).is_some_and(|(now, then)| now.uuid == then.uuid)
        })
    }

    pub(super) fn take_names(&mut self, older: &[UuidEntry]) {
        for (entry, then) in self.slots.iter_mut().zip(older) {
            if entry.uuid == then.uuid && !entry.is_empty() && then.is_plausible() {
                (entry.first_reg, entry.last_reg) = (then.first_reg, then.last_reg);
            }
        }
    }
}
