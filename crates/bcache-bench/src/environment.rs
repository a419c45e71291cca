//! What a run ran on: machine, kernel, clock and devices.

use std::fs;
use std::path::{Path, PathBuf};

use bcache_core::device::sysfs::{BlockDir, Root};
use bcache_core::device::{DeviceInfo, DeviceKind};
use serde::{Deserialize, Serialize};

use crate::record::clock::ClockQuality;

/// What a run ran on. What cannot be told is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Model of the first CPU.
    pub cpu_model: Option<String>,
    /// CPUs that this process may use.
    pub cpus: u32,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// Where the kernel's clock comes from.
    pub clocksource: Option<String>,
    /// How the CPUs' frequency is chosen; each choice once.
    pub governors: Vec<String>,
    /// What the clock is good for.
    pub clock: ClockQuality,
    /// Whether the program was built without optimisation for release.
    pub debug_build: bool,
    /// The devices of the run.
    pub devices: Vec<DeviceEnvironment>,
}

/// A device of the run. What cannot be told is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceEnvironment {
    /// The path it was given by.
    pub path: PathBuf,
    /// The kernel's name for it; an image file has none.
    pub name: Option<String>,
    /// The kernel's name for the whole disk that it is, or is a part of.
    pub disk: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Smallest unit of reading and writing in bytes.
    pub logical_block_bytes: u32,
    /// Smallest unit that is written without reading first, in bytes.
    pub physical_block_bytes: u32,
    /// What its maker calls it.
    pub model: Option<String>,
    /// Whether it says that it rotates.
    pub rotational: Option<bool>,
    /// `write back` where flushes are needed, `write through` where they are not.
    pub write_cache: Option<String>,
    /// The I/O scheduler in use.
    pub scheduler: Option<String>,
    /// Whether it takes discards.
    pub discard: bool,
    /// What is really behind it.
    pub backing: Backing,
}

/// What is behind a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Backing {
    /// A device in its own right, for all that can be told.
    Device,
    /// A loop device.
    Loop {
        /// The file or device that it reads.
        file: PathBuf,
        /// Whether it bypasses the page cache.
        direct: Option<bool>,
    },
    /// An image file.
    Image {
        /// Whether its file system keeps it in memory.
        in_memory: bool,
    },
    /// Memory of this process, in tests.
    Memory,
}

impl Environment {
    /// The machine, and the devices that are open.
    pub fn gather(root: &Root, devices: &[&DeviceInfo]) -> Self {
        let clocksource = "devices/system/clocksource/clocksource0/current_clocksource";
        Self {
            cpu_model: cpu_model(root),
            cpus: std::thread::available_parallelism()
                .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
            kernel: read_line(&root.proc("sys/kernel/osrelease")),
            clocksource: read_line(&root.sys(clocksource)),
            governors: governors(root),
            clock: ClockQuality::measure(),
            debug_build: cfg!(debug_assertions),
            devices: devices.iter().map(|info| DeviceEnvironment::gather(root, info)).collect(),
        }
    }
}

impl DeviceEnvironment {
    fn gather(root: &Root, info: &DeviceInfo) -> Self {
        let block = match info.kind {
            DeviceKind::Block => BlockDir::of_path(root, &info.path),
            DeviceKind::Image | DeviceKind::Memory => None,
        };
        let backing = match (info.kind, &block) {
            (DeviceKind::Memory, _) => Backing::Memory,
            (DeviceKind::Image, _) => Backing::Image { in_memory: is_in_memory(&info.path) },
            (DeviceKind::Block, Some(block)) => backing_of(block),
            (DeviceKind::Block, None) => Backing::Device,
        };
        let queue = |name: &str| block.as_ref().and_then(|block| block.queue(name));
        let disk = block.as_ref().map(|block| block.disk().unwrap_or_else(|| block.clone()));
        Self {
            path: info.path.clone(),
            size_bytes: info.size_bytes,
            logical_block_bytes: info.logical_block_bytes,
            physical_block_bytes: info.physical_block_bytes,
            disk: disk.as_ref().map(|disk| disk.name().to_owned()),
            model: disk
                .and_then(|disk| disk.attribute("device/model"))
                .map(|model| model.trim().to_owned())
                .filter(|model| !model.is_empty()),
            rotational: queue("rotational").map(|text| text == "1"),
            write_cache: queue("write_cache"),
            scheduler: queue("scheduler").map(|text| selected(&text)),
            discard: info.discard,
            name: block.map(|block| block.name().to_owned()),
            backing,
        }
    }
}

fn backing_of(block: &BlockDir) -> Backing {
    match block.loop_backing_file() {
        Some(file) => {
            let direct = block.attribute("loop/dio").map(|text| text.trim() == "1");
            Backing::Loop { file, direct }
        }
        None => Backing::Device,
    }
}

/// The choice in brackets of a list, or all of it where nothing is.
fn selected(text: &str) -> String {
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(text, |(word, _)| word)
        .to_owned()
}

fn is_in_memory(path: &Path) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

fn cpu_model(root: &Root) -> Option<String> {
    let text = fs::read_to_string(root.proc("cpuinfo")).ok()?;
    // x86 and s390 have a name; elsewhere there are numbers at best.
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    value("model name").or_else(|| value("cpu")).or_else(|| value("CPU part"))
}

/// Directories of the CPUs, in no order.
pub(crate) fn cpu_dirs(root: &Root) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(root.sys("devices/system/cpu")).into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let number = name.to_str()?.strip_prefix("cpu")?;
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| entry.path())
    })
}

fn governors(root: &Root) -> Vec<String> {
    let mut found: Vec<String> =
        cpu_dirs(root).filter_map(|cpu| read_line(&cpu.join("cpufreq/scaling_governor"))).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A file's text without the white space around it; `None` when it cannot be read.
pub(crate) fn read_line(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine in a directory.
    pub(crate) struct Tree(pub(crate) tempfile::TempDir);

    impl Tree {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub(crate) fn root(&self) -> Root {
            Root::at(self.0.path())
        }

        pub(crate) fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn a_machine_is_described() {
        let tree = Tree::new();
        tree.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\n\nprocessor\t: 1");
        tree.write("proc/sys/kernel/osrelease", "6.12.1\n");
        tree.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        for cpu in ["cpu0", "cpu1"] {
            tree.write(
                &format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor"),
                "powersave\n",
            );
        }
        tree.write("sys/devices/system/cpu/cpufreq/x", "");
        let found = Environment::gather(&tree.root(), &[]);
        assert_eq!(found.cpu_model.as_deref(), Some("A CPU @ 3 GHz"));
        assert_eq!(found.kernel.as_deref(), Some("6.12.1"));
        assert_eq!(found.clocksource.as_deref(), Some("tsc"));
        assert_eq!(found.governors, ["powersave"]);
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&json).unwrap(), found);
    }

    #[test]
    fn an_empty_machine_is_described_by_what_it_lacks() {
        let tree = Tree::new();
        let found = Environment::gather(&tree.root(), &[]);
        assert_eq!((found.cpu_model, found.kernel, found.clocksource), (None, None, None));
        assert!(found.governors.is_empty() && found.cpus >= 1);
    }

    #[test]
    fn an_image_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let device =
            bcache_core::device::create_image(dir.path().join("cache.img"), 1 << 20).unwrap();
        let info = bcache_core::device::ReadDevice::info(&device);
        let found = DeviceEnvironment::gather(&Root::system(), info);
        assert_eq!(found.size_bytes, 1 << 20);
        assert!(matches!(found.backing, Backing::Image { .. }), "{:?}", found.backing);
        assert_eq!(found.name, None);
    }

    #[test]
    fn loop_devices_are_told_from_disks() {
        let tree = Tree::new();
        tree.write("sys/class/block/loop3/loop/backing_file", "/var/tmp/image\n");
        tree.write("sys/class/block/loop3/loop/dio", "0\n");
        tree.write("sys/class/block/sda/size", "1");
        let block = |name| BlockDir::by_name(&tree.root(), name).unwrap();
        assert_eq!(
            backing_of(&block("loop3")),
            Backing::Loop { file: "/var/tmp/image".into(), direct: Some(false) }
        );
        assert_eq!(backing_of(&block("sda")), Backing::Device);
    }

    #[test]
    fn the_scheduler_in_use_is_the_one_in_brackets() {
        assert_eq!(selected("none [mq-deadline] kyber"), "mq-deadline");
        assert_eq!(selected("none"), "none");
    }
}
