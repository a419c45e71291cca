//! The consistency check of a cache device: read-only, and not stopped by what it finds.
//!
//! Everything that the kernel looks at during registration is checked as the kernel does it, and
//! what it does not look at besides (FORMAT.md §8.7). The report answers two questions first: would
//! the kernel register this, and is data at risk.
//!
//! Each finding has a stable code; all are listed in docs/findings.md.

pub mod backing;
mod code;
mod finding;

use std::collections::BTreeMap;

use serde::Serialize;

pub use backing::BackingProblem;
pub use code::{Code, Severity, table};
pub use finding::{Detail, Finding, Place};

use crate::cache_set::{
    CacheDevice, CacheSet, OpenError, Problem, Progress, ReadError, ReadOptions, Visitor,
};
use crate::device::{AlignedBuf, ReadDevice};
use crate::layout::superblock::{Kind, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use crate::layout::uuid_entry::UuidEntry;
use crate::layout::verdict::{Target, Verdict, Warning, kernel_verdict};
use crate::units::Sectors;

/// Findings of one code that are told one by one, unless [`CheckOptions`] says otherwise.
pub const FINDINGS_PER_CODE: usize = 100;

/// What to check, and how.
#[derive(Clone)]
pub struct CheckOptions<'d> {
    /// How to read.
    pub read: ReadOptions,
    /// Backing devices to check against the set.
    pub backing: Vec<&'d dyn ReadDevice>,
    /// Whether to compare clean data with them.
    pub verify_clean: bool,
    /// Findings of one code that are kept; the others are counted.
    pub findings_per_code: usize,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        Self {
            read: ReadOptions::default(),
            backing: Vec::new(),
            verify_clean: false,
            findings_per_code: FINDINGS_PER_CODE,
        }
    }
}

/// Where a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckProgress {
    /// It reads the cache set.
    Reading(Progress),
    /// It compares clean data with a backing device.
    Comparing {
        /// Sectors passed.
        done: u64,
        /// Of so many.
        total: u64,
    },
}

/// Would the kernel register the device?
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Registration {
    /// Yes, with what is on it.
    Accepted,
    /// Yes, and it would initialise the set: nothing on the device counts.
    Initialised,
    /// No, or it would give up on it; the first reason in the order of registration.
    Refused {
        /// The finding's code.
        code: Code,
        /// What was found.
        reason: String,
    },
}

/// Dirty data of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirtyVolume {
    /// Slot of the volume.
    pub slot: u32,
    /// Uuid of the backing device, or of the flash-only volume; nil where the table has none.
    pub uuid: uuid::Uuid,
    /// Its label.
    pub label: String,
    /// Whether it has no backing device at all.
    pub flash_only: bool,
    /// How much only the cache holds.
    pub dirty_sectors: Sectors,
}

/// What a check found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Would the kernel register the device?
    pub registration: Registration,
    /// Whether a finding says that data may be lost, wrong or unreachable, also because the kernel
    /// would refuse a set that holds data which is nowhere else.
    pub data_at_risk: bool,
    /// Volumes of which only the cache holds some data.
    pub dirty: Vec<DirtyVolume>,
    /// Whether something could not be read or understood, so that there may be more than was found.
    pub incomplete: bool,
    /// Whether the device, or a backing device, or a part of one could not be read.
    pub unread: bool,
    /// The severity of the worst finding, listed or not.
    pub worst: Option<Severity>,
    /// The findings, in the order of registration.
    pub findings: Vec<Finding>,
    /// How many findings there were of each code.
    pub counts: BTreeMap<Code, u64>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }
}

/// Why there is nothing to check.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The device holds no cache device's superblock, or cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The table of buckets does not fit memory, or the like.
    #[error(transparent)]
    Read(ReadError),
}

struct Collector<'p> {
    findings: Vec<Finding>,
    counts: BTreeMap<Code, u64>,
    per_code: usize,
    first_refusal: Option<(Code, String)>,
    incomplete: bool,
    unread: bool,
    at_risk: bool,
    worst: Option<Severity>,
    progress: &'p mut dyn FnMut(CheckProgress),
}

impl Collector<'_> {
    fn add(&mut self, finding: impl Into<Finding>) {
        let finding = finding.into();
        let code = finding.code();
        let severity = finding.severity();
        // The cache can be registered without the backing device.
        let refuses = severity == Severity::KernelRefuses && !code.is_backing();
        if refuses && self.first_refusal.is_none() {
            self.first_refusal = Some((code, finding.found()));
        }
        self.worst = self.worst.max(Some(severity));
        self.at_risk |= severity == Severity::DataAtRisk;
        self.unread |= matches!(
            code,
            Code::JournalUnreadable
                | Code::PrioUnreadable
                | Code::UuidUnreadable
                | Code::BtreeUnreadable
                | Code::BackingUnreadable
        );
        // Without the uuid table nobody knows which volumes are flash-only.
        self.incomplete |= self.unread
            || code == Code::UuidPointer
            || matches!(&finding.detail, Detail::Set(problem) if problem.hides_keys());
        let count = self.counts.entry(code).or_default();
        *count += 1;
        if *count <= self.per_code as u64 {
            self.findings.push(finding);
        }
    }
}

impl Visitor for Collector<'_> {
    fn wants_keys(&self) -> bool {
        false
    }

    fn progress(&mut self, progress: Progress) {
        (self.progress)(CheckProgress::Reading(progress));
    }

    fn problem(&mut self, problem: Problem) {
        self.add(problem);
    }
}

impl backing::Listener for Collector<'_> {
    fn compared(&mut self, done: u64, total: u64) {
        (self.progress)(CheckProgress::Comparing { done, total });
    }

    fn problem(&mut self, problem: BackingProblem) {
        self.add(problem);
    }
}

/// Checks the cache device.
pub fn check(
    device: &dyn ReadDevice,
    options: &CheckOptions<'_>,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<Report, CheckError> {
    let (sb, verdict) = read_superblock(device)?;
    let mut collector = Collector {
        findings: Vec::new(),
        counts: BTreeMap::new(),
        per_code: options.findings_per_code,
        first_refusal: None,
        incomplete: false,
        unread: false,
        at_risk: false,
        worst: None,
        progress,
    };
    check_superblock(&verdict, &mut collector);
    let mut dirty = Vec::new();
    let mut initialised = false;
    let mut flash_only = false;
    match CacheDevice::open(device) {
        Err(error) => {
            (collector.incomplete, collector.unread) = (true, true);
            if verdict.accepts() {
                collector.add(Detail::Geometry(error));
            }
        }
        Ok(cache) => {
            // All that the set needs may be there; the data at the end is not.
            collector.unread |= cache.is_whole().is_err();
            match CacheSet::read(cache, &options.read, &mut collector) {
                Ok(set) => {
                    check_set(&set, options, &mut collector);
                    dirty = dirty_volumes(&set);
                    flash_only = set.uuids.used().any(|(_, entry)| entry.flash_only());
                }
                Err(ReadError::Unsynced) => initialised = !sb.sync(),
                // Told as a finding already.
                Err(ReadError::NoJournal) => {}
                Err(error @ (ReadError::Open(_) | ReadError::OutOfMemory { .. })) => {
                    return Err(CheckError::Read(error));
                }
            }
        }
    }
    // A cache that holds nothing of its own can be made anew.
    let refused = collector.worst == Some(Severity::KernelRefuses);
    let data_at_risk = collector.at_risk || refused && (flash_only || !dirty.is_empty());
    let registration = match collector.first_refusal {
        Some((code, reason)) => Registration::Refused { code, reason },
        None if initialised => Registration::Initialised,
        None => Registration::Accepted,
    };
    Ok(Report {
        registration,
        data_at_risk,
        dirty,
        incomplete: collector.incomplete,
        unread: collector.unread,
        worst: collector.worst,
        findings: collector.findings,
        counts: collector.counts,
    })
}

fn read_superblock(device: &dyn ReadDevice) -> Result<(Superblock, Verdict), OpenError> {
    let mut bytes = AlignedBuf::zeroed(SB_BYTES);
    device.read_at(SB_OFFSET_BYTES, &mut bytes)?;
    let sb = Superblock::from_bytes(&bytes).ok_or(OpenError::NotBcache)?;
    if !sb.magic_ok() {
        return Err(OpenError::NotBcache);
    }
    if sb.kind() == Some(Kind::Backing) {
        return Err(OpenError::BackingDevice);
    }
    let info = device.info();
    let target = Target {
        device_size: info.size(),
        disk_size: info.disk_size,
        logical_block_bytes: info.logical_block_bytes,
    };
    let verdict = kernel_verdict(&sb, &target);
    Ok((sb, verdict))
}

fn check_superblock(verdict: &Verdict, collector: &mut Collector<'_>) {
    if let Some(refusal) = verdict.refusal {
        collector.add(Detail::Refusal(refusal));
    }
    for &warning in &verdict.warnings {
        // The others are about how well a set works, or about other kernels: for `show`.
        if matches!(
            warning,
            Warning::ReplacementUnknown { .. }
                | Warning::PartitionTooSmall { .. }
                | Warning::NoDataBuckets
                | Warning::OneBlockBtreeNodes { .. }
                | Warning::BucketSizeOverflows { .. }
                | Warning::UnknownFlags { .. }
        ) {
            collector.add(Detail::Warning(warning));
        }
    }
}

fn check_set(set: &CacheSet<'_>, options: &CheckOptions<'_>, collector: &mut Collector<'_>) {
    let gens = crate::cache_set::usage::gen_stats(&set.table, set.geometry());
    if gens.at_limit > 0 {
        let (buckets, span_max) = (gens.at_limit, gens.gen_span_max);
        collector.add(Detail::GenLimit { buckets, span_max });
    }
    for (&slot, usage) in &set.volumes {
        let flash_only = set.uuids.get(slot).is_some_and(UuidEntry::flash_only);
        let clean = usage.cached_sectors - usage.dirty_sectors;
        if flash_only && clean.0 > 0 {
            collector.add(Detail::FlashClean { slot, clean });
        }
    }
    for device in &options.backing {
        backing::check(set, *device, options.verify_clean, collector);
    }
}

fn dirty_volumes(set: &CacheSet<'_>) -> Vec<DirtyVolume> {
    set.volumes
        .iter()
        .filter(|(_, usage)| usage.dirty_sectors.0 > 0)
        .map(|(&slot, usage)| {
            let entry = set.uuids.get(slot);
            DirtyVolume {
                slot,
                uuid: entry.map_or(uuid::Uuid::nil(), |entry| entry.uuid),
                label: entry.map(|entry| entry.label.to_string()).unwrap_or_default(),
                flash_only: entry.is_some_and(UuidEntry::flash_only),
                dirty_sectors: usage.dirty_sectors,
            }
        })
        .collect()
}
