//! Backing devices whose superblocks are gone: which volume of a set each of them is, and its superblock
//! made again.
//!
//! The uuid table has the UUID and the label of every backing device. Which of them a device was, its data
//! tells: what the cache holds of a volume as clean is what its device holds at the same sectors. Keys count
//! from the start of the device. So clean data tells whose a volume is, and nothing of where on the device the
//! volume starts, but that this is before the first key.
//!
//! Whoever overwrites a superblock overwrites more than that. Installers write a partition table to the first
//! sectors of a disk, and a copy of it to the last ones. What differs there speaks against no device. Whatever
//! differs elsewhere does, unless all of it is at the start and everything behind it is equal.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use uuid::Uuid;

use crate::cache_set::clean::{read, sectors};
use crate::cache_set::{CacheSet, WalkOptions};
use crate::checksum::crc64;
use crate::device::{
    AlignedBuf, DeviceKind, ReadDevice, SignatureKind, SuperblockArea, first_nonzero,
    partition_with_bcache, probe,
};
use crate::inspect::{Device, Identity};
use crate::layout::superblock::{
    BDEV_DATA_START_DEFAULT, BackingParams, BackingState, CacheMode, Label, SB_LABEL_BYTES,
    SB_OFFSET_BYTES, Superblock,
};
use crate::layout::verdict::{Refusal, kernel_verdict};
use crate::ops::keyed::{Keyed, keyed};
use crate::units::{SECTOR_BYTES, Sectors};

/// Sectors at the start of a device that a partition table takes, and those at its end.
const TABLE_SECTORS: u64 = 64;

/// Different sectors with data that have to be equal, so that a volume is known by them.
const PROOF_SECTORS: usize = 64;

/// Sectors of an extent that are compared.
const SAMPLE_SECTORS: u64 = 64;

/// Here extents are compared one by one, if they are not too many: file systems put most of what they write
/// first to the start of a device.
const LOW_SECTORS: u64 = 1 << 17;

/// How many.
const LOW_EXTENTS: usize = 256;

/// The next place after the first where somebody may let the data start: sizes of blocks divide it.
const DATA_START_NEXT: u64 = 24;

/// What says whose a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownBy {
    /// Its clean data is the device's.
    Data,
    /// A person says so.
    Named,
    /// No other volume fits, and no other device.
    OnlyOne,
}

/// What is known of a backing device whose superblock is made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// Its volume.
    pub slot: u32,
    /// Its UUID.
    pub uuid: Uuid,
    /// What says that it is this volume's.
    pub known_by: KnownBy,
    /// Whether the cache has dirty data of it.
    pub is_dirty: bool,
    /// Where its data starts.
    pub data_offset: Sectors,
    /// Whether it can start nowhere else.
    pub is_offset_known: bool,
    /// Where the stretch ends that is known to be overwritten, if that is more than a partition table.
    pub overwritten_to: Option<u64>,
}

/// A superblock that is made again.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    pub(crate) device: Recognised,
    pub(crate) superblock: Superblock,
    /// Clean data of the cache that was overwritten on the device, each with its sector.
    pub(crate) data: Vec<(u64, AlignedBuf)>,
    /// Whether there is something before the superblock, where make leaves zeroes.
    pub(crate) has_head: bool,
}

/// Why it cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRebuilt {
    /// Clean data of the volume is not on the device.
    #[error(
        "it is not the device of volume {slot}, or was overwritten: at sector {sector} it has other data than \
         the cache has as clean"
    )]
    OtherData {
        /// The volume.
        slot: u32,
        /// Where.
        sector: u64,
    },
    /// The volume is said to start behind data of it.
    #[error("the cache has data of volume {slot} at sector {sector} already")]
    DataBefore {
        /// The volume.
        slot: u32,
        /// Its first sector with a key.
        sector: u64,
    },
    /// The cache holds data past the end of the device.
    #[error("it is too small for volume {slot}, which has data up to sector {end}")]
    TooSmall {
        /// The volume.
        slot: u32,
        /// Where the last extent ends.
        end: u64,
    },
    /// It can be the device of several volumes, or of one whose device another one can be, too.
    #[error("which device is which cannot be told: it may be that of volume {}", list(slots))]
    Several {
        /// The volumes.
        slots: Vec<u32>,
    },
    /// A person named a volume that is no backing device's, or another one's.
    #[error("volume {slot} is not that of a device that is missing")]
    NotMissing {
        /// The volume.
        slot: u32,
    },
    /// No volume is without its device.
    #[error("no volume of the set is without its device")]
    NoVolume,
    /// The kernel would refuse what the superblock has to say.
    #[error("the kernel would refuse its superblock: {0}")]
    Refused(Refusal),
    /// The cache has to be mended first.
    #[error("what it was can be told once the cache is repaired")]
    CacheFirst,
    /// It is a disk, and the device is a partition of it.
    #[error("partition {number} of it has one")]
    InPartition {
        /// The partition.
        number: u32,
    },
    /// The device could not be read.
    #[error("it cannot be read at sector {sector}")]
    Unreadable {
        /// Where.
        sector: u64,
    },
}

impl NotRebuilt {
    /// What a person can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Several { .. } => {
                "Name all backing devices of the set, or say which volume each of them is."
            }
            Self::DataBefore { .. } => "Its data starts at that sector or before.",
            Self::CacheFirst => "Repair the cache, and run the command again.",
            Self::InPartition { .. } => "Name the partition.",
            Self::Unreadable { .. } => {
                "Copy the device to another one with a tool that goes on after errors, and repair the copy."
            }
            Self::OtherData { .. }
            | Self::Refused(_)
            | Self::TooSmall { .. }
            | Self::NotMissing { .. }
            | Self::NoVolume => {
                "Name the right device. What the cache alone has of a volume can be exported."
            }
        }
    }
}

fn list(slots: &[u32]) -> String {
    slots.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ")
}

/// Whether `device` can be a backing device whose superblock is gone: nothing of bcache is left of it, nor
/// another format in its place.
pub(crate) fn is_gone(device: &Device<'_>) -> bool {
    let area = SuperblockArea::of(device.as_found.as_ref());
    device.identity == Identity::NotBcache
        && device.remains_at.is_none()
        && matches!(area, SuperblockArea::Blank | SuperblockArea::Unknown)
}

/// What is known of the devices beside a set.
pub(crate) struct Beside<'a> {
    /// Those whose superblocks are gone.
    pub(crate) gone: &'a [&'a dyn ReadDevice],
    /// UUIDs of devices that are there.
    pub(crate) present: &'a BTreeSet<Uuid>,
    /// What a person says.
    pub(crate) said: &'a [Said],
}

/// What a person says of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// The slot of its volume.
    pub(crate) slot: u32,
    /// The device, counted among those that are gone.
    pub(crate) device: usize,
    /// The sector at which its data starts, if it is not the one that make takes.
    pub(crate) data_offset: Option<Sectors>,
}

/// Of each device that is gone, its superblock.
pub(crate) fn rebuild(
    set: &CacheSet<'_>,
    beside: &Beside<'_>,
    walk: WalkOptions,
) -> Vec<Result<Rebuilt, NotRebuilt>> {
    let keyed = keyed(set, walk, std::iter::empty());
    let missing: Vec<(u32, Keyed)> = set
        .uuids
        .used()
        .filter(|(_, entry)| !entry.flash_only() && !entry.is_detached())
        .filter(|(_, entry)| !beside.present.contains(&entry.uuid))
        .map(|(slot, _)| (slot, keyed.get(&slot).cloned().unwrap_or_default()))
        .collect();
    let compared: Vec<Vec<Result<Compared, NotRebuilt>>> = beside
        .gone
        .iter()
        .map(|device| {
            let row = missing.iter().map(|(slot, keys)| compare(set, *device, *slot, keys));
            without_partitions(*device, row.collect())
        })
        .collect();
    let decided = decide(&compared, &missing, beside.said);
    let all = decided.into_iter().zip(beside.gone).zip(compared).enumerate();
    let made = all.map(|(number, ((decided, device), row))| {
        let said = beside.said.iter().find(|said| said.device == number);
        let data_offset = said.and_then(|said| said.data_offset);
        let (index, known_by) = decided?;
        let (slot, keys) = missing.get(index).ok_or(NotRebuilt::NoVolume)?;
        let compared = row.into_iter().nth(index).ok_or(NotRebuilt::NoVolume)??;
        made(set, *device, (*slot, keys), known_by, data_offset, &compared)
    });
    made.collect()
}

/// How volumes compare with a device, unless that is a disk with bcache in a partition, and no volume is
/// known by its data. A superblock on the disk would be in the place of its partition table.
fn without_partitions(
    device: &dyn ReadDevice,
    row: Vec<Result<Compared, NotRebuilt>>,
) -> Vec<Result<Compared, NotRebuilt>> {
    if row.iter().flatten().any(|compared| compared.is_proof) {
        return row;
    }
    match partition_with_bcache(device) {
        Some(number) => row.iter().map(|_| Err(NotRebuilt::InPartition { number })).collect(),
        None => row,
    }
}

/// Which of the missing volumes each device is, by its index, and what says so.
fn decide(
    compared: &[Vec<Result<Compared, NotRebuilt>>],
    missing: &[(u32, Keyed)],
    said: &[Said],
) -> Vec<Result<(usize, KnownBy), NotRebuilt>> {
    let slot_of = |index: usize| missing.get(index).map_or(0, |(slot, _)| *slot);
    let is_proven = |it: &Result<Compared, NotRebuilt>| it.as_ref().is_ok_and(|it| it.is_proof);
    let mut decided: Vec<Option<Result<(usize, KnownBy), NotRebuilt>>> =
        compared.iter().map(|_| None).collect();
    for (device, row) in compared.iter().enumerate() {
        let mut proven = (0..row.len()).filter(|&at| row.get(at).is_some_and(is_proven));
        let (Some(index), None) = (proven.next(), proven.next()) else { continue };
        let of_slot = compared.iter().filter(|row| row.get(index).is_some_and(is_proven)).count();
        if let Some(place) = decided.get_mut(device).filter(|_| of_slot == 1) {
            *place = Some(Ok((index, KnownBy::Data)));
        }
    }
    for &Said { slot, device, .. } in said {
        let index = missing.iter().position(|(it, _)| *it == slot);
        let taken = decided.iter().enumerate().any(|(other, it)| {
            other != device
                && matches!((it, index), (Some(Ok((at, _))), Some(index)) if *at == index)
        });
        let row = compared.get(device);
        let answer = match (index, index.and_then(|index| row?.get(index))) {
            (Some(index), Some(Ok(_))) if !taken => Ok((index, KnownBy::Named)),
            (Some(_), Some(Err(error))) => Err(error.clone()),
            _ => Err(NotRebuilt::NotMissing { slot }),
        };
        if let Some(place) = decided.get_mut(device) {
            match (&*place, &answer) {
                (Some(Ok((known, _))), Ok((index, _))) if known == index => {}
                (Some(Ok(_)), Ok(_)) => *place = Some(Err(NotRebuilt::NotMissing { slot })),
                _ => *place = Some(answer),
            }
        }
    }
    // What is left over: a device that can be only one volume, which no other can only be.
    loop {
        let taken: Vec<usize> = decided.iter().flatten().flatten().map(|(at, _)| *at).collect();
        let fitting = |row: &Vec<Result<Compared, NotRebuilt>>| -> Vec<usize> {
            let fits = |at: &usize| row.get(*at).is_some_and(Result::is_ok) && !taken.contains(at);
            (0..row.len()).filter(fits).collect()
        };
        let open: Vec<(usize, Vec<usize>)> = compared
            .iter()
            .enumerate()
            .filter(|(device, _)| decided.get(*device).is_some_and(Option::is_none))
            .map(|(device, row)| (device, fitting(row)))
            .collect();
        let only = open.iter().find_map(|(device, fitting)| match fitting[..] {
            [at] if open.iter().filter(|(_, other)| other[..] == [at]).count() == 1 => {
                Some((*device, at))
            }
            _ => None,
        });
        let Some((device, at)) = only else {
            for (device, fitting) in open {
                let error = compared.get(device).and_then(|row| {
                    let mut errors = row.iter().enumerate().filter(|(at, _)| !taken.contains(at));
                    errors.find_map(|(_, it)| it.as_ref().err().cloned())
                });
                let slots: Vec<u32> = fitting.into_iter().map(slot_of).collect();
                let why = match error {
                    _ if !slots.is_empty() => NotRebuilt::Several { slots },
                    Some(error) => error,
                    None => NotRebuilt::NoVolume,
                };
                if let Some(place) = decided.get_mut(device) {
                    *place = Some(Err(why));
                }
            }
            break;
        };
        if let Some(place) = decided.get_mut(device) {
            *place = Some(Ok((at, KnownBy::OnlyOne)));
        }
    }
    decided.into_iter().map(|it| it.unwrap_or(Err(NotRebuilt::NoVolume))).collect()
}

/// How the clean data of a volume compares with a device that does not contradict it.
#[derive(Debug)]
struct Compared {
    /// Whether the volume is known by it.
    is_proof: bool,
    /// Where the stretch ends that was overwritten, if that is more than a partition table.
    overwritten_to: Option<u64>,
}

/// Compares clean data of a volume with a device.
fn compare(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    slot: u32,
    keys: &Keyed,
) -> Result<Compared, NotRebuilt> {
    let size = device.info().size().0;
    if keys.end > size {
        return Err(NotRebuilt::TooSmall { slot, end: keys.end });
    }
    let mut places: Vec<(u64, u64, Sectors)> = keys
        .samples
        .iter()
        .filter_map(|key| Some((key.start(), key.offset(), key.ptrs().first()?.offset())))
        .collect();
    places.extend(clean(set, slot, 0, LOW_SECTORS.min(keys.end)).into_iter().take(LOW_EXTENTS));
    places.sort_unstable();
    places.dedup();
    let tail = size.saturating_sub(TABLE_SECTORS);
    let (mut first_differing, mut last_differing) = (None, 0);
    // Sectors with data that are equal.
    let mut equal: Vec<(u64, u64)> = Vec::new();
    for (start, end, cached) in places {
        let end = end.min(start.saturating_add(SAMPLE_SECTORS));
        let ours = read(set.cache.device(), cached.0, end.saturating_sub(start));
        let theirs = read(device, start, end.saturating_sub(start));
        let theirs = theirs.ok_or(NotRebuilt::Unreadable { sector: start })?;
        // What the cache does not tell, speaks for nothing.
        let Some(ours) = ours else { continue };
        for ((at, ours), theirs) in (start..end).zip(sectors(&ours)).zip(sectors(&theirs)) {
            if ours != theirs && at < tail {
                first_differing = first_differing.or(Some(at));
                last_differing = last_differing.max(at);
            } else if ours == theirs && ours.iter().any(|byte| Some(byte) != ours.first()) {
                equal.push((at, crc64(ours)));
            }
        }
    }
    let overwritten_to =
        if first_differing.is_some() { last_differing.saturating_add(1) } else { 0 };
    let behind: BTreeSet<u64> =
        equal.iter().filter(|(at, _)| *at >= overwritten_to).map(|(_, sum)| *sum).collect();
    let is_proof = behind.len() >= PROOF_SECTORS;
    if overwritten_to <= TABLE_SECTORS {
        return Ok(Compared { is_proof, overwritten_to: None });
    }
    // One stretch from the start on, or different devices.
    let is_stretch = equal.iter().all(|(at, _)| *at >= overwritten_to);
    match first_differing {
        Some(sector) if !is_stretch || !is_proof => Err(NotRebuilt::OtherData { slot, sector }),
        _ => Ok(Compared { is_proof: false, overwritten_to: Some(overwritten_to) }),
    }
}

/// Clean extents of a volume: where they start and end, and where they are on the cache.
fn clean(set: &CacheSet<'_>, slot: u32, from: u64, to: u64) -> Vec<(u64, u64, Sectors)> {
    let mut extents = Vec::new();
    let _ = set.view().lookup(slot, from, to, &mut |extent| {
        if let Some(cached) = extent.cached.filter(|_| !extent.dirty) {
            extents.push((extent.start, extent.end, cached));
        }
        ControlFlow::Continue(())
    });
    extents
}

fn made(
    set: &CacheSet<'_>,
    device: &dyn ReadDevice,
    (slot, keys): (u32, &Keyed),
    known_by: KnownBy,
    data_offset: Option<Sectors>,
    compared: &Compared,
) -> Result<Rebuilt, NotRebuilt> {
    let entry = set.uuids.get(slot).ok_or(NotRebuilt::NoVolume)?;
    let data_offset = data_offset.unwrap_or(BDEV_DATA_START_DEFAULT);
    if keys.end > 0 && data_offset.0 > keys.start {
        return Err(NotRebuilt::DataBefore { slot, sector: keys.start });
    }
    let info = device.info();
    let is_dirty = keys.dirty_sectors > 0;
    let block_of_device = u64::from(info.logical_block_bytes) / SECTOR_BYTES;
    let block_size = set.cache.superblock().block_size().0.max(block_of_device);
    let mut superblock = Superblock::new_backing(&BackingParams {
        uuid: entry.uuid,
        set_uuid: set.cache.superblock().set_uuid(),
        label: label(&entry.label),
        data_offset,
        block_size: u16::try_from(block_size).unwrap_or(u16::MAX),
        cache_mode: if is_dirty { CacheMode::Writeback } else { CacheMode::Writethrough },
    });
    // With another state, the kernel would drop what is cached.
    let state = if is_dirty { BackingState::Dirty } else { BackingState::Clean };
    superblock.edit(|edit| _ = edit.state(state).last_mount(entry.last_reg));
    if let Some(refusal) = kernel_verdict(&superblock, &info.target()).refusal {
        return Err(NotRebuilt::Refused(refusal));
    }
    let data = if known_by == KnownBy::Data { overwritten(set, device, slot) } else { Vec::new() };
    Ok(Rebuilt {
        device: Recognised {
            slot,
            uuid: entry.uuid,
            known_by,
            is_dirty,
            data_offset,
            is_offset_known: keys.end > 0 && keys.start < DATA_START_NEXT,
            overwritten_to: compared.overwritten_to,
        },
        superblock,
        data,
        has_head: first_nonzero(device, 0, SB_OFFSET_BYTES).is_ok_and(|byte| byte.is_some()),
    })
}

/// A label of the uuid table as the superblock has it. Into the table, the kernel copies what was written to
/// sysfs with its newline, and what stands behind it in memory.
fn label(of_table: &Label) -> Label {
    let text = of_table.as_bytes();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut bytes = [0; SB_LABEL_BYTES];
    bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    Label::from_bytes(bytes)
}

/// Clean data where a partition table was written, and what is not on the device any more. As it is, it would
/// be lost as soon as the cache drops it.
fn overwritten(set: &CacheSet<'_>, device: &dyn ReadDevice, slot: u32) -> Vec<(u64, AlignedBuf)> {
    let size = device.info().size().0;
    let block = (u64::from(device.info().logical_block_bytes) / SECTOR_BYTES).max(1);
    let ranges = [
        (0, TABLE_SECTORS.min(size)),
        (size.saturating_sub(TABLE_SECTORS).max(TABLE_SECTORS), size),
    ];
    let sectors_of = |data: &[u8]| data.len() as u64 / SECTOR_BYTES;
    let mut data: Vec<(u64, Vec<u8>)> = Vec::new();
    for (from, to) in ranges {
        for (start, end, cached) in clean(set, slot, from, to) {
            let count = end.saturating_sub(start);
            let ours = read(set.cache.device(), cached.0, count);
            let differs =
                ours.filter(|ours| read(device, start, count).is_none_or(|it| *it != **ours));
            let is_aligned = start % block == 0 && end % block == 0;
            let Some(ours) = differs.filter(|_| is_aligned) else { continue };
            match data.last_mut() {
                Some((first, before)) if *first + sectors_of(before) == start => {
                    *before = [&before[..], &ours].concat();
                }
                _ => data.push((start, ours.to_vec())),
            }
        }
    }
    data.into_iter().map(|(start, data)| (start, AlignedBuf::copy_of(&data))).collect()
}

/// What was made on a device since it was a backing device, other than a partition table with nothing in its
/// partitions.
pub(crate) fn holds(device: &dyn ReadDevice) -> Option<String> {
    // Devices of tests have no path that could be opened.
    if device.info().kind == DeviceKind::Memory {
        return None;
    }
    let Ok(found) = probe::probe(&device.info().path) else {
        return Some("what cannot be told".to_owned());
    };
    let found = found.into_iter().find(|it| {
        !matches!(it.kind, SignatureKind::PartitionTable | SignatureKind::Bcache)
            || it.partitions.iter().any(|partition| !partition.contents.is_empty())
    });
    found.map(|it| it.to_string())
}
