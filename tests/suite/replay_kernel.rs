//! What the model of a cache says of a trace, against what stock kernels count when the same requests
//! are made with direct I/O: bypass decisions, hits and misses.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_bench::trace::{LoadOptions, Op, Request, Source, load, open};
use bcache_core::allocator::Policy;
use bcache_core::model::{CacheModel, Config, Mode, Stats};
use bcache_core::units::Sectors;
use bcache_tests::tool::make;
use bcache_tests::{Guest, Kernel, Need, Scratch, binary, main_with, trial, workspace_root};

/// A cache to compare, with kernels, and how far hits may be apart, in points of all reads.
struct Cell {
    name: &'static str,
    policy: Policy,
    mode: Mode,
    cache_mib: u64,
    bucket_kib: u64,
    cutoff_kib: u64,
    kernels: &'static [(Kernel, f64)],
}

/// LRU is not quite LRU while a kernel's GC runs: from 6.10 on buckets then go by position, before that
/// nothing is allocated.
const CELLS: [Cell; 5] = [
    Cell {
        name: "fifo_512k",
        policy: Policy::Fifo,
        mode: Mode::Writethrough,
        cache_mib: 320,
        bucket_kib: 512,
        cutoff_kib: 96,
        kernels: &[(Kernel::V6_12, 0.5), (Kernel::V6_1, 2.0)],
    },
    Cell {
        name: "lru_128k",
        policy: Policy::Lru,
        mode: Mode::Writethrough,
        cache_mib: 512,
        bucket_kib: 128,
        cutoff_kib: 0,
        kernels: &[(Kernel::V6_12, 2.0), (Kernel::V6_1, 3.0)],
    },
    Cell {
        name: "fifo_64k_writearound",
        policy: Policy::Fifo,
        mode: Mode::Writearound,
        cache_mib: 128,
        bucket_kib: 64,
        cutoff_kib: 64,
        kernels: &[(Kernel::V6_12, 0.5), (Kernel::Newest, 0.5)],
    },
    Cell {
        name: "lru_256k",
        policy: Policy::Lru,
        mode: Mode::Writethrough,
        cache_mib: 512,
        bucket_kib: 256,
        cutoff_kib: 64,
        kernels: &[(Kernel::V6_12, 2.0)],
    },
    Cell {
        name: "lru_256k_writeback",
        policy: Policy::Lru,
        mode: Mode::Writeback,
        cache_mib: 384,
        bucket_kib: 256,
        cutoff_kib: 0,
        kernels: &[(Kernel::V6_12, 2.0)],
    },
];

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for cell in &CELLS {
        for (kernel, points) in cell.kernels {
            trials.push(trial(
                format!("replay_{}_{kernel}", cell.name),
                &[Need::Guest],
                move || compare(*kernel, cell, *points),
            ));
        }
    }
    for kernel in Kernel::ALL {
        trials.push(trial(format!("record_{kernel}"), &[Need::Guest], move || record(kernel)));
    }
    main_with(trials)
}

/// Requests that are replayed: enough to fill the caches several times over.
const REQUESTS: usize = 16_000;
/// Longer ones are cut: where a request takes more buckets than stand ready, the kernel keeps what its
/// thread happens to have made ready.
const SECTORS_MAX: u32 = 128;
/// The device is made smaller by leaving out what the trace leaves out: addresses in regions of
/// 16 MiB are numbered in the order of their first use.
const REGION_SECTORS: u64 = 1 << 15;

/// The beginning of the trace in the repository, made shorter.
fn requests() -> anyhow::Result<Vec<Request>> {
    let path = workspace_root().join("tests/fixtures/traces/dev-server.iolog.zst");
    let options = LoadOptions { ignore_times: true, ..LoadOptions::default() };
    let trace = load(open(&Source { paths: vec![path], ..Source::default() })?, &options)?;
    let mut regions = std::collections::HashMap::new();
    let mut requests = Vec::new();
    for request in trace.requests.iter().filter(|it| it.op != Op::Discard) {
        if requests.len() == REQUESTS {
            break;
        }
        let in_region = request.sector % REGION_SECTORS;
        let count = regions.len() as u64;
        let region = *regions.entry(request.sector / REGION_SECTORS).or_insert(count);
        let left = u32::try_from(REGION_SECTORS - in_region)?;
        let sectors = request.sectors.min(SECTORS_MAX).min(left);
        let sector = region * REGION_SECTORS + in_region;
        let time_ns = requests.len() as u64 * 100_000;
        requests.push(Request { time_ns, sector, sectors, ..*request });
    }
    Ok(requests)
}

fn iolog(requests: &[Request]) -> String {
    let mut text = "fio version 3 iolog\n".to_owned();
    for request in requests {
        let action = if request.op == Op::Read { "read" } else { "write" };
        let (us, offset, bytes) =
            (request.time_ns / 1000, request.sector * 512, u64::from(request.sectors) * 512);
        let _ = writeln!(text, "{us} disk {action} {offset} {bytes}");
    }
    text
}

fn model(requests: &[Request], cell: &Cell) -> anyhow::Result<Stats> {
    let mut cache = CacheModel::new(Config {
        policy: cell.policy,
        mode: cell.mode,
        sequential_cutoff_bytes: cell.cutoff_kib << 10,
        ..Config::new(Sectors(cell.cache_mib << 11), Sectors(cell.bucket_kib << 1))
    })?;
    for request in requests {
        cache.request(request)?;
    }
    Ok(cache.stats())
}

/// Nothing is written back meanwhile: how fast a guest is would decide how much.
/// The counters go to the totals every 13.6 s.
const SCRIPT: &str = "
    register /dev/vda
    register /dev/vdb
    wait_for 30 test -b /dev/bcache0
    set_dir=/sys/fs/bcache/$(sets)
    echo 0 >$set_dir/congested_read_threshold_us
    echo 0 >$set_dir/congested_write_threshold_us
    echo POLICY >$set_dir/cache0/cache_replacement_policy
    echo CUTOFF >/sys/block/vdb/bcache/sequential_cutoff
    echo MODE >/sys/block/vdb/bcache/cache_mode
    echo 0 >/sys/block/vdb/bcache/writeback_running
    /bin/bcache-bench replay /trace --ignore-times --device /dev/bcache0 --yes --json \
        --cache-size 64M --bucket 64k --policy fifo --cutoff 0 --jobs 1 >/dev/null 2>/said || {
        cat /said
        exit 1
    }
    sleep 15
    for name in cache_hits cache_misses cache_bypass_hits cache_bypass_misses; do
        figure $name /sys/block/vdb/bcache/stats_total/$name
    done
    stop_all
";

fn compare(kernel: Kernel, cell: &Cell, points: f64) -> anyhow::Result<()> {
    let requests = requests()?;
    let stats = model(&requests, cell)?;
    let scratch = Scratch::new()?;
    let end = requests.iter().map(Request::end).max().context("requests")?;
    let cache = scratch.sparse("cache", cell.cache_mib << 20)?;
    let backing = scratch.sparse("backing", (end * 512).next_multiple_of(1 << 20) + (1 << 20))?;
    let path = |path: &std::path::Path| path.display().to_string();
    make([
        "--bucket",
        &format!("{}k", cell.bucket_kib),
        "--block",
        "512",
        "-C",
        &path(&cache),
        "-B",
        &path(&backing),
    ])?;
    let policy = if cell.policy == Policy::Fifo { "fifo" } else { "lru" };
    let script = SCRIPT
        .replace("POLICY", policy)
        .replace("CUTOFF", &(cell.cutoff_kib << 10).to_string())
        .replace("MODE", cell.mode.name());
    let run = Guest::new(kernel)
        .file("/trace", iolog(&requests))
        .binary(binary("bcache-bench")?)
        .disk(&cache)
        .disk(&backing)
        .memory_mib(1024)
        .script(script)
        .timeout(Duration::from_secs(400))
        .run()?
        .ok()?
        .without_errors()?;
    let figure = |name: &str| run.log.number(name).with_context(|| run.tail());
    let kernels = [
        figure("cache_hits")?,
        figure("cache_misses")?,
        figure("cache_bypass_hits")?,
        figure("cache_bypass_misses")?,
    ];
    let it = &stats;
    let ours = [it.cache_hits, it.cache_misses, it.cache_bypass_hits, it.cache_bypass_misses];
    println!("{} on {kernel}: kernel {kernels:?}, model {ours:?}", cell.name);
    let all: u64 = ours.iter().sum();
    // The kernel itself reads a few sectors when the device appears, to look for partitions.
    let probing = kernels.iter().sum::<u64>().checked_sub(all).context("fewer reads than made")?;
    ensure!(probing <= 30, "{probing} reads that nobody made");
    let bypassed = |of: &[u64; 4]| of[2] + of[3];
    ensure!(bypassed(&ours).abs_diff(bypassed(&kernels)) <= 1, "{ours:?} {kernels:?}");
    // More reads of the kernel's own can be hits, but no more than there were.
    let hits = |of: &[u64; 4]| of[0] + of[2];
    let apart = hits(&ours).abs_diff(hits(&kernels)).saturating_sub(probing);
    let allowed = points / 100.0 * bcache_bench::num::float(all);
    ensure!(bcache_bench::num::float(apart) <= allowed, "{ours:?} {kernels:?}");
    ensure!(hits(&ours) > all / 50, "nothing was hit: this cell compares nothing");
    Ok(())
}

/// What is recorded: reads of 4 KiB and 64 KiB, writes that somebody waits for.
const RECORD_SCRIPT: &str = "
    bench=/bin/bcache-bench
    if $bench record /dev/vda --for 1s -o /refused 2>/said; then
        echo 'recorded without debugfs'
        exit 1
    fi
    figure refused /said
    test ! -e /refused
    mount -t debugfs none /sys/kernel/debug
    $bench record /dev/vda --for 100s -o /trace >/recorded 2>&1 &
    wait_for 30 test -e /sys/kernel/debug/block/vda/trace0
    sleep 1
    if $bench record /dev/vda --for 1s -o /refused 2>/said; then
        echo 'recorded twice'
        exit 1
    fi
    figure busy /said
    dd if=/dev/vda of=/dev/null bs=4k skip=100 count=50 iflag=direct 2>/dev/null
    dd if=/dev/vda of=/dev/null bs=64k skip=90 count=10 iflag=direct 2>/dev/null
    dd if=/dev/zero of=/dev/vda bs=8k seek=700 count=20 oflag=direct 2>/dev/null
    kill -TERM $!
    wait $!
    $bench replay /trace --cache-size 64M --bucket 64k --json >/report
    capture report cat /report
    # The trace is taken down again, so that another can begin.
    test ! -e /sys/kernel/debug/block/vda/trace0
";

fn record(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let disk = scratch.sparse("disk", 64 << 20)?;
    let run = Guest::new(kernel)
        .binary(binary("bcache-bench")?)
        .disk(&disk)
        .memory_mib(512)
        .script(RECORD_SCRIPT)
        .timeout(Duration::from_secs(200))
        .run()?
        .ok()?;
    let said = |name: &str| run.log.figure(name).unwrap_or_default();
    ensure!(said("refused").contains("debugfs"), "{}", said("refused"));
    ensure!(said("busy").contains("traced already"), "{}", said("busy"));
    let report = run.log.capture("report").context("the report")?;
    let report: serde_json::Value = serde_json::from_str(&report.output)?;
    let count = |path: &str| report.pointer(path).and_then(serde_json::Value::as_u64);
    ensure!(report["trace_format"] == "blktrace", "{}", report["trace_format"]);
    ensure!(count("/trace/reads/requests") == Some(60), "{:?}", report.get("trace"));
    ensure!(
        count("/trace/reads/bytes") == Some(50 * 4096 + 10 * 65536),
        "{:?}",
        report.get("trace")
    );
    ensure!(count("/trace/writes/requests") == Some(20), "{:?}", report.get("trace"));
    ensure!(count("/trace/writes/bytes") == Some(20 * 8192), "{:?}", report.get("trace"));
    let processes = count("/trace/processes");
    ensure!(processes == Some(3), "{processes:?}");
    Ok(())
}
