//! `bcachectl show` from the command line: the JSON that scripts rely on, damaged and missing
//! devices, terminals and pipes; and that it never writes.

mod common;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use bcache_core::layout::superblock::{BackingState, SB_OFFSET_BYTES};
use common::*;
use serde_json::{Value, json as value};

const SET: &str = "11111111-2222-3333-4444-555555555555";

/// A cache and a backing device that belong together.
fn pair(images: &Images) -> (std::path::PathBuf, std::path::PathBuf) {
    let (cache, backing) = (images.blank("cache", 40 * MIB), images.blank("backing", 9 * MIB));
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    succeed(
        &format!(
            "make -b 64k -w 2k -l fast -o 64 --writeback --discard --cache-replacement-policy fifo \
             --cset-uuid {SET} -C CACHE -B BACKING"
        ),
        named,
    );
    (cache, backing)
}

/// The keys and types that are promised, with the values that were asked for.
#[test]
fn json_is_what_scripts_rely_on() {
    let images = Images::new();
    let (cache, backing) = pair(&images);
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    let document = json("show --json CACHE BACKING", named);
    assert_eq!(document.as_object().unwrap().keys().collect::<Vec<_>>(), ["devices"]);
    let expected = value!({
        "path": cache,
        "kind": "cache",
        "size_sectors": 40 << 11,
        "superblock": {
            "checksum": "ok",
            "version": 0,
            "uuid": superblock(&cache).uuid(),
            "set_uuid": SET,
            "label": "fast",
            "flags": 6,
            "seq": 0,
            "block_size_sectors": 4,
            "bucket_size_sectors": 128,
            "nbuckets": 640,
            "first_bucket": 1,
            "njournal_buckets": 0,
            "nr_in_set": 1,
            "nr_this_dev": 0,
            "replacement": "fifo",
            "sync": false,
            "discard": true,
        },
        "kernel": {"accepts": true, "error": null, "warnings": []},
    });
    contains(&document["devices"][0], &expected, "");
    let expected = value!({
        "path": backing,
        "kind": "backing",
        "size_sectors": 9 << 11,
        "superblock": {
            "checksum": "ok",
            "version": 4,
            "uuid": superblock(&backing).uuid(),
            "set_uuid": SET,
            "label": "fast",
            "flags": 1,
            "seq": 0,
            "block_size_sectors": 4,
            "data_offset_sectors": 64,
            "cache_mode": "writeback",
            "state": "none",
        },
        "kernel": {"accepts": true, "error": null, "warnings": []},
    });
    contains(&document["devices"][1], &expected, "");
    // Nothing of one kind is said of the other.
    assert_eq!(document["devices"][1]["superblock"].get("nbuckets"), None);
    assert_eq!(document["devices"][0]["superblock"].get("data_offset_sectors"), None);
    // make prints the same of what it made.
    let again = json(
        "make --json --wipe-bcache --cset-uuid 11111111-2222-3333-4444-555555555555 -C CACHE",
        named,
    );
    let shown = json("show --json CACHE", named);
    contains(&again["devices"][0]["superblock"], &shown["devices"][0]["superblock"], "");
}

/// Whether all that `expected` names is in `found`, with the same types and values.
fn contains(found: &Value, expected: &Value, at: &str) {
    match expected {
        Value::Object(fields) => {
            for (name, expected) in fields {
                let found = found.get(name).unwrap_or_else(|| panic!("no {at}/{name} in {found}"));
                contains(found, expected, &format!("{at}/{name}"));
            }
        }
        expected => assert_eq!(found, expected, "{at}"),
    }
}

#[test]
fn tables_name_everything() {
    let images = Images::new();
    let (cache, backing) = pair(&images);
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    let printed = succeed("show CACHE BACKING", named);
    for words in [
        "cache: bcache cache device",
        "backing: bcache backing device",
        SET,
        "fast",
        "64 KiB",
        "640 of 64 KiB",
        "fifo",
        "writeback",
        "accepts it",
        "losetup --find --show --read-only --offset 32768 ",
        "offset=32768",
    ] {
        assert!(printed.contains(words), "no {words:?} in {printed}");
    }
    // Dirty data in a cache is not on the disk; who mounts it without the cache must know.
    assert!(!printed.contains("INCOMPLETE"), "{printed}");
    let mut sb = superblock(&backing);
    sb.edit(|edit| {
        edit.state(BackingState::Dirty);
    });
    write_at(&backing, SB_OFFSET_BYTES, sb.as_bytes());
    assert!(succeed("show BACKING", named).contains("INCOMPLETE"));
    // Flags that nobody knows are kept and shown.
    sb.edit(|edit| {
        edit.flags(1 << 40 | 1);
    });
    write_at(&backing, SB_OFFSET_BYTES, sb.as_bytes());
    let printed = succeed("show BACKING", named);
    assert!(printed.contains("unknown=0x10000000000"), "{printed}");
    let document = json("show --json BACKING", named);
    assert_eq!(document["devices"][0]["superblock"]["flags_unknown"], 1_u64 << 40);
}

/// Damaged and missing devices: told, not crashed on, and the exit status says so.
#[test]
fn what_is_wrong_is_said() {
    let images = Images::new();
    let (cache, backing) = pair(&images);
    // What shows is the first image; the words are in the table, the error in the JSON.
    let check = |name: &str, damage: &dyn Fn(&Path), words: &[&str], error: Option<&str>| {
        let image = images.path(name);
        fs::copy(&cache, &image).unwrap();
        damage(&image);
        let before = state(&image);
        let named: &[(&str, &Path)] = &[("IMAGE", &image)];
        let output = run("show IMAGE", named);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {printed}");
        for words in words {
            assert!(printed.contains(words), "{name}: no {words:?} in {printed}");
        }
        let output = run("show --json IMAGE", named);
        assert_eq!(output.status.code(), Some(1), "{name}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let kernel = &document["devices"][0]["kernel"];
        assert_eq!(kernel["accepts"], error.is_none(), "{name}: {document}");
        assert_eq!(kernel["error"].as_str(), error, "{name}: {document}");
        assert!(state(&image) == before, "{name} was written");
        document
    };
    let cut = |bytes: u64| {
        move |image: &Path| File::options().write(true).open(image).unwrap().set_len(bytes).unwrap()
    };
    let bad_magic = Some("Not a bcache superblock (bad magic)");
    let io_error = Some("IO error");
    check("checksum", &|image| write_at(image, 4096 + 112, &[9]), &["BAD"], Some("Bad checksum"));
    let document = check(
        "keys",
        &|image| write_at(image, 4096 + 206, &[0xff, 0xff]),
        &["BAD", "65535"],
        Some("Bad checksum"),
    );
    let sb = &document["devices"][0]["superblock"];
    assert_eq!((&sb["checksum"], &sb["njournal_buckets"]), (&value!("bad"), &value!(65535)));
    check("magic", &|image| write_at(image, 4096 + 24, &[0]), &["magic was wiped"], bad_magic);
    let bad_offset = Some("Not a bcache superblock (bad offset)");
    check("zeroes", &|image| write_at(image, 4096, &[0; 4096]), &["no bcache device"], bad_offset);
    check("garbage", &|image| write_at(image, 0, &[0xa5; 16384]), &["no bcache"], bad_offset);
    check("empty", &cut(0), &["no bcache device"], io_error);
    check("half a superblock", &cut(4096 + 2048), &["no bcache device"], io_error);
    check("just before it", &cut(4096), &["no bcache device"], io_error);
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];

    // A cut device whose superblock is whole: the kernel would refuse it, and we say so.
    let short = images.path("short");
    fs::copy(&cache, &short).unwrap();
    cut(39 * MIB)(&short);
    let document: Value =
        serde_json::from_slice(&run("show --json SHORT", &[("SHORT", &short)]).stdout).unwrap();
    let kernel = &document["devices"][0]["kernel"];
    assert_eq!(kernel["accepts"], false);
    assert_eq!(kernel["error"], "Invalid superblock: device too small");

    // What cannot be opened is told on standard error, and the others are shown nevertheless.
    let folder = images.folder();
    let missing = images.path("missing");
    for (path, words) in [(folder, "neither"), (missing.as_path(), "No such file")] {
        let output = run("show CACHE OTHER BACKING", &[&[("OTHER", path)], named].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains(words) && said.contains(path.to_str().unwrap()), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).matches("640 of").count(), 1);
        let output = run("show --json CACHE OTHER BACKING", &[&[("OTHER", path)], named].concat());
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["devices"].as_array().unwrap().len(), 2, "{document}");
        assert!(document["errors"][0]["error"].as_str().unwrap().contains(words), "{document}");
    }
    refuse("show /dev/null", &[], 1, &["/dev/null", "neither"]);
}

/// A label of odd bytes cannot reach the terminal as such, nor break the JSON.
#[test]
fn labels_are_made_harmless() {
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    succeed("make -C IMAGE", named);
    write_at(&image, SB_OFFSET_BYTES + 72, b"\x1b[31mred\n\xff\x80\t\x07");
    let mut sb = superblock(&image);
    sb.update_checksum();
    write_at(&image, SB_OFFSET_BYTES, sb.as_bytes());
    let output = run("show IMAGE", named);
    assert!(output.status.success());
    assert!(
        !output.stdout.contains(&0x1b) && !output.stdout.contains(&7),
        "raw control characters"
    );
    assert!(String::from_utf8(output.stdout).unwrap().contains(r"\u{1b}[31mred\n\xff\x80"));
    assert_eq!(json("show --json IMAGE", named)["devices"][0]["superblock"]["checksum"], "ok");
}

/// Looking does not write, not even where it could, and works where it cannot.
#[test]
fn looking_does_not_write() {
    let images = Images::new();
    let (cache, backing) = pair(&images);
    let before = (state(&cache), state(&backing));
    for image in [&cache, &backing] {
        fs::set_permissions(image, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    for arguments in ["show CACHE BACKING", "show --json CACHE BACKING", "show CACHE CACHE"] {
        succeed(arguments, named);
    }
    assert!(before == (state(&cache), state(&backing)));
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let images = Images::new();
    let (cache, _) = pair(&images);
    for options in [&["show"] as &[_], &["show", "--json"]] {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop::<OwnedFd>(reader);
        let output = Command::new(assert_cmd::cargo::cargo_bin("bcachectl"))
            .args(options)
            .args([&cache; 200])
            .stdin(Stdio::null())
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    }
}
