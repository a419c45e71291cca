//! An invalidation, as text and as JSON.
//!
//! There can be tens of millions of buckets: both are written as they go.

use std::io::Write;

use anyhow::Result;
use bcache_core::ops::invalidate::{Chosen, DeviceState, GaveUp, InvalidatePlan, Target, Writes};
use bcache_core::ops::plan::Step;
use bcache_core::units::{BucketIndex, SECTOR_BYTES, format_bytes};
use serde::Serialize;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Only planned.
    DryRun,
    /// Refused: nothing was written.
    Refused,
    /// Carried out, and proven.
    Done,
    /// Failed; the device holds this.
    Failed(DeviceState),
}

impl Outcome {
    /// The word for it in JSON.
    const fn state(self) -> &'static str {
        match self {
            Self::DryRun => "planned",
            Self::Refused => "refused",
            Self::Done => "done",
            Self::Failed(DeviceState::Unchanged | DeviceState::Old) => "unchanged",
            Self::Failed(DeviceState::OldOrNew) => "old-or-new",
            Self::Failed(DeviceState::New) => "unproven",
            Self::Failed(DeviceState::Undefined) => "undefined",
        }
    }

    /// What was written, or would be; nothing where the cache is certainly as it was.
    const fn writes<'p>(self, chosen: &'p Chosen<'_>) -> Option<&'p Writes> {
        match self {
            Self::Refused | Self::Failed(DeviceState::Unchanged | DeviceState::Old) => None,
            Self::DryRun | Self::Done | Self::Failed(_) => chosen.writes.as_ref(),
        }
    }
}

#[derive(Serialize)]
struct GaveUpReport {
    found: u64,
    wanted: u64,
}

#[derive(Serialize)]
struct TargetReport {
    bucket: BucketIndex,
    prio: u16,
    gen_before: u8,
    gen_after: u8,
    sectors: u64,
}

impl From<Target> for TargetReport {
    fn from(target: Target) -> Self {
        Self {
            bucket: target.bucket,
            prio: target.prio.0,
            gen_before: target.gen_before.0,
            gen_after: target.gen_after.0,
            sectors: target.sectors.0,
        }
    }
}

#[derive(Serialize)]
struct RefusedReport {
    bucket: BucketIndex,
    reason: String,
    kind: &'static str,
}

/// Writes the JSON object that the man page documents.
pub fn json(out: &mut impl Write, chosen: &Chosen<'_>, outcome: Outcome) -> Result<()> {
    let writes = outcome.writes(chosen);
    write!(out, "{{\"state\":\"{}\",\n\"invalidated\":", outcome.state())?;
    let targets = chosen.targets().filter(|_| writes.is_some()).map(TargetReport::from);
    list(out, targets)?;
    write!(out, ",\n\"refused\":")?;
    let refused = chosen.refused().map(|(bucket, reason)| RefusedReport {
        bucket,
        reason: reason.to_string(),
        kind: reason.kind(),
    });
    list(out, refused)?;
    write!(out, ",\n\"advice\":")?;
    list(out, chosen.advice().iter())?;
    let gave_up = chosen.gave_up.map(|it| GaveUpReport { found: it.found, wanted: it.wanted });
    let chain = writes.map(|writes| writes.chain.as_slice()).unwrap_or_default();
    let seq = writes.map(|writes| writes.journal_seq);
    writeln!(
        out,
        ",\n\"gave_up\":{},\n\"prio_chain\":{},\n\"journal_seq\":{}}}",
        serde_json::to_string(&gave_up)?,
        serde_json::to_string(chain)?,
        serde_json::to_string(&seq)?
    )?;
    Ok(())
}

/// A JSON list, a line for each element.
fn list(out: &mut impl Write, elements: impl Iterator<Item = impl Serialize>) -> Result<()> {
    write!(out, "[")?;
    for (index, element) in elements.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(out, "{comma}\n{}", serde_json::to_string(&element)?)?;
    }
    write!(out, "]")?;
    Ok(())
}

/// What happens, in one line.
pub fn headline(chosen: &Chosen<'_>, outcome: Outcome) -> String {
    let count = chosen.target_count();
    let buckets = if count == 1 { "1 bucket".to_owned() } else { format!("{count} buckets") };
    match outcome {
        _ if count == 0 => "nothing to invalidate".to_owned(),
        Outcome::DryRun => format!("{buckets} would be invalidated"),
        Outcome::Refused => format!("{buckets} could be invalidated"),
        Outcome::Done => format!("{buckets} invalidated"),
        Outcome::Failed(_) => format!("{buckets} were to be invalidated"),
    }
}

/// Whose data goes, volume by volume, and what stays.
pub fn totals(out: &mut impl Write, chosen: &Chosen<'_>) -> Result<()> {
    for (&slot, taken) in &chosen.survey.taken {
        let cached = chosen.survey.cached.get(&slot).copied().unwrap_or_default();
        writeln!(
            out,
            "  volume {slot} ({}): {} of {} cached",
            chosen.volume_name(slot),
            format_bytes(taken.cached_sectors.bytes()),
            format_bytes(cached.cached_sectors.bytes()),
        )?;
    }
    if chosen.dirty_kept.0 > 0 {
        let kept = format_bytes(chosen.dirty_kept.bytes());
        writeln!(out, "  {kept} of dirty data stay: the backing device lacks them")?;
    }
    Ok(())
}

/// Writes for people what would happen: each bucket, and each step.
pub fn dry_run(out: &mut impl Write, plan: &InvalidatePlan<'_>) -> Result<()> {
    let chosen = &plan.chosen;
    if chosen.target_count() > 0 {
        writeln!(out, "{:>10} {:>6} {:>9} {:>8}  volumes", "bucket", "prio", "gen", "sectors")?;
        for target in chosen.targets() {
            writeln!(
                out,
                "{:>10} {:>6} {:>9} {:>8}  {}",
                target.bucket.0,
                target.prio.0,
                format!("{}->{}", target.gen_before.0, target.gen_after.0),
                target.sectors.0,
                owners(plan, target.bucket)
            )?;
        }
        writeln!(out)?;
    }
    summary(out, chosen, Outcome::DryRun)?;
    if chosen.writes.is_some() {
        writeln!(out, "\nwould be written:")?;
    }
    for step in plan.steps() {
        match step {
            Step::Write { kind, offset, data } => writeln!(
                out,
                "  {kind}: {} at sector {}",
                format_bytes(data.len() as u64),
                offset / SECTOR_BYTES
            )?,
            Step::Flush => writeln!(out, "  flush")?,
            Step::Zero { .. } | Step::Discard { .. } => {}
        }
    }
    Ok(())
}

/// Writes for people what has happened.
pub fn text(out: &mut impl Write, chosen: &Chosen<'_>, outcome: Outcome) -> Result<()> {
    summary(out, chosen, outcome)?;
    if let Some(writes) = outcome.writes(chosen) {
        let chain: Vec<String> = writes.chain.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "  new prio chain in bucket{} {}, journal entry {}",
            if chain.len() == 1 { "" } else { "s" },
            chain.join(", "),
            writes.journal_seq
        )?;
    }
    Ok(())
}

fn summary(out: &mut impl Write, chosen: &Chosen<'_>, outcome: Outcome) -> Result<()> {
    if chosen.refused_count() > 0 {
        writeln!(out, "refused:")?;
        for (bucket, reason) in chosen.refused() {
            writeln!(out, "{:>10}  {reason}", bucket.0)?;
        }
        writeln!(out, "\nwhat to do instead:")?;
        for advice in chosen.advice() {
            writeln!(out, "  {} ({}): {}", advice.kind, advice.buckets, advice.instead)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{}", headline(chosen, outcome))?;
    if let Some(GaveUp { found, wanted }) = chosen.gave_up {
        writeln!(out, "  the policy gave up after {found} of {wanted} buckets")?;
    }
    totals(out, chosen)
}

/// Whose data is in a bucket, by name.
fn owners(plan: &InvalidatePlan<'_>, bucket: BucketIndex) -> String {
    let (slots, more) = plan.volumes_of(bucket);
    let mut names: Vec<String> =
        slots.iter().map(|&slot| format!("{slot} ({})", plan.chosen.volume_name(slot))).collect();
    if more {
        names.push("others".to_owned());
    }
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}
