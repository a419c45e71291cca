//! What the model of a cache says of a trace, against what stock kernels count when the same requests
//! are made with direct I/O: bypass decisions, hits and misses. And the way of a user, from a load to the
//! cache that replay advises.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

#[path = "replay_kernel/advised.rs"]
mod advised;

use anyhow::{Context as _, ensure};
use bcache_bench::trace::{LoadOptions, Op, Request, Source, load, open};
use bcache_core::allocator::Policy;
use bcache_core::model::{CacheModel, Config, Mode, Stats};
use bcache_core::units::Sectors;
use bcache_tests::tool::make;
use bcache_tests::{
    Guest, GuestRun, Kernel, Need, Scratch, binary, main_with, trial, workspace_root,
};

/// A cache to compare, with kernels, and how far hits may be apart, in points of all reads.
struct Cell {
    name: &'static str,
    policy: Policy,
    mode: Mode,
    cache_mib: u64,
    bucket_kib: u64,
    cutoff_kib: u64,
    load: Load,
    kernels: &'static [(Kernel, f64)],
}

/// What is made on the bcache device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// The requests of the trace, by one task as fast as it goes.
    Trace,
    /// Reads and writes by several tasks at a time.
    Tasks,
}

/// LRU is not quite LRU while a kernel's GC runs: from 6.10 on buckets then go by position, before that
/// nothing is allocated. RANDOM is compared with the mean of five seeds, of which one alone is up to 4 points away.
const CELLS: [Cell; 7] = [
    Cell {
        name: "fifo_512k",
        policy: Policy::Fifo,
        cutoff_kib: 96,
        kernels: &[(Kernel::V6_12, 0.2), (Kernel::V6_1, 0.2)],
        ..Cell::new(320, 512)
    },
    // At 768 MiB the cache thrashes, and the kernel differs from itself by 1.6 points from run to run.
    Cell { name: "lru_all", kernels: &[(Kernel::V6_12, 1.5)], ..Cell::new(1280, 256) },
    Cell {
        name: "fifo_64k_writearound",
        policy: Policy::Fifo,
        mode: Mode::Writearound,
        cutoff_kib: 64,
        kernels: &[(Kernel::V6_12, 0.2), (Kernel::Newest, 0.2)],
        ..Cell::new(128, 64)
    },
    Cell {
        name: "lru_256k",
        cutoff_kib: 64,
        kernels: &[(Kernel::V6_12, 1.5), (Kernel::V6_1, 1.5)],
        ..Cell::new(512, 256)
    },
    Cell {
        name: "lru_256k_writeback",
        mode: Mode::Writeback,
        kernels: &[(Kernel::V6_12, 1.5)],
        ..Cell::new(384, 256)
    },
    Cell {
        name: "random_512k",
        policy: Policy::Random,
        kernels: &[(Kernel::V6_12, 4.0)],
        ..Cell::new(1024, 512)
    },
    // So large that its reserves hold all the buckets of the run. How late the allocator thread is
    // would else decide the hits, and on a busy host that changes from run to run.
    Cell {
        name: "tasks",
        load: Load::Tasks,
        cutoff_kib: 2048,
        kernels: &[(Kernel::V6_12, 0.2)],
        ..Cell::new(40 << 10, 512)
    },
];

impl Cell {
    /// LRU and writethrough without a cutoff.
    const fn new(cache_mib: u64, bucket_kib: u64) -> Self {
        Self {
            name: "",
            policy: Policy::Lru,
            mode: Mode::Writethrough,
            cache_mib,
            bucket_kib,
            cutoff_kib: 0,
            load: Load::Trace,
            kernels: &[],
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|it| it == advised::LOAD) {
        let folder = arguments.next().unwrap_or_default();
        return match advised::load(folder.as_ref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("the load failed: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let needs = &[Need::Guest, Need::Program("mkfs.ext4", "e2fsprogs")];
    let mut trials = vec![trial("advice_6.12", needs, || advised::follow(Kernel::V6_12))];
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
        let sectors = request.sectors.min(left);
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

/// What the kernel reads when the device appears, to look for partitions.
const PROBES: u64 = 3;

/// Hits, misses, and both of what bypassed.
type Counters = [u64; 4];

/// What the model counts; for RANDOM the mean of several seeds.
fn model(requests: &[Request], cell: &Cell) -> anyhow::Result<Counters> {
    let seeds = if cell.policy == Policy::Random { 5 } else { 1 };
    let mut sums = [0; 4];
    for seed in 0..seeds {
        let it = model_of(requests, cell, seed)?;
        let all = [it.cache_hits, it.cache_misses, it.cache_bypass_hits, it.cache_bypass_misses];
        sums.iter_mut().zip(all).for_each(|(sum, count)| *sum += count);
    }
    Ok(sums.map(|sum| sum / seeds))
}

fn model_of(requests: &[Request], cell: &Cell, seed: u64) -> anyhow::Result<Stats> {
    let mut cache = CacheModel::new(Config {
        policy: cell.policy,
        mode: cell.mode,
        sequential_cutoff_bytes: cell.cutoff_kib << 10,
        writeback_running: false,
        seed,
        ..Config::new(Sectors(cell.cache_mib << 11), Sectors(cell.bucket_kib << 1))
    })?;
    // In other places than the trace's, so that they are hit no more than the kernel's.
    let beyond = requests.iter().map(Request::end).max().unwrap_or(0);
    for probe in 0..PROBES {
        let sector = beyond + probe * 1024;
        cache.request(&Request { sector, sectors: 8, process: Some(0), ..Request::default() })?;
    }
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
    echo CUTOFF >/sys/block/vdb/bcache/sequential_cutoff
    echo MODE >/sys/block/vdb/bcache/cache_mode
    echo 0 >/sys/block/vdb/bcache/writeback_running
    mount -t debugfs none /sys/kernel/debug
    /bin/bcache-bench record /dev/bcache0 --for 600s -o /recorded >/said-by-record 2>&1 &
    recording=$!
    wait_for 30 test -e /sys/kernel/debug/block/bcache0/trace0
    sleep 1
    LOAD
    kill -TERM $recording
    wait $recording
    wc -c </recorded >/size
    figure size /size
    dd if=/recorded of=/dev/vdc bs=1M conv=sync 2>/dev/null
    sleep 15
    for name in cache_hits cache_misses cache_bypass_hits cache_bypass_misses; do
        figure $name /sys/block/vdb/bcache/stats_total/$name
    done
    stop_all
";

const LOAD_TRACE: &str = "
    /bin/bcache-bench replay /trace --ignore-times --device /dev/bcache0 --yes --json \
        --cache-size 64M --bucket 64k --policy fifo --cutoff 0 --jobs 1 >/dev/null 2>/said || {
        cat /said
        exit 1
    }
";

/// Four tasks at a time read 6 MiB each, three times over; then two write in between.
const LOAD_TASKS: &str = "
    for round in 1 2 3; do
        jobs=
        for task in 1 2 3 4; do
            dd if=/dev/bcache0 of=/dev/null bs=16k skip=$((task * 1000)) count=384 iflag=direct \
                2>/dev/null &
            jobs=\"$jobs $!\"
        done
        wait $jobs
    done
    jobs=
    for task in 1 2; do
        dd if=/dev/zero of=/dev/bcache0 bs=8k seek=$((task * 2000 + 50)) count=40 oflag=direct \
            conv=notrunc 2>/dev/null &
        jobs=\"$jobs $!\"
    done
    wait $jobs
    dd if=/dev/bcache0 of=/dev/null bs=64k skip=250 count=300 iflag=direct 2>/dev/null
";

/// What the kernel counted: hits, misses, and the same of what went past the cache.
fn counted(run: &GuestRun) -> anyhow::Result<[u64; 4]> {
    let figure = |name: &str| run.log.number(name).with_context(|| run.tail());
    Ok([
        figure("cache_hits")?,
        figure("cache_misses")?,
        figure("cache_bypass_hits")?,
        figure("cache_bypass_misses")?,
    ])
}

/// Runs of which one has to agree. The model goes by the times at which the kernel got the requests. On a
/// host that is busy with other guests, these do not always tell how late the allocator thread was. Once the
/// two were 1.9 points apart; other runs had less than 0.6.
const RUNS: usize = 3;

fn compare(kernel: Kernel, cell: &Cell, points: f64) -> anyhow::Result<()> {
    let mut result = Ok(());
    for _ in 0..RUNS {
        result = compare_once(kernel, cell, points);
        let Err(error) = &result else { break };
        println!("{} on {kernel}: {error:#}", cell.name);
    }
    result
}

fn compare_once(kernel: Kernel, cell: &Cell, points: f64) -> anyhow::Result<()> {
    let requests = requests()?;
    let scratch = Scratch::new()?;
    let end = requests.iter().map(Request::end).max().context("requests")?;
    let cache = scratch.sparse("cache", cell.cache_mib << 20)?;
    let backing = scratch.sparse("backing", (end * 512).next_multiple_of(1 << 20) + (1 << 20))?;
    let recorded = scratch.sparse("recorded", 16 << 20)?;
    let policy = cell.policy.name();
    let path = |path: &std::path::Path| path.display().to_string();
    make([
        "--bucket",
        &format!("{}k", cell.bucket_kib),
        "--block",
        "512",
        "--cache-replacement-policy",
        policy,
        "-C",
        &path(&cache),
        "-B",
        &path(&backing),
    ])?;
    let script = SCRIPT
        .replace("LOAD", if cell.load == Load::Trace { LOAD_TRACE } else { LOAD_TASKS })
        .replace("CUTOFF", &(cell.cutoff_kib << 10).to_string())
        .replace("MODE", cell.mode.name());
    let run = Guest::new(kernel)
        .file("/trace", iolog(&requests))
        .binary(binary("bcache-bench")?)
        .disk(&cache)
        .disk(&backing)
        .disk(&recorded)
        .script(script)
        .timeout(Duration::from_secs(400))
        .run()?
        .ok()?
        .without_errors()?;
    let kernels = counted(&run)?;
    let size = run.log.number("size").with_context(|| run.tail())?;
    let size = usize::try_from(size)?;
    let bytes = std::fs::read(&recorded)?;
    std::fs::write(&recorded, bytes.get(..size).context("a recording")?)?;
    // With the times at which the kernel got the requests: how late its thread was depends on them.
    let recorded = load(
        open(&Source { paths: vec![recorded], ..Source::default() })?,
        &LoadOptions::default(),
    )?
    .requests;
    let place = |it: &Request| (it.op, it.sector, it.sectors);
    ensure!(
        cell.load == Load::Tasks || recorded.iter().map(place).eq(requests.iter().map(place)),
        "{} requests were made, and {} others recorded",
        requests.len(),
        recorded.len()
    );
    let ours = model(&recorded, cell)?;
    println!("{} on {kernel}: kernel {kernels:?}, model {ours:?}", cell.name);
    let all: u64 = ours.iter().sum();
    let reads: u64 = kernels.iter().sum();
    ensure!(reads.abs_diff(all) <= 2 * PROBES, "{reads} reads, and {all} were made");
    let bypassed = |of: &Counters| of[2] + of[3];
    ensure!(bypassed(&ours).abs_diff(bypassed(&kernels)) <= 1, "{ours:?} {kernels:?}");
    let hits = |of: &Counters| of[0] + of[2];
    let apart = hits(&ours).abs_diff(hits(&kernels));
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
