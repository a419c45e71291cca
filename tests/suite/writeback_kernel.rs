//! `bcachectl writeback`, judged by the stock kernels: they register what it leaves without a complaint,
//! find nothing dirty, read the same volumes, write on, and leave a set in which the check finds nothing.
//!
//! Each guest judges all images one after the other, a stage for each.

use anyhow::{Context as _, ensure};
use bcache_core::device::open_read;
use bcache_tests::cache::{check_clean, with_cache_set, writeback};
use bcache_tests::volume::{md5_of_backing, md5_of_device};
use bcache_tests::{DiskOptions, Fixture, Guest, Kernel, Need, Scratch, main_with, trial};
use rand::{RngCore as _, SeedableRng as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for kernel in Kernel::ALL {
        trials.push(trial(format!("fixtures_{kernel}"), &[Need::Guest], move || fixtures(kernel)));
    }
    main_with(trials)
}

/// A set that was written back, or not.
struct Case {
    name: String,
    cache: PathBuf,
    backing: Vec<PathBuf>,
    /// The backing devices that run alone now.
    detached: bool,
    /// Sums of the volumes with a backing device, as they were.
    sums: Vec<String>,
    flash_only: bool,
}

/// Everything that is done to a kernel's set before the judgement.
fn cases(scratch: &Scratch, fixture: &Fixture) -> anyhow::Result<Vec<Case>> {
    let name = &fixture.name;
    let sums = with_cache_set(&fixture.cache, |set| {
        fixture.backing.iter().map(|path| md5_of_backing(set, &open_read(path)?)).collect()
    })?;
    let copy = |what: &str| -> anyhow::Result<Case> {
        let cache = scratch.copy(&format!("{name}-{what}.cache"), &fixture.cache)?;
        let backing = fixture.backing.iter().enumerate();
        let backing = backing
            .map(|(index, path)| scratch.copy(&format!("{name}-{what}.back{index}"), path))
            .collect::<anyhow::Result<_>>()?;
        let (name, sums) = (format!("{name}-{what}"), Vec::clone(&sums));
        let flash_only = fixture.name == "multi-612";
        Ok(Case { name, cache, backing, detached: what == "detach", sums, flash_only })
    };
    let clean = copy("clean")?;
    writeback(&clean.cache, &clean.backing, &["--verify"])?;
    let mut cases = vec![clean];
    if ["dirty-61", "multi-612"].contains(&name.as_str()) {
        let detached = copy("detach")?;
        writeback(&detached.cache, &detached.backing, &["--detach"])?;
        cases.push(detached);
    }
    for case in &cases {
        check_clean(&case.cache)?;
        for (path, sum) in case.backing.iter().zip(&case.sums) {
            assert_eq!(md5_of_device(path)?, *sum, "{}: the backing device alone", case.name);
        }
    }
    Ok(cases)
}

fn fixtures(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut all = Vec::new();
    for name in Fixture::names()? {
        let fixture = Fixture::unpack(&name)?;
        let before: Vec<String> = fixture
            .backing
            .iter()
            .map(|path| md5_of_device(path))
            .collect::<anyhow::Result<_>>()?;
        let cases = cases(&scratch, &fixture)?;
        // The control: without the writeback the devices alone are not the volumes.
        let is_dirty = with_cache_set(&fixture.cache, |set| {
            Ok(set.volumes.iter().any(|(slot, it)| *slot < 2 && it.dirty_sectors.0 > 0))
        })?;
        for case in &cases {
            ensure!(!is_dirty || before != case.sums, "{name}: nothing was dirty");
        }
        all.extend(cases);
    }
    let mut random = vec![0; 1 << 20];
    rand_pcg::Pcg64::seed_from_u64(9).fill_bytes(&mut random);
    let mut guest =
        Guest::new(kernel).file("/data", random).sums_by_host().timeout(Duration::from_secs(900));
    let mut disks = 0;
    for case in &all {
        guest = guest.script(format!("stage {}", case.name));
        let mut names = Vec::new();
        for image in case.backing.iter().chain([&case.cache]) {
            guest = guest.disk_with(image, DiskOptions::default());
            names.push(Guest::disk_name(disks));
            disks += 1;
        }
        let backing = names.get(..case.backing.len()).context("names of the disks")?;
        for name in &names {
            guest = guest.script(format!("register {name}"));
        }
        for index in 0..case.backing.len() + usize::from(case.flash_only) {
            guest = guest.script(format!("wait_for 20 test -b /dev/bcache{index}"));
        }
        guest = guest.script("set_figures").script(format!("bdev_figures {}", backing.join(" ")));
        for index in 0..case.backing.len() {
            guest = guest.script(format!("md5 /dev/bcache{index}"));
        }
        guest = guest.go_on_and_stop(case.backing.len());
    }
    let run = guest.run()?.ok()?.without_errors()?;
    eprintln!("{} images in {:.1} s, kernel {kernel}", all.len(), run.took.as_secs_f64());
    let mut disks = 0;
    for case in &all {
        let stage = run.log.stage(&case.name).context("no such stage")?;
        for (index, sum) in case.sums.iter().enumerate() {
            let disk = Guest::disk_name(disks + index);
            let device = format!("/dev/bcache{index}");
            // A detached device takes the first number, and so do the others, in their order.
            assert_eq!(stage.md5(&device), Some(sum.as_str()), "{}, {kernel}: {device}", case.name);
            let figures = stage.backing_figures(&disk)?;
            let expected = if case.detached { "no cache" } else { "clean" };
            assert_eq!(figures.state, expected, "{}, {kernel}: {disk}", case.name);
            if !case.detached {
                assert_eq!(figures.dirty_data, "0.0k", "{}, {kernel}: {disk}", case.name);
            }
        }
        disks += case.backing.len() + 1;
        check_clean(&case.cache).with_context(|| format!("{}, kernel {kernel}", case.name))?;
    }
    Ok(())
}
