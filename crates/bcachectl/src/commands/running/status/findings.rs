//! Findings in words, each with the way out that was seen to work on stock kernels
//! (docs/running.md §6).

use bcache_core::running::{Finding, OtherDirty, View};
use uuid::Uuid;

use super::Only;
use super::report::FindingReport;

fn name_of(set: Option<Uuid>) -> String {
    set.map_or_else(|| "its cache".to_owned(), |set| format!("the cache of the set {set}"))
}

/// The way out of running without a cache: make it say so on the device before the cache returns.
fn give_up_the_cache(device: &str, bcache: Option<&str>) -> Vec<String> {
    let bcache = bcache.unwrap_or(device);
    vec![
        format!("keep the cache away, do not reboot, and unmount /dev/{bcache}"),
        format!("bcachectl run {device}"),
        "then the cache may return: the kernel drops its old contents".to_owned(),
    ]
}

/// The way out of an attachment to another set, by what is dirty there.
fn leave_the_other_set(
    finding: (&str, &str),
    (attached, named): (Uuid, Uuid),
    dirty: OtherDirty,
) -> (String, Vec<String>) {
    let (device, bcache) = finding;
    let text = format!(
        "{device} is attached to the set {attached}, and its superblock names {named}. If it was \
         attached to {attached} before, reads return the contents of that time"
    );
    match dirty {
        OtherDirty::None => (
            format!("{text}. The device itself has the right ones."),
            vec![
                format!("bcachectl detach --wait {device}"),
                format!("bcachectl attach {device} SET, and check its file system"),
            ],
        ),
        OtherDirty::Old => {
            let way_out = vec![
                format!("do not detach it, and unmount /dev/{bcache}"),
                format!("bcachectl stop {bcache}"),
                format!("bcachectl stop {named}, where that set is registered"),
                format!("bcachectl register /dev/{device}"),
                format!("bcachectl run {device}, and check its file system"),
            ];
            let text = format!(
                "{text}. Its dirty data is of that time, too: a detach would write it over the \
                 device, which has the right contents."
            );
            (text, way_out)
        }
        OtherDirty::Mixed => (
            format!(
                "{text}. Some of its dirty data may be of that time, and some was written since: a \
                 detach writes both to the device."
            ),
            vec![
                format!("do not detach it, and unmount /dev/{bcache}"),
                format!("bcachectl stop {bcache}: what is dirty stays on the cache"),
                format!("copy /dev/{device} before anything else, and compare it with a backup"),
            ],
        ),
    }
}

pub(in crate::commands::running) fn report(finding: &Finding) -> FindingReport {
    let (text, way_out) = words(finding);
    FindingReport { code: finding.code(), severity: finding.severity(), text, way_out }
}

fn words(finding: &Finding) -> (String, Vec<String>) {
    match finding {
        Finding::CacheLost { device, bcache, set } => (
            format!(
                "{device} runs without a cache, and its superblock does not say so: the cache \
                 failed. When {} comes back, also at the next boot, reads return its old contents.",
                name_of(*set)
            ),
            give_up_the_cache(device, bcache.as_deref()),
        ),
        Finding::Forced { device, set, .. } => (
            format!(
                "{device} was started without its cache. When {} is registered, the kernel drops \
                 what it holds of {device}, dirty data included.",
                name_of(*set)
            ),
            vec![
                format!(
                    "if {device} is right as it is: wipe that cache before it is seen again, or \
                     register it with --lose-dirty-data"
                ),
                format!(
                    "if the dirty data counts more: keep that cache away, and stop {device}; then \
                     `bcachectl check` of both says how to get at it"
                ),
            ],
        ),
        Finding::OtherSet { device, attached, named, bcache, dirty } => leave_the_other_set(
            (device, bcache.as_deref().unwrap_or(device)),
            (*attached, *named),
            *dirty,
        ),
        Finding::Waiting { device, dirty, set } => {
            let what =
                if *dirty { "holds data that is nowhere else" } else { "holds no dirty data" };
            let mut way_out = vec!["register its cache: it attaches by itself".to_owned()];
            if !dirty {
                way_out.push(format!("or start it without: bcachectl run {device}"));
            }
            (format!("{device} waits for {}, which {what}.", name_of(*set)), way_out)
        }
        Finding::IoDisabled { what } => (
            format!("All I/O to {what} fails: the kernel has given it up."),
            vec!["stop it and register it again".to_owned()],
        ),
        Finding::NotSynchronous { set } => (
            format!(
                "The set {set} is not synchronous: its next registration throws away all that is \
                 on the cache, dirty data too."
            ),
            vec![format!("bcachectl set {set} synchronous=1")],
        ),
        Finding::Panics { set } => (
            format!("The kernel panics at the first fatal error of the set {set} (errors=panic)."),
            Vec::new(),
        ),
        Finding::IoErrors { device, errors, limit } => {
            let limit = limit.map(|it| format!("; at {it} it is given up")).unwrap_or_default();
            (format!("{device} has had {errors} I/O errors{limit}."), Vec::new())
        }
        Finding::Full { set, available_percent } => (
            format!(
                "Only {available_percent} % of the cache of {set} is available: nothing new is \
                 cached until garbage collection frees something."
            ),
            Vec::new(),
        ),
        Finding::WritebackStopped { device } => (
            format!("{device} has dirty data, and writeback is switched off."),
            vec![format!("bcachectl set {device} writeback_running=1")],
        ),
        Finding::TakenForClean { device } => (
            format!(
                "The kernel takes {device} for clean, and there is dirty data of it: that is written \
                 back only after the next write to the device, or when it is detached. Do not run \
                 {device} without its cache."
            ),
            vec![format!("bcachectl detach --wait {device}"), format!("attach {device} again")],
        ),
        Finding::Closing { bcache } => (
            format!("{bcache} was stopped and is still open; it ends at the last close."),
            Vec::new(),
        ),
        Finding::Unknown { device } => {
            (format!("The kernel's files about {device} do not fit together."), Vec::new())
        }
    }
}

/// Whether the finding is about what was asked for.
pub(super) fn is_about(finding: &Finding, only: Option<&Only>, view: &View) -> bool {
    let Some(only) = only else { return true };
    let of_device = |device: &String| match only {
        Only::Backing(name) => name == device,
        Only::Set(uuid) => {
            view.backing_of(*uuid).any(|it| it.name == *device)
                || view.set_of_cache(device).is_some_and(|set| set.uuid == *uuid)
        }
        Only::Volume(_) => false,
    };
    let of_set = |set: &Uuid| match only {
        Only::Set(uuid) => uuid == set,
        Only::Backing(name) => view.backing_of(*set).any(|it| it.name == *name),
        Only::Volume(name) => {
            view.set(*set).is_some_and(|set| set.volumes.iter().any(|it| it.bcache == *name))
        }
    };
    match finding {
        Finding::CacheLost { device, .. }
        | Finding::Forced { device, .. }
        | Finding::OtherSet { device, .. }
        | Finding::Waiting { device, .. }
        | Finding::IoErrors { device, .. }
        | Finding::WritebackStopped { device }
        | Finding::TakenForClean { device }
        | Finding::Unknown { device } => of_device(device),
        Finding::NotSynchronous { set } | Finding::Panics { set } | Finding::Full { set, .. } => {
            of_set(set)
        }
        Finding::IoDisabled { what } => {
            of_device(what) || Uuid::try_parse(what).is_ok_and(|set| of_set(&set))
        }
        Finding::Closing { bcache } => matches!(only, Only::Volume(name) if name == bcache),
    }
}
