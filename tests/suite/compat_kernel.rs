//! The udev rules and make-bcache under stock kernels, with Debian's real udevd. Devices are
//! registered as they appear, volumes have their links after any event, and make-bcache returns when
//! all that is done.

#[path = "compat_kernel/programs.rs"]
mod programs;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_tests::need::find_program;
use bcache_tests::tool::{make, text};
use bcache_tests::{
    Guest, GuestRun, Kernel, Need, Scratch, binary, cache_dir, main_with, trial, workspace_root,
};
use libtest_mimic::Trial;

fn main() -> ExitCode {
    let mut trials: Vec<Trial> = Vec::new();
    for kernel in Kernel::ALL {
        let needs = &[Need::Guest, Need::Program("dmsetup", "dmsetup")];
        trials.push(trial(format!("udev_{kernel}"), needs, move || udev(kernel)));
    }
    main_with(trials)
}

const MIB: u64 = 1 << 20;

/// vda backing and vdb cache of one set, made before; vdc to vdf blank.
const SCRIPT: &str = r#"
    mkdir -p /run/udev /usr/lib/udev /usr/lib/systemd
    for name in probe-bcache bcache-register bcache-export-cached; do
        ln -s /bin/bcachectl /usr/lib/udev/$name
    done
    ln -s /bin/bcachectl /bin/make-bcache
    ln -s /bin/bcachectl /bin/bcache-super-show
    ln -s /bin/bcachectl /bin/bcache
    ln -s /bin/udevadm /usr/lib/systemd/systemd-udevd
    /usr/lib/systemd/systemd-udevd --daemon
    settle() { udevadm settle --timeout=60; }
    # The links of a folder, one a line with where it leads.
    links() {
        for link in "$1"/*; do
            [ ! -L "$link" ] || echo "${link##*/} $(basename "$(readlink "$link")")"
        done
    }
    volume_links() {
        for folder in by-uuid by-label by-volume; do
            capture "$1 $folder" links /dev/bcache/$folder
        done
    }

    stage cold
    udevadm trigger --action=add --subsystem-match=block
    settle
    wait_for 30 test -b /dev/bcache0
    wait_for 30 test -d /sys/block/vda/bcache/cache
    settle
    volume_links cold
    figure cutoff /sys/block/vda/bcache/sequential_cutoff
    figure threshold /sys/fs/bcache/$(sets)/congested_read_threshold_us
    capture disks links /dev/disk/by-uuid

    stage events
    for action in add change; do
        udevadm trigger --action=$action /dev/bcache0
        settle
        volume_links $action
    done
    # Devices that are registered are not registered again, by rule or by hand.
    udevadm trigger --action=add /dev/vda /dev/vdb
    udevadm trigger --action=change /dev/vda /dev/vdb
    settle
    capture again /usr/lib/udev/bcache-register /dev/vda
    capture again-cache /usr/lib/udev/bcache-register /dev/vdb
    capture nothing /usr/lib/udev/bcache-register /dev/vdf

    stage label
    echo new name >/sys/block/vda/bcache/label
    settle
    volume_links label
    echo ../../vda >/sys/block/vda/bcache/label
    settle
    volume_links slash

    stage flash
    echo 16M >/sys/fs/bcache/$(sets)/flash_vol_create
    wait_for 30 test -b /dev/bcache1
    settle
    volume_links flash
    printf scratch >/sys/block/bcache1/bcache/label
    udevadm trigger --action=change /dev/bcache1
    settle
    volume_links labelled

    @exporter@

    stage make
    capture make make-bcache -B /dev/vdd -C /dev/vdc --writeback
    # No waiting here: make-bcache has done it.
    capture made sh -c 'test -d /sys/block/vdc/bcache/set && test -d /sys/block/vdd/bcache/cache'
    capture made-disks links /dev/disk/by-uuid
    capture busy make-bcache --wipe-bcache -C /dev/vdc
    capture shown bcache-super-show /dev/vdd

    stage bcache
    capture show bcache show
    capture tree bcache tree
    capture bcache-detach bcache detach /dev/vdd
    wait_for 30 test ! -e /sys/block/vdd/bcache/cache
    capture bcache-detached bcache show
    capture bcache-attach bcache attach /dev/vdc /dev/vdd
    capture bcache-attached bcache show
    capture bcache-mode bcache set-cachemode /dev/vdd writearound
    capture bcache-no-mode bcache set-cachemode /dev/vdd nonsense
    capture bcache-label bcache set-label /dev/vdd named
    figure mode /sys/block/vdd/bcache/cache_mode
    figure label /sys/block/vdd/bcache/label
    capture bcache-register bcache register /dev/vdd
    capture bcache-unregister bcache unregister /dev/vdd
    capture bcache-unknown bcache nonsense

    stage held
    # Under a device-mapper device, which udev hears of as the superblock comes to be.
    dmsetup --noudevsync --noudevrules create over --table "0 65536 linear /dev/vde 0"
    node=/dev/$(basename /sys/block/vde/holders/dm-*)
    capture make-held make-bcache -B $node
    udevadm trigger --action=change /dev/vde
    settle
    capture held test -e /sys/block/vde/bcache
    # Without the rules of device-mapper udev does not look into its devices.
    capture held-over sh -c "/usr/lib/udev/bcache-register $node && test -d /sys/block/${node#/dev/}/bcache"
"#;

/// Debian's udev, unpacked.
fn udev_folder() -> anyhow::Result<PathBuf> {
    let script = workspace_root().join("tests/fetch-udev.sh");
    let output = Command::new(script).output().context("run fetch-udev.sh")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fetching udev failed: {error}");
    Ok(cache_dir().join("udev"))
}

/// A file that is in one place or, on a release where /usr is merged, in the other.
fn either(folder: &Path, names: [&str; 2]) -> anyhow::Result<PathBuf> {
    let mut places = names.iter().map(|name| folder.join(name));
    places.find(|path| path.exists()).with_context(|| format!("no {names:?} in the udev package"))
}

fn udev(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let (backing, cache) = (scratch.sparse("vda", 64 * MIB)?, scratch.sparse("vdb", 300 * MIB)?);
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let made = make(["-l", "my data", "-C", &path(&cache), "-B", &path(&backing)])?;
    let (cache_sb, backing_sb) = (&made[0], &made[1]);
    let [cache_uuid, backing_uuid] =
        [text(cache_sb, "/superblock/uuid")?, text(backing_sb, "/superblock/uuid")?];
    let set = text(cache_sb, "/superblock/set_uuid")?;

    let folder = udev_folder()?;
    let rules_folder = either(&folder, ["lib/udev/rules.d", "usr/lib/udev/rules.d"])?;
    let rules = std::fs::read_to_string(workspace_root().join("packaging/69-bcache.rules"))?
        .replace("@udevdir@", "/usr/lib/udev")
        .replace("@prefix@/sbin", "/bin");
    let settings = format!(
        "version = 1\n[backing.\"{backing_uuid}\"]\nsequential_cutoff = \"16M\"\n\
         [set.\"{set}\"]\ncongested_read_threshold_us = 7000\n"
    );
    let mut guest = Guest::new(kernel)
        .disk(&backing)
        .disk(&cache)
        .module("dm_mod")
        .binary(binary("bcachectl")?)
        .binary(either(&folder, ["bin/udevadm", "usr/bin/udevadm"])?)
        .binary(find_program("dmsetup").context("dmsetup")?)
        .file("/usr/lib/udev/rules.d/69-bcache.rules", rules)
        .file("/etc/bcachectl.toml", settings)
        .timeout(Duration::from_secs(400))
        .script(SCRIPT.replace("@exporter@", programs::EXPORTER))
        .script(programs::KBD);
    guest = programs::add(guest, &scratch)?;
    for name in ["50-udev-default.rules", "60-block.rules", "60-persistent-storage.rules"] {
        let bytes = std::fs::read(rules_folder.join(name)).with_context(|| name.to_owned())?;
        guest = guest.file(format!("/usr/lib/udev/rules.d/{name}"), bytes);
    }
    for (name, size) in
        [("vdc", 300), ("vdd", 64), ("vde", 64), ("vdf", 8), ("vdg", 64), ("vdh", 300)]
    {
        guest = guest.disk(scratch.sparse(name, size * MIB)?);
    }
    let run = guest.run()?.ok()?;

    // The rules have set what the file says.
    let figure = |name: &str| run.log.figure(name).map(str::trim);
    ensure!(figure("cutoff") == Some("16.0M"), "{:?}\n{}", figure("cutoff"), run.tail());
    ensure!(figure("threshold") == Some("7000"), "{:?}\n{}", figure("threshold"), run.tail());

    // Cold plug, and what any event leaves.
    for when in ["cold", "add", "change"] {
        same(&run, &format!("{when} by-uuid"), &[(backing_uuid, "bcache0")])?;
        same(&run, &format!("{when} by-label"), &[("my_data", "bcache0")])?;
    }
    let disks = captured(&run, "disks")?;
    for line in [format!("{backing_uuid} vda"), format!("{cache_uuid} vdb")] {
        ensure!(disks.lines().any(|it| it == line), "no {line} in {disks}");
    }
    let events = run.log.stage("events").context("a stage")?;
    let again = events.kernel_lines().filter(|it| it.contains("register_bcache() error")).count();
    // Of the device without a superblock alone.
    ensure!(again == 1, "{again} errors of registration\n{}", run.tail());
    status(&run, "again", 0)?;
    status(&run, "again-cache", 0)?;
    status(&run, "nothing", 1)?;
    ensure!(
        captured(&run, "nothing")?.starts_with("Error registering /dev/vdf with bcache: "),
        "{}",
        run.tail()
    );

    same(&run, "label by-label", &[("new_name", "bcache0")])?;
    same(&run, "slash by-label", &[])?;
    same(&run, "slash by-uuid", &[(backing_uuid, "bcache0")])?;

    let volume = format!("{set}-1");
    for when in ["flash", "labelled"] {
        let lines = captured(&run, &format!("{when} by-volume"))?;
        // The slot is the kernel's to choose.
        let mut words = lines.split_whitespace();
        let name = words.next().unwrap_or_default();
        ensure!(name.starts_with(&format!("{set}-")), "{lines}: no {volume}\n{}", run.tail());
        ensure!(words.next() == Some("bcache1"), "{lines}");
    }
    same(&run, "labelled by-label", &[("scratch", "bcache1")])?;

    programs::exporter(&run)?;
    status(&run, "make", 0)?;
    status(&run, "made", 0)?;
    let printed = captured(&run, "make")?;
    let uuids: Vec<&str> =
        printed.lines().filter_map(|it| it.strip_prefix("UUID:")).map(str::trim).collect();
    ensure!(uuids.len() == 2, "{printed}");
    let disks = captured(&run, "made-disks")?;
    for (uuid, disk) in uuids.iter().zip(["vdc", "vdd"]) {
        ensure!(disks.lines().any(|it| it == format!("{uuid} {disk}")), "{disks}");
    }
    status(&run, "busy", 1)?;
    let busy = captured(&run, "busy")?;
    ensure!(busy.starts_with("Can't open dev /dev/vdc: Device or resource busy\n"), "{busy}");
    // Of a device in use, what the kernel wrote: attached, and not what make-bcache wrote.
    let shown = captured(&run, "shown")?;
    ensure!(shown.contains("dev.data.cache_state\t1 [clean]"), "{shown}");

    let show = captured(&run, "show")?;
    ensure!(show.starts_with("Name\t\tType\t\tState\t\t\tBname\t\tAttachToDev\n"), "{show}");
    for line in [
        "/dev/vda\t1 (data)\tclean(running)  \tbcache0         \t/dev/vdb",
        "/dev/vdb\t3 (cache)\tactive          \tN/A             \tN/A",
    ] {
        ensure!(show.lines().any(|it| it == line), "no {line:?} in {show}");
    }
    let tree = captured(&run, "tree")?;
    ensure!(tree.starts_with(".\n/dev/vdb\n└─/dev/vda bcache0\n"), "{tree}");
    let alone = |name: &str| -> anyhow::Result<bool> {
        let show = captured(&run, name)?;
        let line = show.lines().find(|line| line.starts_with("/dev/vdd\t"));
        Ok(line.with_context(|| show.to_owned())?.ends_with("\tAlone"))
    };
    ensure!(alone("bcache-detached")? && !alone("bcache-attached")?, "{}", run.tail());
    for (name, expected) in [
        ("show", 0),
        ("tree", 0),
        ("bcache-detach", 0),
        ("bcache-attach", 0),
        ("bcache-mode", 0),
        ("bcache-no-mode", 1),
        ("bcache-label", 0),
        ("bcache-register", 0),
        ("bcache-unregister", 0),
        ("bcache-unknown", 0),
    ] {
        status(&run, name, expected)?;
    }
    let figure = |name: &str| run.log.figure(name).map(str::trim);
    ensure!(figure("mode") == Some("writethrough writeback [writearound] none"));
    ensure!(figure("label") == Some("named"));

    status(&run, "make-held", 0)?;
    status(&run, "held-over", 0)?;
    status(&run, "held", 1)?;
    programs::kbd(&run)
}

fn captured<'a>(run: &'a GuestRun, name: &str) -> anyhow::Result<&'a str> {
    let capture = run.log.capture(name).with_context(|| format!("no {name}\n{}", run.tail()))?;
    Ok(&capture.output)
}

fn status(run: &GuestRun, name: &str, expected: i32) -> anyhow::Result<()> {
    let capture = run.log.capture(name).with_context(|| format!("no {name}\n{}", run.tail()))?;
    ensure!(capture.status == Some(expected), "{name}: {capture:?}\n{}", run.tail());
    Ok(())
}

/// The links that were captured, as name and target.
fn same(run: &GuestRun, name: &str, expected: &[(&str, &str)]) -> anyhow::Result<()> {
    let lines = captured(run, name)?;
    let links: Vec<(&str, &str)> = lines.lines().filter_map(|it| it.split_once(' ')).collect();
    ensure!(links == expected, "{name}: {links:?}, expected {expected:?}\n{}", run.tail());
    Ok(())
}
