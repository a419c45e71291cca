//! `bcachectl show`: what bcache devices hold. Never writes.

mod deep;
mod overview;
mod render;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use bcache_cli::out::Out;
use bcache_cli::rows::Format;
use bcache_core::device::holders::holders_of;
use bcache_core::device::probe::probe;
use bcache_core::device::sysfs::{BlockDir, Registered, Root};
use bcache_core::device::{DeviceError, ReadDevice, file};
use bcache_core::layout::superblock::{Kind, Superblock};
use bcache_core::ops::make::read_superblock;
use bcache_core::ops::reused::set_uuid_reused;
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use std::cell::RefCell;

use crate::cli::ShowArgs;
use crate::deep::{Answer, BackingDevices};
use crate::exit::{ExitError, Failure};
use crate::render::device::{DeviceReport, RunningReport};

/// A device that could not be shown.
#[derive(Clone, Debug, Serialize)]
struct ErrorReport {
    path: String,
    error: String,
}

impl ErrorReport {
    fn new(path: &Path, error: &anyhow::Error) -> Self {
        Self { path: path.display().to_string(), error: format!("{error:#}") }
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
    let session = Session::new(args);
    match format {
        Format::Table => session.table()?,
        Format::Json => {
            let mut out = Out::stdout();
            out.json(&session)?;
            out.finish()?;
        }
        Format::Ndjson | Format::Csv => session.list(format)?,
    }
    session.end()
}

/// The devices that were named, and how showing them goes.
struct Session<'a> {
    args: &'a ShowArgs,
    devices: Vec<(PathBuf, Result<DeviceReport, ErrorReport>)>,
    backing: RefCell<BackingDevices>,
    status: RefCell<Status>,
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

impl<'a> Session<'a> {
    fn new(args: &'a ShowArgs) -> Self {
        let mut backing = BackingDevices::default();
        let look = |path: &PathBuf| {
            let found = look_at(path);
            if let Ok((_, Some(superblock))) = &found {
                // For people and JSON only.
                backing.add(Path::new(path.to_string_lossy().as_ref()), superblock);
            }
            let report = found
                .map(|(report, _)| report)
                .map_err(|error| ErrorReport::new(path, &anyhow::Error::from(error)));
            (path.clone(), report)
        };
        let devices = args.devices.iter().map(look).collect();
        Self { args, devices, backing: RefCell::new(backing), status: RefCell::default() }
    }

    /// Opens each device, reads what is asked for and hands it to `shown`.
    fn each(&self, mut shown: impl FnMut(&deep::Examined<'_>) -> Result<()>) -> Result<()> {
        for (path, report) in &self.devices {
            let result = match report {
                Ok(report) => self.one(path, report, &mut shown)?,
                Err(error) => Err(error.clone()),
            };
            if let Err(error) = result {
                let mut status = self.status.borrow_mut();
                status.unknown = true;
                status.errors.push(error);
            }
        }
        Ok(())
    }

    /// The outer error is one of the output, the inner one of the device.
    fn one(
        &self,
        path: &Path,
        report: &DeviceReport,
        shown: &mut dyn FnMut(&deep::Examined<'_>) -> Result<()>,
    ) -> Result<Result<(), ErrorReport>> {
        let failed = |error: &anyhow::Error| ErrorReport::new(path, error);
        let device = match file::open_read(path) {
            Ok(device) => device,
            Err(error) => return Ok(Err(failed(&error.into()))),
        };
        let examined = deep::examine(self.args, report, &device, &mut self.backing.borrow_mut());
        let examined = match examined {
            Ok(examined) => examined,
            Err(error) => return Ok(Err(failed(&error))),
        };
        shown(&examined)?;
        let mut status = self.status.borrow_mut();
        status.unsound |= !examined.is_sound();
        status.unsafe_to_wipe |= examined.is_unsafe_to_wipe();
        match examined.dirty.as_ref().map(|dirty| dirty.answer) {
            Some(Answer::Present) => status.dirty = true,
            Some(Answer::Unknown) => status.unknown = true,
            Some(Answer::None) | None => {}
        }
        Ok(examined.take_error().map_or(Ok(()), |error| Err(failed(&error))))
    }

    fn table(&self) -> Result<()> {
        let mut out = Out::stdout();
        let mut first = true;
        self.each(|examined| {
            if !std::mem::take(&mut first) {
                writeln!(out)?;
            }
            render::table(&mut out, self.args, examined)
        })?;
        out.finish()
    }

    /// One list of one device.
    fn list(&self, format: Format) -> Result<()> {
        let usage = |text: &str| Err(ExitError::wrap(Failure::Usage, anyhow!("{text}")));
        let parts = self.args.parts();
        if self.devices.len() != 1 {
            return usage("--format ndjson and csv are for one device");
        }
        if parts.lists() != 1 || parts.usage {
            return usage(
                "--format ndjson and csv are for one list: --prios, --journal, --uuids, --btree, \
                 --keys or --lookup",
            );
        }
        let mut out = Out::stdout();
        self.each(|examined| render::list(&mut out, self.args, format, examined))?;
        out.finish()
    }

    fn end(&self) -> Result<ExitCode> {
        let status = self.status.borrow();
        for error in &status.errors {
            writeln!(io::stderr(), "bcachectl: {}", error.error)?;
        }
        if self.args.dirty {
            return Ok(if status.dirty {
                Failure::DirtyData.into()
            } else if status.unknown {
                Failure::Refused.into()
            } else if status.unsafe_to_wipe {
                Failure::UnsafeToWipe.into()
            } else {
                ExitCode::SUCCESS
            });
        }
        let sound = status.errors.is_empty() && !status.unsound;
        Ok(if sound { ExitCode::SUCCESS } else { Failure::Refused.into() })
    }
}

/// The devices are read while they are written.
impl Serialize for Session<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("devices", &Devices(self))?;
        let errors = &self.status.borrow().errors;
        if !errors.is_empty() {
            map.serialize_entry("errors", errors)?;
        }
        map.end()
    }
}

struct Devices<'a>(&'a Session<'a>);

impl Serialize for Devices<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        let mut result = Ok(());
        let ended = self.0.each(|examined| {
            result = render::json(self.0.args, examined, |report| seq.serialize_element(report));
            anyhow::ensure!(result.is_ok());
            Ok(())
        });
        // The closure's error stands for the serializer's own.
        drop(ended);
        result?;
        seq.end()
    }
}

/// Shows an open device as the command does, but for what only the machine knows of it: who holds
/// it, and what else libblkid finds on it. For tests, which have devices in memory.
pub fn show_device(out: &mut Out, args: &ShowArgs, device: &dyn ReadDevice) -> Result<()> {
    let superblock = read_superblock(device)?;
    let report = report_of(device, superblock.as_ref());
    let examined = deep::examine(args, &report, device, &mut BackingDevices::default())?;
    match args.format() {
        Format::Table => render::table(out, args, &examined)?,
        Format::Json => render::json(args, &examined, |report| out.json(report))?,
        Format::Ndjson | Format::Csv => render::list(out, args, args.format(), &examined)?,
    }
    examined.take_error().map_or(Ok(()), Err)
}

/// What the bytes on a device say, and whether an old journal of its set lies there.
fn report_of(device: &dyn ReadDevice, superblock: Option<&Superblock>) -> DeviceReport {
    let mut report = DeviceReport::new(device.info(), superblock);
    // Where the future journal cannot be read, nothing can be said of it; the superblock can be
    // shown all the same.
    let reused = superblock.and_then(|sb| set_uuid_reused(sb, device).ok().flatten());
    report.kernel.warnings.extend(reused.map(|warning| warning.to_string()));
    report
}

/// Everything that can be told of one device without reading more than its superblock, and of a
/// new cache where its journal will be; read-only and whether or not it is in use.
fn look_at(path: &Path) -> Result<(DeviceReport, Option<Superblock>), DeviceError> {
    let device = file::open_read(path)?;
    let superblock = read_superblock(&device)?;
    let mut report = report_of(&device, superblock.as_ref());
    report.in_use = holders_of(path).iter().map(ToString::to_string).collect();
    // What else is on the device helps where it is no bcache device; failing to tell is no failure
    // to show.
    let found = probe(path).unwrap_or_default();
    report.found =
        found.iter().filter(|found| !found.is_bcache()).map(ToString::to_string).collect();
    let registered = BlockDir::of_path(&Root::system(), path).and_then(|block| block.bcache());
    report.running = registered.map(|registered| running(&registered));
    Ok((report, superblock))
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
        },
    }
}
