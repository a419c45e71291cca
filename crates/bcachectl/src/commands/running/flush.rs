//! `flush`, and what puts its settings back after it was killed.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_core::running::Backing;
use bcache_core::running::control::{
    self, ControlError, Done, FlushOptions, Plan, changes_of_flush, plan_flush, plan_put_back,
};

use super::records::{FlushRecord, Held, Record as _, Records};
use super::session::{NO_LIMIT, Session, Target, target};
use crate::cli::running::FlushArgs;

/// Runs `bcachectl flush`.
pub(in crate::commands) fn flush(args: &FlushArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, NO_LIMIT)?;
    let view = session.view()?;
    let devices = match target(&session.root, &view, &args.target)? {
        Target::Backing(backing) => vec![backing],
        Target::Set(set) => view.backing_of(set.uuid).collect(),
        Target::Volume(..) => {
            bail!("{}: the data of a flash-only volume stays on the cache", args.target)
        }
    };
    let options = FlushOptions { writethrough: args.writethrough };
    // All of them are checked before the first is flushed.
    let mut ready = Vec::new();
    for backing in devices {
        ready.push(Ready::new(&mut session, backing, options)?);
    }
    for ready in ready {
        ready.carry_out(&mut session)?;
    }
    session.finish()
}

/// A flush that can begin.
pub(super) struct Ready {
    backing: Backing,
    plan: Plan,
    /// None in a dry run, and where no record can be kept.
    held: Option<Held>,
}

impl Ready {
    /// Puts back what a killed flush has left, and plans.
    pub(super) fn new(
        session: &mut Session,
        backing: &Backing,
        options: FlushOptions,
    ) -> Result<Self> {
        let held = put_back(session, backing)?;
        // Its settings may be others by now.
        let backing = now(session, backing)?;
        let plan = plan_flush(&backing, options)
            .map_err(|error| session.refuse("flush", &backing.name, &error))?;
        Ok(Self { backing, plan, held })
    }

    /// Flushes. The record is there before the first setting is changed, and until all are as they
    /// were.
    pub(super) fn carry_out(self, session: &mut Session) -> Result<()> {
        let Self { backing, plan, mut held } = self;
        if let Some(held) = held.as_mut().filter(|_| !plan.writes.is_empty()) {
            // The flush of another device may have taken hours.
            let settings = changes_of_flush(&plan, &now(session, &backing)?);
            let settings = settings.with_context(|| backing.name.clone())?;
            let record = FlushRecord { device: backing.name.clone(), uuid: backing.uuid, settings };
            if let Err(error) = held.write(&record) {
                not_kept(&error);
            }
        }
        session.carry_out_with(&plan, |plan, waiting| {
            let flushed = control::flush(plan, &backing, waiting);
            match &flushed {
                Err(ControlError::NotRestored { .. }) => {}
                _ => {
                    if let Some(held) = held.as_mut() {
                        held.settled();
                    }
                }
            }
            Ok((Done::default(), Some(flushed?.took_ms)))
        })?;
        Ok(())
    }
}

/// The same device as the kernel shows it now.
fn now(session: &Session, backing: &Backing) -> Result<Backing> {
    let view = session.view()?;
    let found = view.backing_device(&backing.name).filter(|it| it.uuid == backing.uuid);
    found.cloned().with_context(|| format!("{} is not registered any more", backing.name))
}

/// Puts back the settings that a killed flush of `backing` has left changed, and takes the place of its
/// record.
fn put_back(session: &mut Session, backing: &Backing) -> Result<Option<Held>> {
    let records = Records::system();
    let settings = Vec::new();
    let empty = FlushRecord { device: backing.name.clone(), uuid: backing.uuid, settings };
    let of_left = |session: &mut Session, left: &FlushRecord| -> Result<()> {
        let plan = plan_put_back(&backing.name, &backing.attributes, &left.settings);
        if !plan.writes.is_empty() {
            session.carry_out(&plan)?;
        }
        Ok(())
    };
    if session.args.dry_run {
        let all = records.all::<FlushRecord>();
        if let Some(left) = all.iter().find(|it| it.record.key() == empty.key()) {
            of_left(session, &left.record)?;
        }
        return Ok(None);
    }
    let taken = match records.take::<FlushRecord>(&empty.key()) {
        Ok(taken) => taken,
        Err(error) => {
            not_kept(&error);
            return Ok(None);
        }
    };
    let Some((left, mut held)) = taken else {
        bail!("{}: another bcachectl is flushing it", backing.name);
    };
    if let Some(left) = left {
        of_left(session, &left)?;
        held.settled();
    }
    Ok(Some(held))
}

fn not_kept(error: &io::Error) {
    // Where standard error is closed, nobody is told.
    let _ = writeln!(
        io::stderr(),
        "bcachectl: settings that a flush changes cannot be kept in /run/bcachectl ({error}): do not \
         kill it with SIGKILL"
    );
}
