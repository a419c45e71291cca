//! What every command prints for people: piped, and on terminals of 80 and of 200 columns. A change is
//! looked at, and taken over with `cargo build --workspace --bins`, and then
//! `INSTA_UPDATE=always cargo test --workspace --test snapshots`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use bcache_core::layout::superblock::{
    BDEV_DATA_START_DEFAULT, BackingParams, CacheMode, CacheParams, Label, Replacement,
    SB_OFFSET_BYTES, Superblock,
};
use bcache_core::running::recorded;
use bcache_core::units::Sectors;
use bcache_tests::cache::{bucket_byte, with_cache_set};
use bcache_tests::image::write_at;
use bcache_tests::need::unmet;
use bcache_tests::terminal::on_terminal;
use bcache_tests::tool::with_own_mounts;
use bcache_tests::{Fixture, LoopDevice, Need, Scratch, binary, workspace_root};
use uuid::Uuid;

/// Names of the snapshots, and the commands. What they work on is made by [`prepare`].
const COMMANDS: &[(&str, &str)] = &[
    ("show_dirty_pair", "bcachectl show dirty.cache dirty.0"),
    ("show_clean_backing", "bcachectl show clean.0"),
    ("show_verbose", "bcachectl show -v dirty.cache"),
    ("show_superblock", "bcachectl show --superblock dirty.cache dirty.0"),
    ("show_dirty", "bcachectl show --dirty dirty.cache dirty.0"),
    ("show_several", "bcachectl show several.cache several.0 several.1"),
    ("show_usage", "bcachectl show --usage clean.cache"),
    ("show_uuids", "bcachectl show --uuids several.cache"),
    ("show_journal", "bcachectl show --journal --limit 3 dirty.cache"),
    ("show_btree", "bcachectl show --btree --limit 3 dirty.cache"),
    ("show_keys", "bcachectl show --keys --limit 3 dirty.cache"),
    ("show_prios", "bcachectl show --prios --limit 5 dirty.cache"),
    ("show_lookup", "bcachectl show --lookup 0:16+2048 --limit 5 dirty.cache"),
    ("show_broken", "bcachectl show broken.cache"),
    ("show_nothing", "bcachectl show blank.img"),
    ("check_sound", "bcachectl check dirty.cache dirty.0"),
    ("check_broken", "bcachectl check broken.cache"),
    ("check_settled", "bcachectl check broken.cache clean.0"),
    ("check_prios", "bcachectl check prios.cache dirty.0"),
    ("check_backing", "bcachectl check dirty.0"),
    ("check_head", "bcachectl check head.cache"),
    ("invalidate", "bcachectl invalidate -n --coldest 2 clean.cache"),
    ("invalidate_refused", "bcachectl invalidate -n --bucket 1-9 dirty.cache"),
    ("writeback", "bcachectl writeback -n dirty.cache dirty.0"),
    ("writeback_refused", "bcachectl writeback -n dirty.cache clean.0"),
    ("export_refused", "bcachectl export dirty.cache dirty.0 --volume 7 -o never"),
    ("serve_refused", "bcachectl serve head.cache --volume 0 --socket never"),
    ("repair", "bcachectl repair -n prios.cache dirty.0"),
    ("repair_nothing", "bcachectl repair -n clean.cache"),
    ("make", "bcachectl make -n -C blank.img"),
    ("make_refused", "bcachectl make -C dirty.cache"),
    ("make_usage", "bcachectl make --bucket 3 -C blank.img"),
    ("status", "bcachectl status --recorded RECORDED/dirty-6.12.sysfs"),
    ("status_why", "bcachectl status --why --recorded RECORDED/dirty-6.12.sysfs"),
    ("status_lost", "bcachectl status --recorded RECORDED/cache-lost-6.12.sysfs"),
    ("super_show", "bcache-super-show dirty.cache"),
    ("bench_size", "bcache-bench size 100G --bucket 512k"),
    (
        "bench_replay",
        "bcache-bench replay --cache-size 1G,2G --bucket 512k TRACES/dev-server.iolog.zst",
    ),
    ("no_command", "bcachectl"),
    ("unknown_option", "bcachectl show --dirt x"),
];

/// The same for commands that look at the machine: that of [`machine`].
const OF_MACHINE: &[(&str, &str)] = &[
    ("list", "bcachectl list"),
    ("list_columns", "bcachectl list -o device,kind,uuid,mode,dirty,bucket,block,policy --bytes"),
    ("list_csv", "bcachectl list --format csv --sort device"),
];

/// The images that the commands name, in a folder of their own.
fn prepare() -> anyhow::Result<Scratch> {
    let scratch = Scratch::new()?;
    for (fixture, name) in [("dirty-61", "dirty"), ("clean-612", "clean"), ("multi-612", "several")]
    {
        let images = Fixture::unpack(fixture)?;
        fs::copy(&images.cache, scratch.path(&format!("{name}.cache")))?;
        for (index, backing) in images.backing.iter().enumerate() {
            fs::copy(backing, scratch.path(&format!("{name}.{index}")))?;
        }
    }
    scratch.sparse("blank.img", 64 << 20)?;
    let broken = scratch.copy("broken.cache", &scratch.path("clean.cache"))?;
    let root = with_cache_set(&broken, |set| Ok(set.root.ptrs().first().map(|it| it.offset())))?;
    write_at(&broken, root.context("a root")?.bytes(), &[0; 4096])?;
    let prios = scratch.copy("prios.cache", &scratch.path("dirty.cache"))?;
    let bucket = with_cache_set(&prios, |set| Ok(set.prios.buckets.first().map(|it| it.0)))?;
    let at = bucket_byte(&prios, bucket.context("a prio bucket")?)?;
    write_at(&prios, at, &vec![0; 65536])?;
    let head = scratch.copy("head.cache", &scratch.path("dirty.cache"))?;
    fs::OpenOptions::new().write(true).open(head)?.set_len(8192)?;
    Ok(scratch)
}

fn command(line: &str, folder: &Path) -> anyhow::Result<Command> {
    let mut words = line.split_whitespace();
    let name = words.next().context("a command")?;
    let fixtures = workspace_root().join("tests/fixtures");
    let mut command = match name {
        "bcachectl" | "bcache-bench" => Command::new(binary(name)?),
        _ => {
            // The old names are ours by the name that we are called by.
            let link = folder.join(name);
            if !link.exists() {
                symlink(binary("bcachectl")?, &link)?;
            }
            Command::new(link)
        }
    };
    for word in words {
        let word = word
            .replace("RECORDED", &fixtures.join("running").display().to_string())
            .replace("TRACES", &fixtures.join("traces").display().to_string());
        command.arg(word);
    }
    command.current_dir(folder).stdin(Stdio::null()).env("NO_COLOR", "1");
    Ok(command)
}

/// UUIDs that are new each time, and the workspace's path, replaced.
fn settled(text: &str, line: &str) -> String {
    let mut text = text.replace(&workspace_root().display().to_string(), "TOP");
    if line.starts_with("bcachectl make") {
        let is_uuid =
            |word: &str| word.len() == 36 && word.bytes().filter(|byte| *byte == b'-').count() == 4;
        let found: Vec<String> =
            text.split_whitespace().filter(|word| is_uuid(word)).map(str::to_owned).collect();
        for uuid in found {
            text = text.replace(&uuid, "UUUUUUUU-UUUU-UUUU-UUUU-UUUUUUUUUUUU");
        }
    }
    text
}

/// A machine in the folder, `sys` and `dev`: with the pair that runs in a recorded tree, and the images
/// as disks that do not run. The devices that run are returned, for as long as they are wanted.
fn machine(folder: &Path) -> anyhow::Result<[LoopDevice; 2]> {
    let recorded = workspace_root().join("tests/fixtures/running/dirty-6.12.sysfs");
    let sys = recorded::unpack(&fs::read_to_string(recorded)?, folder)?.sys("");
    let dev = folder.join("dev");
    fs::create_dir(&dev)?;
    for name in ["null", "vda", "vdb", "bcache0"] {
        File::create(dev.join(name))?.set_len(64 << 20)?;
    }
    let set_uuid = fs::read_dir(sys.join("fs/bcache"))?
        .find_map(|set| Uuid::try_parse(set.ok()?.file_name().to_str()?).ok())
        .context("a set that runs")?;
    let backing = Superblock::new_backing(&BackingParams {
        uuid: Uuid::from_u128(1),
        set_uuid,
        label: Label::new("home").context("a label")?,
        data_offset: BDEV_DATA_START_DEFAULT,
        block_size: 8,
        cache_mode: CacheMode::Writeback,
    });
    let cache = Superblock::new_cache(&CacheParams {
        uuid: Uuid::from_u128(2),
        set_uuid,
        label: Label::default(),
        nbuckets: 1024,
        bucket_size: Sectors(256),
        block_size: 8,
        replacement: Replacement::Fifo,
        discard: false,
    });
    // What runs is looked up by the number of a device.
    fs::create_dir_all(sys.join("dev/block"))?;
    let running = |name: &str, superblock: &Superblock| {
        let image = folder.join(format!("{name}.img"));
        File::create(&image)?.set_len(256 << 20)?;
        write_at(&image, SB_OFFSET_BYTES, superblock.as_bytes())?;
        let device = LoopDevice::attach(&image, 512)?;
        let number = fs::metadata(device.path())?.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let disk = fs::canonicalize(sys.join("class/block").join(name))?;
        symlink(disk.strip_prefix(&sys).map(|it| Path::new("../..").join(it))?, {
            sys.join("dev/block").join(format!("{major}:{minor}"))
        })?;
        anyhow::Ok(device)
    };
    let running = [running("vda", &backing)?, running("vdb", &cache)?];
    for (minor, (name, image)) in [
        ("nvme0n1", "dirty.cache"),
        ("nvme1n1", "several.cache"),
        ("sda", "dirty.0"),
        ("sdb", "several.0"),
        ("sdc", "several.1"),
        ("sdd", "blank.img"),
        ("sde", "head.cache"),
    ]
    .iter()
    .enumerate()
    {
        symlink(folder.join(image), dev.join(name))?;
        let disk = sys.join("devices").join(name);
        fs::create_dir(&disk)?;
        fs::write(disk.join("dev"), format!("8:{minor}\n"))?;
        fs::write(disk.join("size"), format!("{}\n", fs::metadata(dev.join(name))?.len() / 512))?;
        symlink(Path::new("../../devices").join(name), sys.join("class/block").join(name))?;
    }
    Ok(running)
}

/// The command on that machine: its folders are mounted on ours, for this process alone.
fn command_there(line: &str, folder: &Path, running: &[LoopDevice; 2]) -> anyhow::Result<Command> {
    const MOUNT: &str = "mount --bind /dev/null \"$0/dev/null\"; mount --bind \"$1\" \"$0/dev/vda\"; \
                         mount --bind \"$2\" \"$0/dev/vdb\"; shift 2; mount --bind \"$0/sys\" /sys; \
                         mount --rbind \"$0/dev\" /dev; exec \"$@\"";
    let inner = command(line, folder)?;
    let mut command = with_own_mounts(MOUNT);
    command.arg(folder);
    command.args(running.iter().map(LoopDevice::path)).arg(inner.get_program());
    command.args(inner.get_args()).stdin(Stdio::null()).env("NO_COLOR", "1");
    Ok(command)
}

/// A command's output in its three forms; a terminal's is left out where it is what is piped.
fn printed(line: &str, command: impl Fn() -> anyhow::Result<Command>) -> anyhow::Result<String> {
    let output = command()?.output()?;
    let piped = settled(&String::from_utf8(output.stdout)?, line);
    let errors = settled(&String::from_utf8(output.stderr)?, line);
    let status = output.status.code().context("ended by a signal")?;
    let mut text = format!("$ {line}\n{piped}");
    if !errors.is_empty() {
        write!(text, "-- standard error\n{errors}")?;
    }
    writeln!(text, "-- exit status {status}")?;
    for columns in [80, 200] {
        let (shown, status) = on_terminal(command()?, columns)?;
        ensure!(status.code() == output.status.code(), "{line}: {status} on a terminal");
        let shown = settled(&shown, line);
        if shown == piped {
            writeln!(text, "-- {columns} columns: the same")?;
        } else {
            write!(text, "-- {columns} columns\n{shown}")?;
        }
    }
    Ok(text)
}

#[test]
fn what_people_see_is_what_was_agreed() -> anyhow::Result<()> {
    if unmet(&[Need::Terminals]).is_some() {
        return Ok(());
    }
    let scratch = prepare()?;
    let folder = scratch.path("");
    compare(COMMANDS, |line| command(line, &folder))
}

/// Where devices are listed that carry bcache, running or not.
#[test]
fn what_people_see_of_a_machine_is_what_was_agreed() -> anyhow::Result<()> {
    if unmet(&[Need::Terminals, Need::Root, Need::LoopDevices]).is_some() {
        return Ok(());
    }
    let scratch = prepare()?;
    let folder = scratch.path("");
    let running = machine(&folder)?;
    compare(OF_MACHINE, |line| command_there(line, &folder, &running))
}

fn compare(
    lines: &[(&str, &str)],
    command: impl Fn(&str) -> anyhow::Result<Command>,
) -> anyhow::Result<()> {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (name, line) in lines {
            let text = printed(line, || command(line)).with_context(|| (*line).to_owned())?;
            insta::assert_snapshot!(*name, text);
        }
        Ok(())
    })
}
