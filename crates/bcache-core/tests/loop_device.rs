//! The device layer on real block devices: loop devices, which need root.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use bcache_core::device::SignatureKind;
use bcache_core::device::holders::{Holder, holders_of};
use bcache_core::device::probe::probe;
use bcache_core::device::sysfs::{Root, devices_of_the_machine};
use bcache_core::device::testkit::partition_table;
use bcache_core::device::{
    AlignedBuf, BlockDevice, DeviceError, DeviceKind, Operation, ReadDevice, open_read, open_write,
};
use bcache_core::ops::plan::{Plan, Step, WriteKind, apply};
use bcache_core::ops::verify::verify;
use bcache_core::units::Sectors;
use tempfile::TempDir;

#[allow(dead_code, unreachable_pub)]
#[path = "../../../tests/support/fault.rs"]
mod fault;

use fault::{FullLoop, ShortLoop, with_writes_refused_from};

const MIB: u64 = 1 << 20;

/// Whether loop devices can be had. Where they cannot, the test is skipped, except in CI.
fn loop_devices(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists() {
        return true;
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} needs root and loop devices, and CI skips nothing"
    );
    eprintln!("SKIPPED {test}: needs root and loop devices");
    false
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A loop device over an image in a directory of its own.
struct Loop {
    path: PathBuf,
    image: PathBuf,
    dir: Option<TempDir>,
}

impl Loop {
    fn new(size_bytes: u64, options: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("image");
        File::create_new(&image).unwrap().set_len(size_bytes).unwrap();
        let path = Self::attach(&image, options);
        Self { path, image, dir: Some(dir) }
    }

    fn attach(image: &Path, options: &[&str]) -> PathBuf {
        let mut arguments = vec!["--find", "--show"];
        arguments.extend(options);
        arguments.push(image.to_str().unwrap());
        PathBuf::from(run("losetup", &arguments).trim())
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
        // It is detached only when the last program that looks at it has closed it.
        let backing = format!("/sys/class/block/{}/loop/backing_file", self.name());
        let image = fs::canonicalize(&self.image).unwrap_or_default();
        for _ in 0..100 {
            if fs::read_to_string(&backing).map_or(true, |path| Path::new(path.trim()) != image) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A partition that the kernel forgets when the test ends; a loop device would keep it.
struct Partition<'a> {
    path: PathBuf,
    disk: &'a Loop,
}

impl<'a> Partition<'a> {
    /// The kernel need not be able to read partition tables to be told of a partition: partx reads
    /// the one that this writes.
    fn new(disk: &'a Loop, start: u64, sectors: u64) -> Self {
        let table = partition_table(Sectors(start), Sectors(sectors));
        File::options().write(true).open(&disk.path).unwrap().write_all(&table).unwrap();
        run("partx", &["--add", "--nr", "1", disk.text()]);
        Self { path: PathBuf::from(format!("{}p1", disk.text())), disk }
    }
}

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        let _ = Command::new("partx").args(["--delete", "--nr", "1"]).arg(&self.disk.path).status();
    }
}

/// A mount that ends with the test.
struct Mounted(TempDir);

impl Mounted {
    fn new(device: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        run("mount", &[device.to_str().unwrap(), dir.path().to_str().unwrap()]);
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn busy(path: &Path) -> (String, Vec<Holder>) {
    match open_write(path) {
        Err(error @ DeviceError::Busy { .. }) => {
            let text = error.to_string();
            let DeviceError::Busy { holders, .. } = error else { unreachable!() };
            (text, holders)
        }
        other => panic!("{} is not busy: {other:?}", path.display()),
    }
}

#[test]
fn loop_reads_and_writes_of_any_alignment() {
    if !loop_devices("loop_reads_and_writes_of_any_alignment") {
        return;
    }
    for block in [512u32, 4096] {
        let lo = Loop::new(4 * MIB, &["--sector-size", &block.to_string()]);
        let device = open_write(&lo.path).unwrap();
        let info = device.info();
        assert_eq!((info.kind, info.size_bytes), (DeviceKind::Block, 4 * MIB));
        assert_eq!(info.logical_block_bytes, block);
        assert!(info.physical_block_bytes >= block);
        assert_eq!(info.disk_size, Sectors(4 * MIB / 512));
        assert!(info.discard && !info.zoned && !info.read_only, "{info:?}");

        let block = u64::from(block);
        let pattern: Vec<u8> =
            (0..3 * MIB).map(|i| u8::try_from((i * 31 + i / 4096) % 253).unwrap()).collect();
        // Memory of every alignment, and more than one bounce buffer.
        let mut skewed = AlignedBuf::zeroed(pattern.len() + 8);
        for skew in [0, 1, 8] {
            skewed[skew..][..pattern.len()].copy_from_slice(&pattern);
            device.write_at(block, &vec![0; pattern.len()]).unwrap();
            device.write_at(block, &skewed[skew..][..pattern.len()]).unwrap();
            device.flush().unwrap();
            for (offset, len) in
                [(0, 3 * MIB), (1, 10), (block - 1, 2), (block + 3, 2 * MIB + 5), (4 * MIB - 1, 1)]
            {
                let mut buf = vec![0xee; usize::try_from(len).unwrap()];
                device.read_at(offset, &mut buf).unwrap();
                for (i, &byte) in buf.iter().enumerate() {
                    let at = offset + i as u64;
                    let wrote = at.checked_sub(block).and_then(|at| usize::try_from(at).ok());
                    let expected = wrote.and_then(|at| pattern.get(at)).copied().unwrap_or(0);
                    assert_eq!(byte, expected, "block {block} skew {skew} byte {at}");
                }
            }
        }
        assert!(matches!(
            device.write_at(block / 2, &vec![0; usize::try_from(block).unwrap()]),
            Err(DeviceError::Misaligned { .. })
        ));
        assert!(matches!(device.read_at(4 * MIB, &mut [0]), Err(DeviceError::OutOfRange { .. })));
    }
}

#[test]
fn loop_discard_takes_its_range_only() {
    if !loop_devices("loop_discard_takes_its_range_only") {
        return;
    }
    let lo = Loop::new(4 * MIB, &[]);
    let device = open_write(&lo.path).unwrap();
    device.write_at(0, &AlignedBuf::copy_of(&vec![7; 4 << 20])).unwrap();
    device.flush().unwrap();
    let before = allocated(&lo.image);
    device.discard(MIB, 2 * MIB).unwrap();
    device.flush().unwrap();
    assert!(allocated(&lo.image) <= before - 2 * MIB, "nothing was discarded");
    let mut all = AlignedBuf::zeroed(4 << 20);
    device.read_at(0, &mut all).unwrap();
    assert!(all[..1 << 20].iter().chain(&all[3 << 20..]).all(|&byte| byte == 7));
    assert!(matches!(device.discard(100, 512), Err(DeviceError::Misaligned { .. })));
}

/// Bytes that a file takes.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    File::open(path).unwrap().sync_all().unwrap();
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn loop_device_is_opened_by_one_writer_and_any_reader() {
    if !loop_devices("loop_device_is_opened_by_one_writer_and_any_reader") {
        return;
    }
    let lo = Loop::new(MIB, &[]);
    let writer = open_write(&lo.path).unwrap();
    let (text, holders) = busy(&lo.path);
    assert_eq!(holders, []);
    assert_eq!(text, format!("{} is in use; another program has it open for itself", lo.text()));
    open_read(&lo.path).unwrap();
    drop(writer);
    // A process that another test is about to start holds a copy of the descriptor until it runs.
    for _ in 0..100 {
        if open_write(&lo.path).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    open_write(&lo.path).unwrap();
}

#[test]
fn loop_mounted_device_is_busy_and_can_be_read() {
    if !loop_devices("loop_mounted_device_is_busy_and_can_be_read") {
        return;
    }
    let lo = Loop::new(16 * MIB, &[]);
    run("mkfs.ext4", &["-q", "-L", "mine", lo.text()]);
    let mounted = Mounted::new(&lo.path);
    let (text, _) = busy(&lo.path);
    let at = mounted.0.path().to_str().unwrap();
    assert_eq!(text, format!("{} is in use; mounted at {at} (ext4)", lo.text()));
    open_read(&lo.path).unwrap().read_at(1024, &mut [0; 100]).unwrap();
    let found = probe(&lo.path).unwrap();
    assert_eq!((found.len(), found[0].kind), (1, SignatureKind::Filesystem));
    assert_eq!((found[0].type_name.as_str(), found[0].label.as_deref()), ("ext4", Some("mine")));
    drop(mounted);
    open_write(&lo.path).unwrap();
}

#[test]
fn loop_image_of_a_loop_device_is_busy() {
    if !loop_devices("loop_image_of_a_loop_device_is_busy") {
        return;
    }
    let lo = Loop::new(MIB, &[]);
    let (text, holders) = busy(&lo.image);
    assert_eq!(holders, [Holder::Loop { name: lo.name() }]);
    assert!(text.ends_with(&format!("is in use; read by the loop device {}", lo.name())), "{text}");
    // By another name too, which sysfs does not know.
    let alias = lo.dir.as_ref().unwrap().path().join("alias");
    fs::hard_link(&lo.image, &alias).unwrap();
    busy(&alias);
    open_read(&lo.image).unwrap();
    let copy = lo.dir.as_ref().unwrap().path().join("copy");
    fs::copy(&lo.image, &copy).unwrap();
    open_write(&copy).unwrap();
}

/// A loop device does not claim the device that it reads: the kernel alone would let us write.
#[test]
fn loop_over_a_loop_device_makes_it_busy() {
    if !loop_devices("loop_over_a_loop_device_makes_it_busy") {
        return;
    }
    let lower = Loop::new(MIB, &[]);
    let upper = Loop { path: Loop::attach(&lower.path, &[]), image: lower.path.clone(), dir: None };
    assert_eq!(busy(&lower.path).1, [Holder::Loop { name: upper.name() }]);
    assert_eq!(holders_of(&lower.path), [Holder::Loop { name: upper.name() }]);
    drop(upper);
    open_write(&lower.path).unwrap();
}

/// Swap that is taken away when the test ends.
struct Swapping<'a>(&'a Loop);

impl Drop for Swapping<'_> {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0.path).status();
    }
}

#[test]
fn loop_swap_is_busy() {
    if !loop_devices("loop_swap_is_busy") {
        return;
    }
    let lo = Loop::new(MIB, &[]);
    run("mkswap", &[lo.text()]);
    assert_eq!(probe(&lo.path).unwrap()[0].kind, SignatureKind::Swap);
    // Of the lowest priority, so that nothing is swapped to it.
    run("swapon", &["--priority", "0", lo.text()]);
    let swapping = Swapping(&lo);
    let (text, holders) = busy(&lo.path);
    drop(swapping);
    assert_eq!(holders, [Holder::Swap]);
    assert_eq!(text, format!("{} is in use; used as swap", lo.text()));
}

#[test]
fn loop_partitions_and_their_disk_hold_each_other() {
    if !loop_devices("loop_partitions_and_their_disk_hold_each_other") {
        return;
    }
    let lo = Loop::new(32 * MIB, &[]);
    let partition_of_it = Partition::new(&lo, 2048, 32768);
    let partition = partition_of_it.path.clone();
    {
        let device = open_write(&partition).unwrap();
        assert_eq!(device.info().size(), Sectors(32768));
        assert_eq!(device.info().disk_size, Sectors(65536));
        assert!(device.info().discard);
        // Claiming a partition claims the disk from others.
        busy(&lo.path);
    }
    run("mkfs.ext4", &["-q", partition.to_str().unwrap()]);
    let mounted = Mounted::new(&partition);
    let at = mounted.0.path().display();
    let name = format!("{}p1", lo.name());
    let (text, _) = busy(&lo.path);
    assert_eq!(
        text,
        format!("{} is in use; its partition {name} is mounted at {at} (ext4)", lo.text())
    );
    busy(&partition);
    let listed = devices_of_the_machine(&Root::system()).unwrap();
    let entry = listed.iter().find(|device| device.name == name).unwrap();
    assert_eq!(entry.partition_of.as_deref(), Some(lo.name().as_str()));
    assert_eq!((entry.path.as_path(), entry.size), (partition.as_path(), Sectors(32768)));
    drop(mounted);
    drop(partition_of_it);
    open_write(&lo.path).unwrap();
}

#[test]
fn loop_read_only_device_says_so() {
    if !loop_devices("loop_read_only_device_says_so") {
        return;
    }
    let lo = Loop::new(MIB, &["--read-only"]);
    assert!(open_read(&lo.path).unwrap().info().read_only);
    match open_write(&lo.path) {
        Err(DeviceError::Open { source, .. }) => {
            assert_eq!(source.kind(), ErrorKind::ReadOnlyFilesystem);
        }
        other => panic!("{other:?}"),
    }
}

/// The kernel writes superblocks past the page cache of the node; we must see them nevertheless.
#[test]
fn loop_reads_and_probes_come_from_the_device_not_the_page_cache() {
    if !loop_devices("loop_reads_and_probes_come_from_the_device_not_the_page_cache") {
        return;
    }
    let lo = Loop::new(MIB, &[]);
    // Keeps the stale pages alive: they go when the last opener closes the node.
    let mut cached = File::open(&lo.path).unwrap();
    let mut old = vec![0; 16384];
    cached.read_exact(&mut old).unwrap();
    let image = File::options().write(true).open(&lo.image).unwrap();
    image.write_all_at(b"SWAPSPACE2", 4086).unwrap();
    image.write_all_at(&[1, 0, 0, 0, 200, 0, 0, 0], 1024).unwrap();
    image.sync_all().unwrap();
    let mut stale = vec![0; 16384];
    cached.read_exact_at(&mut stale, 0).unwrap();
    assert_eq!(stale, old, "the page cache is not stale: this test shows nothing");

    let mut read = [0; 10];
    open_read(&lo.path).unwrap().read_at(4086, &mut read).unwrap();
    assert_eq!(&read, b"SWAPSPACE2");
    let found = probe(&lo.path).unwrap();
    assert_eq!(found.first().map(|found| found.kind), Some(SignatureKind::Swap));
}

fn plan() -> Plan {
    let write = |offset, len, fill| {
        let mut data = AlignedBuf::zeroed(len);
        data.fill(fill);
        Step::Write { kind: WriteKind::Superblock, offset, data }
    };
    Plan {
        steps: vec![
            write(0, 4096, 1),
            Step::Flush,
            Step::Discard { offset: 256 << 10, len: 128 << 10 },
            write(8192, 8192, 2),
            Step::Flush,
        ],
    }
}

#[test]
fn loop_plan_is_carried_out_and_verified() {
    if !loop_devices("loop_plan_is_carried_out_and_verified") {
        return;
    }
    let lo = Loop::new(MIB, &[]);
    let device = open_write(&lo.path).unwrap();
    apply(&plan(), &device, &mut |_| {}).unwrap();
    verify(&plan(), &device).unwrap();
    device.write_at(8192 + 4096, &[3; 512]).unwrap();
    assert!(verify(&plan(), &device).is_err());
}

/// The support for faults does what it says, and the device layer reports each.
#[test]
fn loop_full_device_refuses_writes_in_its_bad_ranges_only() {
    if !loop_devices("loop_full_device_refuses_writes_in_its_bad_ranges_only") {
        return;
    }
    let bad = 12288..16384;
    let lo = FullLoop::new(MIB, std::slice::from_ref(&bad)).unwrap();
    let device = open_write(lo.path()).unwrap();
    for block in 0..MIB / 4096 {
        let result = device.write_at(block * 4096, &AlignedBuf::copy_of(&[5; 4096]));
        if bad.contains(&(block * 4096)) {
            match result {
                Err(DeviceError::Io { operation: Operation::Write, offset, source, .. }) => {
                    assert_eq!((offset, source.kind()), (bad.start, ErrorKind::StorageFull));
                }
                other => panic!("{other:?}"),
            }
        } else {
            result.unwrap();
        }
    }
    device.flush().unwrap();
    let mut plan = plan();
    plan.steps.retain(|step| !matches!(step, Step::Discard { .. }));
    let error = apply(&plan, &device, &mut |_| {}).unwrap_err();
    assert_eq!((error.step, error.may_have_written), (2, true));
    // The write ran from a good range into the bad one: it is torn between them.
    let mut buf = AlignedBuf::zeroed(8192);
    device.read_at(8192, &mut buf).unwrap();
    assert!(buf[..4096].iter().all(|&byte| byte == 2) && buf[4096..].iter().all(|&byte| byte == 0));
}

#[test]
fn loop_short_device_refuses_reads() {
    if !loop_devices("loop_short_device_refuses_reads") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, vec![6; 1 << 20]).unwrap();
    let lo = ShortLoop::new(&image, 65536).unwrap();
    let device = open_read(lo.path()).unwrap();
    assert_eq!(device.info().size_bytes, MIB);
    let mut buf = AlignedBuf::zeroed(4096);
    device.read_at(65536 - 4096, &mut buf).unwrap();
    assert!(buf.iter().all(|&byte| byte == 6));
    for offset in [65536, MIB - 4096] {
        match device.read_at(offset, &mut buf) {
            Err(DeviceError::Io { operation: Operation::Read, offset: at, source, .. }) => {
                assert_eq!((at, source.raw_os_error()), (offset, Some(nix::libc::EIO)));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Needs no root: a program under a limit sees `EFBIG`, and a write across it is torn.
#[test]
fn a_program_can_be_run_with_its_writes_refused() {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, [0; 16384]).unwrap();
    let source = dir.path().join("source");
    fs::write(&source, [9; 16384]).unwrap();
    let output = with_writes_refused_from("dd", 6144)
        .arg(format!("if={}", source.display()))
        .arg(format!("of={}", image.display()))
        .args(["bs=4096", "conv=notrunc"])
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large"), "{said}");
    let image = fs::read(&image).unwrap();
    assert!(image[..6144].iter().all(|&byte| byte == 9));
    assert_eq!(image[6144..], [0; 10240]);
}
