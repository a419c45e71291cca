//! Prio sets: the gens and priorities of the buckets (docs/on-disk-format.md §3).
//!
//! ```text
//! 0   csum         CRC-64 over the whole rest of the metadata bucket
//! 8   magic
//! 16  seq          the same in all sets of one chain
//! 24  version, pad
//! 32  next_bucket  the next set's bucket; in the last set a leftover, no terminator
//! 40  entries of three bytes: prio, gen
//! ```
//!
//! Set `i` of a chain describes the buckets from `i * prios_per_bucket` on. The journal names the
//! first set, and only once all of them are durable.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::crc64;
use crate::layout::SetMagic;
use crate::units::{Gen, PRIO_SET_HEADER_BYTES, Prio};

const CSUM_START: usize = 8;
const HEADER_BYTES: usize = size_of::<RawHeader>();

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    csum: U64,
    magic: U64,
    seq: U64,
    version: U32,
    pad: U32,
    next_bucket: U64,
}

/// Prio and gen of one bucket as they lie on the device.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    prio: U16,
    bucket_gen: u8,
}

const _: () = {
    assert!(HEADER_BYTES as u64 == PRIO_SET_HEADER_BYTES);
    assert!(size_of::<RawEntry>() == 3);
};

/// Prio and gen of one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BucketDisk {
    /// Priority.
    pub prio: Prio,
    /// Gen.
    pub bucket_gen: Gen,
}

/// Why a bucket holds no prio_set of this set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrioSetError {
    /// Fewer bytes than a header.
    #[error("{available} bytes hold no prio_set")]
    TooShort {
        /// Bytes there are.
        available: usize,
    },
    /// The checksum does not match: the kernel's "bad csum reading priorities".
    #[error("bad csum reading priorities: {found:#018x}, expected {expected:#018x}")]
    BadChecksum {
        /// Stored.
        found: u64,
        /// Of the contents.
        expected: u64,
    },
    /// The magic is another: the kernel's "bad magic reading priorities".
    #[error("bad magic reading priorities: {found:#018x}, expected {expected:#018x}")]
    BadMagic {
        /// The magic found.
        found: u64,
        /// The set's.
        expected: u64,
    },
}

/// One prio_set, in the bytes of its metadata bucket.
#[derive(Clone, Copy, Debug)]
pub struct PrioSet<'a> {
    bytes: &'a [u8],
    seq: u64,
    version: u32,
    next_bucket: u64,
}

impl<'a> PrioSet<'a> {
    /// Checks `bytes`, a whole metadata bucket image, in the kernel's order: checksum, then magic.
    pub fn parse(bytes: &'a [u8], magic: SetMagic) -> Result<Self, PrioSetError> {
        let (set, error) = Self::salvage(bytes, magic);
        match (set, error) {
            (Some(set), None) => Ok(set),
            (_, Some(error)) => Err(error),
            (None, None) => Err(PrioSetError::TooShort { available: bytes.len() }),
        }
    }

    /// The same, but a set whose magic is right is given even where its checksum is not.
    pub(crate) fn salvage(
        bytes: &'a [u8],
        magic: SetMagic,
    ) -> (Option<Self>, Option<PrioSetError>) {
        let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else {
            return (None, Some(PrioSetError::TooShort { available: bytes.len() }));
        };
        let expected = crc64(bytes.get(CSUM_START..).unwrap_or_default());
        let bad_magic = raw.magic.get() != magic.pset();
        let error = if raw.csum.get() != expected {
            Some(PrioSetError::BadChecksum { found: raw.csum.get(), expected })
        } else if bad_magic {
            Some(PrioSetError::BadMagic { found: raw.magic.get(), expected: magic.pset() })
        } else {
            None
        };
        let set = (!bad_magic).then(|| Self {
            bytes,
            seq: raw.seq.get(),
            version: raw.version.get(),
            next_bucket: raw.next_bucket.get(),
        });
        (set, error)
    }

    /// Number of the write that this set belongs to.
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// Version; kernels write 0 and do not look.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Bucket of the next set; meaningless in the last one.
    pub const fn next_bucket(&self) -> u64 {
        self.next_bucket
    }

    /// The entries, as many as the image holds.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = BucketDisk> + 'a {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default().chunks_exact(size_of::<RawEntry>()).map(
            |chunk| match chunk {
                [low, high, bucket_gen] => BucketDisk {
                    prio: Prio(u16::from_le_bytes([*low, *high])),
                    bucket_gen: Gen(*bucket_gen),
                },
                _ => BucketDisk::default(),
            },
        )
    }
}

/// Fills `image`, a whole metadata bucket, with one set; what `entries` does not reach stays as it
/// is (the kernel leaves leftovers there too), and the checksum covers it.
///
/// Entries beyond what the image holds are left out.
pub fn encode_into(
    image: &mut [u8],
    magic: SetMagic,
    seq: u64,
    next_bucket: u64,
    entries: impl Iterator<Item = BucketDisk>,
) {
    let Some((header, body)) = image.split_at_mut_checked(HEADER_BYTES) else { return };
    for (chunk, entry) in body.chunks_exact_mut(size_of::<RawEntry>()).zip(entries) {
        let raw = RawEntry { prio: entry.prio.0.into(), bucket_gen: entry.bucket_gen.0 };
        chunk.copy_from_slice(raw.as_bytes());
    }
    let raw = RawHeader {
        csum: 0.into(),
        magic: magic.pset().into(),
        seq: seq.into(),
        version: 0.into(),
        pad: 0.into(),
        next_bucket: next_bucket.into(),
    };
    header.copy_from_slice(raw.as_bytes());
    let csum = crc64(image.get(CSUM_START..).unwrap_or_default());
    if let Some(field) = image.first_chunk_mut::<8>() {
        *field = csum.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_back_and_damage_shows() {
        let magic = SetMagic(0x1234);
        let entries: Vec<_> = (0..1352u16)
            .map(|i| BucketDisk { prio: Prio(i * 3), bucket_gen: Gen(i.to_le_bytes()[0]) })
            .collect();
        let mut image = vec![0xee; 4096];
        encode_into(&mut image, magic, 7, 99, entries.iter().copied());
        let set = PrioSet::parse(&image, magic).unwrap();
        assert_eq!((set.seq(), set.next_bucket()), (7, 99));
        assert!(set.entries().eq(entries.iter().copied()));
        assert!(matches!(PrioSet::parse(&image, SetMagic(1)), Err(PrioSetError::BadMagic { .. })));
        *image.last_mut().unwrap() ^= 1;
        assert!(matches!(PrioSet::parse(&image, magic), Err(PrioSetError::BadChecksum { .. })));
        assert!(matches!(PrioSet::parse(&image[..39], magic), Err(PrioSetError::TooShort { .. })));
    }
}
