//! Repair has an answer to every finding.

use std::collections::BTreeSet;

use bcache_core::cache_set::ReadOptions;
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::layout::superblock::BackingState;
use bcache_core::ops::check::{CheckOptions, Code, Finding, Severity, check};
use bcache_core::ops::repair;
use bcache_core::units::Sectors;

use crate::backing::backing;
use crate::damages::{DAMAGES, UNREADABLE, unreadable_at, unreadable_places};
use crate::sample::Sample;

/// What a repair answers to a damage.
fn answer(name: &str, device: &dyn BlockDevice, backing: &[&dyn BlockDevice]) -> String {
    let named: Vec<&dyn ReadDevice> = backing.iter().map(|it| it as &dyn ReadDevice).collect();
    let errors = |device: &dyn BlockDevice| -> BTreeSet<Code> {
        let options = CheckOptions { backing: named.clone(), ..CheckOptions::default() };
        let findings = check(&device, &options, &mut |_| {}).unwrap().findings;
        let errors = findings.iter().filter(|it| it.severity() >= Severity::DataAtRisk);
        errors.map(Finding::code).collect()
    };
    let before = errors(device);
    let options = ReadOptions::default();
    let plan = repair::plan(&device, &named, &options, &mut |_| {}).unwrap();
    let all: BTreeSet<repair::Code> = repair::Code::ALL.into();
    repair::run(&plan, &all, device, backing, &options, 3)
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let told: BTreeSet<Code> = plan.left_with(&all).map(repair::Left::finding).collect();
    let after = errors(device);
    assert!(after.is_subset(&told), "{name}: {after:?}, told: {told:?}");
    assert!(told.iter().all(|code| !code.advice().is_empty()));
    if plan.is_whole(&all) {
        assert!(after.is_empty(), "{name}");
        let fixes = plan.fixes.iter().map(|fix| (fix.code, fix.class));
        let reasons = plan.anew.iter().flat_map(|anew| &anew.reasons);
        let reasons = reasons.map(|reason| (reason.code(), reason.class()));
        let mut made: Vec<String> = fixes
            .chain(reasons)
            .map(|(code, class)| format!("{} {}", class.name(), code.name()))
            .collect();
        made.dedup();
        assert!(before.is_empty() || !made.is_empty(), "{name}");
        made.join(", ")
    } else {
        let told: Vec<&str> = told.iter().map(|code| code.name()).collect();
        format!("told: {}", told.join(", "))
    }
}

/// By number and damage: what a repair makes, and how sure it is; or what it says that it cannot mend.
const ANSWERS: &[&str] = &[
    "101 superblock byte: certain flipped-bit",
    "102 replacement policy 5: certain superblock-policy",
    "103 unknown flag:",
    "202 newest entry torn: certain flipped-bit",
    "202 newest entry without magic: certain flipped-bit",
    "211 two newest entries: likely journal",
    "211 newest entry with the number of another: certain flipped-bit",
    "210 entry with newer ones behind it: certain flipped-bit",
    "203 entry missing: likely journal",
    "204 entry beyond the search: told: journal-search",
    "207 last_seq after seq: likely last-seq",
    "208 journal wiped: guess journal, likely uuid-table, likely btree-node",
    "206 journal key longer than its entry: likely journal",
    "209 journal key past a bucket: likely journal",
    "302 prio set byte: certain flipped-bit",
    "303 prio head out of range: likely prio-sets",
    "304 prio head in the journal: likely prio-sets",
    "305 prio chain bites its tail: likely prio-sets",
    "306 prio sets of two writes: likely prio-sets",
    "401 uuid pointer without a pointer: certain uuid-table",
    "403 two slots of one uuid: told: uuid-repeated",
    "501 root past the device: guess journal, likely btree-node",
    "503 node byte: certain flipped-bit",
    "503 interior node byte: certain flipped-bit",
    "504 extent past a bucket: guess btree-node",
    "505 child past the device: likely btree-node",
    "506 keys swapped: guess btree-node",
    "507 key past its node: likely btree-node",
    "508 two keys to one child: likely btree-node",
    "509 leaf begins in the one before: guess btree-node",
    "510 last child gone: likely btree-node",
    "511 keys of a leaf lost without a trace: guess btree-node",
    "511 older keys of a leaf back: guess btree-node",
    "601 bucket of dirty data reused: guess keys",
    "601 bucket of dirty data that only the journal names reused: guess keys",
    "602 pointer 97 behind: guess keys",
    "603 gen of data bucket set back:",
    "604 extent in a node: certain keys",
    "605 volume gone from the table: told: key-no-volume",
    "606 extent in the uuid table: certain keys",
    "607 three extents on one place: told: bucket-overused",
    "608 clean pointer 96 behind: guess keys",
    "609 volume made flash-only: certain keys",
    "406 flash-only volume of no sectors: certain uuid-table",
    "405 slot with a flag that no kernel has: certain uuid-table",
    "404 uuid table of random bytes: told: uuid-not-a-table",
    "105 sync flag cleared: guess superblock-sync",
    "106 magic wiped: certain superblock-magic",
    "201: told: journal-unreadable",
    "301: likely prio-sets",
    "402: told: uuid-unreadable",
    "502: guess btree-node",
    "706 run alone: told: backing-state-stale",
    "711 attached to another set: told: backing-moved",
    "104 cut off: told: superblock-cut-off",
];

/// Whatever the check finds that is worse than untidy, a repair mends, or says that it does not.
#[test]
fn repair_has_an_answer_to_every_finding() {
    let mut answers = Vec::new();
    for (name, damage, code, _) in DAMAGES {
        let sample = Sample::new();
        damage(&sample);
        let answer = answer(name, &sample.device, &[]);
        answers.push(format!("{} {name}: {answer}", code.number()).trim_end().to_owned());
    }
    let sample = Sample::new();
    for (byte, code) in unreadable_places(&sample).into_iter().zip(UNREADABLE) {
        let device = unreadable_at(&sample, byte);
        answers.push(format!("{}: {}", code.number(), answer(code.name(), &device, &[])));
    }
    let alone = backing(BackingState::Stale, |_| {});
    let moved = backing(BackingState::Dirty, |it| it.set_uuid = uuid::Uuid::from_u128(77));
    for (name, code, device) in [
        ("run alone", Code::BackingStateStale, alone),
        ("attached to another set", Code::BackingMoved, moved),
    ] {
        let answer = answer(name, &sample.device.snapshot(), &[&device]);
        answers.push(format!("{} {name}: {answer}", code.number()));
    }
    let short = sample.device.clone().with_info(|info| {
        info.size_bytes /= 2;
        info.disk_size = Sectors(info.size_bytes / 512);
    });
    answers.push(format!("104 cut off: {}", answer("cut off", &short, &[])));
    assert_eq!(answers, ANSWERS);
}
