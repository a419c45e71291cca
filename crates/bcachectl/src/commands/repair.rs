//! `bcachectl repair`: claim, read, plan, show, confirm, write, read again.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use bcache_cli::confirm;
use bcache_cli::out::Out;
use bcache_cli::progress::Progress;
use bcache_core::cache_set::ReadOptions;
use bcache_core::device::{
    BlockDevice, DeviceKind, FileDevice, ReadDevice, file, forget_partitions,
};
use bcache_core::inspect::{Device, take_cache};
use bcache_core::layout::superblock::Kind;
use bcache_core::ops::rebuild::CommitState;
use bcache_core::ops::repair::{self, Claim, Code, RepairPlan, RepairRunError};
use bcache_core::ops::verify::VerifyError;
use uuid::Uuid;

use crate::cli::RepairArgs;
use crate::commands::make::partitions_left;
use crate::commands::undo;
use crate::commands::writeback::{claim, in_use};
use crate::exit::{ExitError, Failure, NOT_KEPT};
use crate::render::repair as render;

/// The devices that were named.
struct Named<D> {
    cache: Option<D>,
    backing: Vec<D>,
}

impl<D: ReadDevice> Named<D> {
    fn open(args: &RepairArgs, open: impl Fn(&PathBuf) -> Result<D>) -> Result<Self> {
        let mut backing: Vec<D> = args.devices.iter().map(open).collect::<Result<_>>()?;
        let cache = take_cache(&mut backing);
        // Whose the backing devices are, and which of the caches is meant, is not for us to guess.
        for device in &backing {
            if Device::read_superblock(device)?.kind() == Some(Kind::Cache) {
                bail!(
                    "{} is a cache device, too, and one set is repaired at a time: name it by itself, with its \
                     own backing devices; nothing was written",
                    device.info().path.display()
                );
            }
        }
        Ok(Self { cache, backing })
    }

    fn readers(&self) -> Vec<&dyn ReadDevice> {
        self.backing.iter().map(|it| it as &dyn ReadDevice).collect()
    }

    fn paths(&self) -> render::Paths<'_> {
        render::Paths {
            cache: self.cache.as_ref().map(|it| it.info().path.as_path()),
            backing: self.backing.iter().map(|it| it.info().path.as_path()).collect(),
        }
    }

    fn plan(&self, args: &RepairArgs, options: &ReadOptions) -> Result<RepairPlan> {
        let Some(cache) = &self.cache else {
            if !args.owner.is_empty() || !args.flash_only.is_empty() {
                bail!(
                    "--owner and --flash-only are about the volumes of a cache, and none was named; \
                     nothing was written"
                );
            }
            return Ok(repair::plan_backing(&self.readers())?);
        };
        let mut progress = Progress::new(cache.info().path.display().to_string());
        let claims = claims(args, &self.readers())?;
        let mut tell = |at| progress.reading(at);
        Ok(repair::plan_with_claims(cache, &self.readers(), claims, options, &mut tell)?)
    }
}

/// Runs `bcachectl repair`.
pub fn run(args: &RepairArgs) -> Result<ExitCode> {
    let options = ReadOptions::default();
    let accepted: BTreeSet<Code> = args.accept.iter().copied().collect();
    if args.write.dry_run {
        let named = Named::open(args, |path| file::open_unused(path).map_err(in_use))?;
        let plan = named.plan(args, &options)?;
        show(args, &named.paths(), &plan, &accepted, render::Outcome::DryRun)?;
        return Ok(status(&plan, &accepted));
    }
    // Held from here on, so that nothing changes between plan and run.
    let named: Named<FileDevice> = Named::open(args, |path| claim(path))?;
    // Before the reading, which takes minutes on a large cache.
    if !args.write.script.yes && !io::stdin().is_terminal() {
        bail!(
            "no terminal to ask on: give --yes to repair, or --dry-run to see what would be changed; \
             nothing was written"
        );
    }
    let undo = undo::log(args.write.undo.as_deref(), "repair")?;
    let plan = named.plan(args, &options)?;
    if plan.is_nothing(&accepted) {
        show(args, &named.paths(), &plan, &accepted, render::Outcome::Nothing)?;
        return Ok(status(&plan, &accepted));
    }
    if !args.write.script.yes {
        let mut stderr = io::stderr();
        render::text(&mut stderr, &named.paths(), &plan, &accepted, render::Outcome::DryRun)?;
        if !confirm::go_on()? {
            bail!("nothing was written");
        }
    }
    let seed = Uuid::new_v4().as_u64_pair().0;
    let writers: Vec<&dyn BlockDevice> =
        named.backing.iter().map(|it| it as &dyn BlockDevice).collect();
    let log = undo.as_ref();
    let done = match &named.cache {
        Some(cache) => {
            repair::run_with_undo(&plan, &accepted, log, cache, &writers, &options, seed)
        }
        None => repair::run_backing(&plan, &accepted, log, &writers),
    };
    undo::tell(log);
    done.map_err(failed)?;
    show(args, &named.paths(), &plan, &accepted, render::Outcome::Done)?;
    forget_tables(named, &plan, &accepted)?;
    Ok(status(&plan, &accepted))
}

/// Has the kernel forget the partitions of tables that stood where superblocks are now. What is written to
/// one of them lands in the volume.
fn forget_tables(
    named: Named<FileDevice>,
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
) -> io::Result<()> {
    let of_backing = plan
        .accepted(accepted)
        .filter(|fix| fix.code == Code::SuperblockGone)
        .filter_map(|fix| Some(named.backing.get(fix.backing?)?.info()));
    let disks: Vec<PathBuf> = of_backing
        .filter(|info| info.kind == DeviceKind::Block)
        .map(|info| info.path.clone())
        .collect();
    // The kernel reads no table of a disk that is claimed.
    drop(named);
    for disk in disks {
        if let Err(error) = forget_partitions(&disk) {
            writeln!(io::stderr(), "bcachectl: warning: {}", partitions_left(&disk, &error))?;
        }
    }
    Ok(())
}

/// What the options say of the volumes.
fn claims(args: &RepairArgs, backing: &[&dyn ReadDevice]) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for (slot, owner) in &args.owner {
        let slot = *slot;
        let named = backing.iter().position(|it| it.info().path.as_os_str() == &**owner);
        claims.push(match (named, Uuid::parse_str(owner)) {
            (Some(backing), _) => Claim::Device { slot, backing, data_offset: args.data_offset },
            (None, Ok(uuid)) => Claim::Owner { slot, uuid },
            (None, Err(_)) => bail!(
                "--owner {slot}={owner}: {owner} is no UUID and was not named as a backing device; \
                 nothing was written"
            ),
        });
    }
    claims.extend(args.flash_only.iter().map(|&(slot, size)| Claim::FlashOnly {
        slot,
        size,
        uuid: Uuid::new_v4(),
    }));
    Ok(claims)
}

/// Whether anything is left that this command did not mend.
fn status(plan: &RepairPlan, accepted: &BTreeSet<Code>) -> ExitCode {
    if plan.is_whole(accepted) { ExitCode::SUCCESS } else { Failure::DamageLeft.into() }
}

fn show(
    args: &RepairArgs,
    paths: &render::Paths<'_>,
    plan: &RepairPlan,
    accepted: &BTreeSet<Code>,
    outcome: render::Outcome,
) -> Result<()> {
    Out::answer(|out| {
        if args.write.script.json {
            render::json(out, paths, plan, accepted, outcome)
        } else {
            render::text(out, paths, plan, accepted, outcome)
        }
    })
}

fn failed(error: RepairRunError) -> anyhow::Error {
    let (failure, what) = match &error {
        RepairRunError::Apply(error) if !error.may_have_written => {
            (Failure::Refused, "nothing was written")
        }
        RepairRunError::Undo(_) | RepairRunError::Changed | RepairRunError::Again(_) => {
            (Failure::Refused, "nothing was written")
        }
        RepairRunError::Apply(_)
        | RepairRunError::Reread(_)
        | RepairRunError::Extents(_)
        | RepairRunError::Verify(VerifyError::Read { .. }) => (
            Failure::Partial,
            "some of the changes are made, and each of them stands by itself; run the command again",
        ),
        RepairRunError::Commit(error) => match error.state() {
            CommitState::Old | CommitState::OldOrNew => (
                Failure::Partial,
                "the new metadata may be current or not, and nothing that the old one needs has \
                 changed; run the command again",
            ),
            CommitState::New => {
                (Failure::Unproven, "the new metadata is current; run the command again")
            }
            CommitState::Undefined => (Failure::Undefined, NOT_KEPT),
        },
        RepairRunError::Verify(VerifyError::Differs { .. })
        | RepairRunError::Proof { .. }
        | RepairRunError::Contents { .. } => (Failure::Undefined, NOT_KEPT),
    };
    ExitError::wrap(failure, anyhow::Error::from(error).context(what))
}
