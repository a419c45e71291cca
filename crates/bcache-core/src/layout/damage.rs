//! What a damaged superblock was, where its checksum tells.

use super::flip::{changed_field, flipped_bit};
use super::superblock::{SB_JOURNAL_BUCKETS, Superblock};

/// Bytes of the number of journal buckets, on which the length depends that the checksum covers.
pub(crate) const KEYS: std::ops::Range<usize> = 206..208;

/// Byte at which the journal's bucket numbers start.
const KEYS_START: usize = 208;

/// The one place where a superblock was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Its magic, and no more than a bit beside that.
    Magic,
    /// One bit.
    Bit,
    /// One field of up to four bytes.
    Field,
}

/// A damaged superblock as it was, where its checksum tells; `None` for one that is sound, and for one
/// that was damaged in more than one place.
pub(crate) fn restored(found: &Superblock) -> Option<(Damage, Superblock)> {
    if found.magic_ok() && found.csum_ok() {
        return None;
    }
    if !found.magic_ok() {
        let mut with_magic = found.clone();
        with_magic.restore_magic();
        // The checksum covers the magic: where it is right again, nothing else was changed.
        if with_magic.csum_ok() {
            return Some((Damage::Magic, with_magic));
        }
        if let Some(flipped) = without_flip(&with_magic) {
            return Some((Damage::Magic, flipped));
        }
    }
    if let Some(flipped) = without_flip(found) {
        return Some((Damage::Bit, flipped));
    }
    if !found.magic_ok() {
        return None;
    }
    with_field(found).map(|restored| (Damage::Field, restored))
}

fn without_flip(found: &Superblock) -> Option<Superblock> {
    let covered = KEYS_START + 8 * usize::from(found.njournal_buckets());
    let named = found
        .csum_expected()
        .and_then(|expected| flipped_bit(covered, found.csum(), expected))
        .map(|flip| (flip.byte, flip.mask));
    // Where the length itself was changed, the checksum of another length was computed.
    let of_length = KEYS.flat_map(|byte| (0..8).map(move |bit| (byte, 1 << bit)));
    named.into_iter().chain(of_length).find_map(|(byte, mask)| {
        let mut bytes = found.as_bytes().to_vec();
        *bytes.get_mut(byte)? ^= mask;
        Superblock::from_bytes(&bytes).filter(|sb| sb.magic_ok() && sb.csum_ok())
    })
}

fn with_field(found: &Superblock) -> Option<Superblock> {
    let covered = KEYS_START + 8 * usize::from(found.njournal_buckets());
    let named = found
        .csum_expected()
        .and_then(|expected| changed_field(covered, found.csum(), expected))
        .map(|change| {
            let mut bytes = found.as_bytes().to_vec();
            bytes.iter_mut().skip(change.byte).zip(change.masks).for_each(|(byte, it)| *byte ^= it);
            bytes
        });
    let of_length = (0..=SB_JOURNAL_BUCKETS).map(|count| {
        let mut bytes = found.as_bytes().to_vec();
        bytes.splice(KEYS, count.to_le_bytes());
        bytes
    });
    named
        .into_iter()
        .chain(of_length)
        .find_map(|bytes| Superblock::from_bytes(&bytes).filter(|sb| sb.magic_ok() && sb.csum_ok()))
}
