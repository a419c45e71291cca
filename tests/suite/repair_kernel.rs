//! `bcachectl repair`, judged by the stock kernels. They register sets that were damaged and repaired without
//! a complaint, and the volumes are what they were, or what was announced.
//!
//! Each guest judges all cases one after the other, a stage for each.

use anyhow::{Context as _, ensure};
use bcache_core::cache_set::testkit::{SetBuilder, backing_volume};
use bcache_core::cache_set::{CacheDevice, CacheSet, LoadedNode, NodePlace, ReadOptions, Visitor};
use bcache_core::device::{open_read, open_write};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::bset;
use bcache_core::layout::superblock::{
    BDEV_DATA_START_DEFAULT, BackingState, CacheMode, SB_OFFSET_BYTES,
};
use bcache_core::units::{BucketIndex, Sectors};
use bcache_tests::cache::{check_clean, flip, with_cache_set};
use bcache_tests::image::{Contents, write_at};
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
    /// Whether it is said whose each volume is.
    told: bool,
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
        told: false,
        class: "certain",
        whole: true,
    },
    Damage {
        name: "superblock-zeroed",
        fixture: "dirty-61",
        make: |image| write_at(image, 0, &[0; 8192]),
        accept: &[],
        told: false,
        class: "certain",
        whole: true,
    },
    Damage {
        name: "superblock-overwritten",
        fixture: "multi-612",
        make: |image| spoil(image, 0, 64 << 10),
        accept: &[],
        told: false,
        class: "certain",
        whole: true,
    },
    Damage {
        name: "formatted-anew",
        fixture: "crashhot-61",
        make: |image| {
            let image = image.as_os_str();
            let make =
                ["make", "--wipe-bcache", "--lose-dirty-data", "--yes", "-C"].map(OsStr::new);
            let output = run(make.into_iter().chain([image]))?;
            ensure!(output.status.success(), "{output:?}");
            Ok(())
        },
        accept: &["superblock-covers-set"],
        told: false,
        class: "guess",
        whole: true,
    },
    Damage {
        name: "later-set-of-a-leaf",
        fixture: "dirty-61",
        make: |image| spoil(image, sets(image)?.get(1).context("one set")? + 64, 256),
        accept: &[],
        told: false,
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
        told: false,
        class: "likely",
        whole: true,
    },
    Damage {
        name: "leaf-zeroed",
        fixture: "dirty-61",
        make: |image| write_at(image, root_byte(image)?, &[0; 128 << 10]),
        accept: &["btree-node"],
        told: false,
        class: "likely",
        whole: true,
    },
    Damage {
        name: "prio-set",
        fixture: "dirty-61",
        make: |image| spoil(image, prio_byte(image)?, 4096),
        accept: &["prio-sets"],
        told: false,
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
        told: false,
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
        told: false,
        class: "likely",
        whole: false,
    },
    Damage {
        name: "uuid-table",
        fixture: "dirty-61",
        make: |image| {
            let (byte, len) = uuid_table(image)?;
            spoil(image, byte, len)
        },
        // One volume and one device, whose data tells nothing.
        accept: &["uuid-table"],
        told: false,
        class: "guess",
        whole: true,
    },
    Damage {
        name: "every-uuid-table",
        fixture: "multi-612",
        make: spoil_tables,
        accept: &["uuid-table"],
        told: true,
        class: "guess",
        whole: true,
    },
    Damage {
        name: "slot-of-the-uuid-table",
        fixture: "multi-612",
        make: |image| spoil(image, uuid_table(image)?.0 + 128 + 60, 60),
        accept: &[],
        told: false,
        class: "certain",
        whole: true,
    },
    Damage {
        name: "root-of-a-deep-tree",
        fixture: DEEP,
        make: |image| spoil(image, root_byte(image)?, 4096),
        accept: &["btree-node"],
        told: false,
        class: "likely",
        whole: true,
    },
    Damage {
        name: "root-and-uuid-table",
        fixture: DEEP,
        make: |image| {
            let (byte, len) = uuid_table(image)?;
            spoil(image, byte, len)?;
            write_at(image, root_byte(image)?, &[0; 16 << 10])
        },
        // The clean data, which would tell whose the volume is, is not found without the root.
        accept: &["btree-node", "uuid-table"],
        told: false,
        class: "guess",
        whole: true,
    },
];

/// Damage under a checksum that is right, and what the kernel would start afresh.
const CONTRADICTIONS: &[Damage] = &[
    Damage {
        name: "says-it-is-new",
        fixture: "multi-612",
        make: |image| {
            with_cache_set(image, |set| {
                let mut sb = set.cache.superblock().clone();
                sb.edit(|edit| _ = edit.sync(false));
                Ok(sb.as_bytes().to_vec())
            })
            .and_then(|superblock| write_at(image, SB_OFFSET_BYTES, &superblock))
        },
        accept: &["superblock-sync"],
        told: false,
        class: "guess",
        whole: true,
    },
    Damage {
        name: "two-keys-to-one-child",
        fixture: DEEP,
        make: |image| rewrite_root(image, |keys| keys[2] = keys[2].with_ptrs(keys[1].ptrs())),
        accept: &["btree-node"],
        told: false,
        class: "likely",
        whole: true,
    },
    Damage {
        name: "a-child-that-ends-too-early",
        fixture: DEEP,
        make: |image| rewrite_root(image, |keys| keys[1].low -= 240),
        accept: &["btree-node"],
        told: false,
        class: "likely",
        whole: true,
    },
];

/// Writes the root anew with other keys, and a right checksum.
fn rewrite_root(image: &Path, change: fn(&mut [Bkey])) -> anyhow::Result<()> {
    struct Root(Option<LoadedNode>);
    impl Visitor for Root {
        fn node(&mut self, _: NodePlace, node: &LoadedNode) {
            self.0.get_or_insert_with(|| node.clone());
        }
    }
    let device = open_read(image)?;
    let mut root = Root(None);
    let set = CacheSet::read(CacheDevice::open(&device)?, &ReadOptions::default(), &mut root)?;
    let node = root.0.context("no root")?;
    let mut keys: Vec<Bkey> = node.keys.iter().collect();
    change(&mut keys);
    let ptr = *node.key.ptrs().first().context("no pointer")?;
    let mut bytes = bset::encode(set.cache.magic(), ptr, node.seq, &keys);
    bytes.resize(usize::try_from(node.key.size().bytes())?, 0);
    write_at(image, ptr.offset().bytes(), &bytes)
}

/// A set of our own, whose btree has a root above its leaves.
const DEEP: &str = "deep";

/// Its extents, of 4 KiB each.
const DEEP_EXTENTS: u64 = 700;

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

/// The first byte of the uuid table, and its length.
fn uuid_table(image: &Path) -> anyhow::Result<(u64, usize)> {
    with_cache_set(image, |set| {
        let bucket = set.uuids.bucket.context("no uuid table")?;
        let byte = set.geometry().bucket_to_sector(bucket).bytes();
        Ok((byte, usize::try_from(set.geometry().meta_bucket_bytes())?))
    })
}

/// Overwrites the uuid table, and older ones that are left in other buckets.
fn spoil_tables(image: &Path) -> anyhow::Result<()> {
    let (_, len) = uuid_table(image)?;
    let (uuids, buckets) = with_cache_set(image, |set| {
        let uuids: Vec<_> = set.uuids.slots.iter().map(|entry| entry.uuid).collect();
        let geometry = set.geometry();
        let buckets = geometry.first_bucket().0..geometry.nbuckets();
        let byte = |bucket| geometry.bucket_to_sector(BucketIndex(bucket)).bytes();
        Ok((uuids, buckets.map(byte).collect::<Vec<_>>()))
    })?;
    let bytes = std::fs::read(image)?;
    let is_table = |at: usize| {
        uuids.iter().enumerate().filter(|(_, uuid)| !uuid.is_nil()).any(|(slot, uuid)| {
            let entry = bytes.get(at + slot * 128..).unwrap_or_default();
            entry.starts_with(uuid.as_bytes())
        })
    };
    for byte in buckets {
        if is_table(usize::try_from(byte)?) {
            spoil(image, byte, len)?;
        }
    }
    Ok(())
}

/// What the uuid table says, as options of `repair`.
fn told(image: &Path) -> anyhow::Result<Vec<String>> {
    with_cache_set(image, |set| {
        let used = set.uuids.slots.iter().enumerate().filter(|(_, entry)| !entry.is_empty());
        Ok(used
            .flat_map(|(slot, entry)| {
                if entry.flash_only() {
                    ["--flash-only".to_owned(), format!("{slot}={}", entry.sectors.0)]
                } else {
                    ["--owner".to_owned(), format!("{slot}={}", entry.uuid)]
                }
            })
            .collect())
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

/// Cache and backing devices of a set.
struct Devices {
    cache: PathBuf,
    backing: Vec<PathBuf>,
}

/// Copies a fixture, or makes [`DEEP`].
fn devices(scratch: &Scratch, name: &str, fixture: &str) -> anyhow::Result<Devices> {
    if fixture == DEEP {
        return deep(scratch, name);
    }
    let fixture = Fixture::unpack(fixture)?;
    let cache = scratch.copy(&format!("{name}.cache"), &fixture.cache)?;
    let backing = (0..)
        .zip(&fixture.backing)
        .map(|(index, path): (usize, _)| scratch.copy(&format!("{name}.back{index}"), path))
        .collect::<anyhow::Result<_>>()?;
    Ok(Devices { cache, backing })
}

/// A set with extents of random data, every third of them dirty, in leaves of 160 keys at most.
fn deep(scratch: &Scratch, name: &str) -> anyhow::Result<Devices> {
    let volume = backing_volume(1);
    let builder = SetBuilder {
        nbuckets: 2048,
        bucket_size: Sectors(32),
        njournal: 16,
        fill_percent: 24,
        volumes: vec![volume.clone()],
        ..SetBuilder::default()
    };
    let cache = scratch.sparse(&format!("{name}.cache"), 2048 * 32 * 512)?;
    let backing = scratch.sparse(&format!("{name}.back0"), 16 << 20)?;
    let first = builder.data_buckets(0).start;
    let extent = |n: u64| {
        let bucket_gen = (builder.bucket_disk)(first + n).bucket_gen;
        let ptr = Ptr::new(bucket_gen, Sectors((first + n) * 32), 0);
        Bkey::new(0, (n + 1) * 24, 8).with_ptrs(&[ptr]).with_dirty(n % 3 == 0)
    };
    let built = builder.write(&open_write(&cache)?, (0..DEEP_EXTENTS).map(extent))?;
    ensure!(built.root.0 == 1, "a btree of level {}", built.root.0);
    let mut random = rand_pcg::Pcg64::seed_from_u64(5);
    let mut data = vec![0; 4096];
    for key in (0..DEEP_EXTENTS).map(extent) {
        random.fill_bytes(&mut data);
        let ptr = key.ptrs().first().context("no pointer")?;
        write_at(&cache, ptr.offset().bytes(), &data)?;
        if key.dirty() {
            random.fill_bytes(&mut data);
        }
        write_at(&backing, Sectors(key.start()).bytes(), &data)?;
    }
    let superblock = built.backing_superblock(
        &volume,
        BDEV_DATA_START_DEFAULT,
        CacheMode::Writeback,
        BackingState::Dirty,
    );
    write_at(&backing, SB_OFFSET_BYTES, superblock.as_bytes())?;
    Ok(Devices { cache, backing: vec![backing] })
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

fn repair(devices: &Devices, arguments: &[&str]) -> anyhow::Result<Output> {
    let paths = [&devices.cache].into_iter().chain(&devices.backing).map(|path| path.as_os_str());
    let options = ["--json"].iter().chain(arguments).map(OsStr::new);
    run([OsStr::new("repair")].into_iter().chain(paths).chain(options))
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
    let damages = DAMAGES.iter().chain(CONTRADICTIONS);
    let damaged = damages.map(|damage| case(scratch, damage).context(damage.name));
    let gone = HEADLESS.iter().map(|it| headless(scratch, it).context(it.name));
    damaged.chain([made_and_undone(scratch), repaired_alone(scratch)]).chain(gone).collect()
}

fn case(scratch: &Scratch, damage: &Damage) -> anyhow::Result<Case> {
    let name = damage.name;
    let devices = devices(scratch, name, damage.fixture)?;
    let cache = &devices.cache;
    let before = sums(cache, &devices.backing)?;
    let dirty_before = with_cache_set(cache, |set| Ok(set.dirty_sectors().0))?;
    let told = if damage.told { told(cache)? } else { Vec::new() };
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    (damage.make)(cache)?;
    let damaged = Contents::of(cache)?;

    // Nothing is done that was not accepted or said, and a dry run writes nothing.
    if damage.told {
        let accept = damage.accept.iter().flat_map(|code| ["--accept", code]);
        let output = repair(&devices, &accept.chain(["--yes"]).collect::<Vec<_>>())?;
        assert_eq!(output.status.code(), Some(4));
        ensure!(Contents::of(cache)? == damaged, "made without being told whose it is");
    }
    if damage.told {
        let paths = [cache].into_iter().chain(&devices.backing).map(|path| path.as_os_str());
        let options = ["--dry-run"].into_iter().chain(told.iter().copied()).map(OsStr::new);
        let text = run([OsStr::new("repair")].into_iter().chain(paths).chain(options))?.stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(
            text.contains("tells that it is flash-only") && text.contains("tells whose it is"),
            "{text}"
        );
    }
    let output = repair(&devices, &[&told[..], &["--dry-run"]].concat())?;
    let planned = report(&output)?;
    ensure!(Contents::of(cache)? == damaged, "a dry run wrote");
    ensure!(!planned["dirty_sectors_after"].is_null(), "{planned}");
    if !damage.accept.is_empty() {
        assert_eq!(output.status.code(), Some(4), "{planned}");
        let output = repair(&devices, &[&told[..], &["--yes"]].concat())?;
        assert_eq!(output.status.code(), Some(4));
        ensure!(Contents::of(cache)? == damaged, "made without being accepted");
    }
    let accept = damage.accept.iter().flat_map(|code| ["--accept", code]);
    let arguments: Vec<&str> = accept.chain(["--yes"]).chain(told).collect();
    // Done, undone and done again.
    let log = scratch.path(&format!("{name}.undo"));
    let with_undo = [&arguments[..], &["--undo", log.to_str().context("a path")?]].concat();
    let output = repair(&devices, &with_undo)?;
    assert_eq!(output.status.code(), Some(0), "{}", report(&output)?);
    ensure!(Contents::of(cache)? != damaged, "nothing was written");
    undo(&log)?;
    ensure!(Contents::of(cache)? == damaged, "not undone");
    let output = repair(&devices, &arguments)?;
    let done = report(&output)?;
    assert_eq!((output.status.code(), &done["state"]), (Some(0), &"done".into()), "{done}");
    let anew = &done["new_metadata"];
    if !anew.is_null() {
        assert_eq!(anew["class"], damage.class, "{done}");
    }
    check_clean(cache)?;
    let repaired = Contents::of(cache)?;
    let again = repair(&devices, &["--yes"])?;
    assert_eq!((again.status.code(), &report(&again)?["state"]), (Some(0), &"nothing".into()));
    ensure!(Contents::of(cache)? == repaired, "the second repair wrote");
    let after = sums(cache, &devices.backing)?;
    if damage.whole {
        assert_eq!(after, before, "{done}");
        let dirty = with_cache_set(cache, |set| Ok(set.dirty_sectors().0))?;
        ensure!(dirty >= dirty_before, "{dirty} dirty sectors of {dirty_before}: {done}");
    }
    let flash_only = damage.fixture == "multi-612";
    let Devices { cache, backing } = devices;
    Ok(Case { name, cache, backing, sums: after, flash_only })
}

fn undo(log: &Path) -> anyhow::Result<()> {
    let output = run([OsStr::new("undo"), log.as_os_str(), OsStr::new("--yes")])?;
    ensure!(output.status.success(), "undo: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A set with dirty data over which a cache and a backing device were made, and that was undone: it is
/// what the kernel had left.
fn made_and_undone(scratch: &Scratch) -> anyhow::Result<Case> {
    let name = "made-and-undone";
    let devices = devices(scratch, name, "crashhot-61")?;
    let before = sums(&devices.cache, &devices.backing)?;
    let backing = devices.backing.first().context("no backing device")?;
    for (kind, device) in [("--cache", &devices.cache), ("--bdev", backing)] {
        let was = Contents::of(device)?;
        let log = scratch.path(&format!("{name}{kind}.undo"));
        let make = ["make", "--yes", "--wipe-bcache", "--lose-dirty-data", "--undo"];
        let paths = [log.as_os_str(), OsStr::new(kind), device.as_os_str()];
        let output = run(make.iter().map(OsStr::new).chain(paths))?;
        ensure!(output.status.success(), "make: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(Contents::of(device)? != was, "nothing was written");
        undo(&log)?;
        ensure!(Contents::of(device)? == was, "not undone");
    }
    let Devices { cache, backing } = devices;
    Ok(Case { name, cache, backing, sums: before, flash_only: false })
}

/// A backing device whose magic was wiped, repaired without its cache.
fn repaired_alone(scratch: &Scratch) -> anyhow::Result<Case> {
    let name = "backing-alone";
    let devices = devices(scratch, name, "dirty-61")?;
    let sums = sums(&devices.cache, &devices.backing)?;
    let backing = devices.backing.first().context("no backing device")?;
    write_at(backing, SB_OFFSET_BYTES + 24, &[0; 16])?;
    let output = run([OsStr::new("repair"), OsStr::new("--yes"), backing.as_os_str()])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let Devices { cache, backing } = devices;
    Ok(Case { name, cache, backing, sums, flash_only: false })
}

/// A backing device whose superblock is gone.
struct Headless {
    name: &'static str,
    fixture: &'static str,
    /// Which of the backing devices.
    device: usize,
    overwrite: fn(&Path) -> anyhow::Result<()>,
    class: &'static str,
}

const HEADLESS: &[Headless] = &[
    Headless {
        name: "no-backing-superblock",
        fixture: "dirty-61",
        device: 0,
        overwrite: |image| write_at(image, 0, &[0; 8192]),
        class: "guess",
    },
    Headless {
        name: "one-of-two-superblocks",
        fixture: "multi-612",
        device: 1,
        overwrite: |image| spoil(image, 0, 8192),
        class: "guess",
    },
    Headless {
        // The cache has what was overwritten behind the superblock.
        name: "partitioned",
        fixture: "clean-612",
        device: 0,
        overwrite: |image| {
            let size = std::fs::metadata(image)?.len();
            spoil(image, 0, 34 * 512)?;
            spoil(image, size - 33 * 512, 33 * 512)
        },
        class: "certain",
    },
];

/// The superblock of a backing device, made again from what its cache knows.
fn headless(scratch: &Scratch, damage: &Headless) -> anyhow::Result<Case> {
    let name = damage.name;
    let devices = devices(scratch, name, damage.fixture)?;
    let sums = sums(&devices.cache, &devices.backing)?;
    let backing = devices.backing.get(damage.device).context("no backing device")?;
    (damage.overwrite)(backing)?;
    let damaged = Contents::of(backing)?;
    let log = scratch.path(&format!("{name}.undo"));
    let arguments = ["--yes", "--accept", "superblock-gone"];
    let with_undo = [&arguments[..], &["--undo", log.to_str().context("a path")?]].concat();
    let output = repair(&devices, &with_undo)?;
    let done = report(&output)?;
    assert_eq!((output.status.code(), &done["left"]), (Some(0), &Value::Array(vec![])), "{done}");
    assert_eq!(done["changes"][0]["class"], damage.class, "{done}");
    undo(&log)?;
    ensure!(Contents::of(backing)? == damaged, "not undone");
    assert_eq!(repair(&devices, &arguments)?.status.code(), Some(0));
    let again = repair(&devices, &["--yes"])?;
    assert_eq!((again.status.code(), &report(&again)?["state"]), (Some(0), &"nothing".into()));
    let flash_only = damage.fixture == "multi-612";
    let Devices { cache, backing } = devices;
    Ok(Case { name, cache, backing, sums, flash_only })
}

fn judged(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let all = cases(&scratch)?;
    let mut random = vec![0; 1 << 20];
    rand_pcg::Pcg64::seed_from_u64(9).fill_bytes(&mut random);
    let mut guest =
        Guest::new(kernel).file("/data", random).sums_by_host().timeout(Duration::from_secs(900));
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
        for index in 0..case.backing.len() + usize::from(case.flash_only) {
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
        if case.flash_only {
            // The kernel's own sum of it, when it made the set.
            let sum = stage.md5("/dev/bcache2").context("no flash-only volume")?;
            let log = Fixture::log("multi-612")?;
            let devices = log.md5_devices();
            let sums = devices.iter().filter_map(|device| log.md5(device));
            ensure!(sums.collect::<Vec<_>>().contains(&sum), "{}, {kernel}: {sum}", case.name);
        }
        check_clean(&case.cache).with_context(|| format!("{}, kernel {kernel}", case.name))?;
    }
    Ok(())
}
