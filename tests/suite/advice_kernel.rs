//! The advice of `bcachectl check`, followed word by word under stock kernels. Each command is run as it
//! stands, and the volume is what it should be. Where the advice is not to do
//! something, doing it loses data.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_core::device::{ReadDevice as _, open_read};
use bcache_core::layout::superblock::{BackingState, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_tests::cache::{bucket_byte, with_cache_set};
use bcache_tests::image::write_at;
use bcache_tests::need::find_program;
use bcache_tests::volume::{md5_of_backing, md5_of_device, md5_of_flash_only};
use bcache_tests::{Fixture, Guest, Kernel, Log, Need, Scratch, binary, main_with, trial};
use uuid::Uuid;

fn main() -> ExitCode {
    let needs = &[Need::Guest, Need::Program("ddrescue", "gddrescue")];
    let mut trials = Vec::new();
    for kernel in Kernel::ALL {
        for (part, cases) in [("followed", FOLLOWED), ("safe", SAFE), ("warned", WARNED)] {
            trials.push(trial(format!("{part}_{kernel}"), needs, move || run(kernel, cases)));
        }
    }
    main_with(trials)
}

/// What is done to a cache and its backing device.
type Damage = fn(cache: &Path, backing: &Path) -> anyhow::Result<()>;

/// A state of a cache and its backing device, and what is done about it.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    fixture: &'static str,
    /// Brings the images into the state.
    damage: Option<Damage>,
    /// The advice, in its order.
    advice: &'static [&'static str],
    /// What the guest does then; `$c` is the cache, `$b` the backing device.
    script: &'static str,
    outcome: Outcome,
}

/// What the volume is after that, compared with what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The kernel reads it as it was, and it is complete on the backing device alone.
    Complete,
    /// The file that was exported is the volume as it was.
    Exported,
    /// The flash-only volume of slot 2 is read as it was.
    FlashOnly,
    /// What the kernel reads is something else.
    Lost,
    /// The kernel shows no such volume.
    Gone,
}

/// What the scripts call.
const PRELUDE: &str = r#"
    # advice: what check says of the devices.
    advice() {
        bcachectl check --json $c $b >/advice.json || true
        sed -n -e '1,/"advice": \[/d' -e 's/^ *"code": "\([a-z-]*\)",$/\1/p' /advice.json | tr '\n' ' ' >/codes
        figure "advice" /codes
    }
    # follow CODE [OPTION]: runs the command of that advice, as it stands.
    follow() {
        awk -v code="\"$1\"," '$1 == "\"code\":" { its = $2 == code } its && $1 == "\"command\":"' \
            /advice.json | sed -e 's/^ *"command": "//' -e 's/"$//' -e 's/FILE/\/exported/' >/command
        test -s /command
        figure "command_$1" /command
        eval "$(head -n 1 /command) ${2:-}" </dev/null
    }
    # restore: puts what was exported where the map says that it belongs.
    restore() {
        ddrescue --domain-mapfile=/exported.map --output-position=8192 --force /exported "$b" >/dev/null
        sync
    }
    state_is() {
        [ "$(cat /sys/block/$(basename "$b")/bcache/state)" = "$1" ]
    }
    volume() {
        wait_for 30 test -b /dev/bcache0
        md5 /dev/bcache0
    }
    exported() {
        md5 /exported
        rm /exported*
    }
    both() {
        register "$b"
        register "$c"
    }
    # The devices of the other cases are copies of these, and not in this machine.
    alone() {
        mkdir -p /dev/hidden
        for disk in /dev/vd*; do mv "$disk" /dev/hidden/; done
        mv "/dev/hidden/$(basename "$b")" "/dev/hidden/$(basename "$c")" /dev/
    }
"#;

const WHOLE: &str = "both; volume";
const FROM_FILE: &str = "follow export; exported";
/// The export says of itself that parts are likely right.
const LIKELY: &str = "follow export || test $? = 4; exported";

/// Advice on dirty data of a set that the kernel takes.
const OF_DIRTY: &[&str] = &["do-not-wipe", "register-and-detach", "write-back-offline"];
/// The same of a cache that the kernel refuses.
const OF_REFUSED: &[&str] = &["do-not-wipe", "copy-device", "export"];
/// The same where the backing device was detached from the cache or run without it.
const OF_RAN_ALONE: &[&str] =
    &["do-not-register", "do-not-wipe", "copy-device", "export", "write-back-ran-alone"];

/// States in which the advice is followed.
const FOLLOWED: &[Case] = &[
    Case {
        name: "dirty",
        fixture: "dirty-61",
        damage: None,
        advice: OF_DIRTY,
        script: "follow register-and-detach; wait_for 60 state_is 'no cache'; volume",
        outcome: Outcome::Complete,
    },
    Case {
        // Devices are registered before the network tells the time.
        name: "no-clock",
        fixture: "dirty-61",
        damage: None,
        advice: OF_DIRTY,
        script: "now=$(date +%s); date -s @40 >/dev/null
            both; wait_for 30 test -b /dev/bcache0; stop_all; date -s @$now >/dev/null
            bcachectl show --uuids $c | grep 1970-01-01
            advice; bcachectl check $c $b >/said || true; grep 'No problems' /said
            follow register-and-detach; wait_for 60 state_is 'no cache'; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "dirty-offline",
        fixture: "dirty-61",
        damage: None,
        advice: OF_DIRTY,
        script: "follow write-back-offline --yes; both; volume; state_is clean",
        outcome: Outcome::Complete,
    },
    Case {
        name: "says-clean",
        fixture: "dirty-61",
        damage: Some(says_clean),
        advice: OF_DIRTY,
        // The kernel does not write it back by itself, and a flush says so.
        script: "both; wait_for 30 test -b /dev/bcache0
            bcachectl status >/said || true
            grep 'The kernel takes .* for clean' /said
            if bcachectl flush --timeout 5s $b 2>/said; then false; fi
            grep 'for clean' /said
            bcachectl detach --wait $b; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "crashed",
        fixture: "crash-612",
        damage: None,
        advice: OF_DIRTY,
        script: "follow register-and-detach; wait_for 60 state_is 'no cache'; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "crashed-offline",
        fixture: "crashhot-61",
        damage: None,
        advice: OF_DIRTY,
        script: "follow write-back-offline --yes; both; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "released",
        fixture: "dirty-61",
        damage: Some(released),
        advice: OF_RAN_ALONE,
        script: "follow export; restore; rm /exported*; register $b; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "released-offline",
        fixture: "dirty-61",
        damage: Some(released),
        advice: OF_RAN_ALONE,
        script: "follow write-back-ran-alone --yes; register $b; volume; state_is 'no cache'",
        outcome: Outcome::Complete,
    },
    Case {
        // The kernel gives the dirty data up as it attaches the device.
        name: "given-up",
        fixture: "dirty-61",
        damage: Some(released),
        advice: &["do-not-wipe", "export"],
        script: "both; attach $b; wait_for 30 test -b /dev/bcache0; stop_all; advice
            bcachectl check $c $b >/said || test $? = 4; grep uuid-detached-dirty /said
            both; wait_for 30 test -b /dev/bcache0
            bcachectl flush --timeout 60s $b; stop_all
            bcachectl check $c $b >/said || test $? = 4; grep uuid-detached-dirty /said
            follow export; restore; rm /exported*; register $b
            wait_for 10 test -e /sys/block/$(basename $b)/bcache/running
            echo 1 >/sys/block/$(basename $b)/bcache/running; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "ran-alone",
        fixture: "dirty-61",
        damage: Some(inconsistent),
        advice: OF_RAN_ALONE,
        script: "follow write-back-ran-alone --yes; register $b; volume; state_is 'no cache'",
        outcome: Outcome::Complete,
    },
    Case {
        name: "ran-alone-by-the-kernel",
        fixture: "dirty-61",
        damage: None,
        advice: OF_RAN_ALONE,
        script: "register $b; wait_for 10 test -e /sys/block/$(basename $b)/bcache/running
            echo 1 >/sys/block/$(basename $b)/bcache/running; stop_all; advice
            follow write-back-ran-alone --yes; register $b; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "no-magic-repaired",
        fixture: "crash-612",
        damage: Some(no_magic),
        advice: OF_DIRTY,
        script: "follow repair; bcachectl repair --yes $c; advice
            follow register-and-detach; wait_for 60 state_is 'no cache'; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "unsynced",
        fixture: "dirty-61",
        damage: Some(unsynced),
        advice: &["do-not-register", "do-not-wipe", "copy-device", "export"],
        script: FROM_FILE,
        outcome: Outcome::Exported,
    },
    Case {
        name: "no-prios",
        fixture: "dirty-61",
        damage: Some(no_prios),
        advice: OF_REFUSED,
        script: LIKELY,
        outcome: Outcome::Exported,
    },
    Case {
        name: "no-magic",
        fixture: "dirty-61",
        damage: Some(no_magic),
        advice: OF_REFUSED,
        script: FROM_FILE,
        outcome: Outcome::Exported,
    },
    Case {
        name: "no-checksum",
        fixture: "crash-612",
        damage: Some(no_checksum),
        advice: OF_REFUSED,
        script: FROM_FILE,
        outcome: Outcome::Exported,
    },
    Case {
        name: "says-dirty",
        fixture: "clean-612",
        damage: Some(says_dirty),
        advice: &["clear-dirty-state", "safe-to-wipe"],
        script: "follow clear-dirty-state; wait_for 60 state_is 'no cache'; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "flash-only",
        fixture: "multi-612",
        damage: None,
        advice: &["do-not-wipe"],
        script: "register $c; wait_for 30 test -b /dev/bcache0; md5 /dev/bcache0",
        outcome: Outcome::FlashOnly,
    },
];

/// States in which a cache may be wiped. The first is settled by its backing device, so that no copy of
/// that is in the machine which says something else.
const SAFE: &[Case] = &[
    Case {
        name: "clean-broken",
        fixture: "clean-612",
        damage: Some(no_root),
        advice: &["safe-to-wipe"],
        script: "bcachectl make --wipe-bcache --yes -C $c >/dev/null; register $b; register $c
            wait_for 10 test -e /sys/block/$(basename $b)/bcache/running
            echo 1 >/sys/block/$(basename $b)/bcache/running; volume",
        outcome: Outcome::Complete,
    },
    Case {
        name: "clean",
        fixture: "clean-612",
        damage: None,
        advice: &["safe-to-wipe"],
        script: "bcachectl make --wipe-bcache --yes -C $c >/dev/null; register $b; register $c
            wait_for 10 test -e /sys/block/$(basename $b)/bcache/running
            echo 1 >/sys/block/$(basename $b)/bcache/running; volume",
        outcome: Outcome::Complete,
    },
];

/// States in which what the advice warns of is done.
const WARNED: &[Case] = &[
    Case {
        name: "released",
        fixture: "dirty-61",
        damage: Some(released),
        advice: &["do-not-register", "do-not-wipe"],
        script: "both; attach $b; volume",
        outcome: Outcome::Lost,
    },
    Case {
        name: "ran-alone",
        fixture: "dirty-61",
        damage: Some(inconsistent),
        advice: &["do-not-register", "do-not-wipe"],
        script: WHOLE,
        outcome: Outcome::Lost,
    },
    Case {
        name: "old-cache",
        fixture: "clean-612",
        damage: None,
        advice: &["do-not-register", "do-not-wipe"],
        script: "dd if=$c of=/old bs=1M 2>/dev/null
            both; wait_for 30 test -b /dev/bcache0
            bcachectl check $c $b | grep -c backing-newer && false
            echo writeback >/sys/block/bcache0/bcache/cache_mode
            dd if=/dev/urandom of=/dev/bcache0 bs=1M count=16 oflag=direct 2>/dev/null
            bcachectl flush --timeout 120s $b; new=$(md5sum </dev/bcache0); stop_all
            bcachectl check $c $b
            dd if=/old of=$c bs=1M conv=notrunc 2>/dev/null; rm /old; sync
            advice; bcachectl check $c $b >/said || true; grep backing-newer /said
            bcachectl writeback --yes $c $b 2>/said && false; grep 'old copy' /said
            both; volume; test \"$(md5sum </dev/bcache0)\" != \"$new\"",
        outcome: Outcome::Lost,
    },
    Case {
        name: "unsynced",
        fixture: "dirty-61",
        damage: Some(unsynced),
        advice: &["do-not-register", "do-not-wipe"],
        script: "both; wait_for 30 test -e /sys/block/$(basename $c)/bcache/set
            sleep 1; test -b /dev/bcache0 || echo 1 >/sys/block/$(basename $b)/bcache/running; volume",
        outcome: Outcome::Lost,
    },
    Case {
        name: "no-table",
        fixture: "dirty-61",
        damage: Some(no_table),
        advice: &["do-not-register", "do-not-wipe"],
        script: "register $b || true; register $c || true; sleep 3; figure state \
            /sys/block/$(basename $b)/bcache/state; ls /dev/bcache* || true",
        outcome: Outcome::Gone,
    },
    Case {
        name: "alone",
        fixture: "dirty-61",
        damage: None,
        advice: &["do-not-wipe", "register-and-detach"],
        script: "register $b; wait_for 10 test -e /sys/block/$(basename $b)/bcache/running
            echo 1 >/sys/block/$(basename $b)/bcache/running; volume",
        outcome: Outcome::Lost,
    },
    Case {
        name: "wiped",
        fixture: "dirty-61",
        damage: None,
        advice: &["do-not-wipe"],
        script: "bcachectl make --wipe-bcache --lose-dirty-data --yes -C $c >/dev/null; both
            wait_for 10 test -e /sys/block/$(basename $b)/bcache/running
            echo 1 >/sys/block/$(basename $b)/bcache/running; volume",
        outcome: Outcome::Lost,
    },
];

fn edit(image: &Path, change: impl FnOnce(&mut Superblock)) -> anyhow::Result<()> {
    let mut bytes = vec![0; SB_BYTES];
    open_read(image)?.read_at(SB_OFFSET_BYTES, &mut bytes)?;
    let mut sb = Superblock::from_bytes(&bytes).context("a superblock")?;
    change(&mut sb);
    write_at(image, SB_OFFSET_BYTES, sb.as_bytes())
}

/// As the kernel leaves it when the cache fails.
fn released(_: &Path, backing: &Path) -> anyhow::Result<()> {
    edit(backing, |sb| {
        sb.edit(|edit| {
            edit.state(BackingState::None).set_uuid(Uuid::nil());
        });
    })
}

/// As the kernel leaves it when it is told to run a dirty device without its cache.
fn inconsistent(_: &Path, backing: &Path) -> anyhow::Result<()> {
    edit(backing, |sb| {
        sb.edit(|edit| {
            edit.state(BackingState::Stale);
        });
    })
}

fn says_clean(_: &Path, backing: &Path) -> anyhow::Result<()> {
    edit(backing, |sb| {
        sb.edit(|edit| {
            edit.state(BackingState::Clean);
        });
    })
}

fn says_dirty(_: &Path, backing: &Path) -> anyhow::Result<()> {
    edit(backing, |sb| {
        sb.edit(|edit| {
            edit.state(BackingState::Dirty);
        });
    })
}

/// The flag that says that the cache is in use.
fn unsynced(cache: &Path, _: &Path) -> anyhow::Result<()> {
    edit(cache, |sb| {
        let flags = sb.flags() & !1;
        sb.edit(|edit| {
            edit.flags(flags);
        });
    })
}

fn no_magic(cache: &Path, _: &Path) -> anyhow::Result<()> {
    write_at(cache, SB_OFFSET_BYTES + 24, &[0; 16])
}

fn no_checksum(cache: &Path, _: &Path) -> anyhow::Result<()> {
    write_at(cache, SB_OFFSET_BYTES, &[0x5a; 8])
}

fn overwrite(cache: &Path, bucket: u64, bytes: &[u8]) -> anyhow::Result<()> {
    write_at(cache, bucket_byte(cache, bucket)?, bytes)
}

fn no_prios(cache: &Path, _: &Path) -> anyhow::Result<()> {
    let bucket = with_cache_set(cache, |set| Ok(set.prios.buckets.first().map(|it| it.0)))?;
    overwrite(cache, bucket.context("a prio bucket")?, &vec![0; 65536])
}

fn no_table(cache: &Path, _: &Path) -> anyhow::Result<()> {
    let bucket = with_cache_set(cache, |set| Ok(set.uuids.bucket.map(|it| it.0)))?;
    overwrite(cache, bucket.context("the bucket of the uuid table")?, &[0xa5; 4096])
}

fn no_root(cache: &Path, _: &Path) -> anyhow::Result<()> {
    let root = with_cache_set(cache, |set| Ok(set.root.ptrs().first().map(|it| it.offset())))?;
    write_at(cache, root.context("a root")?.bytes(), &[0; 4096])
}

/// The images of a case, and what the volume was.
struct Prepared {
    case: Case,
    cache: PathBuf,
    backing: PathBuf,
    sum: String,
}

/// The sum of a fixture's first or flash-only volume as the kernel left it; made once for all trials.
fn original_sum(fixture: &Fixture, flash_only: bool) -> anyhow::Result<String> {
    static SUMS: Mutex<BTreeMap<(String, bool), String>> = Mutex::new(BTreeMap::new());
    let mut sums = SUMS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (fixture.name.clone(), flash_only);
    if let Some(sum) = sums.get(&key) {
        return Ok(sum.clone());
    }
    let sum = with_cache_set(&fixture.cache, |set| {
        if flash_only {
            return md5_of_flash_only(set, 2);
        }
        let backing = fixture.backing.first().context("a backing device")?;
        md5_of_backing(set, &open_read(backing)?)
    })?;
    Ok(sums.entry(key).or_insert(sum).clone())
}

fn prepare(scratch: &Scratch, case: Case) -> anyhow::Result<Prepared> {
    let fixture = Fixture::unpack(case.fixture)?;
    let backing = fixture.backing.first().context("a backing device")?;
    let sum = original_sum(&fixture, case.outcome == Outcome::FlashOnly)?;
    let kept = |what: &str, from: &Path| {
        let to = scratch.path(&format!("{}.{what}", case.name));
        fs::rename(from, &to).or_else(|_| fs::copy(from, &to).map(drop))?;
        anyhow::Ok(to)
    };
    let (cache, backing) = (kept("cache", &fixture.cache)?, kept("backing", backing)?);
    if let Some(damage) = case.damage {
        damage(&cache, &backing).with_context(|| format!("damage {}", case.name))?;
    }
    Ok(Prepared { case, cache, backing, sum })
}

fn run(kernel: Kernel, cases: &[Case]) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let all: Vec<Prepared> =
        cases.iter().map(|case| prepare(&scratch, *case)).collect::<anyhow::Result<_>>()?;
    let mut guest = Guest::new(kernel)
        .binary(binary("bcachectl")?)
        .binary(find_program("ddrescue").context("ddrescue")?)
        .sums_by_host()
        .timeout(Duration::from_secs(900))
        .script(PRELUDE);
    for (index, it) in all.iter().enumerate() {
        let (backing, cache) = (Guest::disk_name(2 * index), Guest::disk_name(2 * index + 1));
        guest = guest.disk(&it.backing).disk(&it.cache).script(format!(
            "stage {}\nb={backing}\nc={cache}\nalone\nadvice\n{}\nstop_all",
            it.case.name, it.case.script
        ));
    }
    let run = guest.run()?.ok()?;
    for it in &all {
        let name = it.case.name;
        let stage = run.log.stage(name).with_context(|| format!("no stage {name}"))?;
        judge(it, &stage).with_context(|| format!("{name}, kernel {kernel}: {stage:?}"))?;
    }
    eprintln!("{} states in {:.1} s, kernel {kernel}", all.len(), run.took.as_secs_f64());
    Ok(())
}

fn judge(it: &Prepared, stage: &Log) -> anyhow::Result<()> {
    let said: Vec<&str> =
        stage.figure("advice").context("the advice")?.split_whitespace().collect();
    let mut rest = said.iter();
    for code in it.case.advice {
        ensure!(rest.any(|said| said == code), "{code} is not said, or too late: {said:?}");
    }
    ensure!(said.first() == it.case.advice.first(), "said first: {said:?}");
    let read = stage.md5("/dev/bcache0");
    match it.case.outcome {
        Outcome::FlashOnly => {
            ensure!(read == Some(&it.sum), "{read:?} is read, expected {}", it.sum);
        }
        Outcome::Complete => {
            ensure!(read == Some(&it.sum), "{read:?} is read, expected {}", it.sum);
            let alone = md5_of_device(&it.backing)?;
            ensure!(alone == it.sum, "{alone} is on the backing device, expected {}", it.sum);
        }
        Outcome::Exported => {
            let file = stage.md5("/exported");
            ensure!(file == Some(&it.sum), "{file:?} was exported, expected {}", it.sum);
        }
        Outcome::Lost => {
            ensure!(read.is_some(), "no volume to read");
            ensure!(read != Some(&it.sum), "nothing was lost: the warning is wrong");
        }
        Outcome::Gone => ensure!(read.is_none(), "{read:?} was read"),
    }
    Ok(())
}
