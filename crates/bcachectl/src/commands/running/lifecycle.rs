//! `register`, `attach`, `detach`, `stop`, `unregister`, `run`, `resize`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bcache_core::device::sysfs::{BlockDir, Root, node_of};
use bcache_core::device::{DeviceError, FileDevice, open_write};
use bcache_core::running::control::{
    self, Plan, Refusal, plan_attach, plan_detach, plan_register, plan_run, plan_run_again,
    plan_stop, plan_stop_set, plan_unregister,
};
use bcache_core::running::{DeviceState, View};

use super::session::{AT_ONCE, NO_LIMIT, Session, Target, ask, target};
use crate::cli::running::{
    AttachArgs, DetachArgs, RegisterArgs, ResizeArgs, RunArgs, StopArgs, UnregisterArgs,
};
use crate::exit::{ExitError, Failure};

/// The word that gives up dirty data.
const LOSE: &str = "lose dirty data";

/// Runs `bcachectl register`.
pub(in crate::commands) fn register(args: &RegisterArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, NO_LIMIT)?;
    for path in &args.devices {
        // The one before may have changed what is refused.
        let view = session.view()?;
        let plan = plan_register(&session.root, &view, path, args.lose_dirty_data);
        let target = path.display().to_string();
        let plan = plan.map_err(|error| session.refuse("register", &target, &error))?;
        session.carry_out(&plan)?;
    }
    session.finish()
}

/// Runs `bcachectl attach`.
pub(in crate::commands) fn attach(args: &AttachArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, AT_ONCE)?;
    let view = session.view()?;
    let backing = session.backing(&view, &args.device)?;
    let set = session.set(&view, &args.set)?;
    let plan = plan_attach(backing, set);
    let plan = plan.map_err(|error| session.refuse("attach", &args.device, &error))?;
    session.carry_out(&plan)?;
    session.finish()
}

/// Runs `bcachectl detach`.
pub(in crate::commands) fn detach(args: &DetachArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, NO_LIMIT)?;
    let view = session.view()?;
    let backing = session.backing(&view, &args.device)?;
    let plan = plan_detach(backing, args.wait);
    let plan = plan.map_err(|error| session.refuse("detach", &args.device, &error))?;
    session.carry_out(&plan)?;
    session.finish()
}

/// Runs `bcachectl stop`.
pub(in crate::commands) fn stop(args: &StopArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, AT_ONCE)?;
    let view = session.view()?;
    let plan = match target(&session.root, &view, &args.target)? {
        Target::Backing(backing) => plan_stop(&session.root, backing, args.lazy),
        Target::Set(set) => plan_stop_set(&session.root, &view, set, args.lazy),
        Target::Volume(set, _) => bail!(
            "{}: a volume stops with its set ({}); `bcachectl volume remove` removes it and its data",
            args.target,
            set.uuid
        ),
    };
    let plan = plan.map_err(|error| session.refuse("stop", &args.target, &error))?;
    session.carry_out(&plan)?;
    session.finish()
}

/// Runs `bcachectl run`.
pub(in crate::commands) fn run(args: &RunArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, AT_ONCE)?;
    let mut view = session.view()?;
    let backing = session.backing(&view, &args.device)?;
    let name = backing.name.clone();
    if DeviceState::of(backing) == DeviceState::CacheLost {
        // It runs already, but its superblock does not say that it does so without its cache.
        let plan = plan_run_again(&session.root, backing, args.lose_dirty_data);
        let plan = plan.map_err(|error| session.refuse("stop", &args.device, &error))?;
        let Some(after) = begin_again(&mut session, &plan, &name)? else {
            return session.finish();
        };
        view = after;
    }
    let backing = session.backing(&view, &name)?;
    let mut plan = plan_run(backing, args.lose_dirty_data);
    if let Err(Refusal::Dirty { device }) = &plan {
        let question = format!(
            "{device} is dirty: what was written last is only on its cache, and is lost for good \
             if it starts without it."
        );
        if !args.control.dry_run && ask(&question, Some(LOSE))? {
            plan = plan_run(backing, true);
        }
    }
    let plan = plan.map_err(|error| session.refuse("run", &args.device, &error))?;
    session.carry_out(&plan)?;
    session.finish()
}

/// Runs `bcachectl unregister`.
pub(in crate::commands) fn unregister(args: &UnregisterArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, NO_LIMIT)?;
    let view = session.view()?;
    let set = session.set(&view, &args.set)?;
    let plan = plan_unregister(&session.root, &view, set, args.wipe);
    let plan = plan.map_err(|error| session.refuse("unregister", &args.set, &error))?;
    if !args.wipe {
        session.carry_out(&plan)?;
        return session.finish();
    }
    let cache = set.cache.as_ref().context("the set has no cache device")?;
    let node = node_of(&cache.name);
    let question = format!("The bcache superblock on {} will be wiped.", node.display());
    if !args.control.dry_run && !args.yes && !ask(&question, None)? {
        let node = node.display();
        bail!("{node}: confirm the wipe on a terminal, or give --yes; nothing was written");
    }
    if session.carry_out(&plan)?.is_some() {
        wipe(&node).map_err(|error| session.fail(error))?;
    }
    session.finish()
}

/// Claims the device as soon as the kernel lets go of it, so that udev does not register it again,
/// and wipes it.
pub(super) fn wipe(node: &Path) -> Result<()> {
    let failed = |error: anyhow::Error| {
        let what = format!("the set is unregistered, and {} was not wiped", node.display());
        ExitError::wrap(Failure::Partial, error.context(what))
    };
    let device = claim(node).map_err(|error| failed(error.into()))?;
    control::wipe(&device).map_err(|error| failed(error.into()))
}

/// Time after which a device that somebody holds is given up.
const CLAIM: Duration = Duration::from_secs(5);

fn claim(path: &Path) -> Result<FileDevice, DeviceError> {
    let begun = Instant::now();
    loop {
        match open_write(path) {
            Err(DeviceError::Busy { .. }) if begun.elapsed() < CLAIM => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// Stops a device as planned, and registers it again. What there is then; none in a dry run.
fn begin_again(session: &mut Session, stop: &Plan, name: &str) -> Result<Option<View>> {
    if session.carry_out(stop)?.is_none() {
        return Ok(None);
    }
    let node = node_of(name);
    let plan = registered_again(&session.root, &session.view()?, &node)
        .map_err(|error| session.refuse("register", &node.display().to_string(), &error))?;
    session.carry_out(&plan)?;
    session.view().map(Some)
}

/// Runs `bcachectl resize`.
pub(in crate::commands) fn resize(args: &ResizeArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, AT_ONCE)?;
    let view = session.view()?;
    let backing = session.backing(&view, &args.device)?;
    let name = backing.name.clone();
    let before = backing.bcache_sectors;
    let plan = plan_stop(&session.root, backing, false);
    let plan = plan.map_err(|error| session.refuse("resize", &args.device, &error))?;
    let Some(view) = begin_again(&mut session, &plan, &name)? else {
        return session.finish();
    };
    let after = view.backing_device(&name).and_then(|backing| backing.bcache_sectors);
    match (before, after) {
        (Some(before), Some(after)) if before != after => {
            eprintln!("bcachectl: {name}: was {before}, is {after}");
        }
        (_, Some(after)) => eprintln!("bcachectl: {name}: still {after}"),
        _ => {
            let error = anyhow!("{name} is registered and waits for its set");
            return Err(session.fail(ExitError::wrap(Failure::Partial, error)));
        }
    }
    session.finish()
}

/// The plan to register a device that was stopped or made just now; udev may have done so meanwhile.
pub(super) fn registered_again(root: &Root, view: &View, path: &Path) -> Result<Plan, Refusal> {
    let begun = Instant::now();
    loop {
        match plan_register(root, view, path, false) {
            // Its release follows a moment after all else.
            Err(Refusal::InUse { .. }) if begun.elapsed() < CLAIM => {
                let is_registered =
                    BlockDir::of_path(root, path).is_some_and(|it| it.role().is_some());
                if !is_registered {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            result => return result,
        }
    }
}
