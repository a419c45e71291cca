//! Where sysfs and procfs are read: the machine, a folder of a test, or a tree in memory.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Links that are followed before it counts as a circle, as the kernel has it.
const LINKS_MAX: u32 = 40;

/// Where `sys` and `proc` are: `/` on a machine, a directory of a test, or what was recorded of them.
#[derive(Clone, Debug)]
pub struct Root {
    base: PathBuf,
    tree: Option<Arc<Tree>>,
}

impl Default for Root {
    fn default() -> Self {
        Self::system()
    }
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        let same_tree = match (&self.tree, &other.tree) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        same_tree && self.base == other.base
    }
}

impl Eq for Root {}

impl Root {
    /// The running machine.
    pub fn system() -> Self {
        Self::at("/")
    }

    /// A tree whose `sys` and `proc` directories are under `base`.
    pub fn at(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into(), tree: None }
    }

    /// A tree in memory. Its paths are those of the machine that it was recorded on.
    pub fn in_memory(tree: Tree) -> Self {
        Self { base: PathBuf::from("/"), tree: Some(Arc::new(tree)) }
    }

    /// Whether it is a tree in memory, which answers at once and never changes.
    pub fn is_in_memory(&self) -> bool {
        self.tree.is_some()
    }

    /// All files and links of a tree in memory, by their paths below the root.
    pub(crate) fn entries(&self) -> Vec<(PathBuf, Entry<'_>)> {
        let mut found = Vec::new();
        if let Some(tree) = &self.tree {
            tree.top.add_entries(Path::new(""), &mut found);
        }
        found
    }

    /// Whether it is the running machine.
    pub fn is_system(&self) -> bool {
        self.tree.is_none() && self.base == Path::new("/")
    }

    /// The directory that `sys` and `proc` are in.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// A path below `sys`.
    pub fn sys(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.base.join("sys").join(relative)
    }

    /// A path below `proc`.
    pub fn proc(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.base.join("proc").join(relative)
    }

    /// The contents of the file at `path`.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match &self.tree {
            None => fs::read(path),
            Some(tree) => match tree.find(path, true) {
                Some((_, Node::File(Some(bytes)))) => Ok(bytes.clone()),
                Some((_, Node::File(None))) => Err(io::ErrorKind::PermissionDenied.into()),
                Some((_, Node::Directory(_))) => Err(io::ErrorKind::IsADirectory.into()),
                Some((_, Node::Link(_))) | None => Err(io::ErrorKind::NotFound.into()),
            },
        }
    }

    /// The last part of what the link at `path` says, whether or not that exists.
    pub(crate) fn link_name(&self, path: &Path) -> Option<String> {
        let target = match &self.tree {
            None => fs::read_link(path).ok()?,
            Some(tree) => match tree.find(path, false)? {
                (_, Node::Link(target)) => target.clone(),
                _ => return None,
            },
        };
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// `path` with every link on the way resolved; `None` where it does not exist.
    pub(crate) fn resolve(&self, path: &Path) -> Option<PathBuf> {
        match &self.tree {
            None => fs::canonicalize(path).ok(),
            Some(tree) => tree.find(path, true).map(|(path, _)| path),
        }
    }

    /// The names in the directory at `path`.
    pub(crate) fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        match &self.tree {
            None => Ok(fs::read_dir(path)?.filter_map(|it| Some(it.ok()?.file_name())).collect()),
            Some(tree) => match tree.find(path, true) {
                Some((_, Node::Directory(entries))) => Ok(entries.keys().cloned().collect()),
                Some(_) => Err(io::ErrorKind::NotADirectory.into()),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        }
    }

    /// Whether there is anything at `path`, links followed.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        match &self.tree {
            None => path.exists(),
            Some(tree) => tree.find(path, true).is_some(),
        }
    }

    /// Whether there is anything at `path`, a link that leads nowhere included.
    pub(crate) fn has(&self, path: &Path) -> bool {
        match &self.tree {
            None => fs::symlink_metadata(path).is_ok(),
            Some(tree) => tree.find(path, false).is_some(),
        }
    }

    /// Whether there is a directory at `path`, links followed.
    pub(crate) fn is_dir(&self, path: &Path) -> bool {
        match &self.tree {
            None => path.is_dir(),
            Some(tree) => matches!(tree.find(path, true), Some((_, Node::Directory(_)))),
        }
    }

    /// Whether there is a directory at `path` itself, and not a link to one.
    pub(crate) fn is_own_dir(&self, path: &Path) -> bool {
        match &self.tree {
            None => fs::symlink_metadata(path).is_ok_and(|it| it.is_dir()),
            Some(tree) => matches!(tree.find(path, false), Some((_, Node::Directory(_)))),
        }
    }
}

/// What is at a path of a [`Tree`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry<'t> {
    /// A file, and what it holds; none where it cannot be read.
    File(Option<&'t [u8]>),
    /// A link, and its target.
    Link(&'t Path),
}

/// Files, links and directories in memory.
#[derive(Clone, Debug)]
pub struct Tree {
    top: Node,
}

#[derive(Clone, Debug)]
enum Node {
    Directory(BTreeMap<OsString, Self>),
    /// A file, and what it holds; none where it cannot be read.
    File(Option<Vec<u8>>),
    Link(PathBuf),
}

impl Node {
    fn add_entries<'t>(&'t self, path: &Path, found: &mut Vec<(PathBuf, Entry<'t>)>) {
        match self {
            Self::Directory(entries) => {
                for (name, node) in entries {
                    node.add_entries(&path.join(name), found);
                }
            }
            Self::File(bytes) => found.push((path.to_owned(), Entry::File(bytes.as_deref()))),
            Self::Link(target) => found.push((path.to_owned(), Entry::Link(target))),
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self { top: Node::Directory(BTreeMap::new()) }
    }
}

impl Tree {
    /// Adds a file, or the contents of one that is there; without contents it cannot be read. False,
    /// and nothing is added, where the path is no plain relative one or leads through something that
    /// is no directory.
    #[must_use]
    pub fn add_file(&mut self, path: &Path, contents: Option<Vec<u8>>) -> bool {
        self.add(path, Node::File(contents))
    }

    /// Adds a link to `target`; false as for [`add_file`](Self::add_file).
    #[must_use]
    pub fn add_link(&mut self, path: &Path, target: &Path) -> bool {
        self.add(path, Node::Link(target.to_owned()))
    }

    /// Adds an empty directory where nothing is; false as for [`add_file`](Self::add_file).
    #[must_use]
    pub fn add_directory(&mut self, path: &Path) -> bool {
        self.add(path, Node::Directory(BTreeMap::new()))
    }

    fn add(&mut self, path: &Path, node: Node) -> bool {
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return false;
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let mut at = &mut self.top;
        for part in parent {
            let Node::Directory(entries) = at else { return false };
            // Without a copy of the name where the directory is there.
            if !entries.contains_key(part) {
                entries.insert(part.to_owned(), Node::Directory(BTreeMap::new()));
            }
            let Some(next) = entries.get_mut(part) else { return false };
            at = next;
        }
        let Node::Directory(entries) = at else { return false };
        match (entries.get_mut(name), node) {
            (Some(Node::Directory(_)), _) => return false,
            (Some(there), node) => *there = node,
            (None, node) => {
                entries.insert(name.to_owned(), node);
            }
        }
        true
    }

    /// What is at `path`, and its path with links resolved. The last part is resolved with `follow`.
    fn find<'t>(&'t self, path: &'t Path, follow: bool) -> Option<(PathBuf, &'t Node)> {
        let mut at: Vec<(&OsStr, &Node)> = Vec::new();
        let mut left: Vec<Component<'_>> = path.components().rev().collect();
        let mut links = 0;
        while let Some(part) = left.pop() {
            match part {
                Component::RootDir | Component::Prefix(_) => at.clear(),
                Component::CurDir => {}
                Component::ParentDir => {
                    at.pop();
                }
                Component::Normal(name) => {
                    let Node::Directory(entries) = at.last().map_or(&self.top, |(_, node)| node)
                    else {
                        return None;
                    };
                    match entries.get(name)? {
                        Node::Link(target) if follow || !left.is_empty() => {
                            links += 1;
                            if links > LINKS_MAX {
                                return None;
                            }
                            left.extend(target.components().rev());
                        }
                        node => at.push((name, node)),
                    }
                }
            }
        }
        let mut path = PathBuf::from("/");
        path.extend(at.iter().map(|(name, _)| name));
        Some((path, at.last().map_or(&self.top, |(_, node)| node)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        assert!(tree.add_file(Path::new("sys/devices/vda/bcache/label"), Some(b"a\n".to_vec())));
        assert!(tree.add_file(Path::new("sys/devices/vda/bcache/stop"), None));
        assert!(tree.add_link(Path::new("sys/class/block/vda"), Path::new("../../devices/vda")));
        assert!(tree.add_link(Path::new("sys/circle"), Path::new("circle")));
        assert!(tree.add_link(Path::new("sys/gone"), Path::new("../nowhere/bcache7")));
        tree
    }

    /// The same answers as from the same files in a folder.
    #[test]
    fn memory_answers_as_the_file_system_does() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        fs::create_dir_all(base.join("sys/devices/vda/bcache")).unwrap();
        fs::create_dir_all(base.join("sys/class/block")).unwrap();
        fs::write(base.join("sys/devices/vda/bcache/label"), "a\n").unwrap();
        fs::write(base.join("sys/devices/vda/bcache/stop"), "").unwrap();
        for (target, link) in [
            ("../../devices/vda", "sys/class/block/vda"),
            ("circle", "sys/circle"),
            ("../nowhere/bcache7", "sys/gone"),
        ] {
            std::os::unix::fs::symlink(target, base.join(link)).unwrap();
        }
        let (disk, memory) = (Root::at(base), Root::in_memory(tree()));
        for path in [
            "",
            "class/block",
            "class/block/vda",
            "class/block/vda/bcache",
            "class/block/vda/bcache/label",
            "class/block/vda/../vda/bcache/label",
            "class/block/vda/bcache/label/x",
            "class/block/./vda",
            "devices/vda/bcache/none",
            "circle",
            "circle/x",
            "gone",
        ] {
            let (on_disk, in_memory) = (disk.sys(path), memory.sys(path));
            let relative = |path: Option<PathBuf>, base: &Path| {
                path.map(|path| path.strip_prefix(base).unwrap().to_owned())
            };
            let sorted = |names: io::Result<Vec<OsString>>| {
                let mut names = names.ok()?;
                names.sort();
                Some(names)
            };
            let base = fs::canonicalize(base).unwrap();
            assert_eq!(
                relative(disk.resolve(&on_disk), &base),
                relative(memory.resolve(&in_memory), Path::new("/")),
                "{path}"
            );
            assert_eq!(disk.read(&on_disk).ok(), memory.read(&in_memory).ok(), "{path}");
            assert_eq!(disk.link_name(&on_disk), memory.link_name(&in_memory), "{path}");
            assert_eq!(sorted(disk.names(&on_disk)), sorted(memory.names(&in_memory)), "{path}");
            for ask in [Root::exists, Root::has, Root::is_dir, Root::is_own_dir] {
                assert_eq!(ask(&disk, &on_disk), ask(&memory, &in_memory), "{path}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_there_all_the_same() {
        let root = Root::in_memory(tree());
        let stop = root.sys("class/block/vda/bcache/stop");
        assert!(root.exists(&stop) && root.read(&stop).is_err());
    }

    #[test]
    fn nothing_is_added_where_it_cannot_be() {
        let mut tree = tree();
        for path in ["../x", "/etc/x", "a/../../x", "", "sys/devices/vda/bcache/label/x"] {
            assert!(!tree.add_file(Path::new(path), None), "{path}");
        }
        assert!(!tree.add_link(Path::new("sys/devices/vda"), Path::new("x")), "a directory");
        assert!(!tree.add_file(Path::new("sys/class/block/vda/x"), None), "through a link");
    }
}
