//! Speed and memory of reading whole cache sets.
//!
//! `keys`: a check of a generated device with many keys, beside reading the same metadata bytes with
//! the same device handle and as many threads. `buckets`: reading a set of many buckets, prios and
//! all. Each runs in a process of its own, so that its peak of memory is its own.
//!
//! Sizes: `BENCH_KEYS` (20 million), `BENCH_BUCKETS` (33.5 million), `BENCH_DIR` for the images.
//! `BENCH_KEEP=1` leaves the images there, for a `bcachectl show --prios` or another run: an image
//! that is there already is taken as it is.

mod figures;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bcache_core::cache_set::testkit::{SetBuilder, backing_volume};
use bcache_core::cache_set::{
    CacheDevice, CacheSet, LoadedNode, NoVisitor, NodePlace, ReadOptions, Visitor, WalkOptions,
};
use bcache_core::device::file::{FileReader, create_image, open_read};
use bcache_core::device::{AlignedBuf, ReadDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::ops::check::{CheckOptions, check};
use bcache_core::units::Sectors;
use figures::{folder, peak_mb, setting};
use nix::sys::resource::{UsageWho, getrusage};

/// Runs of each measurement, in turn; the best counts.
const RUNS: usize = 5;

/// The best of several runs: time, and processor time of all threads, on which others that share the
/// processors have less of an influence.
#[derive(Clone, Copy)]
struct Best {
    time: Duration,
    processor: Duration,
}

impl Best {
    const NONE: Self = Self { time: Duration::MAX, processor: Duration::MAX };

    fn run(&mut self, run: impl FnOnce()) {
        let (start, processor) = (Instant::now(), processor_time());
        run();
        self.time = self.time.min(start.elapsed());
        self.processor = self.processor.min(processor_time().checked_sub(processor).unwrap());
    }
}

impl std::fmt::Display for Best {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2?} (processors {:.2?})", self.time, self.processor)
    }
}

fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| {
            Duration::from_micros(
                u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or_default(),
            )
        })
        .sum()
}

/// The byte ranges that a reading takes: nodes, prio sets, journal.
#[derive(Default)]
struct Ranges(Vec<(u64, usize)>);

impl Visitor for Ranges {
    fn wants_keys(&self) -> bool {
        false
    }

    fn node(&mut self, place: NodePlace, node: &LoadedNode) {
        self.0.push((place.sector.bytes(), usize::try_from(node.key.size().bytes()).unwrap()));
    }
}

fn read_all(device: &FileReader, ranges: &[(u64, usize)], threads: usize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buf = AlignedBuf::zeroed(4 << 20);
                while let Some(&(offset, len)) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
                    device.read_at(offset, &mut buf[..len]).unwrap();
                }
            });
        }
    });
}

fn keys(path: &Path) {
    let count = setting("BENCH_KEYS", 20_000_000);
    let per_bucket = 16;
    let builder = SetBuilder {
        nbuckets: count / per_bucket + 16_384,
        bucket_size: Sectors(1024),
        njournal: 256,
        sets_per_node: 3,
        volumes: (1..=4).map(backing_volume).collect(),
        ..SetBuilder::default()
    };
    let geometry = builder.geometry().unwrap();
    let first = builder.data_buckets(0).start;
    // Neighbours on the volume are strangers on the cache, so that marking jumps about.
    let buckets = count / per_bucket;
    let key = |n: u64| {
        let bucket = first + n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % buckets;
        let sector = bucket * 1024 + n % per_bucket * 64;
        let bucket_gen = (builder.bucket_disk)(bucket).bucket_gen;
        let inode = u32::try_from(n * 4 / count).unwrap();
        Bkey::new(inode, (n + 1) * 64, 56)
            .with_ptrs(&[Ptr::new(bucket_gen, Sectors(sector), 0)])
            .with_dirty(n % 8 == 0)
    };
    if !path.exists() {
        let device = create_image(path, geometry.size().bytes() + (1 << 20)).unwrap();
        builder.write(&device, (0..count).map(key)).unwrap();
    }
    let device = open_read(path).unwrap();

    let mut ranges = Ranges::default();
    let set =
        CacheSet::read(CacheDevice::open(&device).unwrap(), &ReadOptions::default(), &mut ranges)
            .unwrap();
    let bytes: u64 = ranges.0.iter().map(|range| range.1 as u64).sum();
    println!(
        "keys: {} extents in {} nodes, depth {}, {} MB of nodes, {} buckets",
        set.btree.extents,
        set.btree.nodes,
        set.btree.depth,
        bytes >> 20,
        geometry.nbuckets()
    );
    let bucket_bytes = usize::try_from(geometry.bucket_bytes()).unwrap();
    ranges.0.extend(
        set.prios.buckets.iter().map(|b| (geometry.bucket_to_sector(*b).bytes(), bucket_bytes)),
    );
    ranges.0.extend(
        set.cache
            .journal_buckets()
            .iter()
            .map(|b| (geometry.bucket_to_sector(*b).bytes(), bucket_bytes)),
    );
    drop(set);
    let threads = WalkOptions::default().threads;
    let (mut plain, mut read, mut checked) = (Best::NONE, Best::NONE, Best::NONE);
    for _ in 0..RUNS {
        plain.run(|| read_all(&device, &ranges.0, threads));
        read.run(|| {
            let cache = CacheDevice::open(&device).unwrap();
            CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
        });
        checked.run(|| {
            let report = check(&device, &CheckOptions::default(), &mut |_| {}).unwrap();
            assert!(report.is_clean());
        });
    }
    println!("keys: plain read {plain}, read {read}, check {checked}");
    println!(
        "keys: {:.1} M keys/s, {:.2} times the plain read, peak {} MB",
        f64::from(u32::try_from(count).unwrap()) / checked.time.as_secs_f64() / 1e6,
        checked.time.as_secs_f64() / plain.time.as_secs_f64(),
        peak_mb()
    );
}

fn buckets(path: &Path) {
    let builder = SetBuilder {
        nbuckets: setting("BENCH_BUCKETS", 33_554_432),
        // 8 TiB: files of 16 TiB and more are too large for many filesystems.
        bucket_size: Sectors(512),
        njournal: 256,
        ..SetBuilder::default()
    };
    let geometry = builder.geometry().unwrap();
    let first = builder.data_buckets(0).start;
    let key = |n: u64| {
        let ptr =
            Ptr::new((builder.bucket_disk)(first + n).bucket_gen, Sectors((first + n) * 512), 0);
        Bkey::new(0, (n + 1) * 512, 512).with_ptrs(&[ptr])
    };
    if !path.exists() {
        let device = create_image(path, geometry.size().bytes()).unwrap();
        builder.write(&device, (0..100_000).map(key)).unwrap();
    }
    let device = open_read(path).unwrap();
    let mut best = Best::NONE;
    for _ in 0..RUNS {
        best.run(|| {
            let cache = CacheDevice::open(&device).unwrap();
            let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap();
            assert_eq!(set.priority_stats().buckets.clean, 100_000);
        });
    }
    println!("buckets: {} read and counted in {best}, peak {} MB", geometry.nbuckets(), peak_mb());
}

fn main() {
    let run = |name: &str, part: fn(&Path)| {
        let path = folder().join(format!("bcache-bench-{name}.img"));
        part(&path);
        if setting("BENCH_KEEP", 0) == 0 {
            std::fs::remove_file(path).unwrap();
        }
    };
    match std::env::args().find(|arg| arg == "keys" || arg == "buckets").as_deref() {
        Some("keys") => run("keys", keys),
        Some(_) => run("buckets", buckets),
        None => {
            for part in ["keys", "buckets"] {
                let program = std::env::current_exe().unwrap();
                assert!(std::process::Command::new(program).arg(part).status().unwrap().success());
            }
        }
    }
}
