//! What the tests of the command line share: images in a folder of their own, the program, and
//! checks that nothing was written.

#![allow(dead_code)] // each test file uses its part

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

/// A folder of images.
pub(crate) struct Images {
    folder: TempDir,
}

impl Images {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image that reads as zeroes but for a pattern behind the place of a superblock, so that a
    /// stray write shows.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        let len = bytes.min(64 << 10).saturating_sub(8192);
        let pattern = vec![0x5a; usize::try_from(len).unwrap()];
        file.write_all_at(&pattern, 8192).unwrap();
        path
    }

    /// An image of zeroes.
    pub(crate) fn blank(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

/// All data of an image by its place, and its modification time: both stay what they are where
/// nothing is written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    len: u64,
    data: Vec<(i64, Vec<u8>)>,
    modified: std::time::SystemTime,
}

pub(crate) fn state(image: &Path) -> State {
    use nix::unistd::{Whence, lseek};
    let file = File::open(image).unwrap();
    let mut data = Vec::new();
    let mut end = 0;
    // Holes are skipped: of images that are nearly all hole, reading takes longest.
    while let Ok(start) = lseek(&file, end, Whence::SeekData) {
        end = lseek(&file, start, Whence::SeekHole).unwrap();
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        file.read_exact_at(&mut bytes, u64::try_from(start).unwrap()).unwrap();
        data.push((start, bytes));
    }
    let metadata = file.metadata().unwrap();
    State { len: metadata.len(), data, modified: metadata.modified().unwrap() }
}

pub(crate) fn write_at(image: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(image).unwrap().write_all_at(bytes, offset).unwrap();
}

pub(crate) fn superblock(image: &Path) -> Superblock {
    let mut bytes = vec![0; SB_BYTES];
    File::open(image).unwrap().read_exact_at(&mut bytes, SB_OFFSET_BYTES).unwrap();
    Superblock::from_bytes(&bytes).unwrap()
}

/// The program, with an empty standard input that is no terminal.
pub(crate) fn bcachectl() -> Command {
    let mut command = Command::cargo_bin("bcachectl").unwrap();
    command.env_remove("NO_COLOR").write_stdin("");
    command
}

/// Splits `arguments` at spaces and replaces each word that is the name of an image.
pub(crate) fn words(arguments: &str, images: &[(&str, &Path)]) -> Vec<std::ffi::OsString> {
    let image = |word: &str| images.iter().find(|(name, _)| *name == word).map(|(_, path)| *path);
    let word = |word: &str| image(word).map_or(word.into(), |path| path.as_os_str().to_owned());
    arguments.split(' ').filter(|it| !it.is_empty()).map(word).collect()
}

pub(crate) fn run(arguments: &str, images: &[(&str, &Path)]) -> Output {
    bcachectl().args(words(arguments, images)).output().unwrap()
}

/// Runs it, and demands success.
pub(crate) fn succeed(arguments: &str, images: &[(&str, &Path)]) -> String {
    let output = run(arguments, images);
    assert!(output.status.success(), "{arguments}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn json(arguments: &str, images: &[(&str, &Path)]) -> Value {
    serde_json::from_str(&succeed(arguments, images)).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs it, and demands that it fails with `status`, says each of `words` in one line, prints
/// nothing else, and leaves all images as they are.
pub(crate) fn refuse(arguments: &str, images: &[(&str, &Path)], status: i32, words: &[&str]) {
    let before: Vec<State> = images.iter().map(|(_, image)| state(image)).collect();
    let output = run(arguments, images);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{arguments}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments}: no \"{word}\" in: {said}");
    }
    assert!(!said.contains("panicked"), "{arguments}: {said}");
    // What is wrong with the command line is told by the parser, with its hints.
    if status != 2 {
        assert_eq!(said.trim_end().lines().count(), 1, "{arguments}: {said}");
        assert!(said.starts_with("bcachectl: "), "{arguments}: {said}");
    }
    assert!(output.stdout.is_empty(), "{arguments}: {}", String::from_utf8_lossy(&output.stdout));
    let after: Vec<State> = images.iter().map(|(_, image)| state(image)).collect();
    assert!(before == after, "{arguments}: an image was written");
}
