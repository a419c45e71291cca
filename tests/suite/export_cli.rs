//! `bcachectl export` as a user sees it, on images that stock kernels wrote: the sums are the
//! kernels' own, the sources stay as they are, and refusals and statuses are as documented.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bcache_core::layout::superblock::{BackingState, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_tests::cache::{flip, with_cache_set};
use bcache_tests::fixture::Fixture;
use bcache_tests::image::write_at;
use bcache_tests::{Scratch, tool};
use serde_json::Value;

/// Images whose volumes were not written to between the kernel's sums and the end.
const AT_REST: [&str; 3] = ["clean-612", "dirty-61", "multi-612"];

/// Sectors of a backing device before its data.
const DATA_OFFSET_BYTES: usize = 16 * 512;

fn export(arguments: &[&str], paths: &[&Path]) -> Output {
    tool::bcachectl().unwrap().arg("export").args(paths).args(arguments).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn md5(path: &Path) -> String {
    let output = Command::new("md5sum").arg(path).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// The image's volumes: name, backing device, the kernel's sum.
fn volumes(fixture: &Fixture) -> Vec<(String, Option<PathBuf>, String)> {
    let slots = with_cache_set(&fixture.cache, |set| {
        Ok(set.uuids.used().map(|(slot, _)| slot).collect::<Vec<_>>())
    });
    let volume = |(index, slot): (usize, u32)| {
        let sum = fixture.log.md5(&format!("/dev/bcache{index}")).unwrap().to_owned();
        (slot.to_string(), fixture.backing.get(index).cloned(), sum)
    };
    slots.unwrap().into_iter().enumerate().map(volume).collect()
}

#[test]
fn every_volume_has_the_kernels_sum_and_the_sources_stay() {
    for name in AT_REST {
        let fixture = Fixture::unpack(name).unwrap();
        let sources: Vec<&PathBuf> = [&fixture.cache].into_iter().chain(&fixture.backing).collect();
        let before: Vec<String> = sources.iter().map(|path| md5(path)).collect();
        for (volume, backing, sum) in volumes(&fixture) {
            let scratch = Scratch::new().unwrap();
            let target = scratch.path("volume.img");
            let mut paths = vec![fixture.cache.as_path()];
            paths.extend(backing.as_deref());
            let arguments = ["--json", "--volume", &volume, "-o", target.to_str().unwrap()];
            let output = export(&arguments, &paths);
            assert_eq!(output.status.code(), Some(0), "{name} {volume}: {}", errors(&output));
            assert_eq!(md5(&target), sum, "{name} {volume}");
            let report = json(&output);
            assert_eq!(report["complete"], true, "{name} {volume}");
            assert_eq!(report["map"], Value::Null, "{name} {volume}");
            assert!(!scratch.path("volume.img.map").exists());
            // Zeroes take no space.
            let size = fs::metadata(&target).unwrap();
            assert_eq!(size.len(), report["size_sectors"].as_u64().unwrap() * 512);
            // The same as a stream.
            let stream = export(&["--volume", &volume, "-o", "-"], &paths);
            assert_eq!(stream.status.code(), Some(0), "{}", errors(&stream));
            assert!(stream.stdout == fs::read(&target).unwrap(), "{name} {volume}");
        }
        let after: Vec<String> = sources.iter().map(|path| md5(path)).collect();
        assert_eq!(before, after, "{name}");
    }
}

/// Runs of a map file: bytes and status.
fn map(path: &Path) -> Vec<(usize, usize, char)> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next().unwrap().split_whitespace().nth(1), Some("+"));
    let number =
        |field: &str| usize::from_str_radix(field.strip_prefix("0x").unwrap(), 16).unwrap();
    let mut at = 0;
    let runs: Vec<_> = lines
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (start, len) = (number(fields[0]), number(fields[1]));
            assert_eq!(start, at, "{line}");
            at += len;
            (start, len, fields[2].chars().next().unwrap())
        })
        .collect();
    assert!(!runs.is_empty());
    runs
}

#[test]
fn dirty_data_and_its_map_make_the_backing_device_whole() {
    for name in ["dirty-61", "multi-612"] {
        let fixture = Fixture::unpack(name).unwrap();
        for (volume, backing, sum) in volumes(&fixture) {
            let Some(backing) = backing else { continue };
            // With the backing device, and without it: its UUID is not on this machine.
            for present in [true, false] {
                let scratch = Scratch::new().unwrap();
                let target = scratch.path("dirty.img");
                let target_name = target.to_str().unwrap();
                let mut arguments = vec!["--volume", &volume, "--dirty-only", "-o", target_name];
                let mut paths = vec![fixture.cache.as_path()];
                if present {
                    paths.push(&backing);
                } else {
                    let refused = export(&arguments, &paths);
                    assert_eq!(refused.status.code(), Some(1));
                    assert!(errors(&refused).contains("--data-offset"), "{}", errors(&refused));
                    assert!(!target.exists());
                    arguments.extend(["--data-offset", "16"]);
                }
                let output = export(&arguments, &paths);
                assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
                let mut whole = fs::read(&backing).unwrap().split_off(DATA_OFFSET_BYTES);
                let alone = scratch.path("alone.img");
                fs::write(&alone, &whole).unwrap();
                assert_ne!(md5(&alone), sum, "the control: {name} {volume}");
                let dirty = fs::read(&target).unwrap();
                for (start, len, status) in map(&scratch.path("dirty.img.map")) {
                    match status {
                        '+' => {
                            whole[start..start + len].copy_from_slice(&dirty[start..start + len]);
                        }
                        '?' => {}
                        other => panic!("{other}"),
                    }
                }
                fs::write(&alone, &whole).unwrap();
                assert_eq!(md5(&alone), sum, "{name} {volume} {present}");
            }
        }
    }
}

/// A backing device that became shorter than what the cache holds of it.
#[test]
fn what_lies_past_the_end_of_a_backing_device_is_exported() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let (cache, backing) = (fixture.cache.as_path(), fixture.backing[0].as_path());
    let scratch = Scratch::new().unwrap();
    let target = scratch.path("volume.img");
    let target_name = target.to_str().unwrap();
    let map_path = scratch.path("volume.img.map");
    let export_as = |arguments: &[&str]| {
        let _ = fs::remove_file(&map_path);
        let all = [arguments, &["--json", "--force", "-o", target_name]].concat();
        export(&all, &[cache, backing])
    };
    assert_eq!(export_as(&[]).status.code(), Some(0));
    let truth = fs::read(&target).unwrap();
    let whole = json(&export_as(&["--dirty-only"]))["dirty_sectors"].as_u64().unwrap();
    fs::File::options().write(true).open(backing).unwrap().set_len(60 << 20).unwrap();

    let output = export_as(&["--dirty-only"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let report = json(&output);
    assert_eq!(report["dirty_sectors"], whole, "{report}");
    assert_eq!(report["lost_sectors"], 0, "{report}");
    assert!(errors(&output).contains("ends at sector 122880"), "{}", errors(&output));
    assert!(report["problems"][0].as_str().unwrap().contains("ends at sector"), "{report}");

    let output = export_as(&[]);
    assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
    let report = json(&output);
    assert_eq!(report["dirty_sectors"], whole, "{report}");
    assert_eq!(report["complete"], false, "{report}");
    let lost = report["lost_sectors"].as_u64().unwrap();
    assert_eq!(report["reasons"]["past-backing-device"], lost, "{report}");
    let data = fs::read(&target).unwrap();
    let mut missing = 0;
    for (start, len, status) in map(&map_path) {
        match status {
            '+' => assert!(data[start..start + len] == truth[start..start + len], "{start}"),
            '-' => missing += len as u64 / 512,
            other => panic!("{other}"),
        }
    }
    assert!(missing > 0 && missing == lost, "{missing} {lost}");
    assert!(data.len() > (60 << 20) - DATA_OFFSET_BYTES, "{}", data.len());
}

/// Gives a backing device's superblock another data offset, and a sound checksum.
fn set_data_offset(backing: &Path, data_offset: u64) {
    let image = fs::read(backing).unwrap();
    let start = usize::try_from(SB_OFFSET_BYTES).unwrap();
    let mut bytes = image[start..start + SB_BYTES].to_vec();
    bytes[16..24].copy_from_slice(&4u64.to_le_bytes());
    bytes[184..192].copy_from_slice(&data_offset.to_le_bytes());
    let mut superblock = Superblock::from_bytes(&bytes).unwrap();
    superblock.update_checksum();
    assert_eq!(superblock.data_offset().0, data_offset);
    write_at(backing, SB_OFFSET_BYTES, superblock.as_bytes()).unwrap();
}

/// Keys count sectors of the backing device, and none begins before its data: such an offset is wrong. What
/// check advises saves all dirty data, and where it belongs.
#[test]
fn a_wrong_data_offset_is_found_and_leaves_nothing_out_silently() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let (cache, backing) = (fixture.cache.as_path(), fixture.backing[0].as_path());
    let scratch = Scratch::new().unwrap();
    let target = scratch.path("volume.img");
    let target_name = target.to_str().unwrap();
    let dirty_only = ["--volume", "0", "--dirty-only", "--json", "--force", "-o", target_name];
    let output = export(&dirty_only, &[cache, backing]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let (whole, truth) = (json(&output)["dirty_sectors"].clone(), fs::read(&target).unwrap());
    // Behind some of the dirty data; and before all of it, but behind some of the clean data.
    for (data_offset, loses_dirty) in [(2048, true), (64, false)] {
        set_data_offset(backing, data_offset);
        let output = export(&["--json", "--force", "-o", target_name], &[cache, backing]);
        assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
        let report = json(&output);
        assert_eq!(report["complete"], false, "{report}");
        assert!(report["before_data_sectors"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["dirty_sectors"] != whole, loses_dirty, "{report}");
        assert!(errors(&output).contains("holds data from sector 16 on"), "{}", errors(&output));

        let mut check = tool::bcachectl().unwrap();
        let check = check.args(["check", "--json"]).args([cache, backing]).output().unwrap();
        assert_eq!(check.status.code(), Some(4));
        let report = json(&check);
        assert_eq!(report["findings"][0]["code"], "backing-data-offset", "{report}");
        assert_eq!(report["data_at_risk"], true, "{report}");
        let advice = report["advice"].as_array().unwrap().iter();
        let codes: Vec<_> = advice.clone().filter_map(|it| it["code"].as_str()).collect();
        assert_eq!(codes, ["do-not-register", "do-not-wipe", "copy-device", "export"], "{report}");
        let advised = advice.filter_map(|it| it["command"].as_str()).next_back().unwrap();
        assert!(advised.contains("--volume 0 --dirty-only --data-offset 16"), "{advised}");
        for paths in [&[cache][..], &[cache, backing]] {
            let arguments = [&["--data-offset", "16"], &dirty_only[..]].concat();
            let output = export(&arguments, paths);
            assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
            assert_eq!(json(&output)["dirty_sectors"], whole);
            let data = fs::read(&target).unwrap();
            assert!(data == truth[..data.len()], "{data_offset} {}", paths.len());
        }
    }
    // Of a device that is not there, only the user knows the offset.
    let output = export(&[&["--data-offset", "100000"], &dirty_only[..]].concat(), &[cache]);
    assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
}

/// Bytes of a bucket with a use, on a fixture's cache device.
fn bucket_for(fixture: &Fixture, role: &str) -> u64 {
    with_cache_set(&fixture.cache, |set| {
        let bucket = match role {
            "prios" => set.prios.buckets[0],
            "uuids" => set.uuids.bucket.unwrap(),
            _ => set.root.ptrs()[0].bucket(set.geometry()),
        };
        Ok(set.geometry().bucket_to_sector(bucket).bytes())
    })
    .unwrap()
}

/// Where the kernel refuses the set, or would show something else.
#[test]
fn damaged_images_give_what_can_be_known() {
    type Damage = fn(&Fixture);
    // Damage; the exit status without and with --likely; whether all is there with it.
    let damages: [(&str, Damage, i32, i32, bool); 5] = [
        (
            "superblock checksum",
            |fixture| flip(&fixture.cache, SB_OFFSET_BYTES + 120, 1).unwrap(),
            0,
            0,
            true,
        ),
        (
            "uuid table",
            |fixture| write_at(&fixture.cache, bucket_for(fixture, "uuids"), &[0; 4096]).unwrap(),
            1,
            1,
            false,
        ),
        (
            "prio set",
            |fixture| {
                write_at(&fixture.cache, bucket_for(fixture, "prios"), &[0xa5; 4096]).unwrap();
            },
            4,
            4,
            true,
        ),
        (
            "a bit of the prio set",
            |fixture| flip(&fixture.cache, bucket_for(fixture, "prios") + 2000, 1).unwrap(),
            4,
            4,
            true,
        ),
        (
            "root",
            |fixture| write_at(&fixture.cache, bucket_for(fixture, "btree"), &[0; 4096]).unwrap(),
            4,
            4,
            false,
        ),
    ];
    for (name, damage, status, likely_status, right) in damages {
        let fixture = Fixture::unpack("dirty-61").unwrap();
        let truth = {
            let output = export(&["-o", "-"], &[&fixture.cache, &fixture.backing[0]]);
            assert_eq!(output.status.code(), Some(0));
            output.stdout
        };
        damage(&fixture);
        let scratch = Scratch::new().unwrap();
        for (likely, status) in [(false, status), (true, likely_status)] {
            let target = scratch.path(if likely { "likely.img" } else { "certain.img" });
            let map_path = scratch.path("map");
            let _ = fs::remove_file(&map_path);
            let mut arguments = vec!["--json", "-o", target.to_str().unwrap()];
            arguments.extend(["--map", map_path.to_str().unwrap()]);
            if likely {
                arguments.push("--likely");
            }
            let output = export(&arguments, &[&fixture.cache, &fixture.backing[0]]);
            assert_eq!(output.status.code(), Some(status), "{name}: {}", errors(&output));
            if status == 1 {
                assert!(!target.exists(), "{name}");
                continue;
            }
            let data = fs::read(&target).unwrap();
            let mut taken = vec![(0, data.len(), '+')];
            if map_path.exists() {
                taken = map(&map_path);
            }
            let (mut there, mut missing) = (0, 0);
            for (start, len, status) in taken {
                if status == '+' {
                    assert!(
                        data[start..start + len] == truth[start..start + len],
                        "{name} {start}"
                    );
                    there += len as u64 / 512;
                } else {
                    missing += len as u64 / 512;
                }
            }
            let report = json(&output);
            let count = |key: &str| report[key].as_u64().unwrap();
            assert_eq!(missing, count("likely_left_sectors") + count("lost_sectors"), "{name}");
            assert_eq!(there + missing, count("size_sectors"), "{name}");
            if right && likely {
                assert_eq!(missing, 0, "{name}");
                assert!(data == truth, "{name}");
            }
        }
    }
}

#[test]
fn a_lost_uuid_table_leaves_the_choice_to_the_user() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let sum = fixture.log.md5("/dev/bcache0").unwrap().to_owned();
    // The journal's key for it, in the newest entry, cannot be changed without its checksum; what
    // is in the table can.
    write_at(&fixture.cache, bucket_for(&fixture, "uuids"), &[0; 4096]).unwrap();
    let scratch = Scratch::new().unwrap();
    let target = scratch.path("volume.img");
    let paths = [fixture.cache.as_path(), fixture.backing[0].as_path()];
    let output = export(&["--volume", "0", "-o", target.to_str().unwrap()], &paths);
    // An empty table is a table: nothing in it says whose the data is.
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(!target.exists());
    let trusted = ["--volume", "0", "--trust-backing", "-o", target.to_str().unwrap()];
    let output = export(&trusted, &paths);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(errors(&output).contains("on trust"), "{}", errors(&output));
    assert_eq!(md5(&target), sum);
}

#[test]
fn what_must_not_be_is_refused() {
    let fixture = Fixture::unpack("multi-612").unwrap();
    let scratch = Scratch::new().unwrap();
    let target = scratch.path("volume.img");
    let target_name = target.to_str().unwrap();
    let cache = fixture.cache.as_path();
    let refused = |arguments: &[&str], paths: &[&Path], words: &str| {
        let output = export(arguments, paths);
        assert_eq!(output.status.code(), Some(1), "{words}: {}", errors(&output));
        assert!(errors(&output).contains(words), "{words}: {}", errors(&output));
    };
    refused(&["-o", target_name], &[cache], "--volume");
    refused(&["--volume", "0", "-o", target_name], &[cache], "name its backing device");
    refused(&["--volume", "0", "-o", target_name], &[cache, &fixture.backing[1]], "UUID");
    refused(&["--volume", "nobody", "-o", target_name], &[cache], "no volume \"nobody\"");
    refused(&["-o", target_name], &[&fixture.backing[0]], "backing device");
    refused(&["-o", target_name], &[cache, cache], "no superblock of a backing device");
    assert!(!target.exists());
    // Existing files, sources under any name, devices.
    fs::write(&target, "mine").unwrap();
    let backing = fixture.backing[0].as_path();
    refused(&["-o", target_name], &[cache, backing], "--force");
    let link = scratch.path("link");
    std::os::unix::fs::symlink(backing, &link).unwrap();
    refused(&["--force", "-o", link.to_str().unwrap()], &[cache, backing], "is a source");
    refused(&["--force", "-o", backing.to_str().unwrap()], &[cache, backing], "is a source");
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    let output = export(&["--force", "-o", target_name], &[cache, backing]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(md5(&target), fixture.log.md5("/dev/bcache0").unwrap());
    let output = export(&["--json", "-o", "-"], &[cache, backing]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_device_that_ran_without_its_cache_gives_dirty_data_only() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let backing = fixture.backing[0].as_path();
    let image = fs::read(backing).unwrap();
    let start = usize::try_from(SB_OFFSET_BYTES).unwrap();
    let mut superblock = Superblock::from_bytes(&image[start..start + SB_BYTES]).unwrap();
    superblock.edit(|edit| {
        edit.state(BackingState::Stale);
    });
    write_at(backing, SB_OFFSET_BYTES, superblock.as_bytes()).unwrap();
    let scratch = Scratch::new().unwrap();
    let target = scratch.path("dirty.img");
    let paths = [fixture.cache.as_path(), backing];
    let output = export(&["-o", target.to_str().unwrap()], &paths);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("ran without its cache"), "{}", errors(&output));
    let output = export(&["--dirty-only", "-o", target.to_str().unwrap()], &paths);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(map(&scratch.path("dirty.img.map")).iter().any(|run| run.2 == '+'));
}

/// A stream that breaks off is named in words, not as `-`.
#[test]
fn a_stream_that_cannot_be_written_is_incomplete() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let mut command = tool::bcachectl().unwrap();
    command.arg("export").args([&fixture.cache, &fixture.backing[0]]).args(["-o", "-"]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", errors(&output));
    let said = "writing standard output failed; it is incomplete: No space left";
    assert!(errors(&output).contains(said), "{}", errors(&output));
}
