//! Who holds a device: mounts, swap, devices built on it, bcache itself, loop devices.
//!
//! The kernel alone decides whether a device can be claimed (`O_EXCL`); what is found here explains
//! its answer. The exception is a loop device, which does not hold the file or device that it
//! reads: that one is refused because of what is found here.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::sysfs::{BlockDir, DeviceNumber, Registered, Root};

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
    /// A loop device reads it.
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
pub fn holders_of_in(root: &Root, path: &Path) -> Vec<Holder> {
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
pub fn holders_of_device(root: &Root, device: &BlockDir) -> Vec<Holder> {
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
    let registered = device.bcache();
    match &registered {
        Some(Registered::Cache(cache)) => {
            holders.push(Holder::BcacheCache { set_uuid: cache.set_uuid });
        }
        Some(Registered::Backing(backing)) => holders.push(Holder::BcacheBacking {
            device: backing.device.clone(),
            set_uuid: backing.set_uuid,
        }),
        None => {}
    }
    for holder in device.holders() {
        let name = holder.name().to_owned();
        if let Some(mapping) = holder.attribute("dm/name") {
            holders.push(Holder::DeviceMapper { name, mapping: Some(mapping) });
        } else if name.starts_with("dm-") {
            holders.push(Holder::DeviceMapper { name, mapping: None });
        } else if registered.is_none() || !name.starts_with("bcache") {
            // Below a registered device, bcacheN says nothing new.
            holders.push(Holder::Device { name });
        }
    }
    holders.extend(loops_reading_where(root, |backing| names_device(backing, device)));
    holders
}

/// The loop devices that read the file or block device with this metadata.
pub(super) fn loops_reading(root: &Root, of: &Metadata) -> Vec<Holder> {
    loops_reading_where(root, |backing| is_same_file(of, backing))
}

fn loops_reading_where(root: &Root, matches: impl Fn(&Path) -> bool) -> Vec<Holder> {
    let Ok(devices) = BlockDir::all(root) else { return Vec::new() };
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
