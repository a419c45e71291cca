//! The list of buckets.
//!
//! In the order of their numbers it is made as it is written. Sorted otherwise, it takes an index
//! of 4 bytes a bucket (134 MB for 33.5 million).

use std::collections::HashSet;
use std::ops::ControlFlow;

use bcache_cli::rows::{Column, Line, List, Row};
use bcache_core::cache_set::{Bucket, CacheSet, GcMark, MetadataRole};
use bcache_core::units::BucketIndex;
use serde::Serialize;

use crate::cli::lists::{BucketList, Sort};

/// A bucket in the list.
#[derive(Clone, Debug, Serialize)]
pub struct BucketRow {
    /// Its number.
    pub bucket: u64,
    /// Its prio.
    pub prio: u16,
    /// Its gen, as the kernel has it after registration.
    #[serde(rename = "gen")]
    pub bucket_gen: u8,
    /// Oldest gen of a pointer into it.
    pub last_gc: u8,
    /// How far the gen is ahead of that.
    pub gen_span: u8,
    /// What it holds.
    pub mark: &'static str,
    /// Sectors that keys use.
    pub sectors_used: u16,
    /// What metadata it holds.
    #[serde(rename = "use")]
    pub role: Option<MetadataRole>,
}

impl Row for BucketRow {
    const COLUMNS: &'static [Column] = &[
        Column::new("bucket", 10),
        Column::new("prio", 6),
        Column::new("gen", 4),
        Column::new("last_gc", 7),
        Column::new("span", 4),
        Column::new("mark", 8),
        Column::new("sectors", 7),
        Column::new("use", 0),
    ];

    fn cells(&self, line: &mut Line) {
        line.cell(self.bucket);
        line.cell(self.prio);
        line.cell(self.bucket_gen);
        line.cell(self.last_gc);
        line.cell(self.gen_span);
        line.cell(self.mark);
        line.cell(self.sectors_used);
        line.maybe(self.role);
    }
}

/// Which buckets, and in what order.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only these.
    pub only: Option<BucketList>,
    /// By what.
    pub sort: Sort,
    /// From the largest.
    pub reverse: bool,
    /// At most so many.
    pub limit: Option<u64>,
}

/// The buckets of a set.
pub struct Buckets<'s, 'd> {
    set: &'s CacheSet<'d>,
    journal: HashSet<BucketIndex>,
    selection: &'s Selection,
}

impl<'s, 'd> Buckets<'s, 'd> {
    /// Those that `selection` wants.
    pub fn new(set: &'s CacheSet<'d>, selection: &'s Selection) -> Self {
        let journal = set.cache.journal_buckets().into_iter().collect();
        Self { set, journal, selection }
    }

    fn role(&self, number: BucketIndex, bucket: Bucket) -> Option<MetadataRole> {
        // Most buckets are data, and a large set has many prio buckets to compare with.
        if bucket.mark() != GcMark::Metadata {
            return None;
        }
        if self.journal.contains(&number) {
            return Some(MetadataRole::Journal);
        }
        self.set.metadata_role(number)
    }

    fn row(&self, number: u64) -> Option<BucketRow> {
        let bucket = self.set.table.get(BucketIndex(number))?;
        Some(BucketRow {
            bucket: number,
            prio: bucket.prio().0,
            bucket_gen: bucket.bucket_gen().0,
            last_gc: bucket.last_gc().0,
            gen_span: bucket.gen_span(),
            mark: bucket.mark().name(),
            sectors_used: bucket.sectors_used(),
            role: self.role(BucketIndex(number), *bucket),
        })
    }

    /// What buckets are sorted by.
    fn rank(&self, number: u64) -> u64 {
        let Some(bucket) = self.set.table.get(BucketIndex(number)) else { return 0 };
        match self.selection.sort {
            Sort::Bucket => number,
            Sort::Prio => bucket.prio().0.into(),
            Sort::Gen => bucket.gen_span().into(),
            Sort::Sectors => bucket.sectors_used().into(),
        }
    }

    fn sorted<T>(&self, numbers: impl Iterator<Item = T>) -> Vec<T>
    where
        T: Copy + Ord + Into<u64>,
    {
        let mut index: Vec<T> = numbers.collect();
        let reverse = self.selection.reverse;
        let key = |number: &T| {
            let rank = self.rank((*number).into());
            (if reverse { u64::MAX - rank } else { rank }, *number)
        };
        let limit = self.selection.limit.and_then(|limit| usize::try_from(limit).ok());
        if let Some(limit) = limit.filter(|&limit| limit > 0 && limit < index.len()) {
            index.select_nth_unstable_by_key(limit - 1, key);
            index.truncate(limit);
        }
        index.sort_unstable_by_key(key);
        index
    }

    fn give(
        &self,
        numbers: impl Iterator<Item = u64>,
        row: &mut dyn FnMut(&BucketRow) -> ControlFlow<()>,
    ) {
        let limit = self.selection.limit.and_then(|limit| usize::try_from(limit).ok());
        for number in numbers.take(limit.unwrap_or(usize::MAX)) {
            let Some(bucket) = self.row(number) else { continue };
            if row(&bucket).is_break() {
                return;
            }
        }
    }
}

impl List for Buckets<'_, '_> {
    type Row = BucketRow;

    fn each(&self, row: &mut dyn FnMut(&BucketRow) -> ControlFlow<()>) {
        let geometry = self.set.geometry();
        let end = geometry.nbuckets();
        let all = || geometry.first_bucket().0..end;
        let in_order = self.selection.sort == Sort::Bucket;
        match (&self.selection.only, u32::try_from(end)) {
            (Some(only), _) if in_order && !self.selection.reverse => {
                self.give(only.numbers(end), row);
            }
            (Some(only), _) => self.give(self.sorted(only.numbers(end)).into_iter(), row),
            (None, _) if in_order && self.selection.reverse => self.give(all().rev(), row),
            (None, _) if in_order => self.give(all(), row),
            (None, Ok(_)) => {
                let numbers = all().filter_map(|number| u32::try_from(number).ok());
                self.give(self.sorted(numbers).into_iter().map(u64::from), row);
            }
            (None, Err(_)) => self.give(self.sorted(all()).into_iter(), row),
        }
    }
}
