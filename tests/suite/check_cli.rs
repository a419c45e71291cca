//! `bcachectl check` as a user and as a script see it. What it finds is tested with the check
//! itself; here: what it says first, its statuses, its JSON, and that it only reads.

use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::units::Sectors;
use bcache_tests::cache::{append_entry, bucket_byte, flip, raise_gen, set_last_seq};
use bcache_tests::fixture::Fixture;
use bcache_tests::image::write_at;
use bcache_tests::need::unmet;
use bcache_tests::terminal::on_terminal;
use bcache_tests::{Need, Scratch, tool};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::process::Output;

fn check<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    tool::bcachectl().unwrap().arg("check").args(arguments).output().unwrap()
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

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn devices(fixture: &Fixture) -> impl Iterator<Item = &OsStr> {
    [&fixture.cache].into_iter().chain(&fixture.backing).map(|path| path.as_os_str())
}

/// Bytes of a bucket, and the first bucket with a use.
fn bucket_for(fixture: &Fixture, role: &str) -> u64 {
    let shown = tool::bcachectl()
        .unwrap()
        .args(["show", "--json", "--prios"])
        .arg(&fixture.cache)
        .output()
        .unwrap();
    let device = json(&shown)["devices"][0].clone();
    let bytes = tool::number(&device, "/superblock/bucket_size_sectors").unwrap() * 512;
    let rows = device["prios"].as_array().unwrap().clone();
    let row = rows.iter().find(|row| row["use"] == role).unwrap();
    tool::number(row, "/bucket").unwrap() * bytes
}

#[test]
fn images_of_stock_kernels_are_clean() {
    for name in Fixture::names().unwrap() {
        let fixture = Fixture::unpack(&name).unwrap();
        let before: Vec<Vec<u8>> = devices(&fixture).map(|path| fs::read(path).unwrap()).collect();
        let verify = [OsStr::new("--verify-clean")];
        let output = check(devices(&fixture).chain(verify));
        assert_eq!(code(&output), 0, "{name}: {}{}", text(&output), errors(&output));
        let words = text(&output);
        let first = words.lines().next().unwrap();
        let dirty = words.contains("There IS dirty data");
        let data =
            if dirty { "no dirty data is known to be missing" } else { "no data is at risk" };
        assert!(first.contains(&format!("the kernel would register it; {data}")), "{first}");
        assert!(words.contains("No problems found"), "{name}: {words}");
        let report = json(&check(devices(&fixture).chain([OsStr::new("--json")])));
        assert_eq!(report["registration"], "accepted", "{name}");
        assert_eq!(report["registers"], true, "{name}");
        assert_eq!(report["data_at_risk"], false, "{name}");
        assert_eq!(report["incomplete"], false, "{name}");
        assert_eq!(report["findings"].as_array().unwrap().len(), 0, "{name}");
        assert_eq!(report["counts"].as_object().unwrap().len(), 0, "{name}");
        assert_eq!(report["exit_status"], 0, "{name}");
        let dirty = report["dirty"].as_array().unwrap();
        assert_eq!(dirty.is_empty(), name.starts_with("clean"), "{name}: {dirty:?}");
        for volume in dirty {
            assert!(volume["slot"].is_u64() && volume["dirty_sectors"].as_u64().unwrap() > 0);
            assert!(volume["uuid"].is_string() && volume["flash_only"].is_boolean());
        }
        let after: Vec<Vec<u8>> = devices(&fixture).map(|path| fs::read(path).unwrap()).collect();
        assert!(before == after, "{name}: a device was written");
    }
}

#[test]
fn damage_is_told_first_and_in_full() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    write_at(&fixture.cache, bucket_for(&fixture, "prios") + 100, &[0xff; 8]).unwrap();
    let output = check([&fixture.cache]);
    assert_eq!(code(&output), 4, "{}", text(&output));
    let words = text(&output);
    let first = words.lines().next().unwrap();
    assert!(first.contains("the kernel would NOT register it"), "{first}");
    assert!(first.contains("data is AT RISK"), "{first}");
    assert!(words.contains("302 prio-damaged"), "{words}");
    let report = json(&check([OsStr::new("--json"), fixture.cache.as_os_str()]));
    assert_eq!(report["registers"], false);
    assert_eq!(report["exit_status"], 4);
    assert!(report["registration"]["refused"]["reason"].is_string(), "{report}");
    let finding = &report["findings"][0];
    assert_eq!(finding["code"], "prio-damaged", "{finding}");
    assert_eq!(finding["number"], 302);
    for key in ["severity", "place", "expected", "found", "advice"] {
        assert!(finding[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {finding}");
    }
    assert_eq!(report["counts"]["prio-damaged"], 1, "{}", report["counts"]);
}

#[test]
fn a_backing_device_that_does_not_belong_is_found() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let other = Fixture::unpack("dirty-61").unwrap();
    let output = check([&fixture.cache, &other.backing[0]]);
    assert_eq!(code(&output), 4, "{}", text(&output));
    assert!(text(&output).contains("backing-set-gone"), "{}", text(&output));
}

#[test]
fn verify_clean_compares_the_data() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    // Somewhere in the backing device's data that the cache has, too.
    let keys = tool::bcachectl()
        .unwrap()
        .args(["show", "--keys", "--btree", "--format", "json"])
        .arg(&fixture.cache)
        .output()
        .unwrap();
    let device = json(&keys)["devices"][0].clone();
    let keys = device["keys"].as_array().unwrap().clone();
    let key = keys
        .iter()
        .filter(|key| key["level"] == 0 && key["state"] == "valid" && key["dirty"] == false)
        .max_by_key(|key| tool::number(key, "/sectors").unwrap())
        .unwrap();
    let sector = tool::number(key, "/end").unwrap() - 1;
    write_at(&fixture.backing[0], sector * 512, b"not what was cached").unwrap();
    // Without the option nobody looks at so much of it.
    assert_eq!(code(&check(devices(&fixture))), 0);
    let output = check(devices(&fixture).chain([OsStr::new("--verify-clean")]));
    assert_eq!(code(&output), 4, "{}", text(&output));
    assert!(text(&output).contains("clean-mismatch"), "{}", text(&output));
}

#[test]
fn statuses_are_those_of_fsck() {
    // What cannot be checked.
    let scratch = Scratch::new().unwrap();
    let blank = scratch.sparse("blank", 1 << 20).unwrap();
    for path in [&blank, &scratch.path("missing")] {
        let output = check([path]);
        assert_eq!(code(&output), 8, "{}: {}", path.display(), errors(&output));
        assert_eq!(errors(&output).lines().count(), 1, "{}", errors(&output));
    }
    // What makes no sense.
    for arguments in [vec![], vec!["--no-such-option", "x"], vec!["--verify-clean", "x"]] {
        let output = check(&arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", errors(&output));
    }
    assert_eq!(code(&check(["--help"])), 0);
}

fn show<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    tool::bcachectl().unwrap().arg("show").args(arguments).output().unwrap()
}

/// What `show --json` says of a cache, and what `check --json` does. They must say the same of
/// whether the kernel registers it.
fn both(fixture: &Fixture) -> (Value, Value) {
    let cache = fixture.cache.as_os_str();
    let shown = json(&show([OsStr::new("--json"), cache]))["devices"][0].clone();
    let checked = json(&check([OsStr::new("--json"), cache]));
    assert_eq!(shown["kernel"]["accepts"], checked["registers"], "{shown}\n{checked}");
    (shown, checked)
}

/// A dirty key of the first volume for data where nothing is.
fn dirty_key(fixture: &Fixture) -> Bkey {
    let sector = bucket_byte(&fixture.cache, 900).unwrap() / 512;
    let gens = bcache_tests::cache::with_cache_set(&fixture.cache, |set| {
        Ok(set.table.as_slice()[900].bucket_gen())
    });
    let ptr = Ptr::new(gens.unwrap(), Sectors(sector), 0);
    Bkey::new(0, 100_008, 8).with_ptrs(&[ptr]).with_dirty(true)
}

#[test]
fn entries_behind_a_damaged_one_are_lost_data() {
    // Entries 70 to 78 are behind each other in one bucket; 70 is damaged.
    let fixture = Fixture::unpack("crashhot-61").unwrap();
    let (before, _) = both(&fixture);
    flip(&fixture.cache, bucket_byte(&fixture.cache, 4).unwrap() + 20480 + 230, 1).unwrap();
    let (shown, checked) = both(&fixture);
    let dirty = |shown: &Value| shown["dirty"]["sectors"].as_u64().unwrap();
    assert!(dirty(&shown) < dirty(&before), "the damage did not land");
    assert_eq!(checked["counts"]["journal-hidden"], 1, "{checked}");
    assert_eq!(checked["data_at_risk"], true);
    assert_eq!(checked["incomplete"], true);
    assert_eq!(checked["exit_status"], 4);
    assert!(shown["dirty"]["text"][0].as_str().unwrap().contains("at least"), "{shown}");
    // A cache without dirty data but for what such an entry names.
    let fixture = Fixture::unpack("clean-612").unwrap();
    let byte = append_entry(&fixture.cache, &[dirty_key(&fixture)]).unwrap();
    append_entry(&fixture.cache, &[]).unwrap();
    append_entry(&fixture.cache, &[]).unwrap();
    assert_eq!(both(&fixture).1["counts"].as_object().unwrap().len(), 0);
    flip(&fixture.cache, byte + 250, 1).unwrap();
    let (shown, checked) = both(&fixture);
    assert_eq!(checked["counts"]["journal-hidden"], 1, "{checked}");
    assert_eq!(checked["exit_status"], 4);
    assert_eq!(shown["dirty"]["answer"], "unknown");
    assert_eq!(shown["dirty"]["safe_to_wipe"], false);
}

#[test]
fn a_torn_entry_is_no_error_and_no_certainty_either() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let byte = append_entry(&fixture.cache, &[dirty_key(&fixture)]).unwrap();
    flip(&fixture.cache, byte, 1).unwrap();
    let (shown, checked) = both(&fixture);
    assert_eq!(checked["counts"]["journal-torn"], 1, "{checked}");
    assert_eq!(checked["exit_status"], 0);
    assert_eq!(checked["data_at_risk"], false);
    assert_eq!(checked["incomplete"], true);
    assert_eq!(shown["dirty"]["safe_to_wipe"], false);
    let output = show([OsStr::new("--dirty"), fixture.cache.as_os_str()]);
    assert_eq!(code(&output), 1, "{}", text(&output));
    let first = text(&check([&fixture.cache]));
    assert!(first.contains("whether data is at risk cannot be told"), "{first}");
}

#[test]
fn dirty_keys_that_only_the_journal_has_are_lost_with_their_bucket() {
    let fixture = Fixture::unpack("crashhot-61").unwrap();
    raise_gen(&fixture.cache, 95).unwrap();
    let (shown, checked) = both(&fixture);
    assert_eq!(checked["counts"]["key-stale-dirty"], 16, "{checked}");
    assert_eq!(checked["data_at_risk"], true);
    assert_eq!(checked["exit_status"], 4);
    assert!(shown["dirty"]["text"][0].as_str().unwrap().contains("at least"), "{shown}");
    assert_eq!(code(&show([&fixture.cache])), 1);
}

#[test]
fn show_and_check_agree_on_registration() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    assert_eq!(both(&fixture).1["registers"], true);
    set_last_seq(&fixture.cache, |newest| newest.seq() + 1).unwrap();
    assert_eq!(both(&fixture).1["registers"], false);
    let fixture = Fixture::unpack("clean-612").unwrap();
    append_entry(&fixture.cache, &[Bkey::new(0, 100_008, 0)]).unwrap();
    assert_eq!(both(&fixture).1["registers"], false);
}

#[test]
fn what_is_wrong_with_a_backing_device_is_not_the_caches_fault() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let scratch = Scratch::new().unwrap();
    let blank = scratch.sparse("blank", 1 << 20).unwrap();
    let output = check([&fixture.cache, &blank]);
    assert_eq!(code(&output), 12, "{}", text(&output));
    let words = text(&output);
    let first = words.lines().next().unwrap();
    assert!(first.contains("the kernel would register it"), "{first}");
    assert!(!first.contains("AT RISK"), "{first}");
    assert!(words.contains("not checked"), "{words}");
    flip(&fixture.backing[0], 4096, 1).unwrap();
    let output = check(devices(&fixture));
    assert_eq!(code(&output), 4, "{}", text(&output));
    let words = text(&output);
    let first = words.lines().next().unwrap();
    assert!(first.contains("the kernel would register it; no data is at risk"), "{first}");
    assert!(words.contains("backing-refused"), "{words}");
}

#[test]
fn a_refused_cache_without_dirty_data_is_not_at_risk() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    flip(&fixture.cache, bucket_for(&fixture, "prios") + 100, 1).unwrap();
    let words = text(&check([&fixture.cache]));
    let first = words.lines().next().unwrap();
    assert!(first.contains("would NOT register"), "{first}");
    assert!(first.contains("whether data is at risk cannot be told"), "{first}");
    let fixture = Fixture::unpack("clean-612").unwrap();
    // One place, which the checksum names.
    flip(&fixture.cache, 4096, 1).unwrap();
    let words = text(&check([&fixture.cache]));
    let first = words.lines().next().unwrap();
    assert!(first.contains("would NOT register"), "{first}");
    assert!(first.contains("no data is at risk"), "{first}");
    flip(&fixture.cache, 4096 + 80, 1).unwrap();
    let words = text(&check([&fixture.cache]));
    let first = words.lines().next().unwrap();
    assert!(first.contains("would NOT register"), "{first}");
    // What such a superblock says of the journal may hide newer entries.
    assert!(first.contains("whether data is at risk cannot be told"), "{first}");
    let words = text(&check(devices(&fixture)));
    assert!(words.lines().next().unwrap().contains("no data is at risk"), "{words}");
}

#[test]
fn findings_are_counted_whether_or_not_they_are_listed() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    // All data of the backing device but its superblock.
    write_at(&fixture.backing[0], 8192, &vec![0x5a; 60 << 20]).unwrap();
    let run = |listed: &str| {
        let options = ["--json", "--verify-clean", "--findings", listed].map(OsStr::new);
        let output = check(devices(&fixture).chain(options));
        assert_eq!(code(&output), 4, "{listed}");
        let report = json(&output);
        let findings = report["findings"].as_array().unwrap().len() as u64;
        assert_eq!(report["worst"], "data-at-risk");
        (findings, report["counts"]["clean-mismatch"].as_u64().unwrap())
    };
    let (listed, all) = run("1000000");
    assert_eq!(listed, all);
    assert!(all > 101, "{all} mismatches are too few");
    assert_eq!(run("100"), (100, all));
    assert_eq!(run("3"), (3, all));
    assert_eq!(run("0"), (0, all));
    let options = ["--verify-clean", "--findings", "3"].map(OsStr::new);
    let words = text(&check(devices(&fixture).chain(options)));
    assert!(words.contains(&format!("(3 of {all} listed)")), "{words}");
    let words = text(&check(devices(&fixture).chain(["--verify-clean"].map(OsStr::new))));
    assert!(words.contains(&format!("(5 of {all} listed)")), "{words}");
    let options = ["--verify-clean", "--findings", "0"].map(OsStr::new);
    let words = text(&check(devices(&fixture).chain(options)));
    assert!(words.contains(&format!("(0 of {all} listed)")), "{words}");
    assert!(!words.contains("No problems"), "{words}");
}

/// A cause that spoils many places at once.
fn without_uuid_table() -> Fixture {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    write_at(&fixture.cache, 7168 * 512, &vec![0; 256 * 512]).unwrap();
    fixture
}

#[test]
fn findings_of_one_cause_take_a_few_rows() {
    let fixture = without_uuid_table();
    let report = json(&check([OsStr::new("--json"), fixture.cache.as_os_str()]));
    let counts = report["counts"].as_object().unwrap();
    let many = counts.iter().filter(|(_, count)| count.as_u64().unwrap() > 20);
    let (name, count) = many.map(|(name, count)| (name, count.as_u64().unwrap())).next().unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.iter().filter(|it| it["code"] == **name).count(), 20, "{report}");
    let words = text(&check([&fixture.cache]));
    let row = format!(" {name}  ");
    let rows: Vec<&str> = words.lines().filter(|line| line.contains(&row)).collect();
    assert_eq!(rows.len(), 5, "{words}");
    let last = words.find(rows[4]).unwrap() + rows[4].len();
    let more = format!("\nand {} more of {name}\n", count - 5);
    assert!(words[last..].starts_with(&more), "{words}");

    // The worst of each are those that are listed.
    let listed = |most: &str| {
        let options = ["--json", "--findings", most].map(OsStr::new);
        let report = json(&check(options.into_iter().chain([fixture.cache.as_os_str()])));
        let of_code = |it: &&Value| it["code"] == **name;
        let findings: Vec<Value> =
            report["findings"].as_array().unwrap().iter().filter(of_code).cloned().collect();
        findings.iter().map(|it| it["severity"].to_string()).collect::<Vec<_>>()
    };
    let all = listed("1000000");
    assert!(all[..20].contains(&"\"untidy\"".to_owned()), "{name}");
    assert_eq!(listed("20"), ["\"data-at-risk\""; 20]);
}

/// A serial console has 80 columns: what is wrong is told whatever the width.
#[test]
fn findings_are_whole_on_a_terminal_of_any_width() {
    if unmet(&[Need::Terminals]).is_some() {
        return;
    }
    let fixture = Fixture::unpack("clean-612").unwrap();
    let other = Fixture::unpack("dirty-61").unwrap();
    let command = || {
        let mut command = tool::bcachectl().unwrap();
        command.arg("check").arg(&fixture.cache).arg(&other.backing[0]);
        command
    };
    let plain = text(&command().output().unwrap());
    let report = json(&command().arg("--json").output().unwrap());
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|it| it["code"] == "backing-set-gone"), "{report}");
    for columns in [0, 20, 40, 60, 80, 100, 132] {
        let (shown, _) = on_terminal(command(), columns).unwrap();
        if columns == 0 {
            assert_eq!(shown, plain);
        }
        assert!(!shown.contains("too narrow"), "{columns}: {shown}");
        let words: Vec<&str> = shown.split_whitespace().collect();
        for key in ["place", "expected", "found"] {
            for finding in findings {
                for word in finding[key].as_str().unwrap().split_whitespace() {
                    assert!(words.contains(&word), "{columns}: {key} lacks {word}: {shown}");
                }
            }
        }
    }
}

/// The beginning of an image: what is there is read, and the statuses say that it is not all.
#[test]
fn an_image_that_is_cut_short_is_read_as_far_as_it_goes() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let file = fs::OpenOptions::new().write(true).open(&fixture.cache).unwrap();
    let root = bucket_for(&fixture, "btree");
    // All of the metadata is there, not all of the data.
    file.set_len(20_000_000).unwrap();
    let (shown, checked) = both(&fixture);
    assert_eq!(checked["exit_status"], 12, "{checked}");
    assert_eq!(checked["counts"].as_object().unwrap().len(), 1, "{checked}");
    assert_eq!(checked["counts"]["superblock-cut-off"], 1);
    assert_eq!(shown["dirty"]["answer"], "none", "{shown}");
    // The root of the btree is not.
    assert!(root < 20_000_000);
    file.set_len(root).unwrap();
    let (shown, checked) = both(&fixture);
    assert_eq!(checked["exit_status"], 12, "{checked}");
    assert_eq!(checked["counts"]["superblock-cut-off"], 1, "{checked}");
    assert_eq!(checked["counts"].as_object().unwrap().len(), 1, "{checked}");
    assert_eq!(checked["unread"], true);
    assert_eq!(shown["dirty"]["answer"], "unknown");
    let output = show([OsStr::new("--journal"), fixture.cache.as_os_str()]);
    assert_eq!(code(&output), 1, "{}", text(&output));
    assert!(text(&output).contains("CANNOT BE TOLD"), "{}", text(&output));
    assert!(text(&output).contains("newest"), "the journal is there: {}", text(&output));
    // Nothing but the superblock.
    file.set_len(16384).unwrap();
    let (shown, checked) = both(&fixture);
    assert_eq!(checked["exit_status"], 12, "{checked}");
    assert_eq!(shown["dirty"]["answer"], "unknown");
    assert_eq!(code(&show([&fixture.cache])), 1);
}

/// The cache may stand anywhere; without one, each backing device is judged alone.
#[test]
fn backing_devices_are_checked_with_their_cache_or_alone() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let backing = &fixture.backing[0];
    let with = json(&check([fixture.cache.as_os_str(), backing.as_os_str(), "--json".as_ref()]));
    let turned = json(&check([backing.as_os_str(), fixture.cache.as_os_str(), "--json".as_ref()]));
    assert_eq!(with, turned);

    // A device that needs its cache, then one that does not.
    let alone = check([backing.as_os_str()]);
    assert_eq!(code(&alone), 0, "{alone:?}");
    let said = text(&alone);
    let first = said.lines().next().unwrap();
    assert!(
        first.contains("wait for the cache; data is missing that only the cache has"),
        "{first}"
    );
    let told = json(&check([backing.as_os_str(), "--json".as_ref()]));
    assert_eq!(told["stakes"]["answer"], "present", "{told}");
    assert_eq!(told["stakes"]["at_most_sectors"], Value::Null);
    let codes: Vec<&str> =
        told["advice"].as_array().unwrap().iter().map(|it| it["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["do-not-run-alone", "bring-cache"]);
    let clean = Fixture::unpack("clean-612").unwrap();
    let alone = check([&clean.backing[0]]);
    assert!(text(&alone).contains("would register it; no data is at risk"), "{alone:?}");

    // Of several, none is left out.
    let both = text(&check([&clean.backing[0], backing]));
    assert!(both.lines().next().unwrap().contains("data is missing"), "{both}");
    assert!(both.contains("is complete") && both.contains("INCOMPLETE"), "{both}");
    let scratch = Scratch::new().unwrap();
    let blank = scratch.sparse("blank", 64 << 20).unwrap();
    let output = check([backing, &blank]);
    assert_eq!(code(&output), 12, "{output:?}");
    assert!(text(&output).contains("no backing device"), "{output:?}");

    // Damage in one place is read past.
    write_at(backing, 4096 + 104, &[0xff]).unwrap();
    let output = check([backing.as_os_str()]);
    assert_eq!(code(&output) & 4, 4, "{output:?}");
    assert!(text(&output).contains("INCOMPLETE"), "{output:?}");
    // A superblock that cannot be trusted tells nothing.
    write_at(backing, 4096 + 80, &[0xff]).unwrap();
    let output = check([backing.as_os_str()]);
    assert_eq!(code(&output) & 4, 4, "{output:?}");
    assert!(text(&output).contains("CANNOT BE TOLD"), "{output:?}");
}

/// What is said of the backing device is not said under the name of what was its cache.
#[test]
fn a_cache_without_a_superblock_is_not_taken_for_its_backing_device() {
    for (name, registers) in [("dirty-61", "and wait for the cache"), ("clean-612", "it;")] {
        let fixture = Fixture::unpack(name).unwrap();
        let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
        write_at(cache, 0, &vec![0; 4 << 20]).unwrap();
        for paths in [[cache, backing], [backing, cache]] {
            let output = check(paths);
            let words = text(&output);
            assert_eq!(code(&output) & 8, 8, "{name}: {words}");
            let mut lines = words.lines();
            let stranger = format!("{} is no bcache device, or no longer one.", cache.display());
            assert_eq!(lines.next(), Some(&*stranger), "{name}: {words}");
            let verdict = lines.next().unwrap();
            let backing = backing.display();
            let start = format!("{backing}: the kernel would register it");
            assert!(verdict.starts_with(&start) && verdict.contains(registers), "{name}: {words}");
            let json = json(&check(
                [OsStr::new("--json")].into_iter().chain(paths.map(|it| it.as_os_str())),
            ));
            assert_eq!(json["path"], backing.to_string(), "{json}");
            assert_eq!(json["backing"][0], cache.display().to_string(), "{json}");
        }
        let output = tool::run(
            ["repair", "-n"]
                .map(OsStr::new)
                .into_iter()
                .chain([cache, backing].map(|it| it.as_os_str())),
        )
        .unwrap();
        let words = text(&output);
        assert!(
            !words.contains("Name the cache") && words.contains("If it is the cache"),
            "{words}"
        );
    }
}

/// A cache of which only the start is here may be the set that the backing device names, and is.
#[test]
fn a_cache_that_is_cut_off_is_not_said_to_be_another_set() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    fs::File::options().write(true).open(&fixture.cache).unwrap().set_len(1 << 20).unwrap();
    let output = check(devices(&fixture));
    let words = text(&output);
    assert!(code(&output) != 0 && words.contains("104 superblock-cut-off"), "{words}");
    assert!(!words.contains("not that set") && !words.contains("709"), "{words}");
}

/// The start of the backing device over its cache: what is told of the cache is not told by that superblock, and
/// what is said to do finds the set.
#[test]
fn a_cache_under_the_superblock_of_its_backing_device_is_told() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let (cache, backing) = (&fixture.cache, &fixture.backing[0]);
    write_at(cache, 0, &fs::read(backing).unwrap()[..64 << 10]).unwrap();
    for paths in [[cache, backing], [backing, cache]] {
        let output = check(paths);
        let words = text(&output);
        assert_eq!(code(&output) & 4, 4, "{words}");
        assert!(words.contains("718 backing-is-cache") && words.contains("Do NOT wipe"), "{words}");
        assert!(!words.contains("one is a copy") && !words.contains("No problems"), "{words}");
        let said = tool::run(
            [OsStr::new("repair"), OsStr::new("-n")]
                .into_iter()
                .chain(paths.map(|it| it.as_os_str())),
        );
        let said = said.unwrap();
        assert_eq!(code(&said), 4, "{}", text(&said));
        assert!(text(&said).contains("behind it a cache set"), "{}", text(&said));
    }
    let alone = check([cache]);
    assert_eq!(code(&alone) & 4, 4, "{}", text(&alone));
    // That of another set's device: its own backing device tells what was there.
    let other = Fixture::unpack("multi-612").unwrap();
    write_at(cache, 0, &fs::read(&other.backing[0]).unwrap()[..64 << 10]).unwrap();
    for paths in [[cache, backing], [backing, cache]] {
        let words = text(&check(paths));
        assert!(words.contains("718 backing-is-cache") && words.contains("Do NOT wipe"), "{words}");
    }
    // As it is told.
    write_at(cache, 4096, &[0; 4096]).unwrap();
    let words = text(&check([cache, backing]));
    assert!(words.contains("10.9 MiB (22360 sectors)"), "{words}");
}
