//! `top --batch`: each look as lines, for scripts and logs.

use std::io::{self, Write};

use bcache_core::running::Severity;

use super::figures::Figures;
use super::words::{DEVICE_COLUMNS, NAMES, SET_COLUMNS, of_device, of_set};

/// Writes one look.
pub(super) fn write(out: &mut dyn Write, figures: &Figures) -> io::Result<()> {
    for (severity, text) in &figures.findings {
        let word = match severity {
            Severity::Danger => "DANGER",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        writeln!(out, "{word}: {text}")?;
    }
    if !figures.sets.is_empty() {
        line(out, &SET_COLUMNS, &SET_COLUMNS.map(|(name, _)| name.to_owned()))?;
        for set in &figures.sets {
            line(out, &SET_COLUMNS, &of_set(set))?;
        }
    }
    if !figures.devices.is_empty() {
        line(out, &DEVICE_COLUMNS, &DEVICE_COLUMNS.map(|(name, _)| name.to_owned()))?;
        for device in &figures.devices {
            line(out, &DEVICE_COLUMNS, &of_device(device))?;
        }
    }
    if figures.sets.is_empty() && figures.devices.is_empty() {
        writeln!(out, "{}", super::nothing(figures.available))?;
    }
    writeln!(out)
}

fn line(out: &mut dyn Write, columns: &[(&str, u16); 9], cells: &[String; 9]) -> io::Result<()> {
    let mut text = String::new();
    for (index, ((_, width), cell)) in columns.iter().zip(cells).enumerate() {
        let width = usize::from(*width);
        if index > 0 {
            text.push(' ');
        }
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        if index < NAMES {
            text.extend([cell.as_str(), &padding]);
        } else {
            text.extend([&padding, cell.as_str()]);
        }
    }
    writeln!(out, "{}", text.trim_end())
}
