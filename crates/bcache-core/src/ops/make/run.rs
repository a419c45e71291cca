//! Carrying plans out on devices.

use std::io;
use std::path::{Path, PathBuf};

use super::finish::{Leftover, finish};
use crate::cache_set::read_superblock;
use crate::device::probe::{ProbeError, probe};
use crate::device::sysfs::{BlockDir, Root};
use crate::device::{BlockDevice, DeviceError, DeviceKind, file};
use crate::layout::verdict::{Refusal, kernel_verdict};
use crate::ops::make::{DeviceFacts, DevicePlan, MakeError};
use crate::ops::plan::{ApplyError, apply};
use crate::ops::undo::{self, SaveError, Saving, UndoLog, Watch};
use crate::ops::verify::{VerifyError, verify};

/// Why a device cannot be formatted, or was not.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be opened or read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It could not be probed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// It changed between the plan and the claim.
    #[error("{} changed while it was being looked at; nothing was written to it", path.display())]
    Changed {
        /// The device.
        path: PathBuf,
    },
    /// What would be overwritten could not be saved.
    #[error("what would be overwritten could not be saved")]
    Undo(#[source] SaveError),
    /// Writing stopped.
    #[error("{}: not formatted", path.display())]
    Apply {
        /// The device.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: ApplyError,
    },
    /// What was written does not read back.
    #[error("{}: written, but it does not read back", path.display())]
    Verify {
        /// The device.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: VerifyError,
    },
    /// What was written was verified, but the final read of the superblock failed.
    #[error("{}: written, but it cannot be read", path.display())]
    ReadBack {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: DeviceError,
    },
    /// What was written reads back, and the kernel would refuse it.
    #[error("{}: written, but the kernel would refuse it: {refusal}", path.display())]
    Refused {
        /// The device.
        path: PathBuf,
        /// In the kernel's words.
        refusal: Refusal,
    },
}

impl RunError {
    /// Whether the device may have changed.
    pub const fn may_have_written(&self) -> bool {
        match self {
            Self::Device(_) | Self::Probe(_) | Self::Changed { .. } | Self::Undo(_) => false,
            Self::Apply { source, .. } => source.may_have_written,
            Self::Verify { .. } | Self::ReadBack { .. } | Self::Refused { .. } => true,
        }
    }
}

/// What became of the devices of one run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Formatted, and read back.
    pub formatted: Vec<PathBuf>,
    /// The one that failed, and why.
    pub failed: Option<(PathBuf, RunError)>,
    /// Not written to.
    pub untouched: Vec<PathBuf>,
    /// Image files that the run made and took away again, since it came to nothing.
    pub removed: Vec<PathBuf>,
    /// What is left over on the formatted devices.
    pub leftovers: Vec<Leftover>,
}

/// Opens one device of the run for writing: tests put their own devices here.
pub type Opener<'a> = &'a mut dyn FnMut(&DevicePlan) -> Result<Box<dyn BlockDevice>, DeviceError>;

/// Claims all devices, then formats one after the other; stops at the first failure. At the end the
/// claims are dropped, the kernel forgets old partitions, and the devices are probed once more.
///
/// No byte is written before every device is claimed and found as it was when it was planned. Image
/// files that the run makes and does not format are removed, so that it can be repeated.
/// `progress` is told of the bytes done on each device.
pub fn run(
    plans: &[DevicePlan],
    open: Opener<'_>,
    progress: &mut dyn FnMut(&DevicePlan, u64),
) -> Outcome {
    run_with_undo(plans, None, open, progress)
}

/// The same, where what is overwritten is saved to `undo` before the first write. New image files are
/// not saved.
pub fn run_with_undo(
    plans: &[DevicePlan],
    undo: Option<&UndoLog>,
    open: Opener<'_>,
    progress: &mut dyn FnMut(&DevicePlan, u64),
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut devices = Vec::with_capacity(plans.len());
    for plan in plans {
        match claim(plan, open) {
            Ok(device) => devices.push(device),
            Err(error) => {
                outcome.failed = Some((plan.facts.info.path.clone(), error));
                outcome.untouched = plans.iter().map(|plan| plan.facts.info.path.clone()).collect();
                remove_unformatted(plans, devices, &mut outcome);
                return outcome;
            }
        }
    }
    if let Err((path, error)) = undo.map_or(Ok(()), |undo| save(undo, plans, &devices)) {
        outcome.failed = Some((path, RunError::Undo(error)));
        outcome.untouched = plans.iter().map(|plan| plan.facts.info.path.clone()).collect();
        remove_unformatted(plans, devices, &mut outcome);
        return outcome;
    }
    for (plan, device) in plans.iter().zip(&devices) {
        let path = plan.facts.info.path.clone();
        if outcome.failed.is_some() {
            outcome.untouched.push(path);
            continue;
        }
        match format(plan, device.as_ref(), &mut |bytes| progress(plan, bytes)) {
            Ok(()) => outcome.formatted.push(path),
            Err(error) => outcome.failed = Some((path, error)),
        }
    }
    remove_unformatted(plans, devices, &mut outcome);
    outcome.leftovers = finish(plans, &outcome.formatted);
    outcome
}

/// Saves what the plans overwrite; the device is the first of those that were to be saved.
fn save(
    undo: &UndoLog,
    plans: &[DevicePlan],
    devices: &[Box<dyn BlockDevice>],
) -> Result<(), (PathBuf, SaveError)> {
    let old: Vec<(&DevicePlan, &dyn BlockDevice)> = plans
        .iter()
        .zip(devices.iter().map(AsRef::as_ref))
        .filter(|(plan, _)| !plan.facts.create)
        .collect();
    let steps: Vec<_> =
        old.iter().map(|(plan, _)| undo::steps_of(|| Box::new(plan.plan.steps.iter()))).collect();
    let parts: Vec<Saving<'_>> = old
        .iter()
        .zip(&steps)
        .map(|((_, device), steps)| Saving { device, watch: Watch::Ends, steps })
        .collect();
    let path = parts.first().map(|part| part.device.info().path.clone());
    match path {
        Some(path) => undo.save(&parts).map_err(|error| (path, error)),
        None => Ok(()),
    }
}

/// Removes the images that this run made, which are those that it has claimed, and did not format.
fn remove_unformatted(
    plans: &[DevicePlan],
    claimed: Vec<Box<dyn BlockDevice>>,
    outcome: &mut Outcome,
) {
    for (plan, device) in plans.iter().zip(claimed) {
        drop(device);
        let path = &plan.facts.info.path;
        // Where it cannot be removed, the failure at hand says more than one about cleaning up.
        if plan.facts.create
            && !outcome.formatted.contains(path)
            && std::fs::remove_file(path).is_ok()
        {
            outcome.removed.push(path.clone());
        }
    }
}

/// Claims each device as [`run`] would and lets it go again, for a dry run to refuse what the run
/// would refuse. Images are not made.
pub fn try_claims(plans: &[DevicePlan]) -> Result<(), RunError> {
    let mut claimed = Vec::with_capacity(plans.len());
    for plan in plans {
        let info = &plan.facts.info;
        if plan.facts.create {
            file::check_new_image(&info.path, info.size_bytes)?;
        } else {
            claimed.push(claim(plan, &mut open_for_real)?);
        }
    }
    Ok(())
}

fn claim(plan: &DevicePlan, open: Opener<'_>) -> Result<Box<dyn BlockDevice>, RunError> {
    let device = open(plan)?;
    let checked = check_unchanged(&plan.facts, device.as_ref());
    if checked.is_err() && plan.facts.create {
        // Made just now; the error at hand says more than one about cleaning up.
        let _ = std::fs::remove_file(&plan.facts.info.path);
    }
    checked.map(|()| device)
}

/// Whether a claimed device still is what it was planned from. Somebody may have put something on
/// it while the plan was being read.
fn check_unchanged(facts: &DeviceFacts, device: &dyn BlockDevice) -> Result<(), RunError> {
    let same_size = device.info().size_bytes == facts.info.size_bytes;
    let same_superblock = facts.create || read_superblock(device)? == facts.superblock;
    // Devices of tests have no path that libblkid could open.
    let in_memory = device.info().kind == DeviceKind::Memory;
    let same_contents = in_memory || probe(&facts.info.path)? == facts.found;
    if same_size && same_superblock && same_contents {
        Ok(())
    } else {
        Err(RunError::Changed { path: facts.info.path.clone() })
    }
}

fn format(
    plan: &DevicePlan,
    device: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64),
) -> Result<(), RunError> {
    let path = || plan.facts.info.path.clone();
    apply(&plan.plan, device, progress)
        .map_err(|source| RunError::Apply { path: path(), source })?;
    verify(&plan.plan, device).map_err(|source| RunError::Verify { path: path(), source })?;
    let info = device.info();
    let target = info.target();
    // Not as an error of the device alone, which would say that nothing was written.
    let written =
        read_superblock(device).map_err(|source| RunError::ReadBack { path: path(), source })?;
    let refusal =
        written.map_or(Some(Refusal::BadMagic), |sb| kernel_verdict(&sb, &target).refusal);
    match refusal {
        None => Ok(()),
        Some(refusal) => Err(RunError::Refused { path: path(), refusal }),
    }
}

/// The opener for real devices: creates images that do not exist, claims the others.
pub fn open_for_real(plan: &DevicePlan) -> Result<Box<dyn BlockDevice>, DeviceError> {
    let info = &plan.facts.info;
    let device = if plan.facts.create {
        file::create_image(&info.path, info.size_bytes)?
    } else {
        file::open_write(&info.path)?
    };
    Ok(Box::new(device))
}

/// Refuses a device that is named twice, be it by different paths, and a disk beside one of its
/// partitions.
pub fn check_distinct(paths: &[PathBuf]) -> Result<(), MakeError> {
    for (index, second) in paths.iter().enumerate() {
        for first in paths.iter().take(index) {
            // What does not exist yet is the same only by name.
            let same = same_device(first, second).unwrap_or_else(|_| first == second);
            if same {
                return Err(MakeError::SameDevice { first: first.clone(), second: second.clone() });
            }
            for (partition, disk) in [(first, second), (second, first)] {
                if is_partition_of(partition, disk) {
                    let (partition, disk) = (partition.clone(), disk.clone());
                    return Err(MakeError::PartitionOfDisk { partition, disk });
                }
            }
        }
    }
    Ok(())
}

fn is_partition_of(partition: &Path, disk: &Path) -> bool {
    let root = Root::system();
    let on = BlockDir::of_path(&root, partition).and_then(|partition| partition.disk());
    on.is_some() && on == BlockDir::of_path(&root, disk)
}

/// Whether two paths lead to the same device or file.
fn same_device(first: &Path, second: &Path) -> io::Result<bool> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let (a, b) = (first.metadata()?, second.metadata()?);
    Ok(if a.file_type().is_block_device() && b.file_type().is_block_device() {
        a.rdev() == b.rdev()
    } else {
        a.dev() == b.dev() && a.ino() == b.ino()
    })
}
