//! Programs that others wrote, unchanged, with our commands in the place of bcache-tools:
//! libblockdev's kbd plugin, by which udisks makes and changes bcache devices, and Prometheus'
//! `node_exporter`, whose figures are compared with those of `bcachectl status --prometheus`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use bcache_tests::{Guest, GuestRun, Scratch, cache_dir, workspace_root};

use super::{captured, status};

/// Where the libraries are in the guest.
const LIBRARIES: &str = "/opt/programs/lib";

/// Dirty data of vda while the figures are compared.
const DIRTY_BYTES: f64 = 6.25 * 1024.0 * 1024.0;

/// While vda is attached to vdb.
pub(crate) const EXPORTER: &str = "
    stage exporter
    echo writeback >/sys/block/vda/bcache/cache_mode
    echo 0 >/sys/block/vda/bcache/writeback_running
    echo 0 >/sys/block/vda/bcache/sequential_cutoff
    for kind in read write; do
        echo 0 >/sys/fs/bcache/$(sets)/congested_${kind}_threshold_us
    done
    dd if=/dev/urandom of=/dev/bcache0 bs=64k count=100 oflag=direct 2>/dev/null
    dd if=/dev/bcache0 of=/dev/null bs=4k count=50 iflag=direct 2>/dev/null
    ifconfig lo 127.0.0.1 up
    /bin/prometheus-node-exporter --web.listen-address=127.0.0.1:9100 \\
        --collector.disable-defaults --collector.bcache >/exporter-log 2>&1 &
    exporter=$!
    wait_for 60 wget -q -O /first http://127.0.0.1:9100/metrics
    capture ours-before bcachectl status --prometheus --timeout 60
    capture theirs wget -q -O - http://127.0.0.1:9100/metrics
    capture ours bcachectl status --prometheus --timeout 60
    kill $exporter
    echo 0 >/sys/block/vda/bcache/writeback_delay
    echo 0 >/sys/block/vda/bcache/writeback_percent
    echo 1 >/sys/block/vda/bcache/writeback_running
    echo writethrough >/sys/block/vda/bcache/cache_mode
    wait_for 60 grep -qx clean /sys/block/vda/bcache/state";

/// On vdg and vdh, which are blank.
pub(crate) const KBD: &str = "
    stage kbd
    # For system(3).
    [ -e /bin/sh ] || ln -s /bin/busybox /bin/sh
    cat >/between <<'END'
        cat /sys/block/vdg/bcache/state /sys/block/vdg/bcache/cache_mode
        # The kernel says \"no cache\" before it writes the superblock and removes the link.
        tries=0
        while [ -e /sys/block/vdg/bcache/cache ]; do
            tries=$((tries + 1))
            [ $tries -lt 300 ] || { echo 'still linked to its cache after 30 s'; exit 1; }
            sleep 0.1
        done
END
    cat >/kbd-run <<'END'
        set -o pipefail
        /bin/kbd /dev/vdg /dev/vdh 'sh -e /between' | tee /kbd-said
END
    taken_apart() {
        wait_for 30 test ! -e /sys/block/vdg/bcache
        wait_for 30 test ! -e /sys/block/vdh/bcache
    }
    for try in 1 2 3 4 5 6 7 8; do
        capture kbd-$try sh /kbd-run
        kbd_status=$capture_status
        settle
        # Stopped before the plugin could say so is what it wanted.
        if [ $kbd_status = 0 ] || grep -q '^destroy failed: Failed to stop the bcache: ' /kbd-said; then
            taken_apart
            break
        fi
        for file in vdg/bcache/stop vdh/bcache/set/stop; do
            [ ! -e /sys/block/$file ] || echo 1 >/sys/block/$file || true
        done
        taken_apart
        for disk in vdg vdh; do
            wait_free /dev/$disk
            dd if=/dev/zero of=/dev/$disk bs=64k count=1 oflag=direct 2>/dev/null
        done
        settle
    done";

/// Adds the programs and what they need to a guest.
pub(crate) fn add(guest: Guest, scratch: &Scratch) -> anyhow::Result<Guest> {
    let script = workspace_root().join("tests/fetch-programs.sh");
    let output = Command::new(script).output().context("run fetch-programs.sh")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fetching the programs failed: {error}");
    let folder = cache_dir().join("programs");

    // The path for libraries of this program alone, and not of make-bcache, which it runs.
    let kbd = scratch.path("kbd");
    let built = Command::new("gcc")
        .arg(workspace_root().join("tests/suite/compat_kernel/kbd.c"))
        .args(["-Wall", "-Werror", "-ldl", "-Wl,--disable-new-dtags"])
        .arg(format!("-Wl,-rpath,{LIBRARIES}"))
        .arg("-o")
        .arg(&kbd)
        .output()
        .context("run gcc")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let mut guest = guest.binary(kbd).binary(folder.join("bin/prometheus-node-exporter"));
    for library in libraries(&folder.join("lib"))? {
        let name = library.file_name().context("a name")?.to_string_lossy();
        let inside = if library.starts_with(&folder) {
            format!("{LIBRARIES}/{name}")
        } else {
            library.to_string_lossy().into_owned()
        };
        guest = guest.file(inside, std::fs::read(&library)?);
    }
    Ok(guest)
}

/// The libraries that the plugin needs and itself, those of `folder` before those of this machine.
fn libraries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let plugin = folder.join("libbd_kbd.so.2");
    let output = Command::new("ldd").arg(&plugin).env("LD_LIBRARY_PATH", folder).output();
    let output = output.context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !text.contains("not found"), "{text}");
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|it| it.contains('/')));
    // The loader and the C library are those of the guest's other programs.
    Ok(words.map(PathBuf::from).chain([plugin]).collect())
}

/// Samples by name and sorted labels.
type Samples = BTreeMap<String, f64>;

fn samples(text: &str) -> anyhow::Result<Samples> {
    let lines = text.lines().filter(|line| line.starts_with("node_bcache_"));
    let of = |line: &str| {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.split_once("} ")?;
        let mut labels: Vec<&str> = labels.split(',').collect();
        labels.sort_unstable();
        Some((format!("{name}{{{}}}", labels.join(",")), value.parse().ok()?))
    };
    lines.map(|line| of(line).with_context(|| line.to_owned())).collect()
}

/// Names of `node_exporter` that ours does not have: one is in bytes and says sectors, one takes
/// microseconds for nanoseconds, and one is of kernels before 5.13.
const THEIRS_ALONE: [&str; 3] = [
    "node_bcache_average_key_size_sectors",
    "node_bcache_btree_read_average_duration_seconds",
    "node_bcache_cache_readaheads_total",
];

/// What the kernel rounds: `node_exporter` takes the digit after the point for another fraction.
const ROUNDED: [&str; 6] = ["_bytes", "_bytes_total", "_congested", "_rate", "_change", "_term"];

pub(crate) fn exporter(run: &GuestRun) -> anyhow::Result<()> {
    for capture in ["ours-before", "theirs", "ours"] {
        status(run, capture, 0)?;
    }
    let theirs = captured(run, "theirs")?;
    ensure!(theirs.contains("node_scrape_collector_success{collector=\"bcache\"} 1"), "{theirs}");
    let theirs = samples(theirs)?;
    // The kernel adds to its counts every 13 seconds, maybe between the two.
    let (before, after) =
        (samples(captured(run, "ours-before")?)?, samples(captured(run, "ours")?)?);
    let mut compared = 0;
    for (key, value) in &theirs {
        let name = key.split('{').next().unwrap_or_default();
        if THEIRS_ALONE.contains(&name) {
            continue;
        }
        let ours = [&before, &after].map(|samples| samples.get(key).copied());
        let agrees = |ours: Option<f64>| {
            let Some(ours) = ours else { return false };
            if ROUNDED.iter().any(|end| name.ends_with(end)) {
                // The kernel's own rounding is of a tenth of a unit, which is at least a KiB.
                (ours - value).abs() <= value.abs().max(1024.0) * 0.11
            } else {
                (ours - value).abs() < 0.5
            }
        };
        ensure!(ours.into_iter().any(agrees), "{key}: theirs {value}, ours {ours:?}");
        compared += 1;
    }
    ensure!(compared >= 20, "only {compared} of {}", theirs.len());
    let dirty = |samples: &Samples| {
        let found = samples.iter().find(|(key, _)| key.starts_with("node_bcache_dirty_data_bytes"));
        found.map(|(_, value)| *value).context("no dirty data")
    };
    // Ours is within half a tenth of the truth; theirs may be less than the kernel's text allows.
    let (ours, theirs) = (dirty(&after)?, dirty(&theirs)?);
    ensure!((ours - DIRTY_BYTES).abs() < 53_000.0, "{ours} of {DIRTY_BYTES}, theirs {theirs}");
    Ok(())
}

/// Where the plugin loses a race with the kernel on a busy host, whatever made the devices. It asks for
/// the state and then for the cache of a device that is being detached, which may be gone in between;
/// it detaches to take apart, too. And it stops the set before the device has left it, which then has
/// stopped as well: that is what it was to bring about, and the guest waits until it is so.
const DETACHING: [&str; 2] = ["detach failed: Failed to get '", "destroy failed: Failed to get '"];
const ALREADY_STOPPED: &str = "destroy failed: Failed to stop the bcache: ";

pub(crate) fn kbd(run: &GuestRun) -> anyhow::Result<()> {
    let names = (1..).map(|number| format!("kbd-{number}"));
    let tries: Vec<String> = names.take_while(|it| run.log.capture(it).is_some()).collect();
    let (last, failed) = tries.split_last().context("kbd did not run")?;
    for name in failed {
        let said = captured(run, name)?;
        let line = said.lines().last().unwrap_or_default();
        ensure!(DETACHING.iter().any(|race| line.starts_with(race)), "{said}");
    }
    let said = captured(run, last)?;
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    let [created, stats, on, mode, other, detached, state, word, attached, again, destroyed] =
        lines[..]
    else {
        anyhow::bail!("{said}");
    };
    ensure!(created.starts_with("created bcache"), "{said}");
    // It takes the kernel's "0.5k" as it stands.
    ensure!(stats.starts_with("state clean, block 512, size 314572800, used "), "{said}");
    ensure!(on == "on vdg with vdh", "{said}");
    ensure!(mode == "mode writethrough" && other == "mode writeback", "{said}");
    let set = detached.strip_prefix("detached from ").context(detached.to_owned())?;
    ensure!(set.len() == 36, "{said}");
    ensure!(state == "no cache" && word == "writethrough [writeback] writearound none", "{said}");
    ensure!(attached == "attached" && again == "state clean", "{said}");
    ensure!(destroyed == "destroyed" || destroyed.starts_with(ALREADY_STOPPED), "{said}");
    Ok(())
}
