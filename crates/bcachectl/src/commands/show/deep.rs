//! A device that was inspected, with all that `show` tells of it.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use bcache_cli::progress::Progress;
use bcache_cli::text::with_causes;
use bcache_core::cache_set::{self, CacheSet, Problem, Visitor};
use bcache_core::inspect::{Answer, Contents, CutOff, Device, Group, Identity, Member};
use bcache_core::layout::superblock::Kind;
use bcache_core::layout::verdict::Warning;
use bcache_core::ops::check::Detail;

use crate::cli::ShowArgs;
use crate::cli::lists::{BucketList, LookupPlace};
use crate::render::device::DeviceReport;
use crate::stakes::{AdviceReport, DirtyAnswer, VolumeReport, advice, find_volume};

/// Most problems that are kept; the rest is counted.
const PROBLEMS_MAX: usize = 20;

/// What the reader found wrong, and the bar that says how far it is.
pub(super) struct Problems {
    progress: Progress,
    cut_off: CutOff,
    /// The first ones, in words.
    pub(super) texts: Vec<String>,
    /// Those beyond.
    pub(super) more: u64,
}

impl Problems {
    pub(super) fn new(path: &std::path::Path) -> Self {
        let progress = Progress::new(path.display().to_string());
        Self { progress, cut_off: CutOff::default(), texts: Vec::new(), more: 0 }
    }

    /// Tells once that the device ends before its buckets do, as the check does.
    pub(super) fn note_end(&mut self, device: &Device<'_>) {
        self.cut_off = CutOff::of(device);
        if let Some(needed) = self.cut_off.needed() {
            let present = device.handle.info().size();
            self.texts.push(Detail::CutOff { present, needed, refusal: None }.to_string());
        }
    }

    pub(super) fn finish(&mut self) {
        self.progress.finish();
    }
}

impl Visitor for Problems {
    fn wants_keys(&self) -> bool {
        false
    }

    fn progress(&mut self, progress: cache_set::Progress) {
        self.progress.reading(progress);
    }

    fn problem(&mut self, problem: Problem) {
        if self.cut_off.explains(&problem) {
            return;
        }
        if self.texts.len() < PROBLEMS_MAX {
            self.texts.push(with_causes(&problem));
        } else {
            self.more += 1;
        }
    }
}

/// A device and what was found on it.
pub(super) struct Shown<'a, 'd> {
    pub(super) report: DeviceReport,
    pub(super) member: &'a Member<'d>,
    pub(super) problems: &'a Problems,
    /// `None` where it was not asked for, or the question makes no sense.
    pub(super) dirty: Option<DirtyAnswer>,
    pub(super) advice: Vec<AdviceReport>,
    /// The volumes of a cache.
    pub(super) volumes: Vec<VolumeReport>,
    /// What went wrong while lists were made.
    error: RefCell<Option<anyhow::Error>>,
}

impl<'a, 'd> Shown<'a, 'd> {
    /// What `show` tells of one device of `group`.
    pub(super) fn new(
        args: &ShowArgs,
        mut report: DeviceReport,
        group: &'a Group<'d>,
        member: &'a Member<'d>,
        problems: &'a Problems,
    ) -> Result<Self> {
        let kind = member.device.kind();
        if let Some(set) = member.device.set() {
            if let Some(refusal) = set.refusal.filter(|_| report.kernel.accepts) {
                report.kernel.accepts = false;
                report.kernel.error = Some(refusal.to_string());
            }
            // Its question has been answered.
            let open = Warning::DependsOnJournal.to_string();
            report.kernel.warnings.retain(|warning| *warning != open);
        } else if let Contents::Unreadable(cache_set::ReadError::NoJournal) =
            &member.device.contents
        {
            if report.kernel.accepts {
                report.kernel.accepts = false;
                report.kernel.error = Some(cache_set::SetRefusal::NoJournal.to_string());
            }
        }
        report.note_stakes(member);
        let wanted = kind == Some(Kind::Cache) || args.dirty;
        let dirty = (wanted && !args.superblock).then(|| DirtyAnswer::of(member));
        let advice = if args.superblock { Vec::new() } else { advice(&member.advice) };
        let volumes = member.volumes.0.iter().map(VolumeReport::from).collect();
        let shown =
            Self { report, member, problems, dirty, advice, volumes, error: RefCell::default() };
        let Some(set) = shown.set() else {
            // Named beside its cache, a backing device is there for its volume to be recognised.
            if kind != Some(Kind::Backing) || group.members.len() == 1 {
                shown.wanted_nothing(args);
            }
            return Ok(shown);
        };
        let nbuckets = set.geometry().nbuckets();
        if let Some(last) = args.bucket.as_ref().and_then(BucketList::last) {
            ensure!(last < nbuckets, "there is no bucket {last}; the last is {}", nbuckets - 1);
        }
        Ok(shown)
    }

    /// The set, where there is one and it is to be shown.
    pub(super) fn set(&self) -> Option<&'a CacheSet<'d>> {
        self.member.device.set().map(|contents| &contents.set)
    }

    /// Whether the superblock is good and nothing of what was asked for is missing.
    pub(super) fn is_sound(&self) -> bool {
        let unknown = self.dirty.as_ref().is_some_and(|dirty| dirty.answer == Answer::Unknown);
        let doubtful = self.set().is_some() && !self.member.device.doubts.is_empty();
        let damaged = matches!(
            self.member.device.identity,
            Identity::MagicWiped(_) | Identity::Damaged(_) | Identity::SuperblockGone
        );
        self.report.is_sound() && !damaged && !unknown && !doubtful
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

    /// The device holds nothing to list: an error where a list was asked for.
    fn wanted_nothing(&self, args: &ShowArgs) {
        let parts = args.parts();
        if (parts.usage || parts.lists() > 0) && !args.all {
            let why = match (&self.member.device.contents, self.member.device.kind()) {
                (_, Some(Kind::Backing)) => {
                    "a backing device has no buckets and no keys".to_owned()
                }
                (Contents::New, _) => "the device holds no cache set yet".to_owned(),
                (Contents::Unreadable(error), _) => error.to_string(),
                _ => "no bcache superblock".to_owned(),
            };
            let path = self.report.path.display();
            self.fail(anyhow::anyhow!("{path}: nothing to list: {why}"));
        }
    }

    /// The volumes behind the places that were asked for.
    pub(super) fn places<'p>(
        &self,
        args: &'p ShowArgs,
    ) -> Result<Vec<(VolumeReport, &'p LookupPlace)>> {
        let Some(set) = self.set() else { return Ok(Vec::new()) };
        args.lookup
            .iter()
            .map(|place| {
                let slot = find_volume(set, &place.volume)?;
                let volume = self.volumes.iter().find(|volume| volume.slot == slot);
                let volume = volume.ok_or_else(|| anyhow::anyhow!("no volume in slot {slot}"))?;
                Ok((volume.clone(), place))
            })
            .collect()
    }
}
