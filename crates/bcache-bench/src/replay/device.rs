//! The same requests against a device: what only hardware shows.
//!
//! One at a time, through direct I/O: at the trace's times, or as fast as possible. At its times a
//! request's latency counts from when it was due, whether or not the one before was done by then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bcache_core::device::{AlignedBuf, BlockDevice};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::trace::{Op, Trace};

/// Longest latency that is told apart: an hour.
const NS_MAX: u64 = 3_600_000_000_000;
/// Sleeping ends late by about so much: the rest of a wait is spun.
const SPIN: Duration = Duration::from_micros(100);

/// Latencies of one kind of request, in ns.
#[derive(Clone, Debug, Serialize)]
pub struct Latencies {
    /// Requests.
    pub count: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 99 % are no longer.
    pub p99_ns: u64,
    /// 99.9 % are no longer.
    pub p99_9_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl From<&Histogram<u64>> for Latencies {
    fn from(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            mean_ns: histogram.mean(),
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            max_ns: histogram.max(),
        }
    }
}

/// What a device did.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceFigures {
    /// The device.
    pub device: String,
    /// Whether requests waited for their times.
    pub timed: bool,
    /// From the first request to the end of the last.
    pub elapsed_ns: u64,
    /// Whether it was ended early.
    pub stopped: bool,
    /// Requests that began more than a millisecond after they were due.
    pub late: u64,
    /// Reads.
    pub reads: Latencies,
    /// Writes.
    pub writes: Latencies,
    /// Discards.
    pub discards: Latencies,
}

/// Why requests do not fit a device, if they do not.
///
/// # Errors
/// Says which end is beyond which size.
pub fn check_fits(trace: &Trace, device: &dyn BlockDevice) -> Result<()> {
    let info = device.info();
    ensure!(
        trace.summary.span_bytes <= info.size_bytes,
        "the trace goes to byte {} and {} has {}",
        trace.summary.span_bytes,
        info.path.display(),
        info.size_bytes
    );
    ensure!(trace.summary.devices.len() == 1, "the trace is of several devices");
    Ok(())
}

/// Makes the requests of a trace on a device. What is written is noise: the device's data is lost.
///
/// # Errors
/// The first request that fails.
pub fn replay(
    trace: &Trace,
    device: &dyn BlockDevice,
    timed: bool,
    stop: &AtomicBool,
) -> Result<DeviceFigures> {
    let histogram = || Histogram::<u64>::new_with_max(NS_MAX, 3).context("a histogram");
    let mut by_op = [histogram()?, histogram()?, histogram()?];
    let longest = trace.requests.iter().map(|request| request.sectors).max().unwrap_or(0);
    let bytes = usize::try_from(u64::from(longest) * 512)?;
    let mut buffer = AlignedBuf::zeroed(bytes);
    rand::RngCore::fill_bytes(
        &mut <rand_pcg::Pcg64 as rand::SeedableRng>::seed_from_u64(1),
        &mut buffer,
    );
    let mut late = 0;
    let started = Instant::now();
    for request in &trace.requests {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut due = Instant::now();
        if timed {
            due = started + Duration::from_nanos(request.time_ns);
            wait_until(due);
            late += u64::from(due.elapsed() > Duration::from_millis(1));
        }
        let (offset, length) = (request.sector * 512, u64::from(request.sectors) * 512);
        let data = &mut buffer[..usize::try_from(length)?];
        let place = match request.op {
            Op::Read => {
                device.read_at(offset, data)?;
                0
            }
            Op::Write => {
                device.write_at(offset, data)?;
                1
            }
            Op::Discard => {
                device.discard(offset, length)?;
                2
            }
        };
        let ns = u64::try_from(due.elapsed().as_nanos()).unwrap_or(NS_MAX);
        by_op[place].saturating_record(ns);
    }
    let elapsed_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    device.flush()?;
    let [reads, writes, discards] = &by_op;
    Ok(DeviceFigures {
        device: device.info().path.display().to_string(),
        timed,
        elapsed_ns,
        stopped: stop.load(Ordering::Relaxed),
        late,
        reads: reads.into(),
        writes: writes.into(),
        discards: discards.into(),
    })
}

fn wait_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if left > SPIN {
        std::thread::sleep(left.saturating_sub(SPIN));
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}
