//! What a modelled cache set did.

use serde::Serialize;

/// Which of the kernel's rules sent a request past the cache; the first that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BypassReason {
    /// More than 95 % of the buckets are in use.
    CacheFull,
    /// A discard.
    Discard,
    /// The cache mode: none, or a write in writearound mode.
    Mode,
    /// Readahead, where only metadata of it is cached.
    Readahead,
    /// Start or length is no multiple of the block size.
    Unaligned,
    /// Sequential I/O, by the cutoff.
    Sequential,
}

impl BypassReason {
    /// All, in the order in which they are tried.
    pub const ALL: [Self; 6] = [
        Self::CacheFull,
        Self::Discard,
        Self::Mode,
        Self::Readahead,
        Self::Unaligned,
        Self::Sequential,
    ];

    /// A name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CacheFull => "cache full",
            Self::Discard => "discard",
            Self::Mode => "cache mode",
            Self::Readahead => "readahead",
            Self::Unaligned => "unaligned",
            Self::Sequential => "sequential",
        }
    }
}

/// Requests and their sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Requests.
    pub requests: u64,
    /// Sectors of them.
    pub sectors: u64,
}

impl Count {
    pub(super) fn add(&mut self, sectors: u64) {
        self.requests += 1;
        self.sectors += sectors;
    }
}

/// Requests that bypassed the cache, by the rule that sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bypassed {
    /// See [`BypassReason::CacheFull`].
    pub cache_full: Count,
    /// See [`BypassReason::Discard`].
    pub discard: Count,
    /// See [`BypassReason::Mode`].
    pub mode: Count,
    /// See [`BypassReason::Readahead`].
    pub readahead: Count,
    /// See [`BypassReason::Unaligned`].
    pub unaligned: Count,
    /// See [`BypassReason::Sequential`].
    pub sequential: Count,
}

impl Bypassed {
    /// Those that one rule sent.
    pub const fn by(&self, reason: BypassReason) -> &Count {
        match reason {
            BypassReason::CacheFull => &self.cache_full,
            BypassReason::Discard => &self.discard,
            BypassReason::Mode => &self.mode,
            BypassReason::Readahead => &self.readahead,
            BypassReason::Unaligned => &self.unaligned,
            BypassReason::Sequential => &self.sequential,
        }
    }

    pub(super) fn by_mut(&mut self, reason: BypassReason) -> &mut Count {
        match reason {
            BypassReason::CacheFull => &mut self.cache_full,
            BypassReason::Discard => &mut self.discard,
            BypassReason::Mode => &mut self.mode,
            BypassReason::Readahead => &mut self.readahead,
            BypassReason::Unaligned => &mut self.unaligned,
            BypassReason::Sequential => &mut self.sequential,
        }
    }
}

/// What a cache set did, counted from its registration. Sectors are of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Reads that did not bypass and of which every sector was cached (`cache_hits`).
    pub cache_hits: u64,
    /// All other reads that did not bypass (`cache_misses`).
    pub cache_misses: u64,
    /// Reads that bypassed and of which every sector was cached (`cache_bypass_hits`).
    pub cache_bypass_hits: u64,
    /// All other reads that bypassed (`cache_bypass_misses`).
    pub cache_bypass_misses: u64,
    /// Misses of which some sectors were cached, bypassed ones included.
    pub partial_hits: u64,
    /// Reads.
    pub reads: Count,
    /// Sectors of reads that came from the cache.
    pub read_hit_sectors: u64,
    /// Writes.
    pub writes: Count,
    /// Discards.
    pub discards: Count,
    /// Reads that bypassed.
    pub bypassed_reads: Bypassed,
    /// Writes and discards that bypassed.
    pub bypassed_writes: Bypassed,
    /// Sectors that misses put into the cache.
    pub promoted_sectors: u64,
    /// Sectors that writes put into the cache.
    pub written_sectors: u64,
    /// Sectors that were to be put into the cache, and for which no bucket was ready.
    pub unplaced_sectors: u64,
    /// Sectors written back, as the estimate has it.
    pub writeback_sectors: u64,
    /// Sectors dirty at the end.
    pub dirty_sectors: u64,
    /// Most sectors that were dirty at once.
    pub dirty_sectors_max: u64,
    /// Sectors read from backing devices.
    pub backing_read_sectors: u64,
    /// Sectors written to backing devices, writeback included.
    pub backing_write_sectors: u64,
    /// Chains of prio sets written.
    pub prio_writes: u64,
    /// Sectors of prio sets written: whole buckets.
    pub prio_sectors: u64,
    /// Btree nodes at the end, as estimated from the extents.
    pub btree_nodes: u64,
    /// Most extents at a time.
    pub extents_max: u64,
    /// Buckets allocated for data.
    pub buckets_allocated: u64,
    /// Buckets invalidated.
    pub invalidations: u64,
    /// Of those, the ones that held data by the last GC.
    pub invalidations_of_data: u64,
    /// Garbage collections.
    pub gcs: u64,
    /// Of those, the ones that the allocator waited for.
    pub gcs_for_allocator: u64,
    /// Sectors of live extents that GCs found, summed over all GCs.
    pub gc_live_sectors: u64,
    /// Sectors of the cache, summed over all GCs.
    pub gc_cache_sectors: u64,
    /// Greatest distance of a gen from its bucket's `last_gc`.
    pub gc_gen_max: u8,
    /// Buckets whose gen was 64 or more from `last_gc` at the end.
    pub gc_gen_64: u64,
    /// Times that all prios aged.
    pub rescalings: u64,
    /// Bypassed sectors that `bypassed` in sysfs would not show.
    pub sysfs_lost_bypassed_sectors: u64,
    /// Reads that `cache_hits` and `cache_misses` in sysfs would not show.
    pub sysfs_lost_reads: u64,
}

/// How often the kernel adds what it has counted to the totals that sysfs shows.
const SYSFS_PERIOD_NS: u64 = 13_600_000_000;

/// What sysfs loses: of what is counted in a period, the kernel adds the lower 16 bits (`move_stat`).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SysfsPeriod {
    number: u64,
    bypassed_before: u64,
    hits_before: u64,
    misses_before: u64,
}

impl SysfsPeriod {
    /// A request comes at `now_ns`: the period before it may be over.
    pub(super) fn advance(&mut self, now_ns: u64, stats: &mut Stats) {
        let number = now_ns / SYSFS_PERIOD_NS;
        if number != self.number {
            self.end(stats);
            self.number = number;
        }
    }

    /// Counts what the period lost, and begins the next one.
    pub(super) fn end(&mut self, stats: &mut Stats) {
        const KEPT: u64 = u16::MAX as u64;
        let lost = |now: u64, before: &mut u64| {
            let counted = now.saturating_sub(std::mem::replace(before, now));
            counted & !KEPT
        };
        let (reads, writes) = stats.bypassed_sectors();
        stats.sysfs_lost_bypassed_sectors += lost(reads + writes, &mut self.bypassed_before);
        stats.sysfs_lost_reads += lost(stats.cache_hits, &mut self.hits_before)
            + lost(stats.cache_misses, &mut self.misses_before);
    }
}

impl Stats {
    /// Sectors that reads and writes put into the cache.
    pub const fn inserted_sectors(&self) -> u64 {
        self.promoted_sectors + self.written_sectors
    }

    /// Sectors written to the SSD: data and prio sets. Journal and btree are not modelled.
    pub const fn ssd_write_sectors(&self) -> u64 {
        self.inserted_sectors() + self.prio_sectors
    }

    /// Sectors of reads and of writes and discards that bypassed.
    pub fn bypassed_sectors(&self) -> (u64, u64) {
        let sum = |by: &Bypassed| BypassReason::ALL.iter().map(|why| by.by(*why).sectors).sum();
        (sum(&self.bypassed_reads), sum(&self.bypassed_writes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_keeps_16_bits_of_each_period() {
        let (mut stats, mut period) = (Stats::default(), SysfsPeriod::default());
        stats.cache_hits = 65_535;
        stats.bypassed_reads.sequential.sectors = 65_536;
        period.advance(SYSFS_PERIOD_NS - 1, &mut stats);
        assert_eq!(stats.sysfs_lost_bypassed_sectors, 0, "it is not over");
        period.advance(SYSFS_PERIOD_NS, &mut stats);
        assert_eq!((stats.sysfs_lost_reads, stats.sysfs_lost_bypassed_sectors), (0, 65_536));
        stats.cache_hits += 65_536 + 7;
        stats.cache_misses += 131_072;
        stats.bypassed_writes.discard.sectors += 65_535;
        period.end(&mut stats);
        assert_eq!((stats.sysfs_lost_reads, stats.sysfs_lost_bypassed_sectors), (196_608, 65_536));
    }
}
