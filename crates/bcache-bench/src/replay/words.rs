//! Answer and warnings in words.

use std::fmt::Write as _;

use bcache_core::units::format_bytes;

use super::answer::{Advice, Answer};
use super::render::{cutoff_name, percent, rounded_bytes};
use super::warning::Warning;
use crate::num::{format_count, ratio};

/// The answer in words.
pub fn answer_text(answer: &Answer) -> String {
    match answer {
        Answer::NoReads => {
            "The trace has no reads: a cache cannot answer any. Only writeback mode could help, and \
             that is a question of latency, which a replay without a device does not see."
                .to_owned()
        }
        Answer::NoCells => "No cache of the table can be made: each has fewer than 513 buckets, \
                            which the kernel refuses. Try larger caches or smaller buckets."
            .to_owned(),
        Answer::Unfinished => "No cache was finished.".to_owned(),
        Answer::NoHelp { hit_ratio, ssd_bytes, lru_hit_ratio } => {
            let mut text = format!(
                "A cache does not help here: the best one answers {} of the reads",
                percent(*hit_ratio)
            );
            if let Some(lru) = lru_hit_ratio {
                let _ = write!(text, " (exact LRU of blocks: {} of the blocks read)", percent(*lru));
            }
            let _ = write!(
                text,
                ". For that, {} to {} would be written to the SSD. Without a cache nothing is lost.",
                format_bytes(ssd_bytes.0),
                format_bytes(ssd_bytes.1)
            );
            text
        }
        Answer::Make(advice) => advice_text(advice),
    }
}

fn advice_text(advice: &Advice) -> String {
    let Advice { cell, .. } = advice;
    let mut text = format!(
        "Make a cache of {} with buckets of {} and policy {}, sequential_cutoff {}: {} of the reads \
         are answered by the SSD ({} of their bytes).",
        format_bytes(cell.cache_bytes),
        format_bytes(cell.bucket_bytes),
        cell.policy.name(),
        cutoff_name(cell.sequential_cutoff_bytes),
        percent(advice.hit_ratio),
        percent(advice.byte_hit_ratio),
    );
    if let Some(lru) = advice.lru_hit_ratio {
        let _ = write!(text, " Exact LRU of 4 KiB blocks would answer {}.", percent(lru));
    }
    match advice.next {
        Some((bytes, best)) if best - advice.hit_ratio >= 0.001 => {
            let _ = write!(
                text,
                " The next size, {}, would bring {:.1} points more.",
                format_bytes(bytes),
                (best - advice.hit_ratio) * 100.0
            );
        }
        Some((bytes, _)) => {
            let _ = write!(text, " The next size, {}, would bring nothing.", format_bytes(bytes));
        }
        None if advice.holds_footprint => {
            text.push_str(" All that the trace touches fits: a larger cache would bring nothing.");
        }
        None => text.push_str(" It is the largest size tried: a larger one may be better."),
    }
    let spread = |of: &[f64]| {
        let least = of.iter().copied().fold(f64::INFINITY, f64::min);
        of.iter().copied().fold(0.0, f64::max) - least
    };
    let buckets: Vec<f64> = advice.by_bucket.iter().map(|(_, hit)| *hit).collect();
    if buckets.len() > 1 {
        let _ = write!(
            text,
            " With this policy and cutoff, bucket sizes differ by {:.1} points,",
            spread(&buckets) * 100.0
        );
        let policies: Vec<f64> = advice.by_policy.iter().map(|(_, hit)| *hit).collect();
        let _ = write!(
            text,
            " and with this bucket size, policies by {:.1}.",
            spread(&policies) * 100.0
        );
    }
    if let Some(other) = advice.cutoff {
        let _ = write!(
            text,
            " The cutoff decides more than anything: with sequential_cutoff {} the same cache would \
             answer {} and write {} to the SSD instead of {}.",
            cutoff_name(other.other_bytes),
            percent(other.hit_ratio),
            format_bytes(other.ssd_bytes),
            format_bytes(advice.ssd_bytes),
        );
    }
    if let Some(bytes) = advice.ssd_bytes_per_day {
        let _ = write!(text, " At the trace's pace the SSD takes {} a day.", rounded_bytes(bytes));
    }
    text
}

/// A warning in words.
pub fn warning_text(warning: &Warning) -> String {
    let share = |part: u64, of: u64| percent(ratio(part, of).unwrap_or(0.0));
    match *warning {
        Warning::NoProcesses => "the trace names no processes: all requests count as those of one \
                                 task, so that sequential I/O of one program affects all (--cutoff 0 \
                                 shows how much)"
            .to_owned(),
        Warning::NoTimes { writeback } => format!(
            "the trace has no times: wear a day cannot be told{}",
            if writeback { ", and background writeback is a guess" } else { "" }
        ),
        Warning::Sampled { sample } => format!(
            "{} of the addresses were replayed through caches as much smaller: hit ratios may be off \
             by 2 points at a quarter and by 8 at an eighth, and sequential detection is off",
            percent(sample)
        ),
        Warning::WritesUntold { sync: true } => "the trace does not say which writes somebody waits for: all \
             are taken for synchronous, as those of direct I/O are, and stay in a writeback cache until \
             70 % of it are in use (--async-writes: until 40 %)"
            .to_owned(),
        Warning::WritesUntold { sync: false } => "the trace does not say which writes somebody waits \
             for: none is taken for synchronous, so that a writeback cache takes dirty data until 40 % \
             of it are in use"
            .to_owned(),
        Warning::Unaligned { requests, of } => format!(
            "{} of the requests are not aligned to the block size and bypass the cache: use --block 512",
            share(requests, of)
        ),
        Warning::Unaligned4k { requests, of } => format!(
            "{} of the requests are not aligned to 4 KiB: a cache with blocks of 4 KiB, which make \
             chooses on disks with such sectors, would be bypassed by them",
            share(requests, of)
        ),
        Warning::CutoffBypasses { cutoff_bytes, bytes, of } => format!(
            "sequential_cutoff {} sends {} of all bytes past the cache",
            format_bytes(cutoff_bytes),
            share(bytes, of)
        ),
        Warning::PrioWrites { cache_bytes, bucket_bytes, prio_bytes, data_bytes } => format!(
            "small caches write their prios all the time: {} with buckets of {} writes {} of prios \
             for {} of data; smaller buckets need less",
            format_bytes(cache_bytes),
            format_bytes(bucket_bytes),
            format_bytes(prio_bytes),
            format_bytes(data_bytes)
        ),
        Warning::SysfsBypassed { bytes, shown_bytes } => format!(
            "sysfs will not confirm this: up to {} bypass the cache, of which its counter \"bypassed\" would \
             show {}; it loses what exceeds 32 MiB in 13.6 seconds",
            format_bytes(bytes),
            format_bytes(shown_bytes)
        ),
        Warning::SysfsReads { reads, shown } => format!(
            "sysfs will not confirm this: of {} reads that do not bypass the cache, cache_hits and cache_misses \
             would show {}; each loses what exceeds 65,535 in 13.6 seconds",
            format_count(reads),
            format_count(shown)
        ),
        Warning::Gens { gen_max } => format!(
            "buckets were used up to {gen_max} times between two garbage collections; at 96 they \
             wait for one"
        ),
        Warning::Unplaced { cache_bytes, bucket_bytes, bytes, share } => format!(
            "no bucket was ready for {} ({:.0} %) of what {} with buckets of {} were to keep: small caches have \
             few ready, and write a chain of prio sets for every few",
            format_bytes(bytes),
            share * 100.0,
            format_bytes(cache_bytes),
            format_bytes(bucket_bytes)
        ),
    }
}
