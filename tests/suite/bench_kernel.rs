//! What `bcache-bench device --keep` leaves is a cache set: our check finds nothing in it, and stock
//! kernels register it, cache with it and write on in it.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_tests::cache::check_clean;
use bcache_tests::tool::{make, show, text, truth};
use bcache_tests::{Guest, Kernel, LoopDevice, Need, Scratch, binary, main_with, trial};
use rand::{RngCore as _, SeedableRng as _};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for kernel in Kernel::ALL {
        for (name, options) in RUNS {
            trials.push(trial(
                format!("kept_{name}_{kernel}"),
                &[Need::Guest, Need::LoopDevices],
                move || kept(kernel, options),
            ));
        }
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
    check_clean(&cache)?;
    let shown = show(&cache)?;
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
        .disk(&cache)
        .script(SCRIPT)
        .timeout(Duration::from_secs(200))
        .run()?
        .ok()?
        .without_errors()?;
    let sums = run.log.md5s("/dev/bcache0:4194304");
    ensure!(sums.len() == 2 && sums.first() == sums.get(1), "{sums:?}\n{}", run.tail());
    // Nothing but the set's own metadata is in use: what the bench wrote has no keys.
    ensure!(run.log.number("cache_available_percent")? >= 95, "{}", run.tail());
    check_clean(&cache)
}
