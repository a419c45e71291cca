//! The three states in which the kernel itself returns wrong data without a word (docs/running.md §6):
//! it is left alone with each, and does; then the command is asked. It refuses the step that leads
//! there, says what has happened, and its way out gives the right data.

use anyhow::{Context as _, ensure};
use bcache_tests::need::find_program;
use bcache_tests::tool::make;
use bcache_tests::{Guest, GuestRun, Kernel, Scratch};

use super::{expect, guest, keep};

/// Beside the pairs of [`guest`], a cache alone on vde, and a pair on vdf and vdg.
fn six_devices(kernel: Kernel, scratch: &Scratch) -> anyhow::Result<Guest> {
    let path = |path: &std::path::Path| path.to_str().map(str::to_owned).context("UTF-8");
    let other = scratch.sparse("other", 128 << 20)?;
    let backing = scratch.sparse("back2", 64 << 20)?;
    let cache = scratch.sparse("cache2", 128 << 20)?;
    make(["--bucket", "128k", "--cache", &path(&other)?])?;
    make(["--bucket", "128k", "--cache", &path(&cache)?, "--bdev", &path(&backing)?])?;
    let guest = guest(kernel, scratch)?.disk(other).disk(backing).disk(cache);
    Ok(guest.module("dm_mod").binary(find_program("dmsetup").context("dmsetup")?))
}

const COMMON: &str = r"
        for name in bcache bcache-register; do
            ln -s /bin/bcachectl /bin/$name
        done
        set_of() { basename $(readlink -f /sys/block/$1/bcache/set); }
        volume_of() { basename $(readlink -f /sys/block/$1/bcache/dev); }
        # all_cached BACKING CACHE: nothing goes past the cache.
        all_cached() {
            wait_for 10 test -e /sys/block/$1/bcache/cache
            echo 0 >/sys/block/$1/bcache/sequential_cutoff
            echo 0 >/sys/fs/bcache/$(set_of $2)/congested_read_threshold_us
            echo 0 >/sys/fs/bcache/$(set_of $2)/congested_write_threshold_us
        }
        # held_back BACKING: what is written to it from now on stays dirty.
        held_back() {
            echo writeback >/sys/block/$1/bcache/cache_mode
            echo 0 >/sys/block/$1/bcache/writeback_running
        }
        # sum NAME BACKING: of what is read.
        sum() {
            ln -sf /dev/$(volume_of $2) /dev/$1
            md5 /dev/$1 4194304
        }
        # put_away BACKING CACHE
        put_away() {
            put_set=$(set_of $2)
            if [ -e /sys/block/$1/bcache/state ]; then
                echo 1 >/sys/block/$1/bcache/stop
                wait_for 20 test ! -e /sys/block/$1/bcache
            fi
            echo 1 >/sys/fs/bcache/$put_set/stop
            wait_for 20 test ! -e /sys/fs/bcache/$put_set
            wait_free /dev/$1
            wait_free /dev/$2
        }";

/// The cache fails while it is clean, its backing device goes on, and the cache could come back.
const LOST: &str = r#"
        mapped cache /dev/vdb "linear /dev/vdb 0"
        register /dev/dm-0
        register /dev/vda
        all_cached vda dm-0
        set=$(sets)
        pattern urandom bcache0 4
        sum lost vda
        becomes error
        given_up() {
            dd if=/dev/bcache0 of=/dev/null bs=4k count=200 iflag=direct || true
            dd if=/dev/zero of=/dev/bcache0 bs=4k count=1 seek=5000 oflag=direct || true
            test ! -e /sys/block/vda/bcache/cache
        }
        wait_for 60 given_up
        wait_for 30 test ! -e /sys/fs/bcache/$set
        pattern urandom bcache0 4
        sum lost vda
        becomes "linear /dev/vdb 0"
        wait_for 30 /bin/dmsetup info cache"#;

const LOST_BY_HAND: &str = r"
        register /dev/dm-0
        wait_for 10 test -e /sys/block/vda/bcache/cache
        sum lost vda";

const LOST_LED_OUT: &str = r"
        ctl lost status
        ctl lost_record status --record -
        ctl refused register /dev/dm-0
        capture udev_refused /bin/bcache-register /dev/dm-0
        register /dev/vdd
        ctl attach_refused attach vda /dev/vdd
        put_away vdd vdd
        ctl stop_dry stop --dry-run vda
        ctl run run vda
        # As udev does once the cache is back.
        capture returns /bin/bcache-register /dev/dm-0
        wait_for 10 test -e /sys/block/vda/bcache/cache
        sum lost vda
        ctl healthy status";

/// `moved NAME`: vdc belongs to the set on vde, waits for it, and the set on vdd has a slot of it from
/// before, with other contents. `moved_mode` is run while these are written.
const MOVED: &str = r"
        moved() {
            register /dev/vdd
            register /dev/vdc
            all_cached vdc vdd
            $moved_mode vdc
            pattern urandom $(volume_of vdc) 4
            sum $1 vdc
            put_away vdc vdd
            register /dev/vdc
            echo 1 >/sys/block/vdc/bcache/running
            wait_for 10 test -e /sys/block/vdc/bcache/dev
            pattern urandom $(volume_of vdc) 4
            sum $1 vdc
            register /dev/vde
            attach vdc $(set_of vde)
            wait_for 10 test -e /sys/block/vdc/bcache/cache
            put_away vdc vde
            register /dev/vdc
            register /dev/vdd
            old=$(set_of vdd)
        }
        attach_by_hand() {
            attach vdc $old
            wait_for 10 test -e /sys/block/vdc/bcache/cache
        }";

const MOVED_BY_HAND: &str = r"
        moved_mode=true
        moved moved
        attach_by_hand
        sum moved vdc
        ctl moved status
        ctl moved_detach detach --wait vdc
        sum moved vdc
        ctl moved_after status
        register /dev/vde
        ctl moved_attach attach vdc /dev/vde
        sum moved vdc
        # The same with dirty data of the earlier time: to detach is wrong then.
        put_away vdc vde
        put_away vdc vdd
        register /dev/vde
        register /dev/vdc
        wait_for 10 test -e /sys/block/vdc/bcache/cache
        ctl moved_again detach --wait vdc
        put_away vdc vde
        register /dev/vdc
        register /dev/vdd
        attach vdc $(set_of vdd)
        wait_for 10 test -e /sys/block/vdc/bcache/cache
        put_away vdc vdd
        moved_mode=held_back
        moved detached
        attach_by_hand
        echo 1 >/sys/block/vdc/bcache/detach
        wait_for 20 test ! -e /sys/block/vdc/bcache/cache
        sum detached vdc";

const MOVED_LED_OUT: &str = r"
        moved_mode=held_back
        moved moved
        ctl moved_refused attach vdc $old
        capture moved_old_name /bin/bcache attach $old /dev/vdc
        attach_by_hand
        sum moved vdc
        ctl moved status
        ctl moved_stop stop vdc
        ctl moved_register register /dev/vdc
        ctl moved_run run vdc
        sum moved vdc
        # What that set had of it is dropped now.
        ctl moved_attach attach vdc $old
        sum moved vdc
        ctl moved_after status";

/// vdf is dirty on vdg, is stopped, and waits without it.
const FORCED: &str = r"
        dirty_without_cache() {
            register /dev/vdg
            register /dev/vdf
            $forced_attach
            all_cached vdf vdg
            held_back vdf
            pattern urandom $(volume_of vdf) 4
            sum forced vdf
            put_away vdf vdg
            register /dev/vdf
        }
        forced_attach=";

const FORCED_BY_HAND: &str = r"
        dirty_without_cache
        echo 1 >/sys/block/vdf/bcache/running
        wait_for 10 test -e /sys/block/vdf/bcache/dev
        register /dev/vdg
        wait_for 10 test -e /sys/block/vdf/bcache/cache
        figure forced_state /sys/block/vdf/bcache/state
        sum forced vdf";

const FORCED_LED_OUT: &str = r#"
        dirty_without_cache
        ctl forced_refused run vdf
        ctl forced_run run --lose-dirty-data vdf
        ctl forced status
        ctl forced_back register /dev/vdg
        capture forced_udev /bin/bcache-register /dev/vdg
        # The other order, as it may be at a boot.
        ctl forced_stop stop vdf
        register /dev/vdg
        ctl forced_joins register /dev/vdf
        capture forced_udev_joins /bin/bcache-register /dev/vdf
        # The dirty data counts more.
        ctl forced_stop_set stop $(set_of vdg)
        ctl forced_check check /dev/vdg /dev/vdf
        ctl forced_writeback writeback --yes --detach --ran-alone --volume 0 /dev/vdg /dev/vdf
        ctl forced_register register /dev/vdf
        sum forced vdf
        # What the device holds counts more.
        echo 1 >/sys/block/vdf/bcache/stop
        wait_free /dev/vdf
        forced_attach="ctl forced_attach attach vdf /dev/vdg"
        dirty_without_cache
        ctl forced_run_again run --lose-dirty-data vdf
        pattern urandom $(volume_of vdf) 4
        sum forced vdf
        ctl forced_returns register --lose-dirty-data /dev/vdg
        wait_for 10 test -e /sys/block/vdf/bcache/cache
        sum forced vdf
        ctl forced_after status"#;

pub(crate) fn silent(kernel: Kernel) -> anyhow::Result<()> {
    let run = |scripts: [&str; 6]| {
        let scratch = Scratch::new()?;
        let guest = six_devices(kernel, &scratch)?.script(COMMON);
        scripts.iter().fold(guest, |guest, script| guest.script(*script)).run()?.ok()
    };
    let alone = run([LOST, LOST_BY_HAND, MOVED, MOVED_BY_HAND, FORCED, FORCED_BY_HAND])?;
    returns_wrong_data(&alone)?;
    let led_out = run([LOST, LOST_LED_OUT, MOVED, MOVED_LED_OUT, FORCED, FORCED_LED_OUT])?;
    lost_led_out(&led_out)?;
    moved_led_out(&led_out)?;
    forced_led_out(&led_out)?;
    keep(&led_out, "lost_record", &format!("cache-lost-{kernel}"))
}

/// The sums that were read under a name, in their order.
fn sums<const N: usize>(run: &GuestRun, name: &str) -> anyhow::Result<[String; N]> {
    let sums = run.log.md5s(&format!("/dev/{name}:4194304"));
    let sums: Vec<String> = sums.into_iter().map(str::to_owned).collect();
    sums.try_into().map_err(|sums| anyhow::anyhow!("{name}: {sums:?}\n{}", run.tail()))
}

/// The kernel alone, and what the command says of it afterwards where there is something to see.
fn returns_wrong_data(run: &GuestRun) -> anyhow::Result<()> {
    let [old, new, read] = sums(run, "lost")?;
    // Not all of the old contents need be on the cache still.
    ensure!(old != new && read != new, "the kernel alone gets it right: {old} {new} {read}");

    let [old, new, read, detached, attached] = sums(run, "moved")?;
    ensure!(old != new && read != new, "the kernel alone gets it right: {old} {new} {read}");
    let way_out = ["DANGER", "vdc is attached to the set", "detach --wait vdc"];
    expect(run, "moved", 4, &way_out)?;
    expect(run, "moved_detach", 0, &[])?;
    ensure!(detached == new && attached == new, "{new} {detached} {attached}");
    expect(run, "moved_after", 0, &[])?;
    expect(run, "moved_attach", 0, &["vdc: attached"])?;
    expect(run, "moved_again", 0, &[])?;
    // That detach is no way out where the other set has dirty data of before.
    let [old, new, read] = sums(run, "detached")?;
    ensure!(old != new && read != new, "the kernel wrote nothing old back: {old} {new} {read}");

    let [dirty, read] = sums(run, "forced")?;
    ensure!(dirty != read, "the kernel has kept the dirty data");
    ensure!(run.log.figure("forced_state").map(str::trim) == Some("clean"), "{}", run.tail());
    Ok(())
}

fn lost_led_out(run: &GuestRun) -> anyhow::Result<()> {
    let [old, new, read] = sums(run, "lost")?;
    ensure!(old != new && read == new, "with the advice followed: {old} {new} {read}");
    expect(run, "lost", 4, &["DANGER", "runs without a cache", "bcachectl run vda"])?;
    expect(run, "refused", 1, &["old contents", "bcachectl run vda"])?;
    let udev = ["Error registering /dev/dm-0", "old contents", "bcachectl register /dev/dm-0"];
    expect(run, "udev_refused", 1, &udev)?;
    expect(run, "attach_refused", 1, &["its cache failed", "bcachectl run vda"])?;
    expect(run, "stop_dry", 0, &["also at the next boot"])?;
    expect(run, "run", 0, &["vda: stopped", "vda: registered", "vda: started without its cache"])?;
    expect(run, "returns", 0, &[])?;
    expect(run, "healthy", 0, &["bcache0 on vda: attached-clean"])
}

fn moved_led_out(run: &GuestRun) -> anyhow::Result<()> {
    let [old, new, read, alone, attached] = sums(run, "moved")?;
    ensure!(old != new && read != new, "the kernel alone gets it right: {old} {new} {read}");
    expect(run, "moved_refused", 1, &["waits for its set"])?;
    expect(run, "moved_old_name", 1, &["wrong data could be read"])?;
    let way_out = ["DANGER", "vdc is attached to the set", "do not detach it", "run vdc"];
    expect(run, "moved", 4, &way_out)?;
    for command in ["moved_stop", "moved_register", "moved_run", "moved_attach", "moved_after"] {
        expect(run, command, 0, &[])?;
    }
    ensure!(alone == new && attached == new, "{new} {alone} {attached}");
    Ok(())
}

fn forced_led_out(run: &GuestRun) -> anyhow::Result<()> {
    let [dirty, saved, given_up, kept, read] = sums(run, "forced")?;
    ensure!(dirty == saved, "the dirty data counted: {dirty} {saved}");
    ensure!(kept == read && kept != given_up, "the device counted: {given_up} {kept} {read}");
    expect(run, "forced_refused", 1, &["is lost", "--lose-dirty-data"])?;
    expect(run, "forced_run", 0, &["started without its cache"])?;
    expect(run, "forced", 4, &["DANGER", "vdf was started without its cache", "check"])?;
    let drops = ["of it that is nowhere else", "4 MiB"];
    for refused in ["forced_back", "forced_udev", "forced_udev_joins"] {
        expect(run, refused, 1, &drops)?;
    }
    expect(run, "forced_joins", 1, &["was started without its cache"])?;
    expect(run, "forced_check", 4, &["--ran-alone --volume 0"])?;
    for command in ["forced_writeback", "forced_attach", "forced_returns", "forced_after"] {
        expect(run, command, 0, &[])?;
    }
    Ok(())
}
