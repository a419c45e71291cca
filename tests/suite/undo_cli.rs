//! `--undo` and `bcachectl undo` as a user runs them, on images that stock kernels wrote: after each command
//! the devices are byte for byte what they were, and what was used since is refused.

use anyhow::{Context as _, ensure};
use bcache_core::device::open_read;
use bcache_tests::cache::{check_clean, flip, with_cache_set};
use bcache_tests::image::{Contents, write_at};
use bcache_tests::tool::{bcachectl, run};
use bcache_tests::volume::{md5_of_backing, md5_of_device};
use bcache_tests::{Fixture, Scratch, binary};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn succeed(arguments: &[&OsStr]) -> anyhow::Result<Output> {
    let output = run(arguments)?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {message}");
    Ok(output)
}

fn os<'a>(text: &'a [&'a str]) -> impl Iterator<Item = &'a OsStr> {
    text.iter().map(OsStr::new)
}

/// Runs a command with `--undo file`, on these devices.
fn with_undo(command: &[&str], devices: &[&Path], file: &Path) -> anyhow::Result<Output> {
    let devices = devices.iter().map(|path| path.as_os_str());
    let undo = [OsStr::new("--undo"), file.as_os_str()];
    succeed(&os(command).chain(devices).chain(undo).collect::<Vec<_>>())
}

fn undo(file: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    run([OsStr::new("undo"), file.as_os_str()].into_iter().chain(os(arguments)))
}

fn undone(file: &Path) -> anyhow::Result<Value> {
    let output = undo(file, &["--yes", "--json"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("no JSON")
}

/// The undo is refused with `status`, says `word`, and leaves the devices alone.
fn refused(file: &Path, devices: &[&Path], word: &str) -> anyhow::Result<()> {
    let before = contents(devices)?;
    for how in ["--yes", "--dry-run"] {
        let output = undo(file, &[how])?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{how}: {message}");
        ensure!(message.contains(word) && message.contains("nothing was written"), "{message}");
        ensure!(message.lines().count() == 1, "{message}");
        ensure!(contents(devices)? == before, "{how} wrote: {message}");
    }
    Ok(())
}

fn contents(devices: &[&Path]) -> anyhow::Result<Vec<Contents>> {
    devices.iter().map(|path| Contents::of(path)).collect()
}

/// Does `command` with --undo, sees that it changed the devices, and takes it back: by dry run first, then
/// twice.
fn there_and_back(command: &[&str], devices: &[&Path]) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.path("undo");
    let before = contents(devices)?;
    with_undo(command, devices, &file)?;
    let after = contents(devices)?;
    ensure!(after != before, "{command:?} changed nothing");
    let planned = undo(&file, &["--dry-run", "--json"])?;
    ensure!(planned.status.success(), "{}", String::from_utf8_lossy(&planned.stderr));
    ensure!(contents(devices)? == after, "{command:?}: a dry run wrote");
    let done = undone(&file)?;
    let mut planned: Value = serde_json::from_slice(&planned.stdout)?;
    assert_eq!((&planned["state"], &done["state"]), (&"planned".into(), &"done".into()));
    planned["state"] = done["state"].clone();
    assert_eq!(planned, done);
    for (index, (now, before)) in contents(devices)?.iter().zip(&before).enumerate() {
        ensure!(now == before, "{command:?}: device {index} is not what it was");
    }
    assert_eq!(undone(&file)?["state"], "nothing", "{command:?}");
    Ok(())
}

#[test]
fn invalidate_repair_make_and_restore_are_taken_back() -> anyhow::Result<()> {
    for name in ["crash-612", "multi-612"] {
        let fixture = Fixture::unpack(name)?;
        let cache = fixture.cache.as_path();
        there_and_back(&["invalidate", "--all-clean", "--yes"], &[cache])?;
        let backing = fixture.backing[0].as_path();
        let make = ["make", "--yes", "--wipe-bcache", "--lose-dirty-data"];
        there_and_back(&[&make[..], &["--bdev"]].concat(), &[backing])?;
        there_and_back(&[&make[..], &["--cache"]].concat(), &[cache])?;

        let scratch = Scratch::new()?;
        let packed = scratch.path("cache.bci");
        let create = ["image", "create", "-o"];
        succeed(&os(&create).chain([packed.as_os_str(), cache.as_os_str()]).collect::<Vec<_>>())?;
        let other = Fixture::unpack("dirty-61")?;
        let packed = packed.to_str().context("a path")?;
        let size = fs::metadata(cache)?.len();
        fs::OpenOptions::new().write(true).open(&other.cache)?.set_len(size)?;
        let restore = ["image", "restore", "--force", "--lose-dirty-data", packed];
        there_and_back(&restore, &[&other.cache])?;

        // One bit in the root, and a wiped magic: single changes. A lost prio set: new metadata.
        let (root, prio) = with_cache_set(cache, |set| {
            let prio = *set.prios.buckets.first().context("no chain")?;
            Ok((set.root.ptrs()[0].offset().bytes(), set.geometry().bucket_to_sector(prio).bytes()))
        })?;
        flip(cache, root + 24, 1)?;
        write_at(cache, 4096 + 24, &[0; 16])?;
        there_and_back(&["repair", "--yes"], &[cache])?;
        write_at(cache, prio, &[0; 512])?;
        let accept = ["repair", "--yes", "--accept", "prio-sets", "--accept", "superblock-magic"];
        there_and_back(&accept, &[cache])?;
    }
    Ok(())
}

fn sums(cache: &Path, backing: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    with_cache_set(cache, |set| {
        backing.iter().map(|path| md5_of_backing(set, &open_read(path)?)).collect()
    })
}

/// What comes before the data of each backing device.
fn superblocks(backing: &[PathBuf]) -> anyhow::Result<Vec<[u8; 8192]>> {
    let start = |path: &PathBuf| {
        let mut bytes = [0; 8192];
        File::open(path)?.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    backing.iter().map(start).collect()
}

/// The cache and the superblocks of the backing devices are what they were, and the copied data is where it
/// does no harm: the volumes have the same sums. Also where the data of the backing device has changed since
/// in a way that no superblock shows, which is refused.
#[test]
fn writeback_is_taken_back_where_the_data_is_the_same() -> anyhow::Result<()> {
    for name in ["dirty-61", "multi-612", "crashhot-61"] {
        for how in [&[][..], &["--detach"]] {
            let fixture = Fixture::unpack(name)?;
            let (cache, backing) = (&fixture.cache, &fixture.backing);
            let devices: Vec<&Path> =
                std::iter::once(cache).chain(backing).map(PathBuf::as_path).collect();
            let scratch = Scratch::new()?;
            let file = scratch.path("undo");
            let (before, before_sums) = (contents(&devices)?, sums(cache, backing)?);
            let superblocks = superblocks(backing)?;
            let (dirty, clean) = first_extents(cache, backing.len())?;
            with_undo(&[&["writeback", "--yes"], how].concat(), &devices, &file)?;
            ensure!(contents(&devices[..1])?[0] != before[0], "{name}");
            let alone: Vec<String> =
                backing.iter().map(|path| md5_of_device(path)).collect::<Result<_, _>>()?;
            assert_eq!(alone, before_sums, "{name}");

            // The backing device was written to, and nothing but its data tells.
            for (slot, sector) in [dirty].into_iter().chain(clean.filter(|_| !how.is_empty())) {
                let path = &backing[usize::try_from(slot)?];
                flip(path, sector * 512 + 5, 1)?;
                refused(&file, &devices, "the data has changed")?;
                flip(path, sector * 512 + 5, 1)?;
            }
            // The kernel has started the set: it counts in the superblock.
            flip(cache, 4096 + 100, 1)?;
            refused(&file, &devices, "has changed since")?;
            flip(cache, 4096 + 100, 1)?;

            assert_eq!(undone(&file)?["state"], "done", "{name}");
            let now = contents(&devices)?;
            ensure!(now[0] == before[0], "{name} {how:?}: the cache is not what it was");
            ensure!(self::superblocks(backing)? == superblocks, "{name} {how:?}");
            assert_eq!(sums(cache, backing)?, before_sums, "{name}");
            // It can be written back once more.
            let again = ["writeback", "--yes"].map(OsStr::new).into_iter();
            succeed(&again.chain(devices.iter().map(|it| it.as_os_str())).collect::<Vec<_>>())?;
            assert_eq!(sums(cache, backing)?, before_sums, "{name}");
            check_clean(cache)?;
        }
    }
    Ok(())
}

/// Slot and sector.
type Place = (u32, u64);

/// Place of a dirty extent of a volume with a backing device, and of a clean one.
fn first_extents(cache: &Path, volumes: usize) -> anyhow::Result<(Place, Option<Place>)> {
    with_cache_set(cache, |set| {
        let (mut dirty, mut clean) = (None, None);
        for slot in 0..u32::try_from(volumes)? {
            set.view().lookup(slot, 0, 1 << 40, &mut |extent| {
                if extent.cached.is_some() {
                    let found = if extent.dirty { &mut dirty } else { &mut clean };
                    found.get_or_insert((slot, extent.start));
                }
                std::ops::ControlFlow::Continue(())
            })?;
        }
        Ok((dirty.context("nothing is dirty")?, clean))
    })
}

#[test]
fn what_was_used_or_damaged_since_is_refused() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("multi-612")?;
    let (cache, scratch) = (fixture.cache.as_path(), Scratch::new()?);
    let (first, second) = (scratch.path("first"), scratch.path("second"));
    let before = Contents::of(cache)?;
    with_undo(&["invalidate", "--coldest", "1", "--yes"], &[cache], &first)?;
    let between = Contents::of(cache)?;
    with_undo(&["invalidate", "--coldest", "1", "--yes"], &[cache], &second)?;
    // The first cannot be undone before the second.
    refused(&first, &[cache], "has changed since")?;
    let whole = fs::read(&second)?;
    fs::write(&second, &whole[..whole.len() - 1])?;
    refused(&second, &[cache], "damaged")?;
    fs::write(&second, [&whole[..500], &[!whole[500]], &whole[501..]].concat())?;
    refused(&second, &[cache], "second")?;
    fs::write(&second, "something else that is long enough to be looked at as one")?;
    refused(&second, &[cache], "no undo file")?;
    fs::write(&second, &whole)?;
    assert_eq!(undone(&second)?["command"], "invalidate");
    ensure!(Contents::of(cache)? == between);
    // The device has another name now, and the old name is that of another device.
    let moved = scratch.path("moved.img");
    fs::rename(cache, &moved)?;
    fs::copy(&fixture.backing[0], cache)?;
    let output = undo(&first, &["--yes"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let output = undo(&first, &[moved.to_str().context("a path")?, "--yes"])?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(Contents::of(&moved)? == before);
    Ok(())
}

/// Where the undo file cannot be written as a whole, nothing is written to the devices, and no part of the
/// file is left.
#[test]
fn without_an_undo_file_nothing_is_written() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("multi-612")?;
    let (cache, backing) = (fixture.cache.as_path(), fixture.backing[0].as_path());
    let scratch = Scratch::new()?;
    let file = scratch.path("undo");
    let before = contents(&[cache, backing])?;
    let same = || -> anyhow::Result<()> {
        ensure!(contents(&[cache, backing])? == before, "it wrote");
        ensure!(!file.exists() && !scratch.path("undo.partial").exists(), "a file is left");
        Ok(())
    };
    let commands: [&[&str]; 4] = [
        &["invalidate", "--all-clean", "--yes", "CACHE"],
        &["writeback", "--yes", "CACHE", "BACKING"],
        &["make", "--wipe-bcache", "--lose-dirty-data", "--cache", "CACHE"],
        &["make", "--wipe-bcache", "--lose-dirty-data", "--bdev", "BACKING"],
    ];
    for command in commands {
        let arguments: Vec<&OsStr> = command
            .iter()
            .map(|word| match *word {
                "CACHE" => cache.as_os_str(),
                "BACKING" => backing.as_os_str(),
                word => OsStr::new(word),
            })
            .collect();
        // A file may have 512 bytes: as on a full disk, the writing fails on the way.
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh"])
            .arg(binary("bcachectl")?)
            .args(&arguments)
            .arg("--undo")
            .arg(&file)
            .stdin(std::process::Stdio::null())
            .output()?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && message.contains("undo"), "{command:?}: {message}");
        same()?;
        for there in ["/dev/full", cache.to_str().context("a path")?] {
            let output = bcachectl()?.args(&arguments).args(["--undo", there]).output()?;
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(1), "{command:?}: {message}");
            ensure!(message.contains("exists already"), "{message}");
            same()?;
        }
        // A dry run makes none.
        let output =
            bcachectl()?.args(&arguments).arg("--dry-run").arg("--undo").arg(&file).output()?;
        ensure!(output.status.success(), "{output:?}");
        same()?;
    }
    let output = bcachectl()?
        .args(["make", "--discard", "--undo"])
        .arg(&file)
        .arg("--cache")
        .arg(cache)
        .output()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    same()
}
