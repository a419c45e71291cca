//! Copying a volume, or its dirty data, to somewhere else.
//!
//! The sources are read only. What cannot be read, or is not certain, is left out and said to the
//! [`Sink`], part by part, so that every sector of the volume is accounted for exactly once.

pub mod map;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use serde::Serialize;

use crate::cache_set::volume::{Certainty, Source, Stretch, Unknown};
use crate::cache_set::{Doubt, VolumeReader};
use crate::device::{AlignedBuf, overlap};
use crate::units::{SECTOR_BYTES, Sectors};

pub use map::Status;

/// Sectors whose places are looked up at once, and read at most at once.
const CHUNK_SECTORS: u64 = 2048;

/// What to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Only what the backing device lacks.
    pub dirty_only: bool,
    /// What is likely right, too.
    pub likely: bool,
}

/// Takes what is exported, in order. Offsets are bytes of the volume.
pub trait Sink {
    /// Data.
    fn data(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// `len` bytes that are not there: they read as zeroes, or were left out.
    fn skip(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// What became of the sectors `[start, end)`.
    fn status(&mut self, start: u64, end: u64, status: Status) -> io::Result<()>;

    /// So many sectors of the volume are done. Breaking ends the export.
    fn progress(&mut self, done: Sectors) -> ControlFlow<()>;
}

/// Sectors of the volume by what became of them. Every sector counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// Sectors of the volume.
    pub size_sectors: u64,
    /// Taken from the cache, where only it has them.
    pub dirty_sectors: u64,
    /// Taken from the cache, or its copy on the backing device.
    pub clean_sectors: u64,
    /// Taken from the backing device.
    pub backing_sectors: u64,
    /// Never written: zeroes of a flash-only volume.
    pub hole_sectors: u64,
    /// Not asked for.
    pub not_asked_sectors: u64,
    /// Of those taken, the ones that are only likely right.
    pub likely_taken_sectors: u64,
    /// Likely right, and left out.
    pub likely_left_sectors: u64,
    /// Lost or unreadable.
    pub lost_sectors: u64,
    /// Cached of sectors before the volume's data, and so in none of these: the data offset is wrong.
    pub before_data_sectors: u64,
    /// Sectors that are lost, or only likely right, by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Whether the export ended early because the sink said so.
    pub interrupted: bool,
}

impl ExportReport {
    /// Whether everything that was asked for is there and certain.
    pub const fn is_complete(&self) -> bool {
        self.likely_taken_sectors == 0
            && self.likely_left_sectors == 0
            && self.lost_sectors == 0
            && self.before_data_sectors == 0
            && !self.interrupted
    }

    fn reason(&mut self, reason: &'static str, sectors: u64) {
        let count = self.reasons.entry(reason).or_default();
        *count = count.saturating_add(sectors);
    }
}

/// The key of a reason in [`ExportReport::reasons`].
pub(crate) const fn doubt_name(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::Gens => "gens-lost",
        Doubt::Btree => "btree-damaged",
        Doubt::Journal => "journal-entries-lost",
        Doubt::StaleDirty => "stale-dirty",
        Doubt::Displaced => "displaced",
    }
}

/// The key of a reason in [`ExportReport::reasons`].
pub(crate) const fn unknown_name(unknown: Unknown) -> &'static str {
    match unknown {
        Unknown::Btree => "btree-node-lost",
        Unknown::NoBacking => "backing-device-missing",
        Unknown::PastEnd => "past-backing-device",
        Unknown::Unreadable => "unreadable",
    }
}

/// Copies the first `size` sectors of a volume to `sink`. Fails only where the sink does.
pub fn export(
    reader: &mut VolumeReader<'_, '_>,
    size: Sectors,
    options: &ExportOptions,
    sink: &mut dyn Sink,
) -> io::Result<ExportReport> {
    let mut export = Export {
        options,
        sink,
        report: ExportReport {
            size_sectors: size.0,
            before_data_sectors: reader.sectors_before_data(),
            ..ExportReport::default()
        },
        buf: AlignedBuf::zeroed(usize::try_from(CHUNK_SECTORS * SECTOR_BYTES).unwrap_or(0)),
    };
    let mut at = 0;
    while at < size.0 {
        let end = at.saturating_add(CHUNK_SECTORS).min(size.0);
        let mut stretches = Vec::new();
        let _ = reader.stretches(at, end, &mut |stretch| {
            stretches.push(stretch);
            ControlFlow::Continue(())
        });
        for stretch in &stretches {
            export.take(reader, stretch)?;
        }
        at = end;
        if export.sink.progress(Sectors(at)).is_break() {
            export.report.interrupted = at < size.0;
            break;
        }
    }
    Ok(export.report)
}

/// Fills `buf` from the byte `offset` of the volume. `false` where a part of it is lost, cannot be read,
/// or is not certain; with `likely`, what is likely right is taken.
pub fn read_range(
    reader: &mut VolumeReader<'_, '_>,
    offset: u64,
    buf: &mut [u8],
    likely: bool,
) -> bool {
    let end = offset.saturating_add(buf.len() as u64);
    let mut sectors =
        AlignedBuf::zeroed(usize::try_from(CHUNK_SECTORS * SECTOR_BYTES).unwrap_or(0));
    let mut at = offset / SECTOR_BYTES;
    while at < end.div_ceil(SECTOR_BYTES) {
        let until = at.saturating_add(CHUNK_SECTORS).min(end.div_ceil(SECTOR_BYTES));
        let mut stretches = Vec::new();
        let _ = reader.stretches(at, until, &mut |stretch| {
            stretches.push(stretch);
            ControlFlow::Continue(())
        });
        let mut next = at;
        for stretch in &stretches {
            let is_known = !matches!(stretch.source, Source::Unknown(_));
            if !is_known || !(likely || stretch.is_certain()) || stretch.start != next {
                return false;
            }
            next = stretch.end;
            let byte = |sector: u64| {
                usize::try_from(Sectors(sector.saturating_sub(at)).bytes()).unwrap_or(usize::MAX)
            };
            let Some(part) = sectors.get_mut(byte(stretch.start)..byte(stretch.end)) else {
                return false;
            };
            let mut failed = false;
            if stretch.source == Source::Hole {
                part.fill(0);
            } else {
                reader.read_stretch(stretch, 0, part, &mut |_, _, _| failed = true);
            }
            if failed {
                return false;
            }
        }
        if next != until {
            return false;
        }
        let read = (Sectors(at).bytes(), Sectors(until.saturating_sub(at)).bytes());
        let Some((target, source)) = overlap((offset, buf.len()), read) else { return false };
        let (Some(target), Some(source)) = (buf.get_mut(target), sectors.get(source)) else {
            return false;
        };
        target.copy_from_slice(source);
        at = until;
    }
    true
}

struct Export<'e> {
    options: &'e ExportOptions,
    sink: &'e mut dyn Sink,
    report: ExportReport,
    buf: AlignedBuf,
}

impl Export<'_> {
    fn leave(&mut self, stretch: &Stretch, status: Status) -> io::Result<()> {
        self.sink.skip(Sectors(stretch.start).bytes(), Sectors(stretch.len()).bytes())?;
        self.sink.status(stretch.start, stretch.end, status)
    }

    fn take(&mut self, reader: &VolumeReader<'_, '_>, stretch: &Stretch) -> io::Result<()> {
        let sectors = stretch.len();
        if let Source::Unknown(unknown) = stretch.source {
            // What lies on a backing device is not asked for, whether or not the device is there.
            if self.options.dirty_only && matches!(unknown, Unknown::NoBacking | Unknown::PastEnd) {
                self.report.not_asked_sectors += sectors;
                return self.leave(stretch, Status::NotAsked);
            }
            self.report.lost_sectors += sectors;
            self.report.reason(unknown_name(unknown), sectors);
            return self.leave(stretch, Status::Lost);
        }
        let wanted =
            !self.options.dirty_only || matches!(stretch.source, Source::Cache { dirty: true, .. });
        if let Certainty::Likely(doubt) = stretch.certainty {
            self.report.reason(doubt_name(doubt), sectors);
            if !self.options.likely {
                self.report.likely_left_sectors += sectors;
                return self.leave(stretch, Status::Doubtful);
            }
            if wanted {
                self.report.likely_taken_sectors += sectors;
            }
        }
        if !wanted {
            self.report.not_asked_sectors += sectors;
            return self.leave(stretch, Status::NotAsked);
        }
        let count = match stretch.source {
            Source::Cache { dirty: true, .. } => &mut self.report.dirty_sectors,
            Source::Cache { .. } => &mut self.report.clean_sectors,
            Source::Backing { .. } => &mut self.report.backing_sectors,
            Source::Hole | Source::Unknown(_) => {
                self.report.hole_sectors += sectors;
                return self.leave(stretch, Status::Taken);
            }
        };
        *count += sectors;
        let len = usize::try_from(Sectors(sectors).bytes()).unwrap_or(usize::MAX);
        let len = len.min(self.buf.len());
        let Some(part) = self.buf.get_mut(..len) else { return Ok(()) };
        let mut failed: Vec<(u64, u64)> = Vec::new();
        reader.read_stretch(stretch, 0, part, &mut |start, end, _| match failed.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => failed.push((start, end)),
        });
        self.put(stretch, &failed)
    }

    /// Gives the sink what was read, and what could not be.
    fn put(&mut self, stretch: &Stretch, failed: &[(u64, u64)]) -> io::Result<()> {
        let mut at = stretch.start;
        let ends = failed.iter().copied().chain([(stretch.end, stretch.end)]);
        for (start, end) in ends {
            if at < start {
                let byte = |sector: u64| {
                    let byte = Sectors(sector.saturating_sub(stretch.start)).bytes();
                    usize::try_from(byte).unwrap_or(usize::MAX)
                };
                let data = self.buf.get(byte(at)..byte(start)).unwrap_or_default();
                self.sink.data(Sectors(at).bytes(), data)?;
                self.sink.status(at, start, Status::Taken)?;
            }
            if start < end {
                let lost = end - start;
                // It was counted as taken before the device failed.
                let counts = [
                    matches!(stretch.source, Source::Cache { dirty: true, .. })
                        .then_some(&mut self.report.dirty_sectors),
                    matches!(stretch.source, Source::Cache { dirty: false, .. })
                        .then_some(&mut self.report.clean_sectors),
                    matches!(stretch.source, Source::Backing { .. })
                        .then_some(&mut self.report.backing_sectors),
                    matches!(stretch.certainty, Certainty::Likely(_))
                        .then_some(&mut self.report.likely_taken_sectors),
                ];
                for count in counts.into_iter().flatten() {
                    *count = count.saturating_sub(lost);
                }
                self.report.lost_sectors += lost;
                self.report.reason(unknown_name(Unknown::Unreadable), lost);
                let part = Stretch { start, end, ..*stretch };
                self.leave(&part, Status::Lost)?;
            }
            at = end;
        }
        Ok(())
    }
}
