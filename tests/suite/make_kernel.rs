//! The stock kernel uses what `bcachectl make` formatted: a matrix of options, each pair of devices
//! registered, attached, written, read back, stopped, and some registered a second time.

use anyhow::{Context as _, anyhow, ensure};
use bcache_core::layout::superblock::{
    CacheParams, Label, Replacement, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::units::Sectors;
use bcache_tests::image::write_at;
use bcache_tests::kernel::{GuestRun, Log, rounded_size};
use bcache_tests::tool::{make, number, show, text, truth};
use bcache_tests::{DiskOptions, Guest, Kernel, Need, Scratch, ScriptEnd, main_with, trial};
use rand::{RngCore as _, SeedableRng as _};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use uuid::Uuid;

/// Cases in one guest: enough of them that booting does not count, and few enough that the guest's
/// PCI bus has room and a failure's log is read quickly.
const CASES_PER_GUEST: usize = 16;

fn main() -> ExitCode {
    let mut trials = vec![trial("the_matrix_is_whole", &[], matrix_is_whole)];
    for kernel in Kernel::ALL {
        trials.push(trial(format!("one_block_nodes_crash_{kernel}"), &[Need::Guest], move || {
            one_block_nodes_crash(kernel)
        }));
        for (index, _) in matrix().chunks(CASES_PER_GUEST).enumerate() {
            trials.push(trial(format!("made_{index}_{kernel}"), &[Need::Guest], move || {
                let matrix = matrix();
                let cases = matrix.chunks(CASES_PER_GUEST).nth(index).context("a part")?;
                caches(kernel, cases)
            }));
        }
    }
    main_with(trials)
}

/// How the backing device comes to its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attached {
    /// Made in one command with the cache; attaches by itself.
    Together,
    /// Made in a command of its own with `--cset-uuid`; attaches by itself.
    BySetUuid,
    /// Made in a command of its own without; attached through sysfs.
    ByHand,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    number: usize,
    bucket_bytes: u64,
    block_bytes: u64,
    nbuckets: u64,
    policy: &'static str,
    discard: bool,
    /// Whether the disk of the cache takes discards.
    disk_discard: bool,
    data_offset: Option<u64>,
    label: &'static str,
    writeback: bool,
    logical_block_size: u32,
    attached: Attached,
    cache_first: bool,
    register_twice: bool,
}

const LABELS: [&str; 4] = ["", "a", "fast things", "a label of thirty-one bytes xxx"];
const DATA_OFFSETS: [Option<u64>; 5] = [None, Some(2048), Some(4096), Some(17), Some(8191)];

/// Every bucket size with every policy; the other options go round at paces that are prime to each
/// other, so that they meet in ever other ways.
fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    // 4 KiB to 16 MiB, and 32 MiB, which takes a superblock of version 5.
    for shift in 12..=25 {
        for policy in ["lru", "fifo", "random"] {
            let number = cases.len();
            let bucket_bytes = 1_u64 << shift;
            let logical_block_size = if number % 7 == 5 { 4096 } else { 512 };
            let block_bytes = if logical_block_size == 4096 { 4096 } else { 512 << (number % 4) };
            // Of a single block they crash the kernel, see `ONE_BLOCK`, so make refuses them.
            let block_bytes = block_bytes.min(bucket_bytes / 2);
            // What starts within a block is never cached, so make refuses it.
            let data_offset =
                DATA_OFFSETS[number % 5].filter(|sectors| sectors * 512 % block_bytes == 0);
            cases.push(Case {
                number,
                bucket_bytes,
                block_bytes,
                // The least that the kernel takes among them. The smallest buckets are given room:
                // the kernel wants some of them for each node of the btree.
                nbuckets: [513, 600, 1025][number % 3] * if shift < 14 { 4 } else { 1 },
                policy,
                discard: number % 2 == 1,
                disk_discard: number % 9 != 7,
                data_offset,
                label: LABELS[number % 4],
                writeback: number % 3 == (number / 3) % 3,
                logical_block_size,
                attached: match number % 11 {
                    4 => Attached::BySetUuid,
                    8 => Attached::ByHand,
                    _ => Attached::Together,
                },
                cache_first: number % 5 > 2,
                register_twice: number % 4 == 2 || shift >= 24,
            });
        }
    }
    cases
}

/// Each value of each option is in the matrix, whatever is done to it.
fn matrix_is_whole() -> anyhow::Result<()> {
    fn has<T: Ord>(values: impl Fn(&Case) -> T, expected: impl IntoIterator<Item = T>) -> bool {
        matrix().iter().map(values).collect::<BTreeSet<_>>() == expected.into_iter().collect()
    }
    ensure!(matrix().len() >= 40);
    ensure!(has(|case| case.bucket_bytes, (12..=25).map(|shift| 1 << shift)));
    ensure!(has(|case| case.block_bytes, [512, 1024, 2048, 4096]));
    ensure!(has(|case| case.policy, ["lru", "fifo", "random"]));
    ensure!(has(|case| case.data_offset, DATA_OFFSETS));
    ensure!(has(|case| case.label, LABELS));
    ensure!(has(|case| case.logical_block_size, [512, 4096]));
    ensure!(has(|case| case.cache_first, [false, true]));
    ensure!(has(
        |case| (case.discard, case.disk_discard),
        [(false, false), (false, true), (true, false), (true, true)]
    ));
    ensure!(has(
        |case| (case.policy, case.writeback),
        [
            ("lru", false),
            ("lru", true),
            ("fifo", false),
            ("fifo", true),
            ("random", false),
            ("random", true)
        ]
    ));
    let all = [Attached::Together, Attached::BySetUuid, Attached::ByHand];
    ensure!(has(|case| case.attached, all));
    Ok(())
}

/// A case and what was made for it.
struct Made<'a> {
    case: &'a Case,
    cache: PathBuf,
    backing: PathBuf,
    /// What `show` says of them before any kernel has seen them.
    shown_cache: Value,
    shown_backing: Value,
}

impl Case {
    /// Size of the backing device: 32 MiB and a bit.
    const BACKING_BYTES: u64 = (32 << 20) + 5 * 4096;

    /// How much is written through bcache. Little on small buckets: with many keys, kernels before
    /// 6.16 hang on them until they are registered a second time (docs/on-disk-format.md §10.13).
    fn write_bytes(&self) -> u64 {
        (self.bucket_bytes * 8).min(512 << 10)
    }

    fn make(&self, scratch: &Scratch) -> anyhow::Result<Made<'_>> {
        // Half a bucket stays unused behind the last one.
        let cache_bytes = self.nbuckets * self.bucket_bytes + self.bucket_bytes / 8192 * 4096;
        let cache = scratch.sparse(&format!("{}-cache", self.number), cache_bytes)?;
        let backing = scratch.sparse(&format!("{}-backing", self.number), Self::BACKING_BYTES)?;
        let bucket = format!("{}k", self.bucket_bytes >> 10);
        let block = self.block_bytes.to_string();
        let policy = ["--cache-replacement-policy", "--cache_replacement_policy"][self.number % 2];
        let mut common = vec!["--block", &block, "--label", self.label];
        let offset = self.data_offset.map(|sectors| sectors.to_string());
        let mut for_backing: Vec<&str> = Vec::new();
        if let Some(offset) = &offset {
            for_backing.extend(["--data-offset", offset]);
        }
        if self.writeback {
            for_backing.push("--writeback");
        }
        let mut for_cache = vec!["--bucket", &bucket, policy, self.policy];
        if self.discard {
            for_cache.push("--discard");
        }
        let (cache_path, backing_path) = (path_text(&cache)?, path_text(&backing)?);
        if self.attached == Attached::Together {
            common.extend(for_cache);
            common.extend(for_backing);
            common.extend(["--cache", cache_path, "--bdev", backing_path]);
            make(common)?;
        } else {
            for_cache.extend(&common);
            for_cache.extend(["-C", cache_path]);
            let made = make(for_cache)?;
            let set = text(&made[0], "/superblock/set_uuid")?;
            for_backing.extend(common);
            if self.attached == Attached::BySetUuid {
                for_backing.extend(["--cset-uuid", set]);
            }
            for_backing.extend(["-B", backing_path]);
            make(for_backing)?;
        }
        let (shown_cache, shown_backing) = (show(&cache)?, show(&backing)?);
        Ok(Made { case: self, cache, backing, shown_cache, shown_backing })
    }
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is UTF-8")
}

/// Defined once in the guest; called for each case as `cycle BACKING CACHE FIRST SECOND`.
const CYCLE: &str = r#"
cycle() {
    register "$3"
    register "$4"
    bdev_dir=/sys/block/$(basename "$1")/bcache
    [ -z "$attach_by_hand" ] || attach "$1"
    # The link appears when the device is attached.
    wait_for 30 test -d "$bdev_dir/cache"
    wait_for 30 test -b /dev/bcache0
    set_dir=/sys/fs/bcache/$(sets)
    echo 0 >"$bdev_dir/sequential_cutoff"
    echo 0 >"$bdev_dir/writeback_running"
    echo 0 >"$set_dir/congested_read_threshold_us"
    echo 0 >"$set_dir/congested_write_threshold_us"
}
"#;

fn caches(kernel: Kernel, cases: &[Case]) -> anyhow::Result<()> {
    const DATA_BYTES: usize = 2 << 20;
    let scratch = Scratch::new()?;
    let made = cases.iter().map(|case| case.make(&scratch)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut data = vec![0; DATA_BYTES];
    rand_pcg::Pcg64::seed_from_u64(2).fill_bytes(&mut data);
    let mut guest =
        Guest::new(kernel).file("/data", data).script(CYCLE).timeout(Duration::from_secs(600));
    for (index, Made { case, cache, backing, .. }) in made.iter().enumerate() {
        let options = DiskOptions {
            logical_block_size: case.logical_block_size,
            discard: case.disk_discard,
            ..DiskOptions::default()
        };
        guest = guest.disk_with(backing, options).disk_with(cache, options);
        guest = guest.script(script(case, index));
    }
    let run = guest.run()?.ok()?.without_errors()?;
    for made in &made {
        let log = run.log.stage(&made.case.number.to_string()).context("no stage of the case")?;
        let checked = made.figures(&log, kernel).and_then(|()| made.afterwards());
        checked.map_err(|error| anyhow!("{error:#}\n{:?}\n{}", made.case, run.tail()))?;
    }
    Ok(())
}

fn script(case: &Case, index: usize) -> String {
    let (backing, cache) = (Guest::disk_name(2 * index), Guest::disk_name(2 * index + 1));
    let name = backing.trim_start_matches("/dev/");
    let order = if case.cache_first {
        format!("{backing} {cache} {cache} {backing}")
    } else {
        format!("{backing} {cache} {backing} {cache}")
    };
    let bytes = case.write_bytes();
    let by_hand = if case.attached == Attached::ByHand { "yes" } else { "" };
    let mut script = format!(
        "stage {number}
        attach_by_hand={by_hand}
        dd if=/data of=/slice bs=4k skip={number} count={blocks} 2>/dev/null
        capture slice md5sum /slice
        cycle {order}
        dd if=/slice of=/dev/bcache0 bs={transfer} oflag=direct conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        md5 /dev/bcache0 {bytes}
        capture sets sets
        set_figures
        for figure_name in bucket_size block_size discard; do
            figure cache0/$figure_name $set_dir/cache0/$figure_name
        done
        bdev_figures {name}
        figure label /sys/block/{name}/bcache/label
        figure size /sys/block/bcache0/size
        stop_all
        ",
        number = case.number,
        blocks = bytes / 4096,
        transfer = case.block_bytes * 8,
    );
    if case.register_twice {
        let _ = write!(
            script,
            "attach_by_hand=
            cycle {order}
            md5 /dev/bcache0 {bytes}
            stop_all
            "
        );
    }
    script
}

impl Made<'_> {
    /// What the kernel said while it ran the devices, against what `show` said before.
    fn figures(&self, log: &Log, kernel: Kernel) -> anyhow::Result<()> {
        let Self { case, shown_cache: cache, shown_backing: backing, .. } = self;
        let bytes = case.write_bytes();
        let slice = &log.capture("slice").context("no sum of the slice")?.output;
        let written = slice.split_whitespace().next().context("a sum")?;
        let sums = log.md5s(&format!("/dev/bcache0:{bytes}"));
        let times = if case.register_twice { 2 } else { 1 };
        ensure!(sums == vec![written; times], "{written} was written, {sums:?} read back");

        let sets = log.capture("sets").context("no sets")?.output.trim();
        ensure!(sets == text(cache, "/superblock/set_uuid")?, "the kernel's set is {sets}");
        let set = log.set_figures()?;
        let figures = set.caches.first().context("no cache in the set")?;
        ensure!(figures.nbuckets == number(cache, "/superblock/nbuckets")?, "{set:?}");
        ensure!(figures.nbuckets == case.nbuckets, "{set:?}");
        ensure!(figures.replacement == text(cache, "/superblock/replacement")?, "{set:?}");
        ensure!(figures.replacement == case.policy, "{set:?}");
        for (name, expected) in
            [("bucket_size", case.bucket_bytes), ("block_size", case.block_bytes)]
        {
            let shown = number(cache, &format!("/superblock/{name}_sectors"))? * 512;
            let figure = log.figure(&format!("cache0/{name}"));
            ensure!(
                shown == expected && figure == Some(rounded_size(shown).as_str()),
                "{name}: {expected} was asked for, show says {shown}, the kernel {figure:?}"
            );
        }
        ensure!(truth(cache, "/superblock/discard")? == case.discard);
        // Kernels that ignore the flag have no such file.
        let discards = log.figure("cache0/discard");
        if kernel.discards_buckets()? {
            let expected = u64::from(case.discard && case.disk_discard);
            ensure!(log.number("cache0/discard")? == expected, "{discards:?}");
        } else {
            ensure!(discards.is_none(), "a kernel that ignores discard has {discards:?}");
        }

        let disk = log.figure("label").context("no label")?;
        ensure!(disk == text(backing, "/superblock/label")? && disk == case.label, "label {disk}");
        let device = log
            .kernel_lines()
            .find_map(|line| line.split_once("register_bdev() registered backing device "))
            .context("no backing device was registered")?
            .1;
        let figures = log.backing_figures(device.trim())?;
        let mode = if case.writeback { "writeback" } else { "writethrough" };
        ensure!(figures.cache_mode == text(backing, "/superblock/cache_mode")?, "{figures:?}");
        ensure!(figures.cache_mode == mode && figures.running, "{figures:?}");
        let dirty = if case.writeback { bytes } else { 0 };
        ensure!(figures.dirty_data == rounded_size(dirty), "{figures:?}");
        let offset = number(backing, "/superblock/data_offset_sectors")?;
        ensure!(offset == case.data_offset.unwrap_or(16));
        let size = log.number("size")?;
        ensure!(size == number(backing, "/size_sectors")? - offset, "{size} sectors of data");
        Ok(())
    }

    /// What `show` says of the devices after the kernel has used and stopped them.
    fn afterwards(&self) -> anyhow::Result<()> {
        let (cache, backing) = (show(&self.cache)?, show(&self.backing)?);
        for device in [&cache, &backing] {
            ensure!(text(device, "/superblock/checksum")? == "ok", "{device}");
            ensure!(truth(device, "/kernel/accepts")?, "{device}");
            let set = text(&self.shown_cache, "/superblock/set_uuid")?;
            ensure!(text(device, "/superblock/set_uuid")? == set, "{device}");
            ensure!(text(device, "/superblock/label")? == self.case.label, "{device}");
        }
        ensure!(truth(&cache, "/superblock/sync")?, "{cache}");
        let journal = (self.case.nbuckets >> 7).clamp(2, 256);
        ensure!(number(&cache, "/superblock/njournal_buckets")? == journal, "{cache}");
        let version = if self.case.bucket_bytes > 16 << 20 { 5 } else { 3 };
        ensure!(number(&cache, "/superblock/version")? == version, "{cache}");
        for field in ["nbuckets", "bucket_size_sectors", "first_bucket", "replacement", "discard"] {
            let pointer = format!("/superblock/{field}");
            ensure!(cache.pointer(&pointer) == self.shown_cache.pointer(&pointer), "{cache}");
        }
        let state = if self.case.writeback { "dirty" } else { "clean" };
        ensure!(text(&backing, "/superblock/state")? == state, "{backing}");
        // With dirty data, the data on the backing device is not all there is.
        ensure!(truth(&backing, "/data/needs_cache")? == self.case.writeback, "{backing}");
        Ok(())
    }
}

/// What is done with a cache whose btree nodes are of one block: stopped and started once, so that a
/// lack of buckets for the btree does not end it first, and then written to.
const ONE_BLOCK: &str = "
    echo 1 >/proc/sys/kernel/panic_on_oops
    echo 20 >/proc/sys/kernel/hung_task_timeout_secs || true
    start() {
        register /dev/vda
        register /dev/vdb
        wait_for 30 test -d /sys/block/vda/bcache/cache
        wait_for 30 test -b /dev/bcache0
        echo 0 >/sys/block/vda/bcache/sequential_cutoff
        echo 0 >/sys/fs/bcache/$(sets)/congested_write_threshold_us
    }
    start
    stop_all
    stage written
    start
    i=0
    while [ $i -lt 200 ]; do
        dd if=/data of=/dev/bcache0 bs=4k count=1 seek=$((i * 7 % 1000)) oflag=direct 2>/dev/null
        i=$((i + 1))
        echo written $i
    done
    stop_all
";

/// Why make refuses a bucket of one block: the kernel takes it, and crashes over its btree. With nodes
/// of two blocks it comes to its end.
fn one_block_nodes_crash(kernel: Kernel) -> anyhow::Result<()> {
    let whole = with_btree_nodes_of(2, kernel, Duration::from_secs(180))?;
    ensure!(whole.end == ScriptEnd::Exited(0), "{:?}\n{}", whole.end, whole.tail());
    // It copies over whatever lies behind the node, so it may die anywhere: in the btree, in the
    // allocator, in its own reports, or it just stands still. The run above shows that nothing else does it.
    let run = with_btree_nodes_of(1, kernel, Duration::from_secs(60))?;
    let crashed = matches!(run.end, ScriptEnd::Died | ScriptEnd::TimedOut);
    ensure!(crashed, "{:?} after {:?}\n{}", run.end, run.took, run.tail());
    Ok(())
}

/// Runs [`ONE_BLOCK`] on a cache with buckets of so many blocks of 4 KiB.
fn with_btree_nodes_of(blocks: u16, kernel: Kernel, timeout: Duration) -> anyhow::Result<GuestRun> {
    let scratch = Scratch::new()?;
    let set_uuid = Uuid::new_v4();
    let nbuckets = 4096;
    let bucket_size = Sectors(8 * u64::from(blocks));
    let cache = scratch.sparse("cache", nbuckets * bucket_size.0 * 512)?;
    let params = CacheParams {
        uuid: Uuid::new_v4(),
        set_uuid,
        label: Label::default(),
        nbuckets,
        bucket_size,
        block_size: 8,
        replacement: Replacement::Lru,
        discard: false,
    };
    write_at(&cache, SB_OFFSET_BYTES, Superblock::new_cache(&params).as_bytes())?;
    let backing = scratch.sparse("backing", Case::BACKING_BYTES)?;
    make(["--cset-uuid", &set_uuid.to_string(), "--writeback", "-B", path_text(&backing)?])?;
    let guest = Guest::new(kernel).file("/data", vec![7; 4096]).timeout(timeout);
    guest.disk(&backing).disk(&cache).script(ONE_BLOCK).run()
}
