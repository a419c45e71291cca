//! Beside bcache-tools 1.0.8 and libblkid: the same options make the same bytes, and what we write
//! reads there as it does here.

use anyhow::{Context as _, bail, ensure};
use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_tests::need::find_program;
use bcache_tests::tool::{bcachectl, number, run, show, text, truth};
use bcache_tests::{LoopDevice, Need, Scratch, main_with, trial};
use libtest_mimic::Trial;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const BCACHE_TOOLS: &[Need] = &[
    Need::Program("make-bcache", "bcache-tools"),
    Need::Program("bcache-super-show", "bcache-tools"),
];

const SET: &str = "11111111-2222-3333-4444-555555555555";

fn main() -> ExitCode {
    let mut trials: Vec<Trial> = OPTIONS
        .iter()
        .map(|options| {
            let name = format!("same_bytes {}", options.arguments);
            trial(name, BCACHE_TOOLS, || same_bytes(options))
        })
        .collect();
    for sector_size in [512, 4096] {
        let name = format!("same_bytes_on_loop_devices_of_{sector_size}");
        let needs = &[Need::LoopDevices, Need::Program("make-bcache", "bcache-tools")];
        trials.push(trial(name, needs, move || same_bytes_on_loop_devices(sector_size)));
    }
    trials.push(trial("super_show_agrees", BCACHE_TOOLS, super_show_agrees));
    let blkid = &[Need::Program("blkid", "util-linux")];
    trials.push(trial("blkid_sees_bcache_alone", blkid, blkid_sees_bcache));
    main_with(trials)
}

/// One command line for both programs. `CACHE`, `CACHE2`, `BACKING` and `BACKING2` stand for
/// images, which are of this size.
struct Options {
    arguments: &'static str,
    cache_bytes: u64,
    backing_bytes: u64,
}

const fn options(arguments: &'static str, cache_bytes: u64) -> Options {
    Options { arguments, cache_bytes, backing_bytes: 10 << 20 }
}

const MIB: u64 = 1 << 20;

const OPTIONS: [Options; 31] = [
    options("-C CACHE", 300 * MIB),
    options("--cache CACHE", 300 * MIB + 4096 * 5),
    options("-B BACKING", 0),
    options("--bdev BACKING", 0),
    options("-C CACHE -B BACKING", 300 * MIB),
    options("-B BACKING -C CACHE", 300 * MIB),
    options("-C CACHE -B BACKING BACKING2", 300 * MIB),
    options("-C CACHE CACHE2", 300 * MIB),
    options("-b 4k -w 2k -C CACHE", 5 * MIB),
    options("-b 8k -C CACHE", 5 * MIB),
    options("-b 16k -C CACHE -w 512", 9 * MIB),
    options("-C CACHE -b 32k", 33 * MIB),
    options("-C -b 64k CACHE", 33 * MIB),
    options("--bucket 128k -C CACHE", 65 * MIB),
    options("--bucket=256k -C CACHE", 129 * MIB),
    options("-b 1M --cache CACHE", 514 * MIB),
    options("-b 2m -C CACHE", 1027 * MIB),
    options("-b 4m -C CACHE", 2054 * MIB),
    options("-b16m -C CACHE", 8210 * MIB),
    options("-w 512 -C CACHE -B BACKING", 300 * MIB),
    options("-w 1k -C CACHE -B BACKING", 300 * MIB),
    options("--block 2k -C CACHE -B BACKING", 300 * MIB),
    options("--block=4k -C CACHE -B BACKING", 300 * MIB),
    options("--discard -C CACHE", 300 * MIB),
    options("--writeback -C CACHE -B BACKING", 300 * MIB),
    options("-C CACHE --cset-uuid SET -B BACKING", 300 * MIB),
    options("--cset-uuid SET -B BACKING BACKING2 --writeback", 0),
    options("-B -o 2048 BACKING", 0),
    options("--data-offset 4096 -B BACKING --writeback", 0),
    options("--cache_replacement_policy=fifo -C CACHE --discard -b 64k", 33 * MIB),
    options("--cache_replacement_policy random -B BACKING -C CACHE", 300 * MIB),
];

impl Options {
    /// Makes the images in a folder of their own, and the arguments that name them.
    fn prepare(&self, scratch: &Scratch, who: &str) -> anyhow::Result<(Vec<String>, Vec<PathBuf>)> {
        let mut images = Vec::new();
        let mut arguments = Vec::new();
        for word in self.arguments.split(' ') {
            arguments.push(match word {
                "CACHE" | "CACHE2" | "BACKING" | "BACKING2" => {
                    let cache = word.starts_with("CACHE");
                    let size = if cache { self.cache_bytes } else { self.backing_bytes };
                    let image = scratch.sparse(&format!("{who}-{word}"), size)?;
                    images.push(image.clone());
                    image.to_string_lossy().into_owned()
                }
                "SET" => SET.to_owned(),
                word => word.to_owned(),
            });
        }
        ensure!(!images.is_empty(), "no image in {}", self.arguments);
        Ok((arguments, images))
    }
}

fn same_bytes(options: &Options) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let (arguments, theirs) = options.prepare(&scratch, "theirs")?;
    let output = program("make-bcache")?.args(arguments).output()?;
    ensure!(output.status.success(), "make-bcache: {}", String::from_utf8_lossy(&output.stderr));
    let (arguments, ours) = options.prepare(&scratch, "ours")?;
    let output = run(std::iter::once("make".to_owned()).chain(arguments))?;
    ensure!(output.status.success(), "bcachectl: {}", String::from_utf8_lossy(&output.stderr));

    // Which devices share a set is the same, too.
    let sets = |images: &[PathBuf]| -> anyhow::Result<Vec<usize>> {
        let uuids: Vec<_> = images
            .iter()
            .map(|it| Ok(superblock(it)?.set_uuid()))
            .collect::<anyhow::Result<_>>()?;
        Ok(uuids.iter().filter_map(|uuid| uuids.iter().position(|other| other == uuid)).collect())
    };
    // But for several caches in one command: make-bcache gives them one set, which no kernel since
    // 5.10 assembles, and we give each its own.
    if !options.arguments.contains("CACHE2") {
        ensure!(sets(&theirs)? == sets(&ours)?, "other devices share a set");
    }
    let given_set = options.arguments.contains("SET");
    for (theirs, ours) in theirs.iter().zip(&ours) {
        compare(theirs, ours, given_set).with_context(|| ours.display().to_string())?;
    }
    Ok(())
}

/// The block size that nobody asked for is the same, too.
fn same_bytes_on_loop_devices(sector_size: u32) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut images = Vec::new();
    for who in ["theirs", "ours"] {
        let cache = scratch.sparse(&format!("{who}-cache"), 300 * MIB)?;
        let backing = scratch.sparse(&format!("{who}-backing"), 10 * MIB)?;
        let devices =
            [LoopDevice::attach(&cache, sector_size)?, LoopDevice::attach(&backing, sector_size)?];
        let mut command = if who == "ours" { bcachectl()? } else { program("make-bcache")? };
        if who == "ours" {
            command.arg("make");
        }
        command.arg("-C").arg(devices[0].path()).arg("-B").arg(devices[1].path());
        let output = command.output()?;
        ensure!(output.status.success(), "{who}: {}", String::from_utf8_lossy(&output.stderr));
        images.push([cache, backing]);
    }
    for (theirs, ours) in images[0].iter().zip(&images[1]) {
        compare(theirs, ours, false).with_context(|| ours.display().to_string())?;
        ensure!(superblock(ours)?.block_size().bytes() == u64::from(sector_size));
    }
    Ok(())
}

/// Compares two images but for their random uuids.
fn compare(theirs: &Path, ours: &Path, given_set: bool) -> anyhow::Result<()> {
    const UUID: std::ops::Range<usize> = 40..56;
    const SET_UUID: std::ops::Range<usize> = 56..72;
    let their_superblock = superblock(theirs)?;
    let our_superblock = superblock(ours)?;
    for superblock in [&their_superblock, &our_superblock] {
        ensure!(superblock.csum_ok() && !superblock.uuid().is_nil());
        ensure!(!superblock.set_uuid().is_nil() && superblock.uuid() != superblock.set_uuid());
        ensure!(!given_set || superblock.set_uuid().to_string() == SET, "another set");
    }
    ensure!(their_superblock.uuid() != our_superblock.uuid(), "a uuid that is not random");
    let mut expected = our_superblock.as_bytes().to_vec();
    let uuids: &[_] = if given_set { &[UUID] } else { &[UUID, SET_UUID] };
    for range in uuids {
        expected[range.clone()].copy_from_slice(&their_superblock.as_bytes()[range.clone()]);
    }
    let mut expected = Superblock::from_bytes(&expected).context("a superblock")?;
    expected.update_checksum();
    let different = (0..SB_BYTES)
        .filter(|&at| expected.as_bytes()[at] != their_superblock.as_bytes()[at])
        .collect::<Vec<_>>();
    ensure!(different.is_empty(), "bytes {different:?} of the superblock differ");
    // Neither writes anything else on an empty device.
    for image in [theirs, ours] {
        let mut file = File::open(image)?;
        let length = file.metadata()?.len();
        ensure!(length == theirs.metadata()?.len(), "another size");
        let mut start = vec![0; usize::try_from(length.min(4 << 20))?];
        file.read_exact(&mut start)?;
        let start_of_sb = usize::try_from(SB_OFFSET_BYTES)?;
        start[start_of_sb..start_of_sb + SB_BYTES].fill(0);
        ensure!(start.iter().all(|byte| *byte == 0), "more than the superblock was written");
    }
    Ok(())
}

fn superblock(image: &Path) -> anyhow::Result<Superblock> {
    let mut bytes = vec![0; usize::try_from(SB_OFFSET_BYTES)? + SB_BYTES];
    File::open(image)?.read_exact(&mut bytes)?;
    Superblock::from_bytes(&bytes[usize::try_from(SB_OFFSET_BYTES)?..]).context("too few bytes")
}

fn program(name: &str) -> anyhow::Result<Command> {
    Ok(Command::new(find_program(name).with_context(|| name.to_owned())?))
}

/// bcache-super-show reads what we write, and prints the values that our `show` prints.
fn super_show_agrees() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let cases: [&[&str]; 6] = [
        &["-b", "64k", "--cache-replacement-policy", "fifo", "--discard", "-C"],
        &["-w", "512", "-l", "a label", "-C"],
        &["--cache-replacement-policy", "random", "-l", "a label of thirty-one bytes xxx", "-C"],
        &["--writeback", "-l", "a label", "-B"],
        &["-o", "4096", "-B"],
        &["-o", "64", "-w", "1k", "--cset-uuid", SET, "-B"],
    ];
    for (index, case) in cases.iter().enumerate() {
        let image = scratch.sparse(&index.to_string(), 600 * MIB)?;
        let arguments = case.iter().copied();
        let output =
            run(["make"].into_iter().chain(arguments).chain([image.to_str().context("UTF-8")?]))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs = super_show(&image)?;
        let ours = show(&image)?;
        for (name, expected) in expected_of_super_show(&ours)? {
            let said = theirs.get(name).map(String::as_str);
            ensure!(said == Some(expected.as_str()), "{name}: {said:?}, and we say {expected}");
        }
        // Both say the same of a superblock with a bad checksum.
        bcache_tests::image::write_at(&image, SB_OFFSET_BYTES + 112, &[1])?;
        let output = program("bcache-super-show")?.arg("-f").arg(&image).output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(printed.contains("[expected "), "{printed}");
        let output = run(["show".as_ref(), "--json".as_ref(), image.as_os_str()])?;
        let shown: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(output.status.code() == Some(1), "{shown}");
        ensure!(text(&shown, "/devices/0/superblock/checksum")? == "bad", "{shown}");
    }
    Ok(())
}

/// What bcache-super-show prints, by its names.
fn super_show(image: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let output = program("bcache-super-show")?.arg(image).output()?;
    if !output.status.success() {
        bail!("bcache-super-show: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let printed = String::from_utf8(output.stdout)?;
    let line = |line: &str| {
        let (name, value) = line.split_once('\t')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    Ok(printed.lines().filter_map(line).collect())
}

/// The same from our own JSON.
fn expected_of_super_show(device: &Value) -> anyhow::Result<Vec<(&'static str, String)>> {
    let sb = device.get("superblock").context("a superblock")?;
    let figure = |name: &str| number(sb, &format!("/{name}"));
    let label = text(sb, "/label")?;
    let version = figure("version")?;
    let mut lines = vec![
        ("sb.magic", "ok".to_owned()),
        ("sb.first_sector", "8 [match]".to_owned()),
        ("dev.label", if label.is_empty() { "(empty)" } else { label }.replace(' ', "%20")),
        ("dev.uuid", text(sb, "/uuid")?.to_owned()),
        ("dev.sectors_per_block", figure("block_size_sectors")?.to_string()),
        ("cset.uuid", text(sb, "/set_uuid")?.to_owned()),
    ];
    if text(device, "/kind")? == "cache" {
        let bucket = figure("bucket_size_sectors")?;
        let (first, total) = (figure("first_bucket")? * bucket, figure("nbuckets")? * bucket);
        let discard = if truth(sb, "/discard")? { "yes" } else { "no" };
        let policy = text(sb, "/replacement")?;
        let value = ["lru", "fifo", "random"].iter().position(|name| *name == policy);
        lines.extend([
            ("sb.version", format!("{version} [cache device]")),
            ("dev.sectors_per_bucket", bucket.to_string()),
            ("dev.cache.first_sector", first.to_string()),
            ("dev.cache.cache_sectors", (total - first).to_string()),
            ("dev.cache.total_sectors", total.to_string()),
            ("dev.cache.discard", discard.to_owned()),
            ("dev.cache.replacement", format!("{} [{policy}]", value.context("a policy")?)),
        ]);
    } else {
        let mode = text(sb, "/cache_mode")?;
        let value = u64::from(mode == "writeback");
        ensure!(text(sb, "/state")? == "none", "a new device is {sb}");
        lines.extend([
            ("sb.version", format!("{version} [backing device]")),
            ("dev.data.first_sector", figure("data_offset_sectors")?.to_string()),
            ("dev.data.cache_mode", format!("{value} [{mode}]")),
            ("dev.data.cache_state", "0 [detached]".to_owned()),
        ]);
    }
    Ok(lines)
}

/// libblkid finds bcache with our uuid and label, and nothing else.
fn blkid_sees_bcache() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    for (index, kind) in ["--cache", "--bdev"].iter().enumerate() {
        let image = scratch.sparse(&index.to_string(), 300 * MIB)?;
        let path = image.to_str().context("UTF-8")?;
        let output = run(["make", "--label", "a label", kind, path])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = program("blkid")?.args(["-p", "-o", "export"]).arg(&image).output()?;
        let printed = String::from_utf8(output.stdout)?;
        let values: BTreeMap<&str, &str> =
            printed.lines().filter_map(|line| line.split_once('=')).collect();
        let shown = show(&image)?;
        ensure!(values.get("TYPE") == Some(&"bcache"), "{printed}");
        ensure!(values.get("UUID") == Some(&text(&shown, "/superblock/uuid")?), "{printed}");
        // Before util-linux 2.39, libblkid does not tell the label of a bcache device.
        let label = values.get("LABEL").copied();
        ensure!(label.is_none_or(|label| label.replace("\\ ", " ") == "a label"), "{printed}");
    }
    Ok(())
}
