//! Statistics: what bcache counts, and what the block layer counts.

use serde::Serialize;

use super::attributes::Attributes;
use super::rounded::Rounded;

/// One of bcache's statistics directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Reads found whole in the cache.
    pub cache_hits: Option<u64>,
    /// Reads of which something was not in the cache.
    pub cache_misses: Option<u64>,
    /// Reads that went past the cache and would have been hits.
    pub cache_bypass_hits: Option<u64>,
    /// Reads that went past the cache and would have been misses.
    pub cache_bypass_misses: Option<u64>,
    /// Misses whose data was not cached because a write came in between.
    pub cache_miss_collisions: Option<u64>,
    /// Bytes, read or written, that went past the cache: a lower bound, for the count wraps above
    /// 32 MiB a tick.
    pub bypassed_bytes: Option<Rounded>,
}

impl Stats {
    /// Reads the directory `name` of `of`, such as `stats_total`.
    pub fn read(of: &Attributes, name: &str) -> Option<Self> {
        let dir = of.below(name);
        dir.exist().then(|| Self {
            cache_hits: dir.number("cache_hits"),
            cache_misses: dir.number("cache_misses"),
            cache_bypass_hits: dir.number("cache_bypass_hits"),
            cache_bypass_misses: dir.number("cache_bypass_misses"),
            cache_miss_collisions: dir.number("cache_miss_collisions"),
            bypassed_bytes: dir.rounded("bypassed"),
        })
    }

    /// Share of the reads that were hits, 0 to 1; `None` where nothing was read.
    pub fn hit_ratio(&self) -> Option<f64> {
        let (hits, misses) = (self.cache_hits?, self.cache_misses?);
        let all = hits.saturating_add(misses);
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        (all > 0).then(|| hits as f64 / all as f64)
    }
}

/// What the block layer counts of a device: exact and live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskStats {
    /// Reads completed.
    pub reads: u64,
    /// Sectors read.
    pub read_sectors: u64,
    /// Writes completed.
    pub writes: u64,
    /// Sectors written.
    pub written_sectors: u64,
    /// Reads and writes under way at the moment.
    pub in_flight: u64,
    /// Milliseconds in which something was under way.
    pub busy_ms: u64,
}

impl DiskStats {
    /// Parses a `stat` file of a block device.
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<u64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let field = |index: usize| fields.get(index).copied();
        Some(Self {
            reads: field(0)?,
            read_sectors: field(2)?,
            writes: field(4)?,
            written_sectors: field(6)?,
            in_flight: field(8)?,
            busy_ms: field(9)?,
        })
    }

    /// What was added since `before`, with what is under way now; `None` where a counter fell, as it does when the device was
    /// made anew.
    pub fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            reads: self.reads.checked_sub(before.reads)?,
            read_sectors: self.read_sectors.checked_sub(before.read_sectors)?,
            writes: self.writes.checked_sub(before.writes)?,
            written_sectors: self.written_sectors.checked_sub(before.written_sectors)?,
            in_flight: self.in_flight,
            busy_ms: self.busy_ms.checked_sub(before.busy_ms)?,
        })
    }
}

/// Share of the bytes read from the bcache device that did not come from its backing device, 0 to 1;
/// `None` where nothing was read. Reads of the backing device by others, and readahead, make it too
/// low; it is never below 0.
pub fn byte_hit_ratio(bcache: &DiskStats, backing: &DiskStats) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    (bcache.read_sectors > 0)
        .then(|| (1.0 - backing.read_sectors as f64 / bcache.read_sectors as f64).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_stats_are_parsed_and_subtracted() {
        let text = "  10 1 80 5 20 2 160 6 0 33 11 0 0 0 0 0 0";
        let stats = DiskStats::parse(text).unwrap();
        assert_eq!((stats.reads, stats.read_sectors), (10, 80));
        assert_eq!((stats.writes, stats.written_sectors, stats.busy_ms), (20, 160, 33));
        let before = DiskStats { reads: 4, ..DiskStats::default() };
        assert_eq!(stats.since(&before).unwrap().reads, 6);
        assert_eq!(before.since(&stats), None);
        assert_eq!(DiskStats::parse("1 2 x"), None);
    }

    #[test]
    fn what_is_under_way_is_no_counter() {
        let stats = |reads, in_flight| DiskStats { reads, in_flight, ..DiskStats::default() };
        assert_eq!(stats(7, 2).since(&stats(4, 9)), Some(stats(3, 2)));
    }

    #[test]
    fn a_byte_hit_ratio_needs_reads() {
        let sectors = |read_sectors| DiskStats { read_sectors, ..DiskStats::default() };
        assert_eq!(byte_hit_ratio(&sectors(0), &sectors(5)), None);
        assert_eq!(byte_hit_ratio(&sectors(100), &sectors(25)), Some(0.75));
        assert_eq!(byte_hit_ratio(&sectors(10), &sectors(25)), Some(0.0));
    }
}
