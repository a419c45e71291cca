//! Making structures fit for an image: only what is metadata, and on request without names.
//!
//! Buckets are not wiped before they are reused. Behind the last set of a btree node or the last entry
//! of a journal bucket there may be data of the user. Only blocks that begin with the structure's
//! magic are kept there.
//!
//! A set's UUID is mixed into the magics of all its structures, so that replacing it means new
//! checksums. A checksum that was wrong stays wrong, by the same difference.

use std::collections::HashMap;
use std::ops::Range;

use uuid::Uuid;

use crate::checksum::{crc64, crc64_seeded};
use crate::layout::SetMagic;
use crate::layout::bkey::Ptr;
use crate::layout::bset::{BSET_HEADER_BYTES, BSET_VERSION};
use crate::layout::jset::{JSET_BYTES_MAX, JSET_HEADER_BYTES, claimed_bytes};
use crate::layout::superblock::SB_BYTES;
use crate::layout::uuid_entry::DETACHED_UUID;

const UUID_BYTES: usize = 16;
const LABEL_BYTES: usize = 32;
const SB_UUID: usize = 40;
const SB_SET_UUID: usize = 56;
const SB_LABEL: usize = 72;
const SB_KEYS: usize = 206;
const SB_CSUM_START: usize = 208;
/// End of the last field.
const SB_END: usize = 2258;
const MAGIC: Range<usize> = 8..16;
/// The parts of a journal entry that the kernel leaves as they were in memory.
const JSET_PAD: Range<usize> = 170..176;

/// New names for UUIDs and labels, the same for the same.
#[derive(Debug)]
pub(super) struct Names {
    uuids: HashMap<Uuid, Uuid>,
    old: SetMagic,
    new: SetMagic,
}

impl Names {
    /// For the set with `set_uuid`.
    pub(super) fn new(set_uuid: Uuid) -> Self {
        let mut names = Self { uuids: HashMap::new(), old: SetMagic(0), new: SetMagic(0) };
        names.old = SetMagic::from_set_uuid(&set_uuid);
        names.new = SetMagic::from_set_uuid(&names.uuid(set_uuid));
        names
    }

    fn uuid(&mut self, uuid: Uuid) -> Uuid {
        if uuid.is_nil() {
            return uuid;
        }
        *self.uuids.entry(uuid).or_insert_with(Uuid::new_v4)
    }

    fn replace_uuid(&mut self, bytes: &mut [u8], at: usize) {
        let place = bytes.get_mut(at..at.saturating_add(UUID_BYTES));
        let Some(place) = place else { return };
        let Ok(old) = Uuid::from_slice(place) else { return };
        place.copy_from_slice(self.uuid(old).as_bytes());
    }
}

fn replace_label(bytes: &mut [u8], at: usize, label: &str) {
    let Some(place) = bytes.get_mut(at..at.saturating_add(LABEL_BYTES)) else { return };
    let empty = place.first() == Some(&0);
    place.fill(0);
    if !empty {
        place.iter_mut().zip(label.as_bytes()).for_each(|(to, from)| *to = *from);
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let (word, _) = bytes.get(at..)?.split_first_chunk::<8>()?;
    Some(u64::from_le_bytes(*word))
}

fn put(bytes: &mut [u8], range: Range<usize>, value: u64) {
    if let Some(place) = bytes.get_mut(range) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// Changes a structure whose first word is the checksum of the bytes `[8, end)`, so that the
/// checksum is as right as it was.
fn resealed(
    bytes: &mut [u8],
    end: usize,
    seal: impl Fn(&[u8]) -> u64,
    change: impl FnOnce(&mut [u8]),
) {
    let sealed = |bytes: &[u8]| bytes.get(8..end).map(&seal);
    let (Some(before), Some(stored)) = (sealed(bytes), word(bytes, 0)) else { return };
    change(bytes);
    if let Some(after) = sealed(bytes) {
        put(bytes, 0..8, stored ^ before ^ after);
    }
}

/// The superblock's 4096 bytes.
pub(super) fn superblock(bytes: &mut [u8], names: Option<&mut Names>) {
    if let Some(tail) = bytes.get_mut(SB_END..) {
        tail.fill(0);
    }
    let Some(names) = names else { return };
    let keys = bytes.get(SB_KEYS..SB_KEYS + 2).and_then(|keys| keys.try_into().ok());
    let keys = usize::from(u16::from_le_bytes(keys.unwrap_or_default()));
    let end = (SB_CSUM_START + 8 * keys).min(SB_BYTES);
    resealed(bytes, end, crc64, |bytes| {
        names.replace_uuid(bytes, SB_UUID);
        names.replace_uuid(bytes, SB_SET_UUID);
        replace_label(bytes, SB_LABEL, "cache");
    });
}

/// A uuid table.
pub(super) fn uuids(bytes: &mut [u8], entry_bytes: usize, names: Option<&mut Names>) {
    let Some(names) = names else { return };
    for (slot, entry) in bytes.chunks_exact_mut(entry_bytes.max(1)).enumerate() {
        let uuid = entry.get(..UUID_BYTES).and_then(|bytes| Uuid::from_slice(bytes).ok());
        let detached = uuid.is_some_and(|uuid| uuid == DETACHED_UUID);
        if !detached {
            names.replace_uuid(entry, 0);
        }
        replace_label(entry, UUID_BYTES, &format!("volume-{slot}"));
    }
}

/// A prio set, all of its bucket that the checksum covers.
pub(super) fn prio_set(bytes: &mut [u8], names: Option<&mut Names>) {
    let Some(names) = names else { return };
    let end = bytes.len();
    if word(bytes, MAGIC.start) == Some(names.old.pset()) {
        resealed(bytes, end, crc64, |bytes| put(bytes, MAGIC, names.new.pset()));
    }
}

/// A btree node, reached through `ptr`.
pub(super) fn node(
    bytes: &mut [u8],
    ptr: Ptr,
    magic: SetMagic,
    block_bytes: usize,
    names: Option<&mut Names>,
) {
    let names = names.map(|names| (names.old, names.new));
    let block_bytes = block_bytes.max(1);
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let len = set_bytes(rest, magic);
        let kept = len.map_or(0, |len| len.next_multiple_of(block_bytes)).min(rest.len());
        if let (Some(len), Some((_, new))) = (len, names) {
            let rest = bytes.get_mut(at..).unwrap_or_default();
            let version = rest.get(24..28).and_then(|bytes| bytes.try_into().ok());
            let seeded = u32::from_le_bytes(version.unwrap_or_default()) > 0;
            let seal = |bytes: &[u8]| {
                if seeded { crc64_seeded(ptr.0, bytes) } else { crc64(bytes) }
            };
            resealed(rest, len, seal, |bytes| put(bytes, MAGIC, new.bset()));
        }
        if kept == 0 {
            let end = at.saturating_add(block_bytes).min(bytes.len());
            if let Some(block) = bytes.get_mut(at..end) {
                block.fill(0);
            }
            at = end;
        } else {
            if let Some(slack) = bytes.get_mut(at + len.unwrap_or(0)..at + kept) {
                slack.fill(0);
            }
            at = at.saturating_add(kept);
        }
    }
}

/// Bytes of the set at the start of `bytes`; `None` where there is none.
fn set_bytes(bytes: &[u8], magic: SetMagic) -> Option<usize> {
    if word(bytes, MAGIC.start)? != magic.bset() {
        return None;
    }
    let field = |at: usize| {
        let bytes = bytes.get(at..)?.split_first_chunk::<4>()?.0;
        Some(u32::from_le_bytes(*bytes))
    };
    let keys = usize::try_from(field(28)?).ok()?;
    let len = keys.checked_mul(8)?.checked_add(BSET_HEADER_BYTES)?;
    // A header that cannot be right tells no length: what follows it may be anything.
    let plausible = field(24)? <= BSET_VERSION && len <= bytes.len();
    Some(if plausible { len } else { BSET_HEADER_BYTES })
}

/// What of a journal bucket begins at `bytes`: the length of an entry, or of what is left of one.
pub(super) fn entry_bytes(bytes: &[u8], magic: SetMagic, rest: usize) -> Option<usize> {
    if word(bytes, MAGIC.start)? != magic.jset() {
        return None;
    }
    let claimed = claimed_bytes(bytes, magic, rest).ok().filter(|&len| len <= JSET_BYTES_MAX);
    Some(claimed.filter(|&len| len <= bytes.len()).unwrap_or(JSET_HEADER_BYTES).min(bytes.len()))
}

/// A journal entry of `len` bytes in whole blocks.
pub(super) fn entry(bytes: &mut [u8], len: usize, names: Option<&mut Names>) {
    if let Some(slack) = bytes.get_mut(len..) {
        slack.fill(0);
    }
    if let Some(names) = names {
        resealed(bytes, len, crc64, |bytes| {
            put(bytes, MAGIC, names.new.jset());
            if let Some(pad) = bytes.get_mut(JSET_PAD) {
                pad.fill(0);
            }
        });
    }
}
