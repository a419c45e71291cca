//! `bcachectl show` in depth, as a user and as a script see it: on images that stock kernels wrote,
//! and on large sets made for the purpose.

use bcache_core::cache_set::testkit::{SetBuilder, backing_volume};
use bcache_core::device::create_image;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::units::{Gen, Sectors};
use bcache_tests::cache::add_volume;
use bcache_tests::fixture::Fixture;
use bcache_tests::kernel::{PriorityStats, rounded_size};
use bcache_tests::{Scratch, tool};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Output, Stdio};

/// Images that were at rest when the kernel's figures were taken.
const AT_REST: [&str; 3] = ["clean-612", "dirty-61", "multi-612"];

fn show<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    tool::bcachectl().unwrap().arg("show").args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The first device in the JSON of a run that went well.
fn device(fixture: &Fixture, options: &[&str]) -> Value {
    let mut arguments: Vec<&OsStr> = vec![OsStr::new("--json"), fixture.cache.as_os_str()];
    arguments.extend(fixture.backing.iter().map(|path| path.as_os_str()));
    arguments.extend(options.iter().map(OsStr::new));
    let output = show(arguments);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document.get("errors"), None);
    assert_eq!(
        document["devices"].as_array().unwrap().len(),
        1 + fixture.backing.len(),
        "every device is told of"
    );
    document["devices"][0].clone()
}

/// A type as the documentation names it.
#[derive(Clone, Copy)]
enum Is {
    Number,
    Text,
    Truth,
    Numbers,
    List(&'static [(&'static str, Is)]),
    Object(&'static [(&'static str, Is)]),
    OrNull(&'static Is),
}

fn check_type(at: &str, value: &Value, is: Is) {
    match is {
        Is::Number => assert!(value.is_u64(), "{at}: {value}"),
        Is::Text => assert!(value.is_string(), "{at}: {value}"),
        Is::Truth => assert!(value.is_boolean(), "{at}: {value}"),
        Is::Numbers => {
            let numbers = value.as_array().unwrap_or_else(|| panic!("{at}: {value}"));
            assert!(numbers.iter().all(Value::is_u64), "{at}: {value}");
        }
        Is::List(keys) => {
            let rows = value.as_array().unwrap_or_else(|| panic!("{at}: {value}"));
            assert!(!rows.is_empty(), "{at} is empty: nothing is checked");
            for row in rows {
                check_type(at, row, Is::Object(keys));
            }
        }
        Is::Object(keys) => {
            let object = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            for (key, is) in keys {
                let value = object.get(*key).unwrap_or_else(|| panic!("{at}: no {key}"));
                check_type(&format!("{at}.{key}"), value, *is);
            }
        }
        Is::OrNull(is) => {
            if !value.is_null() {
                check_type(at, value, *is);
            }
        }
    }
}

const NUMBER: Is = Is::Number;

/// What scripts rely on.
const SCHEMA: &[(&str, Is)] = &[
    ("path", Is::Text),
    ("kind", Is::Text),
    ("size_sectors", NUMBER),
    (
        "dirty",
        Is::Object(&[
            ("answer", Is::Text),
            ("sectors", NUMBER),
            ("safe_to_wipe", Is::Truth),
            ("volumes", Is::Numbers),
        ]),
    ),
    ("kernel", Is::Object(&[("accepts", Is::Truth), ("error", Is::OrNull(&Is::Text))])),
    (
        "usage",
        Is::Object(&[
            (
                "buckets",
                Is::Object(&[
                    ("total", NUMBER),
                    ("unused", NUMBER),
                    ("clean", NUMBER),
                    ("dirty", NUMBER),
                    ("metadata", NUMBER),
                ]),
            ),
            ("available", NUMBER),
            ("quantiles", Is::Numbers),
            ("gen_span_max", NUMBER),
            ("btree", Is::Object(&[("nodes", NUMBER), ("depth", NUMBER), ("keys", NUMBER)])),
            (
                "volumes",
                Is::List(&[
                    ("slot", NUMBER),
                    ("uuid", Is::Text),
                    ("label", Is::Text),
                    ("flash_only", Is::Truth),
                    ("cached_sectors", NUMBER),
                    ("dirty_sectors", NUMBER),
                    ("backing", Is::OrNull(&Is::Text)),
                ]),
            ),
        ]),
    ),
    (
        "prios",
        Is::List(&[
            ("bucket", NUMBER),
            ("prio", NUMBER),
            ("gen", NUMBER),
            ("last_gc", NUMBER),
            ("gen_span", NUMBER),
            ("mark", Is::Text),
            ("sectors_used", NUMBER),
            ("use", Is::OrNull(&Is::Text)),
        ]),
    ),
    (
        "journal",
        Is::Object(&[
            ("first_seq", NUMBER),
            ("last_seq", NUMBER),
            ("replay_from", NUMBER),
            ("entries", NUMBER),
            ("replay_keys", NUMBER),
            ("entry_list", Is::List(&[("seq", NUMBER), ("bucket", NUMBER), ("state", Is::Text)])),
        ]),
    ),
    (
        "uuids",
        Is::List(&[
            ("slot", NUMBER),
            ("uuid", Is::Text),
            ("label", Is::Text),
            ("flash_only", Is::Truth),
            ("detached", Is::Truth),
            ("first_reg", NUMBER),
            ("sectors", NUMBER),
        ]),
    ),
    (
        "btree",
        Is::Object(&[
            ("nodes", NUMBER),
            ("depth", NUMBER),
            ("keys", NUMBER),
            (
                "node_list",
                Is::List(&[
                    ("level", NUMBER),
                    ("bucket", NUMBER),
                    ("keys", NUMBER),
                    ("sets", NUMBER),
                    ("fill_percent", NUMBER),
                    ("error", Is::OrNull(&Is::Text)),
                ]),
            ),
        ]),
    ),
    (
        "keys",
        Is::List(&[
            ("source", Is::Text),
            ("volume", NUMBER),
            ("end", NUMBER),
            ("sectors", NUMBER),
            ("dirty", Is::Truth),
            ("state", Is::Text),
        ]),
    ),
    (
        "lookup",
        Is::List(&[
            ("volume", NUMBER),
            ("start", NUMBER),
            ("end", NUMBER),
            ("state", Is::Text),
            ("cache_sector", Is::OrNull(&NUMBER)),
        ]),
    ),
];

#[test]
fn json_has_every_key_with_its_type() {
    for name in Fixture::names().unwrap() {
        let fixture = Fixture::unpack(&name).unwrap();
        let device = device(&fixture, &["--all", "--keys", "--lookup", "0:16+2048"]);
        check_type(&name, &device, Is::Object(SCHEMA));
        let nbuckets = tool::number(&device, "/superblock/nbuckets").unwrap();
        let first = tool::number(&device, "/superblock/first_bucket").unwrap();
        let rows = device["prios"].as_array().unwrap();
        assert_eq!(rows.len() as u64, nbuckets - first, "{name}: one row for each bucket");
        assert_eq!(device["usage"]["quantiles"].as_array().unwrap().len(), 31);
        // The lists and the sums are of one reading.
        for mark in ["clean", "dirty", "metadata"] {
            let listed = rows.iter().filter(|row| row["mark"] == mark).count() as u64;
            let counted = tool::number(&device, &format!("/usage/buckets/{mark}")).unwrap();
            assert_eq!(listed, counted, "{name}: {mark}");
        }
        let entries = device["journal"]["entry_list"].as_array().unwrap().len() as u64;
        assert_eq!(entries, tool::number(&device, "/journal/entries").unwrap(), "{name}");
        let nodes = device["btree"]["node_list"].as_array().unwrap().len() as u64;
        assert_eq!(nodes, tool::number(&device, "/usage/btree/nodes").unwrap(), "{name}");
    }
}

#[test]
fn figures_are_those_of_the_kernels_log() {
    for name in AT_REST {
        let fixture = Fixture::unpack(name).unwrap();
        let device = device(&fixture, &["--usage"]);
        let usage = |key: &str| tool::number(&device, &format!("/usage/{key}")).unwrap();
        let log = &fixture.log;
        let stats: PriorityStats = log.figure("cache0/priority_stats").unwrap().parse().unwrap();
        assert_eq!(usage("percent/dirty"), stats.dirty, "{name}");
        assert_eq!(usage("percent/metadata"), stats.metadata, "{name}");
        assert_eq!(usage("buckets/total"), log.number("cache0/nbuckets").unwrap(), "{name}");
        assert_eq!(usage("btree/nodes"), log.number("internal/btree_nodes").unwrap(), "{name}");
        assert_eq!(usage("btree/depth"), log.number("tree_depth").unwrap(), "{name}");
        // The kernel read the volumes for their sums after this, and cached what it read.
        assert!(usage("percent/unused") <= stats.unused, "{name}");
        assert!(usage("percent/clean") >= stats.clean, "{name}");
        let volumes = device["usage"]["volumes"].as_array().unwrap();
        for (disk, path) in ["vda", "vdc"].into_iter().zip(&fixture.backing) {
            let named = path.to_str().unwrap();
            let volume = volumes.iter().find(|volume| volume["backing"] == named).unwrap();
            let sectors = tool::number(volume, "/dirty_sectors").unwrap();
            let kernel = log.figure(&format!("/sys/block/{disk}/bcache/dirty_data")).unwrap();
            assert_eq!(rounded_size(sectors * 512), kernel, "{name} {disk}");
        }
    }
}

#[test]
fn the_dirty_question_is_answered_in_words_and_status() {
    for (name, status, answer) in [
        ("clean-612", 0, "There is no dirty data"),
        ("dirty-61", 4, "There IS dirty data"),
        ("multi-612", 4, "There IS dirty data"),
        ("crash-612", 4, "There IS dirty data"),
        ("crashhot-61", 4, "There IS dirty data"),
    ] {
        let fixture = Fixture::unpack(name).unwrap();
        let output = show([OsStr::new("--dirty"), fixture.cache.as_os_str()]);
        assert_eq!(code(&output), status, "{name}: {}", text(&output));
        assert!(text(&output).contains(answer), "{name}: {}", text(&output));
        // The plain command answers, too, and is no failure.
        let output = show([&fixture.cache]);
        assert_eq!(code(&output), 0, "{name}");
        assert!(text(&output).contains(answer), "{name}");
        let device = device(&fixture, &[]);
        let safe = tool::truth(&device, "/dirty/safe_to_wipe").unwrap();
        assert_eq!(safe, status == 0, "{name}");
        assert_eq!(text(&output).contains("It is safe to wipe"), safe, "{name}");
        // A backing device's superblock says what it needs.
        let output = show([OsStr::new("--dirty"), fixture.backing[0].as_os_str()]);
        assert_eq!(code(&output), status, "{name}: {}", text(&output));
    }
}

/// Scripts rely on it: a status of 0 says that the cache may be wiped.
#[test]
fn a_volume_that_nothing_was_written_to_is_lost_with_the_cache_too() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let volume = UuidEntry { flags: 1, sectors: Sectors(2048), ..backing_volume(9) };
    add_volume(&fixture.cache, &volume).unwrap();
    let output = show([OsStr::new("--dirty"), fixture.cache.as_os_str()]);
    assert_eq!(code(&output), 5, "{}", text(&output));
    assert!(text(&output).contains("wiping the cache destroys it"), "{}", text(&output));
    let device = device(&fixture, &[]);
    assert_eq!(device["dirty"]["answer"], "none");
    assert_eq!(device["dirty"]["safe_to_wipe"], false);
}

#[test]
fn dirty_data_is_told_by_backing_device() {
    let fixture = Fixture::unpack("multi-612").unwrap();
    let output = show([&fixture.cache, &fixture.backing[1]]);
    let words = text(&output);
    assert!(words.contains(&format!("(backing device {})", fixture.backing[1].display())));
    assert!(words.contains("not present here"), "the first was not named: {words}");
    assert!(words.contains("flash-only"), "{words}");
}

#[test]
fn what_cannot_be_told_is_said_so() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let device = device(&fixture, &["--btree", "--prios"]);
    let bucket = tool::number(&device, "/superblock/bucket_size_sectors").unwrap() * 512;
    let root = tool::number(&device, "/btree/root_bucket").unwrap();
    bcache_tests::image::write_at(&fixture.cache, root * bucket + 8, &[0xff; 8]).unwrap();
    let output = show([OsStr::new("--dirty"), fixture.cache.as_os_str()]);
    assert_eq!(code(&output), 1, "{}", text(&output));
    assert!(text(&output).contains("CANNOT BE TOLD"), "{}", text(&output));
    let output = show([OsStr::new("--json"), fixture.cache.as_os_str()]);
    assert_eq!(code(&output), 1);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let damaged = &document["devices"][0];
    assert_eq!(damaged["kernel"]["accepts"], false);
    assert_eq!(damaged["kernel"]["error"], "error reading btree root");
    assert_eq!(damaged["dirty"]["answer"], "unknown");
    assert_eq!(damaged["dirty"]["safe_to_wipe"], false);
    // No device at all, and one that is none.
    assert_eq!(code(&show(["--dirty", "/nonexistent"])), 1);
    let scratch = Scratch::new().unwrap();
    let blank = scratch.sparse("blank", 1 << 20).unwrap();
    assert_eq!(code(&show([OsStr::new("--dirty"), blank.as_os_str()])), 1);
}

/// The kernel's words for what stands in the way of registration.
#[test]
fn the_verdict_goes_on_after_the_superblock() {
    let damaged = |place: &dyn Fn(&Value) -> (u64, usize)| {
        let fixture = Fixture::unpack("multi-612").unwrap();
        let device = device(&fixture, &["--btree", "--prios"]);
        let (offset, len) = place(&device);
        bcache_tests::image::write_at(&fixture.cache, offset, &vec![0x5a; len]).unwrap();
        let output = show([OsStr::new("--json"), fixture.cache.as_os_str()]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let kernel = document["devices"][0]["kernel"].clone();
        assert_eq!(kernel["accepts"], false);
        kernel["error"].as_str().unwrap().to_owned()
    };
    let bucket_bytes =
        |device: &Value| tool::number(device, "/superblock/bucket_size_sectors").unwrap() * 512;
    let bucket_for = |device: &Value, role: &str| {
        let rows = device["prios"].as_array().unwrap();
        let row = rows.iter().find(|row| row["use"] == role).unwrap();
        tool::number(row, "/bucket").unwrap() * bucket_bytes(device)
    };
    assert_eq!(
        damaged(&|device| (bucket_for(device, "prios") + 100, 1)),
        "IO error reading priorities"
    );
    assert_eq!(
        damaged(&|device| (bucket_for(device, "btree") + 100, 1)),
        "error reading btree root"
    );
    let journal = damaged(&|device| {
        let buckets = tool::number(device, "/superblock/njournal_buckets").unwrap();
        let len = usize::try_from(buckets * bucket_bytes(device)).unwrap();
        (bucket_for(device, "journal"), len)
    });
    assert_eq!(journal, "no journal entries found");
}

#[test]
fn buckets_are_filtered_sorted_and_limited() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let rows = |options: &[&str]| -> Vec<Value> {
        let mut arguments = vec![fixture.cache.to_str().unwrap(), "--prios", "--format", "ndjson"];
        arguments.extend(options);
        let output = show(arguments);
        assert_eq!(code(&output), 0, "{}", errors(&output));
        text(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let column = |rows: &[Value], name: &str| -> Vec<u64> {
        rows.iter().map(|row| row[name].as_u64().unwrap()).collect()
    };
    let all = rows(&[]);
    assert_eq!(all.len(), 1023);
    assert_eq!(column(&rows(&["--bucket", "7,3-5"]), "bucket"), [3, 4, 5, 7]);
    for (sort, name) in [("prio", "prio"), ("gen", "gen_span"), ("sectors", "sectors_used")] {
        let sorted = rows(&["--sort", sort]);
        assert_eq!(sorted.len(), all.len());
        let values = column(&sorted, name);
        assert!(values.is_sorted(), "{sort}");
        // A limit takes the first of the same order.
        assert_eq!(rows(&["--sort", sort, "--limit", "9"]), sorted[..9], "{sort}");
        let reversed = column(&rows(&["--sort", sort, "--reverse"]), name);
        assert!(reversed.is_sorted_by(|a, b| a >= b), "{sort}");
    }
    assert_ne!(rows(&["--sort", "prio"]), all, "sorting is seen");
    assert_eq!(column(&rows(&["--reverse", "--limit", "2"]), "bucket"), [1023, 1022]);
    assert!(rows(&["--limit", "0"]).is_empty());
}

#[test]
fn formats_say_the_same() {
    let fixture = Fixture::unpack("crashhot-61").unwrap();
    let cache = fixture.cache.to_str().unwrap();
    for list in ["--prios", "--journal", "--uuids", "--btree", "--keys", "--lookup=0:16+8"] {
        let key = match list.trim_start_matches("--").split('=').next().unwrap() {
            "journal" => "/journal/entry_list".to_owned(),
            "btree" => "/btree/node_list".to_owned(),
            other => format!("/{other}"),
        };
        let json: Value = serde_json::from_slice(&show([cache, list, "--json"]).stdout).unwrap();
        let json = json["devices"][0].pointer(&key).unwrap().as_array().unwrap().clone();
        let lines = text(&show([cache, list, "--format", "ndjson"]));
        let lines: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, json, "{list}");
        let csv = text(&show([cache, list, "--format", "csv"]));
        assert_eq!(csv.lines().count(), json.len() + 1, "{list}: a header and the rows");
        let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
        let object = json[0].as_object().unwrap();
        assert_eq!(header.len(), object.len(), "{list}");
        assert!(header.iter().all(|name| object.contains_key(*name)), "{list}: {header:?}");
        // No tool shall have to strip colours or lines around tables.
        let table = text(&show([cache, list]));
        assert!(!table.contains('\u{1b}') && !table.contains('│'), "{list}");
    }
}

#[test]
fn what_is_cached_here_and_what_points_here() {
    let fixture = Fixture::unpack("multi-612").unwrap();
    let device_json = device(&fixture, &["--keys"]);
    let keys = device_json["keys"].as_array().unwrap();
    let key = keys.iter().find(|key| key["dirty"] == true && key["state"] == "valid").unwrap();
    let number = |name: &str| tool::number(key, &format!("/{name}")).unwrap();
    let place = format!("{}:{}", number("volume"), number("start"));
    let found = device(&fixture, &["--lookup", &place]);
    let found = &found["lookup"][0];
    assert_eq!(found["state"], "dirty", "{found}");
    assert_eq!(found["bucket"], key["bucket"], "{found}");
    assert_eq!(found["bcache_start"].as_u64(), Some(number("start") - 16), "the data offset");
    // By label and by UUID it is the same volume.
    let volume = &device_json_volume(&fixture, number("volume"));
    for name in [volume["label"].as_str().unwrap(), volume["uuid"].as_str().unwrap()] {
        let named = device(&fixture, &["--lookup", &format!("{name}:{}", number("start"))]);
        assert_eq!(&named["lookup"][0], found, "{name}");
    }
    // A limit is one of this list too.
    let long = format!("{}:0+100000", number("volume"));
    for limit in ["0", "2"] {
        let few = device(&fixture, &["--lookup", &long, "--limit", limit]);
        assert_eq!(few["lookup"].as_array().unwrap().len().to_string(), limit);
    }
    let there = device(&fixture, &["--bucket", &number("bucket").to_string()]);
    let there = there["keys"].as_array().unwrap();
    assert!(there.contains(key), "{there:?}");
    assert!(there.iter().all(|other| other["bucket"] == key["bucket"]));
    let all_there = keys.iter().filter(|other| other["bucket"] == key["bucket"]).count();
    assert_eq!(there.len(), all_there);
}

fn device_json_volume(fixture: &Fixture, slot: u64) -> Value {
    let device = device(fixture, &["--uuids"]);
    let slots = device["uuids"].as_array().unwrap();
    slots.iter().find(|entry| entry["slot"] == slot).unwrap().clone()
}

#[test]
fn nonsense_is_refused() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let cache = fixture.cache.to_str().unwrap();
    for (arguments, status, message) in [
        (vec![cache, "--bucket", "5-"], 2, "is not a bucket number"),
        (vec![cache, "--lookup", "0"], 2, "VOLUME:SECTOR"),
        (vec![cache, "--sort", "age"], 2, "not one of"),
        (vec!["--usage"], 2, "DEV"),
        (vec![cache, "--dirty", "--usage"], 2, "cannot be used with"),
        (vec![cache, "--format", "csv"], 2, "one list"),
        (vec![cache, "--prios", "--journal", "--format", "ndjson"], 2, "one list"),
        (vec![cache, cache, "--prios", "--format", "ndjson"], 2, "one device"),
        (vec![cache, "--bucket", "1024"], 1, "there is no bucket 1024"),
        (vec![cache, "--lookup", "nobody:5"], 1, "no volume \"nobody\""),
        (vec![fixture.backing[0].to_str().unwrap(), "--prios"], 1, "nothing to list"),
    ] {
        let output = show(&arguments);
        assert_eq!(code(&output), status, "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(message), "{arguments:?}: {}", errors(&output));
    }
}

#[test]
fn nothing_is_written_and_no_privilege_needed() {
    let fixture = Fixture::unpack("crash-612").unwrap();
    let before = fs::read(&fixture.cache).unwrap();
    let backing = fs::read(&fixture.backing[0]).unwrap();
    // Nobody may write them.
    for path in [&fixture.cache, &fixture.backing[0]] {
        let mut permissions = fs::metadata(path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(path, permissions).unwrap();
    }
    let arguments = [fixture.cache.as_os_str(), OsStr::new("--all"), OsStr::new("--keys")];
    let output = if nix::unistd::geteuid().is_root() {
        let folder = fixture.cache.parent().unwrap();
        open_to_all(folder);
        // The build folder need not be open to others.
        let copy = folder.join("bcachectl");
        // By cp: what other tests start meanwhile inherits a file that this process writes, and a
        // program that somebody has open for writing cannot be run (ETXTBSY).
        let built = bcache_tests::binary("bcachectl").unwrap();
        let copied = std::process::Command::new("cp").arg(built).arg(&copy).status().unwrap();
        assert!(copied.success());
        let mut command = std::process::Command::new("setpriv");
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        command.args(nobody).arg(copy).arg("show").args(arguments).output().unwrap()
    } else {
        show(arguments)
    };
    assert_eq!(code(&output), 0, "{}", errors(&output));
    assert!(text(&output).contains("There IS dirty data"));
    assert!(fs::read(&fixture.cache).unwrap() == before, "the cache was written");
    assert!(fs::read(&fixture.backing[0]).unwrap() == backing, "the backing device was written");
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Reads the first line of a command's output, closes the pipe, and gives the line and how the
/// command ended.
fn head(arguments: &[&str]) -> (String, i32) {
    let mut child = tool::bcachectl()
        .unwrap()
        .arg("show")
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    drop(stdout);
    (String::from_utf8(line).unwrap(), child.wait().unwrap().code().unwrap())
}

#[test]
fn a_reader_that_has_enough_ends_a_long_list() {
    let set = big_set();
    let cache = set.1.to_str().unwrap();
    for format in ["ndjson", "csv", "table", "json"] {
        let (line, status) = head(&[cache, "--prios", "--format", format]);
        assert_eq!(status, 0, "{format}");
        assert!(!line.is_empty(), "{format}");
    }
    for list in ["--keys", "--btree"] {
        let (line, status) = head(&[cache, list, "--format", "ndjson"]);
        assert_eq!(status, 0, "{list}");
        let row: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(row["level"], 1, "the root comes first: {line}");
    }
    // All rows come when they are wanted.
    let output = show([cache, "--prios", "--format", "csv"]);
    let rows = text(&output).lines().count();
    assert_eq!(rows as u64, BIG_BUCKETS, "a header, and a row for each bucket but the first");
    let output = show([cache, "--keys", "--limit", "5", "--format", "csv"]);
    assert_eq!(text(&output).lines().count(), 6);
}

const BIG_BUCKETS: u64 = 1 << 20;

/// An image with a million buckets and many keys; most of it is a hole.
fn big_set() -> (Scratch, std::path::PathBuf) {
    const KEYS: u64 = 200_000;
    let scratch = Scratch::new().unwrap();
    let path = scratch.path("big");
    let builder =
        SetBuilder { nbuckets: BIG_BUCKETS, bucket_size: Sectors(128), ..SetBuilder::default() };
    let device = create_image(&path, BIG_BUCKETS * 128 * 512).unwrap();
    let first = builder.data_buckets(0).start;
    let key = |index: u64| {
        let ptr = Ptr::new(Gen(1), Sectors((first + index) * 128), 0);
        Bkey::new(0, (index + 1) * 16, 8).with_ptrs(&[ptr])
    };
    let built = builder.write(&device, (0..KEYS).map(key)).unwrap();
    assert!(built.root.0 == 1, "a btree with one level above its leaves");
    (scratch, path)
}
