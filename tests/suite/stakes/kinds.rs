//! Two more inputs of each kind, on sets that stock kernels 6.1 and 6.12 left with dirty data: after a power
//! cut in mid-write, and with several volumes.

use bcache_core::device::testkit::partition_table;
use bcache_core::layout::superblock::Superblock;
use bcache_core::layout::uuid_entry::DETACHED_UUID;
use bcache_core::units::Sectors;

use super::*;

/// Sets with dirty data, and how much.
const SETS: [(&str, u64); 3] = [("crash-612", 10816), ("crashhot-61", 16336), ("multi-612", 25072)];

/// A set after something was done to it, and what is said of it.
struct After {
    fixture: Fixture,
    dirty: u64,
}

impl After {
    fn each(damage: impl Fn(&Fixture)) -> impl Iterator<Item = Self> {
        SETS.into_iter().map(move |(name, dirty)| {
            let fixture = Fixture::unpack(name).unwrap();
            damage(&fixture);
            Self { fixture, dirty }
        })
    }

    fn said(&self) -> Said {
        let backing = self.fixture.backing.iter().map(PathBuf::as_path);
        let devices: Vec<&Path> =
            [self.fixture.cache.as_path()].into_iter().chain(backing).collect();
        Said::of(&devices)
    }

    /// What is said where all dirty data can still be read, and something is wrong.
    fn at_risk(&self) -> Said {
        let said = self.said();
        assert_eq!(said.answer(), "present", "{}", said.check);
        assert_eq!(said.check_json["stakes"]["at_least_sectors"], self.dirty, "{}", said.check);
        self.warned(said)
    }

    /// Where something is wrong, wiping is warned of.
    fn warned(&self, said: Said) -> Said {
        let first = said.check.lines().next().unwrap();
        assert!(!first.contains("no data is at risk"), "{}: {first}", self.fixture.name);
        assert!(!first.contains("known to be missing"), "{}: {first}", self.fixture.name);
        assert_ne!(said.check_status, 0, "{}", said.check);
        assert!(said.advice().contains(&"do-not-wipe"), "{:?}", said.advice());
        assert!(!said.advice().contains(&"register-and-detach"), "{:?}", said.advice());
        said
    }

    /// Overwrites the first bytes of a bucket.
    fn overwrite(fixture: &Fixture, bucket: u64, bytes: &[u8]) {
        write_at(&fixture.cache, bucket_byte(&fixture.cache, bucket).unwrap(), bytes).unwrap();
    }
}

/// What is right is said without a word that could be read as "wipe it".
#[test]
fn a_sound_set_with_dirty_data_is_no_invitation_to_wipe_it() {
    for after in After::each(|_| {}) {
        let said = after.said();
        let first = said.check.lines().next().unwrap();
        assert!(
            first.contains("would register it; no dirty data is known to be missing"),
            "{first}"
        );
        assert_eq!(said.check_json["stakes"]["at_least_sectors"], after.dirty);
        assert_eq!(said.check_json["stakes"]["at_most_sectors"], after.dirty);
        assert!(said.advice().contains(&"do-not-wipe"), "{:?}", said.advice());
        assert!(said.advice().contains(&"register-and-detach"), "{:?}", said.advice());
    }
}

/// The kernel journals no key as it writes back: after a stop soon after that, all is on the backing
/// device, and the replay of the journal finds it dirty. Only the contents tell that from a superblock
/// that a power cut left behind.
#[test]
fn dirty_data_of_a_clean_backing_device() {
    for after in After::each(|_| {}) {
        let cache = fs::read(&after.fixture.cache).unwrap();
        let backing = after.fixture.backing.iter().map(PathBuf::as_path);
        let devices: Vec<&Path> =
            [after.fixture.cache.as_path()].into_iter().chain(backing).collect();
        let before = Said::of(&devices);
        let state = |state: u64| {
            for image in &after.fixture.backing {
                patch(image, 104, &(1 | state << 61).to_le_bytes(), true);
            }
        };
        state(1);
        let clean = Said::of(&devices);
        assert!(clean.codes().contains(&"backing-state-clean"), "{}", clean.check);
        assert_eq!((clean.check_status, clean.answer()), (4, "present"), "{}", clean.check);
        state(2);
        let written = run(&["writeback", "--yes"], &devices);
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        fs::write(&after.fixture.cache, cache).unwrap();
        let said = Said::of(&devices);
        assert!(said.codes().iter().all(|it| *it == "backing-written-back"), "{}", said.check);
        assert!(!said.codes().is_empty() && said.check_status == 0, "{}", said.check);
        assert_eq!(said.check_json["stakes"], before.check_json["stakes"]);
        assert!(said.advice().contains(&"do-not-wipe"), "{:?}", said.advice());
    }
}

/// Detached after a failure, the only word of its owner is its UUID in the uuid table.
#[test]
fn a_released_backing_device() {
    let release = |fixture: &Fixture| {
        patch(&fixture.backing[0], 56, &[0; 16], false);
        patch(&fixture.backing[0], 104, &1u64.to_le_bytes(), true);
    };
    for after in After::each(release) {
        let said = after.at_risk();
        assert_eq!(said.codes(), ["backing-released"]);
        assert_eq!(said.advice()[0], "do-not-register", "{:?}", said.advice());
    }
}

#[test]
fn a_backing_device_that_ran_without_its_cache() {
    let damage =
        |fixture: &Fixture| set_state(fixture.backing.last().unwrap(), BackingState::Stale);
    for after in After::each(damage) {
        let said = after.at_risk();
        assert_eq!(said.codes(), ["backing-state-stale"]);
        assert_eq!(said.advice()[0], "do-not-register", "{:?}", said.advice());
    }
}

/// Each of them names a set that the cache beside it is not.
#[test]
fn a_backing_device_of_another_set() {
    let others = Fixture::unpack("clean-612").unwrap();
    for after in After::each(|_| {}) {
        let said = Said::of(&[&others.cache, after.fixture.backing.last().unwrap()]);
        assert_eq!(said.codes(), ["backing-set-gone"], "{}", said.check);
        assert!(said.check.contains("AT RISK"), "{}", said.check);
    }
    for after in After::each(|fixture| set_state(&fixture.backing[0], BackingState::Clean)) {
        let said = Said::of(&[&others.cache, &after.fixture.backing[0]]);
        assert_eq!(said.codes(), ["backing-other-set"], "{}", said.check);
    }
}

/// Formatted again with the UUID of the old set: what the old one held is not on it.
#[test]
fn a_cache_made_anew_with_the_old_uuid() {
    let scratch = Scratch::new().unwrap();
    for after in After::each(|_| {}) {
        let remade = blank(&scratch, &format!("remade-{}", after.fixture.name));
        let backing = after.fixture.backing.last().unwrap();
        make(&["-w", "512", "--cset-uuid", &set_uuid(backing), "-C"], &remade);
        let said = Said::of(&[&remade, backing]);
        assert_eq!(said.codes(), ["backing-set-gone"], "{}", said.check);
        assert!(!said.advice().contains(&"safe-to-wipe"), "{:?}", said.advice());
    }
}

/// As a bug report has it, and a partition that was made smaller.
#[test]
fn a_device_that_is_cut_off() {
    for share in [1 << 14, 1 << 24, 100 << 20] {
        let cut = |fixture: &Fixture| {
            fs::OpenOptions::new()
                .write(true)
                .open(&fixture.cache)
                .unwrap()
                .set_len(share)
                .unwrap();
        };
        for after in After::each(cut) {
            let said = after.warned(after.said());
            assert_eq!(said.codes(), ["superblock-cut-off"], "{}", said.check);
            assert_ne!(said.answer(), "none", "{}", said.check);
            assert!(said.advice().contains(&"get-whole-device"), "{:?}", said.advice());
        }
    }
}

#[test]
fn a_magic_that_was_wiped() {
    let wipe = |fixture: &Fixture| {
        write_at(&fixture.cache, SB_OFFSET_BYTES + 24, &[0; 16]).unwrap();
    };
    for after in After::each(wipe) {
        let said = after.at_risk();
        assert_eq!(said.codes(), ["superblock-magic"], "{}", said.check);
        assert!(said.advice().contains(&"repair"), "{:?}", said.advice());
    }
}

/// A number of buckets that the device has no room for is no device that was cut off: the checksum
/// says that it is the superblock that is wrong.
#[test]
fn a_number_of_buckets_that_cannot_be_right() {
    for wrong in [u64::from(u16::MAX), 1 << 20] {
        let damage = |fixture: &Fixture| patch(&fixture.cache, 184, &wrong.to_le_bytes(), false);
        for after in After::each(damage) {
            let said = after.at_risk();
            assert_eq!(said.codes(), ["superblock-refused"], "{}", said.check);
            assert!(!said.advice().contains(&"get-whole-device"), "{:?}", said.advice());
            assert!(said.advice().contains(&"copy-device"), "{:?}", said.advice());
        }
    }
}

/// Sizes that make no cache. What they were, the checksum tells if they are all that is damaged;
/// otherwise nothing can be read, and that is what is said.
#[test]
fn sizes_that_make_no_cache() {
    // The block size, and the bucket size.
    for offset in [192, 194] {
        for after in After::each(|fixture| patch(&fixture.cache, offset, &[0; 2], false)) {
            let said = after.at_risk();
            assert_eq!(said.codes(), ["superblock-refused"], "{}", said.check);
            assert!(said.advice().contains(&"repair"), "{:?}", said.advice());
        }
        let twice = |fixture: &Fixture| {
            patch(&fixture.cache, offset, &[0; 2], false);
            patch(&fixture.cache, 80, &[0xff], false);
        };
        for after in After::each(twice) {
            let said = after.warned(after.said());
            assert_ne!(said.answer(), "none", "{}", said.check);
            assert!(said.check.contains("CANNOT BE TOLD"), "{}", said.check);
        }
    }
}

#[test]
fn a_prio_set_that_is_lost() {
    for bytes in [&[0; 4096], &[0x5a; 4096]] {
        let damage = |fixture: &Fixture| {
            let bucket = with_cache_set(&fixture.cache, |set| Ok(set.prios.buckets[0].0)).unwrap();
            After::overwrite(fixture, bucket, bytes);
        };
        for after in After::each(damage) {
            // Without gens it is not known which of the journal's keys are stale.
            let said = after.warned(after.said());
            let least = said.check_json["stakes"]["at_least_sectors"].as_u64().unwrap();
            assert!(said.answer() == "present" && least <= after.dirty, "{}", said.check);
            assert!(said.advice().contains(&"copy-device"), "{:?}", said.advice());
            assert!(said.dirty.contains("at least"), "{}", said.dirty);
            // Without it nothing of the dirty data would be taken.
            let exports = said.check.lines().filter(|line| line.contains("bcachectl export"));
            for export in exports.filter(|line| !line.contains("--volume 2")) {
                assert!(export.contains("--likely"), "{export}");
            }
        }
    }
}

#[test]
fn a_uuid_table_that_is_none() {
    for byte in [0x5a, 0xff] {
        let damage = |fixture: &Fixture| {
            After::overwrite(fixture, uuid_table(fixture), &[byte; 8192]);
        };
        for after in After::each(damage) {
            let said = after.at_risk();
            assert!(said.codes().contains(&"uuid-not-a-table"), "{:?}", said.codes());
            assert_eq!(said.advice()[0], "do-not-register", "{:?}", said.advice());
        }
    }
}

/// Keys that cannot be read may be dirty: neither an empty uuid table settles that, nor a complete copy of
/// a device that is dirty, in whatever order they are named.
#[test]
fn what_is_no_proof_settles_nothing() {
    let lose_root = |fixture: &Fixture| {
        let sector = with_cache_set(&fixture.cache, |set| Ok(set.root.ptrs()[0].offset())).unwrap();
        write_at(&fixture.cache, sector.bytes(), &[0; 4096]).unwrap();
    };
    let unsettled = |said: &Said, dirty: u64| {
        assert_ne!(said.answer(), "none", "{}", said.check);
        assert!(said.check_json["stakes"]["at_most_sectors"].is_null(), "{}", said.check);
        assert!(said.check_json["stakes"]["at_least_sectors"].as_u64().unwrap() <= dirty);
        assert!(said.advice().contains(&"do-not-wipe"), "{:?}", said.advice());
    };
    let without_table = |fixture: &Fixture| {
        let bucket = uuid_table(fixture);
        lose_root(fixture);
        After::overwrite(fixture, bucket, &[0; 8192]);
        for image in &fixture.backing {
            patch(image, 104, &(1_u64 | 1 << 61).to_le_bytes(), true);
        }
    };
    for after in After::each(without_table) {
        unsettled(&after.said(), after.dirty);
        unsettled(&Said::of(&[&after.fixture.cache]), after.dirty);
    }
    for after in After::each(lose_root) {
        let scratch = Scratch::new().unwrap();
        let original = after.fixture.backing[0].as_path();
        let copy = scratch.copy("copy", original).unwrap();
        patch(&copy, 104, &(1_u64 | 1 << 61).to_le_bytes(), true);
        let cache = after.fixture.cache.as_path();
        for devices in [[cache, original, &copy], [cache, &copy, original]] {
            unsettled(&Said::of(&devices), after.dirty);
        }
    }
}

/// What the root named is unknown; the journal still names some.
#[test]
fn a_root_that_is_lost() {
    for bytes in [&[0; 4096], &[0xff; 4096]] {
        let damage = |fixture: &Fixture| {
            let sector =
                with_cache_set(&fixture.cache, |set| Ok(set.root.ptrs()[0].offset())).unwrap();
            write_at(&fixture.cache, sector.bytes(), bytes).unwrap();
        };
        for after in After::each(damage) {
            let said = after.warned(after.said());
            assert_ne!(said.answer(), "none", "{}", said.check);
            assert_eq!(said.check_json["stakes"]["at_most_sectors"], Value::Null, "{}", said.check);
        }
    }
}

#[test]
fn a_journal_that_is_lost() {
    let damage = |fixture: &Fixture| {
        let buckets = u64::from(superblock(&fixture.cache).njournal_buckets());
        for bucket in 0..buckets {
            let first = u64::from(superblock(&fixture.cache).first_bucket());
            After::overwrite(fixture, first + bucket, &vec![0; 64 << 10]);
        }
    };
    for after in After::each(damage) {
        let said = after.warned(after.said());
        assert_ne!(said.answer(), "none", "{}", said.check);
    }
}

/// The device says that it is complete, and nothing but its cache is broken.
#[test]
fn a_complete_backing_device_beside_a_broken_cache() {
    for byte in [0, 0xff] {
        let fixture = Fixture::unpack("clean-612").unwrap();
        let root = with_cache_set(&fixture.cache, |set| Ok(set.root.ptrs()[0].offset())).unwrap();
        write_at(&fixture.cache, root.bytes(), &[byte; 4096]).unwrap();
        let alone = Said::of(&[&fixture.cache]);
        assert_ne!(alone.check_status, 0, "{}", alone.check);
        let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
        assert_eq!(said.answer(), "none", "{}", said.check);
        assert!(said.dirty.contains("It is safe to wipe"), "{}", said.dirty);
    }
}

/// The owner is known, and the kernel does not take it as it is: nothing is advised that needs it.
#[test]
fn a_backing_device_whose_magic_was_wiped() {
    for after in After::each(|fixture| {
        write_at(&fixture.backing[0], SB_OFFSET_BYTES + 24, &[0; 16]).unwrap();
    }) {
        let said = after.said();
        assert_eq!(said.check_json["stakes"]["at_least_sectors"], after.dirty, "{}", said.check);
        assert!(said.codes().contains(&"backing-refused"), "{:?}", said.codes());
        let advice = said.check_json["advice"].as_array().unwrap();
        let name = after.fixture.backing[0].to_str().unwrap();
        let commands: Vec<&str> = advice
            .iter()
            .filter_map(|it| it["command"].as_str())
            .filter(|it| it.contains(name))
            .collect();
        assert!(
            commands.iter().all(|it| it.starts_with("bcachectl repair --dry-run")),
            "{commands:?}"
        );
        assert!(!commands.is_empty(), "{advice:?}");
        let cache = after.fixture.cache.as_path();
        let repaired = run(&["repair", "--yes"], &[cache, &after.fixture.backing[0]]);
        assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stderr));
        assert_eq!(after.said().codes(), [""; 0]);
    }
}

/// A copy by dd, or a second path: both say that they are the same device.
#[test]
fn one_uuid_on_two_devices() {
    for after in After::each(|_| {}) {
        let scratch = Scratch::new().unwrap();
        let copy = scratch.path("copy");
        fs::copy(&after.fixture.backing[0], &copy).unwrap();
        let shown = text(&run(&["show"], &[&after.fixture.backing[0], &copy]));
        assert!(shown.contains("same"), "{shown}");
        let said = Said::of(&[&after.fixture.cache, &after.fixture.backing[0], &copy]);
        assert!(said.advice().contains(&"take-copy-away"), "{:?}", said.advice());
        for would_write in ["register-and-detach", "write-back-offline"] {
            assert!(!said.advice().contains(&would_write), "{:?}", said.advice());
        }
    }
}

fn superblock(image: &Path) -> Superblock {
    let mut bytes = vec![0; SB_BYTES];
    open_read(image).unwrap().read_at(SB_OFFSET_BYTES, &mut bytes).unwrap();
    Superblock::from_bytes(&bytes).unwrap()
}

/// A bit of the version makes a cache look like a backing device, and the other way round.
#[test]
fn a_version_that_is_another_kinds() {
    for bit in [1, 2, 4, 0x40] {
        for after in After::each(|fixture| flip(&fixture.cache, 4096 + 16, bit).unwrap()) {
            let said = after.at_risk();
            assert_eq!(said.codes(), ["superblock-refused"], "{}", said.check);
            assert!(said.advice().contains(&"repair"), "{:?}", said.advice());
        }
        let damage = |fixture: &Fixture| flip(&fixture.backing[0], 4096 + 16, bit).unwrap();
        for after in After::each(damage) {
            // Other backing devices of the set are as they were: theirs can be written back.
            let said = after.said();
            assert_eq!(said.check_json["stakes"]["at_least_sectors"], after.dirty);
            assert!(said.check.lines().next().unwrap().contains("AT RISK"), "{}", said.check);
            assert!(said.codes().contains(&"backing-refused"), "{}", said.check);
            let backing = after.fixture.backing[0].display().to_string();
            assert!(said.check.contains(&format!("(backing device {backing})")), "{}", said.check);
            let repair = format!("repair --dry-run {} {backing}", after.fixture.cache.display());
            assert!(said.check.contains(&repair), "{}", said.check);
        }
    }
}

/// The devices of two sets: each device is judged by its own.
#[test]
fn two_caches_with_their_backing_devices() {
    let (one, other) =
        (Fixture::unpack("dirty-61").unwrap(), Fixture::unpack("multi-612").unwrap());
    let said = Said::of(&[&one.cache, &other.cache, &one.backing[0], &other.backing[0]]);
    assert_eq!(said.codes(), ["backing-other-set"], "{}", said.check);
    assert!(said.check.contains("no dirty data is known to be missing"), "{}", said.check);
    assert!(!said.check.contains("Look for the cache device"), "{}", said.check);
    let of = format!("belongs to the set of {}", other.cache.display());
    assert!(said.check.contains(&of), "{}", said.check);
}

/// The first KiB of the device are overwritten, as by dd or a partitioning program: the rest of the set
/// tells what its superblock was.
#[test]
fn a_superblock_that_is_gone() {
    for bytes in [vec![0; 8192], vec![0x5a; 65536]] {
        let damage = |fixture: &Fixture| write_at(&fixture.cache, 0, &bytes).unwrap();
        for after in After::each(damage) {
            let said = after.at_risk();
            assert_eq!(said.codes(), ["superblock-gone"], "{}", said.check);
            assert!(said.advice().contains(&"repair"), "{:?}", said.advice());
            // With its backing devices, which have the whole of the set's UUID.
            for backing in &after.fixture.backing {
                let owner = format!("(backing device {})", backing.display());
                assert!(said.check.contains(&owner), "{}", said.check);
            }
            // It is not formatted by the way.
            let cache = after.fixture.cache.as_path();
            let force = if bytes[0] == 0 { "--wipe-bcache" } else { "--force" };
            for options in [&["make", "--yes", "-C"][..], &["make", "--yes", "-B", force]] {
                let output = run(options, &[cache]);
                assert_eq!(output.status.code(), Some(1), "{output:?}");
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(said.contains("whose superblock is gone"), "{said}");
                assert!(said.contains("--lose-dirty-data"), "{said}");
            }
        }
    }
    // What the journal is left of says that there was a set, and no more.
    let fixture = Fixture::unpack("crash-612").unwrap();
    write_at(&fixture.cache, 0, &[0; 8192]).unwrap();
    let prios = with_cache_set(&Fixture::unpack("crash-612").unwrap().cache, |set| {
        Ok(set.prios.buckets.clone())
    });
    let bucket_bytes = 128 << 10;
    for bucket in prios.unwrap() {
        write_at(&fixture.cache, bucket.0 * bucket_bytes, &[0; 4096]).unwrap();
    }
    let cache = fixture.cache.as_path();
    let output = run(&["check"], &[cache]);
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the journal of a cache set is at"), "{said}");
    let shown = text(&run(&["show", "--dirty"], &[cache]));
    assert!(shown.contains("CANNOT BE TOLD") && shown.contains("Do NOT wipe"), "{shown}");
    let output = run(&["make", "--yes", "-C", "--wipe-bcache"], &[cache]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("add --lose-dirty-data"));
    // Where the device was also cut off, or grew, the number of buckets is not what it has room for. Nothing
    // wrong is told of the rest.
    for after in After::each(|fixture| write_at(&fixture.cache, 0, &[0; 8192]).unwrap()) {
        let cache = after.fixture.cache.as_path();
        let whole = fs::read(cache).unwrap();
        let size = whole.len() as u64;
        for part in [size / 12, size / 2, size * 3 / 4, size * 5 / 4, size * 2] {
            File::options().write(true).open(cache).unwrap().set_len(part).unwrap();
            let output = run(&["check", "--json"], &[cache]);
            if part > size / 12 && output.status.code() == Some(4) {
                // Nothing is past the end, or where the longer journal would be.
                assert_eq!(json(&output)["stakes"]["at_most_sectors"], after.dirty, "{output:?}");
            } else {
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(8), "{part} of {size}: {output:?}");
                assert!(said.contains("what it holds cannot be told"), "{part} of {size}: {said}");
            }
            fs::write(cache, &whole).unwrap();
        }
    }
    // What was clean is not in the way, nor is what nothing is left of.
    let fixture = Fixture::unpack("clean-612").unwrap();
    write_at(&fixture.cache, 0, &[0; 8192]).unwrap();
    let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
    assert_eq!(said.answer(), "none", "{}", said.check);
    make(&["--yes", "-C"], &fixture.cache);
}

/// The cache was written back, and then the backing device was put back from an older copy: what the cache
/// holds clean is the newer data, and nothing else has it.
#[test]
fn a_backing_device_put_back_from_an_older_copy() {
    for name in ["dirty-61", "crash-612"] {
        let fixture = Fixture::unpack(name).unwrap();
        let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
        let scratch = Scratch::new().unwrap();
        let old = scratch.path("old");
        fs::copy(backing, &old).unwrap();
        assert!(run(&["writeback", "-y"], &[cache, backing]).status.success(), "{name}");
        let said = Said::of(&[cache, backing]);
        assert!(said.answer() == "none" && said.check_status == 0, "{name}: {}", said.check);

        let said = Said::of(&[cache, &old]);
        assert!(said.answer() == "unknown" && said.check_status == 4, "{name}: {}", said.check);
        assert_eq!(said.codes(), ["clean-mismatch"], "{name}: {}", said.check);
        assert!(said.check.contains("Do NOT register the cache and the backing"), "{}", said.check);
        assert!(!said.advice().contains(&"repair"), "{name}: {}", said.check);
        let detach = run(&["writeback", "-y", "--detach"], &[cache, &old]);
        let error = String::from_utf8_lossy(&detach.stderr);
        assert!(detach.status.code() == Some(1) && error.contains("old copy"), "{name}: {error}");
        mixture(&scratch, cache, &old);
    }
}

/// An export of both says what it may be, and one of dirty data alone is as it was.
fn mixture(scratch: &Scratch, cache: &Path, backing: &Path) {
    let file = scratch.path("exported");
    let volume = ["--volume", "0", "-o", file.to_str().unwrap()];
    let whole = run(&[&["export"], &volume[..]].concat(), &[cache, backing]);
    let error = String::from_utf8_lossy(&whole.stderr);
    assert!(whole.status.code() == Some(4) && error.contains("a mixture of old"), "{error}");
    fs::remove_file(&file).unwrap();
    let dirty = run(&[&["export", "--dirty-only"], &volume[..]].concat(), &[cache, backing]);
    assert!(dirty.status.success(), "{dirty:?}");
    fs::remove_file(&file).unwrap();
}

/// The cache was put back from an older copy: the kernel has registered the backing device since.
#[test]
fn a_cache_put_back_from_an_older_copy() {
    for (name, dirty) in SETS.into_iter().chain([("dirty-61", 0), ("clean-612", 0)]) {
        let fixture = Fixture::unpack(name).unwrap();
        let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
        let seen = superblock(backing).last_mount();
        let before = Said::of(&[cache, backing]);
        assert!(!before.codes().contains(&"backing-newer"), "{name}: {}", before.check);
        edit(backing, |sb| {
            sb.edit(|edit| {
                edit.last_mount(seen + 3600);
            });
        });

        let said = Said::of(&[cache, backing]);
        let expected = if name == "clean-612" { "unknown" } else { "present" };
        assert!(said.answer() == expected && said.check_status == 4, "{name}: {}", said.check);
        assert!(said.check_json["stakes"]["at_least_sectors"].as_u64() >= Some(dirty), "{name}");
        assert!(said.codes().contains(&"backing-newer"), "{name}: {}", said.check);
        assert!(said.check.contains("Do NOT register the cache and the backing"), "{}", said.check);
        for no in ["repair", "register-and-detach", "write-back-offline", "safe-to-wipe"] {
            assert!(!said.advice().contains(&no), "{name}: {}", said.check);
        }
        let refused = run(&["writeback", "-y"], &[cache, backing]);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && error.contains("old copy"), "{name}: {error}");
        let scratch = Scratch::new().unwrap();
        mixture(&scratch, cache, backing);
        let both = fixture.backing.iter().map(PathBuf::as_path);
        let devices: Vec<&Path> = [cache.as_path()].into_iter().chain(both).collect();
        if name == "clean-612" {
            assert!(!said.advice().contains(&"write-back-ran-alone"), "{name}: {}", said.check);
        } else {
            // The clock may have been wrong.
            assert!(said.advice().contains(&"write-back-ran-alone"), "{name}: {}", said.check);
            let done = run(&["writeback", "-y", "--detach", "--ran-alone"], &devices);
            assert!(done.status.success(), "{name}: {done:?}");
        }
    }
}

/// The uuid table lost the slot of a device that is complete: the cache may be wiped, and must not be
/// registered with the device before a repair.
#[test]
fn a_complete_device_whose_slot_is_lost() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    After::overwrite(&fixture, uuid_table(&fixture), &[0; 128]);
    let said = Said::of(&[cache, backing]);
    assert!(said.answer() == "none" && said.check_status == 4, "{}", said.check);
    assert!(said.codes().contains(&"backing-not-in-table"), "{}", said.check);
    assert_eq!(said.advice(), ["do-not-register", "repair", "safe-to-wipe"], "{}", said.check);
}

/// The superblock is gone, and with it the half of the set's UUID that only a backing device has then.
#[test]
fn a_cache_whose_superblock_and_uuid_table_are_gone_asks_for_its_backing_devices() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    After::overwrite(&fixture, uuid_table(&fixture), &[0; 4096]);
    write_at(cache, 0, &[0; 8192]).unwrap();
    let alone = Said::of(&[cache]);
    assert_eq!(alone.answer(), "present", "{}", alone.check);
    assert!(alone.advice().contains(&"name-backing"), "{}", alone.check);
    let both = Said::of(&[cache, backing]);
    assert!(both.advice().contains(&"repair"), "{}", both.check);
    assert!(!both.advice().contains(&"name-backing"), "{}", both.check);
}

/// A cache with dirty data was formatted anew, or another's superblock was written over its own: the set that
/// the backing device names is still there, and following the advice finds all of it.
#[test]
fn a_superblock_of_another_over_a_cache() {
    let other = Fixture::unpack("multi-612").unwrap();
    let formatted: fn(&Path, &Fixture) = |cache, _| {
        make(&["--wipe-bcache", "--lose-dirty-data", "--yes", "-C"], cache);
    };
    let covered: fn(&Path, &Fixture) = |cache, other| {
        write_at(cache, SB_OFFSET_BYTES, superblock(&other.cache).as_bytes()).unwrap();
    };
    for (name, dirty) in [("dirty-61", 22360), ("crash-612", 10816)] {
        for cover in [formatted, covered] {
            let fixture = Fixture::unpack(name).unwrap();
            let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
            let before = superblock(cache);
            cover(cache, &other);
            let said = Said::of(&[cache, backing]);
            assert!(said.answer() == "unknown" && said.check_status != 0, "{name}: {}", said.check);
            assert!(said.codes().contains(&"backing-set-covered"), "{name}: {}", said.check);
            assert!(said.codes().contains(&"superblock-covers-set"), "{name}: {}", said.check);
            assert!(!said.check.contains("holds no cache set"), "{name}: {}", said.check);
            // The kernel refuses the other's superblock, whose sizes are not this device's.
            let advice = ["do-not-register", "do-not-wipe", "copy-device", "uncover-older-set"];
            assert!(advice.ends_with(&said.advice()), "{name}: {}", said.check);
            assert!(said.advice().len() >= 3, "{name}: {}", said.check);

            // Nothing of the set of another device that lacks data is there.
            let stranger = &other.backing[0];
            let said = Said::of(&[cache, backing, stranger]);
            let codes = said.codes();
            let covered = codes.iter().filter(|code| **code == "backing-set-covered");
            assert_eq!(covered.count(), 1, "{name}: {}", said.check);

            write_at(cache, SB_OFFSET_BYTES, &[0; 4096]).unwrap();
            let said = Said::of(&[cache, backing]);
            assert_eq!(said.answer(), "present", "{name}: {}", said.check);
            assert_eq!(said.check_json["stakes"]["at_least_sectors"], dirty, "{name}");
            let done = run(&["repair", "--yes", "--accept", "superblock-gone"], &[cache, backing]);
            assert!(done.status.success(), "{name}: {done:?}");
            assert_eq!(superblock(cache).set_uuid(), before.set_uuid(), "{name}");
            let said = Said::of(&[cache, backing]);
            assert_eq!(said.check_json["stakes"]["at_most_sectors"], dirty, "{name}");
            assert!(said.advice().contains(&"register-and-detach"), "{name}: {}", said.check);
        }
    }
}

/// Formatted anew by mistake, as a cache or as a backing device, and named without the others of its set. The data
/// of a clean set is all on its backing devices, and nobody is bothered with it.
#[test]
fn a_set_under_a_new_superblock_is_told_of_the_device_alone() {
    let format = ["--wipe-bcache", "--lose-dirty-data", "--yes"];
    for (name, lost) in
        [("dirty-61", true), ("multi-612", true), ("crash-612", true), ("clean-612", false)]
    {
        for (kind, code) in [("-C", "superblock-covers-set"), ("-B", "backing-is-cache")] {
            let fixture = Fixture::unpack(name).unwrap();
            let cache = &fixture.cache;
            make(&[&format[..], &[kind]].concat(), cache);
            let check = run(&["check"], &[cache]);
            let alone = said(&["check", "--json"], &[cache]);
            let shown = text(&run(&["show"], &[cache]));
            let again = run(&["make", "--wipe-bcache", "--yes", "-C"], &[cache]);
            if !lost {
                assert_eq!(alone["stakes"]["answer"], "none", "{name}: {alone}");
                assert!(check.status.success() && again.status.success(), "{name}: {again:?}");
                continue;
            }
            assert_eq!(alone["stakes"]["answer"], "unknown", "{name} {kind}: {alone}");
            assert_eq!(alone["findings"][0]["code"], code, "{name}: {alone}");
            assert_eq!(alone["findings"].as_array().unwrap().len(), 1, "{name}: {alone}");
            let advice = alone["advice"].as_array().unwrap().iter();
            let advice: Vec<_> = advice.map(|it| it["code"].as_str().unwrap()).collect();
            let wanted = ["do-not-register", "do-not-wipe", "copy-device", "uncover-older-set"];
            assert_eq!(advice, wanted, "{name} {kind}: {alone}");
            assert!(shown.contains("CANNOT BE TOLD"), "{name} {kind}: {shown}");
            assert!(!again.status.success(), "{name} {kind}: {again:?}");
            let words = String::from_utf8_lossy(&again.stderr);
            assert!(words.contains("--lose-dirty-data"), "{name} {kind}: {words}");

            let mut devices = vec![cache.as_path()];
            devices.extend(fixture.backing.iter().map(PathBuf::as_path));
            if kind == "-C" {
                // Whoever formatted it may have meant to.
                assert_eq!(run(&["repair", "--yes"], &devices).status.code(), Some(4), "{name}");
                let done = run(&["repair", "--yes", "--accept", code], &devices);
                assert!(done.status.success(), "{name}: {done:?}");
            } else {
                write_at(cache, SB_OFFSET_BYTES, &[0; 4096]).unwrap();
            }
            let all = said(&["check", "--json"], &devices);
            assert_eq!(all["stakes"]["answer"], "present", "{name} {kind}: {all}");
        }
    }
}

fn said(arguments: &[&str], devices: &[&Path]) -> Value {
    json(&run(arguments, devices))
}

fn codes(said: &Value) -> Vec<&str> {
    said["counts"].as_object().unwrap().keys().map(String::as_str).collect()
}

/// The superblock of a backing device that has nothing to do with the cache tells nothing of what is behind it.
#[test]
fn a_set_under_the_superblock_of_a_stranger_is_told() {
    let other = Fixture::unpack("clean-612").unwrap();
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    write_at(cache, SB_OFFSET_BYTES, superblock(&other.backing[0]).as_bytes()).unwrap();
    for devices in [&[cache.as_path()][..], &[cache, backing], &[backing, cache]] {
        let check = said(&["check", "--json"], devices);
        assert_ne!(check["stakes"]["answer"], "none", "{check}");
        assert_eq!(codes(&check), ["backing-is-cache"], "{check}");
        let mended = run(&["repair", "--dry-run"], devices);
        assert_eq!(mended.status.code(), Some(4), "{}", text(&mended));
        assert!(text(&mended).contains("behind it a cache set"), "{}", text(&mended));
    }
    let again = run(&["make", "--wipe-bcache", "--yes", "-C"], &[cache]);
    assert!(!again.status.success(), "{again:?}");
}

/// A kernel that discards leaves entries in one journal bucket, and that may be any.
#[test]
fn a_set_with_one_journal_bucket_is_found() {
    const BUCKET: u64 = 128 << 10;
    let fixture = Fixture::unpack("multi-612").unwrap();
    let cache = &fixture.cache;
    let mut bytes = fs::read(cache).unwrap();
    let at = |bucket: u64| usize::try_from(bucket * BUCKET).unwrap();
    let live = bytes[at(8)..at(9)].to_vec();
    bytes[at(1)..at(13)].fill(0);
    bytes[at(7)..at(8)].copy_from_slice(&live);
    fs::write(cache, bytes).unwrap();
    let mut devices = vec![cache.as_path()];
    devices.extend(fixture.backing.iter().map(PathBuf::as_path));
    let before = said(&["check", "--json"], &devices);
    assert_eq!(codes(&before), [""; 0], "{before}");
    make(&["--wipe-bcache", "--lose-dirty-data", "--yes", "-C"], cache);
    let alone = said(&["check", "--json"], &[cache]);
    assert_eq!(codes(&alone), ["superblock-covers-set"], "{alone}");
    let accept = ["repair", "--yes", "--accept", "superblock-covers-set"];
    assert!(run(&accept, &devices).status.success());
    let after = said(&["check", "--json"], &devices);
    assert_eq!(after["stakes"], before["stakes"]);
    write_at(cache, SB_OFFSET_BYTES, &[0; 4096]).unwrap();
    let gone = said(&["check", "--json"], &devices);
    assert_eq!(codes(&gone), ["superblock-gone"], "{gone}");
}

/// Formatted anew with the UUID that the set had.
#[test]
fn a_set_under_a_new_superblock_with_its_own_uuid_is_told() {
    let scratch = Scratch::new().unwrap();
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    let blank = scratch.sparse("blank", 128 << 20).unwrap();
    make(&["-w", "512", "--cset-uuid", &set_uuid(backing), "-C"], &blank);
    write_at(cache, SB_OFFSET_BYTES, superblock(&blank).as_bytes()).unwrap();
    let check = said(&["check", "--json"], &[cache, backing]);
    assert_eq!(check["stakes"]["answer"], "unknown", "{check}");
    assert!(codes(&check).contains(&"backing-set-covered"), "{check}");
    assert!(!codes(&check).contains(&"backing-set-gone"), "{check}");
    let accept = ["repair", "--yes", "--accept", "superblock-covers-set"];
    assert!(run(&accept, &[cache, backing]).status.success());
    let check = said(&["check", "--json"], &[cache, backing]);
    assert_eq!(check["stakes"]["at_most_sectors"], DIRTY, "{check}");
}

/// A volume with the image of a cache in it is no cache, be the set of that wanted or not.
#[test]
fn the_image_of_a_cache_in_a_volume_is_no_cache() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let other = Fixture::unpack("clean-612").unwrap();
    let volume = &other.backing[0];
    let image = fs::read(&fixture.cache).unwrap();
    File::options().write(true).open(volume).unwrap().set_len(256 << 20).unwrap();
    write_at(volume, 8192, &image).unwrap();
    let devices = [fixture.cache.as_path(), &fixture.backing[0], volume];
    for devices in [&devices[..], &devices[1..], &devices[2..]] {
        let check = said(&["check", "--json"], devices);
        assert!(!codes(&check).contains(&"backing-is-cache"), "{check}");
    }
}

/// A device was detached as its cache failed, and attached again: the kernel gave up its dirty data.
#[test]
fn dirty_data_in_a_slot_that_is_marked_as_detached() {
    for after in After::each(|fixture| {
        After::overwrite(fixture, uuid_table(fixture), DETACHED_UUID.as_bytes());
    }) {
        let (cache, backing) = (&after.fixture.cache, &after.fixture.backing[0]);
        let said = Said::of(&[cache]);
        assert!(said.answer() == "present" && said.check_status == 4, "{}", said.check);
        assert!(said.codes().contains(&"uuid-detached-dirty"), "{}", said.check);
        assert!(said.advice().contains(&"export"), "{}", said.check);

        // It may be that of a device that says that it is of this set, or of none.
        let said = Said::of(&[cache, backing]);
        assert!(said.codes().contains(&"backing-not-in-table"), "{}", said.check);
        set_state(backing, BackingState::None);
        patch(backing, 56, &[0; 16], true);
        let said = Said::of(&[cache, backing]);
        assert_eq!(said.codes(), ["backing-released", "uuid-detached-dirty"], "{}", said.check);
        assert!(!said.check.contains("needs no cache"), "{}", said.check);
    }
}

/// Two slots have one UUID: the kernel sees the first, and the other's data is nobody's.
#[test]
fn dirty_data_in_a_slot_with_the_uuid_of_another() {
    let fixture = Fixture::unpack("multi-612").unwrap();
    let (cache, backing) = (&fixture.cache, &fixture.backing);
    let first = superblock(&backing[0]).uuid();
    let second = bucket_byte(cache, uuid_table(&fixture)).unwrap() + 128;
    write_at(cache, second, first.as_bytes()).unwrap();
    let said = Said::of(&[cache, &backing[0], &backing[1]]);
    assert_eq!(said.codes(), ["backing-not-in-table", "uuid-repeated"], "{}", said.check);
    assert!(said.check.contains("(its UUID is that of volume 0"), "{}", said.check);
    let of_second = |it: &&Value| {
        let command = it["command"].as_str().unwrap_or_default();
        command.contains("export") && command.contains("--volume 1 --dirty-only")
    };
    let advice = said.check_json["advice"].as_array().unwrap();
    assert!(advice.iter().any(|it| of_second(&it)), "{}", said.check);
    let write_back = format!("bcachectl writeback {} {}\n", cache.display(), backing[0].display());
    assert!(said.check.contains(&write_back), "{}", said.check);
}

/// The disk is named instead of its partition, which is the backing device: a superblock on the disk would
/// be in the place of its partition table.
#[test]
fn a_disk_is_not_its_partition() {
    let scratch = Scratch::new().unwrap();
    for after in After::each(|_| {}).filter(|it| it.fixture.name != "multi-612") {
        let (cache, backing) = (&after.fixture.cache, &after.fixture.backing[0]);
        let data = fs::read(backing).unwrap();
        let disk = scratch.sparse("disk", data.len() as u64 + (2 << 20)).unwrap();
        write_at(&disk, 1 << 20, &data).unwrap();
        let size = Sectors(data.len() as u64 / 512);
        write_at(&disk, 0, &partition_table(Sectors(2048), size)).unwrap();
        let before = Contents::of(&disk).unwrap();

        let said = Said::of(&[cache, &disk]);
        assert!(!said.advice().contains(&"repair"), "{}", said.check);
        assert!(said.check.contains("partition 1: name the partition"), "{}", said.check);
        let owner = format!("0={}", disk.display());
        let options = ["repair", "--yes", "--accept", "superblock-gone"];
        for more in [&[][..], &["--owner", &owner]] {
            let done = run(&[&options, more].concat(), &[cache, &disk]);
            let text = String::from_utf8_lossy(&done.stdout);
            assert!(done.status.code() == Some(4) && text.contains("partition 1"), "{done:?}");
        }
        assert!(Contents::of(&disk).unwrap() == before);
        let alone = run(&["check"], &[&disk]);
        let error = String::from_utf8_lossy(&alone.stderr);
        assert!(error.contains("partition 1: name the partition"), "{error}");
        fs::remove_file(disk).unwrap();
    }
}

/// A superblock of a version that is not known here may be of a newer kernel.
#[test]
fn an_unknown_version_is_no_missing_superblock() {
    for after in After::each(|fixture| {
        patch(&fixture.cache, 16, &[7], true);
        patch(&fixture.backing[0], 16, &[8], true);
    }) {
        let (cache, backing) = (&after.fixture.cache, &after.fixture.backing[0]);
        for devices in [[cache, backing], [backing, cache]] {
            let checked = run(&["check"], &devices.map(PathBuf::as_path));
            let text = String::from_utf8_lossy(&checked.stderr);
            assert!(text.contains("is unknown"), "{checked:?}");
        }
        let shown = run(&["show", "--dirty"], &[cache]);
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(text.contains("version 7 is unknown") && !text.contains("no bcache"), "{text}");
    }
}
