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

use uuid::Uuid;

use crate::cache_set::past;
use crate::cache_set::{CacheSet, GcMark, Progress, UuidTable};
use crate::device::AlignedBuf;
use crate::layout::uuid_entry::{self, UuidEntry};
use crate::ops::keyed::Keyed;
use crate::ops::repair::claims::{self, Claim};
use crate::ops::repair::owner::Owner;
use crate::ops::repair::reason::NotAnew;
use crate::ops::repair::scan::scan;
use crate::ops::repair::slots::Table;
use crate::ops::repair::witness::Witness;
use crate::units::{BucketIndex, UUID_ENTRY_BYTES};

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
    progress: &mut dyn FnMut(Progress),
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
    let mut older = older_tables(set, progress);
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
fn older_tables(set: &CacheSet<'_>, progress: &mut dyn FnMut(Progress)) -> Vec<Older> {
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
    let wanted = |bucket: BucketIndex| !named.contains(&bucket) && is_unused(&bucket);
    let mut found: Vec<Older> = scan(&set.cache, progress, &wanted, &|bucket, start| {
        // Most buckets are told by their start.
        is_table(&uuid_entry::parse_table(start, 1)).then(|| table_in(set, bucket))?
    })
    .into_iter()
    .map(|(bucket, slots)| Older { bucket, slots, of_this_set: false })
    .collect();
    found.sort_by_key(|it| std::cmp::Reverse(it.slots.iter().map(|entry| entry.last_reg).max()));
    tables.extend(found);
    tables
}

/// The table in a bucket, if there is one.
fn table_in(set: &CacheSet<'_>, bucket: BucketIndex) -> Option<Vec<UuidEntry>> {
    let slots = uuid_entry::parse_table(&read_table(set, bucket)?, 1);
    is_table(&slots).then_some(slots)
}

/// Whether each slot may be one that a kernel wrote, and some is in use.
fn is_table(slots: &[UuidEntry]) -> bool {
    let used = |entry: &UuidEntry| !entry.is_empty();
    slots.iter().any(used)
        && slots
            .iter()
            .all(|entry| entry.is_plausible() && (entry.is_empty() || entry.first_reg > 0))
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
