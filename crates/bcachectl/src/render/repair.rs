//! A repair, as text and as JSON.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use bcache_cli::text::plural;
use bcache_core::ops::repair::{Class, Code, Fix, RepairPlan};
use bcache_core::units::format_bytes;
use serde::Serialize;

use crate::cli::RepairArgs;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Only planned.
    DryRun,
    /// There is nothing to change, or nothing that was accepted.
    Nothing,
    /// Carried out, and read again.
    Done,
}

impl Outcome {
    const fn state(self) -> &'static str {
        match self {
            Self::DryRun => "planned",
            Self::Nothing => "nothing",
            Self::Done => "done",
        }
    }
}

#[derive(Serialize)]
struct FixReport<'p> {
    code: Code,
    class: Class,
    device: &'p Path,
    place: String,
    offset_bytes: u64,
    accepted: bool,
}

#[derive(Serialize)]
struct Report<'p> {
    state: &'static str,
    changes: Vec<FixReport<'p>>,
    left: Vec<String>,
    dirty_sectors_before: Option<u64>,
    dirty_sectors_after: Option<u64>,
}

fn device<'p>(args: &'p RepairArgs, fix: &Fix) -> &'p Path {
    fix.backing.and_then(|index| args.backing.get(index)).unwrap_or(&args.cache)
}

/// Writes the JSON object that the man page documents.
pub fn json(
    out: &mut impl Write,
    args: &RepairArgs,
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
    outcome: Outcome,
) -> Result<()> {
    let report = Report {
        state: outcome.state(),
        changes: plan
            .fixes
            .iter()
            .map(|fix| FixReport {
                code: fix.code,
                class: fix.class,
                device: device(args, fix),
                place: fix.place.to_string(),
                offset_bytes: fix.byte,
                accepted: fix.is_accepted(accepted),
            })
            .collect(),
        left: plan.left.iter().map(ToString::to_string).collect(),
        dirty_sectors_before: plan.dirty_sectors_before.map(|it| it.0),
        dirty_sectors_after: plan.dirty_sectors_after.map(|it| it.0),
    };
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// Writes it for people.
pub fn text(
    out: &mut impl Write,
    args: &RepairArgs,
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
    outcome: Outcome,
) -> Result<()> {
    let cache = args.cache.display();
    let count = plan.accepted(accepted).count();
    let changes = plural(count as u64, "change");
    match outcome {
        Outcome::DryRun if count > 0 => writeln!(out, "{cache}: {changes} would be made")?,
        Outcome::Done => writeln!(out, "{cache}: {changes} made")?,
        Outcome::DryRun | Outcome::Nothing if plan.fixes.is_empty() && plan.left.is_empty() => {
            writeln!(out, "{cache}: nothing to repair")?;
        }
        Outcome::DryRun | Outcome::Nothing => writeln!(out, "{cache}: nothing is changed")?,
    }
    for fix in &plan.fixes {
        let class = match fix.class {
            Class::Certain => "certain",
            Class::Likely => "likely",
        };
        let place = if fix.backing.is_some() {
            format!("{} of {}", fix.place, device(args, fix).display())
        } else {
            fix.place.to_string()
        };
        writeln!(out, "  {class}  {}  {place}, byte {}", fix.code.name(), fix.byte)?;
    }
    let mut not_accepted: Vec<&str> = plan
        .fixes
        .iter()
        .filter(|fix| !fix.is_accepted(accepted))
        .map(|fix| fix.code.name())
        .collect();
    not_accepted.dedup();
    for code in not_accepted {
        writeln!(out, "  not made without --accept {code}")?;
    }
    if !plan.left.is_empty() {
        let left = plural(plan.left.len() as u64, "problem");
        writeln!(out, "left, for repair cannot mend it: {left}")?;
        for problem in plan.left.iter().take(10) {
            writeln!(out, "  {problem}")?;
        }
    }
    if let Some(dirty) = plan.dirty_sectors_after.filter(|_| !plan.fixes.is_empty()) {
        let at_least = if plan.left.is_empty() { "" } else { "at least " };
        writeln!(
            out,
            "Dirty data that can be found then: {at_least}{}",
            format_bytes(dirty.bytes())
        )?;
    }
    Ok(())
}
