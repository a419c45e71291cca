//! The extents that are kept: those that sound nodes and the journal tell, and those of lost stretches.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::cache_set::{CacheSet, Found, KeySource, KeyState, WalkOptions};
use crate::layout::bkey::Bkey;
use crate::layout::uuid_entry::UuidEntry;
use crate::ops::rebuild::{Extents, ExtentsError};
use crate::ops::repair::Class;
use crate::ops::repair::missed::is_within;
use crate::ops::repair::reason::Share;
use crate::ops::repair::region::{Lost, Region, outside};

/// What of the extents that sound nodes and entries tell is in doubt.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    /// All but what newer entries than this one tell.
    pub(super) up_to: Option<u64>,
    /// Gens are lost.
    pub(super) gens: bool,
    /// Volumes whose clean extents may be of a past of the device.
    pub(super) dirty_only: BTreeSet<u32>,
}

impl Rule {
    fn is_doubtful(&self, set: &CacheSet<'_>, key: &Bkey, origin: Option<KeySource>) -> bool {
        let old = self.up_to.is_some_and(|last| match origin {
            Some(KeySource::Journal { seq }) => seq <= last,
            _ => true,
        });
        old || (self.gens && !set.prios.knows_all(key, set.geometry()))
    }
}

/// Whether the cache alone has the data of a key.
pub(super) fn matters(set: &CacheSet<'_>, key: &Bkey) -> bool {
    key.dirty() || set.uuids.get(key.inode()).is_some_and(UuidEntry::flash_only)
}

/// The extents of the new btree.
pub(super) struct Salvaged<'s, 'd> {
    pub(super) set: &'s CacheSet<'d>,
    pub(super) regions: &'s [Region],
    pub(super) rule: &'s Rule,
    pub(super) walk: WalkOptions,
}

/// An extent, and whether it is kept for certain, in doubt, or left out.
struct Told<'k> {
    key: &'k Bkey,
    doubtful: bool,
    kept: bool,
}

impl Salvaged<'_, '_> {
    /// Tells all extents that are valid, also those that are left out.
    fn tell(&self, found: &mut dyn FnMut(Told<'_>) -> ControlFlow<()>) -> Result<(), ExtentsError> {
        let slots = self.set.uuids.slots.len() as u64;
        let mut regions = self.regions.iter().peekable();
        let mut failed = None;
        let mut done = false;
        let lost: Vec<Lost> = self.regions.iter().map(|region| region.lost).collect();
        self.set.for_each_extent(&self.walk, &mut |it| match it {
            Found::Extent { key, state: KeyState::Valid, origin }
                if u64::from(key.inode()) < slots =>
            {
                for piece in outside(key, &lost) {
                    while let Some(region) = regions.next_if(|it| it.lost.to <= piece.start_pos()) {
                        if self.tell_region(region, found).is_break() {
                            done = true;
                            return ControlFlow::Break(());
                        }
                    }
                    let doubtful = self.rule.is_doubtful(self.set, &piece, Some(origin));
                    let in_doubt = doubtful || self.rule.dirty_only.contains(&piece.inode());
                    let displaced = self.set.is_displaced(&piece);
                    let kept = !displaced && (!in_doubt || matters(self.set, &piece));
                    if found(Told { key: &piece, doubtful, kept }).is_break() {
                        done = true;
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            }
            Found::Extent { .. } | Found::Missing(_) => ControlFlow::Continue(()),
            Found::OutOfOrder { key, .. } if is_within(key, &lost) => ControlFlow::Continue(()),
            Found::OutOfOrder { key, end } => {
                failed = Some(ExtentsError::OutOfOrder { key: *key, end });
                ControlFlow::Break(())
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        for region in regions {
            if done || self.tell_region(region, found).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn tell_region(
        &self,
        region: &Region,
        found: &mut dyn FnMut(Told<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let slots = self.set.uuids.slots.len() as u64;
        for key in region.kept.iter().filter(|key| u64::from(key.inode()) < slots) {
            let doubtful =
                region.class > Class::Certain || self.rule.is_doubtful(self.set, key, None);
            let displaced = self.set.is_displaced(key);
            found(Told { key, doubtful, kept: !displaced })?;
        }
        ControlFlow::Continue(())
    }

    pub(super) fn shares(&self) -> Result<BTreeMap<u32, Share>, ExtentsError> {
        let mut volumes: BTreeMap<u32, Share> = BTreeMap::new();
        self.tell(&mut |told| {
            let size = told.key.size().0;
            let only_here = matters(self.set, told.key);
            if told.kept && !only_here {
                return ControlFlow::Continue(());
            }
            let share = volumes.entry(told.key.inode()).or_default();
            if told.kept {
                share.dirty_sectors = share.dirty_sectors.saturating_add(size);
                if told.doubtful {
                    share.doubtful_sectors = share.doubtful_sectors.saturating_add(size);
                }
            } else if only_here {
                share.lost_sectors = share.lost_sectors.saturating_add(size);
            } else {
                share.left_out_sectors = share.left_out_sectors.saturating_add(size);
            }
            ControlFlow::Continue(())
        })?;
        for (slot, sectors) in &self.set.stale_dirty {
            let share = volumes.entry(*slot).or_default();
            share.lost_sectors = share.lost_sectors.saturating_add(sectors.0);
        }
        for lost in self.regions.iter().filter(|it| it.class > Class::Certain).map(|it| it.lost) {
            for (slot, _) in self.set.uuids.used() {
                if !(lost.from.inode..=lost.to.inode).contains(&slot) {
                    continue;
                }
                let from = if slot == lost.from.inode { lost.from.offset } else { 0 };
                let to = if slot == lost.to.inode { lost.to.offset } else { u64::MAX };
                let share = volumes.entry(slot).or_default();
                let (first, last) = share.unknown.unwrap_or((from, to));
                share.unknown = Some((first.min(from), last.max(to)));
            }
        }
        for (slot, share) in &mut volumes {
            let entry = self.set.uuids.get(*slot);
            share.uuid = entry.map(|entry| entry.uuid).unwrap_or_default();
            share.flash_only = entry.is_some_and(UuidEntry::flash_only);
        }
        Ok(volumes)
    }
}

impl Extents for Salvaged<'_, '_> {
    fn for_each(
        &self,
        found: &mut dyn FnMut(&Bkey) -> ControlFlow<()>,
    ) -> Result<(), ExtentsError> {
        self.tell(&mut |told| {
            if !told.kept {
                ControlFlow::Continue(())
            } else if matters(self.set, told.key) && !told.key.dirty() {
                // Of a flash-only volume: there is nothing below it.
                found(&told.key.with_dirty(true))
            } else {
                found(told.key)
            }
        })
    }
}
