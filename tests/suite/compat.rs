//! The old names beside bcache-tools 1.0.8, on the same images: output, errors and exit status are
//! the same, but for the differences that bcache-tools-compat(7) lists. What is expected of ours
//! there is written down here.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_tests::image::Contents;
use bcache_tests::need::find_program;
use bcache_tests::superblocks::vary;
use bcache_tests::{Fixture, Need, Scratch, binary, main_with, trial};
use libtest_mimic::Trial;
use rand::SeedableRng as _;

const PEER: &[Need] = &[Need::Program("make-bcache", "bcache-tools")];

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let mut trials: Vec<Trial> = Vec::new();
    for (setup, command) in SAME {
        let name = format!("same {setup:?} {command}");
        trials.push(trial(name, PEER, move || same(*setup, command)));
    }
    for different in DIFFERENT {
        let name = format!("differs {:?} {}", different.setup, different.command);
        trials.push(trial(name, PEER, move || differs(different)));
    }
    trials.push(trial("same_superblocks_of_stock_kernels", PEER, kernel_superblocks));
    trials.push(trial("same_superblocks_with_fields_changed", PEER, varied_superblocks));
    trials.push(trial("every_byte_of_a_superblock_may_be_wrong", &[], damaged_superblocks));
    trials.push(trial("curtin_reads_super_show", &[], curtin));
    trials.push(trial("libblockdev_and_curtin_read_make_bcache", &[], libblockdev));
    trials.push(trial("salt_reads_super_show", &[], salt));
    trials.push(trial("libstorage_ng_and_carina_go_by_the_exit_status", &[], exit_status));
    trials.push(trial("force_spares_dirty_data", &[], force));
    trials.push(trial("nothing_is_written_when_a_device_is_refused", &[], nothing_written));
    main_with(trials)
}

/// What is on the images `c` (300 MiB), `b` (64 MiB) and `s` (2 KiB).
#[derive(Clone, Copy, Debug)]
enum Setup {
    /// Nothing.
    Blank,
    /// A cache on `c` and a backing device of its set on `b`.
    Made,
    /// A swap signature on `b`, which stands for anything that is not bcache.
    Swap,
}
use Setup::{Blank, Made, Swap};

const SAME: &[(Setup, &str)] = &[
    (Blank, "make-bcache"),
    (Blank, "make-bcache -h"),
    (Blank, "make-bcache --help"),
    (Blank, "make-bcache c"),
    (Blank, "make-bcache -C c"),
    (Blank, "make-bcache -B b"),
    (Blank, "make-bcache -B b -C c --writeback"),
    (Blank, "make-bcache -b128k -C c"),
    (Blank, "make-bcache -w 512 -C c --cache_repl=random"),
    (Blank, "make-bcache -B b -o 100"),
    (Blank, "make-bcache -B b --data_offset 8192"),
    (Blank, "make-bcache -B b --data=2048"),
    (Blank, "make-bcache -B b --bdev --cset-uuid 11111111-2222-3333-4444-555555555555"),
    (Blank, "make-bcache -B nodev"),
    (Blank, "make-bcache -w 4k -B nodev"),
    (Blank, "make-bcache -B /"),
    (Blank, "make-bcache -b 3k -B b"),
    (Blank, "make-bcache -b 0 -B b"),
    (Blank, "make-bcache -b 64m -C c"),
    (Blank, "make-bcache -w 1000 -B b"),
    (Blank, "make-bcache -w 256 -B b"),
    (Blank, "make-bcache -b 4k -w 8k -B b"),
    (Blank, "make-bcache -o 8 -B b"),
    (Blank, "make-bcache -o abc -B b"),
    (Blank, "make-bcache --cset-uuid xx -B b"),
    (Blank, "make-bcache --cset-uuid 11111111222233334444555555555555 -B b"),
    (Blank, "make-bcache --foo"),
    (Blank, "make-bcache -Q c"),
    (Blank, "make-bcache -b"),
    (Blank, "make-bcache --bucket"),
    (Blank, "make-bcache --w"),
    (Blank, "make-bcache --ca"),
    (Blank, "make-bcache --wi=3"),
    (Blank, "make-bcache -U"),
    (Made, "make-bcache -C c"),
    (Made, "make-bcache -B b"),
    (Made, "make-bcache -B c b"),
    (Swap, "make-bcache -B b"),
    (Swap, "make-bcache --wipe-bcache -B b"),
    (Made, "bcache-super-show c"),
    (Made, "bcache-super-show b -f"),
    (Made, "bcache-super-show"),
    (Made, "bcache-super-show -h"),
    (Made, "bcache-super-show --help"),
    (Made, "bcache-super-show -f"),
    (Made, "bcache-super-show -fx c"),
    (Made, "bcache-super-show c b"),
    (Made, "bcache-super-show nodev"),
    (Made, "bcache-super-show /"),
    (Made, "bcache-super-show /dev/null"),
    (Made, "bcache-super-show s"),
    (Made, "bcache-super-show -- -f"),
    (Made, "bcache-super-show -"),
    (Blank, "bcache-super-show c"),
    (Blank, "probe-bcache c"),
    (Made, "probe-bcache"),
    (Made, "probe-bcache -o foo c"),
    (Made, "probe-bcache -o"),
    (Made, "probe-bcache nodev s"),
    (Swap, "probe-bcache -o udev b"),
    (Made, "probe-bcache --help"),
    (Made, "bcache-register"),
    (Made, "bcache-register c b"),
];

/// A command that ends otherwise than that of 1.0.8, and how ours ends: what it prints (UUIDs as
/// `U`), what it prints on standard error, its status.
struct Different {
    setup: Setup,
    command: &'static str,
    output: &'static str,
    error: &'static str,
    status: i32,
}

const CACHE: &str = "UUID:\t\t\tU\nSet UUID:\t\tU\nversion:\t\t0\nnbuckets:\t\t600\n\
                     block_size:\t\t8\nbucket_size:\t\t1024\nnr_in_set:\t\t1\nnr_this_dev:\t\t0\n\
                     first_bucket:\t\t1\n";

const fn refused(setup: Setup, command: &'static str, error: &'static str) -> Different {
    Different { setup, command, output: "", error, status: 1 }
}

const fn works(setup: Setup, command: &'static str, output: &'static str) -> Different {
    Different { setup, command, output, error: "", status: 0 }
}

const DIFFERENT: &[Different] = &[
    // What 1.0.8 writes half of, or writes although it was not understood.
    refused(
        Blank,
        "make-bcache -B b -w 512 nodev",
        "Can't open dev nodev: No such file or directory\n",
    ),
    refused(Blank, "make-bcache -B b b", "make-bcache: b and b are the same device\n"),
    refused(
        Blank,
        "make-bcache --foo -C c",
        "make-bcache: unrecognized option '--foo'\nmake-bcache: nothing was formatted\n",
    ),
    refused(
        Blank,
        "make-bcache -C c -p",
        "make-bcache: invalid option -- 'p'\nmake-bcache: nothing was formatted\n",
    ),
    refused(
        Blank,
        "make-bcache -b 64kfoo -B b",
        "bucket size: \"64kfoo\" is not a size; write a whole number and k, M, G or T, as in 512k \
         or 1MiB\n",
    ),
    // What the kernel refuses or hangs over.
    refused(Blank, "make-bcache -C b", "Not enough buckets: 128, need 513\n"),
    refused(Blank, "make-bcache -C c -b 1M", "Not enough buckets: 300, need 513\n"),
    refused(
        Blank,
        "make-bcache --cache_replacement_policy=foo -C c",
        "Unknown replacement policy foo; lru, fifo or random\n",
    ),
    // What works here and not there.
    works(Made, "make-bcache --wipe-bcache -C c", CACHE),
    works(Made, "make-bcache --force -C c", CACHE),
    works(Blank, "make-bcache --force -l fast -C c", CACHE),
    works(Made, "probe-bcache -o udev c", "ID_FS_UUID=U\nID_FS_UUID_ENC=U\nID_FS_TYPE=bcache\n"),
    works(
        Made,
        "probe-bcache s c b",
        "c: UUID=\"U\" TYPE=\"bcache\"\nb: UUID=\"U\" TYPE=\"bcache\"\n",
    ),
    // What is said in more words.
    Different {
        setup: Blank,
        command: "make-bcache -o 4096k -B b",
        output: "UUID:\t\t\tU\nSet UUID:\t\tU\nversion:\t\t4\nblock_size:\t\t8\ndata_offset:\t\t4096\n",
        error: "make-bcache: the data offset is a number of sectors: 4096k is taken for 4096 \
                sectors (2 MiB)\n",
        status: 0,
    },
    refused(
        Blank,
        "make-bcache -B s",
        "make-bcache: s is too small: 2048 bytes, a superblock alone ends at byte 8192\n",
    ),
];

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    output: String,
    error: String,
    status: Option<i32>,
}

/// Whose command to run.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Theirs,
    Ours,
}
use Whose::{Ours, Theirs};

/// Runs a command line in `folder`.
fn run(whose: Whose, folder: &Path, line: &str) -> anyhow::Result<Ended> {
    let mut words = line.split(' ');
    let name = words.next().context("a command")?;
    let program = match (whose, name) {
        (Ours, _) => binary("bcachectl")?,
        (Theirs, "probe-bcache" | "bcache-register") => Path::new("/usr/lib/udev").join(name),
        (Theirs, _) => find_program(name).with_context(|| name.to_owned())?,
    };
    let output = Command::new(program).arg0(name).args(words).current_dir(folder).output()?;
    Ok(Ended {
        output: without_uuids(&String::from_utf8(output.stdout)?),
        error: without_uuids(&String::from_utf8(output.stderr)?),
        status: output.status.code(),
    })
}

/// The text with a `U` in the place of each UUID.
fn without_uuids(text: &str) -> String {
    let is_uuid = |word: &str| word.len() == 36 && uuid::Uuid::try_parse(word).is_ok();
    let mut result = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        if rest.get(..36).is_some_and(is_uuid) {
            result.push('U');
            rest = &rest[36..];
        } else {
            let next = rest.chars().next().map_or(1, char::len_utf8);
            result.push_str(&rest[..next]);
            rest = &rest[next..];
        }
    }
    result
}

fn prepare(setup: Setup) -> anyhow::Result<(Scratch, PathBuf)> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("c", 300 * MIB)?;
    let folder = image.parent().context("a folder")?.to_owned();
    let backing = scratch.sparse("b", 64 * MIB)?;
    scratch.sparse("s", 2048)?;
    match setup {
        Blank => {}
        Made => {
            let made = run(Ours, &folder, "make-bcache -C c -B b")?;
            ensure!(made.status == Some(0), "{made:?}");
        }
        Swap => {
            // The version, the number of pages, and the magic at the end of the first page.
            let mut header = vec![0; 4096];
            header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
            header[1028..1032].copy_from_slice(&16_000_u32.to_le_bytes());
            header[4086..].copy_from_slice(b"SWAPSPACE2");
            bcache_tests::image::write_at(&backing, 0, &header)?;
        }
    }
    Ok((scratch, folder))
}

fn both(setup: Setup, command: &str) -> anyhow::Result<(Ended, Ended)> {
    let (_theirs, folder) = prepare(setup)?;
    let theirs = run(Theirs, &folder, command)?;
    // What formats needs its devices as they were; what looks needs the same ones.
    if !command.starts_with("make-bcache") {
        return Ok((theirs, run(Ours, &folder, command)?));
    }
    let (_ours, folder) = prepare(setup)?;
    Ok((theirs, run(Ours, &folder, command)?))
}

fn same(setup: Setup, command: &str) -> anyhow::Result<()> {
    let (theirs, ours) = both(setup, command)?;
    ensure!(theirs == ours, "1.0.8: {theirs:#?}\nours: {ours:#?}");
    Ok(())
}

fn differs(expected: &Different) -> anyhow::Result<()> {
    let (theirs, ours) = both(expected.setup, expected.command)?;
    ensure!(theirs != ours, "1.0.8 does the same, so that it is no difference: {ours:#?}");
    let Different { output, error, status, .. } = expected;
    ensure!(
        ours.output == *output && ours.error == *error && ours.status == Some(*status),
        "{ours:#?}"
    );
    Ok(())
}

fn same_superblock(folder: &Path, line: &str) -> anyhow::Result<()> {
    let (theirs, ours) = (run(Theirs, folder, line)?, run(Ours, folder, line)?);
    ensure!(theirs == ours, "1.0.8: {theirs:#?}\nours: {ours:#?}");
    Ok(())
}

/// Superblocks that kernels wrote: synced, with journal buckets and sequence numbers.
fn kernel_superblocks() -> anyhow::Result<()> {
    let names = Fixture::names()?;
    ensure!(!names.is_empty());
    for name in names {
        let fixture = Fixture::unpack(&name)?;
        for disk in fixture.disks() {
            let line = format!("bcache-super-show {}", disk.display());
            same_superblock(Path::new("/"), &line).context(name.clone())?;
        }
    }
    Ok(())
}

fn write_superblock(image: &Path, sb: &Superblock) -> anyhow::Result<()> {
    bcache_tests::image::write_at(image, SB_OFFSET_BYTES, sb.as_bytes())
}

fn read_superblock(image: &Path) -> anyhow::Result<Superblock> {
    let mut bytes = vec![0; SB_BYTES];
    File::open(image)?.read_exact_at(&mut bytes, SB_OFFSET_BYTES)?;
    Superblock::from_bytes(&bytes).context("a superblock")
}

/// Superblocks of which any field may have any value, with the checksum right or wrong.
fn varied_superblocks() -> anyhow::Result<()> {
    let (scratch, folder) = prepare(Made)?;
    let target = bcache_core::layout::verdict::Target {
        device_size: bcache_core::units::Sectors(300 * MIB / 512),
        disk_size: bcache_core::units::Sectors(300 * MIB / 512),
        logical_block_bytes: 512,
        is_bcache_volume: false,
    };
    let mut rng = rand_pcg::Pcg64::seed_from_u64(13);
    let mut compared = 0;
    for _ in 0..300 {
        let sb = vary(&mut rng, &target).superblock;
        // The differences that bcache-tools-compat(7) lists.
        let listed = matches!(sb.version(), 5 | 6)
            || sb.njournal_buckets() > 256
            || sb.label().as_bytes().iter().any(|byte| *byte > 127);
        if listed {
            continue;
        }
        compared += 1;
        write_superblock(&scratch.path("c"), &sb)?;
        same_superblock(&folder, "bcache-super-show c")?;
        same_superblock(&folder, "bcache-super-show -f c")?;
    }
    ensure!(compared > 100, "only {compared} superblocks were compared");
    Ok(())
}

/// Whatever a superblock holds, it is printed or refused, and nothing crashes.
fn damaged_superblocks() -> anyhow::Result<()> {
    let (scratch, folder) = prepare(Made)?;
    let sound = read_superblock(&scratch.path("c"))?;
    for at in (0..208).chain([2256, 2257]) {
        let mut bytes = sound.as_bytes().to_vec();
        bytes[at] ^= 0xff;
        let mut sb = Superblock::from_bytes(&bytes).context("a superblock")?;
        for mended in [false, true] {
            if mended {
                sb.update_checksum();
            }
            write_superblock(&scratch.path("c"), &sb)?;
            let ended = run(Ours, &folder, "bcache-super-show -f c")?;
            ensure!(matches!(ended.status, Some(0 | 2 | 3)), "byte {at}: {ended:#?}");
        }
    }
    // The number of keys with which 1.0.8 reads past its memory.
    let mut bytes = sound.as_bytes().to_vec();
    bytes[206..208].copy_from_slice(&[0xff, 0xff]);
    write_superblock(&scratch.path("c"), &Superblock::from_bytes(&bytes).context("one")?)?;
    let ended = run(Ours, &folder, "bcache-super-show c")?;
    ensure!(ended.output.contains("[expected none: 65535 keys]"), "{ended:#?}");
    ensure!(ended.error == "Corrupt superblock (bad csum)\n", "{ended:#?}");
    ensure!(ended.status == Some(2), "{ended:#?}");
    Ok(())
}

/// Every line that is not empty has two fields between tabs; the first word of sb.version tells the
/// role.
fn curtin() -> anyhow::Result<()> {
    let (_scratch, folder) = prepare(Made)?;
    for (device, version) in [("c", "0"), ("b", "1")] {
        let shown = run(Ours, &folder, &format!("bcache-super-show {device}"))?.output;
        let mut fields = std::collections::BTreeMap::new();
        for line in shown.lines().filter(|line| !line.trim().is_empty()) {
            let parts: Vec<&str> = line.split('\t').filter(|part| !part.is_empty()).collect();
            let [key, value] = parts.as_slice() else {
                anyhow::bail!("not two fields: {line:?}");
            };
            ensure!(fields.insert(*key, *value).is_none(), "{key} twice");
        }
        let version_shown = fields.get("sb.version").and_then(|it| it.split(' ').next());
        ensure!(version_shown == Some(version), "{fields:?}");
        ensure!(fields.get("dev.uuid") == Some(&"U") && fields.get("cset.uuid") == Some(&"U"));
    }
    Ok(())
}

/// libblockdev looks for `^UUID:\s+([-a-z0-9]+)`, twice; curtin for one line that starts with
/// `Set UUID:` and takes its last word.
fn libblockdev() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.sparse("c", 300 * MIB)?;
    scratch.sparse("b", 64 * MIB)?;
    let output = Command::new(binary("bcachectl")?)
        .arg0("make-bcache")
        .args(["-B", "b", "-C", "c"])
        .current_dir(image.parent().context("a folder")?)
        .output()?;
    let printed = String::from_utf8(output.stdout)?;
    let uuids: Vec<&str> =
        printed.lines().filter_map(|line| line.strip_prefix("UUID:")).map(str::trim).collect();
    let cache = read_superblock(&scratch.path("c"))?;
    let backing = read_superblock(&scratch.path("b"))?;
    // The cache comes first, whatever the order typed.
    ensure!(uuids == [cache.uuid().to_string(), backing.uuid().to_string()], "{printed}");

    let output = Command::new(binary("bcachectl")?)
        .arg0("make-bcache")
        .args(["--wipe-bcache", "-C"])
        .arg(&image)
        .output()?;
    let printed = String::from_utf8(output.stdout)?;
    let sets: Vec<&str> = printed.lines().filter(|line| line.starts_with("Set UUID:")).collect();
    let cache = read_superblock(&image)?;
    let words: Vec<_> = sets.iter().filter_map(|line| line.split_whitespace().last()).collect();
    ensure!(words == [cache.set_uuid().to_string()], "{printed}");
    Ok(())
}

/// Each line is a key with dots, blanks, a value, and perhaps a word in brackets.
fn salt() -> anyhow::Result<()> {
    let (_scratch, folder) = prepare(Made)?;
    for device in ["c", "b"] {
        let shown = run(Ours, &folder, &format!("bcache-super-show {device}"))?.output;
        for line in shown.lines().filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let key = words.next().context("a key")?;
            let value = words.next().with_context(|| format!("no value: {line}"))?;
            ensure!(key.split('.').all(|part| !part.is_empty()) && key.contains('.'), "{line}");
            let note = words.collect::<Vec<_>>().join(" ");
            ensure!(note.is_empty() || (note.starts_with('[') && note.ends_with(']')), "{line}");
            ensure!(!value.starts_with('['), "{line}");
        }
    }
    Ok(())
}

/// libstorage-ng (with 1.0.8's names or 1.1's) and carina read nothing that is printed: 0 has to mean that
/// it came about, and anything else that nothing was changed.
fn exit_status() -> anyhow::Result<()> {
    for make in ["make-bcache", "bcache make"] {
        for (arguments, made) in [("-C c", "c"), ("-B b", "b"), ("-B b -C c", "bc")] {
            let (scratch, folder) = prepare(Blank)?;
            let command = format!("{make} {arguments}");
            let ended = run(Ours, &folder, &command)?;
            ensure!(ended.status == Some(0), "{command}: {ended:#?}");
            for name in ["b", "c"] {
                let shown = run(Ours, &folder, &format!("bcache-super-show {name}"))?;
                let status = if made.contains(name) { 0 } else { 2 };
                ensure!(shown.status == Some(status), "{command}, {name}: {shown:#?}");
            }
            let before = read_superblock(&scratch.path(&made[..1]))?;
            // It is formatted already, which neither of them overwrites.
            let again = run(Ours, &folder, &command)?;
            ensure!(again.status == Some(1), "{command}: {again:#?}");
            let after = read_superblock(&scratch.path(&made[..1]))?;
            ensure!(before.as_bytes() == after.as_bytes(), "{command} wrote");
        }
        let (_scratch, folder) = prepare(Blank)?;
        let none = run(Ours, &folder, &format!("{make} -B b -C nodev"))?;
        ensure!(none.status == Some(1), "{none:#?}");
    }
    for command in ["bcache register nodev", "bcache-register nodev", "bcache-super-show nodev"] {
        let (_scratch, folder) = prepare(Blank)?;
        let ended = run(Ours, &folder, command)?;
        ensure!(ended.status.is_some_and(|status| status != 0), "{command}: {ended:#?}");
    }
    Ok(())
}

/// `--force` takes a superblock along only where no dirty data goes with it.
fn force() -> anyhow::Result<()> {
    for (device, dirty) in [("c", true), ("c", false), ("b", true), ("b", false)] {
        let (scratch, folder) = prepare(Made)?;
        let image = scratch.path(device);
        let mut sb = read_superblock(&image)?;
        if dirty {
            sb.edit(|edit| {
                if device == "c" {
                    edit.sync(true);
                } else {
                    edit.state(bcache_core::layout::superblock::BackingState::Dirty);
                }
            });
            write_superblock(&image, &sb)?;
        }
        let before = Contents::of(&image)?;
        let kind = if device == "c" { "-C" } else { "-B" };
        let ended = run(Ours, &folder, &format!("make-bcache --force {kind} {device}"))?;
        ensure!(ended.status == Some(i32::from(dirty)), "{device}, dirty {dirty}: {ended:#?}");
        if dirty {
            ensure!(ended.error.contains("dirty"), "{ended:#?}");
            ensure!(Contents::of(&image)? == before, "{device} was written to");
        }
        let wiped = run(Ours, &folder, &format!("make-bcache --wipe-bcache {kind} {device}"))?;
        ensure!(wiped.status == Some(i32::from(dirty)), "{wiped:#?}");
    }
    Ok(())
}

/// Where one of several devices is refused, none is written.
fn nothing_written() -> anyhow::Result<()> {
    for command in ["make-bcache -C c -B b s", "make-bcache -w 4k -C c -B nodev"] {
        let (scratch, folder) = prepare(Blank)?;
        let ended = run(Ours, &folder, command)?;
        ensure!(ended.status == Some(1) && ended.output.is_empty(), "{ended:#?}");
        for name in ["c", "b"] {
            let sb = read_superblock(&scratch.path(name))?;
            ensure!(sb.as_bytes().iter().all(|byte| *byte == 0), "{name} was written to");
        }
    }
    Ok(())
}
