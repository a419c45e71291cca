//! The uuid table made again: which volume is whose.
//!
//! The table has no checksum, and each write of it goes to another bucket, so that older ones are left
//! behind. A slot is never given to another device, not even after a detach. So what an older table says of a
//! slot with dirty data still holds.
//!
//! What says whose slot a volume is, the surest first:
//!
//! 1. the slot itself, where it is sound, or still holds the uuid of a device that was named;
//! 2. clean data, where it is the data of one named device at its place, and of no other;
//! 3. an older table, which is proven where an entry of this set's journal names it, or where one of the
//!    above agrees with it;
//! 4. a person, where none of these speaks against it: a guess;
//! 5. that one volume and one device are left: a guess.
//!
//! A volume with dirty data and without an owner is not given up: then there is no new table.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use uuid::Uuid;

use crate::cache_set::{CacheSet, Found, GcMark, KeyState, UuidTable, WalkOptions};
use crate::device::{AlignedBuf, ReadDevice};
use crate::layout::bkey::Bkey;
use crate::layout::superblock::{BackingState, Kind, Superblock};
use crate::layout::uuid_entry::{self, UuidEntry};
use crate::ops::repair::claims::{self, Claim};
use crate::ops::repair::reason::{NotAnew, Witness};
use crate::ops::repair::{past, superblock, verdict};
use crate::units::{BucketIndex, SECTOR_BYTES, Sectors, UUID_ENTRY_BYTES};

/// Clean extents of a volume that are compared with a device, at most.
const SAMPLES_MAX: usize = 128;

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
            Some((super::Code::SuperblockChecksum, _)) => return None,
            Some((_, mended)) => mended,
        };
        let attached = matches!(sb.state(), BackingState::Clean | BackingState::Dirty);
        let is_owner = sb.kind() == Some(Kind::Backing)
            && sb.set_uuid() == set_uuid
            && attached
            && verdict(device, &sb).accepts();
        is_owner.then_some(Self { device, sb })
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.sb.uuid()
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

/// What the keys say of a volume.
#[derive(Clone, Debug, Default)]
pub(super) struct Keyed {
    dirty_sectors: u64,
    start: u64,
    end: u64,
    samples: Vec<Bkey>,
    clean: usize,
    stride: usize,
}

impl Keyed {
    /// The first sector of its keys and the end of the last.
    pub(super) const fn span(&self) -> (u64, u64) {
        (self.start, self.end)
    }

    fn add(&mut self, key: &Bkey, gens_known: bool) {
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

/// What the keys of `set` say of each volume, and those of `kept`.
pub(super) fn keyed<'k>(
    set: &CacheSet<'_>,
    walk: WalkOptions,
    kept: impl Iterator<Item = &'k Bkey>,
) -> BTreeMap<u32, Keyed> {
    let mut volumes: BTreeMap<u32, Keyed> = BTreeMap::new();
    let geometry = set.geometry();
    set.for_each_extent(&walk, &mut |found| {
        if let Found::Extent { key, state: KeyState::Valid, .. } = found {
            let known =
                key.ptrs().iter().all(|ptr| set.prios.knows(ptr.bucket(geometry), geometry));
            volumes.entry(key.inode()).or_default().add(key, known);
        }
        ControlFlow::Continue(())
    });
    for key in kept {
        volumes.entry(key.inode()).or_default().add(key, false);
    }
    volumes
}

/// A table that is made again.
pub(super) struct Volumes {
    pub(super) slots: Vec<UuidEntry>,
    /// By slot: what says whose it is.
    pub(super) known: BTreeMap<u32, Witness>,
    /// Slots of which only dirty extents are kept: what is clean may be of a device's past.
    pub(super) dirty_only: BTreeSet<u32>,
    /// Buckets with older tables, which a repeated repair needs.
    pub(super) tables: Vec<BucketIndex>,
}

/// An older table.
struct Older {
    bucket: BucketIndex,
    slots: Vec<UuidEntry>,
    of_this_set: bool,
}

/// Makes the table again.
pub(super) fn volumes(
    set: &CacheSet<'_>,
    owners: &[Owner<'_>],
    keyed: &BTreeMap<u32, Keyed>,
    claims: &[Claim],
) -> Result<Volumes, NotAnew> {
    let count = usize::try_from(set.geometry().nr_uuids()).unwrap_or(usize::MAX);
    let mut table = Table { slots: vec![UuidEntry::unused(); count], known: BTreeMap::new() };
    for (slot, entry) in (0u32..).zip(&set.uuids.slots).filter(|(_, entry)| is_sound(entry)) {
        table.put(slot, entry.clone(), Witness::Slot);
    }
    let (rest, uuids) = rest_of_table(set).unzip();
    let uuids = uuids.unwrap_or_else(|| set.uuids.slots.iter().map(|it| it.uuid).collect());
    for (slot, uuid) in (0u32..).zip(uuids) {
        if let Some(owner) = owners.iter().find(|owner| owner.uuid() == uuid) {
            table.put(slot, owner.entry(), Witness::Slot);
        }
    }
    by_data(set, owners, keyed, &mut table);
    let mut older = older_tables(set);
    older.extend(rest);
    for table_of in &mut older {
        table_of.of_this_set |= table.confirms(&table_of.slots);
    }
    for of_this_set in [true, false] {
        for older in older.iter().filter(|older| older.of_this_set == of_this_set) {
            let witness = if of_this_set { Witness::OlderTable } else { Witness::FoundTable };
            for (slot, entry) in (0u32..).zip(&older.slots).filter(|(_, entry)| is_sound(entry)) {
                if is_refuted(set, owners, keyed.get(&slot), entry) {
                    continue;
                }
                table.put(slot, entry.clone(), witness);
            }
        }
        if of_this_set {
            claims::put(set, owners, keyed, claims, &mut table)?;
        }
    }
    // Names and times are of no account, and the kernel's own are better than none.
    for older in older.iter().rev() {
        table.take_names(&older.slots);
    }
    let unowned: Vec<u32> = keyed
        .iter()
        .filter(|(slot, keys)| keys.dirty_sectors > 0 && !table.has_owner(**slot))
        .map(|(slot, _)| *slot)
        .collect();
    let mut left = owners.iter().filter(|owner| !table.has(owner.uuid()));
    if let ([slot], Some(owner), None) = (&unowned[..], left.next(), left.next()) {
        let keys = keyed.get(slot).cloned().unwrap_or_default();
        if owner.fits(&keys) && owner.agrees(set, &keys) != Some(false) {
            table.put(*slot, owner.entry(), Witness::OnlyOne);
        }
    }
    if let Some((&slot, keys)) =
        keyed.iter().find(|(slot, keys)| keys.dirty_sectors > 0 && !table.has_owner(**slot))
    {
        return Err(NotAnew::NoOwner { slot, dirty_sectors: keys.dirty_sectors });
    }
    // What is left has nothing in the cache: any slot will do that no key names.
    for owner in owners.iter().filter(|owner| !table.has(owner.uuid())).collect::<Vec<_>>() {
        let free = (0u32..)
            .zip(&table.slots)
            .find(|(slot, entry)| entry.is_empty() && !keyed.contains_key(slot));
        if let Some(slot) = free.map(|(slot, _)| slot) {
            table.put(slot, owner.entry(), Witness::Slot);
        }
    }
    let dirty_only = keyed
        .keys()
        .filter(|slot| table.known.get(slot) != Some(&Witness::Slot))
        .copied()
        .collect();
    table.known.retain(|slot, _| keyed.contains_key(slot));
    let tables = older.iter().map(|older| older.bucket).collect();
    Ok(Volumes { slots: table.slots, known: table.known, dirty_only, tables })
}

pub(super) struct Table {
    slots: Vec<UuidEntry>,
    known: BTreeMap<u32, Witness>,
}

impl Table {
    fn get(&self, slot: u32) -> Option<&UuidEntry> {
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

    fn has(&self, uuid: Uuid) -> bool {
        self.slots.iter().any(|entry| entry.uuid == uuid)
    }

    fn has_owner(&self, slot: u32) -> bool {
        self.get(slot).is_some_and(|entry| !entry.is_empty() && !entry.is_detached())
    }

    /// Whether a slot that is known already is the same in `older`.
    fn confirms(&self, older: &[UuidEntry]) -> bool {
        self.known.keys().any(|&slot| {
            let then = usize::try_from(slot).ok().and_then(|slot| older.get(slot));
            self.get(slot).zip(then).is_some_and(|(now, then)| now.uuid == then.uuid)
        })
    }

    fn take_names(&mut self, older: &[UuidEntry]) {
        for (entry, then) in self.slots.iter_mut().zip(older) {
            if entry.uuid == then.uuid && !entry.is_empty() && then.is_plausible() {
                (entry.first_reg, entry.last_reg) = (then.first_reg, then.last_reg);
            }
        }
    }
}

/// Whether the keys of a slot speak against what an older table says of it.
fn is_refuted(
    set: &CacheSet<'_>,
    owners: &[Owner<'_>],
    keys: Option<&Keyed>,
    entry: &UuidEntry,
) -> bool {
    let Some(keys) = keys else { return false };
    if entry.is_detached() {
        return keys.dirty_sectors > 0;
    }
    if entry.flash_only() {
        return keys.end > entry.sectors.0;
    }
    let owner = owners.iter().find(|owner| owner.uuid() == entry.uuid);
    owner.is_some_and(|owner| !owner.fits(keys) || owner.agrees(set, keys) == Some(false))
}

/// Whether a slot is in use and may stay as it is.
fn is_sound(entry: &UuidEntry) -> bool {
    let empty_flash = entry.flash_only() && entry.sectors.0 == 0 && !entry.is_detached();
    !entry.is_empty() && entry.is_plausible() && !empty_flash
}

/// What is left of the table, where most of it is garbage. What no kernel writes is left out.
fn rest_of_table(set: &CacheSet<'_>) -> Option<(Older, Vec<Uuid>)> {
    let bucket = set.uuids.bucket.filter(|_| !set.uuids.is_table)?;
    let mut slots = uuid_entry::parse_table(&read_table(set, bucket)?, 1);
    let uuids = slots.iter().map(|entry| entry.uuid).collect();
    for entry in slots.iter_mut().filter(|entry| !is_sound(entry) || entry.first_reg == 0) {
        *entry = UuidEntry::unused();
    }
    Some((Older { bucket, slots, of_this_set: false }, uuids))
}

/// Volumes whose clean data is that of one device, and of no other; nor may two volumes be of one device.
fn by_data(
    set: &CacheSet<'_>,
    owners: &[Owner<'_>],
    keyed: &BTreeMap<u32, Keyed>,
    table: &mut Table,
) {
    let mut matches: Vec<(u32, &Owner<'_>)> = Vec::new();
    for (&slot, keys) in keyed.iter().filter(|(slot, _)| !table.known.contains_key(slot)) {
        let mut agreeing =
            owners.iter().filter(|it| it.fits(keys) && it.agrees(set, keys) == Some(true));
        if let (Some(owner), None) = (agreeing.next(), agreeing.next()) {
            matches.push((slot, owner));
        }
    }
    for (slot, owner) in &matches {
        let only = matches.iter().filter(|(_, other)| other.uuid() == owner.uuid()).count() == 1;
        if only && !table.has(owner.uuid()) {
            table.put(*slot, owner.entry(), Witness::Data);
        }
    }
}

/// Tables that were written before, in buckets that nothing has overwritten, the newest first.
fn older_tables(set: &CacheSet<'_>) -> Vec<Older> {
    let mut named: Vec<BucketIndex> = Vec::new();
    for entry in past::all_entries(set) {
        let key = entry.uuid_bucket();
        let ptr = key.ptrs().first().filter(|_| key.is_valid_btree_ptr(set.geometry()));
        let Some(bucket) = ptr.map(|ptr| ptr.bucket(set.geometry())) else { continue };
        if Some(bucket) != set.uuids.bucket && !named.contains(&bucket) {
            named.push(bucket);
        }
    }
    let is_unused = |bucket: &BucketIndex| {
        set.table.get(*bucket).is_some_and(|it| it.mark() == GcMark::Unused)
            && !set.table.is_node(*bucket)
    };
    let mut tables: Vec<Older> = named
        .iter()
        .filter(|bucket| is_unused(bucket))
        .filter_map(|&bucket| {
            Some(Older { bucket, slots: table_in(set, bucket)?, of_this_set: true })
        })
        .collect();
    let others = (set.geometry().first_bucket().0..set.geometry().nbuckets()).map(BucketIndex);
    let mut found: Vec<Older> = others
        .filter(|bucket| !named.contains(bucket) && is_unused(bucket))
        .filter_map(|bucket| {
            Some(Older { bucket, slots: table_in(set, bucket)?, of_this_set: false })
        })
        .collect();
    found.sort_by_key(|it| std::cmp::Reverse(it.slots.iter().map(|entry| entry.last_reg).max()));
    tables.extend(found);
    tables
}

/// The table in a bucket: each slot may be one that a kernel wrote, and some is in use.
fn table_in(set: &CacheSet<'_>, bucket: BucketIndex) -> Option<Vec<UuidEntry>> {
    // Most buckets are told by their start.
    let mut start = AlignedBuf::zeroed(4096);
    let len = usize::try_from(set.geometry().meta_bucket_bytes()).ok()?.min(start.len());
    let start = start.get_mut(..len)?;
    set.cache.read_bucket(bucket, 0, start).ok()?;
    let is_table = |slots: &[UuidEntry]| {
        let used = |entry: &UuidEntry| !entry.is_empty();
        slots.iter().any(used)
            && slots
                .iter()
                .all(|entry| entry.is_plausible() && (entry.is_empty() || entry.first_reg > 0))
    };
    if !is_table(&uuid_entry::parse_table(start, 1)) {
        return None;
    }
    let slots = uuid_entry::parse_table(&read_table(set, bucket)?, 1);
    is_table(&slots).then_some(slots)
}

fn read_table(set: &CacheSet<'_>, bucket: BucketIndex) -> Option<AlignedBuf> {
    let len = set.geometry().nr_uuids().saturating_mul(UUID_ENTRY_BYTES);
    let bytes = usize::try_from(set.geometry().meta_bucket_bytes().max(len)).ok()?;
    let mut table = AlignedBuf::zeroed(bytes);
    set.cache.read_bucket(bucket, 0, &mut table).ok()?;
    Some(table)
}

/// Puts the table into `set`, as if it had been read.
pub(super) fn put_into(set: &mut CacheSet<'_>, slots: Vec<UuidEntry>) {
    set.uuids = UuidTable { slots, bucket: set.uuids.bucket, is_table: true };
}
