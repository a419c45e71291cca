//! Devices that carry the same UUID: layers over one another, paths to one disk, or copies.
//!
//! The kernel and udev act on the first that they meet. For two layers or two paths, both lead to
//! the same bytes; of two copies, one is not what its user takes it for.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::sysfs::{BlockDir, DeviceNumber, Root};

/// Layers that devices are followed up through; the kernel nests less deep.
const LAYERS_MAX: u32 = 16;

/// How devices with the same UUID are related.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relation {
    /// One is built on the other, or all are parts of one: a RAID 1 and its members, a multipath
    /// device and its paths, a loop device and the file or device that it reads.
    Layers,
    /// Several paths to one disk, by its serial number, without a multipath device over them.
    Paths,
    /// Nothing is known to relate them: copies, as `dd` and snapshots make them.
    Copies,
}

/// Devices that carry the same UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SameUuid {
    /// The UUID of the device in each of their superblocks.
    pub uuid: Uuid,
    /// Their paths, in the order given.
    pub devices: Vec<PathBuf>,
    /// The loosest relation between any two of them.
    pub relation: Relation,
}

/// The groups of two or more of `devices` (path, and UUID of the device in its superblock) that
/// share a UUID, by UUID.
pub fn same_uuid(root: &Root, devices: &[(PathBuf, Uuid)]) -> Vec<SameUuid> {
    let mut groups: BTreeMap<Uuid, Vec<&Path>> = BTreeMap::new();
    for (path, uuid) in devices {
        groups.entry(*uuid).or_default().push(path);
    }
    groups
        .into_iter()
        .filter(|(_, paths)| paths.len() > 1)
        .map(|(uuid, paths)| SameUuid {
            uuid,
            relation: loosest(paths.iter().map(|path| Node::of(root, path))),
            devices: paths.into_iter().map(Path::to_owned).collect(),
        })
        .collect()
}

fn loosest(devices: impl Iterator<Item = Node>) -> Relation {
    let devices: Vec<Node> = devices.collect();
    let mut loosest = Relation::Layers;
    for (index, second) in devices.iter().enumerate() {
        for first in devices.iter().take(index) {
            loosest = loosest.max(first.relation(second));
        }
    }
    loosest
}

/// Those of `others` that are copies of the device or file at `path`, where all of them carry its UUID.
/// What is the same by another name, a layer or a path to the same disk is none, nor is a device of which
/// sysfs does not know.
pub fn copies_of<'p>(
    root: &Root,
    path: &Path,
    others: impl IntoIterator<Item = &'p Path>,
) -> Vec<PathBuf> {
    let others = others.into_iter().filter(|other| !is_same_path(path, other));
    let mut device = None;
    others
        .filter(|other| {
            let device = device.get_or_insert_with(|| Node::of(root, path));
            device.relation(&Node::of(root, other)) == Relation::Copies
        })
        .map(Path::to_owned)
        .collect()
}

/// Whether two paths lead to one node or file.
pub fn is_same_path(first: &Path, second: &Path) -> bool {
    if first == second {
        return true;
    }
    match (first.canonicalize(), second.canonicalize()) {
        (Ok(first), Ok(second)) => first == second,
        _ => false,
    }
}

/// A device, or a file, with what is known of its place.
struct Node {
    /// Itself, and everything that is built on it or has the same bytes.
    up: Vec<String>,
    /// The serial number of its disk.
    serial: Option<String>,
    /// The file that it is or that it reads.
    file: Option<PathBuf>,
    /// The disk that it is a partition of.
    disk: Option<String>,
    /// First sector on its disk, for a partition.
    start: Option<String>,
    /// Whether it is a block device that sysfs does not have.
    is_unknown: bool,
}

impl Node {
    fn of(root: &Root, path: &Path) -> Self {
        let Some(device) = BlockDir::of_path(root, path) else {
            let is_unknown = DeviceNumber::of_path(path).is_ok_and(|number| number.is_some());
            let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let file = Some(file).filter(|_| !is_unknown);
            return Self {
                up: Vec::new(),
                serial: None,
                file,
                disk: None,
                start: None,
                is_unknown,
            };
        };
        Self::of_device(root, &device)
    }

    fn of_device(root: &Root, device: &BlockDir) -> Self {
        let mut up = Vec::new();
        add_layers(root, device, LAYERS_MAX, &mut up);
        let partition_of = device.disk();
        let disk = partition_of.as_ref().unwrap_or(device);
        Self {
            up,
            serial: ["wwid", "device/wwid"].iter().find_map(|name| disk.attribute(name)),
            file: bottom_file(root, disk),
            start: device.attribute("start"),
            disk: partition_of.map(|disk| disk.name().to_owned()),
            is_unknown: false,
        }
    }

    fn relation(&self, other: &Self) -> Relation {
        let is_disk_of = |disk: &Self, partition: &Self| {
            partition.disk.is_some() && disk.up.first() == partition.disk.as_ref()
        };
        let is_layered = self.up.iter().any(|name| other.up.contains(name))
            || is_disk_of(self, other)
            || is_disk_of(other, self);
        // Two partitions of one image may be copies.
        let are_apart = self.start.is_some() && other.start.is_some() && self.start != other.start;
        let is_same_file = || match (&self.file, &other.file) {
            (Some(first), Some(second)) => is_same_file(first, second),
            _ => false,
        };
        if self.is_unknown || other.is_unknown || is_layered || !are_apart && is_same_file() {
            Relation::Layers
        } else if self.serial.is_some() && self.serial == other.serial && self.start == other.start
        {
            Relation::Paths
        } else {
            Relation::Copies
        }
    }
}

/// The file that a loop device reads, also through other loop devices.
fn bottom_file(root: &Root, device: &BlockDir) -> Option<PathBuf> {
    let mut file = device.loop_backing_file()?;
    for _ in 0..LAYERS_MAX {
        let below = device_at(root, &file).map(|it| it.disk().unwrap_or(it));
        match below.and_then(|below| below.loop_backing_file()) {
            Some(next) => file = next,
            None => break,
        }
    }
    Some(file)
}

/// Whether two paths lead to one file, by any of its names.
fn is_same_file(first: &Path, second: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|it| (it.dev(), it.ino()));
    first == second || identity(first).is_some_and(|it| Some(it) == identity(second))
}

fn add_layers(root: &Root, device: &BlockDir, left: u32, up: &mut Vec<String>) {
    let name = device.name().to_owned();
    if left == 0 || up.contains(&name) {
        return;
    }
    up.push(name);
    for holder in device.holders() {
        add_layers(root, &holder, left - 1, up);
    }
    // A loop device over a device has no place in its list of holders.
    if let Some(below) = device.loop_backing_file().and_then(|file| device_at(root, &file)) {
        add_layers(root, &below, left - 1, up);
        for partition in below.partitions() {
            add_layers(root, &partition, left - 1, up);
        }
    }
    // What is built on a disk, a RAID 1 or a multipath device, has the same partitions.
    if let (Some(disk), Some(number)) = (device.disk(), device.attribute("partition")) {
        let mut on_disk = Vec::new();
        add_layers(root, &disk, left - 1, &mut on_disk);
        let layers = on_disk.iter().skip(1).filter_map(|name| BlockDir::by_name(root, name));
        for layer in layers {
            let is_it = |it: &BlockDir| it.attribute("partition").as_ref() == Some(&number);
            let by_mapper = layer.attribute("dm/uuid");
            let is_by_mapper =
                by_mapper.is_some_and(|uuid| uuid.starts_with(&format!("part{number}-")));
            let same = layer.partitions().into_iter().filter(is_it);
            for same in same.chain(is_by_mapper.then_some(layer)) {
                add_layers(root, &same, left - 1, up);
            }
        }
    }
}

/// The device whose node is `file`.
fn device_at(root: &Root, file: &Path) -> Option<BlockDir> {
    let by_name = || {
        let name = file.strip_prefix("/dev").ok()?.to_str()?;
        BlockDir::by_name(root, name)
    };
    BlockDir::of_path(root, file).or_else(by_name)
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::fake::Tree;
    use super::*;

    fn relation(tree: &Tree, names: &[&str]) -> Relation {
        let node = |name: &&str| Node::of_device(&tree.root(), &tree.device(name));
        let found = loosest(names.iter().map(node));
        assert_eq!(loosest(names.iter().rev().map(node)), found);
        for first in names {
            for second in names {
                let (first, second) = (node(first), node(second));
                assert_eq!(first.relation(&second), second.relation(&first));
            }
        }
        found
    }

    /// A tree with these block devices, each by its name and number.
    fn tree_of(devices: &[(&str, &str)]) -> Tree {
        let tree = Tree::new();
        for (name, number) in devices {
            tree.block(name, number, 4096);
        }
        tree
    }

    fn file(dir: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    }

    #[test]
    fn layers_paths_and_copies_are_told_apart() {
        let tree = tree_of(&[
            ("sda", "8:0"),
            ("sdb", "8:16"),
            ("sdc", "8:32"),
            ("sdd", "8:48"),
            ("sdd/sdd1", "8:49"),
            ("sde", "8:64"),
            ("sde/sde1", "8:65"),
            ("dm-0", "252:0"),
            ("loop0", "7:0"),
            ("loop1", "7:1"),
        ]);
        // Two paths of a multipath device.
        for path in ["sda", "sdb"] {
            let holder = format!("sys/devices/block/{path}/holders/dm-0");
            tree.link("sys/devices/block/dm-0", &holder);
        }
        assert_eq!(relation(&tree, &["sda", "sdb", "dm-0"]), Relation::Layers);
        assert_eq!(relation(&tree, &["sda", "sdb"]), Relation::Layers);
        // Two paths without one.
        for disk in ["sdd", "sde"] {
            tree.write(&format!("sys/devices/block/{disk}/device/wwid"), "naa.5000c500a1b2c3d4");
            tree.write(&format!("sys/devices/block/{disk}/{disk}1/start"), "2048");
        }
        assert_eq!(relation(&tree, &["sdd", "sde"]), Relation::Paths);
        assert_eq!(relation(&tree, &["sdd1", "sde1"]), Relation::Paths);
        assert_eq!(relation(&tree, &["sdd", "sde1"]), Relation::Copies);
        // A copy beside them is the loosest.
        assert_eq!(relation(&tree, &["sda", "sdc"]), Relation::Copies);
        assert_eq!(relation(&tree, &["sda", "dm-0", "sdc"]), Relation::Copies);
        // Two loop devices over one file.
        for name in ["loop0", "loop1"] {
            tree.write(&format!("sys/devices/block/{name}/loop/backing_file"), "/images/a");
        }
        assert_eq!(relation(&tree, &["loop0", "loop1"]), Relation::Layers);
        tree.write("sys/devices/block/loop1/loop/backing_file", "/images/b");
        assert_eq!(relation(&tree, &["loop0", "loop1"]), Relation::Copies);
    }

    #[test]
    fn a_loop_device_over_a_device_is_a_layer_of_it() {
        let tree = tree_of(&[
            ("sdzz", "8:0"),
            ("sdzz/sdzz1", "8:1"),
            ("sdzy", "8:16"),
            ("loop0", "7:0"),
            ("loop1", "7:1"),
            ("loop2", "7:2"),
            ("loop2/loop2p1", "259:0"),
            ("loop2/loop2p2", "259:1"),
            ("loop3", "7:3"),
        ]);
        tree.write("sys/devices/block/loop0/loop/backing_file", "/dev/sdzz");
        tree.write("sys/devices/block/loop1/loop/backing_file", "/dev/loop0");
        for (first, second) in [("loop0", "sdzz"), ("loop1", "sdzz"), ("loop0", "sdzz1")] {
            assert_eq!(relation(&tree, &[first, second]), Relation::Layers, "{first} {second}");
        }
        assert_eq!(relation(&tree, &["loop0", "sdzy"]), Relation::Copies);
        // A partition of an image, and a loop device over the image.
        for name in ["loop2", "loop3"] {
            tree.write(&format!("sys/devices/block/{name}/loop/backing_file"), "/images/a");
        }
        tree.write("sys/devices/block/loop2/loop2p1/start", "2048");
        tree.write("sys/devices/block/loop2/loop2p2/start", "4096");
        assert_eq!(relation(&tree, &["loop2p1", "loop3"]), Relation::Layers);
        assert_eq!(relation(&tree, &["loop2p1", "loop2"]), Relation::Layers);
        assert_eq!(relation(&tree, &["loop2p1", "loop2p2"]), Relation::Copies);
    }

    #[test]
    fn a_disk_and_its_partition_are_layers_and_so_are_partitions_of_layers() {
        let tree = tree_of(&[
            ("sda", "8:0"),
            ("sda/sda1", "8:1"),
            ("sda/sda2", "8:2"),
            ("sdb", "8:16"),
            ("sdb/sdb1", "8:17"),
            ("md0", "9:0"),
            ("md0/md0p1", "259:0"),
            ("sdc", "8:32"),
            ("sdc/sdc1", "8:33"),
            ("dm-0", "252:0"),
            ("dm-1", "252:1"),
            ("dm-2", "252:2"),
        ]);
        tree.write("sys/devices/block/sda/sda2/partition", "2");
        assert_eq!(relation(&tree, &["sda", "sda1"]), Relation::Layers);
        assert_eq!(relation(&tree, &["sda1", "sda2"]), Relation::Copies);
        // A RAID 1 without a superblock at its start.
        for disk in ["sda", "sdb"] {
            tree.link("sys/devices/block/md0", &format!("sys/devices/block/{disk}/holders/md0"));
        }
        assert_eq!(relation(&tree, &["sda1", "md0p1", "sdb1"]), Relation::Layers);
        assert_eq!(relation(&tree, &["sda2", "md0p1"]), Relation::Copies);
        // A partition by device-mapper.
        tree.link("sys/devices/block/dm-0", "sys/devices/block/sdc/holders/dm-0");
        for (layer, uuid) in [("dm-1", "part1-mpath-x"), ("dm-2", "part2-mpath-x")] {
            tree.link(
                &format!("sys/devices/block/{layer}"),
                &format!("sys/devices/block/dm-0/holders/{layer}"),
            );
            tree.write(&format!("sys/devices/block/{layer}/dm/uuid"), uuid);
        }
        assert_eq!(relation(&tree, &["sdc1", "dm-1"]), Relation::Layers);
        assert_eq!(relation(&tree, &["sdc1", "dm-2"]), Relation::Copies);
    }

    #[test]
    fn only_copies_are_told_of_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (file(&dir, "a"), file(&dir, "b"));
        let (symlink, link) = (dir.path().join("symlink"), dir.path().join("link"));
        std::os::unix::fs::symlink(&a, &symlink).unwrap();
        std::fs::hard_link(&a, &link).unwrap();
        let root = Tree::new().root();
        let all = [&a, &symlink, &link, &b];
        assert_eq!(copies_of(&root, &a, all.map(PathBuf::as_path)), [b]);
        // Devices that sysfs does not know.
        let nodes = ["/dev/loop0", "/dev/loop1"].map(Path::new);
        if nodes.iter().all(|it| it.exists()) {
            assert!(copies_of(&root, nodes[0], [nodes[1]]).is_empty());
        }
    }

    #[test]
    fn groups_are_by_uuid_and_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| file(&dir, name));
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let root = Tree::new();
        let groups =
            same_uuid(&root.root(), &[(b.clone(), one), (c.clone(), two), (a.clone(), one)]);
        let expected = SameUuid { uuid: one, devices: vec![b, a], relation: Relation::Copies };
        assert_eq!(groups, [expected]);
        // One file by two names.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&c, &link).unwrap();
        let groups = same_uuid(&root.root(), &[(c, two), (link, two)]);
        assert_eq!(groups[0].relation, Relation::Layers);
    }
}
