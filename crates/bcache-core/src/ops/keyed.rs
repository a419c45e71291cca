//! What the keys of a set say of its volumes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::cache_set::{CacheSet, Found, KeyState, WalkOptions};
use crate::layout::bkey::Bkey;

/// Clean extents of a volume that are compared with a device, at most.
const SAMPLES_MAX: usize = 128;

/// What the keys of `set` say of each volume, and those of `kept`.
pub(crate) fn keyed<'k>(
    set: &CacheSet<'_>,
    walk: WalkOptions,
    kept: impl Iterator<Item = &'k Bkey>,
) -> BTreeMap<u32, Keyed> {
    let mut volumes: BTreeMap<u32, Keyed> = BTreeMap::new();
    set.for_each_extent(&walk, &mut |found| {
        if let Found::Extent { key, state: KeyState::Valid, .. } = found {
            let known = set.prios.knows_all(key, set.geometry());
            volumes.entry(key.inode()).or_default().add(key, known);
        }
        ControlFlow::Continue(())
    });
    for key in kept {
        volumes.entry(key.inode()).or_default().add(key, false);
    }
    volumes
}

/// What the keys say of a volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keyed {
    pub(crate) dirty_sectors: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) samples: Vec<Bkey>,
    clean: usize,
    stride: usize,
}

impl Keyed {
    /// The first sector of its keys and the end of the last.
    pub(crate) const fn span(&self) -> (u64, u64) {
        (self.start, self.end)
    }

    pub(crate) fn add(&mut self, key: &Bkey, gens_known: bool) {
        self.start = if self.end == 0 { key.start() } else { self.start.min(key.start()) };
        self.end = self.end.max(key.offset());
        if key.dirty() {
            self.dirty_sectors = self.dirty_sectors.saturating_add(key.size().0);
            return;
        }
        if !gens_known {
            return;
        }
        // Spread over all of them, however many there are.
        self.stride = self.stride.max(1);
        if self.clean % self.stride == 0 {
            if self.samples.len() >= SAMPLES_MAX {
                let mut index = 0usize;
                self.samples.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride = self.stride.saturating_mul(2);
            }
            self.samples.push(*key);
        }
        self.clean += 1;
    }
}
