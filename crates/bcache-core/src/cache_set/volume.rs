//! Reading a volume through the cache, as `/dev/bcacheN` shows it, also from a damaged set.
//!
//! A [`VolumeReader`] says of each stretch of a volume where its data is, and how far that can be
//! relied on. On a sound set everything is [certain](Certainty::Certain) and equal to what the
//! kernel shows. Damage takes away as little as it must:
//!
//! - What a lost btree node would tell of is [unknown](Source::Unknown), unless the journal's replay
//!   range tells of it. Dirty extents of a damaged leaf's sound sets are left as likely: a later set
//!   may have replaced them.
//! - Where a prio set is lost, gens come from the pointers. A clean extent whose gen is not certain
//!   is read from the backing device, which has the same data whether or not the bucket was reused.
//!   A dirty one is likely, for only clean buckets are reused.
//! - Where entries are missing in the replay range of the journal, only what newer entries tell is
//!   certain: a lost key may have replaced anything else.
//! - A dirty key whose bucket was reused is what the kernel passes over. The older data below it is
//!   said to be likely only, unless the btree shows that the key is history.
//! - Data that cannot be read is taken from the other device where both have it: clean data.

use std::ops::ControlFlow;

use crate::cache_set::journal::Stop;
use crate::cache_set::view::{Doubt, Extent, Surveyed};
use crate::cache_set::{CacheDevice, CacheSet, Journal, KeySource, KeyState, View};
use crate::device::{DeviceError, ReadDevice};
use crate::units::{SECTOR_BYTES, Sectors};

/// What lies below the cache.
#[derive(Clone, Copy)]
pub enum Below<'s> {
    /// A backing device, whose data starts at a sector of it.
    Backing(&'s dyn ReadDevice, Sectors),
    /// A backing device that is not there, with the sector at which its data starts.
    Missing(Sectors),
    /// Nothing: a flash-only volume reads as zeroes where nothing was written.
    Nothing,
}

impl Below<'_> {
    /// What keys count and the volume does not.
    pub const fn data_offset(&self) -> Sectors {
        match self {
            Self::Backing(_, data_offset) | Self::Missing(data_offset) => *data_offset,
            Self::Nothing => Sectors(0),
        }
    }
}

impl std::fmt::Debug for Below<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Backing(device, data_offset) => {
                f.debug_tuple("Backing").field(&device.info().path).field(data_offset).finish()
            }
            Self::Missing(data_offset) => f.debug_tuple("Missing").field(data_offset).finish(),
            Self::Nothing => f.write_str("Nothing"),
        }
    }
}

/// Why the data of a stretch is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unknown {
    /// A btree node that would tell where it is cannot be read or is damaged.
    Btree,
    /// It is on a backing device that is not there.
    NoBacking,
    /// It is past the end of the backing device, which was longer once.
    PastEnd,
    /// The device that has it fails to read it.
    Unreadable,
}

/// Where the data of a stretch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the cache device.
    Cache {
        /// Its first sector there.
        sector: Sectors,
        /// Whether the backing device lacks it.
        dirty: bool,
    },
    /// On the backing device.
    Backing {
        /// Its first sector there.
        sector: Sectors,
    },
    /// Nowhere: it reads as zeroes.
    Hole,
    /// That cannot be told, or the device is not there.
    Unknown(Unknown),
}

/// How far a source can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certainty {
    /// Everything that could say otherwise was read.
    Certain,
    /// Something could not be read that might say otherwise.
    Likely(Doubt),
}

/// A stretch of a volume, in sectors of the volume: 0 is the first of `/dev/bcacheN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First sector.
    pub start: u64,
    /// Sector after the last.
    pub end: u64,
    /// Where the data is.
    pub source: Source,
    /// Whether that is certain.
    pub certainty: Certainty,
}

impl Stretch {
    /// Length in sectors.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it is empty, which no stretch that is told is.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the data can be taken for what the volume holds.
    pub const fn is_certain(&self) -> bool {
        matches!(self.certainty, Certainty::Certain) && !matches!(self.source, Source::Unknown(_))
    }
}

/// Why a volume cannot be read at a place.
#[derive(Debug, thiserror::Error)]
pub enum VolumeReadError {
    /// The btree does not tell where the data is.
    #[error("sectors {start} to {end} of the volume: a btree node that tells of them is lost")]
    Lost {
        /// First sector of the volume.
        start: u64,
        /// Sector after the last.
        end: u64,
    },
    /// What is there is not certain to be the volume's data.
    #[error("sectors {start} to {end} of the volume are not certain: {doubt}")]
    Doubtful {
        /// First sector of the volume.
        start: u64,
        /// Sector after the last.
        end: u64,
        /// Why.
        doubt: Doubt,
    },
    /// The backing device is not there.
    #[error("sectors {start} to {end} of the volume are on a backing device that is not there")]
    NoBacking {
        /// First sector of the volume.
        start: u64,
        /// Sector after the last.
        end: u64,
    },
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The range does not consist of whole sectors.
    #[error("{len} bytes at byte {offset} are not whole sectors")]
    Misaligned {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// What the journal's damage leaves certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JournalDamage {
    None,
    /// Only keys of entries after this one.
    UpTo(u64),
}

impl JournalDamage {
    fn of(journal: &Journal, cache: &CacheDevice<'_>) -> Self {
        let discard = cache.superblock().discard();
        let Some(newest) = journal.newest() else { return Self::None };
        let (last_seq, seq) = (newest.jset.last_seq(), newest.jset.seq());
        let hidden = journal.all_headers().any(|entry| entry.seq > seq);
        let lost = journal.newest_lost().is_some();
        let count = journal.buckets.len();
        // The kernel writes bucket after bucket: newer entries are in the newest one's or the next.
        let unreadable = [journal.current, (journal.current + 1).checked_rem(count).unwrap_or(0)]
            .iter()
            .filter_map(|&index| journal.buckets.get(index))
            .any(|bucket| matches!(bucket.stop, Stop::Unreadable { .. }));
        let truncated = journal.entries.iter().any(|entry| {
            let mut keys = entry.jset.keys();
            keys.by_ref().for_each(drop);
            keys.truncated()
        });
        let geometry = cache.geometry();
        let bad = journal.replay_keys().filter(|(_, key)| !key.is_valid_extent(geometry));
        let bad = bad.map(|(seq, _)| seq).max();
        if hidden || lost || unreadable || truncated || last_seq > seq {
            return Self::UpTo(u64::MAX);
        }
        // A set that discards also discards journal buckets that nothing needs any more, before an
        // entry says so: what is gone at the start of the range is in the btree.
        let gaps = journal.gaps.iter().filter(|gap| !(discard && gap.first == last_seq));
        gaps.map(|gap| gap.last).chain(bad).max().map_or(Self::None, Self::UpTo)
    }
}

/// Reads a volume as `/dev/bcacheN` would: the cache where it has the data, else the backing device.
#[derive(Debug)]
pub struct VolumeReader<'s, 'd> {
    view: View<'s, 'd>,
    inode: u32,
    below: Below<'s>,
    journal: JournalDamage,
}

impl<'s, 'd> VolumeReader<'s, 'd> {
    /// The volume in slot `inode` of `set`, over what lies below the cache.
    pub fn new(set: &'s CacheSet<'d>, inode: u32, below: Below<'s>) -> Self {
        let journal = JournalDamage::of(&set.journal, &set.cache);
        Self { view: set.view(), inode, below, journal }
    }

    /// What lies below the cache.
    pub const fn below(&self) -> &Below<'s> {
        &self.below
    }

    /// Tells of the sectors `[start, end)` of the volume, in order and without gaps, until `tell`
    /// breaks.
    pub fn stretches(
        &mut self,
        start: u64,
        end: u64,
        tell: &mut dyn FnMut(Stretch) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let data_offset = self.below.data_offset().0;
        let mut found = Vec::new();
        let (from, to) = (start.saturating_add(data_offset), end.saturating_add(data_offset));
        self.view.survey(self.inode, from, to, &mut |surveyed| {
            found.push(surveyed);
            ControlFlow::Continue(())
        })?;
        for surveyed in found {
            match surveyed {
                Surveyed::Known { extent, doubt } => self.known(&extent, doubt, tell)?,
                Surveyed::Lost { survivor: Some(extent), .. } => {
                    self.known(&extent, Some(Doubt::Btree), tell)?;
                }
                Surveyed::Lost { start, end, survivor: None, error: _ } => {
                    let source = Source::Unknown(Unknown::Btree);
                    tell(self.stretch(start, end, source, Certainty::Certain))?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Sectors that are cached of before the volume's data: with the right data offset there are none.
    pub fn sectors_before_data(&mut self) -> u64 {
        let mut sectors = 0u64;
        // Nothing breaks this one.
        let _ = self.view.survey(self.inode, 0, self.below.data_offset().0, &mut |surveyed| {
            if let Surveyed::Known { extent, .. } = surveyed {
                let cached = extent.cached.map_or(0, |_| extent.end.saturating_sub(extent.start));
                sectors = sectors.saturating_add(cached);
            }
            ControlFlow::Continue(())
        });
        sectors
    }

    fn stretch(&self, start: u64, end: u64, source: Source, certainty: Certainty) -> Stretch {
        let data_offset = self.below.data_offset().0;
        Stretch {
            start: start.saturating_sub(data_offset),
            end: end.saturating_sub(data_offset),
            source,
            certainty,
        }
    }

    fn known(
        &mut self,
        extent: &Extent,
        doubt: Option<Doubt>,
        tell: &mut dyn FnMut(Stretch) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let seq = match extent.origin {
            Some(KeySource::Journal { seq }) => Some(seq),
            _ => None,
        };
        let doubt = doubt.or(match self.journal {
            JournalDamage::UpTo(last) if seq.is_none_or(|seq| seq <= last) => Some(Doubt::Journal),
            _ => None,
        });
        let (start, end) = (extent.start, extent.end);
        let set = self.view.set();
        let state = extent.key.map(|key| (key, set.key_state(&key, 0)));
        match (state, extent.cached) {
            (Some((key, KeyState::Valid)), Some(sector)) => {
                let dirty = key.dirty();
                let gens_known = set.prios.knows_all(&key, set.geometry());
                let displaced = set.is_displaced(&key);
                // Of clean data, what lies below is as good; a flash-only volume has nothing there.
                let is_below = !dirty && matches!(self.below, Below::Backing(..));
                if (!gens_known || displaced) && is_below {
                    return self.uncached(start, end, doubt, tell);
                }
                let doubt = doubt.or((!gens_known).then_some(Doubt::Gens));
                let doubt = doubt.or(displaced.then_some(Doubt::Displaced));
                let certainty = doubt.map_or(Certainty::Certain, Certainty::Likely);
                let source = Source::Cache { sector, dirty };
                tell(self.stretch(start, end, source, certainty))
            }
            (Some((key, KeyState::Stale { .. })), _) if key.dirty() => {
                if seq.is_none() {
                    let doubt = doubt.or(Some(Doubt::StaleDirty));
                    return self.uncached(start, end, doubt, tell);
                }
                for (start, end, history) in self.what_became_of(start, end) {
                    let doubt = doubt.or((!history).then_some(Doubt::StaleDirty));
                    self.uncached(start, end, doubt, tell)?;
                }
                ControlFlow::Continue(())
            }
            _ => self.uncached(start, end, doubt, tell),
        }
    }

    /// Tells what lies below the cache at the sectors `[start, end)` of keys.
    fn uncached(
        &self,
        start: u64,
        end: u64,
        doubt: Option<Doubt>,
        tell: &mut dyn FnMut(Stretch) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let certainty = doubt.map_or(Certainty::Certain, Certainty::Likely);
        let unknown = |unknown| (Source::Unknown(unknown), Certainty::Certain);
        let (source, certainty) = match self.below {
            Below::Backing(device, _) => {
                let device_end = device.info().size().0.clamp(start, end);
                if start < device_end {
                    let source = Source::Backing { sector: Sectors(start) };
                    tell(self.stretch(start, device_end, source, certainty))?;
                }
                if device_end == end {
                    return ControlFlow::Continue(());
                }
                let (source, certainty) = unknown(Unknown::PastEnd);
                return tell(self.stretch(device_end, end, source, certainty));
            }
            Below::Missing(_) => unknown(Unknown::NoBacking),
            Below::Nothing => (Source::Hole, certainty),
        };
        tell(self.stretch(start, end, source, certainty))
    }

    /// Pieces of a stale dirty key of the journal, each with whether the btree has something clean
    /// there: the key went there, and its data was written back or overwritten since.
    fn what_became_of(&mut self, start: u64, end: u64) -> Vec<(u64, u64, bool)> {
        let mut pieces = Vec::new();
        // Nothing breaks this one.
        let _ = self.view.survey_btree(self.inode, start, end, &mut |surveyed| {
            pieces.push(match surveyed {
                Surveyed::Known { extent, .. } => {
                    let history = extent.key.is_some_and(|key| !key.dirty());
                    (extent.start, extent.end, history)
                }
                Surveyed::Lost { start, end, .. } => (start, end, false),
            });
            ControlFlow::Continue(())
        });
        pieces
    }

    /// Reads `sectors` of a stretch that was told, from its sector `skip` on, into `buf`. What cannot
    /// be read is told to `failed` sector range by sector range of the volume, and zero in `buf`.
    ///
    /// Where a device fails, the same clean data is taken from the other. A stretch of
    /// [`Source::Unknown`] is not read at all.
    pub(crate) fn read_stretch(
        &self,
        stretch: &Stretch,
        skip: u64,
        buf: &mut [u8],
        failed: &mut dyn FnMut(u64, u64, &DeviceError),
    ) {
        let cache = self.view.set().cache.device();
        let at = stretch.start.saturating_add(skip);
        let sectors = (buf.len() as u64 / SECTOR_BYTES).min(stretch.len().saturating_sub(skip));
        let mut from = |device: &dyn ReadDevice, sector: Sectors, other: Option<_>| {
            let place = Place { device, sector: sector.0.saturating_add(skip), other };
            place.read(at, sectors, buf, failed);
        };
        match (stretch.source, self.below) {
            (Source::Cache { sector, dirty }, below) => {
                let other = match below {
                    Below::Backing(device, data_offset) if !dirty => {
                        Some((device, at.saturating_add(data_offset.0)))
                    }
                    _ => None,
                };
                from(cache, sector, other);
            }
            (Source::Backing { sector }, Below::Backing(device, _)) => from(device, sector, None),
            _ => buf.fill(0),
        }
    }

    /// Fills `buf`, whole sectors, from the byte `offset` of the volume. Fails where any sector is
    /// not certain.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), VolumeReadError> {
        let len = buf.len() as u64;
        if offset % SECTOR_BYTES != 0 || len % SECTOR_BYTES != 0 {
            return Err(VolumeReadError::Misaligned { offset, len });
        }
        let start = offset / SECTOR_BYTES;
        let end = start.saturating_add(len / SECTOR_BYTES);
        let mut stretches = Vec::new();
        let _ = self.stretches(start, end, &mut |stretch| {
            stretches.push(stretch);
            ControlFlow::Continue(())
        });
        let mut rest = buf;
        for stretch in stretches {
            let (start, end) = (stretch.start, stretch.end);
            match (stretch.source, stretch.certainty) {
                (Source::Unknown(Unknown::NoBacking), _) => {
                    return Err(VolumeReadError::NoBacking { start, end });
                }
                (Source::Unknown(_), _) => return Err(VolumeReadError::Lost { start, end }),
                (_, Certainty::Likely(doubt)) => {
                    return Err(VolumeReadError::Doubtful { start, end, doubt });
                }
                _ => {}
            }
            let len = usize::try_from(Sectors(stretch.len()).bytes()).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at_mut(len.min(rest.len()));
            rest = after;
            let mut error = None;
            self.read_stretch(&stretch, 0, part, &mut |_, _, source| {
                error.get_or_insert_with(|| copy_of(source));
            });
            if let Some(error) = error {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// The same error once more, as far as it can be had twice.
fn copy_of(error: &DeviceError) -> DeviceError {
    let (operation, offset, len, source) = match error {
        DeviceError::Io { operation, offset, len, source, .. } => {
            let source = source
                .raw_os_error()
                .map_or_else(|| source.kind().into(), std::io::Error::from_raw_os_error);
            (*operation, *offset, *len, source)
        }
        DeviceError::OutOfRange { offset, len, size_bytes, .. } => {
            return DeviceError::OutOfRange {
                path: error.path().to_owned(),
                offset: *offset,
                len: *len,
                size_bytes: *size_bytes,
            };
        }
        _ => (crate::device::Operation::Read, 0, 0, std::io::ErrorKind::Other.into()),
    };
    DeviceError::Io { path: error.path().to_owned(), operation, offset, len, source }
}

/// A place to read from, and where the same data is once more.
struct Place<'p> {
    device: &'p dyn ReadDevice,
    sector: u64,
    other: Option<(&'p dyn ReadDevice, u64)>,
}

impl Place<'_> {
    /// Reads `sectors` into `buf`; the first is sector `at` of the volume. What fails as a whole is
    /// read in halves, down to single sectors.
    fn read(
        &self,
        at: u64,
        sectors: u64,
        buf: &mut [u8],
        failed: &mut dyn FnMut(u64, u64, &DeviceError),
    ) {
        let len = usize::try_from(Sectors(sectors).bytes()).unwrap_or(usize::MAX);
        let len = len.min(buf.len());
        let Some(part) = buf.get_mut(..len).filter(|part| !part.is_empty()) else { return };
        let Err(error) = self.device.read_at(Sectors(self.sector).bytes(), part) else { return };
        if sectors > 1 {
            let half = sectors / 2;
            let split = usize::try_from(Sectors(half).bytes()).unwrap_or(usize::MAX).min(len);
            let (front, back) = part.split_at_mut(split);
            self.read(at, half, front, failed);
            let behind = Self {
                device: self.device,
                sector: self.sector.saturating_add(half),
                other: self.other.map(|(device, sector)| (device, sector.saturating_add(half))),
            };
            behind.read(at.saturating_add(half), sectors - half, back, failed);
            return;
        }
        let again =
            self.other.map(|(device, sector)| device.read_at(Sectors(sector).bytes(), part));
        if !matches!(again, Some(Ok(()))) {
            part.fill(0);
            failed(at, at.saturating_add(sectors), &error);
        }
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Gens => "the gens of buckets are lost",
            Self::Btree => "a btree node is damaged",
            Self::Journal => "journal entries are lost",
            Self::StaleDirty => "a dirty key is stale",
            Self::Displaced => "a dirty key points to metadata",
        })
    }
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Btree => "a btree node is lost",
            Self::NoBacking => "the backing device is missing",
            Self::PastEnd => "the backing device ends before it",
            Self::Unreadable => "the data cannot be read",
        })
    }
}
