//! Packed images: parts of a device in a file, compressed and checksummed (docs/metadata-image.md).
//!
//! A metadata image and the file of `--undo` are such files. They are written as a stream and read
//! at any place. [`PackedReader`] is a device that holds the parts alone: what is not in the image
//! is [`DeviceError::Absent`], never zeroes.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DeviceError, DeviceInfo, DeviceKind, ReadDevice, check_range};
use crate::checksum::crc64;
use crate::units::{SECTOR_BYTES, Sectors};

/// First bytes of a packed image.
pub(crate) const PACKED_MAGIC: [u8; 16] = *b"bcache-image\r\n\x1a\n";

const TRAILER_MAGIC: [u8; 16] = *b"bcache-index\r\n\x1a\n";
const VERSION: u32 = 1;
const LEVEL: i32 = 3;

/// Most bytes of a device in one chunk: what a reader takes at once.
pub(crate) const PACKED_CHUNK_BYTES_MAX: usize = 1 << 20;

/// What a packed image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedKind {
    /// The metadata of a cache device.
    Metadata,
    /// What a plan overwrites, and with what.
    Undo,
}

impl PackedKind {
    const fn to_raw(self) -> u32 {
        match self {
            Self::Metadata => 1,
            Self::Undo => 2,
        }
    }

    const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Metadata),
            2 => Some(Self::Undo),
            _ => None,
        }
    }
}

/// What a packed image says of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedHeader {
    /// What the image is for.
    pub kind: PackedKind,
    /// Whether UUIDs and labels were replaced.
    pub anonymized: bool,
    /// Logical block of the device in bytes.
    pub logical_block_bytes: u32,
    /// Size of the device in bytes.
    pub device_bytes: u64,
}

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkRole {
    /// What the device holds.
    Contents,
    /// What it held before a step of a plan.
    Before,
    /// What the step makes of it.
    After,
}

impl ChunkRole {
    const fn to_raw(self) -> u32 {
        match self {
            Self::Contents => 0,
            Self::Before => 1,
            Self::After => 2,
        }
    }

    const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Contents),
            1 => Some(Self::Before),
            2 => Some(Self::After),
            _ => None,
        }
    }
}

/// A part of the device in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it belongs, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
    /// What it is.
    pub role: ChunkRole,
    /// Of a plan: how many flushes come before its step.
    pub group: u32,
    at: u64,
    stored: u32,
    crc: u64,
}

impl Chunk {
    const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len as u64)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 16],
    version: U32,
    kind: U32,
    flags: U32,
    logical_block_bytes: U32,
    device_bytes: U64,
    reserved: [u8; 80],
    crc: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawChunk {
    offset: U64,
    len: U32,
    stored: U32,
    at: U64,
    crc: U64,
    role: U32,
    group: U32,
    reserved: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTrailer {
    magic: [u8; 16],
    index_at: U64,
    chunks: U64,
    index_crc: U64,
    reserved: [u8; 16],
    crc: U64,
}

const HEADER_BYTES: usize = size_of::<RawHeader>();
const CHUNK_BYTES: usize = size_of::<RawChunk>();
const TRAILER_BYTES: usize = size_of::<RawTrailer>();
const _: () = assert!(HEADER_BYTES == 128 && CHUNK_BYTES == 48 && TRAILER_BYTES == 64);

/// CRC of all but the last eight bytes.
fn crc_of_head(bytes: &[u8]) -> u64 {
    crc64(bytes.get(..bytes.len().saturating_sub(8)).unwrap_or_default())
}

/// Why a file is no packed image, or cannot be read as one.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// It is something else.
    #[error("no packed image")]
    NotPacked,
    /// A later version made it.
    #[error("a packed image of version {version}, which is not known")]
    Version {
        /// Its version.
        version: u32,
    },
    /// A part of it is missing or damaged.
    #[error("the packed image is damaged or cut short: {what}")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Writes a packed image to a stream.
pub struct PackedWriter<W: Write> {
    out: W,
    at: u64,
    index: Vec<u8>,
    chunks: u64,
    packer: zstd::bulk::Compressor<'static>,
}

impl<W: Write> PackedWriter<W> {
    /// Writes the header.
    pub fn new(mut out: W, header: &PackedHeader) -> io::Result<Self> {
        let mut raw = RawHeader {
            magic: PACKED_MAGIC,
            version: VERSION.into(),
            kind: header.kind.to_raw().into(),
            flags: u32::from(header.anonymized).into(),
            logical_block_bytes: header.logical_block_bytes.into(),
            device_bytes: header.device_bytes.into(),
            reserved: [0; 80],
            crc: 0.into(),
        };
        raw.crc = crc_of_head(raw.as_bytes()).into();
        out.write_all(raw.as_bytes())?;
        let packer = zstd::bulk::Compressor::new(LEVEL)?;
        Ok(Self { out, at: HEADER_BYTES as u64, index: Vec::new(), chunks: 0, packer })
    }

    /// Adds `data`, whole sectors that belong at the byte `offset`.
    pub fn add(&mut self, offset: u64, data: &[u8], role: ChunkRole, group: u32) -> io::Result<()> {
        let mut offset = offset;
        for piece in data.chunks(PACKED_CHUNK_BYTES_MAX) {
            let packed = self.packer.compress(piece)?;
            let len = |bytes: &[u8]| U32::from(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            let raw = RawChunk {
                offset: offset.into(),
                len: len(piece),
                stored: len(&packed),
                at: self.at.into(),
                crc: crc64(piece).into(),
                role: role.to_raw().into(),
                group: group.into(),
                reserved: 0.into(),
            };
            self.out.write_all(&packed)?;
            self.at = self.at.saturating_add(packed.len() as u64);
            self.index.extend_from_slice(raw.as_bytes());
            self.chunks += 1;
            offset = offset.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Bytes of the image so far: where the next chunk's frame begins.
    pub(crate) const fn position(&self) -> u64 {
        self.at
    }

    /// Writes the index. An image without it is none.
    pub fn finish(mut self) -> io::Result<W> {
        let mut raw = RawTrailer {
            magic: TRAILER_MAGIC,
            index_at: self.at.into(),
            chunks: self.chunks.into(),
            index_crc: crc64(&self.index).into(),
            reserved: [0; 16],
            crc: 0.into(),
        };
        raw.crc = crc_of_head(raw.as_bytes()).into();
        self.out.write_all(&self.index)?;
        self.out.write_all(raw.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// The contents of the chunk that was read last, and its number.
type Unpacked = Option<(usize, Arc<Vec<u8>>)>;

/// A packed image as the device whose parts it holds.
pub struct PackedReader<D> {
    raw: D,
    header: PackedHeader,
    info: DeviceInfo,
    chunks: Vec<Chunk>,
    last: Mutex<Unpacked>,
}

impl<D> std::fmt::Debug for PackedReader<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedReader")
            .field("header", &self.header)
            .field("chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

/// Whether a file begins as a packed image does.
pub(crate) fn is_packed(raw: &dyn ReadDevice) -> bool {
    let mut magic = [0; 16];
    raw.info().size_bytes >= HEADER_BYTES as u64
        && raw.read_at(0, &mut magic).is_ok()
        && magic == PACKED_MAGIC
}

impl<D: ReadDevice> PackedReader<D> {
    /// Reads header and index. The index takes 56 bytes a chunk, at most as much as the file is long.
    pub fn open(raw: D) -> Result<Self, PackedError> {
        let damaged = |what| PackedError::Damaged { what };
        if !is_packed(&raw) {
            return Err(PackedError::NotPacked);
        }
        let mut bytes = [0; HEADER_BYTES];
        raw.read_at(0, &mut bytes)?;
        let head = RawHeader::ref_from_bytes(&bytes).map_err(|_| damaged("the header"))?;
        if head.crc.get() != crc_of_head(&bytes) {
            return Err(damaged("the header"));
        }
        if head.version.get() != VERSION {
            return Err(PackedError::Version { version: head.version.get() });
        }
        let header = PackedHeader {
            kind: PackedKind::from_raw(head.kind.get()).ok_or(damaged("the kind"))?,
            anonymized: head.flags.get() & 1 != 0,
            logical_block_bytes: head.logical_block_bytes.get(),
            device_bytes: head.device_bytes.get(),
        };
        let block = header.logical_block_bytes;
        if !block.is_power_of_two() || !(512..=1 << 16).contains(&block) {
            return Err(damaged("the logical block"));
        }
        let chunks = read_index(&raw, &header)?;
        let info = DeviceInfo {
            kind: DeviceKind::Image,
            size_bytes: header.device_bytes,
            logical_block_bytes: header.logical_block_bytes,
            physical_block_bytes: header.logical_block_bytes,
            disk_size: Sectors::from_bytes_floor(header.device_bytes),
            discard: false,
            zoned: false,
            read_only: true,
            is_bcache_volume: false,
            ..raw.info().clone()
        };
        Ok(Self { raw, header, info, chunks, last: Mutex::new(None) })
    }

    /// What the image says of the device.
    pub const fn header(&self) -> &PackedHeader {
        &self.header
    }

    /// The parts, in the order in which they were added; of metadata, in the order of their places.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The contents of a chunk by its position in [`Self::chunks`].
    pub fn contents(&self, index: usize) -> Result<Arc<Vec<u8>>, PackedError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = last.as_ref().filter(|(number, _)| *number == index) {
            return Ok(Arc::clone(bytes));
        }
        let damaged = PackedError::Damaged { what: "a chunk" };
        let Some(chunk) = self.chunks.get(index) else { return Err(damaged) };
        let len = usize::try_from(chunk.len).unwrap_or(0);
        let mut packed = vec![0; usize::try_from(chunk.stored).unwrap_or(0)];
        self.raw.read_at(chunk.at, &mut packed)?;
        let bytes = zstd::bulk::decompress(&packed, len)
            .ok()
            .filter(|bytes| bytes.len() == len && crc64(bytes) == chunk.crc)
            .ok_or(damaged)?;
        let bytes = Arc::new(bytes);
        *last = Some((index, Arc::clone(&bytes)));
        Ok(bytes)
    }
}

fn read_index(raw: &dyn ReadDevice, header: &PackedHeader) -> Result<Vec<Chunk>, PackedError> {
    let damaged = |what| PackedError::Damaged { what };
    let size = raw.info().size_bytes;
    let trailer_at = size
        .checked_sub(TRAILER_BYTES as u64)
        .filter(|&at| at >= HEADER_BYTES as u64)
        .ok_or(damaged("the trailer"))?;
    let mut bytes = [0; TRAILER_BYTES];
    raw.read_at(trailer_at, &mut bytes)?;
    let trailer = RawTrailer::ref_from_bytes(&bytes).map_err(|_| damaged("the trailer"))?;
    if trailer.magic != TRAILER_MAGIC || trailer.crc.get() != crc_of_head(&bytes) {
        return Err(damaged("the trailer"));
    }
    let (index_at, count) = (trailer.index_at.get(), trailer.chunks.get());
    let len = count.checked_mul(CHUNK_BYTES as u64).ok_or(damaged("the index"))?;
    if index_at < HEADER_BYTES as u64 || index_at.checked_add(len) != Some(trailer_at) {
        return Err(damaged("the index"));
    }
    let mut index = vec![0; usize::try_from(len).map_err(|_| damaged("the index"))?];
    raw.read_at(index_at, &mut index)?;
    if crc64(&index) != trailer.index_crc.get() {
        return Err(damaged("the index"));
    }
    let mut chunks: Vec<Chunk> = Vec::with_capacity(index.len() / CHUNK_BYTES);
    for bytes in index.chunks_exact(CHUNK_BYTES) {
        let raw = RawChunk::ref_from_bytes(bytes).map_err(|_| damaged("the index"))?;
        let chunk = Chunk {
            offset: raw.offset.get(),
            len: raw.len.get(),
            role: ChunkRole::from_raw(raw.role.get()).ok_or(damaged("the index"))?,
            group: raw.group.get(),
            at: raw.at.get(),
            stored: raw.stored.get(),
            crc: raw.crc.get(),
        };
        let len = u64::from(chunk.len);
        let within = chunk.offset.checked_add(len).is_some_and(|end| end <= header.device_bytes)
            && chunk.at >= HEADER_BYTES as u64
            && chunk.at.checked_add(u64::from(chunk.stored)).is_some_and(|end| end <= index_at);
        let whole = len > 0 && len % SECTOR_BYTES == 0 && chunk.offset % SECTOR_BYTES == 0;
        let fits = len <= PACKED_CHUNK_BYTES_MAX as u64;
        let ordered = header.kind == PackedKind::Undo
            || chunks.last().is_none_or(|last| last.end() <= chunk.offset);
        let role_fits =
            (chunk.role == ChunkRole::Contents) == (header.kind == PackedKind::Metadata);
        if !(within && whole && fits && ordered && role_fits) {
            return Err(damaged("the index"));
        }
        chunks.push(chunk);
    }
    Ok(chunks)
}

impl<D: ReadDevice> ReadDevice for PackedReader<D> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        check_range(&self.info, offset, buf.len() as u64)?;
        let absent = |offset, len: usize| DeviceError::Absent {
            path: self.info.path.clone(),
            offset,
            len: len as u64,
        };
        if self.header.kind != PackedKind::Metadata {
            return Err(absent(offset, buf.len()));
        }
        let (mut at, mut rest) = (offset, buf);
        let mut index = self.chunks.partition_point(|chunk| chunk.end() <= at);
        while !rest.is_empty() {
            let chunk = self.chunks.get(index).filter(|chunk| chunk.offset <= at);
            let Some(chunk) = chunk else { return Err(absent(at, rest.len())) };
            let bytes = self.contents(index).map_err(|error| match error {
                PackedError::Device(error) => error,
                other => DeviceError::Io {
                    path: self.info.path.clone(),
                    operation: super::Operation::Read,
                    offset: at,
                    len: rest.len() as u64,
                    source: io::Error::new(io::ErrorKind::InvalidData, other),
                },
            })?;
            let skip = usize::try_from(at - chunk.offset).unwrap_or(usize::MAX);
            let from = bytes.get(skip..).unwrap_or_default();
            let len = from.len().min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            part.copy_from_slice(from.get(..len).unwrap_or_default());
            rest = after;
            at = at.saturating_add(len as u64);
            index += 1;
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "testkit"))]
mod tests {
    use super::*;
    use crate::device::testkit::MemoryDevice;

    fn header(kind: PackedKind) -> PackedHeader {
        PackedHeader { kind, anonymized: false, logical_block_bytes: 512, device_bytes: 1 << 30 }
    }

    fn sample() -> Vec<u8> {
        let mut writer = PackedWriter::new(Vec::new(), &header(PackedKind::Metadata)).unwrap();
        writer.add(4096, &[7; 4096], ChunkRole::Contents, 0).unwrap();
        writer.add(8192, &[8; 512], ChunkRole::Contents, 0).unwrap();
        writer.add(1 << 20, &vec![9; (2 << 20) + 512], ChunkRole::Contents, 0).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_in_it_is_read_and_the_rest_is_absent() {
        let image = PackedReader::open(MemoryDevice::from_bytes(&sample())).unwrap();
        assert_eq!(image.info().size_bytes, 1 << 30);
        let mut bytes = [0; 1024];
        image.read_at(7680, &mut bytes).unwrap();
        assert_eq!((bytes[511], bytes[512]), (7, 8));
        let mut bytes = vec![0; 2 << 20];
        image.read_at((1 << 20) + 512, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 9));
        for (offset, len) in [(0, 512), (3584, 1024), (8192, 1024), (3 << 20, 1024), (1 << 29, 1)] {
            let error = image.read_at(offset, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, DeviceError::Absent { .. }), "{offset}: {error}");
        }
        let error = image.read_at((1 << 30) - 1, &mut [0; 2]).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfRange { .. }));
    }

    /// Any flipped byte is noticed when what it belongs to is read, and nothing wrong is given out.
    #[test]
    fn damage_is_noticed() {
        let whole = sample();
        let read_all = |bytes: &[u8]| -> Option<Vec<u8>> {
            let image = PackedReader::open(MemoryDevice::from_bytes(bytes)).ok()?;
            let mut all = Vec::new();
            for index in 0..image.chunks().len() {
                all.extend_from_slice(&image.contents(index).ok()?);
            }
            Some(all)
        };
        let good = read_all(&whole).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            if let Some(all) = read_all(&bytes) {
                assert!(all == good, "byte {at}");
            }
        }
        for len in 0..whole.len() {
            assert!(PackedReader::open(MemoryDevice::from_bytes(&whole[..len])).is_err());
        }
    }
}
