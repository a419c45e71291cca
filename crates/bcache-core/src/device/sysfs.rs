//! What sysfs tells about the block devices of the machine, and about bcache running on them.
//!
//! Every function takes a [`Root`], so that tests can lay out a tree of their own. What sysfs does
//! not tell (an older kernel, a container without it) is `None`, never an error: these facts only
//! explain; what must hold is asked of the device itself.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

pub use super::root::Root;
use crate::units::Sectors;

/// The number by which the kernel knows a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The device's number within the driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the `st_rdev` or `st_dev` of a file.
    pub(crate) fn from_dev_t(dev: u64) -> Self {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            major: narrow(nix::sys::stat::major(dev)),
            minor: narrow(nix::sys::stat::minor(dev)),
        }
    }

    /// From `MAJOR:MINOR`, as sysfs and mountinfo write it.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// The number of the block device at `path`; `None` for anything else.
    pub fn of_path(path: &Path) -> io::Result<Option<Self>> {
        let metadata = fs::metadata(path)?;
        Ok(metadata.file_type().is_block_device().then(|| Self::from_dev_t(metadata.rdev())))
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The directory of one block device (a disk or a partition) in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDir {
    root: Root,
    name: String,
    dir: PathBuf,
}

impl BlockDir {
    /// The device with this number.
    pub(crate) fn by_number(root: &Root, number: DeviceNumber) -> Option<Self> {
        Self::at(root, &root.sys(format!("dev/block/{number}")))
    }

    /// The device with this kernel name, such as `sda1`.
    pub fn by_name(root: &Root, name: &str) -> Option<Self> {
        Self::at(root, &root.sys("class/block").join(name))
    }

    /// The device whose node is at `path`.
    pub fn of_path(root: &Root, path: &Path) -> Option<Self> {
        Self::by_number(root, DeviceNumber::of_path(path).ok()??)
    }

    /// Every block device that the kernel knows, in order of name (`sda2` before `sda10`).
    pub fn all(root: &Root) -> io::Result<Vec<Self>> {
        let class = root.sys("class/block");
        let mut found: Vec<Self> = root
            .names(&class)?
            .iter()
            .filter_map(|name| Self::at(root, &class.join(name)))
            .collect();
        found.sort_by_cached_key(|device| natural_key(&device.name));
        Ok(found)
    }

    /// Every loop device that reads something.
    pub fn loops(root: &Root) -> io::Result<Vec<Self>> {
        // By name first: with thousands of devices, following each link costs seconds.
        let class = root.sys("class/block");
        let mut found: Vec<Self> = root
            .names(&class)?
            .iter()
            .filter(|name| name.as_bytes().starts_with(b"loop"))
            .filter_map(|name| Self::at(root, &class.join(name)))
            .filter(|device| device.loop_backing_file().is_some())
            .collect();
        found.sort_by_cached_key(|device| natural_key(&device.name));
        Ok(found)
    }

    fn at(root: &Root, link: &Path) -> Option<Self> {
        let dir = root.resolve(link)?;
        let name = dir.file_name()?.to_str()?.to_owned();
        Some(Self { root: root.clone(), name, dir })
    }

    /// The directories in `dir`, and links to directories.
    fn subdirectories(&self, dir: &Path) -> Vec<Self> {
        let names = self.root.names(dir).unwrap_or_default();
        let paths = names.iter().map(|name| dir.join(name));
        paths
            .filter(|path| self.root.is_dir(path))
            .filter_map(|path| Self::at(&self.root, &path))
            .collect()
    }

    /// The kernel's name for it, such as `sda1` or `dm-0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node that devtmpfs makes for it.
    pub fn node(&self) -> PathBuf {
        node_of(&self.name)
    }

    /// Its number.
    pub fn number(&self) -> Option<DeviceNumber> {
        DeviceNumber::parse(&self.attribute("dev")?)
    }

    /// Its size; sysfs counts in sectors whatever the logical block.
    pub fn size(&self) -> Option<Sectors> {
        self.attribute("size")?.parse().ok().map(Sectors)
    }

    /// The text of an attribute, without the newline.
    pub fn attribute(&self, relative: impl AsRef<Path>) -> Option<String> {
        read_text(&self.root, &self.dir.join(relative))
    }

    /// Whether it is a partition.
    pub(crate) fn is_partition(&self) -> bool {
        self.root.exists(&self.dir.join("partition"))
    }

    /// The disk that a partition is on.
    pub fn disk(&self) -> Option<Self> {
        if self.is_partition() { Self::at(&self.root, self.dir.parent()?) } else { None }
    }

    /// The partitions of a disk.
    pub fn partitions(&self) -> Vec<Self> {
        let mut partitions = self.subdirectories(&self.dir);
        partitions.retain(Self::is_partition);
        partitions.sort_by_cached_key(|partition| natural_key(&partition.name));
        partitions
    }

    /// A limit of the queue; a partition has its disk's.
    pub fn queue(&self, limit: &str) -> Option<String> {
        let relative = Path::new("queue").join(limit);
        match self.disk() {
            Some(disk) => disk.attribute(relative),
            None => self.attribute(relative),
        }
    }

    /// Devices that are built on this one.
    pub fn holders(&self) -> Vec<Self> {
        let mut holders = self.subdirectories(&self.dir.join("holders"));
        holders.sort_by_cached_key(|holder| natural_key(&holder.name));
        holders
    }

    /// The file or device that a loop device reads, as the path it was set up with.
    pub fn loop_backing_file(&self) -> Option<PathBuf> {
        let bytes = self.root.read(&self.dir.join("loop/backing_file")).ok()?;
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        (!bytes.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(bytes)))
    }

    /// Whether it is a device that bcache runs, `bcacheN`: a backing device with its cache, or a
    /// flash-only volume. The kernel has no room there for the directory that it makes for a
    /// device it registers, so that bcache on it fails.
    pub fn is_bcache_volume(&self) -> bool {
        self.name.strip_prefix("bcache").is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        })
    }

    /// As what bcache has registered the device; `None` when it has not. Looks at names and links
    /// alone, which the kernel shows whoever holds bcache's lock.
    ///
    /// The `bcache` directory of a registered device is its own; that of `bcacheN` is a link to the
    /// one of its backing device, or tells of a flash-only volume: nothing of a use of `bcacheN`.
    pub fn role(&self) -> Option<Role> {
        if self.is_bcache_volume() {
            return None;
        }
        let dir = self.dir.join("bcache");
        if !self.root.is_own_dir(&dir) {
            return None;
        }
        let uuid_of = |link: &str| parse_uuid(&self.root.link_name(&dir.join(link))?);
        Some(if ["set", "nbuckets"].iter().any(|name| self.root.exists(&dir.join(name))) {
            Role::Cache { set_uuid: uuid_of("set") }
        } else {
            Role::Backing {
                device: self.root.link_name(&dir.join("dev")),
                set_uuid: uuid_of("cache"),
            }
        })
    }

    /// What bcache runs on this device; `None` when it is not registered. Waits for bcache's lock.
    pub fn bcache(&self) -> Option<Registered> {
        let text = |name: &str| self.attribute(Path::new("bcache").join(name));
        Some(match self.role()? {
            Role::Cache { set_uuid } => Registered::Cache(RunningCache {
                set_uuid,
                replacement: text("cache_replacement_policy").and_then(|text| selected(&text)),
            }),
            Role::Backing { device, set_uuid } => Registered::Backing(RunningBacking {
                device,
                set_uuid,
                running: text("running").and_then(|text| match text.as_str() {
                    "0" => Some(false),
                    "1" => Some(true),
                    _ => None,
                }),
                state: text("state").map(|text| BackingState::from_sysfs(&text)),
                cache_mode: text("cache_mode").and_then(|text| selected(&text)),
                dirty_data: text("dirty_data"),
                label: text("label").filter(|label| !label.is_empty()),
                backing_uuid: text("backing_dev_uuid").and_then(|text| parse_uuid(&text)),
            }),
        })
    }
}

/// As what the kernel's bcache has registered a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// As a cache of a set.
    Cache {
        /// The set.
        set_uuid: Option<Uuid>,
    },
    /// As a backing device.
    Backing {
        /// The device it runs as, such as `bcache0`; none while it waits for its cache set.
        device: Option<String>,
        /// The set it is attached to.
        set_uuid: Option<Uuid>,
    },
}

/// A device that the kernel's bcache has registered, as its sysfs directory tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "role")]
pub enum Registered {
    /// As a cache of a set.
    Cache(RunningCache),
    /// As a backing device.
    Backing(RunningBacking),
}

/// A registered cache device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningCache {
    /// The set it belongs to; the name of the directory that `bcache/set` links to.
    pub set_uuid: Option<Uuid>,
    /// The replacement policy in force: `lru`, `fifo` or `random`.
    pub replacement: Option<String>,
}

/// A registered backing device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningBacking {
    /// The device it runs as, such as `bcache0`; none while it waits for its cache set.
    pub device: Option<String>,
    /// The set it is attached to.
    pub set_uuid: Option<Uuid>,
    /// Whether it takes I/O.
    pub running: Option<bool>,
    /// Its state.
    pub state: Option<BackingState>,
    /// The cache mode in force: `writethrough`, `writeback`, `writearound` or `none`.
    pub cache_mode: Option<String>,
    /// Its dirty data as the kernel prints it: rounded, with a unit of 1024 (`1.5M`).
    pub dirty_data: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// The UUID of the backing device itself (kernels that print it).
    pub backing_uuid: Option<Uuid>,
}

/// The `state` of a backing device as sysfs prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackingState {
    /// `no cache`: not attached.
    NoCache,
    /// `clean`: attached, all data is on the backing device.
    Clean,
    /// `dirty`: some data is on the cache only.
    Dirty,
    /// `inconsistent`: it was forced to run without the cache that held its dirty data.
    Inconsistent,
    /// A word that this version does not know.
    Other(String),
}

impl BackingState {
    pub(crate) fn from_sysfs(text: &str) -> Self {
        match text {
            "no cache" => Self::NoCache,
            "clean" => Self::Clean,
            "dirty" => Self::Dirty,
            "inconsistent" => Self::Inconsistent,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for BackingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCache => "no cache",
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::Inconsistent => "inconsistent",
            Self::Other(other) => other,
        })
    }
}

/// The node of a device by its kernel name. The kernel writes `!` in a name where the node has `/`.
pub fn node_of(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// One block device of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDevice {
    /// The kernel's name.
    pub name: String,
    /// Its node in `/dev`.
    pub path: PathBuf,
    /// Its number.
    pub number: Option<DeviceNumber>,
    /// Its size.
    pub size: Sectors,
    /// The disk it is a partition of.
    pub partition_of: Option<String>,
    /// As what bcache has registered it.
    pub role: Option<Role>,
}

/// The block devices of the machine that can hold anything, in order of name.
///
/// Left out are devices without a size (empty loop devices and card readers among them), RAM disks,
/// and those that the kernel hides because they are paths of another device.
pub fn devices_of_the_machine(root: &Root) -> io::Result<Vec<MachineDevice>> {
    let listed = BlockDir::all(root)?.into_iter().filter_map(|device| {
        let size = device.size().unwrap_or_default();
        let is_ram = device.name.strip_prefix("ram").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|character| character.is_ascii_digit())
        });
        if size == Sectors(0) || is_ram || device.attribute("hidden").as_deref() == Some("1") {
            return None;
        }
        Some(MachineDevice {
            path: device.node(),
            number: device.number(),
            size,
            partition_of: device.disk().map(|disk| disk.name),
            role: device.role(),
            name: device.name,
        })
    });
    Ok(listed.collect())
}

/// The text of a file without its last newline; `None` when it cannot be read.
fn read_text(root: &Root, path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&root.read(path).ok()?).into_owned();
    Some(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
}

fn parse_uuid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text.trim()).ok()
}

/// The word in brackets of a list of choices such as `lru [fifo] random`.
fn selected(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    Some(word.trim().to_owned())
}

/// Splits a name so that numbers in it compare as numbers.
fn natural_key(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits_at = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(digits_at);
        let digits_end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits_end);
        key.push((word.to_owned(), digits.parse().unwrap_or(0)));
        rest = tail;
    }
    key
}

/// A sysfs and procfs of a test's own making.
#[cfg(test)]
pub(super) mod fake {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    pub(crate) struct Tree {
        dir: TempDir,
    }

    impl Tree {
        pub(crate) fn new() -> Self {
            let dir = TempDir::new().unwrap();
            for path in ["sys/class/block", "sys/dev/block", "sys/fs/bcache", "proc/self"] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            Self { dir }
        }

        pub(crate) fn root(&self) -> Root {
            Root::at(self.dir.path())
        }

        /// Writes a file below the base, with the newline that the kernel ends attributes with.
        pub(crate) fn write(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }

        pub(crate) fn link(&self, target: &str, link: &str) {
            let link = self.dir.path().join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(self.dir.path().join(target), link).unwrap();
        }

        /// A device as sysfs lays it out; `name` is `disk` or `disk/partition`.
        pub(crate) fn block(&self, name: &str, number: &str, sectors: u64) {
            let dir = format!("sys/devices/block/{name}");
            let own_name = name.rsplit('/').next().unwrap();
            self.write(&format!("{dir}/dev"), number);
            self.write(&format!("{dir}/size"), &sectors.to_string());
            if name.contains('/') {
                self.write(&format!("{dir}/partition"), "1");
            }
            self.link(&dir, &format!("sys/class/block/{own_name}"));
            self.link(&dir, &format!("sys/dev/block/{number}"));
        }

        pub(crate) fn device(&self, name: &str) -> BlockDir {
            BlockDir::by_name(&self.root(), name).unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Tree;
    use super::*;

    const SET: &str = "f0e1d2c3-b4a5-4697-8879-6a5b4c3d2e1f";

    #[test]
    fn disks_and_partitions_know_each_other() {
        let tree = Tree::new();
        tree.block("sda", "8:0", 4096);
        for (name, number) in [("sda/sda10", "8:10"), ("sda/sda2", "8:2")] {
            tree.block(name, number, 1024);
        }
        tree.write("sys/devices/block/sda/queue/discard_max_bytes", "1024");
        let sda = tree.device("sda");
        let names: Vec<String> =
            sda.partitions().iter().map(|device| device.name().to_owned()).collect();
        assert_eq!(names, ["sda2", "sda10"]);
        assert_eq!((sda.is_partition(), sda.disk()), (false, None));
        let number = DeviceNumber { major: 8, minor: 10 };
        let partition = BlockDir::by_number(&tree.root(), number).unwrap();
        assert_eq!((partition.name(), partition.number()), ("sda10", Some(number)));
        assert_eq!(partition.disk().unwrap().size(), Some(Sectors(4096)));
        assert_eq!(partition.queue("discard_max_bytes").as_deref(), Some("1024"));
        assert_eq!(partition.queue("zoned"), None);
    }

    #[test]
    fn devices_that_hold_nothing_are_left_out() {
        let tree = Tree::new();
        for (name, number, size) in [
            ("loop0", "7:0", 0),
            ("loop1", "7:1", 8),
            ("ram0", "1:0", 8192),
            ("nvme0c0n1", "259:1", 64),
            ("nvme0n1", "259:0", 64),
            ("cciss!c0d0", "104:0", 64),
            ("sda", "8:0", 64),
            ("sda/sda1", "8:1", 32),
        ] {
            tree.block(name, number, size);
        }
        tree.write("sys/devices/block/nvme0c0n1/hidden", "1");
        let devices = devices_of_the_machine(&tree.root()).unwrap();
        let listed: Vec<(&str, &str, Option<&str>)> = devices
            .iter()
            .map(|d| (d.name.as_str(), d.path.to_str().unwrap(), d.partition_of.as_deref()))
            .collect();
        assert_eq!(
            listed,
            [
                ("cciss!c0d0", "/dev/cciss/c0d0", None),
                ("loop1", "/dev/loop1", None),
                ("nvme0n1", "/dev/nvme0n1", None),
                ("sda", "/dev/sda", None),
                ("sda1", "/dev/sda1", Some("sda")),
            ]
        );
        assert_eq!(devices[4].size, Sectors(32));
    }

    #[test]
    fn a_running_backing_device_tells_its_state() {
        let tree = Tree::new();
        tree.block("sdb", "8:16", 4096);
        tree.block("bcache0", "251:0", 4080);
        let dir = "sys/devices/block/sdb/bcache";
        for (attribute, value) in [
            ("state", "dirty"),
            ("running", "1"),
            ("cache_mode", "writethrough [writeback] writearound none"),
            ("dirty_data", "1.5M"),
            ("label", "home"),
            ("backing_dev_uuid", "11111111-2222-4333-8444-555555555555"),
        ] {
            tree.write(&format!("{dir}/{attribute}"), value);
        }
        tree.write(&format!("sys/fs/bcache/{SET}/synchronous"), "1");
        tree.link(&format!("sys/fs/bcache/{SET}"), &format!("{dir}/cache"));
        tree.link("sys/devices/block/bcache0", &format!("{dir}/dev"));
        tree.link(dir, "sys/devices/block/bcache0/bcache");

        let Some(Registered::Backing(backing)) = tree.device("sdb").bcache() else { panic!() };
        assert_eq!(backing.device.as_deref(), Some("bcache0"));
        assert_eq!(backing.set_uuid, Some(uuid::uuid!(SET)));
        assert_eq!(backing.running, Some(true));
        assert_eq!(backing.state, Some(BackingState::Dirty));
        assert_eq!(backing.cache_mode.as_deref(), Some("writeback"));
        assert_eq!(backing.dirty_data.as_deref(), Some("1.5M"));
        assert_eq!(backing.label.as_deref(), Some("home"));
        assert!(backing.backing_uuid.is_some());
        // bcache0 itself leads to the same directory, and is not registered.
        assert_eq!(tree.device("bcache0").bcache(), None);
        // A flash-only volume has a directory of its own.
        tree.block("bcache12", "251:128", 4096);
        tree.write("sys/devices/block/bcache12/bcache/label", "flash");
        tree.block("bcache12/bcache12p1", "251:129", 1024);
        for (name, is_volume) in
            [("bcache0", true), ("bcache12", true), ("bcache12p1", false), ("sdb", false)]
        {
            assert_eq!(tree.device(name).is_bcache_volume(), is_volume, "{name}");
        }
        assert_eq!(tree.device("bcache12").bcache(), None);
    }

    #[test]
    fn what_sysfs_does_not_tell_is_none() {
        let tree = Tree::new();
        tree.block("sdb", "8:16", 4096);
        tree.write("sys/devices/block/sdb/bcache/state", "no cache");
        tree.write("sys/devices/block/sdb/bcache/label", "");
        let Some(Registered::Backing(backing)) = tree.device("sdb").bcache() else { panic!() };
        let nothing = RunningBacking {
            device: None,
            set_uuid: None,
            running: None,
            state: Some(BackingState::NoCache),
            cache_mode: None,
            dirty_data: None,
            label: None,
            backing_uuid: None,
        };
        assert_eq!(backing, nothing);
        let empty = tempfile::tempdir().unwrap();
        assert!(devices_of_the_machine(&Root::at(empty.path())).is_err());
        assert_eq!(BlockDir::by_name(&Root::at(empty.path()), "sda"), None);
    }

    #[test]
    fn a_running_cache_names_its_set() {
        let tree = Tree::new();
        tree.block("nvme0n1", "259:0", 4096);
        let dir = "sys/devices/block/nvme0n1/bcache";
        tree.write(&format!("{dir}/nbuckets"), "4096");
        tree.write(&format!("{dir}/cache_replacement_policy"), "lru [fifo] random");
        tree.write(&format!("sys/fs/bcache/{SET}/synchronous"), "1");
        tree.link(&format!("sys/fs/bcache/{SET}"), &format!("{dir}/set"));
        let running =
            RunningCache { set_uuid: Some(uuid::uuid!(SET)), replacement: Some("fifo".to_owned()) };
        assert_eq!(tree.device("nvme0n1").bcache(), Some(Registered::Cache(running)));
    }

    #[test]
    fn device_numbers_are_read_and_written() {
        let number = DeviceNumber { major: 259, minor: 1_048_575 };
        assert_eq!(DeviceNumber::parse("259:1048575\n"), Some(number));
        assert_eq!(number.to_string(), "259:1048575");
        assert_eq!(DeviceNumber::from_dev_t(nix::sys::stat::makedev(259, 1_048_575)), number);
        for bad in ["", "8", "8:", "a:b", "8:1:2"] {
            assert_eq!(DeviceNumber::parse(bad), None, "{bad}");
        }
    }
}
