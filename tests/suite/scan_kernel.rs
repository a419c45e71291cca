//! A device that does not answer holds up nothing that was not asked about it: a suspended
//! device-mapper device under stock kernels, beside healthy ones.

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
