//! A whole trace in memory, in the order of its times: decoded once for all cells.

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use rustc_hash::FxHasher;
use serde::Serialize;

use super::skipped::{SkipReason, Skipped};
use super::{Flags, Format, Op, Request, Requests, TraceError};

/// Requests that are kept in memory at most: 32 bytes each.
const REQUESTS_MAX: usize = 200_000_000;
/// Sampling keeps or drops whole regions, because a cache packs neighbours: 1 MiB.
const REGION_SECTORS: u64 = 2048;

/// What to load of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadOptions {
    /// The part of the addresses to keep, 0 to 1.
    pub sample: f64,
    /// As if each request had been made when the one before was done: after 400 µs and 1.5 µs a KiB.
    pub ignore_times: bool,
    /// As if one task had made all requests.
    pub one_task: bool,
    /// Nobody waits for writes where the format does not tell; otherwise all are synchronous there, as
    /// those of direct I/O are.
    pub async_writes: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { sample: 1.0, ignore_times: false, one_task: false, async_writes: false }
    }
}

/// How many requests, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Requests.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counted {
    fn add(&mut self, sectors: u32) {
        self.requests += 1;
        self.bytes += u64::from(sectors) * 512;
    }
}

/// What is in a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Reads.
    pub reads: Counted,
    /// Writes.
    pub writes: Counted,
    /// Discards.
    pub discards: Counted,
    /// Distinct pages of 4 KiB that requests touch, in bytes.
    pub footprint_bytes: u64,
    /// End of the highest request, in bytes, on the device where it is highest.
    pub span_bytes: u64,
    /// From the first request to the last.
    pub duration_ns: u64,
    /// Distinct processes; 0 where they are not recorded.
    pub processes: u64,
    /// Devices, by number.
    pub devices: Vec<String>,
    /// Whether the times are the trace's.
    pub has_times: bool,
    /// Requests that are no multiple of 4 KiB, or do not begin at one.
    pub unaligned_4k: u64,
}

/// A trace in memory.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Its format.
    pub format: Format,
    /// In the order of their times.
    pub requests: Vec<Request>,
    /// What is in it.
    pub summary: Summary,
    /// What was no request.
    pub skipped: Skipped,
}

/// Whether sampling keeps a region.
fn is_sampled(request: &Request, sample: f64) -> bool {
    let mut hasher = FxHasher::default();
    (request.device, request.sector / REGION_SECTORS).hash(&mut hasher);
    // The upper half of the hash, after another multiplication, is as good as random.
    let hash = hasher.finish().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    #[allow(clippy::cast_precision_loss)] // 24 bits
    let place = hash as f64 / f64::from(1 << 24);
    place < sample
}

/// Reads a trace to its end and sorts it by time, stably: all formats are slightly out of order.
///
/// # Errors
/// As the reader; [`TraceError::Empty`] and [`TraceError::NoRequests`] without a single request.
pub fn load(requests: Requests, options: &LoadOptions) -> Result<Trace, TraceError> {
    load_until(requests, options, &AtomicBool::new(false))
}

/// The same until it is told to stop: what was read by then is the trace. So Ctrl-C ends a recording
/// that is piped in, and its replay begins.
///
/// # Errors
/// As [`load`].
pub fn load_until(
    mut requests: Requests,
    options: &LoadOptions,
    stop: &AtomicBool,
) -> Result<Trace, TraceError> {
    let mut kept: Vec<Request> = Vec::new();
    let mut left_out = 0;
    let sync_writes = !requests.format().has_flags() && !options.async_writes;
    for request in requests.by_ref() {
        let mut request = request?;
        if sync_writes && request.op == Op::Write {
            request.flags = request.flags.with(Flags::SYNC);
        }
        if options.one_task {
            request.process = None;
        }
        if options.sample < 1.0 && !is_sampled(&request, options.sample) {
            left_out += 1;
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if kept.len() == REQUESTS_MAX {
            return Err(TraceError::TooManyRequests { max: REQUESTS_MAX });
        }
        kept.push(request);
    }
    let mut skipped = requests.skipped().clone();
    skipped.add_many(SkipReason::CutOff, requests.cut_off());
    skipped.add_many(SkipReason::NotSampled, left_out);
    if kept.is_empty() && skipped.iter().next().is_some() {
        return Err(TraceError::NoRequests { skipped });
    }
    if kept.is_empty() {
        return Err(TraceError::Empty);
    }
    kept.sort_by_key(|request| request.time_ns);
    let first_ns = kept.first().map_or(0, |request| request.time_ns);
    if !options.ignore_times {
        spread(&mut kept);
    }
    let mut now_ns = 0;
    for request in &mut kept {
        request.time_ns = if options.ignore_times { now_ns } else { request.time_ns - first_ns };
        now_ns += service_ns(request);
    }
    kept.shrink_to_fit();
    let mut summary = summarise(&kept);
    summary.devices = requests.devices();
    summary.has_times = requests.has_times() && !options.ignore_times;
    Ok(Trace { format: requests.format(), requests: kept, summary, skipped })
}

/// Requests of one second are spread over it, where the times of a trace are whole seconds.
fn spread(requests: &mut [Request]) {
    const SECOND_NS: u64 = 1_000_000_000;
    if requests.iter().any(|request| request.time_ns % SECOND_NS != 0) {
        return;
    }
    for second in requests.chunk_by_mut(|one, next| one.time_ns == next.time_ns) {
        let apart_ns = SECOND_NS / second.len().max(1) as u64;
        for (request, at) in second.iter_mut().zip(0u64..) {
            request.time_ns = request.time_ns.saturating_add(at * apart_ns);
        }
    }
}

/// About what a request takes when the next is made as soon as it is done.
fn service_ns(request: &Request) -> u64 {
    400_000 + u64::from(request.sectors) * 750
}

fn summarise(requests: &[Request]) -> Summary {
    let mut summary = Summary::default();
    let mut pages: rustc_hash::FxHashMap<(u16, u64), u64> = rustc_hash::FxHashMap::default();
    let mut processes = rustc_hash::FxHashSet::default();
    for request in requests {
        let counted = match request.op {
            Op::Read => &mut summary.reads,
            Op::Write => &mut summary.writes,
            Op::Discard => &mut summary.discards,
        };
        counted.add(request.sectors);
        summary.span_bytes = summary.span_bytes.max(request.end() * 512);
        processes.extend(request.process);
        if (request.sector | u64::from(request.sectors)) % 8 != 0 {
            summary.unaligned_4k += 1;
        }
        // One bit a page, 64 pages a word.
        let (first, last) = (request.sector / 8, (request.end() - 1) / 8);
        for word in first / 64..=last / 64 {
            let from = first.max(word * 64) % 64;
            let to = last.min(word * 64 + 63) % 64;
            let mask = (u64::MAX << from) & (u64::MAX >> (63 - to));
            *pages.entry((request.device, word)).or_default() |= mask;
        }
    }
    summary.footprint_bytes =
        pages.values().map(|word| u64::from(word.count_ones())).sum::<u64>() * 4096;
    summary.duration_ns = requests.last().map_or(0, |request| request.time_ns);
    summary.processes = processes.len() as u64;
    summary
}
