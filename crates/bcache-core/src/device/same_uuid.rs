//! Devices that carry the same UUID: layers over one another, paths to one disk, or copies.
//!
//! The kernel and udev act on the first that they meet. For two layers or two paths, both lead to
//! the same bytes; of two copies, one is not what its user takes it for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::sysfs::{BlockDir, Root};

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
            relation: loosest(root, &paths),
            devices: paths.into_iter().map(Path::to_owned).collect(),
        })
        .collect()
}

fn loosest(root: &Root, paths: &[&Path]) -> Relation {
    let devices: Vec<Node> = paths.iter().map(|path| Node::of(root, path)).collect();
    let mut loosest = Relation::Layers;
    for (index, second) in devices.iter().enumerate() {
        for first in devices.iter().take(index) {
            loosest = loosest.max(first.relation(second));
        }
    }
    loosest
}

/// A device, or a file, with what is known of its place.
struct Node {
    /// Itself, and everything that is built on it.
    up: Vec<String>,
    /// The serial number of its disk.
    serial: Option<String>,
    /// The file that it is or that it reads.
    file: Option<PathBuf>,
    /// First sector on its disk, for a partition.
    start: Option<String>,
}

impl Node {
    fn of(root: &Root, path: &Path) -> Self {
        let Some(device) = BlockDir::of_path(root, path) else {
            let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            return Self { up: Vec::new(), serial: None, file: Some(file), start: None };
        };
        Self::of_device(&device)
    }

    fn of_device(device: &BlockDir) -> Self {
        let mut up = Vec::new();
        add_layers(device, LAYERS_MAX, &mut up);
        let disk = device.disk().unwrap_or_else(|| device.clone());
        Self {
            up,
            serial: ["wwid", "device/wwid"].iter().find_map(|name| disk.attribute(name)),
            file: device.loop_backing_file(),
            start: device.attribute("start"),
        }
    }

    fn relation(&self, other: &Self) -> Relation {
        let is_layered = self.up.iter().any(|name| other.up.contains(name));
        let is_same_file = self.file.is_some() && self.file == other.file;
        if is_layered || is_same_file {
            Relation::Layers
        } else if self.serial.is_some() && self.serial == other.serial && self.start == other.start
        {
            Relation::Paths
        } else {
            Relation::Copies
        }
    }
}

fn add_layers(device: &BlockDir, left: u32, up: &mut Vec<String>) {
    let name = device.name().to_owned();
    if left == 0 || up.contains(&name) {
        return;
    }
    up.push(name);
    for holder in device.holders() {
        add_layers(&holder, left - 1, up);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::fake::Tree;
    use super::*;

    fn relation(tree: &Tree, names: &[&str]) -> Relation {
        let nodes: Vec<Node> =
            names.iter().map(|name| Node::of_device(&tree.device(name))).collect();
        let mut loosest = Relation::Layers;
        for (index, second) in nodes.iter().enumerate() {
            for first in &nodes[..index] {
                assert_eq!(first.relation(second), second.relation(first));
                loosest = loosest.max(first.relation(second));
            }
        }
        loosest
    }

    #[test]
    fn layers_paths_and_copies_are_told_apart() {
        let tree = Tree::new();
        for (name, number) in [
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
        ] {
            tree.block(name, number, 4096);
        }
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
    fn groups_are_by_uuid_and_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let (a, b, c) = (path("a"), path("b"), path("c"));
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
