//! The stock kernel as the tests use it: it boots, its verdicts and figures come back, data that it
//! cached reads back after a power cut, and it reads the fixture images as it once wrote them.

use anyhow::{Context as _, ensure};
use bcache_core::layout::superblock::{
    BDEV_DATA_START_DEFAULT, BackingParams, CacheMode, CacheParams, Label, Replacement,
    SB_OFFSET_BYTES, Superblock,
};
use bcache_core::units::Sectors;
use bcache_tests::image::write_at;
use bcache_tests::need::find_program;
use bcache_tests::{
    DiskOptions, Fixture, Guest, GuestRun, Kernel, LoopDevice, Need, Scratch, ScriptEnd, Verdict,
    main_with, trial,
};
use rand::{RngCore as _, SeedableRng as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use uuid::Uuid;

fn main() -> ExitCode {
    let mut trials = vec![
        trial("disks_keep_their_order_and_options", &[Need::Guest], disks),
        trial("programs_and_captures", &[Need::Guest], programs),
        trial("ends_are_told_apart", &[Need::Guest], ends),
        trial("loop_device_has_the_sector_size", &[Need::LoopDevices], loop_device),
    ];
    for kernel in Kernel::ALL {
        trials.push(trial(
            format!("caches_across_a_power_cut_{kernel}"),
            &[Need::Guest],
            move || caches_across_a_power_cut(kernel),
        ));
        trials.push(trial(format!("refusals_{kernel}"), &[Need::Guest], move || refusals(kernel)));
        trials.push(trial(format!("verdicts_{kernel}"), &[Need::Guest], move || verdicts(kernel)));
        trials.push(trial(format!("fixtures_{kernel}"), &[Need::Guest], move || fixtures(kernel)));
    }
    main_with(trials)
}

const SIZE: u64 = 128 << 20;

/// What a small cache device of [`SIZE`] bytes says of itself.
fn cache_params() -> CacheParams {
    CacheParams {
        uuid: Uuid::new_v4(),
        set_uuid: Uuid::new_v4(),
        label: Label::default(),
        nbuckets: SIZE >> 17,
        bucket_size: Sectors(256),
        block_size: 8,
        replacement: Replacement::Lru,
        discard: false,
    }
}

fn write_superblock(image: &Path, superblock: &Superblock) -> anyhow::Result<()> {
    write_at(image, SB_OFFSET_BYTES, superblock.as_bytes())
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rand_pcg::Pcg64::seed_from_u64(1).fill_bytes(&mut bytes);
    bytes
}

fn caches_across_a_power_cut(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let backing = scratch.sparse("backing.img", SIZE)?;
    let cache = scratch.sparse("cache.img", SIZE)?;
    let params = cache_params();
    write_superblock(&cache, &Superblock::new_cache(&params))?;
    let backing_params = BackingParams {
        uuid: Uuid::new_v4(),
        set_uuid: Uuid::new_v4(),
        label: Label::default(),
        data_offset: BDEV_DATA_START_DEFAULT,
        block_size: 8,
        cache_mode: CacheMode::Writethrough,
    };
    write_superblock(&backing, &Superblock::new_backing(&backing_params))?;
    let guest = Guest::new(kernel).disk(&backing).disk(&cache).file("/data", random_bytes(4 << 20));

    // No cutoff: by default the kernel sends the end of a 4 MiB stream past the cache.
    let script = "
        register /dev/vdb
        register /dev/vda
        attach /dev/vda
        echo 0 >/sys/block/bcache0/bcache/sequential_cutoff
        echo 0 >/sys/block/bcache0/bcache/writeback_running
        echo writeback >/sys/block/bcache0/bcache/cache_mode
        stage written
        dd if=/data of=/dev/bcache0 bs=64k oflag=direct conv=fsync 2>/dev/null
        capture sum md5sum /data
        md5 /dev/bcache0 4194304
        set_figures
        bdev_figures vda
        crash";
    let run = guest.clone().script(script).run()?.cut()?.without_errors()?;
    let log = run.log.stage("written").context("no stage")?;
    let written = log.md5("/dev/bcache0:4194304").context("no sum of what was written")?;
    let sum = &log.capture("sum").context("no sum of what was to be written")?.output;
    ensure!(sum.starts_with(written), "{sum} was written, {written} read back");
    let set = log.set_figures()?;
    ensure!(set.caches.len() == 1, "{set:?}");
    ensure!(set.caches[0].nbuckets == params.nbuckets, "{set:?}");
    ensure!(set.caches[0].replacement == "lru", "{set:?}");
    let stats = &set.caches[0].priority_stats;
    ensure!(stats.dirty >= 3 && stats.clean == 0, "4 MiB of 128 MiB are dirty: {stats:?}");
    let figures = log.backing_figures("vda")?;
    ensure!(figures.cache_mode == "writeback" && figures.state == "dirty", "{figures:?}");
    ensure!(figures.dirty_data == bcache_tests::kernel::rounded_size(4 << 20), "{figures:?}");

    // Attaching wrote the set's UUID into the backing device's superblock: it now attaches by itself.
    let script = "
        register /dev/vda
        register /dev/vdb
        wait_for 10 test -e /dev/bcache0
        md5 /dev/bcache0 4194304
        stop_all";
    let run = guest.script(script).run()?.ok()?.without_errors()?;
    ensure!(run.log.md5("/dev/bcache0:4194304") == Some(written), "{}", run.tail());
    let lines: Vec<&str> = run.log.kernel_lines().collect();
    ensure!(lines.iter().any(|line| line.contains("unregistered")), "{lines:?}");

    // Without the cache device the data is not there: the sums above came from it.
    let script = "
        register /dev/vda
        echo 1 >/sys/block/vda/bcache/running
        md5 /dev/bcache0 4194304";
    let run = Guest::new(kernel).disk(&backing).script(script).run()?.ok()?;
    let bare = run.log.md5("/dev/bcache0:4194304").context("no sum of the bare device")?;
    ensure!(bare != written, "the dirty data was on the backing device all along");
    Ok(())
}

fn refusals(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = |name: &str, params: CacheParams| {
        let path = scratch.sparse(name, SIZE)?;
        write_superblock(&path, &Superblock::new_cache(&params))?;
        anyhow::Ok(path)
    };
    let blank = scratch.sparse("blank", SIZE)?;
    let bad_checksum = image("bad-checksum", cache_params())?;
    write_at(&bad_checksum, SB_OFFSET_BYTES, &[0; 8])?;
    let small_block = image("small-block", CacheParams { block_size: 1, ..cache_params() })?;
    let expected = [
        (blank, Some("Not a bcache superblock (bad offset)")),
        (bad_checksum, Some("Bad checksum")),
        (
            image("few-buckets", CacheParams { nbuckets: 512, ..cache_params() })?,
            Some("ca->sb.nbuckets is too small"),
        ),
        (small_block.clone(), Some("Superblock block size smaller than device block size")),
        (
            image("large-block", CacheParams { block_size: 16, ..cache_params() })?,
            Some("Bad block size (larger than page size)"),
        ),
        (image("good", cache_params())?, None),
    ];
    let mut guest = Guest::new(kernel);
    for (index, (path, _)) in expected.iter().enumerate() {
        let logical_block_size = if *path == small_block { 4096 } else { 512 };
        guest = guest
            .disk_with(path, DiskOptions { logical_block_size, ..Default::default() })
            .script(format!("register {} || true", Guest::disk_name(index)));
    }
    let run = guest.script("stop_all").run()?.ok()?;
    for (index, (path, error)) in expected.iter().enumerate() {
        let name = Guest::disk_name(index);
        ensure!(
            run.log.register_error(&name) == *error
                && run.log.accepted(&name) == Some(error.is_none()),
            "{}: expected {error:?}, the kernel said {:?}\n{}",
            path.display(),
            run.log.register_lines(&name),
            run.tail()
        );
    }
    Ok(())
}

/// Every superblock of the verdict fixtures, offered again: each kernel says what 6.1 once said.
fn verdicts(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let device = scratch.sparse("device", Verdict::DEVICE_SIZE)?;
    let records = scratch.path("records");
    let verdicts = Verdict::all()?;
    let bytes: Vec<u8> = verdicts.iter().flat_map(|verdict| verdict.record.clone()).collect();
    std::fs::write(&records, bytes)?;
    let script = format!(
        "case=0
        while [ $case -lt {} ]; do
            blkdiscard /dev/vda
            dd if=/dev/vdb of=/dev/vda bs=16k count=1 skip=$case conv=fsync 2>/dev/null
            stage $case
            ! register /dev/vda || stop_all
            wait_free /dev/vda
            case=$((case + 1))
        done",
        verdicts.len()
    );
    let guest = Guest::new(kernel).disk(&device).disk(&records).timeout(Duration::from_secs(400));
    let run = guest.script(script).run()?.ok()?;
    let mut differences = Vec::new();
    for verdict in verdicts {
        let log = run.log.stage(&verdict.case.to_string()).context("a case is missing")?;
        let error = log.register_error("/dev/vda").unwrap_or_default();
        if log.accepted("/dev/vda") != Some(verdict.kernel_accepts) || error != verdict.kernel_error
        {
            differences.push(format!(
                "case {}: expected {:?}, the kernel said {:?}",
                verdict.case,
                verdict.kernel_error,
                log.register_lines("/dev/vda")
            ));
        }
    }
    ensure!(differences.is_empty(), "{}\n{}", differences.join("\n"), run.tail());
    Ok(())
}

/// The kernel reads each fixture image without a complaint, and the volumes hold what they held when
/// the image was taken.
fn fixtures(kernel: Kernel) -> anyhow::Result<()> {
    let fixtures: Vec<Fixture> =
        Fixture::names()?.iter().map(|name| Fixture::unpack(name)).collect::<Result<_, _>>()?;
    let mut guest = Guest::new(kernel);
    let mut disks = 0;
    for fixture in &fixtures {
        let of_this = fixture.disks();
        let names = (disks..disks + of_this.len()).map(Guest::disk_name);
        disks += of_this.len();
        let (caches, backing): (Vec<_>, Vec<_>) =
            names.zip(&of_this).partition(|(_, path)| **path == fixture.cache);
        guest = guest.script(format!("stage {}", fixture.name));
        // Backing devices first: their bcache devices are numbered in the order of registration,
        // before those of the set's own volumes.
        for (device, _) in backing.iter().chain(&caches) {
            guest = guest.script(format!("register {device}"));
        }
        guest = guest.script("set_figures");
        for device in fixture.log.md5_devices() {
            guest = guest.script(format!("wait_for 20 test -b {device}\nmd5 {device}"));
        }
        guest = guest.script("stop_all");
        for disk in of_this {
            guest = guest.disk_with(disk, DiskOptions { snapshot: true, ..Default::default() });
        }
    }
    let run = guest.sums_by_host().run()?.ok()?.without_errors()?;
    for fixture in &fixtures {
        let log = run.log.stage(&fixture.name).context("no stage")?;
        for device in fixture.log.md5_devices() {
            ensure!(
                log.md5(device) == fixture.log.md5(device),
                "{}, {device}: {:?} when the image was taken, {:?} now\n{}",
                fixture.name,
                fixture.log.md5s(device),
                log.md5(device),
                run.tail()
            );
        }
        let nbuckets = |figures: bcache_tests::kernel::SetFigures| figures.caches[0].nbuckets;
        let (now, then) = (log.set_figures()?, fixture.log.set_figures()?);
        ensure!(nbuckets(now) == nbuckets(then), "{}\n{}", fixture.name, run.tail());
    }
    Ok(())
}

fn disks() -> anyhow::Result<()> {
    const COUNT: usize = 30;
    let scratch = Scratch::new()?;
    let mut guest = Guest::new(Kernel::V6_12);
    for index in 0..COUNT {
        let image = scratch.sparse(&format!("{index}.img"), (index as u64 + 1) << 20)?;
        let options = DiskOptions {
            logical_block_size: if index == 3 { 4096 } else { 512 },
            read_only: index == 4,
            snapshot: index == 5,
            discard: index != 6,
            sparse: index == 7,
        };
        guest = guest.disk_with(&image, options);
        let name = Guest::disk_name(index).replace("/dev/", "");
        for figure in ["size", "queue/logical_block_size", "ro", "queue/discard_max_bytes"] {
            guest = guest.script(format!("figure {name}/{figure} /sys/block/{name}/{figure}"));
        }
    }
    let run = guest
        .script("for disk in /dev/vdf /dev/vdg; do echo changed | dd of=$disk conv=fsync; done")
        .run()?
        .ok()?;
    for index in 0..COUNT {
        let name = Guest::disk_name(index).replace("/dev/", "");
        let number = |figure: &str| run.log.number(&format!("{name}/{figure}"));
        ensure!(number("size")? == (index as u64 + 1) << 11, "size of {name}");
        let block = if index == 3 { 4096 } else { 512 };
        ensure!(number("queue/logical_block_size")? == block, "block size of {name}");
        ensure!(number("ro")? == u64::from(index == 4), "read-only flag of {name}");
        ensure!((number("queue/discard_max_bytes")? > 0) == (index != 6), "discard of {name}");
    }
    let starts_changed = |index: usize| -> anyhow::Result<bool> {
        Ok(std::fs::read(scratch.path(&format!("{index}.img")))?.starts_with(b"changed"))
    };
    ensure!(!starts_changed(5)?, "a snapshot disk's image was written");
    ensure!(starts_changed(6)?, "a plain disk's image was not written");
    Ok(())
}

fn programs() -> anyhow::Result<()> {
    // A program that is linked with libraries, under a name that busybox has too.
    let program = find_program("cpio").context("cpio")?;
    let run = Guest::new(Kernel::V6_1)
        .binary(&program)
        .file("/some/file", "no newline at the end")
        .module("loop")
        .script("capture version /bin/cpio --version")
        .script("capture file cat /some/file")
        .script("capture no false")
        .script("test -e /dev/loop0")
        .run()?
        .ok()?;
    let capture = |name: &str| run.log.capture(name).with_context(|| format!("no capture {name}"));
    ensure!(capture("version")?.output.contains("GNU cpio"), "{}", run.tail());
    ensure!(capture("file")?.output == "no newline at the end", "{}", run.tail());
    ensure!(capture("no")?.status == Some(1), "{}", run.tail());
    ensure!(run.log.release == Some(Kernel::V6_1.release()?), "{}", run.tail());
    Ok(())
}

fn ends() -> anyhow::Result<()> {
    let run = |script: &str| Guest::new(Kernel::V6_12).script(script).run();
    let is = |run: GuestRun, end: ScriptEnd| {
        ensure!(run.end == end, "{:?} instead of {end:?}\n{}", run.end, run.tail());
        anyhow::Ok(run)
    };
    // A failure in the middle ends the script, with its status.
    let failed = is(run("false\necho reached")?, ScriptEnd::Exited(1))?;
    ensure!(!failed.output.contains("reached") && failed.ok().is_err());
    let panicked = is(run("echo c >/proc/sysrq-trigger")?, ScriptEnd::Died)?;
    ensure!(panicked.without_errors().is_err(), "the panic is in the kernel's log");
    is(run("crash")?, ScriptEnd::PowerCut)?;
    let hung = Guest::new(Kernel::V6_12).script("echo before\nsleep 600");
    let hung = is(hung.timeout(Duration::from_secs(45)).run()?, ScriptEnd::TimedOut)?;
    ensure!(hung.output.contains("before"), "{}", hung.tail());
    Ok(())
}

fn loop_device() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("image", 8 << 20)?;
    let device = LoopDevice::attach(&image, 4096)?;
    let name = device.path().file_name().context("a name")?.to_string_lossy().into_owned();
    let sysfs = Path::new("/sys/block").join(&name);
    let read = |file: &str| std::fs::read_to_string(sysfs.join(file));
    ensure!(read("queue/logical_block_size")?.trim() == "4096");
    ensure!(read("size")?.trim() == "16384");
    drop(device);
    ensure!(!sysfs.join("loop/backing_file").exists(), "{name} is still attached");
    Ok(())
}
