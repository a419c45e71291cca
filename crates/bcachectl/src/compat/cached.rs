//! `bcache-export-cached`: what udev links a volume by, read from sysfs.
//!
//! A backing device's UUID and label are in the kernel's event when the volume starts. Events that
//! somebody asks for later have neither, and a flash-only volume never has.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bcache_core::device::sysfs::{BlockDir, Root};

use super::Call;

pub(super) fn run(call: &Call) -> ExitCode {
    let [device] = call.arguments.as_slice() else {
        eprintln!("Usage: bcache-export-cached <device>");
        return 1.into();
    };
    let root = Root::system();
    if let Some(volume) = BlockDir::of_path(&root, Path::new(device)) {
        super::print(&wait_for_properties(&root, volume.name()));
    }
    ExitCode::SUCCESS
}

/// The properties of a volume, once the kernel has them. It announces a volume a moment before it makes
/// the volume's directory in sysfs, and for a flash-only one there is no second event.
fn wait_for_properties(root: &Root, name: &str) -> String {
    const STEP: Duration = Duration::from_millis(10);
    const STEPS: usize = 100;
    for _ in 0..STEPS {
        let properties = properties(root, name);
        // The label is there before the rest is.
        let whole = ["CACHED_UUID=", "CACHED_VOLUME="].iter().any(|it| properties.contains(it));
        if whole || !name.starts_with("bcache") {
            return properties;
        }
        std::thread::sleep(STEP);
    }
    properties(root, name)
}

/// One property a line for the volume with this kernel name; nothing where it is no volume.
fn properties(root: &Root, name: &str) -> String {
    let directory = root.sys("class/block").join(name).join("bcache");
    let mut lines = String::new();
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = writeln!(lines, "{key}={value}");
        }
    };
    let first_line = |file: &str| {
        let bytes = fs::read(directory.join(file)).ok()?;
        Some(String::from_utf8_lossy(bytes.split(|&byte| byte == b'\n').next()?).into_owned())
    };
    add("CACHED_UUID", first_line("backing_dev_uuid"));
    add("CACHED_LABEL", first_line("label"));
    if let Some((set, slot)) = flash_only(root, &directory) {
        add("CACHED_SET_UUID", Some(set));
        add("CACHED_VOLUME", Some(slot));
    }
    lines
}

/// The set of a flash-only volume, and its number there: that of the link by which the set names it.
fn flash_only(root: &Root, directory: &Path) -> Option<(String, String)> {
    let volume = fs::canonicalize(directory).ok()?;
    let set = fs::canonicalize(directory.join("cache")).ok()?.file_name()?.to_str()?.to_owned();
    let links = fs::read_dir(root.sys("fs/bcache").join(&set)).ok()?;
    let mut slots = links.filter_map(|link| {
        let link: PathBuf = link.ok()?.path();
        let slot = link.file_name()?.to_str()?.strip_prefix("volume")?.to_owned();
        (fs::canonicalize(&link).ok()? == volume).then_some(slot)
    });
    Some((set, slots.next()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const SET: &str = "11111111-2222-3333-4444-555555555555";
    const UUID: &str = "66666666-2222-3333-4444-555555555555";

    /// A tree as kernels 6.1 and 6.12 lay it out: a backing device `vda` as `bcache0`, a flash-only
    /// volume `bcache1`.
    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let sys = tree.path().join("sys");
        let block = sys.join("devices/virtual/block");
        let backing = sys.join("devices/pci0/vda/bcache");
        let flash = block.join("bcache1/bcache");
        let set = sys.join("fs/bcache").join(SET);
        for folder in [&backing, &flash, &set, &block.join("bcache0"), &sys.join("class/block")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(backing.join("backing_dev_uuid"), format!("{UUID}\n")).unwrap();
        fs::write(backing.join("label"), "my data\n").unwrap();
        fs::write(flash.join("label"), "scratch\n\n").unwrap();
        symlink(&backing, block.join("bcache0/bcache")).unwrap();
        symlink(&set, backing.join("cache")).unwrap();
        symlink(&set, flash.join("cache")).unwrap();
        symlink(&backing, set.join("bdev0")).unwrap();
        symlink(&flash, set.join("volume1")).unwrap();
        for name in ["bcache0", "bcache1"] {
            symlink(block.join(name), sys.join("class/block").join(name)).unwrap();
        }
        tree
    }

    #[test]
    fn volumes_tell_what_they_are() {
        let tree = tree();
        let root = Root::at(tree.path());
        assert_eq!(
            properties(&root, "bcache0"),
            format!("CACHED_UUID={UUID}\nCACHED_LABEL=my data\n")
        );
        assert_eq!(
            properties(&root, "bcache1"),
            format!("CACHED_LABEL=scratch\nCACHED_SET_UUID={SET}\nCACHED_VOLUME=1\n")
        );
        assert_eq!(properties(&root, "sda"), "");
    }
}
