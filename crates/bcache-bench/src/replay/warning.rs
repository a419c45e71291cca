//! What to know about a table: what makes figures dubious, and what users would not guess.

use bcache_core::model::{Mode, Stats};
use serde::Serialize;

use super::cells::CellResult;
use super::report::Settings;
use crate::num::{float, ratio};
use crate::trace::Trace;

/// What makes figures dubious, or what users would not guess.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Warning {
    /// The trace names no processes: one task stands for all.
    NoProcesses,
    /// The trace has no times: no wear a day, no streams that expire.
    NoTimes,
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
    /// sysfs's `bypassed` loses what is above 32 MiB in 13.6 s, which this trace exceeds.
    SysfsBypassed {
        /// Bytes bypassed a second.
        bytes_per_second: f64,
    },
    /// Gens rise far between two GCs: buckets at 96 cannot be used again before a GC.
    Gens {
        /// The greatest distance.
        gen_max: u8,
    },
    /// A write found no bucket ready.
    Unplaced {
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
/// What `bypassed` in sysfs can carry: 32 MiB in 13.6 s.
const SYSFS_BYTES_PER_SECOND: f64 = 33_554_432.0 / 13.6;
/// Gens from here on are near the limit of 96.
const GENS_HIGH: u8 = 64;

/// The warnings that a trace and its table deserve.
pub fn warnings(trace: &Trace, results: &[CellResult], settings: &Settings) -> Vec<Warning> {
    let summary = &trace.summary;
    let mut warnings = Vec::new();
    if summary.processes == 0 {
        warnings.push(Warning::NoProcesses);
    }
    if !summary.has_times {
        warnings.push(Warning::NoTimes);
    }
    if settings.sample < 1.0 {
        warnings.push(Warning::Sampled { sample: settings.sample });
    }
    if !trace.format.has_flags() && results.iter().any(|it| it.cell.mode == Mode::Writeback) {
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
        let seconds = float(summary.duration_ns) / 1e9;
        let most = ran()
            .map(|(_, stats)| {
                let (reads, writes) = stats.bypassed_sectors();
                (reads + writes) * 512
            })
            .max()
            .unwrap_or(0);
        let bytes_per_second = float(most) / seconds;
        if bytes_per_second > SYSFS_BYTES_PER_SECOND {
            warnings.push(Warning::SysfsBypassed { bytes_per_second });
        }
    }
    let gen_max = ran().map(|(_, stats)| stats.gc_gen_max).max().unwrap_or(0);
    if gen_max >= GENS_HIGH {
        warnings.push(Warning::Gens { gen_max });
    }
    let worst = ran()
        .map(|(_, it)| {
            let wanted = it.promoted_sectors + it.written_sectors + it.unplaced_sectors;
            (ratio(it.unplaced_sectors, wanted).unwrap_or(0.0), it.unplaced_sectors * 512)
        })
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    if let Some((share, bytes)) = worst.filter(|(share, _)| *share >= UNPLACED_MUCH) {
        warnings.push(Warning::Unplaced { bytes, share });
    }
    warnings
}
