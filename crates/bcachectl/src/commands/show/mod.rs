//! `bcachectl show`: what bcache devices hold. Never writes.

mod deep;
mod inside;
pub(super) mod overview;
mod render;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use bcache_cli::exit::told;
use bcache_cli::out::Out;
use bcache_cli::rows::Format;
use bcache_core::cache_set::ReadOptions;
use bcache_core::cache_set::reused::set_uuid_reused;
use bcache_core::device::holders::holders_of;
use bcache_core::device::probe::probe;
use bcache_core::device::sysfs::{BlockDir, Registered, Role, Root};
use bcache_core::device::{ReadDevice, file};
use bcache_core::inspect::{Answer, BackingDevices, Device, Group, InspectError};
use bcache_core::layout::superblock::Kind;
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};

use self::deep::{Problems, Shown};
use crate::cli::ShowArgs;
use crate::exit::{ExitError, Failure};
use crate::render::device::{DeviceReport, RunningReport};
use crate::stakes::{AdviceReport, about_unread};
use crate::{ask, scan};

/// A device that could not be shown.
#[derive(Clone, Debug, Serialize)]
struct ErrorReport {
    path: String,
    error: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    advice: Vec<AdviceReport>,
}

impl ErrorReport {
    fn new(path: &Path, error: &anyhow::Error) -> Self {
        Self { advice: about_unread(error), ..Self::without_advice(path, told(error)) }
    }

    fn without_advice(path: &Path, error: String) -> Self {
        Self { path: path.display().to_string(), error, advice: Vec::new() }
    }
}

/// Runs `bcachectl show`.
pub fn run(args: &ShowArgs) -> Result<ExitCode> {
    let format = args.format();
    if args.devices.is_empty() {
        if matches!(format, Format::Ndjson | Format::Csv) {
            let error = anyhow!("--format ndjson and csv are for one list of one device: name it");
            return Err(ExitError::wrap(Failure::Usage, error));
        }
        return overview::run(format == Format::Json);
    }
    if matches!(format, Format::Ndjson | Format::Csv) {
        check_one_list(args)?;
    }
    show_named(args, format)
}

/// `ndjson` and `csv` have no place for a second list or device.
fn check_one_list(args: &ShowArgs) -> Result<()> {
    let usage = |text: &str| Err(ExitError::wrap(Failure::Usage, anyhow!("{text}")));
    let parts = args.parts();
    if args.devices.len() != 1 {
        return usage("--format ndjson and csv are for one device");
    }
    if parts.lists() != 1 || parts.usage {
        return usage(
            "--format ndjson and csv are for one list: --prios, --journal, --uuids, --btree, --keys \
             or --lookup",
        );
    }
    Ok(())
}

/// What the exit status depends on.
#[derive(Default)]
struct Status {
    errors: Vec<ErrorReport>,
    unsound: bool,
    dirty: bool,
    unknown: bool,
    unsafe_to_wipe: bool,
}

impl Status {
    fn add(&mut self, shown: &Shown<'_, '_>) {
        self.unsound |= !shown.is_sound();
        self.unsafe_to_wipe |= shown.is_unsafe_to_wipe();
        match shown.dirty.as_ref().map(|dirty| dirty.answer) {
            Some(Answer::Present) => self.dirty = true,
            Some(Answer::Unknown) => self.unknown = true,
            Some(Answer::None) | None => {}
        }
        let path = &shown.report.path;
        if let Some(error) = shown.report.running.as_ref().and_then(|it| it.silence(path)) {
            // What is on the device was read: --dirty can tell.
            self.errors.push(ErrorReport::without_advice(path, error));
        }
        if let Some(error) = shown.take_error() {
            self.fail(ErrorReport::new(&shown.report.path, &error));
        }
    }

    fn fail(&mut self, error: ErrorReport) {
        self.unknown = true;
        self.errors.push(error);
    }

    fn end(&self, args: &ShowArgs) -> Result<ExitCode> {
        for error in &self.errors {
            writeln!(io::stderr(), "bcachectl: {}", error.error)?;
            for advice in &error.advice {
                writeln!(io::stderr(), "{}", advice.sentence())?;
            }
        }
        if args.dirty {
            return Ok(if self.dirty {
                Failure::DirtyData.into()
            } else if self.unknown {
                Failure::Refused.into()
            } else if self.unsafe_to_wipe {
                Failure::UnsafeToWipe.into()
            } else {
                ExitCode::SUCCESS
            });
        }
        let sound = self.errors.is_empty() && !self.unsound;
        Ok(if sound { ExitCode::SUCCESS } else { Failure::Refused.into() })
    }
}

/// Shows the devices that were named: each is opened once, then all are looked at together.
fn show_named(args: &ShowArgs, format: Format) -> Result<ExitCode> {
    let mut status = Status::default();
    let mut handles = Vec::new();
    for path in &args.devices {
        match file::open_read(path) {
            Ok(handle) => handles.push(handle),
            Err(error) => status.fail(ErrorReport::new(path, &error.into())),
        }
    }
    let mut devices = Vec::new();
    let mut problems = Vec::new();
    let mut reports = Vec::new();
    for handle in &handles {
        let path = &handle.info().path;
        let mut found = Problems::new(path);
        let device = read(args, handle, &mut found);
        found.finish();
        match device {
            Ok(device) => {
                let report = report_of_open(handle, &device);
                devices.push((device, !report.in_use.is_empty()));
                reports.push(report);
                problems.push(found);
            }
            Err(error) => status.fail(ErrorReport::new(path, &error.into())),
        }
    }
    inside::warn_of_same_uuid(&mut reports);
    let mut backing =
        BackingDevices::with_machine(scan::backing_devices).beside_copies(Some(scan::seen));
    let group = Group::new(devices, &mut backing);
    let mut shown = Vec::new();
    for ((member, report), problems) in group.members.iter().zip(reports).zip(&problems) {
        match Shown::new(args, report, &group, member, problems) {
            Ok(device) => shown.push(device),
            Err(error) => status.fail(ErrorReport::new(member.path(), &error)),
        }
    }
    Out::answer(|out| {
        match format {
            Format::Table => {
                for (index, device) in shown.iter().enumerate() {
                    if index > 0 {
                        writeln!(out)?;
                    }
                    render::table(out, args, device)?;
                }
            }
            Format::Json => {
                let document = Document { args, shown: &shown, opened: &status.errors };
                out.json(&document)?;
            }
            Format::Ndjson | Format::Csv => {
                for device in &shown {
                    render::list(out, args, format, device)?;
                }
            }
        }
        Ok(())
    })?;
    for device in &shown {
        status.add(device);
    }
    status.end(args)
}

fn read<'d>(
    args: &ShowArgs,
    handle: &'d dyn ReadDevice,
    problems: &mut Problems,
) -> Result<Device<'d>, InspectError> {
    if args.superblock {
        Device::read_superblock(handle)
    } else {
        let mut device = Device::read_superblock(handle)?;
        problems.note_end(&device);
        device.read_set(&ReadOptions::default(), problems)?;
        Ok(device)
    }
}

/// All devices in JSON; their lists are made while they are written.
struct Document<'a> {
    args: &'a ShowArgs,
    shown: &'a [Shown<'a, 'a>],
    /// What could not be opened or read.
    opened: &'a [ErrorReport],
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("devices", &Devices(self.args, self.shown))?;
        let mut errors = self.opened.to_vec();
        for device in self.shown {
            if let Some(error) = device.take_error() {
                errors.push(ErrorReport::new(&device.report.path, &error));
                device.fail(error);
            }
        }
        if !errors.is_empty() {
            map.serialize_entry("errors", &errors)?;
        }
        map.end()
    }
}

struct Devices<'a>(&'a ShowArgs, &'a [Shown<'a, 'a>]);

impl Serialize for Devices<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.1.len()))?;
        for device in self.1 {
            render::json(self.0, device, |report| seq.serialize_element(report))?;
        }
        seq.end()
    }
}

/// Shows an open device as the command does, but for what only the machine knows of it: who holds
/// it, and what else libblkid finds on it. For tests, which have devices in memory.
pub fn show_device(out: &mut Out, args: &ShowArgs, device: &dyn ReadDevice) -> Result<()> {
    let mut problems = Problems::new(&device.info().path);
    let read = read(args, device, &mut problems)?;
    problems.finish();
    let report = report_of(&read);
    let group = Group::new(vec![(read, false)], &mut BackingDevices::default());
    let Some(member) = group.members.first() else { return Ok(()) };
    let shown = Shown::new(args, report, &group, member, &problems)?;
    match args.format() {
        Format::Table => render::table(out, args, &shown)?,
        Format::Json => render::json(args, &shown, |report| out.json(report))?,
        Format::Ndjson | Format::Csv => render::list(out, args, args.format(), &shown)?,
    }
    shown.take_error().map_or(Ok(()), Err)
}

/// What the bytes on a device say, and whether an old journal of its set lies there.
fn report_of(device: &Device<'_>) -> DeviceReport {
    let mut report = DeviceReport::new(device);
    // Where the future journal cannot be read, nothing can be said of it; the superblock can be
    // shown all the same.
    let reused =
        device.superblock.as_ref().and_then(|sb| set_uuid_reused(sb, device.handle).ok().flatten());
    report.kernel.warnings.extend(reused.map(|warning| warning.to_string()));
    report
}

/// The same, and what the machine says of the device.
fn report_of_open(handle: &dyn ReadDevice, device: &Device<'_>) -> DeviceReport {
    let path = &handle.info().path;
    let mut report = report_of(device);
    report.in_use = holders_of(path).iter().map(ToString::to_string).collect();
    // What else is on the device helps where it is no bcache device; failing to tell is no failure
    // to show.
    let found = probe(path).unwrap_or_default();
    report.found.extend(found.iter().filter(|found| !found.is_bcache()).map(ToString::to_string));
    if let Some(block) = BlockDir::of_path(&Root::system(), path) {
        if let Some(role) = block.role() {
            let registered = ask::registered(&block);
            report.running =
                Some(registered.map_or_else(|| outline(&role), |registered| running(&registered)));
        }
    }
    inside::note_contents(&mut report, handle);
    inside::warn_of_udev(&mut report);
    report
}

/// Everything that can be told of one device without reading more than its superblock, and of a
/// new cache where its journal will be; read-only and whether or not it is in use.
fn look_at(path: &Path) -> Result<DeviceReport> {
    let handle = file::open_read(path)?;
    let device = Device::read_superblock(&handle)?;
    Ok(report_of_open(&handle, &device))
}

/// What is known of a device that runs, and of which the kernel says nothing more.
fn outline(role: &Role) -> RunningReport {
    let (kind, device, set_uuid) = match role {
        Role::Cache { set_uuid } => (Kind::Cache, None, set_uuid),
        Role::Backing { device, set_uuid } => (Kind::Backing, device.clone(), set_uuid),
    };
    let set_uuid = set_uuid.map(|uuid| uuid.to_string());
    let not_answering = true;
    RunningReport { kind: Some(kind), device, set_uuid, not_answering, ..RunningReport::default() }
}

fn running(registered: &Registered) -> RunningReport {
    match registered {
        Registered::Cache(cache) => RunningReport {
            kind: Some(Kind::Cache),
            set_uuid: cache.set_uuid.map(|uuid| uuid.to_string()),
            ..RunningReport::default()
        },
        Registered::Backing(backing) => RunningReport {
            kind: Some(Kind::Backing),
            device: backing.device.clone(),
            set_uuid: backing.set_uuid.map(|uuid| uuid.to_string()),
            state: backing.state.as_ref().map(ToString::to_string),
            cache_mode: backing.cache_mode.clone(),
            dirty_data: backing.dirty_data.clone(),
            not_answering: false,
        },
    }
}
