//! Saving what will be overwritten.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::file::{Copied, Directory, HEAD_BYTES, SavedDevice, Segment, end, head};
use super::{SaveError, Watch, watch};
use crate::device::packed::{ChunkRole, PackedHeader, PackedKind, PackedWriter};
use crate::device::{AlignedBuf, ReadDevice, overlap};
use crate::ops::plan::Step;
use crate::ops::verify::Ranges;

/// A step is saved in pieces that do not reach over a multiple of this.
pub(super) const CELL_BYTES: u64 = 64 << 10;

/// Tells the steps of an operation on one device in their order.
pub type StepSource<'a> = &'a dyn Fn(StepSink<'_>) -> Result<(), SaveError>;

/// What is to be saved of one device.
pub struct Saving<'a> {
    /// The device.
    pub device: &'a dyn ReadDevice,
    /// What else of it must not change.
    pub watch: Watch,
    /// What will be written to it.
    pub steps: StepSource<'a>,
}

/// Takes one step after the other.
pub type StepSink<'a> = &'a mut dyn FnMut(&Step) -> Result<(), SaveError>;

/// A source of the steps of plans.
pub fn steps_of<'a>(
    steps: impl Fn() -> Box<dyn Iterator<Item = &'a Step> + 'a>,
) -> impl Fn(StepSink<'_>) -> Result<(), SaveError> {
    move |sink| steps().try_for_each(sink)
}

/// The file that an operation saves to.
#[derive(Debug)]
pub struct UndoLog {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    directory: Directory,
    /// What is written of each device.
    written: Vec<Ranges>,
    /// Where the directory of the file is; 0 while there is no file.
    directory_at: u64,
}

impl UndoLog {
    /// A log that will be the file `path`, which must not exist. `command` is told when it is undone.
    pub fn new(path: &Path, command: &str) -> Result<Self, SaveError> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(SaveError::Exists { path: path.to_owned() });
        }
        let directory = Directory { command: command.to_owned(), ..Directory::default() };
        let state = Mutex::new(State { directory, ..State::default() });
        Ok(Self { path: path.to_owned(), state })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Saves what the steps of `parts` overwrite, in this order, and makes it durable. Only then may the
    /// first of them be made. Where it fails, the file is as it was.
    pub fn save(&self, parts: &[Saving<'_>]) -> Result<(), SaveError> {
        self.save_with(parts, &[])
    }

    /// The same, where dirty data of the volumes of `slots` is copied from the first device to others:
    /// volume, position of its backing device in `parts`, and whether its clean data leaves the cache.
    pub(in crate::ops) fn save_with(
        &self,
        parts: &[Saving<'_>],
        slots: &[(u32, usize, bool)],
    ) -> Result<(), SaveError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State {
            directory: state.directory.clone(),
            written: state.written.clone(),
            directory_at: state.directory_at,
        };
        let mut partial = self.path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => SaveError::Exists { path: partial.clone() },
                _ => self.failed(source),
            })?;
        let saved = self
            .fill(&mut next, &file, parts, slots)
            .and_then(|()| self.put_in_place(&file, &partial).map_err(|error| self.failed(error)));
        if let Err(error) = saved {
            // The error at hand says more than a failure to clean up would.
            let _ = fs::remove_file(&partial);
            return Err(error);
        }
        *state = next;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> SaveError {
        SaveError::Write { path: self.path.clone(), source }
    }

    fn put_in_place(&self, file: &File, partial: &Path) -> io::Result<()> {
        file.sync_all()?;
        fs::rename(partial, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn fill(
        &self,
        state: &mut State,
        mut file: &File,
        parts: &[Saving<'_>],
        slots: &[(u32, usize, bool)],
    ) -> Result<(), SaveError> {
        let failed = |error| self.failed(error);
        let mut at = HEAD_BYTES;
        if state.directory_at == 0 {
            file.write_all(&head()).map_err(failed)?;
        } else {
            at = state.directory_at;
            let old = File::open(&self.path).map_err(failed)?;
            io::copy(&mut old.take(at), &mut file).map_err(failed)?;
        }
        let mut devices = Vec::new();
        for part in parts {
            let info = part.device.info();
            // It may be undone from another folder.
            let path = std::path::absolute(&info.path).unwrap_or_else(|_| info.path.clone());
            let known = state.directory.devices.iter().position(|it| it.path == path);
            let number = known.unwrap_or_else(|| {
                let size_bytes = info.size_bytes;
                state.directory.devices.push(SavedDevice { path, size_bytes, watch: Vec::new() });
                state.written.push(Ranges::default());
                state.written.len() - 1
            });
            devices.push(number);
            let Some(written) = state.written.get_mut(number) else { continue };
            let len = segment(file, at, part, written, &self.path)?;
            state.directory.segments.push(Segment { device: number, at, len });
            at = at.saturating_add(len);
            // Also what an earlier part of the operation wrote here: it is compared sector by sector.
            let seen = watch::look(&part.watch, part.device, written)?;
            if let Some(device) = state.directory.devices.get_mut(number) {
                device.watch = seen;
            }
        }
        let at_position = |position: usize| devices.get(position).copied().unwrap_or_default();
        for &(slot, position, clean) in slots {
            let (cache, backing) = (at_position(0), at_position(position));
            let same = |it: &&mut Copied| (it.cache, it.backing, it.slot) == (cache, backing, slot);
            match state.directory.copied.iter_mut().find(same) {
                Some(known) => known.clean |= clean,
                None => state.directory.copied.push(Copied { cache, backing, slot, clean }),
            }
        }
        let json = serde_json::to_vec(&state.directory).map_err(|error| failed(error.into()))?;
        file.write_all(&json).map_err(failed)?;
        file.write_all(&end(at, &json)).map_err(failed)?;
        state.directory_at = at;
        Ok(())
    }
}

/// Writes what is saved of one device at the end of `file`, which is its byte `at`; how long it is.
fn segment(
    mut file: &File,
    at: u64,
    part: &Saving<'_>,
    written: &mut Ranges,
    path: &Path,
) -> Result<u64, SaveError> {
    let failed = |source| SaveError::Write { path: path.to_owned(), source };
    let info = part.device.info();
    let header = PackedHeader {
        kind: PackedKind::Undo,
        anonymized: false,
        logical_block_bytes: info.logical_block_bytes,
        device_bytes: info.size_bytes,
    };
    let mut saver = Saver {
        device: part.device,
        file,
        at,
        writer: PackedWriter::new(file, &header).map_err(failed)?,
        cells: BTreeMap::new(),
        group: 0,
    };
    (part.steps)(&mut |step| match step {
        Step::Flush => {
            saver.group = saver.group.saturating_add(1);
            Ok(())
        }
        Step::Discard { .. } => Err(SaveError::Discards),
        Step::Write { offset, data, .. } => {
            saver.step(*offset, data.len() as u64, Some(data), path)
        }
        Step::Zero { offset, len, .. } => saver.step(*offset, *len, None, path),
    })?;
    for pieces in saver.cells.values() {
        for piece in pieces {
            written.insert(piece.offset, piece.offset.saturating_add(piece.len as u64));
        }
    }
    saver.writer.finish().map_err(failed)?;
    let end = file.stream_position().map_err(failed)?;
    Ok(end.saturating_sub(at))
}

/// A piece that was saved, and where its contents after the step are in the file.
struct Piece {
    offset: u64,
    len: usize,
    at: u64,
    stored: usize,
}

struct Saver<'a, 'f> {
    device: &'a dyn ReadDevice,
    file: &'f File,
    at: u64,
    writer: PackedWriter<&'f File>,
    cells: BTreeMap<u64, Vec<Piece>>,
    group: u32,
}

impl Saver<'_, '_> {
    fn step(
        &mut self,
        offset: u64,
        len: u64,
        data: Option<&[u8]>,
        path: &Path,
    ) -> Result<(), SaveError> {
        let failed = |source| SaveError::Write { path: path.to_owned(), source };
        let end = offset.saturating_add(len);
        let mut from = offset;
        while from < end {
            let cell = from / CELL_BYTES;
            let to = end.min((cell + 1).saturating_mul(CELL_BYTES));
            let index = |byte: u64| usize::try_from(byte - offset).unwrap_or(usize::MAX);
            let bytes = usize::try_from(to - from).unwrap_or(0);
            let mut before = AlignedBuf::zeroed(bytes);
            self.device.read_at(from, &mut before)?;
            for piece in self.cells.get(&cell).into_iter().flatten() {
                self.lay(piece, from, &mut before).map_err(failed)?;
            }
            let mut after = AlignedBuf::zeroed(bytes);
            if let Some(part) = data.and_then(|data| data.get(index(from)..index(to))) {
                after.copy_from_slice(part);
            }
            if *before != *after {
                self.add(cell, from, &before, &after).map_err(failed)?;
            }
            from = to;
        }
        Ok(())
    }

    fn add(&mut self, cell: u64, offset: u64, before: &[u8], after: &[u8]) -> io::Result<()> {
        self.writer.add(offset, before, ChunkRole::Before, self.group)?;
        let start = self.writer.position();
        self.writer.add(offset, after, ChunkRole::After, self.group)?;
        let stored = usize::try_from(self.writer.position() - start).unwrap_or(0);
        let at = self.at.saturating_add(start);
        self.cells.entry(cell).or_default().push(Piece { offset, len: after.len(), at, stored });
        Ok(())
    }

    /// Lays what an earlier step writes over `buf`, which begins at the byte `offset`.
    fn lay(&self, piece: &Piece, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let piece_range = (piece.offset, piece.len as u64);
        let Some((target, source)) = overlap((offset, buf.len()), piece_range) else {
            return Ok(());
        };
        let mut packed = vec![0; piece.stored];
        self.file.read_exact_at(&mut packed, piece.at)?;
        let bytes = zstd::bulk::decompress(&packed, piece.len)?;
        if let (Some(target), Some(source)) = (buf.get_mut(target), bytes.get(source)) {
            target.copy_from_slice(source);
        }
        Ok(())
    }
}
