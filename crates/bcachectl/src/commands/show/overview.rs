//! Every bcache device of the machine, and how they belong together.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::table;
use bcache_core::device::sysfs::{Root, devices_of_the_machine};
use bcache_core::layout::superblock::Kind;
use bcache_core::units::format_bytes;
use serde::Serialize;

use super::{ErrorReport, look_at};
use crate::exit::Failure;
use crate::render::device::{DeviceReport, label_or_dash};

#[derive(Serialize)]
struct Report {
    devices: Vec<DeviceReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorReport>,
}

/// Every bcache device of the machine, by set.
pub(super) fn run(json: bool) -> Result<ExitCode> {
    let mut out = Out::stdout();
    let mut report = Report { devices: Vec::new(), errors: Vec::new() };
    for device in devices_of_the_machine(&Root::system())? {
        match look_at(&device.path) {
            Ok((found, _)) if found.superblock.is_some() => report.devices.push(found),
            Ok(_) => {}
            Err(error) => {
                let path = device.path.display().to_string();
                let error = format!("{:#}", anyhow::Error::from(error));
                report.errors.push(ErrorReport { path, error });
            }
        }
    }
    if json {
        out.json(&report)?;
    } else if report.devices.is_empty() {
        writeln!(out, "no bcache device found")?;
    } else {
        render_overview(&mut out, &report.devices)?;
    }
    out.finish()?;
    if let Some(first) = report.errors.first() {
        let others = report.errors.len() - 1;
        let more = if others == 0 { String::new() } else { format!(" (and {others} more)") };
        writeln!(io::stderr(), "bcachectl: not every device could be read: {}{more}", first.error)?;
    }
    Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { Failure::Refused.into() })
}

fn render_overview(out: &mut Out, devices: &[DeviceReport]) -> Result<()> {
    let mut sets: BTreeMap<&str, Vec<&DeviceReport>> = BTreeMap::new();
    for device in devices {
        let set = device.superblock.as_ref().map_or("", |sb| sb.set_uuid.as_str());
        sets.entry(set).or_default().push(device);
    }
    let header = ["set", "device", "kind", "size", "label", "state", "running", "kernel"];
    let mut rows = table::table(out.style(), &header);
    for (set, mut devices) in sets {
        devices.sort_by_key(|device| device.kind != Some(Kind::Cache));
        let has_cache = devices.iter().any(|device| device.kind == Some(Kind::Cache));
        let title = if has_cache { set.to_owned() } else { format!("{set} (no cache present)") };
        for (index, device) in devices.iter().enumerate() {
            let Some(sb) = &device.superblock else { continue };
            let state = match (&sb.cache, &sb.backing) {
                (Some(cache), _) if cache.sync => "in use",
                (Some(_), _) => "new",
                (_, Some(backing)) => backing.state,
                _ => "-",
            };
            let kind = device.kind.map_or_else(|| "?".to_owned(), |kind| kind.to_string());
            let running = device.running.as_ref().map_or_else(
                || "no".into(),
                |it| it.device.clone().unwrap_or_else(|| "yes".to_owned()),
            );
            rows.add_row([
                if index == 0 { title.as_str() } else { "" },
                &device.path.display().to_string(),
                &kind,
                &format_bytes(device.size_sectors.saturating_mul(512)),
                label_or_dash(&sb.label),
                state,
                &running,
                device.kernel.error.as_deref().unwrap_or("accepts"),
            ]);
        }
    }
    writeln!(out, "{rows}")?;
    Ok(())
}
