//! What to know about a table: what makes figures dubious, and what users would not guess.

use bcache_core::model::{Mode, Stats};
use serde::Serialize;

use super::cells::CellResult;
use super::report::Settings;
use crate::num::ratio;
use crate::trace::Trace;

/// What makes figures dubious, or what users would not guess.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Warning {
    /// The trace names no processes: one task stands for all.
    NoProcesses,
    /// The trace has no times: no wear a day, no streams that expire.
    NoTimes {
        /// Background writeback, which goes by times, is modelled for some of the caches.
        writeback: bool,
    },
    /// A part of the addresses only.
    Sampled {
        /// Which part.
        sample: f64,
    },
    /// The trace does not say which writes somebody waits for, and a writeback cache keeps those longer.
    WritesUntold {
        /// All were taken for synchronous, or none.
        sync: bool,
    },
    /// Much of the trace is not aligned to the block size, and bypasses the cache.
    Unaligned {
        /// Requests that are not.
        requests: u64,
        /// Of so many.
        of: u64,
    },
    /// Nearly nothing is aligned to 4 KiB: a block size of 4 KiB would make the cache useless.
    Unaligned4k {
        /// Requests that are not.
        requests: u64,
        /// Of so many.
        of: u64,
    },
    /// The cutoff sends a large part of the bytes past the cache.
    CutoffBypasses {
        /// The cutoff.
        cutoff_bytes: u64,
        /// Bytes that it sent past the cache.
        bytes: u64,
        /// Of so many.
        of: u64,
    },
    /// Chains of prio sets are a large part of what is written to a small cache.
    PrioWrites {
        /// The cache.
        cache_bytes: u64,
        /// Its buckets.
        bucket_bytes: u64,
        /// Bytes of prio sets.
        prio_bytes: u64,
        /// Bytes of data.
        data_bytes: u64,
    },
    /// sysfs's `bypassed` loses what is above 32 MiB in 13.6 s.
    SysfsBypassed {
        /// Bytes that bypass the cache where it loses most.
        bytes: u64,
        /// What it would show of them.
        shown_bytes: u64,
    },
    /// sysfs's `cache_hits` and `cache_misses` lose what is above 65,535 in 13.6 s.
    SysfsReads {
        /// Reads that did not bypass the cache where they lose most.
        reads: u64,
        /// What they would show of them.
        shown: u64,
    },
    /// Gens rise far between two GCs: buckets at 96 cannot be used again before a GC.
    Gens {
        /// The greatest distance.
        gen_max: u8,
    },
    /// A write found no bucket ready.
    Unplaced {
        /// The cache.
        cache_bytes: u64,
        /// Its buckets.
        bucket_bytes: u64,
        /// Bytes that were not kept.
        bytes: u64,
        /// Their part of all that was to be kept.
        share: f64,
    },
}

/// A part that is worth a warning: 10 %.
const MUCH: f64 = 0.1;
/// Of what was to be cached: 2 %.
const UNPLACED_MUCH: f64 = 0.02;
/// For the cutoff: 30 %.
const CUTOFF_MUCH: f64 = 0.3;
/// Gens from here on are near the limit of 96.
const GENS_HIGH: u8 = 64;

/// The warnings that a trace and its table deserve.
pub fn warnings(trace: &Trace, results: &[CellResult], settings: &Settings) -> Vec<Warning> {
    let summary = &trace.summary;
    let mut warnings = Vec::new();
    if summary.processes == 0 {
        warnings.push(Warning::NoProcesses);
    }
    let writeback = results.iter().any(|it| it.cell.mode == Mode::Writeback);
    if !summary.has_times {
        warnings.push(Warning::NoTimes { writeback });
    }
    if settings.sample < 1.0 {
        warnings.push(Warning::Sampled { sample: settings.sample });
    }
    if !trace.format.has_flags() && writeback {
        warnings.push(Warning::WritesUntold { sync: !settings.async_writes });
    }
    let requests = trace.requests.len() as u64;
    let part = |part: u64, of: u64| ratio(part, of).unwrap_or(0.0);
    let ran = || results.iter().filter_map(|it| it.runs.first().map(|stats| (it, stats)));
    let unaligned = |stats: &Stats| {
        stats.bypassed_reads.unaligned.requests + stats.bypassed_writes.unaligned.requests
    };
    let most_unaligned = ran().map(|(_, stats)| unaligned(stats)).max().unwrap_or(0);
    if part(most_unaligned, requests) > MUCH {
        warnings.push(Warning::Unaligned { requests: most_unaligned, of: requests });
    } else if part(summary.unaligned_4k, requests) > 0.5 {
        warnings.push(Warning::Unaligned4k { requests: summary.unaligned_4k, of: requests });
    }
    let bytes = summary.reads.bytes + summary.writes.bytes;
    let sequential = |stats: &Stats| {
        (stats.bypassed_reads.sequential.sectors + stats.bypassed_writes.sequential.sectors) * 512
    };
    let cutoff =
        ran().map(|(it, stats)| (sequential(stats), it.cell.sequential_cutoff_bytes)).max();
    if let Some((bypassed, cutoff_bytes)) = cutoff {
        if part(bypassed, bytes) > CUTOFF_MUCH {
            warnings.push(Warning::CutoffBypasses { cutoff_bytes, bytes: bypassed, of: bytes });
        }
    }
    let prio = ran()
        .filter(|(_, stats)| part(stats.prio_sectors, stats.inserted_sectors()) > MUCH)
        .max_by(|(_, a), (_, b)| {
            let share = |it: &Stats| part(it.prio_sectors, it.inserted_sectors());
            share(a).total_cmp(&share(b))
        });
    if let Some((it, stats)) = prio {
        warnings.push(Warning::PrioWrites {
            cache_bytes: it.cell.cache_bytes,
            bucket_bytes: it.cell.bucket_bytes,
            prio_bytes: stats.prio_sectors * 512,
            data_bytes: stats.inserted_sectors() * 512,
        });
    }
    if summary.has_times && summary.duration_ns > 0 {
        warnings.extend(sysfs(ran().map(|(_, stats)| stats)));
    }
    let gen_max = ran().map(|(_, stats)| stats.gc_gen_max).max().unwrap_or(0);
    if gen_max >= GENS_HIGH {
        warnings.push(Warning::Gens { gen_max });
    }
    let share = |it: &Stats| part(it.unplaced_sectors, it.inserted_sectors() + it.unplaced_sectors);
    let worst = ran().max_by(|(_, one), (_, other)| share(one).total_cmp(&share(other)));
    if let Some((it, stats)) = worst.filter(|(_, stats)| share(stats) >= UNPLACED_MUCH) {
        warnings.push(Warning::Unplaced {
            cache_bytes: it.cell.cache_bytes,
            bucket_bytes: it.cell.bucket_bytes,
            bytes: stats.unplaced_sectors * 512,
            share: share(stats),
        });
    }
    warnings
}

/// What sysfs would not show, where that is most.
fn sysfs<'a>(ran: impl Iterator<Item = &'a Stats> + Clone) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let worst = ran.clone().max_by_key(|it| it.sysfs_lost_bypassed_sectors);
    if let Some(it) = worst.filter(|it| it.sysfs_lost_bypassed_sectors > 0) {
        let (reads, writes) = it.bypassed_sectors();
        let (bytes, lost) = ((reads + writes) * 512, it.sysfs_lost_bypassed_sectors * 512);
        warnings.push(Warning::SysfsBypassed { bytes, shown_bytes: bytes.saturating_sub(lost) });
    }
    let worst = ran.max_by_key(|it| it.sysfs_lost_reads);
    if let Some(it) = worst.filter(|it| it.sysfs_lost_reads > 0) {
        let reads = it.cache_hits + it.cache_misses;
        warnings
            .push(Warning::SysfsReads { reads, shown: reads.saturating_sub(it.sysfs_lost_reads) });
    }
    warnings
}
