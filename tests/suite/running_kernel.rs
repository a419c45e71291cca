//! `bcachectl` tells stock kernels what to do: each command through its whole life cycle, what it
//! refuses, and the states in which the kernel itself returns wrong data.

#[path = "running_kernel/silent.rs"]
mod silent;

use anyhow::{Context as _, ensure};
use bcache_tests::need::find_program;
use bcache_tests::tool::make;
use bcache_tests::{Guest, GuestRun, Kernel, Need, Scratch, binary, main_with, trial};
use serde_json::Value;
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for kernel in Kernel::ALL {
        trials.push(trial(format!("life_cycle_{kernel}"), &[Need::Guest], move || {
            life_cycle(kernel)
        }));
        trials.push(trial(format!("refusals_{kernel}"), &[Need::Guest], move || refusals(kernel)));
        let needs = &[Need::Guest, Need::Program("dmsetup", "dmsetup")];
        trials.push(trial(format!("interrupted_{kernel}"), needs, move || interrupted(kernel)));
        trials.push(trial(format!("silent_{kernel}"), needs, move || silent::silent(kernel)));
    }
    main_with(trials)
}

/// The shell's part of each guest: `ctl NAME ARGUMENTS` runs bcachectl and keeps what it said.
const CTL: &str = "
    quick=
    ctl() {
        ctl_name=$1
        shift
        # On a busy machine, an answer takes its time.
        if [ \"$1 $quick\" = \"status \" ]; then
            shift
            set -- status --timeout 60 \"$@\"
        fi
        capture $ctl_name /bin/bcachectl \"$@\"
    }
    pattern() {
        dd if=/dev/$1 of=/dev/$2 bs=1M count=$3 oflag=direct conv=fsync 2>/dev/null
    }
    # mapped NAME DEV TABLE: makes a device-mapper device as large as DEV; becomes gives it another table.
    mapped() {
        mapped_name=$1
        mapped_size=$(blockdev --getsz $2)
        table \"$3\" create
    }
    table() {
        echo \"0 $mapped_size $1\" | /bin/dmsetup $2 --noudevsync --noudevrules $mapped_name
    }
    becomes() {
        table \"$1\" reload
        /bin/dmsetup suspend --noudevsync $mapped_name
        /bin/dmsetup resume --noudevsync $mapped_name
    }";

/// A guest with a backing device on vda, its cache on vdb, a second pair on vdc and vdd.
fn guest(kernel: Kernel, scratch: &Scratch) -> anyhow::Result<Guest> {
    let mut guest = Guest::new(kernel).binary(binary("bcachectl")?).script(CTL);
    for (backing, cache) in [("back0", "cache0"), ("back1", "cache1")] {
        let backing = scratch.sparse(backing, 256 << 20)?;
        let cache = scratch.sparse(cache, 256 << 20)?;
        let path = |path: &std::path::Path| path.to_str().map(str::to_owned).context("UTF-8");
        make(["--bucket", "128k", "--cache", &path(&cache)?, "--bdev", &path(&backing)?])?;
        guest = guest.disk(backing).disk(cache);
    }
    Ok(guest.timeout(Duration::from_secs(300)))
}

/// What the command `name` said and how it ended.
fn said<'r>(run: &'r GuestRun, name: &str) -> anyhow::Result<(&'r str, i32)> {
    let capture = run.log.capture(name).with_context(|| format!("no {name}\n{}", run.tail()))?;
    Ok((&capture.output, capture.status.unwrap_or(-1)))
}

/// The command ended with `status`, and said each of `words`.
fn expect(run: &GuestRun, name: &str, status: i32, words: &[&str]) -> anyhow::Result<()> {
    let (output, ended) = said(run, name)?;
    ensure!(
        ended == status,
        "{name}: status {ended} instead of {status}: {output}\n{}",
        run.tail()
    );
    for word in words {
        ensure!(output.contains(word), "{name}: no {word:?} in {output}");
    }
    Ok(())
}

fn json(run: &GuestRun, name: &str) -> anyhow::Result<Value> {
    let (output, _) = said(run, name)?;
    serde_json::from_str(output).with_context(|| format!("{name}: {output}"))
}

fn life_cycle(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let script = r#"
        ctl none status
        echo kept >/kept
        ctl save_none settings save /kept
        capture kept cat /kept
        ctl dry register --dry-run /dev/vda
        ctl register register /dev/vda /dev/vdb
        ctl again register /dev/vda
        set=$(sets)
        ctl status status
        ctl json status --json
        ctl label label bcache0 "my data"
        ctl why status --why vda
        ctl metrics status --prometheus
        ctl set_dry set --dry-run vda sequential_cutoff=1000k
        ctl set_many set vda sequential_cutoff=1000k writeback_delay=2m writeback_rate_fp_term_low=20 writeback_rate_fp_term_mid=30 writeback_metadata=off
        ctl get get vda sequential_cutoff writeback_delay writeback_rate_fp_term_low writeback_rate_fp_term_mid writeback_metadata
        ctl save settings save /settings
        capture saved cat /settings
        ctl set_set set /dev/vdb congested_read_threshold_us=5ms cache_replacement_policy=fifo journal_delay_ms=50
        echo \[backing.\"11111111-2222-4333-8444-555555555555\"\] >>/settings
        echo writeback_percent = 9 >>/settings
        ctl save settings save /settings
        capture absent grep -A1 11111111 /settings
        ctl set_back set vda writeback_rate_fp_term_mid=5 writeback_rate_fp_term_low=1 writeback_delay=30
        ctl get_set get --json $set
        ctl set_high set vda writeback_percent=41
        ctl set_terms set vda writeback_rate_fp_term_low=2000
        ctl set_danger set $set synchronous=0
        ctl set_none set $set io_disable=1
        echo writeback >/sys/block/vda/bcache/cache_mode
        echo 0 >/sys/block/vda/bcache/sequential_cutoff
        echo 0 >/sys/fs/bcache/$set/congested_write_threshold_us
        echo 33 >/sys/block/vda/bcache/writeback_percent
        echo 0 >/sys/block/vda/bcache/writeback_running
        pattern urandom bcache0 10
        ctl dirty status --json
        stage before
        md5 /dev/bcache0 10485760
        ctl flush_dry flush --dry-run vda
        ctl flush flush --json $set
        figure percent /sys/block/vda/bcache/writeback_percent
        figure delay /sys/block/vda/bcache/writeback_delay
        figure wb_running /sys/block/vda/bcache/writeback_running
        figure state /sys/block/vda/bcache/state
        pattern urandom bcache0 5
        ctl stop stop bcache0
        ctl stopped status
        ctl set_stays status --json $set
        ctl back register /dev/vda
        ctl forgotten get vda sequential_cutoff writeback_rate_fp_term_mid
        ctl apply_dry settings apply --dry-run /settings
        ctl apply settings apply --device bcache0 /settings
        ctl applied get vda sequential_cutoff writeback_rate_fp_term_mid
        ctl applied_set get $set congested_write_threshold_us
        echo version = 1 >/bad
        echo \[backing.\"$(cat /sys/block/vda/bcache/backing_dev_uuid)\"\] >>/bad
        echo writeback_percent = 99 >>/bad
        ctl apply_bad settings apply /bad
        # Something is dirty at the detach, however busy the host is.
        echo 0 >/sys/block/vda/bcache/writeback_running
        echo 0 >/sys/fs/bcache/$set/congested_write_threshold_us
        dd if=/dev/urandom of=/dev/bcache0 bs=4k count=16 seek=64 oflag=direct 2>/dev/null
        stage detached
        md5 /dev/bcache0 10485760
        ctl detach detach --wait /dev/bcache0
        figure state_detached /sys/block/vda/bcache/state
        md5 /dev/bcache0 10485760
        ctl attach attach vda /dev/vdb
        ctl attached attach vda $set
        pattern urandom bcache0 8
        md5 /dev/bcache0 10485760
        ctl unregister unregister --wipe --yes $set
        md5 /dev/bcache0 10485760
        ctl wiped register /dev/vdb
        ctl plain status --json
        ctl register_second register /dev/vdc /dev/vdd
        set=$(sets)
        ctl volume volume create $set 32M --label flash
        ctl volume_label status --json
        flash=$(basename $(dirname $(readlink -f /sys/fs/bcache/$set/volume*)))
        figure flash_label /sys/block/$flash/bcache/label
        ctl no_wipe unregister --wipe --yes $set
        ctl no_yes volume remove $flash
        ctl remove volume remove --yes $flash
        ctl stop_set stop $set
        ctl waiting_register register /dev/vdc
        ctl waiting status
        ctl run run vdc
        ctl forced status
        ctl resize resize vda
        ctl record status --record -
        stop_all"#;
    let run = guest(kernel, &scratch)?.script(script).run()?;
    expect(&run, "unregister", 0, &["unregistered"])?;
    let run = run.ok()?;
    expect(&run, "none", 0, &["runs no bcache set"])?;
    expect(&run, "save_none", 1, &["no bcache device is running"])?;
    expect(&run, "kept", 0, &["kept"])?;
    expect(&run, "dry", 0, &["vda: would be registered", "/dev/vda > /sys/fs/bcache/register"])?;
    expect(&run, "register", 0, &["vda: registered", "vdb: registered"])?;
    expect(&run, "again", 0, &["registered already"])?;
    expect(&run, "status", 0, &["cache vdb", "bcache0 on vda: attached-clean, writethrough"])?;
    let report = json(&run, "json")?;
    ensure!(report["sets"][0]["backing"][0]["state"] == "attached-clean", "{report}");
    expect(&run, "label", 0, &["vda: labelled"])?;
    expect(&run, "why", 0, &["\"my data\"", "streams, once they are longer than about 4 MiB"])?;
    expect(
        &run,
        "metrics",
        0,
        &[
            "node_bcache_dirty_data_bytes{uuid=",
            "bcache_backing_state{device=\"vda\",state=\"attached-clean\"} 1",
            "label=\"my data\"",
        ],
    )?;
    expect(&run, "set_dry", 0, &["1024000 > "])?;
    expect(&run, "set_many", 0, &["vda: set"])?;
    let get = said(&run, "get")?.0;
    for (name, value) in [
        ("sequential_cutoff", "0.9M"),
        ("writeback_delay", "120"),
        ("fp_term_low", "20"),
        ("fp_term_mid", "30"),
        ("writeback_metadata", "0"),
    ] {
        let line = get.lines().find(|line| line.contains(name)).context("a line")?;
        ensure!(line.split_whitespace().nth(1) == Some(value), "{name}: {get}");
    }
    expect(&run, "set_back", 0, &["vda: set"])?;
    expect(&run, "set_set", 0, &[": set"])?;
    expect(&run, "get_set", 0, &["\"fifo\"", "\"5000\"", "\"50\""])?;
    expect(&run, "set_high", 1, &["out of range: 0 to 40"])?;
    expect(&run, "set_terms", 1, &["have to ascend"])?;
    expect(&run, "set_danger", 1, &["throws away", "--dangerous"])?;
    expect(&run, "set_none", 1, &["no setting"])?;
    let dirty = json(&run, "dirty")?;
    let backing = &dirty["sets"][0]["backing"][0];
    ensure!(
        backing["state"] == "attached-dirty" && backing["clean_in"]["when"] == "never",
        "{dirty}"
    );
    let (low, high) = (&backing["dirty_bytes"]["low"], &backing["dirty_bytes"]["high"]);
    ensure!(low.as_u64() <= Some(10 << 20) && high.as_u64() >= Some(10 << 20), "{dirty}");
    ensure!(dirty["findings"][0]["code"] == "writeback-stopped", "{dirty}");

    expect(&run, "flush_dry", 0, &["would be flushed", "0 > ", "writeback_percent"])?;
    expect(&run, "flush", 0, &["\"state\": \"done\""])?;
    for (figure, value) in
        [("percent", "33"), ("delay", "30"), ("wb_running", "0"), ("state", "clean")]
    {
        ensure!(run.log.figure(figure).map(str::trim) == Some(value), "{figure} after the flush");
    }
    expect(&run, "stop", 0, &["vda: stopped", "dirty data stays on the cache"])?;
    expect(&run, "stopped", 0, &["set "])?;
    expect(&run, "back", 0, &["vda: registered, runs as bcache0"])?;
    let value = |capture: &str, name: &str| -> anyhow::Result<String> {
        let text = said(&run, capture)?.0;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(value.with_context(|| format!("{capture}: {text}"))?.to_owned())
    };
    expect(&run, "save", 0, &[])?;
    ensure!(value("forgotten", "sequential_cutoff")? == "4.0M", "a stop forgets it");
    expect(&run, "absent", 0, &["writeback_percent = 9"])?;
    expect(&run, "apply_dry", 0, &["vda: would be set", "sequential_cutoff"])?;
    expect(&run, "apply", 0, &["vda: set", ": set"])?;
    ensure!(value("applied", "sequential_cutoff")? == "0.9M");
    ensure!(value("applied", "writeback_rate_fp_term_mid")? == "30");
    ensure!(value("applied_set", "congested_write_threshold_us")? == "20000");
    expect(&run, "apply_bad", 3, &["out of range: 0 to 40"])?;
    expect(&run, "detach", 0, &["vda: detached", "is written back first"])?;
    ensure!(run.log.figure("state_detached").map(str::trim) == Some("no cache"));
    expect(&run, "attach", 0, &["vda: attached"])?;
    expect(&run, "attached", 0, &["attached already"])?;
    // Stopped and registered, detached, unregistered: what is read never changes but by our writes.
    let sums = run.log.stage("detached").context("stage")?;
    let sums = sums.md5s("/dev/bcache0:10485760");
    ensure!(sums.len() == 4 && sums[0] == sums[1] && sums[2] == sums[3], "{sums:?}");
    expect(&run, "wiped", 1, &["Not a bcache superblock"])?;
    let plain = json(&run, "plain")?;
    ensure!(plain["unattached"][0]["state"] == "plain", "{plain}");
    ensure!(plain["sets"].as_array().is_some_and(Vec::is_empty), "{plain}");

    expect(&run, "volume", 0, &["volume made, runs as bcache"])?;
    ensure!(run.log.figure("flash_label") == Some("flash"), "{:?}", run.log.figure("flash_label"));
    let volumes = json(&run, "volume_label")?;
    ensure!(volumes["sets"][0]["volumes"][0]["bytes"] == 32 << 20, "{volumes}");
    expect(&run, "no_wipe", 1, &["flash-only volumes"])?;
    expect(&run, "no_yes", 1, &["--yes"])?;
    expect(&run, "remove", 0, &["volume removed"])?;
    expect(&run, "stop_set", 0, &["stopped"])?;
    expect(&run, "waiting", 0, &["vdc waits for the cache of the set", "vdc: waiting"])?;
    expect(&run, "run", 0, &["started without its cache", "inconsistent"])?;
    expect(&run, "forced", 4, &["DANGER", "vdc was started without its cache"])?;
    expect(&run, "resize", 0, &["vda: stopped", "vda: registered"])?;
    keep(&run, "record", &format!("forced-{kernel}"))?;
    Ok(())
}

/// Keeps a tree that a guest recorded, where the environment asks for it; else nothing.
fn keep(run: &GuestRun, capture: &str, name: &str) -> anyhow::Result<()> {
    let (output, status) = said(run, capture)?;
    ensure!(status == 0 && output.contains("sys/fs/bcache/"), "{output}");
    if let Some(folder) = std::env::var_os("BCACHE_KEEP_RECORDED") {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(
            std::path::Path::new(&folder).join(name),
            format!("{}\n", output.trim_end()),
        )?;
    }
    Ok(())
}

fn refusals(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let script = r"
        ctl no_device register /dev/nonsense
        ctl no_block register /init
        register /dev/vdb
        register /dev/vda
        wait_for 10 test -b /dev/bcache0
        set=$(sets)
        echo writeback >/sys/block/vda/bcache/cache_mode
        echo 0 >/sys/block/vda/bcache/writeback_running
        pattern urandom bcache0 4
        ctl dirty_record status --record -
        ctl no_set attach vdc $set
        mkdir -p /mnt
        mke2fs -b 4096 /dev/bcache0 >/dev/null
        mount -t ext2 /dev/bcache0 /mnt
        ctl mounted stop vda
        ctl mounted_set stop $set
        ctl lazy stop --lazy vda
        capture closing_files ls -l /sys/class/block /sys/block/bcache0/ /sys/block/bcache0/slaves
        ctl closing status
        ctl closing_stop stop bcache0
        umount /mnt
        wait_for 20 test ! -e /sys/block/bcache0
        echo 1 >/sys/fs/bcache/$set/stop
        wait_for 20 test ! -e /sys/fs/bcache/$set
        wait_free /dev/vdb
        ctl wait register /dev/vda
        ctl dirty_run run vda
        ctl elsewhere register /dev/vdd
        other=$(sets)
        ctl dirty_attach attach vda $other
        ctl lose run --lose-dirty-data vda
        ctl forced_status status
        ctl cache_back register /dev/vdb
        ctl attach_forced attach vda $other
        ctl after status
        stop_all";
    let guest = guest(kernel, &scratch)?.module("ext4");
    let run = guest.script(script).run()?.ok()?;
    expect(&run, "no_device", 1, &["cannot open /dev/nonsense"])?;
    expect(&run, "no_block", 1, &["/init is no block device"])?;
    expect(&run, "no_set", 1, &["neither a registered device"])?;
    expect(&run, "mounted", 1, &["mounted at /mnt", "--lazy"])?;
    expect(&run, "mounted_set", 1, &["mounted at /mnt"])?;
    expect(&run, "lazy", 0, &["goes on until the last user closes it"])?;
    expect(&run, "closing", 0, &["bcache0 was stopped and is still open"])?;
    expect(&run, "closing_stop", 1, &["still open"])?;
    expect(&run, "wait", 0, &["vda: registered"])?;
    expect(&run, "dirty_run", 1, &["is lost", "--lose-dirty-data"])?;
    expect(&run, "elsewhere", 0, &["vdd: registered"])?;
    expect(&run, "dirty_attach", 1, &["waits for its set"])?;
    expect(&run, "lose", 0, &["started without its cache", "wipe it"])?;
    expect(&run, "forced_status", 4, &["DANGER", "drops"])?;
    expect(&run, "cache_back", 1, &["--lose-dirty-data"])?;
    expect(&run, "attach_forced", 0, &["vda: attached"])?;
    expect(&run, "after", 0, &["attached-clean"])?;
    keep(&run, "dirty_record", &format!("dirty-{kernel}"))?;
    Ok(())
}

/// What is killed in the middle of moving a device to another cache: while it is written back, while it
/// is detached. The writes of its disk take half a minute then.
const REPLACE: &str = r#"
        slow="delay /dev/vdc 0 0 /dev/vdc 0 30000"
        mapped slow /dev/vdc "linear /dev/vdc 0"
        register /dev/dm-0
        register /dev/vdd
        at=/sys/block/dm-0/bcache
        wait_for 10 test -e $at/cache
        old=$(basename $(readlink -f /sys/block/vdd/bcache/set))
        volume=$(basename $(readlink -f $at/dev))
        echo writeback >$at/cache_mode
        echo 0 >$at/sequential_cutoff
        echo 21 >$at/writeback_percent
        echo 0 >$at/writeback_running
        echo 0 >/sys/fs/bcache/$old/congested_write_threshold_us
        echo 77 >/sys/fs/bcache/$old/journal_delay_ms
        pattern urandom $volume 8
        md5 /dev/$volume 8388608
        ctl rc_dry replace-cache --dry-run /dev/vdd /dev/vde
        ctl rc_same replace-cache /dev/vdd /dev/vdd
        ctl rc_backing replace-cache /dev/vdd /dev/vda
        ctl rc_full replace-cache /dev/vdd /dev/vdf
        ctl rc_volume volume create /dev/vdb 16M
        ctl rc_flash replace-cache /dev/vdb /dev/vde
        becomes "$slow"
        replace() {
            /bin/bcachectl replace-cache $old /dev/vde >/replaced 2>&1 &
            replace=$!
        }
        replace
        wait_for 20 grep -qx 0 $at/writeback_percent
        sleep 1
        ctl rc_at_it status dm-0
        ctl rc_second replace-cache $old /dev/vde
        ctl rc_other flush dm-0
        kill -INT $replace
        status=0
        wait $replace || status=$?
        echo $status >/status
        figure rc_int /status
        figure rc_int_percent $at/writeback_percent
        capture rc_said cat /replaced
        ctl rc_left status
        replace
        wait_for 20 grep -qx 0 $at/writeback_percent
        sleep 1
        kill -KILL $replace
        wait $replace || true
        figure rc_killed_percent $at/writeback_percent
        ctl rc_killed status
        becomes "linear /dev/vdc 0"
        wait_for 60 grep -qx clean $at/state
        becomes "$slow"
        replace
        wait_for 20 grep -q '"detaches":true' /run/bcachectl/replace-cache-$old.json
        sleep 1
        kill -KILL $replace
        ctl rc_detaching status
        ctl rc_detach detach --timeout 2 --wait dm-0
        becomes "linear /dev/vdc 0"
        wait $replace || true
        wait_for 60 test ! -e $at/cache
        figure rc_put_back $at/writeback_percent
        ctl rc_bare status
        ctl rc_again replace-cache $old /dev/vde
        new=$(basename $(readlink -f /sys/block/vde/bcache/set))
        figure rc_percent $at/writeback_percent
        figure rc_running $at/writeback_running
        figure rc_journal /sys/fs/bcache/$new/journal_delay_ms
        figure rc_mode $at/cache_mode
        ctl rc_healthy status --json dm-0
        ctl rc_top top --once --interval 1
        md5 /dev/$volume 8388608
        echo 1 >$at/writeback_running
        ctl rc_no_yes replace-cache --wipe /dev/vde /dev/vdd
        ctl rc_back replace-cache --wipe --yes --json /dev/vde /dev/vdd
        ctl rc_wiped register /dev/vde
        ctl rc_end status
        md5 /dev/$volume 8388608
        ctl rc_stop stop $volume
        /bin/dmsetup remove --noudevsync slow"#;

/// A cache is registered whose disk takes minutes for each write: the kernel holds bcache's lock, and
/// whoever reads its files cannot be killed. Another table lets the writes go.
const LOCKED: &str = r#"
        ctl lk_make make --force --cache /dev/vde
        mapped slow /dev/vde "delay /dev/vde 0 0 /dev/vde 0 200000"
        echo /dev/dm-0 >/sys/fs/bcache/register &
        registering=$!
        is_locked() {
            status=0
            /bin/bcachectl status >/dev/null 2>&1 || status=$?
            test $status = 1
        }
        wait_for 60 is_locked
        quick=1
        ctl lk_status status
        ctl lk_show show /dev/vda
        ctl lk_list list
        ctl lk_top top --once --interval 1
        ctl lk_get get --timeout 1s vda
        ctl lk_save settings save --timeout 1s -
        ctl lk_set set --timeout 1s vda writeback_delay=5
        ctl lk_stop stop --timeout 1s vda
        ln -sf /bin/bcachectl /bin/bcache-status
        /bin/bcache-status >/old_name 2>&1 &
        old_name=$!
        wait_for 20 grep -q waiting /old_name
        kill -TERM $old_name
        old_name_ended=0
        wait $old_name || old_name_ended=$?
        echo $old_name_ended >/status
        figure lk_old_name /status
        /bin/bcachectl status --timeout 1h >/dev/null 2>&1 &
        status=$!
        sleep 1
        # A shell lets what runs in its background ignore SIGINT.
        kill -TERM $status
        status_ended=0
        wait $status || status_ended=$?
        echo $status_ended >/status
        figure lk_interrupted /status
        kill -0 $registering && echo locked >/status
        figure lk_still /status
        becomes "linear /dev/vde 0"
        wait $registering
        quick=
        ctl lk_after status
        capture lk_old_name_after /bin/bcache-status -s
        ctl lk_end stop /dev/dm-0
        /bin/dmsetup remove --noudevsync slow"#;

fn locked(run: &GuestRun) -> anyhow::Result<()> {
    let figure = |name: &str| run.log.figure(name).map(str::trim);
    let is = |name: &str, value: &str| -> anyhow::Result<()> {
        ensure!(figure(name) == Some(value), "{name}: {:?}\n{}", figure(name), run.tail());
        Ok(())
    };
    let silent = ["vda", "vdb", "not answer", "the kernel holds bcache's lock"];
    expect(run, "lk_status", 1, &[&silent[..], &["bcache0 on vda: does not answer"]].concat())?;
    expect(run, "lk_top", 1, &[&silent[..], &["DEVICE"]].concat())?;
    let unknown = "/dev/vda: the kernel does not say how it runs";
    expect(run, "lk_show", 1, &[unknown])?;
    expect(run, "lk_list", 1, &[unknown, "/dev/vdb"])?;
    for command in ["lk_get", "lk_save", "lk_set", "lk_stop"] {
        expect(run, command, 1, &["vda", "not answer", "the kernel holds bcache's lock"])?;
    }
    is("lk_old_name", "143")?;
    let lines = ["--- bcache ---", "Total Cache Unused", "--- Cache Device ---", "Buckets"];
    expect(run, "lk_old_name_after", 0, &lines)?;
    // It had not ended by itself, and nothing had let it go.
    is("lk_interrupted", "143")?;
    is("lk_still", "locked")?;
    expect(run, "lk_after", 0, &["bcache0 on vda: plain"])?;
    expect(run, "lk_end", 0, &["stopped"])
}

fn replaced(run: &GuestRun) -> anyhow::Result<()> {
    let figure = |name: &str| run.log.figure(name).map(str::trim);
    let is = |name: &str, value: &str| -> anyhow::Result<()> {
        ensure!(figure(name) == Some(value), "{name}: {:?}\n{}", figure(name), run.tail());
        Ok(())
    };
    let steps = [
        "vde: would be formatted",
        "vde: would be registered",
        "dm-0: would be flushed",
        "dm-0: would be detached",
        "dm-0: would be attached",
        "would be unregistered",
    ];
    expect(run, "rc_dry", 0, &steps)?;
    expect(run, "rc_same", 1, &["the cache of that set already"])?;
    expect(run, "rc_backing", 1, &["a registered backing device"])?;
    expect(run, "rc_full", 1, &["is not empty", "bcachectl make"])?;
    expect(run, "rc_volume", 0, &[])?;
    expect(run, "rc_flash", 1, &["flash-only volumes"])?;
    expect(run, "rc_at_it", 0, &["is being replaced by /dev/vde", "dm-0 is being flushed"])?;
    expect(run, "rc_second", 1, &["another bcachectl is replacing"])?;
    expect(run, "rc_other", 1, &["another bcachectl is flushing"])?;
    is("rc_int", "130")?;
    is("rc_int_percent", "21")?;
    expect(run, "rc_said", 0, &["repeat the command", "dm-0 is still dirty"])?;
    let unfinished = ["dm-0 is on the old cache still", "bcachectl replace-cache"];
    expect(run, "rc_left", 0, &unfinished)?;
    ensure!(!said(run, "rc_left")?.0.contains("was killed"), "{}", said(run, "rc_left")?.0);
    is("rc_killed_percent", "0")?;
    let killed = ["A flush of dm-0 was killed", "writeback_percent is 0 instead of 21"];
    expect(run, "rc_killed", 0, &killed)?;
    expect(run, "rc_killed", 0, &unfinished)?;
    expect(run, "rc_detaching", 0, &["dm-0: detaching", "dm-0 is on the old cache still"])?;
    expect(run, "rc_detach", 4, &["dm-0 is still attached"])?;
    // The one that was killed later had put the settings back first.
    is("rc_put_back", "21")?;
    expect(run, "rc_bare", 0, &["dm-0 has no cache", "bcachectl replace-cache"])?;
    expect(run, "rc_again", 0, &["dm-0: attached", "unregistered", "keeps its superblock"])?;
    is("rc_percent", "21")?;
    is("rc_running", "0")?;
    is("rc_journal", "77")?;
    ensure!(figure("rc_mode").is_some_and(|it| it.contains("[writeback]")), "{}", run.tail());
    let healthy = json(run, "rc_healthy")?;
    ensure!(healthy["findings"].as_array().is_some_and(Vec::is_empty), "{healthy}");
    ensure!(healthy["sets"][0]["cache"] == "vde", "{healthy}");
    expect(run, "rc_top", 0, &["vde", "attached-clean"])?;
    expect(run, "rc_no_yes", 1, &["nothing was written"])?;
    expect(run, "rc_back", 0, &["\"action\": \"attach\"", "\"state\": \"done\""])?;
    expect(run, "rc_wiped", 1, &["Not a bcache superblock"])?;
    expect(run, "rc_end", 0, &["cache vdd"])?;
    expect(run, "rc_stop", 0, &["dm-0: stopped"])
}

/// A flush that is interrupted puts its settings back, and completes when it is repeated.
fn interrupted(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let script = r#"
        register /dev/vda
        register /dev/vdb
        wait_for 10 test -e /sys/block/vda/bcache/cache
        set=$(sets)
        echo writeback >/sys/block/vda/bcache/cache_mode
        echo 0 >/sys/block/vda/bcache/sequential_cutoff
        echo 0 >/sys/fs/bcache/$set/congested_write_threshold_us
        echo 33 >/sys/block/vda/bcache/writeback_percent
        echo 17 >/sys/block/vda/bcache/writeback_delay
        # New writes keep it dirty: one goes on where the other is between two rounds.
        touch /writing
        keep_writing() {
            while [ -e /writing ]; do
                dd if=/dev/urandom of=/dev/bcache0 bs=4k count=500 seek=$1 oflag=direct 2>/dev/null
            done
        }
        keep_writing 0 & writers=$!
        keep_writing 500 & writers="$writers $!"
        wait_for 10 grep -q dirty /sys/block/vda/bcache/state
        for signal in INT TERM; do
            /bin/bcachectl flush vda >/flushed 2>&1 &
            flush=$!
            wait_for 10 grep -qx 0 /sys/block/vda/bcache/writeback_percent
            sleep 1
            kill -$signal $flush
            status=0
            wait $flush || status=$?
            echo $status >/status
            figure status_$signal /status
            figure percent_$signal /sys/block/vda/bcache/writeback_percent
            figure delay_$signal /sys/block/vda/bcache/writeback_delay
            capture said_$signal cat /flushed
        done
        ctl late flush --timeout 2 vda
        figure percent_late /sys/block/vda/bcache/writeback_percent
        rm /writing
        wait $writers
        md5 /dev/bcache0 2048000
        ctl again flush vda
        figure state /sys/block/vda/bcache/state
        figure delay /sys/block/vda/bcache/writeback_delay
        md5 /dev/bcache0 2048000
        ctl begun detach vda
        wait_for 20 test ! -e /sys/block/vda/bcache/cache"#;
    let new = scratch.sparse("new", 256 << 20)?;
    let full = scratch.sparse("full", 64 << 20)?;
    std::fs::OpenOptions::new().write(true).open(&full)?.write_at(b"something", 4096)?;
    let guest = guest(kernel, &scratch)?.disk(new).disk(full);
    let guest = guest.module("dm_mod").module("dm_delay");
    let guest = guest.binary(find_program("dmsetup").context("dmsetup")?);
    let run = guest.script(script).script(REPLACE).script(LOCKED).script("stop_all").run()?.ok()?;
    replaced(&run)?;
    locked(&run)?;
    let figure = |name: &str| run.log.figure(name).map(str::trim);
    for signal in ["INT", "TERM"] {
        ensure!(figure(&format!("status_{signal}")) == Some("130"), "{signal}\n{}", run.tail());
        ensure!(figure(&format!("percent_{signal}")) == Some("33"), "{signal}\n{}", run.tail());
        ensure!(figure(&format!("delay_{signal}")) == Some("17"), "{signal}\n{}", run.tail());
        expect(&run, &format!("said_{signal}"), 0, &["interrupted", "vda is still dirty"])?;
    }
    expect(&run, "late", 4, &["not done after"])?;
    ensure!(figure("percent_late") == Some("33"), "{}", run.tail());
    expect(&run, "again", 0, &["vda: clean"])?;
    expect(&run, "begun", 0, &["vda: is being detached"])?;
    ensure!(figure("state") == Some("clean") && figure("delay") == Some("17"), "{}", run.tail());
    let sums = run.log.md5s("/dev/bcache0:2048000");
    ensure!(sums.len() == 2 && sums[0] == sums[1], "{sums:?}");
    let sums = run.log.md5s("/dev/bcache1:8388608");
    ensure!(sums.len() == 3 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    Ok(())
}
