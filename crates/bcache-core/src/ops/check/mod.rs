//! The consistency check of a cache device: read-only, and not stopped by what it finds.
//!
//! Everything that the kernel looks at during registration is checked as the kernel does it, and
//! what it does not look at besides (docs/on-disk-format.md §8.7). The report answers two questions
//! first: would the kernel register this, and is data at risk.
//!
//! Each finding has a stable code; all are listed in docs/findings.md.

pub mod backing;
mod code;
mod finding;
mod gone;
mod place;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

pub use backing::BackingProblem;
pub use code::{Code, Severity, table};
pub(super) use finding::problem_code;
pub use finding::{Detail, Finding};
pub use place::Place;

use crate::cache_set::{CacheSet, OpenError, Problem, Progress, ReadError, ReadOptions, Visitor};
use crate::device::ReadDevice;
use crate::inspect::{
    Advice, Answer, BackingDevices, Contents, CutOff, Device, Doubt, Group, Identity, InspectError,
    SearchMachine, SearchSeen, Stakes, Volumes,
};
use crate::layout::superblock::{BackingState, Kind, Superblock};
use crate::layout::uuid_entry::UuidEntry;
use crate::layout::verdict::{Refusal, Verdict, Warning};
use crate::units::Sectors;

/// Findings of one code that are told one by one, unless [`CheckOptions`] says otherwise.
pub const FINDINGS_PER_CODE: usize = 20;

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
    /// Whether somebody uses the device that is checked: what is advised then is to stop it first.
    pub in_use: bool,
    /// How to find the machine's backing devices: owners of volumes that were not named.
    pub search_machine: Option<SearchMachine>,
    /// How to find all devices of the machine that carry superblocks: copies of the ones that are checked.
    pub search_copies: Option<SearchSeen>,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        Self {
            read: ReadOptions::default(),
            backing: Vec::new(),
            verify_clean: false,
            findings_per_code: FINDINGS_PER_CODE,
            in_use: false,
            search_machine: None,
            search_copies: None,
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

/// A backing device that was checked without its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingAlone {
    /// Its path.
    pub path: PathBuf,
    /// What its superblock says of its state; `None` where that cannot be trusted.
    pub state: Option<BackingState>,
}

/// A device with no superblock of bcache, which was named with backing devices.
#[derive(Debug)]
pub struct Stranger {
    /// Its path.
    pub path: PathBuf,
    /// What it is instead.
    pub why: OpenError,
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
    /// What exists only on this cache; of backing devices without their cache, what that may hold.
    pub stakes: Stakes,
    /// The devices, where no cache was named.
    #[serde(skip)]
    pub alone: Vec<BackingAlone>,
    /// Devices beside these that are none of bcache, or of which only a journal is left.
    #[serde(skip)]
    pub strangers: Vec<Stranger>,
    /// The volumes of the set, with their owners.
    #[serde(skip)]
    pub volumes: Volumes,
    /// What a person can do.
    #[serde(skip)]
    pub advice: Vec<Advice>,
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
    /// Devices that were named and of which no superblock could be read.
    unreadable: Vec<PathBuf>,
    at_risk: bool,
    worst: Option<Severity>,
    cut_off: CutOff,
    progress: &'p mut dyn FnMut(CheckProgress),
}

impl<'p> Collector<'p> {
    fn new(per_code: usize, progress: &'p mut dyn FnMut(CheckProgress)) -> Self {
        Self {
            findings: Vec::new(),
            counts: BTreeMap::new(),
            per_code,
            first_refusal: None,
            incomplete: false,
            unread: false,
            unreadable: Vec::new(),
            at_risk: false,
            worst: None,
            cut_off: CutOff::default(),
            progress,
        }
    }

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
            return;
        }
        // Of those of a code, some are worse than others.
        let is_milder = |it: &&mut Finding| it.code() == code && it.severity() < severity;
        if let Some(milder) = self.findings.iter_mut().rev().find(is_milder) {
            *milder = finding;
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
        if self.cut_off.explains(&problem) {
            (self.incomplete, self.unread) = (true, true);
        } else {
            self.add(problem);
        }
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

/// Checks the cache device, and how the backing devices that were named go with it. A backing device in
/// its place is checked without its cache, and so are the others then.
pub fn check<'d>(
    device: &'d dyn ReadDevice,
    options: &CheckOptions<'d>,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<Report, CheckError> {
    let mut collector = Collector::new(options.findings_per_code, progress);
    // What is cut off is told once; the rest of the findings would repeat it.
    let mut cache = Device::read_superblock(device).map_err(from_inspect)?;
    match cache.kind() {
        Some(Kind::Cache) => {}
        Some(Kind::Backing) => return check_alone(cache, options, collector),
        // What was named beside it is judged whatever it is itself.
        None if options.backing.iter().any(|it| is_backing(*it)) => {
            return check_alone(cache, options, collector);
        }
        None => return Err(cache.no_bcache().unwrap_or(OpenError::NotBcache).into()),
    }
    collector.cut_off = CutOff::of(&cache);
    check_superblock(&cache, collector.cut_off.needed(), &mut collector);
    cache.read_set(&options.read, &mut collector).map_err(from_inspect)?;
    check_contents(&cache, &mut collector);
    let devices = with_backing(cache, options, &mut collector)?;
    let at_hand =
        options.search_machine.map_or_else(BackingDevices::default, BackingDevices::with_machine);
    let mut group = grouped(devices, at_hand, options, &mut collector);
    let mut gone = Vec::new();
    if let Some((cache, others)) = group.members.split_first() {
        gone = gone::of_set(cache, others, options.read.walk);
        for backing in others {
            if let Some(gone) = gone.iter().find(|it| it.path == *backing.path()) {
                let (path, slot) = (gone.path.clone(), gone.slot);
                collector.add(BackingProblem::SuperblockGone { path, slot });
                continue;
            }
            backing::check(backing, &cache.device, options.verify_clean, &mut collector);
        }
    }
    let mut cache = group.members.swap_remove(0);
    if let Some(older) = cache.device.older_set {
        collector.add(Detail::CoversSet { at: older.at });
    }
    gone::advise(&mut cache, &gone);
    let dirty = cache.device.set().map(|it| dirty_volumes(&it.set)).unwrap_or_default();
    // A cache that holds nothing of its own can be made anew.
    let refused = collector.worst == Some(Severity::KernelRefuses);
    let something = cache.stakes.answer == Answer::Present || cache.stakes.has_flash_only();
    let registration = match collector.first_refusal {
        Some((code, reason)) => Registration::Refused { code, reason },
        None if !cache.device.superblock.as_ref().is_some_and(Superblock::sync) => {
            Registration::Initialised
        }
        None => Registration::Accepted,
    };
    Ok(Report {
        registration,
        data_at_risk: collector.at_risk || refused && something,
        dirty,
        incomplete: collector.incomplete || cache.stakes.answer == Answer::Unknown,
        unread: collector.unread,
        worst: collector.worst,
        findings: collector.findings,
        counts: collector.counts,
        stakes: cache.stakes,
        alone: Vec::new(),
        strangers: Vec::new(),
        volumes: cache.volumes,
        advice: with_copies(cache.advice, collector.unreadable),
    })
}

/// `first`, and the backing devices that were named, each with whether somebody uses it, where that counts.
fn with_backing<'d>(
    first: Device<'d>,
    options: &CheckOptions<'d>,
    collector: &mut Collector<'_>,
) -> Result<Vec<(Device<'d>, bool)>, CheckError> {
    let mut devices = vec![(first, options.in_use)];
    for backing in &options.backing {
        match Device::read_superblock(*backing) {
            Ok(device) => devices.push((device, false)),
            Err(InspectError::Device(source)) => {
                let path = backing.info().path.clone();
                collector.unreadable.push(path.clone());
                collector.add(BackingProblem::Unreadable { path, source });
            }
            Err(error) => return Err(from_inspect(error)),
        }
    }
    Ok(devices)
}

/// `devices` and their copies, of which `collector` is told.
fn grouped<'d>(
    devices: Vec<(Device<'d>, bool)>,
    at_hand: BackingDevices,
    options: &CheckOptions<'d>,
    collector: &mut Collector<'_>,
) -> Group<'d> {
    let mut group = Group::new(devices, &mut at_hand.beside_copies(options.search_copies));
    for copied in std::mem::take(&mut group.copies) {
        collector.add(Detail::Copied(copied));
    }
    group
}

fn is_backing(device: &dyn ReadDevice) -> bool {
    Device::read_superblock(device).is_ok_and(|it| it.kind() == Some(Kind::Backing))
}

/// Checks backing devices of which no cache was named.
fn check_alone<'d>(
    first: Device<'d>,
    options: &CheckOptions<'d>,
    mut collector: Collector<'_>,
) -> Result<Report, CheckError> {
    let devices = with_backing(first, options, &mut collector)?;
    let group = grouped(devices, BackingDevices::default(), options, &mut collector);
    let mut stakes = Stakes::none();
    let mut advice = Vec::new();
    let (mut alone, mut strangers) = (Vec::new(), Vec::new());
    for member in &group.members {
        backing::check_alone(member, &mut collector);
        if let Some(why) = member.device.no_bcache() {
            strangers.push(Stranger { path: member.path().clone(), why });
            continue;
        }
        stakes = stakes.and(&member.stakes);
        for piece in &member.advice {
            if !advice.contains(piece) {
                advice.push(piece.clone());
            }
        }
        if member.device.older_set.is_some() {
            continue;
        }
        let trusted = member.device.superblock.as_ref().filter(|sb| sb.csum_ok());
        alone.push(BackingAlone {
            path: member.path().clone(),
            state: trusted.map(Superblock::state),
        });
    }
    let refusal = collector.findings.iter().find(|it| it.code() == Code::BackingRefused);
    let registration = refusal.map_or(Registration::Accepted, |refusal| Registration::Refused {
        code: Code::BackingRefused,
        reason: refusal.found(),
    });
    Ok(Report {
        registration,
        data_at_risk: collector.at_risk,
        dirty: Vec::new(),
        incomplete: collector.incomplete || stakes.answer != Answer::None,
        unread: collector.unread,
        worst: collector.worst,
        findings: collector.findings,
        counts: collector.counts,
        stakes,
        alone,
        strangers,
        volumes: Volumes::default(),
        advice: with_copies(advice, collector.unreadable),
    })
}

/// What can be done, with the copies of devices that cannot be read behind what must not be done.
fn with_copies(mut advice: Vec<Advice>, unreadable: Vec<PathBuf>) -> Vec<Advice> {
    let copies = unreadable.into_iter().map(|device| Advice::CopyDevice { device });
    gone::add_behind_warnings(&mut advice, copies);
    advice
}

fn from_inspect(error: InspectError) -> CheckError {
    match error {
        InspectError::Device(source) => CheckError::Open(source.into()),
        InspectError::OutOfMemory { nbuckets, source } => {
            CheckError::Read(ReadError::OutOfMemory { nbuckets, source })
        }
    }
}

fn check_superblock(device: &Device<'_>, cut_off: Option<Sectors>, collector: &mut Collector<'_>) {
    let Some(verdict) = &device.verdict else { return };
    let too_small = Some(Refusal::DeviceTooSmall);
    if let Some(needed) = cut_off {
        let present = device.handle.info().size();
        let refusal = verdict.refusal.filter(|refusal| Some(*refusal) == too_small);
        collector.add(Detail::CutOff { present, needed, refusal });
    }
    match verdict.refusal {
        Some(_) if matches!(device.identity, Identity::MagicWiped(_)) => {
            collector.add(Detail::MagicWiped);
        }
        Some(_) if device.identity == Identity::SuperblockGone => {
            collector.add(Detail::SuperblockGone);
        }
        Some(refusal) if cut_off.is_none() || verdict.refusal != too_small => {
            collector.add(Detail::Refusal(refusal));
        }
        _ => {}
    }
    for &warning in &verdict.warnings {
        // The others are about how well a set works, or about other kernels: for `show`.
        let told = match warning {
            Warning::PartitionTooSmall { .. } => cut_off.is_none(),
            Warning::UnknownFlags { .. } => true,
            _ => warning.is_hazard(),
        };
        if told {
            collector.add(Detail::Warning(warning));
        }
    }
}

/// Judges what a cache device holds, beyond what the reader told.
fn check_contents(device: &Device<'_>, collector: &mut Collector<'_>) {
    // All that the set needs may be there; the data at the end is not.
    collector.unread |= device.cut_off.is_some();
    match &device.contents {
        Contents::Set(contents) => {
            // Where the superblock is refused, the kernel does not come to look at the flag.
            if contents.unsynced && device.verdict.as_ref().is_some_and(Verdict::accepts) {
                collector.add(Detail::Unsynced);
            }
            check_set(&contents.set, collector);
        }
        Contents::New if device.doubts.contains(&Doubt::OldJournal) => {
            collector.add(Detail::Warning(Warning::SetUuidReused));
        }
        Contents::Unreadable(ReadError::Open(error)) => {
            (collector.incomplete, collector.unread) = (true, true);
            if device.verdict.as_ref().is_some_and(Verdict::accepts) && device.cut_off.is_none() {
                collector.add(Detail::Geometry(error.to_string()));
            }
        }
        // Told as a finding already.
        Contents::Unreadable(_) | Contents::New | Contents::None => {}
    }
}

fn check_set(set: &CacheSet<'_>, collector: &mut Collector<'_>) {
    let gens = crate::cache_set::usage::gen_stats(&set.table, set.geometry());
    if gens.at_limit > 0 {
        let (buckets, span_max) = (gens.at_limit, gens.gen_span_max);
        collector.add(Detail::GenLimit { buckets, span_max });
    }
    for (&slot, usage) in &set.volumes {
        let is_detached = set.uuids.get(slot).is_some_and(UuidEntry::is_detached);
        let dirty = usage.dirty_sectors;
        if is_detached && dirty.0 > 0 {
            collector.add(Detail::DetachedDirty { slot, dirty });
        }
    }
    for (slot, clean) in set.flash_clean() {
        collector.add(Detail::FlashClean { slot, clean });
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
