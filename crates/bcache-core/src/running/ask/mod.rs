//! Asking the kernel what it runs, so that what does not answer holds up nothing.
//!
//! Whoever reads a file of bcache while its lock is held (docs/running.md §3), or the superblock of a
//! dead device, sleeps in the kernel and cannot be killed. So a [`Helper`] process reads, each set and
//! device in a thread of its own, and says line by line what it has read. Who asked has a tree in
//! memory at any time: of what does not answer, it has the names.

mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::process::ChildStdin;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

pub use self::look::serve;
use self::look::{Message, look};
use super::findings::OnDevice;
use super::part::Part;
use super::recorded::{self, Files};
use super::view::View;
use crate::device::Tree;
use crate::device::scan::{Helper, HelperProcess};
use crate::device::sysfs::Root;

/// How long nothing may be answered before it is said.
pub const SLOW: Duration = Duration::from_secs(1);

/// How long the names may take, which the kernel shows without a lock, on a machine that is busy.
pub const NAMES_LIMIT: Duration = Duration::from_secs(60);

/// What is asked beside the names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Whether the superblocks of the devices are read, too.
    pub superblocks: bool,
    /// Which files are read.
    pub files: Files,
}

/// What the kernel said at a moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What its files hold, in memory.
    pub root: Root,
    /// What superblocks say, by the kernel's name of the device.
    pub on_device: BTreeMap<String, OnDevice>,
    /// What did not answer. Its files are there, and cannot be read.
    pub silent: BTreeSet<Part>,
    /// How long it was waited for.
    pub waited: Duration,
}

impl Snapshot {
    /// The view.
    ///
    /// # Errors
    /// When the kernel did not list its devices.
    pub fn view(&self) -> io::Result<View> {
        View::read(&self.root)
    }
}

/// A helper at work.
#[derive(Debug)]
struct Running {
    _process: HelperProcess,
    requests: ChildStdin,
    messages: Receiver<Message>,
}

impl Running {
    fn start(helper: &Helper) -> io::Result<Self> {
        let (process, requests, stdout) = helper.spawn()?;
        let (sender, messages) = mpsc::channel();
        thread::Builder::new().spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let message = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                // A program that says anything else is no helper.
                let Some(message) = message else { break };
                if sender.send(message).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { _process: process, requests, messages })
    }
}

/// Where answers come from.
#[derive(Debug)]
enum Source {
    /// Nobody was asked yet.
    None,
    Helper(Running),
    /// A thread of this process, which cannot end while that waits for the kernel.
    Thread(Receiver<Message>),
}

/// Asks what the kernel runs, one question at a time.
#[derive(Debug)]
pub struct Asker {
    root: Root,
    question: Question,
    helper: Option<Helper>,
    source: Source,
    outstanding: Option<Outstanding>,
}

/// A question, and what was answered so far.
#[derive(Debug)]
struct Outstanding {
    since: Instant,
    /// When something was answered last.
    last: Instant,
    tree: Tree,
    on_device: BTreeMap<String, OnDevice>,
    silent: BTreeSet<Part>,
    /// Whether all names are known. Before that, nothing can be said of what does not answer.
    listed: bool,
}

impl Outstanding {
    fn new() -> Self {
        let (on_device, silent) = (BTreeMap::new(), BTreeSet::new());
        let since = Instant::now();
        Self { since, last: since, tree: recorded::empty(), on_device, silent, listed: false }
    }

    fn snapshot(self) -> Snapshot {
        Snapshot {
            root: Root::in_memory(self.tree),
            on_device: self.on_device,
            silent: self.silent,
            waited: self.since.elapsed(),
        }
    }

    /// Takes a message; whether it was the last one.
    fn take(&mut self, message: Message) -> io::Result<bool> {
        self.last = Instant::now();
        match message {
            Message::Begun(part) => {
                self.silent.insert(part);
            }
            Message::Listed => self.listed = true,
            Message::Line(line) => recorded::add(&mut self.tree, &line)?,
            Message::Superblock(name, found) => {
                self.on_device.insert(name, found);
            }
            Message::Done(part) => {
                self.silent.remove(&part);
            }
            Message::End => return Ok(true),
            Message::Failed(error) => return Err(io::Error::other(error)),
        }
        Ok(false)
    }
}

impl Asker {
    /// One that looks at `root`, through a process that is started as `helper` says and calls
    /// [`serve`] with the same question.
    ///
    /// A tree in memory needs no helper. Where it cannot be started, this process reads, and cannot end
    /// while the kernel does not answer.
    pub fn new(root: Root, helper: Helper, question: Question) -> Self {
        let helper = Some(helper);
        Self { root, question, helper, source: Source::None, outstanding: None }
    }

    /// Asks, unless an answer is outstanding.
    pub fn ask(&mut self) {
        if self.outstanding.is_some() {
            return;
        }
        self.outstanding = Some(Outstanding::new());
        if self.root.is_in_memory() {
            return;
        }
        if let Some(helper) = &self.helper {
            if !matches!(self.source, Source::Helper(_)) {
                self.source = Running::start(helper).map_or(Source::None, Source::Helper);
            }
        }
        let asked = match &mut self.source {
            Source::Helper(running) => running.requests.write_all(b"\n").is_ok(),
            Source::None | Source::Thread(_) => false,
        };
        if !asked {
            self.read_here();
        }
    }

    /// Reads in a thread of this process.
    fn read_here(&mut self) {
        self.helper = None;
        let (sender, messages) = mpsc::channel();
        let (root, question) = (self.root.clone(), self.question);
        // Without a thread, the receiver ends at once.
        drop(thread::Builder::new().spawn(move || look(&root, question, &sender)));
        self.source = Source::Thread(messages);
    }

    /// Since when an answer is outstanding.
    pub fn since(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|it| it.since)
    }

    /// For how long nothing was answered, since all names are known; none before that. A machine that is
    /// busy takes its time for the names, which the kernel shows without a lock.
    pub fn quiet(&self) -> Option<Duration> {
        self.outstanding.as_ref().filter(|it| it.listed).map(|it| it.last.elapsed())
    }

    /// What has not answered yet.
    pub fn silent(&self) -> BTreeSet<Part> {
        self.outstanding.as_ref().map(|it| it.silent.clone()).unwrap_or_default()
    }

    /// The answer, if it comes within `limit`.
    pub fn answer(&mut self, limit: Duration) -> Option<io::Result<Snapshot>> {
        let until = Instant::now() + limit;
        self.collect(|_| until.saturating_duration_since(Instant::now()))
    }

    /// The answer, or what there is of it when nothing more has come for the time `quiet`.
    ///
    /// # Errors
    /// When the kernel does not list its devices.
    pub fn within(&mut self, quiet: Duration) -> io::Result<Snapshot> {
        self.ask();
        if let Some(answer) = self.collect(|it| if it.listed { quiet } else { NAMES_LIMIT }) {
            return answer;
        }
        // The source goes on with this question: it is not asked another one.
        self.source = Source::None;
        match self.outstanding.take().filter(|it| it.listed) {
            Some(outstanding) => Ok(outstanding.snapshot()),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn collect(
        &mut self,
        limit: impl Fn(&Outstanding) -> Duration,
    ) -> Option<io::Result<Snapshot>> {
        self.outstanding.as_ref()?;
        if self.root.is_in_memory() {
            let Outstanding { since, .. } = self.outstanding.take()?;
            let (on_device, silent) = (BTreeMap::new(), BTreeSet::new());
            let root = self.root.clone();
            return Some(Ok(Snapshot { root, on_device, silent, waited: since.elapsed() }));
        }
        loop {
            let messages = match &self.source {
                Source::Helper(running) => &running.messages,
                Source::Thread(messages) => messages,
                Source::None => return None,
            };
            let limit = limit(self.outstanding.as_ref()?);
            match messages.recv_timeout(limit) {
                Ok(message) => match self.outstanding.as_mut()?.take(message) {
                    Ok(false) => {}
                    Ok(true) => return Some(Ok(self.outstanding.take()?.snapshot())),
                    Err(error) => {
                        self.outstanding = None;
                        return Some(Err(error));
                    }
                },
                Err(RecvTimeoutError::Timeout) => return None,
                // It was no helper, or it was killed.
                Err(RecvTimeoutError::Disconnected) => match &self.source {
                    Source::Helper(_) => {
                        let fresh = Outstanding::new();
                        let since = self.outstanding.as_ref()?.since;
                        self.outstanding = Some(Outstanding { since, ..fresh });
                        self.read_here();
                    }
                    Source::Thread(_) | Source::None => {
                        self.outstanding = None;
                        return Some(Err(io::Error::other("no thread can be started")));
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use tempfile::TempDir;

    use super::*;
    use crate::running::DeviceState;

    /// A recorded tree in a folder, in which reading `file` never ends.
    fn tree_that_hangs(file: &str) -> TempDir {
        let fixture =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/running/dirty-6.12.sysfs");
        let folder = tempfile::tempdir().unwrap();
        let root = recorded::unpack(&fs::read_to_string(fixture).unwrap(), folder.path()).unwrap();
        let path = root.sys(file);
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        folder
    }

    /// Enough for all that answers, on a busy machine too.
    const LIMIT: Duration = Duration::from_secs(2);

    /// One whose helper cannot be started: it reads in a thread.
    fn asker(folder: &TempDir) -> Asker {
        let helper = Helper { program: "/nonexistent".into(), arguments: Vec::new() };
        Asker::new(Root::at(folder.path()), helper, Question::default())
    }

    #[test]
    fn what_does_not_answer_is_named_and_the_rest_is_known() {
        let folder = tree_that_hangs("class/block/vda/bcache/dirty_data");
        let snapshot = asker(&folder).within(LIMIT).unwrap();
        assert_eq!(snapshot.silent, BTreeSet::from([Part::Device("vda".to_owned())]));
        assert!(snapshot.waited >= LIMIT);
        let view = snapshot.view().unwrap();
        // Names and links are known, and what takes no lock.
        let backing = &view.backing[0];
        assert_eq!((backing.name.as_str(), backing.bcache.as_deref()), ("vda", Some("bcache0")));
        assert_eq!((backing.dirty, backing.set), (None, Some(view.sets[0].uuid)));
        assert!(backing.stats.as_ref().unwrap().cache_hits.is_some());
        assert!(view.sets[0].available_percent.is_some());
    }

    #[test]
    fn a_set_that_does_not_answer_keeps_its_names() {
        let fixture = tree_that_hangs("class/block/vda/bcache/cache/congested");
        let snapshot = asker(&fixture).within(LIMIT).unwrap();
        let view = snapshot.view().unwrap();
        assert_eq!(snapshot.silent, BTreeSet::from([Part::Set(view.sets[0].uuid)]));
        assert_eq!(view.sets[0].cache.as_ref().unwrap().name, "vdb");
        assert_eq!(DeviceState::of(&view.backing[0]), DeviceState::AttachedDirty);
    }

    #[test]
    fn an_answer_that_comes_late_is_taken_all_the_same() {
        let folder = tree_that_hangs("class/block/vda/bcache/label");
        let mut asker = asker(&folder);
        asker.ask();
        assert!(asker.answer(LIMIT).is_none());
        assert_eq!(asker.silent(), BTreeSet::from([Part::Device("vda".to_owned())]));
        // Whoever opens the other end lets the reader go on.
        let label = Root::at(folder.path()).sys("class/block/vda/bcache/label");
        fs::write(label, "late\n").unwrap();
        let snapshot = asker.answer(Duration::from_secs(60)).unwrap().unwrap();
        assert!(snapshot.silent.is_empty() && asker.since().is_none());
        assert_eq!(snapshot.view().unwrap().backing[0].label.as_deref(), Some("late"));
    }

    #[test]
    fn a_machine_without_sysfs_is_an_error_and_one_without_bcache_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(asker(&folder).within(Duration::from_secs(60)).is_err());
        fs::create_dir_all(folder.path().join("sys/class/block")).unwrap();
        let view = asker(&folder).within(Duration::from_secs(60)).unwrap().view().unwrap();
        assert!(view.sets.is_empty() && view.backing.is_empty() && !view.available);
    }

    #[test]
    fn a_program_that_is_no_helper_is_done_without() {
        let folder = tree_that_hangs("class/block/vda/bcache/dirty_data");
        for program in ["/bin/false", "/bin/cat"] {
            let helper = Helper { program: program.into(), arguments: Vec::new() };
            let mut asker = Asker::new(Root::at(folder.path()), helper, Question::default());
            let snapshot = asker.within(LIMIT).unwrap();
            assert_eq!(snapshot.view().unwrap().sets.len(), 1);
        }
    }
}
