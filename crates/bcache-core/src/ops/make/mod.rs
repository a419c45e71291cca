//! Formatting: superblocks for cache and backing devices.
//!
//! [`gather`] looks at the devices, [`plan()`] decides, [`run()`] claims them, writes, reads back and
//! finishes; [`try_claims`] is its dry run.
//!
//! [`plan`] decides everything for all devices before the first byte is written, from facts that
//! were gathered read-only. It refuses what the kernel would refuse, and what would destroy
//! something without the override that names it.
//!
//! Order of the writes on one device, and what a power cut leaves:
//!
//! 1. zeroes over the first 4 KiB and over every signature found, then a flush: from here on the
//!    device is nothing, neither what it was nor bcache;
//! 2. discards, and zeroes over the future journal where an old one could come back (docs/on-disk-format.md
//!    §1.5), then a flush (a write to a discarded place is never undone by the discard);
//! 3. the superblock, then a flush. It is one write of 4 KiB whose checksum tells whether it is
//!    whole, and everything it relies on is durable before it.

mod at_stake;
mod destroyed;
mod error;
mod facts;
mod finish;
mod gather;
mod run;

use uuid::Uuid;

use crate::device::{AlignedBuf, DeviceInfo, DeviceKind};
use crate::layout::superblock::{
    BDEV_DATA_START_DEFAULT, BUCKET_SIZE_MAX_V3, BackingParams, CacheMode, CacheParams, Kind,
    Label, Replacement, SB_BYTES, SB_OFFSET_BYTES, Superblock, first_bucket_for,
};
use crate::layout::verdict::{NBUCKETS_MIN, Warning, kernel_verdict};
use crate::ops::plan::{Plan, Step, WriteKind};
use crate::units::{Geometry, PAGE_BYTES, PAGE_SECTORS, SECTOR_BYTES, Sectors};

pub use crate::cache_set::read_superblock;
pub use at_stake::{AtStake, VolumeAtStake};
pub use destroyed::{Destroyed, LoseDirtyData, Override};
pub use error::{Fit, MakeError, Note, Setting};
pub use facts::{DeviceFacts, facts_of_new_image};
pub use finish::Leftover;
pub use gather::{GatherError, facts_of, gather};
pub use run::{
    Opener, Outcome, RunError, check_distinct, open_for_real, run, run_with_undo, try_claims,
};

/// Bucket size that is used where none was asked for and the device is large enough.
pub const BUCKET_SIZE_DEFAULT: Sectors = Sectors(1024);

/// Largest bucket: 1 GiB. The kernel's own limit is higher and no device has use for it.
pub(crate) const BUCKET_SIZE_MAX: Sectors = Sectors(1 << 21);

/// Fewest blocks of a bucket: kernels crash over btree nodes of a single one
/// ([`Warning::OneBlockBtreeNodes`]).
const BLOCKS_PER_BUCKET_MIN: u64 = 2;

/// Block size of image files, which have no sector size of their own.
const IMAGE_BLOCK_BYTES: u64 = 4096;

/// What is wanted, for all devices.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// Size of a bucket in bytes; the default depends on the device.
    pub bucket_bytes: Option<u64>,
    /// Size of a block in bytes; the default is the largest logical block of all devices.
    pub block_bytes: Option<u64>,
    /// Where the data of backing devices starts.
    pub data_offset: Option<Sectors>,
    /// Set to make or to attach to; a fresh one where none is given.
    pub set_uuid: Option<Uuid>,
    /// Label of every device.
    pub label: Label,
    /// Cache mode of backing devices.
    pub cache_mode: CacheMode,
    /// Whether the cache is discarded now, and bucket by bucket by the kernel later.
    pub discard: bool,
    /// Replacement policy of caches.
    pub replacement: Replacement,
    /// Whether a bcache superblock may be overwritten.
    pub wipe_bcache: bool,
    /// Whether anything else may be overwritten.
    pub force: bool,
    /// Whose data that exists nowhere else may be lost.
    pub lose_dirty_data: LoseDirtyData,
    /// Block size of the set that backing devices are made for, where it is known.
    pub set_block_size: Option<Sectors>,
}

/// What will happen to one device.
#[derive(Clone, Debug)]
pub struct DevicePlan {
    /// The facts that it was planned from.
    pub facts: DeviceFacts,
    /// The superblock to be written.
    pub superblock: Superblock,
    /// What the kernel accepts and we warn of.
    pub warnings: Vec<Warning>,
    /// What was decided on the way.
    pub notes: Vec<Note>,
    /// What is destroyed.
    pub destroys: Vec<Destroyed>,
    /// The writes.
    pub plan: Plan,
}

/// Plans all devices, or refuses all.
///
/// `fresh` gives random uuids; tests and `--dry-run` comparisons give their own.
pub fn plan(
    options: &Options,
    devices: Vec<DeviceFacts>,
    fresh: &mut dyn FnMut() -> Uuid,
) -> Result<Vec<DevicePlan>, MakeError> {
    if devices.is_empty() {
        return Err(MakeError::NoDevices);
    }
    if options.set_uuid.is_some_and(|uuid| uuid.is_nil()) {
        return Err(MakeError::NilSetUuid);
    }
    let bucket_size = options.bucket_bytes.map(check_bucket).transpose()?;
    let (block_size, mut notes) = block_size(options, bucket_size, &devices)?;
    notes.extend(check_set_block(options, block_size, &devices)?);
    notes.extend(unused_options(options, &devices));
    let count = devices.iter().filter(|device| device.kind == Kind::Cache).count();
    let shared_set = options.set_uuid.is_some() || count < devices.len();
    if count > 1 && shared_set {
        return Err(MakeError::SeveralCaches { count });
    }
    // A cache of another command may have smaller blocks; for that case the verdict has a warning.
    if let Some(offset) = options.data_offset {
        if count > 0 && count < devices.len() && offset.0 % block_size.0 != 0 {
            return Err(MakeError::DataOffsetSplitsBlocks { offset, block_size });
        }
    }
    let shared_uuid = options.set_uuid.unwrap_or_else(&mut *fresh);
    devices
        .into_iter()
        .map(|facts| {
            check_device(&facts)?;
            let uuid = fresh();
            // What concerns all devices is told with the first.
            let notes = std::mem::take(&mut notes);
            match facts.kind {
                Kind::Cache => {
                    let set_uuid = if shared_set { shared_uuid } else { fresh() };
                    plan_cache(options, facts, bucket_size, block_size, uuid, set_uuid, notes)
                }
                Kind::Backing => plan_backing(options, facts, block_size, uuid, shared_uuid, notes),
            }
        })
        .collect()
}

fn check_bucket(bytes: u64) -> Result<Sectors, MakeError> {
    if !bytes.is_power_of_two() {
        return Err(MakeError::BucketNotPowerOfTwo { bytes });
    }
    if bytes < PAGE_BYTES {
        return Err(MakeError::BucketTooSmall { bytes });
    }
    if bytes > BUCKET_SIZE_MAX.bytes() {
        return Err(MakeError::BucketTooLarge { bytes });
    }
    Ok(Sectors(bytes / SECTOR_BYTES))
}

fn natural_block_bytes(info: &DeviceInfo) -> u64 {
    match info.kind {
        DeviceKind::Image => IMAGE_BLOCK_BYTES,
        DeviceKind::Block | DeviceKind::Memory => info.logical_block_bytes.into(),
    }
}

/// The block size of all devices, and what there is to say of it.
fn block_size(
    options: &Options,
    bucket_size: Option<Sectors>,
    devices: &[DeviceFacts],
) -> Result<(Sectors, Vec<Note>), MakeError> {
    for device in devices {
        let logical = u64::from(device.info.logical_block_bytes);
        if logical > PAGE_BYTES {
            let path = device.info.path.clone();
            return Err(MakeError::LogicalBlockLargerThanPage { path, logical });
        }
    }
    let bytes = options.block_bytes.unwrap_or_else(|| {
        devices.iter().map(|device| natural_block_bytes(&device.info)).max().unwrap_or(SECTOR_BYTES)
    });
    if !bytes.is_power_of_two() {
        return Err(MakeError::BlockNotPowerOfTwo { bytes });
    }
    if !(SECTOR_BYTES..=PAGE_BYTES).contains(&bytes) {
        return Err(MakeError::BlockOutOfRange { bytes });
    }
    for device in devices {
        let logical = u64::from(device.info.logical_block_bytes);
        if bytes < logical {
            let path = device.info.path.clone();
            return Err(MakeError::BlockSmallerThanDevice { bytes, path, logical });
        }
    }
    let caches = || devices.iter().filter(|device| device.kind == Kind::Cache);
    let fits = |block: &Sectors| match bucket_size {
        Some(bucket) => bucket.0 >= BLOCKS_PER_BUCKET_MIN * block.0,
        None => caches().all(|cache| largest_bucket(cache.info.size(), *block).is_some()),
    };
    let block_size = Sectors(bytes / SECTOR_BYTES);
    if fits(&block_size) || caches().next().is_none() {
        return Ok((block_size, Vec::new()));
    }
    let smaller = smaller_blocks(block_size, devices).find(fits);
    match (options.block_bytes, smaller, bucket_size) {
        // The block was our own choice, and another is as good to the kernel.
        (None, Some(used), _) => Ok((used, vec![Note::SmallerBlock { default: block_size, used }])),
        (_, smaller_block, Some(_)) => {
            Err(MakeError::OneBlockBuckets { block_size, smaller_block })
        }
        // The devices that are too small are named one by one.
        (_, _, None) => Ok((block_size, Vec::new())),
    }
}

/// The blocks that are smaller than `block_size` and not too small for any device, largest first.
fn smaller_blocks(block_size: Sectors, devices: &[DeviceFacts]) -> impl Iterator<Item = Sectors> {
    let logical = devices.iter().map(|device| u64::from(device.info.logical_block_bytes)).max();
    let least = logical.unwrap_or(SECTOR_BYTES).max(SECTOR_BYTES) / SECTOR_BYTES;
    std::iter::successors(Some(block_size.0 / 2), |block| Some(block / 2))
        .take_while(move |block| *block >= least)
        .map(Sectors)
}

/// The kernel attaches no backing device whose blocks are smaller than those of the set.
fn check_set_block(
    options: &Options,
    block_size: Sectors,
    devices: &[DeviceFacts],
) -> Result<Option<Note>, MakeError> {
    let is_made = |kind| devices.iter().any(|device| device.kind == kind);
    if options.set_uuid.is_none() || !is_made(Kind::Backing) || is_made(Kind::Cache) {
        return Ok(None);
    }
    match options.set_block_size {
        Some(set) if block_size < set => Err(MakeError::BlockSmallerThanSet { block_size, set }),
        None if block_size.0 < PAGE_SECTORS => Ok(Some(Note::SetNotSeen { block_size })),
        Some(_) | None => Ok(None),
    }
}

/// Settings that concern none of the devices, as far as a value tells that it was asked for.
fn unused_options(options: &Options, devices: &[DeviceFacts]) -> Vec<Note> {
    let is_made = |kind| devices.iter().any(|device| device.kind == kind);
    let is_asked_for = |setting: &Setting| match setting {
        Setting::BucketSize => options.bucket_bytes.is_some(),
        Setting::Discard => options.discard,
        Setting::Replacement => options.replacement != Replacement::default(),
        Setting::DataOffset => options.data_offset.is_some(),
        Setting::Writeback => options.cache_mode == CacheMode::Writeback,
    };
    Setting::ALL
        .into_iter()
        .filter(|setting| is_asked_for(setting) && !is_made(setting.kind()))
        .map(|setting| Note::SettingUnused { setting })
        .collect()
}

fn check_device(facts: &DeviceFacts) -> Result<(), MakeError> {
    let path = || facts.info.path.clone();
    if facts.info.read_only {
        return Err(MakeError::ReadOnly { path: path() });
    }
    if facts.info.zoned {
        return Err(MakeError::Zoned { path: path() });
    }
    if facts.info.is_bcache_volume {
        return Err(MakeError::BcacheOnBcache { path: path() });
    }
    let size_bytes = facts.info.size_bytes;
    if size_bytes < SB_OFFSET_BYTES + SB_BYTES as u64 {
        return Err(MakeError::DeviceTooShort { path: path(), size_bytes });
    }
    Ok(())
}

/// The smallest bucket that the kernel works with.
fn smallest_bucket(block_size: Sectors) -> Sectors {
    Sectors(PAGE_SECTORS.max(BLOCKS_PER_BUCKET_MIN * block_size.0))
}

/// Sizes with which the cache on `facts` would have enough buckets.
fn fit(facts: &DeviceFacts, block_size: Sectors) -> Option<Fit> {
    let size = facts.info.size();
    let same = largest_bucket(size, block_size)
        .map(|bucket_size| Fit { bucket_size, smaller_block: None });
    same.or_else(|| {
        smaller_blocks(block_size, std::slice::from_ref(facts)).find_map(|block| {
            let bucket_size = largest_bucket(size, block)?;
            Some(Fit { bucket_size, smaller_block: Some(block) })
        })
    })
}

/// The largest bucket that gives the kernel enough buckets on `size`.
fn largest_bucket(size: Sectors, block_size: Sectors) -> Option<Sectors> {
    let mut bucket = BUCKET_SIZE_DEFAULT.0;
    while bucket >= smallest_bucket(block_size).0 {
        if size.0 / bucket >= NBUCKETS_MIN {
            return Some(Sectors(bucket));
        }
        bucket /= 2;
    }
    None
}

fn plan_cache(
    options: &Options,
    facts: DeviceFacts,
    bucket_size: Option<Sectors>,
    block_size: Sectors,
    uuid: Uuid,
    set_uuid: Uuid,
    mut notes: Vec<Note>,
) -> Result<DevicePlan, MakeError> {
    let size = facts.info.size();
    let asked = bucket_size.is_some();
    let bucket_size = bucket_size
        .or_else(|| largest_bucket(size, block_size))
        .unwrap_or_else(|| smallest_bucket(block_size));
    let nbuckets = size.0 / bucket_size.0;
    if nbuckets < NBUCKETS_MIN {
        let (path, fits) = (facts.info.path.clone(), fit(&facts, block_size));
        return Err(MakeError::TooFewBuckets { path, nbuckets, bucket_size, asked, fits });
    }
    if !asked && bucket_size != BUCKET_SIZE_DEFAULT {
        notes.push(Note::SmallerBucket { default: BUCKET_SIZE_DEFAULT, used: bucket_size });
    }
    if bucket_size > BUCKET_SIZE_MAX_V3 {
        notes.push(Note::LargeBucketFeature);
    }
    let sectors = Sectors(size.0 % bucket_size.0);
    if sectors.0 > 0 {
        notes.push(Note::SectorsLeftOver { sectors });
    }
    if options.discard && !facts.info.discard {
        notes.push(Note::NoDiscard);
    }
    let superblock = Superblock::new_cache(&CacheParams {
        uuid,
        set_uuid,
        label: options.label,
        nbuckets,
        bucket_size,
        block_size: u16::try_from(block_size.0).unwrap_or(u16::MAX),
        replacement: options.replacement,
        discard: options.discard,
    });
    let geometry =
        Geometry::new(nbuckets, first_bucket_for(bucket_size).into(), bucket_size, block_size);
    // A uuid that was chosen by hand may have been used here before.
    let journal = geometry.filter(|_| options.set_uuid.is_some()).map(|geometry| {
        let start = geometry.bucket_to_sector(geometry.first_bucket());
        let count = u64::from(geometry.njournal_buckets_default());
        (start, Sectors(count.saturating_mul(geometry.bucket_size().0)))
    });
    if let Some((_, size)) = journal {
        notes.push(Note::JournalWiped { size });
    }
    finish(options, facts, superblock, notes, journal)
}

fn plan_backing(
    options: &Options,
    facts: DeviceFacts,
    block_size: Sectors,
    uuid: Uuid,
    set_uuid: Uuid,
    mut notes: Vec<Note>,
) -> Result<DevicePlan, MakeError> {
    let size = facts.info.size();
    let path = || facts.info.path.clone();
    let offset = options.data_offset.unwrap_or(BDEV_DATA_START_DEFAULT);
    if offset < BDEV_DATA_START_DEFAULT {
        return Err(MakeError::DataOffsetTooSmall { offset });
    }
    // The volume must hold a whole block, or it reads as empty.
    if offset.0 >= size.0 || size.0.saturating_sub(offset.0) < block_size.0 {
        let asked = options.data_offset.is_some();
        return Err(MakeError::DataOffsetPastEnd { offset, asked, path: path(), size, block_size });
    }
    let logical = u64::from(facts.info.logical_block_bytes).max(SECTOR_BYTES);
    if offset.bytes() % logical != 0 {
        return Err(MakeError::DataOffsetMisaligned { offset, path: path(), logical });
    }
    if options.data_offset.is_some() {
        notes.push(Note::DataOffset { offset });
    }
    let physical_bytes = facts.info.physical_block_bytes;
    if physical_bytes != 0 && offset.bytes() % u64::from(physical_bytes) != 0 {
        notes.push(Note::DataOffsetSplitsPhysicalBlock { physical_bytes });
    }
    let superblock = Superblock::new_backing(&BackingParams {
        uuid,
        set_uuid,
        label: options.label,
        data_offset: offset,
        block_size: u16::try_from(block_size.0).unwrap_or(u16::MAX),
        cache_mode: options.cache_mode,
    });
    finish(options, facts, superblock, notes, None)
}

fn finish(
    options: &Options,
    facts: DeviceFacts,
    superblock: Superblock,
    notes: Vec<Note>,
    journal: Option<(Sectors, Sectors)>,
) -> Result<DevicePlan, MakeError> {
    let destroys = check_overrides(options, &facts)?;
    let target = facts.info.target();
    let verdict = kernel_verdict(&superblock, &target);
    if let Some(refusal) = verdict.refusal {
        return Err(MakeError::KernelRefuses { path: facts.info.path, refusal });
    }
    let hang = verdict.warnings.iter().find(|warning| warning.is_fatal());
    if let Some(warning) = hang {
        return Err(MakeError::KernelWouldHang { path: facts.info.path, warning: *warning });
    }
    let plan = steps(options, &facts, &superblock, journal);
    Ok(DevicePlan { facts, superblock, warnings: verdict.warnings, notes, destroys, plan })
}

/// What would be destroyed; refused where an override is missing.
fn check_overrides(options: &Options, facts: &DeviceFacts) -> Result<Vec<Destroyed>, MakeError> {
    let what = Destroyed::of(facts);
    let is_given = |needed: &Override| match needed {
        Override::WipeBcache => options.wipe_bcache,
        Override::Force => options.force,
        Override::LoseDirtyData => options.lose_dirty_data.allows(&facts.at_stake),
    };
    let mut missing: Vec<Override> = what.iter().flat_map(Destroyed::needs).collect();
    missing.retain(|needed| !is_given(needed));
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(what);
    }
    let (path, size) = (facts.info.path.clone(), facts.info.size());
    Err(MakeError::WouldDestroy { path, size, what, missing, set_uuid: facts.at_stake.set_uuid() })
}

fn steps(
    options: &Options,
    facts: &DeviceFacts,
    superblock: &Superblock,
    journal: Option<(Sectors, Sectors)>,
) -> Plan {
    let mut steps = Vec::new();
    let wipe = |offset, len| Step::Zero { kind: WriteKind::Wipe, offset, len };
    let block = u64::from(facts.info.logical_block_bytes).max(SECTOR_BYTES);
    let header = SB_OFFSET_BYTES + SB_BYTES as u64;
    let size_bytes = facts.info.size_bytes;
    let signatures: Vec<Step> = facts
        .found
        .iter()
        .flat_map(|found| found.magic_ranges(size_bytes, block))
        .filter_map(|(offset, len)| {
            let start = (offset / block * block).max(header);
            let end = offset.saturating_add(len).next_multiple_of(block).min(size_bytes);
            (start < end).then(|| wipe(start, end - start))
        })
        .collect();
    // The start of the disk, as make-bcache zeroes it, and the superblock: from here the device is
    // neither what it was nor half of what it will be.
    steps.push(wipe(0, header));
    steps.extend(signatures.iter().cloned());
    steps.push(Step::Flush);
    let mut second = Vec::new();
    let end = size_bytes / block * block;
    if options.discard && facts.kind == Kind::Cache && facts.info.discard && end > header {
        // What is discarded may read as anything, what it held before included: the superblock's
        // place stays out of it, and the signatures are wiped again.
        second.push(Step::Discard { offset: header, len: end - header });
        second.extend(signatures);
    }
    if let Some((start, size)) = journal {
        second.push(wipe(start.bytes(), size.bytes()));
    }
    if !second.is_empty() {
        steps.append(&mut second);
        steps.push(Step::Flush);
    }
    steps.push(Step::Write {
        kind: WriteKind::Superblock,
        offset: SB_OFFSET_BYTES,
        data: AlignedBuf::copy_of(superblock.as_bytes()),
    });
    steps.push(Step::Flush);
    Plan { steps }
}
