//! What our allocator leaves on a device is a cache set: our check finds nothing in it, and stock kernels
//! register it, cache with it and write on in it. So it is with what `bcache-bench device --keep` has
//! made, and with sets that kernels have made and the allocator has gone on with.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_core::allocator::{AllocatorThread, Reserve, WriteError};
use bcache_core::cache_set::testkit::{contents, lost_or_changed};
use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::testkit::{MemoryDevice, SimDevice};
use bcache_core::device::{BlockDevice, open_read, open_write};
use bcache_core::ops::check::{CheckOptions, Severity, check};
use bcache_core::ops::start::RunningSet;
use bcache_tests::cache::{check_clean, with_cache_set};
use bcache_tests::tool::{make, show, text, truth};
use bcache_tests::volume::{md5_of_backing, md5_of_flash_only};
use bcache_tests::{
    DiskOptions, Fixture, Guest, Kernel, LoopDevice, Need, Scratch, binary, main_with, trial,
};
use rand::{RngCore as _, SeedableRng as _};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    trials.push(trial("in_use_power_cuts", &[], in_use_power_cuts));
    for kernel in Kernel::ALL {
        trials.push(trial(format!("in_use_{kernel}"), &[Need::Guest], move || in_use(kernel)));
        for (name, options) in RUNS {
            trials.push(trial(
                format!("kept_{name}_{kernel}"),
                &[Need::Guest, Need::LoopDevices],
                move || kept(kernel, options),
            ));
        }
    }
    if let Ok(seconds) = std::env::var("BCACHE_TEST_SOAK") {
        trials
            .push(trial("soak", &[Need::Guest, Need::LoopDevices], move || soak(seconds.parse()?)));
    }
    main_with(trials)
}

/// Runs that leave sets of different kinds: buckets used many times over, several prio sets a chain,
/// discards.
const RUNS: [(&str, &[&str]); 2] = [
    ("lru", &["--bucket", "64k", "--writers", "2", "--read-share", "30", "--access", "zipf"]),
    ("fifo_discard", &["--bucket", "16k", "--policy", "fifo", "--discard", "--block-sizes", "4k"]),
];

const IMAGE_BYTES: u64 = 192 << 20;

/// Runs the bench on a loop device; its report.
fn bench(device: &Path, options: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new(binary("bcache-bench")?)
        .args(["device", "--keep", "--json", "--no-baseline", "--yes", "--amount", "600M"])
        .args(options)
        .arg(device)
        .output()
        .context("run bcache-bench")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).context("the report")
}

const SCRIPT: &str = "
    register /dev/vda
    register /dev/vdb
    wait_for 30 test -b /dev/bcache0
    wait_for 30 test -d /sys/block/vda/bcache/cache
    set_figures
    dd if=/data of=/dev/bcache0 bs=64k oflag=direct conv=fsync 2>/dev/null
    md5 /dev/bcache0 4194304
    stop_all
    stage again
    register /dev/vda
    register /dev/vdb
    wait_for 30 test -b /dev/bcache0
    md5 /dev/bcache0 4194304
    stop_all
";

fn kept(kernel: Kernel, options: &[&str]) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let cache = scratch.sparse("cache", IMAGE_BYTES)?;
    let report = {
        let device = LoopDevice::attach(&cache, 512)?;
        bench(device.path(), options)?
    };
    // The run went through the cache more than once, or it shows little.
    let counters = report.pointer("/runs/0/counters").context("counters")?;
    let count = |name: &str| counters.get(name).and_then(Value::as_u64).unwrap_or(0);
    ensure!(count("passes") > 20 && count("prio_writes") > 20, "{counters}");
    ensure!(count("written_bytes") + count("read_bytes") >= 600 << 20, "{counters}");
    is_honoured(kernel, &scratch, &cache)
}

/// Whether our check and `kernel` take the set that a run has left, and the kernel caches with it.
fn is_honoured(kernel: Kernel, scratch: &Scratch, cache: &Path) -> anyhow::Result<()> {
    check_clean(cache)?;
    let shown = show(cache)?;
    ensure!(truth(&shown, "/superblock/sync")? && truth(&shown, "/kernel/accepts")?);

    let backing = scratch.sparse("backing", 64 << 20)?;
    let backing_path = backing.to_str().context("a path")?;
    make([
        "--cset-uuid",
        text(&shown, "/superblock/set_uuid")?,
        "--writeback",
        "-B",
        backing_path,
    ])?;
    let mut data = vec![0; 4 << 20];
    rand_pcg::Pcg64::seed_from_u64(3).fill_bytes(&mut data);
    let run = Guest::new(kernel)
        .file("/data", data)
        .disk(&backing)
        .disk(cache)
        .script(SCRIPT)
        .timeout(Duration::from_secs(200))
        .run()?
        .ok()?
        .without_errors()?;
    let sums = run.log.md5s("/dev/bcache0:4194304");
    ensure!(sums.len() == 2 && sums.first() == sums.get(1), "{sums:?}\n{}", run.tail());
    // Nothing but the set's own metadata is in use: what the bench wrote has no keys.
    ensure!(run.log.number("cache_available_percent")? >= 95, "{}", run.tail());
    check_clean(cache)
}

/// What a process has in memory, in KiB.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A run of `seconds` with LRU, discards, GCs and rescalings: its memory does not grow, and every kernel
/// takes what it leaves. `make soak` runs it for an hour.
fn soak(seconds: u64) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let cache = scratch.sparse("cache", 2 << 30)?;
    let report = scratch.path("report.json");
    let device = LoopDevice::attach(&cache, 512)?;
    let mut child = Command::new(binary("bcache-bench")?)
        .args(["device", "--keep", "--json", "--no-baseline", "--yes", "--discard"])
        .args(["--bucket", "128k", "--writers", "2", "--read-share", "30", "--rate", "400"])
        .args(["--access", "zipf=80,sequential=20", "--duration", &format!("{seconds}s")])
        .arg(device.path())
        .stdout(File::create(&report)?)
        .spawn()?;
    let mut samples = Vec::new();
    while child.try_wait()?.is_none() {
        // None is left of a process that has ended meanwhile.
        samples.extend(resident_kib(child.id()));
        std::thread::sleep(Duration::from_secs(1));
    }
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    drop(device);
    let report: Value = serde_json::from_reader(File::open(&report)?)?;
    let counters = report.pointer("/runs/0/counters").context("counters")?;
    println!("{counters}");
    for name in ["passes", "prio_writes", "gcs", "rescales", "discards"] {
        let count = counters.get(name).and_then(Value::as_u64).context(name)?;
        ensure!(count * 60 >= seconds, "{name}: {counters}");
    }
    let quarter = |index: usize| {
        let quarter = samples.len().div_ceil(4).max(1);
        samples.chunks(quarter).nth(index).and_then(|it| it.iter().max().copied())
    };
    let (early, late) = (quarter(1).context("samples")?, quarter(3).context("samples")?);
    println!("at most {early} KiB in the second quarter, {late} KiB in the last");
    ensure!(late <= early + early / 20 + 1024, "it grew from {early} to {late} KiB");
    for kernel in Kernel::ALL {
        let copy = scratch.copy(&format!("cache.{kernel}"), &cache)?;
        is_honoured(kernel, &scratch, &copy).with_context(|| format!("kernel {kernel}"))?;
    }
    Ok(())
}

/// Goes on with the set on `device`: takes `count` buckets and writes over each, as long as the device
/// works. The keys of none are kept, so that they are used over and over.
fn go_on(device: &Arc<dyn BlockDevice>, count: usize) -> anyhow::Result<()> {
    let options = ReadOptions::default();
    let set = RunningSet::open(vec![Arc::clone(device)], |_| {}, &options, &mut |_, _| {})?;
    let set = Arc::new(set);
    let (wake, woken) = std::sync::mpsc::channel();
    let allocator = Arc::clone(set.allocator());
    let collector = std::thread::spawn(move || {
        while woken.recv().is_ok() {
            allocator.gc_start();
            allocator.gc_finish(&[]).expect("a GC");
        }
    });
    let io = set.io(0, Arc::new(move || wake.send(()).unwrap_or(()))).context("its cache")?;
    let cache = set.allocator().cache(0)?;
    let thread = AllocatorThread::start(cache, io)?;
    let geometry = *set.caches().first().context("a cache")?.geometry();
    let junk = vec![0xda; usize::try_from(geometry.bucket_bytes())?];
    let allocate = || -> anyhow::Result<()> {
        for _ in 0..count {
            let bucket = cache.bucket_alloc(Reserve::None, true)?;
            device.write_at(geometry.bucket_to_sector(bucket).bytes(), &junk)?;
            cache.release(bucket)?;
        }
        Ok(())
    };
    let allocated = allocate();
    let stopped = thread.stop().map(drop).map_err(|(_, error)| error);
    collector.join().expect("the collector");
    allocated?;
    stopped?;
    // Stopped right after a chain, the thread has not made room for another; what it wrote is complete.
    match set.write_prios(0) {
        Ok(()) | Err(WriteError::TooFewBuckets) => {}
        Err(error) => return Err(error.into()),
    }
    cache.core().check()?;
    Ok(())
}

/// What the images hold of their volumes is there after every power cut, or was clean.
fn in_use_power_cuts() -> anyhow::Result<()> {
    for name in Fixture::names()? {
        let fixture = Fixture::unpack(&name)?;
        let device = MemoryDevice::from_reader(&mut File::open(&fixture.cache)?)?;
        let contents = |device: &MemoryDevice| -> anyhow::Result<_> {
            let cache = CacheDevice::open(device)?;
            Ok(contents(&CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor)?)?)
        };
        let before = contents(&device)?;
        ensure!(before.len() > 1000, "{name}: {} sectors", before.len());
        let whole = SimDevice::new(&device);
        go_on(&(Arc::new(whole.clone()) as Arc<dyn BlockDevice>), 40).context(name.clone())?;
        let changes = whole.changes();
        ensure!(changes > 60, "{name}: {changes} changes");
        for cut in (0..changes).step_by(7) {
            let sim = SimDevice::new(&device).with_power_cut_at(cut);
            let ran = go_on(&(Arc::new(sim.clone()) as Arc<dyn BlockDevice>), 40);
            ensure!(ran.is_err(), "{name}: the power was not cut");
            let image = sim.crash(cut);
            let found = lost_or_changed(&before, &contents(&image)?);
            ensure!(found.is_none(), "{name}, cut at {cut} of {changes}: {found:?}");
            let report = check(&image, &CheckOptions::default(), &mut |_| {})?;
            let sound = report.findings.iter().all(|it| it.severity() == Severity::Untidy);
            ensure!(sound, "{name}, cut at {cut} of {changes}: {:?}", report.findings);
        }
    }
    Ok(())
}

/// A kernel's set that the allocator has gone on with.
struct InUse {
    name: String,
    cache: PathBuf,
    backing: Vec<PathBuf>,
    /// Sums of the volumes as they were: those with a backing device, then those without.
    sums: Vec<String>,
}

fn in_use(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut data = vec![0; 1 << 20];
    rand_pcg::Pcg64::seed_from_u64(11).fill_bytes(&mut data);
    let mut guest =
        Guest::new(kernel).file("/data", data).sums_by_host().timeout(Duration::from_secs(600));
    let (mut all, mut disks) = (Vec::new(), 0);
    for name in Fixture::names()? {
        let fixture = Fixture::unpack(&name)?;
        let sums = |cache: &Path| {
            with_cache_set(cache, |set| {
                let mut sums = Vec::new();
                for path in &fixture.backing {
                    sums.push(md5_of_backing(set, &open_read(path)?)?);
                }
                let slots = (0u32..).zip(&set.uuids.slots);
                for (slot, _) in slots.filter(|(_, entry)| entry.flash_only()) {
                    sums.push(md5_of_flash_only(set, slot)?);
                }
                Ok(sums)
            })
        };
        let before = sums(&fixture.cache)?;
        let cache = scratch.copy(&format!("{name}.cache"), &fixture.cache)?;
        // Each bucket several times.
        go_on(&(Arc::new(open_write(&cache)?) as Arc<dyn BlockDevice>), 5000)?;
        check_clean(&cache)?;
        assert_eq!(sums(&cache)?, before, "{name}");
        let mut backing = Vec::new();
        for (index, path) in fixture.backing.iter().enumerate() {
            backing.push(scratch.copy(&format!("{name}.back{index}"), path)?);
        }
        guest = guest.script(format!("stage {name}"));
        for image in backing.iter().chain([&cache]) {
            guest = guest.disk_with(image, DiskOptions::default());
            guest = guest.script(format!("register {}", Guest::disk_name(disks)));
            disks += 1;
        }
        for index in 0..before.len() {
            guest = guest.script(format!("wait_for 20 test -b /dev/bcache{index}"));
            guest = guest.script(format!("md5 /dev/bcache{index}"));
        }
        guest = guest.go_on_and_stop(backing.len());
        all.push(InUse { name, cache, backing, sums: before });
    }
    let run = guest.run()?.ok()?.without_errors()?;
    for InUse { name, cache, backing, sums } in &all {
        let stage = run.log.stage(name).context("no such stage")?;
        for (index, sum) in sums.iter().enumerate() {
            let device = format!("/dev/bcache{index}");
            assert_eq!(stage.md5(&device), Some(sum.as_str()), "{name}, {kernel}: {device}");
        }
        ensure!(!backing.is_empty());
        check_clean(cache).with_context(|| format!("{name}, kernel {kernel}"))?;
    }
    Ok(())
}
