//! The superblocks of backing devices, made again where they are gone.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions, expect_superblock};
use crate::device::ReadDevice;
use crate::layout::superblock::SB_OFFSET_BYTES;
use crate::ops::backing_gone::{self, Beside, KnownBy, NotRebuilt, Rebuilt, Recognised, Said};
use crate::ops::plan::{Step, WriteKind};
use crate::ops::planned::PlannedDevice;
use crate::ops::repair::{
    Claim, Class, Code, Fix, Left, Place, RepairError, superblock, superblock_fix,
};
use crate::units::{SECTOR_BYTES, Sectors};

/// What makes the superblocks of `gone` again, which are indexes of `backing`, by the set on `cache` as it is
/// with `fixes`; and what is left.
pub(super) fn fixes(
    cache: &dyn ReadDevice,
    backing: &[&dyn ReadDevice],
    gone: &[usize],
    fixes: &[Fix],
    claims: &[Claim],
    is_cache_sound: bool,
    options: &ReadOptions,
) -> Result<(Vec<Fix>, Vec<Left>), RepairError> {
    let devices: Vec<&dyn ReadDevice> =
        gone.iter().filter_map(|index| backing.get(*index).copied()).collect();
    let rebuilt = if is_cache_sound {
        let planned = PlannedDevice::new(cache, fixes.iter().map(|fix| &fix.step));
        let path = || cache.info().path.clone();
        let opened = CacheDevice::open(&planned)
            .map_err(|source| RepairError::NoCache { path: path(), source })?;
        let set = CacheSet::read(opened, options, &mut NoVisitor)
            .map_err(|source| RepairError::NotRead { path: path(), source })?;
        let mut present: BTreeSet<Uuid> = BTreeSet::new();
        for device in backing {
            let found = expect_superblock(*device)?;
            let sb = superblock::mended(&found).map_or(found, |(_, mended)| mended);
            present.extend(Some(sb.uuid()).filter(|_| sb.magic_ok()));
        }
        let mut said = Vec::new();
        for claim in claims {
            let Claim::Device { slot, backing, data_offset } = *claim else { continue };
            if let Some(device) = gone.iter().position(|index| *index == backing) {
                said.push(Said { slot, device, data_offset });
            }
        }
        let beside = Beside { gone: &devices, present: &present, said: &said };
        backing_gone::rebuild(&set, &beside, options.walk)
    } else {
        devices.iter().map(|_| Err(NotRebuilt::CacheFirst)).collect()
    };
    // What the cache says is as sure as its own changes.
    let least = fixes.iter().filter(|fix| fix.backing.is_none()).map(|fix| fix.class).max();
    let (mut made, mut left) = (Vec::new(), Vec::new());
    for ((rebuilt, device), index) in rebuilt.into_iter().zip(&devices).zip(gone) {
        match rebuilt {
            Ok(rebuilt) => {
                let holds = backing_gone::holds(*device);
                let class = class(&rebuilt.device, holds.is_some());
                let class = class.max(least.unwrap_or(Class::Certain));
                made.extend(of_device(*index, *device, rebuilt, class, holds)?);
            }
            Err(why) => left.push(Left::Gone { path: device.info().path.clone(), why }),
        }
    }
    Ok((made, left))
}

/// How sure it is. Data proves whose a volume is. Whether the device was used without its cache since, which
/// would make dirty data older than what is on it, only its superblock could tell.
fn class(device: &Recognised, holds_other: bool) -> Class {
    if device.known_by != KnownBy::Data || holds_other {
        Class::Guess
    } else if device.is_dirty || !device.is_offset_known {
        Class::Likely
    } else {
        Class::Certain
    }
}

/// The changes to one device: its superblock, which comes last, what was written before it, and clean data
/// that the device lacks.
fn of_device(
    index: usize,
    device: &dyn ReadDevice,
    rebuilt: Rebuilt,
    class: Class,
    holds: Option<String>,
) -> Result<Vec<Fix>, RepairError> {
    let found = expect_superblock(device)?;
    let (code, backing) = (Code::SuperblockGone, Some(index));
    let mut fixes = vec![Fix {
        class,
        recognised: Some(rebuilt.device),
        holds,
        ..superblock_fix(code, backing, &found, &rebuilt.superblock)
    }];
    let fix = |place, step, byte| Fix { backing, ..Fix::new(code, class, place, byte, step) };
    if rebuilt.has_head {
        let step = Step::Zero { kind: WriteKind::Wipe, offset: 0, len: SB_OFFSET_BYTES };
        fixes.push(fix(Place::Head, step, 0));
    }
    for (start, data) in rebuilt.data {
        let offset = Sectors(start).bytes();
        let sectors = data.len() as u64 / SECTOR_BYTES;
        let step = Step::Write { kind: WriteKind::Data, offset, data };
        fixes.push(fix(Place::Data { start, sectors }, step, offset));
    }
    Ok(fixes)
}
