//! A kernel that has booted: QEMU's state of its machine, kept in the cache folder. All guests begin there.
//!
//! A guest without KVM boots for more than two seconds of processor time, from the state for half a second.
//! The machine waits in `init.sh` for its disks, and finds them as if they had been plugged in.

use super::{Kernel, Stalled, initramfs};
use crate::kept;
use anyhow::{Context as _, bail, ensure};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The guest kernel's options. On a busy host its check of the timer finds too few ticks, and it would
/// panic before it has begun. Ciphers, which bcache does not use, are not tested at each boot. A program
/// has the same addresses whenever it runs: QEMU's translation of it serves again (a third of the time of
/// the guests that run bcachectl).
const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 nokaslr norandmaps mitigations=off \
                            no_timer_check cryptomgr.notests";

/// The machine without its disks. Two machines are the same if this is.
const MACHINE: &str = "-nodefaults -no-user-config -display none -no-reboot -machine q35,accel=tcg -smp 1 \
                       -m 1024";

/// What `init.sh` says when the machine waits for disks.
const BOOTED: &str = "LAB-BOOTED";

/// How long it may take to boot.
const LIMIT: Duration = Duration::from_secs(180);

/// QEMU with a machine that has no disks yet, and files for the kernel's console and what the script prints.
pub(super) fn machine(console: &Path, output: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(MACHINE.split_whitespace());
    for file in [console, output] {
        command.arg("-serial").arg(format!("file:{}", super::option_value(file)?));
    }
    Ok(command)
}

/// Lets a machine begin with a kept state.
pub(super) fn begin(command: &mut Command, state: &Path) {
    command.args(["-incoming", "exec:exec cat \"$BCACHE_TEST_STATE\""]);
    command.env("BCACHE_TEST_STATE", state);
}

/// The state of a machine with this kernel, from which any QEMU of the same version can go on.
///
/// # Errors
/// When the kernel cannot be fetched, does not boot, or a program is missing.
pub(super) fn state(kernel: Kernel) -> anyhow::Result<PathBuf> {
    let busybox = fs::metadata(initramfs::busybox()?)?.modified()?;
    let mut hasher = DefaultHasher::new();
    (kernel.release()?, version(), busybox).hash(&mut hasher);
    (MACHINE, COMMAND_LINE, initramfs::MODULES, initramfs::INIT).hash(&mut hasher);
    // The script that fetches kernels knows them by this name.
    kept(format!("kernels/{}-{:016x}.state", kernel.name(), hasher.finish()), |file| {
        boot(kernel, file.path()).with_context(|| format!("boot kernel {kernel}"))
    })
}

/// What QEMU says of itself, asked once; nothing where it cannot be run, which shows when a machine is to.
fn version() -> &'static [u8] {
    static VERSION: OnceLock<Vec<u8>> = OnceLock::new();
    VERSION.get_or_init(|| {
        let said = Command::new("qemu-system-x86_64").arg("--version").output();
        said.map_or_else(|_| Vec::new(), |it| it.stdout)
    })
}

/// Boots a kernel and writes the state of its machine.
fn boot(kernel: Kernel, state: &Path) -> anyhow::Result<()> {
    let work = tempfile::tempdir().context("a folder for the machine")?;
    let [root, console, output, monitor] =
        ["root", "console", "output", "monitor"].map(|name| work.path().join(name));
    fs::write(&root, initramfs::base(kernel)?)?;
    let mut qemu = machine(&console, &output)?
        .arg("-kernel")
        .arg(kernel.image()?)
        .arg("-initrd")
        .arg(&root)
        .args(["-append", COMMAND_LINE, "-monitor", "stdio"])
        .env("BCACHE_TEST_STATE", state)
        .stdin(Stdio::piped())
        .stdout(File::create(&monitor)?)
        .spawn()
        .context("run qemu-system-x86_64 (package qemu-system-x86)")?;
    let mut commands = qemu.stdin.take().context("QEMU's monitor")?;
    let said = |file: &Path| {
        fs::read(file).map_or_else(|e| e.to_string(), |it| String::from_utf8_lossy(&it).into())
    };
    let started = Instant::now();
    while !said(&output).contains(BOOTED) && qemu.try_wait()?.is_none() {
        if started.elapsed() > LIMIT {
            qemu.kill()?;
            qemu.wait()?;
            bail!(Stalled(said(&console)));
        }
        sleep(Duration::from_millis(20));
    }
    // QEMU takes a command when it has done the one before.
    let migrate = "migrate \"exec:exec cat >\\\"$BCACHE_TEST_STATE\\\"\"";
    let asked = commands.write_all(format!("{migrate}\ninfo migrate\nquit\n").as_bytes());
    let status = super::wait(qemu, LIMIT)?;
    let said = [console, output, monitor].map(|file| said(&file)).join("\n");
    ensure!(
        asked.is_ok() && said.contains("Migration status: completed"),
        "QEMU: {status:?}\n{said}"
    );
    Ok(())
}
