//! Figures of real traces: what is in them, exact LRU and FIFO, and what the kernel did with them.
//!
//! One trace is in the repository. Others are used by third parties and cannot be; those tests run
//! where the environment variable `BCACHE_TEST_TRACES` names a folder that has them.

use std::path::PathBuf;

use bcache_bench::replay::ideal::{LruCurve, Unit, fifo};
use bcache_bench::trace::{LoadOptions, SkipReason, Source, Trace, load, open};
use bcache_core::allocator::Policy;
use bcache_core::model::{CacheModel, Config, Mode, Stats};
use bcache_core::units::Sectors;

const MIB: u64 = 2048;

fn read(path: PathBuf, options: &LoadOptions) -> Trace {
    load(open(&Source { paths: vec![path], ..Source::default() }).unwrap(), options).unwrap()
}

fn ours() -> Trace {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/traces");
    read(PathBuf::from(fixtures).join("dev-server.iolog.zst"), &LoadOptions::default())
}

/// A trace that is not in the repository, if it is here. Times are those of as fast as possible.
fn other(name: &str) -> Option<Trace> {
    let Some(folder) = std::env::var_os("BCACHE_TEST_TRACES") else {
        println!("skipped: BCACHE_TEST_TRACES names no folder with {name}");
        return None;
    };
    let options = LoadOptions { ignore_times: true, ..LoadOptions::default() };
    Some(read(PathBuf::from(folder).join(name), &options))
}

fn counts(trace: &Trace) -> [u64; 8] {
    let it = &trace.summary;
    [
        trace.requests.len() as u64,
        it.reads.requests,
        it.reads.bytes,
        it.writes.requests,
        it.writes.bytes,
        it.discards.requests,
        it.footprint_bytes,
        it.processes,
    ]
}

#[test]
fn dev_server_is_counted() {
    let trace = ours();
    assert_eq!(
        counts(&trace),
        [56_590, 46_313, 3_678_126_080, 8_863, 4_221_800_448, 1_414, 4_146_569_216, 0]
    );
    assert_eq!(trace.summary.duration_ns / 1_000_000_000, 38);
    assert_eq!(trace.summary.devices.len(), 1);
    assert_eq!(trace.skipped.of(SkipReason::NotUnderstood), 0);
}

#[test]
fn other_traces_are_counted() {
    if let Some(trace) = other("cloudphysics.vscsi.zst") {
        let wanted = [113_872, 46_974, 1_797_412_352, 66_898, 2_408_565_760, 0, 1_102_684_160, 0];
        assert_eq!(counts(&trace), wanted);
    }
    if let Some(trace) = other("arc-p12.lis.zst") {
        let wanted = [547_147, 547_147, 6_762_972_160, 0, 0, 0, 1_644_937_216, 0];
        assert_eq!(counts(&trace), wanted);
        // Pages of 512 bytes.
        assert_eq!(
            LruCurve::of(&trace.requests, Unit::Blocks(1)).misses(u64::MAX).misses,
            3_153_310
        );
    }
    if let Some(trace) = other("hadoop-node.blktrace.zst") {
        let wanted = [127_657, 125_806, 37_235_823_104, 1_851, 32_444_416, 0, 37_265_186_816, 495];
        assert_eq!(counts(&trace), wanted);
        assert_eq!(trace.skipped.of(SkipReason::Notice), 6_606);
    }
}

/// To six digits.
fn assert_ratio(misses: f64, wanted: f64, what: &str) {
    assert!((misses - wanted).abs() < 0.000_000_6, "{what}: {misses:.6}, not {wanted:.6}");
}

#[test]
fn exact_lru_and_fifo_of_other_traces() {
    if let Some(trace) = other("cloudphysics.vscsi.zst") {
        let objects = LruCurve::of(&trace.requests, Unit::Objects);
        for (size, lru_misses, fifo_misses) in
            [(10_000, 0.697_608, 0.695_606), (40_000, 0.430_255, 0.431_555)]
        {
            assert_ratio(objects.misses(size).ratio(), lru_misses, "LRU of objects");
            assert_ratio(
                fifo(&trace.requests, Unit::Objects, size).ratio(),
                fifo_misses,
                "FIFO of objects",
            );
        }
        let blocks = LruCurve::of(&trace.requests, Unit::Blocks(8));
        for (mib, lru_misses, fifo_misses) in
            [(256, 0.750_832, 0.717_856), (512, 0.531_731, 0.458_631), (1280, 0.235_763, 0.235_763)]
        {
            assert_ratio(blocks.misses(mib * 256).ratio(), lru_misses, "LRU of blocks");
            let fifo = fifo(&trace.requests, Unit::Blocks(8), mib * 256);
            assert_ratio(fifo.ratio(), fifo_misses, "FIFO of blocks");
        }
    }
    if let Some(trace) = other("arc-p12.lis.zst") {
        let blocks = LruCurve::of(&trace.requests, Unit::Blocks(8));
        for (mib, lru_misses, fifo_misses) in
            [(384, 0.290_495, 0.316_649), (768, 0.233_668, 0.244_222)]
        {
            assert_ratio(blocks.misses(mib * 256).ratio(), lru_misses, "LRU of blocks");
            let fifo = fifo(&trace.requests, Unit::Blocks(8), mib * 256);
            assert_ratio(fifo.ratio(), fifo_misses, "FIFO of blocks");
        }
    }
}

fn run(trace: &Trace, config: Config) -> Stats {
    let mut cache = CacheModel::new(config).unwrap();
    for request in &trace.requests {
        cache.request(request).unwrap();
    }
    cache.stats()
}

/// Hits, misses, bypass hits and bypass misses of a stock 6.12 kernel, and how far a hit ratio may be.
#[test]
fn what_kernel_6_12_did_with_cloudphysics() {
    let Some(trace) = other("cloudphysics.vscsi.zst") else { return };
    for (policy, cutoff, kernel, points) in [
        (Policy::Fifo, 4 << 20, [6_355u64, 25_244, 2_846, 12_529], 0.2),
        (Policy::Lru, 0, [30_029, 16_945, 0, 0], 1.5),
    ] {
        let config = Config {
            policy,
            sequential_cutoff_bytes: cutoff,
            ..Config::new(Sectors(512 * MIB), Sectors(1024))
        };
        let it = run(&trace, config);
        let ours = [it.cache_hits, it.cache_misses, it.cache_bypass_hits, it.cache_bypass_misses];
        println!(
            "{policy:?}: {ours:?}, kernel {kernel:?}; SSD {} MiB",
            it.ssd_write_sectors() / MIB
        );
        let bypassed = |of: &[u64; 4]| of[2] + of[3];
        assert!(bypassed(&ours).abs_diff(bypassed(&kernel)) <= 1, "{ours:?} {kernel:?}");
        let ratio = |of: &[u64; 4]| bcache_bench::num::ratio(of[0], of[0] + of[1]).unwrap() * 100.0;
        assert!((ratio(&ours) - ratio(&kernel)).abs() <= points, "{ours:?} {kernel:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_figures() {
    let trace = ours();
    let config = |seed, mode| Config {
        policy: Policy::Random,
        seed,
        mode,
        ..Config::new(Sectors(512 * MIB), Sectors(256))
    };
    for mode in [Mode::Writethrough, Mode::Writeback] {
        let one = run(&trace, config(1, mode));
        assert_eq!(one, run(&trace, config(1, mode)));
        assert_ne!(one.cache_hits, run(&trace, config(2, mode)).cache_hits);
        assert_eq!(one.reads.requests, 46_313);
        assert_eq!(
            one.reads.requests,
            one.cache_hits + one.cache_misses + one.cache_bypass_hits + one.cache_bypass_misses
        );
        assert_eq!(one.writes.requests + one.discards.requests, 8_863 + 1_414);
        assert!(mode != Mode::Writeback || one.dirty_sectors_max > 0);
    }
}
