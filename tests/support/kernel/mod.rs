//! The stock kernel as the judge: boots a Debian kernel with its bcache module under QEMU, gives it
//! disks, a script and programs, and brings back what it said.
//!
//! ```no_run
//! use bcache_tests::{Guest, Kernel, Scratch};
//!
//! # fn main() -> anyhow::Result<()> {
//! let scratch = Scratch::new()?;
//! let cache = scratch.sparse("cache.img", 128 << 20)?;
//! let run = Guest::new(Kernel::V6_12).disk(&cache).script("register /dev/vda").run()?;
//! println!("{:?}", run.log.register_error("/dev/vda"));
//! # Ok(())
//! # }
//! ```
//!
//! A script is run by busybox's shell with `set -e`. Disks are vda, vdb, ... in the order in which
//! they were given; all functions of `prelude.sh` are there.

mod booted;
mod initramfs;
mod log;

pub use log::{
    BackingFigures, CacheFigures, Capture, Log, PriorityStats, SetFigures, rounded_size,
};

use crate::volume::sum;
use crate::{cache_dir, workspace_root};
use anyhow::{Context as _, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Size of the disk from which the host makes sums; zeros on it take no room.
const SUMS_BYTES: u64 = 64 << 30;

/// A series of stock kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Debian 12's kernel.
    V6_1,
    /// Debian 13's kernel, which Debian 12 has among its backports.
    V6_12,
    /// The newest that Debian packages; which one that is changes.
    Newest,
}

impl Kernel {
    /// All kernels that the tests judge with.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::Newest];

    /// Whether the kernel discards buckets that it is about to reuse; newer ones keep the flag in
    /// the superblock and ignore it.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn discards_buckets(self) -> anyhow::Result<bool> {
        Ok(self.series()? < (6, 19))
    }

    /// Major and minor number of its release.
    ///
    /// # Errors
    /// When it cannot be fetched, or is named in another way.
    pub fn series(self) -> anyhow::Result<(u32, u32)> {
        let release = self.release()?;
        let mut numbers = release.split(['.', '+', '-']).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => bail!("the release {release} does not begin with two numbers"),
        }
    }

    /// Its name in the cache folder, and to the script that fetches it.
    const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The full release, as `uname -r` tells it. The kernel is fetched when it is not there yet.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn release(self) -> anyhow::Result<String> {
        static FETCHED: [OnceLock<Result<(), String>>; Kernel::ALL.len()] =
            [const { OnceLock::new() }; Kernel::ALL.len()];
        let mark = self.folder().join("release");
        if !mark.exists() {
            let fetched = &FETCHED[self as usize];
            if let Err(error) = fetched.get_or_init(|| self.fetch().map_err(|e| format!("{e:#}"))) {
                bail!("{error}");
            }
        }
        let text = fs::read_to_string(&mark).with_context(|| format!("read {}", mark.display()))?;
        Ok(text.trim().to_owned())
    }

    fn fetch(self) -> anyhow::Result<()> {
        let script = workspace_root().join("tests/fetch-kernels.sh");
        let output =
            Command::new(&script).arg(self.name()).output().context("run fetch-kernels.sh")?;
        let error = String::from_utf8_lossy(&output.stderr);
        let last = error.lines().last().unwrap_or_default();
        ensure!(output.status.success(), "fetching a {self} kernel failed: {last}");
        Ok(())
    }

    /// Where it is unpacked.
    fn folder(self) -> PathBuf {
        cache_dir().join("kernels").join(self.name())
    }

    /// The kernel itself. Since 7.1 it is a package of its own, beside the modules.
    fn image(self) -> anyhow::Result<PathBuf> {
        let release = self.release()?;
        let places = [format!("boot/vmlinuz-{release}"), format!("lib/modules/{release}/vmlinuz")];
        let found = places.iter().map(|place| self.folder().join(place)).find(|path| path.exists());
        found.with_context(|| format!("no kernel in {}", self.folder().display()))
    }
}

/// The series, such as 6.1; for one that is not there yet, and whose series nobody knows, "newest".
impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_there = self.folder().join("release").exists();
        match (self, is_there.then(|| self.series())) {
            (Self::Newest, Some(Ok((major, minor)))) => write!(f, "{major}.{minor}"),
            _ => f.write_str(self.name()),
        }
    }
}

/// How a disk looks to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Size of its logical blocks in bytes, 512 or 4096.
    pub logical_block_size: u32,
    /// Whether the guest is kept from writing.
    pub read_only: bool,
    /// Whether what the guest writes is thrown away when it ends, the image staying as it was.
    pub snapshot: bool,
    /// Whether a discard punches a hole into the image; else the guest sees a disk without discard.
    pub discard: bool,
    /// Whether zeros that the guest writes become holes of the image.
    pub sparse: bool,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            logical_block_size: 512,
            read_only: false,
            snapshot: false,
            discard: true,
            sparse: false,
        }
    }
}

/// How a guest's script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptEnd {
    /// It came to its end with this exit status, and the machine was powered off.
    Exited(i32),
    /// It cut the power (`crash`).
    PowerCut,
    /// The machine stopped without either: the kernel panicked, or QEMU failed.
    Died,
    /// It was still running when its time was over.
    TimedOut,
}

/// The guest gave no sign of life any more: its machine had stalled, or QEMU was ended by a signal. What
/// ran in it is not to blame.
#[derive(Debug)]
pub struct Stalled(String);

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the machine under the guest stalled\n{}", self.0)
    }
}

impl std::error::Error for Stalled {}

/// A machine to be started: kernel, disks, files, script.
#[derive(Clone, Debug)]
pub struct Guest {
    kernel: Kernel,
    disks: Vec<(PathBuf, DiskOptions)>,
    binaries: Vec<PathBuf>,
    files: Vec<(String, Vec<u8>)>,
    modules: Vec<String>,
    script: String,
    timeout: Duration,
    sums_by_host: bool,
}

impl Guest {
    /// The first slot of the PCI root bus that is free for disks, and functions in each.
    const FIRST_SLOT: usize = 2;
    const FUNCTIONS: usize = 8;
    /// Slots 2 to 0x1d; in 0x1e is the disk with the guest's files.
    const MOST_DISKS: usize = (0x1e - Self::FIRST_SLOT) * Self::FUNCTIONS;

    /// A machine with this kernel, 1 GiB of memory, three minutes of time and nothing else.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            disks: Vec::new(),
            binaries: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            script: String::new(),
            timeout: Duration::from_secs(180),
            sums_by_host: false,
        }
    }

    /// Adds a disk over an image file.
    #[must_use]
    pub fn disk(self, image: impl Into<PathBuf>) -> Self {
        self.disk_with(image, DiskOptions::default())
    }

    /// Adds a disk over an image file.
    #[must_use]
    pub fn disk_with(mut self, image: impl Into<PathBuf>, options: DiskOptions) -> Self {
        self.disks.push((image.into(), options));
        self
    }

    /// Adds a program of this machine, with the libraries that it is linked with, as `/bin/NAME`.
    /// Where busybox has an applet of that name, the shell takes the applet unless the script names
    /// the whole path.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binaries.push(path.into());
        self
    }

    /// Adds a file; `path` is absolute in the guest.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), bytes.into()));
        self
    }

    /// Adds a module of the kernel, with what it depends on; it is loaded before the script.
    #[must_use]
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.modules.push(name.into());
        self
    }

    /// Adds lines to what the machine is to do.
    #[must_use]
    pub fn script(mut self, lines: impl AsRef<str>) -> Self {
        self.script.push_str(lines.as_ref());
        self.script.push('\n');
        self
    }

    /// Lets the kernel collect garbage in its only set, write the file `/data` to the first so many
    /// bcache devices, and stop all.
    #[must_use]
    pub fn go_on_and_stop(self, volumes: usize) -> Self {
        let guest = self.script("echo 1 >/sys/fs/bcache/$(sets)/internal/trigger_gc; sleep 1");
        let write = |guest: Self, index| {
            guest.script(format!(
                "dd if=/data of=/dev/bcache{index} bs=16k seek=5 oflag=direct conv=notrunc 2>/dev/null"
            ))
        };
        (0..volumes).fold(guest, write).script("stop_all")
    }

    /// Gives it another amount of time; then it is killed.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets the host make the sums of whole devices, from copies on one more disk. The guest is emulated,
    /// and summing takes it far longer than copying.
    #[must_use]
    pub fn sums_by_host(mut self) -> Self {
        self.sums_by_host = true;
        self
    }

    /// The name of the `index`th disk in the guest: `/dev/vda`, ..., `/dev/vdz`, `/dev/vdaa`, ...
    pub fn disk_name(index: usize) -> String {
        let letter = |value: usize| char::from(b"abcdefghijklmnopqrstuvwxyz"[value % 26]);
        match index.checked_sub(26) {
            None => format!("/dev/vd{}", letter(index)),
            Some(rest) => format!("/dev/vd{}{}", letter(rest / 26), letter(rest)),
        }
    }

    /// Boots the machine and waits for its end.
    ///
    /// # Errors
    /// When it cannot be started, and [`Stalled`]. How the script ended is in the result.
    pub fn run(&self) -> anyhow::Result<GuestRun> {
        let state = booted::state(self.kernel)?;
        let work = tempfile::tempdir().context("a folder for the guest")?;
        let [console_file, output_file, qemu_file, sums, own] =
            ["console", "output", "qemu", "sums", "own"].map(|name| work.path().join(name));
        let mut command = booted::machine(&console_file, &output_file)?;
        booted::begin(&mut command, &state);
        let mut disks = self.disks.clone();
        if self.sums_by_host {
            File::create(&sums)?.set_len(SUMS_BYTES).context("a disk for the sums")?;
            disks.push((sums.clone(), DiskOptions { sparse: true, ..DiskOptions::default() }));
        }
        fs::write(&own, initramfs::own(self)?).context("write the guest's files")?;
        command.args(disks_arguments(&disks, &own)?);
        let qemu_log = File::create(&qemu_file).context("create QEMU's log")?;
        command.stdin(Stdio::null()).stdout(qemu_log.try_clone()?).stderr(qemu_log);

        let _place = place()?;
        let started = Instant::now();
        let child = command.spawn().context("run qemu-system-x86_64 (package qemu-system-x86)")?;
        let exit = wait(child, self.timeout)?;
        let text = |path: &Path| {
            fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
        };
        let (console, mut output) = (text(&console_file), log::shown(&text(&output_file)));
        if self.sums_by_host {
            output = with_sums(&output, &sums)?;
        }
        // A signal is not a panic of the guest's.
        let ended = exit.map(|status| format!("QEMU ended with {status}"));
        let qemu = text(&qemu_file) + &ended.unwrap_or_default();
        let log = Log::parse(&output, &console);
        let end = match (exit, log.status, log.power_cut) {
            (None, ..) => ScriptEnd::TimedOut,
            (Some(_), Some(status), _) => ScriptEnd::Exited(status),
            (Some(exit), None, true) if exit.success() => ScriptEnd::PowerCut,
            _ => ScriptEnd::Died,
        };
        let took = started.elapsed();
        let run = GuestRun { kernel: self.kernel, end, log, console, output, qemu, took };
        let killed = exit.is_some_and(|status| status.signal().is_some());
        if killed || end == ScriptEnd::TimedOut && was_silent(&run.console, took) {
            bail!(Stalled(run.tail()));
        }
        Ok(run)
    }
}

/// How QEMU asks the host for a disk's data: by io_uring where the host lets it, else by threads. With it and
/// without ioeventfd, guests that copy volumes took a fifth less processor time.
fn aio() -> &'static str {
    static AIO: OnceLock<&str> = OnceLock::new();
    AIO.get_or_init(|| {
        let probe = Command::new("qemu-io")
            .args(["-r", "-f", "raw", "--aio", "io_uring", "-c", "quit", "/dev/null"])
            .output();
        if probe.is_ok_and(|it| it.status.success()) { "io_uring" } else { "threads" }
    })
}

/// QEMU's options for the test's disks, and for the one with the guest's files behind them.
fn disks_arguments(disks: &[(PathBuf, DiskOptions)], own: &Path) -> anyhow::Result<Vec<String>> {
    let most = Guest::MOST_DISKS;
    ensure!(disks.len() <= most, "a guest has room for {most} disks");
    let read_only = DiskOptions { read_only: true, ..DiskOptions::default() };
    let mut arguments = Vec::new();
    for (index, (image, options)) in disks.iter().enumerate() {
        arguments.extend(disk_arguments(index, image, *options)?);
    }
    arguments.extend(disk_arguments(most, own, read_only)?);
    Ok(arguments)
}

/// QEMU's options for a disk. Eight disks share a PCI slot, as functions of one device, so that far
/// more than the bus has slots find room.
fn disk_arguments(index: usize, image: &Path, options: DiskOptions) -> anyhow::Result<[String; 4]> {
    let slot = Guest::FIRST_SLOT + index / Guest::FUNCTIONS;
    let on_off = |on: bool| if on { "on" } else { "off" };
    let drive = format!(
        "if=none,id=disk{index},format=raw,cache=unsafe,discard={},detect-zeroes={},read-only={},\
         snapshot={},aio={},file={}",
        if options.discard { "unmap" } else { "ignore" },
        if options.sparse { "unmap" } else { "off" },
        on_off(options.read_only),
        on_off(options.snapshot),
        aio(),
        option_value(image)?
    );
    // Without ioeventfd the one processor of the guest starts a request itself, instead of waking
    // another thread of QEMU's.
    let device = format!(
        "virtio-blk-pci,drive=disk{index},addr={slot:#x}.{:#x},multifunction=on,ioeventfd=off,discard={},\
         logical_block_size={block},physical_block_size={block}",
        index % Guest::FUNCTIONS,
        on_off(options.discard),
        block = options.logical_block_size,
    );
    Ok(["-drive".to_owned(), drive, "-device".to_owned(), device])
}

/// A path as a value in QEMU's option lists, where a comma is doubled.
fn option_value(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}

/// A place for a guest, where `$BCACHE_TEST_GUESTS` names a folder that several test programs share: one
/// more than there are processors.
fn place() -> anyhow::Result<Option<Flock<File>>> {
    let Some(folder) = std::env::var_os("BCACHE_TEST_GUESTS") else { return Ok(None) };
    let count = std::thread::available_parallelism()?.get() + 1;
    loop {
        for index in 0..count {
            let file = File::create(Path::new(&folder).join(index.to_string()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(place) => return Ok(Some(place)),
                Err((_, Errno::EWOULDBLOCK)) => {}
                Err((_, error)) => return Err(error).context("a place for a guest"),
            }
        }
        sleep(Duration::from_millis(100));
    }
}

/// Whether a guest that ran for so long gave no sign of life in the last minute, by its own clock.
fn was_silent(console: &str, took: Duration) -> bool {
    let stamp = |line: &str| line.strip_prefix('[')?.split(']').next()?.trim().parse().ok();
    let last: f64 = console.lines().rev().find_map(stamp).unwrap_or(0.0);
    last + 60.0 < took.as_secs_f64()
}

/// What a guest printed, with the sums of what it copied to the disk `sums`.
fn with_sums(output: &str, sums: &Path) -> anyhow::Result<String> {
    let copies = File::open(sums)?;
    let mut text = String::new();
    for line in output.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["COPIED", at_mib, bytes, device] = words[..] {
            let (at, bytes) = (at_mib.parse::<u64>()? << 20, bytes.parse()?);
            let sum = sum(bytes, &mut |offset, part| {
                copies.read_exact_at(part, at + offset).context("read a copy")
            })?;
            writeln!(text, "MD5 {sum}  {device}")?;
        } else {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

/// Waits for QEMU to end; kills it when time is over (`None`).
fn wait(mut child: Child, timeout: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().context("wait for QEMU")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill().context("kill QEMU")?;
            child.wait().context("wait for QEMU")?;
            return Ok(None);
        }
        sleep(Duration::from_millis(20));
    }
}

/// What a guest left behind.
#[derive(Clone, Debug)]
pub struct GuestRun {
    /// The kernel that it ran.
    pub kernel: Kernel,
    /// How its script ended.
    pub end: ScriptEnd,
    /// Figures, sums, registrations and the kernel's lines, typed.
    pub log: Log,
    /// The kernel's console, as it is.
    pub console: String,
    /// What the script printed, as it is.
    pub output: String,
    /// What QEMU itself had to say, and how it ended.
    pub qemu: String,
    /// How long it took.
    pub took: Duration,
}

impl GuestRun {
    /// The run, if its script came to its end with status 0.
    ///
    /// # Errors
    /// Else: how it ended, and the last lines that it and the kernel said.
    pub fn ok(self) -> anyhow::Result<Self> {
        self.ended(ScriptEnd::Exited(0))
    }

    /// The run, if its script cut the power.
    ///
    /// # Errors
    /// Else: how it ended, and the last lines that it and the kernel said.
    pub fn cut(self) -> anyhow::Result<Self> {
        self.ended(ScriptEnd::PowerCut)
    }

    fn ended(self, end: ScriptEnd) -> anyhow::Result<Self> {
        ensure!(
            self.end == end,
            "the guest ({}, {:.1} s) ended with {:?} instead of {end:?}\n{}",
            self.kernel,
            self.took.as_secs_f64(),
            self.end,
            self.tail()
        );
        Ok(self)
    }

    /// The run, if the kernel did not complain.
    ///
    /// # Errors
    /// Else: the lines in which it did.
    pub fn without_errors(self) -> anyhow::Result<Self> {
        let errors = self.log.errors();
        ensure!(
            errors.is_empty(),
            "kernel {} complained:\n{}\n--- around the first ---\n{}\n{}",
            self.kernel,
            errors.join("\n"),
            errors.first().map(|first| around(&self.console, first)).unwrap_or_default(),
            self.tail()
        );
        Ok(self)
    }

    /// The last lines of the script, the kernel and QEMU, for a message.
    pub fn tail(&self) -> String {
        let tail = |name: &str, text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.len().saturating_sub(40);
            format!("--- {name} ---\n{}\n", lines.get(last..).unwrap_or_default().join("\n"))
        };
        tail("script", &self.output) + &tail("kernel", &self.console) + &tail("qemu", &self.qemu)
    }
}

/// The lines of `console` before and after the one that ends with `line`: a complaint that comes early
/// is not among the last lines of a long script.
fn around(console: &str, line: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let at = lines.iter().position(|other| other.trim_end().ends_with(line)).unwrap_or(0);
    lines.get(at.saturating_sub(20)..lines.len().min(at + 40)).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_the_kernel_names_them() {
        assert_eq!(Guest::disk_name(0), "/dev/vda");
        assert_eq!(Guest::disk_name(25), "/dev/vdz");
        assert_eq!(Guest::disk_name(26), "/dev/vdaa");
        assert_eq!(Guest::disk_name(52), "/dev/vdba");
    }

    #[test]
    fn a_guest_that_stalled_is_told_from_one_whose_script_waits() {
        let took = Duration::from_secs(300);
        let console = "[    4.404112] bcache: registered\r\n[  290.000001] LAB-ALIVE\r\n cut o";
        assert!(!was_silent(console, took));
        assert!(was_silent("[    4.404112] bcache: registered\r\n", took));
        assert!(was_silent("", took) && !was_silent("", Duration::from_secs(59)));
    }

    #[test]
    fn what_stands_around_a_complaint_is_shown() {
        let lines: Vec<String> = (0..200).map(|line| format!("[{line}] said {line}")).collect();
        let shown = around(&lines.join("\r\n"), "[100] said 100");
        assert!(shown.starts_with("[80] ") && shown.ends_with("said 139"), "{shown}");
        assert_eq!(around("", "x"), "");
    }

    #[test]
    fn disks_fill_the_bus_and_no_more() -> anyhow::Result<()> {
        let options = DiskOptions::default();
        assert!(disk_arguments(0, Path::new("a,b"), options)?[1].ends_with("file=a,,b"));
        let of = |count: usize| {
            let disks = vec![(PathBuf::from("a"), options); count];
            disks_arguments(&disks, Path::new("own"))
        };
        let all = of(Guest::MOST_DISKS)?;
        assert!(all[3].contains("drive=disk0,addr=0x2.0x0"));
        let [.., last, _, _, _, own] = &all[..] else { panic!("{all:?}") };
        assert!(last.contains("addr=0x1d.0x7"), "{last}");
        // Where init.sh looks for the guest's files, however many disks there are.
        assert!(own.contains("addr=0x1e.0x0"), "{own}");
        assert_eq!(of(0)?.last(), Some(own));
        assert!(of(Guest::MOST_DISKS + 1).is_err());
        Ok(())
    }
}
