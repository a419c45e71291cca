//! `bcachectl repair` as a user runs it, on images that stock kernels wrote: what was damaged is, byte for
//! byte, what the kernel had written.

use anyhow::{Context as _, ensure};
use bcache_tests::Fixture;
use bcache_tests::cache::{flip, with_cache_set};
use bcache_tests::image::{Contents, write_at};
use bcache_tests::tool::run;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Output;

fn repair(image: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let devices = [OsStr::new("repair"), image.as_os_str()];
    run(devices.into_iter().chain(arguments.iter().map(OsStr::new)))
}

fn report(output: &Output) -> anyhow::Result<Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A bit in a node, in a prio set and in the newest journal entry, and the superblock's magic wiped: the
/// kernel's own bytes come back.
#[test]
fn what_the_kernel_wrote_is_restored() -> anyhow::Result<()> {
    for name in ["crashhot-61", "multi-612", "dirty-61"] {
        let fixture = Fixture::unpack(name)?;
        let image = &fixture.cache;
        let sound = Contents::of(image)?;
        let (node, prio, entry) = with_cache_set(image, |set| {
            let newest = set.journal.newest().context("no entry")?;
            let at = set.geometry().bucket_to_sector(newest.place.bucket).bytes();
            let prio = set.prios.buckets.first().context("no chain")?;
            Ok((
                set.root.ptrs()[0].offset().bytes() + 24,
                set.geometry().bucket_to_sector(*prio).bytes() + 1001,
                at + newest.place.offset + 45,
            ))
        })?;
        for (byte, mask) in [(node, 1), (prio, 0x20), (entry, 0x80)] {
            flip(image, byte, mask)?;
        }
        write_at(image, 4096 + 24, &[0; 16])?;
        let damaged = Contents::of(image)?;

        let output = repair(image, &["--dry-run", "--json"])?;
        let planned = report(&output)?;
        assert_eq!(
            (output.status.code(), &planned["state"]),
            (Some(0), &"planned".into()),
            "{name}"
        );
        ensure!(Contents::of(image)? == damaged, "{name}: a dry run wrote");
        let changes = planned["changes"].as_array().context("no changes")?;
        assert_eq!(changes.len(), 4, "{name}: {planned}");
        ensure!(changes.iter().all(|it| it["class"] == "certain"), "{name}: {planned}");
        assert_eq!(planned["left"], Value::Array(Vec::new()), "{name}");

        let output = repair(image, &["--yes", "--json"])?;
        assert_eq!(output.status.code(), Some(0), "{name}: {}", report(&output)?);
        assert_eq!(report(&output)?["changes"], planned["changes"], "{name}");
        ensure!(Contents::of(image)? == sound, "{name}: not what the kernel wrote");
        let output = repair(image, &["--yes"])?;
        ensure!(output.status.success());
        ensure!(
            String::from_utf8_lossy(&output.stdout).contains("nothing to repair"),
            "{output:?}"
        );
    }
    Ok(())
}

#[test]
fn what_cannot_be_mended_is_said_and_left() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let image = &fixture.cache;
    let root = with_cache_set(image, |set| Ok(set.root.ptrs()[0].offset().bytes()))?;
    write_at(image, root, &[0x5a; 512])?;
    let damaged = Contents::of(image)?;
    let output = repair(image, &["--yes", "--json"])?;
    assert_eq!(output.status.code(), Some(4));
    let told = report(&output)?;
    ensure!(told["state"] == "nothing" && told["changes"] == Value::Array(Vec::new()), "{told}");
    ensure!(told["left"].as_array().is_some_and(|left| !left.is_empty()), "{told}");
    ensure!(Contents::of(image)? == damaged, "something was written");

    // With the magic gone as well, its repair is not certain: the kernel would take the set.
    write_at(image, 4096 + 24, &[0; 16])?;
    let output = repair(image, &["--yes"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4));
    ensure!(text.contains("--accept superblock-magic"), "{text}");
    let output = repair(image, &["--yes", "--accept", "superblock-magic"])?;
    assert_eq!(output.status.code(), Some(4));
    ensure!(Contents::of(image)? == damaged, "the magic is not back");
    for (arguments, code) in [(&["--accept", "nonsense"][..], 2), (&[], 1)] {
        assert_eq!(repair(image, arguments)?.status.code(), Some(code), "{arguments:?}");
    }
    Ok(())
}

/// A cause that spoils many places at once is summed up.
#[test]
fn what_is_left_of_one_cause_takes_a_few_lines() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    wipe_uuid_table(&fixture.cache, false)?;
    let left = report(&repair(&fixture.cache, &["-n", "--json"])?)?;
    let count = left["left"].as_array().context("left")?.len();
    ensure!(count > 100, "{left}");
    let backing = fixture.backing[0].to_str().context("UTF-8")?;
    for arguments in [&["-n"][..], &["-n", backing]] {
        let output = repair(&fixture.cache, arguments)?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.contains(&format!(": {count} problems\n")), "{text}");
        let keys = text.lines().filter(|line| line.ends_with("which the uuid table does not have"));
        assert_eq!(keys.count(), 5, "{text}");
        ensure!(text.contains(&format!("\n  and {} more of key-no-volume\n", count - 5)), "{text}");
    }
    Ok(())
}

#[test]
fn a_backing_superblock_is_repaired() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("multi-612")?;
    let sound = Contents::of(&fixture.backing[1])?;
    flip(&fixture.backing[1], 4096 + 60, 4)?;
    let backing: Vec<&str> = fixture
        .backing
        .iter()
        .map(|path| path.to_str().context("UTF-8"))
        .collect::<Result<_, _>>()?;
    let output = repair(&fixture.cache, &[&backing[..], &["--yes", "--json"]].concat())?;
    assert_eq!(output.status.code(), Some(0), "{}", report(&output)?);
    ensure!(Contents::of(&fixture.backing[1])? == sound);
    Ok(())
}

/// Without its cache, what its own checksum proves comes back; what nobody vouches for is left.
#[test]
fn a_backing_device_is_repaired_alone() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let backing = &fixture.backing[0];
    let sound = Contents::of(backing)?;
    let name = backing.to_str().context("UTF-8")?;
    let log = fixture.cache.with_file_name("repair.undo");
    write_at(backing, 4096 + 24, &[0; 16])?;
    flip(backing, 4096 + 73, 8)?;
    let damaged = Contents::of(backing)?;
    let checked = run([OsStr::new("check"), backing.as_os_str()])?;
    let advised = format!("bcachectl repair --dry-run {name}\n");
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(text.contains(&advised), "{text}");

    let output = repair(backing, &["--dry-run", "--json"])?;
    let planned = report(&output)?;
    assert_eq!(output.status.code(), Some(0), "{planned}");
    assert_eq!(planned["changes"][0]["code"], "superblock-magic", "{planned}");
    assert_eq!(planned["changes"][0]["class"], "certain", "{planned}");
    assert_eq!(planned["changes"][0]["device"], name, "{planned}");
    assert_eq!(planned["dirty_sectors_after"], Value::Null, "{planned}");
    ensure!(Contents::of(backing)? == damaged, "a dry run wrote");

    let undo = log.to_str().context("UTF-8")?;
    let output = repair(backing, &["--yes", "--undo", undo])?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(Contents::of(backing)? == sound, "not what the kernel wrote");
    let output = run([OsStr::new("undo"), log.as_os_str(), OsStr::new("--yes")])?;
    ensure!(output.status.success() && Contents::of(backing)? == damaged, "{output:?}");
    // Named with its cache, in any order.
    let cache = fixture.cache.to_str().context("UTF-8")?;
    let output = repair(backing, &[cache, "--yes", "--json"])?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(report(&output)?["dirty_sectors_before"], report(&output)?["dirty_sectors_after"]);
    ensure!(Contents::of(backing)? == sound, "not what the kernel wrote");
    let output = repair(backing, &["--dry-run"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!((output.status.code(), text), (Some(0), format!("{name}: nothing to repair\n")));

    // The cache knows the device; alone it does not know itself.
    write_at(backing, 4096, &[0x55; 8])?;
    let damaged = Contents::of(backing)?;
    let output = repair(backing, &["--yes", "--accept", "superblock-checksum"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    ensure!(text.contains("Name the cache of the device, too"), "{text}");
    ensure!(Contents::of(backing)? == damaged, "something was written");
    for claim in [["--owner", "0=x"], ["--flash-only", "0=1G"]] {
        let output = repair(backing, &[&claim[..], &["--dry-run"]].concat())?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && text.contains("none was named"), "{text}");
    }
    let output = repair(backing, &[cache, "--yes", "--accept", "superblock-checksum"])?;
    ensure!(output.status.success() && Contents::of(backing)? == sound, "{output:?}");
    Ok(())
}

/// A partition table over a backing device's head and end: its data tells whose it is, and the cache has what
/// was overwritten behind the superblock. What is not proven is made only when it is accepted.
#[test]
fn a_backing_superblock_that_is_gone_is_made_again() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    let name = backing.to_str().context("UTF-8")?;
    let sound = std::fs::read(backing)?;
    write_at(backing, 0, &vec![0x5a; 34 * 512])?;
    write_at(backing, (sound.len() - 33 * 512) as u64, &vec![0x5a; 33 * 512])?;
    let damaged = Contents::of(backing)?;
    let checked = run([OsStr::new("check"), backing.as_os_str(), cache.as_os_str()])?;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    let advised = format!("bcachectl repair --dry-run {} {name}\n", cache.display());
    ensure!(text.contains(&advised) && text.contains("may be that of volume 0"), "{text}");
    ensure!(!text.contains("safe to wipe"), "{text}");
    // Alone, nothing tells what it was.
    let output = repair(backing, &["--yes"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    ensure!(Contents::of(backing)? == damaged, "something was written");

    let output = repair(cache, &[name, "--yes", "--json"])?;
    let done = report(&output)?;
    assert_eq!(output.status.code(), Some(0), "{done}");
    let changes = done["changes"].as_array().context("no changes")?;
    let certain = |it: &Value| it["class"] == "certain" && it["code"] == "superblock-gone";
    ensure!(changes.iter().all(certain) && changes[0]["volume"] == 0, "{done}");
    // All is what it was, but for the time and the number of writes in the superblock.
    let mended = std::fs::read(backing)?;
    let differing: Vec<usize> = (0..sound.len()).filter(|&at| mended[at] != sound[at]).collect();
    let in_superblock =
        |at: &usize| (4096..4104).contains(at) || (4096 + 200..4096 + 204).contains(at);
    ensure!(differing.iter().all(in_superblock), "{differing:?}");
    let checked = run(["check", "--verify-clean"]
        .map(OsStr::new)
        .into_iter()
        .chain([cache.as_os_str(), backing.as_os_str()]))?;
    ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));

    let fixture = Fixture::unpack("multi-612")?;
    let [first, second] = [0, 1].map(|at| fixture.backing[at].to_str().unwrap_or_default());
    let sound = [std::fs::read(first)?, std::fs::read(second)?];
    for image in &fixture.backing {
        write_at(image, 4096, &[0; 4096])?;
    }
    // The second is too small for the volume of the first.
    let output = repair(&fixture.cache, &[first, second, "--json", "--dry-run"])?;
    let planned = report(&output)?;
    assert_eq!(output.status.code(), Some(4), "{planned}");
    let of = |at: usize| &planned["changes"][at];
    for (at, name) in [(0, second), (1, first)] {
        let at = if of(at)["device"] == name { at } else { 1 - at };
        assert_eq!(
            (of(at)["class"].as_str(), of(at)["accepted"].as_bool()),
            (Some("guess"), Some(false))
        );
        assert_eq!(of(at)["volume"], u32::from(name == second), "{planned}");
    }
    // Whose it is, a person says; not of one that does not fit.
    let owner = format!("1={first}");
    let output = repair(&fixture.cache, &[first, "--dry-run", "--owner", &owner])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("volume 1") && text.contains("command line"), "{text}");
    let owner = format!("0={second}");
    let output = repair(&fixture.cache, &[second, "--dry-run", "--owner", &owner])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("too small for volume 0"), "{text}");
    let output = repair(&fixture.cache, &[first, "--dry-run"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("--owner SLOT=BACKING") && text.contains("volume 0 or 1"), "{text}");

    let accept = ["--yes", "--accept", "superblock-gone"];
    let output = repair(&fixture.cache, &[&[first, second], &accept[..]].concat())?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (path, sound) in [first, second].into_iter().zip(&sound) {
        let mended = std::fs::read(path)?;
        // uuid, set, label, flags, and the block size.
        ensure!(mended[4096 + 16..4096 + 112] == sound[4096 + 16..4096 + 112], "{path}");
        ensure!(mended[4096 + 184..4096 + 196] == sound[4096 + 184..4096 + 196], "{path}");
        ensure!(mended[8192..] == sound[8192..], "{path}");
    }
    Ok(())
}

/// Swap space that was made over a backing device takes the magic away, or comes after the superblock is gone.
#[test]
fn what_holds_something_else_now_is_not_certain() -> anyhow::Result<()> {
    for (code, wiped, class) in [
        ("superblock-magic", 4096 + 24..4096 + 40, "likely"),
        ("superblock-gone", 4096..8192, "guess"),
    ] {
        let fixture = Fixture::unpack("clean-612")?;
        let backing = &fixture.backing[0];
        let mut swap = vec![0; 4096];
        swap[1024] = 1;
        swap[1028..1030].copy_from_slice(&[0xff, 0x0f]);
        swap[4086..].copy_from_slice(b"SWAPSPACE2");
        write_at(backing, 0, &swap)?;
        write_at(backing, wiped.start, &vec![0; usize::try_from(wiped.end - wiped.start)?])?;
        let damaged = Contents::of(backing)?;
        let name = backing.to_str().context("UTF-8")?;
        let output = repair(&fixture.cache, &[name, "--yes", "--json"])?;
        let planned = report(&output)?;
        assert_eq!(output.status.code(), Some(4), "{planned}");
        let change = &planned["changes"][0];
        assert_eq!((change["code"].as_str(), change["class"].as_str()), (Some(code), Some(class)));
        let reasons = change["reasons"].to_string();
        ensure!(reasons.contains("something else now") && reasons.contains("swap"), "{planned}");
        ensure!(Contents::of(backing)? == damaged, "{code}: made without being accepted");
        let output = repair(&fixture.cache, &[name, "--yes", "--accept", code])?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(())
}

/// The uuid table of a set, one slot or all that a block has.
fn wipe_uuid_table(image: &Path, noise: bool) -> anyhow::Result<()> {
    let at = with_cache_set(image, |set| {
        let bucket = set.uuids.bucket.context("no uuid table")?;
        Ok(set.geometry().bucket_to_sector(bucket).bytes())
    })?;
    write_at(image, at, &[if noise { 0x5a } else { 0 }; 512])
}

fn set_uuid(image: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(std::fs::read(image)?[4096 + 56..4096 + 72].to_vec())
}

/// Superblock and uuid table of a cache are gone: any backing device of the set has the whole of its UUID.
/// Half of one is never made up.
#[test]
fn the_set_uuid_is_that_of_a_backing_device() -> anyhow::Result<()> {
    for (name, noise) in
        [("clean-612", true), ("clean-612", false), ("dirty-61", true), ("dirty-61", false)]
    {
        let fixture = Fixture::unpack(name)?;
        let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
        let path = backing.to_str().context("UTF-8")?;
        wipe_uuid_table(cache, noise)?;
        write_at(cache, 4096, &[0; 512])?;
        let damaged = Contents::of(cache)?;
        let accept = ["--yes", "--accept", "superblock-gone", "--accept", "uuid-table", "--json"];

        let output = repair(cache, &accept)?;
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(text.contains("only the backing devices of that set"), "{name}: {text}");
        ensure!(Contents::of(cache)? == damaged, "{name}: something was written");

        let checked = run([OsStr::new("check"), cache.as_os_str(), backing.as_os_str()])?;
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        let advised = format!("bcachectl repair --dry-run {} {path}\n", cache.display());
        ensure!(text.contains(&advised), "{name}: {text}");
        ensure!(!text.contains("this cache is not that set"), "{name}: {text}");

        let output = repair(cache, &[&[path], &accept[..]].concat())?;
        let done = report(&output)?;
        assert_eq!(set_uuid(cache)?, set_uuid(backing)?, "{name}: {done}");
        assert_eq!(output.status.code(), Some(0), "{name}: {done}");
        let checked = run([OsStr::new("check"), cache.as_os_str(), backing.as_os_str()])?;
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        ensure!(checked.status.code().is_some_and(|code| code < 4), "{name}: {text}");
    }
    Ok(())
}

/// Which volume is whose, only the backing devices tell where the uuid table is lost: the advice names those
/// that were named.
#[test]
fn the_advised_repair_has_all_backing_devices() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    wipe_uuid_table(cache, false)?;
    let checked = run([OsStr::new("check"), cache.as_os_str(), backing.as_os_str()])?;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    let advised = format!("bcachectl repair --dry-run {} {}\n", cache.display(), backing.display());
    ensure!(text.contains(&advised), "{text}");
    let output = repair(cache, &[backing.to_str().context("UTF-8")?, "--dry-run", "--json"])?;
    ensure!(report(&output)?["new_metadata"].is_object(), "followed, the advice does not help");
    Ok(())
}

/// The slot of a clean volume is lost, alone and with the prio sets: its backing device is put into the table
/// again, and the check has nothing more to say.
#[test]
fn a_complete_device_that_the_table_lacks_gets_a_slot() -> anyhow::Result<()> {
    for prios in [false, true] {
        let fixture = Fixture::unpack("clean-612")?;
        let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
        let path = backing.to_str().context("UTF-8")?;
        let chain = with_cache_set(cache, |set| {
            let bucket = set.prios.buckets.first().context("no chain")?;
            Ok(set.geometry().bucket_to_sector(*bucket).bytes())
        })?;
        wipe_uuid_table(cache, false)?;
        if prios {
            write_at(cache, chain, &[0; 512])?;
        }
        let checked = run([OsStr::new("check"), cache.as_os_str(), backing.as_os_str()])?;
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        let advised = format!("bcachectl repair --dry-run {} {path}\n", cache.display());
        assert_eq!(checked.status.code(), Some(4));
        ensure!(text.contains(&advised), "{text}");

        let accept = ["--yes", "--accept", "prio-sets", "--accept", "uuid-table"];
        let output = repair(cache, &[&[path], &accept[..]].concat())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        ensure!((prios || text.contains("its data")) && !text.contains("00000000-"), "{text}");
        let checked = run(["check", "--verify-clean"]
            .map(OsStr::new)
            .into_iter()
            .chain([cache.as_os_str(), backing.as_os_str()]))?;
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        ensure!(checked.status.success() && !text.contains("RISK"), "{text}");
    }
    Ok(())
}

/// Of two caches, the first is not repaired in silence while the other one is the set that is meant.
#[test]
fn a_second_cache_is_refused() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    let new = cache.with_file_name("new.img");
    File::create(&new)?.set_len(128 << 20)?;
    let made =
        run(["make", "--cache", "--yes"].map(OsStr::new).into_iter().chain([new.as_os_str()]))?;
    ensure!(made.status.success(), "{made:?}");
    for (first, second) in [(&new, cache), (cache, &new)] {
        for option in ["--dry-run", "--yes"] {
            let paths = [second, backing].map(|path| path.to_str());
            let output = repair(first, &[option, paths[0].unwrap(), paths[1].unwrap()])?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let expected = format!("{} is a cache device, too", second.display());
            ensure!(text.contains(&expected) && text.contains("nothing was written"), "{text}");
            ensure!(output.status.code() == Some(1), "{output:?}");
        }
    }
    Ok(())
}

/// A new cache has nothing to repair. What the backing device lacks is not there, and that is said.
#[test]
fn a_new_cache_beside_an_incomplete_backing_device() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let backing = fixture.backing[0].to_str().context("a path")?;
    let new = fixture.cache.with_file_name("new.img");
    File::create(&new)?.set_len(128 << 20)?;
    let made =
        run(["make", "--cache", "--yes"].map(OsStr::new).into_iter().chain([new.as_os_str()]))?;
    ensure!(made.status.success(), "{made:?}");
    let alone = repair(&new, &["--dry-run"])?;
    let text = String::from_utf8_lossy(&alone.stdout).into_owned();
    ensure!(alone.status.success() && text.contains("nothing to repair"), "{alone:?}");
    let both = repair(&new, &["--dry-run", backing])?;
    let text = String::from_utf8_lossy(&both.stdout).into_owned();
    ensure!(text.contains("of which this cache holds nothing"), "{both:?}");
    ensure!(!text.contains("nothing to repair") && both.status.code() == Some(4), "{both:?}");
    Ok(())
}
