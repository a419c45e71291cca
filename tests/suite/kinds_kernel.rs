//! States into which stock kernels bring devices themselves, and what our commands say of them there.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bcache_core::device::testkit::raid_member;
use bcache_tests::tool;
use bcache_tests::{Guest, GuestRun, Kernel, Need, Scratch, binary, main_with, trial};
use serde_json::Value;

fn main() -> ExitCode {
    let needs = &[Need::Guest, Need::Program("dmsetup", "dmsetup")];
    main_with(
        Kernel::ALL
            .into_iter()
            .map(|kernel| trial(format!("kinds_{kernel}"), needs, move || kinds(kernel)))
            .collect(),
    )
}

/// vda: a cache of 512-byte blocks; vdb and vdc: backing devices; vdd: a cache of 4 KiB blocks;
/// vde, vdf: nothing on them.
const SCRIPT: &str = r#"
    export DM_DISABLE_UDEV=1
    both() {
        register /dev/vda
        register /dev/vdb
        register /dev/vdc
        wait_for 30 test -b /dev/bcache0
        wait_for 30 test -b /dev/bcache1
        # Which device has which number depends on who was first.
        b=$(basename "$(readlink -f /sys/block/vdb/bcache/dev)")
        c=$(basename "$(readlink -f /sys/block/vdc/bcache/dev)")
        # What is dirty is written back at once.
        echo 0 >/sys/block/vdb/bcache/writeback_percent
        echo 0 >/sys/block/vdb/bcache/writeback_delay
    }
    clean() {
        [ "$(cat /sys/block/$1/bcache/state)" = clean ]
    }
    both
    echo writeback >/sys/block/vdb/bcache/cache_mode
    echo 0 >/sys/block/vdb/bcache/writeback_running
    echo 0 >/sys/fs/bcache/$(sets)/congested_write_threshold_us
    echo 0 >/sys/block/vdb/bcache/sequential_cutoff

    stage inside
    mke2fs -L root /dev/$b >/dev/null
    printf 'o\nn\np\n1\n\n\nw\n' | fdisk /dev/$c >/dev/null 2>&1 || true
    sync
    capture nobody_list su nobody -s /usr/bin/sh -c "bcachectl list"
    capture nobody_show su nobody -s /usr/bin/sh -c "bcachectl show /dev/vdb"
    capture nobody_check su nobody -s /usr/bin/sh -c "bcachectl check --json /dev/vda"
    capture nobody_status su nobody -s /usr/bin/sh -c "bcachectl status"
    stop_all
    capture dirty_show bcachectl show /dev/vdb
    capture dirty_check bcachectl check --json /dev/vda /dev/vdb
    capture table_show bcachectl show /dev/vdc
    both
    wait_for 60 clean vdb
    stop_all
    capture clean_show bcachectl show /dev/vdb
    capture clean_check bcachectl check --json /dev/vda /dev/vdb

    stage foreign
    both
    # Where the superblock of version 1.0 of a RAID member is: 8 KiB before the end, at a multiple of 4 KiB.
    size=$(blockdev --getsize64 /dev/$b)
    dd if=/raid of=/dev/$b bs=4096 seek=$((size / 4096 - 2)) oflag=direct 2>/dev/null
    wait_for 60 clean vdb
    stop_all
    capture raid_show bcachectl show /dev/vdb
    capture raid_check bcachectl check --json /dev/vda /dev/vdb
    both

    stage smaller
    register /dev/vdd
    echo 1 >/sys/block/vdc/bcache/detach
    no_cache() {
        [ "$(cat /sys/block/vdc/bcache/state)" = "no cache" ]
    }
    wait_for 60 no_cache
    capture smaller_attach bcachectl attach /dev/vdc "$(cat /set4k)"
    echo "$(cat /set4k)" >/sys/block/vdc/bcache/attach || true
    capture smaller_check bcachectl check --json /dev/vdd /dev/vdc
    capture smaller_show bcachectl show /dev/vdc

    stage unknown
    /bin/dmsetup create pool --noudevsync --table "0 131072 thin-pool /dev/vde /dev/vdf 128 0"
    /bin/dmsetup message pool 0 "create_thin 0"
    /bin/dmsetup suspend --noudevsync pool
    /bin/dmsetup resume --noudevsync pool
    /bin/dmsetup remove --noudevsync pool
    capture pool_show bcachectl show /dev/vde
    capture pool_make bcachectl make -n -C /dev/vde
    dd if=/dev/zero of=/dev/vde bs=1M count=16 oflag=direct 2>/dev/null
    /bin/dmsetup create wc --noudevsync --table "0 65536 writecache s /dev/vdf /dev/vde 4096 0"
    dd if=/init of=/dev/mapper/wc bs=4096 count=1 conv=sync oflag=direct 2>/dev/null
    /bin/dmsetup suspend --noudevsync wc
    /bin/dmsetup resume --noudevsync wc
    /bin/dmsetup remove --noudevsync wc
    capture writecache_show bcachectl show /dev/vde
    capture writecache_make bcachectl make -n -C /dev/vde

    stage answers
    # A device that does not answer, on a volume of the set.
    /bin/dmsetup create dead --noudevsync --table "0 2048 linear /dev/$b 0"
    /bin/dmsetup suspend --noudevsync --nolockfs dead
    capture dead_list bcachectl list
    capture dead_show bcachectl show /dev/vdb
    /bin/dmsetup resume --noudevsync dead
    /bin/dmsetup remove --noudevsync dead

    stage stacked
    capture stacked_make bcachectl make -n -B /dev/$c
    dd if=/stacked of=/dev/$c bs=4096 count=3 oflag=direct 2>/dev/null
    capture stacked_show bcachectl show /dev/$c
    capture stacked_under bcachectl show /dev/vdc
    capture stacked_list bcachectl list
    capture stacked_register bcachectl register /dev/$c
    register /dev/$c || true
    stop_all
    capture stacked_stopped bcachectl show /dev/vdc
"#;

fn kinds(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let sparse = |name: &str, mib: u64| -> anyhow::Result<String> {
        let path = scratch.sparse(name, mib << 20)?;
        Ok(path.to_str().context("a path")?.to_owned())
    };
    let (cache, backing, other) = (sparse("a", 64)?, sparse("b", 64)?, sparse("c", 64)?);
    let (cache4k, one, two) = (sparse("d", 64)?, sparse("e", 64)?, sparse("f", 64)?);
    let stacked = sparse("stacked", 64)?;
    tool::make(["--block", "512", "--bucket", "64k", "-C", &cache, "-B", &backing, &other])?;
    tool::make(["--block", "4k", "--bucket", "64k", "-C", &cache4k])?;
    tool::make(["--block", "512", "-B", &stacked])?;
    let set4k = tool::text(&tool::show(cache4k.as_ref())?, "/superblock/set_uuid")?.to_owned();
    let dmsetup = Command::new("sh").args(["-c", "command -v dmsetup"]).output()?.stdout;
    let run = Guest::new(kernel)
        .module("dm-thin-pool")
        .module("dm-writecache")
        .binary(String::from_utf8(dmsetup)?.trim())
        .binary(binary("bcachectl")?)
        .file("/set4k", set4k)
        .file("/etc/passwd", "root:x:0:0::/:/usr/bin/sh\nnobody:x:65534:65534::/:/usr/bin/sh\n")
        .file("/raid", raid_member(64 << 20).1.to_vec())
        .file("/stacked", std::fs::read(&stacked)?[..12 << 10].to_vec())
        .disk(&cache)
        .disk(&backing)
        .disk(&other)
        .disk(&cache4k)
        .disk(&one)
        .disk(&two)
        .script(SCRIPT)
        .timeout(Duration::from_secs(400))
        .run()?
        .ok()?;
    let said = Told(&run);

    // Without root: what could not be read is said, and that root can.
    said.words(
        "nobody_list",
        1,
        &["could not be read without the rights of root: run this as root"],
    )?;
    said.words("nobody_show", 1, &["/dev/vdb: Permission denied", "run this as root"])?;
    said.words("nobody_check", 8, &["/dev/vda: Permission denied", "run this as root"])?;
    said.words("nobody_status", 0, &["bcache0 on vd", "attached-dirty"])?;

    // What is inside a backing device, while its superblock is only on the cache and after that.
    said.words("dirty_show", 0, &["INCOMPLETE", "nothing that could be found"])?;
    let dirty = said.json("dirty_check", 0)?;
    ensure!(dirty["stakes"]["answer"] == "present" && dirty["worst"].is_null(), "{dirty}");
    said.words("table_show", 0, &["a partition table (dos)", "--partscan"])?;
    said.words("clean_show", 0, &["a file system (ext2), label \"root\"", "mount -o ro"])?;
    // Stopped soon after it was written back, the kernel finds the data dirty again.
    for check in ["clean_check", "raid_check"] {
        let clean = said.json(check, 0)?;
        ensure!(clean["counts"].as_object().context("counts")?.len() == 1, "{clean}");
        ensure!(clean["findings"][0]["code"] == "backing-written-back", "{clean}");
        ensure!(advice(&clean).contains(&"do-not-wipe"), "{clean}");
    }

    // A signature by which udev takes a backing device for something else.
    said.words("raid_show", 0, &["linux_raid_member", "not registered at boot"])?;

    // Blocks that are smaller than the set's.
    said.words("smaller_attach", 1, &["blocks of 4096 bytes", "512"])?;
    ensure!(run.console.contains("block size less than set's block size"), "{}", run.tail());
    let smaller = said.json("smaller_check", 4)?;
    ensure!(smaller["counts"]["backing-block-size"] == 1, "{smaller}");
    ensure!(advice(&smaller) == ["stop-first"], "{smaller}");
    said.words("smaller_show", 0, &["attached to no cache"])?;

    // Formats that nobody knows by name.
    for format in ["pool", "writecache"] {
        said.words(&format!("{format}_show"), 1, &["no bcache device"])?;
        said.words(&format!("{format}_make"), 1, &["holds unknown data", "--force"])?;
    }

    // A device that does not answer, on top of bcache.
    said.words("dead_list", 1, &["/dev/vda", "/dev/dm-0: does not answer; all other devices"])?;
    said.words("dead_show", 0, &["of dirty data of this device, although its state is clean"])?;

    // bcache on bcache.
    said.words("stacked_make", 1, &["the kernel cannot register bcache on bcache"])?;
    said.words("stacked_show", 0, &["the kernel refuses it: error creating kobject"])?;
    said.words("stacked_list", 0, &["error creating kobject"])?;
    said.words("stacked_register", 1, &["the kernel would refuse", "error creating kobject"])?;
    ensure!(run.console.contains("error creating kobject"), "{}", run.tail());
    said.words(
        "stacked_stopped",
        0,
        &["a bcache superblock (bcache)", "bcachectl show /dev/loopN"],
    )?;
    eprintln!("kernel {kernel}: {:.1} s", run.took.as_secs_f64());
    Ok(())
}

/// What the commands printed in a guest.
struct Told<'r>(&'r GuestRun);

impl Told<'_> {
    /// That a command ended with `status` and printed all of `words`.
    fn words(&self, name: &str, status: i32, words: &[&str]) -> anyhow::Result<()> {
        let text = self.text(name, status)?;
        for word in words {
            ensure!(text.contains(word), "{name}: no {word:?} in {text}");
        }
        Ok(())
    }

    fn text(&self, name: &str, status: i32) -> anyhow::Result<&str> {
        let capture = self.0.log.capture(name).with_context(|| format!("no {name}"))?;
        ensure!(capture.status == Some(status), "{name}: {:?}: {}", capture.status, capture.output);
        Ok(&capture.output)
    }

    /// The JSON that it printed, after what it said on standard error.
    fn json(&self, name: &str, status: i32) -> anyhow::Result<Value> {
        let text = self.text(name, status)?;
        let json = text.find('{').and_then(|at| text.get(at..)).context("JSON")?;
        Ok(serde_json::from_str(json)?)
    }
}

/// The codes of the advice that `check` gives.
fn advice(check: &Value) -> Vec<&str> {
    let advice = check["advice"].as_array().into_iter().flatten();
    advice.filter_map(|it| it["code"].as_str()).collect()
}
