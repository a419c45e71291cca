//! The report for people: what is wrong first, then sets and devices.

use std::io::Write as _;

use anyhow::Result;
use bcache_cli::out::{Out, coloured};
use bcache_cli::table::Color;
use bcache_core::running::{Part, Severity};
use bcache_core::units::format_bytes;

use super::report::{BackingReport, CleanIn, SetReport, StatusReport};
use crate::commands::running::words::size;

pub(super) fn render(out: &mut Out, report: &StatusReport, available: bool) -> Result<()> {
    let style = out.style();
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Danger => coloured(style, Color::Red, "DANGER"),
            Severity::Warning => coloured(style, Color::Yellow, "warning"),
            Severity::Note => "note".to_owned(),
        };
        writeln!(out, "{word}: {}", finding.text)?;
        for step in &finding.way_out {
            writeln!(out, "  {step}")?;
        }
    }
    if !report.findings.is_empty() {
        writeln!(out)?;
    }
    if report.sets.is_empty() && report.unattached.is_empty() {
        let why = if available {
            "the kernel runs no bcache set or device"
        } else {
            "the kernel's bcache is not loaded"
        };
        writeln!(out, "{why}")?;
    }
    for (index, set) in report.sets.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        of_set(out, set, report)?;
    }
    if !report.sets.is_empty() && !report.unattached.is_empty() {
        writeln!(out)?;
    }
    for backing in &report.unattached {
        of_backing(out, backing, report, "")?;
    }
    Ok(())
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

fn of_set(out: &mut Out, set: &SetReport, report: &StatusReport) -> Result<()> {
    let is_silent = report.not_answering.contains(&Part::Set(set.uuid));
    writeln!(out, "set {}{}", set.uuid, if is_silent { ": does not answer" } else { "" })?;
    let mut facts = vec![format!("cache {}", set.cache.as_deref().unwrap_or("(none)"))];
    facts.extend(set.cache_bytes.map(format_bytes));
    facts.extend(set.bucket_bytes.map(|it| format!("buckets of {}", format_bytes(it))));
    facts.extend(set.available_percent.map(|it| format!("{it} % available")));
    facts.extend(set.replacement.clone());
    facts.extend(set.io_errors.filter(|it| *it > 0).map(|it| format!("{it} I/O errors")));
    writeln!(out, "  {}", facts.join(", "))?;
    if let (Some(hits), Some(misses)) = (set.hits, set.misses) {
        let ratio = set.hit_ratio.map(|it| format!(" = {}", percent(it))).unwrap_or_default();
        writeln!(out, "  reads: {hits} hits, {misses} misses{ratio}")?;
    }
    for backing in &set.backing {
        of_backing(out, backing, report, "  ")?;
    }
    for volume in &set.volumes {
        let label = volume.label.as_ref().map(|it| format!(" \"{it}\"")).unwrap_or_default();
        let bytes = volume.bytes.map(|it| format!(", {}", format_bytes(it))).unwrap_or_default();
        writeln!(out, "  {}{label}: flash-only volume{bytes}", volume.bcache)?;
    }
    Ok(())
}

fn of_backing(
    out: &mut Out,
    backing: &BackingReport,
    report: &StatusReport,
    indent: &str,
) -> Result<()> {
    let runs = match &backing.bcache {
        Some(bcache) => format!("{bcache} on {}", backing.device),
        None => backing.device.clone(),
    };
    let label = backing.label.as_ref().map(|it| format!(" \"{it}\"")).unwrap_or_default();
    let is_silent = report.not_answering.contains(&Part::Device(backing.device.clone()));
    let mut facts =
        vec![if is_silent { "does not answer".to_owned() } else { backing.state.to_string() }];
    facts.extend(backing.cache_mode.clone());
    facts.extend(backing.bytes.map(format_bytes));
    writeln!(out, "{indent}{runs}{label}: {}", facts.join(", "))?;
    if let Some(dirty) = backing.dirty_bytes.filter(|it| !it.is_zero()) {
        let when = match backing.clean_in {
            Some(CleanIn::Never) => ", writeback is off",
            Some(CleanIn::AfterNextWrite) => ", written back after the next write",
            Some(CleanIn::FullSpeed) => ", written back at full speed",
            Some(CleanIn::WhenIdle) => {
                ", below the target: written back when idle, or by bcachectl flush"
            }
            Some(CleanIn::Clean | CleanIn::Seconds { .. }) | None => "",
        };
        let seconds = match backing.clean_in {
            Some(CleanIn::Seconds { seconds }) => {
                format!(", at the rate of now clean in {}", duration(seconds))
            }
            _ => String::new(),
        };
        writeln!(out, "{indent}  dirty: {}{when}{seconds}", size(dirty))?;
    }
    if let (Some(hits), Some(misses)) = (backing.hits, backing.misses) {
        if hits + misses > 0 {
            let ratio = backing.hit_ratio.map(|it| format!(" = {}", percent(it)));
            let bypassed = backing.bypassed_bytes.filter(|it| !it.is_zero());
            let bypassed = bypassed.map(|it| {
                format!("; at least {} went past the cache", format_bytes(it.at_least()))
            });
            writeln!(
                out,
                "{indent}  reads: {hits} hits, {misses} misses{}{}",
                ratio.unwrap_or_default(),
                bypassed.unwrap_or_default()
            )?;
        }
    }
    if let Some(errors) = backing.io_errors.filter(|errors| *errors > 0) {
        writeln!(out, "{indent}  {errors} I/O errors")?;
    }
    if let Some(rates) = &backing.rates {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people; never negative"
        )]
        let rate = |bytes: f64| format!("{}/s", format_bytes(bytes as u64));
        let ratio = rates
            .byte_hit_ratio
            .map(|it| format!("; {} of what was read came from the cache", percent(it)));
        writeln!(
            out,
            "{indent}  now: {} read, {} written; backing device {} read, {} written{}",
            rate(rates.read_bytes),
            rate(rates.written_bytes),
            rate(rates.backing_read_bytes),
            rate(rates.backing_written_bytes),
            ratio.unwrap_or_default()
        )?;
    }
    if !backing.why.is_empty() {
        writeln!(out, "{indent}  past the cache go:")?;
        for reason in &backing.why {
            writeln!(out, "{indent}    {reason}")?;
        }
    }
    Ok(())
}

/// A time as people say it.
fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
