//! `bcachectl invalidate` as a user runs it: what it prints, refuses and asks, and with which status
//! it ends. Images of stock kernels; nothing is booted.

use anyhow::{Context as _, ensure};
use bcache_core::cache_set::GcMark;
use bcache_tests::cache::{Invalidated, check_clean, invalidate, run_invalidate, with_cache_set};
use bcache_tests::need::unmet;
use bcache_tests::tool::bcachectl;
use bcache_tests::{Fixture, LoopDevice, Need};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Output, Stdio};

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn clean_buckets(image: &Path) -> anyhow::Result<Vec<u64>> {
    with_cache_set(image, |set| {
        let clean = (0u64..).zip(set.table.as_slice());
        let clean = clean.filter(|(_, bucket)| bucket.mark() == GcMark::Reclaimable);
        Ok(clean.map(|(number, _)| number).collect())
    })
}

#[test]
fn dry_run_shows_all_and_writes_nothing() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let before = std::fs::read(&fixture.cache)?;
    let clean = clean_buckets(&fixture.cache)?;
    let planned = invalidate(&fixture.cache, &["--all-clean", "--dry-run"])?;
    let text = run_invalidate(&fixture.cache, &["--all-clean", "--dry-run"])?;
    ensure!(std::fs::read(&fixture.cache)? == before, "a dry run wrote");
    let numbers = |report: &Invalidated| -> Vec<u64> {
        report.invalidated.iter().map(|bucket| bucket.bucket).collect()
    };
    assert_eq!(numbers(&planned), clean);
    let text = String::from_utf8(text.stdout)?;
    for bucket in &planned.invalidated {
        let gens = format!("{}->{}", bucket.gen_before, bucket.gen_after);
        let row = text.lines().find(|line| {
            line.split_whitespace().next() == Some(bucket.bucket.to_string().as_str())
        });
        let row: Vec<&str> = row.context("no row for a bucket")?.split_whitespace().collect();
        assert_eq!(row[1..4], [&bucket.prio.to_string(), &gens, &bucket.sectors.to_string()]);
        ensure!(row.len() > 4 && row[4] != "-", "whose data is it? {row:?}");
    }
    let seq = planned.journal_seq.context("no journal entry")?;
    ensure!(text.contains(&format!("journal entry {seq}:")), "{text}");
    ensure!(text.contains(&format!("{} buckets would be invalidated", clean.len())), "{text}");

    // The run that follows does just that.
    let done = invalidate(&fixture.cache, &["--all-clean"])?;
    assert_eq!(format!("{done:?}"), format!("{planned:?}"));
    ensure!(clean_buckets(&fixture.cache)?.is_empty());
    check_clean(&fixture.cache)
}

#[test]
fn refusals_name_the_reason_and_the_way_out() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let before = std::fs::read(&fixture.cache)?;
    let clean = clean_buckets(&fixture.cache)?;
    let (dirty, node) = with_cache_set(&fixture.cache, |set| {
        let dirty = set.table.as_slice().iter().position(|it| it.mark() == GcMark::Dirty);
        let node = set.root.ptrs()[0].bucket(set.geometry());
        Ok((dirty.context("a dirty bucket")?, node))
    })?;
    let list = format!("{},{dirty},{node},0,5000", clean[0]);
    for arguments in
        [&["--bucket", &list, "--json"][..], &["--bucket", &list, "--json", "--dry-run"]]
    {
        let output = run_invalidate(&fixture.cache, arguments)?;
        let (code, message) = said(&output);
        assert_eq!(code, Some(1), "{message}");
        for part in ["4 refused", "only copy", "writethrough", "btree node", "--skip-refused"] {
            ensure!(message.contains(part), "{part} is not in: {message}");
        }
        assert_eq!(message.lines().count(), 1);
        let report: Invalidated = serde_json::from_slice(&output.stdout)?;
        ensure!(report.invalidated.is_empty() && report.journal_seq.is_none());
        ensure!(report.prio_chain.is_empty() && report.refused.len() == 4, "{report:?}");
        ensure!(report.refused.iter().all(|it| !it.reason.is_empty()), "{report:?}");
    }
    ensure!(std::fs::read(&fixture.cache)? == before, "a refused run wrote");
    let report = invalidate(&fixture.cache, &["--bucket", &list, "--skip-refused"])?;
    assert_eq!((report.invalidated.len(), report.refused.len()), (1, 4));
    assert_eq!(report.invalidated[0].bucket, clean[0]);
    check_clean(&fixture.cache)?;

    for (arguments, code) in [
        (&["--volume", "nobody"][..], 1),
        (&["--bucket", "1-"], 2),
        (&["--bucket", "1", "--all-clean"], 2),
        (&["--sectors", "5"], 2),
        (&["--range", "0+8", "--all-clean"], 2),
        (&["--range", "0+8", "--bucket", "1"], 2),
        (&["--count", "5", "--all-clean"], 2),
        (&["--seed", "5", "--coldest", "1"], 2),
        (&["--coldest", "101%"], 2),
        (&["--policy", "lru"], 2),
        (&["--count", "5"], 2),
        (&[], 2),
    ] {
        let output = run_invalidate(&fixture.cache, arguments)?;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output).1);
    }
    let output = run_invalidate(&fixture.backing[0], &["--all-clean"])?;
    let (code, message) = said(&output);
    ensure!(code == Some(1) && message.contains("backing device"), "{message}");
    let output = run_invalidate(Path::new("/nonexistent"), &["--all-clean"])?;
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}

#[test]
fn a_device_in_use_is_refused() -> anyhow::Result<()> {
    if unmet(&[Need::LoopDevices]).is_some() {
        return Ok(());
    }
    let fixture = Fixture::unpack("clean-612")?;
    let device = LoopDevice::attach(&fixture.cache, 512)?;
    let (code, message) = said(&run_invalidate(&fixture.cache, &["--all-clean"])?);
    ensure!(code == Some(1) && message.contains("in use"), "{message}");
    let name = device.path().to_string_lossy().into_owned();
    ensure!(message.contains(&format!("losetup --detach {name}")), "{message}");
    // The loop device itself is free.
    let report = invalidate(device.path(), &["--coldest", "5"])?;
    assert_eq!(report.invalidated.len(), 5);
    drop(device);
    check_clean(&fixture.cache)
}

/// On a terminal it asks, and takes anything but yes for no.
#[test]
fn it_asks_on_a_terminal() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let before = std::fs::read(&fixture.cache)?;
    let answer = |answer: &str, arguments: &[&str]| -> anyhow::Result<(Option<i32>, String)> {
        let terminal = nix::pty::openpty(None, None)?;
        let mut master = File::from(terminal.master);
        let mut child = bcachectl()?
            .arg("invalidate")
            .arg(&fixture.cache)
            .args(arguments)
            .stdin(terminal.slave)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        master.write_all(answer.as_bytes())?;
        let mut said = String::new();
        child.stderr.take().context("standard error")?.read_to_string(&mut said)?;
        Ok((child.wait()?.code(), said))
    };
    let (code, said) = answer("n\n", &["--coldest", "3"])?;
    ensure!(code == Some(1) && said.contains("3 buckets would be invalidated"), "{said}");
    ensure!(said.contains("Go on?") && said.contains("nothing was written"), "{said}");
    ensure!(std::fs::read(&fixture.cache)? == before, "a no was taken for a yes");
    let (code, said) = answer("y\n", &["--coldest", "3"])?;
    ensure!(code == Some(0) && said.contains("Go on?"), "{said}");
    ensure!(std::fs::read(&fixture.cache)? != before, "a yes was taken for a no");
    let (code, said) = answer("", &["--coldest", "3", "--yes"])?;
    ensure!(code == Some(0) && !said.contains("Go on?"), "{said}");
    check_clean(&fixture.cache)
}
