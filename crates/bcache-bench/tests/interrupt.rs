//! Ctrl-C: the first one is noticed, a repeat within a moment is not, the second one ends the program.
//!
//! Without a harness: its threads would not have the signals blocked, and one of them would get them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CHILD: &str = "BCACHE_BENCH_TEST_CHILD";

fn main() {
    if std::env::var_os(CHILD).is_some() {
        child();
    } else if !std::env::args().any(|argument| argument == "--list") {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            parent(signal);
        }
        println!("the first signal is noticed, the second one ends the program: ok");
    }
}

fn child() {
    let stop = bcache_bench::interrupt::install().unwrap();
    let say = |word| {
        println!("{word}");
        std::io::stdout().flush().unwrap();
    };
    say("ready");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !stop.load(Ordering::Relaxed) {
        assert!(Instant::now() < deadline, "no signal came");
        std::thread::sleep(Duration::from_millis(5));
    }
    say("stopping");
    std::thread::sleep(Duration::from_secs(60));
    panic!("the second signal had no effect");
}

fn parent(signal: Signal) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    // Both at once: what timeout(1) sends to a process and to its group. A stopped process takes none,
    // so that they wait for it together however busy the machine is.
    for signal in [Signal::SIGSTOP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGCONT] {
        kill(pid, signal).unwrap();
    }
    assert_eq!(lines.next().unwrap().unwrap(), "stopping");
    std::thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().unwrap().is_none(), "a repeat ended the program");
    kill(pid, signal).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(signal as i32), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim(), "bcache-bench: ending the run; once more to abort");
}
