//! Support for tests that cross crates: what a test needs of the machine and how it says so when
//! that is missing ([`need`]), image files and loop devices ([`image`]), images that stock kernels
//! wrote ([`fixture`]), the stock kernel itself under QEMU ([`kernel`]), and `bcachectl` as a user runs
//! it ([`tool`]). What the fuzz targets do with their bytes is here too ([`fuzz`]), so that ordinary
//! tests do it as well.

pub mod cache;
pub mod fault;
pub mod fixture;
pub mod fuzz;
pub mod image;
pub mod kernel;
pub mod need;
pub mod superblocks;
pub mod terminal;
pub mod tool;
pub mod volume;

pub use fixture::{Fixture, Verdict};
pub use image::{LoopDevice, Scratch};
pub use kernel::{DiskOptions, Guest, GuestRun, Kernel, Log, ScriptEnd};
pub use need::{Need, main_with, trial};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The top of the workspace.
pub fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where downloads and what is built from them are kept between runs: `$BCACHE_TEST_CACHE`, by
/// default `.cache` at the top of the workspace.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("BCACHE_TEST_CACHE")
        .map_or_else(|| workspace_root().join(".cache"), PathBuf::from)
}

/// A file below the cache folder that tests keep for each other; `make` writes it when it is not there.
pub(crate) fn kept(
    name: impl AsRef<Path>,
    make: impl FnOnce(&mut NamedTempFile) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let path = cache_dir().join(name);
    let write = || {
        let folder = path.parent().context("a folder")?;
        fs::create_dir_all(folder)?;
        // Who wants the same waits until it is there.
        let lock = Flock::lock(fs::File::open(folder)?, FlockArg::LockExclusive);
        let _lock = lock.map_err(|(_, error)| error)?;
        if path.exists() {
            return Ok(());
        }
        // A test that is ended leaves no part of it.
        let mut file = NamedTempFile::new_in(folder)?;
        make(&mut file)?;
        // As any other new file: a copy is read by tests that give up root.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.persist(&path)?;
        anyhow::Ok(())
    };
    if !path.exists() {
        write().with_context(|| format!("write {}", path.display()))?;
    }
    Ok(path)
}

/// A program of this workspace, from the same build as the running test.
///
/// # Errors
/// When it has not been built: Cargo builds it along with the tests of its own package, so with
/// `cargo test --workspace`, but not with `cargo test -p bcache-tests`.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("the path of the running test")?;
    // target/PROFILE/deps/TEST: the programs are two folders up.
    let folder = test.parent().and_then(Path::parent).context("the test's build folder")?;
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{} is not built: run `cargo build -p {name}` first", path.display());
    }
    Ok(path)
}
