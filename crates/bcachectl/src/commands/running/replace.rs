//! `replace-cache`: the backing devices of a set move to another cache, one after the other.

use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bcache_cli::progress::Progress as Bar;
use bcache_core::device::open_read;
use bcache_core::device::sysfs::{BlockDir, Registered, node_of};
use bcache_core::layout::superblock::{Kind, Replacement};
use bcache_core::ops::make::{
    self, DevicePlan, MakeError, Options, facts_of, open_for_real, read_superblock,
};
use bcache_core::running::control::{
    FlushOptions, Note, Plan, Proof, Write as KernelWrite, plan_attach, plan_detach, plan_register,
    plan_replace, plan_unregister, read_on_device, settings_to_carry,
};
use bcache_core::running::{DeviceState, Rounded, Set, View};
use bcache_core::units::Sectors;
use uuid::Uuid;

use super::flush::Ready;
use super::lifecycle::{registered_again, wipe};
use super::records::{Held, Moving, Record as _, Records, ReplaceRecord};
use super::session::{NO_LIMIT, Session, Target, ask, target};
use super::set::{Owner, change};
use crate::cli::running::ReplaceCacheArgs;
use crate::exit::{ExitError, Failure};
use crate::render::make_words;
use crate::{scan, udev};

/// The new cache device, as it is found.
struct New {
    /// Its kernel name.
    name: String,
    /// The set that is on it, or will be.
    set: Uuid,
    /// Bytes of that set's blocks.
    block_bytes: Option<u64>,
    state: NewState,
}

enum NewState {
    /// The kernel runs it.
    Running,
    /// It has a superblock of a cache device.
    Made,
    /// Nothing is on it; this is how it will be formatted.
    Empty(Vec<DevicePlan>),
}

/// Runs `bcachectl replace-cache`.
pub(in crate::commands) fn replace_cache(args: &ReplaceCacheArgs) -> Result<ExitCode> {
    let mut session = Session::new(args.control, NO_LIMIT)?;
    let view = session.view()?;
    let (mut record, old) = begun(&session, &view, args)?;
    let new = find_new(&session, &view, args, old)?;
    if new.set == record.old_set {
        bail!("{}: it is the cache of that set already", args.new.display());
    }
    let other = &record.new_cache;
    let other_is_there = BlockDir::by_name(&session.root, other).is_some();
    if !other.is_empty() && *other != new.name && other_is_there {
        bail!(
            "the cache of {} is being replaced by /dev/{other}: `bcachectl replace-cache {} \
             /dev/{other}` completes that",
            record.old_set,
            record.old_set
        );
    }
    record.new_cache.clone_from(&new.name);
    record.new_set = new.set;
    let options = FlushOptions { writethrough: args.writethrough };
    if let Some(old) = old {
        let moves = plan_replace(&view, old, new.set, new.block_bytes, options)
            .map_err(|error| session.refuse("replace-cache", &args.old, &error))?;
        if args.control.dry_run {
            would(&mut session, &view, args, &new)?;
            for it in &moves {
                for plan in [&it.flush, &it.detach, &it.attach] {
                    session.carry_out(plan)?;
                }
            }
        }
    }
    let devices = with_those_of_the_set(&view, old, std::mem::take(&mut record.devices));
    record.devices = devices;
    if record.devices.is_empty() {
        bail!("the set {} has no backing devices to move", record.old_set);
    }
    if let (Some(old), true) = (old, args.control.dry_run) {
        let plan = unregister_plan(&session, &view, old, args)
            .map_err(|error| session.refuse("unregister", &args.old, &error))?;
        session.carry_out(&plan)?;
    }
    if args.control.dry_run {
        return session.finish();
    }
    if !agreed(args, &record, &new)? {
        bail!("the cache of {} stays as it is; nothing was written", record.old_set);
    }
    let mut held = hold(&record)?;
    let result = carry_out(&mut session, args, &new, &mut record, held.as_mut());
    if let Err(error) = result {
        let what = "the cache is not replaced yet; repeat the command to complete it";
        return Err(error.context(what));
    }
    if let Some(held) = held.as_mut() {
        held.settled();
    }
    session.finish()
}

/// What an earlier call has left to be done, or nothing yet; and the old set, if it is still there.
fn begun<'v>(
    session: &Session,
    view: &'v View,
    args: &ReplaceCacheArgs,
) -> Result<(ReplaceRecord, Option<&'v Set>)> {
    let found = Records::system().all::<ReplaceRecord>();
    let old = match target(&session.root, view, &args.old) {
        Ok(Target::Set(set)) => set,
        Ok(_) => return session.set(view, &args.old).map(|set| (empty(set), Some(set))),
        Err(error) => {
            let device = BlockDir::of_path(&session.root, Path::new(&args.old));
            let name = device.map(|it| it.name().to_owned());
            let is_meant = |record: &ReplaceRecord| {
                Uuid::try_parse(&args.old).is_ok_and(|uuid| uuid == record.old_set)
                    || name.as_ref() == Some(&record.old_cache)
            };
            let left = found.into_iter().map(|it| it.record).find(is_meant);
            return left.map(|record| (record, None)).ok_or(error);
        }
    };
    let left = found.into_iter().map(|it| it.record).find(|it| it.old_set == old.uuid);
    Ok((left.unwrap_or_else(|| empty(old)), Some(old)))
}

fn empty(old: &Set) -> ReplaceRecord {
    ReplaceRecord {
        old_set: old.uuid,
        old_cache: old.cache.as_ref().map(|it| it.name.clone()).unwrap_or_default(),
        new_cache: String::new(),
        new_set: Uuid::nil(),
        devices: Vec::new(),
    }
}

/// The devices of the record, and those that are attached to the old set now.
fn with_those_of_the_set(view: &View, old: Option<&Set>, mut devices: Vec<Moving>) -> Vec<Moving> {
    let attached = old.into_iter().flat_map(|old| view.backing_of(old.uuid));
    for backing in attached {
        if !devices.iter().any(|it| it.is(backing)) {
            devices.push(Moving {
                device: backing.name.clone(),
                uuid: backing.uuid,
                detaches: false,
                writeback_off: backing.writeback_running == Some(false),
            });
        }
    }
    devices
}

fn find_new(
    session: &Session,
    view: &View,
    args: &ReplaceCacheArgs,
    old: Option<&Set>,
) -> Result<New> {
    let path = args.new.display();
    let device = BlockDir::of_path(&session.root, &args.new)
        .with_context(|| format!("{path} is no block device"))?;
    let name = device.name().to_owned();
    match device.bcache() {
        Some(Registered::Backing(_)) => {
            bail!("{path} is a registered backing device, not a cache device")
        }
        Some(Registered::Cache(_)) => {
            let set = view.set_of_cache(&name);
            let set = set.with_context(|| format!("{path} is being registered or stopped"))?;
            let block_bytes = set.block_size.map(Rounded::at_least);
            return Ok(New { name, set: set.uuid, block_bytes, state: NewState::Running });
        }
        None => {}
    }
    let superblock = read_superblock(&open_read(&args.new)?)?;
    let is_cache = |it: &bcache_core::layout::superblock::Superblock| {
        it.kind() == Some(Kind::Cache) && it.magic_ok()
    };
    if let Some(superblock) = superblock.filter(is_cache) {
        if args.bucket.is_some() {
            bail!("{path} is a cache device already: --bucket is for one with nothing on it");
        }
        let (set, block) = (superblock.set_uuid(), superblock.block_size().bytes());
        return Ok(New { name, set, block_bytes: Some(block), state: NewState::Made });
    }
    let plans = plan_make(args, old)?;
    let superblock = plans.first().map(|it| &it.superblock).context("nothing was planned")?;
    let (set, block) = (superblock.set_uuid(), superblock.block_size().bytes());
    Ok(New { name, set, block_bytes: Some(block), state: NewState::Empty(plans) })
}

/// How an empty device is formatted: as the old cache was, where the device allows it.
fn plan_make(args: &ReplaceCacheArgs, old: Option<&Set>) -> Result<Vec<DevicePlan>> {
    let facts = facts_of(Kind::Cache, &args.new, Some(scan::backing_devices))?;
    let logical = u64::from(facts.info.logical_block_bytes);
    let old_block = old.and_then(|old| old.block_size).map(Rounded::at_least);
    let policy = old.and_then(|old| old.cache.as_ref()?.replacement.as_deref());
    let options = Options {
        bucket_bytes: args.bucket,
        block_bytes: old_block.filter(|bytes| *bytes >= logical && bytes.is_power_of_two()),
        replacement: policy.and_then(Replacement::from_name).unwrap_or_default(),
        ..Options::default()
    };
    make::plan(&options, vec![facts], &mut Uuid::new_v4).map_err(|error| match &error {
        MakeError::WouldDestroy { path, .. } => anyhow!(
            "{} is not empty. If what is on it is not needed, format it with `bcachectl make \
             --cache`, which says what it destroys, and repeat this command",
            path.display()
        ),
        _ => anyhow!(make_words::refusal(&error)),
    })
}

/// Reports how the new cache comes into being.
fn would(session: &mut Session, view: &View, args: &ReplaceCacheArgs, new: &New) -> Result<()> {
    let plan = |action, writes| Plan {
        action,
        target: new.name.clone(),
        writes,
        proof: Proof::Written,
        notes: Vec::new(),
    };
    match &new.state {
        NewState::Running => {}
        NewState::Made => {
            let plan = plan_register(&session.root, view, &args.new, false)
                .map_err(|error| session.refuse("register", &new.name, &error))?;
            session.carry_out(&plan)?;
        }
        NewState::Empty(plans) => {
            make::try_claims(plans)?;
            session.carry_out(&plan("make", Vec::new()))?;
            let file = session.root.sys("fs/bcache/register");
            let value = format!("{}\n", args.new.display());
            session.carry_out(&plan("register", vec![KernelWrite { file, value }]))?;
        }
    }
    Ok(())
}

fn unregister_plan(
    session: &Session,
    view: &View,
    old: &Set,
    args: &ReplaceCacheArgs,
) -> Result<Plan, bcache_core::running::control::Refusal> {
    let mut plan = plan_unregister(&session.root, view, old, args.wipe)?;
    if let (Some(cache), false) = (&old.cache, args.wipe) {
        plan.notes.push(Note::KeepsSuperblock { device: cache.name.clone() });
    }
    Ok(plan)
}

/// Whether the user wants it. It loses nothing, so that only --wipe needs a yes where nobody can be
/// asked.
fn agreed(args: &ReplaceCacheArgs, record: &ReplaceRecord, new: &New) -> Result<bool> {
    if args.yes || (!args.wipe && !io::stdin().is_terminal()) {
        return Ok(true);
    }
    let names: Vec<&str> = record.devices.iter().map(|it| it.device.as_str()).collect();
    let made = match &new.state {
        NewState::Empty(plans) => {
            let plan = plans.first();
            let bytes = plan.map_or(0, |plan| plan.facts.info.size_bytes);
            format!(
                "/dev/{} ({}) will be formatted as a cache device. ",
                new.name,
                Sectors(bytes / bcache_core::units::SECTOR_BYTES)
            )
        }
        NewState::Running | NewState::Made => String::new(),
    };
    let wiped = if args.wipe {
        format!(" and the superblock on /dev/{} wiped", record.old_cache)
    } else {
        String::new()
    };
    let question = format!(
        "{made}{} will be written back, detached from the set {} and attached to that of /dev/{}. \
         Then the old set will be unregistered{wiped}.",
        names.join(", "),
        record.old_set,
        new.name
    );
    ask(&question, None)
}

/// Keeps the record until it is done. Where none can be kept, the command has to do without.
fn hold(record: &ReplaceRecord) -> Result<Option<Held>> {
    match Records::system().take::<ReplaceRecord>(&record.key()) {
        Ok(Some((_, mut held))) => {
            held.write(record).context("cannot write to /run/bcachectl")?;
            Ok(Some(held))
        }
        Ok(None) => {
            bail!("another bcachectl is replacing the cache of {}", record.old_set)
        }
        Err(error) => {
            // Where standard error is closed, nobody is told.
            let _ = writeln!(
                io::stderr(),
                "bcachectl: no record can be kept in /run/bcachectl ({error}): if this is \
                 interrupted, attach the devices that have no cache then with bcachectl attach"
            );
            Ok(None)
        }
    }
}

fn carry_out(
    session: &mut Session,
    args: &ReplaceCacheArgs,
    new: &New,
    record: &mut ReplaceRecord,
    mut held: Option<&mut Held>,
) -> Result<()> {
    if let NewState::Empty(plans) = &new.state {
        if let Err(error) = format_new(plans) {
            // Nothing of the old set has changed.
            if let Some(held) = held.as_mut() {
                held.settled();
            }
            return Err(session.fail(error));
        }
        session.add_done("make", &new.name);
        udev::settle();
    }
    if !matches!(new.state, NewState::Running) {
        let plan = registered_again(&session.root, &session.view()?, &args.new)
            .map_err(|error| session.refuse("register", &new.name, &error))?;
        session.carry_out(&plan)?;
    }
    let view = session.view()?;
    let set = view.set(new.set).with_context(|| format!("the set {} is gone again", new.set))?;
    if let Some(old) = view.set(record.old_set) {
        let is_fresh = matches!(new.state, NewState::Empty(_));
        let mut changes = settings_to_carry(old, is_fresh);
        // What somebody has set on the new one counts.
        changes.retain(|it| {
            it.tunable
                .read(&set.attributes)
                .is_some_and(|now| it.tunable.is(&now, it.tunable.default))
        });
        if !changes.is_empty() {
            let (name, attributes) = (set.uuid.to_string(), set.attributes.clone());
            change(session, &Owner { name, attributes, is_backing: false }, changes)?;
        }
    }
    for index in 0..record.devices.len() {
        move_one(session, args, record, index, held.as_deref_mut())?;
    }
    end_old(session, args, record)?;
    verify(session, record)
}

fn format_new(plans: &[DevicePlan]) -> Result<()> {
    let mut bar = Bar::new("formatting");
    let mut done = 0;
    let outcome = make::run(plans, &mut open_for_real, &mut |plan, bytes| {
        done += bytes;
        bar.set("bytes", done, plan.plan.write_bytes() + plan.plan.discard_sectors().bytes());
    });
    bar.finish();
    match outcome.failed {
        None => Ok(()),
        Some((_, error)) if error.may_have_written() => {
            Err(ExitError::wrap(Failure::Partial, error))
        }
        Some((_, error)) => Err(error.into()),
    }
}

/// Moves one device from where it is now.
fn move_one(
    session: &mut Session,
    args: &ReplaceCacheArgs,
    record: &mut ReplaceRecord,
    index: usize,
    held: Option<&mut Held>,
) -> Result<()> {
    let Some(moving) = record.devices.get_mut(index) else { return Ok(()) };
    let view = session.view()?;
    let Some(backing) = view.backing.iter().find(|it| moving.is(it)) else {
        // Where standard error is closed, nobody is told.
        let _ = writeln!(
            io::stderr(),
            "bcachectl: {} is not registered any more, and was not moved",
            moving.device
        );
        return Ok(());
    };
    if backing.set == Some(record.new_set) {
        return Ok(());
    }
    if backing.set == Some(record.old_set) {
        if !moving.detaches {
            let options = FlushOptions { writethrough: args.writethrough };
            Ready::new(session, backing, options)?.carry_out(session)?;
        }
        moving.detaches = true;
        if let Some(held) = held {
            held.write(record).context("cannot write to /run/bcachectl")?;
        }
        let plan = plan_detach(backing, true)
            .map_err(|error| session.refuse("detach", &backing.name, &error))?;
        session.carry_out(&plan)?;
    }
    attach(session, record, index)
}

fn attach(session: &mut Session, record: &ReplaceRecord, index: usize) -> Result<()> {
    let Some(moving) = record.devices.get(index) else { return Ok(()) };
    let view = session.view()?;
    let backing = view.backing.iter().find(|it| moving.is(it));
    let backing = backing.with_context(|| format!("{} is gone", moving.device))?;
    let set = view.set(record.new_set);
    let set = set.with_context(|| format!("the set {} is gone", record.new_set))?;
    let plan = plan_attach(backing, set)
        .map_err(|error| session.refuse("attach", &backing.name, &error))?;
    session.carry_out(&plan)?;
    if moving.writeback_off {
        let tunable = bcache_core::running::Tunable::find("writeback_running", true)?;
        let changes =
            vec![bcache_core::running::control::Change { tunable, value: "0".to_owned() }];
        // The attach has switched it on.
        let view = session.view()?;
        let backing = view.backing.iter().find(|it| moving.is(it));
        let backing = backing.with_context(|| format!("{} is gone", moving.device))?;
        let (name, attributes) = (backing.name.clone(), backing.attributes.clone());
        change(session, &Owner { name, attributes, is_backing: true }, changes)?;
    }
    Ok(())
}

/// Takes the old set out of use.
fn end_old(session: &mut Session, args: &ReplaceCacheArgs, record: &ReplaceRecord) -> Result<()> {
    let view = session.view()?;
    if let Some(old) = view.set(record.old_set) {
        if let Some(backing) = view.backing_of(old.uuid).next() {
            let error = anyhow!("{} is attached to the old set", backing.name);
            return Err(session.fail(ExitError::wrap(Failure::Partial, error)));
        }
        let plan = unregister_plan(session, &view, old, args)
            .map_err(|error| session.refuse("unregister", &args.old, &error))?;
        session.carry_out(&plan)?;
    }
    let node = node_of(&record.old_cache);
    // An earlier call may have come as far as this.
    if args.wipe && has_superblock(&node) {
        wipe(&node).map_err(|error| session.fail(error))?;
    }
    Ok(())
}

/// Whether there is a superblock, or that cannot be told.
fn has_superblock(path: &Path) -> bool {
    let read = open_read(path).and_then(|device| read_superblock(&device));
    !matches!(read, Ok(None))
}

/// Every device that is there is attached to the new set, and its superblock says so.
fn verify(session: &mut Session, record: &ReplaceRecord) -> Result<()> {
    let view = session.view()?;
    for backing in view.backing.iter().filter(|it| record.devices.iter().any(|of| of.is(it))) {
        let state = DeviceState::of(backing);
        let attached = matches!(state, DeviceState::AttachedClean | DeviceState::AttachedDirty)
            && backing.set == Some(record.new_set);
        let named = read_on_device(&node_of(&backing.name));
        let agrees = named.is_none_or(|it| it.set == record.new_set);
        if !attached || !agrees {
            let error =
                anyhow!("{} is {state}, and not attached to {}", backing.name, record.new_set);
            return Err(session.fail(ExitError::wrap(Failure::Partial, error)));
        }
    }
    Ok(())
}
