//! Recorded trees: what bcache's sysfs says at a moment, as one text.
//!
//! One line for each file or link, sorted by path: the path below the root, a tab, and the contents
//! with `\n`, `\t`, `\r` and `\\` for those characters. A link has ` -> ` and its target after the
//! path instead. Files that cannot be read (most of them can only be written) have `!` for contents.
//! `priority_stats` and `bset_tree_stats` are left out: reading them costs the kernel too much.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use crate::device::sysfs::Root;

/// Files whose reading makes the kernel sort all buckets or walk the whole btree.
const COSTLY: [&str; 2] = ["priority_stats", "bset_tree_stats"];

/// What is recorded of each block device beside its `bcache` directory.
const OF_DEVICES: [&str; 6] = ["dev", "size", "stat", "ro", "holders", "slaves"];

/// Records bcache's part of sysfs, and of each device that it runs or shows.
pub fn record(root: &Root) -> io::Result<String> {
    let base = root.sys("");
    let base = base.parent().unwrap_or(&base).to_owned();
    let mut lines = Vec::new();
    walk(&base, &root.sys("fs/bcache"), &mut lines)?;
    let class = root.sys("class/block");
    for entry in fs::read_dir(&class)? {
        let link = entry?.path();
        let Ok(dir) = fs::canonicalize(&link) else { continue };
        let is_bcache = dir
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("bcache"));
        if !is_bcache && !dir.join("bcache").exists() {
            continue;
        }
        add_link(&base, &link, &mut lines);
        for name in OF_DEVICES.iter().map(|name| dir.join(name)).chain([dir.join("bcache")]) {
            walk(&base, &name, &mut lines)?;
        }
        if dir.join("partition").exists() {
            walk(&base, &dir.join("partition"), &mut lines)?;
        }
    }
    lines.sort();
    lines.dedup();
    let mut text = lines.join("\n");
    text.push('\n');
    Ok(text)
}

fn relative(base: &Path, path: &Path) -> String {
    path.strip_prefix(base).unwrap_or(path).to_string_lossy().into_owned()
}

fn add_link(base: &Path, link: &Path, lines: &mut Vec<String>) {
    if let Ok(target) = fs::read_link(link) {
        lines.push(format!("{} -> {}", relative(base, link), target.display()));
    }
}

fn walk(base: &Path, path: &Path, lines: &mut Vec<String>) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if metadata.file_type().is_symlink() {
        add_link(base, path, lines);
    } else if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            walk(base, &entry?.path(), lines)?;
        }
    } else {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if COSTLY.contains(&name) {
            return Ok(());
        }
        let contents = match fs::read(path) {
            Ok(bytes) => escape(&String::from_utf8_lossy(&bytes)),
            Err(_) => "!".to_owned(),
        };
        lines.push(format!("{}\t{contents}", relative(base, path)));
    }
    Ok(())
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

/// Lays a recorded tree out below `folder`, for [`Root::at`].
///
/// # Errors
/// When a line is none of the format, when a path leaves the folder, or when writing fails.
pub fn unpack(recorded: &str, folder: &Path) -> io::Result<Root> {
    let invalid = |line: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("no line of a recorded tree: {line:?}"))
    };
    let place = |line: &str, path: &str| -> io::Result<PathBuf> {
        let path = Path::new(path);
        let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        // Links are laid out last, so that no path of a file leads through one of them.
        if inside { Ok(folder.join(path)) } else { Err(invalid(line)) }
    };
    let mut links = Vec::new();
    for line in recorded.lines().filter(|line| !line.is_empty()) {
        if let Some((path, contents)) = line.split_once('\t') {
            let path = place(line, path)?;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            if contents != "!" {
                fs::write(&path, unescape(contents))?;
            }
        } else if let Some((path, target)) = line.split_once(" -> ") {
            if Path::new(target).is_absolute() {
                return Err(invalid(line));
            }
            links.push((place(line, path)?, target.to_owned()));
        } else {
            return Err(invalid(line));
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

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let text = "sys/class/block/vda -> ../../devices/vda\n\
                    sys/devices/vda/bcache/label\ta\\tb\\\\n\\n\n\
                    sys/devices/vda/dev\t254:0\\n\n\
                    sys/fs/bcache/register\t!\n";
        let folder = tempfile::tempdir().unwrap();
        let root = unpack(text, folder.path()).unwrap();
        let label = fs::read_to_string(root.sys("class/block/vda/bcache/label")).unwrap();
        assert_eq!(label, "a\tb\\n\n");
        let again = record(&root).unwrap();
        // Files that could not be read are not laid out.
        assert_eq!(again, text.replace("sys/fs/bcache/register\t!\n", ""));
    }

    #[test]
    fn nothing_is_laid_out_outside() {
        let folder = tempfile::tempdir().unwrap();
        for line in ["../x\ty", "/etc/x\ty", "a/../../x\ty", "a -> /etc", "nonsense"] {
            assert!(unpack(line, folder.path()).is_err(), "{line}");
        }
    }
}
