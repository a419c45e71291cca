//! What commands have left unfinished: findings from their records.

use bcache_core::running::{Backing, Severity, View};

use super::Only;
use super::report::FindingReport;
use crate::commands::running::records::{FlushRecord, Found, Records, ReplaceRecord};

/// What there is to say of the records about `view`.
pub(super) fn findings(records: &Records, view: &View, only: Option<&Only>) -> Vec<FindingReport> {
    let mut found: Vec<FindingReport> = records
        .all::<ReplaceRecord>()
        .iter()
        .filter_map(|it| replacement(it, view, only))
        .collect();
    found.extend(records.all::<FlushRecord>().iter().filter_map(|it| flush(it, view, only)));
    found
}

fn wanted(backing: &Backing, only: Option<&Only>) -> bool {
    match only {
        None => true,
        Some(Only::Backing(name)) => backing.name == *name,
        Some(Only::Set(set)) => backing.set == Some(*set),
        Some(Only::Volume(_)) => false,
    }
}

fn flush(found: &Found<FlushRecord>, view: &View, only: Option<&Only>) -> Option<FindingReport> {
    let record = &found.record;
    let is_it = |it: &&Backing| match record.uuid {
        Some(uuid) => it.uuid == Some(uuid),
        None => it.name == record.device,
    };
    let backing = view.backing.iter().find(is_it).filter(|it| wanted(it, only))?;
    let left: Vec<_> =
        record.settings.iter().filter(|it| it.is_in_force(&backing.attributes)).collect();
    if left.is_empty() {
        return None;
    }
    let words: Vec<String> = left
        .iter()
        .map(|it| format!("{} is {} instead of {}", it.name, it.during, it.before))
        .collect();
    let (device, words) = (&backing.name, words.join(", "));
    Some(if found.is_at_it {
        FindingReport {
            code: "flushing",
            severity: Severity::Note,
            text: format!("{device} is being flushed. For the time, {words}."),
            way_out: Vec::new(),
        }
    } else {
        let settings: Vec<String> =
            left.iter().rev().map(|it| format!("{}={}", it.name, it.before)).collect();
        FindingReport {
            code: "flush-killed",
            severity: Severity::Warning,
            text: format!("A flush of {device} was killed, and its settings stayed: {words}."),
            way_out: vec![
                format!("bcachectl flush {device} puts them back and completes it"),
                format!("or put them back alone: bcachectl set {device} {}", settings.join(" ")),
            ],
        }
    })
}

fn replacement(
    found: &Found<ReplaceRecord>,
    view: &View,
    only: Option<&Only>,
) -> Option<FindingReport> {
    let record = &found.record;
    let mut places = Vec::new();
    let mut about = only.is_none()
        || matches!(only, Some(Only::Set(set)) if *set == record.old_set || *set == record.new_set);
    for moving in &record.devices {
        let backing = view.backing.iter().find(|it| moving.is(it));
        about |= only.is_some() && backing.is_some_and(|it| wanted(it, only));
        let place = match backing.map(|it| it.set) {
            Some(Some(set)) if set == record.new_set => continue,
            Some(Some(set)) if set == record.old_set => "is on the old cache still",
            Some(Some(_)) => "is attached to another set",
            Some(None) => "has no cache",
            None => "is not registered",
        };
        places.push(format!("{} {place}", moving.device));
    }
    if view.set(record.old_set).is_some() && places.is_empty() {
        places.push("the old set is not unregistered yet".to_owned());
    }
    if places.is_empty() || !about {
        return None;
    }
    let what = format!(
        "The cache of the set {} (/dev/{}) is being replaced by /dev/{}",
        record.old_set, record.old_cache, record.new_cache
    );
    let places = places.join(", ");
    Some(if found.is_at_it {
        FindingReport {
            code: "replacing-cache",
            severity: Severity::Note,
            text: format!("{what}: {places}."),
            way_out: Vec::new(),
        }
    } else {
        FindingReport {
            code: "replacement-unfinished",
            severity: Severity::Warning,
            text: format!("{what}, and the command has ended before that was done: {places}."),
            way_out: vec![format!(
                "bcachectl replace-cache {} /dev/{} completes it",
                record.old_set, record.new_cache
            )],
        }
    })
}
