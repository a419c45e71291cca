//! What would be lost, as `check`, `show --dirty` and their JSON tell it: inputs rebuilt from public
//! reports, with what must be said of each, and what must never be said.

#[path = "stakes/kinds.rs"]
mod kinds;

use std::ffi::OsString;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;

use bcache_core::cache_set::MetadataRole;
use bcache_core::cache_set::journal::EntryHeader;
use bcache_core::device::{ReadDevice as _, open_read};
use bcache_core::layout::superblock::{BackingState, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::units::BucketIndex;
use bcache_tests::cache::{bucket_byte, flip, with_cache_set};
use bcache_tests::fixture::Fixture;
use bcache_tests::image::{Contents, write_at};
use bcache_tests::{Scratch, tool};
use proptest::prelude::*;
use serde_json::Value;

/// Dirty data of the fixture `dirty-61`, in sectors.
const DIRTY: u64 = 22360;

fn run(arguments: &[&str], devices: &[&Path]) -> Output {
    let devices = devices.iter().map(|path| path.as_os_str());
    tool::bcachectl().unwrap().args(arguments).args(devices).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What all three say of the first of `devices`.
struct Said {
    check: String,
    check_json: Value,
    check_status: i32,
    dirty: String,
    dirty_status: i32,
    shown: Value,
    /// The answers of all devices, which the status of `show --dirty` follows.
    answers: Vec<String>,
}

impl Said {
    fn of(devices: &[&Path]) -> Self {
        let check = run(&["check"], devices);
        let dirty = run(&["show", "--dirty"], devices);
        let shown = json(&run(&["show", "--json"], devices));
        let answer = |it: &Value| it["stakes"]["answer"].as_str().unwrap_or("unknown").to_owned();
        let said = Self {
            answers: shown["devices"].as_array().unwrap().iter().map(answer).collect(),
            check_status: check.status.code().unwrap(),
            check: text(&check),
            check_json: json(&run(&["check", "--json"], devices)),
            dirty_status: dirty.status.code().unwrap(),
            dirty: text(&dirty),
            shown: shown["devices"][0].clone(),
        };
        said.agree();
        said
    }

    fn answer(&self) -> &str {
        self.check_json["stakes"]["answer"].as_str().unwrap()
    }

    fn advice(&self) -> Vec<&str> {
        let advice = self.check_json["advice"].as_array().unwrap();
        advice.iter().map(|it| it["code"].as_str().unwrap()).collect()
    }

    fn codes(&self) -> Vec<&str> {
        self.check_json["counts"].as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// They never contradict each other.
    fn agree(&self) {
        let (check, shown) = (&self.check_json, &self.shown);
        assert_eq!(check["stakes"], shown["stakes"], "{check}\n{shown}");
        assert_eq!(check["advice"], shown["advice"], "{check}\n{shown}");
        assert_eq!(shown["dirty"]["answer"], check["stakes"]["answer"], "{shown}");
        let safe = shown["dirty"]["safe_to_wipe"] == true;
        assert_eq!(safe, self.advice().contains(&"safe-to-wipe"), "{:?}", self.advice());
        assert!(!(safe && self.advice().contains(&"do-not-wipe")));
        let any = |wanted: &str| self.answers.iter().any(|answer| answer == wanted);
        let status = match safe {
            _ if any("present") => 4,
            _ if any("unknown") => 1,
            true => 0,
            false => 5,
        };
        assert_eq!(self.dirty_status, status, "{}", self.dirty);
        let first = self.check.lines().next().unwrap();
        match self.answer() {
            "none" => assert!(!self.check.contains("CANNOT BE TOLD"), "{}", self.check),
            "unknown" => {
                assert!(!first.contains("no data is at risk"), "{first}");
                assert!(self.dirty.contains("CANNOT BE TOLD"), "{}", self.dirty);
            }
            _ => assert!(self.dirty.contains("There IS dirty data"), "{}", self.dirty),
        }
        if safe {
            assert!(self.dirty.contains("It is safe to wipe"), "{}", self.dirty);
        } else {
            assert!(!self.dirty.contains("It is safe to wipe"), "{}", self.dirty);
        }
    }
}

/// The bucket of the uuid table.
fn uuid_table(fixture: &Fixture) -> u64 {
    with_cache_set(&fixture.cache, |set| Ok(set.uuids.bucket.unwrap().0)).unwrap()
}

/// Changes the superblock of an image; the checksum follows.
fn edit(image: &Path, change: impl FnOnce(&mut Superblock)) {
    let mut bytes = vec![0; SB_BYTES];
    open_read(image).unwrap().read_at(SB_OFFSET_BYTES, &mut bytes).unwrap();
    let mut sb = Superblock::from_bytes(&bytes).unwrap();
    change(&mut sb);
    write_at(image, SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
}

fn set_state(image: &Path, state: BackingState) {
    edit(image, |sb| {
        sb.edit(|sb| {
            sb.state(state);
        });
    });
}

/// Overwrites bytes of the superblock, mending the checksum or not.
fn patch(image: &Path, offset: usize, bytes: &[u8], mend: bool) {
    let mut sb = fs::read(image).unwrap()[4096..8192].to_vec();
    sb[offset..offset + bytes.len()].copy_from_slice(bytes);
    let mut sb = Superblock::from_bytes(&sb).unwrap();
    if mend {
        sb.update_checksum();
    }
    write_at(image, SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
}

fn make(arguments: &[&str], device: &Path) {
    let mut all: Vec<OsString> = vec!["make".into()];
    all.extend(arguments.iter().map(OsString::from));
    all.push(device.into());
    let output = tool::bcachectl().unwrap().args(all).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn set_uuid(image: &Path) -> String {
    let report = json(&run(&["show", "--json", "--superblock"], &[image]));
    report["devices"][0]["superblock"]["set_uuid"].as_str().unwrap().to_owned()
}

fn blank(scratch: &Scratch, name: &str) -> PathBuf {
    scratch.sparse(name, 300 << 20).unwrap()
}

/// The cache failed, and the kernel detached the device that owns the dirty data on it.
#[test]
fn a_released_backing_device_is_recognised_as_the_owner() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let backing = &fixture.backing[0];
    patch(backing, 56, &[0; 16], false);
    patch(backing, 104, &1u64.to_le_bytes(), true);
    let said = Said::of(&[&fixture.cache, backing]);
    assert_eq!(said.answer(), "present");
    assert!(said.check.lines().next().unwrap().contains("data is AT RISK"), "{}", said.check);
    assert_eq!(said.codes(), ["backing-released"]);
    assert_eq!(said.check_json["stakes"]["at_least_sectors"], DIRTY);
    let advice = said.advice();
    assert_eq!(advice[0], "do-not-register", "{advice:?}");
    assert!(!advice.contains(&"register-and-detach"), "{advice:?}");
    assert!(said.dirty.contains("Do NOT register or attach"), "{}", said.dirty);
    // The device itself tells, too.
    assert!(said.dirty.contains("is the owner of 10.9 MiB"), "{}", said.dirty);
    // The cache mode and a label make no difference.
    patch(backing, 104, &0u64.to_le_bytes(), true);
    patch(backing, 72, b"renamed", true);
    assert_eq!(Said::of(&[&fixture.cache, backing]).codes(), ["backing-released"]);
}

#[test]
fn every_named_device_is_judged_whatever_the_cache_is() {
    let scratch = Scratch::new().unwrap();
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let backing = &fixture.backing[0];
    let remade = blank(&scratch, "remade");
    make(&["-w", "512", "--cset-uuid", &set_uuid(backing), "-C"], &remade);
    let other = blank(&scratch, "other");
    make(&["-C"], &other);
    for state in [BackingState::Dirty, BackingState::Stale] {
        set_state(backing, state);
        for cache in [&remade, &other] {
            let said = Said::of(&[cache, backing]);
            assert_eq!(said.codes(), ["backing-set-gone"], "{state}: {}", said.check);
            assert_ne!(said.check_status, 0);
            assert!(said.check.contains("AT RISK"), "{}", said.check);
            // What is left of the old set may be all there is.
            assert!(!said.advice().contains(&"safe-to-wipe"), "{}", said.check);
        }
    }
    // What is no bcache device keeps nothing from being judged.
    let nothing = blank(&scratch, "nothing");
    set_state(backing, BackingState::Dirty);
    let output = run(&["check", "--json"], &[&nothing, backing]);
    let said = json(&output);
    assert_eq!(said["stakes"]["answer"], "present", "{said}");
    assert_eq!(said["findings"][0]["code"], "backing-unreadable", "{said}");
    let advice = said["advice"].as_array().unwrap();
    assert!(advice.iter().any(|it| it["code"] == "bring-cache"), "{said}");
    assert_eq!(run(&["check"], &[&nothing, &nothing]).status.code(), Some(8));
    set_state(backing, BackingState::Clean);
    assert_eq!(Said::of(&[&other, backing]).codes(), ["backing-other-set"]);
    let said = Said::of(&[&other, &other]);
    assert_eq!(said.codes(), ["backing-other-set"], "{}", said.check);
    assert!(said.check.contains("is the cache device of set"), "{}", said.check);
}

#[test]
fn blocks_that_keep_a_device_from_attaching_are_told() {
    let scratch = Scratch::new().unwrap();
    let (cache, backing) = (blank(&scratch, "cache"), blank(&scratch, "backing"));
    make(&["-w", "4k", "-C"], &cache);
    make(&["-w", "4k", "--cset-uuid", &set_uuid(&cache), "-B"], &backing);
    assert_eq!(Said::of(&[&cache, &backing]).codes(), [""; 0]);
    patch(&backing, 192, &1u16.to_le_bytes(), true);
    let said = Said::of(&[&cache, &backing]);
    assert_eq!(said.codes(), ["backing-block-size"]);
    assert!(said.check.contains("block size less than set's block size"), "{}", said.check);
    let shown = json(&run(&["show", "--json"], &[&cache, &backing]));
    assert_eq!(shown["devices"][1]["advice"][0]["code"], "block-size", "{shown}");
}

/// The beginning of an image, as people attach it to bug reports.
#[test]
fn an_image_that_is_cut_off_is_one_finding() {
    for (kept, unknown) in [(8192, true), (1 << 20, true), (127 << 20, false)] {
        let fixture = Fixture::unpack("dirty-61").unwrap();
        let file = fs::OpenOptions::new().write(true).open(&fixture.cache).unwrap();
        file.set_len(kept).unwrap();
        let said = Said::of(&[&fixture.cache]);
        assert_eq!(said.codes(), ["superblock-cut-off"], "{}", said.check);
        assert_eq!(said.answer() == "unknown", unknown, "{}", said.check);
        assert!(said.check.contains("cut off after"), "{}", said.check);
        assert!(said.advice().contains(&"get-whole-device"), "{:?}", said.advice());
        assert!(said.advice().contains(&"do-not-wipe"), "{:?}", said.advice());
        let shown = run(&["show", "--dirty"], &[&fixture.cache]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        let told = shown.split_once("\nProblems (").map_or("", |(_, rest)| rest);
        let told: Vec<&str> = told.lines().filter(|line| line.starts_with("  ")).collect();
        assert_eq!(told.len(), 1, "{shown}");
        assert!(told[0].starts_with("  cut off after"), "{shown}");
    }
}

/// The only backing device says that it is complete: nothing on the cache can be worth anything.
#[test]
fn a_complete_backing_device_settles_a_broken_cache() {
    for sector in [5376u64, 17 * 256] {
        let fixture = Fixture::unpack("clean-612").unwrap();
        write_at(&fixture.cache, sector * 512, &[0; 4096]).unwrap();
        let alone = Said::of(&[&fixture.cache]);
        let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
        if alone.codes().is_empty() {
            continue;
        }
        assert_eq!(alone.answer(), "unknown", "{}", alone.check);
        assert_eq!(said.answer(), "none", "{}", said.check);
        assert!(said.dirty.contains("It is safe to wipe"), "{}", said.dirty);
        // A device that needs its cache settles nothing.
        set_state(&fixture.backing[0], BackingState::Dirty);
        assert_eq!(Said::of(&[&fixture.cache, &fixture.backing[0]]).answer(), "unknown");
    }
}

#[test]
fn nothing_is_advised_that_the_kernel_would_refuse() {
    // The prio set is gone: the kernel refuses the cache.
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let prios = with_cache_set(&fixture.cache, |set| Ok(set.prios.buckets[0].0)).unwrap();
    write_at(&fixture.cache, bucket_byte(&fixture.cache, prios).unwrap(), &vec![0; 65536]).unwrap();
    let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
    assert_eq!(said.answer(), "present", "{}", said.check);
    assert!(!said.advice().contains(&"register-and-detach"), "{:?}", said.advice());
    assert!(said.advice().contains(&"copy-device"), "{:?}", said.advice());
    assert!(said.dirty.contains("at least 10.9 MiB"), "{}", said.dirty);
    // What the kernel takes is written back through it.
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
    assert!(said.advice().contains(&"register-and-detach"), "{:?}", said.advice());
    // Without its backing device there is nowhere to write to.
    let said = Said::of(&[&fixture.cache]);
    assert!(said.advice().contains(&"bring-backing"), "{:?}", said.advice());
}

/// It was run without its cache: registered together, the kernel drops the dirty data.
#[test]
fn an_inconsistent_backing_device_is_called_that_and_warned_of() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let backing = &fixture.backing[0];
    set_state(backing, BackingState::Stale);
    let said = Said::of(&[&fixture.cache, backing]);
    assert_eq!(said.codes(), ["backing-state-stale"]);
    assert_eq!(said.advice()[0], "do-not-register", "{:?}", said.advice());
    let shown = text(&run(&["show"], &[backing]));
    assert!(shown.contains("inconsistent") && !shown.contains("stale"), "{shown}");
    let warning = shown.find("INCOMPLETE").expect("a warning");
    assert!(warning < shown.find("losetup").unwrap(), "the warning comes first: {shown}");
}

/// `wipefs` takes 16 bytes; everything else is in place.
#[test]
fn a_superblock_whose_magic_was_wiped_is_recognised() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    write_at(&fixture.cache, SB_OFFSET_BYTES + 24, &[0; 16]).unwrap();
    let said = Said::of(&[&fixture.cache]);
    assert_eq!(said.answer(), "present", "{}", said.check);
    assert_eq!(said.codes(), ["superblock-magic"]);
    assert!(said.check.contains("10.9 MiB"), "{}", said.check);
    // A cache that never was one is not recognised.
    let scratch = Scratch::new().unwrap();
    assert_eq!(run(&["check"], &[&blank(&scratch, "blank")]).status.code(), Some(8));
}

/// The checksum is bad, and the damage cleared the flag that says that the cache is in use.
#[test]
fn a_superblock_that_cannot_be_trusted_hides_nothing() {
    for mend in [false, true] {
        let fixture = Fixture::unpack("dirty-61").unwrap();
        patch(&fixture.cache, 104, &0u64.to_le_bytes(), mend);
        let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
        assert_eq!(said.answer(), "present", "{}", said.check);
        assert!(said.check.contains("AT RISK"), "{}", said.check);
        assert!(!said.advice().contains(&"register-and-detach"), "{:?}", said.advice());
        if mend {
            assert!(said.dirty.contains("Do NOT register"), "{}", said.dirty);
        }
    }
    // Nothing but zeroes where the journal is: nobody knows.
    let fixture = Fixture::unpack("dirty-61").unwrap();
    patch(&fixture.cache, 104, &0u64.to_le_bytes(), false);
    let first = bucket_byte(&fixture.cache, 1).unwrap();
    write_at(&fixture.cache, first, &vec![0; 16 << 20]).unwrap();
    assert_eq!(Said::of(&[&fixture.cache]).answer(), "unknown");
}

/// The uuid table has no checksum: what it is not shows in its slots.
#[test]
fn a_uuid_table_that_is_none_is_found() {
    for (seed, len) in [(1u8, 128 << 10), (7, 4096)] {
        let fixture = Fixture::unpack("dirty-61").unwrap();
        let bucket = uuid_table(&fixture);
        let mut state = u32::from(seed);
        let garbage: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(len)
        .collect();
        write_at(&fixture.cache, bucket_byte(&fixture.cache, bucket).unwrap(), &garbage).unwrap();
        let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
        assert!(said.codes().contains(&"uuid-not-a-table"), "{:?}", said.codes());
        assert_eq!(said.answer(), "present", "{}", said.check);
        assert_eq!(said.check_json["stakes"]["at_least_sectors"], DIRTY);
        assert_eq!(said.advice()[0], "do-not-register", "{:?}", said.advice());
    }
}

#[test]
fn every_command_that_is_advised_exists() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    write_at(&fixture.cache, SB_OFFSET_BYTES, &[0xff; 8]).unwrap();
    let said = Said::of(&[&fixture.cache, &fixture.backing[0]]);
    for advice in said.check_json["advice"].as_array().unwrap() {
        let Some(command) = advice["command"].as_str() else { continue };
        let Some(rest) = command.strip_prefix("bcachectl ") else { continue };
        let name = rest.split(' ').next().unwrap();
        let help = tool::bcachectl().unwrap().args([name, "--help"]).output().unwrap();
        assert!(help.status.success(), "{command}");
    }
}

/// A place in a cache device where metadata is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Superblock,
    Journal,
    Prios,
    Uuids,
    Btree,
}

/// What happened to it.
#[derive(Clone, Debug)]
enum Damage {
    /// Bytes from somewhere in it on became others.
    Overwritten {
        place: Place,
        at: prop::sample::Index,
        len: usize,
        byte: u8,
    },
    Flipped {
        place: Place,
        at: prop::sample::Index,
        bit: u32,
    },
    /// The device ends here.
    CutOff {
        at: prop::sample::Index,
    },
    BackingState(BackingState),
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let place = prop::sample::select(vec![
        Place::Superblock,
        Place::Journal,
        Place::Prios,
        Place::Uuids,
        Place::Btree,
    ]);
    let at = any::<prop::sample::Index>;
    let len = prop::sample::select(vec![1usize, 8, 512, 4096, 32768]);
    // Not clean: that would be a lie that nothing can tell.
    let states = vec![BackingState::None, BackingState::Stale, BackingState::Dirty];
    let one = prop_oneof![
        4 => (place.clone(), at(), len, any::<u8>())
            .prop_map(|(place, at, len, byte)| Damage::Overwritten { place, at, len, byte }),
        3 => (place, at(), 0..8u32).prop_map(|(place, at, bit)| Damage::Flipped { place, at, bit }),
        1 => at().prop_map(|at| Damage::CutOff { at }),
        1 => prop::sample::select(states).prop_map(Damage::BackingState),
    ];
    prop::collection::vec(one, 1..4)
}

/// Where checksum, magic and seq of a set of keys end, from its start: on a boundary of blocks.
const SEQ_END: usize = 24;

/// Where the metadata of a set is, as far as it is written, and what is dirty in it.
struct Truth {
    places: Vec<(Place, Range<u64>)>,
    journal_entries: Vec<Range<u64>>,
    dirty: u64,
    has_flash_only: bool,
}

impl Truth {
    fn of(cache: &Path) -> Self {
        let bytes = fs::read(cache).unwrap();
        let written = |start: usize, len: usize| {
            let area = &bytes[start..start + len];
            let end = start + area.iter().rposition(|&byte| byte != 0).map_or(1, |at| at + 1);
            start as u64..end as u64
        };
        with_cache_set(cache, |set| {
            let superblock = written(usize::try_from(SB_OFFSET_BYTES).unwrap(), SB_BYTES);
            let mut places = vec![(Place::Superblock, superblock)];
            let bucket_bytes = usize::try_from(set.geometry().bucket_size().bytes()).unwrap();
            for bucket in 0..set.geometry().nbuckets() {
                let place = match set.metadata_role(BucketIndex(bucket)) {
                    None => continue,
                    Some(MetadataRole::Journal) => Place::Journal,
                    Some(MetadataRole::Prios) => Place::Prios,
                    Some(MetadataRole::Uuids) => Place::Uuids,
                    Some(MetadataRole::Btree) => Place::Btree,
                };
                let start = usize::try_from(bucket).unwrap() * bucket_bytes;
                places.push((place, written(start, bucket_bytes)));
            }
            let entry = |it: &EntryHeader| {
                let start = it.place.bucket.0 * bucket_bytes as u64 + it.place.offset;
                start..start + it.bytes
            };
            Ok(Self {
                places,
                journal_entries: set.journal.headers().map(entry).collect(),
                dirty: set.dirty_sectors().0,
                has_flash_only: set.uuids.slots.iter().any(UuidEntry::flash_only),
            })
        })
        .unwrap()
    }

    /// A byte within metadata of this kind.
    fn byte(&self, wanted: Place, at: prop::sample::Index) -> u64 {
        let places: Vec<_> = self.places.iter().filter(|(place, _)| *place == wanted).collect();
        let sizes = |range: &Range<u64>| usize::try_from(range.end - range.start).unwrap();
        let mut left = at.index(places.iter().map(|(_, range)| sizes(range)).sum());
        for (_, range) in places {
            match left.checked_sub(sizes(range)) {
                Some(rest) => left = rest,
                // A later set of a node whose magic or seq is wrong is none: there the node ends, to
                // the kernel and to us, and nothing on the device tells the difference.
                None if wanted == Place::Btree && left >= 512 && left % 512 < SEQ_END => {
                    return range.start + (left - left % 512 + SEQ_END) as u64;
                }
                None => return range.start + left as u64,
            }
        }
        unreachable!("the index is smaller than the sum");
    }

    /// The end of the journal entry that begins before `start`, up to there. Behind an entry a kernel
    /// leaves what was in its memory, up to the end of the block.
    fn journal_entry_before(&self, start: u64) -> Option<Range<u64>> {
        let entry = self.journal_entries.iter().filter(|it| it.start < start);
        let entry = entry.max_by_key(|it| it.start)?;
        let end = entry.end.min(start);
        Some(end.saturating_sub(8).max(entry.start)..end)
    }

    fn damage(&self, damage: &Damage, fixture: &Fixture) {
        let cache = &fixture.cache;
        match damage {
            Damage::Overwritten { place, at, len, byte } => {
                let end = fs::metadata(cache).unwrap().len();
                let start = self.byte(*place, *at);
                let len = usize::try_from(end.saturating_sub(start)).unwrap().min(*len);
                write_at(cache, start, &vec![*byte; len]).unwrap();
                // Whole entries gone from the end of the journal look as if they were never written:
                // nothing on the device tells the difference. So the one before them is hit, too.
                let before = (*place == Place::Journal).then(|| self.journal_entry_before(start));
                // The device may have been cut off before.
                if let Some(before) = before.flatten().filter(|it| it.end <= end) {
                    let bytes = vec![0xff; usize::try_from(before.end - before.start).unwrap()];
                    write_at(cache, before.start, &bytes).unwrap();
                }
            }
            Damage::Flipped { place, at, bit } => {
                let start = self.byte(*place, *at);
                if start < fs::metadata(cache).unwrap().len() {
                    flip(cache, start, 1 << bit).unwrap();
                }
            }
            Damage::CutOff { at } => {
                let file = fs::OpenOptions::new().write(true).open(cache).unwrap();
                let sectors = file.metadata().unwrap().len() / 512;
                file.set_len(at.index(usize::try_from(sectors).unwrap()) as u64 * 512).unwrap();
            }
            Damage::BackingState(state) => set_state(&fixture.backing[0], *state),
        }
    }
}

/// Whatever happens to metadata: check, show and their JSON agree, nothing at stake is called none, and
/// the limits hold.
#[test]
fn no_damage_makes_the_answers_wrong_or_contradict_each_other() {
    let truths: Vec<(String, Truth)> = Fixture::names()
        .unwrap()
        .into_iter()
        .map(|name| {
            let truth = Truth::of(&Fixture::unpack(&name).unwrap().cache);
            (name, truth)
        })
        .collect();
    let judge = |which: prop::sample::Index, damages: &[Damage], with_backing: bool| {
        let (name, truth) = which.get(&truths);
        let fixture = Fixture::unpack(name).unwrap();
        for damage in damages {
            truth.damage(damage, &fixture);
        }
        let backing = with_backing.then(|| fixture.backing[0].as_path());
        let devices: Vec<&Path> = [fixture.cache.as_path()].into_iter().chain(backing).collect();
        // Nothing but zeroes, or less than a superblock, is no bcache device at all.
        if run(&["check"], &devices[..1]).status.code() == Some(8) {
            return;
        }
        let said = Said::of(&devices);
        let stakes = &said.check_json["stakes"];
        assert!(said.answer() != "none" || truth.dirty == 0, "{name}: {}", said.check);
        let at_least = stakes["at_least_sectors"].as_u64().unwrap();
        assert!(at_least <= truth.dirty, "{name}: {stakes}, but {} are dirty", truth.dirty);
        if let Some(at_most) = stakes["at_most_sectors"].as_u64() {
            assert!(at_most >= truth.dirty, "{name}: {stakes}, but {} are dirty", truth.dirty);
        }
        let is_safe = said.advice().contains(&"safe-to-wipe");
        assert!(!is_safe || (truth.dirty == 0 && !truth.has_flash_only), "{name}: {}", said.check);
    };
    let cases =
        ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(cases, |(
        which in any::<prop::sample::Index>(),
        damages in damages(),
        with_backing in any::<bool>(),
    )| judge(which, &damages, with_backing));
}
