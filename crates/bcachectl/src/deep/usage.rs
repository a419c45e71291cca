//! Usage: what the kernel's `priority_stats` says, and what it does not.

use std::io::Write;

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::table::{self, Cell, number};
use bcache_cli::text::plural;
use bcache_core::cache_set::CacheSet;
use bcache_core::cache_set::usage::{BucketCounts, age_histogram, gen_stats};
use bcache_core::units::{BUCKET_GC_GEN_MAX, format_bytes};
use serde::Serialize;

use crate::stakes::VolumeReport;

/// Cells of the longest bar.
const BAR_CELLS: u64 = 40;

/// The figures of a set.
#[derive(Clone, Debug, Serialize)]
pub struct UsageReport {
    /// Buckets by what they hold.
    pub buckets: BucketCounts,
    /// The same as the kernel rounds them.
    pub percent: Percent,
    /// Buckets that the allocator may use.
    pub available: u64,
    /// `cache_available_percent`.
    pub available_percent: u64,
    /// Mean age of the buckets that have one.
    pub average: u64,
    /// Sectors between two quantiles.
    pub sectors_per_quantile: u64,
    /// Ages at the quantiles, ascending.
    pub quantiles: Vec<u16>,
    /// Largest `gen - last_gc`.
    pub gen_span_max: u8,
    /// Where a bucket can no longer be invalidated.
    pub gen_span_limit: u8,
    /// Buckets at that limit.
    pub buckets_at_limit: u64,
    /// The btree.
    pub btree: BtreeFigures,
    /// Buckets with data by age.
    pub ages: Ages,
    /// The volumes.
    pub volumes: Vec<VolumeReport>,
}

/// Per cent, rounded down.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percent {
    /// No sectors in use.
    pub unused: u64,
    /// Clean data.
    pub clean: u64,
    /// Dirty data.
    pub dirty: u64,
    /// Metadata.
    pub metadata: u64,
}

/// Figures of the btree.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BtreeFigures {
    /// `btree_nodes`.
    pub nodes: u64,
    /// `tree_depth`.
    pub depth: u16,
    /// Extents in its leaves.
    pub keys: u64,
    /// `btree_used_percent`.
    pub used_percent: u64,
    /// `root_usage_percent`.
    pub root_used_percent: u64,
}

/// Numbers of data buckets by age.
#[derive(Clone, Debug, Serialize)]
pub struct Ages {
    /// Ages in each count.
    pub step: u16,
    /// Buckets, youngest first.
    pub counts: Vec<u64>,
}

impl UsageReport {
    /// Counts what was read.
    pub fn new(set: &CacheSet<'_>, volumes: &[VolumeReport]) -> Self {
        let stats = set.priority_stats();
        let gens = gen_stats(&set.table, set.geometry());
        let (step, counts) = age_histogram(&set.table, set.geometry());
        let percent = |count| stats.buckets.percent(count);
        Self {
            percent: Percent {
                unused: percent(stats.buckets.unused),
                clean: percent(stats.buckets.clean),
                dirty: percent(stats.buckets.dirty),
                metadata: percent(stats.buckets.metadata),
            },
            buckets: stats.buckets,
            available: set.available(),
            available_percent: set.available_percent(),
            average: stats.average,
            sectors_per_quantile: stats.sectors_per_quantile,
            quantiles: stats.quantiles.to_vec(),
            gen_span_max: gens.gen_span_max,
            gen_span_limit: BUCKET_GC_GEN_MAX,
            buckets_at_limit: gens.at_limit,
            btree: BtreeFigures {
                nodes: set.btree.nodes,
                depth: set.btree.depth,
                keys: set.btree.extents,
                used_percent: set.btree.used_percent(),
                root_used_percent: set.btree.root_usage_percent(),
            },
            ages: Ages { step, counts: counts.to_vec() },
            volumes: volumes.to_vec(),
        }
    }

    /// Tells it to a person.
    pub fn render(&self, out: &mut Out, bucket_bytes: u64) -> Result<()> {
        let style = out.style();
        writeln!(out, "Usage")?;
        let mut rows = table::table(style, &["buckets", "count", "per cent", "size"]);
        for (name, count, percent) in [
            ("unused", self.buckets.unused, Some(self.percent.unused)),
            ("clean", self.buckets.clean, Some(self.percent.clean)),
            ("dirty", self.buckets.dirty, Some(self.percent.dirty)),
            ("metadata", self.buckets.metadata, Some(self.percent.metadata)),
            ("total", self.buckets.total, None),
            ("available", self.available, Some(self.available_percent)),
        ] {
            rows.add_row(vec![
                name.into(),
                number(count),
                number(percent.map_or_else(String::new, |percent| format!("{percent}%"))),
                number(format_bytes(count.saturating_mul(bucket_bytes))),
            ]);
        }
        writeln!(out, "{rows}")?;
        let mut facts = table::bare(style);
        let mut fact = |name: &str, text: String| {
            facts.add_row([table::heading(style, name), Cell::prose(text)]);
        };
        let left = self.gen_span_limit.saturating_sub(self.gen_span_max);
        let mut gens = format!(
            "{} at most; {left} reuses before the first bucket waits for GC (limit {})",
            self.gen_span_max, self.gen_span_limit
        );
        if self.buckets_at_limit > 0 {
            gens = format!(
                "{} buckets AT THE LIMIT of {}: they cannot be reused before GC has run",
                self.buckets_at_limit, self.gen_span_limit
            );
        }
        fact("gen span", gens);
        let btree = &self.btree;
        fact(
            "btree",
            format!(
                "{}, depth {}, {}, {}% full (root {}%)",
                plural(btree.nodes, "node"),
                btree.depth,
                plural(btree.keys, "key"),
                btree.used_percent,
                btree.root_used_percent
            ),
        );
        fact("average age", self.average.to_string());
        fact("sectors per quantile", self.sectors_per_quantile.to_string());
        fact(
            "quantiles",
            self.quantiles.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        );
        writeln!(out, "{facts}")?;
        self.render_ages(out)?;
        render_volumes(out, &self.volumes)
    }

    fn render_ages(&self, out: &mut Out) -> Result<()> {
        let most = self.ages.counts.iter().copied().max().unwrap_or(0);
        if most == 0 {
            return Ok(());
        }
        writeln!(out, "Ages of the buckets with data (0 is the last used; higher is colder)")?;
        let cell = if out.style().terminal { "█" } else { "#" };
        let last = self.ages.counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        for (index, count) in (0u32..).zip(self.ages.counts.iter().take(last.saturating_add(1))) {
            let from = index.saturating_mul(u32::from(self.ages.step));
            let to = from.saturating_add(u32::from(self.ages.step)).saturating_sub(1);
            let cells = count.saturating_mul(BAR_CELLS).div_ceil(most);
            let bar = cell.repeat(usize::try_from(cells).unwrap_or(0));
            writeln!(out, "{:>13}  {count:>10}  {bar}", format!("{from}-{to}"))?;
        }
        Ok(())
    }
}

/// The volumes and what is cached of each.
pub fn render_volumes(out: &mut Out, volumes: &[VolumeReport]) -> Result<()> {
    if volumes.is_empty() {
        writeln!(out, "No volumes.")?;
        return Ok(());
    }
    let header = ["slot", "label", "uuid", "kind", "cached", "dirty", "backing device"];
    let mut rows = table::table(out.style(), &header).lose_first(&["kind", "label"]);
    for volume in volumes {
        let kind = match (volume.flash_only, volume.detached) {
            (true, _) => "flash-only",
            (_, true) => "detached",
            _ => "backing",
        };
        let backing = match &volume.backing {
            Some(path) => path.display().to_string(),
            None if volume.flash_only || volume.detached => "-".to_owned(),
            None => "not present".to_owned(),
        };
        let label = crate::render::device::label_or_dash(&volume.label);
        let uuid = volume.uuid.map_or_else(|| "-".to_owned(), |uuid| uuid.to_string());
        let size = |sectors: u64| format_bytes(sectors.saturating_mul(512));
        rows.add_row(vec![
            number(volume.slot),
            label.into(),
            uuid.into(),
            kind.into(),
            number(size(volume.cached_sectors)),
            number(size(volume.dirty_sectors)),
            backing.into(),
        ]);
    }
    writeln!(out, "{rows}")?;
    Ok(())
}
