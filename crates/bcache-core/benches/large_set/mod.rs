//! A set with many keys and more buckets, in a sparse image.
//!
//! Making it and measuring run in a process of their own each, so that the peak of memory is that of what
//! is measured.
//!
//! Sizes: `BENCH_BUCKETS`, `BENCH_KEYS`, `BENCH_DIR` for the image, which `BENCH_KEEP=1` leaves there for a
//! run of `measure` alone.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bcache_core::cache_set::testkit::SetBuilder;
use bcache_core::device::file::create_image;
use bcache_core::device::testkit::{TraceEvent, TraceOp};
use bcache_core::device::{AlignedBuf, BlockDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::units::Sectors;

use crate::figures::{folder, setting};

/// Sectors of a bucket: with 33.5 million of them, a device of 8 TiB. Files of 16 TiB and more are
/// too large for many file systems.
const BUCKET: u64 = 512;

/// Makes a set of `BENCH_KEYS` extents (8 million), on `BENCH_BUCKETS` buckets or else `nbuckets`.
pub(crate) fn make(path: &Path, nbuckets: u64) {
    let keys = setting("BENCH_KEYS", 8 << 20);
    let builder = SetBuilder {
        nbuckets: setting("BENCH_BUCKETS", nbuckets),
        bucket_size: Sectors(BUCKET),
        njournal: 256,
        ..SetBuilder::default()
    };
    let geometry = builder.geometry().unwrap();
    let device = create_image(path, geometry.size().bytes()).unwrap();
    let first = builder.data_buckets(0).start;
    // Neighbours on the volume are strangers on the cache, so that marking jumps about.
    let buckets = keys / 2;
    let key = |n: u64| {
        let bucket = first + n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % buckets;
        let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
        let ptr = Ptr::new(ptr_gen, Sectors(bucket * BUCKET + n % 2 * 128), 0);
        Bkey::new(0, (n + 1) * 200, 128).with_ptrs(&[ptr])
    };
    builder.write(&device, (0..keys).map(key)).unwrap();
}

/// Reads what a trace says was read, with so many threads, and writes what it says was written, flushes
/// and all.
pub(crate) fn same_bytes(
    device: &dyn BlockDevice,
    events: &[TraceEvent],
    threads: usize,
) -> Duration {
    let reads: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|event| match event.op {
            TraceOp::Read { offset, len } => Some((offset, len)),
            _ => None,
        })
        .collect();
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buf = AlignedBuf::zeroed(8 << 20);
                while let Some(&(offset, len)) = reads.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let len = usize::try_from(len).unwrap();
                    device.read_at(offset, &mut buf[..len]).unwrap();
                }
            });
        }
    });
    let mut buf = AlignedBuf::zeroed(8 << 20);
    for event in events {
        match event.op {
            TraceOp::Write { offset, len, .. } => {
                let data = &mut buf[..usize::try_from(len).unwrap()];
                device.read_at(offset, data).unwrap();
                device.write_at(offset, data).unwrap();
            }
            TraceOp::Flush => device.flush().unwrap(),
            TraceOp::Read { .. } | TraceOp::Discard { .. } => {}
        }
    }
    start.elapsed()
}

/// Makes an image and measures, each in a process of its own.
pub(crate) fn run(name: &str, nbuckets: u64, measure: fn(&Path)) {
    let path = folder().join(format!("bcache-bench-{name}.img"));
    match std::env::args().find(|arg| arg == "make" || arg == "measure").as_deref() {
        Some("make") => make(&path, nbuckets),
        Some(_) => measure(&path),
        None => {
            for part in ["make", "measure"] {
                let program = std::env::current_exe().unwrap();
                assert!(Command::new(program).arg(part).status().unwrap().success());
            }
            if setting("BENCH_KEEP", 0) == 0 {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}
