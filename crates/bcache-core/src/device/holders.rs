//! Who holds a device: mounts, swap, devices built on it, bcache itself, loop devices.
//!
//! The kernel alone decides whether a device can be claimed (`O_EXCL`); what is found here explains
//! its answer. The exception is a loop device, which does not hold the file or device that it
//! reads: that one is refused because of what is found here.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, Metadata};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::sysfs::{BlockDir, DeviceNumber, Role, Root};

/// Something that uses a device or an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A mounted file system.
    Mount {
        /// The mount point.
        at: PathBuf,
        /// Its type, such as `ext4`.
        filesystem: String,
    },
    /// A mounted btrfs that this device is one of several of.
    BtrfsMember {
        /// The file system's UUID as sysfs names it.
        uuid: String,
    },
    /// The kernel swaps to it.
    Swap,
    /// A device-mapper device is built on it.
    DeviceMapper {
        /// The kernel's name, such as `dm-0`.
        name: String,
        /// The name of the mapping, such as `vg-lv`.
        mapping: Option<String>,
    },
    /// Another device is built on it, such as `md0`.
    Device {
        /// The kernel's name.
        name: String,
    },
    /// bcache runs it as a cache.
    BcacheCache {
        /// The cache set.
        set_uuid: Option<Uuid>,
    },
    /// bcache has it as a backing device.
    BcacheBacking {
        /// The device it runs as, such as `bcache0`; none while it waits for its cache set.
        device: Option<String>,
        /// The set it is attached to.
        set_uuid: Option<Uuid>,
    },
    /// A loop device reads it, or reads the file that it reads.
    Loop {
        /// The loop device, such as `loop0`.
        name: String,
    },
    /// A partition of it is in use.
    Partition {
        /// The partition, such as `sda1`.
        name: String,
        /// Who uses the partition.
        holders: Vec<Holder>,
    },
    /// It is a partition, and the disk as a whole is in use.
    WholeDisk {
        /// The disk, such as `sda`.
        name: String,
        /// Who uses the disk.
        holders: Vec<Holder>,
    },
    /// Another process has locked the image.
    LockedImage,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { at, filesystem } => {
                write!(f, "mounted at {} ({filesystem})", at.display())
            }
            Self::BtrfsMember { uuid } => write!(f, "part of the mounted btrfs {uuid}"),
            Self::Swap => f.write_str("used as swap"),
            Self::DeviceMapper { name, mapping: Some(mapping) } => {
                write!(f, "held by {name} ({mapping})")
            }
            Self::DeviceMapper { name, mapping: None } | Self::Device { name } => {
                write!(f, "held by {name}")
            }
            Self::BcacheCache { set_uuid: Some(set) } => {
                write!(f, "running as a cache of the bcache set {set}")
            }
            Self::BcacheCache { set_uuid: None } => f.write_str("registered as a bcache cache"),
            Self::BcacheBacking { device, set_uuid } => {
                match device {
                    Some(device) => write!(f, "running as the backing device of {device}")?,
                    None => f.write_str("registered as a bcache backing device")?,
                }
                match set_uuid {
                    Some(set) => write!(f, " (bcache set {set})"),
                    None => Ok(()),
                }
            }
            Self::Loop { name } => write!(f, "read by the loop device {name}"),
            Self::Partition { name, holders } => {
                write!(f, "its partition {name} is {}", join(holders, " and "))
            }
            Self::WholeDisk { name, holders } => {
                write!(f, "the whole disk {name} is {}", join(holders, " and "))
            }
            Self::LockedImage => f.write_str("locked by another process"),
        }
    }
}

fn join(holders: &[Holder], separator: &str) -> String {
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

/// The tail of a sentence "... is in use": who holds the device, each after a semicolon.
pub fn describe(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "; another program has it open for itself".to_owned();
    }
    format!("; {}", join(holders, "; "))
}

/// Who uses the device or image at `path`, as far as this process can see. Nothing seen does not
/// mean that it is free.
pub fn holders_of(path: &Path) -> Vec<Holder> {
    holders_of_in(&Root::system(), path)
}

/// [`holders_of`] against another root.
pub(crate) fn holders_of_in(root: &Root, path: &Path) -> Vec<Holder> {
    let Ok(metadata) = fs::metadata(path) else { return Vec::new() };
    if metadata.file_type().is_block_device() {
        let number = DeviceNumber::from_dev_t(metadata.rdev());
        return BlockDir::by_number(root, number)
            .map(|device| holders_of_device(root, &device))
            .unwrap_or_default();
    }
    let mut holders = loops_reading(root, &metadata);
    if swaps(root).iter().any(|swap| is_same_file(&metadata, swap)) {
        holders.push(Holder::Swap);
    }
    holders
}

/// Who uses a block device: itself, its partitions, and the disk it is a partition of.
pub(crate) fn holders_of_device(root: &Root, device: &BlockDir) -> Vec<Holder> {
    let mut holders = direct_holders(root, device);
    for partition in device.partitions() {
        let of_partition = direct_holders(root, &partition);
        if !of_partition.is_empty() {
            let name = partition.name().to_owned();
            holders.push(Holder::Partition { name, holders: of_partition });
        }
    }
    if let Some(disk) = device.disk() {
        let of_disk = direct_holders(root, &disk);
        if !of_disk.is_empty() {
            holders.push(Holder::WholeDisk { name: disk.name().to_owned(), holders: of_disk });
        }
    }
    holders
}

fn direct_holders(root: &Root, device: &BlockDir) -> Vec<Holder> {
    let mut holders = mounts_of(root, device);
    if !holders.iter().any(|holder| matches!(holder, Holder::Mount { .. })) {
        holders.extend(btrfs_membership(root, device));
    }
    if swaps(root).iter().any(|swap| names_device(swap, device)) {
        holders.push(Holder::Swap);
    }
    let role = device.role();
    let is_registered = role.is_some();
    holders.extend(role.map(|role| match role {
        Role::Cache { set_uuid } => Holder::BcacheCache { set_uuid },
        Role::Backing { device, set_uuid } => Holder::BcacheBacking { device, set_uuid },
    }));
    for holder in device.holders() {
        let name = holder.name().to_owned();
        if let Some(mapping) = holder.attribute("dm/name") {
            holders.push(Holder::DeviceMapper { name, mapping: Some(mapping) });
        } else if name.starts_with("dm-") {
            holders.push(Holder::DeviceMapper { name, mapping: None });
        } else if !is_registered || !name.starts_with("bcache") {
            // Below a registered device, bcacheN says nothing new.
            holders.push(Holder::Device { name });
        }
    }
    holders.extend(loops_reading_where(root, |backing| names_device(backing, device)));
    holders.extend(loops_beside(root, device));
    holders
}

/// The other loop devices that read any of the bytes that the loop device `device` reads: what is
/// written through one of them, they have in their page caches still.
pub(super) fn loops_beside(root: &Root, device: &BlockDir) -> Vec<Holder> {
    let Some(backing) = device.loop_backing_file() else { return Vec::new() };
    let own = loop_range(device);
    let is_same = |other: &Path| {
        // What was deleted, or lies in another mount namespace, has its name only.
        other == backing.as_path()
            || fs::metadata(&backing).is_ok_and(|it| is_same_file(&it, other))
    };
    let Ok(devices) = BlockDir::loops(root) else { return Vec::new() };
    devices
        .iter()
        .filter(|other| other.name() != device.name())
        .filter(|other| other.loop_backing_file().is_some_and(|file| is_same(&file)))
        .filter(|other| {
            let range = loop_range(other);
            range.start < own.end && own.start < range.end
        })
        .map(|other| Holder::Loop { name: other.name().to_owned() })
        .collect()
}

/// The bytes of its file that a loop device reads.
fn loop_range(device: &BlockDir) -> Range<u64> {
    let number =
        |name: &str| device.attribute(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let (start, limit): (u64, u64) = (number("loop/offset"), number("loop/sizelimit"));
    let end = if limit == 0 { u64::MAX } else { start.saturating_add(limit) };
    start..end
}

/// The loop devices that read the file or block device with this metadata.
pub(super) fn loops_reading(root: &Root, of: &Metadata) -> Vec<Holder> {
    loops_reading_where(root, |backing| is_same_file(of, backing))
}

fn loops_reading_where(root: &Root, matches: impl Fn(&Path) -> bool) -> Vec<Holder> {
    let Ok(devices) = BlockDir::loops(root) else { return Vec::new() };
    devices
        .iter()
        .filter(|device| device.loop_backing_file().is_some_and(|backing| matches(&backing)))
        .map(|device| Holder::Loop { name: device.name().to_owned() })
        .collect()
}

/// Whether `path` leads to the file, or to a node of the block device, that `metadata` is of.
fn is_same_file(metadata: &Metadata, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|other| {
        if metadata.file_type().is_block_device() {
            other.file_type().is_block_device() && other.rdev() == metadata.rdev()
        } else {
            other.dev() == metadata.dev() && other.ino() == metadata.ino()
        }
    })
}

/// Whether `path` is a node of `device`, by its name or by its number.
fn names_device(path: &Path, device: &BlockDir) -> bool {
    if path == device.node() {
        return true;
    }
    matches!(DeviceNumber::of_path(path), Ok(Some(number)) if Some(number) == device.number())
}

/// Where `device` is mounted.
///
/// A file system that spans devices (btrfs) shows a number of its own in mountinfo; then the
/// device that it names as the source counts.
fn mounts_of(root: &Root, device: &BlockDir) -> Vec<Holder> {
    let Ok(table) = fs::read(root.proc("self/mountinfo")) else { return Vec::new() };
    let mut mounts: Vec<Holder> = Vec::new();
    for line in table.split(|&byte| byte == b'\n') {
        let Some(mount) = MountLine::parse(line) else { continue };
        let by_number = mount.number.is_some() && mount.number == device.number();
        if by_number || names_device(&mount.source, device) {
            let holder = Holder::Mount { at: mount.at, filesystem: mount.filesystem };
            if !mounts.contains(&holder) {
                mounts.push(holder);
            }
        }
    }
    mounts
}

/// The fields of a line of mountinfo (`proc_pid_mountinfo(5)`) that matter here.
struct MountLine {
    number: Option<DeviceNumber>,
    at: PathBuf,
    filesystem: String,
    source: PathBuf,
}

impl MountLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let number = fields.nth(2)?;
        let at = fields.nth(1)?;
        // Optional fields end with a single dash.
        let mut fields = fields.skip_while(|&field| field != b"-").skip(1);
        let filesystem = fields.next()?;
        let source = fields.next()?;
        Some(Self {
            number: std::str::from_utf8(number).ok().and_then(DeviceNumber::parse),
            at: unescape(at).into(),
            filesystem: String::from_utf8_lossy(filesystem).into_owned(),
            source: unescape(source).into(),
        })
    }
}

/// Devices of a mounted btrfs are listed in sysfs by their kernel names.
fn btrfs_membership(root: &Root, device: &BlockDir) -> Option<Holder> {
    fs::read_dir(root.sys("fs/btrfs")).ok()?.find_map(|entry| {
        let entry = entry.ok()?;
        let member = entry.path().join("devices").join(device.name());
        member
            .exists()
            .then(|| Holder::BtrfsMember { uuid: entry.file_name().to_string_lossy().into_owned() })
    })
}

/// The devices and files that the kernel swaps to.
fn swaps(root: &Root) -> Vec<PathBuf> {
    let Ok(table) = fs::read(root.proc("swaps")) else { return Vec::new() };
    table
        .split(|&byte| byte == b'\n')
        .skip(1)
        .filter_map(|line| line.split(u8::is_ascii_whitespace).next())
        .filter(|name| !name.is_empty())
        .map(|name| PathBuf::from(unescape(name)))
        .collect()
}

/// Undoes the kernel's escapes of a path: a backslash and three octal digits.
fn unescape(text: &[u8]) -> OsString {
    if !text.contains(&b'\\') {
        return OsStr::from_bytes(text).to_owned();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.first_chunk::<3>().copied().filter(|_| byte == b'\\').and_then(octal);
        if let Some(decoded) = escaped {
            out.push(decoded);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::fake::Tree;
    use super::*;

    const SET: &str = "f0e1d2c3-b4a5-4697-8879-6a5b4c3d2e1f";

    /// A disk with two partitions and nothing on them.
    fn disk() -> Tree {
        let tree = Tree::new();
        tree.block("sda", "8:0", 4096);
        tree.block("sda/sda1", "8:1", 1024);
        tree.block("sda/sda2", "8:2", 1024);
        tree.write("proc/self/mountinfo", "22 1 0:21 / /proc rw,relatime - proc proc rw");
        tree.write("proc/swaps", "Filename Type Size Used Priority");
        tree
    }

    fn holders(tree: &Tree, name: &str) -> Vec<Holder> {
        holders_of_device(&tree.root(), &tree.device(name))
    }

    #[test]
    fn an_idle_disk_has_no_holders() {
        let tree = disk();
        for name in ["sda", "sda1", "sda2"] {
            assert_eq!(holders(&tree, name), []);
        }
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(holders_of_in(&Root::at(nothing.path()), nothing.path()), []);
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source() {
        let tree = disk();
        tree.write(
            "proc/self/mountinfo",
            "27 1 8:1 / / rw - ext4 /dev/root rw\n\
             30 27 8:1 /home /mnt/with\\040space\\134 rw shared:1 master:2 - ext4 /dev/root rw\n\
             31 27 0:55 /sub /data rw - btrfs /dev/sda2 rw",
        );
        let mount = |at: &str, filesystem: &str| Holder::Mount {
            at: PathBuf::from(at),
            filesystem: filesystem.to_owned(),
        };
        let root = vec![mount("/", "ext4"), mount("/mnt/with space\\", "ext4")];
        let data = vec![mount("/data", "btrfs")];
        assert_eq!(holders(&tree, "sda1"), root);
        assert_eq!(holders(&tree, "sda2"), data);
        let of_disk = [("sda1", root), ("sda2", data)]
            .map(|(name, holders)| Holder::Partition { name: name.to_owned(), holders });
        assert_eq!(holders(&tree, "sda"), of_disk);
        assert_eq!(
            describe(&of_disk),
            "; its partition sda1 is mounted at / (ext4) and mounted at /mnt/with space\\ (ext4)\
             ; its partition sda2 is mounted at /data (btrfs)"
        );
    }

    #[test]
    fn a_second_member_of_a_mounted_btrfs_is_held() {
        let tree = disk();
        tree.write("sys/fs/btrfs/1234/devices/sda2/fsid", "1234");
        assert_eq!(describe(&holders(&tree, "sda2")), "; part of the mounted btrfs 1234");
    }

    #[test]
    fn swap_is_found() {
        let tree = disk();
        tree.write(
            "proc/swaps",
            "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
             /dev/sda2                               partition\t512\t\t0\t\t-2",
        );
        assert_eq!(holders(&tree, "sda2"), [Holder::Swap]);
        assert_eq!(holders(&tree, "sda1"), []);
        assert_eq!(describe(&holders(&tree, "sda")), "; its partition sda2 is used as swap");
    }

    #[test]
    fn a_file_that_is_swapped_to_or_read_by_a_loop_device_is_found() {
        let tree = disk();
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("an image");
        fs::write(&image, [0; 512]).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, [0; 512]).unwrap();
        tree.block("loop3", "7:3", 1);
        tree.write("sys/devices/block/loop3/loop/backing_file", image.to_str().unwrap());
        tree.block("loop4", "7:4", 0);
        let escaped = image.to_str().unwrap().replace(' ', "\\040");
        tree.write("proc/swaps", &format!("Filename\n{escaped} file 4 0 -2"));
        let found = holders_of_in(&tree.root(), &image);
        assert_eq!(found, [Holder::Loop { name: "loop3".to_owned() }, Holder::Swap]);
        assert_eq!(describe(&found), "; read by the loop device loop3; used as swap");
        assert_eq!(holders_of_in(&tree.root(), &other), []);
    }

    #[test]
    fn a_device_read_by_a_loop_device_is_found() {
        let tree = disk();
        tree.block("loop3", "7:3", 1);
        tree.write("sys/devices/block/loop3/loop/backing_file", "/dev/sda1");
        assert_eq!(holders(&tree, "sda1"), [Holder::Loop { name: "loop3".to_owned() }]);
    }

    #[test]
    fn a_second_loop_device_over_the_same_bytes_is_found() {
        let tree = disk();
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, [0; 512]).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let attach = |name: &str, number: &str, file: &Path, offset: &str, limit: &str| {
            tree.block(name, number, 1);
            let dir = format!("sys/devices/block/{name}/loop");
            tree.write(&format!("{dir}/backing_file"), file.to_str().unwrap());
            tree.write(&format!("{dir}/offset"), offset);
            tree.write(&format!("{dir}/sizelimit"), limit);
        };
        attach("loop0", "7:0", &image, "0", "4096");
        attach("loop1", "7:1", &link, "0", "0");
        attach("loop2", "7:2", &image, "4096", "0");
        attach("loop3", "7:3", &dir.path().join("other"), "0", "0");
        let names = |name: &str| -> Vec<String> {
            holders(&tree, name).iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("loop0"), ["read by the loop device loop1"]);
        let both = ["read by the loop device loop0", "read by the loop device loop2"];
        assert_eq!(names("loop1"), both);
        assert_eq!(names("loop2"), ["read by the loop device loop1"]);
        assert_eq!(names("loop3"), [""; 0]);
    }

    #[test]
    fn devices_built_on_it_are_named() {
        let tree = disk();
        tree.block("dm-0", "253:0", 512);
        tree.write("sys/devices/block/dm-0/dm/name", "vg-lv");
        tree.block("md0", "9:0", 512);
        tree.link("sys/devices/block/dm-0", "sys/devices/block/sda/sda1/holders/dm-0");
        tree.link("sys/devices/block/md0", "sys/devices/block/sda/sda2/holders/md0");
        assert_eq!(describe(&holders(&tree, "sda1")), "; held by dm-0 (vg-lv)");
        assert_eq!(describe(&holders(&tree, "sda2")), "; held by md0");
    }

    #[test]
    fn a_partition_of_a_disk_in_use_is_held_by_way_of_the_disk() {
        let tree = disk();
        tree.block("md0", "9:0", 512);
        tree.link("sys/devices/block/md0", "sys/devices/block/sda/holders/md0");
        assert_eq!(describe(&holders(&tree, "sda1")), "; the whole disk sda is held by md0");
    }

    #[test]
    fn what_bcache_runs_is_told_once() {
        let tree = disk();
        tree.block("bcache0", "251:0", 512);
        let set = format!("sys/fs/bcache/{SET}");
        tree.write(&format!("{set}/synchronous"), "1");
        for (partition, attribute, link) in
            [("sda1", "nbuckets", "set"), ("sda2", "running", "cache")]
        {
            let dir = format!("sys/devices/block/sda/{partition}");
            tree.write(&format!("{dir}/bcache/{attribute}"), "1");
            tree.link(&set, &format!("{dir}/bcache/{link}"));
            tree.link("sys/devices/block/bcache0", &format!("{dir}/holders/bcache0"));
        }
        assert_eq!(
            describe(&holders(&tree, "sda1")),
            format!("; running as a cache of the bcache set {SET}")
        );
        assert_eq!(
            describe(&holders(&tree, "sda2")),
            format!("; registered as a bcache backing device (bcache set {SET})")
        );
        tree.link("sys/devices/block/bcache0", "sys/devices/block/sda/sda2/bcache/dev");
        assert_eq!(
            describe(&holders(&tree, "sda2")),
            format!("; running as the backing device of bcache0 (bcache set {SET})")
        );
    }

    #[test]
    fn without_a_known_holder_the_sentence_still_ends() {
        assert_eq!(describe(&[]), "; another program has it open for itself");
    }

    #[test]
    fn escapes_are_undone_and_anything_else_is_kept() {
        for (text, plain) in [
            ("a\\040b", "a b"),
            ("\\134", "\\"),
            ("\\", "\\"),
            ("\\04", "\\04"),
            ("\\+12", "\\+12"),
        ] {
            assert_eq!(unescape(text.as_bytes()), plain);
        }
    }
}
