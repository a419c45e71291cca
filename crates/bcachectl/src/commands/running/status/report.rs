//! The report: what JSON has, and what the text is made of.

use std::collections::BTreeMap;

use bcache_core::running::{
    Backing, DeviceState, Finding, Part, Rounded, Set, Severity, Snapshot, Stats, View, Volume,
    findings,
};
use bcache_core::units::Sectors;
use serde::Serialize;
use uuid::Uuid;

use super::{Only, Rates, findings as words, why};

#[derive(Debug, Serialize)]
pub(in crate::commands::running) struct StatusReport {
    pub(super) sets: Vec<SetReport>,
    /// Backing devices of no set.
    pub(super) unattached: Vec<BackingReport>,
    pub(super) findings: Vec<FindingReport>,
    /// What did not answer: the figures of these are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) not_answering: Vec<Part>,
}

#[derive(Debug, Serialize)]
pub(super) struct SetReport {
    pub(super) uuid: Uuid,
    pub(super) cache: Option<String>,
    pub(super) cache_bytes: Option<u64>,
    pub(super) bucket_bytes: Option<u64>,
    pub(super) nbuckets: Option<u64>,
    pub(super) available_percent: Option<u64>,
    pub(super) replacement: Option<String>,
    pub(super) io_errors: Option<u64>,
    pub(super) gc_age_seconds: Option<u64>,
    pub(super) hits: Option<u64>,
    pub(super) misses: Option<u64>,
    pub(super) hit_ratio: Option<f64>,
    pub(super) backing: Vec<BackingReport>,
    pub(super) volumes: Vec<VolumeReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct VolumeReport {
    pub(super) bcache: String,
    pub(super) slot: u32,
    pub(super) label: Option<String>,
    pub(super) bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct BackingReport {
    pub(super) device: String,
    pub(super) bcache: Option<String>,
    pub(super) uuid: Option<Uuid>,
    pub(super) label: Option<String>,
    pub(super) set: Option<Uuid>,
    pub(super) state: DeviceState,
    pub(super) superblock_state: Option<String>,
    pub(super) cache_mode: Option<String>,
    pub(super) bytes: Option<u64>,
    pub(super) dirty_bytes: Option<Rounded>,
    pub(super) dirty_target_bytes: Option<Rounded>,
    pub(super) writeback_rate_bytes: Option<Rounded>,
    pub(super) clean_in: Option<CleanIn>,
    pub(super) io_errors: Option<u64>,
    pub(super) hits: Option<u64>,
    pub(super) misses: Option<u64>,
    pub(super) hit_ratio: Option<f64>,
    pub(super) bypassed_bytes: Option<Rounded>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rates: Option<Rates>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) why: Vec<String>,
}

/// When the dirty data is written back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "when")]
pub(in crate::commands::running) enum CleanIn {
    /// There is none.
    Clean,
    /// Writeback is switched off.
    Never,
    /// Nothing is written back before the next write to the device.
    AfterNextWrite,
    /// As fast as the devices go.
    FullSpeed,
    /// There is less than writeback steers for: it waits until the device is idle.
    WhenIdle,
    /// At the rate of this moment.
    Seconds {
        /// So many.
        seconds: u64,
    },
}

#[derive(Debug, Serialize)]
pub(in crate::commands::running) struct FindingReport {
    pub(super) code: &'static str,
    pub(in crate::commands::running) severity: Severity,
    pub(in crate::commands::running) text: String,
    pub(super) way_out: Vec<String>,
}

/// From this rate on, in bytes a second, the kernel means that there is no limit.
const NO_LIMIT_BYTES: i64 = 1 << 39;

impl CleanIn {
    pub(in crate::commands::running) fn of(backing: &Backing) -> Option<Self> {
        let dirty = backing.dirty?;
        backing.set?;
        if dirty.is_zero() {
            return Some(Self::Clean);
        }
        if backing.taken_for_clean() {
            return Some(Self::AfterNextWrite);
        }
        if backing.writeback_running == Some(false) {
            return Some(Self::Never);
        }
        let rate = backing.writeback_rate?;
        if backing.writeback_percent == Some(0) || rate.high() >= NO_LIMIT_BYTES {
            return Some(Self::FullSpeed);
        }
        let target = backing.dirty_target?;
        if dirty.high() <= target.high() {
            return Some(Self::WhenIdle);
        }
        let seconds = dirty.at_most().checked_div(rate.at_least())?;
        Some(Self::Seconds { seconds })
    }
}

fn hits(stats: Option<&Stats>) -> (Option<u64>, Option<u64>, Option<f64>) {
    let get = |stats: &Stats| (stats.cache_hits, stats.cache_misses, stats.hit_ratio());
    stats.map_or((None, None, None), get)
}

impl BackingReport {
    fn new(backing: &Backing, view: &View, rates: Option<Rates>, with_why: bool) -> Self {
        let (hits, misses, hit_ratio) = hits(backing.stats.as_ref());
        let set = backing.set.and_then(|uuid| view.set(uuid));
        Self {
            device: backing.name.clone(),
            bcache: backing.bcache.clone(),
            uuid: backing.uuid,
            label: backing.label.clone(),
            set: backing.set,
            state: DeviceState::of(backing),
            superblock_state: backing.superblock_state.as_ref().map(ToString::to_string),
            cache_mode: backing.cache_mode.clone(),
            bytes: backing.bcache_sectors.map(Sectors::bytes),
            dirty_bytes: backing.dirty,
            dirty_target_bytes: backing.dirty_target,
            writeback_rate_bytes: backing.writeback_rate,
            clean_in: CleanIn::of(backing),
            io_errors: backing.io_errors,
            hits,
            misses,
            hit_ratio,
            bypassed_bytes: backing.stats.as_ref().and_then(|stats| stats.bypassed_bytes),
            rates,
            why: if with_why { why::reasons(backing, set) } else { Vec::new() },
        }
    }
}

impl SetReport {
    fn new(set: &Set, backing: Vec<BackingReport>) -> Self {
        let (hits, misses, hit_ratio) = hits(set.stats.as_ref());
        let cache = set.cache.as_ref();
        Self {
            uuid: set.uuid,
            cache: cache.map(|cache| cache.name.clone()),
            cache_bytes: set.cache_bytes(),
            bucket_bytes: set.bucket_size.map(Rounded::at_least),
            nbuckets: cache.and_then(|cache| cache.nbuckets),
            available_percent: set.available_percent,
            replacement: cache.and_then(|cache| cache.replacement.clone()),
            io_errors: cache.and_then(|cache| cache.io_errors),
            gc_age_seconds: set.gc_age_seconds,
            hits,
            misses,
            hit_ratio,
            backing,
            volumes: set.volumes.iter().map(VolumeReport::new).collect(),
        }
    }
}

impl VolumeReport {
    fn new(volume: &Volume) -> Self {
        Self {
            bcache: volume.bcache.clone(),
            slot: volume.slot,
            label: volume.label.clone(),
            bytes: volume.sectors.map(Sectors::bytes),
        }
    }
}

impl StatusReport {
    pub(in crate::commands::running) fn new(
        view: &View,
        snapshot: &Snapshot,
        rates: &BTreeMap<String, Rates>,
        with_why: bool,
        only: Option<&Only>,
    ) -> Self {
        let report = |backing: &Backing| {
            BackingReport::new(backing, view, rates.get(&backing.name).copied(), with_why)
        };
        let wanted = |backing: &Backing| match only {
            None => true,
            Some(Only::Set(uuid)) => backing.set == Some(*uuid),
            Some(Only::Backing(name)) => backing.name == *name,
            Some(Only::Volume(_)) => false,
        };
        let wanted_set = |set: &Set| match only {
            None => true,
            Some(Only::Set(uuid)) => set.uuid == *uuid,
            Some(Only::Backing(name)) => {
                view.backing_of(set.uuid).any(|backing| backing.name == *name)
            }
            Some(Only::Volume(name)) => set.volumes.iter().any(|it| it.bcache == *name),
        };
        let sets = view.sets.iter().filter(|set| wanted_set(set)).map(|set| {
            let backing = view.backing_of(set.uuid).filter(|it| wanted(it)).map(report).collect();
            SetReport::new(set, backing)
        });
        let attached = |backing: &Backing| backing.set.is_some_and(|it| view.set(it).is_some());
        let unattached =
            view.backing.iter().filter(|it| !attached(it) && wanted(it)).map(report).collect();
        let found = findings(view, &|name| snapshot.on_device.get(name).copied());
        let is_silent = |device: &String| snapshot.silent.contains(&Part::Device(device.clone()));
        let findings = found
            .iter()
            // Of what does not answer it is said that it does not.
            .filter(|it| !matches!(it, Finding::Unknown { device } if is_silent(device)))
            .filter(|it| words::is_about(it, only, view));
        Self {
            sets: sets.collect(),
            unattached,
            findings: findings.map(words::report).collect(),
            not_answering: snapshot.silent.iter().cloned().collect(),
        }
    }
}
