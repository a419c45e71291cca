//! Comparing the devices, and putting back what was there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::copied;
use super::file::{Part, UndoFile};
use super::log::CELL_BYTES;
use super::{UndoError, watch};
use crate::device::packed::{Chunk, ChunkRole, PackedReader};
use crate::device::{AlignedBuf, BlockDevice, DeviceError, DeviceInfo, ReadDevice, overlap};
use crate::units::SECTOR_BYTES;

/// What a check found: what undoing has to put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UndoCheck {
    /// Bytes that are not as they were, for each device.
    pub differing_bytes: Vec<u64>,
}

impl UndoCheck {
    /// Whether everything is as it was.
    pub fn is_nothing(&self) -> bool {
        self.differing_bytes.iter().all(|bytes| *bytes == 0)
    }
}

/// What a place held before a step or after it; in order, those of all steps.
struct Version {
    offset: u64,
    bytes: Arc<Vec<u8>>,
}

impl Version {
    fn sector(&self, at: u64) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.offset)?).ok()?;
        self.bytes.get(from..from.checked_add(SECTOR_BYTES_USIZE)?)
    }
}

const SECTOR_BYTES_USIZE: usize = 512;
const _: () = assert!(SECTOR_BYTES_USIZE as u64 == SECTOR_BYTES);

/// Positions of the chunks of one device: by cell, in the order of the writes.
type Cells = BTreeMap<u64, Vec<(usize, usize)>>;

impl UndoFile {
    fn cells(&self, device: usize) -> Cells {
        let mut cells = Cells::new();
        for (number, (_, image)) in
            self.segments.iter().enumerate().filter(|(_, it)| it.0 == device)
        {
            for (index, chunk) in image.chunks().iter().enumerate() {
                cells.entry(chunk.offset / CELL_BYTES).or_default().push((number, index));
            }
        }
        cells
    }

    fn contents(&self, segment: usize, index: usize) -> Result<Arc<Vec<u8>>, UndoError> {
        let damaged = UndoError::Damaged { path: self.path.clone(), what: "a part" };
        let (_, image) = self.segments.get(segment).ok_or(damaged)?;
        self.contents_of(image, index)
    }

    fn contents_of(
        &self,
        image: &PackedReader<Part>,
        index: usize,
    ) -> Result<Arc<Vec<u8>>, UndoError> {
        image.contents(index).map_err(|source| UndoError::Image { path: self.path.clone(), source })
    }

    fn versions(&self, places: &[(usize, usize)]) -> Result<Vec<Version>, UndoError> {
        let mut versions = Vec::with_capacity(places.len());
        for &(segment, index) in places {
            let chunk = self.segments.get(segment).and_then(|(_, it)| it.chunks().get(index));
            let Some(chunk) = chunk else { continue };
            let bytes = self.contents(segment, index)?;
            versions.push(Version { offset: chunk.offset, bytes });
        }
        Ok(versions)
    }

    /// Compares `devices`, which are those of [`Self::devices`] in their order, with what was saved, and
    /// reads all of the file. Undoing is safe where this finds no objection.
    ///
    /// `progress` is told of bytes done and bytes in all.
    pub fn check(
        &self,
        devices: &[&dyn ReadDevice],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<UndoCheck, UndoError> {
        let (expected, found) = (self.directory.devices.len(), devices.len());
        if expected != found {
            return Err(UndoError::Devices { expected, found });
        }
        let total = self.total_bytes();
        let mut done = 0u64;
        let mut check = UndoCheck::default();
        for (number, (saved, device)) in self.directory.devices.iter().zip(devices).enumerate() {
            let path = || device.info().path.clone();
            let (expected, found) = (saved.size_bytes, device.info().size_bytes);
            if expected != found {
                return Err(UndoError::OtherSize { path: path(), expected, found });
            }
            let mut differing = 0u64;
            for places in self.cells(number).values() {
                let versions = self.versions(places)?;
                differing = differing.saturating_add(compare(*device, &versions)?);
                done = done.saturating_add(versions.iter().map(|it| it.bytes.len() as u64).sum());
                progress(done, total);
            }
            if let Some(offset) = watch::first_change(&saved.watch, *device)? {
                return Err(UndoError::Changed { path: path(), offset });
            }
            check.differing_bytes.push(differing);
        }
        for copied in &self.directory.copied {
            let differs = check.differing_bytes.get(copied.cache).is_some_and(|bytes| *bytes > 0);
            let (Some(cache), Some(backing)) =
                (devices.get(copied.cache), devices.get(copied.backing))
            else {
                continue;
            };
            // A cache that is as it was hides nothing that it did not hide before.
            if differs {
                let undone = Undone { file: self, device: *cache, cells: self.cells(copied.cache) };
                copied::compare(&undone, *backing, copied)?;
            }
        }
        Ok(check)
    }

    fn total_bytes(&self) -> u64 {
        let chunks = self.segments.iter().flat_map(|(_, image)| image.chunks());
        chunks.fold(0, |sum, chunk| sum.saturating_add(chunk.len.into()))
    }

    /// Puts back what was saved on `devices`, claimed by this process since [`Self::check`] found no
    /// objection; and reads it back. Where it fails it can be repeated.
    ///
    /// `progress` is told of bytes done and bytes in all.
    pub fn put_back(
        &self,
        devices: &[&dyn BlockDevice],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), UndoError> {
        let total = self.total_bytes();
        let mut done = 0u64;
        for (number, image) in self.segments.iter().rev() {
            let Some(device) = devices.get(*number) else { continue };
            let mut group = None;
            for (index, chunk) in image.chunks().iter().enumerate().rev() {
                if chunk.role != ChunkRole::Before {
                    continue;
                }
                if group.is_some_and(|group| group != chunk.group) {
                    device.flush()?;
                }
                group = Some(chunk.group);
                let (before, after) =
                    (self.contents_of(image, index)?, self.contents_of(image, index + 1)?);
                change(*device, chunk, &before, &after)?;
                done = done.saturating_add(u64::from(chunk.len).saturating_mul(2));
                progress(done, total);
            }
            device.flush()?;
        }
        for (number, device) in devices.iter().enumerate() {
            for places in self.cells(number).values() {
                let versions = self.versions(places)?;
                if compare(device, &versions)? > 0 {
                    let offset = versions.first().map_or(0, |it| it.offset);
                    let path = device.info().path.clone();
                    return Err(UndoError::Differs { path, offset });
                }
            }
        }
        Ok(())
    }
}

/// Bytes in one cell that are not as they were at first; refused where they are nothing that is known.
fn compare(device: &dyn ReadDevice, versions: &[Version]) -> Result<u64, UndoError> {
    let ends = versions.iter().map(|it| it.offset.saturating_add(it.bytes.len() as u64));
    let (Some(start), Some(end)) = (versions.iter().map(|it| it.offset).min(), ends.max()) else {
        return Ok(0);
    };
    let mut found = AlignedBuf::zeroed(usize::try_from(end - start).unwrap_or(0));
    device.read_at(start, &mut found)?;
    let mut differing = 0u64;
    for (at, sector) in (start..).step_by(SECTOR_BYTES_USIZE).zip(found.chunks(SECTOR_BYTES_USIZE))
    {
        let mut known = versions.iter().filter_map(|version| version.sector(at));
        // What no step wrote lies between what some wrote.
        let Some(first) = known.next() else { continue };
        if first == sector {
            continue;
        }
        differing = differing.saturating_add(sector.len() as u64);
        if !known.any(|bytes| bytes == sector) {
            return Err(UndoError::Changed { path: device.info().path.clone(), offset: at });
        }
    }
    Ok(differing)
}

/// Undoes one step: sectors that are as the step left them become what they were before it. Those that
/// are not were not written, or are undone already.
fn change(
    device: &dyn BlockDevice,
    chunk: &Chunk,
    before: &[u8],
    after: &[u8],
) -> Result<(), DeviceError> {
    let mut now = AlignedBuf::zeroed(before.len());
    device.read_at(chunk.offset, &mut now)?;
    let mut wanted = AlignedBuf::copy_of(&now);
    let pairs = before.chunks(SECTOR_BYTES_USIZE).zip(after.chunks(SECTOR_BYTES_USIZE));
    for (sector, (before, after)) in wanted.chunks_mut(SECTOR_BYTES_USIZE).zip(pairs) {
        if *sector == *after {
            sector.copy_from_slice(before);
        }
    }
    let block = usize::try_from(device.info().logical_block_bytes).unwrap_or(512).max(512);
    let differs: Vec<bool> =
        now.chunks(block).zip(wanted.chunks(block)).map(|(now, wanted)| now != wanted).collect();
    let first = differs.iter().position(|it| *it);
    let last = differs.iter().rposition(|it| *it);
    // In one write, as the step was: a superblock of which half is old is none.
    if let (Some(first), Some(last)) = (first, last) {
        let (from, to) = (first * block, ((last + 1) * block).min(wanted.len()));
        let offset = chunk.offset.saturating_add(from as u64);
        let bytes = wanted.get(from..to).unwrap_or_default();
        device.write_at(offset, &AlignedBuf::copy_of(bytes))?;
    }
    Ok(())
}

/// A device as it was before the operation.
pub(super) struct Undone<'a> {
    file: &'a UndoFile,
    device: &'a dyn ReadDevice,
    cells: Cells,
}

impl ReadDevice for Undone<'_> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read_at(offset, buf)?;
        let end = offset.saturating_add(buf.len() as u64);
        let cells = offset / CELL_BYTES..=end / CELL_BYTES;
        // The first step over a place comes last.
        for &(segment, index) in self.cells.range(cells).flat_map(|(_, it)| it.iter().rev()) {
            let Some((_, image)) = self.file.segments.get(segment) else { continue };
            let Some(chunk) = image.chunks().get(index) else { continue };
            if chunk.role != ChunkRole::Before {
                continue;
            }
            let within = overlap((offset, buf.len()), (chunk.offset, chunk.len.into()));
            let Some((target, source)) = within else { continue };
            let bytes = image.contents(index).map_err(|error| DeviceError::Io {
                path: self.file.path.clone(),
                operation: crate::device::Operation::Read,
                offset: chunk.offset,
                len: chunk.len.into(),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
            })?;
            if let (Some(target), Some(source)) = (buf.get_mut(target), bytes.get(source)) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}
