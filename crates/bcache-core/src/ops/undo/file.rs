//! The undo file: what is in it, and reading it (docs/metadata-image.md).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::UndoError;
use super::watch::Watched;
use crate::checksum::crc64;
use crate::device::packed::{ChunkRole, PackedKind, PackedReader};
use crate::device::{DeviceError, DeviceInfo, FileReader, ReadDevice, check_range, open_read};

const MAGIC: [u8; 16] = *b"bcache-undo\r\n\x1a\n\0";
const VERSION: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: [u8; 16],
    version: U32,
    reserved: [u8; 12],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEnd {
    directory_at: U64,
    directory_len: U64,
    directory_crc: U64,
    reserved: [u8; 16],
    magic: [u8; 16],
    crc: U64,
}

pub(super) const HEAD_BYTES: u64 = size_of::<RawHead>() as u64;
const END_BYTES: usize = size_of::<RawEnd>();
const _: () = assert!(HEAD_BYTES == 32 && END_BYTES == 64);

/// The first bytes of an undo file.
pub(super) fn head() -> Vec<u8> {
    RawHead { magic: MAGIC, version: VERSION.into(), reserved: [0; 12] }.as_bytes().to_vec()
}

/// The last bytes of an undo file with the directory `json` at the byte `at`.
pub(super) fn end(at: u64, json: &[u8]) -> Vec<u8> {
    let mut raw = RawEnd {
        directory_at: at.into(),
        directory_len: (json.len() as u64).into(),
        directory_crc: crc64(json).into(),
        reserved: [0; 16],
        magic: MAGIC,
        crc: 0.into(),
    };
    raw.crc = crc_of_head(raw.as_bytes()).into();
    raw.as_bytes().to_vec()
}

fn crc_of_head(bytes: &[u8]) -> u64 {
    crc64(bytes.get(..bytes.len().saturating_sub(8)).unwrap_or_default())
}

/// A device of which something was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// The path it was named by.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    pub(super) watch: Vec<Watched>,
}

/// Where what was saved of a device before a part of the operation is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) device: usize,
    pub(super) at: u64,
    pub(super) len: u64,
}

/// A volume whose data was copied to a backing device. Devices are counted in the file's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copied {
    pub(super) cache: usize,
    pub(super) backing: usize,
    pub(super) slot: u32,
    /// Whether the volume's clean data is no longer cached, too.
    pub(super) clean: bool,
}

/// What the file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    pub(super) command: String,
    pub(super) devices: Vec<SavedDevice>,
    /// In the order of the writes.
    pub(super) segments: Vec<Segment>,
    pub(super) copied: Vec<Copied>,
}

/// A part of the undo file as a device of its own.
pub(super) struct Part {
    file: Arc<FileReader>,
    info: DeviceInfo,
    at: u64,
}

impl ReadDevice for Part {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        check_range(&self.info, offset, buf.len() as u64)?;
        self.file.read_at(self.at.saturating_add(offset), buf)
    }
}

/// An undo file, open.
pub struct UndoFile {
    pub(super) path: PathBuf,
    pub(super) directory: Directory,
    /// In the order of the writes: of which device, and what.
    pub(super) segments: Vec<(usize, PackedReader<Part>)>,
}

impl std::fmt::Debug for UndoFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UndoFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The directory of the file and where it is.
pub(super) fn read_directory(file: &FileReader) -> Result<(Directory, u64), UndoError> {
    let path = || file.info().path.clone();
    let damaged = |what| UndoError::Damaged { path: path(), what };
    let size = file.info().size_bytes;
    let mut head = [0; size_of::<RawHead>()];
    if size < HEAD_BYTES {
        return Err(UndoError::NotUndo { path: path() });
    }
    file.read_at(0, &mut head)?;
    let head = RawHead::ref_from_bytes(&head).map_err(|_| damaged("the header"))?;
    if head.magic != MAGIC {
        return Err(UndoError::NotUndo { path: path() });
    }
    let version = head.version.get();
    if version != VERSION {
        return Err(UndoError::Version { path: path(), version });
    }
    let end_at = size
        .checked_sub(END_BYTES as u64)
        .filter(|&at| at >= HEAD_BYTES)
        .ok_or_else(|| damaged("the end"))?;
    let mut end = [0; END_BYTES];
    file.read_at(end_at, &mut end)?;
    let crc = crc_of_head(&end);
    let end = RawEnd::ref_from_bytes(&end).map_err(|_| damaged("the end"))?;
    if end.magic != MAGIC || end.crc.get() != crc {
        return Err(damaged("the end"));
    }
    let (at, len) = (end.directory_at.get(), end.directory_len.get());
    if at < HEAD_BYTES || at.checked_add(len) != Some(end_at) {
        return Err(damaged("the directory"));
    }
    let mut json = vec![0; usize::try_from(len).map_err(|_| damaged("the directory"))?];
    file.read_at(at, &mut json)?;
    if crc64(&json) != end.directory_crc.get() {
        return Err(damaged("the directory"));
    }
    let directory: Directory =
        serde_json::from_slice(&json).map_err(|_| damaged("the directory"))?;
    let count = directory.devices.len();
    let within = |it: &Segment| {
        it.at >= HEAD_BYTES && it.at.checked_add(it.len).is_some_and(|end| end <= at)
    };
    let sound = directory.segments.iter().all(|it| it.device < count && within(it))
        && directory.copied.iter().all(|it| it.cache < count && it.backing < count);
    if sound { Ok((directory, at)) } else { Err(damaged("the directory")) }
}

impl UndoFile {
    /// Opens the file and reads its directory and indexes.
    pub fn open(path: &Path) -> Result<Self, UndoError> {
        let file = Arc::new(open_read(path)?);
        let (directory, _) = read_directory(&file)?;
        let mut segments = Vec::new();
        for segment in &directory.segments {
            let info = DeviceInfo { size_bytes: segment.len, ..file.info().clone() };
            let part = Part { file: Arc::clone(&file), info, at: segment.at };
            let image = PackedReader::open(part)
                .map_err(|source| UndoError::Image { path: path.to_owned(), source })?;
            let size = directory.devices.get(segment.device).map(|it| it.size_bytes);
            let damaged = |what| UndoError::Damaged { path: path.to_owned(), what };
            if image.header().kind != PackedKind::Undo || size != Some(image.header().device_bytes)
            {
                return Err(damaged("the kind of a part"));
            }
            if !is_paired(&image) {
                return Err(damaged("the order of a part"));
            }
            segments.push((segment.device, image));
        }
        Ok(Self { path: path.to_owned(), directory, segments })
    }

    /// The command that saved it.
    pub fn command(&self) -> &str {
        &self.directory.command
    }

    /// The devices it is of.
    pub fn devices(&self) -> &[SavedDevice] {
        &self.directory.devices
    }
}

/// Whether the chunks are pairs of before and after, in the order of the flushes.
fn is_paired(image: &PackedReader<Part>) -> bool {
    let mut group = 0;
    image.chunks().chunks(2).all(|pair| {
        let [before, after] = pair else { return false };
        let rising = before.group >= group;
        group = before.group;
        rising
            && before.role == ChunkRole::Before
            && after.role == ChunkRole::After
            && (before.offset, before.len, before.group) == (after.offset, after.len, after.group)
    })
}
