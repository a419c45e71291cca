//! Devices beside those that were asked about hold up nothing, under stock kernels: a suspended
//! device-mapper device, which does not answer, and 2,000 that hold nothing.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_tests::tool::{make, show, text};
use bcache_tests::{Guest, Kernel, Need, Scratch, binary, main_with, trial};

fn main() -> ExitCode {
    let needs = &[Need::Guest, Need::Program("dmsetup", "dmsetup")];
    main_with(
        [Kernel::V6_1, Kernel::V6_12]
            .into_iter()
            .map(|kernel| {
                trial(format!("a_suspended_device_{kernel}"), needs, move || suspended(kernel))
            })
            .chain([trial("two_thousand_devices_6.12", &[Need::Guest], two_thousand)])
            .collect(),
    )
}

/// The read of a suspended device cannot be killed; `timeout` would wait for the program as long as
/// one of its threads does that.
const SCRIPT: &str = r#"
    export DM_DISABLE_UDEV=1
    /bin/dmsetup create dead --noudevsync --table "0 131072 linear /dev/vdc 0"
    /bin/dmsetup suspend --noudevsync --nolockfs dead
    status=0
    bcachectl make -n -w 512 -B /dev/vdb --cset-uuid "$(cat /set)" >/said 2>&1 || status=$?
    echo $status >/status
    figure smaller_status /status
    figure smaller_said /said
    status=0
    bcachectl make -n -w 4k -B /dev/vdb --cset-uuid "$(cat /set)" >/said 2>&1 || status=$?
    echo $status >/status
    figure same_status /status
    /bin/dmsetup resume --noudevsync dead
"#;

fn suspended(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let cache = scratch.sparse("cache", 300 << 20)?;
    let backing = scratch.sparse("backing", 64 << 20)?;
    let dead = scratch.sparse("dead", 64 << 20)?;
    make(["-w", "4k", "-C", cache.to_str().context("a path")?])?;
    let shown = show(&cache)?;
    let set = text(&shown, "/superblock/set_uuid")?.to_owned();
    let dmsetup = Command::new("sh").args(["-c", "command -v dmsetup"]).output()?.stdout;
    let run = Guest::new(kernel)
        .module("dm-mod")
        .binary(String::from_utf8(dmsetup)?.trim())
        .binary(binary("bcachectl")?)
        .file("/set", set)
        .disk(&cache)
        .disk(&backing)
        .disk(&dead)
        .script(SCRIPT)
        .timeout(Duration::from_secs(300))
        .run()?
        .ok()?;
    ensure!(run.log.number("smaller_status")? == 1, "{}", run.tail());
    let said = run.log.figure("smaller_said").context("what make said")?;
    // The set was found although a device did not answer.
    ensure!(said.contains("smaller than that of the set (4 KiB)"), "{said}\n{}", run.tail());
    ensure!(run.log.number("same_status")? == 0, "{}", run.tail());
    Ok(())
}

const MANY: &str = r#"
    rmmod null_blk
    insmod "$(find /modules -name 'null_blk.ko*')" nr_devices=2000 queue_mode=0 gb=1
    wait_for 60 test -e /dev/nullb1999
    register /dev/vda
    capture list bcachectl list --json
    capture show bcachectl show /dev/vda
    stop_all
"#;

fn two_thousand() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let cache = scratch.sparse("cache", 300 << 20)?;
    make(["-w", "4k", "-C", cache.to_str().context("a path")?])?;
    let run = Guest::new(Kernel::V6_12)
        .module("null_blk")
        .binary(binary("bcachectl")?)
        .disk(&cache)
        .script(MANY)
        .timeout(Duration::from_secs(300))
        .run()?
        .ok()?;
    let said = |name: &str| {
        let capture = run.log.capture(name).with_context(|| format!("no {name}"))?;
        ensure!(capture.status == Some(0), "{name}: {}\n{}", capture.output, run.tail());
        Ok(capture.output.clone())
    };
    let list = said("list")?;
    ensure!(list.contains("/dev/vda") && !list.contains("nullb"), "{list}");
    let show = said("show")?;
    ensure!(show.contains("There is no dirty data on this cache"), "{show}");
    Ok(())
}
