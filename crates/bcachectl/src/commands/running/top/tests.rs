//! The screen over recorded trees, and what it does while the kernel does not answer.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use bcache_core::device::scan::Helper;
use bcache_core::running::{View, recorded};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent};

use super::*;
use crate::cli::running::TopSort;

fn tree(name: &str) -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "../../tests/fixtures/running", name].iter().collect();
    let root = recorded::unpack(&fs::read_to_string(file).unwrap(), folder.path()).unwrap();
    (folder, root)
}

fn screen() -> Screen {
    Screen::new(TopSort::Name, Duration::from_secs(1), false)
}

/// What 80 columns and 24 lines show.
fn drawn(screen: &Screen) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().to_string()
}

fn press(screen: &mut Screen, code: KeyCode) -> bool {
    screen.on_key(KeyEvent::from(code))
}

/// A look, `seconds` after the first.
fn look(root: &Root, seconds: u64, begun: Instant) -> Sample {
    let at = begun + Duration::from_secs(seconds);
    Sample { view: View::read(root).unwrap(), at, silent: BTreeSet::new() }
}

fn stat(root: &Root, device: &str, counts: &str) {
    fs::write(root.sys("class/block").join(device).join("stat"), counts).unwrap();
}

#[test]
fn a_set_with_dirty_data_on_80_by_24() {
    let (_folder, root) = tree("dirty-6.12.sysfs");
    let begun = Instant::now();
    let mut screen = screen();
    for (device, counts) in [("bcache0", "0 0 0 0 0 0 0 0 0 0 0"), ("vda", "0 0 0 0 0 0 0 0 0 0 0")]
    {
        stat(&root, device, counts);
    }
    stat(&root, "vdb", "0 0 0 0 0 0 0 0 0 0 0");
    screen.take(look(&root, 0, begun));
    stat(&root, "bcache0", "100 0 8192 0 50 0 4096 0 3 0 0");
    stat(&root, "vda", "10 0 2048 0 0 0 0 0 1 0 0");
    stat(&root, "vdb", "90 0 6144 0 60 0 6144 0 2 0 0");
    screen.take(look(&root, 2, begun));
    insta::assert_snapshot!(drawn(&screen));
}

#[test]
fn a_cache_that_was_lost_is_told_first() {
    let (_folder, root) = tree("cache-lost-6.12.sysfs");
    let mut screen = screen();
    screen.take(look(&root, 0, Instant::now()));
    insta::assert_snapshot!(drawn(&screen));
}

#[test]
fn nothing_runs() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("sys/class/block")).unwrap();
    let mut screen = screen();
    screen.take(look(&Root::at(folder.path()), 0, Instant::now()));
    assert!(drawn(&screen).contains("the kernel's bcache is not loaded"));
}

#[test]
fn keys_sort_pick_pause_and_end() {
    let (_folder, root) = tree("dirty-6.12.sysfs");
    let mut screen = screen();
    screen.take(look(&root, 0, Instant::now()));
    assert!(drawn(&screen).contains("devices by name"));
    for (key, words) in [
        ('r', "devices by reads"),
        ('w', "devices by writes"),
        ('h', "devices by hits"),
        ('d', "devices by dirty data"),
        ('s', "one set"),
        (' ', "paused"),
    ] {
        assert!(press(&mut screen, KeyCode::Char(key)));
        assert!(drawn(&screen).contains(words), "{key}: {}", drawn(&screen));
    }
    assert!(screen.is_paused());
    // Past the last one, and before the first, it stays where it is.
    for key in [KeyCode::Down, KeyCode::End, KeyCode::Up, KeyCode::Up, KeyCode::Home] {
        assert!(press(&mut screen, key));
        assert!(drawn(&screen).contains("bcache0 on vda"), "{key:?}");
    }
    assert!(!press(&mut screen, KeyCode::Char('q')));
}

/// A file of the tree that gives its readers no answer, until it is released.
struct Blocked {
    path: PathBuf,
    /// Open for reading, too, so that a reader waits in its read(2) as one of sysfs does.
    fifo: fs::File,
}

impl Blocked {
    fn new(root: &Root, file: &str) -> Self {
        let path = root.sys(file);
        fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let fifo = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { path, fifo }
    }

    /// Whoever opens the file from now on gets an answer, and then the reader that waits does.
    fn release(mut self) {
        let answer = self.path.with_extension("new");
        fs::write(&answer, "0.0k\n").unwrap();
        fs::rename(&answer, &self.path).unwrap();
        self.fifo.write_all(b"0.0k\n").unwrap();
    }
}

#[test]
fn a_kernel_that_does_not_answer_is_told_and_keys_work() {
    let (_folder, root) = tree("dirty-6.12.sysfs");
    let blocked = Blocked::new(&root, "class/block/vda/bcache/dirty_data");
    // Where no helper can be started, a thread reads.
    let helper = Helper { program: "/nonexistent".into(), arguments: Vec::new() };
    let mut asker = Asker::new(root, helper, Question::default());
    let mut screen = screen();
    let (mut shown, mut looks) = (None, 0);
    let begun = Instant::now();
    asker.ask();
    // It is not told at once.
    assert!(!step(&mut asker, &mut screen, &mut shown, &mut looks) || begun.elapsed() >= SLOW);
    while !step(&mut asker, &mut screen, &mut shown, &mut looks) {
        assert!(begun.elapsed() < Duration::from_secs(60), "never told");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(begun.elapsed() >= SLOW);
    assert_eq!(looks, 0);
    assert!(
        drawn(&screen).contains("vda does not answer for 1 s: the kernel holds"),
        "{}",
        drawn(&screen)
    );
    // A second question is not asked on top, and keys do what they mean.
    asker.ask();
    assert!(press(&mut screen, KeyCode::Char('r')));
    assert!(drawn(&screen).contains("devices by reads"));
    blocked.release();
    while looks == 0 {
        step(&mut asker, &mut screen, &mut shown, &mut looks);
        assert!(begun.elapsed() < Duration::from_secs(120), "no answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!drawn(&screen).contains("not answer"), "{}", drawn(&screen));
    assert!(drawn(&screen).contains("bcache0 on vda"), "{}", drawn(&screen));
}
