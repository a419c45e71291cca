//! What `show` says of a backing device's data and how it is reached, of what udev takes the device for,
//! and of devices with the same UUID.

use std::fs;
use std::path::{Path, PathBuf};

use bcache_core::device::testkit::raid_member;
use bcache_tests::image::write_at;
use bcache_tests::tool::{self, make, show};
use bcache_tests::{Fixture, LoopDevice, Scratch};
use serde_json::Value;

/// Where the data of a backing device starts.
const DATA: u64 = 8192;

/// Bytes, and where they go.
type Pieces<'p> = &'p [(u64, &'p [u8])];

fn backing(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.sparse(name, 64 << 20).unwrap();
    make(["-B", path.to_str().unwrap()]).unwrap();
    path
}

fn put(image: &Path, pieces: Pieces<'_>) {
    for (at, bytes) in pieces {
        write_at(image, DATA + at, bytes).unwrap();
    }
}

fn warnings(shown: &Value) -> String {
    let warnings = shown["kernel"]["warnings"].as_array().unwrap();
    warnings.iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_data_is_named_with_the_command_that_reaches_it() {
    let ext2: Pieces<'_> = &[
        (1024, &64u32.to_le_bytes()),
        (1028, &512u32.to_le_bytes()),
        (1080, &0xef53u16.to_le_bytes()),
        (1100, &1u32.to_le_bytes()),
        (1144, b"my-files"),
    ];
    let mbr: Pieces<'_> = &[
        (440, &[0xde, 0xad, 0xbe, 0xef]),
        (450, &[0x83]),
        (454, &2048u32.to_le_bytes()),
        (458, &2048u32.to_le_bytes()),
        (510, &[0x55, 0xaa]),
    ];
    let luks: Pieces<'_> =
        &[(0, b"LUKS\xba\xbe\0\x01"), (168, b"22222222-2222-2222-2222-222222222222\0")];
    let cases: [(Pieces<'_>, &str, &str); 5] = [
        (ext2, "a file system (ext2), label \"my-files\"", "mount -o ro,loop,offset=8192"),
        (mbr, "a partition table (dos)", "--partscan"),
        (luks, "an encrypted volume (crypto_LUKS)", "cryptsetup open --readonly /dev/loopN"),
        (&[(70_000, b"data")], "data of an unknown format", "losetup"),
        (&[], "nothing that could be found", "losetup"),
    ];
    let scratch = Scratch::new().unwrap();
    for (index, (pieces, contents, command)) in cases.into_iter().enumerate() {
        let image = backing(&scratch, &format!("backing{index}"));
        put(&image, pieces);
        let data = show(&image).unwrap()["data"].clone();
        assert!(data["contents"].as_str().unwrap().starts_with(contents), "{data}");
        let commands = data["commands"].as_array().unwrap();
        let has = |wanted| commands.iter().any(|it| it.as_str().unwrap().contains(wanted));
        assert!(has(command), "{data}");
        assert_eq!(
            has("mount "),
            !["partition", "encrypted"].iter().any(|it| contents.contains(it))
        );
    }
    // bcache in bcache.
    let outer = backing(&scratch, "outer");
    let inner = fs::read(backing(&scratch, "inner")).unwrap();
    put(&outer, &[(0, &inner[..16384])]);
    let data = show(&outer).unwrap()["data"].clone();
    assert!(data["contents"].as_str().unwrap().contains("bcache"), "{data}");
    assert!(data["commands"][1].as_str().unwrap().starts_with("bcachectl show"), "{data}");
}

/// A volume that a stock kernel wrote random data to, and its warning before the commands.
#[test]
fn a_warning_stands_before_the_commands_where_data_is_missing() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let output = tool::run(["show".as_ref(), fixture.backing[0].as_os_str()]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let warning = text.find("INCOMPLETE").expect("a warning");
    assert!(warning < text.find("data without bcache").unwrap(), "{text}");
}

#[test]
fn a_raid_superblock_at_the_end_keeps_udev_from_registering() {
    let scratch = Scratch::new().unwrap();
    let image = backing(&scratch, "member");
    assert!(!warnings(&show(&image).unwrap()).contains("udev"));
    let (at, block) = raid_member(64 << 20);
    write_at(&image, at, &block).unwrap();
    let shown = show(&image).unwrap();
    assert!(warnings(&shown).contains("linux_raid_member"), "{shown}");
    assert!(warnings(&shown).contains("not registered at boot"), "{shown}");
    let fixture = Fixture::unpack("clean-612").unwrap();
    assert!(!warnings(&show(&fixture.backing[0]).unwrap()).contains("udev"));
}

#[test]
fn a_copy_is_told_from_a_layer() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let scratch = Scratch::new().unwrap();
    for original in [&fixture.cache, &fixture.backing[0]] {
        let copy = scratch.copy("copy", original).unwrap();
        let output = tool::bcachectl()
            .unwrap()
            .args(["show", "--json"])
            .args([original, &copy])
            .output()
            .unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        for device in shown["devices"].as_array().unwrap() {
            assert!(warnings(device).contains("one is a copy of the other"), "{device}");
        }
        let other = backing(&scratch, "other");
        assert!(!warnings(&show(&other).unwrap()).contains("copy"));
        fs::remove_file(other).unwrap();
    }
    // A loop device and the image under it are one.
    if bcache_tests::need::unmet(&[bcache_tests::Need::LoopDevices]).is_none() {
        let device = LoopDevice::attach(&fixture.backing[0], 512).unwrap();
        assert!(!warnings(&show(device.path()).unwrap()).contains("copy"));
    }
}
