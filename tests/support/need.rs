//! What a test needs of the machine. Where it is missing, the test counts as ignored and says what
//! is missing; with `CI=true` it fails instead, so that a check never passes for want of its means.

use crate::kernel::{Kernel, Stalled};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::path::PathBuf;
use std::process::ExitCode;

/// One thing that a test needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// What booting a stock kernel takes: QEMU, busybox, kmod, cpio, xz, and the kernels, which are
    /// fetched when they are not there yet.
    Guest,
    /// Loop devices, and the right to set them up.
    LoopDevices,
    /// To run as root.
    Root,
    /// Pseudo terminals, for what a program shows on a terminal only.
    Terminals,
    /// A program, and the Debian package that has it.
    Program(&'static str, &'static str),
}

impl Need {
    /// What is missing for this need, in words; nothing when it is met.
    pub fn missing(self) -> Vec<String> {
        match self {
            Self::Guest => {
                let mut missing: Vec<String> = [
                    ("qemu-system-x86_64", "qemu-system-x86"),
                    ("busybox", "busybox-static"),
                    ("modprobe", "kmod"),
                    ("cpio", "cpio"),
                    ("xz", "xz-utils"),
                    ("ldd", "libc-bin"),
                ]
                .into_iter()
                .flat_map(|(program, package)| Self::Program(program, package).missing())
                .collect();
                if missing.is_empty() {
                    missing.extend(
                        Kernel::ALL.iter().filter_map(|kernel| kernel.release().err()).map(
                            |error| format!("a stock kernel ({})", one_line(&format!("{error:#}"))),
                        ),
                    );
                }
                missing
            }
            Self::LoopDevices => {
                let mut missing = Self::Program("losetup", "mount").missing();
                if let Err(error) =
                    std::fs::OpenOptions::new().write(true).open("/dev/loop-control")
                {
                    missing.push(match error.kind() {
                        std::io::ErrorKind::PermissionDenied => {
                            "write access to /dev/loop-control (run as root)".to_owned()
                        }
                        _ => format!(
                            "loop devices (/dev/loop-control: {error}; a container needs /dev of \
                             its host, or the kernel module loop)"
                        ),
                    });
                }
                missing
            }
            Self::Terminals => nix::pty::openpty(None, None)
                .err()
                .map(|error| format!("pseudo terminals (mount devpts on /dev/pts: {error})"))
                .into_iter()
                .collect(),
            Self::Root if nix::unistd::geteuid().is_root() => Vec::new(),
            Self::Root => vec!["root".to_owned()],
            Self::Program(program, package) if find_program(program).is_none() => {
                vec![format!("{program} (package {package})")]
            }
            Self::Program(..) => Vec::new(),
        }
    }
}

/// Where a program is, looked for in `PATH` and in the folders for administrators, which a plain
/// user's `PATH` leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// What is missing for `needs`, in one line; `None` when everything is there. For a `#[test]`, which
/// cannot report itself as ignored: it prints the line and returns.
///
/// # Panics
/// With `CI=true`, when something is missing.
pub fn unmet(needs: &[Need]) -> Option<String> {
    let missing: Vec<String> = needs.iter().flat_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return None;
    }
    let line = format!("skipped, missing: {}", missing.join(", "));
    assert!(!in_ci(), "{line}; with CI=true nothing may be skipped");
    eprintln!("{line}");
    Some(line)
}

/// Whether the environment says that this is a CI run, in which nothing may be skipped.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// A trial that is run when `needs` are met and counts as ignored otherwise (as failed with
/// `CI=true`). The needs are looked at when the trial's turn comes, not when trials are listed.
/// When the machine under a guest stalls, it is run once more.
pub fn trial<F>(name: impl Into<String>, needs: &'static [Need], test: F) -> Trial
where
    F: Fn() -> anyhow::Result<()> + Send + 'static,
{
    let name = name.into();
    Trial::ignorable_test(name.clone(), move || {
        if let Some(line) = unmet(needs) {
            return Ok(Completion::ignored_with(line));
        }
        let mut result = test();
        let stalled = result.as_ref().err().filter(|e| e.root_cause().is::<Stalled>());
        if let Some(stalled) = stalled {
            eprintln!("{name}, once more: {stalled:#}");
            result = test();
        }
        result.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// The `main` of a suite with `harness = false`: runs the trials as Cargo's own harness would,
/// options included. Where `BCACHE_TEST_KERNELS` is `beside`, suites that boot kernels run nothing:
/// tests/run.sh runs them beside the others.
pub fn main_with(trials: Vec<Trial>) -> ExitCode {
    let beside = std::env::var_os("BCACHE_TEST_KERNELS").is_some_and(|value| value == "beside");
    if beside && boots_kernels() {
        println!("running beside the other tests, see the end of the log");
        return ExitCode::SUCCESS;
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Whether this test program is one of those that boot kernels, by its name.
fn boots_kernels() -> bool {
    let program = std::env::current_exe().unwrap_or_default();
    program.file_name().is_some_and(|name| name.to_string_lossy().contains("kernel"))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
