//! The view, its findings and the plans, on trees in the format of recorded ones.

use std::fmt::Write as _;

use tempfile::TempDir;
use uuid::uuid;

use super::DeviceState::{AttachedClean, AttachedDirty, CacheLost, Forced, Plain, Waiting};
use super::control::{
    Change, Note, Refusal, SettingError, plan_attach, plan_detach, plan_flush, plan_label,
    plan_run, plan_run_again, plan_settings, plan_stop, plan_unregister, plan_volume_create,
};
use super::*;
use crate::device::sysfs::Root;
use crate::layout::superblock::BackingState;

const SET: uuid::Uuid = uuid!("01234567-89ab-4cde-8f01-23456789abcd");
const OTHER: uuid::Uuid = uuid!("11111111-2222-4333-8444-555555555555");

/// A tree with a set whose cache is vdb, and backing devices, each with running, attached, state.
struct Tree {
    text: String,
    folder: TempDir,
}

impl Tree {
    fn new() -> Self {
        let mut tree = Self { text: String::new(), folder: tempfile::tempdir().unwrap() };
        let set = format!("sys/fs/bcache/{SET}");
        tree.file("sys/fs/bcache/register", "");
        for (name, value) in [
            ("block_size", "4.0k"),
            ("bucket_size", "512.0k"),
            ("cache_available_percent", "90"),
            ("synchronous", "1"),
            ("errors", "[unregister] panic"),
            ("internal/cutoff_writeback", "30"),
            ("stats_total/cache_hits", "30"),
            ("stats_total/cache_misses", "10"),
            ("stats_total/bypassed", "1.5M"),
        ] {
            tree.file(&format!("{set}/{name}"), value);
        }
        tree.device("vdb", "254:16");
        tree.file("sys/devices/vdb/bcache/nbuckets", "2048");
        tree.file("sys/devices/vdb/bcache/cache_replacement_policy", "[lru] fifo random");
        tree.link(&format!("{set}/cache0"), "../../../devices/vdb/bcache");
        tree.link("sys/devices/vdb/bcache/set", &format!("../../../fs/bcache/{SET}"));
        tree
    }

    fn file(&mut self, path: &str, value: &str) {
        writeln!(self.text, "{path}\t{value}\\n").unwrap();
    }

    fn link(&mut self, path: &str, target: &str) {
        writeln!(self.text, "{path} -> {target}").unwrap();
    }

    fn device(&mut self, name: &str, number: &str) {
        self.file(&format!("sys/devices/{name}/dev"), number);
        self.file(&format!("sys/devices/{name}/size"), "524288");
        self.file(&format!("sys/devices/{name}/stat"), "1 0 8 0 1 0 8 0 0 0 0");
        self.link(&format!("sys/class/block/{name}"), &format!("../../devices/{name}"));
    }

    fn backing(mut self, index: u32, running: bool, attached: bool, state: &str) -> Self {
        let name = format!("sd{index}");
        let dir = format!("sys/devices/{name}/bcache");
        self.device(&name, &format!("8:{index}"));
        for (file, value) in [
            ("running", if running { "1" } else { "0" }),
            ("state", state),
            ("dirty_data", if state == "dirty" && attached { "20.0M" } else { "0.0k" }),
            ("cache_mode", "writethrough [writeback] writearound none"),
            ("sequential_cutoff", "4.0M"),
            ("writeback_percent", "10"),
            ("writeback_delay", "30"),
            ("writeback_running", if attached { "1" } else { "0" }),
            ("writeback_rate_fp_term_low", "1"),
            ("writeback_rate_fp_term_mid", "10"),
            ("writeback_rate_fp_term_high", "1000"),
            ("label", ""),
        ] {
            self.file(&format!("{dir}/{file}"), value);
        }
        if running {
            let bcache = format!("bcache{index}");
            self.device(&bcache, &format!("251:{index}"));
            self.link(&format!("{dir}/dev"), &format!("../../{bcache}"));
            self.link(&format!("sys/devices/{bcache}/bcache"), &format!("../{name}/bcache"));
        }
        if attached {
            self.link(&format!("{dir}/cache"), &format!("../../../fs/bcache/{SET}"));
            self.link(
                &format!("sys/fs/bcache/{SET}/bdev{index}"),
                &format!("../../../devices/{name}/bcache"),
            );
        }
        self
    }

    fn root(&self) -> Root {
        recorded::unpack(&self.text, self.folder.path()).unwrap()
    }

    fn view(&self) -> View {
        View::read(&self.root()).unwrap()
    }
}

/// One backing device in each state.
fn all_states() -> Tree {
    Tree::new()
        .backing(0, false, false, "clean")
        .backing(1, true, false, "no cache")
        .backing(2, true, false, "inconsistent")
        .backing(3, true, true, "clean")
        .backing(4, true, true, "dirty")
        .backing(5, true, false, "clean")
        .backing(6, true, false, "dirty")
        .backing(7, false, false, "dirty")
}

#[test]
fn states_are_told_apart() {
    let tree = all_states();
    let view = tree.view();
    let states: Vec<DeviceState> = view.backing.iter().map(DeviceState::of).collect();
    assert_eq!(
        states,
        [Waiting, Plain, Forced, AttachedClean, AttachedDirty, CacheLost, CacheLost, Waiting]
    );
    assert_eq!(view.backing_of(SET).count(), 2);
    let set = view.set(SET).unwrap();
    assert_eq!(set.cache.as_ref().unwrap().name, "vdb");
    assert_eq!(set.cache_bytes(), Some(1 << 30));
    assert_eq!(set.attached.len(), 2);
    assert_eq!(set.stats.as_ref().unwrap().hit_ratio(), Some(0.75));
    assert_eq!(view.set_of_cache("vdb").unwrap().uuid, SET);
    assert_eq!(view.backing_device("bcache4").unwrap().name, "sd4");
    assert!(view.closing.is_empty());
}

#[test]
fn a_device_without_a_cache_in_its_superblock_is_detached_still_while_linked() {
    let view = Tree::new().backing(0, true, true, "no cache").view();
    let backing = &view.backing[0];
    assert_eq!(DeviceState::of(backing), DeviceState::Detaching);
    assert!(findings(&view, &|_| None).is_empty());
    // Another detach waits for the end of the one that is under way.
    let plan = plan_detach(backing, true).unwrap();
    assert_eq!(plan.writes.len(), 1);
    assert!(plan_attach(backing, view.set(SET).unwrap()).is_err());
}

#[test]
fn dangers_come_first_and_name_the_set() {
    let tree = all_states();
    let view = tree.view();
    let on_device = |name: &str| {
        let set = if name == "sd3" { OTHER } else { SET };
        Some(OnDevice { set, state: BackingState::Clean })
    };
    let found = findings(&view, &on_device);
    let codes: Vec<&str> = found.iter().map(Finding::code).collect();
    assert_eq!(codes, ["forced", "other-set", "cache-lost", "cache-lost", "waiting", "waiting"]);
    assert!(
        matches!(&found[2], Finding::CacheLost { device, set: Some(SET), .. } if device == "sd5")
    );
    // Without superblocks the sets are unknown, and one danger cannot be seen.
    let blind = findings(&view, &|_| None);
    assert!(matches!(&blind[0], Finding::Forced { set: None, .. }));
    assert!(!blind.iter().any(|it| it.code() == "other-set"));
}

#[test]
fn dirty_data_of_before_is_told_from_newer() {
    let tree = all_states();
    let on_device = |_: &str| Some(OnDevice { set: OTHER, state: BackingState::Clean });
    let found = |tree: &Tree| {
        let view = View::read(&tree.root_again()).unwrap();
        let of = |finding: Finding| match finding {
            Finding::OtherSet { device, dirty, .. } => Some((device, dirty)),
            _ => None,
        };
        findings(&view, &on_device).into_iter().filter_map(of).collect::<Vec<_>>()
    };
    tree.root();
    let (sd3, sd4) = ("sd3".to_owned(), "sd4".to_owned());
    let all = [(sd3.clone(), OtherDirty::None), (sd4.clone(), OtherDirty::Mixed)];
    assert_eq!(found(&tree), all);
    // Nothing was written since that would have made it dirty, and yet there is dirty data.
    let state = tree.root_again().sys("class/block/sd4/bcache/state");
    std::fs::write(state, "clean\n").unwrap();
    assert_eq!(found(&tree), [(sd3, OtherDirty::None), (sd4, OtherDirty::Old)]);
}

#[test]
fn what_went_on_without_its_cache_is_stopped_first() {
    let tree = all_states();
    let view = tree.view();
    let root = tree.root_again();
    let backing = |name: &str| view.backing_device(name).unwrap();
    let stop = plan_stop(&root, backing("sd5"), false).unwrap();
    assert!(matches!(&stop.notes[..], [Note::NamesLostCache { device }] if device == "sd5"));
    assert!(plan_run_again(&root, backing("sd5"), false).unwrap().notes.is_empty());
    assert!(matches!(plan_run_again(&root, backing("sd6"), false), Err(Refusal::Dirty { .. })));
    assert_eq!(plan_run_again(&root, backing("sd6"), true).unwrap().writes.len(), 1);
    // Reads would return old contents, whatever may be given up.
    let cache = std::path::Path::new("/nonexistent");
    assert!(matches!(
        control::returns_to(&view, cache, SET, true),
        Err(Refusal::CacheIsStale { .. })
    ));
    let forced = Tree::new().backing(2, true, false, "inconsistent").view();
    // What the cache holds cannot be told.
    assert!(matches!(
        control::returns_to(&forced, cache, SET, false),
        Err(Refusal::DropsDirtyData { dirty: None, .. })
    ));
    assert!(control::returns_to(&forced, cache, SET, true).is_ok());
}

#[test]
fn a_device_that_was_stopped_while_open_is_closing() {
    let mut tree = Tree::new();
    tree.device("bcache9", "251:9");
    tree.link("sys/devices/bcache9/slaves/sdz", "../../vdb");
    let view = tree.view();
    assert_eq!(view.closing[0].bcache, "bcache9");
    assert_eq!(view.closing[0].holds, ["sdz"]);
}

#[test]
fn only_what_needs_no_other_cache_is_attached() {
    let tree = all_states();
    let view = tree.view();
    let set = view.set(SET).unwrap();
    let attach = |name: &str| plan_attach(view.backing_device(name).unwrap(), set);
    assert!(attach("sd1").unwrap().writes[0].file.ends_with("sd1/bcache/attach"));
    assert_eq!(attach("sd2").unwrap().notes, [Note::DropsOldContents]);
    assert_eq!(attach("sd3").unwrap().notes, [Note::AlreadySo]);
    for waiting in ["sd0", "sd7"] {
        assert!(matches!(attach(waiting), Err(Refusal::WaitsForItsSet { .. })), "{waiting}");
    }
    for lost in ["sd5", "sd6"] {
        let error = attach(lost).unwrap_err();
        assert!(matches!(error, Refusal::WrongState { state: CacheLost, .. }), "{error}");
    }
}

#[test]
fn only_what_is_attached_is_detached_and_flushed() {
    let tree = all_states();
    let view = tree.view();
    let backing = |name: &str| view.backing_device(name).unwrap();
    let plan = plan_detach(backing("sd4"), true).unwrap();
    assert!(matches!(&plan.notes[..], [Note::WritesBack { dirty_bytes, .. }]
        if dirty_bytes.contains(20 << 20)));
    assert_eq!(plan_detach(backing("sd1"), true).unwrap().notes, [Note::AlreadySo]);
    let flush = plan_flush(backing("sd4"), control::FlushOptions { writethrough: true }).unwrap();
    let values: Vec<&str> = flush.writes.iter().map(|it| it.value.trim()).collect();
    assert_eq!(values, ["writethrough", "0", "0"]);
    assert!(
        plan_flush(backing("sd3"), control::FlushOptions::default()).unwrap().writes.is_empty()
    );
    // Dirty data of a device that the kernel takes for clean is written back by a detach alone.
    let mut taken_for_clean = backing("sd3").clone();
    taken_for_clean.dirty = backing("sd4").dirty;
    assert!(matches!(
        plan_flush(&taken_for_clean, control::FlushOptions::default()),
        Err(Refusal::TakenForClean { .. })
    ));
    assert!(matches!(
        &plan_detach(&taken_for_clean, true).unwrap().notes[..],
        [Note::WritesBack { .. }]
    ));
    for name in ["sd0", "sd2", "sd5"] {
        assert!(plan_detach(backing(name), true).is_err(), "{name}");
        assert!(plan_flush(backing(name), control::FlushOptions::default()).is_err(), "{name}");
    }
}

#[test]
fn a_dirty_device_does_not_start_without_a_word() {
    let tree = all_states();
    let view = tree.view();
    let backing = |name: &str| view.backing_device(name).unwrap();
    assert!(matches!(plan_run(backing("sd7"), false), Err(Refusal::Dirty { .. })));
    assert!(plan_run(backing("sd7"), true).unwrap().notes.contains(&Note::LosesDirtyData));
    assert_eq!(plan_run(backing("sd0"), false).unwrap().notes, [Note::TurnsInconsistent]);
    assert!(matches!(plan_run(backing("sd3"), true), Err(Refusal::WrongState { .. })));
}

#[test]
fn volumes_of_no_size_or_too_large_are_refused() {
    let tree = all_states();
    let view = tree.view();
    let set = view.set(SET).unwrap();
    for bytes in [0, 1, (512 << 10) - 1] {
        let refused = plan_volume_create(set, bytes, None);
        assert!(matches!(refused, Err(Refusal::VolumeTooSmall { .. })), "{bytes}");
    }
    assert!(matches!(plan_volume_create(set, 1 << 30, None), Err(Refusal::VolumeTooLarge { .. })));
    let plan = plan_volume_create(set, 32 << 20, Some("flash")).unwrap();
    assert_eq!(plan.writes[0].value, "33554432\n");
    assert!(plan_volume_create(set, 32 << 20, Some(&"x".repeat(32))).is_err());
}

#[test]
fn a_cache_with_volumes_is_not_wiped() {
    let mut tree = Tree::new();
    tree.device("bcache7", "251:7");
    tree.file("sys/devices/bcache7/bcache/size", "32.0M");
    tree.file("sys/devices/bcache7/bcache/label", "flash");
    tree.link(&format!("sys/fs/bcache/{SET}/volume0"), "../../../devices/bcache7/bcache");
    let view = tree.view();
    let set = view.set(SET).unwrap();
    assert_eq!(set.volumes[0].bcache, "bcache7");
    assert!(view.backing.is_empty() && view.closing.is_empty(), "{view:?}");
    let root = tree.root_again();
    let refused = plan_unregister(&root, &view, set, true);
    assert!(matches!(refused, Err(Refusal::HasVolumes { .. })));
    let plan = plan_unregister(&root, &view, set, false).unwrap();
    assert!(matches!(&plan.notes[..], [Note::VolumesStop { .. }]));
}

impl Tree {
    /// The root of a tree that was laid out already.
    fn root_again(&self) -> Root {
        Root::at(self.folder.path())
    }
}

#[test]
fn labels_fit_the_superblock() {
    let tree = all_states();
    let view = tree.view();
    let at = &view.backing_device("sd1").unwrap().attributes;
    let plan = |label: &str, is_volume| plan_label("sd1", at, is_volume, label);
    assert_eq!(plan("home", false).unwrap().writes[0].value, "home\n");
    assert_eq!(plan("home", true).unwrap().writes[0].value, "home");
    assert_eq!(plan("", false).unwrap().notes, [Note::AlreadySo]);
    assert!(plan(&"x".repeat(31), false).is_ok());
    assert!(matches!(plan(&"x".repeat(32), false), Err(Refusal::LabelTooLong { .. })));
    assert!(matches!(plan("a\nb", false), Err(Refusal::LabelCharacters)));
}

#[test]
fn settings_are_checked_and_ordered() {
    let tree = all_states();
    let view = tree.view();
    let at = |name: &str| &view.backing_device(name).unwrap().attributes;
    let change = |name: &str, value: &str| {
        let tunable = Tunable::find(name, true).unwrap();
        Change { tunable, value: value.to_owned() }
    };
    let names = |changes: &[(&str, &str)]| {
        let changes = changes.iter().map(|(name, value)| change(name, value)).collect();
        let (_, ordered) = plan_settings("sd3", at("sd3"), changes)?;
        let names = ordered.iter().map(|it| it.tunable.name.rsplit('_').next().unwrap());
        Ok::<_, SettingError>(names.collect::<Vec<_>>())
    };
    let (low, mid, high) =
        ("writeback_rate_fp_term_low", "writeback_rate_fp_term_mid", "writeback_rate_fp_term_high");
    // All rise: the highest first. All that fall: the lowest first.
    assert_eq!(
        names(&[(low, "2000"), (mid, "3000"), (high, "4000")]).unwrap(),
        ["high", "mid", "low"]
    );
    assert_eq!(names(&[(high, "5"), (mid, "4")]).unwrap(), ["mid", "high"]);
    assert!(matches!(names(&[(low, "10")]), Err(SettingError::TermsOutOfOrder { .. })));
    assert!(matches!(
        names(&[("writeback_percent", "5"), ("writeback_percent", "6")]),
        Err(SettingError::Twice { .. })
    ));
    assert!(matches!(names(&[("io_error_limit", "5")]), Err(SettingError::Missing { .. })));
    // So already; but what reads 4.0M may be something else than 4 MiB.
    assert!(names(&[("writeback_percent", "10")]).unwrap().is_empty());
    assert_eq!(names(&[("sequential_cutoff", "4194304")]).unwrap(), ["cutoff"]);
    // The kernel says yes and does nothing.
    let on = plan_settings("sd1", at("sd1"), vec![change("writeback_running", "1")]);
    assert!(matches!(on, Err(SettingError::NeedsCache { .. })));
    // The set's own limit.
    let percent = Tunable::find("writeback_percent", true).unwrap();
    assert_eq!(control::most_of(percent, at("sd3")), Some(30));
    assert_eq!(control::most_of(percent, at("sd1")), None);
}
