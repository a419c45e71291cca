//! A device as tables, as JSON, or as one long list.

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use bcache_cli::out::Out;
use bcache_cli::rows::{Format, Json, write_list};
use bcache_cli::table::Color;
use bcache_core::cache_set::CacheSet;
use bcache_core::inspect::{Answer, Stakes};
use bcache_core::running::Rounded;
use serde::Serialize;

use super::deep::Shown;
use crate::cli::ShowArgs;
use crate::deep::btree::{BtreeReport, Nodes, render_levels};
use crate::deep::buckets::{Buckets, Selection};
use crate::deep::journal::{Entries, JournalReport};
use crate::deep::keys::{KeySelection, Keys};
use crate::deep::lookup::Lookups;
use crate::deep::usage::UsageReport;
use crate::deep::uuids::Uuids;
use crate::render::device::{self, DeviceReport, Verbosity};
use crate::stakes::{self, AdviceReport, DirtyAnswer};

fn selection(args: &ShowArgs) -> Selection {
    Selection {
        only: args.bucket.clone(),
        sort: args.sort.unwrap_or_default(),
        reverse: args.reverse,
        limit: args.limit,
    }
}

fn key_selection(args: &ShowArgs) -> KeySelection<'_> {
    let parts = args.parts();
    KeySelection {
        btree: parts.btree_keys,
        journal: parts.journal_keys,
        into: args.bucket.as_ref(),
        limit: args.limit,
    }
}

/// A device in JSON; the man page documents the keys.
#[derive(Serialize)]
pub(super) struct DeviceJson<'a, 's, 'd> {
    #[serde(flatten)]
    device: &'a DeviceReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    dirty: Option<&'a DirtyAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stakes: Option<&'a Stakes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'a [AdviceReport]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problems: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    more_problems: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuids: Option<Json<'a, Uuids<'s, 'd>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<JournalReport<'a, 's, 'd>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    btree: Option<BtreeReport<'a, 's, 'd>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lookup: Option<Json<'a, Lookups<'s, 'd>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Json<'a, Keys<'s, 'd>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prios: Option<Json<'a, Buckets<'s, 'd>>>,
}

/// Hands the device's JSON to `write`.
pub(super) fn json<R>(
    args: &ShowArgs,
    shown: &Shown<'_, '_>,
    mut write: impl FnMut(&DeviceJson<'_, '_, '_>) -> R,
) -> R {
    let judged = shown.report.kind.is_some() && !args.superblock;
    let base = DeviceJson {
        device: &shown.report,
        dirty: shown.dirty.as_ref(),
        stakes: judged.then_some(&shown.member.stakes),
        advice: judged.then_some(&shown.advice),
        problems: None,
        more_problems: None,
        usage: None,
        uuids: None,
        journal: None,
        btree: None,
        lookup: None,
        keys: None,
        prios: None,
    };
    let Some(set) = shown.set() else { return write(&base) };
    // What cannot be warned of is in the JSON's in_use all the same.
    let _ = warn_in_use(shown);
    let parts = args.parts();
    let selection = selection(args);
    let places = shown.places(args).unwrap_or_else(|error| {
        shown.fail(error);
        Vec::new()
    });
    let uuids = Uuids::new(set, &shown.volumes, args.limit);
    let entries = Entries::new(set, args.limit);
    let nodes = Nodes::new(set, args.limit);
    let lookups = Lookups::new(set, places, args.limit);
    let keys = Keys::new(set, key_selection(args));
    let buckets = Buckets::new(set, &selection);
    let problems = shown.problems;
    let result = write(&DeviceJson {
        problems: Some(&problems.texts),
        more_problems: (problems.more > 0).then_some(problems.more),
        usage: parts.usage.then(|| UsageReport::new(set, &shown.volumes)),
        uuids: parts.uuids.then_some(Json(&uuids)),
        journal: parts.journal.then(|| JournalReport::new(&entries)),
        btree: parts.btree.then(|| BtreeReport::new(&nodes)),
        lookup: parts.lookup.then_some(Json(&lookups)),
        keys: parts.has_keys().then_some(Json(&keys)),
        prios: parts.prios.then_some(Json(&buckets)),
        ..base
    });
    report_lookups(shown, &lookups);
    report_keys(shown, &keys);
    result
}

/// Remembers what could not be looked up.
fn report_lookups(shown: &Shown<'_, '_>, lookups: &Lookups<'_, '_>) {
    if let Some(error) = lookups.failed() {
        let path = shown.report.path.display();
        shown.fail(anyhow::Error::from(error).context(format!("{path}: cannot look up")));
    }
}

/// Remembers what keys could not be listed.
fn report_keys(shown: &Shown<'_, '_>, keys: &Keys<'_, '_>) {
    let unreadable = keys.unreadable();
    if unreadable > 0 {
        let path = shown.report.path.display();
        shown.fail(anyhow!("{path}: {unreadable} btree nodes cannot be read"));
    }
}

/// Writes the one list that was asked for.
pub(super) fn list(
    out: &mut Out,
    args: &ShowArgs,
    format: Format,
    shown: &Shown<'_, '_>,
) -> Result<()> {
    let Some(set) = shown.set() else { return Ok(()) };
    warn_in_use(shown)?;
    lists(out, args, format, shown, set)
}

fn warn_in_use(shown: &Shown<'_, '_>) -> Result<()> {
    if !shown.report.in_use.is_empty() && shown.set().is_some() {
        writeln!(
            io::stderr(),
            "bcachectl: warning: {} is in use: what is read of it may change meanwhile, and not \
             fit together",
            shown.report.path.display()
        )?;
    }
    Ok(())
}

/// Writes a device as tables.
pub(super) fn table(out: &mut Out, args: &ShowArgs, shown: &Shown<'_, '_>) -> Result<()> {
    warn_in_use(shown)?;
    if args.dirty {
        writeln!(out, "{}:", shown.report.path.display())?;
        answer(out, shown, "  ")?;
        return problems(out, shown);
    }
    device::headline(out, &shown.report)?;
    let judged = shown.report.kind.is_some() && !args.superblock;
    if judged {
        answer(out, shown, "")?;
        writeln!(out)?;
    }
    let verbosity =
        if args.superblock || args.verbose { Verbosity::Full } else { Verbosity::Short };
    device::fields(out, &shown.report, verbosity)?;
    let Some(set) = shown.set() else { return Ok(()) };
    problems(out, shown)?;
    if args.parts().usage {
        writeln!(out)?;
        let bucket_bytes = set.geometry().bucket_bytes();
        UsageReport::new(set, &shown.volumes).render(out, bucket_bytes)?;
    }
    lists(out, args, Format::Table, shown, set)
}

/// What is at stake and what can be done.
fn answer(out: &mut Out, shown: &Shown<'_, '_>, indent: &str) -> Result<()> {
    if let Some(dirty) = counted_as_dirty(shown) {
        let line = format!(
            "The kernel counts {dirty} of dirty data of this device, although its state is clean: do \
             not run it without its cache."
        );
        writeln!(out, "{indent}{}", coloured(out, Answer::Present, &line))?;
        return Ok(());
    }
    for line in stakes::sentences(shown.member) {
        writeln!(out, "{indent}{}", coloured(out, shown.member.stakes.answer, &line))?;
    }
    Ok(())
}

/// What the running kernel counts as dirty of a backing device that would be complete by its superblock.
fn counted_as_dirty<'s>(shown: &'s Shown<'_, '_>) -> Option<&'s str> {
    let dirty = shown.report.running.as_ref()?.dirty_data.as_deref()?;
    let is_zero = dirty.parse().is_ok_and(Rounded::is_zero);
    (shown.member.stakes.answer == Answer::None && !is_zero).then_some(dirty)
}

/// A line in the colour of the answer, where colours are wanted.
fn coloured(out: &Out, answer: Answer, line: &str) -> String {
    let colour = match answer {
        Answer::None => Color::Green,
        Answer::Present => Color::Red,
        Answer::Unknown => Color::Yellow,
    };
    bcache_cli::out::coloured(out.style(), colour, line)
}

fn problems(out: &mut Out, shown: &Shown<'_, '_>) -> Result<()> {
    let problems = shown.problems;
    if problems.texts.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "Problems (bcachectl check says what they mean)")?;
    for problem in &problems.texts {
        writeln!(out, "  {problem}")?;
    }
    if problems.more > 0 {
        writeln!(out, "  and {} more", problems.more)?;
    }
    Ok(())
}

/// The lists that were asked for; with titles where they are tables.
fn lists(
    out: &mut Out,
    args: &ShowArgs,
    format: Format,
    shown: &Shown<'_, '_>,
    set: &CacheSet<'_>,
) -> Result<()> {
    let parts = args.parts();
    let titled = format == Format::Table;
    let title = |out: &mut Out, text: &str| -> Result<()> {
        if titled {
            writeln!(out)?;
            writeln!(out, "{text}")?;
        }
        Ok(())
    };
    if parts.uuids {
        title(out, "Volumes (uuid table)")?;
        write_list(out, format, &Uuids::new(set, &shown.volumes, args.limit))?;
    }
    if parts.journal {
        let entries = Entries::new(set, args.limit);
        if titled {
            writeln!(out)?;
            JournalReport::new(&entries).render(out)?;
        }
        write_list(out, format, &entries)?;
    }
    if parts.btree {
        let nodes = Nodes::new(set, args.limit);
        title(out, "Btree")?;
        write_list(out, format, &nodes)?;
        if titled {
            writeln!(out)?;
            render_levels(out, &nodes.levels())?;
        }
    }
    if parts.lookup {
        title(out, "Lookup (sectors as keys count them: of the backing device)")?;
        let lookups = Lookups::new(set, shown.places(args)?, args.limit);
        write_list(out, format, &lookups)?;
        report_lookups(shown, &lookups);
    }
    if parts.prios {
        title(out, "Buckets")?;
        let selection = selection(args);
        write_list(out, format, &Buckets::new(set, &selection))?;
    }
    if parts.has_keys() {
        title(out, if args.bucket.is_some() { "Keys that point there" } else { "Keys" })?;
        let keys = Keys::new(set, key_selection(args));
        write_list(out, format, &keys)?;
        report_keys(shown, &keys);
    }
    Ok(())
}
