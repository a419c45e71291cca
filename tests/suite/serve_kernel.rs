//! `bcachectl serve` with the kernel's NBD client: a volume that bcache wrote is mounted without bcache.

use anyhow::{Context as _, bail, ensure};
use bcache_tests::need::find_program;
use bcache_tests::tool::make;
use bcache_tests::{Guest, Kernel, Need, Scratch, binary, main_with, trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    let needs = &[Need::Guest, Need::Program("nbd-client", "nbd-client")];
    main_with(vec![trial("mounted_6.12", needs, || mounted(Kernel::V6_12))])
}

/// The file system and most of the file are in the cache alone when the set is stopped.
const SCRIPT: &str = r#"
    mkdir -p /mnt
    register /dev/vdb
    register /dev/vda
    wait_for 30 test -b /dev/bcache0
    echo writeback >/sys/block/vda/bcache/cache_mode
    echo 0 >/sys/block/vda/bcache/writeback_running
    echo 0 >/sys/block/vda/bcache/sequential_cutoff
    mke2fs -b 4096 /dev/bcache0 >/dev/null
    mount -t ext2 /dev/bcache0 /mnt
    dd if=/dev/urandom of=/mnt/file bs=64k count=96 2>/dev/null
    md5sum </mnt/file >/kernels
    umount /mnt
    figure dirty_data /sys/block/vda/bcache/dirty_data
    figure kernels /kernels
    md5 /dev/bcache0
    stop_all

    # served VOLUME OPTIONS...: what an NBD client has of the devices.
    served() {
        rm -f /said
        bcachectl serve "$@" --socket /socket 2>/said &
        server=$!
        wait_for 30 test -S /socket
        /bin/nbd-client -unix /socket /dev/nbd0
        wait_for 30 grep -qv '^0$' /sys/block/nbd0/size
    }
    gone() {
        /bin/nbd-client -d /dev/nbd0
        kill -INT $server
        wait $server
        test ! -e /socket
    }
    served /dev/vdb /dev/vda
    md5 /dev/nbd0
    mount -t ext2 -o ro /dev/nbd0 /mnt
    md5sum </mnt/file >/clients
    figure clients /clients
    umount /mnt
    if dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>/dev/null; then
        echo 'it could be written to'
        exit 1
    fi
    gone

    # The backing device alone is another thing: most of the data is missing.
    dd if=/dev/vda of=/alone bs=4k skip=2 2>/dev/null
    md5sum </alone >/alone.md5
    figure alone /alone.md5

    # Nothing has changed: the kernel takes the set as it was.
    register /dev/vdb
    register /dev/vda
    wait_for 30 test -b /dev/bcache0
    md5 /dev/bcache0
    stop_all
"#;

fn mounted(kernel: Kernel) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let (backing, cache) =
        (scratch.sparse("backing", 64 << 20)?, scratch.sparse("cache", 96 << 20)?);
    let path = |path: &std::path::Path| path.display().to_string();
    make(["--bucket", "64k", "--cache", &path(&cache), "--bdev", &path(&backing)])?;
    let run = Guest::new(kernel)
        .module("ext4")
        .module("nbd")
        .binary(binary("bcachectl")?)
        .binary(find_program("nbd-client").context("nbd-client")?)
        .disk(&backing)
        .disk(&cache)
        .script(SCRIPT)
        .run()?
        .ok()?;
    let figure = |name: &str| run.log.figure(name).with_context(|| run.tail());
    ensure!(figure("dirty_data")? != "0.0k", "nothing was dirty");
    ensure!(figure("clients")? == figure("kernels")?, "another file: {}", run.tail());
    let kernels = run.log.md5s("/dev/bcache0");
    let [first, again] = kernels[..] else { bail!("two sums: {}", run.tail()) };
    ensure!(run.log.md5("/dev/nbd0") == Some(first), "another volume: {}", run.tail());
    ensure!(again == first, "it has changed: {}", run.tail());
    ensure!(!figure("alone")?.starts_with(first), "the cache had nothing of it");
    println!("{:.0} s, kernel {kernel}", run.took.as_secs_f64());
    Ok(())
}
