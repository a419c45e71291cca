//! Records of what is under way, for the case that the command is killed in the middle of it.
//!
//! A record is written before the first change and removed after the last one. The command that wrote
//! it holds a lock on it, so that a record without a lock is one whose command was killed or gave up.
//! They are in /run: what they speak of does not outlive a reboot.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bcache_core::running::Backing;
use bcache_core::running::control::Changed;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where they are.
const FOLDER: &str = "/run/bcachectl";

/// Settings that a flush has changed for the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FlushRecord {
    /// The backing device.
    pub(super) device: String,
    /// Its UUID.
    pub(super) uuid: Option<Uuid>,
    /// What was changed.
    pub(super) settings: Vec<Changed>,
}

/// A cache that is being replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplaceRecord {
    /// The set that is replaced.
    pub(super) old_set: Uuid,
    /// Its cache device, by its kernel name.
    pub(super) old_cache: String,
    /// The new cache device, by its kernel name.
    pub(super) new_cache: String,
    /// The set on it.
    pub(super) new_set: Uuid,
    /// The backing devices that move.
    pub(super) devices: Vec<Moving>,
}

/// A backing device that moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moving {
    /// Its kernel name.
    pub(super) device: String,
    /// Its UUID.
    pub(super) uuid: Option<Uuid>,
    /// Whether the kernel was told to detach it.
    pub(super) detaches: bool,
    /// Whether its writeback was switched off, which an attach switches on.
    pub(super) writeback_off: bool,
}

impl Moving {
    /// Whether it is this device.
    pub(super) fn is(&self, backing: &Backing) -> bool {
        match self.uuid {
            Some(uuid) => backing.uuid == Some(uuid),
            None => backing.name == self.device,
        }
    }
}

/// A kind of record.
pub(super) trait Record: Serialize + DeserializeOwned {
    /// How the names of its files begin.
    const PREFIX: &'static str;

    /// What sets it apart from others of its kind.
    fn key(&self) -> String;
}

impl Record for FlushRecord {
    const PREFIX: &'static str = "flush-";

    fn key(&self) -> String {
        self.uuid.map_or_else(|| self.device.clone(), |uuid| uuid.to_string())
    }
}

impl Record for ReplaceRecord {
    const PREFIX: &'static str = "replace-cache-";

    fn key(&self) -> String {
        self.old_set.to_string()
    }
}

/// The folder of records.
#[derive(Clone, Debug)]
pub(super) struct Records(PathBuf);

/// The place of a record, which no other process can take meanwhile. When this is dropped, a record
/// in it stays for the next command.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    file: Flock<File>,
    has_record: bool,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found<R> {
    /// What it says.
    pub(super) record: R,
    /// Whether the command that wrote it is at it.
    pub(super) is_at_it: bool,
}

impl Records {
    /// Those of the machine.
    pub(super) fn system() -> Self {
        Self(PathBuf::from(FOLDER))
    }

    /// Those in `folder`.
    #[cfg(test)]
    pub(super) fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    fn path<R: Record>(&self, key: &str) -> PathBuf {
        // A kernel name of a device may have a "!", and never a "/".
        self.0.join(format!("{}{key}.json", R::PREFIX))
    }

    /// Takes the place of a record with this key: what a command that is gone has left there, and the
    /// lock. `None` where another command is at it.
    ///
    /// # Errors
    /// When the folder or the file cannot be made.
    pub(super) fn take<R: Record>(&self, key: &str) -> io::Result<Option<(Option<R>, Held)>> {
        fs::create_dir_all(&self.0)?;
        let path = self.path::<R>(key);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(nix::libc::O_CLOEXEC | nix::libc::O_NOFOLLOW)
                .open(&path)?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => return Err(error.into()),
            };
            // Its owner may have removed it between the open and the lock.
            if file.metadata()?.nlink() == 0 {
                continue;
            }
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            // One that was killed before it wrote had changed nothing yet.
            let left: Option<R> = serde_json::from_slice(&text).ok();
            let has_record = left.is_some();
            return Ok(Some((left, Held { path, file, has_record })));
        }
    }

    /// All records of a kind, by name of their files.
    pub(super) fn all<R: Record>(&self) -> Vec<Found<R>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
                name.starts_with(R::PREFIX)
            })
            .collect();
        paths.sort();
        paths.iter().filter_map(|path| look(path)).collect()
    }
}

fn look<R: Record>(path: &Path) -> Option<Found<R>> {
    let file = File::open(path).ok()?;
    let mut text = Vec::new();
    (&file).read_to_end(&mut text).ok()?;
    let record = serde_json::from_slice(&text).ok()?;
    let is_at_it = Flock::lock(file, FlockArg::LockSharedNonblock).is_err();
    Some(Found { record, is_at_it })
}

impl Held {
    /// Writes what the record says.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write<R: Record>(&mut self, record: &R) -> io::Result<()> {
        let mut text = serde_json::to_vec(record)?;
        // One write(2), after which nothing of an older and longer record is left: JSON may end in
        // blanks.
        let before = usize::try_from(self.file.metadata()?.len()).unwrap_or(0);
        text.resize(text.len().max(before), b' ');
        self.has_record = true;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&text)
    }

    /// Everything is done or put back: nothing has to be left for anybody.
    pub(super) fn settled(&mut self) {
        self.has_record = false;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.has_record {
            // One that cannot be removed is found, and seen to have nothing left to be done.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &str) -> FlushRecord {
        let (name, before) = ("writeback_percent".to_owned(), value.to_owned());
        let settings = vec![Changed { name, before, during: "0".to_owned() }];
        FlushRecord { device: "vda".to_owned(), uuid: None, settings }
    }

    #[test]
    fn a_record_is_left_by_who_was_killed_only() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::at(&folder.path().join("deep"));
        assert_eq!(records.all::<FlushRecord>(), []);
        let (left, mut held) = records.take::<FlushRecord>("vda").unwrap().unwrap();
        assert_eq!(left, None);
        // Empty still: whoever made it had not changed anything.
        assert_eq!(records.all::<FlushRecord>(), []);
        held.write(&record("33")).unwrap();
        let found = records.all::<FlushRecord>();
        assert_eq!(found, [Found { record: record("33"), is_at_it: true }]);
        assert!(records.take::<FlushRecord>("vda").unwrap().is_none(), "one at a time");
        drop(held);
        let found = records.all::<FlushRecord>();
        assert_eq!(found, [Found { record: record("33"), is_at_it: false }]);
        let (left, mut held) = records.take::<FlushRecord>("vda").unwrap().unwrap();
        assert_eq!(left, Some(record("33")));
        held.write(&record("5")).unwrap();
        assert_eq!(records.all::<FlushRecord>()[0].record, record("5"));
        assert!(records.all::<ReplaceRecord>().is_empty());
        held.settled();
        drop(held);
        assert_eq!(records.all::<FlushRecord>(), []);
    }
}
