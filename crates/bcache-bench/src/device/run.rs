//! Carries a plan out on devices.
//!
//! What is measured, in this order:
//!
//! 1. the allocator: the cache set is made, its threads run, the writers write; and in turns with it,
//!    with fixed addresses, what the workload does without an allocator. If the cache set is kept, that
//!    comes before, as a whole;
//! 2. prio writes alone, and plain sequential writes of the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, anyhow, bail};
use bcache_cli::confirm;
use bcache_core::allocator::Reserve;
use bcache_core::device::sysfs::Root;
use bcache_core::device::{BlockDevice, DeviceInfo, ReadDevice, open_write};
use bcache_core::layout::superblock::{Kind, SB_OFFSET_BYTES, Superblock};
use bcache_core::ops::make::{
    self, DevicePlan as MakePlan, GatherError, Leftover, LoseDirtyData, MakeError, Options,
    Override, open_for_real,
};
use bcache_core::ops::plan::{Plan, Step, WriteKind, apply};
use bcache_core::units::{BucketIndex, Geometry, Sectors};
use uuid::Uuid;

use super::allocator_run::{ALLOCATOR, AllocatorRun, allocator_run};
use super::baseline::{
    Area, FIXED_ADDRESSES, FixedAddresses, Places, Terms, check_room, sequential_write,
};
use super::counted::{Counted, CountedDevice};
use super::index::KeyIndex;
use super::null::NullDevice;
use super::plan::{DevicePlan, IoMode, Target};
use super::turns::{Side, bandwidths, interval, take_turns};
use super::{DeviceRun, RunContext};
use crate::environment::{Backing, Environment};
use crate::exit::{ExitError, Failure};
use crate::progress::Goal;
use crate::report::{Ratio, Report, Run};
use crate::warnings::{self, Warning};
use crate::watch::{DeviceIo, Watch};
use crate::workload::Workload;

/// How much is written at once to a file before the run, so that it has all its blocks.
const FILL_CHUNK: Sectors = Sectors(2048);

/// What the progress calls the allocator and fixed addresses.
const IN_TURNS: &str = "allocator and fixed addresses in turns";

/// The real thing.
#[derive(Default)]
pub struct OnDevices {
    prepared: Option<Prepared>,
    /// What has to be put down.
    formatted: Option<Formatted>,
}

/// Devices that may be formatted: everything is checked, and whoever had to be asked was.
#[derive(Debug)]
struct Prepared {
    plans: Vec<MakePlan>,
    workload: Workload,
}

/// Devices that have been formatted.
struct Formatted {
    prepared: Prepared,
    devices: Vec<CountedDevice>,
    /// They are left as they are.
    stay: bool,
}

impl Formatted {
    /// Leaves nothing that a kernel would register, unless it is to stay.
    fn put_down(&self) -> Result<()> {
        if self.stay {
            return Ok(());
        }
        let mut failed = Vec::new();
        for (make, device) in self.prepared.plans.iter().zip(&self.devices) {
            if make.facts.create {
                let path = &make.facts.info.path;
                if let Err(error) = std::fs::remove_file(path) {
                    failed.push(format!("cannot remove {}: {error}", path.display()));
                }
                continue;
            }
            // With its journal, or the next run would be told of a set whose superblock is gone.
            let wipe = || -> Result<()> {
                let len = data_area(&geometry_of(make)?).start.bytes() - SB_OFFSET_BYTES;
                let wipe = Step::Zero { kind: WriteKind::Wipe, offset: SB_OFFSET_BYTES, len };
                Ok(apply(&Plan { steps: vec![wipe, Step::Flush] }, device, &mut |_| {})?)
            };
            // The others are wiped whatever became of this one.
            if let Err(error) = wipe() {
                failed.push(format!("the superblock of the run may still be there: {error:#}"));
            }
        }
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
    }
}

/// Whatever ended the run, a panic too.
impl Drop for OnDevices {
    fn drop(&mut self) {
        let _ = self.put_down();
    }
}

impl DeviceRun for OnDevices {
    fn prepare(&mut self, plan: &DevicePlan) -> Result<()> {
        self.prepared = Some(prepare(plan)?);
        Ok(())
    }

    fn run(&mut self, plan: &DevicePlan, context: &RunContext) -> Result<Report> {
        let prepared = self.prepared.take().context("the run was not prepared")?;
        if context.stop.load(Ordering::Relaxed) {
            bail!("interrupted: nothing was written");
        }
        let devices = format(&prepared.plans, plan.io)?;
        let stay = plan.keep || plan.io == IoMode::None;
        let formatted = self.formatted.insert(Formatted { prepared, devices, stay });
        measure(plan, &formatted.prepared, &formatted.devices, context)
            .map_err(|error| ExitError::wrap(Failure::Partial, error))
    }

    fn put_down(&mut self) -> Result<()> {
        let left = self.formatted.take().map_or(Ok(()), |formatted| formatted.put_down());
        left.map_err(|error| ExitError::wrap(Failure::Partial, error))
    }
}

fn prepare(plan: &DevicePlan) -> Result<Prepared> {
    let (devices, new_size) = match &plan.target {
        Target::Existing(paths) => {
            (paths.iter().map(|path| (Kind::Cache, path.clone())).collect(), None)
        }
        Target::NewImage { path, size_bytes } => {
            (vec![(Kind::Cache, path.clone())], Some(*size_bytes))
        }
    };
    let facts = make::gather(&devices, new_size, None).map_err(|error| match error {
        GatherError::Exists { .. } => {
            anyhow!("{error}; give it without --image and --size to run on it")
        }
        error => error.into(),
    })?;
    // Where nothing is written, nothing is destroyed.
    let harmless = plan.io == IoMode::None;
    let options = Options {
        bucket_bytes: plan.bucket_bytes,
        discard: plan.discard,
        replacement: plan.policy,
        wipe_bcache: plan.consent.wipe_bcache || harmless,
        force: plan.consent.force || harmless,
        lose_dirty_data: if harmless { LoseDirtyData::Allowed } else { LoseDirtyData::Refused },
        ..Options::default()
    };
    let plans = make::plan(&options, facts, &mut Uuid::new_v4).map_err(refusal)?;
    let geometries = plans.iter().map(geometry_of).collect::<Result<Vec<_>>>()?;
    let alike = |a: &Geometry, b: &Geometry| {
        a.bucket_size() == b.bucket_size() && a.block_size() == b.block_size()
    };
    if let Some([first, other]) = geometries.windows(2).find_map(|pair| match pair {
        [first, other] if !alike(first, other) => Some([first, other]),
        _ => None,
    }) {
        bail!(
            "the devices would get buckets of {} and {}, blocks of {} and {}: give --bucket",
            first.bucket_size(),
            other.bucket_size(),
            first.block_size(),
            other.block_size()
        );
    }
    let sectors = geometries.iter().map(|geometry| data_area(geometry).size.0).sum();
    let workload = plan.workload(Sectors(sectors));
    workload.check()?;
    if let [geometry] = geometries.as_slice() {
        if has_fixed_addresses(plan) {
            check_room(&places(plan, geometry), &workload)
                .context("--no-baseline leaves out what does not fit")?;
        }
    }
    let buffers = 2 * u128::from(plan.writers.get()) * u128::from(workload.block_max().bytes());
    let has_memory = |len| Vec::<u8>::new().try_reserve_exact(len).is_ok();
    if !usize::try_from(buffers).is_ok_and(has_memory) {
        bail!("--block-sizes: no memory for operations of up to {}", workload.block_max());
    }
    if let Some(first) = geometries.first() {
        KeyIndex::check(workload.working_set, workload.granule_in(first.bucket_size()))?;
    }
    for make in &plans {
        let logical = u64::from(make.facts.info.logical_block_bytes);
        if plan.io == IoMode::Data && workload.granule().bytes() % logical != 0 {
            bail!(
                "--block-sizes: {} takes writes in whole blocks of {logical} bytes only",
                make.facts.info.path.display()
            );
        }
    }
    if !harmless && !plan.consent.yes && !confirm::destroys(&plans, false)? {
        bail!("nothing was written");
    }
    Ok(Prepared { plans, workload })
}

/// What a plan was refused for, with the option that allows it.
fn refusal(error: MakeError) -> anyhow::Error {
    let MakeError::WouldDestroy { missing, .. } = &error else { return error.into() };
    if missing.contains(&Override::LoseDirtyData) {
        return anyhow!("{error}; a benchmark must not cost data: see bcachectl make");
    }
    let options: Vec<&str> = missing
        .iter()
        .map(|it| if *it == Override::WipeBcache { "--wipe-bcache" } else { "--force" })
        .collect();
    anyhow!("{error}; to destroy it, add {}", options.join(" and "))
}

fn geometry_of(plan: &MakePlan) -> Result<Geometry> {
    plan.superblock.geometry().context("the planned superblock has no geometry")
}

/// Everything behind the journal.
fn data_area(geometry: &Geometry) -> Area {
    let first = geometry.first_bucket().0 + u64::from(geometry.njournal_buckets_default());
    let start = geometry.bucket_to_sector(BucketIndex(first));
    let end = geometry.bucket_to_sector(BucketIndex(geometry.nbuckets()));
    Area { start, size: Sectors(end.0.saturating_sub(start.0)) }
}

/// Whether a single device is to be written at fixed addresses, too. What takes buckets from another
/// reserve, and writes nothing, has no counterpart there.
fn has_fixed_addresses(plan: &DevicePlan) -> bool {
    let data_only = plan.reserves.values().all(|reserve| reserve.0 == Reserve::None);
    plan.baseline && plan.io == IoMode::Data && data_only
}

/// Where it is written then, from the beginning.
fn places(plan: &DevicePlan, geometry: &Geometry) -> Places {
    Places { area: data_area(geometry), bucket: geometry.bucket_size(), policy: plan.policy.into() }
}

/// Formats the devices and claims them again.
fn format(plans: &[MakePlan], io: IoMode) -> Result<Vec<CountedDevice>> {
    let counted = |device: Arc<dyn BlockDevice>| Arc::new(Counted::new(device));
    if io == IoMode::None {
        let null = |plan: &MakePlan| counted(Arc::new(NullDevice::new(plan.facts.info.clone())));
        return Ok(plans.iter().map(null).collect());
    }
    let outcome = make::run(plans, &mut open_for_real, &mut |_, _| {});
    for leftover in &outcome.leftovers {
        let text = match leftover {
            Leftover::Partitions { error, .. } => error.to_string(),
            Leftover::Signatures { path, found } => {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                format!("{} still carries {}", path.display(), found.join(", "))
            }
            Leftover::Unprobed { error, .. } => error.to_string(),
        };
        // Nothing is left to be done where standard error is closed.
        let _ = writeln!(io::stderr(), "bcache-bench: warning: {text}");
    }
    if let Some((_, error)) = outcome.failed {
        let wrote = error.may_have_written() || !outcome.formatted.is_empty();
        let failure = if wrote { Failure::Partial } else { Failure::Refused };
        return Err(ExitError::wrap(failure, error));
    }
    let open = |plan: &MakePlan| -> Result<CountedDevice> {
        let device: Arc<dyn BlockDevice> = Arc::new(open_write(&plan.facts.info.path)?);
        Ok(counted(device))
    };
    plans
        .iter()
        .map(open)
        .collect::<Result<_>>()
        .map_err(|error| ExitError::wrap(Failure::Partial, error))
}

fn measure(
    plan: &DevicePlan,
    prepared: &Prepared,
    devices: &[CountedDevice],
    context: &RunContext,
) -> Result<Report> {
    let root = Root::system();
    let infos: Vec<&DeviceInfo> = devices.iter().map(ReadDevice::info).collect();
    let environment = Environment::gather(&root, &infos);
    let mut report = Report::new("device", plan.settings()?, environment);
    let threads = plan.writers.get().saturating_add(u32::try_from(devices.len()).unwrap_or(1));
    report.warnings = warnings::of_environment(&report.environment, threads);
    for (make, info) in prepared.plans.iter().zip(&infos) {
        if make.superblock.discard() && !info.discard {
            report.warnings.push(Warning::NoDiscard { device: info.path.clone() });
        }
    }
    if plan.io == IoMode::None {
        report.warnings.retain(|warning| !warning.is_of_device());
    }
    let disks: Vec<Option<String>> =
        report.environment.devices.iter().map(|device| device.disk.clone()).collect();

    let mut fixed = fixed_addresses(plan, prepared, devices, &report.environment, context)?;
    let watch = Watch::start(root, disks.iter().flatten().cloned().collect());
    let before: Vec<DeviceIo> = devices.iter().map(|device| device.io()).collect();
    let goal = plan.length.goal();
    if let Some(fixed) = fixed.as_mut().filter(|_| plan.keep) {
        // It would overwrite what is to stay.
        context.live.begin(FIXED_ADDRESSES, goal);
        take_turns(&mut [fixed], plan.length, &context.stop)?;
    }
    let superblocks: Vec<Superblock> =
        prepared.plans.iter().map(|make| make.superblock.clone()).collect();
    let in_turns = fixed.as_mut().filter(|_| !plan.keep).map(|fixed| fixed as &mut dyn Side);
    if in_turns.is_some() {
        context.live.begin(IN_TURNS, goal.twice());
    } else {
        context.live.begin(ALLOCATOR, goal);
    }
    let run = allocator_run(plan, &prepared.workload, devices, superblocks, context, in_turns)?;
    let observed = watch.finish();
    let mut own: BTreeMap<String, DeviceIo> = BTreeMap::new();
    for ((disk, device), before) in disks.into_iter().zip(devices).zip(before) {
        if let Some(disk) = disk {
            let sum = own.entry(disk).or_default();
            let io = device.io();
            sum.read_sectors += io.read_sectors.saturating_sub(before.read_sectors);
            sum.written_sectors += io.written_sectors.saturating_sub(before.written_sectors);
        }
    }
    report.warnings.extend(warnings::of_observed(&observed, &own));
    report.interrupted = context.stop.load(Ordering::Relaxed);
    compose(&mut report, run, fixed.map(FixedAddresses::finish));
    Ok(report)
}

/// Puts runs and ratios into the report.
fn compose(report: &mut Report, run: AllocatorRun, fixed: Option<Run>) {
    let AllocatorRun { run, pairs, prio_writes, sequential } = run;
    // With reads the runs do not do the same: without an allocator nothing is a miss, and written.
    let is_comparable = run.counters.read_bytes == 0 && run.counters.misses == 0;
    let bandwidth = |run: &Run| run.figures().written_bytes_per_second;
    let mut compare = |name: &str, figures: Option<(f64, f64)>, turns| {
        if let Some((value, baseline)) = figures {
            let unit = "bytes/s".to_owned();
            report.ratios.push(Ratio { name: name.to_owned(), value, baseline, unit, turns });
        }
    };
    if let Some(fixed) = fixed.as_ref().filter(|_| is_comparable) {
        let of_pairs = bandwidths(&pairs).map(|[allocator, fixed]| (allocator, fixed));
        compare(
            "data bandwidth, allocator to fixed addresses",
            of_pairs.or_else(|| bandwidth(&run).zip(bandwidth(fixed))),
            Some(interval(&pairs)),
        );
    }
    compare(
        "prio write, to a sequential write of the same bytes",
        prio_writes.as_ref().and_then(bandwidth).zip(sequential.as_ref().and_then(bandwidth)),
        None,
    );
    let runs = [Some(run), fixed, prio_writes, sequential];
    report.runs.extend(runs.into_iter().flatten());
    for run in &report.runs {
        // An interrupted run has few samples of everything, and says that it was interrupted.
        report.warnings.extend(warnings::of_run(run, &report.environment));
    }
}

/// The same workload without an allocator. `None` where it is not wanted, writes nothing, or could not be
/// compared: a run over several devices spreads its writes as the allocator decides.
fn fixed_addresses<'a>(
    plan: &DevicePlan,
    prepared: &Prepared,
    devices: &'a [CountedDevice],
    environment: &Environment,
    context: &'a RunContext,
) -> Result<Option<FixedAddresses<'a>>> {
    let ([device], [make]) = (devices, prepared.plans.as_slice()) else { return Ok(None) };
    if !has_fixed_addresses(plan) {
        return Ok(None);
    }
    let RunContext { stop, live, .. } = context;
    let places = places(plan, &geometry_of(make)?);
    let file = |backing: &Backing| matches!(backing, Backing::Loop { .. } | Backing::Image { .. });
    // A file gets its blocks when it is first written; whoever writes first would pay for it.
    if environment.devices.iter().any(|device| file(&device.backing)) {
        let chunk = FILL_CHUNK.min(places.area.size);
        let bytes = places.area.size.0 / chunk.0.max(1) * chunk.bytes();
        if let Some(bytes) = std::num::NonZeroU64::new(bytes) {
            live.begin("filling the file", Goal::Bytes(bytes.get()));
            sequential_write(device, places.area, chunk, bytes, stop, live)?;
        }
    }
    let terms = Terms { pace: plan.pace, length: plan.length, stop, live };
    Ok(Some(FixedAddresses::new(device, &places, &prepared.workload, &terms)?))
}
