//! `label` and `volume`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use bcache_core::running::control::{plan_label, plan_volume_create, plan_volume_remove};
use bcache_core::units::{Sectors, format_bytes};

use super::session::{AT_ONCE, Session, Target, ask, target};
use crate::cli::running::{LabelArgs, VolumeArgs, VolumeCommand};

/// Runs `bcachectl label`.
pub(in crate::commands) fn label(args: &LabelArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, AT_ONCE)?;
    let view = session.view()?;
    let plan = match target(&session.root, &view, &args.device)? {
        Target::Backing(backing) => {
            plan_label(&backing.name, &backing.attributes, false, &args.label)
        }
        Target::Volume(_, volume) => {
            plan_label(&volume.bcache, &volume.attributes, true, &args.label)
        }
        Target::Set(set) => bail!("{}: a set has no label", set.uuid),
    };
    let plan = plan.map_err(|error| session.refuse("label", &args.device, &error))?;
    session.carry_out(&plan)?;
    session.finish()
}

/// Runs `bcachectl volume`.
pub(in crate::commands) fn volume(args: &VolumeArgs) -> Result<ExitCode> {
    match &args.command {
        VolumeCommand::Create { set: name, size, label, control } => {
            let mut session = Session::new(*control, AT_ONCE)?;
            let view = session.view()?;
            let set = session.set(&view, name)?;
            let plan = plan_volume_create(set, *size, label.as_deref());
            let plan = plan.map_err(|error| session.refuse("volume-create", name, &error))?;
            session.carry_out(&plan)?;
            session.finish()
        }
        VolumeCommand::Remove { device, yes, control } => {
            let mut session = Session::new(*control, AT_ONCE)?;
            let view = session.view()?;
            let Target::Volume(_, volume) = target(&session.root, &view, device)? else {
                bail!("{device} is not a flash-only volume");
            };
            let plan = plan_volume_remove(&session.root, &view, &volume.bcache);
            let plan = plan.map_err(|error| session.refuse("volume-remove", device, &error))?;
            let bytes = volume.sectors.map_or(0, Sectors::bytes);
            let label = volume.label.as_ref().map(|it| format!(" \"{it}\"")).unwrap_or_default();
            let question = format!(
                "All data of the volume {}{label} ({}) is lost for good.",
                volume.bcache,
                format_bytes(bytes)
            );
            if !control.dry_run && !yes && !ask(&question, None)? {
                bail!(
                    "{question} No terminal to ask on: give --yes to confirm; nothing was written"
                );
            }
            session.carry_out(&plan)?;
            session.finish()
        }
    }
}
