//! A writeback, as text and as JSON.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bcache_cli::text::plural;
use bcache_core::layout::superblock::BackingState;
use bcache_core::ops::plan::Step;
use bcache_core::ops::writeback::{
    KeptVolume, Method, Options, VolumePlan, WritebackDone, WritebackPlan, WritebackState,
};
use bcache_core::units::format_bytes;
use serde::Serialize;
use uuid::Uuid;

use crate::cli::WritebackArgs;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Only planned.
    DryRun,
    /// There is nothing to write.
    Nothing,
    /// Carried out, and proven.
    Done(WritebackDone),
    /// Failed; the devices hold this.
    Failed(WritebackState),
}

impl Outcome {
    /// The word for it in JSON.
    const fn state(self) -> &'static str {
        match self {
            Self::DryRun => "planned",
            Self::Nothing => "nothing",
            Self::Done(_) => "done",
            Self::Failed(WritebackState::Unchanged) => "unchanged",
            Self::Failed(WritebackState::Old) => "old",
            Self::Failed(WritebackState::OldOrNew) => "old-or-new",
            Self::Failed(WritebackState::New) => "new",
            Self::Failed(WritebackState::Undefined) => "undefined",
        }
    }
}

const fn method_name(method: &Method) -> &'static str {
    match method {
        Method::Nothing => "none",
        Method::Rebuild(_) => "metadata",
        Method::InvalidateFirst { .. } => "invalidate-first",
        Method::Journal(_) => "journal",
    }
}

#[derive(Serialize)]
struct VolumeReport<'p> {
    slot: Option<u32>,
    uuid: Uuid,
    label: String,
    backing: &'p Path,
    backing_state: BackingState,
    dirty_sectors: u64,
    dirty_extents: u64,
}

#[derive(Serialize)]
struct KeptReport {
    slot: u32,
    uuid: Uuid,
    flash_only: bool,
    dirty_sectors: u64,
}

#[derive(Serialize)]
struct StepReport {
    step: &'static str,
    what: String,
    offset_bytes: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Report<'p> {
    state: &'static str,
    method: &'static str,
    detach: bool,
    volumes: Vec<VolumeReport<'p>>,
    kept: Vec<KeptReport>,
    invalidated_buckets: u64,
    journal_seq: Option<u64>,
    superblocks: u64,
    steps: Vec<StepReport>,
}

fn backing<'p>(paths: &'p [PathBuf], volume: &VolumePlan) -> &'p Path {
    paths.get(volume.backing).map_or(Path::new(""), PathBuf::as_path)
}

/// Writes the JSON object that the man page documents.
pub fn json(
    out: &mut impl Write,
    paths: &[PathBuf],
    plan: &WritebackPlan<'_>,
    options: &Options,
    outcome: Outcome,
) -> Result<()> {
    let mut steps = Vec::new();
    if outcome == Outcome::DryRun {
        plan.cache_steps(options, &mut |step| {
            steps.push(match &step {
                Step::Write { kind, offset, data } => StepReport {
                    step: "write",
                    what: kind.to_string(),
                    offset_bytes: *offset,
                    bytes: data.len() as u64,
                },
                Step::Zero { kind, offset, len } => StepReport {
                    step: "write",
                    what: kind.to_string(),
                    offset_bytes: *offset,
                    bytes: *len,
                },
                Step::Discard { offset, len } => StepReport {
                    step: "discard",
                    what: String::new(),
                    offset_bytes: *offset,
                    bytes: *len,
                },
                Step::Flush => {
                    StepReport { step: "flush", what: String::new(), offset_bytes: 0, bytes: 0 }
                }
            });
        })?;
    }
    let planned_seq = match &plan.method {
        Method::Rebuild(rebuild) => Some(rebuild.entry.seq()),
        Method::Journal(journal) => Some(journal.last_seq),
        Method::Nothing | Method::InvalidateFirst { .. } => None,
    };
    let planned_buckets = match plan.method {
        Method::InvalidateFirst { buckets } => buckets,
        _ => 0,
    };
    let done = match outcome {
        Outcome::Done(done) => done,
        _ => WritebackDone {
            journal_seq: planned_seq,
            invalidated_buckets: planned_buckets,
            superblocks: 0,
        },
    };
    let report = Report {
        state: outcome.state(),
        method: method_name(&plan.method),
        detach: plan.detach,
        volumes: plan
            .volumes
            .iter()
            .map(|volume| VolumeReport {
                slot: volume.slot,
                uuid: volume.uuid,
                label: volume.label.to_string(),
                backing: backing(paths, volume),
                backing_state: volume.state,
                dirty_sectors: volume.dirty_sectors.0,
                dirty_extents: volume.dirty_extents,
            })
            .collect(),
        kept: plan
            .kept
            .iter()
            .map(|kept| KeptReport {
                slot: kept.slot,
                uuid: kept.uuid,
                flash_only: kept.flash_only,
                dirty_sectors: kept.dirty_sectors.0,
            })
            .collect(),
        invalidated_buckets: done.invalidated_buckets,
        journal_seq: done.journal_seq,
        superblocks: done.superblocks,
        steps,
    };
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

fn name(volume: &VolumePlan) -> String {
    let slot = volume.slot.map_or_else(|| "volume".to_owned(), |slot| format!("volume {slot}"));
    if volume.label.is_empty() {
        format!("{slot} ({})", volume.uuid)
    } else {
        format!("{slot} ({}, {})", volume.label, volume.uuid)
    }
}

/// Writes it for people.
pub fn text(
    out: &mut impl Write,
    args: &WritebackArgs,
    plan: &WritebackPlan<'_>,
    outcome: Outcome,
) -> Result<()> {
    let cache = args.cache.display();
    let amount = format_bytes(plan.dirty_sectors().bytes());
    let detached = if plan.detach { ", and the volumes detached" } else { "" };
    match outcome {
        Outcome::DryRun => {
            writeln!(out, "{cache}: {amount} of dirty data would be written back{detached}")?;
        }
        Outcome::Nothing => writeln!(out, "{cache}: nothing to write back")?,
        Outcome::Done(_) => {
            writeln!(out, "{cache}: {amount} of dirty data written back{detached}")?;
        }
        Outcome::Failed(_) => return Ok(()),
    }
    for volume in &plan.volumes {
        writeln!(
            out,
            "  {} to {}: {} in {}",
            name(volume),
            backing(&args.backing, volume).display(),
            format_bytes(volume.dirty_sectors.bytes()),
            plural(volume.dirty_extents, "extent")
        )?;
        if outcome == Outcome::DryRun && volume.may_be_newer() {
            writeln!(
                out,
                "    The device was detached from this cache, run without it, or registered after it was last \
                 there. What was written to it since is replaced where the cache holds dirty data: check its \
                 file system afterwards."
            )?;
        }
    }
    for kept in &plan.kept {
        stays(out, kept)?;
    }
    if outcome == Outcome::DryRun {
        match &plan.method {
            Method::Nothing => {}
            Method::Rebuild(rebuild) => writeln!(
                out,
                "Then the cache gets new metadata ({}, {}, journal entry {}).",
                plural(rebuild.nodes.len() as u64, "btree node"),
                plural(rebuild.chain.len() as u64, "prio set"),
                rebuild.entry.seq()
            )?,
            Method::InvalidateFirst { buckets } => writeln!(
                out,
                "The cache is full: clean data of {} is invalidated first, to make room for new \
                 metadata.",
                plural(*buckets, "bucket")
            )?,
            Method::Journal(journal) => writeln!(
                out,
                "The cache is full of dirty data: journal entries {} to {} make it clean.",
                journal.first_seq, journal.last_seq
            )?,
        }
    }
    if let Outcome::Done(done) = outcome {
        if done.invalidated_buckets > 0 {
            writeln!(
                out,
                "  clean data of {} was invalidated to make room",
                plural(done.invalidated_buckets, "bucket")
            )?;
        }
        if plan.kept.is_empty() {
            writeln!(out, "The cache holds no dirty data any more.")?;
        }
    }
    Ok(())
}

fn stays(out: &mut impl Write, kept: &KeptVolume) -> Result<()> {
    let amount = format_bytes(kept.dirty_sectors.bytes());
    let why = if kept.flash_only {
        "it is flash-only, and the cache is the only place for its data"
    } else {
        "its backing device was not named"
    };
    writeln!(
        out,
        "  volume {} ({}): {amount} stay dirty in the cache: {why}",
        kept.slot, kept.uuid
    )?;
    Ok(())
}
