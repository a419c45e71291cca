//! What the reader says of images that stock kernels have just written, against the kernel's own
//! figures and sums.
//!
//! Each kernel boots three times. The first two times it gets seven sets of devices, made by
//! `bcachectl make`, and works on each in turn: several backing devices with a flash-only volume; a small cache that
//! is filled over and over; buckets of 4 KiB, of 1 MiB and of 32 MiB (superblock version 5); a btree of
//! four levels; and one whose power is cut while dirty data is written. For all but the last, GC is run and figures are
//! taken just before the set is stopped. The third time it reads what the power cut has left,
//! which the reader has to read as well.
//!
//! Quantiles, average age and sectors per quantile are compared where the kernel has just come from
//! the device, in that third boot. Of a set that is stopped they cannot be: prios are written with
//! the gens, when the allocator has used up its buckets, and what was read or aged since is in the
//! kernel's memory only.

use anyhow::{Context as _, ensure};
use bcache_cli::size::parse_bytes;
use bcache_core::cache_set::testkit::{SetBuilder, backing_volume};
use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::ReadDevice;
use bcache_core::device::file::{open_read, open_write};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::superblock::{
    BDEV_DATA_START_DEFAULT, BackingState, CacheMode, SB_OFFSET_BYTES,
};
use bcache_core::units::Sectors;
use bcache_tests::image::write_at;
use bcache_tests::kernel::{PriorityStats, SetFigures};
use bcache_tests::volume::{md5_of_backing, md5_of_flash_only};
use bcache_tests::{
    DiskOptions, Guest, GuestRun, Kernel, Log, Need, Scratch, main_with, tool, trial,
};
use rand::{RngCore as _, SeedableRng as _};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let all = Kernel::ALL.into_iter().flat_map(|kernel| {
        [("worn", &WORN[..]), ("shaped", &SHAPED[..])].map(|(part, plans)| {
            trial(format!("reads_what_it_wrote_{part}_{kernel}"), &[Need::Guest], move || {
                reads_what_it_wrote(kernel, plans)
            })
        })
    });
    main_with(all.collect())
}

/// One set of devices and what the guest does with it.
struct Plan {
    name: &'static str,
    bucket: &'static str,
    block: &'static str,
    cache_bytes: u64,
    backing_bytes: &'static [u64],
    /// Version of the superblock that this bucket size needs.
    version: u64,
    work: &'static str,
    /// Least depth of the btree.
    depth_min: u64,
    /// Least number of times that some bucket was reused.
    gen_min: u64,
    flash_only: bool,
    /// Whether cached blocks are written again: a few buckets more or less are clean to the kernel then, by
    /// when its GC came to them, which may be a percent.
    overwritten: bool,
    /// Clean extents that the set begins with: a btree that would take a guest many minutes of writing.
    extents: u64,
    /// The btree of these extents.
    built: Built,
}

/// How full the nodes of a btree are, leaves and others, and how many levels of them that makes.
struct Built {
    fill_percent: usize,
    inner_fill_percent: usize,
    levels: u16,
}

/// Some clean data, then some dirty.
const CLEAN_AND_DIRTY: &str = "
    mode writethrough; scatter $first 60 97 16000
    mode writeback; scatter $first 60 31 16000";

/// What a plan has that does not say otherwise.
const PLAIN: Plan = Plan {
    name: "",
    bucket: "128k",
    block: "4k",
    cache_bytes: 128 * MIB,
    backing_bytes: &[64 * MIB],
    version: 0,
    work: "",
    depth_min: 0,
    gen_min: 0,
    flash_only: false,
    overwritten: false,
    extents: 0,
    built: Built { fill_percent: 24, inner_fill_percent: 24, levels: 4 },
};

/// Sets with much behind them.
const WORN: [Plan; 3] = [
    Plan {
        name: "several",
        bucket: "128k",
        cache_bytes: 128 * MIB,
        backing_bytes: &[96 * MIB, 64 * MIB],
        work: "
            echo 16M >/sys/fs/bcache/$set/flash_vol_create
            wait_for 10 ls -d /sys/fs/bcache/$set/volume*
            flash=$(basename \"$(dirname \"$(readlink /sys/fs/bcache/$set/volume*)\")\")
            mode writethrough; scatter $first 60 97 20000
            mode writeback; scatter $first 60 31 20000; scatter $second 60 53 15000
            scatter /dev/$flash 40 29 4000
            sum flash-only /dev/$flash",
        flash_only: true,
        ..PLAIN
    },
    Plan {
        name: "reused",
        bucket: "64k",
        cache_bytes: 34 * MIB,
        backing_bytes: &[64 * MIB],
        work: "
            mode writethrough
            for pass in 1 2; do
                at=0
                while [ $at -lt 15 ]; do
                    dd if=/data of=$first bs=1M seek=$((at * 4)) count=4 oflag=direct 2>/dev/null
                    at=$((at + 1))
                done
            done",
        gen_min: 4,
        ..PLAIN
    },
    Plan {
        name: "small",
        bucket: "4k",
        // A btree node has to have two blocks.
        block: "2k",
        cache_bytes: 64 * MIB,
        backing_bytes: &[80 * MIB],
        version: 3,
        // Two levels, and a root that has room for a few nodes more: the kernel makes the third. Each
        // block goes to a bucket, and has a key, of its own.
        extents: 9_000,
        built: Built { fill_percent: 90, inner_fill_percent: 150, levels: 2 },
        work: "
            mode writethrough
            fill() {
                # Slower than the allocator thread: its reserve is of 16 buckets.
                part=0
                while [ $part -lt 160 ]; do
                    dd if=/data of=$first bs=4k count=12 seek=$((part * 12)) oflag=direct 2>/dev/null
                    usleep 10000
                    part=$((part + 1))
                done
            }
            until_so fill tree_depth -ge 2
            mode writeback; scatter $first 100 71 12000",
        depth_min: 2,
        overwritten: true,
        ..PLAIN
    },
];

/// Sets of other shapes, and one whose power is cut.
const SHAPED: [Plan; 4] = [
    Plan {
        name: "deep",
        bucket: "4k",
        block: "2k",
        cache_bytes: 64 * MIB,
        backing_bytes: &[96 * MIB],
        version: 3,
        work: "
            mode writethrough; scatter $first 60 97 16000
            mode writeback; scatter $first 100 71 16000",
        depth_min: 3,
        extents: 10_000,
        ..PLAIN
    },
    Plan {
        name: "medium",
        bucket: "1M",
        cache_bytes: 600 * MIB,
        backing_bytes: &[64 * MIB],
        work: CLEAN_AND_DIRTY,
        ..PLAIN
    },
    Plan {
        name: "large",
        bucket: "32M",
        cache_bytes: 600 * 32 * MIB,
        backing_bytes: &[64 * MIB],
        version: 5,
        work: CLEAN_AND_DIRTY,
        ..PLAIN
    },
    CUT,
];

const CUT: Plan = Plan {
    name: "cut",
    bucket: "128k",
    cache_bytes: 128 * MIB,
    backing_bytes: &[96 * MIB],
    // Entries with many keys, as the kernel writes them unless it is told otherwise.
    work: "
        echo 100 >/sys/fs/bcache/$set/journal_delay_ms
        mode writethrough; scatter $first 40 97 20000
        mode writeback; scatter $first 200 31 20000",
    ..PLAIN
};

/// What every plan uses. `start` registers the devices of the set and sets `first` and `second` to
/// its bcache devices; nothing is sent past the cache, nothing is written back.
const FUNCTIONS: &str = "
    volume_of() {
        wait_for 20 test -e /sys/block/$1/bcache/dev
        basename \"$(readlink /sys/block/$1/bcache/dev)\"
    }
    start() {
        for disk in $backing $cache; do register /dev/$disk; done
        wait_for 20 test -d /sys/fs/bcache/$set
        first= second=
        for disk in $backing; do
            wait_for 20 test -e /sys/block/$disk/bcache/cache
            volume=$(volume_of $disk)
            if [ -z \"$first\" ]; then first=/dev/$volume; else second=/dev/$volume; fi
            echo 0 >/sys/block/$volume/bcache/sequential_cutoff
            echo 0 >/sys/block/$volume/bcache/writeback_running
        done
        echo 0 >/sys/fs/bcache/$set/congested_read_threshold_us
        echo 0 >/sys/fs/bcache/$set/congested_write_threshold_us
        # Each of the small writes waits for the journal, which waits for more to come: 100 ms.
        echo 1 >/sys/fs/bcache/$set/journal_delay_ms
    }
    mode() {
        for disk in $backing; do echo $1 >/sys/block/$disk/bcache/cache_mode; done
    }
    tree_depth() { cat /sys/fs/bcache/$set/tree_depth; }
    # until_so WORK FIGURE TEST NUMBER: does WORK, again and again until FIGURE is what it has to be.
    # Once is not always enough: in writethrough mode the kernel does not wait for a bucket. A write
    # for which none is ready goes past the cache, and on a busy host that is many.
    until_so() {
        rounds=0
        while [ $rounds -lt 30 ]; do
            rounds=$((rounds + 1))
            $1
            figure=$($2)
            if [ \"$figure\" $3 $4 ]; then
                echo \"until_so: $2 is $figure after $rounds times $1\"
                return 0
            fi
            # Seen with kernel 6.1: three of four writes went past the cache, and took what was cached there along.
            if [ $((rounds % 5)) = 0 ]; then
                echo \"until_so: $2 is $figure after $rounds times $1, and the set is registered again:\"
                for file in cache_available_percent stats_total/cache_bypass_misses \
                    stats_total/bypassed internal/btree_nodes cache0/written \
                    cache0/priority_stats; do
                    echo \"    $file $(cat /sys/fs/bcache/$set/$file 2>&1 | tr '\\n' ' ')\"
                done
                stop_all
                start
            fi
        done
        echo \"until_so: $2 is $figure after $rounds times $1, not $3 $4\"
        return 1
    }
    # scatter DEV COUNT STRIDE BLOCKS: COUNT writes of 4 to 16 KiB, STRIDE blocks apart.
    scatter() {
        i=0
        while [ $i -lt $2 ]; do
            dd if=/data of=$1 bs=4k count=$((i % 4 + 1)) skip=$((i * 7 % 1000)) \\
                seek=$((i * $3 % $4)) conv=notrunc oflag=direct 2>/dev/null
            i=$((i + 1))
        done
    }
    # sum NAME DEV: of a whole device, under another name.
    sum() {
        md5 $2 | sed \"s,$2,$1,\"
    }
    # Runs GC until one finds what the one before has left: btree_nodes counts the nodes that a GC found,
    # before it put small ones together, and each goes only as far as its reserve of buckets does. No
    # figure is taken while one runs, for it begins by clearing all marks.
    collect() {
        internal=/sys/fs/bcache/$set/internal
        # How long ago the last one ended is told in whole seconds, and -1 before the first. On a busy
        # host seconds pass between two looks: what counts is when it ended.
        since_gc() { cat $internal/btree_gc_last_sec; }
        gc_end() {
            while :; do
                read -r early _ </proc/uptime
                age=$(since_gc)
                read -r late _ </proc/uptime
                [ $((${late%.*} - ${early%.*})) -gt 1 ] || break
            done
            case $age in -1) echo -9 ;; *) echo $((${early%.*} - age)) ;; esac
        }
        gc_ended() { [ $(gc_end) -ge $((before + 2)) ]; }
        nodes= gcs=0
        while [ $gcs -lt 40 ]; do
            gcs=$((gcs + 1))
            # One look for both: a GC that ends between two would be taken for the one before, and the
            # next, which may end in the same second, would not count.
            while :; do
                before=$(gc_end)
                read -r now _ </proc/uptime
                [ $((${now%.*} - before)) -lt 4 ] || break
                usleep 200000
            done
            echo 1 >$internal/trigger_gc
            wait_for 120 gc_ended
            usleep 200000
            found=$(cat $internal/btree_nodes)
            [ \"$found\" != \"$nodes\" ] || return 0
            nodes=$found
        done
        echo \"collect: the btree has not settled, $nodes nodes\"
        return 1
    }
    figures() {
        set_figures $set
        bdev_figures $backing
    }
";

/// A plan's devices.
struct Devices {
    plan: &'static Plan,
    cache: PathBuf,
    backing: Vec<PathBuf>,
    set_uuid: String,
}

impl Devices {
    fn make(plan: &'static Plan, scratch: &Scratch) -> anyhow::Result<Self> {
        let cache = scratch.sparse(&format!("{}-cache", plan.name), plan.cache_bytes)?;
        let mut backing = Vec::new();
        for (index, bytes) in plan.backing_bytes.iter().enumerate() {
            backing.push(scratch.sparse(&format!("{}-back{index}", plan.name), *bytes)?);
        }
        if plan.extents > 0 {
            let set_uuid = build(plan, &cache, backing.first().context("no backing device")?)?;
            return Ok(Self { plan, cache, backing, set_uuid });
        }
        let mut arguments = vec!["--bucket".into(), plan.bucket.into()];
        arguments.extend(["--block".into(), plan.block.into(), "--cache".into()]);
        arguments.push(cache.clone().into_os_string());
        arguments.push("--bdev".into());
        arguments.extend(backing.iter().map(|path| path.clone().into_os_string()));
        let made = tool::make(arguments)?;
        let first = made.first().context("no device")?;
        ensure!(tool::number(first, "/superblock/version")? == plan.version, "{first}");
        let set_uuid = tool::text(first, "/superblock/set_uuid")?.to_owned();
        Ok(Self { plan, cache, backing, set_uuid })
    }

    fn disks(&self) -> impl Iterator<Item = &PathBuf> {
        self.backing.iter().chain([&self.cache])
    }
}

/// Writes a cache with `plan.extents` clean extents, and a backing device attached to it, all zeroes: the
/// UUID of the set.
fn build(plan: &Plan, cache: &Path, backing: &Path) -> anyhow::Result<String> {
    let volume = backing_volume(1);
    let bucket_size = Sectors(parse_bytes(plan.bucket)? / 512);
    let nbuckets = plan.cache_bytes / bucket_size.bytes();
    let builder = SetBuilder {
        nbuckets,
        bucket_size,
        block_size: u16::try_from(parse_bytes(plan.block)? / 512)?,
        njournal: u16::try_from(nbuckets / 128)?,
        fill_percent: plan.built.fill_percent,
        inner_fill_percent: Some(plan.built.inner_fill_percent),
        volumes: vec![volume.clone()],
        ..SetBuilder::default()
    };
    let first = builder.data_buckets(0).start;
    let extent = |n: u64| {
        let bucket_gen = (builder.bucket_disk)(first + n).bucket_gen;
        let ptr = Ptr::new(bucket_gen, Sectors((first + n) * bucket_size.0), 0);
        // A gap behind each, so that none are merged; the backing device's own superblock before all.
        Bkey::new(0, (n + 1) * 16 + 8, 8).with_ptrs(&[ptr])
    };
    let built = builder.write(&open_write(cache)?, (0..plan.extents).map(extent))?;
    ensure!(built.root.0 + 1 == plan.built.levels, "a btree of level {}", built.root.0);

    let superblock = built.backing_superblock(
        &volume,
        BDEV_DATA_START_DEFAULT,
        CacheMode::Writethrough,
        BackingState::Clean,
    );
    write_at(backing, SB_OFFSET_BYTES, superblock.as_bytes())?;
    Ok(built.superblock.set_uuid().to_string())
}

/// The variables that the script's functions use, for disks from number `first` on.
fn variables(devices: &Devices, first: usize) -> String {
    let name = |index| Guest::disk_name(index).trim_start_matches("/dev/").to_owned();
    let backing: Vec<String> = (first..first + devices.backing.len()).map(name).collect();
    format!(
        "stage {}\nset={}\nbacking='{}'\ncache={}\nstart\n",
        devices.plan.name,
        devices.set_uuid,
        backing.join(" "),
        name(first + devices.backing.len())
    )
}

fn sums(devices: &Devices) -> String {
    let mut script = String::new();
    for (index, volume) in (0..devices.backing.len()).zip(["$first", "$second"]) {
        let _ = writeln!(script, "sum back{index} {volume}");
    }
    script
}

fn reads_what_it_wrote(kernel: Kernel, plans: &'static [Plan]) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut data = vec![0; 4 << 20];
    rand_pcg::Pcg64::seed_from_u64(3).fill_bytes(&mut data);
    let mut guest =
        Guest::new(kernel).file("/data", data).sums_by_host().timeout(Duration::from_secs(1500));
    let mut script = FUNCTIONS.to_owned();
    let mut sets = Vec::new();
    let mut disks = 0;
    for plan in plans {
        let devices = Devices::make(plan, &scratch)?;
        script += &variables(&devices, disks);
        script += plan.work;
        script.push('\n');
        script += &sums(&devices);
        script += "collect\nfigures\n";
        if plan.name == CUT.name {
            // Cut while writes are on their way, from two places at once.
            script += "
                scatter $first 2000 11 20000 &
                scatter $first 2000 17 19000 &
                sleep 2
                crash";
        } else {
            script += "stop_all\n";
        }
        for disk in devices.disks() {
            guest = guest.disk(disk);
            disks += 1;
        }
        sets.push(devices);
    }
    let run = guest.script(script).run()?;
    let cut = (sets.last().is_some_and(|devices| devices.plan.name == CUT.name))
        .then(|| sets.pop())
        .flatten();
    let run = if cut.is_some() { run.cut()? } else { run.ok()? }.without_errors()?;
    for devices in &sets {
        let again = kernel == Kernel::Newest;
        compare(devices, &run, again)
            .with_context(|| format!("{}\n{}", devices.plan.name, run.tail()))?;
    }
    cut.map_or(Ok(()), |cut| compare_after_cut(&cut, &run, kernel).context("cut"))
}

/// What `bcachectl show` says of a cache; also that neither it nor a check finds anything wrong.
fn shown(devices: &Devices) -> anyhow::Result<Value> {
    let mut arguments = vec!["--json".into(), devices.cache.clone().into_os_string()];
    arguments.extend(devices.backing.iter().map(|path| path.clone().into_os_string()));
    let mut show = tool::bcachectl()?;
    let output = show.args(["show", "--usage", "--journal"]).args(&arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "show: {}\n{text}", output.status);
    let document: Value = serde_json::from_str(&text)?;
    let device = document["devices"][0].clone();
    ensure!(device["problems"] == Value::Array(Vec::new()), "{}", device["problems"]);
    ensure!(device["kernel"]["accepts"] == true, "{}", device["kernel"]);

    let output = tool::bcachectl()?.args(["check", "--verify-clean"]).args(&arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "check: {}\n{text}", output.status);
    let report: Value = serde_json::from_str(&text)?;
    ensure!(report["findings"] == Value::Array(Vec::new()), "check: {text}");
    Ok(device)
}

/// Most buckets that the kernel holds back for its reserves (docs/on-disk-format.md §9.2).
fn reserved(nbuckets: u64) -> u64 {
    let fifo = |request: u64| if request <= 4 { request } else { request.next_power_of_two() - 1 };
    let free = nbuckets.next_power_of_two() >> 10;
    let btree = fifo((nbuckets >> 7).clamp(8, 256));
    // Twice the prio sets: those of the reserve, and those of the chain before.
    let prios = 2 * (1 + nbuckets / 1000);
    btree + prios + 2 * fifo(free) + fifo(free * 4)
}

fn figures(log: &Log, name: &str) -> anyhow::Result<(Log, SetFigures)> {
    let log = log.stage(name).with_context(|| format!("no stage {name}"))?;
    let figures = log.set_figures()?;
    Ok((log, figures))
}

/// A stopped set: every figure is the kernel's. `again`: the kernel's GC stops every few nodes, comes back
/// from the root, and counts the nodes on its way again, so that its figure is too large.
fn compare(devices: &Devices, run: &GuestRun, again: bool) -> anyhow::Result<()> {
    let plan = devices.plan;
    let (log, kernel) = figures(&run.log, plan.name)?;
    let device = shown(devices)?;
    let usage = |name: &str| tool::number(&device, &format!("/usage/{name}"));
    let stats = &kernel.caches.first().context("no cache")?.priority_stats;
    let nbuckets = usage("buckets/total")?;
    ensure!(nbuckets == kernel.caches[0].nbuckets);

    let percent = |name: &str| usage(&format!("percent/{name}"));
    let same = |name: &str, ours: u64, theirs: u64| {
        ensure!(ours == theirs, "{name}: ours {ours}, the kernel's {theirs}\n{kernel:?}");
        Ok(())
    };
    same("dirty", percent("dirty")?, stats.dirty)?;
    same("metadata", percent("metadata")?, stats.metadata)?;
    let nodes = usage("btree/nodes")?;
    if again {
        ensure!(nodes <= kernel.btree_nodes, "{nodes} nodes, the kernel's {}", kernel.btree_nodes);
    } else {
        same("btree nodes", nodes, kernel.btree_nodes)?;
        same("btree used", usage("btree/used_percent")?, kernel.btree_used_percent)?;
    }
    same("depth", usage("btree/depth")?, kernel.tree_depth)?;
    same("root usage", usage("btree/root_used_percent")?, kernel.root_usage_percent)?;
    ensure!(kernel.tree_depth >= plan.depth_min, "the btree has depth {}", kernel.tree_depth);

    // Buckets that wait in the kernel's reserves keep, in its memory, the mark of what they held;
    // on the device their gens are raised already, so that nothing points to them. And they are not
    // available to it, nor are the buckets that are open for writing, up to 128.
    let reserved = reserved(nbuckets);
    let between = |name: &str, ours: u64, theirs: u64, slack: u64| {
        let most = theirs + (slack * 100).div_ceil(nbuckets);
        ensure!((theirs..=most).contains(&ours), "{name}: ours {ours}, the kernel's {theirs}");
        Ok(())
    };
    if plan.gen_min > 0 {
        between("unused", percent("unused")?, stats.unused, reserved)?;
        between("clean", stats.clean, percent("clean")?, reserved)?;
    } else if plan.overwritten {
        for (name, theirs) in [("unused", stats.unused), ("clean", stats.clean)] {
            let ours = percent(name)?;
            ensure!(ours.abs_diff(theirs) <= 1, "{name}: ours {ours}, the kernel's {theirs}");
        }
    } else {
        same("unused", percent("unused")?, stats.unused)?;
        same("clean", percent("clean")?, stats.clean)?;
    }
    between("available", usage("available_percent")?, kernel.available_percent, reserved + 128)?;

    let set = Set::new(devices)?;
    set.read(|set, backing| {
        for (index, backing) in backing.iter().enumerate() {
            let name = format!("back{index}");
            let theirs = log.md5(&name).context("no sum")?;
            ensure!(md5_of_backing(set, *backing)? == theirs, "{name} reads differently");
        }
        if plan.flash_only {
            let (slot, _) =
                set.uuids.used().find(|(_, entry)| entry.flash_only()).context("no volume")?;
            let theirs = log.md5("flash-only").context("no sum")?;
            ensure!(md5_of_flash_only(set, slot)? == theirs, "the flash-only volume differs");
        }
        let gen_max = set.table.as_slice().iter().map(|bucket| bucket.bucket_gen().0).max();
        ensure!(u64::from(gen_max.unwrap_or(0)) >= plan.gen_min, "gens only up to {gen_max:?}");
        Ok(())
    })?;
    same_dirty_data(devices, &device, |index| backing_figure(devices, &log, index))
}

/// `dirty_data` of each backing device, in the kernel's rounded form.
fn same_dirty_data(
    devices: &Devices,
    device: &Value,
    kernel: impl Fn(usize) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    for index in 0..devices.backing.len() {
        let ours = dirty_sectors(devices, device, index)?;
        let theirs = kernel(index)?;
        let rounded = bcache_tests::kernel::rounded_size(ours * 512);
        ensure!(rounded == theirs, "dirty data: ours {rounded}, the kernel's {theirs}");
    }
    Ok(())
}

fn dirty_sectors(devices: &Devices, device: &Value, index: usize) -> anyhow::Result<u64> {
    let path = devices.backing.get(index).context("no such device")?.to_str();
    let volumes = device["usage"]["volumes"].as_array().context("no volumes")?;
    let volume = volumes.iter().find(|volume| volume["backing"].as_str() == path);
    tool::number(volume.context("no volume names the device")?, "/dirty_sectors")
}

fn backing_figure(devices: &Devices, log: &Log, index: usize) -> anyhow::Result<String> {
    // Disks were numbered through all sets: the names in the stage's own figures are in order.
    let names: Vec<String> =
        (0..64).map(Guest::disk_name).filter(|name| log.backing_figures(name).is_ok()).collect();
    ensure!(names.len() == devices.backing.len(), "figures of {names:?}");
    Ok(log.backing_figures(&names[index])?.dirty_data)
}

/// The images of a set, opened.
struct Set {
    cache: bcache_core::device::FileReader,
    backing: Vec<bcache_core::device::FileReader>,
}

impl Set {
    fn new(devices: &Devices) -> anyhow::Result<Self> {
        let backing = devices.backing.iter().map(open_read).collect::<Result<_, _>>()?;
        Ok(Self { cache: open_read(&devices.cache)?, backing })
    }

    fn read(
        &self,
        check: impl FnOnce(&CacheSet<'_>, &[&dyn ReadDevice]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let cache = CacheDevice::open(&self.cache)?;
        let set = CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor)?;
        let backing: Vec<_> = self.backing.iter().map(|file| file as &dyn ReadDevice).collect();
        check(&set, &backing)
    }
}

/// The set whose power was cut: it has at least what the kernel last said, there are keys to be
/// replayed, and its volume reads as the kernel reads it after the cut.
fn compare_after_cut(devices: &Devices, run: &GuestRun, kernel: Kernel) -> anyhow::Result<()> {
    let (log, before) = figures(&run.log, devices.plan.name)?;
    let device = shown(devices)?;
    ensure!(tool::number(&device, "/journal/replay_keys")? > 0, "nothing to replay");
    ensure!(tool::number(&device, "/usage/btree/depth")? >= before.tree_depth);
    let dirty = dirty_sectors(devices, &device, 0)?;
    let then = backing_figure(devices, &log, 0)?;
    // Far more was dirty before the cut than a whole unit of what the kernel rounds to.
    let whole: u64 = then.split('.').next().unwrap_or_default().parse()?;
    ensure!(then.ends_with('M') && whole > 0, "{then} dirty before the cut");
    ensure!(dirty * 512 >= whole * MIB, "{dirty} dirty sectors, {then} before the cut");

    let snapshot = DiskOptions { snapshot: true, ..Default::default() };
    let mut guest = Guest::new(kernel);
    for disk in devices.disks() {
        guest = guest.disk_with(disk, snapshot);
    }
    let script = format!(
        "{FUNCTIONS}{}bdev_figures $backing\nset_figures $set\n{}stop_all",
        variables(devices, 0),
        sums(devices)
    );
    let after = guest.script(script).run()?.ok()?.without_errors()?;
    let log = after.log.stage(devices.plan.name).context("no stage")?;
    same_replay(&device, &log)?;
    let stats = &log.set_figures()?.caches.first().context("no cache")?.priority_stats.clone();
    let theirs = log.md5("back0").context("no sum")?;
    Set::new(devices)?.read(|set, backing| {
        same_ages(set, stats)?;
        let ours = md5_of_backing(set, *backing.first().context("no backing device")?)?;
        ensure!(ours == theirs, "the volume reads differently after the cut");
        Ok(())
    })?;
    // From registration until the script stops it, the kernel writes back (some 500 KiB a second at
    // first): it may be left with less than it found, and never more.
    let left = backing_figure(devices, &log, 0)?;
    // Tenths of a KiB; the smaller it is, the smaller the unit that the kernel chooses.
    let tenths = |figure: &str| -> anyhow::Result<u64> {
        let (number, scale) = match (figure.strip_suffix('k'), figure.strip_suffix('M')) {
            (Some(number), _) => (number, 1),
            (_, Some(number)) => (number, 1024),
            _ => anyhow::bail!("{figure} is neither KiB nor MiB"),
        };
        let (whole, tenth) = number.split_once('.').context("no fraction")?;
        Ok((whole.parse::<u64>()? * 10 + tenth.parse::<u64>()?) * scale)
    };
    let found = bcache_tests::kernel::rounded_size(dirty * 512);
    ensure!(tenths(&left)? > 0, "nothing dirty after the cut");
    ensure!(tenths(&left)? <= tenths(&found)?, "{left} dirty, of {found} that were found");
    Ok(())
}

/// What the kernel says of replay: keys, entries and the last sequence number are those that we found
/// in the same journal before.
fn same_replay(device: &Value, log: &Log) -> anyhow::Result<()> {
    let line = log
        .kernel_lines()
        .find(|line| line.contains("journal replay done"))
        .context("the kernel says nothing of replay")?;
    let number = |name: &str| tool::number(device, &format!("/journal/{name}"));
    let ours = format!(
        "journal replay done, {} keys in {} entries, seq {}",
        number("replay_keys")?,
        number("replay_entries")?,
        number("last_seq")?
    );
    ensure!(line.ends_with(&ours), "{ours:?}, the kernel says {line:?}");
    Ok(())
}

/// Ages as the kernel shows them right after registration, within what registration itself changes:
/// the buckets that go to its reserves become young, and the reading of a partition table, or
/// another first request, ages all others by one.
fn same_ages(set: &CacheSet<'_>, kernel: &PriorityStats) -> anyhow::Result<()> {
    let geometry = set.geometry();
    let ours = set.priority_stats();
    let first = usize::try_from(geometry.first_bucket().0)?;
    let prios = set.table.as_slice().iter().skip(first).map(|bucket| bucket.prio().0);
    let mut ages: Vec<u16> = prios
        .filter(|&prio| prio != 0 && prio != u16::MAX)
        .map(|prio| 32768u16.saturating_sub(prio))
        .collect();
    ages.sort_unstable();
    let moved = reserved(geometry.nbuckets());
    let sectors = moved * geometry.bucket_size().0;
    ensure!(
        ours.sectors_per_quantile.abs_diff(kernel.sectors_per_quantile) <= sectors / 32 + 1,
        "sectors per quantile: ours {}, the kernel's {}",
        ours.sectors_per_quantile,
        kernel.sectors_per_quantile
    );
    ensure!(ages.len() as u64 > 2 * moved, "{} buckets have an age", ages.len());
    ensure!(ages.last() > Some(&1), "all buckets are of one age");
    let moved = usize::try_from(moved)?;
    ensure!(kernel.quantiles.len() == 31, "{kernel:?}");
    for (i, &theirs) in (1..).zip(&kernel.quantiles) {
        let rank = ages.len() * i / 32;
        let youngest = ages.get(rank.saturating_sub(moved)).copied().unwrap_or(0);
        let oldest = ages.get((rank + moved).min(ages.len() - 1)).copied().unwrap_or(0);
        let between = u64::from(youngest)..=u64::from(oldest) + 1;
        ensure!(between.contains(&theirs), "quantile {i}: {theirs}, ours {between:?}\n{ours:?}");
    }
    let share = moved as u64 * ages.last().map_or(0, |&age| u64::from(age)) / ages.len() as u64;
    ensure!(
        ours.average.abs_diff(kernel.average) <= share + 2,
        "average age: ours {}, the kernel's {}",
        ours.average,
        kernel.average
    );
    Ok(())
}
