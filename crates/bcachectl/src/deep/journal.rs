//! The journal: its entries, which of them count, and what replay would insert.

use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::rows::{Column, Json, Line, List, Row};
use bcache_cli::table::{self, Cell};
use bcache_cli::text::plural;
use bcache_core::cache_set::CacheSet;
use bcache_core::cache_set::journal::EntryHeader;
use serde::Serialize;

/// The journal in the output.
#[derive(Serialize)]
pub struct JournalReport<'l, 's, 'd> {
    /// Oldest sequence number on the device.
    pub first_seq: u64,
    /// Newest.
    pub last_seq: u64,
    /// Where replay starts.
    pub replay_from: u64,
    /// Entries on the device.
    pub entries: u64,
    /// Entries in the replay range.
    pub replay_entries: u64,
    /// Keys that replay inserts.
    pub replay_keys: u64,
    /// Journal buckets.
    pub buckets: u64,
    /// Number of the bucket that the newest entry is in.
    pub current_bucket: Option<u64>,
    /// Bytes of the newest entry's place in that bucket.
    pub current_offset: Option<u64>,
    /// Missing entries of the replay range, as pairs of first and last.
    pub gaps: Vec<[u64; 2]>,
    /// The entries.
    pub entry_list: Json<'l, Entries<'s, 'd>>,
}

impl<'l, 's, 'd> JournalReport<'l, 's, 'd> {
    /// Of a set.
    pub fn new(entries: &'l Entries<'s, 'd>) -> Self {
        let journal = &entries.set.journal;
        let newest = journal.newest();
        let (replay_from, last_seq) = journal.replay_range().unwrap_or_default();
        Self {
            first_seq: journal.headers().map(|header| header.seq).min().unwrap_or(0),
            last_seq,
            replay_from,
            entries: journal.headers().count() as u64,
            replay_entries: journal.entries.len() as u64,
            replay_keys: journal.replay_keys().count() as u64,
            buckets: journal.buckets.len() as u64,
            current_bucket: newest.map(|newest| newest.place.bucket.0),
            current_offset: newest.map(|newest| newest.place.offset),
            gaps: journal.gaps.iter().map(|gap| [gap.first, gap.last]).collect(),
            entry_list: Json(entries),
        }
    }

    /// Tells a person what it adds up to.
    pub fn render(&self, out: &mut Out) -> Result<()> {
        let style = out.style();
        writeln!(out, "Journal")?;
        let mut facts = table::bare(style);
        let mut fact = |name: &str, text: String| {
            facts.add_row([table::heading(style, name), Cell::prose(text)]);
        };
        fact(
            "entries",
            format!(
                "{} in {}, seq {} to {}",
                self.entries,
                plural(self.buckets, "bucket"),
                self.first_seq,
                self.last_seq
            ),
        );
        fact(
            "replay",
            format!(
                "{} of {}, seq {} to {}",
                plural(self.replay_keys, "key"),
                plural(self.replay_entries, "entry"),
                self.replay_from,
                self.last_seq
            ),
        );
        if let (Some(bucket), Some(offset)) = (self.current_bucket, self.current_offset) {
            fact("newest entry", format!("bucket {bucket}, byte {offset}"));
        }
        for [first, last] in &self.gaps {
            fact("MISSING", format!("seq {first} to {last}: the kernel cannot replay"));
        }
        writeln!(out, "{facts}")?;
        Ok(())
    }
}

/// An entry in the list.
#[derive(Clone, Debug, Serialize)]
pub struct EntryRow {
    /// Sequence number.
    pub seq: u64,
    /// Oldest entry that replay needed when it was written.
    pub last_seq: u64,
    /// Position of its bucket in the journal.
    pub index: u64,
    /// Its bucket.
    pub bucket: u64,
    /// Bytes from the start of the bucket.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Keys in it; null where the kernel does not look at them any more.
    pub keys: Option<u64>,
    /// "newest", "replay" or "old".
    pub state: &'static str,
}

impl Row for EntryRow {
    const COLUMNS: &'static [Column] = &[
        Column::new("seq", 10),
        Column::new("last_seq", 10),
        Column::new("index", 5),
        Column::new("bucket", 8),
        Column::new("offset", 9),
        Column::new("bytes", 6),
        Column::new("keys", 5),
        Column::new("state", 0),
    ];

    fn cells(&self, line: &mut Line) {
        line.cell(self.seq);
        line.cell(self.last_seq);
        line.cell(self.index);
        line.cell(self.bucket);
        line.cell(self.offset);
        line.cell(self.bytes);
        line.maybe(self.keys);
        line.cell(self.state);
    }
}

/// The entries of a journal, by sequence number.
pub struct Entries<'s, 'd> {
    set: &'s CacheSet<'d>,
    limit: Option<u64>,
}

impl<'s, 'd> Entries<'s, 'd> {
    /// At most `limit` of them, from the oldest.
    pub const fn new(set: &'s CacheSet<'d>, limit: Option<u64>) -> Self {
        Self { set, limit }
    }
}

impl List for Entries<'_, '_> {
    type Row = EntryRow;

    fn each(&self, row: &mut dyn FnMut(&EntryRow) -> ControlFlow<()>) {
        let journal = &self.set.journal;
        let kept: HashMap<_, _> =
            journal.entries.iter().map(|entry| (entry.place, &entry.jset)).collect();
        let newest = journal.newest().map(|newest| newest.place);
        let mut headers: Vec<&EntryHeader> = journal.headers().collect();
        headers.sort_by_key(|header| (header.seq, header.place.index, header.place.offset));
        let limit = self.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        for header in headers.into_iter().take(limit) {
            let jset = kept.get(&header.place);
            let entry = EntryRow {
                seq: header.seq,
                last_seq: header.last_seq,
                index: header.place.index as u64,
                bucket: header.place.bucket.0,
                offset: header.place.offset,
                bytes: header.bytes,
                keys: jset.map(|jset| jset.keys().count() as u64),
                state: match jset {
                    _ if newest == Some(header.place) => "newest",
                    Some(_) => "replay",
                    None => "old",
                },
            };
            if row(&entry).is_break() {
                return;
            }
        }
    }
}
