//! One directory of sysfs, read attribute by attribute.

use std::path::{Path, PathBuf};

use super::rounded::Rounded;
use crate::device::sysfs::Root;

/// A directory whose files are attributes. What is not there, or makes no sense, is `None`: files
/// come and go with kernel versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    root: Root,
    dir: PathBuf,
}

impl Attributes {
    /// The attributes in `dir`, a path of `root`.
    pub fn at(root: &Root, dir: impl Into<PathBuf>) -> Self {
        Self { root: root.clone(), dir: dir.into() }
    }

    /// The attributes in a directory of this one.
    #[must_use]
    pub(crate) fn below(&self, name: &str) -> Self {
        Self::at(&self.root, self.path(name))
    }

    /// The same directory of another root.
    #[must_use]
    pub(crate) fn of(&self, root: &Root) -> Self {
        Self::at(root, self.dir())
    }

    /// The attributes in another directory of the same root.
    #[must_use]
    pub fn at_path(&self, dir: &Path) -> Self {
        Self::at(&self.root, dir)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of an attribute.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether the attribute is there.
    pub fn has(&self, name: &str) -> bool {
        self.root.has(&self.path(name))
    }

    /// The text, without its last newline.
    pub fn text(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.root.read(&self.path(name)).ok()?).into_owned();
        Some(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
    }

    /// A plain number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    /// A flag, 0 or 1.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.text(name)?.as_str() {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }

    /// A number that the kernel rounded.
    pub fn rounded(&self, name: &str) -> Option<Rounded> {
        self.text(name)?.parse().ok()
    }

    /// The word in brackets of a list of choices.
    pub fn choice(&self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    }

    /// The value of `key:` in a file of several lines.
    pub fn line(&self, name: &str, key: &str) -> Option<String> {
        let text = self.text(name)?;
        text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found == key).then(|| value.trim().to_owned())
        })
    }

    /// What a link leads to, every link on the way resolved.
    pub fn target(&self, name: &str) -> Option<PathBuf> {
        self.root.resolve(&self.path(name))
    }

    /// The last part of what a link says, also where that does not exist any more.
    pub(crate) fn link_name(&self, name: &str) -> Option<String> {
        self.root.link_name(&self.path(name))
    }

    /// Whether it is a directory at all.
    pub(crate) fn exist(&self) -> bool {
        self.root.is_dir(&self.dir)
    }

    /// The names in the directory, sorted.
    pub fn names(&self) -> Vec<String> {
        let names = self.root.names(&self.dir).unwrap_or_default();
        let mut names: Vec<String> =
            names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        names
    }
}
