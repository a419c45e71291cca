//! Carrying a writeback out.

use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use crate::cache_set::{CacheSet, Progress};
use crate::device::{AlignedBuf, BlockDevice, ReadDevice};
use crate::layout::superblock::{BackingState, SB_OFFSET_BYTES};
use crate::ops::commit::is_unchanged;
use crate::ops::invalidate::{self, Amount, RunProgress, Selection, TrustedSet};
use crate::ops::plan::{Plan, Step, WriteKind, apply};
use crate::ops::rebuild::{self, KeptExtents};
use crate::ops::undo::{self, SaveError, Saving, StepSink, UndoLog, Watch};
use crate::ops::verify::verify;
use crate::ops::writeback::copy::{self, Task};
use crate::ops::writeback::{
    CopyError, Method, Options, VolumePlan, WritebackError, WritebackPlan, WritebackRunError,
    WritebackState, plan_for, read_set,
};

/// How often clean buckets are invalidated before giving up.
const ROOM_TRIES: usize = 3;

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritebackProgress {
    /// The cache set is being read.
    Reading(Progress),
    /// So many bytes more are copied.
    Copied(u64),
    /// So many bytes more are compared.
    Compared(u64),
    /// So many bytes more of metadata are written or read back.
    Metadata(u64),
}

/// What was done beside copying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WritebackDone {
    /// Clean buckets that were invalidated to make room.
    pub invalidated_buckets: u64,
    /// The newest journal entry that was written.
    pub journal_seq: Option<u64>,
    /// Backing superblocks that were written.
    pub superblocks: u64,
}

type Tell<'p> = &'p (dyn Fn(WritebackProgress) + Sync);

/// Carries out `plan` on the devices that it was made from, claimed by this process: `cache`, and
/// `backing` in the same order as at planning.
///
/// [`WritebackRunError::state`] says what an error leaves. The same can be planned and run again.
pub fn run(
    plan: &WritebackPlan<'_>,
    options: &Options,
    cache: &dyn BlockDevice,
    backing: &[&dyn BlockDevice],
    progress: Tell<'_>,
) -> Result<WritebackDone, WritebackRunError> {
    run_with_undo(plan, options, None, cache, backing, progress)
}

/// The same, where the metadata that is overwritten is saved to `undo` first. What the copies of dirty
/// data overwrite is not: the cache as it was answers for it.
pub fn run_with_undo(
    plan: &WritebackPlan<'_>,
    options: &Options,
    undo: Option<&UndoLog>,
    cache: &dyn BlockDevice,
    backing: &[&dyn BlockDevice],
    progress: Tell<'_>,
) -> Result<WritebackDone, WritebackRunError> {
    let run = Run { options, cache, reader: &cache, backing, undo, progress };
    if !is_unchanged(plan.set(), run.reader).map_err(WritebackRunError::Device)? {
        return Err(WritebackRunError::Changed { path: cache.info().path.clone() });
    }
    let mut done = WritebackDone::default();
    let with_room = run.with_room(plan, &mut done)?;
    let first = with_room.as_ref().unwrap_or(plan);
    run.pass(first, &mut done)?;
    if options.detach && !first.is_detaching() {
        let second = run.plan_again()?;
        let with_room = run.with_room(&second, &mut done)?;
        run.pass(with_room.as_ref().unwrap_or(&second), &mut done)?;
    }
    Ok(done)
}

struct Run<'r> {
    options: &'r Options,
    cache: &'r dyn BlockDevice,
    reader: &'r dyn ReadDevice,
    backing: &'r [&'r dyn BlockDevice],
    undo: Option<&'r UndoLog>,
    progress: Tell<'r>,
}

impl<'r> Run<'r> {
    fn reading(&self) -> impl FnMut(Progress) + 'r {
        let progress = self.progress;
        move |at| progress(WritebackProgress::Reading(at))
    }

    fn read(&self) -> Result<CacheSet<'r>, WritebackError> {
        read_set(self.reader, &self.options.read, &mut self.reading(), &mut false)
    }

    fn plan_again(&self) -> Result<WritebackPlan<'r>, WritebackRunError> {
        let again = || {
            let backing: Vec<&dyn ReadDevice> =
                self.backing.iter().map(|device| device as &dyn ReadDevice).collect();
            plan_for(self.read()?, &backing, self.options)
        };
        again().map_err(|error| WritebackRunError::Again(Box::new(error)))
    }

    /// Invalidates clean buckets as long as the plan wants it; the plan that has room, where that is
    /// not the one given.
    fn with_room(
        &self,
        plan: &WritebackPlan<'_>,
        done: &mut WritebackDone,
    ) -> Result<Option<WritebackPlan<'r>>, WritebackRunError> {
        let mut again: Option<WritebackPlan<'r>> = None;
        for _ in 0..ROOM_TRIES {
            let Method::InvalidateFirst { buckets } =
                again.as_ref().map_or(&plan.method, |it| &it.method)
            else {
                return Ok(again);
            };
            done.invalidated_buckets += self.make_room(*buckets)?;
            again = Some(self.plan_again()?);
        }
        Ok(again)
    }

    fn make_room(&self, buckets: u64) -> Result<u64, WritebackRunError> {
        let options = invalidate::Options {
            selection: Selection::Coldest(Amount::Count(buckets)),
            skip_refused: true,
            walk: self.options.read.walk,
        };
        let plan = TrustedSet::read(self.reader, &self.options.read, &mut self.reading())
            .and_then(|set| invalidate::plan(set, &options))
            .map_err(|error| WritebackRunError::Again(Box::new(error.into())))?;
        let progress = self.progress;
        let mut tell = |at| match at {
            RunProgress::Written(bytes) => progress(WritebackProgress::Metadata(bytes)),
            RunProgress::Proving(at) => progress(WritebackProgress::Reading(at)),
        };
        let (read, open) = (&self.options.read, || Ok(self.cache));
        let finished = invalidate::run_with_undo(plan, read, self.undo, open, &mut tell);
        finished.result.map_err(WritebackRunError::Room)?;
        Ok(finished.chosen.target_count())
    }

    /// Data, then the cache, then the backing superblocks.
    fn pass(
        &self,
        plan: &WritebackPlan<'_>,
        done: &mut WritebackDone,
    ) -> Result<(), WritebackRunError> {
        if let Some(undo) = self.undo {
            self.save(undo, plan, *done)?;
        }
        self.copy(plan)?;
        let (set, progress) = (plan.set(), self.progress);
        let mut metadata = |bytes| progress(WritebackProgress::Metadata(bytes));
        match &plan.method {
            Method::Nothing => {}
            Method::InvalidateFirst { .. } => return Err(WritebackRunError::NoRoom),
            Method::Rebuild(rebuild) => {
                let source = plan.source(self.options);
                rebuild::run(rebuild, set, &source, self.cache, &mut metadata)
                    .map_err(WritebackRunError::Commit)?;
                done.journal_seq = Some(rebuild.entry.seq());
                self.prove(plan)?;
            }
            Method::Journal(journal) => {
                apply(&journal.plan, self.cache, &mut metadata)
                    .map_err(WritebackRunError::Journal)?;
                verify(&journal.plan, self.cache).map_err(WritebackRunError::VerifyJournal)?;
                done.journal_seq = Some(journal.last_seq);
                self.prove(plan)?;
            }
        }
        for volume in &plan.volumes {
            done.superblocks += u64::from(self.superblock(volume, plan.is_detaching())?);
        }
        Ok(())
    }

    /// Saves what the pass overwrites beside what it copies.
    fn save(
        &self,
        undo: &UndoLog,
        plan: &WritebackPlan<'_>,
        done: WritebackDone,
    ) -> Result<(), WritebackRunError> {
        let state = match done {
            WritebackDone { journal_seq: Some(_), .. } => WritebackState::New,
            WritebackDone { invalidated_buckets: 0, .. } => WritebackState::Unchanged,
            WritebackDone { .. } => WritebackState::Old,
        };
        let detaching = plan.is_detaching();
        let cache_steps = |sink: StepSink<'_>| {
            let mut failed = Ok(());
            plan.cache_steps(self.options, &mut |step| {
                if failed.is_ok() {
                    failed = sink(&step);
                }
            })
            .map_err(|error| SaveError::Steps(error.into()))?;
            failed
        };
        let superblocks: Vec<(&VolumePlan, &dyn BlockDevice, Plan)> = plan
            .volumes
            .iter()
            .filter_map(|volume| {
                let device = *self.backing.get(volume.backing)?;
                Some((volume, device, superblock_steps(volume, detaching)?))
            })
            .collect();
        let sources: Vec<_> = superblocks
            .iter()
            .map(|(_, _, steps)| undo::steps_of(|| Box::new(steps.steps.iter())))
            .collect();
        let watch = Watch::of_cache(&plan.set().cache);
        let mut parts = vec![Saving { device: self.reader, watch, steps: &cache_steps }];
        for ((_, device, _), steps) in superblocks.iter().zip(&sources) {
            parts.push(Saving { device, watch: Watch::Superblock, steps });
        }
        // Whose superblock needs no change is compared all the same.
        let nothing = |_: StepSink<'_>| Ok(());
        let mut copied = Vec::new();
        for volume in &plan.volumes {
            let (Some(slot), Some(device)) = (volume.slot, self.backing.get(volume.backing)) else {
                continue;
            };
            let known = superblocks.iter().position(|(it, _, _)| it.backing == volume.backing);
            let position = known.map_or_else(
                || {
                    parts.push(Saving { device, watch: Watch::Superblock, steps: &nothing });
                    parts.len() - 1
                },
                |position| position + 1,
            );
            copied.push((slot, position, detaching));
        }
        undo.save_with(&parts, &copied).map_err(|source| WritebackRunError::Undo { state, source })
    }

    fn copy(&self, plan: &WritebackPlan<'_>) -> Result<(), WritebackRunError> {
        let stop = AtomicBool::new(false);
        let one = |volume: &VolumePlan| -> Result<(), CopyError> {
            let (Some(slot), Some(&backing)) = (volume.slot, self.backing.get(volume.backing))
            else {
                return Ok(());
            };
            let expected = volume.dirty_sectors;
            let progress = self.progress;
            let copied = |bytes| progress(WritebackProgress::Copied(bytes));
            copy::volume(plan.set(), slot, expected, backing, Task::Copy, &stop, &copied)?;
            // What is in the device's cache only must not be called clean.
            backing.flush().map_err(CopyError::Backing)?;
            if self.options.verify {
                let compared = |bytes| progress(WritebackProgress::Compared(bytes));
                copy::volume(plan.set(), slot, expected, backing, Task::Compare, &stop, &compared)?;
            }
            Ok(())
        };
        let dirty = || plan.volumes.iter().filter(|volume| volume.dirty_sectors.0 > 0);
        let results: Vec<(u32, Result<(), CopyError>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = dirty()
                .map(|volume| {
                    let (one, stop) = (&one, &stop);
                    let thread = scope.spawn(move || {
                        let result = one(volume);
                        if result.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        result
                    });
                    (volume.slot.unwrap_or_default(), thread)
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(|(slot, thread)| (slot, join(thread))).collect()
        });
        for (slot, result) in results {
            result.map_err(|source| WritebackRunError::Copy { slot, source })?;
        }
        Ok(())
    }

    /// Reads the cache set again: it must hold what was planned.
    fn prove(&self, plan: &WritebackPlan<'_>) -> Result<(), WritebackRunError> {
        let after = self.read().map_err(|error| WritebackRunError::Reread(Box::new(error)))?;
        let wrong = |what: String| Err(WritebackRunError::Proof(what));
        let newest = after.journal.newest().map_or(0, |entry| entry.jset.seq());
        let expected = match &plan.method {
            Method::Rebuild(rebuild) => rebuild.entry.seq(),
            Method::Journal(journal) => journal.last_seq,
            Method::Nothing | Method::InvalidateFirst { .. } => newest,
        };
        if newest != expected {
            return wrong(format!("journal entry {newest} is the newest, expected {expected}"));
        }
        if let Method::Rebuild(rebuild) = &plan.method {
            let all = KeptExtents::new(&after, self.options.read.walk);
            let reread =
                |error| WritebackRunError::Reread(Box::new(WritebackError::Extents(error)));
            let (_, found) = rebuild::survey(&after, &all, false).map_err(reread)?;
            if found != rebuild.contents {
                return wrong(format!(
                    "the btree holds {found:?}, expected {:?}",
                    rebuild.contents
                ));
            }
        }
        let dirty = |slot: u32| after.volumes.get(&slot).map_or(0, |it| it.dirty_sectors.0);
        for volume in &plan.volumes {
            let found = volume.slot.map_or(0, dirty);
            if found > 0 {
                return wrong(format!("volume {:?} still has {found} dirty sectors", volume.slot));
            }
        }
        for kept in &plan.kept {
            let (slot, found, expected) = (kept.slot, dirty(kept.slot), kept.dirty_sectors.0);
            if found != expected {
                return wrong(format!(
                    "volume {slot} has {found} dirty sectors, expected {expected}"
                ));
            }
        }
        Ok(())
    }

    /// Sets a backing device clean, or detached; whether there was anything to write.
    fn superblock(&self, volume: &VolumePlan, detaching: bool) -> Result<bool, WritebackRunError> {
        let Some(&device) = self.backing.get(volume.backing) else { return Ok(false) };
        let Some(steps) = superblock_steps(volume, detaching) else { return Ok(false) };
        let path = || device.info().path.clone();
        apply(&steps, device, &mut |_| {})
            .map_err(|source| WritebackRunError::Superblock { path: path(), source })?;
        verify(&steps, device)
            .map_err(|source| WritebackRunError::VerifySuperblock { path: path(), source })?;
        Ok(true)
    }
}

/// What sets a backing device clean, or detached; `None` where it is.
fn superblock_steps(volume: &VolumePlan, detaching: bool) -> Option<Plan> {
    if volume.state == BackingState::None {
        return None;
    }
    let mut sb = volume.superblock.clone();
    sb.edit(|edit| {
        if detaching {
            edit.state(BackingState::None).set_uuid(Uuid::nil());
        } else if volume.state == BackingState::Dirty {
            edit.state(BackingState::Clean);
        }
    });
    if sb == volume.superblock {
        return None;
    }
    let data = AlignedBuf::copy_of(sb.as_bytes());
    let write = Step::Write { kind: WriteKind::Superblock, offset: SB_OFFSET_BYTES, data };
    Some(Plan { steps: vec![write, Step::Flush] })
}
