//! Whose data is in the buckets: a walk over what is cached, once all gens are known.
//!
//! What counts is what the kernel would use after replay: usable extents, the journal's over the
//! btree's. Memory: a byte a bucket, or four where many volumes are cached; four more where buckets are
//! of 4 MiB and more.

use std::collections::{BTreeMap, TryReserveError};
use std::ops::ControlFlow;

use crate::cache_set::btree::node::node_ptr;
use crate::cache_set::btree::{ReadNode, WalkHandler, WalkOptions, walk};
use crate::cache_set::{CacheSet, VolumeUsage, WARM_KEYS};
use crate::device::advise_huge_pages;
use crate::inspect::label_text;
use crate::layout::bkey::Bkey;
use crate::layout::uuid_entry::UuidEntry;
use crate::ops::invalidate::InvalidateError;
use crate::ops::invalidate::bits::BucketBits;
use crate::ops::invalidate::refusal::DirtyShare;
use crate::units::{BucketIndex, GC_SECTORS_USED_MAX, Sectors};

/// Refused buckets whose dirty data is told volume by volume; there can be millions.
pub(crate) const DIRTY_DETAILS_MAX: usize = 1 << 16;

/// By bucket: which volumes have data in it. The last bit of a mask is for all volumes that have none of
/// their own.
#[derive(Clone, Debug)]
enum Masks {
    Narrow(Vec<u8>),
    Wide(Vec<u32>),
}

impl Masks {
    const NARROW_VOLUMES: usize = 7;
    const WIDE_VOLUMES: usize = 31;

    fn new(nbuckets: u64, volumes: usize) -> Result<Self, TryReserveError> {
        if volumes <= Self::NARROW_VOLUMES {
            zeroed(nbuckets).map(Self::Narrow)
        } else {
            zeroed(nbuckets).map(Self::Wide)
        }
    }

    /// Volumes that have a bit of their own; the number of the last bit.
    const fn volumes(&self) -> usize {
        match self {
            Self::Narrow(_) => Self::NARROW_VOLUMES,
            Self::Wide(_) => Self::WIDE_VOLUMES,
        }
    }

    fn set(&mut self, index: usize, bit: usize) {
        match self {
            Self::Narrow(masks) => masks.get_mut(index).map_or((), |mask| *mask |= 1 << bit),
            Self::Wide(masks) => masks.get_mut(index).map_or((), |mask| *mask |= 1 << bit),
        }
    }

    fn get(&self, index: usize) -> u32 {
        match self {
            Self::Narrow(masks) => masks.get(index).copied().map_or(0, u32::from),
            Self::Wide(masks) => masks.get(index).copied().unwrap_or(0),
        }
    }
}

/// Whose data is in the buckets.
#[derive(Clone, Debug)]
pub(super) struct Owners {
    /// The slots that the bits of the masks stand for.
    slots: Vec<u32>,
    masks: Masks,
}

/// How much data is in the buckets.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// By bucket, where the kernel's own count of sectors ends too early.
    sectors: Option<Vec<u32>>,
    /// By slot: what is cached.
    pub cached: BTreeMap<u32, VolumeUsage>,
    /// By slot: what of it is in buckets to be invalidated, all of it clean.
    pub taken: BTreeMap<u32, VolumeUsage>,
    /// Dirty sectors in refused buckets, by bucket and slot.
    dirty: BTreeMap<(BucketIndex, u32), u64>,
}

impl Owners {
    fn new(set: &CacheSet<'_>) -> Result<Self, TryReserveError> {
        let masks = Masks::new(set.geometry().nbuckets(), set.volumes.len())?;
        Ok(Self { slots: set.volumes.keys().copied().take(masks.volumes()).collect(), masks })
    }

    fn add(&mut self, bucket: usize, slot: u32) {
        let bit = self.slots.binary_search(&slot).unwrap_or(self.masks.volumes());
        self.masks.set(bucket, bit);
    }

    /// The slots of the volumes that have data in `bucket`; the flag says that there are more.
    pub(super) fn of(&self, bucket: BucketIndex) -> (Vec<u32>, bool) {
        let mask = usize::try_from(bucket.0).map_or(0, |index| self.masks.get(index));
        let slots = self
            .slots
            .iter()
            .enumerate()
            .filter(|(bit, _)| mask >> bit & 1 == 1)
            .map(|(_, slot)| *slot)
            .collect();
        (slots, mask >> self.masks.volumes() & 1 == 1)
    }
}

/// Looks at all that `set` has cached.
pub(super) fn survey(
    set: &CacheSet<'_>,
    walk: &WalkOptions,
    targets: &BucketBits,
    refused: &BucketBits,
) -> Result<(Survey, Owners), InvalidateError> {
    let geometry = *set.geometry();
    let large = geometry.bucket_size().0 > u64::from(GC_SECTORS_USED_MAX);
    let sectors = if large { Some(zeroed(geometry.nbuckets())?) } else { None };
    let mut survey = Survey { sectors, ..Survey::default() };
    let mut owners = Owners::new(set)?;
    for_each_extent(set, walk, &mut |key| {
        let size = key.size();
        add(survey.cached.entry(key.inode()).or_default(), key);
        let mut is_taken = false;
        for ptr in key.ptrs() {
            let bucket = ptr.bucket(&geometry);
            let index = usize::try_from(bucket.0).unwrap_or(usize::MAX);
            owners.add(index, key.inode());
            if let Some(sum) = survey.sectors.as_mut().and_then(|all| all.get_mut(index)) {
                *sum = sum.saturating_add(u32::try_from(size.0).unwrap_or(u32::MAX));
            }
            is_taken |= targets.contains(bucket);
            if key.dirty() && refused.contains(bucket) {
                let place = (bucket, key.inode());
                let room = survey.dirty.len() < DIRTY_DETAILS_MAX;
                if room || survey.dirty.contains_key(&place) {
                    *survey.dirty.entry(place).or_default() += size.0;
                }
            }
        }
        if is_taken {
            add(survey.taken.entry(key.inode()).or_default(), key);
        }
    })?;
    Ok((survey, owners))
}

impl Survey {
    /// Sectors in use in `bucket`, where the kernel's count of them is capped.
    pub(super) fn sectors_of(&self, bucket: BucketIndex) -> Option<u64> {
        let index = usize::try_from(bucket.0).ok()?;
        self.sectors.as_ref()?.get(index).map(|&sectors| u64::from(sectors))
    }

    /// The dirty data in a refused bucket, by volume.
    pub(super) fn shares_of(&self, set: &CacheSet<'_>, bucket: BucketIndex) -> Vec<DirtyShare> {
        self.dirty
            .range((bucket, 0)..=(bucket, u32::MAX))
            .map(|(&(_, slot), &sectors)| DirtyShare {
                slot,
                name: volume_name(set, slot),
                flash_only: set.uuids.get(slot).is_some_and(UuidEntry::flash_only),
                sectors,
            })
            .collect()
    }
}

fn add(usage: &mut VolumeUsage, key: &Bkey) {
    usage.extents += 1;
    usage.cached_sectors += key.size();
    if key.dirty() {
        usage.dirty_sectors += key.size();
    }
}

fn zeroed<T: Copy + Default>(nbuckets: u64) -> Result<Vec<T>, TryReserveError> {
    let count = usize::try_from(nbuckets).unwrap_or(usize::MAX);
    let mut words = Vec::new();
    words.try_reserve_exact(count)?;
    advise_huge_pages(&mut words);
    words.resize(count, T::default());
    Ok(words)
}

/// How to call the volume in `slot`: its label, or else its uuid.
pub(super) fn volume_name(set: &CacheSet<'_>, slot: u32) -> String {
    match set.uuids.get(slot) {
        Some(entry) if entry.is_detached() => "detached".to_owned(),
        Some(entry) if entry.is_empty() => "unknown".to_owned(),
        Some(entry) => {
            let label = label_text(&entry.label);
            if label.is_empty() { entry.uuid.to_string() } else { label }
        }
        None => "unknown".to_owned(),
    }
}

/// The buckets that hold clean data of the volume in `slot`, in its sectors `[start, end)`, and how
/// many sectors of dirty data there are.
pub(super) fn buckets_of(
    set: &CacheSet<'_>,
    walk: &WalkOptions,
    slot: u32,
    range: (u64, u64),
) -> Result<(BucketBits, Sectors), InvalidateError> {
    let geometry = *set.geometry();
    let mut buckets = BucketBits::new(geometry.nbuckets())?;
    let mut dirty = Sectors(0);
    for_each_extent(set, walk, &mut |key| {
        let (start, end) = (key.start().max(range.0), key.offset().min(range.1));
        if key.inode() != slot || start >= end {
            return;
        }
        if key.dirty() {
            dirty += Sectors(end - start);
        } else {
            key.ptrs().iter().for_each(|ptr| buckets.insert(ptr.bucket(&geometry)));
        }
    })?;
    Ok((buckets, dirty))
}

/// Tells every usable extent of the set, in pieces, as it is once the journal is replayed.
fn for_each_extent(
    set: &CacheSet<'_>,
    options: &WalkOptions,
    found: &mut dyn FnMut(&Bkey),
) -> Result<(), InvalidateError> {
    let mut extents = Extents { set, found, error: None };
    walk(&set.cache, &set.root, set.btree.depth, options, &mut extents);
    let Extents { found, error, .. } = extents;
    if let Some(error) = error {
        return Err(error);
    }
    let usable = |key: &&Bkey| set.table.is_usable(key, set.geometry());
    set.overlay.extents().iter().filter(usable).for_each(found);
    Ok(())
}

struct Extents<'a, 'd, 'f> {
    set: &'a CacheSet<'d>,
    found: &'f mut dyn FnMut(&Bkey),
    error: Option<InvalidateError>,
}

impl Extents<'_, '_, '_> {
    fn leaf_key(&mut self, key: &Bkey) {
        if self.set.table.is_usable(key, self.set.geometry()) {
            self.set.overlay.visible(key, &mut |piece| (self.found)(piece));
        }
    }
}

impl WalkHandler for Extents<'_, '_, '_> {
    fn node(&mut self, key: &Bkey, level: u16, node: ReadNode<'_>) -> ControlFlow<()> {
        let node = match node {
            Ok(node) => node,
            Err(error) => {
                self.error = Some(error.into());
                return ControlFlow::Break(());
            }
        };
        if let Some(error) = node.error {
            let bucket = node_ptr(key).bucket(self.set.geometry());
            self.error = Some(InvalidateError::NodeChanged { bucket, error });
            return ControlFlow::Break(());
        }
        if level == 0 {
            let Some(keys) = node.keys.short() else {
                for key in node.keys.iter() {
                    self.leaf_key(&key);
                }
                return ControlFlow::Continue(());
            };
            for some in keys.chunks(WARM_KEYS) {
                let ptrs = some.iter().filter_map(|key| key.ptr());
                self.set.table.warm(ptrs, self.set.geometry());
                for key in some {
                    self.leaf_key(&key.bkey());
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn follow(&mut self, key: &Bkey, _child_level: u16) -> bool {
        !key.is_zero_key() && self.set.table.is_usable(key, self.set.geometry())
    }
}
