//! `set` and `get`: every setting with its unit, range and default.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use bcache_cli::out::Out;
use bcache_core::running::control::{
    Change, Done, SettingError, apply_settings, most_of, plan_settings,
};
use bcache_core::running::{Attributes, Rounded, Scope, TUNABLES, Tunable, Unit, ValueError, View};
use serde::Serialize;

use super::session::{AT_ONCE, Session, Target, read_view, target};
use crate::cli::running::{GetArgs, SetArgs};

/// What settings belong to.
pub(super) struct Owner {
    pub(super) name: String,
    pub(super) attributes: Attributes,
    pub(super) is_backing: bool,
}

fn owner(view: &View, root: &bcache_core::device::sysfs::Root, name: &str) -> Result<Owner> {
    Ok(match target(root, view, name)? {
        Target::Backing(backing) => Owner {
            name: backing.name.clone(),
            attributes: backing.attributes.clone(),
            is_backing: true,
        },
        Target::Set(set) => Owner {
            name: set.uuid.to_string(),
            attributes: set.attributes.clone(),
            is_backing: false,
        },
        Target::Volume(..) => bail!("{name}: a flash-only volume has no settings"),
    })
}

/// Runs `bcachectl set`.
pub(in crate::commands) fn set(args: &SetArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, AT_ONCE)?;
    let view = session.view()?;
    let owner = owner(&view, &session.root, &args.target)?;
    let mut changes = Vec::new();
    for assignment in &args.assignments {
        let Some((name, value)) = assignment.split_once('=') else {
            bail!("\"{assignment}\" is not NAME=VALUE");
        };
        let change = Tunable::find(name.trim(), owner.is_backing)
            .and_then(|tunable| {
                let most = most_of(tunable, &owner.attributes);
                let value = tunable.parse(value.trim(), most, args.dangerous)?;
                Ok(Change { tunable, value })
            })
            .map_err(|error| refused(&mut session, &owner.name, &error.into()))?;
        changes.push(change);
    }
    change(&mut session, &owner, changes)?;
    session.finish()
}

/// Plans and writes the changes of one device or set.
pub(super) fn change(session: &mut Session, owner: &Owner, changes: Vec<Change>) -> Result<()> {
    let (plan, changes) = plan_settings(&owner.name, &owner.attributes, changes)
        .map_err(|error| refused(session, &owner.name, &error))?;
    session.carry_out_with(&plan, |plan, waiting| {
        apply_settings(plan, &changes, &owner.attributes, waiting)?;
        Ok((Done::default(), None))
    })?;
    Ok(())
}

fn refused(session: &mut Session, target: &str, error: &SettingError) -> anyhow::Error {
    let advice = match error {
        SettingError::Value(ValueError::Dangerous { .. }) => {
            ". To set it all the same, add --dangerous"
        }
        SettingError::Value(ValueError::Unknown { .. }) => {
            ". `bcachectl get` lists the settings there are"
        }
        _ => "",
    };
    session.fail(anyhow!("{target}: {error}{advice}; nothing was changed"))
}

#[derive(Serialize)]
struct Setting {
    name: &'static str,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Rounded>,
    unit: &'static str,
    range: Option<(u64, u64)>,
    choices: Vec<&'static str>,
    default: &'static str,
    persists: bool,
}

/// The unit in words.
pub(super) const fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Flag => "0 or 1",
        Unit::Number => "number",
        Unit::Percent => "%",
        Unit::Microseconds => "us",
        Unit::Milliseconds => "ms",
        Unit::Seconds => "s",
        Unit::Bytes => "bytes",
        Unit::SectorsPerSecond => "sectors/s",
        Unit::Choice(_) => "word",
    }
}

/// Runs `bcachectl get`.
pub(in crate::commands) fn get(args: &GetArgs) -> Result<ExitCode> {
    let root = bcache_core::device::sysfs::Root::system();
    let view = read_view(args.timeout)?;
    let owner = owner(&view, &root, &args.target)?;
    for name in &args.names {
        if let Err(error) = Tunable::find(name, owner.is_backing) {
            bail!("{}: {error}", owner.name);
        }
    }
    let wanted = |tunable: &&Tunable| {
        (tunable.scope == Scope::Backing) == owner.is_backing
            && (args.names.is_empty() || args.names.iter().any(|name| name == tunable.name))
    };
    let settings = TUNABLES.iter().filter(wanted).map(|tunable| {
        let value = tunable.read(&owner.attributes);
        let has_range = !matches!(tunable.unit, Unit::Choice(_) | Unit::Flag);
        let (least, most) = tunable.range;
        let most = most_of(tunable, &owner.attributes).map_or(most, |it| it.min(most));
        Setting {
            name: tunable.name,
            bytes: match (tunable.unit, &value) {
                (Unit::Bytes, Some(value)) => value.parse().ok(),
                _ => None,
            },
            value,
            unit: unit(tunable.unit),
            range: has_range.then_some((least, most)),
            choices: match tunable.unit {
                Unit::Choice(words) => words.to_vec(),
                _ => Vec::new(),
            },
            default: tunable.default,
            persists: tunable.persists,
        }
    });
    let settings: Vec<Setting> = settings.collect();
    let mut out = Out::stdout();
    if args.json {
        out.json(&settings)?;
        out.finish()?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:<31} {:>12} {:>12}  {:<9}  range, and whether it is kept",
        "setting", "value", "default", "unit"
    )?;
    for setting in &settings {
        let mut range = match setting.range {
            Some((least, most)) => format!("{least} to {most}"),
            None => setting.choices.join(", "),
        };
        if setting.persists {
            let comma = if range.is_empty() { "" } else { "; " };
            range = format!("{range}{comma}kept");
        }
        let line = format!(
            "{:<31} {:>12} {:>12}  {:<9}  {range}",
            setting.name,
            setting.value.as_deref().unwrap_or("-"),
            setting.default,
            setting.unit
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}
