//! `bcachectl repair`, judged by the stock kernels. They register sets that were damaged and repaired without
//! a complaint, and the volumes are what they were, or what was announced.
//!
//! Each guest judges all cases one after the other, a stage for each.

use anyhow::{Context as _, ensure};
use bcache_core::cache_set::{CacheDevice, CacheSet, LoadedNode, NodePlace, ReadOptions, Visitor};
use bcache_core::device::open_read;
use bcache_core::units::BucketIndex;
use bcache_tests::cache::{check_clean, flip, with_cache_set};
use bcache_tests::image::write_at;
use bcache_tests::tool::run;
use bcache_tests::volume::md5_of_backing;
use bcache_tests::{DiskOptions, Fixture, Guest, Kernel, Need, Scratch, main_with, trial};
use rand::{RngCore as _, SeedableRng as _};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Output};
use std::time::Duration;

fn main() -> ExitCode {
    let mut trials =
        vec![trial("on_the_host".to_owned(), &[], || cases(&Scratch::new()?).map(drop))];
    for kernel in Kernel::ALL {
        trials.push(trial(format!("repaired_{kernel}"), &[Need::Guest], move || judged(kernel)));
    }
    main_with(trials)
}

/// What is done to a kernel's set.
struct Damage {
    name: &'static str,
    fixture: &'static str,
    /// Damages the cache image.
    make: fn(&Path) -> anyhow::Result<()>,
    /// Codes that have to be accepted.
    accept: &'static [&'static str],
    /// How sure the repair is.
    class: &'static str,
    /// Whether the volumes are what they were; else they are what was announced.
    whole: bool,
}

const DAMAGES: &[Damage] = &[
    Damage {
        name: "bits-and-magic",
        fixture: "crashhot-61",
        make: |image| {
            let (root, prio) = (root_byte(image)?, prio_byte(image)?);
            flip(image, root + 40, 4)?;
            flip(image, prio + 999, 1)?;
            write_at(image, 4096 + 24, &[0; 16])
        },
        accept: &[],
        class: "certain",
        whole: true,
    },
    Damage {
        name: "later-set-of-a-leaf",
        fixture: "dirty-61",
        make: |image| spoil(image, sets(image)?.get(1).context("one set")? + 64, 256),
        accept: &[],
        class: "certain",
        whole: true,
    },
    Damage {
        name: "later-set-and-prio-set",
        fixture: "multi-612",
        make: |image| {
            spoil(image, prio_byte(image)?, 4096)?;
            spoil(image, sets(image)?.get(1).context("one set")? + 32, 64)
        },
        accept: &["prio-sets", "btree-node"],
        class: "likely",
        whole: true,
    },
    Damage {
        name: "leaf-zeroed",
        fixture: "dirty-61",
        make: |image| write_at(image, root_byte(image)?, &[0; 128 << 10]),
        accept: &["btree-node"],
        class: "likely",
        whole: true,
    },
    Damage {
        name: "prio-set",
        fixture: "dirty-61",
        make: |image| spoil(image, prio_byte(image)?, 4096),
        accept: &["prio-sets"],
        class: "likely",
        whole: true,
    },
    Damage {
        name: "search-misled",
        fixture: "crashhot-61",
        make: |image| {
            let (bucket, _) = journal_places(image)?;
            spoil(image, bucket, 512)
        },
        accept: &[],
        class: "certain",
        whole: true,
    },
    Damage {
        name: "entry-before-the-newest",
        fixture: "crashhot-61",
        make: |image| {
            let (_, entry) = journal_places(image)?;
            spoil(image, entry + 16, 64)
        },
        accept: &["journal"],
        class: "likely",
        whole: false,
    },
];

/// Overwrites a stretch with noise, the same each time.
fn spoil(image: &Path, byte: u64, len: usize) -> anyhow::Result<()> {
    let mut noise = vec![0; len];
    rand_pcg::Pcg64::seed_from_u64(byte).fill_bytes(&mut noise);
    write_at(image, byte, &noise)
}

fn root_byte(image: &Path) -> anyhow::Result<u64> {
    with_cache_set(image, |set| Ok(set.root.ptrs().first().context("no root")?.offset().bytes()))
}

fn prio_byte(image: &Path) -> anyhow::Result<u64> {
    with_cache_set(image, |set| {
        let first = *set.prios.buckets.first().context("no chain")?;
        Ok(set.geometry().bucket_to_sector(first).bytes())
    })
}

/// Bytes at which the sets of the first leaf start.
fn sets(image: &Path) -> anyhow::Result<Vec<u64>> {
    struct Leaf(Vec<u64>);
    impl Visitor for Leaf {
        fn node(&mut self, place: NodePlace, node: &LoadedNode) {
            if place.level == 0 && self.0.is_empty() {
                let start = place.sector.bytes();
                self.0 = node.sets.iter().map(|set| start + set.offset as u64).collect();
            }
        }
    }
    let device = open_read(image)?;
    let mut leaf = Leaf(Vec::new());
    CacheSet::read(CacheDevice::open(&device)?, &ReadOptions::default(), &mut leaf)?;
    Ok(leaf.0)
}

/// The first byte of the journal bucket before the newest entry's, and the byte of the entry before it.
fn journal_places(image: &Path) -> anyhow::Result<(u64, u64)> {
    with_cache_set(image, |set| {
        let byte = |bucket: BucketIndex| set.geometry().bucket_to_sector(bucket).bytes();
        let [.., before, _] = &set.journal.entries[..] else { anyhow::bail!("one entry") };
        let count = set.journal.buckets.len();
        let earlier = (set.journal.current + count - 1) % count;
        let earlier = set.journal.buckets.get(earlier).context("no bucket")?.bucket;
        Ok((byte(earlier), byte(before.place.bucket) + before.place.offset))
    })
}

/// A set that was damaged and repaired.
struct Case {
    name: &'static str,
    cache: PathBuf,
    backing: Vec<PathBuf>,
    /// Sums of the volumes with a backing device.
    sums: Vec<String>,
    flash_only: bool,
}

fn repair(image: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let devices = [OsStr::new("repair"), image.as_os_str(), OsStr::new("--json")];
    run(devices.into_iter().chain(arguments.iter().map(OsStr::new)))
}

fn report(output: &Output) -> anyhow::Result<Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn sums(cache: &Path, backing: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    with_cache_set(cache, |set| {
        backing.iter().map(|path| md5_of_backing(set, &open_read(path)?)).collect()
    })
}

fn cases(scratch: &Scratch) -> anyhow::Result<Vec<Case>> {
    DAMAGES.iter().map(|damage| case(scratch, damage).context(damage.name)).collect()
}

fn case(scratch: &Scratch, damage: &Damage) -> anyhow::Result<Case> {
    let name = damage.name;
    let fixture = Fixture::unpack(damage.fixture)?;
    let before = sums(&fixture.cache, &fixture.backing)?;
    let dirty_before = with_cache_set(&fixture.cache, |set| Ok(set.dirty_sectors().0))?;
    let cache = scratch.copy(&format!("{name}.cache"), &fixture.cache)?;
    let backing: Vec<PathBuf> = (0..)
        .zip(&fixture.backing)
        .map(|(index, path): (usize, _)| scratch.copy(&format!("{name}.back{index}"), path))
        .collect::<anyhow::Result<_>>()?;
    (damage.make)(&cache)?;
    let damaged = std::fs::read(&cache)?;

    // Nothing is done that was not accepted, and a dry run writes nothing.
    let output = repair(&cache, &["--dry-run"])?;
    let planned = report(&output)?;
    ensure!(std::fs::read(&cache)? == damaged, "a dry run wrote");
    ensure!(!planned["dirty_sectors_after"].is_null(), "{planned}");
    if !damage.accept.is_empty() {
        assert_eq!(output.status.code(), Some(4), "{planned}");
        let output = repair(&cache, &["--yes"])?;
        assert_eq!(output.status.code(), Some(4));
        ensure!(std::fs::read(&cache)? == damaged, "made without being accepted");
    }
    let accept = damage.accept.iter().flat_map(|code| ["--accept", code]);
    let arguments: Vec<&str> = accept.chain(["--yes"]).collect();
    let output = repair(&cache, &arguments)?;
    let done = report(&output)?;
    assert_eq!((output.status.code(), &done["state"]), (Some(0), &"done".into()), "{done}");
    let anew = &done["new_metadata"];
    if !anew.is_null() {
        assert_eq!(anew["class"], damage.class, "{done}");
    }
    check_clean(&cache)?;
    let repaired = std::fs::read(&cache)?;
    let again = repair(&cache, &["--yes"])?;
    assert_eq!((again.status.code(), &report(&again)?["state"]), (Some(0), &"nothing".into()));
    ensure!(std::fs::read(&cache)? == repaired, "the second repair wrote");
    let after = sums(&cache, &backing)?;
    if damage.whole {
        assert_eq!(after, before, "{done}");
        let dirty = with_cache_set(&cache, |set| Ok(set.dirty_sectors().0))?;
        ensure!(dirty >= dirty_before, "{dirty} dirty sectors of {dirty_before}: {done}");
    }
    let flash_only = damage.fixture == "multi-612";
    Ok(Case { name, cache, backing, sums: after, flash_only })
}

fn judged(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let all = cases(&scratch)?;
    let mut random = vec![0; 1 << 20];
    rand_pcg::Pcg64::seed_from_u64(9).fill_bytes(&mut random);
    let mut guest = Guest::new(kernel).file("/data", random).timeout(Duration::from_secs(900));
    let mut disks = 0;
    for case in &all {
        guest = guest.script(format!("stage {}", case.name));
        for image in case.backing.iter().chain([&case.cache]) {
            guest = guest.disk_with(image, DiskOptions::default());
            guest = guest.script(format!("register {}", Guest::disk_name(disks)));
            disks += 1;
        }
        for index in 0..case.backing.len() + usize::from(case.flash_only) {
            guest = guest.script(format!("wait_for 20 test -b /dev/bcache{index}"));
        }
        for index in 0..case.backing.len() {
            guest = guest.script(format!("md5 /dev/bcache{index}"));
        }
        guest = guest.go_on_and_stop(case.backing.len());
    }
    let run = guest.run()?.ok()?.without_errors()?;
    eprintln!("{} sets in {:.1} s, kernel {kernel}", all.len(), run.took.as_secs_f64());
    for case in &all {
        let stage = run.log.stage(case.name).context("no such stage")?;
        for (index, sum) in case.sums.iter().enumerate() {
            let device = format!("/dev/bcache{index}");
            assert_eq!(stage.md5(&device), Some(sum.as_str()), "{}, {kernel}: {device}", case.name);
        }
        check_clean(&case.cache).with_context(|| format!("{}, kernel {kernel}", case.name))?;
    }
    Ok(())
}
