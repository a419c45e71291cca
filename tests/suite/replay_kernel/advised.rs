//! What a new user does: a load runs on a plain device and is recorded; the recording is replayed; the cache
//! that replay advises is made, and the same load runs on it. The kernel then counts the hits that were
//! predicted.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_bench::num::float;
use bcache_tests::need::find_program;
use bcache_tests::{Guest, Kernel, Scratch, binary};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;

/// Files that there are when the load begins: 350 MiB in all.
const FILES: usize = 1400;
const FILE_BYTES: u64 = 256 << 10;
/// And one that is only ever read from start to end, as a backup does.
const LARGE_BYTES: u64 = 24 << 20;
/// The file system has room for them and for those that the load makes.
const DISK_BYTES: u64 = 448 << 20;
/// A piece of a file.
const PIECE: usize = 16 << 10;
/// Threads that read, and how often each reads a file or a piece of it.
const READERS: u64 = 3;
const READS: usize = 900;
/// How often the one that writes does.
const WRITES: usize = 200;
/// All of them do something else in between: they leave the processor to the kernel's threads.
const PAUSE_MICROSECONDS: std::ops::Range<u64> = 2_000..6_000;
/// SSDs to have. Smaller ones have one bucket ready at a time: how late the allocator thread of a busy guest
/// is would decide the hits.
const SSD_MIB: [u64; 2] = [1100, 2200];
/// What replay is asked: which of them, with which policy and cutoff, in buckets as make makes them.
const QUESTION: &str = "--cache-size 1100M,2200M --bucket 512k";
/// How far hits may be from the prediction, in points of all reads: no two runs of the load make quite the
/// same requests.
const POINTS: f64 = 1.0;

/// By this argument the test's own program is the load.
pub(super) const LOAD: &str = "load";

/// Chooses a file by its popularity: the `k`th as often as `1 / k` to the power of 0.8.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: usize) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count as u64).map(|rank| {
            sum += float(rank).powf(-0.8);
            sum
        });
        Self(sums.collect())
    }

    fn file(&self, rng: &mut Pcg64) -> usize {
        let most = self.0.last().copied().unwrap_or(0.0);
        let at = rng.random::<f64>() * most;
        let rank = self.0.partition_point(|sum| *sum < at);
        // Popular files lie scattered over the disk.
        rank * 211 % self.0.len()
    }
}

fn name(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("file{number:04}"))
}

fn pause(rng: &mut Pcg64) {
    thread::sleep(Duration::from_micros(rng.random_range(PAUSE_MICROSECONDS)));
}

/// Leaves nothing of a file in memory, as on a machine with little of it.
fn forget(file: &File) -> anyhow::Result<()> {
    Ok(posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

fn read(folder: &Path, seed: u64) -> anyhow::Result<()> {
    let mut rng = Pcg64::seed_from_u64(seed);
    let zipf = Zipf::new(FILES);
    let mut buffer = vec![0; usize::try_from(FILE_BYTES)?];
    for at in 0..READS {
        pause(&mut rng);
        if seed == 0 && at % (READS / 2) == READS / 4 {
            let large = File::open(folder.join("large"))?;
            for at in 0..LARGE_BYTES / FILE_BYTES {
                large.read_exact_at(&mut buffer, at * FILE_BYTES)?;
                pause(&mut rng);
            }
            forget(&large)?;
        }
        let file = File::open(name(folder, zipf.file(&mut rng)))?;
        if rng.random_bool(0.5) {
            file.read_exact_at(&mut buffer, 0)?;
        } else {
            let piece = rng.random_range(0..FILE_BYTES / PIECE as u64);
            file.read_exact_at(&mut buffer[..PIECE], piece * PIECE as u64)?;
        }
        forget(&file)?;
    }
    Ok(())
}

/// Writes pieces again and waits for them; makes and removes files.
fn write(folder: &Path) -> anyhow::Result<()> {
    let mut rng = Pcg64::seed_from_u64(READERS);
    let zipf = Zipf::new(FILES);
    let mut data = vec![0; usize::try_from(FILE_BYTES)?];
    for at in 0..WRITES {
        pause(&mut rng);
        rng.fill(&mut data[..PIECE]);
        if at % 10 == 9 {
            let mut file = File::create(folder.join(format!("new{at}")))?;
            file.write_all(&data)?;
            file.sync_all()?;
            if let Some(before) = at.checked_sub(100) {
                fs::remove_file(folder.join(format!("new{before}")))?;
            }
            continue;
        }
        let file = OpenOptions::new().write(true).open(name(folder, zipf.file(&mut rng)))?;
        let piece = rng.random_range(0..FILE_BYTES / PIECE as u64);
        file.write_all_at(&data[..PIECE], piece * PIECE as u64)?;
        file.sync_data()?;
    }
    Ok(())
}

/// The load, in a guest: several threads at a time on the files of a folder.
pub(super) fn load(folder: &Path) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| write(folder))];
        threads.extend((0..READERS).map(|seed| scope.spawn(move || read(folder, seed))));
        threads.into_iter().try_for_each(|it| it.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })
}

/// The plain device is a loop device. Its file system is copied to a volume before that has a cache.
const SCRIPT: &str = r#"
    mkdir -p /mnt
    losetup /dev/loop0 /dev/vda
    load_on() {
        mount -t ext4 $1 /mnt
        LOAD /mnt
        umount /mnt
    }
    mount -t debugfs none /sys/kernel/debug
    /bin/bcache-bench record /dev/loop0 --for 600s -o /recorded >/said-by-record 2>&1 &
    recording=$!
    wait_for 30 test -e /sys/kernel/debug/block/loop0/trace0
    sleep 1
    load_on /dev/loop0
    kill -TERM $recording
    wait $recording

    # advice NAME: a value of the answer.
    advice() {
        sed -n "/\"answer\"/,/}/s/.*\"$1\": \"*\([^\",]*\).*/\1/p" /report
    }
    /bin/bcache-bench replay /recorded --json QUESTION >/report
    capture report cat /report
    for ssd in SSDS none; do
        [ "$(blockdev --getsize64 $ssd)" != "$(advice cache_bytes)" ] || break
    done
    bcachectl make --bdev /dev/vdc
    bcachectl register /dev/vdc
    wait_for 30 test -b /dev/bcache0
    dd if=/dev/vdb of=/dev/bcache0 bs=1M 2>/dev/null
    sync
    bcachectl make --cache $ssd --bucket "$(advice bucket_bytes)" \
        --cache-replacement-policy "$(advice policy)"
    bcachectl register $ssd
    bcachectl attach /dev/vdc $ssd
    bcachectl set /dev/vdc "cache_mode=$(advice mode)" \
        "sequential_cutoff=$(advice sequential_cutoff_bytes)"
    bcachectl set $ssd congested_read_threshold_us=0 congested_write_threshold_us=0
    load_on /dev/bcache0
    sleep 15
    for name in cache_hits cache_misses cache_bypass_hits cache_bypass_misses; do
        figure $name /sys/block/vdc/bcache/stats_total/$name
    done
    stop_all
"#;

/// The plain disk with its files.
fn plain_disk(scratch: &Scratch) -> anyhow::Result<PathBuf> {
    let folder = scratch.path("files");
    fs::create_dir(&folder)?;
    let mut rng = Pcg64::seed_from_u64(0);
    // mkfs makes holes of zeroes.
    let mut data = vec![0; usize::try_from(FILE_BYTES)?];
    rng.fill(&mut data[..]);
    for number in 0..FILES {
        fs::write(name(&folder, number), &data)?;
    }
    let mut large = File::create(folder.join("large"))?;
    (0..LARGE_BYTES / FILE_BYTES).try_for_each(|_| large.write_all(&data))?;
    let plain = scratch.sparse("plain", DISK_BYTES)?;
    // Nothing is left for the kernel to do later, at a time of its own.
    let made = Command::new(find_program("mkfs.ext4").context("mkfs.ext4")?)
        .args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"])
        .args([&folder, &plain])
        .output()?;
    ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr));
    fs::remove_dir_all(folder)?;
    Ok(plain)
}

/// Follows the advice under a kernel.
pub(super) fn follow(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let program = std::env::current_exe()?;
    let own_name = program.file_name().context("a name")?.to_string_lossy().into_owned();
    let ssds: Vec<String> = (0..SSD_MIB.len()).map(|index| Guest::disk_name(3 + index)).collect();
    let script = SCRIPT
        .replace("LOAD", &format!("/bin/{own_name} {LOAD}"))
        .replace("SSDS", &ssds.join(" "))
        .replace("QUESTION", QUESTION);
    let plain = plain_disk(&scratch)?;
    let mut guest = Guest::new(kernel)
        .module("ext4")
        .module("loop")
        .binary(&program)
        .binary(binary("bcache-bench")?)
        .binary(binary("bcachectl")?)
        .disk(&plain)
        .disk(scratch.copy("copy", &plain)?)
        .disk(scratch.sparse("backing", DISK_BYTES + (1 << 20))?);
    for mib in SSD_MIB {
        guest = guest.disk(scratch.sparse(&format!("ssd{mib}"), mib << 20)?);
    }
    let run =
        guest.script(script).timeout(Duration::from_secs(400)).run()?.ok()?.without_errors()?;
    let capture = run.log.capture("report").context("a report")?;
    let report: serde_json::Value = serde_json::from_str(&capture.output)?;
    let answer = &report["answer"];
    let predicted = answer["hit_ratio"].as_f64().context("an advice")?;
    let counters = super::counted(&run)?;
    let [hits, _, bypass_hits, _] = counters;
    let reads: u64 = counters.iter().sum();
    let measured = float(hits + bypass_hits) / float(reads);
    println!(
        "{}: predicted {predicted:.4} of {} reads, measured {measured:.4} of {reads}; {} s",
        answer["cell"],
        report["trace"]["reads"]["requests"],
        run.took.as_secs()
    );
    // Neither could be off by much where next to nothing, or all, is hit.
    ensure!((0.1..0.9).contains(&predicted), "{answer}");
    ensure!(
        (predicted - measured).abs() <= POINTS / 100.0,
        "{predicted:.4} of the reads were to be hits, and {measured:.4} were: {answer}"
    );
    Ok(())
}
