//! Speed and memory of a repair's search for lost btree nodes, beside reading the same bytes with the same
//! device and as many threads.
//!
//! The root of the btree is lost, so that the start of every bucket is looked at. Sizes: see `large_set`; 1
//! TiB in buckets of 256 KiB.

mod figures;
mod large_set;

use std::path::Path;
use std::time::Instant;

use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::file::{open_read, open_write};
use bcache_core::device::testkit::{TraceDevice, TraceOp};
use bcache_core::device::{AlignedBuf, BlockDevice, ReadDevice};
use bcache_core::ops::repair::plan;
use figures::peak_mb;
use large_set::same_bytes;

/// As many as the search has.
const THREADS: usize = 16;

/// Overwrites the root.
fn damage(path: &Path) {
    let device = open_write(path).unwrap();
    let sector = {
        let cache = CacheDevice::open(&device).unwrap();
        let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
        set.root.ptrs().first().map(|ptr| ptr.offset()).unwrap()
    };
    device.write_at(sector.bytes(), &AlignedBuf::zeroed(4096)).unwrap();
}

fn measure(path: &Path) {
    damage(path);
    let repair = |device: &dyn ReadDevice| {
        let start = Instant::now();
        let plan = plan(device, &[], &ReadOptions::default(), &mut |_| {}).unwrap();
        let anew = plan.anew.expect("a new btree");
        (start.elapsed(), anew.reasons.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    // Once without counting, so that the image is in the page cache for all that follows.
    repair(&open_read(path).unwrap());
    let (whole, reasons) = repair(&open_read(path).unwrap());
    println!("repair: {} in {whole:.2?}; peak {} MB", reasons.join(", "), peak_mb());
    let traced = TraceDevice::new(open_read(path).unwrap());
    repair(&traced);
    let events = traced.events();
    let count = events.iter().filter(|event| matches!(event.op, TraceOp::Read { .. })).count();
    let plain = same_bytes(&open_write(path).unwrap(), &events, THREADS);
    println!(
        "the same bytes in {count} reads: {plain:.2?}; planning the repair takes {:.2} times that",
        whole.as_secs_f64() / plain.as_secs_f64()
    );
}

fn main() {
    large_set::run("repair", 1 << 22, measure);
}
