//! A repair, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use bcache_cli::text::plural;
use bcache_core::ops::repair::{
    Anew, Class, Code, Fix, KnownBy, Left, NotAnew, Reason, Recognised, RepairPlan,
};
use bcache_core::units::{Sectors, format_bytes};
use serde::Serialize;

use crate::cli::LISTED_PER_CODE;
use crate::render::and_more;

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
    /// The slot of the volume whose device has its superblock made again.
    volume: Option<u32>,
    reasons: Vec<String>,
}

#[derive(Serialize)]
struct Report<'p> {
    state: &'static str,
    changes: Vec<FixReport<'p>>,
    new_metadata: Option<AnewReport>,
    left: Vec<String>,
    advice: Vec<&'static str>,
    dirty_sectors_before: Option<u64>,
    dirty_sectors_after: Option<u64>,
}

#[derive(Serialize)]
struct ReasonReport {
    code: Code,
    class: Class,
    reason: String,
}

#[derive(Serialize)]
struct ShareReport {
    slot: u32,
    uuid: uuid::Uuid,
    dirty_sectors: u64,
    flash_only: bool,
    lost_sectors: u64,
    doubtful_sectors: u64,
    left_out_sectors: u64,
    unknown_from: Option<u64>,
    unknown_to: Option<u64>,
}

#[derive(Serialize)]
struct AnewReport {
    class: Class,
    accepted: bool,
    reasons: Vec<ReasonReport>,
    volumes: Vec<ShareReport>,
    btree_nodes: u64,
    prio_sets: u64,
    journal_seq: u64,
}

impl AnewReport {
    fn new(anew: &Anew, accepted: bool) -> Self {
        let reasons = anew.reasons.iter().map(|it| ReasonReport {
            code: it.code(),
            class: it.class(),
            reason: it.to_string(),
        });
        let volumes = anew.volumes.iter().map(|(&slot, it)| ShareReport {
            slot,
            uuid: it.uuid,
            dirty_sectors: it.dirty_sectors,
            flash_only: it.flash_only,
            lost_sectors: it.lost_sectors,
            doubtful_sectors: it.doubtful_sectors,
            left_out_sectors: it.left_out_sectors,
            unknown_from: it.unknown.map(|it| it.0),
            unknown_to: it.unknown.map(|it| it.1),
        });
        Self {
            class: anew.class(),
            accepted,
            reasons: reasons.collect(),
            volumes: volumes.collect(),
            btree_nodes: anew.nodes,
            prio_sets: anew.prio_sets,
            journal_seq: anew.journal_seq,
        }
    }
}

/// The devices that were named.
pub struct Paths<'p> {
    /// The cache, unless backing devices alone were.
    pub cache: Option<&'p Path>,
    /// The backing devices.
    pub backing: Vec<&'p Path>,
}

impl<'p> Paths<'p> {
    fn of(&self, fix: &Fix) -> &'p Path {
        let backing = fix.backing.and_then(|index| self.backing.get(index).copied());
        backing.or(self.cache).unwrap_or(Path::new(""))
    }

    /// What the command is about.
    fn subject(&self) -> String {
        let names: Vec<String> = match self.cache {
            Some(cache) => vec![cache.display().to_string()],
            None => self.backing.iter().map(|path| path.display().to_string()).collect(),
        };
        names.join(", ")
    }
}

/// What has to be known before a change is made.
fn reasons(fix: &Fix) -> Vec<String> {
    let mut reasons = fix.recognised.as_ref().map(of_device).unwrap_or_default();
    if let Some(holds) = &fix.holds {
        reasons.push(format!(
            "It holds something else now, which may have overwritten much of the volume: {holds}."
        ));
    }
    reasons
}

/// What is known of a device whose superblock is made again, and what is not.
fn of_device(device: &Recognised) -> Vec<String> {
    let (slot, uuid) = (device.slot, device.uuid);
    let by = match device.known_by {
        KnownBy::Data => "known by its clean data",
        KnownBy::Named => {
            "which nothing but the command line tells. If that is wrong, data goes to the wrong device"
        }
        KnownBy::OnlyOne => {
            "which nothing proves: no other volume is left. If that is wrong, data goes to the wrong device"
        }
    };
    let mut reasons = vec![format!("It is the device of volume {slot} ({uuid}), {by}.")];
    if device.is_dirty {
        reasons.push(
            "The cache has dirty data of it. If the device was used without the cache since, that data is \
             older than what is on it: do not repair it then."
                .to_owned(),
        );
    }
    if !device.is_offset_known {
        let sector = device.data_offset.0;
        reasons.push(format!(
            "That its data starts at sector {sector}, nothing proves. Was it made with another data offset, \
             say it with --owner {slot}=BACKING --data-offset SECTORS."
        ));
    }
    if let Some(end) = device.overwritten_to {
        let size = format_bytes(Sectors(end).bytes());
        reasons.push(format!("Its first {size} are overwritten, as far as the cache can tell."));
    }
    reasons.push(
        "What else was overwritten of the volume is lost, but for what the cache has of it."
            .to_owned(),
    );
    reasons
}

/// Writes the JSON object that the man page documents.
pub fn json(
    out: &mut impl Write,
    paths: &Paths<'_>,
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
                device: paths.of(fix),
                place: fix.place.to_string(),
                offset_bytes: fix.byte,
                accepted: plan.is_made(fix, accepted),
                volume: fix.recognised.as_ref().map(|it| it.slot),
                reasons: reasons(fix),
            })
            .collect(),
        new_metadata: plan
            .anew
            .as_ref()
            .map(|anew| AnewReport::new(anew, plan.is_anew_accepted(accepted))),
        left: plan.left_with(accepted).map(ToString::to_string).collect(),
        advice: advice(plan, accepted),
        dirty_sectors_before: plan.dirty_sectors_before.map(|it| it.0),
        dirty_sectors_after: plan.dirty_sectors_after.map(|it| it.0),
    };
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// What to do about what no repair mends, whatever is accepted.
fn advice(plan: &RepairPlan, accepted: &BTreeSet<Code>) -> Vec<&'static str> {
    let codes: BTreeSet<_> = match plan.anew {
        Some(_) => BTreeSet::new(),
        None => plan.left_with(accepted).map(|left| (left.finding(), left.advice())).collect(),
    };
    let mut advice = Vec::new();
    for (_, text) in codes {
        if !advice.contains(&text) {
            advice.push(text);
        }
    }
    advice
}

/// Writes it for people.
pub fn text(
    out: &mut impl Write,
    paths: &Paths<'_>,
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
    outcome: Outcome,
) -> Result<()> {
    let subject = paths.subject();
    let count = plan.accepted(accepted).count();
    let mut changes: Vec<String> = Vec::new();
    if count > 0 {
        changes.push(plural(count as u64, "change"));
    }
    if plan.is_anew_accepted(accepted) {
        changes.push("new metadata".to_owned());
    }
    let changes = changes.join(" and ");
    match outcome {
        Outcome::DryRun if !changes.is_empty() => {
            writeln!(out, "{subject}: {changes} would be made")?;
        }
        Outcome::Done => writeln!(out, "{subject}: {changes} made")?,
        Outcome::DryRun | Outcome::Nothing if plan.fixes.is_empty() && plan.left.is_empty() => {
            writeln!(out, "{subject}: nothing to repair")?;
        }
        Outcome::DryRun | Outcome::Nothing => writeln!(out, "{subject}: nothing is changed")?,
    }
    for fix in &plan.fixes {
        let class = fix.class.name();
        let place = if fix.backing.is_some() {
            format!("{} of {}", fix.place, paths.of(fix).display())
        } else {
            fix.place.to_string()
        };
        writeln!(out, "  {class}  {}  {place}, byte {}", fix.code.name(), fix.byte)?;
        for reason in reasons(fix) {
            writeln!(out, "    {reason}")?;
        }
    }
    if let Some(anew) = &plan.anew {
        new_metadata(out, anew)?;
    }
    let fixes = plan.fixes.iter().filter(|fix| !fix.is_accepted(accepted)).map(|fix| fix.code);
    let reasons = plan.anew.iter().flat_map(|anew| &anew.reasons);
    let reasons = reasons
        .filter(|it| it.class() != Class::Certain && !accepted.contains(&it.code()))
        .map(Reason::code);
    let not_accepted: BTreeSet<Code> = fixes.chain(reasons).collect();
    for code in not_accepted {
        writeln!(out, "  not made without --accept {}", code.name())?;
    }
    let left = plan.left_with(accepted).count() as u64;
    if left > 0 {
        let why = if plan.anew.is_some() { "left as it is" } else { "repair cannot mend" };
        writeln!(out, "{why}: {}", plural(left, "problem"))?;
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for problem in plan.left_with(accepted) {
            *counts.entry(problem.finding()).or_default() += 1;
        }
        let mut listed: BTreeMap<_, u64> = BTreeMap::new();
        for problem in plan.left_with(accepted) {
            let code = problem.finding();
            let told = listed.entry(code).or_default();
            *told += 1;
            let more = counts.get(&code).map_or(0, |count| count.saturating_sub(*told));
            if *told <= LISTED_PER_CODE as u64 {
                writeln!(out, "  {problem}")?;
            }
            if *told == LISTED_PER_CODE as u64 && more > 0 {
                writeln!(out, "  {}", and_more(more, code))?;
            }
        }
        for advice in advice(plan, accepted) {
            writeln!(out, "{advice}")?;
        }
        if plan.left.iter().any(Left::is_ambiguous) {
            writeln!(out, "If you know the owner, give --owner SLOT=BACKING.")?;
        }
    }
    if let Some(error) = &plan.not_anew {
        writeln!(out, "No set can be made that the kernel accepts: {error}.")?;
        if let NotAnew::NoOwner { slot, .. } = error {
            writeln!(
                out,
                "If you know the owner, give --owner {slot}=BACKING, or --flash-only {slot}=SIZE."
            )?;
        }
        writeln!(out, "You can save what is readable of the volumes with bcachectl export.")?;
    }
    if let Some(dirty) =
        plan.dirty_sectors_after.filter(|_| !plan.fixes.is_empty() || plan.anew.is_some())
    {
        let at_least = if plan.is_whole(accepted) { "" } else { "at least " };
        writeln!(
            out,
            "Dirty data that can be found then: {at_least}{}",
            format_bytes(dirty.bytes())
        )?;
    }
    Ok(())
}

fn new_metadata(out: &mut impl Write, anew: &Anew) -> Result<()> {
    writeln!(
        out,
        "New metadata, from all that can be read: {}, {}, journal entry {}",
        plural(anew.nodes, "btree node"),
        plural(anew.prio_sets, "prio set"),
        anew.journal_seq
    )?;
    for reason in &anew.reasons {
        writeln!(out, "  {}  {}  {reason}", reason.class().name(), reason.code().name())?;
    }
    let named: BTreeSet<u32> = anew.reasons.iter().flat_map(Reason::named).collect();
    for (slot, share) in &anew.volumes {
        let dirty = format_bytes(Sectors(share.dirty_sectors).bytes());
        let of = if share.uuid.is_nil() {
            "of no known device".to_owned()
        } else {
            share.uuid.to_string()
        };
        write!(out, "  volume {slot} ({of}): {dirty} dirty data kept")?;
        if share.doubtful_sectors > 0 {
            let doubtful = format_bytes(Sectors(share.doubtful_sectors).bytes());
            write!(out, ", {doubtful} of it in doubt: newer data may be lost")?;
        }
        writeln!(out)?;
        if share.lost_sectors > 0 {
            let lost = format_bytes(Sectors(share.lost_sectors).bytes());
            writeln!(out, "    {lost} of dirty data is lost: its place holds something else")?;
        }
        if named.contains(slot) {
            let wrong = if share.flash_only {
                "that it is flash-only. If that is wrong, its backing device lacks this data."
            } else {
                "whose it is. If that is wrong, this data goes to the wrong device."
            };
            writeln!(out, "    Nothing but the command line tells {wrong}")?;
        }
        if share.left_out_sectors > 0 {
            let left_out = format_bytes(Sectors(share.left_out_sectors).bytes());
            writeln!(out, "    {left_out} that the backing device has, too, are no longer cached")?;
        }
        match share.unknown {
            Some((from, u64::MAX)) => {
                writeln!(
                    out,
                    "    from sector {from} on, dirty data may be lost that nothing tells of"
                )?;
            }
            Some((from, to)) => writeln!(
                out,
                "    in sectors {from} to {to}, dirty data may be lost that nothing tells of"
            )?,
            None => {}
        }
    }
    Ok(())
}
