//! One device, read as far as was asked for.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use bcache_core::cache_set::CacheDevice;
use bcache_core::device::ReadDevice;
use bcache_core::layout::superblock::Kind;
use bcache_core::layout::verdict::Warning;
use bcache_core::ops::make::read_superblock;

use crate::cli::ShowArgs;
use crate::cli::lists::{BucketList, LookupPlace};
use crate::deep::reading::{self, Outcome};
use crate::deep::{Answer, BackingDevices, DirtyAnswer, Reading, VolumeReport, Volumes};
use crate::render::device::DeviceReport;

/// What a cache device holds.
pub(super) struct Deep<'d> {
    pub(super) reading: Box<Reading<'d>>,
    pub(super) volumes: Volumes,
}

/// A device and what was read of it.
pub(super) struct Examined<'d> {
    pub(super) report: DeviceReport,
    /// `None` where it was not asked for, or the question makes no sense.
    pub(super) dirty: Option<DirtyAnswer>,
    /// `None` where there is no set, or it was not asked for.
    pub(super) deep: Option<Deep<'d>>,
    /// What went wrong while lists were made.
    error: RefCell<Option<anyhow::Error>>,
}

impl Examined<'_> {
    /// Whether the superblock is good and nothing of what was asked for is missing.
    pub(super) fn is_sound(&self) -> bool {
        let unknown = self.dirty.as_ref().is_some_and(|dirty| dirty.answer == Answer::Unknown);
        let incomplete = self.deep.as_ref().is_some_and(|deep| deep.reading.incomplete);
        self.report.is_sound() && !unknown && !incomplete
    }

    /// Whether it is a cache, and wiping it may lose something.
    pub(super) fn is_unsafe_to_wipe(&self) -> bool {
        self.report.kind == Some(Kind::Cache)
            && self.dirty.as_ref().is_some_and(|dirty| !dirty.safe_to_wipe)
    }

    pub(super) fn fail(&self, error: anyhow::Error) {
        self.error.borrow_mut().get_or_insert(error);
    }

    pub(super) fn take_error(&self) -> Option<anyhow::Error> {
        self.error.borrow_mut().take()
    }
}

/// Reads what `args` ask for.
pub(super) fn examine<'d>(
    args: &ShowArgs,
    report: &DeviceReport,
    device: &'d dyn ReadDevice,
    backing: &mut BackingDevices,
) -> Result<Examined<'d>> {
    let mut examined =
        Examined { report: report.clone(), dirty: None, deep: None, error: RefCell::default() };
    if args.superblock {
        return Ok(examined);
    }
    match report.kind {
        Some(Kind::Cache) => {}
        Some(Kind::Backing) => {
            let sb = read_superblock(device)?.filter(|_| args.dirty);
            examined.dirty = sb.map(|sb| {
                if sb.csum_ok() {
                    DirtyAnswer::of_backing(sb.state())
                } else {
                    DirtyAnswer::unknown("its superblock has a bad checksum")
                }
            });
            // Named beside its cache, a backing device is there for its volume to be recognised.
            if args.devices.len() > 1 {
                return Ok(examined);
            }
            let why = "a backing device has no buckets and no keys";
            return Ok(wanted_nothing(args, examined, why));
        }
        None => {
            examined.dirty =
                args.dirty.then(|| DirtyAnswer::unknown("it carries no bcache superblock"));
            return Ok(wanted_nothing(args, examined, "no bcache superblock"));
        }
    }
    let in_use = !report.in_use.is_empty();
    let cache = match CacheDevice::open(device) {
        Ok(cache) => cache,
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            examined.dirty = Some(DirtyAnswer::unknown(&error));
            return Ok(wanted_nothing(args, examined, &error));
        }
    };
    let checksum_ok = cache.superblock().csum_ok();
    match reading::read(cache)? {
        Outcome::Unsynced if !checksum_ok => {
            let why = "its superblock has a bad checksum and says that the device is new";
            examined.dirty = Some(DirtyAnswer::unknown(why));
            Ok(wanted_nothing(args, examined, why))
        }
        Outcome::Unsynced => {
            examined.dirty = Some(DirtyAnswer::of_unsynced(in_use));
            Ok(wanted_nothing(args, examined, "the device holds no cache set yet"))
        }
        Outcome::Nothing { error, refusal } => {
            examined.refuse(refusal);
            examined.dirty = Some(DirtyAnswer::unknown(&error));
            Ok(wanted_nothing(args, examined, &error))
        }
        Outcome::Read(reading) => {
            examined.refuse(reading.refusal);
            // Its question has been answered.
            let open = Warning::DependsOnJournal.to_string();
            examined.report.kernel.warnings.retain(|warning| *warning != open);
            let volumes = Volumes::new(&reading.set, backing);
            examined.dirty = Some(DirtyAnswer::of_set(&reading, &volumes, in_use));
            let nbuckets = reading.set.geometry().nbuckets();
            if let Some(last) = args.bucket.as_ref().and_then(BucketList::last) {
                ensure!(last < nbuckets, "there is no bucket {last}; the last is {}", nbuckets - 1);
            }
            examined.deep = Some(Deep { reading, volumes });
            Ok(examined)
        }
    }
}

/// The device holds nothing to list: an error where a list was asked for.
fn wanted_nothing<'d>(args: &ShowArgs, examined: Examined<'d>, why: &str) -> Examined<'d> {
    let parts = args.parts();
    if (parts.usage || parts.lists() > 0) && !args.all {
        examined
            .fail(anyhow::anyhow!("{}: nothing to list: {why}", examined.report.path.display()));
    }
    examined
}

impl Examined<'_> {
    /// Completes the superblock's verdict with what registration would find next.
    fn refuse(&mut self, refusal: Option<bcache_core::cache_set::SetRefusal>) {
        if let Some(refusal) = refusal.filter(|_| self.report.kernel.accepts) {
            self.report.kernel.accepts = false;
            self.report.kernel.error = Some(refusal.to_string());
        }
    }
}

impl Deep<'_> {
    /// The volumes behind the places that were asked for.
    pub(super) fn places<'a>(
        &self,
        args: &'a ShowArgs,
    ) -> Result<Vec<(VolumeReport, &'a LookupPlace)>> {
        args.lookup
            .iter()
            .map(|place| Ok((self.volumes.find(&place.volume)?.clone(), place)))
            .collect()
    }
}
