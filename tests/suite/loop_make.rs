//! `bcachectl make` and `show` on loop devices, which are block devices like any other: sector
//! sizes, devices in use, discards, progress, and a device that fails in the middle.

use anyhow::{Context as _, ensure};
use bcache_core::device::testkit::partition_table;
use bcache_core::layout::superblock::Superblock;
use bcache_core::units::Sectors;
use bcache_tests::fault::{FullLoop, with_writes_refused_from};
use bcache_tests::image::{Contents, write_at};
use bcache_tests::need::find_program;
use bcache_tests::terminal::Terminal;
use bcache_tests::tool::{bcachectl, number, run, show, text};
use bcache_tests::{Fixture, LoopDevice, Need, Scratch, binary, main_with, trial};
use nix::libc;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

const MIB: u64 = 1 << 20;
const LOOP: &[Need] = &[Need::LoopDevices];

fn main() -> ExitCode {
    let mkfs = &[Need::LoopDevices, Need::Program("mkfs.ext4", "e2fsprogs")];
    main_with(vec![
        trial("loop_sector_sizes", LOOP, sector_sizes),
        trial("loop_claimed_by_another_process", LOOP, claimed),
        trial("loop_mounted", mkfs, mounted),
        trial("loop_cache_in_use", LOOP, cache_in_use),
        trial("loop_reading_an_image", LOOP, image_behind_a_loop_device),
        trial("loop_show_does_not_write_back", mkfs, show_does_not_write_back),
        trial("loop_read_only", LOOP, read_only),
        trial("loop_disk_and_its_partition", LOOP, disk_and_its_partition),
        trial("loop_partitions_are_forgotten", LOOP, partitions_are_forgotten),
        trial("loop_partitions_are_forgotten_by_repair", LOOP, partitions_forgotten_by_repair),
        trial("loop_overview", LOOP, overview),
        trial("loop_reused_set_uuid", LOOP, reused_set_uuid),
        trial("images_of_a_failed_run", &[Need::Root], images_of_a_failed_run),
        trial("loop_partition_in_use", mkfs, partition_in_use),
        trial("loop_discard", LOOP, discard),
        trial("loop_progress", LOOP, progress),
        trial("loop_second_of_three_fails", LOOP, second_of_three_fails),
        trial("loop_same_device_by_two_names", LOOP, same_device),
        trial("image_write_is_refused", &[Need::Program("prlimit", "util-linux")], refused_write),
    ])
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Runs `bcachectl make` and demands that it refuses, naming each of `words`, with the image as it
/// was; also where every override is given.
fn refused(image: &Path, arguments: &[&Path], words: &[&str]) -> anyhow::Result<()> {
    let before = Contents::of(image)?;
    for options in [&["-B"] as &[_], &["--wipe-bcache", "--force", "--yes", "-B"], &["-n", "-C"]] {
        let output = bcachectl()?.arg("make").args(options).args(arguments).output()?;
        let said = stderr(&output);
        ensure!(output.status.code() == Some(1), "{options:?} {arguments:?}: {said}");
        for word in words {
            ensure!(said.contains(word), "{options:?} {arguments:?}: no {word:?} in {said}");
        }
        ensure!(said.lines().count() == 1, "{said}");
    }
    ensure!(Contents::of(image)? == before, "the image was written");
    Ok(())
}

fn sector_sizes() -> anyhow::Result<()> {
    for sector_size in [512, 4096] {
        let scratch = Scratch::new()?;
        let cache = scratch.sparse("cache", 40 * MIB)?;
        let backing = scratch.sparse("backing", 9 * MIB)?;
        let cache = LoopDevice::attach(&cache, sector_size)?;
        let backing_loop = LoopDevice::attach(&backing, 512)?;
        let before = Contents::of(&backing)?;
        // The blocks of both are those of the one with the larger sectors.
        let make = |options: &[&str]| -> anyhow::Result<Output> {
            let mut command = bcachectl()?;
            command.arg("make").args(options).arg("-C").arg(cache.path());
            Ok(command.arg("-B").arg(backing_loop.path()).output()?)
        };
        if sector_size == 4096 {
            for (options, word) in [(["-w", "512"], "--block"), (["-o", "17"], "--data-offset")] {
                let output = make(&options)?;
                ensure!(output.status.code() == Some(1) && stderr(&output).contains(word));
            }
            ensure!(Contents::of(&backing)? == before, "a refused make wrote");
        }
        let output = make(&[])?;
        ensure!(output.status.success(), "{}", stderr(&output));
        for device in [&cache, &backing_loop] {
            let shown = show(device.path())?;
            let blocks = number(&shown, "/superblock/block_size_sectors")?;
            ensure!(blocks == u64::from(sector_size) / 512, "{shown}");
            ensure!(Path::new(text(&shown, "/path")?) == device.path(), "{shown}");
        }
        let shown = show(backing_loop.path())?;
        let losetup = text(&shown, "/data/losetup")?;
        let device = backing_loop.path().display().to_string();
        ensure!(losetup.ends_with(&format!("--offset 8192 {device}")), "{losetup}");
        ensure!(fs::read(&backing)?[..4096].iter().all(|byte| *byte == 0));
    }
    Ok(())
}

fn claimed() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    let device = LoopDevice::attach(&image, 512)?;
    let other_image = scratch.sparse("other", 40 * MIB)?;
    let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path())?;
    let output = bcachectl()?.args(["make", "-B"]).arg(&other_image).arg(device.path()).output()?;
    let said = stderr(&output);
    let name = device.path().display().to_string();
    ensure!(output.status.code() == Some(1) && said.contains("in use"), "{said}");
    ensure!(said.contains(&name), "{said}");
    // A dry run finds it out too.
    let output = bcachectl()?.args(["make", "-n", "-B"]).arg(device.path()).output()?;
    let said = stderr(&output);
    ensure!(output.status.code() == Some(1) && said.contains("in use"), "{said}");
    // The other device could have been formatted; no byte of it was written.
    ensure!(fs::metadata(&other_image)?.blocks() == 0, "the other device was written");
    // Looking is possible.
    let output = run([Path::new("show"), device.path()])?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("no bcache device"));
    drop(claim);
    let output = bcachectl()?.args(["make", "-B"]).arg(device.path()).output()?;
    ensure!(output.status.success(), "{}", stderr(&output));
    Ok(())
}

/// What is held by somebody is read all the same, with a warning, and is not safe to wipe.
fn cache_in_use() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let on_it = |command: &str, options: &[&str]| -> anyhow::Result<Output> {
        Ok(bcachectl()?.arg(command).args(options).arg(&fixture.cache).output()?)
    };
    let show = |options: &[&str]| on_it("show", options);
    let check = |options: &[&str]| on_it("check", options);
    let warns = |output: &Output| stderr(output).contains("is in use");
    let free = show(&["--dirty"])?;
    ensure!(free.status.code() == Some(0) && !warns(&free), "{}", stderr(&free));
    let held = LoopDevice::attach(&fixture.cache, 512)?;
    let name = held.path().file_name().context("a name")?.to_string_lossy().into_owned();

    let dirty = show(&["--dirty"])?;
    ensure!(dirty.status.code() == Some(5), "{}: {}", dirty.status, stderr(&dirty));
    let words = String::from_utf8_lossy(&dirty.stdout);
    ensure!(words.contains("not safe to wipe now") && warns(&dirty), "{words}");
    for options in [&["--json"] as &[_], &["--json", "--usage"]] {
        let output = show(options)?;
        ensure!(output.status.success() && warns(&output), "{options:?}: {}", stderr(&output));
        let document: Value = serde_json::from_slice(&output.stdout)?;
        let device = &document["devices"][0];
        ensure!(device["dirty"]["answer"] == "none", "{device}");
        ensure!(device["dirty"]["safe_to_wipe"] == false, "{device}");
        ensure!(device["in_use"].to_string().contains(&name), "{}", device["in_use"]);
    }
    let checked = check(&["--json"])?;
    ensure!(checked.status.success() && warns(&checked), "{}", stderr(&checked));
    let report: Value = serde_json::from_slice(&checked.stdout)?;
    ensure!(report["in_use"].to_string().contains(&name), "{}", report["in_use"]);

    // The loop device itself, held by nobody.
    let output = bcachectl()?.args(["show", "--dirty"]).arg(held.path()).output()?;
    ensure!(output.status.code() == Some(0) && !warns(&output), "{}", stderr(&output));
    Ok(())
}

/// A mounted file system, unmounted with the value.
struct Mounted(PathBuf);

impl Mounted {
    fn new(device: &Path, at: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&at)?;
        let status = program("mount")?.arg(device).arg(&at).status()?;
        ensure!(status.success(), "mount of {} failed", device.display());
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = program("umount").and_then(|mut it| Ok(it.arg(&self.0).status()?));
        if !matches!(unmounted, Ok(status) if status.success()) {
            eprintln!("{} could not be unmounted: {unmounted:?}", self.0.display());
        }
    }
}

fn program(name: &str) -> anyhow::Result<Command> {
    Ok(Command::new(find_program(name).with_context(|| format!("{name} is missing"))?))
}

fn mkfs(device: &Path) -> anyhow::Result<()> {
    let output = program("mkfs.ext4")?.args(["-q", "-F", "-L", "my-files"]).arg(device).output()?;
    ensure!(output.status.success(), "mkfs.ext4: {}", stderr(&output));
    Ok(())
}

fn mounted() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    let device = LoopDevice::attach(&image, 512)?;
    mkfs(device.path())?;
    let mounted = Mounted::new(device.path(), scratch.path("mounted"))?;
    let at = mounted.0.display().to_string();
    for options in [&["-B"] as &[_], &["--wipe-bcache", "--force", "--yes", "-C"]] {
        let output = bcachectl()?.arg("make").args(options).arg(device.path()).output()?;
        let said = stderr(&output);
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(
            said.contains("in use") && said.contains("mounted at") && said.contains(&at),
            "{said}"
        );
        ensure!(said.contains("ext4"), "{said}");
    }
    // It is shown with who holds it.
    let output = run([Path::new("show"), device.path()])?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(printed.contains(&at) && printed.contains("my-files"), "{printed}");
    fs::write(mounted.0.join("file"), "still here")?;
    drop(mounted);
    // Unmounted, it is still somebody's file system.
    let output = bcachectl()?.args(["make", "-C"]).arg(device.path()).output()?;
    let said = stderr(&output);
    ensure!(output.status.code() == Some(1) && said.contains("my-files"), "{said}");
    let output = bcachectl()?.args(["make", "-f", "-C"]).arg(device.path()).output()?;
    ensure!(output.status.success(), "{}", stderr(&output));
    let mut blkid = program("blkid")?;
    let output = blkid.args(["-p", "-o", "value", "-s", "TYPE"]).arg(device.path()).output()?;
    let types = String::from_utf8(output.stdout)?;
    ensure!(types.trim() == "bcache", "{types}");
    Ok(())
}

fn image_behind_a_loop_device() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    let device = LoopDevice::attach(&image, 512)?;
    let name = device.path().file_name().context("a name")?.to_string_lossy().into_owned();
    refused(&image, &[&image], &["in use", &name])?;
    // And with the device itself: it is the same, under the kernel's eyes.
    refused(&image, &[device.path(), &image], &["in use", &name])?;
    drop(device);
    let output = bcachectl()?.args(["make", "-B"]).arg(&image).output()?;
    ensure!(output.status.success(), "{}", stderr(&output));
    Ok(())
}

fn read_only() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    let device = LoopDevice::attach(&image, 512)?;
    ensure!(program("blockdev")?.arg("--setro").arg(device.path()).status()?.success());
    let result = refused(&image, &[device.path()], &["read-only"]);
    // The kernel keeps the flag for the device's next user.
    ensure!(program("blockdev")?.arg("--setrw").arg(device.path()).status()?.success());
    result
}

/// A partition of the device is mounted: neither it nor the whole device may be written.
fn partition_in_use() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    write_at(&image, 0, &partition_table(Sectors(2048), Sectors(20 << 11)))?;
    let device = LoopDevice::attach(&image, 512)?;
    let name = device.path().file_name().context("a name")?.to_string_lossy().into_owned();
    // Tells the kernel to look at the table, as `losetup --partscan` does.
    let added = program("partx")?.arg("--add").arg(device.path()).output()?;
    let partition = PathBuf::from(format!("{}p1", device.path().display()));
    ensure!(partition.exists(), "partx: {}", stderr(&added));
    let result = (|| {
        mkfs(&partition)?;
        let mounted = Mounted::new(&partition, scratch.path("mounted"))?;
        let at = mounted.0.display().to_string();
        for path in [&partition, device.path()] {
            let output = bcachectl()?.args(["make", "-f", "-B"]).arg(path).output()?;
            let said = stderr(&output);
            ensure!(output.status.code() == Some(1) && said.contains(&at), "{said}");
            ensure!(said.contains(&name), "{said}");
        }
        drop(mounted);
        // With nobody using it, the table is what is in the way.
        let output = bcachectl()?.args(["make", "-B"]).arg(device.path()).output()?;
        ensure!(output.status.code() == Some(1) && stderr(&output).contains("dos"));
        // The kernel looks at the whole disk only; a cache must fit its partition nevertheless.
        let output = bcachectl()?.args(["make", "-f", "--json", "-C"]).arg(&partition).output()?;
        ensure!(output.status.success(), "{}", stderr(&output));
        let made: Value = serde_json::from_slice(&output.stdout)?;
        let sb = &made["devices"][0]["superblock"];
        let covered = number(sb, "/nbuckets")? * number(sb, "/bucket_size_sectors")?;
        ensure!(covered <= 20 << 11, "{sb}");
        Ok(())
    })();
    program("partx")?.arg("--delete").arg(device.path()).status()?;
    result
}

/// A loop device with one partition from sector 2048 on, of 10 MiB. The kernel is told of it, for it
/// need not be able to read partition tables; with `partscan` it would look for itself.
struct Partitioned {
    device: PathBuf,
    partition: PathBuf,
}

impl Partitioned {
    fn new(image: &Path, options: &[&str]) -> anyhow::Result<Self> {
        write_at(image, 0, &partition_table(Sectors(2048), Sectors(10 << 11)))?;
        let mut losetup = program("losetup")?;
        let attached = losetup.args(["--find", "--show"]).args(options).arg(image).output()?;
        ensure!(attached.status.success(), "losetup: {}", stderr(&attached));
        let device = PathBuf::from(String::from_utf8(attached.stdout)?.trim());
        let partition = PathBuf::from(format!("{}p1", device.display()));
        let partitioned = Self { device, partition };
        if !partitioned.partition.exists() {
            let mut partx = program("partx")?;
            let added = partx.args(["--add", "--nr", "1"]).arg(&partitioned.device).output()?;
            ensure!(added.status.success(), "partx: {}", stderr(&added));
        }
        Ok(partitioned)
    }

    /// Whether the kernel lists the partition.
    fn is_listed(&self) -> anyhow::Result<bool> {
        let name = self.partition.file_name().context("a name")?;
        Ok(Path::new("/sys/class/block").join(name).exists())
    }
}

impl Drop for Partitioned {
    fn drop(&mut self) {
        // A loop device keeps its partitions, and it may be that there are none any more.
        let deleted = program("partx").and_then(|mut partx| {
            let partx = partx.args(["--delete", "--nr", "1"]).arg(&self.device);
            Ok(partx.stderr(Stdio::null()).status()?)
        });
        let detached = program("losetup")
            .and_then(|mut losetup| Ok(losetup.arg("--detach").arg(&self.device).status()?));
        if !matches!(detached, Ok(status) if status.success()) {
            eprintln!("{}: {deleted:?}, {detached:?}", self.device.display());
        }
    }
}

/// What one of them gets, the other loses: refused before anything is claimed, and in a dry run too.
fn disk_and_its_partition() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    let disk = Partitioned::new(&image, &[])?;
    let before = fs::read(&image)?;
    for (first, second) in [(&disk.device, &disk.partition), (&disk.partition, &disk.device)] {
        for options in [&["-f"] as &[_], &["-f", "-n"]] {
            let mut make = bcachectl()?;
            make.arg("make").args(options).arg("-C").arg(first).arg("-B").arg(second);
            let output = make.output()?;
            let said = stderr(&output);
            ensure!(output.status.code() == Some(2), "{said}");
            let words =
                format!("{} is a partition of {}", disk.partition.display(), disk.device.display());
            ensure!(said.contains(&words), "{said}");
        }
    }
    ensure!(fs::read(&image)? == before, "a refused make wrote");
    Ok(())
}

/// The kernel goes on to offer the partitions of a table that is gone, unless it is told.
fn partitions_are_forgotten() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    let make = |device: &Path| -> anyhow::Result<String> {
        let output = bcachectl()?.args(["make", "-f", "-B"]).arg(device).output()?;
        ensure!(output.status.success(), "{}", stderr(&output));
        Ok(stderr(&output))
    };
    let disk = Partitioned::new(&image, &["--partscan"])?;
    ensure!(disk.is_listed()?, "the kernel does not know the partition");
    let said = make(&disk.device)?;
    ensure!(said.is_empty() && !disk.is_listed()?, "{said}");
    drop(disk);
    // A loop device without partscan has no partitions to the kernel, which it tells then.
    let image = scratch.sparse("other", 40 * MIB)?;
    let disk = Partitioned::new(&image, &[])?;
    let said = make(&disk.device)?;
    ensure!(disk.is_listed()?, "the kernel has forgotten it");
    let warning = format!("still lists the partitions that were on {}", disk.device.display());
    ensure!(said.contains(&warning), "{said}");
    Ok(())
}

/// A partition table that was written over a backing device: once the superblock is made again, the kernel
/// offers none of its partitions.
fn partitions_forgotten_by_repair() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let backing = fixture.backing.first().context("a backing device")?;
    write_at(backing, 0, &[0; 8192])?;
    let disk = Partitioned::new(backing, &["--partscan"])?;
    ensure!(disk.is_listed()?, "the kernel does not know the partition");
    let mut repair = bcachectl()?;
    repair.args(["repair", "--yes", "--accept", "superblock-gone"]);
    let output = repair.arg(&fixture.cache).arg(&disk.device).output()?;
    ensure!(output.status.success(), "{}", stderr(&output));
    ensure!(!disk.is_listed()?, "the kernel still offers the partition");
    let shown = show(&disk.device)?;
    ensure!(shown["kind"] == "backing", "{shown}");
    Ok(())
}

/// Looking at a device that is mounted does not have the kernel write what waits in memory.
fn show_does_not_write_back() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 64 * MIB)?;
    let device = LoopDevice::attach(&image, 512)?;
    // Nothing of its own accord: no tables that are initialised later, no commit every 5 seconds.
    let mut mkfs = program("mkfs.ext4")?;
    mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(device.path());
    ensure!(mkfs.status()?.success());
    let at = scratch.path("mounted");
    let mounted = Mounted::new(device.path(), at.clone())?;
    let mut remount = program("mount")?;
    ensure!(remount.args(["-o", "remount,commit=600"]).arg(&at).status()?.success());
    let file = File::create(at.join("file"))?;
    nix::unistd::syncfs(&file)?;
    let name = device.path().file_name().context("a name")?.to_owned();
    let stat = Path::new("/sys/block").join(name).join("stat");
    let written = || -> anyhow::Result<u64> {
        let figures = fs::read_to_string(&stat)?;
        Ok(figures.split_whitespace().nth(6).context("sectors written")?.parse()?)
    };
    // The kernel's own threads write what has waited for long; it has not, in one of these tries.
    let mut grew = Vec::new();
    for offset in 0..5 {
        file.write_all_at(&vec![7; usize::try_from(8 * MIB)?], offset * 8 * MIB)?;
        let before = written()?;
        for arguments in [&["show"] as &[&str], &["show", "--json"]] {
            let output = bcachectl()?.args(arguments).arg(device.path()).output()?;
            ensure!(String::from_utf8_lossy(&output.stdout).contains("ext4"));
        }
        grew.push(written()? - before);
        if grew.last() == Some(&0) {
            break;
        }
    }
    drop(file);
    drop(mounted);
    ensure!(grew.last() == Some(&0), "sectors written while looking: {grew:?}");
    Ok(())
}

/// Without a device, all of the machine: a pair that was made together is one set.
fn overview() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let images = [scratch.sparse("cache", 40 * MIB)?, scratch.sparse("backing", 9 * MIB)?];
    let cache = LoopDevice::attach(&images[0], 512)?;
    let backing = LoopDevice::attach(&images[1], 512)?;
    let mut make = bcachectl()?;
    make.args(["make", "--json", "-l", "pair", "-C"]).arg(cache.path());
    let output = make.arg("-B").arg(backing.path()).output()?;
    ensure!(output.status.success(), "{}", stderr(&output));
    let made: Value = serde_json::from_slice(&output.stdout)?;
    let set = text(&made["devices"][0], "/superblock/set_uuid")?;
    let ours = [&cache, &backing].map(|device| format!("{}:", device.path().display()));
    let all = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = bcachectl()?.args(arguments).output()?;
        // Other tests have devices that cannot be read; ours can.
        let said = stderr(&output);
        let ended_well = match output.status.code() {
            Some(0) => said.is_empty(),
            Some(1) => !said.is_empty() && !said.contains(&ours[0]) && !said.contains(&ours[1]),
            _ => false,
        };
        ensure!(ended_well, "{:?}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    let document: Value = serde_json::from_str(&all(&["show", "--json"])?)?;
    let devices = document["devices"].as_array().context("devices")?;
    for (device, kind) in [(&cache, "cache"), (&backing, "backing")] {
        let path = device.path().to_str();
        let shown = devices.iter().find(|shown| shown["path"].as_str() == path).context("shown")?;
        ensure!(shown["kind"] == kind && shown["superblock"]["set_uuid"] == set, "{shown}");
    }
    let printed = all(&["show"])?;
    let lines: Vec<Vec<&str>> =
        printed.lines().map(|line| line.split_whitespace().collect()).collect();
    let [cache, backing] = [&cache, &backing].map(|device| device.path().display().to_string());
    let first = lines.iter().position(|line| line.first() == Some(&set)).context("the set")?;
    // Set, device, kind, size, label, state, running, kernel; the set is named once.
    let row = [set, cache.as_str(), "cache", "40", "MiB", "pair", "new", "no", "accepts"];
    ensure!(lines.get(first).is_some_and(|line| *line == row), "{printed}");
    let row = [backing.as_str(), "backing", "9", "MiB", "pair", "none", "no", "accepts"];
    ensure!(lines.get(first + 1).is_some_and(|line| *line == row), "{printed}");
    // One that was made alone carries the UUID of a set that nobody has.
    let image = scratch.sparse("alone", 9 * MIB)?;
    let alone = LoopDevice::attach(&image, 512)?;
    let output = bcachectl()?.args(["make", "-B"]).arg(alone.path()).output()?;
    ensure!(output.status.success(), "{}", stderr(&output));
    let (printed, alone) = (all(&["show"])?, alone.path().display().to_string());
    let row = printed.lines().find(|line| line.contains(&alone)).context("the device alone")?;
    // Others like it may be here, and the heading is said once.
    ensure!(row.contains(&format!("{alone}  backing")), "{printed}");
    ensure!(printed.contains("(not attached to a set)"), "{printed}");
    ensure!(!printed.contains("(no cache present)") || !row.contains("no cache present"), "{row}");
    Ok(())
}

/// A superblock as after formatting, over the journal of the same set: it would come back.
fn reused_set_uuid() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let mut bytes = vec![0; 4096];
    File::open(&fixture.cache)?.read_exact_at(&mut bytes, 4096)?;
    // Version, flags, seq and journal buckets.
    for field in [16..24, 104..112, 112..120, 206..208] {
        bytes[field].fill(0);
    }
    let mut sb = Superblock::from_bytes(&bytes).context("a superblock")?;
    sb.update_checksum();
    write_at(&fixture.cache, 4096, sb.as_bytes())?;
    let shown = show_in_doubt(&fixture.cache)?;
    ensure!(shown["kernel"]["accepts"] == true, "{shown}");
    let warned = |shown: &Value| {
        let warnings = shown["kernel"]["warnings"].as_array();
        warnings.is_some_and(|all| {
            all.iter()
                .any(|it| it.as_str().is_some_and(|it| it.contains("old journal would come back")))
        })
    };
    ensure!(warned(&shown), "{shown}");
    let device = LoopDevice::attach(&fixture.cache, 512)?;
    ensure!(warned(&show_in_doubt(device.path())?));
    // Formatted with that UUID by make, the journal is wiped; with a fresh one it is another set's.
    let set = sb.set_uuid().to_string();
    for options in [&["--cset-uuid", &set] as &[&str], &[]] {
        let mut make = bcachectl()?;
        make.args(["make", "--wipe-bcache", "--lose-dirty-data"])
            .args(options)
            .arg("-C")
            .arg(device.path());
        let output = make.output()?;
        ensure!(output.status.success(), "{}", stderr(&output));
        ensure!(!warned(&show(device.path())?));
        write_at(&fixture.cache, 4096, sb.as_bytes())?;
    }
    Ok(())
}

/// What `show` says of a device of which it cannot be told what is at stake: its status is 1.
fn show_in_doubt(path: &Path) -> anyhow::Result<Value> {
    let output = bcachectl()?.args(["show", "--json"]).arg(path).output()?;
    ensure!(output.status.code() == Some(1), "{}: {}", output.status, stderr(&output));
    let document: Value = serde_json::from_slice(&output.stdout)?;
    let device = document["devices"][0].clone();
    ensure!(device["stakes"]["answer"] == "unknown", "{device}");
    Ok(device)
}

/// On a full file system: what is not formatted is removed again, so that the command can be
/// repeated; what is stays.
fn images_of_a_failed_run() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let folder = scratch.path("full");
    fs::create_dir(&folder)?;
    // Room for three pages: two for the first image, and one for the second.
    let mut mount = program("mount")?;
    mount.args(["-t", "tmpfs", "-o", "size=12k,huge=never", "tmpfs"]).arg(&folder);
    ensure!(mount.status()?.success());
    let mounted = Mounted(folder.clone());
    let [one, two, three] = ["one", "two", "three"].map(|name| folder.join(name));
    let make = |paths: &[&PathBuf]| -> anyhow::Result<Output> {
        let mut make = bcachectl()?;
        Ok(make.args(["make", "--json", "--size", "1M", "-B"]).args(paths).output()?)
    };
    let output = make(&[&one, &two, &three])?;
    let said = stderr(&output);
    ensure!(output.status.code() == Some(3), "{:?}: {said}", output.status);
    ensure!(said.contains(&format!("formatted: {};", one.display())), "{said}");
    let removed = format!("new and removed again: {}, {}", two.display(), three.display());
    ensure!(said.contains(&removed) && said.contains("No space left on device"), "{said}");
    ensure!(!said.contains("undefined"), "{said}");
    ensure!(one.exists() && !two.exists() && !three.exists());
    let document: Value = serde_json::from_slice(&output.stdout)?;
    let states: Vec<_> = (0..3).map(|it| &document["devices"][it]["state"]).collect();
    ensure!(states == ["formatted", "untouched", "untouched"], "{document}");
    ensure!(text(&document["devices"][1], "/error")?.contains("No space left"), "{document}");
    // With room, the rest of the command does what it should have.
    fs::remove_file(&one)?;
    let output = make(&[&two])?;
    ensure!(output.status.success(), "{}", stderr(&output));
    drop(mounted);
    Ok(())
}

fn discard() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    write_at(&image, 0, &vec![0xaa; usize::try_from(40 * MIB)?])?;
    let device = LoopDevice::attach(&image, 512)?;
    let make = |options: &[&str]| -> anyhow::Result<u64> {
        let mut command = bcachectl()?;
        command.args(["make", "--wipe-bcache"]).args(options).arg(device.path());
        let output = command.output()?;
        ensure!(output.status.success(), "{}", stderr(&output));
        File::open(&image)?.sync_all()?;
        Ok(fs::metadata(&image)?.blocks() * 512)
    };
    // Nobody asked for it: the blocks stay.
    ensure!(make(&["--force", "-C"])? >= 39 * MIB);
    ensure!(make(&["--discard", "-B"])? >= 39 * MIB, "a backing device was discarded");
    let left = make(&["--discard", "-C"])?;
    ensure!(left < MIB, "{left} bytes are left after a discard");
    let shown = show(device.path())?;
    ensure!(shown["superblock"]["discard"] == true, "{shown}");
    Ok(())
}

fn progress() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 20 << 30)?;
    let device = LoopDevice::attach(&image, 512)?;
    let name = device.path().display().to_string();
    let terminal = Terminal::new(100)?;
    let mut command = Command::new(binary("bcachectl")?);
    command.args(["make", "--discard", "-C"]).arg(device.path()).stdin(Stdio::null());
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(terminal.stdio()?);
    let (printed, status) = terminal.watch(command)?;
    ensure!(status.success());
    ensure!(printed.contains(&name) && printed.contains("GiB"), "{printed:?}");
    // Where nobody looks there is nothing to see.
    let output = bcachectl()?
        .args(["make", "--wipe-bcache", "--discard", "-C"])
        .arg(device.path())
        .output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    Ok(())
}

/// Where a write fails, the message says what became of each device, and so does the JSON.
fn second_of_three_fails() -> anyhow::Result<()> {
    // From the superblock on, and everything.
    for bad in [4096..8192, 0..4 * MIB] {
        let scratch = Scratch::new()?;
        let images = [scratch.sparse("first", 4 * MIB)?, scratch.sparse("third", 4 * MIB)?];
        let first = LoopDevice::attach(&images[0], 512)?;
        let second = FullLoop::new(4 * MIB, &[bad])?;
        let third = LoopDevice::attach(&images[1], 512)?;
        let paths = [first.path(), second.path(), third.path()];
        let output = bcachectl()?.args(["make", "--json", "-B"]).args(paths).output()?;
        let said = stderr(&output);
        ensure!(output.status.code() == Some(3), "{:?}: {said}", output.status);
        let [first_name, second_name, third_name] = paths.map(|path| path.display().to_string());
        for part in [
            format!("formatted: {first_name};"),
            format!("nor formatted: {second_name};"),
            format!("not written: {third_name})"),
            "No space left on device".to_owned(),
        ] {
            ensure!(said.contains(&part), "no {part:?} in {said}");
        }
        ensure!(said.lines().count() == 1, "{said}");
        let document: Value = serde_json::from_slice(&output.stdout)?;
        let formatted: Vec<_> = (0..3).map(|it| &document["devices"][it]["formatted"]).collect();
        ensure!(formatted == [true, false, false], "{document}");
        let states: Vec<_> = (0..3).map(|it| &document["devices"][it]["state"]).collect();
        ensure!(states == ["formatted", "undefined", "untouched"], "{document}");
        let error = text(&document["devices"][1], "/error")?;
        ensure!(error.contains("No space left on device"), "{error}");
        ensure!(document["devices"][2].get("error").is_none(), "{document}");
        ensure!(text(&show(first.path())?, "/superblock/checksum")? == "ok");
        ensure!(fs::metadata(&images[1])?.blocks() == 0, "the third device was written");
        let shown = run([Path::new("show"), second.path()])?;
        ensure!(shown.status.code() == Some(1), "the second device looks formatted");
        // In words, too.
        let output = bcachectl()?.args(["make", "--wipe-bcache", "-B"]).args(paths).output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(3), "{printed}");
        ensure!(printed.contains(&format!("{third_name}: not formatted")), "{printed}");
        let undefined = format!("{second_name}: in an undefined state, not formatted: ");
        ensure!(printed.contains(&undefined), "{printed}");
        // Of what is not on a device no superblock is shown.
        ensure!(printed.matches("accepts it").count() == 1, "{printed}");
    }
    Ok(())
}

fn same_device() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 40 * MIB)?;
    let device = LoopDevice::attach(&image, 512)?;
    let link = scratch.path("link");
    std::os::unix::fs::symlink(device.path(), &link)?;
    let before = fs::read(&image)?;
    let mut make = bcachectl()?;
    let output = make.args(["make", "-C"]).arg(&link).arg("-B").arg(device.path()).output()?;
    ensure!(output.status.code() == Some(2) && stderr(&output).contains("same device"));
    ensure!(fs::read(&image)? == before);
    Ok(())
}

/// A torn write to an image, without any privilege: status 3, the image named, the others intact.
fn refused_write() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let images = [scratch.sparse("first", 4 * MIB)?, scratch.sparse("second", 4 * MIB)?];
    for image in &images {
        write_at(image, 0, &[0x5a; 16384])?;
    }
    let before = fs::read(&images[1])?;
    let mut command = with_writes_refused_from(binary("bcachectl")?, 4096);
    let output =
        command.args(["make", "--force", "-B"]).args(&images).stdin(Stdio::null()).output()?;
    let said = stderr(&output);
    ensure!(output.status.code() == Some(3), "{:?}: {said}", output.status);
    let [first, second] = [&images[0], &images[1]].map(|image| image.display().to_string());
    ensure!(said.contains(&format!("nor formatted: {first};")), "{said}");
    ensure!(said.contains(&format!("not written: {second})")), "{said}");
    ensure!(said.contains("File too large"), "{said}");
    ensure!(fs::read(&images[1])? == before, "the second image was written");
    let mut start = [0; 8192];
    File::open(&images[0])?.read_exact_at(&mut start, 0)?;
    ensure!(start[..4096] == [0; 4096] && start[4096..] == [0x5a; 4096], "nothing was torn");
    Ok(())
}
