//! Flipped bits in journal entries, prio sets and btree nodes.

use crate::cache_set::btree::node::node_ptr;
use crate::cache_set::journal::{JournalPlace, JournalProblem};
use crate::cache_set::prios::PrioProblem;
use crate::cache_set::{BtreeProblem, Bucket, CacheDevice, CacheSet, NodePlace, Problem};
use crate::checksum::crc64_seeded;
use crate::device::{AlignedBuf, DeviceError};
use crate::layout::bkey::Ptr;
use crate::layout::bset::{BSET_HEADER_BYTES, salvage_node};
use crate::layout::flip::{Flip, flipped_bit};
use crate::layout::jset::{JSET_BYTES_MAX, Jset, claimed_bytes};
use crate::layout::prio_set::{PrioSet, PrioSetError};
use crate::ops::plan::WriteKind;
use crate::ops::repair::Place;
use crate::units::{BucketIndex, Sectors};

/// A bit that was flipped.
pub(super) struct FoundFlip {
    pub(super) place: Place,
    pub(super) kind: WriteKind,
    /// Byte on the device.
    pub(super) byte: u64,
    pub(super) mask: u8,
}

/// The bit whose flipping explains `problem`, where it is one.
pub(super) fn explain(
    cache: &CacheDevice<'_>,
    set: Option<&CacheSet<'_>>,
    problem: &Problem,
) -> Option<FoundFlip> {
    match problem {
        Problem::Journal(
            JournalProblem::Torn { place, .. }
            | JournalProblem::Hidden { place, .. }
            | JournalProblem::NewestLost { place, .. },
        ) => journal(cache, place),
        Problem::Prios(PrioProblem::Invalid { index, bucket, error }) => {
            prio_set(cache, *index, *bucket, error)
        }
        Problem::Btree(BtreeProblem::BadNode { place, error }) => {
            node(cache, set?, place, error.offset)
        }
        _ => None,
    }
}

fn journal(cache: &CacheDevice<'_>, place: &JournalPlace) -> Option<FoundFlip> {
    let geometry = cache.geometry();
    let rest = geometry.bucket_bytes().checked_sub(place.offset)?;
    let rest = usize::try_from(rest).unwrap_or(usize::MAX);
    let mut bytes = AlignedBuf::zeroed(rest.min(JSET_BYTES_MAX));
    cache.read_bucket(place.bucket, place.offset, &mut bytes).ok()?;
    let magic = cache.magic();
    let is_sound = |bytes: &[u8]| Jset::parse(bytes, magic, rest).is_ok();
    let named = claimed_bytes(&bytes, magic, rest)
        .ok()
        .and_then(|len| named_flip(bytes.get(..len)?, u64::MAX));
    // Magic, version and length decide where the checksum ends.
    let flip = named
        .filter(|flip| is_sound_with(&mut bytes, *flip, &is_sound))
        .or_else(|| trial(&mut bytes, 8..32, &is_sound))?;
    let mut fixed = bytes.to_vec();
    *fixed.get_mut(flip.byte)? ^= flip.mask;
    let seq = Jset::parse(&fixed, magic, rest).ok()?.seq();
    let start = geometry.bucket_to_sector(place.bucket).bytes().checked_add(place.offset)?;
    Some(FoundFlip {
        place: Place::JournalEntry { bucket: place.bucket, seq },
        kind: WriteKind::JournalEntry { seq },
        byte: start.checked_add(flip.byte as u64)?,
        mask: flip.mask,
    })
}

fn prio_set(
    cache: &CacheDevice<'_>,
    index: u64,
    bucket: BucketIndex,
    error: &PrioSetError,
) -> Option<FoundFlip> {
    let PrioSetError::BadChecksum { .. } = error else { return None };
    let geometry = cache.geometry();
    let mut bytes = AlignedBuf::zeroed(usize::try_from(geometry.meta_bucket_bytes()).ok()?);
    cache.read_bucket(bucket, 0, &mut bytes).ok()?;
    let is_sound = |bytes: &[u8]| PrioSet::parse(bytes, cache.magic()).is_ok();
    let flip =
        named_flip(&bytes, u64::MAX).filter(|flip| is_sound_with(&mut bytes, *flip, &is_sound))?;
    Some(FoundFlip {
        place: Place::PrioSet { index, bucket },
        kind: WriteKind::PrioSet { index, bucket },
        byte: geometry.bucket_to_sector(bucket).bytes().checked_add(flip.byte as u64)?,
        mask: flip.mask,
    })
}

fn node(
    cache: &CacheDevice<'_>,
    set: &CacheSet<'_>,
    place: &NodePlace,
    offset: usize,
) -> Option<FoundFlip> {
    let geometry = cache.geometry();
    let ptr = node_pointer(set, place);
    let mut bytes = AlignedBuf::zeroed(usize::try_from(geometry.btree_node_size().bytes()).ok()?);
    cache.device().read_at(place.sector.bytes(), &mut bytes).ok()?;
    let block_bytes = usize::try_from(geometry.block_bytes()).ok()?;
    // Sound up to and including the set that was bad: there may be more damage behind it.
    let is_sound = |bytes: &[u8]| {
        let (node, error) = salvage_node(bytes, cache.magic(), ptr, block_bytes);
        node.sets.iter().any(|set| set.offset == offset)
            && error.is_none_or(|error| error.offset > offset)
    };
    let named = set_bytes(&bytes, offset)
        .and_then(|len| named_flip(bytes.get(offset..offset.checked_add(len)?)?, ptr.0));
    let named = named.map(|flip| Flip { byte: flip.byte + offset, ..flip });
    let header = offset + 8..offset + BSET_HEADER_BYTES;
    let flip = named
        .filter(|flip| is_sound_with(&mut bytes, *flip, &is_sound))
        .or_else(|| trial(&mut bytes, header, &is_sound))?;
    Some(FoundFlip {
        place: Place::BtreeNode { bucket: place.bucket, level: place.level },
        kind: WriteKind::BtreeNode,
        byte: place.sector.bytes().checked_add(flip.byte as u64)?,
        mask: flip.mask,
    })
}

/// The pointer through which the kernel reads a node: it seeds the checksums. A pointer that is followed
/// has its bucket's gen.
fn node_pointer(set: &CacheSet<'_>, place: &NodePlace) -> Ptr {
    let root = node_ptr(&set.root);
    if root.offset() == place.sector {
        return root;
    }
    let bucket_gen = set.table.get(place.bucket).map(Bucket::bucket_gen).unwrap_or_default();
    Ptr::new(bucket_gen, Sectors(place.sector.0), set.cache.superblock().nr_this_dev())
}

/// Bytes of the set at `offset`, header included, as it says itself.
fn set_bytes(bytes: &[u8], offset: usize) -> Option<usize> {
    let keys = bytes.get(offset.checked_add(28)?..)?.first_chunk::<4>()?;
    let keys = usize::try_from(u32::from_le_bytes(*keys)).ok()?;
    keys.checked_mul(8)?.checked_add(BSET_HEADER_BYTES)
}

/// The bit that the checksum at the start of `bytes` names.
fn named_flip(bytes: &[u8], seed: u64) -> Option<Flip> {
    let stored = u64::from_le_bytes(*bytes.first_chunk::<8>()?);
    flipped_bit(bytes.len(), stored, crc64_seeded(seed, bytes.get(8..)?))
}

fn is_sound_with(bytes: &mut AlignedBuf, flip: Flip, is_sound: &dyn Fn(&[u8]) -> bool) -> bool {
    let Some(byte) = bytes.get_mut(flip.byte) else { return false };
    *byte ^= flip.mask;
    let sound = is_sound(bytes);
    if let Some(byte) = bytes.get_mut(flip.byte) {
        *byte ^= flip.mask;
    }
    sound
}

/// The only bit of a range that makes the whole sound.
fn trial(
    bytes: &mut AlignedBuf,
    range: std::ops::Range<usize>,
    is_sound: &dyn Fn(&[u8]) -> bool,
) -> Option<Flip> {
    let mut found = None;
    for byte in range {
        for bit in 0..8 {
            let flip = Flip { byte, mask: 1 << bit };
            if is_sound_with(bytes, flip, is_sound) && found.replace(flip).is_some() {
                return None;
            }
        }
    }
    found
}

/// The write that flips a bit back: the logical block that it is in.
pub(super) fn write_of(
    device: &dyn crate::device::ReadDevice,
    flip: &FoundFlip,
) -> Result<crate::ops::plan::Step, DeviceError> {
    let block = u64::from(device.info().logical_block_bytes.max(512));
    let offset = flip.byte / block * block;
    let mut data = AlignedBuf::zeroed(usize::try_from(block).unwrap_or(512));
    device.read_at(offset, &mut data)?;
    if let Some(byte) = data.get_mut(usize::try_from(flip.byte - offset).unwrap_or(usize::MAX)) {
        *byte ^= flip.mask;
    }
    Ok(crate::ops::plan::Step::Write { kind: flip.kind, offset, data })
}
