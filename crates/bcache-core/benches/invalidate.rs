//! Speed and memory of an invalidation on a cache set of many buckets, beside reading and writing
//! the same bytes with the same device and as many threads.
//!
//! A third of the coldest buckets is invalidated. A trace of the device says what the same
//! bytes are: the reading for the plan, the writes, what is read back, and the reading of the proof.
//! Sizes: see `large_set`; 33.5 million buckets.

mod figures;
mod large_set;

use std::path::Path;
use std::time::{Duration, Instant};

use bcache_core::cache_set::{ReadOptions, WalkOptions};
use bcache_core::device::file::open_write;
use bcache_core::device::testkit::{TraceDevice, TraceOp};
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::ops::invalidate::{Amount, Options, Selection, TrustedSet, plan, run};
use figures::peak_mb;
use large_set::same_bytes;

/// The time until the plan, the time in all, and how many buckets went.
fn invalidate(device: &dyn BlockDevice) -> (Duration, Duration, u64) {
    let read = ReadOptions::default();
    let options = Options {
        selection: Selection::Coldest(Amount::Percent(33)),
        skip_refused: false,
        walk: read.walk,
    };
    let start = Instant::now();
    let set = TrustedSet::read(&device as &dyn ReadDevice, &read, &mut |_| {}).unwrap();
    let plan = plan(set, &options).unwrap();
    let planned = start.elapsed();
    let finished = run(plan, &read, || Ok(device), &mut |_| {});
    finished.result.unwrap();
    (planned, start.elapsed(), finished.chosen.target_count())
}

fn measure(path: &Path) {
    // Once without counting, so that the image is in the page cache for all that follows.
    invalidate(&open_write(path).unwrap());
    let (planned, whole, buckets) = invalidate(&open_write(path).unwrap());
    println!(
        "invalidate: {buckets} buckets in {whole:.2?}, {planned:.2?} of it until the plan; peak {} \
         MB",
        peak_mb()
    );
    let traced = TraceDevice::new(open_write(path).unwrap());
    invalidate(&traced);
    let events = traced.events();
    drop(traced);
    let sum = |write: bool| -> u64 {
        events
            .iter()
            .map(|event| match event.op {
                TraceOp::Read { len, .. } if !write => len,
                TraceOp::Write { len, .. } if write => len,
                _ => 0,
            })
            .sum()
    };
    let plain = same_bytes(&open_write(path).unwrap(), &events, WalkOptions::default().threads);
    println!(
        "the same bytes: {} MB read and {} MB written in {plain:.2?}; invalidating takes {:.2} \
         times that",
        sum(false) >> 20,
        sum(true) >> 20,
        whole.as_secs_f64() / plain.as_secs_f64()
    );
}

fn main() {
    large_set::run("invalidate", 1 << 25, measure);
}
