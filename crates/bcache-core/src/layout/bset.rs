//! Btree node sets (docs/on-disk-format.md §5.1, §5.2).
//!
//! ```text
//! 0   csum     version 1: seeded with the pointer through which the node is reached
//! 8   magic
//! 16  seq      random, not 0, the same in all sets of a node
//! 24  version, keys (words that follow)
//! 32  keys
//! ```
//!
//! A node is a sequence of sets, each at a block boundary. Sets are appended, one FUA write each;
//! the first block whose `seq` differs from the first set's ends the node. A torn append leaves a
//! set with a bad checksum, which the kernel treats as corruption.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{crc64, crc64_seeded};
use crate::layout::SetMagic;
use crate::layout::bkey::{Bkey, KeyIter, Ptr};

/// Bytes before the keys.
pub const BSET_HEADER_BYTES: usize = 32;

/// Highest version that kernels read (`BCACHE_BSET_VERSION`).
pub const BSET_VERSION: u32 = 1;

const CSUM_START: usize = 8;
const SEQ_RANGE: std::ops::Range<usize> = 16..24;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    csum: U64,
    magic: U64,
    seq: U64,
    version: U32,
    keys: U32,
}

const _: () = assert!(size_of::<Raw>() == BSET_HEADER_BYTES);

/// Why a node cannot be read; displays as the kernel's own word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NodeError {
    /// The first set's seq is 0, or a set does not fit the node.
    #[error("bad btree header")]
    BadHeader,
    /// A version over [`BSET_VERSION`].
    #[error("unsupported bset version")]
    UnsupportedVersion,
    /// The magic is another.
    #[error("bad magic")]
    BadMagic,
    /// The checksum does not match.
    #[error("bad checksum")]
    BadChecksum,
    /// A set after the first without keys.
    #[error("empty set")]
    EmptySet,
    /// A set of this node behind its end.
    #[error("corrupted btree")]
    Corrupted,
    /// The last key lies past the node's own.
    #[error("short btree key")]
    ShortKey,
}

/// A node that cannot be read, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error} at byte {offset} of the node")]
pub struct NodeErrorAt {
    /// What is wrong.
    pub error: NodeError,
    /// Where, in bytes from the start of the node.
    pub offset: usize,
}

/// One set of a node, its checksum checked.
#[derive(Clone, Copy, Debug)]
pub struct Bset<'a> {
    /// Where it starts in the node, in bytes.
    pub offset: usize,
    /// Its version.
    pub version: u32,
    keys: &'a [u8],
}

impl<'a> Bset<'a> {
    /// The keys, in order.
    pub const fn keys(&self) -> KeyIter<'a> {
        KeyIter::new(self.keys)
    }

    /// The keys' bytes.
    pub(crate) const fn key_bytes_slice(&self) -> &'a [u8] {
        self.keys
    }

    /// Bytes of keys.
    pub const fn key_bytes(&self) -> usize {
        self.keys.len()
    }
}

/// The sets of a node, read as the kernel reads them (`bch_btree_node_read_done`).
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// The sets, oldest first.
    pub sets: Vec<Bset<'a>>,
    /// Their common seq.
    pub seq: u64,
    /// Bytes in use, to the end of the last set's last block.
    pub written_bytes: usize,
}

/// Reads the node in `bytes`: as many bytes as the key that points to it says.
///
/// `ptr` is the first pointer of that key, which seeds the checksums. Overlaps between sets and the
/// "short btree key" check are for the caller, who knows the level.
pub fn parse_node(
    bytes: &[u8],
    magic: SetMagic,
    ptr: Ptr,
    block_bytes: usize,
) -> Result<Node<'_>, NodeErrorAt> {
    let (node, error) = salvage_node(bytes, magic, ptr, block_bytes);
    error.map_or(Ok(node), Err)
}

/// The same, with the sets before the first error.
///
/// The kernel drops a node that has any; what a set whose checksum is right says is of use to a
/// checker all the same.
pub(crate) fn salvage_node(
    bytes: &[u8],
    magic: SetMagic,
    ptr: Ptr,
    block_bytes: usize,
) -> (Node<'_>, Option<NodeErrorAt>) {
    let seq = set_seq(bytes, 0).unwrap_or(0);
    let mut node = Node { sets: Vec::new(), seq, written_bytes: 0 };
    let error = if seq == 0 {
        Some(NodeErrorAt { error: NodeError::BadHeader, offset: 0 })
    } else {
        read_sets(bytes, magic, ptr, block_bytes, &mut node).err()
    };
    (node, error)
}

fn read_sets<'a>(
    bytes: &'a [u8],
    magic: SetMagic,
    ptr: Ptr,
    block_bytes: usize,
    node: &mut Node<'a>,
) -> Result<(), NodeErrorAt> {
    let seq = node.seq;
    let mut offset = 0;
    while offset < bytes.len() && set_seq(bytes, offset) == Some(seq) {
        let at = |error| NodeErrorAt { error, offset };
        let rest = bytes.get(offset..).unwrap_or_default();
        let (raw, _) = Raw::ref_from_prefix(rest).map_err(|_| at(NodeError::BadHeader))?;
        let version = raw.version.get();
        if version > BSET_VERSION {
            return Err(at(NodeError::UnsupportedVersion));
        }
        // The kernel counts whole blocks, so that the last block must fit too.
        let end = usize::try_from(raw.keys.get())
            .ok()
            .and_then(|keys| keys.checked_mul(8))
            .and_then(|keys| keys.checked_add(BSET_HEADER_BYTES))
            .ok_or(at(NodeError::BadHeader))?;
        let whole_blocks =
            end.checked_next_multiple_of(block_bytes.max(1)).ok_or(at(NodeError::BadHeader))?;
        let set = rest
            .get(..end)
            .filter(|_| whole_blocks <= rest.len())
            .ok_or(at(NodeError::BadHeader))?;
        if raw.magic.get() != magic.bset() {
            return Err(at(NodeError::BadMagic));
        }
        let covered = set.get(CSUM_START..).unwrap_or_default();
        let expected = match version {
            0 => crc64(covered),
            _ => crc64_seeded(ptr.0, covered),
        };
        if raw.csum.get() != expected {
            return Err(at(NodeError::BadChecksum));
        }
        if offset != 0 && raw.keys.get() == 0 {
            return Err(at(NodeError::EmptySet));
        }
        let keys = set.get(BSET_HEADER_BYTES..).unwrap_or_default();
        node.sets.push(Bset { offset, version, keys });
        offset = offset.saturating_add(whole_blocks);
        node.written_bytes = offset;
    }
    while offset < bytes.len() {
        if set_seq(bytes, offset) == Some(seq) {
            return Err(NodeErrorAt { error: NodeError::Corrupted, offset });
        }
        offset = offset.saturating_add(block_bytes.max(1));
    }
    Ok(())
}

fn set_seq(bytes: &[u8], offset: usize) -> Option<u64> {
    let seq = bytes.get(offset..)?.get(SEQ_RANGE)?;
    Some(u64::from_le_bytes(seq.try_into().ok()?))
}

/// The bytes of one set, without padding to a block.
pub fn encode(magic: SetMagic, ptr: Ptr, seq: u64, keys: &[Bkey]) -> Vec<u8> {
    let mut bytes = vec![0; BSET_HEADER_BYTES];
    for key in keys {
        key.write(&mut bytes);
    }
    let words = (bytes.len() - BSET_HEADER_BYTES) / 8;
    let mut raw = Raw {
        csum: 0.into(),
        magic: magic.bset().into(),
        seq: seq.into(),
        version: BSET_VERSION.into(),
        keys: u32::try_from(words).unwrap_or(u32::MAX).into(),
    };
    bytes.splice(..BSET_HEADER_BYTES, raw.as_bytes().iter().copied());
    raw.csum = crc64_seeded(ptr.0, bytes.get(CSUM_START..).unwrap_or_default()).into();
    bytes.splice(..BSET_HEADER_BYTES, raw.as_bytes().iter().copied());
    bytes
}
