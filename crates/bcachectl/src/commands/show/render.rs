//! A device as tables, as JSON, or as one long list.

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use bcache_cli::out::Out;
use bcache_cli::rows::{Format, Json, write_list};
use bcache_cli::table::Color;
use serde::Serialize;

use super::deep::{Deep, Examined};
use crate::cli::ShowArgs;
use crate::deep::btree::{BtreeReport, Nodes, render_levels};
use crate::deep::buckets::{Buckets, Selection};
use crate::deep::journal::{Entries, JournalReport};
use crate::deep::keys::{KeySelection, Keys};
use crate::deep::lookup::Lookups;
use crate::deep::usage::UsageReport;
use crate::deep::uuids::Uuids;
use crate::deep::{Answer, DirtyAnswer};
use crate::render::device::{self, DeviceReport};

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
    examined: &Examined<'_>,
    mut write: impl FnMut(&DeviceJson<'_, '_, '_>) -> R,
) -> R {
    let base = DeviceJson {
        device: &examined.report,
        dirty: examined.dirty.as_ref(),
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
    let Some(deep) = &examined.deep else { return write(&base) };
    // What cannot be warned of is in the JSON's in_use all the same.
    let _ = warn_in_use(examined);
    let parts = args.parts();
    let reading = &deep.reading;
    let set = &reading.set;
    let selection = selection(args);
    let places = deep.places(args).unwrap_or_else(|error| {
        examined.fail(error);
        Vec::new()
    });
    let uuids = Uuids::new(set, &deep.volumes, args.limit);
    let entries = Entries::new(set, args.limit);
    let nodes = Nodes::new(set, args.limit);
    let lookups = Lookups::new(set, places, args.limit);
    let keys = Keys::new(set, key_selection(args));
    let buckets = Buckets::new(set, &selection);
    let result = write(&DeviceJson {
        problems: Some(&reading.problems),
        more_problems: (reading.more_problems > 0).then_some(reading.more_problems),
        usage: parts.usage.then(|| UsageReport::new(reading, &deep.volumes)),
        uuids: parts.uuids.then_some(Json(&uuids)),
        journal: parts.journal.then(|| JournalReport::new(&entries)),
        btree: parts.btree.then(|| BtreeReport::new(&nodes)),
        lookup: parts.lookup.then_some(Json(&lookups)),
        keys: parts.has_keys().then_some(Json(&keys)),
        prios: parts.prios.then_some(Json(&buckets)),
        ..base
    });
    report_lists(examined, &lookups, &keys);
    result
}

/// Remembers what could not be listed.
fn report_lists(examined: &Examined<'_>, lookups: &Lookups<'_, '_>, keys: &Keys<'_, '_>) {
    let path = examined.report.path.display();
    if let Some(error) = lookups.failed() {
        examined.fail(anyhow::Error::from(error).context(format!("{path}: cannot look up")));
    }
    if keys.unreadable() > 0 {
        examined.fail(anyhow!("{path}: {} btree nodes cannot be read", keys.unreadable()));
    }
}

/// Writes the one list that was asked for.
pub(super) fn list(
    out: &mut Out,
    args: &ShowArgs,
    format: Format,
    examined: &Examined<'_>,
) -> Result<()> {
    let Some(deep) = &examined.deep else { return Ok(()) };
    warn_in_use(examined)?;
    lists(out, args, format, examined, deep)
}

fn warn_in_use(examined: &Examined<'_>) -> Result<()> {
    if !examined.report.in_use.is_empty() && examined.deep.is_some() {
        writeln!(
            io::stderr(),
            "bcachectl: warning: {} is in use: what is read of it may change meanwhile, and not \
             fit together",
            examined.report.path.display()
        )?;
    }
    Ok(())
}

/// Writes a device as tables.
pub(super) fn table(out: &mut Out, args: &ShowArgs, examined: &Examined<'_>) -> Result<()> {
    warn_in_use(examined)?;
    if args.dirty {
        return dirty(out, examined);
    }
    device::render(out, &examined.report)?;
    if let Some(answer) = &examined.dirty {
        writeln!(out)?;
        for line in &answer.text {
            writeln!(out, "{}", coloured(out, answer.answer, line))?;
        }
    }
    let Some(deep) = &examined.deep else { return Ok(()) };
    problems(out, deep)?;
    if args.parts().usage {
        writeln!(out)?;
        let bucket_bytes = deep.reading.set.geometry().bucket_bytes();
        UsageReport::new(&deep.reading, &deep.volumes).render(out, bucket_bytes)?;
    }
    lists(out, args, Format::Table, examined, deep)
}

fn dirty(out: &mut Out, examined: &Examined<'_>) -> Result<()> {
    writeln!(out, "{}:", examined.report.path.display())?;
    if let Some(answer) = &examined.dirty {
        for line in &answer.text {
            writeln!(out, "  {}", coloured(out, answer.answer, line))?;
        }
    }
    if let Some(deep) = &examined.deep {
        problems(out, deep)?;
    }
    Ok(())
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

fn problems(out: &mut Out, deep: &Deep<'_>) -> Result<()> {
    let reading = &deep.reading;
    if reading.problems.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "Problems (bcachectl check says what they mean)")?;
    for problem in &reading.problems {
        writeln!(out, "  {problem}")?;
    }
    if reading.more_problems > 0 {
        writeln!(out, "  and {} more", reading.more_problems)?;
    }
    Ok(())
}

/// The lists that were asked for; with titles where they are tables.
fn lists(
    out: &mut Out,
    args: &ShowArgs,
    format: Format,
    examined: &Examined<'_>,
    deep: &Deep<'_>,
) -> Result<()> {
    let parts = args.parts();
    let set = &deep.reading.set;
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
        write_list(out, format, &Uuids::new(set, &deep.volumes, args.limit))?;
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
        let lookups = Lookups::new(set, deep.places(args)?, args.limit);
        write_list(out, format, &lookups)?;
        report_lists(examined, &lookups, &Keys::new(set, KeySelection::default()));
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
        report_lists(examined, &Lookups::new(set, Vec::new(), None), &keys);
    }
    Ok(())
}
