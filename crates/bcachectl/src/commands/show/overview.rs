//! Every bcache device of the machine, and how they belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::text::{plural, with_causes};
use bcache_core::device::scan::Scan;
use bcache_core::device::sysfs::{BlockDir, MachineDevice, Root};
use bcache_core::layout::superblock::Kind;
use serde::Serialize;

use super::inside::warn_of_same_uuid;
use super::{ErrorReport, look_at};
use crate::cli::ListArgs;
use crate::commands::list;
use crate::exit::Failure;
use crate::render::device::DeviceReport;
use crate::scan;

#[derive(Serialize)]
struct Report {
    devices: Vec<DeviceReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorReport>,
}

impl Report {
    fn fail(&mut self, device: &MachineDevice, error: String) {
        self.errors.push(ErrorReport::without_advice(&device.path, error));
    }
}

/// Every bcache device of the machine, by set.
pub(super) fn run(json: bool) -> Result<ExitCode> {
    let machine = Machine::look()?;
    Out::answer(|out| {
        if json {
            out.json(&machine.report)?;
        } else {
            machine.table(out, &ListArgs::default())?;
        }
        Ok(())
    })?;
    machine.complain()
}

/// The bcache devices of the machine, and those of which it cannot be told.
pub(in crate::commands) struct Machine {
    report: Report,
    scan: &'static Scan,
}

impl Machine {
    /// Reads the superblock of every device.
    pub(in crate::commands) fn look() -> Result<Self> {
        let mut report = Report { devices: Vec::new(), errors: Vec::new() };
        let scan = scan::machine()?;
        for found in &scan.devices {
            // Only what carries bcache, or what the kernel runs as such, is opened again.
            if found.area.superblock().is_none() && found.device.role.is_none() {
                continue;
            }
            match look_at(&found.device.path) {
                Ok(shown) => {
                    let running = shown.running.as_ref();
                    if let Some(error) = running.and_then(|it| it.silence(&shown.path)) {
                        report.fail(&found.device, error);
                    }
                    report.devices.push(shown);
                }
                Err(_) if is_gone(&found.device) => {}
                Err(error) => report.fail(&found.device, format!("{error:#}")),
            }
        }
        for failed in &scan.unreadable {
            report.fail(&failed.device, with_causes(&failed.error));
        }
        for silent in &scan.not_answering {
            let seconds = silent.waited.as_secs();
            let path = silent.device.path.display();
            report
                .fail(&silent.device, format!("{path}: does not answer, waited {seconds} seconds"));
        }
        warn_of_shared_sets(&mut report.devices);
        warn_of_same_uuid(&mut report.devices);
        Ok(Self { report, scan })
    }

    /// The devices.
    pub(in crate::commands) fn devices(&self) -> &[DeviceReport] {
        &self.report.devices
    }

    /// The list for people.
    pub(in crate::commands) fn table(&self, out: &mut Out, args: &ListArgs) -> Result<()> {
        if self.report.devices.is_empty() {
            let whole = self.report.errors.is_empty();
            let among = if whole { "" } else { " among those that could be read" };
            writeln!(out, "no bcache device found{among}")?;
            return Ok(());
        }
        list::table(out, &self.report.devices, args)
    }

    /// Names the devices of which it cannot be told, on standard error; the exit status that follows.
    pub(in crate::commands) fn complain(&self) -> Result<ExitCode> {
        let is_root = nix::unistd::geteuid().is_root();
        if self.scan.lacks_permission() && !is_root {
            let count = self.scan.unreadable.iter().filter(|it| it.is_permission()).count();
            writeln!(
                io::stderr(),
                "bcachectl: {} could not be read without the rights of root: run this as root",
                plural(count as u64, "device")
            )?;
        }
        let others = self.scan.unreadable.iter().filter(|it| is_root || !it.is_permission());
        for failed in others {
            writeln!(io::stderr(), "bcachectl: {}", with_causes(&failed.error))?;
        }
        for device in self.devices() {
            if let Some(error) = device.running.as_ref().and_then(|it| it.silence(&device.path)) {
                writeln!(io::stderr(), "bcachectl: {error}")?;
            }
        }
        for silent in &self.scan.not_answering {
            writeln!(
                io::stderr(),
                "bcachectl: {}: does not answer; all other devices are shown",
                silent.device.path.display()
            )?;
        }
        let whole = self.report.errors.is_empty();
        Ok(if whole { ExitCode::SUCCESS } else { Failure::Refused.into() })
    }
}

/// Whether a device went away after it was listed: a loop device that was detached, a stick that was
/// pulled out.
fn is_gone(device: &MachineDevice) -> bool {
    let now = BlockDir::by_name(&Root::system(), &device.name).and_then(|device| device.size());
    now.unwrap_or_default().0 == 0
}

/// Two caches cannot share a set: since 5.10 the kernel registers the first that it sees. One cache
/// that is seen through two devices (a RAID and its member) has one UUID.
fn warn_of_shared_sets(devices: &mut [DeviceReport]) {
    let uuid_of = |device: &DeviceReport| {
        let is_cache = device.kind == Some(Kind::Cache);
        device.superblock.as_ref().filter(|_| is_cache).map(|sb| sb.uuid.clone())
    };
    let shared: BTreeMap<String, usize> = list::by_set(devices)
        .into_iter()
        .map(|(set, members)| {
            let caches: BTreeSet<String> = members.into_iter().filter_map(uuid_of).collect();
            (set.to_owned(), caches.len())
        })
        .filter(|(_, caches)| *caches > 1)
        .collect();
    for device in devices.iter_mut().filter(|device| device.kind == Some(Kind::Cache)) {
        if let Some(caches) = shared.get(list::set_of(device)) {
            device.kernel.warnings.push(format!(
                "{caches} cache devices of this machine have the same set UUID: the kernel registers \
                 only one of them"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use bcache_cli::out::Style;
    use bcache_core::device::{DeviceInfo, DeviceKind};
    use bcache_core::layout::superblock::{
        BackingParams, CacheMode, CacheParams, Label, Replacement, Superblock,
    };
    use bcache_core::units::Sectors;
    use uuid::Uuid;

    use super::*;
    use crate::render::device::RunningReport;

    const SIZE: Sectors = Sectors(1 << 20);

    fn report(path: &str, superblock: Option<&Superblock>) -> DeviceReport {
        let info = DeviceInfo {
            path: PathBuf::from(path),
            kind: DeviceKind::Block,
            size_bytes: SIZE.bytes(),
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            disk_size: SIZE,
            discard: false,
            zoned: false,
            read_only: false,
            is_bcache_volume: false,
        };
        DeviceReport::of_superblock(&info, superblock)
    }

    fn cache(path: &str, uuid: u128, set_uuid: u128) -> DeviceReport {
        let sb = Superblock::new_cache(&CacheParams {
            uuid: Uuid::from_u128(uuid),
            set_uuid: Uuid::from_u128(set_uuid),
            label: Label::default(),
            nbuckets: SIZE.0 / 1024,
            bucket_size: Sectors(1024),
            block_size: 8,
            replacement: Replacement::Lru,
            discard: false,
        });
        report(path, Some(&sb))
    }

    fn backing(path: &str, set_uuid: u128) -> DeviceReport {
        let sb = Superblock::new_backing(&BackingParams {
            uuid: Uuid::from_u128(77),
            set_uuid: Uuid::from_u128(set_uuid),
            label: Label::default(),
            data_offset: Sectors(16),
            block_size: 8,
            cache_mode: CacheMode::Writeback,
        });
        report(path, Some(&sb))
    }

    /// The lines of the overview.
    fn overview(mut devices: Vec<DeviceReport>) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Printed(Arc<Mutex<Vec<u8>>>);
        impl Write for Printed {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let printed = Printed::default();
        let mut out = Out::new(printed.clone(), Style::PLAIN);
        warn_of_shared_sets(&mut devices);
        list::table(&mut out, &devices, &ListArgs::default()).unwrap();
        out.finish().unwrap();
        let printed = printed.0.lock().unwrap().clone();
        String::from_utf8(printed).unwrap().lines().map(str::to_owned).collect()
    }

    fn line<'a>(lines: &'a [String], word: &str) -> &'a str {
        lines.iter().find(|line| line.contains(word)).unwrap()
    }

    /// The superblock says "none" until the kernel writes it again.
    #[test]
    fn the_running_state_is_shown() {
        let mut running = backing("/dev/b", 5);
        assert!(line(&overview(vec![running.clone()]), "/dev/b").contains(" none "));
        running.running = Some(RunningReport {
            kind: Some(Kind::Backing),
            device: Some("bcache3".to_owned()),
            state: Some("dirty".to_owned()),
            ..RunningReport::default()
        });
        let lines = overview(vec![running, cache("/dev/c", 1, 5)]);
        let shown = line(&lines, "/dev/b");
        assert!(shown.contains(" dirty ") && shown.contains(" bcache3 "), "{lines:#?}");
        // The cache leads its set.
        let cache_line = line(&lines, "/dev/c");
        assert!(cache_line.trim_start().starts_with(&Uuid::from_u128(5).to_string()), "{lines:#?}");
        assert!(!shown.contains(&Uuid::from_u128(5).to_string()), "{lines:#?}");
    }

    #[test]
    fn a_running_device_without_superblock_is_shown() {
        let mut wiped = report("/dev/w", None);
        wiped.running = Some(RunningReport {
            kind: Some(Kind::Cache),
            set_uuid: Some(Uuid::from_u128(5).to_string()),
            ..RunningReport::default()
        });
        let lines = overview(vec![backing("/dev/b", 5), wiped]);
        let shown = line(&lines, "/dev/w");
        assert!(shown.contains(&Uuid::from_u128(5).to_string()), "{lines:#?}");
        assert!(shown.contains(" cache ") && shown.contains(" yes "), "{lines:#?}");
        assert!(!lines.concat().contains("no cache present"), "{lines:#?}");
    }

    #[test]
    fn two_caches_of_one_set_are_warned_of() {
        let lines = overview(vec![cache("/dev/c", 1, 5), cache("/dev/d", 2, 5)]);
        for path in ["/dev/c", "/dev/d"] {
            assert!(line(&lines, &format!("warning: {path}")).contains("2 cache devices"));
        }
        // Sets of their own, and one cache by two names.
        for other in [cache("/dev/d", 2, 6), cache("/dev/d", 1, 5)] {
            let lines = overview(vec![cache("/dev/c", 1, 5), other, backing("/dev/b", 5)]);
            assert!(!lines.concat().contains("warning"), "{lines:#?}");
        }
    }
}
