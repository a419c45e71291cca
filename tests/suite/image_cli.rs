//! `bcachectl image` as a user sees it, on images that stock kernels wrote.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use bcache_tests::cache::{check_clean, with_cache_set};
use bcache_tests::fixture::Fixture;
use bcache_tests::{Scratch, tool};
use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    tool::bcachectl().unwrap().args(arguments).output().unwrap()
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn succeed(arguments: &[&str]) -> Output {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", errors(&output));
    output
}

/// What `show` prints of a device, without its path.
fn shown(path: &Path) -> Value {
    let arguments = ["show", "--json", "--usage", "--prios", "--journal", "--btree", "--keys"];
    let mut document = json(&succeed(&[&arguments[..], &[name(path)]].concat()));
    document["devices"][0]["path"] = Value::Null;
    document
}

#[test]
fn an_image_shows_checks_and_plans_as_the_device_does() {
    for fixture_name in Fixture::names().unwrap() {
        let fixture = Fixture::unpack(&fixture_name).unwrap();
        let scratch = Scratch::new().unwrap();
        let packed = scratch.path("cache.bci");
        let before = fs::read(&fixture.cache).unwrap();
        let created =
            succeed(&["image", "create", "--json", name(&fixture.cache), "-o", name(&packed)]);
        assert!(fs::read(&fixture.cache).unwrap() == before, "{fixture_name}");
        let report = json(&created);
        assert_eq!(report["unreadable"], 0, "{fixture_name}");
        assert_eq!(report["uuid_table"], true, "{fixture_name}");
        let size = fs::metadata(&packed).unwrap().len();
        assert!(size < 1 << 20, "{fixture_name}: {size} bytes");
        assert_eq!(shown(&packed), shown(&fixture.cache), "{fixture_name}");
        succeed(&["check", name(&packed)]);
        let dry = ["invalidate", "--all-clean", "--dry-run", "--json"];
        let planned = json(&succeed(&[&dry[..], &[name(&fixture.cache)]].concat()));
        let on_image = json(&succeed(&[&dry[..], &[name(&packed)]].concat()));
        assert_eq!(planned["invalidated"], on_image["invalidated"], "{fixture_name}");
        // As a stream it is the same.
        let stream = succeed(&["image", "create", name(&fixture.cache), "-o", "-"]);
        assert!(stream.stdout == fs::read(&packed).unwrap(), "{fixture_name}");
        // And restored.
        let restored = scratch.path("restored.img");
        succeed(&["image", "restore", name(&packed), name(&restored)]);
        assert_eq!(fs::metadata(&restored).unwrap().len(), before.len() as u64);
        assert_eq!(shown(&restored), shown(&fixture.cache), "{fixture_name}");
        check_clean(&restored).unwrap();
    }
}

#[test]
fn an_anonymous_image_names_nobody() {
    let fixture = Fixture::unpack("multi-612").unwrap();
    let scratch = Scratch::new().unwrap();
    let restored = scratch.path("restored.img");
    let packed = scratch.path("cache.bci");
    succeed(&["image", "create", "--anonymize", name(&fixture.cache), "-o", name(&packed)]);
    succeed(&["image", "restore", name(&packed), name(&restored)]);
    check_clean(&restored).unwrap();
    let secrets = with_cache_set(&fixture.cache, |set| {
        let sb = set.cache.superblock();
        let mut secrets = vec![sb.uuid(), sb.set_uuid()];
        secrets.extend(set.uuids.used().map(|(_, entry)| entry.uuid));
        Ok(secrets)
    })
    .unwrap();
    assert!(secrets.len() > 3);
    let bytes = fs::read(&restored).unwrap();
    for secret in secrets {
        let found = bytes.windows(16).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret}");
    }
    let dirty = |path: &Path| with_cache_set(path, |set| Ok(set.volumes.clone())).unwrap();
    assert_eq!(dirty(&restored), dirty(&fixture.cache));
}

#[test]
fn what_must_not_be_is_refused() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let scratch = Scratch::new().unwrap();
    let packed = scratch.path("cache.bci");
    let refused = |arguments: &[&str], words: &str| {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(words), "{words}: {}", errors(&output));
    };
    refused(&["image", "create", name(&fixture.backing[0]), "-o", name(&packed)], "backing device");
    assert!(!packed.exists());
    succeed(&["image", "create", name(&fixture.cache), "-o", name(&packed)]);
    refused(&["image", "create", name(&fixture.cache), "-o", name(&packed)], "--force");
    refused(
        &["image", "create", "--force", name(&fixture.cache), "-o", name(&fixture.cache)],
        "is a source",
    );
    refused(&["image", "restore", name(&packed), name(&fixture.cache)], "--force");
    refused(&["image", "restore", "--force", name(&packed), name(&packed)], "is an image itself");
    refused(
        &["image", "restore", name(&fixture.cache), name(&scratch.path("x"))],
        "no packed image",
    );
    // What is in an image cannot be written, and data in it is absent.
    let volume = scratch.path("volume.img");
    let backing = name(&fixture.backing[0]);
    refused(&["export", name(&packed), backing, "-o", name(&volume)], "holds no data");
    assert!(!volume.exists());
    refused(&["invalidate", "--all-clean", "--yes", name(&packed)], "read-only");
    let bytes = fs::read(&packed).unwrap();
    refused(&["make", "--force", "--wipe-bcache", "--cache", name(&packed)], "not in the image");
    assert!(fs::read(&packed).unwrap() == bytes);
    // Damage anywhere is noticed before the first write.
    let target = scratch.path("target.img");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(&packed, &damaged).unwrap();
    refused(&["image", "restore", name(&packed), name(&target)], "damaged");
    assert!(!target.exists());
    // Over another device with the override.
    fs::write(&packed, &bytes).unwrap();
    let other = Fixture::unpack("dirty-61").unwrap();
    let over = ["image", "restore", "--force", name(&packed), name(&other.cache)];
    refused(&over, "10.9 MiB of dirty data");
    succeed(&[&over[..], &["--lose-dirty-data"]].concat());
    check_clean(&other.cache).unwrap();
    let md5 = |path: &Path| Command::new("md5sum").arg(path).output().unwrap().stdout;
    assert_ne!(md5(&other.cache), md5(&fixture.cache), "data is not in the image");
}
