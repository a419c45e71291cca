//! The figures that the kernel shows in sysfs, by its own counting and rounding.
//!
//! [`PriorityStats`] is `cache0/priority_stats`. The kernel counts its buckets in memory, where
//! allocation and writes have moved on since the gens and prios on the device were written; right
//! after registration, and for what no write has touched, both are the same.

use serde::Serialize;

use crate::cache_set::table::{BucketTable, GcMark};
use crate::units::{Geometry, Prio};

/// Number of quantiles that the kernel shows.
pub(crate) const QUANTILES: usize = 31;

/// Bars of the histogram of bucket ages.
pub(crate) const AGE_BARS: usize = 32;

/// Numbers of buckets by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BucketCounts {
    /// All buckets, those before the first usable one included: what percentages refer to.
    pub total: u64,
    /// No sectors in use.
    pub unused: u64,
    /// Clean data.
    pub clean: u64,
    /// Dirty data.
    pub dirty: u64,
    /// Btree, journal, prios, uuids. Journal, prios and uuids have no sectors in use, and the
    /// kernel counts them as unused too.
    pub metadata: u64,
}

impl BucketCounts {
    /// `count` in whole per cent of all buckets, rounded down as the kernel does.
    pub const fn percent(&self, count: u64) -> u64 {
        match count.saturating_mul(100).checked_div(self.total) {
            Some(percent) => percent,
            None => 0,
        }
    }
}

/// What `priority_stats` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PriorityStats {
    /// Buckets.
    pub buckets: BucketCounts,
    /// Mean age of the buckets with a priority, btree nodes left out: `INITIAL_PRIO - prio`,
    /// rounded down.
    pub average: u64,
    /// Sectors between two quantiles.
    pub sectors_per_quantile: u64,
    /// Ages at the quantiles, ascending. Wraps where a prio is over 32768, as the kernel's does.
    pub quantiles: [u16; QUANTILES],
}

/// How far the gens are from the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GenStats {
    /// Largest `gen - last_gc`; at 96 a bucket cannot be invalidated.
    pub gen_span_max: u8,
    /// Buckets at the limit.
    pub at_limit: u64,
}

/// Counts what the table says, first usable bucket to last.
pub fn priority_stats(table: &BucketTable, geometry: &Geometry) -> PriorityStats {
    let mut counts = BucketCounts { total: geometry.nbuckets(), ..BucketCounts::default() };
    let mut by_prio = vec![0u64; usize::from(u16::MAX) + 1];
    for bucket in usable(table, geometry) {
        counts.unused += u64::from(bucket.sectors_used() == 0);
        match bucket.mark() {
            GcMark::Unused => {}
            GcMark::Reclaimable => counts.clean += 1,
            GcMark::Dirty => counts.dirty += 1,
            GcMark::Metadata => counts.metadata += 1,
        }
        if let Some(count) = by_prio.get_mut(usize::from(bucket.prio().0)) {
            *count += 1;
        }
    }
    // The kernel leaves out priority 0 and that of the btree.
    let ages =
        || (1..Prio::BTREE.0).rev().zip(by_prio.iter().take(usize::from(u16::MAX)).skip(1).rev());
    let aged: u64 = ages().map(|(_, count)| *count).sum();
    let sum = ages().fold(0u64, |sum, (prio, count)| {
        // Unsigned 64-bit arithmetic, which wraps for prios over INITIAL.
        let age = u64::from(Prio::INITIAL.0).wrapping_sub(u64::from(prio));
        sum.wrapping_add(age.wrapping_mul(*count))
    });
    let mut quantiles = [0; QUANTILES];
    let mut nth_prio = NthPrio { ages: ages(), passed: 0, current: None };
    for (i, quantile) in (1u64..).zip(&mut quantiles) {
        let rank = aged.saturating_mul(i) / (QUANTILES as u64 + 1);
        // Without any such bucket the kernel reads the prio behind those of the btree, which is 0.
        let prio = nth_prio.at(rank).unwrap_or(0);
        *quantile = Prio::INITIAL.0.wrapping_sub(prio);
    }
    PriorityStats {
        buckets: counts,
        average: sum.checked_div(aged).unwrap_or(0),
        sectors_per_quantile: aged.saturating_mul(geometry.bucket_size().0)
            / (QUANTILES as u64 + 1),
        quantiles,
    }
}

/// Walks the prios from the largest down to the one at a rank; ranks must not fall.
struct NthPrio<'c, I: Iterator<Item = (u16, &'c u64)>> {
    ages: I,
    /// Buckets up to and including `current`.
    passed: u64,
    current: Option<u16>,
}

impl<'c, I: Iterator<Item = (u16, &'c u64)>> NthPrio<'c, I> {
    fn at(&mut self, rank: u64) -> Option<u16> {
        while self.passed <= rank {
            let (prio, count) = self.ages.next()?;
            self.passed += count;
            self.current = Some(prio);
        }
        self.current
    }
}

/// Buckets that the allocator may use, as the kernel counts them: without a mark or clean, and not
/// pinned. `pins` says whether the journal's pins count; they do until replay has dropped them.
pub fn available(table: &BucketTable, geometry: &Geometry, pins: bool) -> u64 {
    usable(table, geometry)
        .filter(|bucket| {
            matches!(bucket.mark(), GcMark::Unused | GcMark::Reclaimable)
                && !(pins && bucket.pinned())
        })
        .count() as u64
}

/// `cache_available_percent` for a number of available buckets.
pub fn available_percent(available: u64, geometry: &Geometry) -> u64 {
    let in_use = geometry.nbuckets().saturating_sub(available);
    100u64.saturating_sub(in_use.saturating_mul(100) / geometry.nbuckets().max(1))
}

/// How far gens are from the limit.
pub fn gen_stats(table: &BucketTable, geometry: &Geometry) -> GenStats {
    usable(table, geometry).fold(GenStats::default(), |stats, bucket| {
        let span = bucket.gen_span();
        GenStats {
            gen_span_max: stats.gen_span_max.max(span),
            at_limit: stats.at_limit + u64::from(span >= crate::units::BUCKET_GC_GEN_MAX),
        }
    })
}

/// Numbers of data buckets by age, in 32 equal steps from the youngest to the oldest, and
/// the width of a step.
pub fn age_histogram(table: &BucketTable, geometry: &Geometry) -> (u16, [u64; AGE_BARS]) {
    let data = || {
        usable(table, geometry)
            .filter(|bucket| matches!(bucket.mark(), GcMark::Reclaimable | GcMark::Dirty))
            .map(|bucket| Prio::INITIAL.0.saturating_sub(bucket.prio().0))
    };
    let oldest = data().max().unwrap_or(0);
    let width = (oldest / u16::try_from(AGE_BARS).unwrap_or(1)).saturating_add(1);
    let mut bars = [0; AGE_BARS];
    for age in data() {
        if let Some(bar) = bars.get_mut(usize::from(age / width)) {
            *bar += 1;
        }
    }
    (width, bars)
}

fn usable<'t>(
    table: &'t BucketTable,
    geometry: &Geometry,
) -> impl Iterator<Item = &'t crate::cache_set::Bucket> {
    let first = usize::try_from(geometry.first_bucket().0).unwrap_or(usize::MAX);
    table.as_slice().get(first..).unwrap_or_default().iter()
}

/// `bytes` as sysfs writes sizes (`bch_hprint`): at least one division by 1024, one digit after the
/// point, rounded down.
pub fn hprint(bytes: u64) -> String {
    let units = ['k', 'M', 'G', 'T', 'P', 'E'];
    let mut whole = bytes;
    for unit in units {
        let tenths = (whole & 1023) * 10 / 1024;
        whole >>= 10;
        if whole < 1000 || unit == 'E' {
            return format!("{whole}.{tenths}{unit}");
        }
    }
    format!("{whole}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::prio_set::BucketDisk;
    use crate::units::{Gen, Sectors};
    use proptest::prelude::*;

    /// What sysfs shows, straight from its definition: the prios of all usable buckets in falling
    /// order, without those of the btree at one end and the zeroes at the other, and of what is left
    /// the mean age and the age at every 32nd part.
    fn naive(prios: &[u16], bucket_size: u64) -> (u64, u64, Vec<u16>) {
        let mut aged: Vec<u16> =
            prios.iter().copied().filter(|&prio| prio != 0 && prio != u16::MAX).collect();
        aged.sort_unstable_by(|a, b| b.cmp(a));
        let count = aged.len() as u64;
        let age = |prio: u16| 32768u64.wrapping_sub(u64::from(prio));
        let sum = aged.iter().fold(0u64, |sum, &prio| sum.wrapping_add(age(prio)));
        let quantiles = (1..=31).map(|i| {
            let prio = aged.get(aged.len() * i / 32).copied().unwrap_or(0);
            32768u16.wrapping_sub(prio)
        });
        (sum.checked_div(count).unwrap_or(0), count * bucket_size / 32, quantiles.collect())
    }

    proptest! {
        #[test]
        fn ages_are_counted_as_sysfs_counts_them(
            first in 0u64..3,
            prios in prop::collection::vec(
                prop_oneof![
                    Just(0u16), Just(u16::MAX), Just(32768), 32000u16..32768, any::<u16>(),
                ],
                4..300,
            ),
            log_size in 3u32..12,
        ) {
            let size = Sectors(1 << log_size);
            let geometry = Geometry::new(prios.len() as u64, first, size, Sectors(8)).unwrap();
            let mut table = BucketTable::new(prios.len() as u64).unwrap();
            let entry = |&prio: &u16| BucketDisk { prio: Prio(prio), bucket_gen: Gen(0) };
            table.load(0, prios.iter().map(entry));
            let stats = priority_stats(&table, &geometry);
            let usable = &prios[usize::try_from(first).unwrap()..];
            let found = (stats.average, stats.sectors_per_quantile, stats.quantiles.to_vec());
            prop_assert_eq!(found, naive(usable, size.0));
        }
    }

    #[test]
    fn sizes_are_written_as_sysfs_does() {
        for (bytes, text) in [
            (0, "0.0k"),
            (24 << 10, "24.0k"),
            ((9 << 10) + 700, "9.6k"),
            (1000 << 10, "0.9M"),
            (999 << 10, "999.0k"),
            (11_456_000, "10.9M"),
            (u64::MAX, "15.9E"),
        ] {
            assert_eq!(hprint(bytes), text);
        }
    }
}
