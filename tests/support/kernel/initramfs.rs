//! The guest's root: busybox, the modules for bcache and the disks, and what a test adds.

use super::{Guest, Kernel};
use crate::need::find_program;
use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "bcache"];
pub(super) const INIT: &[u8] = include_bytes!("init.sh");

/// A tree of files that becomes a cpio archive.
pub(super) struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { folder: tempfile::tempdir().context("a folder for the guest's files")? })
    }

    /// Adds a file; `path` is absolute in the guest.
    pub(super) fn file(&self, path: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
        let target = self.folder.path().join(path.trim_start_matches('/'));
        let write = || {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&target, bytes)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))
        };
        write().with_context(|| format!("write {}", target.display()))
    }

    /// Adds a program as `/bin/NAME`, and the libraries that it is linked with where they are on
    /// this machine.
    pub(super) fn program(&self, program: &Path) -> anyhow::Result<()> {
        let name = program.file_name().context("a program's name")?.to_string_lossy();
        self.copy(program, &format!("/bin/{name}"))?;
        for library in libraries(program)? {
            self.copy(&library, &library.to_string_lossy())?;
        }
        Ok(())
    }

    /// Adds modules of the kernel, and the order to load them in.
    fn modules(&self, modules: &[PathBuf]) -> anyhow::Result<()> {
        let mut order = String::new();
        for module in modules {
            let name = module.file_name().context("a module's name")?.to_string_lossy();
            let plain = name.trim_end_matches(".xz").trim_end_matches(".zst");
            self.file(&format!("/modules/{plain}"), &module_bytes(module)?, 0o644)?;
            order.push_str(plain);
            order.push('\n');
        }
        self.file("/modules/order", order.as_bytes(), 0o644)
    }

    fn copy(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.file(to, &bytes, 0o755)
    }

    /// The archive of all files, owned by root.
    pub(super) fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let folder = self.folder.path();
        let mut names = Vec::new();
        collect(folder, folder, &mut names)?;
        names.sort();
        let mut cpio = Command::new("cpio")
            .args(["--quiet", "--create", "--format=newc", "--owner=+0:+0", "--null"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run cpio")?;
        let mut stdin = cpio.stdin.take().context("cpio's input")?;
        // The list is read before the archive is written to its end: a thread, so that neither
        // side waits for the other with a full pipe.
        let list = std::thread::spawn(move || stdin.write_all(names.join("\0").as_bytes()));
        let output = cpio.wait_with_output().context("wait for cpio")?;
        list.join().map_err(|_| anyhow::anyhow!("the writer of cpio's list panicked"))??;
        ensure!(output.status.success(), "cpio failed: {}", output.status);
        Ok(output.stdout)
    }
}

/// The names of all files and folders below `folder`, relative to `root`, folders before what is in
/// them once sorted.
fn collect(root: &Path, folder: &Path, names: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        names.push(path.strip_prefix(root)?.to_string_lossy().into_owned());
        if path.is_dir() {
            collect(root, &path, names)?;
        }
    }
    Ok(())
}

/// The shared libraries of a program, the dynamic loader included; none when it is static.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("not a dynamic executable") {
            return Ok(BTreeSet::new());
        }
        bail!("ldd {}: {}", program.display(), error.trim());
    }
    // "libc.so.6 => /lib/.../libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)".
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("ldd {}: {}", program.display(), line.trim());
    }
    let word =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(word).collect())
}

/// What a kernel boots with until it waits for its disks: busybox, and the modules for bcache and disks.
pub(super) fn base(kernel: Kernel) -> anyhow::Result<Vec<u8>> {
    let busybox = busybox()?;
    ensure!(
        libraries(&busybox)?.is_empty(),
        "{} is not static: install busybox-static",
        busybox.display()
    );
    let tree = Tree::new()?;
    tree.copy(&busybox, "/bin/busybox")?;
    tree.file("/init", INIT, 0o755)?;
    tree.modules(&modules(kernel, &MODULES)?)?;
    tree.archive()
}

/// Busybox on this machine.
pub(super) fn busybox() -> anyhow::Result<PathBuf> {
    find_program("busybox").context("busybox is missing (busybox-static)")
}

/// What a guest is given beside its disks, as one more disk: its script, and what that needs.
pub(super) fn own(guest: &Guest) -> anyhow::Result<Vec<u8>> {
    let tree = Tree::new()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    tree.file("/now", now.to_string().as_bytes(), 0o644)?;
    if guest.sums_by_host {
        // It comes behind the test's disks.
        tree.file("/sums.disk", Guest::disk_name(guest.disks.len()).as_bytes(), 0o644)?;
    }
    tree.file("/begin.sh", include_bytes!("begin.sh"), 0o644)?;
    tree.file("/prelude.sh", include_bytes!("prelude.sh"), 0o644)?;
    tree.file("/script.sh", guest.script.as_bytes(), 0o644)?;
    if !guest.modules.is_empty() {
        let there = modules(guest.kernel, &MODULES)?;
        let mut more = modules(guest.kernel, &guest.modules)?;
        more.retain(|module| !there.contains(module));
        tree.modules(&more)?;
    }
    for binary in &guest.binaries {
        tree.program(binary)?;
    }
    for (path, bytes) in &guest.files {
        tree.file(path, bytes, 0o755)?;
    }
    let mut disk = tree.archive()?;
    // The kernel looks for partition tables, some of which are behind the first sectors.
    disk.resize(disk.len().next_multiple_of(64 << 10), 0);
    Ok(disk)
}

/// The files of the modules and of what they depend on, in the order in which they load.
fn modules(kernel: Kernel, names: &[impl AsRef<str>]) -> anyhow::Result<Vec<PathBuf>> {
    let modprobe = find_program("modprobe").context("modprobe is missing (package kmod)")?;
    let mut files = Vec::new();
    for module in names.iter().map(AsRef::as_ref) {
        let output = Command::new(&modprobe)
            // This machine's own modprobe.d must not have a say in it.
            .args(["--show-depends", "--config", "/dev/null", "--set-version"])
            .arg(kernel.release()?)
            .arg("--dirname")
            .arg(kernel.folder())
            .arg(module)
            .output()
            .context("run modprobe")?;
        ensure!(
            output.status.success(),
            "modprobe --show-depends {module}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        // "insmod FILE" or "builtin NAME".
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some(file) = line.trim().strip_prefix("insmod ") else { continue };
            let file = PathBuf::from(file.trim());
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// A module's contents, unpacked: busybox's insmod would not.
fn module_bytes(file: &Path) -> anyhow::Result<Vec<u8>> {
    let context = || format!("read {}", file.display());
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => {
            let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
            let output = output.context("run xz")?;
            ensure!(output.status.success(), "xz {}: {}", file.display(), output.status);
            Ok(output.stdout)
        }
        Some("zst") => {
            let mut bytes = Vec::new();
            zstd::Decoder::new(File::open(file).with_context(context)?)?
                .read_to_end(&mut bytes)
                .with_context(context)?;
            Ok(bytes)
        }
        _ => fs::read(file).with_context(context),
    }
}
