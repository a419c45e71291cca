//! Copies in the machine of devices of which one was named, or none: whoever would register or pick one is
//! told.

use std::fs;
use std::path::Path;
use std::process::{ExitCode, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, ensure};
use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_tests::image::write_at;
use bcache_tests::{Fixture, LoopDevice, Need, Scratch, main_with, tool, trial};
use serde_json::Value;
use uuid::Uuid;

const LOOP: &[Need] = &[Need::Root, Need::LoopDevices];

fn main() -> ExitCode {
    main_with(vec![
        trial("copies_of_a_backing_device", LOOP, copy_of_a_backing_device),
        trial("copies_of_a_cache", LOOP, copy_of_a_cache),
        trial("copies_are_no_layers", LOOP, layers),
    ])
}

/// One test at a time: all of their caches are of one set, and two of these would be told.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A set with dirty data, under UUIDs that no other test's devices have.
fn set() -> anyhow::Result<Fixture> {
    let fixture = Fixture::unpack("dirty-61")?;
    let mut cache = fs::read(&fixture.cache)?;
    let (old, new) = renamed(&fixture.backing[0])?;
    let places: Vec<usize> =
        (0..cache.len() - 16).step_by(8).filter(|at| cache[*at..*at + 16] == old).collect();
    ensure!(!places.is_empty(), "the cache does not know its backing device");
    for at in places {
        write_at(&fixture.cache, at as u64, &new)?;
    }
    cache.clear();
    renamed(&fixture.cache)?;
    Ok(fixture)
}

/// Gives the device of an image a new UUID; the old one and the new one.
fn renamed(image: &Path) -> anyhow::Result<([u8; 16], [u8; 16])> {
    let at = usize::try_from(SB_OFFSET_BYTES)?;
    let mut bytes = fs::read(image)?[at..at + SB_BYTES].to_vec();
    let old: [u8; 16] = bytes[40..56].try_into()?;
    let new = Uuid::new_v4().into_bytes();
    bytes[40..56].copy_from_slice(&new);
    let mut superblock = Superblock::from_bytes(&bytes).context("a superblock")?;
    superblock.update_checksum();
    write_at(image, SB_OFFSET_BYTES, superblock.as_bytes())?;
    Ok((old, new))
}

fn attach(image: &Path) -> anyhow::Result<LoopDevice> {
    LoopDevice::attach(image, 512)
}

fn run(arguments: &[&str], devices: &[&Path]) -> anyhow::Result<Output> {
    Ok(tool::bcachectl()?.args(arguments).args(devices).output()?)
}

fn all_text(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}", text(&output.stdout), text(&output.stderr))
}

fn name(device: &LoopDevice) -> String {
    device.path().display().to_string()
}

/// What check says of devices of which there are copies: one finding of `code`, for each pair of `pair`.
fn is_told(devices: &[&Path], code: &str, pair: [&LoopDevice; 2]) -> anyhow::Result<()> {
    let output = run(&["check", "--json"], devices)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.code() == Some(4), "{devices:?}: {}: {report:#}", output.status);
    let findings = report["findings"].as_array().context("findings")?;
    let codes: Vec<&str> = findings.iter().filter_map(|it| it["code"].as_str()).collect();
    ensure!(codes == [code], "{devices:?}: {report:#}");
    let found = findings[0]["found"].as_str().unwrap_or_default();
    ensure!(pair.iter().all(|it| found.contains(&name(it))), "{devices:?}: {found}");
    let advice = report["advice"].as_array().context("advice")?;
    let advised: Vec<&str> = advice.iter().filter_map(|it| it["code"].as_str()).collect();
    ensure!(advised.contains(&"take-copy-away"), "{devices:?}: {advised:?}");
    for writes in ["register-and-detach", "write-back-offline"] {
        ensure!(!advised.contains(&writes), "{devices:?}: {advised:?}");
    }
    let text = all_text(&run(&["check"], devices)?);
    ensure!(!text.contains("No problems found"), "{text}");
    Ok(())
}

fn copy_of_a_backing_device() -> anyhow::Result<()> {
    let _alone = alone();
    let (fixture, scratch) = (set()?, Scratch::new()?);
    let copy = attach(&scratch.copy("copy", &fixture.backing[0])?)?;
    let (backing, cache) = (attach(&fixture.backing[0])?, attach(&fixture.cache)?);
    let (b, c, other) = (backing.path(), cache.path(), copy.path());
    let pair = [&backing, &copy];
    for devices in [&[c, b][..], &[c], &[c, b, other], &[c, other], &[b, c]] {
        is_told(devices, "backing-copied", pair)?;
    }
    // Without the cache's help.
    for device in [&[c][..], &[b]] {
        let text = all_text(&run(&["show", "--dirty"], device)?);
        ensure!(text.contains("Take the copy away"), "{text}");
        ensure!(text.contains(&name(&backing)) && text.contains(&name(&copy)), "{text}");
        ensure!(!text.contains("bcachectl writeback"), "{text}");
        // Nor is one of them picked for a command.
        let picks = [b, other].map(|it| format!("{} {}", c.display(), it.display()));
        ensure!(!picks.iter().any(|it| text.contains(it)), "{text}");
    }
    // What was named is taken; what was not is not picked.
    let target = scratch.path("volume");
    let export = |devices: &[&Path]| {
        let target = target.display().to_string();
        run(&["export", "--force", "-o", &target], devices)
    };
    let refused = export(&[c])?;
    let said = all_text(&refused);
    ensure!(refused.status.code() == Some(1) && !target.exists(), "{said}");
    ensure!(said.contains(&name(&backing)) && said.contains(&name(&copy)), "{said}");
    ensure!(said.contains("Name the one that is meant"), "{said}");
    let taken = export(&[c, b])?;
    let said = all_text(&taken);
    ensure!(taken.status.success() && target.exists(), "{said}");
    ensure!(said.contains(&format!("{} is read, as it was named", name(&backing))), "{said}");
    ensure!(said.contains(&name(&copy)), "{said}");
    let plan = run(&["writeback", "--dry-run"], &[c, b])?;
    let said = all_text(&plan);
    ensure!(plan.status.success() && said.contains("one is a copy of the other"), "{said}");
    let served = run(&["serve", "--socket", &scratch.path("socket").display().to_string()], &[c])?;
    let said = all_text(&served);
    ensure!(served.status.code() == Some(1), "{said}");
    ensure!(said.contains("Name the one that is meant"), "{said}");
    // Without the copy, nothing is said; nor of image files, whatever is in the machine.
    let images = [fixture.cache.as_path(), fixture.backing[0].as_path()];
    let silent = |devices: &[&Path]| -> anyhow::Result<()> {
        let output = run(&["check"], devices)?;
        let text = all_text(&output);
        ensure!(output.status.success() && !text.contains("copy"), "{text}");
        Ok(())
    };
    silent(&images)?;
    drop(copy);
    for devices in [&[c, b][..], &[c], &[b]] {
        silent(devices)?;
    }
    let taken = export(&[c])?;
    let said = all_text(&taken);
    ensure!(taken.status.success() && !said.contains("copy"), "{said}");
    Ok(())
}

fn copy_of_a_cache() -> anyhow::Result<()> {
    let _alone = alone();
    let (fixture, scratch) = (set()?, Scratch::new()?);
    let copy = attach(&scratch.copy("copy", &fixture.cache)?)?;
    let (backing, cache) = (attach(&fixture.backing[0])?, attach(&fixture.cache)?);
    let (b, c) = (backing.path(), cache.path());
    for devices in [&[c, b][..], &[b, c], &[c], &[b]] {
        is_told(devices, "superblock-copied", [&cache, &copy])?;
    }
    let said = all_text(&run(&["check"], &[b])?);
    ensure!(said.contains("name the one that is meant"), "{said}");
    ensure!(!said.contains("Look for the cache"), "{said}");
    let plan = run(&["writeback", "--dry-run"], &[c, b])?;
    let said = all_text(&plan);
    ensure!(plan.status.success() && said.contains("one is a copy of the other"), "{said}");
    ensure!(said.contains(&name(&copy)), "{said}");
    Ok(())
}

/// The same device by other names, and what is built on it.
fn layers() -> anyhow::Result<()> {
    let _alone = alone();
    let (fixture, scratch) = (set()?, Scratch::new()?);
    let link = scratch.path("link");
    fs::hard_link(&fixture.backing[0], &link).or_else(|_| {
        // In another file system.
        std::os::unix::fs::symlink(&fixture.backing[0], &link)
    })?;
    let (backing, cache) = (attach(&fixture.backing[0])?, attach(&fixture.cache)?);
    let layers = [
        attach(&fixture.backing[0])?,
        attach(&link)?,
        attach(backing.path())?,
        attach(cache.path())?,
    ];
    let symlink = scratch.path("symlink");
    std::os::unix::fs::symlink(backing.path(), &symlink)?;
    let by_link = symlink;
    let (b, c) = (backing.path(), cache.path());
    for devices in
        [&[c, b][..], &[c], &[b], &[c, &by_link], &[c, b, &by_link], &[c, layers[2].path()]]
    {
        let output = run(&["check"], devices)?;
        let text = all_text(&output);
        ensure!(output.status.success(), "{devices:?}: {text}");
        ensure!(!text.contains("copy"), "{devices:?}: {text}");
        // Two layers of its cache are one.
        ensure!(!text.contains("name the one"), "{devices:?}: {text}");
    }
    // What reads the devices holds them.
    drop(layers);
    let target = scratch.path("volume").display().to_string();
    let output = run(&["export", "-o", &target], &[c])?;
    let said = all_text(&output);
    ensure!(output.status.success() && !said.contains("copy"), "{said}");
    Ok(())
}
