//! `bcache`, the command of bcache-tools 1.1: what is there, and control of what runs.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use bcache_core::device::sysfs::{BackingState, BlockDir, Registered, Role, Root, RunningBacking};
use bcache_core::device::{SuperblockArea, open_read};
use bcache_core::layout::superblock::{Kind, SB_LABEL_BYTES, SB_SECTOR, Superblock};
use bcache_core::ops::make::read_superblock;
use bcache_core::running::Question;
use uuid::Uuid;

use super::getopt::{Word, Words};
use super::{Call, LIMIT, definition, make_bcache, reason, register, super_show};
use crate::ask::{self, asker, whole};
use crate::scan;

const USAGE: &str = "\
Usage:bcache [SUBCMD]
\tshow\t\tshow all bcache devices in this host
\ttree\t\tshow active bcache devices in this host
\tmake\t\tmake regular device to bcache device
\tregister\tregister device to kernel
\tunregister\tunregister device from kernel
\tattach\t\tattach backend device(data device) to cache device
\tdetach\t\tdetach backend device(data device) from cache device
\tset-cachemode\tset cachemode for backend device
\tset-label\tset label for backend device";

const SHOW_USAGE: &str = "\
Usage:\tshow [option]
\tshow overall information about all devices
\t-d\t--device {devname}\tshow the detail infomation about this device
\t-m\t--more\t\t\tshow overall information about all devices with detail info
\t-h\t--help\t\t\tshow help information";

/// What the kernel calls a device that is not there.
const NONE: &str = "Non-Exist";

/// The state of a device of which the kernel does not say it.
const UNKNOWN: &str = "unknown";

/// Success, or the lines for standard error.
type Result<T = ()> = std::result::Result<T, String>;

pub(super) fn run(call: &Call) -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("Only root or users who has root priviledges can run this command");
        return 1.into();
    }
    let Some((command, arguments)) = call.arguments.split_first() else {
        eprintln!("{USAGE}");
        return 1.into();
    };
    let result = match (command.to_str().unwrap_or_default(), arguments) {
        ("make", _) => return make_bcache::run_subcommand(arguments),
        ("show", _) => show(arguments),
        ("tree", []) => tree(),
        ("tree", _) => Err("Usage: tree\tshow active bcache devices in this host".to_owned()),
        ("register", [device]) if device != "-h" => return register::register(Path::new(device)),
        ("register", _) => {
            Err("Usage:register devicename\t\tregister device as bcache device to kernel"
                .to_owned())
        }
        ("unregister", [device]) if device != "-h" => unregister(Path::new(device)),
        ("unregister", _) => {
            Err("Usage:unregister devicename\t\tunregister device from kernel".to_owned())
        }
        ("attach", [set, device]) if set != "-h" => attach(set, Path::new(device)),
        ("attach", _) => Err("Usage:attach cset_uuid|cachedevice datadevice".to_owned()),
        ("detach", [device]) if device != "-h" => detach(Path::new(device)),
        ("detach", _) => Err("Usage:detach devicename".to_owned()),
        ("set-cachemode", [device, mode]) => set_cache_mode(Path::new(device), mode),
        ("set-cachemode", _) => Err("Usage:set-cachemode devicename modetype".to_owned()),
        ("set-label", [device, label]) => set_label(Path::new(device), label),
        ("set-label", _) => {
            Err("Usage:set-label devicename label\n(only for backend device)".to_owned())
        }
        ("version", []) => {
            super::print("bcache-tools 1.1\n");
            Ok(())
        }
        ("version", _) => Err("Usage: version\t\tdisplay software version".to_owned()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::SUCCESS;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(lines) => {
            eprintln!("{lines}");
            1.into()
        }
    }
}

/// The superblock of a device that is named on the command line.
fn superblock(path: &Path) -> Result<Superblock> {
    let device =
        open_read(path).map_err(|_| format!("Error: Can't open dev  {}", path.display()))?;
    let Ok(Some(sb)) = read_superblock(&device) else { return Err("Couldn't read".to_owned()) };
    if !sb.magic_ok() {
        return Err("Bad magic,make sure this is an bcache device".to_owned());
    }
    if sb.offset() != SB_SECTOR {
        return Err("Invalid superblock (bad sector)".to_owned());
    }
    if !sb.csum_ok() {
        return Err("Csum is not match with expected one".to_owned());
    }
    Ok(sb)
}

/// The device's directory in sysfs.
fn sysfs(path: &Path) -> Result<BlockDir> {
    BlockDir::of_path(&Root::system(), path)
        .ok_or_else(|| format!("{} is not a block device", path.display()))
}

/// Writes one value to a file of sysfs.
fn write(file: &Path, value: &[u8]) -> std::result::Result<(), std::io::Error> {
    let mut line = value.to_vec();
    line.push(b'\n');
    fs::OpenOptions::new().write(true).open(file)?.write_all(&line)
}

/// Writes to a file of a backing device's directory.
fn write_backing(path: &Path, file: &str, value: &[u8], failed: &str) -> Result {
    let directory = Root::system().sys("class/block").join(sysfs(path)?.name()).join("bcache");
    write(&directory.join(file), value).map_err(|error| format!("{failed}:{}", reason(&error)))
}

/// What the kernel has of a backing device, once it says all of it.
fn backing(path: &Path) -> Result<RunningBacking> {
    let device = sysfs(path)?;
    let mut asker = asker(Root::system(), Question::default());
    let snapshot = whole(&mut asker, LIMIT, &AtomicBool::new(false), "bcache")
        .map_err(|error| format!("{error:#}"))?;
    match BlockDir::by_name(&snapshot.root, device.name()).and_then(|device| device.bcache()) {
        Some(Registered::Backing(backing)) => Ok(backing),
        Some(Registered::Cache(_)) => Err(format!("{} is not an backend device", path.display())),
        None => Err(format!("{} is not registered; register it first", path.display())),
    }
}

fn unregister(path: &Path) -> Result {
    let sb = superblock(path)?;
    match sb.kind() {
        Some(Kind::Backing) => {
            write_backing(path, "stop", b"1", &format!("Error stop back device {}", path.display()))
        }
        Some(Kind::Cache) => {
            let set = Root::system().sys("fs/bcache").join(sb.set_uuid().to_string());
            write(&set.join("unregister"), b"1").map_err(|error| {
                format!("Can't open {}/unregister:{}", set.display(), reason(&error))
            })
        }
        None => Err("Unknown bcache device type found".to_owned()),
    }
}

fn attach(set: &OsString, path: &Path) -> Result {
    let sb = superblock(path)?;
    if sb.kind() != Some(Kind::Backing) {
        return Err(format!("{} is not an backend device", path.display()));
    }
    let running = backing(path)?;
    if running.set_uuid.is_some() {
        return Err("This device have attached to another cset".to_owned());
    }
    let text = set.to_str().filter(|text| text.len() == uuid::fmt::Hyphenated::LENGTH);
    let set = if let Some(uuid) = text.and_then(|text| Uuid::try_parse(text).ok()) {
        uuid
    } else {
        let cache = superblock(Path::new(set))?;
        if cache.kind() != Some(Kind::Cache) {
            return Err(format!("{} is not an cache device", set.to_string_lossy()));
        }
        cache.set_uuid()
    };
    // The kernel attaches a device that waits for its own set to any other, which may have data of
    // old of it and then gives that.
    let detached =
        matches!(running.state, Some(BackingState::NoCache | BackingState::Inconsistent));
    if !detached && sb.set_uuid() != set {
        return Err(format!(
            "{} belongs to the cache set {} and waits for it: attached to another, wrong data could \
             be read. Register its cache and detach it first.",
            path.display(),
            sb.set_uuid()
        ));
    }
    let failed = format!("Failed to attache to cset {set}");
    write_backing(path, "attach", set.to_string().as_bytes(), &failed)
}

fn detach(path: &Path) -> Result {
    write_backing(path, "detach", b"1", &format!("Error detach device {}", path.display()))
}

/// The superblock of a backing device, for a setting that only those have.
fn for_backing_only(path: &Path) -> Result {
    let sb = superblock(path).map_err(|error| {
        format!("{error}\nThis device doesn't exist or failed to receive info from this device")
    })?;
    if sb.kind() == Some(Kind::Backing) {
        Ok(())
    } else {
        Err("Only backend device is suppported".to_owned())
    }
}

fn set_cache_mode(path: &Path, mode: &OsString) -> Result {
    for_backing_only(path)?;
    let failed = format!("Failed to set cachemode for device {}", path.display());
    write_backing(path, "cache_mode", mode.as_encoded_bytes(), &failed)
}

fn set_label(path: &Path, label: &OsString) -> Result {
    for_backing_only(path)?;
    if label.len() >= SB_LABEL_BYTES {
        return Err("Label is too long".to_owned());
    }
    let failed = format!("Failed to set label for device {}", path.display());
    write_backing(path, "label", label.as_encoded_bytes(), &failed)
}

fn show(arguments: &[OsString]) -> Result {
    let definition = definition("bcache");
    let definition = definition.find_subcommand("show").cloned().unwrap_or_default();
    let (mut more, mut device) = (false, None);
    for word in Words::new("show", &definition, true, arguments) {
        match word {
            Word::Option(name, value) => match name.as_str() {
                "more" => more = true,
                "device" => device = value,
                _ => return Err(SHOW_USAGE.to_owned()),
            },
            Word::Operand(_) => return Err(SHOW_USAGE.to_owned()),
            Word::Wrong(message) => return Err(message),
        }
    }
    match device {
        Some(device) if !more => super_show::print(Path::new(&device)),
        _ => {
            let devices = listed(true)?;
            super::print(&table(&devices, more));
            answered(devices.iter().filter(|device| device.state.is_none()))
        }
    }
}

/// A device with a bcache superblock.
struct Listed {
    path: PathBuf,
    sb: Superblock,
    role: Option<Role>,
    /// `inactive`, `active`, or what the kernel says of a backing device; none where it was not asked, or
    /// does not answer.
    state: Option<String>,
}

impl Listed {
    fn is_cache(&self) -> bool {
        self.sb.kind() == Some(Kind::Cache)
    }

    /// Whether the kernel runs this cache's set.
    fn active(&self) -> bool {
        matches!(self.role, Some(Role::Cache { .. }))
    }

    /// The device that a backing device runs as.
    fn volume(&self) -> Option<&str> {
        match &self.role {
            Some(Role::Backing { device, .. }) => device.as_deref(),
            _ => None,
        }
    }

    /// The set that a backing device is attached to.
    fn attached(&self) -> Option<Uuid> {
        match &self.role {
            Some(Role::Backing { set_uuid, .. }) => *set_uuid,
            _ => None,
        }
    }
}

/// The devices of the machine. Without `states` the kernel is asked nothing that takes bcache's lock.
fn listed(states: bool) -> Result<Vec<Listed>> {
    let scan = scan::machine()
        .map_err(|error| format!("Unable to open dir /sys/block: {}", reason(&error)))?;
    let with_superblock = scan.devices.iter().filter_map(|it| match &it.area {
        SuperblockArea::Bcache(sb) => Some((&it.device, sb)),
        _ => None,
    });
    let listed = with_superblock.map(|(device, sb)| {
        let state = match &device.role {
            None => Some("inactive".to_owned()),
            Some(Role::Cache { .. }) => Some("active".to_owned()),
            Some(Role::Backing { .. }) => BlockDir::by_name(&Root::system(), &device.name)
                .filter(|_| states)
                .and_then(|device| state(&ask::registered(&device)?)),
        };
        Listed { path: device.path.clone(), sb: sb.clone(), role: device.role.clone(), state }
    });
    Ok(listed.collect())
}

/// A backing device's state, and whether it runs.
fn state(device: &Registered) -> Option<String> {
    let Registered::Backing(backing) = device else { return None };
    let running = if backing.running == Some(true) { "(running)" } else { "" };
    Some(format!("{}{running}", backing.state.as_ref()?))
}

/// An error for the disks that did not answer, and for `silent`, of which the kernel did not say the
/// state. What is known was printed.
fn answered<'a>(silent: impl Iterator<Item = &'a Listed>) -> Result {
    let dead = scan::machine().map_or(&[][..], |scan| &scan.not_answering);
    let dead = dead.iter().map(|it| format!("{}: does not answer", it.device.path.display()));
    let silent = silent.map(|it| {
        let path = it.path.display();
        format!(
            "{path}: the kernel does not say how it runs: it holds bcache's lock, as it does while it \
             registers a cache"
        )
    });
    let lines: Vec<String> = dead.chain(silent).collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}

fn table(devices: &[Listed], more: bool) -> String {
    let mut text = if more {
        "Name\t\tUuid\t\t\t\t\tCset_Uuid\t\t\t\tType\t\tState\t\t\tBname\t\tAttachToDev\t\
         AttachToCset\n"
            .to_owned()
    } else {
        "Name\t\tType\t\tState\t\t\tBname\t\tAttachToDev\n".to_owned()
    };
    for device in devices {
        let sb = &device.sb;
        let kind = match sb.kind() {
            Some(Kind::Cache) => "cache",
            Some(Kind::Backing) => "data",
            None => "unknown",
        };
        let state = device.state.as_deref().unwrap_or(UNKNOWN);
        let set = device.attached();
        let name = match device.volume() {
            _ if device.is_cache() => "N/A",
            Some(name) => name,
            None => NONE,
        };
        let cache = devices.iter().find(|it| it.is_cache() && Some(it.sb.set_uuid()) == set);
        let attached = match cache {
            _ if device.is_cache() => "N/A".to_owned(),
            Some(cache) => cache.path.display().to_string(),
            None => "Alone".to_owned(),
        };
        // Writing to a string does not fail.
        let _ = write!(text, "{}", device.path.display());
        if more {
            let _ = write!(text, "\t{}\t{}", sb.uuid(), sb.set_uuid());
        }
        let _ = write!(text, "\t{} ({kind})\t{:<16}\t{name:<16}", sb.version(), state);
        if more {
            let set = match set {
                _ if device.is_cache() => "N/A".to_owned(),
                Some(set) => set.to_string(),
                None => NONE.to_owned(),
            };
            let _ = writeln!(text, "{attached:<16}{set}");
        } else {
            let _ = writeln!(text, "\t{attached}");
        }
    }
    text
}

fn tree() -> Result {
    let devices = listed(false)?;
    let mut text = ".\n".to_owned();
    for cache in devices.iter().filter(|device| device.is_cache() && device.active()) {
        let _ = writeln!(text, "{}", cache.path.display());
        let set = Some(cache.sb.set_uuid());
        let attached: Vec<_> = devices.iter().filter(|device| device.attached() == set).collect();
        for (index, device) in attached.iter().enumerate() {
            let branch = if index + 1 == attached.len() { "└─" } else { "├─" };
            let name = device.volume().unwrap_or(NONE);
            let _ = writeln!(text, "{branch}{} {name}", device.path.display());
        }
    }
    super::print(&text);
    answered(std::iter::empty())
}

#[cfg(test)]
mod tests {
    use bcache_core::layout::superblock::{
        BackingParams, CacheMode, CacheParams, Label, Replacement,
    };
    use bcache_core::units::Sectors;

    use super::*;

    #[test]
    fn the_table_is_that_of_1_1() {
        let set = Uuid::from_u128(1);
        let cache = Listed {
            path: "/dev/sda".into(),
            sb: Superblock::new_cache(&CacheParams {
                uuid: Uuid::from_u128(2),
                set_uuid: set,
                label: Label::default(),
                nbuckets: 600,
                bucket_size: Sectors(1024),
                block_size: 8,
                replacement: Replacement::Lru,
                discard: false,
            }),
            role: Some(Role::Cache { set_uuid: Some(set) }),
            state: Some("active".to_owned()),
        };
        let backing = |path: &str, role, state: Option<&str>| Listed {
            path: path.into(),
            sb: Superblock::new_backing(&BackingParams {
                uuid: Uuid::from_u128(3),
                set_uuid: set,
                label: Label::default(),
                data_offset: Sectors(16),
                block_size: 8,
                cache_mode: CacheMode::Writethrough,
            }),
            role,
            state: state.map(str::to_owned),
        };
        let attached =
            || Some(Role::Backing { device: Some("bcache0".to_owned()), set_uuid: Some(set) });
        let devices = [
            cache,
            backing("/dev/sdb", attached(), Some("clean(running)")),
            backing("/dev/sdc", None, Some("inactive")),
            backing("/dev/sdd", attached(), None),
        ];
        assert_eq!(
            table(&devices, false),
            "Name\t\tType\t\tState\t\t\tBname\t\tAttachToDev\n\
             /dev/sda\t0 (cache)\tactive          \tN/A             \tN/A\n\
             /dev/sdb\t1 (data)\tclean(running)  \tbcache0         \t/dev/sda\n\
             /dev/sdc\t1 (data)\tinactive        \tNon-Exist       \tAlone\n\
             /dev/sdd\t1 (data)\tunknown         \tbcache0         \t/dev/sda\n"
        );
        let more = table(&devices, true);
        let row = more.lines().nth(2).unwrap();
        assert_eq!(
            row,
            format!(
                "/dev/sdb\t{}\t{set}\t1 (data)\tclean(running)  \tbcache0         /dev/sda        {set}",
                Uuid::from_u128(3)
            )
        );
    }
}
