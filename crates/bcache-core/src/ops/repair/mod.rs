//! Mending a damaged cache set where what was there before can be told.
//!
//! First come changes that restore bytes that were on the device: a flipped bit in a structure with a
//! checksum, the wiped magic of a superblock, or its checksum where the rest of the set confirms its
//! contents. Nothing is made up, and nothing readable is lost.
//!
//! Each of these changes is one write within a logical block. They do not depend on each other, so that a
//! power cut leaves some of them done, and the command run again completes them. The superblock comes last,
//! after a flush. Without it the kernel does not touch the device; with it, it may register a set that is
//! not mended yet.
//!
//! What is still damaged then is left behind: new metadata is made from all that can be read (see `anew`),
//! and becomes current with one journal entry.
//!
//! A journal entry is mended only where no other entry has its number. Else the kernel may have gone on from
//! the entry before it, and the mended one would be of a state that is gone.

mod anew;
mod bits;
mod blank;
mod claims;
mod flags;
mod gone;
mod headless;
mod last_seq;
mod left;
mod missed;
mod owner;
mod reading;
mod reason;
mod region;
mod run;
mod salvaged;
mod scan;
mod search;
mod slots;
mod superblock;
mod volumes;
mod witness;

pub use crate::ops::backing_gone::{KnownBy, NotRebuilt, Recognised};
pub use claims::{Claim, ClaimError};
pub use left::Left;
pub use reason::{Anew, NotAnew, Reason, Share};
pub use run::{RepairRunError, run, run_backing, run_with_undo};
pub use witness::Witness;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use crate::cache_set::reused::set_uuid_reused;
use crate::cache_set::{
    CacheDevice, Journal, OpenError, Progress, ReadError, ReadOptions, expect_superblock,
};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::inspect::{Device, InspectError, OlderSet, older_set};
use crate::layout::superblock::{Kind, SB_OFFSET_BYTES, Superblock};
use crate::layout::verdict::{Refusal, Verdict, kernel_verdict};
use crate::ops::backing_gone;
use crate::ops::check::{BackingProblem, Detail};
use crate::ops::plan::{Plan, Step, WriteKind};
use crate::ops::planned::PlannedDevice;
use crate::units::{BucketIndex, Sectors};
use bits::FoundFlip;
use owner::Owner;
use reading::read;

/// How often the set is read: damage may hide other damage.
const ROUNDS: usize = 16;

/// What is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The magic of a superblock was wiped, and its checksum proves that nothing else was.
    SuperblockMagic,
    /// A superblock is gone, and the rest of the set tells what it was.
    SuperblockGone,
    /// A set is behind the superblock of a new one, and the rest of it tells what its own was.
    SuperblockCoversSet,
    /// One bit was flipped, which the checksum names.
    FlippedBit,
    /// One field of a superblock was changed, which the checksum names.
    SuperblockField,
    /// The checksum of a superblock is wrong, and all that it says is true of the device.
    SuperblockChecksum,
    /// The superblock says that the cache is new, and a set is on it.
    SuperblockSync,
    /// The superblock has a replacement policy that the kernel does not know, and does not survive.
    SuperblockPolicy,
    /// A journal entry says that replay begins after it.
    LastSeq,
    /// Journal entries are missing, or damage hides newer ones from the kernel.
    Journal,
    /// Prio sets are lost.
    PrioSets,
    /// The uuid table is lost or damaged.
    UuidTable,
    /// A btree node is lost or damaged, the root among them, or contradicts others.
    BtreeNode,
    /// Keys contradict their buckets, or their volume.
    Keys,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::SuperblockMagic,
        Self::SuperblockGone,
        Self::SuperblockCoversSet,
        Self::FlippedBit,
        Self::SuperblockField,
        Self::SuperblockChecksum,
        Self::SuperblockSync,
        Self::SuperblockPolicy,
        Self::LastSeq,
        Self::Journal,
        Self::PrioSets,
        Self::UuidTable,
        Self::BtreeNode,
        Self::Keys,
    ];

    /// Its name, which does not change.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SuperblockMagic => "superblock-magic",
            Self::SuperblockGone => "superblock-gone",
            Self::SuperblockCoversSet => "superblock-covers-set",
            Self::FlippedBit => "flipped-bit",
            Self::SuperblockField => "superblock-field",
            Self::SuperblockChecksum => "superblock-checksum",
            Self::SuperblockSync => "superblock-sync",
            Self::SuperblockPolicy => "superblock-policy",
            Self::LastSeq => "last-seq",
            Self::Journal => "journal",
            Self::PrioSets => "prio-sets",
            Self::UuidTable => "uuid-table",
            Self::BtreeNode => "btree-node",
            Self::Keys => "keys",
        }
    }
}

/// How sure it is that a change restores what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// It is proven, by a checksum or by what the journal still has.
    Certain,
    /// Everything speaks for it, and nothing proves it; or the set is still damaged afterwards, and
    /// the kernel could register it.
    Likely,
    /// Data that the cache alone had may be lost or old.
    Guess,
}

impl Class {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
            Self::Guess => "guess",
        }
    }
}

/// Where a change is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// A journal entry.
    JournalEntry {
        /// Its bucket.
        bucket: BucketIndex,
        /// Its number.
        seq: u64,
    },
    /// A prio set.
    PrioSet {
        /// Its place in the chain.
        index: u64,
        /// Its bucket.
        bucket: BucketIndex,
    },
    /// A btree node.
    BtreeNode {
        /// Its bucket.
        bucket: BucketIndex,
        /// Its level.
        level: u16,
    },
    /// What stands before the superblock, of which bcache has nothing.
    Head,
    /// Data of a backing device.
    Data {
        /// First sector, from the start of the device.
        start: u64,
        /// How many.
        sectors: u64,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::JournalEntry { bucket, seq } => {
                write!(f, "journal entry {seq} in bucket {bucket}")
            }
            Self::PrioSet { index, bucket } => write!(f, "prio set {index} in bucket {bucket}"),
            Self::BtreeNode { bucket, level } => {
                write!(f, "btree node in bucket {bucket} (level {level})")
            }
            Self::Head => f.write_str("sectors 0 to 7"),
            Self::Data { start, sectors } => {
                write!(f, "sectors {start} to {}", start.saturating_add(*sectors).saturating_sub(1))
            }
        }
    }
}

/// One change.
#[derive(Clone, Debug)]
pub struct Fix {
    /// What is mended.
    pub code: Code,
    /// How sure it is.
    pub class: Class,
    /// The backing device, counted in the order given; `None` for the cache.
    pub backing: Option<usize>,
    /// Where.
    pub place: Place,
    /// The first byte that changes, from the start of the device.
    pub byte: u64,
    /// Of a backing device whose superblock is made again: what it is, and how that is known.
    pub recognised: Option<Recognised>,
    /// Of a backing device: what was made on it since its superblock was overwritten.
    pub holds: Option<String>,
    step: Step,
}

/// Why there is no plan. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A device could not be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no cache superblock, nor what is left of one.
    #[error("{}: no cache set that could be repaired", path.display())]
    NoCache {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// A device cannot be inspected.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// A superblock is gone or overwritten, and nothing tells the whole UUID of its set.
    #[error(
        "{}: the superblock of its set has to be made again, and only the backing devices of that set have the \
         whole of its UUID: name one of them",
        path.display()
    )]
    SetUuid {
        /// The cache.
        path: PathBuf,
    },
    /// There is not enough memory to read the set.
    #[error("{}: the cache set cannot be read", path.display())]
    NotRead {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// A claim is refused.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// A repair that is decided and not carried out.
#[derive(Debug)]
pub struct RepairPlan {
    /// The changes, in the order in which they were found.
    pub fixes: Vec<Fix>,
    /// What is still wrong with the set once all of them are made: what keeps the kernel or these tools
    /// from the set, or hides dirty data.
    pub left: Vec<Left>,
    /// New metadata, where that mends what single changes do not; then `left` is what is left without it.
    pub anew: Option<Anew>,
    /// Why there is none, where it is needed.
    pub not_anew: Option<NotAnew>,
    /// What a person says of the volumes.
    pub claims: Vec<Claim>,
    /// How many such problems there were before; where the superblock had to be mended first, after that.
    pub problems_before: usize,
    /// Dirty sectors that can be found now; `None` where the set cannot be read.
    pub dirty_sectors_before: Option<Sectors>,
    /// Dirty sectors that can be found once all changes are made; `None` where it cannot be read.
    pub dirty_sectors_after: Option<Sectors>,
}

impl Fix {
    /// A change of which nothing has to be known but where it is made.
    const fn new(code: Code, class: Class, place: Place, byte: u64, step: Step) -> Self {
        Self { code, class, backing: None, place, byte, recognised: None, holds: None, step }
    }

    /// Whether it is made where likely changes of these codes are accepted.
    pub fn is_accepted(&self, accepted: &BTreeSet<Code>) -> bool {
        self.class == Class::Certain || accepted.contains(&self.code)
    }
}

impl RepairPlan {
    /// A plan that changes nothing.
    fn nothing_but(left: Left, claims: Vec<Claim>) -> Self {
        Self::without_set(Vec::new(), vec![left], claims)
    }

    /// A plan for which no set was read.
    fn without_set(fixes: Vec<Fix>, left: Vec<Left>, claims: Vec<Claim>) -> Self {
        Self {
            problems_before: left.len().saturating_add(fixes.len()),
            fixes,
            left,
            anew: None,
            not_anew: None,
            claims,
            dirty_sectors_before: None,
            dirty_sectors_after: None,
        }
    }

    /// Whether one of the changes is made where those of these codes are accepted. A first journal entry is
    /// of use with the new metadata alone.
    pub fn is_made(&self, fix: &Fix, accepted: &BTreeSet<Code>) -> bool {
        fix.is_accepted(accepted) && (fix.code != Code::Journal || self.is_anew_accepted(accepted))
    }

    /// The changes that are made when those of `accepted` are.
    pub fn accepted<'p>(&'p self, accepted: &'p BTreeSet<Code>) -> impl Iterator<Item = &'p Fix> {
        self.fixes.iter().filter(|fix| self.is_made(fix, accepted))
    }

    /// Whether the new metadata is made where changes of these codes are accepted. It is made from the
    /// cache as it is with all changes to it.
    pub fn is_anew_accepted(&self, accepted: &BTreeSet<Code>) -> bool {
        let is_accepted =
            |reason: &Reason| reason.class() == Class::Certain || accepted.contains(&reason.code());
        let mut of_cache = self.fixes.iter().filter(|fix| fix.backing.is_none());
        self.anew.as_ref().is_some_and(|anew| anew.reasons.iter().all(is_accepted))
            && of_cache.all(|fix| fix.is_accepted(accepted))
    }

    /// What is still wrong once changes of these codes are made, among them the new metadata.
    pub fn left_with(&self, accepted: &BTreeSet<Code>) -> impl Iterator<Item = &Left> {
        let made_anew = self.is_anew_accepted(accepted);
        self.left.iter().filter(move |left| !made_anew || !left.is_of_metadata())
    }

    /// Whether everything is mended where changes of these codes are accepted.
    pub fn is_whole(&self, accepted: &BTreeSet<Code>) -> bool {
        let fixed = self.fixes.iter().all(|fix| self.is_made(fix, accepted));
        fixed && self.left_with(accepted).next().is_none()
    }

    /// Whether nothing is written where changes of these codes are accepted.
    pub fn is_nothing(&self, accepted: &BTreeSet<Code>) -> bool {
        self.accepted(accepted).next().is_none() && !self.is_anew_accepted(accepted)
    }

    /// The single changes of one device, the superblock last; `None` is the cache.
    pub fn steps(&self, accepted: &BTreeSet<Code>, backing: Option<usize>) -> Plan {
        let mut plan = self.part(accepted, backing, false);
        plan.steps.extend(self.part(accepted, backing, true).steps);
        plan
    }

    /// The superblock of one device, or its other changes, and a flush.
    fn part(&self, accepted: &BTreeSet<Code>, backing: Option<usize>, superblock: bool) -> Plan {
        let these = self
            .accepted(accepted)
            .filter(|fix| fix.backing == backing)
            .filter(|fix| (fix.place == Place::Superblock) == superblock);
        let mut steps: Vec<Step> = these.map(|fix| fix.step.clone()).collect();
        if !steps.is_empty() {
            steps.push(Step::Flush);
        }
        Plan { steps }
    }
}

/// Plans the repair of the set on `cache`, and of the superblocks of `backing`.
pub fn plan(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<RepairPlan, RepairError> {
    plan_with_claims(cache, backing, Vec::new(), options, progress)
}

/// The same, where `claims` say whose a volume is that nothing else tells of.
pub fn plan_with_claims(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    claims: Vec<Claim>,
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<RepairPlan, RepairError> {
    let mut fixes = Vec::new();
    let claims = claims::with_uuids(claims, backing)?;
    let found = expect_superblock(cache)?;
    let mut mended = match superblock::mended(&found) {
        None if !found.magic_ok() => {
            gone::superblock(cache, backing, options)?.map(|sb| (Code::SuperblockGone, sb))
        }
        mended => mended,
    };
    if let Some(cut_off) = cut_off(cache, &found, mended.as_ref()) {
        return Ok(RepairPlan::nothing_but(cut_off, claims));
    }
    // Without the flag, nothing of a set is read.
    let vouched = !matches!(mended, Some((Code::SuperblockChecksum | Code::SuperblockGone, _)));
    let sb = mended.as_ref().map_or(&found, |(_, sb)| sb);
    if vouched && flags::is_cache(sb) && !sb.sync() {
        let is_new = sb.njournal_buckets() == 0;
        let older = if is_new { gone::covered(cache, backing)? } else { None };
        mended = match older {
            None if is_new && set_uuid_reused(sb, cache)?.is_none() => {
                return Ok(RepairPlan {
                    left: Vec::new(),
                    ..RepairPlan::nothing_but(Left::NO_SET, claims)
                });
            }
            None => Some((Code::SuperblockSync, flags::with_sync(sb))),
            Some((_, Some(superblock))) => Some((Code::SuperblockCoversSet, superblock)),
            Some((OlderSet { at, .. }, None)) => {
                let covers = Left::Beside(Box::new(Detail::CoversSet { at }.into()));
                return Ok(RepairPlan::nothing_but(covers, claims));
            }
        };
    } else if let Some(sb) = flags::with_policy(sb).filter(|_| vouched) {
        mended = Some((mended.map_or(Code::SuperblockPolicy, |(code, _)| code), sb));
    }
    fixes.extend(mended.iter().map(|(code, sb)| superblock_fix(*code, None, &found, sb)));
    let mut last = read(cache, &fixes, options, progress)?;
    if last.no_set.is_some() && matches!(mended, Some((Code::SuperblockSync, _))) {
        return Ok(RepairPlan::nothing_but(Left::NO_SET, claims));
    }
    let problems_before = last.problems.len();
    let is_read_as_is = mended.as_ref().is_none_or(|(code, _)| *code == Code::SuperblockPolicy);
    let dirty_sectors_before = if is_read_as_is { last.dirty_sectors } else { None };
    let device = PlannedDevice::new(cache, fixes.iter().map(|it| &it.step));
    let last_seq = last_seq::fixes(&device, &last.problems);
    if !last_seq.is_empty() {
        fixes.extend(last_seq);
        last = read(cache, &fixes, options, progress)?;
    }
    if matches!(last.no_set, Some(ReadError::NoJournal)) {
        // Where a flipped bit is all there is to it, the entry comes back.
        let flips = std::mem::take(&mut last.flips);
        if flips.is_empty() {
            let device = PlannedDevice::new(cache, fixes.iter().map(|fix| &fix.step));
            fixes.extend(blank::entry(&device, progress));
        }
        mend_bits(cache, &mut fixes, flips)?;
        last = read(cache, &fixes, options, progress)?;
    }
    for _ in 0..ROUNDS {
        let before = fixes.len();
        mend_bits(cache, &mut fixes, std::mem::take(&mut last.flips))?;
        if fixes.len() == before {
            break;
        }
        last = read(cache, &fixes, options, progress)?;
    }
    let mended_journal =
        |fix: &Fix| matches!(fix.place, Place::JournalEntry { .. }) && fix.backing.is_none();
    if fixes.iter().any(mended_journal) && !is_one_journal(cache, &fixes)? {
        fixes.retain(|fix| !mended_journal(fix));
        last = read(cache, &fixes, options, progress)?;
    }
    let refused = verdict(cache, &found).refusal;
    let is_resealed = matches!(mended, Some((Code::SuperblockChecksum, _)));
    let sb = mended.map_or(found, |(_, sb)| sb);
    let (mut dirty_sectors_after, uuids) = (last.dirty_sectors, std::mem::take(&mut last.uuids));
    let mut left = last.left(&verdict(cache, &sb));
    let is_sound = left.is_empty() && dirty_sectors_after.is_some();
    let (mut anew, mut not_anew) = (None, None);
    let of_cache = left.len();
    let owners = owners(backing, sb.set_uuid())?;
    if dirty_sectors_after.is_some() {
        let lacking = owners.iter().filter(|it| it.is_complete() && !uuids.contains(&it.uuid()));
        left.extend(lacking.map(|it| Left::NotInTable { path: it.path().clone() }));
    }
    if left.iter().any(Left::is_of_metadata) {
        let device = PlannedDevice::new(cache, fixes.iter().map(|fix| &fix.step));
        match anew::decide(&device, &owners, &claims, options, 0, progress) {
            Ok(ready) => {
                dirty_sectors_after = Some(ready.anew.dirty_sectors());
                anew = Some(ready.anew);
            }
            Err(NotAnew::Claim(error)) => return Err(error.into()),
            Err(error) => {
                fixes.retain(|fix| fix.code != Code::Journal);
                not_anew = Some(error);
            }
        }
    }
    // The whole set reads by it, or what is damaged can be made again from what does.
    let vouched = is_sound || anew.as_ref().is_some_and(|anew| anew.class() < Class::Guess);
    if is_resealed && !vouched {
        fixes.retain(|fix| fix.code != Code::SuperblockChecksum);
        left.splice(..0, refused.map(Left::Superblock));
    }
    let certain = anew.as_ref().is_some_and(|anew| anew.class() == Class::Certain);
    if !left.is_empty() && !certain {
        for fix in fixes.iter_mut().filter(|fix| fix.place == Place::Superblock) {
            fix.class = fix.class.max(Class::Likely);
        }
    }
    let is_known = |it: &Superblock| it.set_uuid() == sb.set_uuid() && uuids.contains(&it.uuid());
    let mut gone = Vec::new();
    for (index, device) in backing.iter().enumerate() {
        match backing_superblock(index, *device, &is_known)? {
            Ok(fix) => fixes.extend(fix),
            Err(_) if backing_gone::is_gone(&Device::read_superblock(*device)?) => gone.push(index),
            Err(refusal) => left.push(Left::of_backing(*device, refusal)),
        }
    }
    if !gone.is_empty() {
        let (made, not_made) =
            headless::fixes(cache, backing, &gone, &fixes, &claims, of_cache == 0, options)?;
        fixes.extend(made);
        left.extend(not_made);
    }
    if of_cache == 0 && !backing.is_empty() {
        left.extend(left::beside(cache, backing, &fixes, options));
    }
    Ok(RepairPlan {
        fixes,
        left,
        anew,
        not_anew,
        claims,
        problems_before,
        dirty_sectors_before,
        dirty_sectors_after,
    })
}

/// Plans the repair of the superblocks of `backing`, of which no cache was named: what their own checksums
/// prove.
pub fn plan_backing(backing: &[&dyn ReadDevice]) -> Result<RepairPlan, DeviceError> {
    let (mut fixes, mut left) = (Vec::new(), Vec::new());
    let mut named = gone::named(backing)?;
    for (index, &device) in backing.iter().enumerate() {
        let read = Device::read_superblock(device).ok();
        let older = read.and_then(|it| older_set(&it, &named.lacking(), &mut named));
        if let Some(OlderSet { at, .. }) = older {
            let path = device.info().path.clone();
            left.push(Left::Beside(Box::new(BackingProblem::IsCache { path, at }.into())));
            continue;
        }
        match backing_superblock(index, device, &|_| false)? {
            Ok(fix) => fixes.extend(fix),
            Err(refusal) => {
                left.push(Left::Alone { path: device.info().path.clone(), refusal });
            }
        }
    }
    Ok(RepairPlan::without_set(fixes, left, Vec::new()))
}

/// The superblock of a backing device, if it is to be mended; or why the kernel refuses one that cannot be.
/// Where its checksum is what is wrong, the cache has to know the device.
fn backing_superblock(
    index: usize,
    device: &dyn ReadDevice,
    is_known: &dyn Fn(&Superblock) -> bool,
) -> Result<Result<Option<Fix>, Refusal>, DeviceError> {
    let found = expect_superblock(device)?;
    if let Some((code, mended)) = superblock::mended(&found) {
        let is_vouched = code != Code::SuperblockChecksum || is_known(&mended);
        let is_backing = mended.kind() == Some(Kind::Backing);
        if is_vouched && is_backing && verdict(device, &mended).accepts() {
            let mut fix = superblock_fix(code, Some(index), &found, &mended);
            // Where something else was made after the magic was wiped, the volume is hardly what it was.
            if code == Code::SuperblockMagic {
                fix.holds = backing_gone::holds(device);
            }
            if fix.holds.is_some() {
                fix.class = fix.class.max(Class::Likely);
            }
            return Ok(Ok(Some(fix)));
        }
    }
    Ok(verdict(device, &found).refusal.map_or(Ok(None), Err))
}

/// Whether the device ends before its last bucket does. Of a superblock whose checksum nobody vouches for,
/// the number of buckets may be what is wrong.
fn cut_off(
    device: &dyn ReadDevice,
    found: &Superblock,
    mended: Option<&(Code, Superblock)>,
) -> Option<Left> {
    let sb = match mended {
        None => found,
        Some((Code::SuperblockChecksum | Code::SuperblockGone, _)) => return None,
        Some((_, sb)) => sb,
    };
    let (present, needed) = (device.info().size(), sb.geometry()?.size());
    (flags::is_cache(sb) && needed > present).then_some(Left::CutOff { present, needed })
}

/// The backing devices of the set among those that were named.
fn owners<'d>(
    backing: &[&'d dyn ReadDevice],
    set_uuid: uuid::Uuid,
) -> Result<Vec<Owner<'d>>, DeviceError> {
    let mut owners = Vec::new();
    for &device in backing {
        owners.extend(Owner::of(device, set_uuid, &expect_superblock(device)?));
    }
    Ok(owners)
}

fn superblock_fix(
    code: Code,
    backing: Option<usize>,
    found: &Superblock,
    mended: &Superblock,
) -> Fix {
    let differs = found.as_bytes().iter().zip(mended.as_bytes()).position(|(old, new)| old != new);
    let class = match code {
        Code::SuperblockChecksum => Class::Likely,
        // A kernel with `synchronous` off writes no journal: the set may be of long ago. And whoever formatted
        // a device may have meant to.
        Code::SuperblockSync | Code::SuperblockCoversSet => Class::Guess,
        _ => Class::Certain,
    };
    let byte = SB_OFFSET_BYTES.saturating_add(differs.unwrap_or(0) as u64);
    let step = Step::Write {
        kind: WriteKind::Superblock,
        offset: SB_OFFSET_BYTES,
        data: AlignedBuf::copy_of(mended.as_bytes()),
    };
    Fix { backing, ..Fix::new(code, class, Place::Superblock, byte, step) }
}

fn verdict(device: &dyn ReadDevice, sb: &Superblock) -> Verdict {
    kernel_verdict(sb, &device.info().target())
}

/// Flips back what was found.
fn mend_bits(
    cache: &dyn ReadDevice,
    fixes: &mut Vec<Fix>,
    found: Vec<FoundFlip>,
) -> Result<(), RepairError> {
    for flip in found {
        if fixes.iter().any(|fix| fix.backing.is_none() && fix.byte == flip.byte) {
            continue;
        }
        // Over what is mended already: two bits can be in one block.
        let step = {
            let device = PlannedDevice::new(cache, fixes.iter().map(|fix| &fix.step));
            bits::write_of(&device, &flip)?
        };
        fixes.push(Fix::new(Code::FlippedBit, Class::Certain, flip.place, flip.byte, step));
    }
    Ok(())
}

/// Whether all entries that count after mending are of one history: each number once, none newer than
/// the newest.
fn is_one_journal(cache: &dyn ReadDevice, fixes: &[Fix]) -> Result<bool, RepairError> {
    let device = PlannedDevice::new(cache, fixes.iter().map(|fix| &fix.step));
    let opened = CacheDevice::open(&device)
        .map_err(|source| RepairError::NoCache { path: cache.info().path.clone(), source })?;
    let journal = Journal::read(&opened, &mut |_| {}, &mut |_| {});
    let Some((first, newest)) = journal.replay_range() else { return Ok(false) };
    let mut times: HashMap<u64, u32> = HashMap::new();
    let all = journal.buckets.iter().flat_map(|it| it.entries.iter().chain(&it.behind));
    for entry in all {
        *times.entry(entry.seq).or_default() += 1;
    }
    Ok(times.iter().all(|(&seq, &count)| seq < first || (seq <= newest && count == 1)))
}
