//! `bcachectl writeback` as a user runs it, on images that stock kernels wrote: the volumes read as the
//! kernels said, the backing devices alone do so afterwards, and refusals name the way out. Nothing is
//! booted.

use anyhow::{Context as _, ensure};
use bcache_core::device::{ReadDevice as _, open_read};
use bcache_core::layout::superblock::BackingState;
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::ops::make::read_superblock;
use bcache_tests::cache::{check_clean, run_writeback, with_cache_set, writeback};
use bcache_tests::image::write_at;
use bcache_tests::need::unmet;
use bcache_tests::volume::{md5_of_backing, md5_of_device};
use bcache_tests::{Fixture, LoopDevice, Need};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Sums of the volumes with a backing device, read through the cache.
fn sums(cache: &Path, backing: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    with_cache_set(cache, |set| {
        backing.iter().map(|path| md5_of_backing(set, &open_read(path)?)).collect()
    })
}

/// Sums of the backing devices alone, from the data offset on.
fn alone(backing: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    backing.iter().map(|path| md5_of_device(path)).collect()
}

fn dirty(cache: &Path) -> anyhow::Result<Vec<(u32, u64)>> {
    with_cache_set(cache, |set| {
        let volumes = set.volumes.iter();
        let dirty = volumes.map(|(slot, usage)| (*slot, usage.dirty_sectors.0));
        Ok(dirty.filter(|(_, dirty)| *dirty > 0).collect())
    })
}

fn number(report: &Value, key: &str) -> u64 {
    report.get(key).and_then(Value::as_u64).unwrap_or(u64::MAX)
}

/// Every set that kernels left: with dirty data, cut in mid-write, with several backing devices and a
/// flash-only volume.
#[test]
fn the_backing_devices_alone_are_the_volumes() -> anyhow::Result<()> {
    for name in Fixture::names()? {
        let fixture = Fixture::unpack(&name)?;
        let (cache, backing) = (&fixture.cache, &fixture.backing);
        let before = sums(cache, backing)?;
        // The kernel printed sums of those sets that it stopped.
        for (index, sum) in before.iter().enumerate() {
            if let Some(printed) = fixture.log.md5(&format!("/dev/bcache{index}")) {
                assert_eq!(sum, printed, "{name}");
            }
        }
        let dirty_before = dirty(cache)?;
        let was_dirty =
            dirty_before.iter().any(|(slot, _)| *slot < u32::try_from(backing.len()).unwrap_or(0));
        ensure!(!was_dirty || alone(backing)? != before, "{name}: there was nothing to write back");
        let images: Vec<Vec<u8>> =
            backing.iter().chain([cache]).map(std::fs::read).collect::<Result<_, _>>()?;
        let output = run_writeback(cache, backing, &["--dry-run"])?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let planned: Value = serde_json::from_slice(&output.stdout)?;
        let now: Vec<Vec<u8>> =
            backing.iter().chain([cache]).map(std::fs::read).collect::<Result<_, _>>()?;
        ensure!(images == now, "{name}: a dry run wrote");
        drop((images, now));

        let done = writeback(cache, backing, &["--verify"])?;
        assert_eq!(alone(backing)?, before, "{name}");
        assert_eq!(sums(cache, backing)?, before, "{name}");
        if was_dirty {
            assert_eq!(done["state"], "done", "{name}");
            assert_eq!(planned["state"], "planned", "{name}");
            assert_eq!(number(&done, "journal_seq"), number(&planned, "journal_seq"), "{name}");
            ensure!(
                planned["steps"].as_array().is_some_and(|it| it.len() > 4),
                "{name}: {planned}"
            );
            assert_eq!(planned["volumes"], done["volumes"], "{name}");
        }
        // What is left is flash-only.
        let left: Vec<(u32, u64)> = dirty(cache)?;
        assert_eq!(left.len(), usize::from(name == "multi-612"), "{name}: {left:?}");
        ensure!(left.iter().all(|it| dirty_before.contains(it)), "{name}: {left:?}");
        for path in backing {
            let sb = read_superblock(&open_read(path)?)?.context("no superblock")?;
            assert_eq!(sb.state().name(), "clean", "{name}");
        }
        check_clean(cache)?;
        assert_eq!(writeback(cache, backing, &[])?["state"], "nothing", "{name}");
    }
    Ok(())
}

#[test]
fn one_volume_and_detaching() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("multi-612")?;
    let (cache, backing) = (&fixture.cache, &fixture.backing);
    let before = sums(cache, backing)?;
    let dirty_before = dirty(cache)?;
    let report = writeback(cache, backing, &["--volume", "1"])?;
    assert_eq!(report["volumes"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["kept"].as_array().map(Vec::len), Some(2));
    assert_eq!(sums(cache, backing)?, before);
    assert_eq!(alone(&backing[1..])?, before[1..]);
    let expected: Vec<_> = dirty_before.into_iter().filter(|(slot, _)| *slot != 1).collect();
    assert_eq!(dirty(cache)?, expected);

    let report = writeback(cache, &backing[..1], &["--detach"])?;
    ensure!(report["detach"] == true && report["state"] == "done", "{report}");
    assert_eq!(alone(backing)?, before);
    let sb = read_superblock(&open_read(&backing[0])?)?.context("no superblock")?;
    ensure!(sb.state().name() == "none" && sb.set_uuid().is_nil());
    with_cache_set(cache, |set| {
        ensure!(set.uuids.get(0).is_some_and(UuidEntry::is_detached));
        ensure!(!set.volumes.contains_key(&0), "keys of a detached volume are left");
        Ok(())
    })?;
    // The other volume is as it was.
    assert_eq!(sums(cache, &backing[1..])?, before[1..]);
    check_clean(cache)
}

#[test]
fn refusals_write_nothing_and_name_the_way_out() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let other = Fixture::unpack("multi-612")?;
    let (cache, backing) = (&fixture.cache, &fixture.backing);
    let images =
        || -> anyhow::Result<_> { Ok((std::fs::read(cache)?, std::fs::read(&backing[0])?)) };
    let before = images()?;
    let refused = |backing: &[PathBuf], arguments: &[&str], code: i32, words: &[&str]| {
        for how in ["--yes", "--dry-run"] {
            let output = run_writeback(cache, backing, &[arguments, &[how]].concat())?;
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
            for word in words {
                ensure!(message.contains(word), "{word} is not in: {message}");
            }
            ensure!(code == 2 || message.lines().count() == 1, "{message}");
        }
        Ok(())
    };
    refused(&other.backing[..1], &[], 1, &["of the set", "nothing was written"])?;
    refused(std::slice::from_ref(cache), &[], 1, &["nothing was written"])?;
    refused(backing, &["--volume", "nobody"], 1, &["no volume", "show --uuids"])?;
    refused(&[], &[], 2, &["BACKING"])?;
    refused(&[PathBuf::from("/nonexistent")], &[], 1, &["/nonexistent"])?;
    let twice = [backing[0].clone(), backing[0].clone()];
    let output = run_writeback(cache, &twice, &["--dry-run"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("same backing device").count(), 1, "{said}");
    // A terminal is wanted where nobody said --yes.
    let output = run_writeback(cache, backing, &[])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stderr).contains("--yes"), "{output:?}");
    if unmet(&[Need::LoopDevices]).is_none() {
        let _held = LoopDevice::attach(&backing[0], 512)?;
        refused(backing, &[], 1, &["in use", "losetup --detach"])?;
    }
    ensure!(images()? == before, "a refused run wrote");

    // The device ran without its cache: state none, then stale.
    for state in [0u64, 3] {
        let device = open_read(&backing[0])?;
        let mut sb = read_superblock(&device)?.context("no superblock")?;
        let flags = sb.flags() & !(3 << 61) | state << 61;
        sb.edit(|edit| {
            edit.flags(flags);
        });
        write_at(&backing[0], 4096, sb.as_bytes())?;
        let expected: &[&str] = &["may be newer", "nothing was written"];
        refused(backing, &[], 1, expected)?;
        ensure!(device.info().size_bytes > 0);
        write_at(&backing[0], 4096, &before.1[4096..8192])?;
    }
    // Damage: the magic of the root's first set.
    let root = with_cache_set(cache, |set| Ok(set.root.ptrs()[0].offset().bytes()))?;
    write_at(cache, root + 8, &[0xff; 8])?;
    refused(backing, &[], 1, &["damaged", "bcachectl check"])
}

/// A device that was detached or run without the cache is written to only where that is asked for. It is
/// detached then, because what the cache holds clean of it is old.
#[test]
fn a_device_that_ran_alone_is_written_to_by_name_only() -> anyhow::Result<()> {
    for state in [BackingState::None, BackingState::Stale] {
        let fixture = Fixture::unpack("dirty-61")?;
        let (cache, backing) = (&fixture.cache, &fixture.backing);
        let before = sums(cache, backing)?;
        let mut sb = read_superblock(&open_read(&backing[0])?)?.context("no superblock")?;
        sb.edit(|edit| {
            edit.state(state);
            if state == BackingState::None {
                edit.set_uuid(uuid::Uuid::nil());
            }
        });
        write_at(&backing[0], 4096, sb.as_bytes())?;
        let alone = run_writeback(cache, backing, &["--ran-alone", "--dry-run"])?;
        assert_eq!(alone.status.code(), Some(2), "--ran-alone needs --detach: {alone:?}");
        let output = run_writeback(cache, backing, &["--detach", "--yes"])?;
        assert_eq!(output.status.code(), Some(1), "{state}: {output:?}");
        let report = writeback(cache, backing, &["--detach", "--ran-alone", "--verify"])?;
        assert_eq!(report["state"], "done", "{report}");
        let sb = read_superblock(&open_read(&backing[0])?)?.context("no superblock")?;
        ensure!(sb.state() == BackingState::None && sb.set_uuid().is_nil(), "{state}");
        assert_eq!(md5_of_device(&backing[0])?, before[0], "{state}");
        ensure!(dirty(cache)?.is_empty(), "{state}");
        check_clean(cache)?;
    }
    Ok(())
}
