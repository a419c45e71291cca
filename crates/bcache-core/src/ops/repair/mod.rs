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
mod decided;
mod error;
mod fix;
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
pub use decided::RepairPlan;
pub use error::RepairError;
pub use fix::{Class, Code, Fix, Place};
pub use left::Left;
pub use reason::{Anew, NotAnew, Reason, Share};
pub use run::{RepairRunError, run, run_backing, run_with_undo};
pub use witness::Witness;

use std::collections::HashMap;

use crate::cache_set::reused::set_uuid_reused;
use crate::cache_set::{CacheDevice, Journal, Progress, ReadError, ReadOptions, expect_superblock};
use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::inspect::{Device, OlderSet, older_set};
use crate::layout::superblock::{Kind, SB_OFFSET_BYTES, Superblock};
use crate::layout::verdict::{Refusal, Verdict, kernel_verdict};
use crate::ops::backing_gone;
use crate::ops::check::{BackingProblem, Detail};
use crate::ops::plan::{Step, WriteKind};
use crate::ops::planned::PlannedDevice;
use bits::FoundFlip;
use owner::Owner;
use reading::{Reading, read};

/// A superblock that was mended, and of what.
type Mended = (Code, Superblock);

/// How often the set is read: damage may hide other damage.
const ROUNDS: usize = 16;

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
    let claims = claims::with_uuids(claims, backing)?;
    let found = expect_superblock(cache)?;
    let mended = match superblock_of_set(cache, backing, &found, options)? {
        Ok(mended) => mended,
        Err(mut left) => {
            if !backing.is_empty() {
                left.extend(left::beside(cache, backing, &[], options));
            }
            return Ok(RepairPlan::without_set(Vec::new(), left, claims));
        }
    };
    let code = mended.as_ref().map(|(code, _)| *code);
    let fix = mended.as_ref().map(|(code, sb)| superblock_fix(*code, None, &found, sb));
    let reading = read(cache, fix.as_slice(), options, progress)?;
    if reading.no_set.is_some() && code == Some(Code::SuperblockSync) {
        return Ok(RepairPlan::without_set(Vec::new(), vec![Left::NO_SET], claims));
    }
    let is_read_as_is = code.is_none_or(|code| code == Code::SuperblockPolicy);
    let dirty_sectors_before = reading.dirty_sectors.filter(|_| is_read_as_is);
    let (mut fixes, mut reading) = single_changes(cache, fix, reading, options, progress)?;

    let refused = verdict(cache, &found).refusal;
    let sb = mended.map_or(found, |(_, sb)| sb);
    let (mut dirty_sectors_after, uuids) =
        (reading.dirty_sectors, std::mem::take(&mut reading.uuids));
    let mut left = reading.left(&verdict(cache, &sb));
    let is_cache_sound = left.is_empty();
    let is_sound = is_cache_sound && dirty_sectors_after.is_some();
    let (mut anew, mut not_anew) = (None, None);
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
    if code == Some(Code::SuperblockChecksum) && !vouched {
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
            headless::fixes(cache, backing, &gone, &fixes, &claims, is_cache_sound, options)?;
        fixes.extend(made);
        left.extend(not_made);
    }
    if is_cache_sound && !backing.is_empty() {
        left.extend(left::beside(cache, backing, &fixes, options));
    }
    Ok(RepairPlan {
        fixes,
        left,
        anew,
        not_anew,
        claims,
        dirty_sectors_before,
        dirty_sectors_after,
    })
}

/// The superblock by which the set is read, if that is not the one `found`. An error says what is left where
/// there is no set to read, which is nothing of a new cache.
fn superblock_of_set(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    found: &Superblock,
    options: &ReadOptions,
) -> Result<Result<Option<Mended>, Vec<Left>>, RepairError> {
    let mended = match superblock::mended(found) {
        None if !found.magic_ok() => {
            gone::superblock(cache, backing, options)?.map(|sb| (Code::SuperblockGone, sb))
        }
        mended => mended,
    };
    if let Some(cut_off) = cut_off(cache, found, mended.as_ref()) {
        return Ok(Err(vec![cut_off]));
    }
    // Nobody vouches for what the others say.
    let vouched = !matches!(mended, Some((Code::SuperblockChecksum | Code::SuperblockGone, _)));
    let sb = mended.as_ref().map_or(found, |(_, sb)| sb);
    // Without the flag, nothing of a set is read.
    if vouched && flags::is_cache(sb) && !sb.sync() {
        let is_new = sb.njournal_buckets() == 0;
        let older = if is_new { gone::covered(cache, backing)? } else { None };
        return Ok(match older {
            None if is_new && set_uuid_reused(sb, cache)?.is_none() => Err(Vec::new()),
            None => Ok(Some((Code::SuperblockSync, flags::with_sync(sb)))),
            Some((_, Some(superblock))) => Ok(Some((Code::SuperblockCoversSet, superblock))),
            Some((OlderSet { at, .. }, None)) => {
                Err(vec![Left::Beside(Box::new(Detail::CoversSet { at }.into()))])
            }
        });
    }
    if let Some(sb) = flags::with_policy(sb).filter(|_| vouched) {
        return Ok(Ok(Some((mended.map_or(Code::SuperblockPolicy, |(code, _)| code), sb))));
    }
    Ok(Ok(mended))
}

/// The changes that restore what was on the cache, beginning with that of its superblock, and the set as it
/// reads with all of them. `reading` is the set with the superblock alone.
fn single_changes(
    cache: &dyn ReadDevice,
    superblock: Option<Fix>,
    mut reading: Reading,
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Vec<Fix>, Reading), RepairError> {
    let mut fixes = Vec::from_iter(superblock);
    let device = PlannedDevice::new(cache, fixes.iter().map(|it| &it.step));
    let last_seq = last_seq::fixes(&device, &reading.problems);
    if !last_seq.is_empty() {
        fixes.extend(last_seq);
        reading = read(cache, &fixes, options, progress)?;
    }
    if matches!(reading.no_set, Some(ReadError::NoJournal)) {
        // Where a flipped bit is all there is to it, the entry comes back.
        let flips = std::mem::take(&mut reading.flips);
        if flips.is_empty() {
            let device = PlannedDevice::new(cache, fixes.iter().map(|fix| &fix.step));
            fixes.extend(blank::entry(&device, progress));
        }
        mend_bits(cache, &mut fixes, flips)?;
        reading = read(cache, &fixes, options, progress)?;
    }
    for _ in 0..ROUNDS {
        let before = fixes.len();
        mend_bits(cache, &mut fixes, std::mem::take(&mut reading.flips))?;
        if fixes.len() == before {
            break;
        }
        reading = read(cache, &fixes, options, progress)?;
    }
    let mended_journal = |fix: &Fix| matches!(fix.place, Place::JournalEntry { .. });
    if fixes.iter().any(mended_journal) && !is_one_journal(cache, &fixes)? {
        fixes.retain(|fix| !mended_journal(fix));
        reading = read(cache, &fixes, options, progress)?;
    }
    Ok((fixes, reading))
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
fn cut_off(device: &dyn ReadDevice, found: &Superblock, mended: Option<&Mended>) -> Option<Left> {
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
