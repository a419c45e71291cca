//! Recorded trees: what bcache's sysfs says at a moment, as one text.
//!
//! One line for each file or link, sorted by path: the path below the root, a tab, and the contents
//! with `\n`, `\t`, `\r` and `\\` for those characters. A link has ` -> ` and its target after the
//! path instead. Files that cannot be read (most of them can only be written) have `!` for contents.
//! `priority_stats` and `bset_tree_stats` are left out: reading them costs the kernel too much.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};

use uuid::Uuid;

use super::part::Part;
use super::view::{OF_VIEW, STATS};
use crate::device::sysfs::Root;
use crate::device::{Entry, Tree};

/// Files whose reading makes the kernel sort all buckets or walk the whole btree.
const COSTLY: [&str; 2] = ["priority_stats", "bset_tree_stats"];

/// Which files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Files {
    /// All but those that make the kernel work hard.
    #[default]
    All,
    /// Those of a [`View`](super::View) alone: less than half.
    OfView,
    /// All, and `priority_stats`, for which the kernel sorts all buckets.
    Priorities,
}

impl Files {
    fn has(self, name: &str) -> bool {
        match self {
            Self::All => !COSTLY.contains(&name),
            Self::OfView => OF_VIEW.contains(&name),
            Self::Priorities => !COSTLY.contains(&name) || name == "priority_stats",
        }
    }

    fn has_directory(self, name: &str) -> bool {
        self != Self::OfView || !name.starts_with("stats_") || name == STATS
    }
}

/// What is recorded of each block device beside its `bcache` directory.
const OF_DEVICES: [&str; 6] = ["dev", "size", "stat", "ro", "holders", "slaves"];

/// Bits of a mode that let somebody read.
const READABLE: u32 = 0o444;

/// A tree in memory as its text; empty for any other root.
pub fn text(root: &Root) -> String {
    let line = |(path, entry): (PathBuf, Entry<'_>)| match entry {
        Entry::File(Some(bytes)) => {
            format!("{}\t{}", path.display(), escape(&String::from_utf8_lossy(bytes)))
        }
        Entry::File(None) => format!("{}\t!", path.display()),
        Entry::Link(target) => format!("{} -> {}", path.display(), target.display()),
    };
    let mut lines: Vec<String> = root.entries().into_iter().map(line).collect();
    lines.sort();
    lines.into_iter().map(|line| line + "\n").collect()
}

/// What there is to record. Links and names are read without bcache's lock.
pub(super) struct Listing {
    /// Links, each as its line.
    pub(super) lines: Vec<String>,
    pub(super) files: Vec<File>,
    base: PathBuf,
    wanted: Files,
}

/// A file to record.
#[derive(Clone, Debug)]
pub(super) struct File {
    path: PathBuf,
    /// The path below the root.
    name: String,
    /// What it belongs to; none where it takes no lock.
    pub(super) part: Option<Part>,
}

impl File {
    /// The line of a file that was not read.
    pub(super) fn unread(&self) -> String {
        format!("{}\t!", self.name)
    }

    /// Reads it.
    pub(super) fn line(&self) -> String {
        match fs::read(&self.path) {
            Ok(bytes) => format!("{}\t{}", self.name, escape(&String::from_utf8_lossy(&bytes))),
            Err(_) => self.unread(),
        }
    }

    /// Whether it is the state of a backing device.
    pub(super) fn is_state(&self) -> bool {
        self.name.ends_with("/bcache/state")
    }

    /// Whether it is one of those that the kernel shows without its lock.
    pub(super) fn is_statistic(&self) -> bool {
        self.name.contains("/stats_")
    }
}

impl Listing {
    pub(super) fn new(root: &Root, wanted: Files) -> io::Result<Self> {
        let base = root.base().to_owned();
        let mut listing = Self { lines: Vec::new(), files: Vec::new(), base, wanted };
        for entry in fs::read_dir(root.sys("fs/bcache")).into_iter().flatten() {
            let path = entry?.path();
            let set = path.file_name().and_then(|it| Uuid::try_parse(it.to_str()?).ok());
            listing.walk(&path, set.map(Part::Set).as_ref())?;
        }
        let class = root.sys("class/block");
        for entry in fs::read_dir(&class)? {
            let link = entry?.path();
            let Ok(dir) = fs::canonicalize(&link) else { continue };
            let Some(name) = dir.file_name().and_then(|name| name.to_str()) else { continue };
            if !name.starts_with("bcache") && !dir.join("bcache").exists() {
                continue;
            }
            listing.add_link(&link);
            for name in OF_DEVICES.iter().map(|name| dir.join(name)) {
                listing.walk(&name, None)?;
            }
            listing.walk(&dir.join("bcache"), Some(&Part::Device(name.to_owned())))?;
            if dir.join("partition").exists() {
                listing.walk(&dir.join("partition"), None)?;
            }
        }
        Ok(listing)
    }

    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.base).unwrap_or(path).to_string_lossy().into_owned()
    }

    fn add_link(&mut self, link: &Path) {
        if let Ok(target) = fs::read_link(link) {
            self.lines.push(format!("{} -> {}", self.relative(link), target.display()));
        }
    }

    fn walk(&mut self, path: &Path, part: Option<&Part>) -> io::Result<()> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if metadata.file_type().is_symlink() {
            self.add_link(path);
        } else if metadata.is_dir() {
            if part.is_some() && !self.wanted.has_directory(name) {
                return Ok(());
            }
            for entry in fs::read_dir(path)? {
                self.walk(&entry?.path(), part)?;
            }
        } else if part.is_none() || self.wanted.has(name) {
            let name = self.relative(path);
            let file = File { path: path.to_owned(), name, part: part.cloned() };
            if metadata.mode() & READABLE == 0 {
                self.lines.push(file.unread());
            } else {
                self.files.push(file);
            }
        }
        Ok(())
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r")
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, false) => out.push(c),
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(other) => out.push(other),
                None => {}
            },
        }
    }
    out
}

/// A line of a recorded tree.
enum Line<'t> {
    /// A file, and what it holds; none where it could not be read.
    File(&'t Path, Option<String>),
    Link(&'t Path, &'t Path),
}

/// Takes a line apart.
///
/// # Errors
/// When it is none, or when its path leaves the tree.
fn parse_line(line: &str) -> io::Result<Line<'_>> {
    let parsed = if let Some((path, contents)) = line.split_once('\t') {
        let contents = (contents != "!").then(|| unescape(contents));
        Some(Line::File(Path::new(path), contents))
    } else {
        line.split_once(" -> ")
            .filter(|(_, target)| !Path::new(target).is_absolute())
            .map(|(path, target)| Line::Link(Path::new(path), Path::new(target)))
    };
    let is_inside =
        |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    match parsed {
        Some(Line::File(path, _) | Line::Link(path, _)) if !is_inside(path) => Err(invalid(line)),
        parsed => parsed.ok_or_else(|| invalid(line)),
    }
}

fn invalid(line: &str) -> io::Error {
    let what = format!("no line of a recorded tree: {line:?}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Adds a line to a tree in memory.
///
/// # Errors
/// When it is none, or does not fit to those before it.
pub(super) fn add(tree: &mut Tree, line: &str) -> io::Result<()> {
    let added = match parse_line(line)? {
        Line::File(path, contents) => tree.add_file(path, contents.map(String::into_bytes)),
        Line::Link(path, target) => tree.add_link(path, target),
    };
    if added { Ok(()) } else { Err(invalid(line)) }
}

/// A tree to add lines to. A machine without a bcache device has none of them.
pub(super) fn empty() -> Tree {
    let mut tree = Tree::default();
    // Nothing is in its way.
    let _ = tree.add_directory(Path::new("sys/class/block"));
    tree
}

/// A recorded tree, as a root in memory.
///
/// # Errors
/// When a line is none of the format, or when a path leaves the tree.
pub fn parse(recorded: &str) -> io::Result<Root> {
    let mut tree = empty();
    for line in recorded.lines().filter(|line| !line.is_empty()) {
        add(&mut tree, line)?;
    }
    Ok(Root::in_memory(tree))
}

/// Lays a recorded tree out below `folder`, for [`Root::at`].
///
/// # Errors
/// When a line is none of the format, when a path leaves the folder, or when writing fails.
pub fn unpack(recorded: &str, folder: &Path) -> io::Result<Root> {
    let mut links = Vec::new();
    for line in recorded.lines().filter(|line| !line.is_empty()) {
        match parse_line(line)? {
            Line::File(path, contents) => {
                let path = folder.join(path);
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                if let Some(contents) = contents {
                    fs::write(&path, contents)?;
                }
            }
            // Links are laid out last, so that no path of a file leads through one of them.
            Line::Link(path, target) => links.push((folder.join(path), target)),
        }
    }
    for (path, target) in links {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        symlink(target, path)?;
    }
    Ok(Root::at(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::{Attributes, View};

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let text = "sys/class/block/vda -> ../../devices/vda\n\
                    sys/devices/vda/bcache/label\ta\\tb\\\\n\\n\n\
                    sys/devices/vda/dev\t254:0\\n\n\
                    sys/fs/bcache/register\t!\n";
        let folder = tempfile::tempdir().unwrap();
        for root in [unpack(text, folder.path()).unwrap(), parse(text).unwrap()] {
            let label = root.read(&root.sys("class/block/vda/bcache/label")).unwrap();
            assert_eq!(label, b"a\tb\\n\n");
        }
        assert_eq!(super::text(&parse(text).unwrap()), text);
    }

    /// A view without where it was read from.
    fn told(root: &Root) -> View {
        let mut view = View::read(root).unwrap();
        let nowhere = || Attributes::at(&Root::system(), "");
        for set in &mut view.sets {
            set.attributes = nowhere();
            set.cache.iter_mut().for_each(|it| it.attributes = nowhere());
            set.volumes.iter_mut().for_each(|it| it.attributes = nowhere());
        }
        view.backing.iter_mut().for_each(|it| it.attributes = nowhere());
        // What can only be written is not laid out.
        view.available = true;
        assert!(!view.backing.is_empty());
        view
    }

    #[test]
    fn a_view_needs_less_than_half_of_the_files() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/running");
        for entry in fs::read_dir(fixtures).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let root = unpack(&text, folder.path()).unwrap();
            let all = Listing::new(&root, Files::All).unwrap();
            let some = Listing::new(&root, Files::OfView).unwrap();
            let (some_files, all_files) = (some.files.len(), all.files.len());
            assert!(some_files * 2 < all_files, "{some_files} of {all_files}");
            let lines = some.files.iter().map(File::line).chain(some.lines);
            let lines: Vec<String> = lines.map(|line| line + "\n").collect();
            let memory = parse(&lines.concat()).unwrap();
            assert_eq!(told(&memory), told(&parse(&text).unwrap()));
        }
    }

    #[test]
    fn memory_and_a_folder_show_the_same() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/running");
        for entry in fs::read_dir(fixtures).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let (disk, memory) = (unpack(&text, folder.path()).unwrap(), parse(&text).unwrap());
            assert_eq!(told(&disk), told(&memory));
        }
    }

    #[test]
    fn nothing_is_laid_out_outside() {
        let folder = tempfile::tempdir().unwrap();
        for line in ["../x\ty", "/etc/x\ty", "a/../../x\ty", "a -> /etc", "nonsense"] {
            assert!(unpack(line, folder.path()).is_err(), "{line}");
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
