//! Metadata images: everything of a cache device but the data, in a small file.
//!
//! [`create`] streams superblock, journal, prio sets, uuid table and btree nodes into a packed image,
//! which opens as a device of its own (see docs/metadata-image.md). [`restore`] writes them to a device
//! or a sparse file.

mod restore;
mod scrub;

use std::collections::HashSet;
use std::io::{self, Write};

use serde::Serialize;

use crate::cache_set::{
    self, CacheDevice, CacheSet, Journal, LoadedNode, NodePlace, OpenError, ReadError, ReadOptions,
    Visitor,
};
use crate::device::packed::{
    ChunkRole, PACKED_CHUNK_BYTES_MAX, PackedHeader, PackedKind, PackedWriter,
};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::layout::bkey::Ptr;
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};
use crate::units::BucketIndex;

pub use restore::{RestoreError, restore, restore_with_undo};

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The device is none of a cache set.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The superblock cannot be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is not enough memory.
    #[error(transparent)]
    Read(ReadError),
    /// The image cannot be written.
    #[error("the image cannot be written")]
    Write(#[from] io::Error),
}

/// What is in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Bytes of it that the image holds.
    pub metadata_bytes: u64,
    /// Journal buckets.
    pub journal_buckets: u64,
    /// Prio sets.
    pub prio_sets: u64,
    /// Whether the uuid table is there.
    pub uuid_table: bool,
    /// Btree nodes.
    pub btree_nodes: u64,
    /// Structures that could not be read, and are not in the image.
    pub unreadable: u64,
}

/// Where an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageProgress {
    /// The set is being read.
    Reading(cache_set::Progress),
    /// So many bytes of so many are in the image.
    Writing {
        /// Done.
        done: u64,
        /// In all.
        total: u64,
    },
}

#[derive(Clone, Copy)]
enum Part {
    Superblock,
    Journal,
    Prios,
    Uuids { entry_bytes: usize },
    Node { ptr: Ptr },
}

/// A part of the device: where it starts and how long it is, in bytes.
struct Piece {
    offset: u64,
    len: u64,
    part: Part,
}

/// Collects the btree's nodes.
struct Nodes<'p> {
    pieces: Vec<Piece>,
    seen: HashSet<u64>,
    progress: &'p mut dyn FnMut(ImageProgress),
}

impl Visitor for Nodes<'_> {
    fn wants_keys(&self) -> bool {
        false
    }

    fn progress(&mut self, progress: cache_set::Progress) {
        (self.progress)(ImageProgress::Reading(progress));
    }

    fn node(&mut self, place: NodePlace, node: &LoadedNode) {
        let Some(&ptr) = node.key.ptrs().first() else { return };
        let offset = place.sector.bytes();
        if self.seen.insert(offset) {
            let len = node.key.size().bytes();
            self.pieces.push(Piece { offset, len, part: Part::Node { ptr } });
        }
    }
}

/// Writes the metadata of the cache device `device` to `out`; without its UUIDs and labels where
/// `anonymize` says so. What cannot be read is left out.
///
/// Memory: what reading the set takes, about 100 bytes a node, and the largest single structure.
pub fn create<W: Write>(
    device: &dyn ReadDevice,
    anonymize: bool,
    out: W,
    progress: &mut dyn FnMut(ImageProgress),
) -> Result<(ImageReport, W), ImageError> {
    let cache = CacheDevice::open(device)?;
    let geometry = *cache.geometry();
    let magic = cache.magic();
    let bucket_byte = |bucket: BucketIndex| geometry.bucket_to_sector(bucket).bytes();
    let sb_bytes = SB_BYTES as u64;
    let mut nodes = Nodes {
        pieces: vec![Piece { offset: SB_OFFSET_BYTES, len: sb_bytes, part: Part::Superblock }],
        seen: HashSet::new(),
        progress,
    };
    for bucket in cache.journal_buckets() {
        let (offset, len) = (bucket_byte(bucket), geometry.bucket_bytes());
        nodes.pieces.push(Piece { offset, len, part: Part::Journal });
    }
    match CacheSet::read(cache.clone(), &ReadOptions::default(), &mut nodes) {
        Ok(set) => {
            for &bucket in &set.prios.buckets {
                let (offset, len) = (bucket_byte(bucket), geometry.meta_bucket_bytes());
                nodes.pieces.push(Piece { offset, len, part: Part::Prios });
            }
            nodes.pieces.extend(uuid_table(&set.journal, &geometry));
        }
        Err(ReadError::Unsynced | ReadError::NoJournal) => {}
        Err(error) => return Err(ImageError::Read(error)),
    }
    let Nodes { mut pieces, progress, .. } = nodes;
    pieces.sort_by_key(|piece| piece.offset);
    // In a damaged set one place can be named twice.
    let mut end = 0u64;
    pieces.retain(|piece| {
        let free = piece.offset >= end;
        if free {
            end = piece.offset.saturating_add(piece.len);
        }
        free
    });
    let header = PackedHeader {
        kind: PackedKind::Metadata,
        anonymized: anonymize,
        logical_block_bytes: device.info().logical_block_bytes,
        device_bytes: device.info().size_bytes,
    };
    let total = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.len));
    let mut packer = Packer {
        device,
        writer: PackedWriter::new(out, &header)?,
        names: anonymize.then(|| scrub::Names::new(cache.superblock().set_uuid())),
        magic,
        block_bytes: usize::try_from(geometry.block_bytes()).unwrap_or(512).max(512),
        report: ImageReport { device_bytes: header.device_bytes, ..ImageReport::default() },
    };
    let mut done = 0u64;
    for piece in &pieces {
        packer.piece(piece)?;
        done = done.saturating_add(piece.len);
        progress(ImageProgress::Writing { done, total });
    }
    let out = packer.writer.finish()?;
    Ok((packer.report, out))
}

fn uuid_table(journal: &Journal, geometry: &crate::units::Geometry) -> Option<Piece> {
    let newest = &journal.newest()?.jset;
    let key = newest.uuid_bucket();
    let ptr = key.ptrs().first().filter(|_| key.is_valid_btree_ptr(geometry))?;
    let entry_bytes = if newest.version() == 0 { 64 } else { 128 };
    // What a reader takes: no more than a metadata bucket.
    let len = key.size().bytes().min(geometry.meta_bucket_bytes());
    Some(Piece { offset: ptr.offset().bytes(), len, part: Part::Uuids { entry_bytes } })
}

struct Packer<'d, W: Write> {
    device: &'d dyn ReadDevice,
    writer: PackedWriter<W>,
    names: Option<scrub::Names>,
    magic: crate::layout::SetMagic,
    block_bytes: usize,
    report: ImageReport,
}

impl<W: Write> Packer<'_, W> {
    fn add(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.report.metadata_bytes = self.report.metadata_bytes.saturating_add(bytes.len() as u64);
        self.writer.add(offset, bytes, ChunkRole::Contents, 0)
    }

    fn piece(&mut self, piece: &Piece) -> Result<(), ImageError> {
        if matches!(piece.part, Part::Journal) {
            self.report.journal_buckets += 1;
            return self.journal(piece.offset, piece.len);
        }
        let mut bytes = AlignedBuf::zeroed(usize::try_from(piece.len).unwrap_or(0));
        if let Err(error) = self.device.read_at(piece.offset, &mut bytes) {
            if matches!(piece.part, Part::Superblock) {
                return Err(error.into());
            }
            self.report.unreadable += 1;
            return Ok(());
        }
        let names = self.names.as_mut();
        match piece.part {
            Part::Superblock => scrub::superblock(&mut bytes, names),
            Part::Prios => {
                self.report.prio_sets += 1;
                scrub::prio_set(&mut bytes, names);
            }
            Part::Uuids { entry_bytes } => {
                self.report.uuid_table = true;
                scrub::uuids(&mut bytes, entry_bytes, names);
            }
            Part::Node { ptr } => {
                self.report.btree_nodes += 1;
                scrub::node(&mut bytes, ptr, self.magic, self.block_bytes, names);
            }
            Part::Journal => {}
        }
        Ok(self.add(piece.offset, &bytes)?)
    }

    /// A journal bucket, entry by entry: a bucket can be larger than what memory is for.
    fn journal(&mut self, start: u64, len: u64) -> Result<(), ImageError> {
        let mut window = AlignedBuf::zeroed(PACKED_CHUNK_BYTES_MAX);
        let end = start.saturating_add(len);
        let mut offset = start;
        while offset < end {
            let rest = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let take = rest.min(window.len());
            let Some(bytes) = window.get_mut(..take) else { break };
            if self.device.read_at(offset, bytes).is_err() {
                self.report.unreadable += 1;
                return Ok(());
            }
            let mut at = 0;
            while at < take {
                let rest_of_bucket = rest.saturating_sub(at);
                let part = bytes.get_mut(at..).unwrap_or_default();
                if let Some(len) = scrub::entry_bytes(part, self.magic, rest_of_bucket) {
                    let whole = len.next_multiple_of(self.block_bytes);
                    // One that is cut by the window begins the next.
                    let cut = part.len() < crate::layout::jset::JSET_BYTES_MAX;
                    if cut && at > 0 && rest_of_bucket > part.len() {
                        break;
                    }
                    let whole = whole.min(part.len());
                    let part = part.get_mut(..whole).unwrap_or_default();
                    scrub::entry(part, len, self.names.as_mut());
                    at = at.saturating_add(whole.max(1));
                } else {
                    let whole = self.block_bytes.min(part.len());
                    if let Some(block) = part.get_mut(..whole) {
                        block.fill(0);
                    }
                    at = at.saturating_add(whole.max(1));
                }
            }
            let Some(bytes) = window.get(..at.min(take)) else { break };
            self.report.metadata_bytes =
                self.report.metadata_bytes.saturating_add(bytes.len() as u64);
            self.writer.add(offset, bytes, ChunkRole::Contents, 0)?;
            offset = offset.saturating_add(bytes.len() as u64);
        }
        Ok(())
    }
}
