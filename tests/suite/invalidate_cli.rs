//! `bcachectl invalidate` as a user runs it: what it prints, refuses and asks, and with which status
//! it ends. Images of stock kernels; nothing is booted.

use anyhow::{Context as _, ensure};
use bcache_core::allocator::Policy;
use bcache_core::cache_set::{GcMark, ReadOptions};
use bcache_core::device::open_read;
use bcache_core::device::testkit::{MemoryDevice, TraceDevice, TraceOp};
use bcache_core::ops::invalidate::{Amount, Options, Selection, TrustedSet, plan, run};
use bcache_core::ops::plan::Step;
use bcache_core::units::format_bytes;
use bcache_tests::cache::{Invalidated, check_clean, invalidate, run_invalidate, with_cache_set};
use bcache_tests::fault::{FAULT_UNIT_BYTES, FullLoop, ShortLoop, with_writes_refused_from};
use bcache_tests::image::{Contents, write_at};
use bcache_tests::need::unmet;
use bcache_tests::terminal::Terminal;
use bcache_tests::tool::bcachectl;
use bcache_tests::{Fixture, LoopDevice, Need, binary};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
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
    let before = Contents::of(&fixture.cache)?;
    let clean = clean_buckets(&fixture.cache)?;
    let mut planned = invalidate(&fixture.cache, &["--all-clean", "--dry-run"])?;
    let text = run_invalidate(&fixture.cache, &["--all-clean", "--dry-run"])?;
    ensure!(Contents::of(&fixture.cache)? == before, "a dry run wrote");
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
    assert_eq!(std::mem::replace(&mut planned.state, "done".to_owned()), "planned");
    assert_eq!(format!("{done:?}"), format!("{planned:?}"));
    ensure!(clean_buckets(&fixture.cache)?.is_empty());
    check_clean(&fixture.cache)
}

#[test]
fn refusals_name_the_reason_and_the_way_out() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let before = Contents::of(&fixture.cache)?;
    let clean = clean_buckets(&fixture.cache)?;
    let (dirty, node) = with_cache_set(&fixture.cache, |set| {
        let dirty = set.table.as_slice().iter().position(|it| it.mark() == GcMark::Dirty);
        let node = set.root.ptrs()[0].bucket(set.geometry());
        Ok((dirty.context("a dirty bucket")?, node))
    })?;
    let list = format!("{},{dirty},{node},0,5000", clean[0]);
    for arguments in
        [&["--bucket", &list, "--json", "--yes"][..], &["--bucket", &list, "--json", "--dry-run"]]
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
    ensure!(Contents::of(&fixture.cache)? == before, "a refused run wrote");
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
        let output = run_invalidate(&fixture.cache, &[arguments, &["--yes"]].concat())?;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output).1);
    }
    let output = run_invalidate(&fixture.backing[0], &["--all-clean", "--yes"])?;
    let (code, message) = said(&output);
    ensure!(code == Some(1) && message.contains("backing device"), "{message}");
    let output = run_invalidate(Path::new("/nonexistent"), &["--all-clean", "--yes"])?;
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
    let (code, message) = said(&run_invalidate(&fixture.cache, &["--all-clean", "--yes"])?);
    ensure!(code == Some(1) && message.contains("in use"), "{message}");
    let name = device.path().to_string_lossy().into_owned();
    ensure!(message.contains(&format!("losetup --detach {name}")), "{message}");
    // Nor may it be written by way of one loop device while another reads it.
    let second = LoopDevice::attach(&fixture.cache, 512)?;
    let before = Contents::of(&fixture.cache)?;
    for (path, other) in [(device.path(), second.path()), (second.path(), device.path())] {
        let (code, message) = said(&run_invalidate(path, &["--all-clean", "--yes"])?);
        let other = format!("losetup --detach {}", other.display());
        ensure!(code == Some(1) && message.contains(&other), "{message}");
    }
    ensure!(Contents::of(&fixture.cache)? == before, "a refused run wrote");
    drop(second);
    // The loop device itself is free.
    let report = invalidate(device.path(), &["--coldest", "5"])?;
    assert_eq!(report.invalidated.len(), 5);
    drop(device);
    check_clean(&fixture.cache)
}

/// Runs the command on a terminal; when it asks, or has ended, does `meanwhile` and then answers.
fn at_the_question(
    image: &Path,
    arguments: &[&str],
    answer: &str,
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Output> {
    let terminal = Terminal::new(80)?;
    let mut child = bcachectl()?
        .arg("invalidate")
        .arg(image)
        .args(arguments)
        .stdin(terminal.stdio()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stderr = child.stderr.take().context("standard error")?;
    let (mut message, mut byte) = (Vec::new(), [0]);
    while !message.ends_with(b"[y/N] ") && stderr.read(&mut byte)? > 0 {
        message.push(byte[0]);
    }
    meanwhile()?;
    terminal.type_keys(answer)?;
    stderr.read_to_end(&mut message)?;
    let mut output = child.wait_with_output()?;
    output.stderr = message;
    Ok(output)
}

/// On a terminal it asks, and takes anything but yes for no.
#[test]
fn it_asks_on_a_terminal() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let before = Contents::of(&fixture.cache)?;
    let answer = |answer: &str, arguments: &[&str]| {
        let output = at_the_question(&fixture.cache, arguments, answer, || Ok(()))?;
        Ok::<_, anyhow::Error>(said(&output))
    };
    let (code, message) = answer("n\n", &["--coldest", "3"])?;
    ensure!(code == Some(1) && message.contains("3 buckets would be invalidated"), "{message}");
    ensure!(message.contains("Go on?") && message.contains("nothing was written"), "{message}");
    ensure!(Contents::of(&fixture.cache)? == before, "a no was taken for a yes");
    let (code, message) = answer("y\n", &["--coldest", "3"])?;
    ensure!(code == Some(0) && message.contains("Go on?"), "{message}");
    ensure!(Contents::of(&fixture.cache)? != before, "a yes was taken for a no");
    let (code, message) = answer("", &["--coldest", "3", "--yes"])?;
    ensure!(code == Some(0) && !message.contains("Go on?"), "{message}");
    check_clean(&fixture.cache)
}

/// Where nobody can be asked, silence is no consent.
#[test]
fn without_a_terminal_it_wants_yes() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let before = Contents::of(&fixture.cache)?;
    for arguments in [&["--coldest", "3"][..], &["--all-clean", "--json"]] {
        let output = run_invalidate(&fixture.cache, arguments)?;
        let (code, message) = said(&output);
        ensure!(code == Some(1) && message.contains("--yes"), "{message}");
        ensure!(message.contains("nothing was written") && output.stdout.is_empty(), "{message}");
    }
    ensure!(Contents::of(&fixture.cache)? == before, "it wrote");
    let output = run_invalidate(&fixture.cache, &["--coldest", "3", "--dry-run"])?;
    assert_eq!(output.status.code(), Some(0));
    Ok(())
}

/// What cannot be printed changes nothing about what was done, and the status says so.
#[test]
fn a_report_that_nobody_gets() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let run = |arguments: &[&str], stdout: Stdio| -> anyhow::Result<Output> {
        let mut command = bcachectl()?;
        command.arg("invalidate").arg(&fixture.cache).args(arguments).stdout(stdout);
        Ok(command.stderr(Stdio::piped()).spawn()?.wait_with_output()?)
    };
    let full =
        || -> anyhow::Result<Stdio> { Ok(File::options().write(true).open("/dev/full")?.into()) };
    let closed = || -> anyhow::Result<Stdio> {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        drop(reader);
        Ok(writer.into())
    };
    let left = || clean_buckets(&fixture.cache).map(|clean| clean.len());
    let before = left()?;
    for (json, gone) in [("--json", 3), ("--yes", 6)] {
        let arguments = ["--coldest", "3", "--yes", json];
        let arguments = if json == "--yes" { &arguments[..3] } else { &arguments };
        let (code, message) = said(&run(arguments, full()?)?);
        ensure!(code == Some(6) && message.contains("are invalidated"), "{code:?}: {message}");
        assert_eq!(left()?, before - gone);
    }
    let (code, message) = said(&run(&["--coldest", "3", "--yes"], closed()?)?);
    assert_eq!((code, message.as_str()), (Some(0), ""));
    assert_eq!(left()?, before - 9);
    // A refusal stays one.
    let bytes = Contents::of(&fixture.cache)?;
    for stdout in [closed()?, full()?] {
        let (code, message) = said(&run(&["--bucket", "0,9000", "--yes"], stdout)?);
        ensure!(code == Some(1) && message.contains("2 refused"), "{code:?}: {message}");
    }
    ensure!(Contents::of(&fixture.cache)? == bytes, "a refused run wrote");
    check_clean(&fixture.cache)
}

/// Whatever is refused comes with what to do instead, in every form of output.
#[test]
fn refusals_come_with_advice() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let clean = clean_buckets(&fixture.cache)?;
    let (dirty, node) = with_cache_set(&fixture.cache, |set| {
        let marks = set.table.as_slice().iter();
        let dirty = (0u64..).zip(marks).filter(|(_, it)| it.mark() == GcMark::Dirty);
        let dirty: Vec<String> = dirty.take(6).map(|(number, _)| number.to_string()).collect();
        Ok((dirty.join(","), set.root.ptrs()[0].bucket(set.geometry())))
    })?;
    ensure!(dirty.split(',').count() == 6, "{dirty}");
    // The last kinds come after more refusals than the message tells of.
    let list = format!("{},{dirty},{node},9999999,9999999-10000000", clean[0]);
    let kinds = |report: &Invalidated| -> Vec<(String, u64)> {
        let mut kinds: Vec<_> =
            report.advice.iter().map(|it| (it.kind.clone(), it.buckets)).collect();
        kinds.sort_unstable();
        kinds
    };
    let expected = [("btree", 1), ("dirty", 6), ("out of range", 1)]
        .map(|(kind, buckets)| (kind.to_owned(), buckets));
    let refused = run_invalidate(&fixture.cache, &["--bucket", &list, "--yes", "--json"])?;
    let (code, message) = said(&refused);
    assert_eq!(code, Some(1));
    for part in ["writethrough", "trigger_gc", "no such bucket"] {
        ensure!(message.contains(part), "{part} is not in: {message}");
    }
    let report: Invalidated = serde_json::from_slice(&refused.stdout)?;
    assert_eq!((report.state.as_str(), kinds(&report)), ("refused", expected.to_vec()));
    ensure!(
        report.refused.iter().all(|it| kinds(&report).iter().any(|(kind, _)| *kind == it.kind))
    );
    let skipped = ["--bucket", &list, "--skip-refused", "--yes"];
    let text = run_invalidate(&fixture.cache, &skipped)?;
    assert_eq!(said(&text), (Some(0), String::new()));
    let text = String::from_utf8(text.stdout)?;
    for part in ["what to do instead:", "writethrough", "trigger_gc", "no such bucket"] {
        ensure!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(text.matches("9999999").count(), 1, "{text}");

    // What no one named is no failure, also where nothing else is left.
    let volume = ["--volume", "0", "--yes"];
    for expected in ["buckets invalidated", "nothing to invalidate"] {
        let output = run_invalidate(&fixture.cache, &volume)?;
        assert_eq!(said(&output), (Some(0), String::new()));
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.contains(expected) && text.contains("what to do instead:"), "{text}");
    }
    let report = invalidate(&fixture.cache, &volume[..2])?;
    ensure!(report.state == "done" && !report.refused.is_empty() && !report.advice.is_empty());
    check_clean(&fixture.cache)
}

#[test]
fn a_policy_that_finds_too_few_says_so() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let arguments = ["--policy", "random", "--count", "1000000", "--dry-run"];
    let report = invalidate(&fixture.cache, &arguments)?;
    let gave_up = report.gave_up.context("it did not give up")?;
    assert_eq!((gave_up.found, gave_up.wanted), (report.invalidated.len() as u64, 1_000_000));
    let text = run_invalidate(&fixture.cache, &arguments)?;
    let text = String::from_utf8(text.stdout)?;
    let expected = format!("the policy gave up after {} of 1000000", gave_up.found);
    ensure!(text.contains(&expected), "{text}");
    Ok(())
}

/// What `--dry-run` says would be written is what a device is asked to write.
#[test]
fn the_dry_run_prints_what_is_written() -> anyhow::Result<()> {
    for name in Fixture::names()? {
        let fixture = Fixture::unpack(&name)?;
        let disk = MemoryDevice::from_reader(&mut File::open(&fixture.cache)?)?;
        let read = ReadOptions::default();
        let selection = Selection::Policy { policy: Policy::Fifo, count: 9, seed: 0 };
        let options = Options { selection, skip_refused: false, walk: read.walk };
        let plan = plan(TrustedSet::read(&disk, &read, &mut |_| {})?, &options)?;
        let traced = TraceDevice::new(disk.snapshot());
        run(plan, &read, || Ok(&traced), &mut |_| {}).result?;
        let written: Vec<String> = traced
            .changes()
            .iter()
            .map(|event| match &event.op {
                TraceOp::Write { offset, len, .. } => {
                    format!("{} at sector {}", format_bytes(*len), offset / 512)
                }
                op => op.operation().to_string(),
            })
            .collect();
        let arguments = ["--policy", "fifo", "--count", "9", "--dry-run"];
        let text = String::from_utf8(run_invalidate(&fixture.cache, &arguments)?.stdout)?;
        let (_, printed) = text.split_once("would be written:\n").context("no writes")?;
        let printed: Vec<&str> =
            printed.lines().map(|line| line.rsplit(": ").next().unwrap_or(line).trim()).collect();
        assert_eq!(printed, written, "{name}");
    }
    Ok(())
}

/// Where the new chain and the journal entry of an invalidation of [`FEW`] go, in bytes.
fn places(image: &Path) -> anyhow::Result<(u64, u64)> {
    let device = open_read(image)?;
    let read = ReadOptions::default();
    let options = Options {
        selection: Selection::Coldest(Amount::Count(3)),
        skip_refused: false,
        walk: read.walk,
    };
    let plan = plan(TrustedSet::read(&device, &read, &mut |_| {})?, &options)?;
    let offsets: Vec<u64> = plan
        .steps()
        .filter_map(|step| match step {
            Step::Write { offset, .. } => Some(offset),
            _ => None,
        })
        .collect();
    assert_eq!(offsets.len(), 2);
    Ok((offsets[0], offsets[1]))
}

const FEW: [&str; 3] = ["--coldest", "3", "--json"];

/// The status and what is printed, where the run failed after it was planned.
fn ended(output: &Output, code: i32, state: &str, words: &str) -> anyhow::Result<Invalidated> {
    let (found, message) = said(output);
    ensure!(found == Some(code), "{found:?} instead of {code}: {message}");
    ensure!(message.contains(words), "{message}");
    let report: Invalidated = serde_json::from_slice(&output.stdout).context(message)?;
    assert_eq!(report.state, state);
    assert_eq!(report.invalidated.len(), if code == 1 { 0 } else { 3 });
    assert_eq!(report.journal_seq.is_some(), code != 1);
    Ok(report)
}

#[test]
fn a_write_that_fails_before_the_entry_changes_nothing() -> anyhow::Result<()> {
    if unmet(&[Need::Program("prlimit", "util-linux")]).is_some() {
        return Ok(());
    }
    let fixture = Fixture::unpack("clean-612")?;
    let clean = clean_buckets(&fixture.cache)?;
    let (chain, _) = places(&fixture.cache)?;
    for torn in [0, 4096] {
        let mut command = with_writes_refused_from(binary("bcachectl")?, chain + torn);
        command.arg("invalidate").arg(&fixture.cache).args(FEW).arg("--yes").stdin(Stdio::null());
        ended(&command.output()?, 1, "unchanged", "only unused buckets were written")?;
        assert_eq!(clean_buckets(&fixture.cache)?, clean);
        check_clean(&fixture.cache)?;
    }
    assert_eq!(invalidate(&fixture.cache, &FEW[..2])?.invalidated.len(), 3);
    check_clean(&fixture.cache)
}

#[test]
fn an_entry_that_cannot_be_written_leaves_old_or_new() -> anyhow::Result<()> {
    if unmet(&[Need::Root, Need::LoopDevices]).is_some() {
        return Ok(());
    }
    let fixture = Fixture::unpack("clean-612")?;
    let clean = clean_buckets(&fixture.cache)?;
    let (_, entry) = places(&fixture.cache)?;
    let bytes = std::fs::read(&fixture.cache)?;
    let bad = entry..entry + FAULT_UNIT_BYTES;
    let device = FullLoop::new(bytes.len() as u64, std::slice::from_ref(&bad))?;
    let bad = usize::try_from(entry)?..usize::try_from(entry + FAULT_UNIT_BYTES)?;
    ensure!(bytes[bad.clone()].iter().all(|&byte| byte == 0), "something is in the entry's place");
    let node = File::options().write(true).open(device.path())?;
    node.write_all_at(&bytes[..bad.start], 0)?;
    node.write_all_at(&bytes[bad.end..], bad.end as u64)?;
    node.sync_all()?;
    drop(node);
    let output = run_invalidate(device.path(), &[&FEW[..], &["--yes"]].concat())?;
    ended(&output, 3, "old-or-new", "sound either way")?;
    assert_eq!(clean_buckets(device.path())?, clean);
    check_clean(device.path())
}

/// A device that fails to read while the question is open: all is written, and nothing proven.
#[test]
fn what_cannot_be_read_again_is_unproven() -> anyhow::Result<()> {
    if unmet(&[Need::Root, Need::LoopDevices]).is_some() {
        return Ok(());
    }
    let fixture = Fixture::unpack("clean-612")?;
    let (chain, entry) = places(&fixture.cache)?;
    let root = root_offset(&fixture.cache)?;
    ensure!(
        root > chain.max(entry) && root % FAULT_UNIT_BYTES == 0,
        "the root lies before the chain"
    );
    let before = clean_buckets(&fixture.cache)?.len();
    let bytes = std::fs::read(&fixture.cache)?;
    let device = ShortLoop::new(&fixture.cache, bytes.len() as u64)?;
    let image = File::options().write(true).open(&fixture.cache)?;
    let output = at_the_question(device.path(), &FEW, "y\n", || Ok(image.set_len(root)?))?;
    ended(&output, 4, "unproven", "could not be read again")?;
    // Whole again, it has what was planned.
    let tail = usize::try_from(root)?;
    image.write_all_at(&bytes[tail..], root)?;
    drop((device, image));
    assert_eq!(clean_buckets(&fixture.cache)?.len(), before - 3);
    check_clean(&fixture.cache)
}

/// A btree node that something destroys while the question is open.
#[test]
fn what_reads_as_something_else_is_undefined() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("clean-612")?;
    let root = root_offset(&fixture.cache)?;
    let destroy = || write_at(&fixture.cache, root, &[0x55; 4096]);
    let output = at_the_question(&fixture.cache, &FEW, "y\n", destroy)?;
    ended(&output, 5, "undefined", "do not register the cache")?;
    Ok(())
}

fn root_offset(image: &Path) -> anyhow::Result<u64> {
    with_cache_set(image, |set| Ok(set.root.ptrs()[0].offset().bytes()))
}
