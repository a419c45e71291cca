//! Journal entries (docs/on-disk-format.md §2.2).
//!
//! ```text
//! 0    csum          CRC-64 over [8, 240 + 8 * keys)
//! 8    magic
//! 16   seq           first ever 1, + 1 per entry
//! 24   version, keys (words of keys that follow the header)
//! 32   last_seq      oldest entry that replay needs
//! 40   uuid_bucket   a key in 64 bytes
//! 104  btree_root    a key in 64 bytes
//! 168  btree_level
//! 176  prio_bucket[8]  head of the prio chain of each device of the set
//! 240  keys
//! ```
//!
//! An entry is written with PREFLUSH and FUA, and can tear: its checksum tells, and the entry
//! before it then stays the newest. Pads and unused words hold whatever the buffer held.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::crc64;
use crate::layout::SetMagic;
use crate::layout::bkey::{BKEY_PADDED_PTRS, Bkey, KeyIter};
use crate::units::PAGE_BYTES;

/// Bytes before the keys.
pub const JSET_HEADER_BYTES: usize = 240;

/// Largest entry that the kernel reads or writes (`PAGE << JSET_BITS`), in bytes.
pub const JSET_BYTES_MAX: usize = 32768;

/// Version of the entries that kernels write; below 1 the uuid table has the older layout.
pub const JSET_VERSION: u32 = 1;

/// Devices that an entry has a prio chain for.
pub const JSET_PRIO_BUCKETS: usize = 8;

const CSUM_START: usize = 8;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    csum: U64,
    magic: U64,
    seq: U64,
    version: U32,
    keys: U32,
    last_seq: U64,
    uuid_bucket: [u8; 64],
    btree_root: [u8; 64],
    btree_level: U16,
    pad: [u8; 6],
    prio_bucket: [U64; JSET_PRIO_BUCKETS],
}

impl Raw {
    /// Bytes of the entry, as its header has it.
    fn claimed_bytes(&self) -> u64 {
        JSET_HEADER_BYTES as u64 + 8 * u64::from(self.keys.get())
    }
}

const _: () = {
    assert!(JSET_BYTES_MAX as u64 == PAGE_BYTES << 3);
    assert!(size_of::<Raw>() == JSET_HEADER_BYTES);
    assert!(std::mem::offset_of!(Raw, last_seq) == 32);
    assert!(std::mem::offset_of!(Raw, uuid_bucket) == 40);
    assert!(std::mem::offset_of!(Raw, btree_root) == 104);
    assert!(std::mem::offset_of!(Raw, btree_level) == 168);
    assert!(std::mem::offset_of!(Raw, prio_bucket) == 176);
};

/// Why the bytes at some place of the journal are no entry; the kernel's reader stops the bucket
/// at the first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsetError {
    /// Fewer bytes than a header.
    #[error("{available} bytes hold no journal entry header")]
    TooShort {
        /// Bytes there are.
        available: usize,
    },
    /// Another magic: nothing was written here, or by another set.
    #[error("magic {found:#018x}, expected {expected:#018x}")]
    BadMagic {
        /// The magic found.
        found: u64,
        /// The set's.
        expected: u64,
    },
    /// Longer than the bucket's rest or than any entry.
    #[error("entry {seq} claims {bytes} bytes, at most {limit} are possible")]
    TooLong {
        /// Its sequence number.
        seq: u64,
        /// What it claims.
        bytes: u64,
        /// What is possible.
        limit: u64,
    },
    /// The checksum does not match: torn, or damaged.
    #[error("entry {seq}: checksum {found:#018x}, expected {expected:#018x}")]
    BadChecksum {
        /// Its sequence number.
        seq: u64,
        /// Stored.
        found: u64,
        /// Of the contents.
        expected: u64,
    },
}

/// A journal entry whose checksum is right.
#[derive(Clone, PartialEq, Eq)]
pub struct Jset {
    bytes: Vec<u8>,
    header: Header,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    seq: u64,
    version: u32,
    last_seq: u64,
    uuid_bucket: Bkey,
    btree_root: Bkey,
    btree_level: u16,
    prio_bucket: [u64; JSET_PRIO_BUCKETS],
}

impl From<&Raw> for Header {
    fn from(raw: &Raw) -> Self {
        Self {
            seq: raw.seq.get(),
            version: raw.version.get(),
            last_seq: raw.last_seq.get(),
            // Seven pointers would reach one word past the field; no kernel writes over six.
            uuid_bucket: Bkey::read(&raw.uuid_bucket).unwrap_or_default(),
            btree_root: Bkey::read(&raw.btree_root).unwrap_or_default(),
            btree_level: raw.btree_level.get(),
            prio_bucket: raw.prio_bucket.map(U64::get),
        }
    }
}

/// How many bytes the entry at the start of `bytes` claims, when its magic is `magic`.
///
/// `rest` is the number of bytes to the end of the journal bucket.
pub(crate) fn claimed_bytes(
    bytes: &[u8],
    magic: SetMagic,
    rest: usize,
) -> Result<usize, JsetError> {
    let (raw, _) =
        Raw::ref_from_prefix(bytes).map_err(|_| JsetError::TooShort { available: bytes.len() })?;
    if raw.magic.get() != magic.jset() {
        return Err(JsetError::BadMagic { found: raw.magic.get(), expected: magic.jset() });
    }
    let claimed = raw.claimed_bytes();
    let limit = rest.min(JSET_BYTES_MAX);
    usize::try_from(claimed).ok().filter(|&bytes| bytes <= limit).ok_or(JsetError::TooLong {
        seq: raw.seq.get(),
        bytes: claimed,
        limit: limit as u64,
    })
}

/// The sequence number at the start of `bytes`, where everything but magic and checksum looks like
/// an entry's header: what is left of an entry whose magic was damaged. `None` for a whole entry of
/// another set, such as a device that was formatted again has behind its own.
///
/// `rest` is the number of bytes to the end of the journal bucket.
pub(crate) fn seq_hint(bytes: &[u8], rest: usize) -> Option<u64> {
    let (raw, _) = Raw::ref_from_prefix(bytes).ok()?;
    let plausible = raw.version.get() == JSET_VERSION
        && raw.seq.get() != 0
        && raw.last_seq.get() <= raw.seq.get()
        && raw.last_seq.get() != 0;
    (plausible && set_of_entry(bytes, rest).is_none()).then(|| raw.seq.get())
}

/// Whether an entry may begin with `bytes`, as far as its header tells.
pub(crate) fn claims_entry(bytes: &[u8]) -> bool {
    Raw::ref_from_prefix(bytes).is_ok_and(|(raw, _)| {
        raw.seq.get() != 0
            && raw.version.get() <= JSET_VERSION
            && raw.claimed_bytes() <= JSET_BYTES_MAX as u64
    })
}

/// The set that the whole entry at the start of `bytes` is of, whichever that is: the checksum covers the
/// magic. `None` where there is no whole entry.
///
/// `rest` is the number of bytes to the end of the journal bucket.
pub(crate) fn set_of_entry(bytes: &[u8], rest: usize) -> Option<SetMagic> {
    let (raw, _) = Raw::ref_from_prefix(bytes).ok()?;
    let magic = SetMagic::of_jset(raw.magic.get());
    Jset::parse(bytes, magic, rest).ok().map(|_| magic)
}

/// The keys of what is left of an entry at the start of `bytes`, its checksum aside; `None` where
/// the length that it claims cannot be.
///
/// `rest` is the number of bytes to the end of the journal bucket. Nothing vouches for the keys.
pub(crate) fn salvage_keys(bytes: &[u8], rest: usize) -> Option<KeyIter<'_>> {
    let (raw, _) = Raw::ref_from_prefix(bytes).ok()?;
    let claimed = raw.claimed_bytes();
    let claimed = usize::try_from(claimed).ok().filter(|&it| it <= rest.min(JSET_BYTES_MAX))?;
    bytes.get(JSET_HEADER_BYTES..claimed).map(KeyIter::new)
}

impl Jset {
    /// The entry at the start of `bytes`, checked as the kernel checks it: magic, length, checksum.
    ///
    /// `rest` is the number of bytes to the end of the journal bucket; `bytes` must hold the entry.
    pub fn parse(bytes: &[u8], magic: SetMagic, rest: usize) -> Result<Self, JsetError> {
        let length = claimed_bytes(bytes, magic, rest)?;
        let bytes =
            bytes.get(..length).ok_or(JsetError::TooShort { available: bytes.len() })?.to_vec();
        let (raw, _) = Raw::ref_from_prefix(&bytes)
            .map_err(|_| JsetError::TooShort { available: bytes.len() })?;
        let found = raw.csum.get();
        let expected = crc64(bytes.get(CSUM_START..).unwrap_or_default());
        if found != expected {
            return Err(JsetError::BadChecksum { seq: raw.seq.get(), found, expected });
        }
        let header = Header::from(raw);
        Ok(Self { bytes, header })
    }

    /// The entry as it stands on the device, without the rest of its last block.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Sequence number.
    pub const fn seq(&self) -> u64 {
        self.header.seq
    }

    /// Version.
    pub const fn version(&self) -> u32 {
        self.header.version
    }

    /// Oldest entry whose keys may not be in the btree on disk.
    pub const fn last_seq(&self) -> u64 {
        self.header.last_seq
    }

    /// Where the uuid table is.
    pub const fn uuid_bucket(&self) -> &Bkey {
        &self.header.uuid_bucket
    }

    /// The btree's root.
    pub const fn btree_root(&self) -> &Bkey {
        &self.header.btree_root
    }

    /// The root's level: 0 when it is a leaf.
    pub const fn btree_level(&self) -> u16 {
        self.header.btree_level
    }

    /// Head of the prio chain of device `nr_this_dev`; 0 for a number that no set has.
    pub fn prio_bucket(&self, nr_this_dev: u16) -> u64 {
        self.header.prio_bucket.get(usize::from(nr_this_dev)).copied().unwrap_or(0)
    }

    /// Words of keys.
    pub(crate) fn key_words(&self) -> usize {
        self.bytes.len().saturating_sub(JSET_HEADER_BYTES) / 8
    }

    /// The keys, in the order of their insertion.
    pub fn keys(&self) -> KeyIter<'_> {
        KeyIter::new(self.bytes.get(JSET_HEADER_BYTES..).unwrap_or_default())
    }

    /// An entry without keys that follows this one and names `prio_bucket` as the chain of device
    /// `nr_this_dev` (docs/on-disk-format.md §8.4 step 4). All else is copied, `last_seq` among it.
    ///
    /// `None` where `nr_this_dev` is none of a set, or the sequence numbers end.
    pub fn successor(&self, nr_this_dev: u16, prio_bucket: u64) -> Option<Self> {
        let (mut raw, _) = Raw::read_from_prefix(&self.bytes).ok()?;
        raw.seq = self.seq().checked_add(1)?.into();
        raw.keys = 0.into();
        *raw.prio_bucket.get_mut(usize::from(nr_this_dev))? = prio_bucket.into();
        Some(Self::seal(raw, &[]))
    }

    fn seal(raw: Raw, keys: &[u8]) -> Self {
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(keys);
        let csum = crc64(bytes.get(CSUM_START..).unwrap_or_default());
        if let Some(field) = bytes.first_chunk_mut::<8>() {
            *field = csum.to_le_bytes();
        }
        Self { bytes, header: Header::from(&raw) }
    }
}

impl std::fmt::Debug for Jset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jset")
            .field("seq", &self.seq())
            .field("last_seq", &self.last_seq())
            .field("key_words", &self.key_words())
            .field("btree_root", self.btree_root())
            .field("btree_level", &self.btree_level())
            .finish_non_exhaustive()
    }
}

/// What a new journal entry says.
#[derive(Clone, Debug)]
pub struct JsetParams<'a> {
    /// Sequence number.
    pub seq: u64,
    /// Oldest entry that replay needs.
    pub last_seq: u64,
    /// Where the uuid table is; at most six pointers.
    pub uuid_bucket: Bkey,
    /// The btree's root; at most six pointers.
    pub btree_root: Bkey,
    /// The root's level.
    pub btree_level: u16,
    /// Heads of the prio chains.
    pub prio_bucket: [u64; JSET_PRIO_BUCKETS],
    /// Keys to replay.
    pub keys: &'a [Bkey],
}

impl<'a> JsetParams<'a> {
    /// What `entry` says, with `keys` in the place of its own.
    pub fn of(entry: &Jset, keys: &'a [Bkey]) -> Self {
        let mut prio_bucket = [0; JSET_PRIO_BUCKETS];
        for (head, device) in prio_bucket.iter_mut().zip(0..) {
            *head = entry.prio_bucket(device);
        }
        Self {
            seq: entry.seq(),
            last_seq: entry.last_seq(),
            uuid_bucket: *entry.uuid_bucket(),
            btree_root: *entry.btree_root(),
            btree_level: entry.btree_level(),
            prio_bucket,
            keys,
        }
    }
}

/// A new journal entry; `None` where it would be longer than the kernel reads, or a header key has
/// more pointers than fit.
pub fn encode(params: &JsetParams<'_>, magic: SetMagic) -> Option<Jset> {
    let mut keys = Vec::new();
    for key in params.keys {
        key.write(&mut keys);
    }
    if JSET_HEADER_BYTES + keys.len() > JSET_BYTES_MAX {
        return None;
    }
    let raw = Raw {
        csum: 0.into(),
        magic: magic.jset().into(),
        seq: params.seq.into(),
        version: JSET_VERSION.into(),
        keys: u32::try_from(keys.len() / 8).ok()?.into(),
        last_seq: params.last_seq.into(),
        uuid_bucket: header_key(&params.uuid_bucket)?,
        btree_root: header_key(&params.btree_root)?,
        btree_level: params.btree_level.into(),
        pad: [0; 6],
        prio_bucket: params.prio_bucket.map(U64::new),
    };
    Some(Jset::seal(raw, &keys))
}

fn header_key(key: &Bkey) -> Option<[u8; 64]> {
    if key.ptrs_count() > BKEY_PADDED_PTRS {
        return None;
    }
    let mut words = Vec::with_capacity(64);
    key.write(&mut words);
    words.resize(64, 0);
    words.try_into().ok()
}
