//! `bcachectl make` from the command line: what it refuses and how it says so, that it then writes
//! nothing, and what its options mean.

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bcache_core::layout::superblock::{Kind, Replacement};
use bcache_core::units::Sectors;
use common::*;
use serde_json::Value;

/// What make-bcache would write though the kernel refuses it, takes though it means nothing, or
/// refuses without a word: here it is refused with the option and its limit.
#[test]
fn bad_input_is_refused() {
    let images = Images::new();
    let (image, tiny) = (images.image("image", 40 * MIB), images.image("tiny", 8191));
    let small = images.image("small", 2 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image), ("TINY", &tiny), ("SMALL", &small)];
    let cases: &[(&str, i32, &[&str])] = &[
        // Too few buckets: the kernel wants 513.
        ("make -C IMAGE -b 128k", 1, &["--bucket", "320 buckets", "513", "--bucket 64k fits"]),
        ("make -C IMAGE -b 16M", 1, &["--bucket", "2 buckets", "513"]),
        ("make -C SMALL", 1, &["buckets", "513", "too small for a cache"]),
        ("make -C SMALL -b 4k -w 2k", 1, &["512 buckets", "513"]),
        // Buckets of impossible sizes.
        // A btree node must have room for two blocks.
        (
            "make -C IMAGE -b 4k -w 4k",
            1,
            &["--bucket", "4 KiB", "at least 8 KiB", "--block at most 2 KiB"],
        ),
        ("make -C IMAGE -b 2k", 2, &["--bucket", "2 KiB", "at least 4 KiB"]),
        ("make -C IMAGE -b 512", 2, &["--bucket", "512 B", "at least 4 KiB"]),
        ("make -C IMAGE -b 48k", 2, &["--bucket", "48 KiB", "power of two"]),
        ("make -C IMAGE -b 2G", 2, &["--bucket", "2 GiB", "at most 1 GiB"]),
        ("make -C IMAGE -b 64p", 2, &["--bucket", "64 PiB", "at most 1 GiB"]),
        // Blocks likewise.
        ("make -C IMAGE -w 8k", 2, &["--block", "8 KiB", "4 KiB"]),
        ("make -B IMAGE -w 8k", 2, &["--block", "8 KiB", "4 KiB"]),
        ("make -C IMAGE -w 256", 2, &["--block", "256 B", "512 B"]),
        ("make -C IMAGE -w 3k", 2, &["--block", "3 KiB", "power of two"]),
        // Data offsets.
        ("make -B IMAGE -o 15", 2, &["--data-offset", "15", "16"]),
        ("make -B IMAGE -o 81920", 1, &["--data-offset", "81920", "81920 sectors"]),
        ("make -B IMAGE -o 81913 -w 4k", 1, &["--data-offset", "81913"]),
        ("make -B IMAGE -o 18446744073709551615", 1, &["--data-offset", "81920 sectors"]),
        ("make -C IMAGE -B SMALL -b 64k -o 17 -w 1k", 1, &["--data-offset", "17", "1 KiB"]),
        // Too short for any superblock.
        ("make -C TINY", 1, &["tiny", "8191 bytes", "8192"]),
        ("make -B TINY", 1, &["tiny", "8191 bytes", "8192"]),
        // Sizes that are none, and other values that are none.
        ("make -C IMAGE -b 64kfoo", 2, &["--bucket", "64kfoo", "512k"]),
        ("make -C IMAGE -b 16x", 2, &["--bucket", "16x"]),
        ("make -C IMAGE -b 1.5M", 2, &["--bucket", "1.5M"]),
        ("make -C IMAGE -b 0", 2, &["--bucket", "0"]),
        ("make -C IMAGE -b -4k", 2, &[]),
        ("make -C IMAGE -b 99999999999T", 2, &["--bucket", "too large"]),
        ("make -C IMAGE -w 4kb0", 2, &["--block", "4kb0"]),
        ("make -B IMAGE -o 16x", 2, &["--data-offset", "16x"]),
        ("make -B IMAGE -o 100B", 2, &["--data-offset", "100B", "512"]),
        ("make -C IMAGE --cset-uuid 1234", 2, &["--cset-uuid", "1234"]),
        (
            "make -C IMAGE --cset-uuid 00000000-0000-0000-0000-000000000000",
            2,
            &["--cset-uuid", "zeroes"],
        ),
        ("make -B IMAGE --cset-uuid 00000000000000000000000000000000", 2, &["--cset-uuid"]),
        ("make -C IMAGE -l 0123456789012345678901234567890_", 2, &["--label", "31", "32"]),
        ("make -C IMAGE --cache-replacement-policy mru", 2, &["mru", "lru", "fifo", "random"]),
        ("make -C IMAGE --cache_replacement_policy=clock", 2, &["clock", "lru"]),
        // Devices.
        ("make", 2, &["--cache", "--bdev"]),
        ("make IMAGE", 2, &["image", "--cache", "--bdev"]),
        ("make IMAGE -C", 2, &["image", "--cache", "--bdev"]),
        ("make -C IMAGE -B IMAGE", 2, &["image", "same device"]),
        ("make -C /nonexistent", 1, &["/nonexistent", "--size"]),
        ("make -C /dev/null", 1, &["/dev/null", "block device"]),
        ("make -B /", 1, &["/", "block device"]),
        ("make -C IMAGE --size 40M", 1, &["image", "--size"]),
        // Several at once: the one that can be made is not touched for the sake of the others.
        ("make -B IMAGE TINY", 1, &["tiny"]),
        ("make -C IMAGE -B TINY", 1, &["tiny"]),
        ("make -C IMAGE SMALL -B TINY", 2, &["2 cache devices"]),
        ("make -C IMAGE SMALL --cset-uuid 11111111-2222-3333-4444-555555555555", 2, &["2 cache"]),
        ("make -B IMAGE /nonexistent", 1, &["/nonexistent"]),
    ];
    for (arguments, status, said) in cases {
        refuse(arguments, named, *status, said);
        refuse(&format!("{arguments} --dry-run"), named, *status, said);
        refuse(&format!("{arguments} --wipe-bcache --force"), named, *status, said);
    }
}

#[test]
fn one_file_by_two_names_is_one_device() {
    let images = Images::new();
    let image = images.image("image", 40 * MIB);
    let (link, hard) = (images.path("link"), images.path("hard"));
    std::os::unix::fs::symlink(&image, &link).unwrap();
    fs::hard_link(&image, &hard).unwrap();
    for other in [&link, &hard] {
        refuse("make -C A -B B", &[("A", &image), ("B", other)], 2, &["same device"]);
        refuse("make -B B A", &[("A", &image), ("B", other)], 2, &["same device"]);
    }
}

/// `-C` and `-B` hold for the devices that follow, whatever stands between them.
#[test]
fn modes_are_positional() {
    use Kind::{Backing, Cache};
    for (arguments, kinds) in [
        ("make -C X", &[Cache] as &[_]),
        ("make --cache X Y", &[Cache, Cache]),
        ("make -B X Y", &[Backing, Backing]),
        ("make -C X -B Y", &[Cache, Backing]),
        ("make -B X -C Y", &[Backing, Cache]),
        ("make -C -w 512 X --bdev --writeback Y Z", &[Cache, Backing, Backing]),
        ("make -B X -C Y -B Z", &[Backing, Cache, Backing]),
        ("make -CB X", &[Backing]),
        ("make -C -B X", &[Backing]),
    ] {
        let images = Images::new();
        let names = ["X", "Y", "Z"];
        let paths: Vec<_> = names.iter().map(|name| images.image(name, 40 * MIB)).collect();
        let named: Vec<(&str, &Path)> =
            names.iter().zip(&paths).map(|(name, path)| (*name, path.as_path())).collect();
        succeed(arguments, &named);
        let made: Vec<Kind> =
            paths[..kinds.len()].iter().map(|path| superblock(path).kind().unwrap()).collect();
        assert_eq!(made, kinds, "{arguments}");
        for untouched in &paths[kinds.len()..] {
            assert!(!superblock(untouched).magic_ok(), "{arguments}");
        }
    }
}

#[test]
fn options_reach_the_superblock() {
    let images = Images::new();
    let (cache, backing) = (images.image("cache", 80 * MIB), images.image("backing", 9 * MIB));
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    let set = "11111111-2222-3333-4444-555555555555";
    succeed(
        &format!(
            "make -C CACHE -B BACKING --bucket 128k --block 2k --data-offset 1M --label a-label \
             --writeback --discard --cache-replacement-policy random --cset-uuid {set}"
        ),
        named,
    );
    let sb = superblock(&cache);
    assert!(sb.csum_ok() && sb.discard() && !sb.sync());
    assert_eq!((sb.bucket_size(), sb.block_size(), sb.nbuckets()), (Sectors(256), Sectors(4), 640));
    assert_eq!(sb.replacement(), Some(Replacement::Random));
    assert_eq!((sb.label().to_string(), sb.set_uuid().to_string()), ("a-label".into(), set.into()));
    let sb = superblock(&backing);
    assert_eq!((sb.data_offset(), sb.block_size()), (Sectors(2048), Sectors(4)));
    assert_eq!(sb.cache_mode().unwrap().name(), "writeback");
    assert_eq!((sb.label().to_string(), sb.set_uuid().to_string()), ("a-label".into(), set.into()));

    for (spelling, policy) in [
        ("--cache_replacement_policy=fifo", Replacement::Fifo),
        ("--cache_replacement_policy random", Replacement::Random),
        ("--cache-replacement-policy=fifo", Replacement::Fifo),
        ("--cache-replacement-policy lru", Replacement::Lru),
        ("", Replacement::Lru),
    ] {
        succeed(&format!("make {spelling} -C CACHE --wipe-bcache"), named);
        assert_eq!(superblock(&cache).replacement(), Some(policy), "{spelling}");
    }
    // Whole labels of 31 bytes, and of characters that are more than one.
    for label in ["0123456789012345678901234567890", "größe-in-Metern", ""] {
        let arguments = ["make", "-C", "--wipe-bcache", "--label", label];
        bcachectl().args(arguments).arg(&cache).assert().success();
        assert_eq!(superblock(&cache).label().to_string(), label);
    }
}

/// A device too small for 513 buckets of the default size gets smaller ones, and is told.
#[test]
fn small_devices_get_smaller_buckets() {
    let images = Images::new();
    for (mib, bucket) in [(300, 1024), (257, 1024), (256, 512), (100, 256), (33, 128), (5, 16)] {
        let image = images.blank("image", mib * MIB);
        let printed = succeed("make -C IMAGE", &[("IMAGE", &image)]);
        assert_eq!(superblock(&image).bucket_size(), Sectors(bucket), "{mib} MiB");
        assert_eq!(printed.contains("instead of 512 KiB"), bucket != 1024, "{mib} MiB: {printed}");
    }
}

/// Blocks of images are our own choice: they get smaller before a device counts as too small.
#[test]
fn small_images_get_smaller_blocks() {
    let images = Images::new();
    let image = images.path("image");
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    let printed = succeed("make -C IMAGE --size 3M", named);
    assert!(printed.contains("blocks of 2 KiB instead of 4 KiB"), "{printed}");
    let sb = superblock(&image);
    assert_eq!((sb.block_size(), sb.bucket_size()), (Sectors(4), Sectors(8)));
    // Blocks that were asked for are kept, and named as what is in the way.
    refuse("make -C IMAGE -w 4k --wipe-bcache", named, 1, &["513", "--block at most 2 KiB"]);
    let said = stderr(&run("make -C IMAGE -w 4k --wipe-bcache", named));
    assert!(!said.contains("--bucket"), "{said}");
    // The default offset is no option that was given.
    let short = images.blank("short", 17 * 512);
    refuse("make -B SHORT", &[("SHORT", &short)], 1, &["17 sectors", "16", "block of 8"]);
    let said = stderr(&run("make -B SHORT", &[("SHORT", &short)]));
    assert!(!said.contains("--data-offset"), "{said}");
}

/// Options for devices of the other kind do no harm, and no good.
#[test]
fn options_without_a_device_are_noted() {
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    for (arguments, option) in [
        ("make -B IMAGE -b 4k", "--bucket"),
        ("make -B IMAGE --discard", "--discard"),
        ("make -B IMAGE --cache-replacement-policy fifo", "--cache-replacement-policy"),
        ("make -C IMAGE -o 64", "--data-offset"),
        ("make -C IMAGE --writeback", "--writeback"),
    ] {
        let printed = succeed(&format!("{arguments} --wipe-bcache"), named);
        assert!(printed.contains(&format!("note: {option} is for")), "{arguments}: {printed}");
    }
}

#[test]
fn size_makes_an_image() {
    let images = Images::new();
    let (cache, backing) = (images.path("cache"), images.path("backing"));
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    let dry = json("make --size 300M -C CACHE -B BACKING --dry-run --json", named);
    assert_eq!(dry["devices"][0]["created"], true);
    assert!(!cache.exists() && !backing.exists(), "a dry run made an image");
    succeed("make --size 300M -C CACHE -B BACKING", named);
    for (image, kind) in [(&cache, Kind::Cache), (&backing, Kind::Backing)] {
        assert_eq!(fs::metadata(image).unwrap().len(), 300 * MIB);
        assert_eq!(superblock(image).kind(), Some(kind));
    }
    // One that is there already keeps the other from being made.
    let third = images.path("third");
    let state_before = state(&cache);
    let output = run("make --size 300M -C THIRD -B CACHE", &[("THIRD", &third), ("CACHE", &cache)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!third.exists() && state(&cache) == state_before);
    // As one in a folder that is not there does.
    let output = run("make --size 300M -B THIRD /nonexistent/image", &[("THIRD", &third)]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(!third.exists(), "{}", stderr(&output));
    let said = &["/nonexistent/image", "No such file"];
    refuse("make --size 300M -n -B /nonexistent/image", &[], 1, said);
    // And a size that is too small for a cache.
    let output = run("make --size 2M -C THIRD", &[("THIRD", &third)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!third.exists(), "{}", stderr(&output));
}

/// A dry run writes nothing and shows the steps of the real run.
#[test]
fn dry_run_is_the_plan() {
    let images = Images::new();
    let (cache, backing) = (images.image("cache", 40 * MIB), images.image("backing", 9 * MIB));
    put_swap(&cache);
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    let arguments = "make --json --force --discard -C CACHE -B BACKING \
                     --cset-uuid 11111111-2222-3333-4444-555555555555";
    let before = (state(&cache), state(&backing));
    let dry = json(&format!("{arguments} --dry-run"), named);
    let human = succeed(&format!("{arguments} --dry-run").replace("--json", ""), named);
    assert!(before == (state(&cache), state(&backing)), "a dry run wrote");
    let real = json(arguments, named);
    assert_eq!((&dry["dry_run"], &real["dry_run"]), (&Value::Bool(true), &Value::Bool(false)));
    for (dry, real) in devices(&dry).iter().zip(devices(&real)) {
        assert_eq!((&dry["formatted"], &real["formatted"]), (&false.into(), &true.into()));
        for key in ["steps", "destroys", "notes", "kind", "size_sectors", "kernel"] {
            assert_eq!(dry[key], real[key], "{key}");
        }
        assert!(!dry["steps"].as_array().unwrap().is_empty());
    }
    assert!(dry["devices"][0]["destroys"][0].as_str().unwrap().contains("swap"), "{dry}");
    for step in dry["devices"][0]["steps"].as_array().unwrap() {
        let name = step["step"].as_str().unwrap();
        assert!(human.contains(name), "no {name} in {human}");
    }
    // The written bytes are where the steps say, and nowhere else.
    let written = state_bytes(&backing);
    assert!(written[8192..65536].iter().all(|byte| *byte == 0x5a));
    assert!(written[..4096].iter().all(|byte| *byte == 0));
}

fn devices(document: &Value) -> &Vec<Value> {
    document["devices"].as_array().unwrap()
}

fn state_bytes(image: &Path) -> Vec<u8> {
    fs::read(image).unwrap()
}

fn put_swap(image: &Path) {
    let mut header = vec![0; 4096];
    header[1024] = 1; // version
    header[1028..1032].copy_from_slice(&2559_u32.to_le_bytes()); // last page
    header[1036..1052].copy_from_slice(&[7; 16]);
    header[1052..1059].copy_from_slice(b"my-swap");
    header[4086..].copy_from_slice(b"SWAPSPACE2");
    write_at(image, 0, &header);
}

fn put_ext4(image: &Path) {
    let mut sb = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| sb[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &1024_u32.to_le_bytes()); // inodes
    put(4, &8192_u32.to_le_bytes()); // blocks
    put(24, &2_u32.to_le_bytes()); // of 4 KiB
    put(32, &32768_u32.to_le_bytes());
    put(40, &1024_u32.to_le_bytes());
    put(56, &0xef53_u16.to_le_bytes());
    put(58, &1_u16.to_le_bytes());
    put(76, &1_u32.to_le_bytes());
    put(88, &256_u16.to_le_bytes());
    put(92, &4_u32.to_le_bytes()); // journal
    put(96, &0x42_u32.to_le_bytes()); // extents, file types
    put(104, &[9; 16]);
    put(120, b"my-files");
    write_at(image, 1024, &sb);
}

fn put_lvm(image: &Path) {
    let mut label = vec![0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"abcdefABCDEF0123456789abcdefABCD");
    let crc = crc32(&label[20..], 0xf597_a6cf).to_le_bytes();
    label[16..20].copy_from_slice(&crc);
    write_at(image, 512, &label);
}

/// A GUID partition table with one partition, both copies of it.
fn put_gpt(image: &Path) {
    let last = fs::metadata(image).unwrap().len() / 512 - 1;
    let mut mbr = vec![0; 512];
    mbr[450] = 0xee;
    mbr[454] = 1;
    mbr[458..462].copy_from_slice(&u32::try_from(last).unwrap().to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    write_at(image, 0, &mbr);
    let mut entries = vec![0; 128 * 128];
    entries[..16].copy_from_slice(&[3; 16]);
    entries[16..32].copy_from_slice(&[4; 16]);
    entries[32..40].copy_from_slice(&2048_u64.to_le_bytes());
    entries[40..48].copy_from_slice(&4095_u64.to_le_bytes());
    let header = |own: u64, other: u64, table: u64| {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&own.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[40..48].copy_from_slice(&34_u64.to_le_bytes());
        header[48..56].copy_from_slice(&(last - 33).to_le_bytes());
        header[56..72].copy_from_slice(&[5; 16]);
        header[72..80].copy_from_slice(&table.to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&(!crc32(&entries, !0)).to_le_bytes());
        let crc = !crc32(&header[..92], !0);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    };
    write_at(image, 512, &header(1, last, 2));
    write_at(image, 1024, &entries);
    write_at(image, last * 512, &header(last, 1, last - 32));
    write_at(image, (last - 32) * 512, &entries);
}

fn crc32(bytes: &[u8], seed: u32) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// What is on a device is refused without its override, told, and gone with it.
#[test]
fn what_is_there_needs_an_override() {
    type Put = fn(&Path);
    let cases: &[(&str, Put, &[&str])] = &[
        ("ext4", put_ext4, &["my-files"]),
        ("swap", put_swap, &["my-swap"]),
        ("LVM2_member", put_lvm, &["abcdef"]),
        ("gpt", put_gpt, &["partition 1"]),
    ];
    for (name, put, words) in cases {
        let images = Images::new();
        let (other, image) = (images.image("other", 40 * MIB), images.blank("image", 40 * MIB));
        put(&image);
        let named: &[(&str, &Path)] = &[("OTHER", &other), ("IMAGE", &image)];
        let said = [&["image", *name, "--force"], *words].concat();
        refuse("make -B IMAGE", named, 1, &said);
        refuse("make -C IMAGE", named, 1, &said);
        refuse("make -B OTHER IMAGE", named, 1, &said);
        refuse("make -B IMAGE --wipe-bcache", named, 1, &said);
        refuse("make -B IMAGE --yes", named, 1, &said);
        let printed = json("make -C IMAGE --force --json", named);
        assert!(printed["devices"][0]["destroys"][0].as_str().unwrap().contains(name));
        assert_eq!(types_found(&image), ["bcache"], "{name}");
    }
    // Two things on one device take both overrides.
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    succeed("make -B IMAGE -l my-volume", named);
    refuse("make -B IMAGE", named, 1, &["backing", "my-volume", "--wipe-bcache"]);
    refuse("make -C IMAGE --force", named, 1, &["backing", "my-volume", "--wipe-bcache"]);
    write_at(&image, 1024 + 56, &[0]);
    put_gpt(&image);
    succeed_bcache_again(&image);
    // Named are those that are missing.
    refuse("make -B IMAGE", named, 1, &["add --wipe-bcache and --force\n", "gpt", "40 MiB"]);
    refuse("make -B IMAGE --force", named, 1, &["add --wipe-bcache\n", "gpt"]);
    refuse("make -B IMAGE --wipe-bcache", named, 1, &["add --force\n", "gpt"]);
    succeed("make -C IMAGE --wipe-bcache --force", named);
    assert_eq!(types_found(&image), ["bcache"]);
    assert_eq!(superblock(&image).kind(), Some(Kind::Cache));
}

/// A bcache device in a partition is lost with the table, as one on the whole device would be.
#[test]
fn bcache_in_a_partition_needs_its_override() {
    let images = Images::new();
    let (image, donor) = (images.blank("image", 40 * MIB), images.blank("donor", MIB));
    succeed("make -B DONOR", &[("DONOR", &donor)]);
    put_gpt(&image);
    write_at(&image, 2048 * 512 + 4096, superblock(&donor).as_bytes());
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    refuse("make -B IMAGE --force", named, 1, &["partition 1", "bcache", "add --wipe-bcache\n"]);
    refuse("make -B IMAGE --wipe-bcache", named, 1, &["add --force\n"]);
    succeed("make -B IMAGE --wipe-bcache --force", named);
}

/// Puts a superblock back that the partition table's entries have overwritten.
fn succeed_bcache_again(image: &Path) {
    let images = Images::new();
    let donor = images.blank("donor", fs::metadata(image).unwrap().len());
    succeed("make -B DONOR -l my-volume", &[("DONOR", &donor)]);
    write_at(image, 4096, superblock(&donor).as_bytes());
}

fn types_found(image: &Path) -> Vec<String> {
    let found = bcache_core::device::probe::probe(image).unwrap();
    found.into_iter().map(|found| found.type_name).collect()
}

/// A superblock whose checksum is bad is still somebody's device.
#[test]
fn a_damaged_superblock_needs_the_override_too() {
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    succeed("make -B IMAGE", named);
    // In one place: what it was says that no cache has data of it.
    write_at(&image, 4096 + 112, &[1]);
    refuse("make -B IMAGE", named, 1, &["add --wipe-bcache\n"]);
    write_at(&image, 4096 + 80, &[1]);
    let said = &["--wipe-bcache", "--lose-dirty-data", "cannot be told"];
    refuse("make -B IMAGE", named, 1, said);
    // What it says of itself, that no cache has data of it, may be part of the damage.
    refuse("make -B IMAGE --wipe-bcache", named, 1, &["add --lose-dirty-data"]);
    succeed("make -B IMAGE --wipe-bcache --lose-dirty-data", named);
}

/// Some underscores come from old notes, installers and bcache-tools themselves.
#[test]
fn options_take_underscores() {
    let images = Images::new();
    let image = images.blank("image", 80 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    let set = "11111111-2222-3333-4444-555555555555";
    succeed(&format!("make --bdev --data_offset 8192 --cset_uuid {set} --block 4k IMAGE"), named);
    let sb = superblock(&image);
    assert_eq!((sb.data_offset(), sb.set_uuid().to_string()), (Sectors(8192), set.to_owned()));
    succeed("make -B IMAGE --wipe_bcache --dry_run", named);
    assert_eq!(superblock(&image), sb);
    succeed("make -B IMAGE --wipe_bcache", named);
    assert_ne!(superblock(&image), sb);
}

/// make-bcache ignores the unit of a data offset: what was taken is said.
#[test]
fn the_data_offset_is_said_in_sectors_and_bytes() {
    let images = Images::new();
    let image = images.blank("image", 400 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    for (offset, said, sectors) in [
        (
            "161280k",
            "note: --data-offset: the data starts at sector 322560 (byte 165150720)",
            322_560,
        ),
        (
            "161280",
            "note: --data-offset: the data starts at sector 161280 (byte 82575360)",
            161_280,
        ),
        ("1M", "note: --data-offset: the data starts at sector 2048 (byte 1048576)", 2048),
    ] {
        let printed = succeed(&format!("make -B IMAGE --wipe-bcache -o {offset}"), named);
        assert!(printed.contains(said), "{printed}");
        assert_eq!(superblock(&image).data_offset(), Sectors(sectors));
    }
    let printed = succeed("make -B IMAGE --wipe-bcache", named);
    assert!(!printed.contains("data-offset"), "{printed}");
}

/// Data that nobody can name is not nothing, be it where a superblock goes or before.
#[test]
fn unknown_data_needs_force() {
    for (at, said) in [
        (0, "unknown data (from byte 0 on)"),
        (511, "unknown data (from byte 511 on)"),
        (4096, "unknown data (from byte 4096 on)"),
        (8191, "unknown data (from byte 8191 on)"),
    ] {
        let images = Images::new();
        let image = images.blank("image", 40 * MIB);
        let named: &[(&str, &Path)] = &[("IMAGE", &image)];
        write_at(&image, at, &[7]);
        refuse("make -B IMAGE", named, 1, &[said, "add --force\n"]);
        refuse("make -C IMAGE --wipe-bcache --yes", named, 1, &[said, "add --force\n"]);
        let made = json("make -C IMAGE --force --json", named);
        assert_eq!(made["devices"][0]["destroys"][0], said);
    }
    // Behind it, nothing is overwritten.
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    write_at(&image, 8192, &[7]);
    succeed("make -B IMAGE", &[("IMAGE", &image)]);
    // Before a bcache superblock it belongs to somebody else.
    write_at(&image, 100, &[7]);
    refuse(
        "make -B IMAGE",
        &[("IMAGE", &image)],
        1,
        &["a bcache backing device", "from byte 100 on", "add --wipe-bcache and --force\n"],
    );
}

/// bcachefs stands where bcache does; older libblkid knows neither its new magic nor that the old one
/// was bcache's.
#[test]
fn bcachefs_is_not_formatted_over() {
    let new = 0xc685_73f6_66ce_90a9_d96a_60cf_803d_f7ef_u128.to_be_bytes();
    let old = 0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81_u128.to_be_bytes();
    for magic in [new, old] {
        let images = Images::new();
        let image = images.blank("image", 40 * MIB);
        let named: &[(&str, &Path)] = &[("IMAGE", &image)];
        for (at, bytes) in [
            (4096, &[0x12_u8; 8] as &[u8]),
            (4096 + 24, &magic),
            (4096 + 56, &[0x22; 16]),
            (4096 + 72, b"my-files"),
            (4096 + 104, &[8]),
            (4096 + 240, &magic),
            (4096 + 240 + 18, &[2]),
            (4096 + 240 + 24, &[8]),
            (4096 + 240 + 32, &[136]),
            // The copy.
            (136 * 512 + 24, &magic),
        ] {
            write_at(&image, at, bytes);
        }
        let said =
            &["a file system (bcachefs), label \"my-files\", UUID 22222222-", "add --force\n"];
        refuse("make -B IMAGE", named, 1, said);
        refuse("make -C IMAGE --wipe-bcache", named, 1, said);
        succeed("make -B IMAGE --force", named);
        assert_eq!(types_found(&image), ["bcache"]);
        // Its copies are gone as well.
        assert_eq!(state_bytes(&image)[136 * 512..136 * 512 + 512], [0; 512]);
    }
}

/// `wipefs` takes the magic, and all else stays.
#[test]
fn a_wiped_magic_needs_the_override() {
    for (kind, needs) in [("-C", "add --wipe-bcache\n"), ("-B", "add --wipe-bcache\n")] {
        for wiped in [[0; 16], [0xff; 16]] {
            let images = Images::new();
            let image = images.blank("image", 40 * MIB);
            let named: &[(&str, &Path)] = &[("IMAGE", &image)];
            succeed(&format!("make {kind} IMAGE -l my-volume"), named);
            write_at(&image, 4096 + 24, &wiped);
            let said = &["my-volume", "its magic wiped", needs];
            refuse("make -C IMAGE", named, 1, said);
            refuse("make -B IMAGE --force", named, 1, said);
            succeed("make -B IMAGE --wipe-bcache", named);
        }
    }
}

/// The kernel attaches no backing device with smaller blocks than its set's.
#[test]
fn a_set_that_was_not_found_is_said() {
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    let set = "--cset-uuid 11111111-2222-3333-4444-555555555555";
    let printed = succeed(&format!("make -w 512 -B IMAGE {set}"), named);
    assert!(printed.contains("note: the set was not found here"), "{printed}");
    for harmless in [format!("-w 4k -B IMAGE {set}"), "-w 512 -B IMAGE".to_owned()] {
        let printed = succeed(&format!("make --wipe-bcache {harmless}"), named);
        assert!(!printed.contains("was not found"), "{printed}");
    }
}

#[test]
fn the_end_says_what_was_made() {
    let images = Images::new();
    let (cache, first, second) = (
        images.blank("cache", 40 * MIB),
        images.blank("first", 40 * MIB),
        images.blank("second", 40 * MIB),
    );
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("FIRST", &first), ("SECOND", &second)];
    let printed = succeed("make -C CACHE -B FIRST SECOND", named);
    assert!(printed.ends_with("\n1 cache device and 2 backing devices formatted\n"), "{printed}");
    let printed = succeed("make -n --wipe-bcache -C CACHE", named);
    assert!(!printed.contains("formatted\n"), "{printed}");
}

/// The set's uuid given again: the old journal would come back (docs/on-disk-format.md §1.5), so it
/// is wiped.
#[test]
fn an_old_journal_of_the_same_set_is_wiped() {
    let images = Images::new();
    let image = images.image("image", 300 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    let set = "11111111-2222-3333-4444-555555555555";
    let bucket = 512 << 10;
    // 600 buckets: the kernel makes 4 journal buckets from bucket 1 on.
    for index in 0..6 {
        write_at(&image, (1 + index) * bucket, &[0xaa; 4096]);
    }
    let printed = succeed(&format!("make -C IMAGE --cset-uuid {set}"), named);
    assert!(printed.contains("journal"), "{printed}");
    let bytes = state_bytes(&image);
    for index in 0..6_u64 {
        let start = usize::try_from((1 + index) * bucket).unwrap();
        let wiped = bytes[start..start + 4096].iter().all(|byte| *byte == 0);
        assert_eq!(wiped, index < 4, "bucket {}", index + 1);
    }
    // A fresh uuid needs none of that.
    write_at(&image, bucket, &[0xaa; 4096]);
    succeed("make -C IMAGE --wipe-bcache", named);
    let start = usize::try_from(bucket).unwrap();
    assert!(state_bytes(&image)[start..start + 4096].iter().all(|byte| *byte == 0xaa));
}

/// Several caches in one command become sets of their own.
#[test]
fn several_caches_are_several_sets() {
    let images = Images::new();
    let (first, second) = (images.blank("first", 40 * MIB), images.blank("second", 40 * MIB));
    succeed("make -C FIRST SECOND", &[("FIRST", &first), ("SECOND", &second)]);
    let uuids: BTreeSet<_> = [&first, &second]
        .iter()
        .flat_map(|image| [superblock(image).uuid(), superblock(image).set_uuid()])
        .collect();
    assert_eq!(uuids.len(), 4);
}

/// Permissions of the file are enough to refuse, for those whom permissions hold back.
#[test]
fn a_user_without_rights_is_refused() {
    let images = Images::new();
    fs::set_permissions(images.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let image = images.image("image", 40 * MIB);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let program = images.path("bcachectl");
    // By cp: what other tests start meanwhile inherits a file that this process writes, and a program
    // that somebody has open for writing cannot be run (ETXTBSY).
    let built = assert_cmd::cargo::cargo_bin("bcachectl");
    assert!(Command::new("cp").arg(built).arg(&program).status().unwrap().success());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).arg(&image).stdin(Stdio::null());
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command.output().unwrap()
    };
    let before = state(&image);
    for arguments in [&["make", "-C"] as &[_], &["make", "-C", "--dry-run"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("image is read-only"), "{}", stderr(&output));
    }
    assert!(state(&image) == before);
    // Neither can be told of what may not be read at all.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o200)).unwrap();
    for command in ["make", "show"] {
        let output = run(if command == "make" { &["make", "-C"] } else { &["show"] });
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("ermission denied"), "{}", stderr(&output));
    }
    // Looking takes the right to read, no more.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    succeed("make -B IMAGE", &[("IMAGE", &image)]);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let output = run(&["show"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Nobody reads the output: the device is formatted, and that is no failure.
#[test]
fn a_closed_pipe_is_no_failure() {
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop::<OwnedFd>(reader);
    let output = Command::new(assert_cmd::cargo::cargo_bin("bcachectl"))
        .args(["make", "-C"])
        .arg(&image)
        .stdin(Stdio::null())
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    assert!(superblock(&image).csum_ok());
}

/// The device is formatted, and the report is lost: that must not pass for "nothing was written".
#[test]
fn a_report_that_cannot_be_written_is_no_refusal() {
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    for options in [&[] as &[_], &["--json"]] {
        let output = Command::new(assert_cmd::cargo::cargo_bin("bcachectl"))
            .args(["make", "--wipe-bcache", "-C"])
            .arg(&image)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::from(File::options().write(true).open("/dev/full").unwrap()))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        let formatted = format!("formatted: {}; but the report", image.display());
        assert!(said.contains(&formatted) && said.contains("No space left"), "{said}");
        assert!(superblock(&image).csum_ok());
    }
}

/// Paths are bytes, JSON is text.
#[test]
fn paths_of_any_bytes_are_reported() {
    let images = Images::new();
    let (cache, backing) = (
        images.folder().join(OsStr::from_bytes(b"cache-\xff")),
        images.folder().join(OsStr::from_bytes(b"backing-\xfe")),
    );
    let named: &[(&str, &Path)] = &[("CACHE", &cache), ("BACKING", &backing)];
    let made = json("make --json --size 40M -C CACHE -B BACKING", named);
    let shown = json("show --json CACHE BACKING", named);
    for document in [made, shown] {
        let path = document["devices"][0]["path"].as_str().unwrap();
        assert!(path.ends_with("cache-\u{fffd}"), "{path}");
        assert_eq!(document["devices"].as_array().unwrap().len(), 2);
    }
}

/// A dry run refuses what the run would refuse, another's claim included.
#[test]
fn a_dry_run_sees_a_locked_image() {
    let images = Images::new();
    let image = images.blank("image", 40 * MIB);
    let named: &[(&str, &Path)] = &[("IMAGE", &image)];
    let claim = bcache_core::device::open_write(&image).unwrap();
    let output = run("make -C IMAGE", named);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("locked by another process"), "{}", stderr(&output));
    refuse("make -C IMAGE --dry-run", named, 1, &["locked by another process"]);
    drop(claim);
    // A program that another test has just started holds the lock until it is exec'd: forks share it.
    let free = (0..100).any(|_| {
        let output = run("make -C IMAGE --dry-run", named);
        output.status.success() || {
            std::thread::sleep(Duration::from_millis(50));
            false
        }
    });
    assert!(free, "locked by nobody, and not free after 5 seconds");
}
